//! What the run sees from outside: the servers' logs as they grow, what each server uses, and whether
//! the machine itself stood still.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use testkit::ats::Usage;
use testkit::fleet::Fleet;
use testkit::logs::{Entry, Event, Follower};
use testkit::sys::lock;

use crate::SERVERS;

/// Between two looks of the watchdog at the clock.
const WINK: Duration = Duration::from_millis(50);
/// A wink that lasts so much longer is a standstill of this machine: a good part of the shortest
/// time of silence after which servers give each other up (200 ms).
const STANDSTILL: Duration = Duration::from_millis(100);

/// What one server used at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Counted from the start of the run.
    pub at: Duration,
    /// Index of the server; [`SERVERS`] for the one without the plugin.
    pub index: usize,
    /// Which of its processes, from 0.
    pub life: usize,
    /// No fault was on, so that it can be compared with others.
    pub quiet: bool,
    /// What it used.
    pub usage: Usage,
}

/// Everything that was seen.
pub struct Watch {
    begun: Instant,
    follower: Follower,
    /// All lines that matter, in the order of reading.
    pub entries: Vec<Entry>,
    /// What each server has installed since its process began.
    held: BTreeMap<usize, (Option<u64>, Option<u64>, String)>,
    leader: Option<(u64, usize)>,
    /// What the servers used.
    pub samples: Vec<Sample>,
    /// When the machine stood still, and for how long.
    pub standstills: Arc<Mutex<Vec<(Duration, Duration)>>>,
    over: Arc<AtomicBool>,
}

impl Watch {
    /// Begins now.
    pub fn new(fleet: &Fleet) -> Self {
        let (begun, standstills) = (Instant::now(), Arc::<Mutex<Vec<_>>>::default());
        let over = Arc::new(AtomicBool::new(false));
        let (found, end) = (Arc::clone(&standstills), Arc::clone(&over));
        thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let before = Instant::now();
                thread::sleep(WINK);
                let late = before.elapsed() - WINK;
                if late > STANDSTILL {
                    lock(&found).push((begun.elapsed(), late));
                }
            }
        });
        Self {
            begun,
            follower: Follower::new(fleet, SystemTime::now()),
            entries: Vec::new(),
            held: BTreeMap::new(),
            leader: None,
            samples: Vec::new(),
            standstills,
            over,
        }
    }

    /// Where all times of the run count from.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Since then.
    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Reads what the servers have written.
    pub fn look(&mut self) {
        for entry in self.follower.news() {
            match &entry.event {
                Event::Started => {
                    self.held.remove(&entry.index);
                }
                Event::Installed { current, staged, fingerprint } => {
                    self.held.insert(entry.index, (*current, *staged, fingerprint.clone()));
                }
                Event::Leads(term) if self.leader.is_none_or(|(known, _)| *term >= known) => {
                    self.leader = Some((*term, entry.index));
                }
                _ => {}
            }
            self.entries.push(entry);
        }
    }

    /// Index of the server that leads.
    pub fn leader(&self) -> Option<usize> {
        self.leader.map(|(_, index)| index)
    }

    /// Whether all servers hold one set of agreed keys, and no handover is under way.
    pub fn is_one(&self) -> bool {
        let first = self.held.get(&0);
        first.is_some_and(|(current, staged, _)| current.is_some() && staged.is_none())
            && (0..SERVERS).all(|index| self.held.get(&index) == first)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
