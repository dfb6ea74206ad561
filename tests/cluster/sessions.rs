//! Shared sessions between real nodes: what one host tells arrives at all others, within bounds, and
//! moves nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use stek_share::core::config::Settings;
use stek_share::core::key_ring::Generation;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_id::ServerId;
use stek_share::core::sessions::{
    SessionBytes, SessionEvent, SessionId, MAX_SESSION, QUEUE, SENT_PER_SECOND,
};
use stek_share::node::environment::Environment;
use stek_share::node::session_exchange::{Arrival, SessionExchange};
use zeroize::Zeroizing;

use crate::fleet::{block_on, wait_for, Fleet};

/// Sessions a second that are offered in a storm.
const STORM: u32 = 10_000;

/// The rest between two rotations of a storm.
const REST: Duration = Duration::from_millis(100);

fn default(_: &mut Settings) {}

fn id(n: u64) -> SessionId {
    SessionId::new(&n.to_be_bytes()).unwrap()
}

fn made(n: u64) -> SessionEvent {
    let bytes = n.to_be_bytes().repeat(MAX_SESSION / 8);
    SessionEvent::Made(id(n), SessionBytes::new(Zeroizing::new(bytes)).unwrap())
}

/// Starts a server that shares sessions.
fn start(fleet: &mut Fleet, id: u32) -> Arc<SessionExchange> {
    let exchange = Arc::<SessionExchange>::default();
    exchange.open();
    let outside = Environment { sessions: Some(exchange.clone()), ..Environment::default() };
    let (settings, tls) = (fleet.settings(id), fleet.tls());
    fleet.start_within(id, settings, tls, outside);
    exchange
}

fn three() -> (Fleet, Vec<Arc<SessionExchange>>) {
    let mut fleet = Fleet::new(3, default);
    let exchanges: Vec<_> = (1..=3).map(|id| start(&mut fleet, id)).collect();
    fleet.wait_until_one();
    // What they ask each other at the start, which whoever is not in the cluster yet passes over.
    wait_for(
        "all have asked for the newest",
        || exchanges.iter().all(|exchange| exchange.status().sent == 2),
        || fleet.describe(),
    );
    wait_for_generation(&exchanges, 1, &fleet);
    (fleet, exchanges)
}

/// Waits until all follow a key. The exchange hears of it from a task of its own, before or after
/// the host has it.
fn wait_for_generation(exchanges: &[Arc<SessionExchange>], generation: u64, fleet: &Fleet) {
    wait_for(
        "the exchanges to follow the key",
        || exchanges.iter().all(|exchange| exchange.generation() == Generation(generation)),
        || fleet.describe(),
    );
}

/// What has arrived but the questions of the start.
fn arrivals(exchange: &SessionExchange, count: usize) -> Vec<Arrival> {
    let mut all = Vec::new();
    let begun = Instant::now();
    while all.len() < count {
        assert!(begun.elapsed() < crate::fleet::PATIENCE, "{} of {count}", all.len());
        match exchange.arrival() {
            Some(Arrival { event: SessionEvent::WantNewest, .. }) => {}
            Some(arrival) => all.push(arrival),
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
    all
}

#[test]
fn what_one_host_tells_arrives_at_all_others_in_its_order() {
    let (_fleet, exchanges) = three();
    let generation = exchanges[0].generation();
    assert_eq!(generation, Generation(1));
    let told = || (0..100).map(made).chain([SessionEvent::Removed(id(7))]);
    told().for_each(|event| exchanges[0].tell(None, generation, event));
    for other in &exchanges[1..] {
        let got = arrivals(other, 101);
        assert!(got.iter().all(|arrival| arrival.from == ServerId(1)));
        assert!(got.iter().map(|arrival| &arrival.event).eq(&told().collect::<Vec<_>>()));
    }
    // To one alone.
    exchanges[1].tell(Some(ServerId(3)), generation, made(1));
    assert_eq!(arrivals(&exchanges[2], 1)[0].from, ServerId(2));
    let (one, two) = (exchanges[0].status(), exchanges[1].status());
    // Two more each is what they asked for at the start.
    assert_eq!((one.sent, one.dropped, one.refused), (202 + 2, 0, 0));
    assert!((101..=103).contains(&two.received), "{two:?}");
    assert_eq!((two.dropped, two.refused), (0, 0));
}

#[test]
fn a_server_that_returns_asks_for_what_it_missed() {
    let (mut fleet, exchanges) = three();
    fleet.kill(2);
    let heard = [0, 2].map(|at: usize| exchanges[at].status().received);
    let _returned = start(&mut fleet, 2);
    fleet.wait_until_one();
    // Its question is the last that each of them hears.
    for (other, heard) in [&exchanges[0], &exchanges[2]].into_iter().zip(heard) {
        wait_for("its question", || other.status().received > heard, || fleet.describe());
        let last = std::iter::from_fn(|| other.arrival()).last().expect("an arrival");
        assert_eq!((last.from, last.event), (ServerId(2), SessionEvent::WantNewest));
    }
}

#[test]
fn a_revocation_ends_what_was_made_before_it() {
    let (fleet, exchanges) = three();
    let old = exchanges[0].generation();
    block_on(fleet.servers[&2].node.admin_command(AdminCommand::Revoke)).unwrap();
    fleet.wait_for_generation(2);
    wait_for(
        "all hosts to be told",
        || exchanges.iter().all(|exchange| exchange.is_revoked(old)),
        || fleet.describe(),
    );
    wait_for_generation(&exchanges, 2, &fleet);
    for exchange in &exchanges {
        wait_for("the erasure", || exchange.take_erasure(), || fleet.describe());
        assert!(!exchange.take_erasure());
    }
    // From a host that was late to notice.
    exchanges[0].tell(None, old, made(1));
    exchanges[0].tell(None, Generation(2), made(2));
    let got = arrivals(&exchanges[1], 1);
    assert_eq!(got[0].event, made(2));
    assert_eq!(exchanges[1].status().refused, 1);
    // A rotation is none.
    block_on(fleet.servers[&2].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(3);
    assert!(exchanges.iter().all(|exchange| !exchange.take_erasure()));
}

#[test]
fn a_server_that_does_not_share_hears_them_and_goes_on() {
    let mut fleet = Fleet::new(3, default);
    let one = start(&mut fleet, 1);
    fleet.start(2);
    fleet.start(3);
    fleet.wait_until_one();
    (0..100).for_each(|n| one.tell(None, one.generation(), made(n)));
    wait_for("all to be sent", || one.status().sent >= 200, || fleet.describe());
    let before = fleet.servers[&2].node.status().accepted;
    block_on(fleet.servers[&2].node.admin_command(AdminCommand::Rotate)).unwrap();
    fleet.wait_for_generation(2);
    let heard = "a message that means nothing to this version of the plugin";
    wait_for("it to be told", || fleet.servers[&2].lines.has(heard), || fleet.describe());
    let after = fleet.servers[&2].node.status();
    assert_eq!((after.accepted, after.refused_peers), (before, vec![]), "{}", fleet.describe());
    assert_eq!(after.sessions, None);
}

/// How long rotations take from the order to the key on all servers.
fn rotations(fleet: &Fleet, count: u32) -> Vec<Duration> {
    let rotate = |_| {
        thread::sleep(REST);
        let begun = Instant::now();
        let next = block_on(fleet.servers[&2].node.admin_command(AdminCommand::Rotate)).unwrap();
        fleet.wait_for_generation(next.0);
        begun.elapsed()
    };
    (0..count).map(rotate).collect()
}

/// Most sessions are lost, and nothing else is: what was told was sent or counted, no election came of
/// it, and keys are as fast as without.
#[test]
fn a_storm_of_sessions_moves_no_rotation() {
    let (fleet, exchanges) = three();
    let leader = fleet.wait_for_leader();
    let term = fleet.servers[&leader].node_status().term;
    let without = rotations(&fleet, 20);
    let storm = &exchanges[0];
    let (begun, before) = (Instant::now(), storm.status());
    let over = &AtomicBool::new(false);
    let (during, told) = thread::scope(|scope| {
        let offer = scope.spawn(move || {
            let mut told = 0;
            while !over.load(Ordering::Relaxed) {
                let due = (begun.elapsed().as_secs_f64() * f64::from(STORM)) as u64;
                (told..due).for_each(|n| storm.tell(None, storm.generation(), made(n)));
                told = due;
                thread::sleep(Duration::from_millis(1));
            }
            told
        });
        // The hosts of the others take what comes.
        for other in &exchanges[1..] {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    while other.arrival().is_some() {}
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        let during =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rotations(&fleet, 20)));
        over.store(true, Ordering::Relaxed);
        (during.unwrap(), offer.join().unwrap())
    });
    let took = begun.elapsed();
    let figures = |mut all: Vec<Duration>| {
        all.sort();
        (all[all.len() / 2], all[all.len() - 1])
    };
    let (without, during) = (figures(without), figures(during));
    wait_for(
        "what waits to be sent or lost",
        || {
            let now = storm.status();
            (now.sent - before.sent) / 2 + (now.dropped - before.dropped) >= told
        },
        || format!("{:?}, {told} told", storm.status()),
    );
    let now = storm.status();
    let sent = (now.sent - before.sent) / 2;
    println!(
        "rotations, median and worst: {without:?} without, {during:?} with {told} sessions told in \
         {took:?}, of which {sent} went to both others"
    );
    let most = u64::from(SENT_PER_SECOND) * (took.as_secs() + 2) + QUEUE.entries as u64;
    assert!(sent <= most, "{sent} in {took:?}");
    assert!(told < 4 * u64::from(STORM) || now.dropped > before.dropped, "{now:?}");
    assert!(during.0 < without.0 * 2 + Duration::from_millis(100), "{without:?} {during:?}");
    let leader_now = fleet.wait_for_leader();
    assert_eq!((leader_now, fleet.servers[&leader].node_status().term), (leader, term));
}
