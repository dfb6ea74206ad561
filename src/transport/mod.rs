//! Frames over mutual TLS between servers: who may speak, to whom this server speaks, and the bounds
//! of both. Knows nothing of keys and nothing of Raft; a body is bytes that must be erased.
//!
//! A server dials each peer that it has something to ask; requests and their responses share that
//! one connection. What it is asked itself comes in over connections that the others dialled.

mod binding;
mod bounds;
mod close_reason;
mod connection;
mod connection_slots;
mod counters;
pub mod datagram;
mod dial;
pub mod frame;
pub mod issuer;
mod last_seen;
pub mod listener;
mod local_identity;
pub mod names;
mod peer_command;
mod peer_connection;
pub mod peers;
mod refusal;
pub mod resolver;
mod self_handshake;
mod service;
mod socket;
pub mod tls;
mod trust;
mod x509_name;

pub use bounds::{Bounds, FRAME_LIMIT, HANDSHAKE_LIMIT, IDLE_LIMIT, MAX_IN_FLIGHT};
pub use counters::{Cause, Counters};
pub use frame::{Body, ClusterId, Versions};
pub use last_seen::LastSeen;
pub use local_identity::LocalIdentity;
pub use trust::{CLOCK_LOOK, MAX_AGE};
pub use x509_name::one_line;
