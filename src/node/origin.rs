//! Who gave an order: words for the log of the server that carries it out.
//!
//! Invariants: the words are one line, printable and bounded, whatever the sender calls itself;
//! what a server merely passes on is told as its word.

use crate::core::config::printable;
use crate::core::server_id::ServerId;
use crate::rpc::MAX_ORIGIN;
use crate::transport::frame::Role;
use crate::transport::listener::Caller;

/// Characters of what a tool says of its user.
const MAX_PERSON: usize = 80;

/// Characters of a certificate's subject in a line.
const MAX_SUBJECT: usize = 200;

/// An operator who sent a message to this server's Traffic Server.
pub(super) fn message(me: ServerId) -> String {
    format!("traffic_ctl on server {me}")
}

/// Whoever had this server read its files again; its own log says who that was.
pub(super) fn reload(me: ServerId) -> String {
    format!("a reload on server {me}")
}

/// Whoever sent a request.
pub(super) fn caller(from: &Caller) -> String {
    let kind = match from.role {
        Role::Member => "server",
        Role::Tool => "a tool that speaks as server",
    };
    let subject = printable(&from.names.to_string(), MAX_SUBJECT);
    format!("{kind} {} (certificate {subject}, from {})", from.id, from.addr)
}

/// A tool, with what it says of the person who uses it.
pub(super) fn tool(from: &Caller, person: &str) -> String {
    if person.is_empty() {
        caller(from)
    } else {
        format!("{}, by {}", printable(person, MAX_PERSON), caller(from))
    }
}

/// A member that passes on what somebody asked of it.
pub(super) fn passed_on(by: &Caller, origin: &str) -> String {
    format!("{}, passed on by {}", printable(origin, MAX_ORIGIN), caller(by))
}

/// Words that fit into a request.
pub(super) fn to_pass_on(origin: &str) -> String {
    let cut = (0..=MAX_ORIGIN.min(origin.len())).rev().find(|at| origin.is_char_boundary(*at));
    origin.get(..cut.unwrap_or(0)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_bounded_and_on_one_line() {
        let from = Caller {
            id: ServerId(3),
            role: Role::Tool,
            version: 1,
            incarnation: 0,
            cluster_id: [0; 16],
            addr: ([10, 0, 0, 3], 999).into(),
            names: "/CN=three\nrotate: done".into(),
        };
        assert_eq!(
            caller(&from),
            "a tool that speaks as server 3 (certificate /CN=three\\nrotate: done, from \
             10.0.0.3:999)"
        );
        assert!(
            tool(&from, "user alice").starts_with("user alice, by a tool that speaks as server 3")
        );
        assert_eq!(tool(&from, ""), caller(&from));
        assert!(!tool(&from, &"\u{7}x\n".repeat(900)).contains(char::is_control));
        let long =
            Caller { role: Role::Member, names: "\u{e9}".repeat(9_000).as_str().into(), ..from };
        let origin = to_pass_on(&caller(&long).repeat(9));
        assert!(origin.len() <= MAX_ORIGIN, "{}", origin.len());
        let told = passed_on(&long, &"\u{7}".repeat(9_000));
        assert!(told.len() < 9_000 && !told.contains(char::is_control), "{told}");
    }
}
