//! What is wrong with a server, by what it says of itself: one sentence for each matter.
//!
//! Checks one server alone; what differs between servers is for who asks them all. Invariants: a
//! server that is well has nothing to complain of, also while a key is handed over.

use super::findings::FindingKind;
use super::key_ring::Generation;
use super::server_status::{Hint, HostStatus, KeyInUse, Role, ServerStatus};
use super::text::words;

/// How much a complaint matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Sessions are shared as they should be, but something needs to be looked at.
    Degraded,
    /// Sessions of this server are not resumed elsewhere, or soon no longer, or not as safely.
    Broken,
}

words! {
    /// What may be wrong with a server or a fleet, by a name that scripts can go by: the word that it
    /// has in JSON and in docs/health.md never changes its meaning.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Code {
        /// No server of the list answers.
        NoAnswer = "no_answer",
        /// No server that answers belongs to a majority.
        NoMajority = "no_majority",
        /// All answer, and none leads.
        NoLeader = "no_leader",
        /// A server does not answer.
        Unreachable = "unreachable",
        /// Two processes run under one `server_id`, one of them on this machine.
        DuplicateId = "duplicate_id",
        /// The plugin of this machine does not answer at the address that the list has for it.
        NotAtAddress = "not_at_address",
        /// No plugin answers on this machine.
        NoPluginHere = "no_plugin_here",
        /// Servers belong to different cluster incarnations.
        ClustersDiffer = "clusters_differ",
        /// A server has started and is in no group yet.
        Joining = "joining",
        /// A server has started, as a new node, and is sent the log.
        Recovering = "recovering",
        /// A server takes no part in the majority that there is.
        CutOff = "cut_off",
        /// Servers encrypt with different keys of the group.
        KeysDiffer = "keys_differ",
        /// A handover takes longer than it should.
        HandoverSlow = "handover_slow",
        /// Servers go by different lists.
        ListsDiffer = "lists_differ",
        /// Servers have different values of options that all need alike.
        OptionsDiffer = "options_differ",
        /// Servers bind sessions to different things.
        TicketScopesDiffer = "ticket_scopes_differ",
        /// Servers ask different things of their clients.
        ClientPoliciesDiffer = "client_policies_differ",
        /// Servers run different versions of the plugin.
        VersionsDiffer = "versions_differ",
        /// A server campaigns, since it hears no leader.
        Campaigning = "campaigning",
        /// A server knows no leader.
        LeaderUnknown = "leader_unknown",
        /// A server encrypts with a key of its own, since it has none of the group's.
        OwnKey = "own_key",
        /// The same, since the group's is older than `max_key_age`.
        OwnKeyByAge = "own_key_by_age",
        /// Traffic Server has not taken the current key.
        NotInstalled = "not_installed",
        /// A rotation is late.
        RotationLate = "rotation_late",
        /// A server does not hear another one.
        PeerSilent = "peer_silent",
        /// A server's file holds another list than the agreed one.
        ListFileDiffers = "list_file_differs",
        /// A server is in no list of the group: it was removed, or is to come.
        NotAMember = "not_a_member",
        /// The last reload of a server could not be carried out.
        ReloadFailed = "reload_failed",
        /// The end of a certificate cannot be read.
        CertificateUnreadable = "certificate_unreadable",
        /// A certificate has expired.
        CertificateExpired = "certificate_expired",
        /// A certificate is in the last part of its life.
        CertificateExpiring = "certificate_expiring",
        /// Keys were refused.
        KeysRefused = "keys_refused",
        /// Traffic Server gives out no tickets.
        TicketsDisabled = "tickets_disabled",
        /// Traffic Server takes its ticket keys from a file.
        TicketKeyFile = "ticket_key_file",
        /// Clients of TLS 1.3 get no tickets.
        NoTicketsInTls13 = "no_tickets_in_tls13",
        /// Tickets end as soon as they are given.
        TicketsShortLived = "tickets_short_lived",
        /// Sessions of sites that ask for no certificate open those that do.
        SitesOpened = "sites_opened",
        /// The file in `state_dir` is not read or not written.
        StateFile = "state_file",
        /// The plugin warned of its own configuration.
        ConfigurationWarning = "configuration_warning",
        /// A line of ssl_multicert or sni.yaml switches tickets off.
        LineWithoutTickets = "line_without_tickets",
        /// A line of ssl_multicert.config names ticket keys of its own.
        LineWithKeys = "line_with_keys",
        /// A line of ssl_multicert.config is for one address.
        LineWithAddress = "line_with_address",
        /// Sessions are to be shared, and Traffic Server's session cache is of another mode.
        SessionCache = "session_cache",
        /// The memory of keys is not protected.
        MemoryUnprotected = "memory_unprotected",
    }
}

/// One thing that is wrong, in words that end without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Its name.
    pub code: Code,
    /// How much it matters.
    pub severity: Severity,
    /// What it is and where to look.
    pub words: String,
}

/// How long after its time a rotation is late, in milliseconds: a handover, an agreement that had
/// to be tried twice, and an election in between fit in.
pub const LATE_MS: u64 = 15_000;

/// The most servers that one complaint names.
const MAX_NAMED: usize = 8;

/// What was found wrong so far.
struct Complaints(Vec<Complaint>);

impl Complaints {
    fn say(&mut self, code: Code, severity: Severity, words: impl Into<String>) {
        self.0.push(Complaint { code, severity, words: words.into() });
    }

    fn degraded(&mut self, code: Code, words: impl Into<String>) {
        self.say(code, Severity::Degraded, words);
    }

    fn broken(&mut self, code: Code, words: impl Into<String>) {
        self.say(code, Severity::Broken, words);
    }
}

/// All that is wrong with this server, the worst first.
pub fn complaints(status: &ServerStatus) -> Vec<Complaint> {
    let mut all = Complaints(Vec::new());
    group(status, &mut all);
    keys(status, &mut all);
    list(status, &mut all);
    reload(status, &mut all);
    certificate(status, &mut all);
    host(&status.host, &mut all);
    for fault in &status.state_faults {
        all.degraded(Code::StateFile, fault);
    }
    let refused: u64 = status.refused_keys.iter().map(|(_, count)| count).sum();
    if refused > 0 {
        let words = "keys were refused since the start, which no sound group causes; see diags.log";
        all.degraded(Code::KeysRefused, format!("{refused} {words}"));
    }
    let Complaints(mut all) = all;
    all.sort_by_key(|complaint| std::cmp::Reverse(complaint.severity));
    all
}

fn group(status: &ServerStatus, all: &mut Complaints) {
    let group = &status.group;
    match group.role {
        Role::Joining => all.broken(
            Code::Joining,
            "it is joining and takes no part yet: too few servers of the list answer it",
        ),
        Role::Recovering => all.degraded(
            Code::Recovering,
            "it has started, is sent what the group agreed on, and does not count yet",
        ),
        Role::Candidate => {
            all.degraded(Code::Campaigning, "it campaigns, since no leader is heard")
        }
        Role::Follower | Role::Leader => {}
    }
    if !group.quorum {
        let since = match group.quorum_ms {
            Some(ms) => format!("for {} s", ms / 1000),
            None => "since it started".to_owned(),
        };
        all.broken(
            Code::NoMajority,
            format!(
                "it has no part in a majority {since}: keys are not replaced until more than half \
                 of the list is up and reachable"
            ),
        );
    } else if group.leader.is_none() {
        all.degraded(Code::LeaderUnknown, "it knows no leader at present");
    }
}

fn keys(status: &ServerStatus, all: &mut Complaints) {
    let keys = &status.keys;
    match keys.in_use {
        KeyInUse::Agreed => {}
        KeyInUse::Own => all.broken(
            Code::OwnKey,
            "it encrypts with a key of its own, since it has none of the group's yet",
        ),
        KeyInUse::Emergency => all.broken(
            Code::OwnKeyByAge,
            "it encrypts with a key of its own: the group's is older than max_key_age",
        ),
    }
    let current = keys.current.map(|key| key.generation).unwrap_or_default();
    let lacks = keys.in_use == KeyInUse::Agreed && keys.installed < current;
    if lacks || status.host.install_pending {
        all.broken(
            Code::NotInstalled,
            format!(
                "Traffic Server holds generation {} and has not taken {} yet; see diags.log",
                keys.installed,
                current.max(keys.staged.map_or(Generation(0), |key| key.generation))
            ),
        );
    }
    let late = keys.age_ms.saturating_sub(keys.interval_ms);
    if keys.current.is_some() && late > LATE_MS {
        let words = format!("the rotation of its key is {} s late", late / 1000);
        all.degraded(Code::RotationLate, words);
    }
}

fn list(status: &ServerStatus, all: &mut Complaints) {
    let list = &status.list;
    if list.leaves_out(status.id) {
        all.degraded(
            Code::NotAMember,
            "it is not in the group's server list: it was removed, and can be stopped; or give the \
             list with it to all servers and reload one",
        );
    }
    let silent: Vec<String> = list
        .others
        .iter()
        .filter(|other| !other.reachable && hears(status, other.id))
        .map(|other| other.id.to_string())
        .collect();
    if !silent.is_empty() {
        let more = silent.len().saturating_sub(MAX_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named: Vec<&str> = silent.iter().take(MAX_NAMED).map(String::as_str).collect();
        let words = format!("it does not hear server {}{more}", named.join(", "));
        all.degraded(Code::PeerSilent, words);
    }
    if list.digest.as_ref().is_some_and(|agreed| *agreed != list.file_digest) {
        let difference = list.file_difference.as_ref().map(|words| format!(": {words}"));
        let words = format!(
            "its file's server list is not the agreed one{}; give it the group's list, or put this \
             one on all servers and reload one of them",
            difference.unwrap_or_default()
        );
        all.degraded(Code::ListFileDiffers, words);
    }
}

fn reload(status: &ServerStatus, all: &mut Complaints) {
    if let Some(last) = status.reload.last.as_ref().filter(|last| !last.done) {
        let words =
            format!("its reload {} s ago was not carried out: {}", last.ago_ms / 1000, last.words);
        all.degraded(Code::ReloadFailed, words);
    }
}

/// Whether this server should hear that one all the time: a leader hears all, the others only their
/// leader; who else they hear is chance.
fn hears(status: &ServerStatus, other: super::server_id::ServerId) -> bool {
    status.group.role == Role::Leader || status.group.leader == Some(other)
}

fn certificate(status: &ServerStatus, all: &mut Complaints) {
    let Some(ending) = status.certificate.expiry() else {
        return all
            .degraded(Code::CertificateUnreadable, "the end of its certificate cannot be read");
    };
    let whose = if !ending.is_authority {
        "its certificate".to_owned()
    } else {
        format!("{}, which its certificate hangs on,", ending.subject)
    };
    if let Some(line) = &status.host.certificate_warning {
        let (code, severity) = if ending.left.is_zero() {
            (Code::CertificateExpired, Severity::Broken)
        } else {
            (Code::CertificateExpiring, Severity::Degraded)
        };
        return all.say(code, severity, line);
    }
    match (ending.left.is_zero(), ending.is_soon()) {
        (true, _) => all.broken(
            Code::CertificateExpired,
            format!("{whose} {ending}: other servers refuse it; renew it"),
        ),
        (false, true) => {
            all.degraded(Code::CertificateExpiring, format!("{whose} {ending}; renew it"))
        }
        (false, false) => {}
    }
}

fn host(host: &HostStatus, all: &mut Complaints) {
    for hint in &host.hints {
        let severity = match hint {
            Hint::Setting(finding) if finding.kind.is_error() => Severity::Broken,
            _ => Severity::Degraded,
        };
        all.say(code_of(hint), severity, hint.to_string());
    }
    for warning in &host.warnings {
        all.degraded(Code::ConfigurationWarning, warning);
    }
}

fn code_of(hint: &Hint) -> Code {
    match hint {
        Hint::Setting(finding) => match finding.kind {
            FindingKind::TicketsOff => Code::TicketsDisabled,
            FindingKind::NoTickets13 => Code::NoTicketsInTls13,
            FindingKind::KeyFile | FindingKind::KeyFileAgain => Code::TicketKeyFile,
            FindingKind::ShortTickets => Code::TicketsShortLived,
            FindingKind::SiteTicketsOff | FindingKind::SiteNoTickets13 => Code::LineWithoutTickets,
            FindingKind::SiteKeyName => Code::LineWithKeys,
            FindingKind::SiteAddress | FindingKind::SiteOwnKey | FindingKind::SiteMayOwnKey => {
                Code::LineWithAddress
            }
            FindingKind::EarlyData | FindingKind::Opened => Code::SitesOpened,
        },
        Hint::SessionCache(_) => Code::SessionCache,
        Hint::Unlocked(_) | Hint::Dumped(_) | Hint::Unmapped(_) => Code::MemoryUnprotected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::findings::{Finding, Source};
    use crate::core::server_id::ServerId;
    use crate::core::server_status::tests::{sample, tickets_off};
    use crate::core::server_status::{KeyStatus, LastReload};

    const DAY_S: u64 = 86_400;

    fn well() -> ServerStatus {
        let mut status = sample();
        status.host.hints.clear();
        status.refused_keys.clear();
        status.certificate.expires_s = Some(31 * DAY_S);
        status.certificate.life_s = 365 * DAY_S;
        status
    }

    #[test]
    fn a_server_that_is_well_has_nothing_to_complain_of() {
        assert_eq!(complaints(&well()), []);
        let mut status = well();
        // In the middle of a handover, which is on time.
        let fingerprint = status.keys.current.unwrap().fingerprint;
        status.keys.staged = Some(KeyStatus { generation: Generation(10), fingerprint });
        status.keys.age_ms = status.keys.interval_ms + LATE_MS;
        assert_eq!(complaints(&status), []);
        // A young certificate of a day.
        status.certificate.expires_s = Some(DAY_S / 3 + 1);
        status.certificate.life_s = DAY_S;
        assert_eq!(complaints(&status), []);
        // A follower hears of another follower only when it campaigns.
        status.list.others[0].id.0 = 2;
        status.list.others[0].reachable = false;
        assert_eq!(complaints(&status), []);
    }

    #[test]
    fn each_trouble_is_one_complaint() {
        type Spoil = fn(&mut ServerStatus);
        let cases: [(Spoil, Severity, &str); 26] = [
            (|s| s.group.role = Role::Joining, Severity::Broken, "too few servers"),
            (|s| s.group.role = Role::Recovering, Severity::Degraded, "does not count yet"),
            (|s| s.group.role = Role::Candidate, Severity::Degraded, "no leader is heard"),
            (|s| s.group.quorum = false, Severity::Broken, "majority for 0 s"),
            (|s| s.group.leader = None, Severity::Degraded, "knows no leader"),
            (|s| s.keys.in_use = KeyInUse::Own, Severity::Broken, "none of the group's yet"),
            (|s| s.keys.in_use = KeyInUse::Emergency, Severity::Broken, "max_key_age"),
            (|s| s.keys.installed.0 = 8, Severity::Broken, "holds generation 8"),
            (|s| s.host.install_pending = true, Severity::Broken, "not taken 9"),
            (
                |s| s.keys.age_ms = s.keys.interval_ms + LATE_MS + 1000,
                Severity::Degraded,
                "is 16 s late",
            ),
            (|s| s.list.others[0].reachable = false, Severity::Degraded, "not hear server 1"),
            (|s| s.list.file_digest.clear(), Severity::Degraded, "not the agreed one"),
            (|s| s.list.agreed = vec![ServerId(1)], Severity::Degraded, "was removed, and can be"),
            (
                |s| {
                    let words = "server_list.yaml: is empty; correct it".to_owned();
                    s.reload.last = Some(LastReload { ago_ms: 7000, done: false, words });
                },
                Severity::Degraded,
                "its reload 7 s ago was not carried out: server_list.yaml: is empty; correct it",
            ),
            (|s| s.certificate.expires_s = None, Severity::Degraded, "cannot be read"),
            (|s| s.certificate.expires_s = Some(0), Severity::Broken, "has expired"),
            (|s| s.certificate.expires_s = Some(9 * DAY_S), Severity::Degraded, "in 9 days"),
            (
                |s| {
                    s.certificate.expires_s = Some(DAY_S);
                    s.certificate.authority = Some("/CN=root".to_owned());
                },
                Severity::Degraded,
                "/CN=root, which its certificate hangs on, expires in 1 day",
            ),
            (
                |s| s.host.hints = vec![Hint::Setting(tickets_off())],
                Severity::Broken,
                "session_ticket.enable",
            ),
            (
                |s| {
                    let source = Source::file("m", Some(7));
                    let finding = Finding::new(FindingKind::SiteTicketsOff, source, "f", "0");
                    s.host.hints = vec![Hint::Setting(finding)];
                },
                Severity::Degraded,
                "m line 7: f: 0 means",
            ),
            (
                |s| {
                    s.certificate.expires_s = Some(0);
                    s.host.certificate_warning = Some("c: has expired, at noon".to_owned());
                },
                Severity::Broken,
                "c: has expired, at noon",
            ),
            (
                |s| s.host.warnings = vec!["conf line 9: x: is no name".to_owned()],
                Severity::Degraded,
                "conf line 9",
            ),
            (
                |s| s.state_faults = vec!["state file f cannot be written".to_owned()],
                Severity::Degraded,
                "state file f cannot",
            ),
            (|s| s.host.hints = vec![Hint::SessionCache(1)], Severity::Degraded, "has mode 1"),
            (|s| s.host.hints = vec![Hint::Unlocked(12)], Severity::Degraded, "swap"),
            (|s| s.refused_keys = sample().refused_keys, Severity::Degraded, "1 keys were refused"),
        ];
        for (spoil, severity, part) in cases {
            let mut status = well();
            spoil(&mut status);
            let all = complaints(&status);
            assert_eq!(all.len(), 1, "{part}: {all:?}");
            assert!(all[0].words.contains(part) && all[0].severity == severity, "{all:?}");
        }
    }

    #[test]
    fn the_worst_comes_first_and_a_long_list_is_cut() {
        let mut status = well();
        status.group.role = Role::Leader;
        let other = status.list.others[0];
        status.list.others = (1..=20).map(|_| other).collect();
        status.list.others.iter_mut().for_each(|other| other.reachable = false);
        status.group.quorum = false;
        let all = complaints(&status);
        assert_eq!(all[0].severity, Severity::Broken);
        assert!(all[1].words.ends_with("1, 1, 1, 1, 1, 1, 1, 1 and 12 more"), "{all:?}");
        status.list.others.truncate(MAX_NAMED);
        assert!(complaints(&status)[1].words.ends_with("1, 1, 1, 1, 1, 1, 1, 1"), "not cut");
    }
}
