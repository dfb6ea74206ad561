//! What a panic here may do: it ends one piece of work, the operator reads of it, and the work is
//! begun anew.
//!
//! tokio keeps a panic from ending a thread, but a task that is gone is gone without a word, and
//! what it did is done by nobody. So each task that a server cannot do without runs under
//! [`kept_alive`], and each thing that may be tried again under [`catch_panic`]. Where the panic was,
//! the hook of [`crate::host::plugin`] tells. Invariants: a panic never loses the keys that
//! are installed, and never ends Traffic Server.
//!
//! The places named by [`fail_point`] are where tests plant a panic. Outside of tests and of the
//! feature `fail-points`, which no release build may have, they are nothing.

use std::future::{poll_fn, Future};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::{pin, Pin};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::Poll;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{sleep, Instant};

use crate::log_sink::{Level, Log};

#[cfg(all(feature = "fail-points", not(debug_assertions)))]
compile_error!("fail-points is for tests; a release build must not have it");

/// Pauses before work that failed is begun anew, doubling: a fault that comes back at once must
/// not keep a processor busy.
const AGAIN_MIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// Work that lasted longer counts as good: what ends it then is begun anew after a short pause.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// A piece of work ended by a panic; what it said is in the log already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an internal error")]
pub struct Panicked;

/// Awaits `work`, whose state nobody looks at after a panic.
///
/// # Errors
/// It panicked.
pub async fn catch_panic<F: Future>(work: F) -> Result<F::Output, Panicked> {
    let mut work = pin!(work);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}

/// Locks, whatever panic ended who had it locked before.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same, unless somebody has it locked now.
pub fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// The pauses between a failure of some work and the next beginning of it.
pub struct Pauses {
    next: Duration,
    begun: Instant,
}

/// For work that begins now.
impl Default for Pauses {
    fn default() -> Pauses {
        Pauses { next: AGAIN_MIN, begun: Instant::now() }
    }
}

impl Pauses {
    /// For work that has just failed: how long to wait before it begins anew.
    pub fn after_failure(&mut self) -> Duration {
        if self.begun.elapsed() > GOOD_LIFE {
            self.next = AGAIN_MIN;
        }
        let pause = self.next;
        self.next = (pause * 2).min(AGAIN_MAX);
        self.begun = Instant::now() + pause;
        pause
    }
}

/// Work on a state that outlives a panic of it.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Works on `state`, and begins anew with the same one after each panic; returns what came of it when it
/// ends otherwise. `what` is the subject of the operator's line.
pub async fn kept_alive<S, T>(
    log: &Log,
    what: &str,
    mut state: S,
    work: impl for<'a> Fn(&'a mut S) -> Work<'a, T>,
) -> T {
    let mut pauses = Pauses::default();
    loop {
        // The work that panicked is dropped before the pause, with the ports that it holds.
        if let Ok(end) = catch_panic(work(&mut state)).await {
            return end;
        }
        let pause = pauses.after_failure();
        tell_begun_anew(log, what, pause);
        sleep(pause).await;
    }
}

/// The line about work that ended by a panic and begins anew after `pause`.
pub fn tell_begun_anew(log: &Log, what: &str, pause: Duration) {
    let line = format!(
        "{what} ended by an internal error and begins anew in {} ms; installed keys stay in use",
        pause.as_millis()
    );
    log.limited(Level::Error, what, line);
}

/// A place where tests plant a panic. With the feature `fail-points` it panics, once, if there is
/// a file of this name in the directory that `STEK_SHARE_FAIL_DIR` names; the file is removed.
#[inline(always)]
#[track_caller]
pub fn fail_point(_name: &str) {
    #[cfg(test)]
    planted::pass(_name);
    #[cfg(feature = "fail-points")]
    if let Some(dir) = std::env::var_os("STEK_SHARE_FAIL_DIR") {
        if std::fs::remove_file(std::path::Path::new(&dir).join(_name)).is_ok() {
            panic!("planted at {_name}");
        }
    }
}

/// Panics that unit tests plant, for tasks on their own thread only.
#[cfg(test)]
pub mod planted {
    use std::cell::RefCell;

    thread_local! {
        static POINTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    /// Has the next pass of this point on this thread panic.
    pub fn plant(name: &str) {
        POINTS.with_borrow_mut(|points| points.push(name.to_owned()));
    }

    /// Whether what was planted at this point is still there.
    pub fn waits(name: &str) -> bool {
        POINTS.with_borrow(|points| points.iter().any(|point| point == name))
    }

    #[track_caller]
    pub(super) fn pass(name: &str) {
        let found = POINTS.with_borrow_mut(|points| {
            let at = points.iter().position(|point| point == name)?;
            Some(points.swap_remove(at))
        });
        if found.is_some() {
            panic!("planted at {name}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::{Arc, Mutex};

    use crate::log_sink::LogSink;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl LogSink for Lines {
        fn write(&self, level: Level, line: &str) {
            let mut lines = lock(&self.0);
            lines.push(format!("{level:?}: {line}"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_panics_begins_anew_and_the_operator_is_told() {
        let lines = Arc::new(Lines::default());
        let start = Instant::now();
        fn work(begun: &mut u32) -> Work<'_, u32> {
            Box::pin(async move {
                *begun += 1;
                tokio::task::yield_now().await;
                assert!(*begun >= 4, "on purpose");
                *begun
            })
        }
        assert_eq!(kept_alive(&Log::new(lines.clone()), "a test's work", 0, work).await, 4);
        assert_eq!(start.elapsed().as_millis(), 100 + 200 + 400);
        let lines = lock(&lines.0);
        assert_eq!(
            *lines,
            ["Error: a test's work ended by an internal error and begins anew in 100 ms; installed \
              keys stay in use"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_pauses_are_bounded_and_short_again_after_a_good_life() {
        let mut pauses = Pauses::default();
        let all: Vec<u128> = (0..9).map(|_| pauses.after_failure().as_millis()).collect();
        assert_eq!(all, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        tokio::time::advance(AGAIN_MAX + GOOD_LIFE + Duration::from_millis(1)).await;
        assert_eq!(pauses.after_failure(), AGAIN_MIN);
    }

    #[tokio::test]
    async fn a_planted_panic_comes_once() {
        planted::plant("here");
        fail_point("there");
        assert!(planted::waits("here"));
        assert_eq!(catch_panic(async { fail_point("here") }).await, Err(Panicked));
        assert!(!planted::waits("here"));
        assert_eq!(catch_panic(async { fail_point("here") }).await, Ok(()));
    }
}
