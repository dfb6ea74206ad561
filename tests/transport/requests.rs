//! Requests and one-way messages over connections that come and go.

use super::*;

#[tokio::test]
async fn requests_begin_in_order_and_do_not_wait_for_each_other() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    one.ask(2, b"first").await.unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let peers = one.peers.clone();
            tokio::spawn(async move { ask(&peers, 2, b"W", PATIENCE).await })
        })
        .collect();
    until("the long ones are being served", || two.begun() == 4).await;
    let mut many = JoinSet::new();
    for n in 0..20_u8 {
        // On this runtime of one thread, tasks are first polled in the order of their making.
        let peers = one.peers.clone();
        many.spawn(async move { ask(&peers, 2, &[n], PATIENCE).await.unwrap()[0] });
    }
    let mut answers = many.join_all().await;
    answers.sort_unstable();
    assert_eq!(answers, (0..20).collect::<Vec<_>>());
    let begun: Vec<u8> = two.service.begun.lock().unwrap()[4..].iter().map(|b| b.1[0]).collect();
    assert_eq!(begun, (0..20).collect::<Vec<_>>());
    for _ in 0..3 {
        two.service.release.notify_one();
    }
    for request in waiting {
        assert_eq!(request.await.unwrap().unwrap(), b"W");
    }
    assert_eq!(two.counters.accepted(), 1);
}

#[tokio::test]
async fn more_requests_than_are_served_at_once_wait_their_turn() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let all = MAX_IN_FLIGHT + 8;
    let waiting: Vec<_> = (0..all)
        .map(|_| {
            let peers = one.peers.clone();
            tokio::spawn(async move { ask(&peers, 2, b"W", PATIENCE).await })
        })
        .collect();
    until("as many as may are served", || two.begun() == MAX_IN_FLIGHT).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(two.begun(), MAX_IN_FLIGHT);
    for served in 1..=all {
        two.service.release.notify_one();
        until("the next one is served", || two.begun() == (MAX_IN_FLIGHT + served).min(all)).await;
    }
    for request in waiting {
        assert_eq!(request.await.unwrap().unwrap(), b"W");
    }
}

#[tokio::test]
async fn a_dialler_without_measure_is_read_no_further() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let two = Box_::start(2, tls(&root, &leaf)).await;
    let mut stream = raw_connect(&raw_context(Some(&leaf), None), two.addr).await.unwrap();
    let all = MAX_IN_FLIGHT + 8;
    greet(&mut stream, hello(1)).await;
    stream.write_all(&request(b"W").repeat(all)).await.unwrap();
    until("as many as may are served", || two.begun() == MAX_IN_FLIGHT).await;
    // Long enough for a further one to show, had it been read.
    sleep(Duration::from_millis(100)).await;
    assert_eq!(two.begun(), MAX_IN_FLIGHT);
    for served in 1..=all {
        two.service.release.notify_one();
        stream.read_exact(&mut [0; HEADER_LEN + 1]).await.unwrap();
        until("the next is served", || two.begun() == (MAX_IN_FLIGHT + served).min(all)).await;
    }
}

#[tokio::test]
async fn a_peer_that_accepts_and_says_nothing_costs_a_bounded_time() {
    let root = pki::root("root");
    let one = Box_::start(1, tls(&root, &pki::leaf(&root))).await;
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.peers.set_members(&[member(2, mute.local_addr().unwrap())]);
    let begun = Instant::now();
    let peers = one.peers.clone();
    let first = tokio::spawn(async move { ask(&peers, 2, b"x", PATIENCE).await });
    let (_kept, _) = mute.accept().await.unwrap();
    let short = Duration::from_millis(50);
    assert_eq!(ask(&one.peers, 2, b"x", short).await, Err(CallError::TimedOut));
    let mut many = JoinSet::new();
    for _ in 0..MAX_QUEUE + 8 {
        let peers = one.peers.clone();
        many.spawn(async move { ask(&peers, 2, b"x", PATIENCE).await.unwrap_err() });
    }
    let errors = many.join_all().await;
    let busy = errors.iter().filter(|error| **error == CallError::Busy).count();
    assert!(busy >= 8 && busy < errors.len(), "{busy} of {}", errors.len());
    let error = first.await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Unreachable(why) if why.contains("in time")), "{error}");
    assert!(begun.elapsed() >= DIAL_LIMIT / 2 && begun.elapsed() < DIAL_LIMIT * 3);
}

#[tokio::test]
async fn notes_come_in_their_turn_and_get_no_answer() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &leaf)).await;
    one.ask(2, b"a").await.unwrap();
    let expected = [&b"a"[..], b"b", b"c", b"d"].map(|body| (1, body.to_vec()));
    for body in [b"b", b"c"] {
        one.peers.send_one_way(ServerId(2), Body::new(body.to_vec()), PATIENCE);
    }
    one.ask(2, b"d").await.unwrap();
    assert_eq!(*two.service.begun.lock().unwrap(), expected);
    assert_eq!(two.counters.requests(), 2);
    // What stands on the wire: nothing comes between the answers to what was asked.
    let mut stream = raw_connect(&raw_context(Some(&leaf), None), two.addr).await.unwrap();
    greet(&mut stream, hello(1)).await;
    let note = framed(Kind::OneWay, b"n");
    stream.write_all(&[note.clone(), request(b"r"), note].concat()).await.unwrap();
    until("the last note is there", || two.begun() == expected.len() + 3).await;
    stream.shutdown().await.unwrap();
    let got = drain(&mut stream).await;
    let mut frames = frame::Reader::new(&got[..]);
    let (header, body) = frames.next().await.unwrap().unwrap();
    assert_eq!((header.kind, body.as_slice()), (Kind::Response, &b"r"[..]));
    assert!(frames.next().await.unwrap().is_none(), "nothing but one answer");
}

/// Datagrams wait for requests and notes that come after them, make no connection, and are counted.
#[tokio::test]
async fn datagrams_go_when_nothing_else_waits() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let tally = Arc::new(Tally::default());
    let send = |n: u8| {
        let body = Arc::new(Body::new(vec![b'd', n]));
        one.peers.datagram(ServerId(2), Datagram::new(body, 1, tally.clone()))
    };
    assert!(!send(0), "there is no connection");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!((two.begun(), two.counters.accepted()), (0, 0));
    one.ask(2, b"a").await.unwrap();
    until("the datagram", || two.begun() == 2).await;
    // All of this is there before the connection's task gets a turn.
    for n in 1..=20 {
        assert!(send(n));
    }
    one.peers.send_one_way(ServerId(2), Body::new(b"n".to_vec()), PATIENCE);
    one.ask(2, b"q").await.unwrap();
    until("all datagrams", || two.begun() == 24).await;
    let begun = two.service.begun.lock().unwrap().clone();
    let place = |body: &[u8]| begun.iter().position(|(_, begun)| begun == body).unwrap();
    // One was being written at most.
    assert!(place(b"n") <= 3 && place(b"q") <= 4, "{begun:?}");
    let order: Vec<u8> = begun.iter().filter(|(_, b)| b[0] == b'd').map(|(_, b)| b[1]).collect();
    assert_eq!(order, (0..=20).collect::<Vec<_>>());
    let counts = || (tally.sent.load(Ordering::Relaxed), tally.lost.load(Ordering::Relaxed));
    assert_eq!(counts(), (21, 0));
    // To one that is no peer it is lost.
    let datagram = Datagram::new(Arc::new(Body::new(vec![1])), 3, tally.clone());
    assert!(one.peers.datagram(ServerId(9), datagram));
    assert_eq!(counts(), (21, 3));
}

#[tokio::test]
async fn a_note_waits_for_nothing() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let note =
        |body: &[u8], limit| one.peers.send_one_way(ServerId(2), Body::new(body.to_vec()), limit);
    // Nobody is dialled for its sake, nor is it kept for the next connection.
    (0..3).for_each(|_| note(b"early", PATIENCE));
    sleep(Duration::from_millis(50)).await;
    assert_eq!((two.counters.accepted(), two.begun()), (0, 0));
    let peers = one.peers.clone();
    let asked = tokio::spawn(async move { ask(&peers, 2, b"W", PATIENCE).await });
    until("the request is served", || two.begun() == 1).await;
    // It waits for no answer either.
    note(b"between", PATIENCE);
    two.service.release.notify_one();
    asked.await.unwrap().unwrap();
    note(b"late", Duration::ZERO);
    note(b"now", PATIENCE);
    one.ask(2, b"last").await.unwrap();
    let begun: Vec<_> = two.service.begun.lock().unwrap().iter().map(|b| b.1.clone()).collect();
    assert_eq!(begun, [&b"W"[..], b"between", b"now", b"last"]);
}

#[tokio::test]
async fn a_dropped_request_harms_nobody() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    for begun in 1..=10 {
        let dropped = one.ask(2, b"W");
        tokio::select! {
            answer = dropped => panic!("answered: {answer:?}"),
            () = until("it is served", || two.begun() == 2 * begun - 1) => {}
        }
        assert_eq!(one.ask(2, b"next").await.unwrap(), b"next");
    }
    assert_eq!(two.counters.accepted(), 1, "the connection outlived them all");
}

/// Whoever wanted to ask was gone before the connection was up: it stands for the next one.
#[tokio::test]
async fn a_connection_that_nobody_uses_makes_no_stranger_of_this_server() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let slow = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.peers.set_members(&[member(2, slow.local_addr().unwrap())]);
    let peers = one.peers.clone();
    let gone = tokio::spawn(async move { ask(&peers, 2, b"x", PATIENCE).await });
    let (mut near, _) = slow.accept().await.unwrap();
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let mut far = TcpStream::connect(two.addr).await.unwrap();
    let relay = tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
    until("it is up", || one.heard.at_address(ServerId(2)).is_some()).await;
    // Longer than the other side waits for a hello.
    sleep(HANDSHAKE_LIMIT + Duration::from_millis(500)).await;
    assert_eq!((two.listener.connections(), two.begun()), (1, 0));
    assert_eq!(one.ask(2, b"now").await.unwrap(), b"now");
    assert_eq!((two.counters.accepted(), all_refused(&two.counters)), (1, 0));
    relay.abort();
}

/// A far peer that is busy for a moment: dialling it anew would take longer.
#[tokio::test]
async fn a_connection_on_which_an_answer_comes_late_is_kept() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let short = Duration::from_secs(3);
    assert_eq!(ask(&one.peers, 2, b"W", short).await, Err(CallError::TimedOut));
    two.service.release.notify_one();
    assert_eq!(one.ask(2, b"again").await.unwrap(), b"again");
    assert_eq!(two.counters.accepted(), 1);
    assert!(!one.lines.have(Level::Note, "is down"));
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_back_is_given_up() {
    let root = pki::root("root");
    let (one, two) = pair(tls(&root, &pki::leaf(&root)), tls(&root, &pki::leaf(&root))).await;
    let short = Duration::from_millis(100);
    one.ask(2, b"x").await.unwrap();
    assert_eq!(ask(&one.peers, 2, b"N", short).await, Err(CallError::TimedOut));
    until("told", || one.lines.have(Level::Note, "is down: it does not answer")).await;
    assert_eq!(one.ask(2, b"again").await.unwrap(), b"again");
    assert_eq!(two.counters.accepted(), 2);
    // The same if the caller did not stay to see its time run out.
    let peers = one.peers.clone();
    let gone = tokio::spawn(async move { ask(&peers, 2, b"N", short).await });
    until("it is served", || two.begun() == 4).await;
    gone.abort();
    until("given up", || two.listener.connections() == 0).await;
}

#[tokio::test]
async fn a_peer_that_comes_back_is_dialled_again() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    one.ask(2, b"x").await.unwrap();
    let addr = two.addr;
    drop(two);
    until("noticed", || one.lines.have(Level::Note, "is down")).await;
    let is_gone = |answer: &Result<Vec<u8>, CallError>| {
        matches!(answer, Err(CallError::NobodyListens(_) | CallError::Unreachable(_)))
    };
    assert!(is_gone(&one.ask(2, b"x").await));
    let begun = Instant::now();
    let error = one.ask(2, b"x").await;
    assert!(is_gone(&error), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "fails at once while it waits to redial");
    let _two = Box_::start_at(2, leaf(), addr).await;
    let begun = Instant::now();
    while one.ask(2, b"x").await.is_err() {
        assert!(begun.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
    let lines = one.lines.0.lock().unwrap();
    assert!(lines.iter().all(|(level, _)| *level < Level::Warning), "no alarm: {lines:?}");
}

#[tokio::test]
async fn a_new_address_takes_effect() {
    let root = pki::root("root");
    let leaf = || tls(&root, &pki::leaf(&root));
    let (one, two) = pair(leaf(), leaf()).await;
    one.ask(2, b"x").await.unwrap();
    let moved = Box_::start(2, leaf()).await;
    one.peers.set_members(&[one.member(), moved.member()]);
    one.ask(2, b"x").await.unwrap();
    assert_eq!((two.begun(), moved.begun()), (1, 1));
    until("the old connection is closed", || two.listener.connections() == 0).await;
    one.peers.set_members(&[one.member()]);
    assert_eq!(one.ask(2, b"x").await, Err(CallError::UnknownPeer));
}

#[tokio::test]
async fn a_host_name_is_resolved_and_a_tool_needs_no_list() {
    let root = pki::root("root");
    let tls = tls(&root, &pki::leaf(&root));
    let two = Box_::start(2, tls.clone()).await;
    let at = ("localhost", two.addr.port());
    let answer = call_once(
        &Resolver::system(),
        &tls,
        &LocalIdentity::tool(ServerId(1)),
        at,
        b"status",
        PATIENCE,
    )
    .await
    .unwrap();
    assert_eq!(answer.as_slice(), b"status");
    assert_eq!(two.heard.last(ServerId(1)), None, "a tool is no sign of life of its server");
    let refused = call_once(
        &Resolver::system(),
        &tls,
        &LocalIdentity::tool(ServerId(6)),
        at,
        b"status",
        PATIENCE,
    )
    .await;
    assert_eq!(refused, Err(CallError::Refused(Refusal::NotAMember)));
}

/// A timer that fires late says nothing of an answer that has come meanwhile.
#[tokio::test]
async fn an_answer_that_lies_unread_on_a_busy_machine_is_no_silence() {
    let root = pki::root("root");
    let elsewhere = tokio::runtime::Runtime::new().unwrap();
    let two = elsewhere.spawn(Box_::start(2, tls(&root, &pki::leaf(&root)))).await.unwrap();
    let one = Box_::start(1, tls(&root, &pki::leaf(&root))).await;
    one.peers.set_members(&[two.member()]);
    one.ask(2, b"x").await.unwrap();
    let short = Duration::from_millis(300);
    assert_eq!(ask(&one.peers, 2, b"W", short).await, Err(CallError::TimedOut));
    // The connection is looked at for the first time.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    two.service.release.notify_one();
    // This thread, and all that runs on it, has no turn until the time is over twice.
    std::thread::sleep(2 * short);
    assert_eq!(one.ask(2, b"again").await.unwrap(), b"again");
    assert_eq!(two.counters.accepted(), 1);
    assert!(!one.lines.have(Level::Note, "is down"));
    elsewhere.shutdown_background();
}
