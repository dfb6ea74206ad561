//! Several servers with the plugin, with all its files, as an operator would set them up.
//!
//! Below the fleet's directory: `pki/` with the authority and certificates, `server-N/` with the run
//! root of server id N, whose `etc/` holds `server_conf.yaml` and `server_list.yaml`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, thread};

use crate::ats::{Ats, Builder, Stopped};
use crate::pki::{Authority, Files, Identity, Request};
use crate::sys::Signal;
use crate::tickets::{self, KeyName, TlsVersion};
use crate::{ports, wait, Context, Error, Result};

/// The subject of all the peers' certificates, which the configuration demands of them.
pub const PEER_SUBJECT: &str = "/C=US/ST=IL/O=Yahoo/OU=Edge/CN=stek-share";

/// How long to rest between two looks at the servers' keys: each look is a handshake with every server,
/// which must not become the machine's main occupation.
const KEY_PAUSE: Duration = Duration::from_millis(50);

/// The plugin under test: the file that `STEK_SHARE_SO` names, else the one that cargo built for
/// the running test.
///
/// # Errors
/// When there is none.
pub fn built_plugin() -> Result<PathBuf> {
    if let Some(path) = env::var_os("STEK_SHARE_SO") {
        return Ok(path.into());
    }
    let exe = env::current_exe()?;
    // It lies beside the test binaries or one above, and the newer one is this run's.
    let places = exe.ancestors().skip(1).take(2).map(|dir| dir.join("libstek_share.so"));
    let newest = places.filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)));
    newest.max().map(|(_, path)| path).ok_or_else(|| {
        Error::new("no libstek_share.so beside this test, and STEK_SHARE_SO is not set")
    })
}

/// What a fleet is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    size: usize,
    plugin: PathBuf,
    options: Vec<(String, String)>,
    records: Vec<String>,
    origin: Option<SocketAddr>,
    one_certificate: bool,
    plain: bool,
    places: Vec<Place>,
    manager: bool,
}

/// Where a server lives, if not on 127.0.0.1.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its address, for clients and peers alike.
    pub address: IpAddr,
    /// Words before its command; see [`Builder::wrapper`].
    pub wrapper: Vec<String>,
}

impl Plan {
    /// `size` servers that load the plugin file `plugin` and change their key every `interval`
    /// (whole seconds, at least one).
    pub fn new(size: usize, plugin: &Path, interval: Duration) -> Self {
        let plan = Self {
            size,
            plugin: plugin.into(),
            options: Vec::new(),
            records: Vec::new(),
            origin: None,
            one_certificate: false,
            plain: false,
            places: Vec::new(),
            manager: false,
        };
        plan.option("key_update_interval", &interval.as_secs().to_string())
    }

    /// An option of server_conf.yaml, as it stands behind the colon. It replaces the plan's own
    /// value, if any.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.retain(|(earlier, _)| earlier != name);
        self.options.push((name.into(), value.into()));
        self
    }

    /// A record for every server; see [`Builder::record`].
    pub fn record(mut self, line: &str) -> Self {
        self.records.push(line.into());
        self
    }

    /// The web server behind the servers.
    pub fn origin(mut self, origin: SocketAddr) -> Self {
        self.origin = Some(origin);
        self
    }

    /// One self-signed certificate as root, server and client certificate of all peers, as ATS's
    /// own test for this kind of plugin has it, instead of an authority and one certificate each.
    pub fn one_certificate(mut self) -> Self {
        self.one_certificate = true;
        self
    }

    /// Where the servers live, one place for each.
    pub fn places(mut self, places: &[Place]) -> Self {
        self.places = places.to_vec();
        self
    }

    /// Servers that `traffic_ctl` can reach; see [`Builder::manager`].
    pub fn manager(mut self) -> Self {
        self.manager = true;
        self
    }

    /// Servers without the plugin, to compare with; all its files are there.
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Writes all files below `dir`, without starting anything; so a test can change them first.
    ///
    /// # Errors
    /// When a file cannot be written or no port is free.
    pub fn prepare(self, dir: &Path) -> Result<Fleet> {
        let pki = dir.join("pki");
        fs::create_dir_all(&pki).context(pki.display())?;
        let plugin = self.plugin.canonicalize().context(self.plugin.display())?;
        let raft_ports = ports::take_many(self.size)?;
        let list: String = (1..)
            .zip(&raft_ports)
            .map(|(id, port)| {
                let address = self.address(id);
                format!("- server_id: {id}\n  address: {address}\n  port: {port}\n")
            })
            .collect();
        // Sessions resume only where the site's certificate is the same.
        let site = Identity::self_signed("/CN=localhost")?.write(&pki, "site")?;
        let peers = self.peer_files(&pki)?;
        let mut servers = Vec::new();
        for ((id, port), (root, own)) in (1..).zip(&raft_ports).zip(&peers) {
            let home = dir.join(format!("server-{id}"));
            let etc = home.join("etc");
            let conf = etc.join("server_conf.yaml");
            let mut builder = Ats::builder(&home).certificate(&site);
            if !self.plain {
                builder = builder.plugin(&format!("{} {}", plugin.display(), conf.display()));
            }
            builder = self.records.iter().fold(builder, |builder, line| builder.record(line));
            if self.manager {
                builder = builder.manager();
            }
            if let Some(origin) = self.origin {
                builder = builder.origin(origin);
            }
            if let Some(place) = self.places.get(id - 1) {
                let words: Vec<&str> = place.wrapper.iter().map(String::as_str).collect();
                builder = builder.address(place.address).wrapper(&words);
            }
            servers.push(Builder::build(builder)?);
            fs::write(etc.join("server_list.yaml"), &list)?;
            fs::write(conf, self.server_conf(id, *port, &etc, root, own))?;
        }
        Ok(Fleet { servers, raft_ports })
    }

    /// As [`Plan::prepare`], then starts all servers at once and waits until each is ready.
    ///
    /// # Errors
    /// As [`Plan::prepare`] and [`Fleet::start`].
    pub fn start(self, dir: &Path) -> Result<Fleet> {
        let mut fleet = self.prepare(dir)?;
        fleet.start()?;
        Ok(fleet)
    }

    /// The root certificate's file and the peer's own files, for each server.
    fn peer_files(&self, pki: &Path) -> Result<Vec<(PathBuf, Files)>> {
        if self.one_certificate {
            let files = Identity::self_signed(PEER_SUBJECT)?.write(pki, "peer")?;
            return Ok(vec![(files.certificate.clone(), files); self.size]);
        }
        let authority = Authority::new("/O=stek_share test kit/CN=root")?;
        let root = authority.identity.write(pki, "root")?.certificate;
        let issue = |id: usize| {
            let identity = authority.issue(&Request::new(PEER_SUBJECT))?;
            Ok((root.clone(), identity.write(pki, &format!("peer-{id}"))?))
        };
        (1..=self.size).map(issue).collect()
    }

    fn address(&self, id: usize) -> IpAddr {
        let place = id.checked_sub(1).and_then(|index| self.places.get(index));
        place.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |place| place.address)
    }

    fn server_conf(&self, id: usize, port: u16, etc: &Path, root: &Path, own: &Files) -> String {
        let path = |path: &Path| path.display().to_string();
        let defaults = [
            ("server_id", id.to_string()),
            ("address", self.address(id).to_string()),
            ("port", port.to_string()),
            ("asio_thread_pool_size", "2".into()),
            ("heart_beat_interval", "100".into()),
            ("election_timeout_lower_bound", "200".into()),
            ("election_timeout_upper_bound", "400".into()),
            ("reserved_log_items", "5".into()),
            ("snapshot_distance", "5".into()),
            ("client_req_timeout", "3000".into()),
            ("server_list_file", path(&etc.join("server_list.yaml"))),
            ("root_cert_file", path(root)),
            ("server_cert_file", path(&own.certificate)),
            ("server_key_file", path(&own.key)),
            ("cert_verify_str", PEER_SUBJECT.into()),
        ];
        let given = |name: &str| self.options.iter().any(|(option, _)| option == name);
        let kept = defaults.into_iter().filter(|(name, _)| !given(name));
        let mine = kept.map(|(name, value)| format!("{name}: {value}\n"));
        let theirs = self.options.iter().map(|(name, value)| format!("{name}: {value}\n"));
        mine.chain(theirs).collect()
    }
}

/// Servers that share a server list. Index `i` is server id `i + 1`.
#[derive(Debug)]
pub struct Fleet {
    /// The servers.
    pub servers: Vec<Ats>,
    /// Where each listens for its peers, on 127.0.0.1 or at its place.
    pub raft_ports: Vec<u16>,
}

impl Fleet {
    /// Starts all servers at once and waits until each is ready.
    ///
    /// # Errors
    /// As [`Ats::start`] and [`Ats::wait_ready`].
    pub fn start(&mut self) -> Result<()> {
        self.servers.iter_mut().try_for_each(Ats::start)?;
        self.servers.iter_mut().try_for_each(Ats::wait_ready)
    }

    /// Stops all running servers at the same moment with `signal`; says how each ended.
    ///
    /// # Errors
    /// As [`Ats::stop`].
    pub fn stop(&mut self, signal: Signal) -> Result<Vec<Stopped>> {
        thread::scope(|scope| {
            let running = self.servers.iter_mut().filter_map(|ats| ats.is_running().then_some(ats));
            let stops: Vec<_> = running.map(|ats| scope.spawn(move || ats.stop(signal))).collect();
            let panicked = |_| Err(Error::new("a thread that stops a server panicked"));
            stops.into_iter().map(|stop| stop.join().unwrap_or_else(panicked)).collect()
        })
    }

    /// Where all servers serve HTTPS.
    pub fn https(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(Ats::https).collect()
    }

    /// The same, without the server at `index`.
    pub fn https_without(&self, index: usize) -> Vec<SocketAddr> {
        let others = self.servers.iter().enumerate().filter(|(i, _)| *i != index);
        others.map(|(_, ats)| ats.https()).collect()
    }

    /// Who leads, by what the servers wrote.
    pub fn leader(&self) -> Option<Leader> {
        let logs: Vec<String> = self.servers.iter().map(Ats::diags).collect();
        leader_of(&logs)
    }
}

/// A leader, as the logs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Index of the server; its server id less one.
    pub index: usize,
    /// In which term of Raft.
    pub term: u64,
}

/// Reads from the servers' diags.log (`logs[i]` belongs to server id `i + 1`) who leads. The last
/// such line of each server counts, and among them the highest term.
pub fn leader_of(logs: &[String]) -> Option<Leader> {
    let last = logs
        .iter()
        .enumerate()
        .filter_map(|(index, log)| log.lines().rev().find_map(|line| leader_in_line(line, index)));
    last.max_by_key(|leader| leader.term)
}

/// `leader is server N in term T`, or `this server is the leader of term T`.
fn leader_in_line(line: &str, own_index: usize) -> Option<Leader> {
    let number = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse::<u64>().ok()
    };
    if let Some((_, term)) = line.split_once("this server is the leader of term ") {
        return Some(Leader { index: own_index, term: number(term)? });
    }
    let (id, term) = line.split_once("leader is server ")?.1.split_once(" in term ")?;
    let index = usize::try_from(number(id)?).ok()?.checked_sub(1)?;
    Some(Leader { index, term: number(term)? })
}

/// Waits until all servers encrypt with one key, and for another one than `old` if that is given.
///
/// # Errors
/// When `limit` is over, with each server's key; or when a server gives no ticket.
pub fn wait_one_key(
    servers: &[SocketAddr],
    old: Option<&KeyName>,
    limit: Duration,
) -> Result<KeyName> {
    let mut seen = Vec::new();
    let found = wait::until_every(KEY_PAUSE, limit, "one key on all servers", || {
        seen = servers.iter().map(|address| tickets::key_name(*address)).collect::<Result<_>>()?;
        let same = seen.first().filter(|first| seen.iter().all(|name| name == *first));
        Ok(same.filter(|name| Some(*name) != old).copied())
    });
    found.map_err(|error| {
        let prints: Vec<String> = seen.iter().map(tickets::fingerprint).collect();
        Error::new(format!("{error}; the servers' keys are {}", prints.join(", ")))
    })
}

/// Takes a ticket of each version on each server: what clients carry away at this moment.
///
/// # Errors
/// When a server gives none.
pub fn take_both(servers: &[SocketAddr]) -> Result<Vec<(TlsVersion, Vec<tickets::Ticket>)>> {
    let take = |version| tickets::take_all(servers, version).map(|tickets| (version, tickets));
    TlsVersion::ALL.into_iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::RunDir;

    #[test]
    fn options_replace_what_the_plan_would_write() -> Result<()> {
        let dir = RunDir::new("fleet")?;
        let plan = Plan::new(2, &std::env::current_exe()?, Duration::from_secs(9));
        let fleet = plan.one_certificate().option("port", "0").prepare(dir.path())?;
        let read = |index: usize, name| fs::read_to_string(fleet.servers[index].etc().join(name));
        let conf = read(1, "server_conf.yaml")?;
        let lines = |start: &str| conf.lines().filter(|line| line.starts_with(start)).count();
        assert!(conf.contains("server_id: 2\n") && conf.contains("key_update_interval: 9\n"));
        assert!(conf.contains("port: 0\n") && lines("port:") == 1, "{conf}");
        assert_eq!(conf.matches("pki/peer.pem\n").count(), 2, "{conf}");
        assert!(read(0, "server_list.yaml")?.contains(&format!("port: {}", fleet.raft_ports[1])));
        dir.done()
    }

    #[test]
    fn the_leader_is_the_one_of_the_highest_last_term() {
        let logs = |lines: [&str; 3]| lines.map(|line| format!("[x] NOTE: {line}.\nnoise\n"));
        assert_eq!(leader_of(&logs(["", "", ""])), None);
        let after_death = logs([
            "[stek_share] this server is the leader of term 2",
            "[stek_share] leader is server 3 in term 7 (was 1)",
            "[stek_share] this server is the leader of term 7",
        ]);
        assert_eq!(leader_of(&after_death), Some(Leader { index: 2, term: 7 }));
        let moved_on = "leader is server 2 in term 3\nleader is server 1 in term 4\n".to_owned();
        assert_eq!(leader_of(&[moved_on]), Some(Leader { index: 0, term: 4 }));
        assert_eq!(leader_of(&["leader is server 0 in term 4".to_owned()]), None);
    }
}
