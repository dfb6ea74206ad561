//! The metrics of real Traffic Servers, as `traffic_ctl metric match` prints them, and what a server
//! says of itself to an operator's command: each number that can be provoked here is.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVerifyMode};
use openssl::x509::X509;
use stek_share::client::{admin_limit, AdminCommand, Client, Failure, STATUS_LIMIT};
use stek_share::core::config::{Member, Settings};
use stek_share::core::server_id::ServerId;
use stek_share::load::{self, Dirs, Loaded};
use stek_share::metrics::{METRICS, PREFIX};
use stek_share::transport::frame::{
    encode, encode_hello, Header, Hello, Kind, Role, Versions, HELLO_LEN,
};
use stek_share::transport::listener::Refusal;
use stek_share::transport::tls::Tls;
use testkit::ats::Ats;
use testkit::fleet::{self, Fleet, Plan};
use testkit::host::{self, host, named};
use testkit::pki::{Authority, Identity, Request};
use testkit::ports::connect_from;
use testkit::run_dir::RunDir;
use testkit::{wait, Context, Error, Result};

use crate::stage::{plugin, reserve, PATIENCE, PEER_SUBJECT};

/// Between two rotations, and the age of a key that is too old: the last part waits for it.
const INTERVAL: Duration = Duration::from_secs(12);

/// Silent strangers at once: more than the listener bears.
const LARGE_CLUSTER: u8 = 80;

type Numbers = BTreeMap<String, i64>;

/// All metrics of a server, by the names of the table.
fn numbers(ats: &Ats) -> Result<Numbers> {
    let text = ats.ctl(&["metric", "match", "plugin.stek_share"])?;
    // The command also says which run root it uses.
    text.lines()
        .filter_map(|line| line.strip_prefix(PREFIX))
        .map(|line| {
            let odd = || Error::new(format!("no metric: {line:?}"));
            let (name, value) = line.split_once(' ').ok_or_else(odd)?;
            Ok((name.to_owned(), value.trim().parse().map_err(|_| odd())?))
        })
        .collect()
}

/// Waits until a server's metrics are as `wanted` says; answers with them.
fn until(ats: &Ats, what: &str, wanted: impl Fn(&Numbers) -> bool) -> Result<Numbers> {
    let mut last = Numbers::new();
    let found = wait::until(PATIENCE, what, || {
        last = numbers(ats)?;
        // A manager that has just started has not heard of them all.
        Ok((last.len() >= METRICS.len() && wanted(&last)).then(|| last.clone()))
    });
    found.map_err(|error| Error::new(format!("{error}; the metrics are {last:?}\n{}", ats.diags())))
}

/// A server's configuration as an operator's command reads it.
fn loaded(ats: &Ats) -> Result<Loaded> {
    let conf = ats.etc().join("server_conf.yaml");
    let dirs = Dirs { working: ats.etc(), install: ats.etc(), config: ats.etc() };
    load::load(&conf.to_string_lossy(), &dirs).map_err(|e| Error::new(format!("{:?}", e.problems)))
}

fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

#[test]
fn every_number_moves_with_what_happens_to_a_fleet() -> Result<()> {
    let _reserved = reserve(3);
    let dir = RunDir::new("metrics")?;
    let age = INTERVAL.as_secs().to_string();
    let plan = Plan::new(3, &plugin(), INTERVAL).option("max_key_age", &age).manager();
    // What the plugin sets is to be seen at once.
    let quick = ["raw_stat_sync", "remote_sync", "config_update"];
    let quick = quick.map(|name| format!("proxy.config.{name}_interval_ms INT 200"));
    let plan = quick.iter().fold(plan, |plan, line| plan.record(line));
    let mut fleet = plan.prepare(dir.path())?;
    make_third_server_odd(&fleet, dir.path())?;
    fleet.start()?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;

    let leader = all_is_well(&fleet)?;
    the_odd_server_shows(&fleet)?;
    a_tool_sees_the_same_and_rotates(&fleet)?;
    strangers_are_counted(&fleet, (leader + 1) % 3, dir.path())?;
    the_rest_elects(&mut fleet, leader)?;
    a_server_alone_goes_on_with_its_own_key(&mut fleet)?;
    dir.done()
}

/// Its list has another word for an address, and its host a site that was to have a key of its own.
fn make_third_server_odd(fleet: &Fleet, dir: &Path) -> Result<()> {
    let etc = fleet.servers[2].etc();
    let list = etc.join("server_list.yaml");
    let text = fs::read_to_string(&list).context(list.display())?;
    fs::write(&list, text.replacen("127.0.0.1", "localhost", 1))?;
    let site = |end| dir.join("pki").join(format!("site.{end}")).display().to_string();
    let (certificate, key) = (site("pem"), site("key"));
    host::change_certificates(&etc, |lines| {
        format!("{lines}ticket_key_name=x ssl_cert_name={certificate} ssl_key_name={key}\n")
    })
}

/// What a fleet shows in which nothing is wrong; the leader's index.
fn all_is_well(fleet: &Fleet) -> Result<usize> {
    let settled = |n: &Numbers| {
        n["generation"] >= 1 && n["installed_generation"] == n["generation"] && n["quorum"] == 1
    };
    let mut leaders = Vec::new();
    for (index, ats) in fleet.servers.iter().enumerate() {
        let n = until(ats, "the first key", settled)?;
        let names: Vec<&str> = n.keys().map(String::as_str).collect();
        let mut known: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        known.sort_unstable();
        assert_eq!(names, known, "each has been made, and nothing else");
        assert_eq!((n["up"], n["server_id"], n["members"]), (1, index as i64 + 1, 3));
        assert!(n["role"] == 2 || n["role"] == 4, "{n:?}");
        assert!(n["leader_id"] >= 1 && n["term"] >= 1 && n["leader_changes"] >= 1, "{n:?}");
        assert_eq!((n["list_version"], n["key_in_use"], n["install_pending"]), (1, 1, 0), "{n:?}");
        assert!(n.values().all(|value| *value >= 0), "{n:?}");
        assert!((0..=10).contains(&n["quorum_age_seconds"]), "{n:?}");
        assert!(n["installs"] >= 2 && n["install_failures"] == 0, "{n:?}");
        assert!(n["staged"] >= 1 && n["rotations"] >= 1, "{n:?}");
        // The leader dials everybody; whether others had to dial it depends on who came first.
        let dialled = n["accepted_peers"] >= 1 || n["role"] == 4;
        assert!(dialled && n["certificate_seconds"] >= 1, "{n:?}");
        if n["role"] == 4 {
            leaders.push(index);
            assert_eq!(n["leader_id"], n["server_id"]);
            until(ats, "the leader's connections", |n| {
                n["peers_connected"] == 2 && n["peers_reachable"] == 2
            })?;
        }
    }
    let [leader] = leaders[..] else {
        return Err(Error::new(format!("leaders are {leaders:?}")));
    };
    let first = numbers(&fleet.servers[0])?;
    until(&fleet.servers[0], "time to go by", |n| {
        n["uptime_seconds"] > first["uptime_seconds"]
            && (n["key_age_seconds"] > first["key_age_seconds"]
                || n["generation"] > first["generation"])
            && n["next_rotation_seconds"] != first["next_rotation_seconds"]
    })?;
    Ok(leader)
}

fn the_odd_server_shows(fleet: &Fleet) -> Result<()> {
    let all = fleet.servers.iter().map(numbers).collect::<Result<Vec<_>>>()?;
    let of = |name: &str| all.iter().map(|n| n[name]).collect::<Vec<_>>();
    // The list of whoever led first is the agreed one.
    let differ = of("list_differs");
    assert!(differ == [0, 0, 1] || differ == [1, 1, 0], "{differ:?}");
    let hints = of("host_hints");
    assert!(hints[0] == hints[1] && hints[2] == hints[0] + 1, "{hints:?}");
    let diags = fleet.servers[2].diags();
    assert!(
        diags.contains(&named("ssl_multicert.config line 2: ticket_key_name: x names a ticket")),
        "{diags}"
    );
    Ok(())
}

fn a_tool_sees_the_same_and_rotates(fleet: &Fleet) -> Result<()> {
    let Loaded { settings, tls, .. } = loaded(&fleet.servers[0])?;
    let client = Client::new(&settings, &tls);
    let before = numbers(&fleet.servers[0])?;
    let through = &settings.members[1];
    let made =
        block_on(client.admin_command(through, AdminCommand::Rotate, admin_limit(&settings)));
    let made = made.map_err(|failure| Error::new(format!("rotate: {failure}")))?;
    for (member, ats) in settings.members.iter().zip(&fleet.servers) {
        until(ats, "the rotation", |n| n["generation"] >= made.0 as i64)?;
        let (status, _) = block_on(client.status(member, STATUS_LIMIT))
            .map_err(|failure| Error::new(format!("server {}: {failure}", member.id)))?;
        let version = status.host.version.clone().unwrap_or_default();
        assert_eq!(version, host()?.version().to_string());
        assert!(status.host.installs >= 3, "{status:?}");
    }
    let after = numbers(&fleet.servers[0])?;
    for name in ["rotations", "staged", "installs"] {
        assert!(after[name] > before[name], "{name}: {before:?}\n{after:?}");
    }
    Ok(())
}

/// One of each kind at the door of one server; see [`stek_share::transport::Cause`].
fn strangers_are_counted(fleet: &Fleet, index: usize, dir: &Path) -> Result<()> {
    let ats = &fleet.servers[index];
    let door = SocketAddr::from(([127, 0, 0, 1], fleet.raft_ports[index]));
    let before = numbers(ats)?;
    let pki = dir.join("pki");
    let authority = groups_authority(&pki)?;
    let good = authority.issue(&Request::new(PEER_SUBJECT))?;
    let other = authority.issue(&Request::new("/CN=other"))?;

    // They do not get in, and what their side thinks of that does not matter.
    drop(TcpStream::connect(door)?);
    TcpStream::connect(door)?.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    for identity in [None, Some(&Identity::self_signed(PEER_SUBJECT)?), Some(&other)] {
        if let Ok(mut stream) = shake_hands(door, identity) {
            let _ = stream.ssl_read(&mut [0; 64]);
        }
    }
    let Loaded { settings, tls, .. } = loaded(ats)?;
    let member = &settings.members[index];
    outsider_is_refused(&settings, &tls, member)?;
    other_cluster_peer_refuses_us(&settings, member)?;
    let hello = Hello {
        versions: Versions::OURS,
        role: Role::Tool,
        sender: ServerId(1),
        incarnation: 0,
        cluster_id: [0; 16],
    };
    let header = Header { kind: Kind::Request, request: 1, cluster_id: [0; 16] };
    let invalid_response =
        encode(&header, b"\xff no request").map_err(|e| Error::new(e.to_string()))?;
    for versions in [Versions::OURS, Versions { min: 99, max: 99 }] {
        let mut stream = shake_hands(door, Some(&good))?;
        stream.write_all(&encode_hello(&Hello { versions, ..hello }, 0))?;
        stream.read_exact(&mut [0; HELLO_LEN])?;
        let _ = stream.write_all(&invalid_response);
        let _ = stream.ssl_read(&mut [0; 64]);
    }
    // One address that comes too often, and then many that say nothing.
    for _ in 0..4 * u32::from(LARGE_CLUSTER) {
        drop(connect_from(Ipv4Addr::new(127, 5, 0, 1), door)?);
    }
    let from = |number| connect_from(Ipv4Addr::new(127, 5, 1, number), door);
    let large_cluster = (1..=LARGE_CLUSTER).map(from).collect::<std::io::Result<Vec<_>>>()?;

    let causes = [
        "no_certificate",
        "untrusted",
        "wrong_subject",
        "not_our_tls",
        "refused_us",
        "closed_early",
        "not_a_member",
        "bad_frame",
        "version",
        "too_slow",
        "over_limit",
        "over_rate",
    ];
    let name = |cause: &str| format!("refused_peers_{cause}");
    let after = until(ats, "every stranger to be counted", |n| {
        causes.iter().all(|cause| n[&name(cause)] > before[&name(cause)])
            && n["handshake_failures"] >= before["handshake_failures"] + 6
    })?;
    drop(large_cluster);
    let sum: i64 =
        after.iter().filter(|(n, _)| n.starts_with("refused_peers_")).map(|(_, v)| v).sum();
    assert_eq!(after["refused_peers"], sum);
    for cause in ["other_certificate", "refused", "library"] {
        assert_eq!(after[&name(cause)], 0, "{cause}");
    }
    assert_eq!((after["refused_keys"], after["up"]), (0, 1));
    Ok(())
}

fn outsider_is_refused(settings: &Settings, tls: &Tls, member: &Member) -> Result<()> {
    let outsider = Settings { server_id: ServerId(9), ..settings.clone() };
    match block_on(Client::new(&outsider, tls).status(member, STATUS_LIMIT)) {
        Err(Failure::Refused(Refusal::NotAMember)) => Ok(()),
        other => Err(Error::new(format!("an outsider got {other:?}"))),
    }
}

/// A client of another root, which turns its back on this server's certificate.
fn other_cluster_peer_refuses_us(settings: &Settings, member: &Member) -> Result<()> {
    let elsewhere = Authority::new("/CN=elsewhere")?;
    let own = elsewhere.issue(&Request::new(PEER_SUBJECT))?;
    let (root, chain) = (elsewhere.identity.certificate.to_pem()?, own.certificate.to_pem()?);
    let tls = Tls::from_pem(&root, &chain, &own.key.private_key_to_pem_pkcs8()?, PEER_SUBJECT)
        .map_err(|e| Error::new(format!("{e:?}")))?;
    match block_on(Client::new(settings, &tls).status(member, STATUS_LIMIT)) {
        Err(Failure::TheirCertificate(_)) => Ok(()),
        other => Err(Error::new(format!("a peer of another cluster got {other:?}"))),
    }
}

/// The group's own authority, whose key the fleet wrote beside its certificate.
fn groups_authority(pki: &Path) -> Result<Authority> {
    let read = |name| fs::read(pki.join(name)).context(name);
    let certificate = X509::from_pem(&read("root.pem")?)?;
    let key = PKey::private_key_from_pem(&read("root.key")?)?;
    Ok(Authority { identity: Identity { certificate, key } })
}

fn shake_hands(door: SocketAddr, identity: Option<&Identity>) -> Result<SslStream<TcpStream>> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_verify(SslVerifyMode::NONE);
    if let Some(identity) = identity {
        builder.set_certificate(&identity.certificate)?;
        builder.set_private_key(&identity.key)?;
    }
    let tcp = TcpStream::connect(door)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let config = builder.build().configure()?;
    let config = config.verify_hostname(false).use_server_name_indication(false);
    config.connect("stranger", tcp).map_err(|error| Error::new(error.to_string()))
}

/// Without their leader the two that are left have another.
fn the_rest_elects(fleet: &mut Fleet, leader: usize) -> Result<()> {
    let before = fleet.servers.iter().map(numbers).collect::<Result<Vec<_>>>()?;
    fleet.servers[leader].kill9();
    let mut stood = 0;
    for (index, ats) in fleet.servers.iter().enumerate().filter(|(index, _)| *index != leader) {
        let gone = leader as i64 + 1;
        let n = until(ats, "another leader", |n| n["leader_id"] != gone && n["leader_known"] == 1)?;
        assert!(n["term"] > before[index]["term"], "{n:?}");
        assert!(n["leader_changes"] > before[index]["leader_changes"], "{n:?}");
        stood += n["elections"] - before[index]["elections"];
        if n["role"] == 4 {
            until(ats, "one peer to be missed", |n| n["peers_reachable"] == 1)?;
        }
    }
    assert!(stood >= 1, "somebody campaigned");
    Ok(())
}

fn a_server_alone_goes_on_with_its_own_key(fleet: &mut Fleet) -> Result<()> {
    let mut left: Vec<&mut Ats> =
        fleet.servers.iter_mut().filter_map(|ats| ats.is_running().then_some(ats)).collect();
    let [other, alone] = &mut left[..] else { return Err(Error::new("not two are left")) };
    other.kill9();
    until(alone, "the majority to be missed", |n| {
        n["quorum"] == 0 && n["quorum_age_seconds"] >= 5
    })?;
    let n = until(alone, "a key of its own", |n| {
        n["key_in_use"] == 3 && n["next_rotation_seconds"] == 0
    })?;
    assert!(
        n["key_age_seconds"] >= INTERVAL.as_secs() as i64 && n["peers_reachable"] == 0,
        "{n:?}"
    );
    Ok(())
}
