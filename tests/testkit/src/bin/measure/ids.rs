//! Clients without tickets, which resume by the session's id: how many resume on another server at once
//! and a millisecond later, and what a session costs the server that makes it and those that get it.

use std::path::Path;
use std::thread;
use std::time::Duration;

use testkit::figures::Figures;
use testkit::fleet;
use testkit::ids;
use testkit::run_dir::RunDir;
use testkit::Result;

use crate::group::{Group, System};

/// No rotation meanwhile.
const INTERVAL: Duration = Duration::from_secs(3600);
const START_LIMIT: Duration = Duration::from_secs(30);
/// Whether a client asks for a page, and how long it waits before it returns.
const PAUSES: [(bool, Duration, &str); 4] = [
    (true, Duration::ZERO, "at once after its page"),
    (false, Duration::ZERO, "at once after the bare handshake"),
    (false, Duration::from_millis(1), "1 ms after the bare handshake"),
    (false, Duration::from_millis(10), "10 ms after the bare handshake"),
];
/// Returns of each kind in a run.
const RETURNS: usize = 200;
/// Whose cost a session is: all are the servers and Redis.
const COSTS: [&str; 3] = ["server that makes it", "server that gets it", "all together"];
/// New sessions whose cost is measured in a run.
const SESSIONS: usize = 500;

/// Measures `runs` groups of `size` of each system.
pub fn measure(
    systems: &[System],
    plugin: &Path,
    size: usize,
    runs: usize,
    figures: &mut Figures,
) -> Result<()> {
    let name = |what: &str| format!("clients without tickets: {what}");
    for system in systems {
        let Some(system) = system.sharing_sessions() else { continue };
        let (mut shares, mut costs) =
            (vec![Vec::new(); PAUSES.len()], vec![Vec::new(); COSTS.len()]);
        for _ in 0..runs {
            let dir = RunDir::new("measure")?;
            let mut group = Group::prepare(system, plugin, size, INTERVAL, dir.path())?;
            group.start_nursed()?;
            if system == System::SharedIds {
                fleet::wait_one_key(&group.https(), None, START_LIMIT)?;
            }
            for ((asks, pause, _), shares) in PAUSES.iter().zip(&mut shares) {
                shares.push(share(&group, *asks, *pause)?);
            }
            let cost = cost(&group)?;
            costs.iter_mut().zip(cost).for_each(|(all, one)| all.push(one));
            dir.done()?;
        }
        let figures = figures.of(system.name());
        for ((.., what), shares) in PAUSES.iter().zip(&shares) {
            figures.add_spread(&name(&format!("resumed on another server, {what}")), shares, "%");
        }
        for (what, costs) in COSTS.iter().zip(&costs) {
            let what = format!("processor time for a session, {what}");
            figures.add_spread(&name(&what), costs, "us");
        }
    }
    Ok(())
}

/// How many of a hundred returns to the next server resume.
fn share(group: &Group, asks: bool, pause: Duration) -> Result<f64> {
    let all = group.https();
    let mut resumed = 0;
    for turn in 0..RETURNS {
        let go = if asks { ids::visit } else { ids::hands };
        let made = go(all[turn % all.len()], "localhost", None)?;
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        let back = go(all[(turn + 1) % all.len()], "localhost", Some(&made.session))?;
        resumed += usize::from(back.resumed);
    }
    Ok(100.0 * resumed as f64 / RETURNS as f64)
}

/// Microseconds of processor time for a new session, its handshake included, as [`COSTS`] has them.
fn cost(group: &Group) -> Result<[f64; 3]> {
    let first = group.https()[0];
    let usage = || -> Result<Vec<Duration>> {
        let helper = group.helper_usage().transpose()?;
        Ok(group.usage()?.into_iter().chain(helper).map(|usage| usage.cpu).collect())
    };
    let before = usage()?;
    for _ in 0..SESSIONS {
        ids::hands(first, "localhost", None)?;
    }
    // What is on its way arrives.
    thread::sleep(Duration::from_millis(300));
    let after = usage()?;
    let spent = after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before));
    let each: Vec<f64> = spent.map(|spent| spent.as_secs_f64() * 1e6 / SESSIONS as f64).collect();
    Ok([each[0], each[1], each.iter().sum()])
}
