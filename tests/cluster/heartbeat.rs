//! Heartbeats as a member sees them: two servers, and a puppet in place of the third, which agrees
//! to everything but what a test wants otherwise, and counts what it is sent. It keeps what Raft asks of
//! a voter: one that forgets what it acknowledged helps a leader to power that lacks it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use stek_share::core::agreed::Record;
use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::agreement::founding::{Promise, Refusal};
use stek_share::core::agreement::ranked_record::RankedRecord;
use stek_share::core::config::Settings;
use stek_share::core::log_id::{LeaderId, LogId};
use stek_share::core::node_id::{Incarnation, NodeId};
use stek_share::core::pre_vote::Status;
use stek_share::core::server_id::ServerId;
use stek_share::log_sink::Log;
use stek_share::node::Role;
use stek_share::rpc::{
    self, AppendAnswer, ErrorResponse, Recipient, Request, Response, WireAppend, WireHeartbeat,
    WireVote,
};
use stek_share::transport::frame::Hello;
use stek_share::transport::listener::{
    self, Answer, Caller, ListenDeps, ListenSettings, Listener, Service,
};
use stek_share::transport::peers::Peers;
use stek_share::transport::{Body, Counters, LastSeen, LocalIdentity};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::fleet::{wait_for, Fleet, Lines, PATIENCE};

/// The run of the puppet's process.
const RUN: u64 = 7;

const PUPPET: ServerId = ServerId(3);
const NODE: NodeId = NodeId { server: PUPPET, incarnation: Incarnation(7) };
/// Long enough for some twenty heartbeats.
const WHILE: Duration = Duration::from_secs(2);

fn default(_: &mut Settings) {}

#[derive(Default)]
struct Strings {
    asks: AtomicU64,
    notes: AtomicU64,
    appends: AtomicU64,
    /// Whether it says that it is behind.
    behind: AtomicBool,
    /// Whether it votes for nobody.
    abstains: AtomicBool,
    /// A vote that it says it has given.
    higher: Mutex<Option<LeaderId>>,
    /// The cluster that it takes part in.
    cluster: Mutex<Epoch>,
    /// The latest founding that it promised: it leads no two groups to believe in it.
    promised: Mutex<Epoch>,
    /// The latest leader's term and cluster incarnation.
    leader: Mutex<Option<(LeaderId, [u8; 16])>>,
    /// Its part in that cluster.
    part: Mutex<Part>,
}

/// What a voter has to remember.
#[derive(Clone, Copy, Default)]
struct Part {
    cluster: Epoch,
    /// Whom it voted for or followed last.
    vote: LeaderId,
    /// The last entry that it acknowledged.
    last: Option<LogId>,
}

impl Strings {
    fn voters(&self) -> std::collections::BTreeSet<ServerId> {
        [1, 2, 3].map(ServerId).into()
    }

    /// Whether it promised to leave this cluster.
    fn has_left(&self, cluster: Epoch) -> bool {
        cluster < *self.promised.lock().unwrap()
    }

    /// Its part in this cluster, which begins with the first message in it.
    fn part_in<T>(&self, cluster: Epoch, play: impl FnOnce(&mut Part) -> T) -> T {
        let mut part = self.part.lock().unwrap();
        if part.cluster != cluster {
            *part = Part { cluster, ..Part::default() };
        }
        play(&mut part)
    }

    /// What it says that it has voted for, if that is more than this.
    fn higher(&self, than: LeaderId, part: &Part) -> Option<LeaderId> {
        let said = *self.higher.lock().unwrap();
        said.max(Some(part.vote)).filter(|leader_id| *leader_id > than)
    }

    fn vote(&self, vote: &WireVote) -> Response {
        let may = !self.abstains.load(Ordering::SeqCst);
        self.part_in(vote.to.cluster, |part| {
            let higher = self.higher(vote.candidate, part);
            let granted = higher.is_none() && may && vote.last_log_id >= part.last;
            if granted {
                part.vote = vote.candidate;
            }
            let told = (higher.unwrap_or(vote.candidate), false);
            Response::Vote { vote: told, granted, last_log_id: part.last }
        })
    }

    fn append(&self, append: &WireAppend) -> AppendAnswer {
        let leader_id = append.vote.0;
        self.part_in(append.to.cluster, |part| {
            if let Some(higher) = self.higher(leader_id, part) {
                return AppendAnswer::HigherVote(higher, false);
            }
            part.vote = leader_id;
            let end = append.entries.last().map(|entry| entry.id).or(append.previous);
            part.last = part.last.max(end);
            AppendAnswer::Success
        })
    }

    fn answer(&self, from: &Caller, request: Request) -> Response {
        match request {
            Request::Status(_) => {
                let cluster = *self.cluster.lock().unwrap();
                Response::Status(Status { node: NODE, cluster, ..Status::default() })
            }
            Request::Prepare(prepare) => {
                let mut promised = self.promised.lock().unwrap();
                if prepare.epoch <= *promised {
                    return Response::Promise(Err(Refusal::Promised(*promised)));
                }
                *promised = prepare.epoch;
                let newest = RankedRecord {
                    record: Record::of_file(self.voters()),
                    ..RankedRecord::default()
                };
                let promise = Promise { epoch: prepare.epoch, from: NODE, newest };
                Response::Promise(Ok(Box::new(promise)))
            }
            Request::Found(found) if self.has_left(found.epoch) => Response::Found(false),
            Request::Found(found) => {
                *self.cluster.lock().unwrap() = found.epoch;
                Response::Found(true)
            }
            Request::Revoked => Response::Revoked(Vec::new()),
            Request::Vote(vote) if self.has_left(vote.to.cluster) => {
                Response::ErrorResponse(ErrorResponse::OtherNode)
            }
            Request::Vote(vote) => self.vote(&vote),
            Request::Append(append) if self.has_left(append.to.cluster) => {
                Response::ErrorResponse(ErrorResponse::OtherNode)
            }
            Request::Append(append) => {
                self.appends.fetch_add(1, Ordering::SeqCst);
                *self.leader.lock().unwrap() = Some((append.vote.0, from.cluster_id));
                *self.cluster.lock().unwrap() = append.to.cluster;
                Response::Append(self.append(&append))
            }
            Request::Heartbeat(heartbeat) if self.has_left(heartbeat.cluster) => {
                Response::ErrorResponse(ErrorResponse::OtherNode)
            }
            Request::Heartbeat(heartbeat) => {
                self.asks.fetch_add(1, Ordering::SeqCst);
                let said = *self.higher.lock().unwrap();
                let higher = said.filter(|leader_id| *leader_id > heartbeat.leader_id);
                let vote =
                    higher.map_or((heartbeat.leader_id, true), |leader_id| (leader_id, false));
                let behind = self.behind.load(Ordering::SeqCst);
                let in_sync = higher.is_none() && !behind;
                Response::Heartbeat { node: NODE, vote, in_sync }
            }
            Request::AwaitInstalled { generation: newest, .. } => {
                Response::Installed { newest, incarnation: RUN }
            }
            _ => Response::ErrorResponse(ErrorResponse::Starting),
        }
    }
}

impl Service for Strings {
    fn admit(&self, _: &Hello) -> Result<(), listener::Refusal> {
        Ok(())
    }

    fn take_one_way(&self, _: &Caller, body: Body) -> bool {
        self.notes.fetch_add(1, Ordering::SeqCst);
        matches!(rpc::decode_request(&body), Ok(Request::Heartbeat(_)))
    }

    fn serve(self: Arc<Self>, from: Caller, body: Body) -> Answer {
        Box::pin(async move {
            let answer = self.answer(&from, rpc::decode_request(&body).ok()?);
            rpc::encode(&answer)
        })
    }
}

/// Two servers that have a key, and the puppet.
struct Stage {
    fleet: Fleet,
    strings: Arc<Strings>,
    peers: Peers,
    runtime: Runtime,
    _listener: Listener,
}

impl Stage {
    fn set(tune: fn(&mut Settings)) -> Stage {
        let mut fleet = Fleet::new(3, tune);
        let runtime = Runtime::new().unwrap();
        let strings = Arc::new(Strings::default());
        let settings = fleet.settings(PUPPET.0);
        let (tls, log) = (watch::channel(fleet.tls()).1, Log::new(Arc::new(Lines::default())));
        let heard = LastSeen::new();
        let of_leader = strings.clone();
        let me = LocalIdentity::member(PUPPET, RUN, move || {
            of_leader.leader.lock().unwrap().map_or([0; 16], |(_, cluster_id)| cluster_id)
        });
        let _inside = runtime.enter();
        let listen = ListenSettings {
            bind_address: None,
            address: settings.address.clone(),
            port: settings.port,
            members: fleet.members.clone(),
            bounds: Default::default(),
        };
        let deps = ListenDeps {
            log: log.clone(),
            tls: tls.clone(),
            me: me.clone(),
            heard: heard.clone(),
            counters: Counters::new(),
        };
        let listener = Listener::start(listen, deps, strings.clone());
        let peers = Peers::new(log, tls, me, heard);
        peers.set_members(&fleet.members);
        drop(_inside);
        fleet.start(1);
        fleet.start(2);
        fleet.wait_until_one();
        Stage { fleet, strings, peers, runtime, _listener: listener }
    }

    fn leader(&self) -> u32 {
        self.fleet.wait_for_leader()
    }

    fn follower(&self) -> u32 {
        3 - self.leader()
    }

    fn term(&self) -> u64 {
        self.fleet.servers.values().map(|b| b.node_status().term).max().unwrap()
    }

    fn ask(&self, to: u32, request: &Request) -> Response {
        let body = rpc::encode(request).unwrap();
        let answer = self.runtime.block_on(self.peers.request(ServerId(to), body, PATIENCE));
        rpc::decode_response(&answer.unwrap()).unwrap()
    }

    /// What the puppet is sent while `WHILE` passes: heartbeats that want an answer, others, appends.
    fn count(&self) -> (u64, u64, u64) {
        let look = || {
            let s = &self.strings;
            [&s.asks, &s.notes, &s.appends].map(|n| n.load(Ordering::SeqCst))
        };
        let before = look();
        sleep(WHILE);
        let after = look();
        (after[0] - before[0], after[1] - before[1], after[2] - before[2])
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        wait_for(what, done, || self.fleet.describe());
    }
}

/// Else the two servers' histories part where one of them was slow, which openraft asserts not to be.
#[test]
fn the_puppet_votes_for_nobody_that_lacks_what_it_acknowledged() {
    let stage = Stage::set(default);
    let part = *stage.strings.part.lock().unwrap();
    let candidate = LeaderId { term: part.vote.term + 3, node: NODE };
    let to = Recipient { node: NODE, cluster: part.cluster };
    let may = |candidate, last_log_id| {
        let answer = stage.strings.vote(&WireVote { to, candidate, last_log_id });
        matches!(answer, Response::Vote { granted: true, .. })
    };
    assert!(part.last.is_some() && !may(candidate, None));
    let last = stage.strings.part.lock().unwrap().last;
    assert!(may(candidate, last));
    let earlier = LeaderId { term: candidate.term - 1, ..candidate };
    assert!(!may(earlier, last), "nor for two");
}

/// On a busy machine an answer may be late, and then the group is not idle for a moment.
#[test]
fn a_idle_leader_heartbeats_a_quarter_as_often_and_still_knows_whom_it_reaches() {
    let stage = Stage::set(default);
    let usual = (WHILE.as_millis() / 100) as u64;
    stage.until("a quiet time of few heartbeats", || {
        let (asks, notes, appends) = stage.count();
        println!("{asks} heartbeats with answers, {notes} without, {appends} appends");
        (usual / 6..=usual * 2 / 5).contains(&(asks + notes)) && appends == 0
    });
    let leader = &stage.fleet.servers[&stage.leader()];
    let (mut looks, mut whole) = (0_u32, 0);
    let begun = Instant::now();
    while begun.elapsed() < WHILE {
        let report = leader.node_status();
        looks += 1;
        whole += u32::from(report.role == Role::Leader && report.reachable == 3);
        sleep(Duration::from_millis(5));
    }
    assert!(whole * 10 >= looks * 9, "{whole} of {looks}:\n{}", stage.fleet.describe());
}

/// Where heartbeats are many, few are answered.
#[test]
fn few_of_many_heartbeats_are_answered() {
    let stage = Stage::set(|settings| settings.timers.heartbeat = Duration::from_millis(10));
    stage.until("a quiet time of few answers", || {
        let (asks, notes, appends) = stage.count();
        println!("{asks} heartbeats with answers, {notes} without, {appends} appends");
        notes >= 20 && asks * 2 <= notes && appends == 0
    });
}

#[test]
fn a_server_that_is_behind_is_sent_an_append() {
    let stage = Stage::set(default);
    stage.until("a quiet time", || stage.count().2 == 0);
    stage.strings.behind.store(true, Ordering::SeqCst);
    let before = stage.strings.appends.load(Ordering::SeqCst);
    stage.until("appends", || stage.strings.appends.load(Ordering::SeqCst) >= before + 3);
    stage.strings.behind.store(false, Ordering::SeqCst);
    stage.until("quiet again", || stage.count().2 == 0);
}

#[test]
fn a_leader_that_was_deposed_hears_of_it_by_an_answer_to_a_heartbeat() {
    let stage = Stage::set(default);
    stage.until("a quiet time", || stage.count().2 == 0);
    let higher = LeaderId { term: stage.term() + 5, node: NODE };
    *stage.strings.higher.lock().unwrap() = Some(higher);
    stage.until("a leader of a later term", || {
        stage.fleet.leader().is_some() && stage.term() > higher.term
    });
}

/// Whoever hears a leader gives no vote, however high the candidate's term.
#[test]
fn heartbeats_keep_a_follower_from_voting_for_another() {
    let stage = Stage::set(default);
    stage.until("a quiet time", || stage.count().2 == 0);
    let (follower, term) = (stage.follower(), stage.term());
    let leader_id = LeaderId { term: term + 9, node: NODE };
    let Response::Status(status) = stage.ask(follower, &Request::Status(Status::default())) else {
        panic!("no status")
    };
    let to = Recipient { node: status.node, cluster: status.cluster };
    let vote_of =
        |candidate| Request::Vote(WireVote { to, candidate, last_log_id: status.last_log_id });
    let vote = vote_of(leader_id);
    let begun = Instant::now();
    while begun.elapsed() < WHILE {
        let answer = stage.ask(follower, &vote);
        assert!(matches!(answer, Response::Vote { granted: false, .. }), "{answer:?}");
        sleep(Duration::from_millis(20));
    }
    assert_eq!(stage.term(), term, "{}", stage.fleet.describe());
    // Once no leader is heard any more such a vote is given; nor can the follower lead meanwhile.
    let mut stage = stage;
    let leader = stage.leader();
    stage.strings.abstains.store(true, Ordering::SeqCst);
    stage.fleet.kill(leader);
    stage.until("the vote", || {
        let term = stage.fleet.servers[&follower].node_status().term + 9;
        let vote = vote_of(LeaderId { term, node: NODE });
        matches!(stage.ask(follower, &vote), Response::Vote { granted: true, .. })
    });
}

#[test]
fn heartbeats_of_an_old_term_hold_no_election_back() {
    let mut stage = Stage::set(default);
    stage.until("a quiet time", || stage.count().2 == 0);
    let (leader, survivor, term) = (stage.leader(), stage.follower(), stage.term());
    let heartbeat = Request::Heartbeat(WireHeartbeat {
        cluster: *stage.strings.cluster.lock().unwrap(),
        list_version: 1,
        leader_id: LeaderId { term: term.saturating_sub(1), node: NODE },
        last_log_id: None,
        commit: None,
        age: None,
        quorum: true,
        next_ms: 100,
    });
    stage.fleet.kill(leader);
    stage.until("an election in spite of heartbeats", || {
        let answer = stage.ask(survivor, &heartbeat);
        assert!(matches!(answer, Response::Heartbeat { in_sync: false, .. }), "{answer:?}");
        stage.fleet.servers[&survivor].node_status().role == Role::Leader
    });
    assert!(stage.term() > term);
}
