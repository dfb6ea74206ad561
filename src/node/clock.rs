//! The clock of a node, which goes on while the machine is suspended.
//!
//! Invariants: it never goes back. No timer of tokio's notices a suspension: who waits for a key to
//! be old enough has to wait for [`Clock::watch_slept`] as well.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::core::moment::{millis, Moment};
use crate::log_sink::Log;

/// A machine that was suspended for less than this is taken for one that was not: clocks are read
/// one after another, and that takes time.
const SUSPENSION_MIN: Duration = Duration::from_millis(100);

/// The clock's zero lies so long before the start.
const HEAD_START: Duration = Duration::from_secs(10 * 365 * 86_400);

/// See the module's head.
pub(super) struct Clock {
    log: Log,
    /// When this server started, on the clock of timers.
    started: Instant,
    /// See [`Environment::suspended`](super::environment::Environment::suspended).
    suspended: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// What that said at the start.
    suspended_before: Duration,
    /// How long the machine has been suspended since, as of the last look at the time.
    slept: watch::Sender<Duration>,
}

impl Clock {
    /// Starts now.
    pub fn new(log: Log, suspended: Arc<dyn Fn() -> Duration + Send + Sync>) -> Clock {
        let (started, suspended_before) = (Instant::now(), suspended());
        Clock { log, started, suspended, suspended_before, slept: watch::Sender::default() }
    }

    /// The present moment. Starts ten years after the clock's zero, so that ages that are told by
    /// others fit before it. Goes on while the machine is suspended, unlike the clock of timers: who
    /// waits for a key to be old enough has to wait for [`Clock::watch_slept`] as well.
    pub fn now(&self) -> Moment {
        Moment::from_start(HEAD_START + self.age())
    }

    /// How long ago this server started.
    pub fn age(&self) -> Duration {
        self.started.elapsed() + self.slept()
    }

    /// How long the machine has been suspended since then. Whoever asks for the time finds out, and
    /// with the host's metrics and among members somebody does so every few seconds.
    fn slept(&self) -> Duration {
        let total = (self.suspended)().saturating_sub(self.suspended_before);
        let known = *self.slept.borrow();
        if total < known + SUSPENSION_MIN {
            return known;
        }
        self.slept.send_if_modified(|known| {
            let is_more = total > *known;
            *known = total.max(*known);
            is_more
        });
        self.log.debug(format!("the machine was suspended for {} s", (total - known).as_secs()));
        total
    }

    /// Changes when the machine was suspended, which no timer notices.
    pub fn watch_slept(&self) -> watch::Receiver<Duration> {
        self.slept.subscribe()
    }

    /// Turns tokio's clock into moments.
    pub fn moment_of(&self, at: Instant) -> Moment {
        self.now().ago(at.elapsed())
    }
}

/// The clock that orders foundings: seconds after 1970.
pub(super) fn founding_clock() -> u64 {
    wall_ms() / 1000
}

/// Milliseconds after 1970, by the wall clock.
pub(super) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}
