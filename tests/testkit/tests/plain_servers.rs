//! The kit proves itself on plain Traffic Servers, without any plugin: what it says of servers that
//! share a static ticket key, and of servers that do not, must be right.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use testkit::ats::{Ats, Builder};
use testkit::load::{Load, Plan};
use testkit::memory;
use testkit::nameserver::{self, is_root};
use testkit::origin::{Origin, BODY};
use testkit::pki::{Files, Identity};
use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::tickets::{self, TlsVersion, KEY_LEN};
use testkit::{wait, Result};

/// A key as ATS reads it from a file; any bytes will do.
fn static_key() -> [u8; KEY_LEN] {
    std::array::from_fn(|i| (i * 29 + 7) as u8)
}

fn site(dir: &Path) -> Result<Files> {
    Identity::self_signed("/CN=localhost")?.write(dir, "site")
}

fn key_file(dir: &Path) -> Result<PathBuf> {
    let file = dir.join("ticket.key");
    testkit::pki::write_private(&file, &static_key())?;
    Ok(file)
}

/// Starts servers at once, each as `plan` has it.
fn start(dir: &RunDir, names: &[&str], plan: impl Fn(Builder) -> Builder) -> Result<Vec<Ats>> {
    let servers = names.iter().map(|name| plan(Ats::builder(&dir.join(name))).start());
    let mut servers: Vec<Ats> = servers.collect::<Result<_>>()?;
    servers.iter_mut().try_for_each(Ats::wait_ready)?;
    Ok(servers)
}

fn addresses(servers: &[Ats]) -> Vec<SocketAddr> {
    servers.iter().map(Ats::https).collect()
}

#[test]
fn servers_with_one_key_resume_each_others_sessions() -> Result<()> {
    let dir = RunDir::new("shared")?;
    let (site, key) = (site(dir.path())?, key_file(dir.path())?);
    let servers = start(&dir, &["a", "b", "c"], |b| b.certificate(&site).ticket_key(&key))?;
    for version in TlsVersion::ALL {
        let matrix = tickets::matrix(&addresses(&servers), version)?;
        assert!(matrix.is_full() && !matrix.is_diagonal(), "{matrix}");
        let ticket = tickets::take(servers[0].https(), version)?;
        assert_eq!(ticket.key_name, static_key()[..16]);
        assert!(ticket.opens_with(&static_key())?);
        // Each part of the key counts, and the ticket's own bytes do.
        for part in [0, 16, 32] {
            let mut other = static_key();
            other[part] ^= 1;
            assert!(!ticket.opens_with(&other)?, "key byte {part} changed");
        }
        let mut changed = ticket.clone();
        changed.bytes[40] ^= 1;
        assert!(!changed.opens_with(&static_key())?);
        // TLS 1.3 always gives a new ticket, TLS 1.2 only when the key is not the newest.
        let offer = tickets::offer(servers[1].https(), &ticket)?;
        assert!(offer.resumed);
        assert_eq!(offer.renewed.is_some(), version == TlsVersion::V13);
    }
    dir.done()
}

/// A name server that loses a question would make this start five seconds longer, and a measured one too.
#[test]
fn a_server_starts_without_a_name_server() -> Result<()> {
    if !is_root()? {
        println!("not tried: needs root");
        return Ok(());
    }
    let dir = RunDir::new("nameless")?;
    let site = site(dir.path())?;
    let silent = UdpSocket::bind(("127.88.0.5", 53))?;
    silent.set_nonblocking(true)?;
    let place = nameserver::place(dir.path(), "nameserver 127.88.0.5\n")?;
    let words: Vec<&str> = place.wrapper.iter().map(String::as_str).collect();
    start(&dir, &["a"], |b| b.certificate(&site).wrapper(&words))?;
    let mut question = [0; 512];
    let asked = silent.recv(&mut question).map(|len| question[..len].escape_ascii().to_string());
    assert!(matches!(&asked, Err(error) if error.kind() == ErrorKind::WouldBlock), "{asked:?}");
    dir.done()
}

#[test]
fn servers_with_keys_of_their_own_resume_only_their_own_sessions() -> Result<()> {
    let dir = RunDir::new("separate")?;
    let site = site(dir.path())?;
    let servers = start(&dir, &["a", "b"], |b| b.certificate(&site))?;
    for version in TlsVersion::ALL {
        let matrix = tickets::matrix(&addresses(&servers), version)?;
        assert!(matrix.is_diagonal() && !matrix.is_full(), "{matrix}");
        assert_eq!(matrix.misses(), 2);
    }
    let load = Load::start(&addresses(&servers), Plan { per_second: 100, ..Plan::default() })?;
    wait::until(Duration::from_secs(20), "20 misses", || {
        Ok((load.report().missed >= 20).then_some(()))
    })?;
    let report = load.stop();
    assert_eq!(report.missed, report.offers, "{report}");
    assert!(report.details.iter().all(|miss| miss.what == "not resumed"), "{report}");
    dir.done()
}

#[test]
fn a_key_is_found_in_memory_by_its_name_and_proved_by_a_ticket() -> Result<()> {
    let dir = RunDir::new("memory")?;
    let (site, key) = (site(dir.path())?, key_file(dir.path())?);
    let servers = start(&dir, &["a"], |b| b.certificate(&site).ticket_key(&key))?;
    let ticket = tickets::take(servers[0].https(), TlsVersion::V12)?;
    let candidates = memory::candidates_after(servers[0].pid()?, &ticket.key_name)?;
    let mut proved = Vec::new();
    for candidate in candidates {
        if ticket.opens_with(&candidate)? {
            proved.push(candidate);
        }
    }
    assert_eq!(proved, [static_key()]);
    assert!(!memory::find_all(servers[0].pid()?, &static_key()[32..])?.is_empty());
    let absent: [u8; 32] = std::array::from_fn(|i| (i * 53 + 101) as u8);
    assert_eq!(memory::find_all(servers[0].pid()?, &absent)?, []);
    for file in servers[0].log_files()? {
        assert_eq!(memory::contains_key(&fs::read(&file)?, &static_key()), None, "{file:?}");
    }
    dir.done()
}

#[test]
fn a_server_stops_pauses_dies_and_returns() -> Result<()> {
    let dir = RunDir::new("life")?;
    let (site, key, origin) = (site(dir.path())?, key_file(dir.path())?, Origin::start()?);
    let plan = |b: Builder| b.certificate(&site).ticket_key(&key).origin(origin.address());
    let mut servers = start(&dir, &["a"], plan)?;
    let ats = &mut servers[0];
    let answer = tickets::get(ats.https(), "/")?;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(BODY), "{answer}");
    assert_eq!(origin.answered(), 1);
    let before = ats.usage()?;
    let ticket = tickets::take(ats.https(), TlsVersion::V13)?;
    let after = ats.usage()?;
    assert!(before.cpu < after.cpu && after.memory > 1000, "{before:?} {after:?}");

    ats.pause()?;
    let state = || fs::read_to_string(format!("/proc/{}/stat", ats.pid()?)).map_err(Into::into);
    let stands = |stat: String| stat.rsplit(") ").next().map(|rest| rest.starts_with('T'));
    wait::until(Duration::from_secs(5), "the server to stand still", || {
        state().map(|stat: String| stands(stat).filter(|stands| *stands))
    })?;
    ats.resume()?;
    assert!(tickets::offer(ats.https(), &ticket)?.resumed);

    ats.kill9();
    assert!(!ats.is_running());
    assert!(tickets::take(ats.https(), TlsVersion::V12).is_err());
    ats.start()?;
    assert!(ats.wait_first(|address| tickets::offer(address, &ticket))?.resumed);

    let stopped = ats.stop(Signal::Interrupt)?;
    assert!(stopped.status.success(), "{stopped:?}");
    assert!(ats.diags().lines().all(|line| !line.contains("ERROR:")), "{}", ats.diags());
    dir.done()
}

#[test]
fn load_sees_no_miss_where_there_is_none_and_sets_dead_servers_aside() -> Result<()> {
    let dir = RunDir::new("load")?;
    let (site, key) = (site(dir.path())?, key_file(dir.path())?);
    let mut servers = start(&dir, &["a", "b", "c"], |b| b.certificate(&site).ticket_key(&key))?;
    let load = Load::start(&addresses(&servers), Plan { per_second: 50, ..Plan::default() })?;
    let offers = |more: u64| {
        let goal = load.report().offers + more;
        wait::until(Duration::from_secs(20), "more offers", || {
            Ok((load.report().offers >= goal).then_some(()))
        })
    };
    offers(40)?;
    load.set_up(1, false);
    servers[1].kill9();
    offers(40)?;
    servers[1].start()?;
    servers[1].wait_ready()?;
    load.set_up(1, true);
    offers(40)?;
    assert_eq!(load.report().missed, 0, "{}", load.report());
    // A server that dies while it counts as up is a miss.
    servers[2].kill9();
    wait::until(
        Duration::from_secs(20),
        "a miss",
        || Ok((load.report().missed > 0).then_some(())),
    )?;
    let report = load.stop();
    assert!(report.details.iter().all(|miss| miss.from == 2 || miss.to == 2), "{report}");
    dir.done()
}

#[test]
fn a_server_with_a_manager_answers_traffic_ctl_and_leaves_nothing_behind() -> Result<()> {
    let dir = RunDir::new("manager")?;
    let site = site(dir.path())?;
    let mut servers = start(&dir, &["a"], |b| b.certificate(&site).manager())?;
    let ats = &mut servers[0];
    let server = ats.pid()?;
    let lines = ats.ctl(&["config", "get", "proxy.config.exec_thread.limit"])?;
    assert!(lines.contains("proxy.config.exec_thread.limit: 1"), "{lines}");
    ats.kill9();
    wait::until(Duration::from_secs(10), "the end of the server", || {
        Ok((!Path::new(&format!("/proc/{server}/stat")).exists()).then_some(()))
    })?;
    dir.done()
}

#[test]
fn children_outlive_the_thread_that_starts_them() -> Result<()> {
    let dir = RunDir::new("thread")?;
    let site = site(dir.path())?;
    let builder = Ats::builder(&dir.join("a")).certificate(&site);
    let started = thread::spawn(move || builder.start()).join();
    let mut ats = started.map_err(|_| testkit::Error::new("the thread panicked"))??;
    ats.wait_ready()?;
    assert!(ats.is_running());
    dir.done()
}

#[test]
fn servers_listen_on_other_addresses_and_start_through_a_wrapper() -> Result<()> {
    let dir = RunDir::new("addresses")?;
    let site = site(dir.path())?;
    for (name, address) in [("v4", "127.0.0.2"), ("v6", "::1")] {
        let address = address.parse().map_err(|_| testkit::Error::new("no address"))?;
        let builder = Ats::builder(&dir.join(name)).certificate(&site).address(address);
        let mut ats = builder.wrapper(&["env", "STEK_SHARE_KIT=wrapped"]).start()?;
        ats.wait_ready()?;
        let environment = fs::read(format!("/proc/{}/environ", ats.pid()?))?;
        assert!(testkit::sys::find(&environment, b"STEK_SHARE_KIT=wrapped").is_some());
    }
    dir.done()
}
