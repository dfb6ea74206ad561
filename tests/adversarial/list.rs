//! Who wants another server list and may not: a server that was removed, one that speaks from
//! elsewhere, one member against the others.

use std::cell::Cell;

use stek_share::core::config::Member;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_id::ServerId;
use stek_share::core::server_list::{Digest, ServerList};
use stek_share::node::NoReload;
use stek_share::rpc::{
    decode_response, encode, ErrorResponse, MembershipRefusal, Request, Response,
};
use stek_share::transport::peers::ask_once;
use stek_share::transport::resolver::Resolver;
use stek_share::transport::tls::Tls;
use stek_share::transport::LocalIdentity;
use testkit::pki::{Identity, Request as CertificateRequest};

use crate::fleet::{block_on, tls_of, wait_for, Fleet, PATIENCE, SUBJECT};
use crate::insider::{door, Insider};
use crate::liar::listen;
use crate::{leader_term, patient, rotate, three_of_four, ENEMY};

fn list(fleet: &Fleet, ids: &[u32]) -> Vec<Member> {
    fleet.members.iter().filter(|m| ids.contains(&m.id.0)).cloned().collect()
}

fn digest(members: &[Member]) -> Digest {
    ServerList::new(0, members).unwrap().digest()
}

/// One server is given a list by its operator, whatever the others' files have.
fn reload(fleet: &Fleet, id: u32, members: Vec<Member>, tls: Tls) -> Result<Option<u64>, NoReload> {
    let mut settings = fleet.settings(id);
    settings.members = members;
    block_on(fleet.servers[&id].node.reload(settings, tls)).map(|reloaded| reloaded.list)
}

/// The operator gives a list to the servers that it has, and has the first of them reload.
fn operator(fleet: &Fleet, ids: &[u32]) -> Result<Option<u64>, NoReload> {
    fleet.give(ids, &list(fleet, ids));
    reload(fleet, ids[0], list(fleet, ids), fleet.tls())
}

fn wait_for_members(fleet: &Fleet, ids: &[u32]) {
    let has_all = |id| fleet.servers[id].node_status().members == ids.len();
    wait_for("the list to count", || ids.iter().all(has_all), || fleet.describe());
}

/// Says something to a server by a connection of its own, as an operator's command does.
fn ask_as(me: &LocalIdentity, tls: &Tls, to: &Member, request: &Request) -> Option<Response> {
    let body = encode(request).unwrap();
    let resolver = Resolver::system();
    let asked = ask_once(&resolver, tls, me, (&to.address, to.port), &body, PATIENCE);
    let (answer, _) = block_on(asked).ok()?;
    Some(decode_response(&answer).unwrap())
}

/// Gives the first of these servers the order to revoke, and waits until none of them has a key of
/// before. That the new one is installed is too soon: until it is used the others are beside it.
fn revoke(fleet: &Fleet, ids: &[u32]) {
    let host = |id: &u32| fleet.servers[id].host.latest();
    let before: Vec<_> = ids.iter().flat_map(host).collect();
    block_on(fleet.servers[&ids[0]].node.admin_command(AdminCommand::Revoke)).unwrap();
    let is_gone = || !ids.iter().flat_map(host).any(|key| before.contains(&key));
    wait_for("the new key alone", is_gone, || fleet.describe());
}

/// With one subject for all, its certificate is as good as anybody's.
#[test]
fn a_server_that_was_removed_cannot_take_itself_in_again() {
    let mut fleet = Fleet::running(4, patient);
    fleet.wait_until_one();
    assert_eq!(operator(&fleet, &[1, 2, 3]), Ok(Some(2)), "{}", fleet.describe());
    wait_for_members(&fleet, &[1, 2, 3]);
    // The fourth goes on with the list that suits it, and wants the others to have it again.
    let want = list(&fleet, &[1, 2, 3, 4]);
    let replaces = digest(&list(&fleet, &[1, 2, 3]));
    let request = || Request::ChangeMembership { replaces, members: want.clone() };
    revoke(&fleet, &[1, 2, 3]);
    let (leader, _) = leader_term(&fleet);
    let identity = fleet.identity(4);
    let thief = tls_of(&fleet.authority.identity, &identity, SUBJECT);
    let to = fleet.members[leader as usize - 1].clone();

    let answer = ask_as(&LocalIdentity::tool(ServerId(1)), &thief, &to, &request());
    assert!(
        matches!(answer, Some(Response::ErrorResponse(ErrorResponse::Malformed))),
        "{answer:?}"
    );
    let as_itself = || ask_as(&LocalIdentity::tool(ServerId(4)), &thief, &to, &request());
    wait_for("the removed one to be refused", || as_itself().is_none(), || fleet.describe());
    let as_member = |id| LocalIdentity::member(ServerId(id), 666, || [0; 16]);
    let answer = ask_as(&as_member(4), &thief, &to, &request());
    assert!(answer.is_none(), "nor is it as a member: {answer:?}");
    // Under the id of one that is up, and of one that is not.
    let down = (1..=3).find(|id| *id != leader).unwrap();
    let up = (1..=3).find(|id| *id != leader && *id != down).unwrap();
    let answer = ask_as(&as_member(up), &thief, &to, &request());
    assert!(refused(&answer), "{answer:?}");
    fleet.kill(down);
    let answer = ask_as(&as_member(down), &thief, &to, &request());
    assert!(refused(&answer), "{answer:?}");
    assert!(fleet.servers[&leader].lines.has("refused a server list from a tool that speaks as"));
    assert_eq!(fleet.servers[&leader].node_status().list_version, 2, "{}", fleet.describe());
    let keys = fleet.servers[&leader].host.latest();
    let has = fleet.servers[&4].host.latest();
    assert!(keys.iter().all(|key| !has.contains(key)), "{keys:?} {has:?}");
}

fn refused(answer: &Option<Response>) -> bool {
    matches!(answer, None | Some(Response::MembershipChanged(Err(MembershipRefusal::NotAtPlace))))
}

/// The enemy's own certificate, listed address and id: a member like any other.
#[test]
fn a_list_is_taken_from_the_address_of_a_member_and_only_if_most_files_have_it() {
    let mut fleet = three_of_four();
    let (leader, _) = leader_term(&fleet);
    let old = digest(&fleet.members);
    let new = list(&fleet, &[1, 2, 3]);
    let identity = fleet.identity(ENEMY);
    let ask = |fleet: &Fleet, replaces: Digest| {
        let request = Request::ChangeMembership { replaces, members: new.clone() };
        let insider = Insider::connect_as(fleet, door(fleet, leader), &identity);
        match insider.expect("a good certificate").ask(&request) {
            Some(Response::MembershipChanged(answer)) => answer,
            other => panic!("{other:?}: {}", fleet.describe()),
        }
    };
    // Nobody answers at its address.
    assert_eq!(ask(&fleet, old), Err(MembershipRefusal::NotAtPlace));
    assert!(fleet.servers[&leader]
        .lines
        .has("refused a server list from server 4 (certificate /C=US"));
    // There it is.
    let (_runtime, _listener, _) = listen(&mut fleet);
    wait_for(
        "the leader to find the enemy",
        || ask(&fleet, old) != Err(MembershipRefusal::NotAtPlace),
        || fleet.describe(),
    );
    // Another list than the present one is to be replaced.
    assert_eq!(ask(&fleet, digest(&new)), Err(MembershipRefusal::Stale(1)));
    let refusal = ask(&fleet, old).unwrap_err();
    let (lacking, silent) = (vec![1, 2, 3], vec![ENEMY]);
    let ids = |ids: Vec<u32>| ids.into_iter().map(ServerId).collect();
    assert_eq!(
        refusal,
        MembershipRefusal::NotInFiles { lacking: ids(lacking), silent: ids(silent) },
        "{}",
        fleet.describe()
    );
    assert!(refusal.to_string().starts_with("servers 1, 2 and 3 do not have this list yet; "));
    // Two of four are no majority; the third makes it one, and whoever asks does not matter.
    fleet.give(&[1, 2], &new);
    let refusal = ask(&fleet, old).unwrap_err();
    assert!(refusal.to_string().starts_with("server 3 does not have this list yet"), "{refusal}");
    fleet.give(&[3], &new);
    assert_eq!(ask(&fleet, old), Ok(2), "{}", fleet.describe());
    wait_for_members(&fleet, &[1, 2, 3]);
    assert!(fleet.servers[&leader].lines.has("server list version 2 (digest "));
    assert!(fleet.servers[&leader].lines.has("ordered by server 4 (certificate /C=US/ST=IL"));
    rotate(&fleet);
}

/// Three servers with a subject for each, and five more of an enemy who has the third one's machine
/// and, so that the list is as good as it can be, certificates of the root for all five.
#[test]
fn one_member_alone_cannot_outnumber_the_others() {
    let mut fleet = Fleet::new(8, patient);
    let subject = |id: u32| format!("/O=Edge/CN=server-{id}");
    for member in &mut fleet.members {
        member.subject = Some(subject(member.id.0));
    }
    let issue = |id| fleet.authority.issue(&CertificateRequest::new(&subject(id))).unwrap();
    let own: Vec<Identity> = (1..=8).map(issue).collect();
    let tls = |fleet: &Fleet, id: u32| {
        let own = &own[id as usize - 1];
        let root = fleet.authority.identity.certificate.to_pem().unwrap();
        let key = own.key.private_key_to_pem_pkcs8().unwrap();
        let chain = own.certificate.to_pem().unwrap();
        Tls::from_pem_as(&root, &chain, &key, "", Some(&subject(id))).unwrap()
    };
    let (good, all) = (list(&fleet, &[1, 2, 3]), fleet.members.clone());
    for id in 1..=8 {
        let mut settings = fleet.settings(id);
        settings.members = if id <= 3 { good.clone() } else { all.clone() };
        let tls = tls(&fleet, id);
        fleet.start_with(id, settings, tls);
        if id == 3 {
            fleet.wait_until_one();
        }
    }
    // All that one server can do, with its own file and those of the new peers.
    fleet.give(&[3], &all);
    let heard = Cell::new(None);
    wait_for(
        "the new peers to be there",
        || {
            let answer = reload(&fleet, 3, all.clone(), tls(&fleet, 3));
            let absent = matches!(answer, Err(NoReload::List(MembershipRefusal::TooFew { .. })));
            heard.set(Some(answer));
            !absent
        },
        || fleet.describe(),
    );
    let answer = heard.take().expect("it was asked");
    let words = answer.unwrap_err().to_string();
    let expected = "servers 1 and 2 do not have this list yet: put the same server_list_file on \
                    all servers, then reload one";
    assert!(words.ends_with(expected), "{words}: {}", fleet.describe());
    assert_eq!(fleet.servers[&1].node_status().list_version, 1);

    // The operator takes it out, with all that it brought; what its own file says does not matter.
    let two = list(&fleet, &[1, 2]);
    fleet.give(&[1, 2], &two);
    let done = reload(&fleet, 1, two, tls(&fleet, 1));
    assert_eq!(done, Ok(Some(2)), "{}", fleet.describe());
    wait_for_members(&fleet, &[1, 2]);
    revoke(&fleet, &[2, 1]);
    let keys = fleet.servers[&1].host.latest();
    let has = fleet.servers[&3].host.latest();
    assert!(keys.iter().all(|key| !has.contains(key)), "{keys:?} {has:?}");
}
