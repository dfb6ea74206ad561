//! The clients: how each is started so that it makes connections one after another, keeps what
//! tickets it gets, and offers them as it sees fit.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testkit::sys::{self, Signal};
use testkit::tickets::TlsVersion;
use testkit::{wait, Context, Error, Result};

use crate::relay::Relay;

/// Handshakes that are looked at, of each client in each version.
pub const CONNECTIONS: usize = 12;
/// How many more a browser makes: it opens two or three before it can have a ticket.
const SPARE: usize = 4;
/// One command has so long; a browser on a busy machine needs some seconds.
const LIMIT: Duration = Duration::from_secs(120);
/// Where the programs are that have to be written for their library.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/programs");
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A client.
pub struct Client {
    /// Its name in the table.
    pub name: &'static str,
    /// Its program.
    pub program: &'static str,
    /// Debian's package that has it.
    pub package: &'static str,
    /// What tells its version.
    about: &'static [&'static str],
    /// Connections of one command.
    each: usize,
    /// How many of all connections can have a ticket at the least.
    pub offers: usize,
    /// The versions in which it asks for tickets.
    pub tickets: &'static [TlsVersion],
    /// Whether it can resume where the server asks for a second ClientHello.
    pub can_be_asked: bool,
    /// Whether it opens several connections at once, and goes on until it is ended.
    pub is_browser: bool,
    command: fn(&Call) -> Result<Command>,
}

/// One command.
struct Call<'a> {
    version: TlsVersion,
    /// As in `1.3`.
    number: &'static str,
    port: String,
    /// For what it keeps over several commands.
    dir: &'a Path,
}

const fn one_process(
    name: &'static str,
    program: &'static str,
    package: &'static str,
    about: &'static [&'static str],
    command: fn(&Call) -> Result<Command>,
) -> Client {
    let (each, offers) = (CONNECTIONS, CONNECTIONS - 1);
    Client {
        name,
        program,
        package,
        about,
        each,
        offers,
        tickets: &TlsVersion::ALL,
        can_be_asked: true,
        is_browser: false,
        command,
    }
}

/// All of them.
pub const CLIENTS: [Client; 8] = [
    Client {
        each: 1,
        ..one_process("openssl s_client", "openssl", "openssl", &["openssl", "version"], s_client)
    },
    Client {
        // It connects, and once more to resume.
        each: 2,
        offers: CONNECTIONS / 2,
        ..one_process(
            "GnuTLS, gnutls-cli",
            "gnutls-cli",
            "gnutls-bin",
            &["gnutls-cli", "--version"],
            gnutls_cli,
        )
    },
    one_process(
        "NSS, tstclnt",
        "tstclnt",
        "libnss3-tools",
        &["dpkg-query", "--show", "--showformat=${source:Upstream-Version}", "libnss3"],
        tstclnt,
    ),
    Client {
        // Debian's 1.19.8 makes a wrong binder then, and any server refuses it: go.dev/issue/59424.
        can_be_asked: false,
        ..one_process("Go, net/http", "go", "golang-go", &["go", "version"], go)
    },
    one_process("Java, SSLSocket", "javac", "openjdk-17-jdk-headless", &["java", "-version"], java),
    one_process("Node.js, https", "node", "nodejs", &["node", "--version"], node),
    Client {
        // In TLS 1.2 it sets OpenSSL's SSL_OP_NO_TICKET, and has session ids only.
        tickets: &[TlsVersion::V13],
        ..one_process("curl", "curl", "curl", &["curl", "--version"], curl)
    },
    Client {
        is_browser: true,
        ..one_process(
            "Chromium, headless",
            "chromium",
            "chromium",
            &["chromium", "--version"],
            chromium,
        )
    },
];

impl Client {
    /// Whether it is there.
    pub fn is_there(&self) -> bool {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|dir| dir.join(self.program).is_file())
    }

    /// Its version, the first number with a point that it says.
    pub fn version(&self) -> Result<String> {
        let (program, arguments) =
            self.about.split_first().ok_or_else(|| Error::new("no words"))?;
        let output = Command::new(program).args(arguments).output().context(program)?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let mut words = text.split(|c: char| c.is_whitespace() || c == '"');
        let number = words.find_map(|word| {
            let start = word.find(|c: char| c.is_ascii_digit())?;
            word[start..].contains('.').then(|| word[start..].to_owned())
        });
        number.ok_or_else(|| Error::new(format!("{}: no version in {text:?}", self.name)))
    }

    /// Makes all of the connections; `dir` is for this client, this version and these servers alone.
    pub fn run(&self, version: TlsVersion, relay: &Relay, dir: &Path) -> Result<()> {
        std::fs::write(dir.join("request"), REQUEST)?;
        let number = match version {
            TlsVersion::V12 => "1.2",
            TlsVersion::V13 => "1.3",
        };
        let port = relay.address().port().to_string();
        for _ in 0..CONNECTIONS / self.each {
            let call = Call { version, number, port: port.clone(), dir };
            let mut command = (self.command)(&call)?;
            // A browser and a compiler write into the home directory, which is not the test's.
            command.env("HOME", dir).stdin(File::open(dir.join("request"))?);
            let log = File::options().create(true).append(true).open(dir.join("log"))?;
            command.stdout(log.try_clone()?).stderr(log);
            let child = sys::spawn(command).context(self.program)?;
            self.wait(child, relay).context(format_args!(
                "{}, {version}; see {}",
                self.name,
                dir.join("log").display()
            ))?;
        }
        Ok(())
    }

    fn wait(&self, mut child: Child, relay: &Relay) -> Result<()> {
        let ended = wait::until(LIMIT, "its end", || match child.try_wait()? {
            Some(status) => Ok(Some(Some(status))),
            None => Ok((self.is_browser && relay.decided() >= CONNECTIONS + SPARE).then_some(None)),
        });
        if !matches!(ended, Ok(Some(_))) {
            // The child is not reaped, so that the group is still ours; errors mean it is gone.
            let _ = sys::kill_group(child.id(), Signal::Kill);
            let _ = child.wait();
        }
        match ended? {
            Some(status) if !status.success() => Err(Error::new(status.to_string())),
            _ => Ok(()),
        }
    }
}

fn s_client(call: &Call) -> Result<Command> {
    let session = call.dir.join("session");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-servername", "localhost", "-connect"]);
    command.arg(format!("127.0.0.1:{}", call.port));
    command.arg(match call.version {
        TlsVersion::V12 => "-tls1_2",
        TlsVersion::V13 => "-tls1_3",
    });
    if session.exists() {
        command.arg("-sess_in").arg(&session);
    }
    command.arg("-sess_out").arg(&session);
    Ok(command)
}

fn gnutls_cli(call: &Call) -> Result<Command> {
    let mut command = Command::new("gnutls-cli");
    command.args(["--insecure", "--resume", "--waitresumption", "--port", &call.port]);
    command.arg(format!("--priority=NORMAL:-VERS-ALL:+VERS-TLS{}", call.number)).arg("localhost");
    Ok(command)
}

fn tstclnt(call: &Call) -> Result<Command> {
    let mut command = Command::new("tstclnt");
    command.args(["-4", "-D", "-o", "-u", "-h", "localhost", "-p", &call.port, "-V"]);
    command.arg(format!("tls{0}:tls{0}", call.number));
    command.arg("-L").arg(CONNECTIONS.to_string()).arg("-A").arg(call.dir.join("request"));
    Ok(command)
}

fn go(call: &Call) -> Result<Command> {
    let program = call.dir.join("client");
    let mut build = Command::new("go");
    build.arg("build").arg("-o").arg(&program).arg(format!("{SOURCES}/client.go"));
    build.env("GO111MODULE", "off").env("CGO_ENABLED", "0");
    finish(build.env("GOCACHE", call.dir.join("go")))?;
    let mut command = Command::new(program);
    command.args([&call.port, call.number]).arg(CONNECTIONS.to_string());
    Ok(command)
}

fn java(call: &Call) -> Result<Command> {
    finish(Command::new("javac").arg("-d").arg(call.dir).arg(format!("{SOURCES}/Client.java")))?;
    let mut command = Command::new("java");
    command.arg("-cp").arg(call.dir).args(["Client", &call.port, call.number]);
    command.arg(CONNECTIONS.to_string());
    Ok(command)
}

fn node(call: &Call) -> Result<Command> {
    let mut command = Command::new("node");
    command.arg(format!("{SOURCES}/client.js")).args([&call.port, call.number]);
    command.arg(CONNECTIONS.to_string());
    Ok(command)
}

fn curl(call: &Call) -> Result<Command> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--insecure", "--http1.1", "--output", "/dev/null"]);
    command.arg(format!("--tlsv{}", call.number)).args(["--tls-max", call.number]);
    command.arg(format!("https://localhost:{}/[1-{CONNECTIONS}]", call.port));
    Ok(command)
}

fn chromium(call: &Call) -> Result<Command> {
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command.args(["--no-first-run", "--disable-background-networking", "--disable-sync"]);
    command.args(["--disable-component-update", "--ignore-certificate-errors", "--disable-http2"]);
    command.arg(format!("--user-data-dir={}", call.dir.join("profile").display()));
    command.arg(format!("--ssl-version-max=tls{}", call.number));
    command.arg(format!("https://localhost:{}/?connections={}", call.port, CONNECTIONS + SPARE));
    Ok(command)
}

/// Runs what makes a program.
fn finish(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().context("a compiler")?;
    if output.status.success() {
        Ok(())
    } else {
        Err(Error::new(String::from_utf8_lossy(&output.stderr)))
    }
}
