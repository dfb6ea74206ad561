//! A member that calls itself the leader and sends a state which no commands could have made. It
//! is gone afterwards; nothing of what it sent may stay that keeps the others from electing one of
//! themselves, from rotating, or from taking a server back that was started anew.

use std::collections::BTreeSet;

use serde::Serialize;
use stek_share::core::agreed::Agreed;
use stek_share::core::config::Member;
use stek_share::core::key_ring::{ClusterId, Generation, RingKey, Staged, MAX_GENERATION};
use stek_share::core::log_id::LogId;
use stek_share::core::node_id::NodeId;
use stek_share::core::sanity_bounds::MAX_GENERATION_LEAP;
use stek_share::core::server_id::ServerId;
use stek_share::core::server_list::ServerList;
use stek_share::core::stek::Fingerprint;
use stek_share::node::new_key;
use stek_share::rpc::{
    encode, ErrorResponse, Request, Response, WireEntry, WireMembership, WirePayload, WireSnapshot,
};

use crate::fleet::Fleet;
use crate::insider::{cluster_id, heartbeat, leader_id, life, snapshot, Insider};
use crate::{leader_term, rotate, three_of_four, ENEMY, REAL};

/// What an agreed state is as bytes, with everything open.
#[derive(Serialize)]
struct Forged {
    cluster_id: Option<ClusterId>,
    staged: Option<Staged>,
    keys: Vec<RingKey>,
    retired: Vec<Fingerprint>,
    revoked: Generation,
    revoked_keys: Vec<Fingerprint>,
    list: Option<ServerList>,
    past: Vec<([u8; 32], BTreeSet<ServerId>)>,
    leaving: Vec<Member>,
    from_file: u64,
    founders: Vec<BTreeSet<ServerId>>,
}

impl Forged {
    /// One that is sound but for its one key's generation.
    fn at(fleet: &Fleet, generation: u64) -> Forged {
        Forged {
            cluster_id: ClusterId::from_bytes(cluster_id(fleet)),
            staged: None,
            keys: vec![RingKey { generation: Generation(generation), stek: new_key().unwrap() }],
            retired: Vec::new(),
            revoked: Generation(0),
            revoked_keys: Vec::new(),
            list: Some(ServerList::new(1, &fleet.members).unwrap()),
            past: Vec::new(),
            leaving: Vec::new(),
            from_file: 0,
            founders: Vec::new(),
        }
    }

    fn agreed(&self) -> Agreed {
        postcard::from_bytes(&encode(self).unwrap()).unwrap()
    }
}

/// Sends a snapshot of the next term to every real server, and has none of them take it.
fn refuse_all(fleet: &mut Fleet, forge: impl Fn(&Fleet, u64) -> WireSnapshot) {
    let (_, term) = leader_term(fleet);
    for to in 1..=REAL {
        let forged = forge(fleet, term + 1);
        let words = format!("{:?}", forged.agreed.ring.newest());
        let answer = Insider::connect(fleet, to).ask(&Request::Snapshot(forged));
        let refused =
            matches!(answer, None | Some(Response::ErrorResponse(ErrorResponse::Malformed)));
        assert!(refused, "{words}: {answer:?}");
    }
}

/// The group is as it was, rotates, and takes a server back that was started anew.
fn is_well(fleet: &mut Fleet, (leader, term): (u32, u64)) {
    assert_eq!(leader_term(fleet), (leader, term), "{}", fleet.describe());
    rotate(fleet);
    let other = (1..=REAL).find(|id| *id != leader).unwrap();
    fleet.kill(other);
    fleet.start(other);
    fleet.wait_until_one();
    rotate(fleet);
}

#[test]
fn generations_cannot_be_brought_to_their_end() {
    let mut fleet = three_of_four();
    let before = leader_term(&fleet);
    let far = MAX_GENERATION_LEAP + fleet.servers[&1].node_status().current.0 + 1;
    for generation in [u64::MAX, MAX_GENERATION.0 + 1, MAX_GENERATION.0, far, 0] {
        refuse_all(&mut fleet, |fleet, term| {
            snapshot(leader_id(term), 1000, Forged::at(fleet, generation).agreed())
        });
    }
    assert!(fleet.servers[&1].lines.has("far from what this server knows"));
    // Nor by a staged key that leaves a gap, or by lists.
    for version in [0, u64::MAX, 1 << 62, 1 << 30] {
        refuse_all(&mut fleet, |fleet, term| {
            let mut list = ServerList::new(1, &fleet.members).unwrap();
            list.version = version;
            let forged = Forged { list: Some(list), ..Forged::at(fleet, 3) };
            snapshot(leader_id(term), 1000, forged.agreed())
        });
    }
    refuse_all(&mut fleet, |fleet, term| {
        let held = RingKey { generation: Generation(9), stek: new_key().unwrap() };
        let staged = Some(Staged { held, revokes: false });
        snapshot(leader_id(term), 1000, Forged { staged, ..Forged::at(fleet, 3) }.agreed())
    });
    is_well(&mut fleet, before);
}

#[test]
fn nobody_makes_itself_the_only_voter() {
    let mut fleet = three_of_four();
    let before = leader_term(&fleet);
    let alone = || vec![BTreeSet::from([life(ENEMY)])];
    let all: BTreeSet<NodeId> = (1..=ENEMY).map(life).collect();
    for configs in [alone(), vec![all.clone(), alone().remove(0)]] {
        let membership = WireMembership { configs, members: all.clone() };
        refuse_all(&mut fleet, |fleet, term| {
            let sound = snapshot(leader_id(term), 1000, Forged::at(fleet, 3).agreed());
            WireSnapshot { membership: membership.clone(), ..sound }
        });
        // The same as an entry of the log, which counts before it is agreed on.
        let (_, term) = before;
        for to in 1..=REAL {
            let id = LogId { leader_id: leader_id(term + 1), index: 0 };
            let payload = WirePayload::Membership(membership.clone());
            let mut append = heartbeat(leader_id(term + 1));
            append.entries.push(WireEntry { id, payload });
            let answer = Insider::connect(&mut fleet, to).ask(&Request::Append(append));
            let refused = matches!(answer, Some(Response::ErrorResponse(ErrorResponse::Malformed)));
            assert!(refused, "{answer:?}");
        }
    }
    assert!(fleet.servers[&1].lines.has("voters that are far from every server list"));
    is_well(&mut fleet, before);
}

#[test]
fn a_state_cannot_be_made_too_large_to_be_sent_on() {
    let mut fleet = three_of_four();
    let before = leader_term(&fleet);
    let print = new_key().unwrap().fingerprint();
    refuse_all(&mut fleet, |fleet, term| {
        let past = vec![([7; 32], [ServerId(1)].into()); 16_000];
        snapshot(leader_id(term), 1000, Forged { past, ..Forged::at(fleet, 3) }.agreed())
    });
    refuse_all(&mut fleet, |fleet, term| {
        let retired = vec![print; 200_000];
        snapshot(leader_id(term), 1000, Forged { retired, ..Forged::at(fleet, 3) }.agreed())
    });
    refuse_all(&mut fleet, |fleet, term| {
        let key =
            |generation| RingKey { generation: Generation(generation), stek: new_key().unwrap() };
        let keys = (1..=18).rev().map(key).collect();
        snapshot(leader_id(term), 1000, Forged { keys, ..Forged::at(fleet, 3) }.agreed())
    });
    refuse_all(&mut fleet, |fleet, term| {
        let sound = snapshot(leader_id(term), 1000, Forged::at(fleet, 3).agreed());
        WireSnapshot { id: "x".repeat(900_000), ..sound }
    });
    is_well(&mut fleet, before);
}
