//! What in the host's settings keeps sessions from being resumed although the key is shared, or lets
//! more through under a shared key than is meant: the one list of it, with the words of each.
//!
//! The plugin logs them, a status carries them, and `stekctl` says them, all by [`Finding::problem`], so
//! that one matter is one line wherever it is read. Who looks into which file is for others. What the
//! settings do was measured on Traffic Server 9.2.9, 10.2.1 and 11. Invariants: the texts of a finding can be
//! printed as they are, whatever a file contains.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::config::Problem;
use super::text::readable;
use super::ticket_scope::TicketScope;

/// The most findings of one file; what comes after them rarely adds anything.
pub const MAX_OF_A_FILE: usize = 8;

/// Whether Traffic Server gives out tickets.
pub const ENABLE: &str = "proxy.config.ssl.server.session_ticket.enable";
/// How many it gives to a client of TLS 1.3.
pub const NUMBER: &str = "proxy.config.ssl.server.session_ticket.number";
/// A file with ticket keys.
pub const KEY_FILE: &str = "proxy.config.ssl.server.ticket_key.filename";
/// How long a session is resumed, in seconds; 0 for OpenSSL's 7200.
pub const LIFETIME: &str = "proxy.config.ssl.session_cache.timeout";
/// How much early data a client may send.
pub const EARLY: &str = "proxy.config.ssl.server.max_early_data";
/// Whether clients are asked for a certificate (1), and have to show one (2).
pub const LEVEL: &str = "proxy.config.ssl.client.certification_level";

/// The records of which [`of_records`] has something to say.
pub const RECORDS: [&str; 6] = [ENABLE, NUMBER, KEY_FILE, LIFETIME, EARLY, LEVEL];

/// A lifetime of tickets below this is of use to nobody, in seconds: a visitor who clicks once a minute has a
/// full handshake each time.
pub const SHORT_LIFETIME_S: i64 = 60;

/// Where something is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// In a file.
    File {
        /// Its path.
        file: String,
        /// The line, from 1, where it is certain.
        line: Option<u32>,
    },
    /// In this variable of the host's environment.
    Environment(String),
    /// In the running host alone, by `traffic_ctl config set`, or by a file that was changed since.
    Running,
}

impl Source {
    /// In a file.
    pub fn file(file: &str, line: Option<u32>) -> Source {
        Source::File { file: readable(file), line }
    }
}

/// A setting as it is written somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub source: Source,
    /// Its whole name, `proxy.config.x.y`.
    pub name: String,
    /// What it is set to.
    pub value: String,
}

/// What is the matter with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FindingKind {
    /// The host gives out no tickets.
    TicketsOff,
    /// It gives none to clients of TLS 1.3.
    NoTickets13,
    /// A file of keys replaces ours when the record or the file changes.
    KeyFile,
    /// The same at every reload of the host's configuration, changed or not: a relative name.
    KeyFileAgain,
    /// Tickets are dead as soon as they are given.
    ShortTickets,
    /// A site gives out no tickets.
    SiteTicketsOff,
    /// A site gives none to clients of TLS 1.3.
    SiteNoTickets13,
    /// A site was to have a key of its own, which nothing heeds any more.
    SiteKeyName,
    /// A line with an address, which shares the key and binds sessions otherwise.
    SiteAddress,
    /// A line with an address, which has a key of its own.
    SiteOwnKey,
    /// A line with an address, under a version of which neither is known.
    SiteMayOwnKey,
    /// A copy of a client's first flight is taken everywhere.
    EarlyData,
    /// Sessions of sites that ask for no certificate open those that do.
    Opened,
}

/// What early data means under a shared key, and the ways out.
pub const REPEATED: (&str, &str) = (
    "a copy of a client's first flight is accepted again by every server that shares the key, as \
     Traffic Server switches OpenSSL's protection against that off",
    "take it out; or see that origins refuse with 425 what must not happen twice, where a request \
     has the header Early-Data: 1",
);

/// What every matter of a file of keys has in common.
const IN_PLACE: &str =
    "the shared ones are given to it again within 5 s, and tickets of the time between \
                        resume nowhere else";

impl FindingKind {
    /// All of them.
    pub const ALL: [FindingKind; 13] = [
        FindingKind::TicketsOff,
        FindingKind::NoTickets13,
        FindingKind::KeyFile,
        FindingKind::KeyFileAgain,
        FindingKind::ShortTickets,
        FindingKind::SiteTicketsOff,
        FindingKind::SiteNoTickets13,
        FindingKind::SiteKeyName,
        FindingKind::SiteAddress,
        FindingKind::SiteOwnKey,
        FindingKind::SiteMayOwnKey,
        FindingKind::EarlyData,
        FindingKind::Opened,
    ];

    /// Whether no session of a whole server is resumed because of it. Where it is that of some sites it may be
    /// meant, and a file's keys are replaced again.
    pub fn is_error(self) -> bool {
        matches!(self, FindingKind::TicketsOff | FindingKind::NoTickets13)
    }

    /// Whether a server complains of it by itself. Early data is a decision that a server cannot doubt
    /// without knowing its origins; a tool that is asked names it.
    pub fn is_hint(self) -> bool {
        self != FindingKind::EarlyData
    }

    fn reason(self) -> String {
        match self {
            FindingKind::TicketsOff => {
                "means that Traffic Server gives out no session tickets, so no session resumes".to_owned()
            }
            FindingKind::NoTickets13 => {
                "means that clients of TLS 1.3 get no ticket, so their sessions do not resume".to_owned()
            }
            FindingKind::KeyFile => format!(
                "makes Traffic Server put that file's keys in place of the shared ones when the record \
                 changes, and at a reload of its configuration that finds the file changed; {IN_PLACE}"
            ),
            FindingKind::KeyFileAgain => format!(
                "makes Traffic Server put that file's keys in place of the shared ones when the record \
                 changes, and, as the name is relative, at every 'traffic_ctl config reload'; {IN_PLACE}"
            ),
            FindingKind::ShortTickets => {
                "is the time in seconds after which no server resumes a session of this one".to_owned()
            }
            FindingKind::SiteTicketsOff => {
                "means that clients of its sites get no ticket, so none of their sessions resumes".to_owned()
            }
            FindingKind::SiteNoTickets13 => {
                "means that clients of its sites get no ticket in TLS 1.3".to_owned()
            }
            FindingKind::SiteKeyName => {
                "names a ticket key for this line alone, which Traffic Server ignores since 7.1: its \
                 clients get tickets under the shared key"
                    .to_owned()
            }
            FindingKind::SiteAddress => {
                "binds this line to an address: with ticket_scope: host its sessions resume only on \
                 servers whose lines are all of the same kind"
                    .to_owned()
            }
            FindingKind::SiteOwnKey => {
                "binds this line to an address: Traffic Server 10 and 11 give it a ticket key of its own \
                 (until their pull request 13677), so that no session of its sites resumes elsewhere"
                    .to_owned()
            }
            FindingKind::SiteMayOwnKey => {
                "binds this line to an address: Traffic Server 10 and 11 give it a ticket key of its own, \
                 and with ticket_scope: host its sessions resume only on servers whose lines are all of \
                 the same kind"
                    .to_owned()
            }
            FindingKind::EarlyData => format!("allows early data (0-RTT): {}", REPEATED.0),
            FindingKind::Opened => {
                "asks clients for a certificate, but with ticket_scope: host a session of a name or a \
                 server that asks for none is resumed there too, and with TLS 1.3 lets its client in \
                 without one"
                    .to_owned()
            }
        }
    }

    fn remedy(self, source: &Source) -> &'static str {
        let take_out = match source {
            Source::File { .. } => "take the line out",
            Source::Environment(_) => "take it out of the environment and restart Traffic Server",
            Source::Running => "unset it: traffic_ctl config set, with an empty value",
        };
        match self {
            FindingKind::TicketsOff => "set it to 1",
            FindingKind::NoTickets13 => "set it to 2, Traffic Server's default, or take it out",
            FindingKind::KeyFile | FindingKind::KeyFileAgain => take_out,
            FindingKind::ShortTickets => "take it out, which means two hours, or give some minutes at least",
            FindingKind::SiteTicketsOff => "take it out, or set it to 1, unless that is wanted",
            FindingKind::SiteNoTickets13 => "take it out, or set it to 2, unless that is wanted",
            FindingKind::SiteKeyName => "take it out",
            FindingKind::SiteAddress | FindingKind::SiteOwnKey | FindingKind::SiteMayOwnKey => {
                "write * for the address wherever one certificate serves all, and tell sites apart by \
                 server name"
            }
            FindingKind::EarlyData => REPEATED.1,
            FindingKind::Opened => "set ticket_scope: site on all servers",
        }
    }
}

/// One setting that matters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What is the matter.
    pub kind: FindingKind,
    /// Where it is set.
    pub source: Source,
    /// Its name.
    pub field: String,
    /// What it is set to.
    pub value: String,
}

impl Finding {
    /// With texts that are made fit to be printed.
    pub fn new(kind: FindingKind, source: Source, field: &str, value: &str) -> Finding {
        Finding { kind, source, field: readable(field), value: readable(value) }
    }

    /// The operator's line.
    pub fn problem(&self) -> Problem {
        let make = if self.kind.is_error() { Problem::error } else { Problem::warning };
        let (file, line, field) = match &self.source {
            Source::File { file, line } => (file.as_str(), *line, &self.field),
            Source::Environment(variable) => ("environment of Traffic Server", None, variable),
            Source::Running => ("Traffic Server", None, &self.field),
        };
        let line = line.and_then(|line| usize::try_from(line).ok());
        let problem = make(file, self.kind.reason(), self.kind.remedy(&self.source));
        problem.at(line).field(field).value(&self.value)
    }

    /// All texts in it.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        let place = match &self.source {
            Source::File { file, .. } => Some(file),
            Source::Environment(variable) => Some(variable),
            Source::Running => None,
        };
        place.into_iter().chain([&self.field, &self.value])
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem().fmt(f)
    }
}

/// An integer as the host reads it: hexadecimal after `0x`, and a `K`, `M`, `G` or `T` for a power of
/// 1024; what begins with no digit is 0.
pub fn integer(text: &str) -> i64 {
    let text = text.trim();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
        return i64::from_str_radix(digits.get(..end).unwrap_or_default(), 16).unwrap_or(0);
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    let shift = match rest.chars().next() {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        _ => 0,
    };
    let number: i64 = digits.parse().unwrap_or(0);
    number.saturating_mul(sign << shift)
}

/// A version of Traffic Server, as far as settings differ: major and minor.
pub type HostVersion = (u32, u32);

/// The version in a text such as `9.2.9`.
pub fn host_version(text: &str) -> Option<HostVersion> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// What a line of ssl_multicert with an address means to a version of the host. 9.2.9 was seen to share the
/// key with such a line, 10.2.1 and the 11 of August 2026 not to; what changes that later is in none of them.
pub fn address_kind(
    version: Option<HostVersion>,
    scope: Option<TicketScope>,
) -> Option<FindingKind> {
    match version {
        Some((9, _)) => (scope != Some(TicketScope::Site)).then_some(FindingKind::SiteAddress),
        Some((10 | 11, _)) => Some(FindingKind::SiteOwnKey),
        _ => Some(FindingKind::SiteMayOwnKey),
    }
}

/// Whether certificates are listed in ssl_multicert.yaml: 11 was the first, and reads the labels of either form
/// only in small letters. `None` where the version is unknown.
pub fn has_yaml_sites(version: Option<HostVersion>) -> Option<bool> {
    version.map(|version| version >= (11, 0))
}

/// Whether sni.yaml may have a word about tickets: 10.1 was the first. One of unknown version may.
pub fn sni_has_tickets(version: Option<HostVersion>) -> bool {
    version.is_none_or(|version| version >= (10, 1))
}

/// Whether a record says how long tickets live: 11 has none that does. One of unknown version may.
pub fn has_lifetime(version: Option<HostVersion>) -> bool {
    version.is_none_or(|version| version < (11, 0))
}

/// What is the matter with records. `get` tells what a record is set to, where it is.
pub fn of_records(
    get: impl Fn(&str) -> Option<Record>,
    version: Option<HostVersion>,
    scope: Option<TicketScope>,
) -> Vec<Finding> {
    let kind = |record: &Record| {
        let number = integer(&record.value);
        let is_set = !matches!(record.value.as_str(), "" | "NULL" | "null" | "~");
        let is_relative = !record.value.starts_with('/');
        match record.name.as_str() {
            ENABLE if number == 0 => Some(FindingKind::TicketsOff),
            NUMBER if number == 0 => Some(FindingKind::NoTickets13),
            KEY_FILE if is_set && is_relative => Some(FindingKind::KeyFileAgain),
            KEY_FILE if is_set => Some(FindingKind::KeyFile),
            LIFETIME if has_lifetime(version) && (1..SHORT_LIFETIME_S).contains(&number) => {
                Some(FindingKind::ShortTickets)
            }
            EARLY if number > 0 => Some(FindingKind::EarlyData),
            LEVEL if number > 0 && scope == Some(TicketScope::Host) => Some(FindingKind::Opened),
            _ => None,
        }
    };
    let found = RECORDS.iter().filter_map(|name| {
        let record = get(name)?;
        Some(Finding::new(kind(&record)?, record.source, &record.name, &record.value))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::host_files::records::Records;

    fn lines(text: &str, scope: Option<TicketScope>) -> Vec<String> {
        let records = Records::of_config("f", text);
        let found = of_records(|name| records.get(name), None, scope);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn integers_are_read_as_the_host_reads_them() {
        for (text, value) in [
            ("0", 0),
            ("00", 0),
            ("0K", 0),
            ("0x0", 0),
            ("no", 0),
            ("", 0),
            ("0.0", 0),
            (" 2 ", 2),
            ("16K", 16_384),
            ("0x10", 16),
            ("-1", -1),
            ("1M", 1 << 20),
            ("3G", 3 << 30),
            ("99999999999999999999", 0),
            ("9999999999999999T", i64::MAX),
        ] {
            assert_eq!(integer(text), value, "{text:?}");
        }
    }

    #[test]
    fn settings_that_stop_tickets_are_found() {
        assert_eq!(
            lines(&format!("CONFIG {ENABLE} INT 1\nCONFIG {NUMBER} INT 2\n"), None),
            [""; 0]
        );
        assert_eq!(lines(&format!("CONFIG {KEY_FILE} STRING NULL\n"), None), [""; 0]);
        let text = format!(
            "CONFIG {ENABLE} INT 1\nCONFIG {ENABLE} INT 00\nCONFIG {NUMBER} INT 0K\n\
             CONFIG {KEY_FILE} STRING /keys\nCONFIG {LIFETIME} INT 2\n"
        );
        let found = lines(&text, None);
        let [enable, number, file, lifetime] = found.as_slice() else { panic!("{found:?}") };
        assert!(enable.starts_with(&format!("f line 2: {ENABLE}: 00 means")), "{enable}");
        assert!(number.starts_with(&format!("f line 3: {NUMBER}: 0K means")), "{number}");
        assert!(file.starts_with(&format!("f line 4: {KEY_FILE}: /keys makes")), "{file}");
        assert!(file.ends_with("finds the file changed; the shared ones are given to it again within 5 s, and tickets of the time between resume nowhere else; take the line out"), "{file}");
        assert!(
            lifetime.starts_with(&format!("f line 5: {LIFETIME}: 2 is the time")),
            "{lifetime}"
        );
        for none in [0, 60, 7200] {
            assert_eq!(lines(&format!("CONFIG {LIFETIME} INT {none}\n"), None), [""; 0]);
        }
    }

    #[test]
    fn a_relative_file_of_keys_comes_back_at_every_reload() {
        let again = |name: &str| {
            let found = lines(&format!("CONFIG {KEY_FILE} STRING {name}\n"), None);
            found.concat().contains("at every 'traffic_ctl config reload'")
        };
        assert!(again("keys") && !again("/etc/keys"));
    }

    #[test]
    fn what_lets_more_through_is_found_where_it_does() {
        let (site, host) = (Some(TicketScope::Site), Some(TicketScope::Host));
        let text = format!("CONFIG {LEVEL} INT 2\nCONFIG {EARLY} INT 0\n");
        assert_eq!(lines(&text, site), [""; 0]);
        let found = lines(&text, host);
        let [level] = found.as_slice() else { panic!("{found:?}") };
        assert!(level.starts_with(&format!("f line 1: {LEVEL}: 2 asks")), "{level}");
        assert!(level.ends_with("; set ticket_scope: site on all servers"), "{level}");
        let found = lines(&format!("CONFIG {LEVEL} INT 0\nCONFIG {EARLY} INT 16K\n"), host);
        let [early] = found.as_slice() else { panic!("{found:?}") };
        assert!(early.starts_with(&format!("f line 2: {EARLY}: 16K allows early")), "{early}");
    }

    #[test]
    fn where_it_is_set_decides_what_to_do() {
        let get = |source: Source| {
            move |name: &str| {
                let (source, name) = (source.clone(), name.to_owned());
                (name == KEY_FILE).then(|| Record { source, name, value: "/k".to_owned() })
            }
        };
        let line = |source| {
            of_records(get(source), None, None).iter().map(ToString::to_string).collect::<String>()
        };
        let environment = line(Source::Environment("PROXY_X".to_owned()));
        assert!(
            environment.starts_with("environment of Traffic Server: PROXY_X: /k makes"),
            "{environment}"
        );
        assert!(
            environment.ends_with("; take it out of the environment and restart Traffic Server")
        );
        let running = line(Source::Running);
        assert!(running.starts_with(&format!("Traffic Server: {KEY_FILE}: /k makes")), "{running}");
        assert!(running.contains("; unset it: traffic_ctl config set"), "{running}");
    }

    #[test]
    fn an_address_means_what_the_version_makes_of_it() {
        let (site, host) = (Some(TicketScope::Site), Some(TicketScope::Host));
        for (version, scope, kind) in [
            ("9.2.9", site, None),
            ("9.2.9", host, Some(FindingKind::SiteAddress)),
            ("9.2.9", None, Some(FindingKind::SiteAddress)),
            ("10.2.1", site, Some(FindingKind::SiteOwnKey)),
            ("11.0.0", host, Some(FindingKind::SiteOwnKey)),
            ("12.0.0", site, Some(FindingKind::SiteMayOwnKey)),
            ("", host, Some(FindingKind::SiteMayOwnKey)),
        ] {
            assert_eq!(address_kind(host_version(version), scope), kind, "{version:?} {scope:?}");
        }
        let warnings = [FindingKind::SiteOwnKey, FindingKind::SiteTicketsOff, FindingKind::KeyFile];
        assert!(FindingKind::TicketsOff.is_hint() && !FindingKind::EarlyData.is_hint());
        assert!(
            FindingKind::TicketsOff.is_error() && !warnings.into_iter().any(FindingKind::is_error)
        );
        let yaml = |version| has_yaml_sites(host_version(version));
        assert_eq!(
            ["10.2.1", "11.0.0", "12.1.0", "?"].map(yaml),
            [Some(false), Some(true), Some(true), None]
        );
        let counts = |version| sni_has_tickets(host_version(version));
        assert_eq!(
            ["9.2.9", "10.0.4", "10.1.0", "11.0.0", "?"].map(counts),
            [false, false, true, true, true]
        );
        let short = |version| {
            let get = |name: &str| {
                let (name, value) = (name.to_owned(), "2".to_owned());
                (name == LIFETIME).then_some(Record { source: Source::Running, name, value })
            };
            of_records(get, host_version(version), site).len()
        };
        assert_eq!(["9.2.9", "10.2.1", "11.0.0", "?"].map(short), [1, 1, 0, 1]);
    }

    #[test]
    fn no_setting_breaks_a_line() {
        let finding =
            Finding::new(FindingKind::SiteKeyName, Source::file("a\nb", None), "c\r", "\u{1b}[2J");
        assert!(!finding.to_string().contains(char::is_control), "{finding}");
    }
}
