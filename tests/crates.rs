//! What comes into the plugin from outside is what deny.toml allows, and builds with the compiler
//! that Cargo.toml promises. Without a network and without cargo-deny, which knows more: `make deny`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn cargo(arguments: &[&str]) -> String {
    let mut cargo = Command::new(env!("CARGO"));
    let output = cargo.args(arguments).args(["--offline", "--locked"]).current_dir(ROOT);
    let output = output.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Each crate of the workspace's tree as `name vVERSION [(where from)]`, with its licence.
fn crates() -> BTreeMap<String, String> {
    let format = ["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"];
    let tree =
        cargo(&[&["tree", "--workspace", "--edges", "normal,build,dev"], &format[..]].concat());
    let lines = tree.lines().filter_map(|line| line.split_once('|'));
    let crates: BTreeMap<_, _> = lines.map(|(p, l)| (p.to_owned(), l.to_owned())).collect();
    assert!(crates.len() > 100, "{crates:?}");
    crates
}

/// The words in quotes between `head` and the bracket that closes it, in deny.toml.
fn allowed(head: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(ROOT).join("deny.toml")).unwrap();
    let list = text.split(head).nth(1).unwrap().split("\n]").next().unwrap();
    let list = list.split("]\n").next().unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn each_licence_is_allowed() {
    let allowed = allowed("\nallow = [");
    let fits = |all: &str| {
        all.split(" AND ").all(|one| {
            let mut words = one.trim_matches(['(', ')']).split(" OR ").flat_map(|w| w.split('/'));
            words.any(|word| allowed.contains(word))
        })
    };
    assert!(fits("(MIT OR Other) AND ISC") && !fits("MIT AND Other") && !fits(""));
    let wrong: Vec<_> = crates().into_iter().filter(|(_, licence)| !fits(licence)).collect();
    assert!(wrong.is_empty(), "deny.toml allows none of the licences of {wrong:?}");
}

#[test]
fn each_crate_is_of_this_repository_or_of_crates_io() {
    // A member's path, or that it is a macro; cargo says nothing of crates.io.
    let is_elsewhere = |line: &&str| {
        let from = line.split_once('(').map(|(_, from)| from);
        from.is_some_and(|from| from != "proc-macro)" && !from.starts_with(ROOT))
    };
    assert!(is_elsewhere(&"a v1.0.0 (https://git.example/a#1234abcd)"));
    let crates = crates();
    let elsewhere: Vec<&str> = crates.keys().map(String::as_str).filter(is_elsewhere).collect();
    assert_eq!(elsewhere, [""; 0]);
}

#[test]
fn each_crate_comes_in_one_version() {
    let skipped = allowed("\nskip = [");
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in crates().keys() {
        let mut words = line.split(' ');
        let name = words.next().unwrap().to_owned();
        versions.entry(name).or_default().insert(words.next().unwrap()[1..].to_owned());
    }
    for (name, versions) in versions {
        let is_known = |version: &str| {
            skipped.contains(&format!("{name}@{}", version.split('.').next().unwrap()))
        };
        let unknown = versions.iter().filter(|version| !is_known(version)).count();
        assert_eq!(unknown, 1, "{name} comes as {versions:?}, and deny.toml does not say why");
    }
}

/// A version as numbers, of which the last may be left out.
fn numbers(version: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    numbers.resize(3, 0);
    numbers
}

/// What crates ask for is what Cargo.toml promises: less would not build, more keeps people out.
/// Whether our own code needs more is for clippy's incompatible_msrv, and `make verify-all`.
#[test]
fn the_promised_compiler_is_the_one_that_the_crates_need() {
    let in_tree: BTreeSet<(String, String)> = crates()
        .into_keys()
        .map(|line| {
            let mut words = line.split(' ');
            (words.next().unwrap().to_owned(), words.next().unwrap()[1..].to_owned())
        })
        .collect();
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = cargo(&["metadata", "--format-version", "1", "--filter-platform", &platform]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let (mut promised, mut needed) = (Vec::new(), (Vec::new(), String::new()));
    for package in metadata["packages"].as_array().unwrap() {
        let word = |key: &str| package[key].as_str().map(str::to_owned);
        let (name, version) = (word("name").unwrap(), word("version").unwrap());
        let Some(asked) = word("rust_version").map(|asked| numbers(&asked)) else { continue };
        if package["source"].is_null() {
            promised.push(asked);
        } else if in_tree.contains(&(name.clone(), version)) && asked > needed.0 {
            needed = (asked, name);
        }
    }
    promised.dedup();
    assert_eq!(promised, [needed.0], "rust-version of Cargo.toml, and what {} needs", needed.1);
}
