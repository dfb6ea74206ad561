//! The place of an entry in the log: the term and the leader that it is of, and its index.
//!
//! Invariants: both are ordered as Raft compares them, so that the greater one is the later one.

use serde::{Deserialize, Serialize};

use super::node_id::NodeId;

/// A term and the server that campaigned in it, as openraft has it: names a vote, and the leader if it
/// is elected. Ordered by term first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LeaderId {
    /// The term.
    pub term: u64,
    /// The candidate of that term.
    pub node: NodeId,
}

/// Names an entry of the log, as openraft has it: the term under which it was made, and its index.
/// Ordered as Raft compares logs (section 5.4.1 of the Raft paper).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LogId {
    /// The term of the leader that made the entry.
    pub leader_id: LeaderId,
    /// The entry's index.
    pub index: u64,
}
