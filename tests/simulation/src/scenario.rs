//! Scenarios: short stories as text, which the simulation plays and a test compares.
//!
//! A line that begins with `> ` is what happens, `#` is prose for the reader, and all the rest is
//! what the servers then say. The promises are checked all the while, as in every seed.

use std::collections::BTreeSet;

use stek_share::core::rotation::AdminCommand;

use stek_share::node::{NodeStatus, Role};

use crate::machine::Machine;
use crate::network::Link;
use crate::plan::Plan;
use crate::promises::seconds;
use crate::world::World;
use crate::{MS, SECOND};

/// Longer than any scenario: what ends a cut is a line of the text.
const FOR_EVER: u64 = 24 * 3600 * SECOND;

/// The most that one scenario waits for something.
const PATIENCE: u64 = 120 * SECOND;

/// The step in which it is looked whether something has come true.
const STEP: u64 = 5 * MS;

/// The first line of every scenario: which fleet it is about.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// What it is like.
    pub plan: Plan,
    /// All chance comes from it.
    pub seed: u64,
    /// Whether all run and have a key of generation 1 when the story begins.
    pub settled: bool,
}

/// A scenario that cannot be played: which line, and why.
type Played<T> = Result<T, String>;

impl Fleet {
    /// Reads `> fleet N servers, NAME VALUE, ...`.
    pub fn parse(text: &str) -> Played<Fleet> {
        let line = text.lines().find_map(|line| line.strip_prefix("> fleet "));
        let line = line.ok_or("no line \"> fleet N servers\"")?;
        let mut fleet = Fleet { plan: Plan::calm(3), seed: 1, settled: false };
        for part in line.split(", ") {
            let (name, value) = part.split_once(' ').unwrap_or((part, ""));
            match (name, value) {
                (n, "servers") => fleet.plan.servers = number(n)?,
                (n, "spare") => fleet.plan.spare = number(n)?,
                ("seed", n) => fleet.seed = number(n)?,
                ("interval", t) => fleet.plan.set_interval(duration(t)?),
                ("startup_wait", t) => fleet.plan.startup_wait = duration(t)?,
                ("installs", t) => fleet.plan.installing = duration(t)?,
                ("settled", "") => fleet.settled = true,
                ("state_dir", "") => fleet.plan.keeps_state = true,
                _ => return Err(format!("{line}: {part} is unknown")),
            }
        }
        fleet.plan.servers += fleet.plan.spare;
        Ok(fleet)
    }
}

/// Plays a scenario; the same text with what the servers really said.
pub fn play(mut world: World, text: &str, settled: bool) -> String {
    let mut told = String::new();
    let mut links = Vec::new();
    if settled {
        if let Err(words) = world.settle() {
            told.push_str(&format!("FAILED: {words}\n"));
        }
    }
    // The fleet is told by its line.
    world.log.take_lines();
    for line in text.lines().filter(|line| line.is_empty() || line.starts_with(['>', '#'])) {
        // What was said before is above; one empty line before each paragraph is the text's own.
        told.push_str(line);
        told.push('\n');
        let Some(deed) = line.strip_prefix("> ").filter(|deed| !deed.starts_with("fleet ")) else {
            continue;
        };
        if let Err(words) = world.act(deed, &mut links) {
            world.log.say(world.now, 0, || format!("FAILED: {words}"));
        }
        for said in world.log.take_lines() {
            told.push_str(&without_fingerprints(&said));
            told.push('\n');
        }
    }
    world.end();
    told
}

impl World {
    fn act(&mut self, deed: &str, links: &mut Vec<(u32, u32)>) -> Played<()> {
        let words: Vec<&str> = deed.split(' ').collect();
        match words.as_slice() {
            ["start", ids @ ..] => self.each(ids, World::start),
            ["kill", ids @ ..] => self.each(ids, |world, id| {
                world.kill(id);
            }),
            ["unplug", ids @ ..] => self.each(ids, |world, id| {
                world.cut_power(id);
                world.network.switch_off(id);
            }),
            ["stop", ids @ ..] => self.each(ids, |world, id| world.stop(id, FOR_EVER)),
            ["wipe", ids @ ..] => self.each(ids, World::wipe),
            ["save", ids @ ..] => self.each(ids, |world, id| {
                world.machines.get(&id).into_iter().for_each(|machine| machine.disk.back_up());
            }),
            ["restore", ids @ ..] => self.each(ids, World::restore),
            ["knock", "at", id] => {
                let id = self.server(id)?;
                self.ask_to_be_heard(id)
            }
            ["pause", id, "for", time @ ..] => {
                let (id, lasts) = (self.server(id)?, duration(&time.join(" "))?);
                self.pause(id, lasts);
                Ok(())
            }
            ["run", time @ ..] => self.run_until(self.now + duration(&time.join(" "))?),
            ["until", condition @ ..] => self.wait_until(&condition.join(" ")),
            ["cut", sides @ ..] => self.part(sides, links),
            ["heal"] => {
                let cut = Link { cut: true, ..self.plan.link };
                self.mend_links(&std::mem::take(links), cut);
                Ok(())
            }
            ["rotate", "at", id] => {
                let id = self.server(id)?;
                self.give_this_order(id, AdminCommand::Rotate);
                Ok(())
            }
            ["revoke", "at", id] => {
                let id = self.server(id)?;
                self.give_this_order(id, AdminCommand::Revoke);
                Ok(())
            }
            ["list", ids @ .., "at", id] => {
                let (list, id) = (self.servers(ids)?, self.server(id)?);
                self.give_list(id, list.into_iter().collect());
                Ok(())
            }
            ["take", "tickets"] => {
                self.take_tickets();
                Ok(())
            }
            ["offer", "tickets"] => self.offer_tickets(),
            ["show"] => {
                self.show();
                Ok(())
            }
            _ => Err(format!("nobody knows how to do \"{deed}\"")),
        }
    }

    /// Has all servers of the list start, and waits until they are one.
    fn settle(&mut self) -> Played<()> {
        for id in self.listed.clone() {
            self.start(id);
        }
        self.wait_until("generation 1")?;
        self.run_until(SECOND)
    }

    fn each(&mut self, ids: &[&str], mut deed: impl FnMut(&mut World, u32)) -> Played<()> {
        for id in self.servers(ids)? {
            deed(self, id);
        }
        // What it leads to at this very moment belongs to it.
        self.run_until(self.now + 1)
    }

    fn servers(&self, words: &[&str]) -> Played<Vec<u32>> {
        words.iter().map(|word| self.server(word)).collect()
    }

    /// A server by its id, or by its role: the leader, or the first of the followers.
    fn server(&self, word: &str) -> Played<u32> {
        match word {
            "leader" => self.leader().ok_or_else(|| "there is no leader".to_owned()),
            "follower" => self.first_follower().ok_or_else(|| "there is no follower".to_owned()),
            id => number(id),
        }
    }

    fn wait_until(&mut self, condition: &str) -> Played<()> {
        let end = self.now + PATIENCE;
        let (condition, ids) = condition.split_once(" at ").unwrap_or((condition, ""));
        let ids = self.servers(&ids.split_whitespace().collect::<Vec<_>>())?;
        let (what, wanted) = condition.split_once(' ').ok_or("until what?")?;
        loop {
            let is_so = match (what, wanted) {
                ("generation", n) => self.all_use(number(n)?, &ids),
                ("there", "is a leader") => self.leader().is_some(),
                ("staged", n) => self.is_staged(number(n)?),
                _ => return Err(format!("nobody knows what \"{condition}\" is")),
            };
            if is_so {
                return Ok(());
            }
            if self.now >= end {
                return Err(format!("not {condition} within {}", seconds(PATIENCE)));
            }
            self.run_until(self.now + STEP)?;
        }
    }

    /// Cuts `A B | C`, both ways.
    fn part(&mut self, sides: &[&str], links: &mut Vec<(u32, u32)>) -> Played<()> {
        let at = sides.iter().position(|word| *word == "|").ok_or("cut A | B")?;
        let (here, there) = (self.servers(&sides[..at])?, self.servers(&sides[at + 1..])?);
        let pairs: Vec<(u32, u32)> = here
            .iter()
            .flat_map(|a| there.iter().flat_map(move |b| [(*a, *b), (*b, *a)]))
            .collect();
        let link = Link { cut: true, ..self.plan.link };
        self.set_links(pairs.clone(), link, FOR_EVER);
        links.extend(pairs);
        Ok(())
    }

    /// The report of each server that runs, by its id.
    fn reports(&self) -> Vec<(u32, NodeStatus)> {
        let report = |(id, machine): (&u32, &Machine)| Some((*id, machine.node_status(self.now)?));
        self.machines.iter().filter_map(report).collect()
    }

    fn leader(&self) -> Option<u32> {
        let leads = |(_, report): &&(u32, NodeStatus)| report.role == Role::Leader;
        let reports = self.reports();
        // One that was cut off may believe for a moment longer that it leads.
        reports.iter().filter(leads).max_by_key(|(_, report)| report.term).map(|(id, _)| *id)
    }

    fn first_follower(&self) -> Option<u32> {
        let reports = self.reports();
        reports.iter().find(|(_, report)| report.role == Role::Follower).map(|(id, _)| *id)
    }

    /// Whether those servers have come so far, or all that run.
    fn all_use(&self, generation: u64, ids: &[u32]) -> bool {
        let set = |id: &u32| self.sight.servers.get(id).and_then(|view| view.set.as_ref());
        let mut reports = self.reports();
        reports.retain(|(id, _)| ids.is_empty() || ids.contains(id));
        let uses = |(id, _): &(u32, NodeStatus)| {
            set(id).is_some_and(|set| set.agreed && set.current >= generation)
        };
        !reports.is_empty() && reports.iter().all(uses)
    }

    fn is_staged(&self, generation: u64) -> bool {
        self.reports().iter().any(|(_, report)| report.staged.is_some_and(|g| g.0 >= generation))
    }

    fn wipe(&mut self, id: u32) {
        if let Some(machine) = self.machines.get(&id) {
            machine.disk.wipe();
            self.sight.files_failed = Some(self.now);
            self.list_memory.lose(id);
            self.log.say(self.now, id, || "its disk is empty".to_owned());
        }
    }

    fn restore(&mut self, id: u32) {
        if let Some(machine) = self.machines.get(&id) {
            machine.disk.roll_back();
            self.sight.files_failed = Some(self.now);
            self.list_memory.lose(id);
            self.log.say(self.now, id, || "its disk has what was saved".to_owned());
        }
    }

    /// Those ask a server to be heard who must not be: nobody's id, its own, that of one that has left.
    fn ask_to_be_heard(&mut self, id: u32) -> Played<()> {
        let heard = self.knock_at(id)?;
        self.log.say(self.now, id, || match heard.as_slice() {
            [] => "hears nobody who has left the list".to_owned(),
            ids => format!("hears {ids:?}"),
        });
        Ok(())
    }

    fn take_tickets(&mut self) {
        let ids: Vec<u32> = self.serving();
        self.pocket.clear();
        for id in ids {
            if let Some(kept) = self.take_ticket(id) {
                self.pocket.push_back(kept);
            }
        }
        let count = self.pocket.len();
        self.log.say(self.now, 0, || format!("{count} tickets are taken, one of each server"));
    }

    fn serving(&self) -> Vec<u32> {
        let views = self.sight.servers.iter();
        views.filter(|(_, view)| view.awake && view.serving).map(|(id, _)| *id).collect()
    }

    /// Each ticket is offered to each server that serves.
    fn offer_tickets(&mut self) -> Played<()> {
        let tickets = std::mem::take(&mut self.pocket);
        let ids = self.serving();
        let (mut offered, mut resumed) = (0, 0);
        for (kept, id) in tickets.iter().flat_map(|kept| ids.iter().map(move |id| (kept, *id))) {
            offered += 1;
            resumed += u32::from(self.offer(kept, id)?);
        }
        self.pocket = tickets;
        let count = ids.len();
        self.log.say(self.now, 0, || {
            format!("each is offered to {count} servers: {resumed} of {offered} resumed")
        });
        Ok(())
    }

    /// Tells in one line for each server what it says of itself.
    fn show(&mut self) {
        for (id, report) in self.reports() {
            let leader = report.leader.map_or("nobody".to_owned(), |leader| leader.0.to_string());
            self.log.say(self.now, id, || {
                format!(
                    "says: {:?}, leader {leader}, generation {}, list of {}",
                    report.role, report.current.0, report.members
                )
            });
        }
    }

    fn give_list(&mut self, teller: u32, list: BTreeSet<u32>) {
        self.log.say(self.now, 0, || format!("the list is to be {list:?}"));
        for id in list.difference(&self.listed.clone()) {
            self.write_file(*id, &list);
            self.start(*id);
        }
        self.tell_list(teller, list.clone());
        // This operator forgets no server.
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            self.write_file(id, &list);
        }
    }
}

/// Key bytes are chance, and so is what is told of them.
fn without_fingerprints(line: &str) -> String {
    let mut told = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let begins_word = !rest[..at].ends_with(|c: char| c.is_alphanumeric());
        let end = rest[at..].find(|c: char| !c.is_alphanumeric()).map_or(rest.len(), |n| at + n);
        let word = &rest[at..end];
        let is_fingerprint =
            begins_word && word.len() == 8 && word.chars().all(|c| c.is_ascii_hexdigit());
        told.push_str(&rest[..at]);
        told.push_str(if is_fingerprint { "........" } else { word });
        rest = &rest[end..];
    }
    told.push_str(rest);
    told
}

fn number<T: std::str::FromStr>(word: &str) -> Played<T> {
    word.parse().map_err(|_| format!("\"{word}\" is no number"))
}

/// Reads `20 s` or `150 ms`, in nanoseconds.
fn duration(words: &str) -> Played<u64> {
    let (count, unit) = words.split_once(' ').unwrap_or((words, ""));
    let count: u64 = number(count)?;
    match unit {
        "s" => Ok(count * SECOND),
        "ms" => Ok(count * MS),
        _ => Err(format!("\"{words}\" is no time, as 20 s and 150 ms are")),
    }
}
