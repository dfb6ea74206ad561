//! What on this machine lets keys outlive their end: swap, and core dumps of Traffic Server. Both
//! write memory to disk, where nothing erases it, so that a key that retired long ago can still be
//! found, and with it the sessions of its time.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use stek_share::core::config::Problem;
use stek_share::host::identity;
use stek_share::load::try_host_text;

use crate::users;

/// What Traffic Server's program is called.
const PROGRAM: &str = "traffic_server";

/// All findings, by the kernel's files below `proc`. `config` is the configuration directory of
/// the Traffic Server that is meant; `usual` says whether it is the one that is used by default.
pub fn findings(proc: &Path, config: Option<&Path>, usual: bool) -> Vec<Problem> {
    let mut found = swap(proc);
    if let Some(config) = config {
        found.extend(core_dumps(proc, config, usual));
        found.extend(policy(&environment(proc, config, usual)));
    }
    found
}

/// The variable that names OpenSSL's own file.
const POLICY: &str = "OPENSSL_CONF";

/// Whether the running server's OpenSSL has another policy than this command's. It is told and not taken
/// over: whoever runs a program of that name could have root load what the file names.
pub fn policy(environment: &[(String, String)]) -> Option<Problem> {
    let (_, value) = environment.iter().find(|(name, _)| name == POLICY)?;
    if std::env::var(POLICY).is_ok_and(|own| own == *value) {
        return None;
    }
    let reason =
        "has OpenSSL go by another policy there than here, so that certificates that are taken \
                  here may be refused there, and the other way round";
    let remedy =
        "see that the file is one that you trust, and look once more with it in the environment";
    let problem = Problem::warning("environment of Traffic Server", reason, remedy);
    Some(problem.field(POLICY).value(value))
}

fn swap(proc: &Path) -> Vec<Problem> {
    let path = proc.join("swaps");
    let text = fs::read_to_string(&path).unwrap_or_default();
    // After a line of headings; zram is compressed memory, not a disk.
    let areas = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let disks = areas.filter(|area| !area.starts_with("/dev/zram"));
    disks
        .map(|area| {
            let reason = "is in use as swap: memory in which Traffic Server holds keys can be \
                          written there, where nothing erases it";
            let remedy =
                "swapoff it on servers that end TLS, or encrypt it under a key that is new \
                          at each boot";
            Problem::warning(&path.display().to_string(), reason, remedy).value(area)
        })
        .collect()
}

fn core_dumps(proc: &Path, config: &Path, usual: bool) -> Vec<Problem> {
    if discards_dumps(proc) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for pid in servers(proc, config, usual) {
        let path = proc.join(pid.to_string()).join("limits");
        let limits = fs::read_to_string(&path).unwrap_or_default();
        let Some(limit) = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max core file size")?.split_whitespace().next())
        else {
            continue;
        };
        if limit != "0" {
            let reason = format!(
                "is the limit of core dumps of Traffic Server, process {pid}: a crash writes its \
                 memory with all keys to disk"
            );
            let remedy = "set proxy.config.core_limit to 0 in Traffic Server's records and \
                          restart it";
            let file = path.display().to_string();
            found.push(
                Problem::warning(&file, reason, remedy).field("Max core file size").value(limit),
            );
        }
    }
    found
}

/// Whether the kernel hands core dumps to a program that does nothing with them.
fn discards_dumps(proc: &Path) -> bool {
    let pattern = fs::read_to_string(proc.join("sys/kernel/core_pattern")).unwrap_or_default();
    let program = pattern.trim().strip_prefix('|').unwrap_or_default();
    matches!(program.split_whitespace().next(), Some("/bin/false" | "/bin/true"))
}

/// The processes of traffic_server that run with this configuration directory.
pub fn servers(proc: &Path, config: &Path, usual: bool) -> Vec<u32> {
    let Ok(config) = config.canonicalize() else { return Vec::new() };
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_meant = |pid: &u32| {
        let dir = proc.join(pid.to_string());
        let Some(command) = server_command(&dir) else { return false };
        if !is_sound(&dir, &config) {
            return false;
        }
        match run_root(&dir, &command) {
            Some(root) => sysconfdir(&root).is_some_and(|dir| dir == config),
            None => usual,
        }
    };
    pids.filter(is_meant).collect()
}

/// The environment of the Traffic Server that runs with this configuration directory; nothing where none
/// does, or where it belongs to another user and nobody may look.
pub fn environment(proc: &Path, config: &Path, usual: bool) -> Vec<(String, String)> {
    let first = servers(proc, config, usual).into_iter().next();
    let bytes = first.and_then(|pid| fs::read(proc.join(pid.to_string()).join("environ")).ok());
    let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    let entries = text.split('\0').filter_map(|entry| entry.split_once('='));
    entries.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Whether a process is what its name says: anybody can call his own program traffic_server, name a
/// configuration directory, and have it looked at with root's rights and believed. Its program has to be root's or
/// of who asks, and so has its user, or be the one of the records or of the directory.
fn is_sound(dir: &Path, config: &Path) -> bool {
    let exe = dir.join("exe");
    let asking = identity::asking();
    let program = fs::metadata(&exe).map(|file| file.uid()).and_then(|owner| {
        let name = fs::read_link(&exe)?.file_name().map(|name| name.display().to_string());
        // After an upgrade the file of a running program is another one.
        let is_named = name.is_some_and(|name| name.trim_end_matches(" (deleted)") == PROGRAM);
        Ok(is_named && [0, asking].contains(&owner))
    });
    let is_program = match program {
        Ok(is_program) => is_program,
        // Of other users' processes only root may see it, and who is not root has no rights to lend.
        Err(error) => error.kind() == ErrorKind::PermissionDenied && !identity::is_root(),
    };
    let owner = fs::metadata(config).ok().map(|dir| dir.uid());
    let allowed = [Some(0), Some(asking), owner, users::in_records(config).map(|user| user.uid)];
    is_program && users::of_process(dir).is_some_and(|user| allowed.contains(&Some(user.uid)))
}

/// The words of a process's command if it is a traffic_server.
fn server_command(dir: &Path) -> Option<Vec<String>> {
    let bytes = fs::read(dir.join("cmdline")).ok()?;
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let program = Path::new(words.first()?).file_name()?;
    (program == PROGRAM).then_some(words)
}

/// Where the process found its directories, if not in the place it was built for.
fn run_root(dir: &Path, command: &[String]) -> Option<PathBuf> {
    if let Some(root) = command.iter().find_map(|word| word.strip_prefix("--run-root=")) {
        return Some(PathBuf::from(root));
    }
    let environment = fs::read(dir.join("environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let root = entry.strip_prefix(b"TS_RUNROOT=")?;
        Some(PathBuf::from(String::from_utf8_lossy(root).into_owned()))
    })
}

/// The configuration directory that a run root names; the root may be its file or its directory.
fn sysconfdir(root: &Path) -> Option<PathBuf> {
    let file = if root.is_dir() { root.join("runroot.yaml") } else { root.to_owned() };
    // Whoever runs a program of that name says where this is: only a file, and of a size.
    let text = try_host_text(&file).ok()?;
    let named = text.lines().find_map(|line| line.strip_prefix("sysconfdir:"))?;
    PathBuf::from(named.trim()).canonicalize().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    #[test]
    fn swap_on_a_disk_is_found() -> std::io::Result<()> {
        let dir = std::env::temp_dir().join(format!("stekctl-swap-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let head = "Filename\tType\tSize\tUsed\tPriority\n";
        fs::write(dir.join("swaps"), format!("{head}/dev/zram0 partition 9 0 1\n"))?;
        assert_eq!(findings(&dir, None, true), []);
        fs::write(dir.join("swaps"), format!("{head}/dev/sda2 partition 9 0 -2\n"))?;
        let found = findings(&dir, None, true);
        let [one] = found.as_slice() else { panic!("{found:?}") };
        let line = one.to_string();
        assert!(line.contains("swaps: /dev/sda2 is in use as swap"), "{line}");
        assert!(line.contains("; swapoff it"), "{line}");
        fs::remove_dir_all(&dir)
    }

    #[test]
    fn a_process_is_known_by_its_command_and_its_run_root() -> std::io::Result<()> {
        let dir = std::env::temp_dir().join(format!("stekctl-core-{}", std::process::id()));
        let (etc, proc, other) = (dir.join("etc"), dir.join("proc"), dir.join("other"));
        for path in [&etc, &other, &proc.join("sys/kernel"), &proc.join("7"), &proc.join("x")] {
            fs::create_dir_all(path)?;
        }
        fs::write(dir.join("runroot.yaml"), format!("sysconfdir: {}\n", etc.display()))?;
        let command = format!("/usr/bin/traffic_server\0--run-root={}\0", dir.display());
        fs::write(proc.join("7/cmdline"), &command)?;
        let limits = "Limit  Soft  Hard  Units\nMax core file size   unlimited  unlimited  bytes\n";
        fs::write(proc.join("7/limits"), limits)?;
        let program = dir.join("traffic_server");
        fs::write(&program, "")?;
        symlink(&program, proc.join("7/exe"))?;
        let status = format!(
            "Name:\ttraffic_server\nUid:\t0\t{}\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t\n",
            identity::asking()
        );
        fs::write(proc.join("7/status"), status)?;
        symlink(proc.join("7"), proc.join("8"))?;
        let found = findings(&proc, Some(&etc), true);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|p| p.to_string().contains("proxy.config.core_limit to 0")));
        assert_eq!(findings(&proc, Some(&other), true), []);
        fs::write(proc.join("sys/kernel/core_pattern"), "|/bin/false\n")?;
        assert_eq!(findings(&proc, Some(&etc), true), []);
        fs::write(proc.join("sys/kernel/core_pattern"), "core\n")?;
        fs::write(proc.join("7/limits"), limits.replace("unlimited", "0"))?;
        assert_eq!(findings(&proc, Some(&etc), true), []);
        // Without a run root it is the one of the usual place.
        fs::write(proc.join("7/limits"), limits)?;
        fs::write(proc.join("7/cmdline"), "traffic_server\0-M\0")?;
        assert_eq!(findings(&proc, Some(&etc), false), []);
        assert_eq!(findings(&proc, Some(&etc), true).len(), 2);
        // Another program under its name, and another user's.
        let is_found = || !servers(&proc, &etc, true).is_empty();
        let (exe, other) = (proc.join("7/exe"), dir.join("sleep"));
        fs::write(&other, "")?;
        let link = |to: &Path| fs::remove_file(&exe).and_then(|()| symlink(to, &exe));
        link(&other)?;
        assert!(!is_found());
        link(&program)?;
        assert!(is_found());
        fs::write(
            proc.join("7/status"),
            "Uid:\t65534\t65534\t65534\t65534\nGid:\t0\t0\t0\t0\nGroups:\t\n",
        )?;
        assert!(!is_found());
        fs::write(etc.join("records.config"), "CONFIG proxy.config.admin.user_id STRING #65534\n")?;
        assert_eq!(is_found(), fs::read_to_string("/etc/passwd")?.contains(":65534:"));
        if identity::is_root() {
            fs::write(proc.join("7/status"), "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t\n")?;
            assert!(is_found());
            chown(&program, Some(65_534), None)?;
            assert!(!is_found());
        }
        fs::write(proc.join("7/cmdline"), "traffic_manager\0")?;
        assert_eq!(findings(&proc, Some(&etc), true), []);
        fs::remove_dir_all(&dir)
    }
}
