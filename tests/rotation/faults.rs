//! Rotations while servers stand still, die and return: the servers that are up lose nothing, and no
//! rotation is late.

use std::thread;
use std::time::Duration;

use testkit::Result;

use crate::stage::{turn, Return, Stage};
use crate::Effort;

/// What happens to one server.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Stands still for less than an interval.
    StandsStill,
    /// Stands still while the others change the key.
    MissesRotation,
    /// Leads, and stands still while the others change the key.
    LeaderMissesRotation,
    /// Dies, and returns after a rotation.
    Dies,
    /// Leads, and dies.
    LeaderDies,
    /// Leads, and dies when a handover is due.
    LeaderDiesInHandover,
}

const FAULTS: [Fault; 6] = [
    Fault::StandsStill,
    Fault::MissesRotation,
    Fault::LeaderMissesRotation,
    Fault::Dies,
    Fault::LeaderDies,
    Fault::LeaderDiesInHandover,
];

#[test]
fn servers_that_are_up_lose_no_session_when_others_fail() -> Result<()> {
    let _turn = turn();
    let mut stage = Stage::set(Effort::from_environment())?;
    let first = stage.generation();
    // Until as many rotations and offers as wanted have met faults, each fault once at least.
    for (number, fault) in FAULTS.into_iter().cycle().enumerate() {
        if number >= FAULTS.len() && stage.is_done(first) {
            break;
        }
        let back = meet(&mut stage, fault)?;
        let Return { took, offers, missed } = back;
        println!("{fault:?}: caught up after {took:?}; {missed} of {offers} missed meanwhile");
        stage.wait_generation(stage.generation() + 1)?;
    }
    println!("{}", stage.check_gaps(first)?);
    println!("{}", stage.end()?);
    Ok(())
}

/// Lets one fault happen, and brings the server back.
fn meet(stage: &mut Stage, fault: Fault) -> Result<Return> {
    let interval = stage.effort.interval;
    let index = match fault {
        Fault::StandsStill | Fault::MissesRotation | Fault::Dies => stage.follower()?,
        _ => stage.leader()?,
    };
    match fault {
        Fault::StandsStill => stand_still(stage, index, interval / 2),
        Fault::MissesRotation | Fault::LeaderMissesRotation => {
            stand_still(stage, index, interval.mul_f64(1.2))
        }
        Fault::Dies | Fault::LeaderDies => die(stage, index),
        Fault::LeaderDiesInHandover => {
            stage.wait_generation(stage.generation() + 1)?;
            // The wait saw the rotation up to some 20 ms late; a handover takes about as long.
            thread::sleep(interval - Duration::from_millis(20));
            die(stage, index)
        }
    }
}

fn stand_still(stage: &Stage, index: usize, span: Duration) -> Result<Return> {
    stage.load.set_up(index, false);
    stage.fleet.servers[index].pause()?;
    thread::sleep(span);
    stage.fleet.servers[index].resume()?;
    stage.catch_up(index)
}

fn die(stage: &mut Stage, index: usize) -> Result<Return> {
    stage.load.set_up(index, false);
    stage.fleet.servers[index].kill9();
    stage.wait_generation(stage.generation() + 1)?;
    stage.fleet.servers[index].start()?;
    stage.catch_up(index)
}
