//! Servers agree on one key, rotate it, and survive deaths.

use std::time::{Duration, Instant};

use stek_share::core::rotation::AdminCommand;

use crate::fleet::{block_on, wait_for, Fleet};

fn fast(settings: &mut stek_share::core::config::Settings) {
    settings.key_update_interval = Duration::from_secs(1);
    settings.handover_timeout = Duration::from_millis(500);
}

fn slow(_: &mut stek_share::core::config::Settings) {}

#[test]
fn a_fleet_of_any_size_starts_with_one_key() {
    for count in [1, 2, 3, 5, 20] {
        let begun = Instant::now();
        let fleet = Fleet::running(count, slow);
        fleet.wait_until_one();
        println!("{count} servers: one key after {:?}", begun.elapsed());
        let first = fleet.servers[&1].node_status();
        assert_eq!(first.current.0, 1);
        assert_eq!(
            fleet
                .servers
                .values()
                .filter(|b| b.node_status().cluster_id == first.cluster_id)
                .count(),
            count as usize
        );
    }
}

#[test]
fn the_first_key_is_the_first_leaders_own() {
    let fleet = Fleet::running(3, slow);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let sets = fleet.servers[&leader].host.sets.lock().unwrap().clone();
    let (_, first) = &sets[0];
    let (_, last) = sets.last().unwrap();
    assert_eq!(first[0], last[0], "the leader's initial STEK goes on encrypting");
}

#[test]
fn keys_rotate_everywhere_and_each_set_is_the_latest_two() {
    let fleet = Fleet::running(3, fast);
    fleet.wait_for_generation(4);
    for b in fleet.servers.values() {
        let sets = b.host.sets.lock().unwrap().clone();
        for pair in sets.windows(2) {
            let (before, after) = (&pair[0].1, &pair[1].1);
            assert!(after.len() <= 2, "more than two keys: {after:?}");
            assert!(
                before.contains(&after[0]),
                "a key encrypts that was not held before: {before:?} then {after:?}"
            );
        }
    }
}

#[test]
fn rotation_goes_on_after_the_leader_dies_and_it_comes_back_with_all_keys() {
    let mut fleet = Fleet::running(3, fast);
    fleet.wait_for_generation(2);
    let leader = fleet.wait_for_leader();
    let before = fleet.servers[&leader].node_status();
    fleet.kill(leader);
    fleet.wait_for_generation(before.current.0 + 2);
    let after = fleet.servers.values().next().unwrap().node_status();
    assert_eq!(after.cluster_id, before.cluster_id, "the cluster incarnation goes on");
    fleet.start(leader);
    fleet.wait_for_generation(after.current.0 + 1);
    let report = fleet.servers[&leader].node_status();
    assert_eq!(report.cluster_id, before.cluster_id);
    assert_eq!(fleet.servers[&leader].host.latest().len(), 2);
}

#[test]
fn every_server_can_be_restarted_in_turn() {
    let mut fleet = Fleet::running(3, slow);
    fleet.wait_until_one();
    let before = fleet.servers[&1].node_status();
    for round in 0..6 {
        let id = round % 3 + 1;
        fleet.kill(id);
        fleet.start(id);
        wait_for(
            "the restarted server to have the group's key",
            || fleet.is_one(),
            || fleet.describe(),
        );
        let now = fleet.servers[&id].node_status();
        assert_eq!(now.fingerprint, before.fingerprint, "round {round}");
        assert_eq!(now.cluster_id, before.cluster_id, "round {round}");
    }
}

#[test]
fn an_order_reaches_the_leader_from_any_server() {
    let fleet = Fleet::running(3, slow);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let follower = *fleet.servers.keys().find(|id| **id != leader).unwrap();
    for (n, id) in [leader, follower].into_iter().enumerate() {
        let node = fleet.servers[&id].node.clone();
        let generation = block_on(node.admin_command(AdminCommand::Rotate));
        let generation = generation.unwrap_or_else(|e| {
            panic!(
                "{id}: {e}
{}",
                fleet.describe()
            )
        });
        assert_eq!(generation.0, 2 + n as u64);
        fleet.wait_for_generation(generation.0);
    }
}
