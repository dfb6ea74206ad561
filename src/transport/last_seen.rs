//! When each member was last heard, where it is, and why it could not be asked.
//!
//! Invariant: only members get in, so that the list bounds the table.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::core::server_id::ServerId;

/// When a frame of each member was last heard, whoever dialled; by what the latest connection to
/// it came to nothing; and whose connections were lost. Cloning makes another handle.
#[derive(Clone, Default)]
pub struct LastSeen(Arc<Mutex<HashMap<ServerId, LastSign>>>, Arc<Mutex<Troubles>>, Arc<Losses>);

/// The members whose connections were lost since somebody asked last.
#[derive(Default)]
struct Losses(Mutex<BTreeSet<ServerId>>, Notify);

/// By what each member could not be asked; it is gone once that member answers.
type Troubles = HashMap<ServerId, Arc<str>>;

/// What was heard of one member.
#[derive(Clone, Copy)]
struct LastSign {
    last: Instant,
    /// The run of the process that answers at the member's listed address, while a connection to
    /// it is up.
    at_address: Option<u64>,
    /// Where it dialled from last.
    dialled_from: Option<IpAddr>,
    /// Where it answered last.
    answered_at: Option<IpAddr>,
}

impl LastSign {
    fn at(last: Instant) -> LastSign {
        LastSign { last, at_address: None, dialled_from: None, answered_at: None }
    }
}

impl LastSeen {
    /// An empty table.
    pub fn new() -> LastSeen {
        LastSeen::default()
    }

    /// When something was last heard from this member.
    pub fn last(&self, id: ServerId) -> Option<Instant> {
        self.signs().get(&id).map(|sign| sign.last)
    }

    /// The incarnation that answers at this member's listed address, if this server has a connection
    /// there. A request under the same id but from another incarnation comes from a second server
    /// that calls itself by that id.
    pub fn at_address(&self, id: ServerId) -> Option<u64> {
        self.signs().get(&id).and_then(|sign| sign.at_address)
    }

    /// Forgets all but the members for which `keep` says yes. Bounds the table: only ids that
    /// the service admitted ever get in.
    pub fn retain(&self, keep: impl Fn(ServerId) -> bool) {
        self.signs().retain(|&id, _| keep(id));
        self.all_troubles().retain(|&id, _| keep(id));
        self.all_losses().retain(|&id| keep(id));
    }

    /// Whether a member of the list was heard from this address, or answered there.
    pub fn is_at(&self, ip: IpAddr) -> bool {
        let is = |known: Option<IpAddr>| known.is_some_and(|known| known == ip.to_canonical());
        self.signs().values().any(|sign| is(sign.dialled_from) || is(sign.answered_at))
    }

    /// Notes that this member was heard `now`, by a connection that it dialled.
    pub fn record(&self, id: ServerId, now: Instant) {
        self.signs().entry(id).or_insert(LastSign::at(now)).last = now;
    }

    /// The same, and where it dialled from.
    pub(super) fn record_from(&self, id: ServerId, now: Instant, ip: IpAddr) {
        let mut signs = self.signs();
        let sign = signs.entry(id).or_insert(LastSign::at(now));
        (sign.last, sign.dialled_from) = (now, Some(ip.to_canonical()));
    }

    /// Notes where it answered.
    pub(super) fn record_answered_at(&self, id: ServerId, ip: IpAddr) {
        if let Some(sign) = self.signs().get_mut(&id) {
            sign.answered_at = Some(ip.to_canonical());
        }
    }

    /// Notes that the member answered at its listed address `now`, and which run of it that was.
    pub fn record_answer(&self, id: ServerId, incarnation: u64, now: Instant) {
        let mut signs = self.signs();
        let sign = signs.entry(id).or_insert(LastSign::at(now));
        (sign.last, sign.at_address) = (now, Some(incarnation));
        drop(signs);
        self.all_troubles().remove(&id);
    }

    /// Notes by what the latest attempt to ask this member came to nothing. For members only.
    pub fn record_trouble(&self, id: ServerId, why: Arc<str>) {
        self.all_troubles().insert(id, why);
    }

    /// By what those came to nothing that have not answered since.
    pub fn troubles(&self) -> HashMap<ServerId, Arc<str>> {
        self.all_troubles().clone()
    }

    fn all_troubles(&self) -> MutexGuard<'_, Troubles> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to the member's address is gone.
    pub fn forget_answer(&self, id: ServerId) {
        if let Some(sign) = self.signs().get_mut(&id) {
            sign.at_address = None;
        }
    }

    /// Notes that a connection with this member was lost: its end closed or reset it, or the system
    /// at the other end did because its process is gone.
    pub fn record_lost(&self, id: ServerId) {
        self.all_losses().insert(id);
        self.2 .1.notify_one();
    }

    /// Waits until connections were lost; with whom, since this was called last. For one caller.
    pub async fn lost(&self) -> BTreeSet<ServerId> {
        loop {
            self.2 .1.notified().await;
            let lost = std::mem::take(&mut *self.all_losses());
            if !lost.is_empty() {
                return lost;
            }
        }
    }

    fn all_losses(&self) -> MutexGuard<'_, BTreeSet<ServerId>> {
        self.2 .0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signs(&self) -> MutexGuard<'_, HashMap<ServerId, LastSign>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
