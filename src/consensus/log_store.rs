//! Raft's log and vote, in memory.
//!
//! A node lives as long as its log: a server that starts again is another node. Invariants: an entry
//! that is purged or truncated is dropped at once, and with it this store's handle on a key; nothing
//! is acknowledged or voted for once the log was closed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::ops::RangeBounds;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    AnyError, Entry, EntryPayload, LogState, Membership, OptionalSend, RaftLogReader, StorageError,
    StorageIOError, Vote,
};
use tokio::time::Instant;

use super::types::{leader_id_of, log_id_of, RaftLogId, Types};
use crate::core::agreed::Command;
use crate::core::key_ring::{Command as KeyCommand, Generation};
use crate::core::log_id::{LeaderId, LogId};
use crate::core::node_id::NodeId;
use crate::core::server_id::ServerId;
use crate::core::witness::{LogDeed, LogWatch, Payload};
use crate::supervise::fail_point;

type Result<T> = std::result::Result<T, StorageError<NodeId>>;

/// A handle to one node's log; clones share it.
#[derive(Clone, Default)]
pub struct LogStore(Arc<Mutex<Inner>>);

/// Waits until what a node holds up to some entry would outlive its process, if it keeps a state file;
/// not for longer than a moment.
pub type Persist = Arc<dyn Fn(LogId) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// How far one server is, at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogProgress {
    /// The highest vote.
    pub vote: Option<Vote<NodeId>>,
    /// Since when it has been that, if it was given since this process began.
    pub voted: Option<Instant>,
    /// The last entry, kept or purged.
    pub last: Option<RaftLogId>,
    /// Up to where this server knows of agreement.
    pub committed: Option<RaftLogId>,
}

impl LogProgress {
    /// Whether this server takes the candidate `leader_id` for the leader, be it itself.
    pub fn follows(&self, leader_id: LeaderId) -> bool {
        self.vote.is_some_and(|vote| vote.committed && leader_id_of(&vote) == leader_id)
    }
}

#[derive(Default)]
struct Inner {
    vote: Option<Vote<NodeId>>,
    voted: Option<Instant>,
    committed: Option<RaftLogId>,
    purged: Option<RaftLogId>,
    entries: BTreeMap<u64, Entry<Types>>,
    /// Whether this node has left its cluster.
    closed: bool,
    persist: Option<Persist>,
    watch: LogWatch,
}

impl LogStore {
    /// An empty log, of a node that is in no cluster yet.
    pub fn new(persist: Option<Persist>) -> LogStore {
        LogStore(Arc::new(Mutex::new(Inner { persist, ..Inner::default() })))
    }

    /// The log of a cluster that was founded: its one entry says who the voters are, and is the same
    /// at each of them.
    ///
    /// openraft's `initialize` writes that entry too, but also has each server campaign at once.
    pub fn founding(voters: BTreeSet<NodeId>, persist: Option<Persist>) -> LogStore {
        let payload = EntryPayload::Membership(Membership::new(vec![voters], None));
        let entry = Entry { log_id: RaftLogId::default(), payload };
        let entries = BTreeMap::from([(entry.log_id.index, entry)]);
        LogStore(Arc::new(Mutex::new(Inner { entries, persist, ..Inner::default() })))
    }

    /// The same, and somebody looks at it.
    #[must_use]
    pub fn watched(self, watch: LogWatch) -> LogStore {
        {
            let mut inner = self.lock();
            inner.watch = watch;
            inner.entries.values().for_each(|entry| inner.tell_appended(entry));
        }
        self
    }

    /// An empty log of a node that has voted.
    #[cfg(test)]
    pub(crate) fn with_vote(vote: Option<Vote<NodeId>>) -> LogStore {
        LogStore(Arc::new(Mutex::new(Inner { vote, ..Inner::default() })))
    }

    /// A log of these entries.
    #[cfg(test)]
    pub(crate) fn of(entries: impl IntoIterator<Item = Entry<Types>>) -> LogStore {
        let entries = entries.into_iter().map(|e| (e.log_id.index, e)).collect();
        LogStore(Arc::new(Mutex::new(Inner { entries, ..Inner::default() })))
    }

    /// The last index, up to `applied`, whose entry carries a key that `holds` says is gone.
    /// Everything up to there has to be purged.
    pub fn last_retired(&self, applied: u64, holds: impl Fn(Generation) -> bool) -> Option<u64> {
        let inner = self.lock();
        let mut applied_entries = inner.entries.range(..=applied).rev();
        applied_entries.find_map(|(index, entry)| {
            let gone = match &entry.payload {
                EntryPayload::Normal(Command::Key(KeyCommand::Stage { held, .. })) => {
                    !holds(held.generation)
                }
                EntryPayload::Normal(Command::Found(record)) => {
                    record.agreed.ring.all().any(|held| !holds(held.generation))
                }
                _ => false,
            };
            gone.then_some(*index)
        })
    }

    /// Ends this node's part in its cluster: nothing is acknowledged or voted for any more, whatever
    /// of Raft still runs. What is read after that is all that it ever acknowledged.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.tell(LogDeed::Closes);
    }

    /// The entries after `applied`, in their order.
    pub fn after(&self, applied: Option<RaftLogId>) -> Vec<Entry<Types>> {
        let from = applied.map_or(0, |id| id.index.saturating_add(1));
        self.lock().entries.range(from..).map(|(_, entry)| entry.clone()).collect()
    }

    /// The voters of each list among the entries that are kept.
    pub fn lists(&self) -> Vec<BTreeSet<ServerId>> {
        let inner = self.lock();
        let lists = inner.entries.values().filter_map(|entry| match &entry.payload {
            EntryPayload::Normal(Command::ChangeMembership(list)) => Some(list.voters()),
            _ => None,
        });
        lists.collect()
    }

    /// Whether entries that follow this one are taken over: it is here, or a snapshot stands for it.
    /// A leader that does not know how far this log goes tries entries that lie beyond its end.
    pub fn goes_on_from(&self, previous: Option<LogId>) -> bool {
        let inner = self.lock();
        let Some(previous) = previous else { return true };
        let is_here = |entry: &Entry<Types>| log_id_of(&entry.log_id) == previous;
        let is_purged = inner.purged.is_some_and(|purged| previous.index <= purged.index);
        is_purged || inner.entries.get(&previous.index).is_some_and(is_here)
    }

    /// How many entries are kept.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether no entry is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The highest vote that this node knows, its own or a leader's.
    pub fn vote(&self) -> Option<Vote<NodeId>> {
        self.lock().vote
    }

    /// How far this server is.
    pub fn ends(&self) -> LogProgress {
        let inner = self.lock();
        let (vote, voted) = (inner.vote, inner.voted);
        LogProgress { vote, voted, last: inner.last_log_id(), committed: inner.committed }
    }

    /// The id of the last entry, kept or purged.
    pub fn last_log_id(&self) -> Option<RaftLogId> {
        self.lock().last_log_id()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tell(&self, deed: LogDeed<'_>) {
        if let Some(watch) = &self.watch {
            watch(deed);
        }
    }

    fn tell_appended(&self, entry: &Entry<Types>) {
        let Some(watch) = &self.watch else { return };
        let payload = match &entry.payload {
            EntryPayload::Blank => Payload::Blank,
            EntryPayload::Membership(membership) => Payload::Voters(membership.get_joint_config()),
            EntryPayload::Normal(command) => Payload::Command(command),
        };
        watch(LogDeed::Appends(log_id_of(&entry.log_id), payload));
    }

    fn last_log_id(&self) -> Option<RaftLogId> {
        self.entries.last_key_value().map(|(_, e)| e.log_id).or(self.purged)
    }
}

/// What openraft is told once this node has left its cluster; it ends then.
/// Why nothing is taken for a cluster any more.
pub(super) fn left() -> StorageError<NodeId> {
    StorageIOError::write_logs(AnyError::error("this node has left its cluster")).into()
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry<Types>>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.lock().entries.range(range).map(|(_, e)| e.clone()).collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>> {
        let inner = self.lock();
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last_log_id() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<()> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(left());
        }
        (inner.vote, inner.voted) = (Some(*vote), Some(Instant::now()));
        inner.tell(LogDeed::Votes(leader_id_of(vote), vote.committed));
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>> {
        Ok(self.lock().vote)
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<()> {
        self.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<()>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        fail_point("append");
        let (persist, end, last) = {
            let mut inner = self.lock();
            if inner.closed {
                return Err(left());
            }
            let mut end = None;
            let mut last = None;
            for entry in entries {
                // A leader's first entry changes nothing that a file would keep; what came before it does.
                if !matches!(entry.payload, EntryPayload::Blank) {
                    end = Some(entry.log_id);
                }
                inner.tell_appended(&entry);
                last = Some(entry.log_id);
                inner.entries.insert(entry.log_id.index, entry);
            }
            (inner.persist.clone(), end, last)
        };
        if let (Some(persist), Some(end)) = (persist, end) {
            persist(log_id_of(&end)).await;
            // It may have reported meanwhile that it never acknowledged this.
            if self.lock().closed {
                return Err(left());
            }
        }
        if let Some(last) = last {
            self.lock().tell(LogDeed::Acknowledges(log_id_of(&last)));
        }
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: RaftLogId) -> Result<()> {
        let mut inner = self.lock();
        inner.entries.split_off(&log_id.index);
        inner.tell(LogDeed::Truncates(log_id.index));
        Ok(())
    }

    async fn purge(&mut self, log_id: RaftLogId) -> Result<()> {
        let mut inner = self.lock();
        inner.purged = inner.purged.max(Some(log_id));
        let kept = inner.entries.split_off(&(log_id.index.saturating_add(1)));
        inner.entries = kept;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::raft_log_id;
    use crate::core::key_ring::RingKey;
    use crate::core::stek::{Stek, STEK_LEN};

    fn entry(index: u64, payload: EntryPayload<Types>) -> Entry<Types> {
        let leader_id = LeaderId { term: 1, node: NodeId::default() };
        Entry { log_id: raft_log_id(LogId { leader_id, index }), payload }
    }

    fn stage(index: u64, generation: u64) -> Entry<Types> {
        let stek = Stek::copy_from(&[generation as u8; STEK_LEN]).unwrap();
        let held = RingKey { generation: Generation(generation), stek };
        let command = KeyCommand::Stage { held, revokes: false };
        entry(index, EntryPayload::Normal(Command::Key(command)))
    }

    fn store() -> LogStore {
        let store = LogStore::default();
        let entries =
            [stage(1, 1), entry(2, EntryPayload::Blank), stage(3, 2), stage(4, 3), stage(5, 4)];
        store.lock().entries.extend(entries.into_iter().map(|e| (e.log_id.index, e)));
        store
    }

    #[test]
    fn the_last_applied_entry_with_a_retired_key_is_found() {
        let store = store();
        assert_eq!(store.last_retired(5, |g| g.0 >= 3), Some(3));
        assert_eq!(store.last_retired(5, |g| g.0 >= 5), Some(5));
        assert_eq!(store.last_retired(4, |_| false), Some(4), "unapplied entries stay");
        assert_eq!(store.last_retired(5, |_| true), None);
    }

    #[test]
    fn a_record_that_a_cluster_was_founded_from_goes_when_one_of_its_keys_does() {
        let mut ring = crate::core::key_ring::KeyRing::default();
        let cluster_id = crate::core::key_ring::ClusterId::from_bytes([9; 16]).unwrap();
        ring.apply(KeyCommand::Found { cluster_id }).unwrap();
        let bytes: Vec<u8> = (0..STEK_LEN as u8).collect();
        let held = RingKey { generation: Generation(1), stek: Stek::copy_from(&bytes).unwrap() };
        ring.apply(KeyCommand::Stage { held, revokes: false }).unwrap();
        let agreed = crate::core::agreed::Agreed::of_ring(ring);
        let record = crate::core::agreed::Record { agreed, ..Default::default() };
        let found = Command::Found(Box::new(record));
        let log = LogStore::of([entry(1, EntryPayload::Normal(found)), stage(2, 2)]);
        assert_eq!(log.last_retired(2, |_| true), None);
        assert_eq!(log.last_retired(2, |g| g.0 > 1), Some(1));
    }

    #[tokio::test]
    async fn a_node_that_has_left_its_cluster_votes_for_nobody() {
        let mut store = store();
        let vote = Vote::new(7, NodeId::default());
        store.close();
        assert!(store.save_vote(&vote).await.is_err());
        assert_eq!((store.vote(), store.len()), (None, 5));
    }

    #[tokio::test]
    async fn purged_and_truncated_entries_are_gone_and_the_last_log_id_stays_known() {
        let mut store = store();
        let last = store.last_log_id().unwrap();
        store.purge(last).await.unwrap();
        assert!(store.is_empty());
        assert_eq!(store.get_log_state().await.unwrap().last_log_id, Some(last));

        let mut store = self::store();
        let third = store.lock().entries[&3].log_id;
        store.truncate(third).await.unwrap();
        assert_eq!(store.len(), 2);
        assert_eq!(store.try_get_log_entries(0..9).await.unwrap().len(), 2);
    }
}
