//! Which connections may resume which sessions: what a session ticket is bound to besides the key.
//!
//! OpenSSL keeps a session id context in each session and resumes only where the connection has the
//! same one. With the scope [`TicketScope::Site`] it is the digest that a [`Binding`] makes of what
//! the connection's site asks of its clients; how it gets there is for [`crate::host`].
//!
//! Invariants:
//! - Each input counts for itself: no two different sets of inputs are the same bytes.
//! - Neither the order of the CA subjects nor how often one is named matters.
//! - The names of files and certificates, addresses, ports and all else in which servers of one
//!   group may differ are no input.
//! - No input makes this panic, and none makes it allocate.

use openssl::sha::Sha256;
use serde::{Deserialize, Serialize};

use super::text::words;

/// Bytes of a session id context; OpenSSL takes no more.
pub const CONTEXT_LEN: usize = 32;

/// The first input: no other software's contexts are ours.
const LABEL: &[u8] = b"stek_share ticket scope";

/// Changes whenever the inputs or their form do: sessions of both rules then do not mix.
const VERSION: u8 = 1;

words! {
    /// `ticket_scope`: which connections resume a session.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub enum TicketScope {
        /// Those to the name that issued it, where clients are asked for the same certificates.
        #[default]
        Site = "site",
        /// What Traffic Server itself binds sessions to.
        Host = "host",
    }
}

impl TicketScope {
    /// The scope of a word.
    pub fn parse(word: &str) -> Option<TicketScope> {
        TicketScope::ALL.into_iter().find(|scope| scope.word() == word)
    }
}

/// A session id context in the making.
pub struct Binding(Sha256);

impl Binding {
    /// For a connection to `name`, whose letters' case and final dot do not matter and which is
    /// empty where the client names none, with OpenSSL's verify mode.
    pub fn new(name: &[u8], verify_mode: u32) -> Binding {
        let mut hash = Sha256::new();
        hash.update(LABEL);
        hash.update(&[VERSION]);
        let name = name.strip_suffix(b".").unwrap_or(name);
        hash.update(&length(name));
        let mut lower = [0; 64];
        for piece in name.chunks(lower.len()) {
            let (lower, _) = lower.split_at_mut(piece.len());
            lower.copy_from_slice(piece);
            lower.make_ascii_lowercase();
            hash.update(lower);
        }
        hash.update(&verify_mode.to_be_bytes());
        Binding(hash)
    }

    /// Adds the subjects, in DER, of the authorities whose certificates are asked for. Called
    /// several times it sorts each lot for itself.
    pub fn add_subjects(&mut self, subjects: &mut [&[u8]]) {
        subjects.sort_unstable();
        let mut last = None;
        for subject in subjects.iter().copied() {
            if last.replace(subject) != Some(subject) {
                self.0.update(&length(subject));
                self.0.update(subject);
            }
        }
    }

    /// The context.
    pub fn finish(self) -> [u8; CONTEXT_LEN] {
        self.0.finish()
    }
}

/// How long a text is, in a form of fixed length.
fn length(text: &[u8]) -> [u8; 8] {
    (text.len() as u64).to_be_bytes()
}

/// The host name in the body of a server_name extension (RFC 6066, section 3), if that is well
/// formed. OpenSSL ends a handshake in which it is not.
pub fn server_name(extension: &[u8]) -> Option<&[u8]> {
    const HOST_NAME: u8 = 0;
    let (list, rest) = counted_u16(extension)?;
    let (kind, entry) = list.split_first()?;
    let (name, after) = counted_u16(entry)?;
    (rest.is_empty() && after.is_empty() && *kind == HOST_NAME && !name.is_empty()).then_some(name)
}

/// The body of the server_name extension in a whole ClientHello message, the head of the handshake
/// message included (RFC 8446, section 4.1.2); `None` where there is none or the message is torn.
pub fn server_name_extension(message: &[u8]) -> Option<&[u8]> {
    const HEAD: usize = 4;
    const VERSION_AND_RANDOM: usize = 34;
    const SERVER_NAME: u16 = 0;
    let (_, hello) = message.split_at_checked(HEAD + VERSION_AND_RANDOM)?;
    let (_session_id, hello) = counted_u8(hello)?;
    let (_suites, hello) = counted_u16(hello)?;
    let (_compressions, hello) = counted_u8(hello)?;
    let (mut extensions, _) = counted_u16(hello)?;
    while let Some((kind, rest)) = extensions.split_first_chunk::<2>() {
        let (body, after) = counted_u16(rest)?;
        if u16::from_be_bytes(*kind) == SERVER_NAME {
            return Some(body);
        }
        extensions = after;
    }
    None
}

/// Splits off what a length of one byte stands before.
fn counted_u8(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*len))
}

/// Splits off what a length of two bytes stands before.
fn counted_u16(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn context(name: &str, mode: u32, subjects: &[&str]) -> [u8; CONTEXT_LEN] {
        let mut binding = Binding::new(name.as_bytes(), mode);
        let mut subjects: Vec<&[u8]> = subjects.iter().map(|subject| subject.as_bytes()).collect();
        binding.add_subjects(&mut subjects);
        binding.finish()
    }

    #[test]
    fn each_input_matters() {
        let all = [
            context("a.example", 0, &[]),
            context("b.example", 0, &[]),
            context("", 0, &[]),
            context("a.example", 1, &[]),
            context("a.example", 3, &[]),
            context("a.example", 3 << 8, &[]),
            context("a.example", 3, &["x"]),
            context("a.example", 3, &["y"]),
            context("a.example", 3, &["x", "y"]),
            // No input runs over into the next.
            context("a.example", 3, &["xy"]),
            context("a.example\0", 0, &[]),
            context("a.exampl", 0, &[]),
            context("a.example..", 0, &[]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
    }

    #[test]
    fn order_doubles_case_and_the_final_dot_do_not_matter() {
        let one = context("a.example", 3, &["x", "y", "z"]);
        assert_eq!(one, context("a.example", 3, &["z", "y", "x"]));
        assert_eq!(one, context("a.example", 3, &["y", "z", "y", "x", "x"]));
        assert_eq!(one, context("A.Example", 3, &["x", "y", "z"]));
        assert_eq!(one, context("a.example.", 3, &["x", "y", "z"]));
        // A name that is longer than what is looked at in one go.
        let long = "a-label-of-thirty-two-characters".repeat(7);
        assert_eq!(context(&long, 0, &[]), context(&long.to_uppercase(), 0, &[]));
        assert_ne!(context(&long, 0, &[]), context(&long[..long.len() - 1], 0, &[]));
    }

    #[test]
    fn the_form_of_the_inputs_is_settled() {
        // What all servers of a group have to agree on, whichever version they run: the label, the
        // version, the name and its length, the mode, the subjects with theirs.
        let mut bytes = b"stek_share ticket scope\x01".to_vec();
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 3]);
        bytes.extend(b"a.b\0\0\0\x03");
        bytes.extend(b"\0\0\0\0\0\0\0\x01x\0\0\0\0\0\0\0\x02yz");
        assert_eq!(context("a.b", 3, &["yz", "x"]), openssl::sha::sha256(&bytes));
    }

    #[test]
    fn words_lead_to_their_scope() {
        for scope in TicketScope::ALL {
            assert_eq!(TicketScope::parse(scope.word()), Some(scope));
        }
        assert_eq!(TicketScope::parse("Site"), None);
        assert_eq!(TicketScope::parse(""), None);
    }

    #[test]
    fn a_server_name_is_read_only_where_it_is_whole() {
        assert_eq!(server_name(b"\0\x06\0\0\x03a.b"), Some(&b"a.b"[..]));
        for bad in [
            &b""[..],
            b"\0",
            b"\0\x06\0\0\x03a.",
            b"\0\x06\0\0\x03a.bc",
            b"\0\x07\0\0\x03a.bc",
            b"\0\x06\x01\0\x03a.b",
            b"\0\x03\0\0\0",
            b"\0\0",
        ] {
            assert_eq!(server_name(bad), None, "{bad:?}");
        }
    }

    /// A ClientHello with these extensions.
    fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut all = Vec::new();
        for (kind, body) in extensions {
            all.extend(kind.to_be_bytes());
            all.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
            all.extend(*body);
        }
        let mut message = vec![1, 0, 0, 0, 3, 3];
        message.extend([7; 32]);
        message.extend(b"\x02id\0\x02\x13\x01\x01\0");
        message.extend(u16::try_from(all.len()).unwrap().to_be_bytes());
        message.extend(all);
        message
    }

    #[test]
    fn the_extension_is_found_in_a_whole_message_and_no_torn_one_is_too_odd() {
        let body = b"\0\x06\0\0\x03a.b";
        let whole = hello(&[(43, b"\x02\x03\x04"), (0, body), (51, b"")]);
        assert_eq!(server_name_extension(&whole), Some(&body[..]));
        assert_eq!(server_name_extension(&hello(&[(43, b"\x02\x03\x04")])), None);
        assert_eq!(server_name_extension(&hello(&[])), None);
        for len in 0..whole.len() {
            assert_eq!(server_name_extension(&whole[..len]), None, "{len}");
        }
    }
}
