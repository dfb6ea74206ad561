//! What is looked at: fleets with all rules, and fleets with one of them taken out.
//!
//! Invariants: a case says how many states it takes to be seen, not how long, so that a slow machine
//! sees the same.

use std::time::Duration;

use crate::explore::{explore, Limits, Outcome};
use crate::fleet::{Budget, Out, Scope, Set, Whole};

/// No budget, three servers, everybody may do everything.
pub fn scope() -> Scope {
    Scope {
        servers: 3,
        cold: false,
        files: false,
        clock: false,
        budget: Budget::default(),
        founders: Set::MAX,
        restarters: Set::MAX,
        candidates: Set::MAX,
        list: 0,
        whole: None,
        out: None,
    }
}

/// So many states at most, breadth first.
pub fn states(states: usize) -> Limits {
    Limits { directed: false, states, time: Duration::MAX, dead_ends: 0 }
}

/// A fleet with all rules.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is.
    pub name: &'static str,
    /// The fleet.
    pub scope: Scope,
    /// States that the tests of every change look at.
    pub states: usize,
    /// Each how many states one is looked at for whether all come together again.
    pub dead_ends: usize,
}

/// Restarts, foundings, keys, campaigns and replacements.
fn budget(restarts: u8, prepares: u8, keys: u8, stands: u8, replacements: u8) -> Budget {
    Budget { restarts, prepares, keys, stands, replacements, ..Budget::default() }
}

/// All fleets with all rules.
pub fn cases() -> Vec<Case> {
    let case = |name, states, dead_ends, scope| Case { name, scope, states, dead_ends };
    let lists = Budget { lists: 2, ..budget(1, 1, 0, 1, 0) };
    let revokes = Budget { revokes: 1, ..budget(1, 1, 0, 1, 1) };
    vec![
        case(
            "a restart, a founding and a replacement",
            1_200_000,
            1000,
            Scope { budget: budget(1, 1, 1, 1, 1), ..scope() },
        ),
        case(
            "a restart, two foundings and a replacement, with files",
            400_000,
            1000,
            Scope { budget: budget(1, 2, 1, 1, 1), files: true, clock: true, ..scope() },
        ),
        case(
            "a restart and two foundings, clocks that say nothing",
            400_000,
            1000,
            Scope { budget: budget(1, 2, 1, 1, 0), founders: 5, restarters: 2, ..scope() },
        ),
        case(
            "a cold start with two founders and a restart",
            200_000,
            1000,
            Scope { budget: budget(1, 2, 1, 1, 0), cold: true, ..scope() },
        ),
        case(
            "two changes of the list during a founding",
            200_000,
            50,
            Scope { budget: lists, list: 1, restarters: 2, founders: 4, candidates: 4, ..scope() },
        ),
        case(
            "two changes of the list with keys and a restart",
            300_000,
            200,
            Scope { budget: Budget { stands: 0, keys: 1, ..lists }, list: 1, ..scope() },
        ),
        case(
            "a revocation, with files",
            300_000,
            1000,
            Scope { budget: revokes, files: true, founders: 2, candidates: 2, ..scope() },
        ),
        case(
            "five servers, a restart and a founding",
            200_000,
            0,
            Scope {
                servers: 5,
                budget: budget(1, 1, 1, 1, 1),
                founders: 2,
                restarters: 4,
                candidates: 2,
                ..scope()
            },
        ),
        case(
            "two leaders of one term, a restart, a founding and a replacement",
            1_000_000,
            1000,
            Scope {
                budget: budget(1, 1, 1, 2, 1),
                founders: 1,
                restarters: 1,
                candidates: 6,
                ..scope()
            },
        ),
        case(
            "a group that one server does not hear",
            1000,
            0,
            Scope {
                budget: budget(0, 2, 0, 0, 0),
                whole: Some(Whole { up: Set::MAX, deaf: 4 }),
                ..scope()
            },
        ),
    ]
}

impl Case {
    /// Looks at it.
    pub fn run(&self, limits: Limits) -> Outcome {
        explore(&self.scope, Limits { dead_ends: self.dead_ends, ..limits })
    }
}

/// A rule that is taken out, the fleet that shows it, and what is seen.
#[derive(Clone, Debug)]
pub struct Missing {
    /// The rule.
    pub out: Out,
    /// The fleet.
    pub scope: Scope,
    /// How it is searched.
    pub limits: Limits,
    /// The beginning of the fault, or none where all is well without the rule too.
    pub fault: Option<&'static str>,
}

const LOST: Option<&str> = Some("key 1 is lost");
const TWO: Option<&str> = Some("two keys of one generation");
const ABLE: Option<&str> = Some("two groups are able");
const APART: Option<&str> = Some("servers ");

/// Each rule taken out.
pub fn missing() -> Vec<Missing> {
    let missing = |out, fault, limits, scope: Scope| Missing {
        out,
        fault,
        limits,
        scope: Scope { out: Some(out), ..scope },
    };
    let of = |budget: Budget| Scope { budget, ..scope() };
    let wide = states(1_500_000);
    let deep = Limits { directed: true, ..wide };
    let all = |n| Limits { dead_ends: n, ..states(5000) };
    let lists = |lists, restarts| Budget { lists, ..budget(restarts, 1, 0, 0, 0) };
    let shrinks = |b| Scope { list: 1, restarters: 2, founders: 4, candidates: 4, ..of(b) };
    let one =
        |founders, restarters, candidates, b| Scope { founders, restarters, candidates, ..of(b) };
    let revokes = |restarts, prepares, stands, replacements| Scope {
        files: true,
        ..of(Budget { revokes: 1, ..budget(restarts, prepares, 0, stands, replacements) })
    };
    let deaf = Some(Whole { up: Set::MAX, deaf: 4 });
    vec![
        missing(Out::Sender, TWO, wide, of(budget(1, 0, 2, 1, 0))),
        missing(Out::Addressee, None, states(300_000), of(budget(1, 1, 1, 1, 1))),
        missing(
            Out::HearsLeader,
            Some("a group was brought down that served"),
            wide,
            Scope { whole: deaf, ..of(budget(0, 2, 0, 0, 0)) },
        ),
        missing(Out::StopFirst, LOST, wide, of(budget(0, 1, 1, 1, 0))),
        missing(Out::Promise, LOST, deep, of(budget(1, 1, 1, 1, 1))),
        missing(Out::FounderPromise, LOST, deep, of(budget(1, 1, 1, 1, 1))),
        missing(Out::WholeLog, LOST, wide, of(budget(0, 1, 1, 1, 0))),
        missing(Out::FileFirst, LOST, deep, Scope { files: true, ..of(budget(2, 1, 1, 1, 0)) }),
        missing(Out::EmptyRanksLow, LOST, wide, one(5, 2, 1, budget(1, 2, 1, 1, 0))),
        missing(Out::RecordRanks, LOST, deep, of(budget(0, 2, 1, 2, 0))),
        missing(Out::OwnEpoch, LOST, wide, one(5, 1, 1, budget(1, 2, 1, 1, 0))),
        missing(Out::FoundOnce, LOST, wide, one(2, 1, 2, budget(1, 1, 1, 1, 0))),
        missing(Out::ThosePromised, LOST, deep, of(budget(1, 1, 1, 1, 0))),
        missing(Out::LeftOver, APART, all(1), of(budget(0, 1, 0, 0, 0))),
        missing(
            Out::MergeAtFounding,
            Some("a revoked key came back at a founding"),
            wide,
            revokes(1, 1, 0, 0),
        ),
        missing(Out::MergeAtJoin, Some("a voter knows of a revocation"), deep, revokes(1, 0, 1, 1)),
        missing(Out::NewestList, ABLE, wide, shrinks(lists(2, 0))),
        missing(Out::OneAtATime, ABLE, wide, shrinks(lists(1, 1))),
        missing(
            Out::TwoGroups,
            APART,
            Limits { dead_ends: 200, ..wide },
            shrinks(Budget { stands: 1, ..lists(2, 1) }),
        ),
        missing(Out::OneLife, ABLE, wide, of(Budget { seconds: 1, ..budget(0, 1, 0, 0, 0) })),
        missing(
            Out::FreshMajority,
            Some("a key is used that another group does not know"),
            deep,
            of(budget(0, 1, 1, 1, 0)),
        ),
        missing(Out::WordOfMajority, APART, all(1), of(budget(2, 0, 0, 0, 0))),
        missing(Out::Settled, TWO, deep, of(budget(1, 0, 2, 1, 2))),
        missing(
            Out::Learner,
            Some("a server is made a voter that has no log"),
            wide,
            of(budget(1, 0, 0, 0, 1)),
        ),
    ]
}
