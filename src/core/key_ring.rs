//! The replicated value: the agreed keys of one cluster incarnation, and the commands that change it.
//!
//! Every server applies the same commands in the same order and so holds the same ring. Applying is
//! total: whatever command comes, there is an answer and never a panic, because a command that
//! killed one server would kill them all. When a key is due, and who holds it, is for
//! [`super::rotation`] to say.
//!
//! Invariants: a generation has one key, for ever; generations only grow; a key enters as
//! *staged* and leaves that place only by becoming *current*; a key that left the ring never
//! comes back. Whatever a ring from elsewhere says, [`KeyRing::check`] lets through only what
//! commands could have made, at a cost that does not depend on how much of it there is.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::stek::{Fingerprint, Stek, WeakKey};

/// Most keys that a ring keeps besides the staged one, whatever a command asks for: the upper end
/// of `ticket_keys`.
pub const MAX_KEYS: usize = 16;

/// How many retired keys are remembered, by fingerprint only, so that none of them can return.
const MAX_REMEMBERED: usize = 64;

/// The highest generation that a ring may have; no group ever gets there by counting. How it is
/// kept from being led there in leaps is in [`crate::core::sanity_bounds::SanityBounds`].
pub const MAX_GENERATION: Generation = Generation(1 << 62);

/// A key's place in the agreed order, from 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after this.
    pub fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The random name of one agreed sequence of keys, made where nobody has any key yet; never all zero.
/// It stays over every founding that goes on with these keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId([u8; 16]);

impl ClusterId {
    /// A cluster incarnation named by `bytes`, which the caller drew at random; `None` if they are all zero,
    /// which stands for "no cluster incarnation" on the wire.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<ClusterId> {
        (bytes != [0; 16]).then_some(ClusterId(bytes))
    }

    /// The name's bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

/// The first 8 hex digits, which is what logs show.
impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key and its place in the order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RingKey {
    /// The place.
    pub generation: Generation,
    /// The key.
    pub stek: Stek,
}

/// The next key: held by all, used by none yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Staged {
    /// The key and its place.
    pub held: RingKey,
    /// Whether its activation drops every older key at once.
    pub revokes: bool,
}

/// What the group may agree on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// A sequence of keys begins.
    Found {
        /// Its name.
        cluster_id: ClusterId,
    },
    /// Every server takes this key, to decrypt with it but not yet to encrypt.
    Stage {
        /// The key and its place: exactly one after the newest.
        held: RingKey,
        /// Whether its activation drops every older key at once.
        revokes: bool,
    },
    /// Every server encrypts with the staged key from now on.
    Activate {
        /// Which one; anything but the staged one is refused.
        generation: Generation,
        /// How many keys the ring keeps, the new one included.
        keep: u8,
    },
    /// These keys were revoked in a group that went its own way. None of them is used any more.
    Revoke(Vec<Fingerprint>),
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A sequence of keys began.
    Founded,
    /// A key was staged.
    Staged(Generation),
    /// A key became current.
    Activated(Generation),
    /// More keys are known to be revoked.
    Revoked,
    /// The command had been applied before.
    Nothing,
}

/// Why a command changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A ring belongs to one cluster incarnation for good.
    #[error("this ring belongs to another cluster incarnation")]
    OtherCluster,
    /// Keys belong to a cluster incarnation.
    #[error("no cluster incarnation has begun yet")]
    NoCluster,
    /// Key validation.
    #[error("the key is unfit: {0}")]
    Weak(#[from] WeakKey),
    /// The place is taken, past, or not the next one.
    #[error("generation {got} is stale or out of order, {want} is next")]
    Generation {
        /// The one that came.
        got: Generation,
        /// The one that would have been right.
        want: Generation,
    },
    /// The name is that of a key in the ring: a ticket would not tell which one made it.
    #[error("a key named {0} is in the ring")]
    NameTaken(Fingerprint),
    /// A key that is gone never comes back.
    #[error("key {0} was retired")]
    Repeated(Fingerprint),
    /// One handover at a time.
    #[error("a handover to generation {0} is under way")]
    HandoverUnderWay(Generation),
    /// Only the staged key may become current.
    #[error("generation {0} is not staged")]
    NotStaged(Generation),
    /// Commands keep every collection within its bound.
    #[error("it holds {0} {1}, more than {2}")]
    TooMany(usize, &'static str, usize),
    /// Beyond it there is nothing to count on with.
    #[error("generation {0} is beyond all reason")]
    Absurd(Generation),
    /// A revoked generation is one that became current, and takes every older key with it.
    #[error("generation {0} cannot have revoked the others")]
    Revoked(Generation),
}

/// The agreed keys of one cluster incarnation. Cloning it copies handles, not key bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KeyRing {
    cluster_id: Option<ClusterId>,
    staged: Option<Staged>,
    keys: Vec<RingKey>,
    retired: Vec<Fingerprint>,
    revoked: Generation,
    /// The keys that revocations dropped, and those that had retired before; the newest last.
    revoked_keys: Vec<Fingerprint>,
}

impl KeyRing {
    /// Changes the ring as `command` says.
    ///
    /// # Errors
    /// Why nothing changed; every server comes to the same answer.
    pub fn apply(&mut self, command: Command) -> Result<Change, Refusal> {
        match command {
            Command::Found { cluster_id } => self.found(cluster_id),
            Command::Stage { held, revokes } => self.stage(held, revokes),
            Command::Activate { generation, keep } => self.activate(generation, keep.into()),
            Command::Revoke(keys) => self.revoke(&keys),
        }
    }

    /// What a command to stage this key would be answered, without changing anything; so that a
    /// leader does not propose what all would refuse.
    ///
    /// # Errors
    /// As [`KeyRing::apply`].
    pub fn admits(&self, held: &RingKey) -> Result<(), Refusal> {
        if self.cluster_id.is_none() {
            return Err(Refusal::NoCluster);
        }
        if let Some(staged) = &self.staged {
            return Err(Refusal::HandoverUnderWay(staged.held.generation));
        }
        let want = self.newest().next();
        if held.generation != want {
            return Err(Refusal::Generation { got: held.generation, want });
        }
        if held.generation > MAX_GENERATION {
            return Err(Refusal::Absurd(held.generation));
        }
        held.stek.check()?;
        let fingerprint = held.stek.fingerprint();
        // By what of it is remembered later, so that no key in the ring is ever named like one that
        // is gone.
        if self.keys.iter().any(|k| k.stek.fingerprint() == fingerprint) {
            return Err(Refusal::NameTaken(fingerprint));
        }
        if self.retired.contains(&fingerprint) {
            return Err(Refusal::Repeated(fingerprint));
        }
        Ok(())
    }

    /// The cluster incarnation that the ring belongs to, if one has begun.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id
    }

    /// The key that encrypts.
    pub fn current(&self) -> Option<&RingKey> {
        self.keys.first()
    }

    /// The keys that still decrypt, newest first, without the current one.
    pub fn older(&self) -> &[RingKey] {
        self.keys.get(1..).unwrap_or_default()
    }

    /// The key of this generation.
    pub fn get(&self, generation: Generation) -> Option<&Stek> {
        self.all().find(|held| held.generation == generation).map(|held| &held.stek)
    }

    /// The keys that are known to be revoked.
    pub fn revoked_keys(&self) -> &[Fingerprint] {
        &self.revoked_keys
    }

    /// Whether this key was revoked, here or in a group that went its own way.
    pub fn is_revoked(&self, key: &Stek) -> bool {
        !self.revoked_keys.is_empty() && self.revoked_keys.contains(&key.fingerprint())
    }

    /// Whether a key that is not staged was revoked elsewhere, so that it has to be replaced.
    pub fn has_revoked(&self) -> bool {
        self.keys.iter().any(|held| self.is_revoked(&held.stek))
    }

    /// The next key, during a handover.
    pub fn staged(&self) -> Option<&Staged> {
        self.staged.as_ref()
    }

    /// The highest generation that the ring has seen, 0 before the first.
    pub fn newest(&self) -> Generation {
        self.staged
            .as_ref()
            .map(|s| s.held.generation)
            .or_else(|| self.keys.first().map(|k| k.generation))
            .unwrap_or_default()
    }

    /// The generation whose activation last dropped every older key, 0 if none ever did.
    pub fn revoked(&self) -> Generation {
        self.revoked
    }

    /// Whether this key left the ring.
    pub fn has_retired(&self, key: &Stek) -> bool {
        self.retired.contains(&key.fingerprint())
    }

    /// Whether the ring holds a key of this generation.
    pub fn holds(&self, generation: Generation) -> bool {
        self.get(generation).is_some()
    }

    /// All keys: the staged one, then the others, newest first.
    pub fn all(&self) -> impl Iterator<Item = &RingKey> {
        self.staged.iter().map(|s| &s.held).chain(&self.keys)
    }

    /// Whether a ring that came from another server is one that commands could have made.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.keys.len() > MAX_KEYS {
            return Err(Refusal::TooMany(self.keys.len(), "keys", MAX_KEYS));
        }
        if self.retired.len() > MAX_REMEMBERED {
            return Err(Refusal::TooMany(self.retired.len(), "retired keys", MAX_REMEMBERED));
        }
        if self.revoked_keys.len() > MAX_REMEMBERED {
            return Err(Refusal::TooMany(self.revoked_keys.len(), "revoked keys", MAX_REMEMBERED));
        }
        let is_empty = self.staged.is_none() && self.keys.is_empty() && self.retired.is_empty();
        if self.cluster_id.is_none() && !(is_empty && self.revoked == Generation(0)) {
            return Err(Refusal::NoCluster);
        }
        if self.newest() > MAX_GENERATION {
            return Err(Refusal::Absurd(self.newest()));
        }
        // Without a gap from the newest on, and the first one ever is 1.
        let mut want = self.newest().0;
        if self.keys.is_empty() && want > 1 {
            return Err(Refusal::Generation { got: self.newest(), want: Generation(1) });
        }
        let mut fingerprints = BTreeSet::new();
        for held in self.all() {
            if held.generation.0 != want || want == 0 {
                return Err(Refusal::Generation { got: held.generation, want: Generation(want) });
            }
            want -= 1;
            held.stek.check()?;
            let fingerprint = held.stek.fingerprint();
            if !fingerprints.insert(fingerprint) {
                return Err(Refusal::NameTaken(fingerprint));
            }
        }
        // Each retired key had a generation below those that are left.
        if u64::try_from(self.retired.len()).unwrap_or(u64::MAX) > want {
            return Err(Refusal::TooMany(self.retired.len(), "retired keys", want as usize));
        }
        if let Some(gone) = self.retired.iter().find(|gone| fingerprints.contains(gone)) {
            return Err(Refusal::Repeated(*gone));
        }
        let oldest = self.keys.last().map(|held| held.generation).unwrap_or_default();
        if self.revoked <= oldest {
            Ok(())
        } else {
            Err(Refusal::Revoked(self.revoked))
        }
    }

    /// Whether a server whose host holds keys of this ring may go over to those of `next`: `next` is
    /// sound, and within a cluster incarnation neither its newest nor its current key is older.
    ///
    /// # Errors
    /// The first rule that `next` breaks.
    pub fn may_become(&self, next: &KeyRing) -> Result<(), Refusal> {
        next.check()?;
        let current = |ring: &KeyRing| ring.current().map(|held| held.generation);
        let current = (current(self).unwrap_or_default(), current(next).unwrap_or_default());
        if self.cluster_id.is_some() && self.cluster_id == next.cluster_id {
            for (ours, theirs) in [(self.newest(), next.newest()), current] {
                if theirs < ours {
                    return Err(Refusal::Generation { got: theirs, want: ours });
                }
            }
        }
        Ok(())
    }

    fn found(&mut self, cluster_id: ClusterId) -> Result<Change, Refusal> {
        match self.cluster_id {
            None => {
                self.cluster_id = Some(cluster_id);
                Ok(Change::Founded)
            }
            Some(ours) if ours == cluster_id => Ok(Change::Nothing),
            Some(_) => Err(Refusal::OtherCluster),
        }
    }

    /// Notes that these keys were revoked. Those that are in the ring stay in their places, so that no
    /// generation is given out twice, and are used no more.
    fn revoke(&mut self, keys: &[Fingerprint]) -> Result<Change, Refusal> {
        if keys.len() > MAX_REMEMBERED {
            return Err(Refusal::TooMany(keys.len(), "revoked keys", MAX_REMEMBERED));
        }
        Ok(if self.revoke_also(keys) { Change::Revoked } else { Change::Nothing })
    }

    /// An empty ring that knows what was revoked, for a group whose keys are too old to go on with.
    #[must_use]
    pub fn without_keys(&self) -> KeyRing {
        KeyRing { revoked_keys: self.revoked_keys.clone(), ..KeyRing::default() }
    }

    /// The same for a ring that nothing is agreed on with yet; whether any of them is new.
    pub fn revoke_also(&mut self, keys: &[Fingerprint]) -> bool {
        let before = self.revoked_keys.len();
        for key in keys {
            if !self.revoked_keys.contains(key) {
                self.revoked_keys.push(*key);
            }
        }
        let is_new = self.revoked_keys.len() > before;
        let forget = self.revoked_keys.len().saturating_sub(MAX_REMEMBERED);
        self.revoked_keys.drain(..forget);
        is_new
    }

    fn stage(&mut self, held: RingKey, revokes: bool) -> Result<Change, Refusal> {
        if let Some(staged) = &self.staged {
            let same = staged.held.generation == held.generation
                && staged.held.stek.same_bytes(&held.stek);
            if same {
                return Ok(Change::Nothing);
            }
        }
        self.admits(&held)?;
        let generation = held.generation;
        self.staged = Some(Staged { held, revokes });
        Ok(Change::Staged(generation))
    }

    fn activate(&mut self, generation: Generation, keep: usize) -> Result<Change, Refusal> {
        if self.current().is_some_and(|k| k.generation == generation) {
            return Ok(Change::Nothing);
        }
        match self.staged.take() {
            Some(staged) if staged.held.generation == generation => {
                let mut keep = keep.clamp(1, MAX_KEYS);
                if staged.revokes {
                    self.revoked = generation;
                    keep = 1;
                }
                self.keys.insert(0, staged.held);
                let gone = self.keys.split_off(keep.min(self.keys.len()));
                self.retired.extend(gone.iter().map(|k| k.stek.fingerprint()));
                let forget = self.retired.len().saturating_sub(MAX_REMEMBERED);
                self.retired.drain(..forget);
                if staged.revokes {
                    let gone = self.retired.clone();
                    self.revoke_also(&gone);
                }
                Ok(Change::Activated(generation))
            }
            other => {
                self.staged = other;
                Err(Refusal::NotStaged(generation))
            }
        }
    }
}

/// What a server should give to its host: at least the encrypting key, at most `limit` keys, the
/// encrypting one first.
///
/// `own` are the server's own keys, newest first: the initial STEK, or the emergency keys that it
/// made while there was no group to ask. They encrypt only while the ring has no current key or
/// `too_old` says that the current one must not encrypt any more; otherwise they decrypt where
/// there is room. The staged key comes before all that merely decrypt, because a handover waits
/// for it. `kept`, newest first, are keys that this server read from its state file: they decrypt
/// and never encrypt; as long as there is no group, the own key comes on top of them, since clients
/// may come with tickets of each.
pub fn keys_to_install(
    ring: &KeyRing,
    own: &[Stek],
    kept: &[Stek],
    too_old: bool,
    limit: usize,
) -> Vec<Stek> {
    let current = ring.current().map(|held| &held.stek);
    let staged = ring.staged().map(|staged| &staged.held.stek);
    let older = ring.older().iter().map(|held| &held.stek);
    let encrypting = match current {
        Some(key) if !too_old && !ring.is_revoked(key) => Some(key),
        _ => own.first().or(current),
    };
    let wanted = encrypting.into_iter().chain(staged).chain(current).chain(older);
    let wanted = wanted.chain(kept).chain(own);
    let limit = limit + usize::from(current.is_none() && !kept.is_empty());
    let mut keys: Vec<Stek> = Vec::with_capacity(limit);
    for key in wanted {
        // One key always goes out, even if it is the only one and revoked.
        let is_fit = keys.is_empty() || !ring.is_revoked(key);
        if is_fit && keys.len() < limit && !keys.iter().any(|k| k.name() == key.name()) {
            keys.push(key.clone());
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::stek::STEK_LEN;

    fn stek(seed: u8) -> Stek {
        let bytes: Vec<u8> = (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ seed).collect();
        Stek::copy_from(&bytes).unwrap()
    }

    fn held(generation: u64) -> RingKey {
        RingKey { generation: Generation(generation), stek: stek(generation as u8) }
    }

    fn stage(generation: u64) -> Command {
        Command::Stage { held: held(generation), revokes: false }
    }

    fn activate(generation: u64) -> Command {
        Command::Activate { generation: Generation(generation), keep: 2 }
    }

    fn ring_of(generations: u64) -> KeyRing {
        let mut ring = KeyRing::default();
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        ring.apply(Command::Found { cluster_id }).unwrap();
        for g in 1..=generations {
            ring.apply(stage(g)).unwrap();
            ring.apply(activate(g)).unwrap();
        }
        ring
    }

    fn generations(ring: &KeyRing) -> Vec<u64> {
        ring.all().map(|h| h.generation.0).collect()
    }

    fn names(keys: &[Stek]) -> Vec<Fingerprint> {
        keys.iter().map(Stek::fingerprint).collect()
    }

    fn prints(seeds: &[u8]) -> Vec<Fingerprint> {
        seeds.iter().map(|&s| stek(s).fingerprint()).collect()
    }

    #[test]
    fn generations_have_an_end() {
        let mut ring = ring_of(1);
        let last = MAX_GENERATION.0;
        let next = |generation| RingKey { generation: Generation(generation), stek: stek(77) };
        ring.keys[0].generation = Generation(last - 1);
        assert_eq!(ring.admits(&next(last)), Ok(()));
        ring.keys[0].generation = Generation(last);
        assert_eq!(ring.check(), Ok(()));
        let absurd = Err(Refusal::Absurd(Generation(last + 1)));
        assert_eq!(ring.admits(&next(last + 1)), absurd);
    }

    #[test]
    fn a_key_that_left_the_ring_has_retired() {
        let ring = ring_of(3);
        assert_eq!(generations(&ring), [3, 2]);
        assert!(ring.has_retired(&stek(1)));
        assert!(!ring.has_retired(&stek(2)) && !ring.has_retired(&stek(9)));
    }

    #[test]
    fn a_rotation_keeps_the_latest_two() {
        let mut ring = ring_of(2);
        assert_eq!(generations(&ring), [2, 1]);
        assert_eq!(ring.apply(stage(3)), Ok(Change::Staged(Generation(3))));
        assert_eq!(generations(&ring), [3, 2, 1]);
        assert_eq!(ring.current().unwrap().generation, Generation(2));
        assert_eq!(ring.apply(activate(3)), Ok(Change::Activated(Generation(3))));
        assert_eq!(generations(&ring), [3, 2]);
    }

    #[test]
    fn commands_that_come_twice_change_nothing() {
        let mut ring = ring_of(2);
        ring.apply(stage(3)).unwrap();
        assert_eq!(ring.apply(stage(3)), Ok(Change::Nothing));
        ring.apply(activate(3)).unwrap();
        assert_eq!(ring.apply(activate(3)), Ok(Change::Nothing));
        assert_eq!(generations(&ring), [3, 2]);
    }

    #[test]
    fn a_late_activation_of_an_older_generation_is_refused() {
        let mut ring = ring_of(3);
        ring.apply(stage(4)).unwrap();
        assert_eq!(ring.apply(activate(2)), Err(Refusal::NotStaged(Generation(2))));
        assert_eq!(ring.staged().unwrap().held.generation, Generation(4));
    }

    #[test]
    fn the_gate_refuses_each_bad_key() {
        let mut ring = ring_of(3);
        let with = |generation, stek| Command::Stage {
            held: RingKey { generation: Generation(generation), stek },
            revokes: false,
        };
        let zero = Stek::copy_from(&[0; STEK_LEN]).unwrap();
        assert!(matches!(ring.apply(with(4, zero)), Err(Refusal::Weak(WeakKey::Zero(_)))));
        assert!(matches!(ring.apply(with(3, stek(77))), Err(Refusal::Generation { .. })));
        assert!(matches!(ring.apply(with(5, stek(77))), Err(Refusal::Generation { .. })));
        assert!(matches!(ring.apply(with(4, stek(3))), Err(Refusal::NameTaken(_))));
        let mut same_name = *stek(2).expose();
        same_name[40] ^= 1;
        let same_name = Stek::copy_from(&same_name).unwrap();
        assert!(matches!(ring.apply(with(4, same_name)), Err(Refusal::NameTaken(_))));
        assert!(matches!(ring.apply(with(4, stek(1))), Err(Refusal::Repeated(_))));
        assert_eq!(generations(&ring), [3, 2]);
        assert!(ring.staged().is_none());
    }

    #[test]
    fn a_second_handover_waits_for_the_first() {
        let mut ring = ring_of(1);
        ring.apply(stage(2)).unwrap();
        assert_eq!(ring.apply(stage(3)), Err(Refusal::HandoverUnderWay(Generation(2))));
    }

    #[test]
    fn revoking_drops_every_older_key() {
        let mut ring = ring_of(3);
        ring.apply(Command::Stage { held: held(4), revokes: true }).unwrap();
        ring.apply(Command::Activate { generation: Generation(4), keep: 16 }).unwrap();
        assert_eq!(generations(&ring), [4]);
        assert_eq!(ring.revoked(), Generation(4));
    }

    #[test]
    fn keep_widens_and_narrows_the_ring_within_its_bounds() {
        let mut ring = ring_of(2);
        for g in 3..=40 {
            ring.apply(stage(g)).unwrap();
            ring.apply(Command::Activate { generation: Generation(g), keep: 255 }).unwrap();
        }
        assert_eq!(ring.all().count(), MAX_KEYS);
        ring.apply(stage(41)).unwrap();
        ring.apply(Command::Activate { generation: Generation(41), keep: 0 }).unwrap();
        assert_eq!(generations(&ring), [41]);
    }

    #[test]
    fn a_ring_belongs_to_one_cluster_id() {
        let mut ring = KeyRing::default();
        assert_eq!(ring.apply(stage(1)), Err(Refusal::NoCluster));
        let mut ring = ring_of(1);
        let other = ClusterId::from_bytes([8; 16]).unwrap();
        assert_eq!(ring.apply(Command::Found { cluster_id: other }), Err(Refusal::OtherCluster));
    }

    #[test]
    fn the_installed_set_is_the_latest_two_with_the_encrypting_key_first() {
        let own = [stek(200)];
        let mut ring = KeyRing::default();
        assert_eq!(names(&keys_to_install(&ring, &own, &[], false, 2)), prints(&[200]));
        ring = ring_of(0);
        ring.apply(stage(1)).unwrap();
        assert_eq!(names(&keys_to_install(&ring, &own, &[], false, 2)), prints(&[200, 1]));
        ring.apply(activate(1)).unwrap();
        assert_eq!(names(&keys_to_install(&ring, &own, &[], false, 2)), prints(&[1, 200]));
        let mut ring = ring_of(2);
        assert_eq!(names(&keys_to_install(&ring, &own, &[], false, 2)), prints(&[2, 1]));
        assert_eq!(names(&keys_to_install(&ring, &own, &[], false, 4)), prints(&[2, 1, 200]));
        ring.apply(stage(3)).unwrap();
        assert_eq!(names(&keys_to_install(&ring, &own, &[], false, 2)), prints(&[2, 3]));
        assert_eq!(names(&keys_to_install(&ring, &own, &[], false, 3)), prints(&[2, 3, 1]));
    }

    #[test]
    fn all_keys_of_a_file_open_tickets_beside_the_own_one_until_there_is_a_group() {
        let (own, kept) = ([stek(200)], [stek(8), stek(7)]);
        let set = |ring: &KeyRing| names(&keys_to_install(ring, &own, &kept, false, 2));
        assert_eq!(set(&KeyRing::default()), prints(&[200, 8, 7]));
        assert_eq!(set(&ring_of(1)), prints(&[1, 8]));
        assert_eq!(
            names(&keys_to_install(&KeyRing::default(), &own, &[], false, 1)),
            prints(&[200])
        );
    }

    #[test]
    fn a_key_that_was_revoked_elsewhere_is_used_no_more_and_keeps_its_place() {
        let mut ring = ring_of(2);
        let own = [stek(200)];
        let revoke = |seed| Command::Revoke(vec![stek(seed).fingerprint()]);
        assert_eq!(ring.apply(revoke(77)), Ok(Change::Revoked));
        assert_eq!(ring.apply(revoke(77)), Ok(Change::Nothing));
        assert!(!ring.has_revoked());
        assert_eq!(ring.apply(revoke(2)), Ok(Change::Revoked));
        assert!(ring.has_revoked() && ring.is_revoked(&stek(2)) && ring.check().is_ok());
        assert_eq!(names(&keys_to_install(&ring, &own, &[], false, 2)), prints(&[200, 1]));
        assert_eq!(ring.newest(), Generation(2), "no generation is given out twice");
        // The rotation that follows drops it, and all with it.
        ring.apply(Command::Stage { held: held(3), revokes: true }).unwrap();
        ring.apply(activate(3)).unwrap();
        assert!(!ring.has_revoked() && ring.is_revoked(&stek(1)));
        assert_eq!(names(&keys_to_install(&ring, &own, &[], false, 2)), prints(&[3, 200]));
        let many = Command::Revoke(vec![stek(9).fingerprint(); MAX_REMEMBERED + 1]);
        assert!(matches!(ring.apply(many), Err(Refusal::TooMany(..))));
        let most = Command::Revoke(vec![stek(1).fingerprint(); MAX_REMEMBERED]);
        assert_eq!(ring.apply(most), Ok(Change::Nothing));
        let forgot = ring.without_keys();
        assert!(forgot.is_revoked(&stek(2)) && forgot.cluster_id().is_none());
        assert_eq!((forgot.all().count(), forgot.check()), (0, Ok(())));
    }

    #[test]
    fn a_key_that_is_too_old_only_decrypts() {
        let ring = ring_of(2);
        let own = [stek(201), stek(200)];
        assert_eq!(names(&keys_to_install(&ring, &own, &[], true, 2)), prints(&[201, 2]));
        assert_eq!(names(&keys_to_install(&ring, &own, &[], true, 5)), prints(&[201, 2, 1, 200]));
        assert_eq!(names(&keys_to_install(&ring, &[], &[], true, 2)), prints(&[2, 1]));
    }

    #[test]
    fn a_ring_goes_forward_within_its_cluster_id_only() {
        let (old, mut staged) = (ring_of(2), ring_of(2));
        staged.apply(stage(3)).unwrap();
        let mut activated = staged.clone();
        activated.apply(activate(3)).unwrap();
        let forward = [&KeyRing::default(), &old, &staged, &activated];
        for (i, from) in forward.iter().enumerate() {
            for (j, to) in forward.iter().enumerate() {
                // A ring without a cluster incarnation says nothing about any.
                let fine = i <= j || to.cluster_id().is_none();
                assert_eq!(from.may_become(to).is_ok(), fine, "from {i} to {j}");
            }
        }
        let mut other = KeyRing::default();
        let cluster_id = ClusterId::from_bytes([8; 16]).unwrap();
        other.apply(Command::Found { cluster_id }).unwrap();
        assert_eq!(activated.may_become(&other), Ok(()));
    }

    #[test]
    fn a_foreign_ring_is_checked_whole() {
        assert_eq!(ring_of(3).check(), Ok(()));
        let mut ring = ring_of(3);
        ring.keys.swap(0, 1);
        assert!(ring.check().is_err());
        let mut ring = ring_of(3);
        ring.keys[1].stek = ring.keys[0].stek.clone();
        assert!(ring.check().is_err());
        let mut ring = ring_of(3);
        ring.retired = vec![ring.keys[1].stek.fingerprint()];
        assert!(matches!(ring.check(), Err(Refusal::Repeated(_))));
        let mut ring = ring_of(1);
        ring.cluster_id = None;
        assert_eq!(ring.check(), Err(Refusal::NoCluster));
    }

    #[test]
    fn a_ring_that_no_commands_could_have_made_is_refused() {
        let bad = |change: &dyn Fn(&mut KeyRing)| {
            let mut ring = ring_of(40);
            ring.apply(stage(41)).unwrap();
            assert_eq!(ring.check(), Ok(()));
            change(&mut ring);
            ring.check().unwrap_err()
        };
        let at = |ring: &mut KeyRing, newest: u64| {
            ring.staged.as_mut().unwrap().held.generation = Generation(newest);
            for (held, below) in ring.keys.iter_mut().zip(1..) {
                held.generation = Generation(newest - below);
            }
        };
        // A gap, the end of all counting, a staged key that is not the next one.
        assert!(matches!(bad(&|ring| ring.keys.swap(0, 1)), Refusal::Generation { .. }));
        assert!(matches!(bad(&|ring| at(ring, u64::MAX)), Refusal::Absurd(_)));
        assert!(matches!(bad(&|ring| at(ring, MAX_GENERATION.0 + 1)), Refusal::Absurd(_)));
        let skip = |ring: &mut KeyRing| ring.staged.as_mut().unwrap().held.generation.0 += 1;
        assert!(matches!(bad(&skip), Refusal::Generation { .. }));
        assert!(matches!(bad(&|ring| ring.keys.clear()), Refusal::Generation { .. }));
        let zero = |ring: &mut KeyRing| {
            ring.staged = None;
            ring.keys.truncate(1);
            ring.keys[0].generation = Generation(0);
        };
        assert!(matches!(bad(&zero), Refusal::Generation { .. }));
        // More retired keys than there were generations, or than are remembered.
        assert!(matches!(bad(&|ring| at(ring, 30)), Refusal::TooMany(38, ..)));
        let many = |ring: &mut KeyRing| ring.retired = vec![stek(250).fingerprint(); 65];
        assert!(matches!(bad(&many), Refusal::TooMany(65, "retired keys", 64)));
        // Revoked by one that is staged, to come, or younger than keys that are left.
        for revoked in [40, 41, 99] {
            let late = |ring: &mut KeyRing| ring.revoked = Generation(revoked);
            assert_eq!(bad(&late), Refusal::Revoked(Generation(revoked)));
        }
        for change in [
            |ring: &mut KeyRing| ring.revoked = Generation(1),
            |ring: &mut KeyRing| ring.retired = vec![stek(1).fingerprint()],
        ] {
            let mut ring = KeyRing::default();
            assert_eq!(ring.check(), Ok(()));
            change(&mut ring);
            assert_eq!(ring.check(), Err(Refusal::NoCluster));
        }
    }

    #[test]
    fn what_commands_make_is_never_refused() {
        // Of each 40 steps one revokes, and the ring is now wide and now narrow.
        let mut ring = ring_of(0);
        for g in 1..=120_u64 {
            let held = held(g);
            ring.apply(Command::Stage { held, revokes: g % 40 == 0 }).unwrap();
            assert_eq!(ring.check(), Ok(()), "{g} is staged");
            let keep = (g % 20) as u8;
            ring.apply(Command::Activate { generation: Generation(g), keep }).unwrap();
            assert_eq!(ring.check(), Ok(()), "{g} is current");
        }
        assert_eq!(ring.retired.len(), MAX_REMEMBERED);
    }

    /// However many keys a ring claims to hold, none but the first few is looked at.
    #[test]
    fn a_ring_with_too_many_keys_costs_nothing() {
        let with = |count: usize| {
            let mut ring = ring_of(1);
            let one = ring.keys[0].clone();
            ring.keys = vec![one; count];
            let begun = std::time::Instant::now();
            for _ in 0..100 {
                let refused = Err(Refusal::TooMany(count, "keys", MAX_KEYS));
                assert_eq!(ring.check(), refused);
            }
            begun.elapsed()
        };
        let (few, many) = (with(1_000), with(18_000));
        let bound = few * 20 + std::time::Duration::from_millis(20);
        assert!(many < bound, "{few:?} and {many:?}");
    }

    #[test]
    fn a_cluster_id_is_written_as_its_first_digits_and_given_away_whole() {
        let bytes = std::array::from_fn(|i| i as u8 + 0xa1);
        let id = ClusterId::from_bytes(bytes).unwrap();
        assert_eq!(id.to_bytes(), bytes);
        assert_eq!((format!("{id}"), format!("{id:?}")), ("a1a2a3a4".into(), "a1a2a3a4".into()));
    }

    #[test]
    fn a_ring_holds_what_is_staged_current_and_older_and_nothing_else() {
        let mut ring = ring_of(3);
        ring.apply(stage(4)).unwrap();
        let held: Vec<u64> = (0..=5).filter(|&g| ring.holds(Generation(g))).collect();
        assert_eq!(held, [2, 3, 4]);
    }

    #[test]
    fn the_same_cluster_founded_twice_is_one_and_a_staged_key_has_no_double() {
        let mut ring = ring_of(1);
        let cluster_id = ring.cluster_id().unwrap();
        assert_eq!(ring.apply(Command::Found { cluster_id }), Ok(Change::Nothing));
        ring.apply(stage(2)).unwrap();
        let other = |generation, seed| Command::Stage {
            held: RingKey { generation: Generation(generation), stek: stek(seed) },
            revokes: false,
        };
        let refused = Err(Refusal::HandoverUnderWay(Generation(2)));
        assert_eq!(ring.apply(other(2, 77)), refused, "the same place, another key");
        assert_eq!(ring.apply(other(3, 2)), refused, "the same key, another place");
    }
}
