//! The types that openraft works with here, and its ids as ours.

use openraft::impls::{EmptyNode, OneshotResponder};
use openraft::{CommittedLeaderId, Vote};

use super::clock::PatientTokio;
use crate::core::agreed::{Agreed, Change, Command, Refusal};
use crate::core::log_id::{LeaderId, LogId};
use crate::core::moment::Moment;
use crate::core::node_id::NodeId;

openraft::declare_raft_types!(
    /// The types that openraft works with here. Addresses stay out of it: who is where is the
    /// transport's knowledge, so that a changed address is a mere reconnect.
    pub Types:
        D = Command,
        R = Answer,
        NodeId = NodeId,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = AgreedSnapshot,
        Responder = OneshotResponder<Types>,
        AsyncRuntime = PatientTokio,
);

/// One server's Raft.
pub type Raft = openraft::Raft<Types>;

/// What applying a log entry came to; `None` for entries that carry no command.
pub type Answer = Option<Result<Change, Refusal>>;

/// The state machine's content at one point of the log.
#[derive(Clone, Debug, Default)]
pub struct AgreedSnapshot {
    /// The agreed keys and server list.
    pub agreed: Agreed,
    /// When the current one became current, on this process's clock.
    pub current_since: Moment,
    /// When the staged one was staged, on this process's clock.
    pub staged_since: Moment,
}

/// openraft's log id, as its traits have it.
pub type RaftLogId = openraft::LogId<NodeId>;

/// openraft's vote as a leader id of ours; whether it is committed is lost.
pub fn leader_id_of(vote: &Vote<NodeId>) -> LeaderId {
    LeaderId { term: vote.leader_id.term, node: vote.leader_id.node_id }
}

/// The vote of a candidate: not committed.
pub fn vote_of(leader_id: LeaderId) -> Vote<NodeId> {
    Vote::new(leader_id.term, leader_id.node)
}

/// openraft's log id as one of ours.
pub fn log_id_of(id: &RaftLogId) -> LogId {
    let leader_id = LeaderId { term: id.leader_id.term, node: id.leader_id.node_id };
    LogId { leader_id, index: id.index }
}

/// A log id as openraft's.
pub fn raft_log_id(end: LogId) -> RaftLogId {
    RaftLogId::new(CommittedLeaderId::new(end.leader_id.term, end.leader_id.node), end.index)
}
