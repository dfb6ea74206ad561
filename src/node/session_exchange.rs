//! Between the host's sessions and the node: either side puts something down and goes on.
//!
//! Leaves to [`crate::core::sessions`] how many, to the host what a session is, and to
//! `sessions` the way to the others. Invariants:
//! - What waits in either direction is within [`QUEUE`]; the oldest give way, and are counted.
//! - The host's side waits for nobody, and holds no lock of this for longer than an entry takes; to
//!   wake the node it takes none.
//! - What comes in is handed to the host in the order of its coming, on the node's thread and at once.
//! - What was made before a revocation is neither sent nor taken after it, and what the host has of it
//!   is removed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use once_cell::sync::OnceCell;
use tokio::sync::{watch, Notify};
use tokio::time::{sleep, Instant};

use super::wake_pipe::{WakeListener, WakePipe};
use crate::core::config::MAX_MEMBERS;
use crate::core::key_ring::{Generation, KeyRing};
use crate::core::lossy_queue::LossyQueue;
use crate::core::moment::Moment;
use crate::core::server_id::ServerId;
use crate::core::server_status::SessionStatus;
use crate::core::sessions::{
    Rate, SessionEvent, MAX_PER_MESSAGE, QUEUE, SENT_PER_SECOND, TAKEN_PER_SECOND,
};
use crate::rpc::WireSessions;
use crate::supervise::lock;
use crate::transport::datagram::Tally;

/// What another server told, for the host.
#[derive(Debug)]
pub struct Arrival {
    /// Which server.
    pub from: ServerId,
    /// What.
    pub event: SessionEvent,
}

/// What the host tells, for one other server or for all.
struct Departure {
    to: Option<ServerId>,
    generation: Generation,
    event: SessionEvent,
}

/// Between the host and the node: either side puts something down and goes on.
pub struct SessionExchange {
    since: Instant,
    /// Whether the host takes sessions yet.
    is_open: watch::Sender<bool>,
    departures: Mutex<LossyQueue<Departure>>,
    /// Notified when there is something to send.
    ready: Notify,
    send_rate: Mutex<Rate>,
    arrivals: Mutex<LossyQueue<Arrival>>,
    /// By which the host wakes the node when it has something to tell.
    pipe: Arc<WakePipe>,
    /// Called when it was, and when there is something for the host.
    work: OnceCell<Box<dyn Fn() + Send + Sync>>,
    /// How much each member may still send.
    take_rates: Mutex<BTreeMap<ServerId, Rate>>,
    /// The current key's, and that of the last revocation.
    generation: AtomicU64,
    revoked: AtomicU64,
    /// Whether the host has to remove all shared sessions.
    erase: AtomicBool,
    tally: Arc<Tally>,
    received: AtomicU64,
    dropped: AtomicU64,
    inserted: AtomicU64,
    refused: AtomicU64,
}

impl Default for SessionExchange {
    fn default() -> SessionExchange {
        SessionExchange {
            since: Instant::now(),
            is_open: watch::Sender::new(false),
            departures: Mutex::new(LossyQueue::new(QUEUE)),
            ready: Notify::new(),
            send_rate: Mutex::new(Rate::new(SENT_PER_SECOND)),
            arrivals: Mutex::new(LossyQueue::new(QUEUE)),
            pipe: Arc::new(WakePipe::new()),
            work: OnceCell::new(),
            take_rates: Mutex::default(),
            generation: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            erase: AtomicBool::new(false),
            tally: Arc::default(),
            received: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            inserted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }
}

/// For the host.
impl SessionExchange {
    /// Has `work` called on the node's thread whenever something arrives or the host wakes it; it must
    /// neither wait nor take long. The first caller counts.
    pub fn on_work(&self, work: impl Fn() + Send + Sync + 'static) {
        let _ = self.work.set(Box::new(work));
    }

    /// Has the node's thread call what [`SessionExchange::on_work`] was given; whether it will.
    pub fn wake_node(&self) -> bool {
        self.pipe.wake()
    }

    /// The host takes sessions from now on. What comes before that is lost, and the others are asked for
    /// their newest only then.
    pub fn open(&self) {
        self.is_open.send_replace(true);
    }

    /// The current key's generation: what is made now is of it.
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Whether what was made under this generation was revoked since.
    pub fn is_revoked(&self, generation: Generation) -> bool {
        generation.0 < self.revoked.load(Ordering::Acquire)
    }

    /// Has this told to one other server or to all; `generation` is that of when it happened.
    pub fn tell(&self, to: Option<ServerId>, generation: Generation, event: SessionEvent) {
        let (now, size) = (self.now(), event.size());
        let departure = Departure { to, generation, event };
        let lost = lock(&self.departures).push_at(now, size, departure);
        self.record_dropped(lost);
        self.ready.notify_one();
    }

    /// What has arrived, the oldest first.
    pub fn arrival(&self) -> Option<Arrival> {
        let now = self.now();
        let (lost, arrival) = lock(&self.arrivals).pop_at(now);
        self.record_dropped(lost);
        arrival
    }

    /// Whether all shared sessions have to be removed.
    pub fn has_erasure(&self) -> bool {
        self.erase.load(Ordering::Acquire)
    }

    /// The same; says so once.
    pub fn take_erasure(&self) -> bool {
        self.erase.swap(false, Ordering::AcqRel)
    }

    /// Sessions that the host lost before they got here.
    pub fn record_dropped(&self, lost: usize) {
        self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
    }

    /// The host was given a session.
    pub fn record_inserted(&self) {
        self.inserted.fetch_add(1, Ordering::Relaxed);
    }

    /// A session broke a rule.
    pub fn record_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted.
    pub fn status(&self) -> SessionStatus {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        SessionStatus {
            sent: read(&self.tally.sent),
            received: read(&self.received),
            dropped: read(&self.dropped) + read(&self.tally.lost),
            inserted: read(&self.inserted),
            refused: read(&self.refused),
        }
    }
}

/// For the node.
impl SessionExchange {
    /// Whether a message of this member may be looked at now, which counts as one session whatever it
    /// holds. One that may not is lost.
    pub(super) fn may_take(&self, from: ServerId) -> bool {
        const WHOLE: u32 = MAX_PER_MESSAGE as u32;
        let now = self.now();
        let has_room = lock(&self.take_rates).get(&from).is_none_or(|rate| rate.has_at(now, WHOLE));
        let may = has_room && self.takes(from, now);
        self.record_dropped(usize::from(!may));
        may
    }

    /// Takes what another server of this cluster says of its sessions.
    pub(super) fn receive(&self, from: ServerId, sessions: WireSessions) {
        let WireSessions { generation, events } = sessions;
        self.received.fetch_add(events.len() as u64, Ordering::Relaxed);
        if self.is_revoked(generation) {
            self.refused.fetch_add(events.len() as u64, Ordering::Relaxed);
            return;
        }
        let (now, is_open) = (self.now(), *self.is_open.borrow());
        let mut lost = 0;
        for event in events {
            if self.takes(from, now) && is_open {
                let size = event.size();
                lost += lock(&self.arrivals).push_at(now, size, Arrival { from, event });
            } else {
                lost += 1;
            }
        }
        self.record_dropped(lost);
        self.work();
    }

    fn takes(&self, from: ServerId, now: Moment) -> bool {
        let mut rates = lock(&self.take_rates);
        if rates.len() > MAX_MEMBERS && !rates.contains_key(&from) {
            // Members come and go; those that are here have been heard lately.
            rates.clear();
        }
        rates.entry(from).or_insert(Rate::new(TAKEN_PER_SECOND)).take_at(now).is_ok()
    }

    /// Does what there is to do between this and the host.
    pub(super) fn work(&self) {
        if let Some(work) = self.work.get() {
            work();
        }
    }

    /// Who is woken by the host.
    pub(super) fn listen(&self) -> Option<WakeListener> {
        WakeListener::new(self.pipe.clone())
    }

    /// Takes over what is agreed now; whether a revocation is new, after which nothing that is on its
    /// way counts. A server that starts anew has an empty ring for a while, which says nothing.
    pub(super) fn follow(&self, ring: &KeyRing) -> bool {
        if ring.cluster_id().is_none() {
            return false;
        }
        let is_new = ring.revoked().0 > self.revoked.swap(ring.revoked().0, Ordering::AcqRel);
        let generation = ring.current().map_or(0, |held| held.generation.0);
        self.generation.store(generation, Ordering::Release);
        if is_new {
            let lost = lock(&self.departures).clear() + lock(&self.arrivals).clear();
            self.record_dropped(lost);
            self.erase.store(true, Ordering::Release);
            self.work();
        }
        is_new
    }

    /// What is to be sent next. May be dropped and called again at any time.
    pub(super) async fn next_batch(&self) -> (Option<ServerId>, WireSessions) {
        loop {
            match self.batch() {
                Ok(Some(batch)) => return batch,
                Ok(None) => self.ready.notified().await,
                Err(pause) => sleep(pause).await,
            }
        }
    }

    /// As much as fits into one message and the rate allows; if that is nothing, how long to wait.
    fn batch(&self) -> Result<Option<(Option<ServerId>, WireSessions)>, Duration> {
        let now = self.now();
        let (mut queue, mut rate) = (lock(&self.departures), lock(&self.send_rate));
        self.record_dropped(queue.expire_at(now));
        let Some(first) = queue.front() else { return Ok(None) };
        let (to, generation) = (first.to, first.generation);
        let mut events = Vec::new();
        while events.len() < MAX_PER_MESSAGE
            && queue.front().is_some_and(|next| (next.to, next.generation) == (to, generation))
        {
            match rate.take_at(now) {
                Ok(()) => events.extend(queue.pop_at(now).1.map(|departure| departure.event)),
                Err(pause) if events.is_empty() => return Err(pause),
                Err(_) => break,
            }
        }
        Ok(Some((to, WireSessions { generation, events })))
    }

    /// Whether the host takes sessions, now and from when on.
    pub(super) fn watch_open(&self) -> watch::Receiver<bool> {
        self.is_open.subscribe()
    }

    /// What became of what was sent.
    pub(super) fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    fn now(&self) -> Moment {
        Moment::from_start(self.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_members_is_bounded() {
        let exchange = SessionExchange::default();
        for id in 1..=3 * MAX_MEMBERS as u32 {
            assert!(exchange.may_take(ServerId(id)));
        }
        assert!(lock(&exchange.take_rates).len() <= MAX_MEMBERS + 1);
    }
}
