//! The side that is dialled: binds, lets members in, keeps everybody else out, and hands each
//! request to a [`Service`].
//!
//! Leaves to the service who is a member and what a request means. Invariants:
//! - No byte of a frame is read from, or sent to, an end whose certificate was not verified; and
//!   no request is served whose sender names an id that is not its certificate's.
//! - An end that would not be let in now, by its certificate or by the service, is neither heard
//!   nor answered any more: its connection is closed at once, with what is being served on it.
//! - Whoever shows no first frame in time is closed; connections, handshakes and requests are
//!   bounded in number. When there are too many handshakes the oldest one gives way, so that
//!   silent strangers cannot keep a member out.
//! - An address whose handshakes come to nothing too often is closed before anything is computed
//!   for it ([`Knocks`]).
//! - Whoever begins with a version that is not spoken here is told which ones are; an answer is in
//!   the version of its request.
//! - One task per connection; requests are begun in the order in which they came, and a note is
//!   dealt with before anything that came after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::{poll_fn, Future};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout_at, Instant};

use super::binding::{Bound, Lookout};
use super::frame::{
    self, Body, ClusterId, Event, FrameError, Header, Kind, NoCommonVersion, Role, Versions, Wire,
    WireError, NOTICE,
};
use super::places::{Place, Places, Source};
pub use super::places::{CONNECTIONS_PER_MEMBER, SPARE_CONNECTIONS};
use super::tls::{fingerprint, subject_line, HandshakeError, Stream, Tls};
use super::trust::{polled, Trust};
use super::{
    tune, Alarm, Bounds, Cause, Counters, LastSeen, Me, FRAME_LIMIT, HANDSHAKE_LIMIT, IDLE_LIMIT,
    MAX_IN_FLIGHT,
};
use crate::core::config::Member;
use crate::core::knocks::{Allowance, Knocks, Token, STRANGERS};
use crate::core::moment::Moment;
use crate::core::server_id::ServerId;
use crate::log_sink::{Level, Log};
use crate::supervise::{fail_point, kept_alive};

/// Handshakes that may be under way at a time, strangers' among them; in a group of more members,
/// as many as it has, since all of them may come at once.
pub const MAX_HANDSHAKES: usize = 64;

/// The pause after the system could not accept, for instance for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// How long the log says nothing more of addresses that are over their rate: a flood goes on.
const OVER_RATE_QUIET: Duration = Duration::from_secs(60);

/// The most verified connections that are kept for a list of this many members.
pub const fn max_connections(members: usize) -> usize {
    members.saturating_mul(CONNECTIONS_PER_MEMBER).saturating_add(SPARE_CONNECTIONS)
}

/// Where to listen and how much to bear.
#[derive(Clone, Debug)]
pub struct ListenSettings {
    /// Listen there and nowhere else: an address of this machine or a name for one.
    pub bind_address: Option<String>,
    /// Otherwise listen there if it is this machine's, else on all interfaces until it is.
    pub address: String,
    /// TCP port; 0 lets the system pick one.
    pub port: u16,
    /// The members of the list.
    pub members: Vec<Member>,
    /// The other bounds.
    pub bounds: Bounds,
}

/// What a listener shares with the rest of the server.
#[derive(Clone)]
pub struct ListenDeps {
    /// Where lines go.
    pub log: Log,
    /// Certificates; a new connection uses the newest.
    pub tls: watch::Receiver<Tls>,
    /// What this server says of itself in a response.
    pub me: Me,
    /// Where it is noted who was heard when.
    pub heard: LastSeen,
    /// Where refusals are counted.
    pub counters: Arc<Counters>,
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The sender's id in the server list.
    pub id: ServerId,
    /// As what it speaks.
    pub role: Role,
    /// The protocol version that it speaks on this connection, and that it is answered in.
    pub version: u8,
    /// The run of its process.
    pub incarnation: u64,
    /// Its cluster incarnation when it sent this request.
    pub cluster_id: ClusterId,
    /// Where it dialled from.
    pub addr: SocketAddr,
    /// Its certificate's subject.
    pub subject: Arc<str>,
}

/// Why a verified sender is not heard. It is told, and so can tell its operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its id is not in this server's server list.
    NotAMember,
    /// It has this server's own id.
    OwnId,
    /// Its cluster incarnation is not acceptable here.
    Cluster,
    /// Another server with the same id is up at the listed address.
    DuplicateId,
    /// Its certificate is another server's.
    Certificate,
    /// Something else, or a reason that a newer version gave.
    Other,
}

impl Refusal {
    pub(super) fn code(self) -> u8 {
        match self {
            Refusal::Other => 0,
            Refusal::NotAMember => 1,
            Refusal::OwnId => 2,
            Refusal::Cluster => 3,
            Refusal::DuplicateId => 4,
            Refusal::Certificate => 5,
        }
    }

    pub(super) fn from_code(code: u8) -> Refusal {
        match code {
            1 => Refusal::NotAMember,
            2 => Refusal::OwnId,
            3 => Refusal::Cluster,
            4 => Refusal::DuplicateId,
            5 => Refusal::Certificate,
            _ => Refusal::Other,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NotAMember => "the sender's server_id is not in the receiver's server list",
            Refusal::OwnId => "the sender has the receiver's own server_id",
            Refusal::Cluster => "the sender's cluster incarnation is not the receiver's",
            Refusal::DuplicateId => {
                "another server with this server_id is up at the address in the server list; \
                 give each server its own server_id"
            }
            Refusal::Certificate => {
                "its certificate is not the one listed for this server_id; give each server the \
                 certificate whose subject is in its entry of the server list"
            }
            Refusal::Other => "the receiver does not hear the sender",
        })
    }
}

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// Asked at each request's header, before its body is read. Must not block.
    ///
    /// # Errors
    /// Why the sender is not heard; it is told so, and its connection closed.
    fn admit(&self, hello: &Header) -> Result<(), Refusal>;

    /// Takes a note, which gets no answer. `false` says that the body means nothing: the
    /// connection is closed. Runs in the connection's task and must not block.
    fn take_note(&self, from: &Caller, body: Body) -> bool;

    /// Answers one request. `None` says that the body is no request at all: the connection is
    /// closed. Requests of one connection are begun in order and go on side by side; the future
    /// is dropped if the connection ends. It runs in the connection's task and must not block.
    fn serve(
        self: Arc<Self>,
        from: Caller,
        body: Body,
    ) -> impl Future<Output = Option<Body>> + Send + 'static;
}

/// A listening server. Dropping it closes the port and every connection that came in by it.
pub struct Listener {
    task: JoinHandle<()>,
    bound: watch::Receiver<Vec<SocketAddr>>,
    gate: Arc<Gate>,
}

impl Listener {
    /// Starts to listen on the present tokio runtime. Where the port is in use it keeps trying
    /// and says so.
    pub fn start<S: Service>(
        settings: ListenSettings,
        deps: ListenDeps,
        service: Arc<S>,
    ) -> Listener {
        let (tell, bound) = watch::channel(Vec::new());
        let gate = Arc::new(Gate::new(&settings, &deps));
        let log = deps.log.clone();
        let bounds = settings.bounds;
        let door = Arc::new(Door { deps, service, gate: Arc::clone(&gate), bounds });
        let task = tokio::spawn(async move {
            let begin = || {
                let (settings, door, tell) = (settings.clone(), Arc::clone(&door), tell.clone());
                async move {
                    accept(&settings, &tell, door).await;
                }
            };
            kept_alive(&log, "listening for peers", begin).await;
        });
        Listener { task, bound, gate }
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
        *self.gate.list() = Listed::of(members);
    }

    /// Verified connections at this moment.
    pub fn connections(&self) -> usize {
        self.gate.places.taken()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all connections of one listener share.
struct Door<S> {
    deps: ListenDeps,
    service: Arc<S>,
    gate: Arc<Gate>,
    bounds: Bounds,
}

/// Counts who is inside and who is at the door.
struct Gate {
    handshakes: Mutex<BTreeMap<u64, AbortHandle>>,
    places: Arc<Places>,
    list: Mutex<Listed>,
    knocks: Mutex<Knocks>,
    /// The zero of the clock that `knocks` goes by.
    since: Instant,
    heard: LastSeen,
    counters: Arc<Counters>,
}

/// What a gate knows of the server list.
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

impl Gate {
    fn new(settings: &ListenSettings, deps: &ListenDeps) -> Gate {
        Gate {
            handshakes: Mutex::default(),
            places: Places::new(settings.bounds.spare),
            list: Mutex::new(Listed::of(&settings.members)),
            knocks: Mutex::default(),
            since: Instant::now(),
            heard: deps.heard.clone(),
            counters: Arc::clone(&deps.counters),
        }
    }

    fn list(&self) -> MutexGuard<'_, Listed> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many members the list has, if one of them is at this address.
    fn members_at(&self, ip: IpAddr) -> Option<usize> {
        let list = self.list();
        let is_listed = list.addresses.contains(&ip.to_canonical());
        (is_listed || self.heard.is_at(ip)).then_some(list.count)
    }

    /// Asks for a handshake with this address; how many it may have if it had too many.
    fn knock(&self, ip: IpAddr) -> Result<Token, Allowance> {
        let members = self.members_at(ip);
        let now = Moment::from_start(self.since.elapsed());
        let mut knocks = self.knocks.lock().unwrap_or_else(PoisonError::into_inner);
        let token = knocks.take(ip, members, now);
        token.ok_or_else(|| members.map_or(STRANGERS, Allowance::of_members))
    }

    /// Notes the handshake that `spawn` begins; if there are too many, the oldest one ends.
    fn begin(&self, serial: u64, spawn: impl FnOnce() -> AbortHandle) {
        let oldest = {
            // Locked while the task is made, so that its end cannot be noted before its begin.
            let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
            handshakes.insert(serial, spawn());
            let members = self.list().count;
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

    fn end(&self, serial: u64) {
        self.handshakes.lock().unwrap_or_else(PoisonError::into_inner).remove(&serial);
    }
}

/// A handshake under way; it is over when this is dropped.
struct Handshake {
    gate: Arc<Gate>,
    serial: u64,
    token: Option<Token>,
}

impl Handshake {
    /// It ended well, and so costs its address nothing.
    fn succeed(mut self) {
        if let Some(token) = self.token.take() {
            self.gate.knocks.lock().unwrap_or_else(PoisonError::into_inner).give_back(token);
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.gate.end(self.serial);
    }
}

/// Accepts for ever. All connections end with this future.
async fn accept<S: Service>(
    settings: &ListenSettings,
    tell: &watch::Sender<Vec<SocketAddr>>,
    door: Arc<Door<S>>,
) {
    let mut bound = Bound::new(settings, &door.deps.log).await;
    tell.send_replace(bound.addresses());
    let mut lookout = Lookout::new(settings, &bound);
    let mut connections = JoinSet::new();
    let mut serial = 0;
    loop {
        let accepted = tokio::select! {
            accepted = poll_fn(|cx| bound.poll_accept(cx)) => accepted,
            () = lookout.wanted_is_there(settings) => {
                // Those that are connected stay; the port has to be free for the move.
                drop(bound);
                bound = Bound::new(settings, &door.deps.log).await;
                lookout = Lookout::new(settings, &bound);
                tell.send_replace(bound.addresses());
                continue;
            }
            // Reaps what has ended.
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((tcp, addr)) => {
                fail_point("accept");
                let token = match door.gate.knock(addr.ip()) {
                    Ok(token) => Some(token),
                    Err(allowance) => {
                        door.turn_away(addr, allowance);
                        continue;
                    }
                };
                serial += 1;
                let gate = Arc::clone(&door.gate);
                let handshake = Handshake { gate: Arc::clone(&gate), serial, token };
                let door = Arc::clone(&door);
                gate.begin(serial, || connections.spawn(door.receive(tcp, addr, handshake)));
            }
            // Whoever dialled is gone already; the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                let line = format!("cannot accept connections from peers: {error}; trying again");
                door.deps.log.limited(Level::Warning, "accept", line);
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// How a connection that came in ended.
#[derive(Debug)]
enum End {
    Handshake(HandshakeError),
    TooSlow(&'static str),
    GaveWay(Option<ServerId>),
    Untrusted(HandshakeError),
    Refused(ServerId, Refusal),
    OtherSender,
    BadKind,
    BadBody(ServerId),
    NoVersion(ServerId, NoCommonVersion),
    Frame(FrameError),
    Lost(io::Error),
    Closed,
    Silent,
    Idle,
    Aged,
}

impl End {
    /// What to count, how loud to be, and the words.
    fn assess(&self) -> (Option<Cause>, Level, String) {
        let refused = |cause, words: String| (Some(cause), Level::Warning, words);
        match self {
            End::Handshake(error) => {
                let cause = cause_of(error);
                let level = if cause == Cause::ClosedEarly { Level::Debug } else { Level::Warning };
                (Some(cause), level, error.to_string())
            }
            End::TooSlow(what) => refused(Cause::TooSlow, format!("{what} took too long")),
            End::GaveWay(Some(id)) => {
                let words = format!("server_id {id} has too many; it gave way to a newer one");
                refused(Cause::OverLimit, words)
            }
            End::GaveWay(None) => refused(
                Cause::OverLimit,
                "too many tools or silent ends are connected; it gave way to a newer one"
                    .to_owned(),
            ),
            End::Untrusted(error) => {
                refused(cause_of(error), format!("it is no longer trusted: {error}"))
            }
            End::Refused(id, refusal) => {
                let cause = match refusal {
                    Refusal::NotAMember => Cause::NotAMember,
                    Refusal::Certificate => Cause::OtherCertificate,
                    _ => Cause::Refused,
                };
                refused(cause, format!("it calls itself server_id {id}, but {refusal}"))
            }
            End::OtherSender => {
                refused(Cause::BadFrame, "it changed its server_id on one connection".to_owned())
            }
            End::BadKind => {
                refused(Cause::BadFrame, "it sent a frame that asks nothing".to_owned())
            }
            End::BadBody(id) => {
                refused(Cause::BadFrame, format!("server_id {id} sent a request without meaning"))
            }
            End::NoVersion(id, error) => {
                refused(Cause::Version, format!("it calls itself server_id {id}, and {error}"))
            }
            End::Frame(error @ FrameError::Version(_)) => {
                refused(Cause::Version, error.to_string())
            }
            End::Frame(error) => refused(Cause::BadFrame, error.to_string()),
            End::Lost(error) => (None, Level::Debug, format!("the connection was lost: {error}")),
            End::Closed => (None, Level::Debug, "it closed the connection".to_owned()),
            End::Silent => (
                Some(Cause::ClosedEarly),
                Level::Debug,
                "it closed the connection before its first frame".to_owned(),
            ),
            End::Aged => {
                (None, Level::Debug, "it stood for as long as a connection may".to_owned())
            }
            End::Idle => (None, Level::Debug, "the connection was idle".to_owned()),
        }
    }
}

fn cause_of(error: &HandshakeError) -> Cause {
    match error {
        HandshakeError::NoCertificate => Cause::NoCertificate,
        HandshakeError::Untrusted(_) => Cause::Untrusted,
        HandshakeError::WrongSubject(_) => Cause::WrongSubject,
        HandshakeError::NotListed(_) => Cause::OtherCertificate,
        HandshakeError::NotOurTls(_) => Cause::NotOurTls,
        HandshakeError::RefusedUs(_) => Cause::RefusedUs,
        HandshakeError::Closed => Cause::ClosedEarly,
        HandshakeError::Library(_) => Cause::Library,
    }
}

impl<S: Service> Door<S> {
    /// Tells of a connection that is closed before anything was computed for it.
    fn turn_away(&self, addr: SocketAddr, allowance: Allowance) {
        self.deps.counters.count(Cause::OverRate);
        let Allowance { burst, per_second } = allowance;
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
        let (cause, level, words) = end.assess();
        let log = &self.deps.log;
        match cause {
            Some(cause) => {
                self.deps.counters.count(cause);
                // One subject per cause: a flood from many addresses stays one line.
                let subject = format!("refused {cause:?}");
                log.limited(level, &subject, format!("refused {addr}: {words}"));
            }
            None => log.debug(format!("peer connection from {addr} ended: {words}")),
        }
    }

    async fn converse(&self, tcp: TcpStream, addr: SocketAddr, handshake: Handshake) -> End {
        let deadline = Instant::now() + HANDSHAKE_LIMIT;
        fail_point("connection");
        tune(&tcp);
        let mut newest = self.deps.tls.clone();
        let tls = newest.borrow_and_update().clone();
        let stream = match timeout_at(deadline, tls.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return End::Handshake(error),
            Err(_) => return End::TooSlow("its TLS handshake"),
        };
        handshake.succeed();
        self.deps.counters.accepted.fetch_add(1, Ordering::Relaxed);
        let trust = match Trust::new(newest, None, &stream) {
            Ok(trust) => trust,
            Err(error) => return End::Untrusted(error),
        };
        let leaf = fingerprint(trust.leaf());
        let mut conversation = Conversation {
            door: self,
            place: self.gate.places.enter(Source { leaf, ip: addr.ip() }),
            addr,
            subject: subject_line(trust.leaf()).into(),
            trust,
            ends: Instant::now() + self.bounds.max_age,
            hello: None,
            wire: Wire::new(stream, self.deps.me.versions()),
            foreign: None,
            parting: None,
            caller: None,
            request: (Kind::Note, 0),
            in_flight: Vec::new(),
            ready: VecDeque::new(),
            refused: None,
            last: Instant::now(),
            first: deadline,
            alarm: Alarm::new(deadline),
        };
        polled(self.deps.tls.clone(), |cx| conversation.poll(cx)).await
    }
}

type Answer = Pin<Box<dyn Future<Output = Option<Body>> + Send>>;

/// A verified connection: requests in, responses out.
struct Conversation<'a, S> {
    door: &'a Door<S>,
    place: Place,
    addr: SocketAddr,
    /// Whose certificate the other end has.
    subject: Arc<str>,
    trust: Trust,
    /// Until when it may campaign.
    ends: Instant,
    /// What the other end said of itself last.
    hello: Option<Header>,
    wire: Wire<Stream>,
    /// The version that the other end began with, if it is not spoken here: it was told so.
    foreign: Option<u8>,
    /// Who is about to say that it speaks none of ours either.
    parting: Option<ServerId>,
    /// Who is at the other end, as its first header said; the cluster incarnation is the latest.
    caller: Option<Caller>,
    /// The kind and the id of the frame whose body is being read.
    request: (Kind, u32),
    /// Requests that are being served, at most [`MAX_IN_FLIGHT`].
    in_flight: Vec<(u32, Answer)>,
    /// Responses that wait for their turn; they count towards [`MAX_IN_FLIGHT`] as well.
    ready: VecDeque<Body>,
    /// Set once the sender is refused: the connection ends when it was told.
    refused: Option<(ServerId, Refusal)>,
    last: Instant,
    /// Until when the first frame must be there.
    first: Instant,
    alarm: Alarm,
}

impl<S: Service> Conversation<'_, S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.place.poll_given_up(cx).is_ready() {
            return Poll::Ready(End::GaveWay(self.caller.as_ref().map(|caller| caller.id)));
        }
        loop {
            let assessed = self.assess().and_then(|()| self.poll_answers(cx));
            // What an answer tells may be newer than the last look.
            if let Err(end) = assessed.and_then(|()| self.assess()) {
                return Poll::Ready(end);
            }
            if !self.wire.is_sending() {
                if let Some(frame) = self.ready.pop_front() {
                    self.wire.send(frame);
                } else if let (Some((id, refusal)), false) = (self.refused, self.wire.is_reading())
                {
                    return Poll::Ready(End::Refused(id, refusal));
                }
            }
            // Whatever was begun is read to its end, also a refused sender's request: closing
            // on top of unread bytes could take the refusal away from it.
            let has_room = self.in_flight.len() + self.ready.len() < MAX_IN_FLIGHT;
            let may_read = self.wire.is_reading() || (has_room && self.refused.is_none());
            let event = match self.wire.poll(cx, may_read) {
                Poll::Ready(Ok(event)) => event,
                Poll::Ready(Err(WireError::Frame(error))) => return Poll::Ready(End::Frame(error)),
                Poll::Ready(Err(WireError::Io(error))) => return Poll::Ready(End::Lost(error)),
                Poll::Pending => break,
            };
            if let Err(end) = self.assess().and_then(|()| self.take(event)) {
                return Poll::Ready(end);
            }
        }
        self.poll_alarm(cx)
    }

    /// Whether the other end would still be let in, if anything changed since the last look.
    fn assess(&mut self) -> Result<(), End> {
        let assessed = match (self.trust.check(), &self.hello) {
            (Err(error), _) => Err(End::Untrusted(error)),
            (Ok(true), Some(hello)) if self.refused.is_none() => {
                self.admit(hello).map_err(|refusal| End::Refused(hello.sender, refusal))
            }
            _ => Ok(()),
        };
        assessed.inspect_err(|_| self.wire.stream().get_ref().discard_unsent())
    }

    fn take(&mut self, event: Event) -> Result<(), End> {
        self.last = Instant::now();
        match event {
            Event::Sent => Ok(()),
            Event::Head(header) => self.take_head(&header),
            Event::Foreign(version) => self.take_foreign(version),
            Event::Body(body) => self.take_body(body),
            Event::Closed if self.caller.is_none() && self.foreign.is_some() => {
                Err(self.unspoken())
            }
            Event::Closed if self.caller.is_none() => Err(End::Silent),
            Event::Closed => Err(End::Closed),
        }
    }

    /// Tells the other end, once, which versions are spoken here. Until its first frame in one of
    /// them it has no more time than anybody.
    fn take_foreign(&mut self, version: u8) -> Result<(), End> {
        if self.caller.is_some() {
            return Err(End::Frame(FrameError::Version(version)));
        }
        if self.foreign.replace(version).is_none() {
            self.ready.push_back(self.door.deps.me.notice().map_err(End::Frame)?);
        }
        Ok(())
    }

    /// How it ends with one that was told of our versions, and said nothing more.
    fn unspoken(&self) -> End {
        End::Frame(FrameError::Version(self.foreign.unwrap_or(NOTICE)))
    }

    fn take_head(&mut self, header: &Header) -> Result<(), End> {
        if header.version == NOTICE {
            if self.foreign.is_none() || self.caller.is_some() {
                return Err(End::BadKind);
            }
            self.parting = Some(header.sender);
            return Ok(());
        }
        let now = Caller {
            id: header.sender,
            role: header.role,
            version: header.version,
            incarnation: header.incarnation,
            cluster_id: header.cluster_id,
            addr: self.addr,
            subject: Arc::clone(&self.subject),
        };
        let before = self.caller.as_ref().unwrap_or(&now);
        if (before.id, before.role, before.incarnation) != (now.id, now.role, now.incarnation) {
            return Err(End::OtherSender);
        }
        if before.version != now.version {
            return Err(End::Frame(FrameError::Version(now.version)));
        }
        if !matches!(header.kind, Kind::Request | Kind::Note | Kind::Hello) {
            return Err(End::BadKind);
        }
        self.caller = Some(now);
        let admitted = self.admit(header);
        if self.hello.is_none() && admitted.is_ok() && header.role == Role::Member {
            self.place.belongs_to(header.sender);
        }
        if let Err(refusal) = admitted {
            self.refused = Some((header.sender, refusal));
            self.answer(header.request, Kind::Refused, &[refusal.code()])?;
        }
        (self.hello, self.request) = (Some(*header), (header.kind, header.request));
        Ok(())
    }

    /// Whether the sender is heard: the service says who is a member, the certificate who it is.
    /// Asked at each header, since a new server list counts for connections that are up, too.
    fn admit(&self, header: &Header) -> Result<(), Refusal> {
        let admitted = self.door.service.admit(header);
        if admitted != Err(Refusal::NotAMember)
            && !self.door.deps.tls.borrow().is_of(header.sender, &self.subject)
        {
            return Err(Refusal::Certificate);
        }
        admitted
    }

    fn take_body(&mut self, body: Body) -> Result<(), End> {
        if self.refused.is_some() {
            return Ok(());
        }
        if let Some(id) = self.parting {
            let ours = self.door.deps.me.versions();
            return Err(match Versions::of_notice(&body) {
                Some(theirs) => End::NoVersion(id, NoCommonVersion { theirs, ours }),
                None => self.unspoken(),
            });
        }
        // A body always follows its header, which set the caller unless it was a foreign one.
        let Some(caller) = self.caller.clone() else { return Ok(()) };
        if caller.role == Role::Member {
            self.door.deps.heard.record_from(caller.id, self.last, self.addr.ip());
        }
        let request = match self.request {
            (Kind::Request, request) => request,
            (Kind::Hello, request) => return self.answer(request, Kind::Response, &[]),
            _ => {
                return match self.door.service.take_note(&caller, body) {
                    true => Ok(()),
                    false => Err(End::BadBody(caller.id)),
                }
            }
        };
        self.door.deps.counters.requests.fetch_add(1, Ordering::Relaxed);
        let answer = Arc::clone(&self.door.service).serve(caller, body);
        self.in_flight.push((request, Box::pin(answer)));
        Ok(())
    }

    /// Moves every request on. All are polled whenever the task wakes: there are few, and
    /// telling them apart would cost a task each.
    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let mut at = 0;
        while let Some((request, answer)) = self.in_flight.get_mut(at) {
            match answer.as_mut().poll(cx) {
                Poll::Pending => at += 1,
                Poll::Ready(None) => {
                    return Err(End::BadBody(self.caller.as_ref().map_or(ServerId(0), |c| c.id)))
                }
                Poll::Ready(Some(body)) => {
                    let request = *request;
                    drop(self.in_flight.remove(at));
                    self.answer(request, Kind::Response, &body)?;
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, request: u32, kind: Kind, body: &[u8]) -> Result<(), End> {
        // Only a caller is answered, and its version stays the same.
        let version = self.caller.as_ref().map_or(NOTICE, |caller| caller.version);
        let header = self.door.deps.me.header(version, request, kind);
        self.ready.push_back(frame::encode(&header, body).map_err(End::Frame)?);
        Ok(())
    }

    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let now = Instant::now();
        let active = if self.in_flight.is_empty() { self.last } else { now };
        let mut deadline = active + IDLE_LIMIT;
        let mut end = End::Idle;
        if let Some(begun) = self.wire.begun() {
            deadline = begun + FRAME_LIMIT;
            end = End::TooSlow("a frame");
        }
        if self.caller.is_none() && self.first < deadline {
            deadline = self.first;
            end = match self.foreign {
                Some(_) => self.unspoken(),
                None => End::TooSlow("its first frame"),
            };
        }
        if self.ends < deadline {
            (deadline, end) = (self.ends, End::Aged);
        }
        loop {
            ready!(self.alarm.poll(cx, deadline.min(self.trust.due)));
            if deadline <= Instant::now() {
                return Poll::Ready(end);
            }
            if let Err(end) = self.assess() {
                return Poll::Ready(end);
            }
        }
    }
}
