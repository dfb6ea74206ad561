//! What an operator does after the first day: restarts that wait for each other, a machine that was
//! copied, lists that change, files that are at fault.

use std::fs;
use std::path::Path;

use serde_json::Value;
use testkit::ats::Ats;
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::{wait, Context, Error, Result};

use crate::stage::{on, plan, rewrite, turn, wait_code, wait_healthy, PATIENCE};

#[test]
fn a_server_waits_for_itself_alone_and_a_copied_one_is_told() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-second")?;
    let mut fleet = plan(4)?.prepare(dir.path())?;
    // The fourth is a copy of the first on another machine, for which another address stands here.
    let first = fs::read_to_string(fleet.servers[0].etc().join("server_conf.yaml"))?;
    let [.., copy] = fleet.servers.as_slice() else { return Err(Error::new("no servers")) };
    let own = format!("{}/", copy.etc().display());
    let other = format!("{}/", fleet.servers[0].etc().display());
    let conf = first.replace(&other, &own) + "bind_address: 127.0.0.9\n";
    fs::write(copy.etc().join("server_conf.yaml"), conf).context("server_conf.yaml")?;
    for ats in &fleet.servers {
        rewrite(&ats.etc().join("server_list.yaml"), |list| {
            list.split("- server_id: 4").next().unwrap_or_default().to_owned()
        })?;
    }
    for ats in &mut fleet.servers[..3] {
        ats.start()?;
    }
    wait_healthy(&fleet.servers[0])?;
    let [one, two, three, copy] = &mut fleet.servers[..] else {
        return Err(Error::new("not four servers"));
    };

    copy.start()?;
    wait::until(PATIENCE, "the copy's answer", || {
        let said = on(copy, &["status", "--self"])?;
        let told = said.out.starts_with("not ready: server 1: it encrypts with a key of its own");
        Ok((said.code == 2 && told).then_some(()))
    })?;
    let said = on(copy, &["status"])?;
    said.ended(2, "broken: server_id 1 is on this machine (127.0.0.9:")?;
    said.line(&["and elsewhere: another process answers as server 1 at 127.0.0.1:"])?;
    said.line(&["*1 ", "own"])?;
    let json: Value = serde_json::from_str(&on(copy, &["status", "--json"])?.out)
        .map_err(|error| Error::new(error.to_string()))?;
    let codes = json["reasons"].as_array().cloned().unwrap_or_default();
    assert!(codes.iter().any(|reason| reason["code"] == "duplicate_id"), "{json:#}");
    on(copy, &["doctor", "--proc", "/nowhere"])?.ended(2, "error: fleet: server_id 1 is on")?;
    on(copy, &["--timeout", "1", "wait"])?.ended(2, "key of its own, as it has none of the")?;
    on(one, &["status"])?.ended(0, "healthy: 3 of 3")?;
    copy.stop(Signal::Interrupt)?;
    // What another machine says is no trouble of the fleet's, but said it has to be.
    let said = on(copy, &["status"])?;
    said.ended(0, "note: no plugin of server 1 answers on this machine (127.0.0.9:")?;

    // A standing warning holds up no upgrade.
    three.stop(Signal::Interrupt)?;
    wait_code(1, || on(one, &["status"]))?;
    for ats in [&*one, &*two] {
        on(ats, &["wait"])?.ended(0, "ready: server ")?;
        on(ats, &["status", "--self"])?
            .ended(0, "it encrypts with the group's key, generation ")?;
    }
    on(three, &["status", "--self"])?.ended(2, "not ready: server 3: its plugin at 127.0.0.1:")?;
    three.start()?;
    on(three, &["wait"])?.ended(0, "ready: server 3: ")?;

    // Without a majority a server is fit for clients, but nobody should restart the next one.
    two.stop(Signal::Interrupt)?;
    three.stop(Signal::Interrupt)?;
    let said = wait_code(2, || on(one, &["--timeout", "1", "wait"]))?;
    assert!(said.out.starts_with("not ready after 1 s: server 1: it "), "{said:#?}");
    on(one, &["status", "--self"])?
        .ended(0, "ready: server 1: it encrypts with the group's key")?;
    dir.done()
}

/// The entries of a list that are in front of this server's.
fn before(list: &Path, id: u32) -> Result<String> {
    let text = fs::read_to_string(list).context(list.display())?;
    Ok(text.split(&format!("- server_id: {id}\n")).next().unwrap_or_default().to_owned())
}

fn give(list: &str, servers: &[Ats]) -> Result<()> {
    let put = |ats: &Ats| fs::write(ats.etc().join("server_list.yaml"), list).context("the list");
    servers.iter().try_for_each(put)
}

#[test]
fn a_list_changes_and_faults_of_files_are_told_by_reload_and_status() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-lists")?;
    let mut fleet = plan(4)?.prepare(dir.path())?;
    let list = fleet.servers[0].etc().join("server_list.yaml");
    let (three, four) = (before(&list, 4)?, before(&list, 5)?);
    give(&three, &fleet.servers[..3])?;
    fleet.servers.iter_mut().try_for_each(Ats::start)?;
    wait_healthy(&fleet.servers[0])?;
    let servers = &fleet.servers;
    let (one, new) = (&servers[0], &servers[3]);

    // A server that waits is no fault of a certificate, and the group is not broken by it.
    let said = wait_code(2, || on(new, &["status"]))?;
    said.line(&[
        "broken: server 4 is not in the group's list, and encrypts with a key of its own",
    ])?;
    assert!(!said.out.contains("certificate"), "{said:#?}");
    give(&four, &servers[..1])?;
    let said = on(one, &["status"])?;
    said.ended(1, "degraded: server 4 is in the file here and waits")?;
    assert!(!said.out.contains("broken"), "{said:#?}");

    // One file is not enough, and that stays to be seen.
    let missing = "servers 2 and 3 do not have this list yet";
    on(one, &["reload"])?.ended(2, missing)?;
    on(one, &["status"])?.line(&["degraded: server 1: its reload ", missing])?;
    give(&four, servers)?;
    let said = on(one, &["reload", "--all"])?;
    said.ended(0, "the group's server list, version 2 now")?;
    assert_eq!(said.out.matches("done: server ").count(), 4, "{said:#?}");
    on(new, &["wait"])?.ended(0, "ready: server 4")?;
    wait_healthy(one)?;
    assert!(one.diags().contains("reload: ordered by user "), "{}", one.diags());
    on(new, &["rotate"])?.ended(0, "done: generation ")?;
    let ordered = servers.iter().any(|ats| ats.diags().contains("rotate: ordered by user "));
    assert!(ordered, "no log says who had the key replaced");
    assert!(!one.diags().contains("ordered by user unknown"), "{}", one.diags());
    for ats in servers {
        assert!(!ats.diags().contains("differs from the list that the group"), "{}", ats.diags());
    }

    // Files that are at fault are told before somebody restarts with them.
    give("", &servers[1..])?;
    let said = on(one, &["reload", "--all"])?;
    said.ended(2, "failed: server 2 (")?;
    assert_eq!(said.out.matches("failed: server ").count(), 3, "{said:#?}");
    let said = on(one, &["status"])?;
    assert_eq!(
        (said.code, said.out.matches("s ago was not carried out: ").count()),
        (1, 3),
        "{said:#?}"
    );
    give(&four, servers)?;
    on(one, &["reload", "--all"])?.ended(0, "done: server 4 (")?;
    wait_healthy(one)?;

    // A server that was removed says so, and is missed by nobody.
    give(&three, &servers[..3])?;
    on(one, &["reload"])?.ended(0, "the group's server list, version 3 now")?;
    wait_healthy(one)?;
    let said = wait_code(2, || on(new, &["status"]))?;
    said.line(&["broken: server 4 ", "group's list", "stop its plugin"])?;
    assert!(!said.out.contains("certificate"), "{said:#?}");
    dir.done()
}
