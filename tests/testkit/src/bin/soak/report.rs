//! The report: a page with the outcomes, the faults and the plots; each plot as a file of its own;
//! and everything in figures as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use serde_json::{json, Value};
use testkit::figures::median;
use testkit::logs::{self, Event};
use testkit::plot::{escaped, Chart, Series, Shape};
use testkit::{Context, Result};

use crate::checker::{Evidence, Judgement};
use crate::clients::Standing;
use crate::watch::Sample;
use crate::{Request, INTERVAL, SERVERS};

/// Breaches that are shown; a broken fleet would fill a book.
const SHOWN: usize = 50;
/// Columns of a chart over time.
const COLUMNS: f64 = 120.0;

/// Writes all of it and says the outcomes. `cpu` is what this process used for hub and clients.
pub fn write(
    request: &Request,
    evidence: &Evidence,
    assessment: &Judgement,
    cpu: Duration,
    interrupted: bool,
) -> Result<()> {
    fs::create_dir_all(&request.out).context(request.out.display())?;
    let plots = plots(evidence, assessment);
    for (name, chart) in &plots {
        fs::write(request.out.join(format!("{name}.svg")), chart.svg())?;
    }
    let report = Report { request, evidence, assessment, cpu, interrupted };
    fs::write(request.out.join("report.html"), report.page(&plots))?;
    let json = serde_json::to_string(&report.figures()).context("JSON")?;
    fs::write(request.out.join("report.json"), json + "\n")?;
    report.say();
    Ok(())
}

struct Report<'a> {
    request: &'a Request,
    evidence: &'a Evidence,
    assessment: &'a Judgement,
    cpu: Duration,
    interrupted: bool,
}

/// All faults of one kind.
struct Kind<'a> {
    name: &'a str,
    took: Vec<f64>,
}

impl Report<'_> {
    fn outcome(&self) -> String {
        match (self.interrupted, self.assessment.breaches()) {
            (true, _) => "INTERRUPTED".into(),
            (false, 0) => "PASSED: no promise was broken".into(),
            (false, count) => format!("FAILED: {count} breaches"),
        }
    }

    fn say(&self) {
        for outcome in &self.assessment.outcomes {
            let word = if outcome.breaches.is_empty() { "kept  " } else { "BROKEN" };
            println!("{word} {}\n       {}", outcome.promise, outcome.checked);
            for breach in outcome.breaches.iter().take(SHOWN) {
                println!("       - {breach}");
            }
        }
        let page = self.request.out.join("report.html");
        println!("{}; seed {}; {}", self.outcome(), self.request.seed, page.display());
    }

    /// Processor time of one core, in per cent, of this process and of all servers.
    fn load(&self) -> (f64, f64) {
        let span = self.evidence.span.as_secs_f64().max(1.0);
        // Of each process what it had used at its last sample.
        let mut last: BTreeMap<(usize, usize), Duration> = BTreeMap::new();
        for sample in &self.evidence.samples {
            last.insert((sample.index, sample.life), sample.usage.cpu);
        }
        let servers: Duration = last.values().sum();
        (self.cpu.as_secs_f64() / span * 100.0, servers.as_secs_f64() / span * 100.0)
    }

    fn kinds(&self) -> Vec<Kind<'_>> {
        let mut kinds: Vec<Kind> = Vec::new();
        for phase in &self.evidence.phases {
            let took = phase.took.as_secs_f64();
            match kinds.iter_mut().find(|kind| kind.name == phase.kind) {
                Some(kind) => kind.took.push(took),
                None => kinds.push(Kind { name: phase.kind, took: vec![took] }),
            }
        }
        kinds
    }

    /// Milliseconds between first and last use of each key among the servers that nothing touched.
    fn spreads(&self) -> Vec<(Duration, f64)> {
        spreads(self.evidence)
    }

    fn figures(&self) -> Value {
        let (evidence, assessment) = (self.evidence, self.assessment);
        let spreads: Vec<f64> = self.spreads().iter().map(|(_, spread)| *spread).collect();
        let outcomes = assessment.outcomes.iter().map(|outcome| {
            json!({
                "promise": outcome.promise,
                "checked": outcome.checked,
                "breaches": outcome.breaches,
            })
        });
        let apart = evidence.met.apart.iter().map(|(reason, tally)| {
            json!({ "reason": reason, "offers": tally.offers, "missed": tally.missed })
        });
        let faults = evidence.phases.iter().map(|phase| {
            json!({
                "kind": phase.kind,
                "detail": phase.detail,
                "begin_s": phase.begin.as_secs_f64(),
                "healed_s": phase.healed.as_secs_f64(),
                "one_again_after_s": phase.took.as_secs_f64(),
            })
        });
        let growth = assessment.growth.iter().map(|(index, life, grown)| {
            json!({
                "server": index + 1,
                "process": life + 1,
                "private_kib": grown[0],
                "descriptors": grown[1],
                "threads": grown[2],
            })
        });
        let samples = evidence.samples.iter().map(in_one_row);
        let (own, servers) = self.load();
        json!({
            "outcome": self.outcome(),
            "seed": self.request.seed,
            "seconds": evidence.span.as_secs_f64(),
            "interval_s": INTERVAL.as_secs(),
            "servers": SERVERS,
            "outcomes": outcomes.collect::<Vec<_>>(),
            "strict_offers": evidence.met.strict.offers,
            "strict_missed": assessment.missed.len(),
            "retired_refused": assessment.retired,
            "unheard": assessment.unheard,
            "apart": apart.collect::<Vec<_>>(),
            "spread_ms": { "rotations": spreads.len(), "median": finite(median(&spreads)),
                           "most": finite(spreads.iter().copied().fold(f64::NAN, f64::max)) },
            "elections": elections(evidence).len(),
            "standstills": evidence.standstills.len(),
            "growth": growth.collect::<Vec<_>>(),
            "growth_without_plugin_private_kib": assessment.plain_growth[0],
            "cpu_percent_of_a_core": { "hub_and_clients": own, "servers": servers },
            "faults": faults.collect::<Vec<_>>(),
            // Server 6 is the one without the plugin.
            "samples_of": ["s", "server", "process", "quiet", "pss_kib", "private_kib",
                           "descriptors", "threads"],
            "samples": samples.collect::<Vec<_>>(),
        })
    }

    fn page(&self, plots: &[(&str, Chart)]) -> String {
        let (own, servers) = self.load();
        let mut out = String::from(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>stek_share: \
             endurance</title>\n<style>body{font-family:sans-serif;max-width:60em;margin:2em auto;\
             padding:0 1em}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3em \
             .6em;text-align:left}svg{max-width:100%;height:auto}.no{color:#b00}</style>\n",
        );
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "<h1>Endurance: {}</h1>\n<p>{SERVERS} Traffic Servers, {:.0?}, a new key every \
             {INTERVAL:?}, {} faults, seed {}. Processor: hub and clients {own:.1} % of a core, \
             servers {servers:.1} %.</p>\n",
            escaped(&self.outcome()),
            self.evidence.span,
            self.evidence.phases.len(),
            self.request.seed
        );
        self.verdict_table(&mut out);
        for (_, chart) in plots {
            let _ = writeln!(out, "<p>{}</p>", chart.svg());
        }
        self.fault_tables(&mut out);
        out + "</html>\n"
    }

    fn verdict_table(&self, out: &mut String) {
        *out += "<h2>Promises</h2>\n<table><tr><th>promise<th>checked<th>kept\n";
        for outcome in &self.assessment.outcomes {
            let kept = match outcome.breaches.len() {
                0 => "yes".to_owned(),
                count => format!("<b class=\"no\">{count} times not</b>"),
            };
            let (promise, checked) = (escaped(outcome.promise), escaped(&outcome.checked));
            let _ = writeln!(out, "<tr><td>{promise}<td>{checked}<td>{kept}");
        }
        *out += "</table>\n";
        for breach in self.assessment.outcomes.iter().flat_map(|v| &v.breaches).take(SHOWN) {
            let _ = writeln!(out, "<p class=\"no\">{}</p>", escaped(breach));
        }
        let _ = writeln!(
            out,
            "<h2>Offers that are checked apart</h2>\n<p>One of the two servers was not one of the \
             fleet. Excused because a leader had not heard a server: {}.</p>\n<table><tr><th>why\
             <th>offers<th>missed",
            self.assessment.unheard
        );
        for (reason, tally) in &self.evidence.met.apart {
            let _ = writeln!(out, "<tr><td>{reason}<td>{}<td>{}", tally.offers, tally.missed);
        }
        *out += "</table>\n";
    }

    fn fault_tables(&self, out: &mut String) {
        *out += "<h2>Faults</h2>\n<table><tr><th>kind<th>times<th>one again, median<th>at most\n";
        for Kind { name, took } in self.kinds() {
            let most = took.iter().copied().fold(0.0, f64::max);
            let _ = writeln!(
                out,
                "<tr><td>{name}<td>{}<td>{:.2} s<td>{most:.2} s",
                took.len(),
                median(&took)
            );
        }
        *out +=
            "</table>\n<h2>Growth of long lives</h2>\n<table><tr><th>server<th>process<th>memory\
                 <th>descriptors<th>threads\n";
        for (index, life, grown) in &self.assessment.growth {
            let _ = writeln!(
                out,
                "<tr><td>{}<td>{}<td>{:+.0} KiB<td>{:+.0}<td>{:+.0}",
                index + 1,
                life + 1,
                grown[0],
                grown[1],
                grown[2]
            );
        }
        let grown = self.assessment.plain_growth;
        let _ = writeln!(
            out,
            "<tr><td>without the plugin<td>1<td>{:+.0} KiB<td>{:+.0}<td>{:+.0}\n</table>",
            grown[0], grown[1], grown[2]
        );
    }
}

/// In the order of `samples_of`.
fn in_one_row(sample: &Sample) -> Value {
    let Sample { at, index, life, quiet, usage } = sample;
    json!([
        (at.as_secs_f64() * 10.0).round() / 10.0,
        index + 1,
        life + 1,
        u8::from(*quiet),
        usage.memory,
        usage.private,
        usage.descriptors,
        usage.threads
    ])
}

fn finite(value: f64) -> Value {
    if value.is_finite() {
        json!(value)
    } else {
        Value::Null
    }
}

fn elections(evidence: &Evidence) -> Vec<Duration> {
    let leads = evidence.entries.iter().filter(|entry| matches!(entry.event, Event::Leads(_)));
    let mut times: Vec<Duration> = leads.map(|entry| entry.at).collect();
    times.sort();
    times
}

fn spreads(evidence: &Evidence) -> Vec<(Duration, f64)> {
    let strict = |index: usize, at: Duration| {
        let mut own = evidence.standings.iter().rev();
        let last = own.find(|(since, who, _)| *who == index && *since <= at);
        last.is_some_and(|(_, _, standing)| *standing == Standing::Strict)
    };
    let mut all = Vec::new();
    for rotation in logs::rotations(&evidence.entries) {
        let Some(first) = rotation.first() else { continue };
        let uses = rotation.uses.iter().filter(|(index, _)| strict(**index, first));
        let uses: Vec<Duration> = uses.map(|(_, at)| *at).collect();
        if let (true, Some(least), Some(most)) =
            (uses.len() > 1, uses.iter().min(), uses.iter().max())
        {
            all.push((first, (*most - *least).as_secs_f64() * 1e3));
        }
    }
    all
}

fn minutes(at: Duration) -> f64 {
    at.as_secs_f64() / 60.0
}

/// How many of some moments fall into each of the columns of a chart.
fn columns(moments: &[Duration], span: Duration) -> Vec<(f64, f64)> {
    let width = (minutes(span) / COLUMNS).max(1.0 / 60.0);
    let mut counts: BTreeMap<u64, f64> = BTreeMap::new();
    for at in moments {
        *counts.entry((minutes(*at) / width) as u64).or_default() += 1.0;
    }
    counts.into_iter().map(|(column, n)| ((column as f64 + 0.5) * width, n)).collect()
}

fn plots(evidence: &Evidence, assessment: &Judgement) -> Vec<(&'static str, Chart)> {
    let bands = evidence.phases.iter().map(|p| (minutes(p.begin), minutes(p.end))).collect();
    let end = minutes(evidence.span);
    let base = Chart {
        across: "minutes".into(),
        bands,
        band_name: "fault".into(),
        from_zero: true,
        ..Chart::default()
    };
    let chart = |title: &str, up: &str, mut series: Vec<Series>| {
        // Every chart spans the whole run.
        if let Some(first) = series.first_mut() {
            first.points.insert(0, (0.0, f64::NAN));
            first.points.push((end, f64::NAN));
        }
        Chart { title: title.into(), up: up.into(), series, ..base.clone() }
    };
    let series = |name: &str, shape, points| Series { name: name.into(), shape, points };
    let misses = vec![
        series("among reachable", Shape::Columns, columns(&assessment.missed, evidence.span)),
        series(
            "servers apart",
            Shape::Columns,
            columns(&evidence.met.apart_missed_at, evidence.span),
        ),
    ];
    let spread = spreads(evidence).into_iter().map(|(at, ms)| (minutes(at), ms)).collect();
    let leads = elections(evidence);
    let count = leads.iter().zip(1..).map(|(at, count)| (minutes(*at), f64::from(count)));
    let used = |shape, of: fn(&Sample) -> f64| {
        let own = |index: usize| {
            let samples = evidence.samples.iter().filter(|sample| sample.index == index);
            let name =
                if index < SERVERS { format!("server {}", index + 1) } else { "no plugin".into() };
            let points = samples.map(|sample| (minutes(sample.at), of(sample))).collect();
            Series { name, shape, points }
        };
        (0..=SERVERS).map(own).collect::<Vec<_>>()
    };
    vec![
        ("misses", chart("Tickets not resumed", "offers", misses)),
        (
            "spread",
            chart(
                "From the first to the last reachable server's use of a key",
                "ms",
                vec![series("rotation", Shape::Points, spread)],
            ),
        ),
        (
            "elections",
            chart("Elections", "so far", vec![series("leaders", Shape::Step, count.collect())]),
        ),
        (
            "memory",
            Chart {
                from_zero: false,
                ..chart("Memory of its own", "KiB", used(Shape::Line, |s| s.usage.private as f64))
            },
        ),
        (
            "descriptors",
            chart("Descriptors", "open", used(Shape::Line, |s| s.usage.descriptors as f64)),
        ),
        ("threads", chart("Threads", "", used(Shape::Line, |s| s.usage.threads as f64))),
    ]
}
