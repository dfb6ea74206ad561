//! The other servers: the way to each of them, who was heard when, what each said of itself; and one
//! request to one of them.
//!
//! What an answer means is for whoever asked. Invariants: an answer that counts beyond what this
//! server can believe is none; a peer of another cluster is noted, whatever it was asked; who may
//! connect follows the members at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{watch, Notify};
use tokio::task::JoinSet;

use super::context::Context;
use super::environment::Environment;
use super::list_file::ListFile;
use super::network::{ListenerHandle, PeerTransport};
use super::running::Running;
use crate::consensus::network::{CallFailure, RpcClient};
use crate::core::config::Member;
use crate::core::key_ring::ClusterId;
use crate::core::moment::Moment;
use crate::core::node_id::NodeId;
use crate::core::pre_vote::Status;
use crate::core::sanity_bounds::SanityBounds;
use crate::core::server_id::ServerId;
use crate::log_sink::Level;
use crate::rpc::{self, Request, Response};
use crate::supervise::lock;
use crate::transport::listener::{ListenDeps, Refusal, Service};
use crate::transport::peers::CallError;
use crate::transport::tls::Tls;
use crate::transport::{Counters, LastSeen, LocalIdentity, Versions};

/// How long one question about another server's status may take; well above any round trip that the
/// election bounds allow, since a connection may have to be made first.
pub(super) const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// See the module's head.
pub(super) struct Peers {
    pub ctx: Arc<Context>,
    pub transport: PeerTransport,
    /// The newest certificates and whose are accepted; all connections go by them. Changed by
    /// [`Peers::set_certificates`] and [`Peers::set_members`] only.
    pub tls: watch::Sender<Tls>,
    /// What this server says of itself in every frame.
    pub sender: LocalIdentity,
    /// When each member was last heard, whoever dialled.
    pub heard: LastSeen,
    /// What the listener let in and kept out.
    pub counters: Arc<Counters>,
    /// Lets the others in, until this server ends.
    listener: Mutex<Option<ListenerHandle>>,
    /// Notified whenever another server says what it is.
    pub answered: Notify,
    /// Notified when a server that hears no leader has shown up; see [`Peers::take_new_peers`].
    pub new_peer: Notify,
    /// Notified when a server of another cluster incarnation was met; see [`Peers::other_cluster_peer`].
    pub met: Notify,
    /// Members that are being asked whether they are still there; see `rpc_server`.
    pub doubted: Mutex<BTreeSet<ServerId>>,
    /// What the file of the server list says of them.
    pub list_file: ListFile,
    table: Mutex<Table>,
}

/// What is known of the others.
#[derive(Default)]
struct Table {
    /// The latest that each other server said of itself, and when.
    answers: BTreeMap<ServerId, (Moment, Status)>,
    /// Servers that hear no leader and have shown up lately; members only.
    new_peers: BTreeSet<ServerId>,
    /// The server of another cluster incarnation that was met last.
    other_cluster_peer: Option<ServerId>,
}

impl Peers {
    /// The way to the members that `ctx` knows.
    pub fn new(
        ctx: Arc<Context>,
        (incarnation, versions): (u64, Versions),
        tls: Tls,
        outside: &Environment,
    ) -> Peers {
        let tls = watch::Sender::new(tls.with_members(&ctx.members()));
        let of = ctx.clone();
        let cluster_id = move || of.cluster_id().map_or([0; 16], ClusterId::to_bytes);
        let sender = LocalIdentity::member(ctx.me, incarnation, cluster_id).speaking(versions);
        let heard = LastSeen::new();
        let (network, resolver) = (outside.network.clone(), outside.resolver.clone());
        let transport = PeerTransport::new(
            (network, outside.bounds),
            resolver,
            &ctx.log,
            tls.subscribe(),
            &sender,
            &heard,
        );
        transport.set_members(&ctx.members());
        Peers {
            ctx,
            transport,
            tls,
            sender,
            heard,
            counters: Counters::new(),
            listener: Mutex::default(),
            answered: Notify::new(),
            new_peer: Notify::new(),
            met: Notify::new(),
            doubted: Mutex::default(),
            list_file: ListFile::new(outside.list_file.clone()),
            table: Mutex::default(),
        }
    }

    /// Starts to let the others in.
    pub fn listen(&self, service: Arc<dyn Service>) {
        let deps = ListenDeps {
            log: self.ctx.log.clone(),
            tls: self.tls.subscribe(),
            me: self.sender.clone(),
            heard: self.heard.clone(),
            counters: self.counters.clone(),
        };
        // The old one has to go first, or the new one might find the port in use.
        self.close();
        let ears = self.transport.listen(&self.ctx.settings(), &self.ctx.members(), deps, service);
        *lock(&self.listener) = Some(ears);
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        drop(lock(&self.listener).take());
    }

    /// Takes over the members that the group agreed on.
    pub fn set_members(&self, members: &[Member]) {
        if !self.ctx.set_members(members) {
            return;
        }
        // Who may connect follows, as the certificates do.
        self.tls.send_modify(|tls| *tls = tls.with_members(&self.ctx.members()));
        self.transport.set_members(members);
        if let Some(listener) = lock(&self.listener).as_ref() {
            listener.set_members(members);
        }
    }

    /// Takes over new certificates. Connections that stand are checked by them before anything
    /// else is sent or heard on them.
    pub fn set_certificates(&self, new: Tls) {
        // The members are looked up inside, so that a list that changes meanwhile is not lost.
        self.tls.send_modify(|tls| *tls = new.in_place_of(tls).with_members(&self.ctx.members()));
    }

    pub fn record_answer(&self, from: ServerId, status: Status) {
        let now = self.ctx.now();
        lock(&self.table).answers.insert(from, (now, status));
        self.answered.notify_one();
    }

    /// What the others said of themselves within `limit`.
    pub fn answers_within(&self, limit: Duration) -> BTreeMap<ServerId, Status> {
        fresh(&lock(&self.table).answers, self.ctx.now(), limit)
    }

    /// How far terms and logs may reach for this server to believe them.
    pub fn sanity_bounds(&self) -> SanityBounds {
        let (vote, end) = match self.ctx.running() {
            Some(Running { log, .. }) => (log.vote(), log.last_log_id()),
            None => (None, None),
        };
        let (term, index) = (vote.map_or(0, |v| v.leader_id.term), end.map_or(0, |id| id.index));
        // They need not be fresh, since terms and logs only grow.
        let generation = self.ctx.views.borrow().agreed.ring.newest();
        SanityBounds::of(term, index, generation, &self.answers_within(Duration::MAX))
    }

    /// Whether this server believes that there is this term, and this end of a log. Says so if not.
    pub fn finds_plausible(&self, from: ServerId, term: u64, index: u64) -> bool {
        let sanity_bounds = self.sanity_bounds();
        let plausible = sanity_bounds.has_term(term) && sanity_bounds.has_index(index);
        if !plausible {
            let line = format!(
                "server {from} counts far beyond what this server knows of (term {term}, entry \
                 {index}) and no other server confirms it; not believed; check that server"
            );
            self.ctx.log.limited(Level::Warning, "absurd count", line);
        }
        plausible
    }

    /// Notes a server that hears no leader, which a leader need not keep waiting for a heartbeat.
    pub fn record_new_peer(&self, id: ServerId) {
        lock(&self.table).new_peers.insert(id);
        self.new_peer.notify_one();
    }

    /// The servers that have shown up so since this was asked last.
    pub fn take_new_peers(&self) -> BTreeSet<ServerId> {
        std::mem::take(&mut lock(&self.table).new_peers)
    }

    /// Notes that a server of another cluster incarnation was met.
    pub fn record_other_cluster_peer(&self, id: ServerId) {
        lock(&self.table).other_cluster_peer = Some(id);
        self.met.notify_one();
    }

    /// The server of another cluster incarnation that was met last, once.
    pub fn other_cluster_peer(&self) -> Option<ServerId> {
        lock(&self.table).other_cluster_peer.take()
    }
}

impl RpcClient for Arc<Peers> {
    async fn call(
        &self,
        to: ServerId,
        request: Request,
        limit: Duration,
    ) -> Result<Response, CallFailure> {
        let body = rpc::encode(&request).ok_or(CallFailure::InvalidResponse)?;
        // The request may hold keys; while the answer is awaited only the frame does.
        drop(request);
        let answer = self.transport.request(to, body, limit).await.map_err(|e| match e {
            CallError::TimedOut => CallFailure::TimedOut,
            CallError::NobodyListens(_) => CallFailure::NobodyListens,
            CallError::Refused(Refusal::NotAMember) => CallFailure::NotListed,
            _ => CallFailure::Unreachable,
        })?;
        let answer = rpc::decode_response(&answer).map_err(|e| {
            let line = format!("server {to} sent a malformed response: {e}");
            self.ctx.log.limited(Level::Warning, "invalid answer", line);
            CallFailure::InvalidResponse
        })?;
        let is_foreign = match &answer {
            Response::Status(theirs) => {
                self.ctx.record_told(to, theirs.yours);
                if theirs.quorum && theirs.cluster == self.ctx.cluster() {
                    self.ctx.hear_list_version(theirs.list_version);
                }
                theirs.quorum && theirs.cluster != self.ctx.cluster()
            }
            _ => false,
        };
        if is_foreign {
            self.record_other_cluster_peer(to);
        }
        let told = answer.highest_vote();
        if told.is_none_or(|vote| self.finds_plausible(to, vote.term, 0)) {
            Ok(answer)
        } else {
            Err(CallFailure::InvalidResponse)
        }
    }
}

/// What a server says that it is.
pub(super) async fn status_of(
    peers: &Arc<Peers>,
    id: ServerId,
    limit: Duration,
) -> Result<Status, CallFailure> {
    match peers.call(id, Request::Status(peers.ctx.status_for(id)), limit).await? {
        Response::Status(status) => Ok(status),
        _ => Err(CallFailure::InvalidResponse),
    }
}

/// Asks all voters but this server what they are.
pub(super) fn ask_voters(
    peers: &Arc<Peers>,
    configs: &[BTreeSet<NodeId>],
) -> JoinSet<(ServerId, Result<Status, CallFailure>)> {
    let voters: BTreeSet<ServerId> = configs.iter().flatten().map(|node| node.server).collect();
    ask(peers, voters)
}

/// Asks these servers, but for this one, what they are.
pub(super) fn ask(
    peers: &Arc<Peers>,
    whom: impl IntoIterator<Item = ServerId>,
) -> JoinSet<(ServerId, Result<Status, CallFailure>)> {
    let mut asked = JoinSet::new();
    for id in whom.into_iter().filter(|id| *id != peers.ctx.me) {
        let peers = peers.clone();
        asked.spawn(async move {
            let answer = status_of(&peers, id, STATUS_LIMIT).await;
            (id, answer)
        });
    }
    asked
}

/// What a server says that is not connected, since it is no member or has moved.
pub(super) async fn status_at(peers: &Peers, member: &Member, limit: Duration) -> Option<Status> {
    let body = rpc::encode(&Request::Status(peers.ctx.status_for(member.id)))?;
    let answer =
        peers.transport.ask_unconnected((&peers.sender, &peers.tls), member, body, limit).await?;
    match rpc::decode_response(&answer) {
        Ok(Response::Status(status)) => Some(status),
        _ => None,
    }
}

/// Those of what servers said that are not older than `limit`.
fn fresh(
    said: &BTreeMap<ServerId, (Moment, Status)>,
    now: Moment,
    limit: Duration,
) -> BTreeMap<ServerId, Status> {
    let fresh = said.iter().filter(|(_, (at, _))| now.since(*at) < limit);
    fresh.map(|(id, (_, status))| (*id, status.clone())).collect()
}
