//! Five servers under load, and what the tests want to know of them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use testkit::fleet::{self, Fleet, Plan};
use testkit::host::hosts;
use testkit::load::{self, Load};
use testkit::logs::{self, Entry, Event};
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Error, Result};

use crate::Effort;

/// As many servers as the promise speaks of.
pub const SERVERS: usize = 5;
/// Until a server that starts or thaws holds the group's keys, on a busy machine.
pub const CATCH_UP_LIMIT: Duration = Duration::from_secs(30);
/// How long a server must have kept up before it counts as one that the leader waits for: the upper
/// election bound, 400 ms, after which the leader has surely heard it.
const STEADY: Duration = Duration::from_millis(500);
/// Between two looks at a server that comes back.
const PROBE_PAUSE: Duration = Duration::from_millis(10);
/// Up to this rate each offer has a full handshake of its own, as clients are that come anew; beyond
/// it, what a machine can do goes into offers.
const FRESH_RATE: u32 = 100;
/// How many offers share a full handshake then.
const OFFERS_EACH: u32 = 8;
/// Offers a second for each client.
const CLIENT_RATE: u32 = 50;
/// How much later than the interval a rotation may be.
const GAP_SLACK: Duration = Duration::from_secs(2);
/// How much the log's stamps of two servers may be wrong about an interval that was kept.
const STAMP_SLACK: Duration = Duration::from_millis(100);

/// Tests take turns: two fleets at once would only measure each other.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What clients met while a server came back, which counts nowhere else.
#[derive(Debug, Default)]
pub struct Return {
    /// Until it had caught up.
    pub took: Duration,
    /// How often its ticket was offered to another server, or another's to it.
    pub offers: u64,
    /// How many of these were not resumed.
    pub missed: u64,
}

/// The fleet with its clients.
pub struct Stage {
    /// The servers.
    pub fleet: Fleet,
    /// The clients.
    pub load: Load,
    /// What the fleet is put through.
    pub effort: Effort,
    dir: RunDir,
}

impl Stage {
    /// Starts the servers, restarts each at a random moment, as the next one of the Traffic Servers that
    /// the run was given, and lets the clients in.
    pub fn set(effort: Effort) -> Result<Self> {
        let dir = RunDir::new("rotation")?;
        let mut fleet =
            Plan::new(SERVERS, &fleet::built_plugin()?, effort.interval).start(dir.path())?;
        fleet::wait_one_key(&fleet.https(), None, CATCH_UP_LIMIT)?;
        // The clock's digits are as random as this needs.
        let mut chance = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos());
        for (ats, host) in fleet.servers.iter_mut().zip(hosts()?.into_iter().cycle()) {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            thread::sleep(effort.interval.mul_f64(f64::from((chance >> 64) as u8) / 512.0));
            ats.stop(Signal::Terminate)?;
            ats.change_host(host)?;
            ats.start()?;
            ats.wait_ready()?;
        }
        let versions = fleet.servers.iter().map(|ats| ats.host().version().to_string());
        println!("Traffic Server {}", versions.collect::<Vec<_>>().join(", "));
        fleet::wait_one_key(&fleet.https(), None, CATCH_UP_LIMIT)?;
        let fresh = effort.rate <= FRESH_RATE;
        let plan = load::Plan {
            per_second: effort.rate,
            threads: effort.rate.div_ceil(CLIENT_RATE).max(2),
            offers_each: if fresh { 1 } else { OFFERS_EACH },
            ..load::Plan::default()
        };
        let load = Load::start(&fleet.https(), plan)?;
        Ok(Self { fleet, load, effort, dir })
    }

    /// All that the servers wrote.
    pub fn entries(&self) -> Vec<Entry> {
        logs::read(&self.fleet)
    }

    /// The newest generation that any server uses.
    pub fn generation(&self) -> u64 {
        logs::rotations(&self.entries()).last().map_or(0, |rotation| rotation.generation)
    }

    /// Waits until some server uses this generation or a later one.
    pub fn wait_generation(&self, generation: u64) -> Result<()> {
        let missing = generation.saturating_sub(self.generation());
        let limit = (self.effort.interval + GAP_SLACK) * u32::try_from(missing + 1).unwrap_or(1);
        let look = || Ok((self.generation() >= generation).then_some(()));
        let pause = Duration::from_millis(20);
        wait::until_every(pause, limit, &format!("generation {generation}"), look)
    }

    /// Whether the rotations after generation `first`, and the offers, are as many as wanted.
    pub fn is_done(&self, first: u64) -> bool {
        let Effort { rotations, offers, .. } = self.effort;
        self.generation() >= first + rotations && self.load.report().offers >= offers
    }

    /// Who leads.
    pub fn leader(&self) -> Result<usize> {
        let leader = wait::until(CATCH_UP_LIMIT, "a leader", || Ok(self.fleet.leader()))?;
        Ok(leader.index)
    }

    /// A server that does not lead, not always the same.
    pub fn follower(&self) -> Result<usize> {
        Ok((self.leader()? + 1 + self.generation() as usize % (SERVERS - 1)) % SERVERS)
    }

    /// Offers tickets to a server that comes back, and its own to another, until it has kept up with
    /// the others for a while; then the clients may use it again.
    pub fn catch_up(&self, index: usize) -> Result<Return> {
        let (begun, mut steady_since) = (Instant::now(), None);
        let mut back = Return::default();
        let other = self.fleet.servers[(index + 1) % SERVERS].https();
        let own = self.fleet.servers[index].https();
        loop {
            for (from, to) in [(own, other), (other, own)] {
                // A server that is not there yet refuses; that is no miss.
                let offered = tickets::take(from, TlsVersion::V13)
                    .and_then(|ticket| tickets::offer(to, &ticket));
                back.offers += u64::from(offered.is_ok());
                back.missed += u64::from(offered.is_ok_and(|offer| !offer.resumed));
            }
            if !self.keeps_up(index) {
                steady_since = None;
            } else if steady_since.get_or_insert_with(Instant::now).elapsed() >= STEADY {
                break;
            }
            thread::sleep(PROBE_PAUSE);
            if begun.elapsed() > CATCH_UP_LIMIT {
                return Err(Error::new(format!("server {} has not caught up", index + 1)));
            }
        }
        back.took = steady_since.map_or(begun.elapsed(), |since| since - begun);
        self.load.set_up(index, true);
        Ok(back)
    }

    /// Whether the server holds the same set as all others, by their logs, and encrypts with the same
    /// key as a neighbour.
    fn keeps_up(&self, index: usize) -> bool {
        let entries = self.entries();
        let own = logs::last_set(&entries, index);
        let agreed = matches!(own, Some(Event::Installed { current: Some(_), .. }));
        let same = (0..SERVERS).all(|other| logs::last_set(&entries, other) == own);
        if !agreed || !same {
            return false;
        }
        // Without an answer it is not there yet.
        let name = |index: usize| tickets::key_name(self.fleet.servers[index].https()).ok();
        name(index).is_some() && name(index) == name((index + 1) % SERVERS)
    }

    /// The gaps between rotations after generation `first`, each of which must be the interval, and
    /// `GAP_SLACK` more at most.
    pub fn check_gaps(&self, first: u64) -> Result<String> {
        let gaps = logs::gaps(&logs::rotations(&self.entries()));
        let gaps: Vec<_> = gaps.into_iter().filter(|(generation, _)| *generation > first).collect();
        for (generation, gap) in &gaps {
            if *gap > self.effort.interval + GAP_SLACK {
                return Err(Error::new(format!("generation {generation} came after {gap:?}")));
            }
            if *gap + STAMP_SLACK < self.effort.interval {
                return Err(Error::new(format!("generation {generation} came early: {gap:?}")));
            }
        }
        let least = gaps.iter().map(|(_, gap)| gap).min();
        let most = gaps.iter().map(|(_, gap)| gap).max();
        match (least, most) {
            (Some(least), Some(most)) => {
                Ok(format!("{} gaps from {least:?} to {most:?}", gaps.len()))
            }
            _ => Err(Error::new("no gap between two rotations was seen")),
        }
    }

    /// Ends the load, which must have lost nothing.
    pub fn end(self) -> Result<String> {
        let report = self.load.stop();
        if report.missed > 0 {
            return Err(Error::new(report.to_string()));
        }
        // Half of what was wanted: a machine may be slow, but a test without load is none.
        let wanted = report.duration.as_secs_f64() * f64::from(self.effort.rate) / 2.0;
        if (report.offers as f64) < wanted {
            return Err(Error::new(format!("too little load: {report}")));
        }
        self.dir.done()?;
        Ok(report.to_string())
    }
}
