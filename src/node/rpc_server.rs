//! Answers other servers.
//!
//! The transport has verified the sender's certificate and asked [`Service::admit`] whether its
//! server id is a member's before a byte of a body gets here. Invariants: a server without a vote
//! gives no vote that it might have given before it lost its memory; keys of another cluster incarnation do
//! not get in.
//!
//! Who is answered, and when, is in the table of [`crate::rpc`].

use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use tokio::time::{sleep, timeout};

use super::context::{lock, Context};
use super::counters::ReloadOutcome;
use super::keys::Keys;
use super::rejected_keys::Place;
use super::running::Running;
use super::shared::Shared;
use super::store::Store;
use super::{bounds, forward, heartbeat, origin, records, report, server_list};
use crate::consensus::network::RpcClient;
use crate::consensus::{leader_id_of, log_end_of, vote_answer, VOTE_LEASE};
use crate::core::key_ring::{ClusterId, Generation};
use crate::core::large_cluster::SMALL;
use crate::core::recovery::{
    acknowledged_end, yields, LeaderId, LogPosition, Status, VoteRestriction,
};
use crate::core::server_id::ServerId;
use crate::core::text::readable;
use crate::core::vote::{may_grant, Candidate, VoteRefusal, Voter};
use crate::log_sink::Level;
use crate::rpc::{
    self, AppendAnswer, ErrorResponse, Malformed, Request, Response, WireAppend, WireHeartbeat,
    WireSnapshot, WireVote,
};
use crate::supervise::{catch_panic, fail_point};
use crate::transport::frame::{Hello, Role};
use crate::transport::listener::{Caller, Refusal, Service};
use crate::transport::Body;

/// The longest that an asker may have an answer held back until a key is installed.
const MAX_AWAIT: Duration = Duration::from_secs(10);

/// How long a server that does not count yet holds back an answer that acknowledges less than it
/// was sent, so that the leader does not send the rest again at once.
const PROVING_PAUSE: Duration = Duration::from_millis(20);

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

    fn take_note(&self, from: &Caller, body: Body) -> bool {
        if rpc::is_of_sessions(&body) {
            return self.sessions(from, body);
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

    async fn serve(self: Arc<Self>, from: Caller, body: Body) -> Option<Body> {
        fail_point("rpc_server");
        let request = self.decode(&from, body)?;
        let response = self.answer(&from, request).await.unwrap_or_else(Response::ErrorResponse);
        rpc::encode(&response)
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
                let question = Request::Status(shared.ctx.status());
                shared.peers.call(id, question, DOUBT_LIMIT).await
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
                self.0.rejected_keys.note(Place::Apply, refusal.clone());
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
            Request::StatusPoll(status) => {
                let ours = self.meet(from, status);
                Ok(Response::StatusPoll(ours, shared.status_poll.others(&shared.peers).await))
            }
            // The keys of a file are for nobody who could have newer ones.
            Request::Record => match self.0.ctx.cluster_id() {
                Some(_) => Err(ErrorResponse::OtherCluster),
                None => Ok(Response::Record(self.0.store.kept_record().map(Box::new))),
            },
            Request::Campaign => {
                let leader = shared
                    .ctx
                    .running()
                    .and_then(|running| running.raft.server_metrics().borrow().current_leader);
                if leader != Some(from.id) {
                    return Err(ErrorResponse::Malformed);
                }
                let line =
                    format!("to lead at once: asked by {}, which leaves", origin::caller(from));
                shared.ctx.log.limited(Level::Note, "leadership transfer", line);
                shared.ctx.campaign_now.notify_one();
                Ok(Response::WillCampaign)
            }
            // A tool need not know who leads; a member does, and must not be sent on.
            Request::Order { order, origin } if from.role == Role::Tool => {
                let origin = origin::tool(from, &origin);
                Ok(Response::Ordered(forward::order(shared, order, origin).await))
            }
            Request::Reload { origin } => {
                Ok(Response::Reloaded(self.reload(origin::tool(from, &origin)).await))
            }
            Request::Order { order, origin } => {
                let origin = origin::passed_on(from, &origin);
                Ok(Response::Ordered(forward::order_here(shared, order, origin).await))
            }
            Request::Report => Ok(Response::Report(Box::new(report::status(shared)))),
            Request::ChangeMembership { replaces, members } => Ok(Response::MembershipChanged(
                server_list::change_membership_for(&shared.peers, from, replaces, members).await,
            )),
            Request::ListInFile(list) => {
                Ok(Response::ListInFile(shared.peers.list_file.holds(list).await))
            }
            Request::AwaitInstalled { generation, limit_ms } => {
                let limit = Duration::from_millis(limit_ms.into()).min(MAX_AWAIT);
                let newest =
                    await_installed((&shared.ctx, &shared.keys, &shared.store), generation, limit)
                        .await;
                Ok(Response::Installed { newest, incarnation: shared.peers.sender.incarnation() })
            }
            Request::Vote(vote) => self.vote(from, vote).await,
            Request::Append(append) => {
                let running = self.same_cluster(from)?;
                self.speaks_for_itself(from, append.vote.0, 0)?;
                bounds::admit_append(&shared.peers, &running, from.id, &append)?;
                self.append(&running, from, append).await
            }
            Request::Snapshot(snapshot) => {
                let running = self.same_cluster(from)?;
                let index = snapshot.last.map_or(0, |end| end.index);
                self.speaks_for_itself(from, snapshot.vote.0, index)?;
                bounds::admit_snapshot(&shared.peers, &running, from.id, &snapshot)?;
                self.snapshot(&running, snapshot).await
            }
            Request::Heartbeat(heartbeat) => self.heartbeat(from, &heartbeat),
            // They come as notes only.
            Request::Sessions(_) => Err(ErrorResponse::Malformed),
        }
    }

    /// Takes what another server of this cluster says of its sessions, if they are shared here; a
    /// flood of it is not even decoded.
    fn sessions(&self, from: &Caller, body: Body) -> bool {
        let Some(exchange) = &self.0.sessions else { return false };
        let ours = self.0.ctx.cluster_id();
        let is_member = from.role == Role::Member && ours.is_some();
        if !is_member || ours != ClusterId::from_bytes(from.cluster_id) {
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

    /// Takes what another server says of itself; what this one says to it.
    fn meet(&self, from: &Caller, status: Status) -> Status {
        let ours = self.0.ctx.status_for(&status);
        if from.role == Role::Member {
            if yields(&ours, &status) {
                self.0.peers.record_other_cluster_peer(from.id);
            }
            if !status.full {
                self.0.peers.record_new_peer(from.id);
            }
            if self.is_own_word(from) {
                self.0.peers.record_answer(from.id, status);
            }
        }
        ours
    }

    /// Whether what a member says of itself unasked counts as its word: with one subject for all,
    /// whoever has a certificate can say it in the name of one that is down, and have this server forget
    /// what that one remembers. In a large group not everybody asks everybody, so it has to count.
    fn is_own_word(&self, from: &Caller) -> bool {
        let answering = self.0.peers.heard.at_address(from.id);
        answering == Some(from.incarnation) || self.0.ctx.members().len() > SMALL
    }

    fn heartbeat(
        &self,
        from: &Caller,
        heartbeat: &WireHeartbeat,
    ) -> Result<Response, ErrorResponse> {
        let running = self.same_cluster(from)?;
        heartbeat::take(
            (&self.0.ctx, &self.0.keys),
            &running,
            from.id,
            ClusterId::from_bytes(from.cluster_id),
            heartbeat,
        )
    }

    /// Raft, unless this server belongs to another cluster incarnation than the sender. A server that has none yet
    /// may join any; one that has takes nothing from a sender that has none, since log ids of two
    /// cluster incarnations may look alike.
    fn same_cluster(&self, from: &Caller) -> Result<Running, ErrorResponse> {
        let ours = self.0.ctx.cluster_id();
        let theirs = ClusterId::from_bytes(from.cluster_id);
        if ours.is_some() && ours != theirs {
            self.0.peers.record_other_cluster_peer(from.id);
            return Err(ErrorResponse::OtherCluster);
        }
        self.0.ctx.running().ok_or(ErrorResponse::Starting)
    }

    /// Whether a term is the sender's own, since only its own candidate stands and leads in it,
    /// and neither it nor the end of the sender's log is out of this server's sight.
    fn speaks_for_itself(
        &self,
        from: &Caller,
        leader_id: LeaderId,
        index: u64,
    ) -> Result<(), ErrorResponse> {
        if leader_id.node == from.id && self.0.peers.finds_plausible(from.id, leader_id.term, index)
        {
            Ok(())
        } else {
            Err(ErrorResponse::Malformed)
        }
    }

    /// Gives this server's vote, if it may; if not, the log tells the one reason.
    async fn vote(&self, from: &Caller, vote: WireVote) -> Result<Response, ErrorResponse> {
        let shared = &self.0;
        let running = self.same_cluster(from);
        self.outlast_rafts_lease().await;
        let ends = running.as_ref().map(|running| running.log.ends()).unwrap_or_default();
        let voter = Voter {
            me: shared.ctx.me,
            is_running: running.is_ok(),
            recovery: *shared.ctx.vote_restriction.borrow(),
            vote: ends.vote.map(|vote| (leader_id_of(&vote), vote.committed)),
            log_end: ends.last.as_ref().map(log_end_of),
            hears_leader: shared.ctx.hears_leader(),
            leads: running.as_ref().is_ok_and(|running| self.leads(running))
                && !*shared.ctx.leaving.borrow(),
        };
        let candidate = Candidate {
            sender: from.id,
            leader_id: vote.leader_id,
            log_end: vote.log_end,
            is_of_cluster: !matches!(running, Err(ErrorResponse::OtherCluster)),
            is_plausible: running.is_err()
                || vote.leader_id.node != from.id
                || shared.peers.finds_plausible(from.id, vote.leader_id.term, 0),
        };
        let may = may_grant(&voter, &candidate);
        if let Err(why) = may {
            let (id, term) = (from.id, vote.leader_id.term);
            shared.ctx.log.debug(format!("no vote for server {id} in term {term}: {why}"));
        }
        let running = running?;
        match may {
            // Before Raft has it: what this server asks of Raft from now on comes behind that.
            Ok(()) => shared.ctx.record_supported(),
            Err(why) if why.is_rafts() => {}
            Err(VoteRefusal::HearsLeader(_) | VoteRefusal::Leads) => {
                let vote = voter.vote.unwrap_or_default();
                return Ok(Response::Vote { vote, granted: false, log_end: voter.log_end });
            }
            Err(VoteRefusal::Recovering | VoteRefusal::Shorter) => {
                return Err(ErrorResponse::Recovering)
            }
            Err(_) => return Err(ErrorResponse::Malformed),
        }
        let answer =
            running.raft.vote(vote.into_raft()).await.map_err(|_| ErrorResponse::Stopped)?;
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
    async fn outlast_rafts_lease(&self) {
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
        let entries = append.entries.iter().map(|entry| entry.id);
        let sent: Vec<LogPosition> = append.previous.into_iter().chain(entries).collect();
        let theirs = sent.iter().copied().chain(append.commit);
        not_log_diverged(running, append.vote, theirs)?;
        let (leader_id, committed) = append.vote;
        let commit = append.commit;
        let (age, quorum) = (append.age, append.quorum);
        // By what it was before: what it has caught up with by this very message is not proved yet.
        let counts = self.0.ctx.vote_restriction.borrow().counts();
        let answer = running
            .raft
            .append_entries(append.into_raft())
            .await
            .map_err(|_| ErrorResponse::Stopped)?;
        let answer = AppendAnswer::from_raft(&answer);
        if committed && !matches!(answer, AppendAnswer::HigherVote(..)) {
            self.0.ctx.record_append(quorum);
            self.0.keys.record_age(ClusterId::from_bytes(from.cluster_id), age);
            if *self.0.ctx.vote_restriction.borrow() != VoteRestriction::Lifted {
                self.0.ctx.end_vote_restriction(running, leader_id, commit);
            }
        }
        let is_taken = matches!(answer, AppendAnswer::Success | AppendAnswer::Partial(_));
        if counts || !is_taken {
            return Ok(Response::Append(answer));
        }
        let taken = match answer {
            AppendAnswer::Partial(taken) => taken,
            _ => sent.last().copied(),
        };
        let agreed = acknowledged_end(sent.into_iter().filter(|end| Some(*end) <= taken), commit);
        if agreed == taken {
            return Ok(Response::Append(answer));
        }
        sleep(PROVING_PAUSE).await;
        // A majority without this server has nothing of it: it cannot be acknowledged at all.
        agreed.map_or(Err(ErrorResponse::Recovering), |end| {
            Ok(Response::Append(AppendAnswer::Partial(Some(end))))
        })
    }

    async fn snapshot(
        &self,
        running: &Running,
        snapshot: WireSnapshot,
    ) -> Result<Response, ErrorResponse> {
        not_log_diverged(running, snapshot.vote, snapshot.last)?;
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

/// Whether a leader's log can be that of a group which this server is part of: it has all that this
/// server took for agreed. If not, this server starts anew as an empty one.
fn not_log_diverged(
    running: &Running,
    (leader_id, leads): (LeaderId, bool),
    theirs: impl IntoIterator<Item = LogPosition>,
) -> Result<(), ErrorResponse> {
    let followed = running.log.vote().as_ref().map(leader_id_of).unwrap_or_default();
    if leads && leader_id >= followed && running.log.contradicts(theirs) {
        running.log.diverge();
        return Err(ErrorResponse::Stopped);
    }
    Ok(())
}

/// Waits until the host has installed `generation`, `limit` at most; the newest that it has.
pub(super) async fn await_installed(
    (ctx, keys, store): (&Context, &Keys, &Store),
    generation: Generation,
    limit: Duration,
) -> Generation {
    let mut installed = keys.installed.subscribe();
    // The cluster incarnation is looked up each time: at a cold start the question may come before the first
    // entry is applied here.
    let held = installed.wait_for(|i| {
        i.newest >= generation && i.cluster_id == ctx.views.borrow().agreed.ring.cluster_id()
    });
    let held = async {
        let cluster_id = held.await.ok()?.cluster_id;
        records::settle(store, cluster_id, generation).await;
        Some(())
    };
    let _ = timeout(limit, held).await;
    keys.installed_newest()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use openraft::Vote;

    use super::*;
    use crate::core::agreed::Agreed;
    use crate::core::key_ring::{Command, KeyRing};
    use crate::core::record::Record;
    use crate::core::server_id::ServerId;
    use crate::node::bench::{stek, Bench};
    use crate::node::KeySet;
    use crate::rpc::tests::{self, one_of_each};
    use crate::rpc::{WireEntry, WirePayload};
    use crate::supervise::planted;

    #[tokio::test]
    async fn a_question_from_before_the_cluster_id_is_answered_when_the_key_is_installed() {
        const LIMIT: Duration = Duration::from_secs(60);
        let shared = Bench::new().shared;
        let asked = {
            let shared = shared.clone();
            tokio::spawn(async move {
                await_installed((&shared.ctx, &shared.keys, &shared.store), Generation(1), LIMIT)
                    .await
            })
        };
        // The question waits before anything is known here.
        tokio::task::yield_now().await;
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        let mut ring = KeyRing::default();
        ring.apply(Command::Found { cluster_id, epoch: 1, from: None }).unwrap();
        shared.ctx.views.send_modify(|view| view.agreed = Arc::new(Agreed::of_ring(ring)));
        let begun = Instant::now();
        let set =
            KeySet { cluster_id: Some(cluster_id), newest: Generation(1), ..KeySet::own(stek(1)) };
        shared.keys.record_installed(&set);
        assert_eq!(asked.await.unwrap(), Generation(1));
        assert!(begun.elapsed() < LIMIT, "answered only because the limit ran out");
    }

    #[tokio::test]
    async fn a_key_of_another_cluster_id_is_not_the_one_that_was_asked_about() {
        let shared = Bench::new().shared;
        let ours = ClusterId::from_bytes([9; 16]).unwrap();
        let mut ring = KeyRing::default();
        ring.apply(Command::Found { cluster_id: ours, epoch: 1, from: None }).unwrap();
        shared.ctx.views.send_modify(|view| view.agreed = Arc::new(Agreed::of_ring(ring)));
        let other = ClusterId::from_bytes([8; 16]);
        let set = KeySet { cluster_id: other, newest: Generation(7), ..KeySet::own(stek(1)) };
        shared.keys.record_installed(&set);
        let installed = await_installed(
            (&shared.ctx, &shared.keys, &shared.store),
            Generation(1),
            Duration::from_millis(10),
        )
        .await;
        assert_eq!(installed, Generation(0));
    }

    fn caller(role: Role, cluster_id: [u8; 16]) -> Caller {
        let (id, addr) = (ServerId(2), ([127, 0, 0, 1], 1).into());
        Caller { id, role, incarnation: 1, cluster_id, version: 1, addr, names: "/CN=two".into() }
    }

    #[tokio::test]
    async fn a_tool_is_answered_what_tools_ask_and_nothing_else() {
        let bench = Bench::new();
        let shared = bench.shared.clone();
        let running = bench.running(Some(Vote::new_committed(5, ServerId(2)))).await;
        shared.ctx.set_running(Some(running.clone()));
        let rpc_server = RpcServer(shared.clone());
        let tool = caller(Role::Tool, [0; 16]);
        let others = one_of_each().into_iter().filter(|request| !request.is_for_tools());
        for request in others {
            let words = format!("{request:?}");
            let answer = rpc_server.answer(&tool, request).await;
            assert_eq!(answer.err(), Some(ErrorResponse::Malformed), "{words}");
        }
        assert_eq!(running.log.vote(), Some(Vote::new_committed(5, ServerId(2))));
        for request in one_of_each() {
            let body = rpc::encode(&request).unwrap();
            assert!(!rpc_server.take_note(&tool, body), "{request:?}");
        }
        let status = rpc_server.answer(&tool, Request::Status(Status::default())).await;
        assert!(matches!(status, Ok(Response::Status(_))), "{status:?}");
        assert!(
            shared.peers.answers_within(Duration::MAX).is_empty(),
            "it is no member's own word"
        );

        // The leader itself is heard, and nobody in its name.
        let mut server = running.raft.server_metrics();
        let follows = server.wait_for(|m| m.current_leader == Some(ServerId(2)));
        timeout(Duration::from_secs(30), follows).await.unwrap().unwrap();
        assert!(rpc_server.answer(&tool, Request::Campaign).await.is_err());
        let stand = rpc_server.answer(&caller(Role::Member, [0; 16]), Request::Campaign).await;
        assert!(matches!(stand, Ok(Response::WillCampaign)), "{stand:?}");
        let other = Caller { id: ServerId(3), ..caller(Role::Member, [0; 16]) };
        assert!(rpc_server.answer(&other, Request::Campaign).await.is_err());
        shared.ctx.stop_raft().await;
    }

    /// The states of which the table in [`crate::rpc`] speaks.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum State {
        Starting,
        SameHistory,
        OtherCluster,
    }

    #[tokio::test]
    async fn each_request_of_a_member_is_answered_in_the_states_of_the_table() {
        use State::{OtherCluster, SameHistory, Starting};
        let (table, count) = (tests::table(), one_of_each().len());
        let pairs = (0..count).flat_map(|n| [Starting, SameHistory, OtherCluster].map(|s| (n, s)));
        for (number, state) in pairs {
            let bench = Bench::new();
            let shared = bench.shared.clone();
            let request = one_of_each().swap_remove(number);
            let words = table[tests::kind(&request)][1];
            if state != Starting {
                let running = bench.running(Some(Vote::new_committed(5, ServerId(2)))).await;
                let mut server = running.raft.server_metrics();
                let follows = server.wait_for(|m| m.current_leader == Some(ServerId(2)));
                timeout(Duration::from_secs(30), follows).await.unwrap().unwrap();
                shared.ctx.set_running(Some(running));
                shared.ctx.vote_restriction.send_replace(VoteRestriction::Lifted);
            }
            if state == OtherCluster {
                let mut ring = KeyRing::default();
                let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
                ring.apply(Command::Found { cluster_id, epoch: 1, from: None }).unwrap();
                shared.ctx.views.send_modify(|view| view.agreed = Arc::new(Agreed::of_ring(ring)));
            }
            let cluster_id = [if state == OtherCluster { 8 } else { 0 }; 16];
            let (rpc_server, from) = (RpcServer(shared.clone()), caller(Role::Member, cluster_id));
            let refused = rpc_server.answer(&from, request).await.err();
            let expected = match (words.split(';').next(), state) {
                (Some("always"), _) => None,
                (Some("while no cluster incarnation is known here"), OtherCluster) => {
                    Some(ErrorResponse::OtherCluster)
                }
                (Some("while no cluster incarnation is known here"), _) => None,
                (Some("never"), _) => Some(ErrorResponse::Malformed),
                (Some("while Raft runs"), Starting) => Some(ErrorResponse::Malformed),
                (Some("while Raft runs"), _) => None,
                (Some("while Raft runs, same cluster incarnation"), Starting) => {
                    Some(ErrorResponse::Starting)
                }
                (Some("while Raft runs, same cluster incarnation"), SameHistory) => None,
                (Some("while Raft runs, same cluster incarnation"), OtherCluster) => {
                    Some(ErrorResponse::OtherCluster)
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(refused, expected, "{words:?} {state:?}");
            shared.ctx.stop_raft().await;
        }
    }

    #[tokio::test]
    async fn a_server_that_is_back_acknowledges_what_is_agreed_and_no_more_until_it_counts() {
        let bench = Bench::new();
        let shared = bench.shared.clone();
        let leader_id = LeaderId { term: 5, node: ServerId(2) };
        let running = bench.running(Some(Vote::new(5, ServerId(2)))).await;
        shared.ctx.set_running(Some(running.clone()));
        let rpc_server = RpcServer(shared.clone());
        let leader = caller(Role::Member, [0; 16]);
        let end = |index| LogPosition { leader_id, index };
        let entry = |index| WireEntry { id: end(index), payload: WirePayload::Blank };
        let append = |previous: Option<u64>, indexes: std::ops::Range<u64>, commit: u64| {
            Request::Append(WireAppend {
                vote: (leader_id, true),
                previous: previous.map(end),
                entries: indexes.map(entry).collect(),
                commit: Some(end(commit)),
                age: None,
                quorum: true,
            })
        };
        let partial = |index| AppendAnswer::Partial(Some(end(index)));
        for vote_restriction in [VoteRestriction::Silent, VoteRestriction::Proving] {
            shared.ctx.vote_restriction.send_replace(vote_restriction);
            for (previous, new, commit, expected) in [
                (None, 0..4, 1, Ok(partial(1))),
                (Some(1), 2..4, 2, Ok(partial(2))),
                (Some(3), 4..4, 2, Err(ErrorResponse::Recovering)),
                (Some(1), 2..4, 3, Ok(AppendAnswer::Success)),
            ] {
                let words = format!("{previous:?} {new:?} {commit} {vote_restriction:?}");
                let answer = rpc_server.answer(&leader, append(previous, new, commit)).await;
                let answer = answer.map(|answer| match answer {
                    Response::Append(answer) => answer,
                    other => panic!("{other:?}"),
                });
                assert_eq!(answer, expected, "{words}");
            }
            assert_eq!(running.log.last_log_id().as_ref().map(log_end_of), Some(end(3)));
        }
        shared.ctx.vote_restriction.send_replace(VoteRestriction::Lifted);
        let answer = rpc_server.answer(&leader, append(Some(3), 4..9, 3)).await;
        assert!(matches!(answer, Ok(Response::Append(AppendAnswer::Success))), "{answer:?}");
        shared.ctx.stop_raft().await;
    }

    /// Also right after an append, for which openraft would have all wait.
    #[tokio::test]
    async fn a_vote_is_given_as_soon_as_the_leader_is_gone() {
        let bench = Bench::new();
        let shared = bench.shared.clone();
        let running = bench.running(Some(Vote::new(5, ServerId(2)))).await;
        shared.ctx.set_running(Some(running.clone()));
        shared.ctx.vote_restriction.send_replace(VoteRestriction::Lifted);
        let rpc_server = RpcServer(shared.clone());
        let leader_id = LeaderId { term: 5, node: ServerId(2) };
        let end = Some(LogPosition { leader_id, index: 0 });
        let append = Request::Append(WireAppend {
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
        let candidate = LeaderId { term: 6, node: ServerId(3) };
        let granted = async || {
            let vote = Request::Vote(WireVote { leader_id: candidate, log_end: end });
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
    async fn a_question_to_one_in_doubt_that_fails_is_asked_again() {
        let rpc_server = RpcServer(Bench::new().shared);
        for _ in 0..2 {
            planted::plant("doubt");
            rpc_server.make_sure(ServerId(2));
            while lock(&rpc_server.0.peers.doubted).contains(&ServerId(2)) {
                tokio::task::yield_now().await;
            }
            assert!(!planted::waits("doubt"), "it was not asked");
        }
    }

    #[tokio::test]
    async fn what_is_said_unasked_in_a_members_name_counts_from_its_address_only() {
        let shared = Bench::new().shared;
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

    #[tokio::test]
    async fn what_a_file_held_is_told_to_members_alone_and_while_nobody_knows_better() {
        let shared = Bench::new().shared;
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        let mut ring = KeyRing::default();
        ring.apply(Command::Found { cluster_id, epoch: 1, from: None }).unwrap();
        shared.store.keep_record(Record {
            ring: ring.clone(),
            end: LogPosition::default(),
            age_ms: 5,
        });
        let rpc_server = RpcServer(shared.clone());
        let ask = async |role| {
            let caller = caller(role, [0; 16]);
            rpc_server.answer(&caller, Request::Record).await
        };
        assert_eq!(ask(Role::Tool).await.err(), Some(ErrorResponse::Malformed));
        let told = ask(Role::Member).await;
        assert!(matches!(told, Ok(Response::Record(Some(_)))), "{told:?}");
        shared.ctx.views.send_modify(|view| view.agreed = Arc::new(Agreed::of_ring(ring)));
        assert_eq!(ask(Role::Member).await.err(), Some(ErrorResponse::OtherCluster));
    }

    #[tokio::test]
    async fn a_server_with_a_cluster_id_takes_nothing_from_a_leader_without_one() {
        let shared = Bench::new().shared;
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        let mut ring = KeyRing::default();
        ring.apply(Command::Found { cluster_id, epoch: 1, from: None }).unwrap();
        shared.ctx.views.send_modify(|view| view.agreed = Arc::new(Agreed::of_ring(ring)));
        let rpc_server = RpcServer(shared);
        let caller = |cluster_id| caller(Role::Member, cluster_id);
        // Raft does not run here, which is what a leader of the same cluster incarnation is told.
        let cases = [
            ([0; 16], ErrorResponse::OtherCluster),
            ([8; 16], ErrorResponse::OtherCluster),
            ([9; 16], ErrorResponse::Starting),
        ];
        for (theirs, expected) in cases {
            let refused = rpc_server.same_cluster(&caller(theirs)).err();
            assert_eq!(refused, Some(expected), "{theirs:?}");
        }
    }
}
