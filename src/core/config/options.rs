//! The table of options: each one's name, what it takes, what counts where it is absent, when a
//! change of it counts, whether all servers need the same, and how it gets into [`Settings`].
//!
//! Parser, defaults, what a reload tells, the digest that servers compare and the check of the
//! documents are made of it. What an option is used for is elsewhere. Invariants:
//! - An option is a field of [`Settings`] and one row of [`OPTIONS`], nothing else.
//! - A row that refuses a value has left exactly one error, and leaves its field blank.

use std::path::PathBuf;
use std::time::Duration;

use super::address;
use super::problem::{Problem, Severity};
use super::reader::{IntegerRange, OptionValue, Reader};
use super::{certificate_name, Member, Timers, NO_SUBJECT, SUBJECT_REMEDY};
use crate::core::server_id::ServerId;
use crate::core::ticket_scope::TicketScope;

/// A server's configuration after all checks that need no other file than the two YAML files.
/// `Settings::default()` is blank; see [`Settings::defaults`] for what counts where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// This server.
    pub server_id: ServerId,
    /// `address` of this server's own file.
    pub address: String,
    /// `port` of this server's own file.
    pub port: u16,
    /// `bind_address`, if given: listen there and nowhere else.
    pub bind_address: Option<String>,
    /// `asio_thread_pool_size`: tokio workers, 1 to 64.
    pub workers: usize,
    /// Raft's timers.
    pub timers: Timers,
    /// `reserved_log_items`: entries kept behind a snapshot.
    pub reserved_log_items: u64,
    /// `snapshot_distance`: entries between two snapshots, 0 for none.
    pub snapshot_distance: u64,
    /// `client_req_timeout`: how long a proposal may wait for agreement.
    pub request_timeout: Duration,
    /// `key_update_interval`.
    pub key_update_interval: Duration,
    /// `handover_timeout`: how long a server that answers but has not installed may hold up a
    /// handover; never more than half the interval.
    pub handover_timeout: Duration,
    /// `startup_wait`: how long a starting server waits for the group's keys.
    pub startup_wait: Duration,
    /// `ticket_keys`: the most keys that are given to the host, 2 to 16.
    pub ticket_keys: usize,
    /// `max_key_age`: how long a key may encrypt without a quorum.
    pub max_key_age: Duration,
    /// `state_dir`, if given: the group's keys are kept there, sealed.
    pub state_dir: Option<PathBuf>,
    /// `ticket_scope`: which connections resume a session.
    pub ticket_scope: TicketScope,
    /// `share_sessions`: whether sessions that clients resume by their id are shared.
    pub share_sessions: bool,
    /// `root_cert_file`, resolved.
    pub root_cert_file: PathBuf,
    /// `server_cert_file`, resolved.
    pub server_cert_file: PathBuf,
    /// `server_key_file`, resolved.
    pub server_key_file: PathBuf,
    /// `cert_verify_str`; empty means any certificate of the root.
    pub cert_verify_str: String,
    /// `server_list_file` as written; what it says is in `members`.
    pub server_list_file: PathBuf,
    /// The server list, this server included, in the file's order.
    pub members: Vec<Member>,
}

impl Settings {
    /// What counts where nothing is given; what has to be given is blank.
    pub fn defaults() -> Settings {
        super::parse_conf("{}", "").0.map(|conf| conf.settings).unwrap_or_default()
    }
}

/// Everything that is known of an option but what it is good for.
pub struct ConfigOption {
    /// Its name in the file.
    pub name: &'static str,
    /// What counts where it is absent.
    pub absent: Absent,
    /// When a change of it counts.
    pub change: Change,
    /// Whether all servers need the same.
    pub servers: Servers,
    /// The integers that it takes, if it is a number.
    integers: Option<&'static IntegerRange>,
    /// Sets its field. `None` where the value was refused, and the field is as it was.
    read: fn(&mut Row<'_, '_>, &mut Settings) -> Option<()>,
    /// Its value as a text, by which settings are compared.
    text: fn(&Settings) -> String,
}

/// What counts where an option is absent.
pub enum Absent {
    /// It must not be: the line that is to be added, and what it is.
    Required(&'static str),
    /// This number.
    Number(i64),
    /// What its row makes of it, in the words of the documents.
    Words(&'static str),
}

/// When a change of an option counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// After a reload.
    AtReload,
    /// When Traffic Server is restarted: threads, the place of what a server remembers and hooks in
    /// the host are settled at start.
    AtRestart,
    /// Never while a server runs: such a reload is refused.
    Refused,
}

/// Whether all servers need the same value of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// They do, and it is in the digest that they compare.
    Alike,
    /// They do, and compare it by itself.
    AlikeByItself,
    /// Each has its own.
    Own,
}

use Absent::{Number, Required, Words};

/// A row: name, integers, what counts where it is absent, when a change counts, whether servers need
/// the same, and its field of the settings with what reads it.
macro_rules! row {
    ($name:literal, $integers:expr, $absent:expr, $change:ident, $servers:ident,
     $($field:ident).+ = $read:expr) => {
        ConfigOption {
            name: $name,
            absent: $absent,
            change: Change::$change,
            servers: Servers::$servers,
            integers: $integers,
            read: |row, settings| {
                settings.$($field).+ = $read(row, settings)?;
                Some(())
            },
            text: |settings| format!("{:?}", settings.$($field).+),
        }
    };
}

/// Every option, the original's sixteen first. A row stands behind those whose values it needs.
#[rustfmt::skip]
pub static OPTIONS: &[ConfigOption] = &[
    row!("server_id", Some(&SERVER_ID), Required("'server_id: N', the server's number in the list, or 'server_id: auto'"),
        Refused, Own, server_id = server_id),
    row!("address", None, Required("'address: A', where the other servers reach it"),
        AtReload, Own, address = Row::address),
    row!("port", Some(&PORT), Required("'port: P', where it listens for the other servers"),
        AtReload, Own, port = Row::number),
    row!("asio_thread_pool_size", Some(&WORKERS), Number(4), AtRestart, Own, workers = Row::number),
    row!("heart_beat_interval", Some(&TIMER), Number(100),
        AtReload, Alike, timers.heartbeat = Row::millis),
    row!("election_timeout_lower_bound", Some(&TIMER), Number(200),
        AtReload, Alike, timers.election_lower = Row::millis),
    row!("election_timeout_upper_bound", Some(&TIMER), Number(400),
        AtReload, Alike, timers.election_upper = election_upper),
    row!("reserved_log_items", Some(&LOG_ITEMS), Number(5),
        AtReload, Alike, reserved_log_items = Row::number),
    row!("snapshot_distance", Some(&LOG_ITEMS), Number(5),
        AtReload, Alike, snapshot_distance = Row::number),
    row!("client_req_timeout", Some(&TIMER), Number(3000),
        AtReload, Alike, request_timeout = Row::millis),
    row!("key_update_interval", Some(&INTERVAL),
        Required("'key_update_interval: SECONDS', the time between two key changes"),
        AtReload, Alike, key_update_interval = Row::seconds),
    ConfigOption {
        text: |settings| format!("{:?}", settings.members),
        ..row!("server_list_file", None,
            Required("'server_list_file: PATH', a file with the list of all servers"),
            AtReload, AlikeByItself, server_list_file = Row::path)
    },
    row!("root_cert_file", None,
        Required("'root_cert_file: PATH', a file with the certificates that peers are held to"),
        AtReload, Own, root_cert_file = Row::path),
    row!("server_cert_file", None,
        Required("'server_cert_file: PATH', a file with this server's certificate"),
        AtReload, Own, server_cert_file = Row::path),
    row!("server_key_file", None,
        Required("'server_key_file: PATH', a file with the key of this server's certificate"),
        AtReload, Own, server_key_file = Row::path),
    row!("cert_verify_str", None, Words("empty"), AtReload, Alike, cert_verify_str = cert_verify_str),
    row!("bind_address", None, Words("`address`"), AtReload, Own, bind_address = bind_address),
    row!("handover_timeout", Some(&TIMER), Number(1500),
        AtReload, Alike, handover_timeout = handover_timeout),
    row!("startup_wait", Some(&STARTUP_WAIT), Number(2000),
        AtReload, Alike, startup_wait = Row::millis),
    row!("ticket_keys", Some(&TICKET_KEYS), Number(2), AtReload, Alike, ticket_keys = Row::number),
    row!("max_key_age", Some(&KEY_AGE), Words("the larger of 86400 and twice the interval"),
        AtReload, Alike, max_key_age = max_key_age),
    row!("state_dir", None, Words("none: nothing is kept"), AtRestart, Own, state_dir = state_dir),
    row!("ticket_scope", None, Words("`site`"),
        AtRestart, AlikeByItself, ticket_scope = ticket_scope),
    row!("share_sessions", None, Words("`false`"), AtRestart, Alike, share_sessions = share_sessions),
];

/// The longest timer of Raft and of a handover, in milliseconds: an hour, far above any use.
const MAX_TIMER_MS: i64 = 3_600_000;

/// The longest `startup_wait`, in milliseconds: Traffic Server serves nobody during it.
const MAX_STARTUP_WAIT_MS: i64 = 60_000;

/// The most log entries to keep or to count between snapshots: each takes memory on every server.
const MAX_LOG_ITEMS: i64 = 1_000_000;

/// The least `max_key_age` that is a default: one day.
const DEFAULT_KEY_AGE: Duration = Duration::from_secs(86_400);

static SERVER_ID: IntegerRange = IntegerRange {
    range: 0..=i32::MAX as i64,
    complaint: "is not a server id",
    expected: "a whole number",
};
static PORT: IntegerRange =
    IntegerRange { range: 1..=65535, complaint: "is not a port", expected: "a number" };
static WORKERS: IntegerRange = range(1, 64, "a number of threads");
static TIMER: IntegerRange = range(1, MAX_TIMER_MS, MILLISECONDS);
static STARTUP_WAIT: IntegerRange = range(0, MAX_STARTUP_WAIT_MS, MILLISECONDS);
static LOG_ITEMS: IntegerRange = range(0, MAX_LOG_ITEMS, "a number of entries");
static INTERVAL: IntegerRange = range(1, i32::MAX as i64, SECONDS);
static KEY_AGE: IntegerRange = range(1, u32::MAX as i64, SECONDS);
static TICKET_KEYS: IntegerRange = range(2, 16, "a number of keys");

const MILLISECONDS: &str = "a whole number of milliseconds";
const SECONDS: &str = "a whole number of seconds";

const fn range(least: i64, most: i64, expected: &'static str) -> IntegerRange {
    IntegerRange { range: least..=most, complaint: "is out of range", expected }
}

impl ConfigOption {
    /// The row of a name.
    pub fn named(name: &str) -> Option<&'static ConfigOption> {
        OPTIONS.iter().find(|option| option.name == name)
    }

    /// The range of its numbers and their unit, as the documents have them: `1-3600000 ms`.
    pub fn range(&self) -> Option<String> {
        let IntegerRange { range, expected, .. } = self.integers?;
        let unit = match *expected {
            MILLISECONDS => " ms",
            SECONDS => " s",
            _ => "",
        };
        Some(format!("{}-{}{unit}", range.start(), range.end()))
    }

    pub(super) fn read(&'static self, reader: &mut Reader<'_>, into: &mut Settings) -> bool {
        (self.read)(&mut Row { option: self, reader }, into).is_some()
    }
}

/// The options in which two settings differ.
pub fn changes(old: &Settings, new: &Settings) -> Vec<&'static ConfigOption> {
    OPTIONS.iter().filter(|option| (option.text)(old) != (option.text)(new)).collect()
}

/// What all servers need to have alike, by names and values, but for what they compare by itself.
pub fn alike(settings: &Settings) -> Vec<(&'static str, String)> {
    let alike = OPTIONS.iter().filter(|option| option.servers == Servers::Alike);
    alike.map(|option| (option.name, (option.text)(settings))).collect()
}

/// A row that is being read.
struct Row<'a, 'b> {
    option: &'static ConfigOption,
    reader: &'a mut Reader<'b>,
}

impl Row<'_, '_> {
    /// The number that the file gives, which no row lets be below 0.
    fn value(&mut self) -> OptionValue<u64> {
        match self.option.integers.map(|integers| self.reader.number(self.option.name, integers)) {
            Some(OptionValue::Value(number)) => OptionValue::Value(number.unsigned_abs()),
            Some(OptionValue::Invalid) => OptionValue::Invalid,
            Some(OptionValue::Missing) | None => OptionValue::Missing,
        }
    }

    fn or_default(&mut self, given: OptionValue<u64>) -> Option<u64> {
        match self.option.absent {
            Number(default) => given.or(default.unsigned_abs()),
            _ => self.required(given),
        }
    }

    fn number<T: TryFrom<u64>>(&mut self, _: &Settings) -> Option<T> {
        let given = self.value();
        // The range is within the type's.
        self.or_default(given)?.try_into().ok()
    }

    fn millis(&mut self, settings: &Settings) -> Option<Duration> {
        self.number(settings).map(Duration::from_millis)
    }

    fn seconds(&mut self, settings: &Settings) -> Option<Duration> {
        self.number(settings).map(Duration::from_secs)
    }

    fn address(&mut self, _: &Settings) -> Option<String> {
        let given = self.reader.address(self.option.name);
        self.required(given)
    }

    /// The name of a file, as written.
    fn path(&mut self, _: &Settings) -> Option<PathBuf> {
        let what = self.add().split_once(", ").map_or("", |(_, what)| what);
        let given = self.reader.text(self.option.name, &format!("give the path of {what}"));
        self.required(given).map(PathBuf::from)
    }

    fn required<T>(&mut self, given: OptionValue<T>) -> Option<T> {
        let remedy = format!("add {}", self.add());
        self.reader.required(self.option.name, given, &remedy)
    }

    fn add(&self) -> &'static str {
        match self.option.absent {
            Required(words) | Words(words) => words,
            Number(_) => "the line",
        }
    }

    /// Adds an error about the value that is given.
    fn refuse<T>(&mut self, reason: &str, remedy: &str) -> Option<T> {
        self.reader.refuse(self.option.name, reason, remedy);
        None
    }
}

fn server_id(row: &mut Row<'_, '_>, settings: &Settings) -> Option<ServerId> {
    row.number(settings).map(ServerId)
}

/// The last of Raft's timers, with the check of their order.
fn election_upper(row: &mut Row<'_, '_>, settings: &Settings) -> Option<Duration> {
    let upper = row.millis(settings)?;
    let Timers { heartbeat, election_lower: lower, .. } = settings.timers;
    let mut below = |name, value: Duration, bound, most: Duration, remedy| {
        // One that is zero was refused.
        if value >= most && !value.is_zero() && !most.is_zero() {
            let (value, most) = (value.as_millis(), most.as_millis());
            let reason = format!("{value} ms is not below {bound}, {most} ms");
            let problem = row.reader.error(name, &reason, remedy);
            row.reader.problems.push(Problem { value: None, ..problem });
        }
    };
    let remedy = "make it half of the lower bound or less";
    below("heart_beat_interval", heartbeat, "election_timeout_lower_bound", lower, remedy);
    let (name, remedy) =
        ("election_timeout_lower_bound", "make the upper bound twice the lower one");
    below(name, lower, "election_timeout_upper_bound", upper, remedy);
    Some(upper)
}

fn bind_address(row: &mut Row<'_, '_>, _: &Settings) -> Option<Option<String>> {
    let given = row.reader.address(row.option.name).optional()?;
    if let Some(reason) = given.as_deref().and_then(address::unbindable) {
        let remedy = "give an address of this machine, or leave it out";
        return row.refuse(&reason, remedy);
    }
    Some(given)
}

/// Never more than half the interval: two handovers must not overlap.
fn handover_timeout(row: &mut Row<'_, '_>, settings: &Settings) -> Option<Duration> {
    let given = row.value();
    let is_given = matches!(given, OptionValue::Value(_));
    let wanted = row.or_default(given).map(Duration::from_millis)?;
    let most = settings.key_update_interval / 2;
    // An interval of zero was refused.
    if wanted <= most || most.is_zero() {
        return Some(wanted);
    }
    if is_given {
        let most_ms = most.as_millis();
        let reason =
            format!("is more than half of key_update_interval; {most_ms} ms is used instead");
        let problem =
            row.reader.error(row.option.name, &reason, &format!("give at most {most_ms}"));
        row.reader.problems.push(Problem { severity: Severity::Warning, ..problem });
    }
    Some(most)
}

/// Never below the interval: a key would be too old before its successor is due.
fn max_key_age(row: &mut Row<'_, '_>, settings: &Settings) -> Option<Duration> {
    let interval = settings.key_update_interval;
    let age = match row.value() {
        OptionValue::Invalid => return None,
        OptionValue::Missing => return Some(DEFAULT_KEY_AGE.max(interval.saturating_mul(2))),
        OptionValue::Value(age) => Duration::from_secs(age),
    };
    if age < interval {
        let reason = format!("is below key_update_interval, {} s", interval.as_secs());
        let remedy = "give at least twice key_update_interval, or remove the line";
        return row.refuse(&reason, remedy);
    }
    Some(age)
}

/// An absolute path, since it names a place of the machine and not of the configuration.
fn state_dir(row: &mut Row<'_, '_>, _: &Settings) -> Option<Option<PathBuf>> {
    let remedy = "give the absolute path of a directory on memory-backed storage, such as \
                  /run/stek_share, or remove the line";
    match row.reader.text(row.option.name, remedy).optional()? {
        Some(text) if !text.starts_with('/') => row.refuse("is not an absolute path", remedy),
        dir => Some(dir.map(PathBuf::from)),
    }
}

/// One of two words.
fn ticket_scope(row: &mut Row<'_, '_>, _: &Settings) -> Option<TicketScope> {
    let remedy = "give site or host, or remove the line, which means site";
    match row.reader.text(row.option.name, remedy).optional()? {
        None => Some(TicketScope::Site),
        Some(word) => {
            TicketScope::parse(&word).or_else(|| row.refuse("is neither site nor host", remedy))
        }
    }
}

/// True or false.
fn share_sessions(row: &mut Row<'_, '_>, _: &Settings) -> Option<bool> {
    let remedy = "give true or false, or remove the line, which means false";
    row.reader.boolean(row.option.name, remedy).or(false)
}

/// In the one-line form of OpenSSL's X509_NAME_oneline, as the original has it. Any other form
/// could never equal a certificate's subject.
fn cert_verify_str(row: &mut Row<'_, '_>, _: &Settings) -> Option<String> {
    let (name, r) = (row.option.name, &mut *row.reader);
    let given = r.text_or_empty(name, SUBJECT_REMEDY).or(String::new())?;
    if given.is_empty() {
        let reason = "is not given, so any certificate of root_cert_file may join the group";
        let problem = Problem { value: None, ..r.error(name, reason, SUBJECT_REMEDY) };
        // Where the option is absent there is no line to point at.
        let line = problem.line.filter(|_| r.places.key(name, 0).is_some());
        r.problems.push(Problem { severity: Severity::Warning, ..problem.at(line) });
        return Some(given);
    }
    certificate_name(&given).or_else(|| row.refuse(NO_SUBJECT, SUBJECT_REMEDY))
}
