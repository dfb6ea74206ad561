//! Brings an operator's order to the leader, wherever it is.
//!
//! Carrying it out is for `leader`. Invariants: whoever gave an order is answered in bounded time,
//! and is never told that it came to nothing while it still may.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout, Instant};

use super::context::Context;
use super::origin;
use super::shared::{QueuedCommand, Shared};
use crate::consensus::network::{CallFailure, RpcClient};
use crate::core::config::Settings;
use crate::core::key_ring::Generation;
use crate::core::rotation::AdminCommand;
use crate::core::server_id::ServerId;
use crate::rpc::{AdminRefusal, Request, Response};

/// Between two looks for a leader.
const RETRY: Duration = Duration::from_millis(100);

/// Brings an order to the leader, wherever it is; `origin` says who gave it.
pub(super) async fn admin_command(
    shared: &Arc<Shared>,
    command: AdminCommand,
    origin: String,
) -> Result<Generation, AdminRefusal> {
    let deadline = Instant::now() + shared.ctx.settings().request_timeout;
    let limit = admin_limit(&shared.ctx.settings()) + shared.ctx.settings().timers.election_upper;
    loop {
        let Some(id) = find(&shared.ctx, deadline).await else {
            return Err(AdminRefusal::NoLeader);
        };
        let answer = if id == shared.ctx.me {
            admin_command_here(shared, command, origin.clone()).await
        } else {
            let request = Request::AdminCommand { command, origin: origin::to_pass_on(&origin) };
            match shared.peers.call(id, request, limit).await {
                Ok(Response::AdminCommand(answer)) => answer,
                Err(CallFailure::Unreachable | CallFailure::NobodyListens) => {
                    Err(AdminRefusal::NoLeader)
                }
                _ => Err(AdminRefusal::Unknown),
            }
        };
        if answer != Err(AdminRefusal::NoLeader) || Instant::now() >= deadline {
            return answer;
        }
        sleep(RETRY).await;
    }
}

/// The leader, once one is known; `None` if that takes until the deadline.
pub(super) async fn find(ctx: &Context, deadline: Instant) -> Option<ServerId> {
    loop {
        if let Some(id) = ctx.leader() {
            return Some(id);
        }
        if Instant::now() >= deadline {
            return None;
        }
        sleep(RETRY).await;
    }
}

/// Gives an order to this server's own loop; refused unless it leads.
pub(super) async fn admin_command_here(
    shared: &Arc<Shared>,
    command: AdminCommand,
    origin: String,
) -> Result<Generation, AdminRefusal> {
    // A leader that the list no longer has leads until the membership has followed, and must not
    // make the key that its removal is followed by.
    let agreed = shared.ctx.views.borrow().agreed.clone();
    if agreed.server_list.as_ref().is_some_and(|list| list.get(shared.ctx.me).is_none()) {
        return Err(AdminRefusal::NoLeader);
    }
    let (reply, answer) = oneshot::channel();
    let queued = QueuedCommand { command, origin, reply };
    shared.commands.try_send(queued).map_err(|_| AdminRefusal::NoLeader)?;
    match timeout(admin_limit(&shared.ctx.settings()), answer).await {
        Ok(Ok(answer)) => answer,
        // The end of this server's Raft: it may have been begun, and must not be given twice.
        Ok(Err(_)) => Err(AdminRefusal::Unknown),
        Err(_) => Err(AdminRefusal::TimedOut),
    }
}

/// An order takes two agreements and a handover.
fn admin_limit(settings: &Settings) -> Duration {
    settings.request_timeout * 2 + settings.handover_timeout
}
