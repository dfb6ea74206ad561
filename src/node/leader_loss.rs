//! Finds out at once when the process of the leader is gone, so that nobody sits out an election timer
//! for it.
//!
//! When the connections with the leader are lost it is asked something, which dials it. Only if the
//! system there answers that nobody listens is its process gone: then this server's lease ends and its
//! pre-vote begins. Whatever else comes of it says nothing: a proxy resets connections, a network is
//! cut, and a machine that lost power is silent; for those there are the timers.
//!
//! Whose turn it is then has connections with those whom it asks: a cold start makes none between
//! followers, and a silent one is closed after a while.
//!
//! Invariants: a leader that was heard after its connection was lost is not gone, and one that answers
//! is not. A server that is mistaken alone deposes nobody: the pre-vote asks the others, who hear
//! their leader. If all are, because the leader moves to another port or address, they elect anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::peer_client::{ask, Peers};
use super::running::{Running, Stopped};
use crate::core::election::ahead;
use crate::core::moment::Moment;
use crate::core::server_id::ServerId;
use crate::rpc::{self, Request};
use crate::supervise::fail_point;
use crate::transport::peers::CallError;
use crate::transport::IDLE_LIMIT;

/// How long to wait before each attempt to dial a leader whose connection was lost. A process that ends
/// may close its connections a moment before its port, and a line that failed is not dialled again for
/// as long as the last one.
const ATTEMPTS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(60),
];

/// How long leader and members have been the same when the next in turn connects with the others: what a
/// start or an election leaves to be done has been done by then.
const READY_AFTER: Duration = Duration::from_millis(500);

/// Between two looks at those connections: each is asked something well before it has been silent for too long.
const READY_PAUSE: Duration = Duration::from_secs(IDLE_LIMIT.as_secs() / 3);

/// Has an election begin each time when the process of the leader is gone.
pub(super) async fn notice(peers: Arc<Peers>) -> Stopped {
    loop {
        let lost = peers.heard.lost().await;
        fail_point("leader-loss");
        let Some(leader) = peers.ctx.followed().filter(|id| lost.contains(id)) else { continue };
        // Who does not vote has nothing to hasten.
        if !peers.ctx.votes() {
            continue;
        }
        let since = peers.ctx.now();
        if is_gone(&peers, leader, since).await && peers.ctx.followed() == Some(leader) {
            peers.ctx.record_leader_gone(since);
        }
    }
}

/// Has this server be connected with those that vote while it is the first to ask them when the leader is gone.
pub(super) async fn keep_ready(peers: Arc<Peers>, running: Running) -> Stopped {
    let mut server = running.raft.server_metrics();
    let mut pause = READY_AFTER;
    loop {
        server.borrow_and_update();
        tokio::select! {
            () = sleep(pause) => {
                fail_point("readiness");
                let voters = running.voting_servers();
                let me = peers.ctx.me;
                let leader = peers.ctx.followed().filter(|_| voters.contains(&me));
                if let Some(leader) = leader.filter(|leader| ahead(me, *leader, &voters) == 0) {
                    let others = voters.into_iter().filter(|id| *id != leader);
                    ask(&peers, others).join_all().await;
                }
                pause = READY_PAUSE;
            }
            changed = server.changed() => match changed {
                Ok(()) => pause = READY_AFTER,
                Err(_) => return Stopped::CoreGone,
            },
        }
    }
}

/// Whether the leader's system says that its process is gone, and nothing was heard after `since`.
async fn is_gone(peers: &Peers, leader: ServerId, since: Moment) -> bool {
    for pause in ATTEMPTS {
        sleep(pause).await;
        if peers.ctx.contact().is_some_and(|at| at > since) {
            return false;
        }
        let Some(question) = rpc::encode(&Request::Status(peers.ctx.status())) else {
            return false;
        };
        let limit = peers.ctx.settings().timers.election_lower;
        match peers.transport.request(leader, question, limit).await {
            Err(CallError::NobodyListens(_)) => return true,
            // The connection that was lost, before its task had noticed; or it is being dialled.
            Err(CallError::Unreachable(_) | CallError::Busy) => {}
            _ => return false,
        }
    }
    false
}
