//! The lives of a server's nodes: each one joins a cluster or is founded into one, takes part, and ends
//! if something broke, if its group gives way to another, or if the group goes on without it.
//!
//! openraft's own timers are off. How a cluster is founded is for `founding`, why a node has to end
//! for `watchdog`, elections and rotation are for `election` and `leader`. Invariants: a node has part
//! in one cluster at a time; a later node takes along the record and nothing else; what it told of its
//! log is all that it ever acknowledged; the keys that are installed stay.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::context::Context;
use super::counters::NodeCounters;
use super::erasure::erase;
use super::records;
use super::rejected_keys::{Place, RejectedKeys};
use super::running::{Running, Stopped};
use super::shared::{draw_incarnation, LifecycleRequest, QueuedCommand, Shared};
use super::watchdog::OtherCluster;
use super::{election, heartbeat, leader, leader_loss, part, watchdog};
use crate::consensus::log_store::LogStore;
use crate::consensus::network::{ClusterCell, LeaderInfo, Links};
use crate::consensus::state_machine::{AgreedView, StateMachine};
use crate::consensus::{link_limit, raft_config, Raft};
use crate::core::agreed::{Change, Record, Refusal};
use crate::core::agreement::founding::{self, FoundedCluster};
use crate::core::agreement::ranked_record::RankedRecord;
use crate::core::config::Settings;
use crate::core::key_ring::Change as KeyChange;
use crate::core::node_id::{Incarnation, NodeId};
use crate::core::server_id::ServerId;
use crate::log_sink::Log;
use crate::supervise::{catch_panic, fail_point, Pauses};

/// Lives until the task is aborted.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut commands: mpsc::Receiver<QueuedCommand>,
    mut asked: mpsc::Receiver<LifecycleRequest>,
) {
    let mut pauses = Pauses::default();
    let life = Life { shared: shared.clone() };
    loop {
        let end = life.one_node(&mut commands, &mut asked).await;
        let held = life.leave().await;
        // What ended this one may end the next one as well.
        let may_recur = matches!(end, NodeEnd::Broken(_) | NodeEnd::Outlived);
        match end {
            NodeEnd::Removed => shared.ctx.log.note(
                "the group's server list no longer has this server; waiting as a new node to be taken \
                 in again, installed keys stay in use until they are too old",
            ),
            NodeEnd::Outlived => shared.ctx.log.debug("others know of a later life of this server"),
            NodeEnd::OtherCluster(words) => shared.ctx.log.note(format!(
                "{words}; joining it as a new node, installed keys stay in use until then"
            )),
            NodeEnd::Broken(words) => {
                shared.ctx.log.warning(format!(
                    "agreement stopped: {words}; starting anew as a new node, installed keys stay in \
                     use"
                ));
            }
        }
        let known = shared.ctx.node().incarnation.max(shared.ctx.told());
        match draw_incarnation(known) {
            Ok(incarnation) => {
                shared.ctx.views.send_replace(AgreedView::default());
                shared.ctx.begin_anew(NodeId { incarnation, ..shared.ctx.node() }, held);
                shared.keys.set_restarted(true);
                if may_recur {
                    sleep(pauses.after_failure()).await;
                }
            }
            // It has left its cluster and takes part in none; what it was stays refused.
            Err(e) => {
                shared.ctx.log.warning(format!("no random number for a new node: {e}"));
                sleep(pauses.after_failure()).await;
            }
        }
    }
}

/// Why a server becomes another node.
enum NodeEnd {
    /// Raft is broken; what was seen of that.
    Broken(Box<Stopped>),
    /// Another cluster takes precedence over this node's; which, in words.
    OtherCluster(OtherCluster),
    /// The group has gone on without it.
    Removed,
    /// Others know of a later life of this server, by a clock that has gone back since.
    Outlived,
}

/// Why a run of Raft ends.
enum End {
    /// So does the node.
    Node(NodeEnd),
    /// A reload changed what openraft takes only at its start; what goes on.
    Reconfigured(Box<Running>),
    /// A founding is under way.
    Request(LifecycleRequest),
}

/// What a run of Raft begins with.
struct Beginning {
    log: LogStore,
    machine: StateMachine,
    cluster: ClusterCell,
    /// Whether there can be no leader yet that one would have to wait for.
    cold: bool,
    /// Who wants to know when Raft runs.
    started: Option<oneshot::Sender<bool>>,
}

/// The lives of one server's nodes.
struct Life {
    shared: Arc<Shared>,
}

impl Life {
    /// The life of one node: one run of Raft after another, or none while it waits for a founding.
    async fn one_node(
        &self,
        commands: &mut mpsc::Receiver<QueuedCommand>,
        asked: &mut mpsc::Receiver<LifecycleRequest>,
    ) -> NodeEnd {
        let (shared, mut beginning) = (&self.shared, Some(self.outside()));
        loop {
            let run = catch_panic(self.run_once(beginning.take(), commands, asked)).await;
            match run
                .unwrap_or_else(|panicked| End::Node(NodeEnd::Broken(Box::new(panicked.into()))))
            {
                End::Node(end) => return end,
                End::Reconfigured(running) => {
                    shared.ctx.stop_raft().await;
                    shared.ctx.log.debug("Raft goes on with other settings");
                    let Running { log, machine, cluster, .. } = *running;
                    beginning =
                        Some(Beginning { log, machine, cluster, cold: false, started: None });
                }
                End::Request(asked) => beginning = self.obey(asked).await,
            }
        }
    }

    /// One run of Raft, or the time without one, to its end.
    async fn run_once(
        &self,
        beginning: Option<Beginning>,
        commands: &mut mpsc::Receiver<QueuedCommand>,
        asked: &mut mpsc::Receiver<LifecycleRequest>,
    ) -> End {
        let shared = &self.shared;
        let Some(mut beginning) = beginning else { return self.wait_for_founding(asked).await };
        let started = beginning.started.take();
        let running = match self.run_raft(beginning).await {
            Ok(running) => running,
            Err(reason) => return End::Node(NodeEnd::Broken(Box::new(reason))),
        };
        shared.ctx.set_running(Some(running.clone()));
        if let Some(started) = started {
            let _ = started.send(true);
        }
        self.take_part(&running, commands, asked).await
    }

    /// A node that has promised to leave its cluster, until it is founded into another, or until there
    /// is one to join.
    async fn wait_for_founding(&self, asked: &mut mpsc::Receiver<LifecycleRequest>) -> End {
        let shared = &self.shared;
        tokio::select! {
            asked = next_asked(&shared.ctx, asked) => End::Request(asked),
            other = watchdog::meet(&shared.peers) => End::Node(NodeEnd::OtherCluster(other)),
            () = watchdog::outlived(&shared.ctx) => End::Node(NodeEnd::Outlived),
        }
    }

    /// What a node begins with that is in no cluster: it takes the log of the first leader that sends it.
    fn outside(&self) -> Beginning {
        let shared = &self.shared;
        let cluster = ClusterCell::default();
        let watch = part::log_watch(&shared.ctx, &cluster);
        let log = LogStore::new(records::persist(shared)).watched(watch.clone());
        let machine = new_machine(&shared.ctx, &shared.node_counters, &shared.rejected_keys);
        Beginning { log, machine: machine.watched(watch), cluster, cold: false, started: None }
    }

    /// What a node begins with that was founded into a cluster.
    fn founded(&self, found: &FoundedCluster<Record>, started: oneshot::Sender<bool>) -> Beginning {
        let shared = &self.shared;
        let node =
            |(id, life): (&ServerId, &Incarnation)| NodeId { server: *id, incarnation: *life };
        let voters: BTreeSet<NodeId> = found.voters.iter().map(node).collect();
        let cluster = ClusterCell::from(std::sync::OnceLock::from(found.epoch));
        let watch = part::log_watch(&shared.ctx, &cluster);
        let log = LogStore::founding(voters, records::persist(shared)).watched(watch.clone());
        let machine = new_machine(&shared.ctx, &shared.node_counters, &shared.rejected_keys);
        let machine = machine.watched(watch);
        Beginning { log, machine, cluster, cold: true, started: Some(started) }
    }

    /// Leaves the present cluster: nothing is acknowledged there any more. What this server holds, the
    /// log read to its end.
    async fn leave(&self) -> RankedRecord<Record> {
        let ctx = &self.shared.ctx;
        if let Some(running) = ctx.running() {
            running.close();
        }
        let held = ctx.holding();
        ctx.stop_raft().await;
        ctx.keep(held.clone());
        held
    }

    /// Does what ended the run of Raft; with what the next one begins, if there is to be one.
    async fn obey(&self, asked: LifecycleRequest) -> Option<Beginning> {
        let shared = &self.shared;
        let ctx = &shared.ctx;
        shared.keys.set_restarted(true);
        if let LifecycleRequest::Found(found, reply) = asked {
            // What this node held before is kept; Raft had part in nothing since it promised.
            ctx.stop_raft().await;
            return Some(self.founded(&found, reply));
        }
        let held = self.leave().await;
        // Who is in no cluster goes on waiting for the log of one: nobody else may come.
        let is_outside = ctx.part(|part| part.cluster.is_none());
        let waiting = is_outside.then(|| self.outside());
        match asked {
            LifecycleRequest::Prepare(prepare, reply) => {
                // What was heard since then is of a cluster that this node has left.
                let promise = part::promise(ctx, &prepare, held, false, true);
                ctx.enter();
                let busy = founding::Refusal::HearsLeader;
                let _ = reply.send(promise.and_then(|promise| promise.ok_or(busy)));
                waiting
            }
            LifecycleRequest::Lead(call, reply) => {
                let prepares = part::lead(ctx, held, &call, true).unwrap_or_default();
                ctx.enter();
                let _ = reply.send(prepares);
                waiting
            }
            LifecycleRequest::Found(..) => None,
        }
    }

    /// Starts Raft with what there is to begin with.
    async fn run_raft(&self, beginning: Beginning) -> Result<Running, Stopped> {
        let shared = &self.shared;
        let Beginning { log, machine, cluster, cold, .. } = beginning;
        let leader_info: Arc<dyn LeaderInfo> = shared.keys.clone();
        let settings = shared.ctx.settings();
        let limit = link_limit(&settings);
        let links = Links::new(shared.peers.clone(), leader_info, cluster.clone(), limit);
        let config = raft_config(&settings);
        let raft = Raft::new(shared.ctx.node(), config, links, log.clone(), machine.clone())
            .await
            .map_err(Stopped::NotStarted)?;
        Ok(Running { raft, log, machine, limit, cluster, cold })
    }

    /// Takes part until this run of Raft has to end; says why.
    async fn take_part(
        &self,
        running: &Running,
        commands: &mut mpsc::Receiver<QueuedCommand>,
        asked: &mut mpsc::Receiver<LifecycleRequest>,
    ) -> End {
        let shared = &self.shared;
        let Shared { ctx, peers, keys, node_counters, .. } = &**shared;
        // What each heartbeat wakes has tasks of its own, so that the rest is left in peace.
        let mut busy = JoinSet::new();
        busy.spawn(election::campaign(peers.clone(), node_counters.clone(), running.clone()));
        busy.spawn(leader_loss::notice(peers.clone()));
        busy.spawn(leader_loss::keep_ready(peers.clone(), running.clone()));
        busy.spawn(heartbeat::send(peers.clone(), keys.clone(), running.clone()));
        let broken = |why| End::Node(NodeEnd::Broken(Box::new(why)));
        tokio::select! {
            Some(ended) = busy.join_next() => broken(ended.unwrap_or_else(Stopped::Task)),
            why = erase(ctx, running) => broken(why),
            why = watchdog::tell(ctx, node_counters, running) => broken(why),
            why = watchdog::watch_over(ctx.node(), running) => broken(why),
            why = leader::lead(shared, running, commands) => broken(why),
            other = watchdog::meet(peers) => End::Node(NodeEnd::OtherCluster(other)),
            () = watchdog::removed(peers) => End::Node(NodeEnd::Removed),
            () = watchdog::outlived(ctx) => End::Node(NodeEnd::Outlived),
            () = reconfigured(ctx, running) => End::Reconfigured(Box::new(running.clone())),
            asked = next_asked(ctx, asked) => End::Request(asked),
        }
    }
}

fn new_machine(
    ctx: &Arc<Context>,
    node_counters: &Arc<NodeCounters>,
    rejected_keys: &Arc<RejectedKeys>,
) -> StateMachine {
    // What was agreed before is shown on, until the cluster has what it was founded from.
    ctx.views.send_modify(|view| {
        let (agreed, since) = (view.agreed.clone(), (view.current_since, view.staged_since));
        *view = AgreedView { agreed, ..AgreedView::default() };
        (view.current_since, view.staged_since) = since;
    });
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

/// Tells and counts what came of an agreed command.
pub(super) fn record_change(
    log: &Log,
    node_counters: &NodeCounters,
    rejected_keys: &RejectedKeys,
    outcome: &Result<Change, Refusal>,
) {
    fail_point("apply");
    match outcome {
        Ok(Change::Founded(true)) => log.debug("the cluster has what it was founded from"),
        Ok(Change::Founded(false)) => {}
        Ok(Change::Key(KeyChange::Founded)) => log.debug("a sequence of keys begins"),
        Ok(Change::Key(KeyChange::Staged(g))) => {
            node_counters.count(|node_counters| &node_counters.staged);
            log.debug(format!("generation {g} is staged"))
        }
        Ok(Change::Key(KeyChange::Activated(g))) => {
            node_counters.count(|node_counters| &node_counters.rotations);
            log.debug(format!("generation {g} is current"))
        }
        Ok(Change::Key(KeyChange::Revoked)) => log
            .note("keys that were revoked in a group which went its own way are revoked here too"),
        Ok(Change::Key(KeyChange::Nothing)) => {}
        Ok(Change::MembershipChanged(version)) => {
            log.debug(format!("server list version {version} is agreed"));
        }
        Err(refusal) => rejected_keys.record(Place::Apply, refusal.clone()),
    }
}

/// The next that this node is asked and that still has sense: who hears a leader with a majority by
/// now neither promises nor founds, and nobody begins where an earlier life was counted.
async fn next_asked(
    ctx: &Context,
    queue: &mut mpsc::Receiver<LifecycleRequest>,
) -> LifecycleRequest {
    loop {
        match queue.recv().await {
            Some(LifecycleRequest::Prepare(_, reply)) if ctx.in_majority() => {
                let _ = reply.send(Err(founding::Refusal::HearsLeader));
            }
            Some(LifecycleRequest::Lead(..)) if ctx.in_majority() => {}
            // An earlier life of this server accepted that.
            Some(LifecycleRequest::Found(found, _)) if found.epoch != ctx.cluster() => {}
            Some(asked) => return asked,
            // The sender lives as long as this server.
            None => std::future::pending().await,
        }
    }
}

/// Returns when the settings ask for another configuration of openraft than the running one.
async fn reconfigured(ctx: &Context, running: &Running) {
    let mut settings = ctx.watch_settings();
    let differs = |settings: &Arc<Settings>| {
        let (new, old) = (raft_config(settings), running.raft.config());
        (link_limit(settings), &new.snapshot_policy) != (running.limit, &old.snapshot_policy)
    };
    if settings.wait_for(differs).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::ready;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::watchdog::{meet, removed};
    use super::*;
    use crate::core::agreed::{Agreed, Command};
    use crate::core::agreement::epoch::Epoch;
    use crate::core::config::Member;
    use crate::core::pre_vote::Status;
    use crate::core::server_list::ServerList;
    use crate::node::clock::founding_clock;
    use crate::node::environment::{Environment, Reply, Service, SimulatedNetwork};
    use crate::node::fixture::{Fixture, CLUSTER};
    use crate::rpc::{self, Response};
    use crate::transport::listener::Refusal as Refused;
    use crate::transport::peers::CallError;
    use crate::transport::{Body, LastSeen, LocalIdentity};

    fn member(id: u32) -> Member {
        Member {
            id: ServerId(id),
            address: format!("server{id}"),
            port: 1,
            subject: None,
            voter: true,
        }
    }

    /// Mail in a world where everybody gives the same answer.
    struct Everybody(Result<Status, CallError>);

    impl SimulatedNetwork for Everybody {
        fn open(&self, _: &LocalIdentity, _: &LastSeen) {}

        fn set_members(&self, _: &[Member]) {}

        fn request(&self, _: ServerId, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            let answer = self.0.clone().and_then(|status| {
                rpc::encode(&Response::Status(status)).ok_or(CallError::UnknownPeer)
            });
            Box::pin(ready(answer))
        }

        fn send_one_way(&self, _: ServerId, _: Body, _: Duration) {}

        fn ask_unconnected(
            &self,
            _: &Member,
            _: Body,
            _: Duration,
        ) -> Reply<Result<Body, CallError>> {
            Box::pin(ready(Err(CallError::UnknownPeer)))
        }

        fn listen(&self, _: Arc<dyn Service>) -> Box<dyn Send + Sync> {
            Box::new(())
        }
    }

    /// Mail where server 2 is of this server's group, and all others are of another one.
    struct TwoGroups;

    fn of_group(id: ServerId) -> Option<Body> {
        let node = NodeId { server: id, incarnation: Incarnation(1) };
        let other = Status {
            cluster: Epoch { counter: CLUSTER.counter + 4, founder: NodeId::of(3) },
            list_version: 15,
            ..Status::default()
        };
        let own = Status { cluster: CLUSTER, ..Status::default() };
        let status = if id == ServerId(2) { own } else { other };
        rpc::encode(&Response::Status(Status { node, quorum: true, ..status }))
    }

    impl SimulatedNetwork for TwoGroups {
        fn open(&self, _: &LocalIdentity, _: &LastSeen) {}

        fn set_members(&self, _: &[Member]) {}

        fn request(&self, id: ServerId, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            Box::pin(ready(of_group(id).ok_or(CallError::UnknownPeer)))
        }

        fn send_one_way(&self, _: ServerId, _: Body, _: Duration) {}

        fn ask_unconnected(
            &self,
            to: &Member,
            _: Body,
            _: Duration,
        ) -> Reply<Result<Body, CallError>> {
            Box::pin(ready(of_group(to.id).ok_or(CallError::UnknownPeer)))
        }

        fn listen(&self, _: Arc<dyn Service>) -> Box<dyn Send + Sync> {
            Box::new(())
        }
    }

    /// Of the other group only one is in the list, and one server's word moves nobody.
    #[tokio::test]
    async fn who_is_only_in_the_file_is_asked_too_whether_another_group_is_led() {
        for (in_file, goes) in [(3, false), (4, true)] {
            let network: Option<Arc<dyn SimulatedNetwork>> = Some(Arc::new(TwoGroups));
            let fixture = Fixture::within(Environment { network, ..Environment::default() });
            let shared = fixture.shared.clone();
            let members = (1..=in_file).map(member).collect();
            let settings = (*shared.ctx.settings()).clone();
            shared.ctx.set_settings(Settings { members, ..settings });
            shared.peers.set_members(&[1, 2, 3].map(member));
            shared.ctx.set_running(Some(fixture.running_in(None, CLUSTER).await));
            shared.ctx.record_heartbeat(true, Duration::from_secs(9));
            shared.peers.record_other_cluster_peer(ServerId(3));
            let met = timeout(Duration::from_millis(100), meet(&shared.peers)).await;
            assert_eq!(met.is_ok(), goes, "{in_file} in the file");
            shared.ctx.stop_raft().await;
        }
    }

    /// What is agreed says that this server has left; the others' word decides whether Raft agrees.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_left_the_list_forgets_once_the_others_no_longer_have_it() {
        let stranger = Err(CallError::Refused(Refused::NotAMember));
        for (answer, goes) in [(Ok(Status::default()), false), (stranger, true)] {
            let network: Option<Arc<dyn SimulatedNetwork>> = Some(Arc::new(Everybody(answer)));
            let Fixture { shared, .. } =
                Fixture::within(Environment { network, ..Environment::default() });
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

    /// It promised to leave its cluster, and nothing came of that: there is a leader with a majority.
    #[tokio::test]
    async fn a_promise_that_led_nowhere_is_left_for_a_group_that_works() {
        let cluster = |counter| Epoch { counter, ..Epoch::default() };
        for (promise, quorum, goes) in [(0, true, false), (9, true, true), (9, false, false)] {
            let theirs = Status { cluster: cluster(5), quorum, ..Status::default() };
            let network: Option<Arc<dyn SimulatedNetwork>> = Some(Arc::new(Everybody(Ok(theirs))));
            let Fixture { shared, .. } =
                Fixture::within(Environment { network, ..Environment::default() });
            shared.ctx.part(|part| {
                assert!(part.join(cluster(5)));
                part.promise = part.promise.max(cluster(promise));
            });
            shared.peers.record_other_cluster_peer(ServerId(2));
            let met = timeout(Duration::from_millis(100), meet(&shared.peers)).await;
            let words = met.map(|other| other.to_string());
            let expected = "server 2 has part in a cluster that takes precedence (epoch 5)";
            assert_eq!(words.ok().as_deref(), goes.then_some(expected));
        }
    }

    /// It was asked while it was in a cluster, and is in none by the time that it answers.
    #[tokio::test]
    async fn a_promise_leaves_a_node_that_is_in_no_cluster_where_a_log_can_come_to_it() {
        for is_in_cluster in [false, true] {
            let fixture = Fixture::new();
            let shared = fixture.shared.clone();
            if is_in_cluster {
                shared.ctx.set_running(Some(fixture.running(None).await));
            } else {
                let outside = NodeId { incarnation: Incarnation(9), ..shared.ctx.node() };
                shared.ctx.begin_anew(outside, RankedRecord::default());
            }
            let epoch = Epoch { counter: founding_clock(), founder: NodeId::of(2) };
            let (reply, answer) = oneshot::channel();
            let asked = LifecycleRequest::Prepare(
                founding::Prepare { epoch, to: shared.ctx.node() },
                reply,
            );
            let next = Life { shared: shared.clone() }.obey(asked).await;
            assert_eq!(answer.await.unwrap().map(|promise| promise.epoch), Ok(epoch));
            assert_eq!(next.is_none(), is_in_cluster);
        }
    }

    #[tokio::test]
    async fn a_later_node_has_what_the_one_before_held_and_no_part_in_its_cluster() {
        let fixture = Fixture::new();
        let shared = fixture.shared.clone();
        let running = fixture.running(None).await;
        let before = shared.ctx.node();
        shared.ctx.set_running(Some(running.clone()));
        assert!(!shared.ctx.cluster().is_none());
        let held = Life { shared: shared.clone() }.leave().await;
        let incarnation = draw_incarnation(before.incarnation).unwrap();
        assert!(incarnation > before.incarnation);
        shared.ctx.begin_anew(NodeId { incarnation, ..before }, held);
        assert!(shared.ctx.cluster().is_none() && shared.ctx.running().is_none());
        assert!(shared.ctx.status().node > before);
        let vote = openraft::Vote::new(7, before);
        let mut log = running.log;
        assert!(openraft::storage::RaftLogStorage::save_vote(&mut log, &vote).await.is_err());
    }
}
