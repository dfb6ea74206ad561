//! For the leader: has Raft's membership follow the agreed server list and the lives of its servers.
//!
//! What the next step is, is [`crate::core::agreement::replacement`]'s to say; each is dropped if it
//! takes too long, and looked for again. Invariants: nothing is done by a leader without a majority.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::impls::EmptyNode;
use openraft::{ChangeMembers, LogIdOptionExt};
use tokio::time::{sleep, timeout, Instant};

use super::peer_client::{Peers, STATUS_LIMIT};
use super::running::Running;
use crate::consensus::leader_id_of;
use crate::consensus::network::RpcClient;
use crate::core::agreed::Command;
use crate::core::agreement::ranked_record::Voters;
use crate::core::agreement::replacement::{
    is_waiting, next_step, Arrival, Configuration, Step, View,
};
use crate::core::key_ring::Command as KeyCommand;
use crate::core::node_id::NodeId;
use crate::core::server_id::ServerId;
use crate::core::server_list::ServerList;
use crate::log_sink::Level;
use crate::rpc::{Request, Response};
use crate::supervise::fail_point;

/// How many upper election bounds one step may take: two agreements.
const STEP_LIMIT: u32 = 2;

/// Between two looks while something is to be done.
const STEP_PAUSE: Duration = Duration::from_millis(100);

/// While a server takes the log that is to vote.
const LOG_PAUSE: Duration = Duration::from_millis(2);

/// For each node of the membership, between two changes for the sake of servers that do not vote: each change
/// costs as much as it has nodes, and a large fleet that starts has servers arrive all the time.
const PAUSE_PER_NODE: Duration = Duration::from_micros(500);

/// What one leader knows of servers that join.
struct Replacement<'a> {
    peers: &'a Arc<Peers>,
    running: &'a Running,
    /// Whose revocations are known here.
    merged: BTreeSet<NodeId>,
    /// The list that the membership was last seen to follow.
    followed: Option<u64>,
    /// When those that do not vote were last added or removed.
    followers_changed: Option<Instant>,
}

/// Goes on until the task is aborted.
pub(super) async fn lead_membership(peers: &Arc<Peers>, running: &Running) {
    let mut views = peers.ctx.views.subscribe();
    let mut server = running.raft.server_metrics();
    let (merged, followed, followers_changed) = (BTreeSet::new(), None, None);
    let mut replacement = Replacement { peers, running, merged, followed, followers_changed };
    loop {
        let arrived = peers.ctx.arrived.notified();
        views.borrow_and_update();
        server.borrow_and_update();
        fail_point("replacement");
        let pause = replacement.step().await;
        tokio::select! {
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            _ = views.changed() => {}
            _ = server.changed() => {}
            () = arrived => {}
        }
    }
}

fn configuration(voters: &BTreeSet<NodeId>) -> Configuration {
    voters.iter().map(|node| (node.server, node.incarnation)).collect()
}

fn nodes(configuration: &Configuration) -> BTreeSet<NodeId> {
    let node =
        |(server, incarnation): (&_, &_)| NodeId { server: *server, incarnation: *incarnation };
    configuration.iter().map(node).collect()
}

impl Replacement<'_> {
    /// Carries out the next step, if there is one; when to look again at the latest.
    async fn step(&mut self) -> Option<Duration> {
        let agreed = self.peers.ctx.views.borrow().agreed.clone();
        let list = agreed.server_list.as_ref()?;
        let (voters, known) = (list.voters(), self.running.known());
        let followers: Voters = list.ids().difference(&voters).copied().collect();
        let configurations: Vec<_> = self.running.voters().iter().map(configuration).collect();
        let arrivals = self.arrivals(&known);
        let answering = self.peers.ctx.answering();
        let view = View {
            me: self.peers.ctx.node(),
            configurations: &configurations,
            nodes: &known,
            is_settled: self.is_settled() && self.peers.ctx.has_quorum(),
            list: &voters,
            followers: &followers,
            answering: &answering,
            arrivals: &arrivals,
        };
        let Some(step) = next_step(&view) else { return self.rest(list, &view) };
        let is_of_followers = match &step {
            Step::AddLearners(new) => new.iter().all(|node| !voters.contains(&node.server)),
            Step::Remove(gone) => gone.iter().all(|node| !voters.contains(&node.server)),
            Step::MergeRevoked(_) | Step::ChangeVoters(_) => false,
        };
        if is_of_followers {
            let nodes = u32::try_from(known.len()).unwrap_or(u32::MAX);
            let earliest = self.followers_changed.map(|at| at + PAUSE_PER_NODE * nodes);
            let rest = earliest.map(|at| at.saturating_duration_since(Instant::now()));
            if let Some(rest) = rest.filter(|rest| !rest.is_zero()) {
                return Some(rest);
            }
            self.followers_changed = Some(Instant::now());
        }
        let limit = self.peers.ctx.settings().timers.election_upper * STEP_LIMIT;
        let done = timeout(limit, self.carry_out(step)).await;
        Some(if done == Ok(true) { Duration::ZERO } else { STEP_PAUSE })
    }

    /// When to look again where there is no step; tells when the membership follows a list, or
    /// what it waits for.
    fn rest(&mut self, list: &ServerList, view: &View<'_>) -> Option<Duration> {
        let (log, known) = (&self.peers.ctx.log, view.nodes);
        let last = view.configurations.last().filter(|_| view.configurations.len() == 1);
        let has_place = |id: &ServerId| known.iter().any(|node| node.server == *id);
        let missing: Vec<ServerId> = list.ids().into_iter().filter(|id| !has_place(id)).collect();
        let voters: Option<Voters> = last.map(|last| last.keys().copied().collect());
        if voters == Some(list.voters()) && missing.is_empty() {
            let before = self.followed.replace(list.version);
            if before.is_some_and(|before| before != list.version) {
                log.note(format!(
                    "the group has {} members now (server list version {}, digest {})",
                    list.members().len(),
                    list.version,
                    list.digest()
                ));
            }
        } else {
            self.followed.get_or_insert(0);
            let waits_for =
                if missing.is_empty() { list.voters() } else { missing.into_iter().collect() };
            let names: Vec<String> = waits_for.iter().map(ServerId::to_string).collect();
            let line = format!(
                "the new server list (version {}) waits for servers {} to catch up",
                list.version,
                names.join(", ")
            );
            log.limited(Level::Note, "list waits", line);
        }
        let node = |(id, arrival): (&ServerId, &Arrival)| NodeId {
            server: *id,
            incarnation: arrival.incarnation,
        };
        // How far a log is, who answers and what is committed changes without a sign.
        let without_log = view.arrivals.iter().filter(|(_, arrival)| !arrival.has_log);
        let joining: Vec<NodeId> = without_log.map(node).filter(|id| known.contains(id)).collect();
        let votes = |id: &NodeId| view.list.contains(&id.server) && view.answering.contains(id);
        if joining.iter().any(votes) {
            return Some(LOG_PAUSE);
        }
        (!joining.is_empty() || is_waiting(view)).then_some(STEP_PAUSE)
    }

    /// Whether the last membership is agreed on, something of this leader's own term, and what the
    /// cluster was founded from.
    fn is_settled(&self) -> bool {
        let metrics = self.running.raft.metrics().borrow().clone();
        let applied = metrics.last_applied;
        let of_own_term = applied.is_some_and(|id| id.leader_id.term == metrics.current_term);
        let membership = metrics.membership_config.log_id().index();
        let has_base = self.peers.ctx.views.borrow().has_base;
        of_own_term && has_base && applied.index() >= membership
    }

    fn arrivals(&self, known: &BTreeSet<NodeId>) -> BTreeMap<ServerId, Arrival> {
        let metrics = self.running.raft.metrics().borrow().clone();
        let (replication, applied) =
            (metrics.replication.unwrap_or_default(), metrics.last_applied);
        let leadership = (self.running.epoch(), leader_id_of(&metrics.vote));
        let arrivals = self.peers.ctx.arrivals(leadership);
        let of = |(server, incarnation)| {
            let node = NodeId { server, incarnation };
            let matched = replication.get(&node).copied().flatten();
            let has_log = known.contains(&node) && matched.index() >= applied.index();
            (server, Arrival { incarnation, has_log, is_merged: self.merged.contains(&node) })
        };
        arrivals.into_iter().map(of).collect()
    }

    /// Whether the step came to an end.
    async fn carry_out(&mut self, step: Step) -> bool {
        let change = match step {
            Step::AddLearners(new) => {
                ChangeMembers::AddNodes(new.into_iter().map(|node| (node, EmptyNode {})).collect())
            }
            Step::MergeRevoked(node) => return self.merge(node).await,
            Step::ChangeVoters(wanted) => ChangeMembers::ReplaceAllVoters(nodes(&wanted)),
            Step::Remove(gone) => ChangeMembers::RemoveNodes(gone),
        };
        let line = format!("{change:?}");
        match self.running.raft.change_membership(change, false).await {
            Ok(_) => {
                self.peers.ctx.log.debug(format!("the membership changed: {line}"));
                true
            }
            Err(e) => {
                self.peers.ctx.log.debug(format!("the membership did not change: {e}"));
                false
            }
        }
    }

    /// Has the group know what a server that joins knows to be revoked.
    async fn merge(&mut self, node: NodeId) -> bool {
        let answer = self.peers.call(node.server, Request::Revoked, STATUS_LIMIT).await;
        let Ok(Response::Revoked(told)) = answer else { return false };
        let known = self.peers.ctx.views.borrow().agreed.ring.revoked_keys().to_vec();
        let new = told.iter().filter(|key| !known.contains(key)).count();
        if new > 0 {
            self.peers.ctx.log.note(format!(
                "server {} joins and knows of {new} revoked keys that the group does not; they are \
                 revoked here too",
                node.server
            ));
            let command = Command::Key(KeyCommand::Revoke(told));
            if self.running.raft.client_write(command).await.is_err() {
                return false;
            }
        }
        self.merged.insert(node);
        true
    }
}
