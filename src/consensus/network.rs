//! openraft's way to the other boxes: turns its requests into messages of ours and back.
//!
//! How a message gets there is the [`Courier`]'s business. What must hold: openraft never sees an
//! answer that it would panic on.

use std::future::Future;
use std::iter::{once, repeat};
use std::sync::Arc;
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
use tokio::time::Instant;

use super::convert::raft_vote;
use super::types::{ballot_of, log_id_of, Types};
use crate::core::key_ring::Generation;
use crate::core::moment::Moment;
use crate::core::rejoin::Ballot;
use crate::core::server_id::ServerId;
use crate::fault::{fail_point, guarded};
use crate::rpc::{AppendAnswer, Request, Response, Unable, WireAppend, WireSnapshot, WireVote};

/// Pauses between attempts to reach a peer that is not there: short at first, since a restarted
/// box is back soon, then steady.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const SECOND_BACKOFF: Duration = Duration::from_millis(100);
const STEADY_BACKOFF: Duration = Duration::from_millis(200);

/// openraft drops a request when its time is over; the courier has to notice a little earlier, so
/// that it can tell a dead connection from a caller who lost interest.
const MARGIN: Duration = Duration::from_millis(5);

fn shortened(limit: Duration) -> Duration {
    limit.saturating_sub(MARGIN).max(limit / 2)
}

/// Why a message got no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallFailure {
    /// There is no connection to that box.
    #[error("no connection")]
    Unreachable,
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The answer made no sense.
    #[error("a senseless answer")]
    Senseless,
    /// It does not have this box in its list.
    #[error("this server is not in its server list")]
    NotListed,
}

/// Carries messages to other boxes and answers back.
pub trait Courier: Clone + Send + Sync + 'static {
    /// Sends `request` to `to` and waits for the answer, `limit` at most.
    fn call(
        &self,
        to: ServerId,
        request: Request,
        limit: Duration,
    ) -> impl Future<Output = Result<Response, CallFailure>> + Send;
}

/// What the box knows that openraft does not: its clock, the age of its key, who answered.
pub trait Chronicle: Send + Sync + 'static {
    /// The current key's generation and age in milliseconds.
    fn current_age(&self) -> Option<(Generation, u64)>;
    /// Whether a majority acknowledged this leader lately.
    fn has_quorum(&self) -> bool;
    /// The present moment.
    fn now(&self) -> Moment;
    /// Hears that a box has acknowledged this leader.
    fn acknowledged(&self, by: ServerId);
}

/// Makes one [`PeerLink`] per peer; openraft asks several times for the same peer, and all share
/// the courier's connection.
pub struct Links<C> {
    courier: C,
    chronicle: Arc<dyn Chronicle>,
    append_limit: Duration,
}

impl<C: Courier> Links<C> {
    /// Links over `courier`, on which an append may take at most `append_limit`: openraft's own
    /// limit is its heart beat interval, which means something else here.
    pub fn new(courier: C, chronicle: Arc<dyn Chronicle>, append_limit: Duration) -> Links<C> {
        Links { courier, chronicle, append_limit }
    }
}

impl<C: Courier> RaftNetworkFactory<Types> for Links<C> {
    type Network = PeerLink<C>;

    async fn new_client(&mut self, target: ServerId, _node: &EmptyNode) -> PeerLink<C> {
        PeerLink {
            target,
            courier: self.courier.clone(),
            chronicle: self.chronicle.clone(),
            append_limit: self.append_limit,
        }
    }
}

/// openraft's link to one peer.
pub struct PeerLink<C> {
    target: ServerId,
    courier: C,
    chronicle: Arc<dyn Chronicle>,
    append_limit: Duration,
}

type RpcError = RPCError<ServerId, EmptyNode, RaftError<ServerId>>;

impl From<CallFailure> for RpcError {
    fn from(failure: CallFailure) -> RpcError {
        match failure {
            CallFailure::Unreachable => RPCError::Unreachable(Unreachable::new(&failure)),
            CallFailure::NotListed => RPCError::Unreachable(Unreachable::new(&failure)),
            CallFailure::TimedOut | CallFailure::Senseless => {
                RPCError::Network(NetworkError::new(&failure))
            }
        }
    }
}

impl<C> PeerLink<C> {
    /// A higher ballot with which a box refused the one that was sent.
    ///
    /// It may name this very box, which stood in it before it lost its memory. openraft takes
    /// that for its own present candidacy and stays a leader that can never commit again. The
    /// same term in the name of the box that refused is a stronger promise, and makes this one
    /// step down and stand in the next term.
    fn not_ours(&self, sent: Ballot, refused: Ballot) -> Ballot {
        match refused.node == sent.node && refused > sent {
            true => Ballot { node: self.target, ..refused },
            false => refused,
        }
    }
}

fn unable(reason: Unable) -> RpcError {
    // As unreachable, so that openraft waits a moment before it tries again.
    RPCError::Unreachable(Unreachable::new(&reason))
}

impl<C: Courier> PeerLink<C> {
    async fn append(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<ServerId>, RpcError> {
        let begins_the_log = rpc.prev_log_id.is_none();
        let sent = ballot_of(&rpc.vote);
        let held: Vec<_> =
            rpc.prev_log_id.into_iter().chain(rpc.entries.iter().map(|e| e.log_id)).collect();
        fail_point("replicate");
        let (age, quorum) = (self.chronicle.current_age(), self.chronicle.has_quorum());
        let append = WireAppend::from_raft(rpc, age, quorum);
        // openraft reads the log without a lock. Where the next leader's entries take the place
        // of this one's meanwhile, what it read makes no sense, and whoever got it would take
        // this box for a broken one.
        if let Err(mixed) = append.check() {
            return Err(RPCError::Unreachable(Unreachable::new(&mixed)));
        }
        let limit = shortened(option.hard_ttl()).min(self.append_limit);
        match self.courier.call(self.target, Request::Append(append), limit).await? {
            // There is no entry before the first that could conflict; openraft takes this for
            // impossible and panics.
            Response::Append(AppendAnswer::Conflict) if begins_the_log => {
                Err(CallFailure::Senseless.into())
            }
            // It can hold nothing but what it was sent; openraft would go on behind the log's end.
            Response::Append(AppendAnswer::Partial(Some(end)))
                if !held.contains(&log_id_of(end)) =>
            {
                Err(CallFailure::Senseless.into())
            }
            // What is not higher refuses nothing.
            Response::Append(AppendAnswer::HigherVote(ballot, _)) if ballot <= sent => {
                Err(CallFailure::Senseless.into())
            }
            Response::Append(AppendAnswer::HigherVote(ballot, committed)) => {
                let ballot = self.not_ours(sent, ballot);
                Ok(AppendAnswer::HigherVote(ballot, committed).into_raft())
            }
            Response::Append(answer) => {
                self.chronicle.acknowledged(self.target);
                Ok(answer.into_raft())
            }
            Response::Unable(reason) => Err(unable(reason)),
            _ => Err(CallFailure::Senseless.into()),
        }
    }
}

impl<C: Courier> RaftNetwork<Types> for PeerLink<C> {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<ServerId>, RpcError> {
        // openraft does not notice when a replication task is gone, and would leave this peer
        // without entries for as long as it leads.
        match guarded(self.append(rpc, option)).await {
            Ok(answer) => answer,
            Err(panicked) => Err(RPCError::Unreachable(Unreachable::new(&panicked))),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<ServerId>,
        option: RPCOption,
    ) -> Result<VoteResponse<ServerId>, RpcError> {
        let sent = ballot_of(&rpc.vote);
        let (begun, limit) = (Instant::now(), shortened(option.hard_ttl()));
        let call = async {
            fail_point("vote");
            let request = Request::Vote(WireVote::from_raft(&rpc));
            let answer = self.courier.call(self.target, request, limit).await;
            // A process that was stopped finds an answer that came meanwhile, however late. Servers
            // that forgot their vote rely on it that it does not count then; see
            // `crate::core::rejoin`.
            match begun.elapsed() < limit {
                true => answer,
                false => Err(CallFailure::TimedOut),
            }
        };
        match guarded(call).await.unwrap_or(Err(CallFailure::Unreachable))? {
            Response::Vote { vote: (ballot, committed), granted, log_end } => Ok(VoteResponse {
                vote: raft_vote((self.not_ours(sent, ballot), committed)),
                vote_granted: granted,
                last_log_id: log_end.map(log_id_of),
            }),
            Response::Unable(reason) => Err(unable(reason)),
            _ => Err(CallFailure::Senseless.into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<ServerId>,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<ServerId>, StreamingError<Types, Fatal<ServerId>>> {
        let call = guarded(async {
            fail_point("snapshot");
            let message = WireSnapshot::from_raft(vote, snapshot, self.chronicle.now());
            self.courier
                .call(self.target, Request::Snapshot(message), shortened(option.hard_ttl()))
                .await
        });
        let answer = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            answer = call => answer.unwrap_or(Err(CallFailure::Unreachable)),
        };
        match answer {
            Ok(Response::Snapshot { vote }) => Ok(SnapshotResponse::new(raft_vote(vote))),
            Ok(Response::Unable(reason)) => Err(Unreachable::new(&reason).into()),
            Ok(_) => Err(NetworkError::new(&CallFailure::Senseless).into()),
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
    use crate::core::rejoin::LogEnd;

    /// Counts what it is given, and says yes.
    #[derive(Clone, Default)]
    struct Yes(Arc<AtomicUsize>);

    impl Courier for Yes {
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

    impl Chronicle for Yes {
        fn current_age(&self) -> Option<(Generation, u64)> {
            None
        }

        fn has_quorum(&self) -> bool {
            false
        }

        fn now(&self) -> Moment {
            Moment::default()
        }

        fn acknowledged(&self, _: ServerId) {}
    }

    #[tokio::test]
    async fn what_was_read_while_the_log_changed_is_not_sent() {
        let (courier, second) = (Yes::default(), Duration::from_secs(1));
        let mut links = Links::new(courier.clone(), Arc::new(courier.clone()), second);
        let mut link = links.new_client(ServerId(1), &EmptyNode {}).await;
        let id = |node, index| {
            let ballot = Ballot { term: 1, node: ServerId(node) };
            log_id_of(LogEnd { ballot, index })
        };
        let append = |first| AppendEntriesRequest {
            vote: raft_vote((Ballot { term: 1, node: ServerId(3) }, true)),
            prev_log_id: None,
            entries: vec![Entry { log_id: first, payload: EntryPayload::Blank }],
            leader_commit: None,
        };
        // The whole log from its first entry on, and one whose first entry is gone.
        let sent = link.append_entries(append(id(2, 0)), RPCOption::new(second)).await;
        assert!(matches!(sent, Ok(AppendEntriesResponse::Success)), "{sent:?}");
        let mixed = link.append_entries(append(id(2, 1)), RPCOption::new(second)).await;
        assert!(matches!(mixed, Err(RPCError::Unreachable(_))), "{mixed:?}");
        assert_eq!(courier.0.load(Ordering::Relaxed), 1, "only the first went out");
    }
}
