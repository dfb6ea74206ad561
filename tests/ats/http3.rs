//! HTTP/3: a ticket that one server gives out over QUIC resumes on another, over QUIC.
//!
//! A host whose QUIC is OpenSSL's may look at a hello before it knows whose it is, and has no key for its
//! ticket then: that is a full handshake, with and without the plugin, and the more often the more
//! connections it has. So one that resumes among a few offers is enough here.
//!
//! Needs a Traffic Server with QUIC and an `openssl` in `PATH` that speaks it (3.5 or later). Debian 12 has
//! neither: then nothing is tried, and it is said.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::fleet::{self, Fleet, Plan};
use testkit::host::{self, host};
use testkit::run_dir::RunDir;
use testkit::{sys, wait, Context, Result};

use crate::stage::{plugin, reserve, PATIENCE};

/// How often a ticket is offered until it resumes.
const OFFERS: usize = 8;

/// What a connection speaks.
#[derive(Clone, Copy, Debug)]
enum Over {
    Quic,
    Tls,
}

/// A client that keeps its session in a file, as `openssl s_client` does.
struct Client {
    dir: PathBuf,
    session: PathBuf,
}

impl Client {
    /// Takes a ticket that replaces the one it had.
    fn take(&self, address: SocketAddr, over: Over) -> Result<()> {
        let _ = fs::remove_file(&self.session);
        self.connect(address, over, "a.test", "-sess_out", || {
            let length = fs::metadata(&self.session).map_or(0, |session| session.len());
            Ok((length > 0).then_some(()))
        })
    }

    /// Whether the ticket is resumed, at last.
    fn offer(&self, address: SocketAddr, over: Over, name: &str) -> Result<bool> {
        for _ in 0..OFFERS {
            if self.offer_once(address, over, name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn offer_once(&self, address: SocketAddr, over: Over, name: &str) -> Result<bool> {
        let log = self.dir.join("log");
        self.connect(address, over, name, "-sess_in", || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let begins = |word: &str| said.lines().any(|line| line.starts_with(word));
            Ok(match (begins("Reused, "), begins("New, ")) {
                (false, false) => None,
                (resumed, _) => Some(resumed),
            })
        })
    }

    fn connect<T>(
        &self,
        address: SocketAddr,
        over: Over,
        name: &str,
        session: &str,
        seen: impl Fn() -> Result<Option<T>>,
    ) -> Result<T> {
        let log = self.dir.join("log");
        let out = File::create(&log).context(log.display())?;
        let mut command = Command::new("openssl");
        command.args(["s_client", "-servername", name, "-connect", &address.to_string()]);
        command.args(match over {
            Over::Quic => &["-quic", "-alpn", "h3"][..],
            Over::Tls => &["-tls1_3"],
        });
        command.arg(session).arg(&self.session);
        command.stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(out);
        let mut child = sys::spawn(command).context("openssl")?;
        let outcome = wait::until(PATIENCE, &format!("{over:?} to {address}"), seen);
        // It closes the connection; errors mean that it is gone.
        let _ = child.stdin.take().map(|mut input| input.write_all(b"Q\n"));
        let closed = wait::until(PATIENCE, "openssl's end", || Ok(child.try_wait()?));
        if closed.is_err() {
            let _ = child.kill();
            child.wait()?;
        }
        outcome.context(log.display())
    }
}

/// Whether the client knows QUIC.
fn openssl_has_quic() -> Result<bool> {
    let help = Command::new("openssl").args(["s_client", "-help"]).output().context("openssl")?;
    let text = [help.stdout, help.stderr].concat();
    Ok(String::from_utf8_lossy(&text).lines().any(|line| line.trim_start().starts_with("-quic ")))
}

fn start(dir: &Path) -> Result<Fleet> {
    let plan = Plan::new(2, &plugin(), std::time::Duration::from_secs(3600)).manager();
    let mut fleet = plan.prepare(dir)?;
    for ats in &fleet.servers {
        // The same number for UDP, as servers of HTTP/3 have it.
        let (ip, port) = (ats.https().ip(), ats.https().port());
        let ports = format!("{port}:ssl:ip-in={ip} {port}:quic:ip-in={ip}");
        host::set_record(&ats.etc(), &format!("proxy.config.http.server_ports STRING {ports}"))?;
    }
    fleet.start()?;
    fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    Ok(fleet)
}

#[test]
fn a_session_over_quic_resumes_on_the_other_server() -> Result<()> {
    if !host()?.has_quic()? || !openssl_has_quic()? {
        println!("not tried: needs QUIC in Traffic Server and in the openssl of PATH");
        return Ok(());
    }
    let _reserved = reserve(2);
    let dir = RunDir::new("http3")?;
    let fleet = start(dir.path())?;
    let [one, two] = [fleet.servers[0].https(), fleet.servers[1].https()];
    let client = Client { dir: dir.path().to_owned(), session: dir.join("session") };
    for (from, to) in [(one, two), (two, one)] {
        client.take(from, Over::Quic)?;
        assert!(client.offer(to, Over::Quic, "a.test")?, "{from} to {to}");
    }
    // No plugin is called at a hello of QUIC, so that there sessions are not bound to their sites.
    assert!(client.offer(one, Over::Quic, "b.test")?);
    // Those of TLS are, and are none of QUIC.
    assert!(!client.offer(one, Over::Tls, "a.test")?);
    client.take(one, Over::Tls)?;
    assert!(client.offer(two, Over::Tls, "a.test")?);
    assert!(!client.offer(two, Over::Tls, "b.test")?);
    assert!(!client.offer(two, Over::Quic, "a.test")?);

    client.take(one, Over::Quic)?;
    for resumes in [true, false] {
        let old = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
        fleet.servers[0].ctl(&["plugin", "msg", "stek_share", "rotate"])?;
        fleet::wait_one_key(&fleet.https(), Some(&old), PATIENCE)?;
        assert_eq!(client.offer(two, Over::Quic, "a.test")?, resumes);
    }
    dir.done()
}
