//! The state file: what is inside the seal, and the sealed bytes.

use std::sync::OnceLock;

use stek_share::core::agreed::{Agreed, Command, Record};
use stek_share::core::key_ring::{ClusterId, Command as KeyCommand, KeyRing};
use stek_share::core::server_id::ServerId;
use stek_share::node::state_file_fuzzing::{self as state_file, Saved};
use stek_share::transport::tls::Tls;

use crate::messages::hold_agreed;
use crate::seeds::{identity, CLUSTER_ID};

fn cluster_id() -> ClusterId {
    ClusterId::from_bytes(CLUSTER_ID).expect("it is not zero")
}

/// The server that reads.
const ID: ServerId = ServerId(3);

fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| {
        let (certificate, key) = identity("/CN=server");
        Tls::from_pem(&certificate, &certificate, &key, "").expect("it is good")
    })
}

/// The first byte of the input says how the rest is meant: as the bytes of a file, as a change of a
/// file that is good, or, mostly, as what was inside the seal.
pub fn content(input: &[u8]) {
    let [kind, bytes @ ..] = input else { return };
    match kind {
        0..=7 => assert!(state_file::open(bytes, ID, tls()).is_err(), "forged"),
        8..=15 => damage(bytes),
        _ => unsealed(bytes),
    }
}

/// A file with any byte changed is refused.
fn damage(bytes: &[u8]) {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    let good = GOOD.get_or_init(|| {
        let plain = state_file::plain(crate::seeds::saved(3)).expect("it can be encoded");
        state_file::seal(&plain, cluster_id(), ID, tls()).expect("it can be sealed")
    });
    let mut changed = good.clone();
    for pair in bytes.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([pair[0], pair[1]])) % changed.len();
        changed[at] ^= pair[2];
    }
    let opened = state_file::open(&changed, ID, tls());
    assert_eq!(opened.is_ok(), changed == *good, "a changed file is taken, or a good one refused");
    if let (Err(line), [.., end]) = (opened, bytes) {
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        let cut = changed.len() * usize::from(*end) / 256;
        assert!(state_file::open(&good[..cut], ID, tls()).is_err(), "a file that was cut is taken");
    }
}

/// What is let through can be gone on with: a cluster that is founded from it has these very keys, and
/// what would be saved of it is let through.
fn unsealed(plain: &[u8]) {
    let saved = match state_file::read(plain, cluster_id()) {
        Ok(saved) => saved,
        Err(line) => {
            assert!(!line.contains(|c: char| c.is_control()) && line.len() < 500, "{line:?}");
            return;
        }
    };
    hold_agreed(&saved.record.agreed);
    let names = |ring: &KeyRing| -> Vec<Vec<u8>> {
        ring.all().map(|held| held.stek.name().to_vec()).collect()
    };
    let mut agreed = Agreed::default();
    let found = Command::Found(Box::new(saved.record.clone()));
    agreed.apply(found).expect("it was checked");
    agreed.check().expect("a founding made an impossible state");
    assert_eq!(names(&agreed.ring), names(&saved.record.agreed.ring), "not the same keys");
    if let Some(generation) = agreed.ring.staged().map(|staged| staged.held.generation) {
        let activate = KeyCommand::Activate { generation, keep: 2 };
        agreed.apply(Command::Key(activate)).expect("it is staged");
        assert!(agreed.check().is_ok() && agreed.ring.current().is_some());
    }
    let record = Record { agreed, ..saved.record };
    let bytes = state_file::plain(Saved { record, ..saved }).expect("it can be encoded");
    state_file::read(&bytes, cluster_id()).expect("what was saved is refused");
}
