//! Endurance: five real Traffic Servers with the plugin, in network namespaces behind a hub that
//! cuts, delays and drops, under load, with one fault after another for as long as is asked for.
//! Ends with a outcome on each promise and a report with plots.
//!
//! `soak [--minutes N] [--seed N] [--out DIR]`. `STEK_SHARE_SO` names the plugin. Exit code 0 when
//! no promise was broken, 1 when one was, 2 when it cannot run: it needs root and /dev/net/tun. All
//! of it happens in a network namespace of its own, so that two runs do not meet.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use testkit::ats::{Ats, Usage};
use testkit::fleet::{self, Plan};
use testkit::hub::Hub;
use testkit::pki::Identity;
use testkit::run_dir::RunDir;
use testkit::{sys, wait, Context, Error, Result};

use crate::checker::Evidence;
use crate::clients::Clients;
use crate::course::{Broken, Course, Remains};
use crate::watch::Watch;

mod checker;
mod clients;
mod course;
mod report;
mod watch;

/// Servers with the plugin: the least number of which two can be away.
pub const SERVERS: usize = 5;
/// `key_update_interval`: short, so that rotations meet every fault.
pub const INTERVAL: Duration = Duration::from_secs(4);
/// Until the fleet has its first key.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Set for the process that runs in its own network namespace.
const INSIDE: &str = "STEK_SOAK_INSIDE";
const USAGE: &str = "usage: soak [--minutes N] [--seed N] [--out DIR]; STEK_SHARE_SO names the \
                     plugin";

/// What the command line asks for.
pub struct Request {
    /// The plugin's file.
    pub plugin: PathBuf,
    /// For how long faults come.
    pub span: Duration,
    /// Where the random choices begin.
    pub seed: u64,
    /// Where the report goes.
    pub out: PathBuf,
}

impl Request {
    fn parse(words: impl Iterator<Item = String>) -> Option<Self> {
        let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_secs());
        let mut this = Self {
            plugin: env::var_os("STEK_SHARE_SO")?.into(),
            span: Duration::from_secs(3600),
            seed: clock,
            out: "target/soak".into(),
        };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--minutes" => {
                    let minutes: f64 = words.next()?.parse().ok().filter(|n| *n >= 1.0)?;
                    this.span = Duration::try_from_secs_f64(minutes * 60.0).ok()?;
                }
                "--seed" => this.seed = words.next()?.parse().ok()?,
                "--out" => this.out = words.next()?.into(),
                _ => return None,
            }
        }
        Some(this)
    }
}

fn main() -> ExitCode {
    // The servers' stamps are held against this process's own clock.
    env::set_var("TZ", "UTC");
    let Some(request) = Request::parse(env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if env::var_os(INSIDE).is_none() {
        return move_inside();
    }
    sys::catch_interrupts();
    match run(&request) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again, in the same process, in a network namespace of its own.
fn move_inside() -> ExitCode {
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("soak: there is no /dev/net/tun, which the servers' network needs");
        return ExitCode::from(2);
    }
    let Ok(own) = env::current_exe() else { return ExitCode::from(2) };
    let mut command = Command::new("unshare");
    command.arg("--net").arg("--").arg(own).args(env::args().skip(1)).env(INSIDE, "1");
    // It returns only if it failed.
    let error = command.exec();
    eprintln!("soak: cannot make a network namespace, which needs root: unshare: {error}");
    ExitCode::from(2)
}

fn run(request: &Request) -> Result<bool> {
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("ip")?;
    if !up.success() {
        return Err(Error::new("ip link set lo up failed; this needs root"));
    }
    let Request { span, seed, .. } = request;
    println!("soak: {span:.0?} of faults, seed {seed}");
    let hub = Hub::new(SERVERS)?;
    let dir = RunDir::new("soak")?;
    // Traffic Server's own session cache grows with every full handshake, as it should; here it
    // would hide what else grows.
    let cache = "proxy.config.ssl.session_cache INT 0";
    let plan = Plan::new(SERVERS, &request.plugin, INTERVAL).record(cache).places(&hub.places());
    let mut fleet = plan.prepare(&dir.join("fleet"))?;
    let home = dir.join("plain");
    std::fs::create_dir_all(&home)?;
    let site = Identity::self_signed("/CN=localhost")?.write(&home, "site")?;
    let mut plain = Ats::builder(&home).certificate(&site).record(cache).start()?;
    let mut watch = Watch::new(&fleet);
    fleet.start()?;
    plain.wait_ready()?;
    fleet::wait_one_key(&fleet.https(), None, START_LIMIT)?;
    wait::until(START_LIMIT, "the fleet to be one", || {
        watch.look();
        Ok((watch.is_one() && watch.leader().is_some()).then_some(()))
    })?;
    let clients = Clients::start(&fleet.https(), plain.https(), watch.begun(), *seed);
    let mut course = Course::new(fleet, plain, hub, watch, clients, *seed);
    let outcome = course.run(*span);
    let own = Usage::of(std::process::id())?;
    let interrupted = sys::interrupted();
    let Remains { met, mut watch, phases, standings, mut broken } = course.end();
    if let Err(error) = &outcome {
        let what = format!("the run could not go on, and was not one again: {error}");
        broken.push(Broken { at: watch.now(), what });
    }
    let standstills = sys::lock(&watch.standstills).clone();
    let evidence = Evidence {
        met,
        entries: std::mem::take(&mut watch.entries),
        standings,
        phases,
        samples: std::mem::take(&mut watch.samples),
        standstills,
        broken,
        span: watch.now(),
    };
    let assessment = checker::assess(&evidence);
    let clean = assessment.breaches() == 0 && !interrupted;
    report::write(request, &evidence, &assessment, own.cpu, interrupted)?;
    if clean {
        dir.done()?;
    }
    Ok(clean)
}
