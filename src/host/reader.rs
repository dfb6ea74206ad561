//! Reads files on a thread of its own, so that a file system which hangs stops nothing else.
//!
//! Invariants: one read at a time, on one thread; whoever asks waits no longer than [`READ_LIMIT`];
//! while a read hangs, further ones are refused in words and begin no thread.

use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::{timeout, Instant};

use crate::load::Dirs;
use crate::supervise::lock;

/// Where the configuration is.
#[derive(Clone, Debug)]
pub struct Source {
    /// The argument in plugin.config.
    pub argument: String,
    /// Where relative names are looked for.
    pub dirs: Dirs,
}

/// How long a read of all files may take. A few small files take milliseconds, and seconds where a
/// network file system fails over to another server.
pub const READ_LIMIT: Duration = Duration::from_secs(10);

/// Address space for the stack of the thread, which parses files and loads certificates.
const READER_STACK: usize = 512 * 1024;

/// Why nothing was read.
#[derive(Debug, Error)]
pub enum Unread {
    /// An earlier read has not ended; how long it lasts already.
    #[error(
        "an earlier read of the files hangs, for {} s now; see that their file system answers",
        .0.as_secs()
    )]
    Hangs(Duration),
    /// It takes too long. It goes on, and what it finds is not used.
    #[error(
        "the files could not be read within {} s; see that their file system answers",
        READ_LIMIT.as_secs()
    )]
    Slow,
    /// It panicked; the panic's own line says where.
    #[error("reading the files ended by an internal error")]
    Died,
    /// The system gives no thread.
    #[error("no thread to read the files: {0}")]
    NoThread(io::Error),
}

/// When the work began that is under way, of which there is one at a time. Cloning makes another handle.
#[derive(Clone, Default)]
pub struct Begun(Arc<Mutex<Option<Instant>>>);

/// Held by the work that is under way.
pub struct UnderWay(Begun);

impl Begun {
    /// For how long some is under way.
    pub fn lasts(&self) -> Option<Duration> {
        lock(&self.0).map(|at| at.elapsed())
    }

    /// Some begins.
    ///
    /// # Errors
    /// For how long other work is under way.
    pub fn begin(&self) -> Result<UnderWay, Duration> {
        let mut begun = lock(&self.0);
        match *begun {
            Some(at) => Err(at.elapsed()),
            None => {
                *begun = Some(Instant::now());
                Ok(UnderWay(self.clone()))
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        *lock(&self.0 .0) = None;
    }
}

/// See the module's head.
#[derive(Default)]
pub struct Reader {
    begun: Begun,
}

impl Reader {
    /// Has `read` done, and waits for what comes of it.
    ///
    /// # Errors
    /// Nothing came of it in time.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unread> {
        let under_way = self.begun.begin().map_err(Unread::Hangs)?;
        let (answer, when_read) = oneshot::channel();
        let work = move || {
            let found = catch_unwind(AssertUnwindSafe(read));
            drop(under_way);
            let _ = answer.send(found);
        };
        let thread = thread::Builder::new().name("stek_reader".into()).stack_size(READER_STACK);
        thread.spawn(work).map_err(Unread::NoThread)?;
        match timeout(READ_LIMIT, when_read).await {
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(_) => Err(Unread::Died),
            Err(_) => Err(Unread::Slow),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    use std::sync::mpsc::sync_channel;

    #[tokio::test]
    async fn what_was_read_comes_back_and_a_panic_is_told() {
        let reader = Reader::default();
        assert_eq!(reader.read(|| 7).await.unwrap(), 7);
        assert!(matches!(reader.read(|| panic!("planted")).await, Err::<(), _>(Unread::Died)));
        assert_eq!(reader.read(|| 8).await.unwrap(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_costs_one_thread_and_its_limit() {
        let reader = Reader::default();
        let (go_on, hang) = sync_channel::<()>(0);
        let begun = Instant::now();
        let slow = reader.read(move || hang.recv()).await;
        assert!(matches!(slow, Err(Unread::Slow)), "{slow:?}");
        assert_eq!(begun.elapsed(), READ_LIMIT);
        for _ in 0..3 {
            assert!(matches!(reader.read(|| ()).await, Err(Unread::Hangs(_))));
        }
        assert_eq!(begun.elapsed(), READ_LIMIT, "refused at once");
        drop(go_on);
        while matches!(reader.read(|| ()).await, Err(Unread::Hangs(_))) {
            tokio::task::yield_now().await;
        }
    }
}
