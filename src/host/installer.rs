//! The one thread that gives ticket keys to the host, and that owns the tokio runtime of the server.
//!
//! Does not decide which keys: they come from [`Node`] by a watch channel. Invariants:
//! - `TSSslTicketKeyUpdate` is called on this thread only, and only while the [`PhaseLock`] allows it:
//!   the host reads its own configuration into the same unguarded place between the return of
//!   TSPluginInit and PORTS_INITIALIZED, and overwrites what was there.
//! - The node hears that a set is installed only when no handshake can miss it: the host cannot
//!   overwrite it any more, or TSPluginInit still runs, so that there is no handshake before
//!   PORTS_INITIALIZED, where the latest set is installed again. Without the second case servers that
//!   start together would wait for each other: in TSPluginInit for a key that is in use, and the
//!   leader for their word that they hold it.
//! - A failed install is tried again for as long as the set is the latest; what was installed
//!   before stays meanwhile.
//! - Nothing here polls: without a new set, an event, a failure or [`Reinstall`] the thread sleeps.
//!
//! Long because: the rules above are about one thread, and hold or fail in one place.

use std::future::Future;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::pin;
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout, Instant};

use super::ats::{self, Rejected};
use super::boot_clock;
use super::files::Files;
use super::guard::Reinstall;
use super::host_environment::EnvironmentWatch;
use super::operator::{self, Message, MESSAGE_QUEUE};
use super::priority;
use super::reader::Reader;
use super::reader::Source;
use super::secret_pages::{SetBuffer, MAX_SET};
use super::sessions;
use super::stats::Stats;
use crate::core::key_ring::Generation;
use crate::core::stek::{Fingerprint, Stek, WeakKey, NAME_LEN};
use crate::load::{load_server_list, Loaded};
use crate::log_sink::{Level, Log};
use crate::node::environment::{Environment, ReadList};
use crate::node::{new_key, Deps, Joined, KeySet, Node, SHUTDOWN_LIMIT};
use crate::supervise::{catch_panic, fail_point, tell_begun_anew, Pauses};
use crate::transport::Versions;

/// Address space for this thread's stack. The node lives here, openraft included; memory is taken
/// only where the stack is touched.
const INSTALLER_STACK: usize = 2 * 1024 * 1024;

/// Address space for the stack of each worker, which compute TLS handshakes.
const WORKER_STACK: usize = 1024 * 1024;

/// Threads for calls that block for a moment. Host names and the configuration's files have threads
/// of their own, since those may hang.
const MAX_BLOCKING_THREADS: usize = 4;

/// How long a blocking thread stays after its work, so that an idle server has none.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What TSPluginInit grants beyond `startup_wait` for threads and runtime to start.
const START_MARGIN: Duration = Duration::from_secs(3);

/// How long the PORTS_INITIALIZED hook waits for the install. It takes a millisecond; the bound
/// only keeps a fault here from stopping the host.
const PORTS_WAIT: Duration = Duration::from_secs(2);

/// What the runtime gets to end its tasks once the node has ended.
const RUNTIME_LIMIT: Duration = Duration::from_millis(100);

/// How long the SHUTDOWN hook waits for node and runtime.
const SHUTDOWN_WAIT: Duration = Duration::from_millis(900);

/// Events of the host that may be under way; there are two in a process's life.
const EVENT_QUEUE: usize = 4;

/// The pause after a first failed install; it doubles with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// The longest pause between two tries of an install.
const RETRY_MOST: Duration = Duration::from_secs(10);

/// Where the host's life stands, as far as ticket keys are concerned. Moves only downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// TSPluginInit runs and waits for us: installing is safe, but not yet for good.
    Init,
    /// TSPluginInit has returned and the host sets up its own ticket keys: hands off.
    Gap,
    /// PORTS_INITIALIZED was there: what is installed stays.
    Open,
}

/// When the installer is started, which says what the host can bear then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// In TSPluginInit.
    WithHost,
    /// Later than PORTS_INITIALIZED, on any thread.
    Late,
}

/// Guards the host's ticket keys by [`Phase`]: whoever holds the lock may count on the phase.
#[derive(Debug)]
pub struct PhaseLock(Mutex<Phase>);

impl PhaseLock {
    fn new() -> PhaseLock {
        PhaseLock(Mutex::new(Phase::Init))
    }

    /// Moves on to `phase`. Returns once no install of an earlier phase is under way.
    fn move_to(&self, phase: Phase) {
        let mut now = self.lock();
        *now = phase.max(*now);
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What takes the keys: the host, or a stand-in in tests.
pub trait TicketContext: Send {
    /// Replaces all keys by `keys`, whole keys side by side, the encrypting one first.
    ///
    /// # Errors
    /// The host did not take them; the earlier ones stay.
    fn update(&mut self, keys: &[u8]) -> Result<(), Rejected>;
}

/// Traffic Server's ticket keys.
struct HostTickets;

impl TicketContext for HostTickets {
    fn update(&mut self, keys: &[u8]) -> Result<(), Rejected> {
        ats::ticket_key_update(keys)
    }
}

/// What the host tells the installer. The sender inside is dropped when the event is dealt with.
enum Event {
    PortsInitialized(SyncSender<()>),
    Shutdown(SyncSender<()>),
}

/// The host's side of a running installer.
pub struct Handle {
    phase: Arc<PhaseLock>,
    events: mpsc::Sender<Event>,
    messages: mpsc::Sender<Message>,
    log: Log,
}

impl Handle {
    /// Starts the installer, which installs a key of this server's own and then the group's. In
    /// TSPluginInit it is waited for, for `startup_wait`; when this returns no install is under
    /// way then, and none is made before [`Handle::ports_initialized`].
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        start: Start,
        loaded: Loaded,
        source: Source,
        log: Log,
        stats: Stats,
        environment: EnvironmentWatch,
    ) -> io::Result<Handle> {
        let phase = Arc::new(PhaseLock::new());
        if start == Start::Late {
            phase.move_to(Phase::Open);
        }
        let (events, queue) = mpsc::channel(EVENT_QUEUE);
        let (messages, message_queue) = mpsc::channel(MESSAGE_QUEUE);
        let (started, when_started) = sync_channel(1);
        let limit = loaded.settings.startup_wait + START_MARGIN;
        let installer = Installer::new(HostTickets, phase.clone(), log.clone(), stats.clone());
        let thread_log = log.clone();
        thread::Builder::new().name("stek_install".into()).stack_size(INSTALLER_STACK).spawn(
            move || {
                sessions::begin_on_this_thread();
                let host = Host { queue, messages: message_queue, started, environment };
                let whole = AssertUnwindSafe(|| live(installer, loaded, source, host));
                let ended = catch_unwind(whole);
                stats.set_down();
                if ended.is_err() {
                    thread_log.error(
                        "the installer ended by an internal error; the ticket keys installed last \
                         stay in use until Traffic Server is restarted",
                    );
                }
            },
        )?;
        if start == Start::Late {
            return Ok(Handle { phase, events, messages, log });
        }
        if wait(&when_started, limit) == Waited::TimedOut {
            log.warning(format!(
                "start-up takes longer than {} ms; Traffic Server goes on meanwhile",
                limit.as_millis()
            ));
        }
        phase.move_to(Phase::Gap);
        Ok(Handle { phase, events, messages, log })
    }

    /// For the hooks at messages and reloads: has one answered, and does not wait for it.
    pub fn message(&self, message: Message) {
        let word = message.word();
        match self.messages.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.log.warning(format!(
                "{word}: {MESSAGE_QUEUE} messages wait to be answered already; this one is \
                 dropped, send it again later"
            )),
            Err(TrySendError::Closed(_)) => self.log.error(format!(
                "{word}: not done: the plugin has ended, for the reason above; restart Traffic \
                 Server"
            )),
        }
    }

    /// For the PORTS_INITIALIZED hook: has the latest set installed again, for good now.
    pub fn ports_initialized(&self) {
        self.phase.move_to(Phase::Open);
        if self.tell(Event::PortsInitialized, PORTS_WAIT) == Waited::TimedOut {
            self.log.warning(format!(
                "the ticket keys were not installed within {} ms; the first handshakes may use \
                 Traffic Server's own",
                PORTS_WAIT.as_millis()
            ));
        }
    }

    /// For the SHUTDOWN hook: ends node, runtime and installer, within 900 ms.
    pub fn shutdown(&self) {
        if self.tell(Event::Shutdown, SHUTDOWN_WAIT) == Waited::TimedOut {
            self.log.debug("did not end in time; Traffic Server ends without waiting");
        }
    }

    fn tell(&self, event: fn(SyncSender<()>) -> Event, limit: Duration) -> Waited {
        let (done, when_done) = sync_channel(1);
        match self.events.try_send(event(done)) {
            Ok(()) => wait(&when_done, limit),
            // The installer has ended, and has said why.
            Err(_) => Waited::Done,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    Done,
    TimedOut,
}

/// Waits until the other side drops its sender, or until `limit` ran out.
fn wait(done: &Receiver<()>, limit: Duration) -> Waited {
    match done.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => Waited::TimedOut,
        Ok(()) | Err(RecvTimeoutError::Disconnected) => Waited::Done,
    }
}

/// The installer's side of a [`Handle`].
struct Host {
    queue: mpsc::Receiver<Event>,
    messages: mpsc::Receiver<Message>,
    /// Dropped once the start is over.
    started: SyncSender<()>,
    environment: EnvironmentWatch,
}

/// The installer thread, from its first key to the host's end.
fn live(mut installer: Installer<HostTickets>, loaded: Loaded, source: Source, host: Host) {
    let workers = loaded.settings.workers;
    let log = installer.log.clone();
    fail_point("installer-thread");
    let initial = match new_key() {
        Ok(key) => key,
        Err(why) => {
            log.error(format!("no key of this server's own: {why}; Traffic Server's key stays"));
            return;
        }
    };
    log.debug(format!("Generate initial STEK succeeded: {}", initial.fingerprint()));
    installer.install(&KeySet::own(initial.clone()));
    let runtimes = own_runtime().and_then(|own| Ok((own, self::workers(workers, &log)?)));
    let (runtime, pool) = match runtimes {
        Ok(runtimes) => runtimes,
        Err(why) => {
            log.error(format!(
                "cannot start {workers} worker threads (asio_thread_pool_size): {why}; this server \
                 keeps a ticket key of its own; lower the option or raise the limit of threads"
            ));
            return;
        }
    };
    let mut loaded = loaded;
    loaded.tls = loaded.tls.on(pool.handle().clone());
    // Its queues are closed then: what the host says from now on is answered at once.
    let done = runtime.block_on(run(&mut installer, loaded, source, initial, host));
    pool.shutdown_background();
    runtime.shutdown_timeout(RUNTIME_LIMIT);
    drop(done);
}

/// Reads the server list that the configuration leads to now, on a thread for files.
fn list_reader(source: Source) -> ReadList {
    let reader = Arc::new(Reader::default());
    Arc::new(move || {
        let (reader, source) = (reader.clone(), source.clone());
        let read = move || load_server_list(&source.argument, &source.dirs);
        Box::pin(async move { reader.read(read).await.ok().flatten() })
    })
}

/// Starts the node, waits for the group, serves the host; answers with whom to tell about the end.
async fn run(
    installer: &mut Installer<HostTickets>,
    loaded: Loaded,
    source: Source,
    initial: Stek,
    mut host: Host,
) -> Option<SyncSender<()>> {
    let log = installer.log.clone();
    let startup_wait = loaded.settings.startup_wait;
    let deps = Deps {
        log: log.clone(),
        tls: loaded.tls.clone(),
        initial,
        versions: Versions::OURS,
        outside: Environment {
            list_file: list_reader(source.clone()),
            suspended: Arc::new(boot_clock::suspended),
            sessions: sessions::exchange(),
            ..Environment::default()
        },
    };
    let node = match Node::start(loaded.settings.clone(), deps).await {
        Ok(node) => Arc::new(node),
        Err(why) => {
            log.error(format!("OpenSSL: {why}; this server keeps a ticket key of its own"));
            return None;
        }
    };
    let (stats, environment) = (installer.stats.clone(), host.environment);
    let (probed, reinstall) = (environment.clone(), installer.reinstall.clone());
    node.set_host(move || stats.host_status(&probed.latest()));
    let mut tasks = JoinSet::new();
    let metrics = installer.stats.clone();
    tasks.spawn(metrics.keep(node.clone(), environment.clone(), reinstall.clone(), log.clone()));
    let files = Files::new(node.clone(), log.clone(), source, &loaded, environment, reinstall);
    tasks.spawn(operator::run(node.clone(), log.clone(), files, host.messages));
    let begin = Instant::now();
    let mut sets = node.key_sets();
    let joined = node.wait_for_group(startup_wait);
    let joined = installer.install_until(joined, &mut sets, |set| node.installed(set));
    let joined = catch_panic(joined).await.unwrap_or(Joined::TimedOut);
    let took = begin.elapsed().as_millis();
    log.debug(match joined {
        Joined::Keys(key) => format!("the group's STEK {key} was there after {took} ms"),
        Joined::NoMajority => format!("no majority after {took} ms; starts with its own STEK"),
        Joined::TimedOut => format!("no keys of the group within {took} ms; starts with its own"),
    });
    let note = |set: &KeySet| node.installed(set);
    let done = installer.serve(&mut sets, &mut host.queue, host.started, note).await;
    tasks.abort_all();
    if timeout(SHUTDOWN_LIMIT, node.shutdown()).await.is_err() {
        log.debug("the node did not end in time");
    }
    done
}

/// The runtime of this thread, on which the node lives. One thread, because a message every now
/// and then is all it has to do: with several, tokio wakes a second one at each message to look
/// for work that is not there, which tripled the idle cost.
fn own_runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .thread_stack_size(WORKER_STACK)
        .thread_name("stek_blocking")
        .enable_all()
        .build()
}

/// The threads of `asio_thread_pool_size`. They compute TLS handshakes, the only thing here that
/// takes time and that strangers can ask for, and so give way to Traffic Server's; they sleep
/// otherwise.
fn workers(count: usize, log: &Log) -> io::Result<Runtime> {
    let log = log.clone();
    let give_way = move || {
        if let Err(error) = priority::give_way() {
            let line = format!(
                "the threads for TLS handshakes between servers keep the priority of Traffic \
                 Server's own: setpriority: {error}; allow that system call, or close the port to \
                 strangers with a firewall"
            );
            log.limited(Level::Warning, "priority of workers", line);
        }
    };
    Builder::new_multi_thread()
        .on_thread_start(give_way)
        .worker_threads(count.max(1))
        .max_blocking_threads(1)
        .thread_stack_size(WORKER_STACK)
        .thread_name("stek_worker")
        .enable_all()
        .build()
}

/// Why a set is not fit for the host at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
enum Unfit {
    #[error("it holds {0} keys, not 1 to {MAX_SET}")]
    Count(usize),
    #[error("STEK {0}: {1}")]
    Weak(Fingerprint, WeakKey),
    #[error("two of its keys have the name of STEK {0}")]
    SameName(Fingerprint),
}

/// How an install went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The set stands in the ticket context, for good.
    Stands,
    /// The set stands there, but the host may yet overwrite it.
    ForNow,
    /// The host must not be touched now.
    HandsOff,
    /// The host refused; try again.
    Failed,
    /// The set must not be given to the host.
    Unfit,
}

/// Gives sets to a ticket context and remembers what stands there.
struct Installer<C> {
    context: C,
    phase: Arc<PhaseLock>,
    log: Log,
    stats: Stats,
    buffer: SetBuffer,
    /// The names of the keys that were given to the context last.
    standing: Vec<[u8; NAME_LEN]>,
    /// Whether they stand there for all that is known.
    is_certain: bool,
    /// Asks for them to be given to it again.
    reinstall: Reinstall,
    /// When to try again, and the pause after that.
    retry: Option<(Instant, Duration)>,
    /// The serial number of the set that was acknowledged last.
    acknowledged: Option<u64>,
}

impl<C: TicketContext> Installer<C> {
    fn new(context: C, phase: Arc<PhaseLock>, log: Log, stats: Stats) -> Installer<C> {
        Installer {
            context,
            phase,
            log,
            stats,
            buffer: SetBuffer::default(),
            standing: Vec::new(),
            is_certain: false,
            reinstall: Reinstall::default(),
            retry: None,
            acknowledged: None,
        }
    }

    /// Installs the latest of `sets` at each change until `end` comes, which it returns.
    async fn install_until<T>(
        &mut self,
        end: impl Future<Output = T>,
        sets: &mut watch::Receiver<KeySet>,
        acknowledge: impl Fn(&KeySet),
    ) -> T {
        let mut end = pin!(end);
        loop {
            self.install_latest(sets, &acknowledge);
            tokio::select! {
                end = &mut end => return end,
                Ok(()) = sets.changed() => {}
            }
        }
    }

    /// Installs the latest of `sets` now and at each change, until the host ends or drops its side
    /// of `events`. Drops `started` after the first, and calls `acknowledge` once with each set
    /// that no handshake can miss. After a panic it goes on.
    async fn serve(
        &mut self,
        sets: &mut watch::Receiver<KeySet>,
        events: &mut mpsc::Receiver<Event>,
        started: SyncSender<()>,
        acknowledge: impl Fn(&KeySet),
    ) -> Option<SyncSender<()>> {
        let mut pauses = Pauses::default();
        let mut started = Some(started);
        loop {
            let served = self.serve_on(sets, events, &mut started, &acknowledge);
            if let Ok(end) = catch_panic(served).await {
                return end;
            }
            drop(started.take());
            // What stands in the host is not certain now.
            self.standing.clear();
            let pause = pauses.after_failure();
            tell_begun_anew(&self.log, "installing ticket keys", pause);
            tokio::select! {
                () = sleep(pause) => {}
                event = events.recv() => match event {
                    None => return None,
                    Some(Event::Shutdown(done)) => return Some(done),
                    // What goes on at once installs the latest set.
                    Some(Event::PortsInitialized(_)) => {}
                },
            }
        }
    }

    async fn serve_on(
        &mut self,
        sets: &mut watch::Receiver<KeySet>,
        events: &mut mpsc::Receiver<Event>,
        started: &mut Option<SyncSender<()>>,
        acknowledge: &impl Fn(&KeySet),
    ) -> Option<SyncSender<()>> {
        self.install_latest(sets, acknowledge);
        drop(started.take());
        let (mut node_lives, reinstall) = (true, self.reinstall.clone());
        loop {
            let retry_at = self.retry.map(|(at, _)| at);
            tokio::select! {
                event = events.recv() => match event {
                    None => return None,
                    Some(Event::Shutdown(done)) => return Some(done),
                    Some(Event::PortsInitialized(done)) => {
                        // The host may have put keys of its own there since.
                        self.standing.clear();
                        self.install_latest(sets, acknowledge);
                        drop(done);
                    }
                },
                () = reinstall.asked() => {
                    self.is_certain = false;
                    self.install_latest(sets, acknowledge);
                }
                changed = sets.changed(), if node_lives => match changed {
                    Ok(()) => self.install_latest(sets, acknowledge),
                    Err(_) => {
                        node_lives = false;
                        self.log.error("the node has ended; the ticket keys installed last stay \
                                        in use until Traffic Server is restarted");
                    }
                },
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() =>
                    self.install_latest(sets, acknowledge),
            }
        }
    }

    fn install_latest(
        &mut self,
        sets: &mut watch::Receiver<KeySet>,
        acknowledge: &impl Fn(&KeySet),
    ) {
        fail_point("installer");
        let set = sets.borrow_and_update().clone();
        let outcome = self.install(&set);
        self.stats.set_pending(self.retry.is_some());
        let holds = match outcome {
            Outcome::Stands => true,
            // Nobody waits for a key of this server's own.
            Outcome::ForNow => set.newest > Generation(0),
            Outcome::HandsOff | Outcome::Failed | Outcome::Unfit => false,
        };
        if holds && self.acknowledged != Some(set.serial) {
            self.acknowledged = Some(set.serial);
            acknowledge(&set);
        }
    }

    /// Gives one set to the context, unless it stands there already, and sets the next try.
    fn install(&mut self, set: &KeySet) -> Outcome {
        if let Err(why) = fit(&set.keys) {
            self.stats.failed();
            self.retry = None;
            self.log.limited(
                Level::Error,
                "unfit set",
                format!("key set {} is not installed: {why}; the earlier keys stay", set.serial),
            );
            return Outcome::Unfit;
        }
        let names: Vec<[u8; NAME_LEN]> =
            set.keys.iter().filter_map(|key| key.name().try_into().ok()).collect();
        // Held over the call: the phase must not change while the host copies the keys.
        let phase = self.phase.clone();
        let phase = phase.lock();
        let outcome = match *phase {
            Phase::Gap => return Outcome::HandsOff,
            Phase::Init => Outcome::ForNow,
            Phase::Open => Outcome::Stands,
        };
        let is_same = names == self.standing;
        if is_same && self.is_certain {
            self.retry = None;
            return outcome;
        }
        let context = &mut self.context;
        let taken = self.buffer.with(&set.keys, |bytes| context.update(bytes));
        drop(phase);
        match taken {
            Ok(()) => {
                self.standing = names;
                self.is_certain = true;
                self.retry = None;
                if !is_same {
                    self.succeeded(set);
                }
                outcome
            }
            Err(why) => {
                self.try_later(why, self.stats.failed());
                Outcome::Failed
            }
        }
    }

    fn succeeded(&mut self, set: &KeySet) {
        self.stats.installed();
        let prints: Vec<String> = set.keys.iter().map(|k| k.fingerprint().to_string()).collect();
        self.log.debug(format!("installed key set {}: STEK {}", set.serial, prints.join(", ")));
    }

    fn try_later(&mut self, why: Rejected, failures: u64) {
        let pause = self.retry.map_or(RETRY_FIRST, |(_, next)| next);
        self.retry = Some((Instant::now() + pause, (pause * 2).min(RETRY_MOST)));
        self.log.limited(
            Level::Error,
            "failed install",
            format!(
                "{why} ({failures} failures so far); the earlier ones stay, next try in {} ms",
                pause.as_millis()
            ),
        );
    }
}

/// The last look at a set before the host gets it.
fn fit(keys: &[Stek]) -> Result<(), Unfit> {
    if keys.is_empty() || keys.len() > MAX_SET {
        return Err(Unfit::Count(keys.len()));
    }
    for (i, key) in keys.iter().enumerate() {
        key.check().map_err(|weak| Unfit::Weak(key.fingerprint(), weak))?;
        if keys.iter().take(i).any(|other| other.name() == key.name()) {
            return Err(Unfit::SameName(key.fingerprint()));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used)]
mod tests {
    use super::super::priority::tests::step;
    use super::*;

    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::core::stek::STEK_LEN;
    use crate::log_sink::LogSink;

    /// Records the first byte of each key that it was given; refuses the first `refuse` calls.
    #[derive(Clone, Default)]
    struct Recorder {
        calls: Arc<Mutex<Vec<Vec<u8>>>>,
        refuse: Arc<AtomicUsize>,
    }

    impl Recorder {
        fn calls(&self) -> Vec<Vec<u8>> {
            self.calls.lock().expect("no test panics with it").clone()
        }
    }

    impl TicketContext for Recorder {
        fn update(&mut self, keys: &[u8]) -> Result<(), Rejected> {
            let marks = keys.chunks(STEK_LEN).map(|key| key[0]).collect();
            self.calls.lock().expect("no test panics with it").push(marks);
            let one_less = |n: usize| n.checked_sub(1);
            match self.refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
                Ok(_) => Err(Rejected::Host),
                Err(_) => Ok(()),
            }
        }
    }

    #[derive(Default)]
    struct Lines(Mutex<Vec<(Level, String)>>);

    impl LogSink for Lines {
        fn write(&self, level: Level, line: &str) {
            self.0.lock().expect("no test panics with it").push((level, line.to_owned()));
        }
    }

    struct Bench {
        installer: Installer<Recorder>,
        recorder: Recorder,
        lines: Arc<Lines>,
    }

    impl Bench {
        fn new(phase: Phase) -> Bench {
            let recorder = Recorder::default();
            let lines = Arc::new(Lines::default());
            let lock = Arc::new(PhaseLock::new());
            lock.move_to(phase);
            let log = Log::new(lines.clone());
            let installer = Installer::new(recorder.clone(), lock, log, Stats::default());
            Bench { installer, recorder, lines }
        }

        fn count(&self, level: Level) -> usize {
            let lines = self.lines.0.lock().expect("no test panics with it");
            lines.iter().filter(|(l, _)| *l == level).count()
        }
    }

    fn key(mark: u8) -> Stek {
        let bytes: Vec<u8> = (0..STEK_LEN as u8).map(|i| mark.wrapping_add(i)).collect();
        Stek::copy_from(&bytes).expect("48 bytes")
    }

    fn set(serial: u64, marks: &[u8]) -> KeySet {
        KeySet { serial, keys: marks.iter().map(|&m| key(m)).collect(), ..KeySet::own(key(0)) }
    }

    #[test]
    fn workers_give_way_to_the_host_and_the_nodes_thread_does_not() {
        let before = step();
        let lines = Arc::new(Lines::default());
        let pool = workers(2, &Log::new(lines.clone())).expect("two threads");
        let own = own_runtime().expect("this thread");
        // More at a time than there are workers, so that each has some.
        let tasks: Vec<_> = (0..64).map(|_| pool.spawn(async { step() })).collect();
        for task in tasks {
            let worker = own.block_on(task).expect("no panic");
            assert_eq!(worker, (before + priority::STEPS).min(19));
        }
        assert_eq!(own.block_on(async { step() }), before, "the node's thread");
        let reader = own.block_on(async { tokio::task::spawn_blocking(step).await });
        assert_eq!(reader.expect("no panic"), before, "a thread for files");
        assert!(lines.0.lock().expect("no test panics with it").is_empty());
    }

    #[test]
    fn the_first_key_passes_the_gate() {
        let key = new_key().expect("OpenSSL has randomness");
        assert_eq!(key.check(), Ok(()));
        assert!(!key.same_bytes(&new_key().expect("OpenSSL has randomness")));
    }

    #[test]
    fn each_phase_allows_what_the_host_can_bear() {
        for (phase, outcome, calls) in [
            (Phase::Init, Outcome::ForNow, 1),
            (Phase::Gap, Outcome::HandsOff, 0),
            (Phase::Open, Outcome::Stands, 1),
        ] {
            let mut bench = Bench::new(phase);
            assert_eq!(bench.installer.install(&set(1, &[1, 2])), outcome);
            assert_eq!(bench.recorder.calls().len(), calls, "{phase:?}");
        }
    }

    #[test]
    fn a_phase_never_goes_back() {
        let phase = PhaseLock::new();
        phase.move_to(Phase::Open);
        phase.move_to(Phase::Gap);
        assert_eq!(*phase.lock(), Phase::Open);
    }

    /// Stays inside the host's function until someone is about to move on to the next phase.
    struct Slow {
        inside: SyncSender<()>,
        closing: Receiver<()>,
        order: Arc<Mutex<Vec<&'static str>>>,
    }

    impl TicketContext for Slow {
        fn update(&mut self, _keys: &[u8]) -> Result<(), Rejected> {
            self.inside.send(()).expect("the test waits for this");
            self.closing.recv().expect("the test sends this");
            // Cannot make a sound lock fail; gives an unsound one time to show itself.
            thread::sleep(Duration::from_millis(50));
            self.order.lock().expect("no test panics with it").push("installed");
            Ok(())
        }
    }

    #[test]
    fn the_gate_closes_only_after_an_install_that_is_under_way() {
        let (inside, when_inside) = sync_channel(1);
        let (closing, when_closing) = sync_channel(1);
        let order = Arc::new(Mutex::new(Vec::new()));
        let slow = Slow { inside, closing: when_closing, order: order.clone() };
        let phase = Arc::new(PhaseLock::new());
        let log = Log::new(Arc::new(Lines::default()));
        let mut installer = Installer::new(slow, phase.clone(), log, Stats::default());
        let thread = thread::spawn(move || installer.install(&set(1, &[1])));
        when_inside.recv().expect("the install begins");
        closing.send(()).expect("the install waits for this");
        phase.move_to(Phase::Gap);
        order.lock().expect("no test panics with it").push("closed");
        assert_eq!(thread.join().expect("no panic"), Outcome::ForNow);
        assert_eq!(*order.lock().expect("no test panics with it"), ["installed", "closed"]);
    }

    #[test]
    fn a_set_that_stands_is_not_given_again() {
        let mut bench = Bench::new(Phase::Open);
        assert_eq!(bench.installer.install(&set(1, &[1, 2])), Outcome::Stands);
        assert_eq!(bench.installer.install(&set(2, &[1, 2])), Outcome::Stands);
        assert_eq!(bench.installer.install(&set(3, &[2, 1])), Outcome::Stands);
        assert_eq!(bench.recorder.calls(), [[1, 2], [2, 1]]);
        // One debug line for each install; the notes are the node's.
        assert_eq!((bench.count(Level::Note), bench.count(Level::Debug)), (0, 2));
    }

    #[test]
    fn an_unfit_set_never_reaches_the_host() {
        let zero = Stek::copy_from(&[0; STEK_LEN]).expect("48 bytes");
        let many = (0..=MAX_SET as u8).map(|m| key(m * 3)).collect();
        for keys in [vec![], many, vec![key(1), zero], vec![key(1), key(1)]] {
            let mut bench = Bench::new(Phase::Open);
            let outcome = bench.installer.install(&KeySet { keys, ..KeySet::own(key(0)) });
            assert_eq!(outcome, Outcome::Unfit);
            assert_eq!(bench.recorder.calls().len(), 0);
            assert_eq!(bench.count(Level::Error), 1);
            assert_eq!(bench.installer.stats.failures(), 1);
        }
    }

    /// Runs `serve` on a paused clock, with `script` as the host and the node.
    async fn served<F: std::future::Future<Output = ()>>(
        bench: &mut Bench,
        first: KeySet,
        script: impl FnOnce(watch::Sender<KeySet>, mpsc::Sender<Event>, Arc<PhaseLock>) -> F,
    ) -> Vec<u64> {
        let (sets_in, mut sets) = watch::channel(first);
        let (events_in, mut events) = mpsc::channel(EVENT_QUEUE);
        let (started, _) = sync_channel(1);
        let acknowledged = Mutex::new(Vec::new());
        let note = |set: &KeySet| {
            acknowledged.lock().expect("no test panics with it").push(set.serial);
        };
        let script = script(sets_in, events_in, bench.installer.phase.clone());
        tokio::join!(bench.installer.serve(&mut sets, &mut events, started, note), script);
        acknowledged.into_inner().expect("no test panics with it")
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn what_came_before_the_ports_is_installed_again_and_only_then_acknowledged() {
        let mut bench = Bench::new(Phase::Init);
        let acknowledged = served(&mut bench, set(1, &[1]), |sets, events, phase| async move {
            tokio::time::sleep(LONG).await;
            phase.move_to(Phase::Gap);
            sets.send_replace(set(2, &[1, 2]));
            tokio::time::sleep(LONG).await;
            phase.move_to(Phase::Open);
            let (done, _when_done) = sync_channel(1);
            assert!(events.send(Event::PortsInitialized(done)).await.is_ok());
            tokio::time::sleep(LONG).await;
            sets.send_replace(set(3, &[2, 1]));
            tokio::time::sleep(LONG).await;
        })
        .await;
        assert_eq!(bench.recorder.calls(), [vec![1], vec![1, 2], vec![2, 1]]);
        assert_eq!(acknowledged, [2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_waits_in_its_start_says_that_it_holds_the_staged_key() {
        let mut bench = Bench::new(Phase::Init);
        let (sets_in, mut sets) = watch::channel(set(1, &[1]));
        let told = Mutex::new(Vec::new());
        let note = |set: &KeySet| told.lock().expect("no test panics with it").push(set.serial);
        let script = async {
            tokio::time::sleep(LONG).await;
            sets_in.send_replace(KeySet { newest: Generation(1), ..set(2, &[1, 2]) });
            tokio::time::sleep(LONG).await;
        };
        bench.installer.install_until(script, &mut sets, note).await;
        assert_eq!(*told.lock().expect("no test panics with it"), [2]);
        assert_eq!(bench.recorder.calls(), [vec![1], vec![1, 2]]);
        // The ports are there: installed again, but the node knows.
        bench.installer.phase.move_to(Phase::Open);
        bench.installer.standing.clear();
        bench.installer.install_latest(&mut sets, &note);
        assert_eq!(bench.recorder.calls().len(), 3);
        assert_eq!(*told.lock().expect("no test panics with it"), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_may_have_been_replaced_are_given_again_and_count_once() {
        let mut bench = Bench::new(Phase::Open);
        let reinstall = bench.installer.reinstall.clone();
        let acknowledged = served(&mut bench, set(1, &[1, 2]), |sets, events, _| async move {
            for _ in 0..3 {
                tokio::time::sleep(LONG).await;
                reinstall.ask();
            }
            tokio::time::sleep(LONG).await;
            drop((events, sets));
        })
        .await;
        assert_eq!(bench.recorder.calls(), vec![[1, 2]; 4]);
        assert_eq!(acknowledged, [1]);
        assert_eq!((bench.installer.stats.installs(), bench.count(Level::Debug)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_not_given_again_while_the_host_sets_up_its_own() {
        let mut bench = Bench::new(Phase::Gap);
        let reinstall = bench.installer.reinstall.clone();
        served(&mut bench, set(1, &[1]), |sets, events, _| async move {
            reinstall.ask();
            tokio::time::sleep(LONG).await;
            drop((events, sets));
        })
        .await;
        assert_eq!(bench.recorder.calls().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_set_is_tried_again_until_it_stands() {
        let mut bench = Bench::new(Phase::Open);
        bench.recorder.refuse.store(12, Ordering::SeqCst);
        let acknowledged = served(&mut bench, set(1, &[1]), |sets, events, _| async move {
            tokio::time::sleep(LONG).await;
            // The host ends first; a node that ends before it would be one more error line.
            drop(events);
            tokio::time::sleep(LONG).await;
            drop(sets);
        })
        .await;
        assert_eq!(bench.recorder.calls().len(), 13);
        assert_eq!(acknowledged, [1]);
        let stats = &bench.installer.stats;
        assert_eq!((stats.failures(), stats.installs()), (12, 1));
        assert_eq!(bench.installer.retry, None);
        // Rate-limited: the clock of the log is the real one, and that hardly moved.
        assert_eq!(bench.count(Level::Error), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_between_tries_grows_up_to_a_bound() {
        let mut bench = Bench::new(Phase::Open);
        bench.recorder.refuse.store(usize::MAX, Ordering::SeqCst);
        served(&mut bench, set(1, &[1]), |sets, events, _| async move {
            tokio::time::sleep(LONG).await;
            // The host ends first; a node that ends before it would be one more error line.
            drop(events);
            tokio::time::sleep(LONG).await;
            drop(sets);
        })
        .await;
        // 0.1 + 0.2 + ... + 6.4 s, then every 10 s for the rest of the hour.
        let calls = bench.recorder.calls().len();
        assert!((360..=370).contains(&calls), "{calls}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_set_takes_the_place_of_a_refused_one() {
        let mut bench = Bench::new(Phase::Open);
        bench.recorder.refuse.store(1, Ordering::SeqCst);
        let acknowledged = served(&mut bench, set(1, &[1]), |sets, events, _| async move {
            tokio::task::yield_now().await;
            sets.send_replace(set(2, &[2, 1]));
            tokio::time::sleep(LONG).await;
            // The host ends first; a node that ends before it would be one more error line.
            drop(events);
            tokio::time::sleep(LONG).await;
            drop(sets);
        })
        .await;
        assert_eq!(bench.recorder.calls(), [vec![1], vec![2, 1]]);
        assert_eq!(acknowledged, [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_ended_is_told_once_and_the_host_still_heard() {
        let mut bench = Bench::new(Phase::Open);
        served(&mut bench, set(1, &[1]), |sets, events, _| async move {
            drop(sets);
            tokio::time::sleep(LONG).await;
            let (done, _when_done) = sync_channel(1);
            assert!(events.send(Event::PortsInitialized(done)).await.is_ok());
            let (done, _when_done) = sync_channel(1);
            assert!(events.send(Event::Shutdown(done)).await.is_ok());
            tokio::time::sleep(LONG).await;
            drop(events);
        })
        .await;
        assert_eq!(bench.recorder.calls(), [[1], [1]]);
        assert_eq!(bench.count(Level::Error), 1);
    }
}
