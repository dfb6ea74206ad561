//! Who resumes whose sessions: takes a ticket from each address and offers it to every address, as
//! a browser that lands on another server does.
//!
//! Certificates are not verified: what is studied is tickets, not trust. Invariants: one
//! exchange ends within its time limit, whatever the other side does; tickets are forgotten when
//! the command ends, and no part of one is printed but the fingerprint of its key's name.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::hash::MessageDigest;
use openssl::sha::sha256;
use openssl::ssl::{
    self, Ssl, SslContext, SslContextBuilder, SslFiletype, SslMethod, SslRef, SslSession,
    SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion,
};
use stek_share::client::NAME_LIMIT;
use stek_share::transport::names::Names;
use stek_share::transport::resolver::look_up;

/// The most addresses: the exchanges are their number squared.
pub const MAX_ADDRESSES: usize = 64;

/// How long to wait for a TLS 1.3 ticket that may not come; who sends one sends it with the end of
/// the handshake.
const TICKET_WAIT: Duration = Duration::from_secs(1);

/// Bytes of a key's name at the beginning of a ticket, as RFC 5077 recommends and OpenSSL does.
const NAME_LEN: usize = 16;

/// The suites of TLS 1.3 in the orders in which clients are known to want them: those with the
/// processor's help for AES, those without, and OpenSSL's own.
pub const PREFERENCES: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256",
    "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384",
    "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256",
];

/// The versions of TLS in which tickets differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A ticket is part of the handshake.
    Tls12,
    /// Tickets come after it.
    Tls13,
}

impl Version {
    /// Both.
    pub const ALL: [Version; 2] = [Version::Tls12, Version::Tls13];
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::Tls12 => "TLS 1.2",
            Version::Tls13 => "TLS 1.3",
        })
    }
}

/// How it is told that there is no way to an address.
pub const UNREACHED: &str = "cannot be reached";

/// One address to try.
#[derive(Clone, Debug)]
pub struct Place {
    /// As it was given.
    pub name: String,
    /// What it means.
    address: SocketAddr,
}

impl Place {
    /// Looks the address up.
    ///
    /// # Errors
    /// Why there is none, in words that follow its name.
    pub fn find(name: &str) -> Result<Place, String> {
        let found = look_up(name, NAME_LIMIT).map_err(|error| format!("is not found: {error}"))?;
        let address = found.first().copied().ok_or("has no address")?;
        Ok(Place { name: name.to_owned(), address })
    }
}

/// An address with a port, 443 where it has none.
pub fn with_port(given: &str) -> String {
    let has_port = match given.rsplit_once(':') {
        None => false,
        // Of IPv6 only what stands behind the bracket is a port.
        Some((before, _)) => before.ends_with(']') || !before.contains(':'),
    };
    match given {
        _ if has_port => given.to_owned(),
        _ if given.contains(':') && !given.starts_with('[') => format!("[{given}]:443"),
        _ => format!("{given}:443"),
    }
}

/// What a full handshake brought.
#[derive(Clone, PartialEq, Eq)]
pub struct Taken {
    /// SHA-256 over the certificate that was shown, in hex, and its subject.
    pub certificate: (String, String),
    /// The cipher suite.
    pub suite: &'static str,
    /// Whether early data may come with the ticket.
    pub early: bool,
    /// For how many seconds the ticket may be used, as it was announced; 0 if nothing was said.
    pub lifetime_s: u64,
    /// The session with its ticket, and the fingerprint of the ticket's key; `None` if no ticket
    /// was given.
    ticket: Option<(Vec<u8>, String)>,
}

impl Taken {
    /// The fingerprint of the key that the ticket is encrypted with.
    pub fn key(&self) -> Option<&str> {
        self.ticket.as_ref().map(|(_, key)| key.as_str())
    }
}

/// Whether a session with this suite of TLS 1.3 may be resumed with that one: the hash has to be
/// the same (RFC 8446, section 4.2.11).
pub fn same_hash(one: &str, other: &str) -> bool {
    let is_long = |suite: &str| suite.ends_with("SHA384");
    is_long(one) == is_long(other)
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// This version of TLS is not spoken there.
    Version,
    /// What answers there speaks no TLS at all.
    NotTls,
    /// A client certificate is demanded, and this client has none.
    Certificate,
    /// The client certificate was refused, and with which words.
    Refused(String),
    /// Anything else, in words that follow the place's name.
    Other(String),
}

impl From<String> for Miss {
    fn from(why: String) -> Self {
        Miss::Other(why)
    }
}

/// What came of offering one ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The session was resumed.
    Resumed,
    /// A full handshake instead.
    Refused,
    /// There was no ticket to offer.
    NoTicket,
    /// No handshake, and why.
    Failed(Miss),
}

/// The matrix of one version.
pub struct Matrix {
    /// In which version.
    pub version: Version,
    /// What was taken at each place, or why nothing was.
    pub taken: Vec<Result<Taken, Miss>>,
    /// `offers[i][j]`: what the place `j` did with the ticket of the place `i`.
    pub offers: Vec<Vec<Offer>>,
}

/// A client that may try everything.
pub struct Client {
    sni: Option<String>,
    limit: Duration,
    has_certificate: bool,
    contexts: [Context; 2],
    preferring: Vec<Context>,
}

/// A client certificate, with those behind it, and its key.
pub struct Identity {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

type Sessions = Arc<Mutex<Vec<Vec<u8>>>>;
type Context = (SslContext, Index<Ssl, Sessions>);

impl Client {
    /// One that sends this server name, gives each exchange this much time, and shows this
    /// certificate where it is asked for one.
    ///
    /// # Errors
    /// Why OpenSSL refuses.
    pub fn new(
        sni: Option<&str>,
        limit: Duration,
        identity: Option<&Identity>,
    ) -> Result<Client, String> {
        let make = |version, suites| context(version, suites, identity);
        let preferring = PREFERENCES.iter().map(|suites| make(SslVersion::TLS1_3, Some(*suites)));
        Ok(Client {
            sni: sni.map(str::to_owned),
            limit,
            has_certificate: identity.is_some(),
            contexts: [make(SslVersion::TLS1_2, None)?, make(SslVersion::TLS1_3, None)?],
            preferring: preferring.collect::<Result<_, _>>()?,
        })
    }

    /// Which suite of TLS 1.3 each place takes, for each of [`PREFERENCES`].
    pub fn suites(&self, places: &[Place]) -> Vec<Vec<Option<&'static str>>> {
        in_parallel(places, |place| {
            let take = |context| {
                let connection = self.connect(place, Version::Tls13, context, None).ok()?;
                Some(suite(connection.stream.ssl()))
            };
            self.preferring.iter().map(take).collect()
        })
    }

    fn context(&self, version: Version) -> &Context {
        let [v12, v13] = &self.contexts;
        if version == Version::Tls12 {
            v12
        } else {
            v13
        }
    }

    /// Takes a ticket at each place and offers it at every place.
    pub fn matrix(&self, places: &[Place], version: Version) -> Matrix {
        let taken: Vec<_> = in_parallel(places, |place| self.take(place, version));
        let offers = in_parallel(&taken, |taken| {
            let session = taken.as_ref().ok().and_then(|taken| taken.ticket.as_ref());
            let offer = |place: &Place| match session {
                None => Offer::NoTicket,
                Some((session, _)) => self.offer(place, version, session),
            };
            places.iter().map(offer).collect()
        });
        Matrix { version, taken, offers }
    }

    fn take(&self, place: &Place, version: Version) -> Result<Taken, Miss> {
        let mut connection = self.connect(place, version, self.context(version), None)?;
        let mut session = connection.session(self.has_certificate)?;
        if session.is_none() && version == Version::Tls13 {
            // Some send tickets with their first data and no sooner, as BoringSSL does.
            drop(connection);
            connection = self.connect(place, version, self.context(version), None)?;
            connection.ask(self.sni.as_deref().unwrap_or("localhost"))?;
            session = connection.session(self.has_certificate)?;
        }
        let early = session.as_deref().is_some_and(|der| {
            SslSession::from_der(der).is_ok_and(|session| session.max_early_data() > 0)
        });
        let lifetime_s = session.as_deref().and_then(lifetime_in_session).unwrap_or(0);
        let ticket = session.and_then(|der| {
            let key = key_of(ticket_in_session(&der)?)?;
            Some((der, key))
        });
        let ssl = connection.stream.ssl();
        let leaf = ssl.peer_certificate().ok_or_else(|| "shows no certificate".to_owned())?;
        let digest = leaf.digest(MessageDigest::sha256()).map_err(|error| error.to_string())?;
        let subject = Names::of(&leaf).subject().to_owned();
        let (certificate, suite) = ((hex(&digest), subject), suite(ssl));
        Ok(Taken { certificate, suite, early, lifetime_s, ticket })
    }

    fn offer(&self, place: &Place, version: Version, session: &[u8]) -> Offer {
        match self.connect(place, version, self.context(version), Some(session)) {
            Ok(connection) if connection.stream.ssl().session_reused() => Offer::Resumed,
            Ok(_) => Offer::Refused,
            Err(miss) => Offer::Failed(miss),
        }
    }

    fn connect(
        &self,
        place: &Place,
        version: Version,
        (context, index): &Context,
        session: Option<&[u8]>,
    ) -> Result<Connection, Miss> {
        let deadline = Instant::now() + self.limit;
        let openssl = |error: ErrorStack| format!("OpenSSL: {error}");
        let mut ssl = Ssl::new(context).map_err(openssl)?;
        let sessions = Sessions::default();
        ssl.set_ex_data(*index, Arc::clone(&sessions));
        if let Some(name) = &self.sni {
            ssl.set_hostname(name).map_err(openssl)?;
        }
        if let Some(der) = session {
            let session = SslSession::from_der(der).map_err(openssl)?;
            // SAFETY: a session that was just read from DER belongs to no other context.
            unsafe { ssl.set_session(&session) }.map_err(openssl)?;
        }
        let tcp = TcpStream::connect_timeout(&place.address, self.limit)
            .map_err(|error| format!("{UNREACHED}: {error}"))?;
        let timed = Timed { tcp, deadline };
        let mut stream = SslStream::new(ssl, timed).map_err(openssl)?;
        if let Err(error) = stream.connect() {
            let miss = miss(version, stream.ssl(), &error, self.has_certificate);
            return Err(
                miss.unwrap_or_else(|| format!("{version} handshake failed: {error}").into())
            );
        }
        Ok(Connection { version, stream, sessions })
    }
}

fn suite(ssl: &SslRef) -> &'static str {
    ssl.current_cipher().map_or("none", |cipher| cipher.standard_name().unwrap_or(cipher.name()))
}

/// What the server says with its alert, or OpenSSL of its answer, if it is known.
fn miss(version: Version, ssl: &SslRef, error: &ssl::Error, has_certificate: bool) -> Option<Miss> {
    /// OpenSSL's `SSL_R_UNSUPPORTED_PROTOCOL`; and what it adds to an alert's number.
    const UNSUPPORTED: i32 = 258;
    /// `SSL_R_WRONG_VERSION_NUMBER`, `SSL_R_HTTP_REQUEST`, `SSL_R_PACKET_LENGTH_TOO_LONG`: no record of TLS.
    const NO_RECORD: [i32; 3] = [267, 156, 198];
    const ALERT: i32 = 1000;
    // RFC 8446, section 6.
    const HANDSHAKE_FAILURE: i32 = 40;
    const PROTOCOL_VERSION: i32 = 70;
    const CERTIFICATE_REQUIRED: i32 = 116;
    const BAD_CERTIFICATE: RangeInclusive<i32> = 42..=46;
    const UNKNOWN_CA: i32 = 48;
    let errors = error.ssl_error()?.errors();
    if errors.iter().any(|error| error.reason_code() == UNSUPPORTED) {
        return Some(Miss::Version);
    }
    if errors.iter().any(|error| NO_RECORD.contains(&error.reason_code())) {
        return Some(Miss::NotTls);
    }
    let alerted = errors.iter().find(|error| error.reason_code() > ALERT)?;
    // In TLS 1.2 a missing certificate is no alert of its own. Before the server has shown its own
    // certificate it means something else.
    let is_past = || version == Version::Tls12 && ssl.peer_certificate().is_some();
    match alerted.reason_code() - ALERT {
        PROTOCOL_VERSION => Some(Miss::Version),
        CERTIFICATE_REQUIRED => Some(Miss::Certificate),
        HANDSHAKE_FAILURE if !has_certificate && is_past() => Some(Miss::Certificate),
        alert if has_certificate && (BAD_CERTIFICATE.contains(&alert) || alert == UNKNOWN_CA) => {
            Some(Miss::Refused(alerted.reason().unwrap_or("refused").to_owned()))
        }
        _ => None,
    }
}

/// An established connection.
struct Connection {
    version: Version,
    stream: SslStream<Timed>,
    sessions: Sessions,
}

impl Connection {
    /// Asks for nothing in particular, so that there is an answer.
    fn ask(&mut self, host: &str) -> Result<(), String> {
        let request = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        self.stream
            .write_all(request.as_bytes())
            .map_err(|error| format!("takes no request: {error}"))
    }

    /// The session in DER, for TLS 1.3 the first that arrives with a ticket.
    fn session(&mut self, has_certificate: bool) -> Result<Option<Vec<u8>>, Miss> {
        if self.version == Version::Tls12 {
            let session = self.stream.ssl().session().map(|session| session.to_der());
            return Ok(session.transpose().map_err(|error| error.to_string())?);
        }
        let wait = Instant::now() + TICKET_WAIT;
        let timed = self.stream.get_mut();
        timed.deadline = timed.deadline.min(wait);
        // There is nothing to read but tickets, what the server says of the client's certificate, and
        // an answer if something was asked; the read ends with the first error, which is the deadline
        // or the connection's end at the latest.
        while self.first().is_none() {
            if let Err(error) = self.stream.ssl_read(&mut [0; 64]) {
                let miss = miss(self.version, self.stream.ssl(), &error, has_certificate);
                // A ticket may have come before it.
                return miss.map_or_else(|| Ok(self.first()), Err);
            }
        }
        Ok(self.first())
    }

    fn first(&self) -> Option<Vec<u8>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Politeness only: an end without it looks like an attack in some logs.
        let _ = self.stream.shutdown();
    }
}

/// A socket whose every read and write ends at one deadline.
struct Timed {
    tcp: TcpStream,
    deadline: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"))
        } else {
            Ok(Some(left))
        }
    }

    /// What the system says of a time limit that is over would have OpenSSL try again.
    fn settle<T>(result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, "it took too long")
            }
            _ => error,
        })
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(self.left()?)?;
        Timed::settle(self.tcp.read(buffer))
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(self.left()?)?;
        Timed::settle(self.tcp.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

fn context(
    version: SslVersion,
    suites: Option<&str>,
    identity: Option<&Identity>,
) -> Result<Context, String> {
    let openssl = |error: ErrorStack| format!("OpenSSL: {error}");
    let (mut context, index) = builder(version, suites).map_err(openssl)?;
    if let Some(identity) = identity {
        let file = |path: &Path| path.display().to_string();
        // OpenSSL tells of a file that is not there as a chain of its own functions.
        let refused = |option: &str, path: &Path, remedy: &str, error: ErrorStack| {
            let why = match File::open(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => "is not there".to_owned(),
                Err(error) => format!("cannot be read: {error}"),
                Ok(_) => format!("cannot be used: {}", reason(&error)),
            };
            format!("{option} {}: {why}; {remedy}", file(path))
        };
        let certificate = &identity.certificate;
        context.set_certificate_chain_file(certificate).map_err(|error| {
            let remedy = "give a file with a certificate in PEM";
            refused("--cert", certificate, remedy, error)
        })?;
        let wrong = |error| {
            let remedy = "give the file with the private key of --cert's certificate, in PEM";
            refused("--key", &identity.key, remedy, error)
        };
        context.set_private_key_file(&identity.key, SslFiletype::PEM).map_err(wrong)?;
        context.check_private_key().map_err(wrong)?;
    }
    Ok((context.build(), index))
}

/// The last reason of several.
fn reason(error: &ErrorStack) -> String {
    let last = error.errors().iter().rev().find_map(|error| error.reason());
    last.map_or_else(|| error.to_string(), str::to_owned)
}

fn builder(
    version: SslVersion,
    suites: Option<&str>,
) -> Result<(SslContextBuilder, Index<Ssl, Sessions>), ErrorStack> {
    let index: Index<Ssl, Sessions> = Ssl::new_ex_index()?;
    let mut context = SslContextBuilder::new(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(version))?;
    context.set_max_proto_version(Some(version))?;
    if let Some(suites) = suites {
        context.set_ciphersuites(suites)?;
    }
    context.set_verify(SslVerifyMode::NONE);
    context.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
    context.set_new_session_callback(move |ssl, session| {
        if let (Some(sessions), Ok(der)) = (ssl.ex_data(index), session.to_der()) {
            sessions.lock().unwrap_or_else(PoisonError::into_inner).push(der);
        }
    });
    Ok((context, index))
}

/// Does the work for all items at a time; there are at most [`MAX_ADDRESSES`].
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || work(item))).collect();
        // A panic is a bug of this program, and is not hidden.
        let join = |thread: thread::ScopedJoinHandle<'_, R>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

/// The fingerprint of the key that made a ticket, as the plugin's logs have it.
fn key_of(ticket: &[u8]) -> Option<String> {
    let name = ticket.get(..NAME_LEN)?;
    Some(hex(sha256(name).get(..4)?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The ticket in OpenSSL's form of a session, a SEQUENCE: the OCTET STRING under `[10]`.
fn ticket_in_session(der: &[u8]) -> Option<&[u8]> {
    const TICKET: u8 = 0xaa;
    const OCTET_STRING: u8 = 0x04;
    let (tag, ticket) = in_session(der, TICKET)?;
    (tag == OCTET_STRING && !ticket.is_empty()).then_some(ticket)
}

/// The lifetime that the server announced: the INTEGER under `[9]`.
fn lifetime_in_session(der: &[u8]) -> Option<u64> {
    const LIFETIME: u8 = 0xa9;
    const INTEGER: u8 = 0x02;
    let (tag, digits) = in_session(der, LIFETIME)?;
    let number = |number: u64, digit: &u8| Some(number.checked_mul(256)? + u64::from(*digit));
    (tag == INTEGER).then(|| digits.iter().try_fold(0, number)).flatten()
}

/// The value, with its own tag, of the member of a SEQUENCE that has this tag.
fn in_session(der: &[u8], wanted: u8) -> Option<(u8, &[u8])> {
    let (_, mut members, _) = tlv(der)?;
    while let Some((tag, content, rest)) = tlv(members) {
        if tag == wanted {
            let (inner, value, _) = tlv(content)?;
            return Some((inner, value));
        }
        members = rest;
    }
    None
}

/// Takes one DER value with a tag of one byte: tag, content, what follows.
fn tlv(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = der else { return None };
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        _ => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            let length = digits.iter().try_fold(0_usize, |length, digit| {
                Some(length.checked_mul(256)? + usize::from(*digit))
            })?;
            (length, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_found_in_a_session() {
        let mut session = vec![0x30, 0x81, 0x8b, 0x02, 1, 1, 0xaa, 0x81, 0x85, 0x04, 0x81, 0x82];
        session.extend([7; 0x82]);
        let ticket = ticket_in_session(&session);
        assert_eq!(ticket, Some(&[7; 0x82][..]));
        assert_eq!(key_of(&[7; 16]), key_of(&[7; 40]));
        assert_eq!(key_of(&[7; 15]), None);
        assert_eq!(lifetime_in_session(&session), None);
        let timed = [0x30, 12, 0x02, 1, 1, 0xa9, 4, 0x02, 2, 0x1c, 0x20, 0xaa, 1, 0];
        assert_eq!(lifetime_in_session(&timed), Some(7200));
        for cut in 0..session.len() {
            let found = session.get(..cut).and_then(ticket_in_session);
            assert_eq!(found, None, "cut at {cut}");
        }
        assert_eq!(ticket_in_session(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn an_address_without_a_port_means_443() {
        for (given, meant) in [
            ("10.0.0.1", "10.0.0.1:443"),
            ("a.example", "a.example:443"),
            ("a.example:8443", "a.example:8443"),
            ("::1", "[::1]:443"),
            ("[::1]", "[::1]:443"),
            ("[::1]:8443", "[::1]:8443"),
        ] {
            assert_eq!(with_port(given), meant);
        }
    }

    #[test]
    fn a_place_that_says_nothing_costs_no_more_than_the_limit() -> io::Result<()> {
        let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
        let place = Place::find(&silent.local_addr()?.to_string()).map_err(io::Error::other)?;
        let client =
            Client::new(None, Duration::from_millis(200), None).map_err(io::Error::other)?;
        let begun = Instant::now();
        let matrix = client.matrix(&[place], Version::Tls13);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let why = matrix.taken.into_iter().next().and_then(Result::err);
        let Some(Miss::Other(why)) = why else { panic!("{why:?}") };
        assert!(why.contains("took too long"), "{why}");
        Ok(())
    }

    extern "C" {
        /// Sends one more ticket with the next data.
        fn SSL_new_session_ticket(ssl: *mut std::ffi::c_void) -> std::ffi::c_int;
    }

    /// What a server does that gives its tickets out with its first data.
    fn late(listener: &std::net::TcpListener) -> io::Result<()> {
        let pem = |error: ErrorStack| io::Error::other(error);
        let own = testkit::pki::Identity::self_signed("/CN=late").map_err(io::Error::other)?;
        let mut context = SslContextBuilder::new(SslMethod::tls_server()).map_err(pem)?;
        context.set_certificate(&own.certificate).map_err(pem)?;
        context.set_private_key(&own.key).map_err(pem)?;
        context.set_num_tickets(0).map_err(pem)?;
        let context = context.build();
        // One that asks nothing, and one that does.
        for _ in 0..2 {
            let ssl = Ssl::new(&context).map_err(pem)?;
            let mut stream = SslStream::new(ssl, listener.accept()?.0).map_err(pem)?;
            stream.accept().map_err(io::Error::other)?;
            let mut request = [0; 256];
            if stream.ssl_read(&mut request).is_ok_and(|read| read > 0) {
                let raw = std::ptr::from_ref::<SslRef>(stream.ssl()).cast_mut();
                // SAFETY: a reference to an SSL is its address; it stands, on the thread that has it.
                assert_eq!(unsafe { SSL_new_session_ticket(raw.cast()) }, 1);
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_ticket_that_comes_with_the_first_data_is_a_ticket() -> io::Result<()> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let place = Place::find(&listener.local_addr()?.to_string()).map_err(io::Error::other)?;
        let client = Client::new(None, Duration::from_secs(20), None).map_err(io::Error::other)?;
        let server = thread::spawn(move || late(&listener));
        let taken = client.take(&place, Version::Tls13);
        assert!(taken.is_ok_and(|taken| taken.key().is_some()));
        server.join().map_err(|_| io::Error::other("it panicked"))?
    }
}
