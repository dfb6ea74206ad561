//! Which Traffic Server the tests run, and in which words it is told what to do: the only place that
//! knows what differs between versions.
//!
//! `STEK_TRAFFIC_SERVER` names the directory that one was installed into; without it the one in `PATH`
//! is taken, which is Debian's. Tests speak of files and records as 9.2 has them; [`named`] and
//! [`set_record`] say it as the host at hand does. `STEK_TRAFFIC_SERVERS` names more such directories,
//! for a group of several versions; nothing else asks for [`hosts`].

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs, io};

use crate::{Context, Error, Result};

/// Names the directory that Traffic Server was installed into.
pub const VARIABLE: &str = "STEK_TRAFFIC_SERVER";
/// Names those of further ones, as `PATH` does, each version after the one before.
pub const FURTHER: &str = "STEK_TRAFFIC_SERVERS";

/// What every name of a record begins with.
const PREFIX: &str = "proxy.config.";

/// A version, as `9.2.9` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// From here on records are YAML, there is no traffic_manager, and some records are called otherwise.
pub const WITHOUT_MANAGER: Version = Version(10, 0, 0);
/// From here on a certificate's line with an address has a ticket key of its own.
pub const WITH_KEYS_BY_ADDRESS: Version = WITHOUT_MANAGER;
/// From here on the host prints Prometheus's format itself, and names may have words about tickets.
pub const WITH_TICKETS_IN_SNI: Version = Version(10, 1, 0);
/// From here on certificates and places of the cache are listed in YAML, and session IDs are gone.
pub const WITHOUT_SESSION_IDS: Version = Version(11, 0, 0);

/// Any version, before which and from which on there is none.
pub const ANY: Range<Version> = Version(0, 0, 0)..Version(u32::MAX, 0, 0);

/// Records that were renamed, or taken away, from which version on, without [`PREFIX`]; the last one that
/// fits counts.
const RENAMED: [(Version, &str, Option<&str>); 6] = [
    (WITHOUT_MANAGER, "exec_thread.autoconfig", Some("exec_thread.autoconfig.enabled")),
    (WITHOUT_MANAGER, "ssl.TLSv1_3", Some("ssl.TLSv1_3.enabled")),
    (WITHOUT_MANAGER, "ssl.session_cache", Some("ssl.session_cache.value")),
    (Version(10, 2, 0), "ssl.session_cache", Some("ssl.session_cache.mode")),
    (WITHOUT_SESSION_IDS, "ssl.session_cache", None),
    (WITHOUT_SESSION_IDS, "ssl.session_cache.timeout", None),
];

/// Where certificates are listed.
const CERTIFICATES: &str = "ssl_multicert.config";

/// What another version may call otherwise, and must not find.
const CALLED_OTHERWISE: [&str; 3] = ["records.config", CERTIFICATES, "storage.config"];

/// Where the pages of errors are looked for, from [`WITHOUT_MANAGER`] on: it does not start without that
/// directory, and without a page in it a request that nobody maps gets no answer at all.
const PAGES: &str = "body_factory";

/// An installed Traffic Server.
#[derive(Debug)]
pub struct Host {
    version: Version,
    /// Where its programs are; none for those in `PATH`.
    programs: Option<PathBuf>,
    layout: BTreeMap<String, String>,
}

/// The Traffic Server of this run.
///
/// # Errors
/// When there is none.
pub fn host() -> Result<&'static Host> {
    static HOST: OnceLock<std::result::Result<Host, String>> = OnceLock::new();
    HOST.get_or_init(|| {
        let given = env::var_os(VARIABLE).filter(|given| !given.is_empty());
        Host::find(VARIABLE, given.map(PathBuf::from)).map_err(|error| error.to_string())
    })
    .as_ref()
    .map_err(Error::new)
}

/// The Traffic Server of this run, and the further ones.
///
/// # Errors
/// When one of them is not there.
pub fn hosts() -> Result<Vec<&'static Host>> {
    static HOSTS: OnceLock<std::result::Result<Vec<Host>, String>> = OnceLock::new();
    let further = HOSTS.get_or_init(|| {
        let given = env::var_os(FURTHER).unwrap_or_default();
        let given = env::split_paths(&given).filter(|path| !path.as_os_str().is_empty());
        let found = given.map(|path| Host::find(FURTHER, Some(path)));
        found.collect::<Result<_>>().map_err(|error| error.to_string())
    });
    Ok(std::iter::once(host()?).chain(further.as_ref().map_err(Error::new)?).collect())
}

impl Host {
    fn find(variable: &str, given: Option<PathBuf>) -> Result<Host> {
        let mut host = Host {
            version: Version(0, 0, 0),
            programs: given.as_ref().map(|prefix| prefix.join("bin")),
            layout: BTreeMap::new(),
        };
        let about = match &given {
            Some(prefix) => format!(
                "{variable} has {}, where no traffic_layout runs; give the directory that Traffic Server \
                 was installed into",
                prefix.display()
            ),
            None => format!(
                "no traffic_layout in PATH; install Traffic Server (Debian: apt-get install \
                 trafficserver), or name one with {VARIABLE}"
            ),
        };
        host.layout = host.ask(&["info", "--json"]).context(&about)?;
        let versions = host.ask(&["info", "--versions", "--json"]).context(&about)?;
        let version = versions.get("traffic-server").and_then(|text| parse(text));
        let unknown =
            || Error::new(format!("traffic_layout does not tell the version: {versions:?}"));
        host.version = version.ok_or_else(unknown)?;
        Ok(host)
    }

    fn ask(&self, arguments: &[&str]) -> Result<BTreeMap<String, String>> {
        let program = self.program("traffic_layout");
        let output = Command::new(&program).args(arguments).output().context(program.display())?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text)
            .context(format_args!("traffic_layout {arguments:?} says {text:?}"))
    }

    /// Which version it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// One of its programs, as a command names it.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.as_ref().map_or_else(|| name.into(), |dir| dir.join(name))
    }

    /// One of its own plugins.
    pub fn plugin(&self, name: &str) -> PathBuf {
        Path::new(self.dir("PLUGINDIR")).join(name)
    }

    /// Whether `traffic_ctl` reaches a server through a traffic_manager only.
    pub fn has_manager(&self) -> bool {
        self.version < WITHOUT_MANAGER
    }

    /// Whether sessions of TLS 1.2 can be resumed by their ids, shared by plugins.
    pub fn has_session_ids(&self) -> bool {
        self.version < WITHOUT_SESSION_IDS
    }

    /// Whether it was built to speak QUIC.
    ///
    /// # Errors
    /// When it does not say.
    pub fn has_quic(&self) -> Result<bool> {
        let program = self.program("traffic_layout");
        let output = Command::new(&program).args(["info", "--features", "--json"]).output();
        let text = output.context(program.display())?.stdout;
        let features: serde_json::Value =
            serde_json::from_slice(&text).context("traffic_layout info --features")?;
        Ok(features.get("TS_USE_QUIC").is_some_and(|used| *used == 1 || *used == "1"))
    }

    fn dir(&self, name: &str) -> &str {
        self.layout.get(name).map_or("", String::as_str)
    }

    /// The text of a runroot.yaml for a server below `root`.
    pub(crate) fn run_root(&self, root: &Path) -> String {
        let root = root.display();
        let lines = [
            ("prefix", format!("{root}")),
            ("exec_prefix", self.dir("PREFIX").into()),
            ("bindir", self.dir("BINDIR").into()),
            ("sbindir", self.dir("BINDIR").into()),
            ("sysconfdir", format!("{root}/etc")),
            ("datadir", format!("{root}/cache")),
            ("includedir", self.dir("INCLUDEDIR").into()),
            ("libdir", self.dir("LIBDIR").into()),
            ("libexecdir", self.dir("PLUGINDIR").into()),
            ("localstatedir", format!("{root}/var")),
            ("runtimedir", format!("{root}/var/run")),
            ("logdir", format!("{root}/var/log")),
            ("cachedir", format!("{root}/cache")),
        ];
        lines.map(|(name, value)| format!("{name}: {value}\n")).concat()
    }

    /// Writes the list of a server's certificates, lines of `key=value`.
    pub(crate) fn write_certificates(&self, etc: &Path, lines: &str) -> io::Result<()> {
        let yaml = self.version >= WITHOUT_SESSION_IDS;
        let text = if yaml { yaml_of_sites(lines) } else { lines.to_owned() };
        fs::write(etc.join(self.named(CERTIFICATES)), text)
    }

    /// A text about files of 9.2 with the names that they have here.
    pub(crate) fn named(&self, text: &str) -> String {
        named_in(self.version, text)
    }

    /// Takes away what another version would not read, or not bear.
    pub(crate) fn clear(&self, etc: &Path) -> io::Result<()> {
        CALLED_OTHERWISE.iter().try_for_each(|name| fs::remove_file(etc.join(self.named(name))))
    }

    /// Writes a server's records, `proxy.config.x INT 1` each.
    pub(crate) fn write_records(&self, etc: &Path, records: &[String]) -> io::Result<()> {
        if self.version < WITHOUT_MANAGER {
            let lines: String = records.iter().map(|line| format!("CONFIG {line}\n")).collect();
            return fs::write(etc.join("records.config"), lines);
        }
        let pages = etc.join(PAGES);
        let default = pages.join("default");
        fs::create_dir_all(&default)?;
        fs::write(default.join(".body_factory_info"), "")?;
        fs::write(default.join("default"), "<html><body>%<{Host}cqh></body></html>\n")?;
        let sets =
            format!("proxy.config.body_factory.template_sets_dir STRING {}", pages.display());
        let all: Vec<&str> = records.iter().map(String::as_str).chain([sets.as_str()]).collect();
        fs::write(etc.join("records.yaml"), yaml(self.version, &all))
    }
}

/// Lines of `key=value` in YAML, one entry on each line, so that numbers of lines stay; with their remarks.
fn yaml_of_sites(lines: &str) -> String {
    let entry = |line: &str| {
        let pairs = line.split_whitespace().filter_map(|pair| pair.split_once('='));
        let quoted = |value: &str| serde_json::Value::from(value.trim_matches('"')).to_string();
        let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
        pairs.join(", ")
    };
    let (mut text, mut begins) = (String::new(), "ssl_multicert: [");
    for line in lines.lines() {
        if line.is_empty() || line.starts_with('#') {
            text += &format!("{line}\n");
        } else {
            text += &format!("{begins}{{{}}},\n", entry(line));
            begins = "  ";
        }
    }
    text + "]\n"
}

/// What [`yaml_of_sites`] was made of.
fn lines_of_sites(yaml: &str) -> String {
    let entry = |line: &str| {
        let (_, entry) = line.split_once('{')?;
        let (entry, _) = entry.split_once('}')?;
        let pairs = entry.split(", ").filter_map(|pair| pair.split_once(": "));
        let pairs: Vec<_> = pairs.map(|(k, v)| format!("{k}={}", v.trim_matches('"'))).collect();
        Some(pairs.join(" "))
    };
    let lines = yaml.lines().filter(|line| *line != "]");
    lines.map(|line| entry(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

fn parse(version: &str) -> Option<Version> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some(Version(numbers.next()??, numbers.next()??, numbers.next()??))
}

/// A text about files of 9.2 with the names that they have on the host at hand; as it is where there is
/// none.
pub fn named(text: &str) -> String {
    named_in(host().map_or(Version(0, 0, 0), Host::version), text)
}

fn named_in(version: Version, text: &str) -> String {
    let names = [
        (WITHOUT_MANAGER, "records.config", "records.yaml"),
        (WITHOUT_SESSION_IDS, CERTIFICATES, "ssl_multicert.yaml"),
        (WITHOUT_SESSION_IDS, "storage.config", "storage.yaml"),
    ];
    let changed = names.into_iter().filter(|(from, ..)| version >= *from);
    changed.fold(text.to_owned(), |text, (_, old, new)| text.replace(old, new))
}

/// Where a server's records are.
pub fn records(etc: &Path) -> PathBuf {
    etc.join(named("records.config"))
}

/// Sets a record of a server that is started later, whatever its files say of it: a line as
/// `proxy.config.x INT 1`. Does nothing where the version has no such record.
///
/// # Errors
/// When the file is not there.
pub fn set_record(etc: &Path, line: &str) -> Result<()> {
    let file = records(etc);
    let old = fs::read_to_string(&file).context(file.display())?;
    let version = host()?.version;
    // In either form what comes last counts.
    let more = if version < WITHOUT_MANAGER {
        format!("CONFIG {line}\n")
    } else if leaf(version, line).is_some() {
        format!("---\n{}", yaml(version, &[line]))
    } else {
        String::new()
    };
    fs::write(&file, old + &more).context(file.display())
}

/// Changes the list of a server's certificates, which has lines of `key=value` as 9.2 has them.
///
/// # Errors
/// When there is none, or `change` leaves it as it is.
pub fn change_certificates(etc: &Path, change: impl Fn(&str) -> String) -> Result<()> {
    let (host, file) = (host()?, etc.join(named(CERTIFICATES)));
    let old = fs::read_to_string(&file).context(file.display())?;
    let old = if host.version < WITHOUT_SESSION_IDS { old } else { lines_of_sites(&old) };
    let new = change(&old);
    if new == old {
        return Err(Error::new(format!("nothing changed in {}:\n{old}", file.display())));
    }
    host.write_certificates(etc, &new).context(file.display())
}

/// Records in YAML, a document of their own: a mapping for each part of a name.
fn yaml(version: Version, lines: &[&str]) -> String {
    let mut sorted: Vec<(Vec<String>, String)> =
        lines.iter().filter_map(|line| leaf(version, line)).collect();
    sorted.sort();
    let (mut text, mut open) = ("records:\n".to_owned(), Vec::new());
    for (path, value) in sorted {
        let common = path.iter().zip(&open).take_while(|(one, other)| one == other).count();
        for (depth, key) in path.iter().enumerate().skip(common) {
            let value = if depth + 1 == path.len() { format!(" {value}") } else { String::new() };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}{key}:{value}", "  ".repeat(depth + 1));
        }
        open = path;
    }
    text
}

/// The keys that lead to a record and its value in YAML; none where the version has no such record.
fn leaf(version: Version, line: &str) -> Option<(Vec<String>, String)> {
    let mut words = line.split_whitespace();
    let (name, kind) = (words.next()?, words.next()?);
    let value = words.collect::<Vec<_>>().join(" ");
    let name = name.strip_prefix(PREFIX)?;
    let fits = |(from, old, _): &&(Version, &str, Option<&str>)| *old == name && version >= *from;
    let name = RENAMED.iter().rfind(fits).map_or(Some(name), |(.., new)| *new)?;
    let value = if kind == "STRING" { serde_json::Value::from(value).to_string() } else { value };
    Some((name.split('.').map(str::to_owned).collect(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_one_mapping() {
        let lines = [
            "proxy.config.ssl.session_cache INT 0",
            "proxy.config.exec_thread.limit INT 1",
            "proxy.config.admin.user_id STRING #-1",
            "proxy.config.exec_thread.autoconfig INT 0",
            "proxy.config.http.server_ports STRING 8080 443:ssl",
        ];
        let expected =
            "records:\n  admin:\n    user_id: \"#-1\"\n  exec_thread:\n    autoconfig:\n      \
                        enabled: 0\n    limit: 1\n  http:\n    server_ports: \"8080 443:ssl\"\n  ssl:\n    session_cache:\n      mode: 0\n";
        assert_eq!(yaml(Version(10, 2, 1), &lines), expected);
        // What 11 has no word for is left out.
        let (shared, _) = expected.split_at(expected.find("  ssl:").unwrap());
        assert_eq!(yaml(Version(11, 0, 0), &lines), shared);
    }

    #[test]
    fn certificates_keep_their_lines() {
        let lines = "# x\ndest_ip=* ssl_cert_name=/a.pem\n\nssl_ticket_enabled=0 ssl_cert_name=b\n";
        let yaml = "# x\nssl_multicert: [{dest_ip: \"*\", ssl_cert_name: \"/a.pem\"},\n\n  \
                    {ssl_ticket_enabled: \"0\", ssl_cert_name: \"b\"},\n]\n";
        assert_eq!(yaml_of_sites(lines), yaml);
        assert_eq!(lines_of_sites(yaml), lines);
    }

    #[test]
    fn versions_are_numbers_in_their_order() {
        assert_eq!(parse("9.2.9"), Some(Version(9, 2, 9)));
        assert!(
            parse("10.0.0") >= Some(WITHOUT_MANAGER) && parse("10.2.1") < Some(WITHOUT_SESSION_IDS)
        );
        assert_eq!(parse("9.2"), None);
    }
}
