//! The plugin inside a real Traffic Server under valgrind's memcheck, over a start, handshakes,
//! rotations, reloads and a stop. Errors and lost memory count where a function of the plugin is
//! on the stack; what the server does on its own is not looked at.
//!
//! Needs Debian's packages trafficserver and valgrind; `make valgrind` runs it. `STEK_SHARE_SO`
//! names the plugin, which should have line tables and must not be stripped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use testkit::ats::Ats;
use testkit::fleet::{self, Fleet, Place, Plan};
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Context, Error, Result};

/// Under valgrind everything takes twenty times as long or longer.
const PATIENCE: Duration = Duration::from_secs(240);

/// Long enough for a handover under valgrind.
const INTERVAL: Duration = Duration::from_secs(5);

/// Rotations that are waited for.
const ROTATIONS: usize = 3;

/// Handshakes, each with its ticket offered again, in all.
const HANDSHAKES: usize = 20;

#[test]
#[ignore = "needs valgrind and minutes: make valgrind"]
fn memcheck_finds_nothing_in_a_server_that_rotates_reloads_and_ends() -> Result<()> {
    let plugin = PathBuf::from(env::var_os("STEK_SHARE_SO").expect("make valgrind sets it"));
    let dir = RunDir::new("valgrind")?;
    let report = dir.join("memcheck.%p.xml");
    let place = Place {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        wrapper: memcheck(&report.display().to_string()),
    };
    let plain = Place { wrapper: Vec::new(), ..place.clone() };
    // The bounds are wide, because a server under valgrind answers late.
    let plan = Plan::new(3, &plugin, INTERVAL)
        .places(&[place, plain.clone(), plain])
        .option("election_timeout_lower_bound", "2000")
        .option("election_timeout_upper_bound", "4000")
        .option("handover_timeout", "5000")
        .manager();
    let mut fleet = plan.prepare(dir.path())?;
    fleet.servers.iter_mut().try_for_each(Ats::start)?;
    for ats in &fleet.servers {
        wait::until_every(Duration::from_millis(500), PATIENCE, "a handshake", || {
            Ok(tickets::take(ats.https(), TlsVersion::V12).ok().map(drop))
        })?;
    }
    let mut key = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    for _ in 0..ROTATIONS {
        key = fleet::wait_one_key(&fleet.https(), Some(&key), PATIENCE)?;
    }
    let resumed = handshakes(&fleet.servers[0])?;
    messages(&fleet.servers[0])?;
    // A peer that leaves and returns: connections end, are refused, and are made anew.
    fleet.servers[2].kill9();
    fleet.servers[2].start()?;
    fleet.servers[2].wait_ready()?;
    fleet::wait_one_key(&fleet.https(), Some(&key), PATIENCE)?;

    end(&mut fleet)?;
    let Reports { reports, reachable, findings } = read_reports(dir.path(), &plugin)?;
    println!(
        "{ROTATIONS} rotations, {HANDSHAKES} handshakes ({resumed} resumed) and reloads under \
         memcheck; {reports} reports, {} findings, {reachable} allocations that live to the end, with the plugin on the stack",
        findings.len()
    );
    // What lives to the end shows that functions of the plugin are known by its file.
    assert!(reports > 0 && reachable > 0, "valgrind wrote no report, or not of this plugin");
    assert!(findings.is_empty(), "{}", findings.join("\n\n"));
    dir.done()
}

fn memcheck(report: &str) -> Vec<String> {
    let suppressions =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/unsafe_host/memcheck.supp");
    [
        "valgrind",
        "--tool=memcheck",
        // traffic_manager starts traffic_server.
        "--trace-children=yes",
        "--leak-check=full",
        "--show-leak-kinds=definite,reachable",
        "--num-callers=40",
        "--fair-sched=yes",
        "--xml=yes",
        "--child-silent-after-fork=yes",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([format!("--xml-file={report}"), format!("--suppressions={}", suppressions.display())])
    .collect()
}

/// How many of the tickets resumed; a rotation in between may cost one.
fn handshakes(ats: &Ats) -> Result<usize> {
    let mut resumed = 0;
    for _ in 0..HANDSHAKES / 2 {
        for version in TlsVersion::ALL {
            let ticket = tickets::take(ats.https(), version)?;
            resumed += usize::from(tickets::offer(ats.https(), &ticket)?.resumed);
        }
    }
    if resumed * 2 >= HANDSHAKES {
        Ok(resumed)
    } else {
        Err(Error::new(format!("only {resumed} of {HANDSHAKES} tickets resumed")))
    }
}

/// Every message there is, and one without meaning; a changed option with the reload.
fn messages(ats: &Ats) -> Result<()> {
    let conf = ats.etc().join("server_conf.yaml");
    let text = fs::read_to_string(&conf).context(conf.display())?;
    for (verb, answer) in [
        ("status", "status: current "),
        ("reload", "reload: "),
        ("rotate", "rotate: "),
        ("nonsense", "means nothing here"),
        ("revoke", "revoke: "),
    ] {
        if verb == "reload" {
            fs::write(&conf, format!("{text}ticket_keys: 3\n")).context(conf.display())?;
        }
        ats.ctl(&["plugin", "msg", "stek_share", verb])?;
        ats.wait_diags(answer, PATIENCE)?;
    }
    Ok(())
}

/// All end in order; the one under valgrind may take its time.
fn end(fleet: &mut Fleet) -> Result<()> {
    for index in [0, 1, 2] {
        let stopped = fleet.servers[index].stop(Signal::Terminate)?;
        if stopped.status.code() != Some(0) {
            return Err(Error::new(format!("server {} ended {:?}", index + 1, stopped.status)));
        }
    }
    Ok(())
}

/// What valgrind wrote.
struct Reports {
    /// Processes that ran to their end.
    reports: usize,
    /// Allocations with a frame of the plugin that something still refers to at the end.
    reachable: usize,
    /// Errors and lost memory with a frame of the plugin.
    findings: Vec<String>,
}

fn read_reports(dir: &Path, plugin: &Path) -> Result<Reports> {
    let plugin = plugin.canonicalize().context(plugin.display())?;
    let frame = format!("<obj>{}</obj>", plugin.display());
    let (mut reports, mut reachable, mut findings) = (0, 0, Vec::new());
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.path().extension().is_none_or(|end| end != "xml") {
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(entry.path())?).into_owned();
        let serves = text.contains("traffic_server") && text.contains("<state>FINISHED</state>");
        reports += usize::from(serves);
        let blocks = text.split("<error>").skip(1).filter_map(|rest| rest.split("</error>").next());
        for block in blocks.filter(|block| block.contains(&frame)) {
            if block.contains("<kind>Leak_StillReachable</kind>") {
                reachable += 1
            } else {
                findings.push(block.to_owned())
            }
        }
    }
    Ok(Reports { reports, reachable, findings })
}
