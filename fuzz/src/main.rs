//! Fuzz targets for everything that reads bytes from outside: libFuzzer calls [`assess`] with bytes
//! of its invention, which fall to the target that `STEK_FUZZ_TARGET` names.
//!
//! One program for all targets, because most of it is the plugin. Each target says what must hold
//! of whatever its parser lets through, not merely that it does not crash; a property that does not
//! hold is a panic, which libFuzzer reports with the bytes that led to it. [`memory`] holds all of
//! them to a bound. With `STEK_FUZZ_SEEDS` set the program writes the seeds of the corpus, made
//! of real messages, under that directory, and ends.
#![no_main]

mod commands;
mod frames;
mod hello;
mod memory;
mod messages;
mod seeds;
mod sessions;
mod state;
mod subjects;
mod verbs;
mod yaml;

use std::sync::OnceLock;
use stek_share::core::config::MAX_PROBLEMS;

use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// A target: what it is called, what it does with bytes, and how much memory it may take for
/// them: a fixed part, and so many bytes for each byte of input.
struct Target {
    name: &'static str,
    assess: fn(&[u8]),
    bound: (usize, usize),
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A decoder of serde's takes at most one MiB for a claimed length before it sees the content, once
/// for each level on which there are lists.
const CLAIMED: usize = 4 * MIB;

/// What is said of a file: so many lines at most, each of them there as a whole and in its parts.
const TOLD: usize = 4 * MAX_PROBLEMS * yaml::MAX_LINE;

const TARGETS: [Target; 13] = [
    // A claimed length is honoured up to the longest frame, here and in a stream; there three times: read,
    // written, reference.
    Target { name: "frame", assess: frames::whole, bound: (4 * MIB, 4) },
    Target { name: "greeting", assess: frames::hello, bound: (4 * KIB, 4) },
    Target { name: "stream", assess: frames::stream, bound: (4 * MIB, 16) },
    Target { name: "request", assess: messages::request, bound: (CLAIMED, 64) },
    Target { name: "response", assess: messages::response, bound: (CLAIMED, 64) },
    Target { name: "commands", assess: commands::run, bound: (CLAIMED, 64) },
    Target { name: "conf", assess: yaml::conf, bound: (256 * KIB + TOLD, 1000) },
    Target { name: "list", assess: yaml::list, bound: (256 * KIB + TOLD, 1000) },
    Target { name: "state", assess: state::content, bound: (CLAIMED, 64) },
    Target { name: "subject", assess: subjects::compare, bound: (64 * KIB, 200) },
    Target { name: "verb", assess: verbs::parse, bound: (4 * KIB, 64) },
    Target { name: "hello", assess: hello::name, bound: (KIB, 4) },
    Target { name: "session", assess: sessions::take, bound: (8 * KIB, 4) },
];

fn target() -> &'static Target {
    static CHOSEN: OnceLock<&Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        if let Some(dir) = std::env::var_os("STEK_FUZZ_SEEDS") {
            seeds::write(dir.as_ref());
            std::process::exit(0);
        }
        let name = std::env::var("STEK_FUZZ_TARGET").unwrap_or_default();
        let known: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        TARGETS.iter().find(|t| t.name == name).unwrap_or_else(|| {
            panic!("STEK_FUZZ_TARGET is {name:?}, which is none of {}", known.join(", "))
        })
    })
}

fn assess(bytes: &[u8]) {
    let Target { assess, bound: (fixed, each), .. } = target();
    memory::bounded(fixed + each * bytes.len(), || assess(bytes));
}

fuzz_target!(init: { target(); }, |bytes: &[u8]| assess(bytes));
