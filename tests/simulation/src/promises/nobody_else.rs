//! Promise 7, *nobody else*: only a server id of the agreed list is heard, and a box that has left
//! the list gets no key that was made after it left. Certificates are for the tests with real TLS.

use std::collections::BTreeMap;

use super::{seconds, Event, History, Sight, Verdict};

/// See the module's head.
#[derive(Default)]
pub struct Judge {
    /// When each key was first seen, to tell which were made after a box left.
    told: BTreeMap<(u32, History, u64), u64>,
}

impl Judge {
    /// See the module's head.
    pub fn judge(&mut self, sight: &Sight, event: &Event) -> Verdict {
        match event {
            Event::Knocked { at, as_whom, heard: true }
                if sight.settled(*at) && sight.all_well_for() > 2 * sight.settling() =>
            {
                Err(format!("box {at} hears {as_whom}"))
            }
            Event::Look => self.kept_out(sight),
            _ => Ok(()),
        }
    }

    fn kept_out(&mut self, sight: &Sight) -> Verdict {
        let grace = sight.settling();
        let mut verdict = Ok(());
        sight.each_key(|owner, history, generation| {
            let Some(left) = sight.boxes.get(&owner).and_then(|view| view.unlisted_since) else {
                return;
            };
            let made = sight.annals.seen.get(&(history, generation)).copied().unwrap_or(0);
            let key = (owner, history, generation);
            // Raft's membership follows the list once a majority of both lists can be reached.
            let had_time = sight.all_well_for() > sight.now - made + grace;
            if made > left + grace && had_time && self.told.insert(key, made).is_none() {
                verdict = Err(format!(
                    "box {owner} left the list {} ago and holds generation {generation}, made {} \
                     later",
                    seconds(sight.now - left),
                    seconds(made - left)
                ));
            }
        });
        verdict
    }
}
