//! Operators' messages to real Traffic Servers: what a reload changes while clients come and go,
//! what it refuses, and certificates that are taken over without any message.
//!
//! `traffic_ctl plugin msg` of Traffic Server 9.2 needs `traffic_manager`, so that servers which get
//! messages run under one. `STEK_SHARE_SO` names the plugin; without it the one that cargo built
//! for this run is tested.

mod again;
mod host_keys;
mod list;
mod resolver;
mod stage;
mod verbs;
