//! stekctl where no server is needed: check, init, metrics from standard input, help and man pages.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use stek_share::core::config::OPTIONS;
use testkit::run_dir::RunDir;
use testkit::{Error, Result};

fn stekctl(words: &[&str]) -> Result<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_stekctl")).args(words).stdin(Stdio::null()).output()?)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// Runs it, and demands this code and all these words.
fn expect(words: &[&str], code: i32, parts: &[&str]) -> Result<String> {
    let output = stekctl(words)?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let missing = parts.iter().find(|part| !said.contains(*part));
    match (output.status.code() == Some(code), missing) {
        (true, None) => Ok(said),
        _ => Err(Error::new(format!("{words:?}: {:?}, no {missing:?}: {said}", output.status))),
    }
}

/// The directory of the first server of a new fleet.
fn first_server(dir: &RunDir) -> Result<std::path::PathBuf> {
    let made = dir.join("fleet");
    let places = ["127.0.0.1:10001", "127.0.0.1:10002"];
    let words = [&["init", text(&made)], &places[..]].concat();
    expect(&words, 0, &["Three servers are the least"])?;
    Ok(made.join("server-1"))
}

#[test]
fn check_says_what_the_plugin_says_of_each_kind_of_bad_file() -> Result<()> {
    let dir = RunDir::new("ctl-check")?;
    let home = first_server(&dir)?;
    let conf = home.join("server_conf.yaml");
    let words = ["check", text(&conf)];
    expect(
        &words,
        0,
        &["usable: server 1, in a list of 2; certificate /O=stek_share/CN=stek-share-1"],
    )?;
    let cases: [(&str, &str, &str, i32, &[&str]); 8] = [
        (
            "server_conf.yaml",
            "port: 10001",
            "port: 99999",
            2,
            &[
                "error: ",
                "server_conf.yaml line 6: port: 99999 is not a port; give a number from",
                "refused: ",
            ],
        ),
        (
            "server_conf.yaml",
            "port: 10001",
            "prot: 10001",
            2,
            &["warning: ", "line 6: ", "is not a known name", "error: ", "port: "],
        ),
        ("server_conf.yaml", "ca.crt", "no.crt", 2, &["root_cert_file: \"no.crt\" is not there"]),
        ("server_conf.yaml", "server_id: 1", "server_id: 2", 2, &["cert_verify_str"]),
        ("server_conf.yaml", "server_id: 1", "server_id: [", 2, &["is no YAML"]),
        (
            "server_conf.yaml",
            "10001\n",
            "10001\nticket_keyz: 2\n",
            1,
            &["warning: ", "ticket_keyz", "usable: "],
        ),
        ("server_list.yaml", "port: 10002", "port: 10001", 2, &["server_list.yaml line "]),
        ("server.key", "BEGIN", "BEGUN", 2, &["server_key_file: ", "holds no private key"]),
    ];
    for (file, from, to, code, parts) in cases {
        let path = home.join(file);
        let good = fs::read_to_string(&path)?;
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{file} has no {from:?}");
        fs::write(&path, &bad)?;
        let said = expect(&words, code, parts)?;
        let secret = fs::read_to_string(home.join("server.key"))?;
        let leaked = secret.lines().find(|line| !line.contains("---") && said.contains(line));
        assert!(leaked.is_none(), "{said}");
        fs::write(&path, good)?;
    }
    expect(&["check", text(&home.join("none.yaml"))], 2, &["none.yaml: is not there: looked for"])?;
    expect(&words, 0, &["usable: "])?;
    dir.done()
}

/// What `init` writes has a subject for each server. One for all is worth a note, for some a
/// warning, and one in two entries is an error.
#[test]
fn check_tells_what_a_shared_subject_means() -> Result<()> {
    let dir = RunDir::new("ctl-subjects")?;
    let home = first_server(&dir)?;
    let (conf, list) = (home.join("server_conf.yaml"), home.join("server_list.yaml"));
    let words = ["check", text(&conf)];
    let said = expect(&words, 0, &["usable: "])?;
    assert!(!said.contains("note: "), "{said}");
    let (named, good) = (fs::read_to_string(&list)?, fs::read_to_string(&conf)?);
    let mut subjects = named.lines().filter_map(|line| line.split_once("cert_verify_str: "));
    let [(_, one), (_, two)] = [subjects.next(), subjects.next()].map(Option::unwrap_or_default);
    assert!(one != two && subjects.next().is_none(), "{named}");
    fs::write(&list, named.replace(two, one))?;
    expect(&words, 2, &["error: ", "is the subject of server_id 1 too", "refused: "])?;
    fs::write(&conf, good + &format!("cert_verify_str: {one}\n"))?;
    let lines = |keep: &dyn Fn(&&str) -> bool| {
        named.lines().filter(keep).map(|line| format!("{line}\n")).collect::<String>()
    };
    let means = "whoever has the key of one of them can speak as any of them";
    fs::write(&list, lines(&|line| !line.contains("cert_verify_str")))?;
    expect(&words, 0, &["note: ", "all servers have the certificate subject", means, "usable: "])?;
    fs::write(&list, lines(&|line| !line.contains(two)))?;
    expect(&words, 1, &["warning: ", means, "usable: "])?;
    dir.done()
}

#[test]
fn init_overwrites_nothing_and_leaves_nothing_half_done() -> Result<()> {
    let dir = RunDir::new("ctl-init")?;
    let home = first_server(&dir)?;
    let key = fs::read(home.join("server.key"))?;
    let made = dir.join("fleet");
    expect(&["init", text(&made), "10.0.0.1"], 3, &["is not empty; nothing was written"])?;
    assert_eq!(fs::read(home.join("server.key"))?, key);
    let file = dir.join("file");
    fs::write(&file, "mine")?;
    expect(&["init", text(&file), "10.0.0.1"], 3, &["nothing was written"])?;
    assert_eq!(fs::read_to_string(&file)?, "mine");
    expect(
        &["init", "10.0.0.1", "10.0.0.2"],
        3,
        &["10.0.0.1 is an address", "init fleet 10.0.0.1"],
    )?;
    expect(&["init", "[2001:db8::1]:7", "10.0.0.2"], 3, &["is an address, and the first word"])?;
    // What no other machine can use is made, as it was asked for, and told.
    let lone = dir.join("lone");
    let said = expect(&["init", text(&lone), "127.0.0.1", "10.0.0.2"], 0, &["Made "])?;
    assert!(said.starts_with("warning: 127.0.0.1 means each machine itself"), "{said}");
    fs::remove_dir_all(&lone)?;
    let deep = dir.join("none/fleet");
    expect(&["init", text(&deep), "10.0.0.1"], 3, &["there is no directory "])?;
    expect(&["init", text(&dir.join("bad")), "10.0.0.300"], 3, &["\"10.0.0.300\": "])?;
    let empty = dir.join("empty");
    fs::create_dir(&empty)?;
    expect(&["init", text(&empty), "server1.example", "[2001:db8::1]:7", "--days", "3"], 0, &[])?;
    let list = fs::read_to_string(empty.join("server-2/server_list.yaml"))?;
    assert!(list.contains("address: \"server1.example\"\n  port: 10001\n"), "{list}");
    assert!(list.contains("address: \"2001:db8::1\"\n  port: 7\n"), "{list}");
    let conf = empty.join("server-2/server_conf.yaml");
    // A certificate for three days is warned of on the last one only.
    expect(&["check", text(&conf)], 0, &["usable: "])?;
    let left: Vec<_> = fs::read_dir(dir.path())?.flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 3, "fleet, file and empty, and no draft: {left:?}");
    dir.done()
}

#[test]
fn init_takes_a_relative_directory() -> Result<()> {
    let dir = RunDir::new("ctl-relative")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_stekctl"));
    let output = command.current_dir(dir.path()).args(["init", "fleet", "10.0.0.1"]).output()?;
    assert!(output.status.success(), "{output:?}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_stekctl"));
    let words = ["check", "fleet/server-1/server_conf.yaml"];
    let output = command.current_dir(dir.path()).args(words).output()?;
    assert!(output.status.success(), "{output:?}");
    dir.done()
}

#[test]
fn a_configuration_is_found_or_asked_for() -> Result<()> {
    let dir = RunDir::new("ctl-place")?;
    let home = first_server(&dir)?;
    let etc = dir.join("etc");
    fs::create_dir(&etc)?;
    let place = ["--ats-config", text(&etc), "--timeout", "0.5", "status"];
    expect(&place, 3, &["plugin.config: is not there", "give -c server_conf.yaml"])?;
    fs::write(etc.join("plugin.config"), "xdebug.so\n")?;
    expect(&place, 3, &["has no line 'stek_share.so server_conf.yaml'"])?;
    // Nobody listens; but the configuration was found, beside plugin.config.
    fs::rename(&home, etc.join("stek_share"))?;
    fs::write(etc.join("plugin.config"), "stek_share.so stek_share/server_conf.yaml\n")?;
    expect(&place, 2, &["broken: 0 of 2 servers answer", "servers 1 and 2 are unreachable: "])?;
    expect(
        &["--ats-config", "/nowhere", "status"],
        3,
        &["--ats-config /nowhere: is no directory"],
    )?;
    dir.done()
}

#[test]
fn metrics_are_read_from_standard_input() -> Result<()> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_stekctl"))
        .args(["metrics", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(br#"{"global": {"plugin.stek_share.term": "4"}}"#)?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("\nstek_share_term 4\n"), "{said}");
    expect(&["metrics", "-"], 3, &["standard input: is not JSON"])?;
    Ok(())
}

#[test]
fn wrong_words_are_no_result_on_a_fleet() -> Result<()> {
    for words in [&["frobnicate"][..], &[], &["status", "--watch=0"], &["init"], &["man", "a", "b"]]
    {
        expect(words, 3, &["--help"])?;
    }
    expect(&["revoke", "-c", "/nowhere/x.yaml"], 3, &["give --yes"])?;
    Ok(())
}

#[test]
fn every_command_has_help_a_man_page_and_completion() -> Result<()> {
    let dir = RunDir::new("ctl-man")?;
    let help = expect(&["--help"], 0, &["Exit code: 0 all is well"])?;
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    expect(&["man"], 0, &[".TH stekctl 1", "mutual TLS"])?;
    expect(&["man", text(dir.path())], 0, &[])?;
    let commands = [
        "status",
        "wait",
        "rotate",
        "reload",
        "revoke",
        "recover",
        "check",
        "doctor",
        "effect",
        "init",
        "add",
        "remove",
        "replace",
        "renew",
        "metrics",
        "completions",
        "man",
    ];
    for command in commands {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
        let own = expect(&[command, "--help"], 0, &["Usage: stekctl "])?;
        assert!(own.lines().all(|line| line.chars().count() <= 100), "{own}");
        let page = fs::read_to_string(dir.join(&format!("stekctl-{command}.1")))?;
        assert!(page.contains(&format!("stekctl\\-{command}")), "{page}");
        for part in [".SH EXAMPLES", ".SH FILES", ".SH SEE ALSO", "stek_share(8)"] {
            assert!(page.contains(part), "{command}: no {part}: {page}");
        }
        for shell in ["bash", "zsh", "fish"] {
            expect(&["completions", shell], 0, &[command])?;
        }
    }
    let options = fs::read_to_string(dir.join("server_conf.yaml.5"))?;
    for option in OPTIONS {
        let name = format!(".TP\n\\fB{}\\fR", option.name);
        assert!(options.contains(&name), "{name}: {options}");
    }
    let plugin = fs::read_to_string(dir.join("stek_share.8"))?;
    for message in ["reload", "rotate", "revoke", "status"] {
        assert!(plugin.contains(&format!(".TP\n\\fB{message}\\fR")), "{plugin}");
    }
    for page in [options, plugin] {
        assert!(!page.contains(['`', '[']) || page.contains("[stek_share]"), "Markdown: {page}");
    }
    expect(&["man", "/nowhere"], 3, &["stekctl.1: cannot be written"])?;
    dir.done()
}

/// Only root may look as another user; what the plugin may not read is refused, also where root may.
#[test]
fn check_and_doctor_look_with_the_rights_of_the_servers_user() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(());
    }
    let dir = RunDir::new("ctl-user")?;
    let home = first_server(&dir)?;
    let etc = dir.join("etc");
    fs::create_dir(&etc)?;
    fs::write(
        etc.join("plugin.config"),
        format!("stek_share.so {}/server_conf.yaml\n", text(&home)),
    )?;
    fs::write(etc.join("records.config"), "CONFIG proxy.config.admin.user_id STRING nobody\n")?;
    for path in dir.path().ancestors().take(3).chain([home.as_path(), &dir.join("fleet")]) {
        let open = fs::metadata(path)?.permissions().mode() | 0o055;
        fs::set_permissions(path, fs::Permissions::from_mode(open))?;
    }
    for entry in fs::read_dir(&home)?.flatten().filter(|entry| entry.file_name() != "server.key") {
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o644))?;
    }
    let conf = home.join("server_conf.yaml");
    let check = ["--ats-config", text(&etc), "check", text(&conf)];
    let doctor = ["--ats-config", text(&etc), "doctor", "--offline"];
    let key = home.join("server.key");
    let denied = format!("cannot be read, at {}: permission denied", text(&key));
    expect(&check, 2, &["server_key_file", &denied, "configuration, read as user nobody"])?;
    expect(&doctor, 2, &["server_key_file", &denied])?;
    chown(&key, Some(65_534), Some(65_534))?;
    let usable = ["usable: server 1, in a list of 2, read as user nobody; certificate "];
    expect(&check, 0, &usable)?;
    expect(&["--ats-config", text(&etc), "check"], 0, &usable)?;
    expect(&["-c", text(&conf), "--ats-config", text(&etc), "check"], 0, &usable)?;
    // Who looks at a file of no Traffic Server looks as himself.
    let said =
        expect(&["check", text(&conf)], 0, &["usable: server 1, in a list of 2; certificate "])?;
    assert!(!said.contains("as user"), "{said}");
    fs::write(etc.join("records.config"), "CONFIG proxy.config.admin.user_id STRING #-1\n")?;
    expect(&check, 0, &["usable: server 1, in a list of 2; certificate "])?;
    dir.done()
}

/// What the plugin would say of its `state_dir` once it runs is told before.
#[test]
fn check_foresees_what_becomes_of_the_state_file() -> Result<()> {
    let dir = RunDir::new("ctl-state")?;
    let home = first_server(&dir)?;
    let conf = home.join("server_conf.yaml");
    let good = fs::read_to_string(&conf)?;
    let memory = Path::new("/dev/shm").join(format!("stek-ctl-state-{}", std::process::id()));
    fs::create_dir(&memory)?;
    let check = |state: &Path, code, parts: &[&str]| {
        fs::write(&conf, format!("{good}state_dir: {}\n", text(state)))?;
        expect(&["check", text(&conf)], code, parts)
    };
    let unwritten = "server-1.state cannot be written: ";
    let swaps = fs::read_to_string("/proc/swaps")?.lines().count() > 1;
    let fine = check(&memory, i32::from(swaps), &["usable: "])?;
    assert!(!fine.contains(unwritten), "{fine}");
    check(&memory.join("new"), i32::from(swaps), &["usable: "])?;
    check(&memory.join("no/new"), 1, &[unwritten, "No such file", "usable: "])?;
    fs::write(memory.join("file"), "")?;
    check(&memory.join("file"), 1, &[unwritten, "Not a directory", "make state_dir a directory"])?;
    fs::create_dir(memory.join("server-1.state"))?;
    check(&memory, 1, &["is not used: it is no regular file", unwritten, "Is a directory"])?;
    fs::remove_dir(memory.join("server-1.state"))?;
    fs::write(memory.join("server-1.state"), "")?;
    check(&memory, 1, &["is not used: its mode is 644"])?;
    check(Path::new("/proc"), 1, &["state_dir /proc is on proc, not on memory-backed storage"])?;
    if fs::metadata("/proc/self")?.uid() == 0 {
        let fixed = memory.join("fixed");
        fs::create_dir(&fixed)?;
        fs::write(&conf, format!("{good}state_dir: {}\n", text(&fixed)))?;
        let script = "mount -t tmpfs -o ro none \"$1\" && exec \"$2\" check \"$3\"";
        let words = ["-m", "sh", "-c", script, "sh", text(&fixed), env!("CARGO_BIN_EXE_stekctl")];
        let output = Command::new("unshare").args(words).arg(&conf).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() && said.is_empty() {
            println!("no file system can be mounted here: {output:?}");
        } else {
            let line = format!("{unwritten}Read-only file system (os error 30); make state_dir");
            assert!(said.contains(&line) && said.contains("usable: "), "{said}");
        }
    }
    fs::remove_dir_all(&memory)?;
    dir.done()
}

#[test]
fn check_waits_for_no_pipe() -> Result<()> {
    let dir = RunDir::new("ctl-pipe")?;
    let home = first_server(&dir)?;
    let (conf, state) = (home.join("server_conf.yaml"), dir.join("state"));
    fs::create_dir(&state)?;
    let good = fs::read_to_string(&conf)?;
    fs::write(&conf, format!("{good}state_dir: {}\n", text(&state)))?;
    let made = Command::new("mkfifo").arg(state.join("server-1.state")).status()?;
    assert!(made.success(), "{made}");
    // One that waited for a writer would wait for ever.
    let words = ["10", env!("CARGO_BIN_EXE_stekctl"), "check", text(&conf)];
    let said = Command::new("timeout").args(words).output()?;
    let out = String::from_utf8_lossy(&said.stdout);
    assert!(out.contains("is not used: it is no regular file"), "{said:?}");
    dir.done()
}

/// All files below a directory, with their modes.
fn tree(dir: &Path) -> Result<Vec<(std::path::PathBuf, u32, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(tree(&path)?);
        } else {
            let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
            found.push((path.clone(), mode, fs::read(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn changes_of_a_fleets_directory_are_whole_or_not_at_all() -> Result<()> {
    let dir = RunDir::new("ctl-changes-offline")?;
    let made = dir.join("fleet");
    expect(&["init", text(&made), "10.0.0.1", "10.0.0.2", "b.example"], 0, &["Made "])?;
    let fleet = text(&made);
    let conf = made.join("server-1/server_conf.yaml");
    fs::write(&conf, fs::read_to_string(&conf)? + "ticket_keys: 5\n")?;

    // Nobody answers at these addresses.
    let words = ["add", fleet, "10.0.0.4", "--timeout", "0.1"];
    let ask = ["servers 1 and 2 ", "give --offline to go on without asking"];
    let before = tree(&made)?;
    expect(&words, 3, &ask)?;
    for (words, part) in [
        (&["add", fleet, "--offline", "10.0.0.2"][..], "is where server 2 is; give another"),
        (&["add", fleet, "--offline", "10.0.0.4", "10.0.0.4"], "is where server 4 is"),
        (&["add", fleet, "--offline", "10.0.0.400"], "is not an IPv4 address; give an IPv4"),
        (
            &["add", fleet, "--offline", "10.0.0.4", "--days", "4000"],
            "ca/ca.crt: the authority ends",
        ),
        (&["remove", fleet, "--offline", "7"], "has no server 7; give one of 1, 2, 3"),
        (&["remove", fleet, "--offline", "1", "2", "3"], "no server would be left; uninstall"),
        (&["replace", fleet, "--offline", "1", "10.0.0.2"], "is where server 2 is"),
        (&["renew", fleet, "8"], "has no server 8"),
        (&["renew", fleet, "1", "--authority"], "leave out the server numbers"),
        (&["add", text(dir.path()), "10.0.0.4"], "has no folder server-1"),
        (&["add", text(&dir.join("none")), "10.0.0.4"], "that 'stekctl init' made"),
    ] {
        expect(words, 3, &[part])?;
        assert_eq!(before, tree(&made)?, "{words:?} changed something");
    }

    let said = expect(&["add", fleet, "--offline", "--json", "10.0.0.4:7"], 0, &["\"new\":[4]"])?;
    assert!(said.contains("\"schema\":1") && said.contains("server-4/* root@10.0.0.4:"), "{said}");
    let new = made.join("server-4");
    let conf = fs::read_to_string(new.join("server_conf.yaml"))?;
    for line in ["server_id: 4\n", "address: \"10.0.0.4\"\n", "port: 7\n", "ticket_keys: 5\n"] {
        assert!(conf.contains(line), "{conf}");
    }
    expect(
        &["check", text(&new.join("server_conf.yaml"))],
        0,
        &["usable: server 4, in a list of 4"],
    )?;
    for (path, mode, _) in tree(&made)? {
        let wanted = if path.extension().is_some_and(|end| end == "key") { 0o600 } else { 0o644 };
        assert_eq!(mode, wanted, "{}", path.display());
    }

    // Whoever keeps the authority's key elsewhere needs it for new certificates alone.
    let (key, away) = (made.join("ca/ca.key"), dir.join("fleet/away.key"));
    fs::rename(&key, &away)?;
    let no_key = "ca/ca.key: is not there; put the authority's certificate and key back";
    expect(&["replace", fleet, "--offline", "4"], 3, &[no_key])?;
    expect(&["renew", fleet, "1"], 3, &[no_key])?;
    expect(&["remove", fleet, "--offline", "4"], 0, &["left the list of now 3 servers"])?;
    fs::rename(&away, &key)?;
    assert!(!made.join("removed/server-4/server.key").exists() && !new.exists());
    // The certificate of the one that left names server 4.
    let said = expect(&["replace", fleet, "--offline", "2"], 0, &["takes the place of server 2"])?;
    assert!(said.contains("server 5 (10.0.0.2:10001)"), "{said}");
    let last = "make its keys useless:\n     stekctl revoke\n";
    assert!(said.ends_with(last), "{said}");
    let list = fs::read_to_string(made.join("server-1/server_list.yaml"))?;
    assert!(list.contains("CN=stek-share-5") && !list.contains("CN=stek-share-2"), "{list}");

    let before = tree(&made)?;
    let certificate = made.join("server-1/server.crt");
    expect(&["renew", fleet, "1", "--days", "90"], 0, &["server.crt and server.key"])?;
    let after = tree(&made)?;
    let changed: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).collect();
    assert_eq!(changed.len(), 2, "{changed:?}");
    assert_eq!(changed[0].0 .0, certificate);

    // A name of the directory without a name.
    let output = Command::new(env!("CARGO_BIN_EXE_stekctl"))
        .args(["renew", ".", "--authority"])
        .current_dir(&made)
        .output()?;
    assert!(String::from_utf8_lossy(&output.stdout).contains("step 1 of 3"), "{output:?}");
    let under_way = "finish it first with stekctl renew ";
    expect(&["add", fleet, "--offline", "10.0.0.9"], 3, &[under_way])?;
    let left: Vec<_> = fs::read_dir(dir.path())?.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["fleet"], "no draft is left behind");

    fs::write(made.join("server-3/server_list.yaml"), "- server_id: 3\n")?;
    expect(&["renew", fleet], 3, &["server-3/server_list.yaml"])?;
    dir.done()
}

#[test]
fn a_text_file_of_metrics_is_whole_and_says_when_nobody_answers() -> Result<()> {
    let dir = RunDir::new("ctl-textfile")?;
    let file = dir.join("stek_share.prom");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let url = format!("http://{nobody}/_stats");
    let words = ["metrics", "--textfile", text(&file), "--fleet", "edge", &url];
    expect(&words, 2, &["cannot be reached at", "says stek_share_up 0"])?;
    let away = fs::read_to_string(&file)?;
    assert!(away.ends_with("\nstek_share_up{fleet=\"edge\"} 0\n"), "{away}");
    assert_eq!(away.lines().count(), 3, "{away}");

    let mut child = Command::new(env!("CARGO_BIN_EXE_stekctl"))
        .args(["metrics", "--textfile", text(&file), "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    let said = r#"{"global": {"plugin.stek_share.up": "1", "server": "9.2.5"}}"#;
    child.stdin.take().map(|mut pipe| pipe.write_all(said.as_bytes())).transpose()?;
    assert!(child.wait()?.success());
    let there = fs::read_to_string(&file)?;
    assert!(there.contains("\nstek_share_up 1\n") && there.contains("stek_share_info{"), "{there}");
    assert_eq!(fs::metadata(&file)?.mode() & 0o777, 0o644, "the exporter is another user");
    let names: Vec<_> =
        fs::read_dir(dir.path())?.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["stek_share.prom"], "no draft is left");
    let nowhere = dir.join("none/stek_share.prom");
    expect(
        &["metrics", "--textfile", text(&nowhere), &url],
        3,
        &["cannot be written: No such file"],
    )?;
    dir.done()
}

/// What is typed wrongly at night, and what has to be in the answer: what is wrong, and what to type.
#[test]
fn each_slip_is_told_with_what_to_type_instead() -> Result<()> {
    let dir = RunDir::new("ctl-slips")?;
    let home = first_server(&dir)?;
    let fleet = dir.join("fleet");
    let (fleet, home) = (text(&fleet), text(&home));
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let url = format!("http://{nobody}/_stats");
    let conf = dir.join("fleet/server-1/server_conf.yaml");
    let conf = text(&conf);
    // What no other machine can use is made, as it was asked for, and told.
    let lone = dir.join("lone");
    let said = expect(&["init", text(&lone), "127.0.0.1", "10.0.0.2"], 0, &["Made "])?;
    assert!(said.starts_with("warning: 127.0.0.1 means each machine itself"), "{said}");
    fs::remove_dir_all(&lone)?;
    let deep = dir.join("none/fleet");
    let new = dir.join("new");
    let (deep, new) = (text(&deep), text(&new));
    type Slip<'a> = (&'a [&'a str], &'a [&'a str]);
    let slips: &[Slip<'_>] = &[
        (&["init", deep, "a"], &["there is no directory ", "give another directory"]),
        (&["init", "/etc/hostname", "a"], &["/etc/hostname: is no directory; nothing was written"]),
        (&["init", new, "fd00::1:10002"], &["in brackets, as in [2001:db8::1]:10002"]),
        (&["init", new, "Edge.example", "edge.EXAMPLE"], &["\"edge.EXAMPLE\": is given twice"]),
        (&["add", "/nowhere", "a"], &["/nowhere: is not there; give the directory that"]),
        (&["add", "/etc/hostname", "a"], &["/etc/hostname: is no directory; give the directory"]),
        (&["add", home, "a"], &["has no folder server-1 or of another server; give the directory"]),
        (
            &["remove", fleet, "127.0.0.1"],
            &["give a server's number in the", "and not its address"],
        ),
        (&["remove", fleet, "99999999999"], &["give a server's number in the"]),
        (&["remove", fleet, "9", "--offline"], &["has no server 9; give one of 1, 2"]),
        (&["replace", fleet, "one"], &["give a server's number in the"]),
        (&["renew", fleet, "-1"], &["--help"]),
        (
            &["-c", conf, "recover", "--survivors", "1,9", "--yes"],
            &["no server 9; give those of 1, 2"],
        ),
        (
            &["metrics", "8080"],
            &["8080: is no http:// URL; give one such as http://127.0.0.1:8080"],
        ),
        (&["metrics", &url], &["cannot be reached at ", "; see that Traffic Server runs there"]),
        (
            &["metrics", "--textfile", "/nowhere/x", "-"],
            &["--textfile /nowhere/x", "; give a file"],
        ),
        (&["man", "/nowhere"], &["/nowhere/stekctl.1: cannot be written: ", "; give a directory"]),
    ];
    for (words, parts) in slips {
        let said = expect(words, 3, parts)?;
        assert!(said.starts_with("error: "), "{words:?}: {said}");
    }
    assert!(!dir.join("new").exists() && !dir.join("none").exists());
    dir.done()
}
