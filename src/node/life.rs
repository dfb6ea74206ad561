//! The life of a box's Raft: ask around, start, take part, and start anew as an empty box if
//! something in it broke.
//!
//! openraft's own timers are off. How a place is found is for `recovery`, why a run has to end for
//! `watchdog`, elections and rotation are for `election` and `leader`. Invariants: a server that
//! starts anew remembers nothing and votes for nobody; the keys that are installed stay.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, Instant};

use super::context::Context;
use super::counters::Ledger;
use super::erasure::erase;
use super::keys::Keys;
use super::peer_client::Peers;
use super::refusals::{Place, Refusals};
use super::running::{Running, Stopped};
use super::shared::{QueuedOrder, Shared};
use super::watchdog::OtherCluster;
use super::{election, heartbeat, leader, recovery, watchdog};
use crate::consensus::log_store::LogStore;
use crate::consensus::network::{Chronicle, Links};
use crate::consensus::state_machine::{AgreedView, StateMachine};
use crate::consensus::{append_limit, raft_config, vote_of, Raft};
use crate::core::agreed::{Change, Refusal};
use crate::core::config::Settings;
use crate::core::key_ring::Change as KeyChange;
use crate::core::moment::Moment;
use crate::core::rejoin::{Ballot, Quarantine, Verdict};
use crate::fault::{fail_point, guarded};
use crate::journal::Log;

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
        let end = one.unwrap_or_else(|panicked| End::Broken(panicked.into()));
        if let End::Retimed(running) = end {
            // Meanwhile nobody must take this box for an empty one.
            shared.ctx.set_retiming(Some(shared.ctx.status()));
            shared.ctx.stop_raft().await;
            shared.ctx.log.debug("Raft goes on with other timers");
            let Running { log, machine, .. } = *running;
            memory = Some(Memory { log, machine, cold: false });
            continue;
        }
        shared.ctx.quarantine.send_replace(Quarantine::Silent);
        shared.ctx.stop_raft().await;
        // An empty box belongs to no history.
        shared.ctx.views.send_replace(AgreedView::default());
        shared.keys.set_reborn(true);
        if born.elapsed() > GOOD_LIFE {
            pause = REBIRTH_MIN;
        }
        match end {
            // Went on above, with all that it remembers.
            End::Retimed(_) => {}
            End::LetGo => shared.ctx.log.note(
                "the group's server list no longer has this server; waiting as an empty box to be \
                 taken in again, installed keys stay in use until they are too old",
            ),
            End::Overruled => {
                // Nor does anybody have to believe that it holds what is to come.
                shared.keys.void_installed();
                shared.ctx.log.warning(
                    "the group goes on without something that this server took for agreed: too \
                     few servers remembered it; joining the group as an empty box, installed keys \
                     stay in use until then",
                );
            }
            End::Stranded => shared.ctx.log.warning(
                "the servers that may lead have lost their memory while the server list changed, \
                 and this one may not lead yet; starting anew with them as an empty box, \
                 installed keys stay in use until there are new ones",
            ),
            End::Outvoted => shared.ctx.log.debug(
                "this server may have voted in a later term before it was started; asking anew",
            ),
            End::Unattended => {
                shared.ctx.log.debug("no leader came while catching up; asking anew")
            }
            End::OtherHistory(words) => shared.ctx.log.note(format!(
                "{words}; joining it as an empty box, installed keys stay in use until then"
            )),
            End::Broken(words) => {
                shared.ctx.log.warning(format!(
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
    let forgot = shared.ctx.now();
    let started = match memory {
        Some(memory) => run_raft(&shared.peers, &shared.keys, memory).await,
        None => {
            let verdict = recovery::ask_around(&shared.peers, &shared.hopeless).await;
            start(shared, verdict).await
        }
    };
    // From now on the running Raft speaks for this box.
    shared.ctx.set_running(started.as_ref().ok().cloned());
    shared.ctx.set_retiming(None);
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

/// Why a server starts anew.
enum End {
    /// Raft is broken; what was seen of that.
    Broken(Stopped),
    /// Another history goes before this box's; which, in words.
    OtherHistory(OtherCluster),
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

/// Starts Raft with an empty store, as the verdict allows.
async fn start(shared: &Arc<Shared>, verdict: Verdict) -> Result<Running, Stopped> {
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
        true => LogStore::founding(shared.ctx.ids(), vote),
        false => LogStore::with_vote(vote),
    };
    let machine = new_machine(&shared.ctx, &shared.ledger, &shared.refusals);
    let running = run_raft(&shared.peers, &shared.keys, Memory { log, machine, cold }).await?;
    shared.ctx.quarantine.send_replace(Quarantine::after(&verdict));
    shared.ctx.log.debug(match verdict {
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

fn new_machine(ctx: &Arc<Context>, ledger: &Arc<Ledger>, refusals: &Arc<Refusals>) -> StateMachine {
    let observer = {
        let (log, ledger, refusals) = (ctx.log.clone(), ledger.clone(), refusals.clone());
        Arc::new(move |outcome: &Result<Change, Refusal>| {
            note_change(&log, &ledger, &refusals, outcome);
        })
    };
    let clock = ctx.clone();
    StateMachine::new(ctx.views.clone(), observer, Arc::new(move || clock.now()))
}

/// Starts Raft with what there is to begin with.
async fn run_raft(
    peers: &Arc<Peers>,
    keys: &Arc<Keys>,
    memory: Memory,
) -> Result<Running, Stopped> {
    let Memory { log, machine, cold } = memory;
    let chronicle: Arc<dyn Chronicle> = keys.clone();
    let settings = peers.ctx.settings();
    let links = Links::new(peers.clone(), chronicle, append_limit(&settings));
    let config = raft_config(&settings);
    let raft = Raft::new(peers.ctx.me, config, links, log.clone(), machine.clone())
        .await
        .map_err(Stopped::NotStarted)?;
    Ok(Running { raft, log, machine, cold })
}

/// Tells and counts what came of an agreed command.
pub(super) fn note_change(
    log: &Log,
    ledger: &Ledger,
    refusals: &Refusals,
    outcome: &Result<Change, Refusal>,
) {
    fail_point("apply");
    match outcome {
        Ok(Change::Key(KeyChange::Founded)) => log.debug("a history of keys begins"),
        Ok(Change::Key(KeyChange::Staged(g))) => {
            ledger.count(|ledger| &ledger.staged);
            log.debug(format!("generation {g} is staged"))
        }
        Ok(Change::Key(KeyChange::Activated(g))) => {
            ledger.count(|ledger| &ledger.rotations);
            log.debug(format!("generation {g} is current"))
        }
        Ok(Change::Key(KeyChange::Resumed(g))) => {
            log.debug(format!("generation {g} is current again"))
        }
        Ok(Change::Key(KeyChange::Nothing)) => {}
        Ok(Change::Enlisted(version)) => {
            log.debug(format!("server list version {version} is agreed"));
        }
        Err(refusal) => refusals.note(Place::Apply, refusal.clone()),
    }
}

/// Takes part until this box has to start anew; says why.
async fn take_part(
    shared: &Arc<Shared>,
    running: &Running,
    forgot: Moment,
    orders: &mut mpsc::Receiver<QueuedOrder>,
) -> End {
    let Shared { ctx, peers, keys, ledger, .. } = &**shared;
    // What each heartbeat wakes has tasks of its own, so that the rest is left in peace.
    let mut busy = JoinSet::new();
    busy.spawn(election::campaign(peers.clone(), ledger.clone(), running.clone()));
    busy.spawn(heartbeat::send(peers.clone(), keys.clone(), running.clone()));
    tokio::select! {
        Some(ended) = busy.join_next() => End::Broken(ended.unwrap_or_else(Stopped::Task)),
        why = erase(ctx, running) => End::Broken(why),
        why = watchdog::tell(ctx, ledger, running) => End::Broken(why),
        why = watchdog::watch_over(ctx.me, running) => End::Broken(why),
        why = leader::lead(shared, running, orders) => End::Broken(why),
        other = watchdog::meet(peers) => End::OtherHistory(other),
        () = recovery::convalesce(ctx) => End::Unattended,
        () = recovery::prove_itself(peers, running, forgot) => End::Outvoted,
        () = watchdog::let_go(peers) => End::LetGo,
        () = running.log.overruled() => End::Overruled,
        () = watchdog::strand(peers, running) => End::Stranded,
        () = retimed(ctx, running) => End::Retimed(Box::new(running.clone())),
    }
}

/// Returns when the settings ask for another configuration of openraft than the running one.
async fn retimed(ctx: &Context, running: &Running) {
    let mut settings = ctx.watch_settings();
    let differs = |settings: &Arc<Settings>| {
        let (new, old) = (raft_config(settings), running.raft.config());
        (new.election_timeout_min, new.max_in_snapshot_log_to_keep, &new.snapshot_policy)
            != (old.election_timeout_min, old.max_in_snapshot_log_to_keep, &old.snapshot_policy)
    };
    if settings.wait_for(differs).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::ready;

    use std::collections::BTreeSet;

    use openraft::{Entry, EntryPayload, Membership};
    use tokio::time::timeout;

    use super::recovery::ask_around;
    use super::watchdog::{let_go, meet};
    use super::*;
    use crate::consensus::log_id_of;
    use crate::core::agreed::{Agreed, Command};
    use crate::core::config::Member;
    use crate::core::key_ring::{Command as KeyCommand, Generation, HistoryId};
    use crate::core::rejoin::{LogEnd, Status, Verdict};
    use crate::core::roster::Roster;
    use crate::core::server_id::ServerId;
    use crate::node::bench::Bench;
    use crate::node::outside::{Mail, Outside, Porter, Reply};
    use crate::rpc::{self, Response};
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
            shared.peers.set_members(&all);
            let list = |version, members: &[Member]| {
                Command::Enlist(Roster::new(version, members).unwrap())
            };
            let mut agreed = Agreed::default();
            let enough = Duration::from_secs(60);
            // As long as the list has it, nobody's word makes a box forget.
            agreed.apply(list(1, &all)).unwrap();
            shared.ctx.views.send_modify(|view| view.agreed = Arc::new(agreed.clone()));
            assert!(timeout(enough, let_go(&shared.peers)).await.is_err());
            agreed.apply(list(2, &others)).unwrap();
            shared.ctx.views.send_modify(|view| view.agreed = Arc::new(agreed));
            assert_eq!(timeout(enough, let_go(&shared.peers)).await.is_ok(), goes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_box_that_meets_those_who_remember_begins_no_history() {
        let ballot = Ballot { term: 3, node: ServerId(2) };
        let history = HistoryId::from_bytes([1; 16]);
        let remembers = Status { full: true, ballot, history, ..Status::default() };
        let mail: Option<Arc<dyn Mail>> = Some(Arc::new(Everybody(Ok(remembers))));
        let Bench { shared, .. } = Bench::within(Outside { mail, ..Outside::default() });
        shared.peers.set_members(&[1, 2, 3].map(member));
        let verdict = timeout(Duration::from_secs(60), ask_around(&shared.peers, &shared.hopeless))
            .await
            .unwrap();
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
        let machine = new_machine(&shared.ctx, &shared.ledger, &shared.refusals);
        let running = run_raft(&shared.peers, &shared.keys, Memory { log, machine, cold: true })
            .await
            .unwrap();
        shared.ctx.set_running(Some(running));
        assert_eq!(shared.ctx.status().history, None, "nothing is applied");
        assert_eq!(shared.ctx.history(), history(1), "but every frame says so");

        shared.peers.note_foreigner(ServerId(2));
        let words = timeout(Duration::from_secs(30), meet(&shared.peers)).await.unwrap();
        assert_eq!(
            words.to_string(),
            "server 2 belongs to history 02020202, which goes before 01010101"
        );
        shared.ctx.stop_raft().await;
    }
}

#[cfg(test)]
mod proving {
    use std::future::ready;
    use std::sync::atomic::{AtomicU64, Ordering};

    use openraft::Vote;

    use super::recovery::prove_itself;
    use super::*;
    use crate::core::config::Member;
    use crate::core::rejoin::Status;
    use crate::core::server_id::ServerId;
    use crate::node::bench::Bench;
    use crate::node::outside::{Mail, Outside, Porter, Reply};
    use crate::rpc::{self, Response};
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
            shared.peers.set_members(&(1..=5).map(member).collect::<Vec<_>>());
            let running = bench.running(Some(Vote::new_committed(5, ServerId(9)))).await;
            let vote_life = shared.ctx.settings().timers.election_lower;
            let forgot = shared.ctx.now();
            let (of, with) = (shared.clone(), running.clone());
            let proof = tokio::spawn(async move { prove_itself(&of.peers, &with, forgot).await });
            sleep(vote_life * 2).await;
            assert_eq!(mail.asked.load(Ordering::Relaxed), 0, "it has not caught up yet");
            proof.abort();

            let forgot = shared.ctx.now();
            let (of, with) = (shared.clone(), running.clone());
            let proof = tokio::spawn(async move { prove_itself(&of.peers, &with, forgot).await });
            shared.ctx.quarantine.send_replace(Quarantine::Proving);
            sleep(vote_life - Duration::from_millis(5)).await;
            assert_eq!(mail.asked.load(Ordering::Relaxed), 0, "a request may still be under way");
            // Only now the late request arrives.
            mail.term.store(heard_of, Ordering::Relaxed);
            sleep(Duration::from_millis(100)).await;
            assert!(mail.asked.load(Ordering::Relaxed) > 0);
            assert_eq!(*shared.ctx.quarantine.borrow() == Quarantine::Lifted, counts, "{heard_of}");
            assert_eq!(proof.is_finished(), !counts, "{heard_of}");
            proof.abort();
            let _ = running.raft.shutdown().await;
        }
    }
}
