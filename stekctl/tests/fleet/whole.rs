//! A fleet from health to its end: what status, doctor, rotate, revoke and metrics say on the way.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::Value;
use stek_share::metrics::METRICS;
use testkit::ats::Ats;
use testkit::fleet::Fleet;
use testkit::host::{self, host};
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::{ports, wait, Error, Result};

use crate::stage::{
    addresses, machine, on, plan, rewrite, stekctl, stekctl_with, text, turn, wait_code,
    wait_healthy, PATIENCE,
};

#[test]
fn a_fleet_from_health_to_its_end() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-whole")?;
    let mut fleet = plan(3)?.prepare(dir.path())?;
    let stats = host()?.plugin("stats_over_http.so");
    rewrite(&fleet.servers[0].etc().join("plugin.config"), |old| {
        format!("{old}{}\n", stats.display())
    })?;
    let plain = ports::take()?;
    let ports = format!(
        "proxy.config.http.server_ports STRING {plain}:ip-in=127.0.0.1 {}:ssl:ip-in=127.0.0.1",
        fleet.https()[0].port()
    );
    host::set_record(&fleet.servers[0].etc(), &ports)?;
    fleet.start()?;
    wait_healthy(&fleet.servers[0])?;
    status_of_a_healthy_fleet(&fleet)?;
    doctor_says_nothing(&fleet, &dir)?;
    metrics_come_from_the_running_server(plain)?;
    orders_move_the_generation(&fleet)?;
    watching_repeats(&fleet.servers[1])?;
    nobody_counted_the_tool(&fleet)?;
    one_dead_then_two(&mut fleet)?;
    dir.done()
}

fn json(ats: &Ats) -> Result<(i32, Value)> {
    let said = on(ats, &["status", "--json"])?;
    let parsed = serde_json::from_str(&said.out);
    Ok((said.code, parsed.map_err(|error| Error::new(format!("{error}: {said:#?}")))?))
}

fn generations(ats: &Ats) -> Result<BTreeSet<u64>> {
    let (_, all) = json(ats)?;
    let servers = all["servers"].as_array().cloned().unwrap_or_default();
    Ok(servers.iter().filter_map(|s| s["current"]["generation"].as_u64()).collect())
}

fn status_of_a_healthy_fleet(fleet: &Fleet) -> Result<()> {
    let said = on(&fleet.servers[1], &["status", "--wide"])?;
    said.ended(0, "healthy: 3 of 3 servers answer, generation ")?;
    let head = said.line(&["ID", "ADDRESS", "ROLE", "GEN", "KEYS", "NEXT", "LIST", "RTT"])?;
    assert!(!head.contains('\u{1b}'), "no colour where nobody looks: {head:?}");
    for (id, port) in (1..).zip(&fleet.raft_ports) {
        let row = said.line(&[&format!("127.0.0.1:{port}"), env!("CARGO_PKG_VERSION"), " ms"])?;
        let mark = if id == 2 { "*" } else { "" };
        assert!(row.starts_with(&format!("{mark}{id}  ")), "{row}");
    }
    let said = on(&fleet.servers[1], &["status"])?;
    said.ended(0, ", next key in ")?;
    let table = said.lines().into_iter().filter(|line| line.contains("  "));
    let widest = table.map(|line| line.chars().count()).max();
    assert!(widest.is_some_and(|widest| widest <= 80), "{said:#?}");
    said.line(&["*2 ", "follower"]).or_else(|_| said.line(&["*2 ", "leader"]))?;
    said.line(&["leader"])?;
    let coloured = stekctl_with(
        &["-c", text(&fleet.servers[0].etc().join("server_conf.yaml")), "status"],
        |command| {
            command.env("CLICOLOR_FORCE", "1");
        },
    )?;
    coloured.ended(0, "\u{1b}[32mhealthy\u{1b}[0m")?;
    let (code, all) = json(&fleet.servers[2])?;
    assert_eq!(
        (code, &all["outcome"], &all["reasons"]),
        (0, &"healthy".into(), &Value::Array(vec![]))
    );
    let servers = all["servers"].as_array().cloned().unwrap_or_default();
    assert_eq!((servers.len(), &all["schema"]), (3, &1.into()));
    let page = include_str!("../../../docs/health.md");
    let mut names = BTreeSet::new();
    gather_names(&all, &mut names);
    assert!(names.contains("tickets_opened"), "counts of clients' handshakes: {all:#}");
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "docs/health.md does not say what {name} is");
    }
    let of = |field: &str| servers.iter().map(|s| s[field].to_string()).collect::<BTreeSet<_>>();
    for same in ["current", "list_digest", "cluster_id", "version", "leader", "options"] {
        assert_eq!(of(same).len(), 1, "{same}: {all:#}");
    }
    assert_eq!(of("id").len(), 3);
    assert!(of("role").contains("\"leader\"") && of("round_trip_ms").iter().all(|ms| ms != "null"));
    Ok(())
}

/// The names of all fields, but where they are data: options by their names, counts by their causes.
fn gather_names(value: &Value, names: &mut BTreeSet<String>) {
    const DATA: [&str; 3] = ["options", "refused_keys", "refused_peers"];
    match value {
        Value::Object(fields) => {
            names.extend(fields.keys().cloned());
            let fields = fields.iter().filter(|(name, _)| !DATA.contains(&name.as_str()));
            fields.for_each(|(_, value)| gather_names(value, names));
        }
        Value::Array(values) => values.iter().for_each(|value| gather_names(value, names)),
        _ => {}
    }
}

fn doctor_says_nothing(fleet: &Fleet, dir: &RunDir) -> Result<()> {
    let servers: Vec<&Ats> = fleet.servers.iter().collect();
    let proc = machine(dir.path(), &servers)?;
    let addresses = addresses(fleet);
    let mut words = vec!["doctor", "--proc", text(&proc), "--sni", "localhost", "--tls"];
    words.extend(addresses.iter().map(String::as_str));
    for ats in &fleet.servers {
        let said = on(ats, &words)?;
        assert!(said.lines().is_empty() && said.err.is_empty(), "{said:#?}");
        assert!(said.code == 0 || said.out.contains("LimitMEMLOCK"), "{said:#?}");
    }
    words.push("--matrix");
    let said = on(&fleet.servers[0], &words)?;
    assert_eq!(said.out.matches("resumed").count(), 2 * 9, "{said:#?}");
    Ok(())
}

fn metrics_come_from_the_running_server(port: u16) -> Result<()> {
    let plain = format!("127.0.0.1:{port}");
    let url = format!("http://{plain}/_stats");
    let look = || {
        let said = stekctl(&["metrics", &url])?;
        // They are made when the plugin starts and set once it runs.
        let ready = said.out.contains("\nstek_share_members 3\n");
        Ok(ready.then_some(said))
    };
    let said = wait::until(PATIENCE, "metrics", look)?;
    said.ended(0, "stek_share_server_id 1\n")?;
    for metric in METRICS {
        let name = metric.prometheus_name();
        let lines = [
            format!("# HELP {name} {}", metric.meaning),
            format!("# TYPE {name} {}", metric.kind.word()),
        ];
        assert!(lines.iter().all(|line| said.out.contains(line.as_str())), "{name}: {said:#?}");
        let value = said.out.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        assert!(value.is_some_and(|v| v.parse::<u32>().is_ok()), "{name}: {value:?}");
    }
    let info = format!(
        "stek_share_info{{stekctl=\"{}\",traffic_server=\"{}\"",
        env!("CARGO_PKG_VERSION"),
        host()?.version()
    );
    assert!(said.out.contains(&info), "{said:#?}");
    for file in ["prometheus-alerts.yaml", "grafana-dashboard.json"] {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
        let shipped = std::fs::read_to_string(format!("{shipped}/{file}"))?;
        let words = shipped.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
        let names: BTreeSet<&str> = words.filter(|word| word.starts_with("stek_share_")).collect();
        assert!(names.len() > 15, "{file}: {names:?}");
        for name in names {
            assert!(said.out.contains(&format!("\n{name} ")), "{file} uses {name}: {said:#?}");
        }
    }
    stekctl(&["metrics", &format!("http://{plain}/elsewhere")])?.ended(3, "answers \"HTTP/1.")
}

fn orders_move_the_generation(fleet: &Fleet) -> Result<()> {
    let ats = &fleet.servers[1];
    let before = generations(ats)?;
    let one = |generations: &BTreeSet<u64>| match generations.iter().collect::<Vec<_>>()[..] {
        [one] => Ok(*one),
        _ => Err(Error::new(format!("not one generation: {generations:?}"))),
    };
    let first = one(&before)?;
    for ats in &fleet.servers {
        let next = one(&generations(ats)?)? + 1;
        on(ats, &["rotate"])?.ended(0, &format!("done: generation {next} is in use\n"))?;
        wait_healthy(ats)?;
        assert_eq!(one(&generations(ats)?)?, next);
    }
    on(ats, &["revoke"])?.ended(3, "give --yes")?;
    let said = at_a_terminal(ats, "revoke", "y\n")?;
    assert!(said.contains("every client has one full handshake"), "it says what it does: {said}");
    assert!(said.contains("nothing was done"), "only 'yes' is a yes: {said}");
    assert_eq!(one(&generations(ats)?)?, first + 3);
    on(ats, &["revoke", "--yes"])?
        .ended(0, &format!("generation {} is in use; every", first + 4))?;
    let said = at_a_terminal(ats, "revoke", "yes\n")?;
    assert!(said.contains(&format!("generation {} is in use; every", first + 5)), "{said}");
    wait_healthy(ats)?;
    let (_, all) = json(ats)?;
    let servers = all["servers"].as_array().cloned().unwrap_or_default();
    assert!(servers.iter().all(|s| s["previous"] == Value::Array(vec![])), "{all:#}");
    Ok(())
}

/// Runs a command at a terminal at which somebody types; script (of Debian's bsdutils, which every
/// Debian has) makes the terminal. Returns what the terminal shows.
fn at_a_terminal(ats: &Ats, word: &str, typed: &str) -> Result<String> {
    let conf = ats.etc().join("server_conf.yaml");
    let command = format!("{} -c {} {word}", env!("CARGO_BIN_EXE_stekctl"), text(&conf));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = script.stdin.take() {
        stdin.write_all(typed.as_bytes())?;
    }
    Ok(String::from_utf8_lossy(&script.wait_with_output()?.stdout).into_owned())
}

fn watching_repeats(ats: &Ats) -> Result<()> {
    let conf = ats.etc().join("server_conf.yaml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_stekctl"));
    command.args(["-c", text(&conf), "status", "--json", "--watch=0.1"]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let lines = child.stdout.take().map(|out| BufReader::new(out).lines().take(3));
    let lines: Vec<String> = lines.into_iter().flatten().collect::<std::result::Result<_, _>>()?;
    child.kill()?;
    child.wait()?;
    for line in &lines {
        let parsed: Value = serde_json::from_str(line).map_err(|e| Error::new(e.to_string()))?;
        assert_eq!(parsed["servers"].as_array().map(Vec::len), Some(3), "{line}");
    }
    assert_eq!(lines.len(), 3);
    Ok(())
}

/// Who asked so often was neither a second server nor a member.
fn nobody_counted_the_tool(fleet: &Fleet) -> Result<()> {
    for ats in &fleet.servers {
        let diags = ats.diags();
        let loud = |line: &&str| {
            (line.contains("WARNING: [stek_share]") || line.contains("ERROR: [stek_share]"))
                && !line.contains("LimitMEMLOCK")
        };
        let loud: Vec<&str> = diags.lines().filter(loud).collect();
        assert!(loud.is_empty(), "{loud:?}");
        assert!(!diags.contains("server list version 2"), "{diags}");
    }
    let (_, all) = json(&fleet.servers[0])?;
    let servers = all["servers"].as_array().cloned().unwrap_or_default();
    for server in &servers {
        assert_eq!(server["list_version"], servers[0]["list_version"], "{all:#}");
        assert_eq!(server["refused_peers"], serde_json::json!({}), "{all:#}");
        assert_eq!(server["members"], 3, "{all:#}");
    }
    Ok(())
}

fn one_dead_then_two(fleet: &mut Fleet) -> Result<()> {
    fleet.servers[2].stop(Signal::Interrupt)?;
    let ats = &fleet.servers[0];
    // A leader that went may leave the others without one for a moment.
    let said = wait_code(1, || on(ats, &["status"]))?;
    said.ended(1, "degraded: 2 of 3 servers answer")?;
    said.line(&["degraded: server 3 is unreachable: ", "onnection refused"])?;
    said.line(&["3   127.0.0.1:", "no answer"])?;
    let (_, all) = json(ats)?;
    assert_eq!(all["servers"][2]["answers"], false);
    assert!(all["servers"][2]["error"].as_str().is_some_and(|e| e.contains("refused")), "{all:#}");
    let said = on(ats, &["doctor", "--proc", "/nowhere"])?;
    said.ended(1, "warning: fleet: server 3 is unreachable: ")?;
    assert!(on(ats, &["rotate"])?.code == 0, "two of three are a majority");
    // Who may not have heard of a revocation is named, since older tickets may be worth something there.
    let said = on(ats, &["revoke", "--yes"])?;
    said.ended(1, "is in use; every older key is dropped\n")?;
    said.line(&["warning: server 3: no answer; whoever still runs there opens older tickets"])?;

    fleet.servers[1].stop(Signal::Interrupt)?;
    let ats = &fleet.servers[0];
    let said = wait_code(2, || on(ats, &["status"]))?;
    said.line(&["broken: no server belongs to a majority: 1 of 3 answer"])?;
    on(ats, &["rotate"])?.ended(3, "nothing was done")?;
    on(ats, &["doctor", "--proc", "/nowhere"])?.ended(2, "error: fleet: no server belongs")
}
