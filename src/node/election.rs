//! Elections: when a box stands, and whether it has to ask first.
//!
//! Who takes turns in a large group is [`crate::core::crowd`]'s to say, who would win
//! [`crate::core::rejoin`]'s; votes are openraft's. What must hold: nobody raises the term in vain,
//! so a box stands only when a majority would vote for it now; and when those that may stand never
//! can, the box in their way notices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openssl::rand::rand_bytes;
use tokio::time::{sleep, timeout, Instant};

use super::peer_client::ask_voters;
use super::running::Running;
use super::shared::Shared;
use crate::consensus::log_end_of;
use crate::consensus::network::CallFailure;
use crate::core::crowd::{breadth, standing_delay};
use crate::core::rejoin::{is_stranded, may_stand, Quarantine, Status};
use crate::core::server_id::ServerId;

/// The pause before standing is tried again after too few said yes: random in this range, and
/// growing up to the upper election bound.
const RETRY_MIN: Duration = Duration::from_millis(15);
const RETRY_MAX: Duration = Duration::from_millis(55);

/// How often a box that is asked to follow a leader stands without waiting for its turn: the others
/// may not have heard yet that the leader leaves.
const SUMMONED_TRIES: u32 = 2;

/// Stands for election when no leader was heard for a random time within the election bounds,
/// and a majority would vote for this box.
pub(super) async fn stand(shared: Arc<Shared>, running: Running) -> String {
    let mut timers = shared.settings().timers;
    let mut server = running.raft.server_metrics();
    let mut since = shared.now();
    // A cold start knows that there is no leader to wait for.
    let mut patience = match running.cold {
        true => random_between(Duration::ZERO, timers.election_lower / 2),
        false => random_between(timers.election_lower, timers.election_upper),
    };
    let mut retry = RETRY_MAX;
    let mut retrying = running.cold;
    // How often this box still stands at once because a leader that leaves has asked it to.
    let mut summoned = 0_u32;
    loop {
        if retrying && shared.contact().is_some_and(|at| at > since) {
            // There is a leader after all.
            (retrying, summoned) = (false, 0);
            retry = RETRY_MAX;
            patience = random_between(timers.election_lower, timers.election_upper);
        }
        if server.wait_for(|m| m.state != ServerState::Leader).await.is_err() {
            return "its core is gone".to_owned();
        }
        timers = shared.settings().timers;
        let last = since.max(shared.contact().max(shared.supported()).unwrap_or(since));
        let wait = match (summoned > 0, retrying) {
            (true, _) => patience,
            (false, true) => patience + turn(&shared, &running),
            (false, false) => patience + turn(&shared, &running) + shared.lateness(),
        };
        let rest = wait.saturating_sub(shared.now().since(last));
        if !rest.is_zero() {
            tokio::select! {
                () = sleep(rest) => {}
                // The timer is set anew at each beat, so that in a healthy group it never fires.
                () = shared.contacted.notified() => {}
                () = shared.stand_now.notified() => {
                    (patience, summoned) = (Duration::ZERO, SUMMONED_TRIES);
                }
            }
            continue;
        }
        // One that is about to end leaves the election to those that stay.
        if *shared.leaving.borrow() {
            std::future::pending::<()>().await;
        }
        let breadth = breadth(shared.members().len());
        let hurries = summoned > 0;
        summoned = summoned.saturating_sub(1);
        let full = *shared.quarantine.borrow() == Quarantine::Lifted;
        if full && would_win(&shared, &running).await {
            let voted_or_led = shared.contact().max(shared.supported()).is_some_and(|at| at > last);
            if !voted_or_led {
                shared.log.debug("no leader is heard; standing for election");
                shared.ledger.count(|ledger| &ledger.elections);
                if running.raft.trigger().elect().await.is_err() {
                    return "its core is gone".to_owned();
                }
            }
            summoned = 0;
            since = shared.now();
            // In a large group the votes take a while to come in.
            patience = random_between(timers.election_lower, timers.election_upper) * breadth;
            retry = RETRY_MAX;
        } else {
            // Nobody stands in vain: wait a moment and ask again, ever more patiently.
            since = shared.now();
            retrying = true;
            patience = random_between(RETRY_MIN, retry);
            retry = (retry * 5 / 4).min(timers.election_upper);
            if breadth > 1 && !hurries {
                // Nobody asks hundreds of others again and again.
                patience = random_between(timers.election_lower, timers.election_upper) * breadth;
            }
        }
    }
}

/// How much longer than in a small group this box waits before it stands.
fn turn(shared: &Shared, running: &Running) -> Duration {
    if breadth(shared.members().len()) == 1 {
        return Duration::ZERO;
    }
    let last_leader = running.log.vote().map(|vote| vote.leader_id.node_id);
    let upper = shared.settings().timers.election_upper;
    standing_delay(shared.me, &shared.ids(), last_leader, upper)
}

/// Whether a majority would vote for this box. Boxes that do not answer do not hold up those that
/// do.
async fn would_win(shared: &Arc<Shared>, running: &Running) -> bool {
    let timers = shared.settings().timers;
    let breadth = breadth(shared.members().len());
    let asking = async {
        let begun = Instant::now();
        let wins = has_majority(shared, running).await;
        // Hundreds of handshakes take so long that those who answered first may follow somebody
        // by now. With the handshakes done, asking again takes a moment.
        match wins && breadth > 1 && begun.elapsed() > timers.election_lower {
            true => has_majority(shared, running).await,
            false => wins,
        }
    };
    timeout(timers.election_upper * breadth, asking).await.unwrap_or(false)
}

/// Asks the other voters, until a majority would vote for this box or all have answered.
async fn has_majority(shared: &Arc<Shared>, running: &Running) -> bool {
    let configs = running.voters();
    let log_end = running.log.last_log_id().as_ref().map(log_end_of);
    let mut asked = ask_voters(shared, &configs);
    let mut answers: BTreeMap<ServerId, Status> = BTreeMap::new();
    loop {
        if may_stand(shared.me, log_end, &configs, &answers) {
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

/// Returns when nobody can be elected any more because of what this box remembers: it holds more
/// than all others, so that those who forgot wait for it to lead, and Raft's membership does not
/// let it, since it was just being taken in. One that the list no longer has is let go instead, see
/// [`super::life`].
pub(super) async fn strand(shared: &Arc<Shared>, running: &Running) {
    let mut seen = false;
    loop {
        let patience = shared.settings().timers.election_upper * 3;
        let waited_from = shared.now();
        sleep(patience).await;
        let hears_leader = shared.contact().is_some_and(|at| at > waited_from);
        let log_end = running.log.last_log_id().as_ref().map(log_end_of);
        let configs = running.voters();
        let may_stand = configs.iter().all(|voters| voters.contains(&shared.me));
        let lists_me = {
            let views = shared.views.borrow();
            views.agreed.roster.as_ref().is_some_and(|list| list.get(shared.me).is_some())
        };
        if hears_leader || may_stand || !lists_me || !shared.status().full {
            seen = false;
            continue;
        }
        let mut asked = ask_voters(shared, &configs);
        let mut answers: BTreeMap<ServerId, Status> = BTreeMap::new();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((id, Ok(status))) => {
                    answers.insert(id, status);
                }
                // It cannot hold what this box holds: a list that has this box.
                Ok((id, Err(CallFailure::NotListed))) => {
                    answers.insert(id, Status::default());
                }
                _ => {}
            }
        }
        // A box that was just taken in may not even know those whom the new list leaves out.
        let known = shared.ids();
        let configs: Vec<_> = configs.iter().map(|voters| voters & &known).collect();
        let stranded = is_stranded(log_end, &configs, &answers);
        if stranded && seen {
            return;
        }
        seen = stranded;
    }
}

/// A random duration in the range; its lower end if OpenSSL has no randomness to give.
fn random_between(lower: Duration, upper: Duration) -> Duration {
    let mut bytes = [0; 4];
    if rand_bytes(&mut bytes).is_err() {
        return lower;
    }
    let share = f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX);
    lower + upper.saturating_sub(lower).mul_f64(share)
}
