//! `init`: certificates and configurations for a new fleet.
//!
//! Invariants: nothing that exists is touched; the directory appears whole or not at all; what
//! it holds was accepted by the plugin's own loader before it appears; a private key is never, not
//! even for a moment, readable by others than its owner.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use stek_share::core::config::{parse_list, Problem};
use stek_share::load::{self, Dirs};

use crate::cli::InitArgs;
use crate::exit_code::{Ended, Failure, Outcome};
use crate::output::print;
use crate::pki::{self, Identity};

/// The most servers: more are no fleet for a first try, and a typing error at most.
const MAX_SERVERS: usize = 100;

/// Where the files are meant to be on a server, relative to Traffic Server's configuration directory.
const HOME: &str = "stek_share";

/// One server of the new fleet.
struct NewServer {
    id: usize,
    address: String,
    port: u16,
}

impl NewServer {
    fn name(&self) -> String {
        format!("server-{}", self.id)
    }
}

/// Makes the directory.
pub fn run(args: &InitArgs) -> Ended {
    let servers = servers(&args.addresses, args.port)?;
    let dir = &args.dir;
    refuse_if_taken(dir)?;
    let draft = Draft::new(dir)?;
    write_all(draft.path(), &servers, args)?;
    prove(draft.path(), &servers)?;
    draft.finish(dir)?;
    print(&next_steps(dir, &servers))?;
    Ok(Outcome::Healthy)
}

/// The addresses as servers, each checked by the plugin's own reader.
fn servers(addresses: &[String], port: u16) -> Result<Vec<NewServer>, Failure> {
    if addresses.len() > MAX_SERVERS {
        return Err(Failure::new(format!(
            "{} servers are more than {MAX_SERVERS}",
            addresses.len()
        )));
    }
    let mut servers: Vec<NewServer> = Vec::new();
    for (id, given) in (1..).zip(addresses) {
        let (address, own_port) = split_port(given)?;
        let mut candidate = NewServer { id, address: address.to_owned(), port };
        let entry = list(std::slice::from_ref(&candidate));
        // The characters that could end the quotes around it are in no address.
        let problem = if address.contains(['"', '\\', '\n']) {
            Some("is not an address".to_owned())
        } else {
            parse_list(&entry, "").1.into_iter().find(Problem::is_error).map(|p| p.reason)
        };
        if let Some(reason) = problem {
            return Err(Failure::new(format!(
                "{given:?}: {reason}; give an IPv4 address, an IPv6 address or a host name, \
                 perhaps with a port"
            )));
        }
        let taken = |port| servers.iter().any(|b| b.address == address && b.port == port);
        candidate.port = match own_port {
            Some(port) => port,
            None => (port..=u16::MAX).find(|port| !taken(*port)).unwrap_or(port),
        };
        if taken(candidate.port) {
            return Err(Failure::new(format!(
                "{given:?}: is given twice; give each server an address or a port of its own"
            )));
        }
        servers.push(candidate);
    }
    Ok(servers)
}

/// Parts `10.0.0.1:10002` and `[::1]:10002`; an IPv6 address without brackets has no port.
fn split_port(given: &str) -> Result<(&str, Option<u16>), Failure> {
    let (address, port) = match given.rsplit_once(':') {
        Some((address, port)) if address.ends_with(']') || !address.contains(':') => {
            (address, Some(port))
        }
        _ => (given, None),
    };
    let port = port.map(|port| match port.parse::<u16>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Failure::new(format!(
            "{given:?}: {port:?} is not a port; give a number from 1 to 65535"
        ))),
    });
    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    Ok((bare.unwrap_or(address), port.transpose()?))
}

fn refuse_if_taken(dir: &Path) -> Result<(), Failure> {
    let refused = |why: &str| {
        Err(Failure::new(format!(
            "{}: {why}; nothing was written, give another directory",
            dir.display()
        )))
    };
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => refused(&error.to_string()),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => refused("is not empty"),
        },
    }
}

/// A directory beside the wanted one, which takes its place when all is written, and goes away
/// otherwise.
struct Draft {
    path: PathBuf,
    finished: bool,
}

impl Draft {
    fn new(dir: &Path) -> Result<Draft, Failure> {
        let name = dir.file_name().ok_or_else(|| {
            Failure::new(format!("{}: is no name of a new directory", dir.display()))
        })?;
        let hidden = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        let path = dir.with_file_name(hidden);
        make_dir(&path)?;
        Ok(Draft { path, finished: false })
    }

    fn path(&self) -> &Path {
        &self.path
    }

    /// Renaming replaces an empty directory and nothing else.
    fn finish(mut self, dir: &Path) -> Result<(), Failure> {
        fs::rename(&self.path, dir).map_err(|error| {
            Failure::new(format!("{}: cannot be made: {error}; nothing was written", dir.display()))
        })?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody is left who could be told.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn make_dir(path: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| Failure::new(format!("{}: cannot be made: {error}", path.display())))
}

fn write_all(dir: &Path, servers: &[NewServer], args: &InitArgs) -> Result<(), Failure> {
    let broken = |error| Failure::new(format!("OpenSSL made no certificate: {error}"));
    let authority = pki::authority(args.days).map_err(broken)?;
    let ca = dir.join("ca");
    make_dir(&ca)?;
    write_identity(&ca, "ca", &authority)?;
    let (list, root) = (list(servers), authority.certificate_pem().map_err(broken)?);
    for one in servers {
        let home = dir.join(one.name());
        make_dir(&home)?;
        let name = common_name(one.id);
        let leaf = pki::leaf(&authority, &name, &one.address, args.days).map_err(broken)?;
        write_identity(&home, "server", &leaf)?;
        write(&home, "ca.crt", &root)?;
        write(&home, "server_list.yaml", list.as_bytes())?;
        write(&home, "server_conf.yaml", conf(one, args.interval).as_bytes())?;
        let line = format!("stek_share.so {HOME}/server_conf.yaml\n");
        write(&home, "plugin.config", line.as_bytes())?;
    }
    Ok(())
}

fn write_identity(dir: &Path, name: &str, identity: &Identity) -> Result<(), Failure> {
    let broken = |error| Failure::new(format!("OpenSSL cannot write PEM: {error}"));
    write(dir, &format!("{name}.crt"), &identity.certificate_pem().map_err(broken)?)?;
    write(dir, &format!("{name}.key"), &identity.key_pem().map_err(broken)?)
}

/// A new file; a key is its owner's alone.
fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), Failure> {
    let path = dir.join(name);
    let mode = if name.ends_with(".key") { 0o600 } else { 0o644 };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&path)
        .and_then(|mut file| file.write_all(content))
        .map_err(|error| Failure::new(format!("{}: cannot be written: {error}", path.display())))
}

fn common_name(id: usize) -> String {
    format!("stek-share-{id}")
}

fn list(servers: &[NewServer]) -> String {
    let head = "# Every server of the fleet. The same file on each.\n\n";
    let entries = servers.iter().map(|one| {
        let (id, address, port) = (one.id, &one.address, one.port);
        let subject = pki::subject(&common_name(id));
        format!(
            "- server_id: {id}\n  address: \"{address}\"\n  port: {port}\n  \
             cert_verify_str: {subject}\n"
        )
    });
    std::iter::once(head.to_owned()).chain(entries).collect()
}

fn conf(one: &NewServer, interval: u32) -> String {
    let (id, address, port) = (one.id, &one.address, one.port);
    format!(
        "# stek_share on server {id}. All other options have their defaults; see the plugin's\n\
         # documentation. Paths are relative to this file.\n\n\
         server_id: {id}\n\
         address: \"{address}\"\n\
         port: {port}\n\
         key_update_interval: {interval}\n\
         server_list_file: server_list.yaml\n\
         root_cert_file: ca.crt\n\
         server_cert_file: server.crt\n\
         server_key_file: server.key\n"
    )
}

/// Has the plugin's loader read what was written.
fn prove(dir: &Path, servers: &[NewServer]) -> Result<(), Failure> {
    // The loader looks for relative names beside other files than this process would.
    let dir = std::path::absolute(dir)
        .map_err(|error| Failure::new(format!("{}: {error}", dir.display())))?;
    for one in servers {
        let home = dir.join(one.name());
        let dirs = Dirs { working: home.clone(), install: home.clone(), config: home.clone() };
        let conf = home.join("server_conf.yaml");
        let problems = match load::load(&conf.to_string_lossy(), &dirs) {
            Ok(loaded) => loaded.warnings,
            Err(refused) => refused.problems,
        };
        // A certificate for less than 30 days is worth a warning, and was asked for.
        let told = problems.iter().filter(|problem| problem.is_error());
        let lines: Vec<String> = told.map(Problem::to_string).collect();
        if !lines.is_empty() {
            return Err(Failure(lines));
        }
    }
    Ok(())
}

fn next_steps(dir: &Path, servers: &[NewServer]) -> String {
    let shown = dir.display();
    let many = match servers.len() {
        1 | 2 => "\nThree servers are the least that survive the death of one.\n",
        _ => "",
    };
    let copies: String = servers
        .iter()
        .map(|one| {
            let (name, address) = (one.name(), &one.address);
            format!("  {shown}/{name}/  for the server at {address}, port {}\n", one.port)
        })
        .collect();
    format!(
        "Made {shown}:\n\n{copies}\n\
         On each server:\n\
         1. Copy its directory to {HOME}/ in Traffic Server's configuration directory, for example\n   \
            /etc/trafficserver/{HOME}/, and give it to the user that runs Traffic Server:\n   \
            chown -R trafficserver: /etc/trafficserver/{HOME}\n\
         2. Add the line of its plugin.config to Traffic Server's plugin.config.\n\
         3. stekctl check /etc/trafficserver/{HOME}/server_conf.yaml\n\
         4. Let the servers reach each other on these ports, and nobody else. Restart Traffic \
            Server.\n\
         Then, on any server: stekctl status; stekctl doctor\n{many}\n\
         Keep {shown}/ca/ca.key off the servers: whoever has it can make itself a server.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(addresses: &[&str]) -> Result<Vec<(String, u16)>, String> {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let servers = servers(&addresses, 10001).map_err(|failure| failure.0.join(" "))?;
        Ok(servers.into_iter().map(|one| (one.address, one.port)).collect())
    }

    #[test]
    fn addresses_may_have_ports() {
        let pair = |address: &str, port| (address.to_owned(), port);
        let given = ["10.0.0.1", "b.example:7", "::1", "[::1]:9", "[2001:db8::1]", "10.0.0.1"];
        let expected = [
            pair("10.0.0.1", 10001),
            pair("b.example", 7),
            pair("::1", 10001),
            pair("::1", 9),
            pair("2001:db8::1", 10001),
            pair("10.0.0.1", 10002),
        ];
        assert_eq!(made(&given), Ok(expected.to_vec()));
    }

    #[test]
    fn a_bad_address_is_named() {
        for bad in ["", "10.0.0.256", "a b", "a\"\n- server_id: 9", "[::1", "10.0.0.1:0", "x:y"] {
            let why = made(&["10.0.0.1", bad]).unwrap_err();
            assert!(why.starts_with(&format!("{bad:?}: ")) && why.contains("; give "), "{why}");
        }
        let why = made(&["10.0.0.1:7", "10.0.0.1:7"]).unwrap_err();
        assert!(why.contains("is given twice"), "{why}");
        assert!(made(&["a"; MAX_SERVERS + 1]).is_err());
    }
}
