//! Clients without tickets, which resume by the session's id: how many resume on another server at once
//! and a millisecond later, and what a session costs the server that makes it and those that get it.

use std::path::Path;
use std::thread;
use std::time::Duration;

use testkit::figures::Figures;
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
/// New sessions whose cost is measured in a run, and in how many parts that is done.
const SESSIONS: usize = 500;
const SLICES: usize = 5;

/// Measures `runs` groups of `size` of each system, which stand side by side and take turns, so that what
/// the machine does besides falls on all of them.
pub fn measure(
    systems: &[System],
    plugin: &Path,
    size: usize,
    runs: usize,
    figures: &mut Figures,
) -> Result<()> {
    let systems: Vec<System> =
        systems.iter().filter_map(|system| system.sharing_sessions()).collect();
    let mut shares = vec![vec![Vec::new(); PAUSES.len()]; systems.len()];
    let mut costs = vec![vec![Vec::new(); COSTS.len()]; systems.len()];
    for _ in 0..runs {
        let dir = RunDir::new("measure")?;
        let groups = start(&systems, plugin, size, dir.path())?;
        for (at, (asks, pause, _)) in PAUSES.iter().enumerate() {
            for (all, share) in shares.iter_mut().zip(share(&groups, *asks, *pause)?) {
                all[at].push(share);
            }
        }
        for (all, cost) in costs.iter_mut().zip(cost(&groups)?) {
            all.iter_mut().zip(cost).for_each(|(all, one)| all.push(one));
        }
        dir.done()?;
    }
    let name = |what: &str| format!("clients without tickets: {what}");
    for ((system, shares), costs) in systems.iter().zip(&shares).zip(&costs) {
        // Whoever shares sessions is the plugin itself here.
        let is_own = *system == System::SharedIds;
        let figures = figures.of(if is_own { System::StekShare.name() } else { system.name() });
        for ((.., what), shares) in PAUSES.iter().zip(shares) {
            figures.add_spread(&name(&format!("resumed on another server, {what}")), shares, "%");
        }
        for (what, costs) in COSTS.iter().zip(costs) {
            let what = format!("processor time for a session, {what}");
            figures.add_spread(&name(&what), costs, "us");
        }
    }
    Ok(())
}

/// A group of each system.
fn start(systems: &[System], plugin: &Path, size: usize, dir: &Path) -> Result<Vec<Group>> {
    let start = |(number, system): (usize, &System)| {
        let group = Group::start_in(*system, plugin, (size, INTERVAL), dir, number)?;
        group.wait_one_key(START_LIMIT)?;
        Ok(group)
    };
    systems.iter().enumerate().map(start).collect()
}

/// How many of a hundred returns to the next server resume, of each group.
fn share(groups: &[Group], asks: bool, pause: Duration) -> Result<Vec<f64>> {
    let go = if asks { ids::visit } else { ids::hands };
    let mut resumed = vec![0; groups.len()];
    for turn in 0..RETURNS {
        for (group, resumed) in groups.iter().zip(&mut resumed) {
            let all = group.https();
            let made = go(all[turn % all.len()], "localhost", None)?;
            if !pause.is_zero() {
                thread::sleep(pause);
            }
            let back = go(all[(turn + 1) % all.len()], "localhost", Some(&made.session))?;
            *resumed += usize::from(back.resumed);
        }
    }
    Ok(resumed.iter().map(|resumed| 100.0 * *resumed as f64 / RETURNS as f64).collect())
}

/// Microseconds of processor time for a new session, its handshake included, as [`COSTS`] has them.
fn cost(groups: &[Group]) -> Result<Vec<[f64; 3]>> {
    let mut spent = vec![Vec::new(); groups.len()];
    for _ in 0..SLICES {
        for (group, spent) in groups.iter().zip(&mut spent) {
            let before = usage(group)?;
            for _ in 0..SESSIONS / SLICES {
                ids::hands(group.https()[0], "localhost", None)?;
            }
            // What is on its way arrives.
            thread::sleep(Duration::from_millis(100));
            spent.resize(before.len(), Duration::ZERO);
            for ((spent, before), after) in spent.iter_mut().zip(before).zip(usage(group)?) {
                *spent += after.saturating_sub(before);
            }
        }
    }
    let each = |spent: &Vec<Duration>| {
        let each = |spent: &Duration| spent.as_secs_f64() * 1e6 / SESSIONS as f64;
        [each(&spent[0]), each(&spent[1]), spent.iter().map(each).sum()]
    };
    Ok(spent.iter().map(each).collect())
}

/// What the servers of a group have used, and what helps them.
fn usage(group: &Group) -> Result<Vec<Duration>> {
    let helper = group.helper_usage().transpose()?;
    Ok(group.usage()?.into_iter().chain(helper).map(|usage| usage.cpu).collect())
}
