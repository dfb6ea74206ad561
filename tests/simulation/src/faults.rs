//! What goes wrong in a [`World`], how it mends, and what operators do.

use std::collections::BTreeSet;

use std::sync::Arc;
use stek_share::core::rotation::AdminCommand;
use stek_share::core::server_id::ServerId;
use stek_share::core::server_list::{voters, ServerList};
use stek_share::node::Node;

use crate::machine::{Machine, Note};
use crate::network::Link;
use crate::plan::Kind;
use crate::promises::Order;
use crate::world::{Entry, Pending, World};
use crate::{MS, SECOND};

/// How far a wall clock steps at most, in seconds either way.
const WALL_STEP: u64 = 4 * 3600;

/// How much a clock drifts at most, in millionths: ten times what a bad one does.
const DRIFT: u64 = 2000;

/// The word of a single one that leads would move no group that it meets again.
const LEAST_OF_SURVIVORS: usize = 2;

/// An order that was answered may still have an effect seen a moment later.
pub(crate) const ECHO: u64 = 2 * SECOND;

/// For so long the messages wait for a disk by which a server joins and has a staged key: four, and for each
/// as long as a server waits for its file.
const WAITS_FOR_DISK: u64 = 800 * MS;

impl World {
    /// Does what was on the agenda.
    pub(crate) fn do_entry(&mut self, entry: Entry) {
        match entry {
            Entry::Fault => self.fault(),
            Entry::Revive(id) => self.start(id),
            Entry::Restart(id) => self.restart(id),
            Entry::Resume(id) => self.resume(id),
            Entry::MendLinks(pairs, link) => self.mend_links(&pairs, link),
            Entry::MendDisk(id) => self.mend_disk(id),
            Entry::ForgiveDisk(id) => self.forgive_disk(id),
            Entry::RollBack(id) => self.roll_back(id),
            Entry::MendHost(id) => self.mend_host(id),
            Entry::AdminCommand => self.order(),
            Entry::OrderOf(id) => self.give_order(id),
            Entry::Recover => self.recover(),
            Entry::ChangeList => self.change_list(),
            Entry::TellList(id, target) => self.tell_list(id, target),
            Entry::Retire(id) => {
                self.kill(id);
            }
            // These come back by themselves.
            Entry::Visit | Entry::Look | Entry::Knock => {}
        }
    }

    fn fault(&mut self) {
        let gap = self.rng.between(0, 2 * self.plan.fault_gap);
        self.at(gap, Entry::Fault);
        let plan = self.plan.clone();
        let kind = *self.rng.pick(&plan.faults);
        let id = self.rng.between(1, u64::from(plan.servers)) as u32;
        let lasts = self.rng.spread(50, 15_000) * MS;
        self.faults += 1;
        self.log.say(self.now, id, || format!("fault {kind:?} for {} ms", lasts / MS));
        match kind {
            Kind::Kill => self.crash(id, lasts, true),
            Kind::KillEmpty => self.crash(id, lasts, false),
            Kind::Restart => self.restart(id),
            Kind::KillMany => self.crash_many(lasts),
            Kind::Stop => self.stop(id, lasts),
            Kind::Boot => self.boot(id, lasts),
            Kind::Pause => self.pause(id, lasts),
            Kind::WallStep => self.step_wall(id),
            Kind::Drift => {
                let drift = self.rng.between(0, 2 * DRIFT) as i64 - DRIFT as i64;
                let now = self.now;
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.set_drift(now, drift);
                }
            }
            Kind::Part | Kind::Isolate | Kind::CutOneWay => self.cut(kind, id, lasts),
            Kind::Loss | Kind::Delay | Kind::Disorder => self.weather(kind, lasts),
            Kind::SlowDisk | Kind::BrokenDisk => self.hurt_disk(kind, id, lasts),
            Kind::OldFile => self.back_up(id, lasts),
            Kind::SlowHost | Kind::BrokenHost => self.hurt_host(kind, id, lasts),
            Kind::LateVotes => self.vote_late(),
            Kind::Reset => self.reset(id),
            Kind::Recover => self.lose_many(lasts),
        }
    }

    /// Half of the servers or more are killed, and stay away until an operator has given them up.
    fn lose_many(&mut self, lasts: u64) {
        let mut ids: Vec<u32> = self.listed.iter().copied().collect();
        let turns = self.rng.below(ids.len() as u64) as usize;
        ids.rotate_left(turns);
        let given_up = self.plan.upper * self.rng.between(2, 12);
        for id in ids.split_off(ids.len() / 2) {
            let after = given_up + self.rng.below(lasts / MS + 1) * MS;
            let keeps = self.rng.chance(600);
            self.crash(id, after, keeps);
        }
        self.at(given_up, Entry::Recover);
    }

    /// An operator gives all servers up for lost that are down.
    fn recover(&mut self) {
        let Some(id) = self.some_member() else { return };
        let awake = self.machines.iter().filter(|(_, machine)| machine.is_awake());
        let survivors: BTreeSet<ServerId> =
            awake.filter(|(id, _)| self.listed.contains(id)).map(|(id, _)| ServerId(*id)).collect();
        if survivors.len() < LEAST_OF_SURVIVORS {
            return;
        }
        self.faults += 1;
        let number = self.begin_deed(id, Pending::Recover);
        self.log.say(self.now, id, || format!("is told to go on with {survivors:?} alone"));
        let notes = self.notes.clone();
        self.have(id, move |node| {
            let node = node.clone();
            tokio::spawn(async move {
                let result = node.recover(survivors).await;
                notes.leave(id, Note::Done(number, result.map(Some).map_err(|e| e.to_string())));
            });
        });
    }

    /// A vote request that arrives when one who granted it has begun anew: the leader is cut off
    /// from a half of the others until one of them campaigns, which one more server,
    /// heard by both halves, votes for; that one is back at once and with the leader, who is told
    /// to make a key, while the request is still on its way to the rest.
    fn vote_late(&mut self) {
        let (lower, upper) = (self.plan.lower, self.plan.upper);
        let Some(leader) = self.sight.leaders.last().map(|leader| leader.id) else { return };
        let mut others: Vec<u32> = self.listed.iter().copied().filter(|id| *id != leader).collect();
        let turns = self.rng.below(others.len() as u64) as usize;
        others.rotate_left(turns);
        let Some(between) = others.pop() else { return };
        let apart = others.split_off(others.len() / 2);
        others.push(leader);
        let cut = Link { cut: true, ..self.plan.link };
        let slow = Link { delay: (lower / 2, lower), ..self.plan.link };
        let again = lower + self.rng.below((upper + lower) / MS) * MS;
        let ways = |from: &[u32], to: &[u32]| -> Vec<(u32, u32)> {
            from.iter()
                .flat_map(|a| to.iter().map(move |b| (*a, *b)))
                .filter(|(a, b)| a != b)
                .collect()
        };
        let lasts = again + 2 * upper;
        self.set_links(ways(&others, &apart), cut, lasts);
        self.set_links(ways(&others, &[between]), cut, again);
        // What they answer each other is in time.
        let later: Vec<(u32, u32)> =
            ways(&apart, &apart).into_iter().filter(|(a, b)| a < b).collect();
        self.set_links([ways(&apart, &others), later].concat(), slow, lasts);
        self.at(again, Entry::Restart(between));
        let told = again + self.rng.below(lower / MS) * MS;
        self.at(told, Entry::OrderOf(leader));
    }

    /// Closes the connections of a server that lives, as a rule the leader. No trouble of anybody's: it
    /// can be dialled at once.
    fn reset(&mut self, id: u32) {
        let leader = self.sight.leaders.last().map(|leader| leader.id);
        let id = leader.filter(|_| self.rng.chance(700)).unwrap_or(id);
        if self.machines.get(&id).is_some_and(|machine| machine.is_awake()) {
            self.network.close_connections(id);
        }
    }

    /// Kills a process that comes back `after` so long.
    fn crash(&mut self, id: u32, after: u64, keeps: bool) {
        // A server that the operator switched off stays off.
        let killed = if keeps { self.kill(id) } else { self.kill_with_its_files(id) };
        if !killed {
            return;
        }
        if let Some(machine) = self.machines.get(&id).filter(|_| !keeps) {
            machine.disk.wipe();
        }
        self.at(after, Entry::Revive(id));
    }

    /// Kills a process whose present files are gone with it; whether there was one.
    fn kill_with_its_files(&mut self, id: u32) -> bool {
        let runs = self.machines.get(&id).is_some_and(|machine| machine.runs());
        if runs {
            // Before it is killed: its keys are lost if nobody else has them.
            self.fail_files();
            self.list_memory.lose(id);
        }
        runs && self.kill(id)
    }

    fn restart(&mut self, id: u32) {
        let keeps = self.rng.chance(500);
        let after = self.rng.below(20) * MS;
        self.crash(id, after, keeps);
    }

    fn crash_many(&mut self, lasts: u64) {
        let share = *self.rng.pick(&[400, 600, 1000]);
        let ids: Vec<u32> = self.machines.keys().copied().collect();
        let keeps = self.rng.chance(600);
        for id in ids {
            if self.rng.chance(share) {
                let after = self.rng.below(lasts / MS + 1) * MS;
                self.crash(id, after, keeps);
            }
        }
    }

    pub(crate) fn stop(&mut self, id: u32, lasts: u64) {
        let Some(machine) = self.machines.get_mut(&id).filter(|machine| machine.is_awake()) else {
            return;
        };
        if self.stopping.contains_key(&id) {
            return;
        }
        let notes = self.notes.clone();
        machine.have(Box::new(move |node: &Arc<Node>| {
            let node = node.clone();
            tokio::spawn(async move {
                node.shutdown().await;
                notes.leave(id, Note::Ended);
            });
        }));
        self.stopping.insert(id, self.now);
        if let Some(view) = self.sight.servers.get_mut(&id) {
            view.leaves = true;
        }
        // Should it hang, it is killed by then.
        self.at(lasts + 2 * SECOND, Entry::Revive(id));
    }

    fn boot(&mut self, id: u32, lasts: u64) {
        let steps = self.rng.chance(300);
        let now = self.now;
        let cut = self.rng.chance(500);
        let gone = if cut { self.cut_power(id) } else { self.kill(id) };
        if !gone {
            return;
        }
        self.network.switch_off(id);
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.boot(now);
        }
        if steps {
            self.step_wall(id);
        }
        self.at(lasts, Entry::Revive(id));
    }

    pub(crate) fn pause(&mut self, id: u32, lasts: u64) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id).filter(|machine| machine.is_awake()) else {
            return;
        };
        match lasts / MS % 2 {
            0 => machine.set_paused(now, true),
            _ => machine.suspend(now),
        }
        self.sight.pauses.push((id, now, now + lasts));
        if let Some(view) = self.sight.servers.get_mut(&id) {
            view.awake = false;
            view.trouble.begin();
        }
        self.at(lasts, Entry::Resume(id));
    }

    fn resume(&mut self, id: u32) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let runs = machine.runs() && !machine.is_awake();
        if runs {
            machine.set_paused(now, false);
        }
        if let Some(view) = self.sight.servers.get_mut(&id) {
            view.awake |= runs;
            view.trouble.end(now);
        }
    }

    fn step_wall(&mut self, id: u32) {
        let seconds = self.rng.between(0, 2 * WALL_STEP) as i64 - WALL_STEP as i64;
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.step_wall(seconds * SECOND as i64);
            // Only a wall clock tells how long a machine was off: it is believed within bounds.
            if self.plan.keeps_state && !machine.runs() {
                self.sight.clock_lied = Some(self.now);
            }
            // A file that was saved later than now, or too long ago, is believed by nobody.
            self.sight.clock_stepped = Some(self.now);
        }
    }

    fn cut(&mut self, kind: Kind, id: u32, lasts: u64) {
        let ids: Vec<u32> = self.machines.keys().copied().collect();
        let here: BTreeSet<u32> = match kind {
            Kind::Isolate => BTreeSet::from([id]),
            _ => ids.iter().copied().filter(|_| self.rng.chance(500)).collect(),
        };
        let one_way = kind == Kind::CutOneWay || self.rng.chance(200);
        let pairs: Vec<(u32, u32)> = match kind {
            Kind::CutOneWay => self.some_links(),
            _ => all_links(&ids)
                .filter(|(a, b)| here.contains(a) && !here.contains(b))
                .flat_map(|(a, b)| [(a, b), (b, a)].into_iter().take(if one_way { 1 } else { 2 }))
                .collect(),
        };
        let link = Link { cut: true, ..self.plan.link };
        self.set_links(pairs, link, lasts);
    }

    fn weather(&mut self, kind: Kind, lasts: u64) {
        let pairs = self.some_links();
        let usual = self.plan.link;
        let (least, most) = usual.delay;
        let link = match kind {
            Kind::Loss => Link { loss: self.rng.between(10, 600), ..usual },
            Kind::Delay => {
                let more = self.rng.spread(10, 2000) * MS;
                Link { delay: (least + more / 2, most + more), ..usual }
            }
            _ => Link { double: 300, delay: (least, most + self.plan.lower / 2), ..usual },
        };
        self.set_links(pairs, link, lasts);
    }

    fn some_links(&mut self) -> Vec<(u32, u32)> {
        let ids: Vec<u32> = self.machines.keys().copied().collect();
        let share = *self.rng.pick(&[200, 500, 1000]);
        all_links(&ids).filter(|_| self.rng.chance(share)).collect()
    }

    pub(crate) fn set_links(&mut self, pairs: Vec<(u32, u32)>, link: Link, lasts: u64) {
        self.log.say(self.now, 0, || {
            let what = if link.cut { "cut".to_owned() } else { format!("{link:?}") };
            format!("{what}: {}", ways(&pairs))
        });
        self.sight.slowest = self.sight.slowest.max(link.delay.1);
        for (from, to) in &pairs {
            self.ill_links.entry((*from, *to)).or_default().push(link);
            self.ail(*from, *to);
            self.sight.links.entry((*from.min(to), *from.max(to))).or_default().begin();
        }
        self.at(lasts, Entry::MendLinks(pairs, link));
    }

    /// Has a link suffer from all that befalls it.
    fn ail(&self, from: u32, to: u32) {
        let ills = self.ill_links.get(&(from, to)).into_iter().flatten().copied();
        self.network.set_link(from, to, ills.reduce(Link::worse));
    }

    pub(crate) fn mend_links(&mut self, pairs: &[(u32, u32)], link: Link) {
        let now = self.now;
        self.log.say(now, 0, || format!("well again: {}", ways(pairs)));
        for (from, to) in pairs {
            let ills = self.ill_links.entry((*from, *to)).or_default();
            if let Some(place) = ills.iter().position(|ill| *ill == link) {
                ills.swap_remove(place);
            }
            self.ail(*from, *to);
            self.sight.links.entry((*from.min(to), *from.max(to))).or_default().end(now);
        }
    }

    /// No trouble of the server: what is promised waits little for a disk. Where a leader waits little for its
    /// servers, one that joins then may have the staged key too late.
    fn hurt_disk(&mut self, kind: Kind, id: u32, lasts: u64) {
        if kind == Kind::SlowDisk && self.plan.handover < WAITS_FOR_DISK {
            if let Some(view) = self.sight.servers.get_mut(&id) {
                view.install_trouble.begin();
            }
            self.at(lasts, Entry::ForgiveDisk(id));
        }
        let takes = self.rng.spread(5, 20_000) * MS;
        let Some(machine) = self.machines.get(&id) else { return };
        match kind {
            Kind::SlowDisk => machine.disk.set_slow(takes),
            _ => machine.disk.set_broken(true),
        }
        self.ill_disks += 1;
        self.fail_files();
        let slow = if kind == Kind::SlowDisk { takes } else { 0 };
        self.list_memory.delay_file(id, self.now + lasts + slow);
        self.at(lasts, Entry::MendDisk(id));
    }

    fn mend_disk(&mut self, id: u32) {
        if let Some(machine) = self.machines.get(&id) {
            machine.disk.set_slow(0);
            machine.disk.set_broken(false);
        }
        self.ill_disks -= 1;
        self.fail_files();
    }

    /// Notes that a file may not be what it should be; for as long as a disk is ill.
    fn fail_files(&mut self) {
        if self.plan.keeps_state {
            let until = if self.ill_disks > 0 { u64::MAX } else { self.now };
            self.sight.files_failed = Some(until);
        }
    }

    /// The files of now come back later, as a backup's, a volume's or those of a machine that was
    /// rolled back do.
    fn back_up(&mut self, id: u32, lasts: u64) {
        let Some(machine) = self.machines.get(&id) else { return };
        machine.disk.back_up();
        let later = lasts + self.rng.below(2 * self.plan.interval / MS) * MS;
        self.at(later, Entry::RollBack(id));
    }

    fn roll_back(&mut self, id: u32) {
        if !self.kill_with_its_files(id) {
            return;
        }
        if let Some(machine) = self.machines.get(&id) {
            machine.disk.roll_back();
        }
        let after = self.rng.below(1000) * MS;
        self.at(after, Entry::Revive(id));
    }

    fn hurt_host(&mut self, kind: Kind, id: u32, lasts: u64) {
        let takes = self.plan.handover * self.rng.between(1, 3) / MS;
        if let Some(machine) = self.machines.get(&id) {
            let mut installing = machine.installing.lock().expect("one thread");
            match kind {
                Kind::BrokenHost => installing.broken = true,
                _ => installing.takes = (takes, takes),
            }
        }
        if let Some(view) = self.sight.servers.get_mut(&id) {
            view.install_trouble.begin();
        }
        self.at(lasts, Entry::MendHost(id));
    }

    fn forgive_disk(&mut self, id: u32) {
        if let Some(view) = self.sight.servers.get_mut(&id) {
            view.install_trouble.end(self.now);
        }
    }

    fn mend_host(&mut self, id: u32) {
        let (now, most) = (self.now, self.plan.installing / MS);
        // An install that has begun goes on as slowly as it began.
        let mut rest = 0;
        if let Some(machine) = self.machines.get(&id) {
            let mut installing = machine.installing.lock().expect("one thread");
            rest = installing.takes.1 * MS;
            installing.broken = false;
            installing.takes = (0, most);
        }
        if let Some(view) = self.sight.servers.get_mut(&id) {
            view.install_trouble.end(now + rest);
        }
    }

    /// A server that can be given an order.
    fn some_member(&mut self) -> Option<u32> {
        let able = self.machines.iter().filter(|(id, m)| m.is_awake() && self.listed.contains(id));
        let able: Vec<u32> = able.map(|(id, _)| *id).collect();
        (!able.is_empty()).then(|| *self.rng.pick(&able))
    }

    fn order(&mut self) {
        if let Some(gap) = self.plan.order_gap {
            let gap = self.rng.between(gap / 2, gap * 3 / 2);
            self.at(gap, Entry::AdminCommand);
        }
        let Some(id) = self.some_member() else { return };
        self.give_order(id);
    }

    fn give_order(&mut self, id: u32) {
        if !self.machines.get(&id).is_some_and(|machine| machine.is_awake()) {
            return;
        }
        let order = if self.rng.chance(300) { AdminCommand::Revoke } else { AdminCommand::Rotate };
        self.give_this_order(id, order);
    }

    /// An operator orders something of a server.
    pub(crate) fn give_this_order(&mut self, id: u32, command: AdminCommand) {
        self.faults += 1;
        let number = self.begin_deed(id, Pending::AdminCommand(self.sight.orders.len(), command));
        let revokes = command == AdminCommand::Revoke;
        self.sight.orders.push(Order { begun: self.now, over: u64::MAX, revokes });
        self.log
            .say(self.now, id, || format!("is told to {}", format!("{command:?}").to_lowercase()));
        let notes = self.notes.clone();
        self.have(id, move |node| {
            let node = node.clone();
            tokio::spawn(async move {
                let result = node.admin_command(command).await;
                let result = result.map(|g| Some(g.0)).map_err(|e| e.to_string());
                notes.leave(id, Note::Done(number, result));
            });
        });
    }

    fn begin_deed(&mut self, id: u32, pending: Pending) -> u64 {
        let number = self.next_deed;
        self.next_deed += 1;
        self.deeds.insert(number, (id, pending));
        number
    }

    fn have(&mut self, id: u32, deed: impl FnOnce(&Arc<Node>) + 'static) {
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.have(Box::new(deed));
        }
    }

    /// Puts a list with one server more or less into all files, now and then with two, one of which may come in
    /// the place of the other; one of the servers is told a moment later, when a new one has started.
    fn change_list(&mut self) {
        if let Some(gap) = self.plan.list_gap {
            let gap = self.rng.between(gap / 2, gap * 3 / 2);
            self.at(gap, Entry::ChangeList);
        }
        let agreed = self.sight.servers.values().any(|view| view.listed && view.joined.is_some());
        if self.list_busy || !agreed {
            return;
        }
        let mut target = self.listed.clone();
        let mut changed = BTreeSet::new();
        for _ in 0..if self.rng.chance(300) { 2 } else { 1 } {
            changed.insert(self.rng.between(1, u64::from(self.plan.servers)) as u32);
        }
        for id in &changed {
            if !target.remove(id) {
                target.insert(*id);
            }
        }
        if target.len() < 2 {
            return;
        }
        self.faults += 1;
        self.list_busy = true;
        self.log.say(self.now, 0, || format!("the list is to be {target:?}"));
        for id in changed.intersection(&target) {
            self.write_file(*id, &target);
            self.start(*id);
        }
        let Some(teller) = self.some_member() else {
            self.list_busy = false;
            return;
        };
        self.at(SECOND, Entry::TellList(teller, target));
    }

    pub(crate) fn write_file(&mut self, id: u32, list: &BTreeSet<u32>) {
        if !self.lists.contains(list) {
            self.lists.insert(list.clone());
        }
        let members = self.members_of(list);
        if let Some(machine) = self.machines.get(&id) {
            machine.write_file(members);
        }
    }

    /// An operator gives a list to all machines, `first` among them; now and then one is forgotten.
    fn distribute(&mut self, first: u32, list: &BTreeSet<u32>) {
        let ids: Vec<u32> = self.machines.keys().copied().collect();
        for id in ids {
            if id == first || self.is_idle() || !self.rng.chance(100) {
                self.write_file(id, list);
            }
        }
    }

    pub(crate) fn tell_list(&mut self, id: u32, target: BTreeSet<u32>) {
        let before = self.listed.clone();
        // While the group makes up its mind, the servers that differ are in neither list for sure.
        self.list_memory.ask(self.now, target.symmetric_difference(&before).copied());
        for other in target.symmetric_difference(&before) {
            if let Some(view) = self.sight.servers.get_mut(other) {
                view.listed = false;
                view.unlisted_since = None;
            }
        }
        self.note_votes(&[&before, &target]);
        self.distribute(id, &target);
        let pending = Pending::List { target, before };
        self.reload(id, pending);
        // As one does who writes all files and has all servers read them at once.
        if self.plan.list_gap.is_some() && !self.is_idle() && self.rng.chance(300) {
            let others = self.machines.iter().filter(|(other, m)| **other != id && m.is_awake());
            for other in others.map(|(other, _)| *other).collect::<Vec<u32>>() {
                self.reload(other, Pending::Reload);
            }
        }
    }

    /// A server whose file did not change says that nothing was to be done, although the group has
    /// another list: it has left this one. The operator does what the log says: the group's list goes
    /// into the file first.
    fn tell_detour(&mut self, id: u32, agreed: &str, target: BTreeSet<u32>, before: BTreeSet<u32>) {
        let has_digest = |list: &&BTreeSet<u32>| {
            ServerList::new(0, &self.members_of(list))
                .is_ok_and(|list| list.digest().to_string() == agreed)
        };
        let mut lists = self.lists.iter().filter(|list| list.contains(&id));
        let Some(present) = lists.find(has_digest).cloned() else {
            // A server that is not in it cannot have it in its file.
            return self.list_done(target, before, false);
        };
        self.write_file(id, &present);
        self.reload(id, Pending::Detour { target, before });
    }

    fn reload(&mut self, id: u32, pending: Pending) {
        let number = self.begin_deed(id, pending);
        let awake = self.machines.get(&id).filter(|machine| machine.is_awake());
        let Some(machine) = awake else {
            return self.done(number, Err("it is not up".to_owned()));
        };
        let settings = self.plan.settings(id, machine.file());
        let (tls, notes) = (self.tls.clone(), self.notes.clone());
        self.have(id, move |node| {
            let node = node.clone();
            tokio::spawn(async move {
                let result = node.reload(settings, tls).await;
                let result = result.map(|r| r.list).map_err(|e| e.to_string());
                notes.leave(id, Note::Done(number, result));
            });
        });
    }

    /// An operator hears what came of a deed.
    pub(crate) fn done(&mut self, number: u64, result: Result<Option<u64>, String>) {
        let Some((id, pending)) = self.deeds.remove(&number) else { return };
        self.log.say(self.now, id, || match &result {
            Ok(Some(number)) => format!("answers its operator: done, number {number}"),
            Ok(None) => "answers its operator: done".to_owned(),
            Err(words) => format!("answers its operator: refused: {words}"),
        });
        match pending {
            Pending::AdminCommand(place, order) => {
                let set = self.sight.servers.get(&id).and_then(|view| view.set.as_ref());
                let cluster_id = set.and_then(|set| set.cluster_id);
                if let (AdminCommand::Revoke, Some(cluster_id), Ok(Some(by))) =
                    (order, cluster_id, &result)
                {
                    self.sight.revoked.insert((cluster_id, *by));
                }
                // What did not end well may still come true: in a log without a majority it waits for one.
                let late = 2 * self.plan.request_timeout + self.plan.handover + 3 * SECOND;
                if result.is_err() {
                    self.open_orders.push((place, self.now + late));
                } else if let Some(order) = self.sight.orders.get_mut(place) {
                    order.over = self.now + ECHO;
                }
            }
            Pending::Reload | Pending::Recover => {}
            Pending::List { target, before } => {
                let lists = self.machines.get(&id).and_then(|machine| machine.lists(self.now));
                match lists.filter(|_| result == Ok(None)) {
                    Some((agreed, file)) if agreed != file => {
                        self.tell_detour(id, &agreed, target, before);
                    }
                    // A server that knows of no group yet has nobody to ask, and merely takes its file.
                    lists => {
                        let agreed = matches!(result, Ok(Some(_))) || lists.is_some();
                        self.list_done(target, before, agreed);
                    }
                }
            }
            Pending::Detour { target, before } => match result {
                Ok(Some(_)) => {
                    self.distribute(id, &target);
                    self.reload(id, Pending::List { target, before });
                }
                _ => self.list_done(target, before, false),
            },
        }
    }

    fn list_done(&mut self, target: BTreeSet<u32>, before: BTreeSet<u32>, agreed: bool) {
        self.list_busy = false;
        if !agreed {
            // Nobody knows whether it was; a server that was to come stays up for the next attempt.
            return;
        }
        self.listed = target.clone();
        self.note_votes(&[&target]);
        let now = self.now;
        let ids: Vec<u32> = self.machines.keys().copied().collect();
        for id in ids {
            let is_in = target.contains(&id);
            if let Some(view) = self.sight.servers.get_mut(&id) {
                let was_surely_in = view.listed;
                view.listed = is_in;
                view.unlisted_since = (!is_in).then_some(view.unlisted_since.unwrap_or(now));
                // A server that has just come has to catch up; so has one that an earlier change, of
                // which nobody knows what came of it, may have let go.
                if is_in && !was_surely_in {
                    view.trouble.begin();
                    view.trouble.end(now);
                }
            }
            if is_in {
                self.write_file(id, &target);
                self.reload(id, Pending::Reload);
            } else if before.contains(&id) && !self.is_idle() {
                let off = self.rng.between(3, 20) * SECOND;
                self.at(off, Entry::Retire(id));
            }
        }
    }

    /// Notes who votes by all of these lists.
    pub(crate) fn note_votes(&mut self, lists: &[&BTreeSet<u32>]) {
        let voters: Vec<_> = lists.iter().map(|list| voters(&self.members_of(list))).collect();
        for (id, view) in &mut self.sight.servers {
            view.votes = voters.iter().all(|voters| voters.contains(&ServerId(*id)));
        }
    }

    /// All faults end: what is ill mends, what is down comes back.
    pub(crate) fn end_faults(&mut self) {
        let everybody: BTreeSet<u32> = self.machines.keys().copied().collect();
        for id in everybody.clone() {
            self.write_file(id, &everybody);
        }
        for entry in self.take_mends() {
            if !matches!(entry, Entry::Retire(_)) {
                self.do_entry(entry);
            }
        }
        for id in everybody {
            self.start(id);
        }
        self.list_busy = false;
    }

    /// An operator who wants all servers in the list asks for it until it is so.
    pub(crate) fn insist_on_list(&mut self) {
        let everybody: BTreeSet<u32> = self.machines.keys().copied().collect();
        let busy = !self.deeds.is_empty();
        // A cluster incarnation that was founded anew has the list of its founder's file.
        let whole = |m: &Machine| {
            m.node_status(self.now).is_some_and(|report| report.members == everybody.len())
        };
        let surely = everybody.iter().all(|id| self.sight.servers[id].listed)
            && self.machines.values().all(whole);
        if surely || busy || !self.is_idle() {
            return;
        }
        // Also one that was removed and runs with a list of before, which keeps others out.
        let awake: Vec<u32> =
            self.machines.iter().filter(|(_, m)| m.is_awake()).map(|(id, _)| *id).collect();
        if awake.is_empty() {
            return;
        }
        let id = *self.rng.pick(&awake);
        self.tell_list(id, everybody);
    }
}

/// Links in one direction each, for a reader.
fn ways(pairs: &[(u32, u32)]) -> String {
    pairs.iter().map(|(from, to)| format!("{from}>{to}")).collect::<Vec<_>>().join(" ")
}

fn all_links(ids: &[u32]) -> impl Iterator<Item = (u32, u32)> + '_ {
    ids.iter().flat_map(move |a| ids.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b)
}
