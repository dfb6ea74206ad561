//! The demo leaves no process behind, however it ends. A plugin of Traffic Server's own that shares no
//! keys stands in for ours: with it the demo cannot pass.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use testkit::host::host;
use testkit::run_dir::RunDir;
use testkit::sys::{self, Signal};
use testkit::{wait, Context, Error, Result};

/// A plugin of the host's own.
const STRANGER: &str = "xdebug.so";
/// Longer than the demo waits for the servers to agree, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

struct Running {
    demo: Child,
    dir: RunDir,
    servers: Vec<u32>,
}

impl Running {
    /// Starts the demo and waits until it has shown its servers' process ids.
    fn start(purpose: &str) -> Result<Self> {
        let dir = RunDir::new(purpose)?;
        let out = fs::File::create(dir.join("out"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
        // Its own directories go into ours, so that they are gone with it.
        command.arg(host()?.plugin(STRANGER)).env("TMPDIR", dir.path());
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let demo = sys::spawn(command)?;
        let mut this = Self { demo, dir, servers: Vec::new() };
        this.servers = wait::until(LIMIT, "three servers", || {
            let pids = this.output()?;
            let pids = pids.lines().filter_map(|line| line.split_once(" pid ")?.1.parse().ok());
            Ok(Some(pids.collect::<Vec<u32>>()).filter(|pids| pids.len() == 3))
        })
        .map_err(|error| Error::new(format!("{error}\n{}", this.output().unwrap_or_default())))?;
        assert!(this.servers.iter().all(|pid| is_server(*pid)));
        Ok(this)
    }

    fn output(&self) -> Result<String> {
        fs::read_to_string(self.dir.join("out")).context("the demo's output")
    }

    /// Waits for its end, and for its servers' end.
    fn end(&mut self) -> Result<ExitStatus> {
        let status =
            wait::until(LIMIT, "the demo's end", || self.demo.try_wait().map_err(Into::into))?;
        wait::until(Duration::from_secs(10), "the servers' end", || {
            Ok((!self.servers.iter().any(|pid| is_server(*pid))).then_some(()))
        })?;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.demo.kill();
        let _ = self.demo.wait();
    }
}

/// Whether a Traffic Server has this process id.
fn is_server(pid: u32) -> bool {
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.contains("traffic_server")
}

#[test]
fn without_shared_keys_the_verdict_is_failed() -> Result<()> {
    let mut running = Running::start("demo-fails")?;
    let status = running.end()?;
    let output = running.output()?;
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("\nFAILED after "), "{output}");
    assert!(output.contains("one key on all servers"), "{output}");
    let kept = output.lines().find_map(|line| line.strip_prefix("kept for a look: "));
    let kept = kept.ok_or_else(|| Error::new("the demo does not say where its logs are"))?;
    assert!(Path::new(kept).join("server-1/var/log/diags.log").exists());
    running.dir.done()
}

#[test]
fn an_interrupted_demo_cleans_up() -> Result<()> {
    let mut running = Running::start("demo-interrupted")?;
    sys::kill(running.demo.id(), Signal::Interrupt)?;
    let status = running.end()?;
    let output = running.output()?;
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("\nINTERRUPTED after "), "{output}");
    running.dir.done()
}

#[test]
fn a_killed_demo_takes_its_servers_with_it() -> Result<()> {
    let mut running = Running::start("demo-killed")?;
    sys::kill(running.demo.id(), Signal::Kill)?;
    assert_eq!(running.end()?.code(), None);
    running.dir.done()
}

#[test]
fn a_plugin_that_does_not_exist_is_named() -> Result<()> {
    let dir = RunDir::new("demo-nowhere")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    let output = command.arg("/nowhere/plugin.so").env("TMPDIR", dir.path()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILED") && text.contains("/nowhere/plugin.so"), "{text}");
    dir.done()
}
