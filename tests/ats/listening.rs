//! Where the plugin listens for its peers, and what it does when it cannot.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use testkit::ats::Ats;
use testkit::fleet::{self, Plan};
use testkit::run_dir::RunDir;
use testkit::tickets::{self, TlsVersion};
use testkit::{wait, Result};

use crate::stage::{lines_of, plugin, reserve, resumes_its_own, works, Site, PATIENCE};

/// Another loopback address than the one that servers have.
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// For documentation (RFC 5737), so nobody's.
const ELSEWHERE: &str = "192.0.2.1";

fn accepts(ip: IpAddr, port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(5)).is_ok()
}

#[test]
fn a_port_in_use_is_told_of_and_taken_once_it_is_free() -> Result<()> {
    let _reserved = reserve(3);
    let dir = RunDir::new("port")?;
    let mut fleet = Plan::new(3, &plugin(), Duration::from_secs(3600)).prepare(dir.path())?;
    let port = fleet.raft_ports[2];
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    // The others begin, so that one of them leads: a leader need not be reached.
    fleet.servers[..2].iter_mut().try_for_each(Ats::start)?;
    fleet.servers[..2].iter_mut().try_for_each(Ats::wait_ready)?;
    let key = fleet::wait_one_key(&fleet.https()[..2], None, PATIENCE)?;
    fleet.servers[2].start()?;
    fleet.servers[2].wait_ready()?;
    let kept_out = &fleet.servers[2];
    kept_out.wait_diags("trying again, no peer reaches this server until then", PATIENCE)?;
    let told = format!(
        "port {port} on 127.0.0.1 is in use by another process; end that one, or change 'port' \
         here and in the server list; trying again, no peer reaches this server until then"
    );
    assert_eq!(lines_of(kept_out, "WARNING"), [told]);
    let own = resumes_its_own(kept_out)?;
    assert_ne!(own, key, "it cannot have got the group's key");

    drop(holder);
    assert_eq!(fleet::wait_one_key(&fleet.https(), None, PATIENCE)?, key);
    kept_out.wait_diags(&format!("listening for peers on 127.0.0.1:{port}"), PATIENCE)?;
    let matrix = tickets::matrix(&fleet.https(), TlsVersion::V12)?;
    assert!(matrix.is_full(), "{matrix}");
    assert_eq!(lines_of(&fleet.servers[2], "ERROR"), [""; 0]);
    dir.done()
}

#[test]
fn it_listens_at_its_address_only() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("address")?;
    let mut site = Site::new(dir.path(), |builder| builder)?;
    site.ats.start()?;
    site.ats.wait_ready()?;
    works(&site.ats)?;
    site.ats.wait_diags(&format!("listening for peers on 127.0.0.1:{}", site.port), PATIENCE)?;
    assert!(accepts(Ipv4Addr::LOCALHOST.into(), site.port));
    assert!(!accepts(OTHER, site.port));
    dir.done()
}

#[test]
fn an_address_elsewhere_means_all_interfaces_and_bind_address_overrides() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("elsewhere")?;
    let mut site = Site::new(dir.path(), |builder| builder)?;
    for file in ["server_conf.yaml", "server_list.yaml"] {
        site.edit(file, "address: 127.0.0.1", &format!("address: {ELSEWHERE}"))?;
    }
    site.ats.start()?;
    site.ats.wait_ready()?;
    works(&site.ats)?;
    let warning = format!(
        "address {ELSEWHERE} is no address of this machine: listening on all interfaces until it is \
         one of this machine's; set bind_address to choose one"
    );
    wait::until(PATIENCE, "the warning", || {
        Ok(lines_of(&site.ats, "WARNING").contains(&warning).then_some(()))
    })?;
    assert!(accepts(Ipv4Addr::LOCALHOST.into(), site.port) && accepts(OTHER, site.port));
    site.ats.kill9();

    let own = "server_id: 1\n";
    site.edit("server_conf.yaml", own, &format!("{own}bind_address: 127.0.0.1\n"))?;
    site.ats.start()?;
    site.ats.wait_ready()?;
    site.ats.wait_diags(&format!("listening for peers on 127.0.0.1:{}", site.port), PATIENCE)?;
    assert!(accepts(Ipv4Addr::LOCALHOST.into(), site.port));
    assert!(!accepts(OTHER, site.port));
    // Of the first start alone.
    let warnings = lines_of(&site.ats, "WARNING");
    assert_eq!(warnings.iter().filter(|line| **line == warning).count(), 1, "{warnings:#?}");
    dir.done()
}
