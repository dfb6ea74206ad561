//! A distinguished name in OpenSSL's one-line form, which is the form of `cert_verify_str`:
//! `/C=US/ST=IL/O=Yahoo/OU=Edge/CN=localhost`.
//!
//! OpenSSL's own function for it (`X509_NAME_oneline`) is out of reach of safe Rust, so this
//! repeats what it prints, byte by byte; tests hold it against the `openssl` command.

use openssl::x509::{X509NameEntryRef, X509NameRef};

/// The most bytes of a dotted object identifier that OpenSSL prints here.
const MAX_DOTTED: usize = 79;

/// ASN.1 tags of the containers in a name.
const TAG_SEQUENCE: u8 = 0x30;
const TAG_SET: u8 = 0x31;

/// `name` as OpenSSL's `X509_NAME_oneline` prints it: attributes by their short names (by dotted
/// numbers where there is none), `/` before each, or `+` before a further one of the same
/// relative name, and everything outside of printable ASCII as `\xHH`.
pub fn one_line(name: &X509NameRef) -> String {
    let joins = joins(name);
    let mut line = String::new();
    for (at, entry) in name.entries().enumerate() {
        line.push(if joins.get(at) == Some(&true) { '+' } else { '/' });
        line.push_str(&attribute(entry));
        line.push('=');
        for &byte in entry.data().as_slice() {
            push_escaped(&mut line, byte);
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

/// For each entry, whether it stands in the same relative distinguished name as the one before
/// it. The `openssl` crate does not tell, so this walks the encoded name; empty where that is
/// not as expected, which costs no more than a `/` in place of a `+`.
fn joins(name: &X509NameRef) -> Vec<bool> {
    name.to_der().ok().and_then(|der| joins_in(&der)).unwrap_or_default()
}

fn joins_in(der: &[u8]) -> Option<Vec<bool>> {
    let mut found = Vec::new();
    let (TAG_SEQUENCE, mut sets, _) = element(der)? else { return None };
    while !sets.is_empty() {
        let (TAG_SET, mut entries, rest) = element(sets)? else { return None };
        sets = rest;
        let mut joins = false;
        while !entries.is_empty() {
            let (TAG_SEQUENCE, _, rest) = element(entries)? else { return None };
            entries = rest;
            found.push(joins);
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
