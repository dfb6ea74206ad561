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
pub(super) enum End {
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

impl From<WireError> for End {
    fn from(error: WireError) -> End {
        match error {
            WireError::Frame(error) => End::Frame(error),
            WireError::Io(error) => End::Lost(error),
            WireError::TooSlow => End::TooSlow("a frame"),
        }
    }
}

impl End {
    /// What to count, how loud to be, and the words.
    pub(super) fn assess(&self) -> (Option<Cause>, Level, String) {
        let refused = |cause, words: String| (Some(cause), Level::Warning, words);
        let quiet = |words: &str| (None, Level::Debug, words.to_owned());
        match self {
            End::Handshake(error) => {
                let cause = cause_of(error);
                let level = if cause == Cause::ClosedEarly { Level::Debug } else { Level::Warning };
                (Some(cause), level, error.to_string())
            }
            End::TooSlow(what) => refused(Cause::TooSlow, format!("{what} took too long")),
            End::GaveWay(Some(id)) => {
                let words = format!("server_id {id} has too many; it gave way to a newer one");
                refused(Cause::OverLimit, words)
            }
            End::GaveWay(None) => refused(
                Cause::OverLimit,
                "too many tools or silent ends are connected; it gave way to a newer one"
                    .to_owned(),
            ),
            End::Untrusted(error) => {
                refused(cause_of(error), format!("it is no longer trusted: {error}"))
            }
            End::Refused(id, refusal) => {
                let cause = match refusal {
                    Refusal::NotAMember => Cause::NotAMember,
                    Refusal::Certificate => Cause::OtherCertificate,
                    _ => Cause::Refused,
                };
                refused(cause, format!("it calls itself server_id {id}, but {refusal}"))
            }
            End::BadBody(id) => {
                refused(Cause::BadFrame, format!("server_id {id} sent a request without meaning"))
            }
            End::NoVersion(id, error) => {
                refused(Cause::Version, format!("it calls itself server_id {id}, and {error}"))
            }
            End::Frame(error) => refused(Cause::BadFrame, error.to_string()),
            End::Lost(error) => quiet(&format!("the connection was lost: {error}")),
            End::Closed => quiet("it closed the connection"),
            End::Silent => (
                Some(Cause::ClosedEarly),
                Level::Debug,
                "it closed the connection before its hello".to_owned(),
            ),
            End::Aged => quiet("it stood for as long as a connection may"),
            End::Idle => quiet("the connection was idle"),
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
