//! What init writes is a fleet that works, and that strangers cannot steer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::ats::Ats;
use testkit::pki::Identity;
use testkit::run_dir::RunDir;
use testkit::{ports, Error, Result};

use crate::stage::{install, machine, stekctl, text, turn, wait_code};

#[test]
fn what_init_writes_works_in_traffic_servers() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-init")?;
    let made = dir.join("fleet");
    let places: Vec<String> =
        ports::take_many(3)?.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let said = stekctl(&[&["init", text(&made)], &places[..]].concat())?;
    said.ended(0, "server-3/  for the server at 127.0.0.1, port ")?;
    assert_keys_are_private(&made)?;

    let site = Identity::self_signed("/CN=localhost")?.write(dir.path(), "site")?;
    let mut servers = Vec::new();
    for id in 1..=3 {
        let home = made.join(format!("server-{id}"));
        stekctl(&["check", text(&home.join("server_conf.yaml"))])?.ended(0, "usable: server ")?;
        let ats = Ats::builder(&dir.join(&format!("server-{id}"))).certificate(&site);
        let mut ats = ats.record("proxy.config.core_limit INT 0").build()?;
        install(&home, &ats)?;
        ats.start()?;
        servers.push(ats);
    }
    // As an operator does: nothing is named but where Traffic Server's files are.
    let on = |index: usize, words: &[&str]| {
        let etc = servers[index].etc();
        stekctl(&[&["--ats-config", text(&etc)], words].concat())
    };
    wait_code(0, || on(0, &["status"]))?;
    let all: Vec<&Ats> = servers.iter().collect();
    let proc = machine(dir.path(), &all)?;
    let said = on(2, &["doctor", "--proc", text(&proc)])?;
    assert!(said.lines().is_empty(), "{said:#?}");
    on(1, &["rotate"])?.ended(0, "done: generation 2 is in use")?;

    the_pages_way_to_try_a_ticket_works(&dir, &servers)?;
    strangers_are_refused(&dir, &places, &servers)?;
    on(0, &["status"])?.ended(0, "generation 2,")?;
    dir.done()
}

/// The two commands of docs/troubleshooting.md, with these servers' addresses.
fn the_pages_way_to_try_a_ticket_works(dir: &RunDir, servers: &[Ats]) -> Result<()> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");
    let page = fs::read_to_string(page)?;
    let lines: Vec<&str> =
        page.lines().map(str::trim).filter(|line| line.starts_with("openssl s_client ")).collect();
    let [take, offer] = lines[..] else { return Err(Error::new(format!("{lines:?}"))) };
    let run = |line: &str| {
        let at = |index: usize| servers[index].https().to_string();
        let line = line.replace("server1:443", &at(0)).replace("server2:443", &at(1));
        let output = Command::new("sh").args(["-c", &line]).current_dir(dir.path()).output()?;
        Ok::<_, Error>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    run(take)?;
    let said = run(offer)?;
    assert!(said.starts_with("Reused, "), "{said}");
    Ok(())
}

fn assert_keys_are_private(made: &Path) -> Result<()> {
    let homes = ["ca", "server-1", "server-2", "server-3"].map(|name| made.join(name));
    let mut keys: Vec<PathBuf> = Vec::new();
    for home in &homes {
        assert_eq!(fs::metadata(home)?.permissions().mode() & 0o777, 0o700, "{}", home.display());
        for entry in fs::read_dir(home)? {
            let path = entry?.path();
            if fs::read_to_string(&path)?.contains("PRIVATE KEY") {
                let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "{}", path.display());
                keys.push(path);
            }
        }
    }
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert!(homes[1..].iter().all(|home| !home.join("ca.key").exists()));
    Ok(())
}

/// Neither a fleet of the same addresses with an authority of its own, nor a server of this one that
/// uses another's certificate.
fn strangers_are_refused(dir: &RunDir, places: &[&str], servers: &[Ats]) -> Result<()> {
    let foreign = dir.join("foreign");
    stekctl(&[&["init", text(&foreign)], places].concat())?.ended(0, "Made ")?;
    let conf = foreign.join("server-1/server_conf.yaml");
    for words in [&["rotate"][..], &["revoke", "--yes"]] {
        let said = stekctl(&[&["-c", text(&conf)], words].concat())?;
        said.ended(3, "nothing was done")?;
        let told = said
            .err
            .matches("servers 1, 2 and 3 do not answer, each for this cause: its certificate");
        assert_eq!(told.count(), 1, "{said:#?}");
    }
    let said = stekctl(&["-c", text(&conf), "status"])?;
    said.ended(2, "broken: no server answers")?;
    for ats in servers {
        let diags = ats.diags();
        assert!(!diags.contains("generation 3"), "{diags}");
    }
    Ok(())
}
