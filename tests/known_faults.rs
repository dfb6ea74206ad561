//! The known faults of `tests/mutants` fit the code of today, and name tests that there are; what
//! `make mutants` would find out after an hour. Whether a test catches its fault is for that to say.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Where tests are.
const FOLDERS: [&str; 3] = ["src", "stekctl", "tests"];

/// The text of each source file.
fn sources() -> Vec<String> {
    let mut todo: Vec<PathBuf> = FOLDERS.iter().map(|name| Path::new(ROOT).join(name)).collect();
    let mut texts = Vec::new();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            texts.push(fs::read_to_string(path).unwrap());
        }
    }
    texts
}

/// What is wrong with a fault: a change of `file` that does not fit it, a test that is nowhere.
fn complaints(
    patch: &str,
    file: impl Fn(&str) -> Option<String>,
    sources: &[String],
) -> Vec<String> {
    let mut complaints = Vec::new();
    let (head, changes) = patch.split_at(patch.find("\n--- ").map_or(patch.len(), |at| at + 1));
    let tests: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("Test: ")).collect();
    for test in &tests {
        // Documents and the tests of a whole program have none.
        let name = test.rsplit([' ', ':']).next().unwrap_or_default();
        let function = format!("fn {name}(");
        if !sources.iter().any(|text| text.contains(&function)) {
            complaints.push(format!("no test is called {name}"));
        }
    }
    if tests.is_empty() || !head.starts_with("Fault: ") {
        complaints.push("the head names no fault, or no test".to_owned());
    }
    let mut changed = 0;
    for part in changes.split("--- a/").skip(1) {
        let name = part.lines().next().unwrap_or_default();
        let Some(text) = file(name) else {
            complaints.push(format!("there is no file {name}"));
            continue;
        };
        for hunk in part.split("\n@@ ").skip(1) {
            let old: Vec<&str> = hunk
                .lines()
                .skip(1)
                .filter(|line| !line.starts_with('+'))
                .map(|line| line.get(1..).unwrap_or_default())
                .collect();
            changed += 1;
            if !text.contains(&old.join("\n")) {
                complaints.push(format!("a change of {name} does not fit: {}", old.join("\n")));
            }
        }
    }
    if changed == 0 {
        complaints.push("it changes nothing".to_owned());
    }
    complaints
}

#[test]
fn every_known_fault_fits_the_code_and_names_tests_that_there_are() {
    let sources = sources();
    let read = |name: &str| fs::read_to_string(Path::new(ROOT).join(name)).ok();
    let mut bad = Vec::new();
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(ROOT).join("tests/mutants")).unwrap() {
        let path = entry.unwrap().path();
        let patch = fs::read_to_string(&path).unwrap();
        seen += 1;
        for complaint in complaints(&patch, read, &sources) {
            bad.push(format!("{}: {complaint}", path.display()));
        }
    }
    assert!(seen > 100, "only {seen} faults");
    assert!(bad.is_empty(), "make them anew (tools/mutants.sh refresh):\n{}", bad.join("\n"));
}

#[test]
fn what_is_wrong_with_a_fault_is_told() {
    let sources = ["fn is_red() {}".to_owned()];
    let patch = |test: &str, file: &str, old: &str| {
        let old = format!("--- a/{file}\n+++ b/{file}\n@@ -1,2 +1,2 @@\n one\n-{old}\n+three\n");
        let head = format!("Fault: blue\nTest: --lib -- --exact colours::{test}\n\n");
        let read = |name: &str| (name == "a.rs").then(|| "zero\none\ntwo\n".to_owned());
        complaints(&(head + &old), read, &sources).join("; ")
    };
    assert_eq!(patch("is_red", "a.rs", "two"), "");
    assert_eq!(patch("is_green", "a.rs", "two"), "no test is called is_green");
    assert_eq!(patch("is_red", "b.rs", "two"), "there is no file b.rs; it changes nothing");
    assert_eq!(patch("is_red", "a.rs", "2"), "a change of a.rs does not fit: one\n2");
    let empty = complaints("Fault: blue\nTest: --lib -- is_red\n", |_| None, &sources);
    assert_eq!(empty, ["it changes nothing"]);
    let nameless = complaints("\n--- a/a.rs\n@@ -1 +1 @@\n-x\n", |_| Some("x\n".into()), &sources);
    assert_eq!(nameless, ["the head names no fault, or no test"]);
}
