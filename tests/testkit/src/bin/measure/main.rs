//! Measures what operators ask about: how soon a fleet has one key, how far apart its servers change
//! it, what the plugin costs, how long a fleet is without a leader. Real Traffic Servers with the
//! plugin, plain ones beside them, and if asked for the rivals that Debian has.
//!
//!     measure WHAT... [--runs N] [--servers N,N] [--rivals] [--json FILE]
//!     measure bench [--quick] [--json FILE] [--report FILE]
//!     measure compare OLD.json NEW.json
//!     measure report RUN.json PAGE.md
//!
//! WHAT is `size`, `cold-start`, `spread`, `return`, `failover`, `handshakes`, `ids`, `idle`, `wire`,
//! `build`, `scale`, `kills`, or `all`, which is all but the last three. The plugin's path stands in
//! `STEK_SHARE_SO`, with `stekctl` beside it; `scale` and `kills` need the program `standalone_node`
//! instead. Exit code 0, 1 when something could not be measured or has become worse, 2 when it is called wrongly.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use testkit::figures::Figures;
use testkit::{sys, Context, Error, Result};

use crate::group::System;

mod about;
mod cold_start;
mod compare;
mod failover;
mod group;
mod handshakes;
mod idle;
mod ids;
mod report;
mod returns;
mod scale;
mod spread;
mod wire;

const USAGE: &str = "usage: measure size|cold-start|spread|return|failover|handshakes|ids|idle|wire|\
                     build|scale|kills|all ... [--runs N] [--servers N,N] [--rivals] [--json FILE]\n       \
                     measure bench [--quick] [--json FILE] [--report FILE]\n       \
                     measure compare OLD.json NEW.json\n       \
                     measure report RUN.json PAGE.md\nSTEK_SHARE_SO names the plugin";

/// What there is to measure, in the order of `all`.
const SUBJECTS: [&str; 9] =
    ["size", "cold-start", "spread", "return", "failover", "handshakes", "ids", "idle", "wire"];

/// What is measured of servers that are the node alone.
const LONE: [&str; 2] = ["scale", "kills"];

/// Rotations by order, of which the slowest in a hundred are looked for.
const ORDERED: usize = 200;

/// How much is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// What was asked for one by one.
    Asked,
    /// Under three minutes: fewer runs of fewer servers, no rivals.
    Quick,
    /// Everything, rivals included.
    Full,
}

/// What the command line asks for.
struct Request {
    plugin: PathBuf,
    subjects: Vec<String>,
    runs: Option<usize>,
    servers: Option<Vec<usize>>,
    systems: Vec<System>,
    effort: Effort,
    json: Option<PathBuf>,
    report: Option<PathBuf>,
}

impl Request {
    fn parse(words: impl Iterator<Item = String>) -> Option<Self> {
        let mut this = Self {
            plugin: env::var_os("STEK_SHARE_SO").unwrap_or_default().into(),
            subjects: Vec::new(),
            runs: None,
            servers: None,
            systems: vec![System::StekShare, System::Plain],
            effort: Effort::Asked,
            json: None,
            report: None,
        };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "all" => this.subjects.extend(SUBJECTS.map(str::to_owned)),
                "bench" => {
                    this.effort = Effort::Full;
                    this.subjects.extend(SUBJECTS.map(str::to_owned));
                }
                "--quick" => this.effort = Effort::Quick,
                "--runs" => this.runs = Some(words.next()?.parse().ok().filter(|n| *n > 0)?),
                "--servers" => {
                    let numbers = words.next()?.split(',').map(|n| n.parse().ok()).collect();
                    this.servers = Some(numbers).flatten();
                    this.servers.as_ref()?;
                }
                "--rivals" => this.systems = System::ALL.to_vec(),
                "--json" => this.json = Some(words.next()?.into()),
                "--report" => this.report = Some(words.next()?.into()),
                subject if SUBJECTS.contains(&subject) => this.subjects.push(subject.into()),
                subject if subject == "build" || LONE.contains(&subject) => {
                    this.subjects.push(subject.into());
                }
                _ => return None,
            }
        }
        if this.effort == Effort::Full {
            this.systems = System::ALL.to_vec();
            this.subjects.push("build".into());
        }
        let needs_plugin = this.subjects.iter().any(|s| !LONE.contains(&s.as_str()));
        let is_complete = !(needs_plugin && this.plugin.as_os_str().is_empty());
        (!this.subjects.is_empty() && is_complete).then_some(this)
    }

    /// Group sizes: as asked, or as the subject has it.
    fn sizes(&self, full: &[usize], quick: &[usize]) -> Vec<usize> {
        let default = if self.effort == Effort::Quick { quick } else { full };
        self.servers.clone().unwrap_or_else(|| default.to_vec())
    }

    fn runs(&self, full: usize, quick: usize) -> usize {
        self.runs.unwrap_or(if self.effort == Effort::Quick { quick } else { full })
    }

    /// The systems that are on this machine.
    fn systems(&self) -> Vec<System> {
        self.systems.iter().copied().filter(|system| system.is_there()).collect()
    }

    fn measure(&self, subject: &str, figures: &mut Figures) -> Result<()> {
        let (plugin, systems) = (&self.plugin, &self.systems());
        let each = |sizes: Vec<usize>, measure: &mut dyn FnMut(usize) -> Result<()>| {
            sizes.into_iter().try_for_each(measure)
        };
        match subject {
            "size" => size(plugin, systems, figures),
            "cold-start" => each(self.sizes(&[3, 5], &[3]), &mut |servers| {
                cold_start::measure(systems, plugin, servers, self.runs(12, 3), figures)
            }),
            "spread" => each(self.sizes(&[5], &[3]), &mut |servers| {
                let ordered = if self.effort == Effort::Quick { 0 } else { ORDERED };
                let rotations = spread::Rotations { timed: self.runs(12, 5), ordered };
                spread::measure(systems, plugin, servers, rotations, figures)
            }),
            "return" => each(self.sizes(&[3], &[3]), &mut |servers| {
                returns::measure(systems, plugin, servers, self.runs(6, 2), figures)
            }),
            "failover" => each(self.sizes(&[5], &[3]), &mut |servers| {
                failover::lateness(systems, plugin, servers, self.runs(3, 1), figures)?;
                failover::measure(plugin, servers, self.runs(6, 2), figures)
            }),
            "handshakes" => each(self.sizes(&[3], &[3]), &mut |servers| {
                handshakes::measure(systems, plugin, servers, self.runs(30, 12), figures)
            }),
            "ids" => each(self.sizes(&[3], &[3]), &mut |servers| {
                ids::measure(systems, plugin, servers, self.runs(5, 2), figures)?;
                idle::sharing(systems, plugin, servers, self.runs(2, 1), figures)
            }),
            "idle" => {
                let rivals = [System::SessionReuse, System::Caddy];
                let rivals: Vec<System> =
                    systems.iter().copied().filter(|system| rivals.contains(system)).collect();
                idle::rivals(&rivals, plugin, 3, self.runs(2, 1), figures)?;
                each(self.sizes(&[1, 3, 5, 20], &[3]), &mut |servers| {
                    idle::measure(plugin, servers, self.runs(2, 1), figures)
                })
            }
            "wire" => each(self.sizes(&[3, 5], &[3]), &mut |servers| {
                wire::measure(systems, plugin, servers, figures)
            }),
            "build" => build(figures),
            "scale" => each(self.sizes(&[5, 20, 50, 100, 200], &[5, 20]), &mut |servers| {
                scale::measure(servers, self.runs(3, 1), figures.of(System::StekShare.name()))
            }),
            "kills" => each(self.sizes(&[5], &[5]), &mut |servers| {
                scale::kills(servers, self.runs(100, 10), figures.of(System::StekShare.name()))
            }),
            other => Err(Error::new(format!("nothing is known of {other}"))),
        }
    }
}

/// The files as they are installed; the release profile strips this plugin.
fn size(plugin: &Path, systems: &[System], figures: &mut Figures) -> Result<()> {
    for system in systems {
        let file = match system {
            System::StekShare => plugin,
            System::SessionReuse => Path::new(group::SESSION_REUSE),
            System::Caddy => Path::new(group::CADDY),
            System::HostScope | System::SharedIds | System::Plain => continue,
        };
        let bytes = fs::metadata(file).context(file.display())?.len();
        figures.of(system.name()).add("size: file", bytes as f64 / 1024.0, "KiB");
    }
    Ok(())
}

/// A release build from nothing; crates are downloaded already, or the time for that counts too.
fn build(figures: &mut Figures) -> Result<()> {
    let dir = testkit::run_dir::RunDir::new("measure-build")?;
    let begun = Instant::now();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked", "--quiet", "--lib", "-p", "stek_share"]);
    cargo.arg("--target-dir").arg(dir.path()).stdin(Stdio::null());
    if !cargo.status().context("cargo")?.success() {
        return Err(Error::new("cargo build failed"));
    }
    let seconds = begun.elapsed().as_secs_f64();
    figures.of(System::StekShare.name()).add("build: release, from nothing", seconds, "s");
    dir.done()
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    if let [command, first, second] = words.as_slice() {
        let (first, second) = (Path::new(first), Path::new(second));
        match command.as_str() {
            "compare" => return compare::run(first, second),
            "report" => return rewrite(first, second),
            _ => {}
        }
    }
    let Some(request) = Request::parse(words.into_iter()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    sys::catch_interrupts();
    let mut about = about::About::begin();
    let (mut figures, mut code) = (Figures::default(), ExitCode::SUCCESS);
    for system in request.systems.iter().filter(|system| !system.is_there()) {
        eprintln!("{} is not on this machine and is left out: make deps-bench", system.name());
    }
    for subject in &request.subjects {
        eprintln!("measuring {subject} ...");
        if let Err(error) = request.measure(subject, &mut figures) {
            eprintln!("{subject}: {error}");
            code = ExitCode::FAILURE;
        }
        // After each, so that a run that is broken off leaves what it has.
        about.look_again();
        if let Err(error) = write(&request, &about, &figures) {
            eprintln!("{error}");
            code = ExitCode::FAILURE;
        }
    }
    print!("{figures}");
    code
}

/// Writes the page of an earlier run again.
fn rewrite(json: &Path, page: &Path) -> ExitCode {
    let written = compare::value(json).and_then(|value| {
        let about = about::About::from_json(value.get("about").unwrap_or(&serde_json::Value::Null));
        report::write(page, &about, &compare::figures(&value)?)
    });
    if let Err(error) = &written {
        eprintln!("{}: {error}", json.display());
    }
    if written.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn write(request: &Request, about: &about::About, figures: &Figures) -> Result<()> {
    if let Some(file) = &request.json {
        let json = serde_json::json!({ "about": about.json(), "figures": figures.json() });
        let text = serde_json::to_string_pretty(&json).context("JSON")?;
        fs::write(file, text + "\n").context(file.display())?;
    }
    if let Some(file) = &request.report {
        report::write(file, about, figures)?;
    }
    Ok(())
}
