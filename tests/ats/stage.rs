//! What the tests here share: which plugin, how many servers at once, one server set up by hand.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use testkit::ats::{Ats, Builder};
use testkit::pki::{Authority, Identity, Request};
use testkit::tickets::{self, fingerprint, TlsVersion};
use testkit::turns::{Turn, Turns};
use testkit::{ports, Context, Error, Result};

pub use testkit::fleet::PEER_SUBJECT;

/// Until something has happened that takes well below a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Servers of all tests that run at the same time; more would only wait for each other.
static SERVERS: Turns = Turns::of(16);

/// The plugin's file: the one that `STEK_SHARE_SO` names, else the one that cargo built for this
/// run, the newer of the two places where it may lie.
pub fn plugin() -> PathBuf {
    if let Some(path) = env::var_os("STEK_SHARE_SO") {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "STEK_SHARE_SO is {}, which is no file: make build",
            path.display()
        );
        return path;
    }
    let exe = env::current_exe().expect("this test's own path");
    let deps = exe.parent().expect("the folder of the test binaries");
    let places = [Some(deps), deps.parent()].into_iter().flatten();
    places
        .map(|dir| dir.join("libstek_share.so"))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .max()
        .expect("cargo builds libstek_share.so beside the tests")
        .1
}

/// Waits until nothing else runs, for a test that measures under load.
pub fn reserve_all() -> Turn {
    SERVERS.take_all()
}

/// Waits until `count` more servers may run. A test asks once, for all that it needs.
pub fn reserve(count: usize) -> Turn {
    SERVERS.take(count)
}

/// One server whose files a test changes before it starts it. In a list of its own, with certificates
/// of an authority of its own; everything lies in [`Site::etc`], and nothing is wrong with it.
pub struct Site {
    /// The server, not started yet.
    pub ats: Ats,
    /// Where it listens for peers.
    pub port: u16,
    /// Who issued its certificate.
    pub authority: Authority,
    etc: PathBuf,
}

impl Site {
    /// A server in `dir`, whose server is `tune`d.
    pub fn new(dir: &Path, tune: impl FnOnce(Builder) -> Builder) -> Result<Site> {
        let root = dir.join("server");
        let etc = root.join("etc");
        let site = Identity::self_signed("/CN=localhost")?.write(dir, "site")?;
        let line = format!("{} {}", plugin().display(), etc.join("server_conf.yaml").display());
        let ats = tune(Ats::builder(&root).certificate(&site).plugin(&line)).build()?;
        let site = Site { ats, port: ports::take()?, authority: authority()?, etc };
        site.write("server_conf.yaml", site.conf())?;
        site.write("server_list.yaml", format!("- server_id: 1\n{}", site.place("  ")))?;
        site.authority.identity.write(&site.etc, "root")?;
        site.write_identity(&site.authority.issue(&Request::new(PEER_SUBJECT))?)?;
        Ok(site)
    }

    /// The configuration; the lines' numbers matter to tests.
    fn conf(&self) -> String {
        format!(
            "server_id: 1\n{}key_update_interval: 3600\nserver_list_file: server_list.yaml\n\
             root_cert_file: root.pem\nserver_cert_file: peer.pem\nserver_key_file: peer.key\n\
             cert_verify_str: {PEER_SUBJECT}\n",
            self.place("")
        )
    }

    fn place(&self, indent: &str) -> String {
        format!("{indent}address: 127.0.0.1\n{indent}port: {}\n", self.port)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.etc.join(file)
    }

    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) -> Result<()> {
        testkit::pki::write_private(&self.path(file), content.as_ref())
    }

    pub fn write_identity(&self, identity: &Identity) -> Result<()> {
        identity.write(&self.etc, "peer").map(drop)
    }

    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.path(file)).context(file)
    }

    /// Replaces `from`, which has to be there, by `to` in a file.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(self.path(file)).context(file)?;
        if text.contains(from) {
            self.write(file, text.replace(from, to))
        } else {
            Err(Error::new(format!("{file} has no {from:?}")))
        }
    }
}

pub fn authority() -> Result<Authority> {
    Authority::new("/O=stek_share tests/CN=root")
}

/// Whether the server resumes its own sessions in both versions; the name of its key.
pub fn resumes_its_own(ats: &Ats) -> Result<tickets::KeyName> {
    let mut name = None;
    for version in TlsVersion::ALL {
        let ticket = tickets::take(ats.https(), version)?;
        if !tickets::offer(ats.https(), &ticket)?.resumed {
            return Err(Error::new(format!("{version}: its own session is not resumed")));
        }
        name = Some(ticket.key_name);
    }
    name.ok_or_else(|| Error::new("no version was tried"))
}

/// Waits until the server says that it has installed an agreed key, and until its tickets carry it.
pub fn works(ats: &Ats) -> Result<()> {
    ats.wait_diags("(generation ", PATIENCE)?;
    let name = resumes_its_own(ats)?;
    ats.wait_diags(&format!("current {} (generation ", fingerprint(&name)), PATIENCE)
}

/// What the plugin says where it may lock less memory than it wants: true on some machines, and no
/// concern of these tests.
const LIMITS: &str = "(LimitMEMLOCK, ulimit -l)";

/// The plugin's lines in diags.log of one level, `NOTE`, `WARNING` or `ERROR`.
pub fn lines_of(ats: &Ats, level: &str) -> Vec<String> {
    let mark = format!(" {level}: [stek_share] ");
    let diags = ats.diags();
    let ours = diags.lines().filter_map(|line| Some(line.split_once(&mark)?.1.to_owned()));
    ours.filter(|line| !line.ends_with(LIMITS)).collect()
}
