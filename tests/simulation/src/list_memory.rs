//! Which changes of the server list a founding may have forgotten.
//!
//! A change of the list is agreed on by a majority of the voters of before it, and stands in the state file
//! of each of them before it acknowledges that. A founding is of a majority too, so one of those who promise
//! knows of the change, unless it has lost what it knew. So a change may be forgotten only where two
//! things are true:
//!
//! - those who promise and have lost nothing are no majority of the voters by whom the founding counts;
//! - none of them has heard of the change.
//!
//! Then the earlier list is back and nobody can know better. What a server has lost is for the world to say:
//! its files were wiped, put back as they had been before, or could not be written when it was killed, or it
//! keeps none. Who is not there, with or without a file, changes nothing: a majority goes on without it.

use std::collections::{BTreeMap, BTreeSet};

use stek_share::core::agreement::epoch::Epoch;

use crate::SECOND;

/// What is seen of a cluster that is founded from a record with a list.
#[derive(Clone, Debug)]
pub struct Founding {
    /// Names it.
    pub epoch: Epoch,
    /// Who promised.
    pub promised: BTreeSet<u32>,
    /// The voters of the newest record among theirs.
    pub voters: Vec<BTreeSet<u32>>,
    /// Its list.
    pub members: BTreeSet<u32>,
}

/// What is seen of lists at agreement.
#[derive(Clone, Debug)]
pub enum ListNews {
    /// A server has heard that this list is agreed on, or that one still is.
    Heard(u32, BTreeSet<u32>),
    /// A cluster is founded; it may come to nothing.
    Founded(Founding),
    /// A cluster has agreed on what it was founded from.
    Begun(Epoch),
}

/// See the module's head.
#[derive(Default)]
pub struct ListMemory {
    /// Who has lost what it knew, and has heard of no list since.
    lost: BTreeSet<u32>,
    /// Until when a server's file may be without what the server acknowledged.
    files_behind: BTreeMap<u32, u64>,
    /// The list that each server heard of last, and when.
    heard: BTreeMap<u32, (u64, BTreeSet<u32>)>,
    /// When each server's place in the list was last asked to change.
    asked: BTreeMap<u32, u64>,
}

/// A write that failed is tried again after a second.
const AGAIN: u64 = 2 * SECOND;

impl ListMemory {
    /// These servers are to come or to go.
    pub fn ask(&mut self, now: u64, subjects: impl Iterator<Item = u32>) {
        self.asked.extend(subjects.map(|id| (id, now)));
    }

    /// A server's disk is ill until then.
    pub fn delay_file(&mut self, id: u32, until: u64) {
        let behind = self.files_behind.entry(id).or_default();
        *behind = (*behind).max(until + AGAIN);
    }

    /// A process ends, whose file is what it wrote if there is one and it could.
    pub fn end(&mut self, now: u64, id: u32, has_file: bool) {
        let is_behind = self.files_behind.get(&id).is_some_and(|until| *until >= now);
        if !has_file || is_behind {
            self.lose(id);
        }
    }

    /// A server's present file is lost.
    pub fn lose(&mut self, id: u32) {
        self.lost.insert(id);
        self.heard.remove(&id);
    }

    /// Whether a server has lost what it knew.
    pub fn has_lost(&self, id: u32) -> bool {
        self.lost.contains(&id)
    }

    /// A server heard of an agreed list.
    pub fn hear(&mut self, now: u64, id: u32, members: BTreeSet<u32>) {
        self.lost.remove(&id);
        self.heard.insert(id, (now, members));
    }

    /// Of which servers a cluster that is founded now may have forgotten that they came or went.
    pub fn forgotten(&self, founding: &Founding) -> BTreeSet<u32> {
        let is_whole = |id: &u32| founding.promised.contains(id) && !self.lost.contains(id);
        let are_most =
            |list: &BTreeSet<u32>| 2 * list.iter().filter(|id| is_whole(id)).count() > list.len();
        if founding.voters.iter().all(are_most) {
            return BTreeSet::new();
        }
        let is_in = |id: &u32| founding.members.contains(id);
        let knows = |of: &u32, since: u64| {
            let whole = founding.promised.iter().filter(|id| is_whole(id));
            whole
                .filter_map(|id| self.heard.get(id))
                .any(|(heard, members)| *heard >= since && members.contains(of) != is_in(of))
        };
        let asked = self.asked.iter().filter(|(of, since)| !knows(of, **since));
        asked.map(|(of, _)| *of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Servers 1 to 3, all of which heard that server 3 has left; 1 and 2 found from a record of before.
    fn left() -> (ListMemory, Founding) {
        let mut memory = ListMemory::default();
        for id in 1..=3 {
            memory.hear(5, id, [1, 2, 3].into());
        }
        memory.ask(10, [3].into_iter());
        for id in 1..=3 {
            memory.hear(11, id, [1, 2].into());
        }
        let (members, voters) = ([1, 2, 3].into(), vec![[1, 2, 3].into()]);
        (memory, Founding { epoch: Epoch::default(), promised: [1, 2].into(), voters, members })
    }

    #[test]
    fn what_somebody_knows_who_promised_is_not_forgotten() {
        let (mut memory, founding) = left();
        assert!(memory.forgotten(&founding).is_empty());
        memory.end(20, 1, true);
        memory.end(20, 2, true);
        assert!(memory.forgotten(&founding).is_empty(), "their files have it");
        memory.lose(1);
        assert!(memory.forgotten(&founding).is_empty(), "server 2 knows");
        memory.lose(2);
        assert_eq!(memory.forgotten(&founding), [3].into());
        // Who heard of it again knows it again; a list of before that says nothing of it.
        memory.hear(30, 1, [1, 2].into());
        assert!(memory.forgotten(&founding).is_empty());
        memory.hear(31, 1, [1, 2, 3].into());
        assert_eq!(memory.forgotten(&founding), [3].into());
        // That a server came is forgotten as that one went is.
        memory.ask(40, [4].into_iter());
        assert_eq!(memory.forgotten(&founding), [3, 4].into());
        memory.hear(41, 1, [1, 2, 3, 4].into());
        assert_eq!(memory.forgotten(&founding), [3].into());
    }

    #[test]
    fn what_nobody_lost_is_not_forgotten_though_nobody_has_heard_of_it() {
        let (mut memory, mut founding) = left();
        for id in 1..=2 {
            memory.lose(id);
            memory.hear(9, id, [1, 2, 3].into());
        }
        assert!(
            memory.forgotten(&founding).is_empty(),
            "a majority agreed on it, and so one of them"
        );
        memory.lose(1);
        assert_eq!(memory.forgotten(&founding), [3].into());
        // More of them promise: two of three have lost nothing.
        memory.hear(9, 3, [1, 2, 3].into());
        founding.promised.insert(3);
        assert!(memory.forgotten(&founding).is_empty());
        // It counts by two sets of voters.
        founding.voters.push([1, 2].into());
        assert_eq!(memory.forgotten(&founding), [3].into());
    }

    #[test]
    fn a_file_that_could_not_be_written_is_behind_for_a_while() {
        for (killed, is_lost) in [(20 + AGAIN, true), (21 + AGAIN, false)] {
            let (mut memory, founding) = left();
            memory.lose(2);
            memory.delay_file(1, 20);
            memory.delay_file(1, 15);
            memory.end(killed, 1, true);
            assert_eq!(!memory.forgotten(&founding).is_empty(), is_lost, "{killed}");
        }
        let (mut memory, founding) = left();
        memory.end(20, 1, false);
        memory.end(20, 2, false);
        assert_eq!(memory.forgotten(&founding), [3].into(), "they keep none");
    }
}
