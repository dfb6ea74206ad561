//! How long and how much: the bounds of every connection, each by its name.

use std::time::Duration;

use super::connection_slots::SPARE_CONNECTIONS;
use super::trust::MAX_AGE;

/// How long a TLS handshake and the hello after it may take together. Generous for a far
/// peer on a busy server, short enough to be rid of a silent stranger within 5 s.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(3);

/// How long a frame may take once its first byte was read or written.
pub const FRAME_LIMIT: Duration = Duration::from_secs(10);

/// How long a connection may be silent before the side that was dialled closes it.
pub const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// Requests of one connection that are served at a time. Some wait for news (long polls), the
/// others are answered in turn.
pub const MAX_IN_FLIGHT: usize = 32;

/// How much a server bears of connections; the default is what a server uses, tests have others.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long a connection may live before a new one takes its place.
    pub max_age: Duration,
    /// Verified connections besides those of members; see [`SPARE_CONNECTIONS`].
    pub spare: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { max_age: MAX_AGE, spare: SPARE_CONNECTIONS }
    }
}
