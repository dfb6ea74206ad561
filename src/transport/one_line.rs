//! A distinguished name in OpenSSL's one-line form, which is the form of `cert_verify_str`:
//! `/C=US/ST=IL/O=Yahoo/OU=Edge/CN=localhost`.
//!
//! OpenSSL's own function for it (`X509_NAME_oneline`) is out of reach of safe Rust, so this
//! repeats what it prints, byte by byte; tests hold it against the `openssl` command.

use openssl::x509::{X509NameEntryRef, X509NameRef};

/// The most bytes of a dotted object identifier that OpenSSL prints here.
const MAX_DOTTED: usize = 79;

/// ASN.1 universal tags that matter here.
const TAG_GENERAL_STRING: u8 = 27;
const TAG_SEQUENCE: u8 = 0x30;
const TAG_SET: u8 = 0x31;

/// `name` as OpenSSL's `X509_NAME_oneline` prints it: attributes by their short names (by dotted
/// numbers where there is none), `/` before each, or `+` before a further one of the same
/// relative name, and everything outside of printable ASCII as `\xHH`.
pub fn one_line(name: &X509NameRef) -> String {
    let shape = shape(name);
    let mut line = String::new();
    for (at, entry) in name.entries().enumerate() {
        let part = shape.get(at).copied().unwrap_or(Part { joins: false, wide: false });
        line.push(if part.joins { '+' } else { '/' });
        line.push_str(&attribute(entry));
        line.push('=');
        let value = entry.data().as_slice();
        let is_wide = part.wide && looks_like_ucs4(value);
        for (i, &byte) in value.iter().enumerate() {
            if !is_wide || i % 4 == 3 {
                push_escaped(&mut line, byte);
            }
        }
    }
    line
}

fn push_escaped(line: &mut String, byte: u8) {
    match byte {
        b'/' | b'+' => {
            line.push('\\');
            line.push(char::from(byte));
        }
        b' '..=b'~' => line.push(char::from(byte)),
        _ => line.push_str(&format!("\\x{byte:02X}")),
    }
}

fn attribute(entry: &X509NameEntryRef) -> String {
    let nid = entry.object().nid();
    if nid.as_raw() != 0 {
        if let Ok(short) = nid.short_name() {
            return short.to_owned();
        }
    }
    let mut dotted = entry.object().to_string();
    dotted.truncate(MAX_DOTTED);
    dotted
}

/// A GeneralString whose first three bytes of each four are zero is printed as its fourth bytes.
fn looks_like_ucs4(value: &[u8]) -> bool {
    value.len() % 4 == 0 && value.iter().enumerate().all(|(i, &b)| i % 4 == 3 || b == 0)
}

/// What the encoding tells about an entry and the `openssl` crate does not.
#[derive(Clone, Copy)]
struct Part {
    /// It stands in the same relative distinguished name as the entry before it.
    joins: bool,
    /// Its value is a GeneralString.
    wide: bool,
}

/// Walks the encoded name; empty where that is not as expected, which changes nothing but `+`
/// and GeneralStrings.
fn shape(name: &X509NameRef) -> Vec<Part> {
    name.to_der().ok().and_then(|der| parts(&der)).unwrap_or_default()
}

fn parts(der: &[u8]) -> Option<Vec<Part>> {
    let mut found = Vec::new();
    let (TAG_SEQUENCE, mut sets, _) = element(der)? else { return None };
    while !sets.is_empty() {
        let (TAG_SET, mut entries, rest) = element(sets)? else { return None };
        sets = rest;
        let mut joins = false;
        while !entries.is_empty() {
            let (TAG_SEQUENCE, entry, rest) = element(entries)? else { return None };
            entries = rest;
            let (_, _, value) = element(entry)?;
            found.push(Part { joins, wide: *value.first()? == TAG_GENERAL_STRING });
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
