//! The agreed server list: who belongs to the group, and where each server is found.
//!
//! A server starts with the list of its file. Once the group has agreed on one, that one counts, on
//! every server, whatever its file says; see [`ServerList::differences`] for what an operator is told
//! then. Raft's own membership follows the server list; carrying that out is for the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::config::{Member, MAX_MEMBERS, MAX_SUBJECT};
use super::server_id::ServerId;

/// The longest address of a member: that of a name in the DNS.
pub const MAX_ADDRESS: usize = 253;

/// The highest version that a list may have; no group ever gets there by counting.
pub const MAX_VERSION: u64 = 1 << 62;

/// How many servers of a list vote: the first ones by id of those that may. The others are sent the log
/// and have all keys. More voters would make no group safer, and each election slower.
pub const MAX_VOTERS: usize = 7;

/// Those of these members that vote.
pub fn voters(members: &[Member]) -> BTreeSet<ServerId> {
    let may: BTreeSet<ServerId> = members.iter().filter(|m| m.voter).map(|m| m.id).collect();
    may.into_iter().take(MAX_VOTERS).collect()
}

/// To how many servers that follow it in the list each one turns, besides those that vote, where it
/// wants to hear of others: if each asked all, a large fleet would be busy with nothing else.
pub const NEIGHBOURS: usize = 8;

/// Whom a server asks about the group: those that vote, and the next ones in the list, at most
/// [`NEIGHBOURS`].
pub fn consulted(members: &[Member], me: ServerId, neighbours: usize) -> BTreeSet<ServerId> {
    let ids: BTreeSet<ServerId> = members.iter().map(|m| m.id).filter(|id| *id != me).collect();
    let after = ids.range(me..).chain(ids.range(..me)).take(neighbours.min(NEIGHBOURS)).copied();
    let mut consulted: BTreeSet<ServerId> = after.chain(voters(members)).collect();
    consulted.remove(&me);
    consulted
}

/// At most `count` of these servers, from all parts of the list.
pub fn sample(ids: &BTreeSet<ServerId>, count: usize) -> BTreeSet<ServerId> {
    ids.iter().copied().step_by(ids.len().div_ceil(count.max(1)).max(1)).collect()
}

/// A server list and its place among those that the group has agreed on, from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerList {
    /// Counts the lists of one cluster incarnation.
    pub version: u64,
    /// The members, ordered by id.
    members: Vec<Member>,
}

/// Names a list's members: a SHA-256 over all that counts of them. Shown by its first 8 hex digits,
/// for comparing lists at a glance; only whole digests tell whether two lists are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest([u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a list cannot be agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum BadServerList {
    /// A group has at least one member.
    #[error("the list is empty")]
    Empty,
    /// More than any list may have.
    #[error("the list has {0} servers, more than {MAX_MEMBERS}")]
    TooMany(usize),
    /// Somebody has to lead.
    #[error("none of its servers votes; remove 'voter: false' from three to seven entries")]
    NoVoters,
    /// An id must name one server.
    #[error("server_id {0} is there twice")]
    SameId(ServerId),
    /// Longer than any address or subject.
    #[error("the {1} of server {0} is too long")]
    TooLong(ServerId, Field),
    /// Versions count from 1, and there is a last one that nobody reaches.
    #[error("no list has version {0}")]
    Version(u64),
    /// Two servers cannot listen in one place.
    #[error("servers {0} and {1} have the same address and port")]
    SamePlace(ServerId, ServerId),
    /// A subject of an entry's own is to tell its server from all others.
    #[error(
        "servers {0} and {1} have the same cert_verify_str; give each server a certificate with a \
         subject of its own, or remove the line from both entries"
    )]
    SameSubject(ServerId, ServerId),
}

/// A text of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Field {
    /// Where it listens.
    Address,
    /// The subject of its certificate.
    Subject,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::Address => "address",
            Field::Subject => "cert_verify_str",
        })
    }
}

impl ServerList {
    /// A list in its canonical order.
    ///
    /// # Errors
    /// Why no group could agree on it.
    pub fn new(version: u64, members: &[Member]) -> Result<ServerList, BadServerList> {
        let mut members = members.to_vec();
        members.sort_by_key(|member| member.id);
        let server_list = ServerList { version, members };
        server_list.check()?;
        Ok(server_list)
    }

    /// Whether a list that came from another server is one that [`ServerList::new`] could have made.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), BadServerList> {
        if self.members.is_empty() {
            return Err(BadServerList::Empty);
        }
        if self.members.len() > MAX_MEMBERS {
            return Err(BadServerList::TooMany(self.members.len()));
        }
        if !self.members.iter().any(|member| member.voter) {
            return Err(BadServerList::NoVoters);
        }
        // Version 0 is that of a file, before any list is agreed on.
        if self.version > MAX_VERSION {
            return Err(BadServerList::Version(self.version));
        }
        let (mut places, mut subjects) = (BTreeMap::new(), BTreeMap::new());
        let mut last: Option<ServerId> = None;
        for member in &self.members {
            if last.is_some_and(|last| last >= member.id) {
                return Err(BadServerList::SameId(member.id));
            }
            last = Some(member.id);
            if member.address.len() > MAX_ADDRESS {
                return Err(BadServerList::TooLong(member.id, Field::Address));
            }
            if member.subject.as_ref().is_some_and(|subject| subject.len() > MAX_SUBJECT) {
                return Err(BadServerList::TooLong(member.id, Field::Subject));
            }
            if let Some(other) = places.insert((&member.address, member.port), member.id) {
                return Err(BadServerList::SamePlace(other, member.id));
            }
            let subject = member.subject.as_deref();
            if let Some(other) = subject.and_then(|subject| subjects.insert(subject, member.id)) {
                return Err(BadServerList::SameSubject(other, member.id));
            }
        }
        Ok(())
    }

    /// The members, ordered by id.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The members' ids.
    pub fn ids(&self) -> BTreeSet<ServerId> {
        self.members.iter().map(|member| member.id).collect()
    }

    /// Those that vote.
    pub fn voters(&self) -> BTreeSet<ServerId> {
        voters(&self.members)
    }

    /// The entry of one server.
    pub fn get(&self, id: ServerId) -> Option<&Member> {
        let at = self.members.binary_search_by_key(&id, |member| member.id).ok()?;
        self.members.get(at)
    }

    /// Whether both lists have the same members in the same places with the same certificates.
    pub fn same_members(&self, other: &ServerList) -> bool {
        self.members == other.members
    }

    /// Whether both lists have the same servers with the same certificates and votes, wherever they are.
    pub fn same_servers(&self, other: &ServerList) -> bool {
        let of = |member: &Member| (member.id, member.subject.clone(), member.voter);
        self.members.iter().map(of).eq(other.members.iter().map(of))
    }

    /// What `file` has otherwise than this list, in words; `None` if nothing.
    pub fn differences(&self, file: &ServerList) -> Option<String> {
        self.differences_from(file, ["the group's list", "the file"])
    }

    /// What `other` has otherwise than this list, in words that call this one and that one by these names;
    /// `None` if nothing.
    pub fn differences_from(&self, other: &ServerList, names: [&str; 2]) -> Option<String> {
        let mut words = Vec::new();
        for member in &other.members {
            match self.get(member.id) {
                None => words.push(format!("server {} is only in {}", member.id, names[1])),
                Some(own) => words.extend(differences_of(own, member, names)),
            }
        }
        for member in &self.members {
            if other.get(member.id).is_none() {
                words.push(format!("server {} is only in {}", member.id, names[0]));
            }
        }
        let more = words.len().saturating_sub(MAX_TOLD);
        words.truncate(MAX_TOLD);
        if more > 0 {
            words.push(format!("and {more} more"));
        }
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// A hash over the members: two lists that differ in any of them have different ones.
    pub fn digest(&self) -> Digest {
        let mut hash = openssl::sha::Sha256::new();
        let mut take = |field: &[u8]| {
            // With its length before it, no field can be taken for the end of another one.
            hash.update(&u64::try_from(field.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(field);
        };
        for Member { id, address, port, subject, voter } in &self.members {
            take(&id.0.to_be_bytes());
            take(address.as_bytes());
            take(&port.to_be_bytes());
            take(&[u8::from(subject.is_some())]);
            take(subject.as_deref().unwrap_or_default().as_bytes());
            take(&[u8::from(*voter)]);
        }
        Digest(hash.finish())
    }
}

/// What one entry has otherwise than the same server's in another list.
fn differences_of(one: &Member, other: &Member, [in_one, in_other]: [&str; 2]) -> Vec<String> {
    let id = one.id;
    let mut words = Vec::new();
    if (&one.address, one.port) != (&other.address, other.port) {
        words.push(format!(
            "server {id} is at {} in {in_other} and at {} in {in_one}",
            Place(other),
            Place(one)
        ));
    }
    if one.subject != other.subject {
        let of = |m: &Member| m.subject.clone().unwrap_or_else(|| "that of all".to_owned());
        words.push(format!(
            "server {id} has the cert_verify_str {} in {in_other} and {} in {in_one}",
            of(other),
            of(one)
        ));
    }
    if one.voter != other.voter {
        let of = |m: &Member| if m.voter { "may vote" } else { "does not vote" };
        words.push(format!("server {id} {} by {in_other} and {} by {in_one}", of(other), of(one)));
    }
    words
}

/// How many differences one line tells.
const MAX_TOLD: usize = 5;

struct Place<'a>(&'a Member);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.address.contains(':') {
            write!(f, "[{}]:{}", self.0.address, self.0.port)
        } else {
            write!(f, "{}:{}", self.0.address, self.0.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u32, port: u16) -> Member {
        Member {
            id: ServerId(id),
            address: "10.0.0.1".to_owned(),
            port,
            subject: None,
            voter: true,
        }
    }

    fn server_list(list: &[(u32, u16)]) -> ServerList {
        let members: Vec<Member> = list.iter().map(|&(id, port)| member(id, port)).collect();
        ServerList::new(1, &members).unwrap()
    }

    #[test]
    fn in_a_large_fleet_nobody_asks_everybody_and_everybody_is_asked() {
        let of = |count: u32| -> Vec<Member> {
            let member = |id| Member {
                id: ServerId(id),
                address: "a".to_owned(),
                port: 1,
                subject: None,
                voter: true,
            };
            (1..=count).map(member).collect()
        };
        let members = of(1000);
        let mut asked_by = std::collections::BTreeMap::<ServerId, u32>::new();
        for member in &members {
            let consulted = consulted(&members, member.id, usize::MAX);
            assert!(consulted.len() <= MAX_VOTERS + NEIGHBOURS && !consulted.contains(&member.id));
            for id in consulted {
                *asked_by.entry(id).or_default() += 1;
            }
        }
        assert_eq!(asked_by.len(), 1000);
        assert!(asked_by.iter().all(|(id, by)| id.0 <= 7 || *by == NEIGHBOURS as u32));
        let small = of(9);
        let all = |me| small.iter().map(|m| m.id).filter(move |id| *id != me).collect();
        assert!(small.iter().all(|m| consulted(&small, m.id, 8) == all(m.id)));
        assert!(consulted(&of(1), ServerId(1), 8).is_empty());
        assert_eq!(consulted(&members, ServerId(1000), 1).len(), MAX_VOTERS);
        assert_eq!(consulted(&members, ServerId(500), 1).len(), MAX_VOTERS + 1);
        let ids = |range: std::ops::RangeInclusive<u32>| range.map(ServerId).collect();
        assert_eq!(sample(&ids(1..=5), 16), ids(1..=5));
        let some = sample(&ids(1..=1000), 16);
        assert!(some.len() <= 16 && some.len() >= 15 && some.iter().any(|id| id.0 > 900));
        assert!(sample(&BTreeSet::new(), 16).is_empty());
    }

    #[test]
    fn the_first_seven_vote_in_whatever_order_the_list_has_them() {
        let ids = |ids: &[u32]| ids.iter().copied().map(ServerId).collect::<BTreeSet<_>>();
        let members =
            |ids: &[u32]| ids.iter().map(|id| member(*id, *id as u16)).collect::<Vec<_>>();
        assert_eq!(voters(&members(&[9, 3, 5])), ids(&[3, 5, 9]));
        let many: Vec<u32> = (1..=30).rev().collect();
        assert_eq!(voters(&members(&many)), ids(&[1, 2, 3, 4, 5, 6, 7]));
        let list: Vec<(u32, u16)> = (1..=9).map(|id| (id, id as u16)).collect();
        assert_eq!(server_list(&list).voters(), ids(&[1, 2, 3, 4, 5, 6, 7]));
    }

    #[test]
    fn who_is_not_to_vote_does_not_and_somebody_has_to() {
        let without = |not: &[u32]| {
            let of = |id: u32| Member { voter: !not.contains(&id), ..member(id, id as u16) };
            ServerList::new(1, &(1..=9).map(of).collect::<Vec<_>>())
        };
        let ids = |ids: &[u32]| ids.iter().copied().map(ServerId).collect::<BTreeSet<_>>();
        let (all, some) = (without(&[]).unwrap(), without(&[1, 4]).unwrap());
        assert_eq!(some.voters(), ids(&[2, 3, 5, 6, 7, 8, 9]));
        assert_eq!(without(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap().voters(), ids(&[9]));
        assert_eq!(without(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), Err(BadServerList::NoVoters));
        assert!(!all.same_members(&some) && !all.same_servers(&some));
        assert_ne!(all.digest(), some.digest());
        assert_eq!(
            all.differences(&some).unwrap(),
            "server 1 does not vote by the file and may vote by the group's list, server 4 does not \
             vote by the file and may vote by the group's list"
        );
    }

    #[test]
    fn order_does_not_matter() {
        let (one, other) = (server_list(&[(2, 20), (1, 10)]), server_list(&[(1, 10), (2, 20)]));
        assert!(one.same_members(&other));
        assert_eq!(one.digest(), other.digest());
        assert_eq!(one.differences(&other), None);
        assert_ne!(one.digest(), server_list(&[(1, 10), (2, 21)]).digest());
    }

    #[test]
    fn impossible_lists_are_refused() {
        assert_eq!(ServerList::new(1, &[]), Err(BadServerList::Empty));
        let twice = [member(1, 10), member(1, 11)];
        assert_eq!(ServerList::new(1, &twice), Err(BadServerList::SameId(ServerId(1))));
        let same = [member(1, 10), member(2, 10)];
        assert_eq!(
            ServerList::new(1, &same),
            Err(BadServerList::SamePlace(ServerId(1), ServerId(2)))
        );
        let many: Vec<Member> = (0..=MAX_MEMBERS as u32).map(|i| member(i, i as u16 + 1)).collect();
        assert_eq!(ServerList::new(1, &many), Err(BadServerList::TooMany(MAX_MEMBERS + 1)));
        assert!(ServerList::new(MAX_VERSION, &twice[..1]).is_ok());
        let late = ServerList::new(MAX_VERSION + 1, &twice[..1]);
        assert_eq!(late, Err(BadServerList::Version(MAX_VERSION + 1)));
        let of = |address: usize, subject: usize| {
            let subject = Some("s".repeat(subject));
            ServerList::new(1, &[Member { address: "a".repeat(address), subject, ..member(4, 7) }])
        };
        assert!(of(MAX_ADDRESS, MAX_SUBJECT).is_ok());
        for (list, field, words) in [
            (of(MAX_ADDRESS + 1, 1), Field::Address, "address"),
            (of(1, MAX_SUBJECT + 1), Field::Subject, "cert_verify_str"),
        ] {
            let why = list.unwrap_err();
            assert_eq!(why, BadServerList::TooLong(ServerId(4), field));
            assert!(why.to_string().contains(words), "{why}");
        }
    }

    #[test]
    fn no_two_lists_have_one_digest() {
        let subject = |text: &str| Some(text.to_owned());
        let two = [member(1, 10), Member { subject: subject("/CN=two"), ..member(2, 20) }];
        // What the text of two entries would be, as the subject of one.
        let words = "/CN=one\n2 10.0.0.1:20 /CN=two";
        let one = [Member { subject: subject(words), ..member(1, 10) }];
        let none = [Member { subject: subject(""), ..member(1, 10) }];
        let lists = [&two[..], &one, &none, &[member(1, 10)], &[member(1, 11)], &[member(2, 10)]];
        let moved = [Member { address: "10.0.0.11".to_owned(), ..member(1, 1) }];
        let lists = lists.into_iter().chain([&moved[..]]);
        let digests: Vec<Digest> =
            lists.map(|list| ServerList::new(1, list).unwrap().digest()).collect();
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[..at].contains(digest), "{at}");
        }
        let later = ServerList::new(7, &two).unwrap().digest();
        assert_eq!(later, digests[0], "the version does not count");
    }

    #[test]
    fn a_subject_names_one_server() {
        let named = |id, subject: &str| Member {
            subject: Some(subject.to_owned()),
            ..member(id, id as u16)
        };
        let twice = [named(1, "/CN=one"), member(2, 2), named(3, "/CN=one")];
        let refusal = ServerList::new(1, &twice).unwrap_err();
        assert_eq!(refusal, BadServerList::SameSubject(ServerId(1), ServerId(3)));
        assert!(refusal.to_string().contains("servers 1 and 3 have the same cert_verify_str"));
        // Those without one go by what the configuration says.
        let some = [named(1, "/CN=one"), member(2, 2), member(3, 3)];
        assert!(ServerList::new(1, &some).is_ok());
    }

    #[test]
    fn another_subject_is_another_list() {
        let agreed = server_list(&[(1, 10), (2, 20)]);
        let mut members = agreed.members().to_vec();
        members[1].subject = Some("/CN=two".to_owned());
        let file = ServerList::new(1, &members).unwrap();
        assert!(!agreed.same_members(&file));
        assert_ne!(agreed.digest(), file.digest());
        assert_eq!(
            agreed.differences(&file).unwrap(),
            "server 2 has the cert_verify_str /CN=two in the file and that of all in the group's \
             list"
        );
    }

    #[test]
    fn differences_are_told_from_both_sides_and_bounded() {
        let agreed = server_list(&[(1, 10), (2, 20)]);
        let words = agreed.differences(&server_list(&[(1, 11), (3, 30)])).unwrap();
        for part in [
            "server 1 is at 10.0.0.1:11 in the file and at 10.0.0.1:10 in the group's list",
            "server 3 is only in the file",
            "server 2 is only in the group's list",
        ] {
            assert!(words.contains(part), "{words}");
        }
        let many: Vec<(u32, u16)> = (3..20).map(|i| (i, i as u16)).collect();
        assert!(agreed.differences(&server_list(&many)).unwrap().ends_with("and 14 more"));
    }

    #[test]
    fn a_list_may_have_as_many_servers_as_the_bound_says() {
        let most: Vec<Member> = (0..MAX_MEMBERS as u32).map(|i| member(i, i as u16 + 1)).collect();
        let list = ServerList::new(1, &most).unwrap();
        assert_eq!(list.check(), Ok(()));
        assert_eq!(list.members(), most);
        let ids: Vec<ServerId> = list.ids().into_iter().collect();
        assert!(ids.iter().copied().eq(most.iter().map(|member| member.id)));
        assert_eq!(list.get(ServerId(3)), most.get(3));
        assert_eq!(list.get(ServerId(MAX_MEMBERS as u32)), None);
    }

    #[test]
    fn the_same_servers_may_live_elsewhere_but_not_be_others() {
        let list = server_list(&[(1, 10), (2, 20)]);
        assert!(list.same_servers(&server_list(&[(1, 11), (2, 21)])));
        assert!(!list.same_servers(&server_list(&[(1, 10)])));
        assert!(!list.same_servers(&server_list(&[(1, 10), (3, 20)])));
        let mut members = list.members().to_vec();
        members[0].subject = Some("/CN=one".to_owned());
        assert!(!list.same_servers(&ServerList::new(1, &members).unwrap()));
    }

    #[test]
    fn an_address_alone_is_a_difference_and_one_with_colons_stands_in_brackets() {
        let agreed = server_list(&[(1, 10)]);
        let moved = Member { address: "::1".to_owned(), ..member(1, 10) };
        let words = agreed.differences(&ServerList::new(1, &[moved]).unwrap()).unwrap();
        assert_eq!(
            words,
            "server 1 is at [::1]:10 in the file and at 10.0.0.1:10 in the group's list"
        );
    }

    #[test]
    fn as_many_differences_as_one_line_tells_need_no_and_more() {
        let agreed = server_list(&[(1, 10)]);
        let with = |count: u32| {
            let list: Vec<_> = (1..=count + 1).map(|id| (id, id as u16 + 9)).collect();
            agreed.differences(&server_list(&list)).unwrap()
        };
        assert!(!with(MAX_TOLD as u32).contains("more"), "{}", with(MAX_TOLD as u32));
        assert!(with(MAX_TOLD as u32 + 1).ends_with(", and 1 more"));
    }

    #[test]
    fn no_field_of_a_member_runs_over_into_the_next() {
        let of = |address: &str, subject: Option<&str>| {
            let (address, subject) = (address.to_owned(), subject.map(str::to_owned));
            ServerList::new(1, &[Member { address, subject, ..member(1, 10) }]).unwrap().digest()
        };
        let alike = [
            of("a", None),
            of("a", Some("")),
            of("a:10 /CN=b\n2 c", Some("")),
            of("a", Some("/CN=b\n2 c:10 ")),
            of("a:10 ", Some("/CN=b")),
        ];
        let different: BTreeSet<Digest> = alike.into_iter().collect();
        assert_eq!(different.len(), alike.len());
    }

    #[test]
    fn a_digest_is_the_beginning_of_a_hash_over_all_that_counts() {
        let digest = server_list(&[(1, 10)]).digest().to_string();
        assert!(digest.len() == 8 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "{digest}");
    }
}
