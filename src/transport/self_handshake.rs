//! A handshake with oneself, both sides in memory: what fails here would fail with every peer.
//!
//! OpenSSL's policy, which openssl.cnf and the environment change, decides about keys, signatures, curves
//! and lengths in places that no check of a single certificate goes through.
//!
//! Invariants: no socket, no wait and no other thread; it ends after at most [`MAX_STEPS`] steps.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use openssl::error::ErrorStack;
use openssl::ssl::{self, HandshakeError, MidHandshakeSslStream, Ssl, SslContext, SslStream};

/// The most turns of both sides. A handshake takes three; each turn carries any number of bytes.
const MAX_STEPS: usize = 16;

/// OpenSSL's reason codes above this one are alerts of the other side, which knows the cause better.
const ALERTS: i32 = 1000;

/// One direction of the connection in memory.
type Lane = Rc<RefCell<VecDeque<u8>>>;

/// One end of it.
struct End {
    from: Lane,
    to: Lane,
}

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.from.borrow_mut().read(buffer)? {
            0 if !buffer.is_empty() => Err(ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How far one side is.
enum Side {
    Done(SslStream<End>),
    Waiting(MidHandshakeSslStream<End>),
    Failed(Option<(i32, String)>),
}

impl Side {
    fn of(result: Result<SslStream<End>, HandshakeError<End>>) -> Side {
        match result {
            Ok(stream) => Side::Done(stream),
            Err(HandshakeError::WouldBlock(waiting)) => Side::Waiting(waiting),
            Err(HandshakeError::Failure(failed)) => Side::Failed(fault(failed.error())),
            Err(HandshakeError::SetupFailure(stack)) => Side::Failed(Some((0, stack.to_string()))),
        }
    }

    fn step(self) -> Side {
        match self {
            Side::Waiting(waiting) => Side::of(waiting.handshake()),
            // With TLS 1.3 a client is done before its certificate was looked at.
            Side::Done(mut stream) => match stream.ssl_read(&mut [0]) {
                Err(error) if error.code() == ssl::ErrorCode::SSL => Side::Failed(fault(&error)),
                _ => Side::Done(stream),
            },
            failed => failed,
        }
    }
}

/// The last of OpenSSL's reasons.
fn fault(error: &ssl::Error) -> Option<(i32, String)> {
    let last = error.ssl_error()?.errors().last()?;
    Some((last.reason_code(), last.reason().unwrap_or("no reason given").to_owned()))
}

/// Whether two servers with this context could ever talk; OpenSSL's reason if not, with its number.
///
/// # Errors
/// OpenSSL has no memory for it.
pub(super) fn shake_hands(context: &SslContext) -> Result<Result<(), (i32, String)>, ErrorStack> {
    let (to_server, to_client) = (Lane::default(), Lane::default());
    let end = |from: &Lane, to: &Lane| End { from: from.clone(), to: to.clone() };
    let mut client = Side::of(Ssl::new(context)?.connect(end(&to_client, &to_server)));
    let mut server = Side::of(Ssl::new(context)?.accept(end(&to_server, &to_client)));
    for _ in 0..MAX_STEPS {
        match (&client, &server) {
            (Side::Done(_), Side::Done(_)) => return Ok(Ok(())),
            (Side::Failed(_), _) | (_, Side::Failed(_)) => break,
            _ => {}
        }
        (client, server) = (client.step(), server.step());
    }
    let faults = [client.step(), server.step()].into_iter().filter_map(|side| match side {
        Side::Failed(fault) => fault,
        _ => None,
    });
    let known = faults.min_by_key(|(code, _)| *code > ALERTS);
    Ok(Err(known.unwrap_or((0, "it does not come to an end".to_owned()))))
}
