//! Waiting for a condition, never for a span of time alone.

use std::thread;
use std::time::{Duration, Instant};

use crate::{sys, Error, Result};

/// How long to rest between two looks: short against everything that tests measure, long enough
/// to leave the processor to the servers under test.
pub const PAUSE: Duration = Duration::from_millis(5);

/// Looks until `look` gives a value, and returns it.
///
/// # Errors
/// When `limit` is over; the error names `what` was awaited. Also after Ctrl-C, if
/// [`sys::catch_interrupts`] was called, and at once when `look` itself fails.
pub fn until<T>(limit: Duration, what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_every(PAUSE, limit, what, look)
}

/// As [`until`], with a rest of `pause` between two looks, for looks that are work themselves.
///
/// # Errors
/// As [`until`].
pub fn until_every<T>(
    pause: Duration,
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if sys::interrupted() {
            return Err(Error::new(format!("interrupted while waiting for {what}")));
        }
        if Instant::now() >= end {
            return Err(Error::new(format!("waited {limit:?} in vain for {what}")));
        }
        thread::sleep(pause);
    }
}
