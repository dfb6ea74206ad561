//! Servers that do not ask the same of their clients are named, with what they differ in.

use std::fs;

use testkit::ats::Ats;
use testkit::host;
use testkit::run_dir::RunDir;
use testkit::Result;

use crate::stage::{on, plan, turn, PATIENCE};

const LEVEL: &str = "proxy.config.ssl.client.certification_level INT";

fn sites(strict: &str) -> String {
    format!("sni:\n- fqdn: Shop.example\n  verify_client: {strict}\n- fqdn: api.example\n  http2: off\n")
}

#[test]
fn servers_that_do_not_ask_the_same_of_clients_are_named() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-policies")?;
    let mut fleet = plan(2)?.manager().prepare(dir.path())?;
    for (ats, (level, strict)) in fleet.servers.iter().zip([(0, "STRICT"), (1, "NONE")]) {
        host::set_record(&ats.etc(), &format!("{LEVEL} {level}"))?;
        fs::write(ats.etc().join("sni.yaml"), sites(strict))?;
    }
    fleet.servers.iter_mut().try_for_each(Ats::start)?;
    for ats in &fleet.servers {
        ats.wait_diags("(generation ", PATIENCE)?;
    }
    let ats = &fleet.servers[0];
    let look = || on(ats, &["status"]);
    let differ = || Ok(Some(look()?).filter(|said| said.out.contains("degraded: 2 of 2")));
    let said = testkit::wait::until(PATIENCE, "a status that knows both", differ)?;
    said.line(&[
        "certification_level",
        "server 2 has certification_level 1, server 1 has certification_level 0",
        "; give all the same",
    ])?;
    said.line(&[
        "for shop.example, in sni.yaml, server 2 has NONE, server 1 has STRICT",
        "; give all the same verify_client",
    ])?;
    // Mended, and looked at anew by a reload.
    let second = &fleet.servers[1];
    second.ctl(&["config", "set", "proxy.config.ssl.client.certification_level", "0"])?;
    fs::write(second.etc().join("sni.yaml"), sites("STRICT"))?;
    let healed = || {
        second.ctl(&["plugin", "msg", "stek_share", "reload"])?;
        Ok(look()?.out.contains("healthy: 2 of 2").then_some(()))
    };
    testkit::wait::until(PATIENCE, "a fleet that asks the same everywhere", healed)?;
    dir.done()
}
