//! `state_dir`: what a box knows of the group's keys, sealed in one small file, so that a fleet whose
//! boxes are all restarted at once keeps its keys.
//!
//! Off by default, because keys in a file are what this plugin otherwise avoids; meant for
//! memory-backed storage such as `/run/stek_share`. The file is sealed (AES-256-GCM) under a key
//! drawn from the box's private key by HKDF and bound to server id and history, so that it is
//! worth nothing to another box, or after the certificate's key is gone.
//!
//! What must hold: a file that is cut short, foreign, damaged, too open or too old is refused with
//! a line, and the box starts without it; no call of the file system's runs on a thread that
//! anything else waits for. When to read and to write is for [`super::records`].

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use openssl::rand::rand_bytes;
use openssl::symm::{decrypt_aead, encrypt_aead, Cipher};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::outside::{Disk, Reply};
use crate::consensus::wire::{check_record, encode, millis, Malformed};
use crate::core::agreed::Refusal;
use crate::core::key_ring::HistoryId;
use crate::core::record::Record;
use crate::core::roster::Roster;
use crate::core::server_id::ServerId;
use crate::transport::tls::Tls;

/// Begins every state file.
const MAGIC: &[u8; 12] = b"stek_share\0\x02";

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

/// What is kept.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// The keys.
    pub record: Record,
    /// The agreed server list, if there was one: a box that had left it has no use for the rest.
    pub roster: Option<Roster>,
}

impl Saved {
    /// Whether this is something that a box could have saved.
    fn check(&self) -> Result<(), Malformed> {
        check_record(&self.record)?;
        let roster = self.roster.as_ref().map_or(Ok(()), Roster::check);
        roster.map_err(|why| Malformed::State(Refusal::Roster(why)))
    }
}

#[derive(Serialize, Deserialize)]
struct Content {
    stamp: Stamp,
    saved: Saved,
}

impl Content {
    /// Reads what was sealed in a file of this history, and checks that a box could have saved it.
    fn read(plain: &[u8], history: &[u8]) -> Result<Content, Unusable> {
        let content: Content =
            postcard::from_bytes(plain).map_err(|e| Unusable::Content(Malformed::Encoding(e)))?;
        let inner = content.saved.record.ring.history().map(HistoryId::to_bytes);
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
    pub use super::Saved;
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
    /// The saved list no longer has this box.
    #[error("this server had left the group when it was saved")]
    Left,
}

/// One box's state file.
#[derive(Clone)]
pub(super) struct StateFile {
    path: PathBuf,
    id: ServerId,
    disk: Arc<dyn Disk>,
}

impl StateFile {
    /// The file of this box in `dir`.
    pub fn new(dir: &Path, id: ServerId, disk: Arc<dyn Disk>) -> StateFile {
        StateFile { path: dir.join(format!("server-{id}.state")), id, disk }
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
    ) -> Result<Option<(Record, Duration)>, Unusable> {
        let bytes = match self.disk.read(&self.path).await {
            Err(Unusable::Io(e)) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let Content { stamp, saved: Saved { mut record, roster } } = self.open(&bytes, tls)?;
        if roster.is_some_and(|list| list.get(self.id).is_none()) {
            return Err(Unusable::Left);
        }
        let away = away(&stamp, &self.disk.stamp()?).ok_or(Unusable::Clock)?;
        record.age_ms = record.age_ms.saturating_add(millis(away));
        match record.age() > max_key_age {
            true => Err(Unusable::TooOld(record.age().as_secs())),
            false => Ok(Some((record, away))),
        }
    }

    /// Saves, in place of what was saved before. Sealed at once; the disk is for whoever awaits it.
    ///
    /// # Errors
    /// It could not be sealed.
    pub fn save(&self, saved: Saved, tls: &Tls) -> io::Result<Reply<io::Result<()>>> {
        let history = saved.record.ring.history();
        let content = Content { stamp: self.disk.stamp()?, saved };
        let plain = encode(&content).ok_or_else(|| io::Error::other("cannot be encoded"))?;
        Ok(self.disk.write(&self.path, self.seal(&plain, history, tls)?))
    }

    /// Removes what was saved, because it holds keys that must not come back.
    pub fn remove(&self) -> Reply<io::Result<()>> {
        self.disk.remove(&self.path)
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

/// The file system, each call of which has a thread of its own, and Linux' clocks.
pub struct Files;

/// Has a thread of its own do what may take for ever.
fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Reply<io::Result<T>> {
    let (sender, answer) = oneshot::channel();
    let work = move || {
        // Nobody may be waiting any more.
        let _ = sender.send(work());
    };
    let begun = thread::Builder::new().name("stek_disk".to_owned()).spawn(work);
    Box::pin(async move {
        begun?;
        answer.await.map_err(|_| io::Error::other("an internal error ended the attempt"))
    })
}

impl Disk for Files {
    fn doubts_about(&self, dir: &Path) -> Reply<Vec<String>> {
        let dir = dir.to_owned();
        let doubts = on_thread(move || doubts_about(&dir));
        Box::pin(async move { doubts.await.unwrap_or_default() })
    }

    fn read(&self, path: &Path) -> Reply<Result<Vec<u8>, Unusable>> {
        let path = path.to_owned();
        let bytes = on_thread(move || read(&path));
        Box::pin(async move { bytes.await? })
    }

    fn write(&self, path: &Path, bytes: Vec<u8>) -> Reply<io::Result<()>> {
        let path = path.to_owned();
        let done = on_thread(move || write(&path, &bytes));
        Box::pin(async move { done.await? })
    }

    fn remove(&self, path: &Path) -> Reply<io::Result<()>> {
        let path = path.to_owned();
        let done = on_thread(move || remove(&path));
        Box::pin(async move { done.await? })
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Stamp::now()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Unusable> {
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

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    let fresh = path.with_extension("new");
    // What an interrupted run left might have another mode, which opening would not change.
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&fresh, path)?;
    sync_entries(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    sync_entries(path)
}

/// Has the names in the directory of `path` outlive a power cut: the file of before might bring
/// back a key that was given up.
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

    #[tokio::test]
    async fn what_a_disk_is_asked_for_runs_on_threads_of_its_own() {
        let here = thread::current().id();
        let there = on_thread(|| thread::current().id()).await.unwrap();
        assert_ne!(here, there);
        // One that never ends is left behind by whoever no longer awaits it.
        let (_held, never) = std::sync::mpsc::channel::<()>();
        let hanging = on_thread(move || never.recv());
        assert!(tokio::time::timeout(Duration::from_millis(1), hanging).await.is_err());
    }

    #[test]
    fn a_stamp_can_be_had_here() {
        let (one, other) = (Stamp::now().unwrap(), Stamp::now().unwrap());
        assert_eq!(one.boot, other.boot);
        assert!(away(&one, &other).is_some());
    }
}
