//! What is done between Traffic Server's cache of sessions and the node, and what is known for that.
//!
//! On which thread is for [`super::sessions`]. Invariants:
//! - A session of another server is given to the host only if the host's own OpenSSL has read it and
//!   [`check`] lets it through.
//! - The host holds no shared session whose id is not known here, so that a revocation removes all.
//! - What is told and what arrives is done in its order, whoever does it, and nothing before a revocation
//!   that has come is carried out.
//! - How long the node's thread is kept is bounded by [`AT_ONCE`].

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_int;
use std::sync::mpsc::Receiver;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use foreign_types::ForeignTypeRef;
use openssl::ssl::{SslSession, SslSessionRef, SslVersion};
use openssl_sys as ffi;

use super::ats;
use crate::core::key_ring::Generation;
use crate::core::moment::Moment;
use crate::core::server_id::ServerId;
use crate::core::sessions::{
    check, Facts, Known, Rate, SessionBytes, SessionEvent, SessionId, Unfit, FETCH_PAUSE,
    MAX_FETCHED,
};
use crate::node::session_exchange::{Arrival, SessionExchange};

/// Sessions a second that the node's thread looks at itself, those of this server and of others. Each
/// takes it some 30 us: it is kept for 3 % of its time and for 3 ms at once, a tenth of a second's worth.
pub const AT_ONCE: u32 = 1000;

/// What the other thread does of one kind before it looks at what else there is.
const TURN: usize = 64;

/// How often sessions that have ended are removed, if there are any.
const SWEEP: Duration = Duration::from_secs(60);

/// Of the newest sessions for a server that has started, so many go at once, and so far apart: half of
/// what a server may send.
const FETCH_TURN: usize = 100;
const FETCH_STEP: Duration = Duration::from_millis(100);

/// Servers that are sent the newest at a time; whoever comes then asks another one.
const MAX_FETCHES: usize = 4;

// What openssl-sys does not declare.
extern "C" {
    fn SSL_SESSION_has_ticket(session: *const ffi::SSL_SESSION) -> c_int;
    fn SSL_SESSION_get0_peer(session: *mut ffi::SSL_SESSION) -> *mut ffi::X509;
}

/// What became of a session of this server, and under which key.
pub struct HookEvent {
    /// Which session.
    pub id: SessionId,
    /// Whether it was made; it was removed otherwise.
    pub is_made: bool,
    /// The key that was current then.
    pub generation: Generation,
}

/// What is known of sessions, and of what is on its way.
pub struct Worker {
    queue: Receiver<HookEvent>,
    exchange: Arc<SessionExchange>,
    known: Known,
    /// The newest sessions on their way to servers that have started.
    fetches: VecDeque<(ServerId, Vec<SessionId>)>,
    /// When each server was last begun to be sent them.
    fetched: BTreeMap<ServerId, Instant>,
    next_step: Instant,
    next_sweep: Instant,
    /// What the node's thread may still do, counted from `begun`.
    at_once: Rate,
    begun: Instant,
    /// Whether the other thread sleeps until it is woken.
    is_asleep: bool,
}

impl Worker {
    /// Takes from `queue` what becomes of this server's sessions.
    pub fn new(queue: Receiver<HookEvent>, exchange: Arc<SessionExchange>) -> Worker {
        let now = Instant::now();
        Worker {
            queue,
            exchange,
            known: Known::default(),
            fetches: VecDeque::new(),
            fetched: BTreeMap::new(),
            next_step: now,
            next_sweep: now + SWEEP,
            at_once: Rate::new(AT_ONCE),
            begun: now,
            is_asleep: false,
        }
    }

    /// Does what there is as long as that is little; whether the other thread has to look.
    pub fn work_at_once(&mut self, now: Instant) -> bool {
        if self.exchange.has_erasure() {
            return true;
        }
        let now = Moment::from_start(now.saturating_duration_since(self.begun));
        loop {
            if !self.at_once.has_at(now, 1) {
                return true;
            }
            if !self.do_next() {
                return !self.fetches.is_empty() || self.is_asleep && !self.known.is_empty();
            }
            let _ = self.at_once.take_at(now);
        }
    }

    /// Whether there was anything to do.
    fn do_next(&mut self) -> bool {
        if let Ok(event) = self.queue.try_recv() {
            self.tell(&event);
        } else if let Some(arrival) = self.exchange.arrival() {
            self.take(arrival);
        } else {
            return false;
        }
        true
    }

    /// Does a part of all that there is; when to go on, if not only when there is something new.
    pub fn turn(&mut self, now: Instant) -> Option<Instant> {
        self.is_asleep = false;
        if self.exchange.take_erasure() {
            self.erase();
        }
        let has_more = (0..TURN).all(|_| self.do_next());
        if now >= self.next_step {
            self.send_newest();
            self.next_step = now + FETCH_STEP;
        }
        if now >= self.next_sweep {
            self.known.remove_ended(now_s()).into_iter().for_each(remove);
            self.next_sweep = now + SWEEP;
        }
        let due = match (has_more, self.fetches.is_empty(), self.known.is_empty()) {
            (true, ..) => Some(now),
            (false, false, _) => Some(self.next_step),
            (false, true, false) => Some(self.next_sweep),
            (false, true, true) => None,
        };
        self.is_asleep = due.is_none();
        due
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
    use std::sync::mpsc::sync_channel;
    use std::thread;

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
        let mut worker = Worker::new(sync_channel(1).1, exchange.clone());
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
    }

    /// What is more than little stays for the other thread, as does what takes long.
    #[test]
    fn the_nodes_thread_does_what_is_little() {
        let exchange = Arc::<SessionExchange>::default();
        let most = (AT_ONCE / 10) as usize;
        let (events, queue) = sync_channel(4 * most);
        let mut worker = Worker::new(queue, exchange);
        let id = SessionId::new(&[7]).unwrap();
        let gone = || HookEvent { id, is_made: false, generation: Generation(0) };
        let mut work = |events: usize, after: Duration| {
            worker.work_at_once(worker.begun + after) && worker.queue.try_iter().count() == events
        };
        (0..3 * most).for_each(|_| events.send(gone()).unwrap());
        assert!(work(2 * most, Duration::from_secs(9)), "a tenth of a second's worth at once");
        assert!(!work(0, Duration::from_secs(10)), "nothing is left");
        // The other thread has to see to the end of what is known, if it sleeps.
        assert_eq!(worker.turn(worker.begun), None);
        worker.known.add(id, u64::MAX);
        assert!(worker.work_at_once(worker.begun + Duration::from_secs(11)));
        assert_eq!(worker.turn(worker.begun), Some(worker.next_sweep));
        assert!(!worker.work_at_once(worker.begun + Duration::from_secs(12)));
        worker.begin_fetch(ServerId(2));
        assert!(worker.work_at_once(worker.begun + Duration::from_secs(13)));
    }

    #[test]
    fn no_more_than_the_newest_are_sent() {
        let mut worker = Worker::new(sync_channel(1).1, Arc::default());
        let most = u64::try_from(MAX_FETCHED).unwrap();
        let id = |n: u64| SessionId::new(&n.to_be_bytes()).unwrap();
        (0..most + 100).for_each(|n| assert!(worker.known.add(id(n), u64::MAX).is_none()));
        worker.begin_fetch(ServerId(2));
        let (_, ids) = &worker.fetches[0];
        assert_eq!((ids.len(), ids[0]), (MAX_FETCHED, id(100)));
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
