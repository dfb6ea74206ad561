use crate::fleet::{block_on, wait_for, Fleet};
use std::thread::sleep;
use std::time::{Duration, Instant};
use stek_share::core::config::Settings;
#[allow(unused_imports)]
use stek_share::core::rotation::Order;
use stek_share::node::Role;
fn slow(_: &mut Settings) {}

fn sum(fleet: &Fleet) -> String {
    let mut t = String::new();
    for (id, b) in &fleet.boxes {
        t += &format!("box {id}: {:?} installed {:?}\n", b.report(), b.host.latest());
    }
    t
}
fn ok_within(fleet: &Fleet, d: Duration, cond: impl Fn() -> bool) -> bool {
    let b = Instant::now();
    while b.elapsed() < d {
        if cond() {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    println!("STUCK:\n{}", fleet.describe());
    false
}

#[test]
fn r1_two_boxes_leader_restarts() {
    let mut fleet = Fleet::running(2, slow);
    fleet.wait_until_one();
    let l = fleet.wait_for_leader();
    fleet.kill(l);
    fleet.start(l);
    assert!(
        ok_within(&fleet, Duration::from_secs(15), || fleet.is_one() && fleet.leader().is_some())
    );
}

#[test]
fn r2_three_boxes_leader_and_follower_restart() {
    let mut fleet = Fleet::running(3, slow);
    fleet.wait_until_one();
    let l = fleet.wait_for_leader();
    let f = *fleet.boxes.keys().find(|i| **i != l).unwrap();
    fleet.kill(l);
    fleet.kill(f);
    fleet.start(l);
    fleet.start(f);
    assert!(
        ok_within(&fleet, Duration::from_secs(15), || fleet.is_one() && fleet.leader().is_some())
    );
}

#[test]
fn r3_rolling_restart_of_all_too_fast() {
    for gap in [100u64, 300, 500] {
        let mut fleet = Fleet::running(3, slow);
        fleet.wait_until_one();
        let l = fleet.wait_for_leader();
        let mut ids: Vec<u32> = fleet.boxes.keys().copied().filter(|i| *i != l).collect();
        ids.push(l);
        for id in ids {
            fleet.kill(id);
            fleet.start(id);
            sleep(Duration::from_millis(gap));
        }
        println!("gap {gap}");
        assert!(
            ok_within(&fleet, Duration::from_secs(15), || fleet.is_one()
                && fleet.leader().is_some()),
            "gap {gap}"
        );
    }
}

/// Stalls box `id` (all its workers) for `d`, as a stopped VM would.
fn freeze(fleet: &Fleet, id: u32, d: Duration) {
    let rt = fleet.boxes[&id].runtime.as_ref().unwrap();
    for _ in 0..2 {
        rt.spawn(async move { std::thread::sleep(d) });
    }
    sleep(Duration::from_millis(20));
}

#[test]
fn r4_majority_restarts_while_one_is_frozen() {
    let mut fleet = Fleet::running(3, slow);
    fleet.wait_until_one();
    let l = fleet.wait_for_leader();
    let f = *fleet.boxes.keys().find(|i| **i != l).unwrap();
    let others: Vec<u32> = fleet.boxes.keys().copied().filter(|i| *i != f).collect();
    freeze(&fleet, f, Duration::from_secs(4));
    for id in &others {
        fleet.kill(*id);
    }
    for id in &others {
        fleet.start(*id);
    }
    sleep(Duration::from_secs(5));
    println!("{}", sum(&fleet));
    assert!(
        ok_within(&fleet, Duration::from_secs(15), || fleet.is_one() && fleet.leader().is_some())
    );
}

#[test]
fn r5_parallel_restart_of_the_whole_fleet() {
    for gap in [200u64, 400, 550] {
        let mut fleet = Fleet::running(3, slow);
        fleet.wait_until_one();
        let l = fleet.wait_for_leader();
        let f: Vec<u32> = fleet.boxes.keys().copied().filter(|i| *i != l).collect();
        for id in &f {
            fleet.kill(*id);
        }
        for id in &f {
            fleet.start(*id);
        }
        sleep(Duration::from_millis(gap));
        fleet.kill(l);
        sleep(Duration::from_millis(700));
        fleet.start(l);
        println!("gap {gap}");
        assert!(
            ok_within(&fleet, Duration::from_secs(12), || fleet.is_one()
                && fleet.leader().is_some()),
            "gap {gap}"
        );
    }
}

#[test]
fn r6_old_initial_key_comes_back_as_generation_1() {
    for _ in 0..2 {
        r6()
    }
}
fn r6() {
    let mut fleet = Fleet::new(2, |s| {
        s.key_update_interval = Duration::from_secs(1);
        s.handover_timeout = Duration::from_millis(500);
    });
    fleet.start(2);
    let initial = {
        wait_for("set", || !fleet.boxes[&2].host.latest().is_empty(), || fleet.describe());
        fleet.boxes[&2].host.latest()[0]
    };
    wait_for(
        "three own keys",
        || {
            fleet.boxes[&2].lines.all().iter().filter(|(_, l)| l.contains("own key is now")).count()
                >= 3
        },
        || fleet.describe(),
    );
    assert!(!fleet.boxes[&2].host.latest().contains(&initial), "gone from the host");
    println!("initial {initial} retired; host now {:?}", fleet.boxes[&2].host.latest());
    fleet.start(1);
    wait_for("gen 1", || fleet.boxes[&2].report().current.0 >= 1, || fleet.describe());
    let l = fleet.wait_for_leader();
    let back = fleet.boxes[&2]
        .host
        .sets
        .lock()
        .unwrap()
        .iter()
        .rev()
        .take(3)
        .any(|(_, k)| k.contains(&initial));
    println!(
        "leader {l}, retired initial back in use: {back}, now {:?}",
        fleet.boxes[&2].host.latest()
    );
    assert!(!back);
}

#[test]
fn r7_cold_start_with_hosts_that_ack_only_after_init() {
    let mut fleet = Fleet::new(3, slow);
    let b = Instant::now();
    for id in 1..=3 {
        fleet.start(id);
        fleet.boxes[&id].host.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    }
    let hs: Vec<_> = (1..=3)
        .map(|id| {
            let n = fleet.boxes[&id].node.clone();
            std::thread::spawn(move || {
                let r = loop {
                    let r = block_on(n.wait_for_group(Duration::from_secs(10)));
                    if r != stek_share::node::Joined::NoMajority {
                        break r;
                    }
                    sleep(Duration::from_millis(5));
                };
                (r, b.elapsed())
            })
        })
        .collect();
    for h in hs {
        println!("{:?}", h.join().unwrap());
    }
    for (id, x) in &fleet.boxes {
        for (l, line) in x.lines.all() {
            if line.contains("left") || line.contains("has not installed") {
                println!("{id} {l:?} {line}");
            }
        }
    }
}

#[test]
fn r8_max_key_age_equal_to_the_interval() {
    let fleet = Fleet::running(3, |s| {
        s.key_update_interval = Duration::from_secs(2);
        s.max_key_age = Duration::from_secs(2);
        s.handover_timeout = Duration::from_millis(1000);
    });
    fleet.wait_for_generation(3);
    let bad: usize = fleet
        .boxes
        .values()
        .map(|b| b.lines.all().iter().filter(|(_, l)| l.contains("too old to")).count())
        .sum();
    println!("'no majority' warnings with full quorum: {bad}");
    assert_eq!(bad, 0);
}

#[test]
fn r9_failover_when_the_leader_freezes() {
    let mut worst = Duration::ZERO;
    for round in 0..4 {
        let fleet = Fleet::running(3, slow);
        fleet.wait_until_one();
        let l = fleet.wait_for_leader();
        sleep(Duration::from_millis(300 + round * 37));
        eprintln!("--- FREEZE {l}");
        let b = Instant::now();
        freeze(&fleet, l, Duration::from_secs(5));
        while !fleet.boxes.iter().any(|(id, x)| *id != l && x.report().role == Role::Leader)
            && b.elapsed() < Duration::from_secs(8)
        {
            sleep(Duration::from_millis(5));
        }
        println!("round {round}: new leader after {:?}", b.elapsed());
        worst = worst.max(b.elapsed());
    }
    println!("worst {worst:?}");
}

/// A box whose process lives on but whose Raft starts anew, or a group cold-started around it: the new history's
/// generation numbers start again at 1 while it reports the old one as installed.
#[test]
fn r10_two_boxes_survivor_follower_waits_for_ever_then_owns() {
    // as r1, but with short ages: the survivor must be back by itself some time.
    let mut fleet = Fleet::running(2, |s| {
        s.key_update_interval = Duration::from_secs(1);
        s.max_key_age = Duration::from_secs(3);
        s.handover_timeout = Duration::from_millis(500);
    });
    fleet.wait_until_one();
    let l = fleet.wait_for_leader();
    fleet.kill(l);
    fleet.start(l);
    assert!(
        ok_within(&fleet, Duration::from_secs(20), || fleet.is_one() && fleet.leader().is_some())
    );
}
/// The leader is frozen in the middle of a handover, another takes over; the old one thaws.
#[test]
fn r11_thawed_leader_in_a_handover() {
    for round in 0..3 {
        let mut fleet = Fleet::running(3, |s| {
            s.key_update_interval = Duration::from_secs(1);
            s.handover_timeout = Duration::from_millis(500);
        });
        fleet.wait_for_generation(2);
        let l = fleet.wait_for_leader();
        freeze(&fleet, l, Duration::from_secs(4));
        sleep(Duration::from_millis(4500));
        let g = fleet.boxes.values().map(|b| b.report().current.0).max().unwrap();
        if !ok_within(&fleet, Duration::from_secs(15), || {
            fleet.is_one() && fleet.boxes.values().all(|b| b.report().current.0 >= g + 1)
        }) {
            panic!("round {round}");
        }
        for (id, b) in &fleet.boxes {
            let sets = b.host.sets.lock().unwrap().clone();
            for p in sets.windows(2) {
                if !p[0].1.contains(&p[1].1[0]) {
                    println!(
                        "round {round} box {id} (leader was {l}): jump {:?} -> {:?}",
                        p[0].1, p[1].1
                    );
                }
            }
        }
        let _ = &mut fleet;
    }
}

fn gens(fleet: &mut Fleet, n: u64) {
    fleet.wait_until_one();
    while fleet.boxes[&1].report().current.0 < n {
        let g = block_on(fleet.boxes[&1].node.order(Order::Rotate));
        if let Ok(g) = g {
            fleet.wait_for_generation(g.0);
        }
    }
}
fn rnd(s: &mut u64) -> u64 {
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    *s >> 3
}
fn chaos(n: u32, secs: u64, freezes: bool) {
    let mut s = 0x9E3779B97F4A7C15u64
        ^ std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
            as u64;
    let mut fleet = Fleet::running(n, |s| {
        s.key_update_interval = Duration::from_secs(1);
        s.handover_timeout = Duration::from_millis(500);
    });
    fleet.wait_until_one();
    let b = Instant::now();
    let mut round = 0;
    let mut worst = Duration::ZERO;
    let mut histories = 1;
    let mut h = fleet.boxes[&1].report().history;
    while b.elapsed() < Duration::from_secs(secs) {
        round += 1;
        let mut script = String::new();
        let ops = 1 + rnd(&mut s) % (n as u64 + 1);
        for _ in 0..ops {
            let id = 1 + (rnd(&mut s) % n as u64) as u32;
            let gap = rnd(&mut s) % 700;
            if freezes && rnd(&mut s) % 3 == 0 && fleet.boxes.contains_key(&id) {
                let d = rnd(&mut s) % 900;
                script += &format!("freeze {id} {d}; ");
                freeze(&fleet, id, Duration::from_millis(d));
            } else if fleet.boxes.contains_key(&id) {
                script += &format!("kill {id}; ");
                fleet.kill(id);
                if rnd(&mut s) % 2 == 0 {
                    script += "start; ";
                    fleet.start(id);
                }
            } else {
                script += &format!("start {id}; ");
                fleet.start(id);
            }
            script += &format!("+{gap} ");
            sleep(Duration::from_millis(gap));
        }
        for id in 1..=n {
            if !fleet.boxes.contains_key(&id) {
                script += &format!("start {id}; ");
                fleet.start(id);
            }
        }
        let t = Instant::now();
        if !ok_within(&fleet, Duration::from_secs(20), || {
            fleet.is_one() && fleet.leader().is_some()
        }) {
            panic!("round {round}: {script}");
        }
        let now = fleet.boxes[&1].report().history;
        if now != h {
            histories += 1;
            h = now;
        }
        if t.elapsed() > worst {
            worst = t.elapsed();
            println!("n {n} round {round} worst {worst:?}: {script}");
        }
    }
    println!("n {n}: {round} rounds, {histories} histories, worst {worst:?}");
}
#[test]
fn c3() {
    chaos(3, 110, false)
}
#[test]
fn c5() {
    chaos(5, 60, false)
}
#[test]
fn c3f() {
    chaos(3, 60, true)
}
#[test]
fn c2() {
    chaos(2, 40, false)
}
#[test]
fn r14_three_restarts_in_a_second() {
    for round in 0..12u64 {
        let mut fleet = Fleet::running(3, |s| {
            s.key_update_interval = Duration::from_secs(1);
            s.handover_timeout = Duration::from_millis(500);
        });
        fleet.wait_for_generation(2);
        fleet.kill(2);
        fleet.start(2);
        sleep(Duration::from_millis(177));
        fleet.kill(3);
        fleet.start(3);
        sleep(Duration::from_millis(504 - 20 * round));
        fleet.kill(1);
        fleet.start(1);
        sleep(Duration::from_millis(225));
        fleet.kill(3);
        sleep(Duration::from_millis(37));
        fleet.start(3);
        if !ok_within(&fleet, Duration::from_secs(10), || {
            fleet.is_one() && fleet.leader().is_some()
        }) {
            println!("{}", sum(&fleet));
            panic!("round {round}");
        }
    }
}
/// The old leader X dies with box 1; box 3 (quarantined) remembers X's ballot; 1 and X start cold.
#[test]
fn r15_zombie_leader() {
    let mut stuck = 0;
    for round in 0..8u64 {
        let mut fleet = Fleet::running(3, slow);
        fleet.wait_until_one();
        let x = fleet.wait_for_leader();
        let o: Vec<u32> = fleet.boxes.keys().copied().filter(|i| *i != x).collect();
        // One box asks around while only X (full) answers: best effort, X's ballot in its vote.
        fleet.kill(o[0]);
        fleet.kill(o[1]);
        fleet.start(o[1]);
        sleep(Duration::from_millis(60 + 20 * round));
        fleet.kill(x);
        sleep(Duration::from_millis(700));
        fleet.start(x);
        fleet.start(o[0]);
        if !ok_within(&fleet, Duration::from_secs(10), || {
            fleet.is_one() && fleet.leader().is_some()
        }) {
            stuck += 1;
            println!("round {round} x {x}\n{}", sum(&fleet));
            break;
        }
    }
    assert_eq!(stuck, 0);
}
