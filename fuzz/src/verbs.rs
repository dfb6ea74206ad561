//! Operators' messages.

use stek_share::host::operator::{unknown, TrafficCtlCommand};

/// A message is a verb only if it is the very word, with one NUL at most; what is said of any
/// other one is one line that a log can take.
pub fn parse(bytes: &[u8]) {
    let word = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    match TrafficCtlCommand::parse(bytes) {
        Some(verb) => assert_eq!(verb.word().as_bytes(), word),
        None => {
            // The host hands over the beginning of a long message, and its whole length.
            for size in [bytes.len(), bytes.len() + 1000] {
                let line = unknown(bytes, size);
                assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
                assert!(line.len() <= 200 + 12 * bytes.len());
            }
        }
    }
}
