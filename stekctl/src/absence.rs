//! Who does not answer, and why: servers of which the same is to be said share a line.
//!
//! Invariants: a line names each of its servers; a server that stands alone is told with the address at
//! which it was looked for.

use stek_share::client::Failure as Unanswered;
use stek_share::core::server_id::ServerId;

use crate::fleet::{address, Server};

/// A line for each cause, with the servers that have it, in their order.
pub fn absences(servers: &[Server]) -> Vec<String> {
    told(servers, |failure| (failure.to_string(), predicate))
}

/// The same without what to do about it, as `say nothing: CAUSE`.
pub fn silences(servers: &[Server]) -> Vec<String> {
    told(servers, |failure| {
        (failure.cause(), |_, is_one| if is_one { "says nothing:" } else { "say nothing:" })
    })
}

/// Words for several servers or for one, as a verb and what belongs to it.
type Verb = fn(&Unanswered, bool) -> &'static str;

fn told(servers: &[Server], words: impl Fn(&Unanswered) -> (String, Verb)) -> Vec<String> {
    let mut groups: Vec<(String, Vec<&Server>)> = Vec::new();
    for server in servers {
        let Err(failure) = &server.answer else { continue };
        let cause = anywhere(&words(failure).0, server);
        match groups.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, alike)) => alike.push(server),
            None => groups.push((cause, vec![server])),
        }
    }
    let line = |(cause, alike): (String, Vec<&Server>)| {
        let ids: Vec<ServerId> = alike.iter().map(|server| server.id()).collect();
        let first = alike.first()?;
        let failure = first.answer.as_ref().err()?;
        let (own, verb) = words(failure);
        let cause = if ids.len() == 1 { own } else { cause };
        Some(format!("{} {} {cause}", servers_named(&ids), verb(failure, ids.len() == 1)))
    };
    groups.into_iter().filter_map(line).collect()
}

/// A cause without the address of its server, which stands in the table and differs for each.
fn anywhere(cause: &str, server: &Server) -> String {
    cause.replace(&format!("cannot connect to {}: ", address(&server.member)), "")
}

/// What stands between servers and cause. A cause that begins with a noun or an adjective is part of
/// the sentence.
fn predicate(failure: &Unanswered, is_one: bool) -> &'static str {
    match (failure, is_one) {
        (Unanswered::Unreachable(_), true) => "is",
        (Unanswered::Unreachable(_), false) => "are",
        (Unanswered::TimedOut(_), true) => "gives",
        (Unanswered::TimedOut(_), false) => "give",
        (_, true) => "does not answer:",
        (_, false) => "do not answer, each for this cause:",
    }
}

/// `server 1`, `servers 1 and 2`, `servers 1, 2 and 3`.
pub fn servers_named(ids: &[ServerId]) -> String {
    match ids {
        [] => "no server".to_owned(),
        [one] => format!("server {one}"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(ToString::to_string).collect();
            format!("servers {} and {last}", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::fleet;

    #[test]
    fn servers_with_one_cause_share_a_line_and_one_alone_keeps_its_address() {
        let mut servers = fleet(|_| {});
        let refused =
            |place: &str| Unanswered::Unreachable(format!("cannot connect to {place}: refused"));
        for (server, last) in servers.iter_mut().zip(1..) {
            server.member.address = format!("10.0.0.{last}");
        }
        servers[1].answer = Err(refused("10.0.0.2:1"));
        let lines = absences(&servers);
        let [one] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(
            one.starts_with("server 2 is unreachable: cannot connect to 10.0.0.2:1: refused; see"),
            "{one}"
        );
        servers[2].answer = Err(refused("10.0.0.3:1"));
        let lines = absences(&servers);
        let [one] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(one.starts_with("servers 2 and 3 are unreachable: refused; see"), "{one}");
        assert_eq!(silences(&servers), ["servers 2 and 3 say nothing: unreachable: refused"]);
        servers[0].answer = Err(Unanswered::Closed);
        assert_eq!(absences(&servers).len(), 2);
        servers[1].answer = Err(Unanswered::Closed);
        let lines = absences(&servers);
        assert!(
            lines[0].starts_with("servers 1 and 2 do not answer, each for this cause: it closed"),
            "{lines:?}"
        );
    }
}
