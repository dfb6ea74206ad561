//! When a server becomes a candidate.
//!
//! Who would win is for the pre-vote ([`super::pre_vote::may_campaign`]), and votes are Raft's. Random
//! shares of a range come from the caller. Invariants: a server that hears a leader or has just
//! voted waits at least the lower election bound before it asks for anything; who asked in vain
//! waits before it asks again, ever longer up to the upper bound.

use std::collections::BTreeSet;
use std::time::Duration;

use super::config::Timers;
use super::moment::Moment;
use super::server_id::ServerId;

/// The pause before a candidacy is tried again after too few said yes: random in this range, and
/// growing up to the upper election bound.
const RETRY_MIN: Duration = Duration::from_millis(15);
const RETRY_MAX: Duration = Duration::from_millis(55);

/// How often a server that is asked to follow a leader tries without waiting for its turn: the
/// others may not have heard yet that the leader leaves.
const TRANSFER_TRIES: u32 = 2;

/// When the leader's process is gone all see it at once, and ask the others one after the other, so that
/// as a rule one is elected before the next one asks: this part of the lower election bound, which
/// is more than a round trip, lies between two of them, and as much again is random.
const HEAD_START: u32 = 8;

/// No server waits longer for those before it than this many of them take.
const MAX_AHEAD: u32 = 4;

/// A random share of a range, from 0 to 1.
pub type Share<'a> = &'a dyn Fn() -> f64;

/// What a server knows when its timer is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The present moment.
    pub now: Moment,
    /// When a leader was last heard.
    pub heard: Option<Moment>,
    /// When a leader was last heard, or another server voted for.
    pub heard_or_voted: Option<Moment>,
    /// By how much a leader's heartbeats are late.
    pub lateness: Duration,
    /// The election bounds.
    pub timers: Timers,
}

/// What a server does about elections next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing for so long, unless something is heard.
    Wait(Duration),
    /// Asks the others whether it would win.
    PreVote,
}

/// See the module's head.
#[derive(Debug)]
pub struct ElectionTimer {
    /// When the present wait began.
    since: Moment,
    /// How long it lasts.
    patience: Duration,
    /// The longest pause before the next attempt.
    retry: Duration,
    /// Whether the last attempt was in vain, or there was no leader to begin with.
    retrying: bool,
    /// How often this server still tries at once because a leader that leaves has asked it to.
    transfers: u32,
    /// Since when nobody was heard, as the attempt that is under way began.
    silent_since: Moment,
}

impl ElectionTimer {
    /// Begins to wait. In a cold start there is no leader to wait for.
    pub fn new(now: Moment, is_cold: bool, timers: &Timers, share: Share<'_>) -> ElectionTimer {
        let patience = if is_cold {
            between(Duration::ZERO, timers.election_lower / 2, share)
        } else {
            between(timers.election_lower, timers.election_upper, share)
        };
        ElectionTimer {
            since: now,
            patience,
            retry: RETRY_MAX,
            retrying: is_cold,
            transfers: 0,
            silent_since: now,
        }
    }

    /// A leader that leaves has asked this server to follow it.
    pub fn timeout_now(&mut self) {
        (self.patience, self.transfers) = (Duration::ZERO, TRANSFER_TRIES);
    }

    /// The process of the leader is gone, and so many servers ask the others before this one.
    pub fn leader_gone(&mut self, seen: &Seen, ahead: u32, share: Share<'_>) {
        let head_start = seen.timers.election_lower / HEAD_START;
        let (ahead, random) = (ahead.min(MAX_AHEAD), head_start.mul_f64(share()));
        self.since = seen.now;
        self.patience = head_start * ahead + if ahead == 0 { Duration::ZERO } else { random };
        self.transfers = TRANSFER_TRIES;
    }

    /// What is due. After [`Step::PreVote`] the caller tells how that went.
    pub fn step(&mut self, seen: &Seen, share: Share<'_>) -> Step {
        if self.retrying && seen.heard.is_some_and(|at| at > self.since) {
            // There is a leader after all.
            (self.retrying, self.transfers, self.retry) = (false, 0, RETRY_MAX);
            self.patience = between(seen.timers.election_lower, seen.timers.election_upper, share);
        }
        let last = self.since.max(seen.heard_or_voted.unwrap_or(self.since));
        let wait = match (self.transfers > 0, self.retrying) {
            (true, _) => self.patience,
            (false, true) => self.patience,
            (false, false) => self.patience + seen.lateness,
        };
        let rest = wait.saturating_sub(seen.now.since(last));
        if !rest.is_zero() {
            return Step::Wait(rest);
        }
        self.transfers = self.transfers.saturating_sub(1);
        self.silent_since = last;
        Step::PreVote
    }

    /// A majority would vote for this server; whether it becomes a candidate. Not if a leader was
    /// heard, or another server voted for, while it asked.
    pub fn won(&mut self, seen: &Seen, share: Share<'_>) -> bool {
        let timers = &seen.timers;
        self.since = seen.now;
        self.transfers = 0;
        self.retry = RETRY_MAX;
        self.patience = between(timers.election_lower, timers.election_upper, share);
        seen.heard_or_voted.is_none_or(|at| at <= self.silent_since)
    }

    /// Too few would vote for this server: it waits a moment and asks again, ever more patiently.
    pub fn lost(&mut self, seen: &Seen, share: Share<'_>) {
        let timers = &seen.timers;
        self.since = seen.now;
        self.retrying = true;
        self.patience = between(RETRY_MIN, self.retry, share);
        self.retry = (self.retry * 5 / 4).min(timers.election_upper);
    }
}

/// How many of `voters` ask the others before this server when `leader` is gone: those behind it in
/// the list come first, so that each one's turn comes.
pub fn ahead(me: ServerId, leader: ServerId, voters: &BTreeSet<ServerId>) -> u32 {
    let behind = voters.iter().filter(|id| **id > leader);
    let order = behind.chain(voters.iter().filter(|id| **id < leader));
    order.take_while(|id| **id != me).fold(0, |ahead, _| ahead + 1)
}

/// So large a share of the range.
fn between(lower: Duration, upper: Duration, share: Share<'_>) -> Duration {
    lower + upper.saturating_sub(lower).mul_f64(share())
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
    const HALF: Share<'static> = &|| 0.5;

    fn at(ms: u32) -> Moment {
        Moment::from_start(MS * ms)
    }

    fn seen(now: u32) -> Seen {
        Seen {
            now: at(now),
            heard: None,
            heard_or_voted: None,
            lateness: Duration::ZERO,
            timers: TIMERS,
        }
    }

    fn heard(now: u32, when: u32) -> Seen {
        Seen { heard: Some(at(when)), heard_or_voted: Some(at(when)), ..seen(now) }
    }

    fn timer(is_cold: bool) -> ElectionTimer {
        ElectionTimer::new(at(1000), is_cold, &TIMERS, HALF)
    }

    fn wait(ms: u32) -> Step {
        Step::Wait(MS * ms)
    }

    #[test]
    fn a_server_waits_for_a_share_of_the_bounds_after_whom_it_heard_last() {
        let mut timer = timer(false);
        assert_eq!(timer.step(&seen(1000), HALF), wait(300));
        assert_eq!(timer.step(&heard(1250, 1200), HALF), wait(250));
        let voted = Seen { heard_or_voted: Some(at(1240)), ..heard(1250, 1200) };
        assert_eq!(timer.step(&voted, HALF), wait(290));
        assert_eq!(timer.step(&heard(1499, 1200), HALF), wait(1));
        assert_eq!(timer.step(&heard(1500, 1200), HALF), Step::PreVote);
        for (share, patience) in [(0.0, 200), (1.0, 400)] {
            let mut timer = ElectionTimer::new(at(0), false, &TIMERS, &|| share);
            assert_eq!(timer.step(&seen(0), HALF), wait(patience));
        }
    }

    #[test]
    fn late_heartbeats_are_waited_for() {
        let slow = Seen { lateness: MS * 300, ..seen(1000) };
        assert_eq!(timer(false).step(&slow, HALF), wait(600));
        // Nobody is late where nobody leads.
        assert_eq!(timer(true).step(&slow, HALF), wait(50));
        let mut asked = timer(false);
        asked.timeout_now();
        assert_eq!(asked.step(&slow, HALF), Step::PreVote);
    }

    #[test]
    fn in_a_cold_start_half_the_lower_bound_is_the_longest_wait() {
        for (share, patience) in [(0.5, 50), (1.0, 100)] {
            let mut cold = ElectionTimer::new(at(1000), true, &TIMERS, &|| share);
            assert_eq!(cold.step(&seen(1000), HALF), wait(patience));
        }
        // Unless there is a leader after all.
        assert_eq!(timer(true).step(&heard(1001, 1001), HALF), wait(300));
        assert_eq!(timer(true).step(&heard(1001, 1000), HALF), wait(49), "heard before");
    }

    #[test]
    fn who_would_grant_becomes_a_candidate_unless_somebody_was_heard_meanwhile() {
        let mut timer = timer(false);
        assert_eq!(timer.step(&heard(1500, 1100), HALF), Step::PreVote);
        assert!(timer.won(&heard(1510, 1100), HALF));
        assert_eq!(timer.step(&heard(1510, 1100), HALF), wait(300), "time for the votes");
        assert_eq!(timer.step(&heard(1810, 1100), HALF), Step::PreVote);
        assert!(!timer.won(&heard(1820, 1815), HALF), "a leader was heard");
        let voted = Seen { heard_or_voted: Some(at(2125)), ..heard(2130, 1815) };
        assert_eq!(timer.step(&heard(2120, 1815), HALF), Step::PreVote);
        assert!(!timer.won(&voted, HALF), "another one has the vote");
    }

    #[test]
    fn who_asked_in_vain_asks_again_ever_more_patiently_up_to_the_upper_bound() {
        let mut timer = timer(true);
        let most: Share<'_> = &|| 1.0;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            timer.lost(&seen(2000), most);
            let Step::Wait(rest) = timer.step(&seen(2000), most) else { panic!("at once") };
            pauses.push(rest);
        }
        assert_eq!(pauses[..3], [MS * 55, MS * 55 * 5 / 4, MS * 55 * 25 / 16]);
        assert_eq!(pauses.last(), Some(&TIMERS.election_upper));
        timer.lost(&seen(2000), &|| 0.0);
        assert_eq!(timer.step(&seen(2000), most), wait(15));
        // A leader or a candidacy ends that.
        assert_eq!(timer.step(&heard(2001, 2001), HALF), wait(300));
        timer.lost(&seen(3000), most);
        assert_eq!(timer.step(&seen(3000), most), wait(55));
        assert!(timer.won(&seen(3100), HALF));
        timer.lost(&seen(3200), most);
        assert_eq!(timer.step(&seen(3200), most), wait(55));
    }

    #[test]
    fn the_servers_behind_a_leader_that_is_gone_ask_first() {
        let voters = BTreeSet::from([1, 3, 5, 7].map(ServerId));
        let order =
            |leader: u32| [1, 3, 5, 7].map(|me| ahead(ServerId(me), ServerId(leader), &voters));
        assert_eq!(order(3), [2, 3, 0, 1]);
        assert_eq!(order(7), [0, 1, 2, 3]);
        assert_eq!(order(9), [0, 1, 2, 3], "one that the list no longer has");
    }

    #[test]
    fn who_finds_the_leader_gone_asks_at_once_and_again_unless_another_one_is_there() {
        let mut timer = timer(false);
        assert_eq!(timer.step(&heard(1250, 1200), HALF), wait(250));
        let gone = |now| Seen { lateness: MS * 300, ..seen(now) };
        timer.leader_gone(&gone(1251), 0, HALF);
        assert_eq!(timer.step(&gone(1251), HALF), Step::PreVote);
        for (ahead, pause) in [(1, 37), (2, 62), (4, 112), (40, 112)] {
            timer.leader_gone(&gone(1251), ahead, HALF);
            let Step::Wait(rest) = timer.step(&gone(1251), HALF) else { panic!("at once") };
            assert_eq!(rest.as_millis(), pause, "one after the other");
        }
        timer.leader_gone(&gone(1251), 0, HALF);
        assert_eq!(timer.step(&gone(1266), HALF), Step::PreVote);
        // The others may not have noticed yet.
        timer.lost(&gone(1270), HALF);
        assert_eq!(timer.step(&gone(1270), HALF), wait(35));
        // One of them got the vote of this server: it has its time.
        let voted = Seen { heard_or_voted: Some(at(1280)), ..gone(1290) };
        assert_eq!(timer.step(&voted, HALF), wait(25));
        assert_eq!(timer.step(&gone(1305), HALF), Step::PreVote);
        assert!(!timer.won(&Seen { heard_or_voted: Some(at(1310)), ..gone(1315) }, HALF));
        assert_eq!(timer.step(&gone(1315), HALF), wait(300));
    }

    #[test]
    fn a_leadership_transfer_is_tried_twice_at_once() {
        let mut timer = timer(false);
        timer.timeout_now();
        assert_eq!(timer.step(&seen(1000), HALF), Step::PreVote);
        timer.lost(&seen(1000), HALF);
        assert_eq!(timer.step(&seen(1000), HALF), wait(35));
        assert_eq!(timer.step(&seen(1035), HALF), Step::PreVote);
        // Once it is a candidate the request is met.
        timer.timeout_now();
        assert_eq!(timer.step(&seen(9500), HALF), Step::PreVote);
        assert!(timer.won(&seen(9500), HALF));
        assert_eq!(timer.step(&seen(9500), HALF), wait(300));
        // And so it is when there is a leader.
        timer.lost(&seen(9600), HALF);
        timer.timeout_now();
        let led = Seen { heard: Some(at(9700)), heard_or_voted: Some(at(9700)), ..seen(9700) };
        assert_eq!(timer.step(&led, HALF), wait(300));
    }
}
