//! The side that dials: one connection per peer, made when there is something to ask, shared by
//! all requests to that peer.
//!
//! Leaves to the caller what a request means and whether to repeat it. Invariants:
//! - A request ends within its limit, whatever the peer does, and may be dropped at any time
//!   without harm to the connection or to other requests.
//! - A one-way message goes out soon or not at all: it waits neither for a connection nor for its peer.
//! - A datagram goes out when neither request nor one-way message waits, and makes no connection.
//! - Nobody is dialled unless somebody asks, and not again before a pause that grows.
//! - A connection on which nothing at all comes back for twice the time of a request is given up, so
//!   that a peer which vanished without a word is dialled anew. The time that dialling took does
//!   not count, or a far peer would never be reached by impatient requests.
//! - A request's bytes are erased when they are sent or nobody waits for the response any more.
//! - Nothing but the hello is sent before the peer has said in its own that it hears this server,
//!   and in which version.
//! - A connection whose other end would not be let in now is closed before anything else is sent
//!   on it, and what the system has not sent yet is thrown away; see `trust`.
//! - No connection stands longer than its bound, nor with a certificate that this server has no
//!   more. Before that a new one takes its place, which the peer has answered already; the old one
//!   goes when its last response is there.
//! - One task per peer; its queue, its open requests and its connections are bounded.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{timeout_at, Instant};

use super::bounds::Bounds;
use super::datagram::Datagram;
use super::dial::gone;
pub use super::dial::{ask_once, CallError, DialError, DIAL_LIMIT};
use super::frame::{Body, MAX_BODY};
use super::last_seen::LastSeen;
use super::local_identity::LocalIdentity;
pub use super::peer_command::MAX_QUEUE;
use super::peer_command::{ClearOnDrop, Deps, Line, PeerCommand, PendingRequest, RequestBody};
use super::peer_connection::keep_connected;
use super::resolver::Resolver;
use super::tls::Tls;
use crate::core::config::Member;
use crate::core::server_id::ServerId;
use crate::log_sink::Log;
use crate::supervise::lock;

/// The peers of a server. Dropping it closes all connections.
pub struct Peers {
    deps: Deps,
    peers: Mutex<BTreeMap<ServerId, Peer>>,
}

struct Peer {
    line: Arc<Line>,
    commands: mpsc::Sender<PeerCommand>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.line.gone.store(true, Ordering::SeqCst);
        self.line.datagrams.clear();
        self.task.abort();
    }
}

impl Peers {
    /// Speaks as `me`, with the newest of `tls`, and notes in `heard` who answered.
    pub fn new(log: Log, tls: watch::Receiver<Tls>, me: LocalIdentity, heard: LastSeen) -> Peers {
        let (resolver, bounds) = (Resolver::system(), Bounds::default());
        Peers { deps: Deps { log, tls, me, heard, resolver, bounds }, peers: Mutex::default() }
    }

    /// The same with names looked up by `resolver`, before there are any members.
    pub fn resolving(mut self, resolver: Resolver) -> Peers {
        self.deps.resolver = resolver;
        self
    }

    /// The same, within these bounds.
    pub fn within(mut self, bounds: Bounds) -> Peers {
        self.deps.bounds = bounds;
        self
    }

    /// Within which bounds.
    pub fn bounds(&self) -> Bounds {
        self.deps.bounds
    }

    /// Makes these the peers; this server's own entry is passed over. A peer that is gone, or whose
    /// address changed, loses its connection. Needs a tokio runtime.
    pub fn set_members(&self, members: &[Member]) {
        let mut peers = lock(&self.peers);
        peers.retain(|_, peer| members.contains(peer.line.member.as_ref()));
        for member in members.iter().filter(|member| member.id != self.deps.me.id()) {
            peers.entry(member.id).or_insert_with(|| {
                let (commands, queue) = mpsc::channel(MAX_QUEUE);
                let line = Arc::new(Line::new(member, self.deps.clone()));
                let task = tokio::spawn(keep_connected(Arc::clone(&line), queue));
                Peer { line, commands, task }
            });
        }
        self.deps.heard.retain(|id| members.iter().any(|member| member.id == id));
        self.deps.resolver.retain(|name| members.iter().any(|member| member.address == name));
    }

    /// Sends a request and waits for its response, at most `limit`. Dials if need be.
    ///
    /// # Errors
    /// Why there is no response. The peer may have acted on the request all the same, unless the
    /// error is `UnknownPeer`, `Busy`, `TooLong` or `Refused`.
    pub async fn request(
        &self,
        to: ServerId,
        body: Body,
        limit: Duration,
    ) -> Result<Body, CallError> {
        if body.len() > MAX_BODY {
            return Err(CallError::TooLong(body.len()));
        }
        let deadline = Instant::now() + limit;
        let (reply, answer) = oneshot::channel();
        let commands = {
            let peers = lock(&self.peers);
            peers.get(&to).ok_or(CallError::UnknownPeer)?.commands.clone()
        };
        let body = RequestBody(Arc::new(Mutex::new(Some(body))));
        let _recall = ClearOnDrop(body.clone());
        let ask = PendingRequest { body, limit, deadline, reply };
        commands.try_send(PeerCommand::Request(ask)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CallError::Busy,
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(gone()),
            Err(_) => {
                // A full queue finds out by itself, a moment later.
                let _ = commands.try_send(PeerCommand::Check);
                Err(CallError::TimedOut)
            }
        }
    }

    /// Sends something that wants no response, if a connection is up, and if that can be done
    /// within `limit`. Does not wait, and does not tell.
    pub fn send_one_way(&self, to: ServerId, body: Body, limit: Duration) {
        let until = Instant::now() + limit;
        let peers = lock(&self.peers);
        let peer = peers.get(&to).filter(|peer| peer.line.is_up.load(Ordering::SeqCst));
        if let (Some(peer), true) = (peer, body.len() <= MAX_BODY) {
            let _ = peer.commands.try_send(PeerCommand::OneWay { body, until });
        }
    }

    /// Has this sent when nothing else waits for the connection to this peer; whether there is one. It
    /// waits for one as long as [`super::datagram::QUEUE`] says, but makes none.
    pub fn datagram(&self, to: ServerId, datagram: Datagram) -> bool {
        let peers = lock(&self.peers);
        let Some(peer) = peers.get(&to) else { return true };
        peer.line.datagrams.push(datagram);
        peer.line.is_up.load(Ordering::SeqCst)
    }

    /// Forgets the datagrams that have waited too long.
    pub fn expire_datagrams(&self) {
        let peers = lock(&self.peers);
        peers.values().for_each(|peer| peer.line.datagrams.expire());
    }

    /// Forgets the datagrams that wait.
    pub fn clear_datagrams(&self) {
        let peers = lock(&self.peers);
        peers.values().for_each(|peer| peer.line.datagrams.clear());
    }
}
