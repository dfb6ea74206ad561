//! How long this machine has been suspended since it booted: the clock that timers go by stands
//! still meanwhile (`CLOCK_MONOTONIC`), the one that ages of keys go by does not
//! (`CLOCK_BOOTTIME`).
//!
//! Decides nothing. Invariant: the answer is never more than the truth, and short of it by the time
//! between two looks at clocks at most.

use std::time::Duration;

/// The time that this machine has spent suspended since it booted.
pub fn suspended() -> Duration {
    // The monotonic clock last: what passes between the two looks makes the answer smaller.
    let (since_boot, awake) = (read(libc::CLOCK_BOOTTIME), read(libc::CLOCK_MONOTONIC));
    match (since_boot, awake) {
        (Some(since_boot), Some(awake)) => since_boot.saturating_sub(awake),
        _ => Duration::ZERO,
    }
}

fn read(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours and lives over the call, which writes nothing else.
    let failed = unsafe { libc::clock_gettime(clock, &mut time) } != 0;
    let (seconds, nanos) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    (!failed).then(|| Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_are_read() {
        let (Some(since_boot), Some(awake)) =
            (read(libc::CLOCK_BOOTTIME), read(libc::CLOCK_MONOTONIC))
        else {
            panic!("Linux has both");
        };
        // Containers may give either clock another zero, but not so that this fails.
        assert!(suspended() <= since_boot.max(awake) + Duration::from_secs(1));
        assert_eq!(read(-1), None);
    }
}
