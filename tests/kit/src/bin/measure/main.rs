//! Measures what operators ask about: how soon a fleet has one key, how far apart its boxes change
//! it, what the plugin costs, how long a fleet is without a leader. Real Traffic Servers with the
//! plugin, and plain ones beside them.
//!
//! `measure WHAT... [--runs N] [--boxes N,N] [--json FILE]`, where WHAT is `cold-start`, `spread`,
//! `idle`, `failover`, `size` or `all`. The plugin's path stands in `STEK_SHARE_SO`. Exit code 0,
//! 1 when something could not be measured, 2 when it is called wrongly.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kit::figures::Figures;
use kit::{sys, Context, Error, Result};

mod cold_start;
mod failover;
mod idle;
mod spread;

const USAGE: &str = "usage: measure cold-start|spread|idle|failover|size|all ... \
                     [--runs N] [--boxes N,N] [--json FILE]; STEK_SHARE_SO names the plugin";

/// What there is to measure, in the order of `all`.
const SUBJECTS: [&str; 5] = ["size", "cold-start", "spread", "idle", "failover"];

/// What the command line asks for.
struct Request {
    plugin: PathBuf,
    subjects: Vec<String>,
    runs: Option<usize>,
    boxes: Option<Vec<usize>>,
    json: Option<PathBuf>,
}

impl Request {
    fn parse(words: impl Iterator<Item = String>) -> Option<Self> {
        let plugin = env::var_os("STEK_SHARE_SO")?.into();
        let mut this = Self { plugin, subjects: Vec::new(), runs: None, boxes: None, json: None };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "all" => this.subjects.extend(SUBJECTS.map(str::to_owned)),
                "--runs" => this.runs = Some(words.next()?.parse().ok().filter(|n| *n > 0)?),
                "--boxes" => {
                    let numbers = words.next()?.split(',').map(|n| n.parse().ok()).collect();
                    this.boxes = Some(numbers).flatten();
                    this.boxes.as_ref()?;
                }
                "--json" => this.json = Some(words.next()?.into()),
                subject if SUBJECTS.contains(&subject) => this.subjects.push(subject.into()),
                _ => return None,
            }
        }
        (!this.subjects.is_empty()).then_some(this)
    }

    fn sizes(&self, default: &[usize]) -> Vec<usize> {
        self.boxes.clone().unwrap_or_else(|| default.to_vec())
    }

    fn measure(&self, subject: &str, figures: &mut Figures) -> Result<()> {
        let runs = |default| self.runs.unwrap_or(default);
        match subject {
            "size" => size(&self.plugin, figures),
            "cold-start" => self
                .sizes(&[3, 5])
                .into_iter()
                .try_for_each(|boxes| cold_start::measure(&self.plugin, boxes, runs(10), figures)),
            "spread" => self
                .sizes(&[5])
                .into_iter()
                .try_for_each(|boxes| spread::measure(&self.plugin, boxes, runs(20), figures)),
            "idle" => self
                .sizes(&[1, 3, 5])
                .into_iter()
                .try_for_each(|boxes| idle::measure(&self.plugin, boxes, runs(3), figures)),
            "failover" => self
                .sizes(&[5])
                .into_iter()
                .try_for_each(|boxes| failover::measure(&self.plugin, boxes, runs(10), figures)),
            other => Err(Error::new(format!("nothing is known of {other}"))),
        }
    }
}

/// The file as it is installed; the release profile strips it.
fn size(plugin: &Path, figures: &mut Figures) -> Result<()> {
    let bytes = fs::metadata(plugin).context(plugin.display())?.len();
    figures.add("size of the plugin", bytes as f64, "bytes");
    Ok(())
}

fn main() -> ExitCode {
    let Some(request) = Request::parse(env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    sys::catch_interrupts();
    let (mut figures, mut code) = (Figures::default(), ExitCode::SUCCESS);
    for subject in &request.subjects {
        eprintln!("measuring {subject} ...");
        if let Err(error) = request.measure(subject, &mut figures) {
            eprintln!("{subject}: {error}");
            code = ExitCode::FAILURE;
        }
    }
    print!("{figures}");
    if let Some(Err(error)) = request.json.as_ref().map(|file| figures.write_json(file)) {
        eprintln!("{error}");
        code = ExitCode::FAILURE;
    }
    code
}
