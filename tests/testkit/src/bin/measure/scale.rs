//! Fleets larger than a machine can host Traffic Servers: servers that are the node alone, a process
//! each, with real files, real sockets on loopback and real TLS.
//!
//! Hundreds of servers share the few cores of one machine here. So a time says how long that machine
//! needs for the work of all of them; on machines of their own they work at the same time. Beside
//! the times stands what the work costs in processor time, which is the same there and here.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use testkit::ats::{cpu_of, Usage};
use testkit::figures::{median, Figures};
use testkit::fleet::PEER_SUBJECT;
use testkit::pki::{Authority, Request};
use testkit::run_dir::RunDir;
use testkit::{ports, sys, Context, Error, Result};

/// No rotation but those that are ordered.
const INTERVAL: u64 = 86_400;
/// How long anything may take on a busy machine before the run is given up, and for each server besides.
const LIMIT: Duration = Duration::from_secs(120);
const LIMIT_FOR_EACH: Duration = Duration::from_millis(500);
/// In a fleet of more servers than this those that do not vote have a lower priority: the few that vote would
/// have machines of their own, and wait here for hundreds to have their turn.
const MANY: usize = 200;
/// A fleet of more than that is started so many at a time: two cores cannot make all handshakes at once.
const WAVE: usize = 50;
/// And its timers are ten times the defaults: each server has so little of the two cores that it would miss its
/// leader, look for it, and so take more of them.
const SLOW_TIMERS: &str = "heart_beat_interval: 1000\nelection_timeout_lower_bound: 2000\n\
                           election_timeout_upper_bound: 4000\n";
/// How many vote.
const VOTERS: usize = 7;
/// What a start leaves to be done has settled after so long.
const SETTLE: Duration = Duration::from_secs(5);
/// What a rotation or a return leaves to be done.
const PAUSE: Duration = Duration::from_secs(2);
/// One look at an idle fleet: some forty heartbeats of the largest.
const SPAN: Duration = Duration::from_secs(20);
/// How many looks may be taken for one that is not disturbed by an election.
const ATTEMPTS: usize = 4;
/// How many followers are looked at.
const SAMPLE: usize = 10;
/// Listening ports, as [`ports`] gives them out; dialling ends have higher ones.
const LISTENING: &str = "sport >= :20000 and sport < :32000";

/// Measures one fleet of `size` servers, `runs` times what can be repeated.
pub fn measure(size: usize, runs: usize, figures: &mut Figures) -> Result<()> {
    let dir = RunDir::new("scale")?;
    let mut fleet = Fleet::prepare(size, dir.path())?;
    let mut add = |what: &str, values: &[f64], unit: &str| {
        figures.add_spread(&format!("fleet of {size}: {what}"), values, unit);
    };
    let mut looks = Looks::default();
    cold_start(&mut fleet, &mut looks)?;
    idle(&mut fleet, &mut looks)?;
    for _ in 0..runs {
        rotation(&mut fleet, &mut looks)?;
    }
    for _ in 0..runs {
        returns(&mut fleet, 1, "return of one", &mut looks)?;
    }
    for death in [Death::Killed, Death::Stopped] {
        for _ in 0..runs {
            failover(&mut fleet, death, &mut looks)?;
        }
    }
    // So many at once would need as long for their handshakes as a server waits.
    if (3..=MANY).contains(&size) {
        returns(&mut fleet, size / 3, "return of a third", &mut looks)?;
    }
    for (what, unit) in &looks.order {
        add(what, &looks.values[what], unit);
    }
    dir.done()
}

/// Kills the leader of a fleet of `size` servers, `runs` times, and looks at how soon another leads;
/// each killed one returns before the next dies.
pub fn kills(size: usize, runs: usize, figures: &mut Figures) -> Result<()> {
    let dir = RunDir::new("kills")?;
    let mut fleet = Fleet::prepare(size, dir.path())?;
    fleet.bring_up()?;
    let mut looks = Looks::default();
    for _ in 0..runs {
        failover(&mut fleet, Death::Killed, &mut looks)?;
    }
    for (what, unit) in &looks.order {
        let name = format!("leader of {size} killed {runs} times: {what}");
        let mut sorted = looks.values[what].clone();
        figures.add_spread(&name, &sorted, unit);
        sorted.sort_by(f64::total_cmp);
        let most = sorted.len().div_ceil(100).min(sorted.len());
        if let Some(value) = sorted.iter().rev().nth(most) {
            figures.add(format!("{name}, 99 of 100 within"), *value, unit);
        }
    }
    dir.done()
}

/// Values under names, in the order of their first appearance.
#[derive(Default)]
struct Looks {
    order: Vec<(String, &'static str)>,
    values: BTreeMap<String, Vec<f64>>,
}

impl Looks {
    fn add(&mut self, what: &str, value: f64, unit: &'static str) {
        if !self.values.contains_key(what) {
            self.order.push((what.to_owned(), unit));
        }
        self.values.entry(what.to_owned()).or_default().push(value);
    }

    fn time(&mut self, what: &str, time: Duration) {
        self.add(what, time.as_secs_f64() * 1e3, "ms");
    }
}

fn cold_start(fleet: &mut Fleet, looks: &mut Looks) -> Result<()> {
    let begun = Instant::now();
    fleet.bring_up()?;
    let all = fleet.up();
    if all.len() <= MANY {
        looks.time("cold start, last process to one key everywhere", fleet.late_after_up(&all));
    } else {
        looks.time(&format!("cold start, {WAVE} at a time, all of it"), begun.elapsed());
    }
    let spent = fleet.cpu(&all)?;
    looks.time("cold start, processor time for each server", spent / size(&all));
    rest(SETTLE)?;
    let (accepted, refused) = fleet.accepted(&all)?;
    looks.add("cold start, connections for each server", accepted as f64 / all.len() as f64, "");
    looks.add("cold start, refused connections in all", refused as f64, "");
    let said = said(&fleet.ports)?;
    looks.add("cold start, messages for each server", said.messages / all.len() as f64, "");
    Ok(())
}

/// What an idle leader, and an idle follower, use and say.
fn idle(fleet: &mut Fleet, looks: &mut Looks) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let leader = fleet.leader()?;
        let step = (fleet.servers.len() / SAMPLE).max(1);
        let others = fleet.up().into_iter().filter(|index| *index != leader);
        let sample: Vec<usize> = others.step_by(step).take(SAMPLE).collect();
        let talk = said(&fleet.ports)?;
        let look = |fleet: &Fleet, index: usize| Usage::of(fleet.pid(index)?);
        let look_all = |fleet: &Fleet| -> Result<Vec<Usage>> {
            sample.iter().map(|index| look(fleet, *index)).collect()
        };
        let before = (look(fleet, leader)?, look_all(fleet)?);
        let begun = Instant::now();
        rest(SPAN)?;
        let after = (look(fleet, leader)?, look_all(fleet)?);
        let span = begun.elapsed().as_secs_f64();
        let talk = said(&fleet.ports)?.less(talk);
        if fleet.leader()? != leader {
            continue;
        }
        let talked = talk.span;
        let rate = |of: fn(&Usage) -> f64, b: &Usage, a: &Usage| (of(a) - of(b)) / span;
        let cpu: fn(&Usage) -> f64 = |usage| usage.cpu.as_secs_f64() * 1e3;
        let wakes: fn(&Usage) -> f64 = |usage| usage.wakeups as f64;
        let followers = |of: fn(&Usage) -> f64| -> f64 {
            let pairs = before.1.iter().zip(&after.1);
            median(&pairs.map(|(b, a)| rate(of, b, a)).collect::<Vec<_>>())
        };
        let memory =
            |usages: &[Usage]| median(&usages.iter().map(|u| u.memory as f64).collect::<Vec<_>>());
        looks.add("idle, leader's processor time", rate(cpu, &before.0, &after.0), "ms/s");
        looks.add("idle, follower's processor time", followers(cpu), "ms/s");
        looks.add("idle, leader's wake-ups", rate(wakes, &before.0, &after.0), "/s");
        looks.add("idle, follower's wake-ups", followers(wakes), "/s");
        looks.add("idle, leader's memory (PSS)", after.0.memory as f64, "KiB");
        looks.add("idle, follower's memory (PSS)", memory(&after.1), "KiB");
        looks.add("idle, messages in all", talk.messages / talked, "/s");
        looks.add("idle, bytes in all", talk.bytes / talked, "bytes/s");
        looks.add("idle, connections in all", talk.connections, "");
        return Ok(());
    }
    Err(Error::new("there were elections all the time: this was no idle fleet"))
}

/// One ordered rotation.
fn rotation(fleet: &mut Fleet, looks: &mut Looks) -> Result<()> {
    rest(PAUSE)?;
    let (leader, all) = (fleet.leader()?, fleet.up());
    let followers: Vec<usize> = all.iter().copied().filter(|index| *index != leader).collect();
    let spent = |fleet: &Fleet| Ok::<_, Error>((fleet.cpu(&[leader])?, fleet.cpu(&followers)?));
    let old = fleet.servers[leader].current().unwrap_or(0);
    let before = spent(fleet)?;
    fleet.forget();
    fleet.tell(leader, "rotate")?;
    fleet.until("a rotation", |fleet| {
        let ids = fleet.up();
        ids.iter().all(|index| fleet.servers[*index].current() == Some(old + 1))
    })?;
    let after = spent(fleet)?;
    let sets = |index: usize| fleet.servers[index].sets.iter();
    let staged = sets(leader).find(|set| set.newest == old + 1).map(|set| set.at);
    let active = |index: usize| sets(index).find(|set| set.current == old + 1).map(|set| set.at);
    let held = all.iter().filter_map(|i| sets(*i).find(|s| s.newest == old + 1)).map(|s| s.at);
    let (staged, activated) = staged.zip(active(leader)).ok_or_else(|| strange("rotation"))?;
    let held = held.max().ok_or_else(|| strange("rotation"))?;
    let last = all.iter().filter_map(|i| active(*i)).max().ok_or_else(|| strange("rotation"))?;
    looks.time("rotation, staged at the leader to held by all", held.saturating_sub(staged));
    looks.time("rotation, staged to activated with all answers", activated.saturating_sub(staged));
    looks.time("rotation, staged to active everywhere", last.saturating_sub(staged));
    looks.time("rotation, leader's processor time", after.0.saturating_sub(before.0));
    let each = after.1.saturating_sub(before.1) / size(&followers);
    looks.time("rotation, follower's processor time", each);
    Ok(())
}

/// `count` followers are killed, and a moment later started again all at once.
fn returns(fleet: &mut Fleet, count: usize, what: &str, looks: &mut Looks) -> Result<()> {
    let leader = fleet.leader()?;
    let gone: Vec<usize> = fleet.up().into_iter().filter(|i| *i != leader).take(count).collect();
    for index in &gone {
        fleet.kill(*index)?;
    }
    rest(PAUSE)?;
    let stay = fleet.up();
    let before = (fleet.accepted(&stay)?.0, fleet.cpu(&stay)?);
    for index in &gone {
        fleet.start(*index)?;
    }
    fleet.until_one()?;
    looks.time(&format!("{what}, last process to the key"), fleet.late_after_up(&gone));
    let spent = fleet.cpu(&stay)?.saturating_sub(before.1) + fleet.cpu(&gone)?;
    looks.time(&format!("{what}, processor time of all"), spent);
    rest(PAUSE)?;
    let accepted = fleet.accepted(&stay)?.0 - before.0 + fleet.accepted(&gone)?.0;
    let each = accepted as f64 / gone.len() as f64;
    looks.add(&format!("{what}, connections for each"), each, "");
    Ok(())
}

/// How a leader comes to be missed.
#[derive(Clone, Copy, PartialEq)]
enum Death {
    /// By SIGKILL: the system there refuses the next connection.
    Killed,
    /// By SIGSTOP: it says nothing more, as one that a cut takes away or a machine without power.
    Stopped,
}

/// The leader is killed or stopped; another one leads, and the old one is started anew.
fn failover(fleet: &mut Fleet, death: Death, looks: &mut Looks) -> Result<()> {
    rest(PAUSE)?;
    let leader = fleet.leader()?;
    fleet.forget();
    let stay: Vec<usize> = fleet.up().into_iter().filter(|index| *index != leader).collect();
    let before = fleet.cpu(&stay)?;
    let died = sys::monotonic();
    let how = match death {
        Death::Killed => "killed",
        Death::Stopped => "stopped",
    };
    let stopped = match death {
        Death::Killed => fleet.kill(leader).map(|()| None)?,
        Death::Stopped => Some(fleet.stop(leader)?),
    };
    let next = fleet.leader()?;
    let spent = fleet.cpu(&stay)?.saturating_sub(before);
    let id = next as u64 + 1;
    let since = |index: usize| {
        let groups = &fleet.servers[index].groups;
        groups.iter().find(|group| group.leader == id).map(|group| group.at)
    };
    let begun = since(next).ok_or_else(|| strange("failover"))?;
    let knew = stay.iter().filter_map(|index| since(*index));
    let knew = knew.max().ok_or_else(|| strange("failover"))?;
    let name = |what: &str| format!("failover, leader {how} to {what}");
    looks.time(&name("another one leads"), begun.saturating_sub(died));
    looks.time(&name("all know the next"), knew.saturating_sub(died));
    if death == Death::Killed {
        looks.time("failover, processor time for each server", spent / size(&stay));
    }
    drop(stopped);
    fleet.start(leader)?;
    fleet.until_one()
}

fn strange(what: &str) -> Error {
    Error::new(format!("the servers did not say how the {what} went"))
}

fn size(servers: &[usize]) -> u32 {
    u32::try_from(servers.len()).unwrap_or(u32::MAX).max(1)
}

/// A rest that Ctrl-C ends.
fn rest(span: Duration) -> Result<()> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        if sys::interrupted() {
            return Err(Error::new("interrupted"));
        }
        thread::sleep(Duration::from_millis(50).min(end - Instant::now().min(end)));
    }
    Ok(())
}

/// What the servers have said to each other since their connections were made.
#[derive(Clone, Copy)]
struct Said {
    at: Instant,
    span: f64,
    bytes: f64,
    /// Segments with data: a frame each, and some four for a handshake.
    messages: f64,
    connections: f64,
}

impl Said {
    fn less(self, earlier: Said) -> Said {
        Said {
            span: (self.at - earlier.at).as_secs_f64(),
            bytes: self.bytes - earlier.bytes,
            messages: self.messages - earlier.messages,
            ..self
        }
    }
}

/// Both ways, as the kernel counts it at the listening ends of the connections that are up.
fn said(ports: &[u16]) -> Result<Said> {
    let output = Command::new("ss").args(["-tinHO", LISTENING]).output();
    let output = output.context("ss (Debian: iproute2)")?;
    let mut said =
        Said { at: Instant::now(), span: 0.0, bytes: 0.0, messages: 0.0, connections: 0.0 };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let port = line.split_whitespace().nth(3).and_then(|end| end.rsplit(':').next());
        let port = port.and_then(|port| port.parse().ok());
        if !port.is_some_and(|port| ports.contains(&port)) || !line.starts_with("ESTAB") {
            continue;
        }
        said.connections += 1.0;
        for (name, value) in line.split_whitespace().filter_map(|word| word.split_once(':')) {
            let value = value.parse::<f64>().unwrap_or(0.0);
            match name {
                "bytes_sent" | "bytes_received" => said.bytes += value,
                "data_segs_out" | "data_segs_in" => said.messages += value,
                _ => {}
            }
        }
    }
    Ok(said)
}

/// A set of keys as a server has installed it.
struct Set {
    at: Duration,
    agreed: bool,
    newest: u64,
    current: u64,
    key: String,
}

/// Who leads, as a server has it; nobody is 0.
struct Group {
    at: Duration,
    leader: u64,
    term: u64,
}

/// One server, and what it has said since it was last started or [`Fleet::forget`] was called; of
/// sets and groups at least the latest.
#[derive(Default)]
struct Lone {
    process: Option<(Child, ChildStdin)>,
    /// Lines of an earlier process may still be under way.
    run: u64,
    up: Option<Duration>,
    sets: Vec<Set>,
    groups: Vec<Group>,
    counted: Option<(u64, u64)>,
}

impl Lone {
    /// The generation that encrypts, if it is the group's and none is staged.
    fn current(&self) -> Option<u64> {
        let set = self.sets.last()?;
        (set.agreed && set.newest == set.current).then_some(set.current)
    }

    fn hear(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let at = Duration::from_nanos(words.next()?.parse().ok()?);
        match words.next()? {
            "up" => self.up = Some(at),
            "installed" => {
                let mut number = || words.next()?.parse().ok();
                let (agreed, newest, current) = (number()? == 1, number()?, number()?);
                let key = words.next()?.to_owned();
                self.sets.push(Set { at, agreed, newest, current, key });
            }
            "group" => {
                let mut number = || words.next()?.parse().ok();
                let (leader, term) = (number()?, number()?);
                self.groups.push(Group { at, leader, term });
            }
            "counted" => {
                let mut number = || words.next()?.parse().ok();
                self.counted = Some((number()?, number()?));
            }
            _ => {}
        }
        Some(())
    }
}

/// A line of a server: which one, in which run of its process.
type LogLine = (usize, u64, String);

struct Fleet {
    program: PathBuf,
    dir: PathBuf,
    ports: Vec<u16>,
    servers: Vec<Lone>,
    lines: Receiver<LogLine>,
    teller: Sender<LogLine>,
}

/// A server that stands still.
struct Stopped((Child, ChildStdin));

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0 .0.kill();
        let _ = self.0 .0.wait();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (child, _) in
            self.servers.iter_mut().filter_map(|standalone_node| standalone_node.process.as_mut())
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Fleet {
    /// All files, no process yet. The timers are the defaults, unless there are many.
    fn prepare(size: usize, dir: &Path) -> Result<Fleet> {
        let program = program()?;
        let ports = ports::take_many(size)?;
        let authority = Authority::new("/O=stek_share test kit/CN=root")?;
        let root = authority.identity.write(dir, "root")?.certificate;
        // One certificate for all, or making them would take longer than measuring.
        let own = authority.issue(&Request::new(PEER_SUBJECT))?.write(dir, "peer")?;
        let list: String = (1..)
            .zip(&ports)
            .map(|(id, port)| format!("- server_id: {id}\n  address: 127.0.0.1\n  port: {port}\n"))
            .collect();
        fs::write(dir.join("server_list.yaml"), list)?;
        let timers = if size > MANY { SLOW_TIMERS } else { "" };
        for (id, port) in (1..).zip(&ports) {
            let conf = format!(
                "server_id: {id}\naddress: 127.0.0.1\nport: {port}\nasio_thread_pool_size: 1\n\
                 key_update_interval: {INTERVAL}\nserver_list_file: server_list.yaml\n\
                 root_cert_file: {}\nserver_cert_file: {}\nserver_key_file: {}\n\
                 cert_verify_str: {PEER_SUBJECT}\n{timers}",
                root.display(),
                own.certificate.display(),
                own.key.display(),
            );
            fs::write(dir.join(format!("server-{id}.yaml")), conf)?;
        }
        let (teller, lines) = channel();
        let servers = ports.iter().map(|_| Lone::default()).collect();
        Ok(Fleet { program, dir: dir.into(), ports, servers, lines, teller })
    }

    fn start(&mut self, index: usize) -> Result<()> {
        let mut command = if self.servers.len() > MANY && index >= VOTERS {
            let mut nice = Command::new("nice");
            nice.args(["-n", "10"]).arg(&self.program);
            nice
        } else {
            Command::new(&self.program)
        };
        command.arg(self.dir.join(format!("server-{}.yaml", index + 1))).current_dir(&self.dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let errors = self.dir.join(format!("server-{}.err", index + 1));
        command.stderr(fs::File::options().append(true).create(true).open(errors)?);
        let mut child = sys::spawn(command).context(self.program.display())?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (stdin, stdout) = stdin.zip(stdout).ok_or_else(|| Error::new("no pipes"))?;
        let run = self.servers[index].run + 1;
        let teller = self.teller.clone();
        let reader = thread::Builder::new().stack_size(64 << 10);
        reader.spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
                if teller.send((index, run, line)).is_err() {
                    return;
                }
            }
        })?;
        self.servers[index] = Lone { process: Some((child, stdin)), run, ..Lone::default() };
        Ok(())
    }

    /// All at once; of many those that vote, and then the others, so many at a time.
    fn bring_up(&mut self) -> Result<()> {
        let all = self.servers.len();
        let (first, wave) = if all > MANY { (VOTERS, WAVE) } else { (all, all) };
        let mut next = 0;
        while next < all {
            let end = all.min(if next == 0 { first } else { next + wave });
            (next..end).try_for_each(|index| self.start(index))?;
            self.until_one()?;
            next = end;
        }
        Ok(())
    }

    fn kill(&mut self, index: usize) -> Result<()> {
        if let Some((mut child, _)) = self.servers[index].process.take() {
            child.kill().context("kill")?;
            child.wait().context("wait")?;
        }
        Ok(())
    }

    /// Has a server stand still where it is. It no longer counts as one that runs, and ends with what is
    /// given back.
    fn stop(&mut self, index: usize) -> Result<Stopped> {
        sys::kill(self.pid(index)?, sys::Signal::Stop).context("SIGSTOP")?;
        let process = self.servers[index].process.take();
        process.map(Stopped).ok_or_else(|| Error::new("the server is down"))
    }

    fn tell(&mut self, index: usize, order: &str) -> Result<()> {
        let process = self.servers[index].process.as_mut();
        let (_, stdin) = process.ok_or_else(|| Error::new("the server is down"))?;
        writeln!(stdin, "{order}").context("a server's stdin")
    }

    fn pid(&self, index: usize) -> Result<u32> {
        let process = self.servers[index].process.as_ref();
        process.map(|(child, _)| child.id()).ok_or_else(|| Error::new("the server is down"))
    }

    /// Those that run.
    fn up(&self) -> Vec<usize> {
        (0..self.servers.len()).filter(|index| self.servers[*index].process.is_some()).collect()
    }

    /// Takes in what the servers have said, and waits at most `limit` for more.
    fn listen(&mut self, limit: Duration) {
        let mut next = self.lines.recv_timeout(limit).ok();
        while let Some((index, run, line)) = next {
            let standalone_node = &mut self.servers[index];
            if standalone_node.run == run {
                let _ = standalone_node.hear(&line);
            }
            next = self.lines.try_recv().ok();
        }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Fleet) -> bool) -> Result<()> {
        let limit = LIMIT + LIMIT_FOR_EACH * self.servers.len() as u32;
        let end = Instant::now() + limit;
        loop {
            self.listen(Duration::from_millis(20));
            if done(self) {
                return Ok(());
            }
            if sys::interrupted() {
                return Err(Error::new("interrupted"));
            }
            if Instant::now() > end {
                let words = format!("waited {limit:?} in vain for {what}:{}", self.describe());
                return Err(Error::new(words));
            }
        }
    }

    /// What each server said last, for whoever has to find out what went wrong.
    fn describe(&self) -> String {
        let of = |index: usize| {
            let standalone_node = &self.servers[index];
            let set = standalone_node.sets.last().map(|s| (s.agreed, s.newest, s.current));
            let group = standalone_node.groups.last().map(|g| (g.leader, g.term));
            let running = standalone_node.process.is_some();
            format!("\n  server {}: running {running}, set {set:?}, group {group:?}", index + 1)
        };
        (0..self.servers.len()).map(of).collect()
    }

    /// Until all that run have one key of the group, and know who leads.
    fn until_one(&mut self) -> Result<()> {
        self.until("one key everywhere", |fleet| {
            let key = |index: &usize| {
                let standalone_node = &fleet.servers[*index];
                standalone_node
                    .current()
                    .and_then(|_| Some(standalone_node.sets.last()?.key.as_str()))
            };
            let up = fleet.up();
            let first = up.first().and_then(key);
            let one_key = first.is_some() && up.iter().all(|index| key(index) == first);
            one_key && fleet.followed().is_some()
        })
    }

    /// Forgets what was said, but for the latest.
    fn forget(&mut self) {
        self.listen(Duration::from_millis(1));
        for standalone_node in &mut self.servers {
            let keep = standalone_node.sets.len().saturating_sub(1);
            standalone_node.sets.drain(..keep);
            let keep = standalone_node.groups.len().saturating_sub(1);
            standalone_node.groups.drain(..keep);
        }
    }

    /// The server that leads the highest term, if it runs and all that run know it.
    fn followed(&self) -> Option<usize> {
        let up = self.up();
        let latest = |index: &usize| self.servers[*index].groups.last().map(|g| (g.term, g.leader));
        let first = latest(up.first()?)?;
        let leader = usize::try_from(first.1).ok()?.checked_sub(1)?;
        let all = up.iter().all(|index| latest(index) == Some(first));
        (all && up.contains(&leader)).then_some(leader)
    }

    fn leader(&mut self) -> Result<usize> {
        self.until("a leader", |fleet| fleet.followed().is_some())?;
        self.followed().ok_or_else(|| strange("election"))
    }

    /// From the moment when the last of these processes began to when the last of them had the
    /// key of the group.
    fn late_after_up(&self, servers: &[usize]) -> Duration {
        let up = servers.iter().filter_map(|i| self.servers[*i].up).max().unwrap_or_default();
        let has = |index: &usize| {
            let sets = &self.servers[*index].sets;
            sets.iter().find(|set| set.agreed && set.current > 0).map(|set| set.at)
        };
        servers.iter().filter_map(has).max().unwrap_or_default().saturating_sub(up)
    }

    /// Processor time of these servers since they were started.
    fn cpu(&self, servers: &[usize]) -> Result<Duration> {
        servers.iter().map(|index| cpu_of(self.pid(*index)?)).sum()
    }

    /// Connections that these servers have let in since they were started, and those kept out.
    fn accepted(&mut self, servers: &[usize]) -> Result<(u64, u64)> {
        for index in servers {
            self.servers[*index].counted = None;
            self.tell(*index, "count")?;
        }
        self.until("counts", |fleet| servers.iter().all(|i| fleet.servers[*i].counted.is_some()))?;
        let counted = servers.iter().filter_map(|index| self.servers[*index].counted);
        Ok(counted.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)))
    }
}

/// The server: what `STEK_SHARE_LONE` names, else what cargo built beside this program.
fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("STEK_SHARE_LONE") {
        return Ok(path.into());
    }
    let beside = env::current_exe()?.with_file_name("standalone_node");
    if beside.exists() {
        Ok(beside)
    } else {
        Err(Error::new("no program to run: cargo build -p standalone_node, or STEK_SHARE_LONE"))
    }
}
