//! One request to one peer and its answer, and the question to all voters that goes before an
//! election.
//!
//! What an answer means is for whoever asked. Invariants: an answer that counts beyond what this
//! server can believe is none; a peer of another cluster is noted, whatever it was asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::shared::Shared;
use crate::consensus::network::{CallFailure, Courier};
use crate::core::crowd::breadth;
use crate::core::rejoin::{yields, Status};
use crate::core::server_id::ServerId;
use crate::journal::Level;
use crate::rpc::{self, Request, Response, Unable};
use crate::transport::listener::Refusal;
use crate::transport::peers::CallError;

/// How long one question about another box's status may take; well above any round trip that the
/// election bounds allow, since a connection may have to be made first.
pub(super) const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// Carries messages over the transport's connections.
#[derive(Clone)]
pub(super) struct PeerCourier(pub Arc<Shared>);

impl Courier for PeerCourier {
    async fn call(
        &self,
        to: ServerId,
        request: Request,
        limit: Duration,
    ) -> Result<Response, CallFailure> {
        let body = rpc::encode(&request).ok_or(CallFailure::Senseless)?;
        // The request may hold keys; while the answer is awaited only the frame does.
        drop(request);
        let answer = self.0.post.request(to, body, limit).await.map_err(|e| match e {
            CallError::TimedOut => CallFailure::TimedOut,
            CallError::Refused(Refusal::NotAMember) => CallFailure::NotListed,
            _ => CallFailure::Unreachable,
        })?;
        let answer = rpc::decode_response(&answer).map_err(|e| {
            let line = format!("server {to} answered nonsense: {e}");
            self.0.log.limited(Level::Warning, "senseless answer", line);
            CallFailure::Senseless
        })?;
        let is_foreign = match &answer {
            Response::Unable(Unable::OtherHistory) => true,
            // A server that finds no leader asks for no more than this, and may hear nobody else.
            Response::Status(theirs) => yields(&self.0.status(), theirs),
            _ => false,
        };
        if is_foreign {
            self.0.note_foreigner(to);
        }
        let told = answer.ballot();
        match told.is_none_or(|ballot| self.0.believes(to, ballot.term, 0)) {
            true => Ok(answer),
            false => Err(CallFailure::Senseless),
        }
    }
}

/// Asks all voters but this box what they are.
pub(super) fn ask_voters(
    shared: &Arc<Shared>,
    configs: &[BTreeSet<ServerId>],
) -> JoinSet<(ServerId, Result<Status, CallFailure>)> {
    let voters: BTreeSet<ServerId> = configs.iter().flatten().copied().collect();
    let limit = STATUS_LIMIT * breadth(voters.len());
    let mut asked = JoinSet::new();
    for id in voters.into_iter().filter(|id| *id != shared.me) {
        let shared = shared.clone();
        asked.spawn(async move {
            let question = Request::Status(shared.status());
            let answer = match PeerCourier(shared).call(id, question, limit).await {
                Ok(Response::Status(status)) => Ok(status),
                Ok(_) => Err(CallFailure::Senseless),
                Err(failure) => Err(failure),
            };
            (id, answer)
        });
    }
    asked
}
