//! A web server behind the servers: it answers every request alike.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::Result;

/// What every answer carries, unless it is a page.
pub const BODY: &str = "hello from the origin\n";
/// A client that sends nothing for so long is removed; the servers are quick.
const IDLE: Duration = Duration::from_secs(10);

/// A running origin on a port of 127.0.0.1. It ends when dropped.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kind: &'static str,
    body: &'static str,
    over: AtomicBool,
    answered: AtomicU64,
}

impl Origin {
    /// Starts it on a port of its own.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start() -> Result<Self> {
        Self::of("text/plain", BODY)
    }

    /// The same, but each answer is this page of HTML.
    ///
    /// # Errors
    /// As [`Origin::start`].
    pub fn of_page(page: &'static str) -> Result<Self> {
        Self::of("text/html", page)
    }

    fn of(kind: &'static str, body: &'static str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::ports::take()?))?;
        let address = listener.local_addr()?;
        let (over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        let shared = Arc::new(Shared { kind, body, over, answered });
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if theirs.over.load(Ordering::Relaxed) {
                    return;
                }
                let theirs = Arc::clone(&theirs);
                // A client that hangs up early is no concern of a test.
                thread::spawn(move || drop(answer(&stream, &theirs)));
            }
        });
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests it has answered.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // The connection wakes the thread that accepts, which then sees the flag.
        drop(TcpStream::connect_timeout(&self.address, Duration::from_secs(1)));
    }
}

fn answer(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    shared.answered.fetch_add(1, Ordering::Relaxed);
    let Shared { kind, body, .. } = shared;
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close");
    write!(&mut &*stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}")
}
