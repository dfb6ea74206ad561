//! Servers and strangers over real sockets and real TLS on loopback.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "common/pki.rs"]
mod pki;
#[path = "common/standing.rs"]
mod standing;

use std::collections::HashSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssl::pkey::{PKey, Private};
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
use stek_share::core::knocks::{Allowance, STRANGERS};
use stek_share::core::server_id::ServerId;
use stek_share::log_sink::{Level, Log, LogSink};
use stek_share::transport::frame::{self, Body, Header, Kind, Role};
use stek_share::transport::listener::{
    Caller, ListenDeps, ListenSettings, Listener, Refusal, Service, CONNECTIONS_PER_MEMBER,
    MAX_HANDSHAKES,
};
use stek_share::transport::peers::{call_once, CallError, Peers, DIAL_LIMIT, MAX_QUEUE};
use stek_share::transport::tls::{HandshakeError, Tls, TlsError};
use stek_share::transport::{
    one_line, Bounds, Cause, Counters, LastSeen, Me, Versions, FRAME_LIMIT, IDLE_LIMIT,
    MAX_IN_FLIGHT,
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
    fn admit(&self, hello: &Header) -> Result<(), Refusal> {
        self.admitted.fetch_add(1, Ordering::Relaxed);
        match self.members.lock().unwrap().contains(&hello.sender.0) {
            true => Ok(()),
            false => Err(Refusal::NotAMember),
        }
    }

    fn take_note(&self, from: &Caller, body: Body) -> bool {
        self.begun.lock().unwrap().push((from.id.0, body.to_vec()));
        body.first() != Some(&b'X')
    }

    async fn serve(self: Arc<Self>, from: Caller, body: Body) -> Option<Body> {
        self.version.store(from.version, Ordering::Relaxed);
        self.begun.lock().unwrap().push((from.id.0, body.to_vec()));
        match body.first() {
            Some(b'N') => std::future::pending().await,
            Some(b'W') => self.release.notified().await,
            Some(b'X') => return None,
            _ => {}
        }
        Some(body)
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
        let me = Me::member(ServerId(id), 77, || CLUSTER_ID).speaking(versions);
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
    Member { id: ServerId(id), address, port: addr.port(), subject: None }
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

fn header(sender: u32, request: u32) -> Header {
    Header {
        version: frame::VERSION_MAX,
        role: Role::Member,
        sender: ServerId(sender),
        incarnation: 5,
        cluster_id: CLUSTER_ID,
        request,
        kind: Kind::Request,
    }
}

fn request(sender: u32, body: &[u8]) -> Vec<u8> {
    frame::encode(&header(sender, 1), body).unwrap().to_vec()
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
            let _ = stream.write_all(&request(2, b"let me in")).await;
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

// ---------------------------------------------------------------- among members

#[tokio::test]
async fn servers_of_one_ca_talk_in_both_directions() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    assert_eq!(one.ask(2, b"hello").await.unwrap(), b"hello");
    assert_eq!(two.ask(1, b"").await.unwrap(), b"");
    let long = vec![7; frame::MAX_BODY];
    assert_eq!(one.ask(2, &long).await.unwrap(), long);
    let too_long = vec![7; frame::MAX_BODY + 1];
    assert_eq!(one.ask(2, &too_long).await, Err(CallError::TooLong(too_long.len())));
    assert_eq!(one.ask(9, b"who").await, Err(CallError::UnknownPeer));
    assert_eq!(two.counters.accepted(), 1, "all requests share one connection");
    assert_eq!(two.counters.requests(), 2);
    for (a, b) in [(&one, &two), (&two, &one)] {
        assert!(a.peers.last_heard(ServerId(b.id)).is_some());
        assert!(a.heard.last(ServerId(b.id)).is_some());
        assert!(a.lines.have(Level::Note, &format!("peer {} (127.0.0.1", b.id)));
    }
}

#[tokio::test]
async fn one_self_signed_certificate_serves_as_root_and_leaf() {
    for is_ca in [true, false] {
        let only = Spec { is_ca, ..Spec::default() }.make();
        let (one, two) = pair(tls(&only, &only), tls(&only, &only)).await;
        assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
        assert_eq!(two.ask(1, b"y").await.unwrap(), b"y");
    }
}

#[tokio::test]
async fn a_leaf_for_servers_only_may_dial() {
    let root = pki::root("root");
    let leaf = || {
        let issuer = Some(&root);
        tls(&root, &Spec { issuer, usage: Some("serverAuth"), ..Spec::default() }.make())
    };
    let (one, two) = pair(leaf(), leaf()).await;
    assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
    assert_eq!(two.ask(1, b"y").await.unwrap(), b"y");
}

#[tokio::test]
async fn an_intermediate_is_sent_along() {
    let root = pki::root("root");
    let middle =
        Spec { subject: "/CN=middle", issuer: Some(&root), is_ca: true, ..Spec::default() };
    let middle = middle.make();
    let leaf = pki::leaf(&middle);
    let chain = [leaf.cert_pem(), middle.cert_pem()].concat();
    let tls = || Tls::from_pem(&root.cert_pem(), &chain, &leaf.key_pem(), SUBJECT).unwrap();
    let (one, _two) = pair(tls(), tls()).await;
    assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
    let alone = tls_for(&root, &leaf, SUBJECT);
    assert!(matches!(alone, Err(TlsError::ChainUntrusted { .. })), "{alone:?}");
}

#[tokio::test]
async fn tls_1_2_is_spoken_and_1_1_is_not() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let context = raw_context(Some(&leaf), Some(SslVersion::TLS1_2));
    let mut stream = raw_connect(&context, two.addr).await.unwrap();
    assert_eq!(stream.ssl().version_str(), "TLSv1.2");
    let id = stream.ssl().session().unwrap().id().to_vec();
    assert!(id.is_empty(), "a session that could be resumed: {id:?}");
    stream.write_all(&request(1, b"abc")).await.unwrap();
    let mut answer = vec![0; frame::HEADER_LEN + 3];
    stream.read_exact(&mut answer).await.unwrap();
    let (header, body, _) = frame::decode(&answer).unwrap().unwrap();
    assert_eq!((header.kind, header.sender, body), (Kind::Response, ServerId(2), &b"abc"[..]));
    let context = raw_context(Some(&leaf), Some(SslVersion::TLS1_1));
    assert!(raw_connect(&context, two.addr).await.is_err());
    until("counted", || two.counters.refused(Cause::NotOurTls) == 1).await;
}

#[tokio::test]
async fn no_session_ticket_is_issued() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let mut context = SslContextBuilder::new(SslMethod::tls()).unwrap();
    context.set_certificate(&leaf.cert).unwrap();
    context.set_private_key(&leaf.key).unwrap();
    context.set_session_cache_mode(SslSessionCacheMode::CLIENT);
    let tickets = Arc::new(AtomicUsize::new(0));
    let count = tickets.clone();
    context.set_new_session_callback(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut stream = raw_connect(&context.build(), two.addr).await.unwrap();
    assert_eq!(stream.ssl().version_str(), "TLSv1.3");
    stream.write_all(&request(1, b"abc")).await.unwrap();
    stream.read_exact(&mut [0; frame::HEADER_LEN + 3]).await.unwrap();
    assert_eq!(tickets.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn new_certificates_are_used_by_new_connections() {
    let (old, new) = (pki::root("old"), pki::root("new"));
    let (one, two) = pair(tls(&old, &pki::leaf(&old)), tls(&old, &pki::leaf(&old))).await;
    one.ask(2, b"x").await.unwrap();
    two.swap.send_replace(tls(&new, &pki::leaf(&new)));
    assert!(matches!(one.ask(2, b"old").await, Err(CallError::Unreachable(_))));
    let three = Box_::start(3, tls(&new, &pki::leaf(&new))).await;
    three.peers.set_members(&[two.member()]);
    assert_eq!(three.ask(2, b"new").await.unwrap(), b"new");
    let late = Box_::start(4, tls(&old, &pki::leaf(&old))).await;
    late.peers.set_members(&[two.member()]);
    assert!(matches!(late.ask(2, b"old").await, Err(CallError::Unreachable(_))));
}

// ---------------------------------------------------------------- certificates of their own

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

const NOT_ITS_OWN: &str = "its certificate is not the one listed for this server_id";

#[tokio::test]
async fn members_with_certificates_of_their_own_talk_to_the_others() {
    let root = pki::root("root");
    for common in [SUBJECT, ""] {
        let one = Box_::start(1, tls_as(&root, "/CN=one", common)).await;
        let two = Box_::start(2, tls_as(&root, "/CN=two", common)).await;
        let three = Box_::start(3, tls_as(&root, SUBJECT, common)).await;
        let members = [named(&one, "/CN=one"), named(&two, "/CN=two"), three.member()];
        change_membership(&[&one, &two, &three], &members);
        for (from, to) in [(&one, 2), (&two, 1), (&one, 3), (&three, 1)] {
            assert_eq!(from.ask(to, b"x").await.unwrap(), b"x", "{common:?}: {} {to}", from.id);
        }
    }
}

/// Neither another server's certificate nor the one that all others share is good enough.
#[tokio::test]
async fn a_server_with_a_certificate_that_is_not_its_own_is_refused_on_both_sides() {
    let root = pki::root("root");
    for wrong in ["/CN=three", SUBJECT] {
        let one = Box_::start(1, tls_as(&root, "/CN=one", SUBJECT)).await;
        let two = Box_::start(2, tls_as(&root, wrong, SUBJECT)).await;
        let three = Member { id: ServerId(3), ..named(&one, "/CN=three") };
        change_membership(&[&one, &two], &[named(&one, "/CN=one"), named(&two, "/CN=two"), three]);
        // When it is dialled, not a byte is sent to it.
        let error = one.ask(2, b"secret").await.unwrap_err();
        assert!(error.to_string().contains(NOT_ITS_OWN), "{wrong}: {error}");
        until("told", || one.lines.have(Level::Warning, NOT_ITS_OWN)).await;
        until("told there", || two.lines.have(Level::Warning, "refused our handshake")).await;
        assert_eq!((two.begun(), two.service.admitted.load(Ordering::Relaxed)), (0, 0));
        // When it dials, it is told.
        assert_eq!(two.ask(1, b"x").await, Err(CallError::Refused(Refusal::Certificate)));
        until("counted", || one.counters.refused(Cause::OtherCertificate) == 1).await;
        assert!(one.lines.have(Level::Warning, "calls itself server_id 2, but its certificate"));
        until("told", || two.lines.have(Level::Warning, "refuses this server: its certificate"))
            .await;
        assert_eq!((one.begun(), one.heard.last(ServerId(2))), (0, None));
        // The same for an operator's command that names that server.
        let tls = two.swap.borrow().clone();
        let at = ("127.0.0.1", one.addr.port());
        let refused = call_once(&tls, &Me::tool(ServerId(2)), at, b"x", PATIENCE).await;
        assert_eq!(refused, Err(CallError::Refused(Refusal::Certificate)));
        assert_eq!(one.begun(), 0);
    }
}

#[tokio::test]
async fn who_may_connect_follows_the_list() {
    let root = pki::root("root");
    let one = Box_::start(1, tls_as(&root, "/CN=one", "")).await;
    let two = Box_::start(2, tls_as(&root, "/CN=two", "")).await;
    let alone = [named(&one, "/CN=one")];
    let both = [named(&one, "/CN=one"), named(&two, "/CN=two")];
    change_membership(&[&one], &alone);
    change_membership(&[&two], &both);
    assert!(!one.swap.borrow().accepts_any_subject(), "each entry names its own");
    assert!(matches!(two.ask(1, b"x").await, Err(CallError::Unreachable(_))));
    until("counted", || one.counters.refused(Cause::WrongSubject) == 1).await;
    assert_eq!(one.service.admitted.load(Ordering::Relaxed), 0, "no frame of it was read");
    change_membership(&[&one], &both);
    let begun = Instant::now();
    while two.ask(1, b"x").await.is_err() {
        assert!(begun.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
    // A connection that is up is checked anew, and closed.
    change_membership(&[&one], &[named(&one, "/CN=one"), named(&two, "/CN=new")]);
    assert!(matches!(two.ask(1, b"x").await, Err(CallError::Unreachable(_))));
}

// ---------------------------------------------------------------- neighbouring versions

const fn versions(min: u8, max: u8) -> Versions {
    Versions { min, max }
}

#[tokio::test]
async fn neighbours_of_different_versions_agree_on_the_newest_that_both_speak() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    for (ours, theirs, agreed) in [
        (versions(1, 1), versions(1, 2), 1),
        (versions(1, 2), versions(1, 2), 2),
        (versions(1, 4), versions(2, 3), 3),
    ] {
        let one = Box_::speaking(1, leaf(), ours).await;
        let two = Box_::speaking(2, leaf(), theirs).await;
        for server_ in [&one, &two] {
            server_.peers.set_members(&[one.member(), two.member()]);
        }
        for (from, to) in [(&one, &two), (&two, &one)] {
            // Several at once: none is lost or served twice when the version changes.
            let many = (0..10_u8).map(|n| {
                let peers = from.peers.clone();
                let to = to.id;
                async move { ask(&peers, to, &[n], PATIENCE).await.unwrap()[0] }
            });
            let mut answers = many.collect::<JoinSet<_>>().join_all().await;
            answers.sort_unstable();
            assert_eq!(answers, (0..10).collect::<Vec<_>>());
            assert_eq!(to.begun(), 10);
            assert_eq!(to.service.version.load(Ordering::Relaxed), agreed);
            assert_eq!(to.counters.accepted(), 1, "on one connection");
            assert_eq!(to.counters.all_refused(), 0);
            let tool = Me::tool(ServerId(from.id)).speaking(from.versions);
            let tls = from.swap.borrow().clone();
            let answer = call_once(&tls, &tool, ("127.0.0.1", to.addr.port()), b"x", PATIENCE);
            assert_eq!(answer.await.unwrap().as_slice(), b"x");
            assert_eq!(to.service.version.load(Ordering::Relaxed), agreed);
        }
        let lines =
            [&one, &two].map(|b| b.lines.have(Level::Note, &format!("version {agreed} is")));
        assert_eq!(lines, [ours.max > agreed, theirs.max > agreed]);
        for server_ in [&one, &two] {
            let lines = server_.lines.0.lock().unwrap();
            assert!(lines.iter().all(|(level, _)| *level < Level::Warning), "{lines:?}");
        }
    }
}

#[tokio::test]
async fn neighbours_without_a_common_version_part_and_both_say_so() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let one = Box_::speaking(1, leaf(), versions(1, 1)).await;
    let two = Box_::speaking(2, leaf(), versions(2, 3)).await;
    for server_ in [&one, &two] {
        server_.peers.set_members(&[one.member(), two.member()]);
    }
    let to_one = "it speaks protocol versions 2 to 3, this server version 1; run versions";
    let to_two = "it speaks protocol version 1, this server versions 2 to 3; run versions";
    for (from, to, here, there) in [(&one, &two, to_one, to_two), (&two, &one, to_two, to_one)] {
        let error = from.ask(to.id, b"x").await.unwrap_err();
        assert!(error.to_string().contains(here), "{error}");
        until("told", || from.lines.have(Level::Warning, &format!("127.0.0.1:{}", to.addr.port())))
            .await;
        let line = format!("it calls itself server_id {}, and {there}", from.id);
        until("told there", || to.lines.have(Level::Warning, &line)).await;
        until("counted", || to.counters.refused(Cause::Version) == 1).await;
        let tool = Me::tool(ServerId(from.id)).speaking(from.versions);
        let tls = from.swap.borrow().clone();
        let answer = call_once(&tls, &tool, ("127.0.0.1", to.addr.port()), b"x", PATIENCE).await;
        assert!(answer.unwrap_err().to_string().contains(here));
        until("counted", || to.counters.refused(Cause::Version) == 2).await;
        assert_eq!(to.service.admitted.load(Ordering::Relaxed), 0);
    }
}

// ---------------------------------------------------------------- requests

#[tokio::test]
async fn requests_begin_in_order_and_do_not_wait_for_each_other() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    one.ask(2, b"first").await.unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let peers = one.peers.clone();
            tokio::spawn(async move { ask(&peers, 2, b"W", PATIENCE).await })
        })
        .collect();
    until("the long ones are being served", || two.begun() == 4).await;
    let mut many = JoinSet::new();
    for n in 0..20_u8 {
        // On this runtime of one thread, tasks are first polled in the order of their making.
        let peers = one.peers.clone();
        many.spawn(async move { ask(&peers, 2, &[n], PATIENCE).await.unwrap()[0] });
    }
    let mut answers = many.join_all().await;
    answers.sort_unstable();
    assert_eq!(answers, (0..20).collect::<Vec<_>>());
    let begun: Vec<u8> = two.service.begun.lock().unwrap()[4..].iter().map(|b| b.1[0]).collect();
    assert_eq!(begun, (0..20).collect::<Vec<_>>());
    for _ in 0..3 {
        two.service.release.notify_one();
    }
    for request in waiting {
        assert_eq!(request.await.unwrap().unwrap(), b"W");
    }
    assert_eq!(two.counters.accepted(), 1);
}

#[tokio::test]
async fn more_requests_than_are_served_at_once_wait_their_turn() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let all = MAX_IN_FLIGHT + 8;
    let waiting: Vec<_> = (0..all)
        .map(|_| {
            let peers = one.peers.clone();
            tokio::spawn(async move { ask(&peers, 2, b"W", PATIENCE).await })
        })
        .collect();
    until("as many as may are served", || two.begun() == MAX_IN_FLIGHT).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(two.begun(), MAX_IN_FLIGHT);
    for served in 1..=all {
        two.service.release.notify_one();
        until("the next one is served", || two.begun() == (MAX_IN_FLIGHT + served).min(all)).await;
    }
    for request in waiting {
        assert_eq!(request.await.unwrap().unwrap(), b"W");
    }
}

#[tokio::test]
async fn a_dialler_without_measure_is_read_no_further() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let mut stream = raw_connect(&raw_context(Some(&leaf), None), two.addr).await.unwrap();
    let all = MAX_IN_FLIGHT + 8;
    stream.write_all(&request(1, b"W").repeat(all)).await.unwrap();
    until("as many as may are served", || two.begun() == MAX_IN_FLIGHT).await;
    // Long enough for a further one to show, had it been read.
    sleep(Duration::from_millis(100)).await;
    assert_eq!(two.begun(), MAX_IN_FLIGHT);
    for served in 1..=all {
        two.service.release.notify_one();
        stream.read_exact(&mut [0; frame::HEADER_LEN + 1]).await.unwrap();
        until("the next is served", || two.begun() == (MAX_IN_FLIGHT + served).min(all)).await;
    }
}

#[tokio::test]
async fn a_peer_that_accepts_and_says_nothing_costs_a_bounded_time() {
    let root = pki::root("root");
    let one = Box_::start(1, tls(&root, &pki::leaf(&root))).await;
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.peers.set_members(&[member(2, mute.local_addr().unwrap())]);
    let begun = Instant::now();
    let peers = one.peers.clone();
    let first = tokio::spawn(async move { ask(&peers, 2, b"x", PATIENCE).await });
    let (_kept, _) = mute.accept().await.unwrap();
    let short = Duration::from_millis(50);
    assert_eq!(ask(&one.peers, 2, b"x", short).await, Err(CallError::TimedOut));
    let mut many = JoinSet::new();
    for _ in 0..MAX_QUEUE + 8 {
        let peers = one.peers.clone();
        many.spawn(async move { ask(&peers, 2, b"x", PATIENCE).await.unwrap_err() });
    }
    let errors = many.join_all().await;
    let busy = errors.iter().filter(|error| **error == CallError::Busy).count();
    assert!(busy >= 8 && busy < errors.len(), "{busy} of {}", errors.len());
    let error = first.await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Unreachable(why) if why.contains("in time")), "{error}");
    assert!(begun.elapsed() >= DIAL_LIMIT / 2 && begun.elapsed() < DIAL_LIMIT * 3);
}

#[tokio::test]
async fn notes_come_in_their_turn_and_get_no_answer() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &leaf)).await;
    one.ask(2, b"a").await.unwrap();
    let expected = [&b"a"[..], b"b", b"c", b"d"].map(|body| (1, body.to_vec()));
    for body in [b"b", b"c"] {
        one.peers.note(ServerId(2), Body::new(body.to_vec()), PATIENCE);
    }
    one.ask(2, b"d").await.unwrap();
    assert_eq!(*two.service.begun.lock().unwrap(), expected);
    assert_eq!(two.counters.requests(), 2);
    // What stands on the wire: nothing comes between the answers to what was asked.
    let mut stream = raw_connect(&raw_context(Some(&leaf), None), two.addr).await.unwrap();
    let note = frame::encode(&Header { kind: Kind::Note, ..header(1, 0) }, b"n").unwrap();
    stream.write_all(&[note.to_vec(), request(1, b"r"), note.to_vec()].concat()).await.unwrap();
    until("the last note is there", || two.begun() == expected.len() + 3).await;
    stream.shutdown().await.unwrap();
    let got = drain(&mut stream).await;
    let (header, body, rest) = frame::decode(&got).unwrap().unwrap();
    assert_eq!((header.kind, body, rest), (Kind::Response, &b"r"[..], &b""[..]));
}

#[tokio::test]
async fn a_note_waits_for_nothing() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let note = |body: &[u8], limit| one.peers.note(ServerId(2), Body::new(body.to_vec()), limit);
    // Nobody is dialled for its sake, nor is it kept for the next connection.
    (0..3).for_each(|_| note(b"early", PATIENCE));
    sleep(Duration::from_millis(50)).await;
    assert_eq!((two.counters.accepted(), two.begun()), (0, 0));
    let peers = one.peers.clone();
    let asked = tokio::spawn(async move { ask(&peers, 2, b"W", PATIENCE).await });
    until("the request is served", || two.begun() == 1).await;
    // Before an answer came nobody knows what the other side speaks.
    note(b"unsettled", PATIENCE);
    two.service.release.notify_one();
    asked.await.unwrap().unwrap();
    note(b"late", Duration::ZERO);
    note(b"now", PATIENCE);
    one.ask(2, b"last").await.unwrap();
    let begun: Vec<_> = two.service.begun.lock().unwrap().iter().map(|b| b.1.clone()).collect();
    assert_eq!(begun, [&b"W"[..], b"now", b"last"]);
}

#[tokio::test]
async fn a_dropped_request_harms_nobody() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    for begun in 1..=10 {
        let dropped = one.ask(2, b"W");
        tokio::select! {
            answer = dropped => panic!("answered: {answer:?}"),
            () = until("it is served", || two.begun() == 2 * begun - 1) => {}
        }
        assert_eq!(one.ask(2, b"next").await.unwrap(), b"next");
    }
    assert_eq!(two.counters.accepted(), 1, "the connection outlived them all");
}

/// Whoever wanted to ask was gone before the connection was up.
#[tokio::test]
async fn a_connection_that_nobody_uses_makes_no_stranger_of_this_server() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let slow = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.peers.set_members(&[member(2, slow.local_addr().unwrap())]);
    let peers = one.peers.clone();
    let gone = tokio::spawn(async move { ask(&peers, 2, b"x", PATIENCE).await });
    let (mut near, _) = slow.accept().await.unwrap();
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let mut far = TcpStream::connect(two.addr).await.unwrap();
    let relay = tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
    until("it has ended", || two.counters.all_refused() > 0).await;
    assert_eq!(two.counters.refused(Cause::ClosedEarly), 1);
    assert_eq!((two.counters.all_refused(), two.begun()), (1, 0));
    assert!(!two.lines.have(Level::Warning, "refused"));
    relay.abort();
    // Nor is there anything to be patient with.
    one.peers.set_members(&[two.member()]);
    assert_eq!(one.ask(2, b"again").await.unwrap(), b"again");
}

/// A far peer that is busy for a moment: dialling it anew would take longer.
#[tokio::test]
async fn a_connection_on_which_an_answer_comes_late_is_kept() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let short = Duration::from_secs(3);
    assert_eq!(ask(&one.peers, 2, b"W", short).await, Err(CallError::TimedOut));
    two.service.release.notify_one();
    assert_eq!(one.ask(2, b"again").await.unwrap(), b"again");
    assert_eq!(two.counters.accepted(), 1);
    assert!(!one.lines.have(Level::Note, "is down"));
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_back_is_given_up() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let short = Duration::from_millis(100);
    one.ask(2, b"x").await.unwrap();
    assert_eq!(ask(&one.peers, 2, b"N", short).await, Err(CallError::TimedOut));
    until("told", || one.lines.have(Level::Note, "is down: it does not answer")).await;
    assert_eq!(one.ask(2, b"again").await.unwrap(), b"again");
    assert_eq!(two.counters.accepted(), 2);
    // The same if the caller did not stay to see its time run out.
    let peers = one.peers.clone();
    let gone = tokio::spawn(async move { ask(&peers, 2, b"N", short).await });
    until("it is served", || two.begun() == 4).await;
    gone.abort();
    until("given up", || two.listener.connections() == 0).await;
}

#[tokio::test]
async fn a_peer_that_comes_back_is_dialled_again() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    one.ask(2, b"x").await.unwrap();
    let addr = two.addr;
    drop(two);
    until("noticed", || one.lines.have(Level::Note, "is down")).await;
    assert!(matches!(one.ask(2, b"x").await, Err(CallError::Unreachable(_))));
    let begun = Instant::now();
    let error = one.ask(2, b"x").await;
    assert!(matches!(error, Err(CallError::Unreachable(_))), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "fails at once while it waits to redial");
    let _two = Box_::start_at(2, leaf(), addr).await;
    let begun = Instant::now();
    while one.ask(2, b"x").await.is_err() {
        assert!(begun.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
    let lines = one.lines.0.lock().unwrap();
    assert!(lines.iter().all(|(level, _)| *level < Level::Warning), "no alarm: {lines:?}");
}

#[tokio::test]
async fn a_new_address_takes_effect() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    one.ask(2, b"x").await.unwrap();
    let moved = Box_::start(2, leaf()).await;
    one.peers.set_members(&[one.member(), moved.member()]);
    one.ask(2, b"x").await.unwrap();
    assert_eq!((two.begun(), moved.begun()), (1, 1));
    until("the old connection is closed", || two.listener.connections() == 0).await;
    one.peers.set_members(&[one.member()]);
    assert_eq!(one.ask(2, b"x").await, Err(CallError::UnknownPeer));
}

#[tokio::test]
async fn a_host_name_is_resolved_and_a_tool_needs_no_list() {
    let root = pki::root("root");
    let tls = tls(&root, &pki::leaf(&root));
    let two = Box_::start(2, tls.clone()).await;
    let at = ("localhost", two.addr.port());
    let answer = call_once(&tls, &Me::tool(ServerId(1)), at, b"status", PATIENCE).await.unwrap();
    assert_eq!(answer.as_slice(), b"status");
    assert_eq!(two.heard.last(ServerId(1)), None, "a tool is no sign of life of its server");
    let refused = call_once(&tls, &Me::tool(ServerId(6)), at, b"status", PATIENCE).await;
    assert_eq!(refused, Err(CallError::Refused(Refusal::NotAMember)));
}

// ---------------------------------------------------------------- verified, but wrong

#[tokio::test]
async fn who_is_no_member_is_told_so() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let two = Box_::start(2, leaf()).await;
    let nobody = Box_::start(6, leaf()).await;
    nobody.peers.set_members(&[two.member()]);
    assert_eq!(nobody.ask(2, b"x").await, Err(CallError::Refused(Refusal::NotAMember)));
    until("told", || nobody.lines.have(Level::Warning, "refuses this server")).await;
    until("counted", || two.counters.refused(Cause::NotAMember) == 1).await;
    assert!(two.lines.have(Level::Warning, "calls itself server_id 6"));
    assert_eq!((two.begun(), two.heard.last(ServerId(6))), (0, None));
}

#[tokio::test]
async fn a_server_that_is_another_one_is_not_asked_twice() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = (Box_::start(1, leaf()).await, Box_::start(2, leaf()).await);
    one.peers.set_members(&[member(3, two.addr)]);
    assert!(matches!(one.ask(3, b"x").await, Err(CallError::Unreachable(_))));
    until("told", || one.lines.have(Level::Warning, "calls itself server_id 2")).await;
    assert_eq!(one.heard.last(ServerId(3)), None);
}

#[tokio::test]
async fn a_member_that_breaks_the_rules_is_closed() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let context = raw_context(Some(&leaf), None);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let with = |at: usize, byte: u8| {
        let mut bytes = request(1, b"body");
        bytes[at] = byte;
        bytes
    };
    let response = frame::encode(&Header { kind: Kind::Response, ..header(1, 1) }, b"").unwrap();
    let note = frame::encode(&Header { kind: Kind::Note, ..header(1, 0) }, b"X").unwrap();
    let cases = [
        ("oversized", vec![0, 0x10, 0, 1], Cause::BadFrame, 0),
        ("huge", vec![0xff; 64], Cause::BadFrame, 0),
        ("too short", with(3, 34), Cause::BadFrame, 0),
        ("version", with(4, 9), Cause::Version, 0),
        ("role", with(5, 9), Cause::BadFrame, 0),
        ("kind", with(38, 9), Cause::BadFrame, 0),
        ("notice", with(4, 0), Cause::Version, 0),
        ("response", response.to_vec(), Cause::BadFrame, 0),
        ("no request", request(1, b"X"), Cause::BadFrame, 1),
        ("no note", note.to_vec(), Cause::BadFrame, 1),
        ("other sender", [request(1, b"N"), request(3, b"N")].concat(), Cause::BadFrame, 1),
    ];
    for (what, bytes, cause, served) in cases {
        let (counted, begun) = (two.counters.refused(cause), two.begun());
        let mut stream = raw_connect(&context, two.addr).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let got = timeout(Duration::from_secs(5), drain(&mut stream)).await.expect(what);
        match what {
            // It might go on in a version that we speak; it is told which ones those are.
            "version" => {
                let (notice, body, rest) = frame::decode(&got).unwrap().unwrap();
                assert_eq!((notice.version, notice.kind), (frame::NOTICE, Kind::Refused));
                assert_eq!((Versions::of_notice(body), rest), (Some(Versions::OURS), &b""[..]));
            }
            _ => assert_eq!(got, b"", "{what}"),
        }
        until(what, || two.counters.refused(cause) == counted + 1).await;
        assert_eq!(two.begun(), begun + served, "{what}");
    }
    assert!(two.lines.have(Level::Warning, "protocol version 9"));
    assert!(two.lines.have(Level::Warning, "refused 127.0.0.1:"));
}

/// A verified connection that has asked, and was answered, as `sender`.
async fn established(context: &SslContext, to: SocketAddr, sender: Header) -> SslStream<TcpStream> {
    let mut stream = raw_connect(context, to).await.unwrap();
    stream.write_all(&frame::encode(&sender, b"x").unwrap()).await.unwrap();
    stream.read_exact(&mut [0; frame::HEADER_LEN + 1]).await.unwrap();
    stream
}

#[tokio::test]
async fn one_certificate_cannot_take_the_places_of_others() {
    let root = pki::root("root");
    let (own, enemy) = (pki::leaf(&root), pki::leaf(&root));
    let bounds = Bounds { spare: 4, ..Bounds::default() };
    let two = Box_::within(2, tls(&root, &pki::leaf(&root)), bounds).await;
    let (own, enemy) = (raw_context(Some(&own), None), raw_context(Some(&enemy), None));
    let stays = |sender, role| Header { role, ..header(sender, 1) };
    let mut kept = Vec::new();
    // Four times as many as there are places, under each id, as a tool, and saying nothing.
    for round in 0..4 * CONNECTIONS_PER_MEMBER {
        for sender in [1, 3, 4] {
            kept.push(established(&enemy, two.addr, stays(sender, Role::Member)).await);
        }
        kept.push(established(&enemy, two.addr, stays(1, Role::Tool)).await);
        kept.push(raw_connect(&enemy, two.addr).await.unwrap());
        if round == 0 {
            assert_eq!(two.counters.refused(Cause::OverLimit), 0);
        }
    }
    let most = 3 * CONNECTIONS_PER_MEMBER + bounds.spare;
    until("no more than may campaign", || two.listener.connections() <= most).await;
    assert!(two.lines.have(Level::Warning, "has too many; it gave way"));
    // A member and a tool of another certificate come, and stay whatever the enemy does.
    let mut member = established(&own, two.addr, stays(1, Role::Member)).await;
    let mut tool = established(&own, two.addr, stays(1, Role::Tool)).await;
    for _ in 0..2 * CONNECTIONS_PER_MEMBER {
        kept.push(established(&enemy, two.addr, stays(1, Role::Member)).await);
        kept.push(established(&enemy, two.addr, stays(1, Role::Tool)).await);
    }
    for (stream, role) in [(&mut member, Role::Member), (&mut tool, Role::Tool)] {
        stream.write_all(&frame::encode(&stays(1, role), b"x").unwrap()).await.unwrap();
        stream.read_exact(&mut [0; frame::HEADER_LEN + 1]).await.expect("it stands");
    }
    until("no more than may campaign", || two.listener.connections() <= most).await;
}

#[tokio::test]
async fn a_member_that_comes_back_again_and_again_is_always_let_in() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let context = raw_context(Some(&leaf), None);
    let mut kept = Vec::new();
    // As after power cuts: nobody closed the earlier ones.
    for _ in 0..3 * CONNECTIONS_PER_MEMBER {
        kept.push(established(&context, two.addr, header(1, 1)).await);
    }
    until("the oldest gave way", || two.listener.connections() == CONNECTIONS_PER_MEMBER).await;
    let newest = kept.last_mut().unwrap();
    newest.write_all(&request(1, b"x")).await.unwrap();
    newest.read_exact(&mut [0; frame::HEADER_LEN + 1]).await.unwrap();
    drop(kept);
    until("all are gone", || two.listener.connections() == 0).await;
}

#[tokio::test]
async fn idle_and_stuck_connections_are_closed() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let context = raw_context(Some(&leaf), None);
    let (mut idle, mut stuck) = (
        raw_connect(&context, two.addr).await.unwrap(),
        raw_connect(&context, two.addr).await.unwrap(),
    );
    for stream in [&mut idle, &mut stuck] {
        stream.write_all(&request(1, b"x")).await.unwrap();
        stream.read_exact(&mut [0; frame::HEADER_LEN + 1]).await.unwrap();
    }
    stuck.write_all(&request(1, b"half of it")[..20]).await.unwrap();
    // Until the half frame is there, only so many milliseconds pass; then ten seconds at once.
    sleep(Duration::from_millis(200)).await;
    tokio::time::pause();
    tokio::time::advance(FRAME_LIMIT + Duration::from_secs(1)).await;
    tokio::time::resume();
    assert_eq!(drain(&mut stuck).await, b"");
    until("counted", || two.counters.refused(Cause::TooSlow) == 1).await;
    assert_eq!(two.listener.connections(), 1);
    tokio::time::pause();
    tokio::time::advance(IDLE_LIMIT).await;
    tokio::time::resume();
    assert_eq!(drain(&mut idle).await, b"");
    until("closed", || two.listener.connections() == 0).await;
}

// ---------------------------------------------------------------- strangers

/// Certificates that must open no door, with what is counted for them.
fn bad_identities(root: &Identity) -> Vec<(&'static str, Option<Identity>, Cause)> {
    let foreign = pki::root("root");
    let of_root = Spec { issuer: Some(root), ..Spec::default() };
    let make = |spec: Spec<'_>| Some(spec.make());
    vec![
        ("no certificate", None, Cause::NoCertificate),
        ("a foreign CA", Some(pki::leaf(&foreign)), Cause::Untrusted),
        ("a self-signed one", make(Spec::default()), Cause::Untrusted),
        (
            "a wrong subject",
            make(Spec { subject: "/C=US/ST=IL/O=Yahoo/OU=Edge/CN=stek-sharf", ..of_root.clone() }),
            Cause::WrongSubject,
        ),
        (
            "a longer subject",
            make(Spec {
                subject: "/C=US/ST=IL/O=Yahoo/OU=Edge/CN=stek-share/CN=x",
                ..of_root.clone()
            }),
            Cause::WrongSubject,
        ),
        ("an expired one", make(Spec { not_after: -60, ..of_root.clone() }), Cause::Untrusted),
        ("a future one", make(Spec { not_before: 3600, ..of_root.clone() }), Cause::Untrusted),
        (
            "one for signing code",
            make(Spec { usage: Some("codeSigning"), ..of_root.clone() }),
            Cause::Untrusted,
        ),
        ("one for clients", make(Spec { usage: Some("clientAuth"), ..of_root }), Cause::Untrusted),
    ]
}

#[tokio::test]
async fn strangers_are_neither_heard_nor_answered() {
    let root = pki::root("root");
    let two = Box_::start(2, tls(&root, &pki::leaf(&root))).await;
    for (who, identity, cause) in bad_identities(&root) {
        for newest in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
            let before = two.counters.refused(cause);
            let context = raw_context(identity.as_ref(), Some(newest));
            let got = timeout(Duration::from_secs(5), intrude(&context, two.addr)).await;
            assert_eq!(got.expect(who), b"", "{who}");
            until(who, || two.counters.refused(cause) == before + 1).await;
        }
    }
    let garbage: Vec<u8> =
        (0..9000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [&request(1, b"in clear")[..], b"GET / HTTP/1.1\r\n\r\n", &garbage, &[0; 512]] {
        let got = timeout(Duration::from_secs(5), intrude_in_clear(bytes, two.addr)).await;
        assert_eq!(got.expect("garbage is closed"), b"");
    }
    until("counted", || two.counters.refused(Cause::NotOurTls) == 4).await;
    assert_eq!(two.counters.accepted(), 0);
    assert_eq!((two.service.admitted.load(Ordering::Relaxed), two.begun()), (0, 0));
}

#[tokio::test]
async fn silent_and_slow_strangers_are_closed_in_time() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let limit = Duration::from_secs(5);
    let silent = async {
        let mut tcp = TcpStream::connect(two.addr).await.unwrap();
        drain(&mut tcp).await
    };
    let dripping = async {
        let (mut read, mut write) = TcpStream::connect(two.addr).await.unwrap().into_split();
        let drip = async {
            // The beginning of a handshake record that never ends.
            let _ = write.write_all(&[22, 3, 1, 1, 0]).await;
            while write.write_all(&[1]).await.is_ok() {
                sleep(Duration::from_millis(100)).await;
            }
            std::future::pending().await
        };
        tokio::select! { got = drain(&mut read) => got, () = drip => Vec::new() }
    };
    let verified_but_mute = async {
        let mut stream = raw_connect(&raw_context(Some(&leaf), None), two.addr).await.unwrap();
        drain(&mut stream).await
    };
    let (a, b, c) = tokio::join!(
        timeout(limit, silent),
        timeout(limit, dripping),
        timeout(limit, verified_but_mute)
    );
    assert_eq!((a, b, c), (Ok(vec![]), Ok(vec![]), Ok(vec![])));
    until("counted", || two.counters.refused(Cause::TooSlow) == 3).await;
    assert_eq!(two.service.admitted.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn silent_strangers_cannot_keep_a_member_out() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    let mut strangers = Vec::new();
    for _ in 0..MAX_HANDSHAKES + 10 {
        strangers.push(TcpStream::connect(two.addr).await.unwrap());
    }
    assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
    assert!(two.counters.refused(Cause::OverLimit) >= 10, "the oldest gave way");
}

#[tokio::test]
async fn an_address_that_tries_in_vain_is_closed_unheard_and_no_other() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    let from = |host: [u8; 4]| async move {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((host, 0).into()).unwrap();
        socket.connect(two.addr).await.unwrap()
    };
    let (stranger, other) = ([127, 2, 0, 1], [127, 2, 0, 2]);
    let bad = raw_context(None, None);
    let knock = |host| {
        let bad = &bad;
        async move {
            if let Ok(mut stream) = raw_connect_by(bad, from(host).await).await {
                drain(&mut stream).await;
            }
        }
    };
    let assessed = || two.counters.refused(Cause::NoCertificate);
    let begun = Instant::now();
    let mut tries = 0;
    while two.counters.refused(Cause::OverRate) < 20 {
        knock(stranger).await;
        tries += 1;
        assert!(begun.elapsed() < PATIENCE, "{tries} in vain and none over the rate");
    }
    // One more than may be in the time that it took: the last one may come before its second.
    let filled = STRANGERS.per_second * (begun.elapsed().as_secs() as u32 + 1);
    let heard = u32::try_from(assessed()).unwrap();
    assert!((STRANGERS.burst..=STRANGERS.burst + filled).contains(&heard), "{heard} of {tries}");
    let before = assessed();
    knock(other).await;
    assert_eq!(assessed(), before + 1, "another address is heard");
    assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
    assert!(two.lines.have(Level::Warning, "refused 127.2.0.1:"));
    assert!(two.lines.have(Level::Warning, "64 at once and 10 a second may"));

    // Whoever is let in may come as often as it likes, as a tool does from a stranger's address.
    let good = raw_context(Some(&pki::leaf(&root)), None);
    let over = two.counters.refused(Cause::OverRate);
    let ask = |role| {
        let good = &good;
        async move {
            let mut stream = raw_connect_by(good, from([127, 2, 0, 3]).await).await.unwrap();
            let asked = frame::encode(&Header { role, ..header(1, 1) }, b"x").unwrap();
            stream.write_all(&asked).await.unwrap();
            stream.read_exact(&mut [0; frame::HEADER_LEN + 1]).await.map(drop)
        }
    };
    for number in 0..4 * STRANGERS.burst {
        ask(Role::Tool).await.unwrap_or_else(|error| panic!("number {number}: {error}"));
    }
    assert_eq!(two.counters.refused(Cause::OverRate), over);
    assert!(!two.heard.is_at([127, 2, 0, 3].into()), "a tool is no member");
    // Where a member dialled from, there is a member's bucket from then on.
    ask(Role::Member).await.unwrap();
    assert!(two.heard.is_at([127, 2, 0, 3].into()) && !two.heard.is_at(stranger.into()));
    // And so has one that the list names: a fleet may be behind it.
    let burst = u64::from(Allowance::of_members(5).burst);
    for host in [[127, 2, 0, 3], [127, 0, 0, 1]] {
        let (over, before) = (two.counters.refused(Cause::OverRate), assessed());
        while two.counters.refused(Cause::OverRate) == over {
            knock(host).await;
            assert!(begun.elapsed() < 2 * PATIENCE, "none over the rate");
        }
        assert!(assessed() - before >= burst, "{host:?}: {} of {burst}", assessed() - before);
    }
}

/// The figure of the acceptance: a thousand of each kind, while a member goes on asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_strangers_of_each_kind() {
    const EACH: usize = 1000;
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    one.ask(2, b"x").await.unwrap();
    let wrong_subject = Spec { subject: "/CN=else", issuer: Some(&root), ..Spec::default() }.make();
    let contexts = [
        Some(raw_context(None, None)),
        Some(raw_context(Some(&pki::leaf(&pki::root("foreign"))), None)),
        Some(raw_context(Some(&wrong_subject), None)),
        None,
    ];
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES / 2));
    let mut strangers = Vec::new();
    for n in 0..4 * EACH {
        let place = places.clone().acquire_owned().await.unwrap();
        let (context, addr) = (contexts[n % 4].clone(), two.addr);
        strangers.push(tokio::spawn(async move {
            let stranger = async {
                match context {
                    Some(context) => intrude(&context, addr).await,
                    None => intrude_in_clear(&request(1, b"in clear"), addr).await,
                }
            };
            let got = timeout(Duration::from_secs(5), stranger).await;
            drop(place);
            got
        }));
        if n % 100 == 0 {
            assert_eq!(one.ask(2, b"still here").await.unwrap(), b"still here");
        }
    }
    for stranger in strangers {
        assert_eq!(stranger.await.unwrap().expect("closed in time"), b"");
    }
    until("counted", || two.counters.all_refused() == 4 * EACH as u64).await;
    for cause in [Cause::NoCertificate, Cause::Untrusted, Cause::WrongSubject, Cause::NotOurTls] {
        assert_eq!(two.counters.refused(cause), EACH as u64, "{cause:?}");
    }
    assert_eq!(two.counters.accepted(), 1, "the member's own");
    assert_eq!(two.service.admitted.load(Ordering::Relaxed), two.counters.requests());
    let lines = two.lines.0.lock().unwrap();
    let warnings = lines.iter().filter(|(level, _)| *level == Level::Warning).count();
    assert!((4..20).contains(&warnings), "one line per cause, not per stranger: {warnings}");
}

/// A rogue listener at a member's address gets nothing either.
#[tokio::test]
async fn nothing_is_sent_to_a_stranger_that_is_dialled() {
    let root = pki::root("root");
    let one = Box_::start(1, tls(&root, &pki::leaf(&root))).await;
    for (who, identity, _) in bad_identities(&root).into_iter().skip(1) {
        let rogue = TcpListener::bind("127.0.0.1:0").await.unwrap();
        one.peers.set_members(&[member(2, rogue.local_addr().unwrap())]);
        let context = raw_context(identity.as_ref(), None);
        let serve = async {
            let (tcp, _) = rogue.accept().await.unwrap();
            let mut stream = SslStream::new(Ssl::new(&context).unwrap(), tcp).unwrap();
            match Pin::new(&mut stream).accept().await {
                Ok(()) => drain(&mut stream).await,
                Err(_) => Vec::new(),
            }
        };
        let (got, answer) = tokio::join!(serve, one.ask(2, b"secret"));
        assert_eq!(got, b"", "{who}");
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{who}: {answer:?}");
        one.peers.set_members(&[]);
    }
    assert!(one.lines.have(Level::Warning, "peer 2"));
}

#[tokio::test]
async fn who_is_refused_by_its_peer_hears_why() {
    let (ours, theirs) = (pki::root("ours"), pki::root("theirs"));
    let both = [ours.cert_pem(), theirs.cert_pem()].concat();
    let leaf = pki::leaf(&theirs);
    // It trusts the other, but not the other way round; with TLS 1.3 that shows at the first read.
    let tls_one = Tls::from_pem(&both, &leaf.cert_pem(), &leaf.key_pem(), SUBJECT).unwrap();
    let (one, two) = pair(tls_one, tls(&ours, &pki::leaf(&ours))).await;
    assert!(matches!(one.ask(2, b"x").await, Err(CallError::Unreachable(_))));
    until("told", || one.lines.have(Level::Warning, "refuses this server's certificate")).await;
    until("counted", || two.counters.refused(Cause::Untrusted) == 1).await;
}

// ---------------------------------------------------------------- where it listens

#[tokio::test]
async fn a_port_in_use_is_taken_once_it_is_free() {
    let root = pki::root("root");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (_swap, tls) = watch::channel(tls(&root, &pki::leaf(&root)));
    let lines = Arc::new(Lines::default());
    let listener =
        start_listener("127.0.0.1", None, holder.local_addr().unwrap().port(), &tls, &lines);
    until("told", || lines.have(Level::Warning, "is in use by another process")).await;
    assert!(listener.local_addrs().is_empty());
    drop(holder);
    let bound = timeout(PATIENCE, listener.bound()).await.unwrap();
    assert!(lines.have(Level::Note, &format!("listening for peers on {}", bound[0])));
}

#[tokio::test]
async fn it_listens_where_it_should() {
    let root = pki::root("root");
    let (_swap, tls) = watch::channel(tls(&root, &pki::leaf(&root)));
    // 192.0.2.0/24 is for documentation (RFC 5737), so nobody's; .invalid resolves nowhere.
    for (address, bind, expect_all) in [
        ("127.0.0.1", None, false),
        ("localhost", None, false),
        ("192.0.2.1", None, true),
        ("no-such-host.invalid", None, true),
        ("192.0.2.1", Some("127.0.0.1"), false),
    ] {
        let lines = Arc::new(Lines::default());
        let listener = start_listener(address, bind, 0, &tls, &lines);
        let bound = timeout(PATIENCE, listener.bound()).await.expect(address);
        let all = bound.iter().all(|addr| addr.ip().is_unspecified());
        assert_eq!(all, expect_all, "{address}: {bound:?}");
        assert_eq!(lines.have(Level::Warning, "listening on all interfaces"), expect_all);
        let port = bound[0].port();
        if expect_all || bound[0].is_ipv4() {
            TcpStream::connect(("127.0.0.1", port)).await.expect(address);
        }
    }
}

/// A link-local address that names no link is refused by the system, which says nothing of whose
/// it is.
#[tokio::test]
async fn a_socket_that_cannot_be_had_is_not_an_address_of_another_machine() {
    let root = pki::root("root");
    let (_swap, tls) = watch::channel(tls(&root, &pki::leaf(&root)));
    let lines = Arc::new(Lines::default());
    let listener = start_listener("fe80::1", None, 0, &tls, &lines);
    until("told", || lines.have(Level::Warning, "cannot listen on [fe80::1]")).await;
    assert!(listener.local_addrs().is_empty());
    assert!(!lines.have(Level::Warning, "all interfaces"));
}

/// Runs this very test once more, in a network of its own where it may add addresses.
fn in_a_network_of_its_own(test: &str) -> bool {
    if std::env::var_os("STEK_OWN_NETWORK").is_some() {
        return true;
    }
    let mut again = Command::new("unshare");
    again.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
    let ran = again.args(["--exact", test]).env("STEK_OWN_NETWORK", "1").output();
    let ran = ran.expect("unshare runs");
    let words = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&words));
    false
}

/// As at a boot where the plugin is up before the interface is.
#[tokio::test]
async fn an_address_that_appears_later_is_moved_to() {
    if !in_a_network_of_its_own("an_address_that_appears_later_is_moved_to") {
        return;
    }
    let ip = |args: &str| {
        assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success(), "{args}");
    };
    ip("link set lo up");
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let (_swap, tls) = watch::channel(tls(&root, &leaf));
    let lines = Arc::new(Lines::default());
    let listener = start_listener("192.0.2.7", None, 24_001, &tls, &lines);
    let bound = timeout(PATIENCE, listener.bound()).await.unwrap();
    assert!(bound[0].ip().is_unspecified());
    assert!(lines.have(Level::Warning, "listening on all interfaces"));
    let context = raw_context(Some(&leaf), None);
    let mut standing = raw_connect(&context, ([127, 0, 0, 1], 24_001).into()).await.unwrap();
    standing.write_all(&frame::encode(&hello(1), b"").unwrap()).await.unwrap();
    assert!(drain(&mut standing).await.len() > frame::HEADER_LEN, "it is told that it is unknown");
    ip("address add 192.0.2.7/32 dev lo");
    let there = "192.0.2.7:24001".parse().unwrap();
    until("it has moved", || listener.local_addrs() == [there]).await;
    assert!(TcpStream::connect(("127.0.0.1", 24_001)).await.is_err(), "it listens there still");
    TcpStream::connect(there).await.unwrap();
}

fn hello(sender: u32) -> Header {
    Header { kind: Kind::Hello, ..header(sender, 1) }
}

fn start_listener(
    address: &str,
    bind: Option<&str>,
    port: u16,
    tls: &watch::Receiver<Tls>,
    lines: &Arc<Lines>,
) -> Listener {
    let settings = ListenSettings {
        bind_address: bind.map(str::to_owned),
        address: address.to_owned(),
        port,
        members: Vec::new(),
        bounds: Bounds::default(),
    };
    let deps = ListenDeps {
        log: Log::new(lines.clone()),
        tls: tls.clone(),
        me: Me::member(ServerId(2), 1, || CLUSTER_ID),
        heard: LastSeen::new(),
        counters: Counters::new(),
    };
    let service = Echo {
        members: Mutex::default(),
        admitted: AtomicU64::new(0),
        begun: Mutex::default(),
        version: AtomicU8::new(0),
        release: Notify::new(),
    };
    Listener::start(settings, deps, Arc::new(service))
}

// ---------------------------------------------------------------- certificates

#[test]
fn each_fault_of_a_certificate_has_its_name() {
    let root = pki::root("root");
    let (leaf, other) = (pki::leaf(&root), pki::leaf(&root));
    let (cert, key) = (leaf.cert_pem(), leaf.key_pem());
    let load = |root: &[u8], chain: &[u8], key: &[u8], subject: &str| {
        Tls::from_pem(root, chain, key, subject).map(|_| ()).unwrap_err()
    };
    let root_pem = root.cert_pem();
    for garbage in [
        &b""[..],
        b"garbage",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        &key,
    ] {
        assert!(matches!(load(garbage, &cert, &key, ""), TlsError::RootGarbage));
        assert!(matches!(load(&root_pem, garbage, &key, ""), TlsError::ChainGarbage));
    }
    for garbage in [&b""[..], b"garbage", &cert] {
        assert!(matches!(load(&root_pem, &cert, garbage, ""), TlsError::KeyGarbage));
    }
    let locked =
        leaf.key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_128_cbc(), b"pw").unwrap();
    assert!(matches!(load(&root_pem, &cert, &locked, ""), TlsError::KeyEncrypted));
    let locked_cert = String::from_utf8(cert.clone()).unwrap().replacen(
        "-----\n",
        "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n",
        1,
    );
    assert!(matches!(load(&root_pem, locked_cert.as_bytes(), &key, ""), TlsError::ChainGarbage));
    let error = load(&root_pem, &cert, &other.key_pem(), "");
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error}");
    let error = load(&root_pem, &cert, &key, "/CN=else");
    assert!(matches!(&error, TlsError::SubjectMismatch { found } if found == SUBJECT), "{error}");
    let spec = Spec { issuer: Some(&root), ..Spec::default() };
    let with = |spec: Spec<'_>| tls_for(&root, &spec.make(), SUBJECT).map(|_| ()).unwrap_err();
    let error = with(Spec { not_after: -60, ..spec.clone() });
    assert!(matches!(error, TlsError::Expired { .. }), "{error}");
    let error = with(Spec { not_before: 3600, ..spec.clone() });
    assert!(matches!(error, TlsError::NotYetValid { .. }), "{error}");
    let error = with(Spec { usage: Some("codeSigning"), ..spec });
    assert!(matches!(error, TlsError::ChainUntrusted { .. }), "{error}");
    let error = load(&pki::root("root").cert_pem(), &cert, &key, "");
    assert!(matches!(error, TlsError::ChainUntrusted { .. }), "{error}");
}

#[test]
fn loaded_certificates_tell_of_themselves() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let tls = tls(&root, &leaf);
    assert_eq!(tls.subject(), SUBJECT);
    assert!(tls.subject_matches(SUBJECT) && !tls.subject_matches("/CN=x"));
    assert!(!tls.accepts_any_subject());
    let left = tls.endings()[0].left.as_secs();
    assert!((86_000..=86_400).contains(&left), "{left}");
    assert_eq!(tls.leaf_fingerprint().len(), 64);
    let any = tls_for(&root, &leaf, "").unwrap();
    assert!(any.accepts_any_subject() && any.subject_matches("/CN=x"));
}

#[tokio::test]
async fn a_handshake_names_its_fault() {
    let root = pki::root("root");
    let ours = tls(&root, &pki::leaf(&root));
    let else_ = Spec { subject: "/CN=else", issuer: Some(&root), ..Spec::default() }.make();
    let theirs = tls_for(&root, &else_, "").unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    let accept = async { ours.accept(socket.accept().await.unwrap().0).await.map(|_| ()) };
    let connect =
        async { theirs.connect(TcpStream::connect(addr).await.unwrap()).await.map(|_| ()) };
    let (accepted, connected) = tokio::join!(accept, connect);
    assert_eq!(accepted, Err(HandshakeError::WrongSubject("/CN=else".to_owned())));
    assert_eq!(connected, Ok(()), "with TLS 1.3 the dialling side is done before it is checked");
}

/// Our one-line form against that of the `openssl` command, over names with everything odd.
#[test]
fn one_line_is_what_openssl_prints() {
    let key = openssl::rsa::Rsa::generate(2048).unwrap();
    let key: PKey<Private> = PKey::from_rsa(key).unwrap();
    for name in odd_names() {
        let name = X509Name::from_der(&name).unwrap();
        let mut cert = X509::builder().unwrap();
        cert.set_version(2).unwrap();
        cert.set_subject_name(&name).unwrap();
        cert.set_issuer_name(&name).unwrap();
        cert.set_pubkey(&key).unwrap();
        cert.set_not_before(&openssl::asn1::Asn1Time::days_from_now(0).unwrap()).unwrap();
        cert.set_not_after(&openssl::asn1::Asn1Time::days_from_now(1).unwrap()).unwrap();
        cert.sign(&key, openssl::hash::MessageDigest::sha256()).unwrap();
        let mut command = Command::new("openssl")
            .args(["x509", "-noout", "-subject", "-nameopt", "compat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pem = cert.build().to_pem().unwrap();
        command.stdin.take().unwrap().write_all(&pem).unwrap();
        let printed = command.wait_with_output().unwrap().stdout;
        let printed = String::from_utf8(printed).unwrap();
        let printed = printed.strip_prefix("subject=").unwrap().strip_suffix('\n').unwrap();
        let cert = X509::from_pem(&pem).unwrap();
        // Ours tells apart what the command does not: where a backslash stands for itself, and
        // what is no string of bytes.
        let ours = one_line(cert.subject_name());
        let odd = ["\\#03", "\\#1C", "\\#1E", "\\#30"];
        let as_printed =
            odd.iter().fold(ours.replace("\\\\", "\\"), |line, tag| line.replace(tag, ""));
        assert_eq!(as_printed, printed, "{ours}");
    }
}

/// Encoded names: plain, many kinds of strings, odd characters, several attributes in one
/// relative name, an attribute that OpenSSL has no name for, and none at all.
fn odd_names() -> Vec<Vec<u8>> {
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        match content.len() {
            n @ 0..=127 => out.push(n as u8),
            n => out.extend_from_slice(&[0x82, (n >> 8) as u8, n as u8]),
        }
        out.extend_from_slice(content);
        out
    }
    const CN: &[u8] = &[0x55, 4, 3];
    const O: &[u8] = &[0x55, 4, 10];
    const EMAIL: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1];
    const OWN: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xa5, 0x1d, 7];
    let (bits, utf8, sequence) = (3, 12, 0x30);
    let (numeric, printable, t61, ia5, universal, bmp) = (18, 19, 20, 22, 28, 30);
    let entry =
        |oid: &[u8], tag: u8, value: &[u8]| der(0x30, &[der(6, oid), der(tag, value)].concat());
    let set = |entries: &[Vec<u8>]| der(0x31, &entries.concat());
    let name = |sets: &[Vec<u8>]| der(0x30, &sets.concat());
    let one = |oid: &[u8], tag: u8, value: &[u8]| name(&[set(&[entry(oid, tag, value)])]);
    let all_bytes: Vec<u8> = (1..=255).collect();
    vec![
        name(&[]),
        name(&[set(&[entry(O, printable, b"Yahoo")]), set(&[entry(CN, utf8, b"stek-share")])]),
        one(CN, utf8, "Zürich/Ost + West \\ \"quoted\"".as_bytes()),
        one(CN, t61, &all_bytes),
        one(CN, utf8, b"a\0b\nc\x7f"),
        one(CN, utf8, b""),
        one(EMAIL, ia5, b"ops@example.com"),
        one(OWN, utf8, b"an attribute of nobody"),
        one(CN, bmp, b"\0a\0b\x01\x02"),
        one(CN, universal, b"\0\0\0a\0\0\0b"),
        one(CN, numeric, b"0123 4"),
        one(CN, bits, b"\x04a\xf0"),
        one(CN, sequence, &der(utf8, b"inner")),
        name(&[
            set(&[entry(CN, utf8, b"one"), entry(O, utf8, b"two+three")]),
            set(&[entry(CN, utf8, b"four")]),
        ]),
        one(CN, utf8, &[b'x'; 300]),
    ]
}
