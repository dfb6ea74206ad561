//! Why a run of Raft has to end: it is broken, another cluster goes before this one, the group goes
//! on without this server, or cannot go on with it.
//!
//! Watches from outside, because a panic inside openraft shows in no metric. What follows is for
//! `life`. Invariants: nothing here ends a run in which this server has a leader, unless Raft is
//! broken or another cluster goes before.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openraft::{LogIdOptionExt, ServerState};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::context::Context;
use super::counters::NodeCounters;
use super::peer_client::{ask_voters, Peers, STATUS_LIMIT};
use super::running::{Running, Stopped};
use crate::consensus::log_end_of;
use crate::consensus::network::{CallFailure, RpcClient};
use crate::consensus::state_machine::AgreedView;
use crate::core::key_ring::ClusterId;
use crate::core::recovery::{is_deadlocked, yields, Status};
use crate::core::server_id::ServerId;
use crate::rpc::{Request, Response};

/// Between two looks at servers of another cluster incarnation, which are met with every heartbeat.
const MEET_PAUSE: Duration = Duration::from_millis(200);

/// How often Raft is asked whether it still lives, and how long the answer may take.
const WATCH_PAUSE: Duration = Duration::from_secs(2);
const WATCH_LIMIT: Duration = Duration::from_secs(1);

/// Another cluster incarnation that goes before this server's.
#[derive(Debug)]
pub(super) struct OtherCluster {
    server: ServerId,
    theirs: Option<ClusterId>,
    ours: Option<ClusterId>,
}

impl fmt::Display for OtherCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |id: Option<ClusterId>| id.map_or_else(String::new, |id| id.to_string());
        let (server, theirs, ours) = (self.server, name(self.theirs), name(self.ours));
        write!(
            f,
            "server {server} belongs to cluster incarnation {theirs}, which goes before {ours}"
        )
    }
}

/// Asks a server of another cluster incarnation what it is, whenever one is met; returns when this server's cluster incarnation
/// has to give way.
pub(super) async fn meet(peers: &Arc<Peers>) -> OtherCluster {
    loop {
        peers.met.notified().await;
        let Some(id) = peers.other_cluster_peer() else { continue };
        let question = Request::Status(peers.ctx.status());
        if let Ok(Response::Status(theirs)) = peers.call(id, question, STATUS_LIMIT).await {
            // A cluster incarnation of which nothing was applied yet keeps others' messages out as well, and a
            // server must not be stuck with one whose founding another leader has overtaken.
            let ours = Status { cluster_id: peers.ctx.cluster_id(), ..peers.ctx.status() };
            if yields(&ours, &theirs) {
                return OtherCluster {
                    server: id,
                    theirs: theirs.cluster_id,
                    ours: ours.cluster_id,
                };
            }
        }
        sleep(MEET_PAUSE).await;
    }
}

/// Returns when the group has let this server go, and no leader was heard for a while. What such a server
/// remembers is of no use to anybody, and in the way of those who ask it: it would answer for a
/// group that it is no part of. A server that is taken in again may pass through an old list while
/// it catches up; then there is a leader.
pub(super) async fn removed(peers: &Arc<Peers>) {
    let mut views = peers.ctx.views.subscribe();
    let unlisted = |view: &AgreedView| {
        view.agreed.server_list.as_ref().is_some_and(|list| list.get(peers.ctx.me).is_none())
    };
    loop {
        if views.wait_for(unlisted).await.is_err() {
            std::future::pending::<()>().await;
        }
        let patience = peers.ctx.settings().timers.election_upper * 3;
        let waited_from = peers.ctx.now();
        sleep(patience).await;
        let hears_leader = peers.ctx.contact().is_some_and(|at| at > waited_from);
        if !hears_leader && unlisted(&views.borrow()) && is_refused(peers).await {
            return;
        }
    }
}

/// Whether another server does not have this one as a member. Servers forget one that the list no longer
/// has only when Raft does not count on it any more, which a server that is removed often does not
/// hear: until then its vote may be needed.
async fn is_refused(peers: &Arc<Peers>) -> bool {
    let mut asked = JoinSet::new();
    for id in peers.ctx.others() {
        let (peers, question) = (peers.clone(), Request::Status(peers.ctx.status()));
        asked.spawn(async move {
            let answer = peers.call(id, question, STATUS_LIMIT).await;
            matches!(answer, Err(CallFailure::NotListed))
        });
    }
    while let Some(answer) = asked.join_next().await {
        if answer.unwrap_or(false) {
            return true;
        }
    }
    false
}

/// One note for each change of leadership.
pub(super) async fn tell(
    ctx: &Context,
    node_counters: &NodeCounters,
    running: &Running,
) -> Stopped {
    let mut server = running.raft.server_metrics();
    let mut told = None;
    loop {
        let (leader, term) = {
            let metrics = server.borrow_and_update();
            (metrics.current_leader, metrics.vote.leader_id.term)
        };
        match leader {
            Some(id) if told != Some((id, term)) => {
                told = Some((id, term));
                node_counters.count(|node_counters| &node_counters.leaders);
                ctx.log.note(if id == ctx.me {
                    format!("this server is the leader of term {term}")
                } else {
                    format!("leader is server {id} in term {term}")
                });
            }
            _ => {}
        }
        if server.changed().await.is_err() {
            return Stopped::CoreGone;
        }
    }
}

/// Asks Raft in a way that goes through its core and its state machine, because a panic in either
/// shows nowhere else; and looks for a state machine that is ahead of its own log.
pub(super) async fn watch_over(me: ServerId, running: &Running) -> Stopped {
    let mut was_odd = false;
    loop {
        sleep(WATCH_PAUSE).await;
        match timeout(WATCH_LIMIT, running.raft.begin_receiving_snapshot()).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Stopped::NoAnswer(e),
            Err(_) => return Stopped::Hangs,
        }
        let odd = {
            let server = running.raft.server_metrics();
            let server = server.borrow();
            server.state == ServerState::Leader && server.current_leader != Some(me)
        };
        if odd && was_odd {
            return Stopped::LeadsWithoutVote;
        }
        was_odd = odd;
        let data = running.raft.data_metrics().borrow().clone();
        if data.last_applied.index() > data.last_log.index() {
            return Stopped::LogTooShort;
        }
    }
}

/// Returns when nobody can be elected any more because of what this server remembers: it holds more
/// than all others, so that those who forgot wait for it to lead, and Raft's membership does not
/// let it, since it was just being taken in. One that the list no longer has is removed instead, see
/// [`removed`].
pub(super) async fn deadlock(peers: &Arc<Peers>, running: &Running) {
    let mut seen = false;
    loop {
        let patience = peers.ctx.settings().timers.election_upper * 3;
        let waited_from = peers.ctx.now();
        sleep(patience).await;
        let hears_leader = peers.ctx.contact().is_some_and(|at| at > waited_from);
        let log_end = running.log.last_log_id().as_ref().map(log_end_of);
        let configs = running.voters();
        let may_campaign = configs.iter().all(|voters| voters.contains(&peers.ctx.me));
        let lists_me = {
            let views = peers.ctx.views.borrow();
            views.agreed.server_list.as_ref().is_some_and(|list| list.get(peers.ctx.me).is_some())
        };
        if hears_leader || may_campaign || !lists_me || !peers.ctx.status().full {
            seen = false;
            continue;
        }
        let mut asked = ask_voters(peers, &configs);
        let mut answers: BTreeMap<ServerId, Status> = BTreeMap::new();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((id, Ok(status))) => {
                    answers.insert(id, status);
                }
                // It cannot hold what this server holds: a list that has this server.
                Ok((id, Err(CallFailure::NotListed))) => {
                    answers.insert(id, Status::default());
                }
                _ => {}
            }
        }
        // A server that was just taken in may not even know those whom the new list leaves out.
        let known = peers.ctx.ids();
        let configs: Vec<_> = configs.iter().map(|voters| voters & &known).collect();
        let deadlocked = is_deadlocked(log_end, &configs, &answers);
        if deadlocked && seen {
            return;
        }
        seen = deadlocked;
    }
}
