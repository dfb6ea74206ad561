//! Majorities: how many servers it takes, and whether as many have acknowledged a leader.
//!
//! What an acknowledgement is, and which sets of voters count, is for the caller. Invariants: during
//! a change of membership both sets of voters need a majority of their own; no voters at all have
//! none; a leader counts as one that acknowledges itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::moment::Moment;
use super::node_id::NodeId;
use super::server_id::ServerId;

/// The least number of so many servers of which any two sets have one in common.
pub fn majority(servers: usize) -> usize {
    servers / 2 + 1
}

/// Whether those for which `is` holds are a majority of each set of voters.
pub fn has_majority(configs: &[BTreeSet<NodeId>], is: impl Fn(NodeId) -> bool) -> bool {
    let count = |voters: &BTreeSet<NodeId>| voters.iter().filter(|id| is(**id)).count();
    !configs.is_empty() && configs.iter().all(|voters| count(voters) >= majority(voters.len()))
}

/// When each other server last acknowledged this one as its leader.
#[derive(Default)]
pub struct Acknowledgements(BTreeMap<NodeId, Moment>);

impl Acknowledgements {
    /// Records one of `by`.
    pub fn record(&mut self, by: NodeId, now: Moment) {
        self.0.insert(by, now);
    }

    /// Forgets what earlier lives of a server acknowledged than `latest`: they are gone.
    pub fn forget_before(&mut self, latest: NodeId) {
        let is_before =
            |node: &NodeId| node.server == latest.server && node.incarnation < latest.incarnation;
        self.0.retain(|node, _| !is_before(node));
    }

    /// Who acknowledged within the `limit` of its server.
    pub fn of(&self, limit: impl Fn(ServerId) -> Duration, now: Moment) -> BTreeSet<NodeId> {
        let fresh = self.0.iter().filter(|(node, at)| now.since(**at) < limit(node.server));
        fresh.map(|(node, _)| *node).collect()
    }

    /// Whether a majority, `me` included, acknowledged within `limit`.
    pub fn within(
        &self,
        limit: Duration,
        me: NodeId,
        configs: &[BTreeSet<NodeId>],
        now: Moment,
    ) -> bool {
        let is_fresh = |at: &Moment| now.since(*at) < limit;
        has_majority(configs, |id| id == me || self.0.get(&id).is_some_and(is_fresh))
    }

    /// Since when a majority, `me` included, has acknowledged; `None` if none ever did.
    pub fn majority_since(
        &self,
        me: NodeId,
        configs: &[BTreeSet<NodeId>],
        now: Moment,
    ) -> Option<Moment> {
        let time = |id: &NodeId| if *id == me { Some(now) } else { self.0.get(id).copied() };
        let of_voters = |voters: &BTreeSet<NodeId>| {
            let mut times: Vec<Option<Moment>> = voters.iter().map(time).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            // The majority's last one to answer.
            times.get(majority(times.len()) - 1).copied().flatten()
        };
        configs.iter().map(of_voters).min().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::node_id::Incarnation;

    const ME: NodeId = NodeId::of(1);

    fn ids(ids: &[u32]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId::of).collect()
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn a_majority_is_more_than_half() {
        let majorities: Vec<usize> = (1..6).map(majority).collect();
        assert_eq!(majorities, [1, 2, 2, 3, 3]);
        let of = |configs: &[BTreeSet<NodeId>]| has_majority(configs, |id| id.server.0 <= 2);
        assert!(of(&[ids(&[1])]) && of(&[ids(&[1, 2, 3])]) && of(&[ids(&[1, 2]), ids(&[2])]));
        assert!(!of(&[ids(&[1, 2, 3, 4])]), "half of them is none");
        assert!(!of(&[ids(&[1, 2]), ids(&[3, 4, 5])]), "both sets need one");
        assert!(!of(&[]) && !of(&[ids(&[])]));
    }

    #[test]
    fn a_leader_counts_itself_and_who_answered_in_time() {
        let configs = [ids(&[1, 2, 3, 4, 5])];
        let mut acknowledged = Acknowledgements::default();
        let within = |a: &Acknowledgements, seconds| {
            a.within(Duration::from_secs(seconds), ME, &configs, at(10))
        };
        acknowledged.record(NodeId::of(2), at(8));
        assert!(!within(&acknowledged, 9), "two of five");
        acknowledged.record(NodeId::of(3), at(5));
        assert!(within(&acknowledged, 6) && !within(&acknowledged, 5));
        acknowledged.record(NodeId::of(3), at(9));
        assert!(within(&acknowledged, 3) && !within(&acknowledged, 2));
        // Who is no voter counts for nothing.
        let others = [ids(&[1, 4, 5])];
        assert!(!acknowledged.within(Duration::MAX, ME, &others, at(10)));
        assert!(acknowledged.within(Duration::ZERO, ME, &[ids(&[1])], at(10)));
    }

    #[test]
    fn what_an_earlier_life_acknowledged_counts_until_a_later_one_is_known() {
        let mut acknowledged = Acknowledgements::default();
        acknowledged.record(NodeId::of(2), at(9));
        acknowledged.record(NodeId::of(3), at(9));
        let limit = Duration::from_secs(2);
        assert_eq!(acknowledged.of(|_| limit, at(10)), ids(&[2, 3]));
        acknowledged.forget_before(NodeId::of(2));
        assert_eq!(acknowledged.of(|_| limit, at(10)), ids(&[2, 3]));
        acknowledged.forget_before(NodeId { incarnation: Incarnation(8), ..NodeId::of(2) });
        assert_eq!(acknowledged.of(|_| limit, at(10)), ids(&[3]));
        assert_eq!(acknowledged.of(|_| limit, at(11)), ids(&[]));
    }

    #[test]
    fn a_majority_is_as_old_as_its_oldest_answer() {
        let mut acknowledged = Acknowledgements::default();
        let since = |a: &Acknowledgements, sets: &[&[u32]]| {
            let configs: Vec<_> = sets.iter().map(|set| ids(set)).collect();
            a.majority_since(ME, &configs, at(10))
        };
        assert_eq!(since(&acknowledged, &[&[1]]), Some(at(10)));
        assert_eq!(since(&acknowledged, &[&[1, 2, 3]]), None);
        assert_eq!(since(&acknowledged, &[]), None);
        for (id, second) in [(2, 4), (3, 7), (4, 5)] {
            acknowledged.record(NodeId::of(id), at(second));
        }
        assert_eq!(since(&acknowledged, &[&[1, 2, 3]]), Some(at(7)));
        assert_eq!(since(&acknowledged, &[&[1, 2, 3, 4]]), Some(at(5)));
        assert_eq!(since(&acknowledged, &[&[1, 2, 3], &[1, 2]]), Some(at(4)), "the older of two");
        assert_eq!(since(&acknowledged, &[&[1, 2, 3], &[5, 6, 7]]), None);
        assert_eq!(since(&acknowledged, &[&[2, 3, 4]]), Some(at(5)), "one that has no vote leads");
    }
}
