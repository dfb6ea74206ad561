//! Shared sessions: the one-way message by which a server tells others of those that it has made.

use serde::{Deserialize, Serialize};

use super::malformed::{refuse_if, Malformed};
use crate::core::key_ring::{Generation, MAX_GENERATION};
use crate::core::sessions::{SessionEvent, MAX_ID, MAX_PER_MESSAGE, MAX_SESSION};

/// The place of [`super::Request::Sessions`] among the requests: the first byte of its encoding.
const PLACE: u8 = 14;

/// Bytes of the longest message that a server sends: each event with its id, its session and the
/// lengths of both, and what is before them.
pub const MAX_SESSIONS_MESSAGE: usize = MAX_PER_MESSAGE * (MAX_ID + MAX_SESSION + 8) + 32;

/// What a server tells of its sessions, in the order in which it happened.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireSessions {
    /// The key that was current at the sender: what was made before a revocation is not taken after
    /// it.
    pub generation: Generation,
    /// One to [`MAX_PER_MESSAGE`].
    pub events: Vec<SessionEvent>,
}

impl WireSessions {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        refuse_if(self.events.len() > MAX_PER_MESSAGE, Malformed::TooMany("sessions"))?;
        refuse_if(self.events.is_empty(), Malformed::Absurd)?;
        refuse_if(self.generation > MAX_GENERATION, Malformed::Absurd)
    }
}

/// Whether a body is one of sessions, if it is anything: for whoever has to decide before it is
/// decoded.
pub fn is_of_sessions(body: &[u8]) -> bool {
    body.first() == Some(&PLACE)
}
