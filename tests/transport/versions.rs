//! Neighbours that speak other protocol versions.

use super::*;

const fn versions(min: u8, max: u8) -> Versions {
    Versions { min, max }
}

#[tokio::test]
async fn neighbours_of_different_versions_agree_on_the_newest_that_both_speak() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    for (ours, theirs, agreed) in [
        (versions(1, 1), versions(1, 2), 1),
        (versions(1, 2), versions(1, 2), 2),
        (versions(1, 4), versions(2, 3), 3),
    ] {
        let one = Box_::speaking(1, leaf(), ours).await;
        let two = Box_::speaking(2, leaf(), theirs).await;
        for server_ in [&one, &two] {
            server_.peers.set_members(&[one.member(), two.member()]);
        }
        for (from, to) in [(&one, &two), (&two, &one)] {
            // Several at once: none is lost or served twice when the version changes.
            let many = (0..10_u8).map(|n| {
                let peers = from.peers.clone();
                let to = to.id;
                async move { ask(&peers, to, &[n], PATIENCE).await.unwrap()[0] }
            });
            let mut answers = many.collect::<JoinSet<_>>().join_all().await;
            answers.sort_unstable();
            assert_eq!(answers, (0..10).collect::<Vec<_>>());
            assert_eq!(to.begun(), 10);
            assert_eq!(to.service.version.load(Ordering::Relaxed), agreed);
            assert_eq!(to.counters.accepted(), 1, "on one connection");
            assert_eq!(all_refused(&to.counters), 0);
            let tool = LocalIdentity::tool(ServerId(from.id)).speaking(from.versions);
            let tls = from.swap.borrow().clone();
            let (resolver, at) = (Resolver::system(), ("127.0.0.1", to.addr.port()));
            let answer = call_once(&resolver, &tls, &tool, at, b"x", PATIENCE);
            assert_eq!(answer.await.unwrap().as_slice(), b"x");
            assert_eq!(to.service.version.load(Ordering::Relaxed), agreed);
        }
        let lines =
            [&one, &two].map(|b| b.lines.have(Level::Note, &format!("version {agreed} is")));
        assert_eq!(lines, [ours.max > agreed, theirs.max > agreed]);
        for server_ in [&one, &two] {
            let lines = server_.lines.0.lock().unwrap();
            assert!(lines.iter().all(|(level, _)| *level < Level::Warning), "{lines:?}");
        }
    }
}

#[tokio::test]
async fn neighbours_without_a_common_version_part_and_both_say_so() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let one = Box_::speaking(1, leaf(), versions(1, 1)).await;
    let two = Box_::speaking(2, leaf(), versions(2, 3)).await;
    for server_ in [&one, &two] {
        server_.peers.set_members(&[one.member(), two.member()]);
    }
    let to_one = "it speaks protocol versions 2 to 3, this server version 1; run versions";
    let to_two = "it speaks protocol version 1, this server versions 2 to 3; run versions";
    for (from, to, here, there) in [(&one, &two, to_one, to_two), (&two, &one, to_two, to_one)] {
        let error = from.ask(to.id, b"x").await.unwrap_err();
        assert!(error.to_string().contains(here), "{error}");
        until("told", || from.lines.have(Level::Warning, &format!("127.0.0.1:{}", to.addr.port())))
            .await;
        let line = format!("it calls itself server_id {}, and {there}", from.id);
        until("told there", || to.lines.have(Level::Warning, &line)).await;
        until("counted", || to.counters.refused(Cause::Version) == 1).await;
        let tool = LocalIdentity::tool(ServerId(from.id)).speaking(from.versions);
        let tls = from.swap.borrow().clone();
        let answer = call_once(
            &Resolver::system(),
            &tls,
            &tool,
            ("127.0.0.1", to.addr.port()),
            b"x",
            PATIENCE,
        )
        .await;
        assert!(answer.unwrap_err().to_string().contains(here));
        until("counted", || to.counters.refused(Cause::Version) == 2).await;
        assert_eq!(to.service.admitted.load(Ordering::Relaxed), 0);
    }
}
