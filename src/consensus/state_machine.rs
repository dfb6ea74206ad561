//! The agreed state as openraft's state machine.
//!
//! Applies agreed commands, notes on the monotonic clock when it did, and pushes the new state to
//! whoever watches. It installs nothing and erases no log. Invariants: applying is total and
//! gives one answer per entry, and a panic inside it becomes an answer too, because openraft would
//! otherwise go on half dead without telling anyone; once it is closed it takes no snapshot.

use std::collections::BTreeSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::impls::EmptyNode;
use openraft::storage::RaftStateMachine;
use openraft::{
    Entry, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError,
    StoredMembership,
};
use tokio::sync::watch;

use super::log_store::{left, LogStore};
use super::types::{log_id_of, AgreedSnapshot, Answer, RaftLogId, Types};
use crate::core::agreed::{Agreed, Change, Command, Record, Refusal};
use crate::core::key_ring::{Change as KeyChange, ClusterId, Generation, KeyRing};
use crate::core::log_id::LogId;
use crate::core::moment::{millis, Moment};
use crate::core::node_id::NodeId;
use crate::core::server_id::ServerId;
use crate::core::witness::{LogDeed, LogWatch};

type Result<T> = std::result::Result<T, StorageError<NodeId>>;

/// What a server knows of the agreed state.
#[derive(Clone, Debug, Default)]
pub struct AgreedView {
    /// The agreed keys and server list. While a cluster is being founded, those of the one before.
    pub agreed: Arc<Agreed>,
    /// Whether the present cluster has what it was founded from, so that they are its own.
    pub has_base: bool,
    /// When this server applied the activation of the current key, or since when it has been current by
    /// what the cluster was founded from.
    pub current_since: Moment,
    /// When this server applied the staging of the staged key.
    pub staged_since: Moment,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Its id, if there is one.
    pub end: Option<LogId>,
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

/// An age that is wrong by less is not written anew.
const AGE_SLACK: Duration = Duration::from_secs(1);

/// One server's state machine; clones share it.
#[derive(Clone)]
pub struct StateMachine(Arc<Mutex<Inner>>);

struct Inner {
    state: AgreedSnapshot,
    applied: Option<RaftLogId>,
    membership: StoredMembership<NodeId, EmptyNode>,
    snapshot: Option<Snapshot<Types>>,
    snapshots_built: u64,
    /// Whether this node has left its cluster.
    closed: bool,
    views: watch::Sender<AgreedView>,
    observer: Observer,
    clock: Clock,
    watch: LogWatch,
    told: Option<Told>,
}

/// A key and since when it has been in use, as a leader tells.
type Told = (Option<ClusterId>, Generation, Moment);

impl StateMachine {
    /// An empty one that pushes each new state into `views`.
    pub fn new(views: watch::Sender<AgreedView>, observer: Observer, clock: Clock) -> StateMachine {
        StateMachine(Arc::new(Mutex::new(Inner {
            state: AgreedSnapshot::default(),
            applied: None,
            membership: StoredMembership::default(),
            snapshot: None,
            snapshots_built: 0,
            closed: false,
            views,
            observer,
            clock,
            watch: None,
            told: None,
        })))
    }

    /// The same, and somebody looks at what is agreed.
    #[must_use]
    pub fn watched(self, watch: LogWatch) -> StateMachine {
        self.lock().watch = watch;
        self
    }

    /// Ends this node's part in its cluster: no snapshot is taken any more, since to take one is to
    /// acknowledge what is in it.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Whether the stored snapshot holds a key that the ring has retired.
    pub fn snapshot_is_stale(&self) -> bool {
        let inner = self.lock();
        inner.snapshot.as_ref().is_some_and(|s| {
            s.snapshot.agreed.ring.all().any(|held| !inner.state.agreed.ring.holds(held.generation))
        })
    }

    /// Takes a leader's word for the time from which on a key is in use: an entry that is read from a log long
    /// after it was agreed on makes no key young, in no record, no file and no snapshot either.
    pub fn note_age(&self, cluster_id: Option<ClusterId>, generation: Generation, since: Moment) {
        let mut inner = self.lock();
        let told = Some((cluster_id, generation, since));
        inner.told = told;
        let was = inner.state.current_since;
        if !inner.state.heed(told) {
            return;
        }
        if let Some(snapshot) = &mut inner.snapshot {
            let _ = snapshot.snapshot.heed(told);
        }
        // What was written with another age is written again, unless that was a message's time.
        let matters = was.since(since) > AGE_SLACK;
        inner.views.send_if_modified(|view| {
            let is_same = view.ring().cluster_id() == cluster_id && view.current_since == was;
            if is_same {
                view.current_since = since;
            }
            is_same && matters
        });
    }

    /// What the log comes to if it is read to its end, whether that is agreed on or not, and where that
    /// is; `None` if what the cluster was founded from is not in it.
    pub fn record(&self, log: &LogStore, now: Moment) -> Option<(LogId, Record)> {
        let inner = self.lock();
        let (mut state, mut end) = (inner.state.clone(), inner.applied);
        let mut voters = inner.membership.membership().get_joint_config().clone();
        let (entries, before) = (log.after(inner.applied), inner.views.borrow().clone());
        let told = inner.told;
        drop(inner);
        let mut is_activation_open = false;
        for entry in entries {
            end = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(membership) => {
                    voters.clone_from(membership.get_joint_config());
                }
                EntryPayload::Normal(command) => {
                    let was_open = matches!(&command, Command::Found(r) if r.is_activation_open);
                    match state.apply(command, now) {
                        Ok(Change::Founded(true)) => {
                            is_activation_open = was_open;
                            state.keep_ages(&before);
                        }
                        Ok(Change::Key(KeyChange::Activated(_))) => is_activation_open = true,
                        _ => {}
                    }
                }
            }
        }
        state.heed(told);
        state.agreed.ring.cluster_id()?;
        let servers = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.server).collect();
        let record = Record {
            agreed: state.agreed,
            current_age_ms: millis(now.since(state.current_since)),
            is_activation_open,
            staged_age_ms: millis(now.since(state.staged_since)),
            voters: voters.iter().map(servers).collect(),
        };
        Some((log_id_of(&end?), record))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgreedSnapshot {
    fn apply(&mut self, command: Command, now: Moment) -> std::result::Result<Change, Refusal> {
        let ages = match &command {
            Command::Found(record) => (record.current_age_ms, record.staged_age_ms),
            _ => (0, 0),
        };
        let outcome = self.agreed.apply(command);
        match outcome {
            // As old as it was when it was proposed; a leader's word makes that exact.
            Ok(Change::Founded(true)) => {
                self.current_since = now.ago(Duration::from_millis(ages.0));
                self.staged_since = now.ago(Duration::from_millis(ages.1));
            }
            Ok(Change::Key(KeyChange::Activated(_))) => self.current_since = now,
            Ok(Change::Key(KeyChange::Staged(_))) => self.staged_since = now,
            _ => {}
        }
        outcome
    }

    /// Takes a leader's word if it is about the current key and makes that older; whether it does.
    fn heed(&mut self, told: Option<Told>) -> bool {
        let Some((cluster_id, generation, since)) = told else { return false };
        let current = self.agreed.ring.current().map(|held| held.generation);
        let is_meant = (self.agreed.ring.cluster_id(), current) == (cluster_id, Some(generation));
        let is_older = is_meant && since < self.current_since;
        if is_older {
            self.current_since = since;
        }
        is_older
    }

    /// A founding's record may have waited for a majority: the keys that this server had before are no younger
    /// than they were to it.
    fn keep_ages(&mut self, before: &AgreedView) {
        let current = |ring: &KeyRing| ring.current().map(|held| held.stek.fingerprint());
        let staged = |ring: &KeyRing| ring.staged().map(|staged| staged.held.stek.fingerprint());
        let (new, old) = (&self.agreed.ring, before.ring());
        if current(new).is_some() && current(new) == current(old) {
            self.current_since = self.current_since.min(before.current_since);
        }
        if staged(new).is_some() && staged(new) == staged(old) {
            self.staged_since = self.staged_since.min(before.staged_since);
        }
    }
}

impl Inner {
    fn apply(&mut self, entry: Entry<Types>) -> Answer {
        self.applied = Some(entry.log_id);
        let at = log_id_of(&entry.log_id);
        let answer = match entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                None
            }
            EntryPayload::Normal(command) => Some(self.command(command)),
        };
        if let Some(watch) = &self.watch {
            watch(LogDeed::Applies(at, &self.state.agreed));
        }
        answer
    }

    fn command(&mut self, command: Command) -> std::result::Result<Change, Refusal> {
        let outcome = self.state.apply(command, (self.clock)());
        if outcome == Ok(Change::Founded(true)) {
            self.state.keep_ages(&self.views.borrow());
        }
        self.state.heed(self.told);
        (self.observer)(&outcome);
        outcome
    }

    fn take(&mut self, meta: &SnapshotMeta<NodeId, EmptyNode>, state: Box<AgreedSnapshot>) {
        self.state = (*state).clone();
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        if let (Some(watch), Some(last)) = (&self.watch, &meta.last_log_id) {
            let voters = self.membership.membership().get_joint_config();
            watch(LogDeed::Takes(log_id_of(last), voters, &self.state.agreed));
        }
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
        self.views.send_modify(|view| {
            view.applied = self.applied.map_or(0, |id| id.index);
            view.end = self.applied.as_ref().map(log_id_of);
            view.voters = self.membership.voter_ids().map(|node| node.server).collect();
            if self.state.agreed.ring.cluster_id().is_some() {
                view.has_base = true;
                view.agreed = Arc::new(self.state.agreed.clone());
                view.current_since = self.state.current_since;
                view.staged_since = self.state.staged_since;
            }
        });
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = StateMachine;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<RaftLogId>, StoredMembership<NodeId, EmptyNode>)> {
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
        meta: &SnapshotMeta<NodeId, EmptyNode>,
        snapshot: Box<AgreedSnapshot>,
    ) -> Result<()> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(left());
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::raft_log_id;
    use crate::core::key_ring::{ClusterId, Command as KeyCommand, Generation, RingKey};
    use crate::core::stek::{Stek, STEK_LEN};

    fn machine() -> StateMachine {
        let views = watch::Sender::new(AgreedView::default());
        StateMachine::new(views, Arc::new(|_| {}), Arc::new(Moment::default))
    }

    /// The log that a cluster of server 1 begins with, and then these.
    fn log(commands: Vec<Command>) -> LogStore {
        let membership = openraft::Membership::new(vec![[NodeId::of(1)].into()], None);
        let first = EntryPayload::Membership(membership);
        let payloads = [first].into_iter().chain(commands.into_iter().map(EntryPayload::Normal));
        LogStore::of(payloads.zip(0..).map(|(payload, index)| {
            let log_id = raft_log_id(LogId { index, ..LogId::default() });
            Entry { log_id, payload }
        }))
    }

    fn stage(generation: u8) -> Command {
        let bytes: Vec<u8> = (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ generation).collect();
        let stek = Stek::copy_from(&bytes).unwrap();
        let held = RingKey { generation: Generation(generation.into()), stek };
        Command::Key(KeyCommand::Stage { held, revokes: false })
    }

    #[test]
    fn a_log_is_read_to_its_end_whether_agreed_on_or_not() {
        let mut record = Record::of_file([ServerId(1)].into());
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        record.agreed.ring.apply(KeyCommand::Found { cluster_id }).unwrap();
        let log = log(vec![Command::Found(Box::new(record)), stage(1)]);
        let (end, record) = machine().record(&log, Moment::default()).unwrap();
        assert_eq!((end.index, record.agreed.ring.newest()), (2, Generation(1)));
        assert_eq!(record.voters, [[ServerId(1)].into()]);
        assert!(!record.is_activation_open);
    }

    #[test]
    fn an_activation_that_is_not_agreed_on_is_told_as_open() {
        let mut record = Record::of_file([ServerId(1)].into());
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        record.agreed.ring.apply(KeyCommand::Found { cluster_id }).unwrap();
        let activate = Command::Key(KeyCommand::Activate { generation: Generation(1), keep: 2 });
        let log = log(vec![Command::Found(Box::new(record)), stage(1), activate]);
        let told = |machine: &StateMachine| machine.record(&log, Moment::default()).unwrap().1;
        let first = told(&machine());
        assert!(first.is_activation_open);
        // It is still open where the next cluster has not agreed on what it was founded from.
        let next = self::log(vec![Command::Found(Box::new(first))]);
        assert!(machine().record(&next, Moment::default()).unwrap().1.is_activation_open);
        let applied = machine();
        for entry in log.after(None) {
            let _ = applied.lock().apply(entry);
        }
        assert!(!told(&applied).is_activation_open);
    }

    /// A server that joins reads the log from its beginning, hours after the key came in use.
    #[test]
    fn a_leaders_word_makes_a_key_older_in_records_snapshots_and_views() {
        let at = |seconds| Moment::from_start(std::time::Duration::from_secs(seconds));
        let mut record = Record::of_file([ServerId(1)].into());
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        record.agreed.ring.apply(KeyCommand::Found { cluster_id }).unwrap();
        let activate = Command::Key(KeyCommand::Activate { generation: Generation(1), keep: 2 });
        let log = log(vec![Command::Found(Box::new(record)), stage(1), activate]);
        for is_told_before in [true, false] {
            let views = watch::Sender::new(AgreedView::default());
            let machine =
                StateMachine::new(views.clone(), Arc::new(|_| {}), Arc::new(move || at(20)));
            let age = || machine.record(&log, at(20)).unwrap().1.current_age_ms;
            let tell = || machine.note_age(Some(cluster_id), Generation(1), at(3));
            if is_told_before {
                tell();
                assert_eq!(age(), 17_000, "it is not applied yet");
            }
            for entry in log.after(None) {
                let _ = machine.lock().apply(entry);
            }
            machine.lock().publish();
            let snapshot = machine.lock().snapshot_named("first");
            machine.lock().snapshot = Some(snapshot);
            let mut seen = views.subscribe();
            seen.mark_unchanged();
            if !is_told_before {
                assert_eq!(age(), 0, "it has just been applied");
                tell();
                assert!(seen.has_changed().unwrap(), "the file is written again");
            }
            assert_eq!(age(), 17_000);
            assert_eq!(views.borrow().current_since, at(3));
            let sent = machine.lock().snapshot.clone().unwrap();
            assert_eq!(sent.snapshot.current_since, at(3));
            // It is nobody else's age, and what is told later makes no key younger.
            machine.note_age(Some(cluster_id), Generation(2), at(1));
            machine.note_age(None, Generation(1), at(1));
            machine.note_age(Some(cluster_id), Generation(1), at(4));
            assert_eq!(age(), 17_000);
        }
    }

    #[test]
    fn a_key_is_no_younger_by_what_a_cluster_is_founded_from_than_it_was_here() {
        let at = |seconds| Moment::from_start(std::time::Duration::from_secs(seconds));
        let mut record = Record::of_file([ServerId(1)].into());
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        let ring = &mut record.agreed.ring;
        ring.apply(KeyCommand::Found { cluster_id }).unwrap();
        let apply = |ring: &mut KeyRing, command| match command {
            Command::Key(command) => ring.apply(command).unwrap(),
            _ => panic!("no key"),
        };
        apply(ring, stage(1));
        ring.apply(KeyCommand::Activate { generation: Generation(1), keep: 2 }).unwrap();
        let without_staged = record.agreed.clone();
        apply(&mut record.agreed.ring, stage(2));
        // By the record, which says how old they were when it was proposed.
        (record.current_age_ms, record.staged_age_ms) = (3000, 1000);
        let told = (at(17), at(19));
        let cases = [
            (record.agreed.clone(), (at(5), at(6)), (at(5), at(6))),
            (record.agreed.clone(), (at(18), at(20)), told),
            (without_staged, (at(5), at(6)), (at(5), told.1)),
            (Agreed::default(), (at(0), at(0)), told),
        ];
        for (agreed, (current_since, staged_since), expected) in cases {
            let agreed = Arc::new(agreed);
            let before =
                AgreedView { agreed, current_since, staged_since, ..AgreedView::default() };
            let views = watch::Sender::new(before);
            let machine = StateMachine::new(views, Arc::new(|_| {}), Arc::new(move || at(20)));
            let log = log(vec![Command::Found(Box::new(record.clone()))]);
            let ages = (
                20_000 - millis(expected.0.since(at(0))),
                20_000 - millis(expected.1.since(at(0))),
            );
            let read = machine.record(&log, at(20)).unwrap().1;
            assert_eq!((read.current_age_ms, read.staged_age_ms), ages);
            for entry in log.after(None) {
                let _ = machine.lock().apply(entry);
            }
            let state = &machine.lock().state;
            assert_eq!((state.current_since, state.staged_since), expected);
        }
    }

    #[test]
    fn a_log_without_what_its_cluster_was_founded_from_comes_to_nothing() {
        assert!(machine().record(&log(vec![]), Moment::default()).is_none());
        assert!(machine().record(&log(vec![stage(1)]), Moment::default()).is_none());
    }

    #[tokio::test]
    async fn a_closed_state_takes_no_snapshot() {
        let mut record = Record::of_file([ServerId(1)].into());
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        record.agreed.ring.apply(KeyCommand::Found { cluster_id }).unwrap();
        let mut leader = machine();
        for entry in log(vec![Command::Found(Box::new(record)), stage(1)]).after(None) {
            let _ = leader.lock().apply(entry);
        }
        let snapshot = leader.build_snapshot().await.unwrap();
        let empty = LogStore::new(None);
        let end = |machine: &StateMachine| {
            machine.record(&empty, Moment::default()).map(|(end, _)| end.index)
        };
        let (mut open, mut closed) = (machine(), machine());
        open.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await.unwrap();
        assert_eq!(end(&open), Some(2));
        closed.close();
        let taken = closed.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await;
        assert!(taken.is_err() && end(&closed).is_none());
    }
}
