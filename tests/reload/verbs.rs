//! Each word, and each kind of file that may change.

use std::time::Duration;

use testkit::ats::Ats;
use testkit::fleet::{self, Fleet, Plan, PEER_SUBJECT};
use testkit::pki::{Authority, Identity, Request};
use testkit::run_dir::RunDir;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Result};

use crate::stage::{self, rewrite, send, turn, wait_generation_above, wait_line, PATIENCE};

#[test]
fn every_word_does_what_it_says_and_a_bad_file_changes_nothing() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("reload-verbs")?;
    let hour = Duration::from_secs(3600);
    // One self-signed certificate for both, whose replacement each has to be given.
    let plan = Plan::new(2, &stage::plugin()?, hour).one_certificate().manager();
    let fleet = plan.start(dir.path())?;
    let key = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let ats = &fleet.servers[0];

    let carried = tickets::take_all(&fleet.https(), TlsVersion::V13)?;
    let line = send(ats, "status", "status: current ")?;
    assert!(line.contains(&tickets::fingerprint(&key)), "{line}");
    send(ats, "status", "status: all is well")?;
    send(ats, "rotate", "rotate: generation 2 is in use")?;
    let key = fleet::wait_one_key(&fleet.https(), Some(&key), PATIENCE)?;
    let matrix = tickets::offer_all(&fleet.https(), TlsVersion::V13, &carried);
    assert!(matrix.is_full(), "the previous key decrypts\n{matrix}");
    send(ats, "revoke", "revoke: generation 3 is in use and every older key is dropped")?;
    fleet::wait_one_key(&fleet.https(), Some(&key), PATIENCE)?;
    let matrix = tickets::offer_all(&fleet.https(), TlsVersion::V13, &carried);
    assert_eq!(matrix.misses(), 4, "nothing that is older resumes\n{matrix}");
    let known =
        "the message \"rotat\" means nothing here; known are: reload, rotate, revoke, status";
    send(ats, "rotat", known)?;

    a_new_interval_counts(&fleet)?;
    a_bad_file_changes_nothing(&fleet)?;
    a_server_without_the_other_says_what_is_wrong(fleet)?;
    dir.done()
}

fn a_server_without_the_other_says_what_is_wrong(mut fleet: Fleet) -> Result<()> {
    fleet.servers[1].kill9();
    let ats = &fleet.servers[0];
    let missing = "status: broken: it has no part in a majority";
    let told = wait::until(PATIENCE, missing, || {
        let line = send(ats, "status", "] status: current ")?;
        assert!(line.contains("(generation "), "{line}");
        // The outcome is the line behind it.
        Ok(ats.diags().contains(missing).then_some(()))
    });
    told?;
    send(ats, "rotate", "rotate: not done: there is no leader at present")?;
    Ok(())
}

fn a_new_interval_counts(fleet: &Fleet) -> Result<()> {
    let carried = tickets::take_all(&fleet.https(), TlsVersion::V12)?;
    let shorter = |text: &str| text.replace("_interval: 3600", "_interval: 4");
    for ats in &fleet.servers {
        rewrite(ats, "server_conf.yaml", shorter)?;
        send(ats, "reload", "reload: done; changed: key_update_interval")?;
    }
    wait_generation_above(&fleet.servers[0], 3)?;
    // The first one after the reload; the second would be four seconds later.
    let matrix = tickets::offer_all(&fleet.https(), TlsVersion::V12, &carried);
    assert!(matrix.is_full(), "{matrix}");
    Ok(())
}

fn a_bad_file_changes_nothing(fleet: &Fleet) -> Result<()> {
    let ats = &fleet.servers[1];
    let from = ats.diags().len();
    rewrite(ats, "server_conf.yaml", |text| text.replace("_interval: 4", "_interval: soon"))?;
    send(ats, "reload", "reload: nothing was changed")?;
    wait_line(ats, from, "key_update_interval: \"soon\"")?;
    let now = stage::generation(ats).unwrap_or_default();
    wait_generation_above(ats, now)?;
    Ok(())
}

#[test]
fn new_certificates_are_taken_over_by_themselves_and_by_reload() -> Result<()> {
    // Out of turn: it mostly waits for the next look at the files, and disturbs nobody.
    let dir = RunDir::new("reload-certificates")?;
    let plan = Plan::new(2, &stage::plugin()?, Duration::from_secs(3600));
    let fleet = plan.manager().start(dir.path())?;
    let key = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let marks: Vec<usize> = fleet.servers.iter().map(|ats| ats.diags().len()).collect();

    let pki = dir.path().join("pki");
    let authority = Authority::read(&pki, "root")?;
    for id in 1..=2 {
        authority.issue(&Request::new(PEER_SUBJECT))?.write(&pki, &format!("peer-{id}"))?;
    }
    send(&fleet.servers[0], "reload", "reload: done; changed: the certificate, ")?;
    // The other one is told nothing, and the connections between them stay.
    wait_line(&fleet.servers[1], marks[1], "files changed; new connections use ")?;
    send(&fleet.servers[1], "rotate", "rotate: generation 2 is in use")?;
    fleet::wait_one_key(&fleet.https(), Some(&key), PATIENCE)?;
    for (ats, mark) in fleet.servers.iter().zip(marks) {
        let diags = ats.diags();
        let news = &diags[mark..];
        assert!(!news.contains(" is down"), "connections stay up\n{news}");
    }
    dir.done()
}

/// A certificate that is its own root: until the other one has read it, neither trusts the other,
/// and no connection outlives the trust that it was made with.
#[test]
fn a_new_root_parts_servers_until_both_have_it() -> Result<()> {
    // Out of turn, as the one above.
    let dir = RunDir::new("reload-root")?;
    let plan = Plan::new(2, &stage::plugin()?, Duration::from_secs(3600)).one_certificate();
    let fleet = plan.manager().start(dir.path())?;
    let key = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let marks: Vec<usize> = fleet.servers.iter().map(|ats| ats.diags().len()).collect();

    Identity::self_signed(PEER_SUBJECT)?.write(&dir.path().join("pki"), "peer")?;
    send(&fleet.servers[0], "reload", "reload: done; changed: the certificate, ")?;
    wait_line(&fleet.servers[0], marks[0], "is down: it is no longer trusted: its certificate")?;
    wait_line(&fleet.servers[1], marks[1], "files changed; new connections use ")?;
    wait::until(PATIENCE, "both to be one group again", || {
        // Whoever has something to ask dials; the one that follows has nothing.
        let is_up = |(ats, mark): (&Ats, &usize)| {
            let diags = ats.diags();
            let after = diags[*mark..].rsplit_once(" is down").map(|(_, after)| after);
            after.is_some_and(|after| after.contains("is up"))
        };
        Ok(fleet.servers.iter().zip(&marks).any(is_up).then_some(()))
    })?;
    send(&fleet.servers[1], "rotate", "is in use")?;
    fleet::wait_one_key(&fleet.https(), Some(&key), PATIENCE)?;
    dir.done()
}
