//! What this server keeps in `state_dir` and makes of it: read once at start, written by a task of its
//! own whenever what is agreed has changed.
//!
//! Invariants: what a file brings decrypts and never votes; a disk that is slow, full, read-only,
//! hanging or gone costs a warning and the file's use, and never a key, an election or a wait that
//! is longer than the limits here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, Instant};

use super::context::Context;
use super::disk;
use super::keys::Keys;
use super::peer_client::Peers;
use super::running::Running;
use super::state_file::{Saved, StateFile, Written};
use super::store::Store;
use crate::consensus::link_limit;
use crate::consensus::network::RpcClient;
use crate::consensus::state_machine::AgreedView;
use crate::core::key_ring::{ClusterId, Generation};
use crate::core::large_cluster::scale;
use crate::core::moment::millis;
use crate::core::quorum::has_majority;
use crate::core::record::{next_epoch, Record};
use crate::core::recovery::VoteRestriction;
use crate::core::server_id::ServerId;
use crate::log_sink::Level;
use crate::rpc::{Request, Response};
use crate::supervise::{catch_panic, fail_point, kept_alive};

/// How long a server that starts waits for its file; one on a disk that hangs is not used.
const LOAD_LIMIT: Duration = Duration::from_millis(500);

/// The pause after a write that failed.
const SAVE_RETRY: Duration = Duration::from_secs(1);

/// After so long the operator is told that a write hangs.
const SLOW: Duration = Duration::from_secs(5);

/// How long a server may wait for its file before it says that it holds a key. Far above what a
/// write takes on memory-backed storage, and little beside `handover_timeout`.
const SAVED_LIMIT: Duration = Duration::from_millis(200);

/// Reads what an earlier process of this server left, at its very start.
pub(super) async fn load(peers: &Arc<Peers>, store: &Store) {
    let Some(file) = store.file.clone() else { return };
    let (of, max_key_age) = (peers.ctx.clone(), peers.ctx.settings().max_key_age);
    let tls = peers.tls.borrow().clone();
    let read = catch_panic(timeout(LOAD_LIMIT, file.load(&tls, max_key_age))).await;
    let why = match read {
        Ok(Ok(Ok(None))) => None,
        Ok(Ok(Ok(Some((record, away))))) => {
            of.log.note(format!(
                "the keys of the state file, saved {} s ago, decrypt until the group's are known",
                away.as_secs()
            ));
            store.written.send_modify(|written| written.well = true);
            store.keep_record(record);
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
pub(super) async fn keep(peers: Arc<Peers>, keys: Arc<Keys>, store: Arc<Store>) {
    let Some(file) = store.file.clone() else { return };
    let begin = || keep_on(&peers, &keys, &store, &file);
    kept_alive(&peers.ctx.log, "writing the state file", begin).await;
}

async fn keep_on(peers: &Peers, keys: &Keys, store: &Store, file: &StateFile) {
    let mut views = peers.ctx.views.subscribe();
    let mut vote_restriction = peers.ctx.vote_restriction.subscribe();
    // Sealed under the private key, which a reload may have changed.
    let mut tls = peers.tls.subscribe();
    loop {
        tls.borrow_and_update();
        // While a server catches up it passes through what was current long ago.
        let is_caught_up = *vote_restriction.borrow_and_update() == VoteRestriction::Lifted;
        // A write may take long, and no key outlives its time in here meanwhile.
        let saved = {
            let view = views.borrow_and_update().clone();
            is_caught_up.then(|| to_save(&peers.ctx, keys, &view)).flatten()
        };
        let done = match saved {
            Some(saved) => write(peers, store, file, saved).await,
            None => true,
        };
        tokio::select! {
            () = sleep(SAVE_RETRY), if !done => {}
            changed = views.changed() => if changed.is_err() { return },
            _ = vote_restriction.changed() => {}
            _ = tls.changed() => {}
        }
    }
}

/// What there is to keep of a view, once anything is agreed.
fn to_save(ctx: &Context, keys: &Keys, view: &AgreedView) -> Option<Saved> {
    let ring = &view.agreed.ring;
    ring.cluster_id()?;
    let since = match ring.staged() {
        Some(_) if !ring.is_imported() => view.staged_since,
        _ => keys.current_since(view),
    };
    let age_ms = millis(ctx.now().since(since));
    let record = Record { ring: ring.clone(), end: view.end?, age_ms };
    Some(Saved { record, server_list: view.agreed.server_list.clone() })
}

/// Writes the file; whether that worked.
async fn write(peers: &Peers, store: &Store, file: &StateFile, saved: Saved) -> bool {
    fail_point("save");
    let (begun, path) = (Instant::now(), file.path().display());
    let ring = &saved.record.ring;
    let (cluster_id, newest, revoked) = (ring.cluster_id(), ring.newest(), ring.revoked());
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
            store.written.send_replace(Written { cluster_id, newest, well, unread, unwritten });
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

/// Waits for a moment until what this server has installed is in its file as well, so that what all
/// servers hold outlives them all, above all a revocation. A disk that is not well is not waited for.
pub(super) async fn settle(store: &Store, cluster_id: Option<ClusterId>, generation: Generation) {
    if store.file.is_none() {
        return;
    }
    let mut written = store.written.subscribe();
    let settled = written.wait_for(|written| {
        !written.well || (written.cluster_id == cluster_id && written.newest >= generation)
    });
    let _ = timeout(SAVED_LIMIT, settled).await;
}

/// What a new cluster incarnation begins with.
pub(super) struct Beginning {
    pub epoch: u64,
    pub from: Option<Record>,
}

/// Asks all others what their files say, for a leader whose group remembers nothing; the newest
/// record of those that answer. `None` unless they are a majority.
pub(super) async fn newest(
    peers: &Arc<Peers>,
    store: &Store,
    running: &Running,
) -> Option<Beginning> {
    let settings = peers.ctx.settings();
    let limit = link_limit(&settings) * scale(peers.ctx.members().len());
    let mut asked = JoinSet::new();
    for id in peers.ctx.others() {
        let rpc_client = peers.clone();
        asked.spawn(async move { (id, rpc_client.call(id, Request::Record, limit).await) });
    }
    let mut records: BTreeMap<ServerId, Option<Record>> = BTreeMap::new();
    records.insert(peers.ctx.me, store.kept_record());
    while let Some(answer) = asked.join_next().await {
        if let Ok((id, Ok(Response::Record(record)))) = answer {
            records.insert(id, record.map(|record| *record));
        }
    }
    if !has_majority(&running.voters(), |id| records.contains_key(&id)) {
        return None;
    }
    let kept = records.into_iter().filter_map(|(id, record)| Some((id, record?)));
    let newest = kept.max_by_key(|(_, record)| record.rank());
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let known = newest.as_ref().map_or(0, |(_, record)| record.ring.epoch());
    let young = newest.filter(|(_, record)| record.age() <= settings.max_key_age);
    if let Some((id, record)) = &young {
        peers.ctx.log.note(format!(
            "nobody who runs has the group's keys; continuing with the keys of the state file of \
             server {id}: generation {}, {} s old",
            record.ring.newest(),
            record.age().as_secs()
        ));
    }
    let from = young.map(|(_, record)| record);
    Some(Beginning { epoch: next_epoch(known, wall.as_secs()), from })
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::core::agreed::Agreed;
    use crate::core::key_ring::{Command, Held, KeyRing};
    use crate::core::recovery::{LogPosition, Status};
    use crate::node::bench::{stek, Bench};
    use crate::node::{key_publisher, KeySet};

    #[tokio::test]
    async fn a_file_makes_a_server_neither_full_nor_a_voter() {
        let shared = Bench::new().shared;
        let mut ring = KeyRing::default();
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        ring.apply(Command::Found { cluster_id, epoch: 1, from: None }).unwrap();
        let held = Held { generation: Generation(1), stek: stek(1) };
        ring.apply(Command::Stage { held, revokes: false }).unwrap();
        shared.store.keep_record(Record { ring, end: LogPosition::default(), age_ms: 5 });
        assert_eq!(shared.ctx.status(), Status::default());
        assert!(!shared.ctx.status_for(&Status::default()).may_vote);
        assert_eq!(shared.ctx.cluster_id(), None);
        assert!(shared.store.kept_record().is_some_and(|record| record.age_ms >= 5));
        shared.store.drop_record();
        assert!(shared.store.kept_record().is_none());
    }

    /// A server that lived on in the earlier cluster incarnation while the later one revoked its key.
    #[tokio::test]
    async fn a_key_that_another_cluster_id_revoked_does_not_stay_as_an_own_one() {
        let shared = Bench::new().shared;
        let (sender, mut sets) = watch::channel(KeySet::own(stek(200)));
        let keeping = tokio::spawn(key_publisher::keep(shared.clone(), stek(200), sender));
        shared.ctx.vote_restriction.send_replace(VoteRestriction::Lifted);
        let stage = |generation: u64, revokes| {
            let held = Held { generation: Generation(generation), stek: stek(generation as u8) };
            Command::Stage { held, revokes }
        };
        let activate = |g| Command::Activate { generation: Generation(g), keep: 2 };
        let found = |byte, from| {
            let cluster_id = ClusterId::from_bytes([byte; 16]).unwrap();
            Command::Found { cluster_id, epoch: byte.into(), from }
        };
        let ring = |commands: Vec<Command>| {
            let mut ring = KeyRing::default();
            commands.into_iter().for_each(|command| assert!(ring.apply(command).is_ok()));
            ring
        };
        let earlier = ring(vec![found(1, None), stage(1, false), activate(1)]);
        let record = Record { ring: earlier.clone(), end: LogPosition::default(), age_ms: 0 };
        let from = Some(Box::new(record));
        let later = ring(vec![found(2, from), activate(1), stage(2, true), activate(2)]);
        for (ring, key) in [(earlier, 1), (later, 2)] {
            let current_since = shared.ctx.now();
            let agreed = Arc::new(Agreed::of_ring(ring));
            let view = AgreedView { agreed, current_since, ..AgreedView::default() };
            shared.ctx.views.send_replace(view);
            let is_there = |set: &KeySet| set.agreed && set.keys[0].same_bytes(&stek(key));
            let set = timeout(Duration::from_secs(30), sets.wait_for(is_there)).await;
            let set = set.unwrap().unwrap().clone();
            let revoked = key == 2 && set.keys.iter().any(|held| held.same_bytes(&stek(1)));
            assert!(!revoked, "{}", set.describe());
        }
        keeping.abort();
    }
}
