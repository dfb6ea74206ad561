//! One group whose servers are upgraded one after another, each to the next Traffic Server that this run
//! was given: whatever versions stand beside each other, each ticket resumes on each server.
//!
//! With one Traffic Server only, the group is restarted server by server and nothing else.

use std::time::{Duration, Instant};

use testkit::fleet::{self, Fleet, Plan};
use testkit::host::{hosts, Host};
use testkit::load::{self, Load};
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::tickets::{self, TlsVersion};
use testkit::{Error, Result};

use crate::stage::{self, in_time, turn, welcome, Carried, PATIENCE};

const SERVERS: usize = 3;
/// Short, so that a key is replaced now and then in each stage of the upgrade.
const INTERVAL: Duration = Duration::from_secs(4);
/// As in [`crate::minority`].
const STEADY: Duration = Duration::from_millis(600);

#[test]
fn servers_of_several_versions_resume_each_others_sessions() -> Result<()> {
    let _turn = turn();
    let mut hosts = hosts()?;
    if let [only] = hosts[..] {
        hosts.push(only);
    }
    let dir = RunDir::new("upgrade")?;
    let mut fleet = Plan::new(SERVERS, &stage::plugin()?, INTERVAL).start(dir.path())?;
    let https = fleet.https();
    fleet::wait_one_key(&https, None, PATIENCE)?;
    let carried = Carried::default();
    carried.fill(&https, None)?;
    let load = Load::start(&https, load::Plan::default())?;
    for (index, host) in order(hosts.len()) {
        load.set_up(index, false);
        upgrade(&mut fleet, index, hosts[host], &carried)?;
        let versions = versions(&fleet);
        fleet::wait_one_key(&https, None, PATIENCE)?;
        let steady = Instant::now() + STEADY;
        carried.look_until(&https, || Instant::now() > steady)?;
        load.set_up(index, true);
        for version in TlsVersion::ALL {
            let matrix = tickets::matrix(&https, version)?;
            assert!(matrix.is_full(), "{versions}, {version}:\n{matrix}");
        }
        // What is made of the newest key on any version opens on all.
        carried.fill(&https, carried.newest())?;
        println!("{versions}: each resumes the others' sessions, before and after a rotation");
    }
    let report = load.stop();
    let (first, last) = stage::one_sequence(&fleet)?;
    println!("generations {first} to {last}, one key each; {report}");
    assert!(report.missed == 0 && report.offers > 0, "{report}");
    let stopped = fleet.stop(Signal::Terminate)?;
    assert!(stopped.iter().all(|stopped| stopped.status.success()), "{stopped:?}");
    dir.done()
}

/// Which server becomes which host, one after another: the first server is always one version ahead of the
/// second, as far as there are versions, so that as many stand beside each other as there can be.
fn order(hosts: usize) -> Vec<(usize, usize)> {
    let waves = 1..hosts + SERVERS - 1;
    let of_wave = |wave| (0..SERVERS).map(move |index| (index, wave - index.min(wave)));
    waves.flat_map(of_wave).filter(|(_, host)| (1..hosts).contains(host)).collect()
}

fn upgrade(fleet: &mut Fleet, index: usize, host: &'static Host, carried: &Carried) -> Result<()> {
    let others = fleet.https_without(index);
    let ats = &mut fleet.servers[index];
    ats.stop(Signal::Terminate)?;
    ats.change_host(host)?;
    let welcome = welcome(ats, carried, index)?;
    let (in_time, line) = in_time(ats)?;
    for (number, ticket) in &welcome.missed {
        // One whose key was retired meanwhile is nobody's loss.
        let held = others.iter().map(|other| Ok(tickets::offer(*other, ticket)?.resumed));
        if in_time && held.collect::<Result<Vec<bool>>>()?.into_iter().all(|held| held) {
            let version = host.version();
            let what = format!("server {} as {version}, handshake {number}: {ticket:?}", index + 1);
            return Err(Error::new(format!("missed by {what}; {line}")));
        }
    }
    Ok(())
}

fn versions(fleet: &Fleet) -> String {
    let versions = fleet.servers.iter().map(|ats| ats.host().version().to_string());
    versions.collect::<Vec<_>>().join(", ")
}
