//! The leader's heartbeats, and what a server makes of them.
//!
//! They are this node's own and no business of openraft's, whose core has nothing to do as long as
//! nobody is behind. A heartbeat says who leads, how far its log is, how old the current key is and
//! when the next one is due. When and to whom they go is [`crate::core::heartbeat`]'s to say. Who is
//! behind, or knows of a higher term, says so in its answer; then openraft sends heartbeats as well,
//! and its appends do the rest.
//!
//! Invariants: heartbeats decide nothing. They put an election off and tell who is there; terms,
//! votes and the log change by openraft alone. Only a heartbeat of the leader that a server follows
//! by its own Raft counts, so that one that was deposed keeps nobody from an election.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use openraft::impls::EmptyNode;
use openraft::metrics::RaftServerMetrics;
use openraft::ServerState;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, Instant};

use super::context::Context;
use super::keys::Keys;
use super::peer_client::Peers;
use super::running::{Running, Stopped};
use crate::consensus::log_store::LogProgress;
use crate::consensus::network::{LeaderInfo, RpcClient};
use crate::consensus::{leader_id_of, log_id_of};
use crate::core::heartbeat::{Heartbeat, Heartbeats, Pace, MAX_PAUSE};
use crate::core::key_ring::ClusterId;
use crate::core::log_id::LeaderId;
use crate::core::moment::millis;
use crate::core::node_id::NodeId;
use crate::core::server_id::ServerId;
use crate::core::server_list::voters;
use crate::rpc::{self, ErrorResponse, Request, Response, WireHeartbeat};
use crate::supervise::{catch_panic, fail_point};

/// Sends heartbeats whenever this server leads; returns only when Raft is gone.
pub(super) async fn send(peers: Arc<Peers>, keys: Arc<Keys>, running: Running) -> Stopped {
    let mut server = running.raft.server_metrics();
    loop {
        let led = match server.wait_for(|m| m.state == ServerState::Leader).await {
            Ok(metrics) => leader_id_of(&metrics.vote),
            Err(_) => return Stopped::CoreGone,
        };
        let mut sender = HeartbeatSender::new(&peers, &keys, &running, led);
        if let Err(why) = sender.run().await {
            return why;
        }
    }
}

/// Sends the heartbeats of one leader during one term.
struct HeartbeatSender<'a> {
    peers: &'a Arc<Peers>,
    keys: &'a Keys,
    running: &'a Running,
    leader_id: LeaderId,
    plan: Heartbeats,
    asks: JoinSet<(ServerId, Option<Response>)>,
    /// When those that are not in sync are asked again.
    again: Option<Instant>,
}

impl<'a> HeartbeatSender<'a> {
    fn new(
        peers: &'a Arc<Peers>,
        keys: &'a Keys,
        running: &'a Running,
        leader_id: LeaderId,
    ) -> HeartbeatSender<'a> {
        let (plan, asks) = (Heartbeats::default(), JoinSet::new());
        HeartbeatSender { peers, keys, running, leader_id, plan, asks, again: None }
    }

    /// Goes on until this server leads no longer.
    async fn run(&mut self) -> Result<(), Stopped> {
        let mut server = self.running.raft.server_metrics();
        let mut settings = self.peers.ctx.watch_settings();
        let mut leaving = self.peers.ctx.leaving.subscribe();
        self.set_peers(&server.borrow_and_update());
        let mut due = pin!(sleep_until(Instant::now()));
        loop {
            tokio::select! {
                _ = leaving.changed() => due.as_mut().reset(Instant::now()),
                () = &mut due => {
                    fail_point("heartbeat");
                    if *self.peers.ctx.leaving.borrow() {
                        self.announce_leaving();
                        std::future::pending::<()>().await;
                    }
                    self.set_peers(&server.borrow_and_update());
                    let pace = self.send();
                    due.as_mut().reset(Instant::now() + pace);
                }
                () = sleep_until(self.again.unwrap_or_else(Instant::now)), if self.again.is_some() => {
                    self.again = None;
                    self.ask(Heartbeats::ask_again);
                }
                () = self.peers.new_peer.notified() => {
                    let new_peers = self.peers.take_new_peers();
                    self.set_peers(&server.borrow());
                    self.ask(|plan| plan.welcome(&new_peers));
                }
                Some(answer) = self.asks.join_next() => {
                    if let Ok((id, answer)) = answer {
                        self.take_answer(id, answer).await?;
                    }
                }
                changed = server.changed() => {
                    changed.map_err(|_| Stopped::CoreGone)?;
                    let metrics = server.borrow_and_update();
                    let leads = metrics.state == ServerState::Leader;
                    if !leads || leader_id_of(&metrics.vote) != self.leader_id {
                        return Ok(());
                    }
                    if self.set_peers(&metrics) {
                        due.as_mut().reset(Instant::now());
                    }
                }
                _ = settings.changed() => due.as_mut().reset(Instant::now()),
            }
        }
    }

    /// Takes over the servers of Raft's membership and of the list; whether there are others than before.
    fn set_peers(&mut self, metrics: &RaftServerMetrics<NodeId, EmptyNode>) -> bool {
        let membership = metrics.membership_config.membership();
        let mut ids: BTreeSet<ServerId> = membership.nodes().map(|(node, _)| node.server).collect();
        ids.extend(self.peers.ctx.others());
        ids.remove(&self.peers.ctx.me);
        // By these metrics, and not by another look at them: a writer that waits in between would wait
        // for this one, and the second look for the writer.
        let mut voting = voters(&self.peers.ctx.members());
        voting.extend(membership.voter_ids().map(|node| node.server));
        self.plan.set_peers(&ids, &voting)
    }

    /// One heartbeat to each peer that is due; after how long to look again.
    fn send(&mut self) -> Duration {
        let (peers, timers) = (self.peers, self.peers.ctx.settings().timers);
        let (now, is_handing_over) = (peers.ctx.now(), peers.ctx.is_handing_over());
        let pace = self.plan.pace(now, &timers, is_handing_over);
        let ends = self.running.log.ends();
        // Deposed, and about to hear of it.
        if !ends.follows(self.leader_id) {
            return pace.voters;
        }
        peers.ctx.record_announced(pace);
        let heartbeats = self.compose_each(&ends, pace);
        let bodies = heartbeats.map(|heartbeat| rpc::encode(&Request::Heartbeat(heartbeat)));
        let due = self.plan.send(now, pace, peers.ctx.reach(), is_handing_over);
        for (id, what, votes) in due {
            let (heartbeat, body) = (heartbeats[usize::from(votes)], &bodies[usize::from(votes)]);
            match (what, body) {
                (Heartbeat::Question, _) => _ = self.asks.spawn(ask(peers.clone(), id, heartbeat)),
                (Heartbeat::Notice, Some(body)) => {
                    peers.transport.send_one_way(id, body.clone(), pace.voters);
                }
                (Heartbeat::Notice, None) => {}
            }
        }
        pace.voters
    }

    /// A heartbeat between two of those that go to all.
    fn ask(&mut self, whom: impl FnOnce(&mut Heartbeats) -> Vec<ServerId>) {
        let ends = self.running.log.ends();
        if !ends.follows(self.leader_id) || *self.peers.ctx.leaving.borrow() {
            return;
        }
        // When the next one is due was said with the last; it is never later than this.
        let pace = self.plan.idle_pace(&self.peers.ctx.settings().timers);
        let heartbeats = self.compose_each(&ends, pace);
        for id in whom(&mut self.plan) {
            let heartbeat = heartbeats[usize::from(self.plan.votes(id))];
            self.asks.spawn(ask(self.peers.clone(), id, heartbeat));
        }
    }

    /// The one for those that do not vote, and the one for those that do.
    fn compose_each(&self, ends: &LogProgress, pace: Pace) -> [WireHeartbeat; 2] {
        [pace.followers, pace.voters].map(|next| self.compose(ends, next))
    }

    fn compose(&self, ends: &LogProgress, next: Duration) -> WireHeartbeat {
        let agreed = self.peers.ctx.views.borrow().agreed.clone();
        WireHeartbeat {
            cluster: self.running.epoch(),
            list_version: agreed.server_list.as_ref().map_or(0, |list| list.version),
            leader_id: self.leader_id,
            last_log_id: ends.last.as_ref().map(log_id_of),
            commit: ends.committed.as_ref().map(log_id_of),
            age: self.keys.current_age(),
            quorum: self.peers.ctx.has_quorum(),
            next_ms: millis(next).try_into().unwrap_or(u32::MAX),
        }
    }

    /// Tells all that no further heartbeat comes, so that they need not wait for one.
    fn announce_leaving(&self) {
        let heartbeat = self.compose(&self.running.log.ends(), Duration::ZERO);
        let Some(body) = rpc::encode(&Request::Heartbeat(heartbeat)) else { return };
        let limit = self.peers.ctx.settings().timers.heartbeat;
        for id in self.plan.peers() {
            self.peers.transport.send_one_way(id, body.clone(), limit);
        }
    }

    /// Takes an answer to a heartbeat, or the want of one.
    async fn take_answer(&mut self, id: ServerId, answer: Option<Response>) -> Result<(), Stopped> {
        let in_sync = match answer {
            Some(Response::Heartbeat { node, vote, in_sync }) if node.server == id => {
                self.peers.ctx.arrive((self.running.epoch(), self.leader_id), node);
                let follows = vote == (self.leader_id, true);
                if follows {
                    self.peers.ctx.acknowledge(node);
                }
                Some(follows && in_sync)
            }
            _ => None,
        };
        let (now, timers) = (self.peers.ctx.now(), self.peers.ctx.settings().timers);
        if self.plan.hear(id, in_sync, now) {
            let pause = self.plan.follow_up(&timers);
            self.again.get_or_insert_with(|| Instant::now() + pause);
        }
        // Its log is behind, or a higher term is known there: both are openraft's business.
        if in_sync == Some(false) && self.plan.nudges_raft(now, &timers) {
            self.running.raft.trigger().heartbeat().await.map_err(|_| Stopped::CoreGone)?;
        }
        Ok(())
    }
}

/// One heartbeat that asks for an answer, and what came of it.
async fn ask(
    peers: Arc<Peers>,
    id: ServerId,
    heartbeat: WireHeartbeat,
) -> (ServerId, Option<Response>) {
    let limit = peers.ctx.settings().timers.election_lower;
    // An answer that never comes would count as open for ever.
    let answer = catch_panic(async {
        fail_point("heartbeat-ask");
        peers.call(id, Request::Heartbeat(heartbeat), limit).await
    });
    (id, answer.await.ok().and_then(Result::ok))
}

/// Takes a heartbeat of `from`, and answers it.
///
/// # Errors
/// If no leader of that term could have sent it.
pub(super) fn take(
    (ctx, keys): (&Context, &Keys),
    running: &Running,
    from: ServerId,
    cluster_id: Option<ClusterId>,
    heartbeat: &WireHeartbeat,
) -> Result<Response, ErrorResponse> {
    // Only its own candidate becomes the leader of a term.
    if heartbeat.leader_id.node.server != from {
        return Err(ErrorResponse::Malformed);
    }
    let node = ctx.node();
    if heartbeat.cluster != ctx.cluster() || heartbeat.cluster != running.epoch() {
        return Ok(Response::Heartbeat { node, vote: Default::default(), in_sync: false });
    }
    let ends = running.log.ends();
    let follows = ends.follows(heartbeat.leader_id);
    let mut in_sync = false;
    if follows {
        let next = Duration::from_millis(heartbeat.next_ms.into()).min(MAX_PAUSE);
        if next.is_zero() {
            ctx.record_leadership_transfer()
        } else {
            ctx.record_heartbeat(heartbeat.quorum, next)
        }
        keys.record_age(cluster_id, heartbeat.age);
        ctx.hear_commit(heartbeat.leader_id, heartbeat.commit);
        let applied = ctx.views.borrow().applied;
        in_sync = ends.last.as_ref().map(log_id_of) == heartbeat.last_log_id
            && heartbeat.commit.is_none_or(|commit| applied >= commit.index);
        if in_sync && heartbeat.quorum {
            ctx.record_in_sync();
        }
    }
    let vote = ends.vote.map_or((LeaderId::default(), false), |v| (leader_id_of(&v), v.committed));
    Ok(Response::Heartbeat { node, vote, in_sync })
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::Mutex;

    use openraft::Vote;

    use super::*;
    use crate::core::config::Member;
    use crate::node::environment::{Environment, Reply, Service, SimulatedNetwork};
    use crate::node::fixture::{Fixture, CLUSTER};
    use crate::transport::peers::CallError;
    use crate::transport::{Body, LastSeen, LocalIdentity};

    const MS: Duration = Duration::from_millis(1);

    fn heartbeat(term: u64, node: u32, next_ms: u32) -> WireHeartbeat {
        let leader_id = LeaderId { term, node: NodeId::of(node) };
        WireHeartbeat {
            cluster: CLUSTER,
            list_version: 1,
            leader_id,
            last_log_id: None,
            commit: None,
            age: None,
            quorum: true,
            next_ms,
        }
    }

    fn answer(
        vote: (u64, u32, bool),
        in_sync: bool,
    ) -> Result<(LeaderId, bool, bool), ErrorResponse> {
        Ok((LeaderId { term: vote.0, node: NodeId::of(vote.1) }, vote.2, in_sync))
    }

    #[tokio::test]
    async fn only_a_heartbeat_of_the_leader_that_is_followed_counts() {
        let fixture = Fixture::new();
        let shared = &fixture.shared;
        let mut running = fixture.running(Some(Vote::new_committed(5, NodeId::of(2)))).await;
        let take = |running: &Running, from: u32, heartbeat: WireHeartbeat| match take(
            (&shared.ctx, &shared.keys),
            running,
            ServerId(from),
            None,
            &heartbeat,
        )? {
            Response::Heartbeat { vote: (leader_id, committed), in_sync, .. } => {
                Ok((leader_id, committed, in_sync))
            }
            other => panic!("{other:?}"),
        };
        let follows = answer((5, 2, true), true);
        // In another's name, of an older term, of one that this server did not hear of by Raft.
        assert_eq!(take(&running, 3, heartbeat(5, 2, 100)), Err(ErrorResponse::Malformed));
        assert_eq!(take(&running, 3, heartbeat(4, 3, 100)), answer((5, 2, true), false));
        assert_eq!(take(&running, 3, heartbeat(6, 3, 100)), answer((5, 2, true), false));
        assert_eq!((shared.ctx.contact(), shared.ctx.hears_leader()), (None, false));

        assert_eq!(take(&running, 2, heartbeat(5, 2, 250)), follows);
        assert!(shared.ctx.hears_leader());
        assert_eq!(shared.ctx.reach(), MS * 550);

        // Its last heartbeat says that no other comes.
        assert_eq!(take(&running, 2, heartbeat(5, 2, 0)), follows);
        assert!(!shared.ctx.hears_leader());

        // A server whose vote another has got since follows nobody, whoever it heard a moment ago.
        assert_eq!(take(&running, 2, heartbeat(5, 2, 100)), follows);
        let _ = running.raft.shutdown().await;
        running = fixture.running(Some(Vote::new(6, NodeId::of(3)))).await;
        assert!(shared.ctx.hears_leader());
        assert_eq!(take(&running, 2, heartbeat(5, 2, 100)), answer((6, 3, false), false));
        let _ = running.raft.shutdown().await;
    }

    /// Mail that reaches nobody; to whom each heartbeat was, and in how many milliseconds it said that the
    /// next one is due.
    #[derive(Default)]
    struct Announced(Mutex<Vec<(u32, u32)>>);

    impl SimulatedNetwork for Announced {
        fn open(&self, _: &LocalIdentity, _: &LastSeen) {}

        fn set_members(&self, _: &[Member]) {}

        fn request(&self, to: ServerId, body: Body, _: Duration) -> Reply<Result<Body, CallError>> {
            if let Ok(Request::Heartbeat(heartbeat)) = rpc::decode_request(&body) {
                self.0.lock().unwrap().push((to.0, heartbeat.next_ms));
            }
            Box::pin(ready(Err(CallError::TimedOut)))
        }

        fn send_one_way(&self, _: ServerId, _: Body, _: Duration) {}

        fn ask_unconnected(
            &self,
            _: &Member,
            _: Body,
            _: Duration,
        ) -> Reply<Result<Body, CallError>> {
            Box::pin(ready(Err(CallError::UnknownPeer)))
        }

        fn listen(&self, _: Arc<dyn Service>) -> Box<dyn Send + Sync> {
            Box::new(())
        }
    }

    #[tokio::test]
    async fn a_heartbeat_in_between_announces_no_earlier_one_and_a_leader_that_leaves_asks_nobody()
    {
        let network = Arc::new(Announced::default());
        let fixture = Fixture::within(Environment {
            network: Some(network.clone()),
            ..Environment::default()
        });
        let (shared, leader_id) =
            (&fixture.shared, LeaderId { term: 5, node: fixture.shared.ctx.node() });
        let running = fixture.running(Some(Vote::new_committed(5, shared.ctx.node()))).await;
        let mut sender = HeartbeatSender::new(&shared.peers, &shared.keys, &running, leader_id);
        let peers = BTreeSet::from([ServerId(12), ServerId(13)]);
        sender.plan.set_peers(&peers, &peers);
        async fn asked(sender: &mut HeartbeatSender<'_>) -> usize {
            sender.ask(Heartbeats::ask_again);
            let asked = sender.asks.len();
            while let Some(answer) = sender.asks.join_next().await {
                let (id, answer) = answer.unwrap();
                sender.take_answer(id, answer).await.unwrap();
            }
            asked
        }
        assert_eq!(asked(&mut sender).await, 2);
        let pause = sender.again.map(|at| at > Instant::now());
        assert_eq!(pause, Some(true), "and again a moment later");
        // The next heartbeat to all may still be as far away as in an idle cluster.
        let said: Vec<(u32, u32)> = network.0.lock().unwrap().drain(..).collect();
        assert_eq!(said, [(12, 400), (13, 400)]);

        // One that leaves asks nobody any more, and one that was deposed must not.
        shared.ctx.leaving.send_replace(true);
        assert_eq!(asked(&mut sender).await, 0);
        shared.ctx.leaving.send_replace(false);
        sender.leader_id.term = 4;
        assert_eq!(asked(&mut sender).await, 0);
        let _ = running.raft.shutdown().await;
    }

    /// Whoever leads waits for the answer of a server as long as it told that one to wait for the next
    /// question.
    #[tokio::test]
    async fn those_that_do_not_vote_are_told_of_another_pause_and_waited_for_as_long() {
        let network = Arc::new(Announced::default());
        let fixture = Fixture::within(Environment {
            network: Some(network.clone()),
            ..Environment::default()
        });
        let ctx = &fixture.shared.ctx;
        let member = |id| Member { id: ServerId(id), ..ctx.members()[0].clone() };
        ctx.set_members(&(1..=207).map(member).collect::<Vec<_>>());
        let leader_id = LeaderId { term: 5, node: ctx.node() };
        let running = fixture.running(Some(Vote::new_committed(5, ctx.node()))).await;
        let mut sender =
            HeartbeatSender::new(&fixture.shared.peers, &fixture.shared.keys, &running, leader_id);
        let others = (2..=207).map(ServerId).collect();
        sender.plan.set_peers(&others, &ctx.voting_servers());
        let asked = async |sender: &mut HeartbeatSender<'_>| {
            while let Some(answer) = sender.asks.join_next().await {
                let (id, _) = answer.unwrap();
                sender.plan.hear(id, Some(true), ctx.now());
            }
            std::mem::take(&mut *network.0.lock().unwrap())
        };
        // 200 that do not vote, 8 ms each, and half a turn.
        assert_eq!(sender.send(), MS * 100);
        let said = asked(&mut sender).await;
        assert_eq!(said.len(), 206);
        let of = |id: u32, (voter, other)| if id <= 7 { voter } else { other };
        assert!(said.iter().all(|(id, next)| *next == of(*id, (100, 1650))), "{said:?}");
        let reach = ctx.reach_by_server();
        assert!((2..=207).all(|id| reach(ServerId(id)) == MS * of(id, (400, 1950))));
        // All are in sync, and the cluster is idle.
        assert_eq!(sender.send(), MS * 400);
        let said = asked(&mut sender).await;
        assert!(said.iter().all(|(id, _)| *id <= 7), "the others are not due: {said:?}");
        assert_eq!(ctx.reach(), MS * 700);
        assert_eq!(ctx.reach_by_server()(ServerId(207)), MS * 2100);
        let _ = running.raft.shutdown().await;
    }

    #[tokio::test]
    async fn a_server_that_lacks_something_is_not_level() {
        let fixture = Fixture::new();
        let running = fixture.running(Some(Vote::new_committed(5, NodeId::of(2)))).await;
        let ahead = |index| {
            Some(crate::core::log_id::LogId { leader_id: heartbeat(5, 2, 0).leader_id, index })
        };
        let in_sync = |heartbeat: WireHeartbeat| match take(
            (&fixture.shared.ctx, &fixture.shared.keys),
            &running,
            ServerId(2),
            None,
            &heartbeat,
        ) {
            Ok(Response::Heartbeat { in_sync, .. }) => in_sync,
            other => panic!("{other:?}"),
        };
        assert!(in_sync(heartbeat(5, 2, 100)));
        assert!(!in_sync(WireHeartbeat { last_log_id: ahead(7), ..heartbeat(5, 2, 100) }));
        assert!(!in_sync(WireHeartbeat { commit: ahead(7), ..heartbeat(5, 2, 100) }));
        // Behind or not, it has a leader.
        assert!(fixture.shared.ctx.hears_leader());
        let _ = running.raft.shutdown().await;
    }
}
