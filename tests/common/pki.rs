//! Certificates for tests, made on the spot: roots, leaves, and the ways in which they can be bad.

use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, ExtendedKeyUsage, SubjectAlternativeName};
use openssl::x509::{X509Name, X509NameBuilder, X509};

/// The subject of every good leaf here.
pub const SUBJECT: &str = "/C=US/ST=IL/O=Yahoo/OU=Edge/CN=stek-share";

/// A certificate with its key.
#[derive(Clone)]
pub struct Identity {
    pub cert: X509,
    pub key: PKey<Private>,
}

impl Identity {
    pub fn cert_pem(&self) -> Vec<u8> {
        self.cert.to_pem().unwrap()
    }

    pub fn key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8().unwrap()
    }
}

/// What to make.
#[derive(Clone)]
pub struct Spec<'a> {
    pub subject: &'a str,
    pub issuer: Option<&'a Identity>,
    pub is_ca: bool,
    pub usage: Option<&'a str>,
    /// Alternative names, as `DNS:name` or `URI:uri`.
    pub names: &'a [&'a str],
    /// Seconds from now.
    pub not_before: i64,
    pub not_after: i64,
}

impl Default for Spec<'_> {
    fn default() -> Self {
        Spec {
            subject: SUBJECT,
            issuer: None,
            is_ca: false,
            usage: None,
            names: &[],
            not_before: -3600,
            not_after: 86_400,
        }
    }
}

impl Spec<'_> {
    pub fn make(&self) -> Identity {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut cert = X509::builder().unwrap();
        cert.set_version(2).unwrap();
        let mut serial = BigNum::new().unwrap();
        serial.rand(120, MsbOption::MAYBE_ZERO, false).unwrap();
        cert.set_serial_number(&Asn1Integer::from_bn(&serial).unwrap()).unwrap();
        let subject = name(self.subject);
        cert.set_subject_name(&subject).unwrap();
        let issuer = self.issuer.map_or(&*subject, |issuer| issuer.cert.subject_name());
        cert.set_issuer_name(issuer).unwrap();
        cert.set_pubkey(&key).unwrap();
        cert.set_not_before(&from_now(self.not_before)).unwrap();
        cert.set_not_after(&from_now(self.not_after)).unwrap();
        if self.is_ca {
            cert.append_extension(BasicConstraints::new().critical().ca().build().unwrap())
                .unwrap();
        }
        if let Some(usage) = self.usage {
            cert.append_extension(ExtendedKeyUsage::new().other(usage).build().unwrap()).unwrap();
        }
        if !self.names.is_empty() {
            let mut names = SubjectAlternativeName::new();
            for name in self.names {
                match name.split_once(':').unwrap() {
                    ("DNS", name) => names.dns(name),
                    (_, uri) => names.uri(uri),
                };
            }
            let names = names.build(&cert.x509v3_context(None, None)).unwrap();
            cert.append_extension(names).unwrap();
        }
        let signer = self.issuer.map_or(&key, |issuer| &issuer.key);
        cert.sign(signer, MessageDigest::sha256()).unwrap();
        Identity { cert: cert.build(), key }
    }
}

/// A root with this common name.
pub fn root(name: &str) -> Identity {
    Spec { subject: &format!("/CN={name}"), is_ca: true, ..Spec::default() }.make()
}

/// A good leaf of `root`.
pub fn leaf(root: &Identity) -> Identity {
    Spec { issuer: Some(root), ..Spec::default() }.make()
}

fn name(line: &str) -> X509Name {
    let mut name = X509NameBuilder::new().unwrap();
    for part in line.split('/').filter(|part| !part.is_empty()) {
        let (field, value) = part.split_once('=').unwrap();
        name.append_entry_by_text(field, value).unwrap();
    }
    name.build()
}

fn from_now(seconds: i64) -> Asn1Time {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Asn1Time::from_unix(i64::try_from(now.as_secs()).unwrap() + seconds).unwrap()
}
