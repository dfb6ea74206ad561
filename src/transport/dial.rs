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

/// Asks a server one thing over a connection of its own, which is for those who ask seldom, such as tools,
/// which have no list of peers. Besides the response there is how long it took from the moment at which
/// the request was handed to a connection that was up. `limit` begins when the name is resolved, for
/// which `resolver` has its own.
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
) -> Result<(Body, Duration), DialError> {
    let found = resolver.resolve(address.0, address.1).await.map_err(DialError::Resolve)?;
    let exchange = async {
        let mut stream = dial(tls, found.addresses).await?;
        greet(&mut stream, me).await?;
        let header = Header { kind: Kind::Request, request: 1, cluster_id: me.cluster_id() };
        let frame = frame::encode(&header, body).map_err(DialError::Frame)?;
        let (mut wire, sent) = (Wire::new(stream), Instant::now());
        wire.writer.send(frame);
        wire.writer.write().await.map_err(DialError::Broken)?;
        loop {
            let (header, body) =
                wire.reader.next().await.map_err(DialError::Broken)?.ok_or(DialError::Closed)?;
            if header.kind == Kind::Response {
                return Ok((body, sent.elapsed()));
            }
        }
    };
    timeout(limit, exchange).await.unwrap_or(Err(DialError::TimedOut))
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
    ours.versions.common(theirs.versions).map_err(DialError::NoVersion)?;
    match Refusal::from_code(refused) {
        Some(refusal) => Err(DialError::Refused(refusal)),
        None => Ok(theirs),
    }
}

/// Why there is no connection that can be used, or no response over it.
#[derive(Debug, Error)]
pub enum DialError {
    /// No address is known.
    #[error("cannot resolve the name: {0}")]
    Resolve(Unresolved),
    /// No connection could be had.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    /// The system there answers that nobody listens.
    #[error("cannot connect to {0}: {1}")]
    NobodyListens(SocketAddr, io::Error),
    /// The other end is not whom it should be.
    #[error("no TLS with {0}: {1}")]
    Handshake(SocketAddr, HandshakeError),
    /// It could not be connected to in time.
    #[error("no answer from {0} in time")]
    TooSlow(SocketAddr),
    /// It does not hear us.
    #[error("it refuses this server: {0}")]
    Refused(Refusal),
    /// Another server answers there.
    #[error("the server there calls itself server_id {0}; the server list is wrong here or there")]
    Stranger(ServerId),
    /// No protocol version is common.
    #[error(transparent)]
    NoVersion(NoCommonVersion),
    /// It does not take us for whom we are; this alert says why. With TLS 1.3 that comes only now.
    #[error("it refuses this server's certificate: {0}")]
    RefusedUs(String),
    /// What it says is no hello, or what we say no frame.
    #[error(transparent)]
    Frame(FrameError),
    /// The connection was lost before the hellos were over.
    #[error("the connection was lost: {0}")]
    Lost(#[from] io::Error),
    /// The other end closed the connection after the handshake.
    #[error("the connection was closed")]
    Closed,
    /// It said no hello in time.
    #[error("it said no hello in time")]
    NoHello,
    /// The connection broke before the response came.
    #[error(transparent)]
    Broken(WireError),
    /// No response came in time.
    #[error("no response in time")]
    TimedOut,
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
