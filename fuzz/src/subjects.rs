//! Names of certificates, and their comparison with `cert_verify_str`: subjects, and alternative names.

use std::sync::OnceLock;

use openssl::x509::{X509Name, X509Ref, X509};
use stek_share::core::config::Member;
use stek_share::core::server_id::ServerId;
use stek_share::transport::names::Names;
use stek_share::transport::one_line;
use stek_share::transport::tls::Tls;

use crate::seeds::{identity, DNS, SUBJECT, URI};

/// The subject of server 2's entry.
const TWO: &str = "/CN=two";

/// The most alternative names of a certificate that are looked at.
const MAX_NAMES: usize = 100;

fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| {
        let (certificate, key) = identity(SUBJECT);
        let tls = Tls::from_pem(&certificate, &certificate, &key, SUBJECT).expect("it is good");
        let dns = format!("DNS:{DNS}");
        let uri = format!("URI:{URI}");
        let members =
            [(2, TWO), (3, dns.as_str()), (4, uri.as_str())].map(|(id, subject)| Member {
                id: ServerId(id),
                address: "localhost".to_owned(),
                port: 1,
                subject: Some(subject.to_owned()),
                voter: true,
            });
        tls.with_members(&members)
    })
}

/// A name in DER, a certificate in DER, or text: only the very names that were asked for are
/// accepted, each for its own server, and the line about any other is printable.
pub fn compare(bytes: &[u8]) {
    if let Ok(name) = X509Name::from_der(bytes) {
        accept_only_ours(&Names::from(one_line(&name).as_str()), (false, false));
    }
    if let Ok(certificate) = X509::from_der(bytes) {
        accept_only_ours(&Names::of(&certificate), alternative(&certificate));
    }
    // No other text is a subject.
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.starts_with('/'));
    if let Some(text) = text {
        let names = Names::from(text);
        assert_eq!(tls().names_match(&names), text == SUBJECT || text == TWO);
        assert_eq!(tls().is_of(ServerId(1), &names), text == SUBJECT);
        assert_eq!(tls().is_of(ServerId(2), &names), text == TWO);
        assert!(!tls().is_of(ServerId(3), &names) && !tls().is_of(ServerId(4), &names));
    }
}

/// Whether a certificate has the DNS name of server 3, and the URI of server 4: the whole name, a DNS
/// name in any letters and with or without the root's dot.
fn alternative(certificate: &X509Ref) -> (bool, bool) {
    let all = certificate.subject_alt_names();
    let (mut dns, mut uri) = (false, false);
    for name in all.iter().flatten().take(MAX_NAMES) {
        let is_dns = |name: &str| {
            name.eq_ignore_ascii_case(DNS) || name.eq_ignore_ascii_case(&format!("{DNS}."))
        };
        dns |= name.dnsname().is_some_and(is_dns);
        uri |= name.uri() == Some(URI);
    }
    (dns, uri)
}

fn accept_only_ours(names: &Names, (dns, uri): (bool, bool)) {
    let line = names.to_string();
    assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line:?}");
    let subject = names.subject();
    let is_ours = [subject == SUBJECT, subject == TWO, dns, uri];
    assert_eq!(tls().names_match(names), is_ours.contains(&true));
    for (id, is_ours) in (1..).zip(is_ours) {
        assert_eq!(tls().is_of(ServerId(id), names), is_ours, "server {id}");
    }
}
