//! The workers that compute TLS handshakes give way to Traffic Server.
//!
//! Whoever reaches the port can have handshakes computed, so that their threads must not compete
//! with those that serve clients. Invariants: only the workers are lowered. The installer's
//! thread, on which the node lives (heartbeats, elections, keys for the host), keeps the priority
//! of Traffic Server's own threads, as do those that read files and look names up: a server whose
//! machine is busy must neither lose its leader nor be late with a key. No part of Raft waits for a
//! worker but where a connection is new, once an hour for each or after a fault; and a worker holds
//! none of the plugin's locks while it computes.
//!
//! It is [`STEPS`] and not 19, the least there is. Beside one thread that wants a core for itself, 19
//! leaves a worker 1.5 % of it and 10 leaves it a tenth. A handshake may take 3 s, and both sides of
//! it are lowered. Beside twelve busy threads a core it took 0.55 s with 10 (the median of one side;
//! 0.12 s with 5, 0.16 s with 0), and with 19 it took 2.2 s or failed; beside four, 0.2 s and 0.6 s.
//! And a worker can be made to wait in the middle of a call of OpenSSL or of the allocator, while it
//! holds a lock there that one of Traffic Server's threads wants: with 10 it goes on that much sooner.
//! No election came of it with any of these.

use std::io;

/// How many steps of nice(2) a worker is below the rest of the process.
pub const STEPS: libc::c_int = 10;

/// The least priority that Linux has.
const LEAST: libc::c_int = 19;

/// Lowers the calling thread, and no other, by [`STEPS`].
///
/// # Errors
/// As setpriority(2). To lower a priority takes no privilege, so that only a filter of system calls
/// can refuse it.
pub fn give_way() -> io::Result<()> {
    // SAFETY: takes no pointers. 0 means the caller, which on Linux is this thread, not its
    // process. A failure would read as -1, and cannot be: the caller is there.
    let present = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let wanted = present.saturating_add(STEPS).min(LEAST);
    // SAFETY: takes no pointers; 0 means this thread, as above.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, wanted) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    /// The calling thread's step of nice(2), as the kernel tells it.
    pub fn step() -> i32 {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name, in parentheses, may hold anything; the step is the 19th field.
        let rest = stat.rsplit_once(')').unwrap().1;
        rest.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_gives_way_alone_and_no_further_than_there_is() {
        let before = step();
        let lowered = thread::spawn(|| {
            give_way().unwrap();
            let once = step();
            give_way().unwrap();
            give_way().unwrap();
            (once, step())
        });
        let least = (before + STEPS).min(LEAST);
        assert_eq!(lowered.join().unwrap(), (least, LEAST));
        assert_eq!(step(), before, "another thread");
    }
}
