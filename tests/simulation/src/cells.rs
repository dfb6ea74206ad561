//! Every copy of a key that any simulated server holds in a cell of its own, whoever holds it: ring,
//! log, snapshots, queues, key sets. The plugin makes all its keys in cells ([`use_cells`]), so that
//! what is found here is all there is, but for frames on their way.

use std::cell::RefCell;
use std::collections::BTreeMap;

use stek_share::core::stek::{use_cells, SecretCell, STEK_LEN};

use crate::system::{self, Owner};

/// A key's bytes.
pub type Bytes = [u8; STEK_LEN];

thread_local! {
    static LIVE: RefCell<BTreeMap<u64, (Owner, *const Bytes)>> = const { RefCell::new(BTreeMap::new()) };
    static MADE: RefCell<u64> = const { RefCell::new(0) };
}

struct Cell {
    bytes: Box<Bytes>,
    number: u64,
}

impl SecretCell for Cell {
    fn bytes(&self) -> &Bytes {
        &self.bytes
    }
    fn bytes_mut(&mut self) -> &mut Bytes {
        &mut self.bytes
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        LIVE.with_borrow_mut(|live| live.remove(&self.number));
    }
}

/// Has all keys of this process live in cells that are known here.
pub fn watch() {
    assert!(use_cells(make), "keys have other cells already");
}

fn make() -> Box<dyn SecretCell> {
    let number = MADE.with_borrow_mut(|made| {
        *made += 1;
        *made
    });
    let bytes = Box::new([0; STEK_LEN]);
    LIVE.with_borrow_mut(|live| live.insert(number, (system::owner(), &*bytes as *const Bytes)));
    Box::new(Cell { bytes, number })
}

/// Calls `look` for each cell: whose it is, and its bytes. Those of processes that have ended may be
/// among them, since a killed process does not tidy up.
pub fn each(mut look: impl FnMut(Owner, &Bytes)) {
    LIVE.with_borrow(|live| {
        for (owner, bytes) in live.values() {
            // SAFETY: a cell leaves the table before its server is freed, all on this one thread,
            // and nobody fills a cell while this runs.
            look(*owner, unsafe { &**bytes });
        }
    });
}
