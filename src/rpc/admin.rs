//! What an operator asks for: orders and server lists, and why one is refused.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::key_ring::Generation;
use crate::core::server_id::ServerId;
use crate::core::server_list::BadServerList;

/// Most bytes in which one server tells another who gave an order; a subject and an address fit.
pub const MAX_ORIGIN: usize = 400;

/// How many servers one line names.
const MAX_NAMED: usize = 16;
/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum AdminRefusal {
    /// Nobody leads, the leader cannot be reached, or it has no majority; nothing was proposed.
    #[error("there is no leader at present; try again in a second")]
    NoLeader,
    /// The leader was deposed, or the way to it was cut, before it could answer.
    #[error("the leader changed in the meantime; it may still happen")]
    Unknown,
    /// One handover at a time.
    #[error("a handover to generation {0} is under way; try again in a second")]
    HandoverUnderWay(Generation),
    /// The group did not agree in time.
    #[error("the group did not agree within client_req_timeout; it may still happen")]
    TimedOut,
    /// The group refused the key.
    #[error("the group refused the new key: {0}")]
    Refused(String),
}

/// Why a server list was not agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum MembershipRefusal {
    /// Nobody leads, or the leader cannot be reached; nothing was proposed.
    #[error("there is no leader at present; try again in a second")]
    NoLeader,
    /// The leader was deposed, or the way to it was cut, before it could answer.
    #[error("the leader changed in the meantime; it may still happen")]
    Unknown,
    /// No group could have this list.
    #[error("{0}")]
    Bad(BadServerList),
    /// The sender does not answer at its address in the group's list.
    #[error(
        "the leader does not reach this server at its address in the group's list; send reload to a \
         server that is reached there"
    )]
    NotAtPlace,
    /// The list that was to be replaced is not the group's; its version now.
    #[error(
        "the group's list has changed since, to version {0}; see whether the new list is still what \
         you want, then reload again"
    )]
    Stale(u64),
    /// The membership does not follow the last list yet.
    #[error("the change to list version {0} is under way; try again later")]
    UnderWay(u64),
    /// A majority of the old or of the new list is not there; the change could get stuck half way.
    #[error("no majority of the {} list is up and whole; missing: {}", if *.of_new { "new" } else { "present" }, servers(.missing))]
    TooFew {
        /// Whether it is the new list.
        of_new: bool,
        /// Who is missing.
        missing: Vec<ServerId>,
    },
    /// Too few servers of the present list have the new one in their files: no majority of the
    /// servers wants it.
    #[error("{}: put the same server_list_file on all servers, then reload one", not_in_files(.lacking, .silent))]
    NotInFiles {
        /// Those whose files hold another one.
        lacking: Vec<ServerId>,
        /// Those that did not say.
        silent: Vec<ServerId>,
    },
    /// The group refused the list.
    #[error("the group refused it: {0}")]
    Refused(String),
    /// The group did not agree in time.
    #[error("the group did not agree within client_req_timeout; it may still happen")]
    TimedOut,
}
/// Why no cluster was founded with the servers that an operator named.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum RecoverRefusal {
    /// The group works.
    #[error("{} hears a leader with a majority: the group works, and nothing is to be recovered", servers(&[*.0]))]
    HasMajority(ServerId),
    /// Who founds has part in it.
    #[error("{} was asked and is not among the survivors; ask one of them", servers(&[*.0]))]
    NotAmong(ServerId),
    /// Nobody knows these.
    #[error("the server list does not have {}", servers(.0))]
    Unknown(Vec<ServerId>),
    /// All survivors have to take part.
    #[error("no answer of {}; start what is to survive, or leave it out if it is lost", servers(.0))]
    Silent(Vec<ServerId>),
    /// Who lives and is not named would be another group.
    #[error("there is an answer of {} too; name it among the survivors, or stop it first", servers(.0))]
    AlsoThere(Vec<ServerId>),
    /// Another founding goes on.
    #[error("a founding is under way; look at 'stekctl status' and try again")]
    Busy,
    /// Not all promised, or there was no leader in time.
    #[error("not all of them took part in time; look at 'stekctl status' and try again")]
    Failed,
}

/// Who does not have a list in its file, and who did not say.
fn not_in_files(lacking: &[ServerId], silent: &[ServerId]) -> String {
    let verb = if lacking.len() == 1 { "does" } else { "do" };
    let lack = format!("{} {verb} not have this list yet", servers(lacking));
    let said = format!("{} did not say what the file holds", servers(silent));
    let told = [(lacking, lack), (silent, said)].into_iter().filter(|(whom, _)| !whom.is_empty());
    told.map(|(_, words)| words).collect::<Vec<_>>().join("; ")
}

/// "server 2", "servers 2, 3 and 5"; of many servers the first [`MAX_NAMED`].
fn servers(ids: &[ServerId]) -> String {
    let shown: Vec<String> = ids.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    let more = ids.len() - shown.len();
    match shown.as_slice() {
        [one] => format!("server {one}"),
        _ if more > 0 => format!("servers {} and {more} more", shown.join(", ")),
        [first @ .., last] => format!("servers {} and {last}", first.join(", ")),
        [] => "no server".to_owned(),
    }
}
