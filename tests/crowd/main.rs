//! A group so large that not everybody asks everybody: a cluster of nodes as in `tests/cluster`,
//! in a program of its own, because it would take the machine from the tests beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

#[path = "../cluster/fleet.rs"]
mod fleet;
#[path = "../cluster/relay.rs"]
mod relay;

use stek_share::core::config::Settings;
use stek_share::core::crowd::{HUBS, SMALL};

use crate::fleet::{wait_for, Fleet};

mod relayed;

fn small_boxes(settings: &mut Settings) {
    settings.workers = 1;
}

/// Connections that these boxes let in since they were started.
fn accepted(fleet: &Fleet, but: u32) -> u64 {
    let others = fleet.boxes.iter().filter(|(id, _)| **id != but);
    others.map(|(_, running)| running.node.status().accepted).sum()
}

#[test]
fn a_large_group_becomes_one_and_takes_boxes_back_without_asking_everybody() {
    let count = SMALL as u32 + 1;
    let hubs = HUBS as u32;
    let mut fleet = Fleet::running(count, small_boxes);
    fleet.wait_until_one();
    let history = fleet.boxes[&count].report().history;
    let dialled = accepted(&fleet, 0) / u64::from(count);
    assert!(dialled < u64::from(count) / 2, "{dialled} connections for each box: who asks all?");

    // It asks the hubs, two others and the leader; the leader dials it, and may do so twice.
    let leader = fleet.wait_for_leader();
    let away = if leader == count { count - 1 } else { count };
    fleet.kill(away);
    let before = accepted(&fleet, away);
    fleet.start(away);
    fleet.wait_until_one();
    let dialled = accepted(&fleet, away) - before + fleet.boxes[&away].node.status().accepted;
    assert!(dialled <= u64::from(hubs) + 7, "{dialled} connections for one box");

    // Without hubs, and without the leader that everybody knew.
    let leader = fleet.wait_for_leader();
    let gone: Vec<u32> = (1..=hubs).chain((leader > hubs).then_some(leader)).collect();
    for id in &gone {
        fleet.kill(*id);
    }
    let led = |fleet: &Fleet| fleet.leader().is_some_and(|id| !gone.contains(&id));
    wait_for("a new leader", || led(&fleet), || fleet.describe());
    let away = (hubs + 1..count).find(|id| !gone.contains(id) && fleet.leader() != Some(*id));
    let away = away.expect("most of them follow");
    fleet.kill(away);
    fleet.start(away);
    fleet.wait_until_one();
    assert_eq!(fleet.boxes[&away].report().history, history, "it joined those that remember");

    for id in gone {
        fleet.start(id);
    }
    fleet.wait_until_one();
    assert!(fleet.boxes.values().all(|b| b.report().history == history));
}
