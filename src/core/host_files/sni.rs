//! What sni.yaml says of session tickets, name by name: that there are none, that early data may come with
//! them, and that clients are asked for a certificate.
//!
//! Which certificates are asked for is [`ClientPolicy`](crate::core::client_policy::ClientPolicy)'s.
//! Invariants: of what lets more through only the first name is told, since one line of it says all.

use super::Lines;
use crate::core::config::yaml::{parse, Node};
use crate::core::findings::{integer, Finding, FindingKind, Source, MAX_OF_A_FILE};

/// What an operator has to look at in a file of that name, in its order; [`MAX_OF_A_FILE`] at most.
/// `opens` says that sessions are not bound to their site, `counts` that this version of the host is not known to
/// have no word about tickets in the file.
pub fn findings(file: &str, text: &str, opens: bool, counts: bool) -> Vec<Finding> {
    let document = parse(text).map_or(Node::Null, |(node, _)| node);
    let entries = document.field("sni").map(Node::entries).unwrap_or_default();
    let given = |name: &str, at: usize| {
        let has = |entry: &&Node| entry.field(name).is_some();
        let before = entries.iter().take(at).filter(has).count();
        (before, entries.iter().filter(has).count())
    };
    let mut lines = Lines::of(text);
    let mut found: Vec<Finding> = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        for name in
            ["ssl_ticket_enabled", "ssl_ticket_number", "verify_client", "server_max_early_data"]
        {
            let Some(value) = entry.field(name).and_then(Node::scalar) else { continue };
            let asks = || matches!(value.to_ascii_uppercase().as_str(), "STRICT" | "MODERATE");
            let kind = match name {
                "ssl_ticket_enabled" if counts && integer(&value) == 0 => {
                    FindingKind::SiteTicketsOff
                }
                "ssl_ticket_number" if counts && integer(&value) == 0 => {
                    FindingKind::SiteNoTickets13
                }
                "verify_client" if opens && asks() => FindingKind::Opened,
                "server_max_early_data" if integer(&value) > 0 => FindingKind::EarlyData,
                _ => continue,
            };
            let is_told = matches!(kind, FindingKind::Opened | FindingKind::EarlyData)
                && found.iter().any(|known| known.kind == kind);
            if is_told || found.len() >= MAX_OF_A_FILE {
                continue;
            }
            let (nth, count) = given(name, at);
            let source = Source::file(file, lines.line(name, nth, count));
            let fqdn = entry.field("fqdn").and_then(Node::scalar);
            let field = fqdn.map_or_else(|| name.to_owned(), |fqdn| format!("{fqdn}: {name}"));
            found.push(Finding::new(kind, source, &field, &value));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(found: &[Finding]) -> Vec<String> {
        let begin = |f: &Finding| f.to_string().split(' ').take(6).collect::<Vec<_>>().join(" ");
        found.iter().map(begin).collect()
    }

    const TEXT: &str = "sni:\n- fqdn: a.example\n  verify_client: NONE\n- fqdn: b.example\n  \
                        verify_client: STRICT # x\n- verify_client: MODERATE\n  fqdn: c.example\n  \
                        server_max_early_data: 7\n- {fqdn: d.example, 'ssl_ticket_enabled': 0}\n- fqdn: \
                        e.example\n  \"ssl_ticket_number\" : 0\n- fqdn: f.example\n  ssl_ticket_number: 2\n";

    #[test]
    fn names_without_tickets_and_with_too_much_are_found() {
        let expected = [
            "s line 5: b.example: verify_client: STRICT",
            "s line 8: c.example: server_max_early_data: 7",
            "s line 9: d.example: ssl_ticket_enabled: 0",
            "s line 11: e.example: ssl_ticket_number: 0",
        ];
        assert_eq!(begins(&findings("s", TEXT, true, true)), expected);
        assert_eq!(begins(&findings("s", TEXT, false, true)), expected[1..]);
        assert_eq!(begins(&findings("s", TEXT, false, false)), expected[1..2]);
        let none = "sni:\n- fqdn: a\n  server_max_early_data: 0\n";
        assert_eq!(findings("s", none, true, true), []);
    }

    #[test]
    fn no_text_is_too_odd_and_no_file_too_long() {
        for odd in [
            "",
            "sni: 3",
            "sni:\n- 3\n- {fqdn: [a], ssl_ticket_enabled: [0]}",
            "{",
            "\t",
            "sni: []",
        ] {
            assert_eq!(findings("s", odd, true, true), [], "{odd:?}");
        }
        let many = format!("sni:\n{}", "- {fqdn: a, ssl_ticket_enabled: 0}\n".repeat(1000));
        assert_eq!(findings("s", &many, true, true).len(), MAX_OF_A_FILE);
    }
}
