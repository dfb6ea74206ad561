//! The few system calls that the standard library does not offer, behind safe functions.
//!
//! The kit's only `unsafe` room, but for handing a session to OpenSSL in [`crate::tickets`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::{Context, Error, Result};

/// Signals that the kit sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: what AuTest and a terminal send.
    Interrupt,
    /// SIGTERM: what service managers send.
    Terminate,
    /// SIGABRT: death with a core dump, where the machine makes any.
    Abort,
    /// SIGKILL: death without a word.
    Kill,
    /// SIGSTOP: the process stands still until [`Signal::Continue`].
    Stop,
    /// SIGCONT: on it goes.
    Continue,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Self::Interrupt => libc::SIGINT,
            Self::Terminate => libc::SIGTERM,
            Self::Abort => libc::SIGABRT,
            Self::Kill => libc::SIGKILL,
            Self::Stop => libc::SIGSTOP,
            Self::Continue => libc::SIGCONT,
        }
    }
}

/// Sends `signal` to the process `pid`.
///
/// # Errors
/// As kill(2), for example when there is no such process.
pub fn kill(pid: u32, signal: Signal) -> io::Result<()> {
    kill_target(positive(pid)?, signal)
}

/// Sends `signal` to the process group that `leader` leads. The leader must be a child started by
/// [`spawn`], which gives every child a group of its own, and not yet reaped.
///
/// # Errors
/// As kill(2).
pub fn kill_group(leader: u32, signal: Signal) -> io::Result<()> {
    kill_target(-positive(leader)?, signal)
}

/// Refuses the values that mean "everybody" to kill(2).
fn positive(pid: u32) -> io::Result<libc::pid_t> {
    libc::pid_t::try_from(pid)
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

fn kill_target(target: libc::pid_t, signal: Signal) -> io::Result<()> {
    // SAFETY: kill takes no pointers; `positive` has excluded 0, 1 and -1.
    match unsafe { libc::kill(target, signal.number()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts `command` as a child that leads a process group of its own and is killed by the kernel
/// when this process ends, however it ends.
///
/// The kernel ties that to the *thread* that started the child, so that one thread, which lives
/// as long as the process, starts them all.
///
/// # Errors
/// As fork(2) and execve(2).
pub fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (command, reply) in queue {
                // A caller that no longer listens drops the child; the kernel still ends it.
                let _ = reply.send(spawn_here(command));
            }
        });
        Mutex::new(orders)
    });
    let gone = || io::Error::other("the thread that starts processes has ended");
    let (reply, answer) = mpsc::sync_channel(1);
    lock(starter).send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

fn spawn_here(mut command: Command) -> io::Result<Child> {
    let parent = std::process::id();
    command.process_group(0);
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the call above; then nobody would kill the child.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(())
        });
    }
    command.spawn()
}

/// What to wait for on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// There is something to read, or the peer has gone.
    Read,
    /// There is room to write.
    Write,
}

/// Waits until the socket is ready or `limit` is over; tells which.
///
/// # Errors
/// As poll(2); a signal counts as "not ready".
pub fn poll(socket: BorrowedFd<'_>, readiness: Readiness, limit: Duration) -> io::Result<bool> {
    let events = match readiness {
        Readiness::Read => libc::POLLIN,
        Readiness::Write => libc::POLLOUT,
    };
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    let millis = libc::c_int::try_from(limit.as_millis().max(1)).unwrap_or(libc::c_int::MAX);
    // SAFETY: one valid entry is passed, and the borrow keeps its descriptor open.
    match unsafe { libc::poll(&mut entry, 1, millis) } {
        0 => Ok(false),
        n if n > 0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

/// Where `needle` first occurs in `hay`. The C library's search is fast in unoptimised tests too.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    // SAFETY: both pointers are valid for the lengths given; memmem only reads.
    let hit = unsafe {
        libc::memmem(hay.as_ptr().cast(), hay.len(), needle.as_ptr().cast(), needle.len())
    };
    (!hit.is_null()).then(|| hit as usize - hay.as_ptr() as usize)
}

/// Makes a TUN device, which lives as long as its file. What is written to the file arrives on the
/// device, and what is sent to the device is read from the file: whole IP packets, one at a time.
///
/// # Errors
/// Without root or /dev/net/tun, or when the name is taken or too long.
pub fn open_tun(name: &str) -> Result<File> {
    /// As `struct ifreq` in if.h has it: name, flags, and room for what is not used here.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let path = "/dev/net/tun";
    let file = OpenOptions::new().read(true).write(true).open(path).context(path)?;
    let flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).context("flags")?;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    let bytes = name.as_bytes();
    let room = request.name.get_mut(..bytes.len()).filter(|room| room.len() < libc::IFNAMSIZ);
    room.ok_or_else(|| Error::new(format!("device name {name} is too long")))?
        .copy_from_slice(bytes);
    // SAFETY: the request has the layout and size of `struct ifreq`, its name ends with a zero, and
    // it outlives the call; the file is open.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } != 0 {
        let error = io::Error::last_os_error();
        return Err(Error::new(format!("{path}: {error}; this needs root")));
    }
    Ok(file)
}

/// The machine's monotonic clock, which all processes share (`CLOCK_MONOTONIC`): time since some
/// moment before the machine's start.
pub fn monotonic() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure outlives the call, which only writes to it; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn record_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP only set the flag that [`interrupted`] reads, so that
/// the program can clean up.
pub fn catch_interrupts() {
    let handler: extern "C" fn(libc::c_int) = record_interrupt;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler has the right type and does nothing but an atomic store.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Acts as if such a signal had come.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether such a signal has come, or [`interrupt`] was called.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Locks `mutex`, also after a panic of another holder: the kit keeps only plain data in them.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
