//! Checked configuration: what the two YAML files say, parsed once into types that cannot hold a
//! wrong value, and the problems that an operator has to hear about.
//!
//! Reads no file and resolves no path; see [`crate::load`] for that. Invariants: all problems
//! of a text are told, not only the first, and no text makes this panic.
//!
//! The way: [`parse_conf`] and [`parse_list`] make a [`Conf`] and a [`List`], in which a value
//! that was refused is absent; [`check_membership`] compares the two; [`Conf::settle`] makes
//! [`Settings`] of them when nothing is absent.

mod address;
mod identity;
mod oneself;
mod options;
mod plausible;
mod problem;
mod reader;
pub(super) mod yaml;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::identity::{certificate_name, Auto};
use self::reader::{OptionValue, Reader};
use self::yaml::{Node, Places};
use super::server_id::ServerId;

pub use self::address::no_machine;
pub use self::oneself::Oneself;
pub use self::options::{alike, changes, Absent, Change, ConfigOption, Servers, Settings, OPTIONS};
pub use self::plausible::{
    check_interval, check_loopback, loopback_among_others, LOOPBACK_MEANS, LOOPBACK_REMEDY,
};
pub use self::problem::{printable, Problem, Severity};
pub use self::yaml::MAX_TEXT;

/// Every field of an entry of the server list.
const ENTRY_FIELDS: [&str; 5] = ["server_id", "address", "port", "cert_verify_str", "voter"];

/// The most servers in a list. Raft among far fewer is slow already; this only keeps a wrong file
/// from becoming a thousand connections.
pub const MAX_MEMBERS: usize = 1000;

/// The longest subject of a member's certificate; with [`MAX_MEMBERS`] of them a list still fits
/// into a message, beside all else that is agreed.
pub const MAX_SUBJECT: usize = 512;

/// The most problems that are told of one file; what comes after them rarely adds anything.
pub const MAX_PROBLEMS: usize = 100;

/// One entry of the server list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The server's id, unique in the list.
    pub id: ServerId,
    /// IPv4, IPv6 (without brackets) or host name.
    pub address: String,
    /// TCP port, never 0.
    pub port: u16,
    /// `cert_verify_str` of the entry, if given: the subject of this server's certificate, or a
    /// `DNS:` or `URI:` name of it, in place of the configuration's.
    pub subject: Option<String>,
    /// `voter` of the entry: whether it may vote. Of those that may the first ones do, see
    /// [`super::server_list::MAX_VOTERS`].
    pub voter: bool,
}

/// Raft's timers as the operator gives them, in a valid order: `heartbeat < lower < upper`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timers {
    /// `heart_beat_interval`.
    pub heartbeat: Duration,
    /// `election_timeout_lower_bound`.
    pub election_lower: Duration,
    /// `election_timeout_upper_bound`.
    pub election_upper: Duration,
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
    /// As far as they can be used: the fields of what was refused are blank.
    settings: Settings,
    /// Whether there is no error in the file.
    usable: bool,
    places: Places,
    /// What is to be found out.
    auto: Auto,
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
        Some(Node::Mapping(pairs)) => Some(conf_of(text, file, pairs, &mut problems)),
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
    let which = if ids.len() == list.members.len() {
        "all servers".to_owned()
    } else {
        format!("servers {}", ids.join(", "))
    };
    let reason = format!(
        "{which} have the certificate subject of cert_verify_str in {}: whoever has the key of one \
         of them can speak as any of them, even after that one was removed from the list",
        conf.file
    );
    Some(if unnamed == list.members.len() {
        Problem::note(&list.file, reason, remedy)
    } else {
        Problem::warning(&list.file, reason, remedy)
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
        let own = |member: &Member| Some(member.id) == self.server_id;
        if !self.usable || !list.usable || !list.members.iter().any(own) {
            return None;
        }
        let Paths { root_cert_file, server_cert_file, server_key_file } = paths;
        let members = list.members;
        Some(Settings {
            root_cert_file,
            server_cert_file,
            server_key_file,
            members,
            ..self.settings
        })
    }
}

/// At most [`MAX_PROBLEMS`], errors before warnings if some have to go; the last one then counts those.
fn bounded(mut problems: Vec<Problem>) -> Vec<Problem> {
    if problems.len() > MAX_PROBLEMS {
        problems.sort_by_key(|p| !p.is_error());
        let left_out = problems.split_off(MAX_PROBLEMS - 1);
        problems.extend(left_out.first().map(|first| {
            let reason = format!("has {} more faults like those above", left_out.len());
            let remedy = "correct these first; the others are told then";
            Problem { severity: first.severity, ..Problem::error(&first.file, reason, remedy) }
                .at(first.line)
        }));
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
            let remedy = match yaml::odd_blank(text) {
                Some((line, odd)) => format!(
                    "take U+{:04X} out of line {line}, which looks like a blank or nothing",
                    u32::from(odd)
                ),
                None => "correct it there or just above; indent with spaces, quote odd values"
                    .to_owned(),
            };
            problems.push(Problem::error(file, e.reason, remedy).at(e.line));
            None
        }
    }
}

fn conf_of(
    text: &str,
    file: &str,
    mut pairs: Vec<(Node, Node)>,
    problems: &mut Vec<Problem>,
) -> Conf {
    let auto = Auto::take(&mut pairs);
    let places = Places::of_mapping(text);
    let prefix = String::new();
    let mut r = Reader { file, pairs: &pairs, places: &places, prefix, problems };
    let names: Vec<&str> = OPTIONS.iter().map(|option| option.name).collect();
    r.check_names(&names, "remove it, or see docs/options.md");
    let mut settings = Settings::default();
    let read = |option: &&'static ConfigOption| option.read(&mut r, &mut settings);
    let usable: Vec<&str> = OPTIONS.iter().filter(read).map(|option| option.name).collect();
    let is_usable = |name: &str| usable.contains(&name);
    let file_name = |name, path: &Path| is_usable(name).then(|| path.display().to_string());
    Conf {
        file: file.to_owned(),
        server_id: is_usable("server_id").then_some(settings.server_id).filter(|_| !auto.id),
        address: is_usable("address").then(|| settings.address.clone()).filter(|_| !auto.address),
        port: is_usable("port").then_some(settings.port).filter(|_| !auto.port),
        server_list_file: file_name("server_list_file", &settings.server_list_file),
        root_cert_file: file_name("root_cert_file", &settings.root_cert_file),
        server_cert_file: file_name("server_cert_file", &settings.server_cert_file),
        server_key_file: file_name("server_key_file", &settings.server_key_file),
        cert_verify_str: is_usable("cert_verify_str").then(|| settings.cert_verify_str.clone()),
        settings,
        usable: !problems.iter().any(Problem::is_error),
        places,
        auto,
    }
}

/// The three required fields that a configuration and an entry of the list have in common.
fn identity(r: &mut Reader<'_>) -> (Option<ServerId>, Option<String>, Option<u16>) {
    let mut own = Settings::default();
    let mut read = |name| ConfigOption::named(name).is_some_and(|option| option.read(r, &mut own));
    let (id, address, port) = (read("server_id"), read("address"), read("port"));
    (id.then_some(own.server_id), address.then_some(own.address), port.then_some(own.port))
}

const NO_SUBJECT: &str = "is not a subject of the form /C=US/O=Example/CN=name, nor DNS:name nor \
                          URI:spiffe://domain/path";
const SUBJECT_REMEDY: &str = "give what 'openssl x509 -noout -subject -nameopt compat -in FILE' \
                              prints after 'subject='";

/// `cert_verify_str` of an entry of the list. An empty one is refused: it could be meant to say
/// that any certificate is good enough for this server.
fn own_subject(r: &mut Reader<'_>) -> Option<String> {
    let remedy = format!("{SUBJECT_REMEDY}, or remove the line");
    let OptionValue::Value(subject) = r.text("cert_verify_str", &remedy) else { return None };
    let reason = match certificate_name(&subject) {
        Some(name) if name.len() <= MAX_SUBJECT => return Some(name),
        Some(_) => format!("is longer than {MAX_SUBJECT} bytes"),
        None => NO_SUBJECT.to_owned(),
    };
    r.refuse("cert_verify_str", &reason, &remedy);
    None
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
            "an entry has server_id, address, port and, if need be, cert_verify_str and voter",
        );
        let (id, address, port) = identity(&mut r);
        let subject = own_subject(&mut r);
        let voter =
            r.boolean("voter", "give false for a server that is not to vote, or remove the line");
        check_subject(&mut r, id, subject.as_deref(), &mut subjects);
        check_entry(&mut r, number, (id, address.as_deref(), port), &mut ids, &mut ends);
        if problems.iter().filter(|p| p.is_error()).count() > before {
            list.usable = false;
        } else if let (Some(id), Some(address), Some(port)) = (id, address, port) {
            let voter = voter.or(true).unwrap_or(true);
            list.members.push(Member { id, address, port, subject, voter });
            list.lines.extend(places.start().map(|line| (id, line)));
        }
    }
    if list.usable && !list.members.iter().any(|member| member.voter) {
        let reason = "has no server that votes, so that none could ever lead";
        let remedy = "remove 'voter: false' from three to seven entries";
        problems.push(Problem::error(file, reason, remedy));
        list.usable = false;
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
        r.refuse("cert_verify_str", &reason, remedy);
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
        r.refuse("server_id", &reason, "give each server a number of its own");
    } else {
        ids.extend(id.map(|id| (id, number)));
    }
    if let Some(reason) = address.and_then(address::undialable) {
        r.refuse("address", &reason, "give the address that the others connect to");
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
