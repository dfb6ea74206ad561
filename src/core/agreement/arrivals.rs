//! Which lives of other servers have answered a leader: those it may take into its membership.
//!
//! That a server answers is for the caller to hear. Invariants: what answered an earlier leadership
//! counts for nothing in this one, since it may have ended meanwhile, and a life that came later has
//! the lower incarnation if its clock went back; of several lives the latest counts.

use std::collections::BTreeMap;

use super::epoch::Epoch;
use crate::core::log_id::LeaderId;
use crate::core::node_id::{Incarnation, NodeId};
use crate::core::server_id::ServerId;

/// One leadership: a leader's id may come again in another cluster.
pub type Leadership = (Epoch, LeaderId);

/// Who has answered the latest leadership of this server.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    of: Leadership,
    lives: BTreeMap<ServerId, Incarnation>,
}

impl Arrivals {
    /// Hears that a node answers this leadership; whether it is a life that has not done so before.
    pub fn record(&mut self, leadership: Leadership, node: NodeId) -> bool {
        if self.of != leadership {
            *self = Arrivals { of: leadership, lives: BTreeMap::new() };
        }
        let known = self.lives.entry(node.server).or_default();
        let is_new = *known < node.incarnation;
        *known = node.incarnation.max(*known);
        is_new
    }

    /// The latest life of each server that has answered this leadership.
    pub fn of(&self, leadership: Leadership) -> BTreeMap<ServerId, Incarnation> {
        if self.of == leadership {
            self.lives.clone()
        } else {
            BTreeMap::new()
        }
    }

    /// The latest life of a server that is known of.
    pub fn latest(&self, server: ServerId) -> Option<Incarnation> {
        self.lives.get(&server).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(server: u32, incarnation: u64) -> NodeId {
        NodeId { server: ServerId(server), incarnation: Incarnation(incarnation) }
    }

    fn leadership(counter: u64, term: u64) -> Leadership {
        (Epoch { counter, founder: node(1, 1) }, LeaderId { term, node: node(1, 1) })
    }

    #[test]
    fn the_latest_life_of_each_server_counts() {
        let (mut arrivals, now) = (Arrivals::default(), leadership(5, 1));
        assert!(arrivals.record(now, node(2, 7)) && arrivals.record(now, node(3, 1)));
        assert!(!arrivals.record(now, node(2, 7)), "it has answered before");
        assert!(!arrivals.record(now, node(2, 6)), "an earlier life is late");
        assert!(arrivals.record(now, node(2, 8)));
        let lives = [(ServerId(2), Incarnation(8)), (ServerId(3), Incarnation(1))];
        assert_eq!(arrivals.of(now), BTreeMap::from(lives));
        assert_eq!(arrivals.latest(ServerId(2)), Some(Incarnation(8)));
        assert_eq!(arrivals.latest(ServerId(4)), None);
    }

    #[test]
    fn what_answered_an_earlier_leadership_counts_for_nothing() {
        let mut arrivals = Arrivals::default();
        arrivals.record(leadership(5, 1), node(2, 7));
        // The next term, and the first one of the next cluster.
        for next in [leadership(5, 2), leadership(6, 2)] {
            assert_eq!(arrivals.of(next), BTreeMap::new());
            assert!(arrivals.record(next, node(2, 3)), "its clock went back");
            assert_eq!(arrivals.of(next), BTreeMap::from([(ServerId(2), Incarnation(3))]));
            arrivals.record(next, node(2, 9));
        }
    }
}
