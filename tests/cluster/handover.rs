//! A key is held by every reachable server before any server uses it (promise 1).

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stek_share::core::config::Settings;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::stek::Fingerprint;
use stek_share::log_sink::Level;
use stek_share::node::Joined;

use crate::fleet::{block_on, wait_for, Fleet};

const HANDOVER_TIMEOUT: Duration = Duration::from_millis(700);

fn patient(settings: &mut Settings) {
    settings.handover_timeout = HANDOVER_TIMEOUT;
}

/// When a server first held a key at all, and when it first encrypted with it.
fn held_and_used(fleet: &Fleet, id: u32, key: Fingerprint) -> (Option<Instant>, Option<Instant>) {
    let sets = fleet.servers[&id].host.sets.lock().unwrap();
    let held = sets.iter().find(|(_, keys)| keys.contains(&key)).map(|(at, _)| *at);
    let used = sets.iter().find(|(_, keys)| keys.first() == Some(&key)).map(|(at, _)| *at);
    (held, used)
}

#[test]
fn no_server_encrypts_with_a_key_that_another_has_not_installed() {
    let fleet = Fleet::running(5, patient);
    fleet.wait_until_one();
    for _ in 0..10 {
        let generation =
            block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
        fleet.wait_for_generation(generation.0);
        let key = fleet.servers[&1].node_status().fingerprint.unwrap();
        let times: Vec<_> = (1..=5).map(|id| held_and_used(&fleet, id, key)).collect();
        let last_held = times.iter().filter_map(|(held, _)| *held).max().unwrap();
        let first_used = times.iter().filter_map(|(_, used)| *used).min().unwrap();
        assert!(
            last_held < first_used,
            "generation {generation} was used {:?} before the last server held it",
            last_held - first_used
        );
    }
}

#[test]
fn every_server_waits_for_one_that_is_slow_to_install() {
    let fleet = Fleet::running(5, |settings| {
        settings.handover_timeout = Duration::from_secs(20);
    });
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    for slow in (1..=5).filter(|id| *id != leader) {
        let host = &fleet.servers[&slow].host;
        host.broken.store(true, Ordering::SeqCst);
        let node = fleet.servers[&leader].node.clone();
        let order = std::thread::spawn(move || block_on(node.admin_command(AdminCommand::Rotate)));
        let others = || fleet.servers.values().filter(|b| !b.host.broken.load(Ordering::SeqCst));
        wait_for(
            "all others to hold the staged key",
            || others().all(|b| b.node_status().staged == Some(b.node_status().installed)),
            || fleet.describe(),
        );
        // Long enough for a leader that waits for too few to show it.
        std::thread::sleep(Duration::from_millis(200));
        host.broken.store(false, Ordering::SeqCst);
        let generation = order.join().unwrap().unwrap();
        fleet.wait_for_generation(generation.0);
        let key = fleet.servers[&slow].node_status().fingerprint.unwrap();
        let times: Vec<_> = (1..=5).map(|id| held_and_used(&fleet, id, key)).collect();
        let held = times[slow as usize - 1].0.unwrap();
        let first_used = times.iter().filter_map(|(_, used)| *used).min().unwrap();
        assert!(held < first_used, "generation {generation} was used before server {slow} held it");
    }
}

#[test]
fn a_server_that_cannot_install_holds_the_handover_up_for_its_timeout_and_is_named() {
    let fleet = Fleet::running(3, patient);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let broken = *fleet.servers.keys().find(|id| **id != leader).unwrap();
    fleet.servers[&broken].host.broken.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    let generation =
        block_on(fleet.servers[&leader].node.admin_command(AdminCommand::Rotate)).unwrap();
    assert!(begun.elapsed() >= HANDOVER_TIMEOUT, "activated without waiting");
    let lines = fleet.servers[&leader].lines.all();
    assert!(
        lines.iter().any(|(level, line)| *level == Level::Warning
            && line.contains(&format!("server {broken} answers but has not installed"))),
        "{lines:?}"
    );
    // Once its host works again it gets the whole set.
    fleet.servers[&broken].host.broken.store(false, Ordering::SeqCst);
    fleet.wait_for_generation(generation.0);
    assert_eq!(fleet.servers[&broken].host.latest().len(), 2);
}

#[test]
fn a_second_order_during_a_handover_is_refused_with_the_reason() {
    let fleet = Fleet::running(3, patient);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let broken = *fleet.servers.keys().find(|id| **id != leader).unwrap();
    fleet.servers[&broken].host.broken.store(true, Ordering::SeqCst);
    let node = fleet.servers[&leader].node.clone();
    let first = std::thread::spawn(move || block_on(node.admin_command(AdminCommand::Rotate)));
    wait_for(
        "the handover to begin",
        || fleet.servers[&leader].node_status().staged.is_some(),
        || fleet.describe(),
    );
    let refusal =
        block_on(fleet.servers[&broken].node.admin_command(AdminCommand::Rotate)).unwrap_err();
    assert!(refusal.to_string().contains("handover to generation 2 is under way"), "{refusal}");
    assert_eq!(first.join().unwrap().unwrap().0, 2);
}

#[test]
fn a_new_leader_finishes_the_handover_that_it_finds() {
    let mut fleet = Fleet::running(3, |settings| {
        settings.handover_timeout = Duration::from_secs(20);
    });
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let broken = *fleet.servers.keys().find(|id| **id != leader).unwrap();
    fleet.servers[&broken].host.broken.store(true, Ordering::SeqCst);
    let node = fleet.servers[&leader].node.clone();
    let order = std::thread::spawn(move || block_on(node.admin_command(AdminCommand::Rotate)));
    wait_for(
        "all to have the staged key",
        || fleet.servers.values().all(|b| b.node_status().staged.is_some()),
        || fleet.describe(),
    );
    let staged = fleet.servers[&leader].node_status().staged.unwrap();
    fleet.kill(leader);
    fleet.servers[&broken].host.broken.store(false, Ordering::SeqCst);
    fleet.wait_for_generation(staged.0);
    drop(order);
}

#[test]
fn revoking_leaves_only_the_new_key_on_every_server() {
    let fleet = Fleet::running(3, |settings| settings.ticket_keys = 4);
    fleet.wait_until_one();
    for _ in 0..2 {
        block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
    }
    let generation = block_on(fleet.servers[&2].node.admin_command(AdminCommand::Revoke)).unwrap();
    fleet.wait_for_generation(generation.0);
    for b in fleet.servers.values() {
        assert_eq!(b.host.latest().len(), 1, "{}", fleet.describe());
    }
}

#[test]
fn a_server_that_returns_waits_for_both_keys_before_it_serves() {
    let mut fleet = Fleet::running(3, patient);
    fleet.wait_until_one();
    block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(2);
    for id in 1..=3 {
        let current = fleet.servers[&id].node_status().fingerprint.unwrap();
        let keys = fleet.servers[&id].host.latest();
        fleet.kill(id);
        let node = fleet.start(id).node.clone();
        let joined = block_on(node.wait_for_group(Duration::from_secs(20)));
        assert_eq!(joined, Joined::Keys(current));
        let set = node.key_sets().borrow().clone();
        let prints: Vec<_> = set.keys.iter().map(|k| k.fingerprint()).collect();
        assert_eq!(prints, keys, "current and previous");
        fleet.wait_until_one();
    }
}

#[test]
fn a_server_that_finds_no_majority_does_not_wait() {
    let mut fleet = Fleet::new(3, patient);
    let node = fleet.start(1).node.clone();
    let begun = Instant::now();
    assert_eq!(block_on(node.wait_for_group(Duration::from_secs(60))), Joined::NoMajority);
    assert!(begun.elapsed() < Duration::from_secs(30));
}
