//! How a connection ended, whoever dialled: its words, and what is counted of those that came in.

use std::io;

use thiserror::Error;

use super::counters::Cause;
use super::frame::{FrameError, NoCommonVersion, WireError};
use super::refusal::Refusal;
use super::tls::HandshakeError;
use crate::core::server_id::ServerId;
use crate::log_sink::Level;

/// How a connection ended.
#[derive(Debug, Error)]
pub(super) enum CloseReason {
    #[error("{0}")]
    Handshake(HandshakeError),
    #[error("{0} took too long")]
    TooSlow(&'static str),
    #[error("server_id {0} has too many; it gave way to a newer one")]
    GaveWay(ServerId),
    #[error("too many tools or silent ends are connected; it gave way to a newer one")]
    GaveWayUnheard,
    #[error("it is no longer trusted: {0}")]
    Untrusted(HandshakeError),
    #[error("it calls itself server_id {0}, but {1}")]
    Refused(ServerId, Refusal),
    #[error("server_id {0} sent a request without meaning")]
    BadBody(ServerId),
    #[error("it calls itself server_id {0}, and {1}")]
    NoVersion(ServerId, NoCommonVersion),
    #[error(transparent)]
    Frame(FrameError),
    #[error("the connection was lost: {0}")]
    Lost(io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("it closed the connection before its hello")]
    Silent,
    #[error("the connection was idle")]
    Idle,
    #[error("it stood for as long as a connection may")]
    Aged,
    #[error("nothing was asked for a long time")]
    Unasked,
    #[error("this server no longer asks it")]
    Gone,
    #[error("a new connection took its place")]
    Renewed,
    #[error("it does not answer")]
    Dead,
}

impl From<WireError> for CloseReason {
    fn from(error: WireError) -> CloseReason {
        match error {
            WireError::Frame(error) => CloseReason::Frame(error),
            WireError::Io(error) => CloseReason::Lost(error),
            WireError::TooSlow => CloseReason::TooSlow("a frame"),
        }
    }
}

impl CloseReason {
    /// The other end closed or reset it, or its system did because its process is gone.
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, CloseReason::Closed | CloseReason::Lost(_))
    }

    /// The other end is to get nothing any more, not even what the system has taken for it.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self, CloseReason::Untrusted(_) | CloseReason::Refused(..) | CloseReason::Gone)
    }

    /// What to count of a connection that came in, and how loud to be; nothing if it ended well.
    pub(super) fn cause(&self) -> Option<(Cause, Level)> {
        let cause = match self {
            CloseReason::Handshake(error) | CloseReason::Untrusted(error) => cause_of(error),
            CloseReason::TooSlow(_) => Cause::TooSlow,
            CloseReason::GaveWay(_) | CloseReason::GaveWayUnheard => Cause::OverLimit,
            CloseReason::Refused(_, Refusal::NotAMember) => Cause::NotAMember,
            CloseReason::Refused(_, Refusal::Certificate) => Cause::OtherCertificate,
            CloseReason::Refused(..) => Cause::Refused,
            CloseReason::BadBody(_) | CloseReason::Frame(_) => Cause::BadFrame,
            CloseReason::NoVersion(..) => Cause::Version,
            CloseReason::Silent => Cause::ClosedEarly,
            _ => return None,
        };
        let is_quiet = cause == Cause::ClosedEarly;
        Some((cause, if is_quiet { Level::Debug } else { Level::Warning }))
    }
}

fn cause_of(error: &HandshakeError) -> Cause {
    match error {
        HandshakeError::NoCertificate => Cause::NoCertificate,
        HandshakeError::Untrusted(_) => Cause::Untrusted,
        HandshakeError::WrongSubject(_) => Cause::WrongSubject,
        HandshakeError::NotListed(_) => Cause::OtherCertificate,
        HandshakeError::NotOurTls(_) => Cause::NotOurTls,
        HandshakeError::RefusedUs(_) => Cause::RefusedUs,
        HandshakeError::Closed => Cause::ClosedEarly,
        HandshakeError::Library(_) => Cause::Library,
    }
}
