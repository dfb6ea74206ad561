//! *The leader stays*: a leader that is well, among servers that are well, is not deposed. Connections
//! that are lost say nothing against it as long as it can be dialled. It may be in its first moments: who became
//! a candidate beside it, before it could be heard, follows no leader of an earlier vote.

use super::{seconds, Checked, Event, Sight};

/// See the module's head.
#[derive(Default)]
pub struct Checker {
    /// How many leaders were looked at.
    seen: usize,
}

impl Checker {
    /// Looks at who has become leader since the last look.
    ///
    /// # Errors
    /// If one has that nobody needed.
    pub fn assess(&mut self, sight: &Sight, event: &Event) -> Checked {
        let Event::Look = event else { return Ok(()) };
        let from = std::mem::replace(&mut self.seen, sight.leaders.len());
        let Some(deposed) = from.checked_sub(1) else { return Ok(()) };
        let [old, .., new] = &sight.leaders[deposed..] else { return Ok(()) };
        let stays = |view: &super::View| view.listed && view.votes && !view.leaves && view.awake;
        let is_there = sight.servers.get(&old.id).is_some_and(stays);
        let unheard = 2 * sight.plan.link.delay.1.max(sight.slowest);
        let beside = |(id, at): &(u32, u64)| *id != old.id && at.abs_diff(old.at) <= unheard;
        let was_contested = new.at - old.at <= 4 * sight.plan.upper;
        if was_contested && sight.candidates.iter().any(beside) {
            return Ok(());
        }
        if is_there && sight.all_well_for() >= 2 * sight.settling() {
            return Err(format!(
                "server {} leads in term {} since {}, and server {} of term {} was well, like all",
                new.id,
                new.term,
                seconds(new.at),
                old.id,
                old.term
            ));
        }
        Ok(())
    }
}
