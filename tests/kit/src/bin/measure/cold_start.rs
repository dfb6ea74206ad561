//! From nothing to one key: all boxes are started at once, and time counts from the start of the
//! last process.

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use kit::ats::Ats;
use kit::figures::Figures;
use kit::fleet::{Fleet, Plan};
use kit::run_dir::RunDir;
use kit::tickets::{self, Matrix, Ticket, TlsVersion};
use kit::{wait, Error, Result};

/// No rotation while a start is measured.
const INTERVAL: Duration = Duration::from_secs(3600);
/// A fleet that has no key after so long has failed.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at a box that does not serve yet: what is measured is a multiple of it.
const PAUSE: Duration = Duration::from_millis(5);

/// What one start of a fleet with the plugin gave.
struct Start {
    /// Until the last box made its first handshake.
    serves: Duration,
    /// Until tickets that were taken from then on resumed everywhere.
    one_key: Duration,
    /// How many of the boxes' very first tickets did not resume somewhere, later on.
    lost: usize,
}

/// Measures `runs` starts of `size` boxes, with and without the plugin in turn.
pub fn measure(plugin: &Path, size: usize, runs: usize, figures: &mut Figures) -> Result<()> {
    let (mut plain, mut starts) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        plain.push(start_plain(plugin, size)?);
        starts.push(start_with_plugin(plugin, size)?);
    }
    let name = |what: &str| format!("cold start of {size}: {what}");
    let times = |time: fn(&Start) -> Duration| starts.iter().map(time).collect::<Vec<_>>();
    figures.add_times(&name("plain, until all serve"), &plain);
    figures.add_times(&name("plugin, until all serve"), &times(|start| start.serves));
    figures.add_times(&name("every ticket resumes everywhere"), &times(|start| start.one_key));
    let lost = starts.iter().map(|start| start.lost).sum::<usize>() as f64;
    let first = starts.len() * size;
    figures.add(name(&format!("of {first} first tickets did not resume")), lost, "tickets");
    Ok(())
}

fn start_plain(plugin: &Path, size: usize) -> Result<Duration> {
    let dir = RunDir::new("measure")?;
    let mut fleet = Plan::new(size, plugin, INTERVAL).plain().prepare(dir.path())?;
    let begun = start_all(&mut fleet)?;
    first_tickets(&mut fleet)?;
    let serves = begun.elapsed();
    dir.done()?;
    Ok(serves)
}

fn start_with_plugin(plugin: &Path, size: usize) -> Result<Start> {
    let dir = RunDir::new("measure")?;
    let mut fleet = Plan::new(size, plugin, INTERVAL).prepare(dir.path())?;
    let begun = start_all(&mut fleet)?;
    let first = first_tickets(&mut fleet)?;
    let serves = begun.elapsed();
    let boxes = fleet.https();
    let one_key = wait::until(LIMIT, "every ticket to resume everywhere", || {
        let began = begun.elapsed();
        Ok(all_resume(&boxes)?.then_some(began))
    })?;
    let resumed = |ticket: &&Ticket| {
        tickets::offer_all(&boxes, ticket.version, &[(*ticket).clone()]).is_full()
    };
    let lost = first.len() - first.iter().filter(resumed).count();
    dir.done()?;
    Ok(Start { serves, one_key, lost })
}

/// Starts all and returns when the last process began.
fn start_all(fleet: &mut Fleet) -> Result<Instant> {
    fleet.boxes.iter_mut().try_for_each(Ats::start)?;
    Ok(Instant::now())
}

/// The first ticket that each box gives, as soon as it serves at all.
fn first_tickets(fleet: &mut Fleet) -> Result<Vec<Ticket>> {
    thread::scope(|scope| {
        let first = |ats: &mut Ats| {
            let address = ats.https();
            wait::until_every(PAUSE, LIMIT, "a first handshake", || {
                match (ats.is_running(), tickets::take(address, TlsVersion::V12)) {
                    (false, _) => Err(Error::new("a server has ended")),
                    (true, taken) => Ok(taken.ok()),
                }
            })
        };
        let threads: Vec<_> =
            fleet.boxes.iter_mut().map(|ats| scope.spawn(move || first(ats))).collect();
        let panicked = |_| Err(Error::new("a thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}

/// Whether fresh tickets of all boxes, of both versions, resume on all of them. The cheap look at
/// the keys' names comes first, so that the boxes have time for their own work.
fn all_resume(boxes: &[SocketAddr]) -> Result<bool> {
    let names: Vec<_> =
        boxes.iter().map(|address| tickets::key_name(*address)).collect::<Result<_>>()?;
    if names.windows(2).any(|pair| pair[0] != pair[1]) {
        return Ok(false);
    }
    let matrices: Vec<Matrix> =
        TlsVersion::ALL.iter().map(|v| tickets::matrix(boxes, *v)).collect::<Result<_>>()?;
    Ok(matrices.iter().all(Matrix::is_full))
}
