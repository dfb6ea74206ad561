//! A rolling upgrade: nodes built to speak a neighbouring version beside the present one.

use stek_share::core::config::Settings;
use stek_share::core::rotation::AdminCommand;
use stek_share::transport::Versions;

use crate::fleet::{block_on, wait_for, Fleet};

const OURS: u8 = Versions::OURS.max;
const NEXT: Versions = Versions { min: OURS, max: OURS + 1 };
const ONLY_NEXT: Versions = Versions { min: OURS + 1, max: OURS + 1 };

fn default(_: &mut Settings) {}

/// One server after the other gets a plugin that speaks one version more, then one that has given up
/// the old one; the key stays the group's all the while.
#[test]
fn a_group_is_upgraded_server_by_server() {
    let mut fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let before = fleet.servers[&1].node_status();
    for versions in [NEXT, ONLY_NEXT] {
        for id in 1..=3 {
            fleet.kill(id);
            fleet.versions.insert(id, versions);
            fleet.start(id);
            fleet.wait_until_one();
            assert_eq!(fleet.servers[&id].node_status().fingerprint, before.fingerprint);
        }
    }
    block_on(fleet.servers[&2].node.admin_command(AdminCommand::Rotate)).unwrap();
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
    let next = OURS + 1;
    let agreed = format!(
        "speaks protocol version {OURS}, this server versions {OURS} to {next}; version {OURS} is used"
    );
    assert!(fleet.servers[&3].lines.has(&agreed), "{}", fleet.describe());
    for id in 1..=3 {
        block_on(fleet.servers[&id].node.admin_command(AdminCommand::Rotate)).unwrap();
        fleet.wait_for_generation(1 + u64::from(id));
    }
}

#[test]
fn a_server_without_a_common_version_stays_outside_and_both_sides_say_so() {
    let mut fleet = Fleet::new(3, default);
    fleet.versions.insert(3, ONLY_NEXT);
    let next = OURS + 1;
    let of = |theirs: u8, ours: u8| {
        format!("speaks protocol version {theirs}, this server version {ours}; run")
    };
    for id in 1..=3 {
        fleet.start(id);
    }
    let has = |id: u32, what: &str| fleet.servers[&id].lines.has(what);
    wait_for(
        "a key for two, and a line on each side",
        || {
            (1..=2).all(|id| fleet.servers[&id].node_status().current.0 > 0)
                && has(3, &of(OURS, next))
                && (1..=2).all(|id| has(id, &of(next, OURS)))
        },
        || fleet.describe(),
    );
    assert_eq!(fleet.servers[&3].node_status().current.0, 0);
}
