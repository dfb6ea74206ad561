//! Panics in servers that run: every task, and the hooks that come while a server runs.

use testkit::{Error, Result};

use crate::stage::{serves, Stage};

/// What has to happen for a point to be passed, if not what a group that rotates does anyway.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trigger {
    /// A rotation, on whichever server passes it first.
    Rotation,
    /// A client's handshake.
    Handshake,
    /// A message to the server.
    Message(&'static str),
    /// `traffic_ctl config reload`.
    HostReload,
    /// Another server's return, which dials and is dialled.
    Return,
    /// The same without what it keeps in `state_dir`, so that it needs a snapshot.
    EmptyReturn,
    /// The server's own return, without that either, so that it is joining.
    OwnReturn,
    /// The leader's death.
    Death,
}

use Trigger::{Death, EmptyReturn, Handshake, HostReload, Message, OwnReturn, Return, Rotation};

/// Every place where a panic can be planted in a running server.
const POINTS: &[(&str, Trigger)] = &[
    ("hook-hello", Handshake),
    ("line", Return),
    ("snapshot", EmptyReturn),
    ("vote", Death),
    ("heartbeat-ask", Rotation),
    ("save", Rotation),
    ("asker", OwnReturn),
    ("hook-message", Message("status")),
    ("hook-reload", HostReload),
    ("operator", Message("status")),
    ("reader", Message("reload")),
    ("accept", Return),
    ("connection", Return),
    ("verify", Return),
    ("worker", Return),
    ("append", Rotation),
    ("apply", Rotation),
    ("ask-installed", Rotation),
    ("heartbeat", Rotation),
    ("conversation", Rotation),
    ("rpc_server", Rotation),
    ("installer", Rotation),
    ("key_publisher", Rotation),
    ("leader", Rotation),
    ("metrics", Rotation),
    ("replicate", Rotation),
    ("server_list", Rotation),
];

#[test]
fn a_running_server_survives_a_panic_anywhere_and_takes_part_again() -> Result<()> {
    let mut stage = Stage::new("running", 3)?;
    stage.fleet.start()?;
    stage.all_take_part()?;
    for (point, trigger) in POINTS {
        let begin = std::time::Instant::now();
        survive(&mut stage, point, *trigger)
            .map_err(|error| Error::new(format!("{point}: {error}")))?;
        println!("{point} ({trigger:?}): survived, all in one again after {:?}", begin.elapsed());
    }
    stage.done()
}

fn survive(stage: &mut Stage, point: &str, trigger: Trigger) -> Result<()> {
    let processes: Vec<u32> = (0..3).map(|i| stage.process_of(i)).collect::<Result<_>>()?;
    let marks: Vec<usize> = stage.fleet.servers.iter().map(|ats| ats.diags().len()).collect();
    let mut restarted = None;
    let among: &[usize] = match trigger {
        Rotation | Death => &[0, 1, 2],
        EmptyReturn => &[0, 1, 2],
        // Who asks whom is for the roles to say.
        Return if point == "line" => &[0, 1, 2],
        _ => &[0],
    };
    let plant = |stage: &Stage| among.iter().try_for_each(|index| stage.plant(*index, point));
    match trigger {
        Rotation => plant(stage)?,
        Handshake => {
            plant(stage)?;
            stage.handshake(0)?;
        }
        Message(verb) => {
            plant(stage)?;
            stage.send(0, verb)?;
        }
        HostReload => {
            plant(stage)?;
            stage.fleet.servers[0].ctl(&["config", "reload"])?;
        }
        Return | EmptyReturn | OwnReturn | Death => {
            let index = match trigger {
                Return | EmptyReturn => 1,
                OwnReturn => 0,
                _ => stage.fleet.leader().ok_or_else(|| Error::new("no leader is known"))?.index,
            };
            restarted = Some(index);
            if trigger == Death {
                plant(stage)?;
            }
            stage.kill(index)?;
            if matches!(trigger, EmptyReturn | OwnReturn) {
                stage.forget(index)?;
            }
            if trigger != Death {
                plant(stage)?;
            }
            stage.fleet.servers[index].start()?;
            stage.fleet.servers[index].wait_ready()?;
        }
    }
    let index = stage.panicked(among, point)?;
    stage.wait_line(index, marks[index], &format!("planted at {point}"))?;
    serves(&stage.fleet.servers[index])?;
    stage.all_take_part()?;
    let news = stage.fleet.servers[index].diags().split_off(marks[index]);
    if restarted != Some(index) && news.contains("(this server's own)") {
        return Err(Error::new(format!("the group's keys were given up\n{news}")));
    }
    for (i, process) in processes.into_iter().enumerate() {
        if restarted != Some(i) && stage.process_of(i)? != process {
            return Err(Error::new(format!("server {} is not the process that it was", i + 1)));
        }
    }
    Ok(())
}
