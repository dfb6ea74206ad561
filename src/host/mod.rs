//! Traffic Server: the only room that knows it, and the only one with `unsafe`.
//!
//! [`plugin`] is what the host calls, [`installer`] the one thread that gives it ticket keys,
//! [`ats`] the safe way to its functions, [`secret_pages`] the memory in which keys live.

pub mod ats;
pub mod installer;
pub mod plugin;
pub mod secret_pages;
mod sys;
