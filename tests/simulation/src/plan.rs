//! What one seed's fleet is like: how many servers, which settings, which network, which faults.
//!
//! Each seed has some of the faults only (as in swarm testing: Groce and others, 2012), because
//! many a fault hides behind another.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stek_share::core::config::{Member, Settings, Timers};
use stek_share::core::server_id::ServerId;

use crate::machine::state_dir;
use crate::network::Link;
use crate::rng::Rng;
use crate::{MS, SECOND};

/// The subject of every server's certificate.
pub const SUBJECT: &str = "/O=Simulation/CN=server";

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process is killed and comes back, its state file kept.
    Kill,
    /// The same, and its disk is empty then.
    KillEmpty,
    /// It is back at once.
    Restart,
    /// Several processes are killed together.
    KillMany,
    /// A process ends in an orderly way and comes back.
    Stop,
    /// A machine boots, and its wall clock may have stepped.
    Boot,
    /// A process does not run for a while; in every second case its whole machine is suspended.
    Pause,
    /// A wall clock steps.
    WallStep,
    /// A clock runs at another speed from now on.
    Drift,
    /// The servers are parted in two groups.
    Part,
    /// One server is cut off.
    Isolate,
    /// Some links are cut in one direction.
    CutOneWay,
    /// Some links lose messages.
    Loss,
    /// Some links are slow.
    Delay,
    /// Some links double messages, and let them overtake each other.
    Disorder,
    /// A disk is slow.
    SlowDisk,
    /// A disk takes nothing.
    BrokenDisk,
    /// A file of before comes back.
    OldFile,
    /// A host is slow to take keys.
    SlowHost,
    /// A host takes no keys.
    BrokenHost,
    /// A vote request arrives when one who granted it has begun anew.
    LateVotes,
    /// A proxy resets all connections with a server that lives on; it may be dialled again at once.
    Reset,
    /// A majority is gone, an operator gives it up for lost, and it comes back all the same.
    Recover,
}

impl Kind {
    /// All that any server can have; [`Kind::OldFile`] is for those with files, [`Kind::LateVotes`]
    /// for groups where some may vote without the others. [`Kind::Reset`] and [`Kind::Recover`] come by
    /// themselves, too.
    pub const ALL: [Kind; 19] = [
        Kind::Kill,
        Kind::KillEmpty,
        Kind::Restart,
        Kind::KillMany,
        Kind::Stop,
        Kind::Boot,
        Kind::Pause,
        Kind::WallStep,
        Kind::Drift,
        Kind::Part,
        Kind::Isolate,
        Kind::CutOneWay,
        Kind::Loss,
        Kind::Delay,
        Kind::Disorder,
        Kind::SlowDisk,
        Kind::BrokenDisk,
        Kind::SlowHost,
        Kind::BrokenHost,
    ];
}

/// See the module's head. Times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Servers, with ids from 1.
    pub servers: u32,
    /// Servers that are not in the first list.
    pub spare: u32,
    /// Whether entries of the list say that some servers do not vote, others with each change.
    pub some_do_not_vote: bool,
    /// `heart_beat_interval`.
    pub heartbeat: u64,
    /// `election_timeout_lower_bound`.
    pub lower: u64,
    /// `election_timeout_upper_bound`.
    pub upper: u64,
    /// `key_update_interval`.
    pub interval: u64,
    /// `handover_timeout`.
    pub handover: u64,
    /// `max_key_age`.
    pub max_key_age: u64,
    /// `client_req_timeout`.
    pub request_timeout: u64,
    /// `startup_wait`.
    pub startup_wait: u64,
    /// `ticket_keys`.
    pub ticket_keys: u64,
    /// `reserved_log_items` and `snapshot_distance`.
    pub log: (u64, u64),
    /// Whether servers have a `state_dir`.
    pub keeps_state: bool,
    /// The most that an install takes while all is well.
    pub installing: u64,
    /// The network while all is well.
    pub link: Link,
    /// The faults that happen, and the mean time between two.
    pub faults: Vec<Kind>,
    /// See `faults`.
    pub fault_gap: u64,
    /// The mean time between two orders of operators, if there are any.
    pub order_gap: Option<u64>,
    /// The mean time between two changes of the list, if there are any.
    pub list_gap: Option<u64>,
    /// For how long faults happen.
    pub fault_phase: u64,
}

/// Whether all seeds are of five servers with no fault but [`Kind::LateVotes`], which is rare else.
pub static LATE_VOTES: AtomicBool = AtomicBool::new(false);

/// Whether all seeds have no fault but [`Kind::Reset`], many of them, and no change of the list.
pub static RESETS: AtomicBool = AtomicBool::new(false);

/// Whether all seeds have foundings, changes of the list and orders all the time, each in the midst of
/// others.
pub static FOUNDINGS: AtomicBool = AtomicBool::new(false);

/// Whether all seeds have more servers than vote.
pub static LARGE: AtomicBool = AtomicBool::new(false);

/// Of fewer servers all vote: the others could not go on without a single one.
const LEAST_OF_VOTERS: usize = 5;

/// How many servers a large fleet has.
const LARGE_FLEETS: (u64, u64) = (8, 60);

impl Plan {
    /// A seed's plan.
    pub fn new(rng: &mut Rng) -> Plan {
        let servers = *rng.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 7]);
        let late = LATE_VOTES.load(Ordering::Relaxed);
        let large = LARGE.load(Ordering::Relaxed);
        let servers = match (late, large) {
            (true, _) => 5,
            (_, true) => rng.between(LARGE_FLEETS.0, LARGE_FLEETS.1) as u32,
            _ => servers,
        };
        let heartbeat = *rng.pick(&[50, 100, 100, 100, 200]) * MS;
        let lower = 2 * heartbeat;
        let interval = rng.between(5, 20) * SECOND;
        let handover = (interval / 2).min(rng.between(500, 2000) * MS);
        let far = rng.chance(300);
        let least = if far { rng.below(lower / 8) } else { 50_000 };
        let link =
            Link { cut: false, loss: 0, double: 0, delay: (least, least + lower / 100), burst: 1 };
        let change = rng.chance(350) && servers >= 3;
        let mut plan = Plan {
            servers,
            spare: u32::from(change && servers >= 4),
            some_do_not_vote: false,
            heartbeat,
            lower,
            upper: 2 * lower,
            interval,
            handover,
            max_key_age: interval * rng.between(2, 4),
            request_timeout: *rng.pick(&[1, 3, 3]) * SECOND,
            startup_wait: rng.below(3) * SECOND,
            ticket_keys: *rng.pick(&[2, 2, 2, 3, 4]),
            log: (rng.below(8), rng.below(8)),
            keeps_state: rng.chance(400),
            installing: rng.between(0, handover / 4 / MS) * MS,
            link,
            faults: Kind::ALL.into_iter().filter(|_| rng.chance(400)).collect(),
            fault_gap: rng.spread(1000, 20_000) * MS,
            order_gap: rng.chance(500).then(|| rng.between(5, 30) * SECOND),
            list_gap: change.then(|| rng.between(10, 30) * SECOND),
            fault_phase: rng.between(40, 90) * SECOND,
        };
        if plan.keeps_state && rng.chance(400) {
            plan.faults.push(Kind::OldFile);
        }
        if late {
            plan.faults = vec![Kind::LateVotes];
            plan.fault_gap = 3 * SECOND;
        } else if plan.servers >= 4 && rng.chance(300) {
            plan.faults.push(Kind::LateVotes);
        }
        if RESETS.load(Ordering::Relaxed) {
            plan.faults = vec![Kind::Reset];
            (plan.fault_gap, plan.list_gap) = (SECOND, None);
        } else if !late && rng.chance(250) {
            plan.faults.push(Kind::Reset);
        }
        if plan.servers >= 3 && rng.chance(150) {
            plan.faults.push(Kind::Recover);
        }
        if FOUNDINGS.load(Ordering::Relaxed) {
            plan.meet(rng);
            return plan;
        }
        plan.some_do_not_vote = !late && plan.servers >= 4 && rng.chance(300);
        plan
    }

    /// Foundings, changes of the list and orders all the time; what arrives does so at once and twice.
    fn meet(&mut self, rng: &mut Rng) {
        self.servers = *rng.pick(&[3, 5, 5, 7]);
        self.spare = 1;
        self.some_do_not_vote = self.servers >= 5;
        self.keeps_state = rng.chance(600);
        self.faults = vec![Kind::KillMany, Kind::Recover, Kind::Pause, Kind::CutOneWay];
        self.faults.extend([Kind::Restart; 3]);
        if self.keeps_state {
            self.faults.extend([Kind::SlowDisk; 4]);
            self.faults.push(Kind::OldFile);
        }
        self.fault_gap = self.upper * rng.between(1, 10) / 2;
        self.order_gap = Some(2 * SECOND);
        self.list_gap = Some(3 * SECOND);
        self.link.double = 200;
        self.link.burst = self.lower / rng.between(8, 40);
    }

    /// The plan of a scenario: what the documents recommend, and nothing befalls anybody.
    pub fn calm(servers: u32) -> Plan {
        let mut plan = Plan {
            servers,
            spare: 0,
            some_do_not_vote: false,
            heartbeat: 100 * MS,
            lower: 200 * MS,
            upper: 400 * MS,
            interval: 0,
            handover: SECOND,
            max_key_age: 0,
            request_timeout: 3 * SECOND,
            startup_wait: 2 * SECOND,
            ticket_keys: 2,
            log: (4, 8),
            keeps_state: false,
            installing: 20 * MS,
            link: Link { cut: false, loss: 0, double: 0, delay: (MS / 5, MS / 2), burst: 1 },
            faults: Vec::new(),
            fault_gap: 0,
            order_gap: None,
            list_gap: None,
            fault_phase: 0,
        };
        plan.set_interval(20 * SECOND);
        plan
    }

    /// Sets `key_update_interval`, and how old a key may become with it.
    pub fn set_interval(&mut self, interval: u64) {
        self.interval = interval;
        self.max_key_age = 3 * interval;
    }

    /// The entry of a server in the list of these.
    pub fn member_of(&self, id: u32, list: &BTreeSet<u32>) -> Member {
        let is_third = (id as usize + list.len()).is_multiple_of(3);
        let all_vote = !self.some_do_not_vote || list.len() < LEAST_OF_VOTERS;
        Member { voter: all_vote || !is_third, ..Plan::member(id) }
    }

    fn member(id: u32) -> Member {
        Member {
            id: ServerId(id),
            address: format!("10.0.0.{id}"),
            port: 4000,
            subject: None,
            voter: true,
        }
    }

    /// The settings of a server whose file has these members.
    pub fn settings(&self, id: u32, members: Vec<Member>) -> Settings {
        let me = Plan::member(id);
        Settings {
            server_id: me.id,
            address: me.address,
            port: me.port,
            workers: 1,
            timers: Timers {
                heartbeat: Duration::from_nanos(self.heartbeat),
                election_lower: Duration::from_nanos(self.lower),
                election_upper: Duration::from_nanos(self.upper),
            },
            reserved_log_items: self.log.0,
            snapshot_distance: self.log.1,
            request_timeout: Duration::from_nanos(self.request_timeout),
            key_update_interval: Duration::from_nanos(self.interval),
            handover_timeout: Duration::from_nanos(self.handover),
            startup_wait: Duration::from_nanos(self.startup_wait),
            ticket_keys: self.ticket_keys as usize,
            max_key_age: Duration::from_nanos(self.max_key_age),
            state_dir: self.keeps_state.then(state_dir),
            root_cert_file: "root.pem".into(),
            server_cert_file: "cert.pem".into(),
            server_key_file: "key.pem".into(),
            cert_verify_str: SUBJECT.to_owned(),
            members,
            ..Settings::defaults()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A condition that always holds, or never, leaves half of what is to be tried out.
    #[test]
    fn each_kind_of_fleet_is_planned_and_none_is_all_there_is() {
        let plans: Vec<Plan> = (1..=2000).map(|seed| Plan::new(&mut Rng::new(seed, 1))).collect();
        let share = |of: &dyn Fn(&Plan) -> bool, is: &dyn Fn(&Plan) -> bool| {
            let counted: Vec<&Plan> = plans.iter().filter(|plan| of(plan)).collect();
            counted.iter().filter(|plan| is(plan)).count() * 100 / counted.len()
        };
        let has = |kind: Kind| move |plan: &Plan| plan.faults.contains(&kind);
        let at_least = |servers: u32| move |plan: &Plan| plan.servers >= servers;
        let shares = [
            ("some do not vote", share(&at_least(5), &|plan| plan.some_do_not_vote)),
            ("late votes", share(&at_least(4), &has(Kind::LateVotes))),
            ("resets", share(&at_least(1), &has(Kind::Reset))),
            ("an operator recovers", share(&at_least(3), &has(Kind::Recover))),
            ("kills", share(&at_least(1), &has(Kind::Kill))),
            ("files", share(&at_least(1), &|plan| plan.keeps_state)),
            ("changes of the list", share(&at_least(3), &|plan| plan.list_gap.is_some())),
            ("orders", share(&at_least(1), &|plan| plan.order_gap.is_some())),
        ];
        for (what, share) in shares {
            assert!((10..=60).contains(&share), "{what} in {share} of a hundred");
        }
    }
}
