//! The server list changes while the group runs.

use std::time::Duration;

use stek_share::core::config::{Member, Settings};
use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_id::ServerId;
use stek_share::node::{NoReload, Role};
use stek_share::rpc::MembershipRefusal;

use crate::fleet::{block_on, member, wait_for, Fleet};

fn default(_: &mut Settings) {}

/// Starts a server whose file lists only `listed`.
fn start_listing(fleet: &mut Fleet, id: u32, listed: &[u32]) {
    let mut settings = fleet.settings(id);
    settings.members.retain(|m| listed.contains(&m.id.0));
    let tls = fleet.tls();
    fleet.start_with(id, settings, tls);
}

fn list(fleet: &Fleet, ids: &[u32]) -> Vec<Member> {
    fleet.members.iter().filter(|m| ids.contains(&m.id.0)).cloned().collect()
}

/// As an operator does: the new list goes into the files of all servers, and one of them reloads.
fn reload_with(fleet: &Fleet, id: u32, listed: &[u32]) -> Result<Option<u64>, NoReload> {
    fleet.distribute(&list(fleet, listed));
    reload(fleet, id, listed)
}

/// One server reloads a list, whatever the others' files have.
fn reload(fleet: &Fleet, id: u32, listed: &[u32]) -> Result<Option<u64>, NoReload> {
    let mut settings = fleet.settings(id);
    settings.members = list(fleet, listed);
    let tls = fleet.tls();
    block_on(fleet.servers[&id].node.reload(settings, tls)).map(|reloaded| reloaded.list)
}

fn wait_for_members(fleet: &Fleet, ids: &[u32]) {
    wait_for(
        &format!("a group of {ids:?}"),
        || {
            fleet.is_one()
                && ids.iter().all(|id| {
                    let report = fleet.servers[id].node_status();
                    report.members == ids.len()
                        && report.list_version > 0
                        && matches!(report.role, Role::Leader | Role::Follower)
                })
        },
        || fleet.describe(),
    );
}

#[test]
fn a_group_grows_from_one_to_five_and_shrinks_back() {
    let mut fleet = Fleet::new(5, default);
    start_listing(&mut fleet, 1, &[1]);
    wait_for_members(&fleet, &[1]);
    let before = fleet.servers[&1].node_status();
    start_listing(&mut fleet, 2, &[1, 2, 3]);
    start_listing(&mut fleet, 3, &[1, 2, 3]);
    wait_for(
        "the new peers to wait",
        || fleet.servers[&2].lines.has("not in the receiver's server list"),
        || fleet.describe(),
    );
    assert_eq!(reload_with(&fleet, 1, &[1, 2, 3]), Ok(Some(2)));
    wait_for_members(&fleet, &[1, 2, 3]);
    start_listing(&mut fleet, 4, &[1, 2, 3, 4, 5]);
    start_listing(&mut fleet, 5, &[1, 2, 3, 4, 5]);
    // By a server that may not lead; server 1 is not given the list.
    fleet.give(&[2, 3], &list(&fleet, &[1, 2, 3, 4, 5]));
    assert_eq!(reload(&fleet, 2, &[1, 2, 3, 4, 5]), Ok(Some(3)));
    wait_for_members(&fleet, &[1, 2, 3, 4, 5]);
    let after = fleet.servers[&5].node_status();
    assert_eq!((after.cluster_id, after.fingerprint), (before.cluster_id, before.fingerprint));
    // Every one of the five counts: rotation needs three of them.
    block_on(fleet.servers[&4].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(2);

    // Server 1's file still has three: it is behind, and a reload of it asks for nothing.
    assert_eq!(reload(&fleet, 1, &[1, 2, 3]), Ok(None));
    assert_eq!(reload_with(&fleet, 2, &[1, 2, 3]), Ok(Some(4)));
    fleet.kill(4);
    fleet.kill(5);
    wait_for_members(&fleet, &[1, 2, 3]);
    fleet.kill(3);
    fleet.wait_for_leader();
    block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(3);
}

/// Most of the old members go at once: they are needed until they have agreed to that.
#[test]
fn a_list_may_keep_less_than_a_majority_of_the_old_one() {
    for (before, after) in [(vec![1, 2], vec![1]), (vec![1, 2, 3, 4, 5], vec![1, 2])] {
        let mut fleet = Fleet::new(5, default);
        for id in &before {
            start_listing(&mut fleet, *id, &before);
        }
        wait_for_members(&fleet, &before);
        let key = fleet.servers[&1].node_status().fingerprint;
        assert_eq!(reload_with(&fleet, 1, &after), Ok(Some(2)), "{}", fleet.describe());
        wait_for(
            "the membership to follow",
            || after.iter().all(|id| fleet.servers[id].node_status().members == after.len()),
            || fleet.describe(),
        );
        for id in before.iter().filter(|id| !after.contains(id)) {
            fleet.kill(*id);
        }
        wait_for_members(&fleet, &after);
        fleet.wait_for_leader();
        assert_eq!(fleet.servers[&1].node_status().fingerprint, key);
        block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate)).unwrap();
        fleet.wait_for_generation(2);
    }
}

#[test]
fn a_server_is_replaced_by_another_and_three_become_twenty() {
    let mut fleet = Fleet::new(20, default);
    for id in [1, 2, 3] {
        start_listing(&mut fleet, id, &[1, 2, 3]);
    }
    wait_for_members(&fleet, &[1, 2, 3]);
    let key = fleet.servers[&1].node_status().fingerprint;
    start_listing(&mut fleet, 4, &[1, 2, 4]);
    assert_eq!(reload_with(&fleet, 1, &[1, 2, 4]), Ok(Some(2)));
    wait_for(
        "the fourth to take the third's place",
        || [1, 2, 4].iter().all(|id| fleet.servers[id].node_status().members == 3),
        || fleet.describe(),
    );
    fleet.kill(3);
    wait_for_members(&fleet, &[1, 2, 4]);
    let all: Vec<u32> = (1..=20).collect();
    for id in all.iter().filter(|id| ![1, 2, 4].contains(*id)) {
        start_listing(&mut fleet, *id, &all);
    }
    // Seventeen servers that start on one machine are not all there at once; until most are, the
    // group says which it misses, and changes nothing. On a busy one they     // office, and then who asked is told that it may still happen.
    wait_for(
        "the list of twenty",
        || match reload_with(&fleet, 2, &all) {
            Ok(_) => fleet.servers[&2].node_status().list_version == 3,
            Err(NoReload::List(MembershipRefusal::TooFew { of_new: true, .. })) => false,
            Err(NoReload::List(MembershipRefusal::Unknown | MembershipRefusal::NoLeader)) => false,
            Err(other) => panic!("{other}: {}", fleet.describe()),
        },
        || fleet.describe(),
    );
    wait_for_members(&fleet, &all);
    assert_eq!(fleet.servers[&20].node_status().fingerprint, key);
}

#[test]
fn the_leader_itself_can_be_removed() {
    let mut fleet = Fleet::running(4, default);
    wait_for_members(&fleet, &[1, 2, 3, 4]);
    let leader = fleet.wait_for_leader();
    let rest: Vec<u32> = (1..=4).filter(|id| *id != leader).collect();
    let members = list(&fleet, &rest);
    fleet.distribute(&members);
    let version = block_on(fleet.servers[&rest[0]].node.change_membership(members)).unwrap();
    assert_eq!(version, 2);
    wait_for(
        "another leader",
        || fleet.leader().is_some_and(|id| id != leader),
        || fleet.describe(),
    );
    fleet.kill(leader);
    wait_for_members(&fleet, &rest);
    block_on(fleet.servers[&rest[0]].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(2);
}

/// Who votes in a fleet whose servers all say the same.
fn voters(fleet: &Fleet) -> Vec<u32> {
    let votes = |id: &&u32| fleet.servers[id].node_status().votes;
    fleet.servers.keys().filter(votes).copied().collect()
}

#[test]
fn votes_are_given_and_taken_by_the_list_and_no_key_is_lost() {
    let mut fleet = Fleet::new(5, default);
    fleet.members[0].voter = false;
    fleet.members[3].voter = false;
    for id in 1..=5 {
        fleet.start(id);
    }
    wait_for_members(&fleet, &[1, 2, 3, 4, 5]);
    wait_for("three voters", || voters(&fleet) == [2, 3, 5], || fleet.describe());
    let first = fleet.servers[&1].node_status();
    assert!([2, 3, 5].contains(&fleet.wait_for_leader()), "{}", fleet.describe());

    // Whoever of the others is away: the voters have a majority, and it has all keys when it is back.
    fleet.kill(1);
    fleet.kill(4);
    block_on(fleet.servers[&2].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.start(1);
    fleet.start(4);
    fleet.wait_for_generation(2);

    // The leader is to vote no more, and the two others are.
    let leader = fleet.wait_for_leader();
    for member in &mut fleet.members {
        member.voter = member.id.0 != leader;
    }
    let members = fleet.members.clone();
    fleet.distribute(&members);
    assert_eq!(block_on(fleet.servers[&1].node.change_membership(members)).unwrap(), 2);
    let wanted: Vec<u32> = (1..=5).filter(|id| *id != leader).collect();
    wait_for("four other voters", || voters(&fleet) == wanted, || fleet.describe());
    wait_for_members(&fleet, &[1, 2, 3, 4, 5]);
    let led = |fleet: &Fleet| fleet.leader().is_some_and(|id| id != leader);
    wait_for("another leader", || led(&fleet), || fleet.describe());
    block_on(fleet.servers[&leader].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(3);
    let last = fleet.servers[&leader].node_status();
    assert_eq!((last.cluster_id, last.epoch), (first.cluster_id, first.epoch));
}

#[test]
fn wrong_lists_are_refused_and_nothing_changes() {
    let fleet = Fleet::running(3, default);
    wait_for_members(&fleet, &[1, 2, 3]);
    fleet.wait_for_leader();
    let ports = testkit::ports::take_many(3).unwrap();
    let change_membership =
        |members: Vec<Member>| block_on(fleet.servers[&1].node.change_membership(members));
    // The list that wedges openraft: one that is there, two that are not.
    let mut wedge = list(&fleet, &[1]);
    wedge.extend([member(8, ports[0]), member(9, ports[1])]);
    match change_membership(wedge) {
        Err(MembershipRefusal::TooFew { of_new: true, missing }) => {
            assert_eq!(missing, [ServerId(8), ServerId(9)]);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(change_membership(vec![]), Err(MembershipRefusal::Bad(_))));
    let mut twice = list(&fleet, &[1, 2, 3]);
    twice.push(member(3, ports[2]));
    assert!(matches!(change_membership(twice), Err(MembershipRefusal::Bad(_))));
    // The same list is no change.
    assert_eq!(change_membership(list(&fleet, &[3, 2, 1])), Ok(1));
    wait_for_members(&fleet, &[1, 2, 3]);
    block_on(fleet.servers[&1].node.admin_command(AdminCommand::Rotate))
        .expect("the group still agrees");
}

/// The order of steps that the documents tell.
#[test]
fn a_list_in_all_files_is_followed_after_one_reload_and_nobody_complains() {
    let mut fleet = Fleet::new(4, default);
    for id in 1..=3 {
        start_listing(&mut fleet, id, &[1, 2, 3]);
    }
    wait_for_members(&fleet, &[1, 2, 3]);
    start_listing(&mut fleet, 4, &[1, 2, 3, 4]);
    // One file is not enough, be it the leader's, and who lacks it is named.
    let all = list(&fleet, &[1, 2, 3, 4]);
    let leader = fleet.wait_for_leader();
    let [one, other] = [1, 2, 3].into_iter().filter(|id| *id != leader).collect::<Vec<_>>()[..]
    else {
        panic!("two follow")
    };
    let mut settings = fleet.settings(leader);
    settings.members.clone_from(&all);
    fleet.give(&[leader], &all);
    let refusal = wait_for_refusal(&fleet, leader, &settings);
    let expected = format!(
        "server_list_file: the group did not take the new list: servers {one} and {other} do not \
         have this list yet: put the same server_list_file on all servers, then reload one"
    );
    assert_eq!(refusal.to_string(), expected);
    assert_eq!(reload_with(&fleet, one, &[1, 2, 3, 4]), Ok(Some(2)), "{}", fleet.describe());
    wait_for_members(&fleet, &[1, 2, 3, 4]);
    let follows = |id: &u32| {
        let list = fleet.servers[id].node.status().list;
        list.digest == Some(list.file_digest)
    };
    wait_for("all to go by their files", || (1..=4).all(|id| follows(&id)), || fleet.describe());
    // Lists are looked at again with each key.
    block_on(fleet.servers[&other].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(2);
    for (id, b) in &fleet.servers {
        assert!(!b.lines.has("server_list_file differs"), "server {id}: {}", fleet.describe());
    }
    // And back, by one that was not told to reload before.
    assert_eq!(reload_with(&fleet, other, &[1, 2, 3]), Ok(Some(3)), "{}", fleet.describe());
    fleet.kill(4);
    wait_for_members(&fleet, &[1, 2, 3]);
}

/// What a server says that cannot have its list, once the new peers are there.
fn wait_for_refusal(fleet: &Fleet, id: u32, settings: &Settings) -> NoReload {
    let refused = std::cell::Cell::new(None);
    let ask = || {
        let answer = block_on(fleet.servers[&id].node.reload(settings.clone(), fleet.tls()));
        let refusal = answer.expect_err("nobody else has it");
        let passes = matches!(
            refusal,
            NoReload::List(MembershipRefusal::TooFew { .. } | MembershipRefusal::NoLeader)
        );
        refused.set(Some(refusal));
        !passes
    };
    wait_for("a refusal", ask, || fleet.describe());
    refused.take().expect("it was refused")
}

#[test]
fn a_server_that_moved_is_found_at_its_new_address() {
    let mut fleet = Fleet::running(3, default);
    wait_for_members(&fleet, &[1, 2, 3]);
    let leader = fleet.wait_for_leader();
    let moved = (1..=3).find(|id| *id != leader).unwrap();
    fleet.kill(moved);
    fleet.members[moved as usize - 1].port = testkit::ports::take().unwrap();
    fleet.start(moved);
    fleet.distribute(&fleet.members);
    let version =
        block_on(fleet.servers[&leader].node.change_membership(fleet.members.clone())).unwrap();
    assert_eq!(version, 2);
    wait_for_members(&fleet, &[1, 2, 3]);
}

#[test]
fn a_server_whose_file_differs_says_so_and_is_heard_all_the_same() {
    let mut fleet = Fleet::running(3, default);
    wait_for_members(&fleet, &[1, 2, 3]);
    fleet.kill(3);
    let mut settings = fleet.settings(3);
    settings.members.push(member(9, testkit::ports::take().unwrap()));
    let tls = fleet.tls();
    fleet.start_with(3, settings, tls);
    wait_for_members(&fleet, &[1, 2, 3]);
    wait_for(
        "the server to say so",
        || fleet.servers[&3].lines.has("server 9 is only in the file"),
        || fleet.describe(),
    );
    // Once: keys change far more often than lists do.
    for generation in [2, 3] {
        block_on(fleet.servers[&3].node.admin_command(AdminCommand::Rotate)).unwrap();
        fleet.wait_for_generation(generation);
    }
    let lines = fleet.servers[&3].lines.all();
    let said = lines.iter().filter(|(_, line)| line.contains("server_list_file differs")).count();
    assert_eq!(said, 1, "{}", fleet.describe());
}

#[test]
fn a_reload_changes_interval_and_timers_without_losing_a_key() {
    let fleet = Fleet::running(3, default);
    fleet.wait_until_one();
    let before = fleet.servers[&1].node_status();
    for id in 1..=3 {
        let mut settings = fleet.settings(id);
        settings.key_update_interval = Duration::from_secs(1);
        settings.handover_timeout = Duration::from_millis(500);
        settings.timers.election_lower = Duration::from_millis(300);
        settings.timers.election_upper = Duration::from_millis(600);
        settings.reserved_log_items = 9;
        let tls = fleet.tls();
        block_on(fleet.servers[&id].node.reload(settings, tls)).unwrap();
    }
    fleet.wait_for_generation(3);
    let after = fleet.servers[&1].node_status();
    assert_eq!(after.cluster_id, before.cluster_id);
    for b in fleet.servers.values() {
        let sets = b.host.sets.lock().unwrap().clone();
        for pair in sets.windows(2) {
            assert!(pair[0].1.contains(&pair[1].1[0]), "a key was used before it was held");
        }
    }
}

#[test]
fn a_running_server_cannot_become_another() {
    let fleet = Fleet::running(1, default);
    fleet.wait_until_one();
    let mut settings = fleet.settings(1);
    settings.server_id = ServerId(2);
    let refusal = block_on(fleet.servers[&1].node.reload(settings, fleet.tls())).unwrap_err();
    assert_eq!(refusal, NoReload::OtherId { old: ServerId(1), new: ServerId(2) });
}

/// A new server that alone votes by the list in its file is in no list of the group yet: the others do not
/// know it, and nobody else is to be asked.
#[test]
fn the_only_voter_of_a_new_list_does_not_found_a_group_beside_the_living_one() {
    let mut fleet = Fleet::new(4, default);
    for id in 1..=3 {
        start_listing(&mut fleet, id, &[1, 2, 3]);
    }
    wait_for_members(&fleet, &[1, 2, 3]);
    let mut settings = fleet.settings(4);
    settings.members.iter_mut().for_each(|member| member.voter = member.id.0 == 4);
    let tls = fleet.tls();
    fleet.start_with(4, settings, tls);
    // Somebody asked it, and it asked somebody, who told it that it is not in the list.
    let asked = |fleet: &Fleet| {
        fleet.servers[&4].lines.has("server_id is not in the receiver's server list")
    };
    wait_for("a refusal", || asked(&fleet), || fleet.describe());
    for _ in 0..20 {
        let alone = fleet.servers[&4].node_status();
        assert_eq!((alone.epoch, alone.cluster_id), (0, None), "{}", fleet.describe());
        std::thread::sleep(Duration::from_millis(50));
    }
}
