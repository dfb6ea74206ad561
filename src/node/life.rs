//! The life of a box's Raft: ask around, start, take part, and start anew as an empty box if
//! something in it broke.
//!
//! openraft's own timers are off. This module erases retired keys from log and snapshot, and watches
//! over Raft from outside, because a panic inside openraft shows in no metric. Standing for election
//! is for [`super::election`], rotation for [`super::leader`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::{LogIdOptionExt, ServerState};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, Instant};

use super::peer_client::{PeerCourier, STATUS_LIMIT};
use super::refusals::Place;
use super::running::Running;
use super::shared::{QueuedOrder, Shared};
use super::survey::ANSWER_LIFE;
use super::{beats, election, leader};
use crate::consensus::log_store::LogStore;
use crate::consensus::network::{CallFailure, Chronicle, Courier, Links};
use crate::consensus::state_machine::{AgreedView, StateMachine};
use crate::consensus::{append_limit, ballot_of, raft_config, vote_of, Raft};
use crate::core::agreed::{Change, Refusal};
use crate::core::config::{Member, Settings};
use crate::core::crowd::{hubs, relays, whom_to_ask, SMALL};
use crate::core::key_ring::Change as KeyChange;
use crate::core::moment::Moment;
use crate::core::rejoin::{
    judge_at, majority_possible, prove, with_hearsay, yields, Ballot, Proof, Quarantine, Status,
    Verdict,
};
use crate::core::server_id::ServerId;
use crate::fault::{fail_point, guarded};
use crate::rpc::{Request, Response};

/// The same for what all others say: whoever is asked may have to ask them first, and be asked by
/// all of them at once.
const SURVEY_LIMIT: Duration = Duration::from_secs(3);

/// Pauses between two questions to the same box while this one asks around.
const ASK_PAUSE_MIN: Duration = Duration::from_millis(50);
const ASK_PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long a box asks before it says that there is no majority: boxes that are started together
/// refuse each other's connections for a moment.
const HOPELESS_AFTER: Duration = Duration::from_millis(250);

/// Between two looks at the answers when none came in.
const JUDGE_PAUSE: Duration = Duration::from_millis(50);

/// Between two looks at boxes of another history, which are met with every heart beat.
const MEET_PAUSE: Duration = Duration::from_millis(200);

/// How often Raft is asked whether it still lives, and how long the answer may take.
const WATCH_PAUSE: Duration = Duration::from_secs(2);
const WATCH_LIMIT: Duration = Duration::from_secs(1);

/// How long a snapshot of a few keys may take, and the pause before erasing is tried again.
const ERASE_LIMIT: Duration = Duration::from_secs(1);
const ERASE_RETRY: Duration = Duration::from_millis(50);

/// Pauses before starting anew after Raft broke, doubling.
const REBIRTH_MIN: Duration = Duration::from_millis(100);
const REBIRTH_MAX: Duration = Duration::from_secs(10);

/// A life longer than this counts as a good one: the next rebirth does not wait long.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// Lives until the task is aborted.
pub(super) async fn live(shared: Arc<Shared>, mut orders: mpsc::Receiver<QueuedOrder>) {
    let mut pause = REBIRTH_MIN;
    let mut memory = None;
    loop {
        let born = Instant::now();
        let one = guarded(live_once(&shared, memory.take(), &mut orders)).await;
        let end = one.unwrap_or_else(|panicked| End::Broken(panicked.to_string()));
        if let End::Retimed(running) = end {
            // Meanwhile nobody must take this box for an empty one.
            shared.set_retiming(Some(shared.status()));
            shared.stop_raft().await;
            shared.log.debug("Raft goes on with other timers");
            let Running { log, machine, .. } = *running;
            memory = Some(Memory { log, machine, cold: false });
            continue;
        }
        shared.quarantine.send_replace(Quarantine::Silent);
        shared.stop_raft().await;
        // An empty box belongs to no history.
        shared.views.send_replace(AgreedView::default());
        shared.set_reborn(true);
        if born.elapsed() > GOOD_LIFE {
            pause = REBIRTH_MIN;
        }
        match end {
            // Went on above, with all that it remembers.
            End::Retimed(_) => {}
            End::LetGo => shared.log.note(
                "the group's server list no longer has this server; waiting as an empty box to be \
                 taken in again, installed keys stay in use until they are too old",
            ),
            End::Overruled => {
                // Nor does anybody have to believe that it holds what is to come.
                shared.void_installed();
                shared.log.warning(
                    "the group goes on without something that this server took for agreed: too \
                     few servers remembered it; joining the group as an empty box, installed keys \
                     stay in use until then",
                );
            }
            End::Stranded => shared.log.warning(
                "the servers that may lead have lost their memory while the server list changed, \
                 and this one may not lead yet; starting anew with them as an empty box, \
                 installed keys stay in use until there are new ones",
            ),
            End::Outvoted => shared.log.debug(
                "this server may have voted in a later term before it was started; asking anew",
            ),
            End::Unattended => shared.log.debug("no leader came while catching up; asking anew"),
            End::OtherHistory(words) => shared.log.note(format!(
                "{words}; joining it as an empty box, installed keys stay in use until then"
            )),
            End::Broken(words) => {
                shared.log.warning(format!(
                    "agreement stopped: {words}; starting anew as an empty box, installed keys \
                     stay in use"
                ));
                sleep(pause).await;
                pause = (pause * 2).min(REBIRTH_MAX);
            }
        }
    }
}

/// One run of Raft, from its start, or from asking around, to its end.
async fn live_once(
    shared: &Arc<Shared>,
    memory: Option<Memory>,
    orders: &mut mpsc::Receiver<QueuedOrder>,
) -> End {
    let forgot = shared.now();
    let started = match memory {
        Some(memory) => run_raft(shared, memory).await,
        None => {
            let verdict = ask_around(shared).await;
            start(shared, verdict).await
        }
    };
    // From now on the running Raft speaks for this box.
    shared.set_running(started.as_ref().ok().cloned());
    shared.set_retiming(None);
    match started {
        Ok(running) => take_part(shared, &running, forgot, orders).await,
        Err(reason) => End::Broken(reason),
    }
}

/// What a life of Raft begins with.
struct Memory {
    log: LogStore,
    machine: StateMachine,
    /// Whether there can be no leader yet that one would have to wait for.
    cold: bool,
}

/// Why a box starts anew.
enum End {
    /// Raft is broken; what was seen of that.
    Broken(String),
    /// Another history goes before this box's; which, in words.
    OtherHistory(String),
    /// A reload changed what openraft takes only at its start; what goes on.
    Retimed(Box<Running>),
    /// It is in quarantine and hears no leader: those that it relied on may be gone.
    Unattended,
    /// It may have voted, before it forgot, in a later term than the one that it joined in.
    Outvoted,
    /// The group has gone on without it.
    LetGo,
    /// The group has gone on without what it took for agreed.
    Overruled,
    /// Those who may lead have forgotten everything, and this box may not.
    Stranded,
}

/// Asks other boxes what they know until there is a verdict.
async fn ask_around(shared: &Arc<Shared>) -> Verdict {
    loop {
        match ask_members(shared, shared.members()).await {
            // The list changed.
            Verdict::Ask => {}
            verdict => return verdict,
        }
    }
}

/// Asks these members until there is a verdict, or until they are no longer the members.
async fn ask_members(shared: &Arc<Shared>, members: Arc<[Member]>) -> Verdict {
    let since = shared.now();
    shared.forget_answers();
    let troubles = watch::Sender::new(BTreeMap::new());
    let (mut askers, mut asked) = (JoinSet::new(), BTreeSet::new());
    let (ids, upper) = (shared.ids(), shared.settings().timers.election_upper);
    loop {
        if shared.members() != members {
            return Verdict::Ask;
        }
        let answers = shared.hearsay_within(ANSWER_LIFE);
        let is_gone = |id: &ServerId| troubles.borrow().get(id) == Some(&CallFailure::Unreachable);
        let hubs_are_gone = hubs(&ids).iter().all(|hub| *hub == shared.me || is_gone(hub));
        let asked_for = shared.now().since(since);
        for id in whom_to_ask(shared.me, &ids, &answers, hubs_are_gone, asked_for, upper) {
            if asked.insert(id) {
                askers.spawn(keep_asking(shared.clone(), id, since, troubles.clone()));
            }
        }
        let (gone, is_outsider) = {
            let troubles = troubles.borrow();
            let having = |what: CallFailure| {
                let those = troubles.iter().filter(move |(_, failure)| **failure == what);
                those.filter(|(id, _)| !answers.contains_key(id)).count()
            };
            // Nor does a box that was let go begin a history with those who did so.
            let is_let_go = !members.iter().any(|member| member.id == shared.me);
            (having(CallFailure::Unreachable), is_let_go || having(CallFailure::NotListed) > 0)
        };
        let given_time = shared.now().since(since) >= HOPELESS_AFTER;
        shared.hopeless.send_replace(given_time && !majority_possible(members.len(), gone));
        match judge_at(shared.now(), since, upper, members.len(), &answers, is_outsider) {
            Verdict::Ask => {}
            verdict => return verdict,
        }
        tokio::select! {
            () = shared.answered.notified() => {}
            () = sleep(JUDGE_PAUSE) => {}
        }
    }
}

/// Asks one box again and again; what it says goes into the shared answers.
async fn keep_asking(
    shared: Arc<Shared>,
    id: ServerId,
    since: Moment,
    troubles: watch::Sender<BTreeMap<ServerId, CallFailure>>,
) {
    let courier = PeerCourier(shared.clone());
    let mut pause = ASK_PAUSE_MIN;
    loop {
        let answer = guarded(ask(&shared, &courier, id, since)).await;
        let answer = answer.unwrap_or(Err(CallFailure::Senseless));
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

async fn ask(
    shared: &Shared,
    courier: &PeerCourier,
    id: ServerId,
    since: Moment,
) -> Result<(), CallFailure> {
    fail_point("asker");
    let (ours, asked) = (shared.status(), shared.now());
    let (question, limit) = match shared.members().len() > SMALL {
        true => (Request::Survey(ours), SURVEY_LIMIT),
        false => (Request::Status(ours), STATUS_LIMIT),
    };
    match courier.call(id, question, limit).await? {
        Response::Status(status) => shared.note_answer(id, status),
        Response::Survey(status, told) => {
            shared.note_answer(id, status);
            // Whoever else is asked is believed about itself only.
            if relays(&shared.ids(), &shared.answers_within(ANSWER_LIFE)).contains(&id) {
                shared.note_hearsay(told, asked, since);
            }
        }
        _ => return Err(CallFailure::Senseless),
    }
    Ok(())
}

/// Starts Raft with an empty store, as the verdict allows.
async fn start(shared: &Arc<Shared>, verdict: Verdict) -> Result<Running, String> {
    let ballot = match &verdict {
        Verdict::Ask => None,
        Verdict::Safe { ballot }
        | Verdict::Cold { ballot, .. }
        | Verdict::BestEffort { ballot, .. } => Some(*ballot),
    };
    // The highest ballot is remembered before Raft starts, so that this box cannot follow or vote
    // below what it may have promised in its earlier life.
    let vote = ballot.filter(|ballot| *ballot != Ballot::default()).map(vote_of);
    let cold = matches!(verdict, Verdict::Cold { .. });
    let log = match cold {
        true => LogStore::founding(shared.ids(), vote),
        false => LogStore::with_vote(vote),
    };
    let machine = new_machine(shared);
    let running = run_raft(shared, Memory { log, machine, cold }).await?;
    shared.quarantine.send_replace(Quarantine::after(&verdict));
    shared.log.debug(match verdict {
        Verdict::Cold { .. } => {
            "nobody remembers any key; beginning a history with the list's members"
        }
        Verdict::BestEffort { .. } => {
            "fewer than a majority remember the keys; joining them all the same"
        }
        _ => "others remember the keys; joining them without a vote until caught up",
    });
    Ok(running)
}

fn new_machine(shared: &Arc<Shared>) -> StateMachine {
    let observer = {
        let shared = shared.clone();
        Arc::new(move |outcome: &Result<Change, Refusal>| note_change(&shared, outcome))
    };
    let clock = {
        let shared = shared.clone();
        Arc::new(move || shared.now())
    };
    StateMachine::new(shared.views.clone(), observer, clock)
}

/// Starts Raft with what there is to begin with.
async fn run_raft(shared: &Arc<Shared>, memory: Memory) -> Result<Running, String> {
    let Memory { log, machine, cold } = memory;
    let chronicle: Arc<dyn Chronicle> = shared.clone();
    let settings = shared.settings();
    let links = Links::new(PeerCourier(shared.clone()), chronicle, append_limit(&settings));
    let config = raft_config(&settings);
    let raft = Raft::new(shared.me, config, links, log.clone(), machine.clone())
        .await
        .map_err(|e| format!("Raft did not start: {e}"))?;
    Ok(Running { raft, log, machine, cold })
}

pub(super) fn note_change(shared: &Shared, outcome: &Result<Change, Refusal>) {
    fail_point("apply");
    match outcome {
        Ok(Change::Key(KeyChange::Founded)) => shared.log.debug("a history of keys begins"),
        Ok(Change::Key(KeyChange::Staged(g))) => {
            shared.ledger.count(|ledger| &ledger.staged);
            shared.log.debug(format!("generation {g} is staged"))
        }
        Ok(Change::Key(KeyChange::Activated(g))) => {
            shared.ledger.count(|ledger| &ledger.rotations);
            shared.log.debug(format!("generation {g} is current"))
        }
        Ok(Change::Key(KeyChange::Resumed(g))) => {
            shared.log.debug(format!("generation {g} is current again"))
        }
        Ok(Change::Key(KeyChange::Nothing)) => {}
        Ok(Change::Enlisted(version)) => {
            shared.log.debug(format!("server list version {version} is agreed"));
        }
        Err(refusal) => shared.refusals.note(Place::Apply, refusal.clone()),
    }
}

/// Takes part until this box has to start anew; says why.
async fn take_part(
    shared: &Arc<Shared>,
    running: &Running,
    forgot: Moment,
    orders: &mut mpsc::Receiver<QueuedOrder>,
) -> End {
    // What each beat wakes has tasks of its own, so that the rest is left in peace.
    let mut busy = JoinSet::new();
    busy.spawn(election::stand(shared.clone(), running.clone()));
    busy.spawn(beats::beat(shared.clone(), running.clone()));
    tokio::select! {
        Some(ended) = busy.join_next() => {
            End::Broken(ended.unwrap_or_else(|e| format!("a part of it failed: {e}")))
        }
        words = erase(shared, running) => End::Broken(words),
        words = tell(shared, running) => End::Broken(words),
        words = watch_over(shared, running) => End::Broken(words),
        words = leader::lead(shared, running, orders) => End::Broken(words),
        words = meet(shared) => End::OtherHistory(words),
        () = convalesce(shared) => End::Unattended,
        () = prove_itself(shared, running, forgot) => End::Outvoted,
        () = let_go(shared) => End::LetGo,
        () = running.log.overruled() => End::Overruled,
        () = election::strand(shared, running) => End::Stranded,
        () = retimed(shared, running) => End::Retimed(Box::new(running.clone())),
    }
}

/// Returns when the settings ask for another configuration of openraft than the running one.
async fn retimed(shared: &Arc<Shared>, running: &Running) {
    let mut settings = shared.watch_settings();
    let differs = |settings: &Arc<Settings>| {
        let (new, old) = (raft_config(settings), running.raft.config());
        (new.election_timeout_min, new.max_in_snapshot_log_to_keep, &new.snapshot_policy)
            != (old.election_timeout_min, old.max_in_snapshot_log_to_keep, &old.snapshot_policy)
    };
    if settings.wait_for(differs).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Asks a box of another history what it is, whenever one is met; returns when this box's history
/// has to give way.
async fn meet(shared: &Arc<Shared>) -> String {
    let courier = PeerCourier(shared.clone());
    loop {
        shared.met.notified().await;
        let Some(id) = shared.foreigner() else { continue };
        let question = Request::Status(shared.status());
        if let Ok(Response::Status(theirs)) = courier.call(id, question, STATUS_LIMIT).await {
            // A history of which nothing was applied yet keeps others' messages out as well, and a
            // box must not be stuck with one whose founding another leader has overtaken.
            let ours = Status { history: shared.history(), ..shared.status() };
            if yields(&ours, &theirs) {
                let name = |s: &Status| s.history.map_or_else(String::new, |h| h.to_string());
                return format!(
                    "server {id} belongs to history {}, which goes before {}",
                    name(&theirs),
                    name(&ours)
                );
            }
        }
        sleep(MEET_PAUSE).await;
    }
}

/// Returns when this box has been in quarantine for a while without hearing a leader.
async fn convalesce(shared: &Arc<Shared>) {
    let patience = shared.settings().timers.election_upper * 3;
    let mut quarantine = shared.quarantine.subscribe();
    let since = shared.now();
    loop {
        let last = shared.contact().map_or(since, |contact| contact.max(since));
        let rest = patience.saturating_sub(shared.now().since(last));
        let lifted = quarantine.wait_for(|q| *q == Quarantine::Lifted);
        if rest.is_zero() {
            return;
        }
        if timeout(rest, lifted).await.is_ok() {
            // Nothing puts a box back into quarantine but starting anew.
            std::future::pending::<()>().await;
        }
    }
}

/// Has this server count again once it has caught up and knows of every term in which it may have
/// voted before it forgot all at `forgot`; returns if that is a later one than its own. Why, and
/// why it waits, is in [`crate::core::rejoin`].
async fn prove_itself(shared: &Arc<Shared>, running: &Running, forgot: Moment) {
    let mut quarantine = shared.quarantine.subscribe();
    // The sender lives as long as this server.
    let _ = quarantine.wait_for(|q| *q == Quarantine::Proving).await;
    let vote_life = shared.settings().timers.election_lower;
    sleep((forgot + vote_life).since(shared.now())).await;
    loop {
        let answers = ask_again(shared).await;
        let ballot = running.log.vote().as_ref().map(ballot_of).unwrap_or_default();
        match prove(ballot, shared.members().len(), &answers) {
            Proof::Ask => sleep(ASK_PAUSE_MAX).await,
            Proof::Outvoted => return,
            Proof::Given => {
                shared.lift_quarantine();
                // Nothing puts it back but starting anew.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Asks the others what they are, until a majority that remembers has answered: all of them, or in
/// a large group those that ask the rest. Nothing counts that was said before.
async fn ask_again(shared: &Arc<Shared>) -> BTreeMap<ServerId, Status> {
    let ids = shared.ids();
    let is_large = ids.len() > SMALL;
    let whom = match is_large {
        true => hubs(&ids).into_iter().chain(shared.leader()).collect(),
        false => ids.clone(),
    };
    let mut asked = JoinSet::new();
    for id in whom.into_iter().filter(|id| *id != shared.me) {
        let (courier, ours) = (PeerCourier(shared.clone()), shared.status());
        let (question, limit) = match is_large {
            true => (Request::Survey(ours), SURVEY_LIMIT),
            false => (Request::Status(ours), STATUS_LIMIT),
        };
        asked.spawn(async move { (id, courier.call(id, question, limit).await) });
    }
    let (mut answers, mut relayed) = (BTreeMap::new(), BTreeMap::new());
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((id, Ok(Response::Status(status)))) => _ = answers.insert(id, status),
            Ok((id, Ok(Response::Survey(status, told)))) => {
                answers.insert(id, status);
                let new =
                    told.into_iter().filter(|told| told.age_ms == 0 && ids.contains(&told.from));
                relayed.extend(new.map(|told| (told.from, told.status)));
            }
            _ => {}
        }
        let all = with_hearsay(answers.clone(), relayed.clone());
        if all.values().filter(|s| s.full).count() > ids.len() / 2 {
            return all;
        }
    }
    with_hearsay(answers, relayed)
}

/// Returns when the group has let this box go, and no leader was heard for a while. What such a box
/// remembers is of no use to anybody, and in the way of those who ask it: it would answer for a
/// group that it is no part of. A box that is taken in again may pass through an old list while
/// it catches up; then there is a leader.
async fn let_go(shared: &Arc<Shared>) {
    let mut views = shared.views.subscribe();
    let unlisted = |view: &AgreedView| {
        view.agreed.roster.as_ref().is_some_and(|list| list.get(shared.me).is_none())
    };
    loop {
        if views.wait_for(unlisted).await.is_err() {
            std::future::pending::<()>().await;
        }
        let patience = shared.settings().timers.election_upper * 3;
        let waited_from = shared.now();
        sleep(patience).await;
        let hears_leader = shared.contact().is_some_and(|at| at > waited_from);
        if !hears_leader && unlisted(&views.borrow()) && is_refused(shared).await {
            return;
        }
    }
}

/// Whether another box does not have this one as a member. Boxes forget one that the list no longer
/// has only when Raft does not count on it any more, which a box that is let go often does not
/// hear: until then its vote may be needed.
async fn is_refused(shared: &Arc<Shared>) -> bool {
    let mut asked = JoinSet::new();
    for id in shared.others() {
        let (shared, question) = (shared.clone(), Request::Status(shared.status()));
        asked.spawn(async move {
            let answer = PeerCourier(shared).call(id, question, STATUS_LIMIT).await;
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

/// Erases retired keys from log and snapshot as soon as they are retired, whatever
/// `reserved_log_items` keeps (promise 6).
async fn erase(shared: &Arc<Shared>, running: &Running) -> String {
    let mut views = shared.views.subscribe();
    loop {
        let view = views.borrow_and_update().clone();
        let retired = running.log.last_retired(view.applied, |g| view.agreed.ring.holds(g));
        if retired.is_none() && !running.machine.snapshot_is_stale() {
            if views.changed().await.is_err() {
                return "its state is gone".to_owned();
            }
            continue;
        }
        // A purge is bounded by the last snapshot, so that comes first.
        let trigger = running.raft.trigger();
        if trigger.snapshot().await.is_err() {
            return "its core is gone".to_owned();
        }
        let mut data = running.raft.data_metrics();
        let built = data.wait_for(|m| m.snapshot.index() >= Some(view.applied));
        let built = timeout(ERASE_LIMIT, built).await.is_ok();
        if let (true, Some(index)) = (built, retired) {
            if trigger.purge_log(index).await.is_err() {
                return "its core is gone".to_owned();
            }
            let mut data = running.raft.data_metrics();
            let purged = data.wait_for(|m| m.purged.index() >= Some(index));
            let _ = timeout(ERASE_LIMIT, purged).await;
        }
        sleep(ERASE_RETRY).await;
    }
}

/// One note for each change of leadership.
async fn tell(shared: &Arc<Shared>, running: &Running) -> String {
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
                shared.ledger.count(|ledger| &ledger.leaders);
                shared.log.note(match id == shared.me {
                    true => format!("this server is the leader of term {term}"),
                    false => format!("leader is server {id} in term {term}"),
                });
            }
            _ => {}
        }
        if server.changed().await.is_err() {
            return "its core is gone".to_owned();
        }
    }
}

/// Asks Raft in a way that goes through its core and its state machine, because a panic in either
/// shows nowhere else; and looks for a state machine that is ahead of its own log.
async fn watch_over(shared: &Arc<Shared>, running: &Running) -> String {
    let mut was_odd = false;
    loop {
        sleep(WATCH_PAUSE).await;
        match timeout(WATCH_LIMIT, running.raft.begin_receiving_snapshot()).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return format!("it does not answer ({e})"),
            Err(_) => return "it does not answer in time".to_owned(),
        }
        let odd = {
            let server = running.raft.server_metrics();
            let server = server.borrow();
            server.state == ServerState::Leader && server.current_leader != Some(shared.me)
        };
        if odd && was_odd {
            return "it leads by a vote that it has not got".to_owned();
        }
        was_odd = odd;
        let data = running.raft.data_metrics().borrow().clone();
        if data.last_applied.index() > data.last_log.index() {
            return "its log is shorter than what it has applied".to_owned();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::ready;

    use openraft::{Entry, EntryPayload, Membership};

    use super::*;
    use crate::consensus::log_id_of;
    use crate::core::agreed::{Agreed, Command};
    use crate::core::key_ring::{Command as KeyCommand, Generation, HistoryId};
    use crate::core::rejoin::{Ballot, LogEnd};
    use crate::core::roster::Roster;
    use crate::node::bench::Bench;
    use crate::node::outside::{Mail, Outside, Porter, Reply};
    use crate::rpc;
    use crate::transport::listener::Refusal as Refused;
    use crate::transport::peers::CallError;
    use crate::transport::{Body, Heard, Me};

    fn member(id: u32) -> Member {
        Member { id: ServerId(id), address: format!("box{id}"), port: 1, subject: None }
    }

    /// Mail in a world where everybody gives the same answer.
    struct Everybody(Result<Status, CallError>);

    impl Mail for Everybody {
        fn open(&self, _: &Me, _: &Heard) {}

        fn set_members(&self, _: &[Member]) {}

        fn request(&self, _: ServerId, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            let answer = self.0.clone().and_then(|status| {
                rpc::encode(&Response::Status(status)).ok_or(CallError::UnknownPeer)
            });
            Box::pin(ready(answer))
        }

        fn note(&self, _: ServerId, _: Body, _: Duration) {}

        fn ask_stranger(&self, _: &Member, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            Box::pin(ready(Err(CallError::UnknownPeer)))
        }

        fn listen(&self, _: Arc<dyn Porter>) -> Box<dyn Send + Sync> {
            Box::new(())
        }
    }

    /// What is agreed says that this box has left; the others' word decides whether Raft agrees.
    #[tokio::test(start_paused = true)]
    async fn a_box_that_left_the_list_forgets_once_the_others_no_longer_have_it() {
        let stranger = Err(CallError::Refused(Refused::NotAMember));
        for (answer, goes) in [(Ok(Status::default()), false), (stranger, true)] {
            let mail: Option<Arc<dyn Mail>> = Some(Arc::new(Everybody(answer)));
            let Bench { shared, .. } = Bench::within(Outside { mail, ..Outside::default() });
            let (all, others) = ([1, 2, 3].map(member), [2, 3].map(member));
            shared.set_members(&all);
            let list = |version, members: &[Member]| {
                Command::Enlist(Roster::new(version, members).unwrap())
            };
            let mut agreed = Agreed::default();
            let enough = Duration::from_secs(60);
            // As long as the list has it, nobody's word makes a box forget.
            agreed.apply(list(1, &all)).unwrap();
            shared.views.send_modify(|view| view.agreed = Arc::new(agreed.clone()));
            assert!(timeout(enough, let_go(&shared)).await.is_err());
            agreed.apply(list(2, &others)).unwrap();
            shared.views.send_modify(|view| view.agreed = Arc::new(agreed));
            assert_eq!(timeout(enough, let_go(&shared)).await.is_ok(), goes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_box_that_meets_those_who_remember_begins_no_history() {
        let ballot = Ballot { term: 3, node: ServerId(2) };
        let history = HistoryId::from_bytes([1; 16]);
        let remembers = Status { full: true, ballot, history, ..Status::default() };
        let mail: Option<Arc<dyn Mail>> = Some(Arc::new(Everybody(Ok(remembers))));
        let Bench { shared, .. } = Bench::within(Outside { mail, ..Outside::default() });
        shared.set_members(&[1, 2, 3].map(member));
        let verdict = timeout(Duration::from_secs(60), ask_around(&shared)).await.unwrap();
        assert_eq!(verdict, Verdict::Safe { ballot });
    }

    /// It led for a moment, founded a history, and lost its office before anybody agreed.
    #[tokio::test]
    async fn a_founding_that_another_leader_overtook_is_given_up() {
        let history = |byte| HistoryId::from_bytes([byte; 16]);
        let theirs = Status {
            history: history(2),
            quorum: true,
            generation: Generation(1),
            ..Status::default()
        };
        let mail: Option<Arc<dyn Mail>> = Some(Arc::new(Everybody(Ok(theirs))));
        let Bench { shared, .. } = Bench::within(Outside { mail, ..Outside::default() });
        let found = KeyCommand::Found { history: history(1).unwrap(), epoch: 1, from: None };
        let voters = BTreeSet::from([ServerId(1), ServerId(2), ServerId(3)]);
        let payloads = [
            EntryPayload::Membership(Membership::new(vec![voters], None)),
            EntryPayload::Blank,
            EntryPayload::Normal(Command::Key(found)),
        ];
        let ballot = Ballot { term: 1, node: ServerId(1) };
        let entries = (0..)
            .zip(payloads)
            .map(|(index, payload)| Entry { log_id: log_id_of(LogEnd { ballot, index }), payload });
        let log = LogStore::of(entries);
        let machine = new_machine(&shared);
        let running = run_raft(&shared, Memory { log, machine, cold: true }).await.unwrap();
        shared.set_running(Some(running));
        assert_eq!(shared.status().history, None, "nothing is applied");
        assert_eq!(shared.history(), history(1), "but every frame says so");

        shared.note_foreigner(ServerId(2));
        let words = timeout(Duration::from_secs(30), meet(&shared)).await.unwrap();
        assert_eq!(words, "server 2 belongs to history 02020202, which goes before 01010101");
        shared.stop_raft().await;
    }
}

#[cfg(test)]
mod proving {
    use std::future::ready;
    use std::sync::atomic::{AtomicU64, Ordering};

    use openraft::Vote;

    use super::*;
    use crate::core::rejoin::Ballot;
    use crate::node::bench::Bench;
    use crate::node::outside::{Mail, Outside, Porter, Reply};
    use crate::rpc;
    use crate::transport::peers::CallError;
    use crate::transport::{Body, Heard, Me};

    /// Servers that remember everything, and have heard of a term.
    #[derive(Default)]
    struct Whole {
        term: AtomicU64,
        asked: AtomicU64,
    }

    impl Mail for Whole {
        fn open(&self, _: &Me, _: &Heard) {}

        fn set_members(&self, _: &[Member]) {}

        fn request(&self, to: ServerId, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let ballot = Ballot { term: self.term.load(Ordering::Relaxed), node: to };
            let status = Status { full: true, ballot, ..Status::default() };
            Box::pin(ready(Ok(rpc::encode(&Response::Status(status)).unwrap())))
        }

        fn note(&self, _: ServerId, _: Body, _: Duration) {}

        fn ask_stranger(&self, _: &Member, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            Box::pin(ready(Err(CallError::UnknownPeer)))
        }

        fn listen(&self, _: Arc<dyn Porter>) -> Box<dyn Send + Sync> {
            Box::new(())
        }
    }

    /// A server that forgot its vote asks only when no vote request of before can count any more,
    /// and what it hears then decides.
    #[tokio::test(start_paused = true)]
    async fn a_vote_that_was_forgotten_is_found_out_before_a_server_counts_again() {
        for (heard_of, counts) in [(5, true), (6, false)] {
            let mail = Arc::new(Whole::default());
            let bench = Bench::within(Outside { mail: Some(mail.clone()), ..Outside::default() });
            let shared = &bench.shared;
            let member = |id| Member {
                id: ServerId(id),
                address: "127.0.0.1".to_owned(),
                port: id as u16,
                subject: None,
            };
            shared.set_members(&(1..=5).map(member).collect::<Vec<_>>());
            let running = bench.running(Some(Vote::new_committed(5, ServerId(9)))).await;
            let vote_life = shared.settings().timers.election_lower;
            let forgot = shared.now();
            let (of, with) = (shared.clone(), running.clone());
            let proof = tokio::spawn(async move { prove_itself(&of, &with, forgot).await });
            sleep(vote_life * 2).await;
            assert_eq!(mail.asked.load(Ordering::Relaxed), 0, "it has not caught up yet");
            proof.abort();

            let forgot = shared.now();
            let (of, with) = (shared.clone(), running.clone());
            let proof = tokio::spawn(async move { prove_itself(&of, &with, forgot).await });
            shared.quarantine.send_replace(Quarantine::Proving);
            sleep(vote_life - Duration::from_millis(5)).await;
            assert_eq!(mail.asked.load(Ordering::Relaxed), 0, "a request may still be under way");
            // Only now the late request arrives.
            mail.term.store(heard_of, Ordering::Relaxed);
            sleep(Duration::from_millis(100)).await;
            assert!(mail.asked.load(Ordering::Relaxed) > 0);
            assert_eq!(*shared.quarantine.borrow() == Quarantine::Lifted, counts, "{heard_of}");
            assert_eq!(proof.is_finished(), !counts, "{heard_of}");
            proof.abort();
            let _ = running.raft.shutdown().await;
        }
    }
}
