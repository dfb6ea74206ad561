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
//! | `Vote` | members; the candidate of the term in it | by the very node and in the cluster that it names; refused while a leader is heard | no vote; the candidate tries the next term | the same answer |
//! | `Append` | members; the leader of the term in it | by the very node and in the cluster that it names; who is in none joins | openraft sends it again | the same answer |
//! | `Snapshot` | members; the leader of the term in it | by the very node and in the cluster that it names; who is in none joins | openraft sends it again | installed again, to no effect |
//! | `AwaitInstalled` | members | always; held back for a bounded time until the key is installed | asked again in the next round | the same answer |
//! | `AdminCommand` | members, to the leader; tools, to any server, which passes it on | always; carried out by a leader with a majority | the operator is told that it may still happen; never sent again | another new key, unless a handover is under way |
//! | `TimeoutNow` | members; the leader of the asked server | while Raft runs | an election without it, later | nothing more |
//! | `ChangeMembership` | members; one that answers at its listed address, to the leader | always; carried out by a leader | the operator is told that it may still happen; never sent again | refused: the list that it replaces is no longer the agreed one |
//! | `ServerStatus` | members and tools | always | the tool says so | the same answer |
//! | `Heartbeat` | members; the leader of the term in it; a one-way message, unless an answer is asked for | always | the next one is due soon | nothing more |
//! | `ListInFile` | members | always; from the file as it is now | counts as a server without this list | the same answer |
//! | `Prepare` | members; the founder of the epoch in it | by the very node that it names, unless it hears a leader with a majority or has promised as much | the founder waits for a moment, then goes on with a majority | refused: it was promised before |
//! | `Found` | members; the founder of the epoch in it | always; taken by a node that it counts, and that has promised this very epoch | that node prepares or joins later | nothing more |
//! | `Revoked` | members | always | asked again in the next step | the same answer |
//! | `Sessions` | members; a one-way message | never; taken with `share_sessions: true`, same cluster incarnation | the clients of these sessions make full handshakes elsewhere | what is there already stays |
//! | `Reload` | members and tools, to any server | always; held back for a bounded time until the files are read | the operator is told that it may still happen; never sent again | the files are read again |
//! | `Recover` | tools, to one of the survivors | never to members; refused while a leader with a majority is heard | the operator is told that it may still happen; never sent again | refused: there is a leader by then |
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

pub use admin::{AdminRefusal, MembershipRefusal, RecoverRefusal, MAX_ORIGIN};
pub use heartbeat::WireHeartbeat;
pub use malformed::Malformed;
pub use raft::{
    AppendAnswer, Recipient, WireAppend, WireEntry, WireMembership, WirePayload, WireSnapshot,
    WireVote,
};
pub use sessions::{is_of_sessions, WireSessions, MAX_SESSIONS_MESSAGE};
pub use status::check_ranked_record;

use crate::core::agreed::Record;
use crate::core::agreement::founding::{FoundedCluster, Prepare, Promise, Refusal};
use crate::core::agreement::ranked_record::Voters;
use crate::core::config::{Member, MAX_MEMBERS};
use crate::core::key_ring::Generation;
use crate::core::log_id::{LeaderId, LogId};
use crate::core::node_id::NodeId;
use crate::core::pre_vote::Status;
use crate::core::rotation::AdminCommand;
use crate::core::server_list::Digest;
use crate::core::server_status::{BadStatus, ServerStatus};
use crate::core::stek::Fingerprint;
use crate::core::text::is_readable;
use status::{check_epoch, check_found, check_promise, check_status};

/// What one server asks of another.
// One is moved once, from where it is decoded to where it is answered.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// "This is me; who are you?" Answered in every state, also across clusters.
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
        /// Its key: another group may have another one of this generation.
        key: Fingerprint,
        /// How long to wait, in milliseconds.
        limit_ms: u32,
    },
    /// What an operator asked for on some server; the leader answers.
    AdminCommand {
        /// What it is.
        command: AdminCommand,
        /// Who gave it to the server that passes it on, or what a tool says of its user; for the log.
        origin: String,
    },
    /// "I lead, and I am leaving; campaign now." As in section 3.10 of the Raft thesis.
    TimeoutNow,
    /// A server list that an operator wants on the sender, a member; the leader answers.
    ChangeMembership {
        /// The list that it is to replace: the agreed one, as far as the sender knows.
        replaces: Digest,
        /// The new one.
        members: Vec<Member>,
    },
    /// "How are you?", from an operator's command. Answered in every state.
    ServerStatus,
    /// The leader's heartbeat. Most of them are sent as one-way messages, which get no answer.
    Heartbeat(WireHeartbeat),
    /// "Does your `server_list_file` hold this very list now?", from a leader that was asked to have
    /// the group agree on it.
    ListInFile(Digest),
    /// "Leave all that was founded before, and tell me what you hold."
    Prepare(Prepare),
    /// "You are a voter of this cluster that I founded."
    Found(Box<FoundedCluster<Record>>),
    /// "Which keys do you know to be revoked?" From a leader, to a server that joins.
    Revoked,
    /// What became of sessions that clients resume by their id. Only ever sent one-way.
    Sessions(WireSessions),
    /// "Read your files again", from an operator's command.
    Reload {
        /// Who wants it, as far as the tool can tell; for the log.
        origin: String,
    },
    /// "All servers but these are gone for good; go on with them alone", from an operator's command.
    Recover {
        /// Who is left, the asked server among them.
        survivors: Voters,
        /// As in [`Request::Reload`].
        origin: String,
    },
}

/// The most revoked keys that a server tells of; as many as a ring remembers.
const MAX_REVOKED: usize = 64;

/// How many kinds of requests there are.
const KINDS: u8 = 17;

/// Whether this version has the kind of request that a body says it is, whatever else is in it.
pub fn is_known(body: &[u8]) -> bool {
    body.first().is_some_and(|kind| *kind < KINDS)
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
        last_log_id: Option<LogId>,
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
    /// To [`Request::AdminCommand`].
    AdminCommand(Result<Generation, AdminRefusal>),
    /// To [`Request::TimeoutNow`]: it will.
    TimeoutNow,
    /// To [`Request::ChangeMembership`]: the list's version.
    MembershipChanged(Result<u64, MembershipRefusal>),
    /// To [`Request::Heartbeat`].
    Heartbeat {
        /// Which node the asked server is.
        node: NodeId,
        /// The highest vote that it knows in the asker's cluster, and whether it is committed.
        vote: (LeaderId, bool),
        /// Whether it follows the asker and has nothing to catch up with.
        in_sync: bool,
    },
    /// To anything: the asked server is in no state to answer that.
    ErrorResponse(ErrorResponse),
    /// To [`Request::ServerStatus`].
    ServerStatus(Box<ServerStatus>),
    /// To [`Request::ListInFile`].
    ListInFile(bool),
    /// To [`Request::Prepare`].
    Promise(Result<Box<Promise<Record>>, Refusal>),
    /// To [`Request::Found`]: whether the asked node begins in that cluster.
    Found(bool),
    /// To [`Request::Revoked`].
    Revoked(Vec<Fingerprint>),
    /// To [`Request::Reload`]: what changed, or why nothing did.
    Reloaded(Result<String, String>),
    /// To [`Request::Recover`]: the epoch of the cluster that was founded.
    Recovered(Result<u64, RecoverRefusal>),
}
/// Why a server does not answer a request in the way that was hoped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ErrorResponse {
    /// Raft does not run there at present.
    #[error("it is starting and still joining")]
    Starting,
    /// It is another node than the one that was asked, or has part in another cluster.
    #[error("it is another node, or in another cluster")]
    OtherNode,
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
        Request::Status(status) => check_status(status)?,
        Request::Append(append) => append.check()?,
        Request::Vote(vote) => vote.check()?,
        Request::Heartbeat(heartbeat) => heartbeat.check()?,
        Request::Snapshot(snapshot) => snapshot.check()?,
        Request::Prepare(prepare) => check_epoch(prepare.epoch)?,
        Request::Found(found) => check_found(found)?,
        Request::Sessions(sessions) => sessions.check()?,
        Request::ChangeMembership { members, .. } if members.len() > MAX_MEMBERS => {
            return Err(Malformed::TooMany("members"));
        }
        Request::Recover { survivors, .. } if survivors.len() > MAX_MEMBERS => {
            return Err(Malformed::TooMany("survivors"));
        }
        Request::AdminCommand { origin, .. }
        | Request::Reload { origin }
        | Request::Recover { origin, .. }
            if origin.len() > MAX_ORIGIN =>
        {
            return Err(Malformed::TooMany("words about a command's origin"));
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
        Response::ServerStatus(status) => status.check().map_err(Malformed::Status)?,
        Response::Vote { last_log_id: Some(end), .. } => end.check()?,
        Response::Append(AppendAnswer::Partial(Some(end))) => end.check()?,
        Response::Promise(Ok(promise)) => check_promise(promise)?,
        Response::Revoked(keys) if keys.len() > MAX_REVOKED => {
            return Err(Malformed::TooMany("revoked keys"));
        }
        Response::Reloaded(Ok(words) | Err(words)) if !is_readable(words) => {
            return Err(Malformed::Status(BadStatus::Text));
        }
        _ => {}
    }
    response.highest_vote().map_or(Ok(()), |vote| vote.check())?;
    Ok(response)
}
impl Request {
    /// Whether a tool may ask this; members may ask everything but `Recover`.
    pub fn is_for_tools(&self) -> bool {
        match self {
            Request::Status(_)
            | Request::ServerStatus
            | Request::AdminCommand { .. }
            | Request::Reload { .. }
            | Request::Recover { .. } => true,
            Request::Vote(_)
            | Request::Append(_)
            | Request::Snapshot(_)
            | Request::AwaitInstalled { .. }
            | Request::TimeoutNow
            | Request::ChangeMembership { .. }
            | Request::Heartbeat(_)
            | Request::ListInFile(_)
            | Request::Prepare(_)
            | Request::Found(_)
            | Request::Revoked
            | Request::Sessions(_) => false,
        }
    }
}

impl Response {
    /// The vote that the asker's Raft will take over if it is higher than its own.
    pub fn highest_vote(&self) -> Option<LeaderId> {
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
