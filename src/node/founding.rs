//! Founds a cluster where no leader with a majority is heard: at a cold start, and where a majority is
//! gone.
//!
//! Asks the others who they are, which binds nobody; prepares when [`crate::core::agreement`] says that
//! it may be; founds with those who promised. What all that means is said there. Invariants: nothing is
//! prepared while anybody who answers hears a leader with a majority, nor before a cluster that may
//! still elect one had its time; nobody is asked more often than the pauses here allow.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openssl::rand::rand_bytes;
use tokio::sync::{mpsc, oneshot, watch, Mutex};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at, Instant};

use super::context::{founding_clock, Context};
use super::part;
use super::peer_client::{Peers, STATUS_LIMIT};
use super::shared::{LifecycleRequest, Shared};
use crate::consensus::link_limit;
use crate::consensus::network::{CallFailure, RpcClient};
use crate::core::agreed::Record;
use crate::core::agreement::founding::{
    may_prepare, Answer, FoundedCluster, FoundingRequest, Prepare, Turn,
};
use crate::core::agreement::ranked_record::Voters;
use crate::core::moment::Moment;
use crate::core::pre_vote::{is_over, majority_possible, Status};
use crate::core::quorum::majority;
use crate::core::server_id::ServerId;
use crate::core::server_list::{sample, voters, NEIGHBOURS};
use crate::rpc::{RecoverRefusal, Request, Response};
use crate::supervise::{catch_panic, fail_point, kept_alive};

/// Pauses between two questions to the same server while no leader is heard.
const ASK_PAUSE_MIN: Duration = Duration::from_millis(50);
const ASK_PAUSE_MAX: Duration = Duration::from_millis(500);

/// The longest pause of a server that does not vote after a question to which there was no answer in
/// time: whom it asks, or this machine, has more to do than it can.
const SLOW_PAUSE_MAX: Duration = Duration::from_secs(4);

/// How long a server asks before it says that there is no majority: servers that are started together
/// refuse each other's connections for a moment.
const QUORUM_UNREACHABLE_AFTER: Duration = Duration::from_millis(250);

/// So many upper election bounds without a leader a cluster has for its elections, if enough of its
/// voters may be there, before another one is founded.
pub(super) const ELECTIONS: u32 = 10;

/// How many of those that vote a server asks at first that does not.
const FEW: usize = 2;

/// How many of those that do not vote are asked before a cluster is founded from nothing: they may be all
/// that is left of one.
const FOLLOWERS_ASKED: usize = 16;

/// Between two looks at the answers when none came in.
const ASSESS_PAUSE: Duration = Duration::from_millis(50);

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
            // A leader that hears that others live anew has no majority any more.
            let _ = timeout(next_look(founder.ctx()), founder.ctx().arrived.notified()).await;
        } else {
            fail_point("founding");
            // Who does not vote is told of the next leader by that one itself.
            let ctx = founder.ctx();
            if !ctx.votes() && !ctx.cluster().is_none() {
                sleep(ctx.settings().timers.election_upper).await;
            }
            look_for_majority(founder).await;
        }
    }
}

/// How long a server that belongs to a majority does at least.
fn next_look(ctx: &Context) -> Duration {
    let since = ctx.quorum_contact().map_or(Duration::MAX, |at| ctx.now().since(at));
    ctx.reach().saturating_sub(since).max(ctx.settings().timers.election_lower)
}

/// Asks the others until a leader with a majority is heard, and founds if there is none.
async fn look_for_majority(founder: &Founder) {
    let (ctx, peers) = (founder.ctx(), &founder.peers);
    let (since, upper) = (ctx.now(), ctx.settings().timers.election_upper);
    let troubles = watch::Sender::new(BTreeMap::new());
    let mut asked: BTreeSet<ServerId> = BTreeSet::new();
    let mut askers = JoinSet::new();
    // Until then a founding that came to nothing is not tried again.
    let mut rest_until = since;
    // Since when this server might prepare.
    let mut possible_since = None;
    while !ctx.in_majority() {
        let held = ctx.holding();
        let list = held.record.voters.last().cloned().unwrap_or_default();
        let silent_for = ctx.now().since(since);
        let absent = absent(&troubles.borrow());
        for id in whom_to_ask(peers, &list, silent_for, &absent) {
            if asked.insert(id) {
                askers.spawn(keep_asking(peers.clone(), id, troubles.clone()));
            }
        }
        let answers =
            believed(founder, peers.answers_within(ANSWER_LIFE.min(silent_for)), silent_for);
        let with_trouble = |what: CallFailure| -> BTreeSet<ServerId> {
            let troubles = troubles.borrow();
            let those = troubles.iter().filter(|(_, failure)| **failure == what);
            those.map(|(id, _)| *id).collect()
        };
        let gone = with_trouble(CallFailure::NobodyListens);
        let is_outsider = !with_trouble(CallFailure::NotListed).is_disjoint(&list);
        let given_time = silent_for >= QUORUM_UNREACHABLE_AFTER;
        let is_unreachable = given_time && !majority_possible(list.len(), (&absent & &list).len());
        founder.quorum_unreachable.send_replace(is_unreachable);
        // Who knows of no group, while a living server does not have it in its list, waits to be added.
        let waits_outside = is_outsider && held.rank.epoch.is_none();
        let rests = ctx.now() < rest_until || waits_outside;
        if !rests && is_due(founder, &list, (&answers, &gone), silent_for, &mut possible_since) {
            let among: Vec<Answer> = answers
                .iter()
                .filter(|(id, _)| list.contains(id))
                .map(|(_, status)| status.answer())
                .collect();
            if !found(founder, among, &answers).await {
                let is_left_out = part::give_up(ctx);
                let more = if is_left_out { upper * ELECTIONS } else { Duration::ZERO };
                rest_until = ctx.now() + pause(founder) + more;
            }
            possible_since = None;
        }
        tokio::select! {
            () = peers.answered.notified() => {}
            () = ctx.arrived.notified() => {}
            () = sleep(ASSESS_PAUSE) => {}
        }
    }
}

/// What can be taken for true of what others say. One that alone says for long that it hears a leader
/// holds up nobody who is in no cluster: those who hear one do not promise.
fn believed(
    founder: &Founder,
    mut answers: BTreeMap<ServerId, Status>,
    silent_for: Duration,
) -> BTreeMap<ServerId, Status> {
    let (ctx, wall) = (founder.ctx(), founding_clock());
    let known = ctx.part(|part| part.known());
    answers.retain(|_, status| status.cluster.is_plausible(known, wall));
    let is_long = silent_for >= ctx.settings().timers.election_upper * ELECTIONS;
    let saying = answers.values().filter(|status| status.quorum).count();
    if is_long && saying == 1 && answers.len() > 1 && ctx.cluster().is_none() {
        answers.retain(|_, status| !status.quorum);
    }
    answers
}

/// Those that vote, by the newest that is known here and by the present list. Who does not vote first asks a
/// few of them, and the leader of whom they tell: a large fleet that starts at once has enough to do.
/// Where those that vote are absent others are asked too, who may know more, and so that an operator
/// hears of them why they do not answer.
fn whom_to_ask(
    peers: &Peers,
    list: &Voters,
    silent_for: Duration,
    absent: &BTreeSet<ServerId>,
) -> BTreeSet<ServerId> {
    let (ctx, upper) = (&peers.ctx, peers.ctx.settings().timers.election_upper);
    let all = list | &voters(&ctx.members());
    let periods = silent_for.as_millis() / (upper * ELECTIONS).as_millis().max(1);
    let mut whom = all.clone();
    if absent.is_empty() && !all.contains(&ctx.me) {
        let few = FEW.saturating_mul(usize::try_from(periods).unwrap_or(FEW) + 1);
        whom = some_of(&all, ctx.me, few);
        let (answers, ids) = (peers.answers_within(ANSWER_LIFE), ctx.ids());
        let leading = answers.values().filter(|status| status.quorum);
        let leading = leading.map(|status| status.vote.node.server);
        whom.extend(leading.filter(|id| ids.contains(id)));
    }
    let is_small = ctx.members().len() <= NEIGHBOURS + 1;
    if periods > 0 && (is_small || !majority_possible(all.len(), (&all & absent).len())) {
        // One more each time, where they are many.
        let more = usize::try_from(periods).unwrap_or(NEIGHBOURS);
        whom.extend(ctx.consulted(if is_small { NEIGHBOURS } else { more }));
    }
    whom.remove(&ctx.me);
    whom
}

/// Those that cannot be reached, as far as is known; who is slow is not absent.
fn absent(troubles: &BTreeMap<ServerId, CallFailure>) -> BTreeSet<ServerId> {
    let is_absent = |failure: &CallFailure| {
        matches!(failure, CallFailure::NobodyListens | CallFailure::Unreachable)
    };
    troubles.iter().filter(|(_, failure)| is_absent(failure)).map(|(id, _)| *id).collect()
}

/// A few of these servers, others for each that asks.
fn some_of(ids: &Voters, me: ServerId, few: usize) -> BTreeSet<ServerId> {
    let first = usize::try_from(me.0).unwrap_or_default() % ids.len().max(1);
    ids.iter().cycle().skip(first).take(few.min(ids.len())).copied().collect()
}

/// Whether this server may prepare now, and should.
fn is_due(
    founder: &Founder,
    list: &Voters,
    (answers, gone): (&BTreeMap<ServerId, Status>, &BTreeSet<ServerId>),
    silent_for: Duration,
    possible_since: &mut Option<Moment>,
) -> bool {
    let ctx = founder.ctx();
    let (own, upper) = (ctx.status(), ctx.settings().timers.election_upper);
    let is_in_none = |status: &Status| status.cluster.is_none();
    // A cluster of which a majority may be left is given time to elect a leader.
    let is_dead = match ctx.running().filter(|_| !is_in_none(&own)) {
        Some(running) => is_over((own.node, own.cluster), &running.voters(), answers, gone),
        // All that vote have left what there was, whatever those hold on to who follow.
        None => {
            let mut others = list.iter().filter(|id| **id != ctx.me);
            answers.values().all(is_in_none)
                || others.all(|id| answers.get(id).is_some_and(is_in_none))
        }
    };
    let grace = if is_dead { Duration::ZERO } else { upper * ELECTIONS };
    let Some(asked_for) = silent_for.checked_sub(grace) else { return false };
    let theirs: BTreeMap<ServerId, Answer> =
        answers.iter().map(|(id, status)| (*id, status.answer())).collect();
    let is_possible = may_prepare(ctx.me, list, &theirs, asked_for, upper * 3 / 2);
    let is_first = || {
        let turn = |status: &Status| -> Turn {
            (status.cluster, status.last_log_id, Reverse(status.node.server))
        };
        let others = answers.values().filter(|status| list.contains(&status.node.server));
        others.map(turn).all(|other| other < turn(&own))
    };
    if !is_possible {
        *possible_since = None;
        return false;
    }
    let now = ctx.now();
    let since = *possible_since.get_or_insert(now);
    is_first() || now.since(since) >= upper * 2
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
    troubles: watch::Sender<BTreeMap<ServerId, CallFailure>>,
) {
    let mut pause = ASK_PAUSE_MIN;
    loop {
        let answer = catch_panic(ask_one(&peers, id)).await;
        let answer = answer.unwrap_or(Err(CallFailure::InvalidResponse));
        let most = match answer {
            Err(CallFailure::TimedOut) if !peers.ctx.votes() => SLOW_PAUSE_MAX,
            _ => ASK_PAUSE_MAX,
        };
        troubles.send_modify(|troubles| {
            match answer {
                Err(failure) => troubles.insert(id, failure),
                Ok(()) => troubles.remove(&id),
            };
        });
        sleep(pause).await;
        pause = (pause * 5 / 4).min(most);
    }
}

async fn ask_one(peers: &Arc<Peers>, id: ServerId) -> Result<(), CallFailure> {
    fail_point("asker");
    let question = Request::Status(peers.ctx.status_for(id));
    match peers.call(id, question, STATUS_LIMIT).await? {
        Response::Status(status) => peers.record_answer(id, status),
        _ => return Err(CallFailure::InvalidResponse),
    }
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
    let mut was_running = !ctx.cluster().is_none()
        || statuses.iter().any(|(id, status)| voters.contains(id) && runs(status));
    if !was_running {
        // Those that do not vote may be all that is left of a group; some of them have said so.
        let unasked: BTreeSet<ServerId> = ctx.others().filter(|id| !voters.contains(id)).collect();
        let told = statuses.iter().filter(|(id, status)| unasked.contains(id) && runs(status));
        let told = told.map(|(id, _)| *id).take(FOLLOWERS_ASKED);
        let asked: BTreeSet<ServerId> = told.chain(sample(&unasked, FOLLOWERS_ASKED)).collect();
        let (followers, is_outsider) = ask(&founder.peers, asked.into_iter()).await;
        let is_new = ctx.kept().rank.epoch.is_none();
        if followers.iter().any(|status| status.quorum) || is_outsider && is_new {
            return false;
        }
        was_running = followers.iter().any(|status| !status.cluster.is_none());
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
    if let Some(running) = ctx.running() {
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
        let (peers, question) = (peers.clone(), Request::Status(peers.ctx.status_for(id)));
        asked.spawn(async move { (id, peers.call(id, question, limit).await) });
    }
    let (mut said, mut is_outsider) = (Vec::new(), false);
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((id, Ok(Response::Status(status)))) if status.node.server == id => said.push(status),
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
    if !ctx.accept(&found) {
        return false;
    }
    let (reply, answer) = oneshot::channel();
    let own = LifecycleRequest::Found(Box::new(found.clone()), reply);
    if founder.asked.send(own).await.is_err() || !answer.await.unwrap_or(false) {
        return false;
    }
    let counted = found.voters.iter().filter(|(id, life)| !life.is_nobody() && **id != ctx.me);
    let mut told = JoinSet::new();
    for id in counted.map(|(id, _)| *id) {
        let (peers, found) = (peers.clone(), Box::new(found.clone()));
        told.spawn(async move { peers.call(id, Request::Found(found), limit).await });
    }
    let (mut begun, needed) = (1, majority(found.voters.len()));
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
