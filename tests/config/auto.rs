//! `auto`: one configuration for all servers, each of which finds itself in the list.

use testkit::pki::{Authority, Request};

use super::*;

/// The same on every server.
const ONE_FOR_ALL: &str = "\
server_id: auto
address: auto
port: auto
key_update_interval: 15
server_list_file: list.yaml
root_cert_file: root.pem
server_cert_file: cert.pem
server_key_file: key.pem
";

/// Three servers by their certificates' names, whose addresses are this machine's.
const NAMED: &str = "\
- {server_id: 4, address: 127.0.0.1, port: 10001, cert_verify_str: /CN=four}
- {server_id: 5, address: 127.0.0.1, port: 10002, cert_verify_str: 'DNS:Five.Example'}
- {server_id: 6, address: 127.0.0.1, port: 10003, cert_verify_str: 'URI:spiffe://example.org/six'}
";

fn site(list: &str) -> Site {
    let site = Site::new();
    site.write("server_conf.yaml", ONE_FOR_ALL);
    site.write("list.yaml", list);
    site
}

/// Gives a certificate of a new authority.
fn hold(site: &Site, subject: &str, names: &[&str]) {
    let authority = Authority::new("/CN=root").unwrap();
    let identity = authority.issue(&Request::new(subject).names(names)).unwrap();
    site.write("root.pem", authority.identity.certificate.to_pem().unwrap());
    site.write("cert.pem", identity.certificate.to_pem().unwrap());
    site.write("key.pem", identity.key.private_key_to_pem_pkcs8().unwrap());
}

#[test]
fn a_server_finds_itself_by_a_name_of_its_certificate() {
    let site = site(NAMED);
    for (subject, names, id, port) in [
        ("/CN=four", &[][..], 4, 10001),
        ("/CN=x", &["five.example", "six.example"], 5, 10002),
        ("/CN=x", &["URI:spiffe://example.org/six"], 6, 10003),
    ] {
        hold(&site, subject, names);
        let loaded = site.load().unwrap();
        let settings = loaded.settings;
        assert_eq!((settings.server_id, settings.port), (ServerId(id), port));
        assert_eq!(settings.address, "127.0.0.1");
        assert_eq!(site.lines(&loaded.warnings), [""; 0]);
    }
}

/// An address that is this machine's, or one that the certificate is made out to. An entry that
/// demands a name which the certificate has not is another server's, wherever it is.
#[test]
fn a_server_finds_itself_by_its_address() {
    let entry = |id: u32, rest: &str| format!("- {{server_id: {id}, port: 10001, {rest}}}\n");
    // 192.0.2.0/24 (RFC 5737) is nobody's.
    let other = entry(1, "address: 192.0.2.1");
    for (own, names) in [
        ("address: 127.0.0.1", &[][..]),
        ("address: '::1'", &[]),
        ("address: 192.0.2.9", &["192.0.2.9"]),
        ("address: ats-2.ats.example", &["Ats-2.ats.example"]),
    ] {
        let site = site(&(other.clone() + &entry(2, own)));
        site.edit("server_conf.yaml", "key_update", "cert_verify_str: /CN=all\nkey_update");
        hold(&site, "/CN=all", names);
        assert_eq!(site.load().unwrap().settings.server_id, ServerId(2), "{own}");
    }
    let site = site(&(other + &entry(2, "address: 127.0.0.1, cert_verify_str: /CN=two")));
    hold(&site, "/CN=one", &[]);
    let refused = site.load().unwrap_err();
    let told = site.lines(&refused.problems);
    assert!(told.iter().any(|line| line.contains("finds this server in no entry")), "{told:?}");
}

#[test]
fn who_finds_no_or_several_entries_is_told_what_to_do() {
    let site = site(NAMED);
    hold(&site, "/CN=seven", &[]);
    let remedy =
        "give this server's number in the list, or make an entry's address this machine's, \
                  or its cert_verify_str a name of server_cert_file";
    let alone = |site: &Site| match &*site.lines(&site.load().unwrap_err().problems) {
        [line] => line.clone(),
        lines => panic!("{lines:?}"),
    };
    assert_eq!(
        alone(&site),
        format!(
            "TOP/config/server_conf.yaml line 1: server_id: auto finds this server in no entry of \
             \"TOP/config/list.yaml\": none has a cert_verify_str that its certificate has, or an \
             address of this machine; {remedy}"
        )
    );
    hold(&site, "/CN=four", &["URI:spiffe://example.org/six"]);
    assert_eq!(
        alone(&site),
        format!(
            "TOP/config/server_conf.yaml line 1: server_id: auto finds this server in several \
             entries of \"TOP/config/list.yaml\", server_id 4 and 6; {remedy}"
        )
    );
    // A number that is given counts, and the rest is its entry's.
    site.edit("server_conf.yaml", "server_id: auto", "server_id: 6");
    let settings = site.load().unwrap().settings;
    assert_eq!((settings.server_id, settings.port), (ServerId(6), 10003));
    // In the list itself the word is nothing.
    site.edit("list.yaml", "server_id: 4", "server_id: auto");
    assert!(alone(&site).contains("entry 1: server_id: \"auto\" is not a whole number"));
}

#[test]
fn names_of_certificates_have_a_form() {
    let told = |name: &str| {
        let list = format!("- {{server_id: 1, address: a, port: 1, cert_verify_str: '{name}'}}\n");
        let (list, problems) = parse_list(&list, "l");
        let member = list.and_then(|list| list.members.into_iter().next());
        member.and_then(|m| m.subject).ok_or_else(|| problems[0].to_string())
    };
    for (name, kept) in [
        ("/C=US/CN=x", "/C=US/CN=x"),
        ("DNS:ATS-1.Example.", "DNS:ats-1.example"),
        ("URI:spiffe://example.org/Edge/1", "URI:spiffe://example.org/Edge/1"),
    ] {
        assert_eq!(told(name).as_deref(), Ok(kept));
    }
    for name in
        ["DNS:", "DNS:*.example", "DNS:10.0.0.1", "DNS:a b", "URI:", "URI:x", "URI:1:x", "CN=x"]
    {
        let why = told(name).unwrap_err();
        assert!(why.contains("nor DNS:name nor URI:spiffe://domain/path; give what "), "{why}");
    }
}
