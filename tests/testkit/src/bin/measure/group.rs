//! Several servers of one kind that are to share a ticket key: with this plugin, without any, or
//! with what else there is in Debian's archive. All of them listen on loopback and serve the same
//! certificate.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::ats::{Ats, Usage};
use testkit::fleet::{self, Fleet, Plan};
use testkit::pki::{Files, Identity};
use testkit::tickets::{self, TlsVersion};
use testkit::{ports, sys, wait, Context, Error, Result};

/// Until a server accepts handshakes.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Where Debian puts the plugin of the package trafficserver-experimental-plugins.
pub const SESSION_REUSE: &str = "/usr/lib/trafficserver/modules/ssl_session_reuse.so";
/// Where Debian puts caddy.
pub const CADDY: &str = "/usr/bin/caddy";
/// Where Debian puts Redis.
const REDIS: &str = "/usr/bin/redis-server";
/// Redis's password; that plugin cannot do without one.
const PASSWORD: &str = "bench";

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Traffic Server with this plugin.
    StekShare,
    /// The same with `ticket_scope: host`, where that may matter.
    HostScope,
    /// The same with `share_sessions: true`.
    SharedIds,
    /// Traffic Server without any plugin.
    Plain,
    /// Traffic Server with ssl_session_reuse and one Redis.
    SessionReuse,
    /// Caddy with its distributed keys in a common directory.
    Caddy,
}

impl System {
    /// All of them, as far as they are systems of their own.
    pub const ALL: [Self; 4] = [Self::StekShare, Self::Plain, Self::SessionReuse, Self::Caddy];

    /// As figures name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::StekShare => "",
            Self::HostScope => "ticket_scope host",
            Self::SharedIds => "share_sessions",
            Self::Plain => "plain",
            Self::SessionReuse => "ssl_session_reuse",
            Self::Caddy => "caddy",
        }
    }

    /// The same where sessions without tickets are shared as well, if it runs in Traffic Server.
    pub fn sharing_sessions(self) -> Option<Self> {
        match self {
            Self::StekShare | Self::HostScope | Self::SharedIds => Some(Self::SharedIds),
            Self::Plain | Self::SessionReuse => Some(self),
            Self::Caddy => None,
        }
    }

    /// Whether it is on this machine.
    pub fn is_there(self) -> bool {
        let needed: &[&str] = match self {
            Self::StekShare | Self::HostScope | Self::SharedIds | Self::Plain => &[],
            Self::SessionReuse => &[SESSION_REUSE, REDIS],
            Self::Caddy => &[CADDY],
        };
        needed.iter().all(|path| Path::new(path).exists())
    }
}

/// One server.
enum Server {
    Ats(Ats),
    Caddy { config: PathBuf, home: PathBuf, address: SocketAddr, process: Option<Child> },
}

/// The servers, and what they need besides.
pub struct Group {
    /// What they are.
    pub system: System,
    fleet: Option<Fleet>,
    servers: Vec<Server>,
    redis: Option<Redis>,
}

/// One Redis server.
struct Redis {
    port: u16,
    process: Child,
}

impl Group {
    /// Writes all files below `dir`; starts nothing but Redis.
    pub fn prepare(
        system: System,
        plugin: &Path,
        size: usize,
        interval: Duration,
        dir: &Path,
    ) -> Result<Self> {
        let mut group = Self { system, fleet: None, servers: Vec::new(), redis: None };
        match system {
            System::StekShare => {
                group.fleet = Some(Plan::new(size, plugin, interval).prepare(dir)?);
            }
            System::HostScope => {
                let plan = Plan::new(size, plugin, interval).option("ticket_scope", "host");
                group.fleet = Some(plan.prepare(dir)?);
            }
            System::SharedIds => {
                let plan = Plan::new(size, plugin, interval).option("share_sessions", "true");
                group.fleet = Some(plan.prepare(dir)?);
            }
            System::Plain => {
                group.fleet = Some(Plan::new(size, plugin, interval).plain().prepare(dir)?);
            }
            System::SessionReuse => group.prepare_session_reuse(size, interval, dir)?,
            System::Caddy => group.prepare_caddy(size, interval, dir)?,
        }
        Ok(group)
    }

    fn prepare_session_reuse(&mut self, size: usize, interval: Duration, dir: &Path) -> Result<()> {
        let site = site(dir)?;
        let redis = Redis::start(dir)?;
        let password = dir.join("password");
        fs::write(&password, PASSWORD)?;
        for index in 0..size {
            let home = dir.join(format!("server-{}", index + 1));
            let file = home.join("etc/reuse.config");
            // The first one makes the keys, and keeps making them.
            let text = format!(
                "redis.RedisEndpoints=127.0.0.1:{}\nredis.RedisConnectTimeout=1000\n\
                 redis.RedisRetryDelay=100000\npubconfig.PubNumWorkers=2\n\
                 subconfig.SubColoChannel=bench.*\nssl_session.ClusterName=bench\n\
                 ssl_session.KeyUpdateInterval={}\nssl_session.STEKMaster={}\n\
                 ssl_session.redis_auth_key_file={}\n",
                redis.port,
                interval.as_secs(),
                u8::from(index == 0),
                password.display()
            );
            let line = format!("{SESSION_REUSE} {}", file.display());
            let ats = Ats::builder(&home).certificate(&site).plugin(&line).build()?;
            fs::write(file, text)?;
            self.servers.push(Server::Ats(ats));
        }
        self.redis = Some(redis);
        Ok(())
    }

    fn prepare_caddy(&mut self, size: usize, interval: Duration, dir: &Path) -> Result<()> {
        let site = site(dir)?;
        let storage = dir.join("storage");
        fs::create_dir_all(&storage)?;
        for index in 0..size {
            let home = dir.join(format!("caddy-{}", index + 1));
            fs::create_dir_all(&home)?;
            let address = SocketAddr::from(([127, 0, 0, 1], ports::take()?));
            let config = home.join("caddy.json");
            let json = serde_json::json!({
                "admin": { "disabled": true },
                "logging": { "logs": { "default": { "level": "ERROR" } } },
                "storage": { "module": "file_system", "root": storage },
                "apps": {
                    "http": { "servers": { "bench": {
                        "listen": [address.to_string()],
                        "protocols": ["h1", "h2"],
                        "automatic_https": { "disable": true },
                        "tls_connection_policies": [{ "default_sni": "localhost" }],
                        "routes": [{ "handle": [{ "handler": "static_response", "body": "ok" }] }],
                    } } },
                    "tls": {
                        "certificates": { "load_files": [
                            { "certificate": site.certificate, "key": site.key }
                        ] },
                        "session_tickets": {
                            "key_source": { "provider": "distributed" },
                            "rotation_interval": format!("{}s", interval.as_secs()),
                        },
                    },
                },
            });
            fs::write(&config, json.to_string())?;
            self.servers.push(Server::Caddy { config, home, address, process: None });
        }
        Ok(())
    }

    /// Starts all and returns when the last process began.
    pub fn start_all(&mut self) -> Result<Instant> {
        if let Some(fleet) = &mut self.fleet {
            fleet.servers.iter_mut().try_for_each(Ats::start)?;
        }
        self.servers.iter_mut().try_for_each(Server::start)?;
        Ok(Instant::now())
    }

    /// Starts all, waits until each serves, and does what makes the keys of ssl_session_reuse
    /// change: its key maker sends its first key before it listens itself, and as a rule never
    /// hears of it and gives up. So Redis is told to hold messages back until all listen.
    pub fn start_nursed(&mut self) -> Result<()> {
        let size = self.https().len();
        if let Some(redis) = &self.redis {
            redis.say("CLIENT PAUSE 60000 WRITE")?;
        }
        self.start_all()?;
        for index in 0..size {
            self.wait_ready(index)?;
        }
        if let Some(redis) = &self.redis {
            wait::until(START_LIMIT, "all to listen to Redis", || {
                let clients = redis.say("CLIENT LIST TYPE pubsub")?;
                Ok((clients.matches("cmd=psubscribe").count() >= size).then_some(()))
            })?;
            redis.say("CLIENT UNPAUSE")?;
        }
        Ok(())
    }

    /// Prepares and starts one of several groups below `dir`, of so many servers with such an interval.
    pub fn start_in(
        system: System,
        plugin: &Path,
        (size, interval): (usize, Duration),
        dir: &Path,
        number: usize,
    ) -> Result<Self> {
        let dir = dir.join(format!("group-{number}"));
        fs::create_dir_all(&dir)?;
        let mut group = Self::prepare(system, plugin, size, interval, &dir)?;
        group.start_nursed()?;
        Ok(group)
    }

    /// Waits until this plugin's servers have one key, if they are any.
    pub fn wait_one_key(&self, limit: Duration) -> Result<()> {
        match self.system {
            System::StekShare | System::HostScope | System::SharedIds => {
                fleet::wait_one_key(&self.https(), None, limit).map(drop)
            }
            System::Plain | System::SessionReuse | System::Caddy => Ok(()),
        }
    }

    /// Where they serve.
    pub fn https(&self) -> Vec<SocketAddr> {
        let own = self.fleet.iter().flat_map(Fleet::https);
        own.chain(self.servers.iter().map(Server::address)).collect()
    }

    /// The fleet, if it is one of Traffic Servers set up by the kit.
    pub fn fleet(&self) -> Option<&Fleet> {
        self.fleet.as_ref()
    }

    /// Index of the server without which there would be no new keys, as far as there is one.
    pub fn key_maker(&self) -> usize {
        let leader = self.fleet.as_ref().and_then(Fleet::leader);
        leader.map_or(0, |leader| leader.index)
    }

    /// Kills one with SIGKILL.
    pub fn kill(&mut self, index: usize) {
        match (&mut self.fleet, self.servers.get_mut(index)) {
            (Some(fleet), _) => fleet.servers[index].kill9(),
            (None, Some(server)) => server.kill(),
            (None, None) => {}
        }
    }

    /// Starts one again, without waiting for it.
    pub fn start(&mut self, index: usize) -> Result<()> {
        match (&mut self.fleet, self.servers.get_mut(index)) {
            (Some(fleet), _) => fleet.servers[index].start(),
            (None, Some(server)) => server.start(),
            (None, None) => Err(Error::new("no such server")),
        }
    }

    /// Waits until one completes a handshake.
    pub fn wait_ready(&mut self, index: usize) -> Result<()> {
        let address = self.https()[index];
        wait::until(START_LIMIT, "a first handshake", || {
            Ok(tickets::take(address, TlsVersion::V12).ok().map(drop))
        })
    }

    /// What each uses.
    pub fn usage(&self) -> Result<Vec<Usage>> {
        let own = self.fleet.iter().flat_map(|fleet| &fleet.servers).map(Ats::usage);
        own.chain(self.servers.iter().map(Server::usage)).collect()
    }

    /// What the first one uses.
    pub fn usage_of_first(&self) -> Result<Usage> {
        match (self.fleet.as_ref().and_then(|fleet| fleet.servers.first()), self.servers.first()) {
            (Some(ats), _) => ats.usage(),
            (None, Some(server)) => server.usage(),
            (None, None) => Err(Error::new("no server")),
        }
    }

    /// What the server that they need besides uses.
    pub fn helper_usage(&self) -> Option<Result<Usage>> {
        self.redis.as_ref().map(|redis| Usage::of(redis.process.id()))
    }

    /// The TCP ports on which they speak to each other or to their helper.
    pub fn inner_ports(&self) -> Vec<u16> {
        match (self.system, &self.fleet, &self.redis) {
            (System::StekShare | System::HostScope | System::SharedIds, Some(fleet), _) => {
                fleet.raft_ports.clone()
            }
            (_, _, Some(redis)) => vec![redis.port],
            _ => Vec::new(),
        }
    }
}

impl Server {
    fn start(&mut self) -> Result<()> {
        match self {
            Self::Ats(ats) => ats.start(),
            Self::Caddy { config, home, process, .. } => {
                let log = fs::File::create(home.join("log"))?;
                let mut command = Command::new(CADDY);
                command.arg("run").arg("--config").arg(config).env("HOME", &*home);
                command.env("XDG_DATA_HOME", &*home).env("XDG_CONFIG_HOME", &*home);
                command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
                *process = Some(sys::spawn(command).context(CADDY)?);
                Ok(())
            }
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Ats(ats) => ats.https(),
            Self::Caddy { address, .. } => *address,
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Ats(ats) => ats.kill9(),
            Self::Caddy { process, .. } => end(process),
        }
    }

    fn usage(&self) -> Result<Usage> {
        match self {
            Self::Ats(ats) => ats.usage(),
            Self::Caddy { process: Some(process), .. } => Usage::of(process.id()),
            Self::Caddy { .. } => Err(Error::new("caddy does not run")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Redis {
    fn start(dir: &Path) -> Result<Self> {
        let port = ports::take()?;
        let mut command = Command::new(REDIS);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--requirepass", PASSWORD, "--dir"]).arg(dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let this = Self { port, process: sys::spawn(command).context(REDIS)? };
        wait::until(START_LIMIT, "Redis", || Ok(this.say("PING").ok()))?;
        Ok(this)
    }

    /// Sends one command in a connection of its own and returns the raw answer.
    fn say(&self, command: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("Redis")?;
        stream.set_read_timeout(Some(START_LIMIT))?;
        write!(stream, "AUTH {PASSWORD}\r\n{command}\r\nQUIT\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("Redis")?;
        if answer.contains("-ERR") || answer.contains("-NOAUTH") {
            Err(Error::new(format!("Redis: {command}: {answer}")))
        } else {
            Ok(answer)
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn end(process: &mut Option<Child>) {
    if let Some(mut child) = process.take() {
        // Errors mean that it is gone already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn site(dir: &Path) -> Result<Files> {
    Identity::self_signed("/CN=localhost")?.write(dir, "site")
}
