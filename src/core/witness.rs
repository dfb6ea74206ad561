//! What an onlooker is told of agreement, so that what servers do can be held against the rules.
//!
//! Nobody looks on in a product: a deed is then not even put together. Decides nothing, and leaves
//! to the onlooker what it makes of it. Invariants: a deed is told after it is done and before anything
//! comes of it, on the thread of who does it, maybe under a lock: an onlooker asks the node nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::agreed::{Agreed, Command, Record};
use super::agreement::epoch::Epoch;
use super::agreement::founding::{FoundedCluster, FoundingRequest, Prepare, Promise};
use super::agreement::ranked_record::RankedRecord;
use super::log_id::{LeaderId, LogId};
use super::node_id::NodeId;

/// What an entry of the log says.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Nothing; each leader's first.
    Blank,
    /// These vote from now on; both sets while a change is open.
    Voters(&'a [BTreeSet<NodeId>]),
    /// Something is agreed.
    Command(&'a Command),
}

/// What a node does with its log.
#[derive(Clone, Copy, Debug)]
pub enum LogDeed<'a> {
    /// Its term is this, of who stands or, if so, leads: for itself, or because it heard of that.
    Votes(LeaderId, bool),
    /// Its vote is given to who campaigns in this term.
    Grants(LeaderId),
    /// An entry is in its log, and not acknowledged yet.
    Appends(LogId, Payload<'a>),
    /// All to here is acknowledged, to oneself too.
    Acknowledges(LogId),
    /// Nothing from this index on is in its log any more.
    Truncates(u64),
    /// This entry is known to be agreed on, and this comes of it.
    Applies(LogId, &'a Agreed),
    /// Its part in the cluster ends: nothing of this counts any more but what it has.
    Closes,
    /// In place of all entries to here it has their state, by which these vote.
    Takes(LogId, &'a [BTreeSet<NodeId>], &'a Agreed),
}

/// What a node does.
#[derive(Clone, Copy, Debug)]
pub enum Deed<'a> {
    /// It begins, in no cluster, with what its server has from before.
    Begins(&'a RankedRecord<Record>),
    /// This is what it has from elsewhere than its cluster's log.
    Keeps(&'a RankedRecord<Record>),
    /// It has all that its cluster has, and keeps nothing else.
    CatchesUp,
    /// It leaves its cluster with what it has, to found another one, and is to ask these.
    Prepares {
        /// What it has.
        own: &'a RankedRecord<Record>,
        /// With whom.
        call: &'a FoundingRequest,
        /// Its clock, in seconds after 1970.
        wall: u64,
        /// What they are asked.
        asked: &'a [Prepare],
    },
    /// It leaves its cluster, as it was asked, at this time in seconds after 1970.
    Promises(&'a Prepare, &'a Promise<Record>, u64),
    /// It is given a promise.
    Collects(&'a Promise<Record>),
    /// It founds, maybe without having waited for all.
    Founds(&'a FoundedCluster<Record>, bool),
    /// It gives its founding up.
    GivesUp,
    /// It hears of a founding and begins in that cluster, or does not.
    Accepts(&'a FoundedCluster<Record>, &'a RankedRecord<Record>, bool),
    /// It takes the log of a cluster's leader, as a node that is in none.
    Joins(Epoch),
    /// It does something with the log of a cluster.
    Log(Epoch, LogDeed<'a>),
}

/// An onlooker.
pub trait Witness: Send + Sync {
    /// Sees what a node does.
    fn sees(&self, node: NodeId, deed: Deed<'_>);
}

/// Who looks on, if anybody does.
pub type Onlooker = Option<Arc<dyn Witness>>;

/// Who looks at one log, if anybody does.
pub type LogWatch = Option<Arc<dyn Fn(LogDeed<'_>) + Send + Sync>>;
