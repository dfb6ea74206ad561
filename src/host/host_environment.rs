//! The Traffic Server around the plugin: settings of the host that defeat what the plugin is for,
//! and what else only the inside can tell.
//!
//! The operator may change them while the host runs, so they are looked at again and again: the
//! host's records with the metrics, its files with ours and at each reload. Invariants: a file that
//! cannot be read is no reason not to start; what came and what went is told once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use once_cell::sync::OnceCell;
use openssl::error::ErrorStack;
use openssl::x509::X509;

use super::{ats, sessions, ticket_scope};
use crate::core::authorities::Authorities;
use crate::core::client_policy::ClientPolicy;
use crate::core::config::Problem;
use crate::core::findings::{self, Finding, HostVersion, Record};
use crate::core::host_files::records::{self, Records};
use crate::core::server_status::{Hint, MAX_HINTS, MAX_ROOTS};
use crate::core::text::readable;
use crate::core::ticket_scope::TicketScope;
use crate::host_config;
use crate::load::{self, Dirs};
use crate::log_sink::Log;
use crate::transport::one_line;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct HostEnvironment {
    /// Traffic Server's version.
    pub version: Option<String>,
    /// What the operator has to look at in the host's records.
    pub records: Vec<Hint>,
    /// What is in the host's files.
    pub files: HostFiles,
    /// What was warned of when the plugin's own files in use were read.
    pub warnings: Vec<String>,
    /// What is to be said of the end of the certificates in use.
    pub certificate_warning: Option<String>,
    /// See [`crate::core::server_status::HostStatus::roots`].
    pub roots: Vec<String>,
}

/// What was found in the host's files.
#[derive(Clone, Debug, Default)]
pub struct HostFiles {
    /// What the operator has to look at.
    pub hints: Vec<Hint>,
    /// Where records are set of which there may be something to say.
    pub written: Arc<Records>,
    /// See [`crate::core::server_status::HostStatus::authorities`].
    pub authorities: Option<Authorities>,
    /// See [`crate::core::server_status::HostStatus::client_policy`].
    pub client_policy: Option<ClientPolicy>,
}

/// What was found last. Cloning makes another handle.
#[derive(Clone)]
pub struct EnvironmentWatch {
    log: Log,
    latest: Arc<Mutex<HostEnvironment>>,
}

impl EnvironmentWatch {
    /// Looks at all for the first time. Reads files, so it is not for a thread that must not wait.
    pub fn look(log: Log, dirs: &Dirs) -> EnvironmentWatch {
        let environment = EnvironmentWatch { log, latest: Arc::default() };
        environment.lock().version = ats::version().map(|version| readable(&version));
        environment.take_files(HostFiles::look(dirs));
        environment.look_at_records();
        environment
    }

    /// What was found last.
    pub fn latest(&self) -> HostEnvironment {
        self.lock().clone()
    }

    /// Looks at the host's records, which costs no more than looking them up in a table.
    pub fn look_at_records(&self) {
        let written = self.lock().files.written.clone();
        self.take_records(records(&written));
    }

    fn take_records(&self, new: Vec<Hint>) {
        let old = std::mem::replace(&mut self.lock().records, new.clone());
        // Where a record is written comes to light after what it is.
        self.tell(&old, &new, |one, other| match (one, other) {
            (Hint::Setting(one), Hint::Setting(other)) => {
                (one.kind, &one.value) == (other.kind, &other.value)
            }
            _ => one == other,
        });
    }

    /// Takes over what the host's files say now.
    pub fn take_files(&self, new: HostFiles) {
        let hints = new.hints.clone();
        let old = std::mem::replace(&mut self.lock().files, new);
        self.tell(&old.hints, &hints, Hint::eq);
    }

    /// Keeps what was told of files that are in use now.
    pub fn keep_warnings(&self, warnings: &[Problem]) {
        let words = warnings.iter().map(|problem| readable(&problem.to_string()));
        self.lock().warnings = words.take(MAX_HINTS).collect();
    }

    /// Keeps what is to be said of the end of the certificates in use. What was told of it with the rest
    /// is taken from there.
    pub fn keep_certificate_warning(&self, warning: Option<&Problem>) {
        let words = warning.map(|problem| readable(&problem.to_string()));
        let mut latest = self.lock();
        latest.warnings.retain(|known| words.as_ref() != Some(known));
        latest.certificate_warning = words;
    }

    /// Keeps the names of the authorities in use.
    pub fn keep_roots(&self, roots: &[String]) {
        self.lock().roots = roots.iter().take(MAX_ROOTS).map(|name| readable(name)).collect();
    }

    fn tell(&self, old: &[Hint], new: &[Hint], same: impl Fn(&Hint, &Hint) -> bool) {
        let is_in = |hint: &Hint, all: &[Hint]| all.iter().any(|known| same(known, hint));
        for hint in new.iter().filter(|hint| !is_in(hint, old)) {
            let is_error = matches!(hint, Hint::Setting(finding) if finding.kind.is_error());
            let line = hint.to_string();
            if is_error {
                self.log.error(line);
            } else {
                self.log.warning(line);
            }
        }
        for hint in old.iter().filter(|hint| !is_in(hint, new)) {
            self.log.note(format!("no longer so: {hint}"));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HostEnvironment> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostFiles {
    /// Reads the host's files about records, certificates and names.
    pub fn look(dirs: &Dirs) -> HostFiles {
        let found = host_config::of_sites(&dirs.config, ats::record_string, version(), scope());
        let written = host_config::records(&dirs.config).only(&findings::RECORDS);
        HostFiles {
            hints: hints(found),
            written: Arc::new(written.under(environment().iter().cloned())),
            authorities: authorities(dirs),
            client_policy: Some(client_policy(dirs)),
        }
    }
}

/// What of the host's environment sets records, as the first look found it. The rest may be other
/// programs' secrets.
fn environment() -> &'static [(String, String)] {
    static ENVIRONMENT: OnceCell<Vec<(String, String)>> = OnceCell::new();
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let is_setting = |(name, _): &(OsString, OsString)| {
        name.as_encoded_bytes().starts_with(records::VARIABLES.as_bytes())
    };
    ENVIRONMENT.get_or_init(|| {
        let settings = env::vars_os().filter(is_setting);
        settings.map(|(name, value)| (text(name), text(value))).collect()
    })
}

fn version() -> Option<HostVersion> {
    ats::version().as_deref().and_then(findings::host_version)
}

fn scope() -> Option<TicketScope> {
    Some(ticket_scope::in_effect())
}

fn hints(found: Vec<Finding>) -> Vec<Hint> {
    found.into_iter().filter(|finding| finding.kind.is_hint()).map(Hint::Setting).collect()
}

/// The file of ticket keys that the host is configured with, if any.
pub fn ticket_key_file() -> Option<String> {
    ats::record_string(findings::KEY_FILE)
}

fn records(written: &Records) -> Vec<Hint> {
    let mut hints =
        hints(findings::of_records(|name| in_effect(name, written), version(), scope()));
    let cache = sessions::is_sharing().then(session_cache_mode).flatten();
    hints.extend(cache.filter(|mode| *mode != SHARED_CACHE).map(Hint::SessionCache));
    hints
}

/// The mode in which Traffic Server's own session cache calls the hooks.
const SHARED_CACHE: i64 = 2;

/// The mode of Traffic Server's session cache, by the name that the record has in this version.
fn session_cache_mode() -> Option<i64> {
    [".mode", ".value", ""]
        .into_iter()
        .find_map(|end| ats::record_int(&format!("proxy.config.ssl.session_cache{end}")))
}

/// What the host says of a record, with the place where that is written.
fn in_effect(name: &str, written: &Records) -> Option<Record> {
    let is_text = name == findings::KEY_FILE;
    let value =
        if is_text { ats::record_string(name)? } else { ats::record_int(name)?.to_string() };
    let is_meant = |record: &Record| {
        record.value == value
            || (!is_text && findings::integer(&record.value) == findings::integer(&value))
    };
    let running = || Record {
        source: findings::Source::Running,
        name: name.to_owned(),
        value: value.clone(),
    };
    Some(written.get(name).filter(is_meant).unwrap_or_else(running))
}

/// What the host asks of its clients, by the record and by sni.yaml.
fn client_policy(dirs: &Dirs) -> ClientPolicy {
    let level = ats::record_int(findings::LEVEL).unwrap_or_default();
    let name = ats::record_string(host_config::SNI);
    let file = dirs.config.join(name.unwrap_or_else(|| "sni.yaml".to_owned()));
    let text = load::host_file(&file).unwrap_or_default();
    // Many names may have the same authorities; each file is read once.
    let read = RefCell::new(BTreeMap::new());
    ClientPolicy::read(level, &String::from_utf8_lossy(&text), |file| {
        let mut read = read.borrow_mut();
        let words = read.entry(file.to_owned()).or_insert_with(|| {
            let certificates = load::host_file(&dirs.config.join(file)).unwrap_or_default();
            let mut subjects = subjects(&certificates).unwrap_or_default();
            // OpenSSL looks one up by its subject, so that their order is none of the host's.
            subjects.sort_unstable();
            Authorities::of(&subjects).words()
        });
        words.clone()
    })
}

/// The host takes the path to be relative to its prefix, and the name to be relative to the path.
fn authorities(dirs: &Dirs) -> Option<Authorities> {
    let name = ats::record_string("proxy.config.ssl.CA.cert.filename")?;
    let path = ats::record_string("proxy.config.ssl.CA.cert.path").unwrap_or_default();
    let bytes = load::host_file(&dirs.install.join(path).join(name))?;
    subjects(&bytes).ok().as_deref().map(Authorities::of)
}

/// What the host takes of a file of authorities: the certificates' subjects in their order, each
/// once, in DER, which tells where it ends, and in words.
fn subjects(pem: &[u8]) -> Result<Vec<(Vec<u8>, String)>, ErrorStack> {
    let mut subjects = Vec::new();
    for certificate in X509::stack_from_pem(pem)? {
        let name = certificate.subject_name();
        let subject = (name.to_der()?, one_line(name));
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    Ok(subjects)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::core::findings::{FindingKind, Source};
    use crate::log_sink::{Level, LogSink};

    #[derive(Default)]
    struct Lines(Mutex<Vec<(Level, String)>>);

    impl LogSink for Lines {
        fn write(&self, level: Level, line: &str) {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push((level, line.to_owned()));
        }
    }

    #[test]
    fn a_bundle_is_its_subjects_in_their_order() -> testkit::Result<()> {
        let pem = |subject: &str| -> testkit::Result<String> {
            let pem = testkit::pki::Authority::new(subject)?.identity.certificate.to_pem()?;
            Ok(String::from_utf8_lossy(&pem).into_owned())
        };
        let (a, b, a_again) = (pem("/CN=a")?, pem("/CN=b")?, pem("/CN=a")?);
        let digest = |text: String| subjects(text.as_bytes()).ok().as_deref().map(Authorities::of);
        let plain = digest(format!("{a}{b}"));
        let names = plain.as_ref().map(Authorities::words);
        assert_eq!(names.as_deref(), Some("/CN=a and /CN=b"));
        for same in [format!("# x\n\n{a}\n{b}"), format!("{a}{b}{a}"), format!("{a_again}{b}")] {
            assert_eq!(digest(same), plain);
        }
        for other in [a.clone(), format!("{b}{a}"), String::new()] {
            assert_ne!(digest(other), plain);
        }
        assert_eq!(digest(format!("{a}-----BEGIN CERTIFICATE-----\nAA\n")), None);
        Ok(())
    }

    #[test]
    fn what_came_and_what_went_is_told_once() {
        let lines = Arc::new(Lines::default());
        let environment = EnvironmentWatch { log: Log::new(lines.clone()), latest: Arc::default() };
        let told = || std::mem::take(&mut *lines.0.lock().unwrap_or_else(PoisonError::into_inner));
        let hint =
            |kind, source, value: &str| Hint::Setting(Finding::new(kind, source, "field", value));
        let file = |name: &str| hint(FindingKind::KeyFile, Source::Running, name);
        let site = || hint(FindingKind::SiteKeyName, Source::file("m", Some(3)), "k");
        environment.take_records(vec![file("a")]);
        environment.take_records(vec![hint(FindingKind::KeyFile, Source::file("f", None), "a")]);
        environment.take_records(vec![file("a")]);
        assert_eq!(told(), [(Level::Warning, file("a").to_string())]);
        environment.take_files(HostFiles { hints: vec![site()], ..HostFiles::default() });
        assert_eq!(environment.latest().records, [file("a")]);
        assert_eq!(told(), [(Level::Warning, site().to_string())]);
        environment.take_records(vec![file("b")]);
        environment.take_files(HostFiles::default());
        let gone = |hint: Hint| (Level::Note, format!("no longer so: {hint}"));
        let expected = [(Level::Warning, file("b").to_string()), gone(file("a")), gone(site())];
        assert_eq!(told(), expected);
        // Without a host there is nothing to look at.
        environment.look_at_records();
        assert_eq!(told(), [gone(file("b"))]);
    }
}
