//! Commands of the log, in any number and order.

use std::collections::BTreeMap;

use stek_share::core::agreed::{Agreed, Change, Command};
use stek_share::core::key_ring::{Change as KeyChange, Command as KeyCommand};

use crate::messages::hold_agreed;

/// However many commands come, one after another: the state is sound after each, a generation has
/// one key for ever, generations only grow, a refused command changed nothing, and a server that
/// applies the same comes to the same.
pub fn run(mut bytes: &[u8]) {
    let (mut one, mut other) = (Agreed::default(), Agreed::default());
    let mut keys: BTreeMap<u64, [u8; 48]> = BTreeMap::new();
    while let Ok((command, rest)) = postcard::take_from_bytes::<Command>(bytes) {
        bytes = rest;
        let newest = one.ring.newest();
        let before = postcard::to_allocvec(&one).expect("it can be encoded");
        let outcome = one.apply(command.clone());
        assert_eq!(outcome, other.apply(command.clone()), "two servers differ");
        let after = postcard::to_allocvec(&one).expect("it can be encoded");
        assert_eq!(after, postcard::to_allocvec(&other).expect("it can be encoded"));
        match outcome {
            Err(_) | Ok(Change::Key(KeyChange::Nothing) | Change::Founded(false)) => {
                assert_eq!(before, after, "a command that did nothing changed something");
            }
            Ok(_) => {}
        }
        let founded =
            matches!(outcome, Ok(Change::Key(KeyChange::Founded) | Change::Founded(true)));
        if let (
            Ok(Change::Key(KeyChange::Staged(generation))),
            Command::Key(KeyCommand::Stage { held, .. }),
        ) = (outcome, &command)
        {
            assert!(held.stek.check().is_ok(), "a weak key got in");
            assert!(keys.insert(generation.0, *held.stek.expose()).is_none(), "a second key");
        }
        if founded {
            // A cluster may go on from the keys of an earlier one; that is where its keys begin.
            assert!(keys.is_empty(), "a cluster incarnation began over keys");
            keys.extend(one.ring.all().map(|held| (held.generation.0, *held.stek.expose())));
        }
        assert!(one.ring.newest() >= newest, "generations went back");
        one.check().expect("commands made an impossible state");
        hold_agreed(&one);
        for held in one.ring.all() {
            assert_eq!(keys.get(&held.generation.0), Some(held.stek.expose()), "another key");
        }
    }
}
