//! The line to one peer: its task, the connection that it keeps while there is something to ask, and
//! the requests that are open on it.
//!
//! The invariants are those of [`super::peers`], which hands out the commands.

use std::convert::Infallible;
use std::fmt;
use std::future::{pending, Future};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, Instant};

use super::bounds::{IDLE_LIMIT, MAX_IN_FLIGHT};
use super::close_reason::CloseReason;
use super::connection::{Connection, Event};
use super::dial::{dial, greet, is_of_this_machine, tell_doubts, CallError, DialError};
use super::frame::{Body, FrameError, Header, Hello, Kind, Role};
use super::peer_command::{Line, PeerCommand, PendingRequest, MAX_QUEUE};
use super::tls::HandshakeError;
use super::trust::{renewal_after, Trust};
use crate::log_sink::Level;
use crate::supervise::{fail_point, kept_alive};

/// Pauses between two attempts to dial a peer: the first, and the longest.
const REDIAL_MIN: Duration = Duration::from_millis(5);
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

/// What waits to be sent on one line.
type Queue = mpsc::Receiver<PeerCommand>;

/// One peer's line, with a new beginning after each panic.
pub(super) async fn keep_connected(line: Arc<Line>, queue: Queue) {
    let (log, what) = (line.deps.log.clone(), format!("asking peer {}", line.member.id));
    kept_alive(&log, &what, (line, queue), |(line, queue)| {
        Box::pin(PeerConnection::new(Arc::clone(line)).run(queue))
    })
    .await;
}

/// The line to one peer: its task's state between connections.
struct PeerConnection {
    line: Arc<Line>,
    /// Whether the operator was told that the peer is up.
    told_up: bool,
    pause: Duration,
    /// No dialling before this, and why the last attempt came to nothing.
    barred: Option<(Instant, CallError)>,
    /// When the last attempt came to nothing.
    failed: Instant,
}

impl PeerConnection {
    fn new(line: Arc<Line>) -> PeerConnection {
        line.is_up.store(false, Ordering::SeqCst);
        let (pause, failed) = (REDIAL_MIN, Instant::now());
        PeerConnection { line, told_up: false, pause, barred: None, failed }
    }

    /// Waits for requests, dials, converses, and begins anew. Ends when the peer is dropped.
    async fn run(mut self, queue: &mut Queue) {
        while let Some(command) = queue.recv().await {
            let PeerCommand::Request(ask) = command else { continue };
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
                Ok(conversation) => self.converse(conversation, ask, queue).await,
                Err(error) => {
                    self.tell_trouble(&error);
                    self.fail(error.as_error(), Some(ask), queue);
                }
            }
        }
    }

    /// Makes a connection by the newest certificates, on which the peer has answered.
    async fn open(&self) -> Result<ClientConnection, DialError> {
        let (deps, member) = (&self.line.deps, &self.line.member);
        let mut newest = deps.tls.clone();
        let tls = newest.borrow_and_update().for_member(member);
        let found = deps.resolver.resolve(&member.address, member.port).await;
        let found = found.map_err(DialError::Resolve)?;
        tell_doubts(&deps.log, member, &found);
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
        let connection = Connection::new(stream, trust, deps.bounds.max_age);
        Ok(ClientConnection {
            line: Arc::clone(&self.line),
            received: connection.last,
            connection,
            leaf,
            incarnation: hello.incarnation,
            open: Vec::new(),
            last_id: 0,
            has_answered: false,
            suspect: None,
        })
    }

    /// Whether the peer has dialled us since we failed to dial it: then it is up, and waiting any
    /// longer would only delay an election or a command.
    fn heard_since_barred(&self) -> bool {
        self.line.deps.heard.last(self.line.member.id).is_some_and(|at| at > self.failed)
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
        self.line.deps.log.limited(level, &format!("peer {} {subject}", self.line.member.id), line);
    }

    /// Says which version is spoken if it is not the newest.
    fn tell_version(&self, hello: &Hello) {
        let (theirs, ours) = (hello.versions, self.line.deps.me.versions());
        if let Some(version) = ours.common(theirs).ok().filter(|version| *version < ours.max) {
            let (name, subject) = (self.name(), format!("peer {} version", self.line.member.id));
            let line = format!(
                "peer {name} speaks protocol {theirs}, this server {ours}; version {version} is used"
            );
            self.line.deps.log.limited(Level::Note, &subject, line);
        }
    }

    fn name(&self) -> String {
        format!("{} ({}:{})", self.line.member.id, self.line.member.address, self.line.member.port)
    }

    /// Answers what waits with an error and lets nobody dial for a while.
    fn fail(&mut self, error: CallError, first: Option<PendingRequest>, queue: &mut Queue) {
        self.failed = Instant::now();
        self.line.deps.heard.record_trouble(self.line.member.id, error.to_string().into());
        self.barred = Some((self.failed + self.pause, error.clone()));
        self.pause = (self.pause * 2).min(REDIAL_MAX);
        let waiting = std::iter::from_fn(|| queue.try_recv().ok()).take(MAX_QUEUE);
        let asks = waiting.filter_map(|command| match command {
            PeerCommand::Request(ask) => Some(ask),
            PeerCommand::OneWay { .. } | PeerCommand::Check => None,
        });
        for ask in first.into_iter().chain(asks) {
            let _ = ask.reply.send(Err(error.clone()));
        }
    }

    async fn converse(
        &mut self,
        mut present: ClientConnection,
        first: PendingRequest,
        queue: &mut Queue,
    ) {
        self.tell_up();
        self.line.is_up.store(true, Ordering::SeqCst);
        let end = match present.send(first) {
            Ok(()) => self.go_on(&mut present, queue).await,
            Err(end) => end,
        };
        self.line.is_up.store(false, Ordering::SeqCst);
        self.line.deps.heard.forget_answer(self.line.member.id);
        if end.is_loss() {
            self.line.deps.heard.record_lost(self.line.member.id);
        }
        let is_good = present.has_answered || present.open.is_empty();
        if present.has_answered {
            (self.pause, self.barred) = (REDIAL_MIN, None);
        }
        let error = present.close(&end);
        if !is_good {
            // It may not be dialled again at once, or each request would dial it.
            self.fail(error, None, queue);
        }
        self.tell_end(&end);
    }

    /// Goes on with a connection, and with those that take its place, until the last one ends.
    async fn go_on(&self, present: &mut ClientConnection, queue: &mut Queue) -> CloseReason {
        let mut due = Instant::now() + renewal_after(self.line.deps.bounds.max_age);
        let mut renewal = Box::pin(self.renewed(present.leaf.clone(), due));
        // The connection that was renewed last, until its last response is there.
        let mut old: Option<ClientConnection> = None;
        loop {
            tokio::select! {
                biased;
                Err(end) = present.go_on(Some(&mut *queue)) => return end,
                Err(end) = or_never(old.as_mut().map(|old| old.go_on(None))) => {
                    self.tell_spare_end(&end);
                    old.take().map(|old| old.close(&end));
                }
                fresh = &mut renewal, if old.is_none() => {
                    let fresh = ClientConnection { has_answered: present.has_answered, ..fresh };
                    old = Some(std::mem::replace(present, fresh));
                    due = Instant::now() + renewal_after(self.line.deps.bounds.max_age);
                    renewal.set(self.renewed(present.leaf.clone(), due));
                }
            }
        }
    }

    /// A new connection in the place of one on which this server showed the certificate `shown`:
    /// when it is `due`, or once this server has another certificate.
    async fn renewed(&self, mut shown: Arc<str>, mut due: Instant) -> ClientConnection {
        let mut tls = self.line.deps.tls.clone();
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
                    due = Instant::now() + self.line.deps.bounds.max_age / RENEWAL_TRIES;
                }
            }
        }
    }

    /// Tells of a connection that was to take the place of another, or that another took the
    /// place of: neither is the end of the line.
    fn tell_spare_end(&self, end: &dyn fmt::Display) {
        let name = self.name();
        self.line.deps.log.debug(format!("peer {name}: a renewed connection ended: {end}"));
    }

    fn tell_up(&mut self) {
        if !std::mem::replace(&mut self.told_up, true) {
            let subject = format!("peer {} up", self.line.member.id);
            self.line.deps.log.limited(
                Level::Note,
                &subject,
                format!("peer {} is up", self.name()),
            );
        }
    }

    fn tell_end(&mut self, end: &CloseReason) {
        let (name, id, log) = (self.name(), self.line.member.id, &self.line.deps.log);
        if matches!(end, CloseReason::Frame(_) | CloseReason::Untrusted(_)) {
            // What an operator has to do something about; a peer that stops is not.
            log.limited(Level::Warning, &format!("peer {id} end"), format!("peer {name}: {end}"));
        }
        if matches!(end, CloseReason::Unasked | CloseReason::Gone | CloseReason::Aged) {
            return log.debug(format!("peer {name}: connection ended: {end}"));
        }
        self.told_up = false;
        let line = format!("peer {name} is down: {end}");
        log.limited(Level::Note, &format!("peer {id} down"), line);
    }
}

/// Waits for what there is to wait for; if that is nothing, for ever.
async fn or_never<T>(work: Option<impl Future<Output = T>>) -> T {
    match work {
        Some(work) => work.await,
        None => pending().await,
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
struct ClientConnection {
    line: Arc<Line>,
    connection: Connection,
    /// The certificate that this side showed.
    leaf: Arc<str>,
    /// The run of the process at the other end.
    incarnation: u64,
    /// At most [`MAX_IN_FLIGHT`].
    open: Vec<Open>,
    last_id: u32,
    /// When the last frame came in.
    received: Instant,
    has_answered: bool,
    /// A request spent its whole time while nothing came back: it is to come until then.
    suspect: Option<Instant>,
}

impl ClientConnection {
    /// Ends it: what was sent and not answered is lost.
    fn close(self, end: &CloseReason) -> CallError {
        self.connection.close(end);
        let error = CallError::Unreachable(end.to_string().into());
        for open in self.open {
            let _ = open.reply.send(Err(error.clone()));
        }
        error
    }

    /// Nothing more may be sent to an end that would not be let in now.
    fn assess(&mut self) -> Result<(), CloseReason> {
        if self.line.gone.load(Ordering::SeqCst) {
            return Err(CloseReason::Gone);
        }
        self.connection.check().map(drop)
    }

    /// Without a queue it takes no more requests, and ends when the last is answered. May be
    /// dropped and called again at any time.
    async fn go_on(&mut self, mut queue: Option<&mut Queue>) -> Result<Infallible, CloseReason> {
        loop {
            fail_point("conversation");
            self.assess()?;
            let is_sending = self.connection.waiting() > 0;
            if queue.is_none() && self.open.is_empty() && !is_sending {
                return Err(CloseReason::Renewed);
            }
            let may_take = !is_sending && self.open.len() < MAX_IN_FLIGHT;
            let may_take_datagram = !is_sending && queue.is_some();
            let due = self.due();
            tokio::select! {
                biased;
                event = self.connection.event(true, due) => match event {
                    Ok(Event::Frame(header, body)) => {
                        self.assess()?;
                        self.take(&header, body)?;
                    }
                    Ok(Event::Due) => self.look(Instant::now())?,
                    Ok(Event::Other) => {}
                    Err(CloseReason::TooSlow(_)) => return Err(CloseReason::Dead),
                    Err(end) => return Err(end),
                },
                command = or_never(queue.as_mut().map(|queue| queue.recv())), if may_take => {
                    self.take_command(command.ok_or(CloseReason::Gone)?)?;
                }
                datagram = self.line.datagrams.next(), if may_take_datagram => {
                    self.write(Kind::OneWay, 0, datagram.body())?;
                    datagram.record_sent();
                }
            }
        }
    }

    fn take_command(&mut self, command: PeerCommand) -> Result<(), CloseReason> {
        match command {
            PeerCommand::Check => {
                let now = Instant::now();
                self.check(now)?;
                // Alive but late: nobody waits for these any more.
                self.open.retain(|open| now < open.deadline || !open.reply.is_closed());
                Ok(())
            }
            PeerCommand::Request(ask) => self.send(ask),
            PeerCommand::OneWay { body, until } if Instant::now() < until => {
                self.write(Kind::OneWay, 0, &body)
            }
            PeerCommand::OneWay { .. } => Ok(()),
        }
    }

    fn send(&mut self, ask: PendingRequest) -> Result<(), CloseReason> {
        let PendingRequest { body, limit, deadline, reply } = ask;
        let Some(body) = body.take() else { return Ok(()) };
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        self.open.push(Open { id, sent: Instant::now(), limit, deadline, reply });
        self.write(Kind::Request, id, &body)
    }

    fn write(&mut self, kind: Kind, request: u32, body: &[u8]) -> Result<(), CloseReason> {
        // Asked once more: what goes out may be newer than the last look.
        self.assess()?;
        self.connection.send((kind, request), self.line.deps.me.cluster_id(), body)
    }

    fn take(&mut self, header: &Header, body: Body) -> Result<(), CloseReason> {
        (self.received, self.suspect) = (Instant::now(), None);
        match header.kind {
            Kind::Response => {
                self.has_answered = true;
                let (id, heard) = (self.line.member.id, &self.line.deps.heard);
                heard.record_answer(id, self.incarnation, self.received);
                // One that nobody waits for any more is dropped.
                if let Some(at) = self.open.iter().position(|open| open.id == header.request) {
                    let _ = self.open.swap_remove(at).reply.send(Ok(body));
                }
                Ok(())
            }
            // A later version may have something to say.
            Kind::Unknown(_) => Ok(()),
            Kind::Request | Kind::OneWay => Err(CloseReason::Frame(FrameError::Kind)),
        }
    }

    /// Checks the connection by the requests whose time ran out. A far peer that is busy for a
    /// moment gets their time once more: dialling it anew would take longer.
    fn check(&mut self, now: Instant) -> Result<(), CloseReason> {
        let received = self.received;
        let is_silent =
            |open: &&Open| open.sent + open.limit <= now + QUEUEING && received <= open.sent;
        let silent = self.open.iter().filter(is_silent).map(|open| open.limit).min();
        match (silent, self.suspect) {
            _ if self.connection.is_reading() => self.suspect = None,
            (_, Some(until)) if until <= now => return Err(CloseReason::Dead),
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
        let idle = self.connection.last + DIALLER_IDLE_LIMIT;
        self.overdue().into_iter().chain(self.suspect).min().unwrap_or(idle)
    }

    /// Something is due.
    fn look(&mut self, now: Instant) -> Result<(), CloseReason> {
        if now < self.due() {
            return Ok(());
        }
        if self.overdue().is_none() && self.suspect.is_none() {
            return Err(CloseReason::Unasked);
        }
        self.check(now)?;
        // Alive but late: nobody waits for these any more.
        self.open.retain(|open| now < open.deadline + DROPPED_GRACE);
        Ok(())
    }
}
