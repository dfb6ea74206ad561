//! What a server does that hears no leader with a majority: whom it asks, what it believes of the
//! answers, and when it prepares a founding.
//!
//! None of this is needed for two clusters never to agree on different things: who promises what is
//! in [`super::founding`]. It says how soon there is a leader again, and how little is asked for that.
//! Invariants: nothing is prepared while anybody who is believed hears a leader with a majority, nor
//! before a cluster that may still elect one had its time; a server of a large fleet asks few.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::epoch::Epoch;
use super::ranked_record::Voters;
use crate::core::config::Member;
use crate::core::moment::Moment;
use crate::core::node_id::NodeId;
use crate::core::pre_vote::{is_over, majority_possible, Status};
use crate::core::quorum::majority;
use crate::core::server_id::ServerId;
use crate::core::server_list::{consulted, voters, NEIGHBOURS};

/// So many upper election bounds without a leader a cluster has for its elections, if enough of its
/// voters may be there, before another one is founded.
pub const ELECTIONS: u32 = 10;

/// How many of those that vote a server asks at first that does not.
const FEW: usize = 2;

/// How long a server asks before it says that there is no majority: servers that are started together
/// refuse each other's connections for a moment.
const QUORUM_UNREACHABLE_AFTER: Duration = Duration::from_millis(250);

/// How long a server that begins anew waits for the answer of the first of those that vote before it asks
/// the others: more than a connection takes on a busy machine, little beside an election.
const FIRST_ALONE: Duration = Duration::from_millis(100);

/// How long it leaves one that answers the time to found, or to be told of as one that does not, at most:
/// an operator's timers may be far longer than a start may take.
const FIRST_PATIENCE: Duration = Duration::from_millis(400);

/// The longest pause between two questions to the same server.
const PAUSE: Duration = Duration::from_millis(500);

/// The same for a server that does not vote: where whom it asks, or its machine, has more to do than it can, and
/// in a fleet of a thousand.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// How long one server takes to connect with another one, with some to spare.
const CONNECTING: Duration = Duration::from_millis(4);

/// How long it takes one server to connect with each of so many, as a new leader does: so much longer one that
/// does not vote waits for it before it asks those that vote.
pub fn for_each(members: usize) -> Duration {
    CONNECTING.saturating_mul(u32::try_from(members).unwrap_or(u32::MAX))
}

/// The longest pause between two questions to the same server. What all those of a large fleet ask that do not
/// vote and wait at once, few have to answer.
pub fn longest_pause(votes: bool, members: usize, is_slow: bool) -> Duration {
    match (votes, is_slow) {
        (true, _) => PAUSE,
        (false, true) => PAUSE_MAX,
        (false, false) => for_each(members).clamp(PAUSE, PAUSE_MAX),
    }
}

/// Why a server does not answer, as far as it matters here; who is slow is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Its machine says that nobody listens there: its process is gone.
    NobodyListens,
    /// There is no way to it.
    Unreachable,
    /// It does not have this server in its list.
    NotListed,
}

/// What a server knows while it looks for a leader.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The present time.
    pub now: Moment,
    /// What it says of itself.
    pub own: &'a Status,
    /// Whether it has never heard of a group.
    pub is_new: bool,
    /// Those that vote by the newest record that it has.
    pub list: &'a Voters,
    /// The present server list.
    pub members: &'a [Member],
    /// `election_timeout_upper_bound`.
    pub upper: Duration,
    /// The voter sets of its own cluster, if it runs in one; two during a change.
    pub configs: Option<&'a [BTreeSet<NodeId>]>,
    /// What the others said a moment ago that may be true.
    pub answers: &'a BTreeMap<ServerId, Status>,
    /// Those that do not answer, and why.
    pub silent: &'a BTreeMap<ServerId, Silence>,
}

impl View<'_> {
    fn me(&self) -> ServerId {
        self.own.node.server
    }

    fn silent(&self, why: &[Silence]) -> BTreeSet<ServerId> {
        let those = self.silent.iter().filter(|(_, silence)| why.contains(silence));
        those.map(|(id, _)| *id).collect()
    }

    fn absent(&self) -> BTreeSet<ServerId> {
        self.silent(&[Silence::NobodyListens, Silence::Unreachable])
    }

    /// Whether it knows of no group, and a living server does not have it in its list.
    fn waits_to_be_added(&self) -> bool {
        self.is_new && !self.silent(&[Silence::NotListed]).is_disjoint(self.list)
    }

    /// Whether no cluster can be harmed: its own, or all that were, can agree on nothing any more. Who
    /// was taken into a cluster and has nothing of its log yet is of no use to it.
    fn is_nothing_left(&self) -> bool {
        let has_nothing = |said: &Status| said.cluster.is_none() || said.last_log_id.is_none();
        match self.configs.filter(|_| !has_nothing(self.own)) {
            Some(configs) => {
                let gone = self.silent(&[Silence::NobodyListens]);
                is_over((self.own.node, self.own.cluster), configs, self.answers, &gone)
            }
            // All that vote have left what there was, whatever those hold on to who follow.
            None => {
                let mut others = self.list.iter().filter(|id| **id != self.me());
                self.answers.values().all(has_nothing)
                    || others.all(|id| self.answers.get(id).is_some_and(has_nothing))
            }
        }
    }

    /// Whether this server has the newest of what those have that could found, and of those that have
    /// it is the first one in the list.
    fn is_first(&self) -> bool {
        let turn = |said: &Status| {
            let newest = said.last_log_id.map(|end| (said.cluster, end));
            (newest, Reverse(said.node.server))
        };
        let others = self.answers.values().filter(|said| self.list.contains(&said.node.server));
        others.map(turn).all(|other| other < turn(self.own))
    }
}

/// The leaders of whom the answers tell, as far as they are members.
fn told_leaders<'a>(view: &'a View<'a>) -> impl Iterator<Item = ServerId> + 'a {
    let leading = view.answers.values().filter(|status| status.quorum);
    let leading = leading.map(|status| status.vote.node.server);
    leading.filter(|id| view.members.iter().any(|member| member.id == *id))
}

/// One search, from when no leader with a majority was heard any more, or a cluster was founded meanwhile.
#[derive(Debug)]
pub struct Search {
    since: Moment,
    /// Until then a founding that came to nothing is not tried again.
    rests_until: Moment,
    /// Since when this server might prepare.
    possible_since: Option<Moment>,
    /// The cluster that it is in, and whether it began there during this search.
    cluster: Epoch,
    has_begun: bool,
}

impl Search {
    /// Begins now, in this cluster.
    pub fn new(now: Moment, cluster: Epoch) -> Search {
        Search { since: now, rests_until: now, possible_since: None, cluster, has_begun: false }
    }

    /// How long it has taken.
    pub fn lasts(&self, now: Moment) -> Duration {
        now.since(self.since)
    }

    /// What can be taken for true of what others say, of those that are plausible. One that alone says
    /// for long that it hears a leader holds up nobody who is in no cluster: those who hear one do
    /// not promise.
    pub fn believes(
        &self,
        now: Moment,
        (own, upper): (&Status, Duration),
        mut answers: BTreeMap<ServerId, Status>,
    ) -> BTreeMap<ServerId, Status> {
        let saying = answers.values().filter(|status| status.quorum).count();
        let is_long = self.lasts(now) >= upper * ELECTIONS;
        if is_long && saying == 1 && answers.len() > 1 && own.cluster.is_none() {
            answers.retain(|_, status| !status.quorum);
        }
        answers
    }

    /// Whom to ask: those that vote, by the newest record that is known here and by the present list. Who
    /// does not vote first asks a few of them, and the leader of whom they tell: a large fleet that
    /// starts at once has enough to do. Where those that vote are absent others are asked too, who may
    /// know more, and so that an operator hears of them why they do not answer.
    pub fn whom_to_ask(&self, view: &View) -> BTreeSet<ServerId> {
        let (me, absent) = (view.me(), view.absent());
        let all = view.list | &voters(view.members);
        let periods =
            self.lasts(view.now).as_millis() / (view.upper * ELECTIONS).as_millis().max(1);
        let periods = usize::try_from(periods).unwrap_or(NEIGHBOURS).min(NEIGHBOURS);
        let mut whom = all.clone();
        if let Some(first) = self.first_of(&all, view) {
            whom = [first].into();
            whom.extend(told_leaders(view));
        } else if absent.is_empty() && !all.contains(&me) {
            let first = usize::try_from(me.0).unwrap_or_default() % all.len().max(1);
            let few = (FEW * (periods + 1)).min(all.len());
            whom = all.iter().cycle().skip(first).take(few).copied().collect();
            whom.extend(told_leaders(view));
        }
        let is_small = view.members.len() <= NEIGHBOURS + 1;
        if periods > 0 && (is_small || !majority_possible(all.len(), (&all & &absent).len())) {
            // One more each time, where they are many.
            whom.extend(consulted(view.members, me, if is_small { NEIGHBOURS } else { periods }));
        }
        whom.remove(&me);
        whom
    }

    /// The one that a server of no cluster asks alone for a moment if it votes: who is first of those that are
    /// there founds if all begin anew, and if not tells of the leader. So in a cold start one server
    /// connects with all others, and not each with each. The others are asked too where it is silent for
    /// [`FIRST_ALONE`], and where nothing has come of it within an election's time.
    fn first_of(&self, all: &Voters, view: &View) -> Option<ServerId> {
        let is_silent = |id: &ServerId| view.silent.contains_key(id);
        let first = *all.iter().find(|id| **id == view.me() || !is_silent(id))?;
        let has_begun = self.has_begun || view.own.cluster != self.cluster;
        let is_patient = if has_begun || view.answers.contains_key(&first) {
            self.lasts(view.now) < view.upper.min(FIRST_PATIENCE)
        } else {
            self.lasts(view.now) < FIRST_ALONE
        };
        let is_new = view.own.cluster.is_none() || has_begun;
        let may_wait = is_new && is_patient && all.contains(&view.me()) && first != view.me();
        may_wait.then_some(first)
    }

    /// Whether too few of those that vote can be reached for a majority.
    pub fn is_quorum_unreachable(&self, view: &View) -> bool {
        let absent = &view.absent() & view.list;
        self.lasts(view.now) >= QUORUM_UNREACHABLE_AFTER
            && !majority_possible(view.list.len(), absent.len())
    }

    /// Whether this server prepares a founding now: at once if it has the newest, and after two upper
    /// election bounds where another one has that does not come to it.
    pub fn is_due(&mut self, view: &View) -> bool {
        if view.own.cluster != self.cluster {
            self.cluster = view.own.cluster;
            self.has_begun = !self.cluster.is_none();
            if self.has_begun {
                self.since = view.now;
            }
        }
        if view.now < self.rests_until || view.waits_to_be_added() || !self.may_prepare(view) {
            self.possible_since = None;
            return false;
        }
        let since = *self.possible_since.get_or_insert(view.now);
        view.is_first() || view.now.since(since) >= view.upper * 2
    }

    /// Whether nobody hears a leader, and all that vote answered, or a majority of them for long enough:
    /// the more of them are there, the newer is the newest record.
    fn may_prepare(&self, view: &View) -> bool {
        // What the others said before they began with this server in its cluster says nothing of that.
        let has_just_begun = self.has_begun && self.lasts(view.now) < view.upper;
        let is_nothing_left = !has_just_begun && view.is_nothing_left();
        let grace = if is_nothing_left { Duration::ZERO } else { view.upper * ELECTIONS };
        let Some(asked_for) = self.lasts(view.now).checked_sub(grace) else { return false };
        let (me, list) = (view.me(), view.list);
        let is_there = |id: &&ServerId| **id == me || view.answers.contains_key(id);
        let there = list.iter().filter(is_there).count();
        list.contains(&me)
            && view.answers.values().all(|status| !status.quorum)
            && (there == list.len()
                || there >= majority(list.len()) && asked_for >= view.upper * 3 / 2)
    }

    /// After a founding that came to nothing none is tried until then.
    pub fn rest(&mut self, until: Moment) {
        (self.rests_until, self.possible_since) = (until, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::log_id::LogId;
    use crate::core::node_id::Incarnation;

    const UPPER: Duration = Duration::from_millis(400);
    const EPOCH: Epoch = Epoch { counter: 7, founder: node(1) };

    const fn node(server: u32) -> NodeId {
        NodeId { server: ServerId(server), incarnation: Incarnation(1) }
    }

    fn ids(ids: &[u32]) -> Voters {
        ids.iter().copied().map(ServerId).collect()
    }

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(ms))
    }

    /// What a test changes of a view.
    struct Known {
        now: u64,
        own: Status,
        is_new: bool,
        list: Voters,
        members: Vec<Member>,
        configs: Option<Vec<BTreeSet<NodeId>>>,
        answers: BTreeMap<ServerId, Status>,
        silent: BTreeMap<ServerId, Silence>,
    }

    impl Known {
        /// A fleet of `size`, as server `me` sees it, of which nobody has said anything.
        fn new(size: u32, me: u32) -> Known {
            let member = |id| Member {
                id: ServerId(id),
                address: "127.0.0.1".into(),
                port: 1,
                subject: None,
                voter: true,
            };
            let members: Vec<Member> = (1..=size).map(member).collect();
            let own = Status { node: node(me), ..Status::default() };
            Known {
                now: 0,
                own,
                is_new: false,
                list: voters(&members),
                members,
                configs: None,
                answers: BTreeMap::new(),
                silent: BTreeMap::new(),
            }
        }

        fn says(&mut self, id: u32, change: impl FnOnce(&mut Status)) -> &mut Known {
            let mut status = Status { node: node(id), ..Status::default() };
            change(&mut status);
            self.answers.insert(ServerId(id), status);
            self
        }

        fn are_there(&mut self, servers: &[u32]) -> &mut Known {
            for id in servers {
                self.says(*id, |_| ());
            }
            self
        }

        fn is_silent(&mut self, id: u32, why: Silence) -> &mut Known {
            self.silent.insert(ServerId(id), why);
            self
        }

        /// At this time, in milliseconds.
        fn at(&mut self, now: u64) -> View<'_> {
            self.now = now;
            View {
                now: at(now),
                own: &self.own,
                is_new: self.is_new,
                list: &self.list,
                members: &self.members,
                upper: UPPER,
                configs: self.configs.as_deref(),
                answers: &self.answers,
                silent: &self.silent,
            }
        }

        /// Whether a search that began at 0 is due at this time, in milliseconds.
        fn is_due(&mut self, now: u64) -> bool {
            Search::new(at(0), self.own.cluster).is_due(&self.at(now))
        }
    }

    #[test]
    fn those_that_do_not_vote_ask_less_often_the_more_there_are() {
        let asked_each_second = |members: usize| {
            let pause = longest_pause(false, members, false).as_secs_f64();
            members as f64 / pause
        };
        assert_eq!(longest_pause(false, 3, false), PAUSE);
        assert_eq!(longest_pause(false, 300, false), Duration::from_millis(1200));
        assert!((200..=1000).all(|members| asked_each_second(members) < 251.0));
        assert_eq!(longest_pause(false, 100_000, false), PAUSE_MAX, "it has an end");
        assert_eq!(longest_pause(false, 3, true), PAUSE_MAX);
        for is_slow in [false, true] {
            assert_eq!(longest_pause(true, 1000, is_slow), PAUSE, "who votes may have to found");
        }
        assert!(for_each(1000) > for_each(3) && for_each(usize::MAX) > for_each(1000));
    }

    #[test]
    fn a_server_prepares_at_once_if_all_are_there_and_a_majority_waits_for_the_others() {
        assert!(Known::new(3, 1).are_there(&[2, 3]).is_due(0));
        let mut two = Known::new(3, 1);
        two.are_there(&[2]);
        assert!(!two.is_due(599) && two.is_due(600), "one and a half upper bounds");
        assert!(!Known::new(3, 1).is_due(99_999), "it is alone");
        assert!(!Known::new(9, 8).are_there(&[1, 2, 3, 4, 5, 6, 7]).is_due(99_999), "no voter");
        let mut led = Known::new(3, 1);
        led.are_there(&[2]).says(3, |status| status.quorum = true);
        assert!(!led.is_due(99_999), "one hears a leader");
    }

    #[test]
    fn who_has_the_newest_goes_first_and_the_others_take_its_place_after_a_while() {
        let newest = |status: &mut Status| status.last_log_id = Some(LogId::default());
        let mut known = Known::new(3, 1);
        known.are_there(&[2]).says(3, newest);
        let mut search = Search::new(at(0), Epoch::default());
        assert!(!search.is_due(&known.at(100)));
        assert!(!search.is_due(&known.at(899)) && search.is_due(&known.at(900)));
        // Who comes back to it begins to wait anew.
        search.rest(at(1000));
        assert!(!search.is_due(&known.at(999)) && !search.is_due(&known.at(1000)));
        assert!(!search.is_due(&known.at(1799)) && search.is_due(&known.at(1800)));
        // Of those that have as much the first of the list is first.
        assert!(Known::new(3, 1).are_there(&[2, 3]).is_due(0));
        assert!(!Known::new(3, 2).are_there(&[1, 3]).is_due(0));
        let mut own = Known::new(3, 2);
        newest(&mut own.own);
        assert!(own.are_there(&[1, 3]).is_due(0));
    }

    #[test]
    fn a_cluster_that_may_elect_has_its_time_and_one_that_is_over_has_none() {
        let grace = 400 * u64::from(ELECTIONS);
        let in_it = |status: &mut Status| {
            (status.cluster, status.last_log_id) = (EPOCH, Some(LogId::default()));
        };
        let mut known = Known::new(3, 1);
        in_it(&mut known.own);
        known.configs = Some(vec![[1, 2, 3].map(node).into()]);
        known.says(2, in_it).says(3, in_it);
        assert!(!known.is_due(grace - 1) && known.is_due(grace));
        // Two of three have begun another life.
        known.are_there(&[2, 3]);
        assert!(known.is_due(0));
        // One has, and of the other there is nobody any more; a link that is cut says nothing.
        known.answers.remove(&ServerId(3));
        known.is_silent(3, Silence::Unreachable);
        assert!(!known.is_due(grace - 1));
        known.is_silent(3, Silence::NobodyListens);
        assert!(!known.is_due(599) && known.is_due(600));

        // One that is in none itself: a voter that is may elect yet, a follower that is may not.
        let mut new = Known::new(9, 1);
        new.are_there(&[2, 3, 4, 5, 6, 7]).says(8, in_it);
        assert!(new.is_due(0));
        new.says(7, in_it);
        let mut search = Search::new(at(0), Epoch::default());
        assert!(!search.is_due(&new.at(grace - 1)) && !search.is_due(&new.at(grace)));
        assert!(search.is_due(&new.at(grace + 800)), "the other one has more, and does nothing");

        // One that was taken in and has nothing of the log holds up nobody, be it this one.
        let empty = |status: &mut Status| status.cluster = EPOCH;
        assert!(Known::new(3, 1).are_there(&[2]).says(3, empty).is_due(0));
        let mut taken = Known::new(3, 1);
        empty(&mut taken.own);
        taken.configs = Some(Vec::new());
        assert!(taken.are_there(&[2, 3]).is_due(0));
    }

    #[test]
    fn a_cluster_that_has_just_begun_is_not_taken_for_over_by_what_was_said_before() {
        let mut known = Known::new(3, 1);
        known.are_there(&[2, 3]);
        let mut search = Search::new(at(0), Epoch::default());
        known.own.cluster = EPOCH;
        known.own.last_log_id = Some(LogId::default());
        known.configs = Some(vec![[1, 2, 3].map(node).into()]);
        assert!(!search.is_due(&known.at(1000)) && !search.is_due(&known.at(1399)));
        assert!(search.is_due(&known.at(1400)), "they never began");
        // Its elections have all of their time, however long was searched before.
        for id in [2, 3] {
            known.says(id, |status| status.cluster = EPOCH);
        }
        let mut search = Search::new(at(0), Epoch::default());
        let grace = 400 * u64::from(ELECTIONS);
        assert!(!search.is_due(&known.at(grace)) && !search.is_due(&known.at(2 * grace - 1)));
        assert!(search.is_due(&known.at(2 * grace)));
        known.are_there(&[2, 3]);
        // One that begins a search in a cluster in which it has been for long knows better.
        assert!(Search::new(at(1000), EPOCH).is_due(&known.at(1000)));
    }

    #[test]
    fn a_new_server_that_a_living_one_does_not_list_waits_to_be_added() {
        let mut known = Known::new(3, 1);
        known.are_there(&[2]).is_silent(3, Silence::NotListed);
        assert!(known.is_due(600));
        known.is_new = true;
        assert!(!known.is_due(600));
        known.is_silent(3, Silence::Unreachable);
        assert!(known.is_due(600));
    }

    #[test]
    fn one_that_alone_hears_a_leader_is_not_believed_for_ever() {
        let long = 400 * u64::from(ELECTIONS);
        let mut known = Known::new(5, 1);
        known.are_there(&[2]).says(3, |status| status.quorum = true);
        let believed = |known: &Known, now| {
            let of = (&known.own, UPPER);
            let said = known.answers.clone();
            let believed = Search::new(at(0), Epoch::default()).believes(at(now), of, said);
            believed.into_keys().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(believed(&known, long - 1), [2, 3]);
        assert_eq!(believed(&known, long), [2], "the others go by what else is said");
        known.own.cluster = EPOCH;
        assert_eq!(believed(&known, long), [2, 3], "who is in a cluster has its timers");
        known.own.cluster = Epoch::default();
        known.says(4, |status| status.quorum = true);
        assert_eq!(believed(&known, long), [2, 3, 4], "two say so");
        known.answers.retain(|id, _| *id == ServerId(3));
        assert_eq!(believed(&known, long), [3], "nobody else says anything");
    }

    #[test]
    fn few_are_asked_and_more_where_those_that_vote_are_absent() {
        let period = 400 * u64::from(ELECTIONS);
        let whom = |known: &mut Known, now| {
            Search::new(at(0), Epoch::default()).whom_to_ask(&known.at(now))
        };
        // The first of those that vote asks the others.
        assert_eq!(whom(&mut Known::new(60, 1), 0), ids(&[2, 3, 4, 5, 6, 7]));
        // Those of the newest record and those of the present list.
        let mut voter = Known::new(3, 1);
        voter.list = ids(&[1, 2, 9]);
        assert_eq!(whom(&mut voter, 0), ids(&[2, 3, 9]));
        // The others two of them, not all the same ones, and two more each time.
        let mut follower = Known::new(60, 30);
        assert_eq!(whom(&mut follower, 0), ids(&[3, 4]));
        assert_eq!(whom(&mut Known::new(60, 34), 0), ids(&[1, 7]));
        assert_eq!(whom(&mut follower, period), ids(&[3, 4, 5, 6]));
        assert_eq!(whom(&mut follower, u64::MAX), ids(&[1, 2, 3, 4, 5, 6, 7]));
        // The leader of whom they tell, if there is such a server.
        follower.says(3, |status| (status.quorum, status.vote.node) = (true, node(6)));
        follower.says(4, |status| (status.quorum, status.vote.node) = (true, node(77)));
        assert_eq!(whom(&mut follower, 0), ids(&[3, 4, 6]));
        // One of those that vote is absent: all of them are asked.
        follower.is_silent(3, Silence::NobodyListens);
        assert_eq!(whom(&mut follower, 0), ids(&[1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(whom(&mut follower, period), ids(&[1, 2, 3, 4, 5, 6, 7]));
        // A majority is: one neighbour more each time, eight at most.
        for id in [4, 5, 6] {
            follower.is_silent(id, Silence::Unreachable);
        }
        assert_eq!(whom(&mut follower, period - 1), ids(&[1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(whom(&mut follower, 2 * period), ids(&[1, 2, 3, 4, 5, 6, 7, 31, 32]));
        assert_eq!(whom(&mut follower, u64::MAX).len(), 7 + NEIGHBOURS);
        // A small fleet asks everybody before long.
        assert_eq!(whom(&mut Known::new(9, 2), period).len(), 8);
        assert_eq!(whom(&mut Known::new(9, 2), period - 1).len(), 6);
    }

    #[test]
    fn who_votes_and_begins_anew_asks_the_first_alone_for_a_moment() {
        let whom = |known: &mut Known, now| {
            Search::new(at(0), Epoch::default()).whom_to_ask(&known.at(now))
        };
        let all = ids(&[1, 2, 4, 5]);
        let mut new = Known::new(5, 3);
        assert_eq!(whom(&mut new, 99), ids(&[1]));
        assert_eq!(whom(&mut new, 100), all, "it says nothing");
        // One that answers has an election's time to found, or to be told of as one that does not.
        new.are_there(&[1]);
        assert_eq!(whom(&mut new, 399), ids(&[1]));
        assert_eq!(whom(&mut new, 400), all);
        // The leader of whom it tells takes this server in.
        new.says(1, |status| (status.quorum, status.vote.node) = (true, node(4)));
        assert_eq!(whom(&mut new, 399), ids(&[1, 4]));
        // Of those that are absent, or do not know this server, nobody is the first.
        for why in [Silence::NobodyListens, Silence::Unreachable, Silence::NotListed] {
            let mut new = Known::new(5, 3);
            assert_eq!(whom(new.is_silent(1, why), 0), ids(&[2]));
            assert_eq!(whom(new.is_silent(2, why), 0), all, "it is the first itself");
        }
        // Who is in a cluster that has lost its leader asks all.
        let mut known = Known::new(5, 3);
        known.own.cluster = EPOCH;
        assert_eq!(Search::new(at(0), EPOCH).whom_to_ask(&known.at(0)), all);
        // One that the first has just founded leaves it the time to be elected.
        let mut search = Search::new(at(0), Epoch::default());
        assert_eq!(search.whom_to_ask(&known.at(300)), ids(&[1]));
        assert!(!search.is_due(&known.at(300)));
        assert_eq!(search.whom_to_ask(&known.at(699)), ids(&[1]));
        assert_eq!(search.whom_to_ask(&known.at(700)), all);
    }

    #[test]
    fn a_quorum_is_unreachable_when_most_that_vote_are_absent_for_a_moment() {
        let mut known = Known::new(9, 8);
        let is_unreachable = |known: &mut Known, now| {
            Search::new(at(0), Epoch::default()).is_quorum_unreachable(&known.at(now))
        };
        for id in 1..=3 {
            known.is_silent(id, Silence::Unreachable);
        }
        known.is_silent(9, Silence::Unreachable).is_silent(5, Silence::NotListed);
        assert!(!is_unreachable(&mut known, 250), "three of seven");
        known.is_silent(4, Silence::NobodyListens);
        assert!(!is_unreachable(&mut known, 249) && is_unreachable(&mut known, 250));
    }
}
