//! Runs seeds of the simulation and says how they went.
//!
//!     simulation [--seed N] [--seeds COUNT] [--from N] [--jobs N] [--log] [--digests]
//!                [--twice] [--until-broken] [--until-refused] [--late-votes] [--resets] [--foundings]
//!                [--large]
//!     simulation --scenario FILE
//!
//! Each seed runs in a process of its own, forked from this one: nothing that one leaves behind can
//! reach the next, not even a counter in a library, and a crash is one seed's.

// This is a test: what cannot go on ends with its reason.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod agreement;
mod cells;
mod disk;
mod event_log;
mod faults;
mod list_memory;
mod machine;
mod network;
mod plan;
mod promises;
mod rng;
mod scenario;
mod system;
mod tickets;
mod workers;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use stek_share::transport::tls::Tls;
use testkit::pki::{Authority, Request};

use crate::workers::{Total, Twins};

/// Nanoseconds.
pub const MS: u64 = 1_000_000;
/// Nanoseconds.
pub const SECOND: u64 = 1000 * MS;

struct Options {
    from: u64,
    count: u64,
    jobs: usize,
    log: bool,
    digests: bool,
    twice: bool,
    until_broken: bool,
    until_refused: bool,
    scenario: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Options, String> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut options = Options {
            from: 1,
            count: 100,
            jobs,
            log: false,
            digests: false,
            twice: false,
            until_broken: false,
            until_refused: false,
            scenario: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            if word == "--scenario" {
                let file = words.next().ok_or("--scenario needs a file")?;
                options.scenario = Some(file.into());
                continue;
            }
            let mut number = || {
                let given = words.next().and_then(|word| word.parse::<u64>().ok());
                given.ok_or_else(|| format!("{word} needs a number"))
            };
            match word.as_str() {
                "--seed" => (options.from, options.count) = (number()?, 1),
                "--from" => options.from = number()?,
                "--seeds" => options.count = number()?,
                "--jobs" => options.jobs = number()?.max(1) as usize,
                "--log" => options.log = true,
                "--digests" => options.digests = true,
                "--twice" => options.twice = true,
                "--until-broken" => options.until_broken = true,
                "--until-refused" => options.until_refused = true,
                "--late-votes" => plan::LATE_VOTES.store(true, Ordering::Relaxed),
                "--resets" => plan::RESETS.store(true, Ordering::Relaxed),
                "--foundings" => plan::FOUNDINGS.store(true, Ordering::Relaxed),
                "--large" => plan::LARGE.store(true, Ordering::Relaxed),
                _ => return Err(format!("there is no option {word}")),
            }
        }
        Ok(options)
    }
}

/// The certificate that all servers share: TLS is not simulated, but state files are sealed with it.
fn certificate() -> Tls {
    let authority = Authority::new("/O=Simulation/CN=root").expect("an authority");
    let own = authority.issue(&Request::new(plan::SUBJECT)).expect("a certificate");
    let pem = |certificate: &openssl::x509::X509| certificate.to_pem().expect("PEM");
    let key = own.key.private_key_to_pem_pkcs8().expect("PEM");
    let root = pem(&authority.identity.certificate);
    Tls::from_pem(&root, &pem(&own.certificate), &key, plan::SUBJECT).expect("a certificate")
}

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(options) => options,
        Err(words) => {
            eprintln!("simulation: {words}");
            return ExitCode::from(2);
        }
    };
    let tls = certificate();
    if let Some(file) = &options.scenario {
        return match workers::scenario(file, &tls) {
            Ok(told) => {
                print!("{told}");
                ExitCode::SUCCESS
            }
            Err(words) => {
                eprintln!("simulation: {}: {words}", file.display());
                ExitCode::from(2)
            }
        };
    }
    if options.log {
        let outcome = workers::one(options.from, &tls, true);
        println!("{outcome:#?}");
        return ExitCode::from(u8::from(outcome.broken.is_some()));
    }
    let begun = Instant::now();
    let mut total = Total::default();
    let runs = if options.twice { 2 } else { 1 };
    let seeds = options.from..options.from + options.count;
    let seeds = seeds.flat_map(|seed| std::iter::repeat_n(seed, runs));
    let mut twins = Twins::default();
    workers::all(seeds, options.jobs, &tls, |seed, mut outcome| {
        if options.twice {
            match twins.compare(seed, outcome.digest) {
                Some(true) => return true,
                Some(false) => outcome.broken = Some("its log differs when it is run again".into()),
                None => {}
            }
        }
        total.add(&outcome);
        if options.digests {
            println!("seed {seed} digest {:016x}", outcome.digest);
        }
        if let Some(words) = &outcome.broken {
            println!("FAILED: seed {seed}: {words}");
            println!("  again: {}", workers::again(seed));
        }
        let is_refused = outcome.broken.as_deref().is_some_and(agreement::is_refusal);
        (outcome.broken.is_none() || !options.until_broken)
            && !(is_refused && options.until_refused)
    });
    total.tell(begun.elapsed());
    ExitCode::from(u8::from(total.broken > 0))
}
