//! What a node knows of its keys besides the agreed ring: what the host has installed, how old the
//! current key is, and the key of its own.
//!
//! Which keys the host should hold is for `key_publisher`. Invariants: a generation counts as installed for
//! the cluster incarnation that it was installed in, and for no other; a key never becomes younger by being told
//! of.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::context::{lock, Context};
use super::counters::NodeCounters;
use super::KeySet;
use crate::consensus::network::LeaderInfo;
use crate::consensus::state_machine::AgreedView;
use crate::core::key_ring::{ClusterId, Generation};
use crate::core::moment::{millis, Moment};
use crate::core::server_id::ServerId;
use crate::core::stek::Stek;

/// The newest key in the host's ticket context, and the cluster incarnation that it belongs to: a generation
/// says nothing about another cluster incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Installed {
    pub cluster_id: Option<ClusterId>,
    pub newest: Generation,
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
    /// A key and when it became current, as a leader told.
    told: Mutex<Option<(ToldKey, Moment)>>,
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
            let mut told_before = lock(&self.told);
            *told_before = match *told_before {
                Some((told, at)) if told == key => Some((told, at.min(since))),
                _ => Some((key, since)),
            };
        }
    }

    /// When the view's current key became current: this server's own note, or an older one that it
    /// was told of, since an entry that is applied late is not young.
    pub fn current_since(&self, view: &AgreedView) -> Moment {
        let told = *lock(&self.told);
        match (view.agreed.ring.current(), told) {
            (Some(current), Some((key, at)))
                if key == (view.agreed.ring.cluster_id(), current.generation) =>
            {
                view.current_since.min(at)
            }
            _ => view.current_since,
        }
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
        let (cluster_id, newest, agreed) = (set.cluster_id, set.newest, set.agreed);
        self.installed.send_replace(Installed { cluster_id, newest, agreed });
        self.node_counters.moved.notify_one();
    }

    /// Whether this server has started anew as an empty one, and has not had the group's keys since.
    pub fn is_restarted(&self) -> bool {
        self.restarted.load(Ordering::Relaxed)
    }

    pub fn set_restarted(&self, restarted: bool) {
        self.restarted.store(restarted, Ordering::Relaxed);
    }

    /// Notes that the generations which the host has installed are no longer the group's.
    pub fn void_installed(&self) {
        self.installed.send_modify(|installed| installed.cluster_id = None);
    }

    /// The newest generation of the present cluster incarnation that the host has installed.
    pub fn installed_newest(&self) -> Generation {
        let installed = *self.installed.borrow();
        let cluster_id = self.ctx.views.borrow().agreed.ring.cluster_id();
        if installed.cluster_id == cluster_id {
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

    fn acknowledged(&self, by: ServerId) {
        self.ctx.acknowledge(by);
    }
}
