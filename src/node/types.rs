//! What a node is given and what it gives: keys to install, what it knows, how a request ended.
//!
//! Plain values and how they read; what a node does is for the others. Invariants: no text made here
//! has a key's bytes in it.

use std::time::Duration;

use openssl::error::ErrorStack;
use thiserror::Error;

use super::environment::Environment;
use crate::core::agreement::epoch::Epoch;
use crate::core::key_ring::{ClusterId, Generation};
use crate::core::server_id::ServerId;
use crate::core::server_status::Role;
use crate::core::stek::{Fingerprint, Stek, WeakKey};
use crate::log_sink::Log;
use crate::rpc::MembershipRefusal;
use crate::transport::tls::Tls;
use crate::transport::Versions;

/// How often a random key may fail key validation before something must be wrong with the
/// generator; a sound one fails once in 2^60.
const KEY_ATTEMPTS: usize = 4;

/// What a server should hold in its ticket context now: the encrypting key first.
#[derive(Clone, Debug)]
pub struct KeySet {
    /// Counts the sets of this process, from 1.
    pub serial: u64,
    /// At least one key, at most `ticket_keys`.
    pub keys: Vec<Stek>,
    /// Whether the first key is one that the group agreed on.
    pub agreed: bool,
    /// The cluster incarnation that the generations belong to.
    pub cluster_id: Option<ClusterId>,
    /// The cluster that agreed on them; none if they are this server's own.
    pub epoch: Epoch,
    /// The newest generation among the keys, 0 if none is the group's.
    pub newest: Generation,
    /// Its key.
    pub newest_key: Option<Fingerprint>,
    /// The generation of the first key, 0 if it is not the group's.
    pub current: Generation,
}

impl KeySet {
    /// The set of a server that knows no group yet: its own key alone.
    pub fn own(key: Stek) -> KeySet {
        KeySet {
            serial: 1,
            keys: vec![key],
            agreed: false,
            cluster_id: None,
            epoch: Epoch::default(),
            newest: Generation(0),
            newest_key: None,
            current: Generation(0),
        }
    }

    /// The set in words, for the log: fingerprints only.
    pub fn describe(&self) -> String {
        let first = self.keys.first().map(Stek::fingerprint);
        let name = first.map_or_else(|| "none".to_owned(), |f| f.to_string());
        let count = match self.keys.len() {
            1 => "1 key".to_owned(),
            n => format!("{n} keys"),
        };
        match (self.agreed, self.newest > self.current) {
            (true, false) => format!("{count}, current {name} (generation {})", self.current),
            (true, true) => format!(
                "{count}, current {name} (generation {}), staged generation {}",
                self.current, self.newest
            ),
            (false, _) => format!("{count}, current {name} (this server's own)"),
        }
    }
}

/// What [`super::Node::start`] needs besides the settings.
pub struct Deps {
    /// Where lines go.
    pub log: Log,
    /// Certificates, loaded and checked.
    pub tls: Tls,
    /// The key that this server made for itself and has installed.
    pub initial: Stek,
    /// The protocol versions that it speaks: [`Versions::OURS`], but for tests.
    pub versions: Versions,
    /// The world that it is in: the real one, but for simulations.
    pub outside: Environment,
}

/// Why a server has no new key to offer.
#[derive(Debug, Error)]
pub enum NoKey {
    /// OpenSSL's generator failed.
    #[error("OpenSSL's random generator failed: {0}")]
    Generator(#[from] ErrorStack),
    /// OpenSSL's generator gives nonsense.
    #[error("OpenSSL's random generator gave {KEY_ATTEMPTS} unfit keys in a row: {0}")]
    Weak(WeakKey),
}

/// Draws a key from OpenSSL's private generator and passes it through key validation.
///
/// # Errors
/// If the generator fails, or gives nothing but unfit keys.
pub fn new_key() -> Result<Stek, NoKey> {
    let mut last = None;
    for _ in 0..KEY_ATTEMPTS {
        let key = Stek::fill_with(|bytes| openssl::rand::rand_priv_bytes(bytes))?;
        match key.check() {
            Ok(()) => return Ok(key),
            Err(weakness) => last = Some(weakness),
        }
    }
    Err(NoKey::Weak(last.unwrap_or(WeakKey::EqualParts)))
}

/// How [`super::Node::wait_for_group`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The group's keys are there; the current one's fingerprint.
    Keys(Fingerprint),
    /// Too few other servers answer for a majority.
    NoMajority,
    /// The limit ran out.
    TimedOut,
}

/// What a reload did besides taking over settings and certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// The version of the agreed server list, if the file's had changed.
    pub list: Option<u64>,
}

/// Why a reload changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoReload {
    /// A running server cannot become another one.
    #[error(
        "server_id is {new} now and was {old}; a running server cannot become another one: \
         restart Traffic Server"
    )]
    OtherId {
        /// The id that it runs under.
        old: ServerId,
        /// The one in the file.
        new: ServerId,
    },
    /// The group did not agree on the file's server list.
    #[error("server_list_file: the group did not take the new list: {0}")]
    List(MembershipRefusal),
}

impl From<MembershipRefusal> for NoReload {
    fn from(refusal: MembershipRefusal) -> NoReload {
        NoReload::List(refusal)
    }
}

/// What a server knows of itself and the group; no secrets.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its part.
    pub role: Role,
    /// Raft's term.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<ServerId>,
    /// The cluster incarnation, if one has begun.
    pub cluster_id: Option<ClusterId>,
    /// The current generation, 0 before the first.
    pub current: Generation,
    /// The current key's fingerprint.
    pub fingerprint: Option<Fingerprint>,
    /// The staged generation, during a handover.
    pub staged: Option<Generation>,
    /// The newest generation that the host has installed.
    pub installed: Generation,
    /// How old the current key is.
    pub current_age: Duration,
    /// Entries in Raft's log.
    pub log_entries: usize,
    /// Servers in Raft's membership, those among them that do not vote included.
    pub members: usize,
    /// Those that vote.
    pub voters: usize,
    /// The cluster that this node takes part in, by the counter of its epoch; 0 if it is in none.
    pub epoch: u64,
    /// Whether it is one of Raft's voters.
    pub votes: bool,
    /// The version of the agreed server list, 0 before there is one.
    pub list_version: u64,
    /// Members that were heard within the upper election bound, this server included.
    pub reachable: usize,
}
