//! On what machine, with what versions, and how busy otherwise.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

/// The circumstances of a run.
pub struct About {
    /// Names and values, in the order of the report.
    pub facts: Vec<(String, String)>,
    begun: Instant,
    /// How long the run took.
    pub took: Duration,
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
        facts.push(("load at the beginning".into(), load()));
        Self { facts, begun: Instant::now(), took: Duration::ZERO }
    }

    /// And at its end.
    pub fn end(mut self) -> Self {
        self.facts.push(("load at the end".into(), load()));
        self.took = self.begun.elapsed();
        self.facts.push(("took".into(), format!("{:.0} min", self.took.as_secs_f64() / 60.0)));
        self
    }

    /// As a JSON object.
    pub fn json(&self) -> Value {
        self.facts.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
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

/// Load averages over 1, 5 and 15 minutes.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
