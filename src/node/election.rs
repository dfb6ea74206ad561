//! Elections: has this server become a candidate when its timer says so and a pre-vote is won.
//!
//! When that is, is [`crate::core::election`]'s to say, who would win [`crate::core::pre_vote`]'s; votes
//! are openraft's.
//! Invariants: nobody raises the term in vain, so a server becomes a candidate only when a majority
//! would vote for it now.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::ServerState;
use openssl::rand::rand_bytes;
use tokio::time::{sleep, timeout};

use super::counters::NodeCounters;
use super::peer_client::{ask_voters, Peers};
use super::running::{Running, Stopped};
use crate::consensus::log_id_of;
use crate::core::election::{ahead, ElectionTimer, Seen, Step};
use crate::core::log_id::LogId;
use crate::core::pre_vote::{may_campaign, objection, Status};
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
                () = peers.ctx.timeout_now.notified() => timer.timeout_now(),
                () = peers.ctx.leader_gone.notified() => {
                    let leader = peers.ctx.followed();
                    let voters = running.voting_servers();
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
        let wins = would_grant(&peers, &running).await;
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
    let others = ends.vote.filter(|vote| vote.leader_id.node_id.server != peers.ctx.me);
    let voted = others.and(ends.voted).map(|since| now.ago(since.elapsed()));
    Seen {
        now,
        heard: lease.heard(),
        heard_or_voted: lease.heard_or_voted().max(voted),
        lateness: lease.lateness(&timers),
        timers,
    }
}

/// Asks the other voters, until a majority would vote for this node or all have answered. Servers that
/// do not answer do not hold up those that do.
async fn would_grant(peers: &Arc<Peers>, running: &Running) -> bool {
    let configs = running.voters();
    let me = (peers.ctx.node(), running.epoch());
    // Of whoever is in none no server is a voter.
    if !configs.iter().any(|voters| voters.contains(&me.0)) {
        return false;
    }
    let last_log_id = running.log.last_log_id().as_ref().map(log_id_of);
    let mut answers: BTreeMap<ServerId, Status> = BTreeMap::new();
    let asking = async {
        let mut asked = ask_voters(peers, &configs);
        loop {
            if may_campaign(me, last_log_id, &configs, &answers) {
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
    };
    let limit = peers.ctx.settings().timers.election_upper;
    let is_won = timeout(limit, asking).await.unwrap_or(false);
    if !is_won {
        peers.ctx.log.debug(lost(&answers, last_log_id));
    }
    is_won
}

/// How many refusals are named; see [`lost`].
const MAX_NAMED: usize = 8;

/// The line about a pre-vote that was not won.
fn lost(answers: &BTreeMap<ServerId, Status>, last_log_id: Option<LogId>) -> String {
    let refusals = answers.iter().filter_map(|(id, status)| {
        objection(status, last_log_id).map(|why| format!("server {id}: {why}"))
    });
    let refusals: Vec<String> = refusals.take(MAX_NAMED).collect();
    let told = if refusals.is_empty() { "nobody refused".to_owned() } else { refusals.join("; ") };
    format!("no majority would vote for this server: {} answered, {told}", answers.len())
}

/// A random number from 0 to 1; 0 if OpenSSL has no randomness to give.
fn random_share() -> f64 {
    let mut bytes = [0; 4];
    match rand_bytes(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pre_vote_that_is_lost_tells_who_refused_and_why() {
        let short = Some(LogId { index: 3, ..LogId::default() });
        let long = Some(LogId { index: 4, ..LogId::default() });
        let ready = Status { last_log_id: short, ..Status::default() };
        let answers = BTreeMap::from([
            (ServerId(2), Status { live_leader: true, ..ready.clone() }),
            (ServerId(4), Status { last_log_id: long, ..ready.clone() }),
            (ServerId(5), ready),
        ]);
        assert_eq!(
            lost(&answers, short),
            "no majority would vote for this server: 3 answered, server 2: it hears a leader; \
             server 4: its log is longer"
        );
        assert_eq!(
            lost(&BTreeMap::new(), short),
            "no majority would vote for this server: 0 answered, nobody refused"
        );
    }
}
