//! Monotonic time as the core sees it: a point on a clock that only moves forward and that has
//! nothing to do with the time of day. Who calls the core reads the clock; the core never does.

use std::ops::Add;
use std::time::Duration;

/// A point in time on one process's monotonic clock, counted from an arbitrary start.
///
/// Two moments may be compared only if they come from the same process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The moment `since_start` after the clock's arbitrary start.
    pub const fn from_start(since_start: Duration) -> Self {
        Moment(since_start)
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `age` ago, or the clock's start if that would lie before it.
    pub fn ago(self, age: Duration) -> Moment {
        Moment(self.0.saturating_sub(age))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, later: Duration) -> Moment {
        Moment(self.0.saturating_add(later))
    }
}

/// A duration in whole milliseconds, as messages carry it.
pub fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_go_forward_and_back_and_stop_at_the_clocks_ends() {
        let at = |seconds| Moment::from_start(Duration::from_secs(seconds));
        let two = Duration::from_secs(2);
        assert_eq!((at(5) + two, at(5).ago(two), at(1).ago(two)), (at(7), at(3), at(0)));
        assert_eq!((at(5).since(at(3)), at(3).since(at(5))), (two, Duration::ZERO));
        assert_eq!(at(1) + Duration::MAX, Moment::from_start(Duration::MAX));
        assert_eq!((millis(two), millis(Duration::MAX)), (2000, u64::MAX));
    }
}
