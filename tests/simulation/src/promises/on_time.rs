//! Promise 4, *on time*: rotation keeps its schedule through elections, restarts and clock steps.
//!
//! Early: no generation becomes current before an interval has gone by since the one before it did,
//! unless an operator ordered it. Rings are compared, not hosts: a process that ends right after an
//! activation leaves its host without the key, and the schedule goes on from the activation. Young:
//! whoever may lead next knows how old the current key is. Late: while all is well everywhere, none is overdue.

use super::{seconds, Checked, Event, Sight};
use crate::{MS, SECOND};

/// See the module's head.
#[derive(Default)]
pub struct Checker {
    /// The activations that were checked.
    seen: std::collections::BTreeSet<(super::Cluster, u64)>,
}

impl Checker {
    /// See the module's head.
    pub fn assess(&mut self, sight: &Sight, event: &Event) -> Checked {
        match event {
            Event::Activated { cluster_id, generation } => {
                self.first(sight, *cluster_id, *generation)
            }
            // For a ring that nobody saw.
            Event::Installed { set, .. } if set.agreed => match set.cluster_id {
                Some(cluster_id) => self.first(sight, cluster_id, set.current),
                None => Ok(()),
            },
            Event::Look => late(sight).and(young(sight)),
            _ => Ok(()),
        }
    }

    fn first(&mut self, sight: &Sight, cluster_id: super::Cluster, generation: u64) -> Checked {
        if self.seen.insert((cluster_id, generation)) {
            early(sight, cluster_id, generation)
        } else {
            Ok(())
        }
    }
}

fn early(sight: &Sight, cluster_id: super::Cluster, generation: u64) -> Checked {
    let before = (cluster_id, generation.saturating_sub(1));
    let Some(last) = sight.annals.since(before) else { return Ok(()) };
    if sight.lied_since(last) || sight.is_ordered() {
        return Ok(());
    }
    // Clocks drift, by less than this, and those of state files count seconds.
    let interval = sight.plan.interval;
    let rounding = if sight.plan.keeps_state { SECOND } else { 0 };
    // That a machine was suspended is noticed from a tenth of a second on, all that came before included.
    let unnoticed = if sight.pauses.is_empty() { 0 } else { 100 * MS };
    let least = interval - interval / 100 - rounding - unnoticed;
    if sight.now - last < least {
        Err(format!(
            "generation {generation} comes {} after the one before, the interval is {}",
            seconds(sight.now - last),
            seconds(interval)
        ))
    } else {
        Ok(())
    }
}

/// A server that takes the current key for younger than it is would rotate late if it led.
fn young(sight: &Sight) -> Checked {
    for (id, view) in sight.servers.iter().filter(|(id, _)| sight.settled(**id)) {
        let Some((cluster_id, generation, told)) = view.told_age else { continue };
        let since = sight.annals.activated.get(&(cluster_id, generation)).copied();
        // A majority that forgets an activation may make another key of that generation.
        let known = since.filter(|since| {
            sight.majority_forgot.is_none_or(|at| at < *since) && !sight.lied_since(*since)
        });
        // A new leader goes by its own note and tells that: of when it first heard of the activation,
        // be it long after the others, because it was paused or cut off. One that has lost it since goes by
        // the oldest note of those whose promises it founded with.
        let notes = |since: u64| {
            let later = sight.leaders.iter().filter(move |leader| leader.at >= since);
            later.filter_map(|leader| sight.annals.noted.get(&(leader.id, cluster_id, generation)))
        };
        let known = known.map(|since| notes(since).copied().max().map_or(since, |n| n.max(since)));
        let age = sight.now - known.unwrap_or(sight.now);
        // An age is told as it was when the message was sent, and a message waits for a server that
        // stands still.
        let since = sight.now - age;
        let pauses = sight.pauses.iter().filter(|(other, _, to)| other == id && *to > since);
        let waited = pauses.map(|(_, from, to)| to - from.max(&since)).max().unwrap_or(0);
        if told + age / 100 + SECOND + sight.slowest + waited < age {
            return Err(format!(
                "server {id} takes generation {generation}, {} old, for {} old",
                seconds(age),
                seconds(told)
            ));
        }
    }
    Ok(())
}

fn late(sight: &Sight) -> Checked {
    let grace = 2 * sight.settling();
    if sight.all_well_for() < grace {
        return Ok(());
    }
    for (id, view) in sight.servers.iter().filter(|(_, view)| view.listed) {
        let Some(set) = &view.set else { continue };
        let (true, Some(cluster_id)) = (set.agreed, set.cluster_id) else { continue };
        let since = sight.annals.current.get(&(cluster_id, set.current)).copied();
        // In a file that came back the key may wait for its activation once more.
        let is_known = |since: &u64| sight.files_failed.is_none_or(|failed| failed < *since);
        let age = sight.now - since.filter(is_known).unwrap_or(sight.now);
        if age > sight.plan.interval + sight.plan.interval / 25 + grace {
            return Err(format!(
                "server {id} still has generation {} after {}; the interval is {}, and all has been \
                 well everywhere for {}",
                set.current,
                seconds(age),
                seconds(sight.plan.interval),
                seconds(sight.all_well_for())
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::promises::{Leader, View};

    /// Server 1 heard of the activation at 10 s, server 2 at 14 s, server 3 at 18 s; server 1 leads from 20 s.
    #[test]
    fn a_leader_that_has_lost_its_note_goes_by_the_oldest_that_it_was_told() {
        let place = ([1; 16], 4);
        let sight = |told_age: u64| {
            let mut sight = Sight::new(Plan::calm(3));
            sight.now = 60 * SECOND;
            let told_age = Some((place.0, place.1, told_age * SECOND));
            let view = View {
                listed: true,
                awake: true,
                runs: true,
                joined: Some(0),
                told_age,
                ..View::default()
            };
            sight.servers.insert(1, view);
            sight.leaders.push(Leader { at: 20 * SECOND, id: 1, run: 0, epoch: 1, term: 1 });
            sight.annals.record_activation(10 * SECOND, place);
            for (id, at) in [(1, 10), (2, 14), (3, 18)] {
                sight.annals.noted.insert((id, place.0, place.1), at * SECOND);
            }
            sight
        };
        let founded = |told_age: u64, told: &[u32]| {
            let mut sight = sight(told_age);
            sight.annals.found_anew(1, &told.iter().copied().collect());
            young(&sight)
        };
        assert_eq!((young(&sight(50)), young(&sight(46)).is_err()), (Ok(()), true));
        assert_eq!((founded(46, &[2, 3]), founded(42, &[2, 3]).is_err()), (Ok(()), true));
        assert_eq!((founded(42, &[3]), founded(38, &[3]).is_err()), (Ok(()), true));
    }
}
