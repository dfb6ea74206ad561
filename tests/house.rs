//! The shape of the code: no module imports, through however many others, one that imports it; a
//! file is short or says why not; and what the parts of a node share stays small.
//!
//! Modules of tests are left out, since they may look at anything. Reads the text of the sources,
//! so that a circle is told by the names of its files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The folders whose files belong to one crate each.
const CRATES: [&str; 4] = ["src", "fuzz/src", "stekctl/src", "tests/testkit/src"];

/// The most lines of a file without its tests, unless its head says why it has more.
const MAX_LINES: usize = 600;
const REASON: &str = "//! Long because: ";

/// The most fields of what the parts of a node share.
const MAX_SHARED: usize = 11;

/// The most functions that are handed all of it.
const MAX_TAKERS: usize = 10;

/// A module's path from the root of its crate.
type Module = Vec<String>;

/// The modules of one crate, each with its file and its text without comments, strings and tests.
struct Crate {
    modules: BTreeMap<Module, (PathBuf, String)>,
}

impl Crate {
    fn read(folder: &str) -> Crate {
        let dir = Path::new(ROOT).join(folder);
        let root = ["lib.rs", "main.rs"].map(|name| dir.join(name));
        let root = root.into_iter().find(|path| path.exists()).unwrap();
        let mut todo = vec![(Module::new(), root)];
        let mut modules = BTreeMap::new();
        while let Some((module, path)) = todo.pop() {
            let text = without_tests(&code(&fs::read_to_string(&path).unwrap()));
            let own = match path.file_stem().unwrap().to_str().unwrap() {
                "lib" | "main" | "mod" => path.parent().unwrap().to_owned(),
                stem => path.with_file_name(stem),
            };
            let words = tokens(&text);
            for three in words.windows(3).filter(|three| three[0] == "mod" && three[2] == ";") {
                let name = &three[1];
                let files = [own.join(format!("{name}.rs")), own.join(name).join("mod.rs")];
                let file = files.into_iter().find(|file| file.exists());
                let child = [module.clone(), vec![name.clone()]].concat();
                todo.push((child, file.unwrap_or_else(|| panic!("{path:?}: mod {name}"))));
            }
            modules.insert(module, (path, text));
        }
        Crate { modules }
    }

    /// The modules that each one names in its code.
    fn uses(&self) -> BTreeMap<&Module, BTreeSet<&Module>> {
        let uses = self.modules.iter().map(|(module, (_, text))| {
            // What a module hands on it need not use itself.
            let own: String = text
                .split("pub use ")
                .enumerate()
                .map(|(n, part)| match n {
                    0 => part,
                    _ => part.split_once(';').unwrap().1,
                })
                .collect();
            let named = paths(&tokens(&own)).into_iter().filter_map(|p| self.resolve(module, &p));
            (module, named.filter(|named| *named != module).collect())
        });
        uses.collect()
    }

    /// The module that a path leads into, if it is one of this crate.
    fn resolve(&self, from: &Module, path: &[String]) -> Option<&Module> {
        let mut at = from.clone();
        let mut rest = path;
        while let Some((first, more)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "super" => _ = at.pop(),
                "self" => {}
                _ => break,
            }
            rest = more;
        }
        let is_child = |name: &String| {
            self.modules.contains_key(&[from.as_slice(), std::slice::from_ref(name)].concat())
        };
        if rest.len() == path.len() && !path.first().is_some_and(is_child) {
            return None;
        }
        for name in rest {
            at.push(name.clone());
            if !self.modules.contains_key(&at) {
                at.pop();
                return self.exported(&at, name).or(self.modules.get_key_value(&at).map(|m| m.0));
            }
        }
        self.modules.get_key_value(&at).map(|(module, _)| module)
    }

    /// The module from which another one hands a name on.
    fn exported(&self, by: &Module, name: &str) -> Option<&Module> {
        let exports = self.modules[by].1.split("\npub use ").skip(1);
        let paths = exports.flat_map(|rest| paths(&tokens(rest.split(';').next().unwrap())));
        let path = paths.into_iter().find(|path| path.last().is_some_and(|last| last == name))?;
        self.resolve(by, &path)
    }
}

/// A source without comments, and with nothing in its strings.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut at) = (String::new(), 0);
    let starts =
        |at: usize, with: &str| with.chars().eq(chars[at..].iter().copied().take(with.len()));
    let find = |from: usize, end: &str| {
        (from..chars.len()).find(|at| starts(*at, end)).map_or(chars.len(), |at| at + end.len())
    };
    while at < chars.len() {
        let raw = chars[at] == 'r' && !out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
        if starts(at, "//") {
            at = find(at, "\n") - 1;
        } else if starts(at, "/*") {
            at = find(at, "*/");
        } else if raw && chars.get(at + 1 + hashes) == Some(&'"') {
            at = find(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes)));
            out.push_str("\"\"");
        } else if chars[at] == '"' {
            at += 1;
            while chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
            out.push_str("\"\"");
        } else if starts(at, "'\\") {
            at = find(at + 3, "'");
        } else if chars[at] == '\'' && chars.get(at + 2) == Some(&'\'') {
            at += 3;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// Code without the items that are compiled for tests only.
fn without_tests(code: &str) -> String {
    let (mut out, mut rest) = (String::new(), code);
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        out.push_str(before);
        let mut depth = 0;
        let ends = |c: char| {
            match c {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(c, ';' | '}')
        };
        rest = after.find(ends).map_or("", |end| &after[end + 1..]);
    }
    out + rest
}

/// Words and signs; `::` is one.
fn tokens(code: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found: Vec<String> = Vec::new();
    let mut last = ' ';
    for c in code.chars() {
        match found.last_mut() {
            Some(word) if is_word(last) && is_word(c) => word.push(c),
            Some(colon) if colon == ":" && last == ':' && c == ':' => colon.push(c),
            _ if c.is_whitespace() => {}
            _ => found.push(c.to_string()),
        }
        last = c;
    }
    found
}

/// All paths that are written in the code, those of `use` spelled out one by one.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let (mut at, mut depth, mut inner) = (0, 0, Vec::new());
    while at < tokens.len() {
        match tokens[at].as_str() {
            // Of a module that is written here, `super` is the file itself.
            "mod" if tokens.get(at + 2).is_some_and(|next| next == "{") => inner.push(depth),
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inner.last() == Some(&depth) {
                    inner.pop();
                }
            }
            _ => {}
        }
        if tokens[at] == "pub" && tokens.get(at + 1).is_some_and(|next| next == "(") {
            // Who may see an item is no import.
            at += tokens[at..].iter().take_while(|token| *token != ")").count();
            continue;
        }
        let before = at.checked_sub(1).map(|before| tokens[before].as_str());
        if is_name(&tokens[at]) && !matches!(before, Some("::" | "mod")) {
            let known = found.len();
            at = tree(tokens, at, &[], &mut found);
            for path in &mut found[known..] {
                let up = path.iter().take_while(|name| *name == "super").count();
                path.drain(..up.min(inner.len()));
            }
        } else {
            at += 1
        }
    }
    found
}

fn is_name(token: &str) -> bool {
    token.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// The paths of one tree of names that begins at `at`; where it ends.
fn tree(tokens: &[String], at: usize, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let (mut path, mut at) = (before.to_vec(), at);
    while at < tokens.len() && is_name(&tokens[at]) {
        path.push(tokens[at].clone());
        at += 1;
        if tokens.get(at).is_none_or(|next| next != "::") {
            break;
        }
        at += 1;
        if tokens.get(at).is_some_and(|next| next == "{") {
            at += 1;
            while at < tokens.len() && tokens[at] != "}" {
                at = if is_name(&tokens[at]) { tree(tokens, at, &path, found) } else { at + 1 };
            }
            return at + 1;
        }
    }
    found.push(path);
    at
}

/// The groups of modules each of which leads to all others of its group.
fn circles<'a>(
    uses: &BTreeMap<&'a Module, BTreeSet<&'a Module>>,
) -> BTreeSet<BTreeSet<&'a Module>> {
    let reached = |from: &'a Module| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(module) = todo.pop() {
            todo.extend(uses[module].iter().filter(|next| seen.insert(**next)));
        }
        seen
    };
    let reach: BTreeMap<_, _> = uses.keys().map(|module| (*module, reached(module))).collect();
    let in_circle = reach.iter().filter(|(module, seen)| seen.contains(*module));
    let group = |(module, seen): (&&'a Module, &BTreeSet<&'a Module>)| {
        seen.iter().copied().filter(|other| reach[other].contains(module)).collect()
    };
    in_circle.map(group).collect()
}

/// Each circle, with the arrows inside it.
fn told(uses: &BTreeMap<&Module, BTreeSet<&Module>>) -> Vec<String> {
    let name = |module: &Module| {
        if module.is_empty() {
            "the crate's root".to_owned()
        } else {
            module.join("::")
        }
    };
    let tell = |circle: BTreeSet<&Module>| {
        let arrows = circle.iter().map(|from| {
            let to: Vec<String> = uses[from].intersection(&circle).map(|to| name(to)).collect();
            format!("{} -> {}", name(from), to.join(", "))
        });
        arrows.collect::<Vec<_>>().join("\n  ")
    };
    circles(uses).into_iter().map(tell).collect()
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    for folder in CRATES {
        let read = Crate::read(folder);
        let found = told(&read.uses());
        assert!(
            found.is_empty(),
            "circles of imports in {folder}:\n  {}",
            found.join("\n and\n  ")
        );
    }
}

#[test]
fn a_circle_is_seen_through_each_form_of_import() {
    let read = |texts: &[(&str, &str)]| {
        let module = |(name, text): &(&str, &str)| {
            let path: Module = name.split("::").filter(|n| !n.is_empty()).map(Into::into).collect();
            (path, (PathBuf::new(), without_tests(&code(text))))
        };
        Crate { modules: texts.iter().map(module).collect() }
    };
    let of = |text: &str| {
        let house = [("", ""), ("a", "use b::c;"), ("a::b", "use super::c::D;"), ("a::c", text)];
        told(&read(&house).uses()).len()
    };
    assert_eq!(of("use std::fmt;"), 0);
    for circle in [
        "use super::b::D;",
        "use super::{d, b::{self, E}};",
        "use crate::{x::Y, a::b};",
        "fn f() { super::b::g(r#\"//\"#) }",
        "const C: char = '\"'; type T = Vec<crate::a::b::T>;",
        "#[cfg(test)]\nmod tests { fn f() {} }\nuse super::b::D;",
        "mod inner { use super::super::b::D; }",
    ] {
        assert_eq!(of(circle), 1, "{circle}");
    }
    for none in [
        "// use super::b::D;",
        "/* super::b::D */ const T: &str = \"super::b::D\";",
        "#[cfg(test)]\nmod tests { use super::super::b::D; }",
        "#[cfg(test)]\nuse super::b::D;",
        "use other::b::D;",
        "pub(in super::b) struct S;",
        "struct B; mod inner { use super::B; }",
    ] {
        assert_eq!(of(none), 0, "{none}");
    }
    let through_three =
        [("", ""), ("a", "use crate::b;"), ("b", "use crate::c;"), ("c", "use crate::a;")];
    let words = told(&read(&through_three).uses());
    assert_eq!(words, ["a -> b\n  b -> c\n  c -> a"]);
}

/// A file's text before its module of tests, whatever other attributes that has.
fn before_tests(text: &str) -> &str {
    let begins_module = |rest: &str| {
        let mut lines = rest.lines().skip(1).skip_while(|line| line.starts_with("#["));
        lines.next().is_some_and(|line| line.starts_with("mod "))
    };
    let mut marks = text.match_indices("#[cfg(test)]\n").map(|(at, _)| at);
    marks.find(|at| begins_module(&text[*at..])).map_or(text, |at| &text[..at])
}

#[test]
fn a_file_is_short_or_says_why_not() {
    let with_lint = "one\n#[cfg(test)]\nuse b;\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n}\n";
    assert_eq!(before_tests(with_lint), "one\n#[cfg(test)]\nuse b;\n");
    let mut long = Vec::new();
    for (path, _) in CRATES.iter().flat_map(|folder| Crate::read(folder).modules.into_values()) {
        let text = fs::read_to_string(&path).unwrap();
        let lines = before_tests(&text).lines().count();
        let head = text.lines().take_while(|line| line.starts_with("//!"));
        if lines > MAX_LINES && !head.into_iter().any(|line| line.starts_with(REASON)) {
            long.push(format!("{}: {lines} lines", path.display()));
        }
    }
    let files = long.join("\n");
    assert!(
        long.is_empty(),
        "longer than {MAX_LINES} lines, and no {REASON:?} in the head:\n{files}"
    );
}

#[test]
fn what_the_parts_of_a_node_share_is_small() {
    let crates = Crate::read("src");
    let node =
        crates.modules.iter().filter(|(module, _)| module.first().is_some_and(|m| m == "node"));
    let shared = node.filter_map(|(_, (_, text))| text.split_once("struct Shared {"));
    let bodies: Vec<&str> = shared.map(|(_, rest)| rest.split_once('}').unwrap().0).collect();
    let [body] = bodies.as_slice() else { panic!("{} structs named Shared", bodies.len()) };
    let fields = body.lines().filter(|line| line.contains(':')).count();
    assert!(fields <= MAX_SHARED, "Shared has {fields} fields");

    let node =
        crates.modules.iter().filter(|(module, _)| module.first().is_some_and(|m| m == "node"));
    let takers: Vec<&str> = node.flat_map(|(_, (_, text))| text.split("fn ").skip(1)).collect();
    let takes = |text: &&&str| {
        text.split(['{', ';']).next().unwrap().split("->").next().unwrap().contains("Shared")
    };
    let takers: Vec<_> =
        takers.iter().filter(takes).map(|text| text.split('(').next().unwrap()).collect();
    assert!((1..=MAX_TAKERS).contains(&takers.len()), "Shared is handed to {takers:?}");
}
