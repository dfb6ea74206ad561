//! The side that is dialled: binds, lets members in, keeps everybody else out, and hands each
//! request to a [`Service`].
//!
//! Leaves to the service who is a member and what a request means. Invariants:
//! - No byte is read from, or sent to, an end whose certificate was not verified; and nobody is
//!   heard who names an id that is not its certificate's.
//! - An end that would not be let in now, by its certificate or by the service, is neither heard
//!   nor answered any more: its connection is closed at once, with what is being served on it.
//! - Whoever says no hello in time is closed; connections, handshakes and requests are bounded in
//!   number. When there are too many handshakes the oldest one gives way, so that silent strangers
//!   cannot keep a member out.
//! - An address whose handshakes come to nothing too often is closed before anything is computed
//!   for it ([`RateLimiter`]).
//! - Each hello is answered: with the versions that are spoken here, and with why its sender is not
//!   heard if it is not. What means nothing here and wants no answer is counted and passed over, so
//!   that later versions may say more.
//! - One task per connection; requests are begun in the order in which they came, and a one-way
//!   message is dealt with before anything that came after it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout_at, Instant};

pub use super::binding::ListenSettings;
use super::binding::{BoundSockets, RebindWatch};
use super::bounds::{Bounds, HANDSHAKE_LIMIT, IDLE_LIMIT, MAX_IN_FLIGHT};
use super::close_reason::CloseReason;
use super::connection::{Connection, Event};
use super::connection_slots::{ConnectionSlot, ConnectionSlots, PeerSource};
pub use super::connection_slots::{CONNECTIONS_PER_MEMBER, SPARE_CONNECTIONS};
use super::counters::{Cause, Counters};
use super::frame::{self, Body, FrameError, Header, Hello, Kind, Role};
use super::last_seen::LastSeen;
use super::local_identity::LocalIdentity;
use super::names::Names;
pub use super::refusal::Refusal;
pub use super::service::{Answer, Caller, Service};
use super::socket::tune;
use super::tls::{fingerprint, Stream, Tls};
use super::trust::Trust;
use crate::core::config::Member;
use crate::core::moment::Moment;
use crate::core::rate_limit::{RateLimit, RateLimiter, Token, STRANGERS};
use crate::core::server_id::ServerId;
use crate::log_sink::{Level, Log};
use crate::supervise::{fail_point, kept_alive, lock};

/// Handshakes that may be under way at a time, strangers' among them; in a group of more members,
/// as many as it has, since all of them may come at once.
pub const MAX_HANDSHAKES: usize = 64;

/// The pause after the system could not accept, for instance for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// How long the log says nothing more of addresses that are over their rate: a flood goes on.
const OVER_RATE_QUIET: Duration = Duration::from_secs(60);

/// What a listener shares with the rest of the server.
#[derive(Clone)]
pub struct ListenDeps {
    /// Where lines go.
    pub log: Log,
    /// Certificates; a new connection uses the newest.
    pub tls: watch::Receiver<Tls>,
    /// What this server says of itself.
    pub me: LocalIdentity,
    /// Where it is noted who was heard when.
    pub heard: LastSeen,
    /// Where refusals are counted.
    pub counters: Arc<Counters>,
}

/// A listening server. Dropping it closes the port and every connection that came in by it.
pub struct Listener {
    task: JoinHandle<()>,
    bound: watch::Receiver<Vec<SocketAddr>>,
    admission: Arc<Admission>,
}

impl Listener {
    /// Starts to listen on the present tokio runtime. Where the port is in use it keeps trying
    /// and says so.
    pub fn start(
        settings: ListenSettings,
        deps: ListenDeps,
        service: Arc<dyn Service>,
    ) -> Listener {
        let (tell, bound) = watch::channel(Vec::new());
        let admission = Arc::new(Admission::new(&settings, &deps));
        let log = deps.log.clone();
        let bounds = settings.bounds;
        let acceptor =
            Arc::new(Acceptor { deps, service, admission: Arc::clone(&admission), bounds });
        let task = tokio::spawn(async move {
            let all = (settings, tell, acceptor);
            kept_alive(&log, "listening for peers", all, |(settings, tell, acceptor)| {
                Box::pin(accept(settings, tell, acceptor))
            })
            .await;
        });
        Listener { task, bound, admission }
    }

    /// Where it listens; empty until the port could be had.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.bound.borrow().clone()
    }

    /// Waits until the port could be had, and says where it listens.
    pub async fn bound(&self) -> Vec<SocketAddr> {
        let mut bound = self.bound.clone();
        let addresses = bound.wait_for(|addresses| !addresses.is_empty()).await;
        addresses.map(|addresses| addresses.clone()).unwrap_or_default()
    }

    /// Tells which members the list has now.
    pub fn set_members(&self, members: &[Member]) {
        *lock(&self.admission.list) = Listed::of(members);
    }

    /// Verified connections at this moment.
    pub fn connections(&self) -> usize {
        self.admission.slots.taken()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all connections of one listener share.
struct Acceptor {
    deps: ListenDeps,
    service: Arc<dyn Service>,
    admission: Arc<Admission>,
    bounds: Bounds,
}

/// Counts who is connected and who is shaking hands.
struct Admission {
    handshakes: Mutex<BTreeMap<u64, AbortHandle>>,
    slots: Arc<ConnectionSlots>,
    list: Mutex<Listed>,
    limiter: Mutex<RateLimiter>,
    /// The zero of the clock that `limiter` goes by.
    since: Instant,
    heard: LastSeen,
    counters: Arc<Counters>,
}

/// What it knows of the server list.
struct Listed {
    count: usize,
    /// The addresses in it that are no names. Where a name leads is known once its member was
    /// heard there.
    addresses: BTreeSet<IpAddr>,
}

impl Listed {
    fn of(members: &[Member]) -> Listed {
        let addresses = members.iter().filter_map(|member| member.address.parse::<IpAddr>().ok());
        let addresses = addresses.map(|ip| ip.to_canonical()).collect();
        Listed { count: members.len(), addresses }
    }
}

impl Admission {
    fn new(settings: &ListenSettings, deps: &ListenDeps) -> Admission {
        Admission {
            handshakes: Mutex::default(),
            slots: ConnectionSlots::new(settings.bounds.spare),
            list: Mutex::new(Listed::of(&settings.members)),
            limiter: Mutex::default(),
            since: Instant::now(),
            heard: deps.heard.clone(),
            counters: Arc::clone(&deps.counters),
        }
    }

    /// How many members the list has, if one of them is at this address.
    fn members_at(&self, ip: IpAddr) -> Option<usize> {
        let list = lock(&self.list);
        let is_listed = list.addresses.contains(&ip.to_canonical());
        (is_listed || self.heard.is_at(ip)).then_some(list.count)
    }

    /// Asks for a handshake with this address; how many it may have if it had too many.
    fn take_token(&self, ip: IpAddr) -> Result<Token, RateLimit> {
        let members = self.members_at(ip);
        let now = Moment::from_start(self.since.elapsed());
        let mut limiter = lock(&self.limiter);
        let token = limiter.take(ip, members, now);
        token.ok_or_else(|| members.map_or(STRANGERS, RateLimit::of_members))
    }

    /// Notes the handshake that `spawn` begins; if there are too many, the oldest one ends.
    fn begin(&self, serial: u64, spawn: impl FnOnce() -> AbortHandle) {
        let oldest = {
            // Locked while the task is made, so that its end cannot be noted before its begin.
            let mut handshakes = lock(&self.handshakes);
            handshakes.insert(serial, spawn());
            let members = lock(&self.list).count;
            if handshakes.len() > members.max(MAX_HANDSHAKES) {
                handshakes.pop_first()
            } else {
                None
            }
        };
        if let Some((_, task)) = oldest {
            task.abort();
            self.counters.count(Cause::OverLimit);
        }
    }
}

/// A handshake under way; it is over when this is dropped.
struct Handshake {
    admission: Arc<Admission>,
    serial: u64,
    token: Option<Token>,
}

impl Handshake {
    /// It ended well, and so costs its address nothing.
    fn succeed(mut self) {
        if let Some(token) = self.token.take() {
            lock(&self.admission.limiter).give_back(token);
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        lock(&self.admission.handshakes).remove(&self.serial);
    }
}

/// Accepts for ever. All connections end with this future.
async fn accept(
    settings: &ListenSettings,
    tell: &watch::Sender<Vec<SocketAddr>>,
    acceptor: &Arc<Acceptor>,
) {
    let mut bound = BoundSockets::new(settings, &acceptor.deps.log).await;
    tell.send_replace(bound.addresses());
    let mut rebind = RebindWatch::new(settings, &bound);
    let mut connections = JoinSet::new();
    let mut serial = 0;
    loop {
        let accepted = tokio::select! {
            accepted = poll_fn(|cx| bound.poll_accept(cx)) => accepted,
            () = rebind.address_appears(settings) => {
                // Those that are connected stay; the port has to be free for the move.
                drop(bound);
                bound = BoundSockets::new(settings, &acceptor.deps.log).await;
                rebind = RebindWatch::new(settings, &bound);
                tell.send_replace(bound.addresses());
                continue;
            }
            // Reaps what has ended.
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((tcp, addr)) => {
                fail_point("accept");
                let token = match acceptor.admission.take_token(addr.ip()) {
                    Ok(token) => Some(token),
                    Err(allowance) => {
                        acceptor.turn_away(addr, allowance);
                        continue;
                    }
                };
                serial += 1;
                let admission = Arc::clone(&acceptor.admission);
                let handshake = Handshake { admission: Arc::clone(&admission), serial, token };
                let acceptor = Arc::clone(acceptor);
                admission
                    .begin(serial, || connections.spawn(acceptor.receive(tcp, addr, handshake)));
            }
            // Whoever dialled is gone already; the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                let line = format!("cannot accept connections from peers: {error}; trying again");
                acceptor.deps.log.limited(Level::Warning, "accept", line);
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

impl Acceptor {
    /// Tells of a connection that is closed before anything was computed for it.
    fn turn_away(&self, addr: SocketAddr, allowance: RateLimit) {
        self.deps.counters.count(Cause::OverRate);
        let RateLimit { burst, per_second } = allowance;
        let line = format!(
            "refused {addr}: too many handshakes with its address came to nothing; {burst} at once \
             and {per_second} a second may; close the port to strangers with a firewall, and if it \
             is a server of the list look why it is refused"
        );
        self.deps.log.limited_to(OVER_RATE_QUIET, Level::Warning, "refused OverRate", line);
    }

    /// One connection from its first byte to its end.
    async fn receive(self: Arc<Self>, tcp: TcpStream, addr: SocketAddr, handshake: Handshake) {
        let end = self.converse(tcp, addr, handshake).await;
        let log = &self.deps.log;
        match end.cause() {
            Some((cause, level)) => {
                self.deps.counters.count(cause);
                // One subject per cause: a flood from many addresses stays one line.
                let subject = format!("refused {cause:?}");
                log.limited(level, &subject, format!("refused {addr}: {end}"));
            }
            None => log.debug(format!("peer connection from {addr} ended: {end}")),
        }
    }

    async fn converse(
        &self,
        tcp: TcpStream,
        addr: SocketAddr,
        handshake: Handshake,
    ) -> CloseReason {
        let deadline = Instant::now() + HANDSHAKE_LIMIT;
        fail_point("connection");
        tune(&tcp);
        let mut newest = self.deps.tls.clone();
        let tls = newest.borrow_and_update().clone();
        let stream = match timeout_at(deadline, tls.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return CloseReason::Handshake(error),
            Err(_) => return CloseReason::TooSlow("its TLS handshake"),
        };
        handshake.succeed();
        self.deps.counters.accepted.fetch_add(1, Ordering::Relaxed);
        let trust = match Trust::new(newest, None, &stream) {
            Ok(trust) => trust,
            Err(error) => return CloseReason::Untrusted(error),
        };
        let source = PeerSource { leaf: fingerprint(trust.leaf()), ip: addr.ip() };
        let (slot, gave_way) = self.admission.slots.enter(source);
        let mut who = None;
        tokio::select! {
            biased;
            _ = gave_way => {}
            end = self.talk(stream, addr, trust, &slot, deadline, &mut who) => match end {
                Err(end) => return end,
                Ok(never) => match never {},
            },
        }
        who.map_or(CloseReason::GaveWayUnheard, CloseReason::GaveWay)
    }

    /// A verified connection from its hello to its end.
    async fn talk(
        &self,
        mut stream: Stream,
        addr: SocketAddr,
        mut trust: Trust,
        slot: &ConnectionSlot,
        deadline: Instant,
        who: &mut Option<ServerId>,
    ) -> Result<Infallible, CloseReason> {
        let names = Names::of(trust.leaf());
        let greeting = self.greet(&mut stream, &mut trust, &names);
        let too_slow = Err(CloseReason::TooSlow("its hello"));
        let (hello, version) = timeout_at(deadline, greeting).await.unwrap_or(too_slow)?;
        let Hello { role, sender: id, incarnation, cluster_id, .. } = hello;
        if role == Role::Member {
            slot.belongs_to(id);
        }
        *who = Some(id);
        let mut conversation = ServerConnection {
            acceptor: self,
            caller: Caller { id, role, version, incarnation, cluster_id, addr, names },
            hello,
            connection: Connection::new(stream, trust, self.bounds.max_age),
            in_flight: Vec::new(),
        };
        conversation.heard();
        let Err(end) = conversation.go_on().await;
        conversation.tell_lost(&end);
        conversation.connection.close(&end);
        Err(end)
    }

    /// Hears the other end's hello and answers it; who it is, and the version that both speak.
    async fn greet(
        &self,
        stream: &mut Stream,
        trust: &mut Trust,
        names: &Names,
    ) -> Result<(Hello, u8), CloseReason> {
        let (hello, _) = frame::read_hello(stream).await?.ok_or(CloseReason::Silent)?;
        trust.check().map_err(CloseReason::Untrusted)?;
        let (me, id) = (self.deps.me.hello(), hello.sender);
        let version = me.versions.common(hello.versions);
        let version = version.map_err(|parted| CloseReason::NoVersion(id, parted));
        let assessed = version.and_then(|version| match self.admit(&hello, names) {
            Ok(()) => Ok((hello, version)),
            Err(refusal) => Err(CloseReason::Refused(id, refusal)),
        });
        let answer = match &assessed {
            Err(CloseReason::Refused(_, refusal)) => refusal.code(),
            _ => 0,
        };
        stream.write_all(&frame::encode_hello(&me, answer)).await.map_err(CloseReason::Lost)?;
        assessed
    }

    /// Whether the sender is heard: the service says who is a member, the certificate who it is.
    fn admit(&self, hello: &Hello, names: &Names) -> Result<(), Refusal> {
        let admitted = self.service.admit(hello);
        if admitted != Err(Refusal::NotAMember)
            && !self.deps.tls.borrow().is_of(hello.sender, names)
        {
            return Err(Refusal::Certificate);
        }
        admitted
    }
}

/// A connection after its hello: requests in, responses out.
struct ServerConnection<'a> {
    acceptor: &'a Acceptor,
    /// Who is at the other end; the cluster incarnation is the latest.
    caller: Caller,
    hello: Hello,
    connection: Connection,
    /// Requests that are being served; with the responses that wait at most [`MAX_IN_FLIGHT`].
    in_flight: Vec<(u32, Answer)>,
}

impl ServerConnection<'_> {
    async fn go_on(&mut self) -> Result<Infallible, CloseReason> {
        loop {
            self.assess()?;
            let has_room = self.in_flight.len() + self.connection.waiting() < MAX_IN_FLIGHT;
            let idle = self.connection.last + IDLE_LIMIT;
            // While something is being served it is not idle, however long that takes.
            let idle = if self.in_flight.is_empty() { idle } else { self.connection.ends };
            tokio::select! {
                biased;
                (request, body) = next_answer(&mut self.in_flight) => {
                    let body = body.ok_or(CloseReason::BadBody(self.caller.id))?;
                    // Checked before it goes out: what it tells may be newer than the last look.
                    let cluster_id = self.acceptor.deps.me.cluster_id();
                    self.connection.send((Kind::Response, request), cluster_id, &body)?;
                }
                event = self.connection.event(has_room, idle) => {
                    let event = event?;
                    self.assess()?;
                    match event {
                        Event::Frame(header, body) => self.take(&header, body)?,
                        Event::Due if idle <= Instant::now() => return Err(CloseReason::Idle),
                        Event::Due | Event::Other => {}
                    }
                }
            }
        }
    }

    /// Whether the other end would still be let in, if anything changed since the last look.
    fn assess(&mut self) -> Result<(), CloseReason> {
        if self.connection.check()? {
            self.admit()?;
        }
        Ok(())
    }

    fn admit(&self) -> Result<(), CloseReason> {
        let admitted = self.acceptor.admit(&self.hello, &self.caller.names);
        admitted.map_err(|refusal| CloseReason::Refused(self.caller.id, refusal))
    }

    /// A member gave a sign of life.
    fn heard(&self) {
        if self.caller.role == Role::Member {
            self.acceptor.deps.heard.record_from(
                self.caller.id,
                self.connection.last,
                self.caller.addr.ip(),
            );
        }
    }

    /// Notes that the other end is gone, unless something was heard from it elsewhere since: then a
    /// new connection has taken the place of this one.
    fn tell_lost(&self, end: &CloseReason) {
        let Caller { id, role, .. } = self.caller;
        let heard = &self.acceptor.deps.heard;
        if role == Role::Member
            && end.is_loss()
            && heard.last(id).is_none_or(|last| last <= self.connection.last)
        {
            heard.record_lost(id);
        }
    }

    fn take(&mut self, header: &Header, body: Body) -> Result<(), CloseReason> {
        (self.hello.cluster_id, self.caller.cluster_id) = (header.cluster_id, header.cluster_id);
        self.admit()?;
        self.heard();
        let Acceptor { deps, service, .. } = self.acceptor;
        match header.kind {
            Kind::Request => {
                deps.counters.requests.fetch_add(1, Ordering::Relaxed);
                let answer = Arc::clone(service).serve(self.caller.clone(), body);
                self.in_flight.push((header.request, answer));
            }
            Kind::OneWay if service.take_one_way(&self.caller, body) => {}
            Kind::OneWay | Kind::Unknown(_) => {
                let passed_over = 1 + deps.counters.passed_over.fetch_add(1, Ordering::Relaxed);
                let words = format!(
                    "server {} sent a message that means nothing to this version of the plugin; it was \
                     passed over, and {passed_over} were since the start",
                    self.caller.id
                );
                deps.log.limited(Level::Note, "passed over", words);
            }
            Kind::Response => return Err(CloseReason::Frame(FrameError::Kind)),
        }
        Ok(())
    }
}

/// Moves every request on until one is answered. All are polled whenever the task wakes: there are
/// few, and telling them apart would cost a task each.
async fn next_answer(in_flight: &mut Vec<(u32, Answer)>) -> (u32, Option<Body>) {
    poll_fn(|cx| {
        for (at, (request, answer)) in in_flight.iter_mut().enumerate() {
            if let Poll::Ready(body) = answer.as_mut().poll(cx) {
                let request = *request;
                drop(in_flight.swap_remove(at));
                return Poll::Ready((request, body));
            }
        }
        Poll::Pending
    })
    .await
}
