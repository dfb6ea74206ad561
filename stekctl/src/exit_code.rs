//! How a command ended, as an exit code.

use std::process::ExitCode;

/// How things are. The order is that of badness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// All is well, or the command did what it was asked for.
    Healthy,
    /// It works, but something needs attention.
    Degraded,
    /// It does not work.
    Broken,
}

impl Outcome {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Healthy => "healthy",
            Outcome::Degraded => "degraded",
            Outcome::Broken => "broken",
        }
    }

    /// Its exit code; [`FAILED`] is that of a command that could not do its work.
    pub fn code(self) -> u8 {
        match self {
            Outcome::Healthy => 0,
            Outcome::Degraded => 1,
            Outcome::Broken => 2,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> ExitCode {
        ExitCode::from(outcome.code())
    }
}

/// The exit code of a command that could not do its work.
pub const FAILED: u8 = 3;

/// Why a command could not do its work: lines for the operator.
#[derive(Debug)]
pub struct Failure(pub Vec<String>);

impl Failure {
    /// One line.
    pub fn new(line: impl Into<String>) -> Failure {
        Failure(vec![line.into()])
    }
}

/// What a command comes to.
pub type Ended = Result<Outcome, Failure>;
