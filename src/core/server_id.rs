//! The number by which the server list names a server.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A server's `server_id` from the server list, 0 to 2147483647; it is also its Raft node id and
/// stays the same over restarts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ServerId(pub u32);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
