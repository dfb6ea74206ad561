//! Checked configuration: what the two YAML files say, parsed once into types that cannot hold a
//! wrong value, and the problems that an operator has to hear about.
//!
//! Reads no file and resolves no path; see [`crate::load`] for that. What must hold: all problems
//! of a text are told, not only the first, and no text makes this panic.
//!
//! The way: [`parse_conf`] and [`parse_list`] make a [`Conf`] and a [`List`], in which a value
//! that was refused is absent; [`check_membership`] compares the two; [`Conf::settle`] makes
//! [`Settings`] of them when nothing is absent.

mod address;
mod problem;
mod reader;
pub(super) mod yaml;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::reader::{Given, Numbers, Reader};
use self::yaml::{Node, Places};
use super::roster::MAX_SUBJECT;
use super::server_id::ServerId;
use super::ticket_scope::TicketScope;

pub use self::problem::{printable, Problem, Severity};
pub use self::yaml::MAX_TEXT;

/// Every option of the server configuration, the original's sixteen first.
pub const OPTIONS: [&str; 23] = [
    "server_id",
    "address",
    "port",
    "asio_thread_pool_size",
    "heart_beat_interval",
    "election_timeout_lower_bound",
    "election_timeout_upper_bound",
    "reserved_log_items",
    "snapshot_distance",
    "client_req_timeout",
    "key_update_interval",
    "server_list_file",
    "root_cert_file",
    "server_cert_file",
    "server_key_file",
    "cert_verify_str",
    "bind_address",
    "handover_timeout",
    "startup_wait",
    "ticket_keys",
    "max_key_age",
    "state_dir",
    "ticket_scope",
];

/// Every field of an entry of the server list.
const ENTRY_FIELDS: [&str; 4] = ["server_id", "address", "port", "cert_verify_str"];

/// The most servers in a list. Raft among far fewer is slow already; this only keeps a wrong file
/// from becoming a thousand connections.
pub const MAX_MEMBERS: usize = 1000;

/// The most problems that are told of one file; what comes after them rarely adds anything.
pub const MAX_PROBLEMS: usize = 100;

/// The longest timer of Raft and of a handover, in milliseconds: an hour, far above any use.
const MAX_TIMER_MS: i64 = 3_600_000;

/// The longest `startup_wait`, in milliseconds: Traffic Server serves nobody during it.
const MAX_STARTUP_WAIT_MS: i64 = 60_000;

/// The most log entries to keep or to count between snapshots: each takes memory on every box.
const MAX_LOG_ITEMS: i64 = 1_000_000;

/// The least `max_key_age` that is a default: one day, in seconds.
const DEFAULT_KEY_AGE_S: u64 = 86_400;

/// The default of `handover_timeout`, in milliseconds.
const DEFAULT_HANDOVER_MS: u64 = 1500;

const SERVER_ID: Numbers =
    Numbers { range: 0..=i32::MAX as i64, outside: "is not a server id", unit: "a whole number" };
const PORT: Numbers = Numbers { range: 1..=65535, outside: "is not a port", unit: "a number" };
const WORKERS: Numbers = Numbers { range: 1..=64, outside: OUTSIDE, unit: "a number of threads" };
const TIMER: Numbers = milliseconds(1, MAX_TIMER_MS);
const STARTUP_WAIT: Numbers = milliseconds(0, MAX_STARTUP_WAIT_MS);
const LOG_ITEMS: Numbers =
    Numbers { range: 0..=MAX_LOG_ITEMS, outside: OUTSIDE, unit: "a number of entries" };
const INTERVAL: Numbers = seconds(1, i32::MAX as i64);
const KEY_AGE: Numbers = seconds(1, u32::MAX as i64);
const TICKET_KEYS: Numbers = Numbers { range: 2..=16, outside: OUTSIDE, unit: "a number of keys" };

const OUTSIDE: &str = "is out of range";

const fn milliseconds(least: i64, most: i64) -> Numbers {
    Numbers { range: least..=most, outside: OUTSIDE, unit: "a whole number of milliseconds" }
}

const fn seconds(least: i64, most: i64) -> Numbers {
    Numbers { range: least..=most, outside: OUTSIDE, unit: "a whole number of seconds" }
}

/// One entry of the server list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The box's id, unique in the list.
    pub id: ServerId,
    /// IPv4, IPv6 (without brackets) or host name.
    pub address: String,
    /// TCP port, never 0.
    pub port: u16,
    /// `cert_verify_str` of the entry, if given: the subject of this box's certificate, in place
    /// of the configuration's.
    pub subject: Option<String>,
}

/// Raft's timers as the operator gives them, in a valid order: `heart_beat < lower < upper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// `heart_beat_interval`.
    pub heart_beat: Duration,
    /// `election_timeout_lower_bound`.
    pub election_lower: Duration,
    /// `election_timeout_upper_bound`.
    pub election_upper: Duration,
}

/// A box's configuration after all checks that need no other file than the two YAML files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This box.
    pub server_id: ServerId,
    /// `address` of this box's own file.
    pub address: String,
    /// `port` of this box's own file.
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
    /// `handover_timeout`: how long a box that answers but has not installed may hold up a
    /// handover; never more than half the interval.
    pub handover_timeout: Duration,
    /// `startup_wait`: how long a starting box waits for the group's keys.
    pub startup_wait: Duration,
    /// `ticket_keys`: the most keys that are given to the host, 2 to 16.
    pub ticket_keys: usize,
    /// `max_key_age`: how long a key may encrypt without a quorum.
    pub max_key_age: Duration,
    /// `state_dir`, if given: the group's keys are kept there, sealed.
    pub state_dir: Option<PathBuf>,
    /// `ticket_scope`: which connections resume a session.
    pub ticket_scope: TicketScope,
    /// `root_cert_file`, resolved.
    pub root_cert_file: PathBuf,
    /// `server_cert_file`, resolved.
    pub server_cert_file: PathBuf,
    /// `server_key_file`, resolved.
    pub server_key_file: PathBuf,
    /// `cert_verify_str`; empty means any certificate of the root.
    pub cert_verify_str: String,
    /// The server list, this box included, in the file's order.
    pub members: Vec<Member>,
}

/// What a server configuration says. A required value that is absent or refused, and an optional
/// one that is refused, is `None`, and there is a [`Problem`] that says so.
#[derive(Clone, Debug)]
pub struct Conf {
    /// The file's name as operators see it.
    pub file: String,
    /// `server_id`.
    pub server_id: Option<ServerId>,
    /// `address`.
    pub address: Option<String>,
    /// `port`.
    pub port: Option<u16>,
    /// `server_list_file` as written.
    pub server_list_file: Option<String>,
    /// `root_cert_file` as written.
    pub root_cert_file: Option<String>,
    /// `server_cert_file` as written.
    pub server_cert_file: Option<String>,
    /// `server_key_file` as written.
    pub server_key_file: Option<String>,
    /// `cert_verify_str`; empty means any certificate of the root.
    pub cert_verify_str: Option<String>,
    bind_address: Option<Option<String>>,
    workers: Option<usize>,
    timers: Option<Timers>,
    reserved_log_items: Option<u64>,
    snapshot_distance: Option<u64>,
    request_timeout: Option<Duration>,
    key_update_interval: Option<Duration>,
    handover_timeout: Option<Duration>,
    startup_wait: Option<Duration>,
    ticket_keys: Option<usize>,
    max_key_age: Option<Duration>,
    state_dir: Option<Option<PathBuf>>,
    ticket_scope: Option<TicketScope>,
    /// Whether there is no error in the file.
    usable: bool,
    places: Places,
}

/// What a server list says.
#[derive(Clone, Debug)]
pub struct List {
    /// The file's name as operators see it.
    pub file: String,
    /// The entries that are right, in the file's order.
    pub members: Vec<Member>,
    /// Whether every entry is right and the list as a whole can be used.
    pub usable: bool,
    lines: HashMap<ServerId, usize>,
}

impl List {
    /// Whether every entry names the subject of its server's certificate.
    pub fn names_all_subjects(&self) -> bool {
        self.usable && self.members.iter().all(|member| member.subject.is_some())
    }

    /// The subject that the entry of a server names, if there is one that does.
    pub fn subject_of(&self, id: ServerId) -> Option<&str> {
        self.members.iter().find(|member| member.id == id)?.subject.as_deref()
    }

    /// An error about a value of the entry of a server, at its entry's line.
    pub fn error(
        &self,
        id: ServerId,
        field: &str,
        reason: impl Into<String>,
        remedy: &str,
    ) -> Problem {
        let problem = Problem::error(&self.file, reason, remedy);
        problem.field(format!("server_id {id}: {field}")).at(self.lines.get(&id).copied())
    }
}

/// The files that a server configuration names, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// `root_cert_file`.
    pub root_cert_file: PathBuf,
    /// `server_cert_file`.
    pub server_cert_file: PathBuf,
    /// `server_key_file`.
    pub server_key_file: PathBuf,
}

/// Parses a server configuration. `file` is its name in problems, of which there are at most
/// [`MAX_PROBLEMS`]. `None` where the text has no options at all.
pub fn parse_conf(text: &str, file: &str) -> (Option<Conf>, Vec<Problem>) {
    let mut problems = Vec::new();
    let conf = match document(text, file, &mut problems) {
        Some(Node::Mapping(pairs)) => Some(conf_of(text, file, &pairs, &mut problems)),
        Some(other) => {
            let reason = format!("is {}, not a mapping of options", other.kind());
            let remedy = match other {
                Node::List(_) => "this may be the server list; name the server configuration here",
                _ => "write options as 'name: value', as in example_server_conf.yaml",
            };
            problems.push(Problem::error(file, reason, remedy));
            None
        }
        None => None,
    };
    (conf, bounded(problems))
}

/// Parses a server list. `file` is its name in problems, of which there are at most
/// [`MAX_PROBLEMS`]. `None` where the text has no list at all.
pub fn parse_list(text: &str, file: &str) -> (Option<List>, Vec<Problem>) {
    let mut problems = Vec::new();
    let remedy =
        "write one entry '- server_id: N', 'address: A', 'port: P' for each server, as in \
                  example_server_list.yaml";
    let list = match document(text, file, &mut problems) {
        Some(Node::List(nodes)) if nodes.is_empty() => {
            problems.push(Problem::error(file, "is an empty list", remedy));
            None
        }
        Some(Node::List(nodes)) if nodes.len() > MAX_MEMBERS => {
            let reason = format!("has {} servers, more than {MAX_MEMBERS}", nodes.len());
            problems.push(Problem::error(file, reason, "split the fleet into several groups"));
            None
        }
        Some(Node::List(nodes)) => Some(list_of(text, file, &nodes, &mut problems)),
        Some(other) => {
            let reason = format!("is {}, not a list of servers", other.kind());
            problems.push(Problem::error(file, reason, remedy));
            None
        }
        None => None,
    };
    (list, bounded(problems))
}

/// Compares a configuration with its list: this server has to be in it, and should be there with
/// its own address and port.
pub fn check_membership(conf: &Conf, list: &List) -> Option<Problem> {
    let id = conf.server_id?;
    let Some(member) = list.members.iter().find(|m| m.id == id) else {
        if !list.usable {
            // The entry may be one of those that were refused.
            return None;
        }
        let reason = format!("this server, server_id {id} of {}, is not in the list", conf.file);
        let remedy = "add an entry for it, or correct server_id there";
        return Some(Problem::error(&list.file, reason, remedy));
    };
    let (own_address, own_port) = (conf.address.as_ref()?, conf.port?);
    let same = address::canonical(&member.address) == address::canonical(own_address);
    if same && member.port == own_port {
        return None;
    }
    let listed = joined(&member.address, member.port);
    let own = joined(own_address, own_port);
    let reason = format!("this server is listed here with {listed}, but {} says {own}", conf.file);
    let remedy = "the other servers dial the list's; make both say the same";
    let problem = Problem::warning(&list.file, reason, remedy);
    Some(problem.field(format!("server_id {id}")).at(list.lines.get(&id).copied()))
}

/// Whether several servers go by one certificate subject, which then tells none of them from the
/// others. A warning where the list names subjects for some servers only, since that looks safe.
pub fn check_subjects(conf: &Conf, list: &List) -> Option<Problem> {
    // That any certificate is good enough is told already.
    let common = conf.cert_verify_str.as_deref().filter(|common| !common.is_empty())?;
    let unnamed = list.members.iter().filter(|member| member.subject.is_none()).count();
    let alike = |member: &&Member| member.subject.as_deref().is_none_or(|own| own == common);
    let ids: Vec<String> = list.members.iter().filter(alike).map(|m| m.id.to_string()).collect();
    if !list.usable || unnamed == 0 || ids.len() < 2 {
        return None;
    }
    let remedy = "give each server a certificate with a subject of its own, and name that in \
                  cert_verify_str of its entry in the list, as 'stekctl init' does";
    let which = match ids.len() == list.members.len() {
        true => "all servers".to_owned(),
        false => format!("servers {}", ids.join(", ")),
    };
    let reason = format!(
        "{which} have the certificate subject of cert_verify_str in {}: whoever has the key of one \
         of them can speak as any of them, even after that one was removed from the list",
        conf.file
    );
    Some(match unnamed == list.members.len() {
        true => Problem::note(&list.file, reason, remedy),
        false => Problem::warning(&list.file, reason, remedy),
    })
}

/// An address and a port as one text.
fn joined(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

impl Conf {
    /// An error about the value of an option, at its line.
    pub fn error(&self, option: &str, reason: impl Into<String>, remedy: &str) -> Problem {
        Problem::error(&self.file, reason, remedy).field(option).at(self.places.key(option, 0))
    }

    /// A warning about the value of an option, at its line.
    pub fn warning(&self, option: &str, reason: impl Into<String>, remedy: &str) -> Problem {
        Problem { severity: Severity::Warning, ..self.error(option, reason, remedy) }
    }

    /// Whether a problem says that any certificate may join the group. It is without object where
    /// every entry of the list names its own.
    pub fn is_open_door(&self, problem: &Problem) -> bool {
        !problem.is_error()
            && problem.file == self.file
            && problem.field.as_deref() == Some("cert_verify_str")
    }

    /// The settings, or `None` if a value was refused, the list cannot be used, or this server is
    /// not in it: then there is an error among the problems.
    pub fn settle(self, list: List, paths: Paths) -> Option<Settings> {
        let server_id = self.server_id?;
        if !self.usable || !list.usable || !list.members.iter().any(|m| m.id == server_id) {
            return None;
        }
        Some(Settings {
            server_id,
            address: self.address?,
            port: self.port?,
            bind_address: self.bind_address?,
            workers: self.workers?,
            timers: self.timers?,
            reserved_log_items: self.reserved_log_items?,
            snapshot_distance: self.snapshot_distance?,
            request_timeout: self.request_timeout?,
            key_update_interval: self.key_update_interval?,
            handover_timeout: self.handover_timeout?,
            startup_wait: self.startup_wait?,
            ticket_keys: self.ticket_keys?,
            max_key_age: self.max_key_age?,
            state_dir: self.state_dir?,
            ticket_scope: self.ticket_scope?,
            root_cert_file: paths.root_cert_file,
            server_cert_file: paths.server_cert_file,
            server_key_file: paths.server_key_file,
            cert_verify_str: self.cert_verify_str?,
            members: list.members,
        })
    }
}

/// At most [`MAX_PROBLEMS`], errors before warnings if some have to go.
fn bounded(mut problems: Vec<Problem>) -> Vec<Problem> {
    if problems.len() > MAX_PROBLEMS {
        problems.sort_by_key(|p| !p.is_error());
        problems.truncate(MAX_PROBLEMS);
    }
    problems
}

/// The first document of `text`, unless there is none.
fn document(text: &str, file: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    match yaml::parse(text) {
        Ok((Node::Null, _)) => {
            let remedy = "fill it in after the example files of this plugin";
            problems.push(Problem::error(file, "is empty", remedy));
            None
        }
        Ok((node, more)) => {
            if more {
                let reason = "holds several YAML documents, of which only the first has an effect";
                problems.push(Problem::warning(file, reason, "remove all from the second '---'"));
            }
            Some(node)
        }
        Err(e) => {
            let remedy = "correct it there or just above; indent with spaces, quote odd values";
            problems.push(Problem::error(file, e.reason, remedy).at(e.line));
            None
        }
    }
}

fn conf_of(text: &str, file: &str, pairs: &[(Node, Node)], problems: &mut Vec<Problem>) -> Conf {
    let places = Places::of_mapping(text);
    let prefix = String::new();
    let mut r = Reader { file, pairs, places: &places, prefix, problems };
    r.check_names(&OPTIONS, "remove it, or see the table of options in the README");
    let (server_id, address, port) = identity(&mut r);
    let bind_address = match r.address("bind_address") {
        Given::Nothing => Some(None),
        Given::Wrong => None,
        Given::Value(address) => Some(Some(address)),
    };
    let interval = r.number("key_update_interval", &INTERVAL);
    let remedy = "add 'key_update_interval: SECONDS', the time between two key changes";
    let interval = r.required("key_update_interval", interval, remedy).map(unsigned);
    let handover_timeout = handover_timeout(&mut r, interval);
    let max_key_age = max_key_age(&mut r, interval);
    let workers = r.number("asio_thread_pool_size", &WORKERS).or(4).map(|n| unsigned(n) as usize);
    let ticket_keys = r.number("ticket_keys", &TICKET_KEYS).or(2).map(|n| unsigned(n) as usize);
    let timers = timers(&mut r);
    let reserved_log_items = r.number("reserved_log_items", &LOG_ITEMS).or(5).map(unsigned);
    let snapshot_distance = r.number("snapshot_distance", &LOG_ITEMS).or(5).map(unsigned);
    let request_timeout = r.number("client_req_timeout", &TIMER).or(3000).map(millis);
    let startup_wait = r.number("startup_wait", &STARTUP_WAIT).or(2000).map(millis);
    let server_list_file = path(&mut r, "server_list_file", "the list of all servers");
    let root_cert_file = path(&mut r, "root_cert_file", "the certificates that peers are held to");
    let server_cert_file = path(&mut r, "server_cert_file", "this server's certificate");
    let server_key_file = path(&mut r, "server_key_file", "the key of this server's certificate");
    let cert_verify_str = cert_verify_str(&mut r);
    let state_dir = state_dir(&mut r);
    let ticket_scope = ticket_scope(&mut r);
    Conf {
        file: file.to_owned(),
        server_id,
        address,
        port,
        server_list_file,
        root_cert_file,
        server_cert_file,
        server_key_file,
        cert_verify_str,
        bind_address,
        workers,
        timers,
        reserved_log_items,
        snapshot_distance,
        request_timeout,
        key_update_interval: interval.map(Duration::from_secs),
        handover_timeout,
        startup_wait,
        ticket_keys,
        max_key_age,
        state_dir,
        ticket_scope,
        usable: !problems.iter().any(Problem::is_error),
        places,
    }
}

/// The three required fields that a configuration and an entry of the list have in common.
fn identity(r: &mut Reader<'_>) -> (Option<ServerId>, Option<String>, Option<u16>) {
    let id = r.number("server_id", &SERVER_ID);
    let id = r.required("server_id", id, "add 'server_id: N', the server's number in the list");
    let address = r.address("address");
    let remedy = "add 'address: A', where the other servers reach it";
    let address = r.required("address", address, remedy);
    let port = r.number("port", &PORT);
    let port = r.required("port", port, "add 'port: P', where it listens for the other servers");
    (
        // Both ranges were checked, so neither conversion fails.
        id.and_then(|n| u32::try_from(n).ok()).map(ServerId),
        address,
        port.and_then(|n| u16::try_from(n).ok()),
    )
}

/// Raft's timers, if each is right and their order is.
fn timers(r: &mut Reader<'_>) -> Option<Timers> {
    let heart_beat = r.number("heart_beat_interval", &TIMER).or(100).map(millis);
    let lower = r.number("election_timeout_lower_bound", &TIMER).or(200).map(millis);
    let upper = r.number("election_timeout_upper_bound", &TIMER).or(400).map(millis);
    let timers = Timers { heart_beat: heart_beat?, election_lower: lower?, election_upper: upper? };
    let lower = timers.election_lower.as_millis();
    let mut ordered = true;
    if timers.heart_beat >= timers.election_lower {
        let (name, ms) = ("heart_beat_interval", timers.heart_beat.as_millis());
        let reason = format!("{ms} ms is not below election_timeout_lower_bound, {lower} ms");
        let remedy = "make it half of the lower bound or less";
        r.problems.push(Problem { value: None, ..r.error(name, &reason, remedy) });
        ordered = false;
    }
    if timers.election_lower >= timers.election_upper {
        let upper = timers.election_upper.as_millis();
        let name = "election_timeout_lower_bound";
        let reason = format!("{lower} ms is not below election_timeout_upper_bound, {upper} ms");
        let remedy = "make the upper bound twice the lower one";
        r.problems.push(Problem { value: None, ..r.error(name, &reason, remedy) });
        ordered = false;
    }
    ordered.then_some(timers)
}

/// `handover_timeout`, never more than half the interval: two handovers must not overlap.
fn handover_timeout(r: &mut Reader<'_>, interval_s: Option<u64>) -> Option<Duration> {
    let given = r.number("handover_timeout", &TIMER);
    let most = Duration::from_secs(interval_s?) / 2;
    match given {
        Given::Wrong => None,
        Given::Nothing => Some(most.min(Duration::from_millis(DEFAULT_HANDOVER_MS))),
        Given::Value(ms) if millis(ms) <= most => Some(millis(ms)),
        Given::Value(_) => {
            let most_ms = most.as_millis();
            let reason =
                format!("is more than half of key_update_interval; {most_ms} ms is used instead");
            let remedy = format!("give at most {most_ms}");
            let problem = r.error("handover_timeout", &reason, &remedy);
            r.problems.push(Problem { severity: Severity::Warning, ..problem });
            Some(most)
        }
    }
}

/// `max_key_age`, never below the interval: a key would be too old before its successor is due.
fn max_key_age(r: &mut Reader<'_>, interval_s: Option<u64>) -> Option<Duration> {
    let given = r.number("max_key_age", &KEY_AGE);
    let interval = interval_s?;
    match given {
        Given::Wrong => None,
        Given::Nothing => Some(DEFAULT_KEY_AGE_S.max(interval.saturating_mul(2))),
        Given::Value(age) if unsigned(age) >= interval => Some(unsigned(age)),
        Given::Value(_) => {
            let reason = format!("is below key_update_interval, {interval} s");
            let remedy = "give at least twice key_update_interval, or remove the line";
            let problem = r.error("max_key_age", &reason, remedy);
            r.problems.push(problem);
            None
        }
    }
    .map(Duration::from_secs)
}

/// The name of a file, as written.
fn path(r: &mut Reader<'_>, name: &str, what: &str) -> Option<String> {
    let remedy = format!("give the path of a file with {what}");
    let given = r.text(name, &remedy);
    r.required(name, given, &format!("add '{name}: PATH', a file with {what}"))
}

/// `state_dir`: an absolute path, since it names a place of the machine and not of the
/// configuration.
fn state_dir(r: &mut Reader<'_>) -> Option<Option<PathBuf>> {
    let name = "state_dir";
    let remedy = "give the absolute path of a directory on memory-backed storage, such as \
                  /run/stek_share, or remove the line";
    match r.text(name, remedy) {
        Given::Nothing => Some(None),
        Given::Wrong => None,
        Given::Value(text) if text.starts_with('/') => Some(Some(PathBuf::from(text))),
        Given::Value(text) => {
            let wrong: Given<()> =
                r.wrong(name, &Node::Text(text), "is not an absolute path", remedy);
            debug_assert!(matches!(wrong, Given::Wrong));
            None
        }
    }
}

/// `ticket_scope`: one of two words.
fn ticket_scope(r: &mut Reader<'_>) -> Option<TicketScope> {
    let (name, remedy) =
        ("ticket_scope", "give site or host, or remove the line, which means site");
    match r.text(name, remedy) {
        Given::Nothing => Some(TicketScope::Site),
        Given::Wrong => None,
        Given::Value(word) => TicketScope::parse(&word).or_else(|| {
            let problem = r.error(name, "is neither site nor host", remedy);
            r.problems.push(problem);
            None
        }),
    }
}

const NO_SUBJECT: &str = "is not a subject of the form /C=US/O=Example/CN=name";
const SUBJECT_REMEDY: &str = "give what 'openssl x509 -noout -subject -nameopt compat -in FILE' \
                              prints after 'subject='";

/// `cert_verify_str`, in the one-line form of OpenSSL's X509_NAME_oneline, as the original has
/// it. Any other form could never equal a certificate's subject.
fn cert_verify_str(r: &mut Reader<'_>) -> Option<String> {
    let (name, remedy) = ("cert_verify_str", SUBJECT_REMEDY);
    let subject = r.text_or_empty(name, remedy).or(String::new())?;
    if subject.is_empty() {
        let reason = "is not given, so any certificate of root_cert_file may join the group";
        let problem = Problem { value: None, ..r.error(name, reason, remedy) };
        // Where the option is absent there is no line to point at.
        let line = problem.line.filter(|_| r.places.key(name, 0).is_some());
        r.problems.push(Problem { severity: Severity::Warning, ..problem.at(line) });
    } else if !is_one_line(&subject) {
        let problem = r.error(name, NO_SUBJECT, remedy);
        r.problems.push(problem);
        return None;
    }
    Some(subject)
}

/// `cert_verify_str` of an entry of the list. An empty one is refused: it could be meant to say
/// that any certificate is good enough for this server.
fn own_subject(r: &mut Reader<'_>) -> Option<String> {
    let remedy = format!("{SUBJECT_REMEDY}, or remove the line");
    let Given::Value(subject) = r.text("cert_verify_str", &remedy) else { return None };
    let reason = match is_one_line(&subject) {
        false => Some(NO_SUBJECT.to_owned()),
        true => {
            (subject.len() > MAX_SUBJECT).then(|| format!("is longer than {MAX_SUBJECT} bytes"))
        }
    };
    if let Some(reason) = reason {
        let problem = r.error("cert_verify_str", &reason, &remedy);
        r.problems.push(problem);
        return None;
    }
    Some(subject)
}

/// Whether a text begins with a slash, a short name or object identifier, and an equals sign.
/// More cannot be asked: values may hold slashes and equals signs themselves.
fn is_one_line(subject: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    let first = subject.strip_prefix('/').and_then(|s| s.split_once('='));
    first.is_some_and(|(name, _)| !name.is_empty() && name.chars().all(is_name))
}

fn list_of(text: &str, file: &str, nodes: &[Node], problems: &mut Vec<Problem>) -> List {
    let places = Places::of_list(text, nodes.len());
    let mut list =
        List { file: file.to_owned(), members: Vec::new(), usable: true, lines: HashMap::new() };
    let mut ids: HashMap<ServerId, usize> = HashMap::new();
    let mut ends: HashMap<(String, u16), usize> = HashMap::new();
    let mut subjects: HashMap<String, ServerId> = HashMap::new();
    for (number, (node, places)) in (1..).zip(nodes.iter().zip(&places)) {
        let Node::Mapping(pairs) = node else {
            let reason = format!("is {}, not a server", node.kind());
            let remedy = "write 'server_id: N', 'address: A' and 'port: P'";
            let problem = Problem::error(file, reason, remedy).at(places.start());
            problems.push(problem.field(format!("entry {number}")));
            list.usable = false;
            continue;
        };
        let before = problems.iter().filter(|p| p.is_error()).count();
        let prefix = format!("entry {number}: ");
        let mut r = Reader { file, pairs, places, prefix, problems: &mut *problems };
        r.check_names(
            &ENTRY_FIELDS,
            "an entry has server_id, address, port and, if need be, cert_verify_str",
        );
        let (id, address, port) = identity(&mut r);
        let subject = own_subject(&mut r);
        check_subject(&mut r, id, subject.as_deref(), &mut subjects);
        check_entry(&mut r, number, (id, address.as_deref(), port), &mut ids, &mut ends);
        if problems.iter().filter(|p| p.is_error()).count() > before {
            list.usable = false;
        } else if let (Some(id), Some(address), Some(port)) = (id, address, port) {
            list.members.push(Member { id, address, port, subject });
            list.lines.extend(places.start().map(|line| (id, line)));
        }
    }
    list
}

/// An entry's own subject is no other entry's.
fn check_subject(
    r: &mut Reader<'_>,
    id: Option<ServerId>,
    subject: Option<&str>,
    subjects: &mut HashMap<String, ServerId>,
) {
    let Some((id, subject)) = id.zip(subject) else { return };
    if let Some(first) = subjects.get(subject).filter(|first| **first != id) {
        let reason = format!(
            "is the subject of server_id {first} too, so that server_id {id} could speak as that \
             server"
        );
        let remedy = "give each server a certificate with a subject of its own";
        let problem = r.error("cert_verify_str", &reason, remedy);
        r.problems.push(problem);
    } else {
        subjects.insert(subject.to_owned(), id);
    }
}

/// Checks an entry's values against those of the entries before it, and whether other servers can
/// dial its address.
fn check_entry(
    r: &mut Reader<'_>,
    number: usize,
    (id, address, port): (Option<ServerId>, Option<&str>, Option<u16>),
    ids: &mut HashMap<ServerId, usize>,
    ends: &mut HashMap<(String, u16), usize>,
) {
    if let Some(first) = id.and_then(|id| ids.get(&id)) {
        let reason = format!("is the server_id of entry {first} too");
        let problem = r.error("server_id", &reason, "give each server a number of its own");
        r.problems.push(problem);
    } else {
        ids.extend(id.map(|id| (id, number)));
    }
    if let Some(reason) = address.and_then(address::undialable) {
        let problem = r.error("address", reason, "give the address that the others connect to");
        r.problems.push(problem);
    }
    let Some((address, port)) = address.zip(port) else {
        return;
    };
    let end = (address::canonical(address), port);
    if let Some(first) = ends.get(&end) {
        let reason = format!("{} is in entry {first} too", joined(address, port));
        let remedy = "give each server an address and port of its own";
        let problem = Problem { value: None, ..r.error("address", &reason, remedy) };
        r.problems.push(problem);
    } else {
        ends.insert(end, number);
    }
}

/// A number whose range begins at 0 or above, so that nothing is lost.
fn unsigned(number: i64) -> u64 {
    number.unsigned_abs()
}

fn millis(number: i64) -> Duration {
    Duration::from_millis(unsigned(number))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
