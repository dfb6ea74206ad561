//! The plugin's metrics: one table of their names, kinds, meanings and alarms, and what each reads
//! of a server's status.
//!
//! Knows no host and no exporter: [`crate::host`] makes the metrics in Traffic Server and sets
//! them, stekctl prints them for Prometheus, and a test holds the documentation to this table.
//! Invariants: a name never changes its meaning; no value is negative, since the host's exporter prints
//! integers unsigned; and where 0 could be taken for something else than "not known yet", as it is in the
//! first seconds of the host, another metric tells.
//!
//! Long because: one table with a line or more for each metric, and for each a test.

use std::time::Duration;

use crate::core::expiry::warn_ahead;
use crate::core::server_status::{Count, Handshakes, KeyInUse, ServerStatus, SessionStatus};
use crate::core::text::words;

/// What comes before each name in Traffic Server.
pub const PREFIX: &str = "plugin.stek_share.";

words! {
    /// How a metric moves.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Kind {
        /// It goes up and down.
        Gauge = "gauge",
        /// It only goes up, until Traffic Server restarts.
        Counter = "counter",
    }
}

/// One integer among Traffic Server's metrics.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name behind [`PREFIX`].
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What it says, in one line without a full stop.
    pub meaning: &'static str,
    /// When to wake somebody; empty where it is only good to know.
    pub alarm: &'static str,
    read: fn(&ServerStatus) -> i64,
}

impl Metric {
    /// The metric of this name.
    pub fn named(name: &str) -> Option<&'static Metric> {
        METRICS.iter().find(|metric| metric.name == name)
    }

    /// Its name in Traffic Server, such as `plugin.stek_share.role`.
    pub fn host_name(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// Its name for Prometheus, such as `stek_share_role`; counters end in `_total`.
    pub fn prometheus_name(&self) -> String {
        let end = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("stek_share_{}{end}", self.name)
    }

    /// Its value for a running server.
    pub fn read(&self, status: &ServerStatus) -> i64 {
        (self.read)(status)
    }
}

const fn gauge(
    name: &'static str,
    meaning: &'static str,
    alarm: &'static str,
    read: fn(&ServerStatus) -> i64,
) -> Metric {
    Metric { name, kind: Kind::Gauge, meaning, alarm, read }
}

const fn counter(
    name: &'static str,
    meaning: &'static str,
    alarm: &'static str,
    read: fn(&ServerStatus) -> i64,
) -> Metric {
    Metric { name, kind: Kind::Counter, meaning, alarm, read }
}

/// The refused peers of one cause.
macro_rules! refused {
    ($cause:literal, $meaning:literal, $alarm:literal $(,)?) => {
        counter(concat!("refused_peers_", $cause), $meaning, $alarm, |s| {
            count(&s.refused_peers, $cause)
        })
    };
}

/// What a server that shares no sessions counts of them.
fn sessions(status: &ServerStatus) -> SessionStatus {
    status.sessions.unwrap_or_default()
}

/// What a host that does not count handshakes has counted of them.
fn handshakes(status: &ServerStatus) -> Handshakes {
    status.host.handshakes.unwrap_or_default()
}

/// The name of the metric that says whether the plugin runs; the host sets it back to 0.
pub const UP: &str = "up";
/// The name of the metric that has the plugin's version in one number.
pub const VERSION: &str = "version";
/// The names of the metrics that the installer sets by itself, since it works without a node.
pub const INSTALLS: &str = "installs";
/// See [`INSTALLS`].
pub const INSTALL_FAILURES: &str = "install_failures";
/// See [`INSTALLS`].
pub const INSTALL_PENDING: &str = "install_pending";

/// The causes of [`crate::transport::Cause`] that end a handshake.
const HANDSHAKE_CAUSES: [&str; 7] = [
    "no_certificate",
    "untrusted",
    "wrong_subject",
    "not_our_tls",
    "refused_us",
    "closed_early",
    "library",
];

/// Every metric, in the order in which they are documented.
pub const METRICS: &[Metric] = &[
    gauge(
        UP,
        "1 while the plugin runs, set after all others; 0 in the first seconds, and if its configuration \
         was refused or it ended by an error",
        "0, or absent, for a minute: this server shares no key; all other alarms need 1 here",
        |_| 1,
    ),
    gauge("server_id", "this server's server_id", "", |s| s.id.0.into()),
    gauge(VERSION, "the plugin's version, 1002003 for 1.2.3", "not the same everywhere for a day", |s| {
        version_number(&s.software)
    }),
    gauge(
        "role",
        "0 joining, 1 recovering (a new node, as after each start, that is sent the log), 2 follower, \
         3 campaigns, 4 leader",
        "0, 1 or 3 for a minute; no 4 or more than one in the fleet for a minute",
        |s| whole(s.group.role.number()),
    ),
    gauge("votes", "1 while this server is one of the voters: the first seven by id of those that may", "", |s| {
        s.group.votes.into()
    }),
    gauge("leader_known", "1 while this server knows a leader", "0 for a minute", |s| {
        s.group.leader.is_some().into()
    }),
    gauge("leader_id", "the leader's server_id; 0 also while none is known", "", |s| {
        s.group.leader.map_or(0, |id| id.0.into())
    }),
    gauge("term", "Raft's term: it grows with each attempt at an election", "", |s| {
        whole(s.group.term)
    }),
    counter(
        "elections",
        "how often this server campaigned",
        "more than 5 in 10 minutes: the network or the server is slower than the election bounds",
        |s| whole(s.group.elections),
    ),
    counter("leader_changes", "how often this server saw another leader or term", "", |s| {
        whole(s.group.leaders)
    }),
    gauge("quorum", "1 while this server belongs to a majority that agrees", "0 for a minute", |s| {
        s.group.quorum.into()
    }),
    gauge(
        "quorum_age_seconds",
        "how long ago this server last knew of such a majority, or started if it never did",
        "above 60",
        |s| seconds(s.group.quorum_ms.unwrap_or(s.uptime_ms)),
    ),
    gauge("members", "servers in the server list, this one included", "not the same everywhere", {
        |s| whole(s.list.others.len() as u64 + 1)
    }),
    gauge(
        "peers_connected",
        "other servers to whose listed address this server has a connection",
        "on the leader: below members - 1 for a minute",
        |s| whole(s.list.others.iter().filter(|other| other.connected).count() as u64),
    ),
    gauge(
        "peers_reachable",
        "other servers heard within election_timeout_upper_bound, longer where heartbeats are seldomer; \
         a follower hears its leader only",
        "on the leader: below members - 1 for a minute",
        |s| whole(s.list.others.iter().filter(|other| other.reachable).count() as u64),
    ),
    gauge("list_version", "version of the agreed server list, 0 before there is one", "", |s| {
        whole(s.list.version)
    }),
    gauge(
        "list_differs",
        "1 while the server list of this server's file is not the agreed one",
        "1 for an hour: give the server the group's list",
        |s| {
            let digest = s.list.digest.as_ref();
            digest.is_some_and(|agreed| *agreed != s.list.file_digest).into()
        },
    ),
    gauge(
        "generation",
        "the current key's place in the agreed order, 0 before the first",
        "not the same everywhere for a minute",
        |s| s.keys.current.map_or(0, |key| whole(key.generation.0)),
    ),
    gauge("staged_generation", "the next key's, during a handover, else 0", "the same for 60 s", {
        |s| s.keys.staged.map_or(0, |key| whole(key.generation.0))
    }),
    gauge(
        "installed_generation",
        "the newest generation that Traffic Server holds, 0 if it holds none of the group's",
        "below generation for a minute",
        |s| whole(s.keys.installed.0),
    ),
    gauge(
        "key_age_seconds",
        "how long the current key has been in use",
        "above twice key_update_interval",
        |s| seconds(s.keys.age_ms),
    ),
    gauge(
        "next_rotation_seconds",
        "time to the next scheduled rotation; key_update_interval before there is a key",
        "0 for a minute",
        |s| seconds(s.keys.current.map_or(s.keys.interval_ms, |_| s.keys.next_ms)),
    ),
    gauge(
        "key_in_use",
        "whose key encrypts: 0 not known yet; 1 the group's; 2 this server's own, since it has not met \
         the group; 3 its own, since the group's is older than max_key_age",
        "above 1 for a minute: no other server resumes the sessions of this one",
        |s| match s.keys.in_use {
            KeyInUse::Agreed => 1,
            KeyInUse::Own => 2,
            KeyInUse::Emergency => 3,
        },
    ),
    counter("rotations", "keys that became current", "none in twice key_update_interval", |s| {
        whole(s.group.rotations)
    }),
    counter("staged", "keys that were staged", "ahead of rotations for a minute", |s| {
        whole(s.group.staged)
    }),
    counter(INSTALLS, "sets of keys that Traffic Server took", "", |s| whole(s.host.installs)),
    counter(
        INSTALL_FAILURES,
        "sets of keys that Traffic Server refused, or that were not fit for it",
        "any",
        |s| whole(s.host.install_failures),
    ),
    gauge(
        INSTALL_PENDING,
        "1 while a refused set of keys waits to be tried again",
        "1 for a minute",
        |s| s.host.install_pending.into(),
    ),
    counter(
        "refused_keys",
        "keys that key validation kept out: weak, repeated, stale or of a name that is taken",
        "any: no sound group makes such keys",
        |s| sum(&s.refused_keys),
    ),
    gauge(
        "certificate_seconds",
        "seconds until the first certificate of this server's chain expires, the server's own or \
         an authority's; 0 after it, and if its date cannot be read",
        "below `certificate_warn_seconds`",
        |s| s.certificate.expires_s.map_or(0, whole),
    ),
    gauge(
        "certificate_warn_seconds",
        "how long before its end that certificate is warned of first: 30 days, or a third of its \
         life if that is less",
        "",
        |s| whole(warn_ahead(Duration::from_secs(s.certificate.life_s)).as_secs()),
    ),
    counter("reloads", "how often the files were read again because somebody asked for it", "", |s| {
        whole(s.reload.count)
    }),
    counter("reload_failures", "those of them that changed nothing, by a fault", "any", |s| {
        whole(s.reload.failures)
    }),
    gauge(
        "reload_failed",
        "1 while the last of them is one that changed nothing, by a fault",
        "1 for a minute: correct the files, and reload again",
        |s| s.reload.last.as_ref().is_some_and(|last| !last.done).into(),
    ),
    gauge(
        "host_hints",
        "settings around the plugin that keep sessions from being resumed or keys from being \
         secret; the status message names them",
        "above 0",
        |s| whole(s.host.hints.len() as u64),
    ),
    gauge(
        "configuration_warnings",
        "what the plugin warned of when it read its own files, such as blocks that are not read and \
         addresses that nobody can dial; the status message names each",
        "above 0",
        |s| whole(s.host.warnings.len() as u64),
    ),
    counter(
        "handshakes",
        "TLS handshakes of clients that succeeded, full and resumed, as Traffic Server counts them",
        "",
        |s| whole(handshakes(s).done),
    ),
    counter("tickets_given", "session tickets given to clients", "", |s| {
        whole(handshakes(s).given)
    }),
    counter(
        "tickets_opened",
        "tickets of clients that a key here opened: at most so many full handshakes were saved, as a \
         session that is bound to something else is refused after that",
        "none of many handshakes: nobody comes back, or no ticket is known",
        |s| whole(handshakes(s).opened),
    ),
    counter(
        "tickets_unknown",
        "tickets of clients that no key here opened, which cost a full handshake each: their key was \
         replaced or revoked, or was never the group's",
        "more than `tickets_opened` for an hour: clients return later than the keys last, or servers \
         have different keys",
        |s| whole(handshakes(s).unknown),
    ),
    counter(
        "sessions_by_id",
        "sessions that clients without tickets resumed, from Traffic Server's own cache",
        "",
        |s| whole(handshakes(s).by_id),
    ),
    gauge(
        "any_resumed",
        "1 once OpenSSL has resumed a session here, since Traffic Server read its certificates",
        "0 while `tickets_opened` rises: tickets open and their sessions are refused; see `stekctl \
         doctor --tls`",
        |s| handshakes(s).any_resumed.into(),
    ),
    counter(
        "sessions_sent",
        "with `share_sessions`: sessions, and the news that one was removed, handed to a connection, once \
         for each server that they go to",
        "",
        |s| whole(sessions(s).sent),
    ),
    counter("sessions_received", "the same taken off a connection", "", |s| {
        whole(sessions(s).received)
    }),
    counter(
        "sessions_dropped",
        "those that were lost, since there were too many or they had waited too long; the clients make \
         full handshakes elsewhere; of a flood that is not decoded each message counts once",
        "a steady rise: more new sessions than the bounds let through, or a server that is listed and \
         down",
        |s| whole(sessions(s).dropped),
    ),
    counter("sessions_inserted", "sessions of others that Traffic Server was given", "", |s| {
        whole(sessions(s).inserted)
    }),
    counter(
        "sessions_refused",
        "sessions that broke a rule: of this server, not sent; of others, not taken",
        "a rise: clocks that differ by minutes, a revocation, or a member that is not sound",
        |s| whole(sessions(s).refused),
    ),
    gauge("uptime_seconds", "how long the plugin has been running", "", |s| seconds(s.uptime_ms)),
    counter("accepted_peers", "connections whose handshake succeeded", "", |s| whole(s.accepted)),
    counter(
        "handshake_failures",
        "connections that ended in their handshake: the causes no_certificate, untrusted, \
         wrong_subject, not_our_tls, refused_us, closed_early and library",
        "a rise from a member's address; a port that strangers reach needs a firewall",
        |s| HANDSHAKE_CAUSES.iter().map(|cause| count(&s.refused_peers, cause)).sum(),
    ),
    counter("refused_peers", "connections that this server refused, for any cause", "", |s| {
        sum(&s.refused_peers)
    }),
    refused!(
        "no_certificate",
        "those that showed no certificate: a stranger, or a scan",
        "",
    ),
    refused!(
        "untrusted",
        "those whose certificate does not lead to root_cert_file, or is not valid now",
        "a rise: a member's certificate has expired, or a root was changed on one side only",
    ),
    refused!(
        "wrong_subject",
        "those whose certificate has another subject than cert_verify_str",
        "a rise: a member has the wrong certificate, or somebody tries one of the same root",
    ),
    refused!(
        "other_certificate",
        "those with the certificate of another server_id than they claim",
        "any: a mixed-up installation, or a member that plays another",
    ),
    refused!(
        "not_our_tls",
        "those that spoke no TLS, or none that is accepted here: scans, wrong ports",
        "",
    ),
    refused!(
        "refused_us",
        "those that did not accept this server's certificate",
        "a rise: this server's certificate has expired or is the wrong one",
    ),
    refused!(
        "closed_early",
        "those that went away before a hello: port checks, members that had nothing left to ask",
        "",
    ),
    refused!(
        "library",
        "those for which OpenSSL failed on this side",
        "any: see diags.log",
    ),
    refused!(
        "not_a_member",
        "those whose server_id is not in the server list",
        "a rise: a server that was removed still runs, or a list is behind",
    ),
    refused!(
        "refused",
        "those with a server_id that another server answers for",
        "any: two servers have one server_id",
    ),
    refused!(
        "bad_frame",
        "those that sent bytes that are no message",
        "any: a fault, or an attack from a server with a good certificate",
    ),
    refused!(
        "version",
        "those with which no protocol version is common",
        "any: upgrade by way of a version that both speak",
    ),
    refused!(
        "too_slow",
        "those whose handshake or frame took too long: silent strangers, an overloaded member",
        "",
    ),
    refused!(
        "over_limit",
        "those that came when there were too many already",
        "a rise: a flood; close the port to strangers",
    ),
    refused!(
        "over_rate",
        "those that were closed unheard, since too many handshakes with their address came to nothing",
        "a rise: a flood, or a member that tries in vain; diags.log has an address",
    ),
];

/// `1.2.3` as 1002003; 0 if it is no version.
fn version_number(version: &str) -> i64 {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    let parts = release.split('.').map(|part| part.parse::<i64>().ok().filter(|part| *part < 1000));
    match parts.collect::<Option<Vec<i64>>>().as_deref() {
        Some([major, minor, patch]) => major * 1_000_000 + minor * 1000 + patch,
        _ => 0,
    }
}

/// What [`VERSION`] says, in words.
pub fn version_words(number: i64) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(ms: u64) -> i64 {
    whole(ms / 1000)
}

fn count(counts: &[Count], word: &str) -> i64 {
    whole(counts.iter().find(|(found, _)| found == word).map_or(0, |(_, count)| *count))
}

fn sum(counts: &[Count]) -> i64 {
    whole(counts.iter().fold(0, |sum: u64, (_, count)| sum.saturating_add(*count)))
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::core::key_ring::Generation;
    use crate::core::server_id::ServerId;
    use crate::core::server_status::tests::sample;
    use crate::core::server_status::{Hint, KeyStatus, LastReload, MemberStatus, Role};
    use crate::transport::Cause;

    #[test]
    fn names_are_distinct_and_fit_for_both_worlds() {
        let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(metric.name.chars().all(plain), "{}", metric.name);
            assert!(!metric.name.ends_with("_total"), "{}", metric.name);
            assert!(!metric.meaning.is_empty() && !metric.meaning.ends_with('.'));
            for text in [metric.meaning, metric.alarm] {
                assert!(!text.contains(['|', '\n', '\\']), "breaks a table: {text}");
                assert!(!text.contains("  "), "{text}");
            }
        }
        let named = Metric::named("elections").map(Metric::prometheus_name);
        assert_eq!(named.as_deref(), Some("stek_share_elections_total"));
        assert_eq!(METRICS[0].host_name(), "plugin.stek_share.up");
    }

    /// What docs/metrics.md has to say; where it does not, this prints what to put there.
    #[test]
    fn the_documentation_has_this_table() {
        let mut table =
            String::from("| metric | kind | meaning | worth an alarm |\n|---|---|---|---|\n");
        for metric in METRICS {
            let Metric { name, kind, meaning, alarm, .. } = metric;
            table += &format!("| `{name}` | {} | {meaning} | {alarm} |\n", kind.word());
        }
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let page = std::fs::read_to_string(page).expect("docs/metrics.md");
        let rows = |text: &str| -> Vec<String> {
            text.lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect()
        };
        assert_eq!(rows(&page), rows(&table), "the table should be\n{table}");
    }

    #[test]
    fn every_cause_has_a_metric() {
        for word in Cause::ALL.map(Cause::word) {
            let metric = Metric::named(&format!("refused_peers_{word}")).expect(word);
            let mut status = sample();
            status.refused_peers = vec![("other".to_owned(), 1), (word.to_owned(), 7)];
            assert_eq!(metric.read(&status), 7, "{word}");
            assert_eq!(Metric::named("refused_peers").unwrap().read(&status), 8);
        }
    }

    fn counted(status: &mut ServerStatus) -> &mut Handshakes {
        status.host.handshakes.get_or_insert_with(Handshakes::default)
    }

    /// Each metric reads what it says, and nothing else moves it.
    #[test]
    fn every_metric_moves_with_what_it_means() {
        type Change = fn(&mut ServerStatus);
        let cases: &[(&str, Change, i64)] = &[
            ("server_id", |s| s.id = ServerId(5), 5),
            ("role", |s| s.group.role = Role::Leader, 4),
            ("votes", |s| s.group.votes = false, 0),
            ("leader_id", |s| s.group.leader = Some(ServerId(0)), 0),
            ("version", |s| s.software = "1.2.3-rc1".to_owned(), 1_002_003),
            ("version", |s| s.software = "odd".to_owned(), 0),
            ("term", |s| s.group.term = 99, 99),
            ("elections", |s| s.group.elections = 12, 12),
            ("leader_changes", |s| s.group.leaders = 13, 13),
            ("quorum", |s| s.group.quorum = false, 0),
            ("quorum_age_seconds", |s| s.group.quorum_ms = Some(61_999), 61),
            (
                "members",
                |s| {
                    let other = s.list.others[0];
                    s.list.others.push(MemberStatus { reachable: false, ..other });
                },
                3,
            ),
            ("peers_connected", |s| s.list.others[0].connected = true, 1),
            ("peers_reachable", |s| s.list.others[0].reachable = false, 0),
            ("list_version", |s| s.list.version = 4, 4),
            ("list_differs", |s| s.list.file_digest.clear(), 1),
            (
                "generation",
                |s| {
                    let fingerprint = s.keys.current.unwrap().fingerprint;
                    s.keys.current = Some(KeyStatus { generation: Generation(11), fingerprint });
                },
                11,
            ),
            (
                "staged_generation",
                |s| {
                    let fingerprint = s.keys.current.unwrap().fingerprint;
                    s.keys.staged = Some(KeyStatus { generation: Generation(10), fingerprint });
                },
                10,
            ),
            ("installed_generation", |s| s.keys.installed.0 = 3, 3),
            ("key_age_seconds", |s| s.keys.age_ms = 77_000, 77),
            ("next_rotation_seconds", |s| s.keys.next_ms = 5_999, 5),
            ("key_in_use", |s| s.keys.in_use = KeyInUse::Own, 2),
            ("key_in_use", |s| s.keys.in_use = KeyInUse::Emergency, 3),
            ("rotations", |s| s.group.rotations = 14, 14),
            ("staged", |s| s.group.staged = 15, 15),
            ("installs", |s| s.host.installs = 16, 16),
            ("install_failures", |s| s.host.install_failures = 17, 17),
            ("install_pending", |s| s.host.install_pending = true, 1),
            ("refused_keys", |s| s.refused_keys.push(("apply_stale".to_owned(), 4)), 5),
            ("certificate_seconds", |s| s.certificate.expires_s = None, 0),
            ("certificate_seconds", |s| s.certificate.expires_s = Some(99), 99),
            ("certificate_warn_seconds", |s| s.certificate.life_s = 86_400, 28_800),
            ("reloads", |s| s.reload.count = 21, 21),
            ("reload_failures", |s| s.reload.failures = 20, 20),
            (
                "reload_failed",
                |s| {
                    let words = String::new();
                    s.reload.last = Some(LastReload { ago_ms: 1, done: false, words });
                },
                1,
            ),
            ("host_hints", |s| s.host.hints.push(Hint::Unlocked(1)), 2),
            ("configuration_warnings", |s| s.host.warnings.push("x".to_owned()), 1),
            ("handshakes", |s| counted(s).done = 31, 31),
            ("tickets_given", |s| counted(s).given = 32, 32),
            ("tickets_opened", |s| counted(s).opened = 33, 33),
            ("tickets_unknown", |s| counted(s).unknown = 34, 34),
            ("sessions_by_id", |s| counted(s).by_id = 35, 35),
            ("any_resumed", |s| counted(s).any_resumed = true, 1),
            ("sessions_sent", |s| s.sessions.as_mut().unwrap().sent = 19, 19),
            ("sessions_received", |s| s.sessions.as_mut().unwrap().received = 20, 20),
            ("sessions_dropped", |s| s.sessions.as_mut().unwrap().dropped = 21, 21),
            ("sessions_inserted", |s| s.sessions.as_mut().unwrap().inserted = 22, 22),
            ("sessions_refused", |s| s.sessions.as_mut().unwrap().refused = 23, 23),
            ("uptime_seconds", |s| s.uptime_ms = 8_000, 8),
            ("accepted_peers", |s| s.accepted = 18, 18),
        ];
        for (name, change, expected) in cases {
            let mut status = sample();
            let before: Vec<i64> = METRICS.iter().map(|metric| metric.read(&status)).collect();
            change(&mut status);
            for (metric, before) in METRICS.iter().zip(before) {
                let now = metric.read(&status);
                if metric.name == *name {
                    assert!(now == *expected && now != before, "{name}: {before} {now}")
                } else {
                    assert_eq!(now, before, "{name} moved {}", metric.name)
                }
            }
        }
        let told: BTreeSet<&str> = cases.iter().map(|(name, ..)| *name).collect();
        let rest = METRICS.iter().map(|metric| metric.name).filter(|name| !told.contains(name));
        let rest: Vec<&str> = rest.filter(|name| !name.starts_with("refused_peers")).collect();
        assert_eq!(rest, [UP, "leader_known", "handshake_failures"]);
    }

    /// The host's exporter would print -1 as 18446744073709551615.
    #[test]
    fn nothing_is_negative_however_little_is_known() {
        let mut status = sample();
        status.uptime_ms = 8000;
        status.group.leader = None;
        status.group.quorum_ms = None;
        status.keys.current = None;
        status.certificate.expires_s = None;
        status.software.clear();
        let of = |name: &str| Metric::named(name).unwrap().read(&status);
        assert_eq!((of("leader_known"), of("leader_id")), (0, 0));
        assert_eq!((of("quorum_age_seconds"), of("next_rotation_seconds")), (8, 3));
        for metric in METRICS {
            assert!(metric.read(&status) >= 0, "{}", metric.name);
        }
    }

    #[test]
    fn a_version_is_a_number_and_back() {
        for version in ["0.1.0", "1.2.3", "12.345.678"] {
            assert_eq!(version_words(version_number(version)), version);
        }
        assert_eq!(version_number("1.1000.0"), 0);
    }

    #[test]
    fn handshake_failures_are_the_causes_that_end_one() {
        let mut status = sample();
        let counts = (1..).zip(Cause::ALL).map(|(n, cause)| (cause.word().to_owned(), 1 << n));
        status.refused_peers = counts.collect();
        let all = Metric::named("handshake_failures").unwrap().read(&status);
        for (n, cause) in (1..).zip(Cause::ALL) {
            let ends = matches!(
                cause,
                Cause::NoCertificate
                    | Cause::Untrusted
                    | Cause::WrongSubject
                    | Cause::NotOurTls
                    | Cause::RefusedUs
                    | Cause::ClosedEarly
                    | Cause::Library
            );
            assert_eq!(all & (1 << n) != 0, ends, "{cause:?}");
        }
    }
}
