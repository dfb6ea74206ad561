//! Frames over mutual TLS. Knows nothing of keys.
pub mod tls;
