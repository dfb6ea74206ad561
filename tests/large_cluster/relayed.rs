//! Which servers of a large group are believed about the others.

use std::sync::Arc;
use std::time::Duration;

use stek_share::core::key_ring::{ClusterId, Generation};
use stek_share::core::large_cluster::{SEED_NODES, SMALL};
use stek_share::core::recovery::{LeaderId, LogPosition, Status};
use stek_share::core::server_id::ServerId;
use stek_share::log_sink::Log;
use stek_share::node::Role;
use stek_share::rpc::{decode_request, encode, RelayedStatus, Request, Response};
use stek_share::transport::frame::{Body, Hello};
use stek_share::transport::listener::{
    Caller, ListenDeps, ListenSettings, Listener, Refusal, Service,
};
use stek_share::transport::{Bounds, Counters, LastSeen, Me};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::fleet::{wait_for, Fleet, Lines};
use crate::small_servers;

const COUNT: u32 = SMALL as u32 + 4;
/// The one that starts; neither it nor the liar is a seed node.
const STARTS: u32 = 20;
/// Asked by the one that starts, as one of a few that are far away in the list.
const LIAR: u32 = 35;
const CLUSTER_ID: [u8; 16] = [7; 16];

/// Answers with one status about itself and about everybody else.
struct Teller {
    id: u32,
    status: Status,
    /// The honest ones take longer.
    pause: Duration,
}

impl Service for Teller {
    fn admit(&self, _: &Hello) -> Result<(), Refusal> {
        Ok(())
    }

    fn take_note(&self, _: &Caller, _: Body) -> bool {
        true
    }

    async fn serve(self: Arc<Self>, from: Caller, body: Body) -> Option<Body> {
        let answer = match decode_request(&body).ok()? {
            Request::Status(_) => Response::Status(self.status.clone()),
            Request::StatusPoll(_) => {
                tokio::time::sleep(self.pause).await;
                let age_ms = self.pause.as_millis() as u32;
                let others =
                    (1..=COUNT).map(ServerId).filter(|id| id.0 != self.id && *id != from.id);
                let told =
                    others.map(|from| RelayedStatus { from, age_ms, status: self.status.clone() });
                Response::StatusPoll(self.status.clone(), told.collect())
            }
            _ => return None,
        };
        encode(&answer)
    }
}

fn tell(fleet: &Fleet, runtime: &Runtime, teller: Teller) -> Listener {
    let settings = ListenSettings {
        bind_address: None,
        address: "127.0.0.1".to_owned(),
        port: fleet.members[teller.id as usize - 1].port,
        members: fleet.members.clone(),
        bounds: Bounds::default(),
    };
    let cluster_id = teller.status.cluster_id.map_or([0; 16], ClusterId::to_bytes);
    let deps = ListenDeps {
        log: Log::new(Arc::new(Lines::default())),
        tls: watch::channel(fleet.tls()).1,
        me: Me::member(ServerId(teller.id), 5, move || cluster_id),
        heard: LastSeen::new(),
        counters: Counters::new(),
    };
    runtime.block_on(async { Listener::start(settings, deps, Arc::new(teller)) })
}

/// The first three of the list say that all remember; another one that is asked too says, sooner and
/// as newer, that nobody does, or that it leads and nobody else does.
#[test]
fn a_server_that_is_neither_seed_node_nor_leader_is_plausible_about_itself_only() {
    let full = |term, node| {
        let leader_id = LeaderId { term, node: ServerId(node) };
        Status {
            full: true,
            leader_id,
            log_end: Some(LogPosition { leader_id, index: 99 }),
            cluster_id: ClusterId::from_bytes(CLUSTER_ID),
            generation: Generation(9),
            live_leader: true,
            may_vote: true,
            quorum: true,
        }
    };
    for lie in [Status::default(), Status { full: false, cluster_id: None, ..full(9, LIAR) }] {
        let mut fleet = Fleet::new(COUNT, small_servers);
        let runtime = Runtime::new().unwrap();
        let honest = (1..=SEED_NODES as u32).map(|id| Teller {
            id,
            status: full(7, 9),
            pause: Duration::from_millis(25),
        });
        let liar = Teller { id: LIAR, status: lie, pause: Duration::ZERO };
        let tellers: Vec<Listener> =
            honest.chain([liar]).map(|teller| tell(&fleet, &runtime, teller)).collect();
        fleet.start(STARTS);
        let lines = fleet.servers[&STARTS].lines.clone();
        wait_for(
            "a decision",
            || lines.has("others remember the keys") || lines.has("nobody remembers any key"),
            || fleet.describe(),
        );
        assert!(!lines.has("nobody remembers any key"), "{}", fleet.describe());
        assert_eq!(fleet.servers[&STARTS].report().role, Role::Recovering);
        drop(tellers);
    }
}
