//! What a server that was killed and started again knows in its first handshakes, and how soon it is
//! one of all again.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::figures::Figures;
use testkit::fleet;
use testkit::run_dir::RunDir;
use testkit::tickets::{self, Ticket, TlsVersion};
use testkit::{wait, Error, Result};

use crate::cold_start::{all_resume, millis, PAUSE};
use crate::group::{Group, System};

/// Long enough for a restart between two rotations.
const INTERVAL: Duration = Duration::from_secs(4);
/// Until all have one key, or the next.
const LIMIT: Duration = Duration::from_secs(20);

/// What one return gave.
struct Return {
    /// From the start of its process until its first handshake.
    serves: Duration,
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
    let mut returns: Vec<(System, Vec<Return>)> =
        systems.iter().map(|s| (*s, Vec::new())).collect();
    for run in 0..runs {
        for (system, own) in &mut returns {
            let is_rival = !matches!(system, System::StekShare | System::Plain);
            if is_rival && run % 3 != 0 {
                continue;
            }
            let dir = RunDir::new("measure")?;
            let mut group = Group::prepare(*system, plugin, size, INTERVAL, dir.path())?;
            if *system == System::Plain {
                group.start_all()?;
                let all = group.https();
                all.iter().try_for_each(|address| first_handshake(*address).map(drop))?;
                own.push(come_back_alone(&mut group)?);
            } else {
                group.start_nursed()?;
                // A rival whose rotation has stopped has no previous key to lose.
                own.extend(come_back(&mut group)?);
            }
            dir.done()?;
        }
    }
    let name = |what: &str| format!("return of a server of {size}: {what}");
    let of_plain = returns.iter().find(|(system, _)| *system == System::Plain);
    let of_plain: Vec<f64> =
        of_plain.iter().flat_map(|(_, backs)| backs).map(|back| millis(back.serves)).collect();
    for (system, returns) in &returns {
        let figures = figures.of(system.name());
        let serves: Vec<f64> = returns.iter().map(|back| millis(back.serves)).collect();
        figures.add_spread(&name("until it serves"), &serves, "ms");
        if *system == System::Plain {
            continue;
        }
        let share = |of: fn(&Return) -> bool| {
            returns.iter().map(|back| f64::from(u8::from(of(back))) * 100.0).collect::<Vec<_>>()
        };
        let current = name("its first handshake resumes a ticket of the current key");
        figures.add_spread(&current, &share(|back| back.current), "%");
        let previous = name("it resumes a ticket of the previous key");
        figures.add_spread(&previous, &share(|back| back.previous), "%");
        let times = returns.iter().map(|back| back.one_of_all);
        let times: Vec<f64> = times.map(|time| time.map_or(f64::NAN, millis)).collect();
        figures.add_spread(&name("until every ticket resumes everywhere"), &times, "ms");
        if *system == System::StekShare {
            let more: Vec<f64> =
                times.iter().zip(&of_plain).map(|(own, plain)| own - plain).collect();
            figures.add_spread(&name("the same minus a plain server's return"), &more, "ms");
        }
    }
    Ok(())
}

fn first_handshake(address: SocketAddr) -> Result<Ticket> {
    wait::until_every(PAUSE, LIMIT, "a first handshake", || {
        Ok(tickets::take(address, TlsVersion::V12).ok())
    })
}

/// A server that shares nothing has nothing to learn.
fn come_back_alone(group: &mut Group) -> Result<Return> {
    group.kill(0);
    group.start(0)?;
    let begun = Instant::now();
    first_handshake(group.https()[0])?;
    Ok(Return { serves: begun.elapsed(), current: false, previous: false, one_of_all: None })
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
    let current = wait::until_every(PAUSE, LIMIT, "a first handshake", || {
        Ok(tickets::offer(address, &new).ok().map(|offer| offer.resumed))
    })?;
    let serves = begun.elapsed();
    let previous = tickets::offer(address, &old)?.resumed;
    if begun.elapsed() > INTERVAL {
        return Err(Error::new("the restart took longer than an interval"));
    }
    let one_of_all = wait::until_every(PAUSE, LIMIT, "one key again", || {
        let at = begun.elapsed();
        Ok(all_resume(&all)?.then_some(at))
    });
    Ok(Some(Return { serves, current, previous, one_of_all: one_of_all.ok() }))
}
