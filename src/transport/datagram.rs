//! Datagrams: one-way messages that may be lost. They go to a peer when nothing else waits for its
//! connection, in the order in which they came; the oldest give way.
//!
//! Leaves to the caller what is in one, and whether there is a connection. Invariants:
//! - A request or a one-way message never waits for a datagram, but for the one that is being written.
//! - What waits for one peer is within [`QUEUE`], whatever that peer does.
//! - Each datagram is counted once for each peer, as sent or as lost.
//! - Its bytes are erased once the last peer has got or lost it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::frame::Body;
use crate::core::lossy_queue::{Limits, LossyQueue};
use crate::core::moment::Moment;
use crate::supervise::lock;

/// Datagrams that wait for one peer: half a second's worth of the most that sessions make, 256 KiB.
pub const QUEUE: Limits = Limits { entries: 64, bytes: 1 << 18, wait: Duration::from_secs(2) };

/// What became of datagrams, in whatever their sender counts.
#[derive(Debug, Default)]
pub struct Tally {
    /// What was handed to a connection, once for each peer.
    pub sent: AtomicU64,
    /// What was not.
    pub lost: AtomicU64,
}

/// A datagram for one peer. Dropped without having been sent it counts as lost.
#[derive(Debug)]
pub struct Datagram {
    body: Arc<Body>,
    count: u64,
    tally: Arc<Tally>,
    is_sent: bool,
}

impl Datagram {
    /// One with this body, which counts so much.
    pub fn new(body: Arc<Body>, count: u64, tally: Arc<Tally>) -> Datagram {
        Datagram { body, count, tally, is_sent: false }
    }

    /// What is in it.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// It was handed to a connection.
    pub fn record_sent(mut self) {
        self.is_sent = true;
        self.tally.sent.fetch_add(self.count, Ordering::Relaxed);
    }
}

impl Drop for Datagram {
    fn drop(&mut self) {
        if !self.is_sent {
            self.tally.lost.fetch_add(self.count, Ordering::Relaxed);
        }
    }
}

/// What waits for one peer. Cloning makes another handle.
#[derive(Clone)]
pub(super) struct Datagrams(Arc<Inner>);

struct Inner {
    queue: Mutex<LossyQueue<Datagram>>,
    ready: Notify,
    since: Instant,
}

impl Datagrams {
    pub(super) fn new() -> Datagrams {
        let queue = Mutex::new(LossyQueue::new(QUEUE));
        Datagrams(Arc::new(Inner { queue, ready: Notify::new(), since: Instant::now() }))
    }

    /// Adds one. What gives way to it counts itself.
    pub(super) fn push(&self, datagram: Datagram) {
        let (now, size) = (self.now(), datagram.body.len());
        lock(&self.0.queue).push_at(now, size, datagram);
        self.0.ready.notify_one();
    }

    /// The next one. May be dropped and called again at any time.
    pub(super) async fn next(&self) -> Datagram {
        loop {
            let now = self.now();
            if let (_, Some(datagram)) = lock(&self.0.queue).pop_at(now) {
                return datagram;
            }
            self.0.ready.notified().await;
        }
    }

    /// Forgets what has waited too long.
    pub(super) fn expire(&self) {
        let now = self.now();
        lock(&self.0.queue).expire_at(now);
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        lock(&self.0.queue).clear();
    }

    fn now(&self) -> Moment {
        Moment::from_start(self.0.since.elapsed())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn counts(tally: &Tally) -> (u64, u64) {
        (tally.sent.load(Ordering::Relaxed), tally.lost.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_counted_once_and_the_oldest_give_way() {
        let (queue, tally) = (Datagrams::new(), Arc::new(Tally::default()));
        let push = |n: u8| {
            let body = Arc::new(Body::new(vec![n]));
            queue.push(Datagram::new(body, 10, tally.clone()));
        };
        (0..70).for_each(push);
        assert_eq!(counts(&tally), (0, 60), "the queue holds {}", QUEUE.entries);
        let next = queue.next().await;
        assert_eq!(next.body().as_slice(), [6]);
        next.record_sent();
        assert_eq!(counts(&tally), (10, 60));
        drop(queue.next().await);
        assert_eq!(counts(&tally), (10, 70), "a connection that broke has sent nothing");
        queue.clear();
        assert_eq!(counts(&tally), (10, 690));
        push(1);
        tokio::time::advance(QUEUE.wait + Duration::from_millis(1)).await;
        queue.expire();
        assert_eq!(counts(&tally), (10, 700));
    }
}
