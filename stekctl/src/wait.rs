//! `wait` and `status --self`: whether the server on this machine shares the group's key.
//!
//! Asks this machine's own plugin and nobody else, so that no other server's trouble keeps an upgrade
//! waiting or takes this server out of a balancer. Invariants: it ends within the limit that it was
//! given, and says what is missing.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use stek_share::client::{Failure as Unanswered, KeyInUse, Role, ServerStatus};
use stek_share::core::config::Member;

use crate::cli::{Place, WaitArgs, ANSWER_LIMIT};
use crate::exit_code::{Ended, Outcome};
use crate::fleet::{address, Fleet};
use crate::health::{seconds, span};
use crate::json::{answer_json, SCHEMA};
use crate::locate;
use crate::output::{print, style_of, styled};

/// How long to wait in all unless the operator says otherwise: a start takes seconds.
const WAIT: Duration = Duration::from_secs(60);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(250);

/// What this machine's plugin said, or where it did not.
type Asked = Result<(Member, ServerStatus), (Member, Unanswered)>;

/// Waits until this server is back in the group.
pub fn run(args: &WaitArgs, place: &Place) -> Ended {
    let limit = place.timeout.unwrap_or(WAIT);
    let deadline = Instant::now() + limit;
    let loaded = locate::load(&locate::source(place)?)?;
    let mut before: Option<Asked> = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // The address may be taken over in the meantime, so it is looked for anew.
        let fleet = Fleet::new(&loaded, ANSWER_LIMIT.min(left.max(PAUSE)))?;
        let asked = match (fleet.ask_own(), before.take()) {
            // The last question had little time, so that its answer says less than the one before.
            (Err((_, Unanswered::TimedOut(_))), Some(earlier)) if left < ANSWER_LIMIT => earlier,
            (asked, _) => asked,
        };
        let missing = missing(&asked).or_else(|| asked.as_ref().ok().and_then(|(_, s)| apart(s)));
        if missing.is_none() || Instant::now() + PAUSE >= deadline {
            return tell(&asked, missing, Some(limit), args.json);
        }
        before = Some(asked);
        thread::sleep(PAUSE);
    }
}

/// Says whether this server encrypts with the group's key.
pub fn tell_self(fleet: &Fleet, as_json: bool) -> Ended {
    let asked = fleet.ask_own();
    tell(&asked, missing(&asked), None, as_json)
}

/// What keeps this server from encrypting with the group's key.
fn missing(asked: &Asked) -> Option<String> {
    match asked {
        Ok((_, status)) => lacks(status),
        Err((_, why)) if why.is_unknown_name() => Some(
            "it is not in the list that its own plugin goes by: it was removed, or has a new name and was \
             not reloaded"
                .into(),
        ),
        Err((place, why)) => Some(format!("its plugin at {}: {}", address(place), why.cause())),
    }
}

fn lacks(status: &ServerStatus) -> Option<String> {
    if status.list.leaves_out(status.id) {
        return Some("it was removed from the group's list and gets no new key".into());
    }
    let keys = &status.keys;
    let current = keys.current.map(|key| key.generation).unwrap_or_default();
    match keys.in_use {
        KeyInUse::Own => {
            Some("it encrypts with a key of its own, as it has none of the group's".into())
        }
        KeyInUse::Emergency => {
            Some("it encrypts with a key of its own: the group's is older than max_key_age".into())
        }
        KeyInUse::Agreed if keys.installed < current || status.host.install_pending => {
            Some(format!("Traffic Server has not taken generation {current} yet"))
        }
        KeyInUse::Agreed => None,
    }
}

/// What keeps a server that has the key from counting in the group.
fn apart(status: &ServerStatus) -> Option<String> {
    match (status.group.role, status.group.quorum, status.group.quorum_ms) {
        (Role::Joining, ..) => Some("it is in no group yet".into()),
        (Role::Recovering, ..) => {
            Some("it is sent what the group agreed on, and does not count yet".into())
        }
        (Role::Candidate, ..) => Some("it hears no leader".into()),
        (_, false, Some(ms)) => Some(format!("it has no part in a majority for {}", span(ms))),
        (_, false, None) => Some("it has not met a majority since it started".into()),
        (Role::Follower | Role::Leader, true, _) => None,
    }
}

fn tell(asked: &Asked, missing: Option<String>, waited: Option<Duration>, as_json: bool) -> Ended {
    let outcome = if missing.is_none() { Outcome::Healthy } else { Outcome::Broken };
    let text = if as_json {
        format!("{}\n", json_of(asked, missing.as_deref()))
    } else {
        let word = if missing.is_none() { "ready" } else { "not ready" };
        let after = waited.filter(|_| missing.is_some());
        let after = after.map_or_else(String::new, |limit| format!(" after {}", in_words(limit)));
        let words = missing.clone().unwrap_or_else(|| ready(asked));
        let next = if after.is_empty() { "" } else { "; 'stekctl status' asks the others, too" };
        let id = match asked {
            Ok((_, status)) => status.id,
            Err((place, _)) => place.id,
        };
        let note = asked.as_ref().ok().filter(|_| missing.is_none()).and_then(|(_, s)| apart(s));
        let note = note.map_or_else(String::new, |why| format!("; {why}"));
        format!("{}{after}: server {id}: {words}{note}{next}\n", styled(word, style_of(outcome)))
    };
    print(&text)?;
    Ok(outcome)
}

fn in_words(limit: Duration) -> String {
    match limit.subsec_millis() {
        0 => seconds(limit.as_secs()),
        _ => format!("{} s", limit.as_secs_f64()),
    }
}

fn ready(asked: &Asked) -> String {
    let current = asked.as_ref().ok().and_then(|(_, status)| status.keys.current);
    let named = current.map(|key| format!(" ({})", key.fingerprint)).unwrap_or_default();
    let generation = current.map(|key| key.generation).unwrap_or_default();
    format!("it encrypts with the group's key, generation {generation}{named}")
}

fn json_of(asked: &Asked, missing: Option<&str>) -> Value {
    let server = match asked {
        Ok((place, status)) => {
            json!({ "asked_at": address(place), "says": answer_json(status, Duration::ZERO) })
        }
        Err((place, why)) => json!({ "asked_at": address(place), "error": why.to_string() }),
    };
    json!({
        "schema": SCHEMA,
        "ready": missing.is_none(),
        "missing": missing,
        "server": server,
    })
}
