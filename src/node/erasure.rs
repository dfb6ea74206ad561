//! Erases keys that have retired from Raft's log and snapshot.
//!
//! Which those are is for the ring to say. Invariants: what has retired is gone as soon as a snapshot
//! without it is made, whatever else the log keeps.

use std::time::Duration;

use openraft::LogIdOptionExt;
use tokio::time::{sleep, timeout};

use super::context::Context;
use super::running::{Running, Stopped};

/// How long a snapshot of a few keys may take, and the pause before erasing is tried again.
const ERASE_LIMIT: Duration = Duration::from_secs(1);
const ERASE_RETRY: Duration = Duration::from_millis(50);

/// Erases retired keys from log and snapshot as soon as they are retired, whatever
/// `reserved_log_items` keeps (promise 6).
pub(super) async fn erase(ctx: &Context, running: &Running) -> Stopped {
    let mut views = ctx.views.subscribe();
    loop {
        let view = views.borrow_and_update().clone();
        let retired = running.log.last_retired(view.applied, |g| view.agreed.ring.holds(g));
        if retired.is_none() && !running.machine.snapshot_is_stale() {
            if views.changed().await.is_err() {
                return Stopped::StateGone;
            }
            continue;
        }
        // A purge is bounded by the last snapshot, so that comes first.
        let trigger = running.raft.trigger();
        if trigger.snapshot().await.is_err() {
            return Stopped::CoreGone;
        }
        let mut data = running.raft.data_metrics();
        let built = data.wait_for(|m| m.snapshot.index() >= Some(view.applied));
        let built = timeout(ERASE_LIMIT, built).await.is_ok();
        if let (true, Some(index)) = (built, retired) {
            if trigger.purge_log(index).await.is_err() {
                return Stopped::CoreGone;
            }
            let mut data = running.raft.data_metrics();
            let purged = data.wait_for(|m| m.purged.index() >= Some(index));
            let _ = timeout(ERASE_LIMIT, purged).await;
        }
        sleep(ERASE_RETRY).await;
    }
}
