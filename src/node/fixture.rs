//! One server that has not begun to live, for unit tests of the node's parts.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::Vote;
use testkit::pki::Identity;
use tokio::sync::mpsc;

use super::environment::Environment;
use super::running::Running;
use super::shared::Shared;
use super::Deps;
use crate::consensus::log_store::LogStore;
use crate::consensus::network::{ClusterCell, Links};
use crate::consensus::state_machine::StateMachine;
use crate::consensus::{link_limit, raft_config, Raft};
use crate::core::agreement::epoch::Epoch;
use crate::core::config::{Member, Settings};
use crate::core::key_ring::{ClusterId, Command, Generation, KeyRing, RingKey};
use crate::core::node_id::NodeId;
use crate::core::server_id::ServerId;
use crate::core::stek::{Stek, STEK_LEN};
use crate::log_sink::{Level, Log, LogSink};
use crate::transport::tls::Tls;
use crate::transport::Versions;

/// Collects what the server says.
#[derive(Default)]
pub(super) struct Lines(pub Mutex<Vec<(Level, String)>>);

impl LogSink for Lines {
    fn write(&self, level: Level, line: &str) {
        self.0.lock().unwrap().push((level, line.to_owned()));
    }
}

/// The cluster that a Raft of such a server is of.
pub(super) const CLUSTER: Epoch = Epoch { counter: 5, founder: NodeId::of(2) };

/// See the module's head.
pub(super) struct Fixture {
    pub shared: Arc<Shared>,
    pub lines: Arc<Lines>,
}

impl Fixture {
    pub fn new() -> Fixture {
        Fixture::within(Environment::default())
    }

    /// The same in another world.
    pub fn within(outside: Environment) -> Fixture {
        let lines = Arc::new(Lines::default());
        let own = Identity::self_signed("/CN=server").unwrap();
        let certificate = own.certificate.to_pem().unwrap();
        let key = own.key.private_key_to_pem_pkcs8().unwrap();
        let tls = Tls::from_pem(&certificate, &certificate, &key, "/CN=server").unwrap();
        let (commands, _) = mpsc::channel(1);
        let log = Log::new(lines.clone());
        let (initial, versions) = (stek(200), Versions::OURS);
        let deps = Deps { log, tls, initial, versions, outside };
        let (asked, _) = mpsc::channel(1);
        let shared = Shared::new(settings(), deps, commands, asked).unwrap();
        Fixture { shared, lines }
    }

    /// How many lines had these words in them.
    pub fn count_lines(&self, words: &str) -> usize {
        self.lines.0.lock().unwrap().iter().filter(|(_, line)| line.contains(words)).count()
    }

    /// A Raft of this server in [`CLUSTER`] that remembers `vote` and nothing else.
    pub async fn running(&self, vote: Option<Vote<NodeId>>) -> Running {
        self.running_in(vote, CLUSTER).await
    }

    /// The same in another cluster.
    pub async fn running_in(&self, vote: Option<Vote<NodeId>>, epoch: Epoch) -> Running {
        self.running_with(LogStore::with_vote(vote), epoch).await
    }

    /// The same with this log.
    pub async fn running_with(&self, log: LogStore, epoch: Epoch) -> Running {
        let shared = self.shared.clone();
        let clock = self.shared.ctx.clone();
        let machine = StateMachine::new(
            shared.ctx.views.clone(),
            Arc::new(|_| {}),
            Arc::new(move || clock.now()),
        );
        let settings = shared.ctx.settings();
        let rpc_client = shared.peers.clone();
        let cluster = ClusterCell::from(std::sync::OnceLock::from(epoch));
        let links =
            Links::new(rpc_client, shared.keys.clone(), cluster.clone(), link_limit(&settings));
        let raft = Raft::new(
            shared.ctx.node(),
            raft_config(&settings),
            links,
            log.clone(),
            machine.clone(),
        );
        let limit = link_limit(&settings);
        shared.ctx.part(|part| assert!(part.join(epoch) || part.cluster == epoch));
        Running { raft: raft.await.unwrap(), log, machine, limit, cluster, cold: false }
    }
}

pub(super) fn settings() -> Settings {
    let id = ServerId(1);
    Settings {
        server_id: id,
        address: "127.0.0.1".to_owned(),
        port: 1,
        workers: 1,
        key_update_interval: Duration::from_secs(3600),
        startup_wait: Duration::ZERO,
        root_cert_file: "root.pem".into(),
        server_cert_file: "cert.pem".into(),
        server_key_file: "key.pem".into(),
        cert_verify_str: "/CN=server".to_owned(),
        members: vec![Member {
            id,
            address: "127.0.0.1".to_owned(),
            port: 1,
            subject: None,
            voter: true,
        }],
        ..Settings::defaults()
    }
}

/// A ring whose first key is current.
pub(super) fn ring() -> KeyRing {
    let mut ring = KeyRing::default();
    let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
    let held = RingKey { generation: Generation(1), stek: stek(1) };
    ring.apply(Command::Found { cluster_id }).unwrap();
    ring.apply(Command::Stage { held, revokes: false }).unwrap();
    ring.apply(Command::Activate { generation: Generation(1), keep: 2 }).unwrap();
    ring
}

/// A sound key; different seeds give different ones.
pub(super) fn stek(seed: u8) -> Stek {
    let bytes: Vec<u8> = (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ seed).collect();
    Stek::copy_from(&bytes).unwrap()
}
