//! The seeds of the corpus, made of real messages, files and names.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslSessionRef,
    SslStream, SslVerifyMode, SslVersion,
};
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509Builder, X509NameBuilder, X509};
use stek_share::core::agreed::{Agreed, Command, Record};
use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::agreement::founding::{FoundedCluster, Prepare, Promise};
use stek_share::core::agreement::ranked_record::{Rank, RankedRecord};
use stek_share::core::config::Member;
use stek_share::core::key_ring::{ClusterId, Command as KeyCommand, Generation, RingKey};
use stek_share::core::log_id::{LeaderId, LogId};
use stek_share::core::node_id::{Incarnation, NodeId};
use stek_share::core::pre_vote::Status;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_id::ServerId;
use stek_share::core::server_list::ServerList;
use stek_share::core::server_status::ServerStatus;
use stek_share::core::sessions::{SessionBytes, SessionEvent, SessionId};
use stek_share::core::stek::{Stek, STEK_LEN};
use stek_share::node::state_file_fuzzing::{self as state_file, Saved};
use stek_share::rpc::{
    encode, AdminRefusal, AppendAnswer, ErrorResponse, MembershipRefusal, Recipient, Request,
    Response, WireAppend, WireEntry, WireMembership, WirePayload, WireSessions, WireSnapshot,
    WireVote,
};
use stek_share::transport::frame::{self, Body, Header, Hello, Kind, Role, Versions};

/// A self-signed certificate and its key, PEM.
pub fn identity(subject: &str) -> (Vec<u8>, Vec<u8>) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("OpenSSL has it");
    let key = EcKey::generate(&group).and_then(PKey::from_ec_key).expect("a key");
    let certificate = certificate(subject, &key);
    let pem = certificate.to_pem().expect("PEM");
    (pem, key.private_key_to_pem_pkcs8().expect("PEM"))
}

fn certificate(subject: &str, key: &PKey<Private>) -> X509 {
    certificate_with(subject, key, &SubjectAlternativeName::new())
}

/// A certificate with these alternative names, if there are any.
fn certificate_with(subject: &str, key: &PKey<Private>, names: &SubjectAlternativeName) -> X509 {
    let make = || {
        let mut name = X509NameBuilder::new()?;
        for part in subject.split('/').filter(|part| !part.is_empty()) {
            let (field, value) = part.split_once('=').unwrap_or((part, ""));
            name.append_entry_by_text(field, value)?;
        }
        let name = name.build();
        let mut certificate = X509Builder::new()?;
        certificate.set_version(2)?;
        let serial = BigNum::from_u32(1)?.to_asn1_integer()?;
        certificate.set_serial_number(&serial)?;
        certificate.set_subject_name(&name)?;
        certificate.set_issuer_name(&name)?;
        certificate.set_pubkey(key)?;
        certificate.set_not_before(&*Asn1Time::days_from_now(0)?)?;
        certificate.set_not_after(&*Asn1Time::days_from_now(3650)?)?;
        if let Ok(names) = names.build(&certificate.x509v3_context(None, None)) {
            certificate.append_extension(names)?;
        }
        certificate.sign(key, MessageDigest::sha256())?;
        Ok::<_, openssl::error::ErrorStack>(certificate.build())
    };
    make().expect("a certificate")
}

fn node(id: u32) -> NodeId {
    NodeId { server: ServerId(id), incarnation: Incarnation(7) }
}

fn epoch() -> Epoch {
    Epoch { counter: 1_800_000_000, founder: node(2) }
}

fn to() -> Recipient {
    Recipient { node: node(1), cluster: epoch() }
}

fn end(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node: node(2) }, index }
}

fn held(generation: u64) -> RingKey {
    let bytes: Vec<u8> =
        (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ generation as u8).collect();
    RingKey { generation: Generation(generation), stek: Stek::copy_from(&bytes).expect("48 bytes") }
}

/// The cluster incarnation of all seeds.
pub const CLUSTER_ID: [u8; 16] = [7; 16];

/// The subject that the server under test asks for.
pub const SUBJECT: &str = "/C=US/O=Edge/CN=server";

/// The DNS name and the URI that two entries of its list ask for.
pub const DNS: &str = "three.example";
pub const URI: &str = "spiffe://example.org/four";

fn member(id: u32) -> Member {
    let subject = (id == 2).then(|| "/CN=two".to_owned());
    Member {
        id: ServerId(id),
        address: "10.0.0.1".to_owned(),
        port: 9000 + id as u16,
        subject,
        voter: true,
    }
}

fn cluster_id() -> ClusterId {
    ClusterId::from_bytes(CLUSTER_ID).expect("it is not zero")
}

fn list() -> ServerList {
    ServerList::new(1, &[member(1), member(2)]).expect("a good list")
}

/// What a cluster incarnation of so many generations consists of.
fn story(generations: u64) -> Vec<Command> {
    let mut commands = vec![
        Command::Key(KeyCommand::Found { cluster_id: cluster_id() }),
        Command::ChangeMembership(list()),
    ];
    for g in 1..=generations {
        let stage = KeyCommand::Stage { held: held(g), revokes: g == 3 };
        let activate = KeyCommand::Activate { generation: Generation(g), keep: 2 };
        commands.extend([Command::Key(stage), Command::Key(activate)]);
    }
    commands
}

fn agreed(generations: u64) -> Agreed {
    let mut agreed = Agreed::default();
    for command in story(generations) {
        agreed.apply(command).expect("a good story");
    }
    agreed
}

/// What is agreed after so many generations.
fn record(generations: u64) -> Record {
    let voters = vec![[ServerId(1), ServerId(2)].into()];
    let (current_age_ms, staged_age_ms) = (9_000, 0);
    let agreed = agreed(generations);
    Record { agreed, current_age_ms, is_activation_open: false, staged_age_ms, voters }
}

/// What a server keeps after so many generations.
pub fn saved(generations: u64) -> Saved {
    RankedRecord { rank: Rank { epoch: epoch(), end: end(3, 9) }, record: record(generations) }
}

fn append(commands: Vec<Command>) -> Request {
    let voters = BTreeSet::from([node(1), node(2)]);
    let membership = WireMembership { configs: vec![voters.clone()], members: voters };
    let commands = commands.into_iter().map(WirePayload::Command);
    let payloads = [WirePayload::Blank, WirePayload::Membership(membership)];
    let entries = (8..).zip(payloads.into_iter().chain(commands));
    Request::Append(WireAppend {
        to: to(),
        vote: (end(3, 0).leader_id, true),
        previous: Some(end(3, 7)),
        entries: entries.map(|(i, payload)| WireEntry { id: end(3, i), payload }).collect(),
        commit: Some(end(3, 6)),
        age: Some((Generation(5), 1234)),
        quorum: true,
    })
}

fn snapshot() -> Request {
    let members = BTreeSet::from([node(1), node(2)]);
    Request::Snapshot(WireSnapshot {
        to: to(),
        vote: (end(3, 0).leader_id, true),
        last: Some(end(3, 9)),
        membership_at: Some(end(0, 0)),
        membership: WireMembership { configs: vec![members.clone()], members },
        id: "4".to_owned(),
        agreed: agreed(3),
        current_age_ms: 7000,
        staged_age_ms: 0,
    })
}

fn status() -> Status {
    Status {
        node: node(2),
        cluster: epoch(),
        known: epoch().counter,
        yours: Incarnation(7),
        list_version: 1,
        caught_up: true,
        vote: end(3, 0).leader_id,
        last_log_id: Some(end(3, 9)),
        cluster_id: Some(cluster_id()),
        generation: Generation(3),
        live_leader: true,
        quorum: true,
    }
}

/// A server's report; all that has no name here is empty, which is what zeros decode to.
fn report() -> ServerStatus {
    let (empty, _) = postcard::take_from_bytes::<ServerStatus>(&[0; 1_000]).expect("an empty one");
    let count = ("untrusted".to_owned(), 3);
    ServerStatus {
        id: ServerId(2),
        software: "0.1.0".to_owned(),
        refused_peers: vec![count],
        accepted: 7,
        ..empty
    }
}

fn requests() -> Vec<Request> {
    vec![
        Request::Status(status()),
        Request::Vote(WireVote {
            to: to(),
            candidate: end(4, 0).leader_id,
            last_log_id: Some(end(3, 9)),
        }),
        append(story(2)),
        append(Vec::new()),
        append(vec![Command::Found(Box::new(record(3)))]),
        append(vec![Command::Key(KeyCommand::Revoke(vec![held(1).stek.fingerprint()]))]),
        snapshot(),
        Request::AwaitInstalled {
            generation: Generation(7),
            key: held(7).stek.fingerprint(),
            limit_ms: 1000,
        },
        Request::AdminCommand {
            command: AdminCommand::Revoke,
            origin: "traffic_ctl on server 1".to_owned(),
        },
        Request::Sessions(WireSessions {
            generation: Generation(2),
            events: vec![
                SessionEvent::Made(
                    SessionId::new(&[7; 32]).expect("an id"),
                    SessionBytes::new(Body::new(vec![9; 125])).expect("a session"),
                ),
                SessionEvent::Removed(SessionId::new(&[8; 16]).expect("an id")),
                SessionEvent::WantNewest,
            ],
        }),
        Request::TimeoutNow,
        Request::ChangeMembership {
            replaces: list().digest(),
            members: vec![member(1), member(2)],
        },
        Request::ServerStatus,
        Request::ListInFile(list().digest()),
        Request::Reload { origin: "user admin".to_owned() },
        Request::Recover {
            survivors: [ServerId(1), ServerId(4)].into(),
            origin: "user admin".to_owned(),
        },
        Request::Prepare(Prepare { epoch: epoch(), to: node(1) }),
        Request::Found(Box::new(FoundedCluster {
            epoch: epoch(),
            voters: [(ServerId(1), Incarnation(7)), (ServerId(2), Incarnation(0))].into(),
            base: saved(3),
        })),
        Request::Revoked,
    ]
}

fn responses() -> Vec<Response> {
    let vote = (end(3, 0).leader_id, true);
    vec![
        Response::Status(status()),
        Response::Vote { vote, granted: true, last_log_id: Some(end(3, 9)) },
        Response::Append(AppendAnswer::Success),
        Response::Append(AppendAnswer::Partial(Some(end(3, 9)))),
        Response::Append(AppendAnswer::HigherVote(end(9, 0).leader_id, false)),
        Response::Snapshot { vote },
        Response::Installed { newest: Generation(3), incarnation: 7 },
        Response::AdminCommand(Err(AdminRefusal::Refused("why".to_owned()))),
        Response::TimeoutNow,
        Response::MembershipChanged(Ok(4)),
        Response::MembershipChanged(Err(MembershipRefusal::NotInFiles {
            lacking: vec![ServerId(1)],
            silent: vec![ServerId(2)],
        })),
        Response::ListInFile(true),
        Response::ErrorResponse(ErrorResponse::OtherNode),
        Response::ServerStatus(Box::new(report())),
        Response::Promise(Ok(Box::new(Promise {
            epoch: epoch(),
            from: node(1),
            newest: saved(3),
        }))),
        Response::Found(true),
        Response::Revoked(vec![held(1).stek.fingerprint()]),
    ]
}

fn frames() -> Vec<Vec<u8>> {
    [(Kind::Request, &b"hello"[..]), (Kind::OneWay, b""), (Kind::Unknown(9), b"x")]
        .map(|(kind, body)| {
            let header = Header { kind, request: 7, cluster_id: CLUSTER_ID };
            frame::encode(&header, body).expect("it is short").to_vec()
        })
        .to_vec()
}

/// Hellos of this version and of a later one, which says more.
fn greetings() -> Vec<Vec<u8>> {
    let hello = Hello {
        versions: Versions { min: 1, max: 3 },
        role: Role::Member,
        sender: ServerId(2),
        incarnation: 0x1112_1314_1516_1718,
        cluster_id: CLUSTER_ID,
    };
    let first = frame::encode_hello(&hello, 0);
    let refused = frame::encode_hello(&Hello { role: Role::Tool, ..hello }, 4);
    let mut longer = [&first[..], b"more"].concat();
    longer[7] += 4;
    vec![first, refused, longer]
}

fn names() -> Vec<Vec<u8>> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("OpenSSL has it");
    let key = EcKey::generate(&group).and_then(PKey::from_ec_key).expect("a key");
    let one = certificate(SUBJECT, &key);
    let other = certificate("/C=DE/O=A+B/CN=é/emailAddress=a@b", &key);
    let name = |c: &X509| c.subject_name().to_der().expect("DER");
    let named = |names: &mut SubjectAlternativeName| {
        certificate_with("/CN=x", &key, names).to_der().expect("DER")
    };
    vec![
        name(&one),
        name(&other),
        one.to_der().expect("DER"),
        named(SubjectAlternativeName::new().dns(DNS).uri(URI).ip("10.0.0.3")),
        named(SubjectAlternativeName::new().dns("Three.Example.").dns("*.example").email("a@b")),
        named(SubjectAlternativeName::new().uri("spiffe://example.org/four/five")),
        SUBJECT.as_bytes().to_vec(),
        b"/CN=two".to_vec(),
    ]
}

/// A server_name extension, and ClientHellos with one, alone and behind another extension.
fn hellos() -> Vec<Vec<u8>> {
    let name = b"\0\x0c\0\0\x09site.test";
    let own = [&[0, 0, 0, 14][..], name].concat();
    let hello = |extensions: &[u8]| {
        let head = [&[1, 0, 0, 0, 3, 3][..], &[7; 32], b"\x02id\0\x02\x13\x01\x01\0"].concat();
        let len = u16::try_from(extensions.len()).expect("short").to_be_bytes();
        [&head[..], &len, extensions].concat()
    };
    let behind = [&[0, 43, 0, 3, 2, 3, 4][..], &own].concat();
    vec![name.to_vec(), hello(&own), hello(&behind)]
}

/// One end's context for [`sessions`]: of this version, with or without tickets and a certificate.
fn end_of(
    version: SslVersion,
    gives_tickets: bool,
    pem: Option<&(Vec<u8>, Vec<u8>)>,
) -> SslContext {
    let make = || {
        let mut context = SslContextBuilder::new(SslMethod::tls())?;
        context.set_min_proto_version(Some(version))?;
        context.set_max_proto_version(Some(version))?;
        context.set_session_id_context(b"seeds")?;
        if !gives_tickets {
            context.set_options(SslOptions::NO_TICKET);
        }
        context.set_session_cache_mode(SslSessionCacheMode::BOTH);
        context.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
        if let Some((certificate, key)) = pem {
            let (certificate, key) =
                (X509::from_pem(certificate)?, PKey::private_key_from_pem(key)?);
            context.set_certificate(&certificate)?;
            context.set_private_key(&key)?;
        }
        Ok::<_, openssl::error::ErrorStack>(context)
    };
    make().expect("a context").build()
}

/// Sessions as OpenSSL writes them: those of a server and of its client, of TLS 1.2 and 1.3, with and
/// without a ticket, with and without a client's certificate.
fn sessions() -> Vec<Vec<u8>> {
    let (server, client) = (identity("/CN=server"), identity("/CN=client"));
    let mut seeds = Vec::new();
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        for (gives_tickets, shows) in [(false, None), (true, None), (false, Some(&client))] {
            let contexts = [(gives_tickets, Some(&server)), (true, shows)]
                .map(|(tickets, identity)| end_of(version, tickets, identity));
            let (near, far) = UnixStream::pair().expect("two sockets");
            let [server, client] = contexts.map(|context| Ssl::new(&context).expect("an end"));
            let serving = thread::spawn(move || {
                let mut stream = SslStream::new(server, near).expect("a stream");
                stream.accept().expect("a handshake");
                // What is read brings a ticket of TLS 1.3 along.
                stream.write_all(b"x").expect("it is heard");
                der(stream.ssl().session())
            });
            let mut stream = SslStream::new(client, far).expect("a stream");
            stream.connect().expect("a handshake");
            stream.read_exact(&mut [0]).expect("it is said");
            seeds.push(serving.join().expect("no panic"));
            seeds.push(der(stream.ssl().session()));
        }
    }
    seeds
}

fn der(session: Option<&SslSessionRef>) -> Vec<u8> {
    session.expect("a session").to_der().expect("DER")
}

/// Writes the seeds of each target into a directory of its name under `dir`.
pub fn write(dir: &Path) {
    let bytes = |message| encode(message).expect("it can be encoded").to_vec();
    let stories = [story(1), story(5)].map(|story| {
        story.iter().flat_map(|command| encode(command).expect("as before").to_vec()).collect()
    });
    let saved = [1, 3].map(|n| {
        let plain = state_file::plain(saved(n)).expect("it can be encoded");
        [&[255], plain.as_slice()].concat()
    });
    let whole = [&greetings()[0][..], &frames().concat()].concat();
    let streams = [[&[5], &whole[..]].concat(), [&[0], &greetings()[2][..], &frames()[2]].concat()];
    let conf = include_bytes!("../../example_server_conf.yaml").to_vec();
    let list = include_bytes!("../../example_server_list.yaml").to_vec();
    let odd = b"- {server_id: 0x2, address: fe80::1%eth0, port: '80', cert_verify_str: /CN=a}\n";
    let verbs = [&b"reload\0"[..], b"rotate", b"revoke", b"status\0", b"x"].map(<[u8]>::to_vec);
    for (target, seeds) in [
        ("frame", frames()),
        ("greeting", greetings()),
        ("stream", streams.to_vec()),
        ("request", requests().iter().map(|r| bytes(r)).collect()),
        ("response", responses().iter().map(|r| encode(r).expect("as before").to_vec()).collect()),
        ("commands", stories.to_vec()),
        ("conf", vec![conf, b"server_id: 1\naddress: a\nport: 1\n".to_vec()]),
        ("list", vec![list, odd.to_vec()]),
        ("state", [&saved[..], &[vec![8, 0, 9, 1], vec![0; 70]]].concat()),
        ("subject", names()),
        ("verb", verbs.to_vec()),
        ("hello", hellos()),
        ("session", sessions()),
    ] {
        let dir = dir.join(target);
        fs::create_dir_all(&dir).expect("a directory");
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(dir.join(format!("seed-{number}")), seed).expect("a file");
        }
    }
}
