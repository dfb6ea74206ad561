//! `effect`: what the shared key is worth, in handshakes that were not made.
//!
//! Each server of the list is asked for what its Traffic Server has counted. Invariants: nothing is called
//! resumed that may not have been without saying so; a server that counts nothing is named, not taken for 0.

use std::thread;

use serde_json::{json, Value};
use stek_share::client::{Handshakes, ServerStatus};

use crate::absence::silences;
use crate::cli::{EffectArgs, Place};
use crate::exit_code::{Ended, Outcome};
use crate::fleet::{address, Fleet, Server};
use crate::health::short_span;
use crate::json::{counts, resumed, share, SCHEMA};
use crate::locate;
use crate::output::{print, style_of, styled, Field, Table, BAD, DOUBTFUL};

/// So many opened tickets without one resumed session are no accident of a few odd clients.
const MANY: u64 = 100;

/// The columns.
const HEAD: [&str; 8] =
    ["ID", "ADDRESS", "OVER", "HANDSHAKES", "OPENED", "UNKNOWN", "BY ID", "RESUMED"];

/// Asks, once or twice, and prints.
pub fn run(args: &EffectArgs, place: &Place) -> Ended {
    let loaded = locate::load(&locate::source(place)?)?;
    let fleet = Fleet::new(&loaded, place.limit())?;
    let before = args.over.map(|over| {
        let before = fleet.ask();
        thread::sleep(over);
        before
    });
    let now = fleet.ask();
    let rows: Vec<Row<'_>> = now.iter().map(|server| Row::of(server, before.as_deref())).collect();
    let all = All::of(&rows, &now);
    let text = if args.json { format!("{}\n", as_json(&rows, &all)) } else { as_text(&rows, &all) };
    print(&text)?;
    Ok(all.outcome)
}

/// One server, and what was counted there.
struct Row<'a> {
    server: &'a Server,
    /// What, and in how many milliseconds; `None` if it does not say.
    counted: Option<(Handshakes, u64)>,
}

impl<'a> Row<'a> {
    /// Since its start; or since it was asked before, unless it has started in between.
    fn of(server: &'a Server, before: Option<&[Server]>) -> Row<'a> {
        let counted = |status: &ServerStatus| Some((status.host.handshakes?, status.uptime_ms));
        let earlier = before.into_iter().flatten().find(|earlier| earlier.id() == server.id());
        let earlier = earlier.and_then(Server::status);
        let now = server.status().and_then(|status| {
            let (now, ms) = counted(status)?;
            match earlier.filter(|earlier| earlier.incarnation == status.incarnation) {
                None => Some((now, ms)),
                Some(earlier) => {
                    let (then, then_ms) = counted(earlier)?;
                    Some((difference(now, then), ms.saturating_sub(then_ms)))
                }
            }
        });
        Row { server, counted: now }
    }

    fn count(&self) -> Handshakes {
        self.counted.map_or_else(Handshakes::default, |(count, _)| count)
    }
}

fn difference(now: Handshakes, then: Handshakes) -> Handshakes {
    Handshakes {
        done: now.done.saturating_sub(then.done),
        given: now.given.saturating_sub(then.given),
        opened: now.opened.saturating_sub(then.opened),
        opened_by_older: now.opened_by_older.saturating_sub(then.opened_by_older),
        unknown: now.unknown.saturating_sub(then.unknown),
        by_id: now.by_id.saturating_sub(then.by_id),
        any_resumed: now.any_resumed,
    }
}

/// The servers together.
struct All {
    count: Handshakes,
    /// Opened tickets that other servers gave, if clients come to all servers alike: nobody counts them.
    of_others: u64,
    notes: Vec<String>,
    outcome: Outcome,
}

impl All {
    fn of(rows: &[Row<'_>], servers: &[Server]) -> All {
        let sum = |field: fn(&Handshakes) -> u64| {
            rows.iter().map(|row| field(&row.count())).fold(0, u64::saturating_add)
        };
        let count = Handshakes {
            done: sum(|count| count.done),
            given: sum(|count| count.given),
            opened: sum(|count| count.opened),
            opened_by_older: sum(|count| count.opened_by_older),
            unknown: sum(|count| count.unknown),
            by_id: sum(|count| count.by_id),
            any_resumed: rows.iter().any(|row| row.count().any_resumed),
        };
        let of_others = rows.iter().map(|row| {
            let given = share(row.count().given, count.given);
            given.map_or(0.0, |own| row.count().opened as f64 * (1.0 - own))
        });
        let mut notes = silences(servers);
        notes.extend(rows.iter().filter_map(note));
        let outcome = match rows.iter().filter(|row| row.counted.is_some()).count() {
            0 => Outcome::Broken,
            _ if notes.is_empty() => Outcome::Healthy,
            _ => Outcome::Degraded,
        };
        All { count, of_others: of_others.sum::<f64>().round() as u64, notes, outcome }
    }
}

/// What has to be known of a server to read its numbers right.
fn note(row: &Row<'_>) -> Option<String> {
    let id = row.server.id();
    match (&row.server.answer, row.counted) {
        // Told of all together.
        (Err(_), _) => None,
        (Ok(_), None) => Some(format!("server {id}: its Traffic Server counts no handshakes")),
        (Ok(_), Some((count, _))) if count.opened >= MANY && !count.any_resumed => Some(format!(
            "server {id} opened {} tickets and resumed no session, unless its certificates were read again \
             a moment ago; find out why with 'stekctl doctor --tls'",
            count.opened
        )),
        _ => None,
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn as_text(rows: &[Row<'_>], all: &All) -> String {
    let mut table = Table::new(HEAD);
    for row in rows {
        let mark = if row.server.is_own() { "*" } else { "" };
        let mut fields = vec![
            Field::new(format!("{mark}{}", row.server.id())),
            Field::new(address(&row.server.member)),
        ];
        match row.counted {
            Some((count, ms)) => {
                fields.push(Field::new(short_span(ms)));
                fields.extend(numbers(&count));
            }
            None => {
                fields.push(match row.server.answer {
                    Ok(_) => Field::new("no counts").style(DOUBTFUL),
                    Err(_) => Field::new("no answer").style(BAD),
                });
                fields.resize(HEAD.len(), Field::new("-"));
            }
        }
        table.push(fields);
    }
    if rows.len() > 1 {
        let head = ["all", "", ""].map(Field::new);
        table.push(head.into_iter().chain(numbers(&all.count)).collect());
    }
    let mut text = table.render();
    in_words(rows, all).iter().for_each(|line| text += &format!("{line}\n"));
    let word = styled(all.outcome.word(), style_of(all.outcome));
    all.notes.iter().for_each(|note| text += &format!("{word}: {note}\n"));
    text
}

fn numbers(count: &Handshakes) -> Vec<Field> {
    let number = |number: u64| Field::new(number.to_string());
    let unknown = number(count.unknown);
    let is_much = count.unknown > count.opened;
    vec![
        number(count.done),
        number(count.opened),
        if is_much { unknown.style(DOUBTFUL) } else { unknown },
        number(count.by_id),
        Field::new(percent(resumed(count))),
    ]
}

fn in_words(rows: &[Row<'_>], all: &All) -> Vec<String> {
    let count = &all.count;
    if count.done == 0 {
        return vec!["no client has shaken hands yet".to_owned()];
    }
    let saved = count.opened.saturating_add(count.by_id);
    let mut lines = vec![format!(
        "at most {} of {} handshakes resumed a session: {saved} full handshakes saved",
        percent(resumed(count)),
        count.done
    )];
    if rows.len() > 1 && count.opened > 0 {
        lines.push(format!(
            "some {} of these with a ticket of another server, if clients come to all servers alike; \
             without a shared key they would have been full",
            all.of_others
        ));
    }
    if count.unknown > 0 {
        let brought = count.unknown.saturating_add(count.opened);
        lines.push(format!(
            "{} of the tickets that clients brought were under a key that is gone: they came back later than \
             ticket_keys times key_update_interval, or the key was revoked, or all servers had restarted",
            percent(share(count.unknown, brought))
        ));
    }
    lines
}

fn as_json(rows: &[Row<'_>], all: &All) -> Value {
    let servers: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "id": row.server.id().0,
                "address": row.server.member.address,
                "port": row.server.member.port,
                "since_ms": row.counted.map(|(_, ms)| ms),
                "counts": row.counted.map(|(count, _)| counts(&count)),
            })
        })
        .collect();
    json!({
        "schema": SCHEMA,
        "outcome": all.outcome.word(),
        "notes": all.notes,
        "counts": counts(&all.count),
        "opened_of_others_estimate": all.of_others,
        "servers": servers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::fleet;

    #[test]
    fn who_counts_nothing_has_answered_all_the_same() {
        let mut servers = fleet(|all| {
            all[0].host.handshakes =
                Some(Handshakes { done: 4, opened: 1, ..Handshakes::default() });
        });
        servers[2].answer = Err(stek_share::client::Failure::Unreachable("refused".to_owned()));
        let rows: Vec<Row<'_>> = servers.iter().map(|server| Row::of(server, None)).collect();
        let all = All::of(&rows, &servers);
        let text = as_text(&rows, &all);
        let has =
            |row: usize, words: &str| text.lines().nth(row).is_some_and(|l| l.contains(words));
        assert!(has(1, "25.0 %") && has(2, "no counts") && has(3, "no answer"), "{text}");
        assert!(text.contains("server 2: its Traffic Server counts no handshakes"), "{text}");
        assert_eq!(all.outcome, Outcome::Degraded);
    }
}
