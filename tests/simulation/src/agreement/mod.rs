//! Holds what happens at agreement in a run against the rules.
//!
//! It looks at all servers at once, as nobody can in a product, and in two ways. What a node does is
//! done once more by core's own functions (`Participant`), which must come to the same: a node keeps to
//! the rules. And what has to be true whatever the rules say is looked for in what all did: it finds a
//! rule that is wrong. What is asked is what `tests/model` asks of the rules alone:
//!
//! - `founding`: who promises leaves all that was before, tells all that it ever acknowledged, and is
//!   bound; of one epoch there is one founding, of those who promised, more than half of each list
//!   that counts, from the newest that they have; nothing is lost that one of them knew;
//! - `log`: one history for each cluster, agreed on by a majority of its very voters; no vote and no
//!   acknowledgement of who left; votes only grow; a leader has the votes of a majority;
//! - `membership`: voters change one at a time, or by later lives, when nothing is open, and to those
//!   that have the log and whose revocations are known.
//!
//! Invariants: it changes nothing in the run, and keeps so much of each log and no more.

mod founding;
mod log;
mod membership;
mod seen;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::agreement::founding::{FoundedCluster, Participant};
use stek_share::core::agreement::ranked_record::{Rank, RankedRecord, Voters};
use stek_share::core::log_id::{LeaderId, LogId};
use stek_share::core::node_id::NodeId;
use stek_share::core::stek::Fingerprint;
use stek_share::core::witness::{Deed, Witness};

use self::log::{Election, Log};
use self::seen::Seen;
use crate::list_memory::ListNews;

/// What a deed comes to: why it must not be.
type Judged = Result<(), String>;

/// A node, alive or not.
struct Node {
    /// Core's own, told the same as the node's.
    member: Participant<Seen>,
    /// Whether a later life of its server has begun.
    over: bool,
    /// The highest epoch that it promised, and the cluster that it is in.
    promised: Epoch,
    cluster: Epoch,
    /// How new what it has from elsewhere is.
    older: Rank,
    /// What it brought with it that is revoked.
    revoked: BTreeSet<Fingerprint>,
    /// While it founds: who promised, and whom an operator named.
    collected: BTreeMap<NodeId, RankedRecord<Seen>>,
    survivors: Option<Voters>,
    logs: BTreeMap<Epoch, Log>,
    /// The agreed list of which it heard last.
    members: Option<BTreeSet<u32>>,
}

/// What follows from one founding.
struct Cluster {
    found: FoundedCluster<Seen>,
    /// Each entry that somebody applied: where, which, and what came of it.
    agreed: BTreeMap<u64, (LogId, u64, Seen)>,
    /// Where the record stands that it was founded from.
    base: Option<u64>,
    /// The key of each generation, and the entry by which it was agreed on.
    keys: BTreeMap<u64, (u64, Fingerprint)>,
    revoked: BTreeSet<Fingerprint>,
    /// Who voted for whom, and with what.
    elections: BTreeMap<LeaderId, Election>,
}

/// See the module's head.
#[derive(Default)]
pub struct Agreement {
    nodes: BTreeMap<NodeId, Node>,
    /// Who promised which epoch with what; a founder to itself.
    promises: BTreeMap<(Epoch, NodeId), RankedRecord<Seen>>,
    clusters: BTreeMap<Epoch, Cluster>,
    /// What is new about server lists.
    news: Vec<ListNews>,
    /// Which founder was told of the key of which generation by who promised.
    told: Vec<(u32, u64)>,
    refused: Option<String>,
}

/// How the words of a refusal begin.
const REFUSED: &str = "traces: ";

/// Whether these words say that something at agreement was refused.
pub fn is_refusal(words: &str) -> bool {
    words.starts_with(REFUSED)
}

/// How much of each history is kept.
const KEPT: usize = 1024;

impl Agreement {
    fn judge(&mut self, node: NodeId, deed: Deed<'_>) -> Judged {
        match deed {
            Deed::Begins(held) => self.begins(node, seen::report(held)),
            Deed::Keeps(held) => self.keeps(node, seen::report(held)),
            Deed::CatchesUp => {
                let node = self.node(node)?;
                node.older = Rank::default();
                node.member.older = RankedRecord::default();
                Ok(())
            }
            Deed::Prepares { own, call, wall, asked } => {
                self.prepares(node, seen::report(own), call, wall, asked)
            }
            Deed::Promises(asked, promise, wall) => {
                self.promises(node, asked, seen::promise(promise), wall)
            }
            Deed::Collects(promise) => self.collects(node, seen::promise(promise)),
            Deed::Founds(found, has_waited) => self.founds(node, seen::found(found), has_waited),
            Deed::GivesUp => {
                let node = self.node(node)?;
                node.member.give_up();
                node.collected.clear();
                Ok(())
            }
            Deed::Accepts(found, own, accepted) => {
                self.accepts(node, &seen::found(found), seen::report(own), accepted)
            }
            Deed::Joins(cluster) => self.joins(node, cluster),
            Deed::Log(cluster, deed) => self.logs(node, cluster, deed),
        }
    }

    fn node(&mut self, node: NodeId) -> Result<&mut Node, String> {
        self.nodes.get_mut(&node).ok_or_else(|| "it never began".to_owned())
    }

    /// A node heard of an agreed list.
    fn hears_of_list(&mut self, me: NodeId, heard: &Option<BTreeSet<u32>>) {
        let Some(node) = self.nodes.get_mut(&me).filter(|node| node.members != *heard) else {
            return;
        };
        node.members.clone_from(heard);
        self.news.extend(heard.clone().map(|members| ListNews::Heard(me.server.0, members)));
    }

    fn cluster(&mut self, cluster: Epoch) -> Result<&mut Cluster, String> {
        let cluster_of = self.clusters.get_mut(&cluster);
        cluster_of.ok_or_else(|| format!("nobody founded the cluster of epoch {}", cluster.counter))
    }

    fn begins(&mut self, me: NodeId, held: RankedRecord<Seen>) -> Judged {
        let others = self.nodes.iter_mut().filter(|(other, _)| other.server == me.server);
        others.for_each(|(_, other)| other.over = true);
        let none = Epoch::default();
        let node = Node {
            over: false,
            promised: none,
            cluster: none,
            older: held.rank,
            revoked: held.record.revoked.clone(),
            collected: BTreeMap::new(),
            survivors: None,
            logs: BTreeMap::new(),
            members: None,
            member: Participant::new(me, held),
        };
        match self.nodes.insert(me, node) {
            Some(_) => Err("it begins twice".to_owned()),
            None => Ok(()),
        }
    }

    fn keeps(&mut self, me: NodeId, held: RankedRecord<Seen>) -> Judged {
        let node = self.node(me)?;
        if node.cluster.is_none() {
            node.revoked.extend(&held.record.revoked);
        } else {
            node.tells_all(&held)?;
        }
        node.older = held.rank;
        node.member.older = held;
        Ok(())
    }
}

impl Node {
    /// Whether it has left its cluster with all that it has to tell: what it acknowledges later it would
    /// not have told.
    fn leaves(&self, told: &RankedRecord<Seen>) -> Judged {
        if self.logs.get(&self.cluster).is_some_and(|log| !log.is_closed()) {
            return Err("its log is still open".to_owned());
        }
        self.tells_all(told)
    }

    /// Whether what it tells of itself is all that it has: its log to the end, once the record that its
    /// cluster was founded from is in it.
    fn tells_all(&self, told: &RankedRecord<Seen>) -> Judged {
        let log = self.logs.get(&self.cluster).filter(|log| log.is_named());
        let end = log.and_then(|log| log.end());
        let has = end.map_or(self.older, |end| self.older.max(Rank { epoch: self.cluster, end }));
        if told.rank == has {
            Ok(())
        } else {
            Err(format!("it tells of {:?} and has {has:?}", told.rank))
        }
    }
}

/// Where servers are looked at, and what is seen is judged; clones share it.
#[derive(Clone, Default)]
pub struct Traces(Arc<Mutex<Agreement>>);

impl Traces {
    /// The first deed that no rule allows, and why.
    pub fn refused(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refused.clone()
    }

    /// All that is new about server lists since this was last asked.
    pub fn take_news(&self) -> Vec<ListNews> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).news)
    }

    /// The keys in promises since this was last asked: the founder, the generation.
    pub fn take_told(&self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).told)
    }
}

impl Witness for Traces {
    fn sees(&self, node: NodeId, deed: Deed<'_>) {
        let mut agreement = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if agreement.refused.is_some() {
            return;
        }
        if let Err(why) = agreement.judge(node, deed) {
            let mut told = format!("{deed:?}");
            told.truncate(told.char_indices().nth(600).map_or(told.len(), |(at, _)| at));
            let (server, life) = (node.server, node.incarnation);
            agreement.refused =
                Some(format!("{REFUSED}server {server} (life {life}): {why}; seen at {told}"));
        }
    }
}
