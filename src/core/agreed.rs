//! All that a group agrees on: its keys and its server list; what Raft's log changes. And the record
//! of it: what a server promises with at a founding and keeps in its state file.
//!
//! Invariants: those of [`super::key_ring`]: applying is total, and every server comes to the
//! same answer. A record decrypts and never votes: it has no part of Raft's.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::agreement::ranked_record::{Evidence, Voters};
use super::config::{Member, MAX_MEMBERS};
use super::key_ring::{self, KeyRing};
use super::server_list::{BadServerList, Digest, ServerList, MAX_VERSION, MAX_VOTERS};

/// What the group may agree on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// A cluster's first: all that it goes on from.
    Found(Box<Record>),
    /// Something about keys.
    Key(key_ring::Command),
    /// This is the server list from now on.
    ChangeMembership(ServerList),
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The cluster has what it was founded from, or had it before.
    Founded(bool),
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
    /// A founding counts by one set of voters, or by two.
    #[error("it has {0} sets of voters")]
    VoterSets(usize),
    /// No group has so many, or none.
    #[error("it has no voters, or more than there can be")]
    Voters,
    /// Applying the command failed in a way that no command can; this is a bug.
    #[error("applying it failed; this is a bug, please report it")]
    Fault,
}

/// The agreed state.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Agreed {
    /// The keys.
    pub ring: KeyRing,
    /// The server list, once there is an agreed one.
    pub server_list: Option<ServerList>,
    /// Earlier lists, newest last; see [`Agreed::has_left`].
    past: Vec<Left>,
    /// The voters of the list before that the present one no longer has: until Raft's membership has
    /// followed, there may be no majority without them.
    leaving: Vec<Member>,
    /// Up to which version the list is merely that of a first leader's file, beyond the first one: a
    /// group that was recovered has the same list in another version.
    from_file: u64,
    /// The voters of the record that the cluster was founded from.
    founders: Vec<Voters>,
}

/// What is agreed, as of some moment: how old the keys are, and who votes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Keys and server list.
    pub agreed: Agreed,
    /// How old the current key is, in milliseconds.
    pub current_age_ms: u64,
    /// Whether its activation is only in the log of who tells: nobody is known to have it in use, and
    /// its time has not begun.
    pub is_activation_open: bool,
    /// How long the staged key has been staged, in milliseconds.
    pub staged_age_ms: u64,
    /// The voters of Raft's last configuration, or two sets while a change is open, the wanted one
    /// last; where nothing was ever agreed on, those of the server's file.
    pub voters: Vec<Voters>,
}

/// The most sets of voters that a record has.
const MAX_VOTER_SETS: usize = 2;

impl Record {
    /// Of a server that knows nothing but its file, which says who votes.
    pub fn of_file(voters: Voters) -> Record {
        Record { voters: vec![voters], ..Record::default() }
    }

    /// How old its newest key is.
    pub fn age(&self) -> Duration {
        let is_of_staging = self.agreed.ring.staged().is_some() || self.is_activation_open;
        Duration::from_millis(if is_of_staging { self.staged_age_ms } else { self.current_age_ms })
    }

    /// The same, so much later.
    #[must_use]
    pub fn later(self, ms: u64) -> Record {
        let more = if self.is_activation_open { 0 } else { ms };
        let current_age_ms = self.current_age_ms.saturating_add(more);
        let staged_age_ms = self.staged_age_ms.saturating_add(ms);
        Record { current_age_ms, staged_age_ms, ..self }
    }

    /// Whether this is one that a server could have kept.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Refusal> {
        self.agreed.check()?;
        let is_none = |voters: &Voters| voters.is_empty() || voters.len() > MAX_MEMBERS;
        if self.voters.is_empty() || self.voters.len() > MAX_VOTER_SETS {
            return Err(Refusal::VoterSets(self.voters.len()));
        }
        if self.voters.iter().any(is_none) {
            return Err(Refusal::Voters);
        }
        Ok(())
    }
}

impl Evidence for Record {
    fn lists(&self) -> Vec<Voters> {
        self.voters.clone()
    }

    fn merge(&mut self, other: &Record) {
        let told = other.agreed.ring.revoked_keys();
        self.agreed.ring.revoke_also(told);
        let current =
            |record: &Record| record.agreed.ring.current().map(|held| held.stek.fingerprint());
        let is_in_use = !other.is_activation_open && current(self).is_some();
        if is_in_use && current(self) == current(other) {
            // Who applied its activation late takes it for younger than it is.
            let own = if self.is_activation_open { 0 } else { self.current_age_ms };
            self.current_age_ms = own.max(other.current_age_ms);
            self.is_activation_open = false;
        }
    }

    /// The list gets another version: a group of those who were given up for lost gives way to this one.
    fn recover(&mut self, survivors: &Voters) {
        self.voters = vec![survivors.clone()];
        let is_of_a_file = self.agreed.is_list_of_a_file();
        if let Some(list) = &mut self.agreed.server_list {
            list.version = list.version.saturating_add(1).min(MAX_VERSION);
            if is_of_a_file {
                self.agreed.from_file = list.version;
            }
        }
    }
}

/// A list that the group has left.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Left {
    digest: Digest,
    /// Its voters.
    voters: Voters,
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
            Command::Found(record) => self.found(*record),
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
        if self.past.len() > most {
            return Err(Refusal::Past(self.past.len()));
        }
        if self.leaving.len() > MAX_VOTERS {
            return Err(Refusal::Voters);
        }
        if self.founders.len() > MAX_VOTER_SETS {
            return Err(Refusal::VoterSets(self.founders.len()));
        }
        if self.founders.iter().any(|voters| voters.len() > MAX_MEMBERS) {
            return Err(Refusal::Voters);
        }
        if !self.leaving.is_empty() {
            ServerList::new(0, &self.leaving)?;
        }
        let is_none = |left: &Left| left.voters.is_empty() || left.voters.len() > MAX_VOTERS;
        if self.past.iter().any(is_none) {
            return Err(Refusal::Voters);
        }
        Ok(())
    }

    /// The voters of the group's lists, of the present one and of those before, and those that its cluster
    /// was founded with.
    pub fn voters(&self) -> impl Iterator<Item = Voters> + '_ {
        let present = self.server_list.iter().map(ServerList::voters);
        let past = self.past.iter().map(|left| &left.voters).chain(&self.founders);
        present.chain(past.cloned())
    }

    /// Whether the list is merely that of the first leader's file, and nobody had the group agree on it.
    pub fn is_list_of_a_file(&self) -> bool {
        self.server_list.as_ref().is_some_and(|list| list.version <= self.from_file.max(1))
    }

    /// The voters of the list before that the present one no longer has.
    pub fn leaving(&self) -> &[Member] {
        &self.leaving
    }

    /// Whether the group had this list once and has another one now: a server whose file says it is
    /// behind, and does not ask for anything new. The very list: with one of its servers at another address
    /// it may be what an operator wants next, a server that was removed and comes back on another machine.
    pub fn has_left(&self, server_list: &ServerList) -> bool {
        let digest = server_list.digest();
        self.past.iter().any(|left| left.digest == digest)
            && self.server_list.as_ref().is_some_and(|present| !present.same_members(server_list))
    }

    fn found(&mut self, record: Record) -> Result<Change, Refusal> {
        if self.ring.cluster_id().is_some() {
            return Ok(Change::Founded(false));
        }
        record.check()?;
        *self = Agreed { founders: record.voters, ..record.agreed };
        Ok(Change::Founded(true))
    }

    fn change_membership(&mut self, server_list: ServerList) -> Result<Change, Refusal> {
        server_list.check()?;
        let want = self.server_list.as_ref().map_or(1, |r| r.version.saturating_add(1));
        if server_list.version != want {
            return Err(Refusal::StaleServerList { got: server_list.version, want });
        }
        let is_listed =
            |list: &Option<ServerList>, id| list.as_ref().is_some_and(|l| l.get(id).is_some());
        if let Some(old) = self.server_list.replace(server_list) {
            let voters = old.voters();
            let leaves =
                |m: &&Member| voters.contains(&m.id) && !is_listed(&self.server_list, m.id);
            self.leaving = old.members().iter().filter(leaves).cloned().collect();
            self.past.push(Left { digest: old.digest(), voters: old.voters() });
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
    use crate::core::key_ring::{Generation, RingKey};
    use crate::core::server_id::ServerId;
    use crate::core::stek::{Stek, STEK_LEN};

    fn stek(seed: u8) -> Stek {
        let bytes: Vec<u8> = (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ seed).collect();
        Stek::copy_from(&bytes).unwrap()
    }

    fn server_list(version: u64) -> ServerList {
        let member = Member {
            id: ServerId(1),
            address: "a".to_owned(),
            port: 1,
            subject: None,
            voter: true,
        };
        ServerList::new(version, &[member]).unwrap()
    }

    #[test]
    fn a_cluster_takes_over_what_it_was_founded_from_once() {
        let cluster_id = key_ring::ClusterId::from_bytes([3; 16]).unwrap();
        let mut record = Record::of_file([ServerId(1)].into());
        record.agreed.ring.apply(key_ring::Command::Found { cluster_id }).unwrap();
        record.agreed.server_list = Some(server_list(7));
        let mut agreed = Agreed::default();
        let found = |record: &Record| Command::Found(Box::new(record.clone()));
        assert_eq!(agreed.apply(found(&record)), Ok(Change::Founded(true)));
        assert_eq!(agreed.server_list.as_ref().map(|list| list.version), Some(7));
        assert!(
            agreed.voters().eq(vec![[ServerId(1)].into(); 2]),
            "of its list, and of its founding"
        );
        assert_eq!(agreed.check(), Ok(()));
        agreed.founders.push(Voters::new());
        agreed.founders.push(Voters::new());
        assert_eq!(agreed.check(), Err(Refusal::VoterSets(3)));
        agreed.founders.truncate(1);
        record.agreed.server_list = Some(server_list(9));
        assert_eq!(agreed.apply(found(&record)), Ok(Change::Founded(false)));
        assert_eq!(agreed.server_list.as_ref().map(|list| list.version), Some(7));
        record.voters.clear();
        assert_eq!(Agreed::default().apply(found(&record)), Err(Refusal::VoterSets(0)));
    }

    #[test]
    fn what_was_revoked_anywhere_is_revoked_in_the_newer_record() {
        let key = stek(0);
        let mut older = Record::default();
        older.agreed.ring.revoke_also(&[key.fingerprint()]);
        let mut newer = Record::default();
        newer.merge(&older);
        assert!(newer.agreed.ring.is_revoked(&key));
    }

    #[test]
    fn a_group_that_goes_on_without_its_majority_has_a_list_of_a_later_version() {
        let survivors: Voters = [ServerId(1)].into();
        let agreed = Agreed { server_list: Some(server_list(7)), ..Agreed::default() };
        let mut record = Record { agreed, ..Record::of_file([1, 2, 3].map(ServerId).into()) };
        record.recover(&survivors);
        let version = record.agreed.server_list.as_ref().map(|list| list.version);
        assert_eq!((record.lists(), version), (vec![survivors.clone()], Some(8)));
        assert!(!record.agreed.is_list_of_a_file());
        let agreed = Agreed { server_list: Some(server_list(1)), ..Agreed::default() };
        let mut first = Record { agreed, ..record.clone() };
        first.recover(&survivors);
        assert!(first.agreed.is_list_of_a_file());
        first.agreed.apply(Command::ChangeMembership(server_list(3))).unwrap();
        assert!(!first.agreed.is_list_of_a_file());
        assert_eq!(record.check(), Ok(()));
        let mut none = Record::of_file([1, 2, 3].map(ServerId).into());
        none.recover(&survivors);
        assert_eq!((none.lists(), none.agreed.server_list), (vec![survivors], None));
    }

    #[test]
    fn the_time_of_a_key_begins_when_somebody_is_known_to_have_it_in_use() {
        let ring = |byte| {
            let mut ring = KeyRing::default();
            let cluster_id = key_ring::ClusterId::from_bytes([3; 16]).unwrap();
            let held = RingKey { generation: Generation(1), stek: stek(byte) };
            ring.apply(key_ring::Command::Found { cluster_id }).unwrap();
            ring.apply(key_ring::Command::Stage { held, revokes: false }).unwrap();
            ring.apply(key_ring::Command::Activate { generation: Generation(1), keep: 2 }).unwrap();
            ring
        };
        let record = |byte, current_age_ms, is_activation_open| {
            let agreed = Agreed::of_ring(ring(byte));
            let of_file = Record::of_file([ServerId(1)].into());
            Record { agreed, current_age_ms, is_activation_open, staged_age_ms: 40, ..of_file }
        };
        let open = record(1, 0, true).later(10);
        assert_eq!((open.current_age_ms, open.age().as_millis()), (0, 50));
        let merged = |other: &Record| {
            let mut merged = open.clone();
            merged.merge(other);
            (merged.is_activation_open, merged.current_age_ms)
        };
        assert_eq!(merged(&record(1, 30, false)), (false, 30));
        assert_eq!(merged(&record(1, 30, true)), (true, 0), "nobody has it in use there either");
        assert_eq!(merged(&record(2, 30, false)), (true, 0), "it is another key");
        assert_eq!(merged(&Record::of_file([ServerId(1)].into())), (true, 0));
        let in_use = |own, others| {
            let mut merged = record(1, own, false);
            merged.merge(&record(1, others, false));
            merged.current_age_ms
        };
        assert_eq!((in_use(5, 30), in_use(30, 5)), (30, 30), "one of them applied it late");
    }

    /// So many servers.
    fn ids(count: usize) -> Voters {
        (1..=count as u32).map(ServerId).collect()
    }

    #[test]
    fn a_record_has_one_set_of_voters_or_two_and_none_without_a_server() {
        let check =
            |voters: &[Voters]| Record { voters: voters.to_vec(), ..Record::default() }.check();
        assert_eq!(check(&[ids(1)]), Ok(()));
        assert_eq!(check(&[ids(1), ids(MAX_MEMBERS)]), Ok(()));
        assert_eq!(check(&[]), Err(Refusal::VoterSets(0)));
        assert_eq!(check(&[ids(1), ids(2), ids(3)]), Err(Refusal::VoterSets(3)));
        assert_eq!(check(&[ids(1), ids(0)]), Err(Refusal::Voters));
        assert_eq!(check(&[ids(MAX_MEMBERS + 1), ids(1)]), Err(Refusal::Voters));
    }

    #[test]
    fn an_agreed_state_has_its_bounds() {
        let founded = |founders: &[Voters]| {
            Agreed { founders: founders.to_vec(), ..Agreed::default() }.check()
        };
        assert_eq!(founded(&[ids(1), ids(MAX_MEMBERS)]), Ok(()));
        assert_eq!(founded(&[ids(MAX_MEMBERS + 1)]), Err(Refusal::Voters));
        let member = |id: u32| Member {
            id: ServerId(id),
            address: format!("host-{id}"),
            port: 1,
            subject: None,
            voter: true,
        };
        let leaves = |count: u32| {
            let leaving = (1..=count).map(member).collect();
            Agreed { leaving, ..Agreed::default() }.check()
        };
        assert_eq!(leaves(MAX_VOTERS as u32), Ok(()));
        assert_eq!(leaves(MAX_VOTERS as u32 + 1), Err(Refusal::Voters));
        let was = |voters: usize| {
            let digest = server_list(1).digest();
            let past = vec![Left { digest, voters: ids(voters) }];
            Agreed { server_list: Some(server_list(2)), past, ..Agreed::default() }.check()
        };
        assert_eq!((was(MAX_VOTERS), was(0)), (Ok(()), Err(Refusal::Voters)));
        assert_eq!(was(MAX_VOTERS + 1), Err(Refusal::Voters));
    }

    #[test]
    fn who_voted_and_is_listed_no_more_leaves() {
        let member = |id: u32, voter| Member {
            id: ServerId(id),
            address: format!("host-{id}"),
            port: 1,
            subject: None,
            voter,
        };
        let list = |version, members: &[Member]| {
            Command::ChangeMembership(ServerList::new(version, members).unwrap())
        };
        let mut agreed = Agreed::default();
        let first = [member(1, true), member(2, true), member(3, false), member(4, true)];
        agreed.apply(list(1, &first)).unwrap();
        assert_eq!(agreed.leaving(), []);
        // 2 stays and votes, 4 stays without a vote, 3 goes and had none.
        agreed.apply(list(2, &[member(2, true), member(4, false)])).unwrap();
        assert_eq!(agreed.leaving(), [member(1, true)]);
    }

    #[test]
    fn a_record_ages_with_its_newest_key() {
        let record = Record { current_age_ms: 7, staged_age_ms: 3, ..Record::default() }.later(10);
        assert_eq!(record.age().as_millis(), 17);
        assert_eq!((record.current_age_ms, record.staged_age_ms), (17, 13));
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
        let one = Member {
            id: ServerId(1),
            address: "a".to_owned(),
            port: 1,
            subject: None,
            voter: true,
        };
        let two = Member {
            id: ServerId(2),
            address: "b".to_owned(),
            port: 2,
            subject: None,
            voter: true,
        };
        let (small, large) = ([one.clone()], [one, two]);
        let mut agreed = Agreed::default();
        agreed.apply(Command::ChangeMembership(ServerList::new(1, &small).unwrap())).unwrap();
        assert!(!agreed.has_left(&ServerList::new(9, &small).unwrap()), "it is the present one");
        assert!(!agreed.has_left(&ServerList::new(9, &large).unwrap()), "it is new");
        agreed.apply(Command::ChangeMembership(ServerList::new(2, &large).unwrap())).unwrap();
        assert!(agreed.has_left(&ServerList::new(9, &small).unwrap()));
        // Who was removed and comes back elsewhere is asked for.
        agreed.apply(Command::ChangeMembership(ServerList::new(3, &small).unwrap())).unwrap();
        assert!(agreed.has_left(&ServerList::new(9, &large).unwrap()));
        let mut elsewhere = large.clone();
        elsewhere[1].address = "c".to_owned();
        assert!(!agreed.has_left(&ServerList::new(9, &elsewhere).unwrap()));
    }

    #[test]
    fn a_state_from_elsewhere_is_checked_in_both_its_parts() {
        let mut ring = KeyRing::default();
        let cluster_id = key_ring::ClusterId::from_bytes([3; 16]).unwrap();
        ring.apply(key_ring::Command::Found { cluster_id }).unwrap();
        let sound = Agreed { server_list: Some(server_list(1)), ..Agreed::of_ring(ring) };
        assert_eq!(sound.ring.cluster_id(), Some(cluster_id));
        assert_eq!(sound.check(), Ok(()));
        let empty: ServerList = serde_yaml::from_str("{version: 1, members: []}").unwrap();
        let bad = Agreed { server_list: Some(empty), ..sound };
        assert!(matches!(bad.check(), Err(Refusal::ServerList(_))), "{:?}", bad.check());
    }

    #[test]
    fn a_state_remembers_no_more_lists_than_there_were() {
        let left = |list: &ServerList| Left { digest: list.digest(), voters: list.voters() };
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
            Member { id: ServerId(id), address, port, subject: None, voter: true }
        };
        let list = |ids: &[u32]| ids.iter().map(|&id| member(id)).collect::<Vec<_>>();
        let mut agreed = Agreed::default();
        for (version, ids) in (1..).zip([&[1, 2, 3][..], &[1, 2], &[1, 2, 4]]) {
            agreed
                .apply(Command::ChangeMembership(ServerList::new(version, &list(ids)).unwrap()))
                .unwrap();
        }
        let ids = |ids: &[u32]| ids.iter().copied().map(ServerId).collect::<Voters>();
        let voters: Vec<Voters> = agreed.voters().collect();
        assert_eq!(voters, [ids(&[1, 2, 4]), ids(&[1, 2, 3]), ids(&[1, 2])]);
        assert_eq!(agreed.check(), Ok(()));
        agreed.past[0].voters.clear();
        assert_eq!(agreed.check(), Err(Refusal::Voters));
        agreed.past[0].voters = (1..=MAX_VOTERS as u32 + 1).map(ServerId).collect();
        assert_eq!(agreed.check(), Err(Refusal::Voters));
    }

    #[test]
    fn lists_that_were_left_are_remembered_up_to_a_bound() {
        let at = |port| {
            let id = ServerId(1);
            [Member { id, address: "a".to_owned(), port, subject: None, voter: true }]
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
