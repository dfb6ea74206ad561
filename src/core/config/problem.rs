//! One thing that is wrong with the configuration, as one line for the operator.
//!
//! Invariants, whatever a file contains: the line is one line of printable characters, of
//! bounded length, and shows no PEM text, for a key may stand where a path was expected.

use std::fmt;

/// Characters of a value that a line shows; enough for any sensible path's telling end.
const MAX_VALUE: usize = 120;

/// Characters of a file's name that a line shows.
const MAX_FILE: usize = 300;

/// Characters of a field's name: a site's name, which is the longest that is part of one, and a word of
/// sni.yaml.
const MAX_FIELD: usize = 300;

/// Characters of a reason; the longest lists four places where a file was looked for.
const MAX_REASON: usize = 1000;

/// Characters of a remedy.
const MAX_REMEDY: usize = 500;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration works as meant; what that means is worth knowing.
    Note,
    /// The configuration works, but probably not as meant.
    Warning,
    /// The configuration cannot be used.
    Error,
}

/// What is wrong, where, and what to do about it. Its `Display` is the operator's line, for
/// example `server_conf.yaml line 3: port: 99999 is not a port; give a number from 1 to 65535`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether the configuration can be used nevertheless.
    pub severity: Severity,
    /// The file that has to be changed; empty where the reason names what it is about.
    pub file: String,
    /// The line in it, from 1, where it is known.
    pub line: Option<usize>,
    /// The option, or `entry N: field` in a server list.
    pub field: Option<String>,
    /// What the file says there, where showing it helps.
    pub value: Option<String>,
    /// What is wrong with it.
    pub reason: String,
    /// What the operator can do.
    pub remedy: String,
    /// Whether it may pass without anybody changing a file that is named here: a clock that is set,
    /// a file that is put in place, a right that is given.
    pub passes: bool,
}

impl Problem {
    /// An error in `file`.
    pub fn error(file: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem {
            severity: Severity::Error,
            file: file.to_owned(),
            line: None,
            field: None,
            value: None,
            reason: reason.into(),
            remedy: remedy.into(),
            passes: false,
        }
    }

    /// A warning about `file`.
    pub fn warning(file: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, ..Problem::error(file, reason, remedy) }
    }

    /// A note about `file`.
    pub fn note(file: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem { severity: Severity::Note, ..Problem::error(file, reason, remedy) }
    }

    /// A warning that is in words already, remedy included; its line is those words.
    pub fn said(line: &str) -> Problem {
        let (reason, remedy) = line.split_once("; ").unwrap_or((line, "see diags.log"));
        Problem::warning("", reason, remedy)
    }

    /// The same, at a line.
    pub fn at(self, line: Option<usize>) -> Problem {
        Problem { line, ..self }
    }

    /// The same, about a field.
    pub fn field(self, field: impl Into<String>) -> Problem {
        Problem { field: Some(field.into()), ..self }
    }

    /// The same, showing what the file says. PEM text is never shown.
    pub fn value(self, value: impl Into<String>) -> Problem {
        let value = value.into();
        let shown = if is_pem(&value) { "PEM text".to_owned() } else { value };
        Problem { value: Some(shown), ..self }
    }

    /// The same, if it may pass by itself.
    pub fn passing(self, passes: bool) -> Problem {
        Problem { passes, ..self }
    }

    /// How the line begins: file, line, field and value.
    pub fn place(&self) -> String {
        let mut place = printable(&self.file, MAX_FILE);
        if let Some(line) = self.line {
            place += &format!(" line {line}");
        }
        if !place.is_empty() {
            place += ": ";
        }
        if let Some(field) = &self.field {
            place += &format!("{}: ", printable(field, MAX_FIELD));
        }
        if let Some(value) = &self.value {
            place += &format!("{} ", printable(value, MAX_VALUE));
        }
        place
    }

    /// Whether the configuration cannot be used because of it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Whether nothing has to be done about it.
    pub fn is_note(&self) -> bool {
        self.severity == Severity::Note
    }
}

/// Whether `text` is a certificate or key itself rather than the name of one.
pub(super) fn is_pem(text: &str) -> bool {
    text.contains("-----BEGIN")
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reason, remedy) =
            (printable(&self.reason, MAX_REASON), printable(&self.remedy, MAX_REMEDY));
        write!(f, "{}{reason}; {remedy}", self.place())
    }
}

/// `text` on one line, without control or invisible characters, at most `limit` characters as they are
/// shown and an ellipsis: an escape counts with all of its own, and is never cut. A double or single quote
/// and a backslash stay as they are.
pub fn printable(text: &str, limit: usize) -> String {
    let mut out = String::new();
    let mut left = limit;
    for c in text.chars() {
        let as_it_is = matches!(c, '\'' | '"' | '\\');
        let width = if as_it_is { 1 } else { c.escape_debug().count() };
        let Some(rest) = left.checked_sub(width) else {
            out.push_str("...");
            break;
        };
        left = rest;
        if as_it_is {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_file_line_field_value_reason_and_remedy() {
        let problem = Problem::error("a.yaml", "is not a port", "give a number from 1 to 65535")
            .at(Some(3))
            .field("port")
            .value("99999");
        assert_eq!(
            problem.to_string(),
            "a.yaml line 3: port: 99999 is not a port; give a number from 1 to 65535"
        );
        assert!(!problem.passes && problem.clone().passing(true).passes);
        assert!(!problem.passing(true).passing(false).passes);
    }

    #[test]
    fn no_character_of_a_file_breaks_the_line() {
        let nasty = "a\nb\r\tc\0\u{1b}[31m\u{202e}\u{2028}\u{85}é\u{feff}";
        let line = Problem::error(nasty, nasty, nasty).field(nasty).value(nasty).to_string();
        let invisible =
            |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{202e}' | '\u{feff}');
        assert!(!line.contains(invisible), "{line:?}");
        assert!(line.contains('é'), "what can be printed stays readable: {line}");
    }

    #[test]
    fn a_line_has_a_bounded_length() {
        // Five ellipses more, and what joins the parts.
        let most = MAX_FILE + MAX_FIELD + MAX_VALUE + MAX_REASON + MAX_REMEDY + 33;
        for c in ['x', '\u{1}', '\u{e000}', '\u{301}', '\u{10ffff}', '\n', 'é'] {
            let long = c.to_string().repeat(1 << 20);
            let problem = Problem::error(&long, &long, &long).field(&long).value(&long);
            let line = problem.at(Some(99_999)).to_string();
            let count = line.chars().count();
            assert!((most - 80..=most).contains(&count), "{count} of {most} with {c:?}");
        }
        let line = Problem::error("f", "r", "s").value("x".repeat(1000)).to_string();
        assert_eq!(line, format!("f: {}... r; s", "x".repeat(MAX_VALUE)));
    }

    #[test]
    fn an_escape_counts_as_it_is_shown() {
        assert_eq!(printable("a\u{e000}b", 9), "a\\u{e000}...");
        assert_eq!(printable("a\u{e000}b", 10), "a\\u{e000}b");
        assert_eq!(printable("a\u{e000}b", 8), "a...");
        assert_eq!(printable("\\\"'", 3), "\\\"'");
        assert_eq!(printable("\n", 1), "...");
    }

    #[test]
    fn pem_text_is_not_shown() {
        let pem = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0";
        let problem = Problem::error("f", "r", "s").value(pem);
        assert!(!format!("{problem} {problem:?}").contains("c2VjcmV0"));
    }
}
