//! The scenarios in `scenarios/`: each is played, and what the servers say must be what is written.
//!
//! `STEK_SCENARIOS=write` writes what they say now; the difference is then for a reader to judge.

// A test ends where it cannot go on.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");

/// So many there are at least: a folder that is empty proves nothing.
const LEAST: usize = 15;

/// The first line in which two texts differ, for a reader.
fn difference(written: &str, told: &str) -> Option<String> {
    let lines = written.lines().count().max(told.lines().count());
    let mut both = (1..=lines).zip(written.lines().chain([""]).zip(told.lines().chain([""])));
    let differs = |(_, (one, other)): &(usize, (&str, &str))| one != other;
    let (line, (one, other)) = both.find(differs)?;
    Some(format!("line {line}:\n  written: {one}\n  now:     {other}"))
}

#[test]
fn servers_say_what_the_scenarios_tell() {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= LEAST, "{files:?}");
    let writes = std::env::var("STEK_SCENARIOS").is_ok_and(|word| word == "write");
    let mut wrong = Vec::new();
    for file in files {
        let mut play = Command::new(env!("CARGO_BIN_EXE_simulation"));
        let output = play.arg("--scenario").arg(&file).output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let (name, written) = (file.display(), std::fs::read_to_string(&file).unwrap());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {errors}");
        // No order that was not understood, and no promise that was broken.
        assert!(!told.contains("FAILED"), "{name}:\n{told}");
        // Somebody did something, and a server said something of it.
        assert!(told.lines().filter(|line| line.starts_with(" ")).count() >= 3, "{name}");
        if writes {
            std::fs::write(&file, told).unwrap();
        } else if let Some(words) = difference(&written, &told) {
            wrong.push(format!("{name}, {words}"));
        }
    }
    assert!(wrong.is_empty(), "STEK_SCENARIOS=write writes anew:\n{}", wrong.join("\n"));
}
