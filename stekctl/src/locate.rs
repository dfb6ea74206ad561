//! Where things are on this server: Traffic Server's directories, and the plugin's configuration that
//! plugin.config names.

use std::path::{Path, PathBuf};

use stek_share::core::config::Problem;
use stek_share::host::identity::{self, User};
use stek_share::host_config;
use stek_share::load::{self, Dirs, Loaded, Refused, CORRECT_PLUGIN_CONFIG, LET_READ};
use stek_share::node::disk;

use crate::cli::Place;
use crate::exit_code::Failure;

/// Where Traffic Server's configuration is, as Debian's and the usual builds from source have it.
const USUAL: [&str; 4] = [
    "/etc/trafficserver",
    "/opt/trafficserver/etc/trafficserver",
    "/opt/trafficserver/etc",
    "/usr/local/etc/trafficserver",
];

/// The plugin's file, at the end of its path in plugin.config.
const PLUGIN: &str = "stek_share.so";

/// Traffic Server's configuration directory, if there is one.
///
/// # Errors
/// When a directory is given that is none.
pub fn ats_config(place: &Place) -> Result<Option<PathBuf>, Failure> {
    match &place.ats_config {
        Some(dir) if dir.is_dir() => Ok(Some(dir.clone())),
        Some(dir) => Err(Failure::new(format!(
            "--ats-config {}: is no directory; give the one that holds Traffic Server's \
             plugin.config",
            dir.display()
        ))),
        None => Ok(usual()),
    }
}

/// The configuration directory of the Traffic Server that is installed on this machine.
pub fn usual() -> Option<PathBuf> {
    USUAL.iter().map(PathBuf::from).find(|dir| dir.is_dir())
}

/// What stands before `etc` or `etc/trafficserver` in the configuration directory; Debian's prefix
/// is /usr although its configuration is in /etc.
fn prefix(config: &Path) -> PathBuf {
    if config == Path::new("/etc/trafficserver") {
        return PathBuf::from("/usr");
    }
    let above = config.ancestors().find(|dir| dir.ends_with("etc")).and_then(Path::parent);
    above.unwrap_or(config).to_owned()
}

/// The remedy for a file that root alone may read, told to who is not root.
const AS_ROOT: &str =
    "give the command as root, which can tell whether the user that runs Traffic Server may read it";

/// The configuration's name, and where relative names in it are looked for.
#[derive(Clone, Debug)]
pub struct Source {
    /// As it is passed to the plugin's loader.
    pub argument: String,
    /// Where to look.
    pub dirs: Dirs,
    /// What the plugin would say of the line that names it.
    pub fault: Option<Problem>,
    /// What to do where the name leads nowhere.
    correct: &'static str,
}

impl Source {
    /// A problem with the remedy for whoever typed the command.
    fn told(&self, problem: Problem) -> Problem {
        let remedy = match problem.remedy.as_str() {
            CORRECT_PLUGIN_CONFIG => self.correct,
            LET_READ if !identity::is_root() => AS_ROOT,
            _ => return problem,
        };
        Problem { remedy: remedy.to_owned(), ..problem }
    }
}

/// Whether who asks may not read something that somebody else may.
pub fn is_for_root(problem: &Problem) -> bool {
    problem.remedy == AS_ROOT
}

/// Finds the configuration: the option's, or the one that plugin.config names.
///
/// # Errors
/// When neither is there.
pub fn source(place: &Place) -> Result<Source, Failure> {
    let config = ats_config(place)?;
    match &place.config {
        Some(file) => {
            let correct =
                "give the path of this server's server_conf.yaml behind -c, or leave -c out to \
                           use the one that plugin.config names";
            Ok(Source { correct, ..source_of(file, place)? })
        }
        None => {
            let Some(config) = config else {
                return Err(Failure::new(
                    "Traffic Server's configuration directory is not in any of the usual places; \
                     give --ats-config DIR, or -c server_conf.yaml",
                ));
            };
            let (file, found) = host_config::loadings(&config);
            let file = file.display();
            let found = found.map_err(|why| {
                let as_root =
                    if identity::is_root() { "" } else { "give the command as root, or " };
                Failure::new(format!("{file}: {why}; {as_root}give -c server_conf.yaml"))
            })?;
            let Some(loading) = found.into_iter().find(|loading| loading.is_enabled) else {
                return Err(Failure::new(format!(
                    "{file}: has no line '{PLUGIN} server_conf.yaml'; give -c server_conf.yaml, or \
                     --ats-config DIR if Traffic Server's files are elsewhere"
                )));
            };
            if loading.is_inline {
                return Err(Failure::new(format!(
                    "{file}: has the configuration in itself, which only Traffic Server takes apart; \
                     write it into a file and name that in params, or give -c FILE with the same"
                )));
            }
            let fault = host_config::wrong_arguments(&config, &loading.arguments);
            let argument = loading.arguments.into_iter().next().unwrap_or_default();
            let correct = CORRECT_PLUGIN_CONFIG;
            Ok(Source { argument, dirs: dirs(Some(&config), true), fault, correct })
        }
    }
}

/// For a configuration that `file` names, wherever that comes from.
pub fn source_of(file: &Path, place: &Place) -> Result<Source, Failure> {
    let config = ats_config(place)?;
    let correct = "give the path of a server_conf.yaml";
    Ok(Source { argument: text(file), dirs: dirs(config.as_deref(), false), fault: None, correct })
}

/// Traffic Server works in its prefix; a name that the operator types is meant from where he is.
fn dirs(config: Option<&Path>, as_server: bool) -> Dirs {
    let install = config.map(prefix).unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    Dirs {
        working: if as_server { install.clone() } else { here },
        config: config.map_or_else(|| install.clone(), Path::to_owned),
        install,
    }
}

/// Loads it, as the plugin does.
///
/// # Errors
/// The plugin's lines about it.
pub fn load(source: &Source) -> Result<Loaded, Failure> {
    if let Some(fault) = &source.fault {
        return Err(Failure::new(fault.to_string()));
    }
    load::load(&source.argument, &source.dirs).map_err(|refused| {
        let told = refused.problems.into_iter().map(|problem| source.told(problem).to_string());
        let mut lines: Vec<String> = told.collect();
        if lines.is_empty() {
            lines.push(format!("{}: cannot be used", source.argument));
        }
        Failure(lines)
    })
}

/// What the plugin would say: its problems, errors first.
fn problems(source: &Source) -> (Vec<Problem>, Option<Loaded>) {
    // That the line names no file is told of the line.
    if source.argument.is_empty() && source.fault.is_some() {
        return (Vec::new(), None);
    }
    match load::load(&source.argument, &source.dirs) {
        Ok(loaded) => {
            let settings = &loaded.settings;
            let state = settings
                .state_dir
                .iter()
                .flat_map(|dir| disk::foresee(dir, settings.server_id, identity::may_write_in));
            let state = state.map(|line| Problem::said(&line));
            (loaded.warnings.iter().cloned().chain(state).collect(), Some(loaded))
        }
        Err(Refused { problems, warnings }) => {
            (problems.into_iter().chain(warnings).collect(), None)
        }
    }
}

/// The same with the rights of the server's user.
///
/// # Errors
/// This process may not be that user.
pub fn problems_as(
    user: Option<&User>,
    source: &Source,
) -> Result<(Vec<Problem>, Option<Loaded>), Failure> {
    let (found, loaded) = match user {
        None => problems(source),
        Some(user) => identity::as_user(user, || problems(source)).map_err(|error| {
            Failure::new(format!("cannot look at the files as user {}: {error}", user.name))
        })?,
    };
    Ok((found.into_iter().map(|problem| source.told(problem)).collect(), loaded))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_stands_before_etc() {
        let of = |dir: &str| prefix(Path::new(dir)).display().to_string();
        assert_eq!(of("/etc/trafficserver"), "/usr");
        assert_eq!(of("/opt/trafficserver/etc/trafficserver"), "/opt/trafficserver");
        assert_eq!(of("/opt/ts/etc"), "/opt/ts");
        assert_eq!(of("/srv/server-1"), "/srv/server-1");
    }
}
