//! Loads configurations from real files and certificates: what is right works, and every fault is
//! one line that names file, field, value, reason and remedy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::symm::Cipher;
use openssl::x509::extension::BasicConstraints;
use openssl::x509::{X509Name, X509NameBuilder, X509};

use stek_share::core::config::{parse_conf, parse_list, ConfigOption, Problem};
use stek_share::core::server_id::ServerId;
use stek_share::load::{expiry, load, load_certificates, Dirs, Loaded, Refused, Stamps};

mod auto;
mod chains;
mod field;
mod forms;

const DAY: i64 = 86_400;

/// The wanted subject of the servers below.
const SUBJECT: &str = "/C=US/O=Example/CN=server";

const CONF: &str = "\
server_id: 1
address: 127.0.0.1
port: 10001
key_update_interval: 15
server_list_file: list.yaml
root_cert_file: root.pem
server_cert_file: cert.pem
server_key_file: key.pem
cert_verify_str: /C=US/O=Example/CN=server
";

const LIST: &str = "- server_id: 1\n  address: 127.0.0.1\n  port: 10001\n";

/// A key and a certificate for it.
struct Identity {
    key: PKey<Private>,
    certificate: X509,
}

impl Identity {
    /// Valid from `from` to `to`, in seconds from now; signed by `issuer` or by itself.
    fn new(subject: &str, issuer: Option<&Identity>, from: i64, to: i64) -> Identity {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        let mut serial = BigNum::new().unwrap();
        serial.rand(64, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
        builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
        let name = name(subject);
        builder.set_subject_name(&name).unwrap();
        builder.set_issuer_name(issuer.map_or(&name, |i| i.certificate.subject_name())).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&time(from)).unwrap();
        builder.set_not_after(&time(to)).unwrap();
        let mut constraints = BasicConstraints::new();
        if issuer.is_none() {
            constraints.ca();
        }
        builder.append_extension(constraints.critical().build().unwrap()).unwrap();
        let signer = issuer.map_or(&key, |i| &i.key);
        builder.sign(signer, MessageDigest::sha256()).unwrap();
        Identity { certificate: builder.build(), key }
    }

    fn certificate_pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    fn key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8().unwrap()
    }
}

fn time(from_now: i64) -> Asn1Time {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Asn1Time::from_unix(i64::try_from(now.as_secs()).unwrap() + from_now).unwrap()
}

fn name(one_line: &str) -> X509Name {
    let mut name = X509NameBuilder::new().unwrap();
    for part in one_line.split('/').skip(1) {
        let (key, value) = part.split_once('=').unwrap();
        name.append_entry_by_text(key, value).unwrap();
    }
    name.build()
}

/// A directory that is removed in the end, with room for a working, an install and a
/// configuration directory, and with a server's files in `config`.
struct Site {
    top: PathBuf,
    root: Identity,
}

impl Site {
    /// A site in which nothing is wrong.
    fn new() -> Site {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let top = std::env::temp_dir().join(format!("stek-load-{}-{number}", std::process::id()));
        for dir in ["working", "install", "config"] {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(top.join(dir)).unwrap();
        }
        let root = Identity::new("/O=Example/CN=root", None, -DAY, 365 * DAY);
        let site = Site { top, root };
        site.write("server_conf.yaml", CONF);
        site.write("list.yaml", LIST);
        site.write("root.pem", site.root.certificate_pem());
        site.write_identity(&site.leaf(SUBJECT, -DAY, 365 * DAY));
        site
    }

    fn leaf(&self, subject: &str, from: i64, to: i64) -> Identity {
        Identity::new(subject, Some(&self.root), from, to)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.top.join("config").join(file)
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(file), content).unwrap();
        fs::set_permissions(self.path(file), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn write_identity(&self, identity: &Identity) {
        self.write("cert.pem", identity.certificate_pem());
        self.write("key.pem", identity.key_pem());
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).unwrap();
    }

    /// Replaces `from`, which has to be there, by `to` in a file.
    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from:?}");
        self.write(file, text.replace(from, to));
    }

    fn dirs(&self) -> Dirs {
        Dirs {
            working: self.top.join("working"),
            install: self.top.join("install"),
            config: self.top.join("config"),
        }
    }

    fn load(&self) -> Result<Loaded, Refused> {
        load("server_conf.yaml", &self.dirs())
    }

    /// A line with this site's directory written as `TOP`.
    fn line(&self, problem: &Problem) -> String {
        problem.to_string().replace(&*self.top.to_string_lossy(), "TOP")
    }

    fn lines(&self, problems: &[Problem]) -> Vec<String> {
        problems.iter().map(|p| self.line(p)).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.top);
    }
}

#[test]
fn a_right_configuration_loads_without_a_word() {
    let site = Site::new();
    let loaded = site.load().unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.settings.server_id, ServerId(1));
    assert_eq!(loaded.settings.server_key_file, site.path("key.pem"));
    assert_eq!(loaded.tls.subject(), SUBJECT);
}

#[test]
fn one_self_signed_certificate_is_enough() {
    let site = Site::new();
    let own = Identity::new(SUBJECT, None, -DAY, 365 * DAY);
    site.write("one.pem", [own.certificate_pem(), own.key_pem()].concat());
    for file in ["root.pem", "cert.pem", "key.pem"] {
        site.edit("server_conf.yaml", file, "one.pem");
    }
    assert_eq!(site.load().unwrap().warnings, []);
}

#[test]
fn certificates_alone_are_loaded_again() {
    let site = Site::new();
    let loaded = site.load().unwrap();
    let again = || load_certificates(&loaded.settings, "server_conf.yaml");
    let same = again().unwrap();
    assert_eq!(same.stamps, loaded.stamps);
    assert_eq!(same.tls.leaf_fingerprint(), loaded.tls.leaf_fingerprint());
    assert_eq!(expiry(&loaded.certificate_place, &same.tls), None);

    // Half of the new identity is there.
    let new = site.leaf(SUBJECT, -30 * DAY, 5 * DAY + 60);
    site.write("cert.pem", new.certificate_pem());
    assert_ne!(Stamps::of(&loaded.settings), loaded.stamps);
    let refused = again().unwrap_err();
    assert_eq!(
        site.lines(&refused.problems),
        [format!(
            "server_conf.yaml: server_key_file: \"TOP/config/key.pem\" is not the key of the first \
             certificate in \"TOP/config/cert.pem\", {SUBJECT}; give the key that belongs to it; \
             this server's own certificate has to come first there"
        )]
    );
    site.write("key.pem", new.key_pem());
    let renewed = again().unwrap();
    assert_eq!(renewed.stamps, Stamps::of(&loaded.settings));
    assert_ne!(renewed.tls.leaf_fingerprint(), loaded.tls.leaf_fingerprint());
    let [warning] = &site.lines(&renewed.warnings)[..] else { panic!("{renewed:?}") };
    assert!(warning.contains("server_cert_file") && warning.contains("expires in 5 days"));
    let told = expiry(&renewed.certificate_place, &renewed.tls).unwrap();
    assert_eq!(site.line(&told), *warning);

    site.write_identity(&site.leaf(SUBJECT, -2 * DAY, -DAY));
    assert!(again().unwrap_err().problems[0].to_string().contains("which expired at"));
}

/// What is done to a site in which nothing is wrong, and the one line that has to follow.
type Case = (fn(&Site), &'static str);

#[test]
fn each_error_is_one_line() {
    let cases: &[Case] = &[
        (
            |s| s.remove("server_conf.yaml"),
            "server_conf.yaml: is not there: looked for TOP/working/server_conf.yaml, \
             TOP/install/server_conf.yaml, TOP/config/server_conf.yaml; correct the path in \
             plugin.config",
        ),
        (
            |s| {
                s.remove("server_conf.yaml");
                fs::create_dir(s.path("server_conf.yaml")).unwrap();
            },
            "server_conf.yaml: is a directory, at TOP/config/server_conf.yaml; correct the path in \
             plugin.config",
        ),
        (
            |s| s.write("server_conf.yaml", b"address: \xff"),
            "server_conf.yaml: is not UTF-8 text, from byte 9 on, at TOP/config/server_conf.yaml; \
             save it as UTF-8",
        ),
        (
            |s| s.write("server_conf.yaml", vec![b'#'; (1 << 20) + 1]),
            "server_conf.yaml: is larger than 1048576 bytes, at TOP/config/server_conf.yaml; \
             correct the path in plugin.config",
        ),
        (
            |s| s.write("server_conf.yaml", ""),
            "TOP/config/server_conf.yaml: is empty; fill it in after the example files of this \
             plugin",
        ),
        (
            |s| s.write("server_conf.yaml", "port: [\n"),
            "TOP/config/server_conf.yaml line 2: is no YAML: ",
        ),
        (
            |s| s.edit("server_conf.yaml", "port: 10001\n", ""),
            "TOP/config/server_conf.yaml: port: is missing; add 'port: P'",
        ),
        (
            |s| s.edit("server_conf.yaml", "10001", "99999"),
            "TOP/config/server_conf.yaml line 3: port: 99999 is not a port; give a number from 1 \
             to 65535",
        ),
        (
            |s| s.remove("list.yaml"),
            "TOP/config/server_conf.yaml line 5: server_list_file: \"list.yaml\" is not there: \
             looked for TOP/config/list.yaml, TOP/working/list.yaml, TOP/install/list.yaml; \
             correct the path",
        ),
        (
            |s| s.write("list.yaml", "[]"),
            "TOP/config/list.yaml: is an empty list; write one entry",
        ),
        (
            |s| s.edit("list.yaml", "server_id: 1", "server_id: 2"),
            "TOP/config/list.yaml: this server, server_id 1 of TOP/config/server_conf.yaml, is not \
             in the list; add an entry for it, or correct server_id there",
        ),
        (
            |s| s.edit("server_conf.yaml", " root.pem", " /nowhere/root.pem"),
            "TOP/config/server_conf.yaml line 6: root_cert_file: \"/nowhere/root.pem\" is not \
             there: looked for /nowhere/root.pem; correct the path",
        ),
        (
            |s| s.remove("cert.pem"),
            "TOP/config/server_conf.yaml line 7: server_cert_file: \"cert.pem\" is not there: ",
        ),
        (
            |s| s.remove("key.pem"),
            "TOP/config/server_conf.yaml line 8: server_key_file: \"key.pem\" is not there: ",
        ),
        (
            |s| s.write("root.pem", "rubbish"),
            "TOP/config/server_conf.yaml line 6: root_cert_file: \"TOP/config/root.pem\" holds no \
             certificate in PEM form; give a file with '-----BEGIN CERTIFICATE-----' blocks",
        ),
        (
            |s| s.write("cert.pem", ""),
            "TOP/config/server_conf.yaml line 7: server_cert_file: \"TOP/config/cert.pem\" holds \
             no certificate in PEM form: it is empty; copy it anew",
        ),
        (
            |s| s.write("key.pem", s.root.certificate_pem()),
            "TOP/config/server_conf.yaml line 8: server_key_file: \"TOP/config/key.pem\" holds no \
             private key in PEM form, but a certificate, in line 1; give the file with the private \
             key",
        ),
        (
            |s| {
                let key = &s.root.key;
                let cipher = Cipher::aes_128_cbc();
                s.write("key.pem", key.private_key_to_pem_pkcs8_passphrase(cipher, b"x").unwrap());
            },
            "TOP/config/server_conf.yaml line 8: server_key_file: \"TOP/config/key.pem\" holds a \
             private key that is protected by a passphrase, which nobody could type here; store it \
             without one",
        ),
        (
            |s| {
                let key = s.root.key.ec_key().unwrap();
                let cipher = Cipher::aes_128_cbc();
                s.write("key.pem", key.private_key_to_pem_passphrase(cipher, b"x").unwrap());
            },
            "TOP/config/server_conf.yaml line 8: server_key_file: \"TOP/config/key.pem\" holds a \
             private key that is protected by a passphrase, which",
        ),
        (
            |s| s.write("key.pem", s.root.key_pem()),
            "TOP/config/server_conf.yaml line 8: server_key_file: \"TOP/config/key.pem\" is not \
             the key of the first certificate in \"TOP/config/cert.pem\", /C=US/O=Example/CN=server; \
             give the key that belongs to it",
        ),
        (
            |s| s.write_identity(&s.leaf(SUBJECT, -2 * DAY, -DAY)),
            "TOP/config/server_conf.yaml line 7: server_cert_file: \"TOP/config/cert.pem\" holds \
             the certificate /C=US/O=Example/CN=server, which expired at ",
        ),
        (
            |s| s.write_identity(&s.leaf(SUBJECT, DAY, 365 * DAY)),
            "TOP/config/server_conf.yaml line 7: server_cert_file: \"TOP/config/cert.pem\" holds \
             the certificate /C=US/O=Example/CN=server, which is not valid before ",
        ),
        (
            |s| s.write_identity(&s.leaf("/C=US/O=Example/CN=else", -DAY, 365 * DAY)),
            "TOP/config/server_conf.yaml line 9: cert_verify_str: \"/C=US/O=Example/CN=server\" is \
             not the subject of this server's own certificate, /C=US/O=Example/CN=else; make both \
             the same on all servers",
        ),
        (
            |s| s.write_identity(&Identity::new(SUBJECT, None, -DAY, 365 * DAY)),
            "TOP/config/server_conf.yaml line 7: server_cert_file: \"TOP/config/cert.pem\" does \
             not verify against root_cert_file, \"TOP/config/root.pem\": /C=US/O=Example/CN=server: ",
        ),
        (
            |s| {
                let done = Command::new("mkfifo").arg(s.path("pipe")).status().unwrap();
                assert!(done.success());
                s.edit("server_conf.yaml", "key.pem", "pipe");
            },
            "TOP/config/server_conf.yaml line 8: server_key_file: \"pipe\" is a device, pipe or \
             socket, not a file, at TOP/config/pipe; correct the path",
        ),
    ];
    for (number, (harm, expected)) in cases.iter().enumerate() {
        let site = Site::new();
        harm(&site);
        let refused = site.load().expect_err(expected);
        // The pipe has the mode that mkfifo gave it, but is refused before that matters.
        assert_eq!(refused.warnings, [], "case {number}: {expected}");
        let lines = site.lines(&refused.problems);
        assert_eq!(lines.len(), 1, "case {number}: {lines:#?}");
        assert!(lines[0].starts_with(expected), "case {number}: {expected}\n{}", lines[0]);
    }
}

#[test]
fn each_warning_is_one_line_and_the_server_starts() {
    let cases: &[Case] = &[
        (
            |s| s.edit("server_conf.yaml", "server_id", "hart_beat_interval: 50\nserver_id"),
            "TOP/config/server_conf.yaml line 1: hart_beat_interval: is not a known name and has \
             no effect; did you mean heart_beat_interval?",
        ),
        (
            |s| s.edit("list.yaml", "10001", "10009"),
            "TOP/config/list.yaml line 1: server_id 1: this server is listed here with \
             127.0.0.1:10009, but TOP/config/server_conf.yaml says 127.0.0.1:10001; the other \
             servers dial the list's; make both say the same",
        ),
        (
            |s| s.edit("server_conf.yaml", "/C=US/O=Example/CN=server", ""),
            "TOP/config/server_conf.yaml line 9: cert_verify_str: is not given, so any certificate \
             of root_cert_file may join the group; give what 'openssl x509 ",
        ),
        (
            |s| {
                let mode = fs::Permissions::from_mode(0o644);
                fs::set_permissions(s.path("key.pem"), mode).unwrap();
            },
            "TOP/config/server_conf.yaml line 8: server_key_file: \"TOP/config/key.pem\" has mode \
             0644, so others than its owner can read or change it; chmod 600 it, owned by the user \
             that runs Traffic Server",
        ),
        (
            |s| s.write_identity(&s.leaf(SUBJECT, -300 * DAY, 29 * DAY + DAY / 2)),
            "TOP/config/server_conf.yaml line 7: server_cert_file: \"TOP/config/cert.pem\" holds a \
             certificate that expires in 29 days, at ",
        ),
        (
            |s| {
                let interval = "key_update_interval: 15\n";
                let with_timeout = format!("{interval}handover_timeout: 9000\n");
                s.edit("server_conf.yaml", interval, &with_timeout);
            },
            "TOP/config/server_conf.yaml line 5: handover_timeout: 9000 is more than half of \
             key_update_interval; 7500 ms is used instead; give at most 7500",
        ),
    ];
    for (number, (harm, expected)) in cases.iter().enumerate() {
        let site = Site::new();
        harm(&site);
        let loaded = site.load().expect(expected);
        let lines = site.lines(&loaded.warnings);
        assert_eq!(lines.len(), 1, "case {number}: {lines:#?}");
        assert!(lines[0].starts_with(expected), "case {number}: {expected}\n{}", lines[0]);
    }
}

#[test]
fn a_file_that_may_not_be_read_says_so() {
    let site = Site::new();
    let closed = fs::Permissions::from_mode(0o000);
    fs::set_permissions(site.path("key.pem"), closed).unwrap();
    for file in ["server_conf.yaml", "list.yaml", "root.pem", "cert.pem"] {
        fs::set_permissions(site.path(file), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let refused = as_nobody(|| site.load()).expect_err("the key cannot be read");
    assert_eq!(
        site.lines(&refused.problems),
        ["TOP/config/server_conf.yaml line 8: server_key_file: \"key.pem\" cannot be read, at \
          TOP/config/key.pem: permission denied; let the user that runs Traffic Server read it and \
          enter its directories"]
    );

    // A directory that cannot be entered hides the file just so, but not one in another place.
    let closed = fs::Permissions::from_mode(0o000);
    fs::set_permissions(site.top.join("working"), closed).unwrap();
    let refused = as_nobody(|| site.load()).expect_err("the key cannot be read");
    assert_eq!(refused.problems.len(), 1, "{:?}", site.lines(&refused.problems));
    site.remove("server_conf.yaml");
    let refused = as_nobody(|| site.load()).expect_err("there is no configuration");
    let line = site.line(&refused.problems[0]);
    assert!(line.contains("at TOP/working/server_conf.yaml: permission denied"), "{line}");
}

/// Runs `work` on a thread without root's rights, if this process has them.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const NOBODY: libc::uid_t = 65534;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: takes no pointers. The bare system call changes this thread only, which
            // ends with this closure; the library's function would change the whole process.
            let done = unsafe {
                libc::geteuid() != 0
                    || libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) == 0
            };
            assert!(done, "{}", std::io::Error::last_os_error());
            work()
        });
        thread.join().unwrap()
    })
}

/// An entry that names a subject counts for this server's own certificate, in place of the
/// configuration's; and where all do, nothing is open to any certificate.
#[test]
fn an_entry_of_the_list_may_name_the_subject() {
    const OWN: &str = "/C=US/O=Example/CN=one";
    let site = Site::new();
    site.write("list.yaml", format!("{LIST}  cert_verify_str: {OWN}\n"));
    let refused = site.load().unwrap_err();
    assert_eq!(
        site.lines(&refused.problems),
        ["TOP/config/list.yaml line 1: server_id 1: cert_verify_str: \"/C=US/O=Example/CN=one\" is \
          not the subject of this server's own certificate, /C=US/O=Example/CN=server; make both the \
          same; the other servers refuse this one otherwise"]
    );
    site.write_identity(&site.leaf(OWN, -DAY, 365 * DAY));
    let loaded = site.load().unwrap();
    assert_eq!(site.lines(&loaded.warnings), [""; 0]);
    assert_eq!(loaded.settings.members[0].subject.as_deref(), Some(OWN));
    site.edit("server_conf.yaml", "cert_verify_str: /C=US/O=Example/CN=server\n", "");
    let loaded = site.load().unwrap();
    assert_eq!(site.lines(&loaded.warnings), [""; 0], "no other certificate may join");
    assert!(!loaded.tls.with_members(&loaded.settings.members).names_match(&"/CN=any".into()));
}

#[test]
fn problems_of_all_files_are_told_at_once() {
    let site = Site::new();
    site.edit("server_conf.yaml", "port: 10001", "port: 0");
    site.edit("list.yaml", "port: 10001", "port: 0");
    site.write_identity(&site.leaf("/CN=else", -DAY, DAY * 365));
    let refused = site.load().unwrap_err();
    let fields: Vec<_> = refused.problems.iter().filter_map(|p| p.field.as_deref()).collect();
    assert_eq!(fields, ["port", "entry 1: port", "cert_verify_str"]);

    let site = Site::new();
    for file in ["list.yaml", "root.pem", "cert.pem", "key.pem"] {
        site.remove(file);
    }
    let refused = site.load().unwrap_err();
    let fields: Vec<_> = refused.problems.iter().filter_map(|p| p.field.as_deref()).collect();
    let expected = ["server_list_file", "root_cert_file", "server_cert_file", "server_key_file"];
    assert_eq!(fields, expected);
}

#[test]
fn no_line_shows_a_private_key() {
    let site = Site::new();
    let key = fs::read_to_string(site.path("key.pem")).unwrap();
    let body: Vec<&str> = key.lines().filter(|l| !l.starts_with('-')).collect();
    let harms: [&dyn Fn(); 3] = [
        // The key's file where another one belongs, and its text where its name belongs.
        &|| site.edit("server_conf.yaml", "list.yaml", "key.pem"),
        &|| site.edit("server_conf.yaml", "cert.pem", "key.pem"),
        &|| {
            let text = key.replace('\n', "\n  ");
            let line = format!("server_key_file: |\n  {text}\n");
            site.edit("server_conf.yaml", "server_key_file: key.pem\n", &line);
        },
    ];
    for harm in harms {
        site.write("server_conf.yaml", CONF);
        harm();
        let refused = site.load().unwrap_err();
        assert!(!refused.problems.is_empty());
        let told = format!("{:?} {:?}", refused, site.lines(&refused.problems));
        for part in &body {
            assert!(!told.contains(part), "{told}");
        }
    }
    site.remove("server_conf.yaml");
    let refused = load("key.pem", &site.dirs()).unwrap_err();
    let told = format!("{:?} {:?}", refused, site.lines(&refused.problems));
    assert!(body.iter().all(|part| !told.contains(part)), "{told}");
}

#[test]
fn relative_names_are_looked_for_in_order() {
    let site = Site::new();
    // The argument: working before install before config.
    for (dir, port) in [("install", 2), ("working", 1)] {
        let conf = CONF.replace("port: 10001", &format!("port: {port}"));
        fs::write(site.top.join(dir).join("server_conf.yaml"), conf).unwrap();
        let loaded = site.load().unwrap();
        assert_eq!(loaded.settings.port, port);
        // Inside the file: what is not beside it is found in the configuration directory.
        assert_eq!(loaded.settings.root_cert_file, site.path("root.pem"));
    }
    // An absolute argument is itself; beside the file comes first.
    let path = site.path("server_conf.yaml");
    let root = site.root.certificate_pem();
    for dir in ["working", "install"] {
        fs::write(site.top.join(dir).join("root.pem"), "rubbish").unwrap();
    }
    let loaded = load(path.to_str().unwrap(), &site.dirs()).unwrap();
    assert_eq!(loaded.settings.port, 10001);
    assert_eq!(loaded.settings.root_cert_file, site.path("root.pem"));
    // Then working, then install.
    site.remove("root.pem");
    for dir in ["working", "install"] {
        fs::write(site.top.join(dir).join("root.pem"), &root).unwrap();
    }
    let loaded = load(path.to_str().unwrap(), &site.dirs()).unwrap();
    assert_eq!(loaded.settings.root_cert_file, site.top.join("working").join("root.pem"));
    fs::remove_file(site.top.join("working").join("root.pem")).unwrap();
    let loaded = load(path.to_str().unwrap(), &site.dirs()).unwrap();
    assert_eq!(loaded.settings.root_cert_file, site.top.join("install").join("root.pem"));
}

#[test]
fn no_argument_is_an_error() {
    let refused = load("", &Site::new().dirs()).unwrap_err();
    assert_eq!(refused.problems.len(), 1);
    assert!(refused.problems[0].to_string().contains("names no file"));
}

/// Texts of the largest allowed size that are as awkward as can be, in bounded time.
#[test]
fn the_worst_texts_take_bounded_time() {
    const MIB: usize = 1 << 20;
    let repeated = |text: &str| text.repeat(MIB / text.len());
    let anchors: String = (0..60_000).map(|n| format!("- &a{n} x\n")).collect();
    let tags: String = (0..60_000).map(|n| format!("%TAG !t{n}! x:\n")).collect();
    for text in [
        tags + "---\na\n",
        "[".repeat(10_000),
        "{".repeat(10_000),
        repeated("["),
        repeated("- "),
        repeated("a: "),
        repeated("a:\n"),
        repeated("- a: 1\n"),
        repeated("? "),
        repeated("\"\\n"),
        repeated("&a "),
        anchors,
    ] {
        let start = std::time::Instant::now();
        let problems = parse_conf(&text, "c").1.len() + parse_list(&text, "l").1.len();
        assert!(problems > 0);
        // Far above what it takes on a slow machine under load, far below a quadratic cost.
        let took = start.elapsed();
        let begin: String = text.chars().take(10).collect();
        assert!(took < Duration::from_secs(20), "{begin:?} took {took:?}");
    }
}

fn repository(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn the_examples_are_right() {
    let conf = repository("example_server_conf.yaml");
    let list = repository("example_server_list.yaml");
    let (parsed, problems) = parse_conf(&conf, "example_server_conf.yaml");
    assert_eq!(problems, []);
    assert_eq!(parsed.unwrap().server_list_file.as_deref(), Some("example_server_list.yaml"));
    let (parsed, problems) = parse_list(&list, "example_server_list.yaml");
    assert_eq!(problems, []);
    assert_eq!(parsed.unwrap().members.len(), 3);
}

#[test]
fn the_examples_load_with_certificates_and_their_defaults_are_true() {
    let site = Site::new();
    let conf = repository("example_server_conf.yaml");
    site.write("example_server_list.yaml", repository("example_server_list.yaml"));
    fs::create_dir(site.path("ssl")).unwrap();
    let own = Identity::new("/C=US/ST=IL/O=Yahoo/OU=Edge/CN=localhost", None, -DAY, 365 * DAY);
    site.write("ssl/root.pem", own.certificate_pem());
    site.write("ssl/server.pem", own.certificate_pem());
    site.write("ssl/server.key", own.key_pem());

    site.write("server_conf.yaml", &conf);
    let loaded = site.load().unwrap();
    assert_eq!(loaded.warnings, []);

    // With every shown default set, but for those whose default is their absence.
    let absent = ["bind_address", "state_dir"];
    let is_shown = |line: &str| {
        let said = line.strip_prefix('#').and_then(|l| l.split_once(": "));
        said.is_some_and(|(name, _)| ConfigOption::named(name).is_some() && !absent.contains(&name))
    };
    let spelt_out: Vec<_> =
        conf.lines().map(|l| if is_shown(l) { l.trim_start_matches('#') } else { l }).collect();
    assert_ne!(spelt_out.join("\n"), conf);
    site.write("server_conf.yaml", spelt_out.join("\n"));
    let explicit = site.load().unwrap();
    assert_eq!(explicit.warnings, []);
    assert_eq!(explicit.settings, loaded.settings);
}

#[test]
fn the_example_plugin_config_names_plugin_and_configuration() {
    let text = repository("plugin.config.example");
    let lines: Vec<_> = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    assert_eq!(lines, ["stek_share.so stek_share/server_conf.yaml"]);
}
