//! Who types: words for the log of a server that carries an order out. They are worth what the machine's
//! own accounts are worth; the certificate beside them is what was proved.

use std::env;
use std::fs;
use std::path::Path;

use crate::users;

/// `user alice on host-3`, by way of sudo if that was the way.
pub fn person() -> String {
    let sudo = env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    // Its environment says nothing where a unit or a container started it.
    let account = || users::of_process(Path::new("/proc/self")).map(|user| user.name);
    let user = sudo.or_else(account).unwrap_or_else(|| "unknown".to_owned());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => format!("user {user}"),
        host => format!("user {user} on {host}"),
    }
}
