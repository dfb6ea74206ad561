//! Lines for the operator: levels, and the rule that a storm of the same line stays one line.
//!
//! Where a line ends up (diags.log, traffic.out, a terminal) is for the implementer of
//! [`LogSink`] to say. Invariants: no line carries key bytes; only fingerprints.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How loud a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the debug tag `stek_share` only.
    Debug,
    /// Worth a line in the log: leadership, a key change, a peer up or down.
    Note,
    /// Something an operator should look at; service goes on.
    Warning,
    /// Something here does not work until an operator acts; Traffic Server goes on.
    Error,
}

/// Takes lines for the operator. Must not block for long and must not panic.
pub trait LogSink: Send + Sync {
    /// Writes one line, without a newline and without the plugin's prefix.
    fn write(&self, level: Level, line: &str);
}

/// A cheap handle to a [`LogSink`], shared by all parts of one server.
#[derive(Clone)]
pub struct Log {
    log_sink: Arc<dyn LogSink>,
    seen: Arc<Mutex<HashMap<String, Seen>>>,
}

struct Seen {
    since: Instant,
    quiet: Duration,
    suppressed: u64,
}

/// How long the same subject stays silent after [`Log::limited`] wrote a line about it.
pub const QUIET: Duration = Duration::from_secs(30);

/// Subjects that [`Log::limited`] keeps in mind: a few for each of the most members that a list
/// may have. Beyond this the quiet ones are forgotten.
const MAX_SUBJECTS: usize = 4096;

impl Log {
    /// A handle that writes to `log_sink`.
    pub fn new(log_sink: Arc<dyn LogSink>) -> Log {
        Log { log_sink, seen: Arc::default() }
    }

    /// Writes a line for the debug tag.
    pub fn debug(&self, line: impl AsRef<str>) {
        self.log_sink.write(Level::Debug, line.as_ref());
    }

    /// Writes a note.
    pub fn note(&self, line: impl AsRef<str>) {
        self.log_sink.write(Level::Note, line.as_ref());
    }

    /// Writes a warning.
    pub fn warning(&self, line: impl AsRef<str>) {
        self.log_sink.write(Level::Warning, line.as_ref());
    }

    /// Writes an error.
    pub fn error(&self, line: impl AsRef<str>) {
        self.log_sink.write(Level::Error, line.as_ref());
    }

    /// Writes a line about `subject` unless one about the same subject was written less than
    /// [`QUIET`] ago; the next line that passes tells how many were held back.
    pub fn limited(&self, level: Level, subject: &str, line: impl AsRef<str>) {
        self.limited_to(QUIET, level, subject, line);
    }

    /// The same with another time of silence, always the same one for a subject.
    pub fn limited_to(&self, quiet: Duration, level: Level, subject: &str, line: impl AsRef<str>) {
        let now = Instant::now();
        let held_back = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            match seen.get_mut(subject) {
                Some(s) if now.duration_since(s.since) < s.quiet => {
                    s.suppressed += 1;
                    return;
                }
                Some(s) => {
                    s.since = now;
                    std::mem::take(&mut s.suppressed)
                }
                None => {
                    if seen.len() >= MAX_SUBJECTS {
                        seen.retain(|_, s| now.duration_since(s.since) < s.quiet);
                    }
                    if seen.len() < MAX_SUBJECTS {
                        seen.insert(subject.to_owned(), Seen { since: now, quiet, suppressed: 0 });
                    }
                    0
                }
            }
        };
        match held_back {
            0 => self.log_sink.write(level, line.as_ref()),
            n => self
                .log_sink
                .write(level, &format!("{} ({n} more like this in the meantime)", line.as_ref())),
        }
    }
}
