//! Links with weather: each server dials each other one through a relay of its own, so that a test
//! can silence any direction of any link, or make all of them slow or unreliable, without a word
//! to either end.
//!
//! This is a picture of a network above TCP, not below it. What is sent while a way is cut is held
//! back, and arrives as soon as the way is open again; a real sender would try again only after a
//! pause that grows. A lost packet is a pause of that connection, as long as it takes a sender to
//! miss the acknowledgement and try again, since TCP shows no other trace of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use stek_share::core::config::{Member, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, Instant};

/// Linux's least time until a sender tries again, to which a round trip is added.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// Pieces that may be under way on one connection; then the sender has to wait.
const UNDER_WAY: usize = 256;

/// Relays for every ordered pair of servers.
pub struct Relays {
    /// How a server (first) reaches another (second).
    links: BTreeMap<(u32, u32), Link>,
    /// Whether anything gets from a server (first) to another (second), whoever dialled.
    ways: BTreeMap<(u32, u32), watch::Sender<bool>>,
    weather: Arc<Weather>,
    /// The server whose connections are reset, each time when one is written into it.
    resets: watch::Sender<u32>,
    _runtime: Runtime,
}

/// One direction of dialling.
struct Link {
    /// Where the dialling server finds the other one.
    port: u16,
    /// How many pieces the dialling server sent: one for each message that is followed by a pause.
    sent: Arc<AtomicU64>,
}

/// What all links are like.
#[derive(Default)]
struct Weather {
    /// From one end to the other, in milliseconds.
    delay: AtomicU64,
    /// Pieces of a thousand that are lost at first.
    lost: AtomicU64,
}

/// One way of one connection.
struct Way {
    open: watch::Receiver<bool>,
    weather: Arc<Weather>,
    pieces: Arc<AtomicU64>,
}

impl Relays {
    pub fn new(members: &[Member]) -> Relays {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let weather = Arc::new(Weather::default());
        let pairs = members.iter().flat_map(|from| members.iter().map(move |to| (from, to)));
        let pairs: Vec<_> = pairs.filter(|(from, to)| from.id != to.id).collect();
        let key = |from: &Member, to: &Member| (from.id.0, to.id.0);
        let ways: BTreeMap<_, _> =
            pairs.iter().map(|(from, to)| (key(from, to), watch::channel(true).0)).collect();
        let resets = watch::Sender::new(0);
        let mut links = BTreeMap::new();
        for (from, to) in pairs {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let port = listener.local_addr().unwrap().port();
            let sent = Arc::new(AtomicU64::new(0));
            let way = |from, to, pieces| Way {
                open: ways[&key(from, to)].subscribe(),
                weather: weather.clone(),
                pieces,
            };
            let there = way(from, to, sent.clone());
            let back = way(to, from, Arc::default());
            let ends = [from.id.0, to.id.0];
            runtime.spawn(relay(listener, to.port, there, back, (ends, resets.subscribe())));
            links.insert(key(from, to), Link { port, sent });
        }
        Relays { links, ways, weather, resets, _runtime: runtime }
    }

    /// Has a server find the others through its relays.
    pub fn reroute(&self, settings: &mut Settings) {
        let me = settings.server_id.0;
        for member in &mut settings.members {
            if let Some(link) = self.links.get(&(me, member.id.0)) {
                member.port = link.port;
            }
        }
    }

    /// Cuts or heals all links between the two sides, in both directions.
    pub fn part(&self, one: &[u32], other: &[u32], cut: bool) {
        self.silence(one, other, cut);
        self.silence(other, one, cut);
    }

    /// Cuts or heals what goes from some servers to others; the other direction stays as it is.
    pub fn silence(&self, from: &[u32], to: &[u32], cut: bool) {
        for (a, b) in from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))) {
            if a != b {
                self.ways[&(a, b)].send_replace(!cut);
            }
        }
    }

    /// Closes all connections with a server, as a proxy before it does that is restarted; it may be
    /// dialled again at once.
    pub fn reset(&self, id: u32) {
        self.resets.send_replace(id);
    }

    /// From now on whatever is sent needs `delay` to arrive, and of a thousand pieces `lost` need
    /// a second attempt.
    pub fn weather(&self, delay: Duration, lost: u64) {
        self.weather.delay.store(delay.as_millis() as u64, Ordering::Relaxed);
        self.weather.lost.store(lost, Ordering::Relaxed);
    }

    /// How many pieces `from` has sent to `to` on connections that it dialled itself; messages
    /// with a pause after each are one piece each.
    pub fn sent(&self, from: u32, to: u32) -> u64 {
        self.links[&(from, to)].sent.load(Ordering::Relaxed)
    }
}

impl Weather {
    fn delay(&self) -> Duration {
        Duration::from_millis(self.delay.load(Ordering::Relaxed))
    }

    /// How long a piece needs.
    fn travel(&self, rng: &mut u64) -> Duration {
        *rng ^= *rng << 13;
        *rng ^= *rng >> 7;
        *rng ^= *rng << 17;
        let lost = (*rng >> 33) % 1000 < self.lost.load(Ordering::Relaxed);
        let again = if lost { RETRANSMISSION + self.delay() * 2 } else { Duration::ZERO };
        self.delay() + again
    }
}

impl Way {
    fn again(&self) -> Way {
        let (open, pieces) = (self.open.clone(), self.pieces.clone());
        Way { open, pieces, weather: self.weather.clone() }
    }

    async fn is_open(&mut self) -> bool {
        self.open.wait_for(|open| *open).await.is_ok()
    }
}

async fn relay(
    listener: TcpListener,
    to: u16,
    there: Way,
    back: Way,
    (ends, resets): ([u32; 2], watch::Receiver<u32>),
) {
    while let Ok((near, _)) = listener.accept().await {
        let mut resets = resets.clone();
        resets.mark_unchanged();
        let (mut there, mut back) = (there.again(), back.again());
        tokio::spawn(async move {
            if !there.is_open().await || !back.is_open().await {
                return;
            }
            // The first segment's way there, and the answer's way back.
            tokio::time::sleep(there.weather.delay() * 2).await;
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::select! {
                () = forward(near_read, far_write, there) => {}
                () = forward(far_read, near_write, back) => {}
                () = is_reset(&mut resets, ends) => {}
            }
        });
    }
}

/// Returns when the connections of one of these ends are reset.
async fn is_reset(resets: &mut watch::Receiver<u32>, ends: [u32; 2]) {
    while resets.changed().await.is_ok() {
        if ends.contains(&resets.borrow_and_update()) {
            return;
        }
    }
    std::future::pending().await
}

/// Forwards in order, each piece after its travel; while the way is cut all is held back, the end
/// of the connection too, as a sender's system does that gets no acknowledgement.
async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: Way) {
    let (under_way, mut arrivals) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let weather = way.weather.clone();
    let read = async move {
        let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mut rng = u64::from(clock.subsec_nanos()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = from.read(&mut buffer).await.unwrap_or(0);
            let due = Instant::now() + weather.travel(&mut rng);
            if under_way.send((due, buffer[..n].to_vec())).await.is_err() || n == 0 {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = arrivals.recv().await {
            sleep_until(due).await;
            if !way.is_open().await || piece.is_empty() || to.write_all(&piece).await.is_err() {
                return;
            }
            way.pieces.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::join!(read, write);
}
