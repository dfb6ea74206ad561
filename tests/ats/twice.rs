//! A plugin.config that names the plugin twice.

use testkit::run_dir::RunDir;
use testkit::sys::Signal;
use testkit::Result;

use crate::stage::{lines_of, plugin, reserve, works, Site};

#[test]
fn a_second_line_of_plugin_config_is_told_and_changes_nothing() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("twice")?;
    let conf = dir.join("server").join("etc/server_conf.yaml");
    let line = format!("{} {}", plugin().display(), conf.display());
    let mut site = Site::new(dir.path(), |builder| builder.plugin(&line))?;
    site.ats.start()?;
    site.ats.wait_ready()?;
    works(&site.ats)?;
    let warnings = lines_of(&site.ats, "WARNING");
    let told = warnings.iter().filter(|line| line.contains("stek_share more than once"));
    assert_eq!(told.count(), 1, "{warnings:?}");
    assert_eq!(lines_of(&site.ats, "ERROR"), [""; 0]);
    assert_eq!(site.ats.stop(Signal::Interrupt)?.status.code(), Some(0));
    dir.done()
}
