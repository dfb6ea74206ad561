//! Members whose entry of the server list names a subject of its own.

use super::*;

const NOT_ITS_OWN: &str = "its certificate is not the one listed for this server_id";

#[tokio::test]
async fn members_with_certificates_of_their_own_talk_to_the_others() {
    let root = pki::root("root");
    for common in [SUBJECT, ""] {
        let one = Box_::start(1, tls_as(&root, "/CN=one", common)).await;
        let two = Box_::start(2, tls_as(&root, "/CN=two", common)).await;
        let three = Box_::start(3, tls_as(&root, SUBJECT, common)).await;
        let members = [named(&one, "/CN=one"), named(&two, "/CN=two"), three.member()];
        change_membership(&[&one, &two, &three], &members);
        for (from, to) in [(&one, 2), (&two, 1), (&one, 3), (&three, 1)] {
            assert_eq!(from.ask(to, b"x").await.unwrap(), b"x", "{common:?}: {} {to}", from.id);
        }
    }
}

/// Neither another server's certificate nor the one that all others share is good enough.
#[tokio::test]
async fn a_server_with_a_certificate_that_is_not_its_own_is_refused_on_both_sides() {
    let root = pki::root("root");
    for wrong in ["/CN=three", SUBJECT] {
        let one = Box_::start(1, tls_as(&root, "/CN=one", SUBJECT)).await;
        let two = Box_::start(2, tls_as(&root, wrong, SUBJECT)).await;
        let three = Member { id: ServerId(3), ..named(&one, "/CN=three") };
        change_membership(&[&one, &two], &[named(&one, "/CN=one"), named(&two, "/CN=two"), three]);
        // When it is dialled, not a byte is sent to it.
        let error = one.ask(2, b"secret").await.unwrap_err();
        assert!(error.to_string().contains(NOT_ITS_OWN), "{wrong}: {error}");
        until("told", || one.lines.have(Level::Warning, NOT_ITS_OWN)).await;
        until("told there", || two.lines.have(Level::Warning, "refused our handshake")).await;
        assert_eq!((two.begun(), two.service.admitted.load(Ordering::Relaxed)), (0, 0));
        // When it dials, it is told.
        assert_eq!(two.ask(1, b"x").await, Err(CallError::Refused(Refusal::Certificate)));
        until("counted", || one.counters.refused(Cause::OtherCertificate) == 1).await;
        assert!(one.lines.have(Level::Warning, "calls itself server_id 2, but its certificate"));
        until("told", || two.lines.have(Level::Warning, "refuses this server: its certificate"))
            .await;
        assert_eq!((one.begun(), one.heard.last(ServerId(2))), (0, None));
        // The same for an operator's command that names that server.
        let tls = two.swap.borrow().clone();
        let at = ("127.0.0.1", one.addr.port());
        let refused = call_once(
            &Resolver::system(),
            &tls,
            &LocalIdentity::tool(ServerId(2)),
            at,
            b"x",
            PATIENCE,
        )
        .await;
        assert_eq!(refused, Err(CallError::Refused(Refusal::Certificate)));
        assert_eq!(one.begun(), 0);
    }
}

#[tokio::test]
async fn who_may_connect_follows_the_list() {
    let root = pki::root("root");
    let one = Box_::start(1, tls_as(&root, "/CN=one", "")).await;
    let two = Box_::start(2, tls_as(&root, "/CN=two", "")).await;
    let alone = [named(&one, "/CN=one")];
    let both = [named(&one, "/CN=one"), named(&two, "/CN=two")];
    change_membership(&[&one], &alone);
    change_membership(&[&two], &both);
    assert!(!one.swap.borrow().names_match(&"/CN=any".into()), "each entry names its own");
    assert!(matches!(two.ask(1, b"x").await, Err(CallError::Unreachable(_))));
    until("counted", || one.counters.refused(Cause::WrongSubject) == 1).await;
    assert_eq!(one.service.admitted.load(Ordering::Relaxed), 0, "no frame of it was read");
    change_membership(&[&one], &both);
    let begun = Instant::now();
    while two.ask(1, b"x").await.is_err() {
        assert!(begun.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
    // A connection that is up is checked anew, and closed.
    change_membership(&[&one], &[named(&one, "/CN=one"), named(&two, "/CN=new")]);
    assert!(matches!(two.ask(1, b"x").await, Err(CallError::Unreachable(_))));
}

/// A server may go by any one of its certificate's names; a wildcard, or a name that is written
/// otherwise, is no name of it.
#[tokio::test]
async fn members_may_go_by_alternative_names() {
    let root = pki::root("root");
    let with = |subject: &str, names: &[&str], own: &str| {
        let leaf = Spec { subject, names, issuer: Some(&root), ..Spec::default() }.make();
        let [root, chain, key] = [root.cert_pem(), leaf.cert_pem(), leaf.key_pem()];
        Tls::from_pem_as(&root, &chain, &key, "", Some(own))
    };
    let (host, spiffe) = ("DNS:one.example", "URI:spiffe://example.org/edge/two");
    let one = Box_::start(1, with("/CN=one", &["DNS:ONE.example"], host).unwrap()).await;
    // SPIFFE's certificates need no subject.
    let two = Box_::start(2, with("", &[spiffe, "DNS:two.example"], spiffe).unwrap()).await;
    change_membership(&[&one, &two], &[named(&one, host), named(&two, spiffe)]);
    for (from, to) in [(&one, 2), (&two, 1)] {
        assert_eq!(from.ask(to, b"x").await.unwrap(), b"x", "{} {to}", from.id);
    }
    for wrong in ["DNS:two.example.org", "URI:spiffe://example.org/edge/Two", "/CN=two"] {
        let one = Box_::start(1, with("/CN=one", &[host], host).unwrap()).await;
        change_membership(&[&one], &[named(&one, host), named(&two, wrong)]);
        let error = one.ask(2, b"secret").await.unwrap_err().to_string();
        assert!(error.contains(NOT_ITS_OWN), "{wrong}: {error}");
        assert_eq!(error.contains(spiffe), !wrong.starts_with('/'), "{wrong}: {error}");
    }
    for names in [&["DNS:*.example"][..], &[], &["URI:one.example"], &["DNS:one.example.org"]] {
        let refused = with("/CN=one", names, host).map(drop).unwrap_err();
        let refused = format!("{refused:?}");
        assert!(refused.contains("found: \"/CN=one"), "{refused}");
    }
}
