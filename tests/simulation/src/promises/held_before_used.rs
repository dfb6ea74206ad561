//! Promise 1, *held before used*: no server encrypts with an agreed key that another reachable server
//! cannot yet decrypt.
//!
//! Checked twice: when a server begins to use a key, by what all other servers hold at that instant; and
//! by clients, who take a ticket from one server and offer it to another, where it is really opened.

use super::{seconds, Checked, Event, Offer, Sight};

/// What clients saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tickets {
    /// Tickets offered.
    pub offered: u64,
    /// Those that were opened.
    pub opened: u64,
    /// Those that had to be opened by a promise.
    pub owed: u64,
}

/// See the module's head.
pub fn assess(sight: &Sight, event: &Event, tickets: &mut Tickets) -> Checked {
    match event {
        Event::Installed { at, set } if set.agreed && sight.settled(*at) => {
            let Some(key) = set.keys.first() else { return Ok(()) };
            for (id, view) in &sight.servers {
                let holds = view.set.as_ref().is_some_and(|set| set.keys.contains(key));
                if id != at && sight.settled(*id) && !holds {
                    return Err(format!(
                        "server {at} encrypts with generation {}, which server {id} does not hold; all \
                         has been well with it for {}",
                        set.current,
                        seconds(sight.well_for(*id))
                    ));
                }
            }
            Ok(())
        }
        Event::Offered(offer) => {
            tickets.offered += 1;
            tickets.opened += u64::from(offer.opened);
            if is_owed(sight, offer) {
                tickets.owed += 1;
                if !offer.opened {
                    return Err(format!(
                        "server {} does not open a ticket that server {} gave {} ago",
                        offer.to,
                        offer.from.0,
                        seconds(sight.now - offer.taken)
                    ));
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether the server has to open the ticket: all is well with it, all was well with the one that
/// gave it, and the ticket's key is the current one, the staged one, or the one before where
/// there is room for it. Nothing is owed for a key that was forgotten by all.
fn is_owed(sight: &Sight, offer: &Offer) -> bool {
    if sight.annals.is_remade(&offer.key) || sight.annals.is_lost(&offer.key) {
        return false;
    }
    let Some(set) = sight.servers.get(&offer.to).and_then(|view| view.set.as_ref()) else {
        return false;
    };
    let Some(cluster_id) = set.cluster_id else { return false };
    let Some(generation) = sight.annals.place_in(&offer.key, cluster_id) else { return false };
    if !offer.from.1 || !sight.settled(offer.to) || !set.agreed {
        return false;
    }
    // Where a file of before came back this is one that the group had left behind, or that it has not
    // come to yet.
    let made = sight.annals.made(&offer.key);
    let lost_since = |at| {
        let lost = [sight.files_failed, sight.majority_forgot];
        lost.into_iter().flatten().any(|lost| lost >= at)
    };
    let is_beyond = generation > set.newest && made.is_none_or(lost_since);
    let is_behind = generation > set.current && generation + 1 < sight.annals.latest(cluster_id);
    if is_beyond || is_behind {
        return false;
    }
    let staging = set.newest > set.current;
    let room = 1 + u64::from(staging) < sight.plan.ticket_keys;
    let is_previous = generation + 1 == set.current;
    generation >= set.current || (is_previous && room && !sight.may_revoke(cluster_id, set.current))
}
