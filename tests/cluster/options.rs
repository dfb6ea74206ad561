//! Options whose effect shows between servers: timers and time limits.

use std::time::{Duration, Instant};

use stek_share::core::config::{Settings, Timers};
use stek_share::core::rotation::AdminCommand;
use stek_share::node::Role;
use stek_share::rpc::AdminRefusal;

use crate::fleet::{block_on, wait_for, Fleet};

const fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// Bounds that leave room for any heartbeat here, on a busy machine too.
fn idle(settings: &mut Settings, heartbeat: Duration) {
    settings.timers = Timers { heartbeat, election_lower: ms(1500), election_upper: ms(2500) };
}

/// How long the leader takes for some messages to a follower while nothing else happens.
fn time_of_heartbeats(tune: fn(&mut Settings), count: u64) -> Duration {
    let fleet = Fleet::linked(2, tune);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let follower = 3 - leader;
    let relays = fleet.relays.as_ref().unwrap();
    // From one message on, so that whole intervals are measured.
    let seen = relays.sent(leader, follower);
    let until = |number: u64| {
        let enough = || relays.sent(leader, follower) >= seen + number;
        wait_for("the leader's messages", enough, || fleet.describe());
        Instant::now()
    };
    let begun = until(1);
    until(1 + count) - begun
}

#[test]
fn heart_beat_interval_is_how_often_the_leader_is_heard() {
    const HEARTBEATS: u64 = 20;
    let often = time_of_heartbeats(|s| idle(s, ms(50)), HEARTBEATS);
    let seldom = time_of_heartbeats(|s| idle(s, ms(250)), HEARTBEATS);
    println!("{HEARTBEATS} heartbeats of 50 ms: {often:?}, of 250 ms: {seldom:?}");
    // What follows a message may be taken with it, and late ones are not made up for.
    assert!(often > ms(50 * HEARTBEATS) * 8 / 10, "{often:?}");
    assert!(seldom > ms(250 * HEARTBEATS) * 8 / 10, "{seldom:?}");
    assert!(often * 2 < seldom, "{often:?}, {seldom:?}");
}

#[test]
fn election_timeout_lower_bound_is_how_long_a_silent_leader_is_kept() {
    let fleet = Fleet::linked(3, |s| idle(s, ms(100)));
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let others: Vec<u32> = (1..=3).filter(|id| *id != leader).collect();
    // Nothing tells that it is gone, as after a power cut; a process that died is not waited for.
    fleet.part(&[leader], &others, true);
    let begun = Instant::now();
    let leads = |id: &u32| fleet.servers[id].node_status().role == Role::Leader;
    wait_for("another leader", || others.iter().any(leads), || fleet.describe());
    let took = begun.elapsed();
    println!("a new leader after {took:?}");
    // The last heartbeat was heard up to one interval before the cut.
    assert!(took > ms(1500 - 200), "{took:?}");
    // Far above the upper bound, and far below what a broken election takes.
    assert!(took < ms(2500) + Duration::from_secs(10), "{took:?}");
}

#[test]
fn election_timeout_upper_bound_is_how_long_a_silent_server_is_waited_for() {
    let mut fleet = Fleet::running(3, |s| {
        idle(s, ms(100));
        s.handover_timeout = Duration::from_secs(60);
    });
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    fleet.kill(leader % 3 + 1);
    let begun = Instant::now();
    block_on(fleet.servers[&leader].node.admin_command(AdminCommand::Rotate)).unwrap();
    let took = begun.elapsed();
    println!("the handover went on without the dead server after {took:?}");
    assert!(took > ms(2500 - 200), "{took:?}");
    assert!(took < Duration::from_secs(30), "only handover_timeout ended it: {took:?}");
}

/// How long an order takes to fail on a leader whose followers have just died.
fn time_to_fail(tune: fn(&mut Settings)) -> Duration {
    let mut fleet = Fleet::running(3, tune);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    fleet.kill(leader % 3 + 1);
    fleet.kill((leader + 1) % 3 + 1);
    let begun = Instant::now();
    let refusal =
        block_on(fleet.servers[&leader].node.admin_command(AdminCommand::Rotate)).unwrap_err();
    assert!(matches!(refusal, AdminRefusal::TimedOut), "{refusal}");
    begun.elapsed()
}

#[test]
fn client_req_timeout_is_how_long_a_proposal_waits_for_agreement() {
    let short = time_to_fail(|s| {
        idle(s, ms(100));
        s.request_timeout = ms(300);
    });
    let long = time_to_fail(|s| {
        idle(s, ms(100));
        s.request_timeout = ms(2000);
    });
    println!("a proposal without majority failed after {short:?} and {long:?}");
    assert!(short >= ms(300) && short < ms(1900), "{short:?}");
    assert!(long >= ms(2000) && long < ms(10_000), "{long:?}");
}
