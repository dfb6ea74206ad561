//! What a node has in `state_dir`, and how far that is.
//!
//! When it is read and written is for `records`. Invariants: what was read is kept until the group's
//! keys are known, and no longer.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::context::{lock, Context};
use super::state_file::{StateFile, Written};
use crate::core::key_ring::Generation;
use crate::core::moment::{millis, Moment};
use crate::core::record::Record;

/// See the module's head.
pub(super) struct Store {
    ctx: Arc<Context>,
    /// Where keys are kept over a restart, if anywhere.
    pub file: Option<StateFile>,
    /// How far that file is.
    pub written: watch::Sender<Written>,
    /// What was read from it, and since when its newest key was current.
    kept: Mutex<Option<(Record, Moment)>>,
    /// The generation of the last revocation that it knows of.
    revoked: Mutex<Generation>,
}

impl Store {
    /// Of a server that has read nothing yet.
    pub fn new(ctx: Arc<Context>, file: Option<StateFile>) -> Store {
        let (written, kept, revoked) =
            (watch::Sender::default(), Mutex::default(), Mutex::default());
        Store { ctx, file, written, kept, revoked }
    }

    /// Keeps what this server read from its state file.
    pub fn keep_record(&self, record: Record) {
        let since = self.ctx.now().ago(record.age());
        self.record_revoked_on_disk(record.ring.revoked());
        *lock(&self.kept) = Some((record, since));
    }

    /// What this server read from its state file, as old as it is now.
    pub fn kept_record(&self) -> Option<Record> {
        let kept = lock(&self.kept).clone();
        let aged = |(record, since)| {
            let age_ms = millis(self.ctx.now().since(since));
            Record { age_ms, ..record }
        };
        kept.map(aged)
    }

    /// The group's keys are known, and the file's are of no use any more.
    pub fn drop_record(&self) {
        *lock(&self.kept) = None;
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
