//! `state_dir`: what a box remembers, sealed in one small file, so that a fleet whose boxes are
//! all restarted at once keeps its keys.
//!
//! Off by default, because keys in a file are what this plugin otherwise avoids; meant for
//! memory-backed storage such as `/run/stek_share`. The file is sealed (AES-256-GCM) under a key
//! drawn from the box's private key by HKDF and bound to server id and history, so that it is
//! worth nothing to another box, or after the certificate's key is gone.
//!
//! What must hold: a file that is cut short, foreign, damaged, too open or too old is refused with
//! a line, and the box starts as if it were empty; the file never holds less than what this box
//! has answered for; where that cannot be had, there is no file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use openssl::rand::rand_bytes;
use openssl::symm::{decrypt_aead, encrypt_aead, Cipher};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::outside::Disk;
use crate::consensus::saved::Saved;
use crate::consensus::wire::{encode, millis, Malformed};
use crate::core::key_ring::HistoryId;
use crate::core::server_id::ServerId;
use crate::transport::tls::Tls;

/// Begins every state file.
const MAGIC: &[u8; 12] = b"stek_share\0\x01";

/// In clear before the sealed part, and authenticated with it: magic, server id, history.
const HEAD_LEN: usize = MAGIC.len() + 4 + 16;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// The most that is read: the largest server list and all keys are well below.
const MAX_FILE: u64 = 4 << 20;

/// Tells this use of the private key from any other.
const PURPOSE: &[u8] = b"stek_share state_dir";

/// When something was saved, on clocks that outlive a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The machine's present boot.
    pub boot: String,
    /// Since then, in milliseconds.
    pub uptime_ms: u64,
    /// Since 1970, in milliseconds; looked at only after a reboot.
    pub wall_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Content {
    stamp: Stamp,
    saved: Saved,
}

impl Content {
    /// Reads what was sealed in a file of this history, and checks that a box could have
    /// remembered it.
    fn read(plain: &[u8], history: &[u8]) -> Result<Content, Unusable> {
        let content: Content =
            postcard::from_bytes(plain).map_err(|e| Unusable::Content(Malformed::Encoding(e)))?;
        let inner = content.saved.agreed.ring.history().map(HistoryId::to_bytes);
        if inner.as_ref().map(|h| &h[..]) != Some(history) {
            return Err(Unusable::Seal);
        }
        content.saved.check().map_err(Unusable::Content)?;
        Ok(content)
    }
}

/// The readers of this module for `fuzz/`, which hands them bytes that no file could get past the
/// seal. Nothing else uses it.
#[doc(hidden)]
pub mod door {
    use super::*;

    /// What the bytes of a whole file hold for the box `id`, or why they are not used.
    pub fn open(bytes: &[u8], id: ServerId, tls: &Tls) -> Result<Saved, String> {
        let content = file(id).open(bytes, tls).map_err(|why| why.to_string())?;
        Ok(content.saved)
    }

    /// What the bytes inside the seal hold, or why they are not used.
    pub fn read(plain: &[u8], history: HistoryId) -> Result<Saved, String> {
        let content = Content::read(plain, &history.to_bytes()).map_err(|why| why.to_string())?;
        Ok(content.saved)
    }

    /// The bytes that are sealed for `saved`, as of a fixed moment.
    pub fn plain(saved: Saved) -> Option<Zeroizing<Vec<u8>>> {
        let stamp = Stamp { boot: "boot".to_owned(), uptime_ms: 1_000, wall_ms: 2_000 };
        encode(&Content { stamp, saved })
    }

    /// The bytes of a whole file around `plain`.
    pub fn seal(plain: &[u8], history: HistoryId, id: ServerId, tls: &Tls) -> io::Result<Vec<u8>> {
        file(id).seal(plain, Some(history), tls)
    }

    fn file(id: ServerId) -> StateFile {
        StateFile { path: PathBuf::new(), id, disk: Arc::new(Files) }
    }
}

/// Why a state file is not used.
#[derive(Debug, Error)]
pub enum Unusable {
    /// The system says so.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Whose it is, and whose it should be.
    #[error("it is no regular file, or belongs to uid {0} instead of {1}")]
    Owner(u32, u32),
    /// Others may read or write it.
    #[error("its mode is {0:o}; nobody but its owner may read or write it")]
    Mode(u32),
    /// No state file is that long.
    #[error("it is longer than {MAX_FILE} bytes")]
    TooLong,
    /// It is not laid out as it should be.
    #[error("it is cut short or no state file of this version")]
    Form,
    /// It is another box's.
    #[error("it belongs to server_id {0}")]
    OtherServer(ServerId),
    /// It does not open.
    #[error("it is damaged, or was sealed with another private key than server_key_file")]
    Seal,
    /// It opens, and holds what no box could have saved.
    #[error("its content makes no sense: {0}")]
    Content(Malformed),
    /// Its age is not known.
    #[error("the clock stands before the time at which it was saved")]
    Clock,
    /// Its age in seconds.
    #[error("its key is {0} s old, more than max_key_age")]
    TooOld(u64),
}

/// One box's state file.
pub(super) struct StateFile {
    path: PathBuf,
    id: ServerId,
    disk: Arc<dyn Disk>,
}

impl StateFile {
    /// The file of this box in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be had.
    pub fn new(dir: &Path, id: ServerId, disk: Arc<dyn Disk>) -> io::Result<StateFile> {
        disk.prepare(dir)?;
        Ok(StateFile { path: dir.join(format!("server-{id}.state")), id, disk })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was saved, and how long ago; `None` if nothing was.
    ///
    /// # Errors
    /// Why it is not used.
    pub fn load(
        &self,
        tls: &Tls,
        max_key_age: Duration,
    ) -> Result<Option<(Saved, Duration)>, Unusable> {
        let bytes = match self.disk.read(&self.path) {
            Err(Unusable::Io(e)) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let content = self.open(&bytes, tls)?;
        let away = away(&content.stamp, &self.disk.stamp()?).ok_or(Unusable::Clock)?;
        let age = Duration::from_millis(content.saved.current_age_ms).saturating_add(away);
        match age > max_key_age {
            true => Err(Unusable::TooOld(age.as_secs())),
            false => Ok(Some((content.saved, away))),
        }
    }

    /// Saves, in place of what was saved before.
    ///
    /// # Errors
    /// It could not be saved; what was saved before is then out of date.
    pub fn save(&self, saved: Saved, tls: &Tls) -> io::Result<()> {
        let history = saved.agreed.ring.history();
        let content = Content { stamp: self.disk.stamp()?, saved };
        let plain = encode(&content).ok_or_else(|| io::Error::other("cannot be encoded"))?;
        let bytes = self.seal(&plain, history, tls)?;
        self.disk.write(&self.path, &[&bytes])
    }

    /// The file's bytes for this content.
    fn seal(&self, plain: &[u8], history: Option<HistoryId>, tls: &Tls) -> io::Result<Vec<u8>> {
        let head = self.head(history);
        let key = self.sealing_key(tls, &head)?;
        let mut nonce = [0; NONCE_LEN];
        rand_bytes(&mut nonce)?;
        let mut tag = [0; TAG_LEN];
        let cipher = Cipher::aes_256_gcm();
        let sealed = encrypt_aead(cipher, &*key, Some(&nonce), &head, plain, &mut tag)?;
        Ok([&head[..], &nonce, &tag, &sealed].concat())
    }

    /// Removes what was saved, because it is no longer true.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(&self) -> io::Result<()> {
        self.disk.remove(&self.path)
    }

    fn open(&self, bytes: &[u8], tls: &Tls) -> Result<Content, Unusable> {
        let (head, rest) = bytes.split_at_checked(HEAD_LEN).ok_or(Unusable::Form)?;
        let (nonce, rest) = rest.split_at_checked(NONCE_LEN).ok_or(Unusable::Form)?;
        let (tag, sealed) = rest.split_at_checked(TAG_LEN).ok_or(Unusable::Form)?;
        let named = head.strip_prefix(MAGIC.as_slice()).ok_or(Unusable::Form)?;
        let (id, history) = named.split_first_chunk().ok_or(Unusable::Form)?;
        let id = ServerId(u32::from_be_bytes(*id));
        if id != self.id {
            return Err(Unusable::OtherServer(id));
        }
        let key = self.sealing_key(tls, head)?;
        let cipher = Cipher::aes_256_gcm();
        let plain = decrypt_aead(cipher, &*key, Some(nonce), head, sealed, tag);
        let plain = Zeroizing::new(plain.map_err(|_| Unusable::Seal)?);
        Content::read(&plain, history)
    }

    fn head(&self, history: Option<HistoryId>) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&self.id.0.to_be_bytes());
        head.extend_from_slice(&history.map_or([0; 16], HistoryId::to_bytes));
        head
    }

    fn sealing_key(&self, tls: &Tls, head: &[u8]) -> io::Result<Zeroizing<[u8; 32]>> {
        let mut purpose = PURPOSE.to_vec();
        purpose.extend_from_slice(head);
        Ok(tls.derive_key(&purpose)?)
    }
}

/// The file system, and Linux' clocks.
pub struct Files;

impl Disk for Files {
    fn prepare(&self, dir: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    fn doubts_about(&self, dir: &Path) -> Vec<String> {
        doubts_about(dir)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, Unusable> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
        let meta = file.metadata()?;
        let ours = fs::metadata("/proc/self")?.uid();
        if !meta.is_file() || meta.uid() != ours {
            return Err(Unusable::Owner(meta.uid(), ours));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(Unusable::Mode(meta.mode() & 0o7777));
        }
        if meta.len() > MAX_FILE {
            return Err(Unusable::TooLong);
        }
        read_bounded(file)
    }

    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let fresh = path.with_extension("new");
        // What an interrupted run left might have another mode, which opening would not change.
        let _ = fs::remove_file(&fresh);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_data()?;
        fs::rename(&fresh, path)?;
        sync_entries(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Ok(()) => sync_entries(path),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Stamp::now()
    }
}

/// Has the names in the directory of `path` outlive a power cut: the file of before would have
/// this box vote a second time in a term, or bring back a key that was given up.
fn sync_entries(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn read_bounded(file: File) -> Result<Vec<u8>, Unusable> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(Unusable::TooLong),
        false => Ok(bytes),
    }
}

impl Stamp {
    fn now() -> io::Result<Stamp> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let uptime = fs::read_to_string("/proc/uptime")?;
        let seconds: f64 = uptime
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| io::Error::other("/proc/uptime is not as it should be"))?;
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Stamp { boot, uptime_ms: (seconds * 1000.0) as u64, wall_ms: millis(wall) })
    }
}

/// How long a box was away: by the machine's uptime, or across a reboot by the wall clock, which
/// then must not have gone back.
fn away(saved: &Stamp, now: &Stamp) -> Option<Duration> {
    let (from, to) = match saved.boot == now.boot {
        true => (saved.uptime_ms, now.uptime_ms),
        false => (saved.wall_ms, now.wall_ms),
    };
    to.checked_sub(from).map(Duration::from_millis)
}

/// What there is to say against a directory as a place for keys.
fn doubts_about(dir: &Path) -> Vec<String> {
    let mut doubts = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let real = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    match file_system(&mounts, &real).as_deref() {
        Some("tmpfs" | "ramfs") => {}
        other => doubts.push(format!(
            "state_dir {} is on {}, not on memory-backed storage: keys that were in it may be \
             recovered from the disk long after they retired, and with them recorded sessions; \
             use a directory on tmpfs such as /run/stek_share",
            dir.display(),
            other.unwrap_or("an unknown file system")
        )),
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() > 1 {
        doubts.push(format!(
            "swap is on: what is in state_dir {} may be written to it and recovered from there; \
             turn swap off or leave state_dir unset",
            dir.display()
        ));
    }
    doubts
}

/// The type of the file system that holds `path`, from the text of /proc/self/mountinfo: the one
/// of the longest mount point that is above it, the last if there are several.
fn file_system(mounts: &str, path: &Path) -> Option<String> {
    let mut found: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        let kind = after.split(' ').next()?;
        let above = path.starts_with(Path::new(point));
        if above && found.is_none_or(|(length, _)| point.len() >= length) {
            found = Some((point.len(), kind));
        }
    }
    found.map(|(_, kind)| kind.to_owned())
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

    #[test]
    fn the_file_system_is_that_of_the_longest_mount_point() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      23 22 0:5 / /run rw shared:1 - tmpfs tmpfs rw\n\
                      24 23 0:6 / /run/user rw - ext4 /dev/sdb rw\n";
        let of = |path: &str| file_system(mounts, Path::new(path));
        assert_eq!(of("/run/stek_share").as_deref(), Some("tmpfs"));
        assert_eq!(of("/run/user/1").as_deref(), Some("ext4"));
        assert_eq!(of("/runner").as_deref(), Some("ext4"));
        assert_eq!(file_system("", Path::new("/run")), None);
    }

    #[test]
    fn a_stamp_can_be_had_here() {
        let (one, other) = (Stamp::now().unwrap(), Stamp::now().unwrap());
        assert_eq!(one.boot, other.boot);
        assert!(away(&one, &other).is_some());
    }
}
