//! A rolling upgrade: nodes built to speak a neighbouring version beside the present one.

use stek_share::core::config::Settings;
use stek_share::core::rotation::Order;
use stek_share::transport::Versions;

use crate::fleet::{block_on, wait_for, Fleet};

const NEXT: Versions = Versions { min: 1, max: 2 };

fn default(_: &mut Settings) {}

/// One server after the other gets a plugin that speaks one version more, then one that has given up
/// the old one; the key stays the group's all the while.
#[test]
fn a_group_is_upgraded_server_by_server() {
    let mut fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let before = fleet.servers[&1].report();
    for versions in [NEXT, Versions { min: 2, max: 2 }] {
        for id in 1..=3 {
            fleet.kill(id);
            fleet.versions.insert(id, versions);
            fleet.start(id);
            fleet.wait_until_one();
            assert_eq!(fleet.servers[&id].report().fingerprint, before.fingerprint);
        }
    }
    block_on(fleet.servers[&2].node.order(Order::Rotate)).unwrap();
    fleet.wait_for_generation(2);
}

#[test]
fn a_server_of_the_next_version_lives_among_present_ones() {
    let mut fleet = Fleet::new(3, default);
    fleet.versions.insert(3, NEXT);
    for id in 1..=3 {
        fleet.start(id);
    }
    fleet.wait_until_one();
    let agreed = "speaks protocol version 1, this server versions 1 to 2; version 1 is used";
    assert!(fleet.servers[&3].lines.has(agreed), "{}", fleet.describe());
    for id in 1..=3 {
        block_on(fleet.servers[&id].node.order(Order::Rotate)).unwrap();
        fleet.wait_for_generation(1 + u64::from(id));
    }
}

#[test]
fn a_server_without_a_common_version_stays_outside_and_both_sides_say_so() {
    let mut fleet = Fleet::new(3, default);
    fleet.versions.insert(3, Versions { min: 2, max: 2 });
    for id in 1..=3 {
        fleet.start(id);
    }
    let has = |id: u32, what: &str| fleet.servers[&id].lines.has(what);
    wait_for(
        "a key for two, and a line on each side",
        || {
            (1..=2).all(|id| fleet.servers[&id].report().current.0 > 0)
                && has(3, "speaks protocol version 1, this server version 2; run versions")
                && (1..=2)
                    .all(|id| has(id, "speaks protocol version 2, this server version 1; run"))
        },
        || fleet.describe(),
    );
    assert_eq!(fleet.servers[&3].report().current.0, 0);
}
