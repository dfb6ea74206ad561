//! What a server says of itself to an operator's command: everything that tells whether it is well,
//! and nothing secret. Keys appear by generation and fingerprint only.
//!
//! Plain values; who fills them in is [`crate::node`], who asks for them [`crate::client`]. What
//! must hold: [`ServerStatus::check`] bounds all that has no length of its own, and lets no text pass
//! that could do more on a terminal than be read.
//!
//! Long because: one message, of which each part is a struct with a word for each field.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::authorities::{Authorities, MAX_NAMED};
use super::client_policy::{ClientPolicy, MAX_SITES};
use super::config::{Member, MAX_MEMBERS};
use super::expiry::Expiry;
use super::findings::Finding;
use super::key_ring::{ClusterId, Generation, MAX_KEYS};
use super::server_id::ServerId;
use super::stek::Fingerprint;
use super::text::{is_readable, words};
use super::ticket_scope::TicketScope;

/// The most entries of a list of counts.
pub const MAX_COUNTS: usize = 64;

/// The most entries of the agreed list that are told: 128 of the longest are a tenth of a frame.
pub const MAX_ENTRIES: usize = 128;

/// The most options that servers compare.
pub const MAX_OPTIONS: usize = 64;

/// The most authorities that are named; a fleet has one, or two while one goes and one comes.
pub const MAX_ROOTS: usize = 16;

/// The most hints of one server.
pub const MAX_HINTS: usize = 32;

words! {
    /// A server's part in the group.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub enum Role {
        /// It is in no group yet: it asks the others.
        Joining = "joining",
        /// It is a new node, as after each start, that is sent the log or is not a voter yet and to be one.
        Recovering = "recovering",
        /// It follows a leader, or waits for one.
        Follower = "follower",
        /// It campaigns.
        Candidate = "candidate",
        /// It leads, and a majority acknowledged that lately.
        Leader = "leader",
    }
}

impl Role {
    /// The number for it in the metric `role`: 0 to 4 in the order of the values.
    pub fn number(self) -> u64 {
        self as u64
    }
}

words! {
    /// Whose key encrypts the tickets that a server gives out.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub enum KeyInUse {
        /// The group's.
        Agreed = "agreed",
        /// Its own, because it has not met the group yet.
        Own = "own",
        /// Its own, because there was no majority for longer than `max_key_age`.
        Emergency = "emergency",
    }
}

/// A key by its public names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// Its place in the order.
    pub generation: Generation,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

/// The keys of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// The agreed key that encrypts, once there is one.
    pub current: Option<KeyStatus>,
    /// The agreed keys that still decrypt, newest first; with `ticket_keys` 2 there is one.
    pub previous: Vec<KeyStatus>,
    /// The next key, during a handover.
    pub staged: Option<KeyStatus>,
    /// How long the current key has been current, in milliseconds; 0 if there is none.
    pub age_ms: u64,
    /// When the next rotation is due by this server's options, in milliseconds from now.
    pub next_ms: u64,
    /// This server's `key_update_interval`, in milliseconds.
    pub interval_ms: u64,
    /// Whose key encrypts.
    pub in_use: KeyInUse,
    /// The newest agreed generation in Traffic Server's ticket context, 0 if none is.
    pub installed: Generation,
}

/// The server list as a server knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListStatus {
    /// The version of the agreed list, 0 before there is one.
    pub version: u64,
    /// The first 8 hex digits of a hash over the agreed list. All servers have the same.
    pub digest: Option<String>,
    /// The same over the list of the server's own file, which may be behind the agreed one.
    pub file_digest: String,
    /// What the file's list has otherwise than the agreed one, in words; `None` if nothing.
    pub file_difference: Option<String>,
    /// The ids of the agreed list; empty before there is one.
    pub agreed: Vec<ServerId>,
    /// Its entries, so that it can be said in what two lists differ; none if there are more than
    /// [`MAX_ENTRIES`].
    pub entries: Vec<Member>,
    /// The options that all servers should have alike, as names and values.
    pub options: Vec<(String, String)>,
    /// Voters of Raft's membership.
    pub voters: u32,
    /// All other members, by id.
    pub others: Vec<MemberStatus>,
}

/// Another member as a server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Which one.
    pub id: ServerId,
    /// When a frame of it was last heard, in milliseconds ago; `None` if never.
    pub heard_ms: Option<u64>,
    /// Whether it was heard within the upper election bound.
    pub reachable: bool,
    /// Whether this server has a connection to the member's listed address.
    pub connected: bool,
}

impl ListStatus {
    /// Whether the group has agreed on a list in which this server is not.
    pub fn leaves_out(&self, id: ServerId) -> bool {
        !self.agreed.is_empty() && !self.agreed.contains(&id)
    }
}

/// How often a server read its files again because somebody asked for it, and what came of it last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// How many since the start.
    pub count: u64,
    /// How many of them changed nothing, because they could not be carried out.
    pub failures: u64,
    /// The last one.
    pub last: Option<LastReload>,
}

/// See [`ReloadStatus::last`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// How long ago it ended, in milliseconds.
    pub ago_ms: u64,
    /// Whether it was carried out.
    pub done: bool,
    /// What changed, or why nothing did.
    pub words: String,
}

/// How a server stands with the majority, and what it has counted since it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its part.
    pub role: Role,
    /// The leader, if one is known.
    pub leader: Option<ServerId>,
    /// Raft's term.
    pub term: u64,
    /// The cluster incarnation that it belongs to.
    pub cluster_id: Option<ClusterId>,
    /// The cluster that it takes part in, by the counter of its epoch; 0 if in none.
    pub epoch: u64,
    /// Whether it is one of Raft's voters.
    pub votes: bool,
    /// Whether it belongs to a majority that agrees at present.
    pub quorum: bool,
    /// When it last knew that it did, in milliseconds ago; `None` if never.
    pub quorum_ms: Option<u64>,
    /// How often it campaigned.
    pub elections: u64,
    /// How often it saw another leader or term than before.
    pub leaders: u64,
    /// How many keys it saw being staged.
    pub staged: u64,
    /// How many keys it saw become current.
    pub rotations: u64,
}

/// A count and the word for what is counted, as in metrics.
pub type Count = (String, u64);

/// The certificates of a server, without the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The leaf's subject in the one-line form.
    pub subject: String,
    /// SHA-256 over the leaf, in hex.
    pub fingerprint: String,
    /// The first 8 hex digits of a hash over the certificates of `root_cert_file`, in any order.
    pub roots_digest: String,
    /// How long all certificates in use are still valid, in seconds, 0 if one has expired: of the
    /// one to speak of, see [`Expiry::first`]. `None` if OpenSSL cannot read a date.
    pub expires_s: Option<u64>,
    /// How long that one lives in all, in seconds.
    pub life_s: u64,
    /// The subject of that one, if it is not the leaf but an authority above it.
    pub authority: Option<String>,
}

impl CertificateStatus {
    /// The end to speak of.
    pub fn expiry(&self) -> Option<Expiry> {
        Some(Expiry {
            subject: self.authority.clone().unwrap_or_else(|| self.subject.clone()),
            is_authority: self.authority.is_some(),
            left: Duration::from_secs(self.expires_s?),
            life: Duration::from_secs(self.life_s),
        })
    }
}

/// What in a server keeps sessions from being resumed, or secrets from being kept, and cannot be seen
/// from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hint {
    /// A setting of the host's.
    Setting(Finding),
    /// Memory of keys may be written to swap: the kernel's error number for `mlock`.
    Unlocked(i32),
    /// Memory of keys would be part of a core dump: the error number for `madvise`.
    Dumped(i32),
    /// Keys have no memory of their own: the error number for `mmap`.
    Unmapped(i32),
    /// Sessions are to be shared, and the mode of Traffic Server's own session cache is this.
    SessionCache(i64),
}

/// The hint as a sentence without its full stop: what is so, what that means, what to do.
impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = |errno: &i32| io::Error::from_raw_os_error(*errno);
        match self {
            Hint::Setting(finding) => write!(f, "{finding}"),
            Hint::Unlocked(errno) => write!(
                f,
                "ticket keys may be written to swap (mlock: {}); raise LimitMEMLOCK, ulimit -l",
                error(errno)
            ),
            Hint::Dumped(errno) => write!(
                f,
                "ticket keys would be part of a core dump (madvise: {}); switch core dumps off",
                error(errno)
            ),
            Hint::Unmapped(errno) => write!(
                f,
                "ticket keys have no protected memory of their own (mmap: {})",
                error(errno)
            ),
            Hint::SessionCache(mode) => write!(
                f,
                "share_sessions is true and Traffic Server's session cache has mode {mode}: only \
                 with 2, the default, are there sessions to share; set \
                 proxy.config.ssl.session_cache.mode to 2 (.session_cache.value in 10.0 and 10.1, \
                 .session_cache in 9.2) and restart, or give share_sessions: false"
            ),
        }
    }
}

/// What a server knows of the Traffic Server that it runs in. All empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Traffic Server's version.
    pub version: Option<String>,
    /// Sets of keys that Traffic Server took.
    pub installs: u64,
    /// Sets of keys that it refused, or that were not fit for it.
    pub install_failures: u64,
    /// Whether a set that was refused waits to be tried again.
    pub install_pending: bool,
    /// What the operator has to look at.
    pub hints: Vec<Hint>,
    /// What was warned of when the files in use were read, in the words of the log.
    pub warnings: Vec<String>,
    /// The same of the first end among the certificates in use, if that is worth a word now.
    pub certificate_warning: Option<String>,
    /// The certificates of `root_cert_file` in use, each by subject and the first 8 hex digits of its
    /// fingerprint, in order of these texts; no more than [`MAX_ROOTS`].
    pub roots: Vec<String>,
    /// The subjects in the file of `proxy.config.ssl.CA.cert.filename`, in their order, each once:
    /// with `ticket_scope: host` a part of what a session is bound to. `None` if the record is unset
    /// or the file no PEM.
    pub authorities: Option<Authorities>,
    /// What its clients are asked for; `None` where there is no Traffic Server.
    pub client_policy: Option<ClientPolicy>,
    /// What sessions are bound to, in effect; `None` where there is no Traffic Server.
    pub ticket_scope: Option<TicketScope>,
    /// What clients' handshakes came to; `None` where Traffic Server does not count them.
    pub handshakes: Option<Handshakes>,
}

/// Handshakes of clients as Traffic Server counts them, since the plugin started. It does not count those that
/// resumed a session: a ticket that a key opens may belong to a session that is then refused, since it
/// is bound to something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshakes {
    /// Those that succeeded, full and resumed.
    pub done: u64,
    /// Tickets given to clients.
    pub given: u64,
    /// Tickets of clients that a key opened.
    pub opened: u64,
    /// Those of them that the current key did not.
    pub opened_by_older: u64,
    /// Tickets of clients that no key opened.
    pub unknown: u64,
    /// Sessions that were resumed by their id from Traffic Server's own cache.
    pub by_id: u64,
    /// Whether OpenSSL has resumed any session at all. How many it says is another number for each set of
    /// certificates, and begins anew when they are read again.
    pub any_resumed: bool,
}

/// What became of shared sessions and of the news that one was removed, since the start. One that
/// goes to two servers is sent twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Handed to a connection.
    pub sent: u64,
    /// Taken off one.
    pub received: u64,
    /// Lost, since there were too many or they had waited too long, here or on the way out.
    pub dropped: u64,
    /// Sessions of others that Traffic Server was given.
    pub inserted: u64,
    /// Those that broke a rule: of this server, not sent; of others, not taken.
    pub refused: u64,
}

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Which server.
    pub id: ServerId,
    /// The version of this software.
    pub software: String,
    /// The run of its process: a random number.
    pub incarnation: u64,
    /// How long the plugin has been running, in milliseconds.
    pub uptime_ms: u64,
    /// The server's wall clock: milliseconds since 1970. Nothing of ours goes by it.
    pub clock_ms: u64,
    /// Its part in the group.
    pub group: GroupStatus,
    /// Its keys.
    pub keys: Keys,
    /// Its server list.
    pub list: ListStatus,
    /// Its certificates.
    pub certificate: CertificateStatus,
    /// The Traffic Server around it.
    pub host: HostStatus,
    /// What is wrong with the file in `state_dir`, as it was logged.
    pub state_faults: Vec<String>,
    /// Its reloads.
    pub reload: ReloadStatus,
    /// Refused keys by place and reason, such as `leader_weak`; those that are 0 are left out.
    pub refused_keys: Vec<Count>,
    /// Refused or ended connections by cause, such as `untrusted`; those that are 0 are left out.
    pub refused_peers: Vec<Count>,
    /// Connections whose handshake succeeded.
    pub accepted: u64,
    /// Shared sessions; `None` where none are shared.
    pub sessions: Option<SessionStatus>,
}

/// Why a status is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadStatus {
    /// There is more of something than any server has.
    #[error("more {0} than any server has")]
    TooMany(&'static str),
    /// A text is longer than [`super::text::MAX_WORDS`], or has a control character in it.
    #[error("a text that is too long or not printable")]
    Text,
}

impl ServerStatus {
    /// Whether it is within what any server says.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), BadStatus> {
        let bounds = [
            (self.keys.previous.len(), MAX_KEYS, "keys"),
            (self.list.others.len(), MAX_MEMBERS, "members"),
            (self.list.agreed.len(), MAX_MEMBERS, "members"),
            (self.list.entries.len(), MAX_ENTRIES, "entries"),
            (self.list.options.len(), MAX_OPTIONS, "options"),
            (self.host.hints.len(), MAX_HINTS, "hints"),
            (self.host.warnings.len(), MAX_HINTS, "warnings"),
            (self.host.roots.len(), MAX_ROOTS, "authorities"),
            (self.host.authorities.as_ref().map_or(0, |a| a.names.len()), MAX_NAMED, "authorities"),
            (self.state_faults.len(), MAX_HINTS, "faults"),
            (self.host.client_policy.as_ref().map_or(0, |p| p.sites.len()), MAX_SITES, "sites"),
            (self.refused_keys.len(), MAX_COUNTS, "counts"),
            (self.refused_peers.len(), MAX_COUNTS, "counts"),
        ];
        if let Some((.., what)) = bounds.into_iter().find(|(len, most, _)| len > most) {
            return Err(BadStatus::TooMany(what));
        }
        if self.texts().all(|text| is_readable(text)) {
            Ok(())
        } else {
            Err(BadStatus::Text)
        }
    }

    fn texts(&self) -> impl Iterator<Item = &String> {
        let settings = self.host.hints.iter().filter_map(|hint| match hint {
            Hint::Setting(finding) => Some(finding.texts()),
            _ => None,
        });
        let certificate = &self.certificate;
        [
            &self.software,
            &self.list.file_digest,
            &certificate.subject,
            &certificate.fingerprint,
            &certificate.roots_digest,
        ]
        .into_iter()
        .chain(&self.list.digest)
        .chain(&self.state_faults)
        .chain(&self.list.file_difference)
        .chain(self.list.entries.iter().flat_map(|m| [&m.address].into_iter().chain(&m.subject)))
        .chain(self.list.options.iter().flat_map(|(name, value)| [name, value]))
        .chain(self.reload.last.iter().map(|last| &last.words))
        .chain(&certificate.authority)
        .chain(&self.host.version)
        .chain(&self.host.warnings)
        .chain(&self.host.certificate_warning)
        .chain(&self.host.roots)
        .chain(self.host.authorities.iter().flat_map(Authorities::texts))
        .chain(self.host.client_policy.iter().flat_map(ClientPolicy::texts))
        .chain(self.refused_keys.iter().chain(&self.refused_peers).map(|(word, _)| word))
        .chain(settings.flatten())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::core::findings::{FindingKind, Source, ENABLE};
    use crate::core::text::{readable, MAX_WORDS};

    /// A setting that stops all tickets.
    pub(crate) fn tickets_off() -> Finding {
        Finding::new(FindingKind::TicketsOff, Source::Running, ENABLE, "0")
    }

    /// A status as a sound server gives it.
    pub(crate) fn sample() -> ServerStatus {
        let fingerprint = crate::core::stek::Stek::copy_from(&[7; 48]).unwrap().fingerprint();
        let key = |g| KeyStatus { generation: Generation(g), fingerprint };
        ServerStatus {
            id: ServerId(3),
            software: "0.1.0".to_owned(),
            incarnation: 7,
            uptime_ms: 10,
            clock_ms: 1_700_000_000_000,
            group: GroupStatus {
                role: Role::Follower,
                leader: Some(ServerId(1)),
                term: 4,
                cluster_id: ClusterId::from_bytes([9; 16]),
                epoch: 1_800_000_000,
                votes: true,
                quorum: true,
                quorum_ms: Some(60),
                elections: 1,
                leaders: 2,
                staged: 4,
                rotations: 3,
            },
            keys: Keys {
                current: Some(key(9)),
                previous: vec![key(8)],
                staged: None,
                age_ms: 1000,
                next_ms: 2000,
                interval_ms: 3000,
                in_use: KeyInUse::Agreed,
                installed: Generation(9),
            },
            list: ListStatus {
                version: 1,
                digest: Some("01234567".to_owned()),
                file_digest: "01234567".to_owned(),
                file_difference: None,
                agreed: vec![ServerId(1), ServerId(3)],
                entries: vec![Member {
                    id: ServerId(1),
                    address: "10.0.0.1".to_owned(),
                    port: 10001,
                    subject: Some("/CN=one".to_owned()),
                    voter: true,
                }],
                options: vec![("key_update_interval".to_owned(), "3600".to_owned())],
                voters: 3,
                others: vec![MemberStatus {
                    id: ServerId(1),
                    heard_ms: Some(20),
                    reachable: true,
                    connected: false,
                }],
            },
            certificate: CertificateStatus {
                subject: "/CN=server".to_owned(),
                fingerprint: "00".repeat(32),
                roots_digest: "01234567".to_owned(),
                expires_s: Some(86_400),
                life_s: 365 * 86_400,
                authority: None,
            },
            host: HostStatus { hints: vec![Hint::Setting(tickets_off())], ..HostStatus::default() },
            state_faults: Vec::new(),
            reload: ReloadStatus::default(),
            refused_keys: vec![("leader_weak".to_owned(), 1)],
            refused_peers: vec![("untrusted".to_owned(), 2)],
            accepted: 4,
            sessions: Some(SessionStatus {
                sent: 5,
                received: 6,
                dropped: 7,
                inserted: 8,
                refused: 9,
            }),
        }
    }

    #[test]
    fn what_is_at_a_bound_passes() {
        let mut most = sample();
        most.keys.previous = vec![most.keys.previous[0]; MAX_KEYS];
        most.list.others = vec![most.list.others[0]; MAX_MEMBERS];
        most.host.hints = vec![Hint::Setting(tickets_off()); MAX_HINTS];
        most.list.agreed = vec![ServerId(1); MAX_MEMBERS];
        most.list.entries = vec![most.list.entries[0].clone(); MAX_ENTRIES];
        most.list.options = vec![most.list.options[0].clone(); MAX_OPTIONS];
        most.refused_keys = vec![most.refused_keys[0].clone(); MAX_COUNTS];
        most.refused_peers = vec![most.refused_peers[0].clone(); MAX_COUNTS];
        most.software = "x".repeat(MAX_WORDS);
        assert_eq!(most.check(), Ok(()));
    }

    #[test]
    fn a_readable_text_is_the_text_up_to_the_bound() {
        assert_eq!(readable("a b\u{1b}c"), "a b\u{fffd}c");
        assert_eq!(readable(&"x".repeat(MAX_WORDS)), "x".repeat(MAX_WORDS));
        assert_eq!(readable(&"x".repeat(MAX_WORDS + 1)), "x".repeat(MAX_WORDS));
        // A character that would go over the bound is left out whole.
        let long = format!("{}\u{e9}", "x".repeat(MAX_WORDS - 1));
        assert_eq!(readable(&long), "x".repeat(MAX_WORDS - 1));
    }

    #[test]
    fn words_and_numbers_are_those_that_tables_and_metrics_have() {
        let roles =
            [Role::Joining, Role::Recovering, Role::Follower, Role::Candidate, Role::Leader];
        let words = ["joining", "recovering", "follower", "candidate", "leader"];
        assert_eq!(roles.map(Role::word), words);
        assert_eq!(roles.map(Role::number), [0, 1, 2, 3, 4]);
        let uses = [KeyInUse::Agreed, KeyInUse::Own, KeyInUse::Emergency];
        assert_eq!(uses.map(KeyInUse::word), ["agreed", "own", "emergency"]);
    }

    #[test]
    fn what_any_server_says_passes_and_more_does_not() {
        assert_eq!(sample().check(), Ok(()));
        let mut many = sample();
        many.keys.previous = vec![many.keys.previous[0]; MAX_KEYS + 1];
        assert_eq!(many.check(), Err(BadStatus::TooMany("keys")));
        let mut many = sample();
        many.list.others = vec![many.list.others[0]; MAX_MEMBERS + 1];
        assert_eq!(many.check(), Err(BadStatus::TooMany("members")));
        let mut many = sample();
        many.list.agreed = vec![ServerId(1); MAX_MEMBERS + 1];
        assert_eq!(many.check(), Err(BadStatus::TooMany("members")));
        let mut many = sample();
        many.list.entries = vec![many.list.entries[0].clone(); MAX_ENTRIES + 1];
        assert_eq!(many.check(), Err(BadStatus::TooMany("entries")));
        let mut many = sample();
        many.list.options = vec![many.list.options[0].clone(); MAX_OPTIONS + 1];
        assert_eq!(many.check(), Err(BadStatus::TooMany("options")));
        let mut many = sample();
        many.host.hints = vec![Hint::Setting(tickets_off()); MAX_HINTS + 1];
        assert_eq!(many.check(), Err(BadStatus::TooMany("hints")));
        let mut many = sample();
        many.host.roots = vec![String::new(); MAX_ROOTS + 1];
        assert_eq!(many.check(), Err(BadStatus::TooMany("authorities")));
        let mut many = sample();
        many.host.warnings = vec![String::new(); MAX_HINTS + 1];
        assert_eq!(many.check(), Err(BadStatus::TooMany("warnings")));
        let mut many = sample();
        many.refused_peers = vec![many.refused_peers[0].clone(); MAX_COUNTS + 1];
        assert_eq!(many.check(), Err(BadStatus::TooMany("counts")));
    }

    #[test]
    fn no_text_moves_a_cursor() {
        type Place = fn(&mut ServerStatus) -> &mut String;
        let places: [Place; 18] = [
            |s| {
                s.host.roots = vec![String::new()];
                &mut s.host.roots[0]
            },
            |s| &mut s.software,
            |s| s.list.digest.as_mut().unwrap(),
            |s| {
                s.state_faults = vec![String::new()];
                &mut s.state_faults[0]
            },
            |s| s.host.certificate_warning.get_or_insert_default(),
            |s| &mut s.list.file_digest,
            |s| &mut s.list.options[0].1,
            |s| s.list.file_difference.get_or_insert_default(),
            |s| &mut s.list.entries[0].address,
            |s| s.list.entries[0].subject.get_or_insert_default(),
            |s| &mut s.certificate.subject,
            |s| &mut s.certificate.fingerprint,
            |s| &mut s.certificate.roots_digest,
            |s| s.certificate.authority.get_or_insert_default(),
            |s| &mut s.refused_keys[0].0,
            |s| s.host.version.get_or_insert_default(),
            |s| &mut s.host.authorities.get_or_insert_default().digest,
            |s| {
                s.host.authorities.get_or_insert_default().names = vec![String::new()];
                &mut s.host.authorities.get_or_insert_default().names[0]
            },
        ];
        for (i, place) in places.into_iter().enumerate() {
            for bad in ["\u{1b}[2J".to_owned(), "x".repeat(MAX_WORDS + 1)] {
                let mut status = sample();
                *place(&mut status) = bad.clone();
                assert_eq!(status.check(), Err(BadStatus::Text), "{i}");
                *place(&mut status) = readable(&bad);
                assert_eq!(status.check(), Ok(()), "{i}");
            }
        }
        let mut status = sample();
        status
            .host
            .hints
            .push(Hint::Setting(Finding { value: "a\nb".to_owned(), ..tickets_off() }));
        assert_eq!(status.check(), Err(BadStatus::Text));
    }
}
