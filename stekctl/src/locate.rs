//! Where things are on this server: Traffic Server's directories, and the plugin's configuration that
//! plugin.config names.

use std::fs;
use std::path::{Path, PathBuf};

use stek_share::core::config::Problem;
use stek_share::host::identity::{self, User};
use stek_share::load::{self, Dirs, Loaded, Refused};
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

/// The same as cargo names it.
const BUILT: &str = "libstek_share.so";

/// The largest file of Traffic Server's that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

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

/// The configuration's name, and where relative names in it are looked for.
#[derive(Clone, Debug)]
pub struct Source {
    /// As it is passed to the plugin's loader.
    pub argument: String,
    /// Where to look.
    pub dirs: Dirs,
}

/// Finds the configuration: the option's, or the one that plugin.config names.
///
/// # Errors
/// When neither is there.
pub fn source(place: &Place) -> Result<Source, Failure> {
    let config = ats_config(place)?;
    match &place.config {
        Some(file) => Ok(Source { argument: text(file), dirs: dirs(config.as_deref(), false) }),
        None => {
            let Some(config) = config else {
                return Err(Failure::new(
                    "Traffic Server's configuration directory is not in any of the usual places; \
                     give --ats-config DIR, or -c server_conf.yaml",
                ));
            };
            let file = config.join("plugin.config");
            let lines = read(&file).map_err(|why| {
                Failure::new(format!("{}: {why}; give -c server_conf.yaml", file.display()))
            })?;
            let line = plugin_lines(&lines).next();
            match line {
                Some((_, arguments)) if !arguments.is_empty() => {
                    let argument = arguments.first().copied().unwrap_or_default().to_owned();
                    Ok(Source { argument, dirs: dirs(Some(&config), true) })
                }
                _ => Err(Failure::new(format!(
                    "{}: has no line '{PLUGIN} server_conf.yaml'; give -c server_conf.yaml, or \
                     --ats-config DIR if Traffic Server's files are elsewhere",
                    file.display()
                ))),
            }
        }
    }
}

/// For a configuration that `file` names, wherever that comes from.
pub fn source_of(file: &Path, place: &Place) -> Result<Source, Failure> {
    let config = ats_config(place)?;
    Ok(Source { argument: text(file), dirs: dirs(config.as_deref(), false) })
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
    load::load(&source.argument, &source.dirs).map_err(|refused| {
        let mut lines: Vec<String> = refused.problems.iter().map(Problem::to_string).collect();
        if lines.is_empty() {
            lines.push(format!("{}: cannot be used", source.argument));
        }
        Failure(lines)
    })
}

/// What the plugin would say: its problems, errors first.
pub fn problems(source: &Source) -> (Vec<Problem>, Option<Loaded>) {
    match load::load(&source.argument, &source.dirs) {
        Ok(loaded) => {
            let settings = &loaded.settings;
            let state = settings
                .state_dir
                .iter()
                .flat_map(|dir| disk::foresee(dir, settings.server_id, identity::may_write_in));
            let state = state.map(|line| {
                let (reason, remedy) = line.split_once("; ").unwrap_or((&line, "see state_dir"));
                Problem::warning(&source.argument, reason, remedy)
            });
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
    let Some(user) = user else { return Ok(problems(source)) };
    identity::as_user(user, || problems(source)).map_err(|error| {
        Failure::new(format!("cannot look at the files as user {}: {error}", user.name))
    })
}

/// The lines of plugin.config that load the plugin: number and arguments.
pub fn plugin_lines(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let mut words = words(line).into_iter();
        let name = Path::new(words.next()?).file_name()?;
        let ours = name == PLUGIN || name == BUILT;
        ours.then(|| (index + 1, words.collect()))
    })
}

/// The words of a line as Traffic Server takes them: between blanks or double quotes, up to a `#` outside of
/// quotes.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (word, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest
                .split_at(rest.find(|c: char| c.is_whitespace() || c == '#').unwrap_or(rest.len())),
        };
        words.push(word);
        rest = behind.trim_start();
    }
    words
}

/// A file of Traffic Server's as text, whatever bytes it has.
///
/// # Errors
/// Why it cannot be read, in words that follow its name.
pub fn read(path: &Path) -> Result<String, String> {
    let metadata = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(format!("cannot be read: it is no file of at most {MAX_FILE} bytes"));
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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

    #[test]
    fn the_plugins_line_is_found() {
        let text = "# stek_share.so old\nxdebug.so\n  /opt/m/stek_share.so a.yaml # here\n\
                    my_stek_share.so x\nstek_share.so\n\"stek_share.so\" \"b c.yaml\" d#e\n\
                    stek_share.so \"a # b\" \"\" 'c\n";
        let found: Vec<_> = plugin_lines(text).collect();
        let expected = [
            (3, vec!["a.yaml"]),
            (5, vec![]),
            (6, vec!["b c.yaml", "d"]),
            (7, vec!["a # b", "", "'c"]),
        ];
        assert_eq!(found, expected);
    }
}
