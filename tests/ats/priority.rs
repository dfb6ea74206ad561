//! Handshakes between servers give way to Traffic Server, and nothing else of the plugin does: on a
//! machine that is busy with other work the group stays as it is, and takes back who was away.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use stek_share::host::priority::STEPS;
use stek_share::transport::HANDSHAKE_LIMIT;
use testkit::ats::Ats;
use testkit::fleet::{self, Fleet, Plan};
use testkit::pki::{Identity, Request};
use testkit::run_dir::RunDir;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Error, Result};

use crate::stage::{plugin, reserve_all, PATIENCE, PEER_SUBJECT};
use crate::strangers::{groups_authority, leader, leadership};

/// Busy threads for each processor, of the priority of Traffic Server's own.
const BUSY: usize = 4;
/// Handshakes that are timed at each server.
const HANDSHAKES: usize = 10;

/// Name and step of nice(2) of each thread of a server.
fn threads(ats: &Ats) -> Result<Vec<(String, i32)>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", ats.pid()?))?;
    let stats =
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let read = |stat: String| {
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        // The 19th field, where the name is the second.
        Some((name.to_owned(), rest.split_whitespace().nth(16)?.parse().ok()?))
    };
    Ok(stats.filter_map(read).collect())
}

fn only_workers_give_way(ats: &Ats) -> Result<()> {
    let all = threads(ats)?;
    let (workers, rest): (Vec<_>, Vec<_>) =
        all.iter().partition(|(name, _)| name.starts_with("stek_worker"));
    let main = fs::read_to_string(format!("/proc/{}/stat", ats.pid()?))?;
    let step = main.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(16));
    let step: i32 = step.and_then(|step| step.parse().ok()).unwrap();
    assert!(!workers.is_empty(), "{all:?}");
    let low = (step + STEPS).min(19);
    assert!(workers.iter().all(|(_, its)| *its == low), "{all:?}");
    assert!(rest.iter().any(|(name, _)| name == "stek_install"), "{all:?}");
    assert!(rest.iter().all(|(_, its)| *its == step), "{all:?}");
    Ok(())
}

/// How long a handshake with the server at this port takes whoever has a good certificate.
fn shake_hands(port: u16, identity: &Identity) -> Result<Duration> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_certificate(&identity.certificate)?;
    builder.set_private_key(&identity.key)?;
    // Up to TLS 1.2: its client knows that it is in when the handshake ends.
    builder.set_max_proto_version(Some(openssl::ssl::SslVersion::TLS1_2))?;
    let config = builder.build().configure()?;
    let config = config.verify_hostname(false).use_server_name_indication(false);
    let begun = Instant::now();
    let tcp = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    config.connect("peer", tcp).map_err(|error| Error::new(error.to_string()))?;
    Ok(begun.elapsed())
}

/// Keeps all processors busy while `work` goes on.
fn while_busy<T>(count: usize, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let spin = || {
        while !over.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    };
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(spin);
        }
        // A panic in between must not leave them turning for ever.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn a_follower_returns(fleet: &mut Fleet, away: usize) -> Result<Duration> {
    let before = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    fleet.servers[away].kill9();
    let begun = Instant::now();
    fleet.servers[away].start()?;
    fleet.servers[away].wait_ready()?;
    assert_eq!(fleet::wait_one_key(&fleet.https(), None, PATIENCE)?, before);
    Ok(begun.elapsed())
}

#[test]
fn a_busy_machine_keeps_its_leader_and_takes_a_server_back() -> Result<()> {
    let _reserved = reserve_all();
    let dir = RunDir::new("busy")?;
    // Bounds that a busy machine keeps; without them its own pauses would unseat the leader.
    let mut fleet = Plan::new(3, &plugin(), Duration::from_secs(3600))
        .option("election_timeout_lower_bound", "1000")
        .option("election_timeout_upper_bound", "2000")
        .start(dir.path())?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    fleet.servers.iter().try_for_each(only_workers_give_way)?;
    let identity = groups_authority(&dir.join("pki"))?.issue(&Request::new(PEER_SUBJECT))?;
    let (before, said) = (leader(&fleet)?, leadership(&fleet));
    let away = (before.index + 1) % 3;
    let busy = BUSY * thread::available_parallelism()?.get();
    let (returned, longest) = while_busy(busy, || {
        let mut longest = Duration::ZERO;
        for port in &fleet.raft_ports {
            for _ in 0..HANDSHAKES {
                longest = longest.max(shake_hands(*port, &identity)?);
            }
        }
        Ok::<_, Error>((a_follower_returns(&mut fleet, away)?, longest))
    })?;
    println!(
        "beside {busy} busy threads: a handshake in {longest:.2?} at most, a server back in {returned:.2?}"
    );
    assert!(longest < HANDSHAKE_LIMIT, "{longest:?}");
    wait::until(PATIENCE, "the leader to be known", || Ok(fleet.leader()))?;
    assert_eq!(leader(&fleet)?, before);
    let others = |lines: Vec<String>| lines.iter().filter(|line| !said.contains(line)).count();
    // Whoever came back learns who leads, once; nobody else has anything to say.
    assert!(others(leadership(&fleet)) <= 1, "{:?}", leadership(&fleet));
    for ats in &fleet.servers {
        assert!(!ats.diags().contains("took too long"), "{}", ats.diags());
    }
    let matrix = tickets::matrix(&fleet.https(), TlsVersion::V13)?;
    assert!(matrix.is_full(), "{matrix}");
    dir.done()
}
