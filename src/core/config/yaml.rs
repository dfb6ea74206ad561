//! YAML text as a small tree, and the lines on which its keys stand.
//!
//! Knows no option. Invariants: a text of any content takes time and memory in proportion to
//! its length (neither aliases nor nesting multiply them), and a key that is given twice is kept twice, so that
//! the reader can name it.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, MapAccess};
use serde::de::{SeqAccess, VariantAccess, Visitor};

/// What a tree may cost for each byte of its text: one for every node and one for every byte of a text in
/// it. Without aliases it never costs two.
const COST_OF_BYTE: usize = 4;

/// What a tree may cost besides, so that a short text may have aliases too.
const COST_OF_ANY: usize = 4_096;

/// The longest text, in bytes. A list of a thousand servers needs a tenth of it.
pub const MAX_TEXT: usize = 1 << 20;

/// The most opening brackets and braces in a text, wherever they stand. The scanner looks at all
/// that are open for each token, so a mebibyte of them takes it half a minute; this many take
/// milliseconds. A list of [`super::MAX_MEMBERS`] servers in braces needs a tenth.
const MAX_BRACKETS: usize = 10_000;

/// The most tag directives in a text, for the same reason: each is compared with all before it.
const MAX_TAG_DIRECTIVES: usize = 100;

/// One node of a YAML document.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::core) enum Node {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Mapping(Vec<(Node, Node)>),
}

impl Node {
    /// What kind of thing it is, with an article.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Node::Null => "nothing",
            Node::Bool(_) => "a yes or no",
            Node::Int(_) | Node::Float(_) => "a number",
            Node::Text(_) => "plain text",
            Node::List(_) => "a list",
            Node::Mapping(_) => "a mapping",
        }
    }

    /// The value of the first key of that name, if this is a mapping that has one.
    pub(in crate::core) fn field(&self, name: &str) -> Option<&Node> {
        let is_name = |(key, _): &&(Node, Node)| matches!(key, Node::Text(text) if text == name);
        self.pairs().iter().find(is_name).map(|(_, value)| value)
    }

    /// The keys and values of a mapping; none of all else.
    pub(in crate::core) fn pairs(&self) -> &[(Node, Node)] {
        match self {
            Node::Mapping(pairs) => pairs,
            _ => &[],
        }
    }

    /// The entries of a list; none of all else.
    pub(in crate::core) fn entries(&self) -> &[Node] {
        match self {
            Node::List(entries) => entries,
            _ => &[],
        }
    }

    /// The text of what is one word or number; `None` of what holds others. Nothing is no text.
    pub(in crate::core) fn scalar(&self) -> Option<String> {
        match self {
            Node::Null => Some(String::new()),
            Node::Bool(value) => Some(value.to_string()),
            Node::Int(value) => Some(value.to_string()),
            Node::Float(value) => Some(value.to_string()),
            Node::Text(text) => Some(text.clone()),
            Node::List(_) | Node::Mapping(_) => None,
        }
    }
}

/// As the operator wrote it, nearly: text in quotes, lists and mappings by their kind only.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Bool(b) => write!(f, "{b}"),
            Node::Int(n) => write!(f, "{n}"),
            Node::Float(n) => write!(f, "{n}"),
            Node::Text(t) => write!(f, "\"{t}\""),
            Node::Null | Node::List(_) | Node::Mapping(_) => f.write_str(self.kind()),
        }
    }
}

/// Why a text is no YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::core) struct NotYaml {
    pub(super) line: Option<usize>,
    pub(super) reason: String,
}

/// Reads the first document of `text`, as the original's parser does, and tells whether another
/// one follows. An empty text is [`Node::Null`].
pub(in crate::core) fn parse(text: &str) -> Result<(Node, bool), NotYaml> {
    let mut documents = Documents::of(text)?;
    let Some(first) = documents.next() else { return Ok((Node::Null, false)) };
    Ok((first?, documents.rest.next().is_some()))
}

/// Reads all documents of `text`.
pub(in crate::core) fn parse_all(text: &str) -> Result<Vec<Node>, NotYaml> {
    Documents::of(text)?.collect()
}

/// The documents of a text, which pay from one allowance.
struct Documents<'a> {
    rest: serde_yaml::Deserializer<'a>,
    left: Cell<usize>,
}

impl<'a> Documents<'a> {
    fn of(text: &'a str) -> Result<Documents<'a>, NotYaml> {
        check_size(text)?;
        // What editors of Windows put before UTF-8 belongs to no key.
        let text = text.trim_start_matches('\u{feff}');
        let rest = serde_yaml::Deserializer::from_str(text);
        Ok(Documents { rest, left: Cell::new(COST_OF_ANY + COST_OF_BYTE * text.len()) })
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Node, NotYaml>;

    fn next(&mut self) -> Option<Self::Item> {
        let document = self.rest.next()?;
        Some((Grow { left: &self.left }).deserialize(document).map_err(|e| NotYaml {
            line: e.location().map(|l| l.line()),
            reason: format!("is no YAML: {e}"),
        }))
    }
}

/// The first character of a text that looks like a blank, or like nothing, and is neither to YAML; and its
/// line.
pub(super) fn odd_blank(text: &str) -> Option<(usize, char)> {
    let text = text.trim_start_matches('\u{feff}');
    let is_odd = |c: char| {
        matches!(
            c,
            '\u{a0}' | '\u{ad}' | '\u{2007}' | '\u{200b}'
                ..='\u{200f}' | '\u{202f}' | '\u{2060}' | '\u{3000}' | '\u{feff}'
        )
    };
    let content = (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with('#'));
    content
        .into_iter()
        .find_map(|(number, line)| Some((number, line.chars().find(|c| is_odd(*c))?)))
}

/// Refuses what would cost too much.
fn check_size(text: &str) -> Result<(), NotYaml> {
    if text.len() > MAX_TEXT {
        let reason = format!("is larger than {MAX_TEXT} bytes");
        return Err(NotYaml { line: None, reason });
    }
    let brackets = text.bytes().filter(|b| matches!(b, b'[' | b'{')).count();
    let directives = text.matches("%TAG").count();
    for (count, most, what) in [
        (brackets, MAX_BRACKETS, "opening brackets"),
        (directives, MAX_TAG_DIRECTIVES, "tag directives"),
    ] {
        if count > most {
            let reason = format!("has {count} {what}, more than {most}");
            return Err(NotYaml { line: None, reason });
        }
    }
    Ok(())
}

/// Builds a [`Node`], paying for it from what is left of the document's allowance.
#[derive(Clone, Copy)]
struct Grow<'a> {
    left: &'a Cell<usize>,
}

impl Grow<'_> {
    fn pay<E: de::Error>(self, cost: usize) -> Result<(), E> {
        match self.left.get().checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(E::custom("aliases make it too large")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Grow<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.pay(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Grow<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    /// What serde_yaml says of a text without any document.
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Ok(Node::Int(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        self.pay(value.len())?;
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry_seed(self, self)? {
            pairs.push(pair);
        }
        Ok(Node::Mapping(pairs))
    }

    /// A tag (`!name value`) means nothing here; the value counts.
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Node, A::Error> {
        let (Ignored, content) = access.variant::<Ignored>()?;
        content.newtype_variant_seed(self)
    }
}

/// Reads a tag's name and drops it.
struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ignored, D::Error> {
        String::deserialize(deserializer).map(|_| Ignored)
    }
}

/// Where the keys of one mapping, written one to a line, stand in a text. Best effort, because
/// serde_yaml does not tell: what is written in another way has no line.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The line on which the mapping begins.
    start: Option<usize>,
    /// Each line's number and what it says after indentation and dash.
    lines: Vec<(usize, String)>,
}

impl Places {
    /// For a document that is a mapping.
    pub(super) fn of_mapping(text: &str) -> Places {
        let content = content_lines(text);
        let outer = content.first().map_or(0, |l| l.indent);
        let lines = content.iter().filter(|l| l.indent == outer);
        Places {
            start: content.first().map(|l| l.number),
            lines: lines.map(|l| (l.number, l.says.to_owned())).collect(),
        }
    }

    /// For a document that is a list of `count` mappings, one for each.
    pub(super) fn of_list(text: &str, count: usize) -> Vec<Places> {
        let content = content_lines(text);
        let outer = content.first().map_or(0, |l| l.indent);
        let mut all: Vec<Places> = Vec::new();
        for line in &content {
            let after_dash = match line.says.strip_prefix('-') {
                Some(rest)
                    if line.indent == outer && (rest.is_empty() || rest.starts_with(' ')) =>
                {
                    Some(rest.trim_start())
                }
                _ => None,
            };
            if after_dash.is_some() {
                all.push(Places { start: Some(line.number), lines: Vec::new() });
            }
            if let Some(places) = all.last_mut() {
                places.lines.push((line.number, after_dash.unwrap_or(line.says).to_owned()));
            }
        }
        if all.len() != count {
            // Written in a way that this does not understand: better no line than a wrong one.
            return vec![Places { start: None, lines: Vec::new() }; count];
        }
        all
    }

    /// The line of the `nth` (from 0) `key`.
    pub(super) fn key(&self, key: &str, nth: usize) -> Option<usize> {
        let mut found = self.lines.iter().filter(|(_, says)| is_key(says, key));
        found.nth(nth).map(|(number, _)| *number)
    }

    /// What stands behind the first `key` and its colon, as it is written.
    pub(super) fn said(&self, key: &str) -> Option<&str> {
        let (_, says) = self.lines.iter().find(|(_, says)| is_key(says, key))?;
        let value = says.split_once(':')?.1.split(" #").next()?.trim();
        (!value.is_empty()).then_some(value)
    }

    /// The line on which the mapping begins.
    pub(super) fn start(&self) -> Option<usize> {
        self.start
    }
}

struct ContentLine<'a> {
    number: usize,
    indent: usize,
    says: &'a str,
}

/// The lines of the first document that are neither blank nor comments nor markers.
fn content_lines(text: &str) -> Vec<ContentLine<'_>> {
    let text = text.trim_start_matches('\u{feff}');
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let says = line.trim();
        if says.is_empty() || says.starts_with('#') || line.starts_with('%') {
            continue;
        }
        if line.starts_with("---") || line.starts_with("...") {
            if lines.is_empty() {
                continue;
            }
            break;
        }
        let indent = line.len() - line.trim_start().len();
        lines.push(ContentLine { number: index + 1, indent, says });
    }
    lines
}

/// Whether a line begins with `key`, in quotes or not, and a colon.
fn is_key(says: &str, key: &str) -> bool {
    let rest = match says.chars().next() {
        Some(quote @ ('"' | '\'')) => says
            .strip_prefix(quote)
            .and_then(|s| s.strip_prefix(key))
            .and_then(|s| s.strip_prefix(quote)),
        _ => says.strip_prefix(key),
    };
    rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(t: &str) -> Node {
        Node::Text(t.to_owned())
    }

    #[test]
    fn scalars_keep_their_kinds() {
        let (node, more) = parse("[~, true, 0x1F91, -3, 1.5, '15', abc, 010]").unwrap();
        assert!(!more);
        let expected = vec![
            Node::Null,
            Node::Bool(true),
            Node::Int(8081),
            Node::Int(-3),
            Node::Float(1.5),
            text("15"),
            text("abc"),
            text("010"),
        ];
        assert_eq!(node, Node::List(expected));
    }

    #[test]
    fn a_key_that_is_given_twice_is_kept_twice() {
        let (node, _) = parse("a: 1\na: 2\n").unwrap();
        let pairs = vec![(text("a"), Node::Int(1)), (text("a"), Node::Int(2))];
        assert_eq!(node, Node::Mapping(pairs));
    }

    #[test]
    fn nothing_but_comments_is_nothing() {
        for empty in ["", "\n\n", "# only a comment\n", "---\n", "~"] {
            assert_eq!(parse(empty), Ok((Node::Null, false)), "{empty:?}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_key() {
        let pairs = Node::Mapping(vec![(text("a"), Node::Int(1))]);
        for begin in ["", "---\n", "# first\n", "%YAML 1.2\n---\n", "\r\n"] {
            assert_eq!(parse(&format!("\u{feff}{begin}a: 1\n")), Ok((pairs.clone(), false)));
        }
        assert_eq!(parse("\u{feff}"), Ok((Node::Null, false)));
        assert_eq!(parse("\u{feff}- x"), Ok((Node::List(vec![text("x")]), false)));
    }

    #[test]
    fn the_first_document_counts() {
        assert_eq!(parse("---\na\n...\n"), Ok((text("a"), false)));
        assert_eq!(parse("a\n---\nb\n"), Ok((text("a"), true)));
    }

    #[test]
    fn a_tag_is_dropped() {
        assert_eq!(parse("!port 80"), Ok((Node::Int(80), false)));
    }

    #[test]
    fn an_error_names_its_line() {
        let error = parse("a: 1\nb: [1\nc: 2\n").unwrap_err();
        assert!(error.line.is_some_and(|l| l >= 2), "{error:?}");
        assert!(error.reason.starts_with("is no YAML: "), "{error:?}");
    }

    #[test]
    fn aliases_cannot_multiply_a_text() {
        let mut bomb = format!("a0: &a0 {}\n", "x".repeat(10_000));
        bomb += &format!("a1: [{}]\n", vec!["*a0"; 1000].join(", "));
        let error = parse(&bomb).unwrap_err();
        assert!(error.reason.contains("aliases make it too large"), "{error:?}");

        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..20 {
            bomb += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
        }
        assert!(parse(&bomb).is_err());
    }

    #[test]
    fn aliases_may_take_a_few_times_as_much_as_the_text() {
        // A mapping, two keys, a list; the anchored text and each alias for one node and its bytes.
        let once = 1 + 2 * 3 + 1;
        let each = 1 + 1_000;
        let text = |aliases| {
            let list = vec!["*a0"; aliases].join(", ");
            format!("a0: &a0 {}\na1: [{list}]\n", "x".repeat(1_000))
        };
        let is_within = |aliases: &usize| {
            once + each * (1 + aliases) <= COST_OF_ANY + COST_OF_BYTE * text(*aliases).len()
        };
        let aliases = (1..100).take_while(is_within).last().unwrap();
        assert!(aliases > 5);
        assert!(parse(&text(aliases)).is_ok());
        assert!(parse(&text(aliases + 1)).is_err());
    }

    #[test]
    fn what_aliases_cost_goes_by_the_length_of_the_text() {
        // Short, and a million nodes when each alias is taken for what it stands for.
        let anchored = format!("&a [{}]", vec!["0"; 1_000].join(","));
        let aliases = vec!["*a"; 1_000].join(",");
        let error = parse(&format!("a: {anchored}\nb: [{aliases}]\n")).unwrap_err();
        assert!(error.reason.contains("aliases make it too large"), "{error:?}");
    }

    #[test]
    fn no_text_without_aliases_is_too_large() {
        // The dearest there are: each of these few bytes is several nodes.
        for dear in ["[:,:,:", "{a,b,c", "[a:,b:,c:", "{:,:,:", "[?,?,?", "- - - -"] {
            let (_, again) = dear.split_at(1);
            let text = format!("{dear}{}", format!(",{again}").repeat(9_000));
            let closed = match dear.chars().next() {
                Some('[') => text + "]",
                Some('{') => text + "}",
                _ => dear.repeat(9_000),
            };
            let reason = parse(&closed).err().map(|e| e.reason).unwrap_or_default();
            assert!(!reason.contains("aliases"), "{dear}: {reason}");
        }
    }

    #[test]
    fn nesting_and_length_are_bounded() {
        assert!(parse(&"[".repeat(MAX_BRACKETS)).unwrap_err().reason.starts_with("is no YAML"));
        assert!(parse(&"[".repeat(MAX_BRACKETS + 1)).unwrap_err().reason.contains("10001 opening"));
        let directives = "%TAG !a! b:\n".repeat(MAX_TAG_DIRECTIVES + 1);
        assert!(parse(&directives).unwrap_err().reason.contains("101 tag directives"));
        let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
        assert!(parse(&deep).unwrap_err().reason.contains("recursion"));
        assert!(parse(&"x".repeat(MAX_TEXT + 1)).unwrap_err().reason.contains("larger"));
        assert!(parse(&"x".repeat(MAX_TEXT)).is_ok());
        assert!(parse(&"- \n".repeat(MAX_TEXT / 3)).is_ok(), "the allowance covers every text");
    }

    #[test]
    fn keys_are_found_on_their_lines() {
        let conf = "# port: 1\n---\nserver_id: 1\n\"port\" : 80\nnested:\n  port: 3\nport: 81\n";
        let places = Places::of_mapping(conf);
        assert_eq!(places.key("server_id", 0), Some(3));
        assert_eq!(places.key("port", 0), Some(4));
        assert_eq!(places.key("port", 1), Some(7));
        assert_eq!(places.key("port", 2), None);
        assert_eq!(places.key("server", 0), None);
    }

    #[test]
    fn a_value_is_told_as_it_is_written() {
        let places = Places::of_mapping("a: 1_0 # ten\nb:\nc: '#x'\nd: 0x1F\n");
        let said = |key| places.said(key);
        assert_eq!((said("a"), said("b"), said("e")), (Some("1_0"), None, None));
        assert_eq!((said("c"), said("d")), (Some("'#x'"), Some("0x1F")));
    }

    #[test]
    fn only_the_first_document_has_lines_and_only_its_content() {
        let conf = "\u{feff}%YAML 1.2\n---\nport: 1\nlast: 2\n";
        for end in ["", "---\nport: 2\n", "...\nport: 2\n"] {
            let places = Places::of_mapping(&format!("{conf}{end}"));
            assert_eq!(places.start(), Some(3), "{end:?}");
            assert_eq!(places.key("port", 0), Some(3), "{end:?}");
            assert_eq!(places.key("port", 1), None, "{end:?}");
        }
    }

    #[test]
    fn a_dash_begins_an_entry_only_where_entries_begin() {
        let list = "- port: 1\n  names:\n    - a\n- port: 2\n-port: 3\n";
        let places = Places::of_list(list, 2);
        let starts: Vec<_> = places.iter().map(Places::start).collect();
        assert_eq!(starts, [Some(1), Some(4)]);
    }

    #[test]
    fn entries_are_found_on_their_lines() {
        let list = "# servers\n- server_id: 1\n  port: 80\n\n-\n  port: 81\n- {port: 82}\n";
        let places = Places::of_list(list, 3);
        let starts: Vec<_> = places.iter().map(Places::start).collect();
        assert_eq!(starts, [Some(2), Some(5), Some(7)]);
        assert_eq!(places[0].key("port", 0), Some(3));
        assert_eq!(places[1].key("port", 0), Some(6));
        assert_eq!(places[2].key("port", 0), None);
        assert_eq!(Places::of_list("[{port: 1}, {port: 2}]", 2)[1].start(), None);
    }

    #[test]
    fn a_character_that_looks_like_a_blank_is_found_with_its_line() {
        assert_eq!(odd_blank("a: 1\nb:\u{a0}2\nc:\u{200b}3\n"), Some((2, '\u{a0}')));
        for odd in ['\u{ad}', '\u{200b}', '\u{200d}', '\u{200f}', '\u{3000}', '\u{feff}'] {
            assert_eq!(odd_blank(&format!("a{odd}: 1")), Some((1, odd)));
        }
        // One at the start marks the encoding, and comments are anybody's.
        assert_eq!(odd_blank("\u{feff}a: 1\n  # b\u{a0}\n"), None);
    }
}
