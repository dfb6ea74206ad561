//! The demo: three real Traffic Servers share a ticket key, change it, lose their leader and get
//! it back, while a person watches. `demo PATH/stek_share.so`, or the path in `STEK_SHARE_SO`.
//!
//! Ends with a outcome and exit code 0 or 1; 2 when it is called wrongly. No process stays, however
//! it ends: the kernel kills the servers when this program dies.

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use testkit::fleet::{self, Fleet, Plan};
use testkit::origin::{Origin, BODY};
use testkit::progress::Progress;
use testkit::run_dir::RunDir;
use testkit::sys;
use testkit::tickets::{self, fingerprint, KeyName, Matrix, Ticket, TlsVersion};
use testkit::{wait, Error, Result};

/// As many servers as a majority needs after one death.
const SERVERS: usize = 3;
/// `key_update_interval`: long enough for a death and a return within one key's life.
const INTERVAL: Duration = Duration::from_secs(12);
/// From the start until all servers have one key: the elections' worst case, many times over.
const AGREE_LIMIT: Duration = Duration::from_secs(15);
/// The schedule is the interval; the rest is for an election and a busy machine.
const ROTATION_LIMIT: Duration = Duration::from_secs(20);
/// Until somebody notes in a log who leads.
const LEADER_LIMIT: Duration = Duration::from_secs(5);
/// After so long the demo gives up in an orderly way.
const TOTAL_LIMIT: Duration = Duration::from_secs(95);
/// And so much later in any way.
const GRACE: Duration = Duration::from_secs(5);
/// How many steps [`run`] makes.
const STEPS: usize = 8;

fn main() -> ExitCode {
    let Some(plugin) = env::args_os().nth(1).or_else(|| env::var_os("STEK_SHARE_SO")) else {
        eprintln!("usage: demo PATH/stek_share.so");
        return ExitCode::from(2);
    };
    sys::catch_interrupts();
    let dir = match RunDir::new("demo") {
        Ok(dir) => dir,
        Err(error) => {
            println!("FAILED: {error}");
            return ExitCode::FAILURE;
        }
    };
    give_up_in_time(dir.path().display().to_string());
    introduce();
    let mut progress = Progress::new(STEPS);
    let outcome = run(&dir, &PathBuf::from(plugin), &mut progress).and_then(|()| dir.done());
    let seconds = progress.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => {
            println!(
                "\nPASSED in {seconds:.0} s: each session was resumed on each living server, after a \
                 change of the key, the leader's death and its return. No process is left."
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            let in_time = progress.elapsed() < TOTAL_LIMIT;
            let word = if in_time && sys::interrupted() { "INTERRUPTED" } else { "FAILED" };
            println!("\n{word} after {seconds:.0} s: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says what is to be seen.
fn introduce() {
    println!(
        "Three Traffic Servers on this machine, the servers, share one TLS session ticket key. It \
         changes\nevery {} s here; then the server that leads is killed. This takes about half a \
         minute.\n\n\
         A key is shown by its fingerprint, as in the logs. A row of a table is a ticket that one \
         server issued;\n'yes' under a server means that it resumed the ticket's session.\n",
        INTERVAL.as_secs()
    );
}

/// Ends the demo when its time is over: in order first, and if that does not help, at once.
fn give_up_in_time(logs: String) {
    thread::spawn(move || {
        thread::sleep(TOTAL_LIMIT);
        sys::interrupt();
        thread::sleep(GRACE);
        println!("\nFAILED: no end after {:?}; logs in {logs}", TOTAL_LIMIT + GRACE);
        std::process::exit(1);
    });
}

fn run(dir: &RunDir, plugin: &Path, progress: &mut Progress) -> Result<()> {
    let mut demo = Demo::prepare(dir, plugin)?;
    progress.step("Start an origin and three Traffic Servers", || demo.start())?;
    progress.step("All three encrypt tickets with one key", || demo.agree())?;
    progress.step("Every server's ticket is offered to every server", || demo.all_resume())?;
    progress.step("Wait for the key to change", || demo.rotation())?;
    progress.step("Kill the leader with SIGKILL", || demo.kill_leader())?;
    progress.step("Wait for the others to change the key", || demo.rotation_without_leader())?;
    progress.step("Start the killed server again", || demo.leader_returns())?;
    progress.step("Every server's new ticket is offered to every server", || demo.all_resume())
}

/// What clients carried away at some moment, by version.
type Carried = Vec<(TlsVersion, Vec<Ticket>)>;

struct Demo {
    fleet: Fleet,
    origin: Origin,
    key: KeyName,
    carried: Carried,
    dead: usize,
}

impl Demo {
    fn prepare(dir: &RunDir, plugin: &Path) -> Result<Self> {
        let origin = Origin::start()?;
        let fleet =
            Plan::new(SERVERS, plugin, INTERVAL).origin(origin.address()).prepare(dir.path())?;
        Ok(Self { fleet, origin, key: [0; 16], carried: Vec::new(), dead: 0 })
    }

    fn start(&mut self) -> Result<String> {
        self.fleet.start()?;
        let mut lines = format!("origin  http://{}", self.origin.address());
        for (i, ats) in self.fleet.servers.iter().enumerate() {
            let (number, pid, raft) = (i + 1, ats.pid()?, self.fleet.raft_ports[i]);
            let answer = tickets::get(ats.https(), "/")?;
            if !answer.ends_with(BODY) {
                return Err(Error::new(format!(
                    "server {number} does not serve the origin: {answer}"
                )));
            }
            let https = ats.https();
            lines += &format!("\nbox {number}   https://{https}  peers on port {raft}  pid {pid}");
        }
        Ok(lines)
    }

    fn agree(&mut self) -> Result<String> {
        self.key = fleet::wait_one_key(&self.fleet.https(), None, AGREE_LIMIT)?;
        self.keys()
    }

    fn all_resume(&mut self) -> Result<String> {
        let carried = fleet::take_both(&self.fleet.https())?;
        self.offer(&carried, None)
    }

    fn rotation(&mut self) -> Result<String> {
        self.carried = fleet::take_both(&self.fleet.https())?;
        let old = self.key;
        self.key = fleet::wait_one_key(&self.fleet.https(), Some(&old), ROTATION_LIMIT)?;
        let change = format!("key changed: {} -> {}", fingerprint(&old), fingerprint(&self.key));
        let keys = self.keys()?;
        let matrices = self.offer(&self.carried, None)?;
        Ok(format!("{change}\n{keys}\ntickets from before the change:\n{matrices}"))
    }

    fn kill_leader(&mut self) -> Result<String> {
        let leader =
            wait::until(LEADER_LIMIT, "a leader in diags.log", || Ok(self.fleet.leader()))?;
        self.dead = leader.index;
        self.carried = fleet::take_both(&self.fleet.https())?;
        let ats = self.fleet.servers.get_mut(leader.index);
        ats.ok_or_else(|| Error::new("the logs name a leader that is no server of ours"))?.kill9();
        let matrices = self.offer(&self.carried, Some(self.dead))?;
        let (number, term) = (leader.index + 1, leader.term);
        Ok(format!("server {number}, the leader of term {term}, is dead\n{matrices}"))
    }

    fn rotation_without_leader(&mut self) -> Result<String> {
        let (old, survivors) = (self.key, self.fleet.https_without(self.dead));
        self.key = fleet::wait_one_key(&survivors, Some(&old), ROTATION_LIMIT)?;
        let change = format!("key changed: {} -> {}", fingerprint(&old), fingerprint(&self.key));
        let matrices = self.offer(&self.carried, Some(self.dead))?;
        Ok(format!("{change}\ntickets from before the death:\n{matrices}"))
    }

    fn leader_returns(&mut self) -> Result<String> {
        let fresh = tickets::take_all(&self.fleet.https_without(self.dead), TlsVersion::V13)?;
        let first = fresh.first().ok_or_else(|| Error::new("nobody survived"))?;
        let ats = &mut self.fleet.servers[self.dead];
        ats.start()?;
        if !ats.wait_first(|address| tickets::offer(address, first))?.resumed {
            return Err(Error::new("its first handshake did not resume a survivor's session"));
        }
        let matrices = self.offer(&self.carried, None)?;
        Ok(format!(
            "its first handshake resumed a session of another server\n{}\n\
             tickets from before the death:\n{matrices}",
            self.keys()?
        ))
    }

    /// Each server's key by its fingerprint; they must be one.
    fn keys(&self) -> Result<String> {
        let name = |address: &SocketAddr| tickets::key_name(*address);
        let names: Vec<KeyName> = self.fleet.https().iter().map(name).collect::<Result<_>>()?;
        let print =
            |(i, name): (usize, &KeyName)| format!("   server {} {}", i + 1, fingerprint(name));
        let shown: String = names.iter().enumerate().map(print).collect();
        let shown = format!("current key{shown}");
        if names.windows(2).all(|pair| pair[0] == pair[1]) {
            Ok(shown)
        } else {
            Err(Error::new(format!("the servers encrypt with different keys: {shown}")))
        }
    }

    /// Offers tickets to all servers but `without`; every session must be resumed.
    fn offer(&self, carried: &Carried, without: Option<usize>) -> Result<String> {
        let indices: Vec<usize> = (0..SERVERS).filter(|i| Some(*i) != without).collect();
        let numbers: Vec<usize> = indices.iter().map(|i| i + 1).collect();
        let servers: Vec<_> = indices.iter().map(|i| self.fleet.servers[*i].https()).collect();
        let matrix = |(version, tickets): &(TlsVersion, Vec<Ticket>)| {
            tickets::offer_all(&servers, *version, tickets).columns(&numbers)
        };
        let matrices: Vec<Matrix> = carried.iter().map(matrix).collect();
        let shown = matrices.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        if !matrices.is_empty() && matrices.iter().all(Matrix::is_full) {
            Ok(shown)
        } else {
            Err(Error::new(format!("not every session was resumed\n{shown}")))
        }
    }
}
