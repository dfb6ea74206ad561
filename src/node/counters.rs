//! What is counted as it happens, for operators alone.
//!
//! Decides nothing; who tells of it is for `status`. Invariants: whoever counts waits for nobody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{oneshot, Notify};
use tokio::time::Instant;

use crate::core::server_status::HostStatus;

/// What is noted as it happens, for operators alone.
#[derive(Default)]
pub(super) struct NodeCounters {
    /// How often this server campaigned.
    pub elections: AtomicU64,
    /// How often it saw another leader or term than before.
    pub leaders: AtomicU64,
    /// How many keys it saw being staged.
    pub staged: AtomicU64,
    /// How many keys it saw become current.
    pub rotations: AtomicU64,
    /// How often the files were read again because somebody asked for it.
    pub reloads: AtomicU64,
    /// How often that could not be carried out.
    pub reload_failures: AtomicU64,
    /// When the last of these ended, whether it was carried out, and what came of it.
    pub last_reload: Mutex<Option<(Instant, bool, String)>>,
    /// Has the files read again, if there is somebody to do it.
    pub reloader: Mutex<Option<Reloader>>,
    /// Asks the host how it is, if there is one.
    pub host: Mutex<Option<HostProbe>>,
    /// Notified when something in here, or the keys, the role or the leader changed.
    pub moved: Notify,
}

/// Asks the host how it is, without waiting for anything.
pub(super) type HostProbe = Arc<dyn Fn() -> HostStatus + Send + Sync>;

/// What came of a reload: what changed, or why nothing did.
pub type ReloadOutcome = Result<String, String>;

/// Has the files read again on behalf of whoever the words name; the answer comes when that is done.
pub(super) type Reloader = Arc<dyn Fn(String) -> oneshot::Receiver<ReloadOutcome> + Send + Sync>;

impl NodeCounters {
    /// Counts one more.
    pub fn count(&self, what: fn(&NodeCounters) -> &AtomicU64) {
        what(self).fetch_add(1, Ordering::Relaxed);
        self.moved.notify_one();
    }
}
