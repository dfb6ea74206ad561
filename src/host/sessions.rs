//! Sessions that clients resume by their id, between Traffic Server's cache and the node: the host's hook,
//! and on which thread what is done.
//!
//! What is done is for [`super::session_worker`], which sessions may be shared and how many for
//! [`crate::core::sessions`], how they travel for [`crate::node::session_exchange`]. With
//! `share_sessions: false` nothing of this is called. Invariants:
//! - The host's hook queues an id, wakes the node and returns: it takes no lock, waits for nobody, and what finds the
//!   queue full is dropped and counted.
//! - Who comes back within a millisecond shall be known elsewhere: the node's thread reads the host's cache
//!   and writes it by itself, without waking another one, as long as that is little; what is more, and what
//!   takes longer, is for one thread of this module's.
//! - That thread has the priority of the host's own; how much it does is bounded by what is sent and taken.
//! - Only threads that the host knows of touch its cache, one at a time, and none once [`end`] has returned.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;

use super::session_worker::{HookEvent, Worker};
use super::{ats, sys, ticket_scope};
use crate::core::sessions::{SessionId, QUEUE};
use crate::log_sink::Log;
use crate::node::session_exchange::SessionExchange;
use crate::supervise::{fail_point, lock, tell_begun_anew, try_lock, Pauses};

/// Address space for the thread's stack, in which OpenSSL reads sessions.
const STACK: usize = 256 * 1024;

/// Whether the host calls [`on_session`].
static HOOKED: AtomicBool = AtomicBool::new(false);

/// Whether the host's cache must not be touched any more.
static ENDING: AtomicBool = AtomicBool::new(false);

/// What the hook needs; empty where no sessions are shared.
static LINK: OnceCell<Link> = OnceCell::new();

/// The thread, until it is waited for.
static THREAD: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

thread_local! {
    /// Whether the host knows of this thread.
    static IS_KNOWN: Cell<bool> = const { Cell::new(false) };
}

struct Link {
    events: SyncSender<HookEvent>,
    exchange: Arc<SessionExchange>,
    worker: Arc<Mutex<Worker>>,
    thread: Thread,
}
/// What is begun anew after a panic.
const WHAT: &str = "sharing sessions with the host";

/// Has the host call in at each session that is made or removed, if the configuration wants that or
/// could not be read yet. For TSPluginInit only.
pub fn add_hook(is_wanted: Option<bool>) {
    if is_wanted != Some(false) && ticket_scope::shares_openssl() {
        HOOKED.store(ats::on_session(on_session), Ordering::Relaxed);
    }
}

/// Shares sessions from now on, if that is wanted and can be had.
pub fn begin(is_wanted: bool, log: &Log) {
    // A start that failed may be tried again.
    if !is_wanted || is_sharing() {
        return;
    }
    if !HOOKED.load(Ordering::Relaxed) {
        let version = ats::version();
        log.warning(format!(
            "share_sessions: true has no effect in Traffic Server {}: it has no interface for \
             sessions, as from version 11 on, or its OpenSSL is another one than this plugin's; \
             tickets are shared all the same; give share_sessions: false",
            version.as_deref().unwrap_or("of unknown version")
        ));
        return;
    }
    if let Err(why) = start(log) {
        log.error(format!("share_sessions: no sessions are shared: no thread for it: {why}"));
    }
}

/// The host takes sessions from now on: it makes its cache between TSPluginInit and PORTS_INITIALIZED.
pub fn open() {
    if let Some(link) = LINK.get() {
        link.exchange.open();
    }
}

/// Between this and the node, where sessions are shared.
pub fn exchange() -> Option<Arc<SessionExchange>> {
    LINK.get().map(|link| link.exchange.clone())
}

/// Whether sessions are shared.
pub fn is_sharing() -> bool {
    LINK.get().is_some()
}

/// Ends the thread and waits for that and for whoever else is at the host's cache, which takes what one
/// turn takes: that cache is gone soon.
pub fn end() {
    ENDING.store(true, Ordering::SeqCst);
    let thread = lock(&THREAD).take();
    if let Some(thread) = thread {
        thread.thread().unpark();
        let _ = thread.join();
    }
    if let Some(link) = LINK.get() {
        drop(lock(&link.worker));
    }
}

/// Has the calling thread, on which the node is about to live, do itself what is little.
pub fn begin_on_this_thread() {
    if is_sharing() {
        IS_KNOWN.set(ats::init_thread());
    }
}

fn start(log: &Log) -> io::Result<()> {
    let (events, queue) = sync_channel(QUEUE.entries);
    let exchange = Arc::<SessionExchange>::default();
    let worker = Arc::new(Mutex::new(Worker::new(queue, exchange.clone())));
    let (thread_worker, thread_log) = (worker.clone(), log.clone());
    let builder = thread::Builder::new().name("stek_sessions".into()).stack_size(STACK);
    let handle = builder.spawn(move || live(&thread_worker, &thread_log))?;
    let (thread, at_once, log) = (handle.thread().clone(), worker.clone(), log.clone());
    let unpark = thread.clone();
    exchange.on_work(move || {
        if work_at_once(&at_once, &log) {
            unpark.unpark();
        }
    });
    // A configuration is taken once, so that the place is empty.
    let _ = LINK.set(Link { events, exchange, worker, thread });
    *lock(&THREAD) = Some(handle);
    Ok(())
}

/// Called by the host at what becomes of a session.
unsafe extern "C" fn on_session(
    _cont: *mut sys::tsapi_cont,
    event: c_int,
    data: *mut c_void,
) -> c_int {
    let is = |number| i64::from(event) == i64::from(number);
    let is_made = is(sys::STEK_ATS_SESSION_NEW_EVENT);
    if let (Some(link), true) = (LINK.get(), is_made || is(sys::STEK_ATS_SESSION_REMOVE_EVENT)) {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            fail_point("hook-session");
            // SAFETY: this is the host's data for these events.
            if let Some(id) = unsafe { ats::session_id(data) } {
                link.queue(id, is_made);
            }
        }));
    }
    0
}

impl Link {
    fn queue(&self, id: SessionId, is_made: bool) {
        let generation = self.exchange.generation();
        match self.events.try_send(HookEvent { id, is_made, generation }) {
            Ok(()) if self.exchange.wake_node() => {}
            Ok(()) => self.thread.unpark(),
            Err(TrySendError::Full(_)) => self.exchange.record_dropped(1),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

/// On the node's thread: what is little. Whether the other thread has to go on.
fn work_at_once(worker: &Mutex<Worker>, log: &Log) -> bool {
    // If not, the other thread is at it.
    let Some(mut worker) = try_lock(worker) else { return true };
    if ENDING.load(Ordering::SeqCst) {
        return false;
    }
    if !IS_KNOWN.get() {
        return true;
    }
    let done = catch_unwind(AssertUnwindSafe(|| {
        fail_point("sessions-at-once");
        worker.work_at_once(Instant::now())
    }));
    done.unwrap_or_else(|_| {
        tell_begun_anew(log, WHAT, Duration::ZERO);
        true
    })
}

/// The thread, which begins anew after a panic with what it knows.
fn live(worker: &Mutex<Worker>, log: &Log) {
    if !ats::init_thread() {
        log.error(
            "share_sessions: no sessions are shared: Traffic Server does not take the thread",
        );
        return;
    }
    let mut pauses = Pauses::default();
    while catch_unwind(AssertUnwindSafe(|| run(worker))).is_err() {
        let pause = pauses.after_failure();
        tell_begun_anew(log, WHAT, pause);
        thread::park_timeout(pause);
    }
}

/// Does what there is to do, turn by turn, and sleeps where there is nothing.
fn run(worker: &Mutex<Worker>) {
    while !ENDING.load(Ordering::SeqCst) {
        fail_point("sessions-thread");
        let now = Instant::now();
        let due = lock(worker).turn(now);
        match due {
            Some(due) => thread::park_timeout(due.saturating_duration_since(now)),
            None => thread::park(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::log_sink::{Level, LogSink};

    struct Nowhere;

    impl LogSink for Nowhere {
        fn write(&self, _: Level, _: &str) {}
    }

    /// A queue that is full loses what is new, and says so.
    #[test]
    fn the_hook_waits_for_nobody() {
        let exchange = Arc::<SessionExchange>::default();
        let (events, queue) = sync_channel(1);
        let worker = Arc::new(Mutex::new(Worker::new(queue, exchange.clone())));
        let thread = thread::current();
        let link = Link { events, exchange: exchange.clone(), worker, thread };
        let id = SessionId::new(&[7]).unwrap();
        // Whoever is at the cache holds nobody up.
        let (held, log) = (lock(&link.worker), Log::new(Arc::new(Nowhere)));
        (0..3).for_each(|_| link.queue(id, true));
        assert_eq!(exchange.status().dropped, 2);
        assert!(work_at_once(&link.worker, &log), "the other thread has to go on");
        drop(held);
        assert!(work_at_once(&link.worker, &log), "the host does not know this one");
    }
}
