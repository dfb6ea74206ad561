//! How long a fleet is without a leader when its leader dies by SIGKILL, and how much later the
//! next key comes for it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use testkit::figures::Figures;
use testkit::fleet::{self, Fleet, Plan};
use testkit::logs;
use testkit::run_dir::RunDir;
use testkit::{tickets, wait, Result};

use crate::group::{Group, System};

/// `key_update_interval`: short, so that many rotations meet a death.
const INTERVAL: Duration = Duration::from_secs(3);
/// Until all servers have a first key, or one key again.
const AGREE_LIMIT: Duration = Duration::from_secs(30);
/// Until a new leader says so.
const ELECTION_LIMIT: Duration = Duration::from_secs(30);
/// A group that has no new key after so long has stopped making any.
const LATENESS_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at all servers' keys.
const LOOK: Duration = Duration::from_millis(20);
/// Between two looks at the survivors' logs.
const PAUSE: Duration = Duration::from_millis(2);

/// Kills `runs` leaders of a fleet of `size`, one after another; each comes back.
pub fn measure(plugin: &Path, size: usize, runs: usize, figures: &mut Figures) -> Result<()> {
    let figures = figures.of(System::StekShare.name());
    let dir = RunDir::new("measure")?;
    let mut fleet = Plan::new(size, plugin, INTERVAL).start(dir.path())?;
    fleet::wait_one_key(&fleet.https(), None, AGREE_LIMIT)?;
    let (mut elections, mut gaps) = (Vec::new(), Vec::new());
    for run in 0..runs {
        // Deaths at moments spread over the whole interval, the handover included.
        let phase = INTERVAL.mul_f64(run as f64 / runs as f64);
        wait_for_rotation(&fleet)?;
        thread::sleep(phase);
        let generation = last_generation(&fleet);
        let dead = kill_leader(&mut fleet, &mut elections)?;
        // The gap that the death fell into, and the next one.
        wait::until(AGREE_LIMIT, "two rotations", || {
            Ok((last_generation(&fleet) >= generation + 2).then_some(()))
        })?;
        let all = logs::gaps(&logs::rotations(&logs::read(&fleet)));
        gaps.extend(all.iter().filter(|(g, _)| *g > generation && *g <= generation + 2));
        fleet.servers[dead].start()?;
        fleet.servers[dead].wait_ready()?;
        fleet::wait_one_key(&fleet.https(), None, AGREE_LIMIT)?;
    }
    let gaps: Vec<Duration> = gaps.into_iter().map(|(_, gap)| gap).collect();
    let name = |what: &str| format!("leader of {size} killed: {what}");
    figures.add_times(&name("until a survivor leads"), &elections);
    figures.add(name("interval as configured"), INTERVAL.as_secs_f64() * 1e3, "ms");
    figures.add_times(&name("gap between two rotations"), &gaps);
    dir.done()
}

/// Kills the leader; when a survivor says that it leads, the time goes to `elections`.
fn kill_leader(fleet: &mut Fleet, elections: &mut Vec<Duration>) -> Result<usize> {
    let old = wait::until(ELECTION_LIMIT, "a leader", || Ok(fleet.leader()))?;
    fleet.servers[old.index].kill9();
    let killed = Instant::now();
    wait::until_every(PAUSE, ELECTION_LIMIT, "a new leader", || {
        Ok(fleet.leader().filter(|new| new.term > old.term))
    })?;
    elections.push(killed.elapsed());
    Ok(old.index)
}

/// The server that makes the keys is killed, in `runs` new groups of `size`: how much later than
/// usual do the others have a new key?
pub fn lateness(
    systems: &[System],
    plugin: &Path,
    size: usize,
    runs: usize,
    figures: &mut Figures,
) -> Result<()> {
    for system in systems.iter().filter(|system| **system != System::Plain) {
        let mut late = Vec::new();
        for run in 0..runs {
            let dir = RunDir::new("measure")?;
            let mut group = Group::prepare(*system, plugin, size, INTERVAL, dir.path())?;
            group.start_nursed()?;
            let phase = INTERVAL.mul_f64((run as f64 + 0.5) / runs as f64);
            late.push(next_key_after_death(&mut group, phase)?);
            dir.done()?;
        }
        let name = format!("key maker of {size} killed: the next key comes later by");
        figures.of(system.name()).add_spread(&name, &late, "ms");
    }
    Ok(())
}

/// In milliseconds; NaN if there is none within [`LATENESS_LIMIT`].
fn next_key_after_death(group: &mut Group, phase: Duration) -> Result<f64> {
    let all = group.https();
    let first = fleet::wait_one_key(&all, None, AGREE_LIMIT)?;
    // The schedule counts from the first server's use of a key.
    let changed = wait::until_every(LOOK, LATENESS_LIMIT, "a new key", || {
        let names = all.iter().map(|address| tickets::key_name(*address));
        let names = names.collect::<Result<Vec<_>>>()?;
        Ok(names.iter().any(|name| *name != first).then(Instant::now))
    });
    let Ok(rotated) = changed else { return Ok(f64::NAN) };
    let Ok(old) = fleet::wait_one_key(&all, Some(&first), LATENESS_LIMIT) else {
        return Ok(f64::NAN);
    };
    thread::sleep(phase.saturating_sub(rotated.elapsed()));
    let dead = group.key_maker();
    group.kill(dead);
    let rest: Vec<_> =
        all.iter().enumerate().filter(|(i, _)| *i != dead).map(|(_, address)| *address).collect();
    let found = wait::until_every(LOOK, LATENESS_LIMIT, "a new key", || {
        let names = rest.iter().map(|address| tickets::key_name(*address));
        let names = names.collect::<Result<Vec<_>>>()?;
        let same = names.windows(2).all(|pair| pair[0] == pair[1]);
        Ok((same && names.first() != Some(&old)).then(|| rotated.elapsed()))
    });
    Ok(found.map_or(f64::NAN, |gap| (gap.as_secs_f64() - INTERVAL.as_secs_f64()) * 1e3))
}

fn last_generation(fleet: &Fleet) -> u64 {
    logs::rotations(&logs::read(fleet)).last().map_or(0, |rotation| rotation.generation)
}

fn wait_for_rotation(fleet: &Fleet) -> Result<()> {
    let before = last_generation(fleet);
    wait::until(AGREE_LIMIT, "a rotation", || Ok((last_generation(fleet) > before).then_some(())))
}
