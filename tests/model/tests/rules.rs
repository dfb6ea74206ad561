//! Core's rules of agreement through all orders of events, within bounds; and each of them taken out.

use model::cases::{cases, missing, states, Case};
use model::explore::explore;

fn has_no_fault(at: usize) {
    let Case { name, states: most, .. } = &cases()[at];
    let outcome = cases()[at].run(states(*most));
    println!("{name}: {}", outcome.line());
    assert_eq!(outcome.fault, None, "{name}");
    // All of them, or as many as it was given: a model in which nothing happens has no fault either.
    assert!(outcome.exhausted || outcome.states >= *most, "{name}: {}", outcome.line());
}

/// The tests run side by side.
macro_rules! cases {
    ($($test:ident $at:literal)*) => { $( #[test] fn $test() { has_no_fault($at); } )* };
}

cases! {
    a_restart_a_founding_and_a_replacement 0
    two_foundings_with_files 1
    two_foundings_without_clocks 2
    a_cold_start 3
    lists_change_during_a_founding 4
    lists_change_while_keys_are_made 5
    a_revocation 6
    five_servers 7
    a_server_that_hears_nobody_brings_nobody_down 8
}

#[test]
fn all_cases_are_tests() {
    assert_eq!(cases().len(), 9);
}

#[test]
fn each_rule_that_is_taken_out_is_missed() {
    let mut wrong = Vec::new();
    for missing in missing() {
        let outcome = explore(&missing.scope, missing.limits);
        println!("without {:?}: {}", missing.out, outcome.line());
        let is_right = match (&outcome.fault, missing.fault) {
            (Some((found, _)), Some(expected)) => found.starts_with(expected),
            (None, None) => true,
            _ => false,
        };
        if !is_right {
            wrong.push((missing.out, outcome.fault));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
