//! How the tests here run the command, and the fleets that they run it on.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use testkit::ats::Ats;
use testkit::fleet::{Fleet, Plan};
use testkit::host::named;
use testkit::turns::{Turn, Turns};
use testkit::{wait, Context, Error, Result};

/// Until something has happened that takes a few seconds at most on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// What doctor says where the plugin may lock less memory than it wants, or core files are allowed
/// by the machine's limits: true on some machines, and no concern of these tests.
const LIMITS: &str = "LimitMEMLOCK";

/// Tests that have servers at the same time. They wait more than they compute; more of them would only
/// measure each other.
static TURNS: Turns = Turns::of(3);

/// A turn for one test.
pub fn turn() -> Turn {
    TURNS.take(1)
}

/// What the command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The lines on standard output about which a test has an opinion.
    pub fn lines(&self) -> Vec<&str> {
        self.out.lines().filter(|line| !line.contains(LIMITS)).collect()
    }

    /// The one line with all of these parts.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn line(&self, parts: &[&str]) -> Result<&str> {
        let all = self.lines().into_iter();
        let found: Vec<&str> = all.filter(|line| has_all(line, parts)).collect();
        match found.as_slice() {
            [one] => Ok(one),
            _ => Err(Error::new(format!("{} lines with {parts:?} in {self:#?}", found.len()))),
        }
    }

    /// Whether it ended with this code and these words on either stream.
    ///
    /// # Errors
    /// When it did not.
    pub fn ended(&self, code: i32, words: &str) -> Result<()> {
        if self.code == code && (self.out.contains(words) || self.err.contains(words)) {
            Ok(())
        } else {
            Err(Error::new(format!("expected {code} and {words:?}: {self:#?}")))
        }
    }
}

/// Whether a line has all these parts, in which files are called as 9.2 calls them.
pub fn has_all(line: &str, parts: &[&str]) -> bool {
    parts.iter().all(|part| line.contains(&named(part)))
}

/// Runs the command, without colour and without anybody who could be asked.
///
/// # Errors
/// When it cannot be started.
pub fn stekctl(words: &[&str]) -> Result<Said> {
    stekctl_with(words, |_| {})
}

/// The same, with a word about how.
///
/// # Errors
/// When it cannot be started.
pub fn stekctl_with(words: &[&str], tune: impl FnOnce(&mut Command)) -> Result<Said> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stekctl"));
    // As a unit or a container starts it.
    for name in ["SUDO_USER", "USER", "LOGNAME"] {
        command.env_remove(name);
    }
    command.args(words).stdin(Stdio::null());
    tune(&mut command);
    let output = command.output().context("stekctl")?;
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs the command with the configuration of a server.
///
/// # Errors
/// When it cannot be started.
pub fn on(ats: &Ats, words: &[&str]) -> Result<Said> {
    let etc = ats.etc();
    let conf = etc.join("server_conf.yaml");
    let place = ["-c", text(&conf), "--ats-config", text(&etc), "--timeout", "10"];
    stekctl(&[&place, words].concat())
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// Traffic Servers that doctor has nothing to say about: no core dumps.
pub fn plan(size: usize) -> Result<Plan> {
    let plan = Plan::new(size, &plugin()?, Duration::from_secs(3600));
    Ok(plan.record("proxy.config.core_limit INT 0"))
}

/// Waits until `status` calls the fleet healthy.
///
/// # Errors
/// When it does not.
pub fn wait_healthy(ats: &Ats) -> Result<()> {
    wait_code(0, || on(ats, &["status"])).map(drop)
}

/// Repeats a command until it ends with this code.
///
/// # Errors
/// When it does not; with what it said last.
pub fn wait_code(code: i32, run: impl Fn() -> Result<Said>) -> Result<Said> {
    let mut last = None;
    let look = || {
        let said = run()?;
        let found = said.code == code;
        last = Some(said);
        Ok(found.then_some(()))
    };
    let found = wait::until(PATIENCE, &format!("the exit code {code}"), look);
    match (found, last) {
        (Ok(()), Some(said)) => Ok(said),
        (Ok(()), None) => Err(Error::new("nothing was run")),
        (Err(error), last) => Err(Error::new(format!("{error}; {last:#?}"))),
    }
}

/// The kernel's files as a machine without swap has them, with the processes of these servers.
///
/// # Errors
/// When they cannot be written.
pub fn machine(dir: &Path, fleet: &[&Ats]) -> Result<PathBuf> {
    let proc = dir.join("proc");
    let _ = fs::remove_dir_all(&proc);
    fs::create_dir_all(proc.join("sys/kernel"))?;
    fs::write(proc.join("swaps"), "Filename\tType\tSize\tUsed\tPriority\n")?;
    fs::write(proc.join("sys/kernel/core_pattern"), "core\n")?;
    for ats in fleet {
        let pid = ats.pid()?.to_string();
        symlink(format!("/proc/{pid}"), proc.join(pid))?;
    }
    Ok(proc)
}

/// Where the servers serve TLS.
pub fn addresses(fleet: &Fleet) -> Vec<String> {
    fleet.https().iter().map(ToString::to_string).collect()
}

/// Rewrites a file of a server that is not running.
///
/// # Errors
/// When there is nothing to rewrite.
pub fn rewrite(path: &Path, change: impl Fn(&str) -> String) -> Result<()> {
    let old = fs::read_to_string(path).context(path.display())?;
    let new = change(&old);
    if new == old {
        return Err(Error::new(format!("nothing changed in {}:\n{old}", path.display())));
    }
    fs::write(path, new).context(path.display())
}

/// Copies what was made for a server to where init says, and appends the line for plugin.config.
///
/// # Errors
/// When a file cannot be read or written.
pub fn install(home: &Path, ats: &Ats) -> Result<()> {
    let target = ats.etc().join("stek_share");
    fs::create_dir(&target)?;
    for entry in fs::read_dir(home)? {
        let path = entry?.path();
        let name = path.file_name().ok_or_else(|| Error::new("a file has a name"))?;
        fs::copy(&path, target.join(name)).context(path.display())?;
    }
    let line = fs::read_to_string(home.join("plugin.config"))?;
    let line = line.replace("stek_share.so", text(&plugin()?.canonicalize()?));
    Ok(fs::write(ats.etc().join("plugin.config"), line)?)
}

/// The plugin under test.
///
/// # Errors
/// When there is none.
pub fn plugin() -> Result<PathBuf> {
    if let Some(path) = env::var_os("STEK_SHARE_SO") {
        return Ok(path.into());
    }
    let exe = env::current_exe()?;
    // It lies beside the test binaries or one above, and the newer one is this run's.
    let places = exe.ancestors().skip(1).take(2).map(|dir| dir.join("libstek_share.so"));
    let newest = places.filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)));
    newest.max().map(|(_, path)| path).ok_or_else(|| {
        Error::new("no libstek_share.so beside this test, and STEK_SHARE_SO is not set")
    })
}
