//! Why a node has to end: Raft is broken, another cluster takes precedence, or the group goes on
//! without this server.
//!
//! Watches from outside, because a panic inside openraft shows in no metric. What follows is for
//! `lifecycle`. Invariants: nothing here ends a run in which this server has a leader, unless Raft is
//! broken or another cluster takes precedence.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openraft::{LogIdOptionExt, ServerState};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::clock::founding_clock;
use super::context::Context;
use super::counters::NodeCounters;
use super::peer_client::{ask, status_at, Peers, STATUS_LIMIT};
use super::running::{Running, Stopped};
use crate::consensus::network::{CallFailure, RpcClient};
use crate::consensus::state_machine::AgreedView;
use crate::core::agreement::epoch::Epoch;
use crate::core::agreement::meeting::{self, Leading, Meeting};
use crate::core::node_id::NodeId;
use crate::core::pre_vote::{self, Status};
use crate::core::server_id::ServerId;
use crate::core::server_list::NEIGHBOURS;
use crate::rpc::{Request, Response};

/// Between two looks at servers of another cluster, which are met with every heartbeat.
const MEET_PAUSE: Duration = Duration::from_millis(200);

/// How often Raft is asked whether it still lives, and how long the answer may take. A machine that has
/// more to do than it can answers late, and to begin anew would only add to that.
const WATCH_PAUSE: Duration = Duration::from_secs(2);
const WATCH_LIMIT: Duration = Duration::from_secs(10);

/// Another cluster that takes precedence over this node's.
#[derive(Debug)]
pub(super) struct OtherCluster {
    server: ServerId,
    theirs: Epoch,
}

impl fmt::Display for OtherCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (server, epoch) = (self.server, self.theirs.counter);
        write!(f, "server {server} has part in a cluster that takes precedence (epoch {epoch})")
    }
}

/// Asks a server of another cluster what it is, whenever one is met; returns when this node has to
/// give way.
pub(super) async fn meet(peers: &Arc<Peers>) -> OtherCluster {
    let ctx = &peers.ctx;
    loop {
        peers.met.notified().await;
        let Some(id) = peers.other_cluster_peer() else { continue };
        let question = Request::Status(ctx.status_for(id));
        if let Ok(Response::Status(theirs)) = peers.call(id, question, STATUS_LIMIT).await {
            let leading = |cluster, list_version| Leading {
                cluster,
                list_version,
                majority_age: Duration::ZERO,
            };
            let other = leading(theirs.cluster, theirs.list_version);
            let own = leading(ctx.cluster(), ctx.status().list_version);
            let own = ctx.in_majority().then_some(&own);
            let (meeting, known) = ctx.part(|part| {
                (meeting::meet(part.cluster, part.promise, own, &other), part.known())
            });
            let cluster = theirs.cluster;
            let is_plausible = cluster.is_plausible(known, founding_clock());
            if theirs.quorum && is_plausible && meeting == Meeting::BeginAnew {
                if is_led(peers, id, theirs).await {
                    return OtherCluster { server: id, theirs: cluster };
                }
                // Those who follow it may not have heard of its majority yet.
                peers.record_other_cluster_peer(id);
            }
        }
        sleep(MEET_PAUSE).await;
    }
}

/// Whether enough of the others say now that the cluster of which `theirs` is has a leader with a majority:
/// of those in this server's list, and of those that only its file has, since the other group may have
/// taken these in meanwhile.
async fn is_led(peers: &Arc<Peers>, id: ServerId, theirs: Status) -> bool {
    let ctx = &peers.ctx;
    let (mut others, ids, settings) = (ctx.consulted(NEIGHBOURS), ctx.ids(), ctx.settings());
    let mut asked = ask(peers, others.iter().copied().filter(|other| *other != id));
    let only_in_file = settings.members.iter().filter(|member| !ids.contains(&member.id));
    for member in only_in_file.take(NEIGHBOURS) {
        let (peers, member) = (peers.clone(), member.clone());
        others.insert(member.id);
        asked.spawn(async move {
            let status = status_at(&peers, &member, STATUS_LIMIT).await;
            (member.id, status.ok_or(CallFailure::Unreachable))
        });
    }
    let cluster = theirs.cluster;
    let mut answers = BTreeMap::from([(id, theirs)]);
    loop {
        if pre_vote::is_led(cluster, &answers, others.len(), ctx.is_long_alone()) {
            return true;
        }
        match asked.join_next().await {
            Some(Ok((id, Ok(status)))) if status.node.server == id => {
                answers.insert(id, status);
            }
            Some(_) => {}
            None => return false,
        }
    }
}

/// Returns when others know of a later life of this server than this node is; see
/// [`pre_vote::is_outlived`].
pub(super) async fn outlived(ctx: &Context) {
    loop {
        let arrived = ctx.arrived.notified();
        match ctx.is_outlived() {
            (_, true) => return,
            (false, _) => arrived.await,
            // One says so: it may be the only one that there is.
            (true, _) => drop(timeout(ctx.settings().timers.election_upper, arrived).await),
        }
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
    for id in peers.ctx.consulted(NEIGHBOURS) {
        let (peers, question) = (peers.clone(), Request::Status(peers.ctx.status_for(id)));
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
                ctx.log.note(if id.server == ctx.me {
                    format!("this server is the leader of term {term}")
                } else {
                    format!("leader is server {} in term {term}", id.server)
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
pub(super) async fn watch_over(me: NodeId, running: &Running) -> Stopped {
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
