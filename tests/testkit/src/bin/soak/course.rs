//! The run itself: a fault, its end, the fleet's return, a quiet while, and the next fault, until
//! the time is over. All choices come from one seed.
//!
//! Before a fault touches a server, the clients are told that it is no longer one of the fleet; after
//! the fault it becomes one again when it holds what all hold and has been heard for a while.

use std::time::Duration;

use testkit::ats::{Ats, Usage};
use testkit::fleet::Fleet;
use testkit::hub::Hub;
use testkit::rng::Rng;
use testkit::sys::{interrupted, Signal};
use testkit::{tickets, Error, Result};

use crate::clients::{Clients, Met, Standing};
use crate::watch::{Sample, Watch};
use crate::SERVERS;

/// Servers below this index are never killed, so that their processes live as long as the run and
/// their memory can be checked over all of it. They are cut off and frozen like the others.
pub const VETERANS: usize = 2;
/// A while without faults.
const QUIET: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));
/// How long a fault lasts.
const FAULT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(12));
/// Moments in which a server stutters: still for less than the upper election bound, 400 ms, even
/// if the signal that ends it comes late; and going for long enough to be heard.
const STILL: (Duration, Duration) = (Duration::from_millis(150), Duration::from_millis(300));
const GOES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(150));
/// After a fault the fleet is one within 2 s, or 5 s after loss; a busy machine may make more of it
/// before a promise counts as broken.
const RETURN_LIMIT: Duration = Duration::from_secs(15);
/// The run is given up when the fleet is not one after so long.
const PATIENCE: Duration = Duration::from_secs(90);
/// A server is one of the fleet again when it has held what all hold for so long: more than twice the
/// upper election bound, so that its leader has surely heard it.
const STEADY: Duration = Duration::from_secs(1);
/// Between two looks at the logs while something is awaited, and while nothing is.
const LOOK: Duration = Duration::from_millis(50);
const REST: Duration = Duration::from_millis(250);
/// So many samples of what the servers use are taken in a run, as far as the bounds below allow.
const SAMPLES: u32 = 240;
/// Bounds of the time between two samples: often is work, seldom shows little.
const SAMPLE_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// A fault, from its beginning until the fleet was one again.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Which kind of fault.
    pub kind: &'static str,
    /// Which servers, how long, how much.
    pub detail: String,
    /// Counted from the start of the run, as all that follows.
    pub begin: Duration,
    /// When the fault was taken away.
    pub healed: Duration,
    /// When the fleet had been one for a while.
    pub end: Duration,
    /// From healing until the fleet was one.
    pub took: Duration,
    /// Some majority was connected all the while.
    pub majority: bool,
    /// Packets were lost at random.
    pub lossy: bool,
}

/// A promise that was broken while everybody looked.
#[derive(Clone, Debug)]
pub struct Broken {
    /// When.
    pub at: Duration,
    /// What happened.
    pub what: String,
}

/// The fleet, what is done to it, and what came of it.
pub struct Course {
    watch: Watch,
    clients: Clients,
    phases: Vec<Phase>,
    standings: Vec<(Duration, usize, Standing)>,
    broken: Vec<Broken>,
    fleet: Fleet,
    plain: Ats,
    hub: Hub,
    rng: Rng,
    /// Which servers are meant to run.
    up: [bool; SERVERS],
    /// How many processes each server has had before the present one.
    lives: [usize; SERVERS],
    sample_every: Duration,
    next_sample: Duration,
}

/// What is left of a run.
pub struct Remains {
    /// What the clients met.
    pub met: Met,
    /// What was seen.
    pub watch: Watch,
    /// What was done.
    pub phases: Vec<Phase>,
    /// How each server stood since when.
    pub standings: Vec<(Duration, usize, Standing)>,
    /// Promises that were seen to break.
    pub broken: Vec<Broken>,
}

/// What a kind of fault does. It returns when all its traces but the servers' memory are gone.
type Fault = fn(&mut Course) -> Result<()>;

/// All kinds. They come in a random order, and each once before any comes again.
const FAULTS: [Fault; 17] = [
    |course| course.isolate("follower cut off", false, 1),
    |course| course.isolate("leader cut off", true, 1),
    |course| course.isolate("two followers cut off", false, 2),
    |course| course.isolate("leader and another cut off", true, 2),
    |course| course.one_way("follower deaf to the leader", |leader, other| (leader, other)),
    |course| course.one_way("leader deaf to a follower", |leader, other| (other, leader)),
    |course| course.unheard("leader that nobody hears", true),
    |course| course.unheard("leader that hears nobody", false),
    Course::link,
    Course::no_majority,
    Course::flapping,
    Course::slow,
    Course::lossy,
    |course| course.kill(1),
    |course| course.kill(2),
    Course::freeze,
    Course::stutter,
];

impl Course {
    /// Sets it up, with all servers one already.
    pub fn new(
        fleet: Fleet,
        plain: Ats,
        hub: Hub,
        watch: Watch,
        clients: Clients,
        seed: u64,
    ) -> Self {
        let now = watch.now();
        Self {
            watch,
            clients,
            phases: Vec::new(),
            standings: (0..SERVERS).map(|index| (now, index, Standing::Strict)).collect(),
            broken: Vec::new(),
            lives: [0; SERVERS],
            fleet,
            plain,
            hub,
            rng: Rng::new(seed),
            up: [true; SERVERS],
            sample_every: SAMPLE_EVERY.1,
            next_sample: Duration::ZERO,
        }
    }

    /// Goes on until `end`, and ends quietly.
    pub fn run(&mut self, end: Duration) -> Result<()> {
        self.sample_every = (end / SAMPLES).clamp(SAMPLE_EVERY.0, SAMPLE_EVERY.1);
        let mut deck = Vec::new();
        while self.watch.now() < end && !interrupted() {
            let quiet = self.rng.between(QUIET.0, QUIET.1);
            self.rest(quiet, true)?;
            if deck.is_empty() {
                deck = (0..FAULTS.len()).collect();
            }
            let fault = deck.swap_remove(self.rng.below(deck.len()));
            // Every fourth fault meets a network that is slow besides.
            let delay = self.rng.between(Duration::from_millis(2), Duration::from_millis(40));
            if self.rng.below(4) == 0 {
                self.hub.weather(delay, 0);
            }
            FAULTS[fault](self)?;
        }
        self.rest(QUIET.1, true)
    }

    /// Ends clients and servers, in this order.
    pub fn end(self) -> Remains {
        let Self { mut watch, clients, phases, standings, broken, fleet, plain, hub, .. } = self;
        let met = clients.stop();
        watch.look();
        drop((fleet, plain, hub));
        Remains { met, watch, phases, standings, broken }
    }

    /// Leaves all as it is for a while, and looks.
    fn rest(&mut self, span: Duration, quiet: bool) -> Result<()> {
        let end = self.watch.now() + span;
        while self.watch.now() < end && !interrupted() {
            std::thread::sleep(REST.min(end.saturating_sub(self.watch.now())));
            self.look()?;
            if self.watch.now() >= self.next_sample {
                self.next_sample = self.watch.now() + self.sample_every;
                self.sample(quiet)?;
            }
        }
        Ok(())
    }

    /// Reads the logs, and sees whether all hosts live that should.
    fn look(&mut self) -> Result<()> {
        self.watch.look();
        for (index, ats) in self.fleet.servers.iter_mut().enumerate() {
            if self.up[index] && !ats.is_running() {
                let at = self.watch.now();
                let what = format!("the server of server {} has ended by itself", index + 1);
                println!("{:>7.1} s  BROKEN: {what}", at.as_secs_f64());
                self.broken.push(Broken { at, what });
                ats.start()?;
                ats.wait_ready()?;
                self.lives[index] += 1;
            }
        }
        Ok(())
    }

    /// Not while some server is down: the others' share of common pages is larger then.
    fn sample(&mut self, quiet: bool) -> Result<()> {
        if self.up != [true; SERVERS] {
            return Ok(());
        }
        let at = self.watch.now();
        for index in 0..=SERVERS {
            let usage: Usage = match self.fleet.servers.get(index) {
                Some(ats) => ats.usage()?,
                None => self.plain.usage()?,
            };
            let life = self.lives.get(index).copied().unwrap_or(0);
            self.watch.samples.push(Sample { at, index, life, quiet, usage });
        }
        Ok(())
    }

    fn stand(&mut self, who: &[usize], standing: &Standing) {
        for index in who {
            self.clients.set(*index, standing.clone());
            self.standings.push((self.watch.now(), *index, standing.clone()));
        }
    }

    fn apart(&mut self, who: &[usize], reason: &'static str) {
        self.stand(who, &Standing::Apart(reason));
    }

    fn down(&mut self, who: &[usize], reason: &'static str) {
        self.stand(who, &Standing::Down(reason));
    }

    fn begin(&mut self, kind: &'static str, detail: String) {
        let begin = self.watch.now();
        println!("{:>7.1} s  {kind}: {detail}", begin.as_secs_f64());
        let (zero, majority) = (Duration::ZERO, true);
        let phase = Phase {
            kind,
            detail,
            begin,
            healed: zero,
            end: zero,
            took: zero,
            majority,
            lossy: false,
        };
        self.phases.push(phase);
    }

    /// The fault is over; waits until the fleet is one, and has been for a while.
    fn together(&mut self, who: &[usize], reason: &'static str) -> Result<()> {
        let all: Vec<usize> = (0..SERVERS).collect();
        self.apart(who, reason);
        self.hub.silence(&all, &all, false);
        self.hub.weather(Duration::ZERO, 0);
        let healed = self.watch.now();
        let mut steady_since = None;
        loop {
            std::thread::sleep(LOOK);
            self.look()?;
            let now = self.watch.now();
            if !self.watch.is_one() || (steady_since.is_none() && !self.one_key()) {
                steady_since = None;
            } else if now - *steady_since.get_or_insert(now) >= STEADY {
                break;
            }
            if interrupted() {
                return Err(Error::new("interrupted"));
            }
            if now - healed > PATIENCE {
                let end = Error::new(format!("the fleet was not one {PATIENCE:?} after a fault"));
                return Err(end);
            }
        }
        let took = steady_since.unwrap_or_default().saturating_sub(healed);
        let now = self.watch.now();
        if let Some(phase) = self.phases.last_mut() {
            (phase.healed, phase.end, phase.took) = (healed, now, took);
            if took > RETURN_LIMIT {
                let what = format!("{}: one again only {took:.1?} after its end", phase.kind);
                println!("{:>7.1} s  BROKEN: {what}", now.as_secs_f64());
                self.broken.push(Broken { at: now, what });
            }
        }
        self.stand(who, &Standing::Strict);
        Ok(())
    }

    /// Whether all servers encrypt with one key, by their tickets.
    fn one_key(&self) -> bool {
        let names: Vec<_> =
            self.fleet.servers.iter().map(|ats| tickets::key_name(ats.https()).ok()).collect();
        names.iter().all(|name| name.is_some() && *name == names[0])
    }

    fn leader(&self) -> usize {
        self.watch.leader().unwrap_or(0)
    }

    fn others(&self, than: &[usize]) -> Vec<usize> {
        (0..SERVERS).filter(|index| !than.contains(index)).collect()
    }

    fn span(&mut self) -> Duration {
        self.rng.between(FAULT.0, FAULT.1)
    }

    /// Some servers, the leader among them or not, lose the others.
    fn isolate(&mut self, kind: &'static str, leader: bool, count: usize) -> Result<()> {
        let mut away = if leader { vec![self.leader()] } else { Vec::new() };
        let rest = self.others(&[self.leader()]);
        away.extend(self.rng.choose(count - away.len(), &rest));
        let span = self.span();
        self.begin(kind, format!("{} for {span:.1?}", named(&away)));
        self.apart(&away, "cut off");
        let rest = self.others(&away);
        self.hub.part(&away, &rest, true);
        self.rest(span, false)?;
        self.together(&away, "just reconnected")
    }

    /// Of two servers one no longer hears the other. Both are apart: which of them goes on with the
    /// rest is for an election to say.
    fn one_way(
        &mut self,
        kind: &'static str,
        direction: fn(usize, usize) -> (usize, usize),
    ) -> Result<()> {
        let leader = self.leader();
        let others = self.others(&[leader]);
        let other = self.rng.choose(1, &others)[0];
        let (from, to) = direction(leader, other);
        let span = self.span();
        self.begin(
            kind,
            format!("server {} no longer hears server {}, {span:.1?}", to + 1, from + 1),
        );
        self.apart(&[from, to], "heard one way only");
        self.hub.silence(&[from], &[to], true);
        self.rest(span, false)?;
        self.together(&[from, to], "just reconnected")
    }

    /// A leader speaks and nobody hears it, or the other way round.
    fn unheard(&mut self, kind: &'static str, speaks: bool) -> Result<()> {
        let leader = self.leader();
        let rest = self.others(&[leader]);
        let span = self.span();
        self.begin(kind, format!("server {} for {span:.1?}", leader + 1));
        self.apart(&[leader], "heard one way only");
        let (from, to) = if speaks { (vec![leader], rest) } else { (rest, vec![leader]) };
        self.hub.silence(&from, &to, true);
        self.rest(span, false)?;
        self.together(&[leader], "just reconnected")
    }

    /// The link between two followers; all others are whole.
    fn link(&mut self) -> Result<()> {
        let leader = self.leader();
        let others = self.others(&[leader]);
        let pair = self.rng.choose(2, &others);
        let span = self.span();
        self.begin("one link between followers cut", format!("{} for {span:.1?}", named(&pair)));
        // Nobody leads without being heard by all, unless there is an election.
        self.apart(&pair, "one link cut");
        self.hub.part(&pair[..1], &pair[1..], true);
        self.rest(span, false)?;
        self.together(&pair, "just reconnected")
    }

    /// No side has a majority. There is no rotation, and everybody goes on resuming for everybody.
    fn no_majority(&mut self) -> Result<()> {
        let all: Vec<usize> = (0..SERVERS).collect();
        let mixed = self.rng.choose(SERVERS, &all);
        let (one, two, three) = (&mixed[..2], &mixed[2..4], &mixed[4..]);
        let span = self.span();
        let sides = [one, two, three].map(named).join(" | ");
        self.begin("no majority", format!("{sides} for {span:.1?}"));
        if let Some(phase) = self.phases.last_mut() {
            phase.majority = false;
        }
        self.hub.part(one, two, true);
        self.hub.part(one, three, true);
        self.hub.part(two, three, true);
        self.rest(span, false)?;
        self.together(&all, "just reconnected")
    }

    /// Cut off and not, again and again.
    fn flapping(&mut self) -> Result<()> {
        let all: Vec<usize> = (0..SERVERS).collect();
        let away = self.rng.choose(1, &all);
        let (rest, turns) = (self.others(&away), 6 + self.rng.below(20));
        self.begin("flapping", format!("{}, {turns} times", named(&away)));
        self.apart(&away, "cut off");
        for turn in 0..turns {
            self.hub.part(&away, &rest, turn % 2 == 0);
            let span = self.rng.between(Duration::from_millis(50), Duration::from_millis(800));
            self.rest(span, false)?;
        }
        self.together(&away, "just reconnected")
    }

    /// A slow network is no excuse for anything.
    fn slow(&mut self) -> Result<()> {
        let delay = self.rng.between(Duration::from_millis(10), Duration::from_millis(75));
        let span = self.span();
        self.begin("slow network", format!("round trip {:.0?} for {span:.1?}", delay * 2));
        self.hub.weather(delay, 0);
        self.rest(span, false)?;
        self.together(&[], "just reconnected")
    }

    /// Where packets are lost a server may be silent for too long at any time.
    fn lossy(&mut self) -> Result<()> {
        let delay = self.rng.between(Duration::ZERO, Duration::from_millis(40));
        let lost = 10 + self.rng.below(60) as u64;
        let (span, all) = (self.span(), (0..SERVERS).collect::<Vec<_>>());
        let percent = lost as f64 / 10.0;
        self.begin("lossy network", format!("{percent} % lost, delay {delay:.0?}, {span:.1?}"));
        if let Some(phase) = self.phases.last_mut() {
            phase.lossy = true;
        }
        self.apart(&all, "lossy network");
        self.hub.weather(delay, lost);
        self.rest(span, false)?;
        self.together(&all, "just after loss")
    }

    /// Servers die, with a word or without, and come back; perhaps at first without their leader.
    fn kill(&mut self, count: usize) -> Result<()> {
        let mortal: Vec<usize> = (VETERANS..SERVERS).collect();
        let dead = self.rng.choose(count, &mortal);
        let span = self.rng.between(Duration::ZERO, FAULT.1 / 2);
        let signal = [Signal::Kill, Signal::Terminate][self.rng.below(2)];
        let cut = self.rng.below(3) == 0;
        let how = if cut { ", back without the leader" } else { "" };
        let kind = if count == 1 { "killed and restarted" } else { "two killed and restarted" };
        self.begin(kind, format!("{} with {signal:?}, {span:.1?}{how}", named(&dead)));
        self.down(&dead, "killed");
        for index in &dead {
            self.up[*index] = false;
            match signal {
                Signal::Kill => self.fleet.servers[*index].kill9(),
                signal => drop(self.fleet.servers[*index].stop(signal)?),
            }
        }
        self.rest(span, false)?;
        let leader = self.leader();
        if cut && !dead.contains(&leader) {
            self.hub.part(&dead, &[leader], true);
            self.apart(&[leader], "one link cut");
        }
        for index in &dead {
            self.fleet.servers[*index].start()?;
            self.fleet.servers[*index].wait_ready()?;
            self.lives[*index] += 1;
            self.up[*index] = true;
        }
        self.apart(&dead, "just started");
        if cut {
            self.rest(FAULT.0, false)?;
        }
        let back = if cut { [dead, vec![leader]].concat() } else { dead };
        self.together(&back, "just started")
    }

    /// A server stands still for moments, each too short to be given up: it is slow, but reachable,
    /// so that no key may be used without it.
    fn stutter(&mut self) -> Result<()> {
        let followers = self.others(&[self.leader()]);
        let slow = self.rng.choose(1, &followers)[0];
        let span = self.span();
        self.begin("stutter", format!("{} for {span:.1?}", named(&[slow])));
        let end = self.watch.now() + span;
        while self.watch.now() < end {
            let (still, goes) =
                (self.rng.between(STILL.0, STILL.1), self.rng.between(GOES.0, GOES.1));
            self.fleet.servers[slow].pause()?;
            std::thread::sleep(still);
            self.fleet.servers[slow].resume()?;
            std::thread::sleep(goes);
            self.look()?;
        }
        self.together(&[], "just thawed")
    }

    /// Servers stand still and go on.
    fn freeze(&mut self) -> Result<()> {
        let all: Vec<usize> = (0..SERVERS).collect();
        let count = 1 + self.rng.below(2);
        let frozen = self.rng.choose(count, &all);
        let span = self.rng.between(Duration::from_millis(100), FAULT.1);
        self.begin("frozen", format!("{} for {span:.1?}", named(&frozen)));
        self.down(&frozen, "frozen");
        frozen.iter().try_for_each(|index| self.fleet.servers[*index].pause())?;
        self.rest(span, false)?;
        frozen.iter().try_for_each(|index| self.fleet.servers[*index].resume())?;
        self.together(&frozen, "just thawed")
    }
}

/// `server 2`, `servers 2, 4`.
fn named(who: &[usize]) -> String {
    let numbers: Vec<String> = who.iter().map(|index| (index + 1).to_string()).collect();
    let word = if who.len() == 1 { "server" } else { "servers" };
    format!("{word} {}", numbers.join(", "))
}
