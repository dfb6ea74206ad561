//! What a node has of the world outside its process: the network, the disk, and the clock
//! that tells how long the machine was suspended.
//!
//! A product's node has mutual TLS and the file system. A simulation brings its own, to run many
//! nodes in one process on a network and on disks that it rules. Time and randomness need nothing
//! here: a process that wants other ones gives them to tokio, std and OpenSSL as their system.
//!
//! Leaves to `network` and `disk` what each of them asks for.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

pub use super::disk::{Disk, Files, Stamp, Unusable};
pub use super::network::{Reply, SimulatedNetwork};
use super::session_exchange::SessionExchange;
use crate::core::config::Member;
use crate::core::witness::Onlooker;
pub use crate::transport::listener::Service;
use crate::transport::resolver::Resolver;
use crate::transport::Bounds;

/// Reads the server list in this server's `server_list_file` as it is now, off the node's thread;
/// `None` if it cannot be read or is no list.
pub type ReadList = Arc<dyn Fn() -> Reply<Option<Vec<Member>>> + Send + Sync>;

/// The world outside a server.
pub struct Environment {
    /// How messages travel; mutual TLS if there is nothing here.
    pub network: Option<Arc<dyn SimulatedNetwork>>,
    /// Where `state_dir` is.
    pub disk: Arc<dyn Disk>,
    /// Who looks host names up.
    pub resolver: Resolver,
    /// How long this machine has been suspended since it booted: timers stand still meanwhile, and
    /// keys grow older. Never less than before.
    pub suspended: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// How the list in the file is read: without it no list is ever found there.
    pub list_file: ReadList,
    /// How much of connections to bear, where mutual TLS is used.
    pub bounds: Bounds,
    /// Between the host's sessions and those of the other servers, where they are shared.
    pub sessions: Option<Arc<SessionExchange>>,
    /// Who looks on at agreement: nobody, but in tests.
    pub onlooker: Onlooker,
}

/// The real one, without a server list.
impl Default for Environment {
    fn default() -> Environment {
        Environment {
            network: None,
            disk: Arc::new(Files),
            resolver: Resolver::system(),
            suspended: Arc::new(|| Duration::ZERO),
            list_file: Arc::new(|| Box::pin(ready(None))),
            bounds: Bounds::default(),
            sessions: None,
            onlooker: None,
        }
    }
}
