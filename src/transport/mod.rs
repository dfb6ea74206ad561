//! Frames over mutual TLS between servers: who may speak, to whom this server speaks, and the bounds
//! of both. Knows nothing of keys and nothing of Raft; a body is bytes that must be erased.
//!
//! A server dials each peer that it has something to ask; requests and their responses share that
//! one connection. What it is asked itself comes in over connections that the others dialled.

mod binding;
mod bounds;
mod connection_slots;
mod counters;
pub mod datagram;
mod dial;
mod ending;
pub mod frame;
pub mod issuer;
mod last_seen;
mod line;
pub mod listener;
mod me;
pub mod names;
mod one_line;
mod orders;
pub mod peers;
mod refusal;
mod rehearsal;
pub mod resolver;
mod service;
mod socket;
pub mod tls;
mod trust;

pub use bounds::{Bounds, FRAME_LIMIT, HANDSHAKE_LIMIT, IDLE_LIMIT, MAX_IN_FLIGHT};
pub use counters::{Cause, Counters};
pub use frame::{Body, ClusterId, Versions};
pub use last_seen::LastSeen;
pub use me::Me;
pub use one_line::one_line;
pub use trust::{CLOCK_LOOK, MAX_AGE};
