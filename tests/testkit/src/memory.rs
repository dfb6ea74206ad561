//! A look into another process's memory, and a search for key bytes where none may be.
//!
//! Needs the right to trace the process: root, or its own user where the kernel allows it.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use openssl::base64::encode_block;

use crate::sys::find;
pub use crate::tickets::hex;
use crate::tickets::{KeyName, KEY_LEN, NAME_LEN};
use crate::{Context, Result};

/// How much is read at once.
const CHUNK: usize = 1 << 20;

/// Where a byte string was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Its first byte's address in the process.
    pub address: u64,
    /// The mapping's permissions and name, as `/proc/PID/maps` gives them.
    pub region: String,
}

/// Every place of `needle` in the memory of `pid`.
///
/// Read-only mappings of files are left out: what a program computes is not there.
///
/// # Errors
/// When there is no such process, or no right to look into it.
pub fn find_all(pid: u32, needle: &[u8]) -> Result<Vec<Hit>> {
    Ok(with_following(pid, needle, 0)?.into_iter().map(|(hit, _)| hit).collect())
}

/// The pages of `pid` that the kernel leaves out of a core dump (`MADV_DONTDUMP`), as address
/// ranges: those of keys are among them. Mappings of devices, which it leaves out by itself, are
/// not.
///
/// # Errors
/// As [`find_all`].
pub fn left_out_of_dumps(pid: u32) -> Result<Vec<Range<u64>>> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))
        .context(format_args!("cannot look into process {pid}"))?;
    let (mut ranges, mut mapping) = (Vec::new(), None);
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
            ranges.extend(mapping.take().filter(|_| has("dd") && !has("io")));
        } else if !line.split_whitespace().next().is_some_and(|word| word.ends_with(':')) {
            mapping = parse_mapping(line).map(|(start, end, _)| start..end);
        }
    }
    Ok(ranges)
}

/// The bytes of `range` in the memory of `pid`.
///
/// # Errors
/// As [`find_all`], and when not all of it is mapped.
pub fn read(pid: u32, range: &Range<u64>) -> Result<Vec<u8>> {
    let memory = File::open(format!("/proc/{pid}/mem"))
        .context(format_args!("cannot look into process {pid}"))?;
    let mut bytes =
        vec![0; usize::try_from(range.end.saturating_sub(range.start)).context("length")?];
    memory.read_exact_at(&mut bytes, range.start).context("mapping")?;
    Ok(bytes)
}

/// All different 48 byte strings that begin with `name`: the keys of that name are among them.
/// [`crate::tickets::Ticket::opens_with`] tells which.
///
/// # Errors
/// As [`find_all`].
pub fn candidates_after(pid: u32, name: &KeyName) -> Result<Vec<[u8; KEY_LEN]>> {
    let mut keys: Vec<[u8; KEY_LEN]> = Vec::new();
    for (_, bytes) in with_following(pid, name, KEY_LEN - NAME_LEN)? {
        if let Ok(key) = <[u8; KEY_LEN]>::try_from(bytes) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    Ok(keys)
}

/// The hits, each with the needle and up to `more` bytes that follow it in the same mapping.
fn with_following(pid: u32, needle: &[u8], more: usize) -> Result<Vec<(Hit, Vec<u8>)>> {
    let memory = File::open(format!("/proc/{pid}/mem"))
        .context(format_args!("cannot look into process {pid}"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .context(format_args!("cannot look into process {pid}"))?;
    let want = needle.len() + more;
    let mut buffer = vec![0; CHUNK + want];
    let mut hits = Vec::new();
    for (start, end, region) in maps.lines().filter_map(parse_mapping) {
        let mut at = start;
        while at < end {
            let length = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            // Mappings can vanish meanwhile, and the kernel keeps some of its own to itself.
            let Ok(count) = memory.read_at(&mut buffer[..length], at) else { break };
            let bytes = &buffer[..count];
            let mut from = 0;
            // A hit in the overlap belongs to the next chunk, where what follows it is complete.
            while let Some(offset) = find(&bytes[from..], needle).map(|offset| from + offset) {
                if offset >= CHUNK {
                    break;
                }
                let following = bytes[offset..bytes.len().min(offset + want)].to_vec();
                let address = at + offset as u64;
                hits.push((Hit { address, region: region.clone() }, following));
                from = offset + 1;
            }
            if count == 0 {
                break;
            }
            at += count.min(CHUNK) as u64;
        }
    }
    Ok(hits)
}

/// Start, end and description of a readable mapping that a program can have written to.
fn parse_mapping(line: &str) -> Option<(u64, u64, String)> {
    let mut fields = line.split_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let inode = fields.nth(2)?;
    let (start, end) = range.split_once('-')?;
    let readable = permissions.starts_with('r');
    let of_a_file = inode != "0" && !permissions.contains('w');
    let name = fields.next().unwrap_or("anonymous");
    let address = |text| u64::from_str_radix(text, 16).ok();
    (readable && !of_a_file).then_some((
        address(start)?,
        address(end)?,
        format!("{permissions} {name}"),
    ))
}

/// Looks for the secret parts of `key` (HMAC secret and AES key; the name is public) in `content`,
/// each in all forms in which a log would show it. Says what was found, in words without the
/// bytes themselves.
pub fn contains_key(content: &[u8], key: &[u8; KEY_LEN]) -> Option<String> {
    let (secret, aes) = key[NAME_LEN..].split_at(16);
    [("HMAC secret", secret), ("AES key", aes)].into_iter().find_map(|(part, bytes)| {
        let found = forms(bytes).into_iter().find(|(_, text)| find(content, text).is_some());
        found.map(|(form, _)| format!("{part} {form}"))
    })
}

/// The ways in which people write bytes down.
fn forms(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let joined = |separator: &str, one: fn(&u8) -> String| {
        bytes.iter().map(one).collect::<Vec<_>>().join(separator).into_bytes()
    };
    let lower: fn(&u8) -> String = |byte| format!("{byte:02x}");
    let upper: fn(&u8) -> String = |byte| format!("{byte:02X}");
    let mut all = vec![
        ("raw", bytes.to_vec()),
        ("in lower-case hex", joined("", lower)),
        ("in upper-case hex", joined("", upper)),
        ("in lower-case hex with colons", joined(":", lower)),
        ("in upper-case hex with colons", joined(":", upper)),
        ("in lower-case hex with blanks", joined(" ", lower)),
        ("in upper-case hex with blanks", joined(" ", upper)),
        ("in decimal", joined(", ", |byte| byte.to_string())),
    ];
    for before in 0..3 {
        let text = base64_at(bytes, before);
        let url_safe = text.replace('+', "-").replace('/', "_").into_bytes();
        all.push(("in base64", text.into_bytes()));
        all.push(("in URL-safe base64", url_safe));
    }
    all
}

/// The base64 digits that depend on nothing but `bytes` when `before` other bytes (modulo 3) stand
/// before them.
fn base64_at(bytes: &[u8], before: usize) -> String {
    let mut padded = vec![0; before];
    padded.extend_from_slice(bytes);
    let first = (before * 8).div_ceil(6);
    let end = (before + bytes.len()) * 8 / 6;
    encode_block(&padded)[first..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> [u8; KEY_LEN] {
        std::array::from_fn(|i| (i * 37 + 11) as u8)
    }

    #[test]
    fn every_form_of_a_leak_is_found() {
        let key = key();
        let aes = &key[32..];
        assert_eq!(contains_key(b"nothing here", &key), None);
        assert_eq!(contains_key(&key[..16], &key), None, "the name is public");
        assert_eq!(contains_key(&key, &key).as_deref(), Some("HMAC secret raw"));
        for (form, log) in [
            ("raw", [b"x", aes, b"y"].concat()),
            ("in lower-case hex", format!("key={}.", hex(aes)).into_bytes()),
            ("in upper-case hex", hex(aes).to_uppercase().into_bytes()),
            ("in decimal", format!("{aes:?}").into_bytes()),
        ] {
            assert_eq!(contains_key(&log, &key), Some(format!("AES key {form}")));
        }
    }

    #[test]
    fn base64_is_found_at_every_alignment() {
        let key = key();
        for before in 0..7 {
            let log = encode_block(&[&vec![0xa5; before], &key[32..], &[0x5a; 5]].concat());
            let found = contains_key(log.as_bytes(), &key);
            assert_eq!(found.as_deref(), Some("AES key in base64"), "{before} bytes before");
        }
    }

    #[test]
    fn a_string_of_this_process_is_found_with_what_follows() -> Result<()> {
        let planted: Box<[u8; KEY_LEN]> = Box::new(key());
        let name: KeyName = std::array::from_fn(|i| planted[i]);
        assert!(candidates_after(std::process::id(), &name)?.contains(&planted));
        Ok(())
    }
}
