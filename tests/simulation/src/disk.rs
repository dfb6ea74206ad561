//! A server's disk: a few files in memory, and the machine's clocks for stamps. It can be slow, hang, be
//! full, lose all that was on it, and bring back what was on it before; what was written is there as
//! a whole or not at all, as the plugin's real files are, which are renamed into place.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stek_share::node::environment::{Disk, Reply, Stamp, Unusable};
use tokio::time::sleep;

use crate::system;

/// See the module's head.
#[derive(Default)]
pub struct SimulatedDisk(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// What a backup holds.
    backup: BTreeMap<PathBuf, Vec<u8>>,
    broken: bool,
    /// How long each read and write takes, in nanoseconds.
    slow: u64,
    boots: u64,
    /// The monotonic clock at the last boot.
    booted: u64,
    /// How long the machine has been suspended since then, in nanoseconds.
    slept: u64,
}

impl SimulatedDisk {
    /// Has writes fail, or work again.
    pub fn set_broken(&self, broken: bool) {
        self.lock().broken = broken;
    }

    /// Has each read and write take this many nanoseconds.
    pub fn set_slow(&self, slow: u64) {
        self.lock().slow = slow;
    }

    /// Makes a backup of all files.
    pub fn back_up(&self) {
        let mut inner = self.lock();
        inner.backup = inner.files.clone();
    }

    /// Puts the files of the backup in the place of the present ones.
    pub fn roll_back(&self) {
        let mut inner = self.lock();
        inner.files = inner.backup.clone();
    }

    /// Loses all files.
    pub fn wipe(&self) {
        self.lock().files.clear();
    }

    /// The machine boots, its monotonic clock showing `now`.
    pub fn boot(&self, now: u64) {
        let mut inner = self.lock();
        inner.boots += 1;
        inner.booted = now;
        inner.slept = 0;
    }

    /// The machine was suspended for so many nanoseconds, in which its monotonic clock stood still.
    pub fn sleep(&self, slept: u64) {
        self.lock().slept += slept;
    }

    /// How long it has been suspended since it booted.
    pub fn slept(&self) -> Duration {
        Duration::from_nanos(self.lock().slept)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }
}

/// Does something after as long as the disk takes at present; never, if its process ends first.
fn later<T: 'static>(
    disk: &Arc<Mutex<Inner>>,
    work: impl FnOnce(&mut Inner) -> T + Send + 'static,
) -> Reply<T> {
    let disk = disk.clone();
    let slow = lock(&disk).slow;
    Box::pin(async move {
        if slow > 0 {
            sleep(Duration::from_nanos(slow)).await;
        }
        work(&mut lock(&disk))
    })
}

fn lock(disk: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk for SimulatedDisk {
    fn doubts_about(&self, _dir: &Path) -> Reply<Vec<String>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    fn read(&self, path: &Path) -> Reply<Result<Vec<u8>, Unusable>> {
        let path = path.to_owned();
        later(&self.0, move |inner| {
            let found = inner.files.get(&path).cloned();
            found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound).into())
        })
    }

    fn write(&self, path: &Path, bytes: Vec<u8>) -> Reply<io::Result<()>> {
        let path = path.to_owned();
        later(&self.0, move |inner| {
            if inner.broken {
                return Err(io::ErrorKind::StorageFull.into());
            }
            inner.files.insert(path, bytes);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> Reply<io::Result<()>> {
        let path = path.to_owned();
        later(&self.0, move |inner| {
            inner.files.remove(&path);
            Ok(())
        })
    }

    fn stamp(&self) -> io::Result<Stamp> {
        let inner = self.lock();
        Ok(Stamp {
            boot: format!("boot-{}", inner.boots),
            uptime_ms: (system::monotonic().saturating_sub(inner.booted) + inner.slept) / 1_000_000,
            wall_ms: system::wall() / 1_000_000,
        })
    }
}
