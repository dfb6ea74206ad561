//! What this server keeps in `state_dir` and makes of it: read once at start, written by a task of its
//! own whenever the log has grown, before that is acknowledged.
//!
//! Invariants: what a file brings decrypts and never votes; a disk that is slow, full, read-only,
//! hanging or gone costs a warning and the file's use, and never a key, an election or a wait that
//! is longer than the limits here.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout, Instant};

use super::disk;
use super::peer_client::Peers;
use super::shared::Shared;
use super::state_file::{Saved, StateFile, Written};
use super::store::Store;
use crate::consensus::log_store::Persist;
use crate::core::agreement::ranked_record::Rank;
use crate::log_sink::Level;
use crate::supervise::{catch_panic, fail_point, kept_alive};

/// How long a server that starts waits for its file; one on a disk that hangs is not used.
const LOAD_LIMIT: Duration = Duration::from_millis(500);

/// The pause after a write that failed.
const SAVE_RETRY: Duration = Duration::from_secs(1);

/// After so long the operator is told that a write hangs.
const SLOW: Duration = Duration::from_secs(5);

/// How long a node may wait for its file before it acknowledges an entry. Far above what a write
/// takes on memory-backed storage, and little beside `handover_timeout`.
const SAVED_LIMIT: Duration = Duration::from_millis(200);

/// Reads what an earlier process of this server left, at its very start.
pub(super) async fn load(peers: &Arc<Peers>, store: &Store) {
    let Some(file) = store.file.clone() else { return };
    let (of, max_key_age) = (peers.ctx.clone(), peers.ctx.settings().max_key_age);
    let tls = peers.tls.borrow().clone();
    let read = catch_panic(timeout(LOAD_LIMIT, file.load(&tls, max_key_age))).await;
    let why = match read {
        Ok(Ok(Ok(None))) => None,
        Ok(Ok(Ok(Some((saved, away))))) => {
            of.log.note(format!(
                "the keys of the state file, saved {} s ago, decrypt until the group's are known",
                away.as_secs()
            ));
            store.written.send_modify(|written| (written.well, written.rank) = (true, saved.rank));
            store.record_revoked_on_disk(saved.record.agreed.ring.revoked());
            of.keep(saved);
            None
        }
        Ok(Ok(Err(why))) => Some(why.to_string()),
        Ok(Err(_)) => Some("the disk does not answer".to_owned()),
        Err(panicked) => Some(panicked.to_string()),
    };
    if let Some(why) = why {
        let line = disk::unread(file.path(), &why);
        store.written.send_modify(|written| written.unread = Some(line.clone()));
        of.log.warning(line);
    }
    let doubts = file.doubts();
    tokio::spawn(async move {
        for doubt in doubts.await {
            of.log.warning(doubt);
        }
    });
}

/// Keeps the file up to date until the task is aborted.
pub(super) async fn run(peers: Arc<Peers>, store: Arc<Store>) {
    let Some(file) = store.file.clone() else { return };
    let log = peers.ctx.log.clone();
    kept_alive(&log, "writing the state file", (peers, store, file), |(peers, store, file)| {
        Box::pin(keep_on(peers, store, file))
    })
    .await;
}

async fn keep_on(peers: &Peers, store: &Store, file: &StateFile) {
    let mut views = peers.ctx.views.subscribe();
    // Sealed under the private key, which a reload may have changed.
    let mut tls = peers.tls.subscribe();
    loop {
        let grown = peers.ctx.log_grew.notified();
        tls.borrow_and_update();
        views.borrow_and_update();
        // A write may take long, and no key outlives its time in here meanwhile.
        let held = peers.ctx.holding();
        let done = held.rank.epoch.is_none() || write(peers, store, file, held).await;
        tokio::select! {
            () = sleep(SAVE_RETRY), if !done => {}
            changed = views.changed() => if changed.is_err() { return },
            () = grown => {}
            _ = tls.changed() => {}
        }
    }
}

/// Waits for a node of this server until its file has what the node is about to acknowledge. A disk
/// that is not well is not waited for.
pub(super) fn persist(shared: &Arc<Shared>) -> Option<Persist> {
    shared.store.file.as_ref()?;
    // A server holds its log, and must not be held by it.
    let of = Arc::downgrade(shared);
    Some(Arc::new(move |end| {
        let of = of.clone();
        Box::pin(async move {
            let Some(shared) = of.upgrade() else { return };
            let rank = Rank { epoch: shared.ctx.cluster(), end };
            let mut written = shared.store.written.subscribe();
            shared.ctx.log_grew.notify_one();
            // What a cluster has before its record is nothing that a file would keep.
            let is_kept = |written: &Written| !written.well || written.rank >= rank;
            if shared.ctx.holding().rank.epoch == rank.epoch {
                let _ = timeout(SAVED_LIMIT, written.wait_for(is_kept)).await;
            }
        })
    }))
}

/// Writes the file; whether that worked.
async fn write(peers: &Peers, store: &Store, file: &StateFile, saved: Saved) -> bool {
    fail_point("save");
    let (begun, path) = (Instant::now(), file.path().display());
    let (rank, revoked) = (saved.rank, saved.record.agreed.ring.revoked());
    let tls = peers.tls.borrow().clone();
    let result = match file.save(saved, &tls) {
        Err(e) => Err(e),
        Ok(mut write) => loop {
            match timeout(SLOW, &mut write).await {
                Ok(result) => break result,
                Err(_) => {
                    let line = disk::hanging(file.path(), begun.elapsed().as_secs());
                    store.was_not_written(&line);
                    peers.ctx.log.limited(Level::Warning, "state file", line);
                }
            }
        },
    };
    match result {
        Ok(()) => {
            let well = begun.elapsed() < SAVED_LIMIT;
            let (unread, unwritten) = (None, None);
            store.written.send_replace(Written { rank, well, unread, unwritten });
            store.record_revoked_on_disk(revoked);
            true
        }
        Err(e) => {
            let line = disk::unwritten(file.path(), &e);
            store.was_not_written(&line);
            peers.ctx.log.limited(Level::Warning, "state file", line);
            // Keys that were revoked must not come back with what is there.
            if revoked > store.revoked_on_disk() && file.remove().await.is_err() {
                let line = format!(
                    "state file {path} holds keys that were revoked and cannot be removed; remove \
                     it by hand before all servers are down at the same time"
                );
                peers.ctx.log.limited(Level::Error, "state file with revoked keys", line);
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::consensus::state_machine::AgreedView;
    use crate::core::agreed::{Agreed, Record};
    use crate::core::agreement::epoch::Epoch;
    use crate::core::key_ring::{ClusterId, Command, Generation, KeyRing, RingKey};
    use crate::core::moment::millis;
    use crate::core::server_id::ServerId;
    use crate::node::fixture::{ring, stek, Fixture};
    use crate::node::{key_publisher, KeySet};

    fn saved(ring: KeyRing, epoch: u64) -> Saved {
        let epoch = Epoch { counter: epoch, ..Epoch::default() };
        let voters = vec![[ServerId(1)].into()];
        let record = Record { agreed: Agreed::of_ring(ring), voters, ..Record::default() };
        Saved { rank: Rank { epoch, ..Rank::default() }, record }
    }

    #[tokio::test]
    async fn what_a_file_brings_is_kept_and_takes_part_in_nothing() {
        let shared = Fixture::new().shared;
        let mut ring = KeyRing::default();
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        ring.apply(Command::Found { cluster_id }).unwrap();
        let held = RingKey { generation: Generation(1), stek: stek(1) };
        ring.apply(Command::Stage { held, revokes: false }).unwrap();
        shared.ctx.keep(saved(ring, 7));
        let status = shared.ctx.status();
        assert!(status.cluster.is_none() && status.last_log_id.is_none() && !status.caught_up);
        assert_eq!((status.known, shared.ctx.holding().rank.epoch.counter), (7, 7));
        assert_eq!(shared.ctx.cluster_id(), Some(cluster_id));
    }

    #[tokio::test]
    async fn keys_of_a_file_that_become_too_old_are_used_no_more() {
        let an_hour = Duration::from_secs(3600);
        for (rest, is_used) in [(an_hour, true), (Duration::ZERO, false)] {
            let fixture = Fixture::new();
            let shared = &fixture.shared;
            let mut saved = saved(ring(), 7);
            saved.record = saved.record.later(millis(shared.ctx.settings().max_key_age - rest));
            shared.ctx.keep(saved);
            let (sender, sets) = watch::channel(KeySet::own(stek(200)));
            let keeping = tokio::spawn(key_publisher::run(shared.clone(), stek(200), sender));
            let decided = async {
                while fixture.count_lines("older than max_key_age") == 0
                    && !sets.has_changed().unwrap()
                {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(30), decided).await.unwrap();
            assert_eq!(sets.borrow().keys.iter().any(|key| key.same_bytes(&stek(1))), is_used);
            assert_eq!(shared.ctx.kept().record.agreed.ring.holds(Generation(1)), is_used);
            keeping.abort();
        }
    }

    /// A server that lived on in another group while a key of its own retired or was revoked in this
    /// one.
    #[tokio::test]
    async fn a_key_that_another_cluster_id_revoked_does_not_stay_as_an_own_one() {
        let stage = |generation: u64, revokes| {
            let held = RingKey { generation: Generation(generation), stek: stek(generation as u8) };
            Command::Stage { held, revokes }
        };
        let activate = |g| Command::Activate { generation: Generation(g), keep: 1 };
        let found = |id| Command::Found { cluster_id: ClusterId::from_bytes([id; 16]).unwrap() };
        let ring = |commands: Vec<Command>| {
            let mut ring = KeyRing::default();
            commands.into_iter().for_each(|command| assert!(ring.apply(command).is_ok()));
            ring
        };
        for revokes in [false, true] {
            let shared = Fixture::new().shared;
            let (sender, mut sets) = watch::channel(KeySet::own(stek(200)));
            let keeping = tokio::spawn(key_publisher::run(shared.clone(), stek(200), sender));
            shared.ctx.caught_up.send_replace(true);
            let other = ring(vec![found(8), stage(1, false), activate(1)]);
            let present = [found(9), stage(1, false), activate(1), stage(2, revokes), activate(2)];
            for (ring, key) in [(other, 1), (ring(present.into()), 2)] {
                let current_since = shared.ctx.now();
                let agreed = Arc::new(Agreed::of_ring(ring));
                let view = AgreedView { agreed, current_since, ..AgreedView::default() };
                shared.ctx.views.send_replace(view);
                let is_there = |set: &KeySet| set.agreed && set.keys[0].same_bytes(&stek(key));
                let set = timeout(Duration::from_secs(30), sets.wait_for(is_there)).await;
                let set = set.unwrap().unwrap().clone();
                let is_gone = key == 1 || !set.keys.iter().any(|held| held.same_bytes(&stek(1)));
                assert!(is_gone, "{}", set.describe());
            }
            keeping.abort();
        }
    }
}
