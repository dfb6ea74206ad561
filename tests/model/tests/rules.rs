//! Core's rules of agreement through all orders of events, within bounds; and each of them taken out.

use std::collections::BTreeSet;

use model::cases::{cases, missing, states, Case};
use model::explore::{explore, System};
use model::fleet::{Message, Role, Scope, State};
use model::steps::Act;

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
    two_leaders_of_one_term 8
    a_server_that_hears_nobody_brings_nobody_down 9
}

#[test]
fn all_cases_are_tests() {
    assert_eq!(cases().len(), 10);
}

/// A fleet in which states of one kind are looked for.
struct Reaching {
    scope: Scope,
    is: fn(&State) -> bool,
}

impl System for Reaching {
    type State = State;
    type Step = Act;

    fn start(&self) -> State {
        self.scope.start()
    }

    fn next(&self, state: &State) -> Vec<(Act, State)> {
        self.scope.next(state)
    }

    fn fault(&self, state: &State) -> Option<String> {
        (self.is)(state).then(|| "reached".to_owned())
    }

    fn fingerprint(&self, state: &State) -> u64 {
        state.fingerprint()
    }

    fn promise(&self, state: &State, depth: u32) -> i64 {
        self.scope.promise(state, depth)
    }
}

/// Whether something comes twice in one cluster and one term.
fn twice<T: Ord>(all: impl Iterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    !all.into_iter().all(|one| seen.insert(one))
}

/// openraft's votes, which are ordered, and not those of the Raft paper: what follows from them has to
/// be among what is found to be without a fault.
#[test]
fn a_node_votes_twice_in_one_term_and_the_term_has_two_leaders() {
    let two_votes = |state: &State| {
        twice(state.sent.iter().filter_map(|sent| match &sent.value {
            Message::Vote(cluster, candidate, from) => Some((*cluster, candidate.term, *from)),
            _ => None,
        }))
    };
    let two_leaders = |state: &State| {
        let servers = state.servers.iter().map(|part| &part.value);
        let leaders = servers.filter(|server| server.role == Role::Leader);
        twice(leaders.map(|leader| (leader.member.cluster, leader.vote.term)))
    };
    type Kind = fn(&State) -> bool;
    let kinds: [(&str, Kind); 2] = [("a second vote", two_votes), ("a second leader", two_leaders)];
    let Case { name, scope, states: most, .. } = &cases()[8];
    assert!(name.starts_with("two leaders of one term"), "{name}");
    for (kind, is) in kinds {
        let outcome = explore(&Reaching { scope: scope.clone(), is }, states(*most));
        println!("{kind}: {}", outcome.line());
        assert!(outcome.fault.is_some(), "{kind} in one term is never reached");
    }
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
