//! A name server of the test's own, for Traffic Servers that ask no other one. Needs root, for its port and for
//! the namespace in which a server asks it.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::fleet::Place;
use crate::sys::find;
use crate::{Context, Result};

/// Answers questions about peers, `*.example`; and says at once that there is nothing else, such as the
/// machine's own name.
#[derive(Debug)]
pub struct NameServer {
    address: Ipv4Addr,
    asked: Arc<AtomicUsize>,
}

/// What a name server does about a question.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Nothing.
    Silence,
    /// It says that it cannot tell (SERVFAIL), or that there is no such name (NXDOMAIN).
    Error(u8),
    /// These addresses, after a while.
    Addresses(Vec<Ipv4Addr>, Duration),
}

/// `SERVFAIL` and `NXDOMAIN` (RFC 1035).
pub const SERVFAIL: u8 = 2;
/// See [`SERVFAIL`].
pub const NXDOMAIN: u8 = 3;

/// The kind of question about an IPv4 address, by the number of RFC 1035.
const A: [u8; 2] = [0, 1];

/// Bytes of the header in front of the one question.
const HEADER: usize = 12;

impl NameServer {
    /// One at `address`, which is for this test alone, that answers each question with 127.0.0.1 `after` a
    /// while, if at all. It ends with the test's process.
    ///
    /// # Errors
    /// The port is taken, or is not for this process.
    pub fn start(address: Ipv4Addr, after: Option<Duration>) -> Result<NameServer> {
        NameServer::with(address, move |_, _| match after {
            Some(after) => Answer::Addresses(vec![Ipv4Addr::LOCALHOST], after),
            None => Answer::Silence,
        })
    }

    /// The same with another answer for each name, of which the part before the first dot counts, and for each
    /// time (from 0) that its IPv4 address was asked for.
    ///
    /// # Errors
    /// As [`NameServer::start`].
    pub fn with(
        address: Ipv4Addr,
        decide: impl Fn(&str, usize) -> Answer + Send + 'static,
    ) -> Result<NameServer> {
        let socket = UdpSocket::bind((address, 53)).context("a name server's port needs root")?;
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        thread::spawn(move || {
            let mut times: HashMap<String, usize> = HashMap::new();
            let mut question = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut question) {
                let question = &question[..len];
                if find(question, b"\x07example\0").is_none() {
                    let _ = socket.send_to(&refusal(question, NXDOMAIN), from);
                    continue;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let Some((name, is_ipv4)) = parts(question) else { continue };
                let time = times.entry(name.clone()).or_default();
                let decided = decide(&name, *time);
                *time += usize::from(is_ipv4);
                let (answer, after) = match decided {
                    Answer::Silence => continue,
                    Answer::Error(code) => (refusal(question, code), Duration::ZERO),
                    Answer::Addresses(all, after) => {
                        let all = if is_ipv4 { all } else { Vec::new() };
                        (found(question, &all), after)
                    }
                };
                let Ok(socket) = socket.try_clone() else { continue };
                thread::spawn(move || {
                    thread::sleep(after);
                    let _ = socket.send_to(&answer, from);
                });
            }
        });
        Ok(NameServer { address, asked })
    }

    /// Questions so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Where a Traffic Server lives that asks this one alone, and waits long for it.
    ///
    /// # Errors
    /// The file for that cannot be written.
    pub fn place(&self, dir: &Path) -> Result<Place> {
        place(dir, &format!("nameserver {}\noptions timeout:30 attempts:5\n", self.address))
    }
}

/// Where a Traffic Server lives whose /etc/resolv.conf has this text.
///
/// # Errors
/// The file for that cannot be written.
pub fn place(dir: &Path, text: &str) -> Result<Place> {
    let conf = dir.join("resolv.conf");
    fs::write(&conf, text)?;
    let mount = format!("mount --bind '{}' /etc/resolv.conf && exec \"$@\"", conf.display());
    let words = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    let wrapper = words.map(str::to_owned).to_vec();
    Ok(Place { address: IpAddr::V4(Ipv4Addr::LOCALHOST), wrapper })
}

/// The first label of the name that is asked for, and whether its IPv4 address is.
fn parts(question: &[u8]) -> Option<(String, bool)> {
    let name = question.get(HEADER..)?;
    let len = usize::from(*name.first()?);
    let label = String::from_utf8_lossy(name.get(1..=len)?).to_ascii_lowercase();
    let end = name.iter().position(|byte| *byte == 0)?;
    Some((label, name.get(end + 1..end + 3)? == A))
}

/// The answer that is none, for this reason.
fn refusal(question: &[u8], code: u8) -> Vec<u8> {
    let mut answer = question.to_vec();
    if let Some(flags) = answer.get_mut(2..4) {
        flags.copy_from_slice(&[0x85, 0x80 | code]);
    }
    answer
}

/// The answer to one question.
fn found(question: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    let name = question.get(HEADER..).unwrap_or_default();
    let end = HEADER + name.iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
    let mut answer = question.get(..end).unwrap_or_default().to_vec();
    let count = u8::try_from(addresses.len()).unwrap_or(u8::MAX);
    if let Some(head) = answer.get_mut(2..HEADER) {
        // An answer of an authority, without an error, to one question.
        head.copy_from_slice(&[0x85, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    }
    for address in addresses {
        // The name of the question, for no time at all.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}

/// Whether this process may have namespaces and low ports.
///
/// # Errors
/// The system does not tell.
pub fn is_root() -> Result<bool> {
    Ok(std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self")?) == 0)
}
