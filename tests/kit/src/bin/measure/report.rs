//! The page with the figures of a run, side by side, and its plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use kit::figures::{Figure, Figures};
use kit::plot::{number, Bars};
use kit::{Context, Error, Result};

use crate::about::About;
use crate::group::System;

/// What stands above the tables.
const HEAD: &str = "\
# Benchmarks

Written by `make bench`, which measures this plugin and what else Debian's archive has for the same
purpose, one after another on one machine; `benchmarks.json` has every single value. Do not edit
this page. `make bench-quick` measures this plugin and plain Traffic Server in under three minutes,
and `make bench-compare` says what has become worse, beyond noise, since the run before.

A cell is the median; in brackets the least, the most, and the number of measurements, which is
what there is to say about noise. \"never\" means: not within the time that was waited. All servers
and all clients are on this one machine, on loopback.

- **plain** is Traffic Server without any plugin.
- **ssl_session_reuse** is Traffic Server's older plugin, with one Redis. Its key maker sends its
  first key before it listens itself, as a rule misses it, and then makes no more. The cold start
  shows it as it is; for all other figures Redis is told to hold messages back until all servers
  listen.
- **caddy** is a web server of its own; its servers find common keys in a directory.

";

/// The C++ plugin cannot be installed from any archive, so that its figures are those of one day.
const ORIGINAL: &str = "\
## The C++ plugin

Traffic Server's own experimental plugin of the same name is in no archive and cannot be measured in
the same run. On 2026-11-21, on another machine of two shared cores with Debian 12 and Traffic
Server 9.2.9, it did this:

| what | figure |
|---|---|
| cold start until every ticket resumes everywhere | 3 boxes: 10.3 to 10.7 s in 8 of 11 runs, else 0.4 to 0.6 s; 5 boxes: 10.4 to 10.7 s in 5 of 8 runs |
| tickets missed in rotations, 3 / 5 boxes | 2.8 to 12.2 % / 11.0 to 13.2 % |
| spread of a rotation, 3 / 5 boxes | 1.5 to 8.3 s / 7.1 to 9.8 s |
| an interval of 15 s comes out as | 20 s |
| leader killed, at an interval of 20 s: gap between two rotations | 20 to 30 s |
| a box restarted: current key / previous key | after 0.2 to 0.3 s or 10 s / never |
| idle, per box, more than plain, 3 / 5 boxes | 1.6 / 2.4 ms of processor a second (5.5 on a leader of 5), 2.7 to 2.9 MB resident, 7 threads, 64 to 68 wake-ups a second |
| size, stripped | 1.30 MB |
";

/// What is drawn: the file's name, the title, and the end of the figures' names.
const PLOTS: [(&str, &str, &str); 6] = [
    (
        "cold-start",
        "Cold start until every ticket resumes everywhere",
        "every ticket resumes everywhere",
    ),
    ("spread", "First to last server's use of a new key", "spread by tickets"),
    ("handshakes", "Handshakes a second with two clients on the same cores", ": throughput"),
    ("handshake-cost", "Server's processor time for each handshake", ": server's processor time"),
    ("idle-cpu", "Processor time at rest, whole server", "whole server, CPU"),
    ("idle-plugin", "Processor time at rest, plugin minus plain", "minus plain, CPU"),
];

/// Writes the page, and its plots into a directory of the same name beside it.
pub fn write(file: &Path, about: &About, figures: &Figures) -> Result<()> {
    let stem = file.file_stem().and_then(|stem| stem.to_str());
    let stem = stem.ok_or_else(|| Error::new("the report needs a file name"))?;
    let plots = file.with_file_name(stem);
    fs::create_dir_all(&plots).context(plots.display())?;
    let mut page = String::from(HEAD);
    page += "| | |\n|---|---|\n";
    for (name, value) in &about.facts {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "| {name} | {value} |");
    }
    for section in sections(figures) {
        table(&section, figures, &mut page);
    }
    page += "\n## Plots\n\n";
    for (name, title, end) in PLOTS {
        let bars = bars(title, end, figures);
        if bars.bars.is_empty() {
            continue;
        }
        fs::write(plots.join(format!("{name}.svg")), bars.svg())?;
        let _ = writeln!(page, "![{title}]({stem}/{name}.svg)\n");
    }
    page += ORIGINAL;
    fs::write(file, page).context(file.display())
}

/// What stands before the colon in the figures' names, each once.
fn sections(figures: &Figures) -> Vec<String> {
    let mut sections: Vec<String> = Vec::new();
    for figure in figures.all() {
        let section = split(&figure.name).0.to_owned();
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    sections
}

fn split(name: &str) -> (&str, &str) {
    name.split_once(": ").unwrap_or((name, name))
}

fn table(section: &str, figures: &Figures, page: &mut String) {
    let own: Vec<&Figure> =
        figures.all().iter().filter(|figure| split(&figure.name).0 == section).collect();
    let systems: Vec<System> = System::ALL
        .into_iter()
        .filter(|system| own.iter().any(|figure| figure.system == system.name()))
        .collect();
    let mut title = section.to_owned();
    title[..1].make_ascii_uppercase();
    let _ = write!(page, "\n## {title}\n\n| what |");
    systems.iter().for_each(|system| {
        let _ = write!(page, " {} |", label(system.name()));
    });
    let _ = writeln!(page, "\n|---|{}", "---|".repeat(systems.len()));
    let mut names: Vec<&str> = Vec::new();
    own.iter().map(|figure| figure.name.as_str()).for_each(|name| {
        if !names.contains(&name) {
            names.push(name);
        }
    });
    for name in names {
        let _ = write!(page, "| {} |", split(name).1);
        for system in &systems {
            let cell = figures.find(system.name(), name).map(cell).unwrap_or_default();
            let _ = write!(page, " {cell} |");
        }
        page.push('\n');
    }
}

fn label(system: &str) -> &str {
    match system {
        "" => "stek_share",
        other => other,
    }
}

/// `1.23 ms (1.01 to 2.02, 5)`.
fn cell(figure: &Figure) -> String {
    let (count, failed) = (figure.values.len(), figure.failed());
    let shown = |value: f64| match figure.unit.as_str() {
        "ms" if value.abs() >= 1000.0 => format!("{} s", number(value / 1000.0)),
        "" => number(value),
        unit => format!("{} {unit}", number(value)),
    };
    match (count, failed) {
        (1, 0) => shown(figure.median()),
        (count, failed) if failed == count => format!("never in {count}"),
        (count, 0) => {
            let (least, most) = (shown(figure.least()), shown(figure.most()));
            format!("{} ({least} to {most}, {count})", shown(figure.median()))
        }
        (count, failed) => {
            let (least, most) = (shown(figure.least()), shown(figure.most()));
            let median = shown(figure.median());
            format!(
                "{median} ({least} to {most}, {}); never in {failed} of {count}",
                count - failed
            )
        }
    }
}

fn bars(title: &str, end: &str, figures: &Figures) -> Bars {
    let own = figures.all().iter().filter(|figure| figure.name.ends_with(end));
    let own: Vec<&Figure> = own.filter(|figure| figure.median().is_finite()).collect();
    let unit = own.first().map(|figure| figure.unit.clone()).unwrap_or_default();
    let bar = |figure: &&Figure| {
        let section = split(&figure.name).0;
        (format!("{section}: {}", label(&figure.system)), figure.median())
    };
    Bars { title: title.into(), unit, bars: own.iter().map(bar).collect() }
}
