//! stekctl on real Traffic Servers with the plugin.
//!
//! `STEK_SHARE_SO` names the plugin; without it the one that cargo built for this run is used.

mod causes;
mod changes;
mod effect;
mod first_day;
mod members;
mod policies;
mod second_day;
mod stage;
mod whole;
mod word_cases;
mod words;
