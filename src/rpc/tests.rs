//! What is refused, what fits, and that the table in the module's head is the code's.

use std::collections::{BTreeMap, BTreeSet};

use super::malformed::MAX_COUNT;
use super::raft::{MAX_ENTRIES, MAX_SNAPSHOT_ID};
use super::*;
use crate::core::agreed::{Agreed, Command, Refusal};
use crate::core::agreement::epoch::Epoch;
use crate::core::agreement::ranked_record::{Rank, RankedRecord};
use crate::core::config::MAX_SUBJECT;
use crate::core::key_ring::{
    ClusterId, Command as KeyCommand, KeyRing, Refusal as KeyRefusal, RingKey, MAX_GENERATION,
};
use crate::core::node_id::Incarnation;
use crate::core::server_id::ServerId;
use crate::core::server_list::{ServerList, MAX_ADDRESS};
use crate::core::server_status::BadStatus;
use crate::core::sessions::{SessionBytes, SessionEvent, SessionId};
use crate::core::sessions::{MAX_ID, MAX_PER_MESSAGE, MAX_SESSION};
use crate::core::stek::{Stek, STEK_LEN};
use crate::transport::frame::MAX_BODY;

/// One request of each kind; those of Raft's are of server 2, in term 6.
pub(crate) fn one_of_each() -> Vec<Request> {
    let leader_id = LeaderId { term: 6, node: NodeId::of(2) };
    let member =
        Member { id: ServerId(1), address: "a".to_owned(), port: 1, subject: None, voter: true };
    let list = ServerList::new(1, &[member]).unwrap().digest();
    let members = BTreeSet::from([NodeId::of(1)]);
    let to = Recipient { node: NodeId::of(1), ..Recipient::default() };
    let epoch = Epoch { counter: 5, founder: NodeId::of(2) };
    let membership = WireMembership { configs: vec![members.clone()], members };
    vec![
        Request::Status(Status::default()),
        Request::Vote(WireVote { to, candidate: leader_id, last_log_id: None }),
        Request::Append(WireAppend {
            to,
            vote: (leader_id, true),
            previous: None,
            entries: Vec::new(),
            commit: None,
            age: None,
            quorum: true,
        }),
        Request::Snapshot(WireSnapshot {
            vote: (leader_id, true),
            membership,
            ..snapshot(KeyRing::default())
        }),
        Request::AwaitInstalled {
            generation: Generation(0),
            key: held(1).stek.fingerprint(),
            limit_ms: 0,
        },
        Request::AdminCommand { command: AdminCommand::Rotate, origin: String::new() },
        Request::TimeoutNow,
        Request::ChangeMembership { replaces: list, members: Vec::new() },
        Request::ServerStatus,
        Request::Heartbeat(WireHeartbeat {
            cluster: epoch,
            list_version: 1,
            leader_id,
            last_log_id: None,
            commit: None,
            age: None,
            quorum: true,
            next_ms: 100,
        }),
        Request::ListInFile(list),
        Request::Prepare(Prepare { epoch, to: to.node }),
        Request::Found(Box::new(found(epoch))),
        Request::Revoked,
        Request::Sessions(WireSessions {
            generation: Generation(0),
            events: vec![SessionEvent::WantNewest],
        }),
        Request::Reload { origin: String::new() },
        Request::Recover { survivors: [ServerId(1)].into(), origin: String::new() },
    ]
}

fn found(epoch: Epoch) -> FoundedCluster<Record> {
    let record = Record::of_file([ServerId(1)].into());
    let voters = BTreeMap::from([(ServerId(1), Incarnation(7))]);
    FoundedCluster { epoch, voters, base: RankedRecord { rank: Rank::default(), record } }
}

/// The name of a request's kind.
pub(crate) fn kind(request: &Request) -> &'static str {
    match request {
        Request::Status(_) => "Status",
        Request::Vote(_) => "Vote",
        Request::Append(_) => "Append",
        Request::Snapshot(_) => "Snapshot",
        Request::AwaitInstalled { .. } => "AwaitInstalled",
        Request::AdminCommand { .. } => "AdminCommand",
        Request::TimeoutNow => "TimeoutNow",
        Request::ChangeMembership { .. } => "ChangeMembership",
        Request::ServerStatus => "ServerStatus",
        Request::Heartbeat(_) => "Heartbeat",
        Request::ListInFile(_) => "ListInFile",
        Request::Prepare(_) => "Prepare",
        Request::Found(_) => "Found",
        Request::Revoked => "Revoked",
        Request::Sessions(_) => "Sessions",
        Request::Reload { .. } => "Reload",
        Request::Recover { .. } => "Recover",
    }
}

/// The cells of the table in the module's head, by the kind of request.
pub(crate) fn table() -> BTreeMap<&'static str, Vec<&'static str>> {
    let head = include_str!("mod.rs").lines().take_while(|line| line.starts_with("//!"));
    let rows = head.filter_map(|line| line.strip_prefix("//! | `")?.strip_suffix(" |"));
    rows.map(|row| {
        let mut cells = row.split(" | ");
        (cells.next().unwrap_or_default().trim_end_matches('`'), cells.collect())
    })
    .collect()
}

/// What is answered to whom in which state is held to the table in [`crate::node`].
#[test]
fn the_table_has_a_row_for_each_kind_in_the_order_of_the_wire() {
    let table = table();
    let all = one_of_each();
    for (number, request) in all.iter().enumerate() {
        let kind = kind(request);
        let bytes = encode(request).unwrap();
        assert_eq!(usize::from(bytes[0]), number, "{kind}");
        assert_eq!(kind, super::tests::kind(&decode_request(&bytes).unwrap()));
        let cells = table.get(kind).unwrap_or_else(|| panic!("no row for {kind}"));
        assert_eq!(cells.iter().filter(|cell| !cell.is_empty()).count(), 4, "{kind}");
        assert_eq!(cells[0].contains("tools"), request.is_for_tools(), "{kind}: {}", cells[0]);
    }
    assert_eq!(table.len(), all.len(), "{:?}", table.keys());
    let next = postcard::from_bytes::<Request>(&[all.len() as u8]);
    assert_eq!(next.err(), Some(postcard::Error::SerdeDeCustom), "a kind is in no row");
    assert!(all.iter().all(|request| is_known(&encode(request).unwrap())));
    assert!(!is_known(&[all.len() as u8]) && !is_known(&[]));
}

#[test]
fn a_message_of_sessions_is_bounded_and_known_by_its_first_byte() {
    let id = SessionId::new(&[7; MAX_ID]).unwrap();
    let bytes = || SessionBytes::new(Zeroizing::new(vec![7; MAX_SESSION])).unwrap();
    let of = |count, generation| {
        let events = (0..count).map(|_| SessionEvent::Made(id, bytes())).collect();
        encode(&Request::Sessions(WireSessions { generation: Generation(generation), events }))
    };
    let most = of(MAX_PER_MESSAGE, MAX_GENERATION.0).unwrap();
    assert!(decode_request(&most).is_ok() && most.len() <= MAX_SESSIONS_MESSAGE, "{}", most.len());
    assert_eq!(decode_request(&of(0, 1).unwrap()).err(), Some(Malformed::Absurd));
    for request in one_of_each() {
        let encoded = encode(&request).unwrap();
        assert_eq!(is_of_sessions(&encoded), matches!(request, Request::Sessions(_)));
    }
    let more = decode_request(&of(MAX_PER_MESSAGE + 1, 1).unwrap());
    assert_eq!(more.err(), Some(Malformed::TooMany("sessions")));
    let absurd = decode_request(&of(1, MAX_GENERATION.0 + 1).unwrap());
    assert_eq!(absurd.err(), Some(Malformed::Absurd));
}

fn end(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node: NodeId::of(2) }, index }
}

fn held(generation: u64) -> RingKey {
    let bytes: Vec<u8> =
        (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ generation as u8).collect();
    RingKey { generation: Generation(generation), stek: Stek::copy_from(&bytes).unwrap() }
}

pub(crate) fn append(indexes: &[u64]) -> WireAppend {
    let entries = indexes
        .iter()
        .map(|&i| WireEntry {
            id: end(3, i),
            payload: WirePayload::Command(Command::Key(KeyCommand::Stage {
                held: held(i),
                revokes: false,
            })),
        })
        .collect();
    WireAppend {
        to: Recipient::default(),
        vote: (end(3, 0).leader_id, true),
        previous: Some(end(3, 7)),
        entries,
        commit: Some(end(3, 6)),
        age: Some((Generation(5), 1234)),
        quorum: true,
    }
}

pub(crate) fn ring() -> KeyRing {
    let mut ring = KeyRing::default();
    let cluster_id = ClusterId::from_bytes([1; 16]).unwrap();
    ring.apply(KeyCommand::Found { cluster_id }).unwrap();
    ring.apply(KeyCommand::Stage { held: held(1), revokes: false }).unwrap();
    ring.apply(KeyCommand::Activate { generation: Generation(1), keep: 2 }).unwrap();
    ring
}

#[test]
fn a_refused_list_says_who_lacks_it_and_what_to_do() {
    let ids = |ids: &[u32]| ids.iter().map(|&id| ServerId(id)).collect::<Vec<_>>();
    let said = |lacking: &[u32], silent: &[u32]| {
        let (lacking, silent) = (ids(lacking), ids(silent));
        MembershipRefusal::NotInFiles { lacking, silent }.to_string()
    };
    let remedy = ": put the same server_list_file on all servers, then reload one";
    for (lacking, silent, words) in [
        (&[2, 3][..], &[][..], "servers 2 and 3 do not have this list yet"),
        (
            &[2],
            &[4],
            "server 2 does not have this list yet; server 4 did not say what the file holds",
        ),
        (&[], &[2, 3, 4], "servers 2, 3 and 4 did not say what the file holds"),
    ] {
        assert_eq!(said(lacking, silent), format!("{words}{remedy}"));
    }
    let most: Vec<u32> = (1..=MAX_MEMBERS as u32).collect();
    let words = said(&most, &most);
    assert!(words.contains(", 16 and 984 more do not") && words.len() < 400, "{words}");
}

#[test]
fn an_order_says_where_it_came_from_in_bounded_words() {
    let order = |length| Request::AdminCommand {
        command: AdminCommand::Revoke,
        origin: "x".repeat(length),
    };
    assert!(decode_request(&encode(&order(MAX_ORIGIN)).unwrap()).is_ok());
    let refused = decode_request(&encode(&order(MAX_ORIGIN + 1)).unwrap());
    assert!(matches!(refused, Err(Malformed::TooMany(_))), "{refused:?}");
}

#[test]
fn entries_must_follow_each_other() {
    for bad in [&[9, 10][..], &[8, 10], &[8, 8]] {
        let bytes = encode(&Request::Append(append(bad))).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::Order)));
    }
}

#[test]
fn counts_beyond_all_reason_are_refused() {
    let absurd = LogId { index: u64::MAX, ..end(3, 0) };
    let mut appends: Vec<WireAppend> = (0..4).map(|_| append(&[8])).collect();
    appends[0].previous = Some(absurd);
    appends[1].commit = Some(absurd);
    appends[2].vote.0.term = u64::MAX;
    appends[3].entries[0].id.index = u64::MAX;
    for append in appends {
        let bytes = encode(&Request::Append(append)).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::Absurd)));
    }
    let vote = WireVote {
        to: Recipient::default(),
        candidate: end(u64::MAX, 0).leader_id,
        last_log_id: None,
    };
    let bytes = encode(&Request::Vote(vote)).unwrap();
    assert!(matches!(decode_request(&bytes), Err(Malformed::Absurd)));
}

#[test]
fn absurd_answers_are_refused_too() {
    let absurd = end(MAX_COUNT + 1, 0).leader_id;
    let far = Some(end(3, MAX_COUNT + 1));
    let status = |vote, last_log_id| Status { vote, last_log_id, ..Status::default() };
    for answer in [
        Response::Append(AppendAnswer::HigherVote(absurd, true)),
        Response::Append(AppendAnswer::Partial(far)),
        Response::Vote { vote: (absurd, false), granted: true, last_log_id: None },
        Response::Vote { vote: (end(3, 0).leader_id, false), granted: true, last_log_id: far },
        Response::Snapshot { vote: (absurd, true) },
        Response::Status(status(absurd, None)),
        Response::Status(status(end(3, 0).leader_id, far)),
    ] {
        let bytes = encode(&answer).unwrap();
        assert!(matches!(decode_response(&bytes), Err(Malformed::Absurd)), "{answer:?}");
    }
    let bytes = encode(&Request::Status(status(absurd, None))).unwrap();
    assert!(matches!(decode_request(&bytes), Err(Malformed::Absurd)));
}

#[test]
fn a_founding_without_sense_is_refused() {
    let epoch = Epoch { counter: 5, founder: NodeId::of(2) };
    let refused = |change: fn(&mut FoundedCluster<Record>)| {
        let mut bad = found(epoch);
        change(&mut bad);
        decode_request(&encode(&Request::Found(Box::new(bad))).unwrap()).err()
    };
    assert_eq!(refused(|_| {}), None);
    assert_eq!(refused(|found| found.epoch.counter = MAX_COUNT + 1), Some(Malformed::Absurd));
    assert_eq!(refused(|found| found.voters.clear()), Some(Malformed::NoVoters));
    let bad = Some(Malformed::State(Refusal::VoterSets(0)));
    assert_eq!(refused(|found| found.base.record.voters.clear()), bad);
    let nobody = |found: &mut FoundedCluster<Record>| found.base.record.voters[0].clear();
    assert_eq!(refused(nobody), Some(Malformed::State(Refusal::Voters)));
    let far = |found: &mut FoundedCluster<Record>| found.base.rank.end.index = MAX_COUNT + 1;
    assert_eq!(refused(far), Some(Malformed::Absurd));
    let prepare = Prepare { epoch: Epoch { counter: MAX_COUNT + 1, ..epoch }, to: NodeId::of(1) };
    let bytes = encode(&Request::Prepare(prepare)).unwrap();
    assert_eq!(decode_request(&bytes).err(), Some(Malformed::Absurd));
}

#[test]
fn a_leader_sends_nothing_of_a_later_term_than_its_own() {
    let mut appends: Vec<WireAppend> = (0..4).map(|_| append(&[8, 9])).collect();
    appends[0].previous = Some(end(4, 7));
    appends[1].commit = Some(end(4, 7));
    appends[2].entries[1].id = end(4, 9);
    appends[3].entries[1].id = end(2, 9);
    for append in appends {
        let bytes = encode(&Request::Append(append)).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::Order)));
    }
    let mut snapshots: Vec<WireSnapshot> = (0..3).map(|_| snapshot(ring())).collect();
    snapshots[0].last = None;
    snapshots[1].last = Some(end(4, 9));
    snapshots[2].membership_at = Some(end(3, 10));
    for snapshot in snapshots {
        let bytes = encode(&Request::Snapshot(snapshot)).unwrap();
        assert!(matches!(decode_request(&bytes), Err(Malformed::Order)));
    }
}

#[test]
fn bounds_hold() {
    let many: Vec<u64> = (8..8 + MAX_ENTRIES as u64 + 1).collect();
    let bytes = encode(&Request::Append(append(&many))).unwrap();
    assert!(matches!(decode_request(&bytes), Err(Malformed::TooMany("entries"))));
    let mut bytes =
        encode(&Request::AdminCommand { command: AdminCommand::Rotate, origin: String::new() })
            .unwrap()
            .to_vec();
    bytes.push(0);
    assert!(matches!(decode_request(&bytes), Err(Malformed::Trailing(1))));
}

pub(crate) fn snapshot(ring: KeyRing) -> WireSnapshot {
    let members = BTreeSet::from([NodeId::of(1), NodeId::of(2)]);
    let agreed = Agreed::of_ring(ring);
    WireSnapshot {
        to: Recipient::default(),
        vote: (end(3, 0).leader_id, true),
        last: Some(end(3, 9)),
        membership_at: Some(end(0, 0)),
        membership: WireMembership { configs: vec![members.clone()], members },
        id: "4".to_owned(),
        agreed,
        current_age_ms: 7000,
        staged_age_ms: 0,
    }
}

/// What is agreed has to fit into one message however large it is within its bounds: a server
/// that restarts could not be taken in otherwise.
#[test]
fn the_largest_state_fits_into_a_message() {
    let member = |id: u32, version: u64| Member {
        id: ServerId(u32::MAX - id),
        address: format!("{version:0>0$}", MAX_ADDRESS),
        port: 1 + (id + version as u32) as u16,
        subject: Some(format!("{id:s>0$}", MAX_SUBJECT)),
        voter: true,
    };
    let mut agreed = Agreed::default();
    let cluster_id = ClusterId::from_bytes([1; 16]).unwrap();
    agreed.ring.apply(KeyCommand::Found { cluster_id }).unwrap();
    let keys = 100;
    for generation in 1..=keys {
        let stage = KeyCommand::Stage { held: held(generation), revokes: false };
        agreed.ring.apply(stage).unwrap();
        if generation < keys {
            let generation = Generation(generation);
            agreed.ring.apply(KeyCommand::Activate { generation, keep: 255 }).unwrap();
        }
    }
    let largest = |version| {
        let members: Vec<Member> = (0..MAX_MEMBERS as u32).map(|i| member(i, version)).collect();
        ServerList::new(version, &members).unwrap()
    };
    let one = ServerList::new(1, &[member(1, 1)]).unwrap();
    for version in 1..=70 {
        let list = match version {
            70 => largest(version),
            _ => ServerList::new(version, one.members()).unwrap(),
        };
        agreed.apply(Command::ChangeMembership(list)).unwrap();
    }
    let everybody = || (0..MAX_MEMBERS as u32).map(|id| NodeId::of(u32::MAX - id)).collect();
    let mut largest = snapshot(KeyRing::default());
    largest.agreed = agreed;
    largest.membership =
        WireMembership { configs: vec![everybody(), everybody()], members: everybody() };
    largest.id = "9".repeat(MAX_SNAPSHOT_ID);
    let bytes = encode(&Request::Snapshot(largest)).unwrap();
    assert!(decode_request(&bytes).is_ok());
    assert!(bytes.len() < MAX_BODY, "{} bytes", bytes.len());
}

#[test]
fn entries_and_names_beyond_all_bounds_are_refused() {
    let long = Member {
        id: ServerId(1),
        address: "a".repeat(900_000),
        port: 1,
        subject: None,
        voter: true,
    };
    let list: ServerList = postcard::from_bytes(&encode(&(1_u64, vec![long])).unwrap()).unwrap();
    let mut append = append(&[8]);
    append.entries[0].payload = WirePayload::Command(Command::ChangeMembership(list));
    let bytes = encode(&Request::Append(append)).unwrap();
    assert!(matches!(decode_request(&bytes), Err(Malformed::State(Refusal::ServerList(_)))));
    let mut named = snapshot(ring());
    named.id = "4".repeat(MAX_SNAPSHOT_ID + 1);
    let bytes = encode(&Request::Snapshot(named)).unwrap();
    assert!(matches!(decode_request(&bytes), Err(Malformed::TooMany(_))));
    let generation = Generation(MAX_GENERATION.0 + 1);
    let status = Status { generation, ..Status::default() };
    let bytes = encode(&Request::Status(status)).unwrap();
    assert!(matches!(decode_request(&bytes), Err(Malformed::Absurd)));
}

#[test]
fn impossible_rings_and_memberships_are_refused() {
    let mut bad = snapshot(ring());
    bad.membership.configs.clear();
    let bytes = encode(&Request::Snapshot(bad)).unwrap();
    assert!(matches!(decode_request(&bytes), Err(Malformed::NoVoters)));

    // A zero key can only come from a server that skipped key validation.
    let bytes = encode(&Request::Snapshot(snapshot(ring()))).unwrap();
    let key = *held(1).stek.expose();
    let at = bytes.windows(STEK_LEN).position(|w| w == key).unwrap();
    let mut bytes = bytes.to_vec();
    bytes[at..at + 16].fill(0);
    assert!(matches!(
        decode_request(&bytes),
        Err(Malformed::State(Refusal::Key(KeyRefusal::Weak(_))))
    ));
}

#[test]
fn a_status_survives_and_one_that_no_server_gives_is_refused() {
    let status = crate::core::server_status::tests::sample();
    let bytes = encode(&Response::ServerStatus(Box::new(status.clone()))).unwrap();
    let Ok(Response::ServerStatus(back)) = decode_response(&bytes) else { panic!("no status") };
    assert_eq!(*back, status);
    for cut in 0..bytes.len() {
        assert!(decode_response(&bytes[..cut]).is_err(), "prefix of {cut} bytes");
    }
    let mut odd = status;
    odd.certificate.subject = "/CN=\u{1b}[31m".to_owned();
    let bytes = encode(&Response::ServerStatus(Box::new(odd))).unwrap();
    assert!(matches!(decode_response(&bytes), Err(Malformed::Status(BadStatus::Text))));
}

#[test]
fn no_prefix_of_a_message_decodes_and_nothing_panics() {
    let bytes = encode(&Request::Snapshot(snapshot(ring()))).unwrap();
    for cut in 0..bytes.len() {
        assert!(decode_request(&bytes[..cut]).is_err(), "prefix of {cut} bytes");
    }
}
