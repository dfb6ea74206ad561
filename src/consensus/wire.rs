//! What boxes say to each other, as bytes.
//!
//! These are our own shapes, versioned by the frame around them; openraft's never go on the
//! network, so that a newer openraft can talk to an older one. Encoded with postcard. Who may say
//! what is for [`crate::node`].
//!
//! What must hold: bodies carry key bytes, so they are made in one allocation of the exact size,
//! which is erased when it is dropped; decoding copies keys straight into their cells and bounds
//! what it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use openraft::impls::EmptyNode;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::{Entry, EntryPayload, Membership, Snapshot, SnapshotMeta, StoredMembership, Vote};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{ballot_of, log_end_of, log_id_of, AgreedSnapshot, Types};
use crate::core::agreed::{Agreed, Command, Refusal};
use crate::core::box_status::{BadStatus, BoxStatus};
use crate::core::config::{Member, MAX_MEMBERS};
use crate::core::key_ring::{Generation, MAX_GENERATION};
use crate::core::moment::Moment;
use crate::core::record::Record;
use crate::core::rejoin::{Ballot, LogEnd, Status};
use crate::core::roster::{BadRoster, Digest};
use crate::core::rotation::Order;
use crate::core::server_id::ServerId;

/// Most entries that a message may carry; more than any honest box sends.
const MAX_ENTRIES: usize = 256;

/// The longest name of a snapshot; those of ours are numbers.
const MAX_SNAPSHOT_ID: usize = 32;

/// Most voter sets in a membership.
const MAX_CONFIGS: usize = 2;

/// Most bytes in which one server tells another who gave an order; a subject and an address fit.
pub const MAX_ORIGIN: usize = 400;

/// How many servers one line names.
const MAX_NAMED: usize = 16;

/// What one box asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// "This is me; who are you?" Answered in every state, also across histories.
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
    /// What an operator asked for on some box; the leader answers.
    Order {
        /// What it is.
        order: Order,
        /// Who gave it to the server that passes it on, for the leader's log; a tool leaves it empty.
        origin: String,
    },
    /// "I lead, and I am leaving; stand for election as soon as you can."
    Stand,
    /// A server list that an operator wants on the sender, a member; the leader answers.
    Enlist {
        /// The list that it is to replace: the agreed one, as far as the sender knows.
        replaces: Digest,
        /// The new one.
        members: Vec<Member>,
    },
    /// "How are you?", from an operator's command. Answered in every state.
    Report,
    /// The leader's heart beat. Most of them are sent as notes, which get no answer.
    Beat(WireBeat),
    /// "This is me; who are you, and what do the others say of themselves?" As [`Request::Status`],
    /// for groups in which not everybody can ask everybody.
    Survey(Status),
    /// "Does your `server_list_file` hold this very list now?", from a leader that was asked to have
    /// the group agree on it.
    ListInFile(Digest),
    /// "I lead, and nobody remembers any key; what does your state file say?"
    Record,
}

/// What the asked box answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Vote`].
    Vote {
        /// The highest vote that the asked box knows, and whether it is committed.
        vote: (Ballot, bool),
        /// Whether it voted for the asker.
        granted: bool,
        /// The end of its log.
        log_end: Option<LogEnd>,
    },
    /// To [`Request::Append`].
    Append(AppendAnswer),
    /// To [`Request::Snapshot`]: the highest vote, and whether it is committed.
    Snapshot {
        /// As in [`Response::Vote`].
        vote: (Ballot, bool),
    },
    /// To [`Request::AwaitInstalled`].
    Installed {
        /// The newest generation that is installed.
        newest: Generation,
        /// The run of the process that has it: one that is started anew has not.
        incarnation: u64,
    },
    /// To [`Request::Order`].
    Ordered(Result<Generation, OrderRefusal>),
    /// To [`Request::Stand`]: it will.
    WillStand,
    /// To [`Request::Enlist`]: the list's version.
    Enlisted(Result<u64, EnlistRefusal>),
    /// To [`Request::Beat`].
    Beat {
        /// The highest vote that the asked box knows, and whether it is committed.
        vote: (Ballot, bool),
        /// Whether it follows the asker and has nothing to catch up with.
        level: bool,
    },
    /// To anything: the asked box is in no state to answer that.
    Unable(Unable),
    /// To [`Request::Report`].
    Report(Box<BoxStatus>),
    /// To [`Request::Survey`]: the asked box's own word, and those of others.
    Survey(Status, Vec<Hearsay>),
    /// To [`Request::ListInFile`].
    ListInFile(bool),
    /// To [`Request::Record`].
    Record(Option<Box<Record>>),
}

/// What a box said of itself, told by another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hearsay {
    /// Who said it.
    pub from: ServerId,
    /// How long before the question came, in milliseconds; 0 if it was said because of it.
    pub age_ms: u32,
    /// What it said.
    pub status: Status,
}

/// Why a box does not answer a request in the way that was hoped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Unable {
    /// It has not found out yet what it may do.
    #[error("it is starting and still asks around")]
    Starting,
    /// It came back empty and does not vote yet.
    #[error("it came back without memory and does not vote yet")]
    Quarantined,
    /// It belongs to another history.
    #[error("it belongs to another history")]
    OtherHistory,
    /// Its Raft has stopped.
    #[error("its agreement has stopped and starts anew")]
    Stopped,
    /// The message broke a rule.
    #[error("it found the message malformed")]
    Malformed,
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum OrderRefusal {
    /// Nobody leads, the leader cannot be reached, or it has no majority; nothing was proposed.
    #[error("there is no leader at present; try again in a second")]
    NoLeader,
    /// The leader lost its office, or the way to it was cut, before it could answer.
    #[error("the leader changed in the meantime; it may still happen")]
    Unknown,
    /// One handover at a time.
    #[error("a handover to generation {0} is under way; try again in a second")]
    HandoverUnderWay(Generation),
    /// The group did not agree in time.
    #[error("the group did not agree within client_req_timeout; it may still happen")]
    TimedOut,
    /// The group refused the key.
    #[error("the group refused the new key: {0}")]
    Refused(String),
}

/// Why a server list was not agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnlistRefusal {
    /// Nobody leads, or the leader cannot be reached; nothing was proposed.
    NoLeader,
    /// The leader lost its office, or the way to it was cut, before it could answer.
    Unknown,
    /// No group could have this list.
    Bad(BadRoster),
    /// The sender does not answer at its address in the group's list.
    NotAtPlace,
    /// The list that was to be replaced is not the group's; its version now.
    Stale(u64),
    /// The membership does not follow the last list yet.
    UnderWay(u64),
    /// A majority of the old or of the new list is not there; the change could get stuck half way.
    TooFew {
        /// Whether it is the new list.
        of_new: bool,
        /// Who is missing.
        missing: Vec<ServerId>,
    },
    /// Too few servers of the present list have the new one in their files: no majority of the
    /// servers wants it.
    NotInFiles {
        /// Those whose files hold another one.
        lacking: Vec<ServerId>,
        /// Those that did not say.
        silent: Vec<ServerId>,
    },
    /// The group refused the list.
    Refused(String),
    /// The group did not agree in time.
    TimedOut,
}

/// "server 2", "servers 2, 3 and 5"; of many servers the first [`MAX_NAMED`].
fn servers(ids: &[ServerId]) -> String {
    let shown: Vec<String> = ids.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    let more = ids.len() - shown.len();
    match shown.as_slice() {
        [one] => format!("server {one}"),
        _ if more > 0 => format!("servers {} and {more} more", shown.join(", ")),
        [first @ .., last] => format!("servers {} and {last}", first.join(", ")),
        [] => "no server".to_owned(),
    }
}

impl fmt::Display for EnlistRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnlistRefusal::NoLeader => {
                write!(f, "there is no leader at present; try again in a second")
            }
            EnlistRefusal::Unknown => {
                write!(f, "the leader changed in the meantime; it may still happen")
            }
            EnlistRefusal::Bad(why) => write!(f, "{why}"),
            EnlistRefusal::NotAtPlace => write!(
                f,
                "the leader does not reach this server at its address in the group's list; send \
                 reload to a server that is reached there"
            ),
            EnlistRefusal::Stale(version) => write!(
                f,
                "the group's list has changed since, to version {version}; see whether the new \
                 list is still what you want, then reload again"
            ),
            EnlistRefusal::UnderWay(version) => {
                write!(f, "the change to list version {version} is under way; try again later")
            }
            EnlistRefusal::TooFew { of_new, missing } => {
                let which = if *of_new { "new" } else { "present" };
                let names = servers(missing);
                write!(f, "no majority of the {which} list is up and whole; missing: {names}")
            }
            EnlistRefusal::NotInFiles { lacking, silent } => {
                if !lacking.is_empty() {
                    let verb = if lacking.len() == 1 { "does" } else { "do" };
                    write!(f, "{} {verb} not have this list yet", servers(lacking))?;
                }
                if !silent.is_empty() {
                    let join = if lacking.is_empty() { "" } else { "; " };
                    write!(f, "{join}{} did not say what the file holds", servers(silent))?;
                }
                write!(f, ": put the same server_list_file on all servers, then reload one")
            }
            EnlistRefusal::Refused(why) => write!(f, "the group refused it: {why}"),
            EnlistRefusal::TimedOut => {
                write!(f, "the group did not agree within client_req_timeout; it may still happen")
            }
        }
    }
}

/// The outcome of an append request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppendAnswer {
    /// All entries are in the log.
    Success,
    /// Those up to here are.
    Partial(Option<LogEnd>),
    /// The entry before them is not there.
    Conflict,
    /// Another leader's ballot is higher; and whether it is committed.
    HigherVote(Ballot, bool),
}

/// Raft's RequestVote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireVote {
    /// Term and candidate.
    pub ballot: Ballot,
    /// The end of the candidate's log.
    pub log_end: Option<LogEnd>,
}

/// Raft's AppendEntries.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireAppend {
    /// The leader's ballot, and whether it is committed.
    pub vote: (Ballot, bool),
    /// The entry right before `entries`.
    pub previous: Option<LogEnd>,
    /// What to append.
    pub entries: Vec<WireEntry>,
    /// Up to where the leader knows of agreement.
    pub commit: Option<LogEnd>,
    /// The leader's current key and its age in milliseconds, so that a box that returns does not
    /// take an old key for a fresh one.
    pub age: Option<(Generation, u64)>,
    /// Whether a majority acknowledged the leader lately.
    pub quorum: bool,
}

/// A leader's heart beat: says that it lives and how far it is. Carries nothing that a box would
/// have to remember; one that is behind says so, and is sent an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireBeat {
    /// The leader's ballot, which a majority gave it.
    pub ballot: Ballot,
    /// The end of its log.
    pub log_end: Option<LogEnd>,
    /// As in [`WireAppend`].
    pub commit: Option<LogEnd>,
    /// As in [`WireAppend`].
    pub age: Option<(Generation, u64)>,
    /// As in [`WireAppend`].
    pub quorum: bool,
    /// When the next beat is due, in milliseconds; 0 if the leader leaves and none will come.
    pub next_ms: u32,
}

/// One entry of the log.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireEntry {
    /// Its id.
    pub id: LogEnd,
    /// Its content.
    pub payload: WirePayload,
}

/// What an entry holds.
#[derive(Debug, Serialize, Deserialize)]
pub enum WirePayload {
    /// Nothing: a leader's first entry.
    Blank,
    /// A change of the agreed state.
    Command(Command),
    /// Who belongs to the group.
    Membership(WireMembership),
}

/// Who belongs to the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireMembership {
    /// The voters; two sets during a change.
    pub configs: Vec<BTreeSet<ServerId>>,
    /// All members.
    pub members: BTreeSet<ServerId>,
}

/// Raft's InstallSnapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireSnapshot {
    /// The leader's ballot, and whether it is committed.
    pub vote: (Ballot, bool),
    /// The last entry that it covers.
    pub last: Option<LogEnd>,
    /// The entry that set the membership.
    pub membership_at: Option<LogEnd>,
    /// The membership.
    pub membership: WireMembership,
    /// Tells snapshots of one box apart.
    pub id: String,
    /// The agreed keys and server list.
    pub agreed: Agreed,
    /// How old the current key is, in milliseconds.
    pub current_age_ms: u64,
    /// How long the staged key has been staged, in milliseconds.
    pub staged_age_ms: u64,
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The encoding is broken; the decoder's own word for it.
    #[error("its encoding is broken: {0}")]
    Encoding(postcard::Error),
    /// Bytes are left over.
    #[error("{0} bytes are left over")]
    Trailing(usize),
    /// There is more of something than any box sends.
    #[error("it holds too many {0}")]
    TooMany(&'static str),
    /// A term or an index is beyond all reason.
    #[error("it counts terms or entries beyond all reason")]
    Absurd,
    /// Entries do not follow each other, or are of a later term than whoever sends them.
    #[error("its entries are out of order")]
    Order,
    /// A vote that nobody gave cannot be committed, and so on.
    #[error("it has no voters")]
    NoVoters,
    /// The state in a snapshot is one that no commands could have made.
    #[error("its agreed state is impossible: {0}")]
    State(Refusal),
    /// A status that no box gives.
    #[error("its status has {0}")]
    Status(BadStatus),
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
        Request::Status(status) | Request::Survey(status) => check_status(status)?,
        Request::Append(append) => append.check()?,
        Request::Vote(vote) => vote.check()?,
        Request::Beat(beat) => beat.check()?,
        Request::Snapshot(snapshot) => snapshot.check()?,
        Request::Enlist { members, .. } if members.len() > MAX_MEMBERS => {
            return Err(Malformed::TooMany("members"));
        }
        Request::Order { origin, .. } if origin.len() > MAX_ORIGIN => {
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
        Response::Survey(_, others) if others.len() > MAX_MEMBERS => {
            return Err(Malformed::TooMany("members"));
        }
        Response::Survey(own, others) => {
            check_status(own)?;
            others.iter().try_for_each(|other| check_status(&other.status))?;
        }
        Response::Report(status) => status.check().map_err(Malformed::Status)?,
        Response::Vote { log_end: Some(end), .. } => end.check()?,
        Response::Append(AppendAnswer::Partial(Some(end))) => end.check()?,
        Response::Record(Some(record)) => check_record(record)?,
        _ => {}
    }
    response.ballot().map_or(Ok(()), |ballot| ballot.check())?;
    Ok(response)
}

/// Whether this is something that a box could have kept.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_record(record: &Record) -> Result<(), Malformed> {
    record.end.check()?;
    record.ring.check().map_err(|refusal| Malformed::State(refusal.into()))
}

fn check_status(status: &Status) -> Result<(), Malformed> {
    status.ballot.check()?;
    if status.generation > MAX_GENERATION {
        return Err(Malformed::Absurd);
    }
    status.log_end.map_or(Ok(()), |end| end.check())
}

impl Response {
    /// The ballot that the asker's Raft will take over if it is higher than its own.
    pub fn ballot(&self) -> Option<Ballot> {
        match self {
            Response::Vote { vote, .. } | Response::Snapshot { vote } => Some(vote.0),
            Response::Append(AppendAnswer::HigherVote(ballot, _)) => Some(*ballot),
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

impl WireAppend {
    /// The message for an append request of openraft's.
    pub fn from_raft(
        rpc: AppendEntriesRequest<Types>,
        age: Option<(Generation, u64)>,
        quorum: bool,
    ) -> WireAppend {
        WireAppend {
            vote: (ballot_of(&rpc.vote), rpc.vote.committed),
            previous: rpc.prev_log_id.as_ref().map(log_end_of),
            entries: rpc.entries.into_iter().map(WireEntry::from_raft).collect(),
            commit: rpc.leader_commit.as_ref().map(log_end_of),
            age,
            quorum,
        }
    }

    /// openraft's request for this message.
    pub fn into_raft(self) -> AppendEntriesRequest<Types> {
        AppendEntriesRequest {
            vote: raft_vote(self.vote),
            prev_log_id: self.previous.map(log_id_of),
            entries: self.entries.into_iter().map(WireEntry::into_raft).collect(),
            leader_commit: self.commit.map(log_id_of),
        }
    }

    /// Whether it is one that a leader could send.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Malformed> {
        if self.entries.len() > MAX_ENTRIES {
            return Err(Malformed::TooMany("entries"));
        }
        let ends = self.entries.iter().map(|entry| entry.id);
        for end in ends.chain(self.previous).chain(self.commit) {
            end.check()?;
        }
        self.vote.0.check()?;
        // A leader's log holds entries of its own ballot and of earlier ones, in their order.
        if self.commit.is_some_and(|commit| commit.ballot > self.vote.0) {
            return Err(Malformed::Order);
        }
        let mut ballot = self.previous.map_or(Ballot::default(), |p| p.ballot);
        let first = self.previous.map_or(0, |p| p.index + 1);
        for (index, entry) in (first..).zip(&self.entries) {
            if entry.id.index != index || entry.id.ballot < ballot {
                return Err(Malformed::Order);
            }
            ballot = entry.id.ballot;
            entry.check()?;
        }
        match ballot <= self.vote.0 {
            true => Ok(()),
            false => Err(Malformed::Order),
        }
    }
}

impl WireEntry {
    /// Whether its content is within bounds: it may have to be sent on, whether it is applied or
    /// refused.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Malformed> {
        match &self.payload {
            WirePayload::Membership(membership) => membership.check(),
            WirePayload::Command(Command::Enlist(list)) => {
                list.check().map_err(|bad| Malformed::State(bad.into()))
            }
            WirePayload::Blank | WirePayload::Command(_) => Ok(()),
        }
    }

    /// The message for an entry of openraft's.
    pub fn from_raft(entry: Entry<Types>) -> WireEntry {
        let payload = match entry.payload {
            EntryPayload::Blank => WirePayload::Blank,
            EntryPayload::Normal(command) => WirePayload::Command(command),
            EntryPayload::Membership(m) => WirePayload::Membership(WireMembership::from_raft(&m)),
        };
        WireEntry { id: log_end_of(&entry.log_id), payload }
    }

    /// openraft's entry for this message.
    pub fn into_raft(self) -> Entry<Types> {
        let payload = match self.payload {
            WirePayload::Blank => EntryPayload::Blank,
            WirePayload::Command(command) => EntryPayload::Normal(command),
            WirePayload::Membership(m) => EntryPayload::Membership(m.into_raft()),
        };
        Entry { log_id: log_id_of(self.id), payload }
    }
}

impl WireMembership {
    /// The message for a membership of openraft's.
    pub fn from_raft(membership: &Membership<ServerId, EmptyNode>) -> WireMembership {
        WireMembership {
            configs: membership.get_joint_config().clone(),
            members: membership.nodes().map(|(id, _)| *id).collect(),
        }
    }

    /// openraft's membership for this message.
    pub fn into_raft(self) -> Membership<ServerId, EmptyNode> {
        let nodes: BTreeMap<ServerId, EmptyNode> =
            self.members.into_iter().map(|id| (id, EmptyNode {})).collect();
        Membership::new(self.configs, nodes)
    }

    /// Whether it is within what any group has.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Malformed> {
        if self.configs.len() > MAX_CONFIGS {
            return Err(Malformed::TooMany("configurations"));
        }
        if self.members.len() > MAX_MEMBERS
            || self.configs.iter().any(|voters| voters.len() > MAX_MEMBERS)
        {
            return Err(Malformed::TooMany("members"));
        }
        if self.configs.is_empty() || self.configs.iter().any(BTreeSet::is_empty) {
            return Err(Malformed::NoVoters);
        }
        Ok(())
    }
}

impl WireSnapshot {
    /// The message for a snapshot of openraft's; ages are as of `now`.
    pub fn from_raft(vote: Vote<ServerId>, snapshot: Snapshot<Types>, now: Moment) -> WireSnapshot {
        let meta = snapshot.meta;
        let state = *snapshot.snapshot;
        WireSnapshot {
            vote: (ballot_of(&vote), vote.committed),
            last: meta.last_log_id.as_ref().map(log_end_of),
            membership_at: meta.last_membership.log_id().as_ref().map(log_end_of),
            membership: WireMembership::from_raft(meta.last_membership.membership()),
            id: meta.snapshot_id,
            current_age_ms: millis(now.since(state.current_since)),
            staged_age_ms: millis(now.since(state.staged_since)),
            agreed: state.agreed,
        }
    }

    /// The leader's vote and openraft's snapshot for this message that arrived at `now`.
    pub fn into_raft(self, now: Moment) -> (Vote<ServerId>, Snapshot<Types>) {
        let meta = SnapshotMeta {
            last_log_id: self.last.map(log_id_of),
            last_membership: StoredMembership::new(
                self.membership_at.map(log_id_of),
                self.membership.into_raft(),
            ),
            snapshot_id: self.id,
        };
        let snapshot = Box::new(AgreedSnapshot {
            agreed: self.agreed,
            current_since: now.ago(Duration::from_millis(self.current_age_ms)),
            staged_since: now.ago(Duration::from_millis(self.staged_age_ms)),
        });
        (raft_vote(self.vote), Snapshot { meta, snapshot })
    }

    fn check(&self) -> Result<(), Malformed> {
        self.membership.check()?;
        self.vote.0.check()?;
        for end in self.last.iter().chain(&self.membership_at) {
            end.check()?;
        }
        if self.id.len() > MAX_SNAPSHOT_ID {
            return Err(Malformed::TooMany("letters in its name"));
        }
        let last = self.last.ok_or(Malformed::Order)?;
        if last.ballot > self.vote.0 || self.membership_at > self.last {
            return Err(Malformed::Order);
        }
        self.agreed.check().map_err(Malformed::State)
    }
}

/// No group ever gets here: a term or an index each nanosecond for a hundred years. Beyond it,
/// counting on would overflow somewhere. How a group is kept from being led here in leaps is in
/// [`crate::core::rejoin::Horizon`].
const MAX_COUNT: u64 = 1 << 62;

impl Ballot {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        match self.term <= MAX_COUNT {
            true => Ok(()),
            false => Err(Malformed::Absurd),
        }
    }
}

impl LogEnd {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        self.ballot.check()?;
        match self.index <= MAX_COUNT {
            true => Ok(()),
            false => Err(Malformed::Absurd),
        }
    }
}

impl WireBeat {
    fn check(&self) -> Result<(), Malformed> {
        self.ballot.check()?;
        self.log_end.iter().chain(&self.commit).try_for_each(LogEnd::check)
    }
}

impl WireVote {
    fn check(&self) -> Result<(), Malformed> {
        self.ballot.check()?;
        self.log_end.map_or(Ok(()), |end| end.check())
    }

    /// The message for a vote request of openraft's.
    pub fn from_raft(rpc: &VoteRequest<ServerId>) -> WireVote {
        let log_end = rpc.last_log_id.as_ref().map(log_end_of);
        WireVote { ballot: ballot_of(&rpc.vote), log_end }
    }

    /// openraft's request for this message.
    pub fn into_raft(self) -> VoteRequest<ServerId> {
        VoteRequest::new(super::vote_of(self.ballot), self.log_end.map(log_id_of))
    }
}

/// The message for openraft's answer to a vote request.
pub fn vote_answer(answer: &VoteResponse<ServerId>) -> Response {
    Response::Vote {
        vote: (ballot_of(&answer.vote), answer.vote.committed),
        granted: answer.vote_granted,
        log_end: answer.last_log_id.as_ref().map(log_end_of),
    }
}

/// openraft's vote for one on the wire.
pub fn raft_vote((ballot, committed): (Ballot, bool)) -> Vote<ServerId> {
    match committed {
        true => Vote::new_committed(ballot.term, ballot.node),
        false => Vote::new(ballot.term, ballot.node),
    }
}

impl AppendAnswer {
    /// The message for openraft's answer.
    pub fn from_raft(answer: &AppendEntriesResponse<ServerId>) -> AppendAnswer {
        match answer {
            AppendEntriesResponse::Success => AppendAnswer::Success,
            AppendEntriesResponse::PartialSuccess(id) => {
                AppendAnswer::Partial(id.as_ref().map(log_end_of))
            }
            AppendEntriesResponse::Conflict => AppendAnswer::Conflict,
            AppendEntriesResponse::HigherVote(vote) => {
                AppendAnswer::HigherVote(ballot_of(vote), vote.committed)
            }
        }
    }

    /// openraft's answer for this message.
    pub fn into_raft(self) -> AppendEntriesResponse<ServerId> {
        match self {
            AppendAnswer::Success => AppendEntriesResponse::Success,
            AppendAnswer::Partial(end) => AppendEntriesResponse::PartialSuccess(end.map(log_id_of)),
            AppendAnswer::Conflict => AppendEntriesResponse::Conflict,
            AppendAnswer::HigherVote(ballot, committed) => {
                AppendEntriesResponse::HigherVote(raft_vote((ballot, committed)))
            }
        }
    }
}

/// A duration in whole milliseconds, as messages carry it.
pub fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::MAX_SUBJECT;
    use crate::core::key_ring::{
        Command as KeyCommand, Held, HistoryId, KeyRing, Refusal as KeyRefusal,
    };
    use crate::core::roster::{Roster, MAX_ADDRESS};
    use crate::core::stek::{Stek, STEK_LEN};
    use crate::transport::frame::MAX_BODY;

    fn end(term: u64, index: u64) -> LogEnd {
        LogEnd { ballot: Ballot { term, node: ServerId(2) }, index }
    }

    fn held(generation: u64) -> Held {
        let bytes: Vec<u8> =
            (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ generation as u8).collect();
        Held { generation: Generation(generation), stek: Stek::copy_from(&bytes).unwrap() }
    }

    fn append(indexes: &[u64]) -> WireAppend {
        let entries = indexes
            .iter()
            .map(|&i| WireEntry {
                id: end(3, i),
                payload: WirePayload::Command(Command::Key(KeyCommand::Stage {
                    held: held(i),
                    revokes: false,
                })),
            })
            .collect();
        WireAppend {
            vote: (end(3, 0).ballot, true),
            previous: Some(end(3, 7)),
            entries,
            commit: Some(end(3, 6)),
            age: Some((Generation(5), 1234)),
            quorum: true,
        }
    }

    fn ring() -> KeyRing {
        let mut ring = KeyRing::default();
        let history = HistoryId::from_bytes([1; 16]).unwrap();
        ring.apply(KeyCommand::Found { history, epoch: 1, from: None }).unwrap();
        ring.apply(KeyCommand::Stage { held: held(1), revokes: false }).unwrap();
        ring.apply(KeyCommand::Activate { generation: Generation(1), keep: 2 }).unwrap();
        ring
    }

    #[test]
    fn an_append_survives_the_way_through_bytes_and_openraft() {
        let bytes = encode(&Request::Append(append(&[8, 9]))).unwrap();
        let Ok(Request::Append(back)) = decode_request(&bytes) else { panic!("not an append") };
        assert_eq!(back.age, Some((Generation(5), 1234)));
        let again = WireAppend::from_raft(back.into_raft(), Some((Generation(5), 1234)), true);
        assert_eq!(*encode(&Request::Append(again)).unwrap(), *bytes);
    }

    #[test]
    fn a_refused_list_says_who_lacks_it_and_what_to_do() {
        let ids = |ids: &[u32]| ids.iter().map(|&id| ServerId(id)).collect::<Vec<_>>();
        let said = |lacking: &[u32], silent: &[u32]| {
            let (lacking, silent) = (ids(lacking), ids(silent));
            EnlistRefusal::NotInFiles { lacking, silent }.to_string()
        };
        let remedy = ": put the same server_list_file on all servers, then reload one";
        for (lacking, silent, words) in [
            (&[2, 3][..], &[][..], "servers 2 and 3 do not have this list yet"),
            (
                &[2],
                &[4],
                "server 2 does not have this list yet; server 4 did not say what the file holds",
            ),
            (&[], &[2, 3, 4], "servers 2, 3 and 4 did not say what the file holds"),
        ] {
            assert_eq!(said(lacking, silent), format!("{words}{remedy}"));
        }
        let most: Vec<u32> = (1..=MAX_MEMBERS as u32).collect();
        let words = said(&most, &most);
        assert!(words.contains(", 16 and 984 more do not") && words.len() < 400, "{words}");
    }

    #[test]
    fn an_order_says_where_it_came_from_in_bounded_words() {
        let order = |length| Request::Order { order: Order::Revoke, origin: "x".repeat(length) };
        assert!(decode_request(&encode(&order(MAX_ORIGIN)).unwrap()).is_ok());
        let refused = decode_request(&encode(&order(MAX_ORIGIN + 1)).unwrap());
        assert!(matches!(refused, Err(Malformed::TooMany(_))), "{refused:?}");
    }

    #[test]
    fn entries_must_follow_each_other() {
        for bad in [&[9, 10][..], &[8, 10], &[8, 8]] {
            let bytes = encode(&Request::Append(append(bad))).unwrap();
            assert!(matches!(decode_request(&bytes), Err(Malformed::Order)));
        }
    }

    #[test]
    fn counts_beyond_all_reason_are_refused() {
        let absurd = LogEnd { index: u64::MAX, ..end(3, 0) };
        let mut appends: Vec<WireAppend> = (0..4).map(|_| append(&[8])).collect();
        appends[0].previous = Some(absurd);
        appends[1].commit = Some(absurd);
        appends[2].vote.0.term = u64::MAX;
        appends[3].entries[0].id.index = u64::MAX;
        for append in appends {
            let bytes = encode(&Request::Append(append)).unwrap();
            assert!(matches!(decode_request(&bytes), Err(Malformed::Absurd)));
        }
        let vote = WireVote { ballot: end(u64::MAX, 0).ballot, log_end: None };
        let bytes = encode(&Request::Vote(vote)).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::Absurd)));
    }

    #[test]
    fn absurd_answers_are_refused_too() {
        let absurd = end(MAX_COUNT + 1, 0).ballot;
        let far = Some(end(3, MAX_COUNT + 1));
        let status = |ballot, log_end| Status { ballot, log_end, ..Status::default() };
        for answer in [
            Response::Append(AppendAnswer::HigherVote(absurd, true)),
            Response::Append(AppendAnswer::Partial(far)),
            Response::Vote { vote: (absurd, false), granted: true, log_end: None },
            Response::Vote { vote: (end(3, 0).ballot, false), granted: true, log_end: far },
            Response::Snapshot { vote: (absurd, true) },
            Response::Status(status(absurd, None)),
            Response::Status(status(end(3, 0).ballot, far)),
        ] {
            let bytes = encode(&answer).unwrap();
            assert!(matches!(decode_response(&bytes), Err(Malformed::Absurd)), "{answer:?}");
        }
        let bytes = encode(&Request::Status(status(absurd, None))).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::Absurd)));
    }

    #[test]
    fn a_leader_sends_nothing_of_a_later_ballot_than_its_own() {
        let mut appends: Vec<WireAppend> = (0..4).map(|_| append(&[8, 9])).collect();
        appends[0].previous = Some(end(4, 7));
        appends[1].commit = Some(end(4, 7));
        appends[2].entries[1].id = end(4, 9);
        appends[3].entries[1].id = end(2, 9);
        for append in appends {
            let bytes = encode(&Request::Append(append)).unwrap();
            assert!(matches!(decode_request(&bytes), Err(Malformed::Order)));
        }
        let mut snapshots: Vec<WireSnapshot> = (0..3).map(|_| snapshot(ring())).collect();
        snapshots[0].last = None;
        snapshots[1].last = Some(end(4, 9));
        snapshots[2].membership_at = Some(end(3, 10));
        for snapshot in snapshots {
            let bytes = encode(&Request::Snapshot(snapshot)).unwrap();
            assert!(matches!(decode_request(&bytes), Err(Malformed::Order)));
        }
    }

    #[test]
    fn bounds_hold() {
        let many: Vec<u64> = (8..8 + MAX_ENTRIES as u64 + 1).collect();
        let bytes = encode(&Request::Append(append(&many))).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::TooMany("entries"))));
        let mut bytes = encode(&Request::Order { order: Order::Rotate, origin: String::new() })
            .unwrap()
            .to_vec();
        bytes.push(0);
        assert!(matches!(decode_request(&bytes), Err(Malformed::Trailing(1))));
    }

    fn snapshot(ring: KeyRing) -> WireSnapshot {
        let members = BTreeSet::from([ServerId(1), ServerId(2)]);
        let agreed = Agreed::of_ring(ring);
        WireSnapshot {
            vote: (end(3, 0).ballot, true),
            last: Some(end(3, 9)),
            membership_at: Some(end(0, 0)),
            membership: WireMembership { configs: vec![members.clone()], members },
            id: "4".to_owned(),
            agreed,
            current_age_ms: 7000,
            staged_age_ms: 0,
        }
    }

    /// What is agreed has to fit into one message however large it is within its bounds: a server
    /// that restarts could not be taken in otherwise.
    #[test]
    fn the_largest_state_fits_into_a_message() {
        let member = |id: u32, version: u64| Member {
            id: ServerId(u32::MAX - id),
            address: format!("{version:0>0$}", MAX_ADDRESS),
            port: 1 + (id + version as u32) as u16,
            subject: Some(format!("{id:s>0$}", MAX_SUBJECT)),
        };
        let mut agreed = Agreed::default();
        let history = HistoryId::from_bytes([1; 16]).unwrap();
        agreed.ring.apply(KeyCommand::Found { history, epoch: 1, from: None }).unwrap();
        let keys = 100;
        for generation in 1..=keys {
            let stage = KeyCommand::Stage { held: held(generation), revokes: false };
            agreed.ring.apply(stage).unwrap();
            if generation < keys {
                let generation = Generation(generation);
                agreed.ring.apply(KeyCommand::Activate { generation, keep: 255 }).unwrap();
            }
        }
        let largest = |version| {
            let members: Vec<Member> =
                (0..MAX_MEMBERS as u32).map(|i| member(i, version)).collect();
            Roster::new(version, &members).unwrap()
        };
        let one = Roster::new(1, &[member(1, 1)]).unwrap();
        for version in 1..=70 {
            let list = match version {
                70 => largest(version),
                _ => Roster::new(version, one.members()).unwrap(),
            };
            agreed.apply(Command::Enlist(list)).unwrap();
        }
        let everybody = || (0..MAX_MEMBERS as u32).map(|id| ServerId(u32::MAX - id)).collect();
        let mut largest = snapshot(KeyRing::default());
        largest.agreed = agreed;
        largest.membership =
            WireMembership { configs: vec![everybody(), everybody()], members: everybody() };
        largest.id = "9".repeat(MAX_SNAPSHOT_ID);
        let bytes = encode(&Request::Snapshot(largest)).unwrap();
        assert!(decode_request(&bytes).is_ok());
        assert!(bytes.len() < MAX_BODY, "{} bytes", bytes.len());
    }

    #[test]
    fn entries_and_names_beyond_all_bounds_are_refused() {
        let long = Member { id: ServerId(1), address: "a".repeat(900_000), port: 1, subject: None };
        let list: Roster = postcard::from_bytes(&encode(&(1_u64, vec![long])).unwrap()).unwrap();
        let mut append = append(&[8]);
        append.entries[0].payload = WirePayload::Command(Command::Enlist(list));
        let bytes = encode(&Request::Append(append)).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::State(Refusal::Roster(_)))));
        let mut named = snapshot(ring());
        named.id = "4".repeat(MAX_SNAPSHOT_ID + 1);
        let bytes = encode(&Request::Snapshot(named)).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::TooMany(_))));
        let generation = Generation(MAX_GENERATION.0 + 1);
        let status = Status { generation, ..Status::default() };
        let bytes = encode(&Request::Status(status)).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::Absurd)));
    }

    #[test]
    fn a_snapshot_carries_ages_not_clock_readings() {
        let bytes = encode(&Request::Snapshot(snapshot(ring()))).unwrap();
        let Ok(Request::Snapshot(back)) = decode_request(&bytes) else { panic!("no snapshot") };
        let arrived = Moment::from_start(Duration::from_secs(100));
        let (vote, snapshot) = back.into_raft(arrived);
        assert!(vote.committed);
        assert_eq!(arrived.since(snapshot.snapshot.current_since), Duration::from_secs(7));
        let sent = WireSnapshot::from_raft(vote, snapshot, arrived + Duration::from_secs(2));
        assert_eq!(sent.current_age_ms, 9000);
    }

    #[test]
    fn impossible_rings_and_memberships_are_refused() {
        let mut bad = snapshot(ring());
        bad.membership.configs.clear();
        let bytes = encode(&Request::Snapshot(bad)).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::NoVoters)));

        // A zero key can only come from a box that skipped the gate.
        let bytes = encode(&Request::Snapshot(snapshot(ring()))).unwrap();
        let key = *held(1).stek.expose();
        let at = bytes.windows(STEK_LEN).position(|w| w == key).unwrap();
        let mut bytes = bytes.to_vec();
        bytes[at..at + 16].fill(0);
        assert!(matches!(
            decode_request(&bytes),
            Err(Malformed::State(Refusal::Key(KeyRefusal::Weak(_))))
        ));
    }

    #[test]
    fn a_status_survives_and_one_that_no_box_gives_is_refused() {
        let status = crate::core::box_status::tests::sample();
        let bytes = encode(&Response::Report(Box::new(status.clone()))).unwrap();
        let Ok(Response::Report(back)) = decode_response(&bytes) else { panic!("no status") };
        assert_eq!(*back, status);
        for cut in 0..bytes.len() {
            assert!(decode_response(&bytes[..cut]).is_err(), "prefix of {cut} bytes");
        }
        let mut odd = status;
        odd.certificate.subject = "/CN=\u{1b}[31m".to_owned();
        let bytes = encode(&Response::Report(Box::new(odd))).unwrap();
        assert!(matches!(decode_response(&bytes), Err(Malformed::Status(BadStatus::Text))));
    }

    #[test]
    fn no_prefix_of_a_message_decodes_and_nothing_panics() {
        let bytes = encode(&Request::Snapshot(snapshot(ring()))).unwrap();
        for cut in 0..bytes.len() {
            assert!(decode_request(&bytes[..cut]).is_err(), "prefix of {cut} bytes");
        }
    }
}
