//! Promises, foundings, and who begins in what was founded.

use std::collections::BTreeMap;

use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::agreement::founding::{FoundedCluster, FoundingRequest, Prepare, Promise};
use stek_share::core::agreement::ranked_record::{Rank, RankedRecord, Voters};
use stek_share::core::node_id::NodeId;

use super::seen::{are_most, Seen};
use super::{Agreement, Cluster, Judged};
use crate::list_memory::{Founding, ListNews};

impl Agreement {
    pub(super) fn prepares(
        &mut self,
        me: NodeId,
        own: RankedRecord<Seen>,
        call: &FoundingRequest,
        wall: u64,
        asked: &[Prepare],
    ) -> Judged {
        let node = self.node(me)?;
        node.leaves(&own)?;
        if node.member.prepare(own.clone(), call, wall) != asked {
            return Err(format!("core asks others than {asked:?}"));
        }
        let epoch = asked.first().map_or(node.member.promise, |prepare| prepare.epoch);
        let known = node.promised.max(node.cluster).max(own.rank.epoch);
        if epoch.founder != me || epoch.counter <= known.counter {
            return Err(format!("epoch {epoch:?} is not its own, or not above {known:?}"));
        }
        node.promised = epoch;
        node.collected = BTreeMap::from([(me, own.clone())]);
        node.survivors.clone_from(&call.survivors);
        self.promises.insert((epoch, me), own);
        Ok(())
    }

    pub(super) fn promises(
        &mut self,
        me: NodeId,
        asked: &Prepare,
        promise: Promise<Seen>,
        wall: u64,
    ) -> Judged {
        let node = self.node(me)?;
        node.leaves(&promise.newest)?;
        if let Err(refusal) = node.member.admits(asked, false, wall) {
            return Err(format!("core does not let it promise: {refusal}"));
        }
        let by_core = node.member.promise(asked, promise.newest.clone());
        if by_core != promise {
            return Err(format!("core promises {by_core:?}"));
        }
        if asked.to != me || promise.from != me {
            return Err("it promises for another node".to_owned());
        }
        if promise.epoch != asked.epoch || promise.epoch <= node.promised {
            return Err(format!("it has promised {:?} before", node.promised));
        }
        node.promised = promise.epoch;
        node.collected.clear();
        self.promises.insert((promise.epoch, me), promise.newest);
        Ok(())
    }

    pub(super) fn collects(&mut self, me: NodeId, promise: Promise<Seen>) -> Judged {
        let given = self.promises.get(&(promise.epoch, promise.from));
        if given.map(|given| given.rank) != Some(promise.newest.rank) {
            return Err(format!("nobody gave that promise, but {given:?}"));
        }
        let generations = promise.newest.record.keys.keys();
        self.told.extend(generations.map(|generation| (me.server.0, *generation)));
        let node = self.node(me)?;
        if promise.epoch == node.promised && !node.collected.is_empty() {
            node.collected.insert(promise.from, promise.newest.clone());
        }
        node.member.collect(promise);
        Ok(())
    }

    pub(super) fn founds(
        &mut self,
        me: NodeId,
        found: FoundedCluster<Seen>,
        has_waited: bool,
    ) -> Judged {
        let node = self.node(me)?;
        let by_core = node.member.found(has_waited);
        let same = by_core.as_ref().map(|core| (core.epoch, &core.voters, core.base.rank))
            == Some((found.epoch, &found.voters, found.base.rank));
        if !same {
            return Err(format!("core founds {by_core:?}"));
        }
        if found.epoch != node.promised {
            return Err(format!("it has promised {:?}", node.promised));
        }
        let (collected, survivors) = (std::mem::take(&mut node.collected), node.survivors.take());
        for (id, incarnation) in found.voters.iter().filter(|(_, life)| !life.is_nobody()) {
            let voter = NodeId { server: *id, incarnation: *incarnation };
            if !self.promises.contains_key(&(found.epoch, voter)) {
                return Err(format!("server {id} counts and has not promised"));
            }
        }
        let newest = collected.values().map(|report| report.rank).max().unwrap_or_default();
        let promised = |id: &_| collected.keys().any(|node| node.server == *id);
        match &survivors {
            Some(all) if !all.contains(&me.server) || !all.iter().all(promised) => {
                return Err("a survivor has not promised, or the founder is none".to_owned());
            }
            Some(all) if found.base.record.lists != [all.clone()] => {
                return Err("others count than those who survived".to_owned());
            }
            // Newer than all that it is made of.
            Some(_) if found.base.rank != (Rank { epoch: found.epoch, ..Rank::default() }) => {
                return Err("it ranks as what those had who are given up for lost".to_owned());
            }
            Some(_) => {}
            None => {
                let of_newest = collected.values().filter(|report| report.rank == newest);
                for report in of_newest {
                    if !are_most(&report.record.lists, promised) {
                        return Err(format!(
                            "{:?} are no majority of {:?}",
                            collected.keys(),
                            report.record.lists
                        ));
                    }
                }
                if found.base.rank != newest {
                    return Err(format!("the newest that it was told of is {newest:?}"));
                }
            }
        }
        // As they told it, whomever an operator named.
        let told = collected.values().filter(|report| report.rank == newest);
        let as_ids = |list: &Voters| list.iter().map(|id| id.0).collect();
        self.news.extend(found.base.record.members.clone().map(|members| {
            ListNews::Founded(Founding {
                epoch: found.epoch,
                promised: collected.keys().map(|node| node.server.0).collect(),
                voters: told.flat_map(|report| report.record.lists.iter().map(as_ids)).collect(),
                members,
            })
        }));
        let list = found.base.record.lists.last();
        if list.is_none_or(|list| !found.voters.keys().eq(list)) {
            return Err(format!("the voters are not those of {list:?}"));
        }
        let lost = |report: &RankedRecord<Seen>| {
            !report.record.revoked.is_subset(&found.base.record.revoked)
        };
        if collected.values().any(lost) {
            return Err("a revocation is lost".to_owned());
        }
        for promiser in collected.keys() {
            self.nothing_is_lost(*promiser, newest, &found)?;
        }
        let epoch = found.epoch;
        let cluster = Cluster {
            found,
            agreed: BTreeMap::new(),
            base: None,
            keys: BTreeMap::new(),
            revoked: Default::default(),
            elections: BTreeMap::new(),
        };
        match self.clusters.insert(epoch, cluster) {
            Some(_) => Err("it founds one epoch twice".to_owned()),
            None => Ok(()),
        }
    }

    /// Whether all that a cluster agreed on, and that somebody acknowledged who is counted, is in what
    /// follows.
    fn nothing_is_lost(
        &self,
        promiser: NodeId,
        newest: Rank,
        found: &FoundedCluster<Seen>,
    ) -> Judged {
        let Some(node) = self.nodes.get(&promiser) else { return Ok(()) };
        // Who promised again since then may have agreed on more, in a cluster that comes after this one.
        for (epoch, log) in node.logs.range(..found.epoch) {
            let Some(cluster) = self.clusters.get(epoch) else { continue };
            let Some(base) = cluster.base else { continue };
            // A log may have another leader's entry in an agreed one's place.
            let has = |at: &u64| cluster.agreed.get(at).is_some_and(|(end, _, _)| log.has(*end));
            let mut known = cluster.agreed.range(base..).filter(|(at, _)| has(at));
            if let Some((_, (end, _, _))) = known.next_back() {
                let agreed = Rank { epoch: *epoch, end: *end };
                if newest < agreed {
                    return Err(format!(
                        "{agreed:?} was agreed on with server {}",
                        promiser.server
                    ));
                }
            }
            if newest.epoch != *epoch {
                continue;
            }
            for (generation, key) in &found.base.record.keys {
                let other = cluster.keys.get(generation).filter(|(_, agreed)| agreed != key);
                if other.is_some_and(|(at, _)| has(at)) {
                    return Err(format!("generation {generation} gets another key, {key}"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn accepts(
        &mut self,
        me: NodeId,
        found: &FoundedCluster<Seen>,
        own: RankedRecord<Seen>,
        accepted: bool,
    ) -> Judged {
        let given = self.cluster(found.epoch)?.found.clone();
        if given != *found {
            return Err(format!("another founding was given out: {given:?}"));
        }
        let has_promised = self.promises.contains_key(&(found.epoch, me));
        let node = self.node(me)?;
        if node.member.accept(found, own.clone()) != accepted {
            return Err("core says otherwise".to_owned());
        }
        if !accepted {
            return Ok(());
        }
        if found.voters.get(&me.server) != Some(&me.incarnation) || !has_promised {
            return Err("it was not counted".to_owned());
        }
        if node.promised != found.epoch || node.cluster >= found.epoch {
            return Err(format!("it has promised {:?}", node.promised));
        }
        node.cluster = found.epoch;
        node.older = own.rank.max(found.base.rank);
        node.revoked.extend(&own.record.revoked);
        Ok(())
    }

    pub(super) fn joins(&mut self, me: NodeId, cluster: Epoch) -> Judged {
        self.cluster(cluster)?;
        let node = self.node(me)?;
        if !node.member.join(cluster) {
            return Err("core does not let it join".to_owned());
        }
        if !node.cluster.is_none() || node.promised > cluster {
            return Err(format!("it is in {:?} and promised {:?}", node.cluster, node.promised));
        }
        (node.promised, node.cluster) = (cluster, cluster);
        node.collected.clear();
        Ok(())
    }
}
