//! When a leader sends heartbeats, to whom, and who is to answer.
//!
//! What a heartbeat says and how it travels is for the caller. A question is a heartbeat that asks
//! for an answer; a notice is one that gets none. Those that do not vote wait for nothing that a
//! heartbeat brings, so that a large cluster sends them fewer. Invariants: no pause is longer than
//! [`MAX_PAUSE`], unless the operator's interval is; each peer is sent a heartbeat before the time is
//! over that its last one announced; each that votes is asked often enough to be heard twice within
//! the time after which it counts as unreachable; a peer that is not in sync is asked again soon, and
//! one that never answers only with the heartbeats that are due.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::config::Timers;
use super::moment::Moment;
use super::server_id::ServerId;

/// Questions to one peer that may wait for an answer: those of a round trip that is as long as the
/// lower election bound, and little enough for a server that hangs.
const MAX_OPEN: usize = 4;

/// A leader sends at most one heartbeat in this time to those that vote, few as they are, and to those that are
/// not in sync or whom Raft's own go to, which may be many. Where that makes the pause longer than
/// `heart_beat_interval`, they wait for so much longer before they take the leader for lost.
const SPACING: Duration = Duration::from_micros(2500);

/// The same for those that do not vote, so that a large cluster costs its leader no more than 125 of
/// them in a second.
const FOLLOWER_SPACING: Duration = Duration::from_millis(8);

/// The longest pause between two heartbeats that a server believes its leader to have announced;
/// the longest that a list of the most members makes.
pub const MAX_PAUSE: Duration = Duration::from_secs(10);

/// In an idle cluster heartbeats come so much less often than `heart_beat_interval`, and the
/// servers wait by three such intervals longer before they take the leader for lost.
const IDLE: u32 = 4;

/// After so many questions in a row that it left unanswered a peer is no longer asked in between.
const LOST: u32 = 10;

/// So often at least a peer that has just shown itself is asked again, however long it was away: it
/// takes a moment to learn from the others whether it may take part.
const WELCOME: u32 = 4;

/// When the next heartbeats are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The next one to those that vote, and the next time to look who else is due.
    pub voters: Duration,
    /// The next one to each of the others, at the latest.
    pub followers: Duration,
}

impl Pace {
    /// How long after a heartbeat to so many peers the next one is due.
    pub fn of(timers: &Timers, (voters, followers): (usize, usize), is_idle: bool) -> Pace {
        let wanted = if is_idle { timers.heartbeat * IDLE } else { timers.heartbeat };
        let longest = MAX_PAUSE.max(timers.heartbeat);
        let pace = wanted.max(spaced(SPACING, voters)).min(longest);
        let turns =
            spaced(FOLLOWER_SPACING, followers).as_micros().div_ceil(pace.as_micros().max(1));
        let followers = match u32::try_from(turns).unwrap_or(u32::MAX) {
            0 | 1 => pace,
            // With half a turn to spare, so that one which comes a little early is not the one before.
            turns => pace.saturating_mul(turns).saturating_add(pace / 2).min(longest),
        };
        Pace { voters: pace, followers }
    }

    fn max(self, other: Pace) -> Pace {
        let (voters, followers) =
            (self.voters.max(other.voters), self.followers.max(other.followers));
        Pace { voters, followers }
    }

    /// Whether those that do not vote are sent as many heartbeats as those that do.
    fn is_one(self) -> bool {
        self.followers <= self.voters
    }
}

fn spaced(spacing: Duration, peers: usize) -> Duration {
    spacing.saturating_mul(u32::try_from(peers).unwrap_or(u32::MAX))
}

/// Every which heartbeat asks for an answer.
fn ask_every(pace: Duration, reach: Duration) -> u64 {
    let heartbeats = (reach / 2).as_millis() / pace.as_millis().max(1);
    u64::try_from(heartbeats).unwrap_or(u64::MAX).max(1)
}

/// What a leader knows of a peer.
#[derive(Default)]
struct Peer {
    votes: bool,
    /// When it was sent the last one, and until when it was told then that it hears nothing; `None` if it is
    /// due.
    sent: Option<(Moment, Moment)>,
    /// Questions that wait for its answer.
    open: usize,
    /// Whether its latest answer was that it is in sync, and none is owed since.
    in_sync: bool,
    /// Questions in a row that came to nothing.
    missed: u32,
    /// Since when.
    silent: Option<Moment>,
}

/// What goes to a peer with a heartbeat to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeat {
    /// One that it is to answer.
    Question,
    /// One that gets no answer.
    Notice,
}

/// The heartbeats of one leader during one term.
#[derive(Default)]
pub struct Heartbeats {
    peers: BTreeMap<ServerId, Peer>,
    count: u64,
    /// When Raft was last made to send its own.
    nudged: Option<Moment>,
}

impl Heartbeats {
    /// Takes over the peers, and those of them that vote; whether there are others than before.
    pub fn set_peers(&mut self, ids: &BTreeSet<ServerId>, voters: &BTreeSet<ServerId>) -> bool {
        let is_same = |(id, peer): (&ServerId, &Peer)| peer.votes == voters.contains(id);
        if self.peers.keys().eq(ids) && self.peers.iter().all(is_same) {
            return false;
        }
        self.peers.retain(|id, _| ids.contains(id));
        for id in ids {
            self.peers.entry(*id).or_default().votes = voters.contains(id);
        }
        true
    }

    /// Whether this peer votes.
    pub fn votes(&self, id: ServerId) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.votes)
    }

    /// How many peers vote, and how many do not.
    fn counts(&self) -> (usize, usize) {
        let voters = self.peers.values().filter(|peer| peer.votes).count();
        (voters, self.peers.len() - voters)
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = ServerId> + '_ {
        self.peers.keys().copied()
    }

    /// How long after a heartbeat that is sent now the next one is due. The cluster is idle if no
    /// handover is under way and all are in sync, but for those that have been gone for so long that
    /// they do not count as reachable by the slower heartbeats of an idle cluster either.
    pub fn pace(&self, now: Moment, timers: &Timers, is_handing_over: bool) -> Pace {
        let gone_after = (timers.election_upper + self.idle_pace(timers).followers) * 2;
        let is_gone = |peer: &Peer| peer.silent.is_some_and(|at| now.since(at) >= gone_after);
        let is_idle =
            !is_handing_over && self.peers.values().all(|peer| peer.in_sync || is_gone(peer));
        Pace::of(timers, self.counts(), is_idle)
    }

    /// The longest pauses that an earlier heartbeat can have announced.
    pub fn idle_pace(&self, timers: &Timers) -> Pace {
        let of = |is_idle| Pace::of(timers, self.counts(), is_idle);
        of(true).max(of(false))
    }

    /// What goes to whom with the heartbeat that is due, and whether that one votes, `reach` being how
    /// long ago a server that votes was heard that counts as reachable. While a key waits for all to
    /// have it, it matters at once who of them is there.
    pub fn send(
        &mut self,
        now: Moment,
        pace: Pace,
        reach: Duration,
        is_handing_over: bool,
    ) -> Vec<(ServerId, Heartbeat, bool)> {
        let every = if is_handing_over { 1 } else { ask_every(pace.voters, reach) };
        let asks = self.count.is_multiple_of(every);
        self.count = self.count.wrapping_add(1);
        let mut sent = Vec::new();
        for (&id, peer) in &mut self.peers {
            // The next time that they are looked at would be too late, by what it was told, or by how soon
            // its answer is wanted now.
            let is_due = peer
                .sent
                .is_none_or(|(at, told)| now + pace.voters >= told.min(at + pace.followers));
            if !peer.votes && !is_due {
                continue;
            }
            let next = if peer.votes { pace.voters } else { pace.followers };
            peer.sent = Some((now, now + next));
            let asks = asks || !peer.votes && !pace.is_one();
            if (asks || !peer.in_sync) && peer.open < MAX_OPEN {
                peer.open += 1;
                peer.in_sync = false;
                sent.push((id, Heartbeat::Question, peer.votes));
            } else if peer.in_sync {
                sent.push((id, Heartbeat::Notice, peer.votes));
            }
        }
        sent
    }

    /// Peers that have just started, whom to ask at once.
    pub fn welcome(&mut self, new_peers: &BTreeSet<ServerId>) -> Vec<ServerId> {
        for (_, peer) in self.peers.iter_mut().filter(|(id, _)| new_peers.contains(id)) {
            (peer.in_sync, peer.missed) = (false, peer.missed.min(LOST - WELCOME));
        }
        self.ask(|id, _| new_peers.contains(&id))
    }

    /// Whom to ask again between two heartbeats to all: those whose last answer was that they are
    /// not in sync, or that came to nothing.
    pub fn ask_again(&mut self) -> Vec<ServerId> {
        self.ask(|_, peer| !peer.in_sync && peer.missed < LOST)
    }

    /// Not who owes an answer.
    fn ask(&mut self, whom: impl Fn(ServerId, &Peer) -> bool) -> Vec<ServerId> {
        let asked = self.peers.iter_mut().filter(|(id, peer)| peer.open == 0 && whom(**id, peer));
        asked
            .map(|(id, peer)| {
                peer.open += 1;
                *id
            })
            .collect()
    }

    /// Takes an answer: whether the peer says that it is in sync; `None` if none came. Whether it is
    /// still to be asked again.
    pub fn hear(&mut self, id: ServerId, in_sync: Option<bool>, now: Moment) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        peer.open = peer.open.saturating_sub(1);
        match in_sync {
            None => {
                peer.missed = peer.missed.saturating_add(1);
                peer.silent.get_or_insert(now);
            }
            Some(in_sync) => (peer.missed, peer.silent, peer.in_sync) = (0, None, in_sync),
        }
        !peer.in_sync
    }

    /// How long after its answer a peer that was not in sync is asked again.
    pub fn follow_up(&self, timers: &Timers) -> Duration {
        let lagging = self.peers.values().filter(|peer| !peer.in_sync).count();
        (timers.heartbeat / 2).max(spaced(SPACING, lagging)).min(MAX_PAUSE)
    }

    /// Whether Raft is to send heartbeats of its own, since a peer's log is behind or a higher term
    /// is known there. Those go to all, which a large cluster must not have to bear all the time.
    pub fn nudges_raft(&mut self, now: Moment, timers: &Timers) -> bool {
        let pause = timers.heartbeat.max(spaced(SPACING, self.peers.len()));
        let is_due = self.nudged.is_none_or(|at| now.since(at) >= pause);
        if is_due {
            self.nudged = Some(now);
        }
        is_due
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

    fn ids(ids: impl IntoIterator<Item = u32>) -> BTreeSet<ServerId> {
        ids.into_iter().map(ServerId).collect()
    }

    fn of(peers: impl IntoIterator<Item = u32>) -> Heartbeats {
        let mut heartbeats = Heartbeats::default();
        let peers = ids(peers);
        assert!(heartbeats.set_peers(&peers, &peers));
        heartbeats
    }

    /// What a heartbeat brings where all vote, at any time.
    fn send(
        heartbeats: &mut Heartbeats,
        is_handing_over: bool,
    ) -> Vec<(ServerId, Heartbeat, bool)> {
        heartbeats.send(at(0), Pace::of(&TIMERS, (1, 0), false), MS * 400, is_handing_over)
    }

    fn questions(sent: &[(ServerId, Heartbeat, bool)]) -> Vec<u32> {
        let asked = sent.iter().filter(|(_, what, _)| *what == Heartbeat::Question);
        asked.map(|(id, ..)| id.0).collect()
    }

    fn names(ids: Vec<ServerId>) -> Vec<u32> {
        ids.into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn an_idle_cluster_and_a_large_one_are_sent_fewer_heartbeats_within_bounds() {
        let of = |timers: &Timers, peers| {
            [false, true].map(|is_idle| Pace::of(timers, peers, is_idle)).map(|pace| {
                assert!(pace.followers >= pace.voters);
                [pace.voters, pace.followers]
            })
        };
        let pace_of = |voters, followers| of(&TIMERS, (voters, followers));
        assert_eq!(pace_of(4, 0), [[MS * 100; 2], [MS * 400; 2]]);
        assert_eq!(pace_of(40, 0), [[MS * 100; 2], [MS * 400; 2]]);
        assert_eq!(pace_of(200, 0), [[MS * 500; 2]; 2]);
        // Those that do not vote take part of the turns, and no others wait for theirs.
        assert_eq!(pace_of(6, 12), [[MS * 100; 2], [MS * 400; 2]]);
        assert_eq!(pace_of(6, 13), [[MS * 100, MS * 250], [MS * 400; 2]]);
        assert_eq!(pace_of(6, 193), [[MS * 100, MS * 1650], [MS * 400, MS * 1800]]);
        let longest = [[MS * 100, MAX_PAUSE], [MS * 400, MAX_PAUSE]];
        assert_eq!((pace_of(6, 10_000), pace_of(6, usize::MAX)), (longest, longest));
        assert_eq!(pace_of(usize::MAX, 6), [[MAX_PAUSE; 2]; 2]);
        let slow = Timers { heartbeat: MAX_PAUSE * 9, ..TIMERS };
        assert_eq!(of(&slow, (4, 300)), [[MAX_PAUSE * 9; 2]; 2]);
    }

    /// Whatever changes in between, nobody hears the leader later than it was told.
    #[test]
    fn those_that_do_not_vote_are_sent_their_share_before_the_time_that_they_were_told() {
        let mut heartbeats = Heartbeats::default();
        let all = ids(2..202);
        assert!(heartbeats.set_peers(&all, &ids(2..8)) && heartbeats.votes(ServerId(7)));
        assert!(!heartbeats.votes(ServerId(8)) && !heartbeats.votes(ServerId(999)));
        let (mut now, mut told) = (at(0), BTreeMap::<ServerId, Moment>::new());
        let mut run = |heartbeats: &mut Heartbeats, turns: u32, is_handing_over| {
            let (begun, mut count) = (now, [0, 0]);
            for _ in 0..turns {
                let pace = heartbeats.pace(now, &TIMERS, is_handing_over);
                for (id, what, votes) in heartbeats.send(now, pace, MS * 400, is_handing_over) {
                    // A timer is a little late.
                    assert!(told.get(&id).is_none_or(|told| now <= *told + MS), "{id}: {now:?}");
                    let next = if votes { pace.voters } else { pace.followers };
                    told.insert(id, now + next);
                    count[usize::from(votes)] += 1;
                    assert!(votes || what == Heartbeat::Question, "they are sent few enough");
                    heartbeats.hear(id, Some(true), now);
                }
                now = now + pace.voters + MS;
            }
            (count, now.since(begun))
        };
        // All at once at first, then every fourth turn of an idle cluster.
        assert_eq!(run(&mut heartbeats, 1, true).0, [194, 6]);
        let (count, _) = run(&mut heartbeats, 40, false);
        assert_eq!(count, [194 * 10, 6 * 40]);
        let (count, took) = run(&mut heartbeats, 48, true);
        assert_eq!(count, [194 * 3, 6 * 48], "{took:?}");
        // One that votes no longer still hears in time, and one that does now with the next.
        assert!(heartbeats.set_peers(&all, &ids(3..9)), "another one votes");
        assert_eq!(run(&mut heartbeats, 1, false).0[1], 6);
        run(&mut heartbeats, 30, false);
        assert!(!heartbeats.set_peers(&all, &ids(3..9)));
        // Or none at all.
        assert!(heartbeats.set_peers(&all, &ids([])));
        run(&mut heartbeats, 30, false);
    }

    /// The leader waits for their answers no longer than by the shorter pause from then on.
    #[test]
    fn those_that_do_not_vote_are_asked_earlier_than_they_were_told_when_the_pace_rises() {
        let mut heartbeats = Heartbeats::default();
        heartbeats.set_peers(&ids(2..60), &ids(2..8));
        let sent = |heartbeats: &mut Heartbeats, now, is_idle| {
            let pace = Pace::of(&TIMERS, (6, 52), is_idle);
            let sent = heartbeats.send(at(now), pace, MS * 400, true);
            for (id, ..) in &sent {
                heartbeats.hear(*id, Some(true), at(now));
            }
            (sent.len() - 6, pace.followers)
        };
        assert_eq!(sent(&mut heartbeats, 0, true), (52, MS * 1000));
        assert_eq!(sent(&mut heartbeats, 400, true), (0, MS * 1000), "they are told to wait");
        assert_eq!(sent(&mut heartbeats, 449, false), (0, MS * 550));
        assert_eq!(sent(&mut heartbeats, 450, false), (52, MS * 550), "or it would be 551 ms");
    }

    #[test]
    fn each_peer_is_to_answer_twice_within_its_time() {
        for (pace, reach, every) in
            [(100, 400, 2), (200, 500, 1), (40, 420, 5), (500, 800, 1), (0, 400, 200)]
        {
            assert_eq!(ask_every(MS * pace, MS * reach), every, "{pace} {reach}");
        }
        let mut heartbeats = of([2]);
        let mut sent = |handover| {
            heartbeats.hear(ServerId(2), Some(true), at(0));
            questions(&send(&mut heartbeats, handover)).len()
        };
        let asked: Vec<usize> = (0..5).map(|_| sent(false)).collect();
        assert_eq!(asked, [1, 0, 1, 0, 1]);
        assert_eq!((sent(true), sent(true)), (1, 1), "a key waits for it");
    }

    #[test]
    fn a_cluster_is_idle_when_all_are_in_sync_or_long_gone() {
        let mut heartbeats = of([2, 3]);
        let pace = |heartbeats: &Heartbeats, now, handover| {
            heartbeats.pace(at(now), &TIMERS, handover).voters
        };
        assert_eq!(pace(&heartbeats, 0, false), MS * 100, "nobody has answered yet");
        heartbeats.hear(ServerId(2), Some(true), at(0));
        heartbeats.hear(ServerId(3), Some(true), at(0));
        assert_eq!((pace(&heartbeats, 0, false), pace(&heartbeats, 0, true)), (MS * 400, MS * 100));
        heartbeats.hear(ServerId(3), None, at(10));
        assert_eq!(pace(&heartbeats, 9999, false), MS * 400, "its last answer still stands");
        send(&mut heartbeats, true);
        heartbeats.hear(ServerId(2), Some(true), at(20));
        heartbeats.hear(ServerId(3), None, at(20));
        // It has been silent since 10, and gone after twice the upper bound and an idle pause.
        assert_eq!(
            (pace(&heartbeats, 1609, false), pace(&heartbeats, 1610, false)),
            (MS * 100, MS * 400)
        );
        heartbeats.hear(ServerId(3), Some(false), at(1610));
        assert_eq!(pace(&heartbeats, 9999, false), MS * 100, "it is back, and behind");
    }

    #[test]
    fn peers_come_and_go_and_the_others_are_known_as_before() {
        let mut heartbeats = of([2, 3]);
        heartbeats.hear(ServerId(2), Some(true), at(0));
        assert!(!heartbeats.set_peers(&ids([2, 3]), &ids([2, 3])));
        assert!(heartbeats.set_peers(&ids([2, 4]), &ids([2, 4])));
        assert_eq!(names(heartbeats.peers().collect()), [2, 4]);
        assert_eq!(names(heartbeats.ask_again()), [4]);
        assert!(!heartbeats.hear(ServerId(3), Some(false), at(0)), "it has left");
    }

    #[test]
    fn a_peer_that_hangs_is_owed_few_questions_and_no_notice() {
        let mut heartbeats = of([2]);
        for _ in 0..MAX_OPEN {
            assert_eq!(questions(&send(&mut heartbeats, false)), [2]);
        }
        assert!(send(&mut heartbeats, false).is_empty());
        assert!(heartbeats.hear(ServerId(2), None, at(0)));
        assert_eq!(questions(&send(&mut heartbeats, false)), [2]);
        heartbeats.hear(ServerId(2), Some(true), at(0));
        assert_eq!(questions(&send(&mut heartbeats, false)), [2]);
        heartbeats.hear(ServerId(2), Some(true), at(0));
        // One that is in sync is sent notices in between, however many answers it owes.
        let sent = send(&mut heartbeats, false);
        assert_eq!(sent, [(ServerId(2), Heartbeat::Notice, true)]);
    }

    #[test]
    fn who_is_behind_is_asked_again_and_who_has_just_come_back_at_once() {
        let mut heartbeats = of([12, 13, 14, 15]);
        send(&mut heartbeats, false);
        assert!(!heartbeats.hear(ServerId(12), Some(true), at(0)));
        assert!(heartbeats.hear(ServerId(13), Some(false), at(0)));
        for _ in 0..LOST {
            assert!(heartbeats.hear(ServerId(15), None, at(0)));
        }
        // Not one that is in sync, nor one whose answer is still due, nor one that is long gone.
        assert_eq!(names(heartbeats.ask_again()), [13]);
        assert!(names(heartbeats.ask_again()).is_empty(), "its answer is due");
        heartbeats.hear(ServerId(13), Some(false), at(1));

        assert_eq!(
            names(heartbeats.welcome(&ids([12, 15, 77]))),
            [12, 15],
            "at once, and nobody else"
        );
        heartbeats.hear(ServerId(12), Some(true), at(1));
        heartbeats.hear(ServerId(15), None, at(1));
        for more in 1..WELCOME {
            assert_eq!(names(heartbeats.ask_again()), [13, 15], "{more}");
            heartbeats.hear(ServerId(13), Some(false), at(1));
            heartbeats.hear(ServerId(15), None, at(1));
        }
        assert_eq!(names(heartbeats.ask_again()), [13], "it was asked often enough");
    }

    #[test]
    fn those_who_are_behind_are_asked_soon_however_many_they_are() {
        let pause_of = |lagging: u32| of(2..lagging + 2).follow_up(&TIMERS);
        assert_eq!((pause_of(1), pause_of(20), pause_of(100)), (MS * 50, MS * 50, MS * 250));
        assert_eq!(pause_of(5000), MAX_PAUSE);
        let mut heartbeats = of(2..102);
        heartbeats.hear(ServerId(2), Some(true), at(0));
        assert_eq!(heartbeats.follow_up(&TIMERS), SPACING * 99);
    }

    #[test]
    fn raft_is_made_to_send_its_own_once_in_a_pause() {
        let mut heartbeats = of([2]);
        let mut nudges = |now| heartbeats.nudges_raft(at(now), &TIMERS);
        assert_eq!([0, 99, 100, 150, 200].map(&mut nudges), [true, false, true, false, true]);
    }
}
