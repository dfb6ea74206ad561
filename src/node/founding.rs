//! Founds a cluster where no leader with a majority is heard: at a cold start, and where a majority is
//! gone.
//!
//! Asks the others who they are, which binds nobody; prepares when [`crate::core::agreement::search`]
//! says that it is time; founds with those who promised. Invariants: one founding at a time; nobody is
//! asked more often than the pauses here allow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openssl::rand::rand_bytes;
use tokio::sync::{mpsc, oneshot, watch, Mutex};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at, Instant};

use super::clock::founding_clock;
use super::context::Context;
use super::part;
use super::peer_client::{status_of, Peers, STATUS_LIMIT};
use super::shared::{LifecycleRequest, Shared};
use crate::consensus::link_limit;
use crate::consensus::network::{CallFailure, RpcClient};
use crate::core::agreed::Record;
use crate::core::agreement::founding::{Answer, FoundedCluster, FoundingRequest, Prepare};
use crate::core::agreement::ranked_record::Voters;
use crate::core::agreement::search::{for_each, longest_pause, Search, Silence, View, ELECTIONS};
use crate::core::pre_vote::Status;
use crate::core::quorum::majority;
use crate::core::server_id::ServerId;
use crate::core::server_list::sample;
use crate::rpc::{RecoverRefusal, Request, Response};
use crate::supervise::{catch_panic, fail_point, kept_alive};

/// The first pause between two questions to the same server is this part of the longest one. Servers that start
/// together do not all listen yet.
const FIRST_PAUSE: u32 = 50;

/// How many of those that do not vote are asked before a cluster is founded from nothing: they may be all
/// that is left of one.
const FOLLOWERS_ASKED: usize = 16;

/// Between two looks at the answers when none came in, and the longest one of a server that does not vote: it
/// has nothing to decide but whom to ask.
const ASSESS_PAUSE: Duration = Duration::from_millis(50);
const ASSESS_PAUSE_MAX: Duration = Duration::from_millis(500);

/// Between two looks whether a cluster that was founded has its leader.
const SETTLE_PAUSE: Duration = Duration::from_millis(10);

/// How long an order to recover waits for a founding that is under way.
const RECOVER_WAIT: Duration = Duration::from_secs(5);

/// How long another server's word about itself counts.
const ANSWER_LIFE: Duration = Duration::from_secs(2);

/// Founds whenever it is needed, until the task is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let founder = Founder::of(&shared);
    kept_alive(&shared.ctx.log, "founding where there is no leader", founder, |founder| {
        Box::pin(keep_on(founder))
    })
    .await;
}

/// What it takes to found a cluster.
pub(super) struct Founder {
    peers: Arc<Peers>,
    /// The way to the present run of Raft.
    asked: mpsc::Sender<LifecycleRequest>,
    /// Whether too few servers can be reached for a majority.
    quorum_unreachable: watch::Sender<bool>,
    /// See [`Shared::founding`].
    founding: Arc<Mutex<()>>,
}

impl Founder {
    pub fn of(shared: &Shared) -> Founder {
        Founder {
            peers: shared.peers.clone(),
            asked: shared.asked.clone(),
            quorum_unreachable: shared.quorum_unreachable.clone(),
            founding: shared.founding.clone(),
        }
    }

    fn ctx(&self) -> &Arc<Context> {
        &self.peers.ctx
    }
}

async fn keep_on(founder: &Founder) {
    loop {
        if founder.ctx().in_majority() {
            founder.quorum_unreachable.send_replace(false);
            // Set anew at each heartbeat, the timer fires only when they stay away: a server at rest does
            // not wake for it.
            tokio::select! {
                () = sleep(founder.ctx().reach()) => {}
                () = founder.ctx().heartbeat.notified() => {}
                // A leader that hears that others live anew has no majority any more.
                () = founder.ctx().arrived.notified() => {}
            }
        } else {
            fail_point("founding");
            // Who does not vote is told of the next leader by that one itself, which has all to tell.
            let ctx = founder.ctx();
            if !ctx.votes() && !ctx.cluster().is_none() {
                sleep(ctx.settings().timers.election_upper + for_each(ctx.members().len())).await;
            }
            look_for_majority(founder).await;
        }
    }
}

/// Asks the others until a leader with a majority is heard, and founds if there is none.
async fn look_for_majority(founder: &Founder) {
    let (ctx, peers) = (founder.ctx(), &founder.peers);
    let mut search = Search::new(ctx.now(), ctx.cluster());
    let silences = watch::Sender::new(BTreeMap::new());
    let mut asked: BTreeSet<ServerId> = BTreeSet::new();
    let mut askers = JoinSet::new();
    let mut assess_pause = ASSESS_PAUSE;
    while !ctx.in_majority() {
        let (now, held, own, members) = (ctx.now(), ctx.holding(), ctx.status(), ctx.members());
        let upper = ctx.settings().timers.election_upper;
        let mut answers = peers.answers_within(ANSWER_LIFE.min(search.lasts(now)));
        let (known, wall) = (ctx.part(|part| part.known()), founding_clock());
        answers.retain(|_, status| status.cluster.is_plausible(known, wall));
        let answers = search.believes(now, (&own, upper), answers);
        let configs = ctx.running().map(|running| running.voters());
        let silent = silences.borrow().clone();
        let view = View {
            now,
            own: &own,
            is_new: held.rank.epoch.is_none(),
            list: &held.record.voters.last().cloned().unwrap_or_default(),
            members: &members,
            upper,
            configs: configs.as_deref(),
            answers: &answers,
            silent: &silent,
        };
        for id in search.whom_to_ask(&view) {
            if asked.insert(id) {
                askers.spawn(keep_asking(peers.clone(), id, silences.clone()));
            }
        }
        founder.quorum_unreachable.send_replace(search.is_quorum_unreachable(&view));
        if search.is_due(&view) {
            let among: Vec<Answer> = answers
                .iter()
                .filter(|(id, _)| view.list.contains(id))
                .map(|(_, status)| status.answer())
                .collect();
            if !found(founder, among, &answers).await {
                let is_left_out = part::give_up(ctx);
                let more = if is_left_out { upper * ELECTIONS } else { Duration::ZERO };
                search.rest(ctx.now() + pause(founder) + more);
            }
        }
        tokio::select! {
            () = peers.answered.notified() => {}
            () = ctx.arrived.notified() => {}
            () = sleep(assess_pause) => {}
        }
        if !ctx.votes() {
            assess_pause = longer(assess_pause, ASSESS_PAUSE_MAX);
        }
    }
}

/// So long after a founding that came to nothing this server does not try another one.
fn pause(founder: &Founder) -> Duration {
    let timers = founder.ctx().settings().timers;
    let mut byte = [0];
    let _ = rand_bytes(&mut byte);
    timers.election_lower + timers.election_upper * u32::from(byte[0]) / 256
}

/// Asks one server again and again; what it says goes into the peers' answers.
async fn keep_asking(
    peers: Arc<Peers>,
    id: ServerId,
    silences: watch::Sender<BTreeMap<ServerId, Silence>>,
) {
    let longest = |is_slow| longest_pause(peers.ctx.votes(), peers.ctx.members().len(), is_slow);
    let mut pause = longest(false) / FIRST_PAUSE;
    loop {
        let answer = catch_panic(ask_one(&peers, id)).await;
        let answer = answer.unwrap_or(Err(CallFailure::InvalidResponse));
        let silence = match answer {
            Err(CallFailure::NobodyListens) => Some(Silence::NobodyListens),
            Err(CallFailure::Unreachable) => Some(Silence::Unreachable),
            Err(CallFailure::NotListed) => Some(Silence::NotListed),
            _ => None,
        };
        silences.send_modify(|silences| match silence {
            Some(silence) => drop(silences.insert(id, silence)),
            None => drop(silences.remove(&id)),
        });
        let is_slow = matches!(answer, Err(CallFailure::TimedOut));
        sleep(pause).await;
        pause = longer(pause, longest(is_slow));
    }
}

fn longer(pause: Duration, most: Duration) -> Duration {
    (pause * 2).min(most)
}

async fn ask_one(peers: &Arc<Peers>, id: ServerId) -> Result<(), CallFailure> {
    fail_point("asker");
    let status = status_of(peers, id, STATUS_LIMIT).await?;
    if status.node.server != id {
        return Err(CallFailure::InvalidResponse);
    }
    peers.record_answer(id, status);
    Ok(())
}

/// Prepares and founds with those who gave `answers`; whether a cluster was founded.
async fn found(
    founder: &Founder,
    answers: Vec<Answer>,
    statuses: &BTreeMap<ServerId, Status>,
) -> bool {
    let ctx = founder.ctx();
    let _alone = founder.founding.lock().await;
    let mut answers = answers;
    let voters: BTreeSet<ServerId> = answers.iter().map(|answer| answer.node.server).collect();
    let runs = |status: &Status| !status.cluster.is_none();
    let of_voters =
        || statuses.iter().filter(|(id, _)| voters.contains(id)).map(|(_, status)| status);
    let am_new = ctx.cluster().is_none();
    let mut was_running = !am_new || of_voters().any(runs);
    if am_new || !of_voters().all(runs) {
        // What one of them has forgotten may be known to nobody else who is here and votes, and to all that
        // do not vote: they may be all that is left of a group. Some of them have said so.
        let unasked: BTreeSet<ServerId> = ctx.others().filter(|id| !voters.contains(id)).collect();
        let told = statuses.iter().filter(|(id, status)| unasked.contains(id) && runs(status));
        let told = told.map(|(id, _)| *id).take(FOLLOWERS_ASKED);
        let asked: BTreeSet<ServerId> = told.chain(sample(&unasked, FOLLOWERS_ASKED)).collect();
        let (followers, is_outsider) = ask(&founder.peers, asked.into_iter()).await;
        let is_new = ctx.kept().rank.epoch.is_none();
        let may_join = followers.iter().any(|status| status.quorum) || is_outsider && is_new;
        if may_join && !was_running {
            return false;
        }
        was_running |= followers.iter().any(runs);
        answers.extend(followers.iter().map(Status::answer));
    }
    if ctx.in_majority() {
        return false;
    }
    found_with(founder, FoundingRequest { answers, survivors: None }, was_running).await
}

/// Prepares and founds; whether there is a leader then.
async fn found_with(founder: &Founder, call: FoundingRequest, was_running: bool) -> bool {
    let ctx = founder.ctx();
    let begun = ctx.now();
    let Some(prepares) = prepare(founder, call).await else { return false };
    let Some(found) = gather(founder, prepares, was_running).await else {
        ctx.log.debug("too few servers promised; no cluster was founded");
        return false;
    };
    let voters = found.voters.iter().filter(|(_, life)| !life.is_nobody()).count();
    ctx.log.debug(format!(
        "founding a cluster of {} voters with {voters} of them (epoch {})",
        found.voters.len(),
        found.epoch.counter
    ));
    if !spread(founder, found).await {
        return false;
    }
    if let Some(running) = ctx.running().filter(|running| !running.epoch().is_none()) {
        let _ = running.raft.trigger().elect().await;
    }
    let settled = async {
        while !ctx.in_majority() {
            sleep(SETTLE_PAUSE).await;
        }
    };
    let limit = ctx.settings().timers.election_upper * 2;
    let led = timeout(limit, settled).await.is_ok();
    let took = ctx.now().since(begun).as_millis();
    ctx.log.debug(format!("founding a cluster took {took} ms"));
    led
}

/// What these servers say, as far as they answer at once, and whether one of them does not have this
/// server in its list.
async fn ask(peers: &Arc<Peers>, ids: impl Iterator<Item = ServerId>) -> (Vec<Status>, bool) {
    let limit = link_limit(&peers.ctx.settings());
    let mut asked = JoinSet::new();
    for id in ids {
        let peers = peers.clone();
        asked.spawn(async move { (id, status_of(&peers, id, limit).await) });
    }
    let (mut said, mut is_outsider) = (Vec::new(), false);
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((id, Ok(status))) if status.node.server == id => said.push(status),
            Ok((_, Err(CallFailure::NotListed))) => is_outsider = true,
            _ => {}
        }
    }
    (said, is_outsider)
}

/// Founds a cluster with these servers alone, since an operator says that all others are gone for good;
/// the epoch of it.
///
/// # Errors
/// Why there is none.
pub(super) async fn recover(
    founder: &Founder,
    survivors: Voters,
    origin: &str,
) -> Result<u64, RecoverRefusal> {
    let (ctx, me) = (founder.ctx(), founder.ctx().me);
    let Ok(_alone) = timeout(RECOVER_WAIT, founder.founding.lock()).await else {
        return Err(RecoverRefusal::Busy);
    };
    if ctx.in_majority() {
        return Err(RecoverRefusal::HasMajority(me));
    }
    if !survivors.contains(&me) {
        return Err(RecoverRefusal::NotAmong(me));
    }
    let ids = ctx.ids();
    let unknown: Vec<ServerId> = survivors.difference(&ids).copied().collect();
    if !unknown.is_empty() {
        return Err(RecoverRefusal::Unknown(unknown));
    }
    let (said, _) = ask(&founder.peers, ctx.others()).await;
    if let Some(status) = said.iter().find(|status| status.quorum) {
        return Err(RecoverRefusal::HasMajority(status.node.server));
    }
    let there: Voters = said.iter().map(|status| status.node.server).chain([me]).collect();
    let silent: Vec<ServerId> = survivors.difference(&there).copied().collect();
    if !silent.is_empty() {
        return Err(RecoverRefusal::Silent(silent));
    }
    let more: Vec<ServerId> = there.difference(&survivors).copied().collect();
    if !more.is_empty() {
        return Err(RecoverRefusal::AlsoThere(more));
    }
    let names: Vec<String> = survivors.iter().map(ServerId::to_string).collect();
    ctx.log.warning(format!(
        "recover: {origin}: all servers but {} are given up for lost; these go on alone",
        names.join(", ")
    ));
    let answers = said.iter().map(Status::answer).collect();
    let call = FoundingRequest { answers, survivors: Some(survivors) };
    if found_with(founder, call, true).await {
        Ok(ctx.cluster().counter)
    } else {
        part::give_up(ctx);
        Err(RecoverRefusal::Failed)
    }
}

/// Leaves the present cluster, if there is one, for one that is to be founded.
async fn prepare(founder: &Founder, call: FoundingRequest) -> Option<Vec<Prepare>> {
    let ctx = founder.ctx();
    let prepares = part::lead(ctx, ctx.kept(), &call, false);
    if prepares.is_some() {
        return prepares;
    }
    let (reply, answer) = oneshot::channel();
    founder.asked.send(LifecycleRequest::Lead(call, reply)).await.ok()?;
    answer.await.ok()
}

/// Asks for promises, and founds once there are enough of them.
async fn gather(
    founder: &Founder,
    prepares: Vec<Prepare>,
    was_running: bool,
) -> Option<FoundedCluster<Record>> {
    let (ctx, peers) = (founder.ctx(), &founder.peers);
    let limit = link_limit(&ctx.settings()) * 2;
    let mut promises = JoinSet::new();
    for prepare in prepares {
        let peers = peers.clone();
        promises.spawn(async move {
            let id = prepare.to.server;
            (id, peers.call(id, Request::Prepare(prepare), limit).await)
        });
    }
    let deadline = Instant::now() + limit;
    let mut newest = (ctx.kept().rank, ctx.me);
    loop {
        let found = part::found(ctx, promises.is_empty());
        if let Some(found) = found {
            if !was_running {
                tell_of_files(founder, &found, newest.1);
            }
            return Some(found);
        }
        match timeout_at(deadline, promises.join_next()).await {
            Ok(Some(Ok((id, Ok(Response::Promise(Ok(promise))))))) => {
                newest = newest.max((promise.newest.rank, id));
                if promise.from.server == id {
                    part::collect(ctx, *promise);
                }
            }
            Ok(Some(Ok((id, Ok(Response::Promise(Err(refusal))))))) => {
                ctx.log.debug(format!("server {id} does not promise: {refusal}"));
            }
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(_) => return part::found(ctx, true),
        }
    }
}

/// One line where a group goes on with what a file has: nobody who runs had the keys.
fn tell_of_files(founder: &Founder, found: &FoundedCluster<Record>, from: ServerId) {
    let record = &found.base.record;
    if record.agreed.ring.cluster_id().is_some() {
        founder.ctx().log.note(format!(
            "nobody who runs has the group's keys; continuing with the keys of the state file of \
             server {from}: generation {}, {} s old",
            record.agreed.ring.newest(),
            record.age().as_secs()
        ));
    }
}

/// Brings a founding to all that it counts, this server first; whether enough begin in it.
async fn spread(founder: &Founder, found: FoundedCluster<Record>) -> bool {
    let (ctx, peers) = (founder.ctx(), &founder.peers);
    let limit = link_limit(&ctx.settings()) * 2;
    let (mut begun, needed) = (0, majority(found.voters.len()));
    if found.voters.contains_key(&ctx.me) {
        if !begin_here(founder, &found).await {
            return false;
        }
        begun = 1;
    }
    let counted = found.voters.iter().filter(|(id, life)| !life.is_nobody() && **id != ctx.me);
    let mut told = JoinSet::new();
    for id in counted.map(|(id, _)| *id) {
        let (peers, found) = (peers.clone(), Box::new(found.clone()));
        told.spawn(async move { peers.call(id, Request::Found(found), limit).await });
    }
    while begun < needed {
        match told.join_next().await {
            Some(Ok(Ok(Response::Found(true)))) => begun += 1,
            Some(_) => {}
            None => return false,
        }
    }
    // The others hear of it all the same.
    told.detach_all();
    true
}

async fn begin_here(founder: &Founder, found: &FoundedCluster<Record>) -> bool {
    if !founder.ctx().accept(found) {
        return false;
    }
    let (reply, answer) = oneshot::channel();
    let own = LifecycleRequest::Found(Box::new(found.clone()), reply);
    founder.asked.send(own).await.is_ok() && answer.await.unwrap_or(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::{poll_fn, Future as _};
    use std::sync::Mutex as StdMutex;

    use openraft::Vote;

    use super::*;
    use crate::core::node_id::NodeId;
    use crate::node::fixture::{Fixture, CLUSTER};

    const PACE: Duration = Duration::from_millis(400);
    const MS: Duration = Duration::from_millis(1);

    /// A server at rest wakes for its heartbeats anyway; each other time to look would wake it once more.
    #[tokio::test(start_paused = true)]
    async fn at_rest_it_looks_with_the_heartbeats_and_once_more_when_they_stay_away() {
        let fixture = Fixture::new();
        let ctx = &fixture.shared.ctx;
        let led = Some(Vote::new_committed(5, NodeId::of(2)));
        ctx.set_running(Some(fixture.running_in(led, CLUSTER).await));
        ctx.record_heartbeat(true, PACE);
        let (founder, begun) = (Founder::of(&fixture.shared), Instant::now());
        let looks = Arc::new(StdMutex::new(BTreeSet::new()));
        // A task of its own, which nobody polls but for what it waits for itself.
        let mut task = Box::pin(async move { keep_on(&founder).await });
        let seen = looks.clone();
        let watched = tokio::spawn(poll_fn(move |context| {
            seen.lock().unwrap().insert(begun.elapsed().as_millis());
            task.as_mut().poll(context)
        }));
        for _ in 0..20 {
            sleep(PACE).await;
            assert!(ctx.in_majority());
            ctx.record_heartbeat(true, PACE);
        }
        sleep(ctx.reach() + MS).await;
        assert!(!ctx.in_majority());
        watched.abort();
        let expected = (0..=20).map(|n| (PACE * n).as_millis());
        let after = (PACE * 20 + ctx.reach()).as_millis();
        assert_eq!(*looks.lock().unwrap(), expected.chain([after]).collect());
        ctx.stop_raft().await;
    }
}
