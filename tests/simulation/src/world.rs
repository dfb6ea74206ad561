//! One seed from its first event to its last: servers, network, faults, operators, clients, checks.
//!
//! Two phases. During the fault phase faults happen and the checkers look at every event (safety). Then all
//! faults end, and all servers must be one again, rotate on time and serve every ticket within a
//! bound (liveness), while the checkers look on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use stek_share::core::agreement::epoch::Epoch;
use stek_share::core::config::Member;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::witness::Witness;
use stek_share::log_sink::Level;
use stek_share::node::{NodeStatus, Role, SHUTDOWN_LIMIT};
use stek_share::transport::tls::Tls;

use crate::agreement::Traces;
use crate::cells::Bytes;
use crate::event_log::EventLog;
use crate::faults::ECHO;
use crate::list_memory::{ListMemory, ListNews};
use crate::machine::{Machine, Note, Notes, Set};
use crate::network::{strangers_hello, Link, Network};
use crate::plan::Plan;
use crate::promises::{
    seconds, Checked, Checkers, Event, Leader, Offer, Order, Sight, Trouble, View,
};
use crate::rng::Rng;
use crate::tickets::{open, seal, Ticket};
use crate::{MS, SECOND};

/// Within this time after the last fault all servers must be one.
pub const REUNION_LIMIT: u64 = 60 * SECOND;

/// How often checks look at what no event tells.
const LOOK: u64 = 250 * MS;

/// Between two visits of clients.
const VISIT: u64 = 200 * MS;

/// Tickets that clients keep.
const POCKET: usize = 64;

/// More than this at one instant, and something goes in circles.
const MOST_RUNS: u64 = 100_000;

/// Something that is to happen at a certain time.
pub enum Entry {
    /// A fault begins.
    Fault,
    /// A process comes back.
    Revive(u32),
    /// A process dies and is back at once.
    Restart(u32),
    /// A paused process goes on.
    Resume(u32),
    /// These links are well again, each in one direction.
    MendLinks(Vec<(u32, u32)>, Link),
    /// A disk is well again.
    MendDisk(u32),
    /// A server whose disk was slow is in step again.
    ForgiveDisk(u32),
    /// A process is killed, and comes back with the files of a backup.
    RollBack(u32),
    /// A host is well again.
    MendHost(u32),
    /// An operator gives an order.
    AdminCommand,
    /// One server is given an order.
    OrderOf(u32),
    /// An operator gives all servers up for lost that are down.
    Recover,
    /// An operator changes the list.
    ChangeList,
    /// The operator's files are in place: one server is told.
    TellList(u32, BTreeSet<u32>),
    /// A server that has left is switched off.
    Retire(u32),
    /// Clients come.
    Visit,
    /// Checks look.
    Look,
    /// Somebody knocks who must not be heard.
    Knock,
}

/// What one seed came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Which promise was broken, and how.
    pub broken: Option<String>,
    /// Digest of the event log.
    pub digest: u64,
    /// Simulated nanoseconds.
    pub simulated: u64,
    /// Servers.
    pub servers: u64,
    /// Faults, orders and list changes.
    pub faults: u64,
    /// Keys that became current.
    pub rotations: u64,
    /// Tickets offered, opened, and owed by a promise.
    pub tickets: [u64; 3],
    /// Messages sent.
    pub messages: u64,
    /// How long the servers took to be one again, in nanoseconds.
    pub reunion: u64,
}

/// A ticket in a client's pocket.
pub(crate) struct Kept {
    ticket: Ticket,
    key: Bytes,
    from: (u32, bool),
    taken: u64,
}

/// An operator's deed that is not done yet.
pub(crate) enum Pending {
    AdminCommand(usize, AdminCommand),
    Recover,
    List {
        target: BTreeSet<u32>,
        before: BTreeSet<u32>,
    },
    /// The group's own list comes first, because the group has left the target before.
    Detour {
        target: BTreeSet<u32>,
        before: BTreeSet<u32>,
    },
    Reload,
}

/// See the module's head.
pub struct World {
    pub(crate) plan: Rc<Plan>,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    pub(crate) network: Network,
    pub(crate) notes: Notes,
    pub(crate) machines: BTreeMap<u32, Machine>,
    pub(crate) sight: Sight,
    pub(crate) log: EventLog,
    pub(crate) faults: u64,
    pub(crate) tls: Tls,
    pub(crate) deeds: BTreeMap<u64, (u32, Pending)>,
    pub(crate) stopping: BTreeMap<u32, u64>,
    pub(crate) ill_links: BTreeMap<(u32, u32), Vec<Link>>,
    /// The list that the group surely has, unless a change came to an unknown end.
    pub(crate) listed: BTreeSet<u32>,
    pub(crate) list_busy: bool,
    /// All lists that an operator had in hand.
    pub(crate) lists: BTreeSet<BTreeSet<u32>>,
    pub(crate) next_deed: u64,
    agenda: BTreeMap<(u64, u64), Entry>,
    serial: u64,
    checkers: Checkers,
    traces: Traces,
    pub(crate) pocket: VecDeque<Kept>,
    /// All keys that a host ever had, in the order in which they came about.
    keys_seen: Vec<Bytes>,
    started: BTreeMap<u32, u64>,
    runs_now: u64,
    idle: bool,
    reunion: u64,
    /// Servers that have lost their memory and have not joined the group again.
    forgetful: BTreeSet<u32>,
    /// Orders that came to nothing, and until when they may still come true at least: until a key has been
    /// activated since.
    pub(crate) open_orders: Vec<(usize, u64)>,
    /// How many disks are ill.
    pub(crate) ill_disks: u32,
    /// What servers know of the list's changes.
    pub(crate) list_memory: ListMemory,
    /// Of which servers a cluster that is founded may have forgotten that they came or went, and its list.
    forgotten: BTreeMap<Epoch, (BTreeSet<u32>, BTreeSet<u32>)>,
    /// The clusters that have agreed on what they were founded from, by their counters.
    begun: BTreeSet<u64>,
}

impl World {
    /// The world of a seed, before its first event.
    pub fn new(seed: u64, tls: Tls, print: bool) -> World {
        let plan = Plan::new(&mut Rng::new(seed, 1));
        let mut world = World::with_plan(plan, seed, tls, EventLog::new(print));
        world.begin();
        world
    }

    /// A fleet of which no process runs and that nothing befalls, until somebody says so.
    pub fn with_plan(plan: Plan, seed: u64, tls: Tls, log: EventLog) -> World {
        let network = Network::new(Rng::new(seed, 2), plan.link);
        let listed: BTreeSet<u32> = (1..=plan.servers - plan.spare).collect();
        let sight = Sight::new(plan.clone());
        let mut world = World {
            plan: Rc::new(plan),
            rng: Rng::new(seed, 3),
            now: 0,
            network,
            notes: Notes::default(),
            machines: BTreeMap::new(),
            sight,
            log,
            faults: 0,
            tls,
            deeds: BTreeMap::new(),
            stopping: BTreeMap::new(),
            ill_links: BTreeMap::new(),
            lists: [listed.clone()].into(),
            listed,
            list_busy: false,
            next_deed: 1,
            agenda: BTreeMap::new(),
            serial: 0,
            checkers: Checkers::default(),
            traces: Traces::default(),
            pocket: VecDeque::new(),
            keys_seen: Vec::new(),
            started: BTreeMap::new(),
            runs_now: 0,
            idle: false,
            reunion: 0,
            forgetful: BTreeSet::new(),
            open_orders: Vec::new(),
            ill_disks: 0,
            list_memory: ListMemory::default(),
            forgotten: BTreeMap::new(),
            begun: BTreeSet::new(),
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let plan = self.plan.clone();
        self.log.say(0, 0, || format!("{plan:?}"));
        for id in 1..=plan.servers {
            let machine = Machine::new(id);
            machine.installing.lock().expect("one thread").takes = (0, plan.installing / MS);
            machine.write_file(self.members_of(&self.listed));
            self.machines.insert(id, machine);
            let mut view = View { listed: self.listed.contains(&id), ..View::default() };
            view.trouble = Trouble { now: 1, ended: 0 };
            view.unlisted_since = (!view.listed).then_some(0);
            self.sight.servers.insert(id, view);
        }
        self.note_votes(&[&self.listed.clone()]);
        self.at(LOOK, Entry::Look);
    }

    /// Has processes start, and what befalls them begin.
    fn begin(&mut self) {
        let plan = self.plan.clone();
        for id in self.listed.clone() {
            let late = self.rng.spread(1, 2000) * MS;
            self.at(late, Entry::Revive(id));
        }
        self.at(VISIT, Entry::Visit);
        self.at(SECOND, Entry::Knock);
        if !plan.faults.is_empty() {
            let first = self.rng.between(0, 2 * plan.fault_gap);
            self.at(first, Entry::Fault);
        }
        if let Some(gap) = plan.order_gap {
            self.at(gap, Entry::AdminCommand);
        }
        if let Some(gap) = plan.list_gap {
            self.at(gap, Entry::ChangeList);
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> Outcome {
        let outcome = self.fault_phase().and_then(|()| self.liveness());
        let [offered, opened, owed] = [
            self.checkers.tickets.offered,
            self.checkers.tickets.opened,
            self.checkers.tickets.owed,
        ];
        let outcome = Outcome {
            broken: outcome.err(),
            digest: self.log.digest(),
            simulated: self.now,
            servers: u64::from(self.plan.servers),
            faults: self.faults,
            rotations: self.sight.annals.current.len() as u64,
            tickets: [offered, opened, owed],
            messages: self.network.counts().sent,
            reunion: self.reunion,
        };
        self.end();
        outcome
    }

    /// Kills all that runs.
    pub(crate) fn end(&mut self) {
        let ids: Vec<u32> = self.machines.keys().copied().collect();
        for id in ids {
            self.kill(id);
        }
    }

    fn fault_phase(&mut self) -> Checked {
        self.run_until(self.plan.fault_phase)
    }

    /// Ends all faults and holds the servers to their bound.
    fn liveness(&mut self) -> Checked {
        self.idle = true;
        self.end_faults();
        let begun = self.now;
        self.log.say(self.now, 0, || "all faults have ended".to_owned());
        loop {
            match self.differences() {
                None => break,
                Some(words) if self.now - begun > REUNION_LIMIT => {
                    return Err(format!(
                        "liveness: not one {} after the last fault: {words}",
                        seconds(self.now - begun)
                    ));
                }
                Some(_) => {}
            }
            self.insist_on_list();
            self.run_until(self.now + LOOK)?;
        }
        self.reunion = self.now - begun;
        self.log.say(self.now, 0, || "all are one".to_owned());
        let generation = self.generation();
        // No promise is suspended any more: the next rotation comes on time, and all follow it.
        let limit = self.plan.interval + self.plan.interval / 20 + 2 * self.sight.settling();
        let rotated = self.now + limit;
        while self.generation() <= generation || self.differences().is_some() {
            if self.now > rotated {
                return Err(format!(
                    "liveness: no rotation within {}: {:?}",
                    seconds(limit),
                    self.differences()
                ));
            }
            self.run_until(self.now + LOOK)?;
        }
        self.everybody_serves()
    }

    fn generation(&self) -> u64 {
        let sets = self.sight.servers.values().filter_map(|view| view.set.as_ref());
        sets.filter(|set| set.agreed).map(|set| set.current).max().unwrap_or(0)
    }

    /// What keeps the servers from being one.
    fn differences(&self) -> Option<String> {
        let mut first: Option<NodeStatus> = None;
        let mut leaders = 0;
        for (id, machine) in &self.machines {
            let Some(report) = machine.node_status(self.now) else {
                return Some(format!("server {id} does not run"));
            };
            let view = &self.sight.servers[id];
            if !view.listed || !view.serving {
                return Some(format!("server {id} is not listed or does not serve"));
            }
            leaders += usize::from(report.role == Role::Leader);
            if !matches!(report.role, Role::Leader | Role::Follower) {
                return Some(format!("server {id} is {:?}", report.role));
            }
            let set = view.set.as_ref();
            let used = set.filter(|set| set.agreed).map(|set| (set.current, set.newest));
            let same = |other: &NodeStatus| {
                (report.cluster_id, report.leader, report.current, report.list_version)
                    == (other.cluster_id, other.leader, other.current, other.list_version)
            };
            let whole = report.members == self.machines.len()
                && report.cluster_id.is_some()
                && used == Some((report.current.0, report.current.0));
            if !whole || first.as_ref().is_some_and(|first| !same(first)) {
                return Some(format!("server {id} has {report:?} and uses {used:?}"));
            }
            first = Some(report);
        }
        (leaders != 1).then(|| format!("{leaders} leaders"))
    }

    /// Every server gives a ticket, and every server opens it.
    fn everybody_serves(&mut self) -> Checked {
        let ids: Vec<u32> = self.machines.keys().copied().collect();
        for from in &ids {
            let Some(kept) = self.take_ticket(*from) else {
                return Err(format!("liveness: server {from} gives no ticket"));
            };
            for to in &ids {
                if !self.offer(&kept, *to)? {
                    return Err(format!(
                        "liveness: server {to} does not open a ticket that server {from} just gave"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Puts something on the agenda, `after` so many nanoseconds.
    pub(crate) fn at(&mut self, after: u64, entry: Entry) {
        self.serial += 1;
        self.agenda.insert((self.now + after, self.serial), entry);
    }

    /// Takes all that mends something from the agenda, and drops all that would break something.
    pub(crate) fn take_mends(&mut self) -> Vec<Entry> {
        let (now, later) = std::mem::take(&mut self.agenda)
            .into_iter()
            .partition(|(_, entry)| !matches!(entry, Entry::Visit | Entry::Look | Entry::Knock));
        self.agenda = later;
        let now: BTreeMap<(u64, u64), Entry> = now;
        now.into_values()
            .filter(|entry| {
                !matches!(
                    entry,
                    Entry::Fault | Entry::AdminCommand | Entry::ChangeList | Entry::TellList(..)
                )
            })
            .collect()
    }

    /// Goes on until a moment, unless a promise is broken before.
    pub(crate) fn run_until(&mut self, end: u64) -> Checked {
        loop {
            let servers = self.machines.values().filter_map(|machine| machine.next(self.now)).min();
            let entry = self.agenda.keys().next().map(|(at, _)| *at);
            let next = [servers, entry, self.network.next()].into_iter().flatten().min();
            let next = next.unwrap_or(end).max(self.now);
            if next >= end {
                self.set_now(end);
                return Ok(());
            }
            self.set_now(next);
            self.runs_now += 1;
            if self.runs_now > MOST_RUNS {
                return Err("something goes in circles without time going by".to_owned());
            }
            while let Some((to, arrival)) = self.network.arrived() {
                self.log.mix(next, to, 1);
                match self.machines.get_mut(&to).filter(|machine| machine.runs()) {
                    Some(machine) => machine.arrive(arrival),
                    None => self.network.refuse(to, arrival),
                }
            }
            if let Some(((at, _), _)) = self.agenda.first_key_value().map(|(k, _)| (*k, ())) {
                if at <= self.now {
                    if let Some((_, entry)) = self.agenda.pop_first() {
                        self.perform(entry)?;
                    }
                }
            }
            self.run_servers()?;
        }
    }

    fn set_now(&mut self, now: u64) {
        if now != self.now {
            self.runs_now = 0;
        }
        self.now = now;
        self.sight.now = now;
        self.network.set_now(now);
    }

    fn run_servers(&mut self) -> Checked {
        let due: Vec<u32> = self
            .machines
            .iter()
            .filter(|(_, machine)| machine.next(self.now).is_some_and(|at| at <= self.now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.log.mix(self.now, id, 2);
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.run(self.now, &self.network);
            }
            self.read_notes()?;
        }
        Ok(())
    }

    fn perform(&mut self, entry: Entry) -> Checked {
        match entry {
            Entry::Look => {
                self.at(LOOK, Entry::Look);
                self.look()
            }
            Entry::Visit => {
                self.at(VISIT, Entry::Visit);
                self.visit()
            }
            Entry::Knock => {
                self.at(SECOND, Entry::Knock);
                self.knock()
            }
            other => {
                self.do_entry(other);
                Ok(())
            }
        }
    }

    /// Starts a process.
    pub(crate) fn start(&mut self, id: u32) {
        let (now, plan) = (self.now, self.plan.clone());
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if machine.runs() {
            return;
        }
        let settings = plan.settings(id, machine.file());
        let onlooker = Some(Arc::new(self.traces.clone()) as Arc<dyn Witness>);
        machine.start(now, &self.network, &self.notes, settings, self.tls.clone(), onlooker);
        self.log.say(now, id, || "starts".to_owned());
        self.started.insert(id, now);
        let run = machine.run_number();
        if let Some(view) = self.sight.servers.get_mut(&id) {
            view.run = run;
            view.runs = true;
            view.awake = true;
            view.trouble.end(now);
            view.leaves = false;
        }
    }

    /// Kills a process; whether there was one.
    pub(crate) fn kill(&mut self, id: u32) -> bool {
        self.network.close_connections(id);
        self.cut_power(id)
    }

    /// Notes that a server remembers nothing of what it promised, and whether that holds for a majority.
    pub(crate) fn record_amnesia(&mut self, id: u32) {
        self.forgetful.insert(id);
        let those = self.listed.intersection(&self.forgetful).count();
        if 2 * those >= self.listed.len() {
            self.sight.majority_forgot = Some(self.now);
        }
    }

    /// Kills a process without a word to anybody; whether there was one.
    pub(crate) fn cut_power(&mut self, id: u32) -> bool {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id).filter(|machine| machine.runs()) else {
            return false;
        };
        machine.kill(now, &self.network);
        // What is on its disk decrypts, and remembers no promise.
        self.record_amnesia(id);
        self.list_memory.end(now, id, self.plan.keeps_state);
        self.stopping.remove(&id);
        self.log.say(now, id, || "is gone".to_owned());
        let mut had = None;
        if let Some(view) = self.sight.servers.get_mut(&id) {
            view.runs = false;
            view.awake = false;
            view.serving = false;
            had = view.set.take();
            view.joined = None;
            view.joins_anew = false;
            view.trouble.begin();
        }
        let Sight { servers, annals, plan, files_failed, .. } = &mut self.sight;
        if let Some(had) = had.filter(|_| !plan.keeps_state || files_failed.is_some()) {
            annals.note_gone(&had.keys, servers.values().filter_map(|view| view.set.as_ref()));
        }
        let lost: Vec<u64> =
            self.deeds.iter().filter(|(_, (at, _))| *at == id).map(|(n, _)| *n).collect();
        for number in lost {
            self.done(number, Err("its process is gone".to_owned()));
        }
        // What it said in its last moments is no longer true.
        self.notes.take();
        true
    }

    pub(crate) fn members_of(&self, ids: &BTreeSet<u32>) -> Vec<Member> {
        ids.iter().map(|id| self.plan.member_of(*id, ids)).collect()
    }

    fn read_notes(&mut self) -> Checked {
        if let Some(words) = self.traces.refused() {
            return Err(words);
        }
        self.traces.take_news().into_iter().for_each(|news| self.note_list(news));
        for founded_by in self.traces.take_told() {
            self.sight.promised.insert(founded_by, self.now);
        }
        for (id, note) in self.notes.take() {
            match note {
                Note::Line(level, line) => self.heard_line(id, level, line)?,
                Note::Serving => {
                    self.log.say(self.now, id, || "serves".to_owned());
                    if let Some(view) = self.sight.servers.get_mut(&id) {
                        view.serving = true;
                    }
                }
                Note::Installed(set) => self.installed(id, set)?,
                Note::Done(number, result) => self.done(number, result),
                Note::Ended => self.ended(id)?,
            }
        }
        Ok(())
    }

    /// A cluster whose founding may have forgotten changes of the list goes on with the list of before: what
    /// these changes were about is in no list for sure, until an operator asks for one again.
    fn note_list(&mut self, news: ListNews) {
        match news {
            ListNews::Heard(id, members) => self.list_memory.hear(self.now, id, members),
            ListNews::Founded(founding) => {
                let founder = founding.epoch.founder.server.0;
                if self.list_memory.has_lost(founder) {
                    let has_not = |id: &&u32| !self.list_memory.has_lost(**id);
                    let told = founding.promised.iter().filter(has_not).copied().collect();
                    self.sight.annals.found_anew(founder, &told);
                }
                let forgotten = self.list_memory.forgotten(&founding);
                self.forgotten.insert(founding.epoch, (forgotten, founding.members));
            }
            ListNews::Begun(epoch) => {
                self.begun.insert(epoch.counter);
                let Some((forgotten, members)) = self.forgotten.remove(&epoch) else { return };
                let mut is_back = false;
                for id in forgotten {
                    let Some(view) = self.sight.servers.get_mut(&id) else { continue };
                    let was_out = view.unlisted_since.is_some();
                    if members.contains(&id) && was_out || !members.contains(&id) && view.listed {
                        view.listed = false;
                        view.unlisted_since = None;
                        is_back = true;
                    }
                }
                if is_back {
                    self.note_votes(&[&self.listed.clone(), &members]);
                    self.log.say(self.now, 0, || {
                        format!(
                            "the list is {members:?} again: who promised has lost the later one"
                        )
                    });
                }
            }
        }
    }

    fn heard_line(&mut self, id: u32, level: Level, line: String) -> Checked {
        if line == "no leader is heard; campaigning" {
            self.sight.candidates.push((id, self.now));
        }
        if let Some(view) = self.sight.servers.get_mut(&id) {
            if line.contains(" joining it as a new node") {
                view.joins_anew = true;
            } else if line == "caught up with the group" && std::mem::take(&mut view.joins_anew) {
                view.joined_anew = self.now;
            }
        }
        let term = line.strip_prefix("this server is the leader of term ");
        if let Some(term) = term.and_then(|term| term.parse().ok()) {
            let epoch = self.machines.get(&id).and_then(|machine| machine.node_status(self.now));
            let epoch = epoch.map_or(0, |report| report.epoch);
            let run = self.sight.servers.get(&id).map_or(0, |view| view.run);
            self.sight.leaders.push(Leader { at: self.now, id, run, epoch, term });
        }
        // What was revoked among who promised, or in another group, is dropped by the next key.
        let takes_over = line.starts_with("keys that were revoked in a group")
            || line == "the cluster has what it was founded from";
        if takes_over && self.sight.orders.iter().any(|order| order.revokes) {
            let (begun, over, revokes) = (self.now, self.now, true);
            self.sight.orders.push(Order { begun, over, revokes });
        }
        if line.ends_with("installed keys stay in use until then") {
            // It joins again, as one that has just started does.
            let now = self.now;
            if let Some(view) = self.sight.servers.get_mut(&id) {
                view.trouble.begin();
                view.trouble.end(now);
            }
        }
        let words = line.strip_prefix("generation ");
        let named = |what: &str| words.and_then(|words| words.strip_suffix(what)?.parse().ok());
        let generation = named(" is current");
        self.log.say(self.now, id, || format!("{level:?}: {line}"));
        if line == "the cluster has what it was founded from" {
            self.note_activation_in_base(id);
            self.note_who_has_to_join(id);
        }
        match generation {
            Some(generation) => self.activated(id, generation),
            None => Ok(()),
        }
    }

    fn cluster_id_of(&self, id: u32) -> Option<[u8; 16]> {
        let report = self.machines.get(&id)?.node_status(self.now)?;
        report.cluster_id.map(|cluster_id| cluster_id.to_bytes())
    }

    /// What a cluster is founded from may have an activation in it that nobody had applied.
    fn note_activation_in_base(&mut self, id: u32) {
        let report = self.machines.get(&id).and_then(|machine| machine.node_status(self.now));
        let place =
            report.and_then(|report| Some((report.cluster_id?.to_bytes(), report.current.0)));
        if let Some(place) = place.filter(|(_, generation)| *generation > 0) {
            self.sight.annals.record_activation(self.now, place);
        }
    }

    /// Who is not in the cluster of this server has to join it, for which it takes the word of two.
    fn note_who_has_to_join(&mut self, id: u32) {
        let epoch = |machine: &Machine| Some(machine.node_status(self.now)?.epoch);
        let Some(present) = self.machines.get(&id).and_then(epoch) else { return };
        let outside = self.machines.iter().filter(|(_, of)| epoch(of).is_some_and(|e| e < present));
        for id in outside.map(|(id, _)| *id).collect::<Vec<u32>>() {
            if let Some(view) = self.sight.servers.get_mut(&id) {
                view.joins_anew = true;
            }
        }
    }

    /// A server has applied an activation, which says nothing about its host yet.
    fn activated(&mut self, id: u32, generation: u64) -> Checked {
        let now = self.now;
        let Some(cluster_id) = self.cluster_id_of(id) else { return Ok(()) };
        if !self.sight.annals.activated.contains_key(&(cluster_id, generation)) {
            for (place, least) in std::mem::take(&mut self.open_orders) {
                if let Some(order) = self.sight.orders.get_mut(place) {
                    order.over = least.max(now + ECHO);
                }
            }
        }
        self.sight.annals.record_activation(now, (cluster_id, generation));
        self.sight.annals.noted.entry((id, cluster_id, generation)).or_insert(now);
        self.checkers.assess(&self.sight, &Event::Activated { cluster_id, generation })
    }

    fn installed(&mut self, id: u32, set: Set) -> Checked {
        let now = self.now;
        let names: Vec<String> = set.keys.iter().map(|key| self.key_name(key)).collect();
        self.log.say(now, id, || {
            let (first, rest) = names.split_first().map_or(("none", &[][..]), |(a, b)| (a, b));
            let whose = if set.agreed {
                format!("generation {}", set.current)
            } else {
                "its own".to_owned()
            };
            let opens = match rest {
                [] => String::new(),
                rest => format!(", still opens {}", rest.join(" ")),
            };
            format!("its host encrypts with key {first} ({whose}){opens}")
        });
        for place in self.sight.annals.note(now, &set) {
            self.sight.revoked.remove(&place);
        }
        // Who was sent a snapshot has heard of its activation, and writes no line of that.
        if let (true, Some(cluster_id)) = (set.agreed, set.cluster_id) {
            self.sight.annals.noted.entry((id, cluster_id, set.current)).or_insert(now);
        }
        if let Some(view) = self.sight.servers.get_mut(&id) {
            if set.agreed && view.joined.is_none() {
                view.joined = Some(now);
                self.forgetful.remove(&id);
            }
            view.set = Some(set.clone());
        }
        self.checkers.assess(&self.sight, &Event::Installed { at: id, set: &set })
    }

    /// Key 1, key 2 and so on: no bytes, and the same in each run.
    fn key_name(&mut self, key: &Bytes) -> String {
        let known = self.keys_seen.iter().position(|seen| seen == key);
        let place = known.unwrap_or_else(|| {
            self.keys_seen.push(*key);
            self.keys_seen.len() - 1
        });
        format!("k{}", place + 1)
    }

    /// An orderly shutdown is over; it has a limit.
    fn ended(&mut self, id: u32) -> Checked {
        let Some(begun) = self.stopping.remove(&id) else { return Ok(()) };
        let took = self.now - begun;
        let limit = SHUTDOWN_LIMIT.as_nanos() as u64;
        let well = |view: &View| view.trouble.now == 0 && view.trouble.ended <= begun;
        let well = self.sight.servers.get(&id).is_some_and(well);
        self.kill(id);
        if self.idle {
            self.at(MS, Entry::Revive(id));
        }
        // Clocks drift, and timers are a millisecond late.
        if well && took > limit + limit / 20 {
            Err(format!(
                "promise \"the host stays up\" is broken: the shutdown of server {id} took {}",
                seconds(took)
            ))
        } else {
            Ok(())
        }
    }

    /// Compares what each server's host uses with what the server's ring says. To a node that is in no cluster,
    /// or in one that has not agreed on what it was founded from, nothing is agreed: its ring is empty, and its
    /// host goes on with the last keys.
    fn record_lags(&mut self) {
        for (id, machine) in &self.machines {
            let report = machine.node_status(self.now).filter(|_| machine.is_awake());
            let Some(view) = self.sight.servers.get_mut(id) else { continue };
            view.told_age = report.as_ref().and_then(|report| {
                let age = report.current_age.as_nanos() as u64;
                Some((report.cluster_id?.to_bytes(), report.current.0, age))
            });
            let used = view.set.as_ref().filter(|set| set.agreed);
            let used = used.and_then(|set| Some((set.cluster_id?, set.current)));
            let agreed = report.and_then(|report| match (report.fingerprint, report.cluster_id) {
                (Some(_), Some(id)) => Some(Some((id.to_bytes(), report.current.0))),
                _ => self.begun.contains(&report.epoch).then_some(None),
            });
            view.note_lag(self.now, agreed, used);
        }
    }

    fn look(&mut self) -> Checked {
        self.record_lags();
        for (id, view) in &self.sight.servers {
            let since = self.started.get(id).copied().unwrap_or(0);
            let limit = self.plan.startup_wait + self.plan.startup_wait / 20 + SECOND;
            let quiet = view.trouble.now == 0 && view.trouble.ended <= since;
            if view.awake && !view.serving && quiet && self.now - since > limit {
                return Err(format!(
                    "promise \"the host stays up\" is broken: server {id} holds its host up for {}",
                    seconds(self.now - since)
                ));
            }
        }
        self.checkers.assess(&self.sight, &Event::Look)
    }

    fn visit(&mut self) -> Checked {
        let serving: Vec<u32> = self
            .sight
            .servers
            .iter()
            .filter(|(_, v)| v.awake && v.serving)
            .map(|(i, _)| *i)
            .collect();
        if serving.is_empty() {
            return Ok(());
        }
        let (from, to) = (*self.rng.pick(&serving), *self.rng.pick(&serving));
        let Some(kept) = self.take_ticket(from) else { return Ok(()) };
        self.offer(&kept, to)?;
        if self.pocket.len() >= POCKET {
            self.pocket.pop_front();
        }
        self.pocket.push_back(kept);
        let old = self.rng.below(self.pocket.len() as u64) as usize;
        let to = *self.rng.pick(&serving);
        if let Some(kept) = self.pocket.remove(old) {
            self.offer(&kept, to)?;
            self.pocket.insert(old.min(self.pocket.len()), kept);
        }
        Ok(())
    }

    /// A ticket that a server gives now, if it serves.
    pub(crate) fn take_ticket(&mut self, from: u32) -> Option<Kept> {
        let key = *self.sight.servers.get(&from)?.set.as_ref()?.keys.first()?;
        let ticket = seal(&key, &mut self.rng);
        let well = self.sight.settled(from);
        Some(Kept { ticket, key, from: (from, well), taken: self.now })
    }

    /// Offers a ticket to a server; whether it opens it.
    pub(crate) fn offer(&mut self, kept: &Kept, to: u32) -> Result<bool, String> {
        let set = self.sight.servers.get(&to).and_then(|view| view.set.as_ref());
        let opened = set.and_then(|set| open(&kept.ticket, &set.keys)).is_some();
        self.log.mix(self.now, to, 4 + u64::from(opened));
        let offer = Offer { key: kept.key, from: kept.from, taken: kept.taken, to, opened };
        self.checkers.assess(&self.sight, &Event::Offered(&offer))?;
        Ok(opened)
    }

    /// Somebody asks to be heard who is no member.
    fn knock(&mut self) -> Checked {
        let awake: Vec<u32> = self
            .sight
            .servers
            .iter()
            .filter(|(_, v)| v.awake && v.listed)
            .map(|(i, _)| *i)
            .collect();
        if awake.is_empty() {
            return Ok(());
        }
        let at = *self.rng.pick(&awake);
        self.knock_at(at).map(|_| ())
    }

    /// They ask a certain server; who of them was heard.
    pub(crate) fn knock_at(&mut self, at: u32) -> Result<Vec<u32>, String> {
        let mut admitted = Vec::new();
        let settling = self.sight.settling();
        let gone =
            self.sight.servers.iter().find(|(_, view)| {
                view.unlisted_since.is_some_and(|since| self.now - since > settling)
            });
        let mut guests = vec![(99, "a server id that is in no list"), (at, "its own server id")];
        guests.extend(gone.map(|(id, _)| (*id, "a server id that is not in the list")));
        for (id, as_whom) in guests {
            let hello = strangers_hello(id, self.rng.next());
            let (now, network) = (self.now, &self.network);
            let machine = self.machines.get_mut(&at);
            let answer = machine.and_then(|m| m.within(now, || network.would_admit(at, &hello)));
            let heard = answer.flatten() == Some(Ok(()));
            self.checkers.assess(&self.sight, &Event::Knocked { at, as_whom, heard })?;
            admitted.extend(heard.then_some(id));
        }
        Ok(admitted)
    }

    /// Whether faults are over for good.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle
    }
}
