//! Carries sessions that clients resume by their id between this server and the others.
//!
//! Nothing of this is agreed on, kept on a disk or repeated; how much there may be is for
//! [`super::session_exchange`]. Invariants:
//! - Sessions go as datagrams: no heartbeat, key or handshake waits for them, nor is a connection kept
//!   for them; one is made when there is a session for a server to which there is none.
//! - After a revocation nothing that is on its way goes out.
//! - Nothing is held back to be sent with what may come later.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep_until, Instant};

use super::peer_client::{Peers, STATUS_LIMIT};
use super::session_exchange::SessionExchange;
use super::wake_pipe::WakeListener;
use crate::consensus::network::RpcClient;
use crate::core::server_id::ServerId;
use crate::core::sessions::{SessionEvent, MAX_WAIT};
use crate::rpc::{self, Request, Response, WireSessions};
use crate::supervise::{fail_point, kept_alive};
use crate::transport::datagram::Datagram;

/// How long no second attempt is made to get a connection to one server for sessions.
const DIAL_PAUSE: Duration = Duration::from_secs(1);

/// How many others a server that starts asks for their newest sessions: a second one has what the
/// first lost on the way.
const FETCH_FROM: usize = 2;

/// How often a server that starts asks all others whether they are there. Whoever comes later will
/// send what it makes.
const FETCH_TRIES: u32 = 30;

/// Sends what the host tells, until the task is aborted.
pub(super) async fn share(peers: Arc<Peers>, exchange: Arc<SessionExchange>) {
    let log = peers.ctx.log.clone();
    kept_alive(&log, "sharing sessions", (peers, exchange), |(peers, exchange)| {
        Box::pin(Sender::new(peers.clone(), exchange.clone()).run())
    })
    .await;
}

/// What the task that sends remembers.
struct Sender {
    peers: Arc<Peers>,
    exchange: Arc<SessionExchange>,
    /// When a connection to each server was last asked for.
    dialled: BTreeMap<ServerId, Instant>,
    /// Questions by which a connection is made, and whether they were answered.
    dialling: JoinSet<Option<ServerId>>,
    /// How many others are still to be asked for their newest sessions.
    to_fetch: usize,
    /// When to look for more of them, and how often that was done.
    next_try: Instant,
    tries: u32,
    /// When what waits for a connection has waited too long.
    expiry: Option<Instant>,
}

impl Sender {
    fn new(peers: Arc<Peers>, exchange: Arc<SessionExchange>) -> Sender {
        Sender {
            peers,
            exchange,
            dialled: BTreeMap::new(),
            dialling: JoinSet::new(),
            to_fetch: FETCH_FROM,
            next_try: Instant::now(),
            tries: 0,
            expiry: None,
        }
    }

    async fn run(mut self) {
        let mut views = self.peers.ctx.views.subscribe();
        let mut is_open = self.exchange.watch_open();
        let mut listener = self.exchange.listen();
        // What was told while nobody listened.
        self.exchange.work();
        loop {
            let agreed = views.borrow_and_update().agreed.clone();
            if self.exchange.follow(&agreed.ring) {
                self.peers.transport.clear_datagrams();
            }
            let is_in_cluster = agreed.ring.cluster_id().is_some();
            let may_fetch = is_in_cluster && *is_open.borrow_and_update();
            let tries = may_fetch && self.to_fetch > 0 && self.tries < FETCH_TRIES;
            let expiry = self.expiry;
            fail_point("sessions");
            tokio::select! {
                biased;
                changed = views.changed() => if changed.is_err() { return },
                Ok(()) = is_open.changed() => {}
                batch = self.exchange.next_batch() => self.send(batch),
                () = woken(listener.as_mut()) => self.exchange.work(),
                Some(answered) = self.dialling.join_next() => {
                    if let Ok(Some(id)) = answered {
                        self.fetch(id);
                    }
                }
                () = sleep_until(self.next_try), if tries => self.look_for_others(),
                () = sleep_until(expiry.unwrap_or(self.next_try)), if expiry.is_some() => {
                    self.peers.transport.expire_datagrams();
                    self.expiry = None;
                }
            }
        }
    }

    fn send(&mut self, (to, sessions): (Option<ServerId>, WireSessions)) {
        let count = sessions.events.len() as u64;
        let Some(body) = rpc::encode(&Request::Sessions(sessions)) else { return };
        let body = Arc::new(body);
        let all: Vec<ServerId> = match to {
            Some(id) => vec![id],
            None => self.peers.ctx.others().collect(),
        };
        for id in all {
            let datagram = Datagram::new(body.clone(), count, self.exchange.tally());
            if !self.peers.transport.datagram(id, datagram) {
                self.dial(id);
            }
        }
        self.expiry.get_or_insert_with(|| Instant::now() + 2 * MAX_WAIT);
    }

    /// Gets a connection to a server by asking it something.
    fn dial(&mut self, id: ServerId) {
        let now = Instant::now();
        if self.dialled.get(&id).is_some_and(|at| now < *at + DIAL_PAUSE) {
            return;
        }
        let members = self.peers.ctx.ids();
        self.dialled.retain(|id, _| members.contains(id));
        self.dialled.insert(id, now);
        let peers = self.peers.clone();
        self.dialling.spawn(async move {
            let question = Request::Status(peers.ctx.status());
            let answer = peers.call(id, question, STATUS_LIMIT).await;
            matches!(answer, Ok(Response::Status(_))).then_some(id)
        });
    }

    fn look_for_others(&mut self) {
        (self.tries, self.next_try) = (self.tries + 1, Instant::now() + DIAL_PAUSE);
        let others: Vec<ServerId> = self.peers.ctx.others().collect();
        for id in others {
            self.dial(id);
        }
    }

    /// Asks a server that has just answered for its newest sessions, once after the start.
    fn fetch(&mut self, id: ServerId) {
        let is_open = *self.exchange.watch_open().borrow();
        if self.to_fetch > 0 && is_open && self.peers.ctx.cluster_id().is_some() {
            self.to_fetch -= 1;
            let generation = self.exchange.generation();
            self.exchange.tell(Some(id), generation, SessionEvent::WantNewest);
        }
    }
}

async fn woken(listener: Option<&mut WakeListener>) {
    match listener {
        Some(listener) => listener.woken().await,
        None => pending().await,
    }
}
