//! Promise 3, *one order*: within a cluster incarnation a generation has one key for ever, a key has one
//! generation, and no process goes back in the order. A generation that only servers knew which lost
//! their memory together may come again with another key; so may one that was made, or will be
//! made, apart from a server that remembers ([`super::Doubt`]).

use std::collections::BTreeMap;

use super::{named, Checked, Cluster, Event, Sight};
use crate::cells::Bytes;

/// When a process first had the group's keys, the cluster incarnation, the current generation, the newest.
type Reached = (u64, Cluster, u64, u64);

/// See the module's head.
#[derive(Default)]
pub struct Checker {
    /// Each generation's key, and since when it is that one.
    key_of: BTreeMap<(Cluster, u64), (Bytes, u64)>,
    place_of: BTreeMap<Bytes, (Cluster, u64)>,
    /// The newest that each server had, since its process has had the group's keys, and since when.
    reached: BTreeMap<u32, (Reached, u64)>,
}

impl Checker {
    /// See the module's head.
    pub fn assess(&mut self, sight: &Sight, event: &Event) -> Checked {
        let Event::Installed { at, set } = event else { return Ok(()) };
        let (true, Some(cluster_id)) = (set.agreed, set.cluster_id) else { return Ok(()) };
        for (key, generation) in named(set) {
            let place = (cluster_id, generation);
            let (known, since) = *self.key_of.entry(place).or_insert((key, sight.now));
            if known != key {
                let forgotten = sight.majority_forgot.is_some_and(|at| at >= since);
                if !forgotten && !sight.doubts(generation) {
                    return Err(format!("generation {generation} has another key at server {at}"));
                }
                self.key_of.insert(place, (key, sight.now));
            }
            let before = *self.place_of.entry(key).or_insert(place);
            // The first key of a cluster incarnation is its leader's own, which may have been a group's.
            if before != place && before.0 == cluster_id {
                return Err(format!(
                    "the key of generation {} is generation {generation} at server {at}",
                    before.1
                ));
            }
        }
        let joined = sight.servers.get(at).and_then(|view| view.joined).unwrap_or(sight.now);
        let reached = (joined, cluster_id, set.current, set.newest);
        match self.reached.insert(*at, (reached, sight.now)) {
            Some(((life, was, current, newest), since))
                if (life, was) == (joined, cluster_id)
                    && (set.current < current || set.newest < newest)
                    // The group has gone back, since too few remember.
                    && sight.majority_forgot.is_none_or(|at| at < since)
                    && !sight.doubts(newest) =>
            {
                Err(format!(
                    "server {at} goes back from generation {current} (newest {newest}) to {} ({})",
                    set.current, set.newest
                ))
            }
            _ => Ok(()),
        }
    }
}
