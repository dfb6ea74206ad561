//! The network between the servers, message by message, in place of TLS connections.
//!
//! A message may be delayed, lost, doubled and overtaken, each link in each direction by itself.
//! What connections do for the plugin is kept: a server that is not there refuses at once, a request
//! to a process that ended in the meantime comes back as a broken connection, an answer reaches
//! only the run that asked, and a peer that could not be reached is not dialled for a while.
//! Doubling and overtaking are harsher than TCP, which does neither within a connection.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use stek_share::core::config::Member;
use stek_share::core::server_id::ServerId;
use stek_share::node::environment::{Reply, Service, SimulatedNetwork};
use stek_share::transport::frame::{Hello, Role};
use stek_share::transport::listener::{Caller, Refusal};
use stek_share::transport::peers::CallError;
use stek_share::transport::{Body, LastSeen, LocalIdentity, Versions};
use tokio::sync::oneshot;
use tokio::time::{timeout, Instant};

use crate::rng::Rng;

/// Pauses before an unreachable server is dialled again, as `transport::peers` has them.
const REDIAL_MIN: Duration = Duration::from_millis(50);
const REDIAL_MAX: Duration = Duration::from_secs(1);

/// What a message on one link, in one direction, goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    /// Lost messages of a thousand.
    pub loss: u64,
    /// Doubled messages of a thousand.
    pub double: u64,
    /// The delay in nanoseconds, at least and at most.
    pub delay: (u64, u64),
    /// What arrives within so many nanoseconds arrives at once, as at a machine that has other
    /// things to do.
    pub burst: u64,
}

impl Link {
    /// A link with the ills of both.
    pub fn worse(self, other: Link) -> Link {
        Link {
            cut: self.cut || other.cut,
            loss: self.loss.max(other.loss),
            double: self.double.max(other.double),
            delay: (self.delay.0.max(other.delay.0), self.delay.1.max(other.delay.1)),
            burst: self.burst.max(other.burst),
        }
    }
}

/// What a server's process is given by the network.
pub enum Arrival {
    /// Another server asks.
    Request(Request),
    /// Another server tells something and wants no answer.
    Note(Request),
    /// Another server, or the network in its stead, answers a request.
    Answer(Answer),
    /// A process on another machine has ended, and its system closed the connections to it.
    Closed(u32),
}

/// A request on its way.
#[derive(Clone)]
pub struct Request {
    call: u64,
    from: u32,
    hello: Hello,
    body: Body,
    to_run: u64,
}

/// An answer on its way: from which incarnation, or why there is none.
#[derive(Clone)]
pub struct Answer {
    call: u64,
    from: u32,
    run: u64,
    result: Result<(u64, Body), CallError>,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Messages sent, answers among them.
    pub sent: u64,
    /// Messages that did not arrive.
    pub lost: u64,
    /// Messages that arrived twice.
    pub doubled: u64,
}

/// A handle to the network; clones share it.
#[derive(Clone)]
pub struct Network(Arc<Mutex<Inner>>);

/// Somebody who waits for an answer.
struct Asked {
    reply: oneshot::Sender<Result<Body, CallError>>,
    /// Whether it asked by its line to a member.
    by_line: bool,
}

struct Inner {
    now: u64,
    rng: Rng,
    links: BTreeMap<(u32, u32), Link>,
    usual: Link,
    ports: BTreeMap<u32, Port>,
    waiting: BTreeMap<u64, Asked>,
    on_the_way: BinaryHeap<Reverse<(u64, u64, u32)>>,
    letters: BTreeMap<u64, Arrival>,
    serial: u64,
    counts: Counts,
}

/// Where one server can be reached.
#[derive(Default)]
struct Port {
    /// Counts the runs of its process; 0 while there is none.
    run: u64,
    /// Whether its machine is off, so that nobody says that there is no process.
    is_off: bool,
    service: Option<Arc<dyn Service>>,
    me: Option<LocalIdentity>,
    heard: Option<LastSeen>,
}

impl Network {
    /// A network whose links all are as `usual`.
    pub fn new(rng: Rng, usual: Link) -> Network {
        Network(Arc::new(Mutex::new(Inner {
            now: 0,
            rng,
            links: BTreeMap::new(),
            usual,
            ports: BTreeMap::new(),
            waiting: BTreeMap::new(),
            on_the_way: BinaryHeap::new(),
            letters: BTreeMap::new(),
            serial: 0,
            counts: Counts::default(),
        })))
    }

    /// Sets the time, in nanoseconds of the world.
    pub fn set_now(&self, now: u64) {
        self.lock().now = now;
    }

    /// When the next message arrives anywhere.
    pub fn next(&self) -> Option<u64> {
        self.lock().on_the_way.peek().map(|Reverse((at, ..))| *at)
    }

    /// A message that has arrived by now, and at whose machine.
    pub fn arrived(&self) -> Option<(u32, Arrival)> {
        let mut inner = self.lock();
        let Reverse((at, serial, to)) = *inner.on_the_way.peek()?;
        if at > inner.now {
            return None;
        }
        inner.on_the_way.pop();
        inner.letters.remove(&serial).map(|letter| (to, letter))
    }

    /// Changes one link; without `link` it is as usual again.
    pub fn set_link(&self, from: u32, to: u32, link: Option<Link>) {
        let mut inner = self.lock();
        match link {
            Some(link) => inner.links.insert((from, to), link),
            None => inner.links.remove(&(from, to)),
        };
    }

    /// A process begins on this machine; its mail.
    pub fn connect(&self, id: u32, run: u64) -> Arc<PeerTransport> {
        self.lock().ports.insert(id, Port { run, ..Port::default() });
        Arc::new(PeerTransport {
            network: self.clone(),
            id,
            run,
            members: Mutex::default(),
            lines: Mutex::default(),
            me: OnceLock::new(),
            heard: OnceLock::new(),
        })
    }

    /// The process on this machine is gone.
    pub fn disconnect(&self, id: u32) {
        // What the port holds of the process is dropped without the lock.
        let _port = self.lock().ports.insert(id, Port::default());
    }

    /// The machine is off until a process begins on it.
    pub fn switch_off(&self, id: u32) {
        let _port = self.lock().ports.insert(id, Port { is_off: true, ..Port::default() });
    }

    /// What arrives on a machine without a process: its system says that nobody listens, or that
    /// the connection is none any more.
    pub fn refuse(&self, at: u32, arrival: Arrival) {
        let Arrival::Request(Request { call, from, to_run, .. }) = arrival else { return };
        let mut inner = self.lock();
        if inner.ports.get(&at).is_none_or(|port| !port.is_off) {
            let nobody = CallError::NobodyListens("nobody listens there".into());
            let why = if to_run == 0 { nobody } else { unreachable("the connection broke") };
            inner.answer(at, from, call, Err(why));
        }
    }

    /// The system of a machine closes its ended process's connections. Not so after a power cut,
    /// and not where the network is cut: the others then find out when they ask it something.
    pub fn close_connections(&self, by: u32) {
        let mut inner = self.lock();
        let others: Vec<u32> = inner.ports.keys().copied().filter(|id| *id != by).collect();
        for to in others {
            if let Some(at) = inner.travel(by, to).first() {
                inner.post(*at, to, Arrival::Closed(by));
            }
        }
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Whether the server would hear a request with this hello, if it listens at all.
    pub fn would_admit(&self, at: u32, hello: &Hello) -> Option<Result<(), Refusal>> {
        let service = self.lock().ports.get(&at)?.service.clone()?;
        Some(service.admit(hello))
    }

    /// Gives a server what arrived; has to be called inside its runtime.
    pub fn deliver(&self, at: u32, arrival: Arrival) {
        match arrival {
            Arrival::Answer(answer) => self.take_answer(at, answer),
            Arrival::Request(request) => self.take_request(at, request),
            Arrival::Note(note) => self.take_one_way(at, note),
            Arrival::Closed(by) => {
                let heard = self.lock().ports.get(&at).and_then(|port| port.heard.clone());
                if let Some(heard) = heard {
                    heard.forget_answer(ServerId(by));
                    heard.record_lost(ServerId(by));
                }
            }
        }
    }

    fn take_answer(&self, at: u32, answer: Answer) {
        let (reply, heard) = {
            let mut inner = self.lock();
            let Some(port) = inner.ports.get(&at).filter(|port| port.run == answer.run) else {
                return;
            };
            let heard = port.heard.clone();
            (inner.waiting.remove(&answer.call), heard)
        };
        // Only a line that stays tells who answers at a member's address.
        let by_line = reply.as_ref().is_some_and(|asked| asked.by_line);
        let result = answer.result.map(|(incarnation, body)| {
            if let Some(heard) = heard.filter(|_| by_line) {
                heard.record_answer(ServerId(answer.from), incarnation, Instant::now());
            }
            body
        });
        if let Some(asked) = reply {
            let _ = asked.reply.send(result);
        }
    }

    fn take_one_way(&self, at: u32, note: Request) {
        let (service, heard) = {
            let inner = self.lock();
            let Some(port) = inner.ports.get(&at).filter(|port| port.run == note.to_run) else {
                return;
            };
            (port.service.clone(), port.heard.clone())
        };
        let (Some(service), Some(heard)) = (service, heard) else { return };
        if service.admit(&note.hello).is_ok() {
            heard.record(note.hello.sender, Instant::now());
            service.take_one_way(&caller(note.from, &note.hello), note.body);
        }
    }

    fn take_request(&self, at: u32, request: Request) {
        let (service, heard, me, run) = {
            let inner = self.lock();
            let Some(port) = inner.ports.get(&at) else { return };
            (port.service.clone(), port.heard.clone(), port.me.clone(), port.run)
        };
        let Request { call, from, hello, body, to_run } = request;
        let fail = |error| self.lock().answer(at, from, call, Err(error));
        if to_run != run {
            return fail(unreachable("the connection broke"));
        }
        let (Some(service), Some(heard), Some(me)) = (service, heard, me) else {
            return fail(CallError::NobodyListens("nobody listens there".into()));
        };
        if let Err(refusal) = service.admit(&hello) {
            return fail(CallError::Refused(refusal));
        }
        heard.record(hello.sender, Instant::now());
        let caller = caller(from, &hello);
        let network = self.clone();
        tokio::spawn(async move {
            let answer = service.serve(caller, body).await;
            let incarnation = me.incarnation();
            let result = match answer {
                Some(body) => Ok((incarnation, body)),
                None => Err(unreachable("the connection was closed")),
            };
            let mut inner = network.lock();
            // A process that has ended answers nothing.
            if inner.ports.get(&at).is_some_and(|port| port.run == run) {
                inner.answer(at, from, call, result);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn caller(from: u32, hello: &Hello) -> Caller {
    Caller {
        id: hello.sender,
        role: hello.role,
        version: hello.versions.max,
        incarnation: hello.incarnation,
        cluster_id: hello.cluster_id,
        addr: ([10, 0, 0, from as u8], 1).into(),
        names: "/CN=simulated".into(),
    }
}

fn unreachable(words: &str) -> CallError {
    CallError::Unreachable(words.into())
}

impl Inner {
    fn link(&self, from: u32, to: u32) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or(self.usual)
    }

    fn run_of(&self, id: u32) -> u64 {
        self.ports.get(&id).map_or(0, |port| port.run)
    }

    fn ask(
        &mut self,
        (from, to): (u32, u32),
        to_run: u64,
        (hello, body): (Hello, Body),
        asked: Asked,
    ) -> u64 {
        self.serial += 1;
        let call = self.serial;
        self.waiting.insert(call, asked);
        let request = Request { call, from, hello, body, to_run };
        for at in self.travel(from, to) {
            self.post(at, to, Arrival::Request(request.clone()));
        }
        call
    }

    fn answer(&mut self, from: u32, to: u32, call: u64, result: Result<(u64, Body), CallError>) {
        let answer = Answer { call, from, run: self.run_of(to), result };
        for at in self.travel(from, to) {
            self.post(at, to, Arrival::Answer(answer.clone()));
        }
    }

    /// When the copies of a message sent now arrive.
    fn travel(&mut self, from: u32, to: u32) -> Vec<u64> {
        let link = self.link(from, to);
        self.counts.sent += 1;
        if link.cut || self.rng.chance(link.loss) {
            self.counts.lost += 1;
            return Vec::new();
        }
        let copies = 1 + usize::from(self.rng.chance(link.double));
        self.counts.doubled += copies as u64 - 1;
        let (least, most) = link.delay;
        (0..copies)
            .map(|_| (self.now + self.rng.between(least, most)).next_multiple_of(link.burst))
            .collect()
    }

    fn post(&mut self, at: u64, to: u32, letter: Arrival) {
        self.serial += 1;
        self.on_the_way.push(Reverse((at, self.serial, to)));
        self.letters.insert(self.serial, letter);
    }
}

/// One process's mail.
pub struct PeerTransport {
    network: Network,
    id: u32,
    run: u64,
    members: Mutex<Vec<Member>>,
    /// The lines to the others.
    lines: Mutex<BTreeMap<ServerId, Connection>>,
    me: OnceLock<LocalIdentity>,
    heard: OnceLock<LastSeen>,
}

/// The line to one other server, as the dialling side knows it.
#[derive(Clone, Copy)]
struct Connection {
    is_up: bool,
    /// The run of the process that the connection leads to.
    run: u64,
    pause: Duration,
    failed: Option<Instant>,
    /// Why it failed, if the other end refused this server.
    refused: Option<Refusal>,
}

impl Default for Connection {
    fn default() -> Connection {
        Connection { is_up: false, run: 0, pause: REDIAL_MIN, failed: None, refused: None }
    }
}

/// Forgets a call when its caller no longer waits.
struct Waiting(Network, u64);

impl Drop for Waiting {
    fn drop(&mut self) {
        let reply = self.0.lock().waiting.remove(&self.1);
        drop(reply);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PeerTransport {
    fn is_member(&self, id: ServerId) -> bool {
        lock(&self.members).iter().any(|member| member.id == id)
    }

    /// Why this server is not dialled again before a pause is over, if so: what the last attempt came
    /// to, as with the real line.
    fn barred(&self, to: ServerId) -> Option<CallError> {
        let line = lock(&self.lines).get(&to).copied().unwrap_or_default();
        let heard = self.heard.get().and_then(|heard| heard.last(to));
        let is_barred = line.failed.is_some_and(|at| {
            Instant::now() < at + line.pause && heard.is_none_or(|heard| heard <= at)
        });
        let unreached = || unreachable("it could not be reached a moment ago");
        is_barred.then(|| line.refused.map_or_else(unreached, CallError::Refused))
    }

    fn record(&self, to: ServerId, result: &Result<Body, CallError>) {
        let mut lines = lock(&self.lines);
        let line = lines.entry(to).or_default();
        match result {
            Ok(_) => *line = Connection { is_up: true, run: line.run, ..Connection::default() },
            Err(CallError::TimedOut) => line.is_up = false,
            // A line that was good may be dialled again at once.
            Err(_) if std::mem::take(&mut line.is_up) => {}
            Err(error) => {
                line.refused = match error {
                    CallError::Refused(refusal) => Some(*refusal),
                    _ => None,
                };
                if line.failed.replace(Instant::now()).is_some() {
                    line.pause = (line.pause * 2).min(REDIAL_MAX);
                }
            }
        }
        if let (Err(_), Some(heard)) = (result, self.heard.get()) {
            heard.forget_answer(to);
        }
    }

    /// Sends a request by the line to a member, or by a connection that is made for it alone.
    async fn exchange(
        &self,
        to: ServerId,
        body: Body,
        limit: Duration,
        by_line: bool,
    ) -> Result<Body, CallError> {
        let Some(me) = self.me.get() else { return Err(unreachable("not open")) };
        let hello = me.hello();
        let (reply, answer) = oneshot::channel();
        let run;
        let call = {
            let mut inner = self.network.lock();
            if inner.run_of(self.id) != self.run {
                return Err(unreachable("this process has ended"));
            }
            // A connection that is up leads to the process that it was made with, gone or not.
            let line = lock(&self.lines).get(&to).copied().unwrap_or_default();
            run = if by_line && line.is_up { line.run } else { inner.run_of(to.0) };
            inner.ask((self.id, to.0), run, (hello, body), Asked { reply, by_line })
        };
        let _waiting = Waiting(self.network.clone(), call);
        match timeout(limit, answer).await {
            Ok(Ok(Ok(body))) => {
                if by_line {
                    lock(&self.lines).entry(to).or_default().run = run;
                }
                Ok(body)
            }
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unreachable("the connection broke")),
            Err(_) => Err(CallError::TimedOut),
        }
    }
}

/// A [`PeerTransport`] that several hold.
pub struct Mailbox(pub Arc<PeerTransport>);

impl SimulatedNetwork for Mailbox {
    fn open(&self, me: &LocalIdentity, heard: &LastSeen) {
        let _ = self.0.me.set(me.clone());
        let _ = self.0.heard.set(heard.clone());
        if let Some(port) = self.0.network.lock().ports.get_mut(&self.0.id) {
            port.me = Some(me.clone());
            port.heard = Some(heard.clone());
        }
    }

    fn set_members(&self, members: &[Member]) {
        *lock(&self.0.members) = members.to_vec();
        lock(&self.0.lines).retain(|id, _| members.iter().any(|member| member.id == *id));
        if let Some(heard) = self.0.heard.get() {
            heard.retain(|id| members.iter().any(|member| member.id == id));
        }
    }

    fn request(&self, to: ServerId, body: Body, limit: Duration) -> Reply<Result<Body, CallError>> {
        let post = self.0.clone();
        Box::pin(async move {
            if !post.is_member(to) {
                return Err(CallError::UnknownPeer);
            }
            if let Some(error) = post.barred(to) {
                return Err(error);
            }
            let result = post.exchange(to, body, limit, true).await;
            // The line to one that is a member no longer was closed.
            if post.is_member(to) {
                post.record(to, &result)
            } else {
                lock(&post.lines).remove(&to);
            }
            result
        })
    }

    fn send_one_way(&self, to: ServerId, body: Body, _limit: Duration) {
        let Some(me) = self.0.me.get() else { return };
        let hello = me.hello();
        let line = lock(&self.0.lines).get(&to).copied().unwrap_or_default();
        let mut inner = self.0.network.lock();
        let (from, run) = (self.0.id, line.run);
        let lives = inner.run_of(from) == self.0.run;
        if !line.is_up || !lives {
            return;
        }
        if inner.run_of(to.0) != run && !inner.link(to.0, from).cut {
            // The system on the other machine says so.
            drop(inner);
            self.0.record(to, &Err(unreachable("the connection broke")));
            return;
        }
        let note = Request { call: 0, from, hello, body, to_run: run };
        for at in inner.travel(from, to.0) {
            inner.post(at, to.0, Arrival::Note(note.clone()));
        }
    }

    fn ask_unconnected(
        &self,
        member: &Member,
        body: Body,
        limit: Duration,
    ) -> Reply<Result<Body, CallError>> {
        let (post, to) = (self.0.clone(), member.id);
        Box::pin(async move { post.exchange(to, body, limit, false).await })
    }

    fn listen(&self, service: Arc<dyn Service>) -> Box<dyn Send + Sync> {
        if let Some(port) = self.0.network.lock().ports.get_mut(&self.0.id) {
            if port.run == self.0.run {
                port.service = Some(service);
            }
        }
        Box::new(Listening(self.0.clone()))
    }
}

/// Closes the port when it is dropped.
struct Listening(Arc<PeerTransport>);

impl Drop for Listening {
    fn drop(&mut self) {
        let service = {
            let mut inner = self.0.network.lock();
            let port = inner.ports.get_mut(&self.0.id).filter(|port| port.run == self.0.run);
            port.and_then(|port| port.service.take())
        };
        drop(service);
    }
}

/// The hello of a server that is in nobody's list, or of one that says it is another.
pub fn strangers_hello(id: u32, incarnation: u64) -> Hello {
    let (versions, sender) = (Versions::OURS, ServerId(id));
    Hello { versions, role: Role::Member, sender, incarnation, cluster_id: [0; 16] }
}
