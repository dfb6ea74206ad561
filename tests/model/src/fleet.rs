//! Servers that run core's rules of agreement, with a Raft as small as it can be.
//!
//! A message that was sent may arrive late, again and again, or never, at whichever server it is for:
//! that stands for lost and slow links, and for cuts. What cannot be told by the rules but by clocks
//! (who hears whom) may be so or not so at any time, except where the network is whole
//! ([`Scope::whole`]).
//!
//! A vote is openraft's: a server has one [`LeaderId`] and gives it up for any greater one, of the same
//! term too, so that a term may have two leaders. That openraft puts a leader's vote above a candidate's
//! of the same id is left out: who has a leader's log refuses what it asked as a candidate by that log.
//!
//! Invariants: everything of `stek_share::core::agreement` runs as it is; a rule is taken out
//! ([`Out`]) by what this file tells it, never by a rule of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::rc::Rc;

use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::agreement::founding::{
    Answer, FoundedCluster, Participant, Prepare, Promise,
};
use stek_share::core::agreement::ranked_record::{Evidence, Rank, RankedRecord, Voters};
use stek_share::core::agreement::replacement::Configuration;
use stek_share::core::log_id::{LeaderId, LogId};
use stek_share::core::node_id::{Incarnation, NodeId};
use stek_share::core::server_id::ServerId;

use crate::explore::hash;

/// A set of servers, or of keys, one bit for each.
pub type Set = u8;

/// What a server would keep in its state file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rec {
    /// The keys by generation.
    pub keys: Vec<u8>,
    /// Which are revoked.
    pub revoked: Set,
    /// The agreed list.
    pub list: Set,
    /// The one that is to follow, while a change is open.
    pub next: Set,
    /// Counts the lists; 0 is that of a file.
    pub version: u8,
}

/// The servers of a set.
pub fn voters(set: Set) -> Voters {
    (0..8).filter(|at| set >> at & 1 == 1).map(ServerId).collect()
}

fn set_of(configuration: &Configuration) -> Set {
    configuration.keys().fold(0, |set, id| set | 1 << id.0)
}

impl Evidence for Rec {
    fn lists(&self) -> Vec<Voters> {
        [self.list, self.next].into_iter().filter(|set| *set != 0).map(voters).collect()
    }

    fn merge(&mut self, other: &Rec) {
        self.revoked |= other.revoked;
    }

    /// No operator is part of the model.
    fn recover(&mut self, _: &Voters) {}
}

/// What is agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// Each leader's first.
    Blank,
    /// What the cluster was founded from.
    Base(Rec),
    /// The next key.
    Key(u8),
    /// These keys are revoked.
    Revoke(Set),
    /// Both these voters and those of before decide.
    Joint(Configuration),
    /// These voters decide.
    Final(Configuration),
}

/// Whose each entry is, and what.
pub type Log = Vec<(LeaderId, Entry)>;

/// What servers send each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// See [`Prepare`].
    Prepare(Prepare),
    /// See [`Promise`]; with the keys that its server ever acknowledged, which no rule knows.
    Promise(Promise<Rec>, Set),
    /// See [`FoundedCluster`].
    Found(FoundedCluster<Rec>),
    /// A candidate and the end of its log.
    Stand(Epoch, LeaderId, LogId),
    /// A node's vote for a candidate.
    Vote(Epoch, LeaderId, NodeId),
    /// A leader's log, and with whom the cluster began.
    Log(Epoch, LeaderId, Rc<Configuration>, Rc<Log>),
    /// A node took a leader's log, of so many entries.
    Ack(Epoch, LeaderId, NodeId, u8),
}

/// A server's part in an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It follows.
    Follower,
    /// It stands.
    Candidate,
    /// It leads.
    Leader,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// Its part in agreement.
    pub member: Participant<Rec>,
    /// The list of its file.
    pub file: Set,
    /// With whom its cluster began.
    pub first: Rc<Configuration>,
    /// What it was founded from, where this server was there.
    pub base: Option<Rec>,
    /// The log.
    pub log: Rc<Log>,
    /// Raft's vote: the greatest candidate or leader that it has heard of and not refused.
    pub vote: LeaderId,
    /// Raft's role.
    pub role: Role,
    /// How many entries this leader knows to be committed.
    pub commit: u8,
    /// Keys that it acknowledged, in this life or in one the file of which it has.
    pub held: Set,
    /// A record that was read before Raft had stopped, which no rule allows.
    pub early: Option<(Prepare, RankedRecord<Rec>)>,
}

/// A part of the state with its hash.
#[derive(Debug)]
pub struct Part<T> {
    /// Of the value.
    pub hash: u64,
    /// Itself.
    pub value: T,
}

/// A part of the state, shared between states.
pub fn part<T: Hash>(value: T) -> Rc<Part<T>> {
    Rc::new(Part { hash: hash(&value), value })
}

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Restarts of servers.
    pub restarts: u8,
    /// Prepared foundings.
    pub prepares: u8,
    /// Keys made.
    pub keys: u8,
    /// Revocations.
    pub revokes: u8,
    /// Campaigns.
    pub stands: u8,
    /// Replacements of a server by its next life.
    pub replacements: u8,
    /// Changes of the list.
    pub lists: u8,
    /// Second servers of one id.
    pub seconds: u8,
    /// New lives inside a process.
    pub renewals: u8,
}

/// All that there is.
#[derive(Clone, Debug)]
pub struct State {
    /// The servers.
    pub servers: Vec<Rc<Part<Server>>>,
    /// All that was ever sent, ordered by hash.
    pub sent: Rc<Vec<Rc<Part<Message>>>>,
    /// What was spent.
    pub spent: Budget,
    /// Keys in the order in which leaders began to use them.
    pub used: Vec<(Epoch, u8)>,
    /// The keys that each cluster agreed on.
    pub agreed: Vec<(Epoch, Vec<u8>)>,
    /// What went wrong on the way here.
    pub fault: Option<String>,
}

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Out {
    /// 1: a vote or an acknowledgement counts for every life of its server.
    Sender,
    /// 1: a request to promise counts for whichever life of a server gets it.
    Addressee,
    /// 2: who hears a leader promises all the same.
    HearsLeader,
    /// 2: the log is read before Raft has stopped.
    StopFirst,
    /// 2: a promise binds nobody.
    Promise,
    /// 2: a founder does not bind itself.
    FounderPromise,
    /// 3: what is not applied is not reported.
    WholeLog,
    /// 3: the state file is written after an append was acknowledged.
    FileFirst,
    /// 4: a founding that nobody wrote to ranks with its epoch.
    EmptyRanksLow,
    /// 4: entries before the record of a founding make it rank with its epoch.
    RecordRanks,
    /// 4: two founders may have one epoch.
    OwnEpoch,
    /// 5: a founding is given out again, to others.
    FoundOnce,
    /// 5: the voters are those that live, whoever promised.
    ThosePromised,
    /// 6: a promise that led nowhere stays.
    LeftOver,
    /// 7: revocations are not merged at a founding.
    MergeAtFounding,
    /// 7: nor at a join.
    MergeAtJoin,
    /// 8: a founder counts by its own list.
    NewestList,
    /// 8: a list changes by many voters at once.
    OneAtATime,
    /// 9: who hears its own leader pays no heed to another.
    TwoGroups,
    /// 10: two servers of one id live.
    OneLife,
    /// 11: a leader uses what it commits, whoever answers.
    FreshMajority,
    /// 11: who hears a leader without a majority refuses to promise.
    WordOfMajority,
    /// 12: a change begins while another one is open.
    Settled,
    /// 12: who has no log is made a voter.
    Learner,
}

/// The network is whole, and everybody hears everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Servers that are up; the others are away for good.
    pub up: Set,
    /// Servers that hear no leader, whoever leads.
    pub deaf: Set,
}

/// What may happen, and to whom.
#[derive(Clone, Debug)]
pub struct Scope {
    /// How many servers.
    pub servers: u8,
    /// Whether nothing was founded yet.
    pub cold: bool,
    /// Whether a restarted server may have a state file.
    pub files: bool,
    /// Whether clocks say which founding is the later one.
    pub clock: bool,
    /// What there is to spend.
    pub budget: Budget,
    /// Who may found.
    pub founders: Set,
    /// Who may restart.
    pub restarters: Set,
    /// Who may campaign.
    pub candidates: Set,
    /// The list that an operator asks the leader for.
    pub list: Set,
    /// Whether the network is whole.
    pub whole: Option<Whole>,
    /// The rule that is taken out.
    pub out: Option<Out>,
}

/// A configuration, or two while a change is open.
pub type Configurations<'a> = Vec<&'a Configuration>;

impl Server {
    /// The voters that its log says.
    pub fn configurations(&self) -> Configurations<'_> {
        let mut all = vec![&*self.first];
        for (_, entry) in self.log.iter() {
            match entry {
                Entry::Joint(next) => {
                    all.truncate(1);
                    all.push(next);
                }
                Entry::Final(next) => all = vec![next],
                _ => {}
            }
        }
        all
    }

    /// Where its log ends, as candidates are compared.
    pub fn end(&self) -> LogId {
        self.end_of(self.log.len())
    }

    /// Where so many entries of its log end; the first one has the index 1.
    fn end_of(&self, entries: usize) -> LogId {
        let last = entries.checked_sub(1).map(|last| self.log[last].0);
        LogId { leader_id: last.unwrap_or_default(), index: entries as u64 }
    }

    /// What the first entries of its log come to, if the cluster's record is among them.
    pub fn fold(&self, entries: usize) -> Option<Rec> {
        let mut record: Option<Rec> = None;
        let mut at = set_of(&self.first);
        for (_, entry) in self.log.iter().take(entries) {
            match (entry, record.as_mut()) {
                (Entry::Base(base), _) => record = Some(base.clone()),
                (Entry::Key(key), Some(record)) => record.keys.push(*key),
                (Entry::Revoke(keys), Some(record)) => record.revoked |= keys,
                (Entry::Joint(next), Some(record)) => record.next = set_of(next),
                (Entry::Final(next), Some(record)) => {
                    record.version += u8::from(set_of(next) != at);
                    at = set_of(next);
                    record.next = 0;
                }
                _ => {}
            }
        }
        let mut record = record?;
        record.list = at;
        Some(record)
    }

    /// Whether it has the record that its cluster was founded from.
    pub fn has_base(&self) -> bool {
        self.log.iter().any(|(_, entry)| matches!(entry, Entry::Base(_)))
    }

    /// What it reports.
    pub fn newest(&self, out: Option<Out>) -> RankedRecord<Rec> {
        let member = &self.member;
        let entries = match out {
            Some(Out::WholeLog) => usize::from(self.commit),
            _ => self.log.len(),
        };
        let end = self.end_of(entries);
        let log = self.fold(entries).map(|record| (end, record));
        let rank = Rank { epoch: member.cluster, end };
        match (out, &log, &self.base) {
            (Some(Out::EmptyRanksLow), None, Some(base)) => {
                RankedRecord { rank, record: base.clone() }
            }
            (Some(Out::RecordRanks), None, Some(_)) if entries > 0 => {
                let record = Rec { list: set_of(&self.first), version: 1, ..Rec::default() };
                RankedRecord { rank, record }
            }
            _ => member.newest(log),
        }
    }
}

impl State {
    /// The server that is this very node, if it lives.
    pub fn node(&self, node: NodeId) -> Option<&Server> {
        self.servers.iter().map(|part| &part.value).find(|server| server.member.me == node)
    }

    /// Adds a message.
    pub fn send(&mut self, message: Message) {
        let message = part(message);
        if let Err(at) = self.sent.binary_search_by_key(&message.hash, |sent| sent.hash) {
            Rc::make_mut(&mut self.sent).insert(at, message);
        }
    }

    /// Forgets messages that nobody can take any more, so that fewer states differ.
    pub fn tidy(&mut self, out: Option<Out>) {
        let all = || self.servers.iter().map(|part| &part.value);
        let longer = |cluster: &Epoch, leader: &LeaderId, node: &NodeId, entries: &u8| {
            self.sent.iter().any(|sent| {
                matches!(&sent.value, Message::Ack(c, l, n, more)
                    if (c, l, n) == (cluster, leader, node) && more > entries)
            })
        };
        let is_a = |role: Role, cluster: &Epoch, id: &LeaderId| {
            self.node(id.node).is_some_and(|server| {
                server.member.cluster == *cluster && server.vote == *id && server.role == role
            })
        };
        let is_open = |message: &Message| match message {
            Message::Prepare(prepare) => all().any(|server| {
                let is_its = server.member.me == prepare.to
                    || out == Some(Out::Addressee) && server.member.me.server == prepare.to.server;
                is_its && server.member.promise < prepare.epoch
            }),
            Message::Vote(cluster, id, _) => is_a(Role::Candidate, cluster, id),
            Message::Ack(cluster, id, node, entries) => {
                is_a(Role::Leader, cluster, id) && !longer(cluster, id, node, entries)
            }
            _ => true,
        };
        if !self.sent.iter().all(|sent| is_open(&sent.value)) {
            let open = self.sent.iter().filter(|sent| is_open(&sent.value));
            self.sent = Rc::new(open.cloned().collect());
        }
    }

    /// Whether this was sent.
    pub fn has(&self, message: &Message) -> bool {
        self.sent.binary_search_by_key(&hash(message), |sent| sent.hash).is_ok()
    }

    /// Tells it from others.
    pub fn fingerprint(&self) -> u64 {
        let servers = self.servers.iter().fold(0, |all: u64, part| all.rotate_left(17) ^ part.hash);
        let sent = self.sent.iter().fold(0, |all: u64, part| all.wrapping_add(part.hash));
        hash(&(servers, sent, &self.spent, &self.used, &self.agreed, &self.fault))
    }
}

/// Whether those nodes for which `is` holds are a majority of each configuration.
pub fn quorum(configurations: &[&Configuration], is: impl Fn(NodeId) -> bool) -> bool {
    configurations.iter().all(|configuration| {
        let counts = |(id, life): &(&ServerId, &Incarnation)| {
            !life.is_nobody() && is(NodeId { server: **id, incarnation: **life })
        };
        2 * configuration.iter().filter(counts).count() > configuration.len()
    })
}

impl Scope {
    /// A fleet of which all follow the first server, in the first term of a cluster without keys; or
    /// one in which nothing was founded.
    pub fn begin(&self) -> State {
        let all: Set = ((1_u16 << self.servers) - 1) as Set;
        let founder = NodeId { server: ServerId(0), incarnation: Incarnation(1) };
        let epoch = Epoch { counter: 1, founder };
        let base = Rec { list: all, version: 1, ..Rec::default() };
        let first: Rc<Configuration> =
            Rc::new(voters(all).into_iter().map(|id| (id, Incarnation(1))).collect());
        let leader = LeaderId { term: 1, node: founder };
        let log = Rc::new(vec![(leader, Entry::Base(base.clone()))]);
        let mut state = State {
            servers: Vec::new(),
            sent: Rc::new(Vec::new()),
            spent: Budget::default(),
            used: Vec::new(),
            agreed: Vec::new(),
            fault: None,
        };
        for id in voters(all) {
            let me = NodeId { server: id, incarnation: Incarnation(1) };
            let mut server = fresh(me, RankedRecord::default(), all);
            if !self.cold {
                server.member.promise = epoch;
                server.member.cluster = epoch;
                let leads = me == founder;
                server = Server {
                    first: first.clone(),
                    log: log.clone(),
                    vote: leader,
                    role: if leads { Role::Leader } else { Role::Follower },
                    commit: u8::from(leads),
                    ..server
                };
            }
            state.servers.push(part(server));
        }
        if !self.cold {
            state.send(Message::Log(epoch, leader, first, log));
            state.agreed.push((epoch, Vec::new()));
        }
        state
    }

    /// Whether a server has part in its cluster.
    pub fn takes_part(&self, server: &Server) -> bool {
        let member = &server.member;
        match self.out {
            Some(Out::Promise) => !member.cluster.is_none(),
            Some(Out::FounderPromise) if member.founding.is_some() => !member.cluster.is_none(),
            _ => member.takes_part(),
        }
    }

    /// Whether a server is there at all.
    pub fn is_up(&self, server: &Server) -> bool {
        self.whole.is_none_or(|whole| whole.up >> server.member.me.server.0 & 1 == 1)
    }

    /// The clusters that can agree on something, with the versions of their lists.
    pub fn able(&self, state: &State) -> Vec<(Epoch, u8)> {
        let mut able: Vec<(Epoch, u8)> = Vec::new();
        let all = || state.servers.iter().map(|part| &part.value);
        let there = |server: &&Server| self.is_up(server) && self.takes_part(server);
        for one in all().filter(there) {
            let cluster = one.member.cluster;
            if able.iter().any(|(epoch, _)| *epoch == cluster) {
                continue;
            }
            let follows = |node: NodeId| {
                all().filter(there).any(|other| {
                    other.member.me == node
                        && other.member.cluster == cluster
                        && (one.role == Role::Leader && other.vote <= one.vote
                            || other.end() <= one.end())
                })
            };
            if quorum(&one.configurations(), follows) {
                let record = one.fold(one.log.len()).or_else(|| one.base.clone());
                able.push((cluster, record.map_or(0, |record| record.version.max(1))));
            }
        }
        able
    }

    /// What an operator asks a leader for, as it sees it.
    pub fn wanted(&self, now: &Configuration, spent: &Budget) -> Voters {
        if spent.lists < self.budget.lists && self.list != 0 {
            voters(self.list)
        } else {
            now.keys().copied().collect()
        }
    }

    /// What a server is told that asks who the others are.
    pub fn answers(&self, state: &State, me: NodeId) -> Vec<Answer> {
        let others = state.servers.iter().map(|part| &part.value).filter(|o| o.member.me != me);
        let seen = others.filter(|other| self.is_up(other));
        // Where messages may be lost, so may the news of an epoch.
        let known = |answer: Answer| match self.whole {
            None => Answer { known: 0, ..answer },
            Some(_) => answer,
        };
        seen.map(|other| known(other.member.answer(false))).collect()
    }
}

/// A node in its first moment.
pub fn fresh(me: NodeId, older: RankedRecord<Rec>, file: Set) -> Server {
    let mut older = older;
    if older.rank == Rank::default() {
        older.record.list = file;
    }
    Server {
        member: Participant::new(me, older),
        file,
        first: Rc::new(BTreeMap::new()),
        base: None,
        log: Rc::new(Vec::new()),
        vote: LeaderId::default(),
        role: Role::Follower,
        commit: 0,
        held: 0,
        early: None,
    }
}

/// The nodes of some configurations.
pub fn nodes(configurations: &[&Configuration]) -> BTreeSet<NodeId> {
    let node = |(id, life): (&ServerId, &Incarnation)| NodeId { server: *id, incarnation: *life };
    configurations.iter().flat_map(|all| all.iter().map(node)).collect()
}
