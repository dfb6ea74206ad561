//! Links that can be cut: each box dials each other one through a relay of its own, so that a
//! test can silence any direction of any link, as a network does, without a word to either end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use stek_share::core::config::{Member, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Relays for every ordered pair of boxes.
pub struct Relays {
    /// How a box (first) reaches another (second).
    links: BTreeMap<(u32, u32), Link>,
    _runtime: Runtime,
}

/// One direction of dialling.
struct Link {
    /// Where the dialling box finds the other one.
    port: u16,
    /// Whether anything gets through.
    open: watch::Sender<bool>,
    /// How many pieces the dialling box sent: one for each message that is followed by a pause.
    sent: Arc<AtomicU64>,
}

impl Relays {
    pub fn new(members: &[Member]) -> Relays {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut links = BTreeMap::new();
        for from in members {
            for to in members.iter().filter(|to| to.id != from.id) {
                let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
                let port = listener.local_addr().unwrap().port();
                let (open, is_open) = watch::channel(true);
                let sent = Arc::new(AtomicU64::new(0));
                runtime.spawn(relay(listener, to.port, is_open, sent.clone()));
                links.insert((from.id.0, to.id.0), Link { port, open, sent });
            }
        }
        Relays { links, _runtime: runtime }
    }

    /// Has a box find the others through its relays.
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
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
            self.links[&(a, b)].open.send_replace(!cut);
            self.links[&(b, a)].open.send_replace(!cut);
        }
    }

    /// How many pieces `from` has sent to `to` on connections that it dialled itself; messages
    /// with a pause after each are one piece each.
    pub fn sent(&self, from: u32, to: u32) -> u64 {
        self.links[&(from, to)].sent.load(Ordering::Relaxed)
    }
}

async fn relay(
    listener: TcpListener,
    to: u16,
    is_open: watch::Receiver<bool>,
    sent: Arc<AtomicU64>,
) {
    while let Ok((near, _)) = listener.accept().await {
        let (mut open, sent) = (is_open.clone(), sent.clone());
        tokio::spawn(async move {
            if open.wait_for(|open| *open).await.is_err() {
                return;
            }
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
            let answers = AtomicU64::new(0);
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::select! {
                () = forward(near_read, far_write, open.clone(), &sent) => {}
                () = forward(far_read, near_write, open, &answers) => {}
            }
        });
    }
}

/// Forwards while the link is open; holds back what comes while it is cut, as a sender's system
/// does that gets no acknowledgement.
async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut open: watch::Receiver<bool>,
    pieces: &AtomicU64,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(n) = from.read(&mut buffer).await else { return };
        if n == 0 || open.wait_for(|open| *open).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
        pieces.fetch_add(1, Ordering::Relaxed);
    }
}
