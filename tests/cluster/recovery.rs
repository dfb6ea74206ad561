//! Servers that lost their memory, cluster incarnations that meet, a leader that leaves.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stek_share::core::config::Settings;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_id::ServerId;
use stek_share::node::{NodeStatus, Role};
use stek_share::rpc::RecoverRefusal;

use crate::fleet::{block_on, wait_for, Fleet};
use crate::relay::Relays;

fn default(_: &mut Settings) {}

fn roomy(settings: &mut Settings) {
    settings.ticket_keys = 6;
}

#[test]
fn a_majority_restarted_at_once_keeps_the_key_that_a_survivor_holds() {
    for (count, restarted) in [(3, vec![1, 2]), (5, vec![1, 3, 5])] {
        let mut fleet = Fleet::running(count, default);
        fleet.wait_until_one();
        block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
        fleet.wait_for_generation(2);
        let before = fleet.servers[&2].node_status();
        for id in &restarted {
            fleet.kill(*id);
        }
        for id in &restarted {
            fleet.start(*id);
        }
        fleet.wait_until_one();
        let after = fleet.servers[&1].node_status();
        assert_eq!(after.cluster_id, before.cluster_id, "{}", fleet.describe());
        assert_eq!(after.fingerprint, before.fingerprint);
    }
}

/// Two of three voters rotate while the third is cut off. One of them is cut off with what it knows, though not
/// from those that do not vote, the other one returns without memory, and the third hears all others again: what
/// it missed is known to none of those who found, but to those that do not vote.
#[test]
fn a_key_that_a_voter_forgot_is_taken_from_those_that_do_not_vote() {
    let mut fleet = Fleet::new(5, default);
    for id in [1, 4] {
        fleet.members[id - 1].voter = false;
    }
    fleet.relays = Some(Relays::new(&fleet.members));
    for id in 1..=5 {
        fleet.start(id);
    }
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let followers: Vec<u32> = [2, 3, 5].into_iter().filter(|id| *id != leader).collect();
    let (behind, forgets) = (followers[0], followers[1]);
    let others: Vec<u32> = (1..=5).filter(|id| *id != behind).collect();
    fleet.part(&[behind], &others, true);
    block_on(fleet.servers[&leader].node.admin_command(AdminCommand::Rotate)).unwrap();
    let has_it = |fleet: &Fleet, id: u32| fleet.servers[&id].node_status().current.0 == 2;
    let all_have = |fleet: &Fleet| [1, 4, forgets].into_iter().all(|id| has_it(fleet, id));
    wait_for("generation 2", || all_have(&fleet), || fleet.describe());
    let before = fleet.servers[&1].node_status();
    fleet.part(&[leader], &[behind, forgets], true);
    fleet.kill(forgets);
    fleet.start(forgets);
    fleet.part(&[behind], &[1, 4, forgets], false);
    let found = |fleet: &Fleet| {
        let both = [behind, forgets].map(|id| fleet.servers[&id].node_status());
        both.iter().all(|status| status.epoch > before.epoch && status.current.0 > 0)
    };
    wait_for("another cluster", || found(&fleet), || fleet.describe());
    let after = fleet.servers[&behind].node_status();
    assert_eq!(after.cluster_id, before.cluster_id, "{}", fleet.describe());
    assert_eq!(after.fingerprint, before.fingerprint);
}

#[test]
fn two_servers_survive_the_restart_of_either() {
    let mut fleet = Fleet::running(2, default);
    fleet.wait_until_one();
    let before = fleet.servers[&1].node_status();
    for id in [1, 2, 1] {
        fleet.kill(id);
        fleet.start(id);
        fleet.wait_until_one();
        assert_eq!(fleet.servers[&id].node_status().fingerprint, before.fingerprint);
    }
}

#[test]
fn all_restarted_at_once_begin_a_new_cluster_id() {
    let mut fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let before = fleet.servers[&1].node_status();
    for id in 1..=3 {
        fleet.kill(id);
    }
    for id in 1..=3 {
        fleet.start(id);
    }
    fleet.wait_until_one();
    assert_ne!(fleet.servers[&1].node_status().cluster_id, before.cluster_id);
}

/// The log has been purged a thousand times by then; what it gets is a snapshot.
#[test]
fn a_server_that_returns_after_a_thousand_rotations_has_the_latest_two_keys() {
    let mut fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let away = followers_of(&fleet)[0];
    fleet.kill(away);
    let node = fleet.servers.values().next().unwrap().node.clone();
    let mut generation = 1;
    while generation <= 1000 {
        generation = block_on(node.admin_command(AdminCommand::Rotate)).unwrap().0;
    }
    fleet.wait_for_generation(generation);
    let keys = fleet.servers.values().next().unwrap().host.latest();
    fleet.start(away);
    fleet.wait_for_generation(generation);
    assert_eq!(fleet.servers[&away].host.latest(), keys);
}

fn followers_of(fleet: &Fleet) -> Vec<u32> {
    let leader = fleet.wait_for_leader();
    fleet.servers.keys().copied().filter(|id| *id != leader).collect()
}

#[test]
fn a_leader_restarted_before_anybody_noticed_does_not_lose_the_keys() {
    let mut fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let before = fleet.servers[&1].node_status();
    for _ in 0..5 {
        let leader = fleet.wait_for_leader();
        fleet.kill(leader);
        fleet.start(leader);
        fleet.wait_until_one();
        fleet.wait_for_leader();
    }
    let after = fleet.servers[&1].node_status();
    assert_eq!((after.cluster_id, after.fingerprint), (before.cluster_id, before.fingerprint));
}

/// The server that is without a vote relies on a leader that then dies; the rest must not wait for it
/// for ever.
#[test]
fn a_recovering_server_whose_leader_dies_helps_to_elect_another() {
    let mut fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let before = fleet.servers[&1].node_status();
    let leader = fleet.wait_for_leader();
    let other = *fleet.servers.keys().find(|id| **id != leader).unwrap();
    fleet.kill(other);
    fleet.start(other);
    // At the worst moment: the server may have asked, and is not yet caught up.
    fleet.kill(leader);
    fleet.wait_until_one();
    wait_for("a new leader", || fleet.leader().is_some_and(|id| id != leader), || fleet.describe());
    assert_eq!(fleet.servers[&other].node_status().fingerprint, before.fingerprint);
}

#[test]
fn a_server_behind_a_cut_gives_its_cluster_id_up_for_the_majoritys() {
    let mut fleet = Fleet::linked(3, roomy);
    fleet.wait_until_one();
    let old = fleet.servers[&1].node_status();
    fleet.part(&[1], &[2, 3], true);
    fleet.kill(2);
    fleet.kill(3);
    fleet.start(2);
    fleet.start(3);
    let founded = |fleet: &Fleet| {
        let report = fleet.servers[&2].node_status();
        report.current.0 > 0 && report.cluster_id != old.cluster_id
    };
    wait_for("a second cluster incarnation", || founded(&fleet), || fleet.describe());
    let new = fleet.servers[&2].node_status();
    assert_eq!(fleet.servers[&1].node_status().cluster_id, old.cluster_id);
    fleet.part(&[1], &[2, 3], false);
    fleet.wait_until_one();
    assert_eq!(fleet.servers[&1].node_status().cluster_id, new.cluster_id);
    assert!(
        fleet.servers[&1].host.latest().contains(&old.fingerprint.unwrap()),
        "what it encrypted with behind the cut still decrypts: {}",
        fleet.describe()
    );
}

#[test]
fn an_isolated_leader_loses_its_office_and_nothing_else() {
    let fleet = Fleet::linked(3, default);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let others: Vec<u32> = fleet.servers.keys().copied().filter(|id| *id != leader).collect();
    fleet.part(&[leader], &others, true);
    wait_for(
        "another leader",
        || fleet.leader().is_some_and(|id| id != leader),
        || fleet.describe(),
    );
    let generation = block_on(fleet.servers[&others[0]].node.admin_command(AdminCommand::Rotate))
        .expect("a majority agrees");
    fleet.part(&[leader], &others, false);
    fleet.wait_for_generation(generation.0);
}

#[test]
fn an_isolated_follower_disturbs_nobody_when_it_returns() {
    let fleet = Fleet::linked(3, default);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let term = fleet.servers[&leader].node_status().term;
    let cut = *fleet.servers.keys().find(|id| **id != leader).unwrap();
    let others: Vec<u32> = fleet.servers.keys().copied().filter(|id| *id != cut).collect();
    fleet.part(&[cut], &others, true);
    // Long enough for several elections, had it stood for any.
    std::thread::sleep(Duration::from_secs(3));
    fleet.part(&[cut], &others, false);
    fleet.wait_until_one();
    let report = fleet.servers[&leader].node_status();
    assert_eq!((report.term, fleet.leader()), (term, Some(leader)), "{}", fleet.describe());
}

#[test]
fn a_leader_that_leaves_has_a_successor_before_it_is_gone() {
    let mut fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let begun = Instant::now();
    fleet.stop(leader);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "leaving took {took:?}");
    wait_for("a successor", || fleet.leader().is_some(), || fleet.describe());
    println!("left after {took:?}");
}

#[test]
fn a_server_with_another_boxs_id_is_refused_and_both_sides_say_so() {
    let fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let mut duplicate_id = Fleet::new(3, default);
    // The same group and certificates, but this server listens elsewhere and calls itself server 2.
    duplicate_id.authority = fleet.authority.clone();
    let mut settings = fleet.settings(2);
    settings.port = duplicate_id.members[1].port;
    let tls = fleet.tls();
    let duplicate_id_server = duplicate_id.start_with(2, settings, tls);
    let refused = "another server with this server_id is up";
    wait_for(
        "the duplicate id to say so",
        || duplicate_id_server.lines.has(refused),
        || fleet.describe(),
    );
    wait_for(
        "a member to say so",
        || fleet.servers.values().any(|b| b.lines.has(refused)),
        || fleet.describe(),
    );
    assert!(fleet.is_one(), "the group is undisturbed: {}", fleet.describe());
}

fn ids(ids: &[u32]) -> BTreeSet<ServerId> {
    ids.iter().copied().map(ServerId).collect()
}

/// Whether these servers have one leader with a majority among them.
fn lead(fleet: &Fleet, ids: &[u32]) -> bool {
    let reports: Vec<NodeStatus> = ids.iter().map(|id| fleet.servers[id].node_status()).collect();
    let leads = |report: &&NodeStatus| report.role == Role::Leader;
    reports.iter().filter(leads).count() == 1
        && reports.iter().all(|report| report.epoch == reports[0].epoch)
}

#[test]
fn survivors_go_on_with_their_keys_and_who_was_lost_joins_them() {
    for (count, survivors) in [(3, vec![2]), (5, vec![1, 4])] {
        let mut fleet = Fleet::running(count, default);
        fleet.wait_until_one();
        block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
        fleet.wait_for_generation(2);
        let (one, before) = (survivors[0], fleet.servers[&1].node_status());
        let recover =
            |fleet: &Fleet, named: &[u32]| block_on(fleet.servers[&one].node.recover(ids(named)));
        let works = recover(&fleet, &survivors);
        assert!(matches!(works, Err(RecoverRefusal::HasMajority(_))), "{works:?}");
        let lost: Vec<u32> = (1..=count).filter(|id| !survivors.contains(id)).collect();
        for id in &lost {
            fleet.kill(*id);
        }
        let alone = |fleet: &Fleet| {
            survivors.iter().all(|id| !fleet.servers[id].node.status().group.quorum)
        };
        wait_for("no majority", || alone(&fleet), || fleet.describe());
        let with = |more: u32| [&survivors[..], &[more]].concat();
        let silent = vec![ServerId(lost[0])];
        assert_eq!(recover(&fleet, &with(lost[0])), Err(RecoverRefusal::Silent(silent)));
        let unknown = vec![ServerId(77)];
        assert_eq!(recover(&fleet, &with(77)), Err(RecoverRefusal::Unknown(unknown)));
        assert_eq!(recover(&fleet, &lost), Err(RecoverRefusal::NotAmong(ServerId(one))));
        if let [_, other] = survivors[..] {
            let there = vec![ServerId(other)];
            assert_eq!(recover(&fleet, &[one]), Err(RecoverRefusal::AlsoThere(there)));
        }
        assert!(recover(&fleet, &survivors).unwrap() > before.epoch);
        wait_for("a leader", || lead(&fleet, &survivors), || fleet.describe());
        let after = fleet.servers[&one].node_status();
        assert_eq!((after.cluster_id, after.fingerprint), (before.cluster_id, before.fingerprint));
        assert_eq!(after.list_version, 2);
        assert_eq!(
            block_on(fleet.servers[&one].node.admin_command(AdminCommand::Rotate)).unwrap().0,
            3
        );
        for id in lost {
            fleet.start(id);
        }
        fleet.wait_until_one();
        fleet.wait_for_generation(3);
        let last = |fleet: &Fleet| fleet.servers[&count].node_status();
        let all = count as usize;
        wait_for("all vote", || last(&fleet).voters == all, || fleet.describe());
        assert_eq!(last(&fleet).cluster_id, before.cluster_id);
    }
}

/// Who was given up for lost lives on the other side of a cut, as a majority, and makes keys.
#[test]
fn a_group_that_was_given_up_for_lost_gives_way_when_it_is_met() {
    let (survivors, lost) = ([1, 4], [2, 3, 5]);
    let fleet = Fleet::linked(5, default);
    fleet.wait_until_one();
    fleet.part(&survivors, &lost, true);
    wait_for("a leader of the majority", || lead(&fleet, &lost), || fleet.describe());
    let alone =
        |fleet: &Fleet| survivors.iter().all(|id| !fleet.servers[id].node.status().group.quorum);
    wait_for("no majority", || alone(&fleet), || fleet.describe());
    block_on(fleet.servers[&4].node.recover(ids(&survivors))).unwrap();
    for id in [1, 2] {
        let node = &fleet.servers[&id].node;
        let makes = || {
            node.node_status().current.0 > 1
                || block_on(node.admin_command(AdminCommand::Rotate)).is_ok()
        };
        wait_for("a key of its own", makes, || fleet.describe());
    }
    let key = fleet.servers[&1].node_status().fingerprint;
    assert_ne!(fleet.servers[&2].node_status().fingerprint, key);
    fleet.part(&survivors, &lost, false);
    fleet.wait_until_one();
    assert_eq!(fleet.servers[&2].node_status().fingerprint, key, "{}", fleet.describe());
}
