//! `state_dir`: the keys outlive a restart of all servers, in a file that is of no use to anybody else.
//! What such a file cannot do is for [`crate::records`].

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stek_share::core::config::Settings;
use stek_share::core::key_ring::Generation;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_id::ServerId;
use stek_share::log_sink::Level;
use stek_share::node::state_file_fuzzing as state_file;
use stek_share::rpc::AdminRefusal;
use stek_share::transport::tls::Tls;

use crate::fleet::{block_on, tls_of, wait_for, Fleet, Host, SUBJECT};

pub fn default(_: &mut Settings) {}

/// A directory on memory-backed storage for one test.
pub fn state_root(name: &str) -> PathBuf {
    let root = Path::new("/dev/shm").join(format!("stek-test-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&root);
    fs::create_dir(&root).unwrap();
    root
}

/// Starts a server that keeps its state; each server of a test has a directory of its own.
pub fn start_keeping(fleet: &mut Fleet, root: &Path, id: u32) {
    let mut settings = fleet.settings(id);
    settings.state_dir = Some(root.join(id.to_string()));
    // The same certificate at each start, as a restarted server has.
    let tls = own_tls(fleet, id);
    fleet.start_with(id, settings, tls);
}

pub fn own_tls(fleet: &mut Fleet, id: u32) -> Tls {
    let identity = fleet.identity(id);
    tls_of(&fleet.authority.identity, &identity, SUBJECT)
}

pub fn file_of(root: &Path, id: u32) -> PathBuf {
    root.join(id.to_string()).join(format!("server-{id}.state"))
}

pub fn keeping_fleet(name: &str) -> (Fleet, PathBuf) {
    let root = state_root(name);
    let mut fleet = Fleet::new(3, default);
    for id in 1..=3 {
        start_keeping(&mut fleet, &root, id);
    }
    fleet.wait_until_one();
    block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(2);
    wait_until_saved(&mut fleet, &root, &[1, 2, 3]);
    (fleet, root)
}

/// Waits until the files hold what these servers have agreed on; nobody waits for them otherwise.
pub fn wait_until_saved(fleet: &mut Fleet, root: &Path, ids: &[u32]) {
    for id in ids {
        let tls = own_tls(fleet, *id);
        let file = file_of(root, *id);
        let is_saved = || {
            let Ok(bytes) = fs::read(&file) else { return false };
            let Ok(saved) = state_file::open(&bytes, ServerId(*id), &tls) else { return false };
            let report = fleet.servers[id].node_status();
            let ring = &saved.record.agreed.ring;
            ring.cluster_id() == report.cluster_id
                && ring.staged().is_none()
                && ring.current().is_some_and(|held| held.generation == report.current)
        };
        wait_for(&format!("the file of server {id}"), is_saved, || fleet.describe());
    }
}

#[test]
fn all_restarted_at_once_keep_both_keys() {
    let (mut fleet, root) = keeping_fleet("all");
    for round in 0..3 {
        let before = fleet.servers[&1].node_status();
        let keys = fleet.servers[&1].host.latest();
        for id in 1..=3 {
            fleet.kill(id);
        }
        for id in 1..=3 {
            start_keeping(&mut fleet, &root, id);
        }
        fleet.wait_until_one();
        let after = fleet.servers[&2].node_status();
        assert_eq!(after.cluster_id, before.cluster_id, "the keys go on");
        assert_eq!(after.current, before.current, "round {round}: {}", fleet.describe());
        assert_eq!(fleet.servers[&2].host.latest(), keys, "round {round}");
        for running in fleet.servers.values() {
            // Held before used: no server encrypts with it before all reachable ones hold it.
            let encrypting = |host: &Host| {
                let sets = host.sets.lock().unwrap();
                sets.iter().find(|(_, set)| set.first() == keys.first()).map(|(at, _)| *at)
            };
            let holding = |host: &Host| {
                let sets = host.sets.lock().unwrap();
                sets.iter().find(|(_, set)| set.contains(&keys[0])).map(|(at, _)| *at)
            };
            let used = encrypting(&running.host).unwrap();
            assert!(fleet.servers.values().all(|other| holding(&other.host).unwrap() < used));
        }
        assert!(after.current_age >= before.current_age, "the key got younger");
        fleet.wait_for_generation(rotate(&fleet, 3).0);
        wait_until_saved(&mut fleet, &root, &[1, 2, 3]);
    }
    // A server that lives might save meanwhile.
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

/// Has the group rotate. Servers that have just started may elect once more; an order that was on
/// its way then comes back as unknown, and is given again.
pub fn rotate(fleet: &Fleet, by: u32) -> Generation {
    let generation = std::cell::Cell::new(None);
    wait_for(
        "a rotation by order",
        || match block_on(fleet.servers[&by].node.admin_command(AdminCommand::Rotate)) {
            Ok(made) => {
                generation.set(Some(made));
                true
            }
            Err(AdminRefusal::Unknown | AdminRefusal::NoLeader) => false,
            Err(other) => panic!("{other}: {}", fleet.describe()),
        },
        || fleet.describe(),
    );
    generation.get().unwrap()
}

#[test]
fn the_file_is_private_and_holds_no_key_in_clear() {
    let (fleet, root) = keeping_fleet("private");
    for id in 1..=3 {
        let path = file_of(&root, id);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let dir = path.parent().unwrap();
        assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
        let bytes = fs::read(&path).unwrap();
        for key in &fleet.servers[&id].node.key_sets().borrow().keys {
            let key: &[u8; 48] = key.expose();
            assert_eq!(testkit::memory::contains_key(&bytes, key), None);
            assert!(!bytes.windows(16).any(|window| window == &key[..16]), "not even its name");
        }
    }
    // A server that lives might save meanwhile.
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

/// Kills server 3, spoils its file, starts it again: it must refuse the file with `reason` and come
/// back as an empty server.
fn refused(fleet: &mut Fleet, root: &Path, reason: &str, spoil: impl FnOnce(&Path)) {
    // It counts again, and has saved what it remembers, a moment after it has the keys.
    let file = file_of(root, 3);
    wait_for("a file to spoil", || file.exists(), || fleet.describe());
    fleet.kill(3);
    // Elsewhere: a process that is killed saves no more, but here a save that was begun comes to its end.
    static ROUND: AtomicU32 = AtomicU32::new(0);
    let root = &root.join(format!("again-{}", ROUND.fetch_add(1, Ordering::Relaxed)));
    let spoilt = file_of(root, 3);
    fs::create_dir_all(spoilt.parent().unwrap()).unwrap();
    fs::copy(&file, &spoilt).unwrap();
    spoil(&spoilt);
    start_keeping(fleet, root, 3);
    fleet.wait_until_one();
    wait_until_saved(fleet, root, &[3]);
    let lines = fleet.servers[&3].lines.all();
    assert!(
        lines.iter().any(|(level, line)| *level == Level::Warning
            && line.contains("is not used")
            && line.contains(reason)),
        "no line says {reason:?}: {lines:?}"
    );
}

#[test]
fn a_file_that_is_not_right_is_refused_with_a_line() {
    let (mut fleet, root) = keeping_fleet("wrong");
    let whole = |path: &Path| fs::read(path).unwrap();
    refused(&mut fleet, &root, "cut short", |path| {
        fs::write(path, &whole(path)[..20]).unwrap();
    });
    refused(&mut fleet, &root, "damaged", |path| {
        let bytes = whole(path);
        fs::write(path, &bytes[..bytes.len() - 5]).unwrap();
    });
    refused(&mut fleet, &root, "damaged", |path| {
        let mut bytes = whole(path);
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    });
    refused(&mut fleet, &root, "no state file", |path| {
        fs::write(path, vec![b'x'; 500]).unwrap();
    });
    refused(&mut fleet, &root, "mode is 644", |path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    });
    let others = file_of(&root, 1);
    refused(&mut fleet, &root, "belongs to server_id 1", |path| {
        fs::copy(&others, path).unwrap();
    });
    // A server that lives might save meanwhile.
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn another_private_key_does_not_open_it_and_a_renewed_one_seals_it_anew() {
    let (mut fleet, root) = keeping_fleet("renewed");
    // Renewed while it runs: sealed under the new key at once.
    fleet.renew_identity(3);
    let renewed = own_tls(&mut fleet, 3);
    fleet.servers[&3].node.set_certificates(renewed);
    wait_until_saved(&mut fleet, &root, &[3]);
    fleet.kill(3);
    start_keeping(&mut fleet, &root, 3);
    fleet.wait_until_one();
    assert!(fleet.servers[&3].lines.has("the keys of the state file, saved"));
    // Renewed while it was down: the old file is closed for good.
    wait_until_saved(&mut fleet, &root, &[3]);
    fleet.renew_identity(3);
    refused(&mut fleet, &root, "another private key", |_| {});
    // A server that lives might save meanwhile.
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn keys_that_are_too_old_are_refused() {
    let (mut fleet, root) = keeping_fleet("old");
    fleet.kill(3);
    let mut settings = fleet.settings(3);
    settings.state_dir = Some(root.join("3"));
    settings.max_key_age = Duration::from_millis(1);
    settings.key_update_interval = Duration::from_secs(3600);
    let tls = own_tls(&mut fleet, 3);
    std::thread::sleep(Duration::from_millis(20));
    fleet.start_with(3, settings, tls);
    wait_for(
        "the file to be refused",
        || fleet.servers[&3].lines.has("more than max_key_age"),
        || fleet.describe(),
    );
    // A server that lives might save meanwhile.
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_file_of_a_cluster_id_that_the_group_has_left_is_refused() {
    let (mut fleet, root) = keeping_fleet("left");
    let old = fleet.servers[&1].node_status().cluster_id;
    fleet.kill(3);
    // The others begin anew without it.
    for id in 1..=2 {
        fleet.kill(id);
        fs::remove_file(file_of(&root, id)).unwrap();
    }
    for id in 1..=2 {
        start_keeping(&mut fleet, &root, id);
    }
    fleet.wait_until_one();
    assert_ne!(fleet.servers[&1].node_status().cluster_id, old);
    start_keeping(&mut fleet, &root, 3);
    fleet.wait_until_one();
    assert_eq!(
        fleet.servers[&3].node_status().cluster_id,
        fleet.servers[&1].node_status().cluster_id
    );
    // A server that lives might save meanwhile.
    drop(fleet);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_place_on_a_disk_is_warned_of() {
    let dir = testkit::run_dir::RunDir::new("state").unwrap();
    let mut fleet = Fleet::new(1, default);
    start_keeping(&mut fleet, dir.path(), 1);
    fleet.wait_until_one();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Where the temporary directory itself is in memory there is nothing to warn of.
    let tmp_in_memory = mounts.lines().any(|l| l.contains(" /tmp ") && l.contains(" - tmpfs "));
    let is_warned = || fleet.servers[&1].lines.has("not on memory-backed storage");
    wait_for("a warning, if due", || is_warned() != tmp_in_memory, || fleet.describe());
    dir.done().unwrap();
}
