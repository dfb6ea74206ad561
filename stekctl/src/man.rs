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
    // What help says is in the other pages.
    for command in whole.get_subcommands().filter(|command| command.get_name() != "help") {
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
    (
        "stekctl-check",
        &["stekctl check", "stekctl check /etc/trafficserver/stek_share/server_conf.yaml"],
    ),
    ("stekctl-doctor", &["stekctl doctor", "stekctl doctor --tls 10.0.0.1:443 10.0.0.2:443"]),
    ("stekctl-effect", &["stekctl effect", "stekctl effect --over 60"]),
    ("stekctl-init", &["stekctl init fleet 10.0.0.1 10.0.0.2 10.0.0.3"]),
    ("stekctl-add", &["stekctl add fleet 10.0.0.4", "stekctl add fleet --non-voter 10.0.0.8"]),
    ("stekctl-remove", &["stekctl remove fleet 4"]),
    ("stekctl-replace", &["stekctl replace fleet 2 10.0.0.9", "stekctl replace fleet 2"]),
    ("stekctl-rotate", &["stekctl rotate"]),
    ("stekctl-reload", &["stekctl reload", "stekctl reload --all"]),
    ("stekctl-revoke", &["stekctl revoke", "stekctl revoke --yes"]),
    ("stekctl-recover", &["stekctl recover --survivors 1,4"]),
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
    fs::write(&path, text).map_err(|error| {
        Failure::new(format!(
            "{}: cannot be written: {error}; give a directory that is there and may be written",
            path.display()
        ))
    })
}

fn page(command: &clap::Command, name: &str) -> Result<String, Failure> {
    let source = format!("stek_share {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name).source(source).manual("stek_share");
    let mut page = Vec::new();
    let made = man.render(&mut page);
    made.map_err(|error| Failure::new(format!("the man page cannot be made: {error}")))?;
    Ok(String::from_utf8_lossy(&page).into_owned() + &tail(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;
    use clap::Parser;

    /// Whether these are words of the command. A page may name a command without what it needs.
    fn is_command(line: &str) -> bool {
        let end = line.find([';', '|', '>', '&', ')', '#', '"', '\'', '\\']).unwrap_or(line.len());
        let words = line.get(..end).unwrap_or_default().split_whitespace();
        // What the reader puts in, such as FILE or ADDRESS..., ends what can be looked at.
        let is_own = |word: &&str| {
            !word.starts_with(['[', '.'])
                && word.chars().any(|c| !c.is_ascii_uppercase() && c != '.')
        };
        let words: Vec<&str> = words.take_while(is_own).collect();
        let names_an_option = words.last().is_some_and(|word| word.starts_with("--"));
        match Cli::try_parse_from(words) {
            Ok(_) => true,
            // One that is named without its value.
            Err(error) if error.kind() == ErrorKind::InvalidValue => names_an_option,
            Err(error) => matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::DisplayHelp
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    | ErrorKind::DisplayVersion
            ),
        }
    }

    #[test]
    fn each_command_has_examples_and_each_example_is_one() {
        let whole = Cli::command();
        for command in whole.get_subcommands() {
            let name = format!("stekctl-{}", command.get_name());
            assert!(EXAMPLES.iter().any(|(known, _)| *known == name), "no example of {name}");
            let span = format!("`stekctl {}", command.get_name());
            let others = format!("`{}`", command.get_name());
            let table = OPERATIONS.split("\n## Commands\n").nth(1).unwrap_or_default();
            let named = table.contains(&span) || table.contains(&others);
            assert!(
                named || table.contains(&format!("`{} ", command.get_name())),
                "{name}: {table}"
            );
        }
        for line in EXAMPLES.iter().flat_map(|(_, lines)| *lines) {
            let at = line.find("stekctl ").unwrap_or(line.len());
            assert!(line.get(at..).is_some_and(is_command), "{line}");
        }
    }

    #[test]
    fn what_the_pages_tell_to_type_is_taken() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let mut todo = vec![root.join("docs"), root.join("packaging"), root.join("README.md")];
        let mut count = 0;
        while let Some(path) = todo.pop() {
            if let Ok(entries) = fs::read_dir(&path) {
                todo.extend(entries.flatten().map(|entry| entry.path()));
                continue;
            }
            let is_page = path.extension().is_some_and(|end| end == "md" || end == "rst");
            let Ok(text) = fs::read_to_string(&path) else { continue };
            for line in text.lines().filter(|_| is_page) {
                // In prose what stands in backticks, in a block the line.
                let is_block = line.starts_with("    ") || line.starts_with("stekctl ");
                let parts: Vec<&str> = match line.contains('`') {
                    true => line.split('`').skip(1).step_by(2).collect(),
                    false if is_block => line.split(" && ").collect(),
                    false => Vec::new(),
                };
                for part in parts.iter().map(|part| part.trim()) {
                    if part.starts_with("stekctl ") && !part.starts_with("stekctl COMMAND") {
                        count += 1;
                        assert!(is_command(part), "{}: {part}", path.display());
                    }
                }
            }
        }
        assert!(count > 70, "{count}");
    }
}
