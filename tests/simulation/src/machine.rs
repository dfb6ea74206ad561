//! One server: a machine with clocks and a disk, at times a process on it, and in that process the
//! real node on a tokio runtime of its own, with a stand-in for Traffic Server around it.
//!
//! A process is killed by dropping its runtime, paused by not running it, and drifts by its clock.

use std::future::ready;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::config::{Member, Settings};
use stek_share::core::witness::Onlooker;
use stek_share::log_sink::{Level, Log, LogSink};
use stek_share::node::environment::{Environment, ReadList, SimulatedNetwork};
use stek_share::node::{new_key, Deps, KeySet, Node, NodeStatus};
use stek_share::transport::tls::Tls;
use stek_share::transport::Versions;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use crate::cells::Bytes;
use crate::disk::SimulatedDisk;
use crate::network::{Arrival, Mailbox, Network};
use crate::{system, MS};

/// The pause after an install that failed.
const INSTALL_RETRY: Duration = Duration::from_millis(200);

/// A monotonic clock starts somewhere, which nothing may depend on.
const FIRST_MONOTONIC: u64 = 1_000_000 * MS;

/// 2030-01-01 or so.
const FIRST_WALL: u64 = 1_900_000_000_000 * MS;

/// What the stand-in for Traffic Server holds.
#[derive(Clone, Debug)]
pub struct Set {
    /// Key bytes, the encrypting one first.
    pub keys: Vec<Bytes>,
    /// Whether the first is the group's.
    pub agreed: bool,
    /// Its cluster incarnation.
    pub cluster_id: Option<[u8; 16]>,
    /// The cluster that agreed on it.
    pub epoch: Epoch,
    /// The generation of the first key, 0 if it is not the group's.
    pub current: u64,
    /// The newest generation.
    pub newest: u64,
}

/// What a server says to the world around it.
#[derive(Debug)]
pub enum Note {
    /// Its host has these keys now.
    Installed(Set),
    /// Its start is over: handshakes begin.
    Serving,
    /// It wrote a line.
    Line(Level, String),
    /// An operator's order or reload, by its number, came to this.
    Done(u64, Result<Option<u64>, String>),
    /// An orderly shutdown is over.
    Ended,
}

/// Where servers leave their notes.
#[derive(Clone, Default)]
pub struct Notes(Arc<Mutex<Vec<(u32, Note)>>>);

impl Notes {
    /// Leaves one.
    pub fn leave(&self, id: u32, note: Note) {
        lock(&self.0).push((id, note));
    }

    /// All notes since this was last asked.
    pub fn take(&self) -> Vec<(u32, Note)> {
        std::mem::take(&mut *lock(&self.0))
    }
}

struct Speaker(u32, Notes);

impl LogSink for Speaker {
    fn write(&self, level: Level, line: &str) {
        self.1.leave(self.0, Note::Line(level, line.to_owned()));
    }
}

/// How the host takes keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct Installing {
    /// How long an install takes, at least and at most, in milliseconds.
    pub takes: (u64, u64),
    /// Whether it fails.
    pub broken: bool,
}

/// What may happen to a process from outside, inside its runtime.
pub type Deed = Box<dyn FnOnce(&Arc<Node>)>;

/// See the module's head.
pub struct Machine {
    /// Its id in the server list.
    pub id: u32,
    /// Its disk.
    pub disk: Arc<SimulatedDisk>,
    /// The server list in its file.
    file: Arc<Mutex<Vec<Member>>>,
    /// How its host takes keys.
    pub installing: Arc<Mutex<Installing>>,
    clock: Clock,
    process: Option<Process>,
    runs: u64,
    wake: Option<u64>,
    paused: bool,
    arrivals: Vec<Arrival>,
    deeds: Vec<Deed>,
}

struct Process {
    runtime: Runtime,
    node: Arc<Mutex<Option<Arc<Node>>>>,
    begin: Option<Box<dyn FnOnce()>>,
}

struct Clock {
    /// The clock at world time `at`.
    monotonic: u64,
    at: u64,
    /// How many millionths it runs fast.
    drift: i64,
    /// Wall clock minus monotonic clock.
    wall: i128,
    /// Whether the machine is suspended: its monotonic clock stands still.
    suspended: bool,
}

impl Clock {
    fn monotonic(&self, now: u64) -> u64 {
        self.monotonic + if self.suspended { 0 } else { self.passed(now) }
    }

    /// What a clock that never stands still has gone on by since `at`.
    fn passed(&self, now: u64) -> u64 {
        let passed = i128::from(now.saturating_sub(self.at));
        let shown = passed + passed * i128::from(self.drift) / 1_000_000;
        u64::try_from(shown).unwrap_or(0)
    }

    fn suspend(&mut self, now: u64) {
        self.monotonic = self.monotonic(now);
        self.at = now;
        self.suspended = true;
    }

    /// Wakes the machine up; how long it was suspended, which only the wall clock shows.
    fn wake(&mut self, now: u64) -> u64 {
        let slept = if self.suspended { self.passed(now) } else { 0 };
        if self.suspended {
            self.suspended = false;
            self.at = now;
            self.wall += i128::from(slept);
        }
        slept
    }

    fn wall(&self, now: u64) -> u64 {
        u64::try_from(i128::from(self.monotonic(now)) + self.wall).unwrap_or(0)
    }

    /// How long the world waits until this clock has gone on by `local`.
    fn world(&self, local: u64) -> u64 {
        let speed = i128::from(1_000_000 + self.drift);
        // Rounded up, or the timer would not be due.
        u64::try_from(i128::from(local) * 1_000_000 / speed + 2).unwrap_or(u64::MAX)
    }

    fn set_drift(&mut self, now: u64, drift: i64) {
        self.monotonic = self.monotonic(now);
        // Asleep, it goes on as it was until it wakes up.
        if !self.suspended {
            self.at = now;
        }
        self.drift = drift;
    }
}

impl Machine {
    /// A machine that no process runs on yet.
    pub fn new(id: u32) -> Machine {
        let disk = Arc::new(SimulatedDisk::default());
        let monotonic = FIRST_MONOTONIC * u64::from(id);
        disk.boot(monotonic);
        let wall = i128::from(FIRST_WALL) - i128::from(monotonic);
        Machine {
            id,
            disk,
            file: Arc::default(),
            installing: Arc::default(),
            clock: Clock { monotonic, at: 0, drift: 0, wall, suspended: false },
            process: None,
            runs: 0,
            wake: None,
            paused: false,
            arrivals: Vec::new(),
            deeds: Vec::new(),
        }
    }

    /// The server list in its file.
    pub fn file(&self) -> Vec<Member> {
        lock(&self.file).clone()
    }

    /// Puts a server list into its file.
    pub fn write_file(&self, list: Vec<Member>) {
        *lock(&self.file) = list;
    }

    /// Counts the runs of its processes.
    pub fn run_number(&self) -> u64 {
        self.runs
    }

    fn enter(&self, now: u64) {
        let owner = (self.id, self.runs);
        system::enter(owner, self.clock.monotonic(now), self.clock.wall(now));
    }

    /// Whether a process runs.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Whether a process runs that is not paused.
    pub fn is_awake(&self) -> bool {
        self.runs() && !self.paused
    }

    /// What the server says of itself, if it has a node.
    pub fn node_status(&self, now: u64) -> Option<NodeStatus> {
        let node = lock(&self.process.as_ref()?.node).clone()?;
        self.enter(now);
        let report = node.node_status();
        system::enter((0, 0), 0, 0);
        Some(report)
    }

    /// Does something as if in the process, which goes on with what comes of it.
    pub fn within<T>(&mut self, now: u64, deed: impl FnOnce() -> T) -> Option<T> {
        self.enter(now);
        let done = self.process.as_ref().map(|process| {
            let _context = process.runtime.enter();
            deed()
        });
        system::enter((0, 0), 0, 0);
        self.wake = self.wake.map(|_| now);
        done
    }

    /// Starts a process.
    pub fn start(
        &mut self,
        now: u64,
        network: &Network,
        notes: &Notes,
        settings: Settings,
        tls: Tls,
        onlooker: Onlooker,
    ) {
        self.disk.sleep(self.clock.wake(now));
        self.runs += 1;
        self.paused = false;
        self.arrivals.clear();
        self.deeds.clear();
        self.enter(now);
        let runtime = system::runtime();
        let post = network.connect(self.id, self.runs);
        let file = self.file.clone();
        let list_file: ReadList = Arc::new(move || Box::pin(ready(Some(lock(&file).clone()))));
        let network: Arc<dyn SimulatedNetwork> = Arc::new(Mailbox(post));
        let disk = self.disk.clone();
        let suspended = Arc::new(move || disk.slept());
        let outside = Environment {
            network: Some(network),
            disk: self.disk.clone(),
            suspended,
            list_file,
            onlooker,
            ..Environment::default()
        };
        let node = Arc::new(Mutex::new(None));
        let host = Host {
            id: self.id,
            notes: notes.clone(),
            installing: self.installing.clone(),
            node: node.clone(),
        };
        let log = Log::new(Arc::new(Speaker(self.id, notes.clone())));
        let begin: Box<dyn FnOnce()> = Box::new(move || {
            tokio::spawn(host.live(settings, log, tls, outside));
        });
        self.process = Some(Process { runtime, node, begin: Some(begin) });
        self.wake = Some(now);
    }

    /// Ends the process as SIGKILL does.
    pub fn kill(&mut self, now: u64, network: &Network) {
        network.disconnect(self.id);
        self.arrivals.clear();
        self.deeds.clear();
        self.wake = None;
        self.enter(now);
        if let Some(process) = self.process.take() {
            // First what reacts to the rest: a killed process does not see its own parts die.
            let node = lock(&process.node).take();
            node.iter().for_each(|node| node.abort());
            drop(process.runtime);
        }
        system::enter((0, 0), 0, 0);
    }

    /// The machine boots: its process is gone already.
    pub fn boot(&mut self, now: u64) {
        self.clock.wake(now);
        let wall = self.clock.wall(now);
        self.clock.monotonic = FIRST_MONOTONIC;
        self.clock.at = now;
        self.clock.wall = i128::from(wall) - i128::from(FIRST_MONOTONIC);
        self.disk.boot(FIRST_MONOTONIC);
    }

    /// Steps the wall clock by so many nanoseconds.
    pub fn step_wall(&mut self, by: i64) {
        self.clock.wall += i128::from(by);
    }

    /// Has all clocks of the machine run fast by so many millionths.
    pub fn set_drift(&mut self, now: u64, drift: i64) {
        self.clock.set_drift(now, drift);
        // What it waits for comes at another time now.
        self.wake = self.wake.map(|_| now);
    }

    /// Stops the process as SIGSTOP does, or has it go on.
    pub fn set_paused(&mut self, now: u64, paused: bool) {
        self.paused = paused;
        if !paused {
            self.disk.sleep(self.clock.wake(now));
        }
        if !paused && self.runs() {
            self.wake = Some(now);
        }
    }

    /// Suspends the whole machine, until it is no longer paused.
    pub fn suspend(&mut self, now: u64) {
        self.paused = true;
        self.clock.suspend(now);
    }

    /// What it says to an operator of the agreed list and of its file's: digests of both.
    pub fn lists(&self, now: u64) -> Option<(String, String)> {
        let node = lock(&self.process.as_ref()?.node).clone()?;
        self.enter(now);
        let list = node.status().list;
        system::enter((0, 0), 0, 0);
        Some((list.digest?, list.file_digest))
    }

    /// Something came in by the network.
    pub fn arrive(&mut self, arrival: Arrival) {
        self.arrivals.push(arrival);
    }

    /// Has something done in the process, once its node is there.
    pub fn have(&mut self, deed: Deed) {
        self.deeds.push(deed);
    }

    /// When it has something to do next.
    pub fn next(&self, now: u64) -> Option<u64> {
        if !self.is_awake() {
            return None;
        }
        let has_work = !self.arrivals.is_empty() || (!self.deeds.is_empty() && self.has_node());
        if has_work {
            Some(now)
        } else {
            self.wake
        }
    }

    fn has_node(&self) -> bool {
        self.process.as_ref().is_some_and(|process| lock(&process.node).is_some())
    }

    /// Runs the process until it waits.
    pub fn run(&mut self, now: u64, network: &Network) {
        let deeds = if self.has_node() { std::mem::take(&mut self.deeds) } else { Vec::new() };
        let arrivals = std::mem::take(&mut self.arrivals);
        let id = self.id;
        self.enter(now);
        let Some(process) = &mut self.process else { return };
        let begin = process.begin.take();
        let node = lock(&process.node).clone();
        let wait = system::drive(&process.runtime, || {
            begin.into_iter().for_each(|begin| begin());
            arrivals.into_iter().for_each(|arrival| network.deliver(id, arrival));
            if let Some(node) = &node {
                deeds.into_iter().for_each(|deed| deed(node));
            }
        });
        system::enter((0, 0), 0, 0);
        self.wake = wait.map(|wait| match wait {
            0 => now,
            wait => now + self.clock.world(wait),
        });
    }
}

/// Stands in for Traffic Server: takes keys into its ticket context, as the installer thread does.
struct Host {
    id: u32,
    notes: Notes,
    installing: Arc<Mutex<Installing>>,
    node: Arc<Mutex<Option<Arc<Node>>>>,
}

impl Host {
    async fn live(self, settings: Settings, log: Log, tls: Tls, outside: Environment) {
        let initial = new_key().expect("randomness is simulated");
        let mut serial = 1;
        self.put(&KeySet::own(initial.clone()));
        let wait = settings.startup_wait;
        let deps = Deps { log, tls, initial, versions: Versions::OURS, outside };
        let node = Node::start(settings, deps).await.expect("randomness is simulated");
        let node = Arc::new(node);
        *lock(&self.node) = Some(node.clone());
        let mut sets = node.key_sets();
        let (notes, id) = (self.notes.clone(), self.id);
        let starting = node.clone();
        tokio::spawn(async move {
            let _ = starting.wait_for_group(wait).await;
            notes.leave(id, Note::Serving);
        });
        loop {
            let newest = sets.borrow_and_update().serial;
            if newest != serial {
                if self.install().await {
                    let set = sets.borrow_and_update().clone();
                    self.put(&set);
                    node.installed(&set);
                    serial = set.serial;
                } else {
                    sleep(INSTALL_RETRY).await
                }
            } else if sets.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes the time that an install takes; whether it works.
    async fn install(&self) -> bool {
        let Installing { takes: (least, most), .. } = *lock(&self.installing);
        let mut draw = [0; 8];
        openssl::rand::rand_bytes(&mut draw).expect("randomness is simulated");
        let takes = least + u64::from_le_bytes(draw) % (most - least + 1);
        sleep(Duration::from_millis(takes)).await;
        !lock(&self.installing).broken
    }

    fn put(&self, set: &KeySet) {
        let set = Set {
            keys: set.keys.iter().map(|key| *key.expose()).collect(),
            agreed: set.agreed,
            cluster_id: set.cluster_id.map(|cluster_id| cluster_id.to_bytes()),
            epoch: set.epoch,
            current: set.current.0,
            newest: set.newest.0,
        };
        self.notes.leave(self.id, Note::Installed(set));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a server with `state_dir` keeps its file.
pub fn state_dir() -> PathBuf {
    PathBuf::from("/run/stek_share")
}
