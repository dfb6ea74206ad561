//! The fleet that gets messages, and how to look at it.

use std::fs;
use std::time::Duration;

use testkit::ats::Ats;
pub use testkit::fleet::built_plugin as plugin;
use testkit::turns::{Turn, Turns};
use testkit::{wait, Context, Error, Result};

/// Until something has happened that takes a few seconds at most on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Tests that have servers at the same time. Most wait for the next look of a plugin at its files; more
/// of them would only measure each other.
static TURNS: Turns = Turns::of(6);

/// A turn for one test.
pub fn turn() -> Turn {
    TURNS.take(1)
}

/// Sends a message, and waits for a line of diags.log that is new since and has `answer` in it.
pub fn send(ats: &Ats, verb: &str, answer: &str) -> Result<String> {
    let before = ats.diags().len();
    ats.ctl(&["plugin", "msg", "stek_share", verb])?;
    wait_line(ats, before, answer)
}

/// Waits for a line with `part` behind the first `from` bytes of diags.log.
pub fn wait_line(ats: &Ats, from: usize, part: &str) -> Result<String> {
    let look = || {
        let diags = ats.diags();
        let news = diags.get(from..).unwrap_or_default();
        Ok(news.lines().find(|line| line.contains(part)).map(str::to_owned))
    };
    wait::until(PATIENCE, &format!("{part:?} in diags.log"), look)
        .map_err(|error| Error::new(format!("{error}\n{}", ats.diags())))
}

/// Waits until the server uses a generation above this one, by its log; answers with it.
pub fn wait_generation_above(ats: &Ats, generation: u64) -> Result<u64> {
    wait::until(PATIENCE, &format!("a generation above {generation}"), || {
        Ok(self::generation(ats).filter(|now| *now > generation))
    })
}

/// The generation that the server uses, by its log.
pub fn generation(ats: &Ats) -> Option<u64> {
    let diags = ats.diags();
    let line = diags.lines().rev().find(|line| line.contains("] installed "))?;
    let number = line.split_once("(generation ")?.1;
    number.split_once(')')?.0.parse().ok()
}

/// Rewrites one of a server's files.
pub fn rewrite(ats: &Ats, name: &str, change: impl Fn(&str) -> String) -> Result<()> {
    let path = ats.etc().join(name);
    let text = fs::read_to_string(&path).context(path.display())?;
    let new = change(&text);
    assert_ne!(new, text, "the test means to change {name}");
    fs::write(&path, new).context(path.display())
}
