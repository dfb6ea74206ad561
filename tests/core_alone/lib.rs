//! What the crate's head is to `core`; see Cargo.toml.

pub mod core;
