//! Servers of the list that are down cost the others nothing: neither time at a rotation nor a
//! word against a server that is well.

use std::time::{Duration, Instant};

use stek_share::core::rotation::AdminCommand;
use stek_share::log_sink::Level;

use crate::fleet::{block_on, wait_for, Fleet};

/// Rotations of which the median is taken.
const ROTATIONS: usize = 9;

/// What a rotation may cost with as many servers down as a group can bear, measured by that of a
/// group in which all are up.
const MAX_RATIO: u32 = 10;

/// The median time of an order to rotate, given at the leader.
fn rotation(fleet: &Fleet) -> Duration {
    let leader = fleet.wait_for_leader();
    let node = &fleet.servers[&leader].node;
    let mut times: Vec<Duration> = (0..ROTATIONS)
        .map(|_| {
            let begun = Instant::now();
            block_on(node.admin_command(AdminCommand::Rotate)).unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROTATIONS / 2]
}

#[test]
fn dead_servers_make_no_rotation_slow_and_no_living_one_suspect() {
    let whole = Fleet::running(8, |_| ());
    whole.wait_until_one();
    let all_up = rotation(&whole);
    drop(whole);
    let mut half = Fleet::new(15, |_| ());
    for id in 1..=8 {
        half.start(id);
    }
    half.wait_until_one();
    let half_up = rotation(&half);
    println!("8 of 8: {all_up:?}, 8 of 15: {half_up:?}");
    for id in 1..=8 {
        let accused = format!("server {id} answers but has not installed");
        let told = half.servers.values().flat_map(|b| b.lines.all());
        let accused: Vec<_> = told.filter(|(_, line)| line.contains(&accused)).collect();
        assert!(accused.is_empty(), "{accused:?}");
    }
    assert!(half_up <= all_up * MAX_RATIO, "8 of 8: {all_up:?}, 8 of 15: {half_up:?}");
}

/// A server whose process is started anew during a handover has to say again what it holds.
#[test]
fn what_a_server_had_installed_before_it_was_started_anew_does_not_count() {
    let mut fleet = Fleet::running(4, |settings| {
        settings.handover_timeout = Duration::from_secs(20);
    });
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let [slow, restarted] = [0, 1].map(|at| {
        let others = fleet.servers.keys().filter(|id| **id != leader);
        *others.clone().nth(at).unwrap()
    });
    let breaks = |fleet: &Fleet, id: u32, broken| {
        fleet.servers[&id].host.broken.store(broken, std::sync::atomic::Ordering::SeqCst);
    };
    // It holds the handover up while the other one is started anew.
    breaks(&fleet, slow, true);
    let node = fleet.servers[&leader].node.clone();
    let order = std::thread::spawn(move || block_on(node.admin_command(AdminCommand::Rotate)));
    let has_staged = |fleet: &Fleet, id: u32| {
        let report = fleet.servers[&id].node_status();
        report.staged.is_some() && report.staged == Some(report.installed)
    };
    wait_for("one to have the key", || has_staged(&fleet, restarted), || fleet.describe());
    // The leader may apply an entry a moment after a follower.
    let staged = fleet.servers[&restarted].node_status().staged.unwrap();
    fleet.kill(restarted);
    fleet.start(restarted);
    breaks(&fleet, restarted, true);
    wait_for(
        "it to know of the handover",
        || fleet.servers[&restarted].node_status().staged == Some(staged),
        || fleet.describe(),
    );
    breaks(&fleet, slow, false);
    wait_for("all others to have the key", || has_staged(&fleet, slow), || fleet.describe());
    // Long enough for a leader that no longer asks to go on.
    std::thread::sleep(Duration::from_millis(300));
    let missing = fleet.servers[&restarted].node_status().installed < staged;
    let current = fleet.servers[&leader].node_status().current;
    assert!(!missing || current < staged, "{}", fleet.describe());
    assert!(missing, "nothing was shown");
    breaks(&fleet, restarted, false);
    assert_eq!(order.join().unwrap().unwrap(), staged);
    fleet.wait_for_generation(staged.0);
    assert!(!fleet.servers[&leader]
        .lines
        .all()
        .iter()
        .any(|(level, line)| { *level == Level::Warning && line.contains("has not installed") }));
}
