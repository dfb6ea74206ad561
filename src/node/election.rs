//! Elections: has this server become a candidate when its timer says so and a pre-vote is won.
//!
//! When that is, is [`crate::core::election`]'s to say, who takes turns in a large cluster
//! [`crate::core::large_cluster`]'s, who would win [`crate::core::recovery`]'s; votes are openraft's.
//! Invariants: nobody raises the term in vain, so a server becomes a candidate only when a majority
//! would vote for it now; and when those that may become one never can, the server in their way
//! notices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openssl::rand::rand_bytes;
use tokio::time::{sleep, timeout, Instant};

use super::counters::NodeCounters;
use super::peer_client::{ask_voters, Peers};
use super::running::{Running, Stopped};
use crate::consensus::log_end_of;
use crate::core::election::{ahead, ElectionTimer, Seen, Step};
use crate::core::large_cluster::{campaign_delay, scale};
use crate::core::recovery::{may_campaign, Status, VoteRestriction};
use crate::core::server_id::ServerId;

/// Becomes a candidate when no leader was heard for a random time within the election bounds, and a
/// majority would vote for this server.
pub(super) async fn campaign(
    peers: Arc<Peers>,
    node_counters: Arc<NodeCounters>,
    running: Running,
) -> Stopped {
    let mut server = running.raft.server_metrics();
    let timers = peers.ctx.settings().timers;
    let mut timer = ElectionTimer::new(peers.ctx.now(), running.cold, &timers, &random_share);
    loop {
        if server.wait_for(|m| m.state != ServerState::Leader).await.is_err() {
            return Stopped::CoreGone;
        }
        if let Step::Wait(rest) = timer.step(&seen(&peers, &running), &random_share) {
            tokio::select! {
                () = sleep(rest) => {}
                // The timer is set anew at each heartbeat, so that it never fires while there is a
                // leader.
                () = peers.ctx.contacted.notified() => {}
                () = peers.ctx.campaign_now.notified() => timer.transfer(),
                () = peers.ctx.leader_gone.notified() => {
                    let leader = peers.ctx.followed();
                    let voters = running.voters().into_iter().flatten().collect();
                    let ahead = leader.map_or(0, |leader| ahead(peers.ctx.me, leader, &voters));
                    timer.leader_gone(&seen(&peers, &running), ahead, &random_share);
                }
            }
            continue;
        }
        // One that is about to end leaves the election to those that stay.
        if *peers.ctx.leaving.borrow() {
            std::future::pending::<()>().await;
        }
        let full = *peers.ctx.vote_restriction.borrow() == VoteRestriction::Lifted;
        let wins = full && would_grant(&peers, &running).await;
        let seen = seen(&peers, &running);
        if !wins {
            timer.lost(&seen, &random_share);
        } else if timer.won(&seen, &random_share) {
            peers.ctx.log.debug("no leader is heard; campaigning");
            node_counters.count(|node_counters| &node_counters.elections);
            if running.raft.trigger().elect().await.is_err() {
                return Stopped::CoreGone;
            }
        }
    }
}

fn seen(peers: &Peers, running: &Running) -> Seen {
    let lease = peers.ctx.lease();
    let timers = peers.ctx.settings().timers;
    let (now, ends) = (peers.ctx.now(), running.log.ends());
    // Raft takes a vote, or follows a new leader, a moment before whoever asked it hears of that.
    let others = ends.vote.filter(|vote| vote.leader_id.node_id != peers.ctx.me);
    let voted = others.and(ends.voted).map(|since| now.ago(since.elapsed()));
    Seen {
        now,
        heard: lease.heard(),
        heard_or_voted: lease.heard_or_voted().max(voted),
        lateness: lease.lateness(&timers),
        turn: turn(peers, running),
        scale: scale(peers.ctx.members().len()),
        timers,
    }
}

/// How much longer than in a small group this server waits before it stands.
fn turn(peers: &Peers, running: &Running) -> Duration {
    if scale(peers.ctx.members().len()) == 1 {
        return Duration::ZERO;
    }
    let last_leader = running.log.vote().map(|vote| vote.leader_id.node_id);
    let upper = peers.ctx.settings().timers.election_upper;
    campaign_delay(peers.ctx.me, &peers.ctx.ids(), last_leader, upper)
}

/// Whether a majority would vote for this server. Servers that do not answer do not hold up those that
/// do.
async fn would_grant(peers: &Arc<Peers>, running: &Running) -> bool {
    let timers = peers.ctx.settings().timers;
    let scale = scale(peers.ctx.members().len());
    let asking = async {
        let begun = Instant::now();
        let wins = has_majority(peers, running).await;
        // Hundreds of handshakes take so long that those who answered first may follow somebody
        // by now. With the handshakes done, asking again takes a moment.
        if wins && scale > 1 && begun.elapsed() > timers.election_lower {
            has_majority(peers, running).await
        } else {
            wins
        }
    };
    timeout(timers.election_upper * scale, asking).await.unwrap_or(false)
}

/// Asks the other voters, until a majority would vote for this server or all have answered.
async fn has_majority(peers: &Arc<Peers>, running: &Running) -> bool {
    let configs = running.voters();
    let log_end = running.log.last_log_id().as_ref().map(log_end_of);
    let mut asked = ask_voters(peers, &configs);
    let mut answers: BTreeMap<ServerId, Status> = BTreeMap::new();
    loop {
        if may_campaign(peers.ctx.me, log_end, &configs, &answers) {
            return true;
        }
        match asked.join_next().await {
            Some(Ok((id, Ok(status)))) => {
                answers.insert(id, status);
            }
            Some(_) => {}
            None => return false,
        }
    }
}

/// A random number from 0 to 1; 0 if OpenSSL has no randomness to give.
fn random_share() -> f64 {
    let mut bytes = [0; 4];
    match rand_bytes(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.0,
    }
}
