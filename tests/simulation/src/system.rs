//! The operating system as a simulated server sees it: clocks, randomness, and waiting for events.
//!
//! Defines functions of the C library that std, tokio, mio and the `getrandom` crate call, and gives
//! OpenSSL a random method. While a simulation runs on this thread ([`begin`]) they answer from the
//! seed and from simulated clocks; on all other threads, and before, they ask the kernel. So the
//! code under test runs unchanged, down to tokio's own timers.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use libc::{c_long, c_uint, c_void, clockid_t, epoll_event, size_t, ssize_t, timespec};
use tokio::runtime::{Builder, Runtime};

use crate::rng::Rng;

const SECOND: u64 = 1_000_000_000;

/// Whose code runs: a server's id and the run of its process; zeroes for nobody's.
pub type Owner = (u32, u64);

thread_local! {
    static SIMULATED: Cell<bool> = const { Cell::new(false) };
    static MONOTONIC: Cell<u64> = const { Cell::new(0) };
    static WALL: Cell<u64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// What the event loop last asked to wait for, in milliseconds; -1 for ever.
    static WAIT: Cell<c_int> = const { Cell::new(-1) };
    static OWNER: Cell<Owner> = const { Cell::new((0, 0)) };
    /// Wakes the future that drives a server's runtime.
    static DRIVER: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// From now on this thread is simulated, and all its randomness comes from `seed`.
pub fn begin(seed: u64) {
    RANDOM.set(seed);
    SIMULATED.set(true);
    // SAFETY: the method is a constant of the whole process, and its functions are sound for any
    // buffer that OpenSSL gives them.
    let set = unsafe { RAND_set_rand_method(&METHOD) };
    assert_eq!(set, 1, "OpenSSL does not take another random method");
}

/// Sets what the clocks show, in nanoseconds, and whose code runs.
pub fn enter(owner: Owner, monotonic: u64, wall: u64) {
    OWNER.set(owner);
    MONOTONIC.set(monotonic);
    WALL.set(wall);
}

/// Whose code runs at present.
pub fn owner() -> Owner {
    OWNER.get()
}

/// The present server's monotonic clock in nanoseconds.
pub fn monotonic() -> u64 {
    MONOTONIC.get()
}

/// The present server's wall clock in nanoseconds since 1970.
pub fn wall() -> u64 {
    WALL.get()
}

/// A runtime for one server, to be driven by [`drive`].
pub fn runtime() -> Runtime {
    let wake = || DRIVER.with_borrow(|driver| driver.iter().for_each(Waker::wake_by_ref));
    Builder::new_current_thread()
        .enable_all()
        .on_thread_unpark(wake)
        .build()
        .expect("a runtime of one thread")
}

/// Runs `first` inside the server's runtime and then all its tasks, until nothing is left to do at the
/// present time. How long the runtime would then have waited, in nanoseconds; `None` for ever.
pub fn drive(runtime: &Runtime, first: impl FnOnce()) -> Option<u64> {
    WAIT.set(-1);
    runtime.block_on(UntilIdle { first: Some(first) });
    DRIVER.set(None);
    u64::try_from(WAIT.get()).ok().map(|ms| ms * (SECOND / 1000))
}

/// Ready when the runtime that runs it has gone to wait once.
struct UntilIdle<F> {
    first: Option<F>,
}

impl<F> Unpin for UntilIdle<F> {}

impl<F: FnOnce()> Future for UntilIdle<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.first.take() {
            None => Poll::Ready(()),
            Some(first) => {
                DRIVER.set(Some(cx.waker().clone()));
                first();
                Poll::Pending
            }
        }
    }
}

fn draw(into: &mut [u8]) {
    let mut rng = Rng::resume(RANDOM.get());
    for chunk in into.chunks_mut(8) {
        chunk.copy_from_slice(&rng.next().to_le_bytes()[..chunk.len()]);
    }
    RANDOM.set(rng.state());
}

/// In place of getrandom(2): std's hash maps, tokio's `select!` and openraft draw from it.
#[no_mangle]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if !SIMULATED.get() {
        // SAFETY: the caller's own arguments, as it would have given them to the system.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as ssize_t;
    }
    // SAFETY: the caller says that `length` bytes may be written there.
    draw(unsafe { std::slice::from_raw_parts_mut(buffer.cast(), length) });
    length as ssize_t
}

/// In place of clock_gettime(2): std's `Instant` and `SystemTime`, and so tokio's timers.
#[no_mangle]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    if !SIMULATED.get() {
        // SAFETY: the caller's own arguments, as it would have given them to the system.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    }
    let now = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => WALL.get(),
        _ => MONOTONIC.get(),
    };
    // SAFETY: the caller gives a place for the answer.
    unsafe {
        (*time).tv_sec = (now / SECOND) as libc::time_t;
        (*time).tv_nsec = (now % SECOND) as c_long;
    }
    0
}

/// In place of epoll_wait(2): nothing ever comes from outside, and the time is noted that the event
/// loop would have waited.
#[no_mangle]
unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
) -> c_int {
    if !SIMULATED.get() {
        let no_mask: *const c_void = std::ptr::null();
        // SAFETY: the caller's own arguments, as it would have given them to the system.
        let got = unsafe {
            libc::syscall(libc::SYS_epoll_pwait, epoll, events, max, timeout, no_mask, 8usize)
        };
        return got as c_int;
    }
    WAIT.set(timeout);
    0
}

/// RAND_METHOD of OpenSSL's rand.h.
#[repr(C)]
struct RandMethod {
    seed: Option<extern "C" fn(*const c_void, c_int) -> c_int>,
    bytes: Option<extern "C" fn(*mut u8, c_int) -> c_int>,
    cleanup: Option<extern "C" fn()>,
    add: Option<extern "C" fn(*const c_void, c_int, f64) -> c_int>,
    pseudorand: Option<extern "C" fn(*mut u8, c_int) -> c_int>,
    status: Option<extern "C" fn() -> c_int>,
}

static METHOD: RandMethod = RandMethod {
    seed: None,
    bytes: Some(openssl_bytes),
    cleanup: None,
    add: None,
    pseudorand: Some(openssl_bytes),
    status: Some(openssl_status),
};

extern "C" {
    fn RAND_set_rand_method(method: *const RandMethod) -> c_int;
}

extern "C" fn openssl_bytes(buffer: *mut u8, length: c_int) -> c_int {
    let Ok(length) = usize::try_from(length) else { return 0 };
    // SAFETY: OpenSSL says that `length` bytes may be written there.
    let read = unsafe { getrandom(buffer.cast(), length, 0) };
    c_int::from(read as usize == length)
}

extern "C" fn openssl_status() -> c_int {
    1
}
