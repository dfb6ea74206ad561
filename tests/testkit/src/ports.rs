//! Loopback ports that nobody else gets, neither another test of this process nor another process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixListener};
use std::sync::Mutex;

use socket2::{Domain, Socket, Type};

use crate::sys::lock;
use crate::{Error, Result};

/// Where ports come from: below Linux's range for outgoing connections (32768 and up), so that no
/// client takes one by chance while its server restarts.
const FIRST: u16 = 20_000;
/// One past the last.
const END: u16 = 32_000;

/// Every claim of this process. A claim is a Unix socket in the abstract name space: the kernel
/// grants each name once on the machine and frees it when the process ends, however it ends.
static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A free TCP port of 127.0.0.1. It belongs to this process until that ends.
///
/// # Errors
/// When the whole range is taken.
pub fn take() -> Result<u16> {
    let mut claims = lock(&CLAIMS);
    let span = u32::from(END - FIRST);
    // Processes begin at different places, so that they seldom meet.
    let start = std::process::id().wrapping_mul(97) % span;
    for step in 0..span {
        let offset = (start + step) % span;
        let port = FIRST + u16::try_from(offset).unwrap_or(0);
        let name = unix::SocketAddr::from_abstract_name(format!("stek_share-testkit-port-{port}"))?;
        let Ok(claim) = UnixListener::bind_addr(&name) else { continue };
        // Programs that know nothing of the claims may sit on the port too.
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            claims.push(claim);
            return Ok(port);
        }
    }
    Err(Error::new(format!("no free port from {FIRST} to {END}")))
}

/// As [`take`], `count` times.
///
/// # Errors
/// When the whole range is taken.
pub fn take_many(count: usize) -> Result<Vec<u16>> {
    (0..count).map(|_| take()).collect()
}

/// Connects from this address of loopback: a stranger of many, each of whom has one of its own.
///
/// # Errors
/// As connect(2).
pub fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}
