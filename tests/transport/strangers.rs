//! Ends that are not let in, whichever side dialled.

use super::*;

/// Certificates that must open no door, with what is counted for them.
fn bad_identities(root: &Identity) -> Vec<(&'static str, Option<Identity>, Cause)> {
    let foreign = pki::root("root");
    let of_root = Spec { issuer: Some(root), ..Spec::default() };
    let make = |spec: Spec<'_>| Some(spec.make());
    vec![
        ("no certificate", None, Cause::NoCertificate),
        ("a foreign CA", Some(pki::leaf(&foreign)), Cause::Untrusted),
        ("a self-signed one", make(Spec::default()), Cause::Untrusted),
        (
            "a wrong subject",
            make(Spec { subject: "/C=US/ST=IL/O=Yahoo/OU=Edge/CN=stek-sharf", ..of_root.clone() }),
            Cause::WrongSubject,
        ),
        (
            "a longer subject",
            make(Spec {
                subject: "/C=US/ST=IL/O=Yahoo/OU=Edge/CN=stek-share/CN=x",
                ..of_root.clone()
            }),
            Cause::WrongSubject,
        ),
        ("an expired one", make(Spec { not_after: -60, ..of_root.clone() }), Cause::Untrusted),
        ("a future one", make(Spec { not_before: 3600, ..of_root.clone() }), Cause::Untrusted),
        (
            "one for signing code",
            make(Spec { usage: Some("codeSigning"), ..of_root.clone() }),
            Cause::Untrusted,
        ),
        ("one for clients", make(Spec { usage: Some("clientAuth"), ..of_root }), Cause::Untrusted),
    ]
}

#[tokio::test]
async fn strangers_are_neither_heard_nor_answered() {
    let root = pki::root("root");
    let two = Box_::start(2, tls(&root, &pki::leaf(&root))).await;
    for (who, identity, cause) in bad_identities(&root) {
        for newest in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
            let before = two.counters.refused(cause);
            let context = raw_context(identity.as_ref(), Some(newest));
            let got = timeout(Duration::from_secs(5), intrude(&context, two.addr)).await;
            assert_eq!(got.expect(who), b"", "{who}");
            until(who, || two.counters.refused(cause) == before + 1).await;
        }
    }
    let garbage: Vec<u8> =
        (0..9000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [&opening(1, b"in clear")[..], b"GET / HTTP/1.1\r\n\r\n", &garbage, &[0; 512]] {
        let got = timeout(Duration::from_secs(5), intrude_in_clear(bytes, two.addr)).await;
        assert_eq!(got.expect("garbage is closed"), b"");
    }
    until("counted", || two.counters.refused(Cause::NotOurTls) == 4).await;
    assert_eq!(two.counters.accepted(), 0);
    assert_eq!((two.service.admitted.load(Ordering::Relaxed), two.begun()), (0, 0));
}

#[tokio::test]
async fn silent_and_slow_strangers_are_closed_in_time() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let limit = Duration::from_secs(5);
    let silent = async {
        let mut tcp = TcpStream::connect(two.addr).await.unwrap();
        drain(&mut tcp).await
    };
    let dripping = async {
        let (mut read, mut write) = TcpStream::connect(two.addr).await.unwrap().into_split();
        let drip = async {
            // The beginning of a handshake record that never ends.
            let _ = write.write_all(&[22, 3, 1, 1, 0]).await;
            while write.write_all(&[1]).await.is_ok() {
                sleep(Duration::from_millis(100)).await;
            }
            std::future::pending().await
        };
        tokio::select! { got = drain(&mut read) => got, () = drip => Vec::new() }
    };
    let verified_but_mute = async {
        let mut stream = raw_connect(&raw_context(Some(&leaf), None), two.addr).await.unwrap();
        drain(&mut stream).await
    };
    let (a, b, c) = tokio::join!(
        timeout(limit, silent),
        timeout(limit, dripping),
        timeout(limit, verified_but_mute)
    );
    assert_eq!((a, b, c), (Ok(vec![]), Ok(vec![]), Ok(vec![])));
    until("counted", || two.counters.refused(Cause::TooSlow) == 3).await;
    assert_eq!(two.service.admitted.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn silent_strangers_cannot_keep_a_member_out() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    let mut strangers = Vec::new();
    for _ in 0..MAX_HANDSHAKES + 10 {
        strangers.push(TcpStream::connect(two.addr).await.unwrap());
    }
    assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
    assert!(two.counters.refused(Cause::OverLimit) >= 10, "the oldest gave way");
}

#[tokio::test]
async fn an_address_that_tries_in_vain_is_closed_unheard_and_no_other() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    let from = |host: [u8; 4]| async move {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((host, 0).into()).unwrap();
        socket.connect(two.addr).await.unwrap()
    };
    let (stranger, other) = ([127, 2, 0, 1], [127, 2, 0, 2]);
    let bad = raw_context(None, None);
    let knock = |host| {
        let bad = &bad;
        async move {
            if let Ok(mut stream) = raw_connect_by(bad, from(host).await).await {
                drain(&mut stream).await;
            }
        }
    };
    let assessed = || two.counters.refused(Cause::NoCertificate);
    let begun = Instant::now();
    let mut tries = 0;
    while two.counters.refused(Cause::OverRate) < 20 {
        knock(stranger).await;
        tries += 1;
        assert!(begun.elapsed() < PATIENCE, "{tries} in vain and none over the rate");
    }
    // One more than may be in the time that it took: the last one may come before its second.
    let filled = STRANGERS.per_second * (begun.elapsed().as_secs() as u32 + 1);
    let heard = u32::try_from(assessed()).unwrap();
    assert!((STRANGERS.burst..=STRANGERS.burst + filled).contains(&heard), "{heard} of {tries}");
    let before = assessed();
    knock(other).await;
    assert_eq!(assessed(), before + 1, "another address is heard");
    assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
    assert!(two.lines.have(Level::Warning, "refused 127.2.0.1:"));
    assert!(two.lines.have(Level::Warning, "64 at once and 10 a second may"));

    // Whoever is let in may come as often as it likes, as a tool does from a stranger's address.
    let good = raw_context(Some(&pki::leaf(&root)), None);
    let over = two.counters.refused(Cause::OverRate);
    let ask = |role| {
        let good = &good;
        async move {
            let mut stream = raw_connect_by(good, from([127, 2, 0, 3]).await).await.unwrap();
            greet(&mut stream, Hello { role, ..hello(1) }).await;
            exchange(&mut stream, b"x").await.map(drop)
        }
    };
    for number in 0..4 * STRANGERS.burst {
        ask(Role::Tool).await.unwrap_or_else(|error| panic!("number {number}: {error}"));
    }
    assert_eq!(two.counters.refused(Cause::OverRate), over);
    assert!(!two.heard.is_at([127, 2, 0, 3].into()), "a tool is no member");
    // Where a member dialled from, there is a member's bucket from then on.
    ask(Role::Member).await.unwrap();
    assert!(two.heard.is_at([127, 2, 0, 3].into()) && !two.heard.is_at(stranger.into()));
    // And so has one that the list names: a fleet may be behind it.
    let burst = u64::from(RateLimit::of_members(5).burst);
    for host in [[127, 2, 0, 3], [127, 0, 0, 1]] {
        let (over, before) = (two.counters.refused(Cause::OverRate), assessed());
        while two.counters.refused(Cause::OverRate) == over {
            knock(host).await;
            assert!(begun.elapsed() < 2 * PATIENCE, "none over the rate");
        }
        assert!(assessed() - before >= burst, "{host:?}: {} of {burst}", assessed() - before);
    }
}

/// The figure of the acceptance: a thousand of each kind, while a member goes on asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_strangers_of_each_kind() {
    const EACH: usize = 1000;
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    one.ask(2, b"x").await.unwrap();
    let wrong_subject = Spec { subject: "/CN=else", issuer: Some(&root), ..Spec::default() }.make();
    let contexts = [
        Some(raw_context(None, None)),
        Some(raw_context(Some(&pki::leaf(&pki::root("foreign"))), None)),
        Some(raw_context(Some(&wrong_subject), None)),
        None,
    ];
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES / 2));
    let mut strangers = Vec::new();
    for n in 0..4 * EACH {
        let place = places.clone().acquire_owned().await.unwrap();
        let (context, addr) = (contexts[n % 4].clone(), two.addr);
        strangers.push(tokio::spawn(async move {
            let stranger = async {
                match context {
                    Some(context) => intrude(&context, addr).await,
                    None => intrude_in_clear(&opening(1, b"in clear"), addr).await,
                }
            };
            let got = timeout(Duration::from_secs(5), stranger).await;
            drop(place);
            got
        }));
        if n % 100 == 0 {
            assert_eq!(one.ask(2, b"still here").await.unwrap(), b"still here");
        }
    }
    for stranger in strangers {
        assert_eq!(stranger.await.unwrap().expect("closed in time"), b"");
    }
    until("counted", || all_refused(&two.counters) == 4 * EACH as u64).await;
    for cause in [Cause::NoCertificate, Cause::Untrusted, Cause::WrongSubject, Cause::NotOurTls] {
        assert_eq!(two.counters.refused(cause), EACH as u64, "{cause:?}");
    }
    assert_eq!(two.counters.accepted(), 1, "the member's own");
    let heard = 1 + two.counters.requests();
    assert_eq!(two.service.admitted.load(Ordering::Relaxed), heard, "its hello and its requests");
    let lines = two.lines.0.lock().unwrap();
    let warnings = lines.iter().filter(|(level, _)| *level == Level::Warning).count();
    assert!((4..20).contains(&warnings), "one line per cause, not per stranger: {warnings}");
}

/// A rogue listener at a member's address gets nothing either.
#[tokio::test]
async fn nothing_is_sent_to_a_stranger_that_is_dialled() {
    let root = pki::root("root");
    let one = Box_::start(1, tls(&root, &pki::leaf(&root))).await;
    for (who, identity, _) in bad_identities(&root).into_iter().skip(1) {
        let rogue = TcpListener::bind("127.0.0.1:0").await.unwrap();
        one.peers.set_members(&[member(2, rogue.local_addr().unwrap())]);
        let context = raw_context(identity.as_ref(), None);
        let serve = async {
            let (tcp, _) = rogue.accept().await.unwrap();
            let mut stream = SslStream::new(Ssl::new(&context).unwrap(), tcp).unwrap();
            match Pin::new(&mut stream).accept().await {
                Ok(()) => drain(&mut stream).await,
                Err(_) => Vec::new(),
            }
        };
        let (got, answer) = tokio::join!(serve, one.ask(2, b"secret"));
        assert_eq!(got, b"", "{who}");
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{who}: {answer:?}");
        one.peers.set_members(&[]);
    }
    assert!(one.lines.have(Level::Warning, "peer 2"));
}

#[tokio::test]
async fn who_is_refused_by_its_peer_hears_why() {
    let (ours, theirs) = (pki::root("ours"), pki::root("theirs"));
    let both = [ours.cert_pem(), theirs.cert_pem()].concat();
    let leaf = pki::leaf(&theirs);
    // It trusts the other, but not the other way round; with TLS 1.3 that shows at the first read.
    let tls_one = Tls::from_pem(&both, &leaf.cert_pem(), &leaf.key_pem(), SUBJECT).unwrap();
    let (one, two) = pair(tls_one, tls(&ours, &pki::leaf(&ours))).await;
    assert!(matches!(one.ask(2, b"x").await, Err(CallError::Unreachable(_))));
    until("told", || one.lines.have(Level::Warning, "refuses this server's certificate")).await;
    until("counted", || two.counters.refused(Cause::Untrusted) == 1).await;
}

/// With TLS 1.3 a client may believe that it is let in, while the other end refuses its certificate and closes
/// with the rest unread, so that the system resets the connection: before the client's hello, or after it.
#[tokio::test]
async fn a_refusal_is_heard_though_the_connection_was_reset() {
    const TIMES: usize = 100;
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let mut context = SslContextBuilder::new(SslMethod::tls()).unwrap();
    context.set_certificate(&leaf.cert).unwrap();
    context.set_private_key(&leaf.key).unwrap();
    let demanded = SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT;
    context.set_verify_callback(demanded, |_, _| false);
    let (context, listener) = (context.build(), std::net::TcpListener::bind(HERE).unwrap());
    let at = listener.local_addr().unwrap();
    let refusing = std::thread::spawn(move || {
        for _ in 0..TIMES {
            let (tcp, _) = listener.accept().unwrap();
            assert!(Ssl::new(&context).unwrap().accept(tcp).is_err());
        }
    });
    let (tls, me) = (tls(&root, &leaf), LocalIdentity::tool(ServerId(1)));
    for time in 0..TIMES {
        let place = ("127.0.0.1", at.port());
        let answer = ask_once(&Resolver::system(), &tls, &me, place, b"x", PATIENCE).await;
        assert!(matches!(answer, Err(DialError::RefusedUs(_))), "{time}: {answer:?}");
    }
    refusing.join().unwrap();
}
