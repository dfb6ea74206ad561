//! What the pages tell to write into files and to type does what they say. The blocks of
//! docs/operations.md are run by tools/first-fleet.sh, the rules for nftables by tests/examples/firewall.sh.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use testkit::run_dir::RunDir;
use testkit::{Context, Error, Result};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn page(name: &str) -> Result<String> {
    fs::read_to_string(Path::new(ROOT).join(name)).context(name)
}

/// The indented block of a page that begins with this, without its indent.
fn block(page: &str, begin: &str) -> Result<String> {
    let mut lines = page.lines().skip_while(|line| {
        line.len() - line.trim_start().len() < 4 || !line.trim_start().starts_with(begin)
    });
    let first = lines.next().ok_or_else(|| Error::new(format!("no block begins with {begin}")))?;
    let indent = first.len() - first.trim_start().len();
    let rest = lines.take_while(|line| line.starts_with(&" ".repeat(indent)));
    let lines = std::iter::once(first).chain(rest);
    Ok(lines.map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect())
}

/// Runs a command of a page in a directory.
fn typed(command: &str, dir: &Path) -> Result<String> {
    let output = Command::new("sh").args(["-ec", command]).current_dir(dir).output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(Error::new(format!("{command}: {}: {said}", output.status)))
    }
}

fn stekctl(words: &str, dir: &Path) -> Result<String> {
    typed(&format!("{} {words}", env!("CARGO_BIN_EXE_stekctl")), dir)
}

#[test]
fn the_files_by_hand_are_a_configuration() -> Result<()> {
    let dir = RunDir::new("ctl-by-hand")?;
    let home = dir.join("stek_share");
    fs::create_dir(&home)?;
    let options = page("docs/options.md")?;
    let line = block(&options, "stek_share.so ")?;
    let here = line.replace("/etc/trafficserver", &dir.path().display().to_string());
    assert_ne!(here, line);
    fs::write(dir.join("plugin.config"), here)?;
    let own = block(&options, "server_id: 1")?;
    fs::write(home.join("server_conf.yaml"), own.replace("ca.crt", "server.crt"))?;
    let list = block(&options, "- server_id: 1")?;
    assert_eq!(list.matches("address: ").count(), 3, "{list}");
    fs::write(home.join("server_list.yaml"), &list)?;
    let openssl = block(&options, "openssl req ")?;
    typed(&openssl, &home)?;
    let said = stekctl("--ats-config . check stek_share/server_conf.yaml", dir.path())?;
    assert!(
        said.contains("usable: server 1, in a list of 3") && !said.contains("warning: "),
        "{said}"
    );

    // A subject for server 1 alone; the last block of a list on that page is its entry.
    let alone = options.split("\n## A certificate for each server id\n").nth(1).unwrap_or_default();
    let entry = block(alone, "- server_id: 1")?;
    let rest = list.split("- server_id: 2").nth(1).unwrap_or_default();
    fs::write(home.join("server_list.yaml"), format!("{entry}- server_id: 2{rest}"))?;
    fs::remove_file(home.join("server.key"))?;
    typed(&openssl.replace("CN=stek-share", "CN=server1"), &home)?;
    let check = "--ats-config . check stek_share/server_conf.yaml || [ $? = 1 ]";
    let said = stekctl(check, dir.path())?;
    // That the other two still share one is what it says.
    assert!(
        said.contains(
            "usable: server 1, in a list of 3; certificate /C=US/O=Example/OU=Edge/CN=server1"
        ),
        "{said}"
    );
    assert!(
        said.contains("warning: ") && said.contains("servers 2, 3 have the certificate"),
        "{said}"
    );
    dir.done()
}

#[test]
fn the_timers_options_are_words_of_the_command() -> Result<()> {
    let dir = RunDir::new("ctl-timer")?;
    let handbook = page("docs/handbook.md")?;
    let unit = page("packaging/systemd/stek_share-metrics.service")?;
    let options = block(&handbook, "OPTIONS=")?;
    let options = options.trim().strip_prefix("OPTIONS=").unwrap_or_default();
    let started = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/stekctl "));
    let started = started.ok_or_else(|| Error::new(unit.clone()))?;
    let by_hand = block(&handbook, "stekctl metrics --textfile")?;
    let by_hand = by_hand.trim().strip_prefix("stekctl ").unwrap_or_default();
    // Nobody listens there any more, and the file says so.
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let options = options.replace("127.0.0.1:8081", &nobody);
    let by_hand = format!("{by_hand} http://{nobody}/_stats");
    for words in [started.replace("$OPTIONS", &options), by_hand] {
        let here = words.replace("/var/lib/prometheus/node-exporter", ".");
        assert_ne!(here, words);
        let said = stekctl(&format!("{here} || [ $? = 2 ]"), dir.path())?;
        let text = fs::read_to_string(dir.join("stek_share.prom"))?;
        assert!(text.ends_with("stek_share_up{fleet=\"edge\"} 0\n"), "{text}{said}");
        fs::remove_file(dir.join("stek_share.prom"))?;
    }
    dir.done()
}

/// The short way to a fleet is that of docs/operations.md, which is run.
#[test]
fn the_readme_says_nothing_that_operations_do_not_say() -> Result<()> {
    let (readme, operations) = (page("README.md")?, page("docs/operations.md")?);
    let begin = readme.find("## Five minutes").unwrap_or(0);
    let part = readme.get(begin..).unwrap_or_default();
    let part = part.split("\n## ").next().unwrap_or_default();
    let commands: Vec<&str> = part.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert!(commands.len() >= 9, "{commands:?}");
    let known: Vec<&str> = operations.lines().map(str::trim).collect();
    // What the machines of that test have already.
    let before = ["make package", "apt-get install"];
    for command in commands.iter().filter(|c| !before.iter().any(|word| c.starts_with(word))) {
        for part in command.split(" && ") {
            assert!(known.contains(&part) || known.contains(command), "{command}");
        }
    }
    Ok(())
}
