//! From the agreed ring to the set that the host should hold.
//!
//! Outlives any one run of Raft: if agreement breaks and starts anew, the keys that are installed
//! stay until the group's are known again. Makes a key of its own when the group's has become too
//! old to encrypt, or while there is none. Invariants: what goes out passed key validation; at least
//! one key always goes out; keys that nobody needs any more are dropped. Begun anew after a panic,
//! it goes on with the keys that it held.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::rejected_keys::Place;
use super::shared::Shared;
use super::{new_key, KeySet};
use crate::consensus::state_machine::AgreedView;
use crate::core::agreement::epoch::Epoch;
use crate::core::key_ring::{keys_to_install, Generation, KeyRing, Refusal, RingKey};
use crate::core::moment::Moment;
use crate::core::rotation::may_encrypt_for_at;
use crate::core::stek::Stek;
use crate::log_sink::Level;
use crate::supervise::{fail_point, kept_alive};

/// How often a server whose key should have been replaced looks whether there is still a majority.
const GRACE_LOOK: Duration = Duration::from_millis(200);

/// The pause before another attempt when OpenSSL gave no key.
const NO_KEY_RETRY: Duration = Duration::from_secs(1);

/// Keeps the set up to date until the task is aborted.
pub(super) async fn run(shared: Arc<Shared>, initial: Stek, sets: watch::Sender<KeySet>) {
    let (log, now) = (shared.ctx.log.clone(), shared.ctx.now());
    // This function lives for ever, and the ring must not.
    let kept = {
        let ring = shared.ctx.kept().record.agreed.ring;
        let all = ring.all().filter(|held| !ring.is_revoked(&held.stek));
        all.map(|held| held.stek.clone()).collect()
    };
    let key_publisher = KeyPublisher {
        shared,
        held: AgreedView::default(),
        epoch: Epoch::default(),
        own: vec![initial],
        own_since: now,
        kept,
        alone: false,
    };
    kept_alive(
        &log,
        "keeping the set of ticket keys",
        (key_publisher, sets),
        |(publisher, sets)| Box::pin(keep_on(publisher, sets)),
    )
    .await;
}

/// Goes on from what the key publisher holds.
async fn keep_on(key_publisher: &mut KeyPublisher, sets: &watch::Sender<KeySet>) {
    let mut views = key_publisher.shared.ctx.views.subscribe();
    let mut caught_up = key_publisher.shared.ctx.caught_up.subscribe();
    let mut settings = key_publisher.shared.ctx.watch_settings();
    let mut slept = key_publisher.shared.ctx.clock.watch_slept();
    loop {
        let view = views.borrow_and_update().clone();
        fail_point("key_publisher");
        key_publisher.shared.ctx.look_whether_caught_up();
        // While a server catches up it passes through what was current long ago.
        if *caught_up.borrow_and_update() {
            key_publisher.take(view);
        }
        let pause = key_publisher.renew_own().min(key_publisher.age_kept());
        key_publisher.shared.keys.alone.send_replace(key_publisher.alone);
        key_publisher.publish(sets);
        tokio::select! {
            () = sleep(pause) => {}
            changed = views.changed() => if changed.is_err() { return },
            _ = caught_up.changed() => {}
            _ = settings.changed() => {}
            // No timer notices that the machine was suspended, and keys are older now.
            _ = slept.changed() => {}
        }
    }
}

struct KeyPublisher {
    shared: Arc<Shared>,
    /// The latest ring that may be used.
    held: AgreedView,
    /// The cluster that it is of.
    epoch: Epoch,
    /// This server's own keys, newest first: they encrypt while nothing agreed may, and otherwise
    /// decrypt where there is room.
    own: Vec<Stek>,
    own_since: Moment,
    /// Keys of this server's state file, newest first: they decrypt until the group's keys are known,
    /// and never encrypt.
    kept: Vec<Stek>,
    /// Whether this server goes on with keys of its own because the group's are too old.
    alone: bool,
}

impl KeyPublisher {
    /// Takes over a newer ring if it passes key validation. A server that starts anew has an empty one for a while, which says
    /// nothing about the keys.
    fn take(&mut self, view: AgreedView) {
        let (old, new) = (&self.held.agreed.ring, &view.agreed.ring);
        if new.cluster_id().is_none() {
            return;
        }
        let goes_back = match old.may_become(new) {
            Ok(()) => false,
            // The order of what an earlier life knew ends with it: the group may have lost that.
            Err(_)
                if self.shared.keys.is_restarted()
                    && KeyRing::default().may_become(new).is_ok() =>
            {
                true
            }
            Err(refusal) => {
                self.shared.rejected_keys.record(Place::Install, refusal);
                return;
            }
        };
        self.shared.keys.set_restarted(false);
        if old.cluster_id() != new.cluster_id() || goes_back {
            // What this server encrypted with there goes on as a key of its own.
            if let Some(held) = old.current() {
                self.own.insert(0, held.stek.clone());
                self.own_since = self.shared.keys.current_since(&self.held);
            }
        } else if new.revoked() > old.revoked() {
            // Whatever leaked may have been one of this server's own.
            self.own.clear();
        }
        self.held = view;
        self.epoch = self.shared.ctx.cluster();
        // Those that are the group's are in its ring; any other one retired, or was revoked.
        if self.held.agreed.ring.all().next().is_some() {
            self.kept.clear();
        }
        // A key of another group's may have retired in the present one, or been revoked there.
        let ring = &self.held.agreed.ring;
        self.own.retain(|own| !ring.has_retired(own) && !ring.is_revoked(own));
        self.drop_doubles();
        if self.held.agreed.ring.current().is_some() {
            self.shared.keys.drop_initial();
        }
    }

    /// Drops own keys that have the name of another key in the ring: a ticket would not tell which
    /// of the two made it, and the group's is the one that others know.
    fn drop_doubles(&mut self) {
        let (ring, rejected_keys) = (&self.held.agreed.ring, &self.shared.rejected_keys);
        self.own.retain(|own| {
            let double =
                |held: &RingKey| held.stek.name() == own.name() && !held.stek.same_bytes(own);
            let is_double = ring.all().any(double);
            if is_double {
                rejected_keys.record(Place::Install, Refusal::NameTaken(own.fingerprint()));
            }
            !is_double
        });
    }

    /// Drops the state file's keys once they are too old; when to look again.
    fn age_kept(&mut self) -> Duration {
        if self.kept.is_empty() {
            return Duration::MAX;
        }
        let age = self.shared.ctx.kept().record.age();
        let rest = self.shared.ctx.settings().max_key_age.saturating_sub(age);
        if rest.is_zero() {
            self.shared
                .ctx
                .log
                .note("the keys of the state file are older than max_key_age; dropped");
            self.kept.clear();
            self.shared.ctx.drop_kept_keys();
            return Duration::MAX;
        }
        rest
    }

    /// Replaces this server's own encrypting key if it is due; when to look again.
    fn renew_own(&mut self) -> Duration {
        let shared = self.shared.clone();
        let now = shared.ctx.now();
        let ring = &self.held.agreed.ring;
        let is_revoked = ring.current().is_some_and(|held| ring.is_revoked(&held.stek));
        if ring.current().is_some() && !is_revoked {
            let since = shared.keys.current_since(&self.held);
            let settings = shared.ctx.settings();
            let mut rest = may_encrypt_for_at(now, since, settings.max_key_age);
            // Where a majority agrees, a rotation is under way or about to be; it gets its time. Once this
            // server went on with a key of its own, only a younger one of the group's takes its place:
            // those that went on alone as well need not hold the old one any more. A process that begins
            // anew does not know that it had.
            let patience =
                settings.max_key_age + settings.handover_timeout + settings.request_timeout;
            let in_time = !may_encrypt_for_at(now, since, patience).is_zero();
            if rest.is_zero() && in_time && !self.alone && shared.ctx.in_majority() {
                rest = GRACE_LOOK;
            }
            if !rest.is_zero() {
                if std::mem::take(&mut self.alone) {
                    shared
                        .ctx
                        .log
                        .note("the group's key is fresh again; this server's own key retires");
                }
                return rest;
            }
            if !std::mem::replace(&mut self.alone, true) {
                shared.ctx.log.warning(
                    "no majority for longer than max_key_age: the group's key is too old to \
                     encrypt, going on with a key of this server's own until the group is back",
                );
                self.own_since = Moment::default();
            }
        }
        let interval = shared.ctx.settings().key_update_interval;
        let rest = interval.saturating_sub(now.since(self.own_since));
        if !self.own.is_empty() && !rest.is_zero() {
            return rest;
        }
        match new_key() {
            Ok(key) => {
                shared.ctx.log.note(format!(
                    "this server's own key is now {}; other servers do not resume its tickets",
                    key.fingerprint()
                ));
                shared.keys.replace_initial(&key);
                self.own.insert(0, key);
                self.own_since = now;
                interval
            }
            Err(e) => {
                let line = format!("no new key: {e}; the present one stays in use");
                shared.ctx.log.limited(Level::Error, "no new key", line);
                NO_KEY_RETRY
            }
        }
    }

    /// Sends the set out if it has changed, and drops own keys that are not in it.
    fn publish(&mut self, sets: &watch::Sender<KeySet>) {
        let ring: &KeyRing = &self.held.agreed.ring;
        let limit = self.shared.ctx.settings().ticket_keys;
        let keys: Vec<Stek> = keys_to_install(ring, &self.own, &self.kept, self.alone, limit)
            .into_iter()
            .filter(|key| self.passes_gate(key))
            .collect();
        if keys.is_empty() {
            return;
        }
        self.own.retain(|own| keys.iter().any(|key| key.same_bytes(own)));
        let generation_of = |key: &Stek| {
            let mut held = ring.all();
            held.find(|held| held.stek.same_bytes(key)).map(|held| held.generation)
        };
        let current = keys.first().and_then(generation_of).unwrap_or_default();
        let newest = keys.iter().filter_map(generation_of).max().unwrap_or_default();
        // During a first handover the leader's own key is the staged one as well.
        let agreed = ring.current().is_some_and(|held| held.generation == current);
        let current = if agreed { current } else { Generation(0) };
        let last = sets.borrow().clone();
        let same_keys = Stek::same_keys(&last.keys, &keys);
        let same_rank =
            (last.agreed, last.cluster_id, last.newest) == (agreed, ring.cluster_id(), newest);
        if same_keys && same_rank {
            return;
        }
        let (serial, cluster_id) = (last.serial + 1, ring.cluster_id());
        let newest_key = ring.get(newest).map(Stek::fingerprint);
        let epoch = self.epoch;
        sets.send_replace(KeySet {
            serial,
            keys,
            agreed,
            cluster_id,
            epoch,
            newest,
            newest_key,
            current,
        });
    }

    fn passes_gate(&self, key: &Stek) -> bool {
        let refused =
            |weakness| self.shared.rejected_keys.record(Place::Install, Refusal::Weak(weakness));
        key.check().map_err(refused).is_ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use openraft::Vote;
    use tokio::time::timeout;

    use super::*;
    use crate::core::agreed::Agreed;
    use crate::core::config::Settings;
    use crate::core::log_id::{LeaderId, LogId};
    use crate::core::node_id::NodeId;
    use crate::node::fixture::{ring, settings, stek, Fixture};

    /// A revocation that was taken over leaves its key in the ring until the next one is there.
    #[tokio::test]
    async fn a_key_of_the_file_that_was_revoked_opens_nothing() {
        use crate::core::agreed::Record;
        use crate::core::agreement::ranked_record::{Rank, RankedRecord};
        use crate::core::key_ring::Command;
        use crate::core::server_id::ServerId;
        use crate::node::fixture::CLUSTER;
        for is_revoked in [false, true] {
            let fixture = Fixture::new();
            let mut record = Record::of_file([ServerId(1)].into());
            record.agreed.ring = ring();
            let key = record.agreed.ring.current().unwrap().stek.clone();
            let held = RingKey { generation: Generation(2), stek: stek(2) };
            let activate = Command::Activate { generation: Generation(2), keep: 2 };
            for command in [Command::Stage { held, revokes: false }, activate] {
                record.agreed.ring.apply(command).unwrap();
            }
            if is_revoked {
                record.agreed.ring.revoke_also(&[key.fingerprint()]);
            }
            let rank = Rank { epoch: CLUSTER, ..Rank::default() };
            fixture.shared.ctx.keep(RankedRecord { rank, record });
            let (sender, mut sets) = watch::channel(KeySet::own(stek(200)));
            let keeping = tokio::spawn(run(fixture.shared.clone(), stek(200), sender));
            let set = timeout(Duration::from_secs(30), sets.wait_for(|set| set.keys.len() > 1));
            let set = set.await.unwrap().unwrap().clone();
            keeping.abort();
            assert_eq!(set.keys.iter().any(|held| held.same_bytes(&key)), !is_revoked);
        }
    }

    /// Raft applies an entry after it has answered for it. If a server looked only when it hears its leader,
    /// it would be without the group's keys until the next heartbeat.
    #[tokio::test]
    async fn a_server_has_caught_up_as_soon_as_it_has_applied_what_is_committed() {
        let fixture = Fixture::new();
        let ctx = &fixture.shared.ctx;
        let (sender, _sets) = watch::channel(KeySet::own(stek(200)));
        let keeping = tokio::spawn(run(fixture.shared.clone(), stek(200), sender));
        let mut caught_up = ctx.caught_up.subscribe();
        let leader_id = LeaderId { term: 5, node: NodeId::of(2) };
        let end = |index| Some(LogId { leader_id, index });
        let apply =
            |index| ctx.views.send_modify(|view| (view.has_base, view.end) = (true, end(index)));
        ctx.hear_commit(leader_id, end(7));
        for index in [5, 6] {
            apply(index);
            tokio::task::yield_now().await;
            assert!(!*ctx.caught_up.borrow(), "it lacks an entry");
        }
        apply(7);
        timeout(Duration::from_secs(30), caught_up.wait_for(|has| *has)).await.unwrap().unwrap();
        // In another cluster that means nothing.
        ctx.enter();
        apply(8);
        tokio::task::yield_now().await;
        assert!(!*ctx.caught_up.borrow());
        // What an earlier leader committed is not all that there may be.
        ctx.hear_commit(LeaderId { term: 6, ..leader_id }, end(7));
        assert!(!*ctx.caught_up.borrow());
        keeping.abort();
    }

    /// Others that went on alone may have no room for the old key beside their own and the staged one.
    #[tokio::test]
    async fn a_key_that_was_too_old_does_not_come_back_while_a_rotation_is_awaited() {
        let fixture = Fixture::new();
        let shared = &fixture.shared;
        let ctx = &shared.ctx;
        let settings = Settings {
            max_key_age: Duration::from_secs(10),
            handover_timeout: Duration::from_secs(60),
            ..settings()
        };
        ctx.set_settings(settings);
        let running = fixture.running(Some(Vote::new_committed(5, NodeId::of(2)))).await;
        ctx.set_running(Some(running.clone()));
        let ring = ring();
        // Older than it may be, and not by so much that nobody waits for a rotation.
        let old = Duration::from_secs(20);
        let now = ctx.now();
        let at = |ago| Moment::from_start(now.since(Moment::default()).saturating_sub(ago));
        let view = |current_since| AgreedView {
            agreed: Arc::new(Agreed::of_ring(ring.clone())),
            current_since,
            ..AgreedView::default()
        };
        let mut publisher = KeyPublisher {
            shared: shared.clone(),
            held: view(at(old)),
            epoch: Epoch::default(),
            own: Vec::new(),
            own_since: Moment::default(),
            kept: Vec::new(),
            alone: false,
        };
        ctx.record_contact(true);
        assert_eq!((publisher.renew_own(), publisher.alone), (GRACE_LOOK, false));
        // Nobody is heard for a moment.
        ctx.record_contact(false);
        publisher.renew_own();
        assert!(publisher.alone && publisher.own.len() == 1);
        ctx.record_contact(true);
        publisher.renew_own();
        assert!(publisher.alone, "the key is as old as before");
        publisher.held = view(at(Duration::from_secs(1)));
        publisher.renew_own();
        assert!(!publisher.alone);
        let _ = running.raft.shutdown().await;
    }
}
