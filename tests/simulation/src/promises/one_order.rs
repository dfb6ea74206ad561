//! Promise 3, *one order*: within a history a generation has one key for ever, a key has one
//! generation, and no process goes back in the order. A generation that only boxes knew which lost
//! their memory together may come again with another key; so may one that was made, or will be
//! made, apart from a box that remembers ([`super::Doubt`]).

use std::collections::BTreeMap;

use super::{named, Event, History, Sight, Verdict};
use crate::cells::Bytes;

/// When a process first had the group's keys, the history, the current generation, the newest.
type Reached = (u64, History, u64, u64);

/// See the module's head.
#[derive(Default)]
pub struct Judge {
    /// Each generation's key, and since when it is that one.
    key_of: BTreeMap<(History, u64), (Bytes, u64)>,
    place_of: BTreeMap<Bytes, (History, u64)>,
    /// The newest that each box had, since its process has had the group's keys, and since when.
    reached: BTreeMap<u32, (Reached, u64)>,
}

impl Judge {
    /// See the module's head.
    pub fn judge(&mut self, sight: &Sight, event: &Event) -> Verdict {
        let Event::Installed { at, set } = event else { return Ok(()) };
        let (true, Some(history)) = (set.agreed, set.history) else { return Ok(()) };
        for (key, generation) in named(set) {
            let place = (history, generation);
            let (known, since) = *self.key_of.entry(place).or_insert((key, sight.now));
            if known != key {
                let forgotten = sight.majority_forgot.is_some_and(|at| at >= since);
                if !forgotten && !sight.doubts(generation) {
                    return Err(format!("generation {generation} has another key at box {at}"));
                }
                self.key_of.insert(place, (key, sight.now));
            }
            let before = *self.place_of.entry(key).or_insert(place);
            // The first key of a history is its leader's own, which may have been a group's.
            if before != place && before.0 == history {
                return Err(format!(
                    "the key of generation {} is generation {generation} at box {at}",
                    before.1
                ));
            }
        }
        let joined = sight.boxes.get(at).and_then(|view| view.joined).unwrap_or(sight.now);
        let reached = (joined, history, set.current, set.newest);
        match self.reached.insert(*at, (reached, sight.now)) {
            Some(((life, was, current, newest), since))
                if (life, was) == (joined, history)
                    && (set.current < current || set.newest < newest)
                    // The group has gone back, since too few remember.
                    && sight.majority_forgot.is_none_or(|at| at < since)
                    && !sight.doubts(newest) =>
            {
                Err(format!(
                    "box {at} goes back from generation {current} (newest {newest}) to {} ({})",
                    set.current, set.newest
                ))
            }
            _ => Ok(()),
        }
    }
}
