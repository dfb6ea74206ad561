//! Heartbeats: how a leader says that it lives and how far it is.

use serde::{Deserialize, Serialize};

use super::malformed::Malformed;
use crate::core::key_ring::Generation;
use crate::core::rejoin::{Ballot, LogEnd};

/// A leader's heart beat: says that it lives and how far it is. Carries nothing that a box would
/// have to remember; one that is behind says so, and is sent an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireBeat {
    /// The leader's ballot, which a majority gave it.
    pub ballot: Ballot,
    /// The end of its log.
    pub log_end: Option<LogEnd>,
    /// As in [`super::WireAppend`].
    pub commit: Option<LogEnd>,
    /// As in [`super::WireAppend`].
    pub age: Option<(Generation, u64)>,
    /// As in [`super::WireAppend`].
    pub quorum: bool,
    /// When the next beat is due, in milliseconds; 0 if the leader leaves and none will come.
    pub next_ms: u32,
}
impl WireBeat {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        self.ballot.check()?;
        self.log_end.iter().chain(&self.commit).try_for_each(LogEnd::check)
    }
}
