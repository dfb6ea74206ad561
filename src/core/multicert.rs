//! What Traffic Server's ssl_multicert.config says about session tickets: the lines whose sites
//! do not use the shared keys.
//!
//! Reads what the host reads and no more: one entry for each line, `label=value` with blanks
//! between, values possibly in quotes, `#` for a comment. Whether the rest of a line is right is
//! for the host to say. Of the newer ssl_multicert.yaml nothing is known here.

use super::server_status::{Hint, MAX_HINTS};

/// What an operator has to look at, in the file's order; half of the hints of a server at most.
pub fn hints(text: &str) -> Vec<Hint> {
    let mut hints = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.starts_with('#') {
            continue;
        }
        for (label, value) in pairs(line) {
            let hint = match label.to_ascii_lowercase().as_str() {
                "ssl_ticket_enabled" if value.trim() == "0" => Hint::LineWithoutTickets(number),
                "ticket_key_name" => Hint::LineWithKeys(number),
                "dest_ip" if value != "*" => Hint::LineWithAddress(number),
                _ => continue,
            };
            if hints.len() >= MAX_HINTS / 2 {
                return hints;
            }
            hints.push(hint);
        }
    }
    hints
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

    #[test]
    fn only_what_keeps_sites_from_the_shared_keys_is_told() {
        let text = "# dest_ip=1.2.3.4 ticket_key_name=a\n\
                    dest_ip=* ssl_cert_name=a.pem ssl_key_name=a.key\n\
                    ssl_cert_name=\"b c.pem\" ssl_ticket_enabled=0\n\n\
                    dest_ip=10.0.0.1 ssl_cert_name=d.pem\tticket_key_name=d.tickets\n\
                    ssl_cert_name=e.pem SSL_TICKET_ENABLED=\"1\" ssl_key_dialog=\"exec:a b=c\"\n\
                    dest_ip=\"::1\" x\n";
        let expected = [
            Hint::LineWithoutTickets(3),
            Hint::LineWithAddress(5),
            Hint::LineWithKeys(5),
            Hint::LineWithAddress(7),
        ];
        assert_eq!(hints(text), expected);
    }

    #[test]
    fn no_text_is_too_odd_and_no_file_too_long() {
        for odd in ["", "=", "==\"", "\"=\"", "a=\"", " = = ", "dest_ip"] {
            assert_eq!(hints(odd), [], "{odd:?}");
        }
        assert_eq!(hints(&"ticket_key_name=a\n".repeat(1000)).len(), MAX_HINTS / 2);
    }
}
