//! Agreement without memory: a server that starts again is a new node, and a cluster that lost its
//! majority is never revived; another one is founded from the newest record of those present.
//!
//! Raft's proof covers a node that stops for ever and one that joins. Everything that goes beyond it
//! is in these rules, which `tests/model` runs as they stand here, each of them taken out in turn:
//!
//! | rule | | where |
//! |---|---|---|
//! | 1 | a message counts only for the very node it was sent to | [`founding::Prepare`], [`founding::Participant::takes`] |
//! | 2 | asking binds nobody; who hears a leader with a majority refuses; else Raft is stopped, then its log read, then the promise given | [`founding::Participant::admits`] |
//! | 3 | a promise holds the log to its end, whether applied or not | [`founding::Participant::newest`] |
//! | 4 | epochs grow; a cluster whose log has not its record yet ranks as nothing | [`epoch::Epoch::after`], [`founding::Participant::newest`] |
//! | 5 | one founding for each epoch, of those nodes that promised | [`founding::Participant::found`] |
//! | 6 | a node whose promise led nowhere, and that hears a leader with a majority, becomes a new one | [`meeting::meet`] |
//! | 7 | revocations are merged, at a founding and at a join | [`ranked_record::Evidence::merge`], [`replacement::next_step`] |
//! | 8 | a founder counts by the newest list reported; lists change by one voter at a time | [`founding::Participant::found`], [`replacement::next_step`] |
//! | 9 | of two groups that meet the one with the higher list version, then the higher epoch, stays | [`meeting::meet`] |
//! | 10 | a server has one life at a time; an earlier one is never taken in again | [`replacement::next_step`], [`arrivals::Arrivals`] |
//! | 11 | a leader uses what it commits only while it hears a majority, and says how long ago that was | [`meeting::Contact`] |
//! | 12 | only what has the log becomes a voter, and only while nothing is open | [`replacement::next_step`] |
//!
//! Who sends, waits and stops Raft is for [`crate::node`]; why it is so, in docs/decisions/0012.

pub mod arrivals;
pub mod epoch;
pub mod founding;
pub mod meeting;
pub mod ranked_record;
pub mod replacement;
pub mod search;
