//! One life of a server: what Raft takes for a node.
//!
//! Raft's own proof covers a node that stops for ever and one that joins; it says nothing of one
//! that forgets its vote and goes on under its name. So a server that starts again, or whose Raft is
//! made anew inside the process, is another node, with an incarnation of its own.
//!
//! Invariants: no two lives of a server have one incarnation; a later one is greater than all that
//! was ever known of that server, so that of two hellos the newer one tells itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::server_id::ServerId;

/// How far an incarnation that others tell of may lie beyond the clock for a server to believe it,
/// in milliseconds: 139 years. Whoever goes beyond all that it believes is believed in its turn.
pub const MAX_TOLD_LEAP: u64 = 1 << 42;

/// Which life of a server.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// The bits of an incarnation that are drawn by lot; those above are milliseconds.
const RANDOM_BITS: u32 = 16;

impl Incarnation {
    /// Stands where a server of the list is in no group: no living server has it.
    pub const NOBODY: Incarnation = Incarnation(0);

    /// That of a life that begins `wall` milliseconds after 1970, where `known` is the highest that
    /// the server had before, as far as anybody remembers. A clock that went back cannot put it
    /// before its own past; the random bits part two that begin at once under one id, or one after the
    /// other beyond the same past.
    pub fn draw(known: Incarnation, wall: u64, random: u16) -> Incarnation {
        let random = u64::from(random);
        let drawn = wall.saturating_mul(1 << RANDOM_BITS) | random;
        Incarnation(drawn.max(known.0.saturating_add(1).saturating_add(random)))
    }

    /// Whether a server can believe that there is this life of one, `wall` milliseconds after 1970.
    pub fn is_plausible(self, wall: u64) -> bool {
        self.0 >> RANDOM_BITS <= wall.saturating_add(MAX_TOLD_LEAP)
    }

    /// Whether no living server has it.
    pub fn is_nobody(self) -> bool {
        self == Incarnation::NOBODY
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A server in one of its lives.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct NodeId {
    /// The server of the list.
    pub server: ServerId,
    /// Which life of it.
    pub incarnation: Incarnation,
}

#[cfg(test)]
impl NodeId {
    /// Some life of a server, for tests.
    pub(crate) const fn of(server: u32) -> NodeId {
        NodeId { server: ServerId(server), incarnation: Incarnation(7) }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.server, self.incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_life_has_the_greater_incarnation_whatever_the_clock_says() {
        let first = Incarnation::draw(Incarnation::NOBODY, 1_800_000_000_000, 7);
        assert_eq!(first, Incarnation(1_800_000_000_000 << 16 | 7));
        assert!(Incarnation::draw(first, 1_800_000_000_001, 0) > first);
        assert_eq!(Incarnation::draw(first, 5, 0), Incarnation(first.0 + 1));
        // It may begin, die and begin again before anybody has heard of it.
        assert_ne!(Incarnation::draw(first, 5, 7), Incarnation::draw(first, 5, 8));
        assert!(!Incarnation::draw(Incarnation::NOBODY, 0, 0).is_nobody());
    }

    #[test]
    fn who_was_led_to_a_far_incarnation_is_believed_as_long_as_time_goes_on() {
        let now = 1_800_000_000_000;
        let furthest = Incarnation((now + MAX_TOLD_LEAP) << RANDOM_BITS | 0xffff);
        assert!(furthest.is_plausible(now));
        let beyond = Incarnation::draw(furthest, now, 0);
        assert!(!beyond.is_plausible(now) && beyond.is_plausible(now + 1));
        assert!(!Incarnation(u64::MAX).is_plausible(now));
        let in_a_hundred_years = now + 100 * 365 * 86_400_000;
        assert!(Incarnation(in_a_hundred_years << RANDOM_BITS).is_plausible(now));
    }

    #[test]
    fn a_node_is_named_by_both() {
        let node = NodeId { server: ServerId(3), incarnation: Incarnation(255) };
        assert_eq!(node.to_string(), "3/ff");
        assert!(node > NodeId { server: ServerId(2), incarnation: Incarnation(999) });
    }
}
