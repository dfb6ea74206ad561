//! A TLS 1.2 client that takes no tickets and resumes by the session's id, as curl does.
//!
//! Certificates are not verified: the question is whether a server resumes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use openssl::ssl::{
    Ssl, SslContextBuilder, SslMethod, SslOptions, SslSession, SslStream, SslVerifyMode, SslVersion,
};

use crate::{Error, Result};

/// How long one read or write may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What came of a visit.
#[derive(Debug)]
pub struct Visited {
    /// Whether the handshake was one of resumption.
    pub resumed: bool,
    /// The client's session, as OpenSSL writes it in DER.
    pub session: Vec<u8>,
    /// Whether the server answered the request.
    pub is_answered: bool,
    /// How long connection and handshake took.
    pub took: Duration,
}

/// Asks the site `name` of the server at `to` for `/`, and offers `session`. Says goodbye at the end,
/// since OpenSSL forgets a session whose connection was cut.
///
/// # Errors
/// When there is no connection or no handshake.
pub fn visit(to: SocketAddr, name: &str, session: Option<&[u8]>) -> Result<Visited> {
    shake(to, name, session, true)
}

/// The same without asking for anything: shakes hands, says goodbye and returns.
///
/// # Errors
/// As [`visit`].
pub fn hands(to: SocketAddr, name: &str, session: Option<&[u8]>) -> Result<Visited> {
    shake(to, name, session, false)
}

/// Resumes `session`, and then says what cannot be deciphered, for which a server gives the session up
/// (RFC 5246, section 7.2.2). Whether it was resumed.
///
/// # Errors
/// As [`visit`].
pub fn spoil(to: SocketAddr, name: &str, session: &[u8]) -> Result<bool> {
    let mut stream = connect(to, name, Some(session))?;
    let record = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
    stream.get_mut().write_all(&record)?;
    // Until the server has ended it.
    let _ = stream.get_mut().read_to_end(&mut Vec::new());
    Ok(stream.ssl().session_reused())
}

fn shake(to: SocketAddr, name: &str, session: Option<&[u8]>, asks: bool) -> Result<Visited> {
    let begun = Instant::now();
    let mut stream = connect(to, name, session)?;
    let took = begun.elapsed();
    let resumed = stream.ssl().session_reused();
    let session = stream.ssl().session().map(|session| session.to_der()).transpose()?;
    let session = session.ok_or_else(|| Error::new("no session"))?;
    let mut answer = Vec::new();
    if asks {
        let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        // The end of the connection may come in any form.
        let _ = stream.read_to_end(&mut answer);
    }
    let _ = stream.shutdown();
    Ok(Visited { resumed, session, is_answered: answer.starts_with(b"HTTP/1.1 "), took })
}

fn connect(to: SocketAddr, name: &str, session: Option<&[u8]>) -> Result<SslStream<TcpStream>> {
    let mut context = SslContextBuilder::new(SslMethod::tls_client())?;
    context.set_options(SslOptions::NO_TICKET);
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    context.set_max_proto_version(Some(SslVersion::TLS1_2))?;
    context.set_verify(SslVerifyMode::NONE);
    let context = context.build();
    let mut ssl = Ssl::new(&context)?;
    ssl.set_hostname(name)?;
    if let Some(der) = session {
        let session = SslSession::from_der(der)?;
        // SAFETY: a session that was read from DER belongs to no other context.
        unsafe { ssl.set_session(&session)? };
    }
    let tcp = TcpStream::connect_timeout(&to, LIMIT)?;
    tcp.set_read_timeout(Some(LIMIT))?;
    tcp.set_write_timeout(Some(LIMIT))?;
    tcp.set_nodelay(true)?;
    let mut stream = SslStream::new(ssl, tcp)?;
    stream.connect().map_err(|error| Error::new(format!("a handshake with {to}: {error}")))?;
    Ok(stream)
}
