//! A node's file in `state_dir`, and how far that is.
//!
//! When it is read and written is for `records`; what was read is in the context.

use std::sync::Mutex;

use tokio::sync::watch;

use super::state_file::{StateFile, Written};
use crate::core::key_ring::Generation;
use crate::supervise::lock;

/// See the module's head.
pub(super) struct Store {
    /// Where keys are kept over a restart, if anywhere.
    pub file: Option<StateFile>,
    /// How far that file is.
    pub written: watch::Sender<Written>,
    /// The generation of the last revocation that it knows of.
    revoked: Mutex<Generation>,
}

impl Store {
    /// Of a server that has read nothing yet.
    pub fn new(file: Option<StateFile>) -> Store {
        Store { file, written: watch::Sender::default(), revoked: Mutex::default() }
    }

    /// A write came to nothing so far, and what is said of that.
    pub fn was_not_written(&self, line: &str) {
        self.written.send_modify(|written| {
            written.well = false;
            written.unwritten = Some(line.to_owned());
        });
    }

    /// What is wrong with the file, as it was logged.
    pub fn faults(&self) -> Vec<String> {
        let written = self.written.borrow();
        written.unread.iter().chain(&written.unwritten).cloned().collect()
    }

    pub fn revoked_on_disk(&self) -> Generation {
        *lock(&self.revoked)
    }

    pub fn record_revoked_on_disk(&self, revoked: Generation) {
        *lock(&self.revoked) = revoked;
    }
}
