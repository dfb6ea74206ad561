//! A group of which most servers do not vote: a cluster of nodes as in `tests/cluster`, in a program
//! of its own, because it would take the machine from the tests beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

#[path = "../cluster/fleet.rs"]
mod fleet;
#[path = "../cluster/relay.rs"]
mod relay;

use stek_share::core::config::Settings;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_list::MAX_VOTERS;

use crate::fleet::{block_on, wait_for, Fleet};

const COUNT: u32 = 42;
const VOTERS: u32 = MAX_VOTERS as u32;

fn small_servers(settings: &mut Settings) {
    settings.workers = 1;
}

/// Connections that these servers let in since they were started.
fn accepted(fleet: &Fleet, but: u32) -> u64 {
    let others = fleet.servers.iter().filter(|(id, _)| **id != but);
    others.map(|(_, running)| running.node.status().accepted).sum()
}

#[test]
fn few_vote_and_all_have_the_keys_whoever_of_them_goes_and_comes() {
    let mut fleet = Fleet::running(COUNT, small_servers);
    fleet.wait_until_one();
    let first = fleet.servers[&COUNT].node_status();
    assert_eq!((first.members, first.voters), (COUNT as usize, MAX_VOTERS), "{}", fleet.describe());
    let dialled = accepted(&fleet, 0) / u64::from(COUNT);
    assert!(dialled <= u64::from(VOTERS) + 4, "{dialled} connections for each server");

    // One that does not vote: it asks those who do, and the leader dials it, perhaps twice.
    fleet.kill(COUNT);
    let before = accepted(&fleet, COUNT);
    fleet.start(COUNT);
    fleet.wait_until_one();
    let own = fleet.servers[&COUNT].node.status().accepted;
    let dialled = accepted(&fleet, COUNT) - before + own;
    assert!(dialled <= u64::from(VOTERS) + 3, "{dialled} connections for one server");
    assert_eq!(
        block_on(fleet.servers[&COUNT].node.admin_command(AdminCommand::Rotate)).unwrap().0,
        2
    );
    fleet.wait_for_generation(2);

    // Three of those who vote, the leader among them: the others elect one of themselves.
    let leader = fleet.wait_for_leader();
    assert!(leader <= VOTERS, "{leader} does not vote");
    let gone: Vec<u32> =
        std::iter::once(leader).chain((1..=VOTERS).filter(|id| *id != leader)).take(3).collect();
    for id in &gone {
        fleet.kill(*id);
    }
    let led = |fleet: &Fleet| fleet.leader().is_some_and(|id| !gone.contains(&id));
    wait_for("a new leader", || led(&fleet), || fleet.describe());
    assert_eq!(
        block_on(fleet.servers[&COUNT].node.admin_command(AdminCommand::Rotate)).unwrap().0,
        3
    );
    for id in gone {
        fleet.start(id);
    }
    fleet.wait_until_one();

    // Most of those who vote at once: all others still have the keys.
    for id in 1..=VOTERS - 2 {
        fleet.kill(id);
    }
    for id in 1..=VOTERS - 2 {
        fleet.start(id);
    }
    fleet.wait_until_one();
    let last = fleet.servers[&1].node_status();
    assert_eq!((last.cluster_id, last.current.0), (first.cluster_id, 3), "{}", fleet.describe());
}
