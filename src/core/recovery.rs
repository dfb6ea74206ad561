//! What a server that lost its memory may do, and when a server may campaign.
//!
//! A Raft library assumes that a member remembers its vote and its log; ours live in memory, so a
//! restarted server comes back empty under its old id. Before it takes part it asks the others
//! (as in the recovery protocol of Viewstamped Replication), and until it has caught up it is in
//! vote restriction: it votes for nobody, or only for those who surely hold all that was agreed.
//!
//! # Why one question is not enough
//!
//! Before it forgot, server X may have voted for Y in a term of which those that it asks have not
//! heard yet, since Y's requests for their votes are still under way. It then joins the leader of
//! the term before. If it helped that leader to agree on an entry, and Y won by X's vote of before,
//! Y would lead without that entry, and a generation would be made twice (E. Michael et al.,
//! "Recovering Shared Objects Without Stable Storage", DISC 2017, found this in Viewstamped
//! Replication). So such a server joins at once and takes what is agreed, but it is
//! [`VoteRestriction::Proving`] until it has asked again:
//!
//! - A candidate counts a vote only within `election_timeout_lower_bound` of its own request, by a
//!   look at the clock when the answer is there ([`crate::consensus::network`]). Requests in which
//!   X's vote of before counts were sent before X forgot. So each vote that makes a majority with
//!   X's was given before X has been back for that time.
//! - After that time X asks again, and waits until half of all or more, without itself, that
//!   remember everything have answered. Each majority that elects a leader with X's vote has one of
//!   them in it, which has given its vote by then and says so: X learns of the term. It then starts
//!   anew in that term.
//! - Until it knows, it votes for nobody, and acknowledges to a leader only what that leader says
//!   is agreed already ([`acknowledged_end`]): no majority needs it for that.
//!
//! Leaders' leases count what it acknowledges: they keep a leader from proposing in vain, and
//! nothing is agreed on by them. All servers are taken to have the same election bounds. Where
//! fewer than a majority remember ([`RecoveryDecision::RejoinWithoutQuorum`]) nothing of this can hold.
//!
//! Decisions only; who asks, how often, and what Raft is told, is for [`crate::node`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::key_ring::{ClusterId, Generation};
pub use super::log_id::{LeaderId, LogPosition};
use super::moment::Moment;
use super::quorum::{has_majority, majority};
use super::server_id::ServerId;

/// What a server says of itself when it is asked, or when it asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether it holds all that it ever acknowledged: it has a cluster incarnation and is not without a vote.
    pub full: bool,
    /// The highest term that it knows.
    pub leader_id: LeaderId,
    /// The end of its log, if it has one.
    pub log_end: Option<LogPosition>,
    /// Its cluster incarnation, if it has one.
    pub cluster_id: Option<ClusterId>,
    /// The newest generation in its ring.
    pub generation: Generation,
    /// Whether it knows a leader that is alive.
    pub live_leader: bool,
    /// Whether it may vote for the server that asks.
    pub may_vote: bool,
    /// Whether it belongs to a majority that agrees at present: it leads one, or its leader said
    /// so a moment ago.
    pub quorum: bool,
}

/// Whether a server that says `mine` of itself gives its cluster incarnation up for that of a server that says
/// `theirs`, and starts anew as an empty one.
///
/// Two cluster incarnations come about when a group is founded anew while members of the old one live on
/// unseen behind a cut. The one with a majority of the list goes on; else the one with more
/// generations behind it; else the higher id, so that both sides come to the same answer.
pub fn yields(mine: &Status, theirs: &Status) -> bool {
    match (mine.cluster_id, theirs.cluster_id) {
        (Some(ours), Some(other)) if ours != other => {
            (theirs.quorum, theirs.generation, other) > (mine.quorum, mine.generation, ours)
        }
        _ => false,
    }
}

/// How far a term may lie above the highest that a server knows for it to be believed at once. A server
/// that was cut off is that far behind only after a million elections, which take days at the
/// shortest election bounds; it then joins anew, see [`SanityBounds`].
pub const MAX_TERM_LEAP: u64 = 1 << 20;

/// The same for the index of a log's end: two entries a second for four years.
pub const MAX_INDEX_LEAP: u64 = 1 << 28;

/// The same for the newest generation: one a second for four years.
pub const MAX_GENERATION_LEAP: u64 = 1 << 27;

/// The highest term that a server is believed whom nobody else bears out: one each millisecond for
/// thirty years. Half of all terms and more stay above it.
pub const MAX_LONE_TERM: u64 = 1 << 40;

/// How far terms, indexes and generations may lie for a server to believe them.
///
/// Raft has every server follow the highest term that it hears of. A member that is broken, or in
/// the wrong hands, could thus raise it with one message to where there is no next one, and
/// nobody could ever be elected again. So a term is taken only if it is not far above what the
/// server knows itself, or what two others say of themselves. Each message then raises it by a
/// leap at most, which is nothing of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SanityBounds {
    term: u64,
    index: u64,
    generation: u64,
}

impl SanityBounds {
    /// That of a server that knows of `term`, of a log of `index` entries and of `generation`, and that
    /// was told `answers`, however long ago: all of them only grow.
    pub fn of(
        term: u64,
        index: u64,
        generation: Generation,
        answers: &BTreeMap<ServerId, Status>,
    ) -> SanityBounds {
        let generations = answers.values().map(|s| s.generation.0).collect();
        let terms = answers.values().map(|s| s.leader_id.term).collect();
        let indexes = answers.values().map(|s| s.log_end.map_or(0, |end| end.index)).collect();
        SanityBounds {
            term: term.max(second(terms)).saturating_add(MAX_TERM_LEAP),
            index: index.max(second(indexes)).saturating_add(MAX_INDEX_LEAP),
            generation: generation.0.max(second(generations)).saturating_add(MAX_GENERATION_LEAP),
        }
    }

    /// Whether this term can be believed.
    pub fn has_term(&self, term: u64) -> bool {
        term <= self.term
    }

    /// Whether a log can end at this index.
    pub fn has_index(&self, index: u64) -> bool {
        index <= self.index
    }

    /// Whether there can be this generation.
    pub fn has_generation(&self, generation: Generation) -> bool {
        generation.0 <= self.generation
    }
}

/// The highest number but one: what one liar alone cannot raise.
fn second(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers.get(1).copied().unwrap_or(0)
}

/// Whether a server without memory believes that there is this term, by what others told it themselves:
/// not if it is far above all others where there are others, and never beyond all reason.
fn is_plausible(term: u64, answers: &BTreeMap<ServerId, Status>) -> bool {
    let nonzero = answers.values().filter(|s| s.leader_id != LeaderId::default()).count();
    match nonzero {
        0 | 1 => term <= MAX_LONE_TERM,
        _ => SanityBounds::of(0, 0, Generation(0), answers).has_term(term),
    }
}

/// The highest term among the answers that a server without memory believes.
fn highest_plausible(answers: &BTreeMap<ServerId, Status>) -> LeaderId {
    let leader_ids = answers.values().map(|s| s.leader_id);
    leader_ids.filter(|leader_id| is_plausible(leader_id.term, answers)).max().unwrap_or_default()
}

/// What others told a server without memory itself, and what it was told of yet others. Those who pass
/// on what others say cannot make it believe in a term that they could not have told of as their
/// own.
pub fn with_relayed(
    answers: BTreeMap<ServerId, Status>,
    relayed: BTreeMap<ServerId, Status>,
) -> BTreeMap<ServerId, Status> {
    let plausible = |status: &Status| is_plausible(status.leader_id.term, &answers);
    let mut all: BTreeMap<_, _> = relayed.into_iter().filter(|(_, s)| plausible(s)).collect();
    all.extend(answers);
    all
}

/// What an empty server may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryDecision {
    /// Too little is known; ask again.
    Wait,
    /// A majority besides this server remembers everything: join them, vote for nobody until
    /// caught up.
    Rejoin {
        /// The highest term that anybody knows; to be remembered before Raft starts.
        leader_id: LeaderId,
    },
    /// Nobody remembers any key: begin a cluster incarnation with the members of the list.
    ///
    /// A group may be about to begin one all the same, and this server may have been of it before a
    /// restart: what it voted for then is not taken back either.
    Bootstrap {
        /// As in [`RecoveryDecision::Rejoin`].
        leader_id: LeaderId,
        /// The longest log that was seen, if it is longer than the one that all begin with.
        log_end: Option<LogPosition>,
    },
    /// Some remember, but fewer than a majority: join, never campaign, and vote only for those who
    /// hold at least `log_end`.
    RejoinWithoutQuorum {
        /// As in [`RecoveryDecision::Rejoin`].
        leader_id: LeaderId,
        /// The longest log that was seen.
        log_end: Option<LogPosition>,
    },
}

/// Checks what an empty server may do at `now`, `asked_since` being when it began to ask, `members`
/// all of its list, itself included, `answers` the latest from each other server.
///
/// `is_outsider` tells whether a living server does not have this one in its list: then there is a
/// group already, and this server waits to be added to it.
///
/// A cold start with answers missing waits longer than a best effort, because it is the one that
/// can make a second cluster incarnation.
pub fn decide_recovery(
    now: Moment,
    asked_since: Moment,
    election_upper: Duration,
    members: usize,
    answers: &BTreeMap<ServerId, Status>,
    is_outsider: bool,
) -> RecoveryDecision {
    let majority = majority(members);
    let asked_for = now.since(asked_since);
    let full = remembering(answers);
    let leader_id = highest_plausible(answers);
    let log_end = answers.values().filter_map(|s| s.log_end).max();
    if full >= majority {
        return RecoveryDecision::Rejoin { leader_id };
    }
    let all_answered = answers.len() + 1 >= members;
    let enough_answered = answers.len() >= members / 2;
    // A server that is still catching up is not full, and yet proof that there are keys.
    let forgotten = answers.values().all(|s| s.cluster_id.is_none());
    if full == 0 && forgotten {
        if is_outsider {
            return RecoveryDecision::Wait;
        }
        let patience_over = asked_for >= election_upper * 3;
        let log_end = log_end.filter(|end| *end > LogPosition::default());
        return if all_answered || (enough_answered && patience_over) {
            RecoveryDecision::Bootstrap { leader_id, log_end }
        } else {
            RecoveryDecision::Wait
        };
    }
    if enough_answered && asked_for >= election_upper * 3 / 2 {
        return RecoveryDecision::RejoinWithoutQuorum { leader_id, log_end };
    }
    RecoveryDecision::Wait
}

/// How many remember everything of one and the same cluster incarnation: those of two cluster incarnations are no
/// majority together, since they elect nobody in common.
fn remembering(answers: &BTreeMap<ServerId, Status>) -> usize {
    let mut counts: BTreeMap<Option<ClusterId>, usize> = BTreeMap::new();
    for status in answers.values().filter(|s| s.full) {
        *counts.entry(status.cluster_id).or_default() += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

/// Whether a majority of the list could still be found, given how many others cannot be reached
/// at all. A starting server does not wait for the group where it could not.
pub fn majority_possible(members: usize, unreachable: usize) -> bool {
    members.saturating_sub(unreachable) > members / 2
}

/// Whether enough members would vote for a server, so that its standing disturbs nobody in vain.
///
/// `configs` are the voter sets of the effective membership (two during a change); `answers` are
/// those of the others. One server that sees a live leader does not veto: it may be cut off together
/// with that leader.
pub fn may_campaign(
    me: ServerId,
    log_end: Option<LogPosition>,
    configs: &[BTreeSet<ServerId>],
    answers: &BTreeMap<ServerId, Status>,
) -> bool {
    let says_yes = |id: &ServerId| {
        *id == me
            || answers.get(id).is_some_and(|s| !s.live_leader && s.may_vote && s.log_end <= log_end)
    };
    configs.iter().all(|voters| voters.contains(&me)) && has_majority(configs, |id| says_yes(&id))
}

/// Whether nobody can be elected any more as long as a server goes on remembering a log that ends at
/// `log_end`, the membership of which, `configs`, does not let it stand; `answers` are the voters'.
///
/// That comes about when most voters lose their memory while a server is being taken in: they vote
/// for nobody who holds less than the longest log that they saw. What only such a server remembers is
/// given up then. A voter that holds as much is waited for, and so are voters that do not answer,
/// unless a majority does.
pub fn is_deadlocked(
    log_end: Option<LogPosition>,
    configs: &[BTreeSet<ServerId>],
    answers: &BTreeMap<ServerId, Status>,
) -> bool {
    let of = |voters: &BTreeSet<ServerId>, is: &dyn Fn(&Status) -> bool| {
        voters.iter().filter(|id| answers.get(id).is_some_and(is)).count()
    };
    let wins = |s: &Status| s.full && s.log_end >= log_end;
    let forgot = |s: &Status| !s.full;
    configs.iter().any(|voters| of(voters, &forgot) > voters.len() / 2)
        && configs.iter().all(|voters| of(voters, &wins) == 0)
}

/// What a server may do with requests for its vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteRestriction {
    /// None: it votes and stands as Raft says.
    Lifted,
    /// It votes for nobody.
    Silent,
    /// It votes for nobody, and has caught up: what it holds is good enough to be used. It has to
    /// find out yet whether it voted in a later term before it forgot.
    Proving,
    /// It votes only for candidates that hold at least this.
    OnlyFor(Option<LogPosition>),
}

impl VoteRestriction {
    /// That of a server which begins with nothing, by what it may do.
    pub fn after(decision: &RecoveryDecision) -> VoteRestriction {
        match decision {
            RecoveryDecision::Bootstrap { log_end: None, .. } => VoteRestriction::Lifted,
            RecoveryDecision::Bootstrap { log_end, .. }
            | RecoveryDecision::RejoinWithoutQuorum { log_end, .. } => {
                VoteRestriction::OnlyFor(*log_end)
            }
            RecoveryDecision::Wait | RecoveryDecision::Rejoin { .. } => VoteRestriction::Silent,
        }
    }

    /// Whether a request for the vote may reach Raft at all.
    pub fn admits(&self, candidate: Option<LogPosition>) -> bool {
        match self {
            VoteRestriction::Lifted => true,
            VoteRestriction::Silent | VoteRestriction::Proving => false,
            VoteRestriction::OnlyFor(seen) => candidate >= *seen,
        }
    }

    /// Whether this server's keys are those of the group, not some of long ago on the way there.
    pub fn has_caught_up(&self) -> bool {
        matches!(self, VoteRestriction::Lifted | VoteRestriction::Proving)
    }

    /// What follows when this server has caught up.
    pub fn caught_up(self) -> VoteRestriction {
        match self {
            VoteRestriction::Silent | VoteRestriction::Proving => VoteRestriction::Proving,
            VoteRestriction::Lifted | VoteRestriction::OnlyFor(_) => VoteRestriction::Lifted,
        }
    }

    /// Whether a leader may count on what this server acknowledges.
    pub fn counts(&self) -> bool {
        matches!(self, VoteRestriction::Lifted | VoteRestriction::OnlyFor(_))
    }

    /// Whether a message from a leader of `term`, which it has confirmed to be its own, ends the
    /// vote restriction: the leader has committed something in that very term, and this server has applied
    /// at least that.
    pub fn lifts(
        term: u64,
        leader_commit: Option<LogPosition>,
        applied: Option<LogPosition>,
    ) -> bool {
        leader_commit.is_some_and(|commit| commit.leader_id.term == term)
            && applied >= leader_commit
    }
}

/// Up to where a server that does not count acknowledges what it was sent, `ends` being the entry
/// before the new ones, and those: what the leader says is agreed. `None` if that is nothing of it.
pub fn acknowledged_end(
    ends: impl IntoIterator<Item = LogPosition>,
    commit: Option<LogPosition>,
) -> Option<LogPosition> {
    ends.into_iter().filter(|end| Some(*end) <= commit).max()
}

/// What a server that is [`VoteRestriction::Proving`] finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Too few have answered yet.
    Ask,
    /// It may have voted in a later term than the one that it knows.
    Outvoted,
    /// It knows of every term in which a vote that it gave and forgot can count.
    Given,
}

/// Checks what a server that knows of `leader_id` has found out from `answers`, each of them given
/// after votes that it may have forgotten have ceased to count; `members` as in [`decide_recovery`].
pub fn prove(leader_id: LeaderId, members: usize, answers: &BTreeMap<ServerId, Status>) -> Proof {
    match remembering(answers) * 2 >= members {
        false => Proof::Ask,
        true if highest_plausible(answers) > leader_id => Proof::Outvoted,
        true => Proof::Given,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPPER: Duration = Duration::from_millis(400);

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(ms))
    }

    fn full(term: u64, index: u64) -> Status {
        let leader_id = LeaderId { term, node: ServerId(1) };
        Status {
            full: true,
            leader_id,
            log_end: Some(LogPosition { leader_id, index }),
            cluster_id: ClusterId::from_bytes([1; 16]),
            may_vote: true,
            ..Status::default()
        }
    }

    fn answers(list: &[(u32, Status)]) -> BTreeMap<ServerId, Status> {
        list.iter().map(|(id, s)| (ServerId(*id), s.clone())).collect()
    }

    fn assess(ms: u64, members: usize, list: &[(u32, Status)]) -> RecoveryDecision {
        decide_recovery(at(ms), at(0), UPPER, members, &answers(list), false)
    }

    #[test]
    fn a_majority_of_others_makes_it_safe_and_hands_on_the_highest_leader_id() {
        let seen = [(2, full(3, 9)), (3, full(5, 8)), (4, full(4, 8))];
        let leader_id = LeaderId { term: 5, node: ServerId(1) };
        assert_eq!(assess(0, 5, &seen), RecoveryDecision::Rejoin { leader_id });
    }

    #[test]
    fn those_of_two_clusters_are_no_majority_together() {
        let other = Status { cluster_id: ClusterId::from_bytes([2; 16]), ..full(4, 7) };
        let seen = [(2, full(3, 9)), (3, other)];
        assert_eq!(assess(599, 3, &seen), RecoveryDecision::Wait);
        let log_end = full(4, 7).log_end;
        let leader_id = LeaderId { term: 4, node: ServerId(1) };
        assert_eq!(
            assess(600, 3, &seen),
            RecoveryDecision::RejoinWithoutQuorum { leader_id, log_end }
        );
    }

    #[test]
    fn a_majority_that_counts_the_empty_server_itself_is_not_enough() {
        let seen = [(2, full(3, 9)), (3, full(5, 8)), (4, Status::default())];
        assert_eq!(assess(0, 5, &seen), RecoveryDecision::Wait);
        assert!(matches!(assess(600, 5, &seen), RecoveryDecision::RejoinWithoutQuorum { .. }));
    }

    #[test]
    fn all_empty_is_a_cold_start_at_once() {
        let empty = Status::default();
        let cold = RecoveryDecision::Bootstrap { leader_id: LeaderId::default(), log_end: None };
        assert_eq!(assess(0, 3, &[(2, empty.clone()), (3, empty.clone())]), cold);
        assert_eq!(assess(0, 1, &[]), cold);
        assert_eq!(assess(1199, 3, &[(2, empty.clone())]), RecoveryDecision::Wait);
        assert_eq!(assess(1200, 3, &[(2, empty.clone())]), cold);
        // One that began with its list already, and waits for a leader, has only that in its log.
        let began = Status { log_end: Some(LogPosition::default()), may_vote: true, ..empty };
        assert_eq!(assess(0, 2, &[(2, began)]), cold);
    }

    #[test]
    fn what_a_server_did_for_a_group_that_has_no_key_yet_is_not_taken_back() {
        // Both followed a leader, which may have been the server that asks now.
        let keyless = |term, index| Status { full: false, cluster_id: None, ..full(term, index) };
        let seen = [(2, keyless(1, 1)), (3, keyless(2, 1))];
        let (leader_id, log_end) = (keyless(2, 1).leader_id, keyless(2, 1).log_end);
        let decision = assess(0, 3, &seen);
        assert_eq!(decision, RecoveryDecision::Bootstrap { leader_id, log_end });
        let vote_restriction = VoteRestriction::after(&decision);
        assert!(
            !vote_restriction.admits(keyless(1, 1).log_end) && vote_restriction.admits(log_end)
        );
        assert_eq!(vote_restriction.caught_up(), VoteRestriction::Lifted);
    }

    #[test]
    fn a_server_that_is_catching_up_proves_that_there_are_keys() {
        let catching_up = Status { full: false, may_vote: false, ..full(3, 9) };
        let seen = [(2, catching_up), (3, Status::default())];
        assert_eq!(assess(0, 3, &seen), RecoveryDecision::Wait);
        assert!(matches!(assess(9_000, 3, &seen), RecoveryDecision::RejoinWithoutQuorum { .. }));
    }

    #[test]
    fn a_server_that_a_living_group_does_not_know_waits_to_be_added() {
        let empty = answers(&[(2, Status::default()), (3, Status::default())]);
        assert_eq!(
            decide_recovery(at(9_000), at(0), UPPER, 3, &empty, true),
            RecoveryDecision::Wait
        );
        let known = answers(&[(2, full(1, 1)), (3, full(1, 1))]);
        assert!(matches!(
            decide_recovery(at(0), at(0), UPPER, 3, &known, true),
            RecoveryDecision::Rejoin { .. }
        ));
    }

    #[test]
    fn a_server_without_a_majority_asks_for_ever() {
        assert_eq!(assess(1_000_000, 3, &[]), RecoveryDecision::Wait);
        assert_eq!(assess(1_000_000, 2, &[]), RecoveryDecision::Wait);
        assert_eq!(assess(1_000_000, 5, &[(2, full(1, 1))]), RecoveryDecision::Wait);
    }

    #[test]
    fn best_effort_takes_the_longest_log() {
        let seen = [(2, full(3, 9)), (3, Status::default())];
        match assess(600, 3, &seen) {
            RecoveryDecision::RejoinWithoutQuorum { log_end, leader_id } => {
                assert_eq!(log_end.unwrap().index, 9);
                assert_eq!(leader_id.term, 3);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_others_pass_on_counts_unless_it_is_absurd_or_known_better() {
        let direct = || answers(&[(1, full(3, 9)), (2, Status::default())]);
        let told = answers(&[(2, full(3, 9)), (3, full(4, 9)), (4, full(MAX_LONE_TERM + 1, 9))]);
        let all = with_relayed(direct(), told);
        assert_eq!(all, answers(&[(1, full(3, 9)), (2, Status::default()), (3, full(4, 9))]));
        // Two who know terms themselves are the measure.
        let two = answers(&[(1, full(3, 9)), (2, full(2, 9))]);
        let told = |term| answers(&[(3, full(term, 9))]);
        assert_eq!(with_relayed(two.clone(), told(MAX_TERM_LEAP + 2)).len(), 3);
        assert_eq!(with_relayed(two.clone(), told(MAX_TERM_LEAP + 3)), two);
    }

    #[test]
    fn vote_restriction_admits_only_those_who_hold_all_that_was_seen() {
        let end = |term, index| {
            Some(LogPosition { leader_id: LeaderId { term, node: ServerId(1) }, index })
        };
        assert!(!VoteRestriction::Silent.admits(end(9, 9)));
        let only = VoteRestriction::OnlyFor(end(3, 9));
        assert!(!only.admits(end(3, 8)));
        assert!(!only.admits(None));
        assert!(only.admits(end(3, 9)));
        assert!(only.admits(end(4, 1)));
        assert!(VoteRestriction::Lifted.admits(None));
    }

    #[test]
    fn a_server_that_has_caught_up_has_to_prove_that_it_voted_for_nobody_else() {
        let silent =
            VoteRestriction::after(&RecoveryDecision::Rejoin { leader_id: LeaderId::default() });
        assert!(!silent.has_caught_up() && !silent.counts());
        let proving = silent.caught_up();
        assert_eq!(proving, VoteRestriction::Proving);
        assert_eq!(
            proving.caught_up(),
            VoteRestriction::Proving,
            "catching up again proves nothing"
        );
        assert!(proving.has_caught_up() && !proving.counts());
        assert!(!proving.admits(full(9, 9).log_end));
        assert_eq!(VoteRestriction::OnlyFor(None).caught_up(), VoteRestriction::Lifted);
        assert!(VoteRestriction::Lifted.counts() && VoteRestriction::OnlyFor(None).counts());
    }

    #[test]
    fn until_then_it_acknowledges_only_what_is_agreed_without_it() {
        let end =
            |term, index| LogPosition { leader_id: LeaderId { term, node: ServerId(1) }, index };
        let sent = [end(3, 7), end(3, 8), end(3, 9)];
        assert_eq!(acknowledged_end(sent, Some(end(3, 9))), Some(end(3, 9)));
        assert_eq!(acknowledged_end(sent, Some(end(3, 8))), Some(end(3, 8)));
        assert_eq!(acknowledged_end(sent, Some(end(3, 7))), Some(end(3, 7)));
        assert_eq!(acknowledged_end(sent, Some(end(3, 6))), None);
        assert_eq!(acknowledged_end(sent, Some(end(2, 9))), None);
        assert_eq!(acknowledged_end(sent, None), None);
        assert_eq!(acknowledged_end([], Some(end(3, 9))), None);
    }

    #[test]
    fn a_majority_of_others_that_remember_proves_in_which_term_it_may_have_voted() {
        let ours = full(3, 9).leader_id;
        let prove = |list: &[(u32, Status)]| prove(ours, 5, &answers(list));
        let empty = Status::default();
        assert_eq!(prove(&[(2, full(3, 9)), (3, full(4, 9))]), Proof::Ask);
        assert_eq!(prove(&[(2, full(3, 9)), (3, full(4, 9)), (4, empty)]), Proof::Ask);
        assert_eq!(prove(&[(2, full(3, 9)), (3, full(4, 8)), (4, full(3, 9))]), Proof::Outvoted);
        assert_eq!(prove(&[(2, full(3, 9)), (3, full(2, 8)), (4, full(3, 9))]), Proof::Given);
        let of = |members, list: &[(u32, Status)]| super::prove(ours, members, &answers(list));
        // With an even number half of all is in every majority that has this server in it.
        assert_eq!(of(2, &[(2, full(3, 9))]), Proof::Given);
        assert_eq!(of(2, &[(2, full(4, 9))]), Proof::Outvoted);
        assert_eq!(of(2, &[]), Proof::Ask);
        assert_eq!(of(4, &[(2, full(3, 9)), (3, full(3, 9))]), Proof::Given);
        assert_eq!(of(4, &[(2, full(3, 9))]), Proof::Ask);
    }

    #[test]
    fn only_where_nobody_remembers_anything_does_an_empty_server_vote_at_once() {
        let leader_id = LeaderId { term: 3, node: ServerId(1) };
        let log_end = Some(LogPosition { leader_id, index: 9 });
        let some =
            VoteRestriction::after(&RecoveryDecision::RejoinWithoutQuorum { leader_id, log_end });
        assert_eq!(some, VoteRestriction::OnlyFor(log_end));
        assert_eq!(
            VoteRestriction::after(&RecoveryDecision::Rejoin { leader_id }),
            VoteRestriction::Silent
        );
        assert_eq!(VoteRestriction::after(&RecoveryDecision::Wait), VoteRestriction::Silent);
        let cold = RecoveryDecision::Bootstrap { leader_id: LeaderId::default(), log_end: None };
        assert_eq!(VoteRestriction::after(&cold), VoteRestriction::Lifted);
    }

    #[test]
    fn vote_restriction_lifts_when_caught_up_with_a_commit_of_the_leaders_own_term() {
        let end = |term, index| {
            Some(LogPosition { leader_id: LeaderId { term, node: ServerId(1) }, index })
        };
        assert!(VoteRestriction::lifts(3, end(3, 5), end(3, 5)));
        assert!(!VoteRestriction::lifts(3, end(3, 5), end(3, 4)));
        assert!(!VoteRestriction::lifts(4, end(3, 5), end(3, 5)));
        assert!(!VoteRestriction::lifts(3, None, end(3, 5)));
    }

    #[test]
    fn standing_needs_a_yes_from_a_majority_of_every_config() {
        let voters = |ids: &[u32]| ids.iter().map(|&i| ServerId(i)).collect::<BTreeSet<_>>();
        let mine = full(3, 9);
        let stand = |configs: &[BTreeSet<ServerId>], list: &[(u32, Status)]| {
            may_campaign(ServerId(1), mine.log_end, configs, &answers(list))
        };
        let three = [voters(&[1, 2, 3])];
        assert!(!stand(&three, &[]));
        assert!(stand(&three, &[(2, full(3, 9))]));
        assert!(!stand(&three, &[(2, full(3, 10))]));
        let five = [voters(&[1, 2, 3, 4, 5])];
        assert!(!stand(&five, &[(2, full(3, 9))]));
        assert!(stand(&five, &[(2, full(3, 9)), (3, full(3, 9))]));
        let deaf = Status { live_leader: true, ..full(3, 9) };
        assert!(!stand(&three, &[(2, deaf.clone())]));
        assert!(stand(&three, &[(2, deaf), (3, full(3, 9))]), "one live leader must not veto");
        let mute = Status { may_vote: false, ..full(3, 9) };
        assert!(!stand(&three, &[(2, mute)]));
        let joint = [voters(&[1, 2, 3]), voters(&[1, 4, 5])];
        assert!(!stand(&joint, &[(2, full(3, 9))]));
        assert!(stand(&joint, &[(2, full(3, 9)), (4, full(3, 9))]));
        assert!(!stand(&[voters(&[2, 3])], &[(2, full(3, 9)), (3, full(3, 9))]));
    }

    #[test]
    fn a_new_peer_alone_with_its_memory_is_deadlocked() {
        let voters = |ids: &[u32]| ids.iter().map(|&i| ServerId(i)).collect::<BTreeSet<_>>();
        let deadlocked = |configs: &[BTreeSet<ServerId>], list: &[(u32, Status)]| {
            is_deadlocked(full(3, 9).log_end, configs, &answers(list))
        };
        let three = [voters(&[1, 2, 3])];
        let empty = Status::default;
        let catching_up = || Status { full: false, ..full(3, 4) };
        assert!(deadlocked(&three, &[(1, empty()), (2, catching_up()), (3, empty())]));
        assert!(deadlocked(&three, &[(1, empty()), (2, catching_up())]), "two of three forgot");
        assert!(!deadlocked(&three, &[(1, empty())]), "the others may remember");
        assert!(deadlocked(&three, &[(1, empty()), (2, empty()), (3, full(3, 8))]), "holds less");
        assert!(!deadlocked(&three, &[(1, empty()), (2, empty()), (3, full(3, 9))]), "may lead");
        assert!(!deadlocked(&three, &[(1, full(2, 1)), (2, full(3, 8)), (3, empty())]), "may vote");
        assert!(!deadlocked(&three, &[]));
        let five = [voters(&[1, 2, 3, 4, 5])];
        assert!(!deadlocked(&five, &[(1, empty()), (2, empty())]), "three may remember");
        assert!(deadlocked(&five, &[(1, empty()), (2, empty()), (3, empty())]));
        let joint = [voters(&[1, 2, 3]), voters(&[3, 4, 5])];
        assert!(deadlocked(&joint, &[(1, empty()), (2, empty())]));
        assert!(!deadlocked(&joint, &[(1, empty()), (2, empty()), (4, full(3, 9))]));
    }

    #[test]
    fn of_two_clusters_the_same_one_gives_way_whoever_checkers() {
        let cluster_id = |byte| ClusterId::from_bytes([byte; 16]);
        let of = |byte, generation, quorum| Status {
            cluster_id: cluster_id(byte),
            generation: Generation(generation),
            quorum,
            ..full(1, 1)
        };
        // (loser, winner)
        for (loser, winner) in [
            (of(9, 50, false), of(1, 1, true)),
            (of(9, 4, false), of(1, 5, false)),
            (of(1, 5, false), of(9, 5, false)),
        ] {
            assert!(yields(&loser, &winner));
            assert!(!yields(&winner, &loser));
        }
        assert!(
            !yields(&of(1, 1, false), &of(1, 9, true)),
            "one cluster incarnation does not yield to itself"
        );
        assert!(
            !yields(&Status::default(), &of(1, 9, true)),
            "an empty server has nothing to give up"
        );
        assert!(!yields(&of(1, 1, false), &Status::default()));
    }

    #[test]
    fn no_single_server_can_raise_the_term_to_its_end() {
        let sober = answers(&[(2, full(7, 9)), (3, full(8, 9))]);
        let sanity_bounds = SanityBounds::of(5, 3, Generation(6), &sober);
        assert!(
            sanity_bounds.has_term(7 + MAX_TERM_LEAP) && !sanity_bounds.has_term(8 + MAX_TERM_LEAP)
        );
        assert!(
            sanity_bounds.has_index(9 + MAX_INDEX_LEAP)
                && !sanity_bounds.has_index(10 + MAX_INDEX_LEAP)
        );
        let liar = answers(&[(2, full(u64::MAX, u64::MAX)), (3, full(8, 9))]);
        let sanity_bounds = SanityBounds::of(5, 3, Generation(6), &liar);
        assert!(
            !sanity_bounds.has_term(9 + MAX_TERM_LEAP)
                && !sanity_bounds.has_index(10 + MAX_INDEX_LEAP)
        );
        // A server that was away for very long believes two others that agree.
        let far = answers(&[(2, full(1 << 41, 9)), (3, full((1 << 41) + 4, 9))]);
        assert!(SanityBounds::of(5, 3, Generation(6), &far).has_term((1 << 41) + 4));
        assert!(!SanityBounds::of(5, 3, Generation(6), &BTreeMap::new()).has_term(1 << 41));
        assert!(SanityBounds::of(u64::MAX, 0, Generation(6), &far).has_term(u64::MAX));
    }

    #[test]
    fn a_generation_is_plausible_near_what_this_server_or_two_others_know() {
        let of =
            |id: u32, generation| (id, Status { generation: Generation(generation), ..full(7, 9) });
        let reach = |own: u64, list: &[(u32, Status)]| {
            let sanity_bounds = SanityBounds::of(5, 3, Generation(own), &answers(list));
            let far = sanity_bounds.generation;
            assert!(sanity_bounds.has_generation(Generation(far)));
            assert!(!sanity_bounds.has_generation(Generation(far + 1)));
            far - MAX_GENERATION_LEAP
        };
        let far = 1 << 41;
        assert_eq!(reach(6, &[of(2, 9), of(3, 8)]), 8);
        assert_eq!(reach(6, &[of(2, far), of(3, 8)]), 8, "one liar");
        assert_eq!(reach(6, &[of(2, far)]), 6);
        assert_eq!(reach(6, &[of(2, far), of(3, far + 1)]), far, "two who agree");
        assert_eq!(reach(far, &[]), far);
    }

    #[test]
    fn an_empty_server_is_not_taken_in_by_one_absurd_leader_id() {
        let leader_id_after = |list: &[(u32, Status)]| match assess(600, 3, list) {
            RecoveryDecision::Rejoin { leader_id }
            | RecoveryDecision::RejoinWithoutQuorum { leader_id, .. } => leader_id.term,
            other => panic!("{other:?}"),
        };
        let (mad, high) = (MAX_LONE_TERM + 1, 5 + MAX_TERM_LEAP);
        assert_eq!(leader_id_after(&[(2, full(mad, 9)), (3, full(5, 9))]), 5);
        assert_eq!(leader_id_after(&[(2, full(high, 9)), (3, full(5, 9))]), high);
        assert_eq!(leader_id_after(&[(2, full(mad, 9)), (3, full(mad, 9))]), mad);
        // Nobody bears it out, and nobody contradicts it.
        assert_eq!(leader_id_after(&[(2, full(mad, 9))]), 0);
        assert_eq!(leader_id_after(&[(2, full(high + 1, 9)), (3, Status::default())]), high + 1);
    }

    #[test]
    fn a_majority_is_possible_while_enough_may_still_answer() {
        assert!(majority_possible(3, 1));
        assert!(!majority_possible(3, 2));
        assert!(majority_possible(1, 0));
        assert!(!majority_possible(2, 1));
    }

    #[test]
    fn leaps_and_standalone_node_terms_are_what_their_reasons_say() {
        assert_eq!((MAX_TERM_LEAP, MAX_INDEX_LEAP), (1_048_576, 268_435_456));
        assert_eq!(MAX_GENERATION_LEAP * 2, MAX_INDEX_LEAP, "each takes two entries");
        assert_eq!(MAX_LONE_TERM, 1_099_511_627_776);
    }

    #[test]
    fn a_best_effort_waits_for_one_and_a_half_upper_bounds() {
        let seen = [(2, full(3, 9)), (3, Status::default())];
        assert_eq!(assess(599, 3, &seen), RecoveryDecision::Wait);
        assert!(matches!(assess(600, 3, &seen), RecoveryDecision::RejoinWithoutQuorum { .. }));
    }
}
