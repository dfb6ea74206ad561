//! How a cluster begins: at a cold start, where a majority is gone, and where an operator says so.
//!
//! Two phases, as in Paxos. A server that hears no leader with a majority asks the others who they
//! are, which binds nobody. If enough are in its case it *prepares* an epoch: each of them stops its
//! Raft, reads its log, and promises to have no part any more in what was founded before. Of those
//! promises the founder takes the newest record, and the cluster begins with the nodes that gave
//! them. A majority is then with the new epoch, so that no older cluster can agree on anything.
//!
//! Invariants: a node has part in its cluster only while it has promised nothing higher; what it
//! acknowledged before a promise is in the record that came with it; in one epoch there is one
//! founding.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::epoch::Epoch;
use super::ranked_record::{Evidence, Rank, RankedRecord, Voters};
use crate::core::log_id::LogId;
use crate::core::node_id::{Incarnation, NodeId};
use crate::core::quorum::majority;
use crate::core::server_id::ServerId;

/// What a server says of itself when it is asked; it binds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who it is.
    pub node: NodeId,
    /// The highest epoch that it knows of.
    pub known: u64,
    /// Whether it hears a leader with a majority.
    pub hears_leader: bool,
}

/// Asks one node to leave all that was founded before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Prepare {
    /// The epoch to be founded, with the founder.
    pub epoch: Epoch,
    /// The node that the founder saw; it is valid for no other life of that server.
    pub to: NodeId,
}

/// A node's word that it has no part any more in anything below an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Promise<R> {
    /// That epoch.
    pub epoch: Epoch,
    /// Who promises.
    pub from: NodeId,
    /// What it holds, its log read to the end.
    pub newest: RankedRecord<R>,
}

/// With whom a cluster begins, and from what.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FoundedCluster<R> {
    /// Names it.
    pub epoch: Epoch,
    /// Each voter of the list: the node that promised, or nobody.
    pub voters: BTreeMap<ServerId, Incarnation>,
    /// The newest record of those who promised; it counts once it is agreed on.
    pub base: RankedRecord<R>,
}

/// Why a node does not promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// It was meant for another life of this server.
    #[error("it was sent to node {0}")]
    OtherNode(NodeId),
    /// There is a cluster that works.
    #[error("a leader with a majority was heard a moment ago")]
    HearsLeader,
    /// It promised as much or more before.
    #[error("epoch {} was promised before", .0.counter)]
    Promised(Epoch),
    /// Far beyond what this server knows and its clock says.
    #[error("epoch {0} is not plausible")]
    Implausible(u64),
}

/// With whom a server founds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundingRequest {
    /// What the others said who are to be asked.
    pub answers: Vec<Answer>,
    /// Where an operator says that all others are gone for good: who is left. These count then, in
    /// place of the lists, and all of them have to promise.
    pub survivors: Option<Voters>,
}

/// What a founder has gathered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Founding<R> {
    /// How many nodes were asked, itself included.
    pub asked: usize,
    /// See [`FoundingRequest::survivors`].
    pub survivors: Option<Voters>,
    /// Who promised, and what it holds.
    pub promises: BTreeMap<NodeId, RankedRecord<R>>,
}

/// A server's part in agreement, Raft itself apart. It lasts as long as one run of Raft at most: a
/// new one begins with the newest record of the one before, and with nothing else of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Participant<R> {
    /// Who this is.
    pub me: NodeId,
    /// The highest epoch that it promised. It has part in no other cluster.
    pub promise: Epoch,
    /// The cluster that its log is of, if it is in one.
    pub cluster: Epoch,
    /// The newest record that it has from elsewhere than that log.
    pub older: RankedRecord<R>,
    /// While it founds.
    pub founding: Option<Founding<R>>,
}

impl<R: Evidence> Participant<R> {
    /// A new node, with the record that its server has from before.
    pub fn new(me: NodeId, older: RankedRecord<R>) -> Participant<R> {
        let none = Epoch::default();
        Participant { me, promise: none, cluster: none, older, founding: None }
    }

    /// Whether it takes part in its cluster: votes, campaigns, acknowledges.
    pub fn takes_part(&self) -> bool {
        !self.cluster.is_none() && self.promise == self.cluster
    }

    /// The cluster that it takes part in; none if it does not.
    pub fn present_cluster(&self) -> Epoch {
        if self.takes_part() {
            self.cluster
        } else {
            Epoch::default()
        }
    }

    /// Whether a frame of Raft's that was sent to `to` in `cluster` is for this node.
    pub fn takes(&self, to: NodeId, cluster: Epoch) -> bool {
        to == self.me && cluster == self.cluster && self.takes_part()
    }

    /// The newest that it holds. `log` is the end of its cluster's log and the record that it comes to
    /// if it is read to its end, applied or not. A log without the record that its cluster was
    /// founded from has none: it ranks as nothing, however long it is.
    pub fn newest(&self, log: Option<(LogId, R)>) -> RankedRecord<R> {
        match log {
            Some((end, record)) => {
                let rank = Rank { epoch: self.cluster, end };
                RankedRecord { rank, record }.newer(self.older.clone())
            }
            None => self.older.clone(),
        }
    }

    /// The highest counter of an epoch that it knows of.
    pub fn known(&self) -> u64 {
        self.promise.max(self.cluster).max(self.older.rank.epoch).counter
    }

    /// What it says when it is asked.
    pub fn answer(&self, hears_leader: bool) -> Answer {
        Answer { node: self.me, known: self.known(), hears_leader }
    }

    /// Begins a founding, after Raft was stopped here and `own` was read: what each of those who
    /// answered is to be asked. `wall` is in seconds after 1970.
    pub fn prepare(
        &mut self,
        own: RankedRecord<R>,
        call: &FoundingRequest,
        wall: u64,
    ) -> Vec<Prepare> {
        let FoundingRequest { answers, survivors } = call;
        let told = answers.iter().map(|a| a.known).filter(|known| {
            Epoch { counter: *known, founder: self.me }.is_plausible(self.known(), wall)
        });
        let epoch = Epoch::after(told.fold(self.known(), u64::max), wall, self.me);
        self.promise = epoch;
        let promises = BTreeMap::from([(self.me, own)]);
        let (asked, survivors) = (answers.len() + 1, survivors.clone());
        self.founding = Some(Founding { asked, survivors, promises });
        answers.iter().map(|answer| Prepare { epoch, to: answer.node }).collect()
    }

    /// Whether this node may promise what it is asked. If so, Raft is stopped, its log read, and
    /// this asked once more before [`Participant::promise`].
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, asked: &Prepare, hears_leader: bool, wall: u64) -> Result<(), Refusal> {
        if asked.to != self.me {
            return Err(Refusal::OtherNode(asked.to));
        }
        if hears_leader {
            return Err(Refusal::HearsLeader);
        }
        if asked.epoch <= self.promise {
            return Err(Refusal::Promised(self.promise));
        }
        if !asked.epoch.is_plausible(self.known(), wall) {
            return Err(Refusal::Implausible(asked.epoch.counter));
        }
        Ok(())
    }

    /// Promises; `own` was read after Raft was stopped.
    pub fn promise(&mut self, asked: &Prepare, own: RankedRecord<R>) -> Promise<R> {
        self.promise = asked.epoch;
        self.founding = None;
        Promise { epoch: asked.epoch, from: self.me, newest: own }
    }

    /// Keeps a promise that was given to this founder.
    pub fn collect(&mut self, promise: Promise<R>) {
        let epoch = self.promise;
        if let Some(founding) = self.founding.as_mut().filter(|_| promise.epoch == epoch) {
            founding.promises.insert(promise.from, promise.newest);
        }
    }

    /// The founding, once all have promised that were asked, or a majority after this founder has
    /// waited long enough for the others. The newest record may not count this founder: its voters may
    /// know nothing of it any more. It is given out once; who wants another one prepares a higher
    /// epoch.
    pub fn found(&mut self, has_waited: bool) -> Option<FoundedCluster<R>> {
        let founding = self.founding.as_ref()?;
        if founding.promises.len() < founding.asked && !has_waited {
            return None;
        }
        let newest = founding.promises.values().map(|ranked| ranked.rank).max()?;
        let of_newest = || founding.promises.values().filter(|ranked| ranked.rank == newest);
        // Those of one rank are one record, but for servers that have nothing but their files.
        let lists: Vec<Voters> = of_newest().flat_map(|ranked| ranked.record.lists()).collect();
        let promised = |id: &ServerId| founding.promises.keys().find(|node| node.server == *id);
        let counts = |list: &Voters| {
            list.iter().filter(|id| promised(id).is_some()).count() >= majority(list.len())
        };
        let own = founding.promises.get(&self.me).filter(|ranked| ranked.rank == newest);
        let mut base = own.or_else(|| of_newest().next())?.clone();
        let is_enough = match &founding.survivors {
            None => lists.iter().all(counts),
            Some(survivors) => {
                survivors.contains(&self.me.server)
                    && survivors.iter().all(|id| promised(id).is_some())
            }
        };
        if let Some(survivors) = &founding.survivors {
            base.record.recover(survivors);
            // Newer than what it is made of: from now on these count.
            base.rank = Rank { epoch: self.promise, ..Rank::default() };
        }
        let list = base.record.lists().pop()?;
        if !is_enough {
            return None;
        }
        founding.promises.values().for_each(|ranked| base.record.merge(&ranked.record));
        let incarnation =
            |id: &ServerId| promised(id).map_or(Incarnation::NOBODY, |n| n.incarnation);
        let voters = list.iter().map(|id| (*id, incarnation(id))).collect();
        self.founding = None;
        Some(FoundedCluster { epoch: self.promise, voters, base })
    }

    /// Gives a founding up that came to nothing, and forgets what others promised; whether the newest
    /// record of these does not count this founder, so that others have to found.
    pub fn give_up(&mut self) -> bool {
        let promises = self.founding.take().map(|founding| founding.promises).unwrap_or_default();
        let newest = promises.values().max_by_key(|ranked| ranked.rank);
        let list = newest.and_then(|ranked| ranked.record.lists().pop());
        list.is_some_and(|list| !list.contains(&self.me.server))
    }

    /// Begins in a cluster that was founded, if this very node was counted, has promised that and has
    /// promised nothing higher since: a founding that nobody prepared moves nobody. `own` is its newest record of before. Raft then begins with an empty log.
    pub fn accept(&mut self, found: &FoundedCluster<R>, own: RankedRecord<R>) -> bool {
        let counted = found.voters.get(&self.me.server) == Some(&self.me.incarnation);
        if !counted || self.promise != found.epoch || self.cluster >= found.epoch {
            return false;
        }
        self.older = own.newer(found.base.clone());
        (self.promise, self.cluster) = (found.epoch, found.epoch);
        true
    }

    /// Takes the log of a leader of `cluster`, as a node that is in none.
    pub fn join(&mut self, cluster: Epoch) -> bool {
        if !self.cluster.is_none() || self.promise > cluster || cluster.is_none() {
            return false;
        }
        self.founding = None;
        (self.promise, self.cluster) = (cluster, cluster);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record: its list, and what was revoked.
    #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
    struct Notes {
        lists: Vec<Voters>,
        revoked: u8,
    }

    impl Evidence for Notes {
        fn lists(&self) -> Vec<Voters> {
            self.lists.clone()
        }

        fn merge(&mut self, other: &Notes) {
            self.revoked |= other.revoked;
        }

        fn recover(&mut self, survivors: &Voters) {
            self.lists = vec![survivors.clone()];
        }
    }

    fn node(server: u32, incarnation: u64) -> NodeId {
        NodeId { server: ServerId(server), incarnation: Incarnation(incarnation) }
    }

    fn ids(ids: &[u32]) -> Voters {
        ids.iter().copied().map(ServerId).collect()
    }

    fn epoch(counter: u64, founder: u32) -> Epoch {
        Epoch { counter, founder: node(founder, 1) }
    }

    fn end(index: u64) -> LogId {
        LogId { index, ..LogId::default() }
    }

    fn ranked(counter: u64, index: u64, list: &[u32]) -> RankedRecord<Notes> {
        let rank = Rank { epoch: epoch(counter, 1), end: end(index) };
        RankedRecord { rank, record: Notes { lists: vec![ids(list)], revoked: 0 } }
    }

    fn none(list: &[u32]) -> RankedRecord<Notes> {
        RankedRecord { rank: Rank::default(), ..ranked(0, 0, list) }
    }

    fn member(server: u32) -> Participant<Notes> {
        Participant::new(node(server, 1), none(&[1, 2, 3]))
    }

    fn answers(members: &[&Participant<Notes>]) -> FoundingRequest {
        let answers = members.iter().map(|member| member.answer(false)).collect();
        FoundingRequest { answers, survivors: None }
    }

    /// The first of these founds, the others promise what they hold.
    fn founded(
        reports: [RankedRecord<Notes>; 2],
        has_waited: bool,
    ) -> Option<FoundedCluster<Notes>> {
        let (mut one, mut two, three) = (member(1), member(2), member(3));
        let [own, other] = reports;
        let asked = one.prepare(own, &answers(&[&two, &three]), 10);
        let promise = two.promise(&asked[0], other);
        one.collect(promise);
        one.found(has_waited)
    }

    #[test]
    fn a_cold_start_is_a_founding_with_those_who_promised() {
        let (mut one, mut two, mut three) = (member(1), member(2), member(3));
        let asked = one.prepare(none(&[1, 2, 3]), &answers(&[&two, &three]), 10);
        assert_eq!(one.promise, epoch(11, 1));
        assert_eq!(one.found(true), None, "one of three is no majority");
        assert_eq!(two.admits(&asked[0], false, 10), Ok(()));
        assert_eq!(two.admits(&asked[1], false, 10), Err(Refusal::OtherNode(node(3, 1))));
        assert_eq!(two.admits(&asked[0], true, 10), Err(Refusal::HearsLeader));
        let promise = two.promise(&asked[0], none(&[1, 2, 3]));
        assert_eq!(two.admits(&asked[0], false, 10), Err(Refusal::Promised(epoch(11, 1))));
        one.collect(promise);
        assert_eq!(one.found(false), None, "the third may hold something newer");
        let found = one.found(true).unwrap();
        let voters = [(1, 1), (2, 1), (3, 0)].map(|(id, life)| (ServerId(id), Incarnation(life)));
        assert_eq!((found.epoch, &found.voters), (epoch(11, 1), &voters.into()));
        assert_eq!(one.found(true), None, "it is given out once");
        for who in [&mut one, &mut two] {
            assert!(!who.takes_part());
            assert!(who.accept(&found, none(&[1, 2, 3])) && who.takes_part());
            assert!(!who.accept(&found, none(&[1, 2, 3])), "it begins once");
        }
        assert!(!three.accept(&found, none(&[1, 2, 3])), "it was not counted");
        assert!(three.join(found.epoch) && three.takes_part());
        assert!(three.takes(node(3, 1), found.epoch) && !three.takes(node(3, 2), found.epoch));
        assert!(!three.takes(node(3, 1), epoch(10, 1)));
    }

    #[test]
    fn a_promise_ends_all_part_in_what_was_before() {
        let mut one = member(1);
        assert!(one.join(epoch(3, 2)) && one.takes_part());
        let asked = Prepare { epoch: epoch(4, 2), to: node(1, 1) };
        let promise = one.promise(&asked, one.newest(None));
        assert_eq!(promise.from, node(1, 1));
        assert!(!one.takes_part() && !one.takes(node(1, 1), epoch(3, 2)));
        assert!(!one.join(epoch(3, 2)) && !one.join(epoch(9, 2)), "it is in a cluster");
        // One that promised and is in none waits for that founding or a later one.
        let mut two = member(2);
        let asked = Prepare { epoch: epoch(4, 1), to: node(2, 1) };
        two.promise(&asked, none(&[1]));
        assert!(!two.join(epoch(3, 2)) && two.join(epoch(4, 1)));
    }

    #[test]
    fn the_newest_record_is_gone_on_from_and_revocations_are_merged() {
        let mut old = ranked(3, 9, &[1, 2, 3]);
        old.record.revoked = 1;
        let new = ranked(4, 1, &[1, 2, 3]);
        for reports in [[old.clone(), new.clone()], [new.clone(), old]] {
            let found = founded(reports, true).unwrap();
            assert_eq!((found.base.rank, found.base.record.revoked), (new.rank, 1));
        }
    }

    #[test]
    fn the_list_of_the_newest_record_counts_and_both_while_it_changes() {
        let small = ranked(3, 1, &[1, 2]);
        let large = ranked(4, 1, &[1, 2, 3, 4, 5]);
        assert_eq!(founded([small.clone(), large], true), None);
        let found = founded([ranked(2, 1, &[1, 2, 3, 4, 5]), small], true).unwrap();
        assert!(found.voters.keys().copied().eq(ids(&[1, 2])));
        let mut open = ranked(5, 1, &[1, 2, 3]);
        open.record.lists.push(ids(&[1, 3, 4]));
        assert_eq!(founded([open, none(&[1, 2, 3])], true), None);
        // Servers that have nothing but their files count by all of these.
        assert_eq!(founded([none(&[1, 2, 3]), none(&[1, 2, 3, 4])], true), None);
        assert_eq!(founded([ranked(5, 1, &[2, 3]), none(&[1])], true), None, "3 did not promise");
        let mut one = member(1);
        let asked = one.prepare(none(&[1, 2]), &answers(&[&member(2)]), 10);
        one.collect(member(2).promise(&asked[0], ranked(5, 1, &[2, 3])));
        assert!(one.found(true).is_none() && one.give_up());
        assert!(one.founding.is_none() && !one.give_up());
    }

    /// Where those who vote have lost their files, and vote by no list that they can read.
    #[test]
    fn a_founder_need_not_be_in_the_list_of_the_newest_record() {
        let found = founded([ranked(5, 1, &[2]), none(&[1])], true).unwrap();
        assert!(found.voters.keys().copied().eq(ids(&[2])));
        let mut one = member(1);
        one.promise = found.epoch;
        assert!(!one.accept(&found, none(&[1])), "it founds for others");
        let mut two = member(2);
        two.promise = found.epoch;
        assert!(two.accept(&found, none(&[1])) && two.takes_part());
    }

    #[test]
    fn a_log_ranks_once_it_has_the_record_of_its_founding() {
        let mut one = member(1);
        let base = ranked(5, 7, &[1, 2, 3]);
        let voters = [(ServerId(1), Incarnation(1))].into();
        let found = FoundedCluster { epoch: epoch(8, 1), voters, base: base.clone() };
        one.promise = found.epoch;
        assert!(one.accept(&found, ranked(4, 9, &[1])));
        assert_eq!(one.newest(None), base, "the rank of what it was founded from");
        let record = Notes { lists: vec![ids(&[1])], revoked: 2 };
        let ranked = one.newest(Some((end(3), record.clone())));
        assert_eq!(
            (ranked.rank, ranked.record),
            (Rank { epoch: epoch(8, 1), end: end(3) }, record)
        );
        assert_eq!(one.known(), 8);
    }

    #[test]
    fn a_founder_goes_beyond_what_it_is_told_unless_that_is_absurd() {
        let mut one = member(1);
        let mut told = answers(&[&member(2), &member(3)]);
        (told.answers[0].known, told.answers[1].known) = (u64::MAX, 40);
        let asked = one.prepare(none(&[1]), &told, 10);
        assert_eq!(asked[0], Prepare { epoch: epoch(41, 1), to: node(2, 1) });
        let mad = Prepare { epoch: epoch(u64::MAX, 1), to: node(2, 1) };
        assert_eq!(member(2).admits(&mad, false, 10), Err(Refusal::Implausible(u64::MAX)));
    }

    #[test]
    fn survivors_count_in_place_of_the_list_and_all_of_them() {
        let ranked = |list| ranked(4, 9, list);
        let call = |others: &[&Participant<Notes>]| FoundingRequest {
            survivors: Some(ids(&[1, 2])),
            ..answers(others)
        };
        let (mut one, mut two, mut four) = (member(1), member(2), member(4));
        let asked = one.prepare(ranked(&[1, 2, 3, 4, 5]), &call(&[&two]), 10);
        assert_eq!(one.found(true), None, "one of the survivors has not promised");
        one.collect(two.promise(&asked[0], ranked(&[1, 2, 3, 4, 5])));
        let found = one.found(false).unwrap();
        assert!(found.voters.iter().map(|(id, life)| (id.0, life.0)).eq([(1, 1), (2, 1)]));
        assert_eq!(found.base.record.lists(), [ids(&[1, 2])]);
        assert!(two.accept(&found, ranked(&[1, 2, 3, 4, 5])));
        // What is founded next counts by those.
        assert_eq!(two.newest(None).record.lists(), [ids(&[1, 2])]);
        // Who is not among them founds nothing in their name.
        let asked = four.prepare(ranked(&[1, 2, 3, 4, 5]), &call(&[&one, &two]), 20);
        one.promise(&asked[0], ranked(&[1]));
        four.collect(Promise { epoch: asked[0].epoch, from: node(1, 1), newest: ranked(&[1]) });
        four.collect(Promise { epoch: asked[0].epoch, from: node(2, 1), newest: ranked(&[1]) });
        assert_eq!(four.found(true), None);
    }

    #[test]
    fn a_promise_for_another_epoch_does_not_count() {
        let (mut one, mut two) = (member(1), member(2));
        let first = one.prepare(none(&[1, 2, 3]), &answers(&[&two]), 10);
        let late = two.promise(&first[0], none(&[1, 2, 3]));
        one.prepare(none(&[1, 2, 3]), &answers(&[&two]), 10);
        one.collect(late);
        assert_eq!(one.found(true), None);
        // A founder that promised another one higher founds nothing any more.
        one.promise(&Prepare { epoch: epoch(99, 3), to: node(1, 1) }, none(&[1]));
        assert!(one.founding.is_none() && one.found(true).is_none());
    }

    #[test]
    fn a_founding_comes_too_late_for_who_promised_a_later_one() {
        let (mut one, mut two) = (member(1), member(2));
        let asked = one.prepare(none(&[1, 2, 3]), &answers(&[&two]), 10);
        let promise = two.promise(&asked[0], none(&[1, 2, 3]));
        one.collect(promise);
        let found = one.found(true).unwrap();
        two.promise(&Prepare { epoch: epoch(99, 3), to: node(2, 1) }, none(&[1, 2, 3]));
        assert!(!two.accept(&found, none(&[1, 2, 3])) && !two.takes_part());
        assert!(one.accept(&found, none(&[1, 2, 3])));
    }

    /// Or one member in the wrong hands moves all others out of a group that works.
    #[test]
    fn a_founding_counts_for_nobody_who_did_not_promise_it() {
        let mut two = member(2);
        assert!(two.join(epoch(5, 1)) && two.takes_part());
        let voters = BTreeMap::from([(ServerId(2), Incarnation(1)), (ServerId(3), Incarnation(1))]);
        let found = FoundedCluster { epoch: epoch(6, 3), voters, base: none(&[2, 3]) };
        assert!(!two.accept(&found, none(&[1, 2, 3])));
        assert_eq!((two.cluster, two.takes_part()), (epoch(5, 1), true));
        // Nor for one that promised too late to be counted.
        let mut late = member(2);
        late.promise = epoch(6, 3);
        let without = [(ServerId(3), Incarnation(1))].into();
        let found = FoundedCluster { voters: without, ..found };
        assert!(!late.accept(&found, none(&[1, 2, 3])) && !late.takes_part());
    }
}
