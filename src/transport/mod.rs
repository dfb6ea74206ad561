//! Frames over mutual TLS between servers: who may speak, to whom this server speaks, and the bounds
//! of both. Knows nothing of keys and nothing of Raft; a body is bytes that must be erased.
//!
//! A server dials each peer that it has something to ask; requests and their responses share that
//! one connection. What it is asked itself comes in over connections that the others dialled.

mod binding;
pub mod frame;
pub mod listener;
mod one_line;
pub mod peers;
mod places;
mod rehearsal;
pub mod resolver;
pub mod tls;
mod trust;

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, Instant, Sleep};

pub use frame::{Body, ClusterId, Versions};
pub use one_line::one_line;
pub use trust::{CLOCK_LOOK, MAX_AGE};

use crate::core::server_id::ServerId;
use frame::{Hello, Role};
use resolver::{Resolver, Unresolved};

/// How long a TLS handshake and the hello after it may take together. Generous for a far
/// peer on a busy server, short enough to be rid of a silent stranger within 5 s.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(3);

/// How long a frame may take once its first byte was read or written.
pub const FRAME_LIMIT: Duration = Duration::from_secs(10);

/// How long a connection may be silent before the side that was dialled closes it.
pub const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// Requests of one connection that are served at a time. Some wait for news (long polls), the
/// others are answered in turn.
pub const MAX_IN_FLIGHT: usize = 32;

/// How long sent bytes may stay unacknowledged before the system gives a connection up.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(10);

/// How much a server bears of connections; the default is what a server uses, tests have others.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long a connection may campaign before a new one takes its place.
    pub max_age: Duration,
    /// Verified connections besides those of members; see [`listener::SPARE_CONNECTIONS`].
    pub spare: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { max_age: MAX_AGE, spare: listener::SPARE_CONNECTIONS }
    }
}

/// Keep-alive probes find a peer that vanished while nobody asked it anything.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// What this server says of itself, and the protocol versions that it speaks.
#[derive(Clone)]
pub struct Me(Arc<MeInner>, Versions);

struct MeInner {
    id: ServerId,
    role: Role,
    incarnation: u64,
    cluster_id: Box<dyn Fn() -> ClusterId + Send + Sync>,
}

impl Me {
    /// A server with this id and incarnation; `cluster_id` is asked for each frame. It speaks
    /// [`Versions::OURS`].
    pub fn member(
        id: ServerId,
        incarnation: u64,
        cluster_id: impl Fn() -> ClusterId + Send + Sync + 'static,
    ) -> Me {
        let (role, cluster_id) = (Role::Member, Box::new(cluster_id));
        Me(Arc::new(MeInner { id, role, incarnation, cluster_id }), Versions::OURS)
    }

    /// An operator's command that acts for the server with this id.
    pub fn tool(id: ServerId) -> Me {
        let cluster_id = Box::new(|| [0; 16]);
        let inner = MeInner { id, role: Role::Tool, incarnation: 0, cluster_id };
        Me(Arc::new(inner), Versions::OURS)
    }

    /// The same, speaking these protocol versions.
    pub fn speaking(self, versions: Versions) -> Me {
        Me(self.0, versions)
    }

    /// The protocol versions that this server speaks.
    pub fn versions(&self) -> Versions {
        self.1
    }

    /// This server's id.
    pub fn id(&self) -> ServerId {
        self.0.id
    }

    /// The run of this server's process; 0 for a tool.
    pub fn incarnation(&self) -> u64 {
        self.0.incarnation
    }

    /// Its cluster incarnation at this moment.
    fn cluster_id(&self) -> ClusterId {
        (self.0.cluster_id)()
    }

    /// What it says of itself now.
    pub fn hello(&self) -> Hello {
        let MeInner { id: sender, role, incarnation, .. } = *self.0;
        Hello { versions: self.1, role, sender, incarnation, cluster_id: self.cluster_id() }
    }
}

/// When a frame of each member was last heard, whoever dialled; and by what the latest connection to
/// it came to nothing. Cloning makes another handle.
#[derive(Clone, Default)]
pub struct LastSeen(Arc<Mutex<HashMap<ServerId, LastSign>>>, Arc<Mutex<Troubles>>);

/// By what each member could not be asked; it is gone once that member answers.
type Troubles = HashMap<ServerId, Arc<str>>;

/// What was heard of one member.
#[derive(Clone, Copy)]
struct LastSign {
    last: Instant,
    /// The run of the process that answers at the member's listed address, while a connection to
    /// it is up.
    at_address: Option<u64>,
    /// Where it dialled from last.
    dialled_from: Option<IpAddr>,
    /// Where it answered last.
    answered_at: Option<IpAddr>,
}

impl LastSign {
    fn at(last: Instant) -> LastSign {
        LastSign { last, at_address: None, dialled_from: None, answered_at: None }
    }
}

impl LastSeen {
    /// An empty table.
    pub fn new() -> LastSeen {
        LastSeen::default()
    }

    /// When something was last heard from this member.
    pub fn last(&self, id: ServerId) -> Option<Instant> {
        self.voices().get(&id).map(|voice| voice.last)
    }

    /// The incarnation that answers at this member's listed address, if this server has a connection
    /// there. A request under the same id but from another incarnation comes from a second server
    /// that calls itself by that id.
    pub fn at_address(&self, id: ServerId) -> Option<u64> {
        self.voices().get(&id).and_then(|voice| voice.at_address)
    }

    /// Forgets all but the members for which `keep` says yes. Bounds the table: only ids that
    /// the service admitted ever get in.
    pub fn retain(&self, keep: impl Fn(ServerId) -> bool) {
        self.voices().retain(|&id, _| keep(id));
        self.all_troubles().retain(|&id, _| keep(id));
    }

    /// Whether a member of the list was heard from this address, or answered there.
    pub fn is_at(&self, ip: IpAddr) -> bool {
        let is = |known: Option<IpAddr>| known.is_some_and(|known| known == ip.to_canonical());
        self.voices().values().any(|voice| is(voice.dialled_from) || is(voice.answered_at))
    }

    /// Notes that this member was heard `now`, by a connection that it dialled.
    pub fn note(&self, id: ServerId, now: Instant) {
        self.voices().entry(id).or_insert(LastSign::at(now)).last = now;
    }

    /// The same, and where it dialled from.
    fn record_from(&self, id: ServerId, now: Instant, ip: IpAddr) {
        let mut voices = self.voices();
        let voice = voices.entry(id).or_insert(LastSign::at(now));
        (voice.last, voice.dialled_from) = (now, Some(ip.to_canonical()));
    }

    /// Notes where it answered.
    fn record_answered_at(&self, id: ServerId, ip: IpAddr) {
        if let Some(voice) = self.voices().get_mut(&id) {
            voice.answered_at = Some(ip.to_canonical());
        }
    }

    /// Notes that the member answered at its listed address `now`, and which run of it that was.
    pub fn record_answer(&self, id: ServerId, incarnation: u64, now: Instant) {
        let mut voices = self.voices();
        let voice = voices.entry(id).or_insert(LastSign::at(now));
        (voice.last, voice.at_address) = (now, Some(incarnation));
        drop(voices);
        self.all_troubles().remove(&id);
    }

    /// Notes by what the latest attempt to ask this member came to nothing. For members only.
    pub fn record_trouble(&self, id: ServerId, why: Arc<str>) {
        self.all_troubles().insert(id, why);
    }

    /// By what those came to nothing that have not answered since.
    pub fn troubles(&self) -> HashMap<ServerId, Arc<str>> {
        self.all_troubles().clone()
    }

    fn all_troubles(&self) -> MutexGuard<'_, Troubles> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to the member's address is gone.
    pub fn forget_answer(&self, id: ServerId) {
        if let Some(voice) = self.voices().get_mut(&id) {
            voice.at_address = None;
        }
    }

    fn voices(&self) -> MutexGuard<'_, HashMap<ServerId, LastSign>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a connection was refused or ended by this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Cause {
    /// No certificate was shown.
    NoCertificate,
    /// The certificate does not chain to the root, is not valid now, or is for another purpose.
    Untrusted,
    /// The certificate's subject is not `cert_verify_str`, nor one that the server list names.
    WrongSubject,
    /// The certificate is a member's, but not that of the server id that the sender names.
    OtherCertificate,
    /// What came was not TLS, or a version or cipher that we do not speak.
    NotOurTls,
    /// The other end does not accept this server's certificate or TLS.
    RefusedUs,
    /// The other end closed or lost the connection before its hello.
    ClosedEarly,
    /// OpenSSL failed on this side.
    Library,
    /// The sender is not in the server list.
    NotAMember,
    /// The service refused the sender for another reason.
    Refused,
    /// Bytes that are no hello and no frame, or a body that is no request.
    BadFrame,
    /// A protocol version that this server does not speak.
    Version,
    /// A handshake, a hello or a begun frame took too long.
    TooSlow,
    /// There were too many connections or handshakes already.
    OverLimit,
    /// Too many handshakes with its address came to nothing; see [`crate::core::knocks`].
    OverRate,
}

impl Cause {
    /// All causes with the words that name them in metrics.
    pub const ALL: [(Cause, &'static str); 15] = [
        (Cause::NoCertificate, "no_certificate"),
        (Cause::Untrusted, "untrusted"),
        (Cause::WrongSubject, "wrong_subject"),
        (Cause::OtherCertificate, "other_certificate"),
        (Cause::NotOurTls, "not_our_tls"),
        (Cause::RefusedUs, "refused_us"),
        (Cause::ClosedEarly, "closed_early"),
        (Cause::Library, "library"),
        (Cause::NotAMember, "not_a_member"),
        (Cause::Refused, "refused"),
        (Cause::BadFrame, "bad_frame"),
        (Cause::Version, "version"),
        (Cause::TooSlow, "too_slow"),
        (Cause::OverLimit, "over_limit"),
        (Cause::OverRate, "over_rate"),
    ];
}

/// Counts what came in, for metrics. Shared by `Arc`; never goes down.
#[derive(Debug, Default)]
pub struct Counters {
    refused: [AtomicU64; Cause::ALL.len()],
    accepted: AtomicU64,
    requests: AtomicU64,
    passed_over: AtomicU64,
}

impl Counters {
    /// All zero.
    pub fn new() -> Arc<Counters> {
        Arc::default()
    }

    /// Connections that were refused or ended for this cause.
    pub fn refused(&self, cause: Cause) -> u64 {
        self.refused.get(cause as usize).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    /// Connections that were refused or ended, for whatever cause.
    pub fn all_refused(&self) -> u64 {
        self.refused.iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }

    /// Connections whose handshake succeeded.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Requests that were handed to the service.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Messages that want no answer and meant nothing here.
    pub fn passed_over(&self) -> u64 {
        self.passed_over.load(Ordering::Relaxed)
    }

    fn count(&self, cause: Cause) {
        if let Some(n) = self.refused.get(cause as usize) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A deadline that moves with each frame, over one timer that is touched only when it must be:
/// a deadline that moved later is noticed when the timer fires.
struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    fn new(deadline: Instant) -> Alarm {
        Alarm(Box::pin(sleep_until(deadline)))
    }

    /// Ready once `deadline` has come.
    fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if deadline < self.0.deadline() {
            self.0.as_mut().reset(deadline);
        }
        while self.0.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// Small frames go out at once, and a peer that vanished is found out. A system that cannot do
/// one of these is no worse than slow to notice, so failures do not matter.
fn tune(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT));
}

/// The addresses where this server is to listen.
async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Unresolved> {
    Resolver::system().resolve(host, port).await.map(|found| found.addresses)
}
