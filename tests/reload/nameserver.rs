//! A name server of the test's own, for Traffic Servers that ask no other one.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use testkit::fleet::Place;
use testkit::sys::find;
use testkit::{Context, Result};

/// Answers each question about an IPv4 address of a peer, `*.example`, with 127.0.0.1 after a while,
/// or never; and says at once that there is nothing else, such as the machine's own name.
pub struct NameServer {
    address: Ipv4Addr,
    asked: Arc<AtomicUsize>,
}

/// The kinds of question, by the numbers of RFC 1035 and RFC 3596.
const A: [u8; 2] = [0, 1];

/// Bytes of the header in front of the one question.
const HEADER: usize = 12;

impl NameServer {
    /// One at `address`, which is for this test alone. Answers `after` a question, if at all. It
    /// ends with the test's process.
    pub fn start(address: Ipv4Addr, after: Option<Duration>) -> Result<NameServer> {
        let socket = UdpSocket::bind((address, 53)).context("a name server's port needs root")?;
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut question) {
                let question = &question[..len];
                if find(question, b"\x07example\0").is_none() {
                    let _ = socket.send_to(&none(question), from);
                    continue;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let Some((after, answer)) = after.zip(answer(question)) else { continue };
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
    pub fn place(&self, dir: &Path) -> Result<Place> {
        let conf = dir.join("resolv.conf");
        let address = self.address;
        fs::write(&conf, format!("nameserver {address}\noptions timeout:30 attempts:5\n"))?;
        let mount = format!("mount --bind '{}' /etc/resolv.conf && exec \"$@\"", conf.display());
        let words = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
        let wrapper = words.map(str::to_owned).to_vec();
        Ok(Place { address: IpAddr::V4(Ipv4Addr::LOCALHOST), wrapper })
    }
}

/// The answer that there is no such name.
fn none(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    if let Some(flags) = answer.get_mut(2..4) {
        flags.copy_from_slice(&[0x85, 0x83]);
    }
    answer
}

/// The answer to one question; there is no address of another kind than IPv4's.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let end = HEADER + question.get(HEADER..)?.iter().position(|byte| *byte == 0)? + 1;
    let asked = question.get(end..end + 4)?;
    let is_ipv4 = asked.starts_with(&A);
    let mut answer = question.get(..end + 4)?.to_vec();
    // An answer of an authority, without an error, to one question.
    answer[2..4].copy_from_slice(&[0x85, 0x80]);
    answer[4..HEADER].copy_from_slice(&[0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
    if is_ipv4 {
        // The name of the question, for no time at all.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}

/// Whether this process may have namespaces and low ports.
pub fn is_root() -> Result<bool> {
    Ok(std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self")?) == 0)
}
