//! No stickiness needed: behind a balancer that sends each connection to the next server, clients
//! resume on whichever server they land, while the key rotates and while a server dies and comes back.
//!
//! Debian's haproxy runs with `examples/haproxy.cfg` itself, addresses apart, in front of three
//! real Traffic Servers, with the plugin and, to compare, without it. `STEK_SHARE_SO` names the
//! plugin; without it the one that cargo built for this run is tested.

mod balancer;
mod clients;
#[path = "../clients/hello.rs"]
#[allow(dead_code)]
mod hello;
#[path = "../clients/relay.rs"]
#[allow(dead_code)]
mod relay;
mod sessions;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use balancer::Balancer;
use clients::{Clients, Figures};
use testkit::fleet::{self, Fleet, Plan};
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::tickets::{self, KeyName};
use testkit::{wait, Context, Result};

const SERVERS: usize = 3;
const CLIENTS: usize = 20;
/// How often the single client comes back, for each version of TLS.
const SINGLE_RETURNS: usize = 45;
/// How often each of the many clients comes back at least.
const LARGE_CLUSTER_RETURNS: usize = 8;
/// A phase with the plugin goes on until the key has changed so often.
const ROTATIONS: u64 = 2;
/// `key_update_interval`.
const INTERVAL: Duration = Duration::from_secs(2);
/// Until something has happened that takes two seconds at most on an idle machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// What was measured in one phase.
struct Phase {
    what: &'static str,
    single: Figures,
    many: Figures,
    /// Connections that each server got.
    shares: Vec<u64>,
    rotations: u64,
}

#[test]
fn clients_resume_wherever_round_robin_sends_them() -> Result<()> {
    let dir = RunDir::new("haproxy")?;
    let plugin = fleet::built_plugin()?;
    let shared = with_the_plugin(Plan::new(SERVERS, &plugin, INTERVAL), &dir)?;
    let plain = without(Plan::new(SERVERS, &plugin, INTERVAL).plain(), &dir)?;
    print(&shared, &plain);
    for phase in &shared {
        for figures in [&phase.single, &phase.many] {
            assert_eq!(figures.resumed, figures.returns, "{}: {figures:?}", phase.what);
        }
        assert!(phase.rotations >= ROTATIONS, "{}: {} rotations", phase.what, phase.rotations);
        assert_fair(phase);
    }
    // One client meets the server of its ticket never, many clients meet it by chance: one in three.
    assert_eq!(plain.single.resumed, 0, "{:?}", plain.single);
    let percent = plain.many.percent();
    assert!((15.0..55.0).contains(&percent), "without the plugin: {:?}", plain.many);
    assert_fair(&plain);
    dir.done()
}

/// Three servers; one of them is killed under load; it comes back.
fn with_the_plugin(plan: Plan, dir: &RunDir) -> Result<Vec<Phase>> {
    let mut fleet = plan.start(&dir.join("shared"))?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let balancer = Balancer::start(&dir.join("shared"), &fleet.https())?;
    let mut phases = vec![phase("three servers", &fleet, &balancer, || Ok(()))?];

    let mut victim = fleet.servers.remove(1);
    phases.push(phase("one is killed", &fleet, &balancer, || {
        victim.stop(Signal::Kill)?;
        Ok(())
    })?);
    fleet.servers.insert(1, victim);

    fleet.servers[1].start()?;
    fleet.servers[1].wait_ready()?;
    wait::until(PATIENCE, "the returned server in haproxy's eyes", || {
        Ok(balancer.status("server2")?.starts_with("UP").then_some(()))
    })?;
    phases.push(phase("it is back", &fleet, &balancer, || Ok(()))?);
    Ok(phases)
}

/// The same without the plugin, as long as all servers are up.
fn without(plan: Plan, dir: &RunDir) -> Result<Phase> {
    let fleet = plan.start(&dir.join("plain"))?;
    let balancer = Balancer::start(&dir.join("plain"), &fleet.https())?;
    let before = balancer.shares()?;
    let single = clients::one(balancer.address(), SINGLE_RETURNS)?;
    let mut many = Clients::start(balancer.address(), CLIENTS);
    many.wait_returns(LARGE_CLUSTER_RETURNS, PATIENCE)?;
    let many = many.stop()?;
    let shares = balancer.shares_since(&before)?;
    Ok(Phase { what: "without the plugin", single, many, shares, rotations: 0 })
}

/// The large cluster, in whose midst `event` happens, and after it the single client, until both have come
/// back often enough and the key has changed often enough.
fn phase(
    what: &'static str,
    fleet: &Fleet,
    balancer: &Balancer,
    event: impl FnOnce() -> Result<()>,
) -> Result<Phase> {
    let before = balancer.shares()?;
    let counter = Rotations::default();
    thread::scope(|scope| {
        let counted = scope.spawn(|| counter.count(fleet));
        let mut many = Clients::start(balancer.address(), CLIENTS);
        // Whatever fails, the counting thread has to end.
        let figures: Result<(Figures, Figures)> = (|| {
            many.wait_returns(1, PATIENCE)?;
            event()?;
            many.wait_returns(LARGE_CLUSTER_RETURNS, PATIENCE)?;
            wait::until(PATIENCE, "rotations", || Ok(counter.reached().then_some(())))?;
            let many = many.stop()?;
            // Between the large cluster and the single client nobody else may take a turn of the balancer.
            Ok((clients::one(balancer.address(), SINGLE_RETURNS)?, many))
        })();
        counter.over.store(true, Ordering::Relaxed);
        let rotations =
            counted.join().map_err(|_| testkit::Error::new("the counter panicked"))??;
        let (single, many) = figures?;
        Ok(Phase { what, single, many, shares: balancer.shares_since(&before)?, rotations })
    })
}

/// How often the fleet's key changes, as the first server's tickets show it.
#[derive(Default)]
struct Rotations {
    over: AtomicBool,
    enough: AtomicBool,
}

impl Rotations {
    fn count(&self, fleet: &Fleet) -> Result<u64> {
        let address = fleet.servers[0].https();
        let (mut last, mut changes) = (None::<KeyName>, 0);
        while !self.over.load(Ordering::Relaxed) {
            let now = tickets::key_name(address).context("the first server")?;
            changes += u64::from(last.is_some_and(|last| last != now));
            last = Some(now);
            self.enough.store(changes >= ROTATIONS, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(100));
        }
        Ok(changes)
    }

    fn reached(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }
}

/// The servers that were there all the time got the same, give or take a fifth.
fn assert_fair(phase: &Phase) {
    let all_the_time = |index: &usize| *index != 1 || phase.what != "one is killed";
    let shares: Vec<u64> =
        (0..phase.shares.len()).filter(all_the_time).map(|i| phase.shares[i]).collect();
    let (least, most) = (shares.iter().min().copied(), shares.iter().max().copied());
    let (least, most) = (least.unwrap_or(0), most.unwrap_or(0));
    assert!(least > 0 && least * 6 >= most * 5, "{}: shares {shares:?}", phase.what);
}

fn print(shared: &[Phase], plain: &Phase) {
    println!("haproxy, round robin, {SERVERS} servers, TLS 1.2 and 1.3; resumed of all returns");
    println!("  {:<20} {:>18} {:>20}  connections of each server", "", "1 client", "20 clients");
    for phase in shared.iter().chain([plain]) {
        let Phase { what, single, many, shares, rotations } = phase;
        print!("  {what:<20} {:>18} {:>20}  {shares:?}", single.to_string(), many.to_string());
        match rotations {
            0 => println!(),
            _ => println!(", {rotations} rotations"),
        }
    }
}
