//! Man pages and shell completion, made from the command line's own description; and the pages of the
//! plugin and its files, made from the tables of the documents, so that each table has one place.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::exit_code::{Ended, Failure, Outcome};
use crate::output::print;

/// Prints the script for a shell.
pub fn completions(shell: Shell) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "stekctl", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Healthy)
}

/// Prints the page of the whole, or writes one page for each command into `dir`.
pub fn man(dir: Option<&Path>) -> Ended {
    let mut whole = Cli::command();
    whole.build();
    let Some(dir) = dir else {
        print(&page(&whole, "stekctl")?)?;
        return Ok(Outcome::Healthy);
    };
    write(dir, "stekctl", &whole)?;
    for command in whole.get_subcommands() {
        write(dir, &format!("stekctl-{}", command.get_name()), command)?;
    }
    write_page(dir, "server_conf.yaml.5", &file_page())?;
    write_page(dir, "stek_share.8", &plugin_page())?;
    Ok(Outcome::Healthy)
}

/// Where the tables are.
const OPTIONS: &str = include_str!("../../docs/options.md");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// What stands behind the options in each page of stekctl's.
const TAIL: &str = ".SH FILES\n\
.TP\n/etc/trafficserver/plugin.config\nnames server_conf.yaml, in the line of stek_share.so\n\
.TP\n/etc/trafficserver/stek_share/\nserver_conf.yaml, server_list.yaml and certificates, as \
\\fBstekctl init\\fR writes them\n\
.SH SEE ALSO\n";

/// What is typed, by command.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("stekctl", &["stekctl status", "stekctl doctor --tls 10.0.0.1:443 10.0.0.2:443"]),
    ("stekctl-status", &["stekctl status", "stekctl status --watch=5", "stekctl status --json"]),
    ("stekctl-wait", &["systemctl restart trafficserver && stekctl wait"]),
    ("stekctl-check", &["stekctl check /etc/trafficserver/stek_share/server_conf.yaml"]),
    ("stekctl-doctor", &["stekctl doctor", "stekctl doctor --tls 10.0.0.1:443 10.0.0.2:443"]),
    ("stekctl-init", &["stekctl init fleet 10.0.0.1 10.0.0.2 10.0.0.3"]),
    ("stekctl-add", &["stekctl add fleet 10.0.0.4"]),
    ("stekctl-remove", &["stekctl remove fleet 4"]),
    ("stekctl-replace", &["stekctl replace fleet 2 10.0.0.9", "stekctl replace fleet 2"]),
    ("stekctl-rotate", &["stekctl rotate"]),
    ("stekctl-revoke", &["stekctl revoke", "stekctl revoke --yes"]),
    ("stekctl-metrics", &["stekctl metrics", "stekctl metrics http://127.0.0.1:8081/_stats"]),
    (
        "stekctl-completions",
        &["stekctl completions bash > /usr/share/bash-completion/completions/stekctl"],
    ),
    ("stekctl-man", &["stekctl man /usr/local/share/man/man1"]),
    ("stekctl-renew", &["stekctl renew fleet", "stekctl renew fleet --authority"]),
];

/// The other pages.
const PAGES: &str = "stek_share(8), server_conf.yaml(5), stekctl(1)";

fn tail(name: &str) -> String {
    let typed = EXAMPLES.iter().find(|(command, _)| *command == name);
    let lines = typed.iter().flat_map(|(_, lines)| lines.iter());
    let examples: String = lines.map(|line| format!(".PP\n.RS\n{}\n.RE\n", roff(line))).collect();
    let examples = if examples.is_empty() { examples } else { format!(".SH EXAMPLES\n{examples}") };
    format!("{examples}{TAIL}{PAGES}\n")
}

/// The rows of the table of a page whose first cell is a name in backticks: its cells.
fn rows(page: &str, head: &str) -> Vec<Vec<String>> {
    let table = page.lines().skip_while(|line| *line != head).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    let cells = |line: &str| {
        let inner = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
        inner.unwrap_or(line).split('|').map(|cell| plain(cell.trim())).collect()
    };
    rows.map(cells).collect()
}

/// A cell without the marks of Markdown.
fn plain(cell: &str) -> String {
    let mut out = String::new();
    let mut rest = cell;
    while let Some((before, linked)) = rest.split_once('[') {
        out += before;
        match linked
            .split_once("](")
            .and_then(|(words, target)| Some((words, target.split_once(')')?)))
        {
            Some((words, (_, behind))) => {
                out += words;
                rest = behind;
            }
            None => {
                out.push('[');
                rest = linked;
            }
        }
    }
    (out + rest).replace('`', "").replace("**", "")
}

/// A text as roff has it: no line begins with a command.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\\\(rs").replace('-', "\\-");
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}

/// `.TH` of a page.
fn title(name: &str, section: u32) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(".TH {name} {section} \"\" \"stek_share {version}\" \"stek_share\"\n")
}

fn file_page() -> String {
    let mut page = title("server_conf.yaml", 5);
    page += ".SH NAME\nserver_conf.yaml, server_list.yaml \\- configuration of the plugin stek_share\n\
             .SH DESCRIPTION\nThe line of stek_share.so in plugin.config names server_conf.yaml, a \
             YAML mapping of options. It names server_list.yaml, a list of all servers, the same on \
             each: server_id, address, port and, if each server is to be told by its certificate, \
             cert_verify_str. A relative path is looked up beside the file that has it first.\n.PP\nstekctl check reads them as the plugin does.\n.SH OPTIONS\n";
    for row in rows(OPTIONS, "| option | meaning | unit | default |") {
        let [name, meaning, unit, default] = &row[..] else { continue };
        let unit = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
        page += &format!(
            ".TP\n\\fB{}\\fR{}, default: {}\n{}.\n",
            roff(name),
            roff(&unit),
            roff(default),
            roff(meaning)
        );
    }
    page += ".SH EXAMPLES\n.nf\n";
    let example = [
        "server_id: auto",
        "address: auto",
        "port: auto",
        "key_update_interval: 3600",
        "server_list_file: server_list.yaml",
        "root_cert_file: ca.crt",
        "server_cert_file: server.crt",
        "server_key_file: server.key",
        "",
        "- server_id: 1",
        "  address: 10.0.0.1",
        "  port: 10001",
        "  cert_verify_str: DNS:server1.example",
    ];
    example.iter().for_each(|line| page += &format!("{}\n", roff(line)));
    page + ".fi\n" + TAIL + PAGES + "\n"
}

fn plugin_page() -> String {
    let mut page = title("stek_share", 8);
    page += ".SH NAME\nstek_share \\- one TLS session ticket key for a fleet of Traffic Servers\n\
             .SH SYNOPSIS\nstek_share.so stek_share/server_conf.yaml\n\
             .SH DESCRIPTION\nA global plugin for Apache Traffic Server. The servers of a list agree \
             on one key for session tickets, by Raft over mutual TLS, and replace it every \
             key_update_interval, so that a client resumes its session on whichever server it lands. \
             The line above stands in plugin.config. What the plugin has to say is in diags.log, and \
             begins with [stek_share].\n\
             .SH MESSAGES\ntraffic_ctl plugin msg stek_share MESSAGE, answered in diags.log:\n";
    for row in rows(OPERATIONS, "| message | what it does |") {
        let [name, meaning] = &row[..] else { continue };
        page += &format!(".TP\n\\fB{}\\fR\n{}.\n", roff(name), roff(meaning));
    }
    page + TAIL + PAGES + "\n"
}

fn write(dir: &Path, name: &str, command: &clap::Command) -> Result<(), Failure> {
    write_page(dir, &format!("{name}.1"), &page(command, name)?)
}

fn write_page(dir: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = dir.join(name);
    fs::write(&path, text)
        .map_err(|error| Failure::new(format!("{}: cannot be written: {error}", path.display())))
}

fn page(command: &clap::Command, name: &str) -> Result<String, Failure> {
    let source = format!("stek_share {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name).source(source).manual("stek_share");
    let mut page = Vec::new();
    let made = man.render(&mut page);
    made.map_err(|error| Failure::new(format!("the man page cannot be made: {error}")))?;
    Ok(String::from_utf8_lossy(&page).into_owned() + &tail(name))
}
