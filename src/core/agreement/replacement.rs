//! How the leader keeps the voters what they should be: one step at a time, each of them harmless if
//! it is dropped or made twice, so that a new leader just goes on.
//!
//! Invariants: a voter has the log before it votes, and what it knew to be revoked is revoked; no
//! step begins while another one is open; a server that was replaced comes back only as a later
//! life; the list changes by one server at a time; until more than half of the new list vote nobody
//! stops voting; a leader that is no member any more changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::ranked_record::Voters;
use crate::core::node_id::{Incarnation, NodeId};
use crate::core::quorum::majority;
use crate::core::server_id::ServerId;

/// The voters, and which life of each.
pub type Configuration = BTreeMap<ServerId, Incarnation>;

/// A living server that is not, or not in this life, a voter yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arrival {
    /// Which life.
    pub incarnation: Incarnation,
    /// Whether it has taken the log of this leader.
    pub has_log: bool,
    /// Whether all that it knows to be revoked is revoked here too.
    pub is_merged: bool,
}

/// What a leader sees.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The leader.
    pub me: NodeId,
    /// The last configuration of its log; two while a change is open, the wanted one last.
    pub configurations: &'a [Configuration],
    /// All nodes that Raft knows, learners among them.
    pub nodes: &'a BTreeSet<NodeId>,
    /// Whether that configuration is committed, an entry of this leader's own term, and the record
    /// that the cluster was founded from.
    pub is_settled: bool,
    /// The voters of the list that the group has agreed on.
    pub list: &'a Voters,
    /// Its other servers, which are sent the log and do not vote.
    pub followers: &'a Voters,
    /// Who answered this leader within its lease.
    pub answering: &'a BTreeSet<NodeId>,
    /// The newest life of each server that said hello on a living connection.
    pub arrivals: &'a BTreeMap<ServerId, Arrival>,
}

/// What a leader has Raft do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these the log.
    AddLearners(BTreeSet<NodeId>),
    /// Revoke what this server knows to be revoked.
    MergeRevoked(NodeId),
    /// Make these the voters, by way of both sets.
    ChangeVoters(Configuration),
    /// Send these nothing any more.
    Remove(BTreeSet<NodeId>),
}

/// The next step, if there is one. It is asked again after each, and whenever something changed.
pub fn next_step(view: &View<'_>) -> Option<Step> {
    // Whoever has gone by its own last step is about to step down; what is left is for the next.
    if !view.nodes.contains(&view.me) {
        return None;
    }
    let last = view.configurations.last().filter(|_| view.is_settled)?;
    if view.configurations.len() > 1 {
        return Some(Step::ChangeVoters(last.clone()));
    }
    let has = |id: &ServerId| last.get(id).copied().unwrap_or(Incarnation::NOBODY);
    let node = |id: &ServerId, incarnation| NodeId { server: *id, incarnation };
    let new = |(id, arrival): (&ServerId, &Arrival)| {
        let is_new = *id != view.me.server && arrival.incarnation > has(id);
        let is_listed = view.list.contains(id) || view.followers.contains(id);
        (is_new && is_listed).then(|| (node(id, arrival.incarnation), *arrival))
    };
    let new: Vec<(NodeId, Arrival)> = view.arrivals.iter().filter_map(new).collect();
    let unknown = |known: &&(NodeId, Arrival)| !view.nodes.contains(&known.0);
    let learners: BTreeSet<NodeId> = new.iter().filter(unknown).map(|(node, _)| *node).collect();
    if !learners.is_empty() {
        return Some(Step::AddLearners(learners));
    }
    let ready = || new.iter().filter(|(_, arrival)| arrival.has_log);
    if let Some((node, _)) = ready().find(|(_, arrival)| !arrival.is_merged) {
        return Some(Step::MergeRevoked(*node));
    }
    let mut wanted = last.clone();
    let (replace, add): (Vec<_>, Vec<_>) =
        ready().map(|(node, _)| *node).partition(|node| last.contains_key(&node.server));
    let add: Vec<_> = add.into_iter().filter(|node| view.list.contains(&node.server)).collect();
    wanted.extend(replace.iter().map(|node| (node.server, node.incarnation)));
    if wanted == *last {
        let takes_log = |(node, arrival): &(NodeId, Arrival)| {
            view.list.contains(&node.server) && !arrival.has_log && view.answering.contains(node)
        };
        let staying = last.keys().filter(|id| view.list.contains(id)).count();
        if let Some(node) = add.first() {
            wanted.insert(node.server, node.incarnation);
        } else if staying >= majority(view.list.len()) && !new.iter().any(takes_log) {
            // Those that are away go first, the leader itself last.
            let leaving = last.iter().filter(|(id, _)| !view.list.contains(id));
            let order = |(id, life): &(&ServerId, &Incarnation)| {
                (**id == view.me.server, view.answering.contains(&node(id, **life)))
            };
            leaving.min_by_key(order).map(|(id, _)| wanted.remove(id));
        }
    }
    // Voters of whom no majority answers could agree on nothing, not even on others.
    let answers = |(id, life): &(&ServerId, &Incarnation)| {
        **id == view.me.server || view.answering.contains(&node(id, **life))
    };
    if wanted != *last && wanted.iter().filter(answers).count() >= majority(wanted.len()) {
        return Some(Step::ChangeVoters(wanted));
    }
    // A new leader does not know yet who has come; a follower stays until a later life of it has.
    let is_followers = |known: &&NodeId| {
        let later = view.arrivals.get(&known.server);
        view.followers.contains(&known.server)
            && !last.contains_key(&known.server)
            && later.is_none_or(|later| later.incarnation <= known.incarnation)
    };
    let stays = |known: &&NodeId| {
        last.get(&known.server) == Some(&known.incarnation)
            || new.iter().any(|(node, _)| node == *known)
            || is_followers(known)
    };
    let gone: BTreeSet<NodeId> = view.nodes.iter().filter(|known| !stays(known)).copied().collect();
    (!gone.is_empty()).then_some(Step::Remove(gone))
}

/// Whether a step is left that only has to wait: for a majority that answers, for an entry to be
/// committed. None of that comes with a sign, so the caller has to look again by itself.
pub fn is_waiting(view: &View<'_>) -> bool {
    let arrived = view.arrivals.iter();
    let node = |(id, arrival): (&ServerId, &Arrival)| NodeId {
        server: *id,
        incarnation: arrival.incarnation,
    };
    let answering = &arrived.map(node).collect::<BTreeSet<_>>() | view.nodes;
    next_step(&View { is_settled: true, answering: &answering, ..*view }).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(server: u32, incarnation: u64) -> NodeId {
        NodeId { server: ServerId(server), incarnation: Incarnation(incarnation) }
    }

    fn configuration(nodes: &[(u32, u64)]) -> Configuration {
        nodes.iter().map(|(id, life)| (ServerId(*id), Incarnation(*life))).collect()
    }

    /// A leader, server 1, of three voters who all answer.
    struct Fleet {
        configurations: Vec<Configuration>,
        is_settled: bool,
        list: Voters,
        followers: Voters,
        nodes: BTreeSet<NodeId>,
        answering: BTreeSet<NodeId>,
        arrivals: BTreeMap<ServerId, Arrival>,
    }

    fn fleet() -> Fleet {
        let nodes = BTreeSet::from([node(1, 1), node(2, 1), node(3, 1)]);
        Fleet {
            configurations: vec![configuration(&[(1, 1), (2, 1), (3, 1)])],
            is_settled: true,
            list: [1, 2, 3].map(ServerId).into(),
            followers: Voters::new(),
            answering: nodes.clone(),
            nodes,
            arrivals: BTreeMap::new(),
        }
    }

    impl Fleet {
        fn arrive(&mut self, id: u32, life: u64, has_log: bool, is_merged: bool) {
            let arrival = Arrival { incarnation: Incarnation(life), has_log, is_merged };
            self.arrivals.insert(ServerId(id), arrival);
        }

        fn view(&self) -> View<'_> {
            View {
                me: node(1, 1),
                configurations: &self.configurations,
                nodes: &self.nodes,
                is_settled: self.is_settled,
                list: &self.list,
                followers: &self.followers,
                answering: &self.answering,
                arrivals: &self.arrivals,
            }
        }

        fn next(&self) -> Option<Step> {
            next_step(&self.view())
        }
    }

    fn change(nodes: &[(u32, u64)]) -> Option<Step> {
        Some(Step::ChangeVoters(configuration(nodes)))
    }

    #[test]
    fn a_restarted_server_takes_its_own_place_step_by_step() {
        let mut fleet = fleet();
        assert_eq!(fleet.next(), None);
        fleet.arrive(2, 1, true, false);
        assert_eq!(fleet.next(), None, "it is the one that votes");
        fleet.arrive(2, 7, false, false);
        assert_eq!(fleet.next(), Some(Step::AddLearners([node(2, 7)].into())));
        fleet.nodes.insert(node(2, 7));
        assert_eq!(fleet.next(), None, "it has no log yet");
        fleet.arrive(2, 7, true, false);
        assert_eq!(fleet.next(), Some(Step::MergeRevoked(node(2, 7))));
        fleet.arrive(2, 7, true, true);
        assert_eq!(fleet.next(), change(&[(1, 1), (2, 7), (3, 1)]));
        fleet.configurations.push(configuration(&[(1, 1), (2, 7), (3, 1)]));
        fleet.arrivals.clear();
        assert_eq!(fleet.next(), change(&[(1, 1), (2, 7), (3, 1)]), "what is open is ended");
        fleet.configurations.remove(0);
        assert_eq!(fleet.next(), Some(Step::Remove([node(2, 1)].into())));
        fleet.nodes.remove(&node(2, 1));
        assert_eq!(fleet.next(), None);
    }

    #[test]
    fn nothing_is_done_while_anything_is_open() {
        let mut fleet = fleet();
        fleet.nodes.insert(node(2, 7));
        fleet.arrive(2, 7, true, true);
        fleet.is_settled = false;
        assert_eq!(fleet.next(), None);
        fleet.configurations.clear();
        fleet.is_settled = true;
        assert_eq!(fleet.next(), None);
    }

    #[test]
    fn what_cannot_be_done_at_this_moment_is_looked_for_again() {
        let mut fleet = fleet();
        assert!(!is_waiting(&fleet.view()), "there is nothing to do");
        fleet.arrive(2, 7, false, false);
        fleet.is_settled = false;
        assert_eq!(fleet.next(), None);
        assert!(is_waiting(&fleet.view()), "no majority answered when it came");
        fleet.nodes.insert(node(2, 7));
        fleet.arrive(2, 7, true, true);
        (fleet.is_settled, fleet.answering) = (true, [node(1, 1)].into());
        assert_eq!(fleet.next(), None);
        assert!(is_waiting(&fleet.view()), "nor when it had the log");
        fleet.configurations = vec![configuration(&[(1, 1), (2, 7), (3, 1)])];
        fleet.is_settled = false;
        assert!(is_waiting(&fleet.view()), "nor when it had its vote: what it was is to go");
        fleet.nodes.remove(&node(2, 1));
        assert!(!is_waiting(&fleet.view()), "all is done");
        fleet.arrive(3, 1, true, true);
        fleet.arrive(4, 1, true, true);
        assert!(!is_waiting(&fleet.view()), "nobody is new, nor a stranger of use");
    }

    #[test]
    fn what_waits_is_seen_as_if_all_answered_that_are_there() {
        let mut fleet = fleet();
        fleet.list = [1, 2, 3, 4].map(ServerId).into();
        fleet.nodes.insert(node(4, 7));
        fleet.arrive(4, 7, true, true);
        fleet.answering = [node(1, 1)].into();
        assert_eq!(fleet.next(), None);
        assert!(is_waiting(&fleet.view()), "the other voters have not arrived, and are members");
        fleet.arrive(2, 1, true, true);
        assert!(is_waiting(&fleet.view()), "nor does it matter who is both");
    }

    #[test]
    fn an_earlier_life_is_not_taken_in_again_nor_the_leader_by_another() {
        let mut fleet = fleet();
        fleet.configurations = vec![configuration(&[(1, 1), (2, 7), (3, 1)])];
        fleet.nodes = [node(1, 1), node(2, 7), node(3, 1)].into();
        fleet.arrive(2, 6, true, true);
        fleet.arrive(1, 9, true, true);
        fleet.arrive(4, 1, true, true);
        assert_eq!(fleet.next(), None);
    }

    #[test]
    fn several_are_replaced_at_once_but_the_list_changes_by_one() {
        let mut fleet = fleet();
        fleet.list = [1, 2, 3, 4, 5].map(ServerId).into();
        for id in [2, 3, 4, 5] {
            fleet.nodes.insert(node(id, 7));
            fleet.answering.insert(node(id, 7));
            fleet.arrive(id, 7, true, true);
        }
        assert_eq!(fleet.next(), change(&[(1, 1), (2, 7), (3, 7)]));
        fleet.configurations = vec![configuration(&[(1, 1), (2, 7), (3, 7)])];
        assert_eq!(fleet.next(), change(&[(1, 1), (2, 7), (3, 7), (4, 7)]));
    }

    #[test]
    fn those_that_are_away_leave_first_and_the_leader_last() {
        let mut fleet = fleet();
        fleet.list = [2].map(ServerId).into();
        fleet.answering.remove(&node(3, 1));
        assert_eq!(fleet.next(), change(&[(1, 1), (2, 1)]));
        fleet.configurations = vec![configuration(&[(1, 1), (2, 1)])];
        assert_eq!(fleet.next(), change(&[(2, 1)]));
    }

    #[test]
    fn a_leader_that_has_left_leaves_the_rest_to_the_next() {
        let mut fleet = fleet();
        fleet.list = [2, 3].map(ServerId).into();
        fleet.arrive(4, 1, true, true);
        fleet.followers = [4].map(ServerId).into();
        fleet.configurations = vec![configuration(&[(2, 1), (3, 1)])];
        assert!(fleet.next().is_some(), "while it is a member there is something to do");
        fleet.nodes.remove(&node(1, 1));
        assert_eq!(fleet.next(), None);
        assert!(!is_waiting(&fleet.view()), "nor does it look again");
    }

    #[test]
    fn nobody_stops_voting_before_more_than_half_of_the_new_list_vote() {
        let mut fleet = fleet();
        fleet.list = [3, 4, 5].map(ServerId).into();
        assert_eq!(fleet.next(), None, "of the new list only one votes yet");
        fleet.nodes.insert(node(4, 1));
        fleet.answering.insert(node(4, 1));
        fleet.arrive(4, 1, true, true);
        assert_eq!(fleet.next(), change(&[(1, 1), (2, 1), (3, 1), (4, 1)]));
        fleet.configurations = vec![configuration(&[(1, 1), (2, 1), (3, 1), (4, 1)])];
        fleet.nodes.insert(node(5, 1));
        fleet.answering.insert(node(5, 1));
        fleet.arrive(5, 1, false, true);
        assert_eq!(fleet.next(), None, "one that takes the log is waited for");
        fleet.answering.remove(&node(5, 1));
        assert_eq!(fleet.next(), change(&[(1, 1), (3, 1), (4, 1)]), "unless it is away");
    }

    #[test]
    fn a_follower_is_sent_the_log_and_never_votes() {
        let mut fleet = fleet();
        fleet.followers = [8, 9].map(ServerId).into();
        fleet.arrive(9, 1, false, false);
        assert_eq!(fleet.next(), Some(Step::AddLearners([node(9, 1)].into())));
        fleet.nodes.insert(node(9, 1));
        fleet.arrive(9, 1, true, true);
        assert_eq!(fleet.next(), None);
        fleet.arrivals.clear();
        assert_eq!(fleet.next(), None, "a new leader keeps it");
        fleet.arrive(9, 2, false, false);
        assert_eq!(fleet.next(), Some(Step::AddLearners([node(9, 2)].into())));
        fleet.nodes.insert(node(9, 2));
        assert_eq!(fleet.next(), Some(Step::Remove([node(9, 1)].into())));
    }

    #[test]
    fn no_step_leads_to_voters_who_could_agree_on_nothing() {
        let mut fleet = fleet();
        fleet.list = [1, 2].map(ServerId).into();
        fleet.answering.remove(&node(2, 1));
        assert_eq!(fleet.next(), None, "of two voters one would be away");
        fleet.answering.insert(node(2, 1));
        assert_eq!(fleet.next(), change(&[(1, 1), (2, 1)]));
    }
}
