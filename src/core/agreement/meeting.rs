//! What a node does about a leader that it hears: follow it, pay no heed, or become a new node to
//! join it.
//!
//! Invariants: only a leader that heard a majority lately moves anybody; who leaves a cluster takes
//! nothing along but its record, so that nobody is in two.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::epoch::Epoch;
use crate::core::moment::Moment;

/// What a leader's heartbeat says of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leading {
    /// The cluster.
    pub cluster: Epoch,
    /// The version of its agreed list.
    pub list_version: u64,
    /// How long ago a majority was heard.
    pub majority_age: Duration,
}

/// A leader's word, and when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// What it said.
    pub leading: Leading,
    /// When.
    pub at: Moment,
}

impl Contact {
    /// Whether that leader has a majority at `now`, as far as can be known: it heard one within
    /// `lease`, on the way here included.
    pub fn has_majority(&self, now: Moment, lease: Duration) -> bool {
        self.leading.majority_age.saturating_add(now.since(self.at)) < lease
    }
}

/// What follows from hearing a leader with a majority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// Follow it: it leads this node's cluster, or this node is in none and may take its log.
    Follow,
    /// Pay no heed: it is the other group that gives way.
    Stay,
    /// Step down if this node leads, and begin as a new node, with the record and the keys.
    BeginAnew,
}

/// What a node of `cluster`, which has promised `promise`, does about a leader with a majority that it
/// hears, `own` being the leader of its own cluster if that has a majority too.
pub fn meet(cluster: Epoch, promise: Epoch, own: Option<&Leading>, other: &Leading) -> Meeting {
    let rank = |leading: &Leading| (leading.list_version, leading.cluster);
    if other.cluster == cluster && promise == cluster
        || cluster.is_none() && promise <= other.cluster
    {
        return Meeting::Follow;
    }
    match own {
        Some(own) if promise == cluster && rank(own) >= rank(other) => Meeting::Stay,
        _ => Meeting::BeginAnew,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(counter: u64) -> Epoch {
        Epoch { counter, ..Epoch::default() }
    }

    fn leading(counter: u64, list_version: u64) -> Leading {
        Leading { cluster: epoch(counter), list_version, majority_age: Duration::ZERO }
    }

    #[test]
    fn a_majority_is_as_old_as_the_leader_said_and_the_way_took() {
        let at = Moment::from_start(Duration::from_millis(1000));
        let majority_age = Duration::from_millis(100);
        let contact = Contact { leading: Leading { majority_age, ..leading(1, 1) }, at };
        let has = |ms| {
            let now = Moment::from_start(Duration::from_millis(ms));
            contact.has_majority(now, Duration::from_millis(400))
        };
        assert!(has(1000) && has(1299) && !has(1300));
        let alone = Leading { majority_age: Duration::MAX, ..leading(1, 1) };
        assert!(!Contact { leading: alone, at }.has_majority(at, Duration::MAX));
    }

    #[test]
    fn a_node_follows_its_own_cluster_and_one_in_none_any_that_it_has_not_promised_away() {
        let of = |cluster, promise, other| {
            meet(epoch(cluster), epoch(promise), None, &leading(other, 1))
        };
        assert_eq!((of(2, 2, 2), of(0, 0, 2)), (Meeting::Follow, Meeting::Follow));
        assert_eq!((of(0, 2, 2), of(0, 1, 2)), (Meeting::Follow, Meeting::Follow));
        // A promise that led nowhere, in a cluster or in none.
        assert_eq!((of(2, 3, 2), of(0, 3, 2)), (Meeting::BeginAnew, Meeting::BeginAnew));
        // Its own cluster has no leader any more.
        assert_eq!((of(2, 2, 3), of(3, 3, 2)), (Meeting::BeginAnew, Meeting::BeginAnew));
    }

    #[test]
    fn of_two_groups_one_gives_way_and_both_know_which() {
        let of = |own: Leading, other: Leading| meet(own.cluster, own.cluster, Some(&own), &other);
        for (stays, goes) in [(leading(3, 1), leading(2, 1)), (leading(2, 2), leading(3, 1))] {
            assert_eq!(of(stays, goes), Meeting::Stay);
            assert_eq!(of(goes, stays), Meeting::BeginAnew);
        }
        // Who has promised to leave its cluster does not hold on to it.
        let own = leading(2, 9);
        assert_eq!(meet(epoch(2), epoch(4), Some(&own), &leading(3, 1)), Meeting::BeginAnew);
    }
}
