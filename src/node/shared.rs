//! What the parts of one box know together.
//!
//! Small facts behind short locks, none of which is held across an await. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::impls::EmptyNode;
use openraft::metrics::RaftServerMetrics;
use openraft::ServerState;
use openssl::error::ErrorStack;
use openssl::rand::rand_bytes;
use tokio::sync::{mpsc, oneshot, watch, Notify};
use tokio::time::{timeout, Instant};

use super::counters::Ledger;
use super::list_file::ListFile;
use super::network::{Ears, Post};
use super::refusals::Refusals;
use super::running::Running;
use super::state_file::{StateFile, Written};
use super::{Deps, KeySet, Report, Role};
use crate::consensus::network::Chronicle;
use crate::consensus::state_machine::AgreedView;
use crate::consensus::{ballot_of, log_end_of};
use crate::core::config::{Member, Settings};
use crate::core::crowd::SMALL;
use crate::core::key_ring::{Generation, HistoryId};
use crate::core::moment::{millis, Moment};
use crate::core::record::Record;
use crate::core::rejoin::{with_hearsay, Ballot, Horizon, LogEnd, Quarantine, Status};
use crate::core::rotation::Order;
use crate::core::server_id::ServerId;
use crate::core::stek::Stek;
use crate::journal::{Level, Log};
use crate::rpc::{Hearsay, OrderRefusal};
use crate::transport::tls::Tls;
use crate::transport::{Counters, Heard, Me};

/// How long Raft's own tasks may take to stop.
const RAFT_STOP_LIMIT: Duration = Duration::from_millis(200);

/// A machine that was suspended for less than this is taken for one that was not: clocks are read
/// one after another, and that takes time.
const SUSPENSION_MIN: Duration = Duration::from_millis(100);

/// The clock's zero lies so long before the start.
const HEAD_START: Duration = Duration::from_secs(10 * 365 * 86_400);

/// An operator's order on its way to the leader's loop.
pub(super) struct QueuedOrder {
    pub order: Order,
    /// Who gave it, in words.
    pub origin: String,
    /// The way back.
    pub reply: oneshot::Sender<Result<Generation, OrderRefusal>>,
}

/// The newest key in the host's ticket context, and the history that it belongs to: a generation
/// says nothing about another history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Installed {
    pub history: Option<HistoryId>,
    pub newest: Generation,
    /// Whether an agreed key encrypts.
    pub agreed: bool,
}

/// What the members said when they were last asked for others.
#[derive(Default)]
pub(super) struct Survey {
    pub begun: Option<Moment>,
    pub said: Vec<Hearsay>,
}

/// See the module's head.
pub(super) struct Shared {
    settings: watch::Sender<Arc<Settings>>,
    members: Mutex<Arc<[Member]>>,
    pub log: Log,
    pub me: ServerId,
    /// The way to the other boxes.
    pub post: Post,
    /// The newest certificates and whose are accepted; all connections go by them. Changed by
    /// [`Shared::set_certificates`] and [`Shared::set_members`] only.
    pub tls: watch::Sender<Tls>,
    /// What this box says of itself in every frame.
    pub sender: Me,
    /// When each member was last heard, whoever dialled.
    pub heard: Heard,
    /// What the listener let in and kept out.
    pub counters: Arc<Counters>,
    /// The keys that the gate kept out.
    pub refusals: Refusals,
    /// What is noted for operators alone.
    pub ledger: Ledger,
    /// The agreed state, as this box's present run of Raft has applied it.
    pub views: watch::Sender<AgreedView>,
    /// What this box may do about votes; silent while it asks around.
    pub quarantine: watch::Sender<Quarantine>,
    /// Whether too few boxes can be reached for a majority.
    pub hopeless: watch::Sender<bool>,
    /// Whether this box goes on with a key of its own because the group's is too old.
    pub alone: watch::Sender<bool>,
    /// What the host has installed.
    pub installed: watch::Sender<Installed>,
    /// Orders of operators, for the leader's loop.
    pub orders: mpsc::Sender<QueuedOrder>,
    /// Rung whenever another box says what it is.
    pub answered: Notify,
    /// Rung when a box without memory has shown up; see [`Shared::take_newcomers`].
    pub newcomer: Notify,
    /// Rung when a box of another history was met; see [`Shared::foreigner`].
    pub met: Notify,
    /// Rung when the leader leaves and wants this box to stand.
    pub stand_now: Notify,
    /// The latest round of questions to all members, and one at a time; see `survey`.
    pub survey: tokio::sync::Mutex<Survey>,
    /// Members that are being asked whether they are still there; see `inbox`.
    pub doubted: Mutex<BTreeSet<ServerId>>,
    /// Rung when a leader was heard.
    pub contacted: Notify,
    /// Whether this box is about to end: it beats no more.
    pub leaving: watch::Sender<bool>,
    /// Lets the others in, until this box ends.
    pub listener: Mutex<Option<Ears>>,
    /// See [`Shared::is_reborn`].
    reborn: AtomicBool,
    /// What the file of the server list holds.
    pub list_file: ListFile,
    /// Where keys are kept over a restart, if anywhere; see [`super::records`].
    pub state_file: Option<StateFile>,
    /// How far that file is.
    pub written: watch::Sender<Written>,
    /// What a box whose Raft goes on with other timers says of itself meanwhile.
    retiming: Mutex<Option<Status>>,
    /// When this box started, on the clock of timers.
    started: Instant,
    /// See [`Outside::suspended`](super::outside::Outside::suspended).
    suspended: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// What that said at the start.
    suspended_before: Duration,
    /// How long the machine has been suspended since, as of the last look at the time.
    slept: watch::Sender<Duration>,
    running: Arc<Mutex<Option<Running>>>,
    sender_history: HistoryLook,
    facts: Mutex<Facts>,
}

/// Looks up the history that this box belongs to.
type HistoryLook = Arc<dyn Fn() -> Option<HistoryId> + Send + Sync>;

/// Names a key without its bytes.
type ToldKey = (Option<HistoryId>, Generation);

#[derive(Default)]
struct Facts {
    /// This box's own first key, to be offered to a group that has none yet.
    initial: Option<Stek>,
    /// The latest that each other box said of itself, and when.
    answers: BTreeMap<ServerId, (Moment, Status)>,
    /// The latest that others passed on of what each other box said of itself, and when it did.
    hearsay: BTreeMap<ServerId, (Moment, Status)>,
    /// When each other box last acknowledged this leader.
    acknowledged: BTreeMap<ServerId, Moment>,
    /// When a leader's message was last accepted.
    contact: Option<Moment>,
    /// When this box last voted for another one of a large group.
    supported: Option<Moment>,
    /// Whether that leader said that it has a majority.
    told_quorum: bool,
    /// When a leader last said so.
    quorum: Option<Moment>,
    /// When this box last had all that such a leader has.
    level: Option<Moment>,
    /// When after its last beat the leader said that the next one is due.
    next_beat: Duration,
    /// The same after the beat before, for a leader: what was heard may still be an answer to it.
    next_beat_before: Duration,
    /// Boxes without memory that have shown up lately; members only.
    newcomers: BTreeSet<ServerId>,
    /// The box of another history that was met last.
    foreigner: Option<ServerId>,
    /// A key and when it became current, as a leader told.
    told: Option<(ToldKey, Moment)>,
    /// What this box read from its state file, and since when its newest key was current. Until the
    /// group's keys are known.
    kept: Option<(Record, Moment)>,
    /// The generation of the last revocation that the state file knows of.
    revoked_on_disk: Generation,
}

impl Shared {
    pub fn new(
        settings: Settings,
        deps: Deps,
        orders: mpsc::Sender<QueuedOrder>,
    ) -> Result<Arc<Shared>, ErrorStack> {
        let Deps { log, tls, initial, versions, outside } = deps;
        let mut incarnation = [0; 8];
        rand_bytes(&mut incarnation)?;
        let views = watch::Sender::new(AgreedView::default());
        let ring = views.subscribe();
        let running: Arc<Mutex<Option<Running>>> = Arc::default();
        let sender_history: HistoryLook = {
            let running = running.clone();
            Arc::new(move || {
                let of_ring = ring.borrow().agreed.ring.history();
                of_ring.or_else(|| lock(&running).as_ref().and_then(|r| r.log.history()))
            })
        };
        let sender = {
            let history = sender_history.clone();
            Me::member(settings.server_id, u64::from_be_bytes(incarnation), move || {
                history().map_or([0; 16], HistoryId::to_bytes)
            })
            .speaking(versions)
        };
        let (dir, disk) = (settings.state_dir.as_deref(), outside.disk.clone());
        let state_file = dir.map(|dir| StateFile::new(dir, settings.server_id, disk));
        let tls = watch::Sender::new(tls.with_members(&settings.members));
        let heard = Heard::new();
        let post = Post::new(
            (outside.mail, outside.bounds),
            outside.resolver,
            &log,
            tls.subscribe(),
            &sender,
            &heard,
        );
        post.set_members(&settings.members);
        Ok(Arc::new(Shared {
            me: settings.server_id,
            members: Mutex::new(settings.members.clone().into()),
            settings: watch::Sender::new(Arc::new(settings)),
            refusals: Refusals::new(log.clone()),
            ledger: Ledger::default(),
            log,
            post,
            tls,
            sender,
            heard,
            counters: Counters::new(),
            views,
            quarantine: watch::Sender::new(Quarantine::Silent),
            hopeless: watch::Sender::new(false),
            alone: watch::Sender::default(),
            installed: watch::Sender::default(),
            orders,
            answered: Notify::new(),
            newcomer: Notify::new(),
            met: Notify::new(),
            stand_now: Notify::new(),
            survey: tokio::sync::Mutex::default(),
            doubted: Mutex::default(),
            contacted: Notify::new(),
            leaving: watch::Sender::new(false),
            listener: Mutex::new(None),
            reborn: AtomicBool::new(false),
            list_file: ListFile::new(outside.list_file),
            state_file,
            written: watch::Sender::default(),
            retiming: Mutex::new(None),
            started: Instant::now(),
            suspended_before: (outside.suspended)(),
            suspended: outside.suspended,
            slept: watch::Sender::default(),
            running,
            sender_history,
            facts: Mutex::new(Facts { initial: Some(initial), ..Facts::default() }),
        }))
    }

    /// The present moment. Starts ten years after the clock's zero, so that ages that are told by
    /// others fit before it. Goes on while the machine is suspended, unlike the clock of timers: who
    /// waits for a key to be old enough has to wait for [`Shared::watch_slept`] as well.
    pub fn now(&self) -> Moment {
        Moment::from_start(HEAD_START + self.age())
    }

    /// How long ago this box started.
    pub fn age(&self) -> Duration {
        self.started.elapsed() + self.slept()
    }

    /// How long the machine has been suspended since then. Whoever asks for the time finds out, and
    /// with the host's metrics and among members somebody does so every few seconds.
    fn slept(&self) -> Duration {
        let total = (self.suspended)().saturating_sub(self.suspended_before);
        let known = *self.slept.borrow();
        if total < known + SUSPENSION_MIN {
            return known;
        }
        self.slept.send_if_modified(|known| {
            let is_more = total > *known;
            *known = total.max(*known);
            is_more
        });
        self.log.debug(format!("the machine was suspended for {} s", (total - known).as_secs()));
        total
    }

    /// Changes when the machine was suspended, which no timer notices.
    pub fn watch_slept(&self) -> watch::Receiver<Duration> {
        self.slept.subscribe()
    }

    /// What the operator wants at present.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    pub fn watch_settings(&self) -> watch::Receiver<Arc<Settings>> {
        self.settings.subscribe()
    }

    pub fn set_settings(&self, settings: Settings) {
        self.settings.send_replace(Arc::new(settings));
    }

    /// Takes over the list in the file, where it has become the agreed one without a reload here.
    pub fn set_file_list(&self, members: Vec<Member>) {
        self.settings.send_modify(|settings| {
            *settings = Arc::new(Settings { members, ..(**settings).clone() });
        });
    }

    /// The members: those of the agreed list as far as this box knows one, else those of its file.
    pub fn members(&self) -> Arc<[Member]> {
        lock(&self.members).clone()
    }

    /// Takes over the members that the group agreed on.
    pub fn set_members(&self, members: &[Member]) {
        {
            let mut present = lock(&self.members);
            if **present == *members {
                return;
            }
            *present = members.into();
        }
        // Who may connect follows, as the certificates do.
        self.tls.send_modify(|tls| *tls = tls.with_members(&self.members()));
        self.post.set_members(members);
        if let Some(listener) = lock(&self.listener).as_ref() {
            listener.set_members(members);
        }
    }

    /// Takes over new certificates. Connections that stand are judged by them before anything
    /// else is sent or heard on them.
    pub fn set_certificates(&self, new: Tls) {
        // The members are looked up inside, so that a list that changes meanwhile is not lost.
        self.tls.send_modify(|tls| *tls = new.in_place_of(tls).with_members(&self.members()));
    }

    /// All members but this one.
    pub fn others(&self) -> impl Iterator<Item = ServerId> {
        let (members, me) = (self.members(), self.me);
        let ids: Vec<ServerId> = members.iter().map(|m| m.id).filter(|id| *id != me).collect();
        ids.into_iter()
    }

    /// All members, this one included.
    pub fn ids(&self) -> BTreeSet<ServerId> {
        self.members().iter().map(|member| member.id).collect()
    }

    /// The leader, if one is known.
    pub fn leader(&self) -> Option<ServerId> {
        self.running().and_then(|running| running.raft.server_metrics().borrow().current_leader)
    }

    pub fn running(&self) -> Option<Running> {
        lock(&self.running).clone()
    }

    pub fn set_running(&self, running: Option<Running>) {
        *lock(&self.running) = running;
    }

    /// Stops Raft, if it runs.
    pub async fn stop_raft(&self) {
        if let Some(running) = self.running() {
            let _ = timeout(RAFT_STOP_LIMIT, running.raft.shutdown()).await;
        }
        self.set_running(None);
    }

    /// What this box says of itself to the others.
    pub fn status(&self) -> Status {
        let view = self.views.borrow().clone();
        let Some(running) = self.running() else {
            return lock(&self.retiming).clone().unwrap_or_default();
        };
        let lifted = *self.quarantine.borrow() == Quarantine::Lifted;
        let history = view.agreed.ring.history();
        Status {
            full: lifted && history.is_some(),
            ballot: running.log.vote().as_ref().map(ballot_of).unwrap_or_default(),
            log_end: running.log.last_log_id().as_ref().map(log_end_of),
            history,
            generation: view.agreed.ring.newest(),
            live_leader: self.knows_live_leader(&running),
            may_vote: lifted,
            quorum: self.is_with_majority(&running),
        }
    }

    /// Says of this box what it is, while its Raft is begun anew with all that it remembers.
    pub fn set_retiming(&self, status: Option<Status>) {
        *lock(&self.retiming) = status;
    }

    /// Keeps what this box read from its state file.
    pub fn keep_record(&self, record: Record) {
        let since = self.now().ago(record.age());
        let mut facts = lock(&self.facts);
        facts.revoked_on_disk = record.ring.revoked();
        facts.kept = Some((record, since));
    }

    /// What this box read from its state file, as old as it is now.
    pub fn kept_record(&self) -> Option<Record> {
        let kept = lock(&self.facts).kept.clone();
        let aged = |(record, since)| {
            let age_ms = millis(self.now().since(since));
            Record { age_ms, ..record }
        };
        kept.map(aged)
    }

    /// The group's keys are known, and the file's are of no use any more.
    pub fn drop_record(&self) {
        lock(&self.facts).kept = None;
    }

    pub fn revoked_on_disk(&self) -> Generation {
        lock(&self.facts).revoked_on_disk
    }

    pub fn note_revoked_on_disk(&self, revoked: Generation) {
        lock(&self.facts).revoked_on_disk = revoked;
    }

    /// What this box says of itself to one that asks, and that may want its vote.
    pub fn status_for(&self, asker: &Status) -> Status {
        let may_vote = self.running().is_some() && self.quarantine.borrow().admits(asker.log_end);
        Status { may_vote, ..self.status() }
    }

    /// Whether this box belongs to a majority that agrees at present.
    pub fn in_majority(&self) -> bool {
        self.running().is_some_and(|running| self.is_with_majority(&running))
    }

    fn is_with_majority(&self, running: &Running) -> bool {
        if running.raft.server_metrics().borrow().state == ServerState::Leader {
            return self.has_quorum();
        }
        let bound = self.settings().timers.election_upper + self.lateness();
        let now = self.now();
        let facts = lock(&self.facts);
        facts.told_quorum && facts.contact.is_some_and(|at| now.since(at) < bound)
    }

    /// Whether a leader, possibly this box, has shown itself lately.
    fn knows_live_leader(&self, running: &Running) -> bool {
        // Not within the match, where the look would last until a second one for the quorum: a
        // writer that waits in between would wait for the first, and the second for the writer.
        let state = running.raft.server_metrics().borrow().state;
        match state {
            ServerState::Leader => self.has_quorum() && !*self.leaving.borrow(),
            _ => self.hears_leader(),
        }
    }

    /// Whether another box has shown itself as the leader so lately that this one gives no vote.
    pub fn hears_leader(&self) -> bool {
        let lease = self.settings().timers.election_lower + self.lateness();
        let now = self.now();
        lock(&self.facts).contact.is_some_and(|at| now.since(at) < lease)
    }

    /// By how much the leader's beats are further apart than this box's `heart_beat_interval`, as
    /// they are in a calm group and in a large one; so much longer it waits for them.
    pub fn lateness(&self) -> Duration {
        let heart_beat = self.settings().timers.heart_beat;
        lock(&self.facts).next_beat.saturating_sub(heart_beat)
    }

    /// How long ago a box was heard that counts as reachable: the upper election bound, and by how
    /// much the beats are late.
    pub fn reach(&self) -> Duration {
        let timers = self.settings().timers;
        let facts = lock(&self.facts);
        let next = facts.next_beat.max(facts.next_beat_before);
        timers.election_upper + next.saturating_sub(timers.heart_beat)
    }

    /// Notes when the leader, be it this box, says that its next beat is due.
    pub fn note_pace(&self, next: Duration) {
        let mut facts = lock(&self.facts);
        facts.next_beat_before = std::mem::replace(&mut facts.next_beat, next);
    }

    /// Whether a key waits for all boxes to have it.
    pub fn is_handing_over(&self) -> bool {
        self.views.borrow().agreed.ring.staged().is_some()
    }

    /// Lets this box vote again if, by what a leader of `ballot` says, it has caught up.
    pub fn end_quarantine(&self, running: &Running, ballot: Ballot, commit: Option<LogEnd>) {
        let metrics = running.raft.data_metrics();
        let applied = metrics.borrow().last_applied.as_ref().map(log_end_of);
        if Quarantine::lifts(ballot.term, commit, applied) {
            let before = *self.quarantine.borrow();
            match before.caught_up() {
                Quarantine::Lifted => self.lift_quarantine(),
                next if next != before => {
                    self.quarantine.send_replace(next);
                    self.log.debug("caught up with the group");
                }
                _ => {}
            }
        }
    }

    /// This server counts from now on.
    pub fn lift_quarantine(&self) {
        self.quarantine.send_replace(Quarantine::Lifted);
        self.log.debug("caught up with the group; may vote again");
    }

    /// Whether this box leads, and a majority acknowledged that lately.
    pub fn leads_majority(&self, running: &Running) -> bool {
        let state = running.raft.server_metrics().borrow().state;
        state == ServerState::Leader && self.quorum_within(self.reach())
    }

    /// Whether a majority, this leader included, acknowledged it within `limit`.
    pub fn quorum_within(&self, limit: Duration) -> bool {
        let Some(running) = self.running() else { return false };
        let membership = running.raft.server_metrics().borrow().membership_config.clone();
        let configs = membership.membership().get_joint_config();
        let now = self.now();
        let facts = lock(&self.facts);
        let fresh = |id: &ServerId| {
            *id == self.me || facts.acknowledged.get(id).is_some_and(|at| now.since(*at) < limit)
        };
        configs.iter().all(|voters| voters.iter().filter(|id| fresh(id)).count() > voters.len() / 2)
    }

    pub fn note_answer(&self, from: ServerId, status: Status) {
        lock(&self.facts).answers.insert(from, (self.now(), status));
        self.answered.notify_one();
    }

    /// What the others said of themselves within `limit`.
    pub fn answers_within(&self, limit: Duration) -> BTreeMap<ServerId, Status> {
        fresh(&lock(&self.facts).answers, self.now(), limit)
    }

    /// The same with what others passed on.
    pub fn hearsay_within(&self, limit: Duration) -> BTreeMap<ServerId, Status> {
        let now = self.now();
        let facts = lock(&self.facts);
        let hearsay = fresh(&facts.hearsay, now, limit);
        with_hearsay(fresh(&facts.answers, now, limit), hearsay)
    }

    /// What the others said to this box of themselves within `limit`, to be passed on.
    pub fn answers_to_tell(&self, limit: Duration) -> Vec<Hearsay> {
        let now = self.now();
        let facts = lock(&self.facts);
        let known = facts.answers.iter().map(|(id, (at, status))| (*id, now.since(*at), status));
        let fresh = known.filter(|(_, age, _)| *age < limit);
        let told = fresh.map(|(from, age, status)| {
            let age_ms = millis(age).saturating_add(1).try_into().unwrap_or(u32::MAX);
            Hearsay { from, age_ms, status: status.clone() }
        });
        told.collect()
    }

    /// Takes what another box passed on in answer to a question that was sent at `asked`, unless
    /// it was said before `since`.
    pub fn note_hearsay(&self, told: Vec<Hearsay>, asked: Moment, since: Moment) {
        let others: BTreeSet<ServerId> = self.others().collect();
        let mut facts = lock(&self.facts);
        for Hearsay { from, age_ms, status } in told {
            let at = asked.ago(Duration::from_millis(age_ms.into()));
            let newest = facts.hearsay.get(&from).is_none_or(|(known, _)| *known <= at);
            if at >= since && newest && others.contains(&from) {
                facts.hearsay.insert(from, (at, status));
            }
        }
        drop(facts);
        self.answered.notify_one();
    }

    /// How far terms and logs may reach for this box to believe them.
    pub fn horizon(&self) -> Horizon {
        let (vote, end) = match self.running() {
            Some(Running { log, .. }) => (log.vote(), log.last_log_id()),
            None => (None, None),
        };
        let (term, index) = (vote.map_or(0, |v| v.leader_id.term), end.map_or(0, |id| id.index));
        // They need not be fresh, since terms and logs only grow.
        let generation = self.views.borrow().agreed.ring.newest();
        Horizon::of(term, index, generation, &self.answers_within(Duration::MAX))
    }

    /// Whether this box believes that there is this term, and this end of a log. Says so if not.
    pub fn believes(&self, from: ServerId, term: u64, index: u64) -> bool {
        let horizon = self.horizon();
        let believed = horizon.has_term(term) && horizon.has_index(index);
        if !believed {
            let line = format!(
                "server {from} counts far beyond what this box knows of (term {term}, entry \
                 {index}) and nobody bears it out; not believed: is that server sound?"
            );
            self.log.limited(Level::Warning, "absurd count", line);
        }
        believed
    }

    pub fn forget_answers(&self) {
        let mut facts = lock(&self.facts);
        facts.answers.clear();
        facts.hearsay.clear();
    }

    /// Notes that a leader's message was accepted, and whether that leader has a majority.
    pub fn note_contact(&self, has_quorum: bool) {
        let mut facts = lock(&self.facts);
        facts.contact = Some(self.now());
        facts.told_quorum = has_quorum;
        if has_quorum {
            facts.quorum = facts.contact;
        }
        drop(facts);
        self.contacted.notify_one();
    }

    /// The same of a beat, and that the next one is due after `next`.
    pub fn note_beat(&self, has_quorum: bool, next: Duration) {
        self.note_pace(next);
        self.note_contact(has_quorum);
    }

    /// When this box last knew of a majority that agrees: a leader told so, or enough others
    /// acknowledged this box as theirs.
    pub fn quorum_contact(&self) -> Option<Moment> {
        let membership =
            self.running().map(|r| r.raft.server_metrics().borrow().membership_config.clone());
        let now = self.now();
        let facts = lock(&self.facts);
        let acknowledged = |id: &ServerId| match *id == self.me {
            true => Some(now),
            false => facts.acknowledged.get(id).copied(),
        };
        let of_voters = |voters: &BTreeSet<ServerId>| {
            let mut times: Vec<Option<Moment>> = voters.iter().map(acknowledged).collect();
            times.sort_unstable();
            // The majority's last one to answer: with the newest at the end.
            times.get(times.len() - (times.len() / 2 + 1).min(times.len())).copied().flatten()
        };
        let configs = membership.as_ref().map(|m| m.membership().get_joint_config());
        let led = configs.and_then(|configs| configs.iter().map(of_voters).min().flatten());
        led.max(facts.quorum)
    }

    /// Notes that this box has all that a leader with a majority has.
    pub fn note_level(&self) {
        lock(&self.facts).level = Some(self.now());
    }

    /// When this box last had all that a leader with a majority has; now, if it is that leader.
    pub fn last_level(&self) -> Option<Moment> {
        let leads = self.running().is_some_and(|running| self.leads_majority(&running));
        if leads {
            return Some(self.now());
        }
        lock(&self.facts).level
    }

    /// Notes that the leader leaves: nobody has to wait for it any longer.
    pub fn note_farewell(&self) {
        lock(&self.facts).contact = None;
    }

    /// Notes a box that has no memory yet, which a leader need not keep waiting for a beat.
    pub fn note_newcomer(&self, id: ServerId) {
        lock(&self.facts).newcomers.insert(id);
        self.newcomer.notify_one();
    }

    /// The boxes without memory that have shown up since this was asked last.
    pub fn take_newcomers(&self) -> BTreeSet<ServerId> {
        std::mem::take(&mut lock(&self.facts).newcomers)
    }

    /// Notes that a box of another history was met.
    pub fn note_foreigner(&self, id: ServerId) {
        lock(&self.facts).foreigner = Some(id);
        self.met.notify_one();
    }

    /// The box of another history that was met last, once.
    pub fn foreigner(&self) -> Option<ServerId> {
        lock(&self.facts).foreigner.take()
    }

    /// Notes that this box voted for another one of a large group, which it then gives time.
    pub fn note_supported(&self) {
        if self.members().len() > SMALL {
            lock(&self.facts).supported = Some(self.now());
        }
    }

    pub fn supported(&self) -> Option<Moment> {
        lock(&self.facts).supported
    }

    pub fn contact(&self) -> Option<Moment> {
        lock(&self.facts).contact
    }

    /// Remembers how old a leader says that its current key is.
    pub fn note_age(&self, history: Option<HistoryId>, age: Option<(Generation, u64)>) {
        if let Some((generation, ms)) = age {
            let since = self.now().ago(Duration::from_millis(ms));
            let key = (history, generation);
            let mut facts = lock(&self.facts);
            facts.told = match facts.told {
                Some((told, at)) if told == key => Some((told, at.min(since))),
                _ => Some((key, since)),
            };
        }
    }

    /// When the view's current key became current: this box's own note, or an older one that it
    /// was told of, since an entry that is applied late is not young.
    pub fn current_since(&self, view: &AgreedView) -> Moment {
        let told = lock(&self.facts).told;
        match (view.agreed.ring.current(), told) {
            (Some(current), Some((key, at)))
                if key == (view.agreed.ring.history(), current.generation) =>
            {
                view.current_since.min(at)
            }
            _ => view.current_since,
        }
    }

    /// This box's own first key, as long as it is still worth offering.
    pub fn initial(&self) -> Option<Stek> {
        lock(&self.facts).initial.clone()
    }

    pub fn drop_initial(&self) {
        lock(&self.facts).initial = None;
    }

    /// This box has another key of its own now; the one before must not come back as the group's.
    pub fn replace_initial(&self, key: &Stek) {
        if let Some(initial) = &mut lock(&self.facts).initial {
            *initial = key.clone();
        }
    }

    /// The history that this box belongs to: that of its ring, or before the first entry of the
    /// log is applied, that of the log.
    pub fn history(&self) -> Option<HistoryId> {
        (self.sender_history)()
    }

    pub fn note_installed(&self, set: &KeySet) {
        let line = format!("installed {}", set.describe());
        if set.newest > set.current {
            self.log.debug(line);
        } else {
            self.log.note(line);
        }
        let (history, newest, agreed) = (set.history, set.newest, set.agreed);
        self.installed.send_replace(Installed { history, newest, agreed });
        self.ledger.moved.notify_one();
    }

    /// Whether this box has started anew as an empty one, and has not had the group's keys since.
    pub fn is_reborn(&self) -> bool {
        self.reborn.load(Ordering::Relaxed)
    }

    pub fn set_reborn(&self, reborn: bool) {
        self.reborn.store(reborn, Ordering::Relaxed);
    }

    /// Notes that the generations which the host has installed are no longer the group's.
    pub fn void_installed(&self) {
        self.installed.send_modify(|installed| installed.history = None);
    }

    /// The newest generation of the present history that the host has installed.
    pub fn installed_newest(&self) -> Generation {
        let installed = *self.installed.borrow();
        let history = self.views.borrow().agreed.ring.history();
        match installed.history == history {
            true => installed.newest,
            false => Generation(0),
        }
    }

    pub fn report(&self) -> Report {
        let view = self.views.borrow().clone();
        let now = self.now();
        let running = self.running();
        let metrics = running.as_ref().map(|r| r.raft.server_metrics().borrow().clone());
        let bound = self.reach();
        let lifted = *self.quarantine.borrow() == Quarantine::Lifted;
        let role = match metrics.as_ref().map(|m| m.state) {
            None => Role::Asking,
            Some(_) if !lifted => Role::Quarantined,
            Some(ServerState::Leader) if self.has_quorum() => Role::Leader,
            Some(ServerState::Candidate) => Role::Candidate,
            Some(_) => Role::Follower,
        };
        let voters = |m: &RaftServerMetrics<ServerId, EmptyNode>| {
            m.membership_config.membership().voter_ids().count()
        };
        let heard = |id| self.heard.last(id).is_some_and(|at| at.elapsed() < bound);
        Report {
            role,
            term: metrics.as_ref().map_or(0, |m| m.vote.leader_id.term),
            members: metrics.as_ref().map_or(0, voters),
            list_version: view.agreed.roster.as_ref().map_or(0, |roster| roster.version),
            leader: metrics.and_then(|m| m.current_leader),
            history: view.agreed.ring.history(),
            current: view.agreed.ring.current().map(|held| held.generation).unwrap_or_default(),
            fingerprint: view.agreed.ring.current().map(|held| held.stek.fingerprint()),
            staged: view.agreed.ring.staged().map(|staged| staged.held.generation),
            installed: self.installed_newest(),
            current_age: match view.agreed.ring.current() {
                Some(_) => now.since(self.current_since(&view)),
                None => Duration::ZERO,
            },
            log_entries: running.map_or(0, |r| r.log.len()),
            reachable: 1 + self.others().filter(|id| heard(*id)).count(),
        }
    }

    /// Turns tokio's clock into moments.
    pub fn moment_of(&self, at: Instant) -> Moment {
        self.now().ago(at.elapsed())
    }
}

impl Chronicle for Shared {
    fn current_age(&self) -> Option<(Generation, u64)> {
        let view = self.views.borrow().clone();
        let age = self.now().since(self.current_since(&view));
        view.agreed.ring.current().map(|held| (held.generation, millis(age)))
    }

    fn has_quorum(&self) -> bool {
        self.quorum_within(self.reach())
    }

    fn now(&self) -> Moment {
        Shared::now(self)
    }

    fn acknowledged(&self, by: ServerId) {
        lock(&self.facts).acknowledged.insert(by, self.now());
    }
}

/// Those of what boxes said that are not older than `limit`.
fn fresh(
    said: &BTreeMap<ServerId, (Moment, Status)>,
    now: Moment,
    limit: Duration,
) -> BTreeMap<ServerId, Status> {
    let fresh = said.iter().filter(|(_, (at, _))| now.since(*at) < limit);
    fresh.map(|(id, (_, status))| (*id, status.clone())).collect()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
