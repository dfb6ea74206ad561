//! The host's records as they are written: records.config, records.yaml in any form that YAML has, and
//! the environment, which goes before both.
//!
//! Invariants: the last line of a name counts, as for the host; a tag, a quote or the style of a
//! mapping makes no difference; what is a document of its own in one file counts too.

use std::collections::BTreeMap;

use super::Lines;
use crate::core::config::yaml::{parse_all, Node};
use crate::core::findings::{Record, Source};

/// What every name of a setting begins with.
const PREFIX: &str = "proxy.config";

/// What is written of the host's records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    written: Vec<Record>,
    environment: BTreeMap<String, String>,
}

/// How the names of variables that set records begin.
pub const VARIABLES: &str = "PROXY_CONFIG_";

impl Records {
    /// By the text of a records.config, which is named `file`: `CONFIG proxy.config.x.y INT 1`.
    pub fn of_config(file: &str, text: &str) -> Records {
        let written = (1..).zip(text.lines()).filter_map(|(number, line)| {
            let mut words = line.split_whitespace();
            if !matches!(words.next()?, "CONFIG" | "LOCAL") {
                return None;
            }
            let (name, _type) = (words.next()?, words.next()?);
            let value = words.collect::<Vec<_>>().join(" ");
            let source = Source::file(file, Some(number));
            Some(Record { source, name: name.to_owned(), value })
        });
        Records { written: written.collect(), environment: BTreeMap::new() }
    }

    /// By the text of a records.yaml, which is named `file`. One that is no YAML has no settings: the
    /// host says what is wrong with it.
    pub fn of_yaml(file: &str, text: &str) -> Records {
        let mut flat = Vec::new();
        for document in parse_all(text).unwrap_or_default() {
            if let Some(records) = document.field("records") {
                flatten(records, PREFIX, &mut flat);
            }
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        flat.iter().for_each(|leaf| *counts.entry(&leaf.key).or_default() += 1);
        let (mut lines, mut seen) = (Lines::of(text), BTreeMap::new());
        let written = flat.iter().map(|leaf| {
            let nth = seen.entry(leaf.key.as_str()).or_insert(0);
            let line = lines.line(&leaf.key, *nth, counts.get(&*leaf.key).copied().unwrap_or(0));
            *nth += 1;
            let source = Source::file(file, line);
            Record { source, name: leaf.name.clone(), value: leaf.value.clone() }
        });
        Records { written: written.collect(), environment: BTreeMap::new() }
    }

    /// The same under an environment, of which only what is a setting is kept.
    pub fn under(self, environment: impl Iterator<Item = (String, String)>) -> Records {
        let is_setting = |(name, _): &(String, String)| name.starts_with(VARIABLES);
        Records { environment: environment.filter(is_setting).collect(), ..self }
    }

    /// Only these names of what the file says.
    pub fn only(mut self, names: &[&str]) -> Records {
        self.written.retain(|record| names.contains(&record.name.as_str()));
        self
    }

    /// What counts for this name once the host is restarted; `None` if that is its default.
    pub fn get(&self, name: &str) -> Option<Record> {
        let variable = variable(name);
        if let Some(value) = self.environment.get(&variable) {
            let source = Source::Environment(variable);
            return Some(Record { source, name: name.to_owned(), value: value.clone() });
        }
        self.written.iter().rfind(|record| record.name == name).cloned()
    }
}

/// The variable by which the environment sets a record.
pub fn variable(name: &str) -> String {
    name.chars().map(|c| if c == '.' { '_' } else { c.to_ascii_uppercase() }).collect()
}

/// A setting at the end of a branch: its whole name, the key before its colon, its value.
struct Leaf {
    name: String,
    key: String,
    value: String,
}

/// Bytes of a setting's whole name; the host has none that is near it.
const MAX_NAME: usize = 256;

fn flatten(node: &Node, prefix: &str, leaves: &mut Vec<Leaf>) {
    for (key, value) in node.pairs() {
        let Some(key) = key.scalar() else { continue };
        // A long name of a branch would be there once for each of its leaves.
        if prefix.len() + key.len() > MAX_NAME {
            continue;
        }
        let name = format!("{prefix}.{key}");
        match value.scalar() {
            Some(value) => leaves.push(Leaf { name, key, value }),
            None => flatten(value, &name, leaves),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENABLE: &str = "proxy.config.ssl.server.session_ticket.enable";

    fn seen(records: &Records) -> Vec<(Option<u32>, &str, &str)> {
        let seen = records.written.iter().map(|record| {
            let Source::File { line, .. } = record.source else { return (None, "", "") };
            (line, record.name.as_str(), record.value.as_str())
        });
        seen.collect()
    }

    #[test]
    fn lines_of_the_older_file_are_read() {
        let text = "# CONFIG proxy.config.a INT 1\nCONFIG  proxy.config.b.c INT 0\n\
                    LOCAL proxy.config.d STRING a b\nCONFIG proxy.config.e INT\nCONFIG x\n";
        let expected = [
            (Some(2), "proxy.config.b.c", "0"),
            (Some(3), "proxy.config.d", "a b"),
            (Some(4), "proxy.config.e", ""),
        ];
        assert_eq!(seen(&Records::of_config("f", text)), expected);
    }

    #[test]
    fn one_setting_is_the_same_in_every_form_of_yaml() {
        let cases = [
            ("records:\n  ssl:\n    server:\n      session_ticket:\n        enable: 0 # off\n", Some(5)),
            ("records: {ssl: {server: {session_ticket: {enable: 0}}}}\n", Some(1)),
            ("\"records\":\n  'ssl': {\n    \"server\": {session_ticket:\n {\n 'enable' : 0}}}\n", Some(5)),
            ("records:\n  ssl: !map\n    server:\n      session_ticket:\n        enable: !!int 0\n", Some(5)),
            ("records:\n  ssl:\n    server:\n      session_ticket: {enable: !int \"0\"}\n", Some(4)),
            ("records:\n  ssl.server.session_ticket:\n    enable: '0'\n", Some(3)),
            ("{\"records\": {\"ssl\": {\"server\": {\"session_ticket\": {\"enable\": 0}}}}}", Some(1)),
            ("a: 1\n---\nrecords:\n  ssl: {server: {session_ticket: {enable: 0}}}\n", Some(4)),
            ("records:\n  ? ssl\n  : server:\n      session_ticket:\n        enable: 0\n", Some(5)),
            ("x: &off {enable: 0}\nrecords: {ssl: {server: {session_ticket: *off}}}\n", Some(1)),
            ("\u{feff}records:\r\n  ssl:\r\n    server:\r\n      session_ticket:\r\n        enable: 0\r\n", Some(5)),
            ("%YAML 1.2\n---\nrecords:\n\n  ssl:\n  # x\n    server:\n     session_ticket:\n      enable:\n        0\n", Some(9)),
        ];
        for (text, line) in cases {
            assert_eq!(seen(&Records::of_yaml("f", text)), [(line, ENABLE, "0")], "{text}");
        }
    }

    #[test]
    fn the_last_line_counts_and_the_environment_before_it() {
        let text = format!("CONFIG {ENABLE} INT 1\nCONFIG {ENABLE} INT 0\n");
        let records = Records::of_config("f", &text);
        let found = records.get(ENABLE);
        assert_eq!(
            found.map(|r| (r.value, r.source)),
            Some(("0".into(), Source::file("f", Some(2))))
        );
        let set = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into_iter();
        let variable = "PROXY_CONFIG_SSL_SERVER_SESSION_TICKET_ENABLE";
        let over = records.clone().under(set(variable, "1")).get(ENABLE);
        let expected = Some(("1".into(), Source::Environment(variable.into())));
        assert_eq!(over.map(|r| (r.value, r.source)), expected);
        assert_eq!(records.clone().under(set("PATH", "1")), records);
        assert_eq!(
            super::variable("proxy.config.ssl.CA.cert.filename"),
            "PROXY_CONFIG_SSL_CA_CERT_FILENAME"
        );
        assert_eq!(records.get("proxy.config.x"), None);
        let both = Records::of_config("f", &format!("{text}CONFIG proxy.config.y INT 3\n"));
        assert_eq!(seen(&both.only(&["proxy.config.y"])), [(Some(3), "proxy.config.y", "3")]);
    }

    #[test]
    fn a_setting_that_is_given_twice_has_a_line_each_time_and_a_long_name_none() {
        let text = "records: {a: {x: 1}}\n---\nrecords:\n  b: {x: 2}\n";
        let found = Records::of_yaml("f", text);
        let expected = [(Some(1), "proxy.config.a.x", "1"), (Some(4), "proxy.config.b.x", "2")];
        assert_eq!(seen(&found), expected);
        // The longest there may be, with the dot; and one more.
        let room = MAX_NAME - PREFIX.len();
        let of = |length: usize| {
            let text = format!("records: {{{}: 1}}\n", "k".repeat(length));
            Records::of_yaml("f", &text).written.len()
        };
        assert_eq!([of(room - 1), of(room), of(room + 1), of(room + 2)], [1, 1, 0, 0]);
    }

    #[test]
    fn what_is_no_yaml_has_no_settings() {
        for text in ["records: [", "records: 3", "- records: {a: 1}", "", "\t", "other: {a: 1}"] {
            assert_eq!(seen(&Records::of_yaml("f", text)), [], "{text:?}");
        }
    }
}
