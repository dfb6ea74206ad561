//! What a node knows of its keys besides the agreed ring: what the host has installed, how old the
//! current key is, and the key of its own.
//!
//! Which keys the host should hold is for `key_publisher`. Invariants: a generation counts as installed if
//! its very key is; a key never becomes younger by being told
//! of.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::context::Context;
use super::counters::NodeCounters;
use super::KeySet;
use crate::consensus::network::LeaderInfo;
use crate::consensus::state_machine::AgreedView;
use crate::core::key_ring::{ClusterId, Generation};
use crate::core::moment::{millis, Moment};
use crate::core::node_id::NodeId;
use crate::core::stek::{Fingerprint, Stek};
use crate::supervise::lock;

/// The newest key in the host's ticket context: by its generation, and by its name, since another
/// group may have another key of that generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Installed {
    pub newest: Generation,
    pub key: Option<Fingerprint>,
    /// Whether an agreed key encrypts.
    pub agreed: bool,
}

/// Names a key without its bytes.
type ToldKey = (Option<ClusterId>, Generation);

/// See the module's head.
pub(super) struct Keys {
    ctx: Arc<Context>,
    node_counters: Arc<NodeCounters>,
    /// What the host has installed.
    pub installed: watch::Sender<Installed>,
    /// Whether this server goes on with a key of its own because the group's is too old.
    pub alone: watch::Sender<bool>,
    /// See [`Keys::is_restarted`].
    restarted: AtomicBool,
    /// This server's own first key, to be offered to a group that has none yet.
    initial: Mutex<Option<Stek>>,
    /// Keys and when they became current, as a leader told: the last one, and the one before, which is
    /// the current one here until this server has applied what the leader has.
    told: Mutex<[Option<(ToldKey, Moment)>; 2]>,
}

impl Keys {
    /// Of a server that has installed a key of its own.
    pub fn new(ctx: Arc<Context>, node_counters: Arc<NodeCounters>, initial: Stek) -> Keys {
        Keys {
            ctx,
            node_counters,
            installed: watch::Sender::default(),
            alone: watch::Sender::default(),
            restarted: AtomicBool::new(false),
            initial: Mutex::new(Some(initial)),
            told: Mutex::default(),
        }
    }

    /// Remembers how old a leader says that its current key is.
    pub fn record_age(&self, cluster_id: Option<ClusterId>, age: Option<(Generation, u64)>) {
        if let Some((generation, ms)) = age {
            let since = self.ctx.now().ago(Duration::from_millis(ms));
            let key = (cluster_id, generation);
            if let Some(running) = self.ctx.running() {
                running.machine.note_age(cluster_id, generation, since);
            }
            let mut told = lock(&self.told);
            match &mut *told {
                [Some((last, at)), _] if *last == key => *at = since.min(*at),
                [last, before] => *before = last.replace((key, since)),
            }
        }
    }

    /// When the view's current key became current: this server's own note, or an older one that it
    /// was told of, since an entry that is applied late is not young.
    pub fn current_since(&self, view: &AgreedView) -> Moment {
        let Some(current) = view.agreed.ring.current() else { return view.current_since };
        let present = (view.agreed.ring.cluster_id(), current.generation);
        let told = *lock(&self.told);
        let at = told.into_iter().flatten().find(|(key, _)| *key == present).map(|(_, at)| at);
        at.map_or(view.current_since, |at| at.min(view.current_since))
    }

    /// This server's own first key, as long as it is still worth offering.
    pub fn initial(&self) -> Option<Stek> {
        lock(&self.initial).clone()
    }

    pub fn drop_initial(&self) {
        *lock(&self.initial) = None;
    }

    /// This server has another key of its own now; the one before must not come back as the group's.
    pub fn replace_initial(&self, key: &Stek) {
        if let Some(initial) = &mut *lock(&self.initial) {
            *initial = key.clone();
        }
    }

    pub fn record_installed(&self, set: &KeySet) {
        let line = format!("installed {}", set.describe());
        if set.newest > set.current {
            self.ctx.log.debug(line);
        } else {
            self.ctx.log.note(line);
        }
        let (newest, key, agreed) = (set.newest, set.newest_key, set.agreed);
        self.installed.send_replace(Installed { newest, key, agreed });
        self.node_counters.moved.notify_one();
    }

    /// Whether this server has started anew as an empty one, and has not had the group's keys since.
    pub fn is_restarted(&self) -> bool {
        self.restarted.load(Ordering::Relaxed)
    }

    pub fn set_restarted(&self, restarted: bool) {
        self.restarted.store(restarted, Ordering::Relaxed);
    }

    /// The newest generation of the present ring that the host has installed.
    pub fn installed_newest(&self) -> Generation {
        let installed = *self.installed.borrow();
        self.newest_of(&installed)
    }

    /// The generation of a key that is installed, 0 if it is none of the present ring.
    pub fn newest_of(&self, installed: &Installed) -> Generation {
        let view = self.ctx.views.borrow();
        let named = view.agreed.ring.get(installed.newest).map(Stek::fingerprint);
        if named.is_some() && named == installed.key {
            installed.newest
        } else {
            Generation(0)
        }
    }
}

impl LeaderInfo for Keys {
    fn current_age(&self) -> Option<(Generation, u64)> {
        let view = self.ctx.views.borrow().clone();
        let age = self.now().since(self.current_since(&view));
        view.agreed.ring.current().map(|held| (held.generation, millis(age)))
    }

    fn has_quorum(&self) -> bool {
        self.ctx.has_quorum()
    }

    fn now(&self) -> Moment {
        self.ctx.now()
    }

    fn acknowledged(&self, by: NodeId) {
        self.ctx.acknowledge(by);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::consensus::log_store::LogStore;
    use crate::core::agreed::{Agreed, Command, Record};
    use crate::node::fixture::{stek, Fixture, CLUSTER};

    /// What a server holds goes into its file and into what a cluster is founded from.
    #[tokio::test]
    async fn what_a_leader_says_of_an_age_is_true_of_what_this_server_holds() {
        use crate::core::key_ring::{Command as KeyCommand, RingKey};
        let fixture = Fixture::new();
        let ctx = &fixture.shared.ctx;
        let log = LogStore::founding([ctx.node()].into(), None);
        let running = fixture.running_with(log, CLUSTER).await;
        running.raft.trigger().elect().await.unwrap();
        let patience = Some(Duration::from_secs(30));
        running.raft.wait(patience).current_leader(ctx.node(), "leads").await.unwrap();
        let mut record = Record::of_file([ctx.me].into());
        let cluster_id = ClusterId::from_bytes([3; 16]).unwrap();
        record.agreed.ring.apply(KeyCommand::Found { cluster_id }).unwrap();
        let held = RingKey { generation: Generation(1), stek: stek(1) };
        let stage = KeyCommand::Stage { held, revokes: false };
        let activate = KeyCommand::Activate { generation: Generation(1), keep: 2 };
        let found = Command::Found(Box::new(record));
        for command in [found, Command::Key(stage), Command::Key(activate)] {
            let _ = running.raft.client_write(command).await.unwrap();
        }
        let age = |running: &crate::node::running::Running| {
            running.machine.record(&running.log, ctx.now()).unwrap().1.current_age_ms
        };
        assert!(age(&running) < 20_000);
        ctx.set_running(Some(running.clone()));
        fixture.shared.keys.record_age(Some(cluster_id), Some((Generation(1), 20_000)));
        assert!(age(&running) >= 20_000);
        ctx.stop_raft().await;
    }

    /// The leader is one key ahead of what is applied here.
    #[tokio::test(start_paused = true)]
    async fn the_age_of_a_key_is_known_until_the_next_one_is_applied_here() {
        use crate::core::key_ring::{Command, KeyRing, RingKey};
        let shared = Fixture::new().shared;
        let cluster_id = ClusterId::from_bytes([3; 16]).unwrap();
        let mut ring = KeyRing::default();
        ring.apply(Command::Found { cluster_id }).unwrap();
        let held = RingKey { generation: Generation(1), stek: stek(1) };
        ring.apply(Command::Stage { held, revokes: false }).unwrap();
        ring.apply(Command::Activate { generation: Generation(1), keep: 2 }).unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        let current_since = shared.ctx.now();
        let agreed = Arc::new(Agreed::of_ring(ring));
        let view = AgreedView { agreed, current_since, ..AgreedView::default() };
        let age = |keys: &Keys| shared.ctx.now().since(keys.current_since(&view)).as_secs();
        assert_eq!(age(&shared.keys), 0);
        shared.keys.record_age(Some(cluster_id), Some((Generation(1), 20_000)));
        assert_eq!(age(&shared.keys), 20);
        shared.keys.record_age(Some(cluster_id), Some((Generation(2), 0)));
        assert_eq!(age(&shared.keys), 20, "generation 1 is current here still");
        shared.keys.record_age(Some(cluster_id), Some((Generation(3), 0)));
        assert_eq!(age(&shared.keys), 0);
    }
}
