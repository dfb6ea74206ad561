//! `status`: how every server of the list is, as a table or as JSON, and whether the fleet is well.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use serde_json::{json, Value};
use stek_share::client::{KeyInUse, Role, ServerStatus, TicketScope};

use crate::cli::{Place, StatusArgs};
use crate::exit_code::{Ended, Outcome};
use crate::fleet::{address, Fleet, Server};
use crate::health::{self, Reason};
use crate::json::{answer_json, SCHEMA};
use crate::locate;
use crate::output::{print, style_of, styled, Field, Table, BAD, DOUBTFUL, GOOD};
use crate::wait;

/// How often to look again at what is also so for a moment in a fleet that is well, and how long
/// to rest before: an election takes some 300 ms with the default timers, a handover less.
const SECOND_LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Erases the screen and begins at its top.
const TOP_OF_SCREEN: &str = "\u{1b}[2J\u{1b}[H";

/// The columns of the table, and those that `--wide` adds; `*` is in front of this server's id.
const HEAD: [&str; 8] = ["ID", "ADDRESS", "ROLE", "GEN", "KEY", "AGE", "CERT", "RTT"];
const MORE: [&str; 4] = ["NEXT", "VERSION", "LIST", "KEYS"];

/// Characters of an address in a table that is to fit into 80: the other columns take 52 at most.
const MAX_ADDRESS: usize = 28;

/// What was found at one time.
pub struct Look {
    /// The servers, in the order of the list.
    pub servers: Vec<Server>,
    /// Why they are not well.
    pub reasons: Vec<Reason>,
}

/// Asks, checks and prints, once or again and again.
pub fn run(args: &StatusArgs, place: &Place) -> Ended {
    let loaded = locate::load(&locate::source(place)?)?;
    let fleet = Fleet::new(&loaded, place.limit())?;
    if args.own {
        return wait::tell_self(&fleet, args.json);
    }
    let clears = args.watch.is_some() && !args.json && io::stdout().is_terminal();
    loop {
        let look = look(&fleet, |_| {});
        let outcome = health::outcome(&look.reasons);
        let text =
            if args.json { format!("{}\n", as_json(&look)) } else { as_text(&look, args.wide) };
        print(&format!("{}{text}", if clears { TOP_OF_SCREEN } else { "" }))?;
        match args.watch {
            None => return Ok(outcome),
            Some(pause) => thread::sleep(pause),
        }
    }
}

/// Asks all servers. What may be the matter of a moment is looked at again. `adjust` takes from an
/// answer what is not to be checked.
pub fn look(fleet: &Fleet, adjust: impl Fn(&mut ServerStatus)) -> Look {
    let mut left = SECOND_LOOKS;
    loop {
        let mut servers = fleet.ask();
        let answers = servers.iter_mut().filter_map(|server| server.answer.as_mut().ok());
        answers.for_each(|(status, _)| adjust(status));
        let reasons = health::reasons(&servers);
        if left == 0 || !reasons.iter().any(|reason| reason.may_pass) {
            return Look { servers, reasons };
        }
        left -= 1;
        thread::sleep(PAUSE);
    }
}

fn as_text(look: &Look, wide: bool) -> String {
    let outcome = health::outcome(&look.reasons);
    let mut text = format!("{}: {}\n\n", styled(outcome.word(), style_of(outcome)), summary(look));
    text += &table(&look.servers, wide).render();
    if !look.reasons.is_empty() {
        text.push('\n');
    }
    for reason in &look.reasons {
        let word = match reason.outcome {
            Outcome::Healthy => "note".to_owned(),
            outcome => styled(outcome.word(), style_of(outcome)),
        };
        text += &format!("{word}: {}\n", reason.words);
    }
    text
}

/// One line: who answers, the newest key, who leads.
fn summary(look: &Look) -> String {
    let answers: Vec<&ServerStatus> = look.servers.iter().filter_map(Server::status).collect();
    let newest = answers.iter().filter_map(|status| status.keys.current.map(|k| k.generation));
    let leader = answers.iter().find(|status| status.group.role == Role::Leader);
    format!(
        "{} of {} servers answer, {}, {}{}{}{}",
        answers.len(),
        look.servers.len(),
        match newest.max() {
            Some(generation) => format!("generation {generation}"),
            None => "no key".to_owned(),
        },
        match leader {
            Some(leader) => format!("server {} leads", leader.id),
            None => "nobody leads".to_owned(),
        },
        leader.filter(|leader| leader.keys.current.is_some()).map_or_else(String::new, |leader| {
            format!(", next key in {}", health::span(leader.keys.next_ms))
        }),
        scopes(&answers),
        sharing(&answers),
    )
}

/// How many share sessions; nothing where none does.
fn sharing(answers: &[&ServerStatus]) -> String {
    match answers.iter().filter(|status| status.sessions.is_some()).count() {
        0 => String::new(),
        all if all == answers.len() => ", sessions shared".to_owned(),
        some => format!(", sessions shared by {some}"),
    }
}

/// What the servers bind sessions to; nothing where none is in a Traffic Server.
fn scopes(answers: &[&ServerStatus]) -> String {
    let scopes = answers.iter().filter_map(|status| status.host.ticket_scope);
    let mut words: Vec<&str> = scopes.map(TicketScope::word).collect();
    words.sort_unstable();
    words.dedup();
    if words.is_empty() {
        String::new()
    } else {
        format!(", ticket_scope {}", words.join(" and "))
    }
}

fn table(servers: &[Server], wide: bool) -> Table {
    let head = HEAD.iter().chain(if wide { &MORE[..] } else { &[] });
    let mut table = Table::new(head.clone().copied());
    let answers = || servers.iter().filter_map(Server::status);
    // What is not as elsewhere catches the eye.
    let newest = answers().filter_map(|status| status.keys.current.map(|k| k.generation)).max();
    let version = answers().map(|status| status.list.version).max();
    for server in servers {
        let mark = if server.is_own() { "*" } else { "" };
        let listed = address(&server.member);
        let place = if wide { listed } else { shortened(&listed, MAX_ADDRESS) };
        let mut row = vec![Field::new(format!("{mark}{}", server.id())), Field::new(place)];
        match &server.answer {
            Ok((status, took)) => {
                let behind = status.keys.current.map(|key| key.generation) != newest;
                row.extend([
                    role_field(status),
                    doubt(behind, health::generation(status)),
                    key_field(status),
                    Field::new(health::short_span(status.keys.age_ms)),
                    certificate_field(status),
                    Field::new(milliseconds(*took)),
                ]);
                if wide {
                    let digest = status.list.digest.clone().unwrap_or_else(|| "-".to_owned());
                    row.extend([
                        Field::new(health::span(status.keys.next_ms)),
                        Field::new(status.software.clone()),
                        doubt(Some(status.list.version) != version, digest),
                        Field::new(keys(status)),
                    ]);
                }
            }
            Err(_) => {
                row.push(Field::new("no answer").style(BAD));
                row.resize(head.clone().count(), Field::new("-"));
            }
        }
        table.push(row);
    }
    table
}

fn doubt(is_so: bool, text: String) -> Field {
    if is_so {
        Field::new(text).style(DOUBTFUL)
    } else {
        Field::new(text)
    }
}

/// The beginning and the end of a text that is too long: names begin alike and end in the port.
fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let head: String = text.chars().take(most / 2).collect();
    let tail: String = text.chars().skip(count - (most - most / 2 - 2)).collect();
    format!("{head}..{tail}")
}

/// The key that encrypts: the group's by its fingerprint, or in a word that it is another.
fn key_field(status: &ServerStatus) -> Field {
    match (status.keys.in_use, status.keys.current) {
        (KeyInUse::Agreed, Some(key)) => Field::new(key.fingerprint.to_string()),
        (KeyInUse::Agreed, None) => Field::new("-"),
        (other, _) => Field::new(other.word()).style(BAD),
    }
}

/// How long the first of its certificates lasts.
fn certificate_field(status: &ServerStatus) -> Field {
    match status.certificate.expiry() {
        Some(ending) => {
            let left = health::short_span(ending.left.as_secs().saturating_mul(1000));
            doubt(ending.is_soon(), left)
        }
        None => Field::new("?").style(DOUBTFUL),
    }
}

/// What a follower is called that has no vote, nor is to have one.
const NON_VOTER: &str = "non-voter";

fn role_field(status: &ServerStatus) -> Field {
    let (role, votes) = (status.group.role, status.group.votes);
    let field = Field::new(if role == Role::Follower && !votes { NON_VOTER } else { role.word() });
    match role {
        Role::Leader => field.style(GOOD),
        Role::Follower if status.group.quorum => field,
        _ => field.style(DOUBTFUL),
    }
}

/// Fingerprints: the one that encrypts, those that still decrypt, `+` and the staged one.
fn keys(status: &ServerStatus) -> String {
    let keys = &status.keys;
    let held = keys.current.iter().chain(&keys.previous).map(|key| key.fingerprint.to_string());
    let staged = keys.staged.iter().map(|key| format!("+{}", key.fingerprint));
    let own = match keys.in_use {
        KeyInUse::Agreed => None,
        other => Some(format!("({} key)", other.word())),
    };
    let words: Vec<String> = own.into_iter().chain(held).chain(staged).collect();
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join(" ")
    }
}

fn milliseconds(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1000.0)
}

fn as_json(look: &Look) -> Value {
    let reasons = look.reasons.iter().map(|reason| {
        json!({
            "code": reason.code.word(),
            "outcome": reason.outcome.word(),
            "words": reason.words,
        })
    });
    json!({
        "schema": SCHEMA,
        "outcome": health::outcome(&look.reasons).word(),
        "reasons": reasons.collect::<Vec<_>>(),
        "servers": look.servers.iter().map(server_json).collect::<Vec<_>>(),
    })
}

fn server_json(server: &Server) -> Value {
    let head = json!({
        "id": server.id().0,
        "address": server.member.address,
        "port": server.member.port,
        "is_this_server": server.is_own(),
        "asked_at": address(server.reached()),
    });
    let body = match &server.answer {
        Ok((status, took)) => answer_json(status, *took),
        Err(failure) => json!({ "answers": false, "error": failure.to_string() }),
    };
    match (head, body) {
        (Value::Object(mut head), Value::Object(body)) => {
            head.extend(body);
            Value::Object(head)
        }
        (_, body) => body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_address_keeps_both_ends() {
        assert_eq!(shortened("10.0.0.1:10001", MAX_ADDRESS), "10.0.0.1:10001");
        let long = shortened("edge-17.frankfurt.cdn.example.net:10001", MAX_ADDRESS);
        assert_eq!(long, "edge-17.frankf..le.net:10001");
        assert_eq!(long.chars().count(), MAX_ADDRESS);
    }
}
