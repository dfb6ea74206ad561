//! In a large group a box that starts does not ask everybody: it asks a few boxes what all others
//! say of themselves.
//!
//! The leader, which has a connection to everybody, asks all of them in its stead; any other box
//! passes on what it was told lately. What must hold: what is passed on was said by the box that it
//! is about, and is not made to look younger than it is; the leader asks everybody at most once at
//! a time, however many want to know.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::peer_client::PeerCourier;
use super::shared::Shared;
use crate::consensus::network::Courier;
use crate::rpc::{Hearsay, Request, Response};

/// How long another box's word about itself counts.
pub(super) const ANSWER_LIFE: Duration = Duration::from_secs(2);

/// What the others say of themselves, for one that asks now.
pub(super) async fn others(shared: &Arc<Shared>) -> Vec<Hearsay> {
    let leads = shared.running().is_some_and(|running| shared.leads_majority(&running));
    if !leads {
        return shared.answers_to_tell(ANSWER_LIFE);
    }
    let came = shared.now();
    // Whoever comes during a round waits for the next one, which serves all that wait.
    let mut survey = shared.survey.lock().await;
    if survey.begun.is_none_or(|begun| begun < came) {
        survey.begun = Some(shared.now());
        survey.said = ask_all(shared).await;
    }
    survey.said.clone()
}

/// Asks all members that are there; ends as soon as a majority remembers everything.
async fn ask_all(shared: &Arc<Shared>) -> Vec<Hearsay> {
    let reach = shared.reach();
    let is_there = |id| shared.heard.last(id).is_some_and(|at| at.elapsed() < reach);
    let limit = shared.settings().timers.election_upper;
    let mut asked = JoinSet::new();
    for id in shared.others().filter(|id| is_there(*id)) {
        let (courier, question) = (PeerCourier(shared.clone()), Request::Status(shared.status()));
        asked.spawn(async move { (id, courier.call(id, question, limit).await) });
    }
    let majority = shared.members().len() / 2 + 1;
    let (mut said, mut full) = (Vec::new(), 0);
    let gather = async {
        while let Some(answer) = asked.join_next().await {
            if let Ok((from, Ok(Response::Status(status)))) = answer {
                full += usize::from(status.full);
                said.push(Hearsay { from, age_ms: 0, status });
            }
            // The leader itself is one of them.
            if full + 1 >= majority {
                return;
            }
        }
    };
    // What was said until then is as good.
    let _ = timeout(limit, gather).await;
    said
}
