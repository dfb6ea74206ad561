//! Why bytes are no message, and the counts that none may exceed.

use thiserror::Error;

use crate::core::agreed::Refusal;
use crate::core::log_id::{LeaderId, LogId};
use crate::core::server_status::BadStatus;

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The encoding is broken; the decoder's own word for it.
    #[error("its encoding is broken: {0}")]
    Encoding(postcard::Error),
    /// Bytes are left over.
    #[error("{0} bytes are left over")]
    Trailing(usize),
    /// There is more of something than any server sends.
    #[error("it holds too many {0}")]
    TooMany(&'static str),
    /// A term or an index is beyond all reason, or there is nothing of what there has to be.
    #[error("it counts terms or entries beyond all reason")]
    Absurd,
    /// Entries do not follow each other, or are of a later term than whoever sends them.
    #[error("its entries are out of order")]
    Order,
    /// A vote that nobody gave cannot be committed, and so on.
    #[error("it has no voters")]
    NoVoters,
    /// The state in a snapshot is one that no commands could have made.
    #[error("its agreed state is impossible: {0}")]
    State(Refusal),
    /// A status that no server gives.
    #[error("its status has {0}")]
    Status(BadStatus),
}
/// No group ever gets here: a term or an index each nanosecond for a hundred years. Beyond it,
/// counting on would overflow somewhere. How a group is kept from being led here in leaps is in
/// [`crate::core::sanity_bounds::SanityBounds`].
pub(super) const MAX_COUNT: u64 = 1 << 62;

/// One rule of many that a message has to keep: whether it is broken, and what it is then.
pub(super) fn refuse_if(is_broken: bool, malformed: Malformed) -> Result<(), Malformed> {
    if is_broken {
        Err(malformed)
    } else {
        Ok(())
    }
}

impl LeaderId {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        refuse_if(self.term > MAX_COUNT, Malformed::Absurd)
    }
}

impl LogId {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        self.leader_id.check()?;
        refuse_if(self.index > MAX_COUNT, Malformed::Absurd)
    }
}
