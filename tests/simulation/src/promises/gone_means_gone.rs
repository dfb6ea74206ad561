//! Promise 6, *gone means gone*: a retired key is erased from ring, log, snapshot, buffers and queues
//! on every connected server.
//!
//! A revocation retires all older keys at once, and no state file brings one back that encrypts as
//! the group's, as long as files are what they should be. Checked by every cell that holds a key's bytes ([`crate::cells`]), and by tickets, which no server
//! opens whose own set is two generations on.

use super::{seconds, Checked, Cluster, Event, Sight};
use crate::machine::Set;
use crate::SECOND;

/// How long erasing may take: an entry goes when the next snapshot is built, at once; a request that
/// holds a key is dropped when its time is over.
fn grace(sight: &Sight) -> u64 {
    4 * SECOND + sight.plan.request_timeout
}

/// See the module's head.
pub fn assess(sight: &Sight, event: &Event) -> Checked {
    match event {
        Event::Look => erased(sight),
        Event::Installed { at, set } if set.agreed => encrypts(sight, *at, set),
        Event::Offered(offer) if offer.opened => {
            let set = sight.servers.get(&offer.to).and_then(|view| view.set.as_ref());
            let Some(set) = set.filter(|set| set.agreed) else { return Ok(()) };
            let Some(cluster_id) = set.cluster_id else { return Ok(()) };
            let Some(generation) = sight.annals.place_in(&offer.key, cluster_id) else {
                return Ok(());
            };
            let revoked = (generation + 1..=set.current)
                .any(|later| sight.revoked.contains(&(cluster_id, later)));
            if revoked || generation + sight.plan.ticket_keys <= set.current {
                Err(format!(
                    "server {} opens a ticket of generation {generation} in generation {}",
                    offer.to, set.current
                ))
            } else {
                Ok(())
            }
        }
        _ => Ok(()),
    }
}

/// Whether a server begins to encrypt with an agreed key that was revoked.
fn encrypts(sight: &Sight, at: u32, set: &Set) -> Checked {
    let Some(key) = set.keys.first() else { return Ok(()) };
    for (cluster_id, generation) in sight.annals.places(key) {
        let later = (cluster_id, generation + 1)..=(cluster_id, u64::MAX);
        let revoked = sight.revoked.range(later);
        let Some(since) = revoked.filter_map(|by| sight.annals.current.get(by)).min() else {
            continue;
        };
        // A server that was cut off has not heard of it, and is checked by what it decrypts.
        let in_cluster_id = set.cluster_id == Some(cluster_id);
        let excused = sight.files_failed.is_some_and(|failed| failed >= *since);
        if !in_cluster_id && !excused {
            return Err(format!(
                "server {at} encrypts with generation {generation}, which was revoked {} ago in \
                 another cluster incarnation",
                seconds(sight.now - since)
            ));
        }
    }
    Ok(())
}

fn erased(sight: &Sight) -> Checked {
    let mut outcome = Ok(());
    sight.each_key(|owner, key| {
        for place in sight.annals.places(key) {
            if let Err(words) = is_erased(sight, owner, place) {
                outcome = Err(words);
            }
        }
    });
    outcome
}

/// Whether a server may hold the key that has, or had, this place.
fn is_erased(sight: &Sight, owner: u32, (cluster_id, generation): (Cluster, u64)) -> Checked {
    let set = sight.servers.get(&owner).and_then(|view| view.set.as_ref());
    let in_cluster_id = set.is_some_and(|set| set.agreed && set.cluster_id == Some(cluster_id));
    let Some(gone) = retired(sight, cluster_id, generation) else { return Ok(()) };
    // An old file brings it back, until its server has promised and another one was founded.
    if sight.files_failed.is_some_and(|failed| failed >= gone) {
        return Ok(());
    }
    // What replaced it may be forgotten: then it counts again, until another one comes.
    let forgotten = sight.majority_forgot.is_some_and(|at| at >= gone);
    let replaced = set.is_some_and(|set| generation + sight.plan.ticket_keys <= set.current);
    if forgotten && !replaced {
        return Ok(());
    }
    // Who promises a founder, and had not heard that it retired, brings it there once more.
    let told = sight.promised.get(&(owner, generation)).copied().unwrap_or_default();
    let since = sight.now - gone.max(told);
    if in_cluster_id && since > grace(sight) && sight.settled(owner) && sight.has_company(owner) {
        return Err(format!(
            "server {owner} holds the key of generation {generation}, which retired {} ago",
            seconds(sight.now - gone)
        ));
    }
    Ok(())
}

/// When the key left the ring, if it did.
fn retired(sight: &Sight, cluster_id: Cluster, generation: u64) -> Option<u64> {
    let by = (cluster_id, generation + sight.plan.ticket_keys);
    let replaced = sight.annals.current.get(&by);
    let later = (cluster_id, generation + 1)..=by;
    let revoked = sight.revoked.range(later).filter_map(|by| sight.annals.current.get(by));
    replaced.into_iter().chain(revoked).min().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::promises::View;

    #[test]
    fn what_who_promises_has_not_heard_of_is_no_founders_for_long() {
        let (key, id) = ([1; 48], Some([7; 16]));
        let set = |current| Set {
            keys: vec![[current as u8; 48]],
            agreed: true,
            cluster_id: id,
            epoch: Default::default(),
            current,
            newest: current,
        };
        let mut sight = Sight { now: 100 * SECOND, ..Sight::new(Plan::calm(3)) };
        (1..=3).for_each(|current| drop(sight.annals.note(current * SECOND, &set(current))));
        let well = View { listed: true, awake: true, joined: Some(0), ..View::default() };
        sight.servers.insert(1, View { set: Some(set(3)), ..well });
        let place = (id.unwrap(), 1);
        assert_eq!(sight.annals.places(&key).next(), Some(place));
        assert!(is_erased(&sight, 1, place).is_err(), "it retired long ago");
        sight.promised.insert((1, 1), 99 * SECOND);
        assert_eq!(is_erased(&sight, 1, place), Ok(()));
        sight.now += grace(&sight);
        assert!(is_erased(&sight, 1, place).is_err(), "the founding is over");
    }
}
