//! What a core dump of a server shows: the host's copies of the keys, and none of the plugin's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use testkit::fleet::{wait_one_key, Plan};
use testkit::run_dir::RunDir;
use testkit::sys::{find, Signal};
use testkit::tickets::{take, TlsVersion};
use testkit::{Error, Result};

use crate::{copies, key_of, plugin};

/// So long that the key stays the same over the test.
const INTERVAL: Duration = Duration::from_secs(3600);

#[test]
fn a_core_dump_leaves_the_plugins_keys_out() -> Result<()> {
    let dir = RunDir::new("core")?;
    let mut fleet = Plan::new(1, &plugin()?, INTERVAL).start(dir.path())?;
    wait_one_key(&fleet.https(), None, Duration::from_secs(30))?;
    let ats = &mut fleet.servers[0];
    let pid = ats.pid()?;
    let key = key_of(pid, &take(ats.https(), TlsVersion::V12)?)?;
    // The pages that the kernel leaves out, by their flag; this holds on every machine.
    let now = copies(pid, &key)?;
    assert_eq!(now.ours.len(), 1, "the key's place in the plugin: {now:?}");
    assert!(!now.elsewhere.is_empty(), "the host holds no key? {now:?}");

    let Some(name) = core_name() else {
        println!("this machine does not write core dumps to files; the pages' flags were checked");
        return dir.done();
    };
    let home = fs::read_link(format!("/proc/{pid}/cwd"))?;
    let stopped = ats.stop(Signal::Abort)?;
    let core = fs::read(find_core(&home, &name)?)?;
    println!("{} bytes of core dump; {}", core.len(), stopped.status);
    // The host's copies show that the dump is whole and the search works. They are as many as
    // before, so that nothing of the plugin's is among them.
    assert_eq!(count(&core, &key[16..32]), now.elsewhere.len(), "{now:?}");
    assert_eq!(count(&core, &key[32..]), now.elsewhere.len(), "{now:?}");
    dir.done()
}

/// How the name of a core dump begins, if the kernel writes it into the working directory.
fn core_name() -> Option<String> {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").ok()?;
    let plain = pattern.split('%').next()?.trim();
    let usable = !plain.is_empty() && !plain.starts_with('|') && !plain.contains('/');
    usable.then(|| plain.to_owned())
}

fn find_core(home: &Path, name: &str) -> Result<PathBuf> {
    let files = fs::read_dir(home)?.flatten().map(|entry| entry.path());
    let mut dumps = files.filter(|path| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
    });
    dumps.next().ok_or_else(|| Error::new(format!("no core dump in {}", home.display())))
}

fn count(hay: &[u8], needle: &[u8]) -> usize {
    let (mut rest, mut count) = (hay, 0);
    while let Some(at) = find(rest, needle) {
        rest = &rest[at + 1..];
        count += 1;
    }
    count
}
