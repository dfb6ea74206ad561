//! Frames over mutual TLS. Knows nothing of keys and nothing of Raft.

mod one_line;
pub mod tls;

pub use one_line::one_line;
