//! Rotations that nobody notices: real Traffic Servers with the plugin change their key under load,
//! with and without faults, and no session is lost.
//!
//! Short by default; `make prove-rotation` and `make prove-million` set the variables below for long
//! versions. `STEK_ROTATION_INTERVAL` is `key_update_interval` in seconds, `STEK_ROTATION_COUNT` the
//! number of rotations at least, `STEK_ROTATION_OFFERS` that of offers, `STEK_ROTATION_RATE` offers a
//! second. `STEK_SHARE_SO` names the plugin; without it the one that cargo built for this run is tested.
//! Where the run was given several Traffic Servers, the five servers are these in turn.

use std::time::Duration;

mod faults;
mod stage;
mod steady;

/// How hard the fleet is tried.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// `key_update_interval`.
    pub interval: Duration,
    /// How many rotations an undisturbed fleet makes.
    pub rotations: u64,
    /// How many strict offers each test makes, and as many rotations more as that takes.
    pub offers: u64,
    /// Offers a second.
    pub rate: u32,
}

impl Effort {
    fn from_environment() -> Self {
        Self {
            interval: Duration::from_secs(number("STEK_ROTATION_INTERVAL", 2)),
            rotations: number("STEK_ROTATION_COUNT", 8),
            offers: number("STEK_ROTATION_OFFERS", 1),
            rate: u32::try_from(number("STEK_ROTATION_RATE", 30)).unwrap_or(u32::MAX),
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => match value.parse() {
            Ok(number) if number > 0 => number,
            _ => panic!("{name} is {value:?}, not a whole number above 0"),
        },
        Err(_) => default,
    }
}
