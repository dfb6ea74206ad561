use std::collections::BTreeSet;

use super::*;
use crate::core::ticket_scope::TicketScope;

/// A configuration in which nothing is wrong and nothing is left out that must be there.
const CONF: &str = "\
server_id: 1
address: 127.0.0.1
port: 10001
key_update_interval: 15
server_list_file: list.yaml
root_cert_file: root.pem
server_cert_file: cert.pem
server_key_file: key.pem
cert_verify_str: /C=US/ST=IL/O=Yahoo/OU=Edge/CN=localhost
";

const LIST: &str = "\
- server_id: 1
  address: 127.0.0.1
  port: 10001
- server_id: 2
  address: 127.0.0.1
  port: 10002
";

/// [`CONF`] without the option, or with `name: value` in its place, always as the last line.
fn conf_with(name: &str, line: &str) -> String {
    let kept = CONF.lines().filter(|l| !l.starts_with(&format!("{name}:")));
    let mut text: String = kept.map(|l| format!("{l}\n")).collect();
    text.push_str(line);
    text
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|p| p.to_string()).collect()
}

fn settle(conf: &str, list: &str) -> (Option<Settings>, Vec<Problem>) {
    let (conf, mut problems) = parse_conf(conf, "c");
    let (list, more) = parse_list(list, "l");
    problems.extend(more);
    let settings = conf.zip(list).and_then(|(conf, list)| {
        problems.extend(check_membership(&conf, &list));
        let path = |name: &Option<String>| Path::new("/found").join(name.as_deref().unwrap_or(""));
        let paths = Paths {
            root_cert_file: path(&conf.root_cert_file),
            server_cert_file: path(&conf.server_cert_file),
            server_key_file: path(&conf.server_key_file),
        };
        conf.settle(list, paths)
    });
    (settings, problems)
}

/// The settings of [`CONF`] with one more line.
fn settings_with(line: &str) -> (Settings, Vec<String>) {
    let name = line.split(':').next().unwrap_or_default();
    let (settings, problems) = settle(&conf_with(name, line), LIST);
    (settings.unwrap(), lines(&problems))
}

#[test]
fn defaults_are_the_originals() {
    let (settings, problems) = settle(CONF, LIST);
    assert_eq!(problems, []);
    let settings = settings.unwrap();
    assert_eq!((&settings.bind_address, &settings.state_dir), (&None, &None));
    let ms = Duration::from_millis;
    let expected = Settings {
        server_id: ServerId(1),
        address: "127.0.0.1".to_owned(),
        port: 10001,
        workers: 4,
        timers: Timers { heartbeat: ms(100), election_lower: ms(200), election_upper: ms(400) },
        reserved_log_items: 5,
        snapshot_distance: 5,
        request_timeout: ms(3000),
        key_update_interval: Duration::from_secs(15),
        handover_timeout: ms(1500),
        startup_wait: ms(2000),
        ticket_keys: 2,
        max_key_age: Duration::from_secs(86400),
        ticket_scope: TicketScope::Site,
        root_cert_file: "/found/root.pem".into(),
        server_cert_file: "/found/cert.pem".into(),
        server_key_file: "/found/key.pem".into(),
        server_list_file: "list.yaml".into(),
        cert_verify_str: "/C=US/ST=IL/O=Yahoo/OU=Edge/CN=localhost".to_owned(),
        members: vec![
            Member {
                id: ServerId(1),
                address: "127.0.0.1".to_owned(),
                port: 10001,
                subject: None,
                voter: true,
            },
            Member {
                id: ServerId(2),
                address: "127.0.0.1".to_owned(),
                port: 10002,
                subject: None,
                voter: true,
            },
        ],
        // What the original has no name for.
        ..settings.clone()
    };
    assert_eq!(settings, expected);
}

#[test]
fn each_option_reaches_its_setting() {
    let ms = Duration::from_millis;
    let (s, _) = settings_with("asio_thread_pool_size: 7");
    assert_eq!(s.workers, 7);
    let (s, _) = settings_with("heart_beat_interval: '50'");
    assert_eq!(s.timers.heartbeat, ms(50));
    let (s, _) = settings_with("election_timeout_lower_bound: 300");
    assert_eq!(s.timers.election_lower, ms(300));
    let (s, _) = settings_with("election_timeout_upper_bound: 800");
    assert_eq!(s.timers.election_upper, ms(800));
    let (s, _) = settings_with("reserved_log_items: 0");
    assert_eq!(s.reserved_log_items, 0);
    let (s, _) = settings_with("snapshot_distance: 9");
    assert_eq!(s.snapshot_distance, 9);
    let (s, _) = settings_with("client_req_timeout: 250");
    assert_eq!(s.request_timeout, ms(250));
    let (s, _) = settings_with("bind_address: '[::]'");
    assert_eq!(s.bind_address.as_deref(), Some("::"));
    let (s, _) = settings_with("handover_timeout: 700");
    assert_eq!(s.handover_timeout, ms(700));
    let (s, _) = settings_with("startup_wait: 0");
    assert_eq!(s.startup_wait, Duration::ZERO);
    let (s, _) = settings_with("ticket_keys: 16");
    assert_eq!(s.ticket_keys, 16);
    let (s, _) = settings_with("max_key_age: 15");
    assert_eq!(s.max_key_age, Duration::from_secs(15));
    let (s, _) = settings_with("state_dir: /run/stek_share");
    assert_eq!(s.state_dir, Some(PathBuf::from("/run/stek_share")));
    let (s, _) = settings_with("ticket_scope: host");
    assert_eq!(s.ticket_scope, TicketScope::Host);
    let (s, _) = settings_with("ticket_scope: site");
    assert_eq!(s.ticket_scope, TicketScope::Site);
}

#[test]
fn defaults_follow_the_interval() {
    let (s, problems) = settings_with("key_update_interval: 1");
    assert_eq!(s.handover_timeout, Duration::from_millis(500));
    assert_eq!(problems, [""; 0], "a default is capped without a word");
    let (s, _) = settings_with("key_update_interval: 2147483647");
    assert_eq!(s.max_key_age, Duration::from_secs(2 * 2_147_483_647));
    let (s, _) = settings_with("key_update_interval: 43201");
    assert_eq!(s.max_key_age, Duration::from_secs(86402));
    let (s, problems) = settings_with("handover_timeout: 7501");
    assert_eq!(s.handover_timeout, Duration::from_millis(7500));
    assert_eq!(
        problems,
        ["c line 10: handover_timeout: 7501 is more than half of key_update_interval; \
          7500 ms is used instead; give at most 7500"]
    );
}

/// Each line makes [`CONF`] wrong in one way and has exactly one problem.
#[test]
fn each_wrong_option_is_one_line() {
    let long = format!("cert_verify_str: {}", "x".repeat(500));
    let shown = "x".repeat(119);
    let long_line = format!(
        "\"{shown}... is not a subject of the form \
         /C=US/O=Example/CN=name, nor DNS:name nor URI:spiffe://domain/path; give what 'openssl x509 -noout -subject -nameopt compat -in \
         FILE' prints after 'subject='"
    );
    for (line, expected) in [
        (
            "server_id: abc",
            "\"abc\" is not a whole number; give a whole number from 0 to 2147483647",
        ),
        ("server_id: -1", "-1 is not a server id; give a whole number from 0 to 2147483647"),
        (
            "server_id: 99999999999999999999999",
            "99999999999999999999999 is not a server id; give a whole",
        ),
        (
            "address: 10.0.0.1:80",
            "\"10.0.0.1:80\" has a port of its own; give the port in the field",
        ),
        ("address: [a]", "is a list, not plain text; give an IPv4 address, an IPv6 address in"),
        ("address:", "is empty; give an IPv4 address, an IPv6 address in quotes, or a host name"),
        ("address: a_b..c", "\"a_b..c\" is not a host name; give an IPv4 address"),
        ("bind_address: 300.1.1.1", "\"300.1.1.1\" is not an IPv4 address; give"),
        ("bind_address: 224.0.0.1", "\"224.0.0.1\" is the address of a group, so no server can"),
        ("bind_address: fe80::1", "\"fe80::1\" is link-local and has no zone, such as %eth0"),
        ("port: 0", "0 is not a port; give a number from 1 to 65535"),
        ("port: 99999", "99999 is not a port; give a number from 1 to 65535"),
        ("port: [1]", "is a list, not a whole number; give a number from 1 to 65535"),
        ("port: {a: 1}", "is a mapping, not a whole number; give a number from 1 to 65535"),
        ("port:", "has no value; give a number from 1 to 65535"),
        ("port: 080", "\"080\" begins with 0, which some read as octal; give a number"),
        ("key_update_interval: 0", "0 is out of range; give a whole number of seconds from 1 to"),
        ("key_update_interval: -15", "-15 is out of range; give a whole number of seconds from 1"),
        ("key_update_interval: 1.5", "1.5 is not a whole number; give a whole number of seconds"),
        ("key_update_interval: true", "true is not a whole number; give a whole number of seconds"),
        ("asio_thread_pool_size: 0", "0 is out of range; give a number of threads from 1 to 64"),
        ("asio_thread_pool_size: 65", "65 is out of range; give a number of threads from 1 to 64"),
        ("heart_beat_interval: 0", "0 is out of range; give a whole number of milliseconds from 1"),
        (
            "heart_beat_interval: 200",
            "200 ms is not below election_timeout_lower_bound, 200 ms; make it half of",
        ),
        (
            "election_timeout_lower_bound: 500",
            "500 ms is not below election_timeout_upper_bound, 400 ms; make the upper bound twice",
        ),
        (
            "election_timeout_upper_bound: 3600001",
            "3600001 is out of range; give a whole number of",
        ),
        (
            "reserved_log_items: -1",
            "-1 is out of range; give a number of entries from 0 to 1000000",
        ),
        ("snapshot_distance: -1", "-1 is out of range; give a number of entries from 0 to 1000000"),
        ("client_req_timeout: 0", "0 is out of range; give a whole number of milliseconds from 1"),
        ("handover_timeout: 0", "0 is out of range; give a whole number of milliseconds from 1"),
        (
            "startup_wait: 60001",
            "60001 is out of range; give a whole number of milliseconds from 0",
        ),
        ("ticket_keys: 1", "1 is out of range; give a number of keys from 2 to 16"),
        ("ticket_keys: 17", "17 is out of range; give a number of keys from 2 to 16"),
        ("max_key_age: 14", "14 is below key_update_interval, 15 s; give at least twice"),
        (
            "state_dir: run/stek_share",
            "\"run/stek_share\" is not an absolute path; give the absolute path of a dir",
        ),
        ("ticket_scope: sites", "\"sites\" is neither site nor host; give site or host, or remove"),
        ("ticket_scope: [site]", "is a list, not plain text; give site or host"),
        ("root_cert_file: ''", "is empty; give the path of a file with the certificates"),
        ("server_list_file: 5", "5 is a number, not plain text; give the path of a file with the"),
        (
            "server_key_file: |\n  -----BEGIN PRIVATE KEY-----\n  c2VjcmV0",
            "PEM text stands here itself; give the path of a file with the key",
        ),
        (
            "cert_verify_str: C = US, CN = x",
            "\"C = US, CN = x\" is not a subject of the form /C=US",
        ),
        ("cert_verify_str: subject=/CN=x", "\"subject=/CN=x\" is not a subject of the form"),
        ("cert_verify_str: /x", "\"/x\" is not a subject of the form"),
        (&long, &long_line),
    ] {
        let name = line.split(':').next().unwrap();
        let (settings, problems) = settle(&conf_with(name, line), LIST);
        assert_eq!(settings, None, "{line}");
        let told = lines(&problems);
        assert_eq!(told.len(), 1, "{line}: {told:#?}");
        // Options that CONF has are moved to its ninth and last line.
        assert!(
            told[0].starts_with("c line 9: ") || told[0].starts_with("c line 10: "),
            "{told:?}"
        );
        assert!(told[0].contains(&format!(": {name}: {expected}")), "{line}: {told:?}");
        assert!(!told[0].contains("c2Vjc"), "{told:?}");
        assert!(problems[0].is_error());
    }
}

#[test]
fn a_required_option_that_is_missing_is_named() {
    for name in [
        "server_id",
        "address",
        "port",
        "key_update_interval",
        "server_list_file",
        "root_cert_file",
        "server_cert_file",
        "server_key_file",
    ] {
        let (settings, problems) = settle(&conf_with(name, ""), LIST);
        assert_eq!(settings, None);
        let told = lines(&problems);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with(&format!("c: {name}: is missing; add '{name}: ")), "{told:?}");
    }
}

#[test]
fn no_subject_is_a_warning() {
    for (line, place) in
        [("", "c"), ("cert_verify_str:", "c line 9"), ("cert_verify_str: ''", "c line 9")]
    {
        let (settings, problems) = settle(&conf_with("cert_verify_str", line), LIST);
        assert_eq!(settings.unwrap().cert_verify_str, "");
        let told = lines(&problems);
        assert_eq!(told.len(), 1);
        let start = format!(
            "{place}: cert_verify_str: is not given, so any certificate of root_cert_file may join"
        );
        assert!(told[0].starts_with(&start), "{told:?}");
        assert!(!problems[0].is_error());
    }
}

#[test]
fn unknown_options_are_warnings_with_the_nearest_name() {
    for (line, expected) in [
        (
            "key_update_intervall: 5",
            "c line 10: key_update_intervall: is not a known name and has no effect; did you mean \
             key_update_interval?",
        ),
        (
            "colour: red",
            "c line 10: colour: is not a known name and has no effect; remove it, or see \
             docs/options.md",
        ),
        (
            "5: red",
            "c line 1: 5: is not a known name and has no effect; remove it, or see docs/options.md",
        ),
    ] {
        let (settings, problems) = settle(&format!("{CONF}{line}\n"), LIST);
        assert!(settings.is_some());
        assert_eq!(lines(&problems), [expected]);
        assert!(!problems[0].is_error());
    }
}

#[test]
fn an_option_given_twice_is_an_error_at_its_second_line() {
    let (settings, problems) = settle(&format!("{CONF}port: 10002\n"), LIST);
    assert!(problems[0].is_error());
    assert_eq!(
        lines(&problems),
        ["c line 10: port: is given more than once; keep one of the lines"]
    );
    assert!(settings.is_none());
}

#[test]
fn all_problems_are_told() {
    let conf = "server_id: x\nport: 0\nkey_update_interval: -1\nports: 5\n";
    let (_, problems) = parse_conf(conf, "c");
    let fields: Vec<_> = problems.iter().filter_map(|p| p.field.as_deref()).collect();
    let expected = [
        "ports",
        "server_id",
        "address",
        "port",
        "key_update_interval",
        "server_list_file",
        "root_cert_file",
        "server_cert_file",
        "server_key_file",
        "cert_verify_str",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn a_text_without_options_is_one_error() {
    for (text, expected) in [
        ("", "c: is empty; fill it in after the example files of this plugin"),
        ("# nothing\n", "c: is empty; fill it in after the example files of this plugin"),
        ("hello", "c: is plain text, not a mapping of options; write options as 'name: value'"),
        ("- a", "c: is a list, not a mapping of options; this may be the server list"),
        ("port: [1\nx: 2", "c line 2: is no YAML: "),
        ("a: b: c", "c line 1: is no YAML: "),
        ("\tport: 1", "c line 1: is no YAML: "),
    ] {
        let (conf, problems) = parse_conf(text, "c");
        assert!(conf.is_none(), "{text}");
        assert_eq!(problems.len(), 1, "{problems:?}");
        let line = problems[0].to_string();
        assert!(line.starts_with(expected), "{text:?}: {line}");
    }
}

#[test]
fn a_second_document_is_a_warning() {
    let (settings, problems) = settle(&format!("{CONF}---\nport: 5\n"), LIST);
    assert!(settings.is_some());
    assert!(!problems[0].is_error());
    assert!(problems[0].to_string().starts_with("c: holds several YAML documents"));
}

/// Each list has exactly one problem.
#[test]
fn each_wrong_list_is_one_line() {
    for (list, expected) in [
        ("", "l: is empty; fill it in"),
        ("[]", "l: is an empty list; write one entry '- server_id: N'"),
        ("server_id: 1", "l: is a mapping, not a list of servers; write one entry"),
        ("hello", "l: is plain text, not a list of servers; write one entry"),
        ("- [", "l line 2: is no YAML: "),
        (
            "- server_id: 1\n  address: a\n  port: 1\n- hello",
            "l line 4: entry 2: is plain text, not a server; write 'server_id: N'",
        ),
        (
            "- server_id: 1\n  address: a",
            "l line 1: entry 1: port: is missing; add 'port: P'",
        ),
        (
            "- server_id: 1\n  address: a\n  port: 99999",
            "l line 3: entry 1: port: 99999 is not a port; give a number from 1 to 65535",
        ),
        (
            "- {server_id: 1, address: a, port: x}",
            "l line 1: entry 1: port: \"x\" is not a whole number; give a number from 1 to 65535",
        ),
        (
            "- server_id: 1\n  address: 0.0.0.0\n  port: 1",
            "l line 2: entry 1: address: \"0.0.0.0\" stands for every address of a machine",
        ),
        (
            "- server_id: 1\n  address: a\n  port: 1\n- server_id: 1\n  address: b\n  port: 1",
            "l line 4: entry 2: server_id: 1 is the server_id of entry 1 too; give each server a",
        ),
        (
            "- server_id: 1\n  address: a\n  port: 1\n- server_id: 2\n  address: A.\n  port: 1",
            "l line 5: entry 2: address: A.:1 is in entry 1 too; give each server an address and",
        ),
        (
            "- server_id: 1\n  address: ::1\n  port: 1\n- server_id: 2\n  address: '0::1'\n  port: 1",
            "l line 5: entry 2: address: [::1]:1 is in entry 1 too; give each server an address",
        ),
        (
            "- server_id: 1\n  server_id: 2\n  address: a\n  port: 1",
            "l line 2: entry 1: server_id: is given more than once; keep one of the lines",
        ),
        (
            "- server_id: 1\n  address: a\n  port: 1\n  cert_verify_str: CN=x",
            "l line 4: entry 1: cert_verify_str: \"CN=x\" is not a subject of the form /C=US/O=",
        ),
        (
            "- {server_id: 7, address: a, port: 1, cert_verify_str: /CN=x}\n\
             - {server_id: 8, address: b, port: 1, cert_verify_str: /CN=x}",
            "l line 2: entry 2: cert_verify_str: \"/CN=x\" is the subject of server_id 7 too, so \
             that server_id 8 could speak as that server; give each server a certificate with a",
        ),
        (
            "- server_id: 1\n  address: a\n  port: 1\n  cert_verify_str:",
            "l line 4: entry 1: cert_verify_str: is empty; give what 'openssl x509 ",
        ),
        (
            "- server_id: 1\n  address: a\n  port: 1\n  voter: no",
            "l line 4: entry 1: voter: \"no\" is neither true nor false; give false for a server that \
             is not to vote, or remove the line",
        ),
        (
            "- {server_id: 1, address: a, port: 1, voter: false}\n\
             - {server_id: 2, address: b, port: 1, voter: 'false'}",
            "l: has no server that votes, so that none could ever lead; remove 'voter: false' from",
        ),
    ] {
        let (parsed, problems) = parse_list(list, "l");
        assert!(!parsed.is_some_and(|l| l.usable), "{list}");
        let told = lines(&problems);
        assert_eq!(told.len(), 1, "{list}: {told:#?}");
        assert!(told[0].starts_with(expected), "{list}: {told:?}");
        assert!(problems[0].is_error());
    }
}

#[test]
fn an_entry_may_name_its_subject() {
    let text = format!("{LIST}  cert_verify_str: /CN=two\n");
    let (list, problems) = parse_list(&text, "l");
    assert_eq!(problems, []);
    let list = list.unwrap();
    assert_eq!(list.subject_of(ServerId(1)), None);
    assert_eq!(list.subject_of(ServerId(2)), Some("/CN=two"));
    assert!(!list.names_all_subjects());
    let one = LIST.lines().take(3).collect::<Vec<_>>().join("\n");
    let (list, _) = parse_list(&format!("{one}\n  cert_verify_str: /CN=one\n"), "l");
    assert!(list.unwrap().names_all_subjects());
    let of = |length: usize| {
        let name = "n".repeat(length - "/CN=".len());
        let (_, problems) = parse_list(&format!("{LIST}  cert_verify_str: /CN={name}\n"), "l");
        lines(&problems).concat()
    };
    assert_eq!(of(MAX_SUBJECT), "");
    assert!(of(MAX_SUBJECT + 1).contains("is longer than 512 bytes"), "{}", of(513));
}

#[test]
fn a_subject_that_several_servers_have_is_told_with_what_it_means() {
    let told = |common: &str, entries: &[&str]| {
        let conf = CONF.lines().filter(|line| !line.starts_with("cert_verify_str"));
        let conf: String = conf.map(|line| format!("{line}\n")).collect();
        let conf = parse_conf(&format!("{conf}cert_verify_str: {common}\n"), "c").0.unwrap();
        let entry = |(id, subject): (usize, &&str)| {
            if subject.is_empty() {
                format!("- {{server_id: {id}, address: a{id}, port: 1}}\n")
            } else {
                format!(
                    "- {{server_id: {id}, address: a{id}, port: 1, cert_verify_str: {subject}}}\n"
                )
            }
        };
        let list: String = (1..).zip(entries).map(entry).collect();
        let list = parse_list(&list, "l").0.unwrap();
        let spoilt = List { usable: false, ..list.clone() };
        assert_eq!(check_subjects(&conf, &spoilt), None, "there is more to be said of it");
        check_subjects(&conf, &list).map(|problem| (problem.is_note(), problem.to_string()))
    };
    let words = "have the certificate subject of cert_verify_str in c: whoever has the key of one \
                 of them can speak as any of them, even after that one was removed from the list; \
                 give each server a certificate with a subject of its own";
    let (is_note, line) = told("/CN=all", &["", "", ""]).unwrap();
    assert!(is_note && line.starts_with(&format!("l: all servers {words}")), "{line}");
    // Where some have one of their own it looks safer than it is.
    let (is_note, line) = told("/CN=all", &["/CN=one", "", ""]).unwrap();
    assert!(!is_note && line.starts_with(&format!("l: servers 2, 3 {words}")), "{line}");
    let (is_note, line) = told("/CN=one", &["/CN=one", ""]).unwrap();
    assert!(!is_note && line.starts_with(&format!("l: all servers {words}")), "{line}");
    // Each has one that no other has, or any certificate will do, which is told elsewhere.
    for (common, entries) in [
        ("/CN=all", &["/CN=one", "/CN=two"][..]),
        ("/CN=two", &["/CN=one", ""]),
        ("/CN=one", &["/CN=one", "/CN=two"]),
        ("/CN=all", &[""]),
        ("''", &["", ""]),
    ] {
        assert_eq!(told(common, entries), None, "{common} {entries:?}");
    }
}

#[test]
fn an_entry_says_whether_its_server_may_vote() {
    for (line, may) in [
        ("", true),
        ("voter: true", true),
        ("voter: false", false),
        ("voter: 'true'", true),
        ("voter: \"false\"", false),
    ] {
        let (list, problems) = parse_list(&format!("{LIST}  {line}\n"), "l");
        assert_eq!(lines(&problems), [""; 0], "{line}");
        let votes: Vec<bool> = list.unwrap().members.iter().map(|member| member.voter).collect();
        assert_eq!(votes, [true, may], "{line}");
    }
}

#[test]
fn an_unknown_field_of_an_entry_is_a_warning() {
    let text = format!("{LIST}  prot: 5\n  colour: red\n");
    let (list, problems) = parse_list(&text, "l");
    assert!(list.unwrap().usable);
    assert_eq!(
        lines(&problems),
        [
            "l line 7: entry 2: prot: is not a known name and has no effect; an entry has \
             server_id, address, port and, if need be, cert_verify_str and voter",
            "l line 8: entry 2: colour: is not a known name and has no effect; an entry has \
             server_id, address, port and, if need be, cert_verify_str and voter",
        ]
    );
    assert!(problems.iter().all(|p| !p.is_error()));
}

#[test]
fn this_server_has_to_be_in_the_list() {
    let (settings, problems) = settle(&conf_with("server_id", "server_id: 3"), LIST);
    assert!(settings.is_none());
    assert_eq!(
        lines(&problems),
        ["l: this server, server_id 3 of c, is not in the list; add an entry for it, or correct \
          server_id there"]
    );
    // Not when it may be one of the entries that were refused.
    let (_, problems) = settle(CONF, "- server_id: 1\n  address: a\n");
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn another_address_in_the_list_is_a_warning() {
    let (settings, problems) = settle(&conf_with("port", "port: 10009"), LIST);
    assert!(settings.is_some());
    assert_eq!(
        lines(&problems),
        ["l line 1: server_id 1: this server is listed here with 127.0.0.1:10001, but c says \
          127.0.0.1:10009; the other servers dial the list's; make both say the same"]
    );
    assert!(!problems[0].is_error());
}

#[test]
fn an_address_that_nobody_can_dial_is_an_error_of_the_list() {
    // The file of the server itself may have one; its entry is left out then, and says why.
    for address in ["254.0.0.1", "0.0.0.0", "224.0.0.1", "'fe80::1'"] {
        let line = format!("address: {address}");
        let (conf, problems) = parse_conf(&conf_with("address", &line), "c");
        assert_eq!(problems, [], "{address}");
        assert!(conf.unwrap().usable, "{address}");
        let list = LIST.replacen("address: 127.0.0.1", &line, 1);
        let (settings, problems) = settle(&conf_with("address", &line), &list);
        assert!(settings.is_none(), "{address}");
        let lines = lines(&problems);
        assert!(
            lines.len() == 1 && lines[0].starts_with("l line 2: entry 1: address: "),
            "{lines:?}"
        );
        assert!(problems[0].is_error(), "{lines:?}");
    }
}

#[test]
fn auto_leaves_a_field_to_the_list() {
    let auto = CONF.replace("server_id: 1", "server_id: auto").replace("10001", "auto");
    let (conf, problems) = parse_conf(&auto.replace("127.0.0.1", "auto"), "c");
    assert_eq!(problems, []);
    let mut conf = conf.unwrap();
    assert!(conf.is_auto());
    assert_eq!((conf.server_id, &conf.address, conf.port), (None, &None, None));
    let list = parse_list(&LIST.replacen("127.0.0.1", "ats.example", 1), "l").0.unwrap();
    let own = Oneself { has_name: &|_| false, is_at: &|address| address == "ats.example" };
    assert_eq!(conf.find_itself(&list, &own), None);
    let paths = [(); 3].map(|()| PathBuf::from("pem"));
    let [root_cert_file, server_cert_file, server_key_file] = paths;
    let paths = Paths { root_cert_file, server_cert_file, server_key_file };
    let settings = conf.settle(list, paths).unwrap();
    assert_eq!(settings.server_id, ServerId(1));
    assert_eq!((settings.address.as_str(), settings.port), ("ats.example", 10001));

    let (conf, _) = parse_conf(CONF, "c");
    assert!(!conf.unwrap().is_auto());
    let second = CONF.replace("server_id: 1", "server_id: 2").replace("127.0.0.1", "auto");
    let mut conf = parse_conf(&second, "c").0.unwrap();
    let list = parse_list(&LIST.replacen("127.0.0.1", "first.example", 1), "l").0.unwrap();
    assert_eq!(conf.find_itself(&list, &own), None);
    assert_eq!(conf.address.as_deref(), Some("127.0.0.1"), "the number is its own, whatever fits");
}

#[test]
fn ranges_are_told_with_their_unit() {
    let of = |name| ConfigOption::named(name).and_then(ConfigOption::range);
    for (name, range) in [
        ("heart_beat_interval", Some("1-3600000 ms")),
        ("key_update_interval", Some("1-2147483647 s")),
        ("reserved_log_items", Some("0-1000000")),
        ("ticket_scope", None),
    ] {
        assert_eq!(of(name).as_deref(), range, "{name}");
    }
}

#[test]
fn names_entries_and_problems_are_bounded() {
    let many: String = (0..101).map(|n| format!("option_{n}: 1\n")).collect();
    let (_, problems) = parse_conf(&many, "c");
    assert!(problems[0].to_string().starts_with("c line 1: has 101 names, more than 100; "));

    let server = |n: usize| format!("- server_id: {n}\n  address: a{n}\n  port: 1\n");
    let most: String = (0..MAX_MEMBERS).map(server).collect();
    let (list, problems) = parse_list(&most, "l");
    assert_eq!(problems, []);
    assert_eq!(list.unwrap().members.len(), MAX_MEMBERS);
    let (list, problems) = parse_list(&(most + &server(MAX_MEMBERS)), "l");
    assert!(list.is_none());
    assert!(problems[0].to_string().starts_with("l: has 1001 servers, more than 1000; "));

    let wrong = "- server_id: 1\n  colour: 1\n  port: x\n".repeat(MAX_MEMBERS);
    let (_, problems) = parse_list(&wrong, "l");
    assert_eq!(problems.len(), MAX_PROBLEMS);
    assert!(problems.iter().all(Problem::is_error), "errors are kept before warnings");
    let last = problems.last().map(ToString::to_string).unwrap_or_default();
    // Of each entry but the first: its id again, its port, no address; of the first two; and the colours.
    let more = 3 * (MAX_MEMBERS - 1) + 2 + MAX_MEMBERS - (MAX_PROBLEMS - 1);
    assert!(last.contains(&format!(": has {more} more faults like those above; ")), "{last}");

    let strange = |n| server(n) + "  colour: 1\n";
    let (_, problems) = parse_list(&(0..=MAX_PROBLEMS).map(strange).collect::<String>(), "l");
    assert_eq!(problems.len(), MAX_PROBLEMS);
    assert!(!problems.iter().any(Problem::is_error), "what stands for warnings is one");
}

#[test]
fn as_many_names_and_problems_as_the_bounds_say_are_told_as_they_are() {
    let names = |count| -> String { (0..count).map(|n| format!("option_{n}: 1\n")).collect() };
    let (_, problems) = parse_conf(&names(100), "c");
    assert!(problems.iter().all(|p| !p.reason.contains("names")), "{problems:?}");

    let entry = |n| format!("- server_id: {n}\n  colour: 1\n  address: a\n  port: x\n");
    let list: String = (0..MAX_PROBLEMS / 2).map(entry).collect();
    let (_, problems) = parse_list(&list, "l");
    assert_eq!(problems.len(), MAX_PROBLEMS);
    let errors: Vec<bool> = problems.iter().map(Problem::is_error).collect();
    assert_eq!(errors, [false, true].repeat(MAX_PROBLEMS / 2), "in the order of the file");
}

#[test]
fn a_subject_begins_with_a_name_or_an_object_identifier() {
    for subject in ["/CN=x", "/2.5.4.3=x", "/SN-1=x"] {
        let (settings, problems) = settings_with(&format!("cert_verify_str: {subject}"));
        assert_eq!((settings.cert_verify_str.as_str(), problems.len()), (subject, 0));
    }
    for subject in ["/=x", "/C N=x", "/C_N=x"] {
        let conf = conf_with("cert_verify_str", &format!("cert_verify_str: {subject}"));
        assert_eq!(settle(&conf, LIST).0, None, "{subject}");
    }
}

#[test]
fn only_a_warning_about_the_subject_of_this_very_file_is_an_open_door() {
    let (conf, problems) = parse_conf(&conf_with("cert_verify_str", ""), "c");
    let conf = conf.unwrap();
    assert!(conf.is_open_door(&problems[0]));
    assert!(!conf.is_open_door(&conf.error("cert_verify_str", "is wrong", "correct it")));
    assert!(!conf.is_open_door(&conf.warning("port", "is odd", "change it")));
    let elsewhere = Problem { file: "other".to_owned(), ..problems[0].clone() };
    assert!(!conf.is_open_door(&elsewhere));
}

#[test]
fn those_who_read_more_complain_at_the_line_of_the_option_or_entry() {
    let conf = parse_conf(CONF, "c").0.unwrap();
    let problem = conf.error("port", "is taken", "take another");
    assert_eq!(problem.to_string(), "c line 3: port: is taken; take another");
    assert!(problem.is_error() && !conf.warning("port", "is taken", "").is_error());
    let list = parse_list(LIST, "l").0.unwrap();
    let problem = list.error(ServerId(2), "address", "is unknown", "correct it");
    assert_eq!(problem.to_string(), "l line 4: server_id 2: address: is unknown; correct it");
}

#[test]
fn what_changed_is_named_with_when_it_counts() {
    let (old, _) = settings_with("ticket_keys: 2");
    assert!(changes(&old, &old).is_empty());
    let new = Settings {
        workers: old.workers + 1,
        key_update_interval: old.key_update_interval * 2,
        ticket_scope: TicketScope::Host,
        members: Vec::new(),
        ..old.clone()
    };
    let told: Vec<_> = changes(&old, &new).iter().map(|o| (o.name, o.change)).collect();
    let expected = [
        ("asio_thread_pool_size", Change::AtRestart),
        ("key_update_interval", Change::AtReload),
        ("server_list_file", Change::AtReload),
        ("ticket_scope", Change::AtRestart),
    ];
    assert_eq!(told, expected);
}

/// Each row compares the field that it reads, and only what servers need alike is in their text.
#[test]
fn each_option_that_differs_is_seen() {
    let (usual, _) = settle(CONF, LIST);
    let usual = usual.unwrap();
    let lines = [
        ("server_id: 2", false),
        ("address: 127.0.0.2", false),
        ("port: 10009", false),
        ("asio_thread_pool_size: 7", false),
        ("heart_beat_interval: 50", true),
        ("election_timeout_lower_bound: 300", true),
        ("election_timeout_upper_bound: 800", true),
        ("reserved_log_items: 0", true),
        ("snapshot_distance: 9", true),
        ("client_req_timeout: 250", true),
        ("key_update_interval: 16", true),
        ("root_cert_file: other", false),
        ("server_cert_file: other", false),
        ("server_key_file: other", false),
        ("cert_verify_str: /CN=other", true),
        ("bind_address: '::'", false),
        ("handover_timeout: 700", true),
        ("startup_wait: 0", true),
        ("ticket_keys: 16", true),
        ("max_key_age: 15", true),
        ("state_dir: /run/stek_share", false),
        ("ticket_scope: host", false),
        ("share_sessions: true", true),
    ];
    // A list is a file of its own.
    let tried = lines.iter().map(|(line, _)| line.split(':').next().unwrap());
    let named = OPTIONS.iter().map(|option| option.name).filter(|name| *name != "server_list_file");
    assert_eq!(tried.collect::<BTreeSet<_>>(), named.collect());
    for (line, seen) in lines {
        let (other, _) = settings_with(line);
        let changed: Vec<_> = changes(&usual, &other).iter().map(|o| o.name).collect();
        assert_eq!(changed, [line.split(':').next().unwrap()]);
        assert_eq!(alike(&usual) != alike(&other), seen, "{line}");
    }
    let mut other = usual.clone();
    other.members.pop();
    assert_eq!(changes(&usual, &other)[0].name, "server_list_file");
    assert_eq!(alike(&usual), alike(&other), "the list has a digest of its own");
}

#[test]
fn defaults_are_what_a_file_without_them_gets() {
    let (usual, _) = settle(CONF, LIST);
    let usual = usual.unwrap();
    let given: Vec<_> =
        changes(&usual, &Settings::defaults()).iter().map(|option| option.name).collect();
    let named: Vec<_> = OPTIONS.iter().map(|option| option.name).collect();
    let said = |name: &&&str| CONF.lines().any(|line| line.starts_with(&format!("{name}:")));
    assert_eq!(given, named.iter().filter(said).copied().collect::<Vec<_>>());
}

#[test]
fn an_address_of_every_machine_is_a_warning_beside_real_ones() {
    let told = |list: &str| {
        let problem = check_loopback(&parse_list(list, "l").0.unwrap());
        problem.map(|problem| (problem.is_error(), problem.to_string()))
    };
    assert_eq!(told(LIST), None, "all of one machine");
    for (address, means) in [
        ("127.8.0.1", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("LOCALHOST.", true),
        ("a.localhost", true),
        ("localhost.example", false),
        ("10.0.0.1", false),
    ] {
        let list = format!(
            "- {{server_id: 7, address: 10.0.0.7, port: 1}}\n\
             - {{server_id: 8, address: '{address}', port: 1}}\n"
        );
        let found = told(&list);
        assert_eq!(found.is_some(), means, "{address}");
        if let Some((is_error, line)) = found {
            assert!(!is_error && line.contains("means each machine itself"), "{line}");
        }
        let mut spoilt = parse_list(&list, "l").0.unwrap();
        spoilt.usable = false;
        assert_eq!(check_loopback(&spoilt), None, "there is more to be said of it");
    }
}

#[test]
fn an_interval_that_is_of_no_use_to_clients_is_a_note() {
    let told = |interval: u32, keys: u32| {
        let conf =
            CONF.replace("key_update_interval: 15", &format!("key_update_interval: {interval}"));
        let mut conf = parse_conf(&format!("{conf}ticket_keys: {keys}\n"), "c").0.unwrap();
        let problem = check_interval(&conf);
        conf.usable = false;
        assert_eq!(check_interval(&conf), None, "there is more to be said of it");
        problem.map(|problem| (problem.is_note(), problem.to_string()))
    };
    let (is_note, line) = told(59, 2).unwrap();
    assert!(
        is_note && line.contains("sure to resume for 59 s only, with ticket_keys at 2"),
        "{line}"
    );
    assert_eq!((told(60, 2), told(20, 4)), (None, None));
    assert!(told(19, 4).is_some_and(|(_, line)| line.contains("for 57 s only")));
}
