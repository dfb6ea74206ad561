//! The built plugin under two hosts that are no Traffic Server: one exports only the mangled C++
//! names, as Traffic Server 10 and later do, the other only the C names, as 9.2 does.
//!
//! The hosts are one C++ program, `stub_host/host.cc`, compiled here twice. It prints what the
//! plugin asked of it, in order.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::{X509Name, X509};
use stek_share::metrics::{Metric, METRICS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Mangled,
    C,
    /// The same, with another library under OpenSSL's names.
    CWithBoringSsl,
}

const BOTH: [Names; 2] = [Names::Mangled, Names::C];

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir =
            std::env::temp_dir().join(format!("stek_share-host-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("a temporary directory");
        Scratch(dir)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("a file in the temporary directory");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The plugin that cargo built for this run: the newer of the two places where it may lie.
fn plugin() -> PathBuf {
    let exe = std::env::current_exe().expect("this test's own path");
    let deps = exe.parent().expect("the folder of the test binaries");
    [Some(deps), deps.parent()]
        .into_iter()
        .flatten()
        .map(|dir| dir.join("libstek_share.so"))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .max()
        .expect("cargo builds libstek_share.so beside the tests")
        .1
}

/// The host program, compiled at its first use in this run.
fn host(names: Names) -> &'static Path {
    static MANGLED: OnceLock<PathBuf> = OnceLock::new();
    static C: OnceLock<PathBuf> = OnceLock::new();
    static BORING_SSL: OnceLock<PathBuf> = OnceLock::new();
    let (place, defines) = match names {
        Names::Mangled => (&MANGLED, &["-DMANGLED_NAMES"][..]),
        Names::C => (&C, &["-DC_NAMES"][..]),
        Names::CWithBoringSsl => (&BORING_SSL, &["-DC_NAMES", "-DBORING_SSL"][..]),
    };
    place.get_or_init(|| {
        // Beside the test binaries, so that nothing is left in the system's temporary directory.
        let exe = std::env::current_exe().expect("this test's own path");
        let program = exe.with_file_name(format!("stub_host-{names:?}"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stub_host/host.cc");
        let built = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()))
            .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-rdynamic", "-pthread"])
            .args(defines)
            .arg("-o")
            .arg(&program)
            .arg(source)
            .args(["-ldl", "-Wl,--no-as-needed", "-lssl", "-lcrypto"])
            .output()
            .expect("a C++ compiler");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        program
    })
}

/// What the host printed in one life, which must have ended well.
struct Life(Vec<String>);

impl Life {
    fn of(names: Names, arguments: &[&Path], environment: &[(&str, &str)]) -> Life {
        let output = Command::new(host(names))
            .arg(plugin())
            .args(arguments)
            .envs(environment.iter().copied())
            .output()
            .expect("the host runs");
        let text = String::from_utf8(output.stdout).expect("valid UTF-8");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{names:?}\n{text}\n{stderr}");
        assert_eq!(stderr, "", "{names:?}");
        let life = Life(text.lines().map(str::to_owned).collect());
        let told = if names == Names::Mangled { "names: C++" } else { "names: C" };
        assert_eq!(life.0.first().map(String::as_str), Some(told));
        assert_eq!(life.0.get(1).map(String::as_str), Some("registered stek_share"), "{text}");
        life.has("threads left: none");
        life
    }

    /// The line's place, which must exist.
    fn has(&self, part: &str) -> usize {
        let found = self.0.iter().position(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("no line has {part:?}:\n{}", self.0.join("\n")))
    }

    fn count(&self, part: &str) -> usize {
        self.0.iter().filter(|line| line.contains(part)).count()
    }

    fn has_no(&self, part: &str) {
        assert_eq!(self.count(part), 0, "{part:?} in:\n{}", self.0.join("\n"));
    }
}

/// A configuration for a fleet of one server, and its path.
fn one_server(scratch: &Scratch) -> PathBuf {
    let (certificate, key) = self_signed();
    scratch.write("cert.pem", certificate);
    scratch.write("key.pem", key);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    scratch.write("list.yaml", format!("- server_id: 1\n  address: 127.0.0.1\n  port: {port}\n"));
    scratch.write(
        "conf.yaml",
        format!(
            "server_id: 1\naddress: 127.0.0.1\nport: {port}\nkey_update_interval: 3600\n\
             server_list_file: list.yaml\nroot_cert_file: cert.pem\nserver_cert_file: cert.pem\n\
             server_key_file: key.pem\ncert_verify_str: /CN=stek-share-test\n"
        ),
    )
}

/// One certificate that is its own root, and its key, both PEM.
fn self_signed() -> (Vec<u8>, Vec<u8>) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a known curve");
    let key = PKey::from_ec_key(EcKey::generate(&group).expect("a key")).expect("a key");
    let mut name = X509Name::builder().expect("a name");
    name.append_entry_by_text("CN", "stek-share-test").expect("a common name");
    let name = name.build();
    let mut builder = X509::builder().expect("a certificate");
    builder.set_version(2).expect("version 3");
    builder.set_subject_name(&name).expect("a subject");
    builder.set_issuer_name(&name).expect("an issuer");
    builder.set_pubkey(&key).expect("a public key");
    builder.set_not_before(&Asn1Time::days_from_now(0).expect("now")).expect("a start");
    builder.set_not_after(&Asn1Time::days_from_now(2).expect("soon")).expect("an end");
    builder.sign(&key, MessageDigest::sha256()).expect("signed");
    let certificate = builder.build();
    (certificate.to_pem().expect("PEM"), key.private_key_to_pem_pkcs8().expect("PEM"))
}

#[test]
fn a_whole_life_under_either_kind_of_names() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("life-{names:?}"));
        let life = Life::of(names, &[&one_server(&scratch)], &[]);
        life.has_no("ERROR");
        assert!(!life.0.iter().any(|line| line.starts_with("refused ")), "{:?}", life.0);
        life.has_no("with a mutex");
        // The installs: one key before TSPluginInit returns, one at PORTS_INITIALIZED at the
        // latest before its hook returns, and all on the one thread.
        let returned = life.has("TSPluginInit returned");
        let ports = life.has("hook 0 took");
        let took: Vec<usize> =
            (0..life.0.len()).filter(|&i| life.0[i].starts_with("took ")).collect();
        assert_eq!(life.0[took[0]], "took 1 key(s) on thread stek_install");
        assert!(took[0] < returned, "{:?}", life.0);
        assert!(took.iter().any(|&i| returned < i && i < ports), "{:?}", life.0);
        assert_eq!(life.count("on thread stek_install"), took.len());
        assert!(life.has("DEBUG: (stek_share) Generate initial STEK succeeded") < returned);
        // The node hears of the install; this host's life is too short for the key's activation.
        life.has(" installed 1 key, current ");
        assert_eq!(life.count("stat plugin.stek_share.installs "), took.len());
        life.has("hook 7 took");
        assert_metrics_are_made(&life);
        // Some that need no group; all are set in real Traffic Servers by other tests.
        for set in ["up 1", "server_id 1", "members 1", "key_in_use 2", "certificate_seconds "] {
            assert!(life.has(&format!("stat plugin.stek_share.{set}")) > took[0], "{set}");
        }
        life.has("stat plugin.stek_share.up 0");
    }
}

/// Each metric of the table is made once, before the host could be slowed by it, and nothing else.
fn assert_metrics_are_made(life: &Life) {
    let returned = life.has("TSPluginInit returned");
    let early = life.0[..returned].iter().filter_map(|line| line.strip_prefix("made "));
    let names: Vec<String> = METRICS.iter().map(Metric::host_name).collect();
    assert_eq!(early.collect::<Vec<_>>(), names);
    assert_eq!(life.count("made plugin."), names.len(), "{:?}", life.0);
}

/// Adds an option to the configuration of [`one_server`].
fn option(scratch: &Scratch, line: &str) -> PathBuf {
    let text = fs::read_to_string(scratch.0.join("conf.yaml")).expect("a configuration");
    scratch.write("conf.yaml", format!("{text}{line}\n"))
}

#[test]
fn each_client_hello_goes_on_once_and_sessions_stay_with_their_site() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("sites-{names:?}"));
        let config = one_server(&scratch);
        let tls = [("HOST_TLS", scratch.0.to_str().unwrap())];
        let life = Life::of(names, &[&config], &tls);
        life.has_no("ticket_scope");
        let added = life.has("hook at a ClientHello: right");
        assert!(added < life.has("TSPluginInit returned"), "{:?}", life.0);
        assert_eq!(life.count("hook at a ClientHello"), 1);
        life.has("TLS to a.test at first: in full, went on 1 time(s)");
        life.has("TLS to a.test again: resumed, went on 1 time(s)");
        life.has("TLS to A.TEST. in other letters: resumed, went on 1 time(s)");
        life.has("TLS to b.test with another's session: in full, went on 1 time(s)");

        let config = option(&scratch, "ticket_scope: host");
        let life = Life::of(names, &[&config], &tls);
        life.has_no("hook at a ClientHello");
        life.has("TLS to b.test with another's session: resumed, went on 0 time(s)");
    }
}

#[test]
fn a_late_start_binds_sessions_from_then_on_if_that_is_wanted() {
    for (scope, words) in [("site", "in full"), ("host", "resumed")] {
        let scratch = Scratch::new(&format!("late-sites-{scope}"));
        one_server(&scratch);
        let good = option(&scratch, &format!("ticket_scope: {scope}"));
        let config = scratch.write("bad.yaml", "server_id: many\n");
        let mut environment = vec![("HOST_TLS", scratch.0.to_str().unwrap()), ("HOST_KEYS", "0")];
        let life = Life::of(Names::Mangled, &[&config], &environment);
        life.has("hook at a ClientHello: right");
        life.has("TLS to b.test with another's session: resumed, went on 1 time(s)");

        environment.extend([
            ("HOST_MESSAGE", "reload"),
            ("HOST_FILE", config.to_str().unwrap()),
            ("HOST_FILE_BECOMES", good.to_str().unwrap()),
        ]);
        let life = Life::of(Names::Mangled, &[&config], &environment);
        life.has(&format!("TLS to b.test with another's session: {words}, went on 1 time(s)"));
    }
}

#[test]
fn a_host_whose_hooks_are_unknown_is_left_alone_and_told_of() {
    let scratch = Scratch::new("unknown-hooks");
    let config = one_server(&scratch);
    let environment = [("HOST_VERSION", "12.0.0"), ("HOST_TLS", scratch.0.to_str().unwrap())];
    let life = Life::of(Names::Mangled, &[&config], &environment);
    life.has_no("hook at a ClientHello");
    life.has("WARNING: [stek_share] ticket_scope: site has no effect in Traffic Server 12.0.0");
    life.has("TLS to b.test with another's session: resumed, went on 0 time(s)");
    option(&scratch, "ticket_scope: host");
    Life::of(Names::Mangled, &[&config], &environment).has_no("ticket_scope");
}

#[test]
fn debug_lines_are_silent_when_debugging_is_off() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("quiet-{names:?}"));
        let life = Life::of(names, &[&one_server(&scratch)], &[("HOST_DEBUG", "0")]);
        life.has_no("DEBUG");
        life.has("took 1 key(s)");
    }
}

#[test]
fn debugging_for_chosen_clients_only_follows_the_hosts_own_answer() {
    let scratch = Scratch::new("override");
    let config = one_server(&scratch);
    Life::of(Names::Mangled, &[&config], &[("HOST_DEBUG", "2")]).has_no("DEBUG");
    let chosen = [("HOST_DEBUG", "2"), ("HOST_OVERRIDE", "1")];
    Life::of(Names::Mangled, &[&config], &chosen).has("DEBUG: (stek_share)");
    Life::of(Names::Mangled, &[&config], &[("HOST_DEBUG", "3")]).has("DEBUG: (stek_share)");
}

#[test]
fn a_refused_install_is_tried_again() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("refused-{names:?}"));
        let life = Life::of(names, &[&one_server(&scratch)], &[("HOST_REFUSES", "4")]);
        let refused = life.0.iter().filter(|line| line.starts_with("refused ")).count();
        assert_eq!(refused, 4);
        assert!(life.has("key(s) on thread stek_install") < life.has("took "));
        life.has("ERROR: [stek_share] Traffic Server refused the ticket keys");
        life.has("stat plugin.stek_share.install_failures 4");
        let pending = life.has("stat plugin.stek_share.install_pending 1");
        assert!(pending < life.has("stat plugin.stek_share.install_pending 0"), "{:?}", life.0);
    }
}

#[test]
fn a_missing_configuration_leaves_the_host_its_own_key() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("missing-{names:?}"));
        let nowhere = scratch.0.join("nowhere.yaml");
        let life = Life::of(names, &[&nowhere], &[("HOST_KEYS", "0")]);
        life.has_no("key(s)");
        life.has_no("with a mutex");
        assert!(life.has("nowhere.yaml") < life.has("own ticket key stays in use"));
        assert!(life.has("own ticket key stays in use") < life.has("TSPluginInit returned"));
    }
}

#[test]
fn a_message_reloads_with_and_without_its_nul_and_others_are_told() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("messages-{names:?}"));
        let life = Life::of(names, &[&one_server(&scratch)], &[("HOST_MESSAGE", "reload")]);
        life.has_no("no answer came");
        assert_eq!(life.count("NOTE: [stek_share] reload: done; no changes"), 2);
        assert_metrics_are_made(&life);
        let known = "means nothing here; known are: reload, rotate, revoke, status";
        assert_eq!(life.count(known), 3);
        life.has(&format!("NOTE: [stek_share] an empty message {known}"));
        life.has(&format!("the message \"no such word\" {known}"));
        life.has("a message of 100000 bytes, \"xxx");
        life.has_no("ERROR");
    }
}

#[test]
fn a_reload_with_a_bad_file_says_why() {
    let scratch = Scratch::new("bad-reload");
    let config = one_server(&scratch);
    let bad = scratch.write("bad.yaml", "server_id: many\n");
    let environment = [
        ("HOST_MESSAGE", "reload"),
        ("HOST_FILE", config.to_str().unwrap()),
        ("HOST_FILE_BECOMES", bad.to_str().unwrap()),
    ];
    let life = Life::of(Names::Mangled, &[&config], &environment);
    life.has_no("no answer came");
    assert!(life.has("server_id: ") < life.has("ERROR: [stek_share] reload: nothing was changed"));
}

#[test]
fn a_reload_starts_what_could_not_start() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("late-{names:?}"));
        let good = one_server(&scratch);
        let config = scratch.write("bad.yaml", "server_id: many\n");
        let environment = [
            ("HOST_MESSAGE", "reload"),
            ("HOST_FILE", config.to_str().unwrap()),
            ("HOST_FILE_BECOMES", good.to_str().unwrap()),
        ];
        let life = Life::of(names, &[&config], &environment);
        life.has_no("no answer came");
        let refused = life.has("own ticket key stays in use");
        let ports = life.has("hook 0 took");
        let started = life.has("reload: the configuration can be used now; started");
        assert!(refused < ports && ports < started, "{:?}", life.0);
        assert!(ports < life.has("took 1 key(s) on thread stek_install"), "{:?}", life.0);
        life.has_no("with a mutex");
        life.has("hook 7 took");
        // Made while nothing could start, since only then the host allows it.
        assert_metrics_are_made(&life);
        assert!(ports < life.has("stat plugin.stek_share.up 1"), "{:?}", life.0);
    }
}

#[test]
fn a_certificate_that_becomes_valid_starts_what_could_not_start() {
    let scratch = Scratch::new("passes");
    let config = one_server(&scratch);
    let root = testkit::pki::Authority::new("/CN=root").expect("an authority");
    let early = testkit::pki::Request::new("/CN=stek-share-test").valid(15, 365 * 86_400);
    let own = root.issue(&early).expect("a certificate");
    scratch.write("root.pem", root.identity.certificate.to_pem().expect("PEM"));
    scratch.write("cert.pem", own.certificate.to_pem().expect("PEM"));
    let key = scratch.write("key.pem", own.key.private_key_to_pem_pkcs8().expect("PEM"));
    std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("mode");
    let text = std::fs::read_to_string(&config).expect("written");
    std::fs::write(&config, text.replace("root_cert_file: cert", "root_cert_file: root"))
        .expect("written");
    let life = Life::of(Names::C, &[&config], &[]);
    life.has("which is not valid before ");
    let refused = life.has("it is tried again by itself every 30 s, and at once by ");
    let started = life.has("NOTE: [stek_share] the configuration can be used now; started");
    assert!(refused < life.has("hook 0 took") && refused < started, "{:?}", life.0);
    assert!(refused < life.has("took 1 key(s) on thread stek_install"), "{:?}", life.0);
    assert_eq!(life.count("which is not valid before "), 1, "{:?}", life.0);
}

#[test]
fn arguments_must_be_exactly_one() {
    let scratch = Scratch::new("arguments");
    let config = one_server(&scratch);
    for (names, arguments, count) in
        [(Names::Mangled, vec![], "0"), (Names::C, vec![config.as_path(); 2], "2")]
    {
        let life = Life::of(names, &arguments, &[]);
        life.has(&format!(
            "plugin.config: gives stek_share.so {count} arguments; it takes one, the path of its \
             configuration file; write for instance: "
        ));
        life.has("own ticket key stays in use");
        life.has_no("key(s)");
    }
}

#[test]
fn a_host_with_a_library_of_its_own_under_openssls_names_is_told_of() {
    let scratch = Scratch::new("library");
    let config = one_server(&scratch);
    let life = Life::of(Names::CWithBoringSsl, &[&config], &[("HOST_KEYS", "0")]);
    life.has(
        "ERROR: [stek_share] the calls of OpenSSL in this plugin go to BoringSSL (version number \
         1010107f), which comes with this Traffic Server, and it is built for OpenSSL 3",
    );
    life.has("; use a Traffic Server that is built with OpenSSL 3, or this plugin with an OpenSSL of its own");
    life.has("own ticket key stays in use");
    life.has_no("key(s)");
    life.has_no("certificate in PEM");
    assert_eq!(life.count("ERROR: "), 2, "{:?}", life.0);
}

#[test]
fn a_second_line_in_plugin_config_is_ignored() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("twice-{names:?}"));
        let life = Life::of(names, &[&one_server(&scratch)], &[("HOST_TWICE", "1")]);
        assert_eq!(life.count("registered stek_share"), 2);
        assert_eq!(life.count("TSPluginInit returned"), 2);
        assert_eq!(life.count("Generate initial STEK succeeded"), 1);
        assert_eq!(life.count("hook 0 took"), 1);
        assert_metrics_are_made(&life);
        life.has("WARNING: [stek_share] plugin.config names stek_share more than once");
    }
}

#[test]
fn a_plugin_that_is_given_back_stays_mapped_and_goes_on() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("close-{names:?}"));
        let life = Life::of(names, &[&one_server(&scratch)], &[("HOST_CLOSE", "1")]);
        life.has("dlclose: 0");
        life.has("threads while closed: some");
        life.has("mapped while closed: yes");
        // What was there before is there still: loading it again is a second line, no new start.
        life.has("WARNING: [stek_share] plugin.config names stek_share more than once");
        assert_eq!(life.count("Generate initial STEK succeeded"), 1);
        life.has("hook 7 took");

        // Without a usable configuration there is no thread whose storage would keep it mapped, and
        // yet the host has hooks into it.
        let nowhere = scratch.write("bad.yaml", "server_id: many\n");
        let environment = [("HOST_CLOSE", "1"), ("HOST_KEYS", "0")];
        let life = Life::of(names, &[&nowhere], &environment);
        life.has("threads while closed: none");
        life.has("mapped while closed: yes");
        life.has("WARNING: [stek_share] plugin.config names stek_share more than once");
    }
}

#[test]
fn records_of_the_host_that_defeat_the_purpose_are_warned_about() {
    for names in BOTH {
        let scratch = Scratch::new(&format!("records-{names:?}"));
        let environment = [("HOST_TICKET_FILE", "keys.bin"), ("HOST_TICKETS", "0")];
        let life = Life::of(names, &[&one_server(&scratch)], &environment);
        life.has(
            "WARNING: [stek_share] Traffic Server: proxy.config.ssl.server.ticket_key.filename: \
             keys.bin makes",
        );
        life.has(
            "ERROR: [stek_share] Traffic Server: proxy.config.ssl.server.session_ticket.enable: 0 \
             means",
        );
        // At each look; the end may come in the middle of one.
        let (given, freed) = (life.count("given away"), life.count("freed"));
        assert!(freed > 0 && given - freed <= 1, "{given} given away, {freed} freed");
        let plain = Life::of(names, &[&one_server(&scratch)], &[]);
        plain.has_no("proxy.config.ssl.server");
    }
}
