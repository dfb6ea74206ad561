//! One server without Traffic Server: the node of the plugin with real files, sockets and TLS in a
//! process of its own, and a host that takes every key and notes when.
//!
//!     standalone_node server_conf.yaml
//!
//! What happens goes to stdout, a line each, which begins with the nanoseconds of the machine's
//! monotonic clock:
//!
//! | line | when |
//! |---|---|
//! | `up` | the process has begun |
//! | `installed AGREED NEWEST CURRENT KEY` | a set of keys is installed: 1 or 0, generations, fingerprint |
//! | `group LEADER TERM` | Raft has another leader or term here; leader 0 is none |
//! | `counted ACCEPTED REFUSED` | asked by `count` on stdin: connections since the start |
//! | `ordered RESULT` | what came of `rotate` on stdin |
//!
//! It ends when stdin does, without a word to the others.

use std::env;
use std::io::{self, BufRead, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use stek_share::core::rotation::AdminCommand;
use stek_share::load::{load, Dirs, Loaded};
use stek_share::log_sink::{Level, Log, LogSink};
use stek_share::node::environment::Environment;
use stek_share::node::{new_key, Deps, Node};
use stek_share::transport::Versions;
use testkit::sys;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The stack of the thread that reads stdin: there may be hundreds of these processes.
const STACK: usize = 64 << 10;

/// Lines that wait to be obeyed.
const QUEUE: usize = 16;

/// As often as the plugin looks at what its metrics show.
const LOOK: Duration = Duration::from_secs(5);

/// Loud lines go to stderr, with `STANDALONE_DEBUG` in the environment all of them.
struct Stderr;

impl LogSink for Stderr {
    fn write(&self, level: Level, line: &str) {
        if level >= Level::Warning || env::var_os("STANDALONE_DEBUG").is_some() {
            eprintln!("{} {line}", sys::monotonic().as_millis());
        }
    }
}

/// One line, at once. Nobody to tell means nobody cares any more.
fn say(words: &str) {
    let line = format!("{} {words}\n", sys::monotonic().as_nanos());
    let mut out = io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// Lines of stdin, until it ends.
fn stdin_lines() -> io::Result<mpsc::Receiver<String>> {
    let (lines, queue) = mpsc::channel(QUEUE);
    thread::Builder::new().stack_size(STACK).spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(queue)
}

async fn install(node: Arc<Node>) {
    let mut sets = node.key_sets();
    loop {
        let set = sets.borrow_and_update().clone();
        node.installed(&set);
        let key = set.keys.first().map(|key| key.fingerprint().to_string()).unwrap_or_default();
        let agreed = u8::from(set.agreed);
        say(&format!("installed {agreed} {} {} {key}", set.newest, set.current));
        if sets.changed().await.is_err() {
            return;
        }
    }
}

/// As the plugin keeps its metrics: the whole status at each move and every now and then.
async fn tell_group(node: Arc<Node>) {
    let mut told = String::new();
    loop {
        let group = node.status().group;
        let words = format!("group {} {}", group.leader.map_or(0, |id| id.0), group.term);
        if words != told {
            say(&words);
            told = words;
        }
        // Whether it moved or the time is over makes no difference.
        let _ = timeout(LOOK, node.moved()).await;
    }
}

async fn obey(node: Arc<Node>, mut lines: mpsc::Receiver<String>) {
    while let Some(line) = lines.recv().await {
        match line.as_str() {
            "count" => {
                let status = node.status();
                let refused: u64 = status.refused_peers.iter().map(|(_, count)| count).sum();
                say(&format!("counted {} {refused}", status.accepted));
            }
            "rotate" => match node.admin_command(AdminCommand::Rotate).await {
                Ok(generation) => say(&format!("ordered {generation}")),
                Err(refusal) => say(&format!("ordered not: {refusal}")),
            },
            other => eprintln!("nothing is known of {other}"),
        }
    }
}

async fn live(loaded: Loaded, lines: mpsc::Receiver<String>) -> Result<(), String> {
    let deps = Deps {
        log: Log::new(Arc::new(Stderr)),
        tls: loaded.tls,
        initial: new_key().map_err(|e| e.to_string())?,
        versions: Versions::OURS,
        outside: Environment::default(),
    };
    let node = Node::start(loaded.settings, deps).await.map_err(|e| e.to_string())?;
    let node = Arc::new(node);
    tokio::spawn(install(node.clone()));
    tokio::spawn(tell_group(node.clone()));
    obey(node, lines).await;
    Ok(())
}

fn run(conf: &str) -> Result<(), String> {
    say("up");
    let here = env::current_dir().map_err(|e| e.to_string())?;
    let dirs = Dirs { working: here.clone(), install: here.clone(), config: here };
    let loaded = load(conf, &dirs)
        .map_err(|refused| format!("{}: {:?}", Path::new(conf).display(), refused.problems))?;
    let lines = stdin_lines().map_err(|e| e.to_string())?;
    // As the plugin's own, but that it computes its handshakes itself.
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(live(loaded, lines))
}

fn main() -> ExitCode {
    let Some(conf) = env::args().nth(1) else {
        eprintln!("usage: standalone_node server_conf.yaml");
        return ExitCode::from(2);
    };
    match run(&conf) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
