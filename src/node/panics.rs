//! A panic in each task of a running node: the group goes on, and all servers take part again. The
//! same in real Traffic Servers, host included, is for `tests/panics`.

use std::sync::Arc;
use std::time::Duration;

use testkit::pki::Identity;
use testkit::ports;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::environment::Environment;
use super::fixture::{self, stek, Lines};
use super::{Deps, KeySet, Node};
use crate::core::config::{Member, Settings, Timers};
use crate::core::server_id::ServerId;
use crate::log_sink::{Level, Log};
use crate::supervise::planted;
use crate::transport::tls::Tls;
use crate::transport::Versions;

/// Until something has happened that takes well below a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What runs on a rotation, on whichever server passes it first.
const TASKS: [&str; 11] = [
    "append",
    "apply",
    "ask-installed",
    "heartbeat",
    "heartbeat-ask",
    "conversation",
    "rpc_server",
    "key_publisher",
    "leader",
    "replicate",
    "server_list",
];

/// What runs when a server returns, on itself or on the others.
const MEETING: [&str; 5] = ["accept", "asker", "connection", "line", "verify"];

/// Servers of one group, all on this thread, each with a task that stands for the host.
struct Group {
    nodes: Vec<Arc<Node>>,
    hosts: Vec<JoinSet<()>>,
    settings: Vec<Settings>,
    tls: Tls,
    lines: Arc<Lines>,
}

impl Group {
    async fn new(size: u16) -> Group {
        let own = Identity::self_signed("/CN=server").unwrap();
        let certificate = own.certificate.to_pem().unwrap();
        let key = own.key.private_key_to_pem_pkcs8().unwrap();
        let tls = Tls::from_pem(&certificate, &certificate, &key, "/CN=server").unwrap();
        let ports = ports::take_many(usize::from(size)).unwrap();
        let address = "127.0.0.1".to_owned();
        let members: Vec<Member> = (1..)
            .zip(&ports)
            .map(|(id, port)| Member {
                id: ServerId(id),
                address: address.clone(),
                port: *port,
                subject: None,
                voter: true,
            })
            .collect();
        let settings = members.iter().map(|member| Settings {
            server_id: member.id,
            port: member.port,
            key_update_interval: Duration::from_millis(500),
            timers: Timers {
                heartbeat: Duration::from_millis(50),
                election_lower: Duration::from_millis(200),
                election_upper: Duration::from_millis(400),
            },
            members: members.clone(),
            ..fixture::settings()
        });
        let (settings, lines) = (settings.collect(), Arc::default());
        let mut group = Group { nodes: Vec::new(), hosts: Vec::new(), settings, tls, lines };
        for index in 0..usize::from(size) {
            let (node, host) = group.start(index).await;
            group.nodes.push(node);
            group.hosts.push(host);
        }
        group
    }

    async fn start(&self, index: usize) -> (Arc<Node>, JoinSet<()>) {
        let deps = Deps {
            log: Log::new(self.lines.clone()),
            tls: self.tls.clone(),
            initial: stek(200 + index as u8),
            versions: Versions::OURS,
            outside: Environment::default(),
        };
        let node = Arc::new(Node::start(self.settings[index].clone(), deps).await.unwrap());
        let mut host = JoinSet::new();
        let (held, mut sets) = (node.clone(), node.key_sets());
        host.spawn(async move {
            loop {
                let set: KeySet = sets.borrow_and_update().clone();
                held.installed(&set);
                if sets.changed().await.is_err() {
                    return;
                }
            }
        });
        (node, host)
    }

    /// Ends one server without a word, and starts it anew without memory.
    async fn restart(&mut self, index: usize) {
        self.hosts[index].abort_all();
        self.nodes[index].abort();
        self.nodes[index].shutdown().await;
        let (node, host) = self.start(index).await;
        self.nodes[index] = node;
        self.hosts[index] = host;
    }

    /// Two more rotations, which all servers follow.
    async fn goes_on(&self, after: &str) {
        let current = |node: &Arc<Node>| node.node_status().current;
        let target = self.nodes.iter().map(current).max().unwrap_or_default().next().next();
        let all = async {
            let there = |node: &Arc<Node>| {
                let set = node.key_sets().borrow().clone();
                set.agreed && set.current >= target
            };
            while !self.nodes.iter().all(there) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(PATIENCE, all).await.is_err() {
            let reports: Vec<_> = self.nodes.iter().map(|node| node.node_status()).collect();
            panic!("after a panic at {after} no generation {target} everywhere: {reports:#?}");
        }
    }
}

async fn passed(point: &str) {
    let gone = async {
        while planted::waits(point) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, gone).await.is_ok(), "nothing passes {point}");
}

#[tokio::test]
async fn a_group_goes_on_after_a_panic_in_any_of_its_tasks() {
    let mut group = Group::new(3).await;
    group.goes_on("nothing").await;
    for point in TASKS {
        planted::plant(point);
        passed(point).await;
        group.goes_on(point).await;
    }
    for point in MEETING {
        planted::plant(point);
        group.restart(2).await;
        passed(point).await;
        group.goes_on(point).await;
    }
    // A node that is merely dropped keeps its Raft, and that the node.
    for node in &group.nodes {
        node.shutdown().await;
    }
    let lines = group.lines.0.lock().unwrap();
    let told = |what: &str| {
        let line = format!("{what} ended by an internal error and begins anew");
        lines.iter().any(|(level, text)| *level == Level::Error && text.starts_with(&line))
    };
    assert!(told("keeping the set of ticket keys"));
    assert!(told("following the server list"));
    assert!(told("listening for peers"));
    assert!(lines.iter().any(|(level, text)| *level == Level::Warning
        && text.starts_with("agreement stopped: an internal error; starting anew")));
}
