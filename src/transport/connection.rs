//! A connection after its hellos, with what both of its sides do alike: frames out and in, its age, and
//! whether its other end would still be let in.
//!
//! What is asked over it is for [`super::peer_connection`] to say, what is answered for
//! [`super::listener`]. Invariants:
//! - It ends within its age, and once its other end is not trusted any more.
//! - What has come is read before a timer counts that says nothing came: on a busy machine both may be
//!   there, and the timer is no later.
//! - What the other end must not have any more is thrown away, and not left to the system to send.

use std::future::poll_fn;
use std::time::Duration;

use tokio::time::Instant;

use super::close_reason::CloseReason;
use super::frame::{self, Body, ClusterId, Header, Kind, Wire};
use super::socket::DeadlineTimer;
use super::tls::Stream;
use super::trust::Trust;

/// What happened on a connection.
pub(super) enum Event {
    /// This came.
    Frame(Header, Body),
    /// What was waited for has come: see [`Connection::event`].
    Due,
    /// Something was sent, or is to be checked anew.
    Other,
}

/// One connection, whoever dialled.
pub(super) struct Connection {
    wire: Wire<Stream>,
    trust: Trust,
    /// Until when it may live.
    pub ends: Instant,
    /// When a frame was read or written last.
    pub last: Instant,
    alarm: DeadlineTimer,
}

impl Connection {
    /// Goes on with a stream on which both have said hello.
    pub fn new(stream: Stream, trust: Trust, max_age: Duration) -> Connection {
        let last = Instant::now();
        let ends = last + max_age;
        let alarm = DeadlineTimer::new(ends.min(trust.due));
        Connection { wire: Wire::new(stream), trust, ends, last, alarm }
    }

    /// Whether it may go on; whether what its other end is let in by changed since the last look.
    pub fn check(&mut self) -> Result<bool, CloseReason> {
        if self.ends <= Instant::now() {
            return Err(CloseReason::Aged);
        }
        self.trust.check().map_err(CloseReason::Untrusted)
    }

    /// Takes a frame, to be written by [`Connection::event`].
    pub fn send(
        &mut self,
        (kind, request): (Kind, u32),
        cluster_id: ClusterId,
        body: &[u8],
    ) -> Result<(), CloseReason> {
        let header = Header { kind, request, cluster_id };
        self.wire.writer.send(frame::encode(&header, body).map_err(CloseReason::Frame)?);
        Ok(())
    }

    /// Frames that are not out yet.
    pub fn waiting(&self) -> usize {
        self.wire.writer.waiting()
    }

    /// Whether a frame is half read.
    pub fn is_reading(&self) -> bool {
        self.wire.reader.is_reading()
    }

    /// Writes what waits, reads if it may, and waits until `due` at the latest. May be dropped and called
    /// again at any time.
    pub async fn event(&mut self, may_read: bool, due: Instant) -> Result<Event, CloseReason> {
        let due = due.min(self.ends).min(self.trust.due);
        let Wire { reader, writer } = &mut self.wire;
        tokio::select! {
            biased;
            () = self.trust.changed() => Ok(Event::Other),
            sent = writer.write(), if writer.waiting() > 0 => {
                sent?;
                self.last = Instant::now();
                Ok(Event::Other)
            }
            frame = reader.next(), if may_read => {
                let (header, body) = frame?.ok_or(CloseReason::Closed)?;
                self.last = Instant::now();
                Ok(Event::Frame(header, body))
            }
            // Last: what has come may have waited longer than the timer.
            () = poll_fn(|cx| self.alarm.poll(cx, due)) => Ok(Event::Due),
        }
    }

    /// Closes it.
    pub fn close(self, why: &CloseReason) {
        if why.is_cut() {
            self.wire.into_stream().get_ref().discard_unsent();
        }
    }
}
