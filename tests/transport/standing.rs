//! Connections that stand: whether they still would be let in, and how long they may stand.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use openssl::stack::Stack;

use super::*;
use stek_share::transport::CLOCK_LOOK;

/// Two servers, each of which dialled the other: four ends of connections.
async fn linked(one: Tls, two: Tls) -> (Box_, Box_) {
    let (one, two) = pair(one, two).await;
    one.ask(2, b"x").await.unwrap();
    two.ask(1, b"x").await.unwrap();
    (one, two)
}

/// Has server two, which would not let server one in now, go on: neither hears the other.
async fn assert_parted(one: &Box_, two: &Box_) {
    let (heard_one, heard_two) = (one.begun(), two.begun());
    let (out, back) = tokio::join!(two.ask(1, b"key"), one.ask(2, b"order"));
    assert!(matches!(out, Err(CallError::Unreachable(_))), "{out:?}");
    assert!(matches!(back, Err(CallError::Unreachable(_))), "{back:?}");
    two.peers.send_one_way(ServerId(1), Body::new(b"note".to_vec()), PATIENCE);
    until("no connection stands", || two.listener.connections() == 0).await;
    until("nor there", || one.listener.connections() == 0).await;
    assert_eq!((one.begun(), two.begun()), (heard_one, heard_two), "something was heard");
    assert!(two.lines.have(Level::Warning, "it is no longer trusted"));
}

#[tokio::test]
async fn a_new_root_ends_what_the_old_one_let_in() {
    let (old, new) = (pki::root("old"), pki::root("new"));
    let (one, two) = linked(tls(&old, &pki::leaf(&old)), tls(&old, &pki::leaf(&old))).await;
    // An order that is being served, and a question that waits for its answer.
    let asking = |peers: &Arc<Peers>, to| {
        let peers = Arc::clone(peers);
        tokio::spawn(async move { ask(&peers, to, b"W", PATIENCE).await })
    };
    let asked = [asking(&one.peers, 2), asking(&two.peers, 1)];
    until("both are served", || one.begun() == 2 && two.begun() == 2).await;
    two.swap.send_replace(tls(&new, &pki::leaf(&new)));
    two.service.release.notify_one();
    one.service.release.notify_one();
    for asked in asked {
        let answer = timeout(PATIENCE, asked).await.unwrap().unwrap();
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{answer:?}");
    }
    assert_parted(&one, &two).await;
}

/// Many threads, so that the change comes in the midst of what the connection's tasks do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_made_after_the_change_is_sent() {
    let (old, new) = (pki::root("old"), pki::root("new"));
    for _ in 0..20 {
        let (one, two) = linked(tls(&old, &pki::leaf(&old)), tls(&old, &pki::leaf(&old))).await;
        let fresh = tls(&new, &pki::leaf(&new));
        let mut asking = JoinSet::new();
        for _ in 0..8 {
            let peers = two.peers.clone();
            asking.spawn(async move { while ask(&peers, 1, b"old", PATIENCE).await.is_ok() {} });
        }
        let before = one.begun();
        until("all are at it", || one.begun() > before + 20).await;
        two.swap.send_replace(fresh);
        let answer = two.ask(1, b"key").await;
        assert!(matches!(answer, Err(CallError::Unreachable(_))), "{answer:?}");
        while asking.join_next().await.is_some() {}
        let begun = one.service.begun.lock().unwrap();
        assert!(!begun.iter().any(|(_, body)| body == b"key"), "the key was sent");
    }
}

#[tokio::test]
async fn another_cert_verify_str_ends_what_the_old_one_let_in() {
    let root = pki::root("root");
    let (one, two) = linked(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    two.swap.send_replace(tls_as(&root, "/CN=new", "/CN=new"));
    assert_parted(&one, &two).await;
}

#[tokio::test]
async fn who_leaves_the_list_is_cut_off_at_once() {
    let root = pki::root("root");
    let leaf = |subject| tls_as(&root, subject, "");
    let one = Box_::start(1, leaf("/CN=one")).await;
    let two = Box_::start(2, leaf("/CN=two")).await;
    let three = Box_::start(3, leaf("/CN=three")).await;
    let members = [named(&one, "/CN=one"), named(&two, "/CN=two"), named(&three, "/CN=three")];
    change_membership(&[&one, &two, &three], &members);
    for (from, to) in [(&one, 2), (&two, 1), (&three, 2)] {
        from.ask(to, b"x").await.unwrap();
    }
    // Its subject is another one from now on; server 3 has nothing to do with it.
    let renamed = Member { subject: Some("/CN=else".to_owned()), ..members[0].clone() };
    change_membership(&[&two], &[renamed, members[1].clone(), members[2].clone()]);
    until("cut off", || two.listener.connections() == 1 && one.listener.connections() == 0).await;
    assert!(matches!(two.ask(1, b"key").await, Err(CallError::Unreachable(_))));
    assert!(matches!(one.ask(2, b"order").await, Err(CallError::Unreachable(_))));
    assert_eq!(three.ask(2, b"x").await.unwrap(), b"x");
    assert_eq!((one.begun(), two.begun()), (1, 3));
}

/// With one subject for all the service alone knows who is a member.
#[tokio::test]
async fn a_list_without_a_member_ends_its_connections_though_its_subject_is_good() {
    let root = pki::root("root");
    let (one, two) = linked(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let peers = one.peers.clone();
    let asked = tokio::spawn(async move { ask(&peers, 2, b"W", PATIENCE).await });
    until("it is served", || two.begun() == 2).await;
    two.service.members.lock().unwrap().remove(&1);
    change_membership(&[&two], &[two.member()]);
    two.service.release.notify_one();
    let answer = asked.await.unwrap();
    assert!(matches!(answer, Err(CallError::Unreachable(_))), "{answer:?}");
    assert_eq!(two.ask(1, b"key").await, Err(CallError::UnknownPeer));
    until("gone", || one.listener.connections() + two.listener.connections() == 0).await;
    assert_eq!(one.ask(2, b"order").await, Err(CallError::Refused(Refusal::NotAMember)));
    assert_eq!((one.begun(), two.begun()), (1, 2));
}

#[tokio::test]
async fn an_expired_certificate_ends_its_connections() {
    let root = pki::root("root");
    let good = || tls(&root, &pki::leaf(&root));
    let of_root = Spec { issuer: Some(&root), not_after: 3, ..Spec::default() };
    // A leaf that lasts below an authority that does not is no better.
    for has_middle in [false, true] {
        let (leaf, middle) = if !has_middle {
            (of_root.make(), None)
        } else {
            let middle = Spec { subject: "/CN=middle", is_ca: true, ..of_root.clone() }.make();
            (pki::leaf(&middle), Some(middle.cert_pem()))
        };
        let chain = [leaf.cert_pem(), middle.unwrap_or_default()].concat();
        let brief = Tls::from_pem(&root.cert_pem(), &chain, &leaf.key_pem(), SUBJECT).unwrap();
        let (one, two) = linked(brief, good()).await;
        // Nothing is asked meanwhile: time alone ends them, without a look at them before.
        until("it has expired", || two.lines.have(Level::Warning, "certificate has expired")).await;
        assert_parted(&one, &two).await;
    }
}

/// A wall clock that stands still, and shows what it is told to.
struct Clock(PathBuf);

impl Clock {
    const FILE: &str = "STEK_TEST_CLOCK_FILE";

    /// Runs this very test once more under such a clock. `None` in the test that did so.
    fn of_its_own(test: &str) -> Option<Clock> {
        if let Some(file) = std::env::var_os(Clock::FILE) {
            return Some(Clock(file.into()));
        }
        let dirs = std::fs::read_dir("/usr/lib").unwrap().flatten();
        let mut libs = dirs.map(|dir| dir.path().join("faketime/libfaketime.so.1"));
        let lib = libs.find(|lib| lib.exists());
        let lib = lib.expect("`make deps` installs Debian's faketime");
        let dir = testkit::run_dir::RunDir::new("clock").unwrap();
        let clock = Clock(dir.path().join("clock"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        clock.show(now.as_secs());
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", test, "--nocapture"]).env(Clock::FILE, &clock.0);
        again.env("LD_PRELOAD", lib).env("FAKETIME_TIMESTAMP_FILE", &clock.0);
        again.env("FAKETIME_FMT", "%s").env("TZ", "UTC");
        again.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let ran = again.output().unwrap();
        let words = [ran.stdout, ran.stderr].concat();
        let words = String::from_utf8_lossy(&words);
        assert!(ran.status.success() && words.contains("1 passed"), "{words}");
        dir.done().unwrap();
        None
    }

    /// Renamed into place, so that no reader meets a half written file.
    fn show(&self, seconds: u64) {
        let fresh = self.0.with_extension("new");
        std::fs::write(&fresh, format!("{seconds}\n")).unwrap();
        std::fs::rename(&fresh, &self.0).unwrap();
    }

    fn now(&self) -> u64 {
        let shown = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(shown.subsec_nanos(), 0, "it does not stand still");
        shown.as_secs()
    }
}

/// Lets the timers run so far ahead, and with them nothing but the timers; whom they wake has its
/// turn.
async fn ahead(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// The wall clock is set to the last second in which a chain is valid, and to the next one; or, as
/// time servers may have it, to the first one and to the one before.
#[tokio::test]
async fn a_certificate_ends_its_connections_to_the_second() {
    let test = "standing::a_certificate_ends_its_connections_to_the_second";
    let Some(clock) = Clock::of_its_own(test) else { return };
    let (begin, end) = (clock.now() - 1000, clock.now() + 1000);
    let root = pki::root("root");
    let brief = Spec { issuer: Some(&root), not_before: -1000, not_after: 1000, ..Spec::default() };
    let brief = brief.make();
    for (stands, ends) in [(end - 1, end), (begin, begin - 1)] {
        for at_rest in [true, false] {
            let (one, two) = linked(tls(&root, &brief), tls(&root, &pki::leaf(&root))).await;
            let middle = clock.now();
            clock.show(stands);
            ahead(CLOCK_LOOK).await;
            let (a, b) = tokio::join!(one.ask(2, b"x"), two.ask(1, b"y"));
            assert_eq!((a.unwrap(), b.unwrap()), (b"x".to_vec(), b"y".to_vec()));
            assert_eq!((one.counters.accepted(), two.counters.accepted()), (1, 1));
            // All that the questions had timers set for is over.
            ahead(Duration::from_secs(120)).await;
            clock.show(ends);
            if at_rest {
                ahead(CLOCK_LOOK).await;
                until("none stands", || two.lines.have(Level::Warning, "no longer trusted")).await;
            }
            assert_parted(&one, &two).await;
            clock.show(middle);
        }
    }
}

#[test]
fn a_chain_is_assessed_valid_while_each_of_its_certificates_is() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let root = Spec { subject: "/CN=root", is_ca: true, not_after: 900, ..Spec::default() };
    let assessed = |times: [i64; 4]| {
        let root = root.make();
        let of = |issuer, not_before, not_after| Spec {
            issuer: Some(issuer),
            not_before,
            not_after,
            ..Spec::default()
        };
        let middle = Spec { subject: "/CN=middle", is_ca: true, ..of(&root, times[0], times[1]) };
        let middle = middle.make();
        let leaf = of(&middle, times[2], times[3]).make();
        let mut rest = Stack::new().unwrap();
        rest.push(middle.cert).unwrap();
        tls(&root, &pki::leaf(&root)).assess(&leaf.cert, &rest).unwrap()
    };
    for (times, from, to) in [
        ([-200, 500, -300, 400], -200, 400),
        ([-200, 300, -100, 400], -100, 300),
        ([-200, 5000, -9000, 4000], -200, 900),
    ] {
        // Made within one second, on a machine that has one to spare.
        let (now, valid) = loop {
            let begun = now();
            let valid = assessed(times);
            if now() == begun {
                break (begun, valid);
            }
        };
        let at = |offset| UNIX_EPOCH + Duration::from_secs(now.checked_add_signed(offset).unwrap());
        assert_eq!(valid, at(from)..at(to), "{times:?}");
    }
}

#[tokio::test]
async fn what_has_nothing_to_do_with_a_connection_leaves_it_alone() {
    let (root, other) = (pki::root("root"), pki::root("other"));
    let leaf = [pki::leaf(&root), pki::leaf(&root)];
    let (one, two) = linked(tls(&root, &leaf[0]), tls(&root, &leaf[1])).await;
    let both = [root.cert_pem(), other.cert_pem()].concat();
    let more = Tls::from_pem(&both, &leaf[1].cert_pem(), &leaf[1].key_pem(), SUBJECT).unwrap();
    let members = [one.member(), two.member(), member(3, one.addr)];
    for _ in 0..10 {
        two.swap.send_replace(tls(&root, &leaf[1]));
        change_membership(&[&one, &two], &members);
        two.swap.send_replace(more.clone());
        change_membership(&[&one, &two], &members[..2]);
        let (a, b) = tokio::join!(one.ask(2, b"x"), two.ask(1, b"y"));
        assert_eq!((a.unwrap(), b.unwrap()), (b"x".to_vec(), b"y".to_vec()));
    }
    assert_eq!((one.counters.accepted(), two.counters.accepted()), (1, 1));
}

/// A bound of age that a test can wait for.
fn aging(max_age: Duration) -> Bounds {
    Bounds { max_age, ..Bounds::default() }
}

async fn aged_pair(max_age: Duration) -> (Box_, Box_) {
    let root = pki::root("root");
    let start = |id| Box_::within(id, tls(&root, &pki::leaf(&root)), aging(max_age));
    let (one, two) = (start(1).await, start(2).await);
    let members = [one.member(), two.member()];
    one.peers.set_members(&members);
    two.peers.set_members(&members);
    (one, two)
}

#[tokio::test]
async fn whoever_is_gone_is_told_of_at_once_and_a_renewed_connection_is_no_loss() {
    let (one, two) = aged_pair(Duration::from_millis(400)).await;
    one.ask(2, b"x").await.unwrap();
    until("it is renewed", || two.counters.accepted() >= 3).await;
    let early = timeout(Duration::from_millis(50), two.heard.lost()).await;
    assert!(early.is_err(), "{early:?}");
    drop(one);
    let lost = timeout(PATIENCE, two.heard.lost()).await.unwrap();
    assert_eq!(lost, [ServerId(1)].into());
    // Its port may be closed a moment later.
    let begun = Instant::now();
    while !matches!(two.ask(1, b"x").await, Err(CallError::NobodyListens(_))) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", two.ask(1, b"x").await);
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_connection_is_renewed_and_nothing_is_lost() {
    let (one, two) = aged_pair(Duration::from_millis(1500)).await;
    one.ask(2, b"x").await.unwrap();
    let (mut sent, mut most, begun) = (0, 0, Instant::now());
    while two.counters.accepted() < 5 {
        assert!(begun.elapsed() < PATIENCE, "it is not renewed");
        // Requests whose answers come late lie across the changes.
        let peers = one.peers.clone();
        let slow = tokio::spawn(async move { ask(&peers, 2, b"W", PATIENCE).await });
        for _ in 0..10 {
            one.peers.send_one_way(ServerId(2), Body::new(b"note".to_vec()), PATIENCE);
            sent += 1;
            assert_eq!(one.ask(2, b"still").await.unwrap(), b"still");
            most = most.max(two.listener.connections());
            assert!(one.heard.at_address(ServerId(2)).is_some(), "it counts as away");
            sleep(Duration::from_millis(10)).await;
        }
        two.service.release.notify_one();
        assert_eq!(slow.await.unwrap().unwrap(), b"W");
    }
    let notes = two.service.begun.lock().unwrap().iter().filter(|b| b.1 == b"note").count();
    assert_eq!(notes, sent);
    assert!(most <= 3, "{most} connections at a time");
    until("the old one is gone", || two.listener.connections() == 1).await;
    assert_eq!((all_refused(&one.counters), all_refused(&two.counters)), (0, 0));
    assert!(!one.lines.have(Level::Note, "is down"));
    assert_eq!(one.lines.0.lock().unwrap().iter().filter(|l| l.1.contains("is up")).count(), 1);
}

/// Nothing is asked, so nobody but the timers renews it.
#[tokio::test]
async fn a_connection_at_rest_is_renewed_too_and_no_service_is_asked() {
    let (one, two) = aged_pair(Duration::from_millis(600)).await;
    one.ask(2, b"x").await.unwrap();
    until("it was renewed", || two.counters.accepted() >= 4).await;
    assert_eq!((two.counters.requests(), two.begun()), (1, 1));
    assert_eq!(all_refused(&two.counters), 0);
}

#[tokio::test]
async fn a_certificate_of_its_own_that_is_new_renews_what_a_server_dialled() {
    let root = pki::root("root");
    let (one, two) = linked(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    one.swap.send_replace(tls(&root, &pki::leaf(&root)));
    until("renewed", || two.counters.accepted() == 2 && two.listener.connections() == 1).await;
    assert_eq!(one.ask(2, b"x").await.unwrap(), b"x");
    assert_eq!((one.counters.accepted(), two.counters.accepted()), (1, 2));
    assert!(!one.lines.have(Level::Note, "is down"));
}

#[tokio::test]
async fn who_never_renews_is_closed_at_full_age() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::within(2, tls(&root, &leaf), aging(Duration::from_secs(1))).await;
    let mut stream = raw_connect(&raw_context(Some(&leaf), None), two.addr).await.unwrap();
    let begun = Instant::now();
    greet(&mut stream, hello(1)).await;
    stream.write_all(&request(b"N")).await.unwrap();
    let got = timeout(PATIENCE, drain(&mut stream)).await.expect("it is closed");
    assert_eq!(got, b"");
    assert!(begun.elapsed() >= Duration::from_millis(900));
}
