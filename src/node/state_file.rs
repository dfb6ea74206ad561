//! `state_dir`: what a server knows of the group's keys, sealed in one small file, so that a fleet whose
//! servers are all restarted at once keeps its keys.
//!
//! Off by default, because keys in a file are what this plugin otherwise avoids; meant for
//! memory-backed storage such as `/run/stek_share`. The file is sealed (AES-256-GCM) under a key
//! drawn from the server's private key by HKDF and bound to server id and cluster incarnation, so that it is
//! worth nothing to another server, or after the certificate's key is gone.
//!
//! Invariants: a file that is cut short, foreign, damaged, too open or too old is refused with a
//! line, and the server starts without it. When to read and to write is for [`super::records`], how
//! for [`super::disk`].

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openssl::rand::rand_bytes;
use openssl::symm::{decrypt_aead, encrypt_aead, Cipher};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::disk::{path_in, Disk, Stamp, Unusable};
use super::network::Reply;
use crate::core::agreed::Record;
use crate::core::agreement::ranked_record::{Rank, RankedRecord};
use crate::core::key_ring::ClusterId;
use crate::core::moment::millis;
use crate::core::server_id::ServerId;
use crate::rpc::{check_ranked_record, encode, Malformed};
use crate::transport::tls::Tls;

/// Begins every state file.
const MAGIC: &[u8; 12] = b"stek_share\0\x03";

/// In clear before the sealed part, and authenticated with it: magic, server id, cluster incarnation.
const HEAD_LEN: usize = MAGIC.len() + 4 + 16;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// Tells this use of the private key from any other.
const PURPOSE: &[u8] = b"stek_share state_dir";

/// What is kept: what this server would promise with at a founding.
pub type Saved = RankedRecord<Record>;

#[derive(Serialize, Deserialize)]
struct Content {
    stamp: Stamp,
    saved: Saved,
}

impl Content {
    /// Reads what was sealed in a file of this cluster incarnation, and checks that a server could have saved it.
    fn read(plain: &[u8], cluster_id: &[u8]) -> Result<Content, Unusable> {
        let content: Content =
            postcard::from_bytes(plain).map_err(|e| Unusable::Content(Malformed::Encoding(e)))?;
        let inner = content.saved.record.agreed.ring.cluster_id().map(ClusterId::to_bytes);
        if inner.as_ref().map(|h| &h[..]) != Some(cluster_id) {
            return Err(Unusable::Seal);
        }
        check_ranked_record(&content.saved).map_err(Unusable::Content)?;
        Ok(content)
    }
}

/// The readers of this module for `fuzz/`, which hands them bytes that no file could get past the
/// seal. Nothing else uses it.
#[doc(hidden)]
pub mod fuzzing {
    pub use super::Saved;
    use super::*;
    use crate::node::disk::Files;

    /// What the bytes of a whole file hold for the server `id`, or why they are not used.
    pub fn open(bytes: &[u8], id: ServerId, tls: &Tls) -> Result<Saved, String> {
        let content = file(id).open(bytes, tls).map_err(|why| why.to_string())?;
        Ok(content.saved)
    }

    /// What the bytes inside the seal hold, or why they are not used.
    pub fn read(plain: &[u8], cluster_id: ClusterId) -> Result<Saved, String> {
        let content =
            Content::read(plain, &cluster_id.to_bytes()).map_err(|why| why.to_string())?;
        Ok(content.saved)
    }

    /// The bytes that are sealed for `saved`, as of a fixed moment.
    pub fn plain(saved: Saved) -> Option<Zeroizing<Vec<u8>>> {
        let stamp = Stamp { boot: "boot".to_owned(), uptime_ms: 1_000, wall_ms: 2_000 };
        encode(&Content { stamp, saved })
    }

    /// The bytes of a whole file around `plain`.
    pub fn seal(
        plain: &[u8],
        cluster_id: ClusterId,
        id: ServerId,
        tls: &Tls,
    ) -> io::Result<Vec<u8>> {
        file(id).seal(plain, Some(cluster_id), tls)
    }

    fn file(id: ServerId) -> StateFile {
        StateFile { path: PathBuf::new(), id, disk: Arc::new(Files) }
    }
}

/// How far the file is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// How new what is in it is.
    pub rank: Rank,
    /// Whether the last write worked and was quick, so that one may wait for the next.
    pub well: bool,
    /// Why the file was not read, as it was logged; until a write worked.
    pub unread: Option<String>,
    /// Why it was not written, the same.
    pub unwritten: Option<String>,
}

/// One server's state file.
#[derive(Clone)]
pub(super) struct StateFile {
    path: PathBuf,
    id: ServerId,
    disk: Arc<dyn Disk>,
}

impl StateFile {
    /// The file of this server in `dir`.
    pub fn new(dir: &Path, id: ServerId, disk: Arc<dyn Disk>) -> StateFile {
        StateFile { path: path_in(dir, id), id, disk }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What there is to say against its place.
    pub fn doubts(&self) -> Reply<Vec<String>> {
        self.disk.doubts_about(self.path.parent().unwrap_or(&self.path))
    }

    /// The keys that were saved, as old as they are now, and how long ago that was; `None` if
    /// nothing was saved.
    ///
    /// # Errors
    /// Why it is not used.
    pub async fn load(
        &self,
        tls: &Tls,
        max_key_age: Duration,
    ) -> Result<Option<(Saved, Duration)>, Unusable> {
        let bytes = match self.disk.read(&self.path).await {
            Err(Unusable::Io(e)) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let Content { stamp, mut saved } = self.open(&bytes, tls)?;
        let list = saved.record.agreed.server_list.as_ref();
        if list.is_some_and(|list| list.get(self.id).is_none()) {
            return Err(Unusable::Left);
        }
        let away = away(&stamp, &self.disk.stamp()?).ok_or(Unusable::Clock)?;
        saved.record = saved.record.later(millis(away));
        let age = saved.record.age();
        if age > max_key_age {
            Err(Unusable::TooOld(age.as_secs()))
        } else {
            Ok(Some((saved, away)))
        }
    }

    /// Saves, in place of what was saved before. Sealed at once; the disk is for whoever awaits it.
    ///
    /// # Errors
    /// It could not be sealed.
    pub fn save(&self, saved: Saved, tls: &Tls) -> io::Result<Reply<io::Result<()>>> {
        let cluster_id = saved.record.agreed.ring.cluster_id();
        let content = Content { stamp: self.disk.stamp()?, saved };
        let plain = encode(&content).ok_or_else(|| io::Error::other("cannot be encoded"))?;
        Ok(self.disk.write(&self.path, self.seal(&plain, cluster_id, tls)?))
    }

    /// Removes what was saved, because it holds keys that must not come back.
    pub fn remove(&self) -> Reply<io::Result<()>> {
        self.disk.remove(&self.path)
    }

    /// The file's bytes for this content.
    fn seal(&self, plain: &[u8], cluster_id: Option<ClusterId>, tls: &Tls) -> io::Result<Vec<u8>> {
        let head = self.head(cluster_id);
        let key = self.sealing_key(tls, &head)?;
        let mut nonce = [0; NONCE_LEN];
        rand_bytes(&mut nonce)?;
        let mut tag = [0; TAG_LEN];
        let cipher = Cipher::aes_256_gcm();
        let sealed = encrypt_aead(cipher, &key, Some(&nonce), &head, plain, &mut tag)?;
        Ok([&head[..], &nonce, &tag, &sealed].concat())
    }

    fn open(&self, bytes: &[u8], tls: &Tls) -> Result<Content, Unusable> {
        let (head, rest) = bytes.split_at_checked(HEAD_LEN).ok_or(Unusable::Form)?;
        let (nonce, rest) = rest.split_at_checked(NONCE_LEN).ok_or(Unusable::Form)?;
        let (tag, sealed) = rest.split_at_checked(TAG_LEN).ok_or(Unusable::Form)?;
        let named = head.strip_prefix(MAGIC.as_slice()).ok_or(Unusable::Form)?;
        let (id, cluster_id) = named.split_first_chunk().ok_or(Unusable::Form)?;
        let id = ServerId(u32::from_be_bytes(*id));
        if id != self.id {
            return Err(Unusable::OtherServer(id));
        }
        let key = self.sealing_key(tls, head)?;
        let cipher = Cipher::aes_256_gcm();
        let plain = decrypt_aead(cipher, &key, Some(nonce), head, sealed, tag);
        let plain = Zeroizing::new(plain.map_err(|_| Unusable::Seal)?);
        Content::read(&plain, cluster_id)
    }

    fn head(&self, cluster_id: Option<ClusterId>) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&self.id.0.to_be_bytes());
        head.extend_from_slice(&cluster_id.map_or([0; 16], ClusterId::to_bytes));
        head
    }

    fn sealing_key(&self, tls: &Tls, head: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut purpose = PURPOSE.to_vec();
        purpose.extend_from_slice(head);
        Ok(tls.derive_key(&purpose)?)
    }
}

/// How long a server was away: by the machine's uptime, or across a reboot by the wall clock, which
/// then must not have gone back.
fn away(saved: &Stamp, now: &Stamp) -> Option<Duration> {
    let (from, to) = if saved.boot == now.boot {
        (saved.uptime_ms, now.uptime_ms)
    } else {
        (saved.wall_ms, now.wall_ms)
    };
    to.checked_sub(from).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(boot: &str, uptime_ms: u64, wall_ms: u64) -> Stamp {
        Stamp { boot: boot.to_owned(), uptime_ms, wall_ms }
    }

    #[test]
    fn within_one_boot_the_wall_clock_does_not_count() {
        let saved = stamp("a", 5_000, 900_000);
        assert_eq!(away(&saved, &stamp("a", 7_000, 0)), Some(Duration::from_secs(2)));
        assert_eq!(away(&saved, &stamp("a", 4_000, 999_000)), None);
    }

    #[test]
    fn across_a_reboot_it_does_and_must_not_have_gone_back() {
        let saved = stamp("a", 5_000, 900_000);
        assert_eq!(away(&saved, &stamp("b", 10, 960_000)), Some(Duration::from_secs(60)));
        assert_eq!(away(&saved, &stamp("b", 10, 899_999)), None);
    }
}
