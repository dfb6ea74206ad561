//! Peers by name, and a resolver that hangs or takes its time. Needs root, for a namespace in which
//! Traffic Server asks the test's own name server; does nothing without.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use testkit::ats::Ats;
use testkit::fleet::{self, Plan};
use testkit::nameserver::{self, is_root, Answer, NameServer, NXDOMAIN, SERVFAIL};
use testkit::run_dir::RunDir;
use testkit::{ports, wait, Result};

use crate::stage::{self, send, turn, PATIENCE};

/// How long an answer to a message may take on a busy machine: well below any time limit of the
/// resolver, which is what it must not wait for.
const SOON: Duration = Duration::from_secs(5);

/// How long after a question the slow name server answers: longer than a look-up is waited for.
const LATE: Duration = Duration::from_millis(3500);

fn answered_soon(ats: &Ats, verb: &str, answer: &str) -> Result<()> {
    let begun = Instant::now();
    let line = send(ats, verb, answer)?;
    let took = begun.elapsed();
    println!("{verb}: answered after {took:?}");
    assert!(took < SOON, "{verb} was answered after {took:?}: {line}");
    Ok(())
}

#[test]
fn four_peers_whose_names_hang_stop_neither_reload_nor_status() -> Result<()> {
    if !is_root()? {
        println!("not tried: needs root");
        return Ok(());
    }
    let _turn = turn();
    let dir = RunDir::new("resolver-hangs")?;
    let silent = NameServer::start(Ipv4Addr::new(127, 88, 0, 1), None)?;
    let plan = Plan::new(1, &stage::plugin()?, Duration::from_secs(3600)).manager();
    let mut fleet = plan.places(&[silent.place(dir.path())?]).prepare(dir.path())?;
    let own = fleet.raft_ports[0];
    let mut list = format!("- server_id: 1\n  address: 127.0.0.1\n  port: {own}\n");
    for id in 2..=5 {
        let port = ports::take()?;
        list += &format!("- server_id: {id}\n  address: server{id}.example\n  port: {port}\n");
    }
    fs::write(fleet.servers[0].etc().join("server_list.yaml"), list)?;
    fleet.start()?;
    let ats = &fleet.servers[0];
    // All four hang, and each of them in one look-up: two questions, one for each kind of address.
    wait::until(
        PATIENCE,
        "questions about four names",
        || Ok((silent.asked() >= 8).then_some(())),
    )?;
    for _ in 0..3 {
        answered_soon(ats, "status", "status: broken: ")?;
        answered_soon(ats, "reload", "reload: done; no changes")?;
    }
    let threads = fs::read_dir(format!("/proc/{}/task", ats.pid()?))?.flatten();
    let hanging = threads
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| name.trim() == "stek_lookup")
        .count();
    assert_eq!(hanging, 4, "one look-up for each name");
    dir.done()
}

/// Servers that know each other by names alone, each name with a trouble of its own, all behind a first name
/// server that is silent: with the resolver's own time limit each look-up takes five seconds at least.
#[test]
fn names_with_troubles_that_pass_make_one_group() -> Result<()> {
    /// The names, by what their server does about the first questions.
    const NAMES: [&str; 5] = ["plain", "late", "unknown", "failing", "mixed"];
    /// How often one is asked in vain.
    const IN_VAIN: usize = 3;
    /// Five seconds for each question, and several of them in vain.
    const LONG: Duration = Duration::from_secs(120);
    if !is_root()? {
        println!("not tried: needs root");
        return Ok(());
    }
    let _turn = turn();
    let dir = RunDir::new("resolver-troubles")?;
    let good = || Answer::Addresses(vec![Ipv4Addr::LOCALHOST], Duration::ZERO);
    let _silent = NameServer::start(Ipv4Addr::new(127, 88, 0, 3), None)?;
    let second = NameServer::with(Ipv4Addr::new(127, 88, 0, 4), move |name, time| match name {
        "late" => Answer::Addresses(vec![Ipv4Addr::LOCALHOST], LATE),
        "unknown" if time < IN_VAIN => Answer::Error(NXDOMAIN),
        "failing" if time < IN_VAIN => Answer::Error(SERVFAIL),
        "mixed" => {
            Answer::Addresses(vec![Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST], Duration::ZERO)
        }
        _ => good(),
    })?;
    let text = "nameserver 127.88.0.3\nnameserver 127.88.0.4\n";
    let place = nameserver::place(dir.path(), text)?;
    let plan = Plan::new(NAMES.len(), &stage::plugin()?, Duration::from_secs(3600));
    let mut fleet = plan.places(&NAMES.map(|_| place.clone())).prepare(dir.path())?;
    let entry = |(id, (name, port)): (usize, (&&str, &u16))| {
        format!("- server_id: {id}\n  address: {name}.example\n  port: {port}\n")
    };
    let list: String = (1..).zip(NAMES.iter().zip(&fleet.raft_ports)).map(entry).collect();
    for (ats, name) in fleet.servers.iter().zip(NAMES) {
        fs::write(ats.etc().join("server_list.yaml"), &list)?;
        stage::rewrite(ats, "server_conf.yaml", |text| {
            text.replace("address: 127.0.0.1\n", &format!("address: {name}.example\n"))
        })?;
    }
    fleet.start()?;
    for ats in &fleet.servers {
        ats.wait_diags("(generation ", LONG)?;
    }
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    assert!(second.asked() > NAMES.len());
    // What is left out of an answer is told where it is dialled.
    let left_out = "(mixed.example:";
    let why = "): 1 of the name's 2 addresses are not dialled: 0.0.0.0 stands for every address";
    let told = |ats: &Ats| ats.diags().lines().any(|l| l.contains(left_out) && l.contains(why));
    assert!(fleet.servers.iter().any(told), "{}", fleet.servers[0].diags());
    dir.done()
}

#[test]
fn names_that_are_found_late_are_used() -> Result<()> {
    if !is_root()? {
        println!("not tried: needs root");
        return Ok(());
    }
    let _turn = turn();
    let dir = RunDir::new("resolver-late")?;
    let slow = NameServer::start(Ipv4Addr::new(127, 88, 0, 2), Some(LATE))?;
    let plan = Plan::new(2, &stage::plugin()?, Duration::from_secs(3600)).manager();
    let place = slow.place(dir.path())?;
    let mut fleet = plan.places(&[place.clone(), place]).prepare(dir.path())?;
    let list: String = (1..)
        .zip(&fleet.raft_ports)
        .map(|(id, port)| {
            format!("- server_id: {id}\n  address: server{id}.example\n  port: {port}\n")
        })
        .collect();
    for (id, ats) in (1..).zip(&fleet.servers) {
        fs::write(ats.etc().join("server_list.yaml"), &list)?;
        stage::rewrite(ats, "server_conf.yaml", |text| {
            text.replace("address: 127.0.0.1\n", &format!("address: server{id}.example\n"))
        })?;
    }
    fleet.start()?;
    for ats in &fleet.servers {
        ats.wait_diags("(generation ", PATIENCE)?;
    }
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    dir.done()
}
