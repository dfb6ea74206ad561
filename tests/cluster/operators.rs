//! An operator's command asks running servers and orders them about, over the servers' own mutual TLS.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use stek_share::client::{
    admin_limit, AdminCommand, Client, Failure, KeyInUse, Role, STATUS_LIMIT,
};
use stek_share::core::health::complaints;
use stek_share::core::key_ring::Generation;
use stek_share::core::server_id::ServerId;
use stek_share::log_sink::Level;
use stek_share::rpc::AdminRefusal;
use stek_share::transport::listener::Refusal;
use stek_share::transport::tls::Tls;

use crate::fleet::{block_on, tls_of, wait_for, Fleet, SUBJECT};
use testkit::pki::{Authority, Request};

fn client(fleet: &Fleet, id: u32) -> Client {
    Client::new(&fleet.settings(id), &fleet.tls())
}

#[test]
fn every_server_tells_how_it_is_and_all_tell_the_same() {
    let fleet = Fleet::running(3, |_| {});
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let client = client(&fleet, 1);
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let ask = |id: u32| {
        let member = &fleet.members[id as usize - 1];
        block_on(client.status(member, STATUS_LIMIT)).unwrap_or_else(|e| panic!("server {id}: {e}"))
    };
    // A follower hears of the majority with the next heartbeat, the leader with its answer.
    wait_for("a quorum", || (1..=3).all(|id| ask(id).0.group.quorum), || fleet.describe());
    let all: Vec<_> = (1..=3).map(ask).collect();
    let first = &all[0].0;
    for (id, (status, took)) in (1..).zip(&all) {
        let server_ = &fleet.servers[&id];
        assert_eq!(status.id, ServerId(id));
        assert_eq!(status.software, env!("CARGO_PKG_VERSION"));
        assert!(*took > Duration::ZERO && *took < STATUS_LIMIT, "{took:?}");
        assert!(status.clock_ms >= begun && status.clock_ms < begun + 600_000);
        let role = if id == leader { Role::Leader } else { Role::Follower };
        assert_eq!(status.group.role, role, "{status:?}");
        assert_eq!(status.group.leader, Some(ServerId(leader)));
        assert!(status.group.term > 0 && status.group.cluster_id.is_some(), "{status:?}");
        assert_eq!(status.group.cluster_id, server_.node_status().cluster_id);
        assert!(status.group.quorum_ms.is_some_and(|ms| ms < 60_000), "{status:?}");
        assert!(status.group.rotations >= 1 && status.group.leaders >= 1, "{status:?}");
        let current = status.keys.current.expect("there is an agreed key");
        assert_eq!(Some(current.fingerprint), server_.node_status().fingerprint);
        assert_eq!((current.generation, status.keys.installed), (Generation(1), Generation(1)));
        assert_eq!((status.keys.staged, status.keys.in_use), (None, KeyInUse::Agreed));
        assert!(status.keys.next_ms > 0 && status.keys.next_ms <= 3_600_000);
        assert_eq!(status.list.voters, 3);
        let others: Vec<u32> = status.list.others.iter().map(|other| other.id.0).collect();
        assert_eq!(others, (1..=3).filter(|other| *other != id).collect::<Vec<_>>());
        assert_eq!(status.certificate.subject, SUBJECT);
        assert!(status.certificate.expires_s.is_some_and(|left| left > 0));
        // What has to be the same everywhere.
        assert_eq!(status.keys.current, first.keys.current);
        assert_eq!(status.list.digest, first.list.digest);
        assert_eq!(status.list.file_digest, first.list.file_digest);
        assert_eq!(status.list.options, first.list.options);
        assert_eq!(status.certificate.roots_digest, first.certificate.roots_digest);
    }
    // What must not be.
    assert_ne!(all[1].0.incarnation, first.incarnation);
    assert_ne!(all[1].0.certificate.fingerprint, first.certificate.fingerprint);
    // Nobody took the tool for a second server 1, and server 1 itself was asked as well.
    for (id, server_) in &fleet.servers {
        let told = server_.lines.all();
        let loud: Vec<_> = told.iter().filter(|(level, _)| *level >= Level::Warning).collect();
        assert!(loud.is_empty(), "server {id}: {loud:?}");
    }
}

#[test]
fn an_order_given_to_any_server_is_carried_out_by_the_leader() {
    let fleet = Fleet::running(3, |_| {});
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let client = client(&fleet, follower);
    let limit = admin_limit(&fleet.settings(1));
    for (through, order, generation) in [
        (follower, AdminCommand::Rotate, 2),
        (leader, AdminCommand::Rotate, 3),
        (follower, AdminCommand::Revoke, 4),
    ] {
        let member = &fleet.members[through as usize - 1];
        let done = block_on(client.admin_command(member, order, limit));
        assert_eq!(done.unwrap_or_else(|e| panic!("{e}")), Generation(generation));
        fleet.wait_for_generation(generation);
    }
    // Revoked: nothing older decrypts any more.
    let member = &fleet.members[follower as usize - 1];
    let (status, _) =
        block_on(client.status(member, STATUS_LIMIT)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(status.keys.previous, []);
    assert_eq!(status.group.rotations, 4);
    // Who gave an order is in the log of the leader, which carries it out.
    block_on(fleet.servers[&follower].node.admin_command(AdminCommand::Rotate)).unwrap();
    block_on(fleet.servers[&leader].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(6);
    let lines = fleet.servers[&leader].lines.all();
    let told: Vec<&str> =
        lines.iter().filter_map(|(_, l)| l.split_once(": ordered by ")).map(|(_, by)| by).collect();
    let names = format!("(certificate {SUBJECT} (DNS:localhost), from 127.0.0.1:");
    let tool = format!("a tool that speaks as server {follower} {names}");
    let passed = format!(", passed on by server {follower} {names}");
    let message = |id: u32| format!("traffic_ctl on server {id}");
    let expected: [(&str, &str); 5] = [
        (&tool, &passed),
        (&tool, ")"),
        (&tool, &passed),
        (&message(follower), &passed),
        (&message(leader), ""),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (told, (begins, holds)) in told.iter().zip(expected) {
        assert!(told.starts_with(begins) && told.contains(holds), "{told}");
    }
    assert!(!told[1].contains("passed on") && !told[4].contains("passed on"), "{told:?}");
}

/// It still takes itself for the leader; who asks should not have to wait until that shows.
#[test]
fn a_leader_without_a_majority_says_so_to_who_gives_it_an_order() {
    let mut fleet = Fleet::running(3, |_| {});
    fleet.wait_until_one();
    let leader = fleet.wait_for_leader();
    for id in (1..=3).filter(|id| *id != leader) {
        fleet.kill(id);
    }
    let node = &fleet.servers[&leader].node;
    let alone = || !node.status().group.quorum;
    wait_for("no quorum", alone, || fleet.describe());
    assert_eq!(block_on(node.admin_command(AdminCommand::Rotate)), Err(AdminRefusal::NoLeader));
    assert_eq!(node.node_status().current, Generation(1), "nothing was begun");
}

#[test]
fn whoever_is_not_allowed_or_not_there_is_named_with_a_remedy() {
    let mut fleet = Fleet::running(3, |_| {});
    fleet.wait_until_one();
    let members = fleet.members.clone();
    let ask = |client: &Client, id: u32| {
        let failure = block_on(client.status(&members[id as usize - 1], STATUS_LIMIT));
        failure.map(|(status, _)| panic!("answered: {status:?}")).unwrap_err()
    };
    // In the name of a server that is not in the list.
    let mut settings = fleet.settings(1);
    settings.server_id = ServerId(9);
    let outsider = Client::new(&settings, &fleet.tls());
    let failure = ask(&outsider, 2);
    assert!(matches!(failure, Failure::Refused(Refusal::NotAMember)), "{failure}");
    assert!(failure.to_string().contains("add the server to the server list"), "{failure}");
    // With a certificate that the server does not accept, though it accepts the server's.
    let other = fleet.authority.issue(&Request::new("/CN=somebody")).unwrap();
    let root = fleet.authority.identity.certificate.to_pem().unwrap();
    let (chain, key) = (other.certificate.to_pem(), other.key.private_key_to_pem_pkcs8());
    let (chain, key) = (chain.unwrap(), key.unwrap());
    let tls = Tls::from_pem_as(&root, &chain, &key, SUBJECT, Some("/CN=somebody")).unwrap();
    let stranger = Client::new(&fleet.settings(1), &tls);
    let failure = ask(&stranger, 2);
    assert!(matches!(failure, Failure::OurCertificate(_)), "{failure}");
    // With a root that the server's certificate does not lead to.
    let elsewhere = Authority::new("/CN=elsewhere").unwrap();
    let own = elsewhere.issue(&Request::new(SUBJECT)).unwrap();
    let foreign = Client::new(&fleet.settings(1), &tls_of(&elsewhere.identity, &own, SUBJECT));
    let failure = ask(&foreign, 2);
    assert!(matches!(failure, Failure::TheirCertificate(_)), "{failure}");
    assert!(failure.to_string().contains("compare root_cert_file"), "{failure}");
    // A server that answers for another, as a wrong list has it.
    let good = client(&fleet, 1);
    let mut wrong = fleet.members[1].clone();
    wrong.port = fleet.members[2].port;
    let failure = block_on(good.status(&wrong, STATUS_LIMIT)).unwrap_err();
    assert!(matches!(failure, Failure::Stranger(ServerId(3))), "{failure}");
    // One that is down.
    fleet.kill(2);
    let ask = || block_on(good.status(&members[1], STATUS_LIMIT)).err();
    let gone = || matches!(ask(), Some(Failure::Unreachable(_)));
    wait_for("it to be down", gone, || fleet.describe());
    let failure = ask().unwrap().to_string();
    assert!(failure.contains("see that Traffic Server runs there"), "{failure}");
}

/// Both the leader that loses its followers, and the follower that loses its leader.
#[test]
fn a_server_alone_tells_since_when_and_whose_key_it_uses() {
    for keeps_leader in [true, false] {
        let mut fleet = Fleet::running(3, |settings| {
            settings.key_update_interval = Duration::from_secs(2);
            settings.max_key_age = Duration::from_secs(2);
        });
        fleet.wait_until_one();
        let leader = fleet.wait_for_leader();
        let left = (1..=3).find(|id| (*id == leader) == keeps_leader).unwrap();
        (1..=3).filter(|id| *id != left).for_each(|id| fleet.kill(id));
        let status = || fleet.servers[&left].node.status();
        let missed = |ms: u64| status().group.quorum_ms.is_some_and(|since| since >= ms);
        wait_for("the majority to be missed", || missed(1000), || fleet.describe());
        assert!(!status().group.quorum);
        let emergency = || status().keys.in_use == KeyInUse::Emergency;
        wait_for("a key of its own", emergency, || fleet.describe());
        let told = status();
        assert!(told.keys.age_ms >= 2000 && told.keys.next_ms == 0, "{told:?}");
        assert!(told.list.others.iter().all(|other| !other.reachable), "{told:?}");
        let words: Vec<String> = complaints(&told).into_iter().map(|c| c.words).collect();
        let words = words.join("; ");
        assert!(words.contains("no part in a majority"), "{words}");
        assert!(words.contains("older than max_key_age"), "{words}");
    }
}
