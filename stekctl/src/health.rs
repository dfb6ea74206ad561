//! Whether a fleet is well, and if not, why: an assessment of what its servers say, in words.
//!
//! What is wrong with a server by itself is [`stek_share::core::health`]'s to say; what differs
//! between servers is found here. Asks nobody and prints nothing. Invariants: nothing is said
//! of a fleet that is well, and everything that is said names the servers that it is about.

use std::collections::BTreeSet;

use stek_share::client::{Failure as Unanswered, KeyInUse, Role, ServerStatus, TicketScope};
use stek_share::core::client_policy::MAX_SITES;
use stek_share::core::health::{complaints, Code, Severity};
use stek_share::core::server_id::ServerId;
use stek_share::core::server_list::ServerList;

use crate::absence::{absences, servers_named};
use crate::exit_code::Outcome;
use crate::fleet::{address, Own, Server};
use crate::outside::shut_out;

#[cfg(test)]
pub use self::tests::fleet;

/// What a server of an earlier version has of an option.
const NO_OPTION: &str = "no such option";

/// One reason why a fleet is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Its name.
    pub code: Code,
    /// How bad it is; what is merely worth a note is [`Outcome::Healthy`].
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
    fn broken(&mut self, code: Code, words: String) {
        self.0.push(Reason { code, outcome: Outcome::Broken, words, may_pass: true });
    }

    fn degraded(&mut self, code: Code, words: String) {
        self.0.push(Reason { code, outcome: Outcome::Degraded, words, may_pass: false });
    }

    fn unsettled(&mut self, code: Code, words: String) {
        self.0.push(Reason { code, outcome: Outcome::Degraded, words, may_pass: true });
    }

    fn note(&mut self, code: Code, words: String) {
        self.0.push(Reason { code, outcome: Outcome::Healthy, words, may_pass: false });
    }
}

/// All reasons why this fleet is not well, the worst first.
pub fn reasons(servers: &[Server]) -> Vec<Reason> {
    let mut reasons = Reasons::default();
    let all: Vec<&ServerStatus> = servers.iter().filter_map(Server::status).collect();
    if let Some(words) = shut_out(servers) {
        reasons.broken(Code::NotAMember, words);
    } else {
        let members = members(&all);
        let is_member = |status: &&ServerStatus| members.is_none_or(|ids| ids.contains(&status.id));
        let (answers, strangers): (Vec<_>, Vec<_>) = all.iter().copied().partition(is_member);
        look_at_absence(servers, &answers, &mut reasons);
        look_at_strangers(&strangers, &mut reasons);
        look_at_groups(&answers, &mut reasons);
        look_at_keys(&answers, &mut reasons);
        look_at_lists(&answers, &mut reasons);
    }
    servers.iter().for_each(|server| look_at_own(server, &mut reasons));
    let away: Vec<ServerId> =
        servers.iter().filter(|server| server.answer.is_err()).map(Server::id).collect();
    look_at_each(&all, &away, &mut reasons);
    let mut found = reasons.0;
    // Stable: within one degree they stay in the order in which one would ask.
    found.sort_by_key(|reason| std::cmp::Reverse(reason.outcome));
    found
}

/// The ids of the newest list that a majority goes by, if one answers.
fn members<'a>(answers: &[&'a ServerStatus]) -> Option<&'a [ServerId]> {
    let agreed = answers.iter().filter(|status| status.group.quorum && status.list.version > 0);
    let newest = agreed.max_by_key(|status| status.list.version)?;
    Some(&newest.list.agreed)
}

/// Servers that answer and are in no list of the group.
fn look_at_strangers(strangers: &[&ServerStatus], reasons: &mut Reasons) {
    for status in strangers {
        let id = status.id;
        let what = if status.list.leaves_out(id) {
            format!("server {id} was removed from the group's list and still runs; stop its plugin")
        } else {
            format!(
                "server {id} is in the file here and waits: the group's list does not have it yet; give \
                 all servers the list with it, and reload one"
            )
        };
        reasons.degraded(Code::NotAMember, what);
    }
}

/// What is said of who is in no list of the group by [`Code::NotAMember`] alone.
fn goes_without_saying(code: Code) -> bool {
    matches!(
        code,
        Code::Joining
            | Code::Recovering
            | Code::Campaigning
            | Code::NoMajority
            | Code::LeaderUnknown
            | Code::OwnKey
            | Code::OwnKeyByAge
            | Code::NotInstalled
            | Code::RotationLate
            | Code::PeerSilent
            | Code::ListFileDiffers
            | Code::NotAMember
    )
}

/// How the fleet is on the whole.
pub fn outcome(reasons: &[Reason]) -> Outcome {
    reasons.iter().map(|reason| reason.outcome).max().unwrap_or(Outcome::Healthy)
}

/// Who does not answer, and whether those who do are enough to make keys.
fn look_at_absence(servers: &[Server], answers: &[&ServerStatus], reasons: &mut Reasons) {
    if answers.is_empty() {
        let words =
            "no server answers; see that Traffic Server runs, and what is between here and there";
        reasons.broken(Code::NoAnswer, words.to_owned());
    } else if !answers.iter().any(|status| status.group.quorum) {
        reasons.broken(
            Code::NoMajority,
            format!(
            "no server belongs to a majority: {} of {} answer, and no new key is made before more \
             than half of the list agree again; bring the others back",
            answers.len(),
            servers.len()
        ),
        );
    } else if answers.len() == servers.len()
        && !answers.iter().any(|status| status.group.role == Role::Leader)
    {
        reasons
            .broken(Code::NoLeader, "no server leads the group, so no new key is made".to_owned());
    }
    absences(servers).into_iter().for_each(|words| reasons.degraded(Code::Unreachable, words));
}

/// Whether the plugin of this machine is the one that the list means.
fn look_at_own(server: &Server, reasons: &mut Reasons) {
    let (id, listed) = (server.id(), address(&server.member));
    match (&server.own, &server.answer) {
        (Own::NotAsked | Own::AtAddress, _) | (Own::Silent(..), Err(_)) => {}
        (Own::Silent(place, why), Ok(_)) => reasons.note(
            Code::NoPluginHere,
            format!(
                "no plugin of server {id} answers on this machine ({}: {}); {listed}, which \
                 answers, is another machine",
                address(place),
                why.cause()
            ),
        ),
        (Own::Elsewhere { place, listed: at_listed }, _) => match &**at_listed {
            Ok((other, _)) if Some(other.incarnation) == server.status().map(|s| s.incarnation) => {
            }
            Ok(_) | Err(Unanswered::Stranger(_)) => {
                let who = match &**at_listed {
                    Err(Unanswered::Stranger(other)) => {
                        format!("server {other} answers at {listed}")
                    }
                    _ => format!("another process answers as server {id} at {listed}"),
                };
                reasons.broken(
                    Code::DuplicateId,
                    format!(
                        "server_id {id} is on this machine ({}) and elsewhere: {who}; a copied \
                         machine needs a server_id, an address and a certificate of its own: see \
                         docs/health.md",
                        address(place)
                    ),
                );
            }
            Err(why) => reasons.degraded(
                Code::NotAtAddress,
                format!(
                    "server {id} answers on this machine ({}), but not at its listed address \
                     {listed}: {}; other servers cannot dial it; correct address and port, or what \
                     is in between",
                    address(place),
                    why.cause()
                ),
            ),
        },
    }
}

/// Whether the servers belong to one group, and who stands apart from it.
fn look_at_groups(answers: &[&ServerStatus], reasons: &mut Reasons) {
    // Of one cluster incarnation there are two clusters where a group was founded apart from the other.
    let clusters = Sides::of(answers, |status| {
        let epoch = status.group.epoch;
        status.group.cluster_id.filter(|_| epoch > 0).map(|cluster_id| (cluster_id, epoch))
    });
    if clusters.differ() {
        reasons.broken(Code::ClustersDiffer, format!(
            "the servers do not share one cluster incarnation of keys: {}; they join by themselves once they \
             reach each other",
            clusters.describe(|cluster_id| match cluster_id {
                Some((cluster_id, epoch)) => {
                    format!("belong to cluster incarnation {cluster_id}, founded in epoch {epoch}")
                }
                None => "have none yet".to_owned(),
            })
        ));
    }
    if !answers.iter().any(|status| status.group.quorum) {
        return;
    }
    for status in answers.iter().filter(|status| is_apart(status)) {
        let id = status.id;
        let (code, words) = match (status.group.role, status.group.quorum_ms) {
            (Role::Joining, _) => (
                Code::Joining,
                format!("server {id} has just started and is in no group yet"),
            ),
            (Role::Recovering, _) => (
                Code::Recovering,
                format!("server {id} has started as a new node, and is sent what the group agreed on or is not a voter yet"),
            ),
            (_, Some(ms)) => (
                Code::CutOff,
                format!(
                    "server {id} is cut off from the majority, of which it last heard {} ago; see the \
                     network between it and the others",
                    span(ms)
                ),
            ),
            (_, None) => (
                Code::CutOff,
                format!("server {id} has not met the majority since it started; see its diags.log"),
            ),
        };
        reasons.unsettled(code, words);
    }
}

/// Whether this server takes no part in a majority.
fn is_apart(status: &ServerStatus) -> bool {
    !status.group.quorum || matches!(status.group.role, Role::Joining | Role::Recovering)
}

/// Whether a ticket of each server can be decrypted by each other one.
fn look_at_keys(answers: &[&ServerStatus], reasons: &mut Reasons) {
    let agreed: Vec<&ServerStatus> =
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
    if agreed.iter().all(|one| agreed.iter().all(|other| decrypts(other, one))) {
        reasons.unsettled(Code::HandoverSlow, format!("a handover takes its time: {told}"))
    } else {
        reasons.broken(
            Code::KeysDiffer,
            format!("the servers do not use one key: {told}; see diags.log of the ones behind"),
        )
    }
}

/// Whether `one` has the key that `other` encrypts with.
fn decrypts(one: &ServerStatus, other: &ServerStatus) -> bool {
    let Some(key) = other.keys.current else { return false };
    let held = one.keys.current.iter().chain(&one.keys.previous).chain(&one.keys.staged);
    held.into_iter().any(|held| *held == key)
}

/// Whether the servers agree on who they are and how they run.
fn look_at_lists(answers: &[&ServerStatus], reasons: &mut Reasons) {
    let agreed = Sides::of(answers, |status| {
        let list = &status.list;
        list.digest.clone().map(|digest| (digest, list.version, list.agreed.clone()))
    });
    if agreed.differ() {
        let told = agreed.describe(|list| match list {
            Some((_, version, ids)) => {
                format!("go by version {version}, with {}", servers_named(ids))
            }
            None => "go by none that was agreed on".to_owned(),
        });
        let entries = entries_that_differ(answers, &agreed)
            .map_or_else(String::new, |words| format!(": {words}"));
        reasons.unsettled(
            Code::ListsDiffer,
            format!(
                "not all servers go by the same server list: {told}{entries}; see that all reach each \
                 other, then who is behind catches up by itself"
            ),
        );
    }
    let names: BTreeSet<&String> =
        answers.iter().flat_map(|s| s.list.options.iter().map(|(name, _)| name)).collect();
    for name in names {
        let value = |status: &ServerStatus| {
            let found = status.list.options.iter().find(|(other, _)| other == name);
            found.map_or_else(|| NO_OPTION.to_owned(), |(_, value)| value.clone())
        };
        let sides = Sides::of(answers, value);
        if sides.differ() {
            let told = sides.describe(|value| {
                let empty = if value.is_empty() { "none" } else { value };
                format!("have {empty}")
            });
            let first =
                if told.contains(NO_OPTION) { "upgrade those that have none, then " } else { "" };
            reasons.degraded(
                Code::OptionsDiffer,
                format!(
                    "not all servers have the same {name}: {told}; {first}give all the same one in \
                     server_conf.yaml, and reload"
                ),
            );
        }
    }
    let hosted = answers.iter().copied().filter(|status| status.host.ticket_scope.is_some());
    let hosted: Vec<&ServerStatus> = hosted.collect();
    let scopes = Sides::of(&hosted, |status| status.host.ticket_scope);
    if scopes.differ() {
        reasons.degraded(
            Code::TicketScopesDiffer,
            format!(
            "not all servers have the same ticket_scope, so that sessions of one do not resume on \
             another: {}; give all the same one in server_conf.yaml and restart Traffic Server",
            scopes.describe(|scope| format!("have {}", scope.map_or("none", TicketScope::word)))
        ),
        );
    }
    look_at_client_policies(&hosted, reasons);
    let versions = Sides::of(answers, |status| status.software.clone());
    if versions.differ() {
        reasons.degraded(
            Code::VersionsDiffer,
            format!(
                "not all servers run the same version of stek_share: {}; finish the upgrade",
                versions.describe(|version| format!("run {version}"))
            ),
        );
    }
}

/// In what the lists of the two largest sides differ, entry by entry.
fn entries_that_differ<T: PartialEq>(
    answers: &[&ServerStatus],
    sides: &Sides<T>,
) -> Option<String> {
    let [(_, most), (_, few), ..] = &sides.0[..] else { return None };
    let list = |ids: &[ServerId]| {
        let status = answers.iter().find(|status| ids.contains(&status.id))?;
        ServerList::new(status.list.version, &status.list.entries).ok()
    };
    let names = [most, few].map(|ids| format!("the list of {}", servers_named(ids)));
    list(most)?.differences_from(&list(few)?, [&names[0], &names[1]])
}

/// Whether all ask the same of their clients: a session is not resumed where something else is
/// asked, and with `ticket_scope: host` it is, although it must not be.
fn look_at_client_policies(hosted: &[&ServerStatus], reasons: &mut Reasons) {
    let hosted: Vec<&ServerStatus> =
        hosted.iter().copied().filter(|status| status.host.client_policy.is_some()).collect();
    let policy = |status: &ServerStatus| status.host.client_policy.clone().unwrap_or_default();
    let by_host = hosted.iter().any(|status| status.host.ticket_scope == Some(TicketScope::Host));
    let means = if by_host {
        "a session of a server that demands no certificate opens one that does"
    } else {
        "sessions of one do not resume on another"
    };
    let levels = Sides::of(&hosted, |status| policy(status).level);
    if levels.differ() {
        reasons.degraded(
            Code::ClientPoliciesDiffer,
            format!(
            "not all servers ask the same of their clients, so that {means}: {}; give all the same \
             proxy.config.ssl.client.certification_level",
            levels.describe(|level| format!("have certification_level {level}"))
        ),
        );
    }
    let sites = Sides::of(&hosted, |status| policy(status).digest);
    let [(_, most), (_, few), ..] = &sites.0[..] else { return };
    let of = |ids: &[ServerId]| {
        hosted.iter().find(|status| ids.first() == Some(&status.id)).copied().map(policy)
    };
    let (Some(most), Some(few)) = (of(most), of(few)) else { return };
    let told = match few.differs_in(&most) {
        Some(name) => {
            let sides = Sides::of(&hosted, |status| policy(status).of(name));
            format!("for {name}, in sni.yaml, {}", sides.describe(Clone::clone))
        }
        // The names that a status carries are alike.
        None => {
            let sides: Vec<String> = sites.0.iter().map(|(_, ids)| servers_named(ids)).collect();
            format!(
                "sni.yaml of {} is not as that of {} for a name behind the first {MAX_SITES} in the \
                 order of the alphabet",
                sides.last().map_or("", String::as_str),
                sides.first().map_or("", String::as_str)
            )
        }
    };
    reasons.degraded(
        Code::ClientPoliciesDiffer,
        format!(
        "not all servers ask the same of their clients, so that {means}: {told}; give all the same \
         verify_client and verify_client_ca_certs in sni.yaml"
    ),
    );
}

/// What concerns one server alone; servers of which the same is to be said share a line.
fn look_at_each(answers: &[&ServerStatus], away: &[ServerId], reasons: &mut Reasons) {
    let has_majority = answers.iter().any(|status| status.group.quorum);
    let members = members(answers);
    let shut_out = reasons.0.iter().any(|reason| reason.code == Code::NotAMember) && !has_majority;
    let mut said: Vec<(Reason, Vec<ServerId>)> = Vec::new();
    for status in answers {
        let may_pass = is_apart(status)
            || status.group.leader.is_none()
            || status.keys.in_use != KeyInUse::Agreed
            || status.keys.current.is_some_and(|key| key.generation != status.keys.installed)
            || status.host.install_pending
            || status.list.others.iter().any(|other| !other.reachable);
        // Who stands apart from a majority, or that there is none, was said already.
        let apart = is_apart(status) || !has_majority;
        let assessed = if apart { among_others(status) } else { (*status).clone() };
        let stands_out = members.is_some_and(|ids| !ids.contains(&status.id)) || shut_out;
        for complaint in complaints(&assessed) {
            if stands_out && goes_without_saying(complaint.code)
                || complaint.code == Code::PeerSilent && hears_all_but(status, away)
            {
                continue;
            }
            let outcome = match complaint.severity {
                Severity::Degraded => Outcome::Degraded,
                Severity::Broken => Outcome::Broken,
            };
            let reason = Reason { code: complaint.code, outcome, words: complaint.words, may_pass };
            match said.iter_mut().find(|(known, _)| known.words == reason.words) {
                Some((known, ids)) => {
                    known.may_pass |= may_pass;
                    ids.push(status.id);
                }
                None => said.push((reason, vec![status.id])),
            }
        }
    }
    for (reason, ids) in said {
        let words = format!("{}: {}", servers_named(&ids), reason.words);
        reasons.0.push(Reason { words, ..reason });
    }
}

/// Whether whom it does not hear is gone for whoever asks, too, which is said.
fn hears_all_but(status: &ServerStatus, away: &[ServerId]) -> bool {
    status.list.others.iter().all(|other| other.reachable || away.contains(&other.id))
}

/// The same server as if it took part in a majority.
fn among_others(status: &ServerStatus) -> ServerStatus {
    let mut joined = status.clone();
    joined.group.role = Role::Follower;
    joined.group.quorum = true;
    joined.group.leader = Some(status.id);
    joined
}

/// Servers by what they say of one matter, the value that most of them have first.
struct Sides<T>(Vec<(T, Vec<ServerId>)>);

impl<T: PartialEq> Sides<T> {
    fn of(answers: &[&ServerStatus], value: impl Fn(&ServerStatus) -> T) -> Sides<T> {
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
                ("go", 1) => "goes",
                ("hold", 1) => "holds",
                ("run", 1) => "runs",
                ("say", 1) => "says",
                _ => verb,
            };
            format!("{} {verb} {rest}", servers_named(ids))
        });
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// The generation that encrypts, in digits.
pub fn generation(status: &ServerStatus) -> String {
    status.keys.current.map_or_else(|| "-".to_owned(), |key| key.generation.to_string())
}

/// One day in seconds.
const DAY_S: u64 = 86_400;

/// A span of milliseconds in its two largest units.
pub fn span(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        _ => seconds(ms / 1000),
    }
}

/// A span of milliseconds in its largest unit, for tables.
pub fn short_span(ms: u64) -> String {
    let words = span(ms);
    let mut parts = words.split(' ');
    match (parts.next(), parts.next()) {
        (Some(count), Some(unit)) => format!("{count} {unit}"),
        _ => words,
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
    if words.is_empty() {
        "0 s".to_owned()
    } else {
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Answer;
    use std::time::Duration;
    use stek_share::client::ClientPolicy;
    use stek_share::transport::listener::Refusal;
    use stek_share::transport::tls::UNKNOWN_NAME;

    use stek_share::client::{
        CertificateStatus, GroupStatus, HostStatus, KeyStatus, Keys, ListStatus, MemberStatus,
        ReloadStatus,
    };
    use stek_share::core::config::Member;
    use stek_share::core::key_ring::{ClusterId, Generation};
    use stek_share::core::stek::Stek;

    fn key(generation: u64) -> Option<KeyStatus> {
        let byte = u8::try_from(generation).ok()?;
        let fingerprint = Stek::copy_from(&[byte; 48])?.fingerprint();
        Some(KeyStatus { generation: Generation(generation), fingerprint })
    }

    /// A server's entry in the list of all.
    fn entry(id: u32) -> Member {
        Member {
            id: ServerId(id),
            address: format!("10.0.0.{id}"),
            port: 1,
            subject: Some(format!("/CN={id}")),
            voter: true,
        }
    }

    /// What a server says that is well; server 1 leads.
    fn well(id: u32) -> ServerStatus {
        let role = if id == 1 { Role::Leader } else { Role::Follower };
        ServerStatus {
            id: ServerId(id),
            software: "1.0.0".to_owned(),
            incarnation: id.into(),
            uptime_ms: 1000,
            clock_ms: 0,
            group: GroupStatus {
                role,
                leader: Some(ServerId(1)),
                term: 1,
                cluster_id: ClusterId::from_bytes([7; 16]),
                epoch: 5,
                votes: true,
                quorum: true,
                quorum_ms: Some(10),
                elections: 0,
                leaders: 1,
                staged: 7,
                rotations: 7,
            },
            keys: Keys {
                current: key(7),
                previous: key(6).into_iter().collect(),
                staged: None,
                age_ms: 1000,
                next_ms: 3_599_000,
                interval_ms: 3_600_000,
                in_use: KeyInUse::Agreed,
                installed: Generation(7),
            },
            list: ListStatus {
                version: 1,
                digest: Some("0123abcd".to_owned()),
                file_digest: "0123abcd".to_owned(),
                file_difference: None,
                agreed: (1..=3).map(ServerId).collect(),
                entries: (1..=3).map(entry).collect(),
                options: vec![("key_update_interval".to_owned(), "3600".to_owned())],
                voters: 3,
                others: Vec::new(),
            },
            certificate: CertificateStatus {
                subject: "/CN=server".to_owned(),
                fingerprint: String::new(),
                roots_digest: String::new(),
                expires_s: Some(365 * DAY_S),
                life_s: 730 * DAY_S,
                authority: None,
            },
            host: HostStatus::default(),
            state_faults: Vec::new(),
            reload: ReloadStatus::default(),
            refused_keys: Vec::new(),
            refused_peers: Vec::new(),
            accepted: 0,
            sessions: None,
        }
    }

    /// Three servers, spoiled.
    pub fn fleet(spoil: impl Fn(&mut [ServerStatus; 3])) -> Vec<Server> {
        let mut statuses = [well(1), well(2), well(3)];
        spoil(&mut statuses);
        let server = |status: ServerStatus| Server {
            member: Member {
                id: status.id,
                address: "10.0.0.1".to_owned(),
                port: 1,
                subject: None,
                voter: true,
            },
            answer: Ok((status, Duration::from_millis(1))),
            clock_offset_ms: Some(0),
            own: Own::NotAsked,
        };
        statuses.map(server).into()
    }

    fn unreachable(server: &mut Server) {
        server.answer = Err(Unanswered::Unreachable("connection refused".to_owned()));
    }

    #[test]
    fn nothing_is_said_of_a_fleet_that_is_well() {
        assert_eq!(reasons(&fleet(|_| {})), []);
    }

    #[test]
    fn each_difference_is_said_once_with_the_servers_names() {
        type Spoil = fn(&mut [ServerStatus; 3]);
        let cases: [(Spoil, Outcome, &str); 16] = [
            (
                |all| {
                    all[2].keys.current = key(6);
                    all[2].keys.previous = Vec::new();
                    all[2].keys.installed = Generation(6);
                },
                Outcome::Broken,
                "server 3 holds generation 6 (",
            ),
            (
                |all| {
                    // The next key is held by all and used by one.
                    all[0].keys = Keys { current: key(8), ..all[0].keys.clone() };
                    all[0].keys.previous = key(7).into_iter().collect();
                    all[0].keys.installed = Generation(8);
                    all[1].keys.staged = key(8);
                    all[2].keys.staged = key(8);
                },
                Outcome::Degraded,
                "a handover takes its time: server 1 holds generation 8 (",
            ),
            (
                |all| all[1].group.cluster_id = ClusterId::from_bytes([8; 16]),
                Outcome::Broken,
                "server 2 belongs to cluster incarnation 08080808, founded in epoch 5, servers 1 and 3 belong to \
                 cluster incarnation 07070707, founded in epoch 5",
            ),
            (
                |all| all[1].group.epoch = 6,
                Outcome::Broken,
                "server 2 belongs to cluster incarnation 07070707, founded in epoch 6, servers 1 and 3 belong to \
                 cluster incarnation 07070707, founded in epoch 5",
            ),
            (
                |all| all[1].list.options[0].1 = "7200".to_owned(),
                Outcome::Degraded,
                "the same key_update_interval: server 2 has 7200, servers 1 and 3 have 3600; give",
            ),
            (
                |all| all[1].list.options.clear(),
                Outcome::Degraded,
                "not all servers have the same key_update_interval: server 2 has no such option, \
                 servers 1 and 3 have 3600; upgrade those that have none, then give all the same one in \
                 server_conf.yaml, and reload",
            ),
            (
                |all| {
                    all[0].host.ticket_scope = Some(TicketScope::Site);
                    all[1].host.ticket_scope = Some(TicketScope::Host);
                    all[2].host.ticket_scope = Some(TicketScope::Site);
                },
                Outcome::Degraded,
                "server 2 has host, servers 1 and 3 have site; give all the same one",
            ),
            (
                |all| {
                    let policy = |level, asks: &str| {
                        let text = format!("sni:\n- {{fqdn: a.example, verify_client: {asks}}}");
                        Some(ClientPolicy::read(level, &text, str::to_owned))
                    };
                    all.iter_mut().for_each(|one| {
                        one.host.ticket_scope = Some(TicketScope::Site);
                        one.host.client_policy = policy(2, "STRICT");
                    });
                    all[2].host.client_policy = policy(0, "STRICT");
                },
                Outcome::Degraded,
                "sessions of one do not resume on another: server 3 has certification_level 0, servers \
                 1 and 2 have certification_level 2; give all the same proxy.config",
            ),
            (
                |all| {
                    let policy = |asks: &str| {
                        let text = format!("sni:\n- {{fqdn: a.example, verify_client: {asks}}}");
                        Some(ClientPolicy::read(0, &text, str::to_owned))
                    };
                    all.iter_mut().for_each(|one| {
                        one.host.ticket_scope = Some(TicketScope::Host);
                        one.host.client_policy = policy("STRICT");
                    });
                    all[0].host.client_policy = policy("NONE");
                },
                Outcome::Degraded,
                "demands no certificate opens one that does: for a.example, in sni.yaml, server 1 has \
                 NONE, servers 2 and 3 have STRICT; give all the same verify_client",
            ),
            (
                |all| {
                    // Names and values, also where there are more names than are compared one by one.
                    let policy = |last: &str| {
                        let names = (0..=MAX_SITES).map(|at| format!("n{at:03}"));
                        let entry = |name| format!("- {{fqdn: {name}, verify_client: STRICT}}\n");
                        let text: String = names.map(entry).collect();
                        let text = format!("sni:\n{text}- {{fqdn: z, verify_client: {last}}}");
                        Some(ClientPolicy::read(0, &text, str::to_owned))
                    };
                    all.iter_mut().for_each(|one| {
                        one.host.ticket_scope = Some(TicketScope::Site);
                        one.host.client_policy = policy("STRICT");
                    });
                    all[0].host.client_policy = policy("NONE");
                },
                Outcome::Degraded,
                "do not resume on another: sni.yaml of server 1 is not as that of servers 2 and 3 for a \
                 name behind the first 64 in the order of the alphabet; give all the same verify_client",
            ),
            (
                |all| all[2].software = "1.1.0".to_owned(),
                Outcome::Degraded,
                "server 3 runs 1.1.0, servers 1 and 2 run 1.0.0; finish the upgrade",
            ),
            (
                |all| {
                    all[2].list.digest = Some("ffff0000".to_owned());
                    all[2].list.file_digest = "ffff0000".to_owned();
                    all[2].list.agreed.push(ServerId(4));
                    all[2].list.entries.push(entry(4));
                },
                Outcome::Degraded,
                "list: server 3 goes by version 1, with servers 1, 2, 3 and 4, servers 1 and 2 go by version 1, \
                 with servers 1, 2 and 3: server 4 is only in the list of server 3; see that all",
            ),
            (
                |all| {
                    // The same version and the same servers, and yet not the same list.
                    all[2].list.digest = Some("ffff0000".to_owned());
                    all[2].list.file_digest = "ffff0000".to_owned();
                    let [.., last] = &mut all[2].list.entries[..] else { return };
                    last.address = "10.0.0.9".to_owned();
                    last.subject = Some("/CN=new".to_owned());
                },
                Outcome::Degraded,
                "with servers 1, 2 and 3: server 3 is at 10.0.0.9:1 in the list of server 3 and at 10.0.0.3:1 \
                 in the list of servers 1 and 2, server 3 has the cert_verify_str /CN=new in the list of \
                 server 3 and /CN=3 in the list of servers 1 and 2; see that all",
            ),
            (
                |all| {
                    all[2].group.quorum = false;
                    all[2].group.quorum_ms = Some(65_000);
                    all[2].group.leader = None;
                },
                Outcome::Degraded,
                "server 3 is cut off from the majority, of which it last heard 1 min 5 s ago",
            ),
            (
                |all| all[0].group.role = Role::Follower,
                Outcome::Broken,
                "no server leads the group",
            ),
            (
                |all| all[1].keys.in_use = KeyInUse::Emergency,
                Outcome::Broken,
                "server 2: it encrypts with a key of its own",
            ),
        ];
        for (spoil, outcome, words) in cases {
            let found = reasons(&fleet(spoil));
            let [one] = found.as_slice() else { panic!("{words}: {found:#?}") };
            assert!(one.outcome == outcome && one.words.contains(words), "{words}: {one:#?}");
        }
    }

    #[test]
    fn servers_of_which_the_same_is_to_be_said_share_a_line() {
        let found = reasons(&fleet(|all| {
            all.iter_mut().for_each(|status| status.certificate.expires_s = Some(0));
        }));
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert!(
            one.words.starts_with("servers 1, 2 and 3: its certificate has expired"),
            "{one:?}"
        );
        assert!(!one.may_pass);
    }

    #[test]
    fn who_is_away_is_not_told_again_by_who_does_not_hear_it() {
        let silent =
            MemberStatus { id: ServerId(3), heard_ms: None, reachable: false, connected: false };
        let mut servers = fleet(|all| {
            all[0].group.role = Role::Leader;
            all[0].list.others = vec![silent];
        });
        let found = reasons(&servers);
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!(one.words, "server 1: it does not hear server 3");
        unreachable(&mut servers[2]);
        let found = reasons(&servers);
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!(one.code, Code::Unreachable);
    }

    #[test]
    fn the_absent_are_named_and_a_minority_is_broken() {
        let mut servers = fleet(|_| {});
        unreachable(&mut servers[2]);
        let found = reasons(&servers);
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!(outcome(&found), Outcome::Degraded);
        assert!(one.words.starts_with("server 3 is unreachable: connection refused;"), "{one:?}");
        let mut servers = fleet(|all| {
            all[0].group.quorum = false;
            all[0].group.role = Role::Candidate;
        });
        servers[1..].iter_mut().for_each(unreachable);
        let found = reasons(&servers);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[1].words.starts_with("servers 2 and 3 are unreachable: "), "{found:#?}");
        assert!(found[0].words.contains("no server belongs to a majority: 1 of 3 answer"));
        unreachable(&mut servers[0]);
        assert!(reasons(&servers)[0].words.starts_with("no server answers; see that"));
    }

    /// A fourth server, not in the group's list.
    fn fourth() -> ServerStatus {
        let mut status = well(4);
        status.group = GroupStatus {
            role: Role::Joining,
            cluster_id: None,
            quorum: false,
            quorum_ms: None,
            leader: None,
            ..status.group
        };
        status.keys = Keys { current: None, in_use: KeyInUse::Own, ..status.keys };
        status.list = ListStatus { digest: None, version: 0, agreed: Vec::new(), ..status.list };
        status
    }

    fn with_fourth(fourth: ServerStatus) -> Vec<Server> {
        let mut servers = fleet(|_| {});
        let mut fourths = fleet(|all| all[0] = fourth.clone());
        servers.extend(fourths.drain(..1));
        servers
    }

    #[test]
    fn a_server_that_waits_or_was_removed_makes_nobody_look_broken() {
        let found = reasons(&with_fourth(fourth()));
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!((one.code, one.outcome), (Code::NotAMember, Outcome::Degraded));
        assert!(one.words.starts_with("server 4 is in the file here and waits"), "{one:?}");
        let mut removed = fourth();
        removed.list.agreed = (1..=3).map(ServerId).collect();
        let found = reasons(&with_fourth(removed.clone()));
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert!(one.words.starts_with("server 4 was removed from the group's list"), "{one:?}");

        // Seen from itself, whom nobody hears.
        type Refused = fn() -> Unanswered;
        let as_stranger: Refused = || Unanswered::Refused(Refusal::NotAMember);
        let as_foreign: Refused = || Unanswered::OurCertificate("unknown".to_owned());
        let from = |status: &ServerStatus, refused: Refused| {
            let mut servers = with_fourth(status.clone());
            servers[3].own = Own::AtAddress;
            servers[..3].iter_mut().for_each(|server| server.answer = Err(refused()));
            reasons(&servers)
        };
        for (status, refused, words) in [
            (&removed, as_foreign, "server 4 was removed from the group's list"),
            (&removed, as_stranger, "server 4 was removed from the group's list"),
            (&fourth(), as_stranger, "server 4 is not in the group's list, and encrypts"),
        ] {
            let found = from(status, refused);
            let [one] = found.as_slice() else { panic!("{found:#?}") };
            assert_eq!((one.code, one.outcome), (Code::NotAMember, Outcome::Broken));
            assert!(one.words.starts_with(words), "{one:?}");
        }
        // With a name of its own in the list, which the others do not have yet or no longer.
        let as_nameless: Refused = || Unanswered::OurCertificate(UNKNOWN_NAME.to_owned());
        let named = |subject: Option<&str>| {
            let mut servers = with_fourth(fourth());
            servers[3].own = Own::AtAddress;
            servers[3].member.subject = subject.map(str::to_owned);
            servers[..3].iter_mut().for_each(|server| server.answer = Err(as_nameless()));
            servers
        };
        let found = reasons(&named(Some("/CN=four")));
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert!(one.words.starts_with("server 4 is not in the group's list"), "{one:?}");
        assert_eq!(shut_out(&named(None)), None, "one name for all is in all lists");
        // Its own plugin goes by the list that it is not in any more.
        let mut servers = named(Some("/CN=four"));
        servers[3].answer = Err(as_nameless());
        let found = reasons(&servers);
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert!(
            one.words.starts_with("server 4 is not in the list that its own plugin"),
            "{one:?}"
        );
        let mut servers = named(Some("/CN=four"));
        servers[0].answer = Ok((well(1), Duration::ZERO));
        assert_eq!(shut_out(&servers), None, "one of them knows it");
        // Where its certificate may be at fault, that is said.
        let found = from(&fourth(), as_foreign);
        assert!(found.iter().any(|reason| reason.words.contains("certificate")), "{found:#?}");
    }

    #[test]
    fn a_copied_machine_is_told_from_a_proxied_one() {
        let place = |address: &str| Member {
            id: ServerId(1),
            address: address.to_owned(),
            port: 1,
            subject: None,
            voter: true,
        };
        let elsewhere = |listed: Answer, here: u64| {
            let mut servers = fleet(|all| all[0].incarnation = here);
            let place = place("127.0.0.1");
            servers[0].own = Own::Elsewhere { place, listed: Box::new(listed) };
            reasons(&servers)
        };
        let listed = || Ok((well(1), Duration::ZERO));
        assert_eq!(elsewhere(listed(), 1), [], "one process, two ways to it");
        let found = elsewhere(listed(), 9);
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!((one.code, one.outcome), (Code::DuplicateId, Outcome::Broken));
        assert!(one.words.contains("server_id 1 is on this machine (127.0.0.1:1)"), "{one:?}");
        let found = elsewhere(Err(Unanswered::Stranger(ServerId(7))), 1);
        assert!(found[0].words.contains("server 7 answers at 10.0.0.1:1"), "{found:#?}");
        let found = elsewhere(Err(Unanswered::Unreachable("refused; see".to_owned())), 1);
        let [one] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!((one.code, one.outcome), (Code::NotAtAddress, Outcome::Degraded));
        // Somebody who looks from another machine is not told that the fleet is ill.
        let mut servers = fleet(|_| {});
        let refused = Unanswered::Unreachable("refused".to_owned());
        servers[0].own = Own::Silent(place("127.0.0.1"), refused);
        let found = reasons(&servers);
        assert_eq!((found[0].code, outcome(&found)), (Code::NoPluginHere, Outcome::Healthy));
    }

    #[test]
    fn spans_are_told_in_their_two_largest_units() {
        let told = [0, 59, 60, 3600, 3661, 90_000, 172_859].map(seconds);
        let expected = ["0 s", "59 s", "1 min", "1 h", "1 h 1 min", "1 d 1 h", "2 d"];
        assert_eq!(told, expected);
        assert_eq!((span(7), span(61_000)), ("7 ms".to_owned(), "1 min 1 s".to_owned()));
    }
}
