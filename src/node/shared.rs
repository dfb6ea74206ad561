//! The parts of one node, put together.
//!
//! Tasks are handed the two or three of them that they use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openssl::error::ErrorStack;
use openssl::rand::rand_bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::clock::wall_ms;
use super::clock::Clock;
use super::context::Context;
use super::counters::NodeCounters;
use super::keys::Keys;
use super::peer_client::Peers;
use super::rejected_keys::RejectedKeys;
use super::session_exchange::SessionExchange;
use super::state_file::StateFile;
use super::store::Store;
use super::{Deps, NodeStatus, Role};
use crate::core::agreed::Record;
use crate::core::agreement::founding::{
    FoundedCluster, FoundingRequest, Prepare, Promise, Refusal,
};
use crate::core::agreement::ranked_record::RankedRecord;
use crate::core::config::Settings;
use crate::core::key_ring::Generation;
use crate::core::node_id::Incarnation;
use crate::core::rotation::AdminCommand;
use crate::core::server_id::ServerId;
use crate::core::witness::Deed;
use crate::rpc::AdminRefusal;

/// Draws the incarnation of a new node, beyond all that are `known` of this server.
///
/// # Errors
/// Only if OpenSSL cannot give randomness.
pub(super) fn draw_incarnation(known: Incarnation) -> Result<Incarnation, ErrorStack> {
    let mut random = [0; 2];
    rand_bytes(&mut random)?;
    Ok(Incarnation::draw(known, wall_ms(), u16::from_be_bytes(random)))
}

/// An operator's order on its way to the leader's loop.
pub(super) struct QueuedCommand {
    pub command: AdminCommand,
    /// Who gave it, in words.
    pub origin: String,
    /// The way back.
    pub reply: oneshot::Sender<Result<Generation, AdminRefusal>>,
}

/// What a node is asked that ends its present run of Raft.
pub(super) enum LifecycleRequest {
    /// To promise that it has left its cluster; only what [`Participant::admits`](crate::core::agreement::founding::Participant::admits) gets here.
    Prepare(Prepare, oneshot::Sender<Result<Promise<Record>, Refusal>>),
    /// To leave its cluster and to found another one with these.
    Lead(FoundingRequest, oneshot::Sender<Vec<Prepare>>),
    /// To run Raft in a founded cluster that this node has accepted; answered when it runs.
    Found(Box<FoundedCluster<Record>>, oneshot::Sender<bool>),
}

/// How many may ask that at a time.
pub(super) const MAX_LIFECYCLE_REQUESTS: usize = 16;

/// See the module's head.
pub(super) struct Shared {
    pub ctx: Arc<Context>,
    pub peers: Arc<Peers>,
    pub keys: Arc<Keys>,
    pub store: Arc<Store>,
    /// What is counted for operators.
    pub node_counters: Arc<NodeCounters>,
    /// The keys that key validation kept out.
    pub rejected_keys: Arc<RejectedKeys>,
    /// Whether too few servers can be reached for a majority.
    pub quorum_unreachable: watch::Sender<bool>,
    /// Orders of operators, for the leader's loop.
    pub commands: mpsc::Sender<QueuedCommand>,
    /// The way of sessions that clients resume by their id; none unless they are shared.
    pub sessions: Option<Arc<SessionExchange>>,
    /// The way to the present run of Raft.
    pub asked: mpsc::Sender<LifecycleRequest>,
    /// Held by who founds: one founding at a time.
    pub founding: Arc<tokio::sync::Mutex<()>>,
}

impl Shared {
    pub fn new(
        settings: Settings,
        deps: Deps,
        commands: mpsc::Sender<QueuedCommand>,
        asked: mpsc::Sender<LifecycleRequest>,
    ) -> Result<Arc<Shared>, ErrorStack> {
        let Deps { log, tls, initial, versions, outside } = deps;
        let mut incarnation = [0; 8];
        rand_bytes(&mut incarnation)?;
        let (dir, disk) = (settings.state_dir.as_deref(), outside.disk.clone());
        let file = dir.map(|dir| StateFile::new(dir, settings.server_id, disk));
        let clock = Clock::new(log.clone(), outside.suspended.clone());
        let life = draw_incarnation(Incarnation::NOBODY)?;
        let ctx =
            Arc::new(Context::new(settings, log.clone(), clock, life, outside.onlooker.clone()));
        ctx.tell(Deed::Begins(&RankedRecord::default()));
        let me = (u64::from_be_bytes(incarnation), versions);
        let peers = Arc::new(Peers::new(ctx.clone(), me, tls, &outside));
        let node_counters = Arc::<NodeCounters>::default();
        Ok(Arc::new(Shared {
            peers,
            keys: Arc::new(Keys::new(ctx.clone(), node_counters.clone(), initial)),
            store: Arc::new(Store::new(file)),
            node_counters,
            rejected_keys: Arc::new(RejectedKeys::new(log)),
            quorum_unreachable: watch::Sender::new(false),
            commands,
            sessions: outside.sessions,
            asked,
            founding: Arc::default(),
            ctx,
        }))
    }

    /// What this server knows of itself and the group.
    pub fn node_status(&self) -> NodeStatus {
        let view = self.ctx.views.borrow().clone();
        let now = self.ctx.now();
        let running = self.ctx.running();
        let metrics = running.as_ref().map(|r| r.raft.server_metrics().borrow().clone());
        let bound = self.ctx.reach();
        let caught_up = *self.ctx.caught_up.borrow();
        // One that is to vote counts only when it does: until then one more away may be too many.
        let me = self.ctx.node();
        let is_to_vote =
            view.agreed.server_list.as_ref().is_none_or(|l| l.voters().contains(&me.server));
        let voters = running.as_ref().map(|running| running.voters()).unwrap_or_default();
        let is_voter = !voters.is_empty() && voters.iter().all(|voters| voters.contains(&me));
        let counts = !is_to_vote || is_voter;
        let role = match metrics.as_ref().map(|m| m.state) {
            None => Role::Joining,
            Some(_) if self.ctx.cluster().is_none() => Role::Joining,
            Some(_) if !caught_up || !counts => Role::Recovering,
            Some(ServerState::Leader) if self.ctx.has_quorum() => Role::Leader,
            Some(ServerState::Candidate) => Role::Candidate,
            Some(_) => Role::Follower,
        };
        let known = running.as_ref().map(|running| running.known()).unwrap_or_default();
        let members: BTreeSet<ServerId> = known.iter().map(|node| node.server).collect();
        let heard = |id| self.peers.heard.last(id).is_some_and(|at| at.elapsed() < bound);
        NodeStatus {
            role,
            term: metrics.as_ref().map_or(0, |m| m.vote.leader_id.term),
            members: members.len(),
            voters: voters.last().map_or(0, BTreeSet::len),
            epoch: self.ctx.cluster().counter,
            votes: is_voter,
            list_version: view
                .agreed
                .server_list
                .as_ref()
                .map_or(0, |server_list| server_list.version),
            leader: metrics.and_then(|m| m.current_leader).map(|node| node.server),
            cluster_id: view.agreed.ring.cluster_id(),
            current: view.agreed.ring.current().map(|held| held.generation).unwrap_or_default(),
            fingerprint: view.agreed.ring.current().map(|held| held.stek.fingerprint()),
            staged: view.agreed.ring.staged().map(|staged| staged.held.generation),
            installed: self.keys.installed_newest(),
            current_age: match view.agreed.ring.current() {
                Some(_) => now.since(self.keys.current_since(&view)),
                None => Duration::ZERO,
            },
            log_entries: running.map_or(0, |r| r.log.len()),
            reachable: 1 + self.ctx.others().filter(|id| heard(*id)).count(),
        }
    }
}
