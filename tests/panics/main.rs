//! A panic planted in every callback and task of the plugin inside real Traffic Servers: the
//! server lives and says what happened, the keys that are installed stay in use, and the server
//! takes part again.
//!
//! Needs Debian's package trafficserver, and a plugin that is built with the feature
//! `fail-points`, as `make panics` has it: the one that cargo built beside this test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod at_start;
mod running;
mod stage;
