//! The side that dials: one connection per peer, made when there is something to ask, shared by
//! all requests to that peer.
//!
//! Leaves to the caller what a request means and whether to repeat it. Invariants:
//! - A request ends within its limit, whatever the peer does, and may be dropped at any time
//!   without harm to the connection or to other requests.
//! - A note goes out soon or not at all: it waits neither for a connection nor for its peer.
//! - A datagram goes out when neither request nor note waits, and makes no connection.
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
use std::convert::Infallible;
use std::fmt;
use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch, Mutex as AsyncMutex};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout, timeout_at, Instant};

use super::bounds::{Bounds, HANDSHAKE_LIMIT, IDLE_LIMIT, MAX_IN_FLIGHT};
use super::datagram::{Datagram, Datagrams};
use super::frame::{
    self, Body, FrameError, Header, Hello, Kind, NoCommonVersion, Role, Wire, WireError, MAX_BODY,
};
use super::last_seen::LastSeen;
use super::listener::Refusal;
use super::me::Me;
use super::resolver::{Found, Resolver, Unresolved};
use super::socket::{tune, Alarm};
use super::tls::{alert_in, HandshakeError, Stream, Tls};
use super::trust::{renewal_after, Trust};
use crate::core::config::Member;
use crate::core::server_id::ServerId;
use crate::log_sink::{Level, Log};
use crate::supervise::{fail_point, kept_alive};

/// How long connecting and shaking hands may take together, once the addresses are known.
pub const DIAL_LIMIT: Duration = Duration::from_secs(3);

/// Requests to one peer that wait for the connection; more are [`CallError::Busy`].
pub const MAX_QUEUE: usize = 64;

/// Pauses between two attempts to dial a peer: the first, and the longest.
const REDIAL_MIN: Duration = Duration::from_millis(50);
const REDIAL_MAX: Duration = Duration::from_secs(1);

/// A silent connection is closed by this side a little before the other would do so, so that no
/// request is sent into a connection that is being closed.
const DIALLER_IDLE_LIMIT: Duration = IDLE_LIMIT.saturating_sub(Duration::from_secs(30));

/// How long after its time a request that its caller dropped counts as open. Callers that wait
/// their time out tell at once; this is for the others, and spares a timer per request.
const DROPPED_GRACE: Duration = Duration::from_secs(5);

/// How long a request may wait for the connection's task without being the later checked for it.
const QUEUEING: Duration = Duration::from_millis(5);

/// Tries to renew one connection before it ends at its full age, so that a peer that is away for a
/// moment is asked again in time.
const RENEWAL_TRIES: u32 = 30;

/// The least time that one address of several gets.
const ADDRESS_SHARE_MIN: Duration = Duration::from_millis(500);

/// Why a request has no response.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallError {
    /// No connection could be had, or it broke before the response came.
    #[error("unreachable: {0}")]
    Unreachable(Arc<str>),
    /// The system there answers that nobody listens: the process is gone, or not there yet.
    #[error("unreachable: {0}")]
    NobodyListens(Arc<str>),
    /// No response came in time.
    #[error("no response in time")]
    TimedOut,
    /// The id is not in the list of peers.
    #[error("no such peer")]
    UnknownPeer,
    /// Too many requests to this peer wait already.
    #[error("too many requests to this peer wait already")]
    Busy,
    /// The peer does not hear this server.
    #[error("refused by the peer: {0}")]
    Refused(Refusal),
    /// The body has more than [`MAX_BODY`] bytes.
    #[error("a request of {0} bytes is too long")]
    TooLong(usize),
}

/// What all peers' tasks share.
#[derive(Clone)]
struct Deps {
    log: Log,
    tls: watch::Receiver<Tls>,
    me: Me,
    heard: LastSeen,
    resolver: Resolver,
    bounds: Bounds,
}

/// The peers of a server. Dropping it closes all connections.
pub struct Peers {
    deps: Deps,
    peers: RwLock<BTreeMap<ServerId, Peer>>,
}

struct Peer {
    member: Member,
    orders: mpsc::Sender<Order>,
    datagrams: Datagrams,
    /// Whether there is a connection for a note to go by.
    is_up: Arc<AtomicBool>,
    /// Set once it is no peer any more: nothing is sent to it, however late its task ends.
    gone: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        self.datagrams.clear();
        self.task.abort();
    }
}

enum Order {
    /// Send this request.
    Ask(Ask),
    /// Send this note, unless it is too late for it.
    Note { body: Body, until: Instant },
    /// A caller's time ran out: see whether the connection is still alive.
    Check,
}

struct Ask {
    letter: RequestBody,
    /// What its caller granted, and until when that lasts.
    limit: Duration,
    deadline: Instant,
    reply: oneshot::Sender<Result<Body, CallError>>,
}

/// The body of a request, which may carry keys. It is gone as soon as it was sent or its caller
/// no longer waits, however long the request itself stays in the queue of a peer that hangs.
#[derive(Clone)]
struct RequestBody(Arc<Mutex<Option<Body>>>);

impl RequestBody {
    fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Held by the caller while it waits.
struct ClearOnDrop(RequestBody);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

impl Peers {
    /// Speaks as `me`, with the newest of `tls`, and notes in `heard` who answered.
    pub fn new(log: Log, tls: watch::Receiver<Tls>, me: Me, heard: LastSeen) -> Peers {
        let (resolver, bounds) = (Resolver::system(), Bounds::default());
        Peers { deps: Deps { log, tls, me, heard, resolver, bounds }, peers: RwLock::default() }
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
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|_, peer| members.contains(&peer.member));
        for member in members.iter().filter(|member| member.id != self.deps.me.id()) {
            peers.entry(member.id).or_insert_with(|| {
                let (orders, rpc_server) = mpsc::channel(MAX_QUEUE);
                let (is_up, gone) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
                let datagrams = Datagrams::new();
                let begin = {
                    let (deps, member) = (self.deps.clone(), Arc::new(member.clone()));
                    let (is_up, gone) = (Arc::clone(&is_up), Arc::clone(&gone));
                    let datagrams = datagrams.clone();
                    move || {
                        PeerConnection::new(
                            member.clone(),
                            is_up.clone(),
                            gone.clone(),
                            datagrams.clone(),
                            deps.clone(),
                        )
                    }
                };
                let task = tokio::spawn(keep_line(begin, rpc_server));
                Peer { member: member.clone(), orders, datagrams, is_up, gone, task }
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
        let orders = {
            let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
            peers.get(&to).ok_or(CallError::UnknownPeer)?.orders.clone()
        };
        let letter = RequestBody(Arc::new(Mutex::new(Some(body))));
        let _recall = ClearOnDrop(letter.clone());
        let ask = Ask { letter, limit, deadline, reply };
        orders.try_send(Order::Ask(ask)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CallError::Busy,
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(gone()),
            Err(_) => {
                // A full queue finds out by itself, a moment later.
                let _ = orders.try_send(Order::Check);
                Err(CallError::TimedOut)
            }
        }
    }

    /// Sends something that wants no response, if a connection is up, and if that can be done
    /// within `limit`. Does not wait, and does not tell.
    pub fn note(&self, to: ServerId, body: Body, limit: Duration) {
        let until = Instant::now() + limit;
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.get(&to).filter(|peer| peer.is_up.load(Ordering::SeqCst));
        if let (Some(peer), true) = (peer, body.len() <= MAX_BODY) {
            let _ = peer.orders.try_send(Order::Note { body, until });
        }
    }

    /// Has this sent when nothing else waits for the connection to this peer; whether there is one. It
    /// waits for one as long as [`super::datagram::QUEUE`] says, but makes none.
    pub fn datagram(&self, to: ServerId, datagram: Datagram) -> bool {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = peers.get(&to) else { return true };
        peer.datagrams.push(datagram);
        peer.is_up.load(Ordering::SeqCst)
    }

    /// Forgets the datagrams that have waited too long.
    pub fn expire_datagrams(&self) {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().for_each(|peer| peer.datagrams.expire());
    }

    /// Forgets the datagrams that wait.
    pub fn clear_datagrams(&self) {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().for_each(|peer| peer.datagrams.clear());
    }

    /// When a frame of this member was last heard, whoever dialled.
    pub fn last_heard(&self, id: ServerId) -> Option<Instant> {
        self.deps.heard.last(id)
    }
}

/// One peer's line, with a new beginning after each panic.
async fn keep_line(begin: impl Fn() -> PeerConnection, rpc_server: mpsc::Receiver<Order>) {
    let rpc_server = Arc::new(AsyncMutex::new(rpc_server));
    let PeerConnection { member, deps, .. } = begin();
    let run = || {
        let (line, rpc_server) = (begin(), Arc::clone(&rpc_server));
        async move { line.run(&mut *rpc_server.lock().await).await }
    };
    kept_alive(&deps.log, &format!("asking peer {}", member.id), run).await;
}

fn gone() -> CallError {
    CallError::Unreachable("the connection was closed".into())
}

/// Why [`ask_once`] has no response.
#[derive(Debug, Error)]
pub enum OnceError {
    /// No connection could be had, or it broke.
    #[error("{0}")]
    Unreachable(String),
    /// The other end is not whom it should be, or does not take us for whom we are.
    #[error("{0}")]
    Handshake(HandshakeError),
    /// No protocol version is common.
    #[error(transparent)]
    Version(NoCommonVersion),
    /// The other end closed the connection after the handshake.
    #[error("the connection was closed")]
    Closed,
    /// It does not hear us.
    #[error("refused by the peer: {0}")]
    Refused(Refusal),
    /// No response in time.
    #[error("no response in time")]
    TimedOut,
    /// The body has more than [`MAX_BODY`] bytes.
    #[error("a request of {0} bytes is too long")]
    TooLong(usize),
}

impl From<DialError> for OnceError {
    fn from(error: DialError) -> OnceError {
        match error {
            DialError::Handshake(_, fault) => OnceError::Handshake(fault),
            DialError::RefusedUs(alert) => OnceError::Handshake(HandshakeError::RefusedUs(alert)),
            DialError::Refused(refusal) => OnceError::Refused(refusal),
            DialError::NoVersion(parted) => OnceError::Version(parted),
            DialError::Closed => OnceError::Closed,
            other => OnceError::Unreachable(other.to_string()),
        }
    }
}

/// Asks a server one thing over a connection of its own, which is for those who ask seldom.
///
/// # Errors
/// Why there is no response.
pub async fn call_once(
    tls: &Tls,
    me: &Me,
    address: (&str, u16),
    body: &[u8],
    limit: Duration,
) -> Result<Body, CallError> {
    call_once_by(&Resolver::system(), tls, me, address, body, limit).await
}

/// The same with the name looked up by `resolver`, for which `limit` counts as well.
///
/// # Errors
/// Why there is no response.
pub async fn call_once_by(
    resolver: &Resolver,
    tls: &Tls,
    me: &Me,
    address: (&str, u16),
    body: &[u8],
    limit: Duration,
) -> Result<Body, CallError> {
    let asked = timeout(limit, ask_once(resolver, tls, me, address, body, limit));
    let asked = asked.await.unwrap_or(Err(OnceError::TimedOut));
    asked.map(|(body, _)| body).map_err(|error| match error {
        OnceError::TimedOut => CallError::TimedOut,
        OnceError::Refused(refusal) => CallError::Refused(refusal),
        OnceError::TooLong(len) => CallError::TooLong(len),
        OnceError::Closed => gone(),
        other => CallError::Unreachable(other.to_string().into()),
    })
}

/// The same with a closer look at what went wrong, and at how long the response took from the
/// moment at which the request was handed to a connection that was up. For tools, which have no
/// list of peers. `limit` begins when the name is resolved, for which `resolver` has its own.
///
/// # Errors
/// Why there is no response.
pub async fn ask_once(
    resolver: &Resolver,
    tls: &Tls,
    me: &Me,
    address: (&str, u16),
    body: &[u8],
    limit: Duration,
) -> Result<(Body, Duration), OnceError> {
    let found = resolver.resolve(address.0, address.1).await.map_err(DialError::Resolve)?;
    let exchange = async {
        let mut stream = dial(tls, found.addresses).await?;
        greet(&mut stream, me).await?;
        let lost = |error: WireError| OnceError::Unreachable(error.to_string());
        let header = Header { kind: Kind::Request, request: 1, cluster_id: me.cluster_id() };
        let frame = frame::encode(&header, body).map_err(|_| OnceError::TooLong(body.len()))?;
        let (mut wire, sent) = (Wire::new(stream), Instant::now());
        wire.writer.send(frame);
        wire.writer.write().await.map_err(lost)?;
        loop {
            let (header, body) =
                wire.reader.next().await.map_err(lost)?.ok_or(OnceError::Closed)?;
            if header.kind == Kind::Response {
                return Ok((body, sent.elapsed()));
            }
        }
    };
    timeout(limit, exchange).await.unwrap_or(Err(OnceError::TimedOut))
}

/// Says hello on a connection that was just made: who answers, if it hears this server and both
/// speak one version.
async fn greet(stream: &mut Stream, me: &Me) -> Result<Hello, DialError> {
    let ours = me.hello();
    let greeting = async {
        stream.write_all(&frame::encode_hello(&ours, 0)).await.map_err(WireError::Io)?;
        frame::read_hello(stream).await
    };
    let answer = timeout(HANDSHAKE_LIMIT, greeting).await.map_err(|_| DialError::NoHello)?;
    let (theirs, refused) = answer?.ok_or(DialError::Closed)?;
    let parted = NoCommonVersion { theirs: theirs.versions, ours: ours.versions };
    match (ours.versions.common(theirs.versions), Refusal::from_code(refused)) {
        (None, _) => Err(DialError::NoVersion(parted)),
        (_, Some(refusal)) => Err(DialError::Refused(refusal)),
        (Some(_), None) => Ok(theirs),
    }
}

/// Why there is no connection that can be used.
#[derive(Debug, Error)]
enum DialError {
    #[error("cannot resolve the name: {0}")]
    Resolve(Unresolved),
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    #[error("cannot connect to {0}: {1}")]
    NobodyListens(SocketAddr, io::Error),
    #[error("no TLS with {0}: {1}")]
    Handshake(SocketAddr, HandshakeError),
    #[error("no answer from {0} in time")]
    TooSlow(SocketAddr),
    #[error("it refuses this server: {0}")]
    Refused(Refusal),
    #[error("the server there calls itself server_id {0}; the server list is wrong here or there")]
    Stranger(ServerId),
    #[error(transparent)]
    NoVersion(NoCommonVersion),
    // With TLS 1.3 a peer that does not accept our certificate says so only now.
    #[error("it refuses this server's certificate: {0}")]
    RefusedUs(String),
    #[error(transparent)]
    Frame(FrameError),
    #[error("the connection was lost: {0}")]
    Lost(#[from] io::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("it said no hello in time")]
    NoHello,
}

impl From<WireError> for DialError {
    fn from(error: WireError) -> DialError {
        match error {
            WireError::Frame(error) => DialError::Frame(error),
            WireError::Io(error) => match alert_in(&error) {
                Some(alert) => DialError::RefusedUs(alert),
                None => DialError::Lost(error),
            },
            WireError::TooSlow => DialError::NoHello,
        }
    }
}

impl DialError {
    fn as_error(&self) -> CallError {
        match self {
            DialError::Refused(refusal) => CallError::Refused(*refusal),
            nobody @ DialError::NobodyListens(..) => {
                CallError::NobodyListens(nobody.to_string().into())
            }
            other => CallError::Unreachable(other.to_string().into()),
        }
    }
}

/// Tries all addresses of a host in turn, within [`DIAL_LIMIT`]. Nobody listens there only if none of
/// those that this machine has a way to says otherwise.
async fn dial(tls: &Tls, addresses: Vec<SocketAddr>) -> Result<Stream, DialError> {
    let deadline = Instant::now() + DIAL_LIMIT;
    let mut error = DialError::Resolve(Unresolved::Failed("the name has no address".into()));
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let (mut nobody, mut other) = (None, false);
    for addr in addresses {
        // Each gets its share of what is left, so that one silent address leaves time for others.
        let rest = deadline.saturating_duration_since(Instant::now());
        let share = (rest / left.max(1)).max(ADDRESS_SHARE_MIN).min(rest);
        left = left.saturating_sub(1);
        match timeout(share, dial_one(tls, addr)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(DialError::Connect(addr, why)))
                if why.kind() == io::ErrorKind::ConnectionRefused =>
            {
                nobody = Some(DialError::NobodyListens(addr, why));
            }
            Ok(Err(fault)) => {
                other |= !matches!(&fault, DialError::Connect(_, why) if is_of_this_machine(why));
                error = fault;
            }
            Err(_) => (other, error) = (true, DialError::TooSlow(addr)),
        }
    }
    Err(nobody.filter(|_| !other).unwrap_or(error))
}

async fn dial_one(tls: &Tls, addr: SocketAddr) -> Result<Stream, DialError> {
    let tcp = TcpStream::connect(addr).await.map_err(|e| DialError::Connect(addr, e))?;
    tune(&tcp);
    tls.connect(tcp).await.map_err(|e| DialError::Handshake(addr, e))
}

/// Whether a connection came to nothing on this machine already.
fn is_of_this_machine(why: &io::Error) -> bool {
    const OWN: [i32; 7] = [
        libc::EACCES,
        libc::EPERM,
        libc::EINVAL,
        libc::ENETUNREACH,
        libc::EADDRNOTAVAIL,
        libc::EAFNOSUPPORT,
        libc::EMFILE,
    ];
    why.raw_os_error().is_some_and(|code| OWN.contains(&code))
}

/// Says that a peer is dialled where it was before, for want of a newer answer.
fn tell_stale(log: &Log, member: &Member, found: &Found) {
    if let Some(why) = &found.stale {
        let line = format!(
            "peer {}: cannot resolve the name: {why}; the addresses of an earlier answer are used \
             meanwhile",
            format_args!("{} ({}:{})", member.id, member.address, member.port)
        );
        log.limited(Level::Warning, &format!("peer {} resolve", member.id), line);
    }
}

/// The line to one peer: its task's state between connections.
struct PeerConnection {
    member: Arc<Member>,
    is_up: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
    datagrams: Datagrams,
    deps: Deps,
    /// Whether the operator was told that the peer is up.
    told_up: bool,
    pause: Duration,
    /// No dialling before this, and why the last attempt came to nothing.
    barred: Option<(Instant, CallError)>,
    /// When the last attempt came to nothing.
    failed: Instant,
}

impl PeerConnection {
    fn new(
        member: Arc<Member>,
        is_up: Arc<AtomicBool>,
        gone: Arc<AtomicBool>,
        datagrams: Datagrams,
        deps: Deps,
    ) -> PeerConnection {
        is_up.store(false, Ordering::SeqCst);
        let (pause, failed) = (REDIAL_MIN, Instant::now());
        PeerConnection {
            member,
            is_up,
            gone,
            datagrams,
            deps,
            told_up: false,
            pause,
            barred: None,
            failed,
        }
    }

    /// Waits for requests, dials, converses, and begins anew. Ends when the peer is dropped.
    async fn run(mut self, rpc_server: &mut mpsc::Receiver<Order>) {
        while let Some(order) = rpc_server.recv().await {
            let Order::Ask(ask) = order else { continue };
            fail_point("line");
            if let Some((until, error)) = &self.barred {
                if Instant::now() < *until && !self.heard_since_barred() {
                    let _ = ask.reply.send(Err(error.clone()));
                    continue;
                }
            }
            if ask.reply.is_closed() {
                continue;
            }
            match Box::pin(self.open()).await {
                Ok(conversation) => self.converse(conversation, ask, rpc_server).await,
                Err(error) => {
                    self.tell_trouble(&error);
                    self.fail(error.as_error(), Some(ask), rpc_server);
                }
            }
        }
    }

    /// Makes a connection by the newest certificates, on which the peer has answered.
    async fn open(&self) -> Result<Conversation, DialError> {
        let (deps, member) = (&self.deps, &self.member);
        let mut newest = deps.tls.clone();
        let tls = newest.borrow_and_update().for_member(member);
        let found = deps.resolver.resolve(&member.address, member.port).await;
        let found = found.map_err(DialError::Resolve)?;
        tell_stale(&deps.log, member, &found);
        let mut stream = dial(&tls, found.addresses).await?;
        let addr = stream.get_ref().peer_addr()?;
        let trust = Trust::new(newest, Some(Arc::clone(member)), &stream);
        let trust = trust.map_err(|fault| DialError::Handshake(addr, fault))?;
        let hello = greet(&mut stream, &deps.me).await?;
        if (hello.role, hello.sender) != (Role::Member, member.id) {
            return Err(DialError::Stranger(hello.sender));
        }
        self.tell_version(&hello);
        let (now, leaf) = (Instant::now(), tls.leaf_mark());
        deps.heard.record_answer(member.id, hello.incarnation, now);
        deps.heard.record_answered_at(member.id, addr.ip());
        Ok(Conversation::new(Wire::new(stream), trust, leaf, hello, deps.bounds.max_age))
    }

    /// Whether the peer has dialled us since we failed to dial it: then it is up, and waiting any
    /// longer would only delay an election or an order.
    fn heard_since_barred(&self) -> bool {
        self.deps.heard.last(self.member.id).is_some_and(|at| at > self.failed)
    }

    /// A peer that is not there is no news; one that does not get along with us is.
    fn tell_trouble(&self, error: &DialError) {
        let line = format!("peer {}: {error}", self.name());
        let (level, subject) = match error {
            DialError::Handshake(_, HandshakeError::Closed) => (Level::Debug, "closed"),
            DialError::Handshake(..) => (Level::Warning, "handshake"),
            DialError::Resolve(_) => (Level::Warning, "resolve"),
            // Only this machine can cause such ones: its firewall, its routes, its own policy.
            DialError::Connect(_, why) if is_of_this_machine(why) => (Level::Warning, "connect"),
            DialError::Refused(_)
            | DialError::Stranger(_)
            | DialError::NoVersion(_)
            | DialError::RefusedUs(_)
            | DialError::Frame(_) => (Level::Warning, "end"),
            _ => (Level::Debug, "connect"),
        };
        self.deps.log.limited(level, &format!("peer {} {subject}", self.member.id), line);
    }

    /// Says which version is spoken if it is not the newest.
    fn tell_version(&self, hello: &Hello) {
        let (theirs, ours) = (hello.versions, self.deps.me.versions());
        if let Some(version) = ours.common(theirs).filter(|version| *version < ours.max) {
            let (name, subject) = (self.name(), format!("peer {} version", self.member.id));
            let line = format!(
                "peer {name} speaks protocol {theirs}, this server {ours}; version {version} is used"
            );
            self.deps.log.limited(Level::Note, &subject, line);
        }
    }

    fn name(&self) -> String {
        format!("{} ({}:{})", self.member.id, self.member.address, self.member.port)
    }

    /// Answers what waits with an error and lets nobody dial for a while.
    fn fail(
        &mut self,
        error: CallError,
        first: Option<Ask>,
        rpc_server: &mut mpsc::Receiver<Order>,
    ) {
        self.failed = Instant::now();
        self.deps.heard.record_trouble(self.member.id, error.to_string().into());
        self.barred = Some((self.failed + self.pause, error.clone()));
        self.pause = (self.pause * 2).min(REDIAL_MAX);
        let waiting = std::iter::from_fn(|| rpc_server.try_recv().ok()).take(MAX_QUEUE);
        let asks = waiting.filter_map(|order| match order {
            Order::Ask(ask) => Some(ask),
            Order::Note { .. } | Order::Check => None,
        });
        for ask in first.into_iter().chain(asks) {
            let _ = ask.reply.send(Err(error.clone()));
        }
    }

    async fn converse(
        &mut self,
        mut present: Conversation,
        first: Ask,
        rpc_server: &mut mpsc::Receiver<Order>,
    ) {
        self.tell_up();
        self.is_up.store(true, Ordering::SeqCst);
        let end = match present.send(self, first) {
            Ok(()) => self.go_on(&mut present, rpc_server).await,
            Err(end) => end,
        };
        self.is_up.store(false, Ordering::SeqCst);
        self.deps.heard.forget_answer(self.member.id);
        if matches!(end, End::Closed | End::Lost(_)) {
            self.deps.heard.record_lost(self.member.id);
        }
        let is_good = present.has_answered || present.open.is_empty();
        if present.has_answered {
            (self.pause, self.barred) = (REDIAL_MIN, None);
        }
        let error = present.part(&end);
        if !is_good {
            // It may not be dialled again at once, or each request would dial it.
            self.fail(error, None, rpc_server);
        }
        self.tell_end(&end);
    }

    /// Goes on with a connection, and with those that take its place, until the last one ends.
    async fn go_on(
        &self,
        present: &mut Conversation,
        rpc_server: &mut mpsc::Receiver<Order>,
    ) -> End {
        let mut due = Instant::now() + renewal_after(self.deps.bounds.max_age);
        let mut renewal = Box::pin(self.renewed(present.leaf.clone(), due));
        // The connection that was renewed last, until its last response is there.
        let mut old: Option<Conversation> = None;
        loop {
            tokio::select! {
                biased;
                Err(end) = present.go_on(self, Some(&mut *rpc_server)) => return end,
                Err(end) = drain(&mut old, self) => {
                    self.tell_spare_end(&end);
                    old.take().map(|old| old.part(&end));
                }
                fresh = &mut renewal, if old.is_none() => {
                    let fresh = Conversation { has_answered: present.has_answered, ..fresh };
                    old = Some(std::mem::replace(present, fresh));
                    due = Instant::now() + renewal_after(self.deps.bounds.max_age);
                    renewal.set(self.renewed(present.leaf.clone(), due));
                }
            }
        }
    }

    /// A new connection in the place of one on which this server showed the certificate `shown`:
    /// when it is `due`, or once this server has another certificate.
    async fn renewed(&self, mut shown: Arc<str>, mut due: Instant) -> Conversation {
        let mut tls = self.deps.tls.clone();
        loop {
            let newest = tls.borrow_and_update().leaf_mark();
            if newest == shown && Instant::now() < due {
                tokio::select! {
                    () = sleep_until(due) => {}
                    Ok(()) = tls.changed() => {}
                }
                continue;
            }
            shown = newest;
            match Box::pin(self.open()).await {
                Ok(fresh) => return fresh,
                // The one that stands has its own end.
                Err(error) => {
                    self.tell_spare_end(&error);
                    due = Instant::now() + self.deps.bounds.max_age / RENEWAL_TRIES;
                }
            }
        }
    }

    /// Tells of a connection that was to take the place of another, or that another took the
    /// place of: neither is the end of the line.
    fn tell_spare_end(&self, end: &dyn fmt::Display) {
        let name = self.name();
        self.deps.log.debug(format!("peer {name}: a renewed connection ended: {end}"));
    }

    fn tell_up(&mut self) {
        if !std::mem::replace(&mut self.told_up, true) {
            let subject = format!("peer {} up", self.member.id);
            self.deps.log.limited(Level::Note, &subject, format!("peer {} is up", self.name()));
        }
    }

    fn tell_end(&mut self, end: &End) {
        let (name, id, log) = (self.name(), self.member.id, &self.deps.log);
        if matches!(end, End::Frame(_) | End::Untrusted(_)) {
            // What an operator has to do something about; a peer that stops is not.
            log.limited(Level::Warning, &format!("peer {id} end"), format!("peer {name}: {end}"));
        }
        if matches!(end, End::Idle | End::Gone | End::Aged) {
            return log.debug(format!("peer {name}: connection ended: {end}"));
        }
        self.told_up = false;
        let line = format!("peer {name} is down: {end}");
        log.limited(Level::Note, &format!("peer {id} down"), line);
    }
}

/// Goes on with a connection that takes no more requests, if there is one.
async fn drain(old: &mut Option<Conversation>, line: &PeerConnection) -> Result<Infallible, End> {
    match old {
        Some(old) => old.go_on(line, None).await,
        None => pending().await,
    }
}

/// How a connection that this side dialled ended.
#[derive(Debug, Error)]
enum End {
    #[error("nothing was asked for a long time")]
    Idle,
    #[error("this server no longer asks it")]
    Gone,
    #[error("a new connection took its place")]
    Renewed,
    #[error("it stood for as long as a connection may")]
    Aged,
    #[error("it is no longer trusted: {0}")]
    Untrusted(HandshakeError),
    #[error("it closed the connection")]
    Closed,
    #[error("the connection was lost: {0}")]
    Lost(io::Error),
    #[error("it does not answer")]
    Dead,
    #[error(transparent)]
    Frame(FrameError),
}

impl From<WireError> for End {
    fn from(error: WireError) -> End {
        match error {
            WireError::Frame(error) => End::Frame(error),
            WireError::Io(error) => End::Lost(error),
            WireError::TooSlow => End::Dead,
        }
    }
}

/// A request that was sent and not yet answered.
struct Open {
    id: u32,
    sent: Instant,
    limit: Duration,
    deadline: Instant,
    reply: oneshot::Sender<Result<Body, CallError>>,
}

/// A connection that this side dialled, after the hello: requests out, responses in.
struct Conversation {
    wire: Wire<Stream>,
    trust: Trust,
    /// The certificate that this side showed.
    leaf: Arc<str>,
    /// The run of the process at the other end.
    incarnation: u64,
    /// Until when it may live.
    ends: Instant,
    /// At most [`MAX_IN_FLIGHT`].
    open: Vec<Open>,
    last_id: u32,
    /// When the last frame was put on the wire, and when the last one came in.
    sent: Instant,
    received: Instant,
    has_answered: bool,
    /// A request spent its whole time while nothing came back: it is to come until then.
    suspect: Option<Instant>,
    alarm: Alarm,
}

impl Conversation {
    fn new(
        wire: Wire<Stream>,
        trust: Trust,
        leaf: Arc<str>,
        hello: Hello,
        max_age: Duration,
    ) -> Conversation {
        let now = Instant::now();
        let ends = now + max_age;
        Conversation {
            wire,
            trust,
            leaf,
            incarnation: hello.incarnation,
            ends,
            open: Vec::new(),
            last_id: 0,
            sent: now,
            received: now,
            has_answered: false,
            suspect: None,
            alarm: Alarm::new(ends.min(now + DIALLER_IDLE_LIMIT)),
        }
    }

    /// Ends it: what was sent and not answered is lost.
    fn part(self, end: &End) -> CallError {
        if matches!(end, End::Untrusted(_) | End::Gone) {
            self.wire.into_stream().get_ref().discard_unsent();
        }
        let error = CallError::Unreachable(end.to_string().into());
        for open in self.open {
            let _ = open.reply.send(Err(error.clone()));
        }
        error
    }

    /// Nothing more may be sent to an end that would not be let in now.
    fn assess(&mut self, line: &PeerConnection) -> Result<(), End> {
        if line.gone.load(Ordering::SeqCst) {
            return Err(End::Gone);
        }
        if self.ends <= Instant::now() {
            return Err(End::Aged);
        }
        self.trust.check().map(drop).map_err(End::Untrusted)
    }

    /// Without an RPC server it takes no more requests, and ends when the last is answered. May be
    /// dropped and called again at any time.
    async fn go_on(
        &mut self,
        line: &PeerConnection,
        mut rpc_server: Option<&mut mpsc::Receiver<Order>>,
    ) -> Result<Infallible, End> {
        loop {
            fail_point("conversation");
            self.assess(line)?;
            let is_sending = self.wire.writer.waiting() > 0;
            if rpc_server.is_none() && self.open.is_empty() && !is_sending {
                return Err(End::Renewed);
            }
            let may_take = !is_sending && self.open.len() < MAX_IN_FLIGHT;
            let may_take_datagram = !is_sending && rpc_server.is_some();
            let due = self.due().min(self.ends).min(self.trust.due);
            tokio::select! {
                biased;
                () = self.trust.changed() => {}
                sent = self.wire.writer.write(), if is_sending => sent?,
                frame = self.wire.reader.next() => {
                    let (header, body) = frame?.ok_or(End::Closed)?;
                    self.assess(line)?;
                    self.take(&header, body, line)?;
                }
                order = next_order(&mut rpc_server), if may_take => {
                    self.take_order(line, order.ok_or(End::Gone)?)?;
                }
                datagram = line.datagrams.next(), if may_take_datagram => {
                    self.write(line, Kind::Note, 0, datagram.body())?;
                    datagram.record_sent();
                }
                // Last: on a busy machine what has come may have waited longer than the timer.
                () = poll_fn(|cx| self.alarm.poll(cx, due)) => self.look(Instant::now())?,
            }
        }
    }

    fn take_order(&mut self, line: &PeerConnection, order: Order) -> Result<(), End> {
        match order {
            Order::Check => {
                let now = Instant::now();
                self.check(now)?;
                // Alive but late: nobody waits for these any more.
                self.open.retain(|open| now < open.deadline || !open.reply.is_closed());
                Ok(())
            }
            Order::Ask(ask) => self.send(line, ask),
            Order::Note { body, until } if Instant::now() < until => {
                self.write(line, Kind::Note, 0, &body)
            }
            Order::Note { .. } => Ok(()),
        }
    }

    fn send(&mut self, line: &PeerConnection, ask: Ask) -> Result<(), End> {
        let Ask { letter, limit, deadline, reply } = ask;
        let Some(body) = letter.take() else { return Ok(()) };
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        self.open.push(Open { id, sent: Instant::now(), limit, deadline, reply });
        self.write(line, Kind::Request, id, &body)
    }

    fn write(
        &mut self,
        line: &PeerConnection,
        kind: Kind,
        request: u32,
        body: &[u8],
    ) -> Result<(), End> {
        // Asked once more: what goes out may be newer than the last look.
        self.assess(line)?;
        let header = Header { kind, request, cluster_id: line.deps.me.cluster_id() };
        self.wire.writer.send(frame::encode(&header, body).map_err(End::Frame)?);
        self.sent = Instant::now();
        Ok(())
    }

    fn take(&mut self, header: &Header, body: Body, line: &PeerConnection) -> Result<(), End> {
        (self.received, self.suspect) = (Instant::now(), None);
        match header.kind {
            Kind::Response => {
                self.has_answered = true;
                let (id, heard) = (line.member.id, &line.deps.heard);
                heard.record_answer(id, self.incarnation, self.received);
                // One that nobody waits for any more is dropped.
                if let Some(at) = self.open.iter().position(|open| open.id == header.request) {
                    let _ = self.open.swap_remove(at).reply.send(Ok(body));
                }
                Ok(())
            }
            // A later version may have something to say.
            Kind::Unknown(_) => Ok(()),
            Kind::Request | Kind::Note => Err(End::Frame(FrameError::Kind)),
        }
    }

    /// Checks the connection by the requests whose time ran out. A far peer that is busy for a
    /// moment gets their time once more: dialling it anew would take longer.
    fn check(&mut self, now: Instant) -> Result<(), End> {
        let received = self.received;
        let is_silent =
            |open: &&Open| open.sent + open.limit <= now + QUEUEING && received <= open.sent;
        let silent = self.open.iter().filter(is_silent).map(|open| open.limit).min();
        match (silent, self.suspect) {
            _ if self.wire.reader.is_reading() => self.suspect = None,
            (_, Some(until)) if until <= now => return Err(End::Dead),
            (Some(limit), None) => self.suspect = Some(now + limit),
            _ => {}
        }
        Ok(())
    }

    /// When a request that its caller dropped is overdue.
    fn overdue(&self) -> Option<Instant> {
        self.open.iter().map(|open| open.deadline + DROPPED_GRACE).min()
    }

    /// When to look at it if nothing happens.
    fn due(&self) -> Instant {
        let idle = self.sent.max(self.received) + DIALLER_IDLE_LIMIT;
        self.overdue().into_iter().chain(self.suspect).min().unwrap_or(idle)
    }

    /// Something is due.
    fn look(&mut self, now: Instant) -> Result<(), End> {
        if now < self.due() {
            return Ok(());
        }
        if self.overdue().is_none() && self.suspect.is_none() {
            return Err(End::Idle);
        }
        self.check(now)?;
        // Alive but late: nobody waits for these any more.
        self.open.retain(|open| now < open.deadline + DROPPED_GRACE);
        Ok(())
    }
}

/// What to do next, by a connection that takes orders.
async fn next_order(rpc_server: &mut Option<&mut mpsc::Receiver<Order>>) -> Option<Order> {
    match rpc_server {
        Some(rpc_server) => rpc_server.recv().await,
        None => pending().await,
    }
}
