//! What servers say of themselves and of each other: status, status poll, and what a state file held.

use serde::{Deserialize, Serialize};

use super::malformed::Malformed;
use crate::core::key_ring::MAX_GENERATION;
use crate::core::record::Record;
use crate::core::recovery::Status;
use crate::core::server_id::ServerId;

/// What a server said of itself, told by another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayedStatus {
    /// Who said it.
    pub from: ServerId,
    /// How long before the question came, in milliseconds; 0 if it was said because of it.
    pub age_ms: u32,
    /// What it said.
    pub status: Status,
}
/// Whether this is something that a server could have kept.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_record(record: &Record) -> Result<(), Malformed> {
    record.end.check()?;
    record.ring.check().map_err(|refusal| Malformed::State(refusal.into()))
}
pub(super) fn check_status(status: &Status) -> Result<(), Malformed> {
    status.leader_id.check()?;
    if status.generation > MAX_GENERATION {
        return Err(Malformed::Absurd);
    }
    status.log_end.map_or(Ok(()), |end| end.check())
}
