//! From nothing to one key: all servers are started at once, and time counts from the start of the
//! last process.

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use testkit::figures::Figures;
use testkit::run_dir::RunDir;
use testkit::tickets::{self, Matrix, Ticket, TlsVersion};
use testkit::{wait, Error, Result};

use crate::group::{Group, System};

/// No rotation while a start is measured.
const INTERVAL: Duration = Duration::from_secs(3600);
/// A group that has no key after so long has failed.
const LIMIT: Duration = Duration::from_secs(40);
/// Between two looks at a server that does not serve yet: what is measured is a multiple of it.
pub const PAUSE: Duration = Duration::from_millis(5);

/// What one start of a group gave.
struct Start {
    /// Until the last server made its first handshake.
    serves: Duration,
    /// Until tickets that were taken from then on resumed everywhere; none if that did not come.
    one_key: Option<Duration>,
    /// How many of the servers' very first tickets did not resume somewhere, later on.
    lost: usize,
}

/// Measures `runs` starts of `size` servers of each system, in turn.
pub fn measure(
    systems: &[System],
    plugin: &Path,
    size: usize,
    runs: usize,
    figures: &mut Figures,
) -> Result<()> {
    let mut starts: Vec<(System, Vec<Start>)> = systems.iter().map(|s| (*s, Vec::new())).collect();
    for run in 0..runs {
        for (system, own) in &mut starts {
            // One takes half a minute, or never comes to anything, as a rule; the other has great spread.
            let every = match system {
                System::SessionReuse => 6,
                System::Caddy => 2,
                _ => 1,
            };
            if run % every != 0 {
                continue;
            }
            own.push(start(*system, plugin, size)?);
        }
    }
    let name = |what: &str| format!("cold start of {size}: {what}");
    let of_plain = starts.iter().find(|(system, _)| *system == System::Plain);
    let of_plain: Vec<f64> =
        of_plain.iter().flat_map(|(_, starts)| starts).map(|start| millis(start.serves)).collect();
    for (system, starts) in &starts {
        let figures = figures.of(system.name());
        let serves: Vec<Duration> = starts.iter().map(|start| start.serves).collect();
        figures.add_times(&name("until all serve"), &serves);
        if *system == System::Plain {
            continue;
        }
        let one_key = starts.iter().map(|start| start.one_key);
        let one_key: Vec<f64> = one_key.map(|time| time.map_or(f64::NAN, millis)).collect();
        figures.add_spread(&name("every ticket resumes everywhere"), &one_key, "ms");
        if *system == System::StekShare {
            let more: Vec<f64> =
                one_key.iter().zip(&of_plain).map(|(own, plain)| own - plain).collect();
            figures.add_spread(&name("the same minus the plain start beside it"), &more, "ms");
        }
        let lost: Vec<f64> =
            starts.iter().map(|start| start.lost as f64 * 100.0 / size as f64).collect();
        figures.add_spread(&name("first tickets that did not resume"), &lost, "%");
    }
    Ok(())
}

/// In milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn start(system: System, plugin: &Path, size: usize) -> Result<Start> {
    let dir = RunDir::new("measure")?;
    let mut group = Group::prepare(system, plugin, size, INTERVAL, dir.path())?;
    let begun = group.start_all()?;
    let servers = group.https();
    let first = first_tickets(&servers)?;
    let serves = begun.elapsed();
    if system == System::Plain {
        dir.done()?;
        return Ok(Start { serves, one_key: None, lost: 0 });
    }
    let one_key = wait::until(LIMIT, "every ticket to resume everywhere", || {
        let began = begun.elapsed();
        Ok(all_resume(&servers)?.then_some(began))
    });
    // Rivals may fail; this plugin may not.
    let one_key = match system {
        System::StekShare | System::HostScope | System::SharedIds => Some(one_key?),
        _ => one_key.ok(),
    };
    let resumed = |ticket: &&Ticket| {
        tickets::offer_all(&servers, ticket.version, &[(*ticket).clone()]).is_full()
    };
    let lost = first.len() - first.iter().filter(resumed).count();
    dir.done()?;
    Ok(Start { serves, one_key, lost })
}

/// The first ticket that each server gives, as soon as it serves at all.
fn first_tickets(servers: &[SocketAddr]) -> Result<Vec<Ticket>> {
    let first = |address: &SocketAddr| {
        wait::until_every(PAUSE, LIMIT, "a first handshake", || {
            Ok(tickets::take(*address, TlsVersion::V12).ok())
        })
    };
    let first = &first;
    thread::scope(|scope| {
        let threads: Vec<_> =
            servers.iter().map(|address| scope.spawn(move || first(address))).collect();
        let panicked = |_| Err(Error::new("a thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}

/// Whether fresh tickets of all servers, of both versions, resume on all of them. The cheap look at
/// the keys' names comes first, so that the servers have time for their own work.
pub fn all_resume(servers: &[SocketAddr]) -> Result<bool> {
    let names: Vec<_> =
        servers.iter().map(|address| tickets::key_name(*address)).collect::<Result<_>>()?;
    if names.windows(2).any(|pair| pair[0] != pair[1]) {
        return Ok(false);
    }
    let matrices: Vec<Matrix> =
        TlsVersion::ALL.iter().map(|v| tickets::matrix(servers, *v)).collect::<Result<_>>()?;
    Ok(matrices.iter().all(Matrix::is_full))
}
