//! Why a verified sender is not heard, in words and as a byte of the hello that answers it.

use std::fmt;

/// Why a verified sender is not heard. It is told, and so can tell its operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its id is not in this server's server list.
    NotAMember,
    /// It has this server's own id.
    OwnId,
    /// Its cluster incarnation is not acceptable here.
    Cluster,
    /// Another server with the same id is up at the listed address.
    DuplicateId,
    /// Its certificate is another server's.
    Certificate,
    /// Something else, or a reason that a newer version gave.
    Other,
}

impl Refusal {
    /// What a hello answers.
    pub(super) fn code(self) -> u8 {
        match self {
            Refusal::NotAMember => 1,
            Refusal::OwnId => 2,
            Refusal::Cluster => 3,
            Refusal::DuplicateId => 4,
            Refusal::Certificate => 5,
            Refusal::Other => u8::MAX,
        }
    }

    /// What a hello answers to one that is not heard.
    pub(super) fn from_code(code: u8) -> Option<Refusal> {
        match code {
            0 => None,
            1 => Some(Refusal::NotAMember),
            2 => Some(Refusal::OwnId),
            3 => Some(Refusal::Cluster),
            4 => Some(Refusal::DuplicateId),
            5 => Some(Refusal::Certificate),
            _ => Some(Refusal::Other),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NotAMember => "the sender's server_id is not in the receiver's server list",
            Refusal::OwnId => "the sender has the receiver's own server_id",
            Refusal::Cluster => "the sender's cluster incarnation is not the receiver's",
            Refusal::DuplicateId => {
                "another server with this server_id is up at the address in the server list; \
                 give each server its own server_id"
            }
            Refusal::Certificate => {
                "its certificate is not the one listed for this server_id; give each server the \
                 certificate whose subject is in its entry of the server list"
            }
            Refusal::Other => "the receiver does not hear the sender",
        })
    }
}
