//! Users: of a process, and of Traffic Server's records.
//!
//! Invariants: nothing is guessed; who is in no file is nobody.

use std::fs;
use std::path::Path;

use stek_share::host::identity::User;
use stek_share::host_config;

/// The user that Traffic Server is to become by its records.
pub fn in_records(config: &Path) -> Option<User> {
    user_named(&host_config::records(config).get("proxy.config.admin.user_id")?.value)
}

/// The user that a process works as.
pub fn of_process(dir: &Path) -> Option<User> {
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().map(|word| word.parse().ok()).collect()
    };
    // Real, effective, saved, of the file system.
    let (uid, gid) = (*numbers("Uid:")?.get(1)?, *numbers("Gid:")?.get(1)?);
    let name = account(|_, number| number == uid.to_string());
    let name = name.map_or_else(|| uid.to_string(), |(name, ..)| name);
    Some(User { name, uid, gid, groups: numbers("Groups:")? })
}

/// A user by name, or by number after a `#`, as the record has it.
fn user_named(named: &str) -> Option<User> {
    let (name, uid, gid) = account(|name, number| match named.strip_prefix('#') {
        Some(wanted) => number == wanted,
        None => name == named,
    })?;
    let text = fs::read_to_string("/etc/group").unwrap_or_default();
    let groups = text.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let (number, members) = (fields.next()?, fields.next()?);
        members.split(',').any(|member| member == name).then(|| number.parse().ok())?
    });
    Some(User { groups: groups.collect(), name, uid, gid })
}

/// The first account of /etc/passwd for whose name and number this holds: name, number and main group.
fn account(is_it: impl Fn(&str, &str) -> bool) -> Option<(String, u32, u32)> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, ..] = fields[..] else { return None };
        is_it(name, uid).then(|| Some((name.to_owned(), uid.parse().ok()?, gid.parse().ok()?)))?
    })
}
