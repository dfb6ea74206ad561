//! Whether a fleet is well, and if not, why: a judgement of what its servers say, in words.
//!
//! Pure: asks nobody and prints nothing. What must hold: nothing is said of a fleet that is well,
//! and everything that is said names the servers that it is about.

use std::time::Duration;

use stek_share::client::{BoxStatus, KeyInUse, Role};
use stek_share::core::server_id::ServerId;

use crate::fleet::Server;
use crate::outcome::Outcome;

/// A certificate that ends sooner than this needs attention, as the plugin's own warning has it.
const EXPIRES_SOON_S: u64 = 30 * DAY_S;

/// One day in seconds.
const DAY_S: u64 = 86_400;

/// How much longer than its interval a key may live before that is worth a word: a rotation waits
/// for an election and a handover, and an attempt that fails is repeated.
const OVERDUE: Duration = Duration::from_secs(10);

/// One reason why a fleet is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// How bad it is.
    pub outcome: Outcome,
    /// What it is, for the operator.
    pub words: String,
    /// Whether it is also so for a moment in a fleet that is well, during an election or a
    /// handover: then only a second look tells.
    pub may_pass: bool,
}

/// Gathers reasons.
#[derive(Default)]
struct Reasons(Vec<Reason>);

impl Reasons {
    fn broken(&mut self, words: String) {
        self.0.push(Reason { outcome: Outcome::Broken, words, may_pass: true });
    }

    fn degraded(&mut self, words: String) {
        self.0.push(Reason { outcome: Outcome::Degraded, words, may_pass: false });
    }

    fn unsettled(&mut self, words: String) {
        self.0.push(Reason { outcome: Outcome::Degraded, words, may_pass: true });
    }
}

/// All reasons why this fleet is not well, the worst first. `interval` is `key_update_interval`.
pub fn reasons(servers: &[Server], interval: Duration) -> Vec<Reason> {
    let mut reasons = Reasons::default();
    let answers: Vec<&BoxStatus> = servers.iter().filter_map(Server::status).collect();
    look_at_absence(servers, &answers, &mut reasons);
    look_at_groups(&answers, &mut reasons);
    look_at_keys(&answers, &mut reasons);
    look_at_lists(&answers, &mut reasons);
    for status in &answers {
        look_at_one(status, &answers, interval, &mut reasons);
    }
    let mut found = reasons.0;
    // Stable: within one degree they stay in the order in which one would ask.
    found.sort_by_key(|reason| std::cmp::Reverse(reason.outcome));
    found
}

/// How the fleet is on the whole.
pub fn outcome(reasons: &[Reason]) -> Outcome {
    reasons.iter().map(|reason| reason.outcome).max().unwrap_or(Outcome::Healthy)
}

/// Who does not answer, and whether those who do are enough to make keys.
fn look_at_absence(servers: &[Server], answers: &[&BoxStatus], reasons: &mut Reasons) {
    let leaders = answers.iter().filter(|status| status.group.role == Role::Leader);
    let agreeing = answers.iter().filter(|status| status.group.quorum);
    if answers.is_empty() {
        reasons.broken("no server answers".to_owned());
    } else if agreeing.count() == 0 {
        reasons.broken(format!(
            "no server belongs to a majority; {} of {} answer, and no new key is made before more \
             than half of the list agree again",
            answers.len(),
            servers.len()
        ));
    } else if leaders.count() == 0 && answers.len() == servers.len() {
        reasons.broken("no server leads the group, so no new key is made".to_owned());
    }
    for server in servers {
        if let Err(failure) = &server.answer {
            reasons.degraded(format!("server {} {}", server.id(), starting_verb(failure)));
        }
    }
}

/// Whether the servers belong to one group.
fn look_at_groups(answers: &[&BoxStatus], reasons: &mut Reasons) {
    let histories = Sides::of(answers, |status| status.group.history);
    if histories.differ() {
        reasons.broken(format!(
            "the servers do not share one history of keys: {}; they join by themselves when they \
             can reach each other",
            histories.describe(|history| match history {
                Some(history) => format!("belong to history {history}"),
                None => "have none yet".to_owned(),
            })
        ));
    }
    for status in answers {
        let id = status.id;
        match status.group.role {
            Role::Asking => reasons.unsettled(format!(
                "server {id} has just started and still asks the others what it may do"
            )),
            Role::Quarantined => reasons
                .unsettled(format!("server {id} came back without its memory and is catching up")),
            _ if !status.group.quorum && answers.iter().any(|other| other.group.quorum) => reasons
                .unsettled(format!(
                    "server {id} is cut off from the majority; {}",
                    match status.group.quorum_ms {
                        Some(ms) => format!("it last heard of it {} ago", span(ms)),
                        None => "it has not heard of it since it started".to_owned(),
                    }
                )),
            _ => {}
        }
        let deaf: Vec<ServerId> = status
            .list
            .others
            .iter()
            .filter(|other| !other.reachable && answers.iter().any(|there| there.id == other.id))
            .map(|other| other.id)
            .collect();
        if !deaf.is_empty() {
            reasons.unsettled(format!(
                "server {id} does not hear {}, although that answers here; see the network between \
                 them",
                servers_named(&deaf)
            ));
        }
    }
}

/// Whether a ticket of each server can be decrypted by each other one.
fn look_at_keys(answers: &[&BoxStatus], reasons: &mut Reasons) {
    for status in answers {
        let id = status.id;
        match status.keys.in_use {
            KeyInUse::Own => reasons.broken(format!(
                "server {id} uses a key of its own, because it has not met the group yet: its \
                 tickets resume nowhere else"
            )),
            KeyInUse::Emergency => reasons.broken(format!(
                "server {id} uses a key of its own, because there was no majority for longer than \
                 max_key_age: its tickets resume nowhere else"
            )),
            KeyInUse::Agreed => {
                let current = status.keys.current.map(|key| key.generation);
                if current.is_some_and(|generation| generation != status.keys.installed) {
                    reasons.broken(format!(
                        "server {id} holds generation {}, but Traffic Server uses {} there; see \
                         its diags.log",
                        generation(status),
                        status.keys.installed
                    ));
                }
            }
        }
    }
    let agreed: Vec<&BoxStatus> =
        answers.iter().copied().filter(|s| s.keys.in_use == KeyInUse::Agreed).collect();
    let sides = Sides::of(&agreed, |status| status.keys.current);
    if !sides.differ() {
        return;
    }
    let told = sides.describe(|key| match key {
        Some(key) => format!("hold generation {} ({})", key.generation, key.fingerprint),
        None => "hold no key".to_owned(),
    });
    // During a handover some are ahead, and all hold both keys.
    match agreed.iter().all(|one| agreed.iter().all(|other| decrypts(other, one))) {
        true => reasons.unsettled(format!("a handover takes its time: {told}")),
        false => reasons.broken(format!("the servers do not use one key: {told}")),
    }
}

/// Whether `one` has the key that `other` encrypts with.
fn decrypts(one: &BoxStatus, other: &BoxStatus) -> bool {
    let Some(key) = other.keys.current else { return false };
    let held = one.keys.current.iter().chain(&one.keys.previous).chain(&one.keys.staged);
    held.into_iter().any(|held| *held == key)
}

/// Whether the servers agree on who they are and how they run.
fn look_at_lists(answers: &[&BoxStatus], reasons: &mut Reasons) {
    let agreed = Sides::of(answers, |status| status.list.digest.clone());
    if agreed.differ() {
        reasons.unsettled(format!(
            "the servers go by different server lists: {}",
            agreed.describe(|digest| match digest {
                Some(digest) => format!("by {digest}"),
                None => "by none that was agreed on".to_owned(),
            })
        ));
    }
    for status in answers {
        if status.list.digest.as_ref().is_some_and(|agreed| *agreed != status.list.file_digest) {
            reasons.degraded(format!(
                "server {} has another server list in its file than the group agreed on; give \
                 all boxes the same file and have one reload it",
                status.id
            ));
        }
    }
    let options = Sides::of(answers, |status| status.list.options_digest.clone());
    if options.differ() {
        reasons.degraded(format!(
            "not all servers have the same options, such as key_update_interval: {}",
            options.describe(|digest| format!("have {digest}"))
        ));
    }
    let versions = Sides::of(answers, |status| status.software.clone());
    if versions.differ() {
        reasons.degraded(format!(
            "not all servers run the same version of stek_share: {}; finish the upgrade",
            versions.describe(|version| format!("run {version}"))
        ));
    }
}

/// What concerns one server alone.
fn look_at_one(
    status: &BoxStatus,
    answers: &[&BoxStatus],
    interval: Duration,
    reasons: &mut Reasons,
) {
    let (id, age) = (status.id, Duration::from_millis(status.keys.age_ms));
    // One line for a key that all have in common: that of the first server.
    let is_first = answers.first().is_some_and(|first| first.id == id);
    if is_first && status.keys.current.is_some() && age > interval + OVERDUE {
        reasons.degraded(format!(
            "the current key is {} old, key_update_interval is {}: a rotation is overdue",
            span(status.keys.age_ms),
            seconds(interval.as_secs())
        ));
    }
    match status.certificate.expires_s {
        Some(0) => reasons.degraded(format!(
            "the certificate of server {id} has expired; the others refuse its new connections"
        )),
        Some(left) if left < EXPIRES_SOON_S => {
            reasons.degraded(format!("the certificate of server {id} expires in {}", seconds(left)))
        }
        _ => {}
    }
    if status.host.install_pending {
        reasons.unsettled(format!(
            "Traffic Server refused the keys on server {id}, which tries again; see its diags.log"
        ));
    }
}

/// Servers by what they say of one matter, the value that most of them have first.
struct Sides<T>(Vec<(T, Vec<ServerId>)>);

impl<T: PartialEq> Sides<T> {
    fn of(answers: &[&BoxStatus], value: impl Fn(&BoxStatus) -> T) -> Sides<T> {
        let mut sides: Vec<(T, Vec<ServerId>)> = Vec::new();
        for status in answers {
            let value = value(status);
            match sides.iter_mut().find(|(known, _)| *known == value) {
                Some((_, ids)) => ids.push(status.id),
                None => sides.push((value, vec![status.id])),
            }
        }
        sides.sort_by_key(|(_, ids)| std::cmp::Reverse(ids.len()));
        Sides(sides)
    }

    fn differ(&self) -> bool {
        self.0.len() > 1
    }

    /// `server 3 hold ..., servers 1 and 2 ...`: the few first, the many last. `does` begins with
    /// a verb in the plural.
    fn describe(&self, does: impl Fn(&T) -> String) -> String {
        let parts = self.0.iter().rev().map(|(value, ids)| {
            let does = does(value);
            let (verb, rest) = does.split_once(' ').unwrap_or((&does, ""));
            let verb = match (verb, ids.len()) {
                ("have", 1) => "has",
                ("belong", 1) => "belongs",
                ("hold", 1) => "holds",
                ("run", 1) => "runs",
                _ => verb,
            };
            format!("{} {verb} {rest}", servers_named(ids))
        });
        parts.collect::<Vec<_>>().join(", ")
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

/// A failure's words read on after `server 3`: those that begin with a noun or adjective need a
/// verb.
fn starting_verb(failure: &stek_share::client::Failure) -> String {
    use stek_share::client::Failure as F;
    match failure {
        F::Unreachable(_) => format!("is {failure}"),
        F::TimedOut(_) => format!("gives {failure}"),
        other => format!("does not answer: {other}"),
    }
}

/// The generation that encrypts, in digits.
pub fn generation(status: &BoxStatus) -> String {
    status.keys.current.map_or_else(|| "-".to_owned(), |key| key.generation.to_string())
}

/// A span of milliseconds in its two largest units.
pub fn span(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        _ => seconds(ms / 1000),
    }
}

/// A span of seconds in its two largest units, `2 d 3 h`.
pub fn seconds(seconds: u64) -> String {
    let units = [(DAY_S, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut left = seconds;
    let mut parts = Vec::new();
    for (length, unit) in units {
        let count = left / length;
        left %= length;
        // After the largest unit only the next one counts, even if it is 0.
        if count > 0 || !parts.is_empty() {
            parts.push((count, unit));
        }
    }
    let shown = parts.into_iter().take(2).filter(|(count, _)| *count > 0);
    let words: Vec<String> = shown.map(|(count, unit)| format!("{count} {unit}")).collect();
    match words.is_empty() {
        true => "0 s".to_owned(),
        false => words.join(" "),
    }
}
