//! Promise 6, *gone means gone*: a retired key is erased from ring, log, snapshot, buffers and queues
//! on every connected box.
//!
//! A revocation retires all older keys at once, and no state file brings one back that encrypts as
//! the group's, as long as files are what they should be. Judged by every cell that holds a key's bytes ([`crate::cells`]), and by tickets, which no box
//! opens whose own set is two generations on.

use super::{seconds, Event, History, Sight, Verdict};
use crate::machine::Set;
use crate::SECOND;

/// How long erasing may take: an entry goes when the next snapshot is built, at once; a request that
/// holds a key is dropped when its time is over.
fn grace(sight: &Sight) -> u64 {
    4 * SECOND + sight.plan.request_timeout
}

/// See the module's head.
pub fn judge(sight: &Sight, event: &Event) -> Verdict {
    match event {
        Event::Look => erased(sight),
        Event::Installed { at, set } if set.agreed => encrypts(sight, *at, set),
        Event::Offered(offer) if offer.opened => {
            let set = sight.boxes.get(&offer.to).and_then(|view| view.set.as_ref());
            let Some(set) = set.filter(|set| set.agreed) else { return Ok(()) };
            let Some(history) = set.history else { return Ok(()) };
            let Some(generation) = sight.annals.place_in(&offer.key, history) else {
                return Ok(());
            };
            let revoked = (generation + 1..=set.current)
                .any(|later| sight.revoked.contains(&(history, later)));
            match revoked || generation + sight.plan.ticket_keys <= set.current {
                true => Err(format!(
                    "box {} opens a ticket of generation {generation} in generation {}",
                    offer.to, set.current
                )),
                false => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Whether a box begins to encrypt with an agreed key that was revoked.
fn encrypts(sight: &Sight, at: u32, set: &Set) -> Verdict {
    let Some(key) = set.keys.first() else { return Ok(()) };
    for (history, generation) in sight.annals.places(key) {
        let later = (history, generation + 1)..=(history, u64::MAX);
        let revoked = sight.revoked.range(later);
        let Some(since) = revoked.filter_map(|by| sight.annals.current.get(by)).min() else {
            continue;
        };
        // A box that was cut off has not heard of it, and is judged by what it decrypts.
        let in_history = set.history == Some(history);
        let excused = sight.files_failed.is_some_and(|failed| failed >= *since);
        if !in_history && !excused {
            return Err(format!(
                "box {at} encrypts with generation {generation}, which was revoked {} ago in \
                 another history",
                seconds(sight.now - since)
            ));
        }
    }
    Ok(())
}

fn erased(sight: &Sight) -> Verdict {
    let mut verdict = Ok(());
    sight.each_key(|owner, history, generation| {
        let set = sight.boxes.get(&owner).and_then(|view| view.set.as_ref());
        let in_history = set.is_some_and(|set| set.agreed && set.history == Some(history));
        let Some(gone) = retired(sight, history, generation) else { return };
        // What replaced it may be forgotten: then it counts again, until another one comes.
        let forgotten = sight.majority_forgot.is_some_and(|at| at >= gone);
        let replaced = set.is_some_and(|set| generation + sight.plan.ticket_keys <= set.current);
        if forgotten && !replaced {
            return;
        }
        let since = sight.now - gone;
        if in_history && since > grace(sight) && sight.settled(owner) && sight.has_company(owner) {
            verdict = Err(format!(
                "box {owner} holds the key of generation {generation}, which retired {} ago",
                seconds(since)
            ));
        }
    });
    verdict
}

/// When the key left the ring, if it did.
fn retired(sight: &Sight, history: History, generation: u64) -> Option<u64> {
    let by = (history, generation + sight.plan.ticket_keys);
    let replaced = sight.annals.current.get(&by);
    let later = (history, generation + 1)..=by;
    let revoked = sight.revoked.range(later).filter_map(|by| sight.annals.current.get(by));
    replaced.into_iter().chain(revoked).min().copied()
}
