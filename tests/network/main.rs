//! Real Traffic Servers on a network that parts, is slow and loses packets: each in a network
//! namespace of its own, behind a hub in user space. Clients reach all servers all the time.
//!
//! Needs root and /dev/net/tun, so that it runs only when asked for: `make prove-network`.
//! `STEK_SHARE_SO` names the plugin.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use testkit::fleet::{self, Fleet, Plan};
use testkit::hub::Hub;
use testkit::load::{self, Load};
use testkit::logs;
use testkit::run_dir::RunDir;
use testkit::tickets::KeyName;
use testkit::{wait, Error, Result};

const INTERVAL: Duration = Duration::from_secs(3);
/// So long a cut lasts: one rotation at least falls into it.
const CUT: Duration = Duration::from_secs(5);
/// How much later than the interval a rotation may be.
const LATE: Duration = Duration::from_secs(4);
/// After healing the fleet is to be one within 2 s, or 5 s on a slow or lossy network; a busy
/// machine may make more of it before the test fails.
const HEALING: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// Since when a server that was away counts as one of all again.
const STEADY: Duration = Duration::from_secs(1);

struct Scene {
    fleet: Fleet,
    load: Load,
    hub: Hub,
    what: &'static str,
    dir: RunDir,
}

impl Scene {
    fn begin(what: &'static str, size: usize, delay: u64, lost: u64) -> Result<Scene> {
        let hub = Hub::new(size)?;
        hub.weather(Duration::from_millis(delay), lost);
        let dir = RunDir::new("network")?;
        let plugin = std::env::var_os("STEK_SHARE_SO").map(PathBuf::from);
        let plugin = plugin.ok_or_else(|| Error::new("STEK_SHARE_SO has to name the plugin"))?;
        let plan = Plan::new(size, &plugin, INTERVAL).places(&hub.places());
        let mut fleet = plan.prepare(dir.path())?;
        let begun = Instant::now();
        fleet.start()?;
        println!("{what}: all accept handshakes after {:.2?}", begun.elapsed());
        let first = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
        println!("{what}: cold start to one key everywhere {:.2?}", begun.elapsed());
        fleet::wait_one_key(&fleet.https(), Some(&first), PATIENCE)?;
        let load =
            Load::start(&fleet.https(), load::Plan { per_second: 20, ..Default::default() })?;
        Ok(Scene { fleet, load, hub, what, dir })
    }

    fn leader(&self) -> Result<usize> {
        Ok(wait::until(PATIENCE, "a leader", || Ok(self.fleet.leader()))?.index)
    }

    fn all(&self) -> Vec<usize> {
        (0..self.fleet.servers.len()).collect()
    }

    fn others(&self, than: &[usize]) -> Vec<usize> {
        self.all().into_iter().filter(|index| !than.contains(index)).collect()
    }

    /// Clients use these servers as of one fleet, or no longer.
    fn use_servers(&self, servers: &[usize], up: bool) {
        servers.iter().for_each(|index| self.load.set_up(*index, up));
    }

    /// The key that a part of the fleet has and changes.
    fn rotates(&self, servers: &[usize]) -> Result<KeyName> {
        let https: Vec<_> =
            servers.iter().map(|index| self.fleet.servers[*index].https()).collect();
        let old = fleet::wait_one_key(&https, None, INTERVAL + LATE)?;
        fleet::wait_one_key(&https, Some(&old), INTERVAL + LATE)
    }

    /// Heals all, and waits until the fleet is one.
    fn heal(&self, how: &str, away: &[usize]) -> Result<()> {
        self.hub.silence(&self.all(), &self.all(), false);
        let healed = Instant::now();
        fleet::wait_one_key(&self.fleet.https(), None, PATIENCE)?;
        let took = healed.elapsed();
        println!("{}: {how}: one again {took:.2?} after healing", self.what);
        assert!(took < HEALING, "{how}: {took:?}");
        sleep(STEADY);
        self.use_servers(away, true);
        Ok(())
    }

    fn cut(&self, how: &str, away: &[usize]) -> Result<()> {
        self.use_servers(away, false);
        let rest = self.others(away);
        self.hub.part(away, &rest, true);
        let begun = Instant::now();
        self.rotates(&rest)?;
        sleep(CUT.saturating_sub(begun.elapsed()));
        self.heal(how, away)
    }

    /// What is true at the end of any scene; `loses` packets, so that handovers may go on without
    /// a server that is silent for too long.
    fn end(self, loses: bool) -> Result<()> {
        self.rotates(&self.all())?;
        let gaps = logs::gaps(&logs::rotations(&logs::read(&self.fleet)));
        let longest = gaps.iter().map(|(_, gap)| *gap).max();
        let terms = self.fleet.leader().map_or(0, |leader| leader.term);
        let report = self.load.stop();
        println!(
            "{}: {} rotations, longest gap {longest:?}, term {terms} at the end; {report}",
            self.what,
            gaps.len()
        );
        let late = if loses { LATE * 2 } else { LATE };
        assert!(longest.is_some_and(|gap| gap < INTERVAL + late), "{longest:?}");
        assert!(report.offers > 50, "{report}");
        let allowed = if loses { report.offers / 20 } else { 0 };
        assert!(report.missed <= allowed, "{report}");
        self.dir.done()
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun: make prove-network"]
fn cuts_of_every_shape() -> Result<()> {
    let mut scene = Scene::begin("cuts, 5 servers", 5, 0, 0)?;
    let leader = scene.leader()?;
    scene.cut("isolated follower", &scene.others(&[leader])[..1])?;
    scene.cut("isolated leader", &[scene.leader()?])?;
    let leader = scene.leader()?;
    scene.cut("minority with the leader", &[leader, scene.others(&[leader])[1]])?;
    let leader = scene.leader()?;
    let deaf = &scene.others(&[leader])[..1];
    for (how, from, to) in [
        ("a follower deaf to the leader", [leader].as_slice(), deaf),
        ("a leader deaf to a follower", deaf, [leader].as_slice()),
    ] {
        let away = [from, to].concat();
        scene.use_servers(&away, false);
        scene.hub.silence(from, to, true);
        sleep(CUT);
        scene.heal(how, &away)?;
    }
    let leader = scene.leader()?;
    let rest = scene.others(&[leader]);
    scene.use_servers(&[leader], false);
    scene.hub.silence(&[leader], &rest, true);
    scene.rotates(&rest)?;
    scene.heal("a leader that nobody hears", &[leader])?;
    for away in [scene.leader()?, 0, 1] {
        scene.use_servers(&[away], false);
        scene.fleet.servers[away].kill9();
        let leader = wait::until(PATIENCE, "another leader", || {
            Ok(scene.fleet.leader().filter(|leader| leader.index != away))
        })?;
        scene.hub.part(&[away], &[leader.index], true);
        scene.fleet.servers[away].start()?;
        scene.fleet.servers[away].wait_ready()?;
        scene.rotates(&scene.others(&[away]))?;
        scene.heal("back without memory and without the leader", &[away])?;
    }
    let leader = scene.leader()?;
    let rest = scene.others(&[leader]);
    scene.use_servers(&[leader], false);
    for round in 0..20 {
        scene.hub.part(&[leader], &rest, round % 2 == 0);
        sleep(Duration::from_millis(150 + 30 * round));
    }
    scene.heal("flapping leader", &[leader])?;
    scene.end(false)
}

#[test]
#[ignore = "needs root and /dev/net/tun: make prove-network"]
fn a_round_trip_of_150_ms() -> Result<()> {
    let scene = Scene::begin("RTT 150 ms, 3 servers", 3, 75, 0)?;
    scene.rotates(&scene.all())?;
    scene.cut("isolated leader", &[scene.leader()?])?;
    let leader = scene.leader()?;
    scene.cut("isolated follower", &scene.others(&[leader])[..1])?;
    scene.end(false)
}

#[test]
#[ignore = "needs root and /dev/net/tun: make prove-network"]
fn one_packet_in_twenty_lost() -> Result<()> {
    for (what, delay) in [("5 % loss, 3 servers", 5), ("5 % loss, RTT 150 ms, 3 servers", 75)] {
        let scene = Scene::begin(what, 3, delay, 50)?;
        (0..3).try_for_each(|_| scene.rotates(&scene.all()).map(drop))?;
        scene.cut("isolated leader", &[scene.leader()?])?;
        scene.end(true)?;
    }
    Ok(())
}
