//! `init`: certificates and configurations for a new fleet.
//!
//! Files are [`crate::fleet_dir`]'s. Invariants: nothing that exists is touched; the directory appears
//! whole or not at all.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use stek_share::core::config::{
    loopback_among_others, Member, LOOPBACK_MEANS, LOOPBACK_REMEDY, MAX_MEMBERS,
};
use stek_share::core::server_id::ServerId;

use crate::cli::InitArgs;
use crate::exit_code::{Ended, Failure, Outcome};
use crate::fleet::address;
use crate::fleet_dir::{self, common_name, folder, FleetChange, HOME};
use crate::output::{print, styled, DOUBTFUL};
use crate::pki::{self, Identity};

/// Makes the directory.
pub fn run(args: &InitArgs) -> Ended {
    let dir = &args.dir;
    refuse_address(dir)?;
    let servers = servers(&args.addresses, args.port)?;
    refuse_if_taken(dir)?;
    fleet_dir::make(dir, &all(&servers, args)?)?;
    print(&next_steps(dir, &servers))?;
    Ok(Outcome::Healthy)
}

/// The addresses as servers, each checked by the plugin's own reader.
fn servers(addresses: &[String], port: u16) -> Result<Vec<Member>, Failure> {
    if addresses.len() > MAX_MEMBERS {
        let count = addresses.len();
        return Err(Failure::new(format!(
            "{count} servers are more than {MAX_MEMBERS}; make several fleets of them"
        )));
    }
    let mut servers: Vec<Member> = Vec::new();
    for (id, given) in (1..).zip(addresses) {
        let (server, _) = place(ServerId(id), given, port)?;
        let is_there = |other: &Member| {
            other.address.eq_ignore_ascii_case(&server.address) && other.port == server.port
        };
        if servers.iter().any(is_there) {
            return Err(Failure::new(format!(
                "{given:?}: is given twice; give each server an address or a port of its own, as in \
                 {}",
                address(&Member { port: server.port.wrapping_add(1).max(1), ..server })
            )));
        }
        servers.push(server);
    }
    Ok(servers)
}

/// What is to be said of an address that no other machine can use.
pub fn loopback(servers: &[Member]) -> Option<String> {
    let one = loopback_among_others(servers)?;
    Some(format!("{} {LOOPBACK_MEANS}; {LOOPBACK_REMEDY}", one.address))
}

/// One address as a server, and the port that was given with it.
///
/// # Errors
/// Why it is none.
pub fn place(id: ServerId, given: &str, port: u16) -> Result<(Member, Option<u16>), Failure> {
    let (address, own_port) = split_port(given)?;
    let member = fleet_dir::member(id, address, own_port.unwrap_or(port)).map_err(|reason| {
        let bare = !address.is_empty() && address == given && address.contains(':');
        let remedy = if bare {
            "give an IPv6 address with a port in brackets, as in [2001:db8::1]:10002"
        } else {
            "give an IPv4 address, an IPv6 address or a host name, perhaps with a port"
        };
        Failure::new(format!("{given:?}: {reason}; {remedy}"))
    })?;
    Ok((member, own_port))
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

/// Whoever forgets the directory has his first server taken for it.
fn refuse_address(dir: &Path) -> Result<(), Failure> {
    let text = dir.to_string_lossy();
    let host = split_port(&text).map_or(&*text, |(host, _)| host);
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if !is_address || dir.exists() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{text} is an address, and the first word is the directory to make: stekctl init fleet {text} ...; \
         nothing was written"
    )))
}

/// Whether there is something already where the fleet is to be.
fn refuse_if_taken(dir: &Path) -> Result<(), Failure> {
    let refused = |why: &str| {
        Err(Failure::new(format!(
            "{}: {why}; nothing was written, give another directory",
            dir.display()
        )))
    };
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match dir.parent() {
            Some(above) if !above.as_os_str().is_empty() && !above.is_dir() => {
                refused(&format!("there is no directory {} for it", above.display()))
            }
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => refused("is no directory"),
        Err(error) => refused(&error.to_string()),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => refused("is not empty"),
        },
    }
}

/// All files of the new directory.
fn all(servers: &[Member], args: &InitArgs) -> Result<FleetChange, Failure> {
    let mut change = FleetChange::default();
    let authority = pki::authority(args.days)
        .map_err(|error| Failure::new(format!("OpenSSL made no certificate: {error}")))?;
    change.identity("ca", ["ca.crt", "ca.key"], &authority)?;
    for one in servers {
        home(&mut change, one, servers, &authority, args.days, &conf(one, args.interval))?;
    }
    Ok(change)
}

/// Adds all files of one server.
///
/// # Errors
/// OpenSSL failed.
pub fn home(
    change: &mut FleetChange,
    one: &Member,
    servers: &[Member],
    authority: &Identity,
    days: u32,
    conf: &str,
) -> Result<(), Failure> {
    let broken = |error| Failure::new(format!("OpenSSL made no certificate: {error}"));
    let name = common_name(one.id);
    let leaf = pki::leaf(authority, &name, &one.address, days).map_err(broken)?;
    change.leaf(one.id, &leaf)?;
    change.file(one.id, "ca.crt", &authority.certificate_pem().map_err(broken)?);
    change.file(one.id, "server_list.yaml", fleet_dir::list(servers).as_bytes());
    change.file(one.id, "server_conf.yaml", conf.as_bytes());
    let line = format!("stek_share.so {HOME}/server_conf.yaml\n");
    change.file(one.id, "plugin.config", line.as_bytes());
    change.coming.insert(one.id);
    Ok(())
}

fn conf(one: &Member, interval: u32) -> String {
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

fn next_steps(dir: &Path, servers: &[Member]) -> String {
    let shown = dir.display();
    let many = match servers.len() {
        1 | 2 => "\nThree servers are the least that survive the death of one.\n",
        _ => "",
    };
    let copies: String = servers
        .iter()
        .map(|one| {
            let (name, address) = (folder(one.id), &one.address);
            format!("  {shown}/{name}/  for the server at {address}, port {}\n", one.port)
        })
        .collect();
    let odd = loopback(servers)
        .map_or_else(String::new, |words| format!("{} {words}\n\n", styled("warning:", DOUBTFUL)));
    format!(
        "{odd}Made {shown}:\n\n{copies}\n\
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
        let given =
            ["10.0.0.1", "b.example:7", "::1", "[::1]:9", "[2001:db8::1]", "10.0.0.1:10002"];
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
        for bare in ["fd00::1:10002", "2001:db8::1:99999"] {
            let why = made(&[bare]).unwrap_err();
            assert!(why.contains("; give an IPv6 address with a port in brackets"), "{why}");
        }
        for (first, again) in [("10.0.0.1", "10.0.0.1"), ("::1", "[::1]:10001"), ("a:7", "A:7")] {
            let why = made(&[first, again]).unwrap_err();
            assert!(why.starts_with(&format!("{again:?}: is given twice; give ")), "{why}");
        }
        assert!(made(&["a"; MAX_MEMBERS + 1]).is_err());
    }
}
