//! A group so large that not everybody asks everybody: a cluster of nodes as in `tests/cluster`,
//! in a program of its own, because it would take the machine from the tests beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

#[path = "../cluster/fleet.rs"]
mod fleet;
#[path = "../cluster/relay.rs"]
mod relay;

use stek_share::core::config::Settings;
use stek_share::core::large_cluster::{SEED_NODES, SMALL};

use crate::fleet::{wait_for, Fleet};

mod relayed;

fn small_servers(settings: &mut Settings) {
    settings.workers = 1;
}

/// Connections that these servers let in since they were started.
fn accepted(fleet: &Fleet, but: u32) -> u64 {
    let others = fleet.servers.iter().filter(|(id, _)| **id != but);
    others.map(|(_, running)| running.node.status().accepted).sum()
}

#[test]
fn a_large_group_becomes_one_and_takes_servers_back_without_asking_everybody() {
    let count = SMALL as u32 + 1;
    let seed_nodes = SEED_NODES as u32;
    let mut fleet = Fleet::running(count, small_servers);
    fleet.wait_until_one();
    let cluster_id = fleet.servers[&count].report().cluster_id;
    let dialled = accepted(&fleet, 0) / u64::from(count);
    assert!(dialled < u64::from(count) / 2, "{dialled} connections for each server: who asks all?");

    // It asks the seed nodes, two others and the leader; the leader dials it, and may do so twice.
    let leader = fleet.wait_for_leader();
    let away = if leader == count { count - 1 } else { count };
    fleet.kill(away);
    let before = accepted(&fleet, away);
    fleet.start(away);
    fleet.wait_until_one();
    let dialled = accepted(&fleet, away) - before + fleet.servers[&away].node.status().accepted;
    assert!(dialled <= u64::from(seed_nodes) + 7, "{dialled} connections for one server");

    // Without seed nodes, and without the leader that everybody knew.
    let leader = fleet.wait_for_leader();
    let gone: Vec<u32> = (1..=seed_nodes).chain((leader > seed_nodes).then_some(leader)).collect();
    for id in &gone {
        fleet.kill(*id);
    }
    let led = |fleet: &Fleet| fleet.leader().is_some_and(|id| !gone.contains(&id));
    wait_for("a new leader", || led(&fleet), || fleet.describe());
    let away = (seed_nodes + 1..count).find(|id| !gone.contains(id) && fleet.leader() != Some(*id));
    let away = away.expect("most of them follow");
    fleet.kill(away);
    fleet.start(away);
    fleet.wait_until_one();
    assert_eq!(
        fleet.servers[&away].report().cluster_id,
        cluster_id,
        "it joined those that remember"
    );

    for id in gone {
        fleet.start(id);
    }
    fleet.wait_until_one();
    assert!(fleet.servers.values().all(|b| b.report().cluster_id == cluster_id));
}
