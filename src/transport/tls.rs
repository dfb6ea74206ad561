//! Mutual TLS.

/// Loaded TLS.
pub struct Tls;
