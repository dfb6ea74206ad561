//! Where key bytes stand in the memory of real Traffic Servers, and where not.
//!
//! The keys are taken from the running servers themselves, by the name that stands in a ticket,
//! and proved by that ticket's HMAC. Traffic Server makes copies of its own of each set that it is
//! given, on its heap; it erases one about a minute after the set was replaced, and a core dump
//! shows them. Neither is in the plugin's power. What is: the pages that it keeps its own keys in,
//! and that no copy stands anywhere else.

mod core_dump;
mod retired;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;

use testkit::memory::{candidates_after, find_all, left_out_of_dumps, read, Hit};
use testkit::tickets::{Ticket, KEY_LEN};
use testkit::{Error, Result};

/// The plugin takes its pages one by one.
const PAGE: usize = 4096;

/// Bytes of all its pages at most; they may be neighbours.
const MOST_PAGES: u64 = 128 * 1024;

/// The plugin that cargo built with these tests, or the one in `STEK_SHARE_SO`.
pub fn plugin() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("STEK_SHARE_SO") {
        return Ok(given.into());
    }
    let exe = std::env::current_exe()?;
    let mut built = exe.ancestors().skip(1).take(2).map(|dir| dir.join("libstek_share.so"));
    let missing = || Error::new("no libstek_share.so beside the tests");
    built.find(|so| so.is_file()).ok_or_else(missing)
}

/// The key that opens `ticket`, out of the memory of the server that gave it.
pub fn key_of(pid: u32, ticket: &Ticket) -> Result<[u8; KEY_LEN]> {
    for key in candidates_after(pid, &ticket.key_name)? {
        if ticket.opens_with(&key)? {
            return Ok(key);
        }
    }
    Err(Error::new(format!("no key in process {pid} opens the {ticket:?}")))
}

/// Copies of the secret parts of one key in a process.
#[derive(Debug, Default)]
pub struct Copies {
    /// In the plugin's own pages.
    pub ours: Vec<Hit>,
    /// Everywhere else.
    pub elsewhere: Vec<Hit>,
}

impl Copies {
    /// Whether there is none at all.
    pub fn none(&self) -> bool {
        self.ours.is_empty() && self.elsewhere.is_empty()
    }
}

/// The plugin's own pages. Traffic Server has its I/O buffers left out of core dumps as well, but
/// in far larger pieces.
fn our_pages(pid: u32) -> Result<Vec<Range<u64>>> {
    let mut ranges = left_out_of_dumps(pid)?;
    ranges.retain(|range| range.end - range.start <= MOST_PAGES);
    Ok(ranges)
}

/// How many different keys stand in the plugin's own pages, which are cut into places of a key's
/// length.
pub fn keys_held(pid: u32) -> Result<usize> {
    let mut keys = BTreeSet::new();
    for range in our_pages(pid)? {
        let bytes = read(pid, &range)?;
        let places = bytes.chunks(PAGE).flat_map(|page| page.chunks_exact(KEY_LEN));
        keys.extend(places.filter(|place| place.iter().any(|b| *b != 0)).map(<[u8]>::to_vec));
    }
    Ok(keys.len())
}

/// Looks for the HMAC secret, and apart from it for AES keys that do not follow one.
pub fn copies(pid: u32, key: &[u8; KEY_LEN]) -> Result<Copies> {
    let pages = our_pages(pid)?;
    let (secret, aes) = (find_all(pid, &key[16..32])?, find_all(pid, &key[32..])?);
    let follows = |hit: &Hit| secret.iter().any(|s| s.address + 16 == hit.address);
    let standalone_node: Vec<Hit> = aes.into_iter().filter(|hit| !follows(hit)).collect();
    let inside = |hit: &Hit| pages.iter().any(|page: &Range<u64>| page.contains(&hit.address));
    let (ours, elsewhere) = secret.into_iter().chain(standalone_node).partition(inside);
    Ok(Copies { ours, elsewhere })
}
