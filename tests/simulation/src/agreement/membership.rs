//! How the voters of a cluster change, as its leaders have it.

use std::collections::BTreeMap;

use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::log_id::LogId;
use stek_share::core::node_id::{Incarnation, NodeId};
use stek_share::core::server_id::ServerId;

use super::seen::Configuration;
use super::{Agreement, Judged};

type Lives = BTreeMap<ServerId, Incarnation>;

impl Agreement {
    /// A leader writes other voters into its log.
    pub(super) fn voters_change(
        &mut self,
        me: NodeId,
        epoch: Epoch,
        at: LogId,
        next: &Configuration,
    ) -> Judged {
        let base = self.cluster(epoch)?.base;
        let Some(log) = self.nodes.get(&me).and_then(|node| node.logs.get(&epoch)) else {
            return Err("it has no log".to_owned());
        };
        let Some((since, last)) = log.voters_before(at.index) else {
            return Err("it knows no voters".to_owned());
        };
        if last == next {
            return Ok(());
        }
        let applied = log.applied().filter(|applied| applied.leader_id == at.leader_id);
        let is_settled = applied.is_some_and(|applied| {
            applied.index >= since && base.is_some_and(|base| applied.index >= base)
        });
        if !is_settled {
            return Err(format!("it changes voters, and has agreed on {applied:?} so far"));
        }
        let (from, to) = match (&last[..], &next[..]) {
            ([_, wanted], [to]) if wanted == to => return Ok(()),
            ([from], [same, to]) if from == same => (from, to),
            _ => return Err(format!("no step leads from {last:?} to {next:?}")),
        };
        let lives = |nodes: &std::collections::BTreeSet<NodeId>| -> Lives {
            nodes.iter().map(|node| (node.server, node.incarnation)).collect()
        };
        let (old, new) = (lives(from), lives(to));
        let come = new.keys().filter(|id| !old.contains_key(id)).count();
        let gone = old.keys().filter(|id| !new.contains_key(id)).count();
        if new.len() != to.len() || come + gone > 1 {
            return Err(format!("{come} servers come and {gone} go at once: {next:?}"));
        }
        let is_earlier =
            |(id, life): (&ServerId, &Incarnation)| old.get(id).is_some_and(|was| life < was);
        if new.iter().any(is_earlier) {
            return Err(format!("an earlier life takes the place of a later one: {next:?}"));
        }
        for voter in to.difference(from) {
            self.may_vote(*voter, epoch, base.unwrap_or_default())?;
        }
        Ok(())
    }

    /// Whether a node has the log of this cluster, which knows of all that it knows to be revoked.
    fn may_vote(&self, voter: NodeId, epoch: Epoch, base: u64) -> Judged {
        let id = voter.server;
        let (Some(node), Some(cluster)) = (self.nodes.get(&voter), self.clusters.get(&epoch))
        else {
            return Err(format!("server {id} never began"));
        };
        let has = node.logs.get(&epoch).and_then(|log| log.acknowledged());
        if has.is_none_or(|end| end.index < base) {
            return Err(format!("server {id} is to vote and has the log to {has:?}"));
        }
        let known = &cluster.revoked;
        if !node.revoked.is_subset(known) {
            return Err(format!(
                "server {id} is to vote and knows of more that is revoked: {:?}, not {known:?}",
                node.revoked
            ));
        }
        Ok(())
    }
}
