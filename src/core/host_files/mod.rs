//! What Traffic Server's own files say, as far as it concerns session tickets: texts in, settings and
//! [`Finding`]s out.
//!
//! | module | reads |
//! |---|---|
//! | [`records`] | records.config, records.yaml, and the environment that goes before both |
//! | [`multicert`] | ssl_multicert.config and ssl_multicert.yaml |
//! | [`sni`] | sni.yaml |
//! | [`plugins`] | plugin.config and plugin.yaml |
//!
//! The plugin says by this what it meets, and `stekctl` what it would meet; so both say the same. Which
//! file counts is for them. Nothing in storage.yaml and its like concerns tickets. Invariants: whether
//! the rest of a file is right is for the host to say; one that cannot be read has no settings; a line
//! is a number only where it is certain.
//!
//! [`Finding`]: super::findings::Finding

pub mod multicert;
pub mod plugins;
pub mod records;
pub mod sni;

/// The lines of a YAML text on which `key` stands before a colon, in quotes or not, in block or flow
/// style, once for each time. They are those of the keys in the tree only if there are as many.
fn key_lines(text: &str, key: &str) -> Vec<u32> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = if line.trim_start().starts_with('#') { "" } else { line };
        let said = line.split(" #").next().unwrap_or_default();
        for (at, _) in said.match_indices(key) {
            let before = said.get(..at).unwrap_or_default();
            let after = said.get(at + key.len()..).unwrap_or_default();
            let after = after.strip_prefix(['"', '\'']).unwrap_or(after).trim_start();
            let begins = before.is_empty() || before.ends_with([' ', '{', ',', '"', '\'', '\t']);
            if begins && after.starts_with(':') {
                lines.push(number);
            }
        }
    }
    lines
}

/// Keys that are looked for in a text: each costs a look through the whole of it.
const MAX_KEYS: usize = 1000;

/// Gives each of the keys found in a tree, in their order, the line on which it stands.
struct Lines<'a> {
    text: &'a str,
    found: Vec<(String, Vec<u32>)>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Lines<'a> {
        Lines { text, found: Vec::new() }
    }

    /// The line of the `nth` (from 0) of `count` times `key`; none is known where there are too many
    /// different ones.
    fn line(&mut self, key: &str, nth: usize, count: usize) -> Option<u32> {
        if self.found.len() < MAX_KEYS && !self.found.iter().any(|(known, _)| known == key) {
            self.found.push((key.to_owned(), key_lines(self.text, key)));
        }
        let (_, lines) = self.found.iter().find(|(known, _)| known == key)?;
        (lines.len() == count).then(|| lines.get(nth).copied()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_block_and_flow_style() {
        let text = "# a: 1\na: 1\nb: {a: 2, 'a' : 3}\nxa: 4 # a: 5\n- \"a\": 6\n";
        assert_eq!(key_lines(text, "a"), [2, 3, 3, 5]);
        let mut lines = Lines::of(text);
        assert_eq!((lines.line("a", 3, 4), lines.line("a", 0, 3)), (Some(5), None));
    }

    #[test]
    fn more_different_keys_than_that_have_no_lines() {
        let text: String = (0..=MAX_KEYS).map(|n| format!("k{n}: 1\n")).collect();
        let mut lines = Lines::of(&text);
        let found = (0..=MAX_KEYS).filter(|n| lines.line(&format!("k{n}"), 0, 1).is_some());
        assert_eq!(found.count(), MAX_KEYS);
        assert_eq!(lines.line("k0", 0, 1), Some(1));
        assert_eq!(lines.found.len(), MAX_KEYS, "each once");
    }
}
