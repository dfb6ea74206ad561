//! What the documentation and the examples say is what the code has: links lead somewhere, options
//! and metrics exist, none is missing where all are promised, and the Kubernetes example makes a
//! configuration that the plugin takes without a warning.
//!
//! Whether each file is well-formed is for its own program to say: `make check-examples`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_yaml::Value;
use stek_share::core::config::{Absent, Change, ConfigOption, Servers, OPTIONS};
use stek_share::core::findings::{Finding, FindingKind, Source};
use stek_share::core::health::Code;
use stek_share::load::{load, Dirs};
use stek_share::metrics::METRICS;
use testkit::pages::is_in_troubleshooting;
use testkit::pki::{Authority, Request};
use testkit::run_dir::RunDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const MANUAL: &str = "docs/admin-guide/plugins/stek_share.en.rst";
/// Each table of the documents has one place.
const OPTIONS_PAGE: &str = "docs/options.md";
const OPERATIONS: &str = "docs/operations.md";
const ALERTS: &str = "examples/prometheus-alerts.yaml";
const DASHBOARD: &str = "examples/grafana-dashboard.json";

fn read(name: &str) -> String {
    let path = Path::new(ROOT).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Markdown file of the repository, by its path from the root.
fn pages() -> Vec<String> {
    let top = ["README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "RELEASING.md"];
    let mut found: Vec<String> = top.map(str::to_owned).into();
    found.push("tests/simulation/README.md".to_owned());
    let mut todo = vec![PathBuf::from("docs"), PathBuf::from("packaging")];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(Path::new(ROOT).join(&dir)).unwrap().flatten() {
            let path = dir.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// The anchors of a page's headings, as forges make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            count += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let dir = Path::new(&page).parent().unwrap();
            let file = if file.is_empty() { PathBuf::from(&page) } else { dir.join(file) };
            let full = Path::new(ROOT).join(&file);
            assert!(full.exists(), "{page} links to {target}, which is not there");
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&full).unwrap());
                assert!(there.contains(anchor), "{page} links to {target}; there is {there:?}");
            }
        }
    }
    assert!(count > 20, "only {count} links were found");
}

#[test]
fn each_option_is_in_each_place_that_promises_all() {
    let manual = read(MANUAL);
    // The first word of a line above an indented one: reStructuredText's definition list.
    let lines: Vec<&str> = manual.lines().collect();
    let defined = lines.windows(2).filter(|pair| {
        let [term, text] = pair else { return false };
        !term.is_empty()
            && term.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            && text.starts_with("    ")
    });
    let defined: BTreeSet<&str> = defined.map(|pair| pair[0]).collect();
    let verbs = ["reload", "rotate", "revoke", "status"];
    let wanted: BTreeSet<&str> = OPTIONS.iter().map(|o| o.name).chain(verbs).collect();
    assert_eq!(defined, wanted, "{MANUAL}");

    let options = read(OPTIONS_PAGE);
    let example = read("example_server_conf.yaml");
    for option in OPTIONS {
        let name = option.name;
        let row = options.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{OPTIONS_PAGE} has no row for {name}"));
        let cells: Vec<&str> = row.split(" | ").map(|cell| cell.trim_matches([' ', '|'])).collect();
        let (range, default) = (cells[cells.len() - 2], cells[cells.len() - 1]);
        assert_eq!(default, in_documents(option), "{OPTIONS_PAGE}, default of {name}");
        let takes = option.range().unwrap_or_else(|| range.to_owned());
        assert_eq!(range, takes, "{OPTIONS_PAGE}, unit of {name}");

        let uncommented = example.lines().map(|line| line.trim_start_matches('#'));
        let said = uncommented.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let said: Vec<&str> = said.collect();
        assert_eq!(said.len(), 1, "example_server_conf.yaml and {name}");
        if let Absent::Number(_) = option.absent {
            assert_eq!(said[0], in_documents(option), "example_server_conf.yaml, {name}");
        }
    }
}

#[test]
fn each_health_code_has_its_remedy() {
    let page = read("docs/health.md");
    let rows =
        page.split("\n## ").nth(1).unwrap().lines().filter_map(|row| row.strip_prefix("| `"));
    let cells = |row: &str| row.split(" | ").map(str::to_owned).collect::<Vec<_>>();
    let found: Vec<&str> = rows
        .map(|row| {
            assert_eq!(cells(row).len(), 4, "{row}");
            row.split('`').next().unwrap()
        })
        .collect();
    let wanted: Vec<&str> = Code::ALL.iter().map(|code| code.word()).collect();
    assert_eq!(found, wanted, "docs/health.md");
    let distinct: BTreeSet<&str> = wanted.iter().copied().collect();
    assert_eq!(distinct.len(), wanted.len());
}

#[test]
fn each_finding_about_the_host_has_its_row() {
    for kind in FindingKind::ALL {
        let line = Finding::new(kind, Source::Running, "field", "value").to_string();
        assert!(is_in_troubleshooting(&line), "docs/troubleshooting.md has no row for: {line}");
    }
}

/// An option's default as the documents have it.
fn in_documents(option: &ConfigOption) -> String {
    match option.absent {
        Absent::Required(_) => "required".to_owned(),
        Absent::Number(number) => number.to_string(),
        Absent::Words(words) => words.to_owned(),
    }
}

/// Which options wait for a restart, and which may differ from server to server, is said in full.
#[test]
fn what_waits_for_a_restart_and_what_may_differ_is_named() {
    let (options, manual) = (read(OPTIONS_PAGE), read(MANUAL));
    let messages = read(OPERATIONS);
    let row = messages.lines().find(|line| line.starts_with("| `reload` |")).unwrap();
    let manual = manual.split("\nreload\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let own = options.split("values for everything but ").nth(1).unwrap();
    let own = own.split(". ").next().unwrap();
    for option in OPTIONS {
        let named = |text: &str| text.contains(&format!("`{}`", option.name));
        let (at_restart, is_own) =
            (option.change == Change::AtRestart, option.servers == Servers::Own);
        assert_eq!(
            named(row),
            option.change != Change::AtReload,
            "{OPERATIONS}, reload: {}",
            option.name
        );
        assert_eq!(named(manual), option.change != Change::AtReload, "{MANUAL}: {}", option.name);
        assert!(!at_restart || row.find("at the next start") > row.find(option.name));
        assert_eq!(named(own), is_own, "{OPTIONS_PAGE}, what may differ: {}", option.name);
    }
}

/// Words of `text` that begin with `prefix`, as far as letters and underscores go.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    text.split(|c| !inside(c)).filter(|word| word.starts_with(prefix)).collect()
}

#[test]
fn metrics_in_examples_and_manual_exist() {
    let exported: BTreeSet<String> =
        METRICS.iter().map(|metric| metric.prometheus_name()).collect();
    for (file, least) in [(ALERTS, 18), (DASHBOARD, 25), ("tests/examples/alerts.test.yaml", 18)] {
        let text = read(file);
        let used = words(&text, "stek_share_");
        assert!(used.len() >= least, "{file} uses {used:?}");
        for name in used {
            assert!(exported.contains(name), "{file} uses {name}, which no server has");
        }
    }
    let in_server: BTreeSet<String> = METRICS.iter().map(|metric| metric.host_name()).collect();
    let manual = read(MANUAL);
    let used = words(&manual, "plugin.stek_share.");
    let used: Vec<&str> = used.into_iter().map(|word| word.trim_end_matches('.')).collect();
    assert!(used.len() > 5, "{used:?}");
    for name in used.into_iter().filter(|name| *name != "plugin.stek_share") {
        assert!(in_server.contains(name), "{MANUAL} names {name}, which no server has");
    }
}

/// A file that is made of another one, or of the code, and has to be as `wanted`; otherwise what it should be
/// is left beside the build, to be looked at and copied.
fn is_made(file: &str, wanted: &str) {
    let found = fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_default();
    if found != wanted {
        let left =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(Path::new(file).file_name().unwrap());
        fs::write(&left, wanted).unwrap();
        panic!("{file} is not as it is made: cp {} {file}", left.display());
    }
}

/// From 10.1 on Traffic Server's own plugin prints Prometheus's format, with its names for things.
#[test]
fn alarms_and_dashboard_come_in_both_spellings() {
    let respelled = |text: &str| {
        let mut out = text.to_owned();
        // The longest first: no name is a part of a longer one that was not respelled.
        let mut metrics: Vec<_> = METRICS.iter().collect();
        metrics.sort_by_key(|metric| std::cmp::Reverse(metric.prometheus_name().len()));
        for metric in metrics {
            let name = metric.host_name().replace('.', "\u{1}");
            let word = metric.prometheus_name();
            out = out.split(&word).collect::<Vec<_>>().join(&name);
        }
        out.replace('\u{1}', "_")
    };
    let note = "# The same for stats_over_http of Traffic Server 10.1 and later, which prints Prometheus's format\n\
                # by itself. Made of prometheus-alerts.yaml; a test holds it to that.\n";
    is_made(
        "examples/prometheus-alerts-ats10.yaml",
        &(note.to_owned() + &respelled(&read(ALERTS))),
    );
    is_made("examples/grafana-dashboard-ats10.json", &respelled(&read(DASHBOARD)));
    let alarms = read("examples/prometheus-alerts-ats10.yaml");
    assert!(alarms.contains("expr: increase(plugin_stek_share_install_failures[10m]) > 0"));
    assert!(alarms.contains("expr: plugin_stek_share_up == 0\n"));
    let left = words(&alarms, "stek_share_");
    assert!(left.iter().all(|word| *word == "stek_share_info"), "{left:?}");
}

/// For Debian's prometheus-trafficserver-exporter, which prints what its mapping names.
#[test]
fn the_mapping_for_the_exporter_has_each_metric() {
    let mut wanted = String::from(
        "# Appended to the metrics.yaml of prometheus-trafficserver-exporter it shows the metrics of\n\
         # stek_share under the names of prometheus-alerts.yaml. Made of the table in docs/metrics.md; a\n\
         # test holds it to that.\n",
    );
    for metric in METRICS {
        let (name, kind) = (metric.prometheus_name(), metric.kind.word());
        let text = metric.meaning.replace('\'', "''");
        wanted += &format!(
            "{name}:\n  documentation: '{text}'\n  type: {kind}\n  values:\n  - labels: {{}}\n    value: {}\n",
            metric.host_name()
        );
    }
    is_made("examples/trafficserver-exporter.yaml", &wanted);
    let read: Value = serde_yaml::from_str(&wanted).unwrap();
    assert_eq!(read.as_mapping().unwrap().len(), METRICS.len());
}

/// What a manifest of Kubernetes says.
fn manifest(name: &str) -> Value {
    serde_yaml::from_str(&read(&format!("packaging/kubernetes/{name}"))).unwrap()
}

#[test]
fn the_pods_of_the_kubernetes_example_have_configurations_without_fault() {
    let config = manifest("configmap.yaml");
    let set = manifest("statefulset.yaml");
    let replicas = set["spec"]["replicas"].as_u64().unwrap();
    let name = set["metadata"]["name"].as_str().unwrap();
    let service = set["spec"]["serviceName"].as_str().unwrap();
    let list: Value =
        config["data"]["server_list.yaml"].as_str().map(serde_yaml::from_str).unwrap().unwrap();
    assert_eq!(list.as_sequence().unwrap().len() as u64, replicas, "an entry for each pod");
    for number in 0..replicas {
        let dir = RunDir::new("kubernetes").unwrap();
        let here = dir.path().display().to_string();
        for (file, text) in config["data"].as_mapping().unwrap() {
            let text = text.as_str().unwrap().replace(" /certificates/", &format!(" {here}/"));
            fs::write(dir.join(file.as_str().unwrap()), text).unwrap();
        }
        // As operators/cert-manager.yaml asks for it.
        let pod = format!("{name}-{number}.{service}");
        let authority = Authority::new("/CN=stek-share root").unwrap();
        let identity = authority.issue(&Request::new("/CN=stek-share").names(&[&pod])).unwrap();
        let files = identity.write(dir.path(), "tls").unwrap();
        fs::rename(&files.certificate, dir.join("tls.crt")).unwrap();
        fs::write(dir.join("ca.crt"), authority.identity.certificate.to_pem().unwrap()).unwrap();

        let dirs = Dirs { working: "/".into(), install: "/".into(), config: "/".into() };
        let conf = dir.join("server_conf.yaml");
        let loaded =
            load(conf.to_str().unwrap(), &dirs).unwrap_or_else(|refused| panic!("{refused:?}"));
        assert_eq!(u64::from(loaded.settings.server_id.0), number);
        let own = &loaded.settings.members[usize::try_from(number).unwrap()];
        assert_eq!(own.address, pod, "the name that the service gives it");
        assert!(loaded.settings.state_dir.is_some());
        let told: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        assert!(told.is_empty(), "{told:?}");
        dir.done().unwrap();
    }
}

/// What a script of a package says while plugin.config names the plugin: its words, and those of its error
/// stream when it is run on this file.
fn removal(script: &str, argument: &str, config: &Path) -> String {
    const CONFIG: &str = "/etc/trafficserver/plugin.config";
    let here = script.replace(CONFIG, &config.display().to_string());
    let run = Command::new("sh").args(["-c", &here, "sh", argument]).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    String::from_utf8_lossy(&run.stderr).replace(&config.display().to_string(), CONFIG)
}

/// A package that goes while the line is in plugin.config leaves a Traffic Server that does not start again. Both
/// packages say so before, with the commands of the page, in its order.
#[test]
fn packages_and_page_say_the_same_of_uninstalling() {
    let page = read("docs/operations.md");
    let page = page.split("\n## Uninstall\n").nth(1).and_then(|p| p.split("\n## ").next()).unwrap();
    let commands = page.lines().map(str::trim).filter(|line| {
        ["sed -i", "systemctl restart", "rm -r"].iter().any(|word| line.starts_with(word))
    });
    let commands: Vec<&str> = commands.collect();
    let [sed, restart, _] = commands[..] else { panic!("{commands:?}") };
    let position = |word: &str| page.find(word).unwrap_or_else(|| panic!("no {word}: {page}"));
    assert!(position(restart) < position("rm -r /etc/trafficserver/stek_share"));
    assert!(position("rm -r") < position("apt-get purge") && page.contains("dnf remove"), "{page}");

    let prerm = read("packaging/debian/prerm");
    let spec = read("packaging/rpm/trafficserver-stek-share.spec.in");
    let preun = spec.split("\n%preun\n").nth(1).and_then(|s| s.split("\n%").next()).unwrap();
    let dir = RunDir::new("uninstall").unwrap();
    let config = dir.join("plugin.config");
    // One with a path in front, and one that is none.
    let kept = "# stek_share.so x\nxdebug.so\n";
    for line in ["stek_share.so a/b.yaml\n", " /opt/x/stek_share.so a/b.yaml\n"] {
        fs::write(&config, format!("{kept}{line}")).unwrap();
        let said = removal(&prerm, "remove", &config);
        assert_eq!(said, removal(preun, "0", &config), "Debian's and the other one's");
        assert!(said.contains(&format!("({sed})")), "{said}, and the page has {sed}");
        assert!(said.contains(&format!("then: {restart}")), "{said}, and the page has {restart}");
        assert!(said.contains("does not start again"), "{said}");
        // An upgrade says nothing.
        assert_eq!(removal(&prerm, "upgrade", &config) + &removal(preun, "1", &config), "");
        let here = sed.replace("/etc/trafficserver/plugin.config", &config.display().to_string());
        let run = Command::new("sh").args(["-c", &here]).status().unwrap();
        assert!(run.success() && fs::read_to_string(&config).unwrap() == kept);
        assert_eq!(removal(&prerm, "remove", &config) + &removal(preun, "0", &config), "");
    }
    dir.done().unwrap();
}
