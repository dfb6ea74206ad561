//! What may happen next to a fleet, and what must never come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::agreement::founding::{FoundedCluster, FoundingRequest, Prepare};
use stek_share::core::agreement::meeting::{meet, Leading, Meeting};
use stek_share::core::agreement::ranked_record::{RankedRecord, Voters};
use stek_share::core::agreement::replacement::{next_step, Arrival, Configuration, Step, View};
use stek_share::core::log_id::{LeaderId, LogId};
use stek_share::core::node_id::{Incarnation, NodeId};
use stek_share::core::server_id::ServerId;

use crate::explore::{explore, Limits, System};
use crate::fleet::{
    fresh, nodes, part, quorum, Entry, Message, Out, Rec, Role, Scope, Server, Set, State, Whole,
};

/// Which file a restarted server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The newest.
    Newest,
    /// One from before its cluster.
    Old,
    /// None.
    Lost,
}

/// What happened. Servers are named by their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A server starts again.
    Restart(NodeId, File),
    /// A second server of its id starts, while it lives.
    Second(NodeId),
    /// A node begins anew inside its process, having met another group.
    BeginAnew(NodeId),
    /// It asks all to promise.
    Prepare(NodeId, Epoch),
    /// Raft has stopped for a promise.
    Stopped(NodeId),
    /// It founds, by its own promise and so many others.
    Found(NodeId, u32),
    /// It campaigns.
    Stand(NodeId),
    /// It has a majority of votes.
    Lead(NodeId),
    /// It appends.
    Append(NodeId, Entry),
    /// It has a majority of acknowledgements.
    Commit(NodeId, u8),
    /// It promises.
    Promise(NodeId, Epoch),
    /// It accepts a founding.
    Accept(NodeId, Epoch),
    /// It votes for another one.
    Vote(NodeId, LeaderId),
    /// It is refused, and hears of a greater vote.
    StepDown(NodeId, LeaderId),
    /// It takes the log of a leader, of so many entries.
    Take(NodeId, LeaderId, usize),
}

/// A step under way: the state that it leads to, of which one server changes.
struct Turn<'a> {
    scope: &'a Scope,
    from: &'a State,
    at: usize,
    out: &'a mut Vec<(Act, State)>,
}

impl Turn<'_> {
    fn me(&self) -> &Server {
        &self.from.servers[self.at].value
    }

    /// Adds a step that changes this server and more.
    fn add(&mut self, act: Act, server: Server, more: impl FnOnce(&mut State)) {
        let mut state = self.from.clone();
        state.servers[self.at] = part(server);
        more(&mut state);
        state.tidy(self.scope.out);
        self.out.push((act, state));
    }
}

fn log_of(server: &Server) -> Message {
    let member = &server.member;
    Message::Log(member.cluster, server.vote, server.first.clone(), server.log.clone())
}

fn append(server: &mut Server, entry: Entry) {
    let mut log = (*server.log).clone();
    log.push((server.vote, entry));
    server.log = Rc::new(log);
}

fn held(server: &Server) -> Set {
    let keys =
        server.fold(server.log.len()).map_or(0, |r| r.keys.iter().fold(0, |s, k| s | 1 << k));
    server.held | keys
}

impl System for Scope {
    type State = State;
    type Step = Act;

    fn start(&self) -> State {
        self.begin()
    }

    fn next(&self, state: &State) -> Vec<(Act, State)> {
        let mut out = Vec::new();
        for at in 0..state.servers.len() {
            if self.is_up(&state.servers[at].value) {
                let mut turn = Turn { scope: self, from: state, at, out: &mut out };
                turn.restart();
                turn.found();
                turn.campaign();
                turn.lead();
                turn.step_down();
                turn.receive();
            }
        }
        out
    }

    fn fault(&self, state: &State) -> Option<String> {
        if state.fault.is_some() {
            return state.fault.clone();
        }
        let able = self.able(state);
        let close = |a: u8, b: u8| a > 0 && b > 0 && a.abs_diff(b) <= 1;
        for (n, (one, version)) in able.iter().enumerate() {
            for (other, its) in &able[n + 1..] {
                if close(*version, *its) {
                    let both = (one.counter, version, other.counter, its);
                    return Some(format!("two groups are able: {both:?}"));
                }
            }
        }
        // A group that is heard by all but one server is not brought down by that one.
        match self.whole {
            Some(Whole { deaf, .. }) if deaf != 0 && able.is_empty() => {
                Some("a group was brought down that served".to_owned())
            }
            _ => None,
        }
    }

    fn fingerprint(&self, state: &State) -> u64 {
        state.fingerprint()
    }

    fn promise(&self, state: &State, depth: u32) -> i64 {
        let of = |n: usize| n as i64;
        let all = || state.servers.iter().map(|part| &part.value);
        let agreed: usize = state.agreed.iter().map(|(_, keys)| keys.len()).sum();
        let kinds =
            |is: fn(&Message) -> bool| of(state.sent.iter().filter(|m| is(&m.value)).count());
        40 * of(state.used.len())
            + 25 * of(agreed)
            + 20 * of(state.agreed.len())
            + 15 * i64::from(state.spent.restarts)
            + 12 * kinds(|m| matches!(m, Message::Found(_) | Message::Vote(..)))
            + 10 * of(all().filter(|server| server.role == Role::Leader).count())
            + 10 * i64::from(state.spent.prepares + state.spent.replacements)
            + 6 * kinds(|m| matches!(m, Message::Promise(..)))
            + 4 * of(all().filter(|server| self.takes_part(server)).count())
            + 3 * of(all().filter(|server| server.member.cluster.counter > 1).count())
            - 2 * i64::from(depth)
    }

    fn dead_end(&self, state: &State) -> Option<String> {
        let all: Set = ((1_u16 << self.servers) - 1) as Set;
        let most = |up: &Set| 2 * up.count_ones() > all.count_ones();
        let lists_change = self.budget.lists > 0;
        let some = (1..=all).filter(most).filter(|up| !lists_change || *up == all);
        some.filter_map(|up| self.heals(state, up)).next()
    }
}

/// A whole network from some moment on: whether the servers that are up come together again.
struct Healing<'a> {
    scope: Scope,
    from: &'a State,
}

/// States of a healing that are looked at before it is given up. Those that succeed take some hundreds
/// as a rule, and 73,486 at most in a search through 2.7 million states.
const HEALING_STATES: usize = 600_000;

impl System for Healing<'_> {
    type State = State;
    type Step = Act;

    fn start(&self) -> State {
        let mut state = self.from.clone();
        state.used.clear();
        state
    }

    fn next(&self, state: &State) -> Vec<(Act, State)> {
        self.scope.next(state)
    }

    /// What is looked for: one leader that uses a new key, and all with it.
    fn fault(&self, state: &State) -> Option<String> {
        let scope = &self.scope;
        let up = || state.servers.iter().map(|p| &p.value).filter(|server| scope.is_up(server));
        let serves = |leader: &Server| {
            let cluster = leader.member.cluster;
            leader.role == Role::Leader
                && state.used.iter().any(|(epoch, _)| *epoch == cluster)
                && up().all(|o| o.member.cluster == cluster && scope.takes_part(o))
        };
        up().any(serves).then(|| "all are one".to_owned())
    }

    fn fingerprint(&self, state: &State) -> u64 {
        state.fingerprint()
    }

    fn promise(&self, state: &State, depth: u32) -> i64 {
        let scope = &self.scope;
        let up = || state.servers.iter().map(|p| &p.value).filter(|server| scope.is_up(server));
        let able = scope.able(state);
        let leads = |server: &Server| {
            let cluster = server.member.cluster;
            let is_able = able.iter().any(|(epoch, _)| *epoch == cluster);
            server.role == Role::Leader && scope.takes_part(server) && is_able
        };
        // The cluster that works, or else the one that is about to be founded.
        let led = up().filter(|server| leads(server)).map(|server| server.member.cluster).max();
        let promised = up().map(|server| server.member.promise).max().unwrap_or_default();
        let target = led.unwrap_or(promised);
        let of = |server: &Server| {
            let member = &server.member;
            let place = match (member.cluster == target, member.promise == target) {
                (true, true) => 40 + 5 * server.log.len() as i64,
                (_, true) => 20,
                _ if member.cluster.is_none() && member.promise <= target => 10,
                _ => 0,
            };
            let role = match server.role {
                Role::Leader if leads(server) => 60 + 20 * i64::from(server.commit),
                Role::Candidate if member.cluster == target => 10,
                _ => 0,
            };
            place + role
        };
        let is_on_the_way = |message: &Message| match message {
            Message::Found(found) => found.epoch == target,
            Message::Promise(promise, _) => promise.epoch == target,
            Message::Vote(cluster, ..) => *cluster == target,
            _ => false,
        };
        let on_the_way = state.sent.iter().filter(|sent| is_on_the_way(&sent.value)).count();
        let spent = &state.spent;
        let cost = spent.prepares + spent.stands + spent.renewals;
        up().map(of).sum::<i64>() + 100 * state.used.len() as i64 + 15 * on_the_way as i64
            - 40 * i64::from(cost)
            - i64::from(depth)
    }
}

impl Scope {
    /// What is wrong if the servers in `up` cannot come together again.
    fn heals(&self, state: &State, up: Set) -> Option<String> {
        let mut scope = self.clone();
        scope.whole = Some(Whole { up, deaf: 0 });
        (scope.founders, scope.candidates) = (Set::MAX, Set::MAX);
        let mut more = state.spent;
        more.prepares += 3;
        more.stands += 3;
        more.keys += 1;
        more.replacements += self.servers + 2;
        more.renewals += self.servers + 1;
        scope.budget = more;
        let healing = Healing { scope, from: state };
        let limits = Limits {
            directed: true,
            states: HEALING_STATES,
            time: std::time::Duration::MAX,
            dead_ends: 0,
        };
        let outcome = explore(&healing, limits);
        let none = outcome.fault.is_none();
        none.then(|| format!("servers {up:05b} do not come together ({} states)", outcome.states))
    }

    /// A leader with a majority that is heard on a whole network.
    fn heard<'a>(&self, state: &'a State, by: &Server) -> Vec<(&'a Server, Leading)> {
        let Some(whole) = self.whole else { return Vec::new() };
        if whole.deaf >> by.member.me.server.0 & 1 == 1 {
            return Vec::new();
        }
        let able = self.able(state);
        let leads = |part: &'a Rc<crate::fleet::Part<Server>>| {
            let server = &part.value;
            let member = &server.member;
            let has_majority = able.iter().any(|(epoch, _)| *epoch == member.cluster);
            let is_believed = has_majority || self.out == Some(Out::WordOfMajority);
            let leads =
                server.role == Role::Leader && self.takes_part(server) && self.is_up(server);
            let version = server.fold(server.log.len()).map_or(0, |r| u64::from(r.version));
            let leading = Leading {
                cluster: member.cluster,
                list_version: version,
                majority_age: std::time::Duration::ZERO,
            };
            (leads && is_believed).then_some((server, leading))
        };
        state.servers.iter().filter_map(leads).collect()
    }
}

impl Turn<'_> {
    fn spent(&self) -> crate::fleet::Budget {
        self.from.spent
    }

    fn is_of(&self, set: Set) -> bool {
        set >> self.me().member.me.server.0 & 1 == 1
    }

    fn restart(&mut self) {
        let (scope, server) = (self.scope, self.me().clone());
        let node = server.member.me;
        let next = NodeId { incarnation: Incarnation(node.incarnation.0 + 1), ..node };
        // A file is written before an append is acknowledged.
        let file = match scope.out {
            Some(Out::FileFirst) => server.newest(Some(Out::WholeLog)),
            out => server.newest(out),
        };
        let held = held(&server);
        if self.spent().restarts < scope.budget.restarts && self.is_of(scope.restarters) {
            let mut files = vec![(File::Lost, RankedRecord::default(), 0)];
            if scope.files {
                let old = server.member.older.clone();
                if old != file && old.rank != Default::default() {
                    files.push((File::Old, old, 0));
                }
                files.push((File::Newest, file.clone(), held));
            }
            for (kind, older, held) in files {
                let again = Server { held, ..fresh(next, older, server.file) };
                self.add(Act::Restart(node, kind), again, |state| state.spent.restarts += 1);
            }
        }
        if self.spent().seconds < scope.budget.seconds && self.is_of(scope.restarters) {
            let second = part(fresh(next, RankedRecord::default(), server.file));
            self.add(Act::Second(node), server.clone(), |state| {
                state.spent.seconds += 1;
                state.servers.push(second);
            });
        }
        if scope.whole.is_some() && self.spent().renewals < scope.budget.renewals {
            let member = &server.member;
            let heard = scope.heard(self.from, &server);
            let others = heard.iter().filter(|(leader, _)| leader.member.me != node);
            let own =
                heard.iter().map(|(_, leading)| leading).find(|l| l.cluster == member.cluster);
            let meeting = |other: &Leading| {
                meet(member.cluster, member.promise, own, other) == Meeting::BeginAnew
            };
            let ignores = match scope.out {
                Some(Out::LeftOver) => member.promise > member.cluster,
                Some(Out::TwoGroups) => own.is_some(),
                _ => false,
            };
            if others.clone().any(|(_, leading)| meeting(leading)) && !ignores {
                let again = Server { held, ..fresh(next, file, server.file) };
                self.add(Act::BeginAnew(node), again, |state| state.spent.renewals += 1);
            }
        }
    }

    fn found(&mut self) {
        let (scope, server) = (self.scope, self.me().clone());
        let node = server.member.me;
        let hears = !scope.heard(self.from, &server).is_empty();
        if self.spent().prepares < scope.budget.prepares && self.is_of(scope.founders) && !hears {
            let wall = if scope.clock { u64::from(self.spent().prepares) + 1 } else { 0 };
            let mut next = server.clone();
            let own = server.newest(scope.out);
            let call = FoundingRequest { answers: scope.answers(self.from, node), survivors: None };
            let mut prepares = next.member.prepare(own, &call, wall);
            if scope.out == Some(Out::OwnEpoch) {
                next.member.promise.founder = NodeId::default();
                prepares.iter_mut().for_each(|prepare| prepare.epoch.founder = NodeId::default());
            }
            next.role = Role::Follower;
            let epoch = next.member.promise;
            self.add(Act::Prepare(node, epoch), next, |state| {
                state.spent.prepares += 1;
                prepares.into_iter().for_each(|prepare| state.send(Message::Prepare(prepare)));
            });
        }
        if let Some((prepare, early)) = &server.early {
            if scope.takes_part(&server) && prepare.epoch > server.member.promise {
                let mut next = server.clone();
                next.early = None;
                next.role = Role::Follower;
                let promise = next.member.promise(prepare, early.clone());
                let held = held(&server);
                self.add(Act::Stopped(node), next, |s| s.send(Message::Promise(promise, held)));
            }
        }
        if let Some(founding) = &server.member.founding {
            let epoch = server.member.promise;
            let own = founding.promises.contains_key(&node);
            let to_me = self.from.sent.iter().filter_map(|sent| match &sent.value {
                Message::Promise(promise, _) if promise.epoch == epoch => Some(promise.clone()),
                _ => None,
            });
            let promises: Vec<_> = to_me.filter(|promise| promise.from != node).collect();
            for chosen in 0..1_u32 << promises.len() {
                let mut next = server.clone();
                let some = promises.iter().enumerate().filter(|(n, _)| chosen >> n & 1 == 1);
                some.for_each(|(_, promise)| next.member.collect(promise.clone()));
                let mut reports =
                    next.member.founding.clone().map(|f| f.promises).unwrap_or_default();
                if scope.out == Some(Out::NewestList) {
                    self.count_by_own_list(&mut next, &mut reports);
                }
                let Some(mut found) = next.member.found(true).filter(|_| own) else { continue };
                self.take_out(&mut found, &server, &mut next);
                let fault = reports
                    .values()
                    .any(|ranked| ranked.record.revoked & !found.base.record.revoked != 0);
                self.add(Act::Found(node, chosen.count_ones()), next, |state| {
                    if fault {
                        state.fault = Some("a revoked key came back at a founding".to_owned());
                    }
                    state.send(Message::Found(found));
                });
            }
        }
    }

    /// What a founder would do that goes by the list which it has itself.
    fn count_by_own_list(
        &self,
        next: &mut Server,
        reports: &mut BTreeMap<NodeId, RankedRecord<Rec>>,
    ) {
        let node = next.member.me;
        let own = reports.get(&node).map_or(0, |ranked| ranked.record.list);
        reports.values_mut().for_each(|ranked| (ranked.record.list, ranked.record.next) = (own, 0));
        if let Some(founding) = next.member.founding.as_mut() {
            founding.promises = reports.clone();
        }
    }

    /// Takes out a rule of the founding itself.
    fn take_out(&self, found: &mut FoundedCluster<Rec>, before: &Server, next: &mut Server) {
        match self.scope.out {
            Some(Out::FoundOnce) => next.member.founding = before.member.founding.clone(),
            Some(Out::ThosePromised) => {
                for (id, life) in &mut found.voters {
                    let lives = self.from.servers.iter().map(|part| part.value.member.me);
                    *life = lives
                        .filter(|node| node.server == *id)
                        .map(|n| n.incarnation)
                        .max()
                        .unwrap_or(*life);
                }
            }
            Some(Out::MergeAtFounding) => {
                let before = before.newest(None).record;
                if before.keys == found.base.record.keys {
                    found.base.record.revoked = before.revoked;
                }
            }
            _ => {}
        }
    }

    fn campaign(&mut self) {
        let (scope, server) = (self.scope, self.me().clone());
        let member = &server.member;
        let node = member.me;
        if !scope.takes_part(&server) || server.role == Role::Leader {
            return;
        }
        let votes = server.configurations();
        let is_voter = nodes(&votes).contains(&node) && scope.heard(self.from, &server).is_empty();
        if is_voter && self.spent().stands < scope.budget.stands && self.is_of(scope.candidates) {
            let mut next = server.clone();
            next.vote = LeaderId { term: server.vote.term + 1, node };
            next.role = Role::Candidate;
            let stand = Message::Stand(member.cluster, next.vote, next.end());
            self.add(Act::Stand(node), next, |state| {
                state.spent.stands += 1;
                state.send(stand);
            });
        }
        if server.role != Role::Candidate {
            return;
        }
        let has_vote = |voter: NodeId| {
            let vote = Message::Vote(member.cluster, server.vote, voter);
            voter == node || self.from.has(&vote) || self.of_any_life(&vote, voter)
        };
        if quorum(&votes, has_vote) {
            let mut next = server.clone();
            next.role = Role::Leader;
            next.commit = 0;
            append(&mut next, Entry::Blank);
            let mut logs = vec![log_of(&next)];
            if let Some(base) = server.base.clone().filter(|_| !server.has_base()) {
                append(&mut next, Entry::Base(Rec { version: base.version.max(1), ..base }));
                logs.push(log_of(&next));
            }
            self.add(Act::Lead(node), next, |s| logs.into_iter().for_each(|log| s.send(log)));
        }
    }

    /// Whether another life of a voter gave that vote, where that counts.
    fn of_any_life(&self, vote: &Message, voter: NodeId) -> bool {
        let Message::Vote(cluster, candidate, _) = vote else { return false };
        let same = |sent: &Message| {
            matches!(sent, Message::Vote(epoch, of, from)
                if (epoch, of) == (cluster, candidate) && from.server == voter.server)
        };
        self.scope.out == Some(Out::Sender) && self.from.sent.iter().any(|sent| same(&sent.value))
    }

    fn lead(&mut self) {
        let server = self.me().clone();
        if server.role != Role::Leader || !self.scope.takes_part(&server) {
            return;
        }
        let node = server.member.me;
        let committed = &server.log[..usize::from(server.commit)];
        let has_own = committed.iter().any(|(leader, _)| *leader == server.vote);
        let has_base = committed.iter().any(|(_, entry)| matches!(entry, Entry::Base(_)));
        if has_own && has_base {
            let mut entries = Vec::new();
            if self.spent().keys < self.scope.budget.keys {
                entries.push(Entry::Key(self.spent().keys + 1));
            }
            if self.spent().revokes < self.scope.budget.revokes {
                entries.push(Entry::Revoke(1));
            }
            for entry in entries {
                let mut next = server.clone();
                append(&mut next, entry.clone());
                let log = log_of(&next);
                let is_key = matches!(entry, Entry::Key(_));
                self.add(Act::Append(node, entry), next, |state| {
                    state.spent.keys += u8::from(is_key);
                    state.spent.revokes += u8::from(!is_key);
                    state.send(log);
                });
            }
        }
        self.commit(&server);
        self.replace(&server, has_own && has_base);
    }

    fn commit(&mut self, server: &Server) {
        let (node, cluster) = (server.member.me, server.member.cluster);
        let acknowledged = |voter: NodeId| {
            if voter == node {
                return server.log.len() as u8;
            }
            let is_its = |from: NodeId| {
                from == voter || self.scope.out == Some(Out::Sender) && from.server == voter.server
            };
            let acks = self.from.sent.iter().filter_map(|sent| match &sent.value {
                Message::Ack(epoch, leader, from, entries)
                    if *epoch == cluster && *leader == server.vote && is_its(*from) =>
                {
                    Some(*entries)
                }
                _ => None,
            });
            acks.max().unwrap_or(0)
        };
        let votes = server.configurations();
        let own = |entries: &u8| server.log[usize::from(*entries) - 1].0 == server.vote;
        let ends = (server.commit + 1..=server.log.len() as u8).rev().filter(own);
        let Some(end) =
            ends.into_iter().find(|end| quorum(&votes, |voter| acknowledged(voter) >= *end))
        else {
            return;
        };
        let mut next = server.clone();
        next.commit = end;
        let record = server.fold(usize::from(end));
        let keys = record.as_ref().map_or(Vec::new(), |record| record.keys.clone());
        let mut fault = None;
        if let Some(record) = &record {
            for node in nodes(&votes) {
                let there = self.from.node(node).filter(|server| server.member.cluster == cluster);
                let knew = there.map_or(0, |server| server.member.older.record.revoked);
                let is_new =
                    server.first.get(&node.server).is_none_or(|life| *life != node.incarnation);
                if is_new && knew & !record.revoked != 0 {
                    fault = Some("a voter knows of a revocation that the group has not".to_owned());
                }
            }
        }
        let used: Vec<u8> = server.log[..usize::from(end)]
            .iter()
            .filter_map(|(_, entry)| match entry {
                Entry::Key(key) => Some(*key),
                _ => None,
            })
            .collect();
        self.add(Act::Commit(node, end), next, |state| state.fault = fault);
        let scope = self.scope;
        let Some((_, state)) = self.out.last_mut() else { return };
        agree(state, self.from, cluster, &keys, record.is_some());
        let able = scope.able(self.from);
        let is_able = able.iter().any(|(epoch, _)| *epoch == cluster);
        for key in used {
            if state.used.contains(&(cluster, key)) {
                continue;
            }
            if is_able || scope.out == Some(Out::FreshMajority) {
                state.used.push((cluster, key));
            }
            let others = |(epoch, _): &(Epoch, u8)| {
                *epoch != cluster && self.from.agreed.iter().any(|(other, _)| other == epoch)
            };
            if !is_able && scope.out == Some(Out::FreshMajority) && able.iter().any(others) {
                state.fault = Some("a key is used that another group does not know".to_owned());
            }
        }
    }

    fn replace(&mut self, server: &Server, is_settled: bool) {
        let scope = self.scope;
        let (node, cluster) = (server.member.me, server.member.cluster);
        let votes: Vec<Configuration> = server.configurations().into_iter().cloned().collect();
        let last_change =
            server.log.iter().rposition(|(_, e)| matches!(e, Entry::Joint(_) | Entry::Final(_)));
        let is_settled = is_settled && last_change.is_none_or(|at| usize::from(server.commit) > at)
            || scope.out == Some(Out::Settled);
        let Some(now) = votes.last() else { return };
        let list = scope.wanted(now, &self.spent());
        let has_log = |other: NodeId| {
            self.from.sent.iter().any(|sent| {
                matches!(&sent.value, Message::Ack(epoch, leader, from, _)
                    if *epoch == cluster && *leader == server.vote && *from == other)
            })
        };
        let revoked = server.fold(server.log.len()).map_or(0, |record| record.revoked);
        let mut options: Vec<BTreeMap<ServerId, Arrival>> = vec![BTreeMap::new()];
        let mut answering = BTreeSet::new();
        for other in self.from.servers.iter().map(|part| &part.value) {
            let id = other.member.me;
            if scope.is_up(other) && scope.takes_part(other) && other.member.cluster == cluster {
                answering.insert(id);
            }
            if !has_log(id) && scope.out != Some(Out::Learner) {
                continue;
            }
            let knew = other.member.older.record.revoked;
            let is_merged = knew & !revoked == 0 || scope.out == Some(Out::MergeAtJoin);
            let arrival = Arrival { incarnation: id.incarnation, has_log: true, is_merged };
            options.push(BTreeMap::from([(id.server, arrival)]));
        }
        let mut known = nodes(&votes.iter().collect::<Vec<_>>());
        known.extend(self.from.servers.iter().map(|part| part.value.member.me));
        let mut seen = Vec::new();
        for arrivals in options {
            let view = View {
                me: node,
                configurations: &votes,
                nodes: &known,
                is_settled,
                list: &list,
                followers: &Voters::new(),
                answering: &answering,
                arrivals: &arrivals,
            };
            let mut step = next_step(&view);
            if let (Some(Out::OneAtATime), true) = (scope.out, is_settled && votes.len() == 1) {
                let all = now.iter().filter(|(id, _)| list.contains(id));
                let wanted: Configuration = all.map(|(id, life)| (*id, *life)).collect();
                step = (wanted != *now).then_some(Step::ChangeVoters(wanted)).or(step);
            }
            let Some(step) = step.filter(|step| !seen.contains(step)) else { continue };
            seen.push(step.clone());
            self.change(server, now, votes.len() > 1, step, &has_log);
        }
    }

    fn change(
        &mut self,
        server: &Server,
        now: &Configuration,
        is_open: bool,
        step: Step,
        has_log: &dyn Fn(NodeId) -> bool,
    ) {
        let (spent, budget) = (self.spent(), self.scope.budget);
        let (entry, fault) = match step {
            Step::ChangeVoters(wanted) if is_open => (Entry::Final(wanted), false),
            Step::ChangeVoters(wanted) => {
                let new = nodes(&[&wanted]).into_iter().find(|node| !nodes(&[now]).contains(node));
                (Entry::Joint(wanted), new.is_some_and(|node| !has_log(node)))
            }
            Step::MergeRevoked(node) => {
                let knew = self.from.node(node).map_or(0, |s| s.member.older.record.revoked);
                (Entry::Revoke(knew), false)
            }
            Step::AddLearners(_) | Step::Remove(_) => return,
        };
        let changes_list = match &entry {
            Entry::Joint(wanted) => Some(!wanted.keys().eq(now.keys())),
            _ => None,
        };
        if changes_list == Some(true) && spent.lists >= budget.lists
            || changes_list == Some(false) && spent.replacements >= budget.replacements
        {
            return;
        }
        let mut next = server.clone();
        append(&mut next, entry.clone());
        let log = log_of(&next);
        self.add(Act::Append(server.member.me, entry), next, |state| {
            state.spent.lists += u8::from(changes_list == Some(true));
            state.spent.replacements += u8::from(changes_list == Some(false));
            state.send(log);
            if fault {
                state.fault = Some("a server is made a voter that has no log".to_owned());
            }
        });
    }

    fn receive(&mut self) {
        let from = self.from;
        for sent in from.sent.iter() {
            match &sent.value {
                Message::Prepare(prepare) => self.asked(*prepare),
                Message::Found(found) => self.founded(found),
                Message::Stand(cluster, candidate, end) => self.vote(*cluster, *candidate, *end),
                Message::Log(..) => self.take(&sent.value),
                Message::Promise(..) | Message::Vote(..) | Message::Ack(..) => {}
            }
        }
    }

    fn asked(&mut self, prepare: Prepare) {
        let (scope, server) = (self.scope, self.me().clone());
        let node = server.member.me;
        let hears = !scope.heard(self.from, &server).is_empty();
        let hears = hears && scope.out != Some(Out::HearsLeader);
        let to = match scope.out {
            Some(Out::Addressee) if prepare.to.server == node.server => node,
            _ => prepare.to,
        };
        let prepare = Prepare { to, ..prepare };
        // The founder made its own promise.
        let is_own = prepare.epoch.founder == node;
        if is_own || server.member.admits(&prepare, hears, u64::MAX).is_err() {
            return;
        }
        let own = server.newest(scope.out);
        let mut next = server.clone();
        if scope.out == Some(Out::StopFirst) && scope.takes_part(&server) {
            if server.early.is_none() {
                next.early = Some((prepare, own));
                self.add(Act::Promise(node, prepare.epoch), next, |_| ());
            }
            return;
        }
        next.role = Role::Follower;
        let act = Act::Promise(node, prepare.epoch);
        let promise = next.member.promise(&prepare, own);
        let held = held(&server);
        self.add(act, next, |s| s.send(Message::Promise(promise, held)));
    }

    fn founded(&mut self, found: &FoundedCluster<Rec>) {
        let server = self.me().clone();
        let own = server.newest(self.scope.out);
        let mut next = server.clone();
        let mut found = found.clone();
        if self.scope.out == Some(Out::OwnEpoch) {
            found.epoch.founder = NodeId::default();
        }
        if !next.member.accept(&found, own) {
            return;
        }
        next.held = held(&server);
        next.first = Rc::new(found.voters.clone());
        next.base = Some(found.base.record.clone());
        next.log = Rc::new(Vec::new());
        (next.vote, next.role, next.commit) = (LeaderId::default(), Role::Follower, 0);
        self.add(Act::Accept(server.member.me, found.epoch), next, |_| ());
    }

    /// openraft's `handle_vote_req`: a log that is behind is refused before the vote is looked at, and
    /// leaves no trace; then any candidate counts that is not below its own vote.
    fn vote(&mut self, cluster: Epoch, candidate: LeaderId, end: LogId) {
        let server = self.me().clone();
        let node = server.member.me;
        let is_its = server.member.cluster == cluster && self.scope.takes_part(&server);
        if candidate.node == node || !is_its || end < server.end() || candidate < server.vote {
            return;
        }
        let mut next = server.clone();
        (next.vote, next.role) = (candidate, Role::Follower);
        let vote = Message::Vote(cluster, candidate, node);
        self.add(Act::Vote(node, candidate), next, |state| state.send(vote));
    }

    /// openraft's `handle_vote_resp` and `HigherVote`: whoever refuses a candidate or a leader tells its
    /// own vote, and one that is greater takes the place of that of who hears it.
    fn step_down(&mut self) {
        let (scope, server) = (self.scope, self.me().clone());
        if server.role == Role::Follower || !scope.takes_part(&server) {
            return;
        }
        let others = self.from.servers.iter().map(|part| &part.value);
        let there = others.filter(|other| {
            scope.is_up(other)
                && scope.takes_part(other)
                && other.member.cluster == server.member.cluster
                && other.vote > server.vote
        });
        let votes: BTreeSet<LeaderId> = there.map(|other| other.vote).collect();
        for vote in votes {
            let mut next = server.clone();
            (next.vote, next.role) = (vote, Role::Follower);
            self.add(Act::StepDown(server.member.me, vote), next, |_| ());
        }
    }

    /// openraft's `append_entries`: from any leader that is not below its own vote.
    fn take(&mut self, message: &Message) {
        let Message::Log(cluster, leader, first, log) = message else { return };
        let (scope, server) = (self.scope, self.me().clone());
        let node = server.member.me;
        if leader.node == node {
            return;
        }
        let mut next = server.clone();
        if server.member.cluster == *cluster && scope.takes_part(&server) {
            let has_more = log.len() <= server.log.len() && server.end().leader_id == *leader;
            if *leader < server.vote || has_more {
                return;
            }
        } else {
            // A server that hears a leader with a majority follows no other one.
            let heard = scope.heard(self.from, &server);
            let is_other = heard.iter().any(|(other, _)| other.member.cluster > *cluster);
            if is_other || !next.member.join(*cluster) {
                return;
            }
        }
        (next.vote, next.role, next.commit) = (*leader, Role::Follower, 0);
        (next.first, next.log) = (first.clone(), log.clone());
        next.held = held(&next);
        let ack = Message::Ack(*cluster, *leader, node, log.len() as u8);
        self.add(Act::Take(node, *leader, log.len()), next, |state| state.send(ack));
    }
}

/// Notes what a cluster agreed on, and what is wrong with it.
fn agree(state: &mut State, from: &State, cluster: Epoch, keys: &[u8], counts: bool) {
    if let Some((_, before)) = state.agreed.iter_mut().find(|(epoch, _)| *epoch == cluster) {
        if before.iter().zip(keys).any(|(one, other)| one != other) {
            state.fault = Some(format!("two keys of one generation: {before:?} and {keys:?}"));
        } else if keys.len() > before.len() {
            *before = keys.to_vec();
        }
        return;
    }
    if !counts {
        return;
    }
    state.agreed.push((cluster, keys.to_vec()));
    state.agreed.sort();
    // The cluster's first agreement: what those present knew to be used has to be in it.
    let founds = from.sent.iter().filter_map(|sent| match &sent.value {
        Message::Found(found) if found.epoch == cluster => Some(found),
        _ => None,
    });
    for found in founds {
        let later = from.used.iter().rposition(|(epoch, _)| *epoch == found.base.rank.epoch);
        for (at, (epoch, key)) in from.used.iter().enumerate() {
            // What was agreed on later, where nobody knew of this, takes its place.
            let is_diverged = later.is_some_and(|later| later > at);
            if *epoch >= cluster || keys.contains(key) || is_diverged {
                continue;
            }
            let remembers = |node: NodeId| {
                from.sent.iter().any(|sent| match &sent.value {
                    Message::Promise(promise, held) => {
                        promise.epoch == cluster && promise.from == node && held >> key & 1 == 1
                    }
                    _ => false,
                }) || from.node(node).is_some_and(|server| server.held >> key & 1 == 1)
            };
            if let Some(node) = nodes(&[&found.voters]).into_iter().find(|node| remembers(*node)) {
                state.fault = Some(format!("key {key} is lost, which {node} knew"));
            }
        }
    }
}
