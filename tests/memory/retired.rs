//! A retired key is gone from the plugin at once, and from the whole server when the host has
//! erased its own copies.

use std::time::{Duration, Instant};

use testkit::ats::Ats;
use testkit::fleet::{wait_one_key, Fleet, Plan};
use testkit::run_dir::RunDir;
use testkit::tickets::{fingerprint, take, TlsVersion, KEY_LEN};
use testkit::{wait, Context, Result};

use crate::{copies, key_of, keys_held, plugin, Copies};

/// A key lives for two of these.
const INTERVAL: Duration = Duration::from_secs(4);

/// The same, where many keys are to be seen.
const SHORT_INTERVAL: Duration = Duration::from_secs(2);

/// How long the servers may take to agree, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long after its retirement a key may still be in the plugin's pages.
const GRACE: Duration = Duration::from_secs(1);

/// How long the host may hold what it was given. It takes 60 s after a set was replaced.
const HOST_LIMIT: Duration = Duration::from_secs(180);

/// Keys in use: current, previous and, during a handover, staged.
const MOST_HELD: usize = 3;

/// Between two looks through a whole process.
const SCAN_PAUSE: Duration = Duration::from_millis(500);

/// Follows two keys to their end: one that a returning server got in a snapshot, and the next, which
/// one server made and the others got by the log.
#[test]
fn retired_keys_are_gone_from_every_server() -> Result<()> {
    let dir = RunDir::new("retired")?;
    let mut fleet = hoarding(INTERVAL)?.start(dir.path())?;
    let first = wait_one_key(&fleet.https(), None, PATIENCE)?;
    let leader = wait::until(PATIENCE, "a leader", || Ok(fleet.leader()))?.index;
    let away = (leader + 1) % 3;
    fleet.servers[away].kill9();
    let staying = fleet.https_without(away);
    // Two keys later the first has retired, and its log entries are purged with it: what remains
    // can only be had as a snapshot.
    let second = wait_one_key(&staying, Some(&first), PATIENCE)?;
    wait_one_key(&staying, Some(&second), PATIENCE)?;
    let by_snapshot = present_key(&fleet, leader)?;
    let old = fleet.servers[away].debug_lines().len();
    fleet.servers[away].start()?;
    fleet.servers[away].wait_ready()?;
    let all: Vec<Box> = (0..3).map(|i| Box(i, if i == away { old } else { 0 })).collect();
    wait_until_held(&fleet, away, &by_snapshot)?;
    wait_one_key(&fleet.https(), Some(&name_of(&by_snapshot)), PATIENCE)?;
    let by_log = present_key(&fleet, leader)?;
    assert_ne!(by_snapshot, by_log);
    for index in 0..3 {
        let now = wait_until_held(&fleet, index, &by_log)?;
        assert!(!now.elsewhere.is_empty(), "the host holds no key? {now:?}");
    }

    let mut keys = Vec::new();
    for (what, key) in [("got by snapshot", &by_snapshot), ("got by log", &by_log)] {
        let retired = wait_until_left_out(&fleet, &all, key)?;
        std::thread::sleep(GRACE);
        assert_gone_from_our_pages(&fleet, &all, key)?;
        // The other key retires meanwhile; the host keeps either for much longer than that.
        keys.push((what, key, retired));
    }
    for (what, key, retired) in keys {
        wait_until_gone(&fleet, what, key, retired)?;
    }
    dir.done()
}

/// A server that hangs leaves requests to it open, which must not keep keys alive elsewhere.
#[test]
fn retired_keys_are_gone_while_a_server_hangs() -> Result<()> {
    keys_retire_without("hangs", |leader| (leader + 1) % 3, |ats| ats.pause(), 6)
}

/// What a leader that died had sent lies in no buffer of the others, and its last keys go as well.
#[test]
fn retired_keys_are_gone_after_the_leader_died() -> Result<()> {
    let kill = |ats: &mut Ats| {
        ats.kill9();
        Ok(())
    };
    keys_retire_without("dies", |leader| leader, kill, 2)
}

/// Does `harm` to the server that `choose` makes of the leader's index, and follows the key that is
/// in use then and the next ones, `count` in all, to their end on the others.
fn keys_retire_without(
    purpose: &str,
    choose: fn(usize) -> usize,
    harm: impl Fn(&mut Ats) -> Result<()>,
    count: usize,
) -> Result<()> {
    let dir = RunDir::new(purpose)?;
    let mut fleet = hoarding(SHORT_INTERVAL)?.start(dir.path())?;
    let mut name = wait_one_key(&fleet.https(), None, PATIENCE)?;
    let away = choose(wait::until(PATIENCE, "a leader", || Ok(fleet.leader()))?.index);
    let others: Vec<Box> = (0..3).filter(|i| *i != away).map(|i| Box(i, 0)).collect();
    // One that was staged in an ordinary handover, not the leader's initial STEK.
    name = wait_one_key(&fleet.https(), Some(&name), PATIENCE)?;
    let mut key = present_key(&fleet, others[0].0)?;
    harm(&mut fleet.servers[away])?;
    for _ in 0..count {
        wait_until_left_out(&fleet, &others, &key)?;
        std::thread::sleep(GRACE);
        assert_gone_from_our_pages(&fleet, &others, &key)?;
        name = wait_one_key(&fleet.https_without(away), Some(&name), PATIENCE)?;
        key = present_key(&fleet, others[0].0)?;
    }
    dir.done()
}

/// Three servers that are told to keep all of the log, which does not extend to retired keys.
fn hoarding(interval: Duration) -> Result<Plan> {
    let plan = Plan::new(3, &plugin()?, interval);
    Ok(plan.option("reserved_log_items", "1000").option("snapshot_distance", "1000"))
}

fn name_of(key: &[u8; KEY_LEN]) -> [u8; 16] {
    std::array::from_fn(|i| key[i])
}

/// The key that a server encrypts with now.
fn present_key(fleet: &Fleet, index: usize) -> Result<[u8; KEY_LEN]> {
    let ats = &fleet.servers[index];
    key_of(ats.pid()?, &take(ats.https(), TlsVersion::V12)?)
}

/// Waits until the plugin of a server holds `key`; so the search does find it where it is.
fn wait_until_held(fleet: &Fleet, index: usize, key: &[u8; KEY_LEN]) -> Result<Copies> {
    let pid = fleet.servers[index].pid()?;
    wait::until_every(SCAN_PAUSE, PATIENCE, "the key in the plugin's pages", || {
        Ok(Some(copies(pid, key)?).filter(|now| !now.ours.is_empty()))
    })
}

/// A server by its index, and where in its debug lines its present run begins.
struct Box(usize, usize);

/// The sets that a server gave to its host in its present run.
fn sets_of(fleet: &Fleet, Box(index, from): &Box) -> Vec<String> {
    let lines = fleet.servers[*index].debug_lines();
    let sets = lines.get(*from..).unwrap_or_default().lines();
    sets.filter_map(|line| line.split_once("installed key set ")).map(|(_, s)| s.into()).collect()
}

/// Waits until the latest set of each server has no place for `key` any more; when that was.
fn wait_until_left_out(fleet: &Fleet, servers: &[Box], key: &[u8; KEY_LEN]) -> Result<Instant> {
    let print = fingerprint(&name_of(key));
    let has_left = |one| sets_of(fleet, one).last().is_some_and(|set| !set.contains(&print));
    wait::until(PATIENCE, "the key to be replaced", || {
        Ok(servers.iter().all(has_left).then(Instant::now))
    })
}

/// From [`GRACE`] after its retirement on, a key is in none of the plugin's pages, and elsewhere
/// there is at most one copy for each set that the host was given: nothing else kept one. Nor do
/// the pages hold any other key than those in use, initial STEKs for instance.
fn assert_gone_from_our_pages(fleet: &Fleet, servers: &[Box], key: &[u8; KEY_LEN]) -> Result<()> {
    let print = fingerprint(&name_of(key));
    for one in servers {
        let now = copies(fleet.servers[one.0].pid()?, key)?;
        let given = sets_of(fleet, one).iter().filter(|set| set.contains(&print)).count();
        let who = format!("server {}, key {print}", one.0 + 1);
        println!("{who}: {} copies, {given} sets given", now.elsewhere.len());
        let held = keys_held(fleet.servers[one.0].pid()?)?;
        assert!((1..=MOST_HELD).contains(&held), "{who}: {held} keys are held");
        assert!(now.ours.is_empty(), "{who}: still held after its retirement: {now:?}");
        assert!(now.elsewhere.len() <= given, "{who}: {given} sets given, but there is {now:?}");
    }
    Ok(())
}

/// Waits until no byte of the key's secrets is left in any server.
fn wait_until_gone(fleet: &Fleet, what: &str, key: &[u8; KEY_LEN], retired: Instant) -> Result<()> {
    for (index, ats) in fleet.servers.iter().enumerate() {
        let (pid, mut last) = (ats.pid()?, Copies::default());
        wait::until_every(SCAN_PAUSE, HOST_LIMIT, "the end of a retired key", || {
            last = copies(pid, key)?;
            Ok(last.none().then_some(()))
        })
        .context(format_args!("key {what}, server {}: {last:?}", index + 1))?;
        let after = retired.elapsed().as_secs();
        println!("key {what}: gone from server {} at most {after} s after", index + 1);
    }
    Ok(())
}
