//! The leader's heart beats, and what a box makes of them.
//!
//! They are this box's own and no business of openraft's, whose core has nothing to do as long as
//! nobody is behind. A beat says who leads, how far its log is, how old the current key is and
//! when the next beat is due. As often as it needs to know whom it reaches the leader asks for an
//! answer; where beats come more often, the others are notes, which get none. Who is behind, or
//! knows of a higher ballot, says so in its answer; then openraft beats as well, and its appends do
//! the rest. Such a box is asked again soon, and so is one that has just started: neither waits for
//! the next beat.
//!
//! What must hold: beats decide nothing. They put an election off and tell who is there; terms,
//! votes and the log change by openraft alone. Only a beat of the ballot that a box follows by its
//! own Raft counts, so that a leader that was deposed keeps nobody from an election.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use openraft::impls::EmptyNode;
use openraft::metrics::RaftServerMetrics;
use openraft::ServerState;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, Instant};

use super::peer_client::PeerCourier;
use super::running::Running;
use super::shared::Shared;
use crate::consensus::log_store::LogEnds;
use crate::consensus::network::{Chronicle, Courier};
use crate::consensus::{ballot_of, log_end_of};
use crate::core::config::Timers;
use crate::core::key_ring::HistoryId;
use crate::core::moment::millis;
use crate::core::rejoin::{Ballot, Quarantine};
use crate::core::server_id::ServerId;
use crate::fault::{fail_point, guarded};
use crate::rpc::{self, Request, Response, Unable, WireBeat};

/// Beats to one box that may wait for an answer: those of a round trip that is as long as the
/// lower election bound, and little enough for a box that hangs.
const MAX_OPEN: usize = 4;

/// A leader sends at most one beat in this time, so that a large fleet costs it no more than 400
/// in a second. Above some 40 boxes their beats come less often than `heart_beat_interval`, and
/// all of them wait for so much longer before they take the leader for lost.
const SPACING: Duration = Duration::from_micros(2500);

/// The longest pause between two beats that a box believes its leader to have announced; the
/// longest that a list of the most members makes.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// In a calm group beats come so much less often than `heart_beat_interval`, and the boxes wait by
/// three such intervals longer before they take the leader for lost.
const CALM: u32 = 4;

/// After so many beats in a row that it left unanswered a box is no longer asked between beats.
const LOST: u32 = 10;

/// So often at least a box that has just shown itself is asked again, however long it was away: it
/// takes a moment to learn from the others whether it may take part.
const WELCOME: u32 = 4;

/// How long after its answer a box that was not level is asked again, with so many of them.
fn follow_up(timers: &Timers, unwell: usize) -> Duration {
    let count = u32::try_from(unwell).unwrap_or(u32::MAX);
    (timers.heart_beat / 2).max(SPACING.saturating_mul(count)).min(MAX_PAUSE)
}

/// How long after a beat to so many other boxes the next one is due.
fn pace(timers: &Timers, others: usize, is_calm: bool) -> Duration {
    let count = u32::try_from(others).unwrap_or(u32::MAX);
    let wanted = if is_calm { timers.heart_beat * CALM } else { timers.heart_beat };
    wanted.max(SPACING.saturating_mul(count)).min(MAX_PAUSE.max(timers.heart_beat))
}

/// Every which beat asks for an answer: each box is to be heard twice within the time after which
/// it counts as unreachable, or with each beat where beats are too seldom for that.
fn ask_every(pace: Duration, reach: Duration) -> u64 {
    let beats = (reach / 2).as_millis() / pace.as_millis().max(1);
    u64::try_from(beats).unwrap_or(u64::MAX).max(1)
}

/// Beats whenever this box leads; returns only when Raft is gone.
pub(super) async fn beat(shared: Arc<Shared>, running: Running) -> String {
    let mut server = running.raft.server_metrics();
    loop {
        let led = match server.wait_for(|m| m.state == ServerState::Leader).await {
            Ok(metrics) => ballot_of(&metrics.vote),
            Err(_) => return GONE.to_owned(),
        };
        let mut pulse = Pulse::new(&shared, &running, led);
        if let Err(words) = pulse.beat().await {
            return words;
        }
    }
}

const GONE: &str = "its core is gone";

/// What a leader knows of another box.
#[derive(Default)]
struct Pulsed {
    /// Beats that wait for its answer.
    open: usize,
    /// Whether its latest answer was that it is level, and none is owed since.
    well: bool,
    /// Beats in a row that came to nothing.
    missed: u32,
    /// Since when.
    silent: Option<Instant>,
}

/// The beats of one reign.
struct Pulse<'a> {
    shared: &'a Arc<Shared>,
    running: &'a Running,
    ballot: Ballot,
    others: BTreeMap<ServerId, Pulsed>,
    asks: JoinSet<(ServerId, Option<Response>)>,
    count: u64,
    /// When those that are not level are asked again.
    again: Option<Instant>,
    /// When openraft was last made to beat.
    nudged: Option<Instant>,
}

impl<'a> Pulse<'a> {
    fn new(shared: &'a Arc<Shared>, running: &'a Running, ballot: Ballot) -> Pulse<'a> {
        let (others, asks) = (BTreeMap::new(), JoinSet::new());
        Pulse { shared, running, ballot, others, asks, count: 0, again: None, nudged: None }
    }

    /// Beats until this box leads no longer.
    async fn beat(&mut self) -> Result<(), String> {
        let mut server = self.running.raft.server_metrics();
        let mut settings = self.shared.watch_settings();
        let mut leaving = self.shared.leaving.subscribe();
        self.meet(&server.borrow_and_update());
        let mut due = pin!(sleep_until(Instant::now()));
        loop {
            tokio::select! {
                _ = leaving.changed() => due.as_mut().reset(Instant::now()),
                () = &mut due => {
                    fail_point("beat");
                    if *self.shared.leaving.borrow() {
                        self.part();
                        std::future::pending::<()>().await;
                    }
                    let pace = self.send();
                    due.as_mut().reset(Instant::now() + pace);
                }
                () = sleep_until(self.again.unwrap_or_else(Instant::now)), if self.again.is_some() => {
                    self.again = None;
                    self.ask_again();
                }
                () = self.shared.newcomer.notified() => self.welcome(),
                Some(answer) = self.asks.join_next() => {
                    if let Ok((id, answer)) = answer {
                        self.hear(id, answer).await?;
                    }
                }
                changed = server.changed() => {
                    changed.map_err(|_| GONE)?;
                    let metrics = server.borrow_and_update();
                    let leads = metrics.state == ServerState::Leader;
                    if !leads || ballot_of(&metrics.vote) != self.ballot {
                        return Ok(());
                    }
                    if self.meet(&metrics) {
                        due.as_mut().reset(Instant::now());
                    }
                }
                _ = settings.changed() => due.as_mut().reset(Instant::now()),
            }
        }
    }

    /// Takes over the members of Raft's membership; whether there are others than before.
    fn meet(&mut self, metrics: &RaftServerMetrics<ServerId, EmptyNode>) -> bool {
        let nodes = metrics.membership_config.membership().nodes();
        let ids: Vec<ServerId> =
            nodes.map(|(id, _)| *id).filter(|id| *id != self.shared.me).collect();
        if self.others.keys().eq(&ids) {
            return false;
        }
        self.others.retain(|id, _| ids.contains(id));
        for id in ids {
            self.others.entry(id).or_default();
        }
        true
    }

    /// Whether nothing is under way and all answer, but for those that have been gone for so long
    /// that they do not count as reachable by the slower beats of a calm group either.
    fn is_calm(&self) -> bool {
        let timers = self.shared.settings().timers;
        let gone_after = (timers.election_upper + pace(&timers, self.others.len(), true)) * 2;
        let is_gone = |other: &Pulsed| other.silent.is_some_and(|at| at.elapsed() >= gone_after);
        !self.shared.is_handing_over()
            && self.others.values().all(|other| other.well || is_gone(other))
    }

    /// One beat to every other box; after how long the next one is due.
    fn send(&mut self) -> Duration {
        let timers = self.shared.settings().timers;
        let pace = pace(&timers, self.others.len(), self.is_calm());
        let ends = self.running.log.ends();
        // Deposed, and about to hear of it.
        if !ends.follows(self.ballot) {
            return pace;
        }
        self.shared.note_pace(pace);
        let beat = self.compose(&ends, pace);
        let Some(body) = rpc::encode(&Request::Beat(beat)) else { return pace };
        // While a key waits for all to have it, it matters at once who is there.
        let every = match self.shared.is_handing_over() {
            true => 1,
            false => ask_every(pace, self.shared.reach()),
        };
        let asks = self.count.is_multiple_of(every);
        self.count = self.count.wrapping_add(1);
        for (&id, other) in &mut self.others {
            if (asks || !other.well) && other.open < MAX_OPEN {
                other.open += 1;
                other.well = false;
                self.asks.spawn(ask(self.shared.clone(), id, beat, timers.election_lower));
            } else if other.well {
                self.shared.post.note(id, body.clone(), pace);
            }
        }
        pace
    }

    /// Boxes that have just started need not wait for the next beat.
    fn welcome(&mut self) {
        let newcomers = self.shared.take_newcomers();
        for (id, other) in &mut self.others {
            if newcomers.contains(id) {
                (other.well, other.missed) = (false, other.missed.min(LOST - WELCOME));
            }
        }
        self.ask(|id, other| newcomers.contains(&id) && !other.well);
    }

    /// One more beat to those whose last answer was that they are not level, or that came to nothing.
    fn ask_again(&mut self) {
        self.ask(|_, other| !other.well && other.missed < LOST);
    }

    /// A beat between two of those that go to all; not to who owes an answer.
    fn ask(&mut self, whom: impl Fn(ServerId, &Pulsed) -> bool) {
        let timers = self.shared.settings().timers;
        let ends = self.running.log.ends();
        if !ends.follows(self.ballot) || *self.shared.leaving.borrow() {
            return;
        }
        // When the next one to all is due was said with the last; it is never later than this.
        let beat = self.compose(&ends, pace(&timers, self.others.len(), true));
        for (&id, other) in &mut self.others {
            if other.open == 0 && whom(id, other) {
                other.open += 1;
                self.asks.spawn(ask(self.shared.clone(), id, beat, timers.election_lower));
            }
        }
    }

    /// Has those that are not level asked again soon.
    fn follow_up(&mut self) {
        if self.again.is_none() {
            let unwell = self.others.values().filter(|other| !other.well).count();
            let pause = follow_up(&self.shared.settings().timers, unwell);
            self.again = Some(Instant::now() + pause);
        }
    }

    fn compose(&self, ends: &LogEnds, next: Duration) -> WireBeat {
        WireBeat {
            ballot: self.ballot,
            log_end: ends.last.as_ref().map(log_end_of),
            commit: ends.committed.as_ref().map(log_end_of),
            age: self.shared.current_age(),
            quorum: self.shared.has_quorum(),
            next_ms: millis(next).try_into().unwrap_or(u32::MAX),
        }
    }

    /// Tells all that no further beat comes, so that they need not wait for one.
    fn part(&self) {
        let beat = self.compose(&self.running.log.ends(), Duration::ZERO);
        let Some(body) = rpc::encode(&Request::Beat(beat)) else { return };
        let limit = self.shared.settings().timers.heart_beat;
        for id in self.others.keys() {
            self.shared.post.note(*id, body.clone(), limit);
        }
    }

    /// Takes an answer to a beat, or the want of one.
    async fn hear(&mut self, id: ServerId, answer: Option<Response>) -> Result<(), String> {
        let Some(other) = self.others.get_mut(&id) else { return Ok(()) };
        other.open = other.open.saturating_sub(1);
        let Some(Response::Beat { vote, level }) = answer else {
            other.missed = other.missed.saturating_add(1);
            other.silent.get_or_insert_with(Instant::now);
            self.follow_up();
            return Ok(());
        };
        (other.missed, other.silent) = (0, None);
        let follows = vote == (self.ballot, true);
        if follows {
            self.shared.acknowledged(id);
        }
        other.well = follows && level;
        if other.well {
            return Ok(());
        }
        self.follow_up();
        // Its log is behind, or a higher ballot is known there: both are openraft's business. It
        // beats to all, which a large group must not have to bear all the time.
        let timers = self.shared.settings().timers;
        let pause = pace(&timers, self.others.len(), false);
        if self.nudged.is_none_or(|at| at.elapsed() >= pause) {
            self.nudged = Some(Instant::now());
            self.running.raft.trigger().heartbeat().await.map_err(|_| GONE)?;
        }
        Ok(())
    }
}

/// One beat that asks for an answer, and what came of it.
async fn ask(
    shared: Arc<Shared>,
    id: ServerId,
    beat: WireBeat,
    limit: Duration,
) -> (ServerId, Option<Response>) {
    let courier = PeerCourier(shared);
    // An answer that never comes would count as open for ever.
    let answer = guarded(async {
        fail_point("beat-ask");
        courier.call(id, Request::Beat(beat), limit).await
    });
    (id, answer.await.ok().and_then(Result::ok))
}

/// Takes a beat of `from`, and answers it.
///
/// # Errors
/// If no leader of that ballot could have sent it.
pub(super) fn take(
    shared: &Shared,
    running: &Running,
    from: ServerId,
    history: Option<HistoryId>,
    beat: &WireBeat,
) -> Result<Response, Unable> {
    // Only its own candidate becomes the leader of a ballot.
    if beat.ballot.node != from {
        return Err(Unable::Malformed);
    }
    let ends = running.log.ends();
    let follows = ends.follows(beat.ballot);
    let mut level = false;
    if follows {
        let next = Duration::from_millis(beat.next_ms.into()).min(MAX_PAUSE);
        match next.is_zero() {
            true => shared.note_farewell(),
            false => shared.note_beat(beat.quorum, next),
        }
        shared.note_age(history, beat.age);
        if *shared.quarantine.borrow() != Quarantine::Lifted {
            shared.end_quarantine(running, beat.ballot, beat.commit);
        }
        let applied = shared.views.borrow().applied;
        level = ends.last.as_ref().map(log_end_of) == beat.log_end
            && beat.commit.is_none_or(|commit| applied >= commit.index);
        if level && beat.quorum {
            shared.note_level();
        }
    }
    let vote = ends.vote.map_or((Ballot::default(), false), |v| (ballot_of(&v), v.committed));
    Ok(Response::Beat { vote, level })
}

/// What Raft answers to one who wants a vote while a leader is there; `None` if none was heard
/// lately, and Raft is to be asked. openraft has a lease of its own, which beats do not renew.
pub(super) fn refuse_vote(shared: &Shared, running: &Running) -> Option<Response> {
    let LogEnds { vote: Some(vote), last, .. } = running.log.ends() else { return None };
    // With a vote that is not committed this box follows nobody, whoever was heard before.
    let follows_another = vote.committed && vote.leader_id.node_id != shared.me;
    (follows_another && shared.hears_leader()).then(|| Response::Vote {
        vote: (ballot_of(&vote), true),
        granted: false,
        log_end: last.as_ref().map(log_end_of),
    })
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::Mutex;

    use openraft::Vote;

    use super::*;
    use crate::core::config::Member;
    use crate::node::bench::Bench;
    use crate::node::outside::{Mail, Outside, Porter, Reply};
    use crate::transport::peers::CallError;
    use crate::transport::{Body, Heard, Me};

    const MS: Duration = Duration::from_millis(1);

    fn timers() -> Timers {
        Timers { heart_beat: MS * 100, election_lower: MS * 200, election_upper: MS * 400 }
    }

    #[test]
    fn a_calm_group_and_a_large_one_are_sent_fewer_beats_within_bounds() {
        let pace_of = |others, is_calm| pace(&timers(), others, is_calm);
        assert_eq!((pace_of(4, false), pace_of(4, true)), (MS * 100, MS * 400));
        assert_eq!((pace_of(40, false), pace_of(40, true)), (MS * 100, MS * 400));
        assert_eq!((pace_of(200, false), pace_of(200, true)), (MS * 500, MS * 500));
        assert_eq!(pace_of(usize::MAX, true), MAX_PAUSE);
        let slow = Timers { heart_beat: MAX_PAUSE * 9, ..timers() };
        assert_eq!(pace(&slow, 4, false), MAX_PAUSE * 9);
        assert_eq!(pace(&slow, 4, true), MAX_PAUSE * 9);
    }

    #[test]
    fn those_who_are_behind_are_asked_soon_however_many_they_are() {
        let pause_of = |unwell| follow_up(&timers(), unwell);
        assert_eq!((pause_of(1), pause_of(20), pause_of(100)), (MS * 50, MS * 50, MS * 250));
        assert_eq!(pause_of(usize::MAX), MAX_PAUSE);
    }

    #[test]
    fn each_box_is_to_answer_twice_within_its_time() {
        for (pace, reach, every) in
            [(100, 400, 2), (200, 500, 1), (40, 420, 5), (500, 800, 1), (0, 400, 200)]
        {
            assert_eq!(ask_every(MS * pace, MS * reach), every, "{pace} {reach}");
        }
    }

    fn beat(term: u64, node: u32, next_ms: u32) -> WireBeat {
        let ballot = Ballot { term, node: ServerId(node) };
        WireBeat { ballot, log_end: None, commit: None, age: None, quorum: true, next_ms }
    }

    fn answer(vote: (u64, u32, bool), level: bool) -> Result<(Ballot, bool, bool), Unable> {
        Ok((Ballot { term: vote.0, node: ServerId(vote.1) }, vote.2, level))
    }

    #[tokio::test]
    async fn only_a_beat_of_the_leader_that_is_followed_counts() {
        let bench = Bench::new();
        let shared = &bench.shared;
        let mut running = bench.running(Some(Vote::new_committed(5, ServerId(2)))).await;
        let take = |running: &Running, from: u32, beat: WireBeat| match take(
            shared,
            running,
            ServerId(from),
            None,
            &beat,
        )? {
            Response::Beat { vote: (ballot, committed), level } => Ok((ballot, committed, level)),
            other => panic!("{other:?}"),
        };
        let follows = answer((5, 2, true), true);
        // In another's name, of an older term, of one that this box did not hear of by Raft.
        assert_eq!(take(&running, 3, beat(5, 2, 100)), Err(Unable::Malformed));
        assert_eq!(take(&running, 3, beat(4, 3, 100)), answer((5, 2, true), false));
        assert_eq!(take(&running, 3, beat(6, 3, 100)), answer((5, 2, true), false));
        assert_eq!((shared.contact(), shared.hears_leader()), (None, false));
        assert!(refuse_vote(shared, &running).is_none());

        assert_eq!(take(&running, 2, beat(5, 2, 250)), follows);
        assert!(shared.hears_leader());
        assert_eq!((shared.lateness(), shared.reach()), (MS * 150, MS * 550));
        let refusal = refuse_vote(shared, &running);
        assert!(matches!(refusal, Some(Response::Vote { granted: false, .. })), "{refusal:?}");

        // Its last beat says that no other comes.
        assert_eq!(take(&running, 2, beat(5, 2, 0)), follows);
        assert!(!shared.hears_leader() && refuse_vote(shared, &running).is_none());

        // A box whose vote another has got since follows nobody, whoever it heard a moment ago.
        assert_eq!(take(&running, 2, beat(5, 2, 100)), follows);
        let _ = running.raft.shutdown().await;
        running = bench.running(Some(Vote::new(6, ServerId(3)))).await;
        assert!(shared.hears_leader() && refuse_vote(shared, &running).is_none());
        assert_eq!(take(&running, 2, beat(5, 2, 100)), answer((6, 3, false), false));
        let _ = running.raft.shutdown().await;
    }

    /// Mail that reaches nobody; in how many milliseconds each beat said that the next one is due.
    #[derive(Default)]
    struct Announced(Mutex<Vec<u32>>);

    impl Mail for Announced {
        fn open(&self, _: &Me, _: &Heard) {}

        fn set_members(&self, _: &[Member]) {}

        fn request(&self, _: ServerId, body: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            if let Ok(Request::Beat(beat)) = rpc::decode_request(&body) {
                self.0.lock().unwrap().push(beat.next_ms);
            }
            Box::pin(ready(Err(CallError::TimedOut)))
        }

        fn note(&self, _: ServerId, _: Body, _: Duration) {}

        fn ask_stranger(&self, _: &Member, _: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            Box::pin(ready(Err(CallError::UnknownPeer)))
        }

        fn listen(&self, _: Arc<dyn Porter>) -> Box<dyn Send + Sync> {
            Box::new(())
        }
    }

    #[tokio::test]
    async fn who_is_behind_is_asked_again_and_who_has_just_come_back_at_once() {
        let mail = Arc::new(Announced::default());
        let bench = Bench::within(Outside { mail: Some(mail.clone()), ..Outside::default() });
        let (shared, ballot) = (&bench.shared, Ballot { term: 5, node: bench.shared.me });
        let running = bench.running(Some(Vote::new_committed(5, shared.me))).await;
        let mut pulse = Pulse::new(shared, &running, ballot);
        let pulsed = |open, well, missed| Pulsed { open, well, missed, silent: None };
        let known =
            [(12, pulsed(0, true, 0)), (13, pulsed(0, false, 0)), (14, pulsed(1, false, 0))];
        let lost = (15, pulsed(0, false, LOST));
        pulse.others = known.into_iter().chain([lost]).map(|(id, p)| (ServerId(id), p)).collect();
        async fn asked(pulse: &mut Pulse<'_>) -> Vec<u32> {
            pulse.ask_again();
            let mut ids = Vec::new();
            while let Some(answer) = pulse.asks.join_next().await {
                let (id, answer) = answer.unwrap();
                ids.push(id.0);
                pulse.hear(id, answer).await.unwrap();
            }
            ids.sort_unstable();
            ids
        }
        // Not one that is level, nor one whose answer is still due, nor one that is long gone.
        assert_eq!(asked(&mut pulse).await, [13]);
        let pause = pulse.again.map(|at| at > Instant::now());
        assert_eq!(pause, Some(true), "and again a moment later");

        shared.note_newcomer(ServerId(15));
        shared.note_newcomer(ServerId(77));
        pulse.welcome();
        assert_eq!(pulse.asks.len(), 1, "at once, and nobody else");
        let (id, answer) = pulse.asks.join_next().await.unwrap().unwrap();
        pulse.hear(id, answer).await.unwrap();
        for more in 1..WELCOME {
            assert_eq!(asked(&mut pulse).await, [13, 15], "{more}");
        }
        assert_eq!(asked(&mut pulse).await, [13], "it was asked often enough");
        // The next beat to all may still be as far away as in a calm group.
        let next = MS * 400;
        let said: Vec<u32> = mail.0.lock().unwrap().drain(..).collect();
        assert!(said.iter().all(|ms| MS * *ms == next), "{said:?}");
        assert!(!said.is_empty());

        // One that leaves asks nobody any more, and one that was deposed must not.
        shared.leaving.send_replace(true);
        assert!(asked(&mut pulse).await.is_empty());
        shared.leaving.send_replace(false);
        pulse.ballot.term = 4;
        assert!(asked(&mut pulse).await.is_empty());
        let _ = running.raft.shutdown().await;
    }

    #[tokio::test]
    async fn a_box_that_lacks_something_is_not_level() {
        let bench = Bench::new();
        let running = bench.running(Some(Vote::new_committed(5, ServerId(2)))).await;
        let ahead =
            |index| Some(crate::core::rejoin::LogEnd { ballot: beat(5, 2, 0).ballot, index });
        let level = |beat: WireBeat| match take(&bench.shared, &running, ServerId(2), None, &beat) {
            Ok(Response::Beat { level, .. }) => level,
            other => panic!("{other:?}"),
        };
        assert!(level(beat(5, 2, 100)));
        assert!(!level(WireBeat { log_end: ahead(7), ..beat(5, 2, 100) }));
        assert!(!level(WireBeat { commit: ahead(7), ..beat(5, 2, 100) }));
        // Behind or not, it has a leader.
        assert!(bench.shared.hears_leader());
        let _ = running.raft.shutdown().await;
    }
}
