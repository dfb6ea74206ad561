//! A majority, or all, restarted at once: without memory a new key is agreed at once, with
//! `state_dir` no ticket is lost.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use testkit::fleet::{self, Fleet, Plan};
use testkit::run_dir::RunDir;
use testkit::{tickets, Error, Result};

use crate::stage::{self, meet, turn, Carried, Rng, Spread, Welcome, PATIENCE};

/// Leaves time between two rotations for a restart of all, so that both keys of before count.
const INTERVAL: Duration = Duration::from_secs(4);
/// At most so long after a rotation the servers go down.
const PHASE: Duration = Duration::from_millis(1500);
/// What is promised for one key everywhere, from the start of the last process.
const PROMISED: Duration = Duration::from_secs(3);
/// What a busy machine may make of it before the test fails.
const LIMIT: Duration = Duration::from_secs(10);

/// A directory on memory-backed storage, gone when dropped.
struct Memory(PathBuf);

impl Memory {
    fn new(dir: &RunDir) -> Result<Self> {
        let name =
            dir.path().file_name().ok_or_else(|| Error::new("a directory without a name"))?;
        Ok(Self(PathBuf::from("/dev/shm").join(name)))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Nothing to be done about a leftover.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What came of the rounds of one fleet.
#[derive(Default)]
struct Tally {
    rounds: u64,
    /// Until one key was everywhere.
    one_key: Vec<Duration>,
    first_handshake: Vec<Duration>,
    /// Whether the key is the one of before.
    kept: u64,
    offers: usize,
    missed: Vec<String>,
    /// A rotation came before the server was asked, which retired the older of the two keys.
    retired: usize,
}

#[test]
fn a_majority_or_all_restarted_at_once_agree_again_and_with_state_dir_lose_nothing() -> Result<()> {
    let _turn = turn();
    let wanted = crate::number("STEK_RESTART_ROUNDS", 3)?;
    let mut rng = Rng::new()?;
    let fleets = [(3, true), (3, false), (5, true), (5, false)];
    let mut all = Vec::new();
    for (number, (size, remembers)) in (0..).zip(fleets) {
        let rounds = wanted / 4 + u64::from(number < wanted % 4);
        let tally = rounds_of(size, remembers, rounds, &mut rng)?;
        let how = if remembers { "with state_dir" } else { "without memory" };
        println!(
            "{size} servers {how}, {} rounds: one key after {}; first handshakes after {}; the key \
             of before went on in {}; {} of {} tickets missed, {} retired meanwhile",
            tally.rounds,
            Spread(&tally.one_key),
            Spread(&tally.first_handshake),
            tally.kept,
            tally.missed.len(),
            tally.offers,
            tally.retired,
        );
        assert_eq!(tally.rounds, rounds);
        assert!(!remembers || tally.missed.is_empty(), "{}", tally.missed.join("\n"));
        all.extend(tally.one_key);
    }
    let late = all.iter().filter(|time| **time > PROMISED).count();
    println!("one key after the last start: {}; {late} above {PROMISED:?}", Spread(&all));
    assert!(all.iter().all(|time| *time < LIMIT), "too late");
    Ok(())
}

fn rounds_of(size: usize, remembers: bool, rounds: u64, rng: &mut Rng) -> Result<Tally> {
    let mut tally = Tally::default();
    if rounds == 0 {
        return Ok(tally);
    }
    let dir = RunDir::new("all-restarted")?;
    let memory = Memory::new(&dir)?;
    let mut plan = Plan::new(size, &stage::plugin()?, INTERVAL);
    if remembers {
        plan = plan.option("state_dir", &memory.0.display().to_string());
    }
    let mut fleet = plan.start(dir.path())?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let carried = Carried::default();
    for round in 0..rounds {
        // All and the least majority by turns.
        let count = if round % 2 == 0 { size } else { size / 2 + 1 };
        let victims = rng.choose(count, size, None);
        let old = carried.newest();
        carried.fill(&fleet.https(), old)?;
        thread::sleep(rng.span(PHASE));
        carried.look(fleet.servers[0].https())?;
        let begun = restart_at_once(&mut fleet, &victims, rng)?;
        let welcomes = meet_all(&mut fleet, &victims, &carried, begun, rng)?;
        let key = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
        tally.one_key.push(begun.elapsed());
        tally.rounds += 1;
        let same = carried.newest() == Some(key);
        tally.kept += u64::from(same);
        for (index, welcome) in victims.iter().zip(welcomes) {
            tally.offers += welcome.offers;
            tally.first_handshake.push(welcome.took);
            for (number, ticket) in welcome.missed {
                if remembers && !same && carried.newest() != Some(ticket.key_name) {
                    tally.retired += 1;
                    continue;
                }
                let line = format!(
                    "round {round}, server {} of {victims:?} (from 0): {ticket:?}, handshake {number}, \
                     now under {}",
                    index + 1,
                    tickets::fingerprint(&key)
                );
                tally.missed.push(line);
            }
        }
        if !remembers {
            // Whatever was held is gone with its cluster incarnation.
            carried.clear();
        }
    }
    if remembers {
        let (first, last) = stage::one_sequence(&fleet)?;
        println!("generations {first} to {last}, one key each");
    }
    if !remembers || tally.missed.is_empty() {
        dir.done()?;
    }
    Ok(tally)
}

/// Ends the victims together, starts them together; returns the last one's start.
fn restart_at_once(fleet: &mut Fleet, victims: &[usize], rng: &mut Rng) -> Result<Instant> {
    let signals: Vec<_> = (0..fleet.servers.len()).map(|_| rng.signal()).collect();
    thread::scope(|scope| {
        let servers = fleet.servers.iter_mut().enumerate();
        let servers = servers.filter(|(index, _)| victims.contains(index));
        let stops: Vec<_> = servers
            .map(|(index, ats)| (scope, ats, signals[index]))
            .map(|(scope, ats, signal)| scope.spawn(move || ats.stop(signal).map(drop)))
            .collect();
        let panicked = |_| Err(Error::new("a thread that stops a server panicked"));
        stops.into_iter().try_for_each(|stop| stop.join().unwrap_or_else(panicked))
    })?;
    victims.iter().try_for_each(|index| fleet.servers[*index].start())?;
    Ok(Instant::now())
}

/// Offers each victim what clients carry, as soon as it accepts a handshake.
fn meet_all(
    fleet: &mut Fleet,
    victims: &[usize],
    carried: &Carried,
    begun: Instant,
    rng: &mut Rng,
) -> Result<Vec<Welcome>> {
    let turned = rng.below(4);
    thread::scope(|scope| {
        let mut servers: Vec<Option<_>> = fleet.servers.iter_mut().map(Some).collect();
        let threads: Vec<_> = victims
            .iter()
            .filter_map(|index| servers[*index].take())
            .map(|ats| scope.spawn(move || meet(ats, carried, turned, begun)))
            .collect();
        let panicked = |_| Err(Error::new("a thread that meets a server panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}
