//! tokio, as openraft sees it.
//!
//! The clock is tokio's: it goes back nowhere, whichever threads Raft runs on. openraft measures one
//! lease with it: for [`VOTE_LEASE`] after the last append a follower votes for nobody else. What keeps
//! time for keys is [`crate::core::moment`].
//!
//! A limit of `LIMITED_ELSEWHERE` is none here: whoever is called keeps one of its own.

use std::future::Future;
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend, TokioRuntime as Tokio};
use tokio::time::Instant;

/// openraft's shortest election timeout here. It makes two things of that: a little more is the lease
/// within which a follower refuses its vote, which is this node's to keep ([`crate::core::lease`]) and
/// is to be as short as can be; and it is the limit of a request for a vote, which
/// [`super::network`] keeps.
pub(super) const LIMITED_ELSEWHERE: Duration = Duration::from_millis(1);

/// How long after an append openraft votes for nobody else all the same: its lease, and a millisecond
/// more.
pub const VOTE_LEASE: Duration = LIMITED_ELSEWHERE.saturating_mul(3);

/// Longer than anything that has a limit elsewhere: a day.
const NO_LIMIT: Duration = Duration::from_secs(86_400);

/// tokio, without the limits that others keep.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PatientTokio;

impl AsyncRuntime for PatientTokio {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = Instant;
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

    fn sleep_until(deadline: Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout(if duration == LIMITED_ELSEWHERE { NO_LIMIT } else { duration }, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn now() -> <PatientTokio as AsyncRuntime>::Instant {
        openraft::Instant::now()
    }

    #[test]
    fn the_clock_goes_back_on_no_thread() {
        let first = now();
        let second = std::thread::spawn(now).join().unwrap();
        let third = now();
        assert!(first <= second && second <= third, "{first:?}, {second:?}, {third:?}");
    }
}
