//! `startup_wait`: whether a server serves before it has the group's keys.

use std::time::Duration;

use testkit::fleet::{self, Fleet, Plan};
use testkit::run_dir::RunDir;
use testkit::tickets::{self, Ticket, TlsVersion};
use testkit::{wait, Result};

use crate::stage::{plugin, reserve, PATIENCE};

/// No rotation disturbs these tests.
const INTERVAL: Duration = Duration::from_secs(3600);

/// What the plugin says about its wait, in the debug lines of a server's latest run.
const OUTCOMES: [&str; 4] = [
    " was there after ",
    "no majority after ",
    "the group has its first STEK staged after ",
    "no keys of the group within ",
];

/// The latest line about the wait.
fn outcome(fleet: &Fleet, index: usize) -> Result<String> {
    wait::until(PATIENCE, "a line about startup_wait", || {
        let lines = fleet.servers[index].debug_lines();
        let (_, latest) = lines.rsplit_once("Generate initial STEK succeeded").unwrap_or_default();
        let mut said =
            latest.lines().filter(|line| OUTCOMES.iter().any(|part| line.contains(part)));
        Ok(said.next().map(str::to_owned))
    })
}

fn millis_in(line: &str) -> u64 {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = words.windows(2).find(|pair| pair[1].starts_with("ms")).map(|pair| pair[0]);
    number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no time in {line}"))
}

/// Three servers that agree, with a ticket of the second and one that is offered to nobody else.
fn agreed(dir: &RunDir, startup_wait: &str) -> Result<(Fleet, Ticket)> {
    let plan = Plan::new(3, &plugin(), INTERVAL).option("startup_wait", startup_wait);
    let fleet = plan.start(dir.path())?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let ticket = tickets::take(fleet.servers[1].https(), TlsVersion::V12)?;
    Ok((fleet, ticket))
}

#[test]
fn a_returning_server_serves_its_first_handshake_with_the_groups_keys() -> Result<()> {
    let _reserved = reserve(3);
    let dir = RunDir::new("wait")?;
    let (mut fleet, ticket) = agreed(&dir, "60000")?;
    for index in [0, 2, 0, 2] {
        fleet.servers[index].kill9();
        fleet.servers[index].start()?;
        let offer = fleet.servers[index].wait_first(|address| tickets::offer(address, &ticket))?;
        let line = outcome(&fleet, index)?;
        assert!(offer.resumed, "server {}: a full handshake first; {line}", index + 1);
        assert!(line.contains(OUTCOMES[0]), "{line}");
    }
    dir.done()
}

#[test]
fn a_startup_wait_of_0_is_no_wait() -> Result<()> {
    let _reserved = reserve(3);
    let dir = RunDir::new("no-wait")?;
    let (mut fleet, _) = agreed(&dir, "0")?;
    fleet.servers[2].kill9();
    fleet.servers[2].start()?;
    fleet.servers[2].wait_ready()?;
    let line = outcome(&fleet, 2)?;
    // Any outcome is right that came at once.
    println!("without a wait: {} ms", millis_in(&line));
    assert!(line.contains(OUTCOMES[3]) && millis_in(&line) < 1000, "{line}");
    // They come later, all the same.
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    dir.done()
}

#[test]
fn a_server_whose_peers_are_down_does_not_wait() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("alone")?;
    let plan = Plan::new(3, &plugin(), INTERVAL).option("startup_wait", "60000");
    let mut fleet = plan.prepare(dir.path())?;
    fleet.servers[0].start()?;
    // Gives up after half of the wait.
    fleet.servers[0].wait_ready()?;
    let line = outcome(&fleet, 0)?;
    assert!(line.contains(OUTCOMES[1]), "{line}");
    println!("alone for {} ms", millis_in(&line));
    assert!(millis_in(&line) < 10_000, "{line}");
    dir.done()
}
