//! Raft's log and vote, in memory.
//!
//! Raft assumes that what a member acknowledged survives a restart. Here it does not, which is
//! why a server that starts goes through [`crate::core::recovery`] first. Invariants: an entry that
//! is purged or truncated is dropped at once, and with it this store's handle on a key.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    Entry, EntryPayload, LogId, LogState, Membership, OptionalSend, RaftLogReader, StorageError,
    Vote,
};
use tokio::sync::watch;
use tokio::time::Instant;

use super::types::{leader_id_of, log_end_of, Types};
use crate::core::agreed::Command;
use crate::core::key_ring::{ClusterId, Command as KeyCommand, Generation};
use crate::core::recovery::{LeaderId, LogPosition};
use crate::core::server_id::ServerId;
use crate::supervise::fail_point;

type Result<T> = std::result::Result<T, StorageError<ServerId>>;

/// A handle to one server's log; clones share it.
#[derive(Clone, Default)]
pub struct LogStore(Arc<Mutex<Inner>>);

/// How far one server is, at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPositions {
    /// The highest vote.
    pub vote: Option<Vote<ServerId>>,
    /// Since when it has been that, if it was given since this process began.
    pub voted: Option<Instant>,
    /// The last entry, kept or purged.
    pub last: Option<LogId<ServerId>>,
    /// Up to where this server knows of agreement.
    pub committed: Option<LogId<ServerId>>,
}

impl LogPositions {
    /// Whether this server takes the one that stood in `leader_id` for the leader, be it itself.
    pub fn follows(&self, leader_id: LeaderId) -> bool {
        self.vote.is_some_and(|vote| vote.committed && leader_id_of(&vote) == leader_id)
    }
}

#[derive(Default)]
struct Inner {
    vote: Option<Vote<ServerId>>,
    voted: Option<Instant>,
    committed: Option<LogId<ServerId>>,
    purged: Option<LogId<ServerId>>,
    entries: BTreeMap<u64, Entry<Types>>,
    /// Whether a leader contradicts what this server took for agreed.
    log_diverged: watch::Sender<bool>,
}

impl LogStore {
    /// An empty log that remembers `vote`, so that this server cannot vote below it.
    pub fn with_vote(vote: Option<Vote<ServerId>>) -> LogStore {
        LogStore(Arc::new(Mutex::new(Inner { vote, ..Inner::default() })))
    }

    /// The log of a server that begins a cluster incarnation, and the vote that it may have given before it
    /// forgot: its one entry says who the members are, and is the same at every server that begins
    /// with the same list.
    ///
    /// openraft's `initialize` writes that entry too, but also has each server campaign at
    /// once, which asks everybody for a vote: a storm of handshakes where the list is long.
    pub fn founding(members: BTreeSet<ServerId>, vote: Option<Vote<ServerId>>) -> LogStore {
        let membership = Membership::new(vec![members], None);
        let payload = EntryPayload::Membership(membership);
        let entry = Entry { log_id: LogId::default(), payload };
        let entries = BTreeMap::from([(entry.log_id.index, entry)]);
        LogStore(Arc::new(Mutex::new(Inner { entries, vote, ..Inner::default() })))
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
            let EntryPayload::Normal(Command::Key(command)) = &entry.payload else { return None };
            let gone = match command {
                KeyCommand::Stage { held, .. } => !holds(held.generation),
                KeyCommand::Found { from: Some(record), .. } => {
                    record.ring.all().any(|held| !holds(held.generation))
                }
                _ => false,
            };
            gone.then_some(*index)
        })
    }

    /// The cluster incarnation that this log begins with, if its first entry is still there.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.lock().entries.values().find_map(|entry| match &entry.payload {
            EntryPayload::Normal(Command::Key(KeyCommand::Found { cluster_id, .. })) => {
                Some(*cluster_id)
            }
            _ => None,
        })
    }

    /// The servers of each list among the entries that are kept.
    pub fn lists(&self) -> Vec<BTreeSet<ServerId>> {
        let inner = self.lock();
        let lists = inner.entries.values().filter_map(|entry| match &entry.payload {
            EntryPayload::Normal(Command::ChangeMembership(list)) => Some(list.ids()),
            _ => None,
        });
        lists.collect()
    }

    /// Whether entries that follow this one are taken over: it is here, or a snapshot stands for it.
    /// A leader that does not know how far this log goes tries entries that lie beyond its end.
    pub fn goes_on_from(&self, previous: Option<LogPosition>) -> bool {
        let inner = self.lock();
        let Some(previous) = previous else { return true };
        let is_here = |entry: &Entry<Types>| log_end_of(&entry.log_id) == previous;
        let is_purged = inner.purged.is_some_and(|purged| previous.index <= purged.index);
        is_purged || inner.entries.get(&previous.index).is_some_and(is_here)
    }

    /// Whether a leader whose log has these entries lacks something that this server took for agreed.
    ///
    /// In Raft no leader does, as long as a majority remembers. Where fewer did, the group may have
    /// gone on without what only this server and others knew that forgot it. openraft does not expect
    /// that: it takes whatever lies below its own commit for the same as the leader's.
    pub fn contradicts(&self, entries: impl IntoIterator<Item = LogPosition>) -> bool {
        let inner = self.lock();
        let Some(agreed) = inner.committed.max(inner.purged) else { return false };
        let id_at = |index: u64| match inner.purged.filter(|purged| purged.index == index) {
            Some(purged) => Some(purged),
            None => inner.entries.get(&index).map(|entry| entry.log_id),
        };
        let differs = |end: &LogPosition| {
            let other = id_at(end.index).is_some_and(|id| log_end_of(&id) != *end);
            // A later term never comes before an earlier one.
            let overtaken = end.leader_id > log_end_of(&agreed).leader_id;
            end.index <= agreed.index && (other || overtaken)
        };
        entries.into_iter().any(|end| differs(&end))
    }

    /// Notes that a leader lacks what this server took for agreed.
    pub fn diverge(&self) {
        self.lock().log_diverged.send_replace(true);
    }

    /// Returns once that was noted.
    pub async fn log_diverged(&self) {
        let mut log_diverged = self.lock().log_diverged.subscribe();
        // The sender lives as long as this store.
        let _ = log_diverged.wait_for(|log_diverged| *log_diverged).await;
    }

    /// How many entries are kept.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether no entry is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The highest term that this server remembers.
    pub fn vote(&self) -> Option<Vote<ServerId>> {
        self.lock().vote
    }

    /// How far this server is.
    pub fn ends(&self) -> LogPositions {
        let inner = self.lock();
        let (vote, voted) = (inner.vote, inner.voted);
        LogPositions { vote, voted, last: inner.last_log_id(), committed: inner.committed }
    }

    /// The id of the last entry, kept or purged.
    pub fn last_log_id(&self) -> Option<LogId<ServerId>> {
        self.lock().last_log_id()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn last_log_id(&self) -> Option<LogId<ServerId>> {
        self.entries.last_key_value().map(|(_, e)| e.log_id).or(self.purged)
    }
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

    async fn save_vote(&mut self, vote: &Vote<ServerId>) -> Result<()> {
        let mut inner = self.lock();
        (inner.vote, inner.voted) = (Some(*vote), Some(Instant::now()));
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<ServerId>>> {
        Ok(self.lock().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId<ServerId>>) -> Result<()> {
        self.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<ServerId>>> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<()>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        fail_point("append");
        self.lock().entries.extend(entries.into_iter().map(|e| (e.log_id.index, e)));
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<ServerId>) -> Result<()> {
        self.lock().entries.split_off(&log_id.index);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId<ServerId>) -> Result<()> {
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
    use crate::consensus::log_id_of;
    use crate::core::key_ring::Held;
    use crate::core::stek::{Stek, STEK_LEN};

    fn entry(index: u64, payload: EntryPayload<Types>) -> Entry<Types> {
        let leader_id = LeaderId { term: 1, node: ServerId(1) };
        Entry { log_id: log_id_of(LogPosition { leader_id, index }), payload }
    }

    fn stage(index: u64, generation: u64) -> Entry<Types> {
        let stek = Stek::copy_from(&[generation as u8; STEK_LEN]).unwrap();
        let held = Held { generation: Generation(generation), stek };
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
    fn a_record_that_a_cluster_id_began_with_goes_when_one_of_its_keys_does() {
        let mut ring = crate::core::key_ring::KeyRing::default();
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        ring.apply(KeyCommand::Found { cluster_id, epoch: 1, from: None }).unwrap();
        let bytes: Vec<u8> = (0..STEK_LEN as u8).collect();
        let held = Held { generation: Generation(1), stek: Stek::copy_from(&bytes).unwrap() };
        ring.apply(KeyCommand::Stage { held, revokes: false }).unwrap();
        let record = crate::core::record::Record { ring, end: LogPosition::default(), age_ms: 0 };
        let from = Some(Box::new(record));
        let found = Command::Key(KeyCommand::Found { cluster_id, epoch: 2, from });
        let log = LogStore::of([entry(1, EntryPayload::Normal(found)), stage(2, 2)]);
        assert_eq!(log.last_retired(2, |_| true), None);
        assert_eq!(log.last_retired(2, |g| g.0 > 1), Some(1));
        assert_eq!(log.cluster_id(), Some(cluster_id));
    }

    #[tokio::test]
    async fn purged_and_truncated_entries_are_gone_and_the_log_end_stays_known() {
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

    #[tokio::test]
    async fn a_leader_without_what_was_agreed_is_told_from_one_that_has_it() {
        let mut store = store();
        let end =
            |term, index| LogPosition { leader_id: LeaderId { term, node: ServerId(1) }, index };
        assert!(!store.contradicts([end(2, 3)]), "nothing is agreed yet");
        let third = store.lock().entries[&3].log_id;
        store.save_committed(Some(third)).await.unwrap();
        assert!(!store.contradicts([end(1, 2), end(1, 3), end(2, 4), end(2, 5), end(2, 6)]));
        assert!(store.contradicts([end(1, 2), end(2, 3)]), "another entry in an agreed place");
        assert!(!store.contradicts([end(0, 0)]), "not known here any more");
        store.purge(third).await.unwrap();
        assert!(!store.contradicts([end(1, 2), end(1, 3), end(2, 4)]));
        assert!(store.contradicts([end(2, 2)]), "its log would end before what was agreed");
        assert!(store.contradicts([end(2, 3)]));
    }
}
