//! Sessions that clients resume by their id, between Traffic Server's cache and the node.
//!
//! Which may be shared and how many is for [`crate::core::sessions`], how they travel for
//! [`crate::node::session_exchange`]. With `share_sessions: false` nothing of this is called. Invariants:
//! - The host's hook queues an id and returns: it takes no lock, waits for nobody, and what finds the
//!   queue full is dropped and counted.
//! - One thread reads the host's cache and writes it, with the priority of the host's own threads: a
//!   client comes back within a millisecond, and how much it does is bounded by what is sent and taken.
//! - A session of another server is given to the host only if the host's own OpenSSL has read it and
//!   [`check`] lets it through.
//! - The host holds no shared session whose id is not known here, so that a revocation removes all.
//! - The thread ends before the host does.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{c_int, c_void};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use foreign_types::ForeignTypeRef;
use once_cell::sync::OnceCell;
use openssl::ssl::{SslSession, SslSessionRef, SslVersion};
use openssl_sys as ffi;

use super::{ats, sys, ticket_scope};
use crate::core::key_ring::Generation;
use crate::core::server_id::ServerId;
use crate::core::sessions::{
    check, Facts, Known, SessionBytes, SessionEvent, SessionId, Unfit, FETCH_PAUSE, MAX_FETCHED,
    QUEUE,
};
use crate::log_sink::Log;
use crate::node::session_exchange::{Arrival, SessionExchange};
use crate::supervise::{fail_point, tell_begun_anew, Pauses};

/// Address space for the thread's stack, in which OpenSSL reads sessions.
const STACK: usize = 256 * 1024;

/// What the thread does of one kind before it looks at the others.
const TURN: usize = 64;

/// How often sessions that have ended are removed, if there are any.
const SWEEP: Duration = Duration::from_secs(60);

/// Of the newest sessions for a server that has started, so many go at once, and so far apart: half of
/// what a server may send.
const FETCH_TURN: usize = 100;
const FETCH_STEP: Duration = Duration::from_millis(100);

/// Servers that are sent the newest at a time; whoever comes then asks another one.
const MAX_FETCHES: usize = 4;

/// Whether the host calls [`on_session`].
static HOOKED: AtomicBool = AtomicBool::new(false);

/// Whether the thread is to end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// What the hook needs; empty where no sessions are shared.
static LINK: OnceCell<Link> = OnceCell::new();

/// The thread, until it is waited for.
static WORKER: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

// What openssl-sys does not declare.
extern "C" {
    fn SSL_SESSION_has_ticket(session: *const ffi::SSL_SESSION) -> c_int;
    fn SSL_SESSION_get0_peer(session: *mut ffi::SSL_SESSION) -> *mut ffi::X509;
}

/// What became of a session of this server, and under which key.
struct HookEvent {
    id: SessionId,
    is_made: bool,
    generation: Generation,
}

struct Link {
    events: SyncSender<HookEvent>,
    exchange: Arc<SessionExchange>,
    worker: Thread,
}

/// Has the host call in at each session that is made or removed, if the configuration wants that or
/// could not be read yet. For TSPluginInit only.
pub fn add_hook(is_wanted: Option<bool>) {
    if is_wanted != Some(false) && ticket_scope::shares_openssl() {
        HOOKED.store(ats::on_session(on_session), Ordering::Relaxed);
    }
}

/// Shares sessions from now on, if that is wanted and can be had.
pub fn begin(is_wanted: bool, log: &Log) {
    // A start that failed may be tried again.
    if !is_wanted || is_sharing() {
        return;
    }
    if !HOOKED.load(Ordering::Relaxed) {
        let version = ats::version();
        log.warning(format!(
            "share_sessions: true has no effect in Traffic Server {}: it has no interface for \
             sessions, as from version 11 on, or its OpenSSL is another one than this plugin's; \
             tickets are shared all the same; give share_sessions: false",
            version.as_deref().unwrap_or("of unknown version")
        ));
        return;
    }
    if let Err(why) = start(log) {
        log.error(format!("share_sessions: no sessions are shared: no thread for it: {why}"));
    }
}

/// The host takes sessions from now on: it makes its cache between TSPluginInit and PORTS_INITIALIZED.
pub fn open() {
    if let Some(link) = LINK.get() {
        link.exchange.open();
    }
}

/// Between this and the node, where sessions are shared.
pub fn exchange() -> Option<Arc<SessionExchange>> {
    LINK.get().map(|link| link.exchange.clone())
}

/// Whether sessions are shared.
pub fn is_sharing() -> bool {
    LINK.get().is_some()
}

/// Ends the thread and waits for that, which takes what one turn takes: the host's cache is gone soon.
pub fn end() {
    ENDING.store(true, Ordering::SeqCst);
    let worker = WORKER.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(worker) = worker {
        worker.thread().unpark();
        let _ = worker.join();
    }
}

fn start(log: &Log) -> io::Result<()> {
    let (events, queue) = sync_channel(QUEUE.entries);
    let exchange = Arc::<SessionExchange>::default();
    let (thread_exchange, log) = (exchange.clone(), log.clone());
    let builder = thread::Builder::new().name("stek_sessions".into()).stack_size(STACK);
    let handle = builder.spawn(move || live(Worker::new(queue, thread_exchange), &log))?;
    let worker = handle.thread().clone();
    let unpark = worker.clone();
    exchange.on_arrival(move || unpark.unpark());
    // A configuration is taken once, so that the place is empty.
    let _ = LINK.set(Link { events, exchange, worker });
    *WORKER.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
    Ok(())
}

/// Called by the host at what becomes of a session.
unsafe extern "C" fn on_session(
    _cont: *mut sys::tsapi_cont,
    event: c_int,
    data: *mut c_void,
) -> c_int {
    let is = |number| i64::from(event) == i64::from(number);
    let is_made = is(sys::STEK_ATS_SESSION_NEW_EVENT);
    if let (Some(link), true) = (LINK.get(), is_made || is(sys::STEK_ATS_SESSION_REMOVE_EVENT)) {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            fail_point("hook-session");
            // SAFETY: this is the host's data for these events.
            if let Some(id) = unsafe { ats::session_id(data) } {
                link.queue(id, is_made);
            }
        }));
    }
    0
}

impl Link {
    fn queue(&self, id: SessionId, is_made: bool) {
        let generation = self.exchange.generation();
        match self.events.try_send(HookEvent { id, is_made, generation }) {
            Ok(()) => self.worker.unpark(),
            Err(TrySendError::Full(_)) => self.exchange.record_dropped(1),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

/// The thread, which begins anew after a panic with what it knows.
fn live(mut worker: Worker, log: &Log) {
    if !ats::init_thread() {
        log.error(
            "share_sessions: no sessions are shared: Traffic Server does not take the thread",
        );
        return;
    }
    let mut pauses = Pauses::new();
    while catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
        let pause = pauses.after_panic();
        tell_begun_anew(log, "sharing sessions with the host", pause);
        thread::park_timeout(pause);
    }
}

/// What the thread knows.
struct Worker {
    queue: Receiver<HookEvent>,
    exchange: Arc<SessionExchange>,
    known: Known,
    /// The newest sessions on their way to servers that have started.
    fetches: VecDeque<(ServerId, Vec<SessionId>)>,
    /// When each server was last begun to be sent them.
    fetched: BTreeMap<ServerId, Instant>,
    next_step: Instant,
    next_sweep: Instant,
}

impl Worker {
    fn new(queue: Receiver<HookEvent>, exchange: Arc<SessionExchange>) -> Worker {
        let now = Instant::now();
        Worker {
            queue,
            exchange,
            known: Known::default(),
            fetches: VecDeque::new(),
            fetched: BTreeMap::new(),
            next_step: now,
            next_sweep: now + SWEEP,
        }
    }

    /// Does what there is to do, turn by turn, and sleeps where there is nothing.
    fn run(&mut self) {
        while !ENDING.load(Ordering::SeqCst) {
            fail_point("sessions-thread");
            if self.exchange.take_erasure() {
                self.erase();
            }
            let mut has_more = false;
            for turn in 1..=TURN {
                let Ok(event) = self.queue.try_recv() else { break };
                self.tell(&event);
                has_more |= turn == TURN;
            }
            for turn in 1..=TURN {
                let Some(arrival) = self.exchange.arrival() else { break };
                self.take(arrival);
                has_more |= turn == TURN;
            }
            let now = Instant::now();
            if now >= self.next_step {
                self.send_newest();
                self.next_step = now + FETCH_STEP;
            }
            if now >= self.next_sweep {
                self.known.remove_ended(now_s()).into_iter().for_each(remove);
                self.next_sweep = now + SWEEP;
            }
            if !has_more {
                self.sleep(now);
            }
        }
    }

    /// Sleeps until the hook, the node or a time wakes it; without sessions no time does.
    fn sleep(&self, now: Instant) {
        let due = match (self.fetches.is_empty(), self.known.is_empty()) {
            (false, _) => self.next_step,
            (true, false) => self.next_sweep,
            (true, true) => return thread::park(),
        };
        thread::park_timeout(due.saturating_duration_since(now));
    }

    /// Tells the others of a session of this server.
    fn tell(&mut self, event: &HookEvent) {
        let HookEvent { id, is_made, generation } = *event;
        if !is_made {
            if self.known.remove(id) {
                self.exchange.tell(None, generation, SessionEvent::Removed(id));
            }
            return;
        }
        if self.exchange.is_revoked(generation) {
            return remove(id);
        }
        // It may be gone already.
        let Some(bytes) = ats::session_bytes(id) else { return };
        match read(&bytes).and_then(|(_, facts)| check(&facts, id, now_s())) {
            Ok(ends_s) => {
                self.know(id, ends_s);
                self.exchange.tell(None, generation, SessionEvent::Made(id, bytes));
            }
            Err(_) => self.exchange.record_refused(),
        }
    }

    /// Does what another server tells.
    fn take(&mut self, Arrival { from, event }: Arrival) {
        match event {
            SessionEvent::Made(id, _) if self.known.contains(id) => {}
            SessionEvent::Made(id, bytes) => {
                let insert = |(session, facts): (SslSession, Facts)| {
                    let ends_s = check(&facts, id, now_s())?;
                    Ok(ats::insert_session(id, &session).then_some(ends_s))
                };
                match read(&bytes).and_then(insert) {
                    Ok(Some(ends_s)) => {
                        self.know(id, ends_s);
                        self.exchange.record_inserted();
                    }
                    Ok(None) | Err(_) => self.exchange.record_refused(),
                }
            }
            SessionEvent::Removed(id) => {
                if self.known.remove(id) {
                    remove(id);
                }
            }
            SessionEvent::WantNewest => self.begin_fetch(from),
        }
    }

    fn know(&mut self, id: SessionId, ends_s: u64) {
        if let Some(oldest) = self.known.add(id, ends_s) {
            remove(oldest);
        }
    }

    /// All that is shared is revoked.
    fn erase(&mut self) {
        self.fetches.clear();
        self.known.remove_all().into_iter().for_each(remove);
    }

    fn begin_fetch(&mut self, to: ServerId) {
        let now = Instant::now();
        self.fetched.retain(|_, at| now < *at + FETCH_PAUSE);
        let is_early = self.fetched.contains_key(&to);
        if is_early || self.fetches.len() >= MAX_FETCHES || self.known.is_empty() {
            return;
        }
        self.fetched.insert(to, now);
        let mut newest = self.known.newest(MAX_FETCHED);
        // The end is taken first, and the newest are the likeliest to come back.
        newest.reverse();
        self.fetches.push_back((to, newest));
    }

    /// The next part of what servers that have started are sent.
    fn send_newest(&mut self) {
        let Some((to, mut ids)) = self.fetches.pop_front() else { return };
        let generation = self.exchange.generation();
        for id in ids.drain(ids.len().saturating_sub(FETCH_TURN)..).rev() {
            if let (true, Some(bytes)) = (self.known.contains(id), ats::session_bytes(id)) {
                self.exchange.tell(Some(to), generation, SessionEvent::Made(id, bytes));
            }
        }
        if !ids.is_empty() {
            self.fetches.push_back((to, ids));
        }
    }
}

/// Has the host forget a session, if it has it.
fn remove(id: SessionId) {
    ats::remove_session(id);
}

/// A session as the host's OpenSSL reads it, and what is to be known of it.
///
/// # Errors
/// It is none.
pub fn read(bytes: &SessionBytes) -> Result<(SslSession, Facts), Unfit> {
    let session = SslSession::from_der(bytes.expose());
    let session = session.map_err(|_| Unfit::Garbage)?;
    let facts = facts(&session)?;
    Ok((session, facts))
}

fn facts(session: &SslSessionRef) -> Result<Facts, Unfit> {
    let below_tls13 = [SslVersion::TLS1, SslVersion::TLS1_1, SslVersion::TLS1_2];
    let version = session.protocol_version();
    if version != SslVersion::TLS1_3 && !below_tls13.contains(&version) {
        return Err(Unfit::Garbage);
    }
    // SAFETY: both look at a session that lives over the call and is nobody else's; the certificate
    // stays the session's.
    let (has_ticket, peer) = unsafe {
        (SSL_SESSION_has_ticket(session.as_ptr()), SSL_SESSION_get0_peer(session.as_ptr()))
    };
    Ok(Facts {
        id: SessionId::new(session.id()),
        is_of_tls13: version == SslVersion::TLS1_3,
        has_ticket: has_ticket != 0,
        has_certificate: !peer.is_null(),
        made_s: u64::try_from(session.time()).map_err(|_| Unfit::Life)?,
        life_s: u64::try_from(session.timeout()).map_err(|_| Unfit::Life)?,
    })
}

/// The wall clock, by which OpenSSL times sessions.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;

    use openssl::ssl::{
        Ssl, SslAcceptor, SslContextBuilder, SslMethod, SslOptions, SslStream, SslVerifyMode,
    };
    use testkit::pki::Identity;
    use zeroize::Zeroizing;

    use super::*;
    use crate::core::sessions::MAX_LIFE;

    /// The session that a server makes for a client of this version, with tickets or without, and
    /// with the client's certificate or without.
    fn session(version: SslVersion, with_ticket: bool, with_certificate: bool) -> Vec<u8> {
        let identity = Identity::self_signed("/CN=x").unwrap();
        let mut server = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        server.set_certificate(&identity.certificate).unwrap();
        server.set_private_key(&identity.key).unwrap();
        server.set_session_id_context(b"site").unwrap();
        server.set_min_proto_version(Some(version)).unwrap();
        if with_certificate {
            server.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
        }
        let mut client = SslContextBuilder::new(SslMethod::tls_client()).unwrap();
        client.set_max_proto_version(Some(version)).unwrap();
        client.set_certificate(&identity.certificate).unwrap();
        client.set_private_key(&identity.key).unwrap();
        if !with_ticket {
            client.set_options(SslOptions::NO_TICKET);
        }
        let (near, far) = UnixStream::pair().unwrap();
        let server = server.build();
        thread::scope(|scope| {
            let accepted = scope.spawn(|| server.accept(far).unwrap());
            let ssl = Ssl::new(&client.build()).unwrap();
            let mut stream = SslStream::new(ssl, near).unwrap();
            stream.connect().unwrap();
            let accepted = accepted.join().unwrap();
            // What the client has knows of its ticket; of TLS 1.2 the server's knows the rest.
            let ssl = if with_ticket { stream.ssl() } else { accepted.ssl() };
            ssl.session().unwrap().to_der().unwrap()
        })
    }

    fn checked(der: Vec<u8>, said: Option<&[u8]>, after_s: u64) -> Result<u64, Unfit> {
        // Longer ones do not even get here.
        let bytes = SessionBytes::new(Zeroizing::new(der)).ok_or(Unfit::Garbage)?;
        let (session, facts) = read(&bytes)?;
        let said = said.unwrap_or(session.id());
        check(&facts, SessionId::new(said).ok_or(Unfit::OtherId)?, now_s() + after_s)
    }

    #[test]
    fn only_sessions_without_ticket_certificate_and_tls13_are_shared() {
        let plain = session(SslVersion::TLS1_2, false, false);
        let ends_s = checked(plain.clone(), None, 0).unwrap();
        assert!(ends_s > now_s() && ends_s <= now_s() + MAX_LIFE.as_secs());
        assert_eq!(checked(plain.clone(), Some(&[7; 32]), 0), Err(Unfit::OtherId));
        assert_eq!(checked(plain, None, MAX_LIFE.as_secs()), Err(Unfit::Life));
        assert_eq!(checked(session(SslVersion::TLS1_2, true, false), None, 0), Err(Unfit::Garbage));
        assert_eq!(checked(session(SslVersion::TLS1_2, false, true), None, 0), Err(Unfit::Garbage));
        let facts_of = |der: &[u8]| facts(&SslSession::from_der(der).unwrap()).unwrap();
        assert!(facts_of(&session(SslVersion::TLS1_2, true, false)).has_ticket);
        assert!(facts_of(&session(SslVersion::TLS1_2, false, true)).has_certificate);
        assert!(facts_of(&session(SslVersion::TLS1_3, false, false)).is_of_tls13);
    }

    /// Every cut and every single-byte change is read as something or refused, and none without its
    /// id gets through.
    #[test]
    fn what_is_no_session_is_refused() {
        let plain = session(SslVersion::TLS1_2, false, false);
        let id = SslSession::from_der(&plain).unwrap().id().to_vec();
        for len in 0..plain.len() {
            assert!(checked(plain[..len].to_vec(), Some(&id), 0).is_err(), "{len}");
        }
        let mut refused = 0;
        for at in 0..plain.len() {
            for byte in [0, 1, 0x30, 0x7f, 0xff] {
                let mut bad = plain.clone();
                bad[at] = byte;
                refused += u32::from(checked(bad, Some(&id), 0).is_err());
            }
        }
        assert!(refused > 200, "{refused}");
        assert_eq!(checked(vec![7; 200], Some(&id), 0), Err(Unfit::Garbage));
    }

    /// What the thread does with no host: nothing is given to it, and nothing waits.
    #[test]
    fn without_a_host_what_arrives_is_refused_and_what_is_told_is_gone() {
        let exchange = Arc::<SessionExchange>::default();
        exchange.open();
        let (events, queue) = sync_channel(1);
        let mut worker = Worker::new(queue, exchange.clone());
        let der = session(SslVersion::TLS1_2, false, false);
        let id = SessionId::new(SslSession::from_der(&der).unwrap().id()).unwrap();
        let bytes = SessionBytes::new(Zeroizing::new(der)).unwrap();
        let from = ServerId(2);
        worker.take(Arrival { from, event: SessionEvent::Made(id, bytes) });
        assert_eq!((exchange.status().refused, worker.known.len()), (1, 0));
        worker.tell(&HookEvent { id, is_made: true, generation: Generation(0) });
        worker.tell(&HookEvent { id, is_made: false, generation: Generation(0) });
        worker.take(Arrival { from, event: SessionEvent::WantNewest });
        assert!(worker.fetches.is_empty());
        // A queue that is full loses what is new, and says so.
        let link = Link { events, exchange: exchange.clone(), worker: thread::current() };
        (0..3).for_each(|_| link.queue(id, true));
        assert_eq!(exchange.status().dropped, 2);
        drop(worker);
        link.queue(id, true);
        assert_eq!(exchange.status().dropped, 2, "the thread has ended");
    }

    #[test]
    fn the_newest_are_sent_part_by_part_and_not_again_soon() {
        let exchange = Arc::<SessionExchange>::default();
        let mut worker = Worker::new(sync_channel(1).1, exchange);
        let id = |n: u32| SessionId::new(&n.to_be_bytes()).unwrap();
        (0..250).for_each(|n| assert!(worker.known.add(id(n), u64::MAX).is_none()));
        (2..4).for_each(|n| worker.begin_fetch(ServerId(n)));
        worker.begin_fetch(ServerId(2));
        assert_eq!(worker.fetches.len(), 2);
        let left = |worker: &Worker| worker.fetches.iter().map(|(_, ids)| ids.len()).sum::<usize>();
        for expected in [400, 300, 200, 100, 50, 0] {
            worker.send_newest();
            assert_eq!(left(&worker), expected);
        }
        worker.begin_fetch(ServerId(2));
        assert!(worker.fetches.is_empty(), "it was sent them a moment ago");
        (10..20).for_each(|n| worker.begin_fetch(ServerId(n)));
        assert_eq!(worker.fetches.len(), MAX_FETCHES);
        worker.erase();
        assert!(worker.fetches.is_empty() && worker.known.is_empty());
    }
}
