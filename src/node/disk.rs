//! The disk that `state_dir` is on, and the machine's clocks that outlive a process.
//!
//! Leaves to others what is written and when. Invariants: no call of the file system's runs on a
//! thread that anything else waits for; a file that others may read or write is not read.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::oneshot;

use super::network::Reply;
use crate::core::moment::millis;
use crate::core::server_id::ServerId;
use crate::rpc::Malformed;

/// The most that is read: the largest server list and all keys are well below.
const MAX_FILE: u64 = 4 << 20;

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

/// Keeps a server's state file, and reads the machine's clocks that it is stamped by. What a disk is
/// asked for may take for ever, and holds up nobody who does not await it.
pub trait Disk: Send + Sync + 'static {
    /// What there is to say against a directory as a place for keys.
    fn doubts_about(&self, dir: &Path) -> Reply<Vec<String>>;

    /// A file's bytes.
    ///
    /// # Errors
    /// It cannot be read, or others may read or write it.
    fn read(&self, path: &Path) -> Reply<Result<Vec<u8>, Unusable>>;

    /// Puts a file of these bytes in the place of what was there, as a whole or not at all. Makes
    /// the directory if it is not there.
    ///
    /// # Errors
    /// It could not be written; what was there may still be.
    fn write(&self, path: &Path, bytes: Vec<u8>) -> Reply<io::Result<()>>;

    /// Removes a file.
    ///
    /// # Errors
    /// It is still there; there having been none is no error.
    fn remove(&self, path: &Path) -> Reply<io::Result<()>>;

    /// The present, on clocks that outlive a process.
    ///
    /// # Errors
    /// The system does not tell.
    fn stamp(&self) -> io::Result<Stamp>;
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
    /// It is another server's.
    #[error("it belongs to server_id {0}")]
    OtherServer(ServerId),
    /// It does not open.
    #[error("it is damaged, or was sealed with another private key than server_key_file")]
    Seal,
    /// It opens, and holds what no server could have saved.
    #[error("its content makes no sense: {0}")]
    Content(Malformed),
    /// Its age is not known.
    #[error("the clock stands before the time at which it was saved")]
    Clock,
    /// Its age in seconds.
    #[error("its key is {0} s old, more than max_key_age")]
    TooOld(u64),
    /// The saved list no longer has this server.
    #[error("this server had left the group when it was saved")]
    Left,
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
    // Without O_NONBLOCK a pipe in its place would wait for a writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    let ours = fs::metadata("/proc/thread-self")?.uid();
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

/// Removes what [`read`] might read. What it would never read may stay: nothing comes back by it.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_entries(path),
        // A read-only file system says that it is one also of a file that is not there.
        Err(error) => match read(path) {
            Ok(_) => Err(error),
            Err(Unusable::Io(why)) if why.kind() != ErrorKind::NotFound => Err(error),
            Err(_) => Ok(()),
        },
    }
}

/// Has the names in the directory of `path` outlive a power cut: the file of before might bring
/// back a key that was given up.
fn sync_entries(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn read_bounded(file: File) -> Result<Vec<u8>, Unusable> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        Err(Unusable::TooLong)
    } else {
        Ok(bytes)
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

/// What an operator can do about a file that is not written.
const REMEDY: &str = "make state_dir a directory with room that belongs to the user that runs \
                      Traffic Server; until then only other servers can give this one the keys \
                      after a restart";

/// Where the file of a server in `dir` is.
pub(super) fn path_in(dir: &Path, id: ServerId) -> PathBuf {
    dir.join(format!("server-{id}.state"))
}

/// What is said of a file that was not written.
pub(super) fn unwritten(path: &Path, why: &dyn fmt::Display) -> String {
    format!("state file {} cannot be written: {why}; {REMEDY}", path.display())
}

/// The same of one whose writing hangs.
pub(super) fn hanging(path: &Path, seconds: u64) -> String {
    let path = path.display();
    format!("state file {path}: the disk has not taken it for {seconds} s; {REMEDY}")
}

/// What is said of a file that was not read.
pub(super) fn unread(path: &Path, why: &dyn fmt::Display) -> String {
    format!(
        "state file {} is not used: {why}; starting without it, and putting a new one in its place as \
         soon as this server has the group's keys",
        path.display()
    )
}

/// What a server that starts now would say of its `state_dir`, as far as it can be told without its keys
/// and without a write. `may_write_in` asks the system for the rights of whoever is meant.
pub fn foresee(
    dir: &Path,
    id: ServerId,
    may_write_in: impl Fn(&Path) -> io::Result<()>,
) -> Vec<String> {
    let path = path_in(dir, id);
    let mut told = Vec::new();
    match read(&path) {
        Ok(_) => {}
        Err(Unusable::Io(why)) if why.kind() == ErrorKind::NotFound => {}
        Err(why) => told.push(unread(&path, &why)),
    }
    let writable = match fs::metadata(dir) {
        Err(why) if why.kind() == ErrorKind::NotFound => dir.parent().map_or(Ok(()), &may_write_in),
        Err(why) => Err(why),
        Ok(found) if !found.is_dir() => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        Ok(_) if path.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        Ok(_) => may_write_in(dir),
    };
    told.extend(writable.err().map(|why| unwritten(&path, &why)));
    told.extend(doubts_about(dir));
    told
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
    use std::time::Duration;

    use super::*;

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
    fn what_would_never_be_read_need_not_be_removed() {
        let top = std::env::temp_dir().join(format!("stek-remove-{}", std::process::id()));
        fs::create_dir_all(top.join("a directory")).unwrap();
        assert!(remove(&top.join("none")).is_ok() && remove(&top.join("a directory")).is_ok());
        // Nothing can be removed there, whoever asks, as on a read-only file system.
        let fixed = Path::new("/proc/self/limits");
        assert!(fs::remove_file(fixed).is_err() && remove(fixed).is_ok(), "others may read it");
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn a_stamp_can_be_had_here() {
        let (one, other) = (Stamp::now().unwrap(), Stamp::now().unwrap());
        assert_eq!(one.boot, other.boot);
        assert!(one.uptime_ms <= other.uptime_ms);
    }
}
