//! What a stranger costs who says the same words again and again, against what it costs him.
//!
//! A ClientHello that was recorded once is sent at no cost, and the server answers it with a key
//! exchange and a signature. Times of the processor are compared within one run, of threads that
//! do nothing else; the machine's speed and its other work are in both.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use testkit::ats::cpu_of_threads;
use testkit::pki::Request;
use testkit::ports::connect_from;

use crate::fleet::{tls_of, Fleet, SUBJECT};
use crate::insider::door;
use crate::patient;

/// How often he says it.
const TIMES: usize = 10_000;
/// What the server may take for each second that he takes: 1.5 were measured, and 18 without a bound
/// on handshakes that come to nothing.
const MOST: f64 = 4.0;
/// The thread of the stranger.
const STRANGER: &str = "stranger";

/// What a TLS client says first.
fn client_hello() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let dialling = thread::spawn(move || {
        let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
        builder.set_verify(SslVerifyMode::NONE);
        let config = builder.build().configure().unwrap();
        let config = config.verify_hostname(false).use_server_name_indication(false);
        let _ = config.connect("server", TcpStream::connect(to).unwrap());
    });
    let (mut tcp, _) = listener.accept().unwrap();
    let mut head = [0; 5];
    tcp.read_exact(&mut head).unwrap();
    let mut body = vec![0; u16::from_be_bytes([head[3], head[4]]).into()];
    tcp.read_exact(&mut body).unwrap();
    drop(tcp);
    dialling.join().unwrap();
    [&head[..], &body].concat()
}

/// Says `words` as often as told, one connection after the other; how often there was an answer,
/// and the processor time that it took.
fn say_again_and_again(words: Vec<u8>, from: Ipv4Addr, to: SocketAddr) -> (usize, Duration) {
    let talk = move || {
        let mut answered = 0;
        for _ in 0..TIMES {
            let mut tcp = connect_from(from, to).unwrap();
            tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let heard = tcp.write_all(&words).and_then(|()| tcp.read(&mut [0; 4096]));
            answered += usize::from(heard.is_ok_and(|count| count > 0));
        }
        (answered, cpu_of_threads(std::process::id(), STRANGER).unwrap())
    };
    thread::Builder::new().name(STRANGER.into()).spawn(talk).unwrap().join().unwrap()
}

#[test]
fn who_repeats_himself_pays_about_as_much_as_the_server() {
    let mut fleet = Fleet::new(1, patient);
    let identity = fleet.authority.issue(&Request::new(SUBJECT).rsa()).unwrap();
    let tls = tls_of(&fleet.authority.identity, &identity, SUBJECT);
    fleet.start_with(1, fleet.settings(1), tls);
    fleet.wait_until_one();
    let words = client_hello();
    let server = || cpu_of_threads(std::process::id(), &fleet.servers[&1].threads).unwrap();

    let before = server();
    let from = Ipv4Addr::new(127, 3, 0, 1);
    let (answered, his) = say_again_and_again(words, from, door(&fleet, 1));
    let servers = server() - before;
    let ratio = servers.as_secs_f64() / his.as_secs_f64();
    println!(
        "{TIMES} connections, {answered} answered: {his:.2?} of his processor time, {servers:.2?} of the \
         server's, {ratio:.1} times as much"
    );
    // The instruments: he was there, and some of what he said was heard.
    assert!(his > Duration::from_millis(50) && answered >= 60, "{his:?}, {answered} answered");
    assert!(ratio < MOST, "{ratio:.1} times as much");
    let report = fleet.servers[&1].node.status();
    let count = |word: &str| report.refused_peers.iter().find(|(w, _)| w == word).map(|(_, n)| *n);
    assert!(count("over_rate").unwrap() as usize >= TIMES / 2, "{:?}", report.refused_peers);
}
