//! One box: wires core, consensus and transport on a tokio runtime.
//!
//! Knows nothing of Traffic Server. What to install goes out as a [`KeySet`] by a watch channel;
//! whoever installs it says so with [`Node::installed`], and only that counts as held.
//!
//! | part | what it does |
//! |---|---|
//! | `shared` | what the parts know together: settings, peers, clock, phase, latest ring |
//! | `inbox` | answers other boxes |
//! | `life` | asks around, starts Raft, erases, watches over it, starts anew |
//! | `election` | stands when no leader is heard and a majority would vote for the box |
//! | `beats` | the leader's heart beats, and what a box makes of them |
//! | `leader` | founds, stages, activates; takes operators' orders |
//! | `refusals` | tells and counts the keys that the gate kept out |
//! | `report` | what the box says of itself to operators |
//! | `outside` | the world that the box is in: mutual TLS and files, or a simulation's |
//! | `roster` | has the group agree on its server list, and Raft's membership follow it |
//! | `list_file` | what the file of the server list holds now |
//! | `origin` | who gave an order, in words |
//! | `survey` | tells one that asks what the others say of themselves |
//! | `keeper` | from the ring to the set that the host should hold |
//! | `records` | what the box keeps in `state_dir` and makes of it |
//! | `state_file` | the file in `state_dir`: sealed, read, written |

mod beats;
#[cfg(test)]
mod bench;
mod bounds;
mod election;
mod inbox;
mod keeper;
mod leader;
mod life;
mod list_file;
mod origin;
pub mod outside;
#[cfg(test)]
mod panics;
mod records;
pub mod refusals;
mod report;
mod roster;
mod shared;
mod state_file;
mod survey;

use std::sync::Arc;
use std::time::Duration;

use openssl::error::ErrorStack;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::consensus::wire::{EnlistRefusal, OrderRefusal};
use crate::core::box_status::{BoxStatus, HostStatus};
use crate::core::config::{Member, Settings};
use crate::core::key_ring::{Generation, HistoryId};
use crate::core::rotation::Order;
use crate::core::server_id::ServerId;
use crate::core::stek::{Fingerprint, Stek, WeakKey};
use crate::journal::Log;
use crate::transport::tls::Tls;
use crate::transport::Versions;
#[doc(hidden)]
pub use state_file::door as state_file_door;

use outside::Outside;
use refusals::Refusals;
use shared::{lock, Shared};

pub use crate::core::box_status::Role;

/// How long a leader that leaves waits for its successor.
const FAREWELL_LIMIT: Duration = Duration::from_millis(450);

/// How long the tasks and Raft may take to end after that.
const END_LIMIT: Duration = Duration::from_millis(250);

/// The most time that [`Node::shutdown`] takes: a leader's farewell, and the end of what runs.
pub const SHUTDOWN_LIMIT: Duration = FAREWELL_LIMIT.saturating_add(END_LIMIT);

/// How many orders of operators may wait for the leader's attention; more are refused.
const MAX_ORDERS: usize = 16;

/// How often a random key may fail the sanity gate before something must be wrong with the
/// generator; a sound one fails once in 2^60.
const KEY_ATTEMPTS: usize = 4;

/// What a box should hold in its ticket context now: the encrypting key first.
#[derive(Clone, Debug)]
pub struct KeySet {
    /// Counts the sets of this process, from 1.
    pub serial: u64,
    /// At least one key, at most `ticket_keys`.
    pub keys: Vec<Stek>,
    /// Whether the first key is one that the group agreed on.
    pub agreed: bool,
    /// The history that the generations belong to.
    pub history: Option<HistoryId>,
    /// The newest generation among the keys, 0 if none is the group's.
    pub newest: Generation,
    /// The generation of the first key, 0 if it is not the group's.
    pub current: Generation,
}

impl KeySet {
    /// The set of a box that knows no group yet: its own key alone.
    pub fn own(key: Stek) -> KeySet {
        KeySet {
            serial: 1,
            keys: vec![key],
            agreed: false,
            history: None,
            newest: Generation(0),
            current: Generation(0),
        }
    }

    /// The set in words, for the log: fingerprints only.
    pub fn describe(&self) -> String {
        let first = self.keys.first().map(Stek::fingerprint);
        let name = first.map_or_else(|| "none".to_owned(), |f| f.to_string());
        let count = match self.keys.len() {
            1 => "1 key".to_owned(),
            n => format!("{n} keys"),
        };
        match (self.agreed, self.newest > self.current) {
            (true, false) => format!("{count}, current {name} (generation {})", self.current),
            (true, true) => format!(
                "{count}, current {name} (generation {}), staged generation {}",
                self.current, self.newest
            ),
            (false, _) => format!("{count}, current {name} (this server's own)"),
        }
    }
}

/// What [`Node::start`] needs besides the settings.
pub struct Deps {
    /// Where lines go.
    pub log: Log,
    /// Certificates, loaded and checked.
    pub tls: Tls,
    /// The key that this box made for itself and has installed.
    pub initial: Stek,
    /// The protocol versions that it speaks: [`Versions::OURS`], but for tests.
    pub versions: Versions,
    /// The world that it is in: the real one, but for simulations.
    pub outside: Outside,
}

/// Why a box has no new key to offer.
#[derive(Debug, Error)]
pub enum NoKey {
    /// OpenSSL's generator failed.
    #[error("OpenSSL's random generator failed: {0}")]
    Generator(#[from] ErrorStack),
    /// OpenSSL's generator gives nonsense.
    #[error("OpenSSL's random generator gave {KEY_ATTEMPTS} unfit keys in a row: {0}")]
    Weak(WeakKey),
}

/// Draws a key from OpenSSL's private generator and passes it through the sanity gate.
///
/// # Errors
/// If the generator fails, or gives nothing but unfit keys.
pub fn new_key() -> Result<Stek, NoKey> {
    let mut last = None;
    for _ in 0..KEY_ATTEMPTS {
        let key = Stek::fill_with(|bytes| openssl::rand::rand_priv_bytes(bytes))?;
        match key.check() {
            Ok(()) => return Ok(key),
            Err(weakness) => last = Some(weakness),
        }
    }
    Err(NoKey::Weak(last.unwrap_or(WeakKey::EqualParts)))
}

/// How [`Node::wait_for_group`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The group's keys are there; the current one's fingerprint.
    Keys(Fingerprint),
    /// Too few other boxes answer for a majority.
    NoMajority,
    /// The limit ran out.
    TimedOut,
}

/// What a reload did besides taking over settings and certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// The version of the agreed server list, if the file's had changed.
    pub list: Option<u64>,
}

/// Why a reload changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoReload {
    /// A running box cannot become another one.
    #[error(
        "server_id is {new} now and was {old}; a running server cannot become another one: \
         restart Traffic Server"
    )]
    OtherId {
        /// The id that it runs under.
        old: ServerId,
        /// The one in the file.
        new: ServerId,
    },
    /// The group did not agree on the file's server list.
    #[error("server_list_file: the group did not take the new list: {0}")]
    List(EnlistRefusal),
}

impl From<EnlistRefusal> for NoReload {
    fn from(refusal: EnlistRefusal) -> NoReload {
        NoReload::List(refusal)
    }
}

/// What a box knows of itself and the group; no secrets.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its part.
    pub role: Role,
    /// Raft's term.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<ServerId>,
    /// The history, if one has begun.
    pub history: Option<HistoryId>,
    /// The current generation, 0 before the first.
    pub current: Generation,
    /// The current key's fingerprint.
    pub fingerprint: Option<Fingerprint>,
    /// The staged generation, during a handover.
    pub staged: Option<Generation>,
    /// The newest generation that the host has installed.
    pub installed: Generation,
    /// How old the current key is.
    pub current_age: Duration,
    /// Entries in Raft's log.
    pub log_entries: usize,
    /// Voters of Raft's membership.
    pub members: usize,
    /// The version of the agreed server list, 0 before there is one.
    pub list_version: u64,
    /// Members that were heard within the upper election bound, this box included.
    pub reachable: usize,
}

/// A running box. Dropping it ends its tasks at once; [`Node::shutdown`] does it in order.
pub struct Node {
    shared: Arc<Shared>,
    sets: watch::Receiver<KeySet>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Node {
    /// Starts a box on the present tokio runtime. A port in use is not an error: the box keeps
    /// trying and says so.
    ///
    /// # Errors
    /// Only if OpenSSL cannot give randomness.
    pub async fn start(settings: Settings, deps: Deps) -> Result<Node, ErrorStack> {
        let (orders, order_queue) = mpsc::channel(MAX_ORDERS);
        let (set_sender, sets) = watch::channel(KeySet::own(deps.initial.clone()));
        let initial = deps.initial.clone();
        let shared = Shared::new(settings, deps, orders)?;
        records::load(&shared).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper::keep(shared.clone(), initial, set_sender));
        tasks.spawn(life::live(shared.clone(), order_queue));
        *lock(&shared.listener) = Some(shared.post.listen(&shared));
        tasks.spawn(roster::follow(shared.clone()));
        tasks.spawn(records::keep(shared.clone()));
        Ok(Node { shared, sets, tasks: tokio::sync::Mutex::new(tasks) })
    }

    /// The set to install, now and at each change.
    pub fn key_sets(&self) -> watch::Receiver<KeySet> {
        self.sets.clone()
    }

    /// Says that this set now stands in the ticket context.
    pub fn installed(&self, set: &KeySet) {
        self.shared.note_installed(set);
    }

    /// Waits until a set led by an agreed key is there, until no majority can be had, or until
    /// `limit` ran out, whichever comes first.
    pub async fn wait_for_group(&self, limit: Duration) -> Joined {
        let mut sets = self.sets.clone();
        let mut hopeless = self.shared.hopeless.subscribe();
        let keys = async {
            match sets.wait_for(|set| set.agreed).await {
                Ok(set) => set.keys.first().map(Stek::fingerprint).map(Joined::Keys),
                Err(_) => None,
            }
        };
        let both = async {
            tokio::select! {
                biased;
                joined = keys => joined.unwrap_or(Joined::NoMajority),
                _ = hopeless.wait_for(|hopeless| *hopeless) => Joined::NoMajority,
            }
        };
        timeout(limit, both).await.unwrap_or(Joined::TimedOut)
    }

    /// Has the group rotate or revoke now, through whichever box leads.
    ///
    /// # Errors
    /// Why that cannot be had at present.
    pub async fn order(&self, order: Order) -> Result<Generation, OrderRefusal> {
        leader::order(&self.shared, order, origin::message(self.shared.me)).await
    }

    /// Has the group agree on this server list, through whichever box leads. More than half of the
    /// present voters have to have it in their files.
    ///
    /// # Errors
    /// Why the list was not agreed on; nothing changed then.
    pub async fn enlist(&self, members: Vec<Member>) -> Result<u64, EnlistRefusal> {
        roster::enlist(&self.shared, members).await
    }

    /// Takes over newly loaded settings and certificates, and changes only what changed. Keys
    /// stay, and so do connections whose other ends would be let in now. A changed server list is brought before the
    /// group first: if the group refuses it, nothing changes at all.
    ///
    /// # Errors
    /// Why nothing changed.
    pub async fn reload(&self, settings: Settings, tls: Tls) -> Result<Reloaded, NoReload> {
        let old = self.shared.settings();
        if settings.server_id != old.server_id {
            return Err(NoReload::OtherId { old: old.server_id, new: settings.server_id });
        }
        // A file that did not change and holds a list that the group has left is merely behind.
        let edited = settings.members != old.members;
        let nothing_agreed = self.shared.views.borrow().agreed.ring.history().is_none();
        let wants_list = edited || roster::asks_for_new(&self.shared, &settings.members);
        let list = match wants_list && !nothing_agreed {
            true => Some(self.enlist_with(&settings.members, &tls).await?),
            false => None,
        };
        let moved = (&settings.bind_address, &settings.address, settings.port)
            != (&old.bind_address, &old.address, old.port);
        if nothing_agreed {
            // There is no group yet that could be asked.
            self.shared.set_members(&settings.members);
        }
        self.set_certificates(tls);
        self.shared.set_settings(settings);
        if moved {
            // The old one has to go first, or the new one might find the port in use.
            drop(lock(&self.shared.listener).take());
            *lock(&self.shared.listener) = Some(self.shared.post.listen(&self.shared));
        }
        Ok(Reloaded { list })
    }

    /// Has the group agree on this list, under which this box may have to show `tls`.
    async fn enlist_with(&self, members: &[Member], tls: &Tls) -> Result<u64, EnlistRefusal> {
        let answer = self.enlist(members.to_vec()).await;
        if answer != Err(EnlistRefusal::Unknown) || !roster::renames_own(&self.shared, members) {
            return answer;
        }
        // Under its new certificate it is heard if the group has agreed, and only then.
        let before = self.shared.tls.borrow().clone();
        self.shared.set_certificates(tls.clone());
        let answer = self.enlist(members.to_vec()).await;
        if answer.is_err() {
            self.shared.set_certificates(before);
        }
        answer
    }

    /// Takes over new certificates. A connection whose other end they do not let in is closed
    /// before anything else is sent on it.
    pub fn set_certificates(&self, tls: Tls) {
        self.shared.set_certificates(tls);
    }

    /// What this box knows of itself and the group.
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// All that this box says of itself to an operator's command; no secrets.
    pub fn status(&self) -> BoxStatus {
        report::status(&self.shared)
    }

    /// Has the host asked how it is whenever this box is; `probe` must not wait.
    pub fn set_host(&self, probe: impl Fn() -> HostStatus + Send + Sync + 'static) {
        *lock(&self.shared.ledger.host) = Some(Arc::new(probe));
    }

    /// Waits until keys, role or leader have changed since the last call ended; for one caller.
    pub async fn moved(&self) {
        self.shared.ledger.moved.notified().await;
    }

    /// The keys that the gate kept out of this box.
    pub fn refusals(&self) -> &Refusals {
        &self.shared.refusals
    }

    /// Ends the box's tasks at once and says nothing to anybody, as a process does that is killed.
    pub fn abort(&self) {
        // Only `shutdown` holds the lock for longer, and that ends them as well.
        if let Ok(mut tasks) = self.tasks.try_lock() {
            tasks.abort_all();
        }
    }

    /// Ends the box in an orderly way, within [`SHUTDOWN_LIMIT`].
    pub async fn shutdown(&self) {
        let _ = timeout(FAREWELL_LIMIT, leader::bid_farewell(&self.shared)).await;
        // Nobody is to find a box that no longer answers for itself.
        drop(lock(&self.shared.listener).take());
        let end = async {
            let mut tasks = self.tasks.lock().await;
            tasks.abort_all();
            while tasks.join_next().await.is_some() {}
            self.shared.stop_raft().await;
        };
        // Whatever is left after the limit dies with the runtime. Raft holds this box, and must not be
        // held by it any more, or its keys would outlive both.
        let _ = timeout(END_LIMIT, end).await;
        self.shared.set_running(None);
    }
}
