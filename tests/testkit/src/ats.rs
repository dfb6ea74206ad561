//! One real `traffic_server` in a run root of its own.
//!
//! The server listens on loopback (or the address that a test gives it), keeps no cache, and runs
//! with few threads, so that many of them start quickly on a small machine. It asks no name server
//! before it serves, unless a test has it do so. It is killed when its [`Ats`] is dropped, and by the
//! kernel if this process dies first.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::host::{host, Host};
use crate::pki::Files;
use crate::sys::{self, Signal};
use crate::tickets::{self, TlsVersion};
use crate::{ports, wait, Context, Error, Result};

/// How long a server may take until it accepts handshakes; it needs some 0.2 s on an idle machine,
/// 3 s with a manager. One whose first launches came to nothing on a busy machine tries again after
/// 1, 2, 4, 9 and 20 s.
pub const START_LIMIT: Duration = Duration::from_secs(90);
/// How long a server may take to stop, as ATS's own tests have it.
pub const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What goes into the server's records unless a test says otherwise.
const RECORDS: &[&str] = &[
    // As root, and stay root: run roots belong to the test's own user.
    "proxy.config.admin.user_id STRING #-1",
    // Without it a crash waits for a helper that a run root does not have.
    "proxy.config.crash_log_helper STRING NULL",
    "proxy.config.exec_thread.autoconfig INT 0",
    "proxy.config.exec_thread.limit INT 1",
    "proxy.config.accept_threads INT 1",
    "proxy.config.task_threads INT 1",
    "proxy.config.cache.threads_per_disk INT 1",
    "proxy.config.net.connections_throttle INT 2000",
    "proxy.config.http.cache.http INT 0",
    "proxy.config.http.wait_for_cache INT 0",
    "proxy.config.log.logging_enabled INT 0",
    "proxy.config.url_remap.remap_required INT 1",
    "proxy.config.ssl.server.session_ticket.enable INT 1",
    "proxy.config.diags.debug.enabled INT 1",
    "proxy.config.diags.debug.tags STRING stek_share",
];

/// Which address the server takes for its own where no port says another; all ports do. Without one Traffic
/// Server asks at each start for the names of all addresses of the machine, one after another, before it
/// loads any plugin: a question that its name server loses makes the start five seconds longer. The name of
/// this one is in /etc/hosts. In the environment, since the record has another form in each version.
const OWN_ADDRESS: (&str, &str) = ("PROXY_LOCAL_INCOMING_IP_TO_BIND", "127.0.0.1");

/// Everybody may ask: a server listens where only its own test can reach it.
const IP_ALLOW: &str = "\
ip_allow:
  - { apply: in, ip_addrs: 0/0, action: allow, methods: ALL }
  - { apply: in, ip_addrs: ::/0, action: allow, methods: ALL }
";

/// Files that may be empty but whose absence is a warning in diags.log.
const EMPTY_FILES: &[&str] =
    &["storage.config", "volume.config", "cache.config", "parent.config", "hosting.config"];

/// What a server is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    root: PathBuf,
    address: IpAddr,
    records: Vec<String>,
    plugins: Vec<String>,
    remaps: Vec<String>,
    multicert: Vec<String>,
    wrapper: Vec<String>,
    manager: bool,
}

impl Builder {
    /// The server's certificate for all its addresses.
    pub fn certificate(self, files: &Files) -> Self {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        let line = format!("dest_ip=* ssl_cert_name={certificate} ssl_key_name={key}");
        self.multicert(&line)
    }

    /// A line of ssl_multicert.config.
    pub fn multicert(mut self, line: &str) -> Self {
        self.multicert.push(line.into());
        self
    }

    /// A record with its type and value as 9.2 has them, `proxy.config.x INT 1`; see
    /// [`host`](crate::host). It replaces an earlier one of the same name.
    pub fn record(mut self, line: &str) -> Self {
        let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
        self.records.retain(|earlier| name(earlier) != name(line));
        self.records.push(line.into());
        self
    }

    /// A static ticket key: a file of 48 bytes, or several times 48.
    pub fn ticket_key(self, file: &Path) -> Self {
        let name = "proxy.config.ssl.server.ticket_key.filename";
        self.record(&format!("{name} STRING {}", file.display()))
    }

    /// A line of plugin.config.
    pub fn plugin(mut self, line: &str) -> Self {
        self.plugins.push(line.into());
        self
    }

    /// A line of remap.config.
    pub fn remap(mut self, line: &str) -> Self {
        self.remaps.push(line.into());
        self
    }

    /// Sends all requests to the web server at `origin`. Without any remap the server answers 404.
    pub fn origin(self, origin: SocketAddr) -> Self {
        self.remap(&format!("map / http://{origin}/"))
    }

    /// The address to listen on, instead of 127.0.0.1.
    pub fn address(mut self, address: IpAddr) -> Self {
        self.address = address;
        self
    }

    /// Words to put before the command, for example `ip netns exec NAME`. The last program among
    /// them must exec the server, so that the process id stays.
    pub fn wrapper(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(ToString::to_string).collect();
        self
    }

    /// Lets `traffic_ctl` work ([`Ats::ctl`]). Where that needs a `traffic_manager`, it is started in the
    /// server's place and starts the server, which takes some three seconds longer.
    pub fn manager(mut self) -> Self {
        self.manager = true;
        self
    }

    /// Makes the run root, without starting anything.
    ///
    /// # Errors
    /// When a file cannot be written, or no port is free.
    pub fn build(self) -> Result<Ats> {
        let host = host()?;
        let https = SocketAddr::new(self.address, ports::take()?);
        self.write(host, https).context(format_args!("run root {}", self.root.display()))?;
        Ok(Ats { host, https, builder: self, process: None })
    }

    /// Makes the run root and starts the server, without waiting for it.
    ///
    /// # Errors
    /// As [`Builder::build`] and [`Ats::start`].
    pub fn start(self) -> Result<Ats> {
        let mut ats = self.build()?;
        ats.start()?;
        Ok(ats)
    }

    fn write(&self, host: &Host, https: SocketAddr) -> io::Result<()> {
        let etc = self.root.join("etc");
        for dir in ["etc", "var/log", "var/run", "cache"] {
            fs::create_dir_all(self.root.join(dir))?;
        }
        fs::write(self.root.join("runroot.yaml"), host.run_root(&self.root))?;

        let listen = match https.ip() {
            IpAddr::V4(ip) => format!("{}:ssl:ip-in={ip}", https.port()),
            IpAddr::V6(ip) => format!("{}:ssl:ipv6:ip-in=[{ip}]", https.port()),
        };
        let ports = format!("proxy.config.http.server_ports STRING {listen}");
        let this = self.clone().record(&ports);
        let lines = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect();
        host.write_records(&etc, &this.records)?;
        fs::write::<_, String>(etc.join("plugin.config"), lines(&this.plugins))?;
        fs::write::<_, String>(etc.join("remap.config"), lines(&this.remaps))?;
        let sites: String = lines(&this.multicert);
        host.write_certificates(&etc, &sites)?;
        fs::write(etc.join("ip_allow.yaml"), IP_ALLOW)?;
        fs::write(etc.join("sni.yaml"), "sni: []\n")?;
        EMPTY_FILES.iter().try_for_each(|name| fs::write(etc.join(host.named(name)), ""))
    }
}

/// A server: a run root and, most of the time, a running server.
#[derive(Debug)]
pub struct Ats {
    host: &'static Host,
    https: SocketAddr,
    builder: Builder,
    process: Option<Child>,
}

/// What a server has used.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Processor time of all its living threads since their start.
    pub cpu: Duration,
    /// Memory in KiB, shared pages divided among those that share them (PSS).
    pub memory: u64,
    /// Memory in KiB that it has written to and shares with nobody. Unlike the above it does not
    /// depend on how many other servers there are on the machine.
    pub private: u64,
    /// How often its living threads have been woken: their voluntary context switches.
    pub wakeups: u64,
    /// How many threads it has.
    pub threads: usize,
    /// How many descriptors are open.
    pub descriptors: usize,
}

/// Processor time of all living threads of any process since their start.
///
/// # Errors
/// When there is none with this id.
pub fn cpu_of(pid: u32) -> Result<Duration> {
    cpu_of_tasks(pid, |_| true)
}

/// The same of those threads that have this name, of which the kernel keeps 15 bytes.
///
/// # Errors
/// When there is none with this id.
pub fn cpu_of_threads(pid: u32, name: &str) -> Result<Duration> {
    cpu_of_tasks(pid, |task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    })
}

fn cpu_of_tasks(pid: u32, counts: impl Fn(&Path) -> bool) -> Result<Duration> {
    // The kernel counts nanoseconds here; the ticks in `stat` are too coarse for an idle server.
    let nanos = fs::read_dir(format!("/proc/{pid}/task"))?.flatten().filter_map(|task| {
        let task = task.path();
        let times = fs::read_to_string(task.join("schedstat")).ok().filter(|_| counts(&task))?;
        times.split_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(nanos.sum()))
}

impl Usage {
    /// Looks at any process.
    ///
    /// # Errors
    /// When there is none with this id, or no right to look into it.
    pub fn of(pid: u32) -> Result<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let cpu = cpu_of(pid)?;
        let rollup = fs::read_to_string(proc.join("smaps_rollup"))?;
        let kib = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            kib.ok_or_else(|| Error::new(format!("smaps_rollup has no {name}")))
        };
        let (memory, private) = (kib("Pss:")?, kib("Private_Dirty:")?);
        let tasks: Vec<_> = fs::read_dir(proc.join("task"))?.flatten().collect();
        let wakeups = tasks.iter().filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))?;
            line.trim().parse::<u64>().ok()
        });
        let (wakeups, threads) = (wakeups.sum(), tasks.len());
        let descriptors = fs::read_dir(proc.join("fd"))?.count();
        Ok(Self { cpu, memory, private, wakeups, threads, descriptors })
    }
}

/// How a server ended.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    /// Its exit status.
    pub status: ExitStatus,
    /// From the signal to the end.
    pub took: Duration,
}

impl Ats {
    /// A server whose run root is made in `root`, a directory that need not exist yet and must
    /// outlive the server. At least a certificate is to be added.
    pub fn builder(root: &Path) -> Builder {
        Builder {
            root: root.into(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            records: RECORDS.iter().map(ToString::to_string).collect(),
            plugins: Vec::new(),
            remaps: Vec::new(),
            multicert: Vec::new(),
            wrapper: Vec::new(),
            manager: false,
        }
    }

    /// Starts the server in its run root, without waiting for it; logs are continued.
    ///
    /// # Errors
    /// When it runs already, or the program cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Err(Error::new(format!("{} runs already", self.root().display())));
        }
        let name = if self.has_manager() { "traffic_manager" } else { "traffic_server" };
        let program = self.host.program(name).display().to_string();
        let out = OpenOptions::new().create(true).append(true).open(self.traffic_out())?;
        let mut words = self.builder.wrapper.iter().map(String::as_str).chain([&*program]);
        let mut command = Command::new(words.next().unwrap_or(&program));
        command
            .args(words)
            .arg(format!("--run-root={}", self.root().join("runroot.yaml").display()))
            .env(OWN_ADDRESS.0, OWN_ADDRESS.1);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = sys::spawn(command)
            .map_err(|error| Error::new(format!("cannot start {program}: {error}")))?;
        self.process = Some(child);
        Ok(())
    }

    /// Waits until the server completes a TLS handshake.
    ///
    /// # Errors
    /// When it ends or has not done so within [`START_LIMIT`]; with the last lines of its logs.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_first(|address| tickets::take(address, TlsVersion::V12)).map(drop)
    }

    /// Repeats `exchange` with the server until it succeeds, and returns what came of it: the
    /// server's first handshake, since a server that does not listen yet refuses connections.
    ///
    /// # Errors
    /// As [`Ats::wait_ready`].
    pub fn wait_first<T>(&mut self, exchange: impl Fn(SocketAddr) -> Result<T>) -> Result<T> {
        let (address, mut last) = (self.https, String::new());
        let ready = wait::until(START_LIMIT, "a TLS handshake", || {
            if let Some(status) = self.try_wait()? {
                return Err(Error::new(format!("the server has ended, {status}")));
            }
            exchange(address).map(Some).or_else(|error| {
                last = error.to_string();
                Ok(None)
            })
        });
        ready.map_err(|error| {
            let (diags, out) = (tail(&self.diags()), tail(&self.debug_lines()));
            let root = self.root().display();
            Error::new(format!(
                "server {root}: {error}; {last}\ndiags.log:\n{diags}\ntraffic.out:\n{out}"
            ))
        })
    }

    /// The server's process id; with a manager that of the server below it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        let own = self.child()?.id();
        if !self.has_manager() {
            return Ok(own);
        }
        let mut tasks = fs::read_dir(format!("/proc/{own}/task"))?.flatten();
        tasks
            .find_map(|task| {
                let children = fs::read_to_string(task.path().join("children")).ok()?;
                children.split_whitespace().next()?.parse().ok()
            })
            .ok_or_else(|| Error::new("the manager has not started the server yet"))
    }

    /// Sends `signal`, waits for the end and says how it came.
    ///
    /// # Errors
    /// When the server does not run, or not end within [`STOP_LIMIT`]; it is killed then.
    pub fn stop(&mut self, signal: Signal) -> Result<Stopped> {
        let start = Instant::now();
        sys::kill(self.child()?.id(), signal)?;
        let status = wait::until(STOP_LIMIT, "the server's end", || self.try_wait());
        match status {
            Ok(status) => Ok(Stopped { status, took: start.elapsed() }),
            Err(error) => {
                self.kill9();
                Err(error)
            }
        }
    }

    /// Kills the server with SIGKILL (and its manager, if any) and waits for its end. Does nothing
    /// when it does not run.
    pub fn kill9(&mut self) {
        let server = self.pid().ok();
        if let Some(mut child) = self.process.take() {
            // The child is not reaped, so that the group is still ours; errors mean it is gone.
            let _ = sys::kill_group(child.id(), Signal::Kill);
            let _ = child.wait();
        }
        // A server under a manager is not our child. It holds its lock until its files are closed,
        // which they are once it is a zombie and none of its threads is left.
        let has_ended = |pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
            let zombie = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'));
            zombie && threads <= 1
        };
        if let Some(pid) = server {
            let _ = wait::until(STOP_LIMIT, "the killed server's end", || {
                Ok(has_ended(pid).then_some(()))
            });
        }
    }

    /// Stops the server in its tracks with SIGSTOP.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        Ok(sys::kill(self.pid()?, Signal::Stop)?)
    }

    /// Lets it go on with SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        Ok(sys::kill(self.pid()?, Signal::Continue)?)
    }

    /// Stops it with SIGINT, starts it in the same run root and waits until it is ready.
    ///
    /// # Errors
    /// As [`Ats::stop`], [`Ats::start`] and [`Ats::wait_ready`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop(Signal::Interrupt)?;
        self.start()?;
        self.wait_ready()
    }

    /// Whether it runs; reaps it if it has ended by itself.
    pub fn is_running(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None)) && self.process.is_some()
    }

    /// What the server uses; the difference of two looks tells the processor time between them.
    ///
    /// # Errors
    /// When it does not run.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid()?)
    }

    /// Runs `traffic_ctl` with `arguments`; only for a server that was built with [`Builder::manager`]. Returns what it prints.
    ///
    /// # Errors
    /// When it cannot be run or fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let root = format!("--run-root={}", self.root().join("runroot.yaml").display());
        let mut command = Command::new(self.host.program("traffic_ctl"));
        let output = command.arg(root).args(arguments).output().context("traffic_ctl")?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(Error::new(format!("traffic_ctl {arguments:?}: {text}")))
        }
    }

    /// Where it serves HTTPS; the same after a restart.
    pub fn https(&self) -> SocketAddr {
        self.https
    }

    /// Its run root.
    pub fn root(&self) -> &Path {
        &self.builder.root
    }

    /// Which Traffic Server it is, or was at its last start.
    pub fn host(&self) -> &'static Host {
        self.host
    }

    /// Has it be another Traffic Server from its next start on, as an upgrade does, with what it was built
    /// with: what a test has changed since in Traffic Server's own files is lost.
    ///
    /// # Errors
    /// When it runs, or a file cannot be written.
    pub fn change_host(&mut self, host: &'static Host) -> Result<()> {
        if self.process.is_some() {
            return Err(Error::new(format!("{} still runs", self.root().display())));
        }
        let files = || format!("run root {}", self.root().display());
        self.host.clear(&self.etc()).context(files())?;
        self.builder.write(host, self.https).context(files())?;
        self.host = host;
        Ok(())
    }

    fn has_manager(&self) -> bool {
        self.builder.manager && self.host.has_manager()
    }

    /// Its configuration directory.
    pub fn etc(&self) -> PathBuf {
        self.root().join("etc")
    }

    /// Everything in diags.log, of earlier runs too; empty while there is none.
    pub fn diags(&self) -> String {
        read(&self.root().join("var/log/diags.log"))
    }

    /// Everything in traffic.out, where debug lines go.
    pub fn debug_lines(&self) -> String {
        read(&self.traffic_out())
    }

    /// Every file in the log directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn log_files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.root().join("var/log"))?;
        Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?)
    }

    /// Waits until `needle` stands in diags.log.
    ///
    /// # Errors
    /// When `limit` is over; with the log's last lines.
    pub fn wait_diags(&self, needle: &str, limit: Duration) -> Result<()> {
        let look = || Ok(self.diags().contains(needle).then_some(()));
        wait::until(limit, &format!("{needle:?} in diags.log"), look)
            .map_err(|error| Error::new(format!("{error}\n{}", tail(&self.diags()))))
    }

    fn traffic_out(&self) -> PathBuf {
        self.root().join("var/log/traffic.out")
    }

    fn child(&self) -> Result<&Child> {
        let message = || Error::new(format!("{} does not run", self.root().display()));
        self.process.as_ref().ok_or_else(message)
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.process else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }
}

impl Drop for Ats {
    fn drop(&mut self) {
        self.kill9();
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The last lines of a log, for an error message.
fn tail(log: &str) -> String {
    const LINES: usize = 15;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
