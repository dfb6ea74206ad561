//! Checked configuration: what the two YAML files say, parsed once into types that cannot hold a
//! wrong value, and the problems that an operator has to hear about.
//!
//! Reads no file and resolves no path; see [`crate::load`] for that.

use std::path::PathBuf;
use std::time::Duration;

use super::server_id::ServerId;

/// One entry of the server list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The box's id, unique in the list.
    pub id: ServerId,
    /// IPv4, IPv6 (without brackets) or host name.
    pub address: String,
    /// TCP port, never 0.
    pub port: u16,
}

/// Raft's timers as the operator gives them, in a valid order: `heart_beat < lower < upper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// `heart_beat_interval`.
    pub heart_beat: Duration,
    /// `election_timeout_lower_bound`.
    pub election_lower: Duration,
    /// `election_timeout_upper_bound`.
    pub election_upper: Duration,
}

/// A box's configuration after all checks that need no other file than the two YAML files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This box.
    pub server_id: ServerId,
    /// `address` of this box's own file.
    pub address: String,
    /// `port` of this box's own file.
    pub port: u16,
    /// `bind_address`, if given: listen there and nowhere else.
    pub bind_address: Option<String>,
    /// `asio_thread_pool_size`: tokio workers, 1 to 64.
    pub workers: usize,
    /// Raft's timers.
    pub timers: Timers,
    /// `reserved_log_items`: entries kept behind a snapshot.
    pub reserved_log_items: u64,
    /// `snapshot_distance`: entries between two snapshots, 0 for none.
    pub snapshot_distance: u64,
    /// `client_req_timeout`: how long a proposal may wait for agreement.
    pub request_timeout: Duration,
    /// `key_update_interval`.
    pub key_update_interval: Duration,
    /// `handover_timeout`: how long a box that answers but has not installed may hold up a
    /// handover; never more than half the interval.
    pub handover_timeout: Duration,
    /// `startup_wait`: how long a starting box waits for the group's keys.
    pub startup_wait: Duration,
    /// `ticket_keys`: the most keys that are given to the host, 2 to 16.
    pub ticket_keys: usize,
    /// `max_key_age`: how long a key may encrypt without a quorum.
    pub max_key_age: Duration,
    /// `root_cert_file`, resolved.
    pub root_cert_file: PathBuf,
    /// `server_cert_file`, resolved.
    pub server_cert_file: PathBuf,
    /// `server_key_file`, resolved.
    pub server_key_file: PathBuf,
    /// `cert_verify_str`; empty means any certificate of the root.
    pub cert_verify_str: String,
    /// The server list, this box included, in the file's order.
    pub members: Vec<Member>,
}
