//! A pipe by which the host's threads wake a task of the node.
//!
//! tokio's own means to wake a task take a lock, on which a thread of the host could wait. Invariants:
//! - Who wakes takes no lock, waits for nobody and is told whether somebody listens.
//! - Wake-ups that were not noticed yet are one, so that a storm costs one system call.
//! - What was done before a wake-up is there for whoever notices it.

use std::io::{pipe, PipeReader, PipeWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// A pipe to which nobody listens yet.
pub(super) struct WakePipe {
    ends: Option<(PipeReader, PipeWriter)>,
    has_listener: AtomicBool,
    is_pending: AtomicBool,
}

impl WakePipe {
    /// One that can wake nobody if the system gives no pipe.
    pub(super) fn new() -> WakePipe {
        let (has_listener, is_pending) = (AtomicBool::new(false), AtomicBool::new(false));
        WakePipe { ends: pipe().ok(), has_listener, is_pending }
    }

    /// Wakes who listens; whether anybody does.
    pub(super) fn wake(&self) -> bool {
        let Some((_, writer)) = &self.ends else { return false };
        if !self.is_pending.swap(true, Ordering::AcqRel) {
            // There is one byte in it at most, so that it is never full.
            let _ = (&*writer).write(&[0]);
        }
        self.has_listener.load(Ordering::Acquire)
    }
}

/// Who is woken by a pipe.
pub(super) struct WakeListener {
    pipe: Arc<WakePipe>,
    reader: Receiver,
}

impl WakeListener {
    /// The one listener to this pipe; `None` if the system gives no descriptor for it. Needs a tokio
    /// runtime.
    pub(super) fn new(pipe: Arc<WakePipe>) -> Option<WakeListener> {
        let reader = pipe.ends.as_ref()?.0.try_clone().ok()?;
        let reader = Receiver::from_owned_fd(reader.into()).ok()?;
        pipe.has_listener.store(true, Ordering::Release);
        Some(WakeListener { pipe, reader })
    }

    /// Waits until it is woken. May be dropped and called again at any time.
    pub(super) async fn woken(&mut self) {
        // Errors would be those that a pipe within this process cannot have. More room than there are
        // bytes tells tokio that no more can be had, which spares a second call.
        let _ = self.reader.read(&mut [0; 8]).await;
        // Whoever comes after this byte and before the next line wakes nobody, but has done it all already.
        self.pipe.is_pending.swap(false, Ordering::AcqRel);
    }
}

impl Drop for WakeListener {
    fn drop(&mut self) {
        self.pipe.has_listener.store(false, Ordering::Release);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const QUIET: Duration = Duration::from_millis(20);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn each_wake_up_is_noticed_once_and_by_whoever_comes_later() {
        let pipe = Arc::new(WakePipe::new());
        assert!(!pipe.wake(), "nobody listens");
        let mut listener = WakeListener::new(pipe.clone()).unwrap();
        timeout(PATIENCE, listener.woken()).await.unwrap();
        assert!(timeout(QUIET, listener.woken()).await.is_err(), "it was noticed");
        for _ in 0..3 {
            assert!((0..100_000).all(|_| pipe.wake()));
            timeout(PATIENCE, listener.woken()).await.unwrap();
            assert!(timeout(QUIET, listener.woken()).await.is_err(), "many are one");
        }
        let far = pipe.clone();
        let thread = std::thread::spawn(move || far.wake());
        timeout(PATIENCE, listener.woken()).await.unwrap();
        assert!(thread.join().unwrap());
        drop(listener);
        assert!(!pipe.wake());
    }
}
