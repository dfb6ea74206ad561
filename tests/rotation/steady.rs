//! Without faults: no offer is missed over many rotations, and a ticket lives for a whole interval.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use testkit::logs;
use testkit::tickets::{self, Matrix, Ticket, TlsVersion};
use testkit::{Error, Result};

use crate::stage::{turn, Stage};
use crate::Effort;

/// What a handover takes at most on a busy machine when all servers are well; measured: some 20 ms.
/// A ticket lives for the interval less this.
const HANDOVER: Duration = Duration::from_millis(500);
/// Between two rounds of tickets: the last one before a rotation is that old at most.
const ROUND: Duration = Duration::from_millis(100);

/// One server's tickets of both versions, and when the first of them was taken.
type Round = (Instant, Vec<Ticket>);

#[test]
fn no_session_is_lost_over_many_rotations() -> Result<()> {
    let _turn = turn();
    let stage = Stage::set(Effort::from_environment())?;
    let first = stage.generation();
    let (servers, over) = (stage.fleet.https(), AtomicBool::new(false));
    let lived = thread::scope(|scope| {
        let key_publisher = scope.spawn(|| keep_tickets(&servers, stage.effort.interval, &over));
        let mut waited = stage.wait_generation(first + stage.effort.rotations);
        while waited.is_ok() && !stage.is_done(first) {
            waited = stage.wait_generation(stage.generation() + 1);
        }
        over.store(true, Ordering::Relaxed);
        let lived =
            key_publisher.join().unwrap_or_else(|_| Err(Error::new("the key publisher panicked")));
        waited.and(lived)
    })?;
    println!("the last tickets of {lived} keys lived for the interval less {HANDOVER:?}");
    assert!(lived >= stage.effort.rotations / 2, "only {lived} keys' last tickets were offered");
    println!("{}", stage.check_gaps(first)?);
    for rotation in logs::rotations(&stage.entries()).iter().filter(|r| r.generation > first) {
        let (spread, handover) = (rotation.spread(), rotation.handover());
        println!("generation {}: spread {spread:?}, handover {handover:?}", rotation.generation);
    }
    println!("{}", stage.end()?);
    Ok(())
}

/// Keeps the last tickets from before each rotation, and offers them to every server when they are
/// an interval old, less the handover. Returns for how many keys that was done.
fn keep_tickets(servers: &[SocketAddr], interval: Duration, over: &AtomicBool) -> Result<u64> {
    let take = |address: &SocketAddr| -> Result<Round> {
        let now = Instant::now();
        let tickets = TlsVersion::ALL.iter().map(|version| tickets::take(*address, *version));
        Ok((now, tickets.collect::<Result<_>>()?))
    };
    let key = |round: &Round| round.1.first().map(|ticket| ticket.key_name);
    let mut givers = servers.iter().cycle();
    let mut next = || take(givers.next().ok_or_else(|| Error::new("no servers"))?);
    let mut last = next()?;
    let mut kept: VecDeque<Round> = VecDeque::new();
    let mut lived = 0;
    while !over.load(Ordering::Relaxed) {
        thread::sleep(ROUND);
        let before = std::mem::replace(&mut last, next()?);
        if key(&before) != key(&last) {
            kept.push_back(before);
        }
        if kept.front().is_some_and(|(taken, _)| taken.elapsed() >= interval - HANDOVER) {
            let (taken, tickets) = kept.pop_front().ok_or_else(|| Error::new("none kept"))?;
            let matrices: Vec<Matrix> = tickets
                .iter()
                .map(|ticket| {
                    tickets::offer_all(servers, ticket.version, std::slice::from_ref(ticket))
                })
                .collect();
            // Offers that a slow machine brings too late prove nothing.
            if taken.elapsed() > interval {
                continue;
            }
            lived += 1;
            if let Some(matrix) = matrices.iter().find(|matrix| !matrix.is_full()) {
                let age = taken.elapsed();
                return Err(Error::new(format!("tickets of {age:?} before: {matrix}")));
            }
        }
    }
    Ok(lived)
}
