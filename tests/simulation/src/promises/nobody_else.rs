//! Promise 7, *nobody else*: only a server id of the agreed list is heard, and a server that has left
//! the list gets no key that was made after it left. Certificates are for the tests with real TLS.

use std::collections::BTreeMap;

use super::{seconds, Checked, Cluster, Event, Sight};

/// See the module's head.
#[derive(Default)]
pub struct Checker {
    /// When each key was first seen, to tell which were made after a server left.
    told: BTreeMap<(u32, Cluster, u64), u64>,
}

impl Checker {
    /// See the module's head.
    pub fn assess(&mut self, sight: &Sight, event: &Event) -> Checked {
        match event {
            Event::Knocked { at, as_whom, heard: true }
                if sight.settled(*at) && sight.all_well_for() > 2 * sight.settling() =>
            {
                Err(format!("server {at} hears {as_whom}"))
            }
            Event::Look => self.kept_out(sight),
            _ => Ok(()),
        }
    }

    fn kept_out(&mut self, sight: &Sight) -> Checked {
        let grace = sight.settling();
        let mut outcome = Ok(());
        sight.each_key(|owner, cluster_id, generation| {
            let Some(left) = sight.servers.get(&owner).and_then(|view| view.unlisted_since) else {
                return;
            };
            let made = sight.annals.seen.get(&(cluster_id, generation)).copied().unwrap_or(0);
            let key = (owner, cluster_id, generation);
            // Raft's membership follows the list once a majority of both lists can be reached.
            let had_time = sight.all_well_for() > sight.now - made + grace;
            if made > left + grace && had_time && self.told.insert(key, made).is_none() {
                outcome = Err(format!(
                    "server {owner} left the list {} ago and holds generation {generation}, made {} \
                     later",
                    seconds(sight.now - left),
                    seconds(made - left)
                ));
            }
        });
        outcome
    }
}
