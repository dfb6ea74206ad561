//! A directory for one test or one demo, gone at the end if all went well.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::{env, fs, process, thread};

use crate::{Context, Result};

/// A new directory below the system's temporary one, readable by its owner only. Dropping it
/// removes it if [`RunDir::done`] was called and nobody panics; else it stays for a look at the
/// logs, and its path goes to stderr.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    done: AtomicBool,
}

impl RunDir {
    /// Makes the directory; `purpose` becomes a part of its name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(purpose: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.subsec_nanos());
        let name = format!("stek_share-{purpose}-{}-{number}-{since:x}", process::id());
        let path = env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .context(format_args!("cannot make {}", path.display()))?;
        Ok(Self { path, done: AtomicBool::new(false) })
    }

    /// The last line of a test: all went well, the directory can go. Servers may still run in it
    /// until they are dropped.
    ///
    /// # Errors
    /// Never; the result makes it a good last line.
    pub fn done(&self) -> Result<()> {
        self.done.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.done.load(Ordering::Relaxed) && !thread::panicking() {
            // Nothing to be done about a leftover in the temporary directory.
            let _ = fs::remove_dir_all(&self.path);
        } else {
            eprintln!("kept for a look: {}", self.path.display());
        }
    }
}
