//! Erases keys that have retired from Raft's log and snapshot, and what the log need not keep.
//!
//! Which keys those are is for the ring to say. Invariants: what has retired is gone as soon as a
//! snapshot without it is made, whatever else the log keeps; nobody else has openraft purge, since it
//! forgets a purge that it puts off, because entries are being sent, when another is asked for by
//! its own policy.

use std::time::Duration;

use openraft::metrics::RaftDataMetrics;
use openraft::LogIdOptionExt;
use tokio::time::{sleep, timeout};

use crate::core::node_id::NodeId;

use super::context::Context;
use super::running::{Running, Stopped};

/// How long a snapshot of a few keys may take, and the pause before erasing is tried again.
const ERASE_LIMIT: Duration = Duration::from_secs(1);
const ERASE_RETRY: Duration = Duration::from_millis(50);

/// Erases retired keys from log and snapshot as soon as they are retired, whatever
/// `reserved_log_items` keeps (promise 6), and what is more than that behind a snapshot.
pub(super) async fn erase(ctx: &Context, running: &Running) -> Stopped {
    let mut views = ctx.views.subscribe();
    let mut settings = ctx.watch_settings();
    let mut data = running.raft.data_metrics();
    let trigger = running.raft.trigger();
    loop {
        let view = views.borrow_and_update().clone();
        let kept = settings.borrow_and_update().reserved_log_items;
        let retired = running.log.last_retired(view.applied, |g| view.agreed.ring.holds(g));
        let is_stale = retired.is_some() || running.machine.snapshot_is_stale();
        if !is_stale && behind(&data.borrow(), kept).is_none() {
            tokio::select! {
                changed = views.changed() => if changed.is_err() {
                    return Stopped::StateGone;
                },
                changed = settings.changed() => if changed.is_err() {
                    return Stopped::StateGone;
                },
                more = data.wait_for(|m| behind(m, kept).is_some()) => if more.is_err() {
                    return Stopped::CoreGone;
                },
            }
            continue;
        }
        let mut is_built = false;
        if is_stale {
            // A purge is bounded by the last snapshot, so that comes first.
            if trigger.snapshot().await.is_err() {
                return Stopped::CoreGone;
            }
            let built = data.wait_for(|m| m.snapshot.index() >= Some(view.applied));
            is_built = timeout(ERASE_LIMIT, built).await.is_ok();
        }
        let behind = behind(&data.borrow(), kept);
        if let Some(index) = behind.max(retired.filter(|_| is_built)) {
            if trigger.purge_log(index).await.is_err() {
                return Stopped::CoreGone;
            }
            let purged = data.wait_for(|m| m.purged.index() >= Some(index));
            let _ = timeout(ERASE_LIMIT, purged).await;
        }
        sleep(ERASE_RETRY).await;
    }
}

/// The last index that is `kept` entries or more behind the last snapshot, unless it is purged.
fn behind(data: &RaftDataMetrics<NodeId>, kept: u64) -> Option<u64> {
    let last = data.snapshot.index()?.checked_sub(kept)?;
    (data.purged.index() < Some(last)).then_some(last)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::consensus::log_store::LogStore;
    use crate::core::agreed::Command;
    use crate::core::key_ring::Command as KeyCommand;
    use crate::node::fixture::{Fixture, CLUSTER};

    const PATIENCE: Duration = Duration::from_secs(30);

    /// openraft, whose purges could undo one that is put off, leaves all of them to this task.
    #[tokio::test]
    async fn what_need_not_be_kept_is_purged_here_and_nowhere_else() {
        let fixture = Fixture::new();
        let ctx = &fixture.shared.ctx;
        let log = LogStore::founding([ctx.node()].into(), None);
        let running = fixture.running_with(log, CLUSTER).await;
        running.raft.trigger().elect().await.unwrap();
        running.raft.wait(Some(PATIENCE)).current_leader(ctx.node(), "leads").await.unwrap();
        let settings = ctx.settings();
        let (kept, distance) = (settings.reserved_log_items, settings.snapshot_distance);
        let enough = 2 * (kept + distance);
        for _ in 0..enough {
            running.raft.client_write(Command::Key(KeyCommand::Revoke(vec![]))).await.unwrap();
        }
        let mut data = running.raft.data_metrics();
        let is_built = |m: &RaftDataMetrics<NodeId>| m.snapshot.index() > Some(kept + distance);
        timeout(PATIENCE, data.wait_for(is_built)).await.unwrap().unwrap();
        let all = running.log.len() as u64;
        assert!(all > enough && data.borrow().purged.is_none(), "{all} of {enough} are kept");
        let is_purged = |m: &RaftDataMetrics<NodeId>| {
            let ends = m.snapshot.index().zip(m.purged.index());
            ends.is_some_and(|(snapshot, purged)| snapshot == purged + kept)
        };
        tokio::select! {
            _ = erase(ctx, &running) => panic!("it ended"),
            purged = timeout(PATIENCE, data.wait_for(is_purged)) => drop(purged.unwrap().unwrap()),
        }
        let kept_now = running.log.len() as u64;
        assert!((kept..kept + distance + 1).contains(&kept_now), "{kept_now}");
    }
}
