//! The page with the figures of a run, side by side, and its plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use testkit::figures::{Figure, Figures};
use testkit::plot::{number, Bars};
use testkit::{Context, Error, Result};

use crate::about::About;
use crate::compare;
use crate::group::System;

/// What stands above the tables.
const HEAD: &str = "\
# Benchmarks

Written by `make bench`, which measures this plugin and what else Debian's archive has for the same
purpose, one after another on one machine; `benchmarks.json` has every single value. Do not edit
this page. `make bench-quick` measures this plugin and plain Traffic Server in under three minutes,
and `make bench-compare` says what has become worse, beyond noise, since the run before.

A cell is the median. In brackets, for noise: between what the middle half of the measurements lies
(all of them, if they are fewer than eight), and their number. \"never\" means: not within the time
that was waited. A ratio to plain is that of two short slices of measuring, one right after the
other. All servers and all clients are on this one machine, on loopback.

- **stek_share** is this plugin with its defaults, by which a ticket opens only for the site that it was
  made for; **ticket_scope host** is the same without that.
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
| cold start until every ticket resumes everywhere | 3 servers: 10.3 to 10.7 s in 8 of 11 runs, else 0.4 to 0.6 s; 5 servers: 10.4 to 10.7 s in 5 of 8 runs |
| tickets missed in rotations, 3 / 5 servers | 2.8 to 12.2 % / 11.0 to 13.2 % |
| spread of a rotation, 3 / 5 servers | 1.5 to 8.3 s / 7.1 to 9.8 s |
| an interval of 15 s comes out as | 20 s |
| leader killed, at an interval of 20 s: gap between two rotations | 20 to 30 s |
| a server restarted: current key / previous key | after 0.2 to 0.3 s or 10 s / never |
| idle, per server, more than plain, 3 / 5 servers | 1.6 / 2.4 ms of processor a second (5.5 on a leader of 5), 2.7 to 2.9 MB resident, 7 threads, 64 to 68 wake-ups a second |
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

/// The columns of a table, as far as they have figures.
const COLUMNS: [System; 6] = [
    System::StekShare,
    System::HostScope,
    System::SharedIds,
    System::Plain,
    System::SessionReuse,
    System::Caddy,
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
    // Measured by a target of its own, and beside it if it ever was.
    let scale = file.with_file_name("scale.json");
    if scale.exists() {
        fleets(&compare::figures(&compare::value(&scale)?)?, &mut page);
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

/// What stands above the table of fleets.
const FLEETS: &str = "
## Fleets

Written by `make bench-scale`: servers that are the plugin's node alone, without Traffic Server, a
process each with real files, sockets and TLS, all on this one machine. So a time says how long
two cores need for the work of all; on machines of their own the servers work at the same time. What
the work costs is in the processor times. [scale.md](scale.md) explains the curve.

";

/// All fleets in one table, a column for each size.
fn fleets(figures: &Figures, page: &mut String) {
    *page += FLEETS;
    let sizes = sections(figures);
    let heads: String =
        sizes.iter().map(|size| format!(" {} |", size.replace("fleet of ", ""))).collect();
    let _ = writeln!(page, "| servers |{heads}\n|---|{}", "---|".repeat(sizes.len()));
    let mut names: Vec<&str> = Vec::new();
    figures.all().iter().map(|figure| split(&figure.name).1).for_each(|name| {
        if !names.contains(&name) {
            names.push(name);
        }
    });
    for name in names {
        let of = |size: &String| {
            let named = |figure: &&Figure| split(&figure.name) == (size.as_str(), name);
            format!(" {} |", figures.all().iter().find(named).map(cell).unwrap_or_default())
        };
        let _ = writeln!(page, "| {name} |{}", sizes.iter().map(of).collect::<String>());
    }
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
    let systems: Vec<System> = COLUMNS
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
    let (scale, unit) = match figure.unit.as_str() {
        "ms" if figure.median().abs() >= 1000.0 => (1000.0, "s"),
        unit => (1.0, unit),
    };
    let (least, most) = figure.middle();
    let shown = |value: f64| number(value / scale);
    let median = format!("{} {unit}", shown(figure.median()));
    let range = format!("({} to {}, {})", shown(least), shown(most), count - failed);
    match (count, failed) {
        (1, 0) => median.trim_end().to_owned(),
        (count, failed) if failed == count => format!("never in {count}"),
        (_, 0) => format!("{median} {range}"),
        (count, failed) => format!("{median} {range}; never in {failed} of {count}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_tells_the_median_the_noise_and_what_never_came() {
        let figure = |values: &[f64]| Figure {
            system: String::new(),
            name: "cold start of 3: until all serve".into(),
            values: values.to_vec(),
            unit: "ms".into(),
        };
        assert_eq!(cell(&figure(&[1.5])), "1.50 ms");
        assert_eq!(cell(&figure(&[1.0, 3.0, 2.0])), "2 ms (1 to 3, 3)");
        assert_eq!(cell(&figure(&[2000.0, f64::NAN, 4000.0])), "3 s (2 to 4, 2); never in 1 of 3");
        assert_eq!(cell(&figure(&[f64::NAN])), "never in 1");
        let mut figures = Figures::default();
        figures.add_spread("cold start of 3: until all serve", &[1.0, 2.0, 3.0], "ms");
        figures.of("plain").add("cold start of 3: until all serve", 7.0, "ms");
        figures.of("ticket_scope host").add("cold start of 3: until all serve", 5.0, "ms");
        let mut page = String::new();
        table("cold start of 3", &figures, &mut page);
        assert!(page.contains("| what | stek_share | ticket_scope host | plain |"), "{page}");
        assert!(page.contains("| until all serve | 2 ms (1 to 3, 3) | 5 ms | 7 ms |"), "{page}");
    }

    #[test]
    fn fleets_stand_side_by_side() {
        let mut figures = Figures::default();
        figures.add("fleet of 5: idle", 1.5, "ms/s");
        figures.add("fleet of 5: only here", 3.0, "");
        figures.add("fleet of 200: idle", 24.0, "ms/s");
        let mut page = String::new();
        fleets(&figures, &mut page);
        for row in
            ["| servers | 5 | 200 |", "| idle | 1.50 ms/s | 24 ms/s |", "| only here | 3 |  |"]
        {
            assert!(page.contains(row), "{row}: {page}");
        }
    }
}
