//! Which plugins Traffic Server loads, and with what: plugin.config, and plugin.yaml, which goes before it
//! from 11 on.
//!
//! Invariants: entries stand in the order in which they are loaded; one that is not enabled is told as
//! that.

use super::Lines;
use crate::core::config::yaml::{parse, Node};
use crate::core::findings::integer;

/// The plugin's file, at the end of its path.
const PLUGIN: &str = "stek_share.so";

/// The same as cargo names it.
const BUILT: &str = "libstek_share.so";

/// An entry that loads this plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loading {
    /// The line, from 1, where it is certain.
    pub line: Option<usize>,
    /// What the plugin is given.
    pub arguments: Vec<String>,
    /// Whether the host loads it.
    pub is_enabled: bool,
    /// Whether the configuration stands in the entry itself; the host hands over a file that it makes.
    pub is_inline: bool,
}

/// The entries of a plugin.config that load this plugin.
pub fn of_config(text: &str) -> Vec<Loading> {
    let lines = text.lines().enumerate().filter_map(|(index, line)| {
        let mut words = words(line).into_iter();
        is_ours(words.next()?).then(|| Loading {
            line: Some(index + 1),
            arguments: words.map(str::to_owned).collect(),
            is_enabled: true,
            is_inline: false,
        })
    });
    lines.collect()
}

/// The entries of a plugin.yaml that load this plugin; `None` if it is no such file, with which the
/// host does not start.
pub fn of_yaml(text: &str) -> Option<Vec<Loading>> {
    let (document, _) = parse(text).ok()?;
    let entries = document.field("plugins")?.entries();
    let mut lines = Lines::of(text);
    let mut found = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let path = entry.field("path").and_then(Node::scalar);
        if !path.is_some_and(|path| is_ours(&path)) {
            continue;
        }
        let params = entry.field("params").map(Node::entries).unwrap_or_default();
        let line = lines.line("path", at, entries.len());
        let order = entry.field("load_order").and_then(Node::scalar);
        let loading = Loading {
            line: line.and_then(|line| usize::try_from(line).ok()),
            arguments: params.iter().filter_map(Node::scalar).collect(),
            is_enabled: entry.field("enabled") != Some(&Node::Bool(false)),
            is_inline: entry.field("config").is_some(),
        };
        found.push((order.map_or(i64::MAX, |order| integer(&order)), loading));
    }
    found.sort_by_key(|(order, _)| *order);
    Some(found.into_iter().map(|(_, loading)| loading).collect())
}

fn is_ours(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name == PLUGIN || name == BUILT
}

/// The words of a line as Traffic Server takes them: between blanks or double quotes, up to a `#` outside of
/// quotes.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (word, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest
                .split_at(rest.find(|c: char| c.is_whitespace() || c == '#').unwrap_or(rest.len())),
        };
        words.push(word);
        rest = behind.trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugins_line_is_found() {
        let text = "# stek_share.so old\nxdebug.so\n  /opt/m/stek_share.so a.yaml # here\n\
                    my_stek_share.so x\nstek_share.so\n\"stek_share.so\" \"b c.yaml\" d#e\n\
                    stek_share.so \"a # b\" \"\" 'c\n";
        let found: Vec<_> =
            of_config(text).into_iter().map(|entry| (entry.line, entry.arguments)).collect();
        let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = [
            (Some(3), owned(&["a.yaml"])),
            (Some(5), vec![]),
            (Some(6), owned(&["b c.yaml", "d"])),
            (Some(7), owned(&["a # b", "", "'c"])),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn entries_of_the_newer_file_are_found_in_the_order_of_their_loading() {
        let text = "plugins:\n  - path: stats_over_http.so\n  - path: stek_share.so\n    params:\n      \
                    - a.yaml\n    enabled: false\n  - path: \"/opt/m/stek_share.so\"\n    load_order: 2\n    \
                    params: [b c.yaml, 7]\n  - {path: stek_share.so, load_order: 1, config: {server_id: 1}}\n";
        let found = of_yaml(text).unwrap_or_default();
        let seen: Vec<_> = found
            .iter()
            .map(|e| (e.line, e.arguments.join("|"), e.is_enabled, e.is_inline))
            .collect();
        let expected = [
            (Some(10), String::new(), true, true),
            (Some(7), "b c.yaml|7".to_owned(), true, false),
            (Some(3), "a.yaml".to_owned(), false, false),
        ];
        assert_eq!(seen, expected);
        assert_eq!(of_yaml("plugins: []"), Some(Vec::new()));
        for none in ["", "a: 1", "plugins: [", "- path: stek_share.so"] {
            assert_eq!(of_yaml(none), None, "{none}");
        }
    }
}
