//! What a node knows of the leader that it hears, and where it leads, of those that acknowledge it.
//!
//! The part of [`Context`] that has to do with who was heard when. Decides nothing; what lasts how long is
//! for [`crate::core::lease`] and [`crate::core::quorum`] to say, and who leads is for Raft. None of its
//! locks is held across an await.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ServerState;

use super::context::Context;
use super::running::Running;
use crate::core::heartbeat::Pace;
use crate::core::lease::Lease;
use crate::core::moment::Moment;
use crate::core::node_id::NodeId;
use crate::core::server_id::ServerId;
use crate::core::server_list::voters;
use crate::supervise::lock;

impl Context {
    /// Whether a majority acknowledged this leader lately.
    pub fn has_quorum(&self) -> bool {
        self.quorum_within(self.reach())
    }

    /// Hears that a server has acknowledged this leader.
    pub fn acknowledge(&self, by: NodeId) {
        let now = self.now();
        let latest = lock(&self.arrivals).latest(by.server);
        if latest.is_none_or(|latest| latest <= by.incarnation) {
            lock(&self.acknowledged).record(by, now);
        }
    }

    /// Who acknowledged this leader lately.
    pub fn answering(&self) -> BTreeSet<NodeId> {
        let (reach, now) = (self.reach_by_server(), self.now());
        lock(&self.acknowledged).of(reach, now)
    }

    /// Whether this server belongs to a majority that agrees at present.
    pub fn in_majority(&self) -> bool {
        let takes_part = !self.cluster().is_none();
        takes_part && self.running().is_some_and(|running| self.is_with_majority(&running))
    }

    /// The same of this Raft, whatever cluster it is in.
    pub fn is_with_majority(&self, running: &Running) -> bool {
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
    pub fn knows_live_leader(&self, running: &Running) -> bool {
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

    /// The same of each server, where this one leads: those that do not vote hear from it, and answer,
    /// less often in a large cluster.
    pub fn reach_by_server(&self) -> impl Fn(ServerId) -> Duration {
        let (lease, timers, voting) = (self.lease(), self.settings().timers, self.voting_servers());
        let (voters, followers) = (lease.reach(&timers), lease.reach_of_followers(&timers));
        move |id| if voting.contains(&id) { voters } else { followers }
    }

    /// Who votes, or is to vote by the list.
    pub fn voting_servers(&self) -> BTreeSet<ServerId> {
        let mut voting = voters(&self.members());
        voting.extend(self.running().map(|running| running.voting_servers()).unwrap_or_default());
        voting
    }

    /// Notes what this leader announces.
    pub fn record_announced(&self, pace: Pace) {
        lock(&self.lease).announce_to_followers(pace.followers);
        self.record_pace(pace.voters);
    }

    /// Notes when the leader, be it this server, says that its next heartbeat is due.
    pub fn record_pace(&self, next: Duration) {
        lock(&self.lease).announce(next);
        self.heartbeat.notify_one();
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
        lock(&self.acknowledged).within(limit, self.node(), &voters, now)
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
        let me = self.node();
        let led = lock(&self.acknowledged).majority_since(me, &voters, now);
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
}
