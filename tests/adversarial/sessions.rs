//! A member that says what it likes of sessions: floods, bodies that are none, in others' names.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use stek_share::core::key_ring::Generation;
use stek_share::core::server_id::ServerId;
use stek_share::core::sessions::{
    SessionBytes, SessionEvent, SessionId, MAX_PER_MESSAGE, MAX_SESSION, QUEUE, TAKEN_PER_SECOND,
};
use stek_share::node::environment::Environment;
use stek_share::node::session_exchange::SessionExchange;
use stek_share::rpc::{encode, ErrorResponse, Request, Response, WireSessions};
use stek_share::transport::frame::{Kind, VERSION_MAX};
use zeroize::Zeroizing;

use crate::fleet::{wait_for, Fleet};
use crate::insider::{cluster_id, Insider};
use crate::{leader_term, patient, rotate, without_the_fourth, ENEMY};

/// How long the flood lasts.
const FLOOD: Duration = Duration::from_secs(2);

/// Three of four, of which the first shares sessions.
fn sharing() -> (Fleet, Arc<SessionExchange>) {
    let mut fleet = Fleet::new(ENEMY, patient);
    let exchange = Arc::<SessionExchange>::default();
    exchange.open();
    let outside = Environment { sessions: Some(exchange.clone()), ..Environment::default() };
    let (settings, tls) = (fleet.settings(1), fleet.tls());
    fleet.start_within(1, settings, tls, outside);
    for id in 2..=ENEMY {
        fleet.start(id);
    }
    without_the_fourth(&mut fleet);
    (fleet, exchange)
}

fn made(n: u64) -> SessionEvent {
    let bytes = n.to_be_bytes().repeat(MAX_SESSION / 8);
    let id = SessionId::new(&n.to_be_bytes()).unwrap();
    SessionEvent::Made(id, SessionBytes::new(Zeroizing::new(bytes)).unwrap())
}

fn message(from: u64, count: usize) -> Vec<u8> {
    let events = (from..).map(made).take(count).collect();
    let sessions = WireSessions { generation: Generation(u64::MAX >> 2), events };
    encode(&Request::Sessions(sessions)).unwrap().to_vec()
}

#[test]
fn a_flood_of_sessions_is_bounded_and_moves_no_key() {
    let (mut fleet, exchange) = sharing();
    let leader = leader_term(&fleet);
    let mut insider = Insider::connect(&mut fleet, 1);
    let (begun, mut sent, mut waiting) = (Instant::now(), 0, 0);
    let before = exchange.status();
    // The host takes nothing, so that it all waits.
    while begun.elapsed() < FLOOD {
        for _ in 0..50 {
            insider.note(&message(sent, MAX_PER_MESSAGE)).unwrap();
            sent += MAX_PER_MESSAGE as u64;
        }
        waiting += 1;
        if waiting % 20 == 0 {
            rotate(&fleet);
        }
    }
    let took = begun.elapsed();
    // It hears what comes after the flood on the same connection.
    insider.status();
    let now = exchange.status();
    let received = now.received - before.received;
    println!("{sent} sessions of a member in {took:?}, {received} looked at");
    let most = u64::from(TAKEN_PER_SECOND) * (took.as_secs() + 1) + MAX_PER_MESSAGE as u64;
    assert!(received < sent && received <= most, "{received} of {sent} in {took:?}");
    let held = std::iter::from_fn(|| exchange.arrival()).count();
    assert!(held <= QUEUE.entries, "{held}");
    rotate(&fleet);
    assert_eq!(leader_term(&fleet), leader, "{}", fleet.describe());
}

#[test]
fn what_is_no_message_of_a_members_sessions_is_passed_over() {
    let (mut fleet, exchange) = sharing();
    let before = exchange.status();
    let mut insider = Insider::connect(&mut fleet, 1);
    insider.status();
    // Longer than any that a server sends: it is not even decoded.
    insider.note(&message(1, 3000)).unwrap();
    insider.status();
    assert!(!fleet.servers[&1].lines.has("sent a message that is malformed"));
    // One session too many; a session, an id that is too long or empty; bytes left over, cut short.
    let good = message(1, 1);
    let id_at = 1 + good.iter().skip(1).position(|byte| *byte == 8).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    let mut longer = good.clone();
    longer.push(0);
    for bad in [
        message(1, MAX_PER_MESSAGE + 1),
        message(1, 0),
        with(id_at, 33),
        with(id_at, 0),
        longer,
        good[..good.len() - 1].to_vec(),
        vec![good[0]],
        vec![good[0]; 5000],
        [&good[..1], &[0xff; 40]].concat(),
    ] {
        insider.note(&bad).unwrap();
    }
    insider.status();
    assert_eq!(exchange.status(), before);
    // What means nothing counts as one session each, so that a flood of it is not even decoded.
    (0..20_000).for_each(|_| insider.note(&message(1, 0)).unwrap());
    insider.status();
    let flooded = exchange.status();
    assert!(flooded.dropped > before.dropped && flooded.received == before.received);
    sleep_until_heard(&mut insider, &exchange, &good);
    let before = exchange.status();
    // As a request; it is heard all the same afterwards.
    let answer = insider.ask_bytes(ServerId(ENEMY), VERSION_MAX, &good);
    assert!(
        matches!(answer, Some(Response::ErrorResponse(ErrorResponse::Malformed))),
        "{answer:?}"
    );
    // Of another cluster incarnation.
    insider.set_cluster([7; 16]);
    insider.note(&good).unwrap();
    insider.set_cluster(cluster_id(&fleet));
    insider.status();
    assert_eq!(exchange.status(), before);
    insider.note(&good).unwrap();
    wait_for("a good one", || exchange.status().received > before.received, || fleet.describe());
    let got = wait_arrival(&exchange);
    assert_eq!(got, (ServerId(ENEMY), made(1)));
}

/// Sends a good message until the flood of before is forgiven.
fn sleep_until_heard(insider: &mut Insider, exchange: &SessionExchange, good: &[u8]) {
    let (begun, before) = (Instant::now(), exchange.status().received);
    while exchange.status().received == before {
        assert!(begun.elapsed() < PATIENCE, "nothing is heard after a flood");
        insider.note(good).unwrap();
        insider.status();
    }
    while exchange.arrival().is_some() {}
}

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn wait_arrival(exchange: &SessionExchange) -> (ServerId, SessionEvent) {
    let begun = Instant::now();
    loop {
        if let Some(arrival) = exchange.arrival() {
            return (arrival.from, arrival.event);
        }
        assert!(begun.elapsed() < PATIENCE, "nothing arrives");
        thread::sleep(Duration::from_millis(1));
    }
}

/// What is used of the insider here alone.
impl Insider {
    fn note(&mut self, body: &[u8]) -> std::io::Result<()> {
        self.send_as(Kind::OneWay, ServerId(ENEMY), VERSION_MAX, body)
    }
}
