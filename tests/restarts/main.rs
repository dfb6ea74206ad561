//! Servers that are restarted, again and again, with real Traffic Servers: what clients carry from
//! before still resumes, from the first handshake that a returning server accepts.
//!
//! Short by default; `make prove-restarts` sets the variables below for the long version.
//! `STEK_RESTARTS` is the number of single restarts with a minority down at a time,
//! `STEK_RESTART_ROUNDS` the number of times that a majority or all go down at once,
//! `STEK_RESTART_SEED` repeats the choices of an earlier run. `STEK_SHARE_SO` names the plugin;
//! without it the one that cargo built for this run is tested.

use testkit::{Error, Result};

mod majority;
mod minority;
mod stage;
mod upgrade;

/// A whole number above 0 from the environment.
fn number(name: &str, default: u64) -> Result<u64> {
    let Some(value) = std::env::var_os(name) else { return Ok(default) };
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| Error::new(format!("{name} is {value:?}, not a whole number above 0")))
}
