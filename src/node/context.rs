//! What a node is in its cluster at present: its settings and members, its clock, its Raft and the
//! agreed state. What it knows of the leader is in `leader_contact`.
//!
//! Small facts behind short locks, none of which is held across an await. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{watch, Notify};
use tokio::time::timeout;

use super::clock::{wall_ms, Clock};
use super::running::Running;
use crate::consensus::state_machine::AgreedView;
use crate::consensus::{leader_id_of, log_id_of};
use crate::core::agreed::{Agreed, Record};
use crate::core::agreement::arrivals::{Arrivals, Leadership};
use crate::core::agreement::epoch::Epoch;
use crate::core::agreement::founding::{FoundedCluster, Participant as Part};
use crate::core::agreement::ranked_record::RankedRecord;
use crate::core::agreement::search::ELECTIONS;
use crate::core::config::{Member, Settings};
use crate::core::key_ring::ClusterId;
use crate::core::lease::Lease;
use crate::core::log_id::{LeaderId, LogId};
use crate::core::moment::{millis, Moment};
use crate::core::node_id::{Incarnation, NodeId};
use crate::core::pre_vote::{self, Status};
use crate::core::quorum::Acknowledgements;
use crate::core::server_id::ServerId;
use crate::core::server_list::{consulted, voters};
use crate::core::witness::{Deed, Onlooker};
use crate::log_sink::Log;
use crate::supervise::lock;

/// How long Raft's own tasks may take to stop.
const RAFT_STOP_LIMIT: Duration = Duration::from_millis(200);

/// See the module's head.
pub(super) struct Context {
    pub me: ServerId,
    pub log: Log,
    pub clock: Clock,
    settings: watch::Sender<Arc<Settings>>,
    members: Mutex<Arc<[Member]>>,
    /// The agreed state, as this server's present run of Raft has applied it.
    pub views: watch::Sender<AgreedView>,
    /// Whether this node has what its cluster was founded from, and all that it was told since.
    pub caught_up: watch::Sender<bool>,
    /// Whether this server is about to end: it sends no more heartbeats.
    pub leaving: watch::Sender<bool>,
    /// Notified when a leader was heard.
    pub contacted: Notify,
    /// Notified at each heartbeat, whether it is sent or taken.
    pub heartbeat: Notify,
    /// Notified when the leader leaves and wants this server to follow it.
    pub timeout_now: Notify,
    /// Notified when the process of the leader is gone.
    pub leader_gone: Notify,
    /// Notified when a member says that there is a newer server list.
    pub missed_list: Notify,
    /// When one that belongs to the majority last said so.
    newer_list: Mutex<Option<Moment>>,
    /// Notified when a node is about to acknowledge an entry that belongs in the state file.
    pub log_grew: Notify,
    /// Notified when another life of a server has shown itself.
    pub arrived: Notify,
    running: Mutex<Option<Running>>,
    /// This node's part in its cluster.
    part: Mutex<Part<Record>>,
    /// Since when the record in it is as old as it says.
    kept_since: Mutex<Moment>,
    /// What the present cluster was founded from, if this node was there, and when it heard of that.
    base: Mutex<Option<(Record, Moment)>>,
    /// The latest life of each other server that answered this leader.
    pub(super) arrivals: Mutex<Arrivals>,
    /// When this node began.
    begun: Mutex<Moment>,
    /// A later life of this very server, by each other one that says that there was one.
    told: Mutex<BTreeMap<ServerId, Incarnation>>,
    /// What a leader said is committed, while this node has not caught up.
    awaited: Mutex<Option<LogId>>,
    /// What is known of the leader.
    pub(super) lease: Mutex<Lease>,
    /// Who acknowledged this leader.
    pub(super) acknowledged: Mutex<Acknowledgements>,
    /// Who looks on at agreement.
    pub onlooker: Onlooker,
}

impl Context {
    /// Of a server that belongs to no cluster yet.
    pub fn new(
        settings: Settings,
        log: Log,
        clock: Clock,
        incarnation: Incarnation,
        onlooker: Onlooker,
    ) -> Context {
        let node = NodeId { server: settings.server_id, incarnation };
        Context {
            me: settings.server_id,
            begun: Mutex::new(clock.now()),
            log,
            clock,
            members: Mutex::new(settings.members.clone().into()),
            settings: watch::Sender::new(Arc::new(settings)),
            views: watch::Sender::new(AgreedView::default()),
            caught_up: watch::Sender::new(false),
            leaving: watch::Sender::new(false),
            contacted: Notify::new(),
            heartbeat: Notify::new(),
            timeout_now: Notify::new(),
            leader_gone: Notify::new(),
            running: Mutex::default(),
            awaited: Mutex::default(),
            missed_list: Notify::new(),
            newer_list: Mutex::default(),
            log_grew: Notify::new(),
            arrived: Notify::new(),
            part: Mutex::new(Part::new(node, RankedRecord::default())),
            kept_since: Mutex::default(),
            base: Mutex::default(),
            arrivals: Mutex::default(),
            told: Mutex::default(),
            lease: Mutex::default(),
            acknowledged: Mutex::default(),
            onlooker,
        }
    }

    /// Tells who looks on, if anybody does.
    pub fn tell(&self, deed: Deed<'_>) {
        self.onlooker.iter().for_each(|onlooker| onlooker.sees(self.node(), deed));
    }

    /// The present moment; see [`Clock::now`].
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Takes over the members that the group agreed on; whether they are others than before.
    pub fn set_members(&self, members: &[Member]) -> bool {
        let mut present = lock(&self.members);
        let differ = **present != *members;
        if differ {
            *present = members.into();
        }
        differ
    }

    /// Hears which life of a server answers this leadership; one that was there before is gone.
    pub fn arrive(&self, leadership: Leadership, node: NodeId) {
        if !node.incarnation.is_plausible(wall_ms()) {
            return;
        }
        if lock(&self.arrivals).record(leadership, node) {
            lock(&self.acknowledged).forget_before(node);
            self.arrived.notify_waiters();
        }
    }

    /// The latest life of each other server that has shown itself to this leader.
    pub fn arrivals(&self, leadership: Leadership) -> BTreeMap<ServerId, Incarnation> {
        lock(&self.arrivals).of(leadership)
    }

    /// Hears what life of this server another one knows of.
    pub fn record_told(&self, from: ServerId, told: Incarnation) {
        if told > self.node().incarnation && told.is_plausible(wall_ms()) {
            let ids = self.ids();
            let mut known = lock(&self.told);
            known.retain(|id, _| ids.contains(id));
            known.insert(from, told);
            self.arrived.notify_waiters();
        }
    }

    /// Whether anybody says that there was a later life of this server than it is, and whether that can be
    /// acted on.
    pub fn is_outlived(&self) -> (bool, bool) {
        let (own, others) = (self.node().incarnation, self.others().count());
        let told = lock(&self.told).clone();
        let is_long_alone = self.is_alone_since(self.quorum_contact().or(Some(*lock(&self.begun))));
        let is_told = told.values().any(|told| *told > own);
        let now = (self.in_majority(), is_long_alone);
        (is_told, pre_vote::is_outlived(own, &told, others, now))
    }

    /// Whether no majority was heard, if ever, for as long as a cluster has for its elections.
    pub fn is_long_alone(&self) -> bool {
        self.is_alone_since(self.quorum_contact())
    }

    fn is_alone_since(&self, contact: Option<Moment>) -> bool {
        let lately = self.settings().timers.election_upper * ELECTIONS;
        contact.is_none_or(|at| self.now().since(at) >= lately)
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        lock(&self.part).me
    }

    /// Looks at this node's part in its cluster, or changes it; nothing is awaited meanwhile.
    pub fn part<T>(&self, look: impl FnOnce(&mut Part<Record>) -> T) -> T {
        look(&mut lock(&self.part))
    }

    /// What this server has from before its present cluster, as old as it is now; where that is
    /// nothing, the voters that its file says.
    pub fn kept(&self) -> RankedRecord<Record> {
        let RankedRecord { rank, record } = lock(&self.part).older.clone();
        if rank.epoch.is_none() {
            let mut kept = Record::of_file(voters(&self.settings().members));
            kept.agreed = record.agreed;
            return RankedRecord { rank, record: kept };
        }
        let age = millis(self.now().since(*lock(&self.kept_since)));
        RankedRecord { rank, record: record.later(age) }
    }

    /// Keeps what this server holds now for what comes after its present cluster.
    pub fn keep(&self, ranked: RankedRecord<Record>) {
        *lock(&self.kept_since) = self.now();
        self.tell(Deed::Keeps(&ranked));
        lock(&self.part).older = ranked;
    }

    /// Drops the keys of what is kept: they are too old to be gone on with.
    pub fn drop_kept_keys(&self) {
        let ring = &mut lock(&self.part).older.record.agreed.ring;
        *ring = ring.without_keys();
    }

    /// The newest that this server holds, its log read to the end.
    pub fn holding(&self) -> RankedRecord<Record> {
        let kept = self.kept();
        let mut part = lock(&self.part).clone();
        part.older = kept;
        let running = self.running().filter(|running| running.epoch() == part.cluster);
        part.newest(running.and_then(|r| r.machine.record(&r.log, self.now())))
    }

    /// Begins in a cluster that was founded, if this node is to; whether it did. Raft has to follow.
    pub fn accept(&self, found: &FoundedCluster<Record>) -> bool {
        // Whoever was counted has left its cluster before, and what it held is kept.
        let (own, now) = (self.kept(), self.now());
        let seen = self.onlooker.as_ref().map(|_| own.clone());
        let accepted = self.part(|part| part.accept(found, own));
        if let Some(own) = seen {
            self.tell(Deed::Accepts(found, &own, accepted));
        }
        if accepted {
            *lock(&self.kept_since) = now;
            *lock(&self.base) = Some((found.base.record.clone(), now));
            self.enter();
        }
        accepted
    }

    /// What the present cluster was founded from, as old as it is now.
    pub fn base(&self) -> Option<Record> {
        let (record, since) = lock(&self.base).clone()?;
        Some(record.later(millis(self.now().since(since))))
    }

    /// Becomes another node, with what this one held.
    pub fn begin_anew(&self, node: NodeId, held: RankedRecord<Record>) {
        *lock(&self.kept_since) = self.now();
        if let Some(onlooker) = &self.onlooker {
            onlooker.sees(node, Deed::Begins(&held));
        }
        *lock(&self.part) = Part::new(node, held);
        *lock(&self.begun) = self.now();
        *lock(&self.base) = None;
        self.enter();
    }

    /// Enters another cluster, or none: what was heard in the last one is over.
    pub fn enter(&self) {
        self.caught_up.send_replace(false);
        *lock(&self.awaited) = None;
        lock(&self.lease).end();
        *lock(&self.acknowledged) = Acknowledgements::default();
    }

    /// The latest life of this server that any other one tells of.
    pub fn told(&self) -> Incarnation {
        lock(&self.told).values().copied().max().unwrap_or_default()
    }

    /// The cluster that this node takes part in; none if it does not.
    pub fn cluster(&self) -> Epoch {
        lock(&self.part).present_cluster()
    }

    /// What the operator wants at present.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    pub fn watch_settings(&self) -> watch::Receiver<Arc<Settings>> {
        self.settings.subscribe()
    }

    pub fn set_settings(&self, settings: Settings) {
        self.settings.send_replace(Arc::new(settings));
    }

    /// Takes over the list in the file, where it has become the agreed one without a reload here.
    pub fn set_file_list(&self, members: Vec<Member>) {
        self.settings.send_modify(|settings| {
            *settings = Arc::new(Settings { members, ..(**settings).clone() });
        });
    }

    /// Hears from one that belongs to the majority which version of the server list is agreed.
    pub fn hear_list_version(&self, version: u64) {
        let agreed = self.views.borrow().agreed.clone();
        if version > agreed.server_list.as_ref().map_or(0, |list| list.version) {
            *lock(&self.newer_list) = Some(self.now());
            self.missed_list.notify_one();
        }
    }

    /// Whether the group has a newer list than this server, which has not been in sync since it heard so.
    pub fn has_missed_list(&self) -> bool {
        let told = *lock(&self.newer_list);
        told.is_some_and(|told| self.last_in_sync().is_none_or(|in_sync| in_sync < told))
    }

    /// The members: those of the agreed list as far as this server knows one, else those of its file.
    pub fn members(&self) -> Arc<[Member]> {
        lock(&self.members).clone()
    }

    /// All members but this one.
    pub fn others(&self) -> impl Iterator<Item = ServerId> {
        let (members, me) = (self.members(), self.me);
        let ids: Vec<ServerId> = members.iter().map(|m| m.id).filter(|id| *id != me).collect();
        ids.into_iter()
    }

    /// Whom this server asks about the group; see [`consulted`].
    pub fn consulted(&self, neighbours: usize) -> BTreeSet<ServerId> {
        consulted(&self.members(), self.me, neighbours)
    }

    /// Whether this server votes, by the present list.
    pub fn votes(&self) -> bool {
        voters(&self.members()).contains(&self.me)
    }

    /// All members, this one included.
    pub fn ids(&self) -> BTreeSet<ServerId> {
        self.members().iter().map(|member| member.id).collect()
    }

    /// The server that this one follows as the leader, by its own vote.
    pub fn followed(&self) -> Option<ServerId> {
        let vote = self.running()?.log.vote().filter(|vote| vote.committed)?;
        Some(vote.leader_id.node_id.server).filter(|id| *id != self.me)
    }

    /// The leader, if one is known.
    pub fn leader(&self) -> Option<ServerId> {
        let leader = self.running()?.raft.server_metrics().borrow().current_leader;
        leader.map(|node| node.server)
    }

    pub fn running(&self) -> Option<Running> {
        lock(&self.running).clone()
    }

    pub fn set_running(&self, running: Option<Running>) {
        *lock(&self.running) = running;
    }

    /// Stops Raft, if it runs.
    pub async fn stop_raft(&self) {
        if let Some(running) = self.running() {
            let _ = timeout(RAFT_STOP_LIMIT, running.raft.shutdown()).await;
        }
        self.set_running(None);
    }

    /// What this server says of itself to the others.
    pub fn status(&self) -> Status {
        let (node, cluster, known) = {
            let part = lock(&self.part);
            (part.me, part.present_cluster(), part.known())
        };
        let view = self.views.borrow().clone();
        let ring = &view.agreed.ring;
        let mut status = Status {
            node,
            cluster,
            known,
            cluster_id: ring.cluster_id(),
            generation: ring.newest(),
            list_version: view.agreed.server_list.as_ref().map_or(0, |list| list.version),
            ..Status::default()
        };
        let Some(running) = self.running().filter(|_| !cluster.is_none()) else { return status };
        let ends = running.log.ends();
        status.vote = ends.vote.as_ref().map(leader_id_of).unwrap_or_default();
        status.last_log_id = ends.last.as_ref().map(log_id_of);
        status.caught_up = *self.caught_up.borrow();
        status.live_leader = self.knows_live_leader(&running);
        status.quorum = self.is_with_majority(&running);
        status
    }

    /// The same to one server, which is told what life of it is known here.
    pub fn status_for(&self, id: ServerId) -> Status {
        let among = |nodes: BTreeSet<NodeId>| {
            let its = nodes.into_iter().filter(|node| node.server == id);
            its.map(|node| node.incarnation).max()
        };
        let known = self.running().and_then(|running| among(running.known()));
        let arrived = lock(&self.arrivals).latest(id);
        Status { yours: known.max(arrived).unwrap_or_default(), ..self.status() }
    }

    /// Whether a key waits for all servers to have it.
    pub fn is_handing_over(&self) -> bool {
        self.views.borrow().agreed.ring.staged().is_some()
    }

    /// Hears from a leader of `leader_id` what is committed: who has applied that has caught up.
    pub fn hear_commit(&self, leader_id: LeaderId, commit: Option<LogId>) {
        if commit.is_some_and(|end| end.leader_id.term == leader_id.term) {
            *lock(&self.awaited) = commit;
            self.look_whether_caught_up();
        }
    }

    /// Notes that this node has caught up if it has, by what is applied now.
    pub fn look_whether_caught_up(&self) {
        let Some(awaited) = *lock(&self.awaited) else { return };
        let has_applied = |view: &AgreedView| view.has_base && view.end >= Some(awaited);
        if has_applied(&self.views.borrow()) && !*self.caught_up.borrow() {
            self.record_caught_up();
        }
    }

    /// Notes that this node has caught up: of what it had from before only what is revoked is of use,
    /// for which its leader may not have asked yet.
    pub fn record_caught_up(&self) {
        self.part(|part| {
            let agreed = Agreed::of_ring(part.older.record.agreed.ring.without_keys());
            let record = Record { agreed, ..Record::default() };
            part.older = RankedRecord { record, ..RankedRecord::default() };
        });
        self.tell(Deed::CatchesUp);
        *lock(&self.base) = None;
        self.caught_up.send_replace(true);
        self.log.debug("caught up with the group");
    }

    /// The sequence of keys that this server goes by; also while its cluster is being founded anew.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        let present = self.views.borrow().agreed.ring.cluster_id();
        present.or_else(|| lock(&self.part).older.record.agreed.ring.cluster_id())
    }
}
