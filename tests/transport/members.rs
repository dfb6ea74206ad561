//! Servers of one authority talk to each other.

use super::*;

#[tokio::test]
async fn servers_of_one_ca_talk_in_both_directions() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    assert_eq!(one.ask(2, b"hello").await.unwrap(), b"hello");
    assert_eq!(two.ask(1, b"").await.unwrap(), b"");
    let long = vec![7; frame::MAX_BODY];
    assert_eq!(one.ask(2, &long).await.unwrap(), long);
    let too_long = vec![7; frame::MAX_BODY + 1];
    assert_eq!(one.ask(2, &too_long).await, Err(CallError::TooLong(too_long.len())));
    assert_eq!(one.ask(9, b"who").await, Err(CallError::UnknownPeer));
    assert_eq!(two.counters.accepted(), 1, "all requests share one connection");
    assert_eq!(two.counters.requests(), 2);
    for (a, b) in [(&one, &two), (&two, &one)] {
        assert!(a.heard.last(ServerId(b.id)).is_some());
        assert!(a.heard.last(ServerId(b.id)).is_some());
        assert!(a.lines.have(Level::Note, &format!("peer {} (127.0.0.1", b.id)));
    }
}

#[tokio::test]
async fn one_self_signed_certificate_serves_as_root_and_leaf() {
    for is_ca in [true, false] {
        let only = Spec { is_ca, ..Spec::default() }.make();
        let (one, two) = pair(tls(&only, &only), tls(&only, &only)).await;
        assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
        assert_eq!(two.ask(1, b"y").await.unwrap(), b"y");
    }
}

#[tokio::test]
async fn a_leaf_for_servers_only_may_dial() {
    let root = pki::root("root");
    let leaf = || {
        let issuer = Some(&root);
        tls(&root, &Spec { issuer, usage: Some("serverAuth"), ..Spec::default() }.make())
    };
    let (one, two) = pair(leaf(), leaf()).await;
    assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
    assert_eq!(two.ask(1, b"y").await.unwrap(), b"y");
}

#[tokio::test]
async fn an_intermediate_is_sent_along() {
    let root = pki::root("root");
    let middle =
        Spec { subject: "/CN=middle", issuer: Some(&root), is_ca: true, ..Spec::default() };
    let middle = middle.make();
    let leaf = pki::leaf(&middle);
    let chain = [leaf.cert_pem(), middle.cert_pem()].concat();
    let tls = || Tls::from_pem(&root.cert_pem(), &chain, &leaf.key_pem(), SUBJECT).unwrap();
    let (one, _two) = pair(tls(), tls()).await;
    assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
    let alone = tls_for(&root, &leaf, SUBJECT);
    assert!(matches!(alone, Err(TlsError::ChainUntrusted { .. })), "{alone:?}");
}

#[tokio::test]
async fn tls_1_2_is_spoken_and_1_1_is_not() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let context = raw_context(Some(&leaf), Some(SslVersion::TLS1_2));
    let mut stream = raw_connect(&context, two.addr).await.unwrap();
    assert_eq!(stream.ssl().version_str(), "TLSv1.2");
    let id = stream.ssl().session().unwrap().id().to_vec();
    assert!(id.is_empty(), "a session that could be resumed: {id:?}");
    let (theirs, answer) = greet(&mut stream, hello(1)).await;
    assert_eq!((theirs.sender, theirs.role, answer), (ServerId(2), Role::Member, 0));
    let (header, body) = exchange(&mut stream, b"abc").await.unwrap();
    assert_eq!((header.kind, body.as_slice()), (Kind::Response, &b"abc"[..]));
    let context = raw_context(Some(&leaf), Some(SslVersion::TLS1_1));
    assert!(raw_connect(&context, two.addr).await.is_err());
    until("counted", || two.counters.refused(Cause::NotOurTls) == 1).await;
}

#[tokio::test]
async fn no_session_ticket_is_issued() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let mut context = SslContextBuilder::new(SslMethod::tls()).unwrap();
    context.set_certificate(&leaf.cert).unwrap();
    context.set_private_key(&leaf.key).unwrap();
    context.set_session_cache_mode(SslSessionCacheMode::CLIENT);
    let tickets = Arc::new(AtomicUsize::new(0));
    let count = tickets.clone();
    context.set_new_session_callback(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut stream = raw_connect(&context.build(), two.addr).await.unwrap();
    assert_eq!(stream.ssl().version_str(), "TLSv1.3");
    greet(&mut stream, hello(1)).await;
    exchange(&mut stream, b"abc").await.unwrap();
    assert_eq!(tickets.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn new_certificates_are_used_by_new_connections() {
    let (old, new) = (pki::root("old"), pki::root("new"));
    let (one, two) = pair(tls(&old, &pki::leaf(&old)), tls(&old, &pki::leaf(&old))).await;
    one.ask(2, b"x").await.unwrap();
    two.swap.send_replace(tls(&new, &pki::leaf(&new)));
    assert!(matches!(one.ask(2, b"old").await, Err(CallError::Unreachable(_))));
    let three = Box_::start(3, tls(&new, &pki::leaf(&new))).await;
    three.peers.set_members(&[two.member()]);
    assert_eq!(three.ask(2, b"new").await.unwrap(), b"new");
    let late = Box_::start(4, tls(&old, &pki::leaf(&old))).await;
    late.peers.set_members(&[two.member()]);
    assert!(matches!(late.ask(2, b"old").await, Err(CallError::Unreachable(_))));
}
