//! What ssl_multicert says of session tickets: the certificates whose sites do not use the shared keys.
//!
//! Up to Traffic Server 10 that is ssl_multicert.config, one entry for each line: `label=value` with blanks
//! between, values possibly in quotes, `#` for a comment. From 11 on it is ssl_multicert.yaml, a list of
//! mappings with the same labels, which have to be written in small letters there. A text that is both is
//! none that anybody writes.

use std::collections::BTreeMap;

use super::Lines;
use crate::core::config::yaml::{parse, Node};
use crate::core::findings::{integer, Finding, FindingKind, Source, MAX_OF_A_FILE};

/// What an operator has to look at in a file of that name, in its order; [`MAX_OF_A_FILE`] at most.
/// `address` is what a line with an address means to this version of the host, if it means anything, and
/// `exact` whether it ignores labels in capital letters.
pub fn findings(file: &str, text: &str, address: Option<FindingKind>, exact: bool) -> Vec<Finding> {
    let entries = yaml_entries(text).unwrap_or_else(|| config_entries(text));
    let mut found = Vec::new();
    for Entry { line, label, value } in entries {
        let known = if exact { label.clone() } else { label.to_ascii_lowercase() };
        let kind = match known.as_str() {
            "ssl_ticket_enabled" if integer(&value) == 0 => Some(FindingKind::SiteTicketsOff),
            "ssl_ticket_number" if integer(&value) == 0 => Some(FindingKind::SiteNoTickets13),
            "ticket_key_name" => Some(FindingKind::SiteKeyName),
            "dest_ip" if value != "*" => address,
            _ => None,
        };
        let Some(kind) = kind else { continue };
        if found.len() >= MAX_OF_A_FILE {
            break;
        }
        found.push(Finding::new(kind, Source::file(file, line), &label, &value));
    }
    found
}

struct Entry {
    line: Option<u32>,
    label: String,
    value: String,
}

/// `None` if it is no YAML with certificates.
fn yaml_entries(text: &str) -> Option<Vec<Entry>> {
    let (document, _) = parse(text).ok()?;
    let certificates = document.field("ssl_multicert")?.entries();
    let labelled = |node: &Node| {
        let pairs = node.pairs().iter();
        pairs.filter_map(|(key, value)| Some((key.scalar()?, value.scalar()?))).collect::<Vec<_>>()
    };
    let all: Vec<(String, String)> = certificates.iter().flat_map(labelled).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    all.iter().for_each(|(label, _)| *counts.entry(label).or_default() += 1);
    let (mut lines, mut seen) = (Lines::of(text), BTreeMap::new());
    let entry = |(label, value): &(String, String)| {
        let nth = seen.entry(label.clone()).or_insert(0);
        let line = lines.line(label, *nth, counts.get(label.as_str()).copied().unwrap_or(0));
        *nth += 1;
        Entry { line, label: label.clone(), value: value.clone() }
    };
    Some(all.iter().map(entry).collect())
}

fn config_entries(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.starts_with('#') {
            continue;
        }
        let entry = |(label, value): (&str, &str)| Entry {
            line: Some(number),
            label: label.to_owned(),
            value: value.to_owned(),
        };
        entries.extend(pairs(line).into_iter().map(entry));
    }
    entries
}

/// The labels of a line with their values, quotes taken off.
fn pairs(line: &str) -> Vec<(&str, &str)> {
    let mut pairs = Vec::new();
    let mut rest = line;
    while let Some((label, after)) = rest.split_once('=') {
        // What is before the last blank is no part of this label.
        let label = label.split_whitespace().next_back().unwrap_or_default();
        let (value, behind) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(char::is_whitespace).unwrap_or((after, "")),
        };
        pairs.push((label, value));
        rest = behind;
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let address = Some(FindingKind::SiteOwnKey);
        let found = findings("m", text, address, false);
        found
            .iter()
            .map(|f| f.to_string().split(' ').take(5).collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn only_what_keeps_sites_from_the_shared_keys_is_told() {
        let text = "# dest_ip=1.2.3.4 ticket_key_name=a\n\
                    dest_ip=* ssl_cert_name=a.pem ssl_key_name=a.key\n\
                    ssl_cert_name=\"b c.pem\" ssl_ticket_enabled=0\n\n\
                    dest_ip=10.0.0.1 ssl_cert_name=d.pem\tticket_key_name=d.tickets\n\
                    ssl_cert_name=e.pem SSL_TICKET_ENABLED=\"1\" ssl_key_dialog=\"exec:a b=c\"\n\
                    dest_ip=\"::1\" ssl_ticket_number=0 x\n\
                    ssl_cert_name=f.pem ssl_ticket_number=2\n";
        let expected = [
            "m line 3: ssl_ticket_enabled: 0",
            "m line 5: dest_ip: 10.0.0.1",
            "m line 5: ticket_key_name: d.tickets",
            "m line 7: dest_ip: ::1",
            "m line 7: ssl_ticket_number: 0",
        ];
        assert_eq!(lines(text), expected);
        assert_eq!(findings("m", "dest_ip=10.0.0.1\n", None, false), [], "it shares the key");
    }

    #[test]
    fn capital_letters_count_where_the_host_heeds_them() {
        let text = "ssl_multicert:\n  - SSL_Ticket_Enabled: 0\n    ssl_ticket_number: 0\n";
        assert_eq!(
            lines(text),
            ["m line 2: SSL_Ticket_Enabled: 0", "m line 3: ssl_ticket_number: 0"]
        );
        let exact = findings("m", text, None, true);
        assert_eq!(
            exact.iter().map(|f| f.kind).collect::<Vec<_>>(),
            [FindingKind::SiteNoTickets13]
        );
    }

    #[test]
    fn the_newer_file_is_read_as_the_older_one() {
        let text = "ssl_multicert:\n  - ssl_cert_name: a.pem\n    dest_ip: 10.0.0.1\n    \
                    ssl_ticket_enabled: 0\n  - {ssl_cert_name: b.pem, dest_ip: '*', ssl_ticket_enabled: 1}\n\
                    # ssl_ticket_number: 0\n  - ssl_cert_name: \"c.pem\"\n    'ssl_ticket_number': \"0\"\n    \
                    dest_ip: \"[::1]:443\"\n";
        let expected = [
            "m line 3: dest_ip: 10.0.0.1",
            "m line 4: ssl_ticket_enabled: 0",
            "m line 8: ssl_ticket_number: 0",
            "m line 9: dest_ip: [::1]:443",
        ];
        assert_eq!(lines(text), expected);
    }

    #[test]
    fn no_text_is_too_odd_and_no_file_too_long() {
        for odd in ["", "=", "==\"", "\"=\"", "a=\"", " = = ", "dest_ip", "ssl_multicert: 3", "{"] {
            assert_eq!(lines(odd), [""; 0], "{odd:?}");
        }
        assert_eq!(lines(&"ticket_key_name=a\n".repeat(1000)).len(), MAX_OF_A_FILE);
    }
}
