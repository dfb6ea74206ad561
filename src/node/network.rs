//! The way to the other servers and theirs to this one: mutual TLS, or what a simulation brings in
//! its place.
//!
//! Leaves to others what a message means. Invariants: whoever brings its own network does what
//! [`crate::transport`] does for it: no request of a sender that [`Service::admit`] refuses is
//! served, what is heard is noted in [`LastSeen`], and an answer comes from the incarnation that was
//! asked or not at all.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::core::config::{Member, Settings};
use crate::core::server_id::ServerId;
use crate::log_sink::Log;
use crate::transport::datagram::{self, Datagram};
use crate::transport::listener::{ListenDeps, ListenSettings, Listener, Service};
use crate::transport::peers::{ask_once, CallError, Peers};
use crate::transport::resolver::Resolver;
use crate::transport::tls::Tls;
use crate::transport::{Body, Bounds, LastSeen, LocalIdentity};

/// What a request is answered, some time.
pub type Reply<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Carries one server's messages, in place of mutual TLS.
pub trait SimulatedNetwork: Send + Sync + 'static {
    /// Called once, before anything else: what the server says of itself, and where it is to be noted
    /// whom it heard ([`LastSeen::record`], [`LastSeen::record_answer`]).
    fn open(&self, me: &LocalIdentity, heard: &LastSeen);

    /// As [`Peers::set_members`].
    fn set_members(&self, members: &[Member]);

    /// As [`Peers::request`].
    fn request(&self, to: ServerId, body: Body, limit: Duration) -> Reply<Result<Body, CallError>>;

    /// As [`Peers::send_one_way`].
    fn send_one_way(&self, to: ServerId, body: Body, limit: Duration);

    /// As [`ask_once`], for a server that is no member yet.
    fn ask_unconnected(
        &self,
        member: &Member,
        body: Body,
        limit: Duration,
    ) -> Reply<Result<Body, CallError>>;

    /// Hands to `service` what comes in, until the answer is dropped.
    fn listen(&self, service: Arc<dyn Service>) -> Box<dyn Send + Sync>;
}

/// A server's way to the others.
pub(super) enum PeerTransport {
    Tls(Peers, Resolver),
    Simulated(Arc<dyn SimulatedNetwork>),
}

impl PeerTransport {
    pub fn new(
        (network, bounds): (Option<Arc<dyn SimulatedNetwork>>, Bounds),
        resolver: Resolver,
        log: &Log,
        tls: watch::Receiver<Tls>,
        me: &LocalIdentity,
        heard: &LastSeen,
    ) -> PeerTransport {
        match network {
            None => {
                let peers = Peers::new(log.clone(), tls, me.clone(), heard.clone());
                PeerTransport::Tls(peers.resolving(resolver.clone()).within(bounds), resolver)
            }
            Some(network) => {
                network.open(me, heard);
                PeerTransport::Simulated(network)
            }
        }
    }

    pub fn set_members(&self, members: &[Member]) {
        match self {
            PeerTransport::Tls(peers, _) => peers.set_members(members),
            PeerTransport::Simulated(network) => network.set_members(members),
        }
    }

    pub async fn request(
        &self,
        to: ServerId,
        body: Body,
        limit: Duration,
    ) -> Result<Body, CallError> {
        match self {
            PeerTransport::Tls(peers, _) => peers.request(to, body, limit).await,
            PeerTransport::Simulated(network) => network.request(to, body, limit).await,
        }
    }

    pub fn send_one_way(&self, to: ServerId, body: Body, limit: Duration) {
        match self {
            PeerTransport::Tls(peers, _) => peers.send_one_way(to, body, limit),
            PeerTransport::Simulated(network) => network.send_one_way(to, body, limit),
        }
    }

    /// As [`Peers::datagram`]. In a simulation it is a one-way message.
    pub fn datagram(&self, to: ServerId, datagram: Datagram) -> bool {
        match self {
            PeerTransport::Tls(peers, _) => peers.datagram(to, datagram),
            PeerTransport::Simulated(network) => {
                network.send_one_way(to, datagram.body().clone(), datagram::QUEUE.wait);
                datagram.record_sent();
                true
            }
        }
    }

    /// As [`Peers::expire_datagrams`].
    pub fn expire_datagrams(&self) {
        if let PeerTransport::Tls(peers, _) = self {
            peers.expire_datagrams();
        }
    }

    /// As [`Peers::clear_datagrams`].
    pub fn clear_datagrams(&self) {
        if let PeerTransport::Tls(peers, _) = self {
            peers.clear_datagrams();
        }
    }

    /// Asks one that is no member yet, or not at this place, in the name of `me`.
    pub async fn ask_unconnected(
        &self,
        (me, tls): (&LocalIdentity, &watch::Sender<Tls>),
        member: &Member,
        body: Body,
        limit: Duration,
    ) -> Option<Body> {
        match self {
            PeerTransport::Tls(_, resolver) => {
                let tls = tls.borrow().for_member(member);
                let place = (member.address.as_str(), member.port);
                let asked = ask_once(resolver, &tls, me, place, &body, limit);
                let (answer, _) = timeout(limit, asked).await.ok()?.ok()?;
                Some(answer)
            }
            PeerTransport::Simulated(network) => {
                network.ask_unconnected(member, body, limit).await.ok()
            }
        }
    }

    /// Starts to let others in, at the place that `settings` has and for these members.
    pub fn listen(
        &self,
        settings: &Settings,
        members: &[Member],
        deps: ListenDeps,
        service: Arc<dyn Service>,
    ) -> ListenerHandle {
        let bounds = match self {
            PeerTransport::Simulated(network) => {
                return ListenerHandle::Simulated(network.listen(service))
            }
            PeerTransport::Tls(peers, _) => peers.bounds(),
        };
        let settings = ListenSettings {
            bind_address: settings.bind_address.clone(),
            address: settings.address.clone(),
            port: settings.port,
            members: members.to_vec(),
            bounds,
        };
        ListenerHandle::Tls(Listener::start(settings, deps, service))
    }
}

/// Lets others in until it is dropped.
pub(super) enum ListenerHandle {
    Tls(Listener),
    /// What [`SimulatedNetwork::listen`] gave.
    Simulated(#[allow(dead_code)] Box<dyn Send + Sync>),
}

impl ListenerHandle {
    pub fn set_members(&self, members: &[Member]) {
        if let ListenerHandle::Tls(listener) = self {
            listener.set_members(members);
        }
    }
}
