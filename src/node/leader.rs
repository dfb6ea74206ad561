//! What the leader does about the keys: carries out the steps that [`crate::core::rotation`]
//! decides on, gathers who has installed what, and takes operators' orders.
//!
//! Invariants: nothing is proposed unless a majority acknowledged this leader lately, since a
//! proposal that hangs may come true much later; a key counts as held by a server only when that server
//! says that its host has installed it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::impls::EmptyNode;
use openraft::{RaftMetrics, ServerState};
use openssl::rand::rand_bytes;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use super::peer_client::Peers;
use super::rejected_keys::{Place, RejectedKeys};
use super::running::{Running, Stopped};
use super::shared::{QueuedCommand, Shared};
use super::{new_key, replacement};
use crate::consensus::network::RpcClient;
use crate::consensus::state_machine::AgreedView;
use crate::consensus::Answer;
use crate::core::agreed::{Change, Command};
use crate::core::key_ring::{
    Change as KeyChange, ClusterId, Command as KeyCommand, Generation, KeyRing, RingKey,
};
use crate::core::moment::{millis, Moment};
use crate::core::node_id::NodeId;
use crate::core::rotation::{next_step_at, MemberView, Policy, Step, View};
use crate::core::server_id::ServerId;
use crate::core::server_list::ServerList;
use crate::core::stek::{Fingerprint, Stek};
use crate::log_sink::Level;
use crate::rpc::{AdminRefusal, Request, Response};
use crate::supervise::{catch_panic, fail_point};
use crate::transport::LastSeen;

/// How long one question about an installed key is held open; asked again after that.
const AWAIT_LIMIT: Duration = Duration::from_secs(1);

/// The pause before a server that did not say that it has installed the key is asked again.
const AWAIT_RETRY: Duration = Duration::from_millis(50);

/// The pause after a proposal that came to nothing.
const PROPOSAL_RETRY: Duration = Duration::from_millis(100);

/// How often a new key is drawn because the ring would not take it.
const DRAWS: usize = 3;

/// Leads whenever this server is the leader; returns only when Raft is gone.
pub(super) async fn lead(
    shared: &Arc<Shared>,
    running: &Running,
    commands: &mut mpsc::Receiver<QueuedCommand>,
) -> Stopped {
    loop {
        let ready = ready_to_lead(running);
        tokio::select! {
            ready = ready => {
                if ready.is_none() {
                    return Stopped::CoreGone;
                }
            }
            Some(queued) = commands.recv() => {
                let _ = queued.reply.send(Err(AdminRefusal::NoLeader));
                continue;
            }
        }
        let term = running.raft.metrics().borrow().current_term;
        let mut leader_term = LeaderTerm::new(shared, running);
        let mut server = running.raft.server_metrics();
        let over =
            server.wait_for(|m| m.state != ServerState::Leader || m.vote.leader_id.term != term);
        tokio::select! {
            _ = over => {}
            () = leader_term.run(commands) => {}
            () = replacement::lead_membership(&shared.peers, running) => {}
        }
        leader_term.end();
    }
}

/// Waits until this server leads and has applied its own first entry: before that a new leader may
/// not know all that was agreed. `None` if Raft is gone.
async fn ready_to_lead(running: &Running) -> Option<()> {
    // Not the whole metrics from the start: those change with every heartbeat.
    let mut server = running.raft.server_metrics();
    server.wait_for(|m| m.state == ServerState::Leader).await.ok()?;
    let ready = |m: &RaftMetrics<NodeId, EmptyNode>| {
        let applied_term = m.last_applied.map(|id| id.leader_id.term);
        m.state != ServerState::Leader || applied_term == Some(m.current_term)
    };
    running.raft.metrics().wait_for(ready).await.ok().map(|_| ())
}

/// What a server said that its host has installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Installed {
    newest: Generation,
    /// The run of the process that said so: another one does not hold it.
    incarnation: u64,
}

/// What one leader knows during one term.
struct LeaderTerm<'a> {
    shared: &'a Arc<Shared>,
    running: &'a Running,
    since: Moment,
    /// What each other server has installed, by its own word.
    installed: BTreeMap<ServerId, Installed>,
    /// Questions that are held open, and the generation that they are about.
    asking: JoinSet<(ServerId, Installed)>,
    asked_about: Generation,
    /// The operator's order that is being carried out.
    command: Option<QueuedCommand>,
}

impl<'a> LeaderTerm<'a> {
    fn new(shared: &'a Arc<Shared>, running: &'a Running) -> LeaderTerm<'a> {
        LeaderTerm {
            shared,
            running,
            since: shared.ctx.now(),
            installed: BTreeMap::new(),
            asking: JoinSet::new(),
            asked_about: Generation(0),
            command: None,
        }
    }

    async fn run(&mut self, commands: &mut mpsc::Receiver<QueuedCommand>) {
        let mut views = self.shared.ctx.views.subscribe();
        let mut own = self.shared.keys.installed.subscribe();
        let mut settings = self.shared.ctx.watch_settings();
        let mut slept = self.shared.ctx.clock.watch_slept();
        loop {
            let view = views.borrow_and_update().clone();
            own.borrow_and_update();
            fail_point("leader");
            // An earlier leader may have brought it.
            if view.has_base && !*self.shared.ctx.caught_up.borrow() {
                self.shared.ctx.record_caught_up();
            }
            self.ask_about_staged(&view);
            // All answers that are there count before anything is decided: a handover whose time
            // is over must not go on without a server whose answer nobody has read.
            while let Some(answer) = self.asking.try_join_next() {
                self.record_installed(answer);
            }
            self.ask_restarted(&view);
            // Whoever gave an order that could not be begun was told so long ago.
            let given_up = self.command.as_ref().is_some_and(|command| command.reply.is_closed());
            if given_up && view.agreed.ring.staged().is_none() {
                self.command = None;
            }
            let pause = match self.decide(&view) {
                Step::Wait(rest) => rest,
                step if self.shared.ctx.has_quorum() => {
                    if self.carry_out(&view, step).await {
                        continue;
                    } else {
                        PROPOSAL_RETRY
                    }
                }
                step => {
                    // Nothing of it was proposed, and whoever gave it should not wait in vain.
                    if !matches!(step, Step::Activate { .. }) {
                        self.reply(Err(AdminRefusal::NoLeader));
                    }
                    self.shared.ctx.settings().timers.heartbeat
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                _ = views.changed() => {}
                _ = own.changed() => {}
                _ = settings.changed() => {}
                // No timer notices that the machine was suspended; a rotation may be overdue.
                _ = slept.changed() => {}
                // Only an empty set may fail to match: that switches the branch off for this turn.
                Some(answer) = self.asking.join_next() => self.record_installed(answer),
                Some(queued) = commands.recv() => {
                    // Whoever no longer waits was told that it came to nothing.
                    if !queued.reply.is_closed() {
                        self.take_command(&view, queued);
                    }
                }
            }
        }
    }

    /// Takes the answer to one question; one that failed left nothing to take.
    fn record_installed(&mut self, answer: Result<(ServerId, Installed), JoinError>) {
        if let Ok((id, installed)) = answer {
            self.installed.insert(id, installed);
        }
    }

    /// The newest generation that a server has installed, as far as this leader knows.
    fn installed_by(&self, id: ServerId) -> Generation {
        if id == self.shared.ctx.me {
            self.shared.keys.installed_newest()
        } else {
            self.installed.get(&id).map(|said| said.newest).unwrap_or_default()
        }
    }

    fn decide(&self, view: &AgreedView) -> Step {
        if !view.has_base {
            return Step::Found;
        }
        let shared = self.shared;
        let policy = Policy {
            interval: shared.ctx.settings().key_update_interval,
            handover_timeout: shared.ctx.settings().handover_timeout,
        };
        let reach = shared.ctx.reach_by_server();
        let members: Vec<MemberView> = shared
            .ctx
            .members()
            .iter()
            .map(|member| MemberView {
                id: member.id,
                heard: shared.peers.heard.last(member.id).map(|at| shared.ctx.clock.moment_of(at)),
                reachable_within: reach(member.id),
                installed: self.installed_by(member.id),
            })
            .collect();
        let view = View {
            ring: &view.agreed.ring,
            current_since: shared.keys.current_since(view),
            staged_since: view.staged_since,
            leader_since: self.since,
            me: shared.ctx.me,
            members: &members,
            command: self.command.as_ref().map(|queued| queued.command),
        };
        next_step_at(shared.ctx.now(), &policy, &view)
    }

    /// Carries out one step; whether anything changed by it.
    async fn carry_out(&mut self, view: &AgreedView, step: Step) -> bool {
        match step {
            Step::Wait(_) => true,
            Step::Found => self.found().await,
            Step::Stage { generation, revokes } => self.stage(view, generation, revokes).await,
            Step::Activate { generation, left_behind, unreachable } => {
                self.tell_who_is_missing(generation, &left_behind, &unreachable);
                self.activate(view, generation).await
            }
        }
    }

    /// Has the cluster take over what it was founded from: the keys, unless they are too old to be used,
    /// and the list, or where there is none yet, that of this server's file.
    async fn found(&self) -> bool {
        let ctx = &self.shared.ctx;
        let mut record = ctx.base().unwrap_or_else(|| ctx.kept().record);
        let settings = ctx.settings();
        if record.age() > settings.max_key_age {
            record.agreed.ring = record.agreed.ring.without_keys();
        }
        if record.agreed.ring.cluster_id().is_none() {
            let mut bytes = [0; 16];
            let drawn = rand_bytes(&mut bytes).ok().and_then(|()| ClusterId::from_bytes(bytes));
            let Some(cluster_id) = drawn else { return false };
            if record.agreed.ring.apply(KeyCommand::Found { cluster_id }).is_err() {
                return false;
            }
        }
        if record.agreed.server_list.is_none() {
            record.agreed.server_list = ServerList::new(1, &settings.members).ok();
        }
        let command = Command::Found(Box::new(record));
        self.propose_any(command).await == Ok(Some(Ok(Change::Founded(true))))
    }

    async fn stage(&mut self, view: &AgreedView, generation: Generation, revokes: bool) -> bool {
        let Some(held) = self.key_for(view, generation) else { return false };
        let fingerprint = held.stek.fingerprint();
        self.shared.ctx.log.debug(format!("staging key {fingerprint} as generation {generation}"));
        match self.propose(KeyCommand::Stage { held, revokes }).await {
            Ok(changed) => changed,
            Err(refusal) => {
                self.reply(Err(refusal));
                false
            }
        }
    }

    /// A key that the ring will take: for the first generation this server's own initial STEK, so
    /// that the tickets which it has already issued live on.
    fn key_for(&self, view: &AgreedView, generation: Generation) -> Option<RingKey> {
        let offered = match generation {
            Generation(1) => self.shared.keys.initial(),
            _ => None,
        };
        let drawn = std::iter::repeat_with(|| match new_key() {
            Ok(key) => Some(key),
            Err(e) => {
                let line = format!("no new key: {e}; the present one stays in use");
                self.shared.ctx.log.limited(Level::Error, "no new key", line);
                None
            }
        });
        let candidates = offered.into_iter().map(Some).chain(drawn.take(DRAWS)).flatten();
        first_admitted(view.ring(), generation, candidates, &self.shared.rejected_keys)
    }

    async fn activate(&mut self, view: &AgreedView, generation: Generation) -> bool {
        let keep = self.shared.ctx.settings().ticket_keys.min(usize::from(u8::MAX)) as u8;
        let revokes = view.agreed.ring.staged().is_some_and(|staged| staged.revokes);
        match self.propose(KeyCommand::Activate { generation, keep }).await {
            Ok(changed) => {
                // What is not done yet comes next.
                if self.command.as_ref().is_some_and(|queued| queued.command.is_done_by(revokes)) {
                    self.reply(Ok(generation));
                }
                changed
            }
            Err(_) => false,
        }
    }

    fn tell_who_is_missing(
        &self,
        generation: Generation,
        left_behind: &[ServerId],
        unreachable: &[ServerId],
    ) {
        let log = &self.shared.ctx.log;
        for id in left_behind {
            log.limited(
                Level::Warning,
                &format!("left behind {id}"),
                format!(
                    "server {id} answers but has not installed generation {generation} within \
                     handover_timeout; going on without it"
                ),
            );
        }
        for id in unreachable {
            let line =
                format!("server {id} is unreachable; generation {generation} goes on without it");
            log.limited(Level::Note, &format!("unreachable {id}"), line);
        }
    }

    /// Proposes a command and waits until it is applied here; whether it changed anything. What
    /// changes nothing must not be proposed again at once.
    async fn propose(&self, command: KeyCommand) -> Result<bool, AdminRefusal> {
        match self.propose_any(Command::Key(command)).await? {
            Some(Err(refusal)) => {
                let refusal = AdminRefusal::Refused(refusal.to_string());
                self.tell_of(&refusal);
                Err(refusal)
            }
            answer => Ok(answer != Some(Ok(Change::Key(KeyChange::Nothing)))),
        }
    }

    async fn propose_any(&self, command: Command) -> Result<Answer, AdminRefusal> {
        let limit = self.shared.ctx.settings().request_timeout;
        let refusal = match timeout(limit, self.running.raft.client_write(command)).await {
            Ok(Ok(response)) => return Ok(response.data),
            // Also where another leads now: the entry may have gone out before.
            Ok(Err(_)) => AdminRefusal::Unknown,
            Err(_) => AdminRefusal::TimedOut,
        };
        self.tell_of(&refusal);
        Err(refusal)
    }

    fn tell_of(&self, refusal: &AdminRefusal) {
        let line = format!("a proposal came to nothing: {refusal}");
        self.shared.ctx.log.limited(Level::Note, "proposal", line);
    }

    /// Asks every other server to tell when it has installed the staged key, once per handover.
    fn ask_about_staged(&mut self, view: &AgreedView) {
        let key = view.agreed.ring.staged().map(|s| (s.held.generation, s.held.stek.fingerprint()));
        let key = key.filter(|_| view.has_base);
        let staged = key.map(|(generation, _)| generation).unwrap_or_default();
        if staged == self.asked_about {
            return;
        }
        self.asked_about = staged;
        // Ends the questions about the last one; those that dead servers owe would be left.
        self.asking = JoinSet::new();
        for id in key.iter().flat_map(|_| self.shared.ctx.others()) {
            let Some(key) = key else { break };
            self.asking.spawn(ask_until_installed(self.shared.peers.clone(), id, key));
        }
    }

    /// A server that restarted during the handover no longer holds what it said it did.
    fn ask_restarted(&mut self, view: &AgreedView) {
        let Some(staged) = view.agreed.ring.staged() else { return };
        let key = (staged.held.generation, staged.held.stek.fingerprint());
        let heard = &self.shared.peers.heard;
        let is_another =
            |(id, said): &(&ServerId, &Installed)| is_another(heard, **id, said.incarnation);
        let restarted: Vec<ServerId> =
            self.installed.iter().filter(is_another).map(|(id, _)| *id).collect();
        for id in restarted {
            self.installed.remove(&id);
            self.asking.spawn(ask_until_installed(self.shared.peers.clone(), id, key));
        }
    }

    fn take_command(&mut self, view: &AgreedView, queued: QueuedCommand) {
        let busy = view.agreed.ring.staged().map(|s| s.held.generation);
        let busy = busy.or(self.command.as_ref().map(|_| view.agreed.ring.newest().next()));
        match busy {
            Some(generation) => {
                let _ = queued.reply.send(Err(AdminRefusal::HandoverUnderWay(generation)));
            }
            None => {
                let word = queued.command.word();
                self.shared.ctx.log.note(format!("{word}: ordered by {}", queued.origin));
                self.command = Some(queued);
            }
        }
    }

    /// Answers the order that is being carried out, if there is one.
    fn reply(&mut self, answer: Result<Generation, AdminRefusal>) {
        if let Some(queued) = self.command.take() {
            let _ = queued.reply.send(answer);
        }
    }

    fn end(&mut self) {
        self.reply(Err(AdminRefusal::Unknown));
    }
}

/// The first of `candidates` that the ring will take.
pub(super) fn first_admitted(
    ring: &KeyRing,
    generation: Generation,
    candidates: impl Iterator<Item = Stek>,
    rejected_keys: &RejectedKeys,
) -> Option<RingKey> {
    let mut all = candidates.map(|stek| RingKey { generation, stek });
    all.find(|held| {
        ring.admits(held).map_err(|refusal| rejected_keys.record(Place::Leader, refusal)).is_ok()
    })
}

/// Whether another run than this one is known to answer at a server's address by now.
fn is_another(heard: &LastSeen, id: ServerId, incarnation: u64) -> bool {
    heard.at_address(id).is_some_and(|now| now != incarnation)
}

async fn ask_until_installed(
    peers: Arc<Peers>,
    id: ServerId,
    (generation, key): (Generation, Fingerprint),
) -> (ServerId, Installed) {
    let limit_ms = millis(AWAIT_LIMIT).try_into().unwrap_or(u32::MAX);
    // The answer may be held back for the whole limit, and still has to travel.
    let patience = AWAIT_LIMIT + peers.ctx.settings().timers.election_upper;
    loop {
        let question = async {
            fail_point("ask-installed");
            peers.call(id, Request::AwaitInstalled { generation, key, limit_ms }, patience).await
        };
        match catch_panic(question).await {
            Ok(Ok(Response::Installed { newest, incarnation }))
                if newest >= generation && !is_another(&peers.heard, id, incarnation) =>
            {
                // What it says of others that it may have is not what it was asked.
                return (id, Installed { newest: generation, incarnation });
            }
            // Whoever does not hold its answer back must not keep the leader busy either.
            _ => sleep(AWAIT_RETRY).await,
        }
    }
}

/// Has the most advanced member campaign before this leader leaves, and waits for the
/// new leader. Heartbeats stop, since they would keep the others from voting.
pub(super) async fn transfer_leadership(peers: &Arc<Peers>) {
    let Some(running) = peers.ctx.running() else { return };
    peers.ctx.leaving.send_replace(true);
    let metrics = running.raft.metrics().borrow().clone();
    if metrics.state != ServerState::Leader {
        return;
    }
    let bound = peers.ctx.settings().timers.election_upper;
    let replication = metrics.replication.unwrap_or_default();
    let reach = peers.ctx.reach();
    let up = |node: &NodeId| peers.heard.last(node.server).is_some_and(|at| at.elapsed() < reach);
    let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
    let me = peers.ctx.node();
    let may_lead = |node: &NodeId| *node != me && voters.contains(node) && up(node);
    let advanced = replication.into_iter().filter(|(id, _)| may_lead(id));
    let Some((successor, _)) = advanced.max_by_key(|(_, matched)| *matched) else { return };
    let successor = successor.server;
    peers.ctx.log.debug(format!("leaving; server {successor} is to lead"));
    if peers.call(successor, Request::TimeoutNow, bound).await.is_ok() {
        let mut server = running.raft.server_metrics();
        let _ = server.wait_for(|m| m.current_leader.is_some_and(|node| node != me)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::Instant;

    use super::*;
    use crate::core::config::Member;
    use crate::node::environment::{Environment, Reply, Service, SimulatedNetwork};
    use crate::node::fixture::Fixture;
    use crate::rpc;
    use crate::transport::peers::CallError;
    use crate::transport::{Body, LocalIdentity};

    const OTHER: ServerId = ServerId(2);

    /// A server that has installed everything, each run of its process.
    #[derive(Default)]
    struct Restarting {
        incarnation: AtomicU64,
        asked: AtomicU64,
    }

    impl SimulatedNetwork for Restarting {
        fn open(&self, _: &LocalIdentity, _: &LastSeen) {}

        fn set_members(&self, _: &[Member]) {}

        fn request(&self, _: ServerId, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let incarnation = self.incarnation.load(Ordering::Relaxed);
            let answer = Response::Installed { newest: Generation(9), incarnation };
            Box::pin(ready(Ok(rpc::encode(&answer).unwrap())))
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

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_for_the_run_of_the_process_that_gave_it() {
        let network = Arc::new(Restarting::default());
        let fixture = Fixture::within(Environment {
            network: Some(network.clone()),
            ..Environment::default()
        });
        let shared = &fixture.shared;
        let key = crate::node::fixture::stek(9).fingerprint();
        let ask = || ask_until_installed(shared.peers.clone(), OTHER, (Generation(9), key));
        let said = |incarnation| (OTHER, Installed { newest: Generation(9), incarnation });
        network.incarnation.store(5, Ordering::Relaxed);
        // No connection to its address tells who is there.
        assert_eq!(ask().await, said(5));
        // Another run is there by now: the answer comes too late, and is not asked for all the time.
        shared.peers.heard.record_answer(OTHER, 6, Instant::now());
        let before = network.asked.load(Ordering::Relaxed);
        assert!(timeout(AWAIT_RETRY * 9, ask()).await.is_err());
        let asked = network.asked.load(Ordering::Relaxed) - before;
        assert!((5..=10).contains(&asked), "asked {asked} times");
        network.incarnation.store(6, Ordering::Relaxed);
        assert_eq!(ask().await, said(6));
        assert!(!is_another(&shared.peers.heard, OTHER, 6));
        shared.peers.heard.forget_answer(OTHER);
        assert!(!is_another(&shared.peers.heard, OTHER, 5), "nobody tells that it is another");
    }
}
