//! One server: wires core, consensus and transport on a tokio runtime.
//!
//! Knows nothing of Traffic Server. What to install goes out as a [`KeySet`] by a watch channel;
//! whoever installs it says so with [`Node::installed`], and only that counts as held.
//!
//! | part | what it does | takes |
//! |---|---|---|
//! | `types` | what goes in and out: key sets, the node's status, how a request ended | |
//! | `network`, `disk` | the ways to other servers and to `state_dir` | |
//! | `environment` | the world that the node is in: these two, or a simulation's | |
//! | `clock`, `counters`, `rejected_keys`, `running`, `list_file`, `origin` | one fact each | |
//! | `state_file` | the file in `state_dir`: sealed, read, written | disk |
//! | `context` | settings, members, clock, Raft, the agreed state, the leader that is heard | |
//! | `part` | changes of this node's part in agreement | context |
//! | `peer_client` | the other servers, and one request to one of them | context |
//! | `keys` | what is installed, how old the current key is, the own one | context |
//! | `store` | what is in `state_dir`, and how far that is | context |
//! | `records` | when it is read and written, and what is made of it | peers, keys, store |
//! | `heartbeat` | the leader's heartbeats, and what a server makes of them | peers, keys |
//! | `election` | becomes a candidate when no leader is heard and a pre-vote is won | peers |
//! | `leader_loss` | finds out that the leader's process is gone; has the next in turn connected with the others | peers |
//! | `bounds` | how much of a leader's word is believed | peers |
//! | `server_list` | has the group agree on its server list | peers |
//! | `replacement` | has Raft's membership follow that list and the lives of its servers | peers |
//! | `wake_pipe`, `session_exchange` | between the host's sessions and the node | |
//! | `sessions` | carries sessions to the other servers | peers |
//! | `local_key` | says why the server is on a key of its own | peers |
//! | `erasure` | erases retired keys from log and snapshot | context |
//! | `watchdog` | why a run of Raft has to end | peers |
//! | `shared` | all of these, put together | |
//! | `founding` | founds a cluster where no leader with a majority is heard | all |
//! | `forward` | brings an operator's order to the leader | all |
//! | `leader` | writes what the cluster was founded from, stages, activates; carries out orders | all |
//! | `key_publisher` | from the ring to the set that the host should hold | all |
//! | `lifecycle` | one run of Raft after another | all |
//! | `status` | what the node says of itself to operators | all |
//! | `rpc_server` | answers other servers | all |

mod bounds;
mod clock;
mod context;
mod counters;
pub mod disk;
mod election;
pub mod environment;
mod erasure;
#[cfg(test)]
mod fixture;
mod forward;
mod founding;
mod heartbeat;
mod key_publisher;
mod keys;
mod leader;
mod leader_contact;
mod leader_loss;
mod lifecycle;
mod list_file;
mod local_key;
mod network;
mod origin;
#[cfg(test)]
mod panics;
mod part;
mod peer_client;
mod records;
pub mod rejected_keys;
mod replacement;
mod rpc_server;
mod running;
mod server_list;
pub mod session_exchange;
mod sessions;
mod shared;
mod state_file;
mod status;
mod store;
mod types;
mod wake_pipe;
mod watchdog;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openssl::error::ErrorStack;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{timeout, Instant};

use crate::core::config::{Member, Settings};
use crate::core::key_ring::Generation;
use crate::core::rotation::AdminCommand;
use crate::core::server_id::ServerId;
use crate::core::server_status::{HostStatus, ServerStatus};
use crate::core::stek::Stek;
use crate::core::text::readable;
use crate::rpc::{AdminRefusal, MembershipRefusal, RecoverRefusal};
use crate::supervise::lock;
use crate::transport::tls::Tls;
#[doc(hidden)]
pub use state_file::fuzzing as state_file_fuzzing;

use rejected_keys::RejectedKeys;
use rpc_server::RpcServer;
use shared::{Shared, MAX_LIFECYCLE_REQUESTS};

pub use crate::core::server_status::Role;
pub use counters::ReloadOutcome;
pub use rpc_server::RELOAD_LIMIT;
pub use types::{new_key, Deps, Joined, KeySet, NoKey, NoReload, NodeStatus, Reloaded};

/// How long a leader that leaves waits for its successor.
const LEADERSHIP_TRANSFER_LIMIT: Duration = Duration::from_millis(450);

/// How long the tasks and Raft may take to end after that.
const END_LIMIT: Duration = Duration::from_millis(250);

/// The most time that [`Node::shutdown`] takes: a leader's leadership transfer, and the end of what runs.
pub const SHUTDOWN_LIMIT: Duration = LEADERSHIP_TRANSFER_LIMIT.saturating_add(END_LIMIT);

/// How many orders of operators may wait for the leader's attention; more are refused.
const MAX_COMMANDS: usize = 16;

/// A running server. Dropping it ends its tasks at once; [`Node::shutdown`] does it in order.
pub struct Node {
    shared: Arc<Shared>,
    sets: watch::Receiver<KeySet>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Node {
    /// Starts a server on the present tokio runtime. A port in use is not an error: the server keeps
    /// trying and says so.
    ///
    /// # Errors
    /// Only if OpenSSL cannot give randomness.
    pub async fn start(settings: Settings, deps: Deps) -> Result<Node, ErrorStack> {
        let (commands, command_queue) = mpsc::channel(MAX_COMMANDS);
        let (asked, asked_queue) = mpsc::channel(MAX_LIFECYCLE_REQUESTS);
        let (set_sender, sets) = watch::channel(KeySet::own(deps.initial.clone()));
        let initial = deps.initial.clone();
        let shared = Shared::new(settings, deps, commands, asked)?;
        records::load(&shared.peers, &shared.store).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(key_publisher::run(shared.clone(), initial, set_sender));
        tasks.spawn(lifecycle::run(shared.clone(), command_queue, asked_queue));
        tasks.spawn(founding::run(shared.clone()));
        shared.peers.listen(Arc::new(RpcServer(shared.clone())));
        tasks.spawn(server_list::follow(shared.peers.clone()));
        let (peers, store) = (&shared.peers, &shared.store);
        tasks.spawn(records::run(peers.clone(), store.clone()));
        tasks.spawn(local_key::watch(peers.clone(), sets.clone()));
        if let Some(exchange) = &shared.sessions {
            tasks.spawn(sessions::share(peers.clone(), exchange.clone()));
        }
        Ok(Node { shared, sets, tasks: tokio::sync::Mutex::new(tasks) })
    }

    /// The set to install, now and at each change.
    pub fn key_sets(&self) -> watch::Receiver<KeySet> {
        self.sets.clone()
    }

    /// Says that this set now stands in the ticket context.
    pub fn installed(&self, set: &KeySet) {
        self.shared.keys.record_installed(set);
    }

    /// Waits until a set led by an agreed key is there, until no majority can be had, or until
    /// `limit` ran out, whichever comes first.
    pub async fn wait_for_group(&self, limit: Duration) -> Joined {
        let mut sets = self.sets.clone();
        let mut quorum_unreachable = self.shared.quorum_unreachable.subscribe();
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
                _ = quorum_unreachable.wait_for(|quorum_unreachable| *quorum_unreachable) => Joined::NoMajority,
            }
        };
        timeout(limit, both).await.unwrap_or(Joined::TimedOut)
    }

    /// Has the group rotate or revoke now, through whichever server leads.
    ///
    /// # Errors
    /// Why that cannot be had at present.
    pub async fn admin_command(&self, command: AdminCommand) -> Result<Generation, AdminRefusal> {
        forward::admin_command(&self.shared, command, origin::message(self.shared.ctx.me)).await
    }

    /// Goes on with these servers alone, of which this one is one, since all others are gone for good: with
    /// the keys of the newest of them, and without a restart. The epoch of the cluster that is founded.
    ///
    /// # Errors
    /// Why there is none; nothing changed then, unless it is that not all took part.
    pub async fn recover(&self, survivors: BTreeSet<ServerId>) -> Result<u64, RecoverRefusal> {
        let (founder, me) = (founding::Founder::of(&self.shared), self.shared.ctx.me);
        founding::recover(&founder, survivors, &origin::message(me)).await
    }

    /// Has the group agree on this server list, through whichever server leads. More than half of the
    /// present voters have to have it in their files.
    ///
    /// # Errors
    /// Why the list was not agreed on; nothing changed then.
    pub async fn change_membership(&self, members: Vec<Member>) -> Result<u64, MembershipRefusal> {
        server_list::change_membership(&self.shared.peers, members).await
    }

    /// Takes over newly loaded settings and certificates, and changes only what changed. Keys
    /// stay, and so do connections whose other ends would be let in now. A changed server list is brought before the
    /// group first: if the group refuses it, nothing changes at all.
    ///
    /// # Errors
    /// Why nothing changed.
    pub async fn reload(&self, settings: Settings, tls: Tls) -> Result<Reloaded, NoReload> {
        let old = self.shared.ctx.settings();
        if settings.server_id != old.server_id {
            return Err(NoReload::OtherId { old: old.server_id, new: settings.server_id });
        }
        // A file that did not change and holds a list that the group has left is merely behind.
        let edited = settings.members != old.members;
        let nothing_agreed = self.shared.ctx.views.borrow().agreed.ring.cluster_id().is_none();
        let wants_list = edited || server_list::asks_for_new(&self.shared.peers, &settings.members);
        let list = if wants_list && !nothing_agreed {
            Some(self.change_membership_with(&settings.members, &tls).await?)
        } else {
            None
        };
        let moved = (&settings.bind_address, &settings.address, settings.port)
            != (&old.bind_address, &old.address, old.port);
        if nothing_agreed {
            // There is no group yet that could be asked.
            self.shared.peers.set_members(&settings.members);
        }
        self.set_certificates(tls);
        self.shared.ctx.set_settings(settings);
        if moved {
            self.shared.peers.listen(Arc::new(RpcServer(self.shared.clone())));
        }
        Ok(Reloaded { list })
    }

    /// Has the group agree on this list, under which this server may have to show `tls`.
    async fn change_membership_with(
        &self,
        members: &[Member],
        tls: &Tls,
    ) -> Result<u64, MembershipRefusal> {
        let answer = self.change_membership(members.to_vec()).await;
        if answer != Err(MembershipRefusal::Unknown)
            || !server_list::renames_own(&self.shared.peers, members)
        {
            return answer;
        }
        // Under its new certificate it is heard if the group has agreed, and only then.
        let before = self.shared.peers.tls.borrow().clone();
        self.shared.peers.set_certificates(tls.clone());
        let answer = self.change_membership(members.to_vec()).await;
        if answer.is_err() {
            self.shared.peers.set_certificates(before);
        }
        answer
    }

    /// Takes over new certificates. A connection whose other end they do not let in is closed
    /// before anything else is sent on it.
    pub fn set_certificates(&self, tls: Tls) {
        self.shared.peers.set_certificates(tls);
    }

    /// What this server knows of itself and the group.
    pub fn node_status(&self) -> NodeStatus {
        self.shared.node_status()
    }

    /// All that this server says of itself to an operator's command; no secrets.
    pub fn status(&self) -> ServerStatus {
        status::status(&self.shared)
    }

    /// Has the host asked how it is whenever this server is; `probe` must not wait.
    pub fn set_host(&self, probe: impl Fn() -> HostStatus + Send + Sync + 'static) {
        *lock(&self.shared.node_counters.host) = Some(Arc::new(probe));
    }

    /// Has files read again when an operator's command asks for it; `reloader` must not wait.
    pub fn set_reloader(
        &self,
        reloader: impl Fn(String) -> oneshot::Receiver<ReloadOutcome> + Send + Sync + 'static,
    ) {
        *lock(&self.shared.node_counters.reloader) = Some(Arc::new(reloader));
    }

    /// Keeps what came of a reload, for [`Node::status`].
    pub fn record_reload(&self, outcome: &ReloadOutcome) {
        let counters = &self.shared.node_counters;
        let (done, words) = match outcome {
            Ok(words) => (true, words),
            Err(words) => (false, words),
        };
        *lock(&counters.last_reload) = Some((Instant::now(), done, readable(words)));
        if !done {
            counters.count(|counters| &counters.reload_failures);
        }
        counters.count(|counters| &counters.reloads);
    }

    /// Waits until keys, role or leader have changed since the last call ended; for one caller.
    pub async fn moved(&self) {
        self.shared.node_counters.moved.notified().await;
    }

    /// The keys that key validation kept out of this server.
    pub fn rejected_keys(&self) -> &RejectedKeys {
        &self.shared.rejected_keys
    }

    /// Ends the server's tasks at once and says nothing to anybody, as a process does that is killed.
    pub fn abort(&self) {
        // Only `shutdown` holds the lock for longer, and that ends them as well.
        if let Ok(mut tasks) = self.tasks.try_lock() {
            tasks.abort_all();
        }
    }

    /// Ends the server in an orderly way, within [`SHUTDOWN_LIMIT`].
    pub async fn shutdown(&self) {
        let _ = timeout(LEADERSHIP_TRANSFER_LIMIT, leader::transfer_leadership(&self.shared.peers))
            .await;
        // Nobody is to find a server that no longer answers for itself.
        self.shared.peers.close();
        let end = async {
            let mut tasks = self.tasks.lock().await;
            tasks.abort_all();
            while tasks.join_next().await.is_some() {}
            self.shared.ctx.stop_raft().await;
        };
        // Whatever is left after the limit dies with the runtime. Raft holds this server, and must not be
        // held by it any more, or its keys would outlive both.
        let _ = timeout(END_LIMIT, end).await;
        self.shared.ctx.set_running(None);
    }
}
