//! How long a fleet is without a leader when its leader dies by SIGKILL, and how much longer the
//! gap between two rotations is for it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use kit::figures::Figures;
use kit::fleet::{self, Fleet, Plan};
use kit::logs;
use kit::run_dir::RunDir;
use kit::{wait, Result};

/// `key_update_interval`: short, so that many rotations meet a death.
const INTERVAL: Duration = Duration::from_secs(3);
/// Until all boxes have a first key, or one key again.
const AGREE_LIMIT: Duration = Duration::from_secs(30);
/// Until a new leader says so.
const ELECTION_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at the survivors' logs.
const PAUSE: Duration = Duration::from_millis(2);

/// Kills `runs` leaders of a fleet of `size`, one after another; each comes back.
pub fn measure(plugin: &Path, size: usize, runs: usize, figures: &mut Figures) -> Result<()> {
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
        fleet.boxes[dead].start()?;
        fleet.boxes[dead].wait_ready()?;
        fleet::wait_one_key(&fleet.https(), None, AGREE_LIMIT)?;
    }
    let gaps: Vec<Duration> = gaps.into_iter().map(|(_, gap)| gap).collect();
    let name = |what: &str| format!("leader of {size} killed: {what}");
    figures.add_times(&name("until a survivor leads"), &elections);
    figures.add("interval between two rotations", INTERVAL.as_secs_f64() * 1e3, "ms");
    figures.add_times(&name("gap between two rotations"), &gaps);
    dir.done()
}

/// Kills the leader; when a survivor says that it leads, the time goes to `elections`.
fn kill_leader(fleet: &mut Fleet, elections: &mut Vec<Duration>) -> Result<usize> {
    let old = wait::until(ELECTION_LIMIT, "a leader", || Ok(fleet.leader()))?;
    fleet.boxes[old.index].kill9();
    let killed = Instant::now();
    wait::until_every(PAUSE, ELECTION_LIMIT, "a new leader", || {
        Ok(fleet.leader().filter(|new| new.term > old.term))
    })?;
    elections.push(killed.elapsed());
    Ok(old.index)
}

fn last_generation(fleet: &Fleet) -> u64 {
    logs::rotations(&logs::read(fleet)).last().map_or(0, |rotation| rotation.generation)
}

fn wait_for_rotation(fleet: &Fleet) -> Result<()> {
    let before = last_generation(fleet);
    wait::until(AGREE_LIMIT, "a rotation", || Ok((last_generation(fleet) > before).then_some(())))
}
