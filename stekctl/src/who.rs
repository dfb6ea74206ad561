//! Who types: words for the log of a server that carries an order out. They are worth what the machine's
//! own accounts are worth; the certificate beside them is what was proved.

use std::env;
use std::fs;

/// `user alice on host-3`, by way of sudo if that was the way.
pub fn person() -> String {
    let said = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| env::var(name).ok());
    let user = said.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => format!("user {user}"),
        host => format!("user {user} on {host}"),
    }
}
