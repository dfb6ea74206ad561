//! A queue of what may be lost: bounded in entries, bytes and waiting time. What does not fit pushes
//! out the oldest; what waited too long is not handed out any more.
//!
//! What the entries are, and who counts those that are lost, is for whoever has the queue. Invariants:
//! - Entries and bytes are within the bounds at all times, and an entry that alone is above them is
//!   not taken.
//! - Entries come out in the order in which they went in.
//! - Each entry that is lost is handed back or counted, so that it can be told of.

use std::collections::VecDeque;
use std::time::Duration;

use super::moment::Moment;

/// How much a queue holds, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub entries: usize,
    /// The sum of their sizes, in bytes.
    pub bytes: usize,
    /// How long one may wait.
    pub wait: Duration,
}

/// See the module's head.
#[derive(Debug)]
pub struct LossyQueue<T> {
    limits: Limits,
    bytes: usize,
    entries: VecDeque<(Moment, usize, T)>,
}

impl<T> LossyQueue<T> {
    /// An empty one; takes memory only for what is in it.
    pub const fn new(limits: Limits) -> LossyQueue<T> {
        LossyQueue { limits, bytes: 0, entries: VecDeque::new() }
    }

    /// How many entries wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry of `size` bytes; how many were lost for it, be it itself.
    pub fn push_at(&mut self, now: Moment, size: usize, entry: T) -> usize {
        let Limits { entries, bytes, .. } = self.limits;
        if size > bytes || entries == 0 {
            return 1;
        }
        let mut lost = self.expire_at(now);
        while self.entries.len() >= entries || self.bytes + size > bytes {
            if self.take().is_none() {
                break;
            }
            lost += 1;
        }
        self.bytes += size;
        self.entries.push_back((now, size, entry));
        lost
    }

    /// The oldest entry that has not waited too long, and how many before it had.
    pub fn pop_at(&mut self, now: Moment) -> (usize, Option<T>) {
        let lost = self.expire_at(now);
        (lost, self.take())
    }

    /// The entry that comes out next, unless it has waited too long by then.
    pub fn front(&self) -> Option<&T> {
        self.entries.front().map(|(_, _, entry)| entry)
    }

    /// Forgets what has waited too long; how many entries that were.
    pub fn expire_at(&mut self, now: Moment) -> usize {
        let mut lost = 0;
        while self.entries.front().is_some_and(|(at, ..)| now.since(*at) > self.limits.wait) {
            self.take();
            lost += 1;
        }
        lost
    }

    /// Forgets all; how many entries that were.
    pub fn clear(&mut self) -> usize {
        self.bytes = 0;
        let lost = self.entries.len();
        // Secrets may be among them: the room that they took is not kept either.
        self.entries = VecDeque::new();
        lost
    }

    fn take(&mut self) -> Option<T> {
        let (_, size, entry) = self.entries.pop_front()?;
        self.bytes -= size;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(ms))
    }

    fn queue(entries: usize, bytes: usize) -> LossyQueue<u32> {
        LossyQueue::new(Limits { entries, bytes, wait: Duration::from_millis(100) })
    }

    #[test]
    fn the_oldest_give_way_to_what_is_new() {
        let mut queue = queue(3, 100);
        assert_eq!(
            (1..=5).map(|n| queue.push_at(at(0), 1, n)).collect::<Vec<_>>(),
            [0, 0, 0, 1, 1]
        );
        assert!(!queue.is_empty());
        let left: Vec<_> = std::iter::from_fn(|| queue.pop_at(at(0)).1).collect();
        assert_eq!(left, [3, 4, 5]);
        assert!(queue.is_empty());
    }

    #[test]
    fn bytes_are_bounded_as_entries_are() {
        let mut queue = queue(100, 10);
        assert_eq!(queue.push_at(at(0), 4, 1) + queue.push_at(at(0), 4, 2), 0);
        assert_eq!(queue.push_at(at(0), 11, 3), 1, "alone above the bound");
        assert_eq!(queue.len(), 2, "nobody gives way for what cannot be taken");
        assert_eq!(queue.push_at(at(0), 7, 4), 2);
        assert_eq!((queue.front(), queue.bytes), (Some(&4), 7));
        assert_eq!(queue.push_at(at(0), 3, 5), 0, "just as many bytes as there may be");
        assert_eq!(queue.push_at(at(0), 10, 6), 2, "and all of them for one");
        assert_eq!((queue.pop_at(at(0)), queue.front(), queue.bytes), ((0, Some(6)), None, 0));
    }

    #[test]
    fn what_waited_too_long_is_lost() {
        let mut queue = queue(100, 100);
        queue.push_at(at(0), 1, 1);
        queue.push_at(at(50), 1, 2);
        assert_eq!(queue.pop_at(at(100)), (0, Some(1)));
        queue.push_at(at(60), 1, 3);
        assert_eq!(queue.pop_at(at(151)), (1, Some(3)));
        queue.push_at(at(151), 1, 4);
        assert_eq!((queue.expire_at(at(300)), queue.pop_at(at(300))), (1, (0, None)));
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn all_can_be_forgotten_at_once() {
        let mut queue = queue(3, 100);
        queue.push_at(at(0), 9, 1);
        queue.push_at(at(0), 9, 2);
        assert_eq!((queue.clear(), queue.clear(), queue.bytes), (2, 0, 0));
        assert_eq!(LossyQueue::push_at(&mut self::queue(0, 9), at(0), 1, 1), 1);
    }
}
