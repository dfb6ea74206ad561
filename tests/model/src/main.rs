//! Looks at all cases, each of them as far as time permits: `make prove-model MINUTES=30`.
//!
//! Prints a line for each; ends with 1 if one of them has a fault.

use std::process::ExitCode;
use std::time::Duration;

use model::cases::cases;
use model::explore::{Limits, Outcome};

/// Some 10 GB of memory, if all of them wait to be left.
const STATES: usize = 40_000_000;

fn tell(name: &str, outcome: &Outcome) -> bool {
    println!("{name}: {}", outcome.line());
    let Some((_, steps)) = &outcome.fault else { return true };
    steps.iter().for_each(|step| println!("    {step}"));
    false
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let minutes: f64 = words.first().and_then(|word| word.parse().ok()).unwrap_or(30.0);
    let all = cases();
    let each = Duration::from_secs_f64(minutes * 60.0 / all.len() as f64);
    let limits = Limits { directed: false, states: STATES, time: each, dead_ends: 0 };
    let mut is_well = true;
    for case in &all {
        is_well &= tell(case.name, &case.run(limits));
    }
    ExitCode::from(u8::from(!is_well))
}
