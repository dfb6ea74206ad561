//! What a state file cannot do: bring a key back that encrypts, vote, or hold anybody up.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stek_share::core::config::Settings;
use stek_share::core::key_ring::Generation;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::stek::Fingerprint;
use stek_share::log_sink::Level;
use stek_share::node::environment::{Disk, Environment, Files, Reply, Stamp, Unusable};
use stek_share::node::Joined;

use crate::fleet::{block_on, wait_for, Fleet};
use crate::state::{
    default, file_of, keeping_fleet, own_tls, rotate, start_keeping, state_root, wait_until_saved,
};

/// Whether a server has ever encrypted with this key.
fn encrypted_with(fleet: &Fleet, id: u32, key: &Fingerprint) -> bool {
    let sets = fleet.servers[&id].host.sets.lock().unwrap();
    sets.iter().any(|(_, set)| set.first() == Some(key))
}

/// Has the group drop its keys and make a new one.
fn revoke(fleet: &Fleet, by: u32) -> Generation {
    let made = block_on(fleet.servers[&by].node.admin_command(AdminCommand::Revoke)).unwrap();
    fleet.wait_for_generation(made.0);
    made
}

#[test]
fn a_revoked_key_that_a_file_brings_back_encrypts_nowhere() {
    let (mut fleet, root) = keeping_fleet("revoked");
    let revoked = fleet.servers[&1].node_status().fingerprint.unwrap();
    fleet.kill(3);
    let made = revoke(&fleet, 1);
    start_keeping(&mut fleet, &root, 3);
    let joined = block_on(fleet.servers[&3].node.wait_for_group(Duration::from_secs(30)));
    assert_ne!(joined, Joined::Keys(revoked), "a start waits for the group's keys, not the file's");
    fleet.wait_for_generation(made.0);
    assert!(!encrypted_with(&fleet, 3, &revoked), "{}", fleet.describe());
    assert!(!fleet.servers[&3].host.latest().contains(&revoked), "it is gone for good");

    // The same where all return, and one of them with a file of before the revocation.
    fleet.wait_for_generation(rotate(&fleet, 1).0);
    wait_until_saved(&mut fleet, &root, &[1, 2, 3]);
    let leaked = fleet.servers[&1].node_status().fingerprint.unwrap();
    let old = fs::read(file_of(&root, 3)).unwrap();
    let made = revoke(&fleet, 1);
    wait_until_saved(&mut fleet, &root, &[1, 2, 3]);
    for id in 1..=3 {
        fleet.kill(id);
    }
    fs::write(file_of(&root, 3), old).unwrap();
    for id in 1..=3 {
        start_keeping(&mut fleet, &root, id);
    }
    fleet.wait_for_generation(made.0);
    for id in 1..=3 {
        assert!(!encrypted_with(&fleet, id, &leaked), "{}", fleet.describe());
        assert!(!fleet.servers[&id].host.latest().contains(&leaked), "{}", fleet.describe());
    }
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_server_that_reaches_nobody_does_not_encrypt_with_the_keys_of_its_file() {
    let (mut fleet, root) = keeping_fleet("alone");
    let key = fleet.servers[&1].node_status().fingerprint.unwrap();
    for id in 1..=3 {
        fleet.kill(id);
    }
    start_keeping(&mut fleet, &root, 3);
    let joined = block_on(fleet.servers[&3].node.wait_for_group(Duration::from_secs(30)));
    assert_eq!(joined, Joined::NoMajority);
    let holds = || fleet.servers[&3].host.latest().contains(&key);
    wait_for("the file's key to decrypt", holds, || fleet.describe());
    assert!(!encrypted_with(&fleet, 3, &key), "{}", fleet.describe());
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

/// Restarts servers, each when the one before is back, with these files.
fn restart_with(fleet: &mut Fleet, root: &Path, files: &[(u32, Vec<u8>)]) {
    for (id, bytes) in files {
        fleet.kill(*id);
        fs::write(file_of(root, *id), bytes).unwrap();
        start_keeping(fleet, root, *id);
        fleet.wait_until_one();
    }
}

#[test]
fn files_of_before_count_for_nothing_among_those_who_live() {
    let (mut fleet, root) = keeping_fleet("backup");
    let old: Vec<(u32, Vec<u8>)> =
        (1..=3).map(|id| (id, fs::read(file_of(&root, id)).unwrap())).collect();
    fleet.wait_for_generation(rotate(&fleet, 1).0);
    let third = fleet.servers[&1].node_status().fingerprint.unwrap();
    fleet.wait_for_generation(rotate(&fleet, 1).0);
    let newest = fleet.servers[&1].node_status();
    // On one; on the others after it; then on two of them while the third lives.
    restart_with(&mut fleet, &root, &old[..1]);
    restart_with(&mut fleet, &root, &old[1..]);
    fleet.kill(1);
    fleet.kill(2);
    for (id, bytes) in &old[..2] {
        fs::write(file_of(&root, *id), bytes).unwrap();
        start_keeping(&mut fleet, &root, *id);
    }
    fleet.wait_until_one();
    let after = fleet.servers[&3].node_status();
    assert_eq!(after.cluster_id, newest.cluster_id, "{}", fleet.describe());
    assert_eq!(after.current, newest.current, "{}", fleet.describe());
    assert_eq!(after.fingerprint, newest.fingerprint, "{}", fleet.describe());
    assert!(fleet.servers[&1].host.latest().contains(&third), "the latest two, everywhere");
    let made = rotate(&fleet, 2);
    assert_eq!(made, newest.current.next());
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn the_newest_record_of_those_present_is_gone_on_from() {
    let (mut fleet, root) = keeping_fleet("newest");
    // Server 3 alone has a file of the latest keys, and the others are there first.
    for id in 1..=2 {
        let path = file_of(&root, id);
        fs::copy(&path, path.with_extension("old")).unwrap();
    }
    fleet.wait_for_generation(rotate(&fleet, 1).0);
    wait_until_saved(&mut fleet, &root, &[3]);
    let (keys, before) = (fleet.servers[&3].host.latest(), fleet.servers[&3].node_status());
    for id in 1..=3 {
        fleet.kill(id);
    }
    for id in 1..=2 {
        let path = file_of(&root, id);
        fs::rename(path.with_extension("old"), path).unwrap();
    }
    for id in [1, 2, 3] {
        start_keeping(&mut fleet, &root, id);
    }
    fleet.wait_until_one();
    let after = fleet.servers[&1].node_status();
    assert_eq!((after.current, after.fingerprint), (before.current, before.fingerprint));
    assert_eq!(fleet.servers[&1].host.latest(), keys, "{}", fleet.describe());
    let told = |line| fleet.servers.values().any(|running| running.lines.has(line));
    assert!(told("of the state file of server 3: generation 3"), "{}", fleet.describe());
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_key_that_is_due_when_all_return_is_replaced_at_once() {
    let (mut fleet, root) = keeping_fleet("due");
    let before = fleet.servers[&1].node_status();
    fleet.tune = |settings: &mut Settings| {
        settings.key_update_interval = Duration::from_secs(2);
    };
    for id in 1..=3 {
        fleet.kill(id);
    }
    let down = Instant::now();
    let is_due = || down.elapsed() + before.current_age > Duration::from_secs(2);
    wait_for("the key to be due", is_due, String::new);
    for id in 1..=3 {
        start_keeping(&mut fleet, &root, id);
    }
    let begun = Instant::now();
    fleet.wait_for_generation(before.current.next().0);
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(1900), "the interval began anew: {took:?}");
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

/// A directory where the file belongs can be neither replaced nor removed, even by root.
#[test]
fn a_file_that_can_be_neither_written_nor_removed_costs_a_warning() {
    let root = state_root("stuck");
    let mut fleet = Fleet::new(3, default);
    for id in 1..=3 {
        fs::create_dir_all(file_of(&root, id).join("in the way")).unwrap();
        start_keeping(&mut fleet, &root, id);
    }
    fleet.wait_until_one();
    let before = fleet.servers[&1].node_status();
    fleet.wait_for_generation(rotate(&fleet, 2).0);
    revoke(&fleet, 1);
    assert_eq!(
        fleet.servers[&1].node_status().cluster_id,
        before.cluster_id,
        "{}",
        fleet.describe()
    );
    for running in fleet.servers.values() {
        let warned = |words: &str| {
            let lines = running.lines.all();
            lines.iter().any(|(level, line)| *level == Level::Warning && line.contains(words))
        };
        wait_for("a warning", || warned("cannot be written"), || fleet.describe());
        assert!(warned("is not used") && warned("make state_dir a directory"), "no remedy");
        assert!(!warned("agreement stopped"), "{}", fleet.describe());
    }
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

/// Set in the process that may run out of file descriptors.
const FEW: &str = "STEK_TEST_FEW_DESCRIPTORS";

/// In a process of its own, because all tests of this one share the limit.
#[test]
fn a_lack_of_file_descriptors_makes_nobody_forget() {
    let name = "records::a_lack_of_file_descriptors_makes_nobody_forget";
    if std::env::var_os(FEW).is_none() {
        let own = std::env::current_exe().unwrap();
        let run = Command::new("sh")
            .args(["-c", "ulimit -n 512; exec \"$0\" --exact \"$1\" --nocapture"])
            .args([own.as_os_str(), name.as_ref()])
            .env(FEW, "1")
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{}{words}", String::from_utf8_lossy(&run.stdout));
        return;
    }
    let (mut fleet, root) = keeping_fleet("few");
    let before = fleet.servers[&1].node_status();
    let mut held = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        held.push(file);
    }
    for order in [AdminCommand::Rotate, AdminCommand::Revoke] {
        let running = &fleet.servers[&1];
        let runtime = running.runtime.as_ref().unwrap();
        let made = runtime.block_on(running.node.admin_command(order)).unwrap();
        fleet.wait_for_generation(made.0);
    }
    for running in fleet.servers.values() {
        let warned = || running.lines.has("cannot be written: Too many open files");
        wait_for("a warning", warned, || fleet.describe());
    }
    drop(held);
    let after = fleet.servers[&1].node_status();
    assert_eq!(after.cluster_id, before.cluster_id, "{}", fleet.describe());
    assert_eq!(after.current.0, before.current.0 + 2, "{}", fleet.describe());
    // It goes on trying.
    wait_until_saved(&mut fleet, &root, &[1, 2, 3]);
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

/// Files whose every access takes so long, in milliseconds.
struct Slow(Arc<AtomicU64>);

/// Longer than any test.
const FOR_EVER: u64 = 3_600_000;

/// There is no room on it.
const FULL: u64 = u64::MAX;

impl Slow {
    fn later<T: Send + 'static>(&self, then: Reply<T>) -> Reply<T> {
        let pause = Duration::from_millis(self.0.load(Ordering::SeqCst));
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            then.await
        })
    }
}

impl Disk for Slow {
    fn doubts_about(&self, dir: &Path) -> Reply<Vec<String>> {
        self.later(Files.doubts_about(dir))
    }

    fn read(&self, path: &Path) -> Reply<Result<Vec<u8>, Unusable>> {
        self.later(Files.read(path))
    }

    fn write(&self, path: &Path, bytes: Vec<u8>) -> Reply<io::Result<()>> {
        match self.0.load(Ordering::SeqCst) {
            FULL => Box::pin(std::future::ready(Err(io::ErrorKind::StorageFull.into()))),
            _ => self.later(Files.write(path, bytes)),
        }
    }

    fn remove(&self, path: &Path) -> Reply<io::Result<()>> {
        match self.0.load(Ordering::SeqCst) {
            FULL => Files.remove(path),
            _ => self.later(Files.remove(path)),
        }
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Files.stamp()
    }
}

/// Three servers on disks of which each takes as long as its knob says.
fn slow_fleet(root: &Path, takes: u64) -> (Fleet, Arc<AtomicU64>) {
    let mut fleet = Fleet::new(3, default);
    let knob = Arc::new(AtomicU64::new(takes));
    for id in 1..=3 {
        let mut settings = fleet.settings(id);
        settings.state_dir = Some(root.join(id.to_string()));
        let tls = own_tls(&mut fleet, id);
        let disk = Arc::new(Slow(knob.clone()));
        fleet.start_within(id, settings, tls, Environment { disk, ..Environment::default() });
    }
    fleet.wait_until_one();
    (fleet, knob)
}

#[test]
fn a_file_that_cannot_be_brought_up_to_date_after_a_revocation_is_removed() {
    let root = state_root("full");
    let (mut fleet, knob) = slow_fleet(&root, 0);
    wait_until_saved(&mut fleet, &root, &[1, 2, 3]);
    knob.store(FULL, Ordering::SeqCst);
    fleet.wait_for_generation(rotate(&fleet, 1).0);
    let warned = |fleet: &Fleet| {
        fleet
            .servers
            .values()
            .all(|running| running.lines.has("cannot be written: no storage space"))
    };
    wait_for("warnings", || warned(&fleet), || fleet.describe());
    // What it holds still decrypts, and is better than nothing.
    assert!((1..=3).all(|id| file_of(&root, id).exists()));
    revoke(&fleet, 1);
    let removed = || (1..=3).all(|id| !file_of(&root, id).exists());
    wait_for("the files to be removed", removed, || fleet.describe());
    knob.store(0, Ordering::SeqCst);
    wait_until_saved(&mut fleet, &root, &[1, 2, 3]);
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_disk_that_is_slow_or_hangs_holds_up_neither_rotations_nor_elections_nor_a_start() {
    const ROTATIONS: u64 = 4;
    for takes in [400, FOR_EVER] {
        let root = state_root(&format!("slow-{takes}"));
        let (fleet, _) = slow_fleet(&root, takes);
        // The first write of each shows how slow the disk is; it is waited for once.
        rotate(&fleet, 1);
        let reigns = |fleet: &Fleet| -> usize {
            let of = |lines: Vec<(Level, String)>| {
                lines.iter().filter(|(_, line)| line.contains("is the leader of term")).count()
            };
            fleet.servers.values().map(|running| of(running.lines.all())).sum()
        };
        let (before, first) = (reigns(&fleet), fleet.servers[&1].node_status().current);
        let begun = Instant::now();
        for _ in 0..ROTATIONS {
            rotate(&fleet, 1);
        }
        fleet.wait_for_generation(first.0 + ROTATIONS);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(4), "{ROTATIONS} rotations take {took:?}");
        assert_eq!(reigns(&fleet), before, "{}", fleet.describe());
        drop(fleet);
        fs::remove_dir_all(root).unwrap();
    }
}
