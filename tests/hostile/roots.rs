//! A root that is taken out of the root file.

use kit::pki::{Authority, Identity, Request};
use stek_share::transport::tls::Tls;

use crate::fleet::{Fleet, SUBJECT};
use crate::insider::{door, Insider};
use crate::{reign, rotate, three_of_four, ENEMY, REAL};

/// TLS for a box of `fleet` that trusts its authority, and `other` if there is one.
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
    let (leader, term) = reign(&fleet);
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
            fleet.boxes[&id].node.set_certificates(tls);
        }
        assert_eq!(knocks(&fleet, &identity), heard);
        let good = fleet.identity(ENEMY);
        assert!(knocks(&fleet, &good), "a good one is refused");
    }
    rotate(&fleet);
    assert_eq!(reign(&fleet), (leader, term), "{}", fleet.describe());
}
