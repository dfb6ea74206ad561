//! The plugin's promises, one module each, and what their checks get to see.
//!
//! A checker looks from above: it knows all servers, all faults and the true time. It says nothing
//! about servers that something is wrong with at present, since promises are made for those that are
//! well; that these come back is for the liveness phase to see ([`crate::world`]).

pub mod gone_means_gone;
pub mod held_before_used;
pub mod host_stays_up;
pub mod latest_two;
pub mod leader_stays;
pub mod never_old;
pub mod nobody_else;
pub mod on_time;
pub mod one_order;

use std::collections::{BTreeMap, BTreeSet};

use crate::cells::{self, Bytes};
use crate::machine::Set;
use crate::plan::{Kind, Plan};
use crate::{MS, SECOND};

/// A cluster incarnation's id.
pub type Cluster = [u8; 16];

/// A key's place: its cluster incarnation and its generation.
pub type Place = (Cluster, u64);

/// Whether a promise was kept; if not, what happened.
pub type Checked = Result<(), String>;

/// What happened at one instant.
pub enum Event<'a> {
    /// A server's host has other keys than before.
    Installed {
        /// Which server.
        at: u32,
        /// The keys.
        set: &'a Set,
    },
    /// A ring has a new current key, the first one that has.
    Activated {
        /// The key's cluster incarnation.
        cluster_id: Cluster,
        /// The key's place.
        generation: u64,
    },
    /// A client offered a ticket.
    Offered(&'a Offer),
    /// A sender that must not be heard asked to be; whether it was, and what is wrong with it.
    Knocked {
        /// At which server.
        at: u32,
        /// What is wrong with it.
        as_whom: &'static str,
        /// Whether it was let in.
        heard: bool,
    },
    /// Time went by.
    Look,
}

/// A ticket that a client offered to a server.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The key that it was made with.
    pub key: Bytes,
    /// The server that gave it, and whether all was well with that one.
    pub from: (u32, bool),
    /// When it was given.
    pub taken: u64,
    /// The server that it was offered to.
    pub to: u32,
    /// Whether that one opened it.
    pub opened: bool,
}

/// One server, seen from above.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Whether it is surely a member of the agreed list.
    pub listed: bool,
    /// Whether it votes by the list, and by the one that is to come if there is one.
    pub votes: bool,
    /// Whether it was told to end, and has another one lead.
    pub leaves: bool,
    /// Since when it is surely none; such a server must not be heard.
    pub unlisted_since: Option<u64>,
    /// Counts the runs of its process.
    pub run: u64,
    /// Whether it has a process.
    pub runs: bool,
    /// Whether its process runs and is not paused.
    pub awake: bool,
    /// Whether it takes handshakes.
    pub serving: bool,
    /// What its host holds.
    pub set: Option<Set>,
    /// What it says of its current key: the cluster incarnation, the generation, the age.
    pub told_age: Option<(Cluster, u64, u64)>,
    /// Since when its host has used another key than its ring says, if it does.
    pub lags_since: Option<u64>,
    /// When its process first had the group's keys.
    pub joined: Option<u64>,
    /// Troubles that it is in by itself, and when the last one ended.
    pub trouble: Trouble,
    /// Troubles with its host's taking keys, and when the last one ended.
    pub install_trouble: Trouble,
    /// Whether it is a new node of a cluster and has not caught up yet: without a majority nobody does.
    pub joins_anew: bool,
    /// When it last had.
    pub joined_anew: u64,
}

impl View {
    /// Notes whether its host uses another key than the current one of its ring, if that says anything:
    /// another generation, that of another cluster incarnation, or any where a ring has none.
    pub fn note_lag(&mut self, now: u64, agreed: Option<Option<Place>>, used: Option<Place>) {
        let lags = agreed.is_some_and(|agreed| used.is_some() && agreed != used);
        self.lags_since = lags.then(|| self.lags_since.unwrap_or(now));
    }

    /// Whether the group may count on it: it is not surely out of the list.
    fn may_count(&self) -> bool {
        self.listed || self.unlisted_since.is_none()
    }
}

/// How many faults there are at present, and when the last one ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// At present.
    pub now: u32,
    /// When the last one ended.
    pub ended: u64,
}

impl Trouble {
    /// One begins.
    pub fn begin(&mut self) {
        self.now += 1;
    }

    /// One ends.
    pub fn end(&mut self, at: u64) {
        self.now = self.now.saturating_sub(1);
        self.ended = self.ended.max(at);
    }

    fn free_for(&self, now: u64) -> u64 {
        match self.now {
            0 => now.saturating_sub(self.ended),
            _ => 0,
        }
    }
}

/// A server that became leader.
#[derive(Clone, Copy, Debug)]
pub struct Leader {
    /// When.
    pub at: u64,
    /// Which server.
    pub id: u32,
    /// Which process of that server.
    pub run: u64,
    /// Of which cluster.
    pub epoch: u64,
    /// Of which term.
    pub term: u64,
}

/// An order of an operator.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// When it was given.
    pub begun: u64,
    /// When it was surely over.
    pub over: u64,
    /// Whether older keys are to be dropped.
    pub revokes: bool,
}

/// All that checks may look at.
pub struct Sight {
    /// The time.
    pub now: u64,
    /// What this seed's fleet is like.
    pub plan: Plan,
    /// The servers by id.
    pub servers: BTreeMap<u32, View>,
    /// Troubles on links; both directions count as one.
    pub links: BTreeMap<(u32, u32), Trouble>,
    /// Who became leader, in the order of time.
    pub leaders: Vec<Leader>,
    /// Who became a candidate, and when.
    pub candidates: Vec<(u32, u64)>,
    /// What operators ordered, and revocations that a group took over from another one.
    pub orders: Vec<Order>,
    /// Generations whose activation surely dropped all older keys; that of the key which came to
    /// such a place later need not have done so.
    pub revoked: BTreeSet<(Cluster, u64)>,
    /// When half of the members or more last were without memory at the same time. What only they
    /// knew is lost then, which no protocol can help.
    pub majority_forgot: Option<u64>,
    /// When a state file last was lost, or may not have been what it should be; for ever while a
    /// disk is ill.
    pub files_failed: Option<u64>,
    /// When a server last may have been told a wrong age, by a wall clock across a reboot: of keys from
    /// before that.
    pub clock_lied: Option<u64>,
    /// When a wall clock last was set.
    pub clock_stepped: Option<u64>,
    /// The longest that any message was under way for.
    pub slowest: u64,
    /// Which server stood still, from when to when: what it was told waited for it.
    pub pauses: Vec<(u32, u64, u64)>,
    /// When a founder last was given a promise with the key of a generation.
    pub promised: BTreeMap<(u32, u64), u64>,
    /// What is known of keys.
    pub annals: Annals,
}

/// What is known of agreed keys, from what hosts were given.
#[derive(Default)]
pub struct Annals {
    /// Each agreed key's generation, in each cluster incarnation that has it: one that is founded from a record
    /// goes on with the keys of another.
    place: BTreeMap<Bytes, BTreeMap<Cluster, u64>>,
    /// The key that each place has at present. Where a majority forgot one, another may come to its
    /// place; then all below is about that one.
    key: BTreeMap<(Cluster, u64), Bytes>,
    /// When a key was first seen anywhere as staged or current.
    pub seen: BTreeMap<(Cluster, u64), u64>,
    /// When each agreed key was first seen anywhere, whatever places it has.
    made: BTreeMap<Bytes, u64>,
    /// When a key was first current in any server's ring. Its host may have it later, or never.
    pub activated: BTreeMap<(Cluster, u64), u64>,
    /// The same of whichever key of that place was the first: a group may come back to that one.
    pub first_activated: BTreeMap<(Cluster, u64), u64>,
    /// When each server first applied an activation.
    pub noted: BTreeMap<(u32, Cluster, u64), u64>,
    /// When a key first encrypted anywhere.
    pub current: BTreeMap<(Cluster, u64), u64>,
    /// See [`Annals::is_lost`].
    lost: BTreeSet<Bytes>,
}

impl Annals {
    /// A key became current in some ring.
    pub fn record_activation(&mut self, now: u64, place: (Cluster, u64)) {
        self.activated.entry(place).or_insert(now);
        self.first_activated.entry(place).or_insert(now);
    }

    /// A server that has lost what it knew founds a cluster: it goes by what those tell who have not.
    pub fn found_anew(&mut self, founder: u32, told: &BTreeSet<u32>) {
        let mut oldest = BTreeMap::new();
        for ((of, cluster_id, generation), at) in &self.noted {
            if told.contains(of) {
                let oldest = oldest.entry((founder, *cluster_id, *generation)).or_insert(*at);
                *oldest = (*oldest).min(*at);
            }
        }
        self.noted.retain(|(of, ..), _| *of != founder);
        self.noted.extend(oldest);
    }

    /// All places of a key.
    pub fn places(&self, key: &Bytes) -> impl Iterator<Item = (Cluster, u64)> + '_ {
        self.place.get(key).into_iter().flatten().map(|(cluster_id, place)| (*cluster_id, *place))
    }

    /// When a key was first seen as an agreed one, if it was: another one may have its place by now.
    pub fn made(&self, key: &Bytes) -> Option<u64> {
        self.made.get(key).copied()
    }

    /// A key's generation in a cluster incarnation.
    pub fn place_in(&self, key: &Bytes, cluster_id: Cluster) -> Option<u64> {
        self.place.get(key)?.get(&cluster_id).copied()
    }

    /// Since when the schedule counts: when the first key of this place became current.
    pub fn since(&self, place: (Cluster, u64)) -> Option<u64> {
        self.first_activated.get(&place).copied()
    }

    /// The latest generation that was ever current in a cluster incarnation.
    pub fn latest(&self, cluster_id: Cluster) -> u64 {
        let last = (cluster_id, 0)..=(cluster_id, u64::MAX);
        self.activated.range(last).next_back().map_or(0, |((_, generation), _)| *generation)
    }

    /// Notes what a host held that is gone now; `held` is what others hold.
    pub fn note_gone<'a>(&mut self, gone: &[Bytes], held: impl Iterator<Item = &'a Set> + Clone) {
        let is_held = |key: &&Bytes| held.clone().any(|set| set.keys.contains(key));
        self.lost.extend(gone.iter().filter(|key| !is_held(key)).copied());
    }

    /// Whether nobody held this key any more at some time since somebody did, not even in a file.
    pub fn is_lost(&self, key: &Bytes) -> bool {
        self.lost.contains(key)
    }

    /// Whether another key has come to this key's place.
    pub fn is_remade(&self, key: &Bytes) -> bool {
        self.places(key).any(|place| self.key.get(&place).is_some_and(|present| present != key))
    }

    /// Writes down what a set tells; the places to which another key has come. Says nothing of
    /// contradictions; that is for [`one_order`].
    pub fn note(&mut self, now: u64, set: &Set) -> Vec<(Cluster, u64)> {
        let mut remade = Vec::new();
        self.lost.retain(|key| !set.keys.contains(key));
        let (true, Some(cluster_id)) = (set.agreed, set.cluster_id) else { return remade };
        for (key, generation) in named(set) {
            self.made.entry(key).or_insert(now);
            let place = (cluster_id, generation);
            let places = self.place.entry(key).or_default();
            let is_new = !places.contains_key(&cluster_id);
            places.entry(cluster_id).or_insert(generation);
            // A server that was away may show the one from before again.
            if is_new && self.key.insert(place, key).is_some() {
                for times in [&mut self.seen, &mut self.activated, &mut self.current] {
                    times.remove(&place);
                }
                self.noted
                    .retain(|(_, cluster_id, generation), _| (*cluster_id, *generation) != place);
                remade.push(place);
            }
            self.seen.entry(place).or_insert(now);
        }
        self.record_activation(now, (cluster_id, set.current));
        self.current.entry((cluster_id, set.current)).or_insert(now);
        remade
    }
}

/// The keys of an agreed set whose generation it tells: the current and the staged one.
pub fn named(set: &Set) -> impl Iterator<Item = (Bytes, u64)> + '_ {
    let staged = (set.newest > set.current).then_some(set.newest);
    let generations = set.agreed.then_some(set.current).into_iter().chain(staged);
    let keys = set.keys.iter().copied();
    keys.zip(generations).take(if set.agreed { 2 } else { 0 })
}

impl Sight {
    /// Of a fleet that nothing has happened to, and of no server yet.
    pub fn new(plan: Plan) -> Sight {
        Sight {
            now: 0,
            plan,
            servers: BTreeMap::new(),
            links: BTreeMap::new(),
            leaders: Vec::new(),
            orders: Vec::new(),
            revoked: BTreeSet::new(),
            candidates: Vec::new(),
            majority_forgot: None,
            files_failed: None,
            clock_lied: None,
            clock_stepped: None,
            slowest: 0,
            pauses: Vec::new(),
            promised: BTreeMap::new(),
            annals: Annals::default(),
        }
    }

    /// Calls `look` for each key that a server's present process holds: the server, the key. What a
    /// process leaves behind that was killed is nobody's.
    pub fn each_key(&self, mut look: impl FnMut(u32, &Bytes)) {
        cells::each(|(id, run), bytes| {
            if self.servers.get(&id).is_some_and(|view| view.runs && view.run == run) {
                look(id, bytes);
            }
        });
    }

    /// How long it takes until a server that is well again is also in step with the others: a
    /// handover that goes on without it, an election, and a connection that is dialled anew.
    pub fn settling(&self) -> u64 {
        self.plan.handover + 2 * self.plan.upper + 3 * SECOND
    }

    /// For how long all has been well with a server by itself.
    pub fn well_for(&self, id: u32) -> u64 {
        let is_listed = self.servers.get(&id).is_some_and(|view| view.listed);
        if is_listed {
            self.up_for(id)
        } else {
            0
        }
    }

    /// The same whether or not the list has it.
    fn up_for(&self, id: u32) -> u64 {
        let Some(view) = self.servers.get(&id) else { return 0 };
        match view.joined {
            Some(joined) if view.awake && !view.joins_anew => {
                let since = joined.max(view.joined_anew);
                let own = view.trouble.free_for(self.now).min(self.now - since);
                own.min(view.install_trouble.free_for(self.now))
            }
            _ => 0,
        }
    }

    /// For how long a link has been well.
    pub fn linked_for(&self, one: u32, other: u32) -> u64 {
        let pair = (one.min(other), one.max(other));
        self.links.get(&pair).map_or(self.now, |trouble| trouble.free_for(self.now))
    }

    /// The servers that lead, or did not long ago.
    ///
    /// Of those who began long ago the one with the highest term of the latest cluster leads. One whose
    /// process has ended does not, if another one began since: where all that vote forget at once, that one
    /// may be of a cluster with a lower epoch.
    pub fn leaders(&self) -> impl Iterator<Item = u32> + '_ {
        let from = self.now.saturating_sub(self.settling());
        let older = || self.leaders.iter().filter(move |leader| leader.at < from);
        let runs = |leader: &Leader| {
            self.servers.get(&leader.id).is_some_and(|view| view.runs && view.run == leader.run)
        };
        let followed = move |leader: &Leader| older().any(|o| o.at > leader.at && runs(o));
        let standing = older().filter(|leader| runs(leader) || !followed(leader));
        let standing = standing.max_by_key(|leader| (leader.epoch, leader.term));
        let recent = self.leaders.iter().filter(move |leader| leader.at >= from);
        standing.into_iter().chain(recent).map(|leader| leader.id)
    }

    /// Whether all has been well with a server, its links to leaders and the leaders themselves
    /// for so long that it has to be in step.
    pub fn settled(&self, id: u32) -> bool {
        let enough = self.settling();
        let mut leaders = self.leaders();
        self.well_for(id) >= enough
            && leaders.all(|leader| {
                leader == id
                    || (self.linked_for(id, leader) >= enough && self.well_for(leader) >= enough)
            })
    }

    /// Whether a server has been connected for long enough with a majority of those that may count,
    /// all of them well. Asked for only where nothing but late votes happens: those restart servers
    /// faster than they are brought up to date, and as long as entries are on their way to one, openraft
    /// puts off to purge them.
    pub fn has_company(&self, id: u32) -> bool {
        if self.plan.faults != [Kind::LateVotes] {
            return true;
        }
        let enough = self.settling();
        let counting = || self.servers.iter().filter(|(_, view)| view.may_count());
        let together = counting().filter(|(other, _)| {
            let linked = **other == id || self.linked_for(id, **other) >= enough;
            linked && self.up_for(**other) >= enough
        });
        2 * together.count() > counting().count()
    }

    /// For how long all has been well everywhere, that is with all that the group may count on:
    /// with those as well of which nobody knows whether a change of the list came true.
    pub fn all_well_for(&self) -> u64 {
        let listed = self.servers.iter().filter(|(_, view)| view.may_count()).map(|(id, _)| *id);
        let servers = listed.clone().map(|id| self.up_for(id)).min().unwrap_or(0);
        let links = listed.clone().flat_map(|a| listed.clone().map(move |b| (a, b)));
        let links = links.filter(|(a, b)| a != b).map(|(a, b)| self.linked_for(a, b)).min();
        servers.min(links.unwrap_or(servers))
    }

    /// Whether what comes about now may be an operator's order: it is over with a handover at most.
    pub fn is_ordered(&self) -> bool {
        let late = self.plan.handover + 2 * self.plan.upper + SECOND;
        let is_under_way =
            |order: &Order| order.begun <= self.now && self.now <= order.over.saturating_add(late);
        self.orders.iter().any(is_under_way)
    }

    /// Whether the activation of this generation may have dropped all older keys.
    pub fn may_revoke(&self, cluster_id: Cluster, generation: u64) -> bool {
        let key = (cluster_id, generation);
        let seen = self.annals.seen.get(&key).copied().unwrap_or(self.now);
        // An order takes two agreements and a handover, also after its operator gave up.
        let late = self.plan.handover + 2 * self.plan.request_timeout + 5 * SECOND;
        let may_be = |order: &Order| {
            order.begun <= seen && seen.saturating_sub(MS) <= order.over.saturating_add(late)
        };
        self.orders.iter().filter(|order| order.revokes).any(may_be)
    }

    /// Whether a wrong age may be told of a key that came in use then.
    pub fn lied_since(&self, at: u64) -> bool {
        self.clock_lied.is_some_and(|lied| lied >= at)
    }
}

/// The checkers of all promises.
#[derive(Default)]
pub struct Checkers {
    leader_stays: leader_stays::Checker,
    one_order: one_order::Checker,
    on_time: on_time::Checker,
    nobody_else: nobody_else::Checker,
    /// What clients saw.
    pub tickets: held_before_used::Tickets,
}

impl Checkers {
    /// Lets all of them check one event.
    ///
    /// # Errors
    /// Which promise was broken, and how.
    pub fn assess(&mut self, sight: &Sight, event: &Event) -> Checked {
        let outcomes = [
            ("held before used", held_before_used::assess(sight, event, &mut self.tickets)),
            ("the latest two", latest_two::assess(sight, event)),
            ("the leader stays", self.leader_stays.assess(sight, event)),
            ("one order", self.one_order.assess(sight, event)),
            ("on time", self.on_time.assess(sight, event)),
            ("never old", never_old::assess(sight, event)),
            ("gone means gone", gone_means_gone::assess(sight, event)),
            ("nobody else", self.nobody_else.assess(sight, event)),
            ("the host stays up", host_stays_up::assess(sight, event)),
        ];
        for (promise, outcome) in outcomes {
            outcome.map_err(|words| format!("promise \"{promise}\" is broken: {words}"))?;
        }
        Ok(())
    }
}

/// Nanoseconds in words.
pub fn seconds(time: u64) -> String {
    format!("{}.{:03} s", time / SECOND, time % SECOND / MS)
}
