//! Shared sessions in real Traffic Servers: they open their own site, a revocation ends them, and what
//! has a ticket is none. How often clients resume behind a balancer is in `tests/haproxy`.

use std::fs;
use std::time::Duration;

use openssl::ssl::SslSession;
use testkit::ats::Ats;
use testkit::fleet::{self, Fleet, Plan};
use testkit::host::host;
use testkit::ids;
use testkit::run_dir::RunDir;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Result};

use crate::stage::{plugin, reserve, PATIENCE};

/// The words of `stekctl`'s counts in the line that the message `status` leaves, in their order.
const COUNTS: [&str; 5] = ["sent", "received", "dropped", "inserted", "refused"];

fn plan(size: usize) -> Plan {
    let plan = Plan::new(size, &plugin(), Duration::from_secs(3600)).manager();
    plan.option("share_sessions", "true")
        .record("proxy.config.http.keep_alive_enabled_in INT 0")
        .record("proxy.config.diags.debug.enabled INT 1")
        .record("proxy.config.diags.debug.tags STRING stek_share")
}

/// What a server counts of sessions, by the last answer to `status`.
fn counts(ats: &Ats) -> Result<[u64; 5]> {
    let lines = |ats: &Ats| ats.diags().matches("status: current").count();
    let before = lines(ats);
    ats.ctl(&["plugin", "msg", "stek_share", "status"])?;
    wait::until(PATIENCE, "an answer", || Ok((lines(ats) > before).then_some(())))?;
    let diags = ats.diags();
    let last = diags.lines().rfind(|line| line.contains("status: current")).unwrap_or_default();
    Ok(COUNTS.map(|word| {
        let words: Vec<&str> =
            last.split([' ', ',', '.']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|found| *found == word).expect(last);
        words[at - 1].parse().expect(last)
    }))
}

/// How often a server asks for what others have, once after its start (`FETCH_FROM` in `node::sessions`).
const QUESTIONS: u64 = 2;

/// Waits until both have asked each other, which counts as sessions do: a server that starts late does
/// so while the other has been asked by clients for long.
fn wait_asked(fleet: &Fleet) -> Result<()> {
    wait::until(PATIENCE, "servers to ask each other for sessions", || {
        let all = [counts(&fleet.servers[0])?, counts(&fleet.servers[1])?];
        // What is dropped says nothing of whether it was a question of its own or of the other one.
        let asked = |[sent, received, ..]: [u64; 5], [sent_there, ..]: [u64; 5]| {
            sent >= QUESTIONS && received >= sent_there
        };
        Ok((asked(all[0], all[1]) && asked(all[1], all[0])).then_some(()))
    })
}

/// Waits until the others have so many sessions that they were given.
fn wait_inserted(fleet: &Fleet, server: usize, count: u64) -> Result<()> {
    wait::until(PATIENCE, "sessions to be inserted", || {
        Ok((counts(&fleet.servers[server])?[3] >= count).then_some(()))
    })
}

#[test]
fn a_shared_session_opens_its_own_site_until_it_is_revoked() -> Result<()> {
    if !host()?.has_session_ids() {
        println!("not tried: Traffic Server {} keeps no sessions", host()?.version());
        return Ok(());
    }
    let _reserved = reserve(2);
    let dir = RunDir::new("sessions")?;
    let mut fleet = plan(2).start(dir.path())?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let [one, two] = [fleet.servers[0].https(), fleet.servers[1].https()];

    wait_asked(&fleet)?;
    let start = counts(&fleet.servers[0])?;

    // Clients with tickets leave nothing to share.
    for version in TlsVersion::ALL {
        let ticket = tickets::take(one, version)?;
        assert!(tickets::offer(two, &ticket)?.resumed);
    }
    let made = ids::visit(one, "a.test", None)?;
    assert!(made.is_answered && !made.resumed);
    wait_inserted(&fleet, 1, 1)?;
    let now = counts(&fleet.servers[0])?;
    assert_eq!((now[0] - start[0], now[4]), (1, 0), "{start:?} {now:?}");
    let there = |name, session: &[u8]| ids::visit(two, name, Some(session));
    assert!(there("a.test", &made.session)?.resumed);
    assert!(there("A.test.", &made.session)?.resumed);
    let elsewhere = there("b.test", &made.session)?;
    assert!(!elsewhere.resumed && elsewhere.is_answered, "another site's session");
    // On the server that it was made on as well.
    assert!(!ids::visit(one, "b.test", Some(&made.session))?.resumed);
    assert!(ids::visit(one, "a.test", Some(&made.session))?.resumed);

    // What one gives up, the other gives up.
    let spoilt = ids::visit(one, "a.test", None)?;
    wait_inserted(&fleet, 1, 2)?;
    assert!(ids::spoil(one, "a.test", &spoilt.session)?);
    for address in [one, two] {
        wait::until(PATIENCE, "the end of a session that was given up", || {
            Ok((!ids::visit(address, "a.test", Some(&spoilt.session))?.resumed).then_some(()))
        })?;
    }

    // One that starts is sent what the other has.
    fleet.servers[1].kill9();
    fleet.servers[1].start()?;
    fleet.servers[1].wait_ready()?;
    wait_inserted(&fleet, 1, 1)?;
    let two = fleet.servers[1].https();
    assert!(ids::visit(two, "a.test", Some(&made.session))?.resumed);

    // Nobody wrote of it.
    let session = SslSession::from_der(&made.session)?;
    let secrets = [session.id(), &session_master(&session)];
    for ats in &fleet.servers {
        for file in ats.log_files()? {
            let text = fs::read(&file)?;
            for secret in &secrets {
                let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
                let upper = hex.to_uppercase();
                for form in [&secret[..], hex.as_bytes(), upper.as_bytes()] {
                    let found = text.windows(form.len()).any(|part| part == form);
                    assert!(!found, "{}", file.display());
                }
            }
        }
    }

    let key = tickets::key_name(one)?;
    fleet.servers[0].ctl(&["plugin", "msg", "stek_share", "revoke"])?;
    fleet::wait_one_key(&fleet.https(), Some(&key), PATIENCE)?;
    for address in [one, two] {
        wait::until(PATIENCE, "the end of the session", || {
            let visited = ids::visit(address, "a.test", Some(&made.session))?;
            Ok((!visited.resumed && visited.is_answered).then_some(()))
        })?;
    }
    // What is made after it is shared as before.
    let made = ids::visit(two, "a.test", None)?;
    wait::until(PATIENCE, "a session of afterwards", || {
        Ok(ids::visit(one, "a.test", Some(&made.session))?.resumed.then_some(()))
    })?;
    let stopped = fleet.stop(testkit::sys::Signal::Terminate)?;
    assert!(stopped.iter().all(|stopped| stopped.status.success()), "{stopped:?}");
    dir.done()
}

fn session_master(session: &SslSession) -> Vec<u8> {
    let mut master = vec![0; session.master_key_len()];
    session.master_key(&mut master);
    master
}

/// With the host's own cache off, or in a host that has none, nothing can be shared: it is said, and
/// everything else works.
#[test]
fn another_cache_mode_is_told_of() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("session-cache")?;
    let fleet = plan(1).record("proxy.config.ssl.session_cache INT 0").start(dir.path())?;
    let ats = &fleet.servers[0];
    let none =
        format!("share_sessions: true has no effect in Traffic Server {}", host()?.version());
    let said = if host()?.has_session_ids() {
        "share_sessions is true and Traffic Server's session cache has mode 0"
    } else {
        &none
    };
    ats.wait_diags(said, PATIENCE)?;
    ats.wait_diags("(generation 1)", PATIENCE)?;
    let ticket = tickets::take(ats.https(), TlsVersion::V12)?;
    assert!(tickets::offer(ats.https(), &ticket)?.resumed);
    assert!(ids::visit(ats.https(), "a.test", None)?.is_answered);
    dir.done()
}
