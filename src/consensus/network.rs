//! openraft's way to the other servers: turns its requests into messages of ours and back.
//!
//! How a message gets there is the [`RpcClient`]'s business. Invariants: openraft never sees an
//! answer that it would panic on.

use std::future::Future;
use std::iter::{once, repeat};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::impls::EmptyNode;
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot, Vote};
use thiserror::Error;

use super::convert::raft_vote;
use super::types::{leader_id_of, raft_log_id, Types};
use crate::core::agreement::epoch::Epoch;
use crate::core::key_ring::Generation;
use crate::core::moment::Moment;
use crate::core::node_id::NodeId;
use crate::core::server_id::ServerId;
use crate::rpc::{
    AppendAnswer, ErrorResponse, Recipient, Request, Response, WireAppend, WireSnapshot, WireVote,
};
use crate::supervise::{catch_panic, fail_point};

/// Pauses between attempts to reach a peer that is not there: short at first, since a restarted
/// server is back soon, then steady.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const SECOND_BACKOFF: Duration = Duration::from_millis(100);
const STEADY_BACKOFF: Duration = Duration::from_millis(200);

/// openraft drops a request when its time is over; the RPC client has to notice a little earlier, so
/// that it can tell a dead connection from a caller who lost interest.
const MARGIN: Duration = Duration::from_millis(5);

fn shortened(limit: Duration) -> Duration {
    limit.saturating_sub(MARGIN).max(limit / 2)
}

/// Why a message got no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallFailure {
    /// There is no connection to that server.
    #[error("no connection")]
    Unreachable,
    /// There is none, and that server's system says that nobody listens there.
    #[error("nobody listens")]
    NobodyListens,
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The answer made no sense.
    #[error("an invalid answer")]
    InvalidResponse,
    /// It does not have this server in its list.
    #[error("this server is not in its server list")]
    NotListed,
}

/// Carries messages to other servers and answers back.
pub trait RpcClient: Clone + Send + Sync + 'static {
    /// Sends `request` to `to` and waits for the answer, `limit` at most.
    fn call(
        &self,
        to: ServerId,
        request: Request,
        limit: Duration,
    ) -> impl Future<Output = Result<Response, CallFailure>> + Send;
}

/// What the server knows that openraft does not: its clock, the age of its key, who answered.
pub trait LeaderInfo: Send + Sync + 'static {
    /// The current key's generation and age in milliseconds.
    fn current_age(&self) -> Option<(Generation, u64)>;
    /// Whether a majority acknowledged this leader lately.
    fn has_quorum(&self) -> bool;
    /// The present moment.
    fn now(&self) -> Moment;
    /// Hears that a node has acknowledged this leader.
    fn acknowledged(&self, by: NodeId);
}

/// Makes one [`PeerLink`] per peer; openraft asks several times for the same peer, and all share
/// the RPC client's connection.
#[derive(Clone)]
pub struct Links<C> {
    rpc_client: C,
    leader_info: Arc<dyn LeaderInfo>,
    cluster: ClusterCell,
    limit: Duration,
}

/// The cluster that one run of Raft is of, once it has joined one: all that it sends names that.
pub type ClusterCell = Arc<OnceLock<Epoch>>;

impl<C: RpcClient> Links<C> {
    /// Links over `rpc_client` within `cluster`, on which an append or a request for a vote may take at
    /// most `limit`: openraft's own limits mean something else here.
    pub fn new(
        rpc_client: C,
        leader_info: Arc<dyn LeaderInfo>,
        cluster: ClusterCell,
        limit: Duration,
    ) -> Links<C> {
        Links { rpc_client, leader_info, cluster, limit }
    }
}

impl<C: RpcClient> RaftNetworkFactory<Types> for Links<C> {
    type Network = PeerLink<C>;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> PeerLink<C> {
        PeerLink { target, links: self.clone() }
    }
}

/// openraft's link to one peer.
pub struct PeerLink<C> {
    target: NodeId,
    links: Links<C>,
}

type RpcError = RPCError<NodeId, EmptyNode, RaftError<NodeId>>;

impl From<CallFailure> for RpcError {
    fn from(failure: CallFailure) -> RpcError {
        match failure {
            CallFailure::Unreachable | CallFailure::NobodyListens | CallFailure::NotListed => {
                RPCError::Unreachable(Unreachable::new(&failure))
            }
            CallFailure::TimedOut | CallFailure::InvalidResponse => {
                RPCError::Network(NetworkError::new(&failure))
            }
        }
    }
}

fn error_response(reason: ErrorResponse) -> RpcError {
    // As unreachable, so that openraft waits a moment before it tries again.
    RPCError::Unreachable(Unreachable::new(&reason))
}

impl<C: RpcClient> PeerLink<C> {
    /// Sends to the server of this link's node, unless nobody is that node.
    async fn call(&self, request: Request, limit: Duration) -> Result<Response, CallFailure> {
        if self.target.incarnation.is_nobody() {
            return Err(CallFailure::Unreachable);
        }
        self.links.rpc_client.call(self.target.server, request, limit).await
    }

    fn to(&self) -> Recipient {
        let cluster = self.links.cluster.get().copied().unwrap_or_default();
        Recipient { node: self.target, cluster }
    }

    async fn append(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RpcError> {
        let begins_the_log = rpc.prev_log_id.is_none();
        let sent = leader_id_of(&rpc.vote);
        let held: Vec<_> =
            rpc.prev_log_id.into_iter().chain(rpc.entries.iter().map(|e| e.log_id)).collect();
        fail_point("replicate");
        let (age, quorum) =
            (self.links.leader_info.current_age(), self.links.leader_info.has_quorum());
        let append = WireAppend::from_raft(self.to(), rpc, age, quorum);
        // openraft reads the log without a lock. Where the next leader's entries take the place
        // of this one's meanwhile, what it read makes no sense, and whoever got it would take
        // this server for a broken one.
        if let Err(mixed) = append.check() {
            return Err(RPCError::Unreachable(Unreachable::new(&mixed)));
        }
        let limit = shortened(option.hard_ttl()).min(self.links.limit);
        match self.call(Request::Append(append), limit).await? {
            // There is no entry before the first that could conflict; openraft takes this for
            // impossible and panics.
            Response::Append(AppendAnswer::Conflict) if begins_the_log => {
                Err(CallFailure::InvalidResponse.into())
            }
            // It can hold nothing but what it was sent; openraft would go on behind the log's end.
            Response::Append(AppendAnswer::Partial(Some(end)))
                if !held.contains(&raft_log_id(end)) =>
            {
                Err(CallFailure::InvalidResponse.into())
            }
            // What is not higher refuses nothing.
            Response::Append(AppendAnswer::HigherVote(leader_id, _)) if leader_id <= sent => {
                Err(CallFailure::InvalidResponse.into())
            }
            Response::Append(answer) => {
                self.links.leader_info.acknowledged(self.target);
                Ok(answer.into_raft())
            }
            Response::ErrorResponse(reason) => Err(error_response(reason)),
            _ => Err(CallFailure::InvalidResponse.into()),
        }
    }
}

impl<C: RpcClient> RaftNetwork<Types> for PeerLink<C> {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RpcError> {
        // openraft does not notice when a replication task is gone, and would leave this peer
        // without entries for as long as it leads.
        match catch_panic(self.append(rpc, option)).await {
            Ok(answer) => answer,
            Err(panicked) => Err(RPCError::Unreachable(Unreachable::new(&panicked))),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        _: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RpcError> {
        let limit = shortened(self.links.limit);
        let call = async {
            fail_point("vote");
            self.call(Request::Vote(WireVote::from_raft(self.to(), &rpc)), limit).await
        };
        match catch_panic(call).await.unwrap_or(Err(CallFailure::Unreachable))? {
            Response::Vote { vote: (leader_id, committed), granted, last_log_id } => {
                Ok(VoteResponse {
                    vote: raft_vote((leader_id, committed)),
                    vote_granted: granted,
                    last_log_id: last_log_id.map(raft_log_id),
                })
            }
            Response::ErrorResponse(reason) => Err(error_response(reason)),
            _ => Err(CallFailure::InvalidResponse.into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<NodeId>,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<Types, Fatal<NodeId>>> {
        let call = catch_panic(async {
            fail_point("snapshot");
            let message =
                WireSnapshot::from_raft(self.to(), vote, snapshot, self.links.leader_info.now());
            self.call(Request::Snapshot(message), shortened(option.hard_ttl())).await
        });
        let answer = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = call => answer.unwrap_or(Err(CallFailure::Unreachable)),
        };
        match answer {
            Ok(Response::Snapshot { vote }) => Ok(SnapshotResponse::new(raft_vote(vote))),
            Ok(Response::ErrorResponse(reason)) => Err(Unreachable::new(&reason).into()),
            Ok(_) => Err(NetworkError::new(&CallFailure::InvalidResponse).into()),
            Err(failure) => Err(Unreachable::new(&failure).into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(once(FIRST_BACKOFF).chain(once(SECOND_BACKOFF)).chain(repeat(STEADY_BACKOFF)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use openraft::{Entry, EntryPayload};

    use super::*;
    use crate::core::log_id::{LeaderId, LogId};

    /// Counts what it is given, and says yes.
    #[derive(Clone, Default)]
    struct Yes(Arc<AtomicUsize>);

    impl RpcClient for Yes {
        async fn call(
            &self,
            _: ServerId,
            _: Request,
            _: Duration,
        ) -> Result<Response, CallFailure> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Response::Append(AppendAnswer::Success))
        }
    }

    impl LeaderInfo for Yes {
        fn current_age(&self) -> Option<(Generation, u64)> {
            None
        }

        fn has_quorum(&self) -> bool {
            false
        }

        fn now(&self) -> Moment {
            Moment::default()
        }

        fn acknowledged(&self, _: NodeId) {}
    }

    #[tokio::test]
    async fn what_was_read_while_the_log_changed_is_not_sent() {
        let (rpc_client, second) = (Yes::default(), Duration::from_secs(1));
        let mut links = Links::new(
            rpc_client.clone(),
            Arc::new(rpc_client.clone()),
            ClusterCell::default(),
            second,
        );
        let mut link = links.new_client(NodeId::of(1), &EmptyNode {}).await;
        let id = |node, index| {
            let leader_id = LeaderId { term: 1, node: NodeId::of(node) };
            raft_log_id(LogId { leader_id, index })
        };
        let append = |first| AppendEntriesRequest {
            vote: raft_vote((LeaderId { term: 1, node: NodeId::of(3) }, true)),
            prev_log_id: None,
            entries: vec![Entry { log_id: first, payload: EntryPayload::Blank }],
            leader_commit: None,
        };
        // The whole log from its first entry on, and one whose first entry is gone.
        let sent = link.append_entries(append(id(2, 0)), RPCOption::new(second)).await;
        assert!(matches!(sent, Ok(AppendEntriesResponse::Success)), "{sent:?}");
        let mixed = link.append_entries(append(id(2, 1)), RPCOption::new(second)).await;
        assert!(matches!(mixed, Err(RPCError::Unreachable(_))), "{mixed:?}");
        assert_eq!(rpc_client.0.load(Ordering::Relaxed), 1, "only the first went out");
    }
}
