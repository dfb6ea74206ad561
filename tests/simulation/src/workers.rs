//! Runs each seed in a child process and adds up what they report.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::path::Path;
use std::time::Duration;

use stek_share::transport::tls::Tls;

use crate::event_log::EventLog;
use crate::scenario::{self, Fleet};
use crate::world::{Outcome, World};
use crate::{cells, promises, system, SECOND};

/// A seed that takes longer than this hangs; the slowest of a debug build takes seconds.
const LIMIT: libc::c_uint = 300;

/// Runs one seed in this process, which is good for nothing else afterwards.
pub fn one(seed: u64, tls: &Tls, print: bool) -> Outcome {
    promises::host_stays_up::watch();
    cells::watch();
    system::begin(seed);
    World::new(seed, tls.clone(), print).run()
}

/// Plays a scenario in this process, which is good for nothing else afterwards; what is told.
pub fn scenario(file: &Path, tls: &Tls) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let Fleet { plan, seed, settled } = Fleet::parse(&text)?;
    promises::host_stays_up::watch();
    cells::watch();
    system::begin(seed);
    let mut log = EventLog::new(false);
    log.keep_lines();
    Ok(scenario::play(World::with_plan(plan, seed, tls.clone(), log), &text, settled))
}

/// Runs seeds, `jobs` at a time, until `each` says no.
pub fn all(
    mut seeds: impl Iterator<Item = u64>,
    jobs: usize,
    tls: &Tls,
    mut each: impl FnMut(u64, Outcome) -> bool,
) {
    let mut running: BTreeMap<libc::pid_t, (u64, File)> = BTreeMap::new();
    let mut more = true;
    loop {
        while more && running.len() < jobs {
            match seeds.next() {
                Some(seed) => {
                    let (pid, report) = begin(seed, tls);
                    running.insert(pid, (seed, report));
                }
                None => more = false,
            }
        }
        if running.is_empty() {
            return;
        }
        let mut status = 0;
        // SAFETY: `status` is a place for the answer.
        let pid = unsafe { libc::waitpid(-1, &mut status, 0) };
        let Some((seed, mut report)) = running.remove(&pid) else { continue };
        let mut words = String::new();
        let _ = report.read_to_string(&mut words);
        let outcome = parse(&words).unwrap_or_else(|| Outcome {
            broken: Some(format!("its process ended early (status {status:#x}) {words}")),
            ..Outcome::default()
        });
        more &= each(seed, outcome);
    }
}

/// Forks a child that runs one seed; its id, and where its report comes from.
fn begin(seed: u64, tls: &Tls) -> (libc::pid_t, File) {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0, "no pipe can be had");
    // SAFETY: this process has one thread, so the child finds everything as it is here.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "no process can be had");
    if pid > 0 {
        // SAFETY: both ends are ours, and each is owned once.
        let report = unsafe {
            libc::close(ends[1]);
            File::from_raw_fd(ends[0])
        };
        return (pid, report);
    }
    // SAFETY: the child owns its copies of both ends; `alarm` has no memory to harm.
    let mut report = unsafe {
        libc::alarm(LIMIT);
        libc::close(ends[0]);
        File::from_raw_fd(ends[1])
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one(seed, tls, false)));
    let words = match outcome {
        Ok(outcome) => write(&outcome),
        Err(_) => format!("panic: {}", promises::host_stays_up::panics().join("; ")),
    };
    let _ = report.write_all(words.as_bytes());
    drop(report);
    // SAFETY: nothing of this process is to be cleaned up: it shares its output with its parent.
    unsafe { libc::_exit(0) }
}

fn numbers(outcome: &Outcome) -> [u64; 10] {
    let [offered, opened, owed] = outcome.tickets;
    [
        outcome.digest,
        outcome.simulated,
        outcome.servers,
        outcome.faults,
        outcome.rotations,
        offered,
        opened,
        owed,
        outcome.messages,
        outcome.reunion,
    ]
}

fn write(outcome: &Outcome) -> String {
    let numbers: Vec<String> = numbers(outcome).iter().map(u64::to_string).collect();
    format!("{}\n{}", numbers.join(" "), outcome.broken.as_deref().unwrap_or(""))
}

fn parse(words: &str) -> Option<Outcome> {
    let (numbers, broken) = words.split_once('\n')?;
    let numbers: Vec<u64> = numbers.split(' ').map_while(|word| word.parse().ok()).collect();
    let [digest, simulated, servers, faults, rotations, offered, opened, owed, messages, reunion] =
        *numbers.first_chunk()?;
    Some(Outcome {
        broken: (!broken.is_empty()).then(|| broken.to_owned()),
        digest,
        simulated,
        servers,
        faults,
        rotations,
        tickets: [offered, opened, owed],
        messages,
        reunion,
    })
}

/// The command that runs a seed again and tells its story: as `SIMULATE_AGAIN` has it, where `{}`
/// stands for the seed.
pub fn again(seed: u64) -> String {
    let program = || std::env::args().next().unwrap_or_else(|| "simulation".to_owned());
    let words = std::env::var("SIMULATE_AGAIN");
    let words = words.unwrap_or_else(|_| format!("{} --seed {{}} --log", program()));
    words.replace("{}", &seed.to_string())
}

/// The logs of seeds of which the second run is still to come.
#[derive(Debug, Default)]
pub struct Twins(BTreeMap<u64, u64>);

impl Twins {
    /// Takes the log of one run; for the second one of its seed, whether it is that of the first.
    pub fn compare(&mut self, seed: u64, digest: u64) -> Option<bool> {
        let first = self.0.remove(&seed);
        if first.is_none() {
            self.0.insert(seed, digest);
        }
        first.map(|first| first == digest)
    }
}

/// What all seeds came to.
#[derive(Debug, Default)]
pub struct Total {
    /// Seeds in which a promise was broken.
    pub broken: u64,
    seeds: u64,
    sum: Outcome,
    slowest_reunion: u64,
}

impl Total {
    /// Adds one seed.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.broken += u64::from(outcome.broken.is_some());
        self.sum.simulated += outcome.simulated;
        self.sum.servers += outcome.servers;
        self.sum.faults += outcome.faults;
        self.sum.rotations += outcome.rotations;
        self.sum.messages += outcome.messages;
        for (sum, new) in self.sum.tickets.iter_mut().zip(outcome.tickets) {
            *sum += new;
        }
        self.slowest_reunion = self.slowest_reunion.max(outcome.reunion);
    }

    /// Prints it.
    pub fn tell(&self, took: Duration) {
        let sum = &self.sum;
        let [offered, opened, owed] = sum.tickets;
        let hours = sum.simulated / SECOND;
        println!(
            "{} seeds, {} broken: {} h {} min simulated, {} servers, {} faults and orders, {} keys, \
             {} messages; {offered} tickets offered, {opened} opened, {owed} owed; one again after \
             {} s at most",
            self.seeds,
            self.broken,
            hours / 3600,
            hours / 60 % 60,
            sum.servers,
            sum.faults,
            sum.rotations,
            sum.messages,
            self.slowest_reunion / SECOND,
        );
        let rate = self.seeds as f64 / took.as_secs_f64();
        println!("{:.1} s, {rate:.1} seeds a second", took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_run_of_a_seed_is_held_against_its_first() {
        let mut twins = Twins::default();
        assert_eq!((twins.compare(1, 10), twins.compare(2, 20)), (None, None));
        assert_eq!((twins.compare(2, 20), twins.compare(1, 11)), (Some(true), Some(false)));
        assert_eq!(twins.compare(1, 11), None, "both are done with");
    }
}
