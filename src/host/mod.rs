//! Traffic Server: the only module that knows it, and the only one with `unsafe`.
//!
//! [`plugin`] is what the host calls, [`installer`] the one thread that gives it ticket keys,
//! [`guard`] what gives it them again, [`operator`] what answers operators' messages, [`files`] what
//! looks after files that change, read by [`reader`], [`stats`] its metrics, [`host_environment`] what
//! its own settings say, [`library`] which OpenSSL it brings along, [`ats`] the safe way to its functions, [`secret_pages`] the memory in which
//! keys live, [`ticket_scope`] what binds sessions to their site, [`sessions`] what shares those
//! without tickets, and [`session_worker`] what is done for that, [`identity`] what does work as another
//! user, [`priority`] what has workers give way to the host, `boot_clock` the clock that goes on while the machine is suspended.

pub mod ats;
mod boot_clock;
pub mod files;
pub mod guard;
pub mod host_environment;
pub mod identity;
pub mod installer;
pub mod library;
pub mod operator;
pub mod plugin;
pub mod priority;
pub mod reader;
pub mod secret_pages;
pub mod session_worker;
pub mod sessions;
pub mod stats;
mod sys;
pub mod ticket_scope;
