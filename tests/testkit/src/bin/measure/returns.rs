//! What a server that was killed and started again knows in its first handshakes, and how soon it is
//! one of all again.

use std::path::Path;
use std::time::{Duration, Instant};

use testkit::figures::Figures;
use testkit::fleet;
use testkit::run_dir::RunDir;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Error, Result};

use crate::group::{Group, System};

/// Long enough for a restart between two rotations.
const INTERVAL: Duration = Duration::from_secs(4);
/// Until all have one key, or the next.
const LIMIT: Duration = Duration::from_secs(20);

/// What one return gave.
struct Return {
    current: bool,
    previous: bool,
    /// From the start of its process until tickets of all resume on all.
    one_of_all: Option<Duration>,
}

/// Restarts a server `runs` times in groups of `size` of each system.
pub fn measure(
    systems: &[System],
    plugin: &Path,
    size: usize,
    runs: usize,
    figures: &mut Figures,
) -> Result<()> {
    for system in systems.iter().filter(|system| **system != System::Plain) {
        let mut returns = Vec::new();
        for _ in 0..runs {
            let dir = RunDir::new("measure")?;
            let mut group = Group::prepare(*system, plugin, size, INTERVAL, dir.path())?;
            group.start_nursed()?;
            // A rival whose rotation has stopped has no previous key to lose.
            returns.extend(come_back(&mut group)?);
            dir.done()?;
        }
        let figures = figures.of(system.name());
        let share = |of: fn(&Return) -> bool| {
            returns.iter().map(|back| f64::from(u8::from(of(back))) * 100.0).collect::<Vec<_>>()
        };
        let name = |what: &str| format!("return of a server of {size}: {what}");
        let current = name("its first handshake resumes a ticket of the current key");
        figures.add_spread(&current, &share(|back| back.current), "%");
        let previous = name("it resumes a ticket of the previous key");
        figures.add_spread(&previous, &share(|back| back.previous), "%");
        let times = returns.iter().map(|back| back.one_of_all);
        let times: Vec<f64> =
            times.map(|time| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)).collect();
        figures.add_spread(&name("until every ticket resumes everywhere"), &times, "ms");
    }
    Ok(())
}

/// Nothing if the group makes no new keys.
fn come_back(group: &mut Group) -> Result<Option<Return>> {
    let all = group.https();
    let other = group.key_maker();
    let victim = (other + 1) % all.len();
    let first = fleet::wait_one_key(&all, None, LIMIT)?;
    let old = tickets::take(all[other], TlsVersion::V12)?;
    let next = fleet::wait_one_key(&all, Some(&first), LIMIT);
    if next.is_err() {
        return Ok(None);
    }
    let new = tickets::take(all[other], TlsVersion::V12)?;
    group.kill(victim);
    group.start(victim)?;
    let begun = Instant::now();
    let address = all[victim];
    let current = wait::until(LIMIT, "a first handshake", || {
        Ok(tickets::offer(address, &new).ok().map(|offer| offer.resumed))
    })?;
    let previous = tickets::offer(address, &old)?.resumed;
    if begun.elapsed() > INTERVAL {
        return Err(Error::new("the restart took longer than an interval"));
    }
    let one_of_all = wait::until(LIMIT, "one key again", || {
        let at = begun.elapsed();
        Ok(crate::cold_start::all_resume(&all)?.then_some(at))
    });
    Ok(Some(Return { current, previous, one_of_all: one_of_all.ok() }))
}
