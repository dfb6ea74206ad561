//! A network of this process's own: each server lives in a network namespace whose only way out is a
//! TUN device, and what it sends there is carried on, delayed or dropped by a hub in user space.
//!
//! Packets are lost as on a real network, so that the servers' own TCP meets it. The clients' device
//! is in the namespace of the caller; what they send and get is never touched. Needs root and
//! /dev/net/tun. All addresses are from 198.18.0.0/15, which RFC 2544 reserves for such tests.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{self, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{mpsc, Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::fleet::Place;
use crate::rng::Rng;
use crate::sys::{lock, open_tun};
use crate::{Context, Error, Result};

/// Longer than any packet on a device with the usual MTU.
const PACKET: usize = 2048;
/// Packets under way at most; more are dropped, as a full queue does.
const UNDER_WAY: usize = 4096;

/// The network. Dropping it removes the namespaces and the devices; no server may run any more.
#[derive(Debug)]
pub struct Hub {
    ports: Arc<Ports>,
    names: Vec<String>,
    /// The clients' device.
    front: String,
    /// Two networks cannot have the same addresses.
    _turn: MutexGuard<'static, ()>,
}

/// Index 0 is the clients' port, index `i` that of server `i`.
#[derive(Debug)]
struct Ports {
    devices: Vec<File>,
    /// `cut[from][to]`.
    cut: Vec<Vec<AtomicBool>>,
    delay: AtomicU64,
    lost: AtomicU64,
}

/// A packet, where it goes, and when it is to be there.
type UnderWay = (Instant, usize, Vec<u8>);

impl Hub {
    /// A network of `count` servers with ids from 1.
    ///
    /// # Errors
    /// Without root, /dev/net/tun or ip(8), or when somebody else uses the addresses.
    pub fn new(count: usize) -> Result<Hub> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = lock(&TURN);
        let mut hub_names = Vec::new();
        let mut devices = Vec::new();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let run = format!("{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let front = format!("stk{run}");
        for id in 0..=count {
            let device = if id == 0 { front.clone() } else { format!("server{id}") };
            let device = device.as_str();
            devices.push(open_tun(device)?);
            let address = address(id).to_string() + "/32";
            if id == 0 {
                ip(&["addr", "add", &address, "dev", device])?;
                ip(&["link", "set", device, "up"])?;
                ip(&["route", "add", "198.18.0.0/15", "dev", device])?;
                continue;
            }
            let name = format!("stek_share-{run}-{id}");
            ip(&["netns", "add", &name])?;
            hub_names.push(name.clone());
            ip(&["link", "set", device, "netns", &name])?;
            let inside = |words: &[&str]| ip(&[&["-n", &name], words].concat());
            inside(&["addr", "add", &address, "dev", device])?;
            inside(&["link", "set", "lo", "up"])?;
            inside(&["link", "set", device, "up"])?;
            // No other way leads out: Traffic Server asks for its own name at the start, and would
            // wait long for a name server that does not answer.
            inside(&["route", "add", "198.18.0.0/15", "dev", device])?;
        }
        let row = || (0..=count).map(|_| AtomicBool::new(false)).collect();
        let cut = (0..=count).map(|_| row()).collect();
        let ports = Ports { devices, cut, delay: AtomicU64::new(0), lost: AtomicU64::new(0) };
        let ports = Arc::new(ports);
        let (late, queue) = mpsc::sync_channel::<UnderWay>(UNDER_WAY);
        for from in 0..=count {
            let (ports, late) = (ports.clone(), late.clone());
            thread::spawn(move || ports.carry(from, &late));
        }
        let to = ports.clone();
        thread::spawn(move || {
            for (due, port, packet) in queue {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                to.deliver(port, &packet);
            }
        });
        Ok(Hub { ports, names: hub_names, front, _turn: turn })
    }

    /// Where the servers live.
    pub fn places(&self) -> Vec<Place> {
        let place = |(index, name): (usize, &String)| Place {
            address: IpAddr::V4(address(index + 1)),
            wrapper: ["ip", "netns", "exec", name].map(str::to_owned).to_vec(),
        };
        self.names.iter().enumerate().map(place).collect()
    }

    /// Cuts or heals what goes from some servers to others, by their indices in the fleet.
    pub fn silence(&self, from: &[usize], to: &[usize], cut: bool) {
        for (a, b) in from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))) {
            self.ports.cut[a + 1][b + 1].store(cut, Ordering::Relaxed);
        }
    }

    /// Cuts or heals both directions.
    pub fn part(&self, one: &[usize], other: &[usize], cut: bool) {
        self.silence(one, other, cut);
        self.silence(other, one, cut);
    }

    /// From now on a packet between servers needs `delay`, and of a thousand `lost` are dropped.
    pub fn weather(&self, delay: Duration, lost: u64) {
        self.ports.delay.store(delay.as_millis() as u64, Ordering::Relaxed);
        self.ports.lost.store(lost, Ordering::Relaxed);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Nothing to be done about a leftover; its name says whose it was. With its device gone
        // each port's thread ends.
        let _ = ip(&["link", "del", &self.front]);
        for name in &self.names {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

impl Ports {
    /// Reads what one port sends, for as long as its device is there.
    fn carry(&self, from: usize, late: &mpsc::SyncSender<UnderWay>) {
        let mut rng = Rng::new(from as u64 + 1);
        let mut packet = [0; PACKET];
        while let Ok(n) = (&self.devices[from]).read(&mut packet) {
            // IPv4 without options to look at: the destination is at 16 (RFC 791, section 3.1).
            let (Some(0x4), Some([198, 18, to, 1])) =
                (packet[..n].first().map(|first| first >> 4), packet[..n].get(16..20))
            else {
                continue;
            };
            let to = usize::from(*to);
            if to >= self.devices.len() {
                continue;
            }
            if from == 0 || to == 0 {
                self.deliver(to, &packet[..n]);
                continue;
            }
            let lost = (rng.below(1000) as u64) < self.lost.load(Ordering::Relaxed);
            if lost || self.cut[from][to].load(Ordering::Relaxed) {
                continue;
            }
            let delay = Duration::from_millis(self.delay.load(Ordering::Relaxed));
            let _ = late.try_send((Instant::now() + delay, to, packet[..n].to_vec()));
        }
    }

    fn deliver(&self, to: usize, packet: &[u8]) {
        // A device that takes nothing has lost the packet, as networks do.
        let _ = (&self.devices[to]).write(packet);
    }
}

fn address(id: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, u8::try_from(id).unwrap_or(u8::MAX), 1)
}

/// Runs ip(8).
fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output().context("ip (Debian: iproute2)")?;
    if output.status.success() {
        Ok(())
    } else {
        Err(Error::new(format!(
            "ip {}: {}; these tests need root",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )))
    }
}
