//! Clients in the background: each takes a fresh ticket on one server, offers it to another at once,
//! and notes what was not resumed. One that goes on offers what it got there to the next server, or the
//! same ticket where it got none, as a client does that keeps its newest.
//!
//! An offer counts only if both servers were up from when the ticket was made to the end of the offer;
//! [`Load::set_up`] tells the clients so.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::rng::Rng;
use crate::sys::lock;
use crate::tickets::{self, KeyName, Offer, Ticket, TlsVersion};
use crate::{Error, Result};

/// How many misses are kept in full; a broken fleet would make millions.
const DETAILS: usize = 100;

/// What the clients shall do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many clients, each a thread.
    pub threads: u32,
    /// Offers a second that all of them make together, as far as the machine can.
    pub per_second: u32,
    /// How many offers follow one full handshake, each to another server than the one before.
    pub offers_each: u32,
    /// Where the random choices begin; the same seed makes the same choices.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { threads: 2, per_second: 30, offers_each: 1, seed: 1 }
    }
}

/// An offer that was not resumed although both servers were up.
#[derive(Clone, Debug)]
pub struct Miss {
    /// When the ticket was asked for, counted from the load's start.
    pub at: Duration,
    /// Index of the server that gave the ticket.
    pub from: usize,
    /// Index of the server that it was offered to.
    pub to: usize,
    /// The protocol.
    pub version: TlsVersion,
    /// The ticket's key, if there was a ticket.
    pub key_name: Option<KeyName>,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, from, to, version, what, .. } = self;
        let key = self.key_name.as_ref().map_or_else(|| "none".into(), tickets::fingerprint);
        write!(
            f,
            "{at:.3?}: server {} to server {}, {version}, key {key}: {what}",
            from + 1,
            to + 1
        )
    }
}

/// What came of it all.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Exchanges that count.
    pub offers: u64,
    /// Those among them that were not resumed.
    pub missed: u64,
    /// Exchanges that went wrong but do not count, since a server was not up all the while.
    pub set_aside: u64,
    /// The first misses, in full.
    pub details: Vec<Miss>,
    /// How long the load ran.
    pub duration: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.offers as f64 / self.duration.as_secs_f64().max(0.001);
        write!(f, "{} of {} offers missed ({rate:.1}/s", self.missed, self.offers)?;
        write!(f, ", {} set aside)", self.set_aside)?;
        self.details.iter().take(10).try_for_each(|miss| write!(f, "\n  {miss}"))
    }
}

/// Running clients. They end when this is stopped or dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    servers: Vec<Target>,
    started: Instant,
    over: AtomicBool,
    report: Mutex<Report>,
}

#[derive(Debug)]
struct Target {
    address: SocketAddr,
    /// How often the server came up or went down: even while it is up.
    changes: AtomicU64,
}

impl Load {
    /// Starts the clients, with all servers up.
    ///
    /// # Errors
    /// With fewer than two servers or without threads or offers.
    pub fn start(servers: &[SocketAddr], plan: Plan) -> Result<Self> {
        if servers.len() < 2 || plan.threads == 0 || plan.per_second == 0 || plan.offers_each == 0 {
            return Err(Error::new(
                "load needs two servers, a thread and an offer a second at least",
            ));
        }
        let target = |address: &SocketAddr| Target { address: *address, changes: 0.into() };
        let shared = Arc::new(Shared {
            servers: servers.iter().map(target).collect(),
            started: Instant::now(),
            over: AtomicBool::new(false),
            report: Mutex::default(),
        });
        let pace = Duration::from_secs(1) * plan.threads * plan.offers_each / plan.per_second;
        let client = |number: u32| {
            let shared = Arc::clone(&shared);
            let rng = Rng::new(plan.seed.wrapping_add(u64::from(number)));
            // Threads begin spread over the first interval, not all at once.
            let first = shared.started + pace * number / plan.threads;
            thread::spawn(move || shared.run_client(first, pace, plan.offers_each, rng))
        };
        let clients = (0..plan.threads).map(client).collect();
        Ok(Self { shared, clients })
    }

    /// Tells the clients that the server with this index is up, or no longer.
    pub fn set_up(&self, index: usize, up: bool) {
        if let Some(target) = self.shared.servers.get(index) {
            if target.is_up() != up {
                target.changes.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// What has come of it so far.
    pub fn report(&self) -> Report {
        let report = lock(&self.shared.report).clone();
        Report { duration: self.shared.started.elapsed(), ..report }
    }

    /// Ends it, waits for the last exchanges and returns what came of it all.
    pub fn stop(mut self) -> Report {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            // A client that panicked would hide misses: it counts as one.
            if client.join().is_err() {
                lock(&self.shared.report).missed += 1;
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Target {
    fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    fn is_up(&self) -> bool {
        self.changes().is_multiple_of(2)
    }
}

impl Shared {
    fn run_client(&self, first: Instant, pace: Duration, offers_each: u32, mut rng: Rng) {
        let mut next = first;
        while !self.over.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now < next {
                // Short naps, so that the end does not wait for a slow pace.
                thread::sleep((next - now).min(Duration::from_millis(50)));
                continue;
            }
            // Who is late goes on from now: bursts would only make others late.
            next = now.max(next + pace);
            let Some(from) = self.another(None, &mut rng) else { continue };
            let version = TlsVersion::ALL[rng.below(2)];
            self.exchange(from, version, offers_each, &mut rng);
        }
    }

    /// A server that is up, and not `not`; none if there is no other.
    fn another(&self, not: Option<usize>, rng: &mut Rng) -> Option<usize> {
        let is_up = |index: &usize| self.servers[*index].is_up();
        let up: Vec<usize> = (0..self.servers.len()).filter(is_up).collect();
        let others: Vec<usize> = up.iter().copied().filter(|index| Some(*index) != not).collect();
        (up.len() > 1).then(|| others[rng.below(others.len())])
    }

    /// One full handshake with server `from`, and the offers that follow it.
    fn exchange(&self, mut from: usize, version: TlsVersion, offers: u32, rng: &mut Rng) {
        let mut ticket: Option<Ticket> = None;
        let mut since = self.servers[from].changes();
        for _ in 0..offers {
            let Some(to) = self.another(Some(from), rng) else { return };
            let before = [since, self.servers[to].changes()];
            let at = self.started.elapsed();
            let held = match ticket.take() {
                Some(held) => Ok(held),
                None => tickets::take(self.servers[from].address, version),
            };
            let key_name = held.as_ref().ok().map(|held| held.key_name);
            let offered = held.and_then(|held| {
                let offer = tickets::offer(self.servers[to].address, &held)?;
                Ok((offer, held))
            });
            let what = match &offered {
                Ok((offer, _)) if offer.resumed => None,
                Ok(_) => Some("not resumed".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            let after = [from, to].map(|index| self.servers[index].changes());
            let counts = before == after && before.iter().all(|count| count % 2 == 0);
            self.note(counts, what.map(|what| Miss { at, from, to, version, key_name, what }));
            // A server that gives none with the session leaves the client with the one it has.
            let Ok((Offer { resumed: true, renewed }, held)) = offered else { return };
            if let Some(renewed) = renewed {
                (from, since) = (to, before[1]);
                ticket = Some(renewed);
            } else {
                ticket = Some(held);
            }
        }
    }

    fn note(&self, counts: bool, miss: Option<Miss>) {
        let mut report = lock(&self.report);
        report.offers += u64::from(counts);
        match miss {
            None => {}
            Some(_) if !counts => report.set_aside += 1,
            Some(miss) => {
                report.missed += 1;
                if report.details.len() < DETAILS {
                    report.details.push(miss);
                }
            }
        }
    }
}
