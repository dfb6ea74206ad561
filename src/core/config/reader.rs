//! Takes the values of one YAML mapping, name by name, and complains about what does not fit.
//!
//! Knows the kinds of values (numbers in a range, texts, addresses), not the options.
//! Invariants: every value that is refused leaves exactly one error, so a caller that gets `None` need
//! not complain again.

use std::ops::RangeInclusive;

use super::address;
use super::problem::{is_pem, Problem};
use super::yaml::{Node, Places};

/// The integers that an option takes.
pub(super) struct IntegerRange {
    pub(super) range: RangeInclusive<i64>,
    /// What is said of a number out of range, completing "99999 ...".
    pub(super) complaint: &'static str,
    /// What the operator is asked for, as in "give a whole number of seconds from 1 to 9".
    pub(super) expected: &'static str,
}

impl IntegerRange {
    fn remedy(&self) -> String {
        format!("give {} from {} to {}", self.expected, self.range.start(), self.range.end())
    }
}

/// What a mapping says under one name.
pub(super) enum OptionValue<T> {
    /// The name is not there.
    Missing,
    /// It is there with something unusable, which is complained about already.
    Invalid,
    /// It is there and fits.
    Value(T),
}

impl<T> OptionValue<T> {
    /// The value, or `default` where nothing is given; `None` for a wrong value.
    pub(super) fn or(self, default: T) -> Option<T> {
        match self {
            OptionValue::Missing => Some(default),
            OptionValue::Invalid => None,
            OptionValue::Value(value) => Some(value),
        }
    }

    /// The value, if one is given; `None` for a wrong value.
    pub(super) fn optional(self) -> Option<Option<T>> {
        match self {
            OptionValue::Missing => Some(None),
            OptionValue::Invalid => None,
            OptionValue::Value(value) => Some(Some(value)),
        }
    }
}

/// The most names in one mapping that are looked at one by one. There are far fewer options; each
/// name is compared with all before it.
const MAX_NAMES: usize = 100;

/// Reads one mapping of `file`.
pub(super) struct Reader<'a> {
    pub(super) file: &'a str,
    pub(super) pairs: &'a [(Node, Node)],
    pub(super) places: &'a Places,
    /// Set before a field's name in a line, such as `entry 3: `.
    pub(super) prefix: String,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl<'a> Reader<'a> {
    /// Complains about names that stand twice, and warns of names that are not in `known`.
    pub(super) fn check_names(&mut self, known: &[&str], advice: &str) {
        if self.pairs.len() > MAX_NAMES {
            let reason = format!("has {} names, more than {MAX_NAMES}", self.pairs.len());
            let problem = Problem::error(self.file, reason, advice).at(self.places.start());
            let prefix = self.prefix.trim_end_matches(": ");
            self.problems.push(match prefix {
                "" => problem,
                prefix => problem.field(prefix),
            });
            return;
        }
        for (index, (key, _)) in self.pairs.iter().enumerate() {
            let Node::Text(name) = key else {
                let named = self.named(&key.to_string());
                let reason = "is not a known name and has no effect";
                let problem = Problem::warning(self.file, reason, advice);
                self.problems.push(problem.field(named).at(self.places.start()));
                continue;
            };
            let (before, _) = self.pairs.split_at(index);
            let nth = before.iter().filter(|(k, _)| k == key).count();
            let (line, named) = (self.places.key(name, nth), self.named(name));
            if nth > 0 {
                let problem =
                    Problem::error(self.file, "is given more than once", "keep one of the lines");
                self.problems.push(problem.field(named).at(line));
            } else if !known.contains(&name.as_str()) {
                let remedy = match nearest(name, known) {
                    Some(nearest) => format!("did you mean {nearest}?"),
                    None => advice.to_owned(),
                };
                let reason = "is not a known name and has no effect";
                let problem = Problem::warning(self.file, reason, remedy);
                self.problems.push(problem.field(named).at(line));
            }
        }
    }

    /// A whole number in a range. A number in quotes is a number, as it is to the original.
    pub(super) fn number(&mut self, name: &str, integers: &IntegerRange) -> OptionValue<i64> {
        let Some(node) = self.find(name) else {
            return OptionValue::Missing;
        };
        let number = match integer(node) {
            Ok(number) => number,
            Err(reason) => return self.wrong(name, node, reason, &integers.remedy()),
        };
        match i64::try_from(number) {
            Ok(number) if integers.range.contains(&number) => OptionValue::Value(number),
            _ => self.wrong(name, node, integers.complaint, &integers.remedy()),
        }
    }

    /// True or false, in quotes or without.
    pub(super) fn boolean(&mut self, name: &str, remedy: &str) -> OptionValue<bool> {
        match self.find(name) {
            None => OptionValue::Missing,
            Some(Node::Bool(truth)) => OptionValue::Value(*truth),
            Some(Node::Text(text)) if text == "true" => OptionValue::Value(true),
            Some(Node::Text(text)) if text == "false" => OptionValue::Value(false),
            Some(node) => self.wrong(name, node, "is neither true nor false", remedy),
        }
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, name: &str, remedy: &str) -> OptionValue<String> {
        match self.text_or_empty(name, remedy) {
            OptionValue::Value(text) if text.is_empty() => {
                self.wrong(name, &Node::Null, "is empty", remedy)
            }
            given => given,
        }
    }

    /// A text; the name with nothing behind it is the empty text.
    pub(super) fn text_or_empty(&mut self, name: &str, remedy: &str) -> OptionValue<String> {
        match self.find(name) {
            None => OptionValue::Missing,
            Some(Node::Null) => OptionValue::Value(String::new()),
            Some(node @ Node::Text(text)) if is_pem(text) => {
                self.wrong(name, node, "stands here itself", remedy)
            }
            Some(Node::Text(text)) => OptionValue::Value(text.trim().to_owned()),
            Some(node) => {
                let reason = format!("is {}, not plain text", node.kind());
                self.wrong(name, node, &reason, &format!("{remedy}, in quotes"))
            }
        }
    }

    /// An address in the form that is kept.
    pub(super) fn address(&mut self, name: &str) -> OptionValue<String> {
        let remedy = "give an IPv4 address, an IPv6 address in quotes, or a host name";
        let text = match self.text(name, remedy) {
            OptionValue::Value(text) => text,
            OptionValue::Missing => return OptionValue::Missing,
            OptionValue::Invalid => return OptionValue::Invalid,
        };
        match address::parse(&text) {
            Ok(address) => OptionValue::Value(address),
            Err(reason) => {
                let remedy = match reason {
                    address::NotAddress::WithPort => "give the port in the field 'port' only",
                    _ => remedy,
                };
                self.wrong(name, &Node::Text(text), &reason.to_string(), remedy)
            }
        }
    }

    /// The value of what has to be there.
    pub(super) fn required<T>(
        &mut self,
        name: &str,
        given: OptionValue<T>,
        remedy: &str,
    ) -> Option<T> {
        match given {
            OptionValue::Value(value) => Some(value),
            OptionValue::Invalid => None,
            OptionValue::Missing => {
                let problem = Problem::error(self.file, "is missing", remedy);
                // In a list it helps to know which entry; for a whole file there is no line.
                let line = self.places.start().filter(|_| !self.prefix.is_empty());
                self.problems.push(problem.field(self.named(name)).at(line));
                None
            }
        }
    }

    /// An error about the value of `name`, for a caller to complete and add.
    pub(super) fn error(&self, name: &str, reason: &str, remedy: &str) -> Problem {
        let problem = Problem::error(self.file, reason, remedy).field(self.named(name));
        let problem = problem.at(self.places.key(name, 0).or(self.places.start()));
        match self.find(name) {
            Some(value) => problem.value(value.to_string()),
            None => problem,
        }
    }

    /// Adds an error about the value of `name`.
    pub(super) fn refuse(&mut self, name: &str, reason: &str, remedy: &str) {
        let problem = self.error(name, reason, remedy);
        self.problems.push(problem);
    }

    pub(super) fn wrong<T>(
        &mut self,
        name: &str,
        node: &Node,
        reason: &str,
        remedy: &str,
    ) -> OptionValue<T> {
        let mut problem = self.error(name, reason, remedy);
        problem.value = None;
        if matches!(node, Node::Bool(_) | Node::Int(_) | Node::Float(_) | Node::Text(_)) {
            // A float has lost what the file says of it.
            let said = self.places.said(name).filter(|_| matches!(node, Node::Float(_)));
            problem = problem.value(said.map_or_else(|| node.to_string(), str::to_owned));
        }
        self.problems.push(problem);
        OptionValue::Invalid
    }

    fn find(&self, name: &str) -> Option<&'a Node> {
        let is_it = |key: &Node| matches!(key, Node::Text(text) if text == name);
        self.pairs.iter().find(|(key, _)| is_it(key)).map(|(_, value)| value)
    }

    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Up to here each whole number has a float of its own.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The whole number that a node says, or what is wrong with it.
fn integer(node: &Node) -> Result<i128, &'static str> {
    const NO_NUMBER: &str = "is not a whole number";
    let text = match node {
        Node::Int(number) => return Ok(*number),
        Node::Text(text) => text.trim(),
        Node::Null => return Err("has no value"),
        Node::List(_) => return Err("is a list, not a whole number"),
        Node::Mapping(_) => return Err("is a mapping, not a whole number"),
        // What tools that know no whole numbers make of one.
        Node::Float(number) if number.fract() == 0.0 && number.abs() <= EXACT => {
            return Ok(*number as i128);
        }
        Node::Bool(_) | Node::Float(_) => return Err(NO_NUMBER),
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return i128::from_str_radix(digits, 16).map_err(|_| NO_NUMBER);
    }
    let number = text.parse().map_err(|_| NO_NUMBER)?;
    let digits = text.trim_start_matches(['+', '-']);
    if digits.len() > 1 && digits.starts_with('0') {
        // YAML 1.1 and the original read it as octal, an operator hardly ever.
        return Err("begins with 0, which some read as octal");
    }
    Ok(number)
}

/// The most edits at which a known name is still offered for an unknown one.
const MAX_EDITS: usize = 4;

/// Names longer than this are not compared: none of ours comes near.
const MAX_COMPARED: usize = 64;

/// The name of `known` that `name` was probably meant to be.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    if name.len() > MAX_COMPARED {
        return None;
    }
    let name = name.trim().to_lowercase().replace(['-', ' ', '.'], "_");
    let nearest = known.iter().map(|k| (edits(&name, k), *k)).min()?;
    // More than a third of the letters changed is another word.
    let (edits, known) = nearest;
    (edits <= MAX_EDITS && edits * 3 <= known.len()).then_some(known)
}

/// Levenshtein's distance: insertions, deletions and replacements of characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, above) in b.iter().zip(row.windows(2)) {
            let (diagonal, above) = match above {
                [diagonal, above] => (*diagonal, *above),
                _ => continue, // windows(2) yields pairs only
            };
            left = (diagonal + usize::from(x != *y)).min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_single_edits() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("port", "port", 0),
            ("prot", "port", 2),
            ("ab", "b", 1),
            ("b", "ab", 1),
        ] {
            assert_eq!(edits(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        let known = ["server_id", "server_key_file", "port"];
        assert_eq!(nearest("sever_id", &known), Some("server_id"));
        assert_eq!(nearest("Server-ID", &known), Some("server_id"));
        assert_eq!(nearest("ports", &known), Some("port"));
        assert_eq!(nearest("key_file", &known), None);
        assert_eq!(nearest("unrelated", &known), None);
        assert_eq!(nearest(&"p".repeat(100_000), &known), None);
    }

    #[test]
    fn a_word_is_near_by_its_letters_as_well_as_by_their_number() {
        let known = ["server_id", "port", "election_timeout_upper_bound"];
        assert_eq!(nearest("sort", &known), Some("port"));
        // Half of a short name.
        assert_eq!(nearest("prot", &known), None);
        assert_eq!(nearest("serabcdid", &known), None);
        // Few of a long one, but too many.
        assert_eq!(nearest("election_timeout_upper_bqqqq", &known), Some(known[2]));
        assert_eq!(nearest("election_timeout_upper_qqqqq", &known), None);
    }

    #[test]
    fn what_is_longer_than_the_bound_is_not_compared() {
        let padded = |blanks| format!("{}port", " ".repeat(blanks));
        assert_eq!(nearest(&padded(MAX_COMPARED - 4), &["port"]), Some("port"));
        assert_eq!(nearest(&padded(MAX_COMPARED - 3), &["port"]), None);
    }

    #[test]
    fn numbers_in_quotes_are_numbers() {
        let text = |t: &str| integer(&Node::Text(t.to_owned()));
        assert_eq!(text("15"), Ok(15));
        assert_eq!(text(" -3 "), Ok(-3));
        assert_eq!(text("0"), Ok(0));
        assert_eq!(text("0x1F91"), Ok(8081));
        for bad in ["", "abc", "1.5", "1e3", "15s", "0x", "010", "1 2"] {
            assert!(text(bad).is_err(), "{bad}");
        }
        for (float, number) in [(3600.0, 3600), (3.6e6, 3_600_000), (-0.0, 0), (EXACT, 1 << 53)] {
            assert_eq!(integer(&Node::Float(float)), Ok(number));
        }
        for float in [1.5, 1e300, f64::INFINITY, f64::NAN, 2.0 * EXACT] {
            assert!(integer(&Node::Float(float)).is_err(), "{float}");
        }
        assert!(integer(&Node::Bool(true)).is_err());
    }
}
