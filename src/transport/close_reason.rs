//! How a connection that came in ended: what is counted, how loud the line is, and its words.

use std::io;

use super::counters::Cause;
use super::frame::{FrameError, NoCommonVersion, WireError};
use super::refusal::Refusal;
use super::tls::HandshakeError;
use crate::core::server_id::ServerId;
use crate::log_sink::Level;

/// How a connection that came in ended.
#[derive(Debug)]
pub(super) enum CloseReason {
    Handshake(HandshakeError),
    TooSlow(&'static str),
    GaveWay(Option<ServerId>),
    Untrusted(HandshakeError),
    Refused(ServerId, Refusal),
    BadBody(ServerId),
    NoVersion(ServerId, NoCommonVersion),
    Frame(FrameError),
    Lost(io::Error),
    Closed,
    Silent,
    Idle,
    Aged,
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
    /// What to count, how loud to be, and the words.
    pub(super) fn assess(&self) -> (Option<Cause>, Level, String) {
        let refused = |cause, words: String| (Some(cause), Level::Warning, words);
        let quiet = |words: &str| (None, Level::Debug, words.to_owned());
        match self {
            CloseReason::Handshake(error) => {
                let cause = cause_of(error);
                let level = if cause == Cause::ClosedEarly { Level::Debug } else { Level::Warning };
                (Some(cause), level, error.to_string())
            }
            CloseReason::TooSlow(what) => refused(Cause::TooSlow, format!("{what} took too long")),
            CloseReason::GaveWay(Some(id)) => {
                let words = format!("server_id {id} has too many; it gave way to a newer one");
                refused(Cause::OverLimit, words)
            }
            CloseReason::GaveWay(None) => refused(
                Cause::OverLimit,
                "too many tools or silent ends are connected; it gave way to a newer one"
                    .to_owned(),
            ),
            CloseReason::Untrusted(error) => {
                refused(cause_of(error), format!("it is no longer trusted: {error}"))
            }
            CloseReason::Refused(id, refusal) => {
                let cause = match refusal {
                    Refusal::NotAMember => Cause::NotAMember,
                    Refusal::Certificate => Cause::OtherCertificate,
                    _ => Cause::Refused,
                };
                refused(cause, format!("it calls itself server_id {id}, but {refusal}"))
            }
            CloseReason::BadBody(id) => {
                refused(Cause::BadFrame, format!("server_id {id} sent a request without meaning"))
            }
            CloseReason::NoVersion(id, error) => {
                refused(Cause::Version, format!("it calls itself server_id {id}, and {error}"))
            }
            CloseReason::Frame(error) => refused(Cause::BadFrame, error.to_string()),
            CloseReason::Lost(error) => quiet(&format!("the connection was lost: {error}")),
            CloseReason::Closed => quiet("it closed the connection"),
            CloseReason::Silent => (
                Some(Cause::ClosedEarly),
                Level::Debug,
                "it closed the connection before its hello".to_owned(),
            ),
            CloseReason::Aged => quiet("it stood for as long as a connection may"),
            CloseReason::Idle => quiet("the connection was idle"),
        }
    }
}

pub(super) fn cause_of(error: &HandshakeError) -> Cause {
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
