//! The clock that openraft sees: tokio's, but in steps.
//!
//! A leader notes for each member when it sent what the member acknowledged last, and works out with
//! each acknowledgement since when a majority follows it. openraft does that with a sorted list,
//! at a cost that grows with the cube of the members, unless times are equal: in a group of 200 it
//! took more than half of a leader's work for a rotation. So all that is sent in one go is sent
//! at the same time here.
//!
//! Invariants: the clock never goes back on one thread, which all Raft of a plugin's node runs
//! on (between threads it may differ by a step), and is at most `STEP` slow. openraft measures one
//! lease with it: for [`VOTE_LEASE`] after the last append a follower votes for nobody else. What
//! keeps time for keys is [`crate::core::moment`].
//!
//! A limit of `LIMITED_ELSEWHERE` is none here: whoever is called keeps one of its own.

use std::cell::Cell;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend, TokioRuntime as Tokio};
use tokio::time::Instant;

/// How long the clock stands still, once somebody looked at it: what sending one message to each of
/// some hundred servers takes.
const STEP: Duration = Duration::from_millis(50);

/// openraft's shortest election timeout here. It makes two things of that: a little more is the lease
/// within which a follower refuses its vote, which is this node's to keep ([`crate::core::lease`]) and
/// is to be as short as can be; and it is the limit of a request for a vote, which
/// [`super::network`] keeps.
pub(super) const LIMITED_ELSEWHERE: Duration = Duration::from_millis(1);

/// How long after an append openraft votes for nobody else all the same: its lease, and a step of the
/// clock that it is measured with.
pub const VOTE_LEASE: Duration = STEP.saturating_add(LIMITED_ELSEWHERE.saturating_mul(3));

/// Longer than anything that has a limit elsewhere: a day.
const NO_LIMIT: Duration = Duration::from_secs(86_400);

/// A moment by the clock that goes in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stepped(Instant);

thread_local! {
    static LATEST: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl openraft::Instant for Stepped {
    fn now() -> Stepped {
        let now = Instant::now();
        LATEST.with(|latest| {
            // A clock that was set back is one that tests have stopped.
            let stands = |at: &Instant| *at <= now && now - *at < STEP;
            let at = latest.get().filter(stands).unwrap_or(now);
            latest.set(Some(at));
            Stepped(at)
        })
    }
}

impl Add<Duration> for Stepped {
    type Output = Stepped;

    fn add(self, span: Duration) -> Stepped {
        Stepped(self.0 + span)
    }
}

impl AddAssign<Duration> for Stepped {
    fn add_assign(&mut self, span: Duration) {
        self.0 += span;
    }
}

impl Sub<Duration> for Stepped {
    type Output = Stepped;

    fn sub(self, span: Duration) -> Stepped {
        Stepped(self.0 - span)
    }
}

impl Sub for Stepped {
    type Output = Duration;

    fn sub(self, earlier: Stepped) -> Duration {
        self.0 - earlier.0
    }
}

impl SubAssign<Duration> for Stepped {
    fn sub_assign(&mut self, span: Duration) {
        self.0 -= span;
    }
}

/// tokio, with the clock that goes in steps.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SteppedTokio;

impl AsyncRuntime for SteppedTokio {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = Stepped;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Tokio as AsyncRuntime>::ThreadLocalRng;
    type OneshotSender<T: OptionalSend> = <Tokio as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiverError = <Tokio as AsyncRuntime>::OneshotReceiverError;
    type OneshotReceiver<T: OptionalSend> = <Tokio as AsyncRuntime>::OneshotReceiver<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        Tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Stepped) -> Self::Sleep {
        Tokio::sleep_until(deadline.0)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout(if duration == LIMITED_ELSEWHERE { NO_LIMIT } else { duration }, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Stepped,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline.0, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Tokio::thread_rng()
    }

    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        Tokio::oneshot()
    }
}

#[cfg(test)]
mod tests {
    use openraft::Instant as _;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happens_in_one_go_happens_at_the_same_time() {
        let begun = Stepped::now();
        advance(STEP - Duration::from_millis(1)).await;
        assert_eq!(Stepped::now(), begun);
        advance(Duration::from_millis(1)).await;
        assert_eq!(Stepped::now() - begun, STEP);
        advance(STEP * 10).await;
        assert_eq!(begun.elapsed(), STEP * 11);
    }
}
