//! What a node is in its cluster at present: its settings and members, its clock, its Raft, the
//! agreed state and the leader that it hears.
//!
//! Small facts behind short locks, none of which is held across an await. Decides nothing; what
//! lasts how long is for [`crate::core::lease`] and [`crate::core::quorum`] to say.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::ServerState;
use tokio::sync::{watch, Notify};
use tokio::time::timeout;

use super::clock::Clock;
use super::running::Running;
use crate::consensus::state_machine::AgreedView;
use crate::consensus::{leader_id_of, log_end_of};
use crate::core::config::{Member, Settings};
use crate::core::key_ring::ClusterId;
use crate::core::lease::Lease;
use crate::core::moment::Moment;
use crate::core::quorum::Acknowledgements;
use crate::core::recovery::{LeaderId, LogPosition, Status, VoteRestriction};
use crate::core::server_id::ServerId;
use crate::log_sink::Log;

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
    /// What this server may do about votes; silent while it is joining.
    pub vote_restriction: watch::Sender<VoteRestriction>,
    /// Whether this server is about to end: it sends no more heartbeats.
    pub leaving: watch::Sender<bool>,
    /// Rung when a leader was heard.
    pub contacted: Notify,
    /// Rung when the leader leaves and wants this server to follow it.
    pub campaign_now: Notify,
    /// Rung when the process of the leader is gone.
    pub leader_gone: Notify,
    running: Mutex<Option<Running>>,
    /// What a server whose Raft goes on with other timers says of itself meanwhile.
    retiming: Mutex<Option<Status>>,
    /// What is known of the leader.
    lease: Mutex<Lease>,
    /// Who acknowledged this leader.
    acknowledged: Mutex<Acknowledgements>,
}

impl Context {
    /// Of a server that belongs to no cluster yet.
    pub fn new(settings: Settings, log: Log, clock: Clock) -> Context {
        Context {
            me: settings.server_id,
            log,
            clock,
            members: Mutex::new(settings.members.clone().into()),
            settings: watch::Sender::new(Arc::new(settings)),
            views: watch::Sender::new(AgreedView::default()),
            vote_restriction: watch::Sender::new(VoteRestriction::Silent),
            leaving: watch::Sender::new(false),
            contacted: Notify::new(),
            campaign_now: Notify::new(),
            leader_gone: Notify::new(),
            running: Mutex::default(),
            retiming: Mutex::default(),
            lease: Mutex::default(),
            acknowledged: Mutex::default(),
        }
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

    /// Whether a majority acknowledged this leader lately.
    pub fn has_quorum(&self) -> bool {
        self.quorum_within(self.reach())
    }

    /// Hears that a server has acknowledged this leader.
    pub fn acknowledge(&self, by: ServerId) {
        let now = self.now();
        lock(&self.acknowledged).record(by, now);
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

    /// All members, this one included.
    pub fn ids(&self) -> BTreeSet<ServerId> {
        self.members().iter().map(|member| member.id).collect()
    }

    /// The server that this one follows as the leader, by its own vote.
    pub fn followed(&self) -> Option<ServerId> {
        let vote = self.running()?.log.vote().filter(|vote| vote.committed)?;
        Some(vote.leader_id.node_id).filter(|id| *id != self.me)
    }

    /// The leader, if one is known.
    pub fn leader(&self) -> Option<ServerId> {
        self.running().and_then(|running| running.raft.server_metrics().borrow().current_leader)
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
        let view = self.views.borrow().clone();
        let Some(running) = self.running() else {
            return lock(&self.retiming).clone().unwrap_or_default();
        };
        let lifted = *self.vote_restriction.borrow() == VoteRestriction::Lifted;
        let cluster_id = view.agreed.ring.cluster_id();
        Status {
            full: lifted && cluster_id.is_some(),
            leader_id: running.log.vote().as_ref().map(leader_id_of).unwrap_or_default(),
            log_end: running.log.last_log_id().as_ref().map(log_end_of),
            cluster_id,
            generation: view.agreed.ring.newest(),
            live_leader: self.knows_live_leader(&running),
            may_vote: lifted,
            quorum: self.is_with_majority(&running),
        }
    }

    /// Says of this server what it is, while its Raft is begun anew with all that it remembers.
    pub fn set_retiming(&self, status: Option<Status>) {
        *lock(&self.retiming) = status;
    }

    /// What this server says of itself to one that asks, and that may want its vote.
    pub fn status_for(&self, asker: &Status) -> Status {
        let may_vote =
            self.running().is_some() && self.vote_restriction.borrow().admits(asker.log_end);
        Status { may_vote, ..self.status() }
    }

    /// Whether this server belongs to a majority that agrees at present.
    pub fn in_majority(&self) -> bool {
        self.running().is_some_and(|running| self.is_with_majority(&running))
    }

    fn is_with_majority(&self, running: &Running) -> bool {
        if running.raft.server_metrics().borrow().state == ServerState::Leader {
            return self.has_quorum();
        }
        self.lease().is_with_majority(self.now(), &self.settings().timers)
    }

    /// What this server knows of the leader.
    pub fn lease(&self) -> Lease {
        lock(&self.lease).clone()
    }

    /// Whether a leader, possibly this server, has shown itself lately.
    fn knows_live_leader(&self, running: &Running) -> bool {
        // Not within the match, where the look would last until a second one for the quorum: a
        // writer that waits in between would wait for the first, and the second for the writer.
        let state = running.raft.server_metrics().borrow().state;
        match state {
            ServerState::Leader => self.has_quorum() && !*self.leaving.borrow(),
            _ => self.hears_leader(),
        }
    }

    /// Whether another server has shown itself as the leader so lately that this one gives no vote.
    pub fn hears_leader(&self) -> bool {
        self.lease().holds(self.now(), &self.settings().timers)
    }

    /// How long ago a server was heard that counts as reachable: the upper election bound, and by how
    /// much the heartbeats are late.
    pub fn reach(&self) -> Duration {
        self.lease().reach(&self.settings().timers)
    }

    /// Notes when the leader, be it this server, says that its next heartbeat is due.
    pub fn record_pace(&self, next: Duration) {
        lock(&self.lease).announce(next);
    }

    /// Whether a key waits for all servers to have it.
    pub fn is_handing_over(&self) -> bool {
        self.views.borrow().agreed.ring.staged().is_some()
    }

    /// Lets this server vote again if, by what a leader of `leader_id` says, it has caught up.
    pub fn end_vote_restriction(
        &self,
        running: &Running,
        leader_id: LeaderId,
        commit: Option<LogPosition>,
    ) {
        let metrics = running.raft.data_metrics();
        let applied = metrics.borrow().last_applied.as_ref().map(log_end_of);
        if VoteRestriction::lifts(leader_id.term, commit, applied) {
            let before = *self.vote_restriction.borrow();
            match before.caught_up() {
                VoteRestriction::Lifted => self.lift_vote_restriction(),
                next if next != before => {
                    self.vote_restriction.send_replace(next);
                    self.log.debug("caught up with the group");
                }
                _ => {}
            }
        }
    }

    /// This server counts from now on.
    pub fn lift_vote_restriction(&self) {
        self.vote_restriction.send_replace(VoteRestriction::Lifted);
        self.log.debug("caught up with the group; may vote again");
    }

    /// Whether this server leads, and a majority acknowledged that lately.
    pub fn leads_majority(&self, running: &Running) -> bool {
        let state = running.raft.server_metrics().borrow().state;
        state == ServerState::Leader && self.quorum_within(self.reach())
    }

    /// Whether a majority, this leader included, acknowledged it within `limit`.
    pub fn quorum_within(&self, limit: Duration) -> bool {
        let Some(running) = self.running() else { return false };
        let (voters, now) = (running.voters(), self.now());
        lock(&self.acknowledged).within(limit, self.me, &voters, now)
    }

    /// Notes that a leader's message was accepted, and whether that leader has a majority.
    pub fn record_contact(&self, has_quorum: bool) {
        let now = self.now();
        lock(&self.lease).hear(now, has_quorum);
        self.contacted.notify_one();
    }

    /// The same of an append or a snapshot.
    pub fn record_append(&self, has_quorum: bool) {
        let now = self.now();
        lock(&self.lease).append(now);
        self.record_contact(has_quorum);
    }

    /// The same of a heartbeat, and that the next one is due after `next`.
    pub fn record_heartbeat(&self, has_quorum: bool, next: Duration) {
        self.record_pace(next);
        self.record_contact(has_quorum);
    }

    /// When this server last knew of a majority that agrees: a leader told so, or enough others
    /// acknowledged this server as theirs.
    pub fn quorum_contact(&self) -> Option<Moment> {
        let voters = self.running().map(|running| running.voters()).unwrap_or_default();
        let now = self.now();
        let led = lock(&self.acknowledged).majority_since(self.me, &voters, now);
        led.max(self.lease().quorum())
    }

    /// Notes that this server has all that a leader with a majority has.
    pub fn record_in_sync(&self) {
        let now = self.now();
        lock(&self.lease).catch_up(now);
    }

    /// When this server last had all that a leader with a majority has; now, if it is that leader.
    pub fn last_in_sync(&self) -> Option<Moment> {
        let leads = self.running().is_some_and(|running| self.leads_majority(&running));
        if leads {
            return Some(self.now());
        }
        self.lease().in_sync()
    }

    /// Notes that the leader leaves: nobody has to wait for it any longer.
    pub fn record_leadership_transfer(&self) {
        lock(&self.lease).end();
    }

    /// Notes that the process of the leader is gone, as was suspected at `since`, unless that leader
    /// was heard after that.
    pub fn record_leader_gone(&self, since: Moment) {
        if lock(&self.lease).end_since(since) {
            self.log.debug("the process of the leader is gone");
            self.leader_gone.notify_one();
        }
    }

    /// Notes that this server voted for another one, which it then gives time.
    pub fn record_supported(&self) {
        let now = self.now();
        lock(&self.lease).vote(now);
    }

    pub fn contact(&self) -> Option<Moment> {
        self.lease().heard()
    }

    /// The cluster incarnation that this server belongs to: that of its ring, or before the first entry of the
    /// log is applied, that of the log.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        let of_ring = self.views.borrow().agreed.ring.cluster_id();
        of_ring.or_else(|| lock(&self.running).as_ref().and_then(|r| r.log.cluster_id()))
    }
}

/// Locks, whatever happened to who had it locked before.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
