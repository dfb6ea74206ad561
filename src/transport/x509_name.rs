//! A distinguished name in OpenSSL's one-line form, which is the form of `cert_verify_str`:
//! `/C=US/ST=IL/O=Yahoo/OU=Edge/CN=localhost`.
//!
//! OpenSSL's own function for it (`X509_NAME_oneline`) is out of reach of safe Rust, so this
//! prints what that does; tests hold it against the `openssl` command. Invariants: two
//! subjects never print alike, since who may join the group is told by them. OpenSSL's form does
//! not keep to that, so this one differs from it where no sane subject goes: a backslash is
//! doubled, a value that is no string of bytes says so, and a long object identifier is not cut.

use std::fmt::Write;

use openssl::x509::{X509NameEntryRef, X509NameRef};

/// ASN.1 tags of the containers in a name, and of an attribute's name.
const TAG_SEQUENCE: u8 = 0x30;
const TAG_SET: u8 = 0x31;
const TAG_OBJECT: u8 = 0x06;

/// Those of strings that are printed as their bytes are: UTF8String, NumericString,
/// PrintableString, T61String, IA5String, VisibleString.
const TAGS_OF_BYTES: [u8; 6] = [0x0c, 0x12, 0x13, 0x14, 0x16, 0x1a];

/// `name` as OpenSSL's `X509_NAME_oneline` prints it: attributes by their short names (by dotted
/// numbers where there is none), `/` before each, or `+` before a further one of the same
/// relative name, and everything outside of printable ASCII as `\xHH`. For what is printed
/// otherwise see the module's head.
pub fn one_line(name: &X509NameRef) -> String {
    let shapes = shapes(name);
    let mut line = String::new();
    for (at, entry) in name.entries().enumerate() {
        let shape = shapes.get(at).copied().unwrap_or_default();
        push_attribute(&mut line, shape, &attribute(entry), entry.data().as_slice());
    }
    line
}

fn push_attribute(line: &mut String, shape: Shape, name: &str, value: &[u8]) {
    line.push(if shape.joins { '+' } else { '/' });
    line.push_str(name);
    line.push('=');
    if let Some(tag) = shape.odd_tag {
        // Writing to a string cannot fail.
        _ = write!(line, "\\#{tag:02X}");
    }
    value.iter().for_each(|&byte| push_escaped(line, byte));
}

fn push_escaped(line: &mut String, byte: u8) {
    match byte {
        b'/' | b'+' | b'\\' => {
            line.push('\\');
            line.push(char::from(byte));
        }
        b' '..=b'~' => line.push(char::from(byte)),
        _ => _ = write!(line, "\\x{byte:02X}"),
    }
}

fn attribute(entry: &X509NameEntryRef) -> String {
    let nid = entry.object().nid();
    if nid.as_raw() != 0 {
        if let Ok(short) = nid.short_name() {
            return short.to_owned();
        }
    }
    entry.object().to_string()
}

/// What the `openssl` crate does not tell of an entry of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    /// Whether it stands in the same relative distinguished name as the one before it.
    joins: bool,
    /// The type of the value, if it is no string of bytes.
    odd_tag: Option<u8>,
}

/// The shape of each entry, from the encoded name. Empty where that is not as expected, which
/// OpenSSL's own encoding never is.
fn shapes(name: &X509NameRef) -> Vec<Shape> {
    name.to_der().ok().and_then(|der| shapes_in(&der)).unwrap_or_default()
}

fn shapes_in(der: &[u8]) -> Option<Vec<Shape>> {
    let mut found = Vec::new();
    let (TAG_SEQUENCE, mut sets, _) = element(der)? else { return None };
    while !sets.is_empty() {
        let (TAG_SET, mut entries, rest) = element(sets)? else { return None };
        sets = rest;
        let mut joins = false;
        while !entries.is_empty() {
            let (TAG_SEQUENCE, entry, rest) = element(entries)? else { return None };
            entries = rest;
            let (TAG_OBJECT, _, value) = element(entry)? else { return None };
            let tag = element(value)?.0;
            let odd_tag = (!TAGS_OF_BYTES.contains(&tag)).then_some(tag);
            found.push(Shape { joins, odd_tag });
            joins = true;
        }
    }
    Some(found)
}

/// Splits one DER element off: its tag, its content, what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut len = usize::from(first);
    if first >= 0x80 {
        let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
        rest = after;
        len = digits
            .iter()
            .try_fold(0_usize, |n, &d| n.checked_mul(256).map(|n| n + usize::from(d)))?;
    }
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Bytes that mean something in a line, and two that do not.
    const BYTES: [u8; 8] = [b'\\', b'/', b'+', b'=', b'x', b'A', b'4', 0];

    /// All values of up to so many of these bytes.
    fn values(most: usize) -> Vec<Vec<u8>> {
        let mut all = vec![Vec::new()];
        let mut last = all.clone();
        for _ in 0..most {
            let longer = |value: &Vec<u8>| BYTES.map(|byte| [value.as_slice(), &[byte]].concat());
            last = last.iter().flat_map(longer).collect();
            all.extend_from_slice(&last);
        }
        all.sort();
        all.dedup();
        all
    }

    #[test]
    fn two_subjects_never_print_alike() {
        let mut seen = HashMap::new();
        let mut take = |entries: Vec<(Shape, &'static str, Vec<u8>)>| {
            let mut line = String::new();
            for (shape, name, value) in &entries {
                push_attribute(&mut line, *shape, name, value);
            }
            if let Some(other) = seen.insert(line.clone(), entries.clone()) {
                panic!("{line} is {entries:?} and {other:?}");
            }
        };
        let (first, second) = (values(4), values(2));
        // The types of BMPString and BIT STRING, and none.
        for odd_tag in [None, Some(0x1e), Some(0x03)] {
            let shape = Shape { joins: false, odd_tag };
            first.iter().for_each(|value| take(vec![(shape, "CN", value.clone())]));
        }
        for (joins, value, more) in [false, true]
            .into_iter()
            .flat_map(|joins| second.iter().map(move |value| (joins, value)))
            .flat_map(|(joins, value)| second.iter().map(move |more| (joins, value, more)))
        {
            let [plain, joined] = [false, joins].map(|joins| Shape { joins, ..Shape::default() });
            take(vec![(plain, "CN", value.clone()), (joined, "A", more.clone())]);
        }
    }

    #[test]
    fn a_backslash_at_the_end_of_a_value_hides_no_boundary() {
        let line = |entries: &[(&str, &[u8])]| {
            let mut line = String::new();
            for (name, value) in entries {
                push_attribute(&mut line, Shape::default(), name, value);
            }
            line
        };
        assert_eq!(line(&[("CN", b"a\\"), ("CN", b"b")]), r"/CN=a\\/CN=b");
        assert_eq!(line(&[("CN", b"a/CN=b")]), r"/CN=a\/CN=b");
    }
}
