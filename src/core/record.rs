//! What is left of a cluster incarnation where nobody who took part in it lives on: keys, and how new they are.
//!
//! A record decrypts and never votes. A server that starts with one is as empty as any other; only
//! where nobody remembers anything does its leader found a cluster incarnation that goes on from the newest
//! record of those present. So a file that is old, copied or brought back can be outranked and
//! can outvote nobody.

use std::time::Duration;

pub use super::key_ring::Record;
use super::key_ring::MAX_EPOCH;
use super::log_id::LogPosition;

/// Orders records, the newest last: by when their cluster incarnations were founded, within one by its log.
pub type Rank = (u64, LogPosition);

impl Record {
    /// How new it is.
    pub fn rank(&self) -> Rank {
        (self.ring.epoch(), self.end)
    }

    /// How old its newest key is.
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.age_ms)
    }
}

/// The epoch of a cluster incarnation that is founded now, `wall` seconds after 1970, by one who knows of the
/// epoch `known`. The clock orders cluster incarnations that know nothing of each other; a clock that went
/// back cannot put a cluster incarnation before the one that it goes on from.
/// At [`MAX_EPOCH`] it stays.
pub fn next_epoch(known: u64, wall: u64) -> u64 {
    known.saturating_add(1).max(wall).min(MAX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::key_ring::{Change, ClusterId, Command, Generation, Held, KeyRing, Refusal};
    use crate::core::recovery::LeaderId;
    use crate::core::stek::{Stek, STEK_LEN};

    fn stek(seed: u64) -> Stek {
        let bytes: Vec<u8> = (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ seed as u8).collect();
        Stek::copy_from(&bytes).unwrap()
    }

    fn stage(generation: u64, revokes: bool) -> Command {
        let held = Held { generation: Generation(generation), stek: stek(generation) };
        Command::Stage { held, revokes }
    }

    fn activate(generation: u64) -> Command {
        Command::Activate { generation: Generation(generation), keep: 2 }
    }

    fn found(byte: u8, epoch: u64, from: Option<Box<Record>>) -> Command {
        Command::Found { cluster_id: ClusterId::from_bytes([byte; 16]).unwrap(), epoch, from }
    }

    fn ring(commands: impl IntoIterator<Item = Command>) -> KeyRing {
        let mut ring = KeyRing::default();
        for command in commands {
            ring.apply(command).unwrap();
        }
        ring
    }

    fn record(ring: KeyRing) -> Option<Box<Record>> {
        Some(Box::new(Record { ring, end: LogPosition::default(), age_ms: 5 }))
    }

    fn generations(ring: &KeyRing) -> Vec<u64> {
        ring.all().map(|held| held.generation.0).collect()
    }

    /// Two generations, the third one staged as far as `then` says.
    fn lived(then: impl IntoIterator<Item = Command>) -> KeyRing {
        let first = [found(1, 4, None), stage(1, false), activate(1), stage(2, false), activate(2)];
        ring(first.into_iter().chain(then))
    }

    #[test]
    fn a_key_from_a_record_encrypts_only_once_it_was_handed_over() {
        let mut ring = ring([found(2, 5, record(lived([])))]);
        assert_eq!((ring.check(), ring.epoch()), (Ok(()), 5));
        assert!(ring.current().is_none(), "no key of a file encrypts");
        assert_eq!(ring.staged().map(|staged| staged.held.generation), Some(Generation(2)));
        assert_eq!(ring.older().len(), 1);
        assert_eq!(generations(&ring), [2, 1]);
        assert_eq!(ring.apply(activate(2)), Ok(Change::Resumed(Generation(2))));
        assert_eq!(ring.current().map(|held| held.generation), Some(Generation(2)));
        assert_eq!(ring.check(), Ok(()));
        ring.apply(stage(3, false)).unwrap();
        assert_eq!(ring.apply(activate(3)), Ok(Change::Activated(Generation(3))));
        assert_eq!(generations(&ring), [3, 2]);
    }

    #[test]
    fn a_revocation_that_was_under_way_goes_on() {
        let mut ring = ring([found(2, 5, record(lived([stage(3, true)])))]);
        assert_eq!(generations(&ring), [3, 2, 1]);
        assert!(ring.current().is_none() && ring.older().len() == 2);
        ring.apply(activate(3)).unwrap();
        assert_eq!((generations(&ring), ring.revoked()), (vec![3], Generation(3)));
        assert!(ring.has_retired(&stek(1)) && ring.has_retired(&stek(2)));
        assert!(!ring.has_retired(&stek(3)));
        // What was revoked stays so over another founding.
        let mut next = KeyRing::default();
        next.apply(found(3, 6, record(ring))).unwrap();
        assert_eq!(next.revoked(), Generation(3));
        next.apply(activate(3)).unwrap();
        let returned = Held { generation: Generation(4), stek: stek(2) };
        let refused = next.apply(Command::Stage { held: returned, revokes: false });
        assert!(matches!(refused, Err(Refusal::Repeated(_))), "{refused:?}");
    }

    #[test]
    fn a_record_without_keys_or_sense_brings_none() {
        let empty = ring([found(2, 5, record(ring([found(1, 4, None)])))]);
        assert!(!empty.is_imported() && empty.check().is_ok());
        let mut broken = lived([]);
        broken.apply(stage(3, false)).unwrap();
        let mut bytes = postcard::to_allocvec(&broken).unwrap();
        // The last byte says whether the keys were imported; the staged one comes first.
        *bytes.last_mut().unwrap() = 1;
        let imported: KeyRing = postcard::from_bytes(&bytes).unwrap();
        assert!(imported.check().is_ok() && imported.is_imported());
        let mut ring = lived([]);
        let mut bytes = postcard::to_allocvec(&ring).unwrap();
        *bytes.last_mut().unwrap() = 1;
        ring = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(ring.check(), Err(Refusal::NotStaged(Generation(2))));
        let mut next = KeyRing::default();
        assert!(next.apply(found(2, 5, record(ring))).is_err());
        assert_eq!(next.cluster_id(), None);
    }

    #[test]
    fn the_later_cluster_id_ranks_higher_and_within_one_the_longer_log() {
        let at = |term, index| LogPosition {
            leader_id: LeaderId { term, ..LeaderId::default() },
            index,
        };
        let of = |ring: &KeyRing, end| Record { ring: ring.clone(), end, age_ms: 0 }.rank();
        let (old, new) = (lived([]), ring([found(2, 5, None)]));
        assert!(of(&new, at(1, 1)) > of(&old, at(9, 99)));
        assert!(of(&old, at(2, 1)) > of(&old, at(1, 99)));
        assert_eq!((next_epoch(7, 3), next_epoch(7, 1000)), (8, 1000));
        assert_eq!((next_epoch(MAX_EPOCH, 3), next_epoch(3, u64::MAX)), (MAX_EPOCH, MAX_EPOCH));
        assert!(ring([found(2, MAX_EPOCH, None)]).check().is_ok());
        let mut none = KeyRing::default();
        let refused = Err(Refusal::Epoch(MAX_EPOCH + 1));
        assert_eq!(none.apply(found(2, MAX_EPOCH + 1, None)), refused);
    }
}
