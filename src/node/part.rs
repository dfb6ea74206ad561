//! Changes of this node's part in agreement, each told to who looks on.
//!
//! What may be done is for [`crate::core::agreement`] to say, when it is for `founding` and `lifecycle`.

use super::clock::founding_clock;
use super::context::Context;
use crate::consensus::network::ClusterCell;
use crate::core::agreed::Record;
use crate::core::agreement::founding::{
    FoundedCluster, FoundingRequest, Prepare, Promise, Refusal,
};
use crate::core::agreement::ranked_record::RankedRecord;
use crate::core::witness::{Deed, LogDeed, LogWatch};

/// Prepares a founding with what this node has, unless Raft has to be stopped before; whom to ask
/// what.
pub(super) fn lead(
    ctx: &Context,
    own: RankedRecord<Record>,
    call: &FoundingRequest,
    is_stopped: bool,
) -> Option<Vec<Prepare>> {
    let wall = founding_clock();
    let seen = ctx.onlooker.as_ref().map(|_| own.clone());
    let asked = ctx.part(|part| {
        let is_free = is_stopped || part.cluster.is_none();
        is_free.then(|| part.prepare(own, call, wall))
    })?;
    if let Some(own) = seen {
        ctx.tell(Deed::Prepares { own: &own, call, wall, asked: &asked });
    }
    Some(asked)
}

/// Promises what it is asked with what this node has, unless Raft has to be stopped before.
///
/// # Errors
/// Why it does not promise.
pub(super) fn promise(
    ctx: &Context,
    asked: &Prepare,
    own: RankedRecord<Record>,
    hears_leader: bool,
    is_stopped: bool,
) -> Result<Option<Promise<Record>>, Refusal> {
    let wall = founding_clock();
    let promise = ctx.part(|part| {
        part.admits(asked, hears_leader, wall)?;
        let is_free = is_stopped || part.cluster.is_none();
        Ok(is_free.then(|| part.promise(asked, own)))
    })?;
    if let Some(promise) = &promise {
        ctx.tell(Deed::Promises(asked, promise, wall));
    }
    Ok(promise)
}

/// Keeps a promise that was given to this node.
pub(super) fn collect(ctx: &Context, promise: Promise<Record>) {
    ctx.tell(Deed::Collects(&promise));
    ctx.part(|part| part.collect(promise));
}

/// The founding, if enough have promised.
pub(super) fn found(ctx: &Context, has_waited: bool) -> Option<FoundedCluster<Record>> {
    let found = ctx.part(|part| part.found(has_waited))?;
    ctx.tell(Deed::Founds(&found, has_waited));
    Some(found)
}

/// Gives a founding up; whether others have to found.
pub(super) fn give_up(ctx: &Context) -> bool {
    ctx.tell(Deed::GivesUp);
    ctx.part(|part| part.give_up())
}

/// For the log of one run of Raft: tells who looks on what this node does with it.
pub(super) fn log_watch(ctx: &Context, cluster: &ClusterCell) -> LogWatch {
    let (onlooker, node, cluster) = (ctx.onlooker.clone()?, ctx.node(), cluster.clone());
    Some(std::sync::Arc::new(move |deed: LogDeed<'_>| {
        let cluster = cluster.get().copied().unwrap_or_default();
        onlooker.sees(node, Deed::Log(cluster, deed));
    }))
}
