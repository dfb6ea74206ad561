//! Three servers from their start over a rotation and the leader's death to its return.

use std::time::{Duration, Instant};

use testkit::fleet::{self, Fleet, Plan};
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::tickets::{self, Matrix, Ticket, TlsVersion};
use testkit::{wait, Result};

use crate::stage::{plugin, reserve, PATIENCE};

const INTERVAL: Duration = Duration::from_secs(6);
/// What a rotation may come late: the promise is 2 s, the rest is for how the tests look.
const LATE: Duration = Duration::from_secs(3);

type Carried = Vec<(TlsVersion, Vec<Ticket>)>;

/// Every ticket must resume on all servers but `without`.
fn assert_resumed(fleet: &Fleet, carried: &Carried, without: Option<usize>, when: &str) {
    let indices = (0..fleet.servers.len()).filter(|index| Some(*index) != without);
    let servers: Vec<_> = indices.map(|index| fleet.servers[index].https()).collect();
    assert_eq!(carried.len(), 2, "both versions");
    for (version, tickets) in carried {
        let matrix: Matrix = tickets::offer_all(&servers, *version, tickets);
        assert!(matrix.is_full(), "{when}: {matrix}");
    }
}

#[test]
fn three_servers_share_rotate_lose_their_leader_and_get_it_back() -> Result<()> {
    let _reserved = reserve(3);
    let dir = RunDir::new("life")?;
    let mut fleet = Plan::new(3, &plugin(), INTERVAL).start(dir.path())?;
    let first = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let carried = fleet::take_both(&fleet.https())?;
    assert_resumed(&fleet, &carried, None, "at the start");

    let second = fleet::wait_one_key(&fleet.https(), Some(&first), PATIENCE)?;
    let rotated = Instant::now();
    assert_resumed(&fleet, &carried, None, "tickets from before the rotation");
    let carried = fleet::take_both(&fleet.https())?;
    assert!(carried.iter().all(|(_, tickets)| tickets.iter().all(|t| t.key_name == second)));
    assert_resumed(&fleet, &carried, None, "tickets from after the rotation");

    let leader = wait::until(PATIENCE, "a leader in diags.log", || Ok(fleet.leader()))?;
    fleet.servers[leader.index].kill9();
    assert_resumed(&fleet, &carried, Some(leader.index), "tickets from before the death");
    let survivors = fleet.https_without(leader.index);
    let third = fleet::wait_one_key(&survivors, Some(&second), PATIENCE)?;
    let gap = rotated.elapsed();
    println!("the leader died; the gap between two rotations was {gap:?}, not {INTERVAL:?}");
    assert!(gap + Duration::from_secs(1) > INTERVAL, "rotated early, after {gap:?}");
    assert!(gap < INTERVAL + LATE, "rotated late, after {gap:?}");
    assert_resumed(&fleet, &carried, Some(leader.index), "tickets from before the death, rotated");
    let heir = fleet.leader().expect("the survivors name one");
    assert!(heir.term > leader.term && heir.index != leader.index, "{heir:?} after {leader:?}");

    let fresh = tickets::take(survivors[0], TlsVersion::V12)?;
    assert_eq!(fresh.key_name, third);
    let returned = &mut fleet.servers[leader.index];
    returned.start()?;
    let offer = returned.wait_first(|address| tickets::offer(address, &fresh))?;
    assert!(offer.resumed, "the very first handshake of the returned server is a full one");
    assert_resumed(&fleet, &carried, None, "the previous key's tickets on the returned server too");
    let carried = fleet::take_both(&fleet.https())?;
    assert_resumed(&fleet, &carried, None, "after the return");
    // Service managers send this one; Ctrl-C and AuTest send the other, see `gold`.
    let stops = fleet.stop(Signal::Terminate)?;
    assert!(stops.len() == 3 && stops.iter().all(|s| s.status.code() == Some(0)), "{stops:?}");
    dir.done()
}
