//! Servers without the host: real nodes, real sockets, real mutual TLS, each on a tokio runtime of
//! its own so that one can be killed like a process.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::relay::Relays;
use stek_share::core::config::{Member, Settings};
use stek_share::core::server_id::ServerId;
use stek_share::core::stek::Fingerprint;
use stek_share::log_sink::{Level, Log, LogSink};
use stek_share::node::environment::{Environment, ReadList};
use stek_share::node::{new_key, Deps, KeySet, Node, NodeStatus, Role};
use stek_share::transport::tls::Tls;
use stek_share::transport::{Bounds, Versions};
use testkit::pki::{Authority, Identity, Request};
use tokio::runtime::Runtime;

/// How long a condition may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Collects what a server says.
#[derive(Default)]
pub struct Lines(Mutex<Vec<(Level, String)>>);

impl LogSink for Lines {
    fn write(&self, level: Level, line: &str) {
        self.0.lock().unwrap().push((level, line.to_owned()));
    }
}

impl Lines {
    pub fn all(&self) -> Vec<(Level, String)> {
        self.0.lock().unwrap().clone()
    }

    pub fn has(&self, what: &str) -> bool {
        self.0.lock().unwrap().iter().any(|(_, line)| line.contains(what))
    }
}

/// Servers that this program has started.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// What stands in for the host: takes sets as a ticket context would, and can be told to fail.
#[derive(Default)]
pub struct Host {
    /// Sets in the order of their installation, with the time.
    pub sets: Mutex<Vec<(Instant, Vec<Fingerprint>)>>,
    /// While set, every installation fails.
    pub broken: AtomicBool,
    pub installs: AtomicU64,
}

impl Host {
    pub fn latest(&self) -> Vec<Fingerprint> {
        self.sets.lock().unwrap().last().map(|(_, keys)| keys.clone()).unwrap_or_default()
    }

    fn install(&self, set: &KeySet) -> bool {
        if self.broken.load(Ordering::SeqCst) {
            return false;
        }
        let prints = set.keys.iter().map(|k| k.fingerprint()).collect();
        self.sets.lock().unwrap().push((Instant::now(), prints));
        self.installs.fetch_add(1, Ordering::SeqCst);
        true
    }
}

/// One running server.
pub struct Running {
    pub node: Arc<Node>,
    pub host: Arc<Host>,
    pub lines: Arc<Lines>,
    /// How long its machine has been suspended, in seconds.
    pub slept: Arc<AtomicU64>,
    /// The name of its threads, which no other server of this program has.
    #[allow(dead_code)]
    pub threads: String,
    pub runtime: Option<Runtime>,
}

impl Running {
    pub fn node_status(&self) -> NodeStatus {
        self.node.node_status()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // First what reacts to the rest: a killed process does not see its own parts die.
        self.node.abort();
        if let Some(runtime) = self.runtime.take() {
            // Until each worker has ended what it is at.
            runtime.shutdown_timeout(PATIENCE);
        }
    }
}

/// A list of servers, some of them running.
pub struct Fleet {
    pub authority: Authority,
    pub members: Vec<Member>,
    pub servers: BTreeMap<u32, Running>,
    pub tune: fn(&mut Settings),
    /// Links that can be cut, if the test wants any.
    pub relays: Option<Relays>,
    /// What each server's file of the server list holds now.
    pub files: Files,
    /// Servers that speak other protocol versions than [`Versions::OURS`].
    pub versions: BTreeMap<u32, Versions>,
    /// What each server bears of connections.
    pub bounds: Bounds,
    identities: BTreeMap<u32, Identity>,
}

/// The files of all servers; without an entry a file cannot be read.
pub type Files = Arc<Mutex<BTreeMap<u32, Vec<Member>>>>;

pub const SUBJECT: &str = "/C=US/ST=IL/O=Edge/OU=Test/CN=server";

impl Fleet {
    /// A list of `count` servers with ids from 1, none of them running.
    pub fn new(count: u32, tune: fn(&mut Settings)) -> Fleet {
        let ports = testkit::ports::take_many(count as usize).unwrap();
        let members = (1..=count).zip(ports).map(|(id, port)| member(id, port)).collect();
        let authority = Authority::new("/O=Edge/CN=Test Root").unwrap();
        Fleet {
            authority,
            members,
            servers: BTreeMap::new(),
            tune,
            relays: None,
            files: Files::default(),
            versions: BTreeMap::new(),
            bounds: Bounds::default(),
            identities: BTreeMap::new(),
        }
    }

    /// The same, all started at once.
    pub fn running(count: u32, tune: fn(&mut Settings)) -> Fleet {
        let mut fleet = Fleet::new(count, tune);
        for id in 1..=count {
            fleet.start(id);
        }
        fleet
    }

    /// The same, all started at once, on links that can be cut.
    pub fn linked(count: u32, tune: fn(&mut Settings)) -> Fleet {
        let mut fleet = Fleet::new(count, tune);
        fleet.relays = Some(Relays::new(&fleet.members));
        for id in 1..=count {
            fleet.start(id);
        }
        fleet
    }

    /// Cuts or heals the links between two sides.
    pub fn part(&self, one: &[u32], other: &[u32], cut: bool) {
        self.relays.as_ref().expect("a linked fleet").part(one, other, cut);
    }

    /// Ends a server in an orderly way, as Traffic Server does at SIGTERM.
    pub fn stop(&mut self, id: u32) {
        let running = self.servers.remove(&id).expect("it runs");
        running.runtime.as_ref().expect("it runs").block_on(running.node.shutdown());
    }

    pub fn settings(&self, id: u32) -> Settings {
        let me = &self.members[id as usize - 1];
        let mut settings = Settings {
            server_id: me.id,
            address: me.address.clone(),
            port: me.port,
            workers: 2,
            key_update_interval: Duration::from_secs(3600),
            root_cert_file: "root.pem".into(),
            server_cert_file: "cert.pem".into(),
            server_key_file: "key.pem".into(),
            cert_verify_str: SUBJECT.to_owned(),
            members: self.members.clone(),
            ..Settings::defaults()
        };
        (self.tune)(&mut settings);
        if let Some(relays) = &self.relays {
            relays.reroute(&mut settings);
        }
        settings
    }

    /// The certificate of one server, the same at each call.
    pub fn identity(&mut self, id: u32) -> Identity {
        let authority = &self.authority;
        let make = || authority.issue(&Request::new(SUBJECT)).unwrap();
        self.identities.entry(id).or_insert_with(make).clone()
    }

    /// Gives one server a new certificate with a new key.
    pub fn renew_identity(&mut self, id: u32) {
        self.identities.remove(&id);
    }

    pub fn tls(&self) -> Tls {
        let identity = self.authority.issue(&Request::new(SUBJECT)).unwrap();
        tls_of(&self.authority.identity, &identity, SUBJECT)
    }

    pub fn start(&mut self, id: u32) -> &Running {
        let (settings, tls) = (self.settings(id), self.tls());
        self.start_with(id, settings, tls)
    }

    pub fn start_with(&mut self, id: u32, settings: Settings, tls: Tls) -> &Running {
        self.start_within(id, settings, tls, Environment::default())
    }

    /// The same in another world.
    pub fn start_within(
        &mut self,
        id: u32,
        settings: Settings,
        tls: Tls,
        outside: Environment,
    ) -> &Running {
        let threads = format!("server-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.workers)
            .thread_name(&threads)
            .enable_all()
            .build()
            .unwrap();
        let lines = Arc::new(Lines::default());
        let versions = self.versions.get(&id).copied().unwrap_or(Versions::OURS);
        let log = Log::new(lines.clone());
        let slept = Arc::new(AtomicU64::new(0));
        let told = slept.clone();
        let suspended = move || Duration::from_secs(told.load(Ordering::SeqCst));
        self.give(&[id], &settings.members);
        let list_file = read_list(self.files.clone(), id);
        let initial = new_key().unwrap();
        let outside = Environment {
            suspended: Arc::new(suspended),
            list_file,
            bounds: self.bounds,
            ..outside
        };
        let deps = Deps { log, tls, initial, versions, outside };
        let node = Arc::new(runtime.block_on(Node::start(settings, deps)).unwrap());
        let host = Arc::new(Host::default());
        runtime.spawn(play_host(node.clone(), host.clone()));
        let running = Running { node, host, lines, slept, threads, runtime: Some(runtime) };
        self.servers.insert(id, running);
        &self.servers[&id]
    }

    /// Puts a list into the files of some servers, as an operator does before a reload.
    pub fn give(&self, ids: &[u32], list: &[Member]) {
        let mut files = self.files.lock().unwrap();
        files.extend(ids.iter().map(|id| (*id, list.to_vec())));
    }

    /// Puts a list into the files of all servers that run.
    pub fn distribute(&self, list: &[Member]) {
        let ids: Vec<u32> = self.servers.keys().copied().collect();
        self.give(&ids, list);
    }

    /// Ends a server the hard way: its sockets close, nothing is said.
    pub fn kill(&mut self, id: u32) {
        self.servers.remove(&id);
    }

    pub fn leader(&self) -> Option<u32> {
        let mut leaders = self.servers.iter().filter(|(_, b)| b.node_status().role == Role::Leader);
        leaders.next().map(|(id, _)| *id)
    }

    /// Whether all running servers have installed one agreed set of keys of one generation.
    pub fn is_one(&self) -> bool {
        let sets: Vec<_> = self.servers.values().map(|b| b.host.latest()).collect();
        let reports: Vec<_> = self.servers.values().map(Running::node_status).collect();
        let first = &reports[0];
        first.current.0 > 0
            && reports.iter().all(|r| {
                r.current == first.current
                    && r.fingerprint == first.fingerprint
                    && r.cluster_id == first.cluster_id
                    && r.staged.is_none()
                    && r.installed == r.current
            })
            && sets.iter().all(|keys| keys.first() == first.fingerprint.as_ref())
    }

    pub fn wait_until_one(&self) {
        wait_for("all servers to have one key", || self.is_one(), || self.describe());
    }

    /// Until no death of one server can end the cluster, which was founded with a majority.
    pub fn wait_until_all_vote(&self) {
        let all = || self.servers.values().all(|running| running.node_status().votes);
        wait_for("all servers to vote", all, || self.describe());
    }

    pub fn wait_for_generation(&self, at_least: u64) {
        wait_for(
            &format!("generation {at_least} on all servers"),
            || {
                self.is_one()
                    && self.servers.values().all(|b| b.node_status().current.0 >= at_least)
            },
            || self.describe(),
        );
    }

    pub fn wait_for_leader(&self) -> u32 {
        wait_for("a leader", || self.leader().is_some(), || self.describe());
        self.leader().unwrap()
    }

    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (id, b) in &self.servers {
            text +=
                &format!("server {id}: {:?}\n  installed {:?}\n", b.node_status(), b.host.latest());
            for (level, line) in b.lines.all() {
                text += &format!("    {level:?}: {line}\n");
            }
        }
        text
    }
}

fn read_list(files: Files, id: u32) -> ReadList {
    Arc::new(move || Box::pin(ready(files.lock().unwrap().get(&id).cloned())))
}

pub fn member(id: u32, port: u16) -> Member {
    Member { id: ServerId(id), address: "127.0.0.1".to_owned(), port, subject: None, voter: true }
}

pub fn tls_of(root: &Identity, own: &Identity, subject: &str) -> Tls {
    let root = root.certificate.to_pem().unwrap();
    let chain = own.certificate.to_pem().unwrap();
    let key = own.key.private_key_to_pem_pkcs8().unwrap();
    Tls::from_pem(&root, &chain, &key, subject).unwrap()
}

async fn play_host(node: Arc<Node>, host: Arc<Host>) {
    let mut sets = node.key_sets();
    loop {
        let set = sets.borrow_and_update().clone();
        if host.install(&set) {
            node.installed(&set);
            if sets.changed().await.is_err() {
                return;
            }
        } else {
            // As the real installer does, a failed installation is tried again.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits for a condition; panics with `state` if it does not come.
pub fn wait_for(what: &str, done: impl Fn() -> bool, state: impl Fn() -> String) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}:\n{}", state());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a future outside of any server's runtime.
pub fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
