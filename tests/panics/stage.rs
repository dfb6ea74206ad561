//! A fleet whose servers panic where a test wants it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use testkit::ats::Ats;
use testkit::fleet::{self, Fleet, Place, Plan};
use testkit::run_dir::RunDir;
use testkit::tickets::{self, KeyName, TlsVersion};
use testkit::{wait, Context, Error, Result};

/// Until something has happened that takes a few seconds at most on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Short, so that every task has something to do all the time.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// See the module's head.
pub struct Stage {
    pub fleet: Fleet,
    dir: RunDir,
}

impl Stage {
    /// `size` servers, not started yet, that can be sent messages.
    pub fn new(name: &str, size: usize) -> Result<Stage> {
        Stage::of(name, size, Plan::manager)
    }

    /// One server that cannot be sent messages, but whose end is the server's own.
    pub fn without_manager(name: &str) -> Result<Stage> {
        Stage::of(name, 1, |plan| plan)
    }

    fn of(name: &str, size: usize, tune: impl FnOnce(Plan) -> Plan) -> Result<Stage> {
        let dir = RunDir::new(&format!("panics-{name}"))?;
        let place = |index| {
            let points = dir.join(&format!("points-{index}"));
            fs::create_dir_all(&points).context(points.display())?;
            Ok(Place {
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                wrapper: vec!["env".into(), format!("STEK_SHARE_FAIL_DIR={}", points.display())],
            })
        };
        let places: Vec<Place> = (0..size).map(place).collect::<Result<_>>()?;
        let plan = tune(Plan::new(size, &plugin()?, INTERVAL).places(&places));
        let fleet = plan.prepare(dir.path())?;
        for (index, ats) in fleet.servers.iter().enumerate() {
            // What a server does at each change of what it remembers is one more place to panic at.
            let state = dir.join(&format!("state-{index}"));
            let path = ats.etc().join("server_conf.yaml");
            let conf = fs::read_to_string(&path).context(path.display())?;
            fs::create_dir_all(&state).context(state.display())?;
            fs::write(&path, format!("{conf}state_dir: {}\n", state.display()))?;
        }
        Ok(Stage { fleet, dir })
    }

    /// Has one server panic the next time that it passes `point`.
    pub fn plant(&self, index: usize, point: &str) -> Result<()> {
        fs::write(self.place(index, point), "").context(point)
    }

    /// Waits until one of the servers has panicked at `point`, where all or one were to; has the
    /// others not do so any more.
    pub fn panicked(&self, among: &[usize], point: &str) -> Result<usize> {
        let gone = |index: &usize| !self.place(*index, point).exists();
        let index = wait::until(PATIENCE, &format!("a panic at {point}"), || {
            Ok(among.iter().copied().find(|index| gone(index)))
        })?;
        for other in among {
            let _ = fs::remove_file(self.place(*other, point));
        }
        Ok(index)
    }

    /// The server has told in diags.log, in one line, that it panicked at `point`.
    pub fn told(&self, index: usize, point: &str) -> Result<()> {
        let ats = &self.fleet.servers[index];
        ats.wait_diags("[stek_share] internal error at src/", PATIENCE)?;
        ats.wait_diags(&format!("planted at {point}"), PATIENCE)
    }

    /// The group rotates, and all servers follow: each in one with the others, by its tickets.
    pub fn all_take_part(&self) -> Result<KeyName> {
        let now = fleet::wait_one_key(&self.fleet.https(), None, PATIENCE)?;
        let next = fleet::wait_one_key(&self.fleet.https(), Some(&now), PATIENCE)?;
        fleet::wait_one_key(&self.fleet.https(), Some(&next), PATIENCE)
    }

    /// The very process that was there before lives.
    pub fn process_of(&self, index: usize) -> Result<u32> {
        self.fleet.servers[index].pid()
    }

    /// Waits until diags.log of a server has `part` behind its first `from` bytes.
    pub fn wait_line(&self, index: usize, from: usize, part: &str) -> Result<()> {
        let ats = &self.fleet.servers[index];
        let look = || Ok(ats.diags().get(from..).unwrap_or_default().contains(part).then_some(()));
        wait::until(PATIENCE, &format!("{part:?} in diags.log"), look)
            .map_err(|error| Error::new(format!("{error}\n{}", ats.diags())))
    }

    pub fn send(&self, index: usize, verb: &str) -> Result<()> {
        self.fleet.servers[index].ctl(&["plugin", "msg", "stek_share", verb]).map(drop)
    }

    /// A client comes to a server, whatever that makes of its session.
    pub fn handshake(&self, index: usize) -> Result<()> {
        tickets::take(self.fleet.servers[index].https(), TlsVersion::V12).map(drop)
    }

    /// Kills a server, and waits until its port is free: its manager may be gone before it.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let ats = &mut self.fleet.servers[index];
        ats.kill9();
        let address = ats.https();
        wait::until(PATIENCE, "a free port", || Ok(TcpListener::bind(address).ok().map(drop)))
    }

    /// Removes what a server that does not run kept in `state_dir`.
    pub fn forget(&self, index: usize) -> Result<()> {
        let state = self.dir.join(&format!("state-{index}"));
        fs::remove_dir_all(&state).context(state.display())?;
        fs::create_dir_all(&state).context(state.display())
    }

    pub fn done(self) -> Result<()> {
        self.dir.done()
    }

    fn place(&self, index: usize, point: &str) -> PathBuf {
        self.dir.join(&format!("points-{index}")).join(point)
    }
}

/// Whether the server resumes a session of its own, with whatever key it has.
pub fn serves(ats: &Ats) -> Result<()> {
    let ticket = tickets::take(ats.https(), TlsVersion::V12)?;
    match tickets::offer(ats.https(), &ticket)?.resumed {
        true => Ok(()),
        false => Err(Error::new("it does not resume its own session")),
    }
}

/// The plugin that cargo built for this run: the newer of the two places where it may lie.
fn plugin() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let places = exe.ancestors().skip(1).take(2).map(|dir| dir.join("libstek_share.so"));
    let newest = places.filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)));
    newest.max().map(|(_, path)| path).ok_or_else(|| Error::new("no plugin beside this test"))
}
