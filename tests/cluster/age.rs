//! Rotation keeps its schedule by the monotonic clock (promise 4), and no key encrypts for longer
//! than it may (promise 5).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use stek_share::core::config::Settings;
use stek_share::core::stek::Fingerprint;

use crate::fleet::{wait_for, Fleet};

const INTERVAL: Duration = Duration::from_secs(1);
const MAX_AGE: Duration = Duration::from_secs(2);

fn short_lived(settings: &mut Settings) {
    settings.key_update_interval = INTERVAL;
    settings.handover_timeout = Duration::from_millis(500);
    settings.max_key_age = MAX_AGE;
}

#[test]
fn without_a_quorum_a_server_goes_on_with_keys_of_its_own_and_comes_back_by_itself() {
    let mut fleet = Fleet::running(3, short_lived);
    fleet.wait_for_generation(2);
    fleet.kill(1);
    fleet.kill(2);
    let survivor = &fleet.servers[&3];
    wait_for(
        "the survivor to give up the group's key",
        || survivor.lines.has("too old to encrypt"),
        || fleet.describe(),
    );
    // Each of its own keys is replaced after the interval, too.
    wait_for(
        "three keys of its own",
        || {
            let lines = survivor.lines.all();
            lines.iter().filter(|(_, l)| l.contains("this server's own key is now")).count() >= 3
        },
        || fleet.describe(),
    );
    let sets = survivor.host.sets.lock().unwrap().clone();
    let mut used: BTreeMap<Fingerprint, (Instant, Instant)> = BTreeMap::new();
    for pair in sets.windows(2) {
        let span = used.entry(pair[0].1[0]).or_insert((pair[0].0, pair[1].0));
        span.1 = pair[1].0;
    }
    // Every key is bounded by the longer of both times, with room for a slow machine.
    for (key, (from, to)) in used {
        let age = to - from;
        assert!(age < MAX_AGE + Duration::from_secs(1), "{key} encrypted for {age:?}");
    }
    fleet.start(1);
    fleet.start(2);
    fleet.wait_until_one();
    assert!(fleet.servers[&3].node_status().current.0 > 0);
    wait_for(
        "the survivor to say that it is back",
        || fleet.servers[&3].lines.has("fresh again"),
        || fleet.describe(),
    );
}

/// How soon after a machine woke up its keys have to be right: a look at the metrics, and more for
/// a busy machine.
const AWAKE: Duration = Duration::from_secs(10);

fn hourly(settings: &mut Settings) {
    settings.key_update_interval = Duration::from_secs(3600);
    settings.max_key_age = Duration::from_secs(3 * 3600);
}

#[test]
fn a_key_that_became_overdue_while_the_machines_slept_is_replaced() {
    for count in [1, 3] {
        let fleet = Fleet::running(count, hourly);
        fleet.wait_until_one();
        let old = fleet.servers[&1].node_status().current;
        let woken = Instant::now();
        for running in fleet.servers.values() {
            running.slept.store(3601, Ordering::SeqCst);
        }
        fleet.wait_for_generation(old.0 + 1);
        assert!(woken.elapsed() < AWAKE, "replaced after {:?}", woken.elapsed());
        fleet.wait_until_one();
        // The new one is as old as it is.
        let age = fleet.servers[&1].node_status().current_age;
        assert!(age < AWAKE, "{age:?}");
        assert_eq!(fleet.servers[&1].node_status().current.0, old.0 + 1, "one rotation, not two");
    }
}

#[test]
fn a_key_that_became_too_old_while_a_machine_without_a_majority_slept_is_given_up() {
    let mut fleet = Fleet::running(3, hourly);
    fleet.wait_until_one();
    fleet.kill(1);
    fleet.kill(2);
    let survivor = &fleet.servers[&3];
    let key = survivor.host.latest()[0];
    let woken = Instant::now();
    survivor.slept.store(3 * 3600 + 60, Ordering::SeqCst);
    wait_for(
        "the survivor to give up the group's key",
        || survivor.lines.has("too old to encrypt") && survivor.host.latest()[0] != key,
        || fleet.describe(),
    );
    assert!(woken.elapsed() < AWAKE, "given up after {:?}", woken.elapsed());
}

#[test]
fn an_interval_of_one_second_means_one_second() {
    let fleet = Fleet::running(1, short_lived);
    fleet.wait_for_generation(6);
    let sets = fleet.servers[&1].host.sets.lock().unwrap().clone();
    let mut last = None;
    let mut changes = Vec::new();
    for (at, keys) in sets {
        if last != Some(keys[0]) {
            changes.push(at);
            last = Some(keys[0]);
        }
    }
    // The first two are the server's own key becoming generation 1.
    for pair in changes.windows(2).skip(1) {
        let gap = pair[1] - pair[0];
        // What is seen here is the installation, which comes a moment after the activation.
        assert!(gap >= INTERVAL * 9 / 10, "rotated early, after {gap:?}");
    }
}

#[test]
fn a_restarted_server_is_told_how_old_the_key_is() {
    let mut fleet =
        Fleet::running(3, |settings| settings.key_update_interval = Duration::from_secs(3600));
    fleet.wait_until_one();
    let age_before = fleet.servers[&2].node_status().current_age;
    fleet.kill(1);
    std::thread::sleep(Duration::from_millis(300));
    fleet.start(1);
    fleet.wait_until_one();
    wait_for(
        "the server to know the key's age",
        || fleet.servers[&1].node_status().current_age > age_before + Duration::from_millis(300),
        || fleet.describe(),
    );
}

/// Where Debian's package libfaketime puts its library, on whichever architecture.
fn libfaketime() -> Option<PathBuf> {
    let dirs = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    dirs.map(|dir| dir.join("faketime/libfaketime.so.1")).find(|lib| lib.exists())
}

const CLOCK_FILE: &str = "STEK_TEST_CLOCK_FILE";

/// Runs [`clock_child`] under a wall clock that jumps by hours.
#[test]
fn a_clock_that_steps_by_hours_changes_nothing() {
    let lib = libfaketime().expect("`make deps` installs Debian's faketime");
    let dir = testkit::run_dir::RunDir::new("clock").unwrap();
    let clock = dir.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "age::clock_child", "--ignored", "--nocapture"])
        .env("LD_PRELOAD", lib)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env(CLOCK_FILE, &clock)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("clock steps survived: 4"), "{said}");
    dir.done().unwrap();
}

#[test]
#[ignore = "run by a_clock_that_steps_by_hours_changes_nothing"]
fn clock_child() {
    let clock = std::env::var(CLOCK_FILE).expect("started by its test");
    let clock = Path::new(&clock);
    let fleet = Fleet::running(3, short_lived);
    fleet.wait_for_generation(2);
    let mut survived = 0;
    for step in ["+3h", "-5h", "+40d", "+0"] {
        let before = SystemTime::now();
        // Renamed into place, so that no reader meets a half written file.
        let fresh = clock.with_extension("new");
        std::fs::write(&fresh, step).unwrap();
        std::fs::rename(&fresh, clock).unwrap();
        let jumped = match SystemTime::now().duration_since(before) {
            Ok(ahead) => ahead,
            Err(back) => back.duration(),
        };
        assert!(jumped > Duration::from_secs(3600), "the wall clock did not jump: {jumped:?}");
        let generation = fleet.servers[&1].node_status().current.0;
        let begun = Instant::now();
        fleet.wait_for_generation(generation + 2);
        // Two rotations in two intervals: not at once, and not hours later.
        assert!(begun.elapsed() >= INTERVAL * 9 / 10, "rotated early, after {:?}", begun.elapsed());
        survived += 1;
    }
    let sets = fleet.servers[&1].host.sets.lock().unwrap().clone();
    for pair in sets.windows(2) {
        assert!(pair[0].1.contains(&pair[1].1[0]), "a key was used before it was held");
    }
    println!("clock steps survived: {survived}");
}
