//! Authorities as a host names them to its clients: told from each other by a digest over all of
//! them, and to a person by their names.
//!
//! Invariants: two sets with one text from [`Authorities::words`] are one set; a person is told a
//! digest only beside names that are not all or not whole.

use openssl::sha::Sha256;
use serde::{Deserialize, Serialize};

use super::text::{readable, short_digest};

/// The most authorities that a status names, more than a distribution's bundle has; the digest is
/// over all.
pub const MAX_NAMED: usize = 256;

/// The most characters of a name.
const MAX_NAME: usize = 200;

/// The most names in one text.
const MAX_SHOWN: usize = 4;

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorities {
    /// The first 8 hex digits of SHA-256 over the subjects of all, in their order.
    pub digest: String,
    /// How many there are.
    pub count: u32,
    /// The subjects of the first of them, in their order.
    pub names: Vec<String>,
    /// Whether these are all of them, and none is cut.
    pub is_whole: bool,
}

impl Authorities {
    /// Of these, in their order: each by the bytes of its subject, which tell where they end, and by
    /// the same for a person.
    pub fn of(subjects: &[(Vec<u8>, String)]) -> Authorities {
        let mut hash = Sha256::new();
        subjects.iter().for_each(|(bytes, _)| hash.update(bytes));
        let cut = |name: &String| readable(name).chars().take(MAX_NAME).collect();
        let names: Vec<String> =
            subjects.iter().take(MAX_NAMED).map(|(_, name)| cut(name)).collect();
        Authorities {
            digest: short_digest(&hash.finish()),
            count: subjects.len().try_into().unwrap_or(u32::MAX),
            is_whole: subjects.iter().map(|(_, name)| name).eq(&names),
            names,
        }
    }

    /// `/CN=a and /CN=b`; `/CN=a, /CN=b, /CN=c, /CN=d and 9 more (digest 0123abcd)`.
    pub fn words(&self) -> String {
        if self.count == 0 {
            return "none that can be read".to_owned();
        }
        let text = several(&self.names, self.count as usize);
        if self.is_whole && self.names.len() <= MAX_SHOWN {
            text
        } else {
            format!("{text} (digest {})", self.digest)
        }
    }

    /// What these have otherwise than `other`, read on after "it"; `None` if nothing.
    pub fn difference(&self, other: &Authorities) -> Option<String> {
        if self.digest == other.digest {
            return None;
        }
        Some(if !self.is_whole || !other.is_whole {
            format!("has {} and that one {}, too many to name", self.count, other.count)
        } else {
            difference(&self.names, &other.names)
                .unwrap_or_else(|| "has the same in another order".to_owned())
        })
    }

    /// All texts in it.
    pub(super) fn texts(&self) -> impl Iterator<Item = &String> {
        self.names.iter().chain([&self.digest])
    }
}

/// Which names one set has and another has not, read on after "it"; `None` if both have the same.
pub fn difference(own: &[String], other: &[String]) -> Option<String> {
    let lacking = |all: &[String], known: &[String]| -> Option<String> {
        let names = all.iter().filter(|name| !known.contains(name));
        let names: Vec<String> = names.cloned().collect();
        (!names.is_empty()).then(|| several(&names, names.len()))
    };
    match (lacking(own, other), lacking(other, own)) {
        (None, None) => None,
        (Some(more), None) => Some(format!("also has {more}")),
        (None, Some(less)) => Some(format!("lacks {less}")),
        (Some(more), Some(less)) => Some(format!("has {more} and lacks {less}")),
    }
}

/// The first of so many names, and how many more there are.
fn several(names: &[String], count: usize) -> String {
    let mut parts = names.get(..MAX_SHOWN).unwrap_or(names).to_vec();
    let more = count.saturating_sub(parts.len());
    if more > 0 {
        parts.push(format!("{more} more"));
    }
    match parts.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => parts.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Authorities {
        let subjects: Vec<_> =
            names.iter().map(|name| (name.as_bytes().to_vec(), format!("/CN={name}"))).collect();
        Authorities::of(&subjects)
    }

    #[test]
    fn a_digest_stands_only_where_names_are_missing() {
        for (names, words) in [
            (&[][..], "none that can be read"),
            (&["a"], "/CN=a"),
            (&["a", "b"], "/CN=a and /CN=b"),
            (&["a", "b", "c", "d"], "/CN=a, /CN=b, /CN=c and /CN=d"),
        ] {
            assert_eq!(named(names).words(), words);
        }
        let five = named(&["a", "b", "c", "d", "e"]);
        let expected = format!("/CN=a, /CN=b, /CN=c, /CN=d and 1 more (digest {})", five.digest);
        assert_eq!((five.words(), five.digest.len()), (expected, 8));
        assert_ne!(five.words(), named(&["a", "b", "c", "d", "f"]).words());
        // Two names that are alike as far as they are shown.
        let long = |end: &str| named(&[&format!("{}{end}", "x".repeat(MAX_NAME))]);
        assert!(long("a").words().contains("(digest ") && long("a").words() != long("b").words());
    }

    #[test]
    fn what_differs_is_named_or_said_to_be_too_much() {
        let ab = named(&["a", "b"]);
        assert_eq!(ab.difference(&ab), None);
        for (other, words) in [
            (&["a"][..], "also has /CN=b"),
            (&["a", "b", "c"], "lacks /CN=c"),
            (&["b", "c"], "has /CN=a and lacks /CN=c"),
            (&["b", "a"], "has the same in another order"),
            (&[], "also has /CN=a and /CN=b"),
            (&["a", "b", "c", "d", "e", "f", "g"], "lacks /CN=c, /CN=d, /CN=e, /CN=f and 1 more"),
        ] {
            assert_eq!(ab.difference(&named(other)).as_deref(), Some(words));
        }
        let many: Vec<String> = (0..=MAX_NAMED).map(|at| at.to_string()).collect();
        let many = named(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((many.names.len(), many.is_whole), (MAX_NAMED, false));
        assert!(ab.difference(&many).is_some_and(|words| words.contains("too many to name")));
    }
}
