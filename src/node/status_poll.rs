//! In a large group a server that starts does not ask everybody: it asks a few servers what all others
//! say of themselves.
//!
//! The leader, which has a connection to everybody, asks all of them in its stead; any other server
//! passes on what it was told lately. Invariants: what is passed on was said by the server that it
//! is about, and is not made to look younger than it is; the leader asks everybody at most once at
//! a time, however many want to know.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::peer_client::Peers;
use crate::consensus::network::RpcClient;
use crate::core::moment::Moment;
use crate::core::quorum::majority;
use crate::rpc::{RelayedStatus, Request, Response};

/// How long another server's word about itself counts.
pub(super) const ANSWER_LIFE: Duration = Duration::from_secs(2);

/// What the members said when they were last asked for others.
#[derive(Default)]
pub(super) struct StatusPoll(Mutex<Round>);

#[derive(Default)]
struct Round {
    begun: Option<Moment>,
    said: Vec<RelayedStatus>,
}

impl StatusPoll {
    /// What the others say of themselves, for one that asks now.
    pub async fn others(&self, peers: &Arc<Peers>) -> Vec<RelayedStatus> {
        let ctx = &peers.ctx;
        let leads = ctx.running().is_some_and(|running| ctx.leads_majority(&running));
        if !leads {
            return peers.answers_to_tell(ANSWER_LIFE);
        }
        let came = ctx.now();
        // Whoever comes during a round waits for the next one, which serves all that wait.
        let mut round = self.0.lock().await;
        if round.begun.is_none_or(|begun| begun < came) {
            round.begun = Some(ctx.now());
            round.said = ask_all(peers).await;
        }
        round.said.clone()
    }
}

/// Asks all members that are there; ends as soon as a majority remembers everything.
async fn ask_all(peers: &Arc<Peers>) -> Vec<RelayedStatus> {
    let reach = peers.ctx.reach();
    let is_there = |id| peers.heard.last(id).is_some_and(|at| at.elapsed() < reach);
    let limit = peers.ctx.settings().timers.election_upper;
    let mut asked = JoinSet::new();
    for id in peers.ctx.others().filter(|id| is_there(*id)) {
        let (peers, question) = (peers.clone(), Request::Status(peers.ctx.status()));
        asked.spawn(async move { (id, peers.call(id, question, limit).await) });
    }
    let needed = majority(peers.ctx.members().len());
    let (mut said, mut full) = (Vec::new(), 0);
    let gather = async {
        while let Some(answer) = asked.join_next().await {
            if let Ok((from, Ok(Response::Status(status)))) = answer {
                full += usize::from(status.full);
                said.push(RelayedStatus { from, age_ms: 0, status });
            }
            // The leader itself is one of them.
            if full + 1 >= needed {
                return;
            }
        }
    };
    // What was said until then is as good.
    let _ = timeout(limit, gather).await;
    said
}
