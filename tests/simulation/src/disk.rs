//! A box's disk: a few files in memory, and the machine's clocks for stamps. It can be slow, fail,
//! and lose all that was on it; what was written is there as a whole or not at all, as the plugin's
//! real files are, which are renamed into place.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stek_share::node::outside::{Disk, Stamp, Unusable};

use crate::system;

/// See the module's head.
#[derive(Default)]
pub struct SimulatedDisk(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    files: BTreeMap<PathBuf, Vec<u8>>,
    broken: bool,
    /// How long each write takes, in nanoseconds.
    slow: u64,
    /// Time that writes have taken and nobody has waited for yet.
    owed: u64,
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

    /// Has each write take this many nanoseconds.
    pub fn set_slow(&self, slow: u64) {
        self.lock().slow = slow;
    }

    /// How long the box was held up by writes since this was last asked, in nanoseconds.
    pub fn take_owed(&self) -> u64 {
        std::mem::take(&mut self.lock().owed)
    }

    /// Loses all files.
    pub fn wipe(&self) {
        self.lock().files.clear();
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.lock().files.is_empty()
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for SimulatedDisk {
    fn prepare(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn doubts_about(&self, _dir: &Path) -> Vec<String> {
        Vec::new()
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, Unusable> {
        let found = self.lock().files.get(path).cloned();
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound).into())
    }

    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.owed += inner.slow;
        if inner.broken {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inner.files.insert(path.to_owned(), parts.concat());
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.lock().files.remove(path);
        Ok(())
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
