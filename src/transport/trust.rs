//! Whether a connection that stands would be let in now: what was true at its handshake need not
//! be true any more.
//!
//! Invariants:
//! - Whenever the certificates, the roots, `cert_verify_str` or the server list change, and when
//!   the wall clock leaves the time in which the other end's chain is valid, the connection is
//!   checked by the function that checks new ones, [`Tls::assess`], before anything else is read or
//!   written on it.
//! - A connection at rest ends with its chain as well: one timer a connection, at the end of the
//!   chain, and until then often enough to notice a wall clock that was set.

use std::future::pending;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use openssl::rand::rand_bytes;
use openssl::stack::Stack;
use openssl::x509::X509;
use tokio::sync::watch;
use tokio::time::Instant;

use super::tls::{HandshakeError, Stream, Tls};
use crate::core::config::Member;

/// How long a connection may live. Bounds what no check sees. An hour costs two servers one
/// handshake an hour.
pub const MAX_AGE: Duration = Duration::from_secs(3600);

/// How often a connection at rest looks at the wall clock, which may be set at any time. One that
/// is in use looks with each frame, and nothing goes over one at rest, so that this may be seldom:
/// each look wakes the process, once for each connection.
pub const CLOCK_LOOK: Duration = Duration::from_secs(60);

/// Where the end of a certificate has come by this server's reckoning and not yet by OpenSSL's,
/// which may lie one tick of a clock apart, it is asked again after this.
const NEXT_LOOK: Duration = Duration::from_millis(50);

/// What the other end of a connection was let in by.
pub(super) struct Trust {
    tls: watch::Receiver<Tls>,
    /// The same, for waiting.
    news: watch::Receiver<Tls>,
    /// Who was dialled; nobody in particular for a connection that came in.
    dialled: Option<Arc<Member>>,
    leaf: X509,
    /// What it sent along; OpenSSL takes at most 100 KiB of certificates in one handshake.
    rest: Stack<X509>,
    /// While the wall clock shows this, time alone does not change the answer.
    valid: Range<SystemTime>,
    /// When to look again at the latest.
    pub due: Instant,
}

impl Trust {
    /// That of a connection whose handshake used what `tls` had last seen. What that found of the other end
    /// counts until anything changes.
    pub fn new(
        tls: watch::Receiver<Tls>,
        dialled: Option<Arc<Member>>,
        stream: &Stream,
    ) -> Result<Trust, HandshakeError> {
        let leaf = stream.ssl().peer_certificate().ok_or(HandshakeError::NoCertificate)?;
        let mut rest = Stack::new().map_err(HandshakeError::library)?;
        for certificate in stream.ssl().peer_cert_chain().into_iter().flatten() {
            rest.push(certificate.to_owned()).map_err(HandshakeError::library)?;
        }
        let valid = stream.get_ref().valid();
        let news = tls.clone();
        let mut trust = Trust { tls, news, dialled, leaf, rest, valid, due: Instant::now() };
        trust.check()?;
        Ok(trust)
    }

    /// Checks the connection anew if anything changed since the last time, the wall clock
    /// included; whether it did.
    ///
    /// # Errors
    /// Why it would not be let in now.
    pub fn check(&mut self) -> Result<bool, HandshakeError> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        // Without a sender nothing changes any more.
        let changed = self.tls.has_changed().unwrap_or(false) || !self.valid.contains(&wall);
        if changed {
            let tls = self.tls.borrow_and_update().clone();
            let tls = self.dialled.as_ref().map_or(tls.clone(), |member| tls.for_member(member));
            self.valid = tls.assess(&self.leaf, &self.rest)?;
        }
        if changed || self.due <= now {
            self.due = now + pause(self.valid.end, wall);
        }
        Ok(changed)
    }

    /// Waits until there is something to check anew but for the time.
    pub async fn changed(&mut self) {
        if self.news.changed().await.is_err() {
            // Without a sender nothing changes any more.
            pending().await
        }
    }

    /// The certificate at the other end.
    pub fn leaf(&self) -> &X509 {
        &self.leaf
    }
}

/// How long a connection at rest need not look at the wall clock, whose chain ends then.
fn pause(end: SystemTime, wall: SystemTime) -> Duration {
    end.duration_since(wall).unwrap_or_default().clamp(NEXT_LOOK, CLOCK_LOOK)
}

/// When the side that dialled renews a connection of at most this age: after three quarters of
/// it and up to nine tenths, at random, so that not all are renewed at once and that there is
/// time for a second try.
pub(super) fn renewal_after(max_age: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness they are renewed at the same time, which does no harm.
    let _ = rand_bytes(&mut byte);
    max_age.mul_f64(0.75 + 0.15 * f64::from(byte[0]) / 255.0)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_clock_is_looked_at_when_a_chain_ends_and_often_before() {
        let wall = UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let until = |left: Duration| pause(wall + left, wall);
        for exactly in [750, 1750, 4999].map(Duration::from_millis) {
            assert_eq!(until(exactly), exactly);
        }
        assert_eq!(until(Duration::from_secs(86_400)), CLOCK_LOOK);
        assert_eq!(until(Duration::ZERO), NEXT_LOOK);
        assert_eq!(pause(UNIX_EPOCH, wall), NEXT_LOOK);
    }
}
