//! Entries of the server list that name their server's certificate.

use std::time::Duration;

use stek_share::core::config::Settings;
use stek_share::core::rotation::AdminCommand;
use stek_share::transport::tls::Tls;
use stek_share::transport::Bounds;

use testkit::pki::Request;

use crate::fleet::{block_on, wait_for, Fleet, PATIENCE, SUBJECT};

fn no_common_subject(settings: &mut Settings) {
    settings.cert_verify_str = String::new();
}

fn subject(id: u32) -> String {
    format!("/O=Edge/CN=server{id}")
}

/// A list in which each entry names a subject, none of its servers running.
fn named_fleet(count: u32) -> Fleet {
    let mut fleet = Fleet::new(count, no_common_subject);
    for member in &mut fleet.members {
        member.subject = Some(subject(member.id.0));
    }
    fleet
}

/// The certificate of server `id`, as a server uses it that has no `cert_verify_str`.
fn tls_of(fleet: &Fleet, id: u32) -> Tls {
    tls_with(fleet, id, "")
}

fn tls_with(fleet: &Fleet, id: u32, common: &str) -> Tls {
    let own = fleet.authority.issue(&Request::new(&subject(id))).unwrap();
    let root = fleet.authority.identity.certificate.to_pem().unwrap();
    let chain = own.certificate.to_pem().unwrap();
    let key = own.key.private_key_to_pem_pkcs8().unwrap();
    Tls::from_pem_as(&root, &chain, &key, common, Some(&subject(id))).unwrap()
}

fn start(fleet: &mut Fleet, id: u32, certificate_of: u32) {
    let (settings, tls) = (fleet.settings(id), tls_of(fleet, certificate_of));
    fleet.start_with(id, settings, tls);
}

#[test]
fn each_server_may_have_a_subject_of_its_own_and_all_none_in_common() {
    let mut fleet = named_fleet(3);
    for id in 1..=3 {
        start(&mut fleet, id, id);
    }
    fleet.wait_until_one();
    fleet.kill(2);
    start(&mut fleet, 2, 2);
    fleet.wait_until_one();
}

#[test]
fn two_servers_with_each_others_certificates_are_kept_out() {
    let mut fleet = named_fleet(5);
    for (id, certificate_of) in [(1, 1), (2, 2), (3, 3), (4, 5), (5, 4)] {
        start(&mut fleet, id, certificate_of);
    }
    let whole = |fleet: &Fleet, id: u32| fleet.servers[&id].node_status().current.0 > 0;
    wait_for(
        "the others to have a key and the two to be refused",
        || {
            (1..=3).all(|id| whole(&fleet, id))
                && (1..=3).any(|id| fleet.servers[&id].lines.has("is not the one listed"))
                && (4..=5)
                    .all(|id| fleet.servers[&id].lines.has("refuses this server: its certificate"))
        },
        || fleet.describe(),
    );
    assert!((4..=5).all(|id| !whole(&fleet, id)), "{}", fleet.describe());
    // With the right ones they belong to it.
    for id in 4..=5 {
        fleet.kill(id);
        start(&mut fleet, id, id);
    }
    fleet.wait_until_one();
}

/// The way from one subject for all to one for each, on a running fleet.
#[test]
fn each_server_gets_a_subject_of_its_own_by_reload() {
    let mut fleet = Fleet::running(3, |_| ());
    fleet.wait_until_one();
    let before = fleet.servers[&1].node_status();
    for id in 1..=3 {
        fleet.members[id as usize - 1].subject = Some(subject(id));
        fleet.distribute(&fleet.members);
        let mut settings = fleet.settings(id);
        settings.cert_verify_str = SUBJECT.to_owned();
        let tls = tls_with(&fleet, id, SUBJECT);
        let reloaded = block_on(fleet.servers[&id].node.reload(settings, tls)).unwrap();
        assert!(reloaded.list.is_some());
        let version = 1 + u64::from(id);
        let on_all = || fleet.servers.values().all(|b| b.node_status().list_version == version);
        wait_for("the list on all servers", on_all, || fleet.describe());
        // It is in the group with its new certificate: a new key reaches it.
        block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
        fleet.wait_for_generation(version);
    }
    assert_eq!(fleet.servers[&3].node_status().cluster_id, before.cluster_id);
    // The one that all had is good for nobody any more.
    fleet.kill(3);
    fleet.start(3);
    let refused = |id: u32| fleet.servers[&id].lines.has("is not the one listed");
    wait_for("it to be refused", || refused(1) || refused(2), || fleet.describe());
}

/// Each connection is renewed several times under heartbeats and rotations, and no server notices.
#[test]
fn connections_grow_old_and_nobody_misses_a_heartbeat() {
    let patient = |settings: &mut Settings| {
        settings.timers.election_lower = Duration::from_millis(1000);
        settings.timers.election_upper = Duration::from_millis(2000);
    };
    let mut fleet = Fleet::new(3, patient);
    fleet.bounds = Bounds { max_age: Duration::from_secs(2), ..fleet.bounds };
    for id in 1..=3 {
        fleet.start(id);
    }
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let term = fleet.servers[&leader].node_status().term;
    let status = |id: u32| fleet.servers[&id].node.status();
    let before: Vec<_> = (1..=3).map(|id| status(id).accepted).collect();
    let elections: Vec<_> = (1..=3).map(|id| status(id).group.elections).collect();
    let begun = std::time::Instant::now();
    // The leader keeps a connection to each of the others; nobody need have one to the leader.
    let renewed =
        || (1..=3).zip(&before).all(|(id, was)| id == leader || status(id).accepted >= was + 6);
    let mut generation = fleet.servers[&leader].node_status().current.0;
    while !renewed() {
        block_on(fleet.servers[&leader].node.admin_command(AdminCommand::Rotate)).unwrap();
        generation += 1;
        fleet.wait_for_generation(generation);
        let accepted: Vec<_> = (1..=3).map(|id| status(id).accepted).collect();
        assert!(begun.elapsed() < PATIENCE, "{before:?} {accepted:?} {}", fleet.describe());
    }
    assert_eq!(fleet.servers[&leader].node_status().term, term, "{}", fleet.describe());
    for (at, id) in (0..).zip(1..=3) {
        assert_eq!(status(id).group.elections, elections[at], "{}", fleet.describe());
        assert_eq!(fleet.servers[&id].node_status().reachable, 3);
        let lines = &fleet.servers[&id].lines;
        assert!(!lines.has("is down") && !lines.has("has not installed"), "{}", fleet.describe());
    }
}
