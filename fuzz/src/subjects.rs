//! Names of certificates, and their comparison with `cert_verify_str`.

use std::sync::OnceLock;

use openssl::x509::{X509Name, X509};
use stek_share::core::config::Member;
use stek_share::core::server_id::ServerId;
use stek_share::transport::names::Names;
use stek_share::transport::one_line;
use stek_share::transport::tls::Tls;

use crate::seeds::{identity, SUBJECT};

fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| {
        let (certificate, key) = identity(SUBJECT);
        let tls = Tls::from_pem(&certificate, &certificate, &key, SUBJECT).expect("it is good");
        let own = Member {
            id: ServerId(2),
            address: "localhost".to_owned(),
            port: 1,
            subject: Some("/CN=two".to_owned()),
        };
        tls.with_members(&[own])
    })
}

/// A name in DER, a certificate in DER, or text: only the very subjects that were asked for are
/// accepted, each for its own server, and the line about any other is printable.
pub fn compare(bytes: &[u8]) {
    if let Ok(name) = X509Name::from_der(bytes) {
        accept_only_ours(&Names::from(one_line(&name).as_str()));
    }
    if let Ok(certificate) = X509::from_der(bytes) {
        accept_only_ours(&Names::of(&certificate));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let names = Names::from(text);
        assert_eq!(tls().names_match(&names), text == SUBJECT || text == "/CN=two");
        assert_eq!(tls().is_of(ServerId(1), &names), text == SUBJECT);
        assert_eq!(tls().is_of(ServerId(2), &names), text == "/CN=two");
    }
}

fn accept_only_ours(names: &Names) {
    let line = names.to_string();
    assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line:?}");
    let subject = names.subject();
    assert_eq!(tls().names_match(names), subject == SUBJECT || subject == "/CN=two");
    assert!(!(tls().is_of(ServerId(1), names) && tls().is_of(ServerId(2), names)));
}
