//! How a fleet's directory is changed, so that a command which is killed on the way can be given again.
//!
//! All that is new is written into a draft within the directory, with the steps that put it in place, the
//! command, and its answer. The draft becomes the record of the change by one renaming; from then on whoever
//! comes next takes the steps that are left, and the same command gets the answer. Invariants: before the record
//! is there nothing else of the directory is changed; a step that was taken can be taken again; no draft
//! or record of another user's is used or removed.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::exit_code::Failure;
use crate::output::complain;

/// Where what was a server's is kept after it left, without its key: no later server gets its number.
pub const REMOVED: &str = "removed";

/// A server's private key, in its folder.
pub const SERVER_KEY: &str = "server.key";

/// The record of a change under way.
const RECORD: &str = ".change";

/// What a draft within the directory is called before the number of its process.
const DRAFT: &str = ".draft";

/// Files of a record: a step on each line; the command that it belongs to; what that prints.
const STEPS: &str = "steps";
const COMMAND: &str = "command";
const ANSWER: &str = "answer";

/// One step of a change. Folders are below the directory, files in folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new folder comes.
    Come(String),
    /// A file comes, or is replaced.
    File(String, String),
    /// A server's folder goes to those that were removed, without its key.
    Leave(String),
    /// A file goes.
    Drop(String, String),
}

impl Step {
    fn line(&self) -> String {
        match self {
            Step::Come(folder) => format!("come {folder}\n"),
            Step::File(folder, name) => format!("file {folder} {name}\n"),
            Step::Leave(folder) => format!("leave {folder}\n"),
            Step::Drop(folder, name) => format!("drop {folder} {name}\n"),
        }
    }

    /// `None` if it is none: nothing outside the directory can be meant.
    fn parse(line: &str) -> Option<Step> {
        let words: Vec<&str> = line.split(' ').collect();
        let is_plain = |name: &&str| {
            let all = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            all && !name.is_empty() && !name.starts_with('.')
        };
        if !words.iter().all(is_plain) {
            return None;
        }
        match words[..] {
            ["come", folder] => Some(Step::Come(folder.into())),
            ["file", folder, name] => Some(Step::File(folder.into(), name.into())),
            ["leave", folder] => Some(Step::Leave(folder.into())),
            ["drop", folder, name] => Some(Step::Drop(folder.into(), name.into())),
            _ => None,
        }
    }

    /// Takes it, unless it was taken before.
    fn take(&self, record: &Path, dir: &Path) -> io::Result<()> {
        match self {
            Step::Come(folder) => unless_gone(fs::rename(record.join(folder), dir.join(folder))),
            Step::File(folder, name) => {
                let [from, to] = [record, dir].map(|place| place.join(folder).join(name));
                unless_gone(fs::rename(from, to))
            }
            Step::Leave(folder) => {
                let (home, removed) = (dir.join(folder), dir.join(REMOVED));
                if !removed.exists() {
                    make_dir(&removed)
                        .map_err(|Failure(lines)| io::Error::other(lines.join(" ")))?;
                }
                unless_gone(fs::remove_file(home.join(SERVER_KEY)))?;
                unless_gone(fs::rename(&home, removed.join(folder)))
            }
            Step::Drop(folder, name) => unless_gone(fs::remove_file(dir.join(folder).join(name))),
        }
    }
}

fn unless_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Where a draft for a change of this directory is written.
pub fn draft(dir: &Path) -> PathBuf {
    dir.join(format!("{DRAFT}.{}", std::process::id()))
}

/// Makes a draft the record of a change, and takes the steps.
///
/// # Errors
/// Why the change is not made, or not all of it; then the same command, given again, goes on with it.
pub fn commit(
    draft: &Path,
    dir: &Path,
    steps: &[Step],
    command: &str,
    answer: &str,
) -> Result<(), Failure> {
    let steps: String = steps.iter().map(Step::line).collect();
    for (name, text) in [(STEPS, &*steps), (COMMAND, command), (ANSWER, answer)] {
        write(draft, name, text.as_bytes())?;
    }
    let record = dir.join(RECORD);
    fs::rename(draft, &record).map_err(|error| {
        Failure::new(format!(
            "{}: cannot be made: {error}; nothing was changed; see whether another stekctl is at work \
             there, and give the command again",
            record.display()
        ))
    })?;
    finish(&record, dir)
}

/// Takes the steps that are left.
fn finish(record: &Path, dir: &Path) -> Result<(), Failure> {
    for line in read(record, STEPS)?.lines() {
        let step = Step::parse(line).ok_or_else(|| {
            Failure::new(format!(
                "{}: {line:?} is no step of a change; move {} away, and compare the server lists of all \
                 servers",
                record.join(STEPS).display(),
                record.display()
            ))
        })?;
        step.take(record, dir).map_err(|error| {
            Failure::new(format!(
                "{}: the change is not done, at '{}': {error}; give the command again",
                dir.display(),
                line.trim()
            ))
        })?;
    }
    Ok(())
}

fn read(record: &Path, name: &str) -> Result<String, Failure> {
    let path = record.join(name);
    fs::read_to_string(&path)
        .map_err(|error| Failure::new(format!("{}: cannot be read: {error}", path.display())))
}

/// Clears what processes that ended left behind, and finishes a change that was interrupted: the answer, if it
/// is that of this very command.
///
/// # Errors
/// Somebody else's, or why it cannot be finished.
pub fn resume(dir: &Path, command: &str) -> Result<Option<String>, Failure> {
    clear_drafts(dir, DRAFT)?;
    let record = dir.join(RECORD);
    if !is_own(&record)? {
        return Ok(None);
    }
    finish(&record, dir)?;
    let (before, answer) = (read(&record, COMMAND)?, read(&record, ANSWER)?);
    if before == command {
        return Ok(Some(answer));
    }
    complain(&format!(
        "note: {}: a change had been interrupted, and is finished first; it had this to say:\n{answer}",
        dir.display()
    ));
    clear(dir)?;
    Ok(None)
}

/// The answer was given, and nothing of the change is left to do.
///
/// # Errors
/// When the record, which has keys in it, cannot be removed.
pub fn clear(dir: &Path) -> Result<(), Failure> {
    // At once, so that nobody finds half of a record if this process is killed.
    let (record, leftover) = (dir.join(RECORD), draft(dir));
    match fs::rename(&record, &leftover) {
        Ok(()) => remove(&leftover),
        Err(_) => remove(&record),
    }
}

/// Removes drafts of this name, with keys in them, whose processes have ended.
///
/// # Errors
/// When one is at work, or it cannot be removed.
pub fn clear_drafts(dir: &Path, name: &str) -> Result<(), Failure> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let pid = file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('.'));
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        let path = entry.path();
        if pid == std::process::id() || !is_own(&path)? {
            continue;
        }
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if program.trim() == "stekctl" {
            return Err(Failure::new(format!(
                "{}: another stekctl, process {pid}, is at work there; wait until it has ended",
                path.display()
            )));
        }
        remove(&path)?;
    }
    Ok(())
}

/// Whether there is such a directory, which has to be of the user who runs this.
fn is_own(path: &Path) -> Result<bool, Failure> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(false) };
    let own = fs::metadata("/proc/self").map(|this| this.uid());
    if found.is_dir() && own.is_ok_and(|own| own == found.uid()) {
        Ok(true)
    } else {
        Err(Failure::new(format!(
            "{}: is no directory of yours; look at it, and move it away",
            path.display()
        )))
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    unless_gone(fs::remove_dir_all(path)).map_err(|error| {
        Failure::new(format!(
            "{}: cannot be removed: {error}; it may hold private keys: remove it",
            path.display()
        ))
    })
}

/// A directory of the owner's alone.
///
/// # Errors
/// Why there is none.
pub fn make_dir(path: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| Failure::new(format!("{}: cannot be made: {error}", path.display())))
}

/// A new file; a key is its owner's alone.
///
/// # Errors
/// Why there is none.
pub fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), Failure> {
    let path = dir.join(name);
    let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&path)
        .and_then(|mut file| {
            file.write_all(content)?;
            // An older one may go for it soon.
            file.sync_all()
        })
        .map_err(|error| Failure::new(format!("{}: cannot be written: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::run_dir::RunDir;

    /// All files below a directory.
    fn files(dir: &Path) -> Vec<(String, String)> {
        fn walk(top: &Path, dir: &Path, found: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(top, &path, found);
                } else {
                    let name = path.strip_prefix(top).unwrap().display().to_string();
                    found.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        let mut found = Vec::new();
        walk(dir, dir, &mut found);
        found.sort();
        found
    }

    fn put(dir: &Path, all: &[(&str, &str)]) {
        for (name, text) in all {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn steps() -> Vec<Step> {
        let pair = |folder: &str, name: &str| (folder.to_owned(), name.to_owned());
        let (ca, key) = (pair("ca", "ca.crt"), pair("ca", "next.key"));
        vec![
            Step::Come("server-3".to_owned()),
            Step::File("server-1".to_owned(), "server_list.yaml".to_owned()),
            Step::File(ca.0, ca.1),
            Step::Leave("server-2".to_owned()),
            Step::Drop(key.0, key.1),
        ]
    }

    /// A directory, and a change of it of which the first steps were taken.
    fn interrupted(top: &RunDir, taken: usize) -> PathBuf {
        let dir = top.join(&format!("fleet-{taken}"));
        put(
            &dir,
            &[("server-1/server_list.yaml", "old"), ("ca/ca.crt", "old"), ("ca/next.key", "x")],
        );
        put(&dir, &[("server-2/server.key", "secret"), ("server-2/server.crt", "two")]);
        let record = dir.join(RECORD);
        put(&record, &[("server-3/server.key", "new"), ("server-1/server_list.yaml", "new")]);
        put(&record, &[("ca/ca.crt", "new"), ("server-1/server.key", "a copy")]);
        let lines: String = steps().iter().map(Step::line).collect();
        put(&record, &[(STEPS, &lines), (COMMAND, "add 3"), (ANSWER, "done: 3\n")]);
        steps().iter().take(taken).for_each(|step| step.take(&record, &dir).unwrap());
        dir
    }

    #[test]
    fn whatever_was_done_of_a_change_the_same_command_finishes_it() {
        let top = RunDir::new("ctl-journal").unwrap();
        let wanted = [
            ("ca/ca.crt", "new"),
            ("removed/server-2/server.crt", "two"),
            ("server-1/server_list.yaml", "new"),
            ("server-3/server.key", "new"),
        ];
        let wanted = wanted.map(|(name, text)| (name.to_owned(), text.to_owned()));
        for taken in 0..=steps().len() {
            let dir = interrupted(&top, taken);
            // Also where the answer was not read to its end.
            for _ in 0..2 {
                assert_eq!(resume(&dir, "add 3").unwrap().as_deref(), Some("done: 3\n"), "{taken}");
            }
            clear(&dir).unwrap();
            assert_eq!(files(&dir), wanted, "{taken}");
            assert_eq!(resume(&dir, "add 3").unwrap(), None, "{taken}");
        }
        // Another command goes on with its own work after it.
        let dir = interrupted(&top, 99);
        assert_eq!(resume(&dir, "remove 1").unwrap(), None);
        assert_eq!(files(&dir), wanted);
        top.done().unwrap();
    }

    #[test]
    fn drafts_of_processes_that_ended_are_cleared_and_no_others() {
        let top = RunDir::new("ctl-drafts").unwrap();
        let dir = top.path();
        // No process has so high a number.
        for name in [".draft.4294967295", ".draft.x", ".draft", ".other.4294967295", "draft.7"] {
            put(&dir.join(name), &[("server.key", "secret")]);
        }
        clear_drafts(dir, DRAFT).unwrap();
        let left: Vec<String> = files(dir).into_iter().map(|(name, _)| name).collect();
        let key = |name: &str| format!("{name}/server.key");
        assert_eq!(left, [".draft.x", ".draft", ".other.4294967295", "draft.7"].map(key));
        std::os::unix::fs::symlink(dir, dir.join(".draft.4294967295")).unwrap();
        let Failure(lines) = clear_drafts(dir, DRAFT).unwrap_err();
        assert!(lines[0].contains("is no directory of yours"), "{lines:?}");
        fs::remove_file(dir.join(".draft.4294967295")).unwrap();
        top.done().unwrap();
    }

    #[test]
    fn a_record_leads_nowhere_else() {
        for line in
            ["come ../x", "file . x", "drop ca ../../x", "come a b", "leave", "", "x y", "come .."]
        {
            assert_eq!(Step::parse(line), None, "{line:?}");
        }
        for step in steps() {
            assert_eq!(Step::parse(step.line().trim_end()), Some(step));
        }
    }
}
