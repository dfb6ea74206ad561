//! Answers other servers.
//!
//! The transport has verified the sender's certificate and asked [`Service::admit`] whether its
//! server id is a member's before a byte of a body gets here. Invariants: what is Raft's gets there only
//! if it was sent to this very node, in the cluster that it takes part in.
//!
//! Who is answered, and when, is in the table of [`crate::rpc`].

use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::clock::founding_clock;
use super::counters::ReloadOutcome;
use super::keys::{Installed, Keys};
use super::peer_client::status_of;
use super::rejected_keys::Place;
use super::running::Running;
use super::shared::{LifecycleRequest, Shared};
use super::{bounds, forward, founding, heartbeat, origin, part, server_list, status};
use crate::consensus::{leader_id_of, log_id_of, vote_answer, VOTE_LEASE};
use crate::core::agreed::Record;
use crate::core::agreement::founding::{FoundedCluster, Prepare, Promise, Refusal as Refused};
use crate::core::key_ring::{ClusterId, Generation};
use crate::core::log_id::LeaderId;
use crate::core::pre_vote::Status;
use crate::core::server_id::ServerId;
use crate::core::stek::Fingerprint;
use crate::core::text::readable;
use crate::core::vote::{may_grant, Candidate, VoteRefusal, Voter};
use crate::core::witness::{Deed, LogDeed};
use crate::log_sink::Level;
use crate::rpc::{
    self, AppendAnswer, ErrorResponse, Malformed, Recipient, Request, Response, WireAppend,
    WireHeartbeat, WireSnapshot, WireVote, MAX_SESSIONS_MESSAGE,
};
use crate::supervise::{catch_panic, fail_point, lock};
use crate::transport::frame::{Hello, Role};
use crate::transport::listener::{Answer, Caller, Refusal, Service};
use crate::transport::Body;

/// The longest that an asker may have an answer held back until a key is installed.
const MAX_AWAIT: Duration = Duration::from_secs(10);

/// How long a reload may keep a tool waiting: its files on a slow disk, and the group's agreement on a
/// list that changed.
pub const RELOAD_LIMIT: Duration = Duration::from_secs(30);

/// How long a server may take to show that it is still at its listed address.
const DOUBT_LIMIT: Duration = Duration::from_secs(1);

/// Answers in the name of one server.
pub(super) struct RpcServer(pub Arc<Shared>);

impl Service for RpcServer {
    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.role == Role::Member {
            if hello.sender == self.0.ctx.me {
                return Err(Refusal::OwnId);
            }
            // Two servers under one id would answer for each other; the one at the listed address
            // is taken for the right one.
            let answering = self.0.peers.heard.at_address(hello.sender);
            if answering.is_some_and(|incarnation| incarnation != hello.incarnation) {
                self.make_sure(hello.sender);
                return Err(Refusal::DuplicateId);
            }
        }
        if self.0.ctx.members().iter().any(|m| m.id == hello.sender) {
            Ok(())
        } else {
            Err(Refusal::NotAMember)
        }
    }

    fn take_one_way(&self, from: &Caller, body: Body) -> bool {
        if rpc::is_of_sessions(&body) {
            return self.sessions(from, body);
        }
        // A later version may have kinds that this one has not: there is nothing wrong with those.
        if !rpc::is_known(&body) {
            return false;
        }
        match self.decode(from, body) {
            Some(request @ Request::Heartbeat(_)) if !may_ask(from.role, &request) => false,
            Some(Request::Heartbeat(heartbeat)) => {
                // One that cannot be taken shows in the answer to the next that asks for one.
                let _ = self.heartbeat(from, &heartbeat);
                true
            }
            _ => false,
        }
    }

    fn serve(self: Arc<Self>, from: Caller, body: Body) -> Answer {
        Box::pin(async move {
            fail_point("rpc_server");
            let request = self.decode(&from, body)?;
            let answer = self.answer(&from, request).await;
            rpc::encode(&answer.unwrap_or_else(Response::ErrorResponse))
        })
    }
}

impl RpcServer {
    /// Asks the server at the listed address whether it is still there, because another one has shown
    /// up under its id. After a power cut nobody closed this server's connection to it, and what
    /// knocks is that very server, started anew: the question finds the connection dead, and the next
    /// knock is heard.
    fn make_sure(&self, id: ServerId) {
        if !lock(&self.0.peers.doubted).insert(id) {
            // It is being asked.
            return;
        }
        let shared = self.0.clone();
        tokio::spawn(async move {
            // Whatever happens, it may be asked again later.
            let _ = catch_panic(async {
                fail_point("doubt");
                status_of(&shared.peers, id, DOUBT_LIMIT).await
            })
            .await;
            lock(&shared.peers.doubted).remove(&id);
        });
    }

    fn decode(&self, from: &Caller, body: Body) -> Option<Request> {
        let decoded = rpc::decode_request(&body);
        // The keys in it stand in their cells now; the frame need not outlive its decoding.
        drop(body);
        let tell = |e: Malformed| {
            if let Malformed::State(refusal) = &e {
                self.0.rejected_keys.record(Place::Apply, refusal.clone());
            }
            let line = format!("server {} sent a message that is malformed: {e}", from.id);
            self.0.ctx.log.limited(Level::Warning, "malformed message", line);
        };
        decoded.map_err(tell).ok()
    }

    async fn answer(&self, from: &Caller, request: Request) -> Result<Response, ErrorResponse> {
        let shared = &self.0;
        if !may_ask(from.role, &request) {
            // No tool changes the list: an operator does by the files of the servers.
            if matches!(request, Request::ChangeMembership { .. }) {
                let line = format!("refused a server list from {}", origin::caller(from));
                shared.ctx.log.limited(Level::Warning, "list of a tool", line);
            }
            return Err(ErrorResponse::Malformed);
        }
        match request {
            Request::Status(status) => Ok(Response::Status(self.meet(from, status))),
            Request::Prepare(prepare) => Ok(Response::Promise(self.prepare(from, prepare).await)),
            Request::Found(found) => Ok(Response::Found(self.begin(from, found).await)),
            Request::Revoked => {
                let held = shared.ctx.holding().record.agreed.ring;
                Ok(Response::Revoked(held.revoked_keys().to_vec()))
            }
            Request::TimeoutNow => {
                let leader = shared
                    .ctx
                    .running()
                    .and_then(|running| running.raft.server_metrics().borrow().current_leader);
                if leader.map(|node| node.server) != Some(from.id) {
                    return Err(ErrorResponse::Malformed);
                }
                let line =
                    format!("to lead at once: asked by {}, which leaves", origin::caller(from));
                shared.ctx.log.limited(Level::Note, "leadership transfer", line);
                shared.ctx.timeout_now.notify_one();
                Ok(Response::TimeoutNow)
            }
            // A tool need not know who leads; a member does, and must not be sent on.
            Request::AdminCommand { command, origin } if from.role == Role::Tool => {
                let origin = origin::tool(from, &origin);
                Ok(Response::AdminCommand(forward::admin_command(shared, command, origin).await))
            }
            Request::Reload { origin } => {
                Ok(Response::Reloaded(self.reload(origin::tool(from, &origin)).await))
            }
            Request::Recover { .. } if from.role != Role::Tool => Err(ErrorResponse::Malformed),
            Request::Recover { survivors, origin } => {
                let origin = origin::tool(from, &origin);
                let founder = founding::Founder::of(shared);
                Ok(Response::Recovered(founding::recover(&founder, survivors, &origin).await))
            }
            Request::AdminCommand { command, origin } => {
                let origin = origin::passed_on(from, &origin);
                Ok(Response::AdminCommand(
                    forward::admin_command_here(shared, command, origin).await,
                ))
            }
            Request::ServerStatus => Ok(Response::ServerStatus(Box::new(status::status(shared)))),
            Request::ChangeMembership { replaces, members } => Ok(Response::MembershipChanged(
                server_list::change_membership_for(&shared.peers, from, replaces, members).await,
            )),
            Request::ListInFile(list) => {
                Ok(Response::ListInFile(shared.peers.list_file.holds(list).await))
            }
            Request::AwaitInstalled { generation, key, limit_ms } => {
                let limit = Duration::from_millis(limit_ms.into()).min(MAX_AWAIT);
                let newest = await_installed(&shared.keys, (generation, key), limit).await;
                Ok(Response::Installed { newest, incarnation: shared.peers.sender.incarnation() })
            }
            Request::Vote(vote) => self.vote(from, vote).await,
            Request::Append(append) => {
                self.speaks_for_itself(from, append.vote.0, 0)?;
                let running = self.follower(append.to)?;
                bounds::admit_append(&shared.peers, &running, from.id, &append)?;
                self.append(&running, from, append).await
            }
            Request::Snapshot(snapshot) => {
                let index = snapshot.last.map_or(0, |end| end.index);
                self.speaks_for_itself(from, snapshot.vote.0, index)?;
                let running = self.follower(snapshot.to)?;
                bounds::admit_snapshot(&shared.peers, &running, from.id, &snapshot)?;
                self.snapshot(&running, snapshot).await
            }
            Request::Heartbeat(heartbeat) => self.heartbeat(from, &heartbeat),
            // They come one-way only.
            Request::Sessions(_) => Err(ErrorResponse::Malformed),
        }
    }

    /// Takes what another server of this cluster says of its sessions, if they are shared here; a
    /// flood of it, or more of it than any server sends at once, is not even decoded.
    fn sessions(&self, from: &Caller, body: Body) -> bool {
        let Some(exchange) = &self.0.sessions else { return false };
        let ours = self.0.ctx.cluster_id();
        let is_member = from.role == Role::Member && ours.is_some();
        if !is_member || ours != ClusterId::from_bytes(from.cluster_id) {
            return false;
        }
        if body.len() > MAX_SESSIONS_MESSAGE {
            return false;
        }
        if !exchange.may_take(from.id) {
            return true;
        }
        match self.decode(from, body) {
            Some(Request::Sessions(sessions)) => {
                exchange.receive(from.id, sessions);
                true
            }
            _ => false,
        }
    }

    /// Has the files read again.
    async fn reload(&self, origin: String) -> ReloadOutcome {
        // Called outside the lock.
        let reloader = lock(&self.0.node_counters.reloader).clone();
        let Some(reloader) = reloader else { return Err("this server reads no files".to_owned()) };
        match timeout(RELOAD_LIMIT, reloader(origin)).await {
            Ok(Ok(outcome)) => {
                outcome.map(|words| readable(&words)).map_err(|words| readable(&words))
            }
            Ok(Err(_)) => Err("this server is about to end".to_owned()),
            Err(_) => Err(format!(
                "not done within {} s; its diags.log says what came of it",
                RELOAD_LIMIT.as_secs()
            )),
        }
    }

    /// Takes what another server says of itself; what this one says to it. That it lives anew counts
    /// only when it is asked at its listed address: whoever has a certificate that all share can
    /// say it in the name of another one.
    fn meet(&self, from: &Caller, status: Status) -> Status {
        let shared = &self.0;
        let ours = shared.ctx.status_for(from.id);
        if from.role == Role::Member {
            if status.quorum && status.cluster != ours.cluster {
                shared.peers.record_other_cluster_peer(from.id);
            }
            if !status.quorum {
                shared.peers.record_new_peer(from.id);
            }
            if shared.peers.heard.at_address(from.id) == Some(from.incarnation) {
                shared.peers.record_answer(from.id, status);
            }
        }
        ours
    }

    /// Promises that this node has left all that was founded before, if it may.
    async fn prepare(
        &self,
        from: &Caller,
        prepare: Prepare,
    ) -> Result<Box<Promise<Record>>, Refused> {
        let ctx = &self.0.ctx;
        let hears_leader = ctx.in_majority();
        let own = ctx.kept();
        let is_its_own = prepare.epoch.founder.server == from.id;
        // Who is in no cluster has no Raft to stop.
        let here = part::promise(ctx, &prepare, own, hears_leader || !is_its_own, false)?;
        if let Some(promise) = here {
            return Ok(Box::new(promise));
        }
        let (reply, answer) = oneshot::channel();
        let busy = Refused::HearsLeader;
        self.0.asked.try_send(LifecycleRequest::Prepare(prepare, reply)).map_err(|_| busy)?;
        answer.await.unwrap_or(Err(busy)).map(Box::new)
    }

    /// Begins in a cluster that was founded, if this node is to; whether it did.
    async fn begin(&self, from: &Caller, found: Box<FoundedCluster<Record>>) -> bool {
        let is_its_own = found.epoch.founder.server == from.id;
        if !is_its_own || !self.0.ctx.accept(&found) {
            return false;
        }
        let (reply, answer) = oneshot::channel();
        let is_asked = self.0.asked.send(LifecycleRequest::Found(found, reply)).await.is_ok();
        is_asked && answer.await.unwrap_or(false)
    }

    fn heartbeat(
        &self,
        from: &Caller,
        heartbeat: &WireHeartbeat,
    ) -> Result<Response, ErrorResponse> {
        let (ctx, keys) = (&self.0.ctx, &self.0.keys);
        if heartbeat.quorum && heartbeat.cluster != ctx.cluster() {
            self.0.peers.record_other_cluster_peer(from.id);
        }
        let Some(running) = ctx.running() else {
            let (vote, in_sync) = Default::default();
            return Ok(Response::Heartbeat { node: ctx.node(), vote, in_sync });
        };
        let cluster_id = ClusterId::from_bytes(from.cluster_id);
        heartbeat::take((ctx, keys), &running, from.id, cluster_id, heartbeat)
    }

    /// Raft, where a leader sends its log to `to`: a node that is in no cluster joins that one, if it can
    /// believe in it. What nobody could have founded would keep this server out of all that can be.
    fn follower(&self, to: Recipient) -> Result<Running, ErrorResponse> {
        let ctx = &self.0.ctx;
        let running = ctx.running().ok_or(ErrorResponse::Starting)?;
        let wall = founding_clock();
        let has_joined = ctx.part(|part| {
            let is_meant = to.node == part.me && to.cluster.is_plausible(part.known(), wall);
            is_meant && part.join(to.cluster)
        });
        if has_joined {
            ctx.tell(Deed::Joins(to.cluster));
            ctx.enter();
            let _ = running.cluster.set(to.cluster);
        }
        self.recipient(to)
    }

    /// Raft, if what was sent to `to` is for this node.
    fn recipient(&self, to: Recipient) -> Result<Running, ErrorResponse> {
        let ctx = &self.0.ctx;
        let running = ctx.running().ok_or(ErrorResponse::Starting)?;
        let is_for_me = ctx.part(|part| part.takes(to.node, to.cluster));
        // Raft of a cluster that was left meanwhile is not this one's.
        if is_for_me && running.epoch() == to.cluster {
            Ok(running)
        } else {
            Err(ErrorResponse::OtherNode)
        }
    }

    /// Whether a term is the sender's own, since only its own candidate campaigns and leads in it,
    /// and neither it nor the end of the sender's log is out of this server's sight.
    fn speaks_for_itself(
        &self,
        from: &Caller,
        leader_id: LeaderId,
        index: u64,
    ) -> Result<(), ErrorResponse> {
        if leader_id.node.server == from.id
            && self.0.peers.finds_plausible(from.id, leader_id.term, index)
        {
            Ok(())
        } else {
            Err(ErrorResponse::Malformed)
        }
    }

    /// Gives this server's vote, if it may; if not, the log tells the one reason.
    async fn vote(&self, from: &Caller, vote: WireVote) -> Result<Response, ErrorResponse> {
        let shared = &self.0;
        let running = self.recipient(vote.to);
        self.wait_out_rafts_lease().await;
        let ends = running.as_ref().map(|running| running.log.ends()).unwrap_or_default();
        let voter = Voter {
            me: shared.ctx.node(),
            is_running: !matches!(running, Err(ErrorResponse::Starting)),
            vote: ends.vote.map(|vote| (leader_id_of(&vote), vote.committed)),
            last_log_id: ends.last.as_ref().map(log_id_of),
            hears_leader: shared.ctx.hears_leader(),
            leads: running.as_ref().is_ok_and(|running| self.leads(running))
                && !*shared.ctx.leaving.borrow(),
        };
        let candidate = Candidate {
            sender: from.id,
            id: vote.candidate,
            last_log_id: vote.last_log_id,
            is_for_me: running.is_ok(),
            is_plausible: running.is_err()
                || vote.candidate.node.server != from.id
                || shared.peers.finds_plausible(from.id, vote.candidate.term, 0),
        };
        let may = may_grant(&voter, &candidate);
        if let Err(why) = may {
            let (id, term) = (from.id, vote.candidate.term);
            shared.ctx.log.debug(format!("no vote for server {id} in term {term}: {why}"));
        }
        let running = running?;
        match may {
            // Before Raft has it: what this server asks of Raft from now on comes behind that.
            Ok(()) => shared.ctx.record_supported(),
            Err(why) if why.is_rafts() => {}
            Err(VoteRefusal::HearsLeader(_) | VoteRefusal::Leads) => {
                let vote = voter.vote.unwrap_or_default();
                return Ok(Response::Vote { vote, granted: false, last_log_id: voter.last_log_id });
            }
            Err(_) => return Err(ErrorResponse::Malformed),
        }
        let answer =
            running.raft.vote(vote.into_raft()).await.map_err(|_| ErrorResponse::Stopped)?;
        if answer.vote_granted {
            let cluster = running.epoch();
            shared.ctx.tell(Deed::Log(cluster, LogDeed::Grants(candidate.id)));
        }
        Ok(vote_answer(&answer))
    }

    /// Whether this server leads with a majority, or has only just won: it is given the lower election
    /// bound to be acknowledged, since another candidate's request may be right behind.
    fn leads(&self, running: &Running) -> bool {
        let ctx = &self.0.ctx;
        let is_leader = running.raft.server_metrics().borrow().state == ServerState::Leader;
        let lower = ctx.settings().timers.election_lower;
        let has_just_won = running.log.ends().voted.is_some_and(|since| since.elapsed() < lower);
        ctx.leads_majority(running) || (is_leader && has_just_won)
    }

    /// For a moment after an append openraft votes for nobody, by a lease that it has of its own. Where
    /// this server knows that there is no leader any more the candidate waits that out: it would
    /// take a refusal for an election that is lost.
    async fn wait_out_rafts_lease(&self) {
        let ctx = &self.0.ctx;
        let over = ctx.lease().appended().map(|at| at + VOTE_LEASE);
        if let Some(over) = over.filter(|over| !ctx.hears_leader() && *over > ctx.now()) {
            sleep(over.since(ctx.now())).await;
        }
    }

    async fn append(
        &self,
        running: &Running,
        from: &Caller,
        append: WireAppend,
    ) -> Result<Response, ErrorResponse> {
        let (leader_id, committed) = append.vote;
        let commit = append.commit;
        let (age, quorum) = (append.age, append.quorum);
        let answer = running
            .raft
            .append_entries(append.into_raft())
            .await
            .map_err(|_| ErrorResponse::Stopped)?;
        let answer = AppendAnswer::from_raft(&answer);
        if committed && !matches!(answer, AppendAnswer::HigherVote(..)) {
            self.0.ctx.record_append(quorum);
            self.0.keys.record_age(ClusterId::from_bytes(from.cluster_id), age);
            self.0.ctx.hear_commit(leader_id, commit);
        }
        Ok(Response::Append(answer))
    }

    async fn snapshot(
        &self,
        running: &Running,
        snapshot: WireSnapshot,
    ) -> Result<Response, ErrorResponse> {
        let (vote, snapshot) = snapshot.into_raft(self.0.ctx.now());
        let answer = running
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|_| ErrorResponse::Stopped)?;
        if answer.vote == vote {
            self.0.ctx.record_append(true);
        }
        let vote = (leader_id_of(&answer.vote), answer.vote.committed);
        Ok(Response::Snapshot { vote })
    }
}

/// Whether one of this role may ask this at all; see the table of [`crate::rpc`].
fn may_ask(role: Role, request: &Request) -> bool {
    role == Role::Member || request.is_for_tools()
}

/// Waits until the host has installed this key, or a newer one, `limit` at most; the newest that it has.
pub(super) async fn await_installed(
    keys: &Keys,
    (generation, key): (Generation, Fingerprint),
    limit: Duration,
) -> Generation {
    let mut installed = keys.installed.subscribe();
    // A newer one counts only if it is of the present ring: that of another group may have got further.
    let has_it = |installed: &Installed| {
        installed.key == Some(key) || keys.newest_of(installed) > generation
    };
    let _ = timeout(limit, installed.wait_for(has_it)).await;
    let newest = *installed.borrow();
    if newest.key == Some(key) {
        generation
    } else {
        keys.newest_of(&newest)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use openraft::Vote;
    use tokio::sync::Notify;

    use super::*;
    use crate::consensus::log_store::{LogStore, Persist};
    use crate::core::agreed::Command;
    use crate::core::agreement::epoch::Epoch;
    use crate::core::agreement::ranked_record::{Rank, RankedRecord};
    use crate::core::key_ring::Command as KeyCommand;
    use crate::core::log_id::LogId;
    use crate::core::node_id::NodeId;
    use crate::core::server_id::ServerId;
    use crate::node::fixture::{stek, Fixture, CLUSTER};
    use crate::node::KeySet;
    use crate::rpc::tests::{self, one_of_each};
    use crate::rpc::{WireEntry, WirePayload};
    use crate::supervise::planted;
    use crate::transport::Versions;

    #[tokio::test]
    async fn a_question_that_comes_before_the_key_is_answered_when_that_is_installed() {
        const LIMIT: Duration = Duration::from_secs(60);
        let shared = Fixture::new().shared;
        let key = stek(1).fingerprint();
        let asked = {
            let shared = shared.clone();
            let question = (Generation(1), key);
            tokio::spawn(async move { await_installed(&shared.keys, question, LIMIT).await })
        };
        // The question waits before anything is known here.
        tokio::task::yield_now().await;
        let begun = Instant::now();
        let set = KeySet { newest: Generation(1), newest_key: Some(key), ..KeySet::own(stek(1)) };
        shared.keys.record_installed(&set);
        assert_eq!(asked.await.unwrap(), Generation(1));
        assert!(begun.elapsed() < LIMIT, "answered only because the limit ran out");
    }

    #[tokio::test]
    async fn another_key_of_the_same_generation_is_not_the_one_that_was_asked_about() {
        let shared = Fixture::new().shared;
        let other = Some(stek(8).fingerprint());
        let set = KeySet { newest: Generation(7), newest_key: other, ..KeySet::own(stek(1)) };
        shared.keys.record_installed(&set);
        let limit = Duration::from_millis(10);
        // Nor is a newer one that the present ring does not have.
        for generation in [7, 2] {
            let question = (Generation(generation), stek(9).fingerprint());
            assert_eq!(await_installed(&shared.keys, question, limit).await, Generation(0));
        }
    }

    fn caller(role: Role, cluster_id: [u8; 16]) -> Caller {
        let (id, addr) = (ServerId(2), ([127, 0, 0, 1], 1).into());
        Caller { id, role, incarnation: 1, cluster_id, version: 1, addr, names: "/CN=two".into() }
    }

    #[tokio::test]
    async fn a_one_way_message_of_a_later_version_is_no_fault() {
        let fixture = Fixture::new();
        let rpc_server = RpcServer(fixture.shared.clone());
        let member = caller(Role::Member, [0; 16]);
        let of = |bytes: &[u8]| Body::new(bytes.to_vec());
        let later = one_of_each().len() as u8;
        assert!(!rpc_server.take_one_way(&member, of(&[later, 1, 2, 3])));
        assert_eq!(fixture.count_lines("malformed"), 0);
        // A known kind with nothing in it is one.
        assert!(!rpc_server.take_one_way(&member, of(&[9])));
        assert_eq!(fixture.count_lines("malformed"), 1);
    }

    #[tokio::test]
    async fn a_tool_is_answered_what_tools_ask_and_nothing_else() {
        let fixture = Fixture::new();
        let shared = fixture.shared.clone();
        let running = fixture.running(Some(Vote::new_committed(5, NodeId::of(2)))).await;
        shared.ctx.set_running(Some(running.clone()));
        let rpc_server = RpcServer(shared.clone());
        let tool = caller(Role::Tool, [0; 16]);
        let others = one_of_each().into_iter().filter(|request| !request.is_for_tools());
        for request in others {
            let words = format!("{request:?}");
            let answer = rpc_server.answer(&tool, request).await;
            assert_eq!(answer.err(), Some(ErrorResponse::Malformed), "{words}");
        }
        assert_eq!(running.log.vote(), Some(Vote::new_committed(5, NodeId::of(2))));
        for request in one_of_each() {
            let body = rpc::encode(&request).unwrap();
            assert!(!rpc_server.take_one_way(&tool, body), "{request:?}");
        }
        let status = rpc_server.answer(&tool, Request::Status(Status::default())).await;
        assert!(matches!(status, Ok(Response::Status(_))), "{status:?}");
        assert!(
            shared.peers.answers_within(Duration::MAX).is_empty(),
            "it is no member's own word"
        );

        // The leader itself is heard, and nobody in its name.
        let mut server = running.raft.server_metrics();
        let follows = server.wait_for(|m| m.current_leader == Some(NodeId::of(2)));
        timeout(Duration::from_secs(30), follows).await.unwrap().unwrap();
        assert!(rpc_server.answer(&tool, Request::TimeoutNow).await.is_err());
        let taken = rpc_server.answer(&caller(Role::Member, [0; 16]), Request::TimeoutNow).await;
        assert!(matches!(taken, Ok(Response::TimeoutNow)), "{taken:?}");
        let other = Caller { id: ServerId(3), ..caller(Role::Member, [0; 16]) };
        assert!(rpc_server.answer(&other, Request::TimeoutNow).await.is_err());
        shared.ctx.stop_raft().await;
    }

    /// The states of which the table in [`crate::rpc`] speaks.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum State {
        Starting,
        TheNode,
        AnotherNode,
        AnotherCluster,
    }

    /// One of Raft's requests, sent to this node or to another one.
    fn sent_to(request: &mut Request, to: Recipient) {
        match request {
            Request::Vote(vote) => vote.to = to,
            Request::Append(append) => append.to = to,
            Request::Snapshot(snapshot) => snapshot.to = to,
            Request::Prepare(prepare) => prepare.to = to.node,
            _ => {}
        }
    }

    #[tokio::test]
    async fn each_request_of_a_member_is_answered_in_the_states_of_the_table() {
        use State::{AnotherCluster, AnotherNode, Starting, TheNode};
        let (table, count) = (tests::table(), one_of_each().len());
        let states = [Starting, TheNode, AnotherNode, AnotherCluster];
        for (number, state) in (0..count).flat_map(|n| states.map(|state| (n, state))) {
            let fixture = Fixture::new();
            let shared = fixture.shared.clone();
            let mut request = one_of_each().swap_remove(number);
            let words = table[tests::kind(&request)][1];
            if state != Starting {
                let running = fixture.running(Some(Vote::new_committed(5, NodeId::of(2)))).await;
                let mut server = running.raft.server_metrics();
                let follows = server.wait_for(|m| m.current_leader == Some(NodeId::of(2)));
                timeout(Duration::from_secs(30), follows).await.unwrap().unwrap();
                shared.ctx.set_running(Some(running));
            }
            let mut to = Recipient { node: shared.ctx.node(), cluster: CLUSTER };
            match state {
                AnotherNode => to.node.incarnation.0 += 1,
                AnotherCluster => to.cluster.counter += 1,
                Starting | TheNode => {}
            }
            sent_to(&mut request, to);
            let rpc_server = RpcServer(shared.clone());
            let refused = rpc_server.answer(&caller(Role::Member, [0; 16]), request).await.err();
            let expected = match (words.split([';', ',']).next(), state) {
                (Some("always"), _) => None,
                (Some("by the very node that it names"), _) => None,
                (Some("never" | "never to members"), _) => Some(ErrorResponse::Malformed),
                (Some("while Raft runs"), Starting) => Some(ErrorResponse::Malformed),
                (Some("while Raft runs"), _) => None,
                (Some("by the very node and in the cluster that it names"), Starting) => {
                    Some(ErrorResponse::Starting)
                }
                (Some("by the very node and in the cluster that it names"), TheNode) => None,
                (Some("by the very node and in the cluster that it names"), _) => {
                    Some(ErrorResponse::OtherNode)
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(refused, expected, "{words:?} {state:?}");
            shared.ctx.stop_raft().await;
        }
    }

    #[tokio::test]
    async fn a_node_that_is_in_no_cluster_joins_that_of_the_leader_that_sends_it_the_log() {
        let fixture = Fixture::new();
        let shared = fixture.shared.clone();
        let mut running = fixture.running(None).await;
        // As it is before it has joined.
        running.cluster = Default::default();
        shared.ctx.begin_anew(NodeId::of(1), Default::default());
        shared.ctx.set_running(Some(running));
        let rpc_server = RpcServer(shared.clone());
        let to = Recipient { node: NodeId::of(1), cluster: CLUSTER };
        let other = Recipient { node: NodeId::of(2), cluster: CLUSTER };
        let absurd = Recipient { cluster: Epoch { counter: u64::MAX, ..CLUSTER }, ..to };
        for refused in [other, absurd] {
            assert_eq!(rpc_server.follower(refused).err(), Some(ErrorResponse::OtherNode));
            assert!(shared.ctx.cluster().is_none(), "{refused:?}");
        }
        // Nor does it join one by what is refused afterwards, or by being asked for its vote.
        let candidate = LeaderId { term: 5, node: NodeId::of(3) };
        let vote = Request::Vote(WireVote { to, candidate, last_log_id: None });
        let Request::Append(mut foreign) = append(to, 0) else { panic!("an append") };
        foreign.vote.0 = candidate;
        for request in [vote, Request::Append(foreign)] {
            let answer = rpc_server.answer(&caller(Role::Member, [0; 16]), request).await;
            assert!(!matches!(answer, Ok(Response::Append(_))), "{answer:?}");
            assert!(shared.ctx.cluster().is_none(), "{answer:?}");
        }
        assert!(rpc_server.follower(to).is_ok());
        assert_eq!(shared.ctx.cluster(), CLUSTER);
        let later = Epoch { counter: CLUSTER.counter + 1, ..CLUSTER };
        let elsewhere = Recipient { cluster: later, ..to };
        assert_eq!(rpc_server.follower(elsewhere).err(), Some(ErrorResponse::OtherNode));
        assert_eq!(shared.ctx.cluster(), CLUSTER, "it is in one");
        shared.ctx.stop_raft().await;
    }

    #[tokio::test]
    async fn a_promise_is_given_to_the_founder_itself_once_and_while_no_leader_is_heard() {
        let fixture = Fixture::new();
        let shared = fixture.shared.clone();
        let rpc_server = RpcServer(shared.clone());
        let epoch = |counter| Epoch { counter, founder: NodeId::of(2) };
        let ask = async |from: u32, counter, to| {
            let caller = Caller { id: ServerId(from), ..caller(Role::Member, [0; 16]) };
            let prepare = Prepare { epoch: epoch(counter), to };
            rpc_server.prepare(&caller, prepare).await.map(|promise| promise.epoch.counter)
        };
        let me = shared.ctx.node();
        assert!(ask(3, 9, me).await.is_err(), "in the name of another founder");
        assert!(matches!(ask(2, 9, NodeId::of(1)).await, Err(Refused::OtherNode(_))));
        assert_eq!(ask(2, 9, me).await, Ok(9));
        assert_eq!(ask(2, 9, me).await, Err(Refused::Promised(epoch(9))));
        // With an empty log it is in none, and still joins what is no older.
        assert!(!shared.ctx.part(|part| part.join(epoch(8))));
        let running = fixture.running_in(None, epoch(9)).await;
        shared.ctx.set_running(Some(running));
        shared.ctx.record_heartbeat(true, Duration::from_secs(9));
        assert_eq!(ask(2, 10, me).await, Err(Refused::HearsLeader));
        shared.ctx.stop_raft().await;
    }

    #[tokio::test]
    async fn a_founding_that_nobody_prepared_moves_nobody_who_hears_a_leader() {
        let fixture = Fixture::new();
        let shared = fixture.shared.clone();
        shared.ctx.set_running(Some(fixture.running_in(None, CLUSTER).await));
        shared.ctx.record_heartbeat(true, Duration::from_secs(9));
        let me = shared.ctx.node();
        let epoch = Epoch { counter: CLUSTER.counter + 1, founder: NodeId::of(2) };
        let voters = [(me.server, me.incarnation)].into();
        let record = Record::of_file([me.server].into());
        let base = RankedRecord { rank: Rank::default(), record };
        let found = FoundedCluster { epoch, voters, base };
        // What `begin` does before it stops Raft.
        assert!(!shared.ctx.accept(&found));
        assert_eq!(shared.ctx.cluster(), CLUSTER);
        shared.ctx.stop_raft().await;
    }

    /// An entry that a state file would keep, in the log of the leader of term 5.
    fn append(to: Recipient, index: u64) -> Request {
        let leader_id = LeaderId { term: 5, node: NodeId::of(2) };
        let at = |index| LogId { leader_id, index };
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        let command = Command::Key(KeyCommand::Found { cluster_id });
        Request::Append(WireAppend {
            to,
            vote: (leader_id, true),
            previous: index.checked_sub(1).map(at),
            entries: vec![WireEntry { id: at(index), payload: WirePayload::Command(command) }],
            commit: None,
            age: None,
            quorum: true,
        })
    }

    /// Its leader may ask later than that.
    #[tokio::test]
    async fn what_a_server_knows_to_be_revoked_is_told_after_it_has_caught_up_too() {
        let shared = Fixture::new().shared;
        let revoked = vec![stek(7).fingerprint()];
        let mut record = Record::of_file([ServerId(1)].into());
        record.agreed.ring.revoke_also(&revoked);
        let rank = Rank { epoch: CLUSTER, ..Rank::default() };
        shared.ctx.keep(RankedRecord { rank, record });
        let rpc_server = RpcServer(shared.clone());
        for has_caught_up in [false, true] {
            if has_caught_up {
                shared.ctx.record_caught_up();
            }
            let told = rpc_server.answer(&caller(Role::Member, [0; 16]), Request::Revoked).await;
            let told = match told {
                Ok(Response::Revoked(told)) => told,
                other => panic!("{other:?}"),
            };
            assert_eq!(told, revoked, "{has_caught_up}");
        }
        assert!(shared.ctx.kept().rank.epoch.is_none(), "nothing else is kept");
    }

    #[tokio::test]
    async fn a_node_that_has_left_its_cluster_acknowledges_nothing() {
        let (fixture, log) = (Fixture::new(), LogStore::new(None));
        let shared = fixture.shared.clone();
        shared.ctx.set_running(Some(fixture.running_with(log.clone(), CLUSTER).await));
        let rpc_server = RpcServer(shared.clone());
        let to = Recipient { node: shared.ctx.node(), cluster: CLUSTER };
        let leader = caller(Role::Member, [0; 16]);
        let taken = rpc_server.answer(&leader, append(to, 0)).await;
        assert!(matches!(taken, Ok(Response::Append(AppendAnswer::Success))), "{taken:?}");
        log.close();
        let late = rpc_server.answer(&leader, append(to, 1)).await;
        assert_eq!((late.err(), log.len()), (Some(ErrorResponse::Stopped), 1));
        shared.ctx.stop_raft().await;
    }

    #[tokio::test]
    async fn an_entry_is_in_the_file_before_it_is_acknowledged_and_not_acknowledged_after_a_report()
    {
        const LIMIT: Duration = Duration::from_secs(30);
        let (begun, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let persist: Persist = {
            let (begun, done) = (begun.clone(), done.clone());
            Arc::new(move |_| {
                let (begun, done) = (begun.clone(), done.clone());
                Box::pin(async move {
                    begun.notify_one();
                    done.notified().await;
                })
            })
        };
        let (fixture, log) = (Fixture::new(), LogStore::new(Some(persist)));
        let shared = fixture.shared.clone();
        shared.ctx.set_running(Some(fixture.running_with(log.clone(), CLUSTER).await));
        let to = Recipient { node: shared.ctx.node(), cluster: CLUSTER };
        let ask = |index| {
            let rpc_server = RpcServer(shared.clone());
            let leader = caller(Role::Member, [0; 16]);
            let mut sent = append(to, index);
            // Behind it comes a new leader's first entry, which no file waits for by itself.
            if let (Request::Append(append), 0) = (&mut sent, index) {
                let id = LogId { leader_id: append.vote.0, index: 1 };
                append.entries.push(WireEntry { id, payload: WirePayload::Blank });
            }
            tokio::spawn(async move { rpc_server.answer(&leader, sent).await })
        };
        let mut first = ask(0);
        timeout(LIMIT, begun.notified()).await.unwrap();
        let early = timeout(Duration::from_millis(50), &mut first).await;
        assert!(early.is_err(), "acknowledged before it was written: {early:?}");
        done.notify_one();
        let taken = timeout(LIMIT, first).await.unwrap().unwrap();
        assert!(matches!(taken, Ok(Response::Append(AppendAnswer::Success))), "{taken:?}");
        let second = ask(2);
        timeout(LIMIT, begun.notified()).await.unwrap();
        log.close();
        done.notify_one();
        let late = timeout(LIMIT, second).await.unwrap().unwrap();
        assert_eq!(late.err(), Some(ErrorResponse::Stopped));
        shared.ctx.stop_raft().await;
    }

    /// Also right after an append, for which openraft would have all wait.
    #[tokio::test]
    async fn a_vote_is_given_as_soon_as_the_leader_is_gone() {
        let fixture = Fixture::new();
        let shared = fixture.shared.clone();
        let running = fixture.running(Some(Vote::new(5, NodeId::of(2)))).await;
        shared.ctx.set_running(Some(running.clone()));
        let rpc_server = RpcServer(shared.clone());
        let leader_id = LeaderId { term: 5, node: NodeId::of(2) };
        let end = Some(LogId { leader_id, index: 0 });
        let to = Recipient { node: shared.ctx.node(), cluster: CLUSTER };
        let append = Request::Append(WireAppend {
            to,
            vote: (leader_id, true),
            previous: None,
            entries: end
                .map(|id| WireEntry { id, payload: WirePayload::Blank })
                .into_iter()
                .collect(),
            commit: None,
            age: None,
            quorum: true,
        });
        let taken = rpc_server.answer(&caller(Role::Member, [0; 16]), append).await;
        assert!(matches!(taken, Ok(Response::Append(AppendAnswer::Success))), "{taken:?}");
        let other = Caller { id: ServerId(3), ..caller(Role::Member, [0; 16]) };
        let candidate = LeaderId { term: 6, node: NodeId::of(3) };
        let granted = async || {
            let vote = Request::Vote(WireVote { to, candidate, last_log_id: end });
            match rpc_server.answer(&other, vote).await {
                Ok(Response::Vote { granted, .. }) => granted,
                answer => panic!("{answer:?}"),
            }
        };
        assert!(!granted().await, "the leader was heard a moment ago");
        let heard = shared.ctx.contact().unwrap();
        shared.ctx.record_leader_gone(heard.ago(Duration::from_millis(1)));
        assert!(!granted().await, "it was heard after its connection was lost");
        shared.ctx.record_leader_gone(heard);
        assert!(granted().await);
        assert_eq!(shared.ctx.followed(), None);
        shared.ctx.stop_raft().await;
    }

    #[tokio::test]
    async fn who_answers_elsewhere_is_asked_again_each_time_that_another_life_comes() {
        let rpc_server = RpcServer(Fixture::new().shared);
        let heard = &rpc_server.0.peers.heard;
        heard.record_answer(ServerId(2), 7, Instant::now().into());
        let hello = Hello {
            versions: Versions::OURS,
            role: Role::Member,
            sender: ServerId(2),
            incarnation: 8,
            cluster_id: [0; 16],
        };
        for _ in 0..2 {
            // The connection may be one that nobody closed, as after a power cut.
            planted::plant("doubt");
            assert_eq!(rpc_server.admit(&hello), Err(Refusal::DuplicateId));
            while lock(&rpc_server.0.peers.doubted).contains(&ServerId(2)) {
                tokio::task::yield_now().await;
            }
            assert!(!planted::waits("doubt"), "it was not asked");
        }
    }

    #[tokio::test]
    async fn what_is_said_unasked_in_a_members_name_counts_from_its_address_only() {
        let shared = Fixture::new().shared;
        let rpc_server = RpcServer(shared.clone());
        let from = |incarnation| Caller {
            id: ServerId(2),
            role: Role::Member,
            incarnation,
            cluster_id: [0; 16],
            version: 1,
            addr: ([127, 0, 0, 1], 1).into(),
            names: "/CN=all".into(),
        };
        let counts = |from: Caller| {
            rpc_server.meet(&from, Status::default());
            shared.peers.answers_within(Duration::MAX).contains_key(&ServerId(2))
        };
        assert!(!counts(from(7)), "nobody is known to answer at its address");
        shared.peers.heard.record_answer(ServerId(2), 8, tokio::time::Instant::now());
        assert!(!counts(from(7)), "another one does");
        assert!(counts(from(8)));
    }
}
