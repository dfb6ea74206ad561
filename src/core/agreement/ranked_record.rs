//! What a server tells of its past: a record, and how new that is.
//!
//! Invariants: a record ranks by the cluster that made it, then by the log of that; nothing that is
//! older takes its place, but what was revoked anywhere stays revoked.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::epoch::Epoch;
use crate::core::log_id::LogId;
use crate::core::server_id::ServerId;

/// How new a record is. The default is that of none.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Rank {
    /// The cluster that made it.
    pub epoch: Epoch,
    /// The end of its log there.
    pub end: LogId,
}

/// The servers that vote.
pub type Voters = BTreeSet<ServerId>;

/// What these rules have to know of a record.
pub trait Evidence: Clone {
    /// By which lists a founding from it counts: two while a change of the list is open, the one
    /// that is wanted last. Where nothing was agreed on yet, that of the server's file.
    fn lists(&self) -> Vec<Voters>;

    /// Takes over what was revoked elsewhere, and since when the current key is known to be in use.
    fn merge(&mut self, other: &Self);

    /// From now on these servers count and nobody else, whatever the list says; an operator says so.
    fn recover(&mut self, survivors: &Voters);
}

/// A record and its rank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RankedRecord<R> {
    /// How new it is.
    pub rank: Rank,
    /// Keys, schedule, list and what was revoked.
    pub record: R,
}

impl<R: Evidence> RankedRecord<R> {
    /// The newer one of two, with what was revoked in either.
    #[must_use]
    pub fn newer(self, other: Self) -> Self {
        let (mut newer, older) = if other.rank > self.rank { (other, self) } else { (self, other) };
        newer.record.merge(&older.record);
        newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Keys(u8, u8);

    impl Evidence for Keys {
        fn lists(&self) -> Vec<Voters> {
            Vec::new()
        }

        fn merge(&mut self, other: &Keys) {
            self.1 |= other.1;
        }

        fn recover(&mut self, _: &Voters) {}
    }

    fn ranked(counter: u64, index: u64, record: Keys) -> RankedRecord<Keys> {
        let epoch = Epoch { counter, ..Epoch::default() };
        let end = LogId { index, ..LogId::default() };
        RankedRecord { rank: Rank { epoch, end }, record }
    }

    #[test]
    fn the_newer_record_stays_and_all_that_was_revoked() {
        let older = || ranked(1, 9, Keys(1, 0b01));
        let newer = || ranked(2, 1, Keys(2, 0b10));
        assert_eq!(older().newer(newer()), ranked(2, 1, Keys(2, 0b11)));
        assert_eq!(newer().newer(older()), ranked(2, 1, Keys(2, 0b11)));
        let longer = ranked(1, 10, Keys(3, 0));
        assert_eq!(older().newer(longer).record, Keys(3, 0b01));
        let same_rank = ranked(1, 9, Keys(4, 0b10));
        assert_eq!(older().newer(same_rank).record, Keys(1, 0b11), "its own stays");
    }
}
