//! What a server knows of the leader that it hears, and how long that counts.
//!
//! Who speaks as the leader is Raft's to say; only what the followed one says gets here. Invariants:
//! all that lasts for a while lasts longer by as much as the leader's heartbeats are further apart
//! than this server's interval, so that no announced pause is taken for an absence.

use std::time::Duration;

use super::config::Timers;
use super::moment::Moment;

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    /// When a message of the leader was last accepted.
    heard: Option<Moment>,
    /// Whether it said that it has a majority.
    has_quorum: bool,
    /// When a leader last said so.
    quorum: Option<Moment>,
    /// When this server last had all that such a leader has.
    in_sync: Option<Moment>,
    /// When this server last voted for another one.
    voted: Option<Moment>,
    /// When an append or a snapshot was last taken.
    appended: Option<Moment>,
    /// When after its last heartbeat the leader, be it this server, said that the next one is due.
    next: Duration,
    /// The same after the heartbeat before: what was heard may still be an answer to it.
    next_before: Duration,
    /// What this server, as the leader, told those that do not vote of the same, and the time before.
    followers: Duration,
    followers_before: Duration,
}

impl Lease {
    /// Records a message of the leader, and whether that has a majority.
    pub fn hear(&mut self, now: Moment, has_quorum: bool) {
        self.heard = Some(now);
        self.has_quorum = has_quorum;
        if has_quorum {
            self.quorum = Some(now);
        }
    }

    /// Records when the next heartbeat of the leader, be it this server, is due.
    pub fn announce(&mut self, next: Duration) {
        self.next_before = std::mem::replace(&mut self.next, next);
    }

    /// Records what this leader tells those that do not vote of the same.
    pub fn announce_to_followers(&mut self, next: Duration) {
        self.followers_before = std::mem::replace(&mut self.followers, next);
    }

    /// Records that the leader leaves, or is gone: nobody has to wait for it any longer.
    pub fn end(&mut self) {
        self.heard = None;
    }

    /// Records that the process that led is gone, as was suspected at `since`;
    /// whether nothing was heard after that, which would say otherwise.
    pub fn end_since(&mut self, since: Moment) -> bool {
        let is_silent = self.heard.is_none_or(|at| at <= since);
        if is_silent {
            self.end();
        }
        is_silent
    }

    /// Records an append or a snapshot of the leader.
    pub fn append(&mut self, now: Moment) {
        self.appended = Some(now);
    }

    /// When the last one was taken, whatever became of the leader.
    pub fn appended(&self) -> Option<Moment> {
        self.appended
    }

    /// Records that this server has all that a leader with a majority has.
    pub fn catch_up(&mut self, now: Moment) {
        self.in_sync = Some(now);
    }

    /// Records a vote for another server, which is given time.
    pub fn vote(&mut self, now: Moment) {
        self.voted = Some(now);
    }

    /// When a leader was last heard, unless it has left.
    pub fn heard(&self) -> Option<Moment> {
        self.heard
    }

    /// When a leader last said that it has a majority.
    pub fn quorum(&self) -> Option<Moment> {
        self.quorum
    }

    /// When this server last had all that a leader with a majority has.
    pub fn in_sync(&self) -> Option<Moment> {
        self.in_sync
    }

    /// When this server last heard a leader or voted for another server.
    pub fn heard_or_voted(&self) -> Option<Moment> {
        self.heard.max(self.voted)
    }

    /// By how much the heartbeats are further apart than this server's interval.
    pub fn lateness(&self, timers: &Timers) -> Duration {
        self.next.saturating_sub(timers.heartbeat)
    }

    /// How long ago a server was heard that counts as reachable.
    pub fn reach(&self, timers: &Timers) -> Duration {
        let next = self.next.max(self.next_before);
        timers.election_upper + next.saturating_sub(timers.heartbeat)
    }

    /// How long ago a server that does not vote was heard that counts as reachable for its leader.
    pub fn reach_of_followers(&self, timers: &Timers) -> Duration {
        let next = self.followers.max(self.followers_before);
        self.reach(timers).max(timers.election_upper + next.saturating_sub(timers.heartbeat))
    }

    /// Whether the leader was heard so lately that this server gives no vote.
    pub fn holds(&self, now: Moment, timers: &Timers) -> bool {
        self.is_heard_within(timers.election_lower + self.lateness(timers), now)
    }

    /// Whether a leader that has a majority was heard so lately that it counts as there.
    pub fn is_with_majority(&self, now: Moment, timers: &Timers) -> bool {
        self.has_quorum && self.is_heard_within(timers.election_upper + self.lateness(timers), now)
    }

    fn is_heard_within(&self, limit: Duration, now: Moment) -> bool {
        self.heard.is_some_and(|at| now.since(at) < limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const TIMERS: Timers = Timers {
        heartbeat: Duration::from_millis(100),
        election_lower: Duration::from_millis(200),
        election_upper: Duration::from_millis(400),
    };

    fn at(ms: u32) -> Moment {
        Moment::from_start(MS * ms)
    }

    #[test]
    fn a_lease_lasts_for_the_lower_bound_and_a_majority_for_the_upper() {
        let mut lease = Lease::default();
        assert!(!lease.holds(at(0), &TIMERS) && !lease.is_with_majority(at(0), &TIMERS));
        lease.hear(at(1000), true);
        assert_eq!((lease.heard(), lease.quorum()), (Some(at(1000)), Some(at(1000))));
        assert!(lease.holds(at(1199), &TIMERS) && !lease.holds(at(1200), &TIMERS));
        assert!(lease.is_with_majority(at(1399), &TIMERS));
        assert!(!lease.is_with_majority(at(1400), &TIMERS));
        // A leader without a majority is a leader, and what was said before of one still was.
        lease.hear(at(1300), false);
        assert!(lease.holds(at(1300), &TIMERS) && !lease.is_with_majority(at(1300), &TIMERS));
        assert_eq!((lease.heard(), lease.quorum()), (Some(at(1300)), Some(at(1000))));
        lease.end();
        assert_eq!((lease.heard(), lease.holds(at(1300), &TIMERS)), (None, false));
    }

    #[test]
    fn a_leader_that_was_found_gone_is_not_waited_for_unless_it_was_heard_since() {
        let mut lease = Lease::default();
        lease.append(at(990));
        lease.hear(at(1000), true);
        lease.vote(at(900));
        assert!(!lease.end_since(at(999)), "it was heard after the connection was lost");
        assert!(lease.holds(at(1001), &TIMERS));
        assert!(lease.end_since(at(1000)));
        assert!(!lease.holds(at(1001), &TIMERS) && !lease.is_with_majority(at(1001), &TIMERS));
        assert_eq!((lease.heard_or_voted(), lease.appended()), (Some(at(900)), Some(at(990))));
    }

    #[test]
    fn an_announced_pause_is_waited_for() {
        let mut lease = Lease::default();
        lease.hear(at(0), true);
        lease.announce(MS * 40);
        assert_eq!((lease.lateness(&TIMERS), lease.reach(&TIMERS)), (Duration::ZERO, MS * 400));
        lease.announce(MS * 250);
        assert_eq!((lease.lateness(&TIMERS), lease.reach(&TIMERS)), (MS * 150, MS * 550));
        assert!(lease.holds(at(349), &TIMERS) && !lease.holds(at(350), &TIMERS));
        assert!(lease.is_with_majority(at(549), &TIMERS));
        assert!(!lease.is_with_majority(at(550), &TIMERS));
        // What was heard may be an answer to the heartbeat before, but to none before that.
        lease.announce(MS * 100);
        assert_eq!((lease.lateness(&TIMERS), lease.reach(&TIMERS)), (Duration::ZERO, MS * 550));
        lease.announce(MS * 100);
        assert_eq!(lease.reach(&TIMERS), MS * 400);
    }

    #[test]
    fn those_that_do_not_vote_answer_later_and_count_as_reachable_for_longer() {
        let mut lease = Lease::default();
        lease.announce(MS * 250);
        assert_eq!(lease.reach_of_followers(&TIMERS), MS * 550, "never less than the others");
        lease.announce_to_followers(MS * 1400);
        assert_eq!(lease.reach_of_followers(&TIMERS), MS * 1700);
        // What was heard may still be an answer to the heartbeat before.
        lease.announce_to_followers(MS * 400);
        assert_eq!(lease.reach_of_followers(&TIMERS), MS * 1700);
        lease.announce_to_followers(MS * 400);
        assert_eq!((lease.reach_of_followers(&TIMERS), lease.reach(&TIMERS)), (MS * 700, MS * 550));
    }

    #[test]
    fn a_vote_and_what_is_in_sync_are_remembered() {
        let mut lease = Lease::default();
        assert_eq!((lease.heard_or_voted(), lease.in_sync()), (None, None));
        lease.vote(at(5));
        assert_eq!((lease.heard_or_voted(), lease.heard()), (Some(at(5)), None));
        lease.hear(at(3), true);
        assert_eq!(lease.heard_or_voted(), Some(at(5)));
        lease.hear(at(7), true);
        lease.catch_up(at(6));
        assert_eq!((lease.heard_or_voted(), lease.in_sync()), (Some(at(7)), Some(at(6))));
    }
}
