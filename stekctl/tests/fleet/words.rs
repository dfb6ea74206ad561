//! One matter is one line, wherever it is read: what the plugin logs, `check`, `doctor` and `status` say
//! the same of each fault that was met in the field, word for word.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{chown, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::thread;

use testkit::ats::Ats;
use testkit::fleet::{Fleet, Place};
use testkit::host::host;
use testkit::nameserver::{self, is_root, NameServer};
use testkit::pages::is_in_troubleshooting;
use testkit::pki::Authority;
use testkit::run_dir::RunDir;
use testkit::sys::lock;
use testkit::{Context, Error, Result};

use crate::stage::{
    addresses, has_all, machine, plan, plugin, rewrite, text, turn, Said, PATIENCE,
};
use crate::word_cases::{state_dir, Case, Lives, Stage, Who, ALL, CASES};

/// What each line begins with that says what follows from those above it.
const FOLLOWS: &str = "stek_share does nothing";

/// Cases that are tried at the same time. They have nothing in common; only one has name servers, whose
/// addresses are fixed.
const AT_ONCE: usize = 4;

#[test]
fn plugin_check_doctor_and_status_say_the_same_word_for_word() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-words")?;
    // Not all servers are root.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let go_on = || {
        while let Some((number, case)) = nth(next.fetch_add(1, Ordering::Relaxed)) {
            let home = dir.join(&format!("case-{number}"));
            if let Err(error) = try_case(number, case, &home) {
                lock(&failed).push(format!("case {number} {:?}: {error}", case.lines));
            }
        }
    };
    thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(go_on))));
    let failed = std::mem::take(&mut *lock(&failed));
    let _ = fs::remove_file(state_dir("file"));
    let _ = fs::remove_dir_all(state_dir("directory"));
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    dir.done()
}

/// A case with its number.
fn nth(number: usize) -> Option<(usize, &'static Case)> {
    CASES.get(number).map(|case| (number, case))
}

fn try_case(number: usize, case: &Case, home: &Path) -> Result<()> {
    let version = host()?.version();
    if !case.hosts.contains(&version) {
        println!("case {number} is not tried: Traffic Server {version} has no such fault");
        return Ok(());
    }
    if case.lives != Lives::Plainly && !is_root()? {
        println!("case {number} is not tried: needs root");
        return Ok(());
    }
    fs::create_dir(home)?;
    agree(home, case)
}

/// The server of a case, not started yet, alone or with the one beside it.
fn prepare(home: &Path, case: &Case) -> Result<Fleet> {
    let variables = case.environment.iter().map(|v| v.replace("HOME", text(home)));
    let environment: Vec<String> = match case.environment {
        [] => Vec::new(),
        _ => ["env".to_owned()].into_iter().chain(variables).collect(),
    };
    let plain = Place { address: Ipv4Addr::LOCALHOST.into(), wrapper: environment };
    let nobody = NOBODY.to_string();
    let place = match case.lives {
        Lives::AsNobody => {
            let words = ["setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"];
            let words = words.into_iter().chain(["--pdeathsig", "KILL"]);
            Place { wrapper: words.map(str::to_owned).collect(), ..plain }
        }
        Lives::ByName => nameserver::place(home, "nameserver 127.88.2.1\nnameserver 127.88.2.2\n")?,
        _ => plain,
    };
    let size = if case.lives == Lives::BesideAnother { 2 } else { 1 };
    let fleet = plan(size)?.places(&[place]).prepare(home)?;
    let ats = &fleet.servers[0];
    match case.lives {
        Lives::AsNobody => {
            let copy = home.join("stek_share.so");
            fs::copy(plugin()?, &copy)?;
            let conf = ats.etc().join("server_conf.yaml");
            let line = format!("{} {}\n", copy.display(), conf.display());
            fs::write(ats.etc().join("plugin.config"), line)?;
            fs::set_permissions(home, fs::Permissions::from_mode(0o755))?;
            to_nobody(home)?;
        }
        Lives::ByName => {
            for file in ["server_conf.yaml", "server_list.yaml"] {
                rewrite(&ats.etc().join(file), |old| {
                    old.replace("address: 127.0.0.1\n", "address: server1.example\n")
                })?;
            }
        }
        Lives::Alone => {
            let port = testkit::ports::take()?;
            let entry = format!("- server_id: 2\n  address: 127.0.0.1\n  port: {port}\n");
            rewrite(&ats.etc().join("server_list.yaml"), |old| format!("{old}{entry}"))?;
        }
        Lives::Plainly | Lives::BesideAnother => {}
    }
    Ok(fleet)
}

/// Whoever nobody is.
const NOBODY: u32 = 65_534;

fn to_nobody(path: &Path) -> Result<()> {
    chown(path, Some(NOBODY), Some(NOBODY))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            to_nobody(&entry?.path())?;
        }
    }
    Ok(())
}

/// Runs the command where the server lives.
fn run(lives: Lives, home: &Path, words: &[&str]) -> Result<Said> {
    let program = env!("CARGO_BIN_EXE_stekctl").to_owned();
    let place = match lives {
        Lives::ByName => {
            Some(nameserver::place(home, "nameserver 127.88.2.1\nnameserver 127.88.2.2\n")?)
        }
        _ => None,
    };
    let before = place.map(|place| place.wrapper).unwrap_or_default();
    let all: Vec<&str> = before.iter().chain([&program]).map(String::as_str).collect();
    let [first, rest @ ..] = &all[..] else { return Err(Error::new("no command")) };
    let output = Command::new(first).args(rest).args(words).output().context("stekctl")?;
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn agree(home: &Path, case: &Case) -> Result<()> {
    let _servers = match case.lives {
        Lives::ByName => Some((
            NameServer::start(Ipv4Addr::new(127, 88, 2, 1), None)?,
            NameServer::start(Ipv4Addr::new(127, 88, 2, 2), Some(std::time::Duration::ZERO))?,
        )),
        _ => None,
    };
    let mut fleet = prepare(home, case)?;
    let https = addresses(&fleet);
    let etc = fleet.servers[0].etc();
    let authority = Authority::new("/CN=words")?;
    (case.plant)(&Stage { home: home.to_owned(), etc: etc.clone(), authority })?;
    fleet.servers.iter_mut().try_for_each(Ats::start)?;
    // Not all of them give tickets.
    for ats in &mut fleet.servers {
        ats.wait_first(|address| Ok(TcpStream::connect(address)?))?;
    }
    let ats = &fleet.servers[0];
    let expected_of = |who: Who| match case.except.iter().find(|except| except.who == who) {
        Some(except) => except.lines,
        None => case.lines,
    };
    let is_refused = ats.diags().contains(FOLLOWS);
    if !is_refused && case.lives != Lives::Alone {
        ats.wait_diags("(generation ", PATIENCE)?;
    }
    let all_there = || Ok((logged(ats).len() >= expected_of(Who::Log).len()).then_some(()));
    testkit::wait::until(PATIENCE, "the lines of the log", all_there)?;
    let proc = machine(home, &fleet.servers.iter().collect::<Vec<_>>())?;
    let conf = etc.join("server_conf.yaml");
    let place = ["--ats-config", text(&etc), "--timeout", "10"];
    let run = |words: &[&str]| run(case.lives, home, &[&place[..], words].concat());
    let tickets: &[&str] = if case.tls { &["--sni", "localhost", "--tls", &https[0]] } else { &[] };
    let check = run(&["-c", text(&conf), "check", text(&conf)])?;
    let doctor = run(&[&["doctor", "--proc", text(&proc)][..], tickets].concat())?;
    let status = run(&["status"])?;
    let of = |who: Who| match who {
        Who::Log => logged(ats),
        Who::Check => said(&check),
        Who::Doctor => said(&doctor),
        Who::Status => told_by_status(&status, is_refused),
    };
    let is_excepted = |who: &Who| case.except.iter().any(|except| except.who == *who);
    let mut agreeing = ALL.into_iter().filter(|who| !is_excepted(who));
    if let Some(first) = agreeing.next() {
        let (words, rest) = (of(first), agreeing);
        for other in rest {
            compare((first, &words), (other, &of(other)))?;
        }
        has_lines(first, &words, case.lines)?;
    }
    for except in case.except {
        has_lines(except.who, &of(except.who), except.lines)
            .map_err(|error| Error::new(format!("{error}, excepted for {:?}", except.why)))?;
    }
    Ok(())
}

/// Each expectation is met by one line, and there are no others.
fn has_lines(who: Who, words: &BTreeSet<String>, lines: &[&[&str]]) -> Result<()> {
    for parts in lines {
        let is_it = |line: &&String| has_all(line, parts);
        if words.iter().filter(is_it).count() != 1 {
            return Err(Error::new(format!("{who:?}: not one line with {parts:?}: {words:#?}")));
        }
    }
    if let Some(line) = words.iter().find(|line| !is_in_troubleshooting(line)) {
        return Err(Error::new(format!("docs/troubleshooting.md has no row for: {line}")));
    }
    if words.len() == lines.len() {
        Ok(())
    } else {
        Err(Error::new(format!("{who:?}: nobody expected all of {words:#?}")))
    }
}

fn compare(one: (Who, &BTreeSet<String>), other: (Who, &BTreeSet<String>)) -> Result<()> {
    if one.1 == other.1 {
        Ok(())
    } else {
        Err(Error::new(format!("{:?} says {:#?}, {:?} {:#?}", one.0, one.1, other.0, other.1)))
    }
}

/// What `status` says of the first server, and of differences between servers.
fn told_by_status(status: &Said, is_refused: bool) -> BTreeSet<String> {
    if is_refused {
        let lines = status.err.lines().filter_map(|line| line.split_once(": "));
        return lines.map(|(word, line)| format!("{word}: {line}")).collect();
    }
    let reason = |line: &str| {
        let (word, rest) = line.split_once(": ")?;
        // What breaks the fleet is an error, what only degrades it a warning.
        let word = if word == "broken" { "error" } else { "warning" };
        let of_one = rest.strip_prefix("server 1: ");
        let rest = of_one.or(rest.starts_with(DIFFER).then_some(rest))?;
        Some(format!("{word}: {rest}"))
    };
    status.out.lines().filter(|line| !line.contains("LimitMEMLOCK")).filter_map(reason).collect()
}

/// How lines about policies begin that are not the same on all servers.
const DIFFER: &str = "not all servers ask the same";

/// The warnings and errors of the plugin, each with the word for how bad it is.
fn logged(ats: &Ats) -> BTreeSet<String> {
    let diags = ats.diags();
    let ours = diags.lines().filter_map(|line| line.split_once("[stek_share] "));
    let ours = ours.filter_map(|(before, line)| {
        let word = match before {
            _ if before.contains("ERROR: ") => "error",
            _ if before.contains("WARNING: ") => "warning",
            _ => return None,
        };
        let is_meant = !line.starts_with(FOLLOWS) && !line.contains("LimitMEMLOCK");
        is_meant.then(|| format!("{word}: {line}"))
    });
    ours.collect()
}

/// What a command says of faults.
fn said(said: &Said) -> BTreeSet<String> {
    let line = |line: &&str| {
        let (word, rest) = line.split_once(": ")?;
        // Of what a server says doctor names the server; that one that was refused does not answer is a
        // matter of its own.
        let rest = rest.strip_prefix("fleet: server 1: ").unwrap_or(rest);
        let of_policies = rest.strip_prefix("fleet: ").filter(|rest| rest.starts_with(DIFFER));
        let rest = of_policies.unwrap_or(rest);
        let is_fault = matches!(word, "error" | "warning") && !rest.starts_with("fleet: ");
        is_fault.then(|| format!("{word}: {rest}"))
    };
    said.lines().iter().filter_map(line).collect()
}
