//! A TLS client that takes session tickets and offers them again, and the matrix of who resumes
//! whose.
//!
//! What a ticket looks like on the wire is the server's own business (RFC 5077, section 4, only
//! recommends a form); the layout here is OpenSSL's, which Traffic Server uses: key name 16 bytes,
//! IV 16, AES-128-CBC text, HMAC-SHA256 over all before it 32.
//!
//! Certificates are not verified: these clients study tickets, not trust. Every exchange has one
//! deadline for all of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use openssl::ex_data::Index;
use openssl::hash::{hash, MessageDigest};
use openssl::memcmp;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::ssl::{
    self, ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslSession,
    SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion,
};
use openssl::symm::{decrypt, Cipher};
use socket2::{Domain, Socket, Type};

use crate::sys::{interrupted, lock, poll, Readiness};
use crate::{Context, Error, Result};

/// The deadline of one exchange, from connect to ticket. A server on a busy machine that needs longer
/// is as good as dead.
pub const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait for a new ticket after an old one was offered. A server that sends one sends
/// it at once; one that sends none must not cost the whole deadline.
const RENEWAL_LIMIT: Duration = Duration::from_millis(500);
/// Length of a ticket key's name in bytes.
pub const NAME_LEN: usize = 16;
/// Length of a whole ticket key in bytes: name, HMAC secret, AES key, 16 each.
pub const KEY_LEN: usize = 48;

/// The protocol versions in which tickets differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2: the ticket is a part of the handshake (RFC 5077).
    V12,
    /// TLS 1.3: tickets come after the handshake (RFC 8446, section 4.6.1).
    V13,
}

impl TlsVersion {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V12, Self::V13];
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V12 => "TLS 1.2",
            Self::V13 => "TLS 1.3",
        })
    }
}

/// The name of a ticket key, which every ticket carries in clear.
pub type KeyName = [u8; NAME_LEN];

/// A session ticket, with the client's secrets that go with it.
#[derive(Clone)]
pub struct Ticket {
    /// The version it was given in, and works in.
    pub version: TlsVersion,
    /// The client's session, as OpenSSL writes it in DER.
    pub session: Vec<u8>,
    /// What the server gave out.
    pub bytes: Vec<u8>,
    /// Under which key.
    pub key_name: KeyName,
    /// When.
    pub taken_at: Instant,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ticket under key {}", self.version, fingerprint(&self.key_name))
    }
}

impl Ticket {
    pub(crate) fn from_session(version: TlsVersion, session: Vec<u8>) -> Result<Self> {
        let bytes = ticket_in_session(&session)
            .ok_or_else(|| Error::new(format!("the server gave no {version} ticket")))?
            .to_vec();
        let key_name = *bytes.first_chunk().ok_or_else(|| Error::new("the ticket is too short"))?;
        Ok(Self { version, session, bytes, key_name, taken_at: Instant::now() })
    }

    /// Whether `key` (name, HMAC secret, AES key) opens this ticket: its name is the ticket's, its
    /// secret gives the ticket's HMAC, and its AES key makes an OpenSSL session of the rest. No
    /// other 48 bytes do that.
    ///
    /// # Errors
    /// Only when OpenSSL itself fails.
    pub fn opens_with(&self, key: &[u8; KEY_LEN]) -> Result<bool> {
        let (name, secrets) = key.split_at(NAME_LEN);
        let (secret, aes) = secrets.split_at(16);
        let Some((body, mac)) = self.bytes.split_last_chunk::<32>() else { return Ok(false) };
        let Some((head, text)) = body.split_first_chunk::<32>() else { return Ok(false) };
        let (ticket_name, iv) = head.split_at(NAME_LEN);
        let mac_key = PKey::hmac(secret)?;
        let made = Signer::new(MessageDigest::sha256(), &mac_key)?.sign_oneshot_to_vec(body)?;
        if name != ticket_name || !memcmp::eq(&made, mac) {
            return Ok(false);
        }
        // The plain text is the server's session in DER, which begins with a SEQUENCE.
        let plain = decrypt(Cipher::aes_128_cbc(), aes, Some(iv), text);
        Ok(plain.is_ok_and(|plain| plain.first() == Some(&0x30)))
    }
}

/// What came of offering a ticket.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Whether the server resumed the session.
    pub resumed: bool,
    /// The new ticket, if the server gave one.
    pub renewed: Option<Ticket>,
}

/// A key's public identity: the first 8 hex digits of the SHA-256 of its name.
pub fn fingerprint(name: &KeyName) -> String {
    // Hashing 16 bytes fails only when OpenSSL is unusable; then nothing else works either.
    let digest = hash(MessageDigest::sha256(), name);
    digest.map_or_else(|_| "????????".into(), |digest| hex(&digest[..4]))
}

/// Where a client stands and where it turns to. An address alone is a client that does not care
/// where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The client's own address; all of 127.0.0.0/8 will do on loopback.
    pub from: Option<IpAddr>,
    /// The server.
    pub to: SocketAddr,
}

impl From<SocketAddr> for Route {
    fn from(to: SocketAddr) -> Self {
        Self { from: None, to }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.fmt(f)
    }
}

impl Route {
    fn connect(&self) -> Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.to), Type::STREAM, None)?;
        if let Some(from) = self.from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect_timeout(&self.to.into(), EXCHANGE_LIMIT).context("no connection")?;
        Ok(socket.into())
    }
}

/// Makes a full handshake and brings the ticket home.
///
/// # Errors
/// When the server cannot be reached, refuses, gives no ticket, or is too slow.
pub fn take(address: impl Into<Route>, version: TlsVersion) -> Result<Ticket> {
    let address = address.into();
    let doing = format_args!("{version} ticket from {address}").to_string();
    let mut exchange = Exchange::connect(address, version, None).context(&doing)?;
    let ticket = exchange.ticket(EXCHANGE_LIMIT).context(&doing)?;
    ticket.ok_or_else(|| Error::new(format!("{doing}: the server gave none")))
}

/// Offers `ticket` to the server at `address`.
///
/// # Errors
/// When the server cannot be reached, breaks the handshake off, or is too slow. Being refused the
/// resumption is no error.
pub fn offer(address: impl Into<Route>, ticket: &Ticket) -> Result<Offer> {
    let address = address.into();
    let doing = format_args!("{} ticket to {address}", ticket.version).to_string();
    let mut exchange = Exchange::connect(address, ticket.version, Some(ticket)).context(&doing)?;
    let resumed = exchange.stream.ssl().session_reused();
    let renewed = exchange.ticket(RENEWAL_LIMIT).context(&doing)?;
    Ok(Offer { resumed, renewed: renewed.filter(|new| new.bytes != ticket.bytes) })
}

/// Asks for `path` over HTTPS and returns the whole answer, head and body.
///
/// # Errors
/// When the server cannot be reached or is too slow.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let doing = format_args!("GET {path} from {address}").to_string();
    let mut exchange = Exchange::connect(address.into(), TlsVersion::V13, None).context(&doing)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    drive(&mut exchange.stream, exchange.deadline, |stream| stream.ssl_write(request.as_bytes()))
        .context(&doing)?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let part = drive(&mut exchange.stream, exchange.deadline, |stream| {
            match stream.ssl_read(&mut buffer) {
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
                other => other,
            }
        });
        match part.context(&doing)? {
            0 => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
}

/// The first 16 bytes of a fresh TLS 1.2 ticket: under which key the server encrypts now.
///
/// # Errors
/// As [`take`].
pub fn key_name(address: SocketAddr) -> Result<KeyName> {
    take(address, TlsVersion::V12).map(|ticket| ticket.key_name)
}

/// One connection, with a deadline.
struct Exchange {
    version: TlsVersion,
    stream: SslStream<TcpStream>,
    deadline: Instant,
    sessions: Sessions,
}

/// The sessions, in DER, that arrived on one TLS 1.3 connection.
type Sessions = Arc<Mutex<Vec<Vec<u8>>>>;

impl Exchange {
    fn connect(route: Route, version: TlsVersion, ticket: Option<&Ticket>) -> Result<Self> {
        let deadline = Instant::now() + EXCHANGE_LIMIT;
        let (context, index) = client(version)?;
        let sessions = Sessions::default();
        let mut ssl = Ssl::new(context)?;
        ssl.set_ex_data(*index, Arc::clone(&sessions));
        ssl.set_hostname("localhost")?;
        if let Some(ticket) = ticket {
            let session = SslSession::from_der(&ticket.session)?;
            // SAFETY: a session that was read from DER belongs to no other context.
            unsafe { ssl.set_session(&session)? };
        }
        let tcp = route.connect()?;
        tcp.set_nonblocking(true)?;
        tcp.set_nodelay(true)?;
        let mut stream = SslStream::new(ssl, tcp)?;
        drive(&mut stream, deadline, SslStream::connect).context("handshake failed")?;
        Ok(Self { version, stream, deadline, sessions })
    }

    /// The connection's ticket; for TLS 1.3 the first that arrives within `limit`.
    fn ticket(&mut self, limit: Duration) -> Result<Option<Ticket>> {
        if self.version == TlsVersion::V12 {
            let session = self.stream.ssl().session().map(|s| s.to_der()).transpose()?;
            return session.map(|der| Ticket::from_session(self.version, der)).transpose();
        }
        let end = self.deadline.min(Instant::now() + limit);
        loop {
            // There is nothing to read but tickets, so that WANT_READ means: all are in.
            let nothing = match self.stream.ssl_read(&mut [0; 1]) {
                Ok(_) => return Err(Error::new("the server spoke without being asked")),
                Err(error) => error,
            };
            if let Some(der) = lock(&self.sessions).first() {
                return Ticket::from_session(self.version, der.clone()).map(Some);
            }
            match nothing.code() {
                ErrorCode::WANT_READ => {}
                ErrorCode::ZERO_RETURN => return Ok(None),
                _ => return Err(Error::new(format!("no ticket: {nothing}"))),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            poll(self.stream.get_ref().as_fd(), Readiness::Read, left)?;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Politeness only: the server need not take the end for an attack.
        let _ = self.stream.shutdown();
    }
}

/// Repeats `step` on a socket that does not block, until it is done or the deadline has passed.
fn drive<T>(
    stream: &mut SslStream<TcpStream>,
    deadline: Instant,
    mut step: impl FnMut(&mut SslStream<TcpStream>) -> std::result::Result<T, ssl::Error>,
) -> Result<T> {
    loop {
        let error = match step(stream) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let readiness = match error.code() {
            ErrorCode::WANT_READ => Readiness::Read,
            ErrorCode::WANT_WRITE => Readiness::Write,
            _ => return Err(Error::new(error.to_string())),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(format!("not done within {EXCHANGE_LIMIT:?}")));
        }
        if interrupted() {
            return Err(Error::new("interrupted"));
        }
        poll(stream.get_ref().as_fd(), readiness, left)?;
    }
}

type Client = (SslContext, Index<Ssl, Sessions>);

/// The context for a version, made once: that costs more than a handshake.
fn client(version: TlsVersion) -> Result<&'static Client> {
    static V12: OnceLock<std::result::Result<Client, String>> = OnceLock::new();
    static V13: OnceLock<std::result::Result<Client, String>> = OnceLock::new();
    let (cell, ssl_version) = match version {
        TlsVersion::V12 => (&V12, SslVersion::TLS1_2),
        TlsVersion::V13 => (&V13, SslVersion::TLS1_3),
    };
    cell.get_or_init(|| new_client(ssl_version).map_err(|error| error.to_string()))
        .as_ref()
        .map_err(Error::new)
}

fn new_client(version: SslVersion) -> Result<Client> {
    let index: Index<Ssl, Sessions> = Ssl::new_ex_index()?;
    let mut context = SslContextBuilder::new(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(version))?;
    context.set_max_proto_version(Some(version))?;
    context.set_verify(SslVerifyMode::NONE);
    context.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
    context.set_new_session_callback(move |ssl, session| {
        if let (Some(sessions), Ok(der)) = (ssl.ex_data(index), session.to_der()) {
            lock(sessions).push(der);
        }
    });
    Ok((context.build(), index))
}

/// Finds the ticket in OpenSSL's SSL_SESSION: a SEQUENCE whose member `[10]` is an OCTET STRING.
fn ticket_in_session(der: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const TICKET: u8 = 0xaa;
    const OCTET_STRING: u8 = 0x04;
    let (tag, mut rest, _) = split_der(der)?;
    if tag != SEQUENCE {
        return None;
    }
    loop {
        let (tag, content, after) = split_der(rest)?;
        if tag == TICKET {
            let (tag, ticket, _) = split_der(content)?;
            return (tag == OCTET_STRING).then_some(ticket);
        }
        rest = after;
    }
}

/// Splits a DER value off: its tag (one byte is all that is needed here), content, and the rest.
fn split_der(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let length = digits.iter().try_fold(0_usize, |sum, digit| {
            sum.checked_mul(256).map(|sum| sum + usize::from(*digit))
        })?;
        (length, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// One field of a [`Matrix`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// The session was resumed.
    Resumed,
    /// A full handshake instead.
    Refused,
    /// No handshake at all, and why.
    Failed(String),
}

/// Who resumes whose tickets.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// In which version.
    pub version: TlsVersion,
    /// `cells[i][j]`: what the `j`th server did with the `i`th ticket.
    pub cells: Vec<Vec<Cell>>,
    /// The servers' numbers, for display only; see [`Matrix::columns`].
    pub columns: Vec<usize>,
}

/// Takes a ticket on each server and offers it to every server.
///
/// # Errors
/// When a server gives no ticket.
pub fn matrix(servers: &[SocketAddr], version: TlsVersion) -> Result<Matrix> {
    let tickets = take_all(servers, version)?;
    Ok(offer_all(servers, version, &tickets))
}

/// One ticket of each server.
///
/// # Errors
/// When a server gives none.
pub fn take_all(servers: &[SocketAddr], version: TlsVersion) -> Result<Vec<Ticket>> {
    servers.iter().map(|address| take(*address, version)).collect()
}

/// Offers each ticket to every server; the matrix has a row for each ticket.
pub fn offer_all(servers: &[SocketAddr], version: TlsVersion, tickets: &[Ticket]) -> Matrix {
    let try_one = |ticket, address: &SocketAddr| match offer(*address, ticket) {
        Ok(Offer { resumed: true, .. }) => Cell::Resumed,
        Ok(_) => Cell::Refused,
        Err(error) => Cell::Failed(error.to_string()),
    };
    let row = |ticket| servers.iter().map(|address| try_one(ticket, address)).collect();
    let cells = tickets.iter().map(row).collect();
    Matrix { version, cells, columns: (1..=servers.len()).collect() }
}

impl Matrix {
    /// Gives the servers other numbers than 1, 2, 3 and so on for display, when some are missing.
    pub fn columns(mut self, numbers: &[usize]) -> Self {
        self.columns = numbers.to_vec();
        self
    }

    /// Whether every ticket was resumed everywhere. An empty matrix is not full.
    pub fn is_full(&self) -> bool {
        !self.cells.is_empty() && self.misses() == 0
    }

    /// How many offers were not resumed.
    pub fn misses(&self) -> usize {
        self.cells.iter().flatten().filter(|cell| **cell != Cell::Resumed).count()
    }

    /// Whether each server resumes its own tickets and refuses all others.
    pub fn is_diagonal(&self) -> bool {
        let right = |i, j, cell: &Cell| match cell {
            Cell::Resumed => i == j,
            Cell::Refused => i != j,
            Cell::Failed(_) => false,
        };
        !self.cells.is_empty()
            && self
                .cells
                .iter()
                .enumerate()
                .all(|(i, row)| row.iter().enumerate().all(|(j, cell)| right(i, j, cell)))
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: offered to server", self.version)?;
        self.columns.iter().try_for_each(|number| write!(f, "{number:>4}"))?;
        for (i, row) in self.cells.iter().enumerate() {
            write!(f, "\n  ticket of server {:<3}      ", i + 1)?;
            for cell in row {
                f.write_str(match cell {
                    Cell::Resumed => " yes",
                    Cell::Refused => "   -",
                    Cell::Failed(_) => "   !",
                })?;
            }
        }
        let failures = self.cells.iter().flatten().filter_map(|cell| match cell {
            Cell::Failed(why) => Some(why),
            _ => None,
        });
        failures.take(3).try_for_each(|why| write!(f, "\n  ! {why}"))
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
