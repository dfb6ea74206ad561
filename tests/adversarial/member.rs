//! A member that says what no sound server would say.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use stek_share::core::agreed::{Agreed, Command};
use stek_share::core::key_ring::{ClusterId, Command as KeyCommand, Generation, KeyRing, RingKey};
use stek_share::core::log_id::{LeaderId, LogId};
use stek_share::core::rotation::AdminCommand;
use stek_share::core::sanity_bounds::{MAX_INDEX_LEAP, MAX_TERM_LEAP};
use stek_share::core::server_id::ServerId;
use stek_share::core::stek::{Stek, STEK_LEN};
use stek_share::node::new_key;
use stek_share::rpc::{encode, ErrorResponse, Request, Response, WireEntry, WirePayload, WireVote};
use stek_share::transport::frame::VERSION_MAX;

use crate::fleet::{block_on, wait_for, Fleet};
use crate::insider::{cluster_id, heartbeat, leader_id, life, snapshot, Insider};
use crate::{leader_term, rotate, three_of_four, ENEMY, REAL};

/// Terms of which no next one may be left, and the first that is out of sight.
const ABSURD: [u64; 4] = [u64::MAX, (1 << 62) + 1, 1 << 62, 1 << 40];

fn vote(term: u64) -> Request {
    // Its log is longer than any, so that nothing but the term speaks against it.
    let last_log_id = Some(LogId { leader_id: leader_id(term.min(1 << 62)), index: 1 << 20 });
    Request::Vote(WireVote { to: Default::default(), candidate: leader_id(term), last_log_id })
}

fn refused(answer: &Option<Response>) -> bool {
    matches!(answer, None | Some(Response::ErrorResponse(ErrorResponse::Malformed)))
}

/// The keys that the enemy would like to see installed in place of the group's.
fn ring(fleet: &Fleet, bytes: &[[u8; STEK_LEN]]) -> Agreed {
    let mut keys = KeyRing::default();
    let cluster_id = ClusterId::from_bytes(cluster_id(fleet)).unwrap();
    keys.apply(KeyCommand::Found { cluster_id }).unwrap();
    for generation in 1..=2 {
        let held = RingKey { generation: Generation(generation), stek: new_key().unwrap() };
        keys.apply(KeyCommand::Stage { held, revokes: false }).unwrap();
        keys.apply(KeyCommand::Activate { generation: Generation(generation), keep: 2 }).unwrap();
    }
    // Past the gate, which would not let these in: as bytes.
    let agreed = Agreed::of_ring(keys);
    let good: Vec<[u8; STEK_LEN]> = agreed.ring.all().map(|h| *h.stek.expose()).collect();
    let mut raw = encode(&agreed).unwrap().to_vec();
    for (old, new) in good.iter().zip(bytes) {
        let at = raw.windows(STEK_LEN).position(|w| w == old).unwrap();
        raw[at..at + STEK_LEN].copy_from_slice(new);
    }
    postcard::from_bytes(&raw).unwrap()
}

#[test]
fn the_term_cannot_be_raised_to_its_end() {
    let mut fleet = three_of_four();
    let (leader, term) = leader_term(&fleet);
    for to in 1..=REAL {
        for absurd in ABSURD.into_iter().chain([term + MAX_TERM_LEAP + 1]) {
            let agreed = ring(&fleet, &[]);
            for request in [
                vote(absurd),
                Request::Append(heartbeat(leader_id(absurd))),
                Request::Snapshot(snapshot(leader_id(absurd), 1 << 20, agreed)),
            ] {
                let answer = Insider::connect(&mut fleet, to).ask(&request);
                assert!(refused(&answer), "{request:?}: {answer:?}");
            }
        }
    }
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
    assert!(fleet.servers[&1].lines.has("counts far beyond what this server knows of"));
    rotate(&fleet);
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
}

/// A leap that is believed unseats the leader, which is any member's right in Raft. The group
/// elects again, and can do so ever after.
#[test]
fn a_group_that_was_led_astray_elects_again() {
    let mut fleet = three_of_four();
    let mut leaps = 0;
    for round in 1..=3 {
        let (_, term) = leader_term(&fleet);
        for to in 1..=REAL {
            let request = Request::Append(heartbeat(leader_id(term + MAX_TERM_LEAP)));
            let answer = Insider::connect(&mut fleet, to).ask(&request);
            leaps += u32::from(!refused(&answer));
        }
        rotate(&fleet);
        let (_, after) = leader_term(&fleet);
        assert!(after < (round + 1) * (MAX_TERM_LEAP + 1_000), "{after}");
    }
    assert!(leaps > 0, "no leap was believed, so nothing was shown");
}

#[test]
fn nobody_speaks_in_anothers_name() {
    let mut fleet = three_of_four();
    let (leader, term) = leader_term(&fleet);
    let victim = (1..=REAL).find(|id| *id != leader).unwrap();
    let others = LeaderId { term: term + 1, node: life(leader) };
    let last_log_id = Some(LogId { leader_id: others, index: 1 << 20 });
    let mut insider = Insider::connect(&mut fleet, victim);
    let agreed = ring(&fleet, &[]);
    for request in [
        Request::Vote(WireVote { to: Default::default(), candidate: others, last_log_id }),
        Request::Append(heartbeat(others)),
        Request::Snapshot(snapshot(others, 1 << 20, agreed)),
    ] {
        let answer = insider.ask(&request);
        assert!(
            matches!(answer, Some(Response::ErrorResponse(ErrorResponse::Malformed))),
            "{answer:?}"
        );
    }
    let body = encode(&Request::TimeoutNow).unwrap();
    let answer = insider.ask_bytes(ServerId(ENEMY), VERSION_MAX, &body);
    assert!(
        matches!(answer, Some(Response::ErrorResponse(ErrorResponse::Malformed))),
        "only a leader leaves"
    );
    // Under the victim's own id, under a listed one whose server answers elsewhere, and under none of
    // the list.
    for sender in [victim, leader, 99] {
        let mut insider = Insider::connect(&mut fleet, victim);
        assert!(insider.ask_bytes(ServerId(sender), VERSION_MAX, &body).is_none(), "{sender}");
    }
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
}

#[test]
fn bodies_and_versions_that_nobody_speaks_end_the_connection() {
    let mut fleet = three_of_four();
    let (leader, term) = leader_term(&fleet);
    let status = encode(&Request::Status(Default::default())).unwrap();
    let mut with_more = status.to_vec();
    with_more.push(0);
    for body in [&b""[..], &[255; 40], &[7; 4096], &with_more, &status[..status.len() - 1]] {
        let mut insider = Insider::connect(&mut fleet, leader);
        insider.status();
        assert!(insider.ask_bytes(ServerId(ENEMY), VERSION_MAX, body).is_none());
    }
    for version in [0, VERSION_MAX + 1, 255] {
        let mut insider = Insider::connect(&mut fleet, leader);
        assert!(insider.ask_bytes(ServerId(ENEMY), version, &status).is_none(), "{version}");
    }
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
}

#[test]
fn snapshots_with_keys_that_the_gate_refuses_are_not_taken() {
    let mut fleet = three_of_four();
    rotate(&fleet);
    let (leader, term) = leader_term(&fleet);
    let victim = (1..=REAL).find(|id| *id != leader).unwrap();
    let before = fleet.servers[&victim].host.latest();
    let good = *new_key().unwrap().expose();
    let mut one_part = good;
    one_part[16..32].fill(7);
    for keys in [vec![[0; STEK_LEN]], vec![one_part], vec![good, good]] {
        let bad = snapshot(leader_id(term + 1), 1 << 20, ring(&fleet, &keys));
        let answer = Insider::connect(&mut fleet, victim).ask(&Request::Snapshot(bad));
        assert!(answer.is_none(), "{answer:?}");
    }
    // An end of the log that would leave the group nothing to count on.
    for index in [u64::MAX, 1 << 62, 1 << 40, MAX_INDEX_LEAP + 1_000] {
        let far = snapshot(leader_id(term + 1), index, ring(&fleet, &[]));
        let answer = Insider::connect(&mut fleet, victim).ask(&Request::Snapshot(far));
        assert!(refused(&answer), "{index}: {answer:?}");
    }
    assert_eq!(fleet.servers[&victim].host.latest(), before);
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
}

#[test]
fn appends_with_gaps_or_of_later_terms_are_not_taken() {
    let mut fleet = three_of_four();
    let (leader, term) = leader_term(&fleet);
    let victim = (1..=REAL).find(|id| *id != leader).unwrap();
    let entry = |leader_id, index| {
        let stek = Stek::copy_from(&[0; STEK_LEN]).unwrap();
        let held = RingKey { generation: Generation(2), stek };
        let command = Command::Key(KeyCommand::Stage { held, revokes: false });
        WireEntry { id: LogId { leader_id, index }, payload: WirePayload::Command(command) }
    };
    let (now, later) = (leader_id(term + 1), leader_id(term + 2));
    for entries in [
        vec![entry(now, 8), entry(now, 10)],
        vec![entry(now, 8), entry(now, 8)],
        vec![entry(now, 7)],
        vec![entry(later, 8)],
        vec![entry(now, 8), entry(leader_id(term), 9)],
    ] {
        let previous = Some(LogId { leader_id: leader_id(term), index: 7 });
        let append = stek_share::rpc::WireAppend { previous, entries, ..heartbeat(now) };
        let answer = Insider::connect(&mut fleet, victim).ask(&Request::Append(append));
        assert!(answer.is_none(), "{answer:?}");
    }
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
}

/// Requests that any member may send, in a flood from several connections, beside votes of stale
/// terms. Nothing grows, the leader stays, and keys go on changing in time.
#[test]
fn a_flood_of_stale_votes_and_questions_changes_nothing() {
    const EACH: u32 = 2_500;
    let mut fleet = three_of_four();
    let (leader, term) = leader_term(&fleet);
    let cluster_id = cluster_id(&fleet);
    let rss = crate::strangers::resident_kib();
    let floods: Vec<_> = [vote(1), vote(term), Request::Append(heartbeat(leader_id(0)))]
        .into_iter()
        .chain([Request::Status(Default::default())])
        .map(|request| {
            let mut insider = Insider::connect(&mut fleet, leader);
            std::thread::spawn(move || {
                (0..EACH).filter(|_| insider.ask(&request).is_some()).count() as u32
            })
        })
        .collect();
    let begun = Instant::now();
    rotate(&fleet);
    let during = begun.elapsed();
    for flood in floods {
        assert_eq!(flood.join().unwrap(), EACH, "the flood ran dry");
    }
    assert!(during < Duration::from_secs(10), "a rotation took {during:?}");
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
    assert_eq!(self::cluster_id(&fleet), cluster_id);
    let grown = crate::strangers::resident_kib().saturating_sub(rss);
    println!("{} requests, a rotation in {during:?}, {grown} KiB more", 4 * EACH);
    assert!(grown < 20 * 1024, "{grown} KiB more");
}

/// Long polls that are never answered in time do not keep a server from answering others.
#[test]
fn waiting_questions_without_end_hold_up_nobody_else() {
    let mut fleet = three_of_four();
    let (leader, term) = leader_term(&fleet);
    let key = new_key().unwrap().fingerprint();
    let generation = Generation(u64::MAX);
    let wait = Request::AwaitInstalled { generation, key, limit_ms: u32::MAX };
    let wait = encode(&wait).unwrap();
    let mut hanging: Vec<Insider> = (0..4).map(|_| Insider::connect(&mut fleet, leader)).collect();
    for insider in &mut hanging {
        for _ in 0..100 {
            insider.send(ServerId(ENEMY), VERSION_MAX, &wait).unwrap();
        }
    }
    let mut insider = Insider::connect(&mut fleet, leader);
    assert!(insider.status().caught_up);
    rotate(&fleet);
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
}

/// What was said once is worth nothing when it is said again: by TLS, whoever recorded it.
#[test]
fn a_recorded_order_cannot_be_given_again() {
    let mut fleet = three_of_four();
    let (leader, _) = leader_term(&fleet);
    let recorder = crate::strangers::Recorder::before(crate::insider::door(&fleet, leader));
    let before = fleet.servers[&leader].node_status().current;
    let mut insider = Insider::connect_at(&mut fleet, recorder.addr);
    let answer = insider
        .ask(&Request::AdminCommand { command: AdminCommand::Rotate, origin: String::new() });
    assert!(matches!(answer, Some(Response::AdminCommand(Ok(_)))), "{answer:?}");
    fleet.wait_for_generation(before.0 + 1);
    drop(insider);
    let recorded = recorder.recorded();
    assert!(recorded.len() > 500, "{} bytes were recorded", recorded.len());
    for _ in 0..20 {
        crate::strangers::say_in_clear(
            TcpStream::connect(crate::insider::door(&fleet, leader)),
            &recorded,
        );
    }
    // An order that comes after them is the next one.
    let next = block_on(fleet.servers[&leader].node.admin_command(AdminCommand::Rotate)).unwrap();
    assert_eq!(next.0, before.0 + 2, "{}", fleet.describe());
    wait_for("all to be one", || fleet.is_one(), || fleet.describe());
}
