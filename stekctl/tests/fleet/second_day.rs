//! What an operator does after the first day: restarts that wait for each other, a machine that was
//! copied.

use std::fs;

use serde_json::Value;
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
    assert!(said.out.starts_with("not ready: server 1: it "), "{said:#?}");
    on(one, &["status", "--self"])?
        .ended(0, "ready: server 1: it encrypts with the group's key")?;
    dir.done()
}
