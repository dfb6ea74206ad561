//! Agreement: openraft 0.9 behind one module. Its types, an in-memory log store, the state machine
//! around the key ring, and the network adapter.
//!
//! When to stand, to beat, to propose and to erase is for [`crate::node`]; how bytes travel is
//! for [`crate::transport`]. What must hold: no type of openraft's goes on the network (see
//! [`wire`]), and nothing here prints key bytes.
//!
//! openraft's own timers stay off: a stock follower waits for its lease *and* a random timeout
//! before it stands, which is half a second more than the operator's upper election bound says.

pub mod clock;
pub mod log_store;
pub mod network;
pub mod state_machine;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use openraft::impls::{EmptyNode, OneshotResponder};
use openraft::{CommittedLeaderId, Config, LogId, SnapshotPolicy, Vote};

use crate::core::agreed::{Agreed, Change, Command, Refusal};
use crate::core::config::Settings;
use crate::core::moment::Moment;
use crate::core::rejoin::{Ballot, LogEnd};
use crate::core::server_id::ServerId;

openraft::declare_raft_types!(
    /// The types that openraft works with here. Addresses stay out of it: who is where is the
    /// transport's knowledge, so that a changed address is a mere reconnect.
    pub Types:
        D = Command,
        R = Answer,
        NodeId = ServerId,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = AgreedSnapshot,
        Responder = OneshotResponder<Types>,
        AsyncRuntime = clock::SteppedTokio,
);

/// The state machine's content at one point of the log.
#[derive(Clone, Debug, Default)]
pub struct AgreedSnapshot {
    /// The agreed keys and server list.
    pub agreed: Agreed,
    /// When the current one became current, on this process's clock.
    pub current_since: Moment,
    /// When the staged one was staged, on this process's clock.
    pub staged_since: Moment,
}

/// One box's Raft.
pub type Raft = openraft::Raft<Types>;

/// What applying a log entry came to; `None` for entries that carry no command.
pub type Answer = Option<Result<Change, Refusal>>;

/// Most entries in one message; the log is far shorter (see `reserved_log_items`).
const MAX_PAYLOAD_ENTRIES: u64 = 64;

/// How long a snapshot, which is one small frame here, may take: four round trips of the longest
/// kind, since a connection may have to be made first, and at least this. No longer, because the
/// frame waits for a peer that hangs, and it may hold a key that retires meanwhile.
const SNAPSHOT_LIMIT_MIN_MS: u64 = 800;

/// Two thirds of openraft's tick, by which nothing happens here but that a leader which is no
/// longer a member steps down. Rare, since each tick wakes an idle box.
const HEARTBEAT_MS: u64 = 800;

/// openraft's configuration for a box whose timers are ours.
///
/// openraft takes its heart beat interval for the time limit of an append request as well; the
/// links have a shorter one, [`append_limit`]. Its shortest election timeout is the limit of a
/// vote request, its longest one the time within which a follower refuses to vote after the last
/// append; [`crate::node`] does the same after the last heart beat.
pub fn raft_config(settings: &Settings) -> Arc<Config> {
    let lower = (settings.timers.election_lower.as_millis() as u64).max(2);
    let snapshot_policy = match settings.snapshot_distance {
        0 => SnapshotPolicy::Never,
        n => SnapshotPolicy::LogsSinceLast(n),
    };
    #[allow(deprecated)] // A struct literal has to name every field.
    Arc::new(Config {
        cluster_name: "stek_share".to_owned(),
        election_timeout_min: lower,
        election_timeout_max: lower + 1,
        heartbeat_interval: HEARTBEAT_MS.max(lower),
        install_snapshot_timeout: (lower * 4).max(SNAPSHOT_LIMIT_MIN_MS),
        send_snapshot_timeout: 0,
        max_payload_entries: MAX_PAYLOAD_ENTRIES,
        replication_lag_threshold: settings.snapshot_distance.max(MAX_PAYLOAD_ENTRIES),
        snapshot_policy,
        snapshot_max_chunk_size: u64::MAX,
        max_in_snapshot_log_to_keep: settings.reserved_log_items,
        purge_batch_size: 1,
        enable_tick: true,
        enable_heartbeat: false,
        enable_elect: false,
    })
}

/// How long an append may take: a round trip may last almost `election_timeout_lower_bound`.
pub fn append_limit(settings: &Settings) -> Duration {
    settings.timers.election_lower
}

/// openraft's vote as a ballot of ours; whether it is committed is lost.
pub fn ballot_of(vote: &Vote<ServerId>) -> Ballot {
    Ballot { term: vote.leader_id.term, node: vote.leader_id.node_id }
}

/// The vote of somebody who stands: not committed.
pub fn vote_of(ballot: Ballot) -> Vote<ServerId> {
    Vote::new(ballot.term, ballot.node)
}

/// openraft's log id as a log end of ours.
pub fn log_end_of(id: &LogId<ServerId>) -> LogEnd {
    let ballot = Ballot { term: id.leader_id.term, node: id.leader_id.node_id };
    LogEnd { ballot, index: id.index }
}

/// A log end as openraft's log id.
pub fn log_id_of(end: LogEnd) -> LogId<ServerId> {
    LogId::new(CommittedLeaderId::new(end.ballot.term, end.ballot.node), end.index)
}
