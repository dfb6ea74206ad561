//! One run of Raft: its handle, its log and its state machine, and who takes part in it.
//!
//! Reads only; who starts and stops it is for `life`.

use std::collections::BTreeSet;

use openraft::LogIdOptionExt;

use crate::consensus::log_store::LogStore;
use crate::consensus::state_machine::StateMachine;
use crate::consensus::Raft;
use crate::core::server_id::ServerId;

/// One run of Raft, from an empty store on.
#[derive(Clone)]
pub(super) struct Running {
    pub raft: Raft,
    pub log: LogStore,
    pub machine: StateMachine,
    /// Whether this run began with a cold start, so that nobody waits for a leader's lease.
    pub cold: bool,
}

impl Running {
    /// The voter sets of Raft's effective membership; two during a change.
    pub fn voters(&self) -> Vec<BTreeSet<ServerId>> {
        let server = self.raft.server_metrics();
        let voters = server.borrow().membership_config.membership().get_joint_config().clone();
        voters
    }

    /// All servers of Raft's effective membership, learners included.
    pub fn known(&self) -> BTreeSet<ServerId> {
        let server = self.raft.server_metrics();
        let metrics = server.borrow();
        metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect()
    }

    /// Whether Raft's membership is still the one that a cold start began the log with. Each server
    /// wrote that itself, from its own file, under one and the same log id: servers with different
    /// files then differ in it, and Raft does not see it. So the leader writes it once more.
    pub fn is_first_membership(&self) -> bool {
        let server = self.raft.server_metrics();
        let metrics = server.borrow();
        metrics.membership_config.log_id().index() == Some(0)
    }
}
