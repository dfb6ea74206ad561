//! Agreement: openraft 0.9 behind one module. Its types, an in-memory log store, the state machine
//! around the key ring, and the network adapter.
//!
//! When to campaign, to send heartbeats, to propose and to erase is for [`crate::node`]; what
//! messages look like for [`crate::rpc`]; how bytes travel for [`crate::transport`]. Invariants: no
//! type of openraft's goes on the network, none is named outside of here and [`crate::node`], and
//! nothing here prints key bytes.
//!
//! openraft's own timers stay off: a stock follower waits for its lease *and* a random timeout
//! before it campaigns, which is half a second more than the operator's upper election bound says.

pub mod clock;
mod convert;
pub mod log_store;
pub mod network;
pub mod state_machine;
mod types;

pub use clock::VOTE_LEASE;
pub use convert::vote_answer;
pub use types::{
    leader_id_of, log_id_of, raft_log_id, vote_of, AgreedSnapshot, Answer, Raft, Types,
};

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use clock::LIMITED_ELSEWHERE;

use crate::core::config::Settings;

/// Most entries in one message; the log is far shorter (see `reserved_log_items`).
const MAX_PAYLOAD_ENTRIES: u64 = 64;

/// How long a snapshot, which is one small frame here, may take: four round trips of the longest
/// kind, since a connection may have to be made first, and at least this. No longer, because the
/// frame waits for a peer that hangs, and it may hold a key that retires meanwhile.
const SNAPSHOT_LIMIT_MIN_MS: u64 = 800;

/// Two thirds of openraft's tick, by which nothing happens here but that a leader which is no
/// longer a member steps down. Rare, since each tick wakes an idle server.
const HEARTBEAT_MS: u64 = 800;

/// openraft's configuration for a server whose timers are ours.
///
/// openraft takes its heartbeat interval for the time limit of an append request as well, and its
/// shortest election timeout for that of a request for a vote; the links have their own,
/// [`link_limit`]. Its longest election timeout is the time within which a follower refuses to vote
/// after the last append, which [`crate::node`] knows better: see [`VOTE_LEASE`].
pub fn raft_config(settings: &Settings) -> Arc<Config> {
    let lower = (settings.timers.election_lower.as_millis() as u64).max(2);
    let election_timeout = LIMITED_ELSEWHERE.as_millis() as u64;
    let snapshot_policy = match settings.snapshot_distance {
        0 => SnapshotPolicy::Never,
        n => SnapshotPolicy::LogsSinceLast(n),
    };
    #[allow(deprecated)] // A struct literal has to name every field.
    Arc::new(Config {
        cluster_name: "stek_share".to_owned(),
        election_timeout_min: election_timeout,
        election_timeout_max: election_timeout + 1,
        heartbeat_interval: HEARTBEAT_MS.max(lower),
        install_snapshot_timeout: (lower * 4).max(SNAPSHOT_LIMIT_MIN_MS),
        send_snapshot_timeout: 0,
        max_payload_entries: MAX_PAYLOAD_ENTRIES,
        replication_lag_threshold: settings.snapshot_distance.max(MAX_PAYLOAD_ENTRIES),
        snapshot_policy,
        snapshot_max_chunk_size: u64::MAX,
        // What to purge is for `node::erasure` to say.
        max_in_snapshot_log_to_keep: u64::MAX,
        purge_batch_size: 1,
        enable_tick: true,
        enable_heartbeat: false,
        enable_elect: false,
    })
}

/// How long an append or a request for a vote may take: a round trip may last almost
/// `election_timeout_lower_bound`.
pub fn link_limit(settings: &Settings) -> Duration {
    settings.timers.election_lower
}
