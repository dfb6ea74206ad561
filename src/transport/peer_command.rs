//! What is asked of the line to a peer, and what all lines share.
//!
//! Invariant: a request's bytes are erased when they are sent or nobody waits for the response any more.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::bounds::Bounds;
use super::datagram::Datagrams;
use super::dial::CallError;
use super::frame::Body;
use super::last_seen::LastSeen;
use super::local_identity::LocalIdentity;
use super::resolver::Resolver;
use super::tls::Tls;
use crate::core::config::Member;
use crate::log_sink::Log;
use crate::supervise::lock;

/// Requests to one peer that wait for the connection; more are [`CallError::Busy`].
pub const MAX_QUEUE: usize = 64;

/// What all peers' tasks share.
#[derive(Clone)]
pub(super) struct Deps {
    pub(super) log: Log,
    pub(super) tls: watch::Receiver<Tls>,
    pub(super) me: LocalIdentity,
    pub(super) heard: LastSeen,
    pub(super) resolver: Resolver,
    pub(super) bounds: Bounds,
}

/// The line to one peer, as its callers and its task share it.
pub(super) struct Line {
    pub(super) member: Arc<Member>,
    pub(super) deps: Deps,
    pub(super) datagrams: Datagrams,
    /// Whether there is a connection for a one-way message to go by.
    pub(super) is_up: AtomicBool,
    /// Set once it is no peer any more: nothing is sent to it, however late its task ends.
    pub(super) gone: AtomicBool,
}

impl Line {
    pub(super) fn new(member: &Member, deps: Deps) -> Line {
        Line {
            member: Arc::new(member.clone()),
            deps,
            datagrams: Datagrams::new(),
            is_up: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        }
    }
}

/// What a caller wants of a line.
pub(super) enum PeerCommand {
    /// Send this request.
    Request(PendingRequest),
    /// Send this one-way message, unless it is too late for it.
    OneWay { body: Body, until: Instant },
    /// A caller's time ran out: see whether the connection is still alive.
    Check,
}

/// A request and who waits for it.
pub(super) struct PendingRequest {
    pub(super) body: RequestBody,
    /// What its caller granted, and until when that lasts.
    pub(super) limit: Duration,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<Body, CallError>>,
}

/// The body of a request, which may carry keys. It is gone as soon as it was sent or its caller
/// no longer waits, however long the request itself stays in the queue of a peer that hangs.
#[derive(Clone)]
pub(super) struct RequestBody(pub(super) Arc<Mutex<Option<Body>>>);

impl RequestBody {
    /// The body, once.
    pub(super) fn take(&self) -> Option<Body> {
        lock(&self.0).take()
    }
}

/// Held by the caller while it waits.
pub(super) struct ClearOnDrop(pub(super) RequestBody);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}
