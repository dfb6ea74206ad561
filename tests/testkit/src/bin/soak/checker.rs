//! Holds what was seen against the promises, after the run, when the logs are complete.
//!
//! A server whose leader had not heard it within the upper election bound is not reachable, and a key
//! may be used without it (promise 1 speaks of reachable servers). On a machine that is busy with
//! other things that can happen to a server that nobody touched. It counts apart, only where the
//! leader says so or the machine itself stood still, and only up to [`UNHEARD_SHARE`].

use std::collections::BTreeMap;
use std::time::Duration;

use testkit::figures::median;
use testkit::logs::{self, Entry, Event};

use crate::clients::{Finding, Met, Standing, What};
use crate::course::{Broken, Phase};
use crate::watch::Sample;
use crate::{INTERVAL, SERVERS};

/// What a rotation may be late with faults about, beyond its interval: time for some elections.
const LATE: Duration = Duration::from_secs(4);
/// The same where packets are lost.
const LATE_WITH_LOSS: Duration = Duration::from_secs(8);
/// What a rotation may be early by the logs' stamps: two servers' lines, each written a moment after
/// what it tells, and the age of a key that a new leader had from a slow network.
const EARLY: Duration = Duration::from_millis(200);
/// A server writes that it holds a key a moment after it does.
const SLACK: Duration = Duration::from_millis(50);
/// Notes about one server come at most once in 30 s; what they tell of may be later.
const NOTED: Duration = Duration::from_secs(35);
/// So long after a standstill of the machine a handover may still go on without somebody.
const AFTER_STANDSTILL: Duration = Duration::from_secs(2);
/// The part of what was checked that may be excused so.
const UNHEARD_SHARE: f64 = 0.002;
/// What a process still sets up in this time after its start is no growth.
const WARM_UP: Duration = Duration::from_secs(180);
/// Samples that a life must have for its use to be checked: three thirds of a few.
const SAMPLES: usize = 9;
/// How much more the median of the last third may be than that of the first. Memory in KiB, beyond
/// what the server without the plugin gained: the noise of an allocator that runs some threads. Only
/// what a process shares with no other counts, since else other servers' coming and going would.
const MEMORY_GROWTH: f64 = 1024.0;
/// A connection or two between servers may be set up or closed at the moment of a sample.
const DESCRIPTOR_GROWTH: f64 = 4.0;
/// Every half minute a thread is made to look at the certificates, and lives for some seconds.
const THREAD_GROWTH: f64 = 2.0;

/// Everything to be checked.
pub struct Evidence {
    /// What the clients met.
    pub met: Met,
    /// What the servers wrote.
    pub entries: Vec<Entry>,
    /// How each server stood since when.
    pub standings: Vec<(Duration, usize, Standing)>,
    /// What was done.
    pub phases: Vec<Phase>,
    /// What the servers used.
    pub samples: Vec<Sample>,
    /// When the machine stood still, for how long.
    pub standstills: Vec<(Duration, Duration)>,
    /// What was seen to break at once.
    pub broken: Vec<Broken>,
    /// How long it all took.
    pub span: Duration,
}

/// One promise, and how it fared.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What is promised.
    pub promise: &'static str,
    /// What was checked, in figures.
    pub checked: String,
    /// Every breach.
    pub breaches: Vec<String>,
}

/// What one server held since a moment: the agreed generation that encrypts and the staged one.
/// Nothing agreed, if it had just started or encrypts with a key of its own.
type Held = (Duration, Option<(u64, Option<u64>)>);

/// How much a process's memory in KiB, descriptors and threads grew.
pub type Growth = [f64; 3];

/// All outcomes, and what else the report shows.
pub struct Judgement {
    /// One for each promise.
    pub outcomes: Vec<Outcome>,
    /// Strict offers that were missed although nobody was entitled to: when.
    pub missed: Vec<Duration>,
    /// Offers of keys that had retired, which were rightly refused.
    pub retired: u64,
    /// Offers and checks that were excused, since a leader had not heard a server.
    pub unheard: u64,
    /// Growth of each long life: server index, life, memory in KiB, descriptors, threads.
    pub growth: Vec<(usize, usize, Growth)>,
    /// Growth of the server without the plugin.
    pub plain_growth: Growth,
}

impl Judgement {
    /// How many breaches there are.
    pub fn breaches(&self) -> usize {
        self.outcomes.iter().map(|outcome| outcome.breaches.len()).sum()
    }
}

/// Checks.
pub fn assess(evidence: &Evidence) -> Judgement {
    let mut assess = Checker::new(evidence);
    let order = assess.order();
    let handshakes = assess.handshakes();
    let gone = assess.gone();
    let held = assess.held_before_used();
    let on_time = assess.on_time();
    let excused = assess.excused();
    let (flat, growth, plain_growth) = assess.flat();
    let outcomes = vec![
        handshakes,
        held,
        excused,
        gone,
        order,
        on_time,
        assess.returns(),
        assess.hosts(),
        flat,
    ];
    let (missed, retired, unheard) = (assess.missed, assess.retired, assess.unheard);
    Judgement { outcomes, missed, retired, unheard, growth, plain_growth }
}

struct Checker<'a> {
    evidence: &'a Evidence,
    held: Vec<Vec<Held>>,
    /// The fingerprint of each generation, and every server that had another.
    keys: BTreeMap<u64, String>,
    contradictions: Vec<String>,
    missed: Vec<Duration>,
    retired: u64,
    unheard: u64,
    checked: u64,
}

impl<'a> Checker<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let mut held: Vec<Vec<Held>> = vec![Vec::new(); SERVERS];
        let (mut keys, mut contradictions) = (BTreeMap::new(), Vec::new());
        let mut entries: Vec<&Entry> = evidence.entries.iter().collect();
        // They were read in portions.
        entries.sort_by_key(|entry| entry.at);
        for entry in entries {
            let Some(own) = held.get_mut(entry.index) else { continue };
            match &entry.event {
                Event::Started => own.push((entry.at, None)),
                Event::Installed { current: Some(current), staged, fingerprint } => {
                    let known = keys.entry(*current).or_insert_with(|| fingerprint.clone());
                    if known != fingerprint {
                        let (number, at) = (entry.index + 1, entry.at);
                        contradictions.push(format!(
                            "{at:.3?}: generation {current} is {known}, but {fingerprint} on server \
                             {number}"
                        ));
                    }
                    if let Some((_, Some((before, _)))) = own.last() {
                        if before > current {
                            let (number, at) = (entry.index + 1, entry.at);
                            contradictions.push(format!(
                                "{at:.3?}: server {number} went back from generation {before} to \
                                 {current}"
                            ));
                        }
                    }
                    own.push((entry.at, Some((*current, *staged))));
                }
                Event::Installed { current: None, .. } => own.push((entry.at, None)),
                _ => {}
            }
        }
        Self {
            evidence,
            held,
            keys,
            contradictions,
            missed: Vec::new(),
            retired: 0,
            unheard: 0,
            checked: 0,
        }
    }

    fn order(&self) -> Outcome {
        let mut breaches = self.contradictions.clone();
        let generations: Vec<u64> = self.keys.keys().copied().collect();
        for pair in generations.windows(2).filter(|pair| pair[0] + 1 != pair[1]) {
            breaches
                .push(format!("no server used a generation between {} and {}", pair[0], pair[1]));
        }
        let mut prints: Vec<&String> = self.keys.values().collect();
        prints.sort();
        for pair in prints.windows(2).filter(|pair| pair[0] == pair[1]) {
            breaches.push(format!("key {} has two generations", pair[0]));
        }
        Outcome {
            promise: "One order: a generation has one key on all servers, and none is left out",
            checked: format!("{} generations", self.keys.len()),
            breaches,
        }
    }

    fn generation(&self, fingerprint: &str) -> Option<u64> {
        self.keys.iter().find(|(_, known)| *known == fingerprint).map(|(generation, _)| *generation)
    }

    /// The newest generation that a server had by a moment, in the process of that moment.
    fn newest(&self, index: usize, by: Duration) -> Option<u64> {
        let own = self.held.get(index)?;
        let last = own.iter().rev().find(|(at, _)| *at <= by)?;
        last.1.map(|(current, staged)| staged.unwrap_or(current))
    }

    /// Whether a server held a generation at a moment or just after.
    fn holds(&self, index: usize, at: Duration, generation: u64) -> bool {
        let own = &self.held[index];
        let last = own.iter().rposition(|(since, _)| *since <= at);
        let from = last.unwrap_or(0);
        own.iter().skip(from).take_while(|(since, _)| *since <= at + SLACK).any(|(_, set)| {
            set.is_some_and(|(current, staged)| {
                current == generation
                    || staged == Some(generation)
                    || (staged.is_none() && current == generation + 1)
            })
        })
    }

    /// Whether a leader or the machine itself says why a server did not have a key in time.
    fn was_unheard(&self, index: usize, at: Duration) -> bool {
        let noted = self.evidence.entries.iter().any(|entry| {
            let about = matches!(entry.event, Event::Without { member, .. } if member == index);
            about && entry.at <= at + SLACK && entry.at + NOTED >= at
        });
        let mut standstills = self.evidence.standstills.iter();
        noted || standstills.any(|(end, _)| *end <= at + SLACK && *end + AFTER_STANDSTILL >= at)
    }

    fn handshakes(&mut self) -> Outcome {
        let met = &self.evidence.met;
        let mut breaches = Vec::new();
        for finding in &met.findings {
            match &finding.what {
                What::ResumedLate => {}
                What::Failed(why) => {
                    breaches.push(format!("{}: {why}", told(finding)));
                    self.missed.push(finding.span.1);
                }
                What::NotResumed => self.not_resumed(finding, &mut breaches),
            }
        }
        if met.dropped > 0 {
            breaches.push(format!("{} more findings were not kept", met.dropped));
        }
        let offers = met.strict.offers.saturating_sub(self.retired);
        self.checked += offers;
        if offers < self.evidence.span.as_secs() {
            breaches.push(format!("only {offers} strict offers: too little load for a outcome"));
        }
        Outcome {
            promise: "Every ticket of a reachable server under the current or previous key is \
                      resumed by every reachable server",
            checked: format!(
                "{offers} offers, {} missed ({} of {} strict offers were carried tickets, {} of \
                 retired keys, rightly refused)",
                self.missed.len(),
                met.carried,
                met.strict.offers,
                self.retired
            ),
            breaches,
        }
    }

    fn not_resumed(&mut self, finding: &Finding, breaches: &mut Vec<String>) {
        let Some(generation) = self.generation(&finding.fingerprint) else {
            breaches.push(format!("{}: a key that nobody agreed on", told(finding)));
            self.missed.push(finding.span.1);
            return;
        };
        let newest = self.newest(finding.to, finding.span.1 + SLACK);
        if newest.is_some_and(|newest| newest >= generation + 2) {
            self.retired += 1;
        } else if !self.holds(finding.to, finding.span.1, generation)
            && self.was_unheard(finding.to, finding.span.1)
        {
            self.unheard += 1;
        } else {
            self.missed.push(finding.span.1);
            breaches.push(format!("{}: generation {generation}, not resumed", told(finding)));
        }
    }

    /// A key that is no longer among the latest two opens nothing any more.
    fn gone(&self) -> Outcome {
        let late = self.evidence.met.findings.iter().filter(|f| f.what == What::ResumedLate);
        let mut breaches = Vec::new();
        let mut looked = 0;
        for finding in late {
            looked += 1;
            let before = finding.span.0.saturating_sub(SLACK);
            let gone = match self.generation(&finding.fingerprint) {
                Some(generation) => {
                    self.newest(finding.to, before).is_some_and(|newest| newest >= generation + 2)
                }
                None => true,
            };
            if gone {
                breaches.push(format!("{}: resumed with a retired key", told(finding)));
            }
        }
        let checked = format!(
            "{} offers of retired keys refused; {looked} of old tickets resumed, none retired",
            self.retired
        );
        let promise = "The latest two: a retired key opens no ticket";
        if self.retired == 0 {
            breaches.push("no ticket of a retired key was offered".into());
        }
        Outcome { promise, checked, breaches }
    }

    /// By the logs, for every rotation and server: held no later than anybody's first use.
    fn held_before_used(&mut self) -> Outcome {
        let rotations = logs::rotations(&self.evidence.entries);
        let (mut checked, mut breaches) = (0, Vec::new());
        for rotation in &rotations {
            let Some(first) = rotation.first() else { continue };
            for index in 0..SERVERS {
                if !self.is_strict(index, first) {
                    continue;
                }
                checked += 1;
                if self.holds(index, first, rotation.generation) {
                    continue;
                }
                if self.was_unheard(index, first) {
                    self.unheard += 1;
                    continue;
                }
                let (number, generation) = (index + 1, rotation.generation);
                breaches.push(format!(
                    "{first:.3?}: generation {generation} is used, server {number} does not hold it"
                ));
            }
        }
        self.checked += checked;
        Outcome {
            promise:
                "Held before used: when the first server encrypts with a key, all reachable ones \
                      hold it",
            checked: format!("{} rotations, {checked} times a server", rotations.len()),
            breaches,
        }
    }

    fn is_strict(&self, index: usize, at: Duration) -> bool {
        let own = self.evidence.standings.iter().filter(|(_, who, _)| *who == index);
        own.take_while(|(since, _, _)| *since <= at)
            .last()
            .is_some_and(|(_, _, standing)| *standing == Standing::Strict)
    }

    fn excused(&self) -> Outcome {
        let allowed = (self.checked as f64 * UNHEARD_SHARE).max(2.0);
        let mut breaches = Vec::new();
        if self.unheard as f64 > allowed {
            breaches.push(format!("{} excuses; {allowed:.0} are allowed", self.unheard));
        }
        Outcome {
            promise: "Few excuses: seldom is a server that nobody touched unheard by its leader",
            checked: format!(
                "{} of {} checks; the machine stood still {} times, {:.1?} at most",
                self.unheard,
                self.checked,
                self.evidence.standstills.len(),
                self.evidence.standstills.iter().map(|s| s.1).max().unwrap_or_default()
            ),
            breaches,
        }
    }

    fn on_time(&self) -> Outcome {
        let mut breaches = Vec::new();
        let rotations = logs::rotations(&self.evidence.entries);
        let firsts: Vec<(u64, Duration)> =
            rotations.iter().filter_map(|r| Some((r.generation, r.first()?))).collect();
        let (mut checked, mut longest) = (0, Duration::ZERO);
        for pair in firsts.windows(2) {
            let ((_, before), (generation, at)) = (pair[0], pair[1]);
            let gap = at.saturating_sub(before);
            let touched = self.evidence.phases.iter().filter(|p| p.begin < at && p.end > before);
            let (mut stopped, mut lossy) = (false, false);
            for phase in touched {
                stopped |= !phase.majority;
                lossy |= phase.lossy;
            }
            if gap + EARLY < INTERVAL {
                breaches.push(format!("{at:.3?}: generation {generation} after {gap:?}, early"));
            }
            if stopped {
                continue;
            }
            checked += 1;
            longest = longest.max(gap);
            let late = if lossy { LATE_WITH_LOSS } else { LATE };
            if gap > INTERVAL + late {
                breaches.push(format!("{at:.3?}: generation {generation} after {gap:?}, late"));
            }
        }
        if let Some((generation, last)) = firsts.last() {
            // The run ends with a quiet while that is longer than that.
            if self.evidence.span.saturating_sub(*last) > INTERVAL + LATE {
                breaches.push(format!("none after generation {generation} at {last:.3?}"));
            }
        }
        Outcome {
            promise: "On time: where a majority is connected rotations come, and none comes early",
            checked: format!("{checked} gaps with a majority, {longest:.2?} the longest"),
            breaches,
        }
    }

    fn returns(&self) -> Outcome {
        let took: Vec<f64> =
            self.evidence.phases.iter().map(|phase| phase.took.as_secs_f64()).collect();
        let most = took.iter().copied().fold(0.0, f64::max);
        let breaches = self.evidence.broken.iter().filter(|broken| broken.what.contains("again"));
        Outcome {
            promise: "Comes back: after every fault all servers are one within 15 s",
            checked: format!(
                "{} faults; one again after {:.2} s, median, {most:.2} s at most",
                took.len(),
                median(&took)
            ),
            breaches: breaches
                .map(|broken| format!("{:.1?}: {}", broken.at, broken.what))
                .collect(),
        }
    }

    fn hosts(&self) -> Outcome {
        let died = self.evidence.broken.iter().filter(|broken| broken.what.contains("ended"));
        let mut breaches: Vec<String> =
            died.map(|broken| format!("{:.1?}: {}", broken.at, broken.what)).collect();
        for entry in &self.evidence.entries {
            if let Event::Failure(line) = &entry.event {
                breaches.push(format!("{:.1?}, server {}: {line}", entry.at, entry.index + 1));
            }
        }
        let starts = self.evidence.entries.iter().filter(|e| e.event == Event::Started).count();
        Outcome {
            promise: "The host stays up: no server ends by itself, none writes an error",
            checked: format!("{starts} processes in {:.0?}", self.evidence.span),
            breaches,
        }
    }

    fn flat(&self) -> (Outcome, Vec<(usize, usize, Growth)>, Growth) {
        let plain = self.grown(SERVERS, 0).unwrap_or_default();
        let (mut growth, mut breaches) = (Vec::new(), Vec::new());
        let mut lives: Vec<(usize, usize)> =
            self.evidence.samples.iter().map(|s| (s.index, s.life)).collect();
        lives.sort_unstable();
        lives.dedup();
        let mut assessed = 0;
        for (index, life) in lives.into_iter().filter(|(index, _)| *index < SERVERS) {
            let Some(own) = self.grown(index, life) else { continue };
            assessed += 1;
            growth.push((index, life, own));
            let limits = [
                ("memory (KiB)", MEMORY_GROWTH + plain[0].max(0.0)),
                ("descriptors", DESCRIPTOR_GROWTH),
                ("threads", THREAD_GROWTH),
            ];
            for ((what, limit), grown) in limits.into_iter().zip(own) {
                if grown > limit {
                    breaches.push(format!(
                        "server {}, process {}: {what} grew by {grown:.0}; {limit:.0} is allowed",
                        index + 1,
                        life + 1
                    ));
                }
            }
        }
        if assessed == 0 {
            breaches.push("no process lived long enough to be checked".into());
        }
        let most = |part: usize| growth.iter().map(|g| g.2[part]).fold(f64::NEG_INFINITY, f64::max);
        let checked = format!(
            "{assessed} processes from the first to the last third of their lives: memory at most \
             {:+.0} KiB (without the plugin {:+.0}), descriptors {:+.0}, threads {:+.0}",
            most(0),
            plain[0],
            most(1),
            most(2)
        );
        let promise = "Flat: memory, descriptors and threads of a server do not grow";
        (Outcome { promise, checked, breaches }, growth, plain)
    }

    /// How much the medians of the last third of a life's quiet samples are above the first's.
    fn grown(&self, index: usize, life: usize) -> Option<Growth> {
        let own = self.evidence.samples.iter().filter(|s| s.index == index && s.life == life);
        let born = own.clone().map(|sample| sample.at).min()?;
        // A short run has to do with less.
        let warm = WARM_UP.min(self.evidence.span / 6);
        let own: Vec<&Sample> = own.filter(|s| s.quiet && s.at >= born + warm).collect();
        let third = own.len() / 3;
        if own.len() < SAMPLES {
            return None;
        }
        let of = |value: fn(&Sample) -> f64| {
            let part = |samples: &[&Sample]| {
                median(&samples.iter().map(|sample| value(sample)).collect::<Vec<_>>())
            };
            part(&own[own.len() - third..]) - part(&own[..third])
        };
        let growth = [
            of(|sample| sample.usage.private as f64),
            of(|sample| sample.usage.descriptors as f64),
            of(|sample| sample.usage.threads as f64),
        ];
        Some(growth)
    }
}

fn told(finding: &Finding) -> String {
    let Finding { span, from, to, version, fingerprint, taken, .. } = finding;
    format!(
        "{:.3?}: {version} ticket of server {} under {fingerprint}, taken at {taken:.3?}, to server {}",
        span.0,
        from + 1,
        to + 1
    )
}

#[cfg(test)]
mod tests {
    use testkit::tickets::TlsVersion;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn installed(at: Duration, index: usize, current: u64, staged: Option<u64>) -> Entry {
        let fingerprint = format!("key{current}");
        let event = Event::Installed { current: Some(current), staged, fingerprint };
        Entry { at, index, event }
    }

    /// Three rotations without a fault: each key is held by all 10 ms before it is used.
    fn orderly() -> Evidence {
        let mut entries = Vec::new();
        for index in 0..SERVERS {
            entries.push(installed(SECOND, index, 1, None));
            for generation in 2..=4_u64 {
                let used = SECOND + INTERVAL * u32::try_from(generation - 1).unwrap_or(0);
                let held = used - Duration::from_millis(10);
                entries.push(installed(held, index, generation - 1, Some(generation)));
                entries.push(installed(used, index, generation, None));
            }
        }
        let mut met = Met::default();
        met.strict.offers = 1000;
        Evidence {
            met,
            entries,
            standings: (0..SERVERS)
                .map(|index| (Duration::ZERO, index, Standing::Strict))
                .collect(),
            phases: Vec::new(),
            samples: Vec::new(),
            standstills: Vec::new(),
            broken: Vec::new(),
            span: SECOND + INTERVAL * 4,
        }
    }

    /// A ticket of server 1 under a generation, offered to server 2 when so many intervals were over.
    fn missed(generation: u64, intervals: u32) -> Finding {
        let at = SECOND + INTERVAL * intervals + SECOND;
        Finding {
            span: (at, at + Duration::from_millis(3)),
            from: 0,
            to: 1,
            version: TlsVersion::V13,
            fingerprint: format!("key{generation}"),
            taken: at - SECOND,
            what: What::NotResumed,
        }
    }

    fn breaches(evidence: &Evidence, start: &str) -> Vec<String> {
        let outcomes = assess(evidence).outcomes;
        let own = outcomes.into_iter().filter(|outcome| outcome.promise.starts_with(start));
        own.flat_map(|outcome| outcome.breaches).collect()
    }

    #[test]
    fn an_orderly_run_keeps_every_promise_that_it_tried() {
        let evidence = orderly();
        for outcome in assess(&evidence).outcomes {
            // No retired key was offered and nothing was sampled here, and that is no proof.
            let untried = ["The latest two", "Flat"].iter().any(|p| outcome.promise.starts_with(p));
            assert_eq!(outcome.breaches.is_empty(), !untried, "{outcome:?}");
        }
    }

    #[test]
    fn a_missed_ticket_is_a_breach_unless_its_key_had_retired() {
        let mut evidence = orderly();
        // Generation 1 retires when generation 3 is staged, after two intervals.
        evidence.met.findings = vec![missed(1, 2)];
        assert!(breaches(&evidence, "Every ticket").is_empty());
        assert!(breaches(&evidence, "The latest two").is_empty());
        evidence.met.findings = vec![missed(1, 1)];
        let told = breaches(&evidence, "Every ticket");
        assert!(told[0].contains("to server 2: generation 1, not resumed"), "{told:?}");
        // A note about the server excuses no key that it held and lost.
        let event = Event::Without { member: 1, generation: 2 };
        evidence.entries.push(Entry { at: SECOND + INTERVAL, index: 0, event });
        assert_eq!(breaches(&evidence, "Every ticket").len(), 1);
    }

    #[test]
    fn a_retired_key_that_still_opens_is_a_breach() {
        let mut evidence = orderly();
        let late = |intervals| Finding { what: What::ResumedLate, ..missed(1, intervals) };
        evidence.met.findings = vec![missed(1, 2), late(1)];
        assert!(breaches(&evidence, "The latest two").is_empty());
        evidence.met.findings.push(late(3));
        assert_eq!(breaches(&evidence, "The latest two").len(), 1);
    }

    #[test]
    fn a_key_that_is_used_before_a_server_holds_it_is_a_breach_unless_the_server_was_unheard() {
        let mut evidence = orderly();
        let used = SECOND + INTERVAL * 2;
        let late = used + SECOND;
        evidence.entries.retain(|e| e.index != 4 || e.at < used - SECOND || e.at > used);
        evidence.entries.push(installed(late, 4, 3, None));
        let told = breaches(&evidence, "Held before used");
        assert_eq!(told, ["9.000s: generation 3 is used, server 5 does not hold it"]);
        let event = Event::Without { member: 4, generation: 3 };
        evidence.entries.push(Entry { at: used, index: 0, event });
        assert!(breaches(&evidence, "Held before used").is_empty());
        assert_eq!(assess(&evidence).unheard, 1);
        assert!(breaches(&evidence, "Few excuses").is_empty());
        // A server that is not one of the fleet is not checked.
        evidence.entries.pop();
        evidence.standings.push((SECOND, 4, Standing::Apart("cut off")));
        assert!(breaches(&evidence, "Held before used").is_empty());
    }

    #[test]
    fn two_keys_of_one_generation_and_a_rotation_that_does_not_come_are_breaches() {
        let mut evidence = orderly();
        let fingerprint = "another".to_owned();
        let event = Event::Installed { current: Some(4), staged: None, fingerprint };
        evidence.entries.push(Entry { at: evidence.span - SECOND, index: 3, event });
        assert_eq!(breaches(&evidence, "One order").len(), 1);

        let mut evidence = orderly();
        evidence.span += INTERVAL * 3;
        assert!(breaches(&evidence, "On time")[0].contains("none after generation 4"));
        evidence.entries.retain(|e| e.at < SECOND * 2 || e.at > SECOND + INTERVAL * 2);
        evidence.span -= INTERVAL * 3;
        assert!(!breaches(&evidence, "On time").is_empty());
    }

    #[test]
    fn memory_that_grows_is_a_breach_and_that_of_the_host_is_not() {
        let mut evidence = orderly();
        evidence.span = SECOND * 3600;
        let sample = |at: u32, index, kib: u64| Sample {
            at: SECOND * at,
            index,
            life: 0,
            quiet: true,
            usage: testkit::ats::Usage {
                cpu: Duration::ZERO,
                memory: 0,
                private: kib,
                wakeups: 0,
                threads: 9,
                descriptors: 30,
            },
        };
        let grows = |at: u32| 16_000 + u64::from(at) / 2;
        evidence.samples = (0..100).map(|n| sample(n * 36, 0, grows(n * 36))).collect();
        assert!(breaches(&evidence, "Flat")[0].contains("server 1, process 1: memory"));
        // The server without the plugin does the same.
        evidence.samples.extend((0..100).map(|n| sample(n * 36, SERVERS, grows(n * 36))));
        assert!(breaches(&evidence, "Flat").is_empty());
    }
}
