//! One seed from its first event to its last: boxes, network, faults, operators, clients, judges.
//!
//! Two phases. During unrest faults happen and the judges look at every event (safety). Then all
//! faults end, and all boxes must be one again, rotate on time and serve every ticket within a
//! bound (liveness), while the judges look on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use stek_share::core::config::Member;
use stek_share::core::rotation::Order;
use stek_share::journal::Level;
use stek_share::node::{Report, Role, SHUTDOWN_LIMIT};
use stek_share::transport::tls::Tls;

use crate::cells::Bytes;
use crate::dice::Dice;
use crate::event_log::EventLog;
use crate::machine::{Machine, Note, Notes, Set};
use crate::network::{strangers_header, Network};
use crate::plan::Plan;
use crate::promises::{
    seconds, Annals, Event, Judges, Leader, Offer, Sight, Trouble, Verdict, View,
};
use crate::tickets::{open, seal, Ticket};
use crate::{MS, SECOND};

/// Within this time after the last fault all boxes must be one.
pub const REUNION_LIMIT: u64 = 60 * SECOND;

/// How often judges look at what no event tells.
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
    MendLinks(Vec<(u32, u32)>),
    /// A disk is well again.
    MendDisk(u32),
    /// A process is killed, and comes back with the files of a backup.
    RollBack(u32),
    /// A host is well again.
    MendHost(u32),
    /// An operator gives an order.
    Order,
    /// One box is given an order.
    OrderOf(u32),
    /// An operator changes the list.
    ChangeList,
    /// The operator's files are in place: one box is told.
    TellList(u32, BTreeSet<u32>),
    /// A box that has left is switched off.
    Retire(u32),
    /// Clients come.
    Visit,
    /// Judges look.
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
    /// Boxes.
    pub boxes: u64,
    /// Faults, orders and list changes.
    pub faults: u64,
    /// Keys that became current.
    pub rotations: u64,
    /// Tickets offered, opened, and owed by a promise.
    pub tickets: [u64; 3],
    /// Messages sent.
    pub messages: u64,
    /// How long the boxes took to be one again, in nanoseconds.
    pub reunion: u64,
}

/// A ticket in a client's pocket.
struct Kept {
    ticket: Ticket,
    key: Bytes,
    from: (u32, bool),
    taken: u64,
}

/// An operator's deed that is not done yet.
pub(crate) enum Pending {
    Order(usize, Order),
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
    pub(crate) dice: Dice,
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
    pub(crate) ill_links: BTreeMap<(u32, u32), u32>,
    /// The list that the group surely has, unless a change came to an unknown end.
    pub(crate) listed: BTreeSet<u32>,
    pub(crate) list_busy: bool,
    pub(crate) next_deed: u64,
    agenda: BTreeMap<(u64, u64), Entry>,
    serial: u64,
    judges: Judges,
    pocket: VecDeque<Kept>,
    started: BTreeMap<u32, u64>,
    runs_now: u64,
    calm: bool,
    reunion: u64,
    /// Boxes that have lost their memory and have not joined the group again.
    forgetful: BTreeSet<u32>,
}

impl World {
    /// The world of a seed, before its first event.
    pub fn new(seed: u64, tls: Tls, print: bool) -> World {
        let plan = Plan::new(&mut Dice::new(seed, 1));
        let network = Network::new(Dice::new(seed, 2), plan.link);
        let listed: BTreeSet<u32> = (1..=plan.boxes - plan.spare).collect();
        let sight = Sight {
            now: 0,
            plan: plan.clone(),
            boxes: BTreeMap::new(),
            links: BTreeMap::new(),
            leaders: Vec::new(),
            orders: Vec::new(),
            revoked: BTreeSet::new(),
            majority_forgot: None,
            doubt: None,
            files_failed: None,
            clock_lied: false,
            slowest: 0,
            pauses: Vec::new(),
            annals: Annals::default(),
        };
        let mut world = World {
            plan: Rc::new(plan),
            dice: Dice::new(seed, 3),
            now: 0,
            network,
            notes: Notes::default(),
            machines: BTreeMap::new(),
            sight,
            log: EventLog::new(print),
            faults: 0,
            tls,
            deeds: BTreeMap::new(),
            stopping: BTreeMap::new(),
            ill_links: BTreeMap::new(),
            listed,
            list_busy: false,
            next_deed: 1,
            agenda: BTreeMap::new(),
            serial: 0,
            judges: Judges::default(),
            pocket: VecDeque::new(),
            started: BTreeMap::new(),
            runs_now: 0,
            calm: false,
            reunion: 0,
            forgetful: BTreeSet::new(),
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let plan = self.plan.clone();
        self.log.say(0, 0, || format!("{plan:?}"));
        for id in 1..=plan.boxes {
            let machine = Machine::new(id);
            machine.installing.lock().expect("one thread").takes = (0, plan.installing / MS);
            machine.write_file(self.members_of(&self.listed));
            self.machines.insert(id, machine);
            let mut view = View { listed: self.listed.contains(&id), ..View::default() };
            view.trouble = Trouble { now: 1, ended: 0 };
            view.unlisted_since = (!view.listed).then_some(0);
            self.sight.boxes.insert(id, view);
        }
        for id in self.listed.clone() {
            let late = self.dice.spread(1, 2000) * MS;
            self.at(late, Entry::Revive(id));
        }
        self.at(LOOK, Entry::Look);
        self.at(VISIT, Entry::Visit);
        self.at(SECOND, Entry::Knock);
        if !plan.faults.is_empty() {
            let first = self.dice.between(0, 2 * plan.fault_gap);
            self.at(first, Entry::Fault);
        }
        if let Some(gap) = plan.order_gap {
            self.at(gap, Entry::Order);
        }
        if let Some(gap) = plan.list_gap {
            self.at(gap, Entry::ChangeList);
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> Outcome {
        let verdict = self.unrest().and_then(|()| self.liveness());
        let [offered, opened, owed] =
            [self.judges.tickets.offered, self.judges.tickets.opened, self.judges.tickets.owed];
        let outcome = Outcome {
            broken: verdict.err(),
            digest: self.log.digest(),
            simulated: self.now,
            boxes: u64::from(self.plan.boxes),
            faults: self.faults,
            rotations: self.sight.annals.current.len() as u64,
            tickets: [offered, opened, owed],
            messages: self.network.counts().sent,
            reunion: self.reunion,
        };
        let ids: Vec<u32> = self.machines.keys().copied().collect();
        for id in ids {
            self.kill(id);
        }
        outcome
    }

    fn unrest(&mut self) -> Verdict {
        self.run_until(self.plan.unrest)
    }

    /// Ends all faults and holds the boxes to their bound.
    fn liveness(&mut self) -> Verdict {
        self.calm = true;
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
        let sets = self.sight.boxes.values().filter_map(|view| view.set.as_ref());
        sets.filter(|set| set.agreed).map(|set| set.current).max().unwrap_or(0)
    }

    /// What keeps the boxes from being one.
    fn differences(&self) -> Option<String> {
        let mut first: Option<Report> = None;
        let mut leaders = 0;
        for (id, machine) in &self.machines {
            let Some(report) = machine.report(self.now) else {
                return Some(format!("box {id} does not run"));
            };
            let view = &self.sight.boxes[id];
            if !view.listed || !view.serving {
                return Some(format!("box {id} is not listed or does not serve"));
            }
            leaders += usize::from(report.role == Role::Leader);
            if !matches!(report.role, Role::Leader | Role::Follower) {
                return Some(format!("box {id} is {:?}", report.role));
            }
            let set = view.set.as_ref();
            let used = set.filter(|set| set.agreed).map(|set| (set.current, set.newest));
            let same = |other: &Report| {
                (report.history, report.leader, report.current, report.list_version)
                    == (other.history, other.leader, other.current, other.list_version)
            };
            let whole = report.members == self.machines.len()
                && report.history.is_some()
                && used == Some((report.current.0, report.current.0));
            if !whole || first.as_ref().is_some_and(|first| !same(first)) {
                return Some(format!("box {id} has {report:?} and uses {used:?}"));
            }
            first = Some(report);
        }
        (leaders != 1).then(|| format!("{leaders} leaders"))
    }

    /// Every box gives a ticket, and every box opens it.
    fn everybody_serves(&mut self) -> Verdict {
        let ids: Vec<u32> = self.machines.keys().copied().collect();
        for from in &ids {
            let Some(kept) = self.take_ticket(*from) else {
                return Err(format!("liveness: box {from} gives no ticket"));
            };
            for to in &ids {
                if !self.offer(&kept, *to)? {
                    return Err(format!(
                        "liveness: box {to} does not open a ticket that box {from} just gave"
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
                    Entry::Fault | Entry::Order | Entry::ChangeList | Entry::TellList(..)
                )
            })
            .collect()
    }

    fn run_until(&mut self, end: u64) -> Verdict {
        loop {
            let boxes = self.machines.values().filter_map(|machine| machine.next(self.now)).min();
            let entry = self.agenda.keys().next().map(|(at, _)| *at);
            let next = [boxes, entry, self.network.next()].into_iter().flatten().min();
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
                if let Some(machine) = self.machines.get_mut(&to) {
                    machine.arrive(arrival);
                }
            }
            if let Some(((at, _), _)) = self.agenda.first_key_value().map(|(k, _)| (*k, ())) {
                if at <= self.now {
                    if let Some((_, entry)) = self.agenda.pop_first() {
                        self.perform(entry)?;
                    }
                }
            }
            self.run_boxes()?;
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

    fn run_boxes(&mut self) -> Verdict {
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

    fn perform(&mut self, entry: Entry) -> Verdict {
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
        machine.start(now, &self.network, &self.notes, settings, self.tls.clone());
        self.log.say(now, id, || "starts".to_owned());
        self.started.insert(id, now);
        let run = machine.run_number();
        if let Some(view) = self.sight.boxes.get_mut(&id) {
            view.run = run;
            view.awake = true;
            view.trouble.end(now);
        }
    }

    /// Kills a process; whether there was one.
    pub(crate) fn kill(&mut self, id: u32) -> bool {
        self.network.close_connections(id);
        self.cut_power(id)
    }

    /// Notes that a box remembers nothing of what it promised, and whether that holds for a majority.
    pub(crate) fn note_amnesia(&mut self, id: u32) {
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
        self.note_amnesia(id);
        self.stopping.remove(&id);
        self.log.say(now, id, || "is gone".to_owned());
        if let Some(view) = self.sight.boxes.get_mut(&id) {
            view.awake = false;
            view.serving = false;
            view.set = None;
            view.joined = None;
            view.trouble.begin();
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
        ids.iter().map(|id| Plan::member(*id)).collect()
    }

    fn read_notes(&mut self) -> Verdict {
        for (id, note) in self.notes.take() {
            match note {
                Note::Line(level, line) => self.heard_line(id, level, line)?,
                Note::Serving => {
                    self.log.say(self.now, id, || "serves".to_owned());
                    if let Some(view) = self.sight.boxes.get_mut(&id) {
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

    fn heard_line(&mut self, id: u32, level: Level, line: String) -> Verdict {
        let term = line.strip_prefix("this server is the leader of term ");
        if let Some(term) = term.and_then(|term| term.parse().ok()) {
            self.sight.leaders.push(Leader { at: self.now, id, term });
        }
        if line.starts_with("the group goes on without something") {
            if self.sight.doubt.is_none() && self.sight.majority_forgot.is_none() {
                return Err(format!(
                    "promise \"one order\" is broken: box {id} is overruled though none forgot"
                ));
            }
            self.note_amnesia(id);
        }
        if line.ends_with("installed keys stay in use until then") {
            // It joins again, as one that has just started does.
            let now = self.now;
            if let Some(view) = self.sight.boxes.get_mut(&id) {
                view.trouble.begin();
                view.trouble.end(now);
            }
        }
        if line.starts_with("fewer than a majority remember") {
            let file = self.machines.get(&id).map(Machine::file);
            let asked = file.unwrap_or_default().iter().map(|member| member.id.0).collect();
            self.sight.joins_few(id, &asked, &self.forgetful);
        }
        let words = line.strip_prefix("generation ");
        let named = |what: &str| words.and_then(|words| words.strip_suffix(what)?.parse().ok());
        if let Some(staged) = named(" is staged") {
            self.sight.annals.staged.entry(staged).or_insert(self.now);
        }
        if let (Some(resumed), Some(history)) = (named(" is current again"), self.history_of(id)) {
            self.sight.annals.resumed.insert((history, resumed));
        }
        let generation = named(" is current").or(named(" is current again"));
        self.log.say(self.now, id, || format!("{level:?}: {line}"));
        match generation {
            Some(generation) => self.activated(id, generation),
            None => Ok(()),
        }
    }

    fn history_of(&self, id: u32) -> Option<[u8; 16]> {
        let report = self.machines.get(&id)?.report(self.now)?;
        report.history.map(|history| history.to_bytes())
    }

    /// A box has applied an activation, which says nothing about its host yet.
    fn activated(&mut self, id: u32, generation: u64) -> Verdict {
        let now = self.now;
        let Some(history) = self.history_of(id) else { return Ok(()) };
        self.sight.annals.note_activation(now, (history, generation));
        self.sight.annals.noted.entry((id, history, generation)).or_insert(now);
        self.judges.judge(&self.sight, &Event::Activated { history, generation })
    }

    fn installed(&mut self, id: u32, set: Set) -> Verdict {
        let now = self.now;
        self.log.say(now, id, || {
            let names: Vec<String> =
                set.keys.iter().map(|k| format!("{:02x}{:02x}", k[0], k[1])).collect();
            format!(
                "installs {names:?}, agreed {}, current {}, newest {}",
                set.agreed, set.current, set.newest
            )
        });
        for place in self.sight.annals.note(now, &set) {
            self.sight.revoked.remove(&place);
        }
        if let Some(view) = self.sight.boxes.get_mut(&id) {
            if set.agreed && view.joined.is_none() {
                view.joined = Some(now);
                self.forgetful.remove(&id);
            }
            view.set = Some(set.clone());
        }
        self.judges.judge(&self.sight, &Event::Installed { at: id, set: &set })
    }

    /// An orderly shutdown is over; it has a limit.
    fn ended(&mut self, id: u32) -> Verdict {
        let Some(begun) = self.stopping.remove(&id) else { return Ok(()) };
        let took = self.now - begun;
        let limit = SHUTDOWN_LIMIT.as_nanos() as u64;
        let well = |view: &View| view.trouble.now == 0 && view.trouble.ended <= begun;
        let well = self.sight.boxes.get(&id).is_some_and(well);
        self.kill(id);
        if self.calm {
            self.at(MS, Entry::Revive(id));
        }
        // Clocks drift, and timers are a millisecond late.
        match well && took > limit + limit / 20 {
            true => Err(format!(
                "promise \"the host stays up\" is broken: the shutdown of box {id} took {}",
                seconds(took)
            )),
            false => Ok(()),
        }
    }

    /// Compares what each box's host uses with what the box's ring says.
    fn note_lags(&mut self) {
        for (id, machine) in &self.machines {
            let report = machine.report(self.now).filter(|_| machine.is_awake());
            let Some(view) = self.sight.boxes.get_mut(id) else { continue };
            view.told_age = report.as_ref().and_then(|report| {
                let age = report.current_age.as_nanos() as u64;
                Some((report.history?.to_bytes(), report.current.0, age))
            });
            let used = view.set.as_ref().filter(|set| set.agreed).map(|set| set.current);
            let lags = match (report, used) {
                (Some(report), Some(used)) => report.current.0 != used,
                _ => false,
            };
            view.lags_since = lags.then(|| view.lags_since.unwrap_or(self.now));
        }
    }

    fn look(&mut self) -> Verdict {
        self.note_lags();
        self.sight.end_doubt();
        for (id, view) in &self.sight.boxes {
            let since = self.started.get(id).copied().unwrap_or(0);
            let limit = self.plan.startup_wait + self.plan.startup_wait / 20 + SECOND;
            let quiet = view.trouble.now == 0 && view.trouble.ended <= since;
            if view.awake && !view.serving && quiet && self.now - since > limit {
                return Err(format!(
                    "promise \"the host stays up\" is broken: box {id} holds its host up for {}",
                    seconds(self.now - since)
                ));
            }
        }
        self.judges.judge(&self.sight, &Event::Look)
    }

    fn visit(&mut self) -> Verdict {
        let serving: Vec<u32> = self
            .sight
            .boxes
            .iter()
            .filter(|(_, v)| v.awake && v.serving)
            .map(|(i, _)| *i)
            .collect();
        if serving.is_empty() {
            return Ok(());
        }
        let (from, to) = (*self.dice.pick(&serving), *self.dice.pick(&serving));
        let Some(kept) = self.take_ticket(from) else { return Ok(()) };
        self.offer(&kept, to)?;
        if self.pocket.len() >= POCKET {
            self.pocket.pop_front();
        }
        self.pocket.push_back(kept);
        let old = self.dice.below(self.pocket.len() as u64) as usize;
        let to = *self.dice.pick(&serving);
        if let Some(kept) = self.pocket.remove(old) {
            self.offer(&kept, to)?;
            self.pocket.insert(old.min(self.pocket.len()), kept);
        }
        Ok(())
    }

    fn take_ticket(&mut self, from: u32) -> Option<Kept> {
        let key = *self.sight.boxes.get(&from)?.set.as_ref()?.keys.first()?;
        let ticket = seal(&key, &mut self.dice);
        let well = self.sight.settled(from);
        Some(Kept { ticket, key, from: (from, well), taken: self.now })
    }

    fn offer(&mut self, kept: &Kept, to: u32) -> Result<bool, String> {
        let set = self.sight.boxes.get(&to).and_then(|view| view.set.as_ref());
        let opened = set.and_then(|set| open(&kept.ticket, &set.keys)).is_some();
        self.log.mix(self.now, to, 4 + u64::from(opened));
        let offer = Offer { key: kept.key, from: kept.from, taken: kept.taken, to, opened };
        self.judges.judge(&self.sight, &Event::Offered(&offer))?;
        Ok(opened)
    }

    /// Somebody asks to be heard who is no member.
    fn knock(&mut self) -> Verdict {
        let awake: Vec<u32> =
            self.sight.boxes.iter().filter(|(_, v)| v.awake && v.listed).map(|(i, _)| *i).collect();
        if awake.is_empty() {
            return Ok(());
        }
        let at = *self.dice.pick(&awake);
        let settling = self.sight.settling();
        let gone =
            self.sight.boxes.iter().find(|(_, view)| {
                view.unlisted_since.is_some_and(|since| self.now - since > settling)
            });
        let mut guests = vec![(99, "a server id that is in no list"), (at, "its own server id")];
        guests.extend(gone.map(|(id, _)| (*id, "a server id that is not in the list")));
        for (id, as_whom) in guests {
            let header = strangers_header(id, self.dice.next());
            let (now, network) = (self.now, &self.network);
            let machine = self.machines.get_mut(&at);
            let answer = machine.and_then(|m| m.within(now, || network.would_admit(at, &header)));
            let heard = answer.flatten() == Some(Ok(()));
            self.judges.judge(&self.sight, &Event::Knocked { at, as_whom, heard })?;
        }
        Ok(())
    }

    /// Whether faults are over for good.
    pub(crate) fn is_calm(&self) -> bool {
        self.calm
    }
}
