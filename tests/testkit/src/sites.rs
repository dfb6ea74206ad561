//! A TLS client that asks one site for a page, with a client certificate or without, and with a
//! session that it has from there or from elsewhere; and that tells what came of it.
//!
//! Certificates of servers are not verified: the question is what a server lets a client do.

use std::ffi::{c_char, c_int, c_long, c_void, CString};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::slice;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foreign_types::ForeignTypeRef;
use openssl::ssl::{
    Ssl, SslContextBuilder, SslMethod, SslSession, SslSessionCacheMode, SslStream, SslVerifyMode,
    SslVersion,
};

use crate::pki::Identity;
use crate::sys::lock;
use crate::tickets::{Ticket, TlsVersion};
use crate::{Error, Result};

/// How long one read or write may take. A server that says nothing for so long answers nothing.
const LIMIT: Duration = Duration::from_secs(10);

extern "C" {
    fn SSL_SESSION_set1_hostname(
        session: *mut openssl_sys::SSL_SESSION,
        name: *const c_char,
    ) -> c_int;
    fn SSL_get_early_data_status(ssl: *const openssl_sys::SSL) -> c_int;
    fn SSL_set_msg_callback(ssl: *mut openssl_sys::SSL, callback: Option<MessageCallback>);
}

type MessageCallback = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    *const c_void,
    usize,
    *mut openssl_sys::SSL,
    *mut c_void,
);

/// What a client does. The beginning is [`Visit::new`].
#[derive(Clone, Debug)]
pub struct Visit<'a> {
    to: SocketAddr,
    version: TlsVersion,
    name: Option<&'a str>,
    second_name: Option<&'a str>,
    ticket: Option<&'a Ticket>,
    identity: Option<&'a Identity>,
    groups: Option<&'a str>,
    early: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Visited {
    /// Whether the handshake was one of resumption.
    pub resumed: bool,
    /// The status of the site's answer to the request; `None` where the server ended the
    /// connection instead.
    pub answer: Option<u16>,
    /// Whether the server took the request as early data.
    pub early: bool,
    /// The last ticket that came.
    pub ticket: Option<Ticket>,
}

impl Visited {
    /// Whether the site answered.
    pub fn is_answered(&self) -> bool {
        self.answer.is_some()
    }
}

impl<'a> Visit<'a> {
    /// Asks for `/` at the site `name` of the server at `to`, with nothing else.
    pub fn new(to: SocketAddr, version: TlsVersion, name: &'a str) -> Self {
        Self {
            to,
            version,
            name: Some(name),
            second_name: None,
            ticket: None,
            identity: None,
            groups: None,
            early: false,
        }
    }

    /// Names no site in the handshake.
    pub fn nameless(mut self) -> Self {
        self.name = None;
        self
    }

    /// Names another site in a second ClientHello, if the server asks for one.
    pub fn then_named(mut self, name: &'a str) -> Self {
        self.second_name = Some(name);
        self
    }

    /// Offers a session.
    pub fn ticket(mut self, ticket: &'a Ticket) -> Self {
        self.ticket = Some(ticket);
        self
    }

    /// Has a client certificate, if the server asks for one.
    pub fn identity(mut self, identity: &'a Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Offers these groups, as `X25519:P-256`, and a key for the first.
    pub fn groups(mut self, groups: &'a str) -> Self {
        self.groups = Some(groups);
        self
    }

    /// Sends the request as early data.
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// Goes there.
    ///
    /// # Errors
    /// When there is no connection, or the client itself cannot do what it is told to.
    pub fn go(&self) -> Result<Visited> {
        let sessions = Arc::new(Mutex::new(Vec::new()));
        let context = self.context(Arc::clone(&sessions))?;
        let mut ssl = Ssl::new(&context)?;
        if let Some(name) = self.name {
            ssl.set_hostname(name)?;
        }
        if let Some(ticket) = self.ticket {
            let session = SslSession::from_der(&ticket.session)?;
            let name = CString::new(self.name.unwrap_or_default());
            let name = name.map_err(|_| Error::new("a NUL in a name"))?;
            // SAFETY: a session that was read from DER belongs to no other context. The client
            // forgets which site it is of, since it would send that one's early data nowhere else.
            unsafe {
                SSL_SESSION_set1_hostname(session.as_ptr(), name.as_ptr());
                ssl.set_session(&session)?;
            }
        }
        let second = self.second_name.map(CString::new).transpose();
        let second = second.map_err(|_| Error::new("a NUL in a name"))?;
        if let Some(name) = &second {
            // SAFETY: the name outlives the stream below, which nothing takes out of here.
            unsafe {
                let argument = name.as_ptr().cast_mut().cast::<c_void>();
                openssl_sys::SSL_ctrl(ssl.as_ptr(), SET_MESSAGE_ARGUMENT, 0, argument);
                SSL_set_msg_callback(ssl.as_ptr(), Some(rename));
            }
        }
        let tcp = TcpStream::connect_timeout(&self.to, LIMIT)?;
        tcp.set_read_timeout(Some(LIMIT))?;
        tcp.set_write_timeout(Some(LIMIT))?;
        tcp.set_nodelay(true)?;
        let mut stream = SslStream::new(ssl, tcp)?;
        let host = self.second_name.or(self.name).unwrap_or("localhost");
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut early = false;
        if self.early {
            let written = stream.write_early_data(request.as_bytes());
            written.map_err(|error| Error::new(format!("early data: {error}")))?;
        }
        let shaken = stream.connect().is_ok();
        if self.early {
            // SAFETY: a live connection.
            early = unsafe { SSL_get_early_data_status(stream.ssl().as_ptr()) } == EARLY_ACCEPTED;
        }
        let sent = shaken && (early || stream.write_all(request.as_bytes()).is_ok());
        let answer = if sent { status_of(&mut stream) } else { None };
        let resumed = shaken && stream.ssl().session_reused();
        let last = match self.version {
            TlsVersion::V12 if shaken => stream.ssl().session().map(|s| s.to_der()).transpose()?,
            _ => lock(&sessions).pop(),
        };
        let ticket = last.and_then(|der| Ticket::from_session(self.version, der).ok());
        Ok(Visited { resumed, answer, early, ticket })
    }

    fn context(&self, sessions: Arc<Mutex<Vec<Vec<u8>>>>) -> Result<openssl::ssl::SslContext> {
        let version = match self.version {
            TlsVersion::V12 => SslVersion::TLS1_2,
            TlsVersion::V13 => SslVersion::TLS1_3,
        };
        let mut context = SslContextBuilder::new(SslMethod::tls_client())?;
        context.set_min_proto_version(Some(version))?;
        context.set_max_proto_version(Some(version))?;
        context.set_verify(SslVerifyMode::NONE);
        context
            .set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        context.set_new_session_callback(move |_, session| {
            lock(&sessions).extend(session.to_der().ok());
        });
        if let Some(identity) = self.identity {
            context.set_certificate(&identity.certificate)?;
            context.set_private_key(&identity.key)?;
        }
        if let Some(groups) = self.groups {
            context.set_groups_list(groups)?;
        }
        Ok(context.build())
    }
}

/// `SSL_EARLY_DATA_ACCEPTED`, `SSL_CTRL_SET_MSG_CALLBACK_ARG`, `SSL_CTRL_SET_TLSEXT_HOSTNAME`.
const EARLY_ACCEPTED: c_int = 2;
const SET_MESSAGE_ARGUMENT: c_int = 16;
const SET_HOST_NAME: c_int = 55;

/// Reads the head of an answer, and all that comes after it.
fn status_of(stream: &mut SslStream<TcpStream>) -> Option<u16> {
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let head = String::from_utf8_lossy(&answer);
    head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()
}

/// At the server's request for a second ClientHello: has that name another site.
unsafe extern "C" fn rename(
    is_sent: c_int,
    _version: c_int,
    content: c_int,
    bytes: *const c_void,
    len: usize,
    ssl: *mut openssl_sys::SSL,
    name: *mut c_void,
) {
    const HANDSHAKE: c_int = 22;
    // A ServerHello with this random value is a HelloRetryRequest (RFC 8446, section 4.1.3).
    const RETRY: [u8; 8] = [0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11];
    if is_sent != 0 || content != HANDSHAKE || bytes.is_null() {
        return;
    }
    // SAFETY: OpenSSL's own buffer, which lives over the call.
    let message = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), len) };
    if message.first() == Some(&2) && message.get(6..14) == Some(&RETRY) {
        // SAFETY: the name is a string that outlives the connection; OpenSSL copies it.
        unsafe { openssl_sys::SSL_ctrl(ssl, SET_HOST_NAME, 0 as c_long, name) };
    }
}
