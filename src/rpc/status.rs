//! What servers say of themselves, and what they promise and found: the messages of a founding.

use super::malformed::{refuse_if, Malformed, MAX_COUNT};
use crate::core::agreed::Record;
use crate::core::agreement::epoch::Epoch;
use crate::core::agreement::founding::{FoundedCluster, Promise};
use crate::core::agreement::ranked_record::RankedRecord;
use crate::core::config::MAX_MEMBERS;
use crate::core::key_ring::MAX_GENERATION;
use crate::core::pre_vote::Status;

pub(super) fn check_status(status: &Status) -> Result<(), Malformed> {
    status.vote.check()?;
    check_epoch(status.cluster)?;
    refuse_if(status.generation > MAX_GENERATION || status.known > MAX_COUNT, Malformed::Absurd)?;
    status.last_log_id.map_or(Ok(()), |end| end.check())
}

pub(super) fn check_epoch(epoch: Epoch) -> Result<(), Malformed> {
    refuse_if(epoch.counter > MAX_COUNT, Malformed::Absurd)
}

/// Whether this is something that a server could have kept.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_ranked_record(ranked: &RankedRecord<Record>) -> Result<(), Malformed> {
    check_epoch(ranked.rank.epoch)?;
    ranked.rank.end.check()?;
    ranked.record.check().map_err(Malformed::State)
}

pub(super) fn check_promise(promise: &Promise<Record>) -> Result<(), Malformed> {
    check_epoch(promise.epoch)?;
    check_ranked_record(&promise.newest)
}

pub(super) fn check_found(found: &FoundedCluster<Record>) -> Result<(), Malformed> {
    check_epoch(found.epoch)?;
    refuse_if(found.voters.is_empty(), Malformed::NoVoters)?;
    refuse_if(found.voters.len() > MAX_MEMBERS, Malformed::TooMany("voters"))?;
    check_ranked_record(&found.base)
}
