//! Strangers in great number, and what they cost.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use stek_share::transport::listener::{CONNECTIONS_PER_MEMBER, MAX_HANDSHAKES, SPARE_CONNECTIONS};
use testkit::pki::{Authority, Request};
use testkit::ports::connect_from;

use crate::fleet::{wait_for, SUBJECT};
use crate::insider::door;
use crate::{leader_term, rotate, three_of_four, ENEMY};

/// Connections in all, unless `STEK_ADVERSARIAL_CONNECTIONS` says otherwise.
const CONNECTIONS: usize = 5_000;
/// Connections that are held open at a time.
const HELD: usize = 1_000;
/// Addresses that the strangers come from, in turn: none comes so often that it would be closed
/// unheard, up to the number that `make prove-attack` has.
const ADDRESSES: usize = 2_000;
/// What the process may grow by, strangers' own ends included. It is all of the cluster.
const GROWTH_KIB: u64 = 48 * 1024;

/// Memory that this process has, in KiB.
pub fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Where this stranger comes from.
fn home(number: usize) -> Ipv4Addr {
    let number = number % ADDRESSES;
    Ipv4Addr::new(127, 4, 1 + (number / 250) as u8, 1 + (number % 250) as u8)
}

/// Says these bytes, and reads until the other side closes; what came.
pub fn say_in_clear(tcp: std::io::Result<TcpStream>, bytes: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    if let Ok(mut tcp) = tcp {
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = tcp.write_all(bytes);
        let _ = tcp.shutdown(Shutdown::Write);
        let _ = tcp.read_to_end(&mut got);
    }
    got
}

/// A wire tap: passes one connection on, and keeps what the dialling side said.
pub struct Recorder {
    /// Where to dial.
    pub addr: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    passing: thread::JoinHandle<()>,
}

impl Recorder {
    /// One that passes on to `to`.
    pub fn before(to: SocketAddr) -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
        let keep = heard.clone();
        let passing = thread::spawn(move || {
            let (mut near, _) = listener.accept().unwrap();
            let mut far = TcpStream::connect(to).unwrap();
            let (mut back, mut from) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            let answers = thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut back);
            });
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = near.read(&mut chunk) {
                keep.lock().unwrap().extend_from_slice(&chunk[..n]);
                far.write_all(&chunk[..n]).unwrap();
            }
            let _ = far.shutdown(Shutdown::Both);
            let _ = answers.join();
        });
        Recorder { addr, heard, passing }
    }

    /// All that was said, once the connection has ended.
    pub fn recorded(self) -> Vec<u8> {
        self.passing.join().unwrap();
        let heard = self.heard.lock().unwrap();
        heard.clone()
    }
}

/// What one stranger does; they take turns.
fn knock(number: usize, to: SocketAddr, tls: &[SslConnector]) {
    let tcp = connect_from(home(number), to);
    match number % 8 {
        // Bytes in clear, and bytes that begin as TLS does.
        0..=3 => drop(say_in_clear(tcp, b"GET / HTTP/1.1\r\nHost: box\r\n\r\n")),
        4 => drop(say_in_clear(tcp, &[22, 3, 1, 255, 255, 1, 2, 3])),
        // Comes and goes.
        5 | 6 => drop(tcp),
        // TLS without a certificate, with a stranger's, and with a wrong subject.
        _ => {
            let Ok(tcp) = tcp else { return };
            tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let config = tls[number / 8 % tls.len()].configure().unwrap();
            let config = config.verify_hostname(false).use_server_name_indication(false);
            if let Ok(mut stream) = config.connect("server", tcp) {
                let mut got = Vec::new();
                let _ = stream.write_all(&[0; 64]);
                let _ = stream.read_to_end(&mut got);
                assert!(got.is_empty(), "a stranger was answered");
            }
        }
    }
}

fn strangers_tls(authority: &Authority) -> Vec<SslConnector> {
    let foreign = Authority::new("/O=Edge/CN=Test Root").unwrap();
    let identities = [
        None,
        Some(foreign.issue(&Request::new(SUBJECT)).unwrap()),
        Some(authority.issue(&Request::new("/CN=else")).unwrap()),
        Some(authority.issue(&Request::new(SUBJECT).expired()).unwrap()),
    ];
    let connector = |identity: Option<testkit::pki::Identity>| {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
        builder.set_verify(SslVerifyMode::NONE);
        if let Some(identity) = identity {
            builder.set_certificate(&identity.certificate).unwrap();
            builder.set_private_key(&identity.key).unwrap();
        }
        builder.build()
    };
    identities.into_iter().map(connector).collect()
}

#[test]
fn a_storm_of_connections_and_a_thousand_held_change_nothing() {
    let wanted = std::env::var("STEK_ADVERSARIAL_CONNECTIONS").ok();
    let connections = wanted.and_then(|n| n.parse().ok()).unwrap_or(CONNECTIONS);
    let fleet = three_of_four();
    let (leader, term) = leader_term(&fleet);
    let to = door(&fleet, leader);
    let tls = strangers_tls(&fleet.authority);
    let (rss, fds) = (resident_kib(), descriptors());

    // Held open by those who come and say nothing: the server lets go of them, they do not.
    let begun = Instant::now();
    let held: Vec<TcpStream> = (0..HELD).map(|n| connect_from(home(n), to).unwrap()).collect();
    let bound = ENEMY as usize * CONNECTIONS_PER_MEMBER + SPARE_CONNECTIONS + MAX_HANDSHAKES;
    wait_for(
        "the server to keep no more of them than it should",
        || descriptors() <= fds + HELD + bound,
        || format!("{} descriptors, {fds} before", descriptors()),
    );
    rotate(&fleet);

    let next = std::sync::atomic::AtomicUsize::new(0);
    let mut peak = (0, 0);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= connections {
                        return;
                    }
                    knock(number, to, &tls);
                })
            })
            .collect();
        rotate(&fleet);
        while workers.iter().any(|worker| !worker.is_finished()) {
            peak = (peak.0.max(resident_kib()), peak.1.max(descriptors()));
            thread::sleep(Duration::from_millis(20));
        }
    });
    let took = begun.elapsed();
    // Each was checked by what it showed, not by how often its address came.
    let refused = fleet.servers[&leader].node.status().refused_peers;
    let count = |word: &str| refused.iter().find(|(w, _)| w == word).map_or(0, |(_, n)| *n);
    let assessed = count("not_our_tls") + count("no_certificate") + count("untrusted");
    let assessed = usize::try_from(assessed + count("wrong_subject")).unwrap();
    assert_eq!(count("over_rate"), 0, "{refused:?}");
    assert!(assessed >= connections / 2, "{assessed} of {connections}: {refused:?}");
    let grown = peak.0.saturating_sub(rss);
    println!(
        "{connections} connections and {HELD} held in {took:?}: {grown} KiB more at most, {} \
         descriptors of {} before, the strangers' own among them",
        peak.1, fds
    );
    assert!(grown < GROWTH_KIB, "{grown} KiB more");
    assert!(peak.1 <= fds + HELD + bound + 2 * 8, "{} descriptors, {fds} before", peak.1);
    rotate(&fleet);
    assert_eq!(leader_term(&fleet), (leader, term), "{}", fleet.describe());
    drop(held);
    wait_for(
        "all strangers to be forgotten",
        || descriptors() <= fds + 8,
        || format!("{} descriptors, {fds} before", descriptors()),
    );
}
