//! When a cluster was founded, as one number that orders all foundings, and by whom.
//!
//! Invariants: no two foundings have one epoch, since a node has a higher one each time; a founder's
//! epoch is above all that it knows of.

use serde::{Deserialize, Serialize};

use crate::core::node_id::NodeId;

/// How far an epoch's counter may lie above what a server knows, and above its clock, for it to be
/// believed: 136 years. One message raises it by that at most, which is nothing of what there is.
pub const MAX_EPOCH_LEAP: u64 = 1 << 32;

/// Names a cluster: what follows from one founding. The default stands for none, before all others.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// Seconds after 1970, or more where clocks went back.
    pub counter: u64,
    /// Who founded it.
    pub founder: NodeId,
}

impl Epoch {
    /// The epoch of what `founder` begins, `wall` seconds after 1970, if the highest counter that it
    /// knows of is `known`.
    pub fn after(known: u64, wall: u64, founder: NodeId) -> Epoch {
        Epoch { counter: known.max(wall).saturating_add(1), founder }
    }

    /// Whether there is no cluster.
    pub fn is_none(self) -> bool {
        self == Epoch::default()
    }

    /// Whether a server can believe in it whose clock says `wall` and that knows of `known`.
    pub fn is_plausible(self, known: u64, wall: u64) -> bool {
        self.counter <= known.max(wall).saturating_add(MAX_EPOCH_LEAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::node_id::Incarnation;
    use crate::core::server_id::ServerId;

    fn node(server: u32, incarnation: u64) -> NodeId {
        NodeId { server: ServerId(server), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn a_founder_goes_beyond_all_that_it_knows_and_beyond_its_clock() {
        let of = |known, wall| Epoch::after(known, wall, node(1, 1)).counter;
        assert_eq!((of(7, 3), of(3, 7), of(u64::MAX, 0)), (8, 8, u64::MAX));
        assert!(!Epoch::after(0, 0, node(0, 0)).is_none() && Epoch::default().is_none());
    }

    #[test]
    fn no_two_founders_have_one_epoch() {
        let first = Epoch::after(7, 7, node(1, 1));
        assert!(Epoch::after(7, 7, node(2, 1)) > first);
        assert!(Epoch::after(7, 7, node(1, 2)) > first);
        assert!(Epoch::after(8, 7, node(0, 0)) > first);
    }

    #[test]
    fn no_message_leads_epochs_to_their_end() {
        let far = |counter| Epoch { counter, ..Epoch::default() };
        assert!(far(9 + MAX_EPOCH_LEAP).is_plausible(9, 3));
        assert!(far(9 + MAX_EPOCH_LEAP).is_plausible(3, 9));
        assert!(!far(10 + MAX_EPOCH_LEAP).is_plausible(9, 9));
        assert!(far(u64::MAX).is_plausible(u64::MAX, 0));
    }
}
