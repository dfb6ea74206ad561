//! Up to a minority at once dies, orderly or not, leaders as often as followers: whoever comes
//! back resumes at once what the others resume, and they lose nothing meanwhile.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::fleet::{self, Fleet, Plan};
use testkit::load::{self, Load};
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::{tickets, wait, Error, Result};

use crate::stage::{self, in_time, turn, welcome, Carried, Rng, Spread, Welcome, PATIENCE};

/// Short, so that many restarts meet a handover or the end of one.
const INTERVAL: Duration = Duration::from_secs(3);
/// How long a server stays away at most: now and then it misses a rotation.
const AWAY: Duration = Duration::from_millis(1500);
/// Between two deaths at most.
const PEACE: Duration = Duration::from_millis(1500);
/// How long a server must have been back before clients use it as one of all, and before the next may
/// die: the upper election bound is 400 ms, after which the leader has surely heard of it.
const STEADY: Duration = Duration::from_millis(600);
const RATE: u32 = 20;

/// What came of all restarts.
#[derive(Default)]
struct Tally {
    restarts: u64,
    of_leaders: u64,
    killed: u64,
    offers: usize,
    /// Servers that served before they had the group's keys, and the tickets that they missed.
    out_of_time: Vec<String>,
    missed_out_of_time: usize,
    missed: Vec<String>,
    took: Vec<Duration>,
}

#[test]
fn servers_that_return_resume_what_the_others_resume() -> Result<()> {
    let _turn = turn();
    let wanted = crate::number("STEK_RESTARTS", 8)?;
    let (mut rng, mut tally) = (Rng::new()?, Tally::default());
    for (size, until) in [(3, wanted / 2), (5, wanted)] {
        let dir = RunDir::new("restarts")?;
        let mut fleet = Plan::new(size, &stage::plugin()?, INTERVAL).start(dir.path())?;
        fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
        let carried = Carried::default();
        carried.fill(&fleet.https(), None)?;
        let plan = load::Plan { per_second: RATE, ..load::Plan::default() };
        let load = Load::start(&fleet.https(), plan)?;
        while tally.restarts < until {
            restart(&mut fleet, &load, &carried, &mut rng, &mut tally)?;
        }
        let report = load.stop();
        let (first, last) = stage::one_sequence(&fleet)?;
        println!("{size} servers: generations {first} to {last}, one key each; {report}");
        assert!(report.missed == 0 && report.offers > 0, "{report}");
        if tally.missed.is_empty() {
            dir.done()?;
        }
    }
    println!(
        "{} restarts ({} of leaders, {} by SIGKILL), {} offers: {} missed; startup_wait ran out \
         {} times, with {} missed; first handshake after the start: {}",
        tally.restarts,
        tally.of_leaders,
        tally.killed,
        tally.offers,
        tally.missed.len(),
        tally.out_of_time.len(),
        tally.missed_out_of_time,
        Spread(&tally.took),
    );
    tally.out_of_time.iter().for_each(|line| println!("  {line}"));
    assert!(tally.missed.is_empty(), "{}", tally.missed.join("\n"));
    // If many servers were counted apart the rest would prove little.
    assert!(
        tally.out_of_time.len() as u64 * 10 <= tally.restarts.max(10),
        "too many waits ran out"
    );
    Ok(())
}

/// Lets some servers die and return, and enters into the tally what they did.
fn restart(
    fleet: &mut Fleet,
    load: &Load,
    carried: &Carried,
    rng: &mut Rng,
    tally: &mut Tally,
) -> Result<()> {
    let (size, https) = (fleet.servers.len(), fleet.https());
    let peace = Instant::now() + rng.span(PEACE);
    carried.look_until(&https, || Instant::now() > peace)?;
    let leader = wait::until(PATIENCE, "a leader", || Ok(fleet.leader()))?.index;
    let count = 1 + rng.below((size - 1) / 2);
    let first = (rng.below(2) == 0).then_some(leader);
    let victims = rng.choose(count, size, first);
    let others: Vec<SocketAddr> =
        (0..size).filter(|index| !victims.contains(index)).map(|index| https[index]).collect();
    let scripts: Vec<(usize, Signal, Duration, usize)> =
        victims.iter().map(|index| (*index, rng.signal(), rng.span(AWAY), rng.below(4))).collect();
    victims.iter().for_each(|index| load.set_up(*index, false));
    let welcomes = die_and_return(fleet, &scripts, carried, &others)?;
    for ((index, signal, ..), welcome) in scripts.iter().zip(welcomes) {
        tally.restarts += 1;
        tally.of_leaders += u64::from(*index == leader);
        tally.killed += u64::from(*signal == Signal::Kill);
        let what = format!("server {} of {size}, leader {}, {signal:?}", index + 1, leader + 1);
        enter(tally, &fleet.servers[*index], &others, &what, &welcome)?;
    }
    fleet::wait_one_key(&https, None, PATIENCE)?;
    let steady = Instant::now() + STEADY;
    carried.look_until(&https, || Instant::now() > steady)?;
    victims.iter().for_each(|index| load.set_up(*index, true));
    Ok(())
}

/// Each victim dies at once and returns in its own time; meanwhile tickets are taken elsewhere.
fn die_and_return(
    fleet: &mut Fleet,
    scripts: &[(usize, Signal, Duration, usize)],
    carried: &Carried,
    others: &[SocketAddr],
) -> Result<Vec<Welcome>> {
    let returned = AtomicUsize::new(0);
    thread::scope(|scope| {
        let mut servers: Vec<Option<_>> = fleet.servers.iter_mut().map(Some).collect();
        let mut threads = Vec::new();
        for (index, signal, away, turned) in scripts.iter().copied() {
            let Some(ats) = servers[index].take() else { continue };
            let returned = &returned;
            threads.push(scope.spawn(move || {
                let back = ats.stop(signal).and_then(|_| {
                    thread::sleep(away);
                    welcome(ats, carried, turned)
                });
                returned.fetch_add(1, Ordering::SeqCst);
                back
            }));
        }
        let looked =
            carried.look_until(others, || returned.load(Ordering::SeqCst) == threads.len());
        let panicked = |_| Err(Error::new("a thread that restarts a server panicked"));
        let backs = threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked));
        let backs = backs.collect::<Result<Vec<_>>>()?;
        looked.map(|()| backs)
    })
}

/// A ticket counts as missed if the others resume it even after the server did not.
fn enter(
    tally: &mut Tally,
    ats: &testkit::ats::Ats,
    others: &[SocketAddr],
    what: &str,
    welcome: &Welcome,
) -> Result<()> {
    tally.offers += welcome.offers;
    tally.took.push(welcome.took);
    let (in_time, line) = in_time(ats)?;
    if !in_time {
        tally.out_of_time.push(format!("{what}: {line}"));
    }
    for (number, ticket) in &welcome.missed {
        let mut held = true;
        for other in others {
            held &= tickets::offer(*other, ticket)?.resumed;
        }
        match (held, in_time) {
            (true, true) => {
                let line = format!("{what}: {ticket:?}, handshake {number}; {line}");
                println!("missed: {line}");
                tally.missed.push(line);
            }
            (true, false) => tally.missed_out_of_time += 1,
            // Retired while the server was asked.
            (false, _) => {}
        }
    }
    Ok(())
}
