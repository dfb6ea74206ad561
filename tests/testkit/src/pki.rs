//! Authorities and certificates for tests, good ones and each kind of bad one.
//!
//! Keys are EC P-256, because they are made in no time, unless RSA is asked for. Subjects are written in OpenSSL's one-line
//! form, `/C=US/ST=IL/O=Yahoo/OU=Edge/CN=server-1`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use openssl::x509::{X509Builder, X509Name, X509NameRef, X509};

use crate::{Context, Error, Result};

/// One hour in seconds: how far bad certificates miss the present.
const HOUR: i64 = 3600;
/// One day in seconds.
const DAY: i64 = 24 * HOUR;
/// How far certificates reach into the past, in seconds: a wall clock may be set back by hours.
const GOOD_SINCE: i64 = DAY;
/// How long certificates are good, in seconds: one that expires soon is worth a warning.
const GOOD_FOR: i64 = 365 * DAY;

/// What a certificate may be used for (RFC 5280, section 4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// serverAuth.
    Server,
    /// clientAuth.
    Client,
    /// codeSigning: useless for TLS.
    CodeSigning,
}

/// What to put into a certificate.
#[derive(Clone, Debug)]
pub struct Request {
    subject: String,
    purposes: Vec<Purpose>,
    names: Vec<String>,
    from: i64,
    to: i64,
    is_rsa: bool,
    curve: Nid,
}

impl Request {
    /// Good from an hour ago for a year, for server and client, for localhost and 127.0.0.1.
    pub fn new(subject: &str) -> Self {
        Self {
            subject: subject.into(),
            purposes: vec![Purpose::Server, Purpose::Client],
            names: vec!["localhost".into(), "127.0.0.1".into()],
            from: -GOOD_SINCE,
            to: GOOD_FOR,
            is_rsa: false,
            curve: Nid::X9_62_PRIME256V1,
        }
    }

    /// These purposes only; none means no extendedKeyUsage extension, which allows all.
    pub fn purposes(mut self, purposes: &[Purpose]) -> Self {
        self.purposes = purposes.to_vec();
        self
    }

    /// These alternative names only, host names, IP addresses, or URIs behind `URI:`.
    pub fn names(mut self, names: &[&str]) -> Self {
        self.names = names.iter().map(ToString::to_string).collect();
        self
    }

    /// Good from `from` to `to`, in seconds from now.
    pub fn valid(mut self, from: i64, to: i64) -> Self {
        (self.from, self.to) = (from, to);
        self
    }

    /// With a key of RSA, 2048 bits, as most servers have: it signs twenty times as slowly.
    pub fn rsa(mut self) -> Self {
        self.is_rsa = true;
        self
    }

    /// With a key on this curve instead of P-256.
    pub fn curve(mut self, curve: Nid) -> Self {
        self.curve = curve;
        self
    }

    /// Out of date since an hour.
    pub fn expired(self) -> Self {
        self.valid(-DAY, -HOUR)
    }

    /// Good only from an hour on.
    pub fn not_yet_valid(self) -> Self {
        self.valid(HOUR, GOOD_FOR)
    }
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: X509,
    /// Its private key.
    pub key: PKey<Private>,
}

/// Where an [`Identity`] was written.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate in PEM.
    pub certificate: PathBuf,
    /// The private key in PEM, mode 0600.
    pub key: PathBuf,
}

impl Identity {
    /// One certificate that is its own root, as `openssl req -x509` makes it: CA:TRUE, no purpose.
    ///
    /// # Errors
    /// When the subject is malformed.
    pub fn self_signed(subject: &str) -> Result<Self> {
        let key = new_key()?;
        let name = parse_subject(subject)?;
        let mut builder = start(&name, &name, &key, -GOOD_SINCE, GOOD_FOR)?;
        builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
        builder.sign(&key, MessageDigest::sha256())?;
        Ok(Self { certificate: builder.build(), key })
    }

    /// Writes `NAME.pem` and `NAME.key` into `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<Files> {
        let files = Files {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        fs::write(&files.certificate, self.certificate.to_pem()?)
            .context(files.certificate.display())?;
        write_private(&files.key, &self.key.private_key_to_pem_pkcs8()?)?;
        Ok(files)
    }
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .context(path.display())
}

/// A certificate authority. A second one with the same subject is a foreign one: only the key
/// tells them apart.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Its own certificate and key.
    pub identity: Identity,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// When the subject is malformed.
    pub fn new(subject: &str) -> Result<Self> {
        let key = new_key()?;
        let name = parse_subject(subject)?;
        let mut builder = start(&name, &name, &key, -GOOD_SINCE, GOOD_FOR)?;
        builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
        let usage = KeyUsage::new().critical().key_cert_sign().crl_sign().build()?;
        builder.append_extension(usage)?;
        builder.sign(&key, MessageDigest::sha256())?;
        Ok(Self { identity: Identity { certificate: builder.build(), key } })
    }

    /// The one that was written as `NAME.pem` and `NAME.key` into `dir`.
    ///
    /// # Errors
    /// When a file is not there or is no PEM.
    pub fn read(dir: &Path, name: &str) -> Result<Self> {
        let read = |end: &str| {
            let file = dir.join(format!("{name}.{end}"));
            fs::read(&file).context(file.display())
        };
        let certificate = X509::from_pem(&read("pem")?)?;
        let key = PKey::private_key_from_pem(&read("key")?)?;
        Ok(Self { identity: Identity { certificate, key } })
    }

    /// Issues a certificate with a new key.
    ///
    /// # Errors
    /// When the request is malformed.
    pub fn issue(&self, request: &Request) -> Result<Identity> {
        let key = if request.is_rsa {
            PKey::from_rsa(Rsa::generate(2048)?)?
        } else {
            key_on(request.curve)?
        };
        let subject = parse_subject(&request.subject)?;
        let issuer = self.identity.certificate.subject_name();
        let mut builder = start(&subject, issuer, &key, request.from, request.to)?;
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
        if !request.purposes.is_empty() {
            let mut extension = ExtendedKeyUsage::new();
            for purpose in &request.purposes {
                match purpose {
                    Purpose::Server => extension.server_auth(),
                    Purpose::Client => extension.client_auth(),
                    Purpose::CodeSigning => extension.code_signing(),
                };
            }
            builder.append_extension(extension.build()?)?;
        }
        if !request.names.is_empty() {
            let mut extension = SubjectAlternativeName::new();
            for name in &request.names {
                match (name.strip_prefix("URI:"), name.parse::<std::net::IpAddr>()) {
                    (Some(uri), _) => extension.uri(uri),
                    (None, Ok(_)) => extension.ip(name),
                    (None, Err(_)) => extension.dns(name),
                };
            }
            let names = extension.build(&builder.x509v3_context(None, None))?;
            builder.append_extension(names)?;
        }
        builder.sign(&self.identity.key, MessageDigest::sha256())?;
        Ok(Identity { certificate: builder.build(), key })
    }
}

fn new_key() -> Result<PKey<Private>> {
    key_on(Nid::X9_62_PRIME256V1)
}

fn key_on(curve: Nid) -> Result<PKey<Private>> {
    let group = EcGroup::from_curve_name(curve)?;
    Ok(PKey::from_ec_key(EcKey::generate(&group)?)?)
}

/// What all certificates have in common.
fn start(
    subject: &X509NameRef,
    issuer: &X509NameRef,
    key: &PKey<Private>,
    from: i64,
    to: i64,
) -> Result<X509Builder> {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().context("this clock is before 1970")?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX - 2 * GOOD_FOR);
    let mut serial = BigNum::new()?;
    // 127 bits: unique without a counters, and positive in DER.
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let serial = serial.to_asn1_integer()?;

    let mut builder = X509::builder()?;
    builder.set_version(2)?; // Which means version 3.
    builder.set_serial_number(&serial)?;
    builder.set_subject_name(subject)?;
    builder.set_issuer_name(issuer)?;
    builder.set_pubkey(key)?;
    let (not_before, not_after) =
        (Asn1Time::from_unix(now + from)?, Asn1Time::from_unix(now + to)?);
    builder.set_not_before(&not_before)?;
    builder.set_not_after(&not_after)?;
    Ok(builder)
}

/// Reads the one-line form; values cannot hold a slash, and a slash alone is no name at all.
fn parse_subject(subject: &str) -> Result<X509Name> {
    let malformed = || Error::new(format!("subject {subject:?} is not like /C=US/CN=name"));
    let mut builder = X509Name::builder()?;
    let parts = subject.strip_prefix('/').ok_or_else(malformed)?;
    for part in parts.split('/').filter(|_| !parts.is_empty()) {
        let (field, value) = part.split_once('=').ok_or_else(malformed)?;
        builder.append_entry_by_text(field, value)?;
    }
    Ok(builder.build())
}
