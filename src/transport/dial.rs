//! Gets a connection to another server: its addresses one after the other, TLS, the hellos; and asks
//! one thing over a connection of its own.
//!
//! Invariant: nothing but the hello is sent before the other end has said in its own that it hears this
//! server, and in which version.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{timeout, Instant};

use super::bounds::HANDSHAKE_LIMIT;
use super::frame::{self, Body, FrameError, Header, Hello, Kind, NoCommonVersion, Wire, WireError};
use super::local_identity::LocalIdentity;
use super::refusal::Refusal;
use super::resolver::{Found, Resolver, Unresolved};
use super::socket::tune;
use super::tls::{alert_in, HandshakeError, Stream, Tls};
use crate::core::config::Member;
use crate::core::server_id::ServerId;
use crate::log_sink::{Level, Log};

/// How long connecting and shaking hands may take together, once the addresses are known.
pub const DIAL_LIMIT: Duration = Duration::from_secs(3);

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
    /// The body has more than [`MAX_BODY`](super::frame::MAX_BODY) bytes.
    #[error("a request of {0} bytes is too long")]
    TooLong(usize),
}

pub(super) fn gone() -> CallError {
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
    /// The body has more than [`MAX_BODY`](super::frame::MAX_BODY) bytes.
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
    me: &LocalIdentity,
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
    me: &LocalIdentity,
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
    me: &LocalIdentity,
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
pub(super) async fn greet(stream: &mut Stream, me: &LocalIdentity) -> Result<Hello, DialError> {
    let ours = me.hello();
    let greeting = async {
        let sent = stream.write_all(&frame::encode_hello(&ours, 0)).await;
        // Who refuses our certificate may have reset the connection before that; why, is there to be read.
        match (frame::read_hello(stream).await, sent) {
            (Err(WireError::Io(why)), _) if alert_in(&why).is_some() => Err(WireError::Io(why)),
            (_, Err(lost)) => Err(WireError::Io(lost)),
            (answer, Ok(())) => answer,
        }
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
pub(super) enum DialError {
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
    pub(super) fn as_error(&self) -> CallError {
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
pub(super) async fn dial(tls: &Tls, addresses: Vec<SocketAddr>) -> Result<Stream, DialError> {
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
pub(super) fn is_of_this_machine(why: &io::Error) -> bool {
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

/// Says that a peer is dialled where it was before, for want of a newer answer, or not at all that its name
/// stands for.
pub(super) fn tell_doubts(log: &Log, member: &Member, found: &Found) {
    let peer = format_args!("{} ({}:{})", member.id, member.address, member.port).to_string();
    if let Some(why) = &found.stale {
        let line = format!(
            "peer {peer}: cannot resolve the name: {why}; the addresses of an earlier answer are used \
             meanwhile"
        );
        log.limited(Level::Warning, &format!("peer {} resolve", member.id), line);
    }
    if let Some(why) = &found.left_out {
        let line = format!("peer {peer}: {why}; correct what the name servers have of it");
        log.limited(Level::Warning, &format!("peer {} left out", member.id), line);
    }
}
