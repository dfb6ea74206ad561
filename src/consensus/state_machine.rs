//! The agreed state as openraft's state machine.
//!
//! Applies agreed commands, notes on the monotonic clock when it did, and pushes the new state to
//! whoever watches. It installs nothing and erases no log. Invariants: applying is total and
//! gives one answer per entry, and a panic inside it becomes an answer too, because openraft would
//! otherwise go on half dead without telling anyone.

use std::collections::BTreeSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::impls::EmptyNode;
use openraft::storage::RaftStateMachine;
use openraft::{
    Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta,
    StorageError, StoredMembership,
};
use tokio::sync::watch;

use super::types::{log_end_of, AgreedSnapshot, Answer, Types};
use crate::core::agreed::{Agreed, Change, Command, Refusal};
use crate::core::key_ring::{Change as KeyChange, Command as KeyCommand, KeyRing};
use crate::core::moment::Moment;
use crate::core::recovery::LogPosition;
use crate::core::server_id::ServerId;

type Result<T> = std::result::Result<T, StorageError<ServerId>>;

/// What a server knows of the agreed state.
#[derive(Clone, Debug, Default)]
pub struct AgreedView {
    /// The agreed keys and server list.
    pub agreed: Arc<Agreed>,
    /// When this server applied the activation of the current key, or what it was told of it; before
    /// a key from an earlier cluster incarnation is current again, since when that one was.
    pub current_since: Moment,
    /// When this server applied the staging of the staged key.
    pub staged_since: Moment,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Its id, if there is one.
    pub end: Option<LogPosition>,
    /// The voters of the membership that is agreed, of both sets during a change.
    pub voters: BTreeSet<ServerId>,
}

impl AgreedView {
    /// The agreed keys.
    pub fn ring(&self) -> &KeyRing {
        &self.agreed.ring
    }
}

/// Hears of each command's outcome, in the order of the log.
pub type Observer = Arc<dyn Fn(&std::result::Result<Change, Refusal>) + Send + Sync>;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// One server's state machine; clones share it.
#[derive(Clone)]
pub struct StateMachine(Arc<Mutex<Inner>>);

struct Inner {
    state: AgreedSnapshot,
    applied: Option<LogId<ServerId>>,
    membership: StoredMembership<ServerId, EmptyNode>,
    snapshot: Option<Snapshot<Types>>,
    snapshots_built: u64,
    views: watch::Sender<AgreedView>,
    observer: Observer,
    clock: Clock,
}

impl StateMachine {
    /// An empty one that pushes each new state into `views`.
    pub fn new(views: watch::Sender<AgreedView>, observer: Observer, clock: Clock) -> StateMachine {
        StateMachine(Arc::new(Mutex::new(Inner {
            state: AgreedSnapshot::default(),
            applied: None,
            membership: StoredMembership::default(),
            snapshot: None,
            snapshots_built: 0,
            views,
            observer,
            clock,
        })))
    }

    /// Whether the stored snapshot holds a key that the ring has retired.
    pub fn snapshot_is_stale(&self) -> bool {
        let inner = self.lock();
        inner.snapshot.as_ref().is_some_and(|s| {
            s.snapshot.agreed.ring.all().any(|held| !inner.state.agreed.ring.holds(held.generation))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn apply(&mut self, entry: Entry<Types>) -> Answer {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                None
            }
            EntryPayload::Normal(command) => Some(self.command(command)),
        }
    }

    fn command(&mut self, command: Command) -> std::result::Result<Change, Refusal> {
        let imported = match &command {
            Command::Key(KeyCommand::Found { from: Some(record), .. }) => record.age(),
            _ => Duration::ZERO,
        };
        let outcome = self.state.agreed.apply(command);
        let now = (self.clock)();
        match outcome {
            // As old as it was when it was proposed; a leader's word makes that exact.
            Ok(Change::Key(KeyChange::Founded)) => {
                self.state.current_since = now.ago(imported);
                self.state.staged_since = now;
            }
            Ok(Change::Key(KeyChange::Activated(_))) => self.state.current_since = now,
            Ok(Change::Key(KeyChange::Staged(_))) => self.state.staged_since = now,
            _ => {}
        }
        (self.observer)(&outcome);
        outcome
    }

    fn take(&mut self, meta: &SnapshotMeta<ServerId, EmptyNode>, state: Box<AgreedSnapshot>) {
        self.state = (*state).clone();
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.snapshot = Some(Snapshot { meta: meta.clone(), snapshot: state });
    }

    fn snapshot_named(&self, name: &str) -> Snapshot<Types> {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: name.to_owned(),
        };
        Snapshot { meta, snapshot: Box::new(self.state.clone()) }
    }

    fn publish(&self) {
        self.views.send_replace(AgreedView {
            agreed: Arc::new(self.state.agreed.clone()),
            current_since: self.state.current_since,
            staged_since: self.state.staged_since,
            applied: self.applied.map_or(0, |id| id.index),
            end: self.applied.as_ref().map(log_end_of),
            voters: self.membership.voter_ids().collect(),
        });
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = StateMachine;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<ServerId>>, StoredMembership<ServerId, EmptyNode>)> {
        let inner = self.lock();
        Ok((inner.applied, inner.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut inner = self.lock();
        let answers = entries
            .into_iter()
            .map(|entry| {
                // A command that panics on one server panics on all; better a skipped command
                // than a fleet of half dead ones. Its outcome is the same everywhere.
                catch_unwind(AssertUnwindSafe(|| inner.apply(entry)))
                    .unwrap_or(Some(Err(Refusal::Fault)))
            })
            .collect();
        inner.publish();
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<AgreedSnapshot>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<ServerId, EmptyNode>,
        snapshot: Box<AgreedSnapshot>,
    ) -> Result<()> {
        let mut inner = self.lock();
        inner.take(meta, snapshot);
        inner.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>> {
        Ok(self.lock().snapshot.clone())
    }
}

impl RaftSnapshotBuilder<Types> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>> {
        let mut inner = self.lock();
        inner.snapshots_built += 1;
        let snapshot = inner.snapshot_named(&inner.snapshots_built.to_string());
        inner.snapshot = Some(snapshot.clone());
        Ok(snapshot)
    }
}
