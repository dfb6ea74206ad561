//! Enemies at the port: strangers in great number, and members that misbehave. Real nodes, real
//! sockets, real mutual TLS, without the host.
//!
//! What single strangers and single broken rules meet is in `tests/transport/`, and what a real
//! Traffic Server makes of strangers in `tests/ats/strangers.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cost;
#[path = "../cluster/fleet.rs"]
#[allow(dead_code)]
mod fleet;
mod forged;
mod insider;
mod liar;
mod list;
mod member;
#[path = "../cluster/relay.rs"]
#[allow(dead_code)]
mod relay;
mod roots;
mod sessions;
mod strangers;

use std::time::Duration;

use fleet::{block_on, wait_for, Fleet};
use stek_share::core::config::Settings;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_id::ServerId;

/// How many servers are real; the next id of the list is the enemy's. All real ones together are
/// the majority that the list needs.
const REAL: u32 = 3;
/// The enemy's id.
const ENEMY: u32 = 4;

/// Bounds that a busy machine keeps; without them its own pauses would unseat the leader.
fn patient(settings: &mut Settings) {
    settings.timers.election_lower = Duration::from_millis(1000);
    settings.timers.election_upper = Duration::from_millis(2000);
}

/// A list of four of which three run and agree. The fourth was there at the cold start, which waits long
/// for one that is not, and is the enemy's from now on.
fn three_of_four() -> Fleet {
    let mut fleet = Fleet::running(ENEMY, patient);
    without_the_fourth(&mut fleet);
    fleet
}

/// Ends the fourth server, once all have a key, and waits until one of the others leads.
fn without_the_fourth(fleet: &mut Fleet) {
    fleet.wait_until_one();
    fleet.kill(ENEMY);
    let follow = |fleet: &Fleet| {
        let leader = fleet.leader().map(ServerId);
        leader.is_some() && fleet.servers.values().all(|b| b.node_status().leader == leader)
    };
    wait_for("a leader among the rest", || follow(fleet), || fleet.describe());
}

/// Who leads, and in which term.
fn leader_term(fleet: &Fleet) -> (u32, u64) {
    let leader = fleet.wait_for_leader();
    (leader, fleet.servers[&leader].node_status().term)
}

/// The group takes an order and all servers come to the key that it makes, whatever is going on.
fn rotate(fleet: &Fleet) {
    let newest = || fleet.servers.values().map(|b| b.node_status().current.0).max().unwrap_or(0);
    let before = newest();
    wait_for(
        "a rotation",
        || {
            let any = fleet.servers.values().next().expect("one runs");
            block_on(any.node.admin_command(AdminCommand::Rotate)).is_ok() || newest() > before
        },
        || fleet.describe(),
    );
    fleet.wait_for_generation(before + 1);
}
