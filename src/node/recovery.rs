//! How a server that remembers nothing finds its place: it asks the others, begins with what they
//! say, and counts again once it has caught up.
//!
//! What the answers mean is for [`crate::core::recovery`] to say, whom to ask for
//! [`crate::core::large_cluster`]. Invariants: what was said before a question counts for nothing; nobody is
//! asked more often than the pauses here allow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::context::Context;
use super::peer_client::{Peers, STATUS_LIMIT};
use super::running::Running;
use super::status_poll::ANSWER_LIFE;
use crate::consensus::leader_id_of;
use crate::consensus::network::{CallFailure, RpcClient};
use crate::core::config::Member;
use crate::core::large_cluster::{relays, seed_nodes, whom_to_ask, SMALL};
use crate::core::moment::Moment;
use crate::core::quorum::majority;
use crate::core::recovery::{
    decide_recovery, majority_possible, prove, with_relayed, Proof, RecoveryDecision, Status,
    VoteRestriction,
};
use crate::core::server_id::ServerId;
use crate::rpc::{Request, Response};
use crate::supervise::{catch_panic, fail_point};

/// The same for what all others say: whoever is asked may have to ask them first, and be asked by
/// all of them at once.
const STATUS_POLL_LIMIT: Duration = Duration::from_secs(3);

/// Pauses between two questions to the same server while this one is joining.
const ASK_PAUSE_MIN: Duration = Duration::from_millis(50);
const ASK_PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long a server asks before it says that there is no majority: servers that are started together
/// refuse each other's connections for a moment.
const QUORUM_UNREACHABLE_AFTER: Duration = Duration::from_millis(250);

/// Between two looks at the answers when none came in.
const ASSESS_PAUSE: Duration = Duration::from_millis(50);

/// Asks other servers what they know until there is a decision.
pub(super) async fn ask_around(
    peers: &Arc<Peers>,
    quorum_unreachable: &watch::Sender<bool>,
) -> RecoveryDecision {
    loop {
        match ask_members(peers, quorum_unreachable, peers.ctx.members()).await {
            // The list changed.
            RecoveryDecision::Wait => {}
            decision => return decision,
        }
    }
}

/// Asks these members until there is a decision, or until they are no longer the members.
async fn ask_members(
    peers: &Arc<Peers>,
    quorum_unreachable: &watch::Sender<bool>,
    members: Arc<[Member]>,
) -> RecoveryDecision {
    let since = peers.ctx.now();
    peers.forget_answers();
    let troubles = watch::Sender::new(BTreeMap::new());
    let (mut askers, mut asked) = (JoinSet::new(), BTreeSet::new());
    let (ids, upper) = (peers.ctx.ids(), peers.ctx.settings().timers.election_upper);
    loop {
        if peers.ctx.members() != members {
            return RecoveryDecision::Wait;
        }
        let answers = peers.relayed_within(ANSWER_LIFE);
        let is_gone = |id: &ServerId| troubles.borrow().get(id) == Some(&CallFailure::Unreachable);
        let seed_nodes_are_gone = seed_nodes(&ids)
            .iter()
            .all(|seed_node| *seed_node == peers.ctx.me || is_gone(seed_node));
        let asked_for = peers.ctx.now().since(since);
        for id in whom_to_ask(peers.ctx.me, &ids, &answers, seed_nodes_are_gone, asked_for, upper) {
            if asked.insert(id) {
                askers.spawn(keep_asking(peers.clone(), id, since, troubles.clone()));
            }
        }
        let (gone, is_outsider) = {
            let troubles = troubles.borrow();
            let having = |what: CallFailure| {
                let those = troubles.iter().filter(move |(_, failure)| **failure == what);
                those.filter(|(id, _)| !answers.contains_key(id)).count()
            };
            // Nor does a server that was removed begin a cluster incarnation with those who did so.
            let is_removed = !members.iter().any(|member| member.id == peers.ctx.me);
            (having(CallFailure::Unreachable), is_removed || having(CallFailure::NotListed) > 0)
        };
        let given_time = peers.ctx.now().since(since) >= QUORUM_UNREACHABLE_AFTER;
        quorum_unreachable.send_replace(given_time && !majority_possible(members.len(), gone));
        match decide_recovery(peers.ctx.now(), since, upper, members.len(), &answers, is_outsider) {
            RecoveryDecision::Wait => {}
            decision => return decision,
        }
        tokio::select! {
            () = peers.answered.notified() => {}
            () = sleep(ASSESS_PAUSE) => {}
        }
    }
}

/// Asks one server again and again; what it says goes into the peers answers.
async fn keep_asking(
    peers: Arc<Peers>,
    id: ServerId,
    since: Moment,
    troubles: watch::Sender<BTreeMap<ServerId, CallFailure>>,
) {
    let mut pause = ASK_PAUSE_MIN;
    loop {
        let answer = catch_panic(ask(&peers, id, since)).await;
        let answer = answer.unwrap_or(Err(CallFailure::InvalidResponse));
        troubles.send_modify(|troubles| {
            match answer {
                Err(failure) => troubles.insert(id, failure),
                Ok(()) => troubles.remove(&id),
            };
        });
        sleep(pause).await;
        pause = (pause * 5 / 4).min(ASK_PAUSE_MAX);
    }
}

async fn ask(peers: &Arc<Peers>, id: ServerId, since: Moment) -> Result<(), CallFailure> {
    fail_point("asker");
    let (ours, asked) = (peers.ctx.status(), peers.ctx.now());
    let (question, limit) = if peers.ctx.members().len() > SMALL {
        (Request::StatusPoll(ours), STATUS_POLL_LIMIT)
    } else {
        (Request::Status(ours), STATUS_LIMIT)
    };
    match peers.call(id, question, limit).await? {
        Response::Status(status) => peers.record_answer(id, status),
        Response::StatusPoll(status, told) => {
            peers.record_answer(id, status);
            // Whoever else is asked is believed about itself only.
            if relays(&peers.ctx.ids(), &peers.answers_within(ANSWER_LIFE)).contains(&id) {
                peers.record_relayed(told, asked, since);
            }
        }
        _ => return Err(CallFailure::InvalidResponse),
    }
    Ok(())
}

/// Has this server count again once it has caught up and knows of every term in which it may have
/// voted before it forgot all at `forgot`; returns if that is a later one than its own. Why, and
/// why it waits, is in [`crate::core::recovery`].
pub(super) async fn prove_itself(peers: &Arc<Peers>, running: &Running, forgot: Moment) {
    let mut vote_restriction = peers.ctx.vote_restriction.subscribe();
    // The sender lives as long as this server.
    let _ = vote_restriction.wait_for(|q| *q == VoteRestriction::Proving).await;
    let vote_life = peers.ctx.settings().timers.election_lower;
    sleep((forgot + vote_life).since(peers.ctx.now())).await;
    loop {
        let answers = ask_again(peers).await;
        let leader_id = running.log.vote().as_ref().map(leader_id_of).unwrap_or_default();
        match prove(leader_id, peers.ctx.members().len(), &answers) {
            Proof::Ask => sleep(ASK_PAUSE_MAX).await,
            Proof::Outvoted => return,
            Proof::Given => {
                peers.ctx.lift_vote_restriction();
                // Nothing puts it back but starting anew.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Asks the others what they are, until a majority that remembers has answered: all of them, or in
/// a large group those that ask the rest. Nothing counts that was said before.
async fn ask_again(peers: &Arc<Peers>) -> BTreeMap<ServerId, Status> {
    let ids = peers.ctx.ids();
    let is_large = ids.len() > SMALL;
    let whom = if is_large {
        seed_nodes(&ids).into_iter().chain(peers.ctx.leader()).collect()
    } else {
        ids.clone()
    };
    let mut asked = JoinSet::new();
    for id in whom.into_iter().filter(|id| *id != peers.ctx.me) {
        let (peers, ours) = (peers.clone(), peers.ctx.status());
        let (question, limit) = if is_large {
            (Request::StatusPoll(ours), STATUS_POLL_LIMIT)
        } else {
            (Request::Status(ours), STATUS_LIMIT)
        };
        asked.spawn(async move { (id, peers.call(id, question, limit).await) });
    }
    let (mut answers, mut relayed) = (BTreeMap::new(), BTreeMap::new());
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((id, Ok(Response::Status(status)))) => _ = answers.insert(id, status),
            Ok((id, Ok(Response::StatusPoll(status, told)))) => {
                answers.insert(id, status);
                let new =
                    told.into_iter().filter(|told| told.age_ms == 0 && ids.contains(&told.from));
                relayed.extend(new.map(|told| (told.from, told.status)));
            }
            _ => {}
        }
        let all = with_relayed(answers.clone(), relayed.clone());
        if all.values().filter(|s| s.full).count() >= majority(ids.len()) {
            return all;
        }
    }
    with_relayed(answers, relayed)
}

/// Returns when this server has been without a vote for a while without hearing a leader.
pub(super) async fn convalesce(ctx: &Context) {
    let patience = ctx.settings().timers.election_upper * 3;
    let mut vote_restriction = ctx.vote_restriction.subscribe();
    let since = ctx.now();
    loop {
        let last = ctx.contact().map_or(since, |contact| contact.max(since));
        let rest = patience.saturating_sub(ctx.now().since(last));
        let lifted = vote_restriction.wait_for(|q| *q == VoteRestriction::Lifted);
        if rest.is_zero() {
            return;
        }
        if timeout(rest, lifted).await.is_ok() {
            // Nothing puts a server back into vote restriction but starting anew.
            std::future::pending::<()>().await;
        }
    }
}
