//! What `effect` says is what clients had: each kind of handshake is made, and counted by hand.

use std::thread;
use std::time::Duration;

use serde_json::Value;
use testkit::ats::Ats;
use testkit::run_dir::RunDir;
use testkit::sites::Visit;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Error, Result};

use crate::stage::{on, plan, turn, wait_healthy, Said, PATIENCE};

/// So many tickets are opened where no session is resumed: enough to be told.
const REFUSED: u64 = 100;

/// The numbers of one server, or of all for `None`.
fn counts(said: &Said, index: Option<usize>) -> Result<[u64; 4]> {
    let read: Value =
        serde_json::from_str(&said.out).map_err(|why| Error::new(format!("{why}: {said:#?}")))?;
    let counts = match index {
        Some(index) => &read["servers"][index]["counts"],
        None => &read["counts"],
    };
    let names = ["handshakes", "tickets_opened", "tickets_unknown", "sessions_by_id"];
    Ok(names.map(|name| counts[name].as_u64().unwrap_or(u64::MAX)))
}

/// Waits until Traffic Server has published that.
fn wait_counts(ats: &Ats, index: usize, more: [u64; 4], than: [u64; 4]) -> Result<Said> {
    let mut last = None;
    let look = || {
        let said = on(ats, &["effect", "--json"])?;
        let now = counts(&said, Some(index))?;
        let is_so = now.iter().zip(than).map(|(now, then)| now.wrapping_sub(then)).eq(more);
        last = Some(now);
        Ok(is_so.then_some(said))
    };
    let found = wait::until(PATIENCE, "the counts", look);
    found.map_err(|error| Error::new(format!("{error}: {more:?} more than {than:?}, not {last:?}")))
}

#[test]
fn effect_counts_what_clients_had() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-effect")?;
    // What is counted is to be seen at once.
    let quick = ["raw_stat_sync", "remote_sync", "config_update"];
    let quick = quick.map(|name| format!("proxy.config.{name}_interval_ms INT 200"));
    let plan = quick.iter().fold(plan(3)?, |plan, line| plan.record(line));
    let fleet = plan.start(dir.path())?;
    let ats = &fleet.servers[0];
    wait_healthy(ats)?;
    let https = fleet.https();
    let now = |index| counts(&on(ats, &["effect", "--json"])?, Some(index));
    // Who waited for the servers shook hands too.
    thread::sleep(Duration::from_secs(2));

    // Resumed on another server; with the current key, an older one, and one that is gone.
    let ticket = tickets::take(https[0], TlsVersion::V12)?;
    let before = now(1)?;
    for (rotations, opened, unknown) in [(0, 1, 0), (1, 2, 0), (2, 2, 1)] {
        for _ in 0..rotations {
            on(ats, &["rotate"])?.ended(0, "is in use")?;
        }
        let resumed = tickets::offer(https[1], &ticket)?.resumed;
        assert_eq!(resumed, unknown == 0, "after {rotations} more rotations");
        wait_counts(ats, 1, [opened + unknown, opened, unknown, 0], before)?;
    }

    // A count over a while has nothing of before.
    let ticket = tickets::take(https[0], TlsVersion::V13)?;
    let offering = thread::spawn({
        let place = https[1];
        move || {
            thread::sleep(Duration::from_secs(1));
            (0..5).try_for_each(|_| tickets::offer(place, &ticket).map(drop))
        }
    });
    let said = on(ats, &["effect", "--json", "--over", "6"])?;
    offering.join().map_err(|_| Error::new("a client panicked"))??;
    assert_eq!(counts(&said, Some(1))?, [5, 5, 0, 0], "{said:#?}");

    // Tickets that open and whose sessions are refused: of another site.
    let before = now(2)?;
    let ticket = tickets::take(https[0], TlsVersion::V12)?;
    for _ in 0..REFUSED {
        let visited =
            Visit::new(https[2], TlsVersion::V12, "other.example").ticket(&ticket).go()?;
        assert!(!visited.resumed);
    }
    let said = wait_counts(ats, 2, [REFUSED, REFUSED, 0, 0], before)?;
    assert_eq!(said.code, 1, "{said:#?}");
    // Scripts that look at the fleet need not ask twice: nothing moves, and both say the same.
    let status = on(ats, &["status", "--json"])?;
    let of_all = |said: &Said| -> Result<Vec<Value>> {
        let read: Value =
            serde_json::from_str(&said.out).map_err(|why| Error::new(why.to_string()))?;
        let servers = read["servers"].as_array().cloned().unwrap_or_default();
        Ok(servers.iter().map(|server| server["counts"].clone()).collect())
    };
    assert_eq!(of_all(&status)?, of_all(&said)?, "{status:#?}");
    let said = on(ats, &["effect"])?;
    println!("{}", said.out);
    said.ended(1, "degraded: server 3 opened 100 tickets and resumed no session")?;
    said.line(&["of the tickets that clients brought were under a key that is gone"])?;
    said.line(&["with a ticket of another server, if clients come to all servers alike"])?;
    tickets::offer(https[2], &ticket)?;
    let healed = || Ok((on(ats, &["effect"])?.code == 0).then_some(()));
    wait::until(PATIENCE, "one resumed session", healed)?;

    // Who does not answer is named, and not taken for nought.
    let mut fleet = fleet;
    fleet.servers[2].kill9();
    let said = on(&fleet.servers[0], &["effect"])?;
    said.ended(1, "degraded: server 3 says nothing: ")?;
    dir.done()
}
