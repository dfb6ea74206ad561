//! A root that is taken out of the root file.

use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_list::ServerList;
use stek_share::rpc;
use stek_share::transport::tls::Tls;
use testkit::pki::{Authority, Identity, Request};

use crate::fleet::{block_on, wait_for, Fleet, SUBJECT};
use crate::insider::{door, Insider};
use crate::{leader_term, patient, rotate, three_of_four, ENEMY, REAL};

/// TLS for a server of `fleet` that trusts its authority, and `other` if there is one.
fn trusting(fleet: &mut Fleet, id: u32, other: Option<&Authority>) -> Tls {
    let mut roots = fleet.authority.identity.certificate.to_pem().unwrap();
    if let Some(other) = other {
        roots.extend(other.identity.certificate.to_pem().unwrap());
    }
    let own = fleet.identity(id);
    let key = own.key.private_key_to_pem_pkcs8().unwrap();
    Tls::from_pem(&roots, &own.certificate.to_pem().unwrap(), &key, SUBJECT).unwrap()
}

#[test]
fn who_shows_a_certificate_of_a_root_that_was_removed_is_no_longer_heard() {
    let mut fleet = three_of_four();
    let (leader, term) = leader_term(&fleet);
    let old = Authority::new("/O=Edge/CN=Old Root").unwrap();
    let identity = old.issue(&Request::new(SUBJECT)).unwrap();
    let knocks = |fleet: &Fleet, identity: &Identity| {
        Insider::connect_as(fleet, door(fleet, leader), identity)
            .is_some_and(|mut insider| insider.try_status().is_some())
    };
    assert!(!knocks(&fleet, &identity), "a foreign root is trusted");
    for (other, heard) in [(Some(&old), true), (None, false)] {
        for id in 1..=REAL {
            let tls = trusting(&mut fleet, id, other);
            fleet.servers[&id].node.set_certificates(tls);
        }
        assert_eq!(knocks(&fleet, &identity), heard);
        let good = fleet.identity(ENEMY);
        assert!(knocks(&fleet, &good), "a good one is refused");
    }
    rotate(&fleet);
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
}

/// TLS with this certificate, for a server that trusts these authorities.
fn under(roots: &[&Authority], own: &Identity) -> Tls {
    let pems = roots.iter().map(|root| root.identity.certificate.to_pem().unwrap());
    let key = own.key.private_key_to_pem_pkcs8().unwrap();
    let roots: Vec<u8> = pems.flatten().collect();
    Tls::from_pem(&roots, &own.certificate.to_pem().unwrap(), &key, SUBJECT).unwrap()
}

/// Gives the real servers a new root, one step after the other as the handbook has it: both roots
/// are trusted, the certificates change, the old root goes. Nobody waits between the steps.
fn replace_the_root(fleet: &mut Fleet) {
    let old = fleet.authority.clone();
    let new = Authority::new("/O=Edge/CN=New Root").unwrap();
    let of_old: Vec<_> = (1..=REAL).map(|id| fleet.identity(id)).collect();
    let issue = |_| new.issue(&Request::new(SUBJECT)).unwrap();
    let of_new: Vec<_> = (1..=REAL).map(issue).collect();
    for (roots, owns) in
        [(&[&old, &new][..], &of_old), (&[&old, &new][..], &of_new), (&[&new][..], &of_new)]
    {
        for (id, own) in (1..=REAL).zip(owns) {
            fleet.servers[&id].node.set_certificates(under(roots, own));
        }
    }
}

/// The stolen server runs on with its old certificate while the others do what the handbook says.
#[test]
fn what_is_made_after_the_new_root_never_reaches_who_stayed_with_the_old_one() {
    let mut fleet = Fleet::running(ENEMY, patient);
    fleet.wait_until_one();
    rotate(&fleet);
    let stolen = fleet.servers.remove(&ENEMY).unwrap();
    let known = stolen.node_status().current;
    replace_the_root(&mut fleet);
    // The first order that is taken; a leader may have to be found, if the stolen server was it.
    wait_for(
        "the order to revoke to be taken",
        || {
            fleet
                .servers
                .values()
                .any(|b| block_on(b.node.admin_command(AdminCommand::Revoke)).is_ok())
        },
        || fleet.describe(),
    );
    fleet.wait_for_generation(known.0 + 1);
    rotate(&fleet);
    let keys: Vec<_> = fleet.servers.values().map(|b| b.host.latest()[0]).collect();
    let thiefs = stolen.host.sets.lock().unwrap().clone();
    assert!(thiefs.iter().all(|(_, set)| keys.iter().all(|key| !set.contains(key))));
    assert_eq!(stolen.node_status().current, known, "it followed the group");
    let told = fleet.servers.values().any(|b| b.lines.has("it is no longer trusted"));
    assert!(told, "{}", fleet.describe());
}

#[test]
fn who_came_in_under_the_old_root_orders_nothing_afterwards() {
    let mut fleet = three_of_four();
    rotate(&fleet);
    let mut insiders: Vec<_> = (1..=REAL).map(|id| Insider::connect(&mut fleet, id)).collect();
    for insider in &mut insiders {
        insider.status();
    }
    let before = fleet.servers[&1].node_status();
    let members = fleet.members.clone();
    replace_the_root(&mut fleet);
    for mut insider in insiders {
        let order = insider.ask(&rpc::Request::AdminCommand {
            command: AdminCommand::Revoke,
            origin: String::new(),
        });
        assert!(order.is_none(), "{order:?}");
        let replaces = ServerList::new(1, &members).unwrap().digest();
        let list = insider
            .ask(&rpc::Request::ChangeMembership { replaces, members: members[..3].to_vec() });
        assert!(list.is_none(), "{list:?}");
    }
    let after = fleet.servers[&1].node_status();
    assert_eq!((after.current, after.list_version), (before.current, before.list_version));
    rotate(&fleet);
    assert_eq!(fleet.servers[&1].node_status().list_version, before.list_version);
}
