//! Whatever the configuration is worth, Traffic Server stays up and serves TLS, and one line in
//! diags.log tells the operator which file, field and value is wrong, why, and what to do.

use std::fs;
use std::os::unix::fs::{chown, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use testkit::ats::Ats;
use testkit::fleet::PEER_SUBJECT;
use testkit::pages::is_in_troubleshooting;
use testkit::pki::Request;
use testkit::run_dir::RunDir;
use testkit::tickets::KEY_LEN;
use testkit::{Error, Result};

use crate::stage::{authority, lines_of, plugin, reserve, resumes_its_own, works, Site};

/// How many rows are tried at the same time.
const AT_ONCE: usize = 4;

/// How the line begins that follows each error; it goes on with what has to be done then.
const LEFT_ALONE: &str = "stek_share does nothing: no ticket key is shared, Traffic Server's own \
                          ticket key stays in use; correct the above";

/// The same where the cause is one that may pass without a hand.
const LEFT_ALONE_YET: &str = "stek_share does nothing yet: no ticket key is shared, Traffic \
                              Server's own ticket key stays in use; it is tried again by itself \
                              every 30 s";

/// Such causes: whatever is wrong with the files of certificates among them, which others than the
/// operator put in place.
const PASSING: [&str; 7] = [
    "is not there",
    "permission denied",
    "is not valid before",
    "expired at",
    "is not the key of",
    "does not verify against",
    "in PEM form",
];

/// Whether the line is the one that follows an error of this cause.
fn is_left_alone(line: &str, cause: &str) -> bool {
    let passes = PASSING.iter().any(|passing| cause.contains(passing));
    line.starts_with(if passes { LEFT_ALONE_YET } else { LEFT_ALONE })
}

/// What is done to a server in which nothing is wrong; how the one line about it begins, and the
/// remedy in it. `CONF` and `LIST` stand for the two files, `ETC` for their directory.
type Row = (fn(&Site) -> Result<()>, &'static str, &'static str);

fn conf(site: &Site, from: &str, to: &str) -> Result<()> {
    site.edit("server_conf.yaml", from, to)
}

/// Puts another line in place of the one that begins with `name`.
fn line(site: &Site, name: &str, new: &str) -> Result<()> {
    let text = fs::read_to_string(site.path("server_conf.yaml"))?;
    let old = text.lines().find(|line| line.starts_with(&format!("{name}: ")));
    let old = old.ok_or_else(|| Error::new(format!("there is no {name}")))?.to_owned() + "\n";
    conf(site, &old, &if new.is_empty() { String::new() } else { format!("{new}\n") })
}

fn add(site: &Site, option: &str) -> Result<()> {
    let text = fs::read_to_string(site.path("server_conf.yaml"))?;
    site.write("server_conf.yaml", format!("{text}{option}\n"))
}

const FILES: &[Row] = &[
    (
        |s| s.remove("server_conf.yaml"),
        "CONF: is not there: looked for CONF",
        "correct the path in plugin.config",
    ),
    (
        |s| {
            s.remove("server_conf.yaml")
                .and_then(|()| Ok(fs::create_dir(s.path("server_conf.yaml"))?))
        },
        "CONF: is a directory, at CONF",
        "correct the path in plugin.config",
    ),
    (|s| s.write("server_conf.yaml", ""), "CONF: is empty", "fill it in after the example files"),
    (
        |s| s.write("server_conf.yaml", b"port: \xff\n"),
        "CONF: is not UTF-8 text, from byte 6 on, at CONF",
        "save it as UTF-8",
    ),
    (
        |s| s.write("server_conf.yaml", "port: [1\n"),
        "CONF line 2: is no YAML: ",
        "correct it there or just above",
    ),
    (
        |s| s.write("server_conf.yaml", "hello\n"),
        "CONF: is plain text, not a mapping of options",
        "write options as 'name: value'",
    ),
    (
        |s| s.remove("server_list.yaml"),
        "CONF line 5: server_list_file: \"server_list.yaml\" is not there: looked for LIST, ",
        "correct the path",
    ),
    (|s| s.write("server_list.yaml", ""), "LIST: is empty", "fill it in after the example files"),
    (
        |s| s.write("server_list.yaml", "- [\n"),
        "LIST line 2: is no YAML: ",
        "correct it there or just above",
    ),
];

const MISSING: &[Row] = &[
    (|s| line(s, "server_id", ""), "CONF: server_id: is missing", "add 'server_id: "),
    (|s| line(s, "address", ""), "CONF: address: is missing", "add 'address: A'"),
    (|s| line(s, "port", ""), "CONF: port: is missing", "add 'port: P'"),
    (
        |s| line(s, "key_update_interval", ""),
        "CONF: key_update_interval: is missing",
        "add 'key_update_interval: ",
    ),
    (
        |s| line(s, "server_list_file", ""),
        "CONF: server_list_file: is missing",
        "add 'server_list_file: PATH'",
    ),
    (
        |s| line(s, "root_cert_file", ""),
        "CONF: root_cert_file: is missing",
        "add 'root_cert_file: PATH'",
    ),
    (
        |s| line(s, "server_cert_file", ""),
        "CONF: server_cert_file: is missing",
        "add 'server_cert_file: PATH'",
    ),
    (
        |s| line(s, "server_key_file", ""),
        "CONF: server_key_file: is missing",
        "add 'server_key_file: PATH'",
    ),
];

const VALUES: &[Row] = &[
    (|s| line(s, "server_id", "server_id: one"), "CONF line 1: server_id: \"one\" is not a whole number", "give a whole number from 0 to 2147483647"),
    (|s| line(s, "port", "port: [1]"), "CONF line 3: port: is a list, not a whole number", "give a number from 1 to 65535"),
    (|s| line(s, "address", "address: {}"), "CONF line 2: address: is a mapping, not plain text", "give an IPv4 address"),
    (|s| line(s, "server_list_file", "server_list_file: 5"), "CONF line 5: server_list_file: 5 is a number, not plain text", "give the path"),
    (|s| line(s, "port", "port: 0"), "CONF line 3: port: 0 is not a port", "give a number from 1 to 65535"),
    (|s| line(s, "port", "port: 99999"), "CONF line 3: port: 99999 is not a port", "give a number from 1 to 65535"),
    (|s| conf(s, ": 3600", ": -15"), "CONF line 4: key_update_interval: -15 is out of range", "give a whole number of seconds from 1"),
    (|s| conf(s, ": 3600", ": 0"), "CONF line 4: key_update_interval: 0 is out of range", "give a whole number of seconds from 1"),
    (
        |s| add(s, "election_timeout_lower_bound: 400\nelection_timeout_upper_bound: 200"),
        "CONF line 10: election_timeout_lower_bound: 400 ms is not below election_timeout_upper_bound, 200 ms",
        "make the upper bound twice the lower one",
    ),
    (
        |s| add(s, "heart_beat_interval: 200"),
        "CONF line 10: heart_beat_interval: 200 ms is not below election_timeout_lower_bound, 200 ms",
        "make it half of the lower bound or less",
    ),
    (|s| add(s, "max_key_age: 3599"), "CONF line 10: max_key_age: 3599 is below key_update_interval, 3600 s", "give at least twice"),
    (|s| add(s, "ticket_scope: all"), "CONF line 10: ticket_scope: \"all\" is neither site nor host", "give site or host"),
];

const LISTS: &[Row] = &[
    (
        |s| s.write("server_list.yaml", "[]\n"),
        "LIST: is an empty list",
        "write one entry '- server_id: N'",
    ),
    (
        |s| s.write("server_list.yaml", "server_id: 1\n"),
        "LIST: is a mapping, not a list of servers",
        "write one entry '- server_id: N'",
    ),
    (
        |s| {
            s.write(
                "server_list.yaml",
                fs::read_to_string(s.path("server_list.yaml"))?
                    + "- server_id: 1\n  address: 127.0.0.2\n  port: 1\n",
            )
        },
        "LIST line 4: entry 2: server_id: 1 is the server_id of entry 1 too",
        "give each server a number of its own",
    ),
    (
        |s| {
            let list = fs::read_to_string(s.path("server_list.yaml"))?;
            s.write("server_list.yaml", list.clone() + &list.replace("_id: 1", "_id: 2"))
        },
        "LIST line 5: entry 2: address: 127.0.0.1:PORT is in entry 1 too",
        "give each server an address and port of its own",
    ),
    (
        |s| s.edit("server_list.yaml", "_id: 1", "_id: 2"),
        "LIST: this server, server_id 1 of CONF, is not in the list",
        "add an entry for it",
    ),
    (
        |s| s.write("server_list.yaml", "- server_id: 1\n  address: 127.0.0.1\n  port: 99999\n"),
        "LIST line 3: entry 1: port: 99999 is not a port",
        "give a number from 1 to 65535",
    ),
];

const CERTIFICATES: &[Row] = &[
    (|s| s.remove("root.pem"), "CONF line 6: root_cert_file: \"root.pem\" is not there: ", "correct the path"),
    (|s| s.remove("peer.pem"), "CONF line 7: server_cert_file: \"peer.pem\" is not there: ", "correct the path"),
    (|s| s.remove("peer.key"), "CONF line 8: server_key_file: \"peer.key\" is not there: ", "correct the path"),
    (|s| s.write("root.pem", "rubbish"), "CONF line 6: root_cert_file: \"ETC/root.pem\" holds no certificate in PEM form", "give a file with"),
    (|s| s.write("peer.pem", "rubbish"), "CONF line 7: server_cert_file: \"ETC/peer.pem\" holds no certificate in PEM form", "give a file with"),
    (|s| s.write("peer.key", "rubbish"), "CONF line 8: server_key_file: \"ETC/peer.key\" holds no private key in PEM form", "give a file with"),
    (
        |s| s.write_identity(&s.authority.issue(&Request::new(PEER_SUBJECT).expired())?),
        "CONF line 7: server_cert_file: \"ETC/peer.pem\" holds the certificate SUBJECT, which expired at ",
        "renew it",
    ),
    (
        |s| s.write_identity(&s.authority.issue(&Request::new(PEER_SUBJECT).not_yet_valid())?),
        "CONF line 7: server_cert_file: \"ETC/peer.pem\" holds the certificate SUBJECT, which is not valid before ",
        "check this machine's clock",
    ),
    (
        |s| s.write("peer.key", s.authority.identity.key.private_key_to_pem_pkcs8()?),
        "CONF line 8: server_key_file: \"ETC/peer.key\" is not the key of the first certificate in \"ETC/peer.pem\", SUBJECT",
        "give the key that belongs to it",
    ),
    (
        |s| s.write_identity(&authority()?.issue(&Request::new(PEER_SUBJECT))?),
        "CONF line 7: server_cert_file: \"ETC/peer.pem\" does not verify against root_cert_file, \"ETC/root.pem\": ",
        "it was changed, or signed with another key",
    ),
    (
        |s| s.write_identity(&s.authority.issue(&Request::new("/C=US/CN=else"))?),
        "CONF line 9: cert_verify_str: \"SUBJECT\" is not the subject of this server's own certificate, /C=US/CN=else",
        "make both the same on all servers",
    ),
];

const WARNINGS: &[Row] = &[
    (|s| add(s, "hart_beat_interval: 50"), "CONF line 10: hart_beat_interval: is not a known name and has no effect", "did you mean heart_beat_interval?"),
    (
        |s| s.edit("server_list.yaml", "127.0.0.1", "127.0.0.2"),
        "LIST line 1: server_id 1: this server is listed here with 127.0.0.2:PORT, but CONF says 127.0.0.1:PORT",
        "the other servers dial the list's; make both say the same",
    ),
    (
        |s| line(s, "cert_verify_str", ""),
        "CONF: cert_verify_str: is not given, so any certificate of root_cert_file may join the group",
        "give what 'openssl x509 ",
    ),
    (
        |s| Ok(fs::set_permissions(s.path("peer.key"), fs::Permissions::from_mode(0o644))?),
        "CONF line 8: server_key_file: \"ETC/peer.key\" has mode 0644",
        "chmod 600 it",
    ),
    (
        |s| s.write_identity(&s.authority.issue(&Request::new(PEER_SUBJECT).valid(-9_000_000, 1_000_000))?),
        "CONF line 7: server_cert_file: \"ETC/peer.pem\" holds a certificate that expires in 11 days, at ",
        "renew it before then",
    ),
    (
        |s| add(s, "handover_timeout: 1800001"),
        "CONF line 10: handover_timeout: 1800001 is more than half of key_update_interval; 1800000 ms is used instead",
        "give at most 1800000",
    ),
];

/// A key as Traffic Server reads it from a file, to tell its own key from ours.
fn static_key() -> [u8; KEY_LEN] {
    std::array::from_fn(|i| (i * 31 + 5) as u8)
}

fn server_with_own_key(dir: &Path) -> Result<Site> {
    let file = dir.join("ticket.key");
    testkit::pki::write_private(&file, &static_key())?;
    Site::new(dir, |builder| builder.ticket_key(&file))
}

/// The row's words with this server's paths and port.
fn words(site: &Site, template: &str) -> String {
    let path = |name| site.path(name).display().to_string();
    template
        .replace("CONF", &path("server_conf.yaml"))
        .replace("LIST", &path("server_list.yaml"))
        .replace("ETC/", &path(""))
        .replace("SUBJECT", PEER_SUBJECT)
        .replace("PORT", &site.port.to_string())
}

/// The only line among `lines` is the row's.
fn check_line(site: &Site, lines: &[String], begin: &str, remedy: &str) -> Result<()> {
    let (begin, remedy) = (words(site, begin), words(site, remedy));
    let right = |line: &String| {
        line.strip_prefix(&begin).is_some_and(|rest| rest.contains(&format!("; {remedy}")))
    };
    match lines {
        [line] if right(line) && !is_in_troubleshooting(line) => {
            Err(Error::new(format!("docs/troubleshooting.md has no row for: {line}")))
        }
        [line] if right(line) => Ok(()),
        _ => Err(Error::new(format!("wanted {begin:?} and {remedy:?}, got {lines:#?}"))),
    }
}

/// The server stays up with its own key, and says that it does.
fn check_refused(mut site: Site, begin: &str, remedy: &str) -> Result<()> {
    site.ats.start()?;
    site.ats.wait_ready()?;
    if resumes_its_own(&site.ats)? != static_key()[..16] {
        return Err(Error::new("Traffic Server's own ticket key is not in use"));
    }
    let mut errors = lines_of(&site.ats, "ERROR");
    if !errors.pop().is_some_and(|line| is_left_alone(&line, begin)) {
        return Err(Error::new(format!("nothing says what follows: {}", site.ats.diags())));
    }
    check_line(&site, &errors, begin, remedy)?;
    check_alive(&mut site.ats)
}

/// The plugin works nevertheless.
fn check_warned(mut site: Site, begin: &str, remedy: &str) -> Result<()> {
    site.ats.start()?;
    site.ats.wait_ready()?;
    works(&site.ats)?;
    check_line(&site, &lines_of(&site.ats, "WARNING"), begin, remedy)?;
    if !lines_of(&site.ats, "ERROR").is_empty() {
        return Err(Error::new(site.ats.diags()));
    }
    check_alive(&mut site.ats)
}

fn check_alive(ats: &mut Ats) -> Result<()> {
    if ats.is_running() {
        Ok(())
    } else {
        Err(Error::new(format!("the server has ended: {}", ats.diags())))
    }
}

/// Tries all rows, a few at a time, and tells of all that failed.
fn try_rows(dir: &RunDir, rows: &[Row], try_one: impl Fn(&Path, &Row) -> Result<()> + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failed = Vec::new();
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let number = rows.iter().position(|other| std::ptr::eq(row, other)).unwrap();
            let home = dir.join(&format!("row-{number}"));
            let tried = fs::create_dir(&home).map_err(Error::from);
            if let Err(error) = tried.and_then(|()| try_one(&home, row)) {
                failed.push(format!("{}: {error}", row.1));
            }
        }
        failed
    };
    let failed: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{} of {} rows:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

fn all_refused(purpose: &str, rows: &[Row]) -> Result<()> {
    let _reserved = reserve(AT_ONCE);
    let dir = RunDir::new(purpose)?;
    try_rows(&dir, rows, |home, (harm, begin, remedy)| {
        let site = server_with_own_key(home)?;
        harm(&site)?;
        check_refused(site, begin, remedy)
    });
    dir.done()
}

#[test]
fn a_file_that_cannot_be_used_is_named() -> Result<()> {
    all_refused("files", FILES)
}

#[test]
fn a_required_option_that_is_missing_is_named() -> Result<()> {
    all_refused("missing", MISSING)
}

#[test]
fn a_wrong_value_is_named() -> Result<()> {
    all_refused("values", VALUES)
}

#[test]
fn a_wrong_list_is_named() -> Result<()> {
    all_refused("lists", LISTS)
}

#[test]
fn a_wrong_certificate_or_key_is_named() -> Result<()> {
    all_refused("certificates", CERTIFICATES)
}

#[test]
fn what_is_worth_a_warning_keeps_the_plugin_working() -> Result<()> {
    let _reserved = reserve(AT_ONCE);
    let dir = RunDir::new("warnings")?;
    try_rows(&dir, WARNINGS, |home, (harm, begin, remedy)| {
        let site = Site::new(home, |builder| builder)?;
        harm(&site)?;
        check_warned(site, begin, remedy)
    });
    dir.done()
}

#[test]
fn a_line_of_plugin_config_without_its_argument_is_named() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("argument")?;
    let site = server_with_own_key(dir.path())?;
    site.write("plugin.config", format!("{}\n", plugin().display()))?;
    check_refused(site, "ETC/plugin.config line 1: gives stek_share.so 0 arguments; it takes one, the path of its configuration file", "write for instance: stek_share.so")?;
    dir.done()
}

/// Whoever nobody is, the plugin's files belong to somebody else.
const NOBODY: u32 = 65_534;

/// A server without root's rights meets files that only root can read.
#[test]
fn a_file_that_may_not_be_read_is_named() -> Result<()> {
    let _reserved = reserve(1);
    let dir = RunDir::new("unreadable")?;
    // The plugin's own place may be closed to nobody as well.
    let copy = dir.join("stek_share.so");
    fs::copy(plugin(), &copy)?;
    let as_root =
        fs::metadata(dir.path()).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta))? == 0;
    let user = format!("--reuid={NOBODY}");
    let group = format!("--regid={NOBODY}");
    // The change of user would also undo that the kernel ends the server together with this test.
    let become_nobody = ["setpriv", &user, &group, "--clear-groups", "--pdeathsig=KILL"];
    let wrapper: &[&str] = if as_root { &become_nobody } else { &[] };
    let site = Site::new(dir.path(), |builder| builder.wrapper(wrapper))?;
    site.write(
        "plugin.config",
        format!("{} {}\n", copy.display(), site.path("server_conf.yaml").display()),
    )?;
    if as_root {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        give_to_nobody(dir.path())?;
        for file in ["peer.key", "server_conf.yaml"] {
            chown(site.path(file), Some(0), Some(0))?;
        }
    }
    fs::set_permissions(site.path("server_conf.yaml"), fs::Permissions::from_mode(0o000))?;
    let remedy = "let the user that runs Traffic Server read it and enter its directories";
    let mut ats = site.ats;
    ats.start()?;
    ats.wait_ready()?;
    resumes_its_own(&ats)?;
    let conf = ats.etc().join("server_conf.yaml").display().to_string();
    let denied = format!("{conf}: cannot be read, at {conf}: permission denied; {remedy}");
    let errors = lines_of(&ats, "ERROR");
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0] == denied && is_left_alone(&errors[1], &denied), "{errors:?}");
    ats.kill9();

    fs::set_permissions(&conf, fs::Permissions::from_mode(0o644))?;
    fs::set_permissions(ats.etc().join("peer.key"), fs::Permissions::from_mode(0o000))?;
    ats.start()?;
    ats.wait_ready()?;
    let key = ats.etc().join("peer.key").display().to_string();
    let denied = format!(
        "{conf} line 8: server_key_file: \"peer.key\" cannot be read, at {key}: permission denied; \
         {remedy}"
    );
    let errors = lines_of(&ats, "ERROR");
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(errors[2] == denied && is_left_alone(&errors[3], &denied), "{errors:?}");
    dir.done()
}

fn give_to_nobody(path: &Path) -> Result<()> {
    chown(path, Some(NOBODY), Some(NOBODY))?;
    if path.is_dir() {
        let entries: Vec<PathBuf> = fs::read_dir(path)?.flatten().map(|e| e.path()).collect();
        entries.iter().try_for_each(|entry| give_to_nobody(entry))?;
    }
    Ok(())
}
