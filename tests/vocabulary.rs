//! One vocabulary, the field's: what operators and engineers read has none of the words that were
//! once made up for it. docs/glossary.md says which word stands for what.
#![allow(clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// What is read. Names and texts of all files below.
const READ: [&str; 13] = [
    "src",
    "stekctl",
    "ffi",
    "docs",
    "packaging",
    "examples",
    "tools",
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "RELEASING.md",
    "example_server_conf.yaml",
    "example_server_list.yaml",
];

/// Figures of long runs, as a program wrote them.
const FIGURES: [&str; 4] =
    ["docs/benchmarks/", "docs/benchmarks.json", "docs/scale.json", "docs/testing/"];

/// Words that are not used, and the word that is.
const WORDS: [(&str, &str); 54] = [
    ("ballot", "term, vote, LeaderId"),
    ("ballots", "terms, votes"),
    ("beat", "heartbeat"),
    ("beats", "heartbeats"),
    ("box", "server"),
    ("boxes", "servers"),
    ("breadth", "scale"),
    ("calm", "idle"),
    ("chronicle", "LeaderInfo"),
    ("courier", "RpcClient"),
    ("crowd", "server list"),
    ("dice", "random numbers"),
    ("enlist", "change of membership"),
    ("enlisted", "change of membership"),
    ("enlists", "change of membership"),
    ("farewell", "leadership transfer"),
    ("foreigner", "peer of another cluster"),
    ("foreigners", "peers of another cluster"),
    ("hearsay", "status"),
    ("hopeless", "quorum unreachable"),
    ("horizon", "SanityBounds"),
    ("hub", "voter"),
    ("hubs", "voters"),
    ("inbox", "RpcServer"),
    ("judge", "check, decide"),
    ("judged", "checked"),
    ("judges", "checks"),
    ("keeper", "key publisher"),
    ("ledger", "counters"),
    ("newcomer", "new peer"),
    ("newcomers", "new peers"),
    ("overruled", "replacement"),
    ("porter", "Service"),
    ("pulse", "heartbeat"),
    ("quarantine", "recovering"),
    ("quarantined", "recovering"),
    ("reborn", "restarted"),
    ("reign", "leader term"),
    ("roster", "server list"),
    ("rosters", "server lists"),
    ("senseless", "InvalidResponse"),
    ("strand", "joining"),
    ("stranded", "joining"),
    ("summoned", "TimeoutNow, told to campaign"),
    ("surroundings", "host environment"),
    ("survey", "status"),
    ("surveys", "status"),
    ("twin", "duplicate id"),
    ("twins", "duplicate ids"),
    ("unattended", "joining"),
    ("unrest", "fault phase"),
    ("unwell", "out of sync"),
    ("verdict", "result, decision"),
    ("verdicts", "results"),
];

/// The same for several words in a row.
const PHRASES: [(&str, &str); 7] = [
    ("heart beat", "heartbeat"),
    (" asks around", "is joining"),
    (" ask around", "join"),
    ("for election", "campaigns, is a candidate"),
    ("what must hold:", "Invariants"),
    ("unsafe room", "unsafe part"),
    ("without its memory", "a new node: recovering, is sent the log"),
];

/// Names of types that say too little.
const TYPES: [&str; 27] = [
    "Alarm",
    "Ask",
    "Door",
    "Ears",
    "Farewell",
    "Gate",
    "Given",
    "Heard",
    "HistoryId",
    "Knocks",
    "Letter",
    "LogEnd",
    "LogPosition",
    "Lookout",
    "Mail",
    "Means",
    "Meters",
    "Outside",
    "Post",
    "Pulse",
    "QueuedRotation",
    "Recall",
    "RotationRefusal",
    "Senseless",
    "Unable",
    "Voice",
    "WillCampaign",
];

/// Names of others that are as they are: the option of the original, a type of Rust's.
const ALLOWED: [&str; 4] = ["heart_beat_interval", "HEART_BEAT_INTERVAL", "Box<", "Box::"];

fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut rest: Vec<PathBuf> = READ.iter().map(PathBuf::from).collect();
    while let Some(path) = rest.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => rest.extend(entries.map(|e| e.expect("an entry of a folder").path())),
            Err(_) => found.push(path),
        }
    }
    found.retain(|path| {
        !FIGURES.iter().any(|figures| path.starts_with(figures) || begins(path, figures))
    });
    found.sort();
    assert!(found.len() > 100, "only {} files: are names in READ still right?", found.len());
    found
}

fn begins(path: &Path, with: &str) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(with))
}

/// The words of a line: letters in a row, and parts of a name written LikeThis.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for letter in line.chars() {
        let goes_on = letter.is_alphabetic() && !(letter.is_uppercase() && before.is_lowercase());
        match words.last_mut() {
            Some(word) if goes_on => word.push(letter),
            _ if letter.is_alphabetic() => words.push(letter.into()),
            _ => words.push(String::new()),
        }
        before = letter;
    }
    words.retain(|word| !word.is_empty());
    words
}

fn faults_of(path: &Path, line: &str) -> Vec<String> {
    let is_rust = path.extension().is_some_and(|e| e == "rs");
    let line = ALLOWED.iter().fold(line.to_owned(), |line, allowed| line.replace(allowed, ""));
    let mut faults = Vec::new();
    for word in words(&line) {
        let lower = word.to_lowercase();
        faults.extend(
            WORDS
                .iter()
                .filter(|(bad, _)| *bad == lower)
                .map(|(_, good)| format!("{word}: say {good}")),
        );
    }
    let lower = line.to_lowercase();
    faults.extend(
        PHRASES
            .iter()
            .filter(|(bad, _)| lower.contains(bad))
            .map(|(bad, good)| format!("{bad}: say {good}")),
    );
    let mut names = line
        .split_whitespace()
        .skip_while(|w| !matches!(*w, "struct" | "enum" | "trait" | "type"))
        .skip(1);
    let name = names
        .next()
        .unwrap_or_default()
        .split(|c: char| !c.is_alphanumeric())
        .next()
        .unwrap_or_default();
    if is_rust && TYPES.contains(&name) {
        faults.push(format!("a type {name}"));
    }
    faults
}

#[test]
fn what_is_read_has_the_words_of_the_field() {
    let mut faults = Vec::new();
    for path in files() {
        let name = path.display().to_string();
        faults.extend(
            faults_of(Path::new(""), &name)
                .iter()
                .map(|fault| format!("{name}: its name: {fault}")),
        );
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in (1..).zip(text.lines()) {
            faults.extend(
                faults_of(&path, line).iter().map(|fault| format!("{name}:{number}: {fault}")),
            );
        }
    }
    assert!(faults.is_empty(), "{} words (docs/glossary.md):\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn a_word_is_seen_in_each_form() {
    let rust = Path::new("a.rs");
    for line in [
        "/// A box.",
        "let box_1 = 1;",
        "fn a_box_waits()",
        "struct BoxStatus;",
        "// Two BOXES",
        "It stands for election",
        "struct Voice;",
    ] {
        assert_eq!(faults_of(rust, line).len(), 1, "{line}");
    }
    for line in [
        "Box::new(1)",
        "Box<dyn Fn()>",
        "sandbox",
        "heart_beat_interval: 100",
        "heartbeats",
        "// a voice",
    ] {
        assert_eq!(faults_of(rust, line), [""; 0], "{line}");
    }
    assert_eq!(faults_of(Path::new("a.md"), "Box 3 leads").len(), 1);
}

#[test]
fn the_glossary_has_each_word_that_is_used_in_place() {
    let glossary = fs::read_to_string("docs/glossary.md").expect("docs/glossary.md").to_lowercase();
    let terms = WORDS
        .iter()
        .flat_map(|(_, good)| good.split(", "))
        .filter(|t| t.chars().all(|c| c.is_lowercase() || c == ' '));
    let plain = [
        "check",
        "decide",
        "checked",
        "checks",
        "result",
        "results",
        "decision",
        "idle",
        "scale",
        "random numbers",
        "counters",
        "host environment",
        "told to campaign",
        "fault phase",
        "duplicate ids",
        "new peers",
        "peers of another cluster",
    ];
    for term in terms.filter(|term| !plain.contains(term)) {
        let one = term.trim_end_matches('s');
        assert!(glossary.contains(one), "docs/glossary.md does not have {term:?}");
    }
}
