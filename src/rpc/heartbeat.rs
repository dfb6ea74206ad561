//! Heartbeats: how a leader says that it lives and how far it is.

use serde::{Deserialize, Serialize};

use super::malformed::Malformed;
use super::status::check_epoch;
use crate::core::agreement::epoch::Epoch;
use crate::core::key_ring::Generation;
use crate::core::log_id::{LeaderId, LogId};

/// A leader's heartbeat: says that it lives and how far it is. Carries nothing that a server would
/// have to remember; one that is behind says so, and is sent an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireHeartbeat {
    /// The cluster that it leads.
    pub cluster: Epoch,
    /// The version of the agreed list there.
    pub list_version: u64,
    /// The leader's term, which a majority gave it.
    pub leader_id: LeaderId,
    /// The end of its log.
    pub last_log_id: Option<LogId>,
    /// As in [`super::WireAppend`].
    pub commit: Option<LogId>,
    /// As in [`super::WireAppend`].
    pub age: Option<(Generation, u64)>,
    /// As in [`super::WireAppend`].
    pub quorum: bool,
    /// When the next heartbeat is due, in milliseconds; 0 if the leader leaves and none will come.
    pub next_ms: u32,
}
impl WireHeartbeat {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        self.leader_id.check()?;
        check_epoch(self.cluster)?;
        self.last_log_id.iter().chain(&self.commit).try_for_each(LogId::check)
    }
}
