//! Promise 3, *one order*: within a cluster a generation has one key for ever, a key has one
//! generation, and no process goes back in the order.

use std::collections::BTreeMap;

use stek_share::core::agreement::epoch::Epoch;

use super::{named, Checked, Cluster, Event, Sight};
use crate::cells::Bytes;

/// When a process first had the group's keys, whose, the current generation, the newest.
type Reached = (u64, (Cluster, Epoch), u64, u64);

/// See the module's head.
#[derive(Default)]
pub struct Checker {
    /// The key of each generation in each cluster.
    key_of: BTreeMap<((Cluster, Epoch), u64), Bytes>,
    place_of: BTreeMap<Bytes, (Cluster, u64)>,
    /// The newest that each server had, since its process has had the group's keys.
    reached: BTreeMap<u32, Reached>,
}

impl Checker {
    /// See the module's head.
    pub fn assess(&mut self, sight: &Sight, event: &Event) -> Checked {
        let Event::Installed { at, set } = event else { return Ok(()) };
        let (true, Some(cluster_id)) = (set.agreed, set.cluster_id) else { return Ok(()) };
        let whose = (cluster_id, set.epoch);
        for (key, generation) in named(set) {
            let place = (cluster_id, generation);
            let known = *self.key_of.entry((whose, generation)).or_insert(key);
            if known != key {
                return Err(format!("generation {generation} has another key at server {at}"));
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
        let reached = (joined, whose, set.current, set.newest);
        match self.reached.insert(*at, reached) {
            Some((life, was, current, newest))
                if (life, was) == (joined, whose)
                    && (set.current < current || set.newest < newest) =>
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
