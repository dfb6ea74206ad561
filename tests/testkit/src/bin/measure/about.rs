//! On what machine, with what versions, and how busy otherwise.

use std::fs;
use std::process::Command;
use std::time::Instant;

use serde_json::{json, Value};

const LOADS: &str = "processes that wanted a core, at the beginning and after each subject";
const TOOK: &str = "took";

/// The circumstances of a run.
pub struct About {
    /// Names and values, in the order of the report.
    pub facts: Vec<(String, String)>,
    loads: Vec<String>,
    begun: Instant,
}

impl About {
    /// Looks around at the beginning of a run.
    pub fn begin() -> Self {
        let mut facts = vec![
            ("date".into(), said("date", &["-u", "+%F %H:%M UTC"])),
            ("machine".into(), machine()),
            ("system".into(), system()),
            ("Rust".into(), said("rustc", &["--version"])),
            ("plugin".into(), plugin()),
        ];
        for package in ["trafficserver", "libssl3", "redis-server", "caddy"] {
            let format = "--showformat=${Version}";
            let version = said("dpkg-query", &["--show", format, package]);
            facts.push((format!("Debian's {package}"), version));
        }
        Self { facts, loads: vec![load()], begun: Instant::now() }
    }

    /// And later, to tell how busy the machine was meanwhile.
    pub fn look_again(&mut self) {
        self.loads.push(load());
        let took = self.begun.elapsed().as_secs_f64() / 60.0;
        self.facts.retain(|(name, _)| ![LOADS, TOOK].contains(&name.as_str()));
        self.facts.push((LOADS.into(), self.loads.join("; ")));
        self.facts.push((TOOK.into(), format!("{took:.0} min")));
    }

    /// As a JSON array of pairs, which keeps the order.
    pub fn json(&self) -> Value {
        self.facts.iter().map(|(name, value)| json!([name, value])).collect()
    }

    /// What [`About::json`] gave of an earlier run.
    pub fn from_json(value: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pair = |pair: &Value| Some((text(pair.get(0)?), text(pair.get(1)?)));
        let facts = value.as_array().into_iter().flatten().filter_map(pair).collect();
        Self { facts, loads: Vec::new(), begun: Instant::now() }
    }
}

/// The first line of what a program prints; a dash if there is none.
fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned();
    if line.is_empty() {
        "-".into()
    } else {
        line
    }
}

fn plugin() -> String {
    let commit = said("git", &["rev-parse", "--short", "HEAD"]);
    format!("stek_share {}, commit {commit}", env!("CARGO_PKG_VERSION"))
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = kib.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    let gib = kib.unwrap_or_default() / 1024.0 / 1024.0;
    format!("{cores} cores of {}, {gib:.0} GiB", model.unwrap_or("unknown make"))
}

fn system() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{}, Linux {}", name.unwrap_or("unknown").trim_matches('"'), kernel.trim())
}

/// The load average over a minute.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("-").to_owned()
}
