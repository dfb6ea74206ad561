//! Verified ends that break the rules, or take more than their share.

use super::*;

#[tokio::test]
async fn who_is_no_member_is_told_so() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let two = Box_::start(2, leaf()).await;
    let nobody = Box_::start(6, leaf()).await;
    nobody.peers.set_members(&[two.member()]);
    assert_eq!(nobody.ask(2, b"x").await, Err(CallError::Refused(Refusal::NotAMember)));
    until("told", || nobody.lines.have(Level::Warning, "refuses this server")).await;
    until("counted", || two.counters.refused(Cause::NotAMember) == 1).await;
    assert!(two.lines.have(Level::Warning, "calls itself server_id 6"));
    assert_eq!((two.begun(), two.heard.last(ServerId(6))), (0, None));
}

#[tokio::test]
async fn a_server_that_is_another_one_is_not_asked_twice() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = (Box_::start(1, leaf()).await, Box_::start(2, leaf()).await);
    one.peers.set_members(&[member(3, two.addr)]);
    assert!(matches!(one.ask(3, b"x").await, Err(CallError::Unreachable(_))));
    until("told", || one.lines.have(Level::Warning, "calls itself server_id 2")).await;
    assert_eq!(one.heard.last(ServerId(3)), None);
}

#[tokio::test]
async fn a_member_that_breaks_the_rules_is_closed() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let context = raw_context(Some(&leaf), None);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let with = |at: usize, byte: u8| {
        let mut bytes = opening(1, b"body");
        bytes[at] = byte;
        bytes
    };
    let say = |bytes: &[u8]| [&frame::encode_hello(&hello(1), 0), bytes].concat();
    let cases = [
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Cause::BadFrame, 0),
        ("no version", with(0, 0), Cause::BadFrame, 0),
        ("a long hello", with(5, 1), Cause::BadFrame, 0),
        ("a short hello", with(7, 29), Cause::BadFrame, 0),
        ("role", with(8, 9), Cause::BadFrame, 0),
        ("version", [&[9, 9][..], &opening(1, b"body")[2..]].concat(), Cause::Version, 0),
        ("oversized", say(&[0, 0x10, 0, 1]), Cause::BadFrame, 0),
        ("huge", say(&[0xff; 64]), Cause::BadFrame, 0),
        ("too short", with(HELLO_LEN + 3, 20), Cause::BadFrame, 0),
        ("response", say(&framed(Kind::Response, b"")), Cause::BadFrame, 0),
        ("no request", opening(1, b"X"), Cause::BadFrame, 1),
    ];
    for (what, bytes, cause, served) in cases {
        let (counted, begun) = (two.counters.refused(cause), two.begun());
        let mut stream = raw_connect(&context, two.addr).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let got = timeout(Duration::from_secs(5), drain(&mut stream)).await.expect(what);
        // What shows that it is a peer is answered: it is told who speaks, and which versions.
        let answered = if bytes.starts_with(&hello_start(1)) || what == "version" {
            frame::encode_hello(&Hello { incarnation: 77, ..hello(2) }, 0)
        } else {
            Vec::new()
        };
        assert_eq!(got, answered, "{what}");
        until(what, || two.counters.refused(cause) == counted + 1).await;
        assert_eq!(two.begun(), begun + served, "{what}");
    }
    assert!(two.lines.have(
        Level::Warning,
        &format!("it speaks protocol version 9, this server version {}", frame::VERSION_MAX)
    ));
    assert!(two.lines.have(Level::Warning, "refused 127.0.0.1:"));
}

/// The part of a hello that none of the faults is in.
fn hello_start(sender: u32) -> Vec<u8> {
    frame::encode_hello(&hello(sender), 0)[..HELLO_LEN - 1].to_vec()
}

/// So that a later version may say more: a kind, or a one-way message, that means nothing here.
#[tokio::test]
async fn what_means_nothing_here_and_wants_no_answer_is_counted_and_passed_over() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let context = raw_context(Some(&leaf), None);
    let mut stream = established(&context, two.addr, hello(1)).await;
    for (count, kind) in [(1, Kind::OneWay), (2, Kind::Unknown(3)), (3, Kind::Unknown(255))] {
        stream.write_all(&framed(kind, b"X")).await.unwrap();
        assert_eq!(exchange(&mut stream, b"next").await.unwrap().1, b"next", "{kind:?}");
        assert_eq!(two.counters.passed_over(), count);
    }
    assert!(two.lines.have(Level::Note, "server 1 sent a message that means nothing"));
    assert_eq!((two.counters.accepted(), all_refused(&two.counters)), (1, 0));
}

/// A hello that a later version made longer is understood as far as it is known.
#[tokio::test]
async fn a_longer_hello_of_a_later_version_is_answered() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let mut stream = raw_connect(&raw_context(Some(&leaf), None), two.addr).await.unwrap();
    let later = Hello { versions: Versions { min: 1, max: 4 }, ..hello(1) };
    let mut longer = frame::encode_hello(&later, 0);
    longer[7] += 8;
    longer.extend_from_slice(b"receiver");
    stream.write_all(&longer).await.unwrap();
    let (theirs, answer) = frame::read_hello(&mut stream).await.unwrap().unwrap();
    assert_eq!((theirs.versions, answer), (Versions::OURS, 0));
    assert_eq!(exchange(&mut stream, b"x").await.unwrap().1, b"x");
}

#[tokio::test]
async fn one_certificate_cannot_take_the_places_of_others() {
    let root = pki::root("root");
    let (own, enemy) = (pki::leaf(&root), pki::leaf(&root));
    let bounds = Bounds { spare: 4, ..Bounds::default() };
    let two = Box_::within(2, tls(&root, &pki::leaf(&root)), bounds).await;
    let (own, enemy) = (raw_context(Some(&own), None), raw_context(Some(&enemy), None));
    let stays = |sender, role| Hello { role, ..hello(sender) };
    let mut kept = Vec::new();
    // Four times as many as there are places, under each id, as a tool, and saying nothing.
    for round in 0..4 * CONNECTIONS_PER_MEMBER {
        for sender in [1, 3, 4] {
            kept.push(established(&enemy, two.addr, stays(sender, Role::Member)).await);
        }
        kept.push(established(&enemy, two.addr, stays(1, Role::Tool)).await);
        kept.push(raw_connect(&enemy, two.addr).await.unwrap());
        if round == 0 {
            assert_eq!(two.counters.refused(Cause::OverLimit), 0);
        }
    }
    let most = 3 * CONNECTIONS_PER_MEMBER + bounds.spare;
    until("no more than may stand", || two.listener.connections() <= most).await;
    assert!(two.lines.have(Level::Warning, "has too many; it gave way"));
    // A member and a tool of another certificate come, and stay whatever the enemy does.
    let mut member = established(&own, two.addr, stays(1, Role::Member)).await;
    let mut tool = established(&own, two.addr, stays(1, Role::Tool)).await;
    for _ in 0..2 * CONNECTIONS_PER_MEMBER {
        kept.push(established(&enemy, two.addr, stays(1, Role::Member)).await);
        kept.push(established(&enemy, two.addr, stays(1, Role::Tool)).await);
    }
    for stream in [&mut member, &mut tool] {
        exchange(stream, b"x").await.expect("it stands");
    }
    until("no more than may stand", || two.listener.connections() <= most).await;
}

#[tokio::test]
async fn a_member_that_comes_back_again_and_again_is_always_let_in() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let context = raw_context(Some(&leaf), None);
    let mut kept = Vec::new();
    // As after power cuts: nobody closed the earlier ones.
    for _ in 0..3 * CONNECTIONS_PER_MEMBER {
        kept.push(established(&context, two.addr, hello(1)).await);
    }
    until("the oldest gave way", || two.listener.connections() == CONNECTIONS_PER_MEMBER).await;
    let newest = kept.last_mut().unwrap();
    exchange(newest, b"x").await.unwrap();
    drop(kept);
    until("all are gone", || two.listener.connections() == 0).await;
}

#[tokio::test]
async fn idle_and_stuck_connections_are_closed() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let context = raw_context(Some(&leaf), None);
    let mut idle = established(&context, two.addr, hello(1)).await;
    let mut stuck = established(&context, two.addr, hello(1)).await;
    stuck.write_all(&request(b"half of it")[..20]).await.unwrap();
    // Until the half frame is there, only so many milliseconds pass; then ten seconds at once.
    sleep(Duration::from_millis(200)).await;
    tokio::time::pause();
    tokio::time::advance(FRAME_LIMIT + Duration::from_secs(1)).await;
    tokio::time::resume();
    let rest = timeout(PATIENCE, drain(&mut stuck)).await;
    assert_eq!(rest.expect("it is closed"), b"");
    until("counted", || two.counters.refused(Cause::TooSlow) == 1).await;
    assert_eq!(two.listener.connections(), 1);
    tokio::time::pause();
    tokio::time::advance(IDLE_LIMIT).await;
    tokio::time::resume();
    let rest = timeout(PATIENCE, drain(&mut idle)).await;
    assert_eq!(rest.expect("it is closed"), b"");
    until("closed", || two.listener.connections() == 0).await;
}
