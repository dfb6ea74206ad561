//! The state file: what is inside the seal, and the sealed bytes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use stek_share::consensus::log_store::{LogStore, Remembered};
use stek_share::consensus::saved::Saved;
use stek_share::consensus::state_machine::{AgreedView, StateMachine};
use stek_share::consensus::wire::encode;
use stek_share::core::key_ring::HistoryId;
use stek_share::core::moment::Moment;
use stek_share::core::server_id::ServerId;
use stek_share::node::state_file_door as door;
use stek_share::transport::tls::Tls;
use tokio::sync::watch;

use crate::messages::hold_agreed;
use crate::seeds::identity;

/// The history of all seeds.
pub const HISTORY: [u8; 16] = [7; 16];

fn history() -> HistoryId {
    HistoryId::from_bytes(HISTORY).expect("it is not zero")
}

/// The box that reads.
const ID: ServerId = ServerId(3);

fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| {
        let (certificate, key) = identity("/CN=box");
        Tls::from_pem(&certificate, &certificate, &key, "").expect("it is good")
    })
}

/// The first byte of the input says how the rest is meant: as the bytes of a file, as a change of a
/// file that is good, or, mostly, as what was inside the seal.
pub fn content(input: &[u8]) {
    let [kind, bytes @ ..] = input else { return };
    match kind {
        0..=7 => assert!(door::open(bytes, ID, tls()).is_err(), "forged"),
        8..=15 => damage(bytes),
        _ => unsealed(bytes),
    }
}

/// A file with any byte changed is refused.
fn damage(bytes: &[u8]) {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    let good = GOOD.get_or_init(|| {
        let plain = door::plain(crate::seeds::saved(3)).expect("it can be encoded");
        door::seal(&plain, history(), ID, tls()).expect("it can be sealed")
    });
    let mut changed = good.clone();
    for pair in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([pair[0], pair[1]])) % changed.len();
        changed[at] ^= pair[2];
    }
    let opened = door::open(&changed, ID, tls());
    assert_eq!(opened.is_ok(), changed == *good, "a changed file is taken, or a good one refused");
    if let (Err(line), [.., end]) = (opened, bytes) {
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        let cut = changed.len() * usize::from(*end) / 256;
        assert!(door::open(&good[..cut], ID, tls()).is_err(), "a file that was cut is taken");
    }
}

/// What is let through can be gone on with: it fills Raft's stores, and what they then hold
/// would be let through again.
fn unsealed(plain: &[u8]) {
    let saved = match door::read(plain, history()) {
        Ok(saved) => saved,
        Err(line) => {
            assert!(!line.contains(|c: char| c.is_control()) && line.len() < 500, "{line:?}");
            return;
        }
    };
    hold_agreed(&saved.agreed);
    let again = stored(saved);
    hold_agreed(&again.agreed);
    let bytes = door::plain(again).expect("it can be encoded");
    let twice = door::read(&bytes, history()).expect("what was saved is refused");
    let twice = encode(&stored(twice)).expect("it can be encoded");
    let once = door::read(&bytes, history()).expect("as before");
    assert_eq!(*twice, *encode(&once).expect("it can be encoded"), "not the same after a life");
}

/// What is saved by a box that continued with `saved`.
fn stored(saved: Saved) -> Saved {
    let now = Moment::from_start(Duration::from_secs(1 << 40));
    let views = watch::Sender::new(AgreedView::default());
    let machine = StateMachine::new(views, Arc::new(|_| {}), Arc::new(move || now));
    let log = LogStore::default();
    saved.restore(&log, &machine, Duration::ZERO, now);
    hold_log(&log);
    Saved::take(&log, &machine, now).expect("it has a history")
}

/// The log begins right behind what was purged, and has no gap: openraft goes on with no other.
fn hold_log(log: &LogStore) {
    let Remembered { purged, entries, .. } = log.remembered();
    let first = purged.map_or(0, |id| id.index.saturating_add(1));
    for (index, entry) in (first..).zip(&entries) {
        assert_eq!(entry.log_id.index, index, "a gap in the log");
    }
}
