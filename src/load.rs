//! Reads the configuration files and certificates into checked settings.
//!
//! What values may be is [`crate::core::config`]'s to say, and what a certificate must be is
//! [`crate::transport::tls`]'s; this module finds and reads files and turns each fault into a line
//! for the operator. Invariants:
//! - Nothing here waits: no name is resolved, no passphrase is asked for, and a pipe or device in
//!   place of a file is refused.
//! - One call tells the problems of all files, as far as one does not hide the others.
//! - Bytes of a private key are erased after use and appear in no problem.
//!
//! Long because: each file has its own faults, and each fault is a line in words; the half of it is sentences.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::core::config::{
    check_interval, check_loopback, check_membership, check_subjects, parse_conf, parse_list, Conf,
    List, Member, Oneself, Paths, Problem, Settings, Severity, MAX_TEXT,
};
use crate::log_sink::Log;
use crate::pem::{self, Misfit, Wanted};
use crate::transport::issuer::Issuer;
use crate::transport::names::Names;
use crate::transport::tls::{Tls, TlsError};

/// The largest file of certificates, in bytes: five times a distribution's whole bundle of roots.
const MAX_PEM: usize = 1 << 20;

/// The largest file of the host's that is read as text, in bytes: a line for each of some ten thousand sites.
const MAX_HOST_TEXT: usize = 16 << 20;

/// The remedy for a server configuration that is not where plugin.config has it.
pub const CORRECT_PLUGIN_CONFIG: &str = "correct the path in plugin.config";

/// The remedy for a file that this process may not read.
pub const LET_READ: &str =
    "let the user that runs Traffic Server read it and enter its directories";

/// Where files with relative names are looked for, in this order; inside a file, the file's own
/// directory comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// The process's working directory.
    pub working: PathBuf,
    /// Traffic Server's installation prefix.
    pub install: PathBuf,
    /// Traffic Server's configuration directory.
    pub config: PathBuf,
}

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the two YAML files say.
    pub settings: Settings,
    /// The certificates, ready for use.
    pub tls: Tls,
    /// What the certificates' files looked like before they were read.
    pub stamps: Stamps,
    /// What the operator should look at nevertheless.
    pub warnings: Vec<Problem>,
    /// What is as it is meant to be, and worth knowing.
    pub notes: Vec<Problem>,
    /// How each line about the server's own certificate begins.
    pub certificate_place: String,
}

/// Certificates that can be used.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Loaded and checked.
    pub tls: Tls,
    /// What their files looked like before they were read.
    pub stamps: Stamps,
    /// What the operator should look at nevertheless.
    pub warnings: Vec<Problem>,
    /// See [`Loaded::certificate_place`].
    pub certificate_place: String,
}

/// What the three files of a server's identity look like from outside, to tell when they changed:
/// root, certificate, key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamps([Option<Stamp>; 3]);

impl Stamps {
    /// As the files are now.
    pub fn of(settings: &Settings) -> Stamps {
        let paths =
            [&settings.root_cert_file, &settings.server_cert_file, &settings.server_key_file];
        Stamps(paths.map(|path| Stamp::of(path)))
    }
}

/// One file from outside. The inode tells files apart that were put in each other's place within
/// one tick of the file system's clock; the time of the last change of status, a new mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` if there is no such file, or it may not be looked at.
    fn of(path: &Path) -> Option<Stamp> {
        let metadata = fs::metadata(path).ok()?;
        Some(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// A configuration that cannot be used.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The errors, at least one.
    pub problems: Vec<Problem>,
    /// What else the operator should look at.
    pub warnings: Vec<Problem>,
}

impl Refused {
    /// The errors in words.
    pub fn lines(&self) -> Vec<String> {
        self.problems.iter().map(Problem::to_string).collect()
    }

    /// Tells all of it.
    pub fn tell(&self, log: &Log) {
        tell(log, &self.warnings);
        tell(log, &self.problems);
    }

    /// Whether all that is wrong may pass by itself, so that it is worth another look.
    pub fn passes(&self) -> bool {
        self.problems.iter().all(|problem| problem.passes)
    }
}

/// Loads the configuration that `argument`, from plugin.config, names.
///
/// # Errors
/// All that is wrong with it, as far as it can be told before the first errors are mended.
pub fn load(argument: &str, dirs: &Dirs) -> Result<Loaded, Refused> {
    let mut problems = Vec::new();
    let loaded = try_load(argument, dirs, &mut problems);
    let (notes, problems): (Vec<_>, Vec<_>) = problems.into_iter().partition(Problem::is_note);
    let (problems, warnings): (Vec<_>, Vec<_>) = problems.into_iter().partition(Problem::is_error);
    match loaded {
        Some((settings, tls, stamps, certificate_place)) if problems.is_empty() => {
            Ok(Loaded { settings, tls, stamps, warnings, notes, certificate_place })
        }
        _ => Err(Refused { problems, warnings }),
    }
}

/// The server list that the configuration which `argument` names leads to now, whether this server is
/// in it or not; `None` if there is none that could be used.
pub fn load_server_list(argument: &str, dirs: &Dirs) -> Option<Vec<Member>> {
    let bases = [&*dirs.working, &*dirs.install, &*dirs.config];
    let (path, text) = find(argument, &bases).and_then(read_text).ok()?;
    let conf = parse_conf(&text, &path.to_string_lossy()).0?;
    let own = path.parent().unwrap_or(Path::new(""));
    let bases = [own, &*dirs.working, &*dirs.install, &*dirs.config];
    let (list, _) = read_list(&conf, &bases)?.ok()?;
    list.filter(|list| list.usable).map(|list| list.members)
}

/// Loads anew the certificates that `settings` name. `file` is the server configuration's name in
/// problems.
///
/// # Errors
/// As [`load`].
pub fn load_certificates(settings: &Settings, file: &str) -> Result<Certificates, Refused> {
    let mut problems = Vec::new();
    let blame = Unplaced(file);
    let named = |path: &Path| Some(path.to_string_lossy().into_owned());
    let names = PemNames {
        root: named(&settings.root_cert_file),
        chain: named(&settings.server_cert_file),
        key: named(&settings.server_key_file),
    };
    let pems = Pems::load(&blame, &names, &[Path::new("")], &mut problems);
    let entry = settings.members.iter().find(|member| member.id == settings.server_id);
    let subject = Subject {
        common: &settings.cert_verify_str,
        own: entry.and_then(|entry| entry.subject.as_deref()),
        own_error: &|reason, remedy| blame.error("server_list_file", reason, remedy),
    };
    let tls = pems.as_ref().and_then(|pems| make_tls(&blame, pems, &subject, &mut problems));
    let (problems, warnings): (Vec<_>, Vec<_>) = problems.into_iter().partition(Problem::is_error);
    match (tls, pems) {
        (Some(tls), Some(pems)) if problems.is_empty() => {
            let certificate_place = pems.chain_place(&blame);
            Ok(Certificates { tls, stamps: pems.stamps(), warnings, certificate_place })
        }
        _ => Err(Refused { problems, warnings }),
    }
}

/// A warning if a certificate in use expires soon, or has expired. `place` is how lines about it begin, see
/// [`Loaded::certificate_place`].
pub fn expiry(place: &str, tls: &Tls) -> Option<Problem> {
    let (reason, remedy) = expiry_words(tls)?;
    Some(Problem::said(&format!("{place}{reason}; {remedy}")))
}

/// A file of the host's, to look at; `None` if it cannot be read, or is larger than any of its kind.
pub fn host_file(path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    read_file(path, MAX_PEM).ok()
}

/// The same as text, whatever bytes it has; one may be larger than files of certificates are.
///
/// # Errors
/// Why it cannot be read, in words that follow its name.
pub fn try_host_text(path: &Path) -> Result<String, String> {
    let bytes = read_file(path, MAX_HOST_TEXT).map_err(|unread| unread.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Turns what is wrong with an option's value into the operator's line.
trait Blame {
    fn error(&self, option: &str, reason: String, remedy: &str) -> Problem;

    fn warning(&self, option: &str, reason: String, remedy: &str) -> Problem {
        Problem { severity: Severity::Warning, ..self.error(option, reason, remedy) }
    }

    /// See [`Conf::is_open_door`].
    fn is_open_door(&self, _: &Problem) -> bool {
        false
    }
}

impl Blame for Conf {
    fn error(&self, option: &str, reason: String, remedy: &str) -> Problem {
        Conf::error(self, option, reason, remedy)
    }

    fn is_open_door(&self, problem: &Problem) -> bool {
        Conf::is_open_door(self, problem)
    }
}

/// A configuration of which only the name is known now, so that lines have no number.
struct Unplaced<'a>(&'a str);

impl Blame for Unplaced<'_> {
    fn error(&self, option: &str, reason: String, remedy: &str) -> Problem {
        Problem::error(self.0, reason, remedy).field(option)
    }
}

fn try_load(
    argument: &str,
    dirs: &Dirs,
    problems: &mut Vec<Problem>,
) -> Option<(Settings, Tls, Stamps, String)> {
    let bases = [&*dirs.working, &*dirs.install, &*dirs.config];
    let (path, text) = match find(argument, &bases).and_then(read_text) {
        Ok(found) => found,
        Err(unread) => {
            let remedy = unread.remedy(CORRECT_PLUGIN_CONFIG);
            let problem = Problem::error(argument, unread.to_string(), remedy);
            problems.push(problem.passing(unread.passes()));
            return None;
        }
    };
    let (conf, told) = parse_conf(&text, &path.to_string_lossy());
    problems.extend(told);
    let mut conf = conf?;
    let own = path.parent().unwrap_or(Path::new(""));
    let bases = [own, &dirs.working, &dirs.install, &dirs.config];

    let list = load_list(&conf, &bases, problems);
    if let Some(list) = list.as_ref().filter(|_| conf.is_auto()) {
        problems.extend(find_itself(&mut conf, list, &bases));
    }
    problems.extend(list.as_ref().and_then(|list| check_membership(&conf, list)));
    if list.as_ref().is_some_and(List::names_all_subjects) {
        problems.retain(|problem| !conf.is_open_door(problem));
    }
    problems.extend(list.as_ref().and_then(|list| check_subjects(&conf, list)));
    problems.extend(list.as_ref().and_then(check_loopback));
    problems.extend(check_interval(&conf));
    let names = PemNames {
        root: conf.root_cert_file.clone(),
        chain: conf.server_cert_file.clone(),
        key: conf.server_key_file.clone(),
    };
    let pems = Pems::load(&conf, &names, &bases, problems);
    let tls = pems.as_ref().and_then(|pems| {
        let own = list.as_ref().zip(conf.server_id);
        let own = own.and_then(|(list, id)| Some((list, id, list.subject_of(id)?)));
        let subject = Subject {
            common: conf.cert_verify_str.as_deref()?,
            own: own.map(|(_, _, subject)| subject),
            own_error: &|reason, remedy| match own {
                Some((list, id, _)) => list.error(id, "cert_verify_str", reason, remedy),
                None => conf.error("cert_verify_str", reason, remedy),
            },
        };
        make_tls(&conf, pems, &subject, problems)
    });
    let pems = pems?;
    let (stamps, place) = (pems.stamps(), pems.chain_place(&conf));
    let settings = conf.settle(list?, pems.paths())?;
    Some((settings, tls?, stamps, place))
}

/// A list as it was parsed, with its problems.
type ParsedList = (Option<List>, Vec<Problem>);

/// Finds and parses the list that a configuration names, if it names one.
fn read_list(conf: &Conf, bases: &[&Path]) -> Option<Result<ParsedList, Unread>> {
    let named = conf.server_list_file.as_deref()?;
    let read = find(named, bases).and_then(read_text);
    Some(read.map(|(path, text)| parse_list(&text, &path.to_string_lossy())))
}

fn load_list(conf: &Conf, bases: &[&Path], problems: &mut Vec<Problem>) -> Option<List> {
    match read_list(conf, bases)? {
        Ok((list, told)) => {
            problems.extend(told);
            list
        }
        Err(unread) => {
            let named = conf.server_list_file.as_deref().unwrap_or_default();
            problems.push(unread.problem(conf, "server_list_file", named));
            None
        }
    }
}

/// Finds this server in the list, by its certificate's names, else by where this machine is.
fn find_itself(conf: &mut Conf, list: &List, bases: &[&Path]) -> Option<Problem> {
    // What is wrong with the file is told where it is loaded.
    let chain = conf.server_cert_file.as_deref().and_then(|named| find(named, bases).ok());
    let chain = chain.and_then(|path| read_file(&path, MAX_PEM).ok());
    let names = chain.and_then(|chain| Names::of_pem(&chain)).unwrap_or_default();
    let host = host_name();
    let own = Oneself {
        has_name: &|wanted| names.has(wanted),
        is_at: &|address| is_here(address, &host) || names.has_address(address),
    };
    conf.find_itself(list, &own)
}

/// Whether an address is this machine's, or a name is its host name, perhaps with a domain behind it.
/// Looks up no name.
fn is_here(address: &str, host: &str) -> bool {
    match address.parse::<IpAddr>() {
        // An address of another machine cannot be bound.
        Ok(ip) => UdpSocket::bind((ip, 0)).is_ok(),
        Err(_) if host.is_empty() => false,
        Err(_) => {
            let [name, host] = [address, host].map(str::to_ascii_lowercase);
            let behind = name.strip_prefix(&host);
            behind.is_some_and(|behind| behind.is_empty() || behind.starts_with('.'))
        }
    }
}

/// This machine's host name; empty if it has none.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// A file of PEM text: where it was found, what it looked like before, and what it holds.
struct Pem {
    path: PathBuf,
    stamp: Option<Stamp>,
    bytes: Zeroizing<Vec<u8>>,
}

impl Pem {
    fn load(
        blame: &dyn Blame,
        option: &str,
        named: Option<&str>,
        bases: &[&Path],
        problems: &mut Vec<Problem>,
    ) -> Option<Pem> {
        let named = named?;
        let read = find(named, bases).and_then(|path| {
            // Before the bytes: what changes afterwards is then seen as a change.
            let stamp = Stamp::of(&path);
            let bytes = read_file(&path, MAX_PEM)?;
            Ok(Pem { path, stamp, bytes })
        });
        read.map_err(|unread| problems.push(unread.problem(blame, option, named))).ok()
    }

    fn shown(&self) -> String {
        shown_path(&self.path)
    }
}

fn shown_path(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

/// The names of the three files, as they are written.
struct PemNames {
    root: Option<String>,
    chain: Option<String>,
    key: Option<String>,
}

/// The three files that make up this server's identity.
struct Pems {
    root: Pem,
    chain: Pem,
    key: Pem,
}

impl Pems {
    /// Reads all three, so that the problems of each are told.
    fn load(
        blame: &dyn Blame,
        names: &PemNames,
        bases: &[&Path],
        problems: &mut Vec<Problem>,
    ) -> Option<Pems> {
        let mut load = |option, named: &Option<String>| {
            Pem::load(blame, option, named.as_deref(), bases, problems)
        };
        let root = load("root_cert_file", &names.root);
        let chain = load("server_cert_file", &names.chain);
        let key = load("server_key_file", &names.key);
        if let Some(key) = &key {
            problems.extend(check_mode(blame, key));
        }
        Some(Pems { root: root?, chain: chain?, key: key? })
    }

    /// See [`Loaded::certificate_place`].
    fn chain_place(&self, blame: &dyn Blame) -> String {
        let problem = blame.warning("server_cert_file", String::new(), "");
        problem.value(self.chain.shown()).place()
    }

    fn stamps(&self) -> Stamps {
        Stamps([self.root.stamp, self.chain.stamp, self.key.stamp])
    }

    fn paths(self) -> Paths {
        Paths {
            root_cert_file: self.root.path,
            server_cert_file: self.chain.path,
            server_key_file: self.key.path,
        }
    }
}

/// A warning if others than the key file's owner may read or change it. One that belongs to root and that
/// the server's own group may read is as private, and where a key is mounted there is no other way.
fn check_mode(blame: &dyn Blame, key: &Pem) -> Option<Problem> {
    let metadata = fs::metadata(&key.path).ok()?;
    let mode = metadata.permissions().mode() & 0o777;
    let is_shared_by_root = || metadata.uid() == 0 && mode & 0o037 == 0 && is_own_group(&metadata);
    (mode & 0o066 != 0 && !is_shared_by_root()).then(|| {
        let reason = format!("has mode {mode:04o}, so others than its owner can read or change it");
        let remedy = "chmod 600 it, owned by the user that runs Traffic Server; or owned by root \
                      with mode 640 and that user's own group";
        blame.warning("server_key_file", reason, remedy).value(key.shown())
    })
}

/// Whether a file's group is the one of this process.
fn is_own_group(metadata: &fs::Metadata) -> bool {
    fs::metadata("/proc/thread-self").is_ok_and(|own| own.gid() == metadata.gid())
}

/// Blocks of a file with certificates that nobody reads.
fn check_blocks(blame: &dyn Blame, option: &str, pem: &Pem) -> Option<Problem> {
    let (count, line, what) = pem::unread(&pem.bytes)?;
    let reason = match count {
        1 => format!("holds 1 block that is not read, in line {line}: {what}"),
        _ => format!("holds {count} blocks that are not read, the first in line {line}: {what}"),
    };
    let remedy =
        "write certificates as '-----BEGIN CERTIFICATE-----' blocks, each line of its own; \
                  take out what is none";
    Some(blame.warning(option, reason, remedy).value(pem.shown()))
}

/// The subject that this server's certificate has to have.
struct Subject<'a> {
    /// `cert_verify_str` of the configuration.
    common: &'a str,
    /// That of this server's entry in the list, which takes precedence over it.
    own: Option<&'a str>,
    /// An error about the latter.
    own_error: &'a dyn Fn(String, &str) -> Problem,
}

fn make_tls(
    blame: &dyn Blame,
    pems: &Pems,
    wanted: &Subject<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Tls> {
    let (root, chain, key) = (&pems.root.bytes, &pems.chain.bytes, &pems.key.bytes);
    match Tls::from_pem_as(root, chain, key, wanted.common, wanted.own) {
        Ok(tls) => {
            problems.extend(expiry_words(&tls).map(|(reason, remedy)| {
                blame.warning("server_cert_file", reason, &remedy).value(pems.chain.shown())
            }));
            problems.extend(check_blocks(blame, "root_cert_file", &pems.root));
            problems.extend(check_blocks(blame, "server_cert_file", &pems.chain));
            // Who goes by another name needs none.
            let other = wanted.own.unwrap_or(wanted.common);
            if tls.subject().is_empty() && (other.is_empty() || other.starts_with('/')) {
                problems.retain(|problem| !blame.is_open_door(problem));
                let problem =
                    blame.warning("server_cert_file", NO_SUBJECT.to_owned(), GIVE_SUBJECT);
                problems.push(problem.value(pems.chain.shown()));
            }
            Some(tls)
        }
        Err(error) => {
            let problem = match (&error, wanted.own) {
                (TlsError::SubjectMismatch { found }, Some(own)) => {
                    let reason = format!("{}, {found}", not_ours(own));
                    let remedy = "make both the same; the other servers refuse this one otherwise";
                    (wanted.own_error)(reason, remedy).value(format!("\"{own}\""))
                }
                _ => tls_problem(blame, pems, wanted.common, &error),
            };
            // What renews certificates puts files in place, which a running server takes over by itself.
            let passes = !matches!(error, TlsError::SubjectMismatch { .. });
            problems.push(problem.passing(passes));
            None
        }
    }
}

/// What is said of a certificate that expires soon or has expired, and what to do.
fn expiry_words(tls: &Tls) -> Option<(String, String)> {
    let (ending, not_after) = tls.expiry().filter(|(ending, _)| ending.is_soon())?;
    let which = if !ending.is_authority {
        "holds a certificate that".to_owned()
    } else {
        format!("holds a certificate that hangs on {}, which", ending.subject)
    };
    let renew = if ending.is_authority { "renew that one first" } else { "renew it" };
    let reason = format!("{which} {ending}, at {not_after}");
    // As the words above round it.
    let remedy = if ending.left.as_secs() == 0 {
        format!("{renew}: the other servers refuse this one")
    } else {
        format!("{renew} before then: the other servers refuse this one afterwards")
    };
    Some((reason, remedy))
}

/// Said of a subject that this server's certificate does not have.
fn not_ours(wanted: &str) -> &'static str {
    if wanted.starts_with('/') {
        "is not the subject of this server's own certificate"
    } else {
        "is not a name of this server's own certificate"
    }
}

/// Tells the operator of these.
pub fn tell(log: &Log, problems: &[Problem]) {
    for problem in problems {
        let line = problem.to_string();
        match problem.severity {
            Severity::Note => log.note(line),
            Severity::Warning => log.warning(line),
            Severity::Error => log.error(line),
        }
    }
}

/// The operator's line for certificates that cannot be used.
fn tls_problem(blame: &dyn Blame, pems: &Pems, wanted: &str, error: &TlsError) -> Problem {
    let root = |reason: String, remedy| {
        blame.error("root_cert_file", reason, remedy).value(pems.root.shown())
    };
    let chain = |reason: String, remedy| {
        blame.error("server_cert_file", reason, remedy).value(pems.chain.shown())
    };
    let key = |reason: String, remedy| {
        blame.error("server_key_file", reason, remedy).value(pems.key.shown())
    };
    let no_certificate = |pem: &Pem| match pem::misfit(&pem.bytes, Wanted::Certificates) {
        Some(Misfit { is, remedy }) => (format!("holds no certificate in PEM form{is}"), remedy),
        None => (
            "holds no certificate in PEM form".to_owned(),
            "give a file with '-----BEGIN CERTIFICATE-----' blocks, all of them whole",
        ),
    };
    match error {
        TlsError::RootGarbage => {
            let (reason, remedy) = no_certificate(&pems.root);
            root(reason, remedy)
        }
        TlsError::ChainGarbage => {
            let (reason, remedy) = no_certificate(&pems.chain);
            chain(reason, remedy)
        }
        TlsError::KeyGarbage => match pem::misfit(&pems.key.bytes, Wanted::Key) {
            Some(Misfit { is, remedy }) => {
                key(format!("holds no private key in PEM form{is}"), remedy)
            }
            None => key(
                "holds no private key in PEM form".to_owned(),
                "give a file with a whole '-----BEGIN PRIVATE KEY-----' block",
            ),
        },
        TlsError::KeyEncrypted => key(
            "holds a private key that is protected by a passphrase, which nobody could type here"
                .to_owned(),
            "store it without one: openssl pkey -in FILE -out NEWFILE",
        ),
        TlsError::KeyMismatch { subject } => key(
            format!(
                "is not the key of the first certificate in \"{}\", {subject}",
                pems.chain.path.display()
            ),
            "give the key that belongs to it; this server's own certificate has to come first there",
        ),
        TlsError::Expired { subject, not_after } => chain(
            format!("holds the certificate {subject}, which expired at {not_after}"),
            "renew it; no other server accepts an expired one",
        ),
        TlsError::NotYetValid { subject, not_before } => chain(
            format!("holds the certificate {subject}, which is not valid before {not_before}"),
            "check this machine's clock and time zone, or issue it anew; it is tried again by \
             itself, every 30 s",
        ),
        TlsError::NoSubject => chain(NO_SUBJECT.to_owned(), GIVE_SUBJECT),
        TlsError::SubjectMismatch { found } if found.trim() == wanted => chain(
            format!("holds a certificate whose subject, \"{found}\", begins or ends with a blank"),
            "issue it without that blank, which a configuration cannot say",
        ),
        TlsError::SubjectMismatch { found } => blame
            .error(
                "cert_verify_str",
                format!("{}, {found}", not_ours(wanted)),
                "make both the same on all servers; the others refuse this one otherwise",
            )
            .value(format!("\"{wanted}\"")),
        TlsError::ChainUntrusted { subject, reason, code, not_after, issuer } => chain(
            format!(
                "does not verify against root_cert_file, \"{}\": {subject}: {}",
                pems.root.path.display(),
                match *code {
                    EXPIRED => format!("{reason}, at {not_after}"),
                    _ => reason.clone(),
                }
            ),
            untrusted_remedy(*code, *issuer),
        ),
        TlsError::NoHandshake { leaf, reason, code, sent } => chain(
            format!(
                "leads to no handshake, not even of this server with itself, by {leaf}: {reason}{}",
                match *code {
                    TOO_LONG => format!(" ({sent} bytes of certificates)"),
                    _ => String::new(),
                }
            ),
            match *code {
                TOO_LONG => {
                    "take out of it all that does not lead from this server's certificate to the \
                     root, such as a bundle of roots; peers read 100 KiB at most"
                }
                _ => {
                    "give certificates with keys of P-256 or RSA 2048 and signatures by SHA-256, or \
                     allow what these have in this machine's openssl.cnf (OPENSSL_CONF)"
                }
            },
        ),
        TlsError::OpenSsl(stack) => {
            chain(format!("is refused by OpenSSL: {stack}"), "give keys of 2048 bits RSA or P-256")
        }
    }
}

/// Said of a certificate by which nobody can be told.
const NO_SUBJECT: &str = "holds a certificate that has no subject, by which servers are told";
const GIVE_SUBJECT: &str = "issue one with a subject (cert-manager: commonName), and give that in \
                            cert_verify_str, without which any certificate of root_cert_file may \
                            join the group";

/// OpenSSL's `SSL_R_EXCESSIVE_MESSAGE_SIZE`, `X509_V_ERR_CERT_NOT_YET_VALID` and `..._HAS_EXPIRED`.
const TOO_LONG: i32 = 152;
const NOT_YET_VALID: i32 = 9;
const EXPIRED: i32 = 10;

/// What to do about a chain, by OpenSSL's `X509_V_ERR_` number.
fn untrusted_remedy(code: i32, issuer: Issuer) -> &'static str {
    match (code, issuer) {
        (7 | 18, Issuer::Itself) => {
            "the authority that issued it has the same name: issue one of the two with a name of its own"
        }
        (2 | 20 | 21, Issuer::CrossSigned) => {
            "of the certificates of this name in this file the first counts: put the one that leads to \
             the root first, and take the others out"
        }
        (7 | 20 | 21, Issuer::Several) => {
            "several authorities there have the name of its issuer: give only the one whose key \
             signed it, or issue it with a key identifier of that one (authorityKeyIdentifier)"
        }
        (20 | 21, Issuer::Unfit) => {
            "an authority of its issuer's name is there, and is not the one: their key identifiers \
             differ, or an extension of one of the two is malformed; give the one that issued it, or \
             issue it anew"
        }
        (code, _) => remedy_by_code(code),
    }
}

fn remedy_by_code(code: i32) -> &'static str {
    match code {
        2 | 18..=21 => "give the root that issued it, and add certificates in between to this file",
        4..=8 => {
            "it was changed, or signed with another key than that of the authority of this name: \
             give the authority that issued it, or issue it anew"
        }
        NOT_YET_VALID => "check this machine's clock and time zone; it is tried again by itself, every 30 s",
        EXPIRED => "renew that one",
        13..=16 => "issue it anew with readable dates",
        22 => "give a chain of fewer authorities",
        24 | 79 => {
            "issue the authority's certificate with basicConstraints CA:TRUE and keyUsage keyCertSign"
        }
        25 => {
            "the authority above allows fewer authorities below itself (pathlen): issue from it \
             directly, or issue that authority anew with a larger pathlen"
        }
        26 => {
            "issue it for servers: extendedKeyUsage serverAuth, keyUsage digitalSignature; \
             authorities above with serverAuth too, or without extendedKeyUsage"
        }
        27 | 28 => "take the trust settings off it: openssl x509 -clrtrust -clrreject",
        32 => "issue the authority's certificate with keyUsage keyCertSign",
        34 | 41 => {
            "it has a critical extension that OpenSSL does not know or that is malformed: issue it \
             without that"
        }
        35 | 36 | 42 | 43 => "issue it without certificate policies that nothing here can meet",
        39 => "issue it with keyUsage digitalSignature",
        47 | 48 => {
            "the name constraints of an authority above forbid its names: issue it with names that \
             they allow"
        }
        49..=53 => "issue the authority's certificate with name constraints that OpenSSL can read",
        66 | 67 => "issue it anew with a key of at least 2048 bits RSA, or P-256",
        68 => "issue it anew with a signature by SHA-256",
        71..=78 => "issue it anew with a signature by SHA-256 that this OpenSSL knows",
        85..=93 => "issue it anew as RFC 5280 has it, by a newer tool",
        94 => "issue it anew with a named curve (openssl ecparam -param_enc named_curve)",
        _ => "issue it anew, as 'stekctl init' does",
    }
}

/// Why a file was not read. The texts complete "NAME ...".
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("names no file")]
    Unnamed,
    #[error("is not there: looked for {}", shown(.0))]
    Absent(Vec<PathBuf>),
    #[error("cannot be read, at {}: permission denied", .0.display())]
    Denied(PathBuf),
    #[error("is a directory, at {}", .0.display())]
    Directory(PathBuf),
    #[error("is a device, pipe or socket, not a file, at {}", .0.display())]
    Special(PathBuf),
    #[error("is larger than {limit} bytes, at {}", .path.display())]
    TooLarge { path: PathBuf, limit: usize },
    #[error("is not UTF-8 text, from byte {byte} on, at {}", .path.display())]
    NotText { path: PathBuf, byte: usize },
    #[error("cannot be read, at {}: {error}", .path.display())]
    Failed { path: PathBuf, error: io::Error },
}

impl Unread {
    fn remedy<'a>(&self, correct_path: &'a str) -> &'a str {
        match self {
            Unread::Unnamed
            | Unread::Absent(_)
            | Unread::Directory(_)
            | Unread::Special(_)
            | Unread::TooLarge { .. } => correct_path,
            Unread::Denied(_) => LET_READ,
            Unread::NotText { .. } => "save it as UTF-8",
            Unread::Failed { .. } => "mend the file or its file system, or give another path",
        }
    }

    /// Whether somebody may be about to put the file in place, or to give a right to it.
    fn passes(&self) -> bool {
        matches!(self, Unread::Absent(_) | Unread::Denied(_) | Unread::Failed { .. })
    }

    fn problem(&self, blame: &dyn Blame, option: &str, named: &str) -> Problem {
        let remedy = self.remedy("correct the path");
        let problem = blame.error(option, self.to_string(), remedy);
        problem.value(format!("\"{named}\"")).passing(self.passes())
    }

    fn of(path: &Path, error: io::Error) -> Unread {
        let path = path.to_owned();
        match error.kind() {
            ErrorKind::PermissionDenied => Unread::Denied(path),
            ErrorKind::NotFound | ErrorKind::NotADirectory => Unread::Absent(vec![path]),
            _ => Unread::Failed { path, error },
        }
    }
}

fn shown(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
    paths.join(", ")
}

/// The first file of that name: the name itself if it is absolute, else below the bases in their
/// order. One that may not be looked at counts only if there is no other.
fn find(named: &str, bases: &[&Path]) -> Result<PathBuf, Unread> {
    if named.is_empty() {
        return Err(Unread::Unnamed);
    }
    let mut tried: Vec<PathBuf> = Vec::new();
    let mut hidden = None;
    for base in bases {
        // An absolute name replaces the base.
        let path = base.join(named);
        if tried.contains(&path) {
            continue;
        }
        match fs::metadata(&path).map_err(|error| Unread::of(&path, error)) {
            Ok(_) => return Ok(path),
            Err(Unread::Absent(_)) => {}
            Err(unread) => hidden = hidden.or(Some(unread)),
        }
        tried.push(path);
    }
    Err(hidden.unwrap_or(Unread::Absent(tried)))
}

fn read_text(path: PathBuf) -> Result<(PathBuf, String), Unread> {
    let mut bytes = read_file(&path, MAX_TEXT)?;
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok((path, text)),
        Err(e) => Err(Unread::NotText { path, byte: e.utf8_error().valid_up_to() }),
    }
}

/// All of a file of at most `limit` bytes. The bytes are erased when dropped and never moved, so
/// that no copy of a key stays behind.
fn read_file(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, Unread> {
    let failed = |error| Unread::of(path, error);
    // Without O_NONBLOCK a pipe's open would wait for a writer.
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut file = match open {
        // What a socket says, and a device whose driver is gone.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
            return Err(Unread::Special(path.to_owned()));
        }
        open => open.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(Unread::Directory(path.to_owned()));
    }
    if !metadata.is_file() {
        return Err(Unread::Special(path.to_owned()));
    }
    let too_large = || Unread::TooLarge { path: path.to_owned(), limit };
    // One byte more than the file has, to notice one that grew; files of the kernel claim to be
    // empty and get the whole limit.
    let size = match usize::try_from(metadata.len()).unwrap_or(usize::MAX) {
        0 => limit,
        size if size <= limit => size,
        _ => return Err(too_large()),
    };
    let mut bytes = Zeroizing::new(vec![0; size + 1]);
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => {
                bytes.truncate(filled);
                return Ok(bytes);
            }
            Ok(read) => filled += read,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    if size == limit {
        return Err(too_large());
    }
    let error = io::Error::other("it grew while it was read");
    Err(Unread::Failed { path: path.to_owned(), error })
}
