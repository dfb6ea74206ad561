//! What servers ask each other and what they answer, as bytes: a file per service.
//!
//! These are our own shapes, versioned by the frame around them and encoded with postcard;
//! openraft's never go on the network, so that a newer openraft can talk to an older one. How they
//! become openraft's is for [`crate::consensus`], how they travel for [`crate::transport`], what
//! is answered for [`crate::node`].
//!
//! | request | who may send it | answered | if it is lost | if it comes twice |
//! |---|---|---|---|---|
//! | `Status` | members and tools; only a member's own word counts | always | asked again in the next round | the same answer |
//! | `Vote` | members; the candidate of the term in it | while Raft runs, same cluster incarnation; refused without a full memory and while a leader is heard | no vote; the candidate tries the next term | the same answer |
//! | `Append` | members; the leader of the term in it | while Raft runs, same cluster incarnation | openraft sends it again | the same answer |
//! | `Snapshot` | members; the leader of the term in it | while Raft runs, same cluster incarnation | openraft sends it again | installed again, to no effect |
//! | `AwaitInstalled` | members | always; held back for a bounded time until the key is installed | asked again in the next round | the same answer |
//! | `Order` | members, to the leader; tools, to any server, which passes it on | always; carried out by a leader with a majority | the operator is told that it may still happen; never sent again | another new key, unless a handover is under way |
//! | `Campaign` | members; the leader of the asked server | while Raft runs | an election without it, later | nothing more |
//! | `ChangeMembership` | members; one that answers at its listed address, to the leader | always; carried out by a leader | the operator is told that it may still happen; never sent again | refused: the list that it replaces is no longer the agreed one |
//! | `Report` | members and tools | always | the tool says so | the same answer |
//! | `Heartbeat` | members; the leader of the term in it; a one-way message, unless an answer is asked for | while Raft runs, same cluster incarnation | the next one is due soon | nothing more |
//! | `StatusPoll` | members | always | asked again in the next round | the same answer |
//! | `ListInFile` | members | always; from the file as it is now | counts as a server without this list | the same answer |
//! | `Record` | members | while no cluster incarnation is known here | asked again in the next round | the same answer |
//! | `Sessions` | members; a one-way message | never; taken with `share_sessions: true`, same cluster incarnation | the clients of these sessions make full handshakes elsewhere | what is there already stays |
//! | `Reload` | tools, to any server | always; held back for a bounded time until the files are read | the operator is told that it may still happen; never sent again | the files are read again |
//!
//! A tool speaks with the certificate of the server that it acts for, in whose name it asks. Who
//! asks what it may not is told that the message is malformed.
//!
//! Invariants: bodies carry key bytes, so they are made in one allocation of the exact size, which
//! is erased when it is dropped; decoding copies keys straight into their cells and bounds what it
//! takes; the place of a variant in [`Request`] and [`Response`] is its number on the wire.

mod admin;
mod heartbeat;
mod malformed;
mod raft;
mod sessions;
mod status;
#[cfg(test)]
pub(crate) mod tests;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

pub use admin::{MembershipRefusal, RotationRefusal, MAX_ORIGIN};
pub use heartbeat::WireHeartbeat;
pub use malformed::Malformed;
pub use raft::{
    AppendAnswer, WireAppend, WireEntry, WireMembership, WirePayload, WireSnapshot, WireVote,
};
pub use sessions::{is_of_sessions, WireSessions};
pub use status::{check_record, RelayedStatus};

use crate::core::config::{Member, MAX_MEMBERS};
use crate::core::key_ring::Generation;
use crate::core::record::Record;
use crate::core::recovery::{LeaderId, LogPosition, Status};
use crate::core::rotation::Order;
use crate::core::server_list::Digest;
use crate::core::server_status::{BadStatus, ServerStatus};
use crate::core::text::is_readable;
use status::check_status;

/// What one server asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// "This is me; who are you?" Answered in every state, also across cluster incarnations.
    Status(Status),
    /// Raft's RequestVote (section 5.2 of the Raft paper).
    Vote(WireVote),
    /// Raft's AppendEntries (section 5.3).
    Append(WireAppend),
    /// Raft's InstallSnapshot (section 7), in one piece.
    Snapshot(WireSnapshot),
    /// "Tell me when you have installed this generation", answered at the latest after `limit_ms`.
    AwaitInstalled {
        /// The generation.
        generation: Generation,
        /// How long to wait, in milliseconds.
        limit_ms: u32,
    },
    /// What an operator asked for on some server; the leader answers.
    Order {
        /// What it is.
        order: Order,
        /// Who gave it to the server that passes it on, or what a tool says of its user; for the log.
        origin: String,
    },
    /// "I lead, and I am leaving; campaign as soon as you can."
    Campaign,
    /// A server list that an operator wants on the sender, a member; the leader answers.
    ChangeMembership {
        /// The list that it is to replace: the agreed one, as far as the sender knows.
        replaces: Digest,
        /// The new one.
        members: Vec<Member>,
    },
    /// "How are you?", from an operator's command. Answered in every state.
    Report,
    /// The leader's heartbeat. Most of them are sent as notes, which get no answer.
    Heartbeat(WireHeartbeat),
    /// "This is me; who are you, and what do the others say of themselves?" As [`Request::Status`],
    /// for groups in which not everybody can ask everybody.
    StatusPoll(Status),
    /// "Does your `server_list_file` hold this very list now?", from a leader that was asked to have
    /// the group agree on it.
    ListInFile(Digest),
    /// "I lead, and nobody remembers any key; what does your state file say?"
    Record,
    /// What became of sessions that clients resume by their id. Only ever sent as a note.
    Sessions(WireSessions),
    /// "Read your files again", from an operator's command.
    Reload {
        /// Who wants it, as far as the tool can tell; for the log.
        origin: String,
    },
}

/// What the asked server answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Vote`].
    Vote {
        /// The highest vote that the asked server knows, and whether it is committed.
        vote: (LeaderId, bool),
        /// Whether it voted for the asker.
        granted: bool,
        /// The end of its log.
        log_end: Option<LogPosition>,
    },
    /// To [`Request::Append`].
    Append(AppendAnswer),
    /// To [`Request::Snapshot`]: the highest vote, and whether it is committed.
    Snapshot {
        /// As in [`Response::Vote`].
        vote: (LeaderId, bool),
    },
    /// To [`Request::AwaitInstalled`].
    Installed {
        /// The newest generation that is installed.
        newest: Generation,
        /// The run of the process that has it: one that is started anew has not.
        incarnation: u64,
    },
    /// To [`Request::Order`].
    Ordered(Result<Generation, RotationRefusal>),
    /// To [`Request::Campaign`]: it will.
    WillCampaign,
    /// To [`Request::ChangeMembership`]: the list's version.
    MembershipChanged(Result<u64, MembershipRefusal>),
    /// To [`Request::Heartbeat`].
    Heartbeat {
        /// The highest vote that the asked server knows, and whether it is committed.
        vote: (LeaderId, bool),
        /// Whether it follows the asker and has nothing to catch up with.
        level: bool,
    },
    /// To anything: the asked server is in no state to answer that.
    ErrorResponse(ErrorResponse),
    /// To [`Request::Report`].
    Report(Box<ServerStatus>),
    /// To [`Request::StatusPoll`]: the asked server's own word, and those of others.
    StatusPoll(Status, Vec<RelayedStatus>),
    /// To [`Request::ListInFile`].
    ListInFile(bool),
    /// To [`Request::Record`].
    Record(Option<Box<Record>>),
    /// To [`Request::Reload`]: what changed, or why nothing did.
    Reloaded(Result<String, String>),
}
/// Why a server does not answer a request in the way that was hoped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ErrorResponse {
    /// It has not found out yet what it may do.
    #[error("it is starting and still joining")]
    Starting,
    /// It came back empty and does not vote yet.
    #[error("it came back without memory and does not vote yet")]
    Recovering,
    /// It belongs to another cluster incarnation.
    #[error("it belongs to another cluster incarnation")]
    OtherCluster,
    /// Its Raft has stopped.
    #[error("its agreement has stopped and starts anew")]
    Stopped,
    /// The message broke a rule.
    #[error("it found the message malformed")]
    Malformed,
}
/// Encodes a message in one allocation of the exact size, erased on drop. `None` only if a type
/// here could not be serialised, which none can.
pub fn encode<T: Serialize>(message: &T) -> Option<Zeroizing<Vec<u8>>> {
    let size =
        postcard::serialize_with_flavor(message, postcard::ser_flavors::Size::default()).ok()?;
    let mut bytes = Zeroizing::new(vec![0; size]);
    let written = postcard::to_slice(message, &mut bytes).ok()?.len();
    (written == size).then_some(bytes)
}

/// Decodes a request and checks what can be checked without knowing any state.
///
/// # Errors
/// What is wrong with it.
pub fn decode_request(bytes: &[u8]) -> Result<Request, Malformed> {
    let request = decode(bytes)?;
    match &request {
        Request::Status(status) | Request::StatusPoll(status) => check_status(status)?,
        Request::Append(append) => append.check()?,
        Request::Vote(vote) => vote.check()?,
        Request::Heartbeat(heartbeat) => heartbeat.check()?,
        Request::Snapshot(snapshot) => snapshot.check()?,
        Request::Sessions(sessions) => sessions.check()?,
        Request::ChangeMembership { members, .. } if members.len() > MAX_MEMBERS => {
            return Err(Malformed::TooMany("members"));
        }
        Request::Order { origin, .. } | Request::Reload { origin } if origin.len() > MAX_ORIGIN => {
            return Err(Malformed::TooMany("words about an order's origin"));
        }
        _ => {}
    }
    Ok(request)
}

/// Decodes a response and checks what can be checked without knowing any state.
///
/// # Errors
/// What is wrong with it.
pub fn decode_response(bytes: &[u8]) -> Result<Response, Malformed> {
    let response = decode(bytes)?;
    match &response {
        Response::Status(status) => check_status(status)?,
        Response::StatusPoll(_, others) if others.len() > MAX_MEMBERS => {
            return Err(Malformed::TooMany("members"));
        }
        Response::StatusPoll(own, others) => {
            check_status(own)?;
            others.iter().try_for_each(|other| check_status(&other.status))?;
        }
        Response::Report(status) => status.check().map_err(Malformed::Status)?,
        Response::Vote { log_end: Some(end), .. } => end.check()?,
        Response::Append(AppendAnswer::Partial(Some(end))) => end.check()?,
        Response::Record(Some(record)) => check_record(record)?,
        Response::Reloaded(Ok(words) | Err(words)) if !is_readable(words) => {
            return Err(Malformed::Status(BadStatus::Text));
        }
        _ => {}
    }
    response.leader_id().map_or(Ok(()), |leader_id| leader_id.check())?;
    Ok(response)
}
impl Request {
    /// Whether a tool may ask this; members may ask everything.
    pub fn is_for_tools(&self) -> bool {
        match self {
            Request::Status(_)
            | Request::Report
            | Request::Order { .. }
            | Request::Reload { .. } => true,
            Request::Vote(_)
            | Request::Append(_)
            | Request::Snapshot(_)
            | Request::AwaitInstalled { .. }
            | Request::Campaign
            | Request::ChangeMembership { .. }
            | Request::Heartbeat(_)
            | Request::StatusPoll(_)
            | Request::ListInFile(_)
            | Request::Record
            | Request::Sessions(_) => false,
        }
    }
}

impl Response {
    /// The term that the asker's Raft will take over if it is higher than its own.
    pub fn leader_id(&self) -> Option<LeaderId> {
        match self {
            Response::Vote { vote, .. } | Response::Snapshot { vote } => Some(vote.0),
            Response::Append(AppendAnswer::HigherVote(leader_id, _)) => Some(*leader_id),
            _ => None,
        }
    }
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    let (message, rest) = postcard::take_from_bytes(bytes).map_err(Malformed::Encoding)?;
    match rest.len() {
        0 => Ok(message),
        n => Err(Malformed::Trailing(n)),
    }
}
