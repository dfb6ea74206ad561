//! What the tests and the demo share: certificates, ports, real Traffic Servers, TLS ticket
//! clients, load, and a look into another process's memory.
//!
//! The kit knows the plugin only from outside, as an operator does: by its file, its options, its
//! log lines and its tickets. It must not depend on the crate that it tests.
//!
//! | room | what it gives |
//! |---|---|
//! | [`ats`] | one real `traffic_server` in a run root of its own |
//! | [`rng`] | chance that can be repeated |
//! | [`fleet`] | several of them with the plugin, its files and its certificates |
//! | [`figures`] | measured values as a table and as JSON |
//! | [`host`] | which Traffic Server that is, and in which words it is told what to do |
//! | [`hub`] | a network of namespaces that cuts, delays and drops |
//! | [`ids`] | a TLS 1.2 client that takes no tickets and resumes by the session's id |
//! | [`load`] | clients in the background that take tickets here and offer them there |
//! | [`logs`] | when which server held and used which key, by what the servers wrote |
//! | [`memory`] | byte strings in another process's memory, key bytes in files |
//! | [`nameserver`] | a name server that answers late, wrongly or not at all |
//! | [`origin`] | a web server that answers every request alike |
//! | [`pages`] | lines that the documentation has to explain |
//! | [`pki`] | authorities and certificates, good and bad |
//! | [`ports`] | loopback ports that nobody else gets |
//! | [`sites`] | a TLS client that asks one site for a page, with what it has of another |
//! | [`turns`] | how many tests of a program go on at once |
//! | [`tickets`] | a TLS client that takes and offers session tickets; who resumes whose |
//! | [`plot`] | charts as SVG |
//! | [`run_dir`], [`wait`], [`sys`] | directories, waiting for conditions, system calls |
//! | [`progress`] | steps on a person's screen |

pub mod ats;
pub mod figures;
pub mod fleet;
pub mod host;
pub mod hub;
pub mod ids;
pub mod load;
pub mod logs;
pub mod memory;
pub mod nameserver;
pub mod origin;
pub mod pages;
pub mod pki;
pub mod plot;
pub mod ports;
pub mod progress;
pub mod rng;
pub mod run_dir;
pub mod sites;
pub mod sys;
pub mod tickets;
pub mod turns;
pub mod wait;

mod error;

pub use error::{Context, Error, Result};
