//! ConnectionSlots for verified connections that came in.
//!
//! Each member of the list has places of its own, by the server id that its hello names.
//! Tools, and whoever has not said yet who it is, share the others. Invariants:
//! - Nobody is kept out because all places are taken: a connection of the same kind gives way.
//! - One certificate cannot take the places of others: the one that gives way belongs to the
//!   certificate with the most connections among them, and of these to the address with the most;
//!   it is the oldest of those.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::core::server_id::ServerId;
use crate::supervise::lock;

/// Verified connections that are kept per member: one that stands, one that takes its place, and
/// one or two of before a power cut, which nobody closed.
pub const CONNECTIONS_PER_MEMBER: usize = 4;

/// Verified connections that are kept besides those of the members: tools, and whoever has said
/// no hello yet, which it has three seconds for.
pub const SPARE_CONNECTIONS: usize = 64;

/// Whose a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Member(ServerId),
    Anybody,
}

/// Whom a connection comes from, as far as it can be told before its hello.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PeerSource {
    /// The fingerprint of the certificate that it showed.
    pub leaf: String,
    pub ip: IpAddr,
}

struct Taken {
    of: Of,
    source: PeerSource,
    /// Told when it has to give way.
    give_way: Option<oneshot::Sender<()>>,
}

/// The places of one listener.
pub(super) struct ConnectionSlots {
    spare: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// By age: the first is the oldest.
    taken: BTreeMap<u64, Taken>,
    last: u64,
}

impl ConnectionSlots {
    /// With this many places besides the members'.
    pub fn new(spare: usize) -> Arc<ConnectionSlots> {
        Arc::new(ConnectionSlots { spare, table: Mutex::default() })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        lock(&self.table).taken.len()
    }

    /// A place for a connection that has not said yet whose it is, and what tells it that it has to
    /// give way to a newer one.
    pub fn enter(self: &Arc<Self>, source: PeerSource) -> (ConnectionSlot, oneshot::Receiver<()>) {
        let (give_way, told) = oneshot::channel();
        let mut table = lock(&self.table);
        table.last += 1;
        let serial = table.last;
        let taken = Taken { of: Of::Anybody, source, give_way: Some(give_way) };
        table.taken.insert(serial, taken);
        table.make_room(Of::Anybody, self.spare);
        (ConnectionSlot { places: Arc::clone(self), serial }, told)
    }
}

impl Table {
    /// Has one give way if there are more of this kind than `most`. Whoever was told so before
    /// does not count any more.
    fn make_room(&mut self, of: Of, most: usize) {
        let mut by_leaf: BTreeMap<&str, BTreeMap<IpAddr, Vec<u64>>> = BTreeMap::new();
        let mut count = 0;
        for (serial, taken) in &self.taken {
            if taken.of == of && taken.give_way.is_some() {
                count += 1;
                let of_leaf = by_leaf.entry(&taken.source.leaf).or_default();
                of_leaf.entry(taken.source.ip).or_default().push(*serial);
            }
        }
        if count <= most {
            return;
        }
        // The most first, and among equals the one that began first.
        let rank = |serials: &[u64]| (serials.len(), std::cmp::Reverse(serials.first().copied()));
        let whole = |of_leaf: &BTreeMap<IpAddr, Vec<u64>>| {
            let mut serials: Vec<u64> = of_leaf.values().flatten().copied().collect();
            serials.sort_unstable();
            serials
        };
        let greedy = by_leaf.values().max_by_key(|of_leaf| rank(&whole(of_leaf)));
        let from = greedy.and_then(|of_leaf| of_leaf.values().max_by_key(|serials| rank(serials)));
        let oldest = from.and_then(|serials| serials.first().copied());
        let gone = oldest.and_then(|serial| self.taken.get_mut(&serial));
        if let Some(told) = gone.and_then(|taken| taken.give_way.take()) {
            let _ = told.send(());
        }
    }
}

/// One connection's place; it is free again when this is dropped.
pub(super) struct ConnectionSlot {
    places: Arc<ConnectionSlots>,
    serial: u64,
}

impl ConnectionSlot {
    /// From now on it is one of this member's.
    pub fn belongs_to(&self, id: ServerId) {
        let mut table = lock(&self.places.table);
        if let Some(taken) = table.taken.get_mut(&self.serial) {
            taken.of = Of::Member(id);
        }
        table.make_room(Of::Member(id), CONNECTIONS_PER_MEMBER);
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        lock(&self.places.table).taken.remove(&self.serial);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn source(leaf: &str, host: u8) -> PeerSource {
        PeerSource { leaf: leaf.to_owned(), ip: Ipv4Addr::new(127, 0, 0, host).into() }
    }

    type Taken = (ConnectionSlot, oneshot::Receiver<()>);

    fn standing(places: &[Taken]) -> Vec<bool> {
        places.iter().map(|(_, told)| told.is_empty()).collect()
    }

    #[test]
    fn a_member_that_returns_gets_in_and_its_oldest_gives_way() {
        let places = ConnectionSlots::new(8);
        let enter = |_| {
            let place = places.enter(source("a", 1));
            place.0.belongs_to(ServerId(1));
            place
        };
        let mine: Vec<_> = (0..CONNECTIONS_PER_MEMBER + 1).map(enter).collect();
        assert_eq!(standing(&mine), [false, true, true, true, true]);
        drop(mine);
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn a_certificate_that_claims_anothers_id_pushes_out_its_own() {
        let places = ConnectionSlots::new(8);
        let enter = |leaf: &str, host| {
            let place = places.enter(source(leaf, host));
            place.0.belongs_to(ServerId(1));
            place
        };
        let mut enemies: Vec<_> = (0..4).map(|_| enter("enemy", 9)).collect();
        let mut own = vec![enter("own", 1)];
        enemies.extend((0..20).map(|n| enter("enemy", n)));
        assert_eq!(standing(&own), [true]);
        own.push(enter("own", 1));
        assert_eq!(standing(&own), [true, true]);
        assert_eq!(standing(&enemies).iter().filter(|stands| **stands).count(), 2);
        // Where all have one certificate, the address tells them apart.
        let mut same: Vec<_> = (0..8).map(|_| enter("all", 9)).collect();
        let other = vec![enter("all", 2)];
        same.extend((0..8).map(|_| enter("all", 9)));
        assert_eq!(standing(&other), [true]);
    }

    #[test]
    fn who_says_nothing_takes_no_places_of_members() {
        let places = ConnectionSlots::new(4);
        let mut member = vec![places.enter(source("own", 1))];
        member[0].0.belongs_to(ServerId(1));
        let mut silent: Vec<_> = (0..20).map(|_| places.enter(source("enemy", 9))).collect();
        member.push(places.enter(source("own", 1)));
        assert_eq!(standing(&member), [true, true]);
        silent.push(places.enter(source("enemy", 9)));
        assert_eq!(standing(&member), [true, true]);
        assert_eq!(standing(&silent).iter().filter(|stands| **stands).count(), 3);
    }
}
