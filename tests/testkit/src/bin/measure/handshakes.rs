//! What the plugin costs a handshake: how many a second a server makes and how long each takes, full
//! and resumed, beside a server without it. Short slices by turns, in pairs, so that what the machine
//! does besides falls on both; the ratio of each pair tells. What a server's threads spent on each
//! handshake is the figure that other work on the machine touches least.
//!
//! The clients run on the same machine and take the larger part of its time, so that the figures
//! are not what a server can do at most. The ratio is not changed by that.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::figures::{median, Figures};
use testkit::fleet;
use testkit::run_dir::RunDir;
use testkit::tickets::{self, Ticket, TlsVersion};
use testkit::{sys, Error, Result};

use crate::group::{Group, System};

/// No rotation meanwhile.
const INTERVAL: Duration = Duration::from_secs(3600);
const START_LIMIT: Duration = Duration::from_secs(30);
/// One slice: some hundred handshakes.
const SLICE: Duration = Duration::from_millis(250);
/// Clients at a time, as many as the smallest machine for this has cores.
const CLIENTS: usize = 2;

/// What one slice gave.
#[derive(Clone, Copy)]
struct Slice {
    per_second: f64,
    /// Median, in milliseconds.
    latency: f64,
    /// Of the server, for each handshake, in microseconds.
    cpu: f64,
}

/// Measures `pairs` slices of each kind of handshake with each system.
pub fn measure(
    systems: &[System],
    plugin: &Path,
    size: usize,
    pairs: usize,
    figures: &mut Figures,
) -> Result<()> {
    let host = systems.contains(&System::StekShare).then_some(System::HostScope);
    let systems: Vec<System> = systems.iter().copied().chain(host).collect();
    let dir = RunDir::new("measure")?;
    let mut groups = Vec::new();
    for system in &systems {
        let home = dir.join(&format!("{system:?}"));
        std::fs::create_dir_all(&home)?;
        let mut group = Group::prepare(*system, plugin, size, INTERVAL, &home)?;
        group.start_nursed()?;
        if matches!(system, System::StekShare | System::HostScope) {
            fleet::wait_one_key(&group.https(), None, START_LIMIT)?;
        }
        groups.push(group);
    }
    for version in TlsVersion::ALL {
        for resumed in [false, true] {
            let mut slices: Vec<Vec<Slice>> = vec![Vec::new(); groups.len()];
            for pair in 0..pairs {
                // Who comes first changes, lest the first one always has the colder caches.
                for turn in 0..groups.len() {
                    let index = (pair + turn) % groups.len();
                    slices[index].push(slice(&groups[index], version, resumed)?);
                }
            }
            let what = if resumed { "resumed" } else { "full" };
            report(&systems, &slices, &format!("handshakes, {version}, {what}"), figures);
        }
    }
    dir.done()
}

fn report(systems: &[System], slices: &[Vec<Slice>], name: &str, figures: &mut Figures) {
    let plain = systems.iter().position(|system| *system == System::Plain);
    for (system, own) in systems.iter().zip(slices) {
        let figures = figures.of(system.name());
        let of = |part: fn(&Slice) -> f64| own.iter().map(part).collect::<Vec<f64>>();
        figures.add_spread(&format!("{name}: throughput"), &of(|slice| slice.per_second), "/s");
        figures.add_spread(&format!("{name}: latency"), &of(|slice| slice.latency), "ms");
        figures.add_spread(
            &format!("{name}: server's processor time"),
            &of(|slice| slice.cpu),
            "us",
        );
        let Some(plain) = plain.and_then(|plain| slices.get(plain)) else { continue };
        if *system != System::Plain {
            let ratio = |of: fn(&Slice) -> f64| {
                own.iter().zip(plain).map(|(own, plain)| of(own) / of(plain)).collect::<Vec<f64>>()
            };
            let throughput = ratio(|slice| slice.per_second);
            figures.add_spread(&format!("{name}: throughput, ratio to plain"), &throughput, "x");
            let cpu = ratio(|slice| slice.cpu);
            let what = format!("{name}: server's processor time, ratio to plain");
            figures.add_spread(&what, &cpu, "x");
            let latency = ratio(|slice| slice.latency);
            figures.add_spread(&format!("{name}: latency, ratio to plain"), &latency, "x");
        }
    }
}

fn slice(group: &Group, version: TlsVersion, resumed: bool) -> Result<Slice> {
    let address = group.https()[0];
    let before = group.usage_of_first()?;
    let ticket = tickets::take(address, version)?;
    let (over, begun) = (AtomicBool::new(false), Instant::now());
    let times: Vec<Result<Vec<f64>>> = thread::scope(|scope| {
        let client = || {
            let mut times = Vec::new();
            while !over.load(Ordering::Relaxed) && begun.elapsed() < SLICE {
                let at = Instant::now();
                one(address, version, resumed.then_some(&ticket))?;
                times.push(at.elapsed().as_secs_f64() * 1e3);
                if sys::interrupted() {
                    return Err(Error::new("interrupted"));
                }
            }
            Ok(times)
        };
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let panicked = |_| Err(Error::new("a thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let span = begun.elapsed().as_secs_f64();
    let times: Vec<f64> = times.into_iter().collect::<Result<Vec<_>>>()?.concat();
    let used = group.usage_of_first()?.cpu.saturating_sub(before.cpu);
    // The ticket took a handshake too.
    let cpu = used.as_secs_f64() * 1e6 / (times.len() + 1) as f64;
    Ok(Slice { per_second: times.len() as f64 / span, latency: median(&times), cpu })
}

fn one(address: SocketAddr, version: TlsVersion, ticket: Option<&Ticket>) -> Result<()> {
    let Some(ticket) = ticket else { return tickets::take(address, version).map(drop) };
    if tickets::offer(address, ticket)?.resumed {
        Ok(())
    } else {
        Err(Error::new(format!("{address} did not resume its own ticket")))
    }
}
