//! How far terms, indexes and generations may lie for a server to believe them.
//!
//! Invariants: no single server can lead the others to where counting ends.

use std::collections::BTreeMap;

use super::key_ring::Generation;
use super::pre_vote::Status;
use super::server_id::ServerId;

/// How far a term may lie above the highest that a server knows for it to be believed at once. A server
/// that was cut off is that far behind only after a million elections, which take days at the
/// shortest election bounds; it then joins anew, see [`SanityBounds`].
pub const MAX_TERM_LEAP: u64 = 1 << 20;

/// The same for the index of a log's end: two entries a second for four years.
pub const MAX_INDEX_LEAP: u64 = 1 << 28;

/// The same for the newest generation: one a second for four years.
pub const MAX_GENERATION_LEAP: u64 = 1 << 27;

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
        let terms = answers.values().map(|s| s.vote.term).collect();
        let indexes = answers.values().map(|s| s.last_log_id.map_or(0, |end| end.index)).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::log_id::{LeaderId, LogId};
    use crate::core::node_id::NodeId;

    fn full(term: u64, index: u64) -> Status {
        let leader_id = LeaderId { term, node: NodeId::default() };
        let last_log_id = Some(LogId { leader_id, index });
        Status { vote: leader_id, last_log_id, ..Status::default() }
    }

    fn answers(list: &[(u32, Status)]) -> BTreeMap<ServerId, Status> {
        list.iter().map(|(id, status)| (ServerId(*id), status.clone())).collect()
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
    fn leaps_are_what_their_reasons_say() {
        assert_eq!((MAX_TERM_LEAP, MAX_INDEX_LEAP), (1_048_576, 268_435_456));
        assert_eq!(MAX_GENERATION_LEAP * 2, MAX_INDEX_LEAP, "each takes two entries");
    }
}
