//! Raft's own messages: RequestVote, AppendEntries and InstallSnapshot, in shapes of ours.
//!
//! How they become openraft's types and back is for [`crate::consensus`]. Invariants: what passes
//! `check` is something that a leader or a candidate could have sent.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::malformed::{refuse_if, Malformed};
use crate::core::agreed::{Agreed, Command};
use crate::core::agreement::epoch::Epoch;
use crate::core::config::MAX_MEMBERS;
use crate::core::key_ring::Generation;
use crate::core::log_id::{LeaderId, LogId};
use crate::core::node_id::NodeId;

/// Most entries that a message may carry; more than any honest server sends.
pub(super) const MAX_ENTRIES: usize = 256;

/// The longest name of a snapshot; those of ours are numbers.
pub(super) const MAX_SNAPSHOT_ID: usize = 32;

/// Most voter sets in a membership.
const MAX_CONFIGS: usize = 2;
/// The outcome of an append request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppendAnswer {
    /// All entries are in the log.
    Success,
    /// Those up to here are.
    Partial(Option<LogId>),
    /// The entry before them is not there.
    Conflict,
    /// Another leader's term is higher; and whether it is committed.
    HigherVote(LeaderId, bool),
}

/// Which node a message of Raft's is for, and in which cluster: it counts for no other life of that
/// server, and for nothing that was founded before or since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// The node.
    pub node: NodeId,
    /// The cluster.
    pub cluster: Epoch,
}

/// Raft's RequestVote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireVote {
    /// Who is asked.
    pub to: Recipient,
    /// The candidate and its term.
    pub candidate: LeaderId,
    /// The end of the candidate's log.
    pub last_log_id: Option<LogId>,
}

/// Raft's AppendEntries.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireAppend {
    /// Whom it is for.
    pub to: Recipient,
    /// The leader's term, and whether it is committed.
    pub vote: (LeaderId, bool),
    /// The entry right before `entries`.
    pub previous: Option<LogId>,
    /// What to append.
    pub entries: Vec<WireEntry>,
    /// Up to where the leader knows of agreement.
    pub commit: Option<LogId>,
    /// The leader's current key and its age in milliseconds, so that a server that returns does not
    /// take an old key for a fresh one.
    pub age: Option<(Generation, u64)>,
    /// Whether a majority acknowledged the leader lately.
    pub quorum: bool,
}
/// One entry of the log.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireEntry {
    /// Its id.
    pub id: LogId,
    /// Its content.
    pub payload: WirePayload,
}

/// What an entry holds.
#[derive(Debug, Serialize, Deserialize)]
pub enum WirePayload {
    /// Nothing: a leader's first entry.
    Blank,
    /// A change of the agreed state.
    Command(Command),
    /// Who belongs to the group.
    Membership(WireMembership),
}

/// Who belongs to the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireMembership {
    /// The voters; two sets during a change.
    pub configs: Vec<BTreeSet<NodeId>>,
    /// All members.
    pub members: BTreeSet<NodeId>,
}

/// Raft's InstallSnapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireSnapshot {
    /// Whom it is for.
    pub to: Recipient,
    /// The leader's term, and whether it is committed.
    pub vote: (LeaderId, bool),
    /// The last entry that it covers.
    pub last: Option<LogId>,
    /// The entry that set the membership.
    pub membership_at: Option<LogId>,
    /// The membership.
    pub membership: WireMembership,
    /// Tells snapshots of one server apart.
    pub id: String,
    /// The agreed keys and server list.
    pub agreed: Agreed,
    /// How old the current key is, in milliseconds.
    pub current_age_ms: u64,
    /// How long the staged key has been staged, in milliseconds.
    pub staged_age_ms: u64,
}
impl WireVote {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        self.candidate.check()?;
        self.last_log_id.map_or(Ok(()), |end| end.check())
    }
}

impl WireAppend {
    /// Whether it is one that a leader could send.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Malformed> {
        refuse_if(self.entries.len() > MAX_ENTRIES, Malformed::TooMany("entries"))?;
        let ends = self.entries.iter().map(|entry| entry.id);
        for end in ends.chain(self.previous).chain(self.commit) {
            end.check()?;
        }
        self.vote.0.check()?;
        // A leader's log holds entries of its own term and of earlier ones, in their order.
        if self.commit.is_some_and(|commit| commit.leader_id > self.vote.0) {
            return Err(Malformed::Order);
        }
        let mut leader_id = self.previous.map_or(LeaderId::default(), |p| p.leader_id);
        let first = self.previous.map_or(0, |p| p.index + 1);
        for (index, entry) in (first..).zip(&self.entries) {
            refuse_if(entry.id.index != index || entry.id.leader_id < leader_id, Malformed::Order)?;
            leader_id = entry.id.leader_id;
            entry.check()?;
        }
        refuse_if(leader_id > self.vote.0, Malformed::Order)
    }
}

impl WireEntry {
    /// Whether its content is within bounds: it may have to be sent on, whether it is applied or
    /// refused.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Malformed> {
        match &self.payload {
            WirePayload::Membership(membership) => membership.check(),
            WirePayload::Command(Command::ChangeMembership(list)) => {
                list.check().map_err(|bad| Malformed::State(bad.into()))
            }
            WirePayload::Command(Command::Found(record)) => {
                record.check().map_err(Malformed::State)
            }
            WirePayload::Blank | WirePayload::Command(_) => Ok(()),
        }
    }
}

impl WireMembership {
    /// Whether it is within what any group has.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Malformed> {
        refuse_if(self.configs.len() > MAX_CONFIGS, Malformed::TooMany("configurations"))?;
        // An earlier life of a server may still be there beside the later one.
        if self.members.len() > 2 * MAX_MEMBERS
            || self.configs.iter().any(|voters| voters.len() > MAX_MEMBERS)
        {
            return Err(Malformed::TooMany("members"));
        }
        if self.configs.is_empty() || self.configs.iter().any(BTreeSet::is_empty) {
            return Err(Malformed::NoVoters);
        }
        Ok(())
    }
}

impl WireSnapshot {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        self.membership.check()?;
        self.vote.0.check()?;
        for end in self.last.iter().chain(&self.membership_at) {
            end.check()?;
        }
        refuse_if(self.id.len() > MAX_SNAPSHOT_ID, Malformed::TooMany("letters in its name"))?;
        let last = self.last.ok_or(Malformed::Order)?;
        if last.leader_id > self.vote.0 || self.membership_at > self.last {
            return Err(Malformed::Order);
        }
        self.agreed.check().map_err(Malformed::State)
    }
}
