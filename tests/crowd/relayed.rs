//! Which servers of a large group are believed about the others.

use std::sync::Arc;
use std::time::Duration;

use stek_share::core::crowd::{HUBS, SMALL};
use stek_share::core::key_ring::{Generation, HistoryId};
use stek_share::core::rejoin::{Ballot, LogEnd, Status};
use stek_share::core::server_id::ServerId;
use stek_share::journal::Log;
use stek_share::node::Role;
use stek_share::rpc::{decode_request, encode, Hearsay, Request, Response};
use stek_share::transport::frame::{Body, Header};
use stek_share::transport::listener::{
    Caller, ListenDeps, ListenSettings, Listener, Refusal, Service,
};
use stek_share::transport::{Bounds, Counters, Heard, Me};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::fleet::{wait_for, Fleet, Lines};
use crate::small_boxes;

const COUNT: u32 = SMALL as u32 + 4;
/// The one that starts; neither it nor the liar is a hub.
const STARTS: u32 = 20;
/// Asked by the one that starts, as one of a few that are far away in the list.
const LIAR: u32 = 35;
const HISTORY: [u8; 16] = [7; 16];

/// Answers with one status about itself and about everybody else.
struct Teller {
    id: u32,
    status: Status,
    /// The honest ones take longer.
    pause: Duration,
}

impl Service for Teller {
    fn admit(&self, _: &Header) -> Result<(), Refusal> {
        Ok(())
    }

    fn take_note(&self, _: &Caller, _: Body) -> bool {
        true
    }

    async fn serve(self: Arc<Self>, from: Caller, body: Body) -> Option<Body> {
        let answer = match decode_request(&body).ok()? {
            Request::Status(_) => Response::Status(self.status.clone()),
            Request::Survey(_) => {
                tokio::time::sleep(self.pause).await;
                let age_ms = self.pause.as_millis() as u32;
                let others =
                    (1..=COUNT).map(ServerId).filter(|id| id.0 != self.id && *id != from.id);
                let told = others.map(|from| Hearsay { from, age_ms, status: self.status.clone() });
                Response::Survey(self.status.clone(), told.collect())
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
    let history = teller.status.history.map_or([0; 16], HistoryId::to_bytes);
    let deps = ListenDeps {
        log: Log::new(Arc::new(Lines::default())),
        tls: watch::channel(fleet.tls()).1,
        me: Me::member(ServerId(teller.id), 5, move || history),
        heard: Heard::new(),
        counters: Counters::new(),
    };
    runtime.block_on(async { Listener::start(settings, deps, Arc::new(teller)) })
}

/// The first three of the list say that all remember; another one that is asked too says, sooner and
/// as newer, that nobody does, or that it leads and nobody else does.
#[test]
fn a_server_that_is_neither_hub_nor_leader_is_believed_about_itself_only() {
    let full = |term, node| {
        let ballot = Ballot { term, node: ServerId(node) };
        Status {
            full: true,
            ballot,
            log_end: Some(LogEnd { ballot, index: 99 }),
            history: HistoryId::from_bytes(HISTORY),
            generation: Generation(9),
            live_leader: true,
            may_vote: true,
            quorum: true,
        }
    };
    for lie in [Status::default(), Status { full: false, history: None, ..full(9, LIAR) }] {
        let mut fleet = Fleet::new(COUNT, small_boxes);
        let runtime = Runtime::new().unwrap();
        let honest = (1..=HUBS as u32).map(|id| Teller {
            id,
            status: full(7, 9),
            pause: Duration::from_millis(25),
        });
        let liar = Teller { id: LIAR, status: lie, pause: Duration::ZERO };
        let tellers: Vec<Listener> =
            honest.chain([liar]).map(|teller| tell(&fleet, &runtime, teller)).collect();
        fleet.start(STARTS);
        let lines = fleet.boxes[&STARTS].lines.clone();
        wait_for(
            "a decision",
            || lines.has("others remember the keys") || lines.has("nobody remembers any key"),
            || fleet.describe(),
        );
        assert!(!lines.has("nobody remembers any key"), "{}", fleet.describe());
        assert_eq!(fleet.boxes[&STARTS].report().role, Role::Quarantined);
        drop(tellers);
    }
}
