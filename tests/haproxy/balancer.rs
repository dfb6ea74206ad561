//! Debian's haproxy with the example's configuration.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use testkit::{ports, sys, wait, Context, Error, Result};

use crate::PATIENCE;

/// As shipped.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/haproxy.cfg");

/// A running haproxy; killed when dropped.
pub struct Balancer {
    child: Child,
    address: SocketAddr,
    admin: PathBuf,
}

impl Balancer {
    /// Starts it in front of `servers` and waits until it has found all of them up.
    pub fn start(dir: &Path, servers: &[SocketAddr]) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::take()?));
        let admin = dir.join("haproxy.sock");
        let mut text = fs::read_to_string(EXAMPLE).context(EXAMPLE)?;
        let mut put = |what: &str, instead: &str| {
            let parts = text.matches(what).count();
            assert_eq!(parts, 1, "{EXAMPLE} is to have {what:?} once");
            text = text.replace(what, instead);
        };
        put("bind :443\n", &format!("bind {address}\n"));
        put("stats socket /run/haproxy/admin.sock", &format!("stats socket {}", admin.display()));
        // It stays the user of the test, which the kernel could not end it for otherwise.
        put("    user haproxy\n    group haproxy\n", "");
        for (number, real) in (1..).zip(servers) {
            put(&format!("10.0.0.{number}:443\n"), &format!("{real}\n"));
        }
        assert!(!text.contains("10.0.0."), "no address of the example is left");
        let file = dir.join("haproxy.cfg");
        fs::write(&file, text)?;

        let log = fs::File::create(dir.join("haproxy.log"))?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = sys::spawn(command)
            .map_err(|error| Error::new(format!("haproxy (Debian's package): {error}")))?;
        let mut balancer = Self { child, address, admin };
        balancer.wait_up(servers.len())?;
        Ok(balancer)
    }

    /// Where clients come to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections each server has had, in the order of the file.
    pub fn shares(&self) -> Result<Vec<u64>> {
        let rows = self.servers()?;
        let total = |row: &Row| row.connections.parse::<u64>().context(&row.name);
        rows.iter().map(total).collect()
    }

    /// How many since.
    pub fn shares_since(&self, before: &[u64]) -> Result<Vec<u64>> {
        let now = self.shares()?;
        Ok(now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).collect())
    }

    /// What haproxy thinks of a server, `UP` at best.
    pub fn status(&self, name: &str) -> Result<String> {
        let row = self.servers()?.into_iter().find(|row| row.name == name);
        row.map(|row| row.status).ok_or_else(|| Error::new(format!("haproxy knows no {name}")))
    }

    fn wait_up(&mut self, count: usize) -> Result<()> {
        wait::until(PATIENCE, "haproxy with all servers up", || {
            if let Some(status) = self.child.try_wait()? {
                return Err(Error::new(format!("haproxy has ended, {status}; see haproxy.log")));
            }
            // After its first check a server is UP; before, haproxy says so with a word more.
            let Ok(rows) = self.servers() else { return Ok(None) };
            let up = rows.iter().filter(|row| row.status == "UP" && row.checked).count();
            Ok((up == count).then_some(()))
        })
    }

    fn servers(&self) -> Result<Vec<Row>> {
        let mut socket = UnixStream::connect(&self.admin).context(self.admin.display())?;
        socket.write_all(b"show stat\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        let mut lines = text.lines();
        let names = lines.next().unwrap_or_default().trim_start_matches("# ");
        let column = |wanted: &str| {
            let place = names.split(',').position(|name| name == wanted);
            place.ok_or_else(|| Error::new(format!("haproxy's statistics have no {wanted}")))
        };
        let columns =
            [column("svname")?, column("stot")?, column("status")?, column("check_status")?];
        let row = |line: &str| {
            let fields: Vec<&str> = line.split(',').collect();
            let [name, connections, status, check] =
                columns.map(|column| fields.get(column).copied().unwrap_or_default().to_owned());
            Row { name, connections, status, checked: check.starts_with("L4OK") }
        };
        Ok(lines.map(row).filter(|row| row.name.starts_with("server")).collect())
    }
}

struct Row {
    name: String,
    connections: String,
    status: String,
    checked: bool,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
