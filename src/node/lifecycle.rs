//! The life of a server's Raft: join, start, take part, and start anew as an empty server if
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
use super::counters::NodeCounters;
use super::erasure::erase;
use super::keys::Keys;
use super::peer_client::Peers;
use super::rejected_keys::{Place, RejectedKeys};
use super::running::{Running, Stopped};
use super::shared::{QueuedRotation, Shared};
use super::watchdog::OtherCluster;
use super::{election, heartbeat, leader, leader_loss, recovery, watchdog};
use crate::consensus::log_store::LogStore;
use crate::consensus::network::{LeaderInfo, Links};
use crate::consensus::state_machine::{AgreedView, StateMachine};
use crate::consensus::{link_limit, raft_config, vote_of, Raft};
use crate::core::agreed::{Change, Refusal};
use crate::core::config::Settings;
use crate::core::key_ring::Change as KeyChange;
use crate::core::moment::Moment;
use crate::core::recovery::{LeaderId, RecoveryDecision, VoteRestriction};
use crate::log_sink::Log;
use crate::supervise::{catch_panic, fail_point};

/// Pauses before starting anew after Raft broke, doubling.
const REBIRTH_MIN: Duration = Duration::from_millis(100);
const REBIRTH_MAX: Duration = Duration::from_secs(10);

/// A life longer than this counts as a good one: the next rebirth does not wait long.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// Lives until the task is aborted.
pub(super) async fn live(shared: Arc<Shared>, mut orders: mpsc::Receiver<QueuedRotation>) {
    let mut pause = REBIRTH_MIN;
    let mut memory = None;
    loop {
        let born = Instant::now();
        let one = catch_panic(live_once(&shared, memory.take(), &mut orders)).await;
        let end = one.unwrap_or_else(|panicked| End::Broken(panicked.into()));
        if let End::Retimed(running) = end {
            // Meanwhile nobody must take this server for an empty one.
            shared.ctx.set_retiming(Some(shared.ctx.status()));
            shared.ctx.stop_raft().await;
            shared.ctx.log.debug("Raft goes on with other timers");
            let Running { log, machine, .. } = *running;
            memory = Some(Memory { log, machine, cold: false });
            continue;
        }
        shared.ctx.vote_restriction.send_replace(VoteRestriction::Silent);
        shared.ctx.stop_raft().await;
        // An empty server belongs to no cluster incarnation.
        shared.ctx.views.send_replace(AgreedView::default());
        shared.keys.set_restarted(true);
        if born.elapsed() > GOOD_LIFE {
            pause = REBIRTH_MIN;
        }
        match end {
            // Went on above, with all that it remembers.
            End::Retimed(_) => {}
            End::Removed => shared.ctx.log.note(
                "the group's server list no longer has this server; waiting as an empty server to be \
                 taken in again, installed keys stay in use until they are too old",
            ),
            End::LogDiverged => {
                // Nor does anybody have to believe that it holds what is to come.
                shared.keys.void_installed();
                shared.ctx.log.warning(
                    "the group goes on without something that this server took for agreed: too \
                     few servers remembered it; joining the group as an empty server, installed keys \
                     stay in use until then",
                );
            }
            End::ElectionDeadlock => shared.ctx.log.warning(
                "the servers that may lead have lost their memory while the server list changed, \
                 and this one may not lead yet; starting anew with them as an empty server, \
                 installed keys stay in use until there are new ones",
            ),
            End::Outvoted => shared.ctx.log.debug(
                "this server may have voted in a later term before it was started; asking anew",
            ),
            End::RecoveryTimedOut => {
                shared.ctx.log.debug("no leader came while catching up; asking anew")
            }
            End::OtherCluster(words) => shared.ctx.log.note(format!(
                "{words}; joining it as an empty server, installed keys stay in use until then"
            )),
            End::Broken(words) => {
                shared.ctx.log.warning(format!(
                    "agreement stopped: {words}; starting anew as an empty server, installed keys \
                     stay in use"
                ));
                sleep(pause).await;
                pause = (pause * 2).min(REBIRTH_MAX);
            }
        }
    }
}

/// One run of Raft, from its start, or from joining, to its end.
async fn live_once(
    shared: &Arc<Shared>,
    memory: Option<Memory>,
    orders: &mut mpsc::Receiver<QueuedRotation>,
) -> End {
    let forgot = shared.ctx.now();
    let started = match memory {
        Some(memory) => run_raft(&shared.peers, &shared.keys, memory).await,
        None => {
            let decision = recovery::ask_around(&shared.peers, &shared.quorum_unreachable).await;
            start(shared, decision).await
        }
    };
    // From now on the running Raft speaks for this server.
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
    /// Another cluster incarnation goes before this server's; which, in words.
    OtherCluster(OtherCluster),
    /// A reload changed what openraft takes only at its start; what goes on.
    Retimed(Box<Running>),
    /// It is without a vote and hears no leader: those that it relied on may be gone.
    RecoveryTimedOut,
    /// It may have voted, before it forgot, in a later term than the one that it joined in.
    Outvoted,
    /// The group has gone on without it.
    Removed,
    /// The group has gone on without what it took for agreed.
    LogDiverged,
    /// Those who may lead have forgotten everything, and this server may not.
    ElectionDeadlock,
}

/// Starts Raft with an empty store, as the decision allows.
async fn start(shared: &Arc<Shared>, decision: RecoveryDecision) -> Result<Running, Stopped> {
    let leader_id = match &decision {
        RecoveryDecision::Wait => None,
        RecoveryDecision::Rejoin { leader_id }
        | RecoveryDecision::Bootstrap { leader_id, .. }
        | RecoveryDecision::RejoinWithoutQuorum { leader_id, .. } => Some(*leader_id),
    };
    // The highest term is remembered before Raft starts, so that this server cannot follow or vote
    // below what it may have promised in its earlier life.
    let vote = leader_id.filter(|leader_id| *leader_id != LeaderId::default()).map(vote_of);
    let cold = matches!(decision, RecoveryDecision::Bootstrap { .. });
    let log =
        if cold { LogStore::founding(shared.ctx.ids(), vote) } else { LogStore::with_vote(vote) };
    let machine = new_machine(&shared.ctx, &shared.node_counters, &shared.rejected_keys);
    let running = run_raft(&shared.peers, &shared.keys, Memory { log, machine, cold }).await?;
    shared.ctx.vote_restriction.send_replace(VoteRestriction::after(&decision));
    shared.ctx.log.debug(match decision {
        RecoveryDecision::Bootstrap { .. } => {
            "nobody remembers any key; beginning a cluster incarnation with the list's members"
        }
        RecoveryDecision::RejoinWithoutQuorum { .. } => {
            "fewer than a majority remember the keys; joining them all the same"
        }
        _ => "others remember the keys; joining them without a vote until caught up",
    });
    Ok(running)
}

fn new_machine(
    ctx: &Arc<Context>,
    node_counters: &Arc<NodeCounters>,
    rejected_keys: &Arc<RejectedKeys>,
) -> StateMachine {
    let observer = {
        let (log, node_counters, rejected_keys) =
            (ctx.log.clone(), node_counters.clone(), rejected_keys.clone());
        Arc::new(move |outcome: &Result<Change, Refusal>| {
            record_change(&log, &node_counters, &rejected_keys, outcome);
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
    let leader_info: Arc<dyn LeaderInfo> = keys.clone();
    let settings = peers.ctx.settings();
    let limit = link_limit(&settings);
    let links = Links::new(peers.clone(), leader_info, limit);
    let config = raft_config(&settings);
    let raft = Raft::new(peers.ctx.me, config, links, log.clone(), machine.clone())
        .await
        .map_err(Stopped::NotStarted)?;
    Ok(Running { raft, log, machine, limit, cold })
}

/// Tells and counts what came of an agreed command.
pub(super) fn record_change(
    log: &Log,
    node_counters: &NodeCounters,
    rejected_keys: &RejectedKeys,
    outcome: &Result<Change, Refusal>,
) {
    fail_point("apply");
    match outcome {
        Ok(Change::Key(KeyChange::Founded)) => log.debug("a cluster incarnation of keys begins"),
        Ok(Change::Key(KeyChange::Staged(g))) => {
            node_counters.count(|node_counters| &node_counters.staged);
            log.debug(format!("generation {g} is staged"))
        }
        Ok(Change::Key(KeyChange::Activated(g))) => {
            node_counters.count(|node_counters| &node_counters.rotations);
            log.debug(format!("generation {g} is current"))
        }
        Ok(Change::Key(KeyChange::Resumed(g))) => {
            log.debug(format!("generation {g} is current again"))
        }
        Ok(Change::Key(KeyChange::Nothing)) => {}
        Ok(Change::MembershipChanged(version)) => {
            log.debug(format!("server list version {version} is agreed"));
        }
        Err(refusal) => rejected_keys.note(Place::Apply, refusal.clone()),
    }
}

/// Takes part until this server has to start anew; says why.
async fn take_part(
    shared: &Arc<Shared>,
    running: &Running,
    forgot: Moment,
    orders: &mut mpsc::Receiver<QueuedRotation>,
) -> End {
    let Shared { ctx, peers, keys, node_counters, .. } = &**shared;
    // What each heartbeat wakes has tasks of its own, so that the rest is left in peace.
    let mut busy = JoinSet::new();
    busy.spawn(election::campaign(peers.clone(), node_counters.clone(), running.clone()));
    busy.spawn(leader_loss::notice(peers.clone()));
    busy.spawn(heartbeat::send(peers.clone(), keys.clone(), running.clone()));
    tokio::select! {
        Some(ended) = busy.join_next() => End::Broken(ended.unwrap_or_else(Stopped::Task)),
        why = erase(ctx, running) => End::Broken(why),
        why = watchdog::tell(ctx, node_counters, running) => End::Broken(why),
        why = watchdog::watch_over(ctx.me, running) => End::Broken(why),
        why = leader::lead(shared, running, orders) => End::Broken(why),
        other = watchdog::meet(peers) => End::OtherCluster(other),
        () = recovery::convalesce(ctx) => End::RecoveryTimedOut,
        () = recovery::prove_itself(peers, running, forgot) => End::Outvoted,
        () = watchdog::removed(peers) => End::Removed,
        () = running.log.log_diverged() => End::LogDiverged,
        () = watchdog::deadlock(peers, running) => End::ElectionDeadlock,
        () = retimed(ctx, running) => End::Retimed(Box::new(running.clone())),
    }
}

/// Returns when the settings ask for another configuration of openraft than the running one.
async fn retimed(ctx: &Context, running: &Running) {
    let mut settings = ctx.watch_settings();
    let differs = |settings: &Arc<Settings>| {
        let (new, old) = (raft_config(settings), running.raft.config());
        (link_limit(settings), new.max_in_snapshot_log_to_keep, &new.snapshot_policy)
            != (running.limit, old.max_in_snapshot_log_to_keep, &old.snapshot_policy)
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
    use super::watchdog::{meet, removed};
    use super::*;
    use crate::consensus::log_id_of;
    use crate::core::agreed::{Agreed, Command};
    use crate::core::config::Member;
    use crate::core::key_ring::{ClusterId, Command as KeyCommand, Generation};
    use crate::core::recovery::{LogPosition, RecoveryDecision, Status};
    use crate::core::server_id::ServerId;
    use crate::core::server_list::ServerList;
    use crate::node::bench::Bench;
    use crate::node::environment::{DynService, Environment, Reply, SimulatedNetwork};
    use crate::rpc::{self, Response};
    use crate::transport::listener::Refusal as Refused;
    use crate::transport::peers::CallError;
    use crate::transport::{Body, LastSeen, Me};

    fn member(id: u32) -> Member {
        Member { id: ServerId(id), address: format!("server{id}"), port: 1, subject: None }
    }

    /// Mail in a world where everybody gives the same answer.
    struct Everybody(Result<Status, CallError>);

    impl SimulatedNetwork for Everybody {
        fn open(&self, _: &Me, _: &LastSeen) {}

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

        fn listen(&self, _: Arc<dyn DynService>) -> Box<dyn Send + Sync> {
            Box::new(())
        }
    }

    /// What is agreed says that this server has left; the others' word decides whether Raft agrees.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_left_the_list_forgets_once_the_others_no_longer_have_it() {
        let stranger = Err(CallError::Refused(Refused::NotAMember));
        for (answer, goes) in [(Ok(Status::default()), false), (stranger, true)] {
            let mail: Option<Arc<dyn SimulatedNetwork>> = Some(Arc::new(Everybody(answer)));
            let Bench { shared, .. } =
                Bench::within(Environment { mail, ..Environment::default() });
            let (all, others) = ([1, 2, 3].map(member), [2, 3].map(member));
            shared.peers.set_members(&all);
            let list = |version, members: &[Member]| {
                Command::ChangeMembership(ServerList::new(version, members).unwrap())
            };
            let mut agreed = Agreed::default();
            let enough = Duration::from_secs(60);
            // As long as the list has it, nobody's word makes a server forget.
            agreed.apply(list(1, &all)).unwrap();
            shared.ctx.views.send_modify(|view| view.agreed = Arc::new(agreed.clone()));
            assert!(timeout(enough, removed(&shared.peers)).await.is_err());
            agreed.apply(list(2, &others)).unwrap();
            shared.ctx.views.send_modify(|view| view.agreed = Arc::new(agreed));
            assert_eq!(timeout(enough, removed(&shared.peers)).await.is_ok(), goes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_meets_those_who_remember_begins_no_cluster_id() {
        let leader_id = LeaderId { term: 3, node: ServerId(2) };
        let cluster_id = ClusterId::from_bytes([1; 16]);
        let remembers = Status { full: true, leader_id, cluster_id, ..Status::default() };
        let mail: Option<Arc<dyn SimulatedNetwork>> = Some(Arc::new(Everybody(Ok(remembers))));
        let Bench { shared, .. } = Bench::within(Environment { mail, ..Environment::default() });
        shared.peers.set_members(&[1, 2, 3].map(member));
        let decision =
            timeout(Duration::from_secs(60), ask_around(&shared.peers, &shared.quorum_unreachable))
                .await
                .unwrap();
        assert_eq!(decision, RecoveryDecision::Rejoin { leader_id });
    }

    /// It led for a moment, founded a cluster incarnation, and lost its office before anybody agreed.
    #[tokio::test]
    async fn a_founding_that_another_leader_overtook_is_given_up() {
        let cluster_id = |byte| ClusterId::from_bytes([byte; 16]);
        let theirs = Status {
            cluster_id: cluster_id(2),
            quorum: true,
            generation: Generation(1),
            ..Status::default()
        };
        let mail: Option<Arc<dyn SimulatedNetwork>> = Some(Arc::new(Everybody(Ok(theirs))));
        let Bench { shared, .. } = Bench::within(Environment { mail, ..Environment::default() });
        let found = KeyCommand::Found { cluster_id: cluster_id(1).unwrap(), epoch: 1, from: None };
        let voters = BTreeSet::from([ServerId(1), ServerId(2), ServerId(3)]);
        let payloads = [
            EntryPayload::Membership(Membership::new(vec![voters], None)),
            EntryPayload::Blank,
            EntryPayload::Normal(Command::Key(found)),
        ];
        let leader_id = LeaderId { term: 1, node: ServerId(1) };
        let entries = (0..).zip(payloads).map(|(index, payload)| Entry {
            log_id: log_id_of(LogPosition { leader_id, index }),
            payload,
        });
        let log = LogStore::of(entries);
        let machine = new_machine(&shared.ctx, &shared.node_counters, &shared.rejected_keys);
        let running = run_raft(&shared.peers, &shared.keys, Memory { log, machine, cold: true })
            .await
            .unwrap();
        shared.ctx.set_running(Some(running));
        assert_eq!(shared.ctx.status().cluster_id, None, "nothing is applied");
        assert_eq!(shared.ctx.cluster_id(), cluster_id(1), "but every frame says so");

        shared.peers.record_other_cluster_peer(ServerId(2));
        let words = timeout(Duration::from_secs(30), meet(&shared.peers)).await.unwrap();
        assert_eq!(
            words.to_string(),
            "server 2 belongs to cluster incarnation 02020202, which goes before 01010101"
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
    use crate::core::recovery::Status;
    use crate::core::server_id::ServerId;
    use crate::node::bench::Bench;
    use crate::node::environment::{DynService, Environment, Reply, SimulatedNetwork};
    use crate::rpc::{self, Response};
    use crate::transport::peers::CallError;
    use crate::transport::{Body, LastSeen, Me};

    /// Servers that remember everything, and have heard of a term.
    #[derive(Default)]
    struct Whole {
        term: AtomicU64,
        asked: AtomicU64,
    }

    impl SimulatedNetwork for Whole {
        fn open(&self, _: &Me, _: &LastSeen) {}

        fn set_members(&self, _: &[Member]) {}

        fn request(&self, to: ServerId, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let leader_id = LeaderId { term: self.term.load(Ordering::Relaxed), node: to };
            let status = Status { full: true, leader_id, ..Status::default() };
            Box::pin(ready(Ok(rpc::encode(&Response::Status(status)).unwrap())))
        }

        fn note(&self, _: ServerId, _: Body, _: Duration) {}

        fn ask_stranger(&self, _: &Member, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            Box::pin(ready(Err(CallError::UnknownPeer)))
        }

        fn listen(&self, _: Arc<dyn DynService>) -> Box<dyn Send + Sync> {
            Box::new(())
        }
    }

    /// A server that forgot its vote asks only when no vote request of before can count any more,
    /// and what it hears then decides.
    #[tokio::test(start_paused = true)]
    async fn a_vote_that_was_forgotten_is_found_out_before_a_server_counts_again() {
        for (heard_of, counts) in [(5, true), (6, false)] {
            let mail = Arc::new(Whole::default());
            let bench =
                Bench::within(Environment { mail: Some(mail.clone()), ..Environment::default() });
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
            shared.ctx.vote_restriction.send_replace(VoteRestriction::Proving);
            sleep(vote_life - Duration::from_millis(5)).await;
            assert_eq!(mail.asked.load(Ordering::Relaxed), 0, "a request may still be under way");
            // Only now the late request arrives.
            mail.term.store(heard_of, Ordering::Relaxed);
            sleep(Duration::from_millis(100)).await;
            assert!(mail.asked.load(Ordering::Relaxed) > 0);
            assert_eq!(
                *shared.ctx.vote_restriction.borrow() == VoteRestriction::Lifted,
                counts,
                "{heard_of}"
            );
            assert_eq!(proof.is_finished(), !counts, "{heard_of}");
            proof.abort();
            let _ = running.raft.shutdown().await;
        }
    }
}
