//! By what names a certificate tells who holds it: its subject, and those alternative names by which
//! servers can be told (RFC 5280, section 4.2.1.6): DNS names, URIs such as SPIFFE's, and addresses.
//!
//! Which name is wanted is for others to say. Invariants: a name is held by equality alone, so that a
//! wildcard stands for nothing; a name that is no printable ASCII is none, so that it can be shown; a
//! subject never equals an alternative name, since it begins with a slash.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use openssl::x509::{X509Ref, X509};

use super::x509_name::one_line;
use crate::core::config::MAX_SUBJECT;

/// The most alternative names of a certificate that are looked at; more are of no use to a server.
const MAX_NAMES: usize = 100;

/// See the module's head. Cloning makes another handle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(Arc<Inner>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Inner {
    subject: String,
    /// `DNS:name` in lower case, `URI:uri`, `IP:address`.
    alternative: Vec<String>,
}

impl Names {
    /// Those of a certificate.
    pub fn of(certificate: &X509Ref) -> Names {
        let names = certificate.subject_alt_names();
        let alternative = names.iter().flatten().take(MAX_NAMES).filter_map(|name| {
            if let Some(name) = name.dnsname() {
                let name = name.strip_suffix('.').unwrap_or(name);
                return Some(format!("DNS:{}", name.to_ascii_lowercase()));
            }
            name.uri().map(|uri| format!("URI:{uri}")).or_else(|| {
                let bytes = name.ipaddress()?;
                let address = <[u8; 4]>::try_from(bytes)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
                address.ok().map(|address| format!("IP:{address}"))
            })
        });
        // A longer one can be wanted by nobody, nor one that a line of a log could not show.
        let is_plain = |name: &String| {
            name.len() <= MAX_SUBJECT && name.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let alternative = alternative.filter(is_plain).collect();
        Names(Arc::new(Inner { subject: one_line(certificate.subject_name()), alternative }))
    }

    /// Those of the first certificate of a PEM text.
    pub fn of_pem(pem: &[u8]) -> Option<Names> {
        X509::from_pem(pem).ok().map(|certificate| Names::of(&certificate))
    }

    /// The subject in the one-line form.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// Whether `wanted`, as `cert_verify_str` has it, is one of them.
    pub fn has(&self, wanted: &str) -> bool {
        wanted == self.0.subject || self.0.alternative.iter().any(|name| name == wanted)
    }

    /// Whether the certificate was made out to this address or host name.
    pub fn has_address(&self, address: &str) -> bool {
        let kind = if address.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
        let name = address.strip_suffix('.').unwrap_or(address).to_ascii_lowercase();
        self.0.alternative.contains(&format!("{kind}:{name}"))
    }
}

/// A subject alone.
impl From<&str> for Names {
    fn from(subject: &str) -> Names {
        Names(Arc::new(Inner { subject: subject.to_owned(), alternative: Vec::new() }))
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.0.alternative.iter().filter(|name| !name.starts_with("IP:"));
        let told: Vec<&str> = told.map(String::as_str).collect();
        match (self.0.subject.as_str(), told.as_slice()) {
            (subject, []) => f.write_str(subject),
            ("", told) => f.write_str(&told.join(", ")),
            (subject, told) => write!(f, "{subject} ({})", told.join(", ")),
        }
    }
}
