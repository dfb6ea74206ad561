//! What came in, and why this server ended it, counted for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::core::text::words;

words! {
    /// Why a connection was refused or ended by this server.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(usize)]
    pub enum Cause {
        /// No certificate was shown.
        NoCertificate = "no_certificate",
        /// The certificate does not chain to the root, is not valid now, or is for another purpose.
        Untrusted = "untrusted",
        /// The certificate's subject is not `cert_verify_str`, nor one that the server list names.
        WrongSubject = "wrong_subject",
        /// The certificate is a member's, but not that of the server id that the sender names.
        OtherCertificate = "other_certificate",
        /// What came was not TLS, or a version or cipher that we do not speak.
        NotOurTls = "not_our_tls",
        /// The other end does not accept this server's certificate or TLS.
        RefusedUs = "refused_us",
        /// The other end closed or lost the connection before its hello.
        ClosedEarly = "closed_early",
        /// OpenSSL failed on this side.
        Library = "library",
        /// The sender is not in the server list.
        NotAMember = "not_a_member",
        /// The service refused the sender for another reason.
        Refused = "refused",
        /// Bytes that are no hello and no frame, or a body that is no request.
        BadFrame = "bad_frame",
        /// A protocol version that this server does not speak.
        Version = "version",
        /// A handshake, a hello or a begun frame took too long.
        TooSlow = "too_slow",
        /// There were too many connections or handshakes already.
        OverLimit = "over_limit",
        /// Too many handshakes with its address came to nothing; see [`crate::core::rate_limit`].
        OverRate = "over_rate",
    }
}

/// Counts what came in, for metrics. Shared by `Arc`; never goes down.
#[derive(Debug, Default)]
pub struct Counters {
    refused: [AtomicU64; Cause::ALL.len()],
    pub(super) accepted: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) passed_over: AtomicU64,
}

impl Counters {
    /// All zero.
    pub fn new() -> Arc<Counters> {
        Arc::default()
    }

    /// Connections that were refused or ended for this cause.
    pub fn refused(&self, cause: Cause) -> u64 {
        self.refused.get(cause as usize).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    /// Connections whose handshake succeeded.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Requests that were handed to the service.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Messages that want no answer and meant nothing here.
    pub fn passed_over(&self) -> u64 {
        self.passed_over.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, cause: Cause) {
        if let Some(n) = self.refused.get(cause as usize) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }
}
