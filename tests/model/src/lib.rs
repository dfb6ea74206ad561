//! A model checker that runs core's rules of agreement through all orders of events, within bounds.
//!
//! `explore` is the search, `fleet` what there is, `steps` what may happen and what must not come of
//! it, `cases` what is looked at.

pub mod cases;
pub mod explore;
pub mod fleet;
pub mod steps;
