//! The rule by which a server that lost its memory votes again under its old id
//! (`stek_share::core::recovery`), beside a Raft as small as it can be.
//!
//! It rests on clocks: a candidate counts no vote that comes late. In a network without time, where a
//! vote of an earlier life may be under way for ever, five servers make two keys of one generation
//! after one restart; three cannot, since each majority of two others has the candidate in it.
//!
//! Invariants: what a server decides is decided by core.

use std::collections::BTreeMap;
use std::time::Duration;

use stek_share::core::key_ring::{ClusterId, Generation};
use stek_share::core::log_id::{LeaderId, LogPosition};
use stek_share::core::moment::Moment;
use stek_share::core::recovery::{
    acknowledged_end, decide_recovery, prove, Proof, RecoveryDecision, Status, VoteRestriction,
};
use stek_share::core::server_id::ServerId;

use crate::explore::{hash, System};

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub struct Today {
    /// How many servers.
    pub servers: usize,
    /// Whether a server that has caught up asks once more before it counts.
    pub proves: bool,
    /// Whether votes that were given before a restart have ceased to count when it asks.
    pub clocks: bool,
    /// Campaigns of the second server; keys.
    pub budget: (u8, u8),
}

/// A log: the term of each entry and its key, 0 for none.
type Log = Vec<(u8, u8)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Server {
    term: u8,
    voted: usize,
    leads: bool,
    stands: bool,
    log: Log,
    commit: usize,
    /// As a number: what [`VoteRestriction`] it is under.
    restriction: u8,
    /// How often it started.
    life: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Message {
    Stand { term: u8, from: usize, log: Log },
    Vote { term: u8, from: usize, to: usize, life: u8 },
    Log { term: u8, from: usize, log: Log, commit: usize },
    Ack { term: u8, from: usize, entries: usize },
}

/// All that there is.
#[derive(Clone, Debug, Hash)]
pub struct State {
    servers: Vec<Server>,
    sent: std::collections::BTreeSet<Message>,
    stands: u8,
    keys: u8,
    restarts: u8,
    agreed: Vec<u8>,
    fault: Option<String>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A server starts again, without memory.
    Restart(usize),
    /// It was answered by those, and joins.
    Rejoin(usize, Vec<usize>),
    /// It was answered by those once more, and counts from now on.
    Proven(usize, Vec<usize>),
    /// It campaigns.
    Stand(usize),
    /// It votes for another.
    Vote(usize, usize),
    /// It leads.
    Lead(usize),
    /// It makes a key.
    Key(usize, u8),
    /// A majority acknowledged so much.
    Commit(usize, usize),
    /// It takes a log of another of so many entries.
    Take(usize, usize, usize),
}

const ASKING: u8 = 9;

fn restriction(of: u8) -> VoteRestriction {
    match of {
        0 => VoteRestriction::Lifted,
        1 => VoteRestriction::Proving,
        _ => VoteRestriction::Silent,
    }
}

fn number(of: VoteRestriction) -> u8 {
    match of {
        VoteRestriction::Lifted => 0,
        VoteRestriction::Proving => 1,
        _ => 2,
    }
}

fn position(log: &Log) -> Option<LogPosition> {
    let (term, _) = log.last()?;
    let leader_id = LeaderId { term: u64::from(*term), ..LeaderId::default() };
    Some(LogPosition { leader_id, index: log.len() as u64 })
}

fn status(server: &Server) -> Status {
    let leader_id = LeaderId { term: u64::from(server.term), ..LeaderId::default() };
    Status {
        full: server.restriction == 0,
        leader_id,
        log_end: position(&server.log),
        cluster_id: ClusterId::from_bytes([1; 16]).filter(|_| !server.log.is_empty()),
        generation: Generation(0),
        may_vote: server.restriction == 0,
        ..Status::default()
    }
}

fn leaders(state: &State) -> impl Iterator<Item = (usize, &Server)> {
    state.servers.iter().enumerate().filter(|(_, server)| server.leads)
}

impl Today {
    fn majority(&self) -> usize {
        self.servers / 2 + 1
    }

    /// The answers of just as many others that remember as are needed, in each way.
    fn answers(&self, state: &State, me: usize) -> Vec<(Vec<usize>, BTreeMap<ServerId, Status>)> {
        let others: Vec<usize> = (0..self.servers)
            .filter(|other| *other != me && state.servers[*other].restriction == 0)
            .collect();
        let some = (0..1_usize << others.len())
            .filter(|set| set.count_ones() as usize == self.servers.div_ceil(2));
        let chosen = some.map(|set| {
            let of: Vec<usize> =
                (0..others.len()).filter(|at| set >> at & 1 == 1).map(|at| others[at]).collect();
            let id = |other: &usize| (ServerId(*other as u32), status(&state.servers[*other]));
            let answers = of.iter().map(id).collect();
            (of, answers)
        });
        chosen.collect()
    }

    fn recover(&self, state: &State, me: usize, out: &mut Vec<(Act, State)>) {
        let server = &state.servers[me];
        let start = Moment::from_start(Duration::ZERO);
        let own = LeaderId { term: u64::from(server.term), ..LeaderId::default() };
        for (of, answers) in self.answers(state, me) {
            let upper = Duration::from_millis(400);
            let mut next = state.clone();
            if server.restriction == ASKING {
                let decision = decide_recovery(start, start, upper, self.servers, &answers, false);
                if let RecoveryDecision::Rejoin { leader_id } = decision {
                    next.servers[me].term = leader_id.term as u8;
                    next.servers[me].voted = usize::MAX;
                    next.servers[me].restriction = number(VoteRestriction::after(&decision));
                    out.push((Act::Rejoin(me, of), next));
                }
            } else if server.restriction == 1 && prove(own, self.servers, &answers) == Proof::Given
            {
                next.servers[me].restriction = 0;
                if self.clocks {
                    let is_late = |message: &Message| match message {
                        Message::Vote { from, life, .. } => *from == me && *life < server.life,
                        _ => false,
                    };
                    let late = state.sent.iter().filter(|message| is_late(message));
                    let ended: Vec<u8> = late
                        .map(|message| match message {
                            Message::Vote { term, .. } => *term,
                            _ => 0,
                        })
                        .collect();
                    next.sent.retain(|message| match message {
                        Message::Stand { term, .. } | Message::Vote { term, .. } => {
                            !ended.contains(term)
                        }
                        _ => true,
                    });
                }
                out.push((Act::Proven(me, of), next));
            }
        }
    }

    fn lead(&self, state: &State, me: usize, out: &mut Vec<(Act, State)>) {
        let server = &state.servers[me];
        let log = |next: &mut State| {
            let Server { term, log, commit, .. } = next.servers[me].clone();
            next.sent.insert(Message::Log { term, from: me, log, commit });
        };
        let has = |end: usize| {
            let acks = |other: usize| {
                state.sent.iter().any(|message| {
                    matches!(message, Message::Ack { term, from, entries }
                        if *term == server.term && *from == other && *entries >= end)
                })
            };
            1 + (0..self.servers).filter(|other| *other != me && acks(*other)).count()
        };
        let own = |end: &usize| server.log[*end - 1].0 == server.term;
        let end = (server.commit + 1..=server.log.len())
            .rev()
            .filter(own)
            .find(|end| has(*end) >= self.majority());
        if let Some(end) = end {
            let mut next = state.clone();
            next.servers[me].commit = end;
            let keys: Vec<u8> =
                server.log[..end].iter().map(|e| e.1).filter(|key| *key > 0).collect();
            if keys.iter().zip(&state.agreed).any(|(one, other)| one != other) {
                next.fault =
                    Some(format!("two keys of one generation: {:?}, {keys:?}", state.agreed));
            } else if keys.len() > state.agreed.len() {
                next.agreed = keys;
            }
            log(&mut next);
            out.push((Act::Commit(me, end), next));
        }
        if state.keys < self.budget.1 && server.commit > 0 && state.restarts > 0 {
            let mut next = state.clone();
            next.keys += 1;
            let key = next.keys;
            next.servers[me].log.push((server.term, key));
            log(&mut next);
            out.push((Act::Key(me, key), next));
        }
    }

    fn take(&self, state: &State, me: usize, message: &Message, out: &mut Vec<(Act, State)>) {
        let Message::Log { term, from, log, commit } = message else { return };
        let server = &state.servers[me];
        let is_old = *term < server.term
            || *term == server.term
                && (server.leads
                    || log.len() <= server.log.len() && server.log.last() >= log.last());
        if *from == me || server.restriction == ASKING || is_old && server.restriction == 0 {
            return;
        }
        if *term < server.term || server.leads && *term == server.term {
            return;
        }
        let mut next = state.clone();
        let it = &mut next.servers[me];
        if *term > server.term {
            (it.voted, it.stands, it.leads) = (usize::MAX, false, false);
        }
        it.term = *term;
        if server.log.len() < log.len() || server.log.last() < log.last() {
            it.log = log.clone();
        }
        (it.commit, it.leads) = (0, false);
        let now = restriction(server.restriction);
        let ends = (1..=log.len()).map(|end| log[..end].to_vec()).filter_map(|log| position(&log));
        let agreed = position(&log[..*commit].to_vec());
        let entries = if now.counts() {
            log.len()
        } else {
            acknowledged_end(ends, agreed).map_or(0, |end| end.index as usize)
        };
        if VoteRestriction::lifts(u64::from(*term), agreed, position(&it.log)) {
            let next = if self.proves { now.caught_up() } else { VoteRestriction::Lifted };
            it.restriction = number(next);
        }
        if entries > 0 {
            next.sent.insert(Message::Ack { term: *term, from: me, entries });
        }
        out.push((Act::Take(me, *from, log.len()), next));
    }

    fn vote(&self, state: &State, me: usize, message: &Message, out: &mut Vec<(Act, State)>) {
        let Message::Stand { term, from, log } = message else { return };
        let server = &state.servers[me];
        let is_free = *term > server.term || *term == server.term && server.voted == usize::MAX;
        let may = restriction(server.restriction).admits(position(log));
        let is_asking = server.restriction == ASKING;
        if *from == me || !is_free || !may || is_asking || position(log) < position(&server.log) {
            return;
        }
        let mut next = state.clone();
        let it = &mut next.servers[me];
        (it.term, it.voted, it.leads, it.stands) = (*term, *from, false, false);
        next.sent.insert(Message::Vote { term: *term, from: me, to: *from, life: server.life });
        out.push((Act::Vote(me, *from), next));
    }
}

impl System for Today {
    type State = State;
    type Step = Act;

    /// All follow the first server in the first term.
    fn start(&self) -> State {
        let log: Log = vec![(1, 0)];
        let server = |at: usize| Server {
            term: 1,
            voted: 0,
            leads: at == 0,
            stands: false,
            log: log.clone(),
            commit: usize::from(at == 0),
            restriction: 0,
            life: 1,
        };
        State {
            servers: (0..self.servers).map(server).collect(),
            sent: [Message::Log { term: 1, from: 0, log: log.clone(), commit: 1 }].into(),
            stands: 0,
            keys: 0,
            restarts: 0,
            agreed: Vec::new(),
            fault: None,
        }
    }

    fn next(&self, state: &State) -> Vec<(Act, State)> {
        let mut out = Vec::new();
        for (me, server) in state.servers.iter().enumerate() {
            // One server restarts, one campaigns: more would only be more to look through.
            if state.restarts == 0 && me == 2 {
                let mut next = state.clone();
                next.restarts += 1;
                next.servers[me] = Server {
                    term: 0,
                    voted: usize::MAX,
                    leads: false,
                    stands: false,
                    log: Log::new(),
                    commit: 0,
                    restriction: ASKING,
                    life: server.life + 1,
                };
                out.push((Act::Restart(me), next));
            }
            if server.restriction != 0 {
                self.recover(state, me, &mut out);
            }
            // What breaks the rule is a campaign that is under way when the server restarts, and what
            // is agreed on later; nothing else is looked through.
            if state.stands < self.budget.0 && me == 1 && state.restarts == 0 {
                let mut next = state.clone();
                next.stands += 1;
                let it = &mut next.servers[me];
                (it.term, it.voted, it.stands) = (server.term + 1, me, true);
                let (term, log) = (it.term, it.log.clone());
                next.sent.insert(Message::Stand { term, from: me, log });
                out.push((Act::Stand(me), next));
            }
            let has_vote = |other: usize| {
                let of = |message: &Message| {
                    matches!(message, Message::Vote { term, from, to, .. }
                        if *term == server.term && *from == other && *to == me)
                };
                state.sent.iter().any(of)
            };
            let votes = 1 + (0..self.servers).filter(|other| has_vote(*other)).count();
            if server.stands && votes >= self.majority() {
                let mut next = state.clone();
                let it = &mut next.servers[me];
                (it.leads, it.stands, it.commit) = (true, false, 0);
                it.log.push((server.term, 0));
                let (term, log) = (it.term, it.log.clone());
                next.sent.insert(Message::Log { term, from: me, log, commit: 0 });
                out.push((Act::Lead(me), next));
            }
            if server.leads {
                self.lead(state, me, &mut out);
            }
            for message in &state.sent {
                self.vote(state, me, message, &mut out);
                if server.life == 1 {
                    self.take(state, me, message, &mut out);
                }
            }
            // What was sent on connections of its earlier life does not reach a restarted server.
            if server.life > 1 {
                for (from, Server { term, log, commit, .. }) in leaders(state) {
                    let (term, log, commit) = (*term, log.clone(), *commit);
                    self.take(state, me, &Message::Log { term, from, log, commit }, &mut out);
                }
            }
        }
        out
    }

    fn fault(&self, state: &State) -> Option<String> {
        state.fault.clone()
    }

    fn fingerprint(&self, state: &State) -> u64 {
        hash(state)
    }

    /// Towards two leaders, the restarted server with either.
    fn promise(&self, state: &State, depth: u32) -> i64 {
        let of =
            |is: &dyn Fn(&Server) -> bool| state.servers.iter().filter(|s| is(s)).count() as i64;
        let sent =
            |is: &dyn Fn(&Message) -> bool| state.sent.iter().filter(|m| is(m)).count() as i64;
        60 * state.agreed.len() as i64
            + 30 * of(&|server| server.leads)
            + 25 * sent(&|message| matches!(message, Message::Vote { .. }))
            + 20 * i64::from(state.restarts)
            + 15 * of(&|server| server.restriction == 0)
            + 5 * sent(&|message| matches!(message, Message::Ack { .. }))
            - 3 * i64::from(depth)
    }
}
