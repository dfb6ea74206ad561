//! A command on a fleet's directory that is killed at any moment is given again, and does its work; what the
//! killed one left behind, private keys among it, is gone then.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use testkit::run_dir::RunDir;
use testkit::{Error, Result};

/// Kills on the way of one command, evenly over the time that it takes.
const KILLS: u32 = 24;

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn stekctl(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stekctl"));
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// What of a directory is hidden: drafts and records.
fn hidden(dir: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(dir)?.flatten().map(|entry| entry.file_name().display().to_string());
    Ok(names.filter(|name| name.starts_with('.')).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").args(["-a", text(from), text(to)]).status()?;
    if copied.success() {
        Ok(())
    } else {
        Err(Error::new("cp"))
    }
}

/// Kills a command after a part of its time; answers with whether it had said all.
fn killed(words: &[&str], after: Duration, whole: &str) -> Result<bool> {
    let mut child = stekctl(words).spawn()?;
    thread::sleep(after);
    child.kill()?;
    Ok(said(&child.wait_with_output()?).contains(whole))
}

#[test]
fn a_killed_change_is_given_again() -> Result<()> {
    let dir = RunDir::new("ctl-killed")?;
    let made = dir.join("made");
    let fleet = ["init", text(&made), "10.0.0.1", "10.0.0.2", "10.0.0.3"];
    assert!(stekctl(&fleet).output()?.status.success());
    let at = dir.join("fleet");
    let commands: [(&[&str], &str, &str); 3] = [
        (
            &["add", text(&at), "--offline", "10.0.0.4"],
            "list of now 4 servers",
            "4 of 4 servers answer",
        ),
        (
            &["replace", text(&at), "--offline", "2"],
            "takes the place of server 2",
            "3 of 3 servers answer",
        ),
        (&["renew", text(&at), "--authority"], "step 1 of 3", "the next step:"),
    ];
    for (words, done, whole) in commands {
        copy(&made, &at)?;
        let mut lasts = Duration::MAX;
        for _ in 0..3 {
            fs::remove_dir_all(&at)?;
            copy(&made, &at)?;
            let begun = Instant::now();
            let first = stekctl(words).output()?;
            lasts = lasts.min(begun.elapsed());
            assert!(first.status.success(), "{}", said(&first));
            assert_eq!(hidden(&at)?, Vec::<String>::new());
        }
        let (mut after_all, mut half_done) = (0, 0);
        for kill in 0..KILLS {
            fs::remove_dir_all(&at)?;
            copy(&made, &at)?;
            if killed(words, lasts * kill / KILLS, whole)? {
                after_all += 1;
                continue;
            }
            half_done += u32::from(!hidden(&at)?.is_empty());
            let again = stekctl(words).output()?;
            assert!(again.status.success() && said(&again).contains(done), "{}", said(&again));
            assert_eq!(hidden(&at)?, Vec::<String>::new());
            // One change, not two, and a directory that the next command can go on with.
            let list = fs::read_to_string(at.join("server-1/server_list.yaml"))?;
            let servers = list.matches("server_id: ").count();
            assert_eq!(servers, if words[0] == "add" { 4 } else { 3 }, "{list}");
            let next = stekctl(&["renew", text(&at), "1"]).output()?;
            assert!(next.status.success(), "{}", said(&next));
        }
        println!("{}: {half_done} of {KILLS} on the way, {after_all} too late", words[0]);
        assert!(half_done > 0, "none was killed on the way");
        fs::remove_dir_all(&at)?;
    }
    dir.done()
}

#[test]
fn a_killed_init_leaves_no_keys_behind() -> Result<()> {
    let dir = RunDir::new("ctl-killed-init")?;
    let (made, other) = (dir.join("fleet"), dir.join("other"));
    let addresses: Vec<String> = (1..=20).map(|n| format!("10.0.0.{n}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let words = [&["init", text(&made)], &addresses[..]].concat();
    // Until a draft is left: where keys are is not known before.
    for kill in 1.. {
        killed(&words, Duration::from_millis(10 * kill), "Made ")?;
        if !hidden(dir.path())?.is_empty() {
            break;
        }
        assert!(!made.exists(), "no draft was ever left");
    }
    // Another name's draft is none of this command's business.
    assert!(stekctl(&["init", text(&other), "10.0.0.1"]).output()?.status.success());
    assert_eq!(hidden(dir.path())?.len(), 1);
    let again = stekctl(&words).output()?;
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(hidden(dir.path())?, Vec::<String>::new());
    dir.done()
}
