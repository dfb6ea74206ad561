//! What is typed wrongly is answered in one line that says what to type; help fits the screen.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use testkit::run_dir::RunDir;
use testkit::{Error, Result};

/// Runs it, and demands this code and all these words.
fn expect(words: &[&str], code: i32, parts: &[&str]) -> Result<String> {
    expect_with(words, code, parts, |_| {})
}

fn expect_with(
    words: &[&str],
    code: i32,
    parts: &[&str],
    tune: impl FnOnce(&mut Command),
) -> Result<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stekctl"));
    command.args(words).stdin(Stdio::null()).env_remove("COLUMNS");
    tune(&mut command);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let missing = parts.iter().find(|part| !said.contains(*part));
    match (output.status.code() == Some(code), missing) {
        (true, None) => Ok(said),
        _ => Err(Error::new(format!("{words:?}: {:?}, no {missing:?}: {said}", output.status))),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// A fleet's directory, and the configuration of its first server.
fn fleet(dir: &RunDir, addresses: &[&str]) -> Result<PathBuf> {
    let made = dir.join("fleet");
    expect(&[&["init", text(&made)], addresses].concat(), 0, &["Made "])?;
    Ok(made.join("server-1/server_conf.yaml"))
}

#[test]
fn an_address_that_is_given_twice_is_refused() -> Result<()> {
    let dir = RunDir::new("ctl-twice")?;
    let made = dir.join("fleet");
    let words = ["init", text(&made), "10.0.0.1", "10.0.0.2", "10.0.0.1"];
    let said = expect(&words, 3, &["\"10.0.0.1\": is given twice; give each server an address"])?;
    assert!(said.lines().count() == 1 && !made.exists(), "{said}");
    fleet(&dir, &["10.0.0.1", "10.0.0.1:10002"])?;
    dir.done()
}

#[test]
fn what_can_hardly_be_meant_is_told() -> Result<()> {
    let dir = RunDir::new("ctl-meant")?;
    let conf = fleet(&dir, &["10.0.0.1", "10.0.0.2", "127.0.0.1"])?;
    let check = ["check", text(&conf)];
    let told =
        "server_list.yaml line 11: server_id 3: address: 127.0.0.1 means each machine itself";
    expect(&check, 1, &["warning: ", told, "usable: "])?;
    let list = conf.with_file_name("server_list.yaml");
    let good = fs::read_to_string(&list)?;
    for name in ["localhost", "::1", "127.1.2.3", "::ffff:127.0.0.1"] {
        fs::write(&list, good.replace("127.0.0.1", name))?;
        expect(&check, 1, &["warning: ", " means each machine itself"])?;
    }
    // All of them on one machine.
    fs::write(&list, good.replace("10.0.0.", "127.0.0.10"))?;
    let conf_text = fs::read_to_string(&conf)?.replace("10.0.0.", "127.0.0.10");
    fs::write(&conf, &conf_text)?;
    expect(&check, 0, &["usable: "])?;

    let interval = |seconds: &str| {
        fs::write(&conf, conf_text.replace("interval: 3600", &format!("interval: {seconds}")))
    };
    interval("1")?;
    let means = "key_update_interval: 1 means that a ticket is sure to resume for 1 s only";
    expect(&check, 0, &["note: ", means, "give 900 to 43200", "usable: "])?;
    interval("20\nticket_keys: 4")?;
    let said = expect(&check, 0, &["usable: "])?;
    assert!(!said.contains("note: "), "{said}");
    dir.done()
}

#[test]
fn a_path_on_the_command_line_is_not_blamed_on_plugin_config() -> Result<()> {
    let dir = RunDir::new("ctl-path")?;
    let (none, folder) = (dir.join("none.yaml"), dir.join(""));
    for (words, remedy) in [
        (&["-c", text(&none), "status"][..], "server_conf.yaml behind -c, or leave -c out"),
        (&["-c", text(&folder), "wait"], "server_conf.yaml behind -c, or leave -c out"),
        (&["check", text(&none)], "; give the path of a server_conf.yaml"),
    ] {
        let code = if words[0] == "check" { 2 } else { 3 };
        let said = expect(words, code, &[remedy])?;
        assert!(!said.contains("plugin.config;") && !said.contains("path in plugin"), "{said}");
    }
    // Where plugin.config names it, that is what has to be corrected.
    fs::write(dir.join("plugin.config"), "stek_share.so none.yaml\n")?;
    let place = ["--ats-config", text(dir.path()), "status"];
    expect(&place, 3, &["none.yaml: is not there", "correct the path in plugin.config"])?;
    dir.done()
}

#[test]
fn who_is_not_root_is_told_to_be() -> Result<()> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(());
    }
    let dir = RunDir::new("ctl-not-root")?;
    let conf = fleet(&dir, &["10.0.0.1", "10.0.0.2"])?;
    let home = conf.parent().unwrap_or(&conf);
    for path in dir.path().ancestors().take(3).chain([home, &dir.join("fleet")]) {
        let open = fs::metadata(path)?.permissions().mode() | 0o055;
        fs::set_permissions(path, fs::Permissions::from_mode(open))?;
    }
    let hint = "permission denied; give the command as root";
    let nobody = |command: &mut Command| {
        command.uid(65_534).gid(65_534);
    };
    // Not checked is neither good nor bad.
    for words in [
        &["-c", text(&conf), "status"][..],
        &["check", text(&conf)],
        &["-c", text(&conf), "doctor", "--offline"],
    ] {
        let said = expect_with(words, 3, &["server.key: ", hint], nobody)?;
        assert!(!said.contains("let the user that runs Traffic Server"), "{said}");
    }
    dir.done()
}

/// Answers as a plain HTTP server does that is spoken to in TLS.
fn plain_http() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let place = listener.local_addr()?.to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    Ok(place)
}

/// A machine on which there is nothing to find, and the words for it.
fn sound(dir: &RunDir) -> Result<Vec<String>> {
    let conf = fleet(dir, &["10.0.0.1", "10.0.0.2", "10.0.0.3"])?;
    let (etc, proc) = (dir.join("etc"), dir.join("proc"));
    fs::create_dir(&etc)?;
    fs::create_dir(&proc)?;
    fs::write(etc.join("plugin.config"), format!("stek_share.so {}\n", text(&conf)))?;
    fs::write(proc.join("swaps"), "Filename\tType\tSize\tUsed\tPriority\n")?;
    let words = ["--ats-config", text(&etc), "doctor", "--offline", "--proc", text(&proc)]
        .map(str::to_owned);
    Ok(words.to_vec())
}

#[test]
fn an_address_of_tls_may_lack_its_port_and_a_plain_port_is_told_once() -> Result<()> {
    let dir = RunDir::new("ctl-tls")?;
    let words = sound(&dir)?;
    let doctor = |places: &[&str], part: &str| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        expect(&[&words[..], &["--tls"], places].concat(), 2, &[part])
    };
    let place = plain_http()?;
    let said = doctor(&[&place], "what answers there speaks no TLS, as a port for plain HTTP")?;
    assert_eq!(said.lines().count(), 1, "{said}");
    // Of the range for documents nobody answers; what is wrong is said with the port.
    let words = "error: [2001:db8::1]:443: ";
    let said = doctor(&["2001:db8::1", "--timeout", "0.2"], words)?;
    assert_eq!(said.lines().count(), 1, "{said}");
    dir.done()
}

#[test]
fn doctor_says_on_a_terminal_what_it_looked_at() -> Result<()> {
    let dir = RunDir::new("ctl-terminal")?;
    let words = sound(&dir)?;
    let plain: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(expect(&plain, 0, &[])?, "", "a script takes silence for well");
    let line = [&[env!("CARGO_BIN_EXE_stekctl")], &plain[..]].concat().join(" ");
    let output = Command::new("script").args(["-qec", &line, "/dev/null"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    for part in ["nothing found", "server_conf.yaml", "/etc", "swap", "--offline", "give --tls"] {
        assert!(said.contains(part), "no {part}: {said}");
    }
    dir.done()
}

#[test]
fn help_is_a_command_and_fits_eighty_columns() -> Result<()> {
    let help = expect(&["help"], 0, &["Usage: stekctl ", "Exit code: 0 all is well"])?;
    let column = |line: &str| line.rfind("  ").map(|gap| gap + 2);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let list: Vec<&str> = commands.take_while(|line| !line.is_empty()).collect();
    let first = list.first().and_then(|line| column(line));
    let is_below = |line: &&str| column(line) == first;
    assert!(list.len() > 16 && list.iter().all(is_below), "{help}");
    for words in [&["help"][..], &["--help"], &["-h"], &["help", "doctor"], &["renew", "--help"]] {
        let said = expect(words, 0, &["Usage: stekctl"])?;
        let wide = said.lines().find(|line| line.chars().count() > 80);
        assert_eq!(wide, None, "{words:?}");
    }
    assert_eq!(expect(&["help", "wait"], 0, &[])?, expect(&["wait", "--help"], 0, &[])?);
    expect(&["help", "frobnicate"], 3, &["unrecognized subcommand 'frobnicate'"])?;
    Ok(())
}
