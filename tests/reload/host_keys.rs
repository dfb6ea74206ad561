//! Keys that Traffic Server puts in the place of the shared ones while it runs.

use std::fs;
use std::time::{Duration, Instant};

use testkit::ats::Ats;
use testkit::fleet::{self, Plan};
use testkit::host::{self, named};
use testkit::run_dir::RunDir;
use testkit::tickets::{self, KeyName};
use testkit::{wait, Result};

use crate::stage::{self, send, turn, wait_line, PATIENCE};

const RECORD: &str = "proxy.config.ssl.server.ticket_key.filename";

/// A relative name is one that the host reads again at each reload, changed or not.
const FILE: &str = "ticket.key";

/// How often the keys are given to the host again while it has a file of its own, and what a busy
/// machine may make of it.
const SOON: Duration = Duration::from_secs(5);
const LATE: Duration = Duration::from_secs(10);

/// Waits until the server gives out tickets under this key; answers with how long that took.
fn wait_key(ats: &Ats, key: &KeyName, what: &str) -> Result<Duration> {
    let begun = Instant::now();
    wait::until(PATIENCE, what, || Ok((tickets::key_name(ats.https())? == *key).then_some(())))?;
    Ok(begun.elapsed())
}

#[test]
fn keys_that_the_host_replaces_come_back_by_themselves() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("host-keys")?;
    let certificates = dir.join("pki");
    let place = format!("proxy.config.ssl.server.cert.path STRING {}", certificates.display());
    let plan = Plan::new(2, &stage::plugin()?, Duration::from_secs(3600)).manager();
    let fleet = plan.record(&place).start(dir.path())?;
    let ours = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let ats = &fleet.servers[0];
    let theirs: Vec<u8> = (0..48).map(|byte| byte ^ 0x5a).collect();
    fs::write(certificates.join(FILE), &theirs)?;
    let theirs: KeyName = theirs[..16].try_into().expect("16 bytes");

    let from = ats.diags().len();
    ats.ctl(&["config", "set", RECORD, FILE])?;
    // Each reload has the host act on it again.
    for round in 0..2 {
        wait_key(ats, &theirs, "the host's own key")?;
        let took = wait_key(ats, &ours, "the shared key")?;
        println!("round {round}: the shared key is back after {took:?}");
        assert!(took < SOON + LATE, "{took:?}");
        ats.ctl(&["config", "reload"])?;
    }
    wait_line(ats, from, "proxy.config.ssl.server.ticket_key.filename: ticket.key makes Traffic")?;
    wait_key(ats, &theirs, "the host's own key")?;
    send(ats, "reload", "reload: done; no changes")?;
    let took = wait_key(ats, &ours, "the shared key")?;
    println!("after `reload` the shared key is back after {took:?}");
    send(ats, "status", "proxy.config.ssl.server.ticket_key.filename: ticket.key makes Traffic")?;

    let carried = tickets::take_all(&fleet.https(), tickets::TlsVersion::V13)?;
    let matrix = tickets::offer_all(&fleet.https(), tickets::TlsVersion::V13, &carried);
    assert!(matrix.is_full(), "{matrix}");
    dir.done()
}

#[test]
fn hints_follow_what_the_operator_mends() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("host-hints")?;
    let plan = Plan::new(1, &stage::plugin()?, Duration::from_secs(3600)).manager();
    let fleet = plan.start(dir.path())?;
    let ats = &fleet.servers[0];
    ats.wait_diags("(generation ", PATIENCE)?;
    host::change_certificates(&ats.etc(), |lines| {
        format!("# a remark\nssl_ticket_enabled=0 {lines}")
    })?;
    let said = named("ssl_multicert.config line 2: ssl_ticket_enabled: 0 means");
    send(ats, "reload", &said)?;
    send(ats, "status", &said)?;
    // Mended without a word, it is seen at the next look.
    let from = ats.diags().len();
    let file = ats.etc().join(named("ssl_multicert.config"));
    let mended = format!("NOTE: [stek_share] no longer so: {} line 2", file.display());
    host::change_certificates(&ats.etc(), |lines| {
        lines.replace("# a remark\nssl_ticket_enabled=0 ", "")
    })?;
    wait_line(ats, from, &mended)?;
    send(ats, "status", "status: all is well")?;
    dir.done()
}
