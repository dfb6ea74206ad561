//! What may stand in the files and can hardly be meant.
//!
//! Invariants: nothing here keeps a configuration from being used.

use std::net::IpAddr;

use super::{Conf, List, Member, Problem, Severity};

/// For how many seconds a ticket has to be good at least, so that nothing is said: a visitor who clicks once a
/// minute has a full handshake each time otherwise.
const SHORT_S: u64 = 60;

/// Entries with an address that each machine takes for its own, beside others that have real ones. A list
/// of such addresses alone is that of one machine.
pub fn check_loopback(list: &List) -> Option<Problem> {
    let first = loopback_among_others(&list.members).filter(|_| list.usable)?;
    let problem =
        list.error(first.id, "address", LOOPBACK_MEANS, LOOPBACK_REMEDY).value(&first.address);
    Some(Problem { severity: Severity::Warning, ..problem })
}

/// Why such an address is no good, in words that follow it.
pub const LOOPBACK_MEANS: &str =
    "means each machine itself, so that no server on another one reaches this one by it";

/// What to do about it.
pub const LOOPBACK_REMEDY: &str = "give the address that the others connect to";

/// The first server with an address that each machine takes for its own, if others have real ones.
pub fn loopback_among_others(members: &[Member]) -> Option<&Member> {
    let (own, others): (Vec<_>, Vec<_>) =
        members.iter().partition(|member| is_loopback(&member.address));
    own.first().copied().filter(|_| !others.is_empty())
}

/// Whether every machine takes this address for its own.
fn is_loopback(address: &str) -> bool {
    match address.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => {
            let name = super::address::canonical(address);
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

/// An interval that is too short to be of use to clients. It is no fault: tests want such ones.
pub fn check_interval(conf: &Conf) -> Option<Problem> {
    let settings = &conf.settings;
    let (interval, keys) = (settings.key_update_interval.as_secs(), settings.ticket_keys as u64);
    let kept = interval.saturating_mul(keys.saturating_sub(1));
    if !conf.usable || kept >= SHORT_S {
        return None;
    }
    let reason = format!(
        "means that a ticket is sure to resume for {kept} s only, with ticket_keys at {keys}: clients that \
         return later have full handshakes"
    );
    let remedy = "give 900 to 43200 where clients are served; docs/handbook.md has figures";
    let problem = conf.warning("key_update_interval", reason, remedy).value(interval.to_string());
    Some(Problem { severity: Severity::Note, ..problem })
}
