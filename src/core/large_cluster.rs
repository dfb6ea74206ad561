//! What the servers of a large group do one for another, so that not all of them ask all others: a
//! few seed nodes gather what everybody says, and a few servers campaign before the rest.
//!
//! Decisions only; who asks is [`crate::node`]. Invariants: this decides who is asked when, and
//! never what the answers mean ([`super::recovery`] does); and who stands when, never whether. Where
//! seed nodes and leader are gone everybody is asked and everybody stands in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::recovery::{LeaderId, Status};
use super::server_id::ServerId;

/// Groups of up to so many servers need nothing of this: everybody asks everybody. The largest whose
/// leader can heartbeat at the usual `heart_beat_interval`.
pub const SMALL: usize = 41;

/// The first servers of the list, which gather what the others say: enough that one may be down, and
/// another one be cut off.
pub const SEED_NODES: usize = 3;

/// After so many rounds ([`round`]) without a leader a seed node asks everybody: those that start have shown
/// themselves by then, unless all are slow.
const GATHER_AFTER: u32 = 2;

/// After so many rounds without a decision more servers are asked, and each time that this is over
/// again. The seed nodes may be slow because all ask them, and are not to be helped by all asking all.
const WAVE: u32 = 5;

/// So many servers campaign first, one after the other: enough that some of them are there.
/// Each later tier is so many times as large, and stands at once.
const FIRST_TIER: usize = 3;
const TIER_GROWTH: usize = 3;

/// This share of a round one server of the first tier gives the one before it, which is asking
/// everybody meanwhile.
const HEAD_START: u32 = 4;

/// So many rounds later each tier stands: an election takes hundreds of handshakes, and those who
/// wait must not take the ones that stand for lost.
const TIER_PAUSE: u32 = 2;

/// Besides the seed nodes so many servers are asked at once, evenly spread over the list: seed nodes that have
/// only just begun, as when a rack with all of them lost power, know of no leader.
const SPREAD: usize = 2;

/// Whom an empty server asks what they know, after it asked for `asked_for` and got `answers`.
///
/// In a large group: the seed nodes, which are asked by all and so hear all that start, a few servers far
/// off in the list, and the leader that one of these knows of, which asks the others in its stead. A
/// seed node asks everybody if no leader shows up.
/// For a server that gets no decision that way ever more others are added, all of them in the end; soon
/// if no seed node can be reached, `seed_nodes_are_gone`.
pub fn whom_to_ask(
    me: ServerId,
    members: &BTreeSet<ServerId>,
    answers: &BTreeMap<ServerId, Status>,
    seed_nodes_are_gone: bool,
    asked_for: Duration,
    election_upper: Duration,
) -> BTreeSet<ServerId> {
    let others = || members.iter().copied().filter(|id| *id != me);
    if members.len() <= SMALL {
        return others().collect();
    }
    let (seed_nodes, round) = (seed_nodes(members), round(members, election_upper));
    let led = answers.values().filter(|status| status.live_leader);
    let leader = led.map(|status| status.leader_id).max().map(|leader_id| leader_id.node);
    let leader = leader.filter(|id| members.contains(id));
    if seed_nodes.contains(&me) && leader.is_none() && asked_for >= round * GATHER_AFTER {
        return others().collect();
    }
    let pause = round * if seed_nodes_are_gone { 1 } else { WAVE };
    let waves = asked_for.as_millis() / pause.as_millis().max(1);
    let wave = u32::try_from(waves).unwrap_or(u32::MAX).min(usize::BITS / 2);
    let more = (SEED_NODES << wave) - SEED_NODES;
    // Each server begins at itself, so that nobody but the seed nodes is asked by all.
    let behind = others().filter(|id| *id > me).chain(others().filter(|id| *id < me));
    let stride = members.len() / (SPREAD + 1);
    let far = behind.clone().skip(stride - 1).step_by(stride).take(SPREAD);
    let mut asked: BTreeSet<ServerId> = behind.take(more).chain(far).collect();
    asked.extend(seed_nodes.into_iter().chain(leader).filter(|id| *id != me));
    asked
}

/// Whom a server of a large group believes about others, by what was `said` to it directly: the
/// seed nodes and the leader. The leader is whom a seed node or two servers name, since one that names itself
/// could be anybody.
pub fn relays(
    members: &BTreeSet<ServerId>,
    said: &BTreeMap<ServerId, Status>,
) -> BTreeSet<ServerId> {
    let mut relays = seed_nodes(members);
    let mut named: BTreeMap<LeaderId, usize> = BTreeMap::new();
    for (id, status) in said.iter().filter(|(_, status)| status.live_leader) {
        *named.entry(status.leader_id).or_default() += if relays.contains(id) { 2 } else { 1 };
    }
    let leader = named.into_iter().rev().find(|(_, voices)| *voices > 1);
    relays.extend(leader.map(|(leader_id, _)| leader_id.node).filter(|id| members.contains(id)));
    relays
}

/// The seed nodes of a group.
pub fn seed_nodes(members: &BTreeSet<ServerId>) -> BTreeSet<ServerId> {
    members.iter().copied().take(SEED_NODES).collect()
}

/// How much longer than usual a server of a large group waits before it campaigns: those
/// right behind the last leader in the list stand first, and in a cold start the first one of all.
pub fn campaign_delay(
    me: ServerId,
    members: &BTreeSet<ServerId>,
    last_leader: Option<ServerId>,
    election_upper: Duration,
) -> Duration {
    if members.len() <= SMALL {
        return Duration::ZERO;
    }
    let candidates = || members.iter().filter(|id| Some(**id) != last_leader);
    let before_me = candidates().filter(|id| **id < me).count();
    let before_first = candidates().filter(|id| last_leader.is_some_and(|l| **id < l)).count();
    let count = candidates().count().max(1);
    let rank = (before_me + count - before_first) % count;
    let round = round(members, election_upper);
    if let (true, Ok(rank)) = (rank < FIRST_TIER, u32::try_from(rank)) {
        return round / HEAD_START * rank;
    }
    let (mut tier, mut size) = (0, FIRST_TIER);
    let mut end = size;
    while rank >= end {
        tier += 1;
        size *= TIER_GROWTH;
        end += size;
    }
    round * (TIER_PAUSE * tier)
}

/// The upper election bound, longer in proportion to what asking everybody takes.
fn round(members: &BTreeSet<ServerId>, election_upper: Duration) -> Duration {
    election_upper * scale(members.len())
}

/// How many times longer than in a small group it may take to ask everybody; 1 in a small one.
pub fn scale(members: usize) -> u32 {
    u32::try_from(members.div_ceil(SMALL)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPPER: Duration = Duration::from_millis(400);
    /// With 200 members.
    const ROUND: Duration = Duration::from_millis(2000);

    fn ids(range: std::ops::RangeInclusive<u32>) -> BTreeSet<ServerId> {
        range.map(ServerId).collect()
    }

    fn led_by(id: u32, term: u64) -> Status {
        let leader_id = LeaderId { term, node: ServerId(id) };
        Status { full: true, live_leader: true, leader_id, ..Status::default() }
    }

    #[test]
    fn seed_nodes_and_the_leader_that_more_than_itself_name_are_plausible_about_others() {
        let told = |said: &[(u32, Status)]| {
            let said = said.iter().map(|(id, s)| (ServerId(*id), s.clone())).collect();
            let relays = relays(&ids(1..=200), &said);
            relays.into_iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(told(&[]), [1, 2, 3]);
        assert_eq!(told(&[(90, led_by(90, 7))]), [1, 2, 3], "it names itself");
        assert_eq!(told(&[(90, led_by(90, 7)), (91, led_by(90, 7))]), [1, 2, 3, 90]);
        assert_eq!(told(&[(2, led_by(90, 7))]), [1, 2, 3, 90], "a seed node names it");
        let liar = (50, led_by(50, 9));
        assert_eq!(told(&[(2, led_by(90, 7)), liar.clone()]), [1, 2, 3, 90]);
        assert_eq!(told(&[(90, led_by(90, 7)), (91, led_by(90, 7)), liar]), [1, 2, 3, 90]);
        assert_eq!(told(&[(2, led_by(900, 7))]), [1, 2, 3], "it is no member");
        let none = Status { live_leader: false, ..led_by(90, 7) };
        assert_eq!(told(&[(2, none)]), [1, 2, 3]);
    }

    fn asked(me: u32, answers: &[(u32, Status)], gone: bool, ms: u64) -> BTreeSet<ServerId> {
        let answers = answers.iter().map(|(id, s)| (ServerId(*id), s.clone())).collect();
        let asked_for = Duration::from_millis(ms);
        whom_to_ask(ServerId(me), &ids(1..=200), &answers, gone, asked_for, UPPER)
    }

    #[test]
    fn a_small_group_asks_all_at_once() {
        let nobody = BTreeMap::new();
        let all = ids(1..=41);
        let asked = whom_to_ask(ServerId(7), &all, &nobody, false, Duration::ZERO, UPPER);
        assert_eq!(asked.len(), 40);
        assert!(!asked.contains(&ServerId(7)));
        assert_eq!(campaign_delay(ServerId(41), &all, None, UPPER), Duration::ZERO);
        assert_eq!([0, 41, 42, 200].map(scale), [1, 1, 2, 5]);
    }

    #[test]
    fn a_server_of_a_large_group_asks_the_seed_nodes_two_far_ones_and_the_newest_leader_that_they_know_of(
    ) {
        let first: BTreeSet<ServerId> = [1, 2, 3, 9, 143].map(ServerId).into();
        assert_eq!(asked(77, &[], false, 0), first);
        let led = [(1, led_by(90, 4)), (2, led_by(80, 5)), (3, Status::default())];
        let mut expected = first.clone();
        expected.insert(ServerId(80));
        assert_eq!(asked(77, &led, false, 0), expected);
        // One that is no member, and the server itself in its earlier life.
        assert_eq!(asked(77, &[(1, led_by(201, 5))], false, 0), first);
        assert_eq!(asked(77, &[(1, led_by(77, 5))], false, 0), first);
    }

    #[test]
    fn a_seed_node_asks_all_when_no_leader_shows_up() {
        let empty = Status::default;
        let both = [(1, empty()), (3, empty())];
        assert_eq!(asked(2, &both, false, 3999), [1, 3, 68, 134].map(ServerId).into());
        assert_eq!(asked(2, &both, false, 4000).len(), 199);
        let led = [(1, led_by(80, 5)), (3, empty())];
        assert_eq!(asked(2, &led, false, 4000), [1, 3, 68, 80, 134].map(ServerId).into());
    }

    #[test]
    fn without_a_decision_more_are_asked_and_all_in_the_end() {
        let gone = |ms| asked(199, &[], true, ms).len();
        assert_eq!([1999, 2000, 4000, 6000, 14_000].map(gone), [5, 6, 11, 23, 199]);
        let behind = ids(1..=8).into_iter().chain([65, 131, 200].map(ServerId)).collect();
        assert_eq!(asked(199, &[], true, 4000), behind);
        let slow = |ms| asked(199, &[], false, ms).len();
        assert_eq!([9_999, 10_000, 70_000].map(slow), [5, 6, 199]);
        assert_eq!(slow(u64::MAX), 199);
    }

    #[test]
    fn a_few_stand_first_and_everybody_in_the_end() {
        let delay = |me, leader: Option<u32>| {
            campaign_delay(ServerId(me), &ids(1..=200), leader.map(ServerId), UPPER)
        };
        let tiers = |leader: Option<u32>| {
            let mut tiers = BTreeMap::new();
            for id in (1..=200).filter(|id| Some(*id) != leader) {
                *tiers.entry(delay(id, leader).as_millis()).or_insert(0) += 1;
            }
            tiers.into_iter().collect::<Vec<_>>()
        };
        let first = [(0, 1), (500, 1), (1000, 1)];
        let expected = |last| {
            let later = [(4_000, 9), (8_000, 27), (12_000, 81), (16_000, last)];
            first.into_iter().chain(later).collect::<Vec<_>>()
        };
        assert_eq!(tiers(None), expected(80));
        assert_eq!(tiers(Some(198)), expected(79));
        // Right behind the leader, around the end of the list.
        for (rank, id) in (0..).zip([199, 200, 1]) {
            assert_eq!(delay(id, Some(198)), ROUND / 4 * rank, "{id}");
        }
        assert_eq!(delay(2, Some(198)), ROUND * 2);
        assert_eq!(delay(197, Some(198)), ROUND * 8);
    }
}
