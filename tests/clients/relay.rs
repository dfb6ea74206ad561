//! One address in front of several servers, each of which gets the next handshake in turn. It
//! carries bytes, ends no TLS, and reads what goes by in clear: who offers a ticket, who resumes.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use testkit::sys::lock;
use testkit::tickets::KeyName;
use testkit::{ports, Context, Error, Result};

use crate::hello::{FromClient, FromServer, Offered, Outcome};

/// A connection on which nothing comes for so long is removed.
const IDLE: Duration = Duration::from_secs(60);

/// What happens while a handshake is held back; returns the key that tickets were under before.
pub type Event = Box<dyn Fn() -> Result<KeyName> + Send + Sync>;

/// One handshake.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// What the client offered.
    pub offered: Offered,
    /// What the server made of it; none yet at first.
    pub outcome: Option<Outcome>,
    /// Whether it was held back until something had happened.
    pub held: bool,
}

impl Seen {
    /// Whether a ticket was offered.
    pub fn is_offer(&self) -> bool {
        self.offered.ticket.is_some()
    }

    /// Whether it was resumed.
    pub fn is_resumed(&self) -> bool {
        self.outcome.is_some_and(|outcome| outcome.resumed)
    }

    /// Whether it was resumed at its second ClientHello.
    pub fn is_resumed_at_second(&self) -> bool {
        self.outcome.is_some_and(|outcome| outcome.resumed && outcome.retried)
    }
}

/// A running relay. It takes no more connections when dropped.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    servers: Vec<SocketAddr>,
    /// The handshake before which something happens, counted from 0, and what.
    event: Option<(usize, Event)>,
    over: AtomicBool,
    found: Mutex<Found>,
}

/// What the relay has found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The handshakes in the order of their hellos.
    pub seen: Vec<Seen>,
    /// The key of before the event, once that has been.
    pub old_key: Option<KeyName>,
    /// What went wrong.
    pub faults: Vec<String>,
}

impl Relay {
    /// Starts one on a port of its own.
    pub fn start(servers: &[SocketAddr], event: Option<(usize, Event)>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ports::take()?))?;
        let address = listener.local_addr()?;
        let (over, found) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { servers: servers.to_vec(), event, over, found });
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if theirs.over.load(Ordering::Relaxed) {
                    return;
                }
                let theirs = Arc::clone(&theirs);
                thread::spawn(move || {
                    if let Err(error) = theirs.carry(&client) {
                        lock(&theirs.found).faults.push(error.to_string());
                    }
                    // Whoever is still there sees the end; errors mean that nobody is.
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(Self { address, shared })
    }

    /// Where clients come to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has found until now.
    pub fn found(&self) -> Found {
        lock(&self.shared.found).clone()
    }

    /// How many handshakes it knows the outcome of.
    pub fn decided(&self) -> usize {
        lock(&self.shared.found).seen.iter().filter(|seen| seen.outcome.is_some()).count()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // The connection wakes the thread that accepts, which then sees the flag.
        drop(TcpStream::connect_timeout(&self.address, Duration::from_secs(1)));
    }
}

impl Shared {
    fn carry(&self, client: &TcpStream) -> Result<()> {
        client.set_read_timeout(Some(IDLE))?;
        client.set_nodelay(true)?;
        let (mut reader, mut begun) = (FromClient::default(), Vec::new());
        let offered = loop {
            let mut buffer = [0; 4096];
            let count = match (&mut &*client).read(&mut buffer) {
                // Browsers open connections that they do not use in the end.
                Ok(0) | Err(_) if begun.is_empty() => return Ok(()),
                Ok(0) => return Err(Error::new("a client that leaves within its hello")),
                other => other.context("the client's hello")?,
            };
            begun.extend_from_slice(&buffer[..count]);
            if let Some(offered) = reader.feed(&buffer[..count])? {
                break offered;
            }
        };
        let (number, event) = {
            let mut found = lock(&self.found);
            let number = found.seen.len();
            let event = self.event.as_ref().filter(|(when, _)| *when == number);
            found.seen.push(Seen { offered, outcome: None, held: event.is_some() });
            (number, event)
        };
        if let Some((_, event)) = event {
            let old_key = event()?;
            lock(&self.found).old_key = Some(old_key);
        }
        let server = TcpStream::connect(self.servers[number % self.servers.len()])?;
        server.set_read_timeout(Some(IDLE))?;
        server.set_nodelay(true)?;
        (&mut &server).write_all(&begun)?;
        thread::scope(|scope| {
            scope.spawn(|| {
                // Either side may end as it likes once all is said.
                let _ = io::copy(&mut &*client, &mut &server);
                let _ = server.shutdown(Shutdown::Write);
            });
            let carried = self.answer(number, &server, client);
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
            carried
        })
    }

    /// Carries what the server says, and notes its outcome before the client can know of it.
    fn answer(&self, number: usize, server: &TcpStream, client: &TcpStream) -> Result<()> {
        let (mut reader, mut decided) = (FromServer::default(), false);
        let mut buffer = [0; 16384];
        loop {
            let count = match (&mut &*server).read(&mut buffer) {
                Ok(0) | Err(_) if decided => return Ok(()),
                Ok(0) => return Err(Error::new("a server that leaves before its answer")),
                other => other.context("the server's answer")?,
            };
            if !decided {
                if let Some(outcome) = reader.feed(&buffer[..count])? {
                    lock(&self.found).seen[number].outcome = Some(outcome);
                    decided = true;
                }
            }
            let sent = (&mut &*client).write_all(&buffer[..count]);
            if sent.is_err() {
                return Ok(());
            }
        }
    }
}
