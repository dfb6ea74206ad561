//! How Traffic Server finds the plugin and its files, and settings of its own that it warns of.

use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::ats::Ats;
use testkit::host::{self, host};
use testkit::pki::Identity;
use testkit::run_dir::RunDir;
use testkit::tickets::{self, KEY_LEN};
use testkit::{Context, Result};

use crate::stage::{lines_of, plugin, reserve, works, Site, PATIENCE};

/// What `traffic_server -C "verify_global_plugin PATH"` says, and whether it was content.
fn verify(ats: &Ats, plugin: &Path) -> Result<(bool, String)> {
    let output = Command::new(host()?.program("traffic_server"))
        .arg(format!("--run-root={}", ats.root().join("runroot.yaml").display()))
        .arg("-C")
        .arg(format!("verify_global_plugin {}", plugin.display()))
        .output()
        .context("traffic_server")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn traffic_server_verifies_the_plugin() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("verify")?;
    let site = Identity::self_signed("/CN=localhost")?.write(dir.path(), "site")?;
    let ats = Ats::builder(&dir.join("server")).certificate(&site).build()?;
    let (content, said) = verify(&ats, &plugin())?;
    assert!(content, "{said}");
    let other = dir.join("other.so");
    fs::write(&other, "no library")?;
    let (content, said) = verify(&ats, &other)?;
    assert!(!content, "anything passes: {said}");
    dir.done()
}

/// The argument in plugin.config: from the working directory, which Traffic Server makes its
/// installation prefix, before its configuration directory.
#[test]
fn relative_paths_are_resolved() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("relative")?;
    let mut site = Site::new(dir.path(), |builder| builder)?;
    site.write("plugin.config", format!("{} stek/server_conf.yaml\n", plugin().display()))?;
    let conf = fs::read_to_string(site.path("server_conf.yaml"))?;
    // Inside the file, what is not beside it is found in the configuration directory.
    site.remove("server_conf.yaml")?;
    fs::create_dir(site.path("stek"))?;
    site.write("stek/server_conf.yaml", &conf)?;
    site.ats.start()?;
    site.ats.wait_ready()?;
    works(&site.ats)?;
    site.ats.kill9();

    let prefix = site.ats.root().join("stek");
    fs::create_dir(&prefix)?;
    let absent = format!("{}colour: red\n", conf);
    fs::write(prefix.join("server_conf.yaml"), absent)?;
    site.ats.start()?;
    site.ats.wait_ready()?;
    let file = prefix.join("server_conf.yaml");
    site.ats.wait_diags(&format!("{} line 10: colour: is not", file.display()), PATIENCE)?;
    works(&site.ats)?;
    dir.done()
}

#[test]
fn a_configured_ticket_key_file_is_warned_of_and_overridden() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("key-file")?;
    let file = dir.join("ticket.key");
    testkit::pki::write_private(&file, &[7; KEY_LEN])?;
    let mut site = Site::new(dir.path(), |builder| builder.ticket_key(&file))?;
    site.ats.start()?;
    site.ats.wait_ready()?;
    works(&site.ats)?;
    let warnings = lines_of(&site.ats, "WARNING");
    let records = host::records(&site.path(""));
    let text = fs::read_to_string(&records)?;
    let at = (1..).zip(text.lines()).find(|(_, line)| line.contains(&file.display().to_string()));
    let expected = format!(
        "{} line {}: proxy.config.ssl.server.ticket_key.filename: {} makes Traffic Server put that \
         file's keys in place of the shared ones when the record changes, and at a reload of its \
         configuration that finds the file changed; the shared ones are given to it again within 5 s, \
         and tickets of the time between resume nowhere else; take the line out",
        records.display(),
        at.map_or(0, |(number, _)| number),
        file.display()
    );
    assert_eq!(warnings, [expected]);
    dir.done()
}

#[test]
fn tickets_switched_off_are_an_error() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("no-tickets")?;
    let off = "proxy.config.ssl.server.session_ticket.enable INT 0";
    let mut site = Site::new(dir.path(), |builder| builder.record(off))?;
    site.ats.start()?;
    let answer = site.ats.wait_first(|address| tickets::get(address, "/"))?;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    site.ats.wait_diags("(generation 1)", PATIENCE)?;
    let errors = lines_of(&site.ats, "ERROR");
    let [line] = errors.as_slice() else { panic!("{errors:?}") };
    assert!(
        line.ends_with(
            ": proxy.config.ssl.server.session_ticket.enable: 0 means that Traffic Server gives out no \
             session tickets, so no session resumes; set it to 1"
        ),
        "{line}"
    );
    dir.done()
}
