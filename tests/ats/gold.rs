//! The original's own configuration, unmodified: five servers, one self-signed certificate for all.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use stek_share::core::config::OPTIONS;
use testkit::ats::{Ats, Stopped};
use testkit::fleet::{Fleet, Plan, PEER_SUBJECT};
use testkit::origin::{Origin, BODY};
use testkit::pki::Identity;
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Error, Result};

use crate::stage::{lines_of, plugin, reserve};

const SERVERS: usize = 5;
/// All that the original has.
const ORIGINALS: usize = 16;
/// What the original's own test grants for everything to be ready.
const READY: Duration = Duration::from_secs(10);
/// By how much the plugin may delay Traffic Server's end.
const DELAY: Duration = Duration::from_secs(1);

#[test]
fn the_originals_configuration_works_unmodified() -> Result<()> {
    let _reserved = reserve(SERVERS);
    let dir = RunDir::new("gold")?;
    let origin = Origin::start()?;
    let mut fleet = Plan::new(SERVERS, &plugin(), Duration::from_secs(3600))
        .option("asio_thread_pool_size", "4")
        .one_certificate()
        .origin(origin.address())
        .prepare(dir.path())?;
    assert_originals_form(&fleet);
    let begin = Instant::now();
    fleet.start()?;
    for ats in &fleet.servers {
        wait::until(READY.saturating_sub(begin.elapsed()), "the initial STEK", || {
            Ok(ats.debug_lines().contains("Generate initial STEK succeeded").then_some(()))
        })?;
    }
    let answer = tickets::get(fleet.servers[0].https(), "/")?;
    assert!(answer.ends_with(BODY), "{answer}");
    wait::until(READY, "one ticket of the first server to be resumed everywhere", || {
        let ticket = tickets::take(fleet.servers[0].https(), TlsVersion::V12)?;
        let matrix = tickets::offer_all(&fleet.https(), TlsVersion::V12, &[ticket]);
        Ok(matrix.is_full().then_some(()))
    })?;
    println!("five servers resume each other's sessions after {:?}", begin.elapsed());

    let ours = fleet.stop(Signal::Interrupt)?;
    assert_clean_logs(&fleet)?;
    let plain = stop_plain_servers(&dir)?;
    let slowest = |stops: &[Stopped]| stops.iter().map(|stopped| stopped.took).max();
    println!("from SIGINT to the end: {:?}, plain {:?}", slowest(&ours), slowest(&plain));
    for stops in [&ours, &plain] {
        assert_eq!(stops.len(), SERVERS);
        assert!(stops.iter().all(|stopped| stopped.status.code() == Some(0)), "{stops:?}");
    }
    let limit = slowest(&plain).map(|took| took + DELAY);
    assert!(slowest(&ours) <= limit, "{ours:?}\n{plain:?}");
    dir.done()
}

/// Nothing but the sixteen options, and a list that is a bare sequence.
fn assert_originals_form(fleet: &Fleet) {
    for ats in &fleet.servers {
        let read = |name| fs::read_to_string(ats.etc().join(name)).unwrap();
        let conf = read("server_conf.yaml");
        let names: Vec<&str> =
            conf.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
        assert_eq!(names.len(), ORIGINALS, "{conf}");
        let names: BTreeSet<&str> = names.into_iter().collect();
        assert_eq!(
            names,
            OPTIONS[..ORIGINALS].iter().map(|option| option.name).collect::<BTreeSet<_>>()
        );
        assert!(conf.contains(&format!("cert_verify_str: {PEER_SUBJECT}\n")), "{conf}");
        let list = read("server_list.yaml");
        assert!(list.starts_with("- server_id: 1\n  address: 127.0.0.1\n  port: "), "{list}");
        assert_eq!(list.lines().count(), 3 * SERVERS, "{list}");
    }
}

fn assert_clean_logs(fleet: &Fleet) -> Result<()> {
    for ats in &fleet.servers {
        for file in ats.log_files()? {
            let text = String::from_utf8(fs::read(&file)?)
                .map_err(|error| Error::new(format!("{}: {error}", file.display())))?;
            let bad = text.lines().find(|line| line.contains("ERROR:") || line.contains("FATAL:"));
            assert_eq!(bad, None, "{}", file.display());
        }
        assert!(ats.diags().contains("[stek_share] "), "{}", ats.diags());
        // A cold start has nothing to wait for, and nobody is left behind in it.
        assert_eq!(lines_of(ats, "WARNING"), [""; 0]);
    }
    Ok(())
}

/// As many servers without the plugin, ended in the same way.
fn stop_plain_servers(dir: &RunDir) -> Result<Vec<Stopped>> {
    let site = Identity::self_signed("/CN=localhost")?.write(dir.path(), "plain")?;
    let root = |number: usize| dir.join(&format!("plain-{number}"));
    let servers = (0..SERVERS).map(|number| Ats::builder(&root(number)).certificate(&site).start());
    let mut servers: Vec<Ats> = servers.collect::<Result<_>>()?;
    servers.iter_mut().try_for_each(Ats::wait_ready)?;
    thread::scope(|scope| {
        let stop = |ats: &mut Ats| ats.stop(Signal::Interrupt);
        let stops: Vec<_> = servers.iter_mut().map(|ats| scope.spawn(move || stop(ats))).collect();
        stops.into_iter().map(|stop| stop.join().expect("no panic in there")).collect()
    })
}
