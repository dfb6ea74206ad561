//! Servers restarted and frozen at bad moments, singly, together and in quick succession. Each case
//! here once left a group stuck, split or with a key that had been retired.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use stek_share::core::config::Settings;

use crate::fleet::{wait_for, Fleet};

fn default(_: &mut Settings) {}

fn fast(settings: &mut Settings) {
    settings.key_update_interval = Duration::from_secs(1);
    settings.handover_timeout = Duration::from_millis(500);
}

fn wait_until_whole(fleet: &Fleet, what: &str) {
    wait_for(
        &format!("one key and a leader after {what}"),
        || fleet.is_one() && fleet.leader().is_some(),
        || fleet.describe(),
    );
}

fn restart(fleet: &mut Fleet, id: u32) {
    fleet.kill(id);
    fleet.start(id);
}

/// Stops all of a server's workers for a while, as a stopped machine would.
fn freeze(fleet: &Fleet, id: u32, duration: Duration) {
    let runtime = fleet.servers[&id].runtime.as_ref().expect("it runs");
    for _ in 0..fleet.settings(id).workers {
        runtime.spawn(async move { sleep(duration) });
    }
}

fn followers(fleet: &Fleet, leader: u32) -> Vec<u32> {
    fleet.servers.keys().copied().filter(|id| *id != leader).collect()
}

#[test]
fn the_leader_of_two_and_the_leader_and_another_of_three() {
    for (count, also) in [(2, 0), (3, 1)] {
        let mut fleet = Fleet::running(count, default);
        fleet.wait_until_one();
        let leader = fleet.wait_for_leader();
        let mut ids = vec![leader];
        ids.extend(followers(&fleet, leader).into_iter().take(also));
        for id in &ids {
            fleet.kill(*id);
        }
        for id in &ids {
            fleet.start(*id);
        }
        wait_until_whole(&fleet, &format!("{ids:?} of {count} restarted"));
    }
}

#[test]
fn one_after_another_faster_than_they_catch_up() {
    for gap in [50, 150, 400] {
        let mut fleet = Fleet::running(3, default);
        fleet.wait_until_one();
        let leader = fleet.wait_for_leader();
        for id in followers(&fleet, leader).into_iter().chain([leader]) {
            restart(&mut fleet, id);
            sleep(Duration::from_millis(gap));
        }
        wait_until_whole(&fleet, &format!("restarts {gap} ms apart"));
    }
}

#[test]
fn all_that_were_relied_on_die_in_turn() {
    for gap in [200, 400, 550] {
        let mut fleet = Fleet::running(3, default);
        fleet.wait_until_one();
        let leader = fleet.wait_for_leader();
        for id in followers(&fleet, leader) {
            restart(&mut fleet, id);
        }
        sleep(Duration::from_millis(gap));
        fleet.kill(leader);
        sleep(Duration::from_millis(700));
        fleet.start(leader);
        wait_until_whole(&fleet, &format!("the last witness died {gap} ms later"));
    }
}

/// Its leader sees it while nothing can be agreed on, and nothing but time tells when that is over.
#[test]
fn a_server_that_returns_while_no_majority_answers_is_taken_in_afterwards() {
    let mut fleet = Fleet::linked(3, default);
    fleet.wait_until_one();
    fleet.wait_until_all_vote();
    let leader = fleet.wait_for_leader();
    let others = followers(&fleet, leader);
    let (away, back) = (others[0], others[1]);
    // It goes on to hear the leader, so that it wants no election.
    let silence = |fleet: &Fleet, is_cut| {
        let relays = fleet.relays.as_ref().expect("a linked fleet");
        relays.silence(&[away], &[leader], is_cut);
    };
    // That the leader was dialled is seen, not that it has an answer to its own question by then.
    for _ in 0..3 {
        fleet.kill(back);
        silence(&fleet, true);
        let sees = |fleet: &Fleet, many| fleet.servers[&leader].node_status().reachable == many;
        wait_for("a leader alone", || sees(&fleet, 1), || fleet.describe());
        fleet.start(back);
        wait_for("the return to be seen", || sees(&fleet, 2), || fleet.describe());
        silence(&fleet, false);
        fleet.wait_until_one();
        fleet.wait_until_all_vote();
    }
}

#[test]
fn four_restarts_of_three_servers_within_a_second() {
    for round in 0..6 {
        let mut fleet = Fleet::running(3, fast);
        fleet.wait_for_generation(2);
        let script = [(2, 177), (3, 504 - 40 * round), (1, 225)];
        for (id, pause) in script {
            restart(&mut fleet, id);
            sleep(Duration::from_millis(pause));
        }
        fleet.kill(3);
        sleep(Duration::from_millis(37));
        fleet.start(3);
        wait_until_whole(&fleet, &format!("round {round}"));
    }
}

/// A server that came back remembers, through others, a term of the very leader that has lost its
/// own memory of it.
#[test]
fn a_leader_that_is_refused_with_its_own_old_vote() {
    for round in 0..5 {
        let mut fleet = Fleet::running(3, default);
        fleet.wait_until_one();
        let leader = fleet.wait_for_leader();
        let [first, second] = followers(&fleet, leader)[..] else { panic!("three servers") };
        fleet.kill(first);
        fleet.kill(second);
        fleet.start(second);
        sleep(Duration::from_millis(60 + 30 * round));
        fleet.kill(leader);
        sleep(Duration::from_millis(700));
        fleet.start(leader);
        fleet.start(first);
        wait_until_whole(&fleet, &format!("round {round}"));
    }
}

#[test]
fn a_majority_restarts_beside_a_frozen_server() {
    let mut fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let frozen = followers(&fleet, leader)[0];
    freeze(&fleet, frozen, Duration::from_secs(4));
    for id in (1..=3).filter(|id| *id != frozen) {
        restart(&mut fleet, id);
    }
    sleep(Duration::from_millis(4500));
    wait_until_whole(&fleet, "the server thawed");
}

#[test]
fn an_own_key_that_was_replaced_does_not_come_back_as_the_groups_first() {
    let mut fleet = Fleet::new(2, fast);
    // Of two that have nothing the first of the list founds, and its key is the group's first.
    fleet.start(1);
    let host = fleet.servers[&1].host.clone();
    wait_for("a first key", || !host.latest().is_empty(), || fleet.describe());
    let initial = host.latest()[0];
    wait_for("it to be replaced", || !host.latest().contains(&initial), || fleet.describe());
    let before = host.sets.lock().unwrap().len();
    fleet.start(2);
    wait_until_whole(&fleet, "the second server came");
    let sets = host.sets.lock().unwrap().clone();
    assert!(sets[before..].iter().all(|(_, keys)| !keys.contains(&initial)), "it came back");
}

#[test]
fn a_max_key_age_of_one_interval_disturbs_no_rotation() {
    let fleet = Fleet::running(3, |settings| {
        settings.key_update_interval = Duration::from_secs(2);
        settings.max_key_age = Duration::from_secs(2);
        settings.handover_timeout = Duration::from_secs(1);
    });
    fleet.wait_for_generation(3);
    for b in fleet.servers.values() {
        assert!(!b.lines.has("too old to encrypt"), "{}", fleet.describe());
    }
}

/// Random kills, starts and freezes; the script of a round that fails is printed. The number of
/// rounds can be raised by STEK_CHAOS_ROUNDS.
#[test]
fn at_random() {
    let rounds: u32 =
        std::env::var("STEK_CHAOS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let mut rng = Rng(clock.as_nanos() as u64 | 1);
    let mut fleet = Fleet::running(3, fast);
    fleet.wait_until_one();
    let mut worst = Duration::ZERO;
    for round in 0..rounds {
        let mut script = String::new();
        for _ in 0..=rng.below(4) {
            let id = 1 + rng.below(3) as u32;
            if !fleet.servers.contains_key(&id) {
                script += &format!("start {id}; ");
                fleet.start(id);
            } else if rng.below(3) == 0 {
                let long = rng.below(900);
                script += &format!("freeze {id} for {long} ms; ");
                freeze(&fleet, id, Duration::from_millis(long));
            } else {
                script += &format!("kill {id}; ");
                fleet.kill(id);
                if rng.below(2) == 0 {
                    script += &format!("start {id}; ");
                    fleet.start(id);
                }
            }
            let gap = rng.below(700);
            script += &format!("wait {gap} ms; ");
            sleep(Duration::from_millis(gap));
        }
        for id in 1..=3 {
            if !fleet.servers.contains_key(&id) {
                script += &format!("start {id}; ");
                fleet.start(id);
            }
        }
        let begun = Instant::now();
        wait_until_whole(&fleet, &format!("round {round}: {script}"));
        worst = worst.max(begun.elapsed());
    }
    println!("{rounds} rounds, whole again after {worst:?} at the longest");
}

/// A xorshift generator: cheap, and its seed need not be good.
struct Rng(u64);

impl Rng {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 3) % sides
    }
}
