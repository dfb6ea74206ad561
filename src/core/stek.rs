//! The session ticket encryption key: 48 secret bytes, their public fingerprint, and key validation
//! that no weak key passes.
//!
//! Invariants: the bytes of a key stand in exactly one [`SecretCell`] per process, however
//! many handles there are; the cell is erased when the last handle goes; nothing here prints them.
//! Entropy comes in from the caller, and so do pages that are locked into memory
//! ([`use_cells`]); without those a cell is an ordinary heap allocation that is erased on drop.

use std::fmt;
use std::sync::Arc;

use once_cell::sync::OnceCell;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of a key as `TSSslTicketKeyUpdate` takes it: name 16, HMAC secret 16, AES-128 key 16.
pub const STEK_LEN: usize = 48;

/// Bytes of the part that stands in clear in every ticket (RFC 5077 section 4, `key_name`).
pub const NAME_LEN: usize = 16;

/// A place for one key's bytes, erased when it is dropped.
pub trait SecretCell: Send + Sync {
    /// The bytes, for reading.
    fn bytes(&self) -> &[u8; STEK_LEN];
    /// The bytes, for filling them in place.
    fn bytes_mut(&mut self) -> &mut [u8; STEK_LEN];
}

/// Makes a zeroed cell.
pub type CellMaker = fn() -> Box<dyn SecretCell>;

static CELLS: OnceCell<CellMaker> = OnceCell::new();

/// Has all keys made from now on live in cells of `maker`, for instance locked pages. The first
/// caller wins; the answer says whether that was this one.
pub fn use_cells(maker: CellMaker) -> bool {
    CELLS.set(maker).is_ok()
}

/// Erases itself when it is dropped.
struct HeapCell(Box<Zeroizing<[u8; STEK_LEN]>>);

impl SecretCell for HeapCell {
    fn bytes(&self) -> &[u8; STEK_LEN] {
        &self.0
    }
    fn bytes_mut(&mut self) -> &mut [u8; STEK_LEN] {
        &mut self.0
    }
}

fn heap_cell() -> Box<dyn SecretCell> {
    Box::new(HeapCell(Box::new(Zeroizing::new([0; STEK_LEN]))))
}

/// A session ticket encryption key. Cloning it makes another handle to the same bytes.
#[derive(Clone)]
pub struct Stek(Arc<Held>);

struct Held {
    cell: Box<dyn SecretCell>,
    /// Of the part that every ticket shows. Asked for at each look at a server's status, and made once.
    fingerprint: Fingerprint,
}

impl Stek {
    /// Makes a key whose bytes `fill` writes in place. Says nothing about their quality; see
    /// [`Stek::check`].
    pub fn fill_with<E>(
        fill: impl FnOnce(&mut [u8; STEK_LEN]) -> Result<(), E>,
    ) -> Result<Stek, E> {
        let mut cell = CELLS.get().copied().unwrap_or(heap_cell)();
        fill(cell.bytes_mut())?;
        let digest = openssl::sha::sha256(&cell.bytes()[..NAME_LEN]);
        let fingerprint = Fingerprint([digest[0], digest[1], digest[2], digest[3]]);
        Ok(Stek(Arc::new(Held { cell, fingerprint })))
    }

    /// A copy of `bytes`, whose own erasure is left to the caller. `None` unless there are
    /// exactly [`STEK_LEN`] of them.
    pub fn copy_from(bytes: &[u8]) -> Option<Stek> {
        Stek::fill_with(|cell| {
            if bytes.len() != STEK_LEN {
                return Err(());
            }
            cell.copy_from_slice(bytes);
            Ok(())
        })
        .ok()
    }

    /// The secret bytes. Whoever copies them answers for erasing the copy.
    pub fn expose(&self) -> &[u8; STEK_LEN] {
        self.0.cell.bytes()
    }

    /// The part that stands in clear in every ticket made with this key.
    pub fn name(&self) -> &[u8] {
        &self.expose()[..NAME_LEN]
    }

    /// The key's only public identity.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// Whether both handles lead to the same bytes or to equal ones, in constant time.
    pub fn same_bytes(&self, other: &Stek) -> bool {
        openssl::memcmp::eq(self.expose(), other.expose())
    }

    /// Whether these are the same keys in the same order.
    pub fn same_keys(these: &[Stek], those: &[Stek]) -> bool {
        these.len() == those.len()
            && these.iter().zip(those).all(|(this, that)| this.same_bytes(that))
    }

    /// Key validation for a single key; whether it is fit to stand beside others is for the
    /// key ring to say.
    ///
    /// # Errors
    /// Which weakness the key has.
    pub fn check(&self) -> Result<(), WeakKey> {
        let bytes = self.expose();
        let (name, rest) = bytes.split_at(NAME_LEN);
        let (hmac, aes) = rest.split_at(NAME_LEN);
        for (part, what) in [(name, Part::Name), (hmac, Part::Hmac), (aes, Part::Aes)] {
            if part.iter().all(|&b| b == 0) {
                return Err(WeakKey::Zero(what));
            }
            if part.iter().all(|&b| b == part[0]) {
                return Err(WeakKey::OneByte(what));
            }
            if openssl::memcmp::eq(&part[..8], &part[8..]) {
                return Err(WeakKey::EqualHalves(what));
            }
        }
        if openssl::memcmp::eq(name, hmac)
            || openssl::memcmp::eq(name, aes)
            || openssl::memcmp::eq(hmac, aes)
        {
            return Err(WeakKey::EqualParts);
        }
        Ok(())
    }
}

/// Prints the fingerprint, never the bytes.
impl fmt::Debug for Stek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stek({})", self.fingerprint())
    }
}

/// Writes the raw bytes: only for frames that travel inside mutual TLS and buffers that are
/// erased.
impl Serialize for Stek {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.expose())
    }
}

impl<'de> Deserialize<'de> for Stek {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Stek, D::Error> {
        struct InPlace;

        impl Visitor<'_> for InPlace {
            type Value = Stek;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{STEK_LEN} bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Stek, E> {
                Stek::copy_from(bytes).ok_or_else(|| E::invalid_length(bytes.len(), &self))
            }
        }

        deserializer.deserialize_bytes(InPlace)
    }
}

/// The first 8 hex digits of SHA-256 over a key's name.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Fingerprint([u8; 4]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One of the three parts of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `key_name` of RFC 5077.
    Name,
    /// The HMAC-SHA256 secret.
    Hmac,
    /// The AES-128 key.
    Aes,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Name => "name",
            Part::Hmac => "HMAC secret",
            Part::Aes => "AES key",
        })
    }
}

/// Why a key did not pass key validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WeakKey {
    /// A part is all zero.
    #[error("its {0} is all zero")]
    Zero(Part),
    /// A part repeats a single byte.
    #[error("its {0} repeats a single byte")]
    OneByte(Part),
    /// The two halves of a part are the same.
    #[error("the two halves of its {0} are equal")]
    EqualHalves(Part),
    /// Two parts are the same.
    #[error("two of its three parts are equal")]
    EqualParts,
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Fit for use: every byte another one.
    fn sound() -> [u8; STEK_LEN] {
        std::array::from_fn(|i| i as u8 + 1)
    }

    fn weakness(change: impl FnOnce(&mut [u8; STEK_LEN])) -> Option<WeakKey> {
        let mut bytes = sound();
        change(&mut bytes);
        Stek::copy_from(&bytes).unwrap().check().err()
    }

    const FINGERPRINT: &str = "5dfbabee";

    const PARTS: [(Part, std::ops::Range<usize>); 3] =
        [(Part::Name, 0..16), (Part::Hmac, 16..32), (Part::Aes, 32..48)];

    #[test]
    fn keys_are_the_same_by_every_byte_their_number_and_their_order() {
        let key = |place: usize| {
            let mut bytes = sound();
            bytes[place] ^= 1;
            Stek::copy_from(&bytes).unwrap()
        };
        let two = [key(0), key(STEK_LEN - 1)];
        assert!(Stek::same_keys(&two, &[key(0), key(STEK_LEN - 1)]));
        for others in [vec![key(0), key(1)], vec![key(STEK_LEN - 1), key(0)], vec![key(0)], vec![]]
        {
            assert!(!Stek::same_keys(&two, &others), "{others:?}");
            assert!(!Stek::same_keys(&others, &two), "{others:?}");
        }
        for place in 0..STEK_LEN {
            assert!(!Stek::same_keys(&[key(place)], &[Stek::copy_from(&sound()).unwrap()]));
        }
    }

    #[test]
    fn the_gate_looks_at_each_part_and_at_all_together() {
        assert_eq!(weakness(|_| {}), None);
        for (part, range) in PARTS {
            let all = |byte| {
                let range = range.clone();
                weakness(move |bytes| bytes[range].fill(byte))
            };
            assert_eq!(all(0), Some(WeakKey::Zero(part)));
            assert_eq!(all(7), Some(WeakKey::OneByte(part)));
            let halves = weakness(|bytes| {
                let (first, second) = bytes[range.clone()].split_at_mut(8);
                second.copy_from_slice(first);
            });
            assert_eq!(halves, Some(WeakKey::EqualHalves(part)));
            // One byte that differs is enough for each.
            let almost = |byte| {
                let range = range.clone();
                weakness(move |bytes| {
                    bytes[range.clone()].fill(byte);
                    bytes[range.start] = 99;
                })
            };
            assert_eq!((almost(0), almost(7)), (None, None));
        }
        for (one, other) in [(0, 16), (0, 32), (16, 32)] {
            let equal = weakness(|bytes| bytes.copy_within(one..one + 16, other));
            assert_eq!(equal, Some(WeakKey::EqualParts), "{one} {other}");
        }
    }

    #[test]
    fn only_a_whole_key_is_copied_and_its_name_is_its_first_part() {
        assert!(Stek::copy_from(&[1; 47]).is_none() && Stek::copy_from(&[1; 49]).is_none());
        let key = Stek::copy_from(&sound()).unwrap();
        assert_eq!(key.expose(), &sound());
        assert_eq!(key.name(), &sound()[..16]);
    }

    #[test]
    fn the_same_bytes_are_all_the_same_bytes() {
        let key = Stek::copy_from(&sound()).unwrap();
        assert!(key.same_bytes(&key.clone()));
        assert!(key.same_bytes(&Stek::copy_from(&sound()).unwrap()));
        for i in 0..STEK_LEN {
            let mut other = sound();
            other[i] ^= 1;
            assert!(!key.same_bytes(&Stek::copy_from(&other).unwrap()), "byte {i}");
        }
    }

    #[test]
    fn only_the_fingerprint_is_ever_printed() {
        let key = Stek::copy_from(&sound()).unwrap();
        // The first digits of what `sha256sum` says of the bytes 1 to 16.
        assert_eq!(key.fingerprint().to_string(), FINGERPRINT);
        assert_eq!(format!("{:?}", key.fingerprint()), FINGERPRINT);
        assert_eq!(format!("{key:?}"), format!("Stek({FINGERPRINT})"));
        let zero = Stek::copy_from(&[0; STEK_LEN]).unwrap().check().unwrap_err();
        assert_eq!(zero.to_string(), "its name is all zero");
        assert_eq!(
            WeakKey::OneByte(Part::Hmac).to_string(),
            "its HMAC secret repeats a single byte"
        );
        let halves = WeakKey::EqualHalves(Part::Aes).to_string();
        assert_eq!(halves, "the two halves of its AES key are equal");
    }

    #[test]
    fn a_key_travels_as_its_bytes_and_of_their_number_only() {
        use serde::de::value::{BytesDeserializer, Error};

        let read = |bytes: &[u8]| Stek::deserialize(BytesDeserializer::<Error>::new(bytes));
        assert!(read(&sound()).unwrap().same_bytes(&Stek::copy_from(&sound()).unwrap()));
        let short = read(&[1; 47]).unwrap_err().to_string();
        assert_eq!(short, "invalid length 47, expected 48 bytes");
    }

    #[test]
    fn keys_live_in_the_cells_of_the_first_who_gives_any() {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        fn counted() -> Box<dyn SecretCell> {
            MADE.fetch_add(1, Ordering::SeqCst);
            heap_cell()
        }
        // No other test here gives cells; theirs would be as good.
        assert!(use_cells(counted));
        assert!(!use_cells(heap_cell));
        let key = Stek::copy_from(&sound()).unwrap();
        assert!(MADE.load(Ordering::SeqCst) > 0);
        assert_eq!(key.expose(), &sound());
    }
}
