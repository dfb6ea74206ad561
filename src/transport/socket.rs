//! A TCP connection's options, and the deadline of what it waits for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, Instant, Sleep};

/// How long sent bytes may stay unacknowledged before the system gives a connection up.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of a connection that the system takes ahead of what the line bears. What comes first is
/// written first, so that a heartbeat behind a datagram waits for so much and no more.
const UNSENT_MOST: u32 = 4096;

/// Keep-alive probes find a peer that vanished while nobody asked it anything.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A deadline that moves with each frame, over one timer that is touched only when it must be:
/// a deadline that moved later is noticed when the timer fires.
pub(super) struct DeadlineTimer(Pin<Box<Sleep>>);

impl DeadlineTimer {
    pub(super) fn new(deadline: Instant) -> DeadlineTimer {
        DeadlineTimer(Box::pin(sleep_until(deadline)))
    }

    /// Ready once `deadline` has come.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if deadline < self.0.deadline() {
            self.0.as_mut().reset(deadline);
        }
        while self.0.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// Small frames go out at once, and a peer that vanished is found out. A system that cannot do
/// one of these is no worse than slow to notice, so failures do not matter.
pub(super) fn tune(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT));
    let _ = socket.set_tcp_notsent_lowat(UNSENT_MOST);
}
