//! What idle servers say to each other, or to what they have besides: bytes a second, by what the
//! kernel counts for each connection (TCP's payload, TLS included).

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use testkit::figures::Figures;
use testkit::fleet;
use testkit::run_dir::RunDir;
use testkit::{Context, Error, Result};

use crate::group::{Group, System};

/// No rotation meanwhile.
const INTERVAL: Duration = Duration::from_secs(3600);
const START_LIMIT: Duration = Duration::from_secs(30);
/// What a start leaves to be said has been said after so long.
const SETTLE: Duration = Duration::from_secs(3);
/// One look: some hundred heartbeats.
const SPAN: Duration = Duration::from_secs(10);

/// Looks once at `size` servers of each system that speaks over a network.
pub fn measure(
    systems: &[System],
    plugin: &Path,
    size: usize,
    figures: &mut Figures,
) -> Result<()> {
    for system in systems.iter().filter(|s| [System::StekShare, System::SessionReuse].contains(s)) {
        let dir = RunDir::new("measure")?;
        let mut group = Group::prepare(*system, plugin, size, INTERVAL, dir.path())?;
        group.start_nursed()?;
        fleet::wait_one_key(&group.https(), None, START_LIMIT)?;
        thread::sleep(SETTLE);
        let ports = group.inner_ports();
        let (before, begun) = (said(&ports)?, Instant::now());
        thread::sleep(SPAN);
        let bytes = said(&ports)?.saturating_sub(before) as f64;
        let each = bytes / begun.elapsed().as_secs_f64() / size as f64;
        let name = format!("idle, {size} servers: traffic between servers, for each server");
        figures.of(system.name()).add(name, each, "bytes/s");
        dir.done()?;
    }
    Ok(())
}

/// Bytes sent and received so far by the listening ends of connections to these ports.
fn said(ports: &[u16]) -> Result<u64> {
    let mut sum = 0;
    for port in ports {
        let filter = format!("sport = :{port}");
        let output = Command::new("ss").args(["-tinH", &filter]).output();
        let output = output.context("ss (Debian: iproute2)")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.trim().is_empty() {
            return Err(Error::new(format!("nobody is connected to port {port}")));
        }
        let counts = text.split_whitespace().filter_map(|word| {
            let (name, value) = word.split_once(':')?;
            ["bytes_sent", "bytes_received"].contains(&name).then(|| value.parse::<u64>().ok())?
        });
        sum += counts.sum::<u64>();
    }
    Ok(sum)
}
