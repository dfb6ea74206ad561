//! One run of Raft: its handle, its log and its state machine, and who takes part in it.
//!
//! Reads only; who starts and stops it is for `lifecycle`.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::error::{Fatal, RaftError};
use thiserror::Error;
use tokio::task::JoinError;

use crate::consensus::log_store::LogStore;
use crate::consensus::network::ClusterCell;
use crate::consensus::state_machine::StateMachine;
use crate::consensus::Raft;
use crate::core::agreement::epoch::Epoch;
use crate::core::node_id::NodeId;
use crate::core::server_id::ServerId;
use crate::supervise::Panicked;

/// One run of Raft, of one node in one cluster.
#[derive(Clone)]
pub(super) struct Running {
    pub raft: Raft,
    pub log: LogStore,
    pub machine: StateMachine,
    /// What its links were given, which a reload may change.
    pub limit: Duration,
    /// The cluster, once the node has joined one.
    pub cluster: ClusterCell,
    /// Whether the cluster begins with this run, so that nobody waits for a leader's lease.
    pub cold: bool,
}

/// Why a run of Raft is broken.
#[derive(Debug, Error)]
pub(super) enum Stopped {
    /// openraft's own task has ended.
    #[error("its core is gone")]
    CoreGone,
    /// Nobody tells any more what is agreed.
    #[error("its state is gone")]
    StateGone,
    /// It answers with an error.
    #[error("it does not answer ({0})")]
    NoAnswer(RaftError<NodeId>),
    /// It does not answer.
    #[error("it does not answer in time")]
    Hangs,
    /// It takes itself for the leader and has not won.
    #[error("it leads by a vote that it has not got")]
    LeadsWithoutVote,
    /// Entries are gone that were applied.
    #[error("its log is shorter than what it has applied")]
    LogTooShort,
    /// One of the tasks around it ended.
    #[error("a part of it failed: {0}")]
    Task(JoinError),
    /// It could not be started.
    #[error("Raft did not start: {0}")]
    NotStarted(Fatal<NodeId>),
    /// A panic ended it.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl Running {
    /// The cluster; none before the node has joined one.
    pub fn epoch(&self) -> Epoch {
        self.cluster.get().copied().unwrap_or_default()
    }

    /// Ends this node's part in the cluster, however long openraft takes to stop: nothing is
    /// acknowledged any more, nor voted for. What is read after that is all that it ever acknowledged.
    pub fn close(&self) {
        self.log.close();
        self.machine.close();
    }

    /// The voter sets of Raft's effective membership; two during a change.
    pub fn voters(&self) -> Vec<BTreeSet<NodeId>> {
        let server = self.raft.server_metrics();
        let voters = server.borrow().membership_config.membership().get_joint_config().clone();
        voters
    }

    /// All nodes of Raft's effective membership, learners included.
    pub fn known(&self) -> BTreeSet<NodeId> {
        let server = self.raft.server_metrics();
        let metrics = server.borrow();
        metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect()
    }

    /// The servers among the voters, of both sets during a change.
    pub fn voting_servers(&self) -> BTreeSet<ServerId> {
        self.voters().into_iter().flatten().map(|node| node.server).collect()
    }
}
