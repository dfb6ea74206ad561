//! Everything that one box's Raft remembers, as bytes, for those who want it to outlive the
//! process: vote, log, and the state machine at one instant.
//!
//! Where the bytes go, and how they are sealed, is for [`crate::node`]. What must hold: all parts
//! are of the same instant, because a log that was purged beyond the state beside it cannot be
//! started from; the clock readings of a process that ended mean nothing, so ages are saved.

use std::time::Duration;

use openraft::{Snapshot, SnapshotMeta, StoredMembership};
use serde::{Deserialize, Serialize};

use super::log_store::{LogStore, Remembered};
use super::state_machine::{AgreedSnapshot, StateMachine};
use super::wire::{millis, raft_vote, Malformed, WireEntry, WireMembership};
use super::{ballot_of, log_end_of, log_id_of, Types};
use crate::core::agreed::Agreed;
use crate::core::moment::Moment;
use crate::core::rejoin::{Ballot, LogEnd};

/// All that one box's Raft remembers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    vote: Option<(Ballot, bool)>,
    committed: Option<LogEnd>,
    purged: Option<LogEnd>,
    entries: Vec<WireEntry>,
    applied: Option<LogEnd>,
    membership_at: Option<LogEnd>,
    membership: WireMembership,
    /// The agreed keys and server list.
    pub agreed: Agreed,
    /// How old the current key was.
    pub current_age_ms: u64,
    staged_age_ms: u64,
}

impl Saved {
    /// What both stores hold at this instant; `None` before there is anything agreed.
    pub fn take(log: &LogStore, machine: &StateMachine, now: Moment) -> Option<Saved> {
        // The state machine stays locked while the log is read, so that both are of one instant.
        machine.with_snapshot(|snapshot| {
            let state = &snapshot.snapshot;
            state.agreed.ring.history()?;
            let Remembered { vote, committed, purged, entries } = log.remembered();
            Some(Saved {
                vote: vote.as_ref().map(|vote| (ballot_of(vote), vote.committed)),
                committed: committed.as_ref().map(log_end_of),
                purged: purged.as_ref().map(log_end_of),
                entries: entries.into_iter().map(WireEntry::from_raft).collect(),
                applied: snapshot.meta.last_log_id.as_ref().map(log_end_of),
                membership_at: snapshot.meta.last_membership.log_id().as_ref().map(log_end_of),
                membership: WireMembership::from_raft(snapshot.meta.last_membership.membership()),
                agreed: state.agreed.clone(),
                current_age_ms: millis(now.since(state.current_since)),
                staged_age_ms: millis(now.since(state.staged_since)),
            })
        })
    }

    /// Whether this is something that a box could have remembered.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Malformed> {
        self.agreed.check().map_err(Malformed::State)?;
        self.membership.check()?;
        let entries = self.entries.iter().map(|entry| entry.id);
        let ends = [self.committed, self.purged, self.applied, self.membership_at];
        for end in entries.chain(ends.into_iter().flatten()) {
            end.check()?;
        }
        self.vote.map_or(Ok(()), |(ballot, _)| ballot.check())?;
        let mut next = self.purged.map_or(0, |end| end.index.saturating_add(1));
        for entry in &self.entries {
            if entry.id.index != next {
                return Err(Malformed::Order);
            }
            entry.check()?;
            next = next.saturating_add(1);
        }
        let applied = self.applied.map_or(0, |end| end.index.saturating_add(1));
        let purged = self.purged.map_or(0, |end| end.index.saturating_add(1));
        match purged <= applied && applied <= next {
            true => Ok(()),
            false => Err(Malformed::Order),
        }
    }

    /// Fills an empty log and state machine, for a box that was away for `away` until `now`.
    pub fn restore(self, log: &LogStore, machine: &StateMachine, away: Duration, now: Moment) {
        log.remember(Remembered {
            vote: self.vote.map(raft_vote),
            committed: self.committed.map(log_id_of),
            purged: self.purged.map(log_id_of),
            entries: self.entries.into_iter().map(WireEntry::into_raft).collect(),
        });
        let since = |age_ms| now.ago(Duration::from_millis(age_ms).saturating_add(away));
        let state = AgreedSnapshot {
            agreed: self.agreed,
            current_since: since(self.current_age_ms),
            staged_since: since(self.staged_age_ms),
        };
        let meta = SnapshotMeta {
            last_log_id: self.applied.map(log_id_of),
            last_membership: StoredMembership::new(
                self.membership_at.map(log_id_of),
                self.membership.into_raft(),
            ),
            snapshot_id: "saved".to_owned(),
        };
        machine.begin_with(Snapshot::<Types> { meta, snapshot: Box::new(state) });
    }
}
