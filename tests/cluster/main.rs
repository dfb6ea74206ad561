//! Clusters of real nodes over real mutual TLS in one process, without the host.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod absent;
mod age;
mod agreement;
mod certificates;
mod erasure;
mod failover;
mod fleet;
mod handover;
mod heartbeat;
mod membership;
mod network;
mod operators;
mod options;
mod records;
mod recovery;
mod relay;
mod restarts;
mod sessions;
mod state;
mod versions;
