//! Clients without tickets, which resume by the session's id: curl with OpenSSL, curl's library with
//! GnuTLS, and OpenSSL with tickets off, in the same run as clients with tickets.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use testkit::fleet::{self, Fleet, Plan};
use testkit::host::host;
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::{ids, wait, Context, Error, Result};

use crate::balancer::Balancer;
use crate::clients::{Clients, Figures};
use crate::relay::Relay;
use crate::{Rotations, PATIENCE, SERVERS};

/// Clients of each kind at a time, and how often each comes back in a phase at least.
const CLIENTS: usize = 6;
const RETURNS: usize = 20;
/// Connections of one run of curl, the first of which resumes nothing.
const CURL: usize = 201;
/// `key_update_interval`.
const INTERVAL: Duration = Duration::from_secs(1);
/// At least this share of returns is resumed, over all phases. With 600 returns of each curl and 360 of
/// the others that leaves room for a few on a busy machine: who comes back at once may be there before
/// its session is.
const SHARE: f64 = 99.0;

/// Clients of curl's library, which Debian has for GnuTLS as a library alone.
const GNUTLS: &str = include_str!("../clients/programs/curl_gnutls.py");

/// What was measured in one phase.
struct Phase {
    what: &'static str,
    ids: Figures,
    curl: Figures,
    curl_gnutls: Figures,
    tickets: Figures,
}

#[test]
fn clients_without_tickets_resume_wherever_round_robin_sends_them() -> Result<()> {
    if !host()?.has_session_ids() {
        println!("not tried: Traffic Server {} keeps no sessions", host()?.version());
        return Ok(());
    }
    let dir = RunDir::new("haproxy-ids")?;
    let plan = Plan::new(SERVERS, &fleet::built_plugin()?, INTERVAL)
        .record("proxy.config.http.keep_alive_enabled_in INT 0");
    let shared = shared(plan.clone().option("share_sessions", "true"), &dir)?;
    let without = without(plan, &dir)?;
    println!("haproxy, round robin, {SERVERS} servers, TLS 1.2; resumed of all returns");
    for Phase { what, ids, curl, curl_gnutls, tickets } in shared.iter().chain([&without]) {
        println!(
            "  {what:<20} ids {ids}, curl {curl}, curl+GnuTLS {curl_gnutls}, tickets {tickets}"
        );
    }
    let mut sums = [Figures::default(); 3];
    for Phase { what, ids, curl, curl_gnutls, tickets } in &shared {
        sums.iter_mut().zip([ids, curl, curl_gnutls]).for_each(|(sum, one)| sum.add(*one));
        assert_eq!(tickets.resumed, tickets.returns, "{what}: {tickets:?}");
    }
    for (kind, sum) in ["ids", "curl", "curl+GnuTLS"].iter().zip(sums) {
        assert!(sum.percent() >= SHARE, "{kind}: {sum}");
    }
    // One after another, they meet the server of their session never.
    let Phase { curl, curl_gnutls, tickets, .. } = &without;
    assert_eq!((curl.resumed, curl_gnutls.resumed), (0, 0), "without the option");
    assert_eq!(tickets.resumed, tickets.returns, "without the option: {tickets:?}");
    dir.done()
}

/// Three servers; one of them is killed under load; it comes back.
fn shared(plan: Plan, dir: &RunDir) -> Result<Vec<Phase>> {
    let mut fleet = plan.start(&dir.join("shared"))?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let balancer = Balancer::start(&dir.join("shared"), &fleet.https())?;
    let mut id_clients = IdClients::new(balancer.address())?;
    let mut phases = vec![phase("three servers", &fleet, &balancer, &mut id_clients, || Ok(()))?];

    let mut victim = fleet.servers.remove(1);
    let kill = || victim.stop(Signal::Kill).map(drop);
    phases.push(phase("one is killed", &fleet, &balancer, &mut id_clients, kill)?);
    fleet.servers.insert(1, victim);

    fleet.servers[1].start()?;
    fleet.servers[1].wait_ready()?;
    wait::until(PATIENCE, "the returned server in haproxy's eyes", || {
        Ok(balancer.status("server2")?.starts_with("UP").then_some(()))
    })?;
    phases.push(phase("it is back", &fleet, &balancer, &mut id_clients, || Ok(()))?);
    Ok(phases)
}

/// The same with the plugin and without the option.
fn without(plan: Plan, dir: &RunDir) -> Result<Phase> {
    let fleet = plan.start(&dir.join("without"))?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let balancer = Balancer::start(&dir.join("without"), &fleet.https())?;
    let mut id_clients = IdClients::new(balancer.address())?;
    phase("without the option", &fleet, &balancer, &mut id_clients, || Ok(()))
}

/// All kinds of clients, in whose midst `event` happens, until they have come back often enough and
/// the key has changed.
fn phase(
    what: &'static str,
    fleet: &Fleet,
    balancer: &Balancer,
    id_clients: &mut IdClients,
    event: impl FnOnce() -> Result<()>,
) -> Result<Phase> {
    let rotations = Rotations::default();
    thread::scope(|scope| {
        let counted = scope.spawn(|| rotations.count(fleet));
        let measured: Result<Phase> = (|| {
            let mut tickets = Clients::start(balancer.address(), CLIENTS);
            tickets.wait_returns(1, PATIENCE)?;
            let ids = id_clients.come_back(event)?;
            let tickets = {
                wait_rotation(&rotations)?;
                tickets.stop()?
            };
            // Nobody else may take a turn of the balancer meanwhile.
            let curl = curl(balancer.address(), &curl_command)?;
            let curl_gnutls = self::curl(balancer.address(), &gnutls_command)?;
            Ok(Phase { what, ids, curl, curl_gnutls, tickets })
        })();
        rotations.over.store(true, Ordering::Relaxed);
        counted.join().map_err(|_| Error::new("the counter panicked"))??;
        measured
    })
}

fn wait_rotation(rotations: &Rotations) -> Result<()> {
    wait::until(PATIENCE, "rotations", || Ok(rotations.reached().then_some(())))
}

/// Clients with tickets off, which keep their session from phase to phase.
struct IdClients {
    to: SocketAddr,
    sessions: Vec<Vec<u8>>,
}

impl IdClients {
    fn new(to: SocketAddr) -> Result<Self> {
        let take = |_| ids::visit(to, "localhost", None).map(|visited| visited.session);
        Ok(Self { to, sessions: (0..CLIENTS).map(take).collect::<Result<_>>()? })
    }

    /// Each comes back at once, again and again, until `event` has happened and each has come
    /// [`RETURNS`] times more.
    fn come_back(&mut self, event: impl FnOnce() -> Result<()>) -> Result<Figures> {
        let (to, over) = (self.to, &AtomicBool::new(false));
        let counts: Vec<AtomicUsize> = self.sessions.iter().map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            let run = |(session, count)| scope.spawn(move || client(to, session, count, over));
            let clients: Vec<_> = self.sessions.iter_mut().zip(&counts).map(run).collect();
            let have_come = |times: usize| {
                wait::until(PATIENCE, "clients without tickets", || {
                    let enough = counts.iter().all(|count| count.load(Ordering::Relaxed) >= times);
                    Ok((enough || clients.iter().any(|client| client.is_finished())).then_some(()))
                })
            };
            let waited = have_come(1).and_then(|()| event()).and_then(|()| {
                let most = counts.iter().map(|count| count.load(Ordering::Relaxed)).max();
                have_come(most.unwrap_or(0) + RETURNS)
            });
            over.store(true, Ordering::Relaxed);
            let mut sum = Figures::default();
            for client in clients {
                sum.add(client.join().map_err(|_| Error::new("a client panicked"))??);
            }
            waited.map(|()| sum)
        })
    }
}

fn client(
    to: SocketAddr,
    session: &mut Vec<u8>,
    count: &AtomicUsize,
    over: &AtomicBool,
) -> Result<Figures> {
    let mut figures = Figures::default();
    while !over.load(Ordering::Relaxed) {
        match ids::visit(to, "localhost", Some(session)) {
            Ok(visited) => {
                figures.returns += 1;
                figures.resumed += usize::from(visited.resumed);
                *session = visited.session;
            }
            // A server that dies takes its connections along.
            Err(_) if figures.broken < 2 * RETURNS => figures.broken += 1,
            Err(error) => return Err(error),
        }
        count.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(figures)
}

/// What a run of curl resumes, as a relay in front of the balancer sees it.
fn curl(to: SocketAddr, command: &dyn Fn(u16) -> Command) -> Result<Figures> {
    let relay = Relay::start(&[to], None)?;
    let output = command(relay.address().port()).output().context("curl")?;
    if !output.status.success() {
        return Err(Error::new(format!("curl: {}", String::from_utf8_lossy(&output.stderr))));
    }
    let seen = relay.found().seen;
    if seen.len() != CURL || seen.iter().any(|seen| seen.is_offer()) {
        return Err(Error::new(format!("curl: {} connections, or tickets", seen.len())));
    }
    let resumed = seen.iter().skip(1).filter(|seen| seen.is_resumed()).count();
    Ok(Figures { returns: CURL - 1, resumed, broken: 0 })
}

fn curl_command(port: u16) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--insecure", "--http1.1", "--output", "/dev/null"]);
    command.args(["--tlsv1.2", "--tls-max", "1.2"]);
    command.arg(format!("https://localhost:{port}/[1-{CURL}]"));
    command
}

fn gnutls_command(port: u16) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", GNUTLS, &format!("https://localhost:{port}/"), &CURL.to_string()]);
    command
}
