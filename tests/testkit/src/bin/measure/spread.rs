//! How far apart the servers change their key: from the first to the last server's use of it.
//!
//! Seen in two ways: by clients, from the key names of TLS 1.2 tickets that are taken on every server
//! all the time; and by the servers' own log lines, to the millisecond.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::figures::Figures;
use testkit::fleet::{self, Fleet};
use testkit::load::{self, Load};
use testkit::logs;
use testkit::run_dir::RunDir;
use testkit::tickets::{self, KeyName};
use testkit::{Context, Error, Result};

use crate::group::{Group, System};

/// `key_update_interval`: short, so that many rotations take little time.
const INTERVAL: Duration = Duration::from_secs(3);
/// Offers a second while rotations are watched.
const OFFERS: u32 = 30;
/// Until all servers have a first key.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at a server when no rotation is due: a key is not to change unseen.
const SLOW: Duration = Duration::from_millis(100);
/// Between two looks around a rotation. Less would keep both cores busy with the looking alone.
const FAST: Duration = Duration::from_millis(3);
/// So long before a rotation is due the looks become fast.
const AHEAD: Duration = Duration::from_millis(150);
/// Between two orders, so that every server has the key before the next one comes.
const ORDER_PAUSE: Duration = Duration::from_millis(150);

/// A server was seen to use a new key.
#[derive(Clone, Copy)]
struct Change {
    to: KeyName,
    seen: Instant,
}

/// How many rotations are watched.
#[derive(Clone, Copy)]
pub struct Rotations {
    /// By the interval, by clients and by logs.
    pub timed: usize,
    /// By order, one after another, by logs alone: so many that the slowest in a hundred shows.
    pub ordered: usize,
}

/// Watches rotations of `size` servers of each system, with clients that take tickets on one server and
/// offer them to another.
pub fn measure(
    systems: &[System],
    plugin: &Path,
    size: usize,
    rotations: Rotations,
    figures: &mut Figures,
) -> Result<()> {
    for system in systems.iter().filter(|system| **system != System::Plain) {
        measure_one(*system, plugin, size, rotations, figures.of(system.name()))?;
    }
    Ok(())
}

fn measure_one(
    system: System,
    plugin: &Path,
    size: usize,
    rotations: Rotations,
    figures: &mut Figures,
) -> Result<()> {
    let Rotations { timed: rotations, ordered } = rotations;
    let dir = RunDir::new("measure")?;
    let mut group = Group::prepare(system, plugin, size, INTERVAL, dir.path())?;
    group.start_nursed()?;
    let servers = group.https();
    fleet::wait_one_key(&servers, None, START_LIMIT)?;
    let plan = load::Plan { per_second: OFFERS, ..load::Plan::default() };
    let load = Load::start(&servers, plan)?;
    // One more: the first may have begun before all watchers looked.
    let changes = watch_all(&servers, rotations + 1)?;
    let report = load.stop();
    let keys: Vec<KeyName> = changes.first().into_iter().flatten().map(|c| c.to).collect();
    let seen: Vec<Duration> = keys.iter().skip(1).filter_map(|key| apart(&changes, key)).collect();
    let name = |what: &str| format!("rotation of {size}: {what}");
    figures.add_times(&name("spread by tickets"), &seen);
    figures.add(
        name(&format!("of {rotations} seen on all servers")),
        seen.len() as f64,
        "rotations",
    );
    let missed = report.missed as f64 * 100.0 / (report.offers as f64).max(1.0);
    figures.add(name("fresh tickets that another server did not resume"), missed, "%");
    figures.add(name("offers"), report.offers as f64, "tickets");
    if let Some(fleet) = group.fleet() {
        if seen.len() < rotations {
            return Err(Error::new(format!("only {} rotations were seen", seen.len())));
        }
        by_logs(fleet, size, rotations, figures)?;
        if ordered > 0 {
            let load = Load::start(&servers, plan)?;
            by_order(fleet, &plugin.with_file_name("stekctl"), ordered, figures)?;
            let report = load.stop();
            let missed = report.missed as f64 * 100.0 / (report.offers as f64).max(1.0);
            figures.add(name("fresh tickets not resumed, rotations by order"), missed, "%");
        }
    }
    dir.done()
}

/// Gives `ordered` orders to rotate by `stekctl`, to one server after the other, and tells from the
/// servers' logs within what time all but one in a hundred of these rotations came to all servers.
fn by_order(fleet: &Fleet, stekctl: &Path, ordered: usize, figures: &mut Figures) -> Result<()> {
    let size = fleet.servers.len();
    let newest = |rotations: &[logs::Rotation]| rotations.last().map_or(0, |last| last.generation);
    let before = newest(&logs::rotations(&logs::read(fleet)));
    for ats in fleet.servers.iter().cycle().take(ordered) {
        let mut command = Command::new(stekctl);
        command.arg("-c").arg(ats.etc().join("server_conf.yaml")).arg("rotate");
        let said = command.output().context(stekctl.display())?;
        if !said.status.success() {
            let words = String::from_utf8_lossy(&said.stderr).into_owned();
            return Err(Error::new(format!("stekctl rotate: {words}")));
        }
        thread::sleep(ORDER_PAUSE);
        if testkit::sys::interrupted() {
            return Err(Error::new("interrupted"));
        }
    }
    let mut written = logs::rotations(&logs::read(fleet));
    written.retain(|rotation| rotation.generation > before);
    if written.len() < ordered {
        return Err(Error::new(format!("of {ordered} orders {} were done", written.len())));
    }
    let name = |what: &str| format!("rotation of {size}: {what}, 99 of 100 by order within");
    let all = |rotation: &logs::Rotation| rotation.uses.len() == size;
    for (what, time) in [
        ("spread by logs", logs::Rotation::spread as fn(&logs::Rotation) -> Option<Duration>),
        ("staging to the last server's use", logs::Rotation::handover),
    ] {
        // One that some server never used comes last, and shows if it is not the only one.
        let times = written.iter().map(|rotation| match time(rotation) {
            Some(time) if all(rotation) => time.as_secs_f64() * 1e3,
            _ => f64::NAN,
        });
        figures.add(name(what), percentile(times.collect(), 99), "ms");
    }
    figures.add(format!("rotation of {size}: by order"), written.len() as f64, "rotations");
    Ok(())
}

/// Below or at which so many of a hundred values are; those that are NaN count as the greatest.
fn percentile(mut values: Vec<f64>, part: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * part).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The same by the log lines of this plugin.
fn by_logs(fleet: &Fleet, size: usize, rotations: usize, figures: &mut Figures) -> Result<()> {
    let written: Vec<logs::Rotation> = logs::rotations(&logs::read(fleet));
    // The first is the leader's initial key, which it used before anybody else could.
    let written: Vec<&logs::Rotation> =
        written.iter().skip(1).filter(|rotation| rotation.uses.len() == size).collect();
    let written = written
        .get(..rotations)
        .ok_or_else(|| Error::new(format!("only {} rotations stand in the logs", written.len())))?;
    let times = |time: fn(&logs::Rotation) -> Option<Duration>| -> Vec<Duration> {
        written.iter().filter_map(|rotation| time(rotation)).collect()
    };
    let name = |what: &str| format!("rotation of {size}: {what}");
    figures.add_times(&name("spread by logs"), &times(logs::Rotation::spread));
    figures.add_times(
        &name("staging to the last server's use, by logs"),
        &times(logs::Rotation::handover),
    );
    Ok(())
}

/// From the first to the last server's use of `key`; none unless all servers used it.
fn apart(changes: &[Vec<Change>], key: &KeyName) -> Option<Duration> {
    let seen: Option<Vec<Instant>> = changes
        .iter()
        .map(|own| own.iter().find(|change| change.to == *key).map(|change| change.seen))
        .collect();
    let seen = seen?;
    Some(*seen.iter().max()? - *seen.iter().min()?)
}

/// Watches every server until each has changed its key `wanted` times, or will not any more.
fn watch_all(servers: &[SocketAddr], wanted: usize) -> Result<Vec<Vec<Change>>> {
    let failed = AtomicBool::new(false);
    let watch = |address: SocketAddr| {
        let outcome = watch_server(address, wanted, &failed);
        failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        outcome
    };
    let watch = &watch;
    thread::scope(|scope| {
        let threads: Vec<_> =
            servers.iter().map(|address| scope.spawn(move || watch(*address))).collect();
        let panicked = |_| Err(Error::new("a thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}

fn watch_server(address: SocketAddr, wanted: usize, failed: &AtomicBool) -> Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    let mut key = tickets::key_name(address)?;
    let limit = INTERVAL * u32::try_from(wanted + 3).unwrap_or(u32::MAX);
    let begun = Instant::now();
    while changes.len() < wanted && !failed.load(Ordering::Relaxed) {
        let due = changes.last().map(|last| last.seen + INTERVAL - AHEAD);
        let near = due.is_some_and(|due| Instant::now() >= due);
        thread::sleep(if near { FAST } else { SLOW });
        let name = tickets::key_name(address)?;
        if name != key {
            key = name;
            changes.push(Change { to: name, seen: Instant::now() });
        }
        if testkit::sys::interrupted() {
            return Err(Error::new("interrupted"));
        }
        if begun.elapsed() > limit {
            break;
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_hundred_may_be_slower_or_missing() {
        let of_hundred = |slow: &[f64]| {
            let mut all = vec![1.0; 100 - slow.len()];
            all.extend(slow);
            percentile(all, 99)
        };
        assert!((of_hundred(&[9.0]) - 1.0).abs() < 1e-9);
        assert!((of_hundred(&[9.0, 8.0]) - 8.0).abs() < 1e-9);
        assert!((of_hundred(&[f64::NAN]) - 1.0).abs() < 1e-9);
        assert!(of_hundred(&[f64::NAN, f64::NAN]).is_nan());
        assert!(percentile(Vec::new(), 99).is_nan());
    }
}
