//! All that a group agrees on: its keys and its server list; what Raft's log changes.
//!
//! Invariants is what [`super::key_ring`] says: applying is total, and every server comes to the
//! same answer.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::key_ring::{self, KeyRing};
use super::server_id::ServerId;
use super::server_list::{BadServerList, Digest, ServerList};

/// What the group may agree on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Something about keys.
    Key(key_ring::Command),
    /// This is the server list from now on.
    ChangeMembership(ServerList),
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The keys changed.
    Key(key_ring::Change),
    /// The list of this version counts.
    MembershipChanged(u64),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The ring refused.
    #[error(transparent)]
    Key(#[from] key_ring::Refusal),
    /// No group could have this list.
    #[error("the server list is refused: {0}")]
    ServerList(#[from] BadServerList),
    /// Somebody else changed the list first.
    #[error("a server list of version {got} comes too late, {want} is next")]
    StaleServerList {
        /// The version that came.
        got: u64,
        /// The one that would have been right.
        want: u64,
    },
    /// Commands leave one for each list but the present one, up to a bound.
    #[error("it remembers {0} earlier server lists, more than there can be")]
    Past(usize),
    /// Applying the command failed in a way that no command can; this is a bug.
    #[error("applying it failed; this is a bug, please report it")]
    Fault,
}

/// The agreed state of one cluster incarnation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Agreed {
    /// The keys.
    pub ring: KeyRing,
    /// The server list, once there is an agreed one.
    pub server_list: Option<ServerList>,
    /// Earlier lists, newest last; see [`Agreed::has_left`].
    past: Vec<Left>,
}

/// A list that the group has left.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Left {
    digest: Digest,
    /// Of its members' ids alone.
    ids: Digest,
}

/// How many earlier lists are remembered by their digests.
const MAX_PAST: usize = 64;

impl Agreed {
    /// A state with these keys and no list.
    pub fn of_ring(ring: KeyRing) -> Agreed {
        Agreed { ring, ..Agreed::default() }
    }

    /// Changes the state as `command` says.
    ///
    /// # Errors
    /// Why nothing changed.
    pub fn apply(&mut self, command: Command) -> Result<Change, Refusal> {
        match command {
            Command::Key(command) => Ok(Change::Key(self.ring.apply(command)?)),
            Command::ChangeMembership(server_list) => self.change_membership(server_list),
        }
    }

    /// Whether a state that came from another server is one that commands could have made.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Refusal> {
        self.ring.check()?;
        if let Some(server_list) = &self.server_list {
            server_list.check()?;
            if server_list.version == 0 {
                return Err(BadServerList::Version(0).into());
            }
        }
        let before = self
            .server_list
            .as_ref()
            .map_or(0, |server_list| server_list.version.saturating_sub(1));
        let most = usize::try_from(before).unwrap_or(usize::MAX).min(MAX_PAST);
        if self.past.len() <= most {
            Ok(())
        } else {
            Err(Refusal::Past(self.past.len()))
        }
    }

    /// Whether one of the group's lists, this one's or an earlier one, has just these servers.
    pub fn has_had(&self, ids: &BTreeSet<ServerId>) -> bool {
        let digest = ServerList::ids_digest(ids);
        self.server_list.as_ref().is_some_and(|server_list| server_list.ids() == *ids)
            || self.past.iter().any(|left| left.ids == digest)
    }

    /// Whether the group had this list once and has another one now: a server whose file says it is
    /// behind, and does not ask for anything new.
    pub fn has_left(&self, server_list: &ServerList) -> bool {
        let digest = server_list.digest();
        self.past.iter().any(|left| left.digest == digest)
            && self.server_list.as_ref().is_some_and(|present| !present.same_members(server_list))
    }

    fn change_membership(&mut self, server_list: ServerList) -> Result<Change, Refusal> {
        server_list.check()?;
        let want = self.server_list.as_ref().map_or(1, |r| r.version.saturating_add(1));
        if server_list.version != want {
            return Err(Refusal::StaleServerList { got: server_list.version, want });
        }
        if let Some(old) = self.server_list.replace(server_list) {
            self.past.push(Left { digest: old.digest(), ids: ServerList::ids_digest(&old.ids()) });
            let forget = self.past.len().saturating_sub(MAX_PAST);
            self.past.drain(..forget);
        }
        Ok(Change::MembershipChanged(want))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::config::Member;
    use crate::core::server_id::ServerId;

    fn server_list(version: u64) -> ServerList {
        let member = Member { id: ServerId(1), address: "a".to_owned(), port: 1, subject: None };
        ServerList::new(version, &[member]).unwrap()
    }

    #[test]
    fn lists_follow_each_other_without_a_gap() {
        let mut agreed = Agreed::default();
        assert_eq!(
            agreed.apply(Command::ChangeMembership(server_list(1))),
            Ok(Change::MembershipChanged(1))
        );
        assert_eq!(
            agreed.apply(Command::ChangeMembership(server_list(1))),
            Err(Refusal::StaleServerList { got: 1, want: 2 })
        );
        assert_eq!(
            agreed.apply(Command::ChangeMembership(server_list(2))),
            Ok(Change::MembershipChanged(2))
        );
    }

    #[test]
    fn a_list_that_was_left_is_told_from_a_new_one() {
        let one = Member { id: ServerId(1), address: "a".to_owned(), port: 1, subject: None };
        let two = Member { id: ServerId(2), address: "b".to_owned(), port: 2, subject: None };
        let (small, large) = ([one.clone()], [one, two]);
        let mut agreed = Agreed::default();
        agreed.apply(Command::ChangeMembership(ServerList::new(1, &small).unwrap())).unwrap();
        assert!(!agreed.has_left(&ServerList::new(9, &small).unwrap()), "it is the present one");
        assert!(!agreed.has_left(&ServerList::new(9, &large).unwrap()), "it is new");
        agreed.apply(Command::ChangeMembership(ServerList::new(2, &large).unwrap())).unwrap();
        assert!(agreed.has_left(&ServerList::new(9, &small).unwrap()));
    }

    #[test]
    fn a_state_from_elsewhere_is_checked_in_both_its_parts() {
        let mut ring = KeyRing::default();
        let cluster_id = key_ring::ClusterId::from_bytes([3; 16]).unwrap();
        ring.apply(key_ring::Command::Found { cluster_id, epoch: 1, from: None }).unwrap();
        let sound = Agreed { server_list: Some(server_list(1)), ..Agreed::of_ring(ring) };
        assert_eq!(sound.ring.cluster_id(), Some(cluster_id));
        assert_eq!(sound.check(), Ok(()));
        let empty: ServerList = serde_yaml::from_str("{version: 1, members: []}").unwrap();
        let bad = Agreed { server_list: Some(empty), ..sound };
        assert!(matches!(bad.check(), Err(Refusal::ServerList(_))), "{:?}", bad.check());
    }

    #[test]
    fn a_state_remembers_no_more_lists_than_there_were() {
        let left = |list: &ServerList| Left {
            digest: list.digest(),
            ids: ServerList::ids_digest(&list.ids()),
        };
        let with = |version: u64, past: usize| {
            let list = server_list(version);
            let past = vec![left(&list); past];
            Agreed { server_list: Some(list), past, ..Agreed::default() }.check()
        };
        assert_eq!((with(1, 0), with(3, 2), with(900, MAX_PAST)), (Ok(()), Ok(()), Ok(())));
        assert_eq!((with(1, 1), with(3, 3)), (Err(Refusal::Past(1)), Err(Refusal::Past(3))));
        assert_eq!(with(900, MAX_PAST + 1), Err(Refusal::Past(MAX_PAST + 1)));
        assert!(matches!(with(0, 0), Err(Refusal::ServerList(_))));
        let none = Agreed { past: vec![left(&server_list(1))], ..Agreed::default() };
        assert_eq!(none.check(), Err(Refusal::Past(1)));
    }

    #[test]
    fn the_servers_of_a_list_are_known_after_the_group_has_left_it() {
        let member = |id: u32| {
            let (address, port) = ("a".to_owned(), id as u16);
            Member { id: ServerId(id), address, port, subject: None }
        };
        let list = |ids: &[u32]| ids.iter().map(|&id| member(id)).collect::<Vec<_>>();
        let mut agreed = Agreed::default();
        for (version, ids) in (1..).zip([&[1, 2, 3][..], &[1, 2], &[1, 2, 4]]) {
            agreed
                .apply(Command::ChangeMembership(ServerList::new(version, &list(ids)).unwrap()))
                .unwrap();
        }
        let had = |ids: &[u32]| agreed.has_had(&ids.iter().map(|&id| ServerId(id)).collect());
        assert!(had(&[1, 2, 3]) && had(&[1, 2]) && had(&[4, 2, 1]));
        assert!(!had(&[4]) && !had(&[]) && !had(&[1, 2, 3, 4]));
    }

    #[test]
    fn lists_that_were_left_are_remembered_up_to_a_bound() {
        let at = |port| {
            let id = ServerId(1);
            [Member { id, address: "a".to_owned(), port, subject: None }]
        };
        let mut agreed = Agreed::default();
        let last = MAX_PAST as u16 + 2;
        for port in 1..=last {
            let list = ServerList::new(port.into(), &at(port)).unwrap();
            agreed.apply(Command::ChangeMembership(list)).unwrap();
        }
        let has_left = |port| agreed.has_left(&ServerList::new(1, &at(port)).unwrap());
        assert_eq!(agreed.check(), Ok(()));
        assert!(!has_left(1), "it is forgotten");
        assert!(has_left(2) && has_left(last - 1) && !has_left(last));
    }
}
