//! What the leader does next about the keys: found the cluster incarnation, stage a key, activate it, or wait.
//!
//! A decision from a view: it proposes nothing itself, and it knows neither openraft nor sockets.
//! Invariants: a key is activated only when every reachable server has it installed, or has had
//! `handover_timeout` to do so (promise 1); rotations keep their schedule by the monotonic clock
//! alone (promise 4).

use std::time::Duration;

use super::key_ring::{Generation, KeyRing};
use super::moment::Moment;
use super::server_id::ServerId;
use super::text::words;

/// The times that a rotation goes by.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// From one activation to the start of the next handover.
    pub interval: Duration,
    /// How long a server that answers but has not installed may hold up a handover.
    pub handover_timeout: Duration,
}

words! {
    /// What an operator asked for besides the schedule.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
    pub enum AdminCommand {
        /// A new key now.
        Rotate = "rotate",
        /// A new key now, and every older one dropped everywhere.
        Revoke = "revoke",
    }
}

impl AdminCommand {
    /// Whether an activation did what was asked for, `revokes` telling whether it dropped the older
    /// keys. A new key is one whoever asked for it; one of the schedule, or of an order that was
    /// given up and came true late, revokes nothing.
    pub fn is_done_by(self, revokes: bool) -> bool {
        self == AdminCommand::Rotate || revokes
    }
}

/// What the leader knows of one member, itself included.
#[derive(Clone, Copy, Debug)]
pub struct MemberView {
    /// Which one.
    pub id: ServerId,
    /// When it was last heard; `None` if never. Not looked at for the leader itself.
    pub heard: Option<Moment>,
    /// It is reachable if it was heard within this time: the upper election bound, and by how much its
    /// heartbeats are further apart.
    pub reachable_within: Duration,
    /// The newest generation that it reported as installed in its ticket context.
    pub installed: Generation,
}

/// What the leader knows.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The agreed keys.
    pub ring: &'a KeyRing,
    /// When the current key became current.
    pub current_since: Moment,
    /// When this server saw the staged key.
    pub staged_since: Moment,
    /// When this server became leader.
    pub leader_since: Moment,
    /// This server.
    pub me: ServerId,
    /// All members of the agreed membership, this one included.
    pub members: &'a [MemberView],
    /// What an operator asked for and has not got yet.
    pub command: Option<AdminCommand>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Propose what the cluster was founded from.
    Found,
    /// Propose this generation, with a new key; the first one of a cluster incarnation is the leader's own
    /// initial STEK.
    Stage {
        /// The generation to stage.
        generation: Generation,
        /// Whether its activation drops every older key.
        revokes: bool,
    },
    /// Propose that all use it.
    Activate {
        /// The staged generation.
        generation: Generation,
        /// Servers that answer but have not installed in time; worth a line in the log.
        left_behind: Vec<ServerId>,
        /// Servers that were not heard; nobody waits for them.
        unreachable: Vec<ServerId>,
    },
    /// Nothing to do for this long, unless something changes.
    Wait(Duration),
}

/// Decides what the leader does next at the moment `now`.
pub fn next_step_at(now: Moment, policy: &Policy, view: &View<'_>) -> Step {
    if view.ring.cluster_id().is_none() {
        return Step::Found;
    }
    if let Some(staged) = view.ring.staged() {
        // Nobody takes a key that was revoked elsewhere meanwhile; its place is passed over.
        if view.ring.is_revoked(&staged.held.stek) {
            let (generation, none) = (staged.held.generation, Vec::new());
            return Step::Activate { generation, left_behind: none.clone(), unreachable: none };
        }
        return handover_at(now, policy, view, staged.held.generation);
    }
    let generation = view.ring.newest().next();
    if view.ring.current().is_none() {
        return Step::Stage { generation, revokes: false };
    }
    if view.ring.has_revoked() {
        return Step::Stage { generation, revokes: true };
    }
    if let Some(command) = view.command {
        return Step::Stage { generation, revokes: command == AdminCommand::Revoke };
    }
    match policy.interval.saturating_sub(now.since(view.current_since)) {
        Duration::ZERO => Step::Stage { generation, revokes: false },
        rest => Step::Wait(rest),
    }
}

fn handover_at(now: Moment, policy: &Policy, view: &View<'_>, generation: Generation) -> Step {
    // One that was staged before this server led is waited for from then on: it has yet to ask who has it.
    let since = view.staged_since.max(view.leader_since);
    let handover_rest = policy.handover_timeout.saturating_sub(now.since(since));
    let mut left_behind = Vec::new();
    let mut unreachable = Vec::new();
    let mut wait: Option<Duration> = None;
    for member in view.members.iter().filter(|m| m.installed < generation) {
        let rest = reachable_for_at(now, view, member);
        if rest.is_zero() {
            unreachable.push(member.id);
        } else if handover_rest.is_zero() {
            // One that is sent few heartbeats may be gone, and not be known to be.
            let has_answered = member.id == view.me || member.heard >= Some(since);
            if has_answered { &mut left_behind } else { &mut unreachable }.push(member.id);
        } else {
            let rest = rest.min(handover_rest);
            wait = Some(wait.map_or(rest, |w| w.min(rest)));
        }
    }
    match wait {
        Some(rest) => Step::Wait(rest),
        None => Step::Activate { generation, left_behind, unreachable },
    }
}

/// For how much longer a member counts as reachable if nothing is heard of it; zero if it does
/// not. A leader that has just been elected has not had time to hear everyone, so it takes all
/// members for reachable until one election bound has passed.
fn reachable_for_at(now: Moment, view: &View<'_>, member: &MemberView) -> Duration {
    if member.id == view.me {
        return member.reachable_within;
    }
    let heard = member.heard.unwrap_or_default().max(view.leader_since);
    member.reachable_within.saturating_sub(now.since(heard))
}

/// For how much longer the current key may encrypt without a quorum; zero if it is too old
/// (promise 5).
pub fn may_encrypt_for_at(now: Moment, current_since: Moment, max_key_age: Duration) -> Duration {
    max_key_age.saturating_sub(now.since(current_since))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::key_ring::{ClusterId, Command, RingKey};
    use crate::core::stek::{Stek, STEK_LEN};

    const POLICY: Policy =
        Policy { interval: Duration::from_secs(10), handover_timeout: Duration::from_millis(1500) };

    const REACH: Duration = Duration::from_millis(400);

    fn at(ms: u64) -> Moment {
        Moment::from_start(Duration::from_millis(ms))
    }

    fn ring(current: u64, staged: bool) -> KeyRing {
        let mut ring = KeyRing::default();
        let cluster_id = ClusterId::from_bytes([1; 16]).unwrap();
        ring.apply(Command::Found { cluster_id }).unwrap();
        for g in 1..=current + u64::from(staged) {
            let bytes: Vec<u8> = (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ g as u8).collect();
            let held =
                RingKey { generation: Generation(g), stek: Stek::copy_from(&bytes).unwrap() };
            ring.apply(Command::Stage { held, revokes: false }).unwrap();
            if g <= current {
                ring.apply(Command::Activate { generation: Generation(g), keep: 2 }).unwrap();
            }
        }
        ring
    }

    fn member(id: u32, heard: u64, installed: u64) -> MemberView {
        MemberView {
            id: ServerId(id),
            heard: Some(at(heard)),
            reachable_within: REACH,
            installed: Generation(installed),
        }
    }

    fn view<'a>(ring: &'a KeyRing, members: &'a [MemberView]) -> View<'a> {
        View {
            ring,
            current_since: at(10_000),
            staged_since: at(20_000),
            leader_since: at(5_000),
            me: ServerId(1),
            members,
            command: None,
        }
    }

    #[test]
    fn what_was_revoked_elsewhere_is_replaced_at_once() {
        let mut ring = KeyRing::default();
        let cluster_id = ClusterId::from_bytes([9; 16]).unwrap();
        ring.apply(Command::Found { cluster_id }).unwrap();
        let stek = |seed: u8| {
            let bytes: Vec<u8> = (0..STEK_LEN as u8).map(|i| i.wrapping_mul(7) ^ seed).collect();
            Stek::copy_from(&bytes).unwrap()
        };
        for g in 1..=2 {
            let held = RingKey { generation: Generation(g), stek: stek(g as u8) };
            ring.apply(Command::Stage { held, revokes: false }).unwrap();
            if g == 1 {
                ring.apply(Command::Activate { generation: Generation(1), keep: 2 }).unwrap();
            }
        }
        let now = Moment::from_start(Duration::from_secs(100));
        let next = |ring: &KeyRing| {
            let members = [MemberView { heard: Some(now), ..member(2, 0, 1) }];
            next_step_at(
                now,
                &POLICY,
                &View {
                    ring,
                    current_since: now,
                    staged_since: now,
                    leader_since: Moment::default(),
                    me: ServerId(1),
                    members: &members,
                    command: None,
                },
            )
        };
        assert!(matches!(next(&ring), Step::Wait(_)), "one server has not installed it");
        ring.apply(Command::Revoke(vec![stek(2).fingerprint()])).unwrap();
        let passed_over = Step::Activate {
            generation: Generation(2),
            left_behind: Vec::new(),
            unreachable: Vec::new(),
        };
        assert_eq!(next(&ring), passed_over);
        ring.apply(Command::Activate { generation: Generation(2), keep: 2 }).unwrap();
        assert_eq!(next(&ring), Step::Stage { generation: Generation(3), revokes: true });
    }

    #[test]
    fn a_cluster_id_begins_with_its_id_and_then_a_first_key() {
        let empty = KeyRing::default();
        assert_eq!(next_step_at(at(1), &POLICY, &view(&empty, &[])), Step::Found);
        let founded = ring(0, false);
        assert_eq!(
            next_step_at(at(1), &POLICY, &view(&founded, &[])),
            Step::Stage { generation: Generation(1), revokes: false }
        );
    }

    #[test]
    fn the_next_key_is_staged_when_the_interval_is_over_and_not_before() {
        let ring = ring(3, false);
        let view = view(&ring, &[]);
        assert_eq!(next_step_at(at(19_999), &POLICY, &view), Step::Wait(Duration::from_millis(1)));
        assert_eq!(
            next_step_at(at(20_000), &POLICY, &view),
            Step::Stage { generation: Generation(4), revokes: false }
        );
    }

    #[test]
    fn a_handover_that_drops_no_key_is_no_revocation() {
        assert!(AdminCommand::Rotate.is_done_by(false) && AdminCommand::Rotate.is_done_by(true));
        assert!(AdminCommand::Revoke.is_done_by(true) && !AdminCommand::Revoke.is_done_by(false));
        // So the order still stands when that handover is over, and is begun at once.
        let ring = ring(2, false);
        let mut view = view(&ring, &[]);
        view.command = Some(AdminCommand::Revoke);
        let step = next_step_at(view.current_since, &POLICY, &view);
        assert_eq!(step, Step::Stage { generation: Generation(3), revokes: true });
    }

    #[test]
    fn an_order_does_not_wait_for_the_interval() {
        let ring = ring(3, false);
        let mut view = view(&ring, &[]);
        view.command = Some(AdminCommand::Revoke);
        assert_eq!(
            next_step_at(at(10_001), &POLICY, &view),
            Step::Stage { generation: Generation(4), revokes: true }
        );
    }

    #[test]
    fn activation_waits_for_every_reachable_server() {
        let ring = ring(3, true);
        let members = [member(1, 0, 4), member(2, 20_050, 4), member(3, 20_050, 3)];
        assert_eq!(
            next_step_at(at(20_100), &POLICY, &view(&ring, &members)),
            Step::Wait(Duration::from_millis(350))
        );
        let members = [member(1, 0, 4), member(2, 20_050, 4), member(3, 20_050, 4)];
        assert_eq!(
            next_step_at(at(20_100), &POLICY, &view(&ring, &members)),
            Step::Activate { generation: Generation(4), left_behind: vec![], unreachable: vec![] }
        );
    }

    #[test]
    fn the_leader_itself_must_have_installed_too() {
        let ring = ring(3, true);
        let members = [member(1, 0, 3), member(2, 20_050, 4)];
        assert!(matches!(next_step_at(at(20_100), &POLICY, &view(&ring, &members)), Step::Wait(_)));
    }

    #[test]
    fn nobody_waits_for_a_server_that_is_not_heard() {
        let ring = ring(3, true);
        let members = [member(1, 0, 4), member(2, 19_600, 3)];
        assert_eq!(
            next_step_at(at(20_001), &POLICY, &view(&ring, &members)),
            Step::Activate {
                generation: Generation(4),
                left_behind: vec![],
                unreachable: vec![ServerId(2)]
            }
        );
    }

    #[test]
    fn a_server_that_is_sent_fewer_heartbeats_is_waited_for_longer() {
        let ring = ring(3, true);
        let mut members = [member(1, 0, 4), member(2, 19_600, 3), member(3, 19_600, 3)];
        members[1].reachable_within += Duration::from_millis(50);
        let step = |now| next_step_at(at(now), &POLICY, &view(&ring, &members));
        assert_eq!(step(20_001), Step::Wait(Duration::from_millis(49)));
        let unreachable = vec![ServerId(2), ServerId(3)];
        let generation = Generation(4);
        assert_eq!(step(20_050), Step::Activate { generation, left_behind: vec![], unreachable });
    }

    #[test]
    fn a_new_leader_gives_everyone_time_to_be_heard() {
        let ring = ring(3, true);
        let members = [member(1, 0, 4), member(2, 1_000, 0)];
        let mut view = view(&ring, &members);
        view.leader_since = at(19_900);
        assert_eq!(
            next_step_at(at(20_000), &POLICY, &view),
            Step::Wait(Duration::from_millis(300))
        );
        assert!(matches!(next_step_at(at(20_300), &POLICY, &view), Step::Activate { .. }));
    }

    #[test]
    fn a_server_that_answers_without_installing_is_left_behind_in_the_end() {
        let ring = ring(3, true);
        let members = [member(1, 0, 4), member(2, 21_450, 3)];
        assert_eq!(
            next_step_at(at(21_450), &POLICY, &view(&ring, &members)),
            Step::Wait(Duration::from_millis(50))
        );
        assert_eq!(
            next_step_at(at(21_500), &POLICY, &view(&ring, &members)),
            Step::Activate {
                generation: Generation(4),
                left_behind: vec![ServerId(2)],
                unreachable: vec![]
            }
        );
    }

    #[test]
    fn a_key_that_was_staged_long_before_is_waited_for_as_long() {
        let ring = ring(3, true);
        let members = [member(1, 0, 3), member(2, 31_499, 3)];
        let mut view = view(&ring, &members);
        view.leader_since = at(30_000);
        let step = |now| next_step_at(at(now), &POLICY, &view);
        assert_eq!(step(31_499), Step::Wait(Duration::from_millis(1)));
        let left_behind = vec![ServerId(1), ServerId(2)];
        let generation = Generation(4);
        assert_eq!(step(31_500), Step::Activate { generation, left_behind, unreachable: vec![] });
    }

    #[test]
    fn one_that_was_not_heard_since_the_key_was_staged_is_not_said_to_answer() {
        let ring = ring(3, true);
        let mut members = [member(1, 0, 4), member(2, 19_999, 3), member(3, 20_000, 3)];
        members.iter_mut().for_each(|member| member.reachable_within = Duration::from_secs(9));
        let generation = Generation(4);
        let (left_behind, unreachable) = (vec![ServerId(3)], vec![ServerId(2)]);
        let step = next_step_at(at(21_500), &POLICY, &view(&ring, &members));
        assert_eq!(step, Step::Activate { generation, left_behind, unreachable });
    }

    #[test]
    fn a_key_may_encrypt_up_to_its_age_and_no_longer() {
        let age = Duration::from_secs(20);
        assert_eq!(may_encrypt_for_at(at(29_000), at(10_000), age), Duration::from_secs(1));
        assert_eq!(may_encrypt_for_at(at(30_000), at(10_000), age), Duration::ZERO);
    }
}
