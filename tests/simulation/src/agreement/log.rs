//! Votes, and one history for each cluster.

use std::collections::{BTreeMap, BTreeSet};

use stek_share::core::agreed::Agreed;
use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::log_id::{LeaderId, LogId};
use stek_share::core::node_id::NodeId;
use stek_share::core::witness::{LogDeed, Payload};

use super::seen::{self, are_most, Configuration, Entry};
use super::{Agreement, Judged, Node, KEPT};
use crate::list_memory::ListNews;

/// A node's log in one cluster, as far back as it is kept.
#[derive(Default)]
pub struct Log {
    entries: BTreeMap<u64, (LogId, Entry)>,
    /// Up to here entries are not kept, or a state stands for them.
    floor: Option<LogId>,
    /// Where the voters change.
    voters: BTreeMap<u64, Configuration>,
    /// Where the cluster gets its sequence of keys.
    named: BTreeSet<u64>,
    acknowledged: Option<LogId>,
    applied: Option<LogId>,
    vote: (LeaderId, bool),
    /// Whether it was left: it acknowledges nothing and votes for nobody.
    closed: bool,
}

/// What becomes of one who stands.
#[derive(Default)]
pub struct Election {
    /// How far the logs went of who took that for its vote, when it did: what it answers is told
    /// later, when a server that was suspended may have heard of other leaders.
    ends: BTreeMap<NodeId, Option<LogId>>,
    votes: BTreeSet<NodeId>,
}

/// So many of the last configurations may be the one by which something was agreed on: the next may be
/// in the log already.
const CONFIGURATIONS: usize = 3;

impl Log {
    pub fn is_named(&self) -> bool {
        !self.named.is_empty()
    }

    pub fn end(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, (at, _))| *at).max(self.floor)
    }

    pub fn acknowledged(&self) -> Option<LogId> {
        self.acknowledged
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// The last configuration before an entry, and where it stands.
    pub fn voters_before(&self, index: u64) -> Option<(u64, &Configuration)> {
        self.voters.range(..index).next_back().map(|(at, voters)| (*at, voters))
    }

    fn last_voters(&self) -> impl Iterator<Item = &Configuration> {
        self.voters.values().rev().take(CONFIGURATIONS)
    }

    /// Whether it has this very entry, acknowledged.
    pub fn has(&self, at: LogId) -> bool {
        let is_kept = |(kept, _): &(LogId, Entry)| *kept == at;
        let floor = self.floor.map_or(0, |floor| floor.index);
        self.acknowledged.is_some_and(|end| end.index >= at.index)
            && self.entries.get(&at.index).map_or(at.index <= floor, is_kept)
    }

    fn append(&mut self, at: LogId, entry: Entry) {
        if let Some(voters) = &entry.voters {
            self.voters.insert(at.index, voters.clone());
        }
        if entry.names {
            self.named.insert(at.index);
        }
        self.entries.insert(at.index, (at, entry));
        while self.entries.len() > KEPT {
            self.floor = self.entries.pop_first().map(|(_, (at, _))| at);
        }
    }

    fn truncate(&mut self, from: u64) {
        self.entries.split_off(&from);
        self.voters.split_off(&from);
        self.named.split_off(&from);
        self.acknowledged = self.acknowledged.min(self.end());
    }

    fn take(&mut self, at: LogId, voters: &[BTreeSet<NodeId>], agreed: &Agreed) {
        self.entries.retain(|index, _| *index > at.index);
        self.floor = self.floor.max(Some(at));
        self.voters.retain(|index, _| *index > at.index);
        self.voters.insert(at.index, voters.to_vec());
        if agreed.ring.cluster_id().is_some() {
            self.named.insert(at.index);
        }
        self.acknowledged = self.acknowledged.max(Some(at));
        self.applied = self.applied.max(Some(at));
    }
}

impl Node {
    /// Whether it has part in this cluster, and may be counted on.
    fn takes_part(&self, cluster: Epoch) -> Judged {
        if self.over {
            return Err("its server lives anew".to_owned());
        }
        if self.logs.get(&cluster).is_some_and(|log| log.closed) {
            return Err("it has left that log".to_owned());
        }
        if self.cluster != cluster || self.promised != cluster {
            return Err(format!("it is in {:?} and promised {:?}", self.cluster, self.promised));
        }
        Ok(())
    }
}

impl Agreement {
    pub(super) fn logs(&mut self, me: NodeId, epoch: Epoch, deed: LogDeed<'_>) -> Judged {
        match deed {
            LogDeed::Votes(leader_id, committed) => self.votes(me, epoch, leader_id, committed),
            LogDeed::Grants(leader_id) => self.grants(me, epoch, leader_id),
            LogDeed::Appends(at, payload) => self.appends(me, epoch, at, payload),
            LogDeed::Acknowledges(end) => {
                let node = self.node(me)?;
                node.takes_part(epoch)?;
                node.log(epoch).acknowledged = Some(end);
                Ok(())
            }
            LogDeed::Truncates(from) => {
                let log = self.node(me)?.log(epoch);
                if log.applied.is_some_and(|applied| applied.index >= from) {
                    return Err(format!("it drops what was agreed on, from {from} on"));
                }
                log.truncate(from);
                Ok(())
            }
            LogDeed::Closes => {
                self.node(me)?.log(epoch).closed = true;
                Ok(())
            }
            LogDeed::Applies(at, agreed) => self.applies(me, epoch, at, agreed),
            LogDeed::Takes(at, voters, agreed) => self.takes(me, epoch, at, voters, agreed),
        }
    }

    fn votes(&mut self, me: NodeId, epoch: Epoch, to: LeaderId, committed: bool) -> Judged {
        let node = self.node(me)?;
        node.takes_part(epoch)?;
        let log = node.log(epoch);
        if (to, committed) < log.vote {
            return Err(format!("it voted for {:?} before", log.vote));
        }
        log.vote = (to, committed);
        let (end, voters) = (log.end(), log.last_voters().cloned().collect::<Vec<_>>());
        let election = self.cluster(epoch)?.elections.entry(to).or_default();
        if !committed {
            election.ends.insert(me, end);
        }
        if to.node != me {
            return Ok(());
        }
        election.votes.insert(me);
        let votes = &election.votes;
        if committed && !voters.iter().any(|sets| are_most(sets, |node| votes.contains(node))) {
            return Err(format!("it leads by the votes of {votes:?}, of {voters:?}"));
        }
        Ok(())
    }

    fn grants(&mut self, me: NodeId, epoch: Epoch, to: LeaderId) -> Judged {
        let election = self.cluster(epoch)?.elections.entry(to).or_default();
        let (Some(has), Some(candidate)) = (election.ends.get(&me), election.ends.get(&to.node))
        else {
            return Err("it has not that vote, or nobody stands".to_owned());
        };
        if candidate < has {
            return Err(format!("it had {has:?}, and who stood had {candidate:?}"));
        }
        election.votes.insert(me);
        Ok(())
    }

    fn appends(&mut self, me: NodeId, epoch: Epoch, at: LogId, new: Payload<'_>) -> Judged {
        self.cluster(epoch)?;
        let entry = seen::entry(new);
        let node = self.node(me)?;
        if node.cluster != epoch {
            return Err(format!("it is in {:?}", node.cluster));
        }
        let log = node.log(epoch);
        if let Some((was, old)) = log.entries.get(&at.index) {
            let same = (*was, old.digest) == (at, entry.digest);
            if !same && log.applied.is_some_and(|applied| applied.index >= at.index) {
                return Err(format!("it agreed on another entry there, of {was:?}"));
            }
        }
        let is_new = at.leader_id.node == me && at.leader_id.term > 0;
        if let Some(next) = entry.voters.as_ref().filter(|_| is_new) {
            self.voters_change(me, epoch, at, next)?;
        }
        let log = self.node(me)?.log(epoch);
        log.append(at, entry);
        if at.index == 0 {
            // All begin with it, and nobody is asked.
            log.acknowledged = log.acknowledged.max(Some(at));
        }
        Ok(())
    }

    fn applies(&mut self, me: NodeId, epoch: Epoch, at: LogId, agreed: &Agreed) -> Judged {
        let state = seen::state(agreed);
        self.hears_of_list(me, &state.members);
        let log = self.node(me)?.log(epoch);
        let Some((has, entry)) = log.entries.get(&at.index).cloned() else {
            return Err("it has no such entry".to_owned());
        };
        if has != at {
            return Err(format!("its log has an entry of {has:?} there"));
        }
        log.applied = Some(at);
        let voters: Vec<Configuration> = log.last_voters().cloned().collect();
        let known = self.cluster(epoch)?.agreed.get(&at.index);
        if let Some((was, digest, came)) = known {
            return if (*was, *digest) == (at, entry.digest) && *came == state {
                Ok(())
            } else {
                Err(format!("somebody agreed on another entry, of {was:?}, or it came to {came:?}"))
            };
        }
        let has_it = |node: &NodeId| {
            let log = self.nodes.get(node).and_then(|node| node.logs.get(&epoch));
            log.is_some_and(|log| log.has(at))
        };
        if at.index > 0 && !voters.iter().any(|sets| are_most(sets, has_it)) {
            return Err(format!("no majority of {voters:?} has acknowledged that"));
        }
        let (cluster, mut begins) = (self.cluster(epoch)?, false);
        if let Some(base) = entry.base.as_ref().filter(|_| cluster.base.is_none()) {
            let from = &cluster.found.base.record;
            let differs = |(generation, key)| from.keys.get(generation) != Some(key);
            if base.lists != from.lists || base.keys.iter().any(differs) {
                return Err(format!("the cluster was founded from {from:?}"));
            }
            cluster.base = Some(at.index);
            begins = true;
        }
        if entry.is_other && cluster.base.is_none() {
            return Err("the cluster has not what it was founded from".to_owned());
        }
        for (generation, key) in &state.keys {
            let (_, known) = cluster.keys.entry(*generation).or_insert((at.index, *key));
            if known != key {
                return Err(format!("generation {generation} has two keys, {known} and {key}"));
            }
        }
        cluster.revoked.clone_from(&state.revoked);
        cluster.agreed.insert(at.index, (at, entry.digest, state));
        while cluster.agreed.len() > KEPT {
            cluster.agreed.pop_first();
        }
        self.news.extend(begins.then_some(ListNews::Begun(epoch)));
        Ok(())
    }

    fn takes(
        &mut self,
        me: NodeId,
        epoch: Epoch,
        at: LogId,
        voters: &[BTreeSet<NodeId>],
        agreed: &Agreed,
    ) -> Judged {
        let state = seen::state(agreed);
        self.hears_of_list(me, &state.members);
        let cluster = self.cluster(epoch)?;
        let is_old = cluster.agreed.keys().next().is_some_and(|first| at.index < *first);
        let known = cluster.agreed.get(&at.index);
        let is_it = known.is_some_and(|(was, _, came)| *was == at && *came == state);
        if !is_it && !is_old {
            return Err(format!("what was agreed on to there is {known:?}"));
        }
        self.node(me)?.log(epoch).take(at, voters, agreed);
        Ok(())
    }
}

impl Node {
    fn log(&mut self, epoch: Epoch) -> &mut Log {
        self.logs.entry(epoch).or_default()
    }
}
