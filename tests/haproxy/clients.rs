//! Clients of the balancer, which keep the newest ticket that they were given, as browsers do.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use testkit::tickets::{self, Route, Ticket, TlsVersion};
use testkit::{wait, Error, Result};

/// How often a connection is tried that a dying server broke off, before it counts as a failure.
const ATTEMPTS: usize = 5;

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Handshakes with a ticket.
    pub returns: usize,
    /// Those that resumed.
    pub resumed: usize,
    /// Connections that broke and were tried again, with the same ticket.
    pub broken: usize,
}

impl Figures {
    /// Resumed of all returns.
    pub fn percent(&self) -> f64 {
        100.0 * self.resumed as f64 / self.returns.max(1) as f64
    }

    pub fn add(&mut self, other: Self) {
        self.returns += other.returns;
        self.resumed += other.resumed;
        self.broken += other.broken;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} = {:.1} %", self.resumed, self.returns, self.percent())
    }
}

/// A client with a ticket of each version.
struct Client {
    to: SocketAddr,
    number: usize,
    moves: usize,
    tickets: Vec<Ticket>,
    figures: Figures,
}

impl Client {
    fn new(to: SocketAddr, number: usize) -> Result<Self> {
        let route = Route { from: Some(address(number, 0)), to };
        let take = |version| tickets::take(route, version);
        let tickets = TlsVersion::ALL.into_iter().map(take).collect::<Result<_>>()?;
        Ok(Self { to, number, moves: 0, tickets, figures: Figures::default() })
    }

    /// Comes back once with each version, each time from another address.
    fn come_back(&mut self) -> Result<()> {
        for index in 0..self.tickets.len() {
            let offer = self.offer(index)?;
            self.figures.returns += 1;
            self.figures.resumed += usize::from(offer.resumed);
            if let Some(new) = offer.renewed {
                self.tickets[index] = new;
            }
        }
        Ok(())
    }

    fn offer(&mut self, index: usize) -> Result<tickets::Offer> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.moves += 1;
            let route = Route { from: Some(address(self.number, self.moves)), to: self.to };
            match tickets::offer(route, &self.tickets[index]) {
                Err(_) if attempt < ATTEMPTS => self.figures.broken += 1,
                other => return other,
            }
        }
    }
}

/// 127.x.y.z, another one for each client and each move.
fn address(client: usize, moves: usize) -> IpAddr {
    let byte = |number: usize| u8::try_from(number % 250).unwrap_or(0) + 1;
    IpAddr::V4(Ipv4Addr::new(127, byte(client), byte(moves / 250), byte(moves)))
}

/// One client alone comes back `returns` times with each version.
pub fn one(to: SocketAddr, returns: usize) -> Result<Figures> {
    let mut client = Client::new(to, 100)?;
    (0..returns).try_for_each(|_| client.come_back())?;
    Ok(client.figures)
}

/// Many clients at the same time, each in a thread of its own.
pub struct Clients {
    over: Arc<AtomicBool>,
    returns: Vec<Arc<AtomicUsize>>,
    clients: Vec<JoinHandle<Result<Figures>>>,
}

impl Clients {
    /// Lets `count` clients come and go.
    pub fn start(to: SocketAddr, count: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let returns: Vec<Arc<AtomicUsize>> = (0..count).map(|_| Arc::default()).collect();
        let run = |(number, returns): (usize, &Arc<AtomicUsize>)| {
            let (over, returns) = (Arc::clone(&over), Arc::clone(returns));
            thread::spawn(move || {
                let mut client = Client::new(to, number)?;
                let mut chance = u64::try_from(number).unwrap_or(0);
                while !over.load(Ordering::Relaxed) {
                    client.come_back()?;
                    returns.fetch_add(1, Ordering::Relaxed);
                    // Clients come in no order; that nobody waits for anybody is what counts.
                    chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    thread::sleep(Duration::from_millis(100 + (chance >> 33) % 400));
                }
                Ok(client.figures)
            })
        };
        let clients = returns.iter().enumerate().map(run).collect();
        Self { over, returns, clients }
    }

    /// Waits until each client has come back `returns` times more than now.
    pub fn wait_returns(&mut self, returns: usize, limit: Duration) -> Result<()> {
        let count = |counter: &Arc<AtomicUsize>| counter.load(Ordering::Relaxed);
        let before: Vec<usize> = self.returns.iter().map(count).collect();
        wait::until(limit, "the clients' returns", || {
            if let Some(index) = self.clients.iter().position(JoinHandle::is_finished) {
                let end = self.clients.swap_remove(index).join();
                let why = end.unwrap_or_else(|_| Ok(Figures::default()));
                return Err(why.err().unwrap_or_else(|| Error::new("a client panicked")));
            }
            let mut pairs = self.returns.iter().zip(&before);
            Ok(pairs.all(|(now, before)| count(now) >= before + returns).then_some(()))
        })
    }

    /// Ends it and returns what came of all of them.
    pub fn stop(mut self) -> Result<Figures> {
        self.over.store(true, Ordering::Relaxed);
        let mut sum = Figures::default();
        for client in self.clients.drain(..) {
            let figures = client.join().map_err(|_| Error::new("a client panicked"))??;
            sum.add(figures);
        }
        Ok(sum)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
