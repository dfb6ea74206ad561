//! How much of a test program may go on at once.
//!
//! Most tests of servers wait rather than compute, so that several of them fit onto one machine; too many
//! would measure each other. A test asks once, for all that it needs, before it starts anything: then
//! no two of them wait for each other.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::sys::lock;

/// Turns of one test program: a static of it.
#[derive(Debug)]
pub struct Turns {
    all: usize,
    taken: Mutex<usize>,
    freed: Condvar,
}

/// Turns that were taken, until this is dropped.
#[derive(Debug)]
pub struct Turn {
    of: &'static Turns,
    count: usize,
}

impl Turns {
    /// So many at once.
    pub const fn of(all: usize) -> Turns {
        Turns { all, taken: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits until so many are free, and takes them.
    ///
    /// # Panics
    /// When there are not so many at all.
    pub fn take(&'static self, count: usize) -> Turn {
        assert!(count <= self.all, "{count} turns are wanted, and there are {}", self.all);
        let mut taken = lock(&self.taken);
        while *taken + count > self.all {
            taken = self.freed.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += count;
        Turn { of: self, count }
    }

    /// Waits until nobody else has a turn, for a test that measures, and keeps others from beginning.
    pub fn take_all(&'static self) -> Turn {
        self.take(self.all)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&self.of.taken) -= self.count;
        self.of.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn no_more_than_all_go_on_at_once_and_who_takes_all_is_alone() {
        const ALL: usize = 3;
        static TURNS: Turns = Turns::of(ALL);
        static NOW: AtomicUsize = AtomicUsize::new(0);
        let go = |count: usize| {
            let _turn = if count == ALL { TURNS.take_all() } else { TURNS.take(count) };
            let now = NOW.fetch_add(count, Ordering::SeqCst) + count;
            assert!(now <= ALL, "{now} at once");
            thread::yield_now();
            NOW.fetch_sub(count, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for number in 0..60 {
                scope.spawn(move || go(1 + number % ALL));
            }
        });
        assert_eq!(NOW.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_turn_comes_back_from_a_test_that_failed() {
        static TURNS: Turns = Turns::of(1);
        let failed = thread::spawn(|| {
            let _turn = TURNS.take_all();
            panic!("as a test that fails");
        });
        assert!(failed.join().is_err());
        drop(TURNS.take(1));
    }
}
