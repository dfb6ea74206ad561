//! A leader's death is seen by its connections, not by a timer; and a connection that is lost is no
//! death. The election bounds are so long here that no timer can have done it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use stek_share::core::config::Settings;
use stek_share::core::rotation::AdminCommand;

use crate::fleet::{block_on, wait_for, Fleet};

/// `election_timeout_lower_bound`.
const LOWER: Duration = Duration::from_secs(5);

/// An election without a timer, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

fn patient(settings: &mut Settings) {
    settings.timers.election_lower = LOWER;
    settings.timers.election_upper = LOWER * 2;
}

/// Kills the leader; how long it took until another one led.
fn kill_leader(fleet: &mut Fleet) -> Duration {
    let leader = fleet.wait_for_leader();
    let begun = Instant::now();
    fleet.kill(leader);
    wait_for("another leader", || fleet.leader().is_some(), || fleet.describe());
    begun.elapsed()
}

#[test]
fn a_dead_leader_is_followed_at_once_whatever_it_did_last() {
    let mut fleet = Fleet::running(5, patient);
    fleet.wait_until_all_vote();
    fleet.wait_until_one();
    let took = kill_leader(&mut fleet);
    assert!(took < AT_ONCE, "{took:?}: {}", fleet.describe());
    fleet.wait_until_all_vote();
    fleet.wait_until_one();
    // A moment after an append, which openraft would have all wait for.
    let leader = fleet.wait_for_leader();
    let node = fleet.servers[&leader].node.clone();
    block_on(node.admin_command(AdminCommand::Rotate)).unwrap();
    let took = kill_leader(&mut fleet);
    assert!(took < AT_ONCE, "{took:?} after a rotation: {}", fleet.describe());
}

#[test]
fn the_next_in_turn_is_connected_with_a_server_that_has_returned() {
    let mut fleet = Fleet::linked(5, patient);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let next = leader % 5 + 1;
    let other = (1..=5).find(|id| ![leader, next].contains(id)).unwrap();
    fleet.kill(other);
    let said = |fleet: &Fleet| fleet.relays.as_ref().unwrap().sent(next, other);
    let before = said(&fleet);
    fleet.start(other);
    // It asks the first and is asked by the leader; what it has to say itself is no reason to dial it.
    wait_for("a question of the next in turn", || said(&fleet) > before, || fleet.describe());
    assert_eq!(fleet.leader(), Some(leader), "{}", fleet.describe());
    fleet.wait_until_one();
}

#[test]
fn connections_that_are_reset_depose_no_living_leader() {
    let mut fleet = Fleet::linked(3, patient);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let term = fleet.servers[&leader].node_status().term;
    for _ in 0..5 {
        fleet.relays.as_ref().unwrap().reset(leader);
        sleep(Duration::from_millis(300));
    }
    let follows = |fleet: &Fleet| {
        let reports = fleet.servers.values().map(|running| running.node_status());
        reports.map(|report| (report.term, report.leader.map(|id| id.0))).collect::<Vec<_>>()
    };
    assert_eq!(follows(&fleet), [(term, Some(leader)); 3], "{}", fleet.describe());
    // And it is still able to do its work.
    let node = fleet.servers[&leader].node.clone();
    block_on(node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(2);
    fleet.kill(leader);
}

#[test]
fn a_cluster_whose_last_majority_is_gone_is_not_waited_for() {
    let upper = |fleet: &Fleet| fleet.settings(1).timers.election_upper;
    let mut fleet = Fleet::new(5, |settings| {
        settings.timers.election_lower = Duration::from_secs(1);
        settings.timers.election_upper = Duration::from_secs(2);
    });
    for id in 1..=3 {
        fleet.start(id);
    }
    fleet.wait_until_one();
    let begun = Instant::now();
    let leader = fleet.wait_for_leader();
    fleet.kill(leader);
    // Three of five again, but only two of those that the cluster was founded with.
    fleet.start(4);
    wait_for("another leader", || fleet.leader().is_some(), || fleet.describe());
    assert!(begun.elapsed() < upper(&fleet) * 5, "{:?}: {}", begun.elapsed(), fleet.describe());
    fleet.wait_until_one();
}
