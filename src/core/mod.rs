//! Pure decisions: no I/O, no clock and no randomness of their own; time and entropy come in as
//! arguments. Imports no other module of this crate.
#![forbid(unsafe_code)]

pub mod agreed;
pub mod agreement;
pub mod authorities;
pub mod client_policy;
pub mod config;
pub mod election;
pub mod expiry;
pub mod findings;
pub mod health;
pub mod heartbeat;
pub mod host_files;
pub mod key_ring;
pub mod lease;
pub mod log_id;
pub mod lossy_queue;
pub mod moment;
pub mod node_id;
pub mod pre_vote;
pub mod quorum;
pub mod rate_limit;
pub mod rotation;
pub mod sanity_bounds;
pub mod server_id;
pub mod server_list;
pub mod server_status;
pub mod sessions;
pub mod stek;
pub mod text;
pub mod ticket_scope;
pub mod vote;
pub mod witness;
