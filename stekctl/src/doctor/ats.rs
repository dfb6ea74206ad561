//! What in Traffic Server's own files keeps sessions from being resumed although the key is
//! shared, or lets more through under a shared key than is meant: records.config (or records.yaml),
//! ssl_multicert.config, sni.yaml and plugin.config.
//!
//! What the settings do was measured on Traffic Server 9.2.9. Reads no file but these, and
//! understands no more of them than it needs.

use std::path::Path;

use stek_share::client::TicketScope;
use stek_share::core::config::Problem;
use stek_share::load;

use crate::locate;

/// Whether Traffic Server gives out tickets.
const ENABLE: &str = "proxy.config.ssl.server.session_ticket.enable";
/// How many it gives to a TLS 1.3 client.
const NUMBER: &str = "proxy.config.ssl.server.session_ticket.number";
/// A file with ticket keys.
const KEY_FILE: &str = "proxy.config.ssl.server.ticket_key.filename";
/// The name of ssl_multicert.config.
const MULTICERT: &str = "proxy.config.ssl.server.multicert.filename";
/// How much early data a client may send.
const EARLY: &str = "proxy.config.ssl.server.max_early_data";
/// Whether clients are asked for a certificate (1), and have to show one (2).
const LEVEL: &str = "proxy.config.ssl.client.certification_level";
/// The name of sni.yaml.
const SNI: &str = "proxy.config.ssl.servername.filename";

/// What early data means under a shared key, and the ways out.
pub const REPEATED: (&str, &str) = (
    "a copy of a client's first flight is accepted again by every server that shares the key, as \
     Traffic Server switches OpenSSL's protection against that off",
    "take it out; or see that origins refuse with 425 what must not happen twice, where a request \
     has the header Early-Data: 1",
);

/// What is said where clients are asked for a certificate with `ticket_scope: host`.
const OPENED: (&str, &str) = (
    "asks clients for a certificate, but with ticket_scope: host a session of a name or a server that \
     asks for none is resumed there too, and with TLS 1.3 lets its client in without one",
    "set ticket_scope: site on all servers",
);

/// One setting, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    file: String,
    line: usize,
    name: String,
    value: String,
}

impl Record {
    fn error(&self, reason: &str, remedy: &str) -> Problem {
        self.at(Problem::error(&self.file, reason, remedy))
    }

    fn at(&self, problem: Problem) -> Problem {
        problem.at(Some(self.line)).field(self.name.clone()).value(self.value.clone())
    }
}

/// All findings about the files in Traffic Server's configuration directory. `conf` is the
/// configuration that is in use, if it is known by a path, and `scope` its `ticket_scope`.
pub fn findings(dir: &Path, conf: Option<&Path>, scope: Option<TicketScope>) -> Vec<Problem> {
    let records = read_records(dir);
    let mut found = in_records(&records, scope);
    let name = last(&records, MULTICERT).map_or("ssl_multicert.config", |record| &record.value);
    let multicert = dir.join(name);
    if let Ok(text) = locate::read(&multicert) {
        found.extend(in_multicert(&shown(&multicert), &text));
    }
    let name = last(&records, SNI).map_or("sni.yaml", |record| &record.value);
    let sni = dir.join(name);
    if let Ok(text) = locate::read(&sni) {
        found.extend(in_sni(&shown(&sni), &text, scope));
    }
    found.extend(in_plugin_config(dir, conf));
    found
}

/// The value that counts of a record, as the files have it.
pub fn record(dir: &Path, name: &str) -> Option<String> {
    last(&read_records(dir), name).map(|record| record.value.clone())
}

/// Whether one of the findings is about early data.
pub fn is_early(found: &[Problem]) -> bool {
    found.iter().any(|problem| problem.to_string().contains(REPEATED.0))
}

fn is_above_zero(value: &str) -> bool {
    value.parse::<i64>().is_ok_and(|number| number > 0)
}

fn in_records(records: &[Record], scope: Option<TicketScope>) -> Vec<Problem> {
    let mut found = Vec::new();
    if let Some(record) = last(records, ENABLE).filter(|record| record.value == "0") {
        found.push(record.error(
            "means that Traffic Server gives out no session tickets, so no session resumes",
            "set it to 1",
        ));
    }
    if let Some(record) = last(records, NUMBER).filter(|record| record.value == "0") {
        found.push(record.error(
            "means that clients of TLS 1.3 get no ticket, so their sessions do not resume",
            "set it to 2, Traffic Server's default, or take the line out",
        ));
    }
    let is_set = |record: &&Record| !matches!(record.value.as_str(), "" | "NULL" | "null" | "~");
    if let Some(record) = last(records, KEY_FILE).filter(is_set) {
        found.push(record.error(
            "makes Traffic Server put that file's keys in place of the shared ones, at each \
             reload of its configuration that finds the file changed",
            "take the line out",
        ));
    }
    let is_on = |record: &&Record| is_above_zero(&record.value);
    if let Some(record) = last(records, EARLY).filter(is_on) {
        let reason = format!("allows early data (0-RTT): {}", REPEATED.0);
        found.push(record.at(Problem::warning(&record.file, reason, REPEATED.1)));
    }
    let asks = last(records, LEVEL).filter(is_on);
    if let Some(record) = asks.filter(|_| scope == Some(TicketScope::Host)) {
        found.push(record.at(Problem::warning(&record.file, OPENED.0, OPENED.1)));
    }
    found
}

/// The first line that asks clients for a certificate, where that is told, and the first that
/// allows early data.
fn in_sni(file: &str, text: &str, scope: Option<TicketScope>) -> Vec<Problem> {
    let (mut asks, mut early) = (None, None);
    for (index, line) in text.lines().enumerate() {
        let said = line.trim_start();
        let said = said.strip_prefix("- ").unwrap_or(said).trim_start();
        let Some((key, value)) = yaml_pair(said) else { continue };
        let at = |reason: &str, remedy: &str| {
            let problem = Problem::warning(file, reason, remedy);
            problem.at(Some(index + 1)).field(key).value(value)
        };
        let is_asked = || {
            let value = value.to_ascii_uppercase();
            scope == Some(TicketScope::Host) && matches!(value.as_str(), "STRICT" | "MODERATE")
        };
        match key {
            "verify_client" if asks.is_none() && is_asked() => {
                asks = Some(at(OPENED.0, OPENED.1));
            }
            "server_max_early_data" if early.is_none() && is_above_zero(value) => {
                let reason = format!("allows early data (0-RTT): {}", REPEATED.0);
                early = Some(at(&reason, REPEATED.1));
            }
            _ => {}
        }
    }
    asks.into_iter().chain(early).collect()
}

fn in_multicert(file: &str, text: &str) -> Vec<Problem> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let fields = multicert_fields(line);
        let has = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, v)| v.as_str());
        let number = Some(index + 1);
        let mut push = |problem: Problem, field: &str, value: &str| {
            found.push(problem.at(number).field(field).value(value));
        };
        if let Some(value @ "0") = has("ssl_ticket_enabled") {
            let reason = "means that this certificate's clients get no ticket, so no session of \
                          theirs resumes";
            push(Problem::error(file, reason, "take it out, or set it to 1"), ENABLED, value);
        }
        if let Some(value @ "0") = has("ssl_ticket_number") {
            let reason = "means that this certificate's clients of TLS 1.3 get no ticket";
            push(Problem::error(file, reason, "take it out, or set it to 2"), TICKETS, value);
        }
        if let Some(value) = has("ticket_key_name") {
            let reason = "names a ticket key for this line alone, which Traffic Server ignores \
                          since 7.1: its clients get tickets under the shared key";
            push(Problem::warning(file, reason, "take it out"), "ticket_key_name", value);
        }
        if let Some(value) = has("dest_ip").filter(|value| *value != "*") {
            let reason = "binds this line to an address: some versions of Traffic Server give it \
                          a ticket key of its own (apache/trafficserver issue 8734), and with \
                          ticket_scope: host its sessions resume only on servers whose lines are \
                          all of the same kind";
            let remedy = "write dest_ip=* wherever one certificate serves all addresses";
            push(Problem::warning(file, reason, remedy), "dest_ip", value);
        }
    }
    found
}

const ENABLED: &str = "ssl_ticket_enabled";
const TICKETS: &str = "ssl_ticket_number";

/// The `key=value` fields of a line; a value may stand in quotes.
fn multicert_fields(line: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut rest = line.trim_start();
    if rest.starts_with('#') {
        return fields;
    }
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(char::is_whitespace).unwrap_or((after, "")),
        };
        fields.push((key.trim().to_owned(), value.to_owned()));
        rest = next.trim_start();
    }
    fields
}

/// Whether plugin.config loads the plugin, once, with the configuration that is looked at.
fn in_plugin_config(dir: &Path, conf: Option<&Path>) -> Vec<Problem> {
    let path = dir.join("plugin.config");
    let file = shown(&path);
    let text = match locate::read(&path) {
        Ok(text) => text,
        Err(why) => {
            let reason = format!("{why}, so it is not known whether the plugin is loaded");
            return vec![Problem::warning(&file, reason, "give --ats-config DIR")];
        }
    };
    let lines: Vec<(usize, Vec<&str>)> = locate::plugin_lines(&text).collect();
    let Some((line, arguments)) = lines.first() else {
        let reason = "does not load stek_share.so, so this server shares no key";
        let remedy = "add the line 'stek_share.so stek_share/server_conf.yaml', or give \
                      --ats-config DIR if this is not the Traffic Server that is meant";
        return vec![Problem::error(&file, reason, remedy)];
    };
    let mut found = Vec::new();
    for (line, _) in lines.iter().skip(1) {
        let reason = "loads stek_share.so once more; only the first line counts";
        found.push(Problem::warning(&file, reason, "take it out").at(Some(*line)));
    }
    if let Some(fault) = load::wrong_arguments(arguments.len()) {
        found.push(Problem { file: file.clone(), ..fault }.at(Some(*line)));
    }
    let named = arguments.first().map(|argument| dir.join(argument));
    if let (Some(conf), Some(named)) = (conf, named) {
        // A relative name may be found elsewhere too; then nothing can be said.
        if let (Ok(conf), Ok(named)) = (conf.canonicalize(), named.canonicalize()) {
            if conf != named {
                let reason = format!("names another configuration than {}", conf.display());
                let remedy = "give -c with the file that Traffic Server uses";
                found.push(
                    Problem::warning(&file, reason, remedy)
                        .at(Some(*line))
                        .value(named.display().to_string()),
                );
            }
        }
    }
    found
}

/// The settings of records.yaml, which Traffic Server 10 has, or else of records.config.
fn read_records(dir: &Path) -> Vec<Record> {
    let yaml = dir.join("records.yaml");
    if let Ok(text) = locate::read(&yaml) {
        return yaml_records(&shown(&yaml), &text);
    }
    let config = dir.join("records.config");
    locate::read(&config).map_or_else(|_| Vec::new(), |text| config_records(&shown(&config), &text))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The last setting of a name is the one that counts.
fn last<'a>(records: &'a [Record], name: &str) -> Option<&'a Record> {
    records.iter().rfind(|record| record.name == name)
}

/// `CONFIG proxy.config.x.y INT 1`
fn config_records(file: &str, text: &str) -> Vec<Record> {
    let records = text.lines().enumerate().filter_map(|(index, line)| {
        let mut words = line.split_whitespace();
        let scope = words.next()?;
        if !matches!(scope, "CONFIG" | "LOCAL") {
            return None;
        }
        let (name, _type) = (words.next()?, words.next()?);
        let value = words.collect::<Vec<_>>().join(" ");
        Some(Record { file: file.to_owned(), line: index + 1, name: name.to_owned(), value })
    });
    records.collect()
}

/// Block mappings below `records:`; what is written in another way is not seen.
fn yaml_records(file: &str, text: &str) -> Vec<Record> {
    let mut records = Vec::new();
    // The keys that the present line stands under, with their indentation.
    let mut path: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let said = line.trim_start_matches(' ');
        let indent = line.len() - said.len();
        let Some((key, value)) = yaml_pair(said) else { continue };
        path.retain(|(above, _)| *above < indent);
        path.push((indent, key.to_owned()));
        let mut keys = path.iter().map(|(_, key)| key.as_str());
        if value.is_empty() || keys.next() != Some("records") {
            continue;
        }
        let name = std::iter::once("proxy.config").chain(keys).collect::<Vec<_>>().join(".");
        records.push(Record {
            file: file.to_owned(),
            line: index + 1,
            name,
            value: value.to_owned(),
        });
    }
    records
}

/// `key: value # comment`, without quotes and comment.
fn yaml_pair(said: &str) -> Option<(&str, &str)> {
    if said.starts_with(['#', '-']) {
        return None;
    }
    let (key, value) = said.split_once(':')?;
    let value = value.trim();
    let bare = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value[1..].split(quote).next().unwrap_or_default(),
        Some('#') => "",
        _ => value.split(" #").next().unwrap_or_default().trim_end(),
    };
    let key = key.trim().trim_matches(['"', '\'']);
    Some((key, bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn records_of_both_forms_are_read() {
        let config = "# CONFIG proxy.config.a INT 1\nCONFIG  proxy.config.b.c INT 0\n\
                      LOCAL proxy.config.d STRING a b\nCONFIG proxy.config.e INT\n";
        let found = config_records("f", config);
        let seen: Vec<_> =
            found.iter().map(|r| (r.line, r.name.as_str(), r.value.as_str())).collect();
        let expected =
            [(2, "proxy.config.b.c", "0"), (3, "proxy.config.d", "a b"), (4, "proxy.config.e", "")];
        assert_eq!(seen, expected);
        let yaml = "# x\nrecords:\n  ssl:\n    server:\n      session_ticket:\n        \
                    enable: 0 # off\n      ticket_key:\n        filename: \"a b\"\n  \
                    core_limit: 0\nother:\n  x: 1\n";
        let found = yaml_records("f", yaml);
        let seen: Vec<_> =
            found.iter().map(|r| (r.line, r.name.as_str(), r.value.as_str())).collect();
        let expected =
            [(6, ENABLE, "0"), (8, KEY_FILE, "a b"), (9, "proxy.config.core_limit", "0")];
        assert_eq!(seen, expected);
    }

    #[test]
    fn settings_that_stop_tickets_are_found() {
        let records = format!("CONFIG {ENABLE} INT 1\nCONFIG {NUMBER} INT 2\n");
        assert_eq!(in_records(&config_records("f", &records), None), []);
        let unset = format!("CONFIG {KEY_FILE} STRING NULL\n");
        assert_eq!(in_records(&config_records("f", &unset), None), []);
        let records = format!(
            "CONFIG {ENABLE} INT 1\nCONFIG {ENABLE} INT 0\nCONFIG {NUMBER} INT 0\n\
             CONFIG {KEY_FILE} STRING keys\n"
        );
        let found = lines(&in_records(&config_records("f", &records), None));
        let [enable, number, file] = found.as_slice() else { panic!("{found:?}") };
        assert!(enable.starts_with(&format!("f line 2: {ENABLE}: 0 means")), "{enable}");
        assert!(number.starts_with(&format!("f line 3: {NUMBER}: 0 means")), "{number}");
        assert!(file.starts_with(&format!("f line 4: {KEY_FILE}: keys makes")), "{file}");
    }

    #[test]
    fn what_lets_more_through_is_found_where_it_does() {
        let host = Some(TicketScope::Host);
        let records = config_records("f", &format!("CONFIG {LEVEL} INT 2\nCONFIG {EARLY} INT 0\n"));
        assert_eq!(in_records(&records, Some(TicketScope::Site)), []);
        let found = lines(&in_records(&records, host));
        let [level] = found.as_slice() else { panic!("{found:?}") };
        assert!(level.starts_with(&format!("f line 1: {LEVEL}: 2 asks")), "{level}");
        assert!(level.ends_with("; set ticket_scope: site on all servers"), "{level}");
        let records = config_records("f", &format!("CONFIG {LEVEL} INT 0\nCONFIG {EARLY} INT 9\n"));
        let problems = in_records(&records, host);
        assert!(is_early(&problems), "{problems:?}");
        let found = lines(&problems);
        let [early] = found.as_slice() else { panic!("{found:?}") };
        assert!(early.starts_with(&format!("f line 2: {EARLY}: 9 allows early")), "{early}");
        let sni =
            "sni:\n- fqdn: a\n  verify_client: NONE\n- fqdn: b\n  verify_client: STRICT # x\n\
                   - verify_client: MODERATE\n  fqdn: c\n  server_max_early_data: 7\n";
        let found = lines(&in_sni("s", sni, host));
        let [asks, early] = found.as_slice() else { panic!("{found:?}") };
        assert!(asks.starts_with("s line 5: verify_client: STRICT asks"), "{asks}");
        assert!(early.starts_with("s line 8: server_max_early_data: 7 allows"), "{early}");
        let found = lines(&in_sni("s", sni, Some(TicketScope::Site)));
        assert_eq!(found, [early.as_str()]);
    }

    #[test]
    fn lines_of_ssl_multicert_are_assessed_one_by_one() {
        let good = "# dest_ip=1.2.3.4\n\ndest_ip=* ssl_cert_name=a.pem ssl_ticket_enabled=1 \
                    ssl_key_dialog=\"exec:/bin/x dest_ip=9\"\n";
        assert_eq!(in_multicert("m", good), []);
        let bad = "dest_ip=10.0.0.1 ssl_cert_name=a.pem\nssl_cert_name=a ticket_key_name=\"k y\" \
                   ssl_ticket_enabled=0\nssl_ticket_number=0\n";
        let found = lines(&in_multicert("m", bad));
        let begins = [
            "m line 1: dest_ip: 10.0.0.1 binds",
            "m line 2: ssl_ticket_enabled: 0 means",
            "m line 2: ticket_key_name: k y names",
            "m line 3: ssl_ticket_number: 0 means",
        ];
        assert_eq!(found.len(), begins.len(), "{found:?}");
        for (line, begin) in found.iter().zip(begins) {
            assert!(line.starts_with(begin) && line.contains("; "), "{line}");
        }
    }
}
