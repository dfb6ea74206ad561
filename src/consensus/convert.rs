//! Messages of ours as openraft's types and back.
//!
//! Whether a message is sound was checked where it was decoded. Invariants: what goes through
//! openraft's types and back is the same as before.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::impls::EmptyNode;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::{Entry, EntryPayload, Membership, Snapshot, SnapshotMeta, StoredMembership, Vote};

use super::types::{leader_id_of, log_id_of, raft_log_id, vote_of, AgreedSnapshot, Types};
use crate::core::key_ring::Generation;
use crate::core::log_id::LeaderId;
use crate::core::moment::{millis, Moment};
use crate::core::node_id::NodeId;
use crate::rpc::{
    AppendAnswer, Recipient, Response, WireAppend, WireEntry, WireMembership, WirePayload,
    WireSnapshot, WireVote,
};

impl WireVote {
    /// The message for a vote request of openraft's.
    pub fn from_raft(to: Recipient, rpc: &VoteRequest<NodeId>) -> WireVote {
        let last_log_id = rpc.last_log_id.as_ref().map(log_id_of);
        WireVote { to, candidate: leader_id_of(&rpc.vote), last_log_id }
    }

    /// openraft's request for this message.
    pub fn into_raft(self) -> VoteRequest<NodeId> {
        VoteRequest::new(vote_of(self.candidate), self.last_log_id.map(raft_log_id))
    }
}

impl WireAppend {
    /// The message for an append request of openraft's.
    pub fn from_raft(
        to: Recipient,
        rpc: AppendEntriesRequest<Types>,
        age: Option<(Generation, u64)>,
        quorum: bool,
    ) -> WireAppend {
        WireAppend {
            to,
            vote: (leader_id_of(&rpc.vote), rpc.vote.committed),
            previous: rpc.prev_log_id.as_ref().map(log_id_of),
            entries: rpc.entries.into_iter().map(WireEntry::from_raft).collect(),
            commit: rpc.leader_commit.as_ref().map(log_id_of),
            age,
            quorum,
        }
    }

    /// openraft's request for this message.
    pub fn into_raft(self) -> AppendEntriesRequest<Types> {
        AppendEntriesRequest {
            vote: raft_vote(self.vote),
            prev_log_id: self.previous.map(raft_log_id),
            entries: self.entries.into_iter().map(WireEntry::into_raft).collect(),
            leader_commit: self.commit.map(raft_log_id),
        }
    }
}

impl AppendAnswer {
    /// The message for openraft's answer.
    pub fn from_raft(answer: &AppendEntriesResponse<NodeId>) -> AppendAnswer {
        match answer {
            AppendEntriesResponse::Success => AppendAnswer::Success,
            AppendEntriesResponse::PartialSuccess(id) => {
                AppendAnswer::Partial(id.as_ref().map(log_id_of))
            }
            AppendEntriesResponse::Conflict => AppendAnswer::Conflict,
            AppendEntriesResponse::HigherVote(vote) => {
                AppendAnswer::HigherVote(leader_id_of(vote), vote.committed)
            }
        }
    }

    /// openraft's answer for this message.
    pub fn into_raft(self) -> AppendEntriesResponse<NodeId> {
        match self {
            AppendAnswer::Success => AppendEntriesResponse::Success,
            AppendAnswer::Partial(end) => {
                AppendEntriesResponse::PartialSuccess(end.map(raft_log_id))
            }
            AppendAnswer::Conflict => AppendEntriesResponse::Conflict,
            AppendAnswer::HigherVote(leader_id, committed) => {
                AppendEntriesResponse::HigherVote(raft_vote((leader_id, committed)))
            }
        }
    }
}

impl WireEntry {
    /// The message for an entry of openraft's.
    pub fn from_raft(entry: Entry<Types>) -> WireEntry {
        let payload = match entry.payload {
            EntryPayload::Blank => WirePayload::Blank,
            EntryPayload::Normal(command) => WirePayload::Command(command),
            EntryPayload::Membership(m) => WirePayload::Membership(WireMembership::from_raft(&m)),
        };
        WireEntry { id: log_id_of(&entry.log_id), payload }
    }

    /// openraft's entry for this message.
    pub fn into_raft(self) -> Entry<Types> {
        let payload = match self.payload {
            WirePayload::Blank => EntryPayload::Blank,
            WirePayload::Command(command) => EntryPayload::Normal(command),
            WirePayload::Membership(m) => EntryPayload::Membership(m.into_raft()),
        };
        Entry { log_id: raft_log_id(self.id), payload }
    }
}

impl WireMembership {
    /// The message for a membership of openraft's.
    pub fn from_raft(membership: &Membership<NodeId, EmptyNode>) -> WireMembership {
        WireMembership {
            configs: membership.get_joint_config().clone(),
            members: membership.nodes().map(|(id, _)| *id).collect(),
        }
    }

    /// openraft's membership for this message.
    pub fn into_raft(self) -> Membership<NodeId, EmptyNode> {
        let nodes: BTreeMap<NodeId, EmptyNode> =
            self.members.into_iter().map(|id| (id, EmptyNode {})).collect();
        Membership::new(self.configs, nodes)
    }
}

impl WireSnapshot {
    /// The message for a snapshot of openraft's; ages are as of `now`.
    pub fn from_raft(
        to: Recipient,
        vote: Vote<NodeId>,
        snapshot: Snapshot<Types>,
        now: Moment,
    ) -> WireSnapshot {
        let meta = snapshot.meta;
        let state = *snapshot.snapshot;
        WireSnapshot {
            to,
            vote: (leader_id_of(&vote), vote.committed),
            last: meta.last_log_id.as_ref().map(log_id_of),
            membership_at: meta.last_membership.log_id().as_ref().map(log_id_of),
            membership: WireMembership::from_raft(meta.last_membership.membership()),
            id: meta.snapshot_id,
            current_age_ms: millis(now.since(state.current_since)),
            staged_age_ms: millis(now.since(state.staged_since)),
            agreed: state.agreed,
        }
    }

    /// The leader's vote and openraft's snapshot for this message that arrived at `now`.
    pub fn into_raft(self, now: Moment) -> (Vote<NodeId>, Snapshot<Types>) {
        let meta = SnapshotMeta {
            last_log_id: self.last.map(raft_log_id),
            last_membership: StoredMembership::new(
                self.membership_at.map(raft_log_id),
                self.membership.into_raft(),
            ),
            snapshot_id: self.id,
        };
        let snapshot = Box::new(AgreedSnapshot {
            agreed: self.agreed,
            current_since: now.ago(Duration::from_millis(self.current_age_ms)),
            staged_since: now.ago(Duration::from_millis(self.staged_age_ms)),
        });
        (raft_vote(self.vote), Snapshot { meta, snapshot })
    }
}

/// The message for openraft's answer to a vote request.
pub fn vote_answer(answer: &VoteResponse<NodeId>) -> Response {
    Response::Vote {
        vote: (leader_id_of(&answer.vote), answer.vote.committed),
        granted: answer.vote_granted,
        last_log_id: answer.last_log_id.as_ref().map(log_id_of),
    }
}

/// openraft's vote for one on the wire.
pub fn raft_vote((leader_id, committed): (LeaderId, bool)) -> Vote<NodeId> {
    if committed {
        Vote::new_committed(leader_id.term, leader_id.node)
    } else {
        Vote::new(leader_id.term, leader_id.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::tests::{append, ring, snapshot};
    use crate::rpc::{decode_request, encode, Request};

    #[test]
    fn an_append_survives_the_way_through_bytes_and_openraft() {
        let bytes = encode(&Request::Append(append(&[8, 9]))).unwrap();
        let Ok(Request::Append(back)) = decode_request(&bytes) else { panic!("not an append") };
        let to = back.to;
        assert_eq!(back.age, Some((Generation(5), 1234)));
        let again = WireAppend::from_raft(to, back.into_raft(), Some((Generation(5), 1234)), true);
        assert_eq!(*encode(&Request::Append(again)).unwrap(), *bytes);
    }

    #[test]
    fn a_snapshot_carries_ages_not_clock_readings() {
        let bytes = encode(&Request::Snapshot(snapshot(ring()))).unwrap();
        let Ok(Request::Snapshot(back)) = decode_request(&bytes) else { panic!("no snapshot") };
        let to = back.to;
        let arrived = Moment::from_start(Duration::from_secs(100));
        let (vote, snapshot) = back.into_raft(arrived);
        assert!(vote.committed);
        assert_eq!(arrived.since(snapshot.snapshot.current_since), Duration::from_secs(7));
        let sent = WireSnapshot::from_raft(to, vote, snapshot, arrived + Duration::from_secs(2));
        assert_eq!(sent.current_age_ms, 9000);
    }
}
