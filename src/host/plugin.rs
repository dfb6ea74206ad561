//! What Traffic Server calls: TSPluginInit and the lifecycle hooks.
//!
//! Reads the argument, has the configuration loaded, starts the [`installer`](super::installer)
//! and passes the host's events on to it, operators' messages (`traffic_ctl plugin msg`) among
//! them. Where the configuration was refused at start, a message can start the plugin later. What
//! must hold: a hook never waits for files or for the group once the ports are open; the plugin always registers, or the host would stop; nothing
//! here stops the host; no panic crosses into it; whatever the configuration is worth, the host
//! serves TLS afterwards, with its own ticket key if not with ours.

use std::any::Any;
use std::env;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::panic::{self, catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use once_cell::sync::OnceCell;

use super::ats::{self, HostLogSink, Lifecycle};
use super::files::CERTIFICATE_LOOK;
use super::host_environment::EnvironmentWatch;
use super::installer::{Handle, Start};
use super::operator::{unknown, Message, TrafficCtlCommand};
use super::reader::Source;
use super::stats::Stats;
use super::{library, secret_pages, sessions, sys, ticket_scope};
use crate::core::stek;
use crate::host_config;
use crate::load::{self, Dirs, Loaded, Refused};
use crate::log_sink::Log;
use crate::supervise::{fail_point, lock, try_lock};

/// Set by the first TSPluginInit. This library is never unmapped, so what stands in statics stays.
static SEEN: OnceCell<()> = OnceCell::new();

/// The running plugin; empty while no usable configuration was found.
static PLUGIN: OnceCell<Handle> = OnceCell::new();

/// What a start needs besides a configuration.
static MEANS: OnceCell<StartContext> = OnceCell::new();

/// Whether PORTS_INITIALIZED was there: from then on ticket keys can be installed at any time.
static PORTS_OPEN: AtomicBool = AtomicBool::new(false);

/// Held by the one thread that starts the plugin late.
static LATE_START: Mutex<()> = Mutex::new(());

/// The thread that looks again and again whether what was refused can be used now.
static LOOKER: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

/// Whether the host is about to end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Address space for the stack of that thread, which parses files and loads certificates.
const STARTER_STACK: usize = 512 * 1024;

/// Arguments that are looked at; the host passes one line of plugin.config.
const MAX_ARGUMENTS: usize = 64;

/// The end of every refusal.
const LEFT_ALONE: &str = "stek_share does nothing: no ticket key is shared, Traffic Server's own \
                          ticket key stays in use; correct the above and restart";

/// The same where a message is enough.
const NOT_STARTED: &str = "stek_share does nothing: no ticket key is shared, Traffic Server's own \
                           ticket key stays in use; correct the above, then 'traffic_ctl plugin \
                           msg stek_share reload' or restart";

/// The same where nobody may be needed at all.
const TRIED_AGAIN: &str =
    "stek_share does nothing yet: no ticket key is shared, Traffic Server's own \
                           ticket key stays in use; it is tried again by itself every 30 s, and at \
                           once by 'traffic_ctl plugin msg stek_share reload'";

struct StartContext {
    source: Source,
    log: Log,
    stats: Stats,
}

/// Called by the host for each line of plugin.config that names this library.
///
/// # Safety
/// `argv` holds `argc` pointers to strings that end in a NUL, as the host guarantees.
#[no_mangle]
#[allow(non_snake_case)]
pub unsafe extern "C" fn TSPluginInit(argc: c_int, argv: *const *const c_char) {
    shielded("TSPluginInit", || {
        // SAFETY: the caller's contract.
        let arguments = unsafe { strings(argc, argv) };
        init(&arguments);
    });
}

/// Called by the host at each hook that `add_hooks` added.
unsafe extern "C" fn on_lifecycle(
    _cont: *mut sys::tsapi_cont,
    event: c_int,
    data: *mut c_void,
) -> c_int {
    shielded("a lifecycle hook", || {
        let number = i64::from(event) - i64::from(sys::STEK_ATS_LIFECYCLE_EVENTS);
        if number == i64::from(sys::STEK_ATS_MSG) {
            // SAFETY: this is the host's data for this event.
            if let Some((bytes, size)) = unsafe { ats::message(data) } {
                on_message(&bytes, size);
            }
        } else if number == i64::from(sys::STEK_ATS_PORTS_INITIALIZED) {
            // The event comes once; whatever kept the first try from its end may not be there again.
            if !shielded("PORTS_INITIALIZED", open_ports) {
                shielded("PORTS_INITIALIZED, tried again,", open_ports);
            }
        } else if number == i64::from(sys::STEK_ATS_SHUTDOWN) {
            end_looking();
            fail_point("hook-shutdown");
            if let Some(plugin) = PLUGIN.get() {
                plugin.shutdown();
            }
            sessions::end();
        }
    });
    0
}

/// Called by the host after it has read its own configuration again, which may be meant for ours, too.
unsafe extern "C" fn on_config_reload(
    _cont: *mut sys::tsapi_cont,
    _event: c_int,
    _data: *mut c_void,
) -> c_int {
    shielded("a reload of the host's configuration", || {
        fail_point("hook-reload");
        match (PLUGIN.get(), MEANS.get()) {
            (Some(plugin), _) => plugin.message(Message::HostReloaded),
            (None, Some(means)) if PORTS_OPEN.load(Ordering::SeqCst) => start_late(means),
            // What is read at the start is read after this.
            _ => {}
        }
    });
    0
}

/// Passes an operator's message on; only its lines say what came of it.
fn on_message(bytes: &[u8], size: usize) {
    fail_point("hook-message");
    let Some(means) = MEANS.get() else { return };
    let command = if size == bytes.len() { TrafficCtlCommand::parse(bytes) } else { None };
    match (command, PLUGIN.get()) {
        (None, _) => means.log.note(unknown(bytes, size)),
        (Some(command), Some(plugin)) => plugin.message(Message::Command(command)),
        (Some(TrafficCtlCommand::Reload), None) => start_late(means),
        (Some(command), None) => means.log.error(format!(
            "{}: not done: no usable configuration was found so far; correct it, then send reload",
            command.word()
        )),
    }
}

/// Starts the plugin with a configuration that was refused when Traffic Server started.
fn start_late(means: &'static StartContext) {
    if !PORTS_OPEN.load(Ordering::SeqCst) {
        means.log.error("reload: not done: Traffic Server is still starting; send it again later");
        return;
    }
    let work = move || {
        shielded("a late start", || {
            let Some(_alone) = try_lock(&LATE_START) else {
                means.log.note("reload: one is under way already; this one is dropped");
                return;
            };
            fail_point("late-start");
            if let Some(plugin) = PLUGIN.get() {
                plugin.message(Message::Command(TrafficCtlCommand::Reload));
                return;
            }
            match load::load(&means.source.argument, &means.source.dirs) {
                Ok(loaded) => {
                    if start(loaded, Start::Late, means) {
                        means.log.note("reload: the configuration can be used now; started");
                    }
                }
                Err(refused) => refuse(&refused, means),
            }
        });
    };
    if let Err(why) = starter().spawn(work) {
        means.log.error(format!("reload: not done: no thread for it: {why}"));
    }
}

fn starter() -> thread::Builder {
    thread::Builder::new().name("stek_start".into()).stack_size(STARTER_STACK)
}

/// Tells why nothing starts, and has somebody look again if that may pass by itself.
fn refuse(refused: &Refused, means: &'static StartContext) {
    tell_refusal(refused, &means.log);
    let mut looker = lock(&LOOKER);
    if !refused.passes() || looker.as_ref().is_some_and(|looker| !looker.is_finished()) {
        return;
    }
    let told = refused.lines();
    let work = move || {
        shielded("waiting for a usable configuration", || look_again(told, means));
    };
    match starter().spawn(work) {
        Ok(handle) => *looker = Some(handle),
        Err(why) => {
            means.log.error(format!("it is not tried again by itself: no thread for it: {why}"));
        }
    }
}

/// Has nobody look any more, and waits for a look that is under way, which reads a few files.
fn end_looking() {
    ENDING.store(true, Ordering::SeqCst);
    let looker = lock(&LOOKER).take();
    if let Some(looker) = looker {
        looker.thread().unpark();
        // What it ended by was told.
        let _ = looker.join();
    }
}

/// Tries every [`CERTIFICATE_LOOK`] until the plugin runs, however that came; what changes is told.
fn look_again(mut told: Vec<String>, means: &StartContext) {
    let mut next = Instant::now();
    while PLUGIN.get().is_none() {
        next += CERTIFICATE_LOOK;
        while Instant::now() < next && !ENDING.load(Ordering::SeqCst) {
            thread::park_timeout(next.saturating_duration_since(Instant::now()));
        }
        if ENDING.load(Ordering::SeqCst) {
            return;
        }
        if !PORTS_OPEN.load(Ordering::SeqCst) {
            continue;
        }
        let Some(_alone) = try_lock(&LATE_START) else { continue };
        if PLUGIN.get().is_some() {
            return;
        }
        match load::load(&means.source.argument, &means.source.dirs) {
            Ok(loaded) => {
                if start(loaded, Start::Late, means) {
                    means.log.note("the configuration can be used now; started");
                }
            }
            Err(refused) if refused.lines() != told => {
                told = refused.lines();
                tell_refusal(&refused, &means.log);
            }
            Err(_) => {}
        }
    }
}

/// Has the host call `on_lifecycle`. For TSPluginInit only.
fn add_hooks(log: &Log) -> bool {
    let moments = [Lifecycle::PortsInitialized, Lifecycle::Message, Lifecycle::Shutdown];
    moments.into_iter().all(|moment| {
        let added = ats::on_lifecycle(moment, on_lifecycle);
        if !added {
            log.error(format!("this host has no hook for {moment:?}; {LEFT_ALONE}"));
        }
        added
    })
}

/// Runs `work` so that no panic crosses into the host; whether there was none. The panic hook has
/// told the cause.
fn shielded(what: &str, work: impl FnOnce()) -> bool {
    let ended = catch_unwind(AssertUnwindSafe(work)).is_ok();
    if !ended {
        ats::error(&format!("{what} ended by an internal error; Traffic Server goes on"));
    }
    ended
}

/// Lets the installer know that ticket keys stay from now on. Without this word it would leave the
/// host's keys alone for ever.
fn open_ports() {
    PORTS_OPEN.store(true, Ordering::SeqCst);
    fail_point("hook-ports");
    sessions::open();
    if let Some(plugin) = PLUGIN.get() {
        plugin.ports_initialized();
    }
}

fn init(arguments: &[String]) {
    let registered = ats::register();
    let log = Log::new(Arc::new(HostLogSink));
    if !registered {
        log.error("Traffic Server refused to register the plugin");
        return;
    }
    if SEEN.set(()).is_err() {
        log.warning(
            "plugin.config names stek_share more than once; the first line counts, this one is \
             ignored; remove it",
        );
        return;
    }
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |at| format!(" at {at}"));
        ats::error(&format!("internal error{place}: {}", panic_text(panic.payload())));
    }));
    if let Some(fault) = library::foreign() {
        log.error(fault);
        log.error(LEFT_ALONE);
        return;
    }
    stek::use_cells(secret_pages::cell);
    let dirs = dirs();
    let Some(argument) = single_argument(arguments, &dirs, &log) else { return };
    if !add_hooks(&log) {
        return;
    }
    if !ats::on_config_reload(on_config_reload) {
        log.debug("this host does not tell of 'traffic_ctl config reload'");
    }
    let source = Source { argument: argument.to_owned(), dirs };
    // `SEEN` lets only one call come this far, so the place is empty.
    let means = MEANS.get_or_init(|| StartContext { source, log, stats: Stats::default() });
    fail_point("init");
    let loaded = load::load(&means.source.argument, &means.source.dirs);
    ticket_scope::add_hook(loaded.as_ref().ok().map(|loaded| loaded.settings.ticket_scope));
    sessions::add_hook(loaded.as_ref().ok().map(|loaded| loaded.settings.share_sessions));
    match loaded {
        Ok(loaded) => {
            start(loaded, Start::WithHost, means);
        }
        Err(refused) => refuse(&refused, means),
    }
}

fn tell_refusal(refused: &Refused, log: &Log) {
    refused.tell(log);
    log.error(if refused.passes() { TRIED_AGAIN } else { NOT_STARTED });
}

/// The path of the configuration file, the only argument there may be.
fn single_argument<'a>(arguments: &'a [String], dirs: &Dirs, log: &Log) -> Option<&'a str> {
    let given = arguments.get(1..).unwrap_or_default();
    if let Some(fault) = host_config::wrong_arguments(&dirs.config, given) {
        log.error(fault.to_string());
        log.error(LEFT_ALONE);
    }
    match given {
        [path] => Some(path),
        _ => None,
    }
}

/// Where the host keeps things; a path of the configuration may be relative to any of them.
fn dirs() -> Dirs {
    let install = ats::install_dir().unwrap_or_default();
    Dirs {
        working: env::current_dir().unwrap_or_else(|_| install.clone()),
        config: ats::config_dir().unwrap_or_else(|| install.clone()),
        install,
    }
}

/// Whether the installer runs now.
fn start(loaded: Loaded, start: Start, means: &StartContext) -> bool {
    let log = &means.log;
    load::tell(log, &loaded.warnings);
    load::tell(log, &loaded.notes);
    ticket_scope::begin(loaded.settings.ticket_scope, log);
    sessions::begin(loaded.settings.share_sessions, log);
    if start == Start::Late {
        sessions::open();
    }
    let environment = EnvironmentWatch::look(log.clone(), &means.source.dirs);
    let protection = secret_pages::protection();
    if !protection.is_full() {
        log.warning(protection.to_string());
    }
    log.debug(format!(
        "version {} under Traffic Server {}",
        env!("CARGO_PKG_VERSION"),
        environment.latest().version.as_deref().unwrap_or("of unknown version")
    ));
    let (source, stats) = (means.source.clone(), means.stats.clone());
    match Handle::start(start, loaded, source, log.clone(), stats, environment) {
        Ok(handle) => {
            // One call comes this far at start, and later only one that found the place empty.
            let _ = PLUGIN.set(handle);
            true
        }
        Err(why) => {
            log.error(format!("no thread for the installer: {why}; {LEFT_ALONE}"));
            false
        }
    }
}

/// What a panic said, if that is text.
fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

/// The host's arguments as strings. What is not UTF-8 becomes a path that cannot be found, which
/// the operator then reads.
///
/// # Safety
/// `argv` is null or holds `argc` pointers, each null or to a string that ends in a NUL.
unsafe fn strings(argc: c_int, argv: *const *const c_char) -> Vec<String> {
    let count = usize::try_from(argc).unwrap_or(0).min(MAX_ARGUMENTS);
    if argv.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's contract: there are `argc` pointers at `argv`.
    let pointers = (0..count).map(|i| unsafe { *argv.add(i) });
    pointers
        .filter(|text| !text.is_null())
        // SAFETY: the caller's contract for each pointer that is not null.
        .map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_the_host_gives_them() {
        let argv = [c"stek_share.so".as_ptr(), c"conf/a b.yaml".as_ptr(), std::ptr::null()];
        // SAFETY: two pointers to literals, and a null that is not counted.
        let read = unsafe { strings(2, argv.as_ptr()) };
        assert_eq!(read, ["stek_share.so", "conf/a b.yaml"]);
        // SAFETY: the null pointer within the count is allowed and skipped.
        assert_eq!(unsafe { strings(3, argv.as_ptr()) }.len(), 2);
        // SAFETY: no arguments at all are allowed.
        assert!(unsafe { strings(0, std::ptr::null()) }.is_empty());
        // SAFETY: a negative count counts as none.
        assert!(unsafe { strings(-1, argv.as_ptr()) }.is_empty());
    }

    #[test]
    fn a_panic_stays_inside() {
        let mut reached = false;
        shielded("a test", || {
            reached = true;
            panic!("on purpose");
        });
        assert!(reached);
    }

    #[test]
    fn the_text_of_a_panic_is_found() {
        for panic in [
            catch_unwind(|| panic!("plain")).unwrap_err(),
            catch_unwind(|| panic!("{}", "plain")).unwrap_err(),
        ] {
            assert_eq!(panic_text(panic.as_ref()), "plain");
        }
        let other = catch_unwind(|| panic::panic_any(7)).unwrap_err();
        assert_eq!(panic_text(other.as_ref()), "no text");
    }
}
