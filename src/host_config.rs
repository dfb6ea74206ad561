//! Reads Traffic Server's own files from its configuration directory, for the plugin and for `stekctl`.
//!
//! What they say is [`host_files`](crate::core::host_files)'s to tell; what is the matter with it,
//! [`findings`]'s. Invariants: a file that cannot
//! be read says nothing; nothing here waits for longer than a read of a file takes.

use std::path::{Path, PathBuf};

use crate::core::config::Problem;
use crate::core::findings::{self, Finding, HostVersion};
use crate::core::host_files::plugins::Loading;
use crate::core::host_files::records::Records;
use crate::core::host_files::{multicert, plugins, sni};
use crate::core::ticket_scope::TicketScope;
use crate::load::try_host_text;

/// Where the certificates are listed.
pub const MULTICERT: &str = "proxy.config.ssl.server.multicert.filename";
/// Where the names are listed.
pub const SNI: &str = "proxy.config.ssl.servername.filename";

/// What the records' file says: records.yaml, which Traffic Server 10 has, or else records.config.
pub fn records(dir: &Path) -> Records {
    let read = |name: &str| {
        let path = dir.join(name);
        Some((path.display().to_string(), try_host_text(&path).ok()?))
    };
    if let Some((file, text)) = read("records.yaml") {
        Records::of_yaml(&file, &text)
    } else if let Some((file, text)) = read("records.config") {
        Records::of_config(&file, &text)
    } else {
        Records::default()
    }
}

/// The version of a Traffic Server that nobody can ask, by the files that it has; only the major one, and
/// the lowest that can be meant.
pub fn version_by_files(dir: &Path) -> Option<HostVersion> {
    let has = |name: &str| dir.join(name).is_file();
    if has("records.config") && !has("records.yaml") {
        // 10 does not start with that file, nor 11.
        return Some((9, 2));
    }
    // What was prepared for an upgrade, or left behind after one, is beside what counts.
    let pairs =
        [("ssl_multicert.config", "ssl_multicert.yaml"), ("storage.config", "storage.yaml")];
    let is_older = pairs.iter().any(|(older, newer)| has(older) && !has(newer));
    let is_newer = pairs.iter().any(|(older, newer)| !has(older) && has(newer));
    match (is_older, is_newer) {
        (true, false) => has("records.yaml").then_some((10, 1)),
        (false, true) => Some((11, 0)),
        // Both of each, or a mixture, could be either.
        _ if pairs.iter().any(|(_, newer)| has(newer)) => None,
        _ if has("plugin.yaml") => Some((11, 0)),
        _ => has("records.yaml").then_some((10, 1)),
    }
}

/// The file that says which plugins are loaded, and what it says of this one: plugin.yaml, which Traffic
/// Server 11 looks at first, or else plugin.config.
///
/// # Errors
/// Why that is not known, in words that follow the file's name.
pub fn loadings(dir: &Path) -> (PathBuf, Result<Vec<Loading>, String>) {
    let yaml = dir.join("plugin.yaml");
    let is_read = yaml.exists() && version_by_files(dir).is_none_or(|version| version >= (11, 0));
    let path = if is_read { yaml } else { dir.join("plugin.config") };
    let text = match try_host_text(&path) {
        Ok(text) => text,
        Err(why) => return (path, Err(why)),
    };
    let found = if is_read {
        plugins::of_yaml(&text).ok_or_else(|| "is no list of plugins in YAML".to_owned())
    } else {
        Ok(plugins::of_config(&text))
    };
    (path, found)
}

/// What is wrong with the line that gives the plugin these arguments, if anything is. The line is the first
/// that gives it them.
pub fn wrong_arguments(dir: &Path, arguments: &[String]) -> Option<Problem> {
    if arguments.len() == 1 {
        return None;
    }
    let (path, found) = loadings(dir);
    let found = found.unwrap_or_default().into_iter();
    let line = found.filter(|l| l.is_enabled && l.arguments == arguments).find_map(|l| l.line);
    let reason = format!(
        "gives stek_share.so {} arguments; it takes one, the path of its configuration file",
        arguments.len()
    );
    let remedy = "write for instance: stek_share.so stek_share/server_conf.yaml";
    Some(Problem::error(&path.display().to_string(), reason, remedy).at(line))
}

/// What is the matter with the files about certificates and names. `get` tells what a record is set to.
pub fn of_sites(
    dir: &Path,
    get: impl Fn(&str) -> Option<String>,
    version: Option<HostVersion>,
    scope: Option<TicketScope>,
) -> Vec<Finding> {
    let newest = dir.join("ssl_multicert.yaml");
    let is_yaml = findings::has_yaml_sites(version);
    let certificates = match get(MULTICERT) {
        Some(name) => dir.join(name),
        None if is_yaml.unwrap_or_else(|| newest.is_file()) => newest,
        None => dir.join("ssl_multicert.config"),
    };
    let names = dir.join(get(SNI).unwrap_or_else(|| "sni.yaml".to_owned()));
    let mut found = Vec::new();
    if let Ok(text) = try_host_text(&certificates) {
        let address = findings::address_kind(version, scope);
        let (file, exact) = (certificates.display().to_string(), is_yaml == Some(true));
        found.extend(multicert::findings(&file, &text, address, exact));
    }
    if let Ok(text) = try_host_text(&names) {
        let opens = scope == Some(TicketScope::Host);
        let counts = findings::sni_has_tickets(version);
        found.extend(sni::findings(&names.display().to_string(), &text, opens, counts));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_by_what_only_they_have() {
        let dir = std::env::temp_dir().join(format!("stek-host-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // What is there, added to what was there before.
        let steps = [
            ("records.yaml", Some((10, 1))),
            ("ssl_multicert.config", Some((10, 1))),
            ("storage.config", Some((10, 1))),
            // Prepared for the upgrade, and not read yet.
            ("ssl_multicert.yaml", Some((10, 1))),
            ("plugin.yaml", Some((10, 1))),
            ("storage.yaml", None),
        ];
        for (name, version) in steps {
            std::fs::write(dir.join(name), "").unwrap();
            assert_eq!(version_by_files(&dir), version, "with {name}");
        }
        for name in ["storage.config", "ssl_multicert.config"] {
            std::fs::remove_file(dir.join(name)).unwrap();
            assert_eq!(version_by_files(&dir), Some((11, 0)), "without {name}");
        }
        std::fs::write(dir.join("records.config"), "").unwrap();
        std::fs::remove_file(dir.join("records.yaml")).unwrap();
        assert_eq!(version_by_files(&dir), Some((9, 2)));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
