//! The side that dials: one connection per peer, made when there is something to ask, shared by
//! all requests to that peer.
//!
//! Leaves to the caller what a request means and whether to repeat it. Invariants:
//! - A request ends within its limit, whatever the peer does, and may be dropped at any time
//!   without harm to the connection or to other requests.
//! - A note goes out soon or not at all: it waits neither for a connection nor for its peer.
//! - Nobody is dialled unless somebody asks, and not again before a pause that grows.
//! - A connection on which nothing at all comes back for twice the time of a request is given up, so
//!   that a peer which vanished without a word is dialled anew. The time that dialling took does
//!   not count, or a far peer would never be reached by impatient requests.
//! - A connection on which nothing was asked, since who wanted it is gone, is closed before the
//!   other side takes this server for a stranger that says nothing.
//! - A request's bytes are erased when they are sent or nobody waits for the response any more.
//!   Where the peer may turn out to speak an older version only, they are kept until it answers.
//! - A connection begins with the newest version; which one follows is agreed on it once.
//! - A connection whose other end would not be let in now is closed before anything else is sent
//!   on it, and what the system has not sent yet is thrown away; see `trust`.
//! - No connection stands longer than its bound. Before that a new one takes its place, on which
//!   the peer has answered already; the old one goes when its last response is there.
//! - One task per peer; its queue, its open requests and its dialling are bounded.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::{poll_fn, Future};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch, Mutex as AsyncMutex};
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at, Instant};

use super::frame::{
    self, Body, Event, FrameError, Header, Kind, NoCommonVersion, Role, Versions, Wire, WireError,
    MAX_BODY, NOTICE,
};
use super::listener::Refusal;
use super::renewal::Renewal;
use super::resolver::{Found, Resolver, Unresolved};
use super::tls::{alert_in, HandshakeError, Stream, Tls};
use super::trust::{polled, Trust};
use super::{
    tune, Alarm, Bounds, LastSeen, Me, FRAME_LIMIT, HANDSHAKE_LIMIT, IDLE_LIMIT, MAX_IN_FLIGHT,
};
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

/// Counted from the dialling, how long a connection may be kept on which nothing was ever asked,
/// because who wanted it was gone before it was up. The other side closes it a little later, and
/// would have to take this server for a silent stranger.
const UNUSED_LIMIT: Duration = HANDSHAKE_LIMIT.saturating_sub(Duration::from_secs(1));

/// How long after its time a request that its caller dropped counts as open. Callers that wait
/// their time out tell at once; this is for the others, and spares a timer per request.
const DROPPED_GRACE: Duration = Duration::from_secs(5);

/// How long a request may wait for the connection's task without being the later checked for it.
const QUEUEING: Duration = Duration::from_millis(5);

/// The least time that one address of several gets.
const ADDRESS_SHARE_MIN: Duration = Duration::from_millis(500);

/// Why a request has no response.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallError {
    /// No connection could be had, or it broke before the response came.
    #[error("unreachable: {0}")]
    Unreachable(Arc<str>),
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
    /// Set once it is no peer any more: nothing is sent to it, however late its task ends.
    gone: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        self.task.abort();
    }
}

pub(super) enum Order {
    /// Send this request.
    Ask(Ask),
    /// Send this note, unless it is too late for it.
    Note { body: Body, until: Instant },
    /// A caller's time ran out: see whether the connection is still alive.
    Check,
}

pub(super) struct Ask {
    kind: Kind,
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
    fn new(body: Body) -> RequestBody {
        RequestBody(Arc::new(Mutex::new(Some(body))))
    }

    fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn copy(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
                let gone = Arc::new(AtomicBool::new(false));
                let line = keep_line(member.clone(), gone.clone(), self.deps.clone(), rpc_server);
                Peer { member: member.clone(), orders, gone, task: tokio::spawn(line) }
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
        let letter = RequestBody::new(body);
        let _recall = ClearOnDrop(letter.clone());
        let ask = Ask { kind: Kind::Request, letter, limit, deadline, reply };
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

    /// Sends something that wants no response, if the connection is up and the peer has answered
    /// on it, and if that can be done within `limit`. Does not wait, and does not tell.
    pub fn note(&self, to: ServerId, body: Body, limit: Duration) {
        let until = Instant::now() + limit;
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        if let (Some(peer), true) = (peers.get(&to), body.len() <= MAX_BODY) {
            let _ = peer.orders.try_send(Order::Note { body, until });
        }
    }

    /// When a frame of this member was last heard, whoever dialled.
    pub fn last_heard(&self, id: ServerId) -> Option<Instant> {
        self.deps.heard.last(id)
    }
}

/// One peer's line, with a new beginning after each panic.
async fn keep_line(
    member: Member,
    gone: Arc<AtomicBool>,
    deps: Deps,
    rpc_server: mpsc::Receiver<Order>,
) {
    let (log, rpc_server) = (deps.log.clone(), Arc::new(AsyncMutex::new(rpc_server)));
    let member = Arc::new(member);
    let what = format!("asking peer {}", member.id);
    let begin = || {
        let line = PeerConnection::new(Arc::clone(&member), Arc::clone(&gone), deps.clone());
        let rpc_server = rpc_server.clone();
        async move { line.run(&mut *rpc_server.lock().await).await }
    };
    kept_alive(&log, &what, begin).await;
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
            other => OnceError::Unreachable(other.to_string()),
        }
    }
}

impl From<WireError> for OnceError {
    fn from(error: WireError) -> OnceError {
        let alert = match &error {
            // With TLS 1.3 a peer that does not accept our certificate says so only now.
            WireError::Io(error) => alert_in(error),
            WireError::Frame(_) => None,
        };
        match alert {
            Some(alert) => OnceError::Handshake(HandshakeError::RefusedUs(alert)),
            None => OnceError::Unreachable(error.to_string()),
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
        let stream = dial(tls, found.addresses).await?;
        let ours = me.versions();
        let mut wire = Wire::new(stream, ours);
        let encode = |version| {
            frame::encode(&me.header(version, 1, Kind::Request), body)
                .map_err(|_| OnceError::TooLong(body.len()))
        };
        wire.send(encode(ours.max)?);
        let mut sent = Instant::now();
        let (mut again, mut head) = (None, (ours.max, Kind::Response));
        let mut parted: Option<NoCommonVersion> = None;
        loop {
            if !wire.is_sending() {
                if let Some(frame) = again.take() {
                    sent = Instant::now();
                    wire.send(frame);
                }
            }
            match poll_fn(|cx| wire.poll(cx, true)).await? {
                Event::Sent => match parted {
                    Some(parted) if again.is_none() => return Err(OnceError::Version(parted)),
                    _ => {}
                },
                Event::Head(header) => head = (header.version, header.kind),
                Event::Body(body) if head.1 == Kind::Response => return Ok((body, sent.elapsed())),
                Event::Body(body) if head.0 == NOTICE => {
                    let theirs = Versions::of_notice(&body).ok_or(OnceError::Closed)?;
                    // What speaks our newest version has no reason to send a notice.
                    let lower = ours.common(theirs).filter(|version| *version < ours.max);
                    again = Some(match lower {
                        Some(version) => encode(version)?,
                        None => {
                            parted = Some(NoCommonVersion { theirs, ours });
                            me.notice().map_err(|e| OnceError::Unreachable(e.to_string()))?
                        }
                    });
                }
                Event::Body(body) => return Err(OnceError::Refused(refusal(&body))),
                Event::Foreign(_) | Event::Closed => return Err(OnceError::Closed),
            }
        }
    };
    timeout(limit, exchange).await.unwrap_or(Err(OnceError::TimedOut))
}

fn refusal(body: &[u8]) -> Refusal {
    Refusal::from_code(body.first().copied().unwrap_or_default())
}

#[derive(Debug, Error)]
pub(super) enum DialError {
    #[error("cannot resolve the name: {0}")]
    Resolve(Unresolved),
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    #[error("no TLS with {0}: {1}")]
    Handshake(SocketAddr, HandshakeError),
    #[error("no answer from {0} in time")]
    TooSlow(SocketAddr),
}

/// Tries all addresses of a host in turn, within [`DIAL_LIMIT`].
async fn dial(tls: &Tls, addresses: Vec<SocketAddr>) -> Result<Stream, DialError> {
    let deadline = Instant::now() + DIAL_LIMIT;
    let mut error = DialError::Resolve(Unresolved::Failed("the name has no address".into()));
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for addr in addresses {
        // Each gets its share of what is left, so that one silent address leaves time for others.
        let rest = deadline.saturating_duration_since(Instant::now());
        let share = (rest / left.max(1)).max(ADDRESS_SHARE_MIN).min(rest);
        left = left.saturating_sub(1);
        match timeout(share, dial_one(tls, addr)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(fault)) => error = fault,
            Err(_) => error = DialError::TooSlow(addr),
        }
    }
    Err(error)
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
pub(super) struct PeerConnection {
    member: Arc<Member>,
    gone: Arc<AtomicBool>,
    deps: Deps,
    /// Whether the operator was told that the peer is up.
    is_up: bool,
    pause: Duration,
    /// No dialling before this, and why the last attempt came to nothing.
    barred: Option<(Instant, CallError)>,
    /// When the last attempt came to nothing.
    failed: Instant,
}

impl PeerConnection {
    fn new(member: Arc<Member>, gone: Arc<AtomicBool>, deps: Deps) -> PeerConnection {
        let (pause, failed) = (REDIAL_MIN, Instant::now());
        PeerConnection { member, gone, deps, is_up: false, pause, barred: None, failed }
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
            match self.dial().await {
                Err(error) => {
                    let words = error.to_string();
                    self.tell_trouble(&error);
                    self.fail(CallError::Unreachable(words.into()), Some(ask), rpc_server);
                }
                Ok(dialled) => self.converse(dialled, ask, rpc_server).await,
            }
        }
    }

    /// Makes a connection by the newest certificates.
    pub(super) fn dial(&self) -> impl Future<Output = Result<Dialled, DialError>> + Send + 'static {
        let (mut newest, member) = (self.deps.tls.clone(), Arc::clone(&self.member));
        let tls = newest.borrow_and_update().for_member(&member);
        let (log, resolver) = (self.deps.log.clone(), self.deps.resolver.clone());
        async move {
            let found = resolver.resolve(&member.address, member.port).await;
            let found = found.map_err(DialError::Resolve)?;
            tell_stale(&log, &member, &found);
            let unused = Instant::now() + UNUSED_LIMIT;
            let stream = dial(&tls, found.addresses).await?;
            let assessed = Trust::new(newest, Some(Arc::clone(&member)), &stream);
            let trust = assessed.map_err(|fault| match stream.get_ref().peer_addr() {
                Ok(addr) => DialError::Handshake(addr, fault),
                Err(error) => DialError::Resolve(Unresolved::Failed(error.to_string().into())),
            })?;
            Ok(Dialled { stream, trust, leaf: tls.leaf_mark(), unused })
        }
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
            DialError::Connect(..) | DialError::TooSlow(_) => (Level::Debug, "connect"),
        };
        self.deps.log.limited(level, &format!("peer {} {subject}", self.member.id), line);
    }

    fn name(&self) -> String {
        format!("{} ({}:{})", self.member.id, self.member.address, self.member.port)
    }

    /// Answers what waits with an error and lets nobody dial for a while.
    fn fail(
        &mut self,
        error: CallError,
        first: impl IntoIterator<Item = Ask>,
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
        dialled: Dialled,
        first: Ask,
        rpc_server: &mut mpsc::Receiver<Order>,
    ) {
        let mut renewal = Renewal::new(Arc::clone(&dialled.leaf), self.deps.bounds.max_age);
        let mut conversation = Conversation::new(dialled, first, &self.deps);
        let end = polled(self.deps.tls.clone(), |cx| {
            fail_point("conversation");
            let end = conversation.poll(cx, self, Some(&mut *rpc_server));
            if end.is_pending() {
                renewal.poll(cx, self, &mut conversation);
            }
            end
        });
        let end = end.await;
        self.deps.heard.forget_answer(self.member.id);
        let error = end.as_error();
        let (next, has_heard) = conversation.part(&end);
        if matches!(end, End::Unused) || has_heard && !matches!(end, End::Refused(_)) {
            // Nothing is wrong with it, or it was good once: it may be dialled again at once.
            for ask in next {
                let _ = ask.reply.send(Err(error.clone()));
            }
        } else {
            self.fail(error, next, rpc_server);
        }
        self.tell_end(&end);
    }

    /// Tells of a connection that was to take the place of another, or that another took the
    /// place of: neither is the end of the line.
    pub(super) fn tell_spare_end(&self, end: &dyn fmt::Display) {
        let name = self.name();
        self.deps.log.debug(format!("peer {name}: a renewed connection ended: {end}"));
    }

    /// The newest own certificate.
    pub(super) fn newest_leaf(&self) -> Arc<str> {
        self.deps.tls.borrow().leaf_mark()
    }

    /// How long a connection may campaign.
    pub(super) fn max_age(&self) -> Duration {
        self.deps.bounds.max_age
    }

    /// A conversation that begins by asking the other end's transport whether it is good, and
    /// what keeps that question open.
    pub(super) fn greet(&self, dialled: Dialled) -> (Conversation, Hope) {
        let (reply, hope) = oneshot::channel();
        let deadline = Instant::now() + UNUSED_LIMIT;
        let letter = RequestBody::new(Body::default());
        let hello = Ask { kind: Kind::Hello, letter, limit: UNUSED_LIMIT, deadline, reply };
        (Conversation::new(dialled, hello, &self.deps), hope)
    }

    /// The peer answered here.
    fn heard_at(&self, addr: io::Result<SocketAddr>) {
        if let Ok(addr) = addr {
            self.deps.heard.record_answered_at(self.member.id, addr.ip());
        }
    }

    fn heard(&mut self, incarnation: u64, now: Instant) {
        self.deps.heard.record_answer(self.member.id, incarnation, now);
        self.pause = REDIAL_MIN;
        self.barred = None;
        if !self.is_up {
            self.is_up = true;
            let subject = format!("peer {} up", self.member.id);
            self.deps.log.limited(Level::Note, &subject, format!("peer {} is up", self.name()));
        }
    }

    fn tell_end(&mut self, end: &End) {
        let (name, id, log) = (self.name(), self.member.id, &self.deps.log);
        if let Some(words) = end.trouble() {
            let line = format!("peer {name}: {words}");
            log.limited(Level::Warning, &format!("peer {id} end"), line);
        }
        if matches!(end, End::Idle | End::Gone | End::Aged) || !std::mem::take(&mut self.is_up) {
            return log.debug(format!("peer {name}: connection ended: {end}"));
        }
        let line = format!("peer {name} is down: {end}");
        log.limited(Level::Note, &format!("peer {id} down"), line);
    }
}

/// How a connection that this side dialled ended.
#[derive(Debug, Error)]
pub(super) enum End {
    #[error("nothing was asked for a long time")]
    Idle,
    #[error("whoever wanted to ask was gone before it was up")]
    Unused,
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
    #[error("it refuses this server: {0}")]
    Refused(Refusal),
    #[error("the server there calls itself server_id {0}; the server list is wrong here or there")]
    Stranger(ServerId),
    #[error(transparent)]
    NoVersion(NoCommonVersion),
    #[error(transparent)]
    Frame(FrameError),
}

impl End {
    /// What an operator has to do something about; a peer that stops is not.
    fn trouble(&self) -> Option<String> {
        match self {
            End::Refused(_)
            | End::Stranger(_)
            | End::NoVersion(_)
            | End::Frame(_)
            | End::Untrusted(_) => Some(self.to_string()),
            // With TLS 1.3 a peer that does not accept our certificate says so only now.
            End::Lost(error) => alert_in(error)
                .map(|alert| format!("it refuses this server's certificate: {alert}")),
            End::Idle | End::Unused | End::Gone | End::Closed | End::Dead => None,
            End::Renewed | End::Aged => None,
        }
    }

    fn as_error(&self) -> CallError {
        match self {
            End::Refused(refusal) => CallError::Refused(*refusal),
            other => CallError::Unreachable(other.to_string().into()),
        }
    }
}

/// A request that was sent and not yet answered.
struct Open {
    id: u32,
    kind: Kind,
    sent: Instant,
    limit: Duration,
    deadline: Instant,
    /// Still full while it may have to be sent again in an older version.
    letter: RequestBody,
    reply: oneshot::Sender<Result<Body, CallError>>,
}

/// What keeps a question open until it is answered.
pub(super) type Hope = oneshot::Receiver<Result<Body, CallError>>;

/// A connection that was just made.
pub(super) struct Dialled {
    stream: Stream,
    trust: Trust,
    /// The certificate that this side showed.
    pub leaf: Arc<str>,
    unused: Instant,
}

/// A connection that this side dialled: requests out, responses in.
pub(super) struct Conversation {
    trust: Trust,
    /// Until when it may campaign.
    ends: Instant,
    wire: Wire<Stream>,
    /// The version that is written: the newest, or the one that was agreed on.
    version: u8,
    /// Set once no version is common: the connection ends when the goodbye is out.
    parting: Option<(NoCommonVersion, Option<Body>)>,
    /// What goes before new requests: the one that made us dial, until it is sent, and those that
    /// have to be sent again in another version, at most [`MAX_IN_FLIGHT`].
    next: VecDeque<Ask>,
    /// At most [`MAX_IN_FLIGHT`].
    open: Vec<Open>,
    last_id: u32,
    /// The header whose body is being read.
    head: Option<Header>,
    /// When the last frame was put on the wire, and when the last one came in.
    sent: Instant,
    received: Instant,
    has_heard: bool,
    /// A request spent its whole time while nothing came back: it is to come until then.
    suspect: Option<Instant>,
    /// Until when something must have been asked.
    unused: Instant,
    alarm: Alarm,
}

impl Conversation {
    fn new(dialled: Dialled, first: Ask, deps: &Deps) -> Conversation {
        let (now, versions) = (Instant::now(), deps.me.versions());
        let Dialled { stream, trust, unused, .. } = dialled;
        Conversation {
            trust,
            ends: now + deps.bounds.max_age,
            wire: Wire::new(stream, versions),
            version: versions.max,
            parting: None,
            next: VecDeque::from([first]),
            open: Vec::new(),
            last_id: 0,
            head: None,
            sent: now,
            received: now,
            has_heard: false,
            suspect: None,
            unused,
            alarm: Alarm::new(unused),
        }
    }

    /// Whether the peer has answered on it.
    pub(super) fn has_heard(&self) -> bool {
        self.has_heard
    }

    /// Gives back what was asked on it and not answered: what was sent is lost, the rest is left.
    pub(super) fn part(self, end: &End) -> (VecDeque<Ask>, bool) {
        let error = end.as_error();
        for open in self.open {
            let _ = open.reply.send(Err(error.clone()));
        }
        (self.next, self.has_heard)
    }

    /// Nothing more may be sent to an end that would not be let in now.
    fn assess(&mut self, line: &PeerConnection) -> Result<(), End> {
        if line.gone.load(Ordering::SeqCst) {
            self.wire.stream().get_ref().discard_unsent();
            return Err(End::Gone);
        }
        let assessed = self.trust.check().map(drop).map_err(End::Untrusted);
        assessed.inspect_err(|_| self.wire.stream().get_ref().discard_unsent())
    }

    /// Without an RPC server it takes no more requests, and ends when the last is answered.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        line: &mut PeerConnection,
        mut rpc_server: Option<&mut mpsc::Receiver<Order>>,
    ) -> Poll<End> {
        loop {
            if let Err(end) = self.assess(line) {
                return Poll::Ready(end);
            }
            match &mut self.parting {
                Some(_) if self.wire.is_sending() => {}
                Some((parted, goodbye)) => match goodbye.take() {
                    Some(frame) => self.wire.send(frame),
                    None => return Poll::Ready(End::NoVersion(*parted)),
                },
                None => {
                    if let Poll::Ready(Err(end)) =
                        self.poll_orders(cx, line, rpc_server.as_deref_mut())
                    {
                        return Poll::Ready(end);
                    }
                }
            }
            let event = match self.wire.poll(cx, self.parting.is_none()) {
                Poll::Ready(Ok(event)) => event,
                Poll::Ready(Err(WireError::Frame(error))) => return Poll::Ready(End::Frame(error)),
                Poll::Ready(Err(WireError::Io(error))) => return Poll::Ready(End::Lost(error)),
                Poll::Pending => break,
            };
            if let Err(end) = self.take(event, line) {
                return Poll::Ready(end);
            }
        }
        self.poll_alarm(cx, line)
    }

    /// Puts one waiting request on the wire, if there is room for it.
    fn poll_orders(
        &mut self,
        cx: &mut Context<'_>,
        line: &PeerConnection,
        mut rpc_server: Option<&mut mpsc::Receiver<Order>>,
    ) -> Poll<Result<(), End>> {
        while !self.wire.is_sending() && self.open.len() < MAX_IN_FLIGHT {
            let order = match (self.next.pop_front(), &mut rpc_server) {
                (Some(ask), _) => Order::Ask(ask),
                (None, None) if self.open.is_empty() => {
                    return Poll::Ready(Err(End::Renewed));
                }
                (None, None) => return Poll::Pending,
                (None, Some(rpc_server)) => match rpc_server.poll_recv(cx) {
                    Poll::Ready(Some(order)) => order,
                    Poll::Ready(None) => return Poll::Ready(Err(End::Gone)),
                    Poll::Pending => return Poll::Pending,
                },
            };
            match order {
                Order::Check => {
                    let now = Instant::now();
                    self.check(now)?;
                    // Alive but late: nobody waits for these any more.
                    self.open.retain(|open| now < open.deadline || !open.reply.is_closed());
                }
                Order::Ask(ask) if ask.reply.is_closed() => {}
                Order::Ask(ask) => self.send(line, ask)?,
                // Before the first answer the version is not settled, and nobody waits for it.
                Order::Note { body, until } if self.has_heard && Instant::now() < until => {
                    self.write(line, 0, Kind::Note, &body)?;
                }
                Order::Note { .. } => {}
            }
        }
        Poll::Pending
    }

    fn send(&mut self, line: &PeerConnection, ask: Ask) -> Result<(), End> {
        let may_go_again = !self.has_heard && self.version > line.deps.me.versions().min;
        let body = if may_go_again { ask.letter.copy() } else { ask.letter.take() };
        let Some(body) = body else { return Ok(()) };
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        self.write(line, id, ask.kind, &body)?;
        let Ask { kind, letter, limit, deadline, reply } = ask;
        self.open.push(Open { id, kind, sent: self.sent, limit, deadline, letter, reply });
        Ok(())
    }

    fn write(
        &mut self,
        line: &PeerConnection,
        id: u32,
        kind: Kind,
        body: &[u8],
    ) -> Result<(), End> {
        // Asked once more: what goes out may be newer than the last look.
        self.assess(line)?;
        let header = line.deps.me.header(self.version, id, kind);
        self.wire.send(frame::encode(&header, body).map_err(End::Frame)?);
        self.sent = Instant::now();
        Ok(())
    }

    /// Goes on in the newest version that the peer speaks as well, or says goodbye.
    fn agree(&mut self, theirs: Versions, line: &PeerConnection) -> Result<(), End> {
        let ours = line.deps.me.versions();
        match ours.common(theirs) {
            None => {
                let goodbye = line.deps.me.notice().map_err(End::Frame)?;
                self.parting = Some((NoCommonVersion { theirs, ours }, Some(goodbye)));
            }
            Some(version) if version < self.version && !self.has_heard => {
                self.version = version;
                let again = self.open.drain(..);
                self.next.extend(again.map(|open| Ask {
                    kind: open.kind,
                    letter: open.letter,
                    limit: open.limit,
                    deadline: open.deadline,
                    reply: open.reply,
                }));
                let (name, log) = (line.name(), &line.deps.log);
                let words = format!(
                    "peer {name} speaks protocol {theirs}, this server {ours}; version {version} is \
                     used"
                );
                log.limited(Level::Note, &format!("peer {} version", line.member.id), words);
            }
            // It does speak what it was asked in.
            Some(_) => return Err(End::Frame(FrameError::Version(NOTICE))),
        }
        Ok(())
    }

    fn take(&mut self, event: Event, line: &mut PeerConnection) -> Result<(), End> {
        let now = Instant::now();
        match event {
            Event::Sent => return Ok(()),
            Event::Closed => return Err(End::Closed),
            Event::Head(_) | Event::Foreign(_) | Event::Body(_) => {
                (self.received, self.suspect) = (now, None);
            }
        }
        match event {
            Event::Sent | Event::Closed => Ok(()),
            // It was never asked in that version.
            Event::Foreign(version) => Err(End::Frame(FrameError::Version(version))),
            Event::Head(header) => {
                if (header.role, header.sender) != (Role::Member, line.member.id) {
                    return Err(End::Stranger(header.sender));
                }
                self.head = Some(header);
                Ok(())
            }
            Event::Body(body) => {
                // A body always follows its header.
                let Some(header) = self.head.take() else { return Err(End::Closed) };
                match header.kind {
                    Kind::Response => {
                        let is_first = !std::mem::replace(&mut self.has_heard, true);
                        if is_first {
                            // The version is settled; nothing goes again.
                            self.open.iter().for_each(|open| drop(open.letter.take()));
                        }
                        line.heard(header.incarnation, now);
                        if is_first {
                            line.heard_at(self.wire.stream().get_ref().peer_addr());
                        }
                        self.close(header.request, body);
                        Ok(())
                    }
                    Kind::Refused if header.version == NOTICE => {
                        let theirs = Versions::of_notice(&body);
                        let theirs = theirs.ok_or(End::Frame(FrameError::Version(NOTICE)))?;
                        self.agree(theirs, line)
                    }
                    Kind::Refused => Err(End::Refused(refusal(&body))),
                    Kind::Request => Err(End::Frame(FrameError::Kind(0))),
                    Kind::Note => Err(End::Frame(FrameError::Kind(3))),
                    Kind::Hello => Err(End::Frame(FrameError::Kind(4))),
                }
            }
        }
    }

    /// Gives a response to who asked; one that nobody waits for any more is dropped.
    fn close(&mut self, id: u32, body: Body) {
        if let Some(at) = self.open.iter().position(|open| open.id == id) {
            let _ = self.open.swap_remove(at).reply.send(Ok(body));
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
            _ if self.wire.is_reading() => self.suspect = None,
            (_, Some(until)) if until <= now => return Err(End::Dead),
            (Some(limit), None) => self.suspect = Some(now + limit),
            _ => {}
        }
        Ok(())
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>, line: &PeerConnection) -> Poll<End> {
        loop {
            let oldest = self.open.iter().map(|open| open.deadline + DROPPED_GRACE).min();
            let begun = self.wire.begun().map(|begun| begun + FRAME_LIMIT);
            let idle = match self.last_id {
                0 => self.unused,
                _ => self.sent.max(self.received) + DIALLER_IDLE_LIMIT,
            };
            let others = begun.into_iter().chain(self.suspect);
            let deadline = oldest.into_iter().chain(others).min().unwrap_or(idle);
            ready!(self.alarm.poll(cx, deadline.min(self.ends).min(self.trust.due)));
            let now = Instant::now();
            if self.ends <= now {
                return Poll::Ready(End::Aged);
            }
            if let Err(end) = self.assess(line) {
                return Poll::Ready(end);
            }
            if now < deadline {
                continue;
            }
            if begun.is_some_and(|limit| limit <= now) {
                return Poll::Ready(End::Dead);
            }
            if oldest.is_none() && self.suspect.is_none() {
                return Poll::Ready(if self.last_id == 0 { End::Unused } else { End::Idle });
            }
            if let Err(end) = self.check(now) {
                return Poll::Ready(end);
            }
            // Alive but late: nobody waits for these any more.
            self.open.retain(|open| now < open.deadline + DROPPED_GRACE);
        }
    }
}
