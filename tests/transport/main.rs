//! Servers and strangers over real sockets and real TLS on loopback.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/pki.rs"]
mod pki;

mod certificates;
mod listening;
mod members;
mod requests;
mod rules;
mod standing;
mod strangers;
mod subjects;
mod versions;

use std::collections::HashSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssl::md::Md;
use openssl::pkey::{Id, PKey, Private};
use openssl::pkey_ctx::PkeyCtx;
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslMethod, SslSessionCacheMode, SslVerifyMode, SslVersion,
};
use openssl::symm::Cipher;
use openssl::x509::{X509Name, X509};
use tokio::io::{copy_bidirectional, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{watch, Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, Instant};
use tokio_openssl::SslStream;
use zeroize::Zeroizing;

use pki::{Identity, Spec, SUBJECT};
use stek_share::core::config::Member;
use stek_share::core::rate_limit::{RateLimit, STRANGERS};
use stek_share::core::server_id::ServerId;
use stek_share::log_sink::{Level, Log, LogSink};
use stek_share::transport::datagram::{Datagram, Tally};
use stek_share::transport::frame::{self, Body, Header, Hello, Kind, Role, HEADER_LEN, HELLO_LEN};
use stek_share::transport::listener::{
    Answer, Caller, ListenDeps, ListenSettings, Listener, Refusal, Service, CONNECTIONS_PER_MEMBER,
    MAX_HANDSHAKES,
};
use stek_share::transport::peers::{ask_once, CallError, DialError, Peers, DIAL_LIMIT, MAX_QUEUE};
use stek_share::transport::resolver::Resolver;
use stek_share::transport::tls::{HandshakeError, Tls, TlsError};
use stek_share::transport::{
    one_line, Bounds, Cause, Counters, LastSeen, LocalIdentity, Versions, FRAME_LIMIT,
    HANDSHAKE_LIMIT, IDLE_LIMIT, MAX_IN_FLIGHT,
};

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// A port that the system picks.
const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const CLUSTER_ID: [u8; 16] = *b"the history id!!";

// ---------------------------------------------------------------- one server

#[derive(Default)]
struct Lines(Mutex<Vec<(Level, String)>>);

impl LogSink for Lines {
    fn write(&self, level: Level, line: &str) {
        self.0.lock().unwrap().push((level, line.to_owned()));
    }
}

impl Lines {
    fn have(&self, level: Level, part: &str) -> bool {
        self.0.lock().unwrap().iter().any(|(l, line)| *l == level && line.contains(part))
    }
}

/// Answers what it is asked: the same bytes, or by order of the body's first byte.
struct Echo {
    members: Mutex<HashSet<u32>>,
    admitted: AtomicU64,
    begun: Mutex<Vec<(u32, Vec<u8>)>>,
    /// The version of the last request.
    version: AtomicU8,
    release: Notify,
}

impl Service for Echo {
    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        self.admitted.fetch_add(1, Ordering::Relaxed);
        if self.members.lock().unwrap().contains(&hello.sender.0) {
            Ok(())
        } else {
            Err(Refusal::NotAMember)
        }
    }

    fn take_one_way(&self, from: &Caller, body: Body) -> bool {
        self.begun.lock().unwrap().push((from.id.0, body.to_vec()));
        body.first() != Some(&b'X')
    }

    fn serve(self: Arc<Self>, from: Caller, body: Body) -> Answer {
        Box::pin(async move {
            self.version.store(from.version, Ordering::Relaxed);
            self.begun.lock().unwrap().push((from.id.0, body.to_vec()));
            match body.first() {
                Some(b'N') => std::future::pending().await,
                Some(b'W') => self.release.notified().await,
                Some(b'X') => return None,
                _ => {}
            }
            Some(body)
        })
    }
}

struct Box_ {
    id: u32,
    listener: Listener,
    peers: Arc<Peers>,
    service: Arc<Echo>,
    counters: Arc<Counters>,
    lines: Arc<Lines>,
    heard: LastSeen,
    versions: Versions,
    swap: watch::Sender<Tls>,
    addr: SocketAddr,
}

impl Box_ {
    async fn start(id: u32, tls: Tls) -> Box_ {
        Box_::start_at(id, tls, HERE).await
    }

    async fn speaking(id: u32, tls: Tls, versions: Versions) -> Box_ {
        Box_::start_as(id, tls, HERE, versions, Bounds::default()).await
    }

    async fn within(id: u32, tls: Tls, bounds: Bounds) -> Box_ {
        Box_::start_as(id, tls, HERE, Versions::OURS, bounds).await
    }

    async fn start_at(id: u32, tls: Tls, at: SocketAddr) -> Box_ {
        Box_::start_as(id, tls, at, Versions::OURS, Bounds::default()).await
    }

    async fn start_as(
        id: u32,
        tls: Tls,
        at: SocketAddr,
        versions: Versions,
        bounds: Bounds,
    ) -> Box_ {
        let lines = Arc::new(Lines::default());
        let log = Log::new(lines.clone());
        let (swap, tls) = watch::channel(tls);
        let me = LocalIdentity::member(ServerId(id), 77, || CLUSTER_ID).speaking(versions);
        let heard = LastSeen::new();
        let counters = Counters::new();
        let service = Arc::new(Echo {
            members: Mutex::new((1..=5).collect()),
            admitted: AtomicU64::new(0),
            begun: Mutex::default(),
            version: AtomicU8::new(0),
            release: Notify::new(),
        });
        let settings = ListenSettings {
            bind_address: None,
            address: at.ip().to_string(),
            port: at.port(),
            members: (1..=5).map(|id| member(id, at)).collect(),
            bounds,
        };
        let deps = ListenDeps {
            log: log.clone(),
            tls: tls.clone(),
            me: me.clone(),
            heard: heard.clone(),
            counters: counters.clone(),
        };
        let listener = Listener::start(settings, deps, service.clone());
        let addr = timeout(PATIENCE, listener.bound()).await.unwrap()[0];
        let peers = Arc::new(Peers::new(log, tls, me, heard.clone()).within(bounds));
        Box_ { id, listener, peers, service, counters, lines, heard, versions, swap, addr }
    }

    fn member(&self) -> Member {
        member(self.id, self.addr)
    }

    async fn ask(&self, to: u32, body: &[u8]) -> Result<Vec<u8>, CallError> {
        ask(&self.peers, to, body, PATIENCE).await
    }

    fn begun(&self) -> usize {
        self.service.begun.lock().unwrap().len()
    }
}

fn member(id: u32, addr: SocketAddr) -> Member {
    let address = addr.ip().to_string();
    Member { id: ServerId(id), address, port: addr.port(), subject: None, voter: true }
}

async fn ask(peers: &Peers, to: u32, body: &[u8], limit: Duration) -> Result<Vec<u8>, CallError> {
    let body = Zeroizing::new(body.to_vec());
    peers.request(ServerId(to), body, limit).await.map(|body| body.to_vec())
}

/// Two servers, 1 and 2, that know each other.
async fn pair(one: Tls, two: Tls) -> (Box_, Box_) {
    let (one, two) = (Box_::start(1, one).await, Box_::start(2, two).await);
    let members = [one.member(), two.member()];
    one.peers.set_members(&members);
    two.peers.set_members(&members);
    (one, two)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn tls(root: &Identity, leaf: &Identity) -> Tls {
    tls_for(root, leaf, SUBJECT).unwrap()
}

fn tls_for(root: &Identity, leaf: &Identity, subject: &str) -> Result<Tls, TlsError> {
    Tls::from_pem(&root.cert_pem(), &leaf.cert_pem(), &leaf.key_pem(), subject)
}

/// What a server with this leaf uses whose entry names the leaf's subject.
fn tls_as(root: &Identity, subject: &str, common: &str) -> Tls {
    let leaf = Spec { subject, issuer: Some(root), ..Spec::default() }.make();
    let own = Some(subject).filter(|subject| *subject != common);
    Tls::from_pem_as(&root.cert_pem(), &leaf.cert_pem(), &leaf.key_pem(), common, own).unwrap()
}

fn named(server_: &Box_, subject: &str) -> Member {
    Member { subject: Some(subject.to_owned()), ..server_.member() }
}

/// Has these servers know these members, as a node does.
fn change_membership(servers: &[&Box_], members: &[Member]) {
    for server_ in servers {
        server_.swap.send_modify(|tls| *tls = tls.with_members(members));
        server_.peers.set_members(members);
    }
}

// ---------------------------------------------------------------- raw ends

/// TLS that checks nothing, to be as rude as needed.
fn raw_context(identity: Option<&Identity>, newest: Option<SslVersion>) -> SslContext {
    let mut context = SslContextBuilder::new(SslMethod::tls()).unwrap();
    context.set_verify(SslVerifyMode::NONE);
    context.set_min_proto_version(None).unwrap();
    context.set_max_proto_version(newest).unwrap();
    if newest == Some(SslVersion::TLS1_1) {
        context.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
    }
    if let Some(identity) = identity {
        context.set_certificate(&identity.cert).unwrap();
        context.set_private_key(&identity.key).unwrap();
    }
    context.build()
}

/// A connection from another address of loopback each time, a thousand in turn: each of them may
/// fail as often as one stranger may.
async fn connect_from_anywhere(addr: SocketAddr) -> TcpStream {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed) % 1000;
    let host = [127, 1, 1 + (number / 250) as u8, 1 + (number % 250) as u8];
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((host, 0).into()).unwrap();
    socket.connect(addr).await.unwrap()
}

async fn raw_connect(
    context: &SslContext,
    addr: SocketAddr,
) -> Result<SslStream<TcpStream>, openssl::ssl::Error> {
    let tcp = TcpStream::connect(addr).await.unwrap();
    raw_connect_by(context, tcp).await
}

async fn raw_connect_by(
    context: &SslContext,
    tcp: TcpStream,
) -> Result<SslStream<TcpStream>, openssl::ssl::Error> {
    let mut stream = SslStream::new(Ssl::new(context).unwrap(), tcp).unwrap();
    Pin::new(&mut stream).connect().await.map(|()| stream)
}

fn hello(sender: u32) -> Hello {
    Hello {
        versions: Versions::OURS,
        role: Role::Member,
        sender: ServerId(sender),
        incarnation: 5,
        cluster_id: CLUSTER_ID,
    }
}

fn framed(kind: Kind, body: &[u8]) -> Vec<u8> {
    frame::encode(&Header { kind, request: 1, cluster_id: CLUSTER_ID }, body).unwrap().to_vec()
}

fn request(body: &[u8]) -> Vec<u8> {
    framed(Kind::Request, body)
}

/// A hello and a request in one piece.
fn opening(sender: u32, body: &[u8]) -> Vec<u8> {
    [frame::encode_hello(&hello(sender), 0), request(body)].concat()
}

/// Says hello and hears what is answered.
async fn greet(stream: &mut SslStream<TcpStream>, hello: Hello) -> (Hello, u8) {
    stream.write_all(&frame::encode_hello(&hello, 0)).await.unwrap();
    frame::read_hello(stream).await.unwrap().unwrap()
}

/// Asks on a connection that is up; the answer's header and body.
async fn exchange(
    stream: &mut SslStream<TcpStream>,
    body: &[u8],
) -> std::io::Result<(Header, Vec<u8>)> {
    stream.write_all(&request(body)).await?;
    let mut answer = vec![0; HEADER_LEN + body.len()];
    stream.read_exact(&mut answer).await?;
    let (header, body) = frame::Reader::new(&answer[..]).next().await.unwrap().unwrap();
    Ok((header, body.to_vec()))
}

/// A verified connection that has asked, and was answered.
async fn established(context: &SslContext, to: SocketAddr, hello: Hello) -> SslStream<TcpStream> {
    let mut stream = raw_connect(context, to).await.unwrap();
    assert_eq!(greet(&mut stream, hello).await.1, 0);
    exchange(&mut stream, b"x").await.unwrap();
    stream
}

/// Reads to the end, however it comes, and gives what was read.
async fn drain(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut got = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut chunk).await {
        got.extend_from_slice(&chunk[..n]);
    }
    got
}

/// Dials as a stranger, sends a well-formed request if it gets that far, and tells the
/// application bytes that came back before it was closed.
async fn intrude(context: &SslContext, addr: SocketAddr) -> Vec<u8> {
    match raw_connect_by(context, connect_from_anywhere(addr).await).await {
        Ok(mut stream) => {
            let _ = stream.write_all(&opening(2, b"let me in")).await;
            drain(&mut stream).await
        }
        Err(_) => Vec::new(),
    }
}

async fn intrude_in_clear(bytes: &[u8], addr: SocketAddr) -> Vec<u8> {
    let mut tcp = connect_from_anywhere(addr).await;
    let _ = tcp.write_all(bytes).await;
    let got = drain(&mut tcp).await;
    // What may come back is a TLS alert (record type 21), never a frame.
    match got.first() {
        Some(21) => Vec::new(),
        _ => got,
    }
}

/// Asks a server one thing over a connection of its own, the look-up of its name included in the limit.
async fn call_once(
    resolver: &Resolver,
    tls: &Tls,
    me: &LocalIdentity,
    address: (&str, u16),
    body: &[u8],
    limit: Duration,
) -> Result<Body, CallError> {
    let asked = timeout(limit, ask_once(resolver, tls, me, address, body, limit));
    let asked = asked.await.unwrap_or(Err(DialError::TimedOut));
    asked.map(|(body, _)| body).map_err(|error| match error {
        DialError::TimedOut => CallError::TimedOut,
        DialError::Refused(refusal) => CallError::Refused(refusal),
        DialError::Handshake(_, fault) => CallError::Unreachable(fault.to_string().into()),
        other => CallError::Unreachable(other.to_string().into()),
    })
}

/// Connections that were refused or ended, for whatever cause.
fn all_refused(counters: &Counters) -> u64 {
    Cause::ALL.map(|cause| counters.refused(cause)).iter().sum()
}
