//! A server list that changes under load.

use std::fs;
use std::time::Duration;

use testkit::fleet::{self, Fleet, Plan};
use testkit::load::{self, Load};
use testkit::run_dir::RunDir;
use testkit::{ports, wait, Error, Result};

use crate::stage::{self, send, turn, wait_generation_above, wait_line, PATIENCE};

/// The list of server ids 1 to `count`.
fn list(fleet: &Fleet, count: usize) -> String {
    let entry = |(id, port): (usize, &u16)| {
        format!("- server_id: {id}\n  address: 127.0.0.1\n  port: {port}\n")
    };
    (1..).zip(&fleet.raft_ports).take(count).map(entry).collect()
}

/// Gives a list to the files of these servers, as an operator does before one of them reloads.
fn distribute(fleet: &Fleet, to: std::ops::Range<usize>, list: &str) -> Result<()> {
    to.into_iter().try_for_each(|index| give(fleet, index, list))
}

/// Gives a list to one server's file.
fn give(fleet: &Fleet, index: usize, list: &str) -> Result<()> {
    Ok(fs::write(fleet.servers[index].etc().join("server_list.yaml"), list)?)
}

#[test]
fn three_become_five_and_three_again_without_a_miss() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("reload-list")?;
    let plan = Plan::new(5, &stage::plugin()?, Duration::from_secs(3)).manager();
    let mut fleet = plan.prepare(dir.path())?;
    let (three, five) = (list(&fleet, 3), list(&fleet, 5));
    for index in 0..3 {
        give(&fleet, index, &three)?;
        fleet.servers[index].start()?;
    }
    fleet.servers.iter_mut().take(3).try_for_each(testkit::ats::Ats::wait_ready)?;
    let all = fleet.https();
    fleet::wait_one_key(&all[..3], None, PATIENCE)?;
    let load = Load::start(&all, load::Plan::default())?;
    (3..5).for_each(|index| load.set_up(index, false));

    grow(&mut fleet, &load, &five)?;
    wrong_lists_change_nothing(&fleet, &five)?;
    shrink(&mut fleet, &load, &three)?;

    for ats in &fleet.servers[..3] {
        let diags = ats.diags();
        assert!(!diags.contains("server_list_file differs"), "{diags}");
    }
    let report = load.stop();
    println!("{report}");
    assert_eq!(report.missed, 0, "{report}");
    assert!(report.offers > 100, "too little load: {report}");
    dir.done()
}

fn grow(fleet: &mut Fleet, load: &Load, five: &str) -> Result<()> {
    for index in 3..5 {
        fleet.servers[index].start()?;
    }
    for index in 3..5 {
        fleet.servers[index].wait_ready()?;
    }
    give(fleet, 1, five)?;
    let line = send(&fleet.servers[1], "reload", "the group did not take the new list")?;
    assert!(line.contains("servers 1 and 3 do not have this list yet"), "{line}");
    distribute(fleet, 0..5, five)?;
    send(&fleet.servers[1], "reload", "the group's server list, version 2 now")?;
    joined(fleet)?;
    (3..5).for_each(|index| load.set_up(index, true));
    let now = stage::generation(&fleet.servers[0]).unwrap_or_default();
    wait_generation_above(&fleet.servers[4], now + 1)?;
    Ok(())
}

/// Waits until each new peer holds the group's keys and has seen a rotation with the others, after
/// which the leader waits for it as for any other.
fn joined(fleet: &Fleet) -> Result<()> {
    for ats in &fleet.servers[3..5] {
        let first = wait::until(PATIENCE, "the group's keys", || Ok(stage::generation(ats)))?;
        wait_generation_above(ats, first)?;
    }
    fleet::wait_one_key(&fleet.https(), None, PATIENCE).map(drop)
}

fn wrong_lists_change_nothing(fleet: &Fleet, five: &str) -> Result<()> {
    let ats = &fleet.servers[1];
    let [one, other, third] = ports::take_many(3)?[..] else {
        return Err(Error::new("three ports were asked for"));
    };
    // Of these servers only this one is there.
    let absent: String = [(1, one), (8, other), (9, third)]
        .iter()
        .map(|(id, port)| format!("- server_id: {id}\n  address: 127.0.0.1\n  port: {port}\n"))
        .collect();
    let own = list(fleet, 2).lines().skip(3).fold(String::new(), |text, line| text + line + "\n");
    give(fleet, 1, &(own + &absent))?;
    let line = send(ats, "reload", "the group did not take the new list")?;
    assert!(line.contains("servers 8 and 9") && line.contains("nothing was changed"), "{line}");
    // A list without this server.
    give(fleet, 1, &absent)?;
    let from = ats.diags().len();
    send(ats, "reload", "reload: nothing was changed")?;
    wait_line(ats, from, "is not in the list")?;
    give(fleet, 1, five)?;
    send(ats, "reload", "reload: done; no changes")?;
    let now = stage::generation(ats).unwrap_or_default();
    wait_generation_above(&fleet.servers[4], now)?;
    Ok(())
}

fn shrink(fleet: &mut Fleet, load: &Load, three: &str) -> Result<()> {
    // The two that go need not have it.
    distribute(fleet, 0..3, three)?;
    // Clients go first, as with any server that is taken out of service.
    (3..5).for_each(|index| load.set_up(index, false));
    send(&fleet.servers[1], "reload", "the group's server list, version 3 now")?;
    (3..5).for_each(|index| fleet.servers[index].kill9());
    let now = stage::generation(&fleet.servers[0]).unwrap_or_default();
    for ats in &fleet.servers[..3] {
        wait_generation_above(ats, now + 1)?;
    }
    Ok(())
}
