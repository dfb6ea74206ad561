//! `stek_share` gives every Apache Traffic Server of a fleet the same TLS session ticket encryption
//! key (STEK), so that a returning client resumes on whichever server it lands.
//!
//! The servers of a list elect a leader by Raft; the leader makes a new key every
//! `key_update_interval`; the key travels over mutual TLS; every server installs the latest two.
//!
//! Modules, the lowest first: each one imports only what stands above it here.
//!
//! | module | what it does | what it leaves to others |
//! |---|---|---|
//! | [`core`] | keys, ring, rotation, foundings, votes, checked configuration: pure decisions | I/O, clocks, randomness, threads |
//! | [`log_sink`] | one line to the operator, levels and rate limits | where lines end up |
//! | [`supervise`] | what a panic does: it is told, and the work begins anew | where that is worth it |
//! | [`transport`] | frames, mutual TLS, listener, peer connections | what the frames mean |
//! | [`rpc`] | what servers ask and answer, as bytes: one table of all messages | who is answered what |
//! | [`consensus`] | openraft's types, log store, state machine, network adapter | when to propose what |
//! | [`pem`] | what a file is that was to hold PEM blocks | whether a certificate can be used |
//! | [`load`] | reads the YAML files and certificates into checked settings | what the values mean |
//! | [`host_config`] | reads the host's own files about tickets | what they say, and where records stand |
//! | [`node`] | one server: wires the modules above on a tokio runtime | the host server |
//! | [`metrics`] | the table of metrics and what each reads of a server's status | making and setting them |
//! | [`client`] | an operator's command asks servers and gives orders | what is done with the answers |
//! | [`host`] | Traffic Server: its C API, threads, memory pages; the only one with `unsafe` | everything else |

pub mod client;
pub mod consensus;
pub mod core;
pub mod host;
pub mod host_config;
pub mod load;
pub mod log_sink;
pub mod metrics;
pub mod node;
pub mod pem;
pub mod rpc;
pub mod supervise;
pub mod transport;
