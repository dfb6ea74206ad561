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
use crate::consensus::network::Links;
use crate::consensus::state_machine::StateMachine;
use crate::consensus::{link_limit, raft_config, Raft};
use crate::core::config::{Member, Settings};
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

/// See the module's head.
pub(super) struct Bench {
    pub shared: Arc<Shared>,
    pub lines: Arc<Lines>,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::within(Environment::default())
    }

    /// The same in another world.
    pub fn within(outside: Environment) -> Bench {
        let lines = Arc::new(Lines::default());
        let own = Identity::self_signed("/CN=server").unwrap();
        let certificate = own.certificate.to_pem().unwrap();
        let key = own.key.private_key_to_pem_pkcs8().unwrap();
        let tls = Tls::from_pem(&certificate, &certificate, &key, "/CN=server").unwrap();
        let (orders, _) = mpsc::channel(1);
        let log = Log::new(lines.clone());
        let (initial, versions) = (stek(200), Versions::OURS);
        let deps = Deps { log, tls, initial, versions, outside };
        let shared = Shared::new(settings(), deps, orders).unwrap();
        Bench { shared, lines }
    }

    /// How many lines had these words in them.
    pub fn count_lines(&self, words: &str) -> usize {
        self.lines.0.lock().unwrap().iter().filter(|(_, line)| line.contains(words)).count()
    }

    /// A Raft of this server that remembers `vote` and nothing else.
    pub async fn running(&self, vote: Option<Vote<ServerId>>) -> Running {
        let (shared, log) = (self.shared.clone(), LogStore::with_vote(vote));
        let clock = self.shared.ctx.clone();
        let machine = StateMachine::new(
            shared.ctx.views.clone(),
            Arc::new(|_| {}),
            Arc::new(move || clock.now()),
        );
        let settings = shared.ctx.settings();
        let rpc_client = shared.peers.clone();
        let links = Links::new(rpc_client, shared.keys.clone(), link_limit(&settings));
        let raft =
            Raft::new(shared.ctx.me, raft_config(&settings), links, log.clone(), machine.clone());
        let limit = link_limit(&settings);
        Running { raft: raft.await.unwrap(), log, machine, limit, cold: false }
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
        members: vec![Member { id, address: "127.0.0.1".to_owned(), port: 1, subject: None }],
        ..Settings::defaults()
    }
}

/// A sound key; different seeds give different ones.
pub(super) fn stek(seed: u8) -> Stek {
    let bytes: Vec<u8> = (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ seed).collect();
    Stek::copy_from(&bytes).unwrap()
}
