//! When each member was last heard, where it is, and why it could not be asked.
//!
//! Invariant: only members get in, so that the list bounds the table.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::core::server_id::ServerId;
use crate::supervise::lock;

/// When a frame of each member was last heard, whoever dialled; by what the latest connection to
/// it came to nothing; and whose connections were lost. Cloning makes another handle.
#[derive(Clone, Default)]
pub struct LastSeen(Arc<Inner>);

#[derive(Default)]
struct Inner {
    table: Mutex<Table>,
    /// Notified when a connection was lost.
    has_lost: Notify,
}

#[derive(Default)]
struct Table {
    signs: HashMap<ServerId, LastSign>,
    /// By what each member could not be asked; it is gone once that member answers.
    troubles: HashMap<ServerId, Arc<str>>,
    /// The members whose connections were lost since somebody asked last.
    losses: BTreeSet<ServerId>,
}

/// What was heard of one member.
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

impl Table {
    /// What was heard of this member, which is heard `now`.
    fn hear(&mut self, id: ServerId, now: Instant) -> &mut LastSign {
        let new = LastSign { last: now, at_address: None, dialled_from: None, answered_at: None };
        let sign = self.signs.entry(id).or_insert(new);
        sign.last = now;
        sign
    }
}

impl LastSeen {
    /// An empty table.
    pub fn new() -> LastSeen {
        LastSeen::default()
    }

    /// When something was last heard from this member.
    pub fn last(&self, id: ServerId) -> Option<Instant> {
        self.table().signs.get(&id).map(|sign| sign.last)
    }

    /// The incarnation that answers at this member's listed address, if this server has a connection
    /// there. A request under the same id but from another incarnation comes from a second server
    /// that calls itself by that id.
    pub fn at_address(&self, id: ServerId) -> Option<u64> {
        self.table().signs.get(&id).and_then(|sign| sign.at_address)
    }

    /// Forgets all but the members for which `keep` says yes. Bounds the table: only ids that
    /// the service admitted ever get in.
    pub fn retain(&self, keep: impl Fn(ServerId) -> bool) {
        let mut table = self.table();
        table.signs.retain(|&id, _| keep(id));
        table.troubles.retain(|&id, _| keep(id));
        table.losses.retain(|&id| keep(id));
    }

    /// Whether a member of the list was heard from this address, or answered there.
    pub fn is_at(&self, ip: IpAddr) -> bool {
        let ip = Some(ip.to_canonical());
        self.table().signs.values().any(|sign| sign.dialled_from == ip || sign.answered_at == ip)
    }

    /// Notes that this member was heard `now`, by a connection that it dialled.
    pub fn record(&self, id: ServerId, now: Instant) {
        self.table().hear(id, now);
    }

    /// The same, and where it dialled from.
    pub(super) fn record_from(&self, id: ServerId, now: Instant, ip: IpAddr) {
        self.table().hear(id, now).dialled_from = Some(ip.to_canonical());
    }

    /// Notes where it answered.
    pub(super) fn record_answered_at(&self, id: ServerId, ip: IpAddr) {
        if let Some(sign) = self.table().signs.get_mut(&id) {
            sign.answered_at = Some(ip.to_canonical());
        }
    }

    /// Notes that the member answered at its listed address `now`, and which run of it that was.
    pub fn record_answer(&self, id: ServerId, incarnation: u64, now: Instant) {
        let mut table = self.table();
        table.hear(id, now).at_address = Some(incarnation);
        table.troubles.remove(&id);
    }

    /// Notes by what the latest attempt to ask this member came to nothing. For members only.
    pub fn record_trouble(&self, id: ServerId, why: Arc<str>) {
        self.table().troubles.insert(id, why);
    }

    /// By what those came to nothing that have not answered since.
    pub fn troubles(&self) -> HashMap<ServerId, Arc<str>> {
        self.table().troubles.clone()
    }

    /// The connection to the member's address is gone.
    pub fn forget_answer(&self, id: ServerId) {
        if let Some(sign) = self.table().signs.get_mut(&id) {
            sign.at_address = None;
        }
    }

    /// Notes that a connection with this member was lost: its end closed or reset it, or the system
    /// at the other end did because its process is gone.
    pub fn record_lost(&self, id: ServerId) {
        self.table().losses.insert(id);
        self.0.has_lost.notify_one();
    }

    /// Waits until connections were lost; with whom, since this was called last. For one caller.
    pub async fn lost(&self) -> BTreeSet<ServerId> {
        loop {
            self.0.has_lost.notified().await;
            let lost = std::mem::take(&mut self.table().losses);
            if !lost.is_empty() {
                return lost;
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.0.table)
    }
}
