//! Sessions of TLS 1.2 that clients resume by their id (RFC 5246, section 7.4.1.3): which may be
//! shared with other servers, how many, and for how long; and which are known here.
//!
//! How one is read out of Traffic Server and put into it is for [`crate::host`], how it travels for
//! [`crate::node`] and [`crate::transport`]. Invariants:
//! - A session is a secret as a ticket key is: its bytes are erased when they are dropped, and nothing
//!   here prints them.
//! - Only what [`check`] lets through is sent or taken: no session of TLS 1.3, none that got a ticket,
//!   none that holds a client's certificate, none without an end.
//! - All that is kept of sessions is bounded here, by name.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};
use thiserror::Error;
use zeroize::Zeroizing;

use super::lossy_queue::Limits;
use super::moment::Moment;

/// The longest session id (RFC 5246, section 7.4.1.2).
pub const MAX_ID: usize = 32;

/// Bytes of a session as OpenSSL writes it (`i2d_SSL_SESSION`). Traffic Server itself keeps none
/// that is longer, in all versions that have the interface.
pub const MAX_SESSION: usize = 256;

/// Sessions in one message between servers: some 4 KiB, which take 30 ms on a line of 1 Mbit/s. So
/// long may a heartbeat wait for a message that was begun.
pub const MAX_PER_MESSAGE: usize = 16;

/// Sessions that a server sends to each other one in a second. A core computes about as many
/// handshakes with a new session.
pub const SENT_PER_SECOND: u32 = 2_000;

/// Sessions that a server takes from one other in a second: twice what a sound one sends, since what
/// was held up on the way comes at once.
pub const TAKEN_PER_SECOND: u32 = 2 * SENT_PER_SECOND;

/// How long a session may wait on its way in each place. A client that comes back later than that
/// finds it made anew anyway, and one that came back before had a full handshake.
pub const MAX_WAIT: Duration = Duration::from_secs(2);

/// Sessions that wait to be sent or to be given to the host: two seconds' worth, 1 MiB at most.
pub const QUEUE: Limits = Limits { entries: 4096, bytes: 4096 * MAX_SESSION, wait: MAX_WAIT };

/// The longest life of a session, whatever it says of itself: a day, the most that RFC 5246 advises
/// (appendix F.1.4).
pub const MAX_LIFE: Duration = Duration::from_secs(86_400);

/// How far the clocks of two servers may differ: a session that was made later than this from now is
/// refused.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

/// Shared sessions of which a server knows the id, to remove them from the host: as many as Traffic
/// Server keeps sessions by default. Some 14 MiB if there are so many.
pub const MAX_KNOWN: usize = 102_400;

/// Sessions that a server that starts is sent by one other: the newest. They take four seconds.
pub const MAX_FETCHED: usize = 4096;

/// How long a server that was sent those is not sent them again.
pub const FETCH_PAUSE: Duration = Duration::from_secs(30);

/// A session's id. It travels in clear between client and server, but says who comes back, and so is
/// in no log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    bytes: [u8; MAX_ID],
    len: u8,
}

impl SessionId {
    /// The id of these bytes; `None` if there are none, or too many.
    pub fn new(id: &[u8]) -> Option<SessionId> {
        let len =
            u8::try_from(id.len()).ok().filter(|len| (1..=MAX_ID).contains(&(*len).into()))?;
        let mut bytes = [0; MAX_ID];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(SessionId { bytes, len })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }
}

/// Shows no bytes.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId")
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.bytes())
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SessionId, D::Error> {
        let taken = deserializer.deserialize_bytes(Bytes { most: MAX_ID })?;
        SessionId::new(&taken).ok_or_else(|| de::Error::custom("an empty session id"))
    }
}

/// A session as OpenSSL writes it, with the secrets that resume it.
#[derive(PartialEq, Eq)]
pub struct SessionBytes(Zeroizing<Vec<u8>>);

impl SessionBytes {
    /// `None` if there are more than [`MAX_SESSION`] of them, or none.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Option<SessionBytes> {
        (1..=MAX_SESSION).contains(&bytes.len()).then_some(SessionBytes(bytes))
    }

    /// The secret bytes. Whoever copies them answers for erasing the copy.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Shows no bytes.
impl fmt::Debug for SessionBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionBytes")
    }
}

/// Writes the raw bytes: only for frames that travel inside mutual TLS.
impl Serialize for SessionBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for SessionBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SessionBytes, D::Error> {
        let taken = deserializer.deserialize_bytes(Bytes { most: MAX_SESSION })?;
        SessionBytes::new(taken).ok_or_else(|| de::Error::custom("an empty session"))
    }
}

/// Takes so many bytes at most, in one allocation that is erased.
struct Bytes {
    most: usize,
}

impl Visitor<'_> for Bytes {
    type Value = Zeroizing<Vec<u8>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1 to {} bytes", self.most)
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        if bytes.len() > self.most {
            return Err(E::invalid_length(bytes.len(), &self));
        }
        Ok(Zeroizing::new(bytes.to_vec()))
    }
}

/// What a server tells another of its sessions.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SessionEvent {
    /// A client has got this one.
    Made(SessionId, SessionBytes),
    /// This one must not be resumed any more.
    Removed(SessionId),
    /// "I have just started; send me the newest that you know of."
    WantNewest,
}

impl SessionEvent {
    /// How much it counts in a queue, in bytes.
    pub fn size(&self) -> usize {
        match self {
            SessionEvent::Made(_, bytes) => bytes.expose().len(),
            SessionEvent::Removed(_) | SessionEvent::WantNewest => 1,
        }
    }
}

/// What is to be known of a session to decide about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its own id, if it has one: OpenSSL gives none to a session that got a ticket (RFC 5077,
    /// section 3.4).
    pub id: Option<SessionId>,
    /// Whether it is of TLS 1.3, whose sessions have no ids of their own.
    pub is_of_tls13: bool,
    /// Whether it has a ticket.
    pub has_ticket: bool,
    /// Whether it holds the certificate that a client showed.
    pub has_certificate: bool,
    /// When it was made, in seconds since 1970.
    pub made_s: u64,
    /// How long it may be resumed from then on, in seconds.
    pub life_s: u64,
}

/// Why a session is neither sent nor taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    /// OpenSSL does not read it.
    #[error("it is no session")]
    Garbage,
    /// It has no id, or another one than it is said to have.
    #[error("its id is another one")]
    OtherId,
    /// It is of TLS 1.3.
    #[error("it is of TLS 1.3")]
    Tls13,
    /// It has a ticket, which the client keeps.
    #[error("it has a ticket")]
    Ticket,
    /// It holds a client's certificate: no other server has checked that.
    #[error("it holds a client's certificate")]
    Certificate,
    /// It has ended, or never ends.
    #[error("it has ended or lives too long")]
    Life,
    /// It was made in the future.
    #[error("it was made in the future")]
    Clock,
}

/// Whether a session that is said to have this id may be shared; when it ends, in seconds since 1970.
///
/// # Errors
/// The first rule that it breaks.
pub fn check(facts: &Facts, said: SessionId, now_s: u64) -> Result<u64, Unfit> {
    let ends_s = facts.made_s.saturating_add(facts.life_s);
    if facts.is_of_tls13 {
        Err(Unfit::Tls13)
    } else if facts.has_ticket {
        Err(Unfit::Ticket)
    } else if facts.id != Some(said) {
        Err(Unfit::OtherId)
    } else if facts.has_certificate {
        Err(Unfit::Certificate)
    } else if facts.made_s > now_s.saturating_add(CLOCK_TOLERANCE.as_secs()) {
        Err(Unfit::Clock)
    } else if facts.life_s > MAX_LIFE.as_secs() || ends_s <= now_s {
        Err(Unfit::Life)
    } else {
        Ok(ends_s)
    }
}

/// So many a second, and after a rest a tenth of a second's worth at once.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    per_second: u32,
    full_at: Moment,
}

impl Rate {
    /// A full one.
    pub const fn new(per_second: u32) -> Rate {
        Rate { per_second, full_at: Moment::from_start(Duration::ZERO) }
    }

    /// Takes one; if there is none left, how long it takes to come.
    ///
    /// # Errors
    /// How long to wait.
    pub fn take_at(&mut self, now: Moment) -> Result<(), Duration> {
        self.full_at = self.after(now, 1)?;
        Ok(())
    }

    /// Whether so many could be taken.
    pub fn has_at(&self, now: Moment, count: u32) -> bool {
        self.after(now, count).is_ok()
    }

    /// When it is full again if so many are taken now.
    fn after(&self, now: Moment, count: u32) -> Result<Moment, Duration> {
        let interval = Duration::from_secs(1) / self.per_second.max(1);
        let most = interval.saturating_mul((self.per_second / 10).max(1));
        let then = self.full_at.max(now) + interval.saturating_mul(count);
        match then.since(now).checked_sub(most) {
            None | Some(Duration::ZERO) => Ok(then),
            Some(pause) => Err(pause),
        }
    }
}

/// The shared sessions that the host may hold: this server's own and those of others.
#[derive(Debug, Default)]
pub struct Known {
    /// When each ends, and its number in the order of arrival.
    ends: HashMap<SessionId, (u64, u64)>,
    /// In the order of arrival; an entry whose number is not the one above counts no more.
    order: VecDeque<(SessionId, u64)>,
    arrived: u64,
}

impl Known {
    /// Notes one that the host holds now; the one that has to go for it, if there are too many.
    pub fn add(&mut self, id: SessionId, ends_s: u64) -> Option<SessionId> {
        self.arrived += 1;
        self.ends.insert(id, (ends_s, self.arrived));
        self.order.push_back((id, self.arrived));
        if self.is_untidy() {
            self.tidy_up();
        }
        (self.ends.len() > MAX_KNOWN).then(|| self.remove_oldest()).flatten()
    }

    /// Whether it is one of them.
    pub fn contains(&self, id: SessionId) -> bool {
        self.ends.contains_key(&id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Forgets one; whether it was there.
    pub fn remove(&mut self, id: SessionId) -> bool {
        self.ends.remove(&id).is_some()
    }

    /// Forgets those that have ended, and hands them out.
    pub fn remove_ended(&mut self, now_s: u64) -> Vec<SessionId> {
        let ended = self.ends.extract_if(|_, (ends_s, _)| *ends_s <= now_s);
        let ended: Vec<SessionId> = ended.map(|(id, _)| id).collect();
        if !ended.is_empty() {
            self.tidy_up();
        }
        ended
    }

    fn is_untidy(&self) -> bool {
        self.order.len() > 2 * MAX_KNOWN
    }

    /// Takes out what counts no more.
    fn tidy_up(&mut self) {
        let ends = &self.ends;
        self.order.retain(|(id, number)| ends.get(id).is_some_and(|(_, own)| own == number));
    }

    /// Forgets all, and hands them out.
    pub fn remove_all(&mut self) -> Vec<SessionId> {
        self.order = VecDeque::new();
        std::mem::take(&mut self.ends).into_keys().collect()
    }

    /// The newest, so many at most, the newest first.
    pub fn newest(&self, most: usize) -> Vec<SessionId> {
        let present = |(id, number): &&(SessionId, u64)| {
            self.ends.get(id).is_some_and(|(_, own)| own == number)
        };
        self.order.iter().rev().filter(present).map(|(id, _)| *id).take(most).collect()
    }

    fn remove_oldest(&mut self) -> Option<SessionId> {
        while let Some((id, number)) = self.order.pop_front() {
            if self.ends.get(&id).is_some_and(|(_, own)| *own == number) {
                self.ends.remove(&id);
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn id(n: u64) -> SessionId {
        SessionId::new(&n.to_be_bytes()).unwrap()
    }

    fn facts() -> Facts {
        Facts {
            id: Some(id(1)),
            is_of_tls13: false,
            has_ticket: false,
            has_certificate: false,
            made_s: 1_000_000,
            life_s: 7200,
        }
    }

    #[test]
    fn ids_and_sessions_are_bounded_and_show_nothing() {
        assert_eq!(SessionId::new(&[]), None);
        assert_eq!(SessionId::new(&[7; MAX_ID + 1]), None);
        assert_eq!(SessionId::new(&[7; MAX_ID]).unwrap().bytes(), [7; MAX_ID]);
        assert_ne!(SessionId::new(&[7]), SessionId::new(&[7, 0]));
        let of = |len: usize| SessionBytes::new(Zeroizing::new(vec![7; len]));
        assert!(of(0).is_none() && of(MAX_SESSION + 1).is_none());
        assert_eq!(QUEUE.bytes, QUEUE.entries * MAX_SESSION, "bytes are what there is room for");
        assert_eq!(TAKEN_PER_SECOND, SENT_PER_SECOND + SENT_PER_SECOND);
        let event = SessionEvent::Made(id(0x0707_0707), of(MAX_SESSION).unwrap());
        assert_eq!(event.size(), MAX_SESSION);
        assert_eq!(format!("{event:?}"), "Made(SessionId, SessionBytes)");
        for (len, fits) in [(0, false), (1, true), (MAX_SESSION, true), (MAX_SESSION + 1, false)] {
            let bytes = postcard::to_allocvec(&Raw(&vec![7; len])).unwrap();
            assert_eq!(postcard::from_bytes::<SessionBytes>(&bytes).is_ok(), fits, "{len}");
            let fits = (1..=MAX_ID).contains(&len);
            assert_eq!(postcard::from_bytes::<SessionId>(&bytes).is_ok(), fits, "{len}");
        }
    }

    struct Raw<'a>(&'a [u8]);

    impl Serialize for Raw<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    #[test]
    fn a_session_without_ticket_or_certificate_is_shared_while_it_lives() {
        let now = 1_000_100;
        assert_eq!(check(&facts(), id(1), now), Ok(1_007_200));
        for (change, why) in [
            ((|f| f.id = None) as fn(&mut Facts), Unfit::OtherId),
            (|f| f.id = Some(id(2)), Unfit::OtherId),
            (|f| f.is_of_tls13 = true, Unfit::Tls13),
            (|f| f.has_ticket = true, Unfit::Ticket),
            (|f| f.has_certificate = true, Unfit::Certificate),
            (|f| f.life_s = 100, Unfit::Life),
            (|f| f.life_s = 0, Unfit::Life),
            (|f| f.life_s = MAX_LIFE.as_secs() + 1, Unfit::Life),
            (|f| f.life_s = u64::MAX, Unfit::Life),
            (|f| f.made_s = 1_000_401, Unfit::Clock),
            (|f| f.made_s = u64::MAX, Unfit::Clock),
        ] {
            let mut facts = facts();
            change(&mut facts);
            assert_eq!(check(&facts, id(1), now), Err(why), "{facts:?}");
        }
        let edge = Facts { made_s: 1_000_400, life_s: MAX_LIFE.as_secs(), ..facts() };
        assert_eq!(check(&edge, id(1), now), Ok(1_086_800));
    }

    #[test]
    fn a_rate_is_kept_and_its_rest_is_bounded() {
        let at = |ms: u64| Moment::from_start(Duration::from_millis(10_000 + ms));
        let mut rate = Rate::new(100);
        let taken = |rate: &mut Rate, ms| {
            std::iter::from_fn(|| rate.take_at(at(ms)).ok()).take(1000).count()
        };
        assert!(rate.has_at(at(0), 10) && !rate.has_at(at(0), 11));
        assert_eq!(taken(&mut rate, 0), 10, "a tenth of a second's worth at once");
        assert!(!rate.has_at(at(9), 1) && rate.has_at(at(10), 1) && !rate.has_at(at(10), 2));
        assert_eq!(rate.take_at(at(0)), Err(Duration::from_millis(10)));
        assert_eq!(taken(&mut rate, 10), 1);
        assert_eq!((11..=1010).map(|ms| taken(&mut rate, ms)).sum::<usize>(), 100);
        assert_eq!(taken(&mut rate, 60_000), 10, "a rest gives no more");
        let mut slow = Rate::new(1);
        assert_eq!((slow.take_at(at(0)), slow.take_at(at(999)).is_err()), (Ok(()), true));
    }

    #[test]
    fn what_is_known_is_bounded_and_the_oldest_goes_first() {
        let mut known = Known::default();
        let most = MAX_KNOWN as u64;
        assert!(known.is_empty());
        assert!((0..most).all(|n| known.add(id(n), 10).is_none()));
        assert!(known.len() == MAX_KNOWN && !known.is_empty());
        assert_eq!(known.add(id(0), 20), None, "it is there already, and is the newest now");
        assert_eq!(known.add(id(most), 10), Some(id(1)));
        assert_eq!(known.newest(3), [id(most), id(0), id(most - 1)]);
        assert!(known.remove(id(2)) && !known.remove(id(2)));
        assert_eq!(known.add(id(most + 1), 10), None);
        assert_eq!(known.remove_ended(9), []);
        assert_eq!(known.remove_ended(10).len(), MAX_KNOWN - 1);
        assert_eq!(known.order.len(), 1, "what has ended takes no room");
        assert_eq!((known.newest(9), known.len()), (vec![id(0)], 1));
        assert_eq!((known.remove_all(), known.is_empty()), (vec![id(0)], true));
    }

    /// One id that comes and goes takes no room.
    #[test]
    fn what_comes_and_goes_is_bounded() {
        let mut known = Known::default();
        known.add(id(1), 10);
        for _ in 0..3 * MAX_KNOWN {
            known.add(id(2), 10);
            known.remove(id(2));
        }
        assert!(known.order.len() <= 2 * MAX_KNOWN + 1, "{}", known.order.len());
        assert!(known.contains(id(1)) && !known.contains(id(2)) && known.len() == 1);
    }
}
