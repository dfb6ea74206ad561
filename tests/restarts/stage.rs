//! What both kinds of restarts share: the tickets that clients carry, chance, and the plugin.

use std::collections::VecDeque;
use std::fmt;
use std::iter;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use testkit::ats::Ats;
pub use testkit::fleet::built_plugin as plugin;
use testkit::fleet::Fleet;
use testkit::logs::{self, Event};
use testkit::sys::{lock, Signal};
use testkit::tickets::{self, KeyName, Ticket, TlsVersion};
use testkit::{wait, Error, Result};

/// Until a fleet has one key on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks for a new key; each is a handshake.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// How many keys a server holds that has no handover under way: current and previous.
const HELD: usize = 2;

/// What the plugin says, in its debug lines, when `startup_wait` brought the group's keys.
const IN_TIME: &str = " was there after ";
/// All that it can say at the end of that wait.
const OUTCOMES: [&str; 4] = [
    IN_TIME,
    "no majority after ",
    "the group has its first STEK staged after ",
    "no keys of the group within ",
];

/// Tests take turns: two fleets at once would only measure each other.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tickets of both versions under one key.
pub type OfOneKey = Vec<Ticket>;

/// The tickets that clients hold under the group's newest keys, the newest key first.
#[derive(Debug, Default)]
pub struct Carried(Mutex<VecDeque<OfOneKey>>);

impl Carried {
    /// Takes tickets on the server at `address` if it encrypts with a key that none is held of.
    pub fn look(&self, address: SocketAddr) -> Result<()> {
        let first = tickets::take(address, TlsVersion::V12)?;
        if self.newest() == Some(first.key_name) {
            return Ok(());
        }
        let second = tickets::take(address, TlsVersion::V13)?;
        // The key may have changed between the two; the next look finds the newer one.
        if second.key_name == first.key_name && !self.knows(&first.key_name) {
            let mut held = lock(&self.0);
            held.push_front(vec![first, second]);
            held.truncate(HELD);
        }
        Ok(())
    }

    /// Looks, at one server after another, until `enough`.
    pub fn look_until(&self, servers: &[SocketAddr], enough: impl Fn() -> bool) -> Result<()> {
        let mut servers = servers.iter().cycle();
        while !enough() {
            servers.next().map_or(Ok(()), |address| self.look(*address))?;
            thread::sleep(LOOK_PAUSE);
        }
        Ok(())
    }

    /// Looks until tickets of current and previous key are held, and the current key is not `old`.
    pub fn fill(&self, servers: &[SocketAddr], old: Option<KeyName>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let full = || lock(&self.0).len() == HELD && self.newest() != old;
        self.look_until(servers, || full() || Instant::now() > end)?;
        if full() {
            Ok(())
        } else {
            Err(Error::new("no rotation was seen"))
        }
    }

    /// Which key is the newest.
    pub fn newest(&self) -> Option<KeyName> {
        lock(&self.0).front().and_then(|tickets| tickets.first()).map(|ticket| ticket.key_name)
    }

    /// All tickets, those of the newest key first.
    pub fn all(&self) -> Vec<Ticket> {
        lock(&self.0).iter().flatten().cloned().collect()
    }

    /// Forgets them all.
    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    fn knows(&self, name: &KeyName) -> bool {
        lock(&self.0).iter().flatten().any(|ticket| ticket.key_name == *name)
    }
}

/// What a returning server did with what clients carried.
#[derive(Debug)]
pub struct Welcome {
    /// From the start of its process to its first handshake.
    pub took: Duration,
    /// How many tickets it was offered.
    pub offers: usize,
    /// Those that it did not resume; the first handshake's has number 0.
    pub missed: Vec<(usize, Ticket)>,
}

/// Starts a server and offers it all tickets, one of them in the very first handshake that it
/// accepts; `turned` says which comes first.
pub fn welcome(ats: &mut Ats, carried: &Carried, turned: usize) -> Result<Welcome> {
    ats.start()?;
    meet(ats, carried, turned, Instant::now())
}

/// The same for a server that was started at `begun`.
pub fn meet(ats: &mut Ats, carried: &Carried, turned: usize, begun: Instant) -> Result<Welcome> {
    let (tickets, first) = ats.wait_first(|address| {
        // Anew for each attempt: keys go on changing until the server accepts one.
        let mut tickets = carried.all();
        let middle = turned % tickets.len().max(1);
        tickets.rotate_left(middle);
        let first = tickets.first().ok_or_else(|| Error::new("no ticket to offer"))?;
        let offer = tickets::offer(address, first)?;
        Ok((tickets, offer))
    })?;
    let took = begun.elapsed();
    let rest = tickets.iter().skip(1).map(|ticket| tickets::offer(ats.https(), ticket));
    let offers = iter::once(Ok(first)).chain(rest).collect::<Result<Vec<_>>>()?;
    let missed = offers.iter().zip(&tickets).enumerate();
    let missed = missed.filter(|(_, (offer, _))| !offer.resumed);
    let missed = missed.map(|(number, (_, ticket))| (number, ticket.clone())).collect();
    Ok(Welcome { took, offers: offers.len(), missed })
}

/// Whether the server's latest process got the group's keys within `startup_wait`, and its words.
pub fn in_time(ats: &Ats) -> Result<(bool, String)> {
    wait::until(PATIENCE, "a line about startup_wait", || {
        let lines = ats.debug_lines();
        let (_, latest) = lines.rsplit_once("Generate initial STEK succeeded").unwrap_or_default();
        let said = latest.lines().find(|line| OUTCOMES.iter().any(|part| line.contains(part)));
        Ok(said.map(|line| (line.contains(IN_TIME), line.to_owned())))
    })
}

/// Checks that all servers went through one sequence of keys: no generation has two keys, and no
/// number is missing. Returns its first and last generation.
///
/// # Errors
/// What is wrong.
pub fn one_sequence(fleet: &Fleet) -> Result<(u64, u64)> {
    let entries = logs::read(fleet);
    let mut sequence = std::collections::BTreeMap::<u64, String>::new();
    for entry in &entries {
        let Event::Installed { current: Some(generation), fingerprint, .. } = &entry.event else {
            continue;
        };
        let known = sequence.entry(*generation).or_insert_with(|| fingerprint.clone());
        if known != fingerprint {
            let number = entry.index + 1;
            return Err(Error::new(format!(
                "generation {generation} is {known}, and {fingerprint} on server {number}"
            )));
        }
    }
    let generations: Vec<u64> = sequence.into_keys().collect();
    let [first, .., last] = generations[..] else {
        return Err(Error::new("fewer than two generations were used"));
    };
    match generations.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        Some(pair) => Err(Error::new(format!("none between {} and {}", pair[0], pair[1]))),
        None => Ok((first, last)),
    }
}

/// Times in the order of size, in words.
pub struct Spread<'a>(pub &'a [Duration]);

impl fmt::Display for Spread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.to_vec();
        sorted.sort();
        let at = |part: f64| {
            let index = (part * (sorted.len().saturating_sub(1)) as f64).round() as usize;
            sorted.get(index).copied().unwrap_or_default()
        };
        let (count, [least, median, most_of, most]) = (sorted.len(), [0.0, 0.5, 0.95, 1.0].map(at));
        write!(f, "{count} times: {least:.2?} least, {median:.2?} median, ")?;
        write!(f, "{most_of:.2?} 95th percentile, {most:.2?} most")
    }
}

/// A xorshift generator: chance need not be good here, only repeatable.
pub struct Rng(u64);

impl Rng {
    /// Begins with `STEK_RESTART_SEED`, else the clock, and says where.
    pub fn new() -> Result<Self> {
        let clock =
            SystemTime::UNIX_EPOCH.elapsed().map_or(1, |time| u64::from(time.subsec_nanos()));
        let seed = crate::number("STEK_RESTART_SEED", clock.max(1))?;
        println!("STEK_RESTART_SEED={seed}");
        Ok(Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % end.max(1)
    }

    /// A span below `end`.
    pub fn span(&mut self, end: Duration) -> Duration {
        end.mul_f64(self.below(1000) as f64 / 1000.0)
    }

    /// Death with or without a word.
    pub fn signal(&mut self) -> Signal {
        [Signal::Terminate, Signal::Kill][self.below(2)]
    }

    /// `count` of the numbers below `end`; if `first` is given it is among them.
    pub fn choose(&mut self, count: usize, end: usize, first: Option<usize>) -> Vec<usize> {
        let mut chosen: Vec<usize> = first.into_iter().collect();
        while chosen.len() < count.min(end) {
            let next = self.below(end);
            if !chosen.contains(&next) {
                chosen.push(next);
            }
        }
        chosen
    }
}
