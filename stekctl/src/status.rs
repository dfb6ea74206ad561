//! `status`: how every server of the list is, as a table or as JSON, and whether the fleet is well.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use serde_json::{json, Value};
use stek_share::client::{ClientPolicy, KeyInUse, Role, ServerStatus, SitePolicy, TicketScope};

use crate::cli::{Place, StatusArgs};
use crate::exit_code::Ended;
use crate::fleet::{address, Fleet, Server};
use crate::health::{self, Reason};
use crate::locate;
use crate::output::{print, style_of, styled, Field, Table, BAD, DOUBTFUL, GOOD};

/// How often to look again at what is also so for a moment in a fleet that is well, and how long
/// to rest before: an election takes some 300 ms with the default timers, a handover less.
const SECOND_LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Erases the screen and begins at its top.
const TOP_OF_SCREEN: &str = "\u{1b}[2J\u{1b}[H";

/// The columns of the table.
const HEAD: [&str; 10] =
    ["ID", "ADDRESS", "ROLE", "GEN", "KEYS", "AGE", "NEXT", "VERSION", "LIST", "RTT"];

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
    let fleet = Fleet::new(&loaded, place.timeout)?;
    let clears = args.watch.is_some() && !args.json && io::stdout().is_terminal();
    loop {
        let look = look(&fleet, |_| {});
        let outcome = health::outcome(&look.reasons);
        let text = if args.json { format!("{}\n", as_json(&look)) } else { as_text(&look) };
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

fn as_text(look: &Look) -> String {
    let outcome = health::outcome(&look.reasons);
    let mut text = format!("{}: {}\n\n", styled(outcome.word(), style_of(outcome)), summary(look));
    text += &table(&look.servers).render();
    if !look.reasons.is_empty() {
        text.push('\n');
    }
    for reason in &look.reasons {
        let word = styled(reason.outcome.word(), style_of(reason.outcome));
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
        "{} of {} servers answer, {}, {}{}",
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
        scopes(&answers),
    )
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

fn table(servers: &[Server]) -> Table {
    let mut table = Table::new(HEAD);
    let answers = || servers.iter().filter_map(Server::status);
    // What is not as elsewhere catches the eye.
    let newest = answers().filter_map(|status| status.keys.current.map(|k| k.generation)).max();
    let version = answers().map(|status| status.list.version).max();
    let doubt = |is_so: bool, text: String| {
        if is_so {
            Field::new(text).style(DOUBTFUL)
        } else {
            Field::new(text)
        }
    };
    for server in servers {
        let (id, place) = (Field::new(server.id().to_string()), address(&server.member));
        let place = Field::new(place);
        table.push(match &server.answer {
            Ok((status, took)) => vec![
                id,
                place,
                role_field(status),
                doubt(
                    status.keys.current.map(|key| key.generation) != newest,
                    health::generation(status),
                ),
                Field::new(keys(status)),
                Field::new(health::span(status.keys.age_ms)),
                Field::new(health::span(status.keys.next_ms)),
                Field::new(status.software.clone()),
                doubt(
                    Some(status.list.version) != version,
                    status.list.digest.clone().unwrap_or_else(|| "-".to_owned()),
                ),
                Field::new(milliseconds(*took)),
            ],
            Err(_) => {
                let mut row = vec![id, place, Field::new("no answer").style(BAD)];
                row.resize(HEAD.len(), Field::new("-"));
                row
            }
        });
    }
    table
}

fn role_field(status: &ServerStatus) -> Field {
    let field = Field::new(status.group.role.word());
    match status.group.role {
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
    let reasons = look
        .reasons
        .iter()
        .map(|reason| json!({ "outcome": reason.outcome.word(), "words": reason.words }));
    json!({
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

fn answer_json(status: &ServerStatus, took: Duration) -> Value {
    let ServerStatus { group, keys, list, certificate, host, .. } = status;
    let key = |key: &stek_share::client::KeyStatus| json!({ "generation": key.generation.0, "fingerprint": key.fingerprint.to_string() });
    let counts = |counts: &[(String, u64)]| -> Value {
        counts.iter().map(|(word, count)| (word.clone(), json!(count))).collect()
    };
    json!({
        "answers": true,
        "round_trip_ms": took.as_secs_f64() * 1000.0,
        "version": status.software,
        "uptime_ms": status.uptime_ms,
        "clock_ms": status.clock_ms,
        "role": group.role.word(),
        "leader": group.leader.map(|id| id.0),
        "term": group.term,
        "cluster_id": group.cluster_id.map(|id| id.to_string()),
        "quorum": group.quorum,
        "elections": group.elections,
        "rotations": group.rotations,
        "key_in_use": keys.in_use.word(),
        "current": keys.current.as_ref().map(key),
        "previous": keys.previous.iter().map(key).collect::<Vec<_>>(),
        "staged": keys.staged.as_ref().map(key),
        "installed": keys.installed.0,
        "key_age_ms": keys.age_ms,
        "next_rotation_ms": keys.next_ms,
        "members": list.others.len() + 1,
        "voters": list.voters,
        "list_version": list.version,
        "list_digest": list.digest,
        "file_list_digest": list.file_digest,
        "options_digest": list.options_digest,
        "certificate": {
            "subject": certificate.subject,
            "fingerprint": certificate.fingerprint,
            "roots_digest": certificate.roots_digest,
            "expires_s": certificate.expires_s,
            "authority": certificate.authority,
        },
        "traffic_server": host.version,
        "ticket_scope": host.ticket_scope.map(TicketScope::word),
        "client_policy": host.client_policy.as_ref().map(client_policy),
        "installs": host.installs,
        "install_failures": host.install_failures,
        "refused_keys": counts(&status.refused_keys),
        "refused_peers": counts(&status.refused_peers),
    })
}
fn client_policy(policy: &ClientPolicy) -> Value {
    let site = |site: &SitePolicy| {
        json!({
            "name": site.name,
            "verify_client": site.asks,
            "authorities": site.authorities,
        })
    };
    json!({
        "certification_level": policy.level,
        "sites": policy.sites.iter().map(site).collect::<Vec<_>>(),
        "digest": policy.digest,
    })
}
