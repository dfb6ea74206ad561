//! How many handshakes one address may begin that come to nothing.
//!
//! A handshake costs the side that was dialled far more than the side that dials, which may play
//! back what it said once. So each address has a bucket of tokens: a handshake takes one, a
//! handshake that ends well gives it back, and time fills the bucket again. Whoever is let in at
//! each handshake never runs out; who is not has [`RateLimit`] and no more. Invariants:
//! - An address where a member is has a bucket of its own, larger with the list, so that all
//!   servers of a fleet may start anew behind one address; no stranger elsewhere can empty it, nor
//!   take its room.
//! - Other addresses of IPv4 have one each, those of IPv6 one for each /64, which is what one
//!   machine may have.
//! - At most [`MAX_SOURCES`] strangers' buckets are kept, and so many of members. A full one says
//!   nothing and is forgotten. Strangers for whom there is no room share one bucket: then some are
//!   kept out who are not to blame, but nobody gets more.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::moment::Moment;

/// So many strangers' buckets are kept, and so many of members: some 200 KiB each.
pub const MAX_SOURCES: usize = 4096;

/// How often at most it is looked for buckets to forget: a look costs as much as a handshake or
/// less, but not everybody who knocks may have one made.
const SWEEP: Duration = Duration::from_secs(1);

/// What a bucket holds, and how fast it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// So many may come to nothing at the same moment.
    pub burst: u32,
    /// And so many a second after that.
    pub per_second: u32,
}

/// A stranger's, and that which those share who find no room. As many at once as there may be
/// handshakes under way; a port check every second, or a few misconfigured tools, do not notice.
pub const STRANGERS: RateLimit = RateLimit { burst: 64, per_second: 10 };

impl RateLimit {
    /// That of an address where a member is, in a list of this many: four more at once for each,
    /// whose handshakes a power cut may have broken off, and one a second, since all of them may be
    /// behind this address and may try that often in vain, as when a root was replaced too soon.
    pub fn of_members(members: usize) -> RateLimit {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        RateLimit {
            burst: STRANGERS.burst.saturating_add(members.saturating_mul(4)),
            per_second: STRANGERS.per_second.saturating_add(members),
        }
    }

    /// How long one token takes to come.
    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second.max(1)
    }
}

/// Whose bucket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Member(IpAddr),
    V4(Ipv4Addr),
    V6([u16; 4]),
    Rest,
}

impl Source {
    fn of_stranger(ip: IpAddr) -> Source {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Source::V4(ip),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Source::V6([a, b, c, d])
            }
        }
    }
}

/// A token that was taken; to be given back if its handshake ends well, else to be dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct Token {
    source: Source,
    /// What it is worth.
    interval: Duration,
}

/// The buckets of one listener. Each is kept as the moment when it will be full.
#[derive(Debug, Default)]
pub struct RateLimiter {
    members: BTreeMap<Source, Moment>,
    strangers: BTreeMap<Source, Moment>,
    rest: Moment,
    swept: Option<Moment>,
}

impl RateLimiter {
    /// A token for a handshake with this address; `None` if it has none left now. `members` says
    /// how many the list has if one of them is at this address.
    pub fn take(&mut self, ip: IpAddr, members: Option<usize>, now: Moment) -> Option<Token> {
        let (source, allowance) = match members {
            Some(count) => (Source::Member(ip.to_canonical()), RateLimit::of_members(count)),
            None => (Source::of_stranger(ip), STRANGERS),
        };
        let source = if self.has_room(source, now) { source } else { Source::Rest };
        let allowance = if source == Source::Rest { STRANGERS } else { allowance };
        let full_at = match source {
            Source::Rest => &mut self.rest,
            Source::Member(_) => self.members.entry(source).or_insert(now),
            _ => self.strangers.entry(source).or_insert(now),
        };
        let interval = allowance.interval();
        let then = (*full_at).max(now) + interval;
        if then.since(now) > interval.saturating_mul(allowance.burst) {
            return None;
        }
        *full_at = then;
        Some(Token { source, interval })
    }

    /// Its handshake ended well.
    pub fn give_back(&mut self, token: Token) {
        let full_at = match token.source {
            Source::Rest => Some(&mut self.rest),
            Source::Member(_) => self.members.get_mut(&token.source),
            _ => self.strangers.get_mut(&token.source),
        };
        // One that was forgotten was full.
        if let Some(full_at) = full_at {
            *full_at = full_at.ago(token.interval);
        }
    }

    /// How many buckets are kept.
    pub fn kept(&self) -> usize {
        self.members.len() + self.strangers.len()
    }

    /// Whether this source has a bucket or may have one; makes room where that helps.
    fn has_room(&mut self, source: Source, now: Moment) -> bool {
        let room = |table: &BTreeMap<Source, Moment>| {
            table.len() < MAX_SOURCES || table.contains_key(&source)
        };
        let is_member = matches!(source, Source::Member(_));
        let table = if is_member { &self.members } else { &self.strangers };
        if room(table) {
            return true;
        }
        if self.swept.is_some_and(|at| now.since(at) < SWEEP) {
            return false;
        }
        self.swept = Some(now);
        self.members.retain(|_, full_at| *full_at > now);
        self.strangers.retain(|_, full_at| *full_at > now);
        room(if is_member { &self.members } else { &self.strangers })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_secs(1000) + Duration::from_millis(ms))
    }

    fn v4(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    /// How many of `tries` get a token at one moment.
    fn taken(knocks: &mut RateLimiter, ip: IpAddr, members: Option<usize>, now: Moment) -> u32 {
        let tries = 0..10_000;
        tries.filter(|_| knocks.take(ip, members, now).is_some()).count().try_into().unwrap()
    }

    #[test]
    fn an_address_has_a_burst_and_then_so_many_a_second() {
        let mut knocks = RateLimiter::default();
        assert_eq!(taken(&mut knocks, v4(1), None, at(0)), STRANGERS.burst);
        assert_eq!(taken(&mut knocks, v4(1), None, at(99)), 0);
        assert_eq!(taken(&mut knocks, v4(1), None, at(100)), 1);
        assert_eq!(taken(&mut knocks, v4(1), None, at(1100)), STRANGERS.per_second);
        // It never holds more than a burst, however long nobody came.
        assert_eq!(taken(&mut knocks, v4(1), None, at(1_000_000)), STRANGERS.burst);
        // Time that seems to go back gives nothing and takes nothing.
        assert_eq!(taken(&mut knocks, v4(1), None, at(0)), 0);
        // Another address has its own.
        assert_eq!(taken(&mut knocks, v4(2), None, at(0)), STRANGERS.burst);
    }

    #[test]
    fn handshakes_that_end_well_cost_nothing() {
        let mut knocks = RateLimiter::default();
        for _ in 0..100_000 {
            let token = knocks.take(v4(1), None, at(0)).unwrap();
            knocks.give_back(token);
        }
        // So many under way at a time, as when a fleet starts behind one address.
        let under_way: Vec<Token> =
            (0..STRANGERS.burst).map(|_| knocks.take(v4(1), None, at(0)).unwrap()).collect();
        assert_eq!(knocks.take(v4(1), None, at(0)), None);
        under_way.into_iter().for_each(|token| knocks.give_back(token));
        assert_eq!(taken(&mut knocks, v4(1), None, at(0)), STRANGERS.burst);
        // Giving back late fills no bucket beyond its brim.
        let token = knocks.take(v4(2), None, at(0)).unwrap();
        knocks.give_back(token);
        assert_eq!(taken(&mut knocks, v4(2), None, at(500)), STRANGERS.burst);
    }

    #[test]
    fn one_stranger_has_one_bucket_whatever_address_of_its_network_it_uses() {
        let mut knocks = RateLimiter::default();
        let of = |net: u16, host: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, net, 0, 0, 0, host).into();
        let all: u32 =
            (0..500).map(|n| u32::from(knocks.take(of(1, n), None, at(0)).is_some())).sum();
        assert_eq!(all, STRANGERS.burst);
        assert!(knocks.take(of(2, 1), None, at(0)).is_some());
        // Nor is there a second one by the other form of an address.
        assert_eq!(taken(&mut knocks, v4(7), None, at(0)), STRANGERS.burst);
        let mapped = Ipv4Addr::from(7).to_ipv6_mapped().into();
        assert_eq!(taken(&mut knocks, mapped, None, at(0)), 0);
    }

    #[test]
    fn a_member_has_a_bucket_that_strangers_of_its_network_do_not_empty() {
        let mut knocks = RateLimiter::default();
        let of = |host| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host).into();
        taken(&mut knocks, of(9), None, at(0));
        assert_eq!(knocks.take(of(1), None, at(0)), None, "the network's is empty");
        let list = RateLimit::of_members(64);
        assert!(list.burst >= 5 * 64, "a start of all of them, and what was broken off before");
        assert_eq!(taken(&mut knocks, of(1), Some(64), at(0)), list.burst);
        assert_eq!(taken(&mut knocks, of(1), Some(64), at(1001)), list.per_second);
        assert_eq!(RateLimit::of_members(usize::MAX).burst, u32::MAX);
    }

    #[test]
    fn a_flood_from_everywhere_is_kept_in_a_bounded_table_and_shares_one_bucket() {
        let mut knocks = RateLimiter::default();
        let count = u32::try_from(MAX_SOURCES).unwrap();
        assert!((0..count).all(|n| knocks.take(v4(n), None, at(0)).is_some()));
        let more = (0..count).filter(|n| knocks.take(v4(count + n), None, at(50)).is_some());
        assert_eq!(more.count(), usize::try_from(STRANGERS.burst).unwrap());
        assert_eq!(knocks.kept(), MAX_SOURCES);
        // Those that have one keep it, and members have room of their own.
        assert!(knocks.take(v4(0), None, at(50)).is_some());
        assert!(knocks.take(v4(2 * count), Some(3), at(50)).is_some());
        assert_eq!((knocks.members.len(), knocks.strangers.len()), (1, MAX_SOURCES));
        // Full ones are forgotten, but nobody has that looked for at each handshake.
        assert_eq!(knocks.take(v4(2 * count), None, at(60)), None);
        let token = knocks.take(v4(2 * count), None, at(500));
        assert_eq!(token.map(|token| token.source), Some(Source::Rest));
        assert_eq!(knocks.kept(), MAX_SOURCES + 1);
        assert!(knocks.take(v4(2 * count), None, at(1050)).is_some());
        assert_eq!(knocks.kept(), 1, "all others are full again");
    }

    #[test]
    fn a_bucket_is_forgotten_from_the_moment_on_when_it_is_full() {
        let mut knocks = RateLimiter::default();
        let count = u32::try_from(MAX_SOURCES).unwrap();
        let of_three = RateLimit::of_members(3).interval();
        let (full, later) = (v4(3 * count), v4(4 * count));
        assert!(knocks.take(full, Some(3), at(100).ago(of_three)).is_some());
        assert!(knocks.take(later, Some(3), at(100)).is_some());
        assert!((0..count).all(|n| knocks.take(v4(n), None, at(0)).is_some()));
        assert!(knocks.take(v4(count), None, at(100)).is_some());
        assert!(knocks.members.keys().eq([&Source::Member(later)]));
        assert!(knocks.strangers.keys().eq([&Source::of_stranger(v4(count))]));
    }

    #[test]
    fn what_is_given_back_goes_into_the_bucket_that_it_came_from() {
        let mut knocks = RateLimiter::default();
        let count = u32::try_from(MAX_SOURCES).unwrap();
        assert!((0..count).all(|n| knocks.take(v4(n), None, at(0)).is_some()));
        for (ip, members) in [(v4(2 * count), None), (v4(0), Some(3))] {
            let token = knocks.take(ip, members, at(0)).unwrap();
            while knocks.take(ip, members, at(0)).is_some() {}
            knocks.give_back(token);
            assert_eq!(taken(&mut knocks, ip, members, at(0)), 1, "{members:?}");
        }
    }
}
