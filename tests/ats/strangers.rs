//! A thousand strangers of each kind at the leader's port: none gets a byte of the protocol, none
//! stays for long, and the group does not notice.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use openssl::pkey::PKey;
use openssl::ssl::{HandshakeError, SslConnector, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use testkit::ats::Ats;
use testkit::fleet::{self, Fleet, Leader, Plan};
use testkit::pki::{Authority, Identity, Request};
use testkit::ports::connect_from;
use testkit::run_dir::RunDir;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Context, Error, Result};

use crate::stage::{authority, plugin, reserve_all, PATIENCE, PEER_SUBJECT};

/// Strangers of each kind.
const EACH: usize = 1000;
/// How many are at the door at the same time: fewer than what makes the listener turn the oldest
/// away, so that each is checked.
const AT_ONCE: usize = 8;
/// How long one may be held.
const LIMIT: Duration = Duration::from_secs(5);
/// Several of them while the strangers knock.
const INTERVAL: Duration = Duration::from_secs(2);

/// Who knocks.
enum Stranger {
    /// TLS with or without a certificate, up to 1.2 and up to 1.3: the two check at different moments.
    Tls([SslConnector; 2]),
    /// Bytes in clear.
    Plain,
}

/// What the strangers of one kind met.
#[derive(Debug, Default)]
struct Tally {
    /// How many came to a connection at all.
    connected: usize,
    /// How many believed the TLS handshake to be done, as TLS 1.3 clients do before they are checked.
    thought_in: usize,
    /// Bytes that they got to read inside TLS, or outside of it where that is no TLS record.
    bytes: usize,
    /// The longest from connect to close.
    longest: Duration,
    /// Those that were not closed in time.
    held: usize,
}

/// A client that trusts everybody and shows `identity`.
fn client(identity: Option<&Identity>) -> Result<Stranger> {
    let up_to = |newest| {
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_verify(SslVerifyMode::NONE);
        builder.set_max_proto_version(Some(newest))?;
        if let Some(identity) = identity {
            builder.set_certificate(&identity.certificate)?;
            builder.set_private_key(&identity.key)?;
        }
        Ok::<_, Error>(builder.build())
    };
    Ok(Stranger::Tls([up_to(SslVersion::TLS1_2)?, up_to(SslVersion::TLS1_3)?]))
}

/// The group's own authority, as the fleet wrote it; only its certificate is on disk, so that a
/// wrong subject is issued by reading the key beside it.
pub fn groups_authority(pki: &Path) -> Result<Authority> {
    let read = |name| std::fs::read(pki.join(name)).context(name);
    let certificate = X509::from_pem(&read("root.pem")?)?;
    let key = PKey::private_key_from_pem(&read("root.key")?)?;
    Ok(Authority { identity: Identity { certificate, key } })
}

/// What a stranger says who takes the door for something else, or guesses at our frames.
const WORDS: &[u8] = b"\0\0\0\x2fGET / HTTP/1.1\r\nHost: x\r\n\r\n0123456789abcdef0123456789abcdef";

/// Reads until the other side closes; what came, or `None` if it did not close in time.
fn drain(stream: &mut impl Read, end: Instant) -> Option<usize> {
    let (mut total, mut buffer) = (0, [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Some(total),
            Ok(n) => total += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return None;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Alerts and resets are ways to close.
            Err(_) => return Some(total),
        }
        if Instant::now() > end {
            return None;
        }
    }
}

impl Stranger {
    /// Knocks once; TLS 1.2 and 1.3 take turns by `number`.
    fn knock(&self, number: usize, door: SocketAddr, tally: &mut Tally) -> Result<()> {
        let begun = Instant::now();
        // From so many addresses that none is closed unheard: each is to be checked.
        let home = Ipv4Addr::new(127, 6, 1 + (number / 250) as u8, 1 + (number % 250) as u8);
        let tcp = connect_from(home, door).context("connect")?;
        tcp.set_read_timeout(Some(LIMIT))?;
        tally.connected += 1;
        let closed = match self {
            Self::Plain => {
                let mut tcp = tcp;
                // It may have been closed already.
                let _ = tcp.write_all(WORDS);
                drain(&mut tcp, begun + LIMIT).map(|got| tally.bytes += got)
            }
            Self::Tls(connectors) => {
                let connector = &connectors[number % 2];
                let config =
                    connector.configure()?.verify_hostname(false).use_server_name_indication(false);
                match config.connect("stranger", tcp) {
                    Ok(mut stream) => {
                        tally.thought_in += 1;
                        let _ = stream.write_all(WORDS);
                        let closed = drain(&mut stream, begun + LIMIT);
                        let _ = stream.get_ref().shutdown(Shutdown::Both);
                        closed.map(|got| tally.bytes += got)
                    }
                    Err(HandshakeError::Failure(_)) => Some(()),
                    Err(HandshakeError::WouldBlock(_)) => None,
                    Err(HandshakeError::SetupFailure(error)) => return Err(error.into()),
                }
            }
        };
        tally.longest = tally.longest.max(begun.elapsed());
        if closed.is_none() || begun.elapsed() > LIMIT {
            tally.held += 1;
        }
        Ok(())
    }

    /// All strangers of this kind, a few at a time.
    fn storm(&self, door: SocketAddr) -> Result<Tally> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut tally = Tally::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= EACH {
                    return Ok(tally);
                }
                self.knock(number, door, &mut tally)?;
            }
        };
        let tallies: Vec<Result<Tally>> = thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        tallies.into_iter().try_fold(Tally::default(), |sum, tally| {
            let tally = tally?;
            Ok(Tally {
                connected: sum.connected + tally.connected,
                thought_in: sum.thought_in + tally.thought_in,
                bytes: sum.bytes + tally.bytes,
                longest: sum.longest.max(tally.longest),
                held: sum.held + tally.held,
            })
        })
    }
}

/// The newest generation that the server said it encrypts with.
fn generation(ats: &Ats) -> Result<u64> {
    let diags = ats.diags();
    let last = diags.rsplit_once("(generation ").and_then(|(_, rest)| rest.split_once(')'));
    let number = last.and_then(|(number, _)| number.parse().ok());
    number.ok_or_else(|| Error::new(format!("no generation in {diags}")))
}

/// All that the servers ever said about who leads.
pub fn leadership(fleet: &Fleet) -> Vec<String> {
    let logs = fleet.servers.iter().map(|ats| ats.diags()).collect::<String>();
    let about =
        |line: &&str| line.contains("leader is server") || line.contains("is the leader of");
    logs.lines().filter(about).map(str::to_owned).collect()
}

pub fn leader(fleet: &Fleet) -> Result<Leader> {
    wait::until(PATIENCE, "a leader in diags.log", || Ok(fleet.leader()))
}

#[test]
fn a_thousand_strangers_of_each_kind_change_nothing() -> Result<()> {
    let _reserved = reserve_all();
    let dir = RunDir::new("strangers")?;
    // Bounds that a busy machine keeps; without them its own pauses would unseat the leader.
    let fleet = Plan::new(3, &plugin(), INTERVAL)
        .option("election_timeout_lower_bound", "600")
        .option("election_timeout_upper_bound", "1200")
        .start(dir.path())?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    let (first, begun) = (generation(&fleet.servers[0])?, Instant::now());
    let (before, said) = (leader(&fleet)?, leadership(&fleet));
    let door = SocketAddr::from((Ipv4Addr::LOCALHOST, fleet.raft_ports[before.index]));

    let group = groups_authority(&dir.join("pki"))?;
    let foreign = authority()?.issue(&Request::new(PEER_SUBJECT))?;
    let wrong = group.issue(&Request::new("/C=US/ST=IL/O=Yahoo/OU=Edge/CN=stek-sharf"))?;
    let kinds = [
        ("no certificate", client(None)?),
        ("a foreign CA", client(Some(&foreign))?),
        ("a wrong subject", client(Some(&wrong))?),
        ("plaintext", Stranger::Plain),
    ];
    for (who, stranger) in &kinds {
        let tally = stranger.storm(door).context(who)?;
        println!(
            "{who}: {} connected, {} thought to be in, {} bytes of data, closed after {:?} at most",
            tally.connected, tally.thought_in, tally.bytes, tally.longest
        );
        assert_eq!((tally.connected, tally.held, tally.bytes), (EACH, 0, 0), "{who}: {tally:?}");
        // With TLS 1.2 nobody even believes to be in.
        assert!(tally.thought_in <= EACH / 2, "{who}: {tally:?}");
    }
    wait::until(PATIENCE, "a rotation", || {
        Ok((generation(&fleet.servers[0])? > first).then_some(()))
    })?;
    let (rotations, took) = (generation(&fleet.servers[0])? - first, begun.elapsed());
    println!("{rotations} rotations in {took:?}, every {INTERVAL:?}");
    // The last one may be under way.
    assert!(rotations + 1 >= took.as_secs() / INTERVAL.as_secs(), "{rotations} in {took:?}");
    assert_eq!(leader(&fleet)?, before);
    assert_eq!(leadership(&fleet), said, "somebody else led for a while");
    let refused = fleet.servers[before.index].diags();
    assert!(refused.contains("refused 127.6.1."), "{refused}");
    let matrix = tickets::matrix(&fleet.https(), TlsVersion::V13)?;
    assert!(matrix.is_full(), "{matrix}");

    // The instrument: with a right certificate the same client is let in, by TLS 1.2 too.
    let right = client(Some(&group.issue(&Request::new(PEER_SUBJECT))?))?;
    let mut tally = Tally::default();
    right.knock(0, door, &mut tally)?;
    assert_eq!(tally.thought_in, 1, "a right certificate is refused as well");
    dir.done()
}
