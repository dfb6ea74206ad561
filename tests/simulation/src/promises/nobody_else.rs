//! Promise 7, *nobody else*: only a server id of the agreed list is heard, and a server that has left
//! the list gets no key that was made after it left. Certificates are for the tests with real TLS.

use std::collections::BTreeSet;

use super::{seconds, Checked, Event, Sight};
use crate::cells::Bytes;

/// See the module's head.
#[derive(Default)]
pub struct Checker {
    /// Who was found with which key.
    told: BTreeSet<(u32, Bytes)>,
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
        let mut outcome = Ok(());
        sight.each_key(|owner, key| {
            if let Err(words) = self.may_hold(sight, owner, key) {
                outcome = Err(words);
            }
        });
        outcome
    }

    /// Whether a server may hold a key.
    fn may_hold(&mut self, sight: &Sight, owner: u32, key: &Bytes) -> Checked {
        let left = sight.servers.get(&owner).and_then(|view| view.unlisted_since);
        let (Some(left), Some(made)) = (left, sight.annals.made(key)) else { return Ok(()) };
        let grace = sight.settling();
        // Raft's membership follows the list once a majority of both lists can be reached.
        let had_time = sight.all_well_for() > sight.now - made + grace;
        if made > left + grace && had_time && self.told.insert((owner, *key)) {
            let place = sight.annals.places(key).next();
            return Err(format!(
                "server {owner} left the list {} ago and holds generation {}, made {} later",
                seconds(sight.now - left),
                place.map_or(0, |(_, generation)| generation),
                seconds(made - left)
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Set;
    use crate::plan::Plan;
    use crate::promises::{Trouble, View};
    use crate::SECOND;

    const EARLY: Bytes = [1; 48];
    const LATE: Bytes = [2; 48];

    /// The group's keys, with this one in generation 3.
    fn set(key: Bytes) -> Set {
        let (epoch, cluster_id) = (Default::default(), Some([7; 16]));
        Set { keys: vec![key], agreed: true, cluster_id, epoch, current: 3, newest: 3 }
    }

    /// Two servers that have been well since second 0, and server 3, which left at 20.
    fn sight() -> Sight {
        let mut sight = Sight { now: 100 * SECOND, ..Sight::new(Plan::calm(3)) };
        for id in 1..=3 {
            let trouble = Trouble { now: 0, ended: 0 };
            let view =
                View { listed: id < 3, awake: true, joined: Some(0), trouble, ..View::default() };
            sight.servers.insert(id, view);
        }
        sight.servers.get_mut(&3).unwrap().unlisted_since = Some(20 * SECOND);
        sight.annals.note(10 * SECOND, &set(EARLY));
        sight
    }

    #[test]
    fn a_key_that_came_later_to_an_earlier_ones_place_is_another_key() {
        let (mut sight, mut checker) = (sight(), Checker::default());
        assert_eq!(checker.may_hold(&sight, 3, &EARLY), Ok(()));
        sight.annals.note(60 * SECOND, &set(LATE));
        assert_eq!(checker.may_hold(&sight, 3, &EARLY), Ok(()), "it is as old as before");
        assert_eq!(checker.may_hold(&sight, 2, &LATE), Ok(()), "it is in the list");
        assert!(checker.may_hold(&sight, 3, &LATE).is_err());
        assert_eq!(checker.may_hold(&sight, 3, &LATE), Ok(()), "it was told");
    }
}
