//! What the plugin costs a server that nobody asks anything: processor, wake-ups, memory, threads.
//!
//! As many plain servers run beside those with the plugin, over the same spans of time, so that what
//! the machine does besides falls on both.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use testkit::ats::{Ats, Usage};
use testkit::figures::Figures;
use testkit::fleet::{self, Plan};
use testkit::run_dir::RunDir;
use testkit::{sys, wait, Error, Result};

use crate::group::{Group, System};

/// No rotation while idleness is measured.
const INTERVAL: Duration = Duration::from_secs(3600);
/// Until all servers have a first key, and somebody says who leads.
const START_LIMIT: Duration = Duration::from_secs(30);
/// What a start leaves to be done has settled after so long.
const SETTLE: Duration = Duration::from_secs(5);
/// One look. Long enough for a few hundred heartbeats.
const SPAN: Duration = Duration::from_secs(30);
/// How many looks may be taken for one that is not disturbed by an election.
const ATTEMPTS: usize = 2;

/// What a server used per second, and holds.
#[derive(Clone, Copy, Default)]
struct Cost {
    cpu_ms: f64,
    wakeups: f64,
    memory_kib: f64,
    threads: f64,
    descriptors: f64,
}

/// Looks `looks` times at `size` servers with and `size` without the plugin.
pub fn measure(plugin: &Path, size: usize, looks: usize, figures: &mut Figures) -> Result<()> {
    let figures = figures.of(System::StekShare.name());
    let dir = RunDir::new("measure")?;
    let plain = Plan::new(size, plugin, INTERVAL).plain().start(&dir.join("plain"))?;
    let fleet = Plan::new(size, plugin, INTERVAL).start(&dir.join("plugin"))?;
    fleet::wait_one_key(&fleet.https(), None, START_LIMIT)?;
    wait::until(START_LIMIT, "a leader in diags.log", || Ok(fleet.leader()))?;
    rest(SETTLE)?;
    let (mut leading, mut following, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..looks * ATTEMPTS {
        let leader = fleet.leader();
        let before = (look(&plain.servers)?, look(&fleet.servers)?, Instant::now());
        rest(SPAN)?;
        let (plain_after, after, span) =
            (look(&plain.servers)?, look(&fleet.servers)?, before.2.elapsed());
        // On a busy machine there may be an election, and then this was no idle fleet.
        let Some(leader) = leader.filter(|leader| fleet.leader() == Some(*leader)) else {
            continue;
        };
        without.push(mean(&costs(&before.0, &plain_after, span)));
        let own = costs(&before.1, &after, span);
        let others = own.iter().enumerate().filter(|(i, _)| *i != leader.index);
        following.push(mean(&others.map(|(_, cost)| *cost).collect::<Vec<_>>()));
        leading.extend(own.get(leader.index).copied());
        if without.len() == looks {
            break;
        }
    }
    if without.len() < looks {
        return Err(Error::new("there were elections all the time: this was no idle fleet"));
    }
    add(figures, &format!("idle, {size} servers: leader minus plain"), &leading, &without);
    if size > 1 {
        add(figures, &format!("idle, {size} servers: follower minus plain"), &following, &without);
    }
    let share = |of: fn(&Cost) -> f64| {
        let pairs = leading.iter().zip(&following).zip(&without);
        let others = (size - 1) as f64;
        let values = pairs.map(|((l, f), p)| (of(l) + others * of(f)) / size as f64 - of(p));
        values.collect::<Vec<f64>>()
    };
    let name = |what: &str| format!("idle, {size} servers: mean of all minus plain, {what}");
    figures.add_spread(&name("CPU"), &share(|cost| cost.cpu_ms), "ms/s");
    figures.add_spread(&name("memory (PSS)"), &share(|cost| cost.memory_kib), "KiB");
    let plain_cpu: Vec<f64> = without.iter().map(|cost| cost.cpu_ms).collect();
    let name = format!("idle, {size} servers: whole server, CPU");
    figures.of(System::Plain.name()).add_spread(&name, &plain_cpu, "ms/s");
    dir.done()
}

/// What servers of other kinds use at rest, all of it: they are not Traffic Server with something
/// more, so that there is nothing to take off.
pub fn rivals(
    systems: &[System],
    plugin: &Path,
    size: usize,
    looks: usize,
    figures: &mut Figures,
) -> Result<()> {
    for system in systems {
        let dir = RunDir::new("measure")?;
        let mut group = Group::prepare(*system, plugin, size, INTERVAL, dir.path())?;
        group.start_nursed()?;
        rest(SETTLE)?;
        let (mut own, mut helper) = (Vec::new(), Vec::new());
        for _ in 0..looks {
            let (before, begun) = (group.usage()?, Instant::now());
            let helper_before = group.helper_usage().transpose()?;
            rest(SPAN)?;
            let span = begun.elapsed();
            own.push(mean(&costs(&before, &group.usage()?, span)));
            if let (Some(before), Some(after)) = (helper_before, group.helper_usage().transpose()?)
            {
                helper.push(mean(&costs(&[before], &[after], span)));
            }
        }
        let figures = figures.of(system.name());
        let nothing = vec![Cost::default(); looks];
        add(figures, &format!("idle, {size} servers: whole server"), &own, &nothing);
        add(figures, &format!("idle, {size} servers: Redis besides"), &helper, &nothing);
        dir.done()?;
    }
    Ok(())
}

/// What sharing sessions costs servers that have none to share. All stand side by side: those that share
/// them, the same without the option, ssl_session_reuse if it is asked for, and plain ones.
pub fn sharing(
    systems: &[System],
    plugin: &Path,
    size: usize,
    looks: usize,
    figures: &mut Figures,
) -> Result<()> {
    let dir = RunDir::new("measure")?;
    let mut kinds = vec![System::SharedIds, System::StekShare, System::Plain];
    kinds.extend(systems.iter().find(|system| **system == System::SessionReuse));
    let start = |(number, system): (usize, &System)| {
        let group = Group::start_in(*system, plugin, (size, INTERVAL), dir.path(), number)?;
        group.wait_one_key(START_LIMIT)?;
        Ok(group)
    };
    let groups = kinds.iter().enumerate().map(start).collect::<Result<Vec<Group>>>()?;
    rest(SETTLE)?;
    let mut means = vec![Vec::new(); groups.len()];
    for _ in 0..looks {
        let (before, begun) = (all_usage(&groups)?, Instant::now());
        rest(SPAN)?;
        let span = begun.elapsed();
        for ((means, before), after) in means.iter_mut().zip(before).zip(all_usage(&groups)?) {
            means.push(mean(&costs(&before, &after, span)));
        }
    }
    let name = |what: &str| format!("clients without tickets: at rest, {what}");
    let own = figures.of(System::StekShare.name());
    add(own, &name("with share_sessions minus without it"), &means[0], &means[1]);
    if let Some(reuse) = means.get(3) {
        let figures = figures.of(System::SessionReuse.name());
        add(figures, &name("ssl_session_reuse minus plain, without Redis"), reuse, &means[2]);
    }
    dir.done()
}

fn all_usage(groups: &[Group]) -> Result<Vec<Vec<Usage>>> {
    groups.iter().map(Group::usage).collect()
}

/// The differences, look by look.
fn add(figures: &mut Figures, name: &str, with: &[Cost], without: &[Cost]) {
    let mut add = |what: &str, of: fn(&Cost) -> f64, unit| {
        let pairs = with.iter().zip(without);
        let differences: Vec<f64> = pairs.map(|(with, without)| of(with) - of(without)).collect();
        figures.add_spread(&format!("{name}, {what}"), &differences, unit);
    };
    add("CPU", |cost| cost.cpu_ms, "ms/s");
    add("wake-ups", |cost| cost.wakeups, "/s");
    add("memory (PSS)", |cost| cost.memory_kib, "KiB");
    add("threads", |cost| cost.threads, "");
    add("descriptors", |cost| cost.descriptors, "");
}

fn look(servers: &[Ats]) -> Result<Vec<Usage>> {
    servers.iter().map(Ats::usage).collect()
}

fn costs(before: &[Usage], after: &[Usage], span: Duration) -> Vec<Cost> {
    let seconds = span.as_secs_f64();
    let cost = |(before, after): (&Usage, &Usage)| Cost {
        cpu_ms: after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e3 / seconds,
        wakeups: after.wakeups.saturating_sub(before.wakeups) as f64 / seconds,
        memory_kib: after.memory as f64,
        threads: after.threads as f64,
        descriptors: after.descriptors as f64,
    };
    before.iter().zip(after).map(cost).collect()
}

/// The mean server; nothing at all of no servers.
fn mean(costs: &[Cost]) -> Cost {
    let count = costs.len().max(1) as f64;
    let of = |part: fn(&Cost) -> f64| costs.iter().map(part).sum::<f64>() / count;
    Cost {
        cpu_ms: of(|cost| cost.cpu_ms),
        wakeups: of(|cost| cost.wakeups),
        memory_kib: of(|cost| cost.memory_kib),
        threads: of(|cost| cost.threads),
        descriptors: of(|cost| cost.descriptors),
    }
}

/// Leaves the servers alone for a while.
fn rest(span: Duration) -> Result<()> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        if sys::interrupted() {
            return Err(Error::new("interrupted"));
        }
        thread::sleep(
            Duration::from_millis(500).min(end.saturating_duration_since(Instant::now())),
        );
    }
    Ok(())
}
