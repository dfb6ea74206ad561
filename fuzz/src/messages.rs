//! What servers say to each other.

use std::collections::BTreeSet;

use stek_share::core::agreed::{Agreed, Command};
use stek_share::core::config::MAX_MEMBERS;
use stek_share::core::key_ring::{MAX_GENERATION, MAX_KEYS};
use stek_share::core::moment::Moment;
use stek_share::core::server_list::MAX_VERSION;
use stek_share::core::sessions::{MAX_PER_MESSAGE, MAX_SESSION};
use stek_share::rpc::{
    decode_request, decode_response, encode, Malformed, Request, Response, WireAppend, WireEntry,
    WireMembership, WirePayload, WireSnapshot, MAX_ORIGIN,
};
use stek_share::transport::frame::MAX_BODY;

/// No sound message counts beyond this.
const MAX_COUNT: u64 = 1 << 62;

/// A request. What is let through is within bounds, holds no key that the gate refuses, survives
/// the way through openraft's types, and is the same when it is encoded and decoded again. No
/// beginning of it is a message too.
pub fn request(bytes: &[u8]) {
    let request = match decode_request(bytes) {
        Ok(request) => request,
        Err(error) => return told(&error),
    };
    let again = encode(&request).expect("what was decoded can be encoded");
    let twice = decode_request(&again).expect("what was encoded can be decoded");
    assert_eq!(*encode(&twice).expect("as before"), *again, "not the same after a round trip");
    if let Some((_, shorter)) = bytes.split_last() {
        assert!(decode_request(shorter).is_err(), "its beginning is a message too");
    }
    match request {
        Request::Append(append) => hold_append(append),
        Request::Snapshot(snapshot) => hold_snapshot(snapshot),
        Request::Vote(vote) => {
            assert!(vote.candidate.term <= MAX_COUNT);
            assert_eq!(vote.into_raft().vote.leader_id.term, vote.candidate.term);
        }
        Request::ChangeMembership { members, .. } => assert!(members.len() <= MAX_MEMBERS),
        Request::AdminCommand { origin, .. } => assert!(origin.len() <= MAX_ORIGIN),
        Request::Sessions(sessions) => {
            assert!(sessions.events.len() <= MAX_PER_MESSAGE);
            assert!(sessions.events.iter().all(|event| event.size() <= MAX_SESSION));
        }
        _ => {}
    }
}

/// An answer; the same.
pub fn response(bytes: &[u8]) {
    let response = match decode_response(bytes) {
        Ok(response) => response,
        Err(error) => return told(&error),
    };
    let again = encode(&response).expect("what was decoded can be encoded");
    let twice = decode_response(&again).expect("what was encoded can be decoded");
    assert_eq!(*encode(&twice).expect("as before"), *again, "not the same after a round trip");
    match twice {
        Response::Append(answer) => drop(answer.into_raft()),
        Response::ServerStatus(status) => status.check().expect("an odd report"),
        _ => {}
    }
}

/// Why a message is refused stands in the log.
fn told(error: &Malformed) {
    let line = error.to_string();
    assert!(!line.contains(|c: char| c.is_control()) && line.len() < 500, "{line:?}");
}

fn hold_append(append: WireAppend) {
    let before = encode(&append).expect("as before");
    let (age, quorum) = (append.age, append.quorum);
    assert!(append.vote.0.term <= MAX_COUNT);
    let first = append.previous.map_or(0, |end| end.index + 1);
    for (index, entry) in (first..).zip(&append.entries) {
        assert_eq!(entry.id.index, index, "a gap");
        if let WirePayload::Membership(membership) = &entry.payload {
            hold_membership(membership);
        }
    }
    apply(append.entries.iter());
    let to = append.to;
    let again = WireAppend::from_raft(to, append.into_raft(), age, quorum);
    let after = encode(&again).expect("as before");
    // openraft adds the voters to the members, which is no loss; nothing else may change.
    let has_membership =
        again.entries.iter().any(|e| matches!(e.payload, WirePayload::Membership(_)));
    assert!(has_membership || *after == *before, "lost on the way through openraft");
}

/// The commands of a message, applied to an empty state, leave one that is sound.
fn apply<'a>(entries: impl Iterator<Item = &'a WireEntry>) {
    let mut agreed = Agreed::default();
    for entry in entries {
        if let WirePayload::Command(command) = &entry.payload {
            let command: Command = command.clone();
            let _ = agreed.apply(command);
            agreed.check().expect("commands made an impossible state");
        }
    }
}

fn hold_membership(membership: &WireMembership) {
    assert!((1..=2).contains(&membership.configs.len()));
    assert!(membership.members.len() <= 2 * MAX_MEMBERS);
    assert!(membership.configs.iter().all(|c| (1..=MAX_MEMBERS).contains(&c.len())));
}

fn hold_snapshot(snapshot: WireSnapshot) {
    hold_membership(&snapshot.membership);
    hold_agreed(&snapshot.agreed);
    let now = Moment::from_start(std::time::Duration::from_secs(1 << 30));
    let to = snapshot.to;
    let (vote, raft) = snapshot.into_raft(now);
    assert!(vote.leader_id.term <= MAX_COUNT);
    let again = WireSnapshot::from_raft(to, vote, raft, now);
    hold_agreed(&again.agreed);
}

/// No weak key, no name and no generation twice, the newest first and without a gap; all counts
/// have a next one, and the whole can be sent on.
pub fn hold_agreed(agreed: &Agreed) {
    let ring = &agreed.ring;
    assert!(ring.all().all(|held| held.stek.check().is_ok()), "a weak key got in");
    let names: BTreeSet<&[u8]> = ring.all().map(|held| held.stek.name()).collect();
    let generations: Vec<u64> = ring.all().map(|held| held.generation.0).collect();
    assert_eq!(names.len(), generations.len(), "a name is there twice");
    assert!(generations.windows(2).all(|pair| pair[0] == pair[1] + 1), "out of order, or a gap");
    assert!(ring.newest() <= MAX_GENERATION, "nothing is left to count on with");
    assert!(generations.last().copied().unwrap_or_default() >= ring.revoked().0, "a revoked key");
    let list = agreed.server_list.as_ref().map_or(0, |list| list.version);
    assert!(list <= MAX_VERSION, "no list can follow");
    assert!(generations.len() <= MAX_KEYS + 1, "{} keys", generations.len());
    let size = encode(agreed).expect("as before").len();
    assert!(size < MAX_BODY, "{size} bytes cannot be sent");
    assert!(
        ring.cluster_id().is_some() || generations.is_empty(),
        "keys of no cluster incarnation"
    );
}
