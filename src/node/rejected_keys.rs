//! Keys that key validation kept out: one line and one count for each place and each reason.
//!
//! The rules themselves are in [`crate::core::key_ring`]; this tells what they refused.
//! Invariants: a line about one place and reason never holds back one about another.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::agreed;
use crate::core::key_ring::Refusal;
use crate::core::text::words;
use crate::log_sink::{Level, Log};

words! {
    /// Where a key was refused.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Place {
        /// At the leader, which did not propose it.
        Leader = "leader",
        /// When the agreed command was applied, or a snapshot came in; nothing changed.
        Apply = "apply",
        /// Before it would have gone to the host; the keys installed last stay.
        Install = "install",
    }
}

words! {
    /// What was wrong with it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Reason {
        /// It is zero, or repeats itself in another way.
        Weak = "weak",
        /// It was in use before and has retired.
        Repeated = "repeated",
        /// Its generation is past, or out of order.
        Stale = "stale",
        /// Another key has its name.
        Name = "name",
    }
}

impl Reason {
    /// The reason in a refusal; `None` if that is not about a key at all.
    pub fn of(refusal: &agreed::Refusal) -> Option<Reason> {
        let agreed::Refusal::Key(refusal) = refusal else { return None };
        match refusal {
            Refusal::Weak(_) => Some(Reason::Weak),
            Refusal::Repeated(_) => Some(Reason::Repeated),
            Refusal::Generation { .. } => Some(Reason::Stale),
            Refusal::NameTaken(_) => Some(Reason::Name),
            Refusal::OtherCluster
            | Refusal::NoCluster
            | Refusal::HandoverUnderWay(_)
            | Refusal::NotStaged(_)
            | Refusal::TooMany(..)
            | Refusal::Absurd(_)
            | Refusal::Revoked(_) => None,
        }
    }
}

/// Counts refused keys, and tells the operator.
pub struct RejectedKeys {
    log: Log,
    counts: [[AtomicU64; Reason::ALL.len()]; Place::ALL.len()],
}

impl RejectedKeys {
    /// Nothing refused yet; lines go to `log`.
    pub fn new(log: Log) -> RejectedKeys {
        RejectedKeys { log, counts: Default::default() }
    }

    /// Tells that something was refused, and counts it if it was a key.
    pub fn record(&self, place: Place, refusal: impl Into<agreed::Refusal>) {
        let refusal = refusal.into();
        let reason = Reason::of(&refusal);
        if let Some(reason) = reason {
            // The types have no other values, so both indices are in range.
            self.counts[place as usize][reason as usize].fetch_add(1, Ordering::Relaxed);
        }
        let (level, line) = match place {
            Place::Leader => (Level::Warning, format!("a new key was not proposed: {refusal}")),
            Place::Apply => (Level::Warning, format!("what was agreed on is refused: {refusal}")),
            Place::Install => (
                Level::Error,
                format!("keys are not installed: {refusal}; those installed before stay in use"),
            ),
        };
        self.log.limited(level, &format!("refused {place:?} {reason:?}"), line);
    }

    /// How often a key was refused there for that reason, since this server started.
    pub fn count(&self, place: Place, reason: Reason) -> u64 {
        self.counts[place as usize][reason as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use openraft::storage::RaftStateMachine;
    use openraft::{Entry, EntryPayload};
    use serde::Serialize;
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::*;
    use crate::consensus::raft_log_id;
    use crate::consensus::state_machine::{AgreedView, StateMachine};
    use crate::core::agreed::Agreed;
    use crate::core::key_ring::{ClusterId, Command, Generation, KeyRing, RingKey, Staged};
    use crate::core::log_id::{LeaderId, LogId};
    use crate::core::node_id::NodeId;
    use crate::core::server_id::ServerId;
    use crate::core::stek::{Fingerprint, Stek, STEK_LEN};
    use crate::node::fixture::{stek, Fixture, Lines};
    use crate::node::leader::first_admitted;
    use crate::node::rpc_server::RpcServer;
    use crate::node::shared::Shared;
    use crate::node::{key_publisher, lifecycle, KeySet};
    use crate::rpc::{self, Request, WireMembership, WireSnapshot};
    use crate::transport::frame::Role;
    use crate::transport::listener::{Caller, Service};

    /// How long something may take on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    impl Fixture {
        /// Exactly this much was refused: one key, for this reason, with one line.
        fn assert_refused_once(&self, place: Place, reason: Reason, words: &str) {
            for p in Place::ALL {
                for r in Reason::ALL {
                    let expected = u64::from((p, r) == (place, reason));
                    assert_eq!(self.shared.rejected_keys.count(p, r), expected, "{p:?} {r:?}");
                }
            }
            let lines = self.lines.0.lock().unwrap();
            let loud: Vec<_> = lines.iter().filter(|(l, _)| *l >= Level::Warning).collect();
            assert_eq!(loud.len(), 1, "{loud:?}");
            assert!(loud[0].1.contains(words), "{loud:?}");
        }
    }

    fn held(generation: u64, stek: Stek) -> RingKey {
        RingKey { generation: Generation(generation), stek }
    }

    /// Another key under the name of `stek(seed)`.
    fn namesake(seed: u8) -> Stek {
        let mut bytes = *stek(seed).expose();
        bytes[40] ^= 1;
        Stek::copy_from(&bytes).unwrap()
    }

    fn cluster_id() -> ClusterId {
        ClusterId::from_bytes([9; 16]).unwrap()
    }

    /// Founds a cluster incarnation and takes it to generation 3: keys 3 and 2 are in the ring, 1 has retired.
    fn good_commands() -> Vec<Command> {
        let mut commands = vec![Command::Found { cluster_id: cluster_id() }];
        for g in 1..=3 {
            commands.push(Command::Stage { held: held(g, stek(g as u8)), revokes: false });
            commands.push(Command::Activate { generation: Generation(g), keep: 2 });
        }
        commands
    }

    fn good_ring() -> KeyRing {
        let mut ring = KeyRing::default();
        for command in good_commands() {
            ring.apply(command).unwrap();
        }
        ring
    }

    /// A bad key for each reason, for a ring as [`good_ring`] makes it, and what a line about it
    /// says.
    fn bad_keys() -> [(Reason, RingKey, &'static str); 4] {
        let zero = Stek::copy_from(&[0; STEK_LEN]).unwrap();
        [
            (Reason::Weak, held(4, zero), "all zero"),
            (Reason::Repeated, held(4, stek(1)), "was retired"),
            (Reason::Stale, held(3, stek(77)), "generation 3 is stale"),
            (Reason::Name, held(4, namesake(3)), "is in the ring"),
        ]
    }

    #[tokio::test]
    async fn the_leader_proposes_no_bad_key() {
        let ring = good_ring();
        for (reason, bad, words) in bad_keys() {
            let fixture = Fixture::new();
            let rejected_keys = &fixture.shared.rejected_keys;
            let candidates = [bad.stek.clone()].into_iter();
            assert!(first_admitted(&ring, bad.generation, candidates, rejected_keys).is_none());
            fixture.assert_refused_once(Place::Leader, reason, words);
        }
        // The next candidate gets its chance.
        let fixture = Fixture::new();
        let candidates = [stek(1), stek(4)].into_iter();
        let next = first_admitted(&ring, Generation(4), candidates, &fixture.shared.rejected_keys);
        assert!(next.unwrap().stek.same_bytes(&stek(4)));
        fixture.assert_refused_once(Place::Leader, Reason::Repeated, "was retired");
    }

    fn entry(index: u64, command: Command) -> Entry<crate::consensus::Types> {
        let leader_id = LeaderId { term: 1, node: NodeId::of(2) };
        let log_id = raft_log_id(LogId { leader_id, index });
        Entry { log_id, payload: EntryPayload::Normal(agreed::Command::Key(command)) }
    }

    /// What a leader with a fault would bring the group to agree on.
    #[tokio::test]
    async fn a_bad_key_that_was_agreed_on_changes_nothing_when_it_is_applied() {
        for (reason, bad, words) in bad_keys() {
            let fixture = Fixture::new();
            let noting = fixture.shared.clone();
            let observer = Arc::new(move |outcome: &_| {
                lifecycle::record_change(
                    &noting.ctx.log,
                    &noting.node_counters,
                    &noting.rejected_keys,
                    outcome,
                )
            });
            let (views, clock) = (fixture.shared.ctx.views.clone(), fixture.shared.ctx.clone());
            let mut machine = StateMachine::new(views, observer, Arc::new(move || clock.now()));
            let bad = Command::Stage { held: bad, revokes: false };
            let entries: Vec<_> = (1..)
                .zip(good_commands().into_iter().chain([bad]))
                .map(|(i, c)| entry(i, c))
                .collect();
            let answers = machine.apply(entries).await.unwrap();
            let refused: Vec<_> = answers.into_iter().filter_map(|a| a?.err()).collect();
            assert_eq!(refused.len(), 1, "{refused:?}");
            let ring = fixture.shared.ctx.views.borrow().agreed.ring.clone();
            assert!(ring.staged().is_none());
            assert_eq!(generations(&ring), [3, 2]);
            fixture.assert_refused_once(Place::Apply, reason, words);
        }
    }

    fn generations(ring: &KeyRing) -> Vec<u64> {
        ring.all().map(|held| held.generation.0).collect()
    }

    /// A ring's fields, so that one can be made which no commands would make.
    #[derive(Clone, Serialize)]
    struct Forged {
        cluster_id: Option<ClusterId>,
        staged: Option<Staged>,
        keys: Vec<RingKey>,
        retired: Vec<Fingerprint>,
        revoked: Generation,
        revoked_keys: Vec<Fingerprint>,
    }

    impl Forged {
        fn ring(&self) -> KeyRing {
            postcard::from_bytes(&postcard::to_allocvec(self).unwrap()).unwrap()
        }
    }

    /// As if the state machine had just come to this ring.
    fn show(shared: &Shared, ring: KeyRing) {
        let agreed = Arc::new(Agreed::of_ring(ring));
        let current_since = shared.ctx.now();
        shared.ctx.views.send_replace(AgreedView {
            agreed,
            current_since,
            ..AgreedView::default()
        });
    }

    fn forged() -> Forged {
        Forged {
            cluster_id: Some(cluster_id()),
            staged: None,
            keys: vec![held(3, stek(3)), held(2, stek(2))],
            retired: vec![stek(1).fingerprint()],
            revoked: Generation(0),
            revoked_keys: Vec::new(),
        }
    }

    /// Rings that must not reach the host of a server that holds [`forged`], and why.
    fn bad_rings() -> Vec<(Reason, Forged, &'static str)> {
        let with = |keys: Vec<RingKey>| Forged { keys, ..forged() };
        let staging = |stek| {
            let staged = Staged { held: held(4, stek), revokes: false };
            Forged { staged: Some(staged), ..forged() }
        };
        let zero = || Stek::copy_from(&[0; STEK_LEN]).unwrap();
        vec![
            (Reason::Weak, with(vec![held(4, zero()), held(3, stek(3))]), "all zero"),
            (Reason::Weak, staging(zero()), "all zero"),
            (Reason::Repeated, staging(stek(1)), "was retired"),
            (Reason::Stale, with(vec![held(2, stek(2))]), "generation 2 is stale"),
            (Reason::Stale, with(vec![held(3, stek(3)), held(3, stek(9))]), "is stale"),
            (Reason::Name, staging(namesake(3)), "is in the ring"),
        ]
    }

    async fn serial_after(sets: &mut watch::Receiver<KeySet>, serial: u64) -> KeySet {
        let newer = sets.wait_for(|set| set.serial > serial);
        timeout(PATIENCE, newer).await.expect("a set in time").expect("a key publisher").clone()
    }

    async fn wait_for_refusal(shared: &Shared, reason: Reason) {
        let refused = async {
            while shared.rejected_keys.count(Place::Install, reason) == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, refused).await.expect("the refusal in time");
    }

    fn prints(set: &KeySet) -> Vec<Fingerprint> {
        set.keys.iter().map(Stek::fingerprint).collect()
    }

    #[tokio::test]
    async fn a_bad_set_is_not_installed_and_the_earlier_one_stays() {
        for (reason, bad, words) in bad_rings() {
            let fixture = Fixture::new();
            let shared = fixture.shared.clone();
            let (sender, mut sets) = watch::channel(KeySet::own(stek(200)));
            let keeping = tokio::spawn(key_publisher::run(shared.clone(), stek(200), sender));
            shared.ctx.caught_up.send_replace(true);
            show(&shared, forged().ring());
            let good = serial_after(&mut sets, 1).await;
            let expected = [stek(3), stek(2)].map(|key| key.fingerprint());
            assert_eq!(prints(&good), expected);

            show(&shared, bad.ring());
            wait_for_refusal(&shared, reason).await;
            // What comes after it shows that nothing came of it.
            let mut next = good_ring();
            next.apply(Command::Stage { held: held(4, stek(4)), revokes: false }).unwrap();
            show(&shared, next);
            let after = serial_after(&mut sets, good.serial).await;
            assert_eq!(after.serial, good.serial + 1, "{reason:?} was installed");
            assert_eq!(prints(&after), [stek(3), stek(4)].map(|key| key.fingerprint()));
            keeping.abort();
            fixture.assert_refused_once(Place::Install, reason, words);
        }
    }

    #[tokio::test]
    async fn a_server_that_began_anew_goes_back_with_its_group() {
        let fixture = Fixture::new();
        let shared = fixture.shared.clone();
        let (sender, mut sets) = watch::channel(KeySet::own(stek(200)));
        let keeping = tokio::spawn(key_publisher::run(shared.clone(), stek(200), sender));
        shared.ctx.caught_up.send_replace(true);
        show(&shared, forged().ring());
        let ahead = serial_after(&mut sets, 1).await;
        shared.keys.record_installed(&ahead);
        assert_eq!(shared.keys.installed_newest(), Generation(3));

        // What was generation 3 is lost to the group.
        shared.keys.set_restarted(true);
        let lost = Forged { keys: vec![held(2, stek(2))], ..forged() };
        show(&shared, lost.ring());
        let back = serial_after(&mut sets, ahead.serial).await;
        let expected = [stek(2), stek(3)].map(|key| key.fingerprint());
        assert_eq!(prints(&back), expected, "tickets of the lost key are still good here");
        assert_eq!((back.current, back.newest), (Generation(2), Generation(2)));
        assert_eq!(shared.keys.installed_newest(), Generation(0), "nobody counts on the lost one");
        assert!(!shared.keys.is_restarted());
        keeping.abort();
    }

    #[tokio::test]
    async fn an_own_key_with_the_name_of_an_agreed_one_is_dropped() {
        let fixture = Fixture::new();
        let shared = fixture.shared.clone();
        let own = namesake(3);
        let (sender, mut sets) = watch::channel(KeySet::own(own.clone()));
        let keeping = tokio::spawn(key_publisher::run(shared.clone(), own, sender));
        shared.ctx.caught_up.send_replace(true);
        let alone = Forged { keys: vec![held(3, stek(3))], ..forged() };
        show(&shared, alone.ring());
        let set = serial_after(&mut sets, 1).await;
        assert_eq!(set.keys.len(), 1);
        assert!(set.keys[0].same_bytes(&stek(3)));
        keeping.abort();
        fixture.assert_refused_once(Place::Install, Reason::Name, "is in the ring");
    }

    #[tokio::test]
    async fn a_weak_own_key_is_not_installed() {
        let fixture = Fixture::new();
        let shared = fixture.shared.clone();
        let zero = Stek::copy_from(&[0; STEK_LEN]).unwrap();
        let (sender, mut sets) = watch::channel(KeySet::own(stek(200)));
        shared.ctx.caught_up.send_replace(true);
        let keeping = tokio::spawn(key_publisher::run(shared.clone(), zero, sender));
        wait_for_refusal(&shared, Reason::Weak).await;
        show(&shared, forged().ring());
        let set = serial_after(&mut sets, 1).await;
        assert_eq!(prints(&set), [stek(3), stek(2)].map(|key| key.fingerprint()));
        keeping.abort();
        fixture.assert_refused_once(Place::Install, Reason::Weak, "all zero");
    }

    #[tokio::test]
    async fn a_bad_ring_in_a_snapshot_is_counted_and_its_sender_named() {
        for (reason, bad, words) in bad_rings() {
            let ring = bad.ring();
            // What is merely older than this server's own shows only beside that.
            if ring.check().is_ok() {
                continue;
            }
            let fixture = Fixture::new();
            let voters = BTreeSet::from([NodeId::of(2)]);
            let leader_id = LeaderId { term: 1, node: NodeId::of(2) };
            let snapshot = WireSnapshot {
                to: Default::default(),
                vote: (leader_id, true),
                last: Some(LogId { leader_id, index: 1 }),
                membership_at: None,
                membership: WireMembership { configs: vec![voters.clone()], members: voters },
                id: "1".to_owned(),
                agreed: Agreed::of_ring(ring),
                current_age_ms: 0,
                staged_age_ms: 0,
            };
            let body = rpc::encode(&Request::Snapshot(snapshot)).unwrap();
            let from = Caller {
                id: ServerId(2),
                role: Role::Member,
                version: 1,
                incarnation: 1,
                cluster_id: cluster_id().to_bytes(),
                addr: "127.0.0.1:1".parse().unwrap(),
                names: "/CN=two".into(),
            };
            let rpc_server = Arc::new(RpcServer(fixture.shared.clone()));
            assert!(rpc_server.serve(from, body).await.is_none());
            assert_eq!(fixture.shared.rejected_keys.count(Place::Apply, reason), 1);
            let lines = fixture.lines.0.lock().unwrap();
            let about = |what| lines.iter().filter(|(_, l)| l.contains(what)).count();
            assert_eq!((lines.len(), about(words), about("server 2 sent")), (2, 2, 1), "{lines:?}");
        }
    }

    #[test]
    fn each_place_and_reason_has_a_line_of_its_own() {
        let lines = Arc::new(Lines::default());
        let rejected_keys = RejectedKeys::new(Log::new(lines.clone()));
        for place in Place::ALL {
            for (_, bad, _) in bad_keys() {
                let refusal = good_ring().admits(&bad).unwrap_err();
                rejected_keys.record(place, refusal);
                rejected_keys.record(place, refusal);
            }
        }
        let lines = lines.0.lock().unwrap();
        assert_eq!(lines.len(), Place::ALL.len() * Reason::ALL.len(), "{lines:?}");
        for place in Place::ALL {
            assert_eq!(Reason::ALL.map(|reason| rejected_keys.count(place, reason)), [2; 4]);
        }
    }
}
