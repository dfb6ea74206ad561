//! What servers say of themselves to each other, and what follows: whether a node would
//! win an election, and whether its cluster can ever have one again.
//!
//! Decisions only; who asks, and how often, is for [`crate::node`]. Invariants: a node counts on the
//! very nodes of its configuration, and on no other life of their servers.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::agreement::epoch::Epoch;
use super::agreement::founding::Answer;
use super::key_ring::{ClusterId, Generation};
use super::log_id::{LeaderId, LogId};
use super::node_id::{Incarnation, NodeId};
use super::quorum::{has_majority, majority};
use super::server_id::ServerId;

/// What a server says of itself when it is asked, or when it asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Who it is.
    pub node: NodeId,
    /// The cluster that it takes part in; none if it does not.
    pub cluster: Epoch,
    /// The highest epoch that it knows of, by its counter.
    pub known: u64,
    /// The highest vote that it knows, its own or that of a leader: a term and who campaigned in it.
    pub vote: LeaderId,
    /// The end of its log, if it has one.
    pub last_log_id: Option<LogId>,
    /// The sequence of keys that it knows, if any.
    pub cluster_id: Option<ClusterId>,
    /// The newest generation in its ring.
    pub generation: Generation,
    /// The latest life of the other server, the one that asks or is asked, that it knows of.
    pub yours: Incarnation,
    /// The version of the server list that it knows to be agreed.
    pub list_version: u64,
    /// Whether it has all that its cluster was founded from, and what was agreed since, as far as it
    /// was told.
    pub caught_up: bool,
    /// Whether it knows a leader that is alive.
    pub live_leader: bool,
    /// Whether it belongs to a majority that agrees at present: it leads one, or its leader said
    /// so a moment ago.
    pub quorum: bool,
}

impl Status {
    /// What a founder has to know of it.
    pub fn answer(&self) -> Answer {
        Answer { node: self.node, known: self.known, hears_leader: self.quorum }
    }
}

/// Why a server that says this of itself would not vote for a node whose log ends at `last_log_id`.
pub fn objection(status: &Status, last_log_id: Option<LogId>) -> Option<&'static str> {
    if status.live_leader {
        Some("it hears a leader")
    } else if status.last_log_id > last_log_id {
        Some("its log is longer")
    } else {
        None
    }
}

/// Whether enough voters would vote for a node of `cluster`, so that its campaign disturbs nobody in
/// vain.
///
/// `configs` are the voter sets of the effective membership (two during a change); `answers` are
/// those of the others. One server that sees a live leader does not veto: it may be cut off together
/// with that leader.
pub fn may_campaign(
    (me, cluster): (NodeId, Epoch),
    last_log_id: Option<LogId>,
    configs: &[BTreeSet<NodeId>],
    answers: &BTreeMap<ServerId, Status>,
) -> bool {
    let says_yes = |status: &Status| objection(status, last_log_id).is_none();
    let is_for_me = |id: NodeId| {
        id == me || voter(id, cluster, answers).is_some_and(|status| status.is_some_and(says_yes))
    };
    configs.iter().all(|voters| voters.contains(&me)) && has_majority(configs, is_for_me)
}

/// Whether a cluster can agree on nothing any more, whatever comes: too few of its voters are left,
/// since their servers have begun another life or have left it, or nobody is there any more (`gone`),
/// who would begin another life too. Who says nothing may be there.
pub fn is_over(
    (me, cluster): (NodeId, Epoch),
    configs: &[BTreeSet<NodeId>],
    answers: &BTreeMap<ServerId, Status>,
    gone: &BTreeSet<ServerId>,
) -> bool {
    let is_gone = |id: &NodeId| {
        let has_left = || match voter(*id, cluster, answers) {
            Some(said) => said.is_none(),
            None => gone.contains(&id.server),
        };
        *id != me && (id.incarnation.is_nobody() || has_left())
    };
    configs.iter().any(|voters| {
        let left = voters.iter().filter(|id| !is_gone(id)).count();
        left < majority(voters.len())
    })
}

/// What a voter of `cluster` says: nothing; or through its server that it is no more; or how it is.
fn voter(
    id: NodeId,
    cluster: Epoch,
    answers: &BTreeMap<ServerId, Status>,
) -> Option<Option<&Status>> {
    let answer = answers.get(&id.server)?;
    Some(Some(answer).filter(|status| status.node == id && status.cluster == cluster))
}

/// Whether a server can take it for true that `cluster` has a leader with a majority, by what others
/// say of themselves: two of them hear it. One that says so alone may be broken, or in the wrong
/// hands; it is believed where it is the only other one, and by a server that has heard of no
/// majority for long.
pub fn is_led(
    cluster: Epoch,
    answers: &BTreeMap<ServerId, Status>,
    others: usize,
    is_long_alone: bool,
) -> bool {
    let hears = |status: &&Status| status.quorum && status.cluster == cluster;
    is_credible(answers.values().filter(hears).count(), others, is_long_alone)
}

/// Whether what so many of so many others say can be acted on though it ends this node: two say it; or one
/// does that is the only other one, or where no majority was heard for long.
fn is_credible(saying: usize, others: usize, is_long_alone: bool) -> bool {
    saying >= 2 || saying == 1 && (others <= 1 || is_long_alone)
}

/// Whether a server can take it for true that it had a later life than this one, whose clock went back:
/// by what each other one says is the latest that it knows of. While it has a majority, that counts on
/// this very life, one server's word is not enough.
pub fn is_outlived(
    own: Incarnation,
    told: &BTreeMap<ServerId, Incarnation>,
    others: usize,
    (in_majority, is_long_alone): (bool, bool),
) -> bool {
    let saying = told.values().filter(|told| **told > own).count();
    is_credible(saying, others, is_long_alone) && (saying >= 2 || !in_majority)
}

/// Whether a majority of the list could still be found, given how many others cannot be reached
/// at all. A starting server does not wait for the group where it could not.
pub fn majority_possible(members: usize, unreachable: usize) -> bool {
    members.saturating_sub(unreachable) > members / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: Epoch = Epoch { counter: 5, founder: node(1, 1) };

    const fn node(server: u32, incarnation: u64) -> NodeId {
        NodeId { server: ServerId(server), incarnation: Incarnation(incarnation) }
    }

    fn status(server: u32, index: u64) -> (ServerId, Status) {
        let last_log_id = Some(LogId { index, ..LogId::default() });
        let node = node(server, 1);
        (node.server, Status { node, cluster: CLUSTER, last_log_id, ..Status::default() })
    }

    fn voters(ids: &[u32]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| node(*id, 1)).collect()
    }

    fn with(of: (ServerId, Status), change: impl FnOnce(&mut Status)) -> (ServerId, Status) {
        let (id, mut status) = of;
        change(&mut status);
        (id, status)
    }

    #[test]
    fn no_single_server_of_several_says_that_this_one_had_a_later_life() {
        let told = |lives: &[(u32, u64)]| -> BTreeMap<ServerId, Incarnation> {
            lives.iter().map(|(id, life)| (ServerId(*id), Incarnation(*life))).collect()
        };
        let is_outlived = |lives: &[(u32, u64)], others, is_long_alone| {
            is_outlived(Incarnation(5), &told(lives), others, (false, is_long_alone))
        };
        assert!(!is_outlived(&[(2, 6)], 2, false) && !is_outlived(&[(2, 6), (3, 5)], 2, false));
        assert!(is_outlived(&[(2, 6), (3, 9)], 2, false), "two say so");
        assert!(is_outlived(&[(2, 6)], 1, false), "there is no other");
        let has_majority = |lives: &[(u32, u64)], others| {
            super::is_outlived(Incarnation(5), &told(lives), others, (true, false))
        };
        assert!(!has_majority(&[(2, 6)], 1) && has_majority(&[(2, 6), (3, 6)], 2));
        assert!(is_outlived(&[(2, 6)], 2, true), "nobody else has said anything for long");
        assert!(!is_outlived(&[(2, 5), (3, 1)], 2, true) && !is_outlived(&[], 2, true));
    }

    #[test]
    fn campaigning_needs_a_yes_from_a_majority_of_every_config() {
        let mine = status(1, 9).1.last_log_id;
        let stand = |configs: &[BTreeSet<NodeId>], list: &[(ServerId, Status)]| {
            may_campaign((node(1, 1), CLUSTER), mine, configs, &list.iter().cloned().collect())
        };
        let three = [voters(&[1, 2, 3])];
        assert!(!stand(&three, &[]));
        assert!(stand(&three, &[status(2, 9)]));
        assert!(!stand(&three, &[status(2, 10)]));
        let five = [voters(&[1, 2, 3, 4, 5])];
        assert!(!stand(&five, &[status(2, 9)]));
        assert!(stand(&five, &[status(2, 9), status(3, 9)]));
        let deaf = || with(status(2, 9), |s| s.live_leader = true);
        assert!(!stand(&three, &[deaf()]));
        assert!(stand(&three, &[deaf(), status(3, 9)]), "one live leader must not veto");
        let later = with(status(2, 9), |s| s.node = node(2, 2));
        assert!(!stand(&three, &[later]), "it is another node");
        let left = with(status(2, 9), |s| s.cluster = Epoch::default());
        assert!(!stand(&three, &[left]), "it has left the cluster");
        let joint = [voters(&[1, 2, 3]), voters(&[1, 4, 5])];
        assert!(!stand(&joint, &[status(2, 9)]));
        assert!(stand(&joint, &[status(2, 9), status(4, 9)]));
        assert!(!stand(&[voters(&[2, 3])], &[status(2, 9), status(3, 9)]));
    }

    #[test]
    fn a_cluster_is_over_when_too_few_of_its_voters_can_be_left() {
        let over = |configs: &[BTreeSet<NodeId>], list: &[(ServerId, Status)]| {
            is_over((node(1, 1), CLUSTER), configs, &list.iter().cloned().collect(), &[].into())
        };
        let again = |id| with(status(id, 9), |s| s.node = node(id, 2));
        let left = |id| with(status(id, 9), |s| s.cluster = Epoch::default());
        let (two, three) = ([voters(&[1, 2])], [voters(&[1, 2, 3])]);
        assert!(!over(&two, &[]) && !over(&two, &[status(2, 9)]), "who is silent may be there");
        assert!(over(&two, &[again(2)]) && over(&two, &[left(2)]));
        assert!(!over(&three, &[again(2)]) && over(&three, &[again(2), left(3)]));
        let nobody = [[node(1, 1), node(2, 0), node(3, 0)].into()];
        assert!(over(&nobody, &[]));
        assert!(over(&[voters(&[1, 2, 3]), voters(&[1, 4])], &[again(4)]), "one of both is enough");
        let without = |ids: &[u32], list: &[(ServerId, Status)]| {
            let gone = ids.iter().copied().map(ServerId).collect();
            is_over((node(1, 1), CLUSTER), &three, &list.iter().cloned().collect(), &gone)
        };
        assert!(!without(&[2], &[]) && without(&[2, 3], &[]), "nobody listens there");
        assert!(!without(&[2, 3], &[status(2, 9)]), "its answer is newer");
    }

    #[test]
    fn one_server_alone_makes_nobody_believe_in_a_group() {
        let led = |list: &[(ServerId, Status)], others, is_long_alone| {
            is_led(CLUSTER, &list.iter().cloned().collect(), others, is_long_alone)
        };
        let hears = |id| with(status(id, 9), |s| s.quorum = true);
        let other = with(hears(3), |s| s.cluster.counter += 1);
        assert!(!led(&[status(2, 9), status(3, 9)], 2, true));
        assert!(led(&[hears(2), hears(3)], 2, false));
        assert!(!led(&[hears(2), status(3, 9)], 2, false) && !led(&[hears(2), other], 2, false));
        assert!(led(&[hears(2), status(3, 9)], 2, true) && led(&[hears(2)], 1, false));
    }

    #[test]
    fn a_majority_is_possible_while_enough_may_still_answer() {
        assert!(majority_possible(3, 1));
        assert!(!majority_possible(3, 2));
        assert!(majority_possible(1, 0));
        assert!(!majority_possible(2, 1));
    }
}
