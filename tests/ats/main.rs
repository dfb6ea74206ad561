//! The plugin inside real Traffic Servers, seen as an operator sees it: by its options, its log
//! lines, its process and the tickets that it gives out.
//!
//! Needs Debian's package trafficserver. The plugin is the file that `STEK_SHARE_SO` names, or the
//! one that cargo built beside these tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_input;
mod field;
mod gold;
mod http3;
mod install;
mod lifecycle;
mod listening;
mod metrics;
mod one_conf;
mod options;
mod priority;
mod secrecy;
mod sessions;
mod sites;
mod stage;
mod startup;
mod strangers;
mod twice;
