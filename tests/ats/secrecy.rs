//! No log holds a key, not even under the debug tag.

use std::fs;
use std::time::Duration;

use testkit::ats::Ats;
use testkit::fleet::{self, Fleet, Plan};
use testkit::memory::{self, hex};
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::tickets::{self, fingerprint, TlsVersion, KEY_LEN};
use testkit::{wait, Error, Result};

use crate::stage::{plugin, reserve, PATIENCE};

const SERVERS: usize = 3;
/// Long enough to find a key in every server's memory before Traffic Server erases it.
const INTERVAL: Duration = Duration::from_secs(4);
const ROTATIONS: usize = 3;

type Key = [u8; KEY_LEN];

/// The key that a server encrypts with now: found in its memory by the name in a ticket, and proved
/// by that ticket.
fn key_in_memory(ats: &Ats) -> Result<Key> {
    let ticket = tickets::take(ats.https(), TlsVersion::V12)?;
    for candidate in memory::candidates_after(ats.pid()?, &ticket.key_name)? {
        if ticket.opens_with(&candidate)? {
            return Ok(candidate);
        }
    }
    Err(Error::new(format!("no bytes in memory open a {ticket:?}")))
}

/// Every file that the servers wrote in their log directories.
fn all_logs(fleet: &Fleet) -> Result<Vec<(String, Vec<u8>)>> {
    let mut logs = Vec::new();
    for ats in &fleet.servers {
        for file in ats.log_files()? {
            logs.push((file.display().to_string(), fs::read(&file)?));
        }
    }
    Ok(logs)
}

#[test]
fn no_key_bytes_are_in_any_log() -> Result<()> {
    let _reserved = reserve(SERVERS);
    let dir = RunDir::new("secrecy")?;
    // The first server starts alone, so that its own initial key is seen as well.
    let mut fleet = Plan::new(SERVERS, &plugin(), INTERVAL).prepare(dir.path())?;
    fleet.servers[0].start()?;
    fleet.servers[0].wait_ready()?;
    let mut keys = vec![key_in_memory(&fleet.servers[0])?];
    for ats in &mut fleet.servers[1..] {
        ats.start()?;
        ats.wait_ready()?;
    }
    let mut name = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    for _ in 0..ROTATIONS {
        name = fleet::wait_one_key(&fleet.https(), Some(&name), PATIENCE)?;
        for ats in &fleet.servers {
            keys.push(key_in_memory(ats)?);
        }
    }
    // An election and a return say something of keys, too, and so does an orderly end.
    let leader = wait::until(PATIENCE, "a leader", || Ok(fleet.leader()))?;
    fleet.servers[leader.index].kill9();
    let survivors = fleet.https_without(leader.index);
    fleet::wait_one_key(&survivors, Some(&name), PATIENCE)?;
    fleet.servers[leader.index].start()?;
    fleet.servers[leader.index].wait_ready()?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    for ats in &fleet.servers {
        keys.push(key_in_memory(ats)?);
    }
    fleet.stop(Signal::Interrupt)?;

    keys.sort_unstable();
    keys.dedup();
    assert!(keys.len() > ROTATIONS + 1, "only {} keys were seen", keys.len());
    let logs = all_logs(&fleet)?;
    assert_instrument(&logs, &keys);
    for (file, content) in &logs {
        for key in &keys {
            assert_eq!(memory::contains_key(content, key), None, "{file}");
        }
    }
    println!("{} keys are in none of {} log files", keys.len(), logs.len());
    dir.done()
}

/// The search would find a key, and the logs are those in which one would stand: they name these
/// very keys by their fingerprints, in diags.log and under the debug tag.
fn assert_instrument(logs: &[(String, Vec<u8>)], keys: &[Key]) {
    for kind in ["diags.log", "traffic.out"] {
        assert_eq!(logs.iter().filter(|(file, _)| file.ends_with(kind)).count(), SERVERS);
        let all: String = logs
            .iter()
            .filter(|(file, _)| file.ends_with(kind))
            .map(|(_, content)| String::from_utf8_lossy(content))
            .collect();
        for key in keys {
            let name = key.first_chunk().expect("a key begins with its name");
            // A server's own key is of no interest to diags.log before it becomes the group's.
            let named = all.contains(&fingerprint(name));
            assert!(named || kind == "diags.log", "{kind} says nothing of a key");
        }
        assert!(all.contains("[stek_share]") || all.contains("(stek_share)"), "{kind}");
    }
    for (file, content) in logs {
        let (secret, aes) = (&keys[0][16..32], &keys[0][32..]);
        for planted in [
            aes.to_vec(),
            hex(secret).into_bytes(),
            openssl::base64::encode_block(&keys[0]).into_bytes(),
        ] {
            let middle = content.len() / 2;
            let leaky = [&content[..middle], &planted, &content[middle..]].concat();
            assert!(memory::contains_key(&leaky, &keys[0]).is_some(), "{file}");
        }
    }
}
