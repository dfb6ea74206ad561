//! A retired key is gone from the whole process (promise 6), whatever `reserved_log_items` keeps.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use stek_share::core::config::Settings;
use stek_share::core::rotation::AdminCommand;

use crate::fleet::{block_on, Fleet};

fn hoarding(settings: &mut Settings) {
    settings.reserved_log_items = 1000;
    settings.snapshot_distance = 1000;
}

/// How long after its retirement a key may still be in memory.
const GRACE: Duration = Duration::from_secs(1);

const ROTATIONS: usize = 4;

/// Scans the memory of a process that runs three servers, from outside.
#[test]
fn a_retired_key_is_in_no_memory_one_second_later() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "erasure::erasure_child", "--ignored", "--nocapture"])
        .env("STEK_TEST_CHILD", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let mut orders = child.stdin.take().unwrap();
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut scanned = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // Test harnesses print their own words in front of ours.
        if let Some((_, masked)) = line.split_once("masked key ") {
            keys.push(unmask(masked));
        } else if line.contains("rotated") {
            let (current, older) = keys.split_last().unwrap();
            let hits = testkit::memory::find_all(pid, secrets(current)).unwrap();
            assert!(!hits.is_empty(), "the scan does not even find the current key");
            if let Some((_previous, retired)) = older.split_last() {
                std::thread::sleep(GRACE);
                for key in retired {
                    let hits = testkit::memory::find_all(pid, secrets(key)).unwrap();
                    assert!(hits.is_empty(), "a retired key is still there: {hits:?}");
                    scanned += 1;
                }
            }
            orders.write_all(b"on\n").unwrap();
        }
    }
    assert!(child.wait().unwrap().success());
    assert!(scanned >= ROTATIONS - 1, "only {scanned} retired keys were looked for");
}

/// The parts that stand in no ticket.
fn secrets(key: &[u8]) -> &[u8] {
    &key[16..]
}

const MASK: u8 = 0xA5;

fn unmask(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.trim().bytes().map(|d| (d as char).to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) ^ MASK).collect()
}

#[test]
#[ignore = "run by a_retired_key_is_in_no_memory_one_second_later"]
fn erasure_child() {
    assert!(std::env::var_os("STEK_TEST_CHILD").is_some(), "started by its test");
    let fleet = Fleet::running(3, hoarding);
    fleet.wait_until_one();
    let mut stdout = File::options().write(true).open("/proc/self/fd/1").unwrap();
    let mut go_on = std::io::stdin().lines();
    for rotation in 0..ROTATIONS {
        if rotation > 0 {
            let generation =
                block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
            fleet.wait_for_generation(generation.0);
        }
        // Masked byte by byte, so that this line leaves no second copy of the key behind.
        let set = fleet.servers[&1].node.key_sets().borrow().clone();
        let masked: String =
            set.keys[0].expose().iter().map(|byte| format!("{:02x}", byte ^ MASK)).collect();
        drop(set);
        write!(stdout, "\nmasked key {masked}\nrotated\n").unwrap();
        go_on.next().unwrap().unwrap();
    }
}

#[test]
fn reserved_log_items_and_snapshot_distance_bound_the_entries_that_are_kept() {
    let entries_with = |tune: fn(&mut Settings)| {
        let fleet = Fleet::running(1, tune);
        fleet.wait_until_one();
        for _ in 0..12 {
            block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
        }
        fleet.wait_until_one();
        // Erasing comes a moment after the rotation.
        let mut least = usize::MAX;
        for _ in 0..200 {
            least = least.min(fleet.servers[&1].node_status().log_entries);
            std::thread::sleep(Duration::from_millis(5));
        }
        least
    };
    let none = entries_with(|s| {
        s.reserved_log_items = 0;
        s.snapshot_distance = 1;
    });
    let many = entries_with(|s| {
        s.reserved_log_items = 1000;
        s.snapshot_distance = 1000;
    });
    assert_eq!(none, 0);
    // Two keys live on in the ring: the entries that staged them and made them current may stay,
    // and the one that made the last retired key current, which carries no key.
    assert!((1..=5).contains(&many), "{many} entries are kept");
}
