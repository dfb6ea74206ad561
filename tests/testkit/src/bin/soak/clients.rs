//! Clients that take tickets on every server that answers and offer them to others: the fresh ones,
//! and those of earlier keys that they carry.
//!
//! An offer is strict if its ticket came from a server that was one of the fleet, and went to one that
//! was so from its beginning to its end. All other offers are counted apart, under the reason why
//! one of the servers was not. The clients check nothing: what was not resumed, and what was resumed
//! late, is kept for the checker, who has the servers' logs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use testkit::rng::Rng;
use testkit::sys::lock;
use testkit::tickets::{self, fingerprint, Ticket, TlsVersion};

use crate::{INTERVAL, SERVERS};

/// Clients, each a thread. Two, so that one that waits for a server does not stop all.
const CLIENTS: u32 = 2;
/// Exchanges a second that they make together; each is two or three handshakes.
const RATE: u32 = 10;
/// Tickets that are carried: with the rate above those of the last quarter of a minute, so of
/// the current key, the previous one and some that retired.
const CARRIED: usize = 150;
/// A ticket lives for at most two intervals; one that is resumed when it is older wants a look at
/// the logs.
const LONG: Duration = Duration::from_secs(2 * INTERVAL.as_secs() + 1);
/// Findings that are kept. A fleet that is broken would make millions.
const KEPT: usize = 100_000;

/// Whether a server is one of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Connected to a majority, caught up, heard: what the promises speak of.
    Strict,
    /// It answers clients, but is something else for this reason.
    Apart(&'static str),
    /// Nobody is to talk to it.
    Down(&'static str),
}

/// A handshake that the logs must explain.
#[derive(Clone, Debug)]
pub struct Finding {
    /// When it began and when it was over, counted from the start of the run.
    pub span: (Duration, Duration),
    /// Index of the server that gave the ticket.
    pub from: usize,
    /// Index of the server that it was offered to; the same if it gave none.
    pub to: usize,
    /// The protocol.
    pub version: TlsVersion,
    /// The ticket's key.
    pub fingerprint: String,
    /// When the ticket was taken.
    pub taken: Duration,
    /// What came of it.
    pub what: What,
}

/// What came of a strict handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A full handshake instead of a resumption.
    NotResumed,
    /// It was resumed, long after it was given out.
    ResumedLate,
    /// No handshake.
    Failed(String),
}

/// Offers and what of them was not resumed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// How many.
    pub offers: u64,
    /// Not resumed, for whatever reason.
    pub missed: u64,
}

/// What the clients met.
#[derive(Clone, Debug, Default)]
pub struct Met {
    /// Strict offers. Those among the missed whose key had retired are no misses; the checker tells.
    pub strict: Tally,
    /// Of them those of tickets that were carried for a while.
    pub carried: u64,
    /// The others, by reason.
    pub apart: BTreeMap<&'static str, Tally>,
    /// Offers apart that were missed, when.
    pub apart_missed_at: Vec<Duration>,
    /// What wants a look at the logs.
    pub findings: Vec<Finding>,
    /// Findings that there was no room for.
    pub dropped: u64,
}

struct Carried {
    ticket: Ticket,
    from: usize,
    strict: bool,
    at: Duration,
}

struct Shared {
    servers: Vec<SocketAddr>,
    /// A server without the plugin.
    plain: SocketAddr,
    begun: Instant,
    over: AtomicBool,
    /// How often each server's standing changed, and what it is.
    standing: Mutex<Vec<(u64, Standing)>>,
    carried: Mutex<Vec<Carried>>,
    met: Mutex<Met>,
}

/// Running clients; they end when this is stopped or dropped.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts them; times count from `begun`. `plain` is a server without the plugin that gets as many
    /// handshakes as one of the others.
    pub fn start(servers: &[SocketAddr], plain: SocketAddr, begun: Instant, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            servers: servers.to_vec(),
            plain,
            begun,
            over: AtomicBool::new(false),
            standing: Mutex::new(vec![(0, Standing::Strict); SERVERS]),
            carried: Mutex::default(),
            met: Mutex::default(),
        });
        let client = |number: u32| {
            let shared = Arc::clone(&shared);
            let mut rng = Rng::new(seed.wrapping_add(u64::from(number)));
            thread::spawn(move || {
                while !shared.over.load(Ordering::Relaxed) {
                    let next = Instant::now() + Duration::from_secs(1) * CLIENTS / RATE;
                    shared.exchange(&mut rng);
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            })
        };
        let threads = (0..CLIENTS).map(client).collect();
        Self { shared, threads }
    }

    /// Tells the clients how a server stands from now on.
    pub fn set(&self, index: usize, standing: Standing) {
        if let Some(own) = lock(&self.shared.standing).get_mut(index) {
            *own = (own.0 + 1, standing);
        }
    }

    /// Ends them and says what they met.
    pub fn stop(mut self) -> Met {
        self.end();
        lock(&self.shared.met).clone()
    }

    fn end(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A client that panicked would hide misses.
            if thread.join().is_err() {
                lock(&self.shared.met).dropped += 1;
            }
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn standing(&self, index: usize) -> (u64, Standing) {
        lock(&self.standing).get(index).cloned().unwrap_or((0, Standing::Down("unknown")))
    }

    /// Takes a ticket somewhere and offers it elsewhere; every other time offers an older one too.
    fn exchange(&self, rng: &mut Rng) {
        let up: Vec<usize> =
            (0..SERVERS).filter(|i| !matches!(self.standing(*i).1, Standing::Down(_))).collect();
        let Some(&from) = rng.pick(&up) else { return };
        let version = TlsVersion::ALL[rng.below(2)];
        if rng.below(SERVERS) == 0 {
            self.pester_the_plain_one(version, rng.below(2));
        }
        if let Some(fresh) = self.take(from, version) {
            let others: Vec<usize> = up.iter().copied().filter(|index| *index != from).collect();
            if let Some(&to) = rng.pick(&others) {
                self.offer(&fresh, to, false);
            }
            let mut carried = lock(&self.carried);
            if carried.len() < CARRIED {
                carried.push(fresh);
            } else {
                let place = rng.below(CARRIED);
                carried[place] = fresh;
            }
        }
        if let (0, Some(&to)) = (rng.below(2), rng.pick(&up)) {
            let old = {
                let carried = lock(&self.carried);
                rng.pick(&carried).map(|one| Carried { ticket: one.ticket.clone(), ..*one })
            };
            if let Some(old) = old {
                self.offer(&old, to, true);
            }
        }
    }

    /// As many handshakes as in one exchange with the others. What comes of them does not matter.
    fn pester_the_plain_one(&self, version: TlsVersion, more: usize) {
        if let Ok(ticket) = tickets::take(self.plain, version) {
            let _ = (0..=more).map(|_| tickets::offer(self.plain, &ticket)).last();
        }
    }

    fn take(&self, from: usize, version: TlsVersion) -> Option<Carried> {
        let (before, at) = (self.standing(from), self.now());
        let taken = tickets::take(self.servers[from], version);
        let strict = before.1 == Standing::Strict && self.standing(from).0 == before.0;
        match taken {
            Ok(ticket) => Some(Carried { ticket, from, strict, at }),
            Err(error) if strict => {
                self.find(Finding {
                    span: (at, self.now()),
                    from,
                    to: from,
                    version,
                    fingerprint: String::new(),
                    taken: at,
                    what: What::Failed(error.to_string()),
                });
                None
            }
            // A server that is not one of the fleet may be about to die.
            Err(_) => None,
        }
    }

    fn offer(&self, carried: &Carried, to: usize, is_old: bool) {
        let (before, begin) = (self.standing(to), self.now());
        let source = self.standing(carried.from);
        let offered = tickets::offer(self.servers[to], &carried.ticket);
        let (after, end) = (self.standing(to), self.now());
        let what = match offered {
            Ok(offer) if offer.resumed && begin - carried.at > LONG => Some(What::ResumedLate),
            Ok(offer) if offer.resumed => None,
            Ok(_) => Some(What::NotResumed),
            Err(error) => Some(What::Failed(error.to_string())),
        };
        let missed = u64::from(what.is_some() && what != Some(What::ResumedLate));
        if carried.strict && before.1 == Standing::Strict && before.0 == after.0 {
            let mut met = lock(&self.met);
            met.strict.offers += 1;
            met.carried += u64::from(is_old);
            met.strict.missed += missed;
            drop(met);
            if let Some(what) = what {
                self.find(Finding {
                    span: (begin, end),
                    from: carried.from,
                    to,
                    version: carried.ticket.version,
                    fingerprint: fingerprint(&carried.ticket.key_name),
                    taken: carried.at,
                    what,
                });
            }
            return;
        }
        // An old ticket apart would mostly tell that keys retire.
        if !is_old {
            let reason =
                [before, after, source].into_iter().find_map(|standing| match standing.1 {
                    Standing::Apart(reason) | Standing::Down(reason) => Some(reason),
                    Standing::Strict => None,
                });
            let mut met = lock(&self.met);
            let tally = met.apart.entry(reason.unwrap_or("between two phases")).or_default();
            tally.offers += 1;
            tally.missed += missed;
            if missed > 0 {
                met.apart_missed_at.push(end);
            }
        }
    }

    fn find(&self, finding: Finding) {
        let mut met = lock(&self.met);
        if met.findings.len() < KEPT {
            met.findings.push(finding);
        } else {
            met.dropped += 1;
        }
    }
}
