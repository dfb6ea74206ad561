//! Seeds that every run of the tests goes through, and whether a seed is a seed.
//!
//! `STEK_SIMULATION_SEEDS` sets how many. `make test` runs more of them beside its other steps, and
//! `make simulate` as many as one likes.

// A test ends where it cannot go on.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

const SIMULATION: &str = env!("CARGO_BIN_EXE_simulation");

/// So many seeds there are, of either kind.
const SEEDS: u64 = 20;

fn seeds() -> String {
    std::env::var("STEK_SIMULATION_SEEDS").unwrap_or_else(|_| SEEDS.to_string())
}

fn simulation(words: &[&str]) -> Output {
    Command::new(SIMULATION)
        .args(words)
        .env("SIMULATE_AGAIN", "cargo run -p simulation -- --seed {} --log")
        .output()
        .unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn all_promises_are_kept_and_all_servers_become_one() {
    let output = simulation(&["--seeds", &seeds(), "--until-broken"]);
    let words = words(&output);
    println!("{words}");
    assert!(output.status.success(), "{words}");
    // Something was there to be checked.
    let owed = words.split(" opened, ").nth(1).and_then(|rest| rest.split(' ').next());
    assert!(owed.and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > 0), "{words}");
}

/// Requests for votes that arrive when one who granted them has begun anew: rare among the seeds of
/// above, and the one schedule that breaks a server which counts as soon as it has caught up.
#[test]
fn no_vote_that_was_given_before_a_restart_elects_anybody() {
    let words = ["--late-votes", "--from", "201", "--seeds", &seeds(), "--until-broken"];
    let output = simulation(&words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Connections that are reset while both ends live.
#[test]
fn a_living_leader_survives_the_loss_of_its_connections() {
    let output = simulation(&["--resets", "--from", "301", "--seeds", &seeds(), "--until-broken"]);
    assert!(output.status.success(), "{}", words(&output));
}

#[test]
fn a_seed_has_the_same_events_each_time() {
    let run = |jobs| {
        let output = simulation(&["--from", "7000", "--seeds", "8", "--jobs", jobs, "--digests"]);
        let digests: std::collections::BTreeSet<String> = words(&output)
            .lines()
            .filter(|line| line.contains(" digest "))
            .map(str::to_owned)
            .collect();
        digests
    };
    let (one, other) = (run("1"), run("3"));
    assert_eq!(one.len(), 8);
    assert_eq!(one, other);
    // Different seeds are different stories.
    let stories = one.iter().filter_map(|line| line.split(' ').next_back());
    assert_eq!(stories.collect::<std::collections::BTreeSet<_>>().len(), 8);
}
