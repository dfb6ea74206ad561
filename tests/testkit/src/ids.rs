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
    /// How long the handshake took.
    pub took: Duration,
}

/// Asks the site `name` of the server at `to` for `/`, and offers `session`. Says goodbye at the end,
/// since OpenSSL forgets a session whose connection was cut.
///
/// # Errors
/// When there is no connection or no handshake.
pub fn visit(to: SocketAddr, name: &str, session: Option<&[u8]>) -> Result<Visited> {
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
    let begun = Instant::now();
    stream.connect().map_err(|error| Error::new(format!("a handshake with {to}: {error}")))?;
    let took = begun.elapsed();
    let resumed = stream.ssl().session_reused();
    let session = stream.ssl().session().map(|session| session.to_der()).transpose()?;
    let session = session.ok_or_else(|| Error::new("no session"))?;
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // The end of the connection may come in any form.
    let _ = stream.read_to_end(&mut answer);
    let _ = stream.shutdown();
    Ok(Visited { resumed, session, is_answered: answer.starts_with(b"HTTP/1.1 "), took })
}

/// The id of a session.
///
/// # Errors
/// When it is none.
pub fn id_of(session: &[u8]) -> Result<Vec<u8>> {
    Ok(SslSession::from_der(session)?.id().to_vec())
}
