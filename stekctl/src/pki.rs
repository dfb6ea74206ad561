//! An authority and certificates for a new fleet.
//!
//! Knows nothing of files. Invariants: every certificate has a key of its own and a serial
//! number that needs no counters; a leaf can be used as a TLS server and client and for nothing else.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
    SubjectKeyIdentifier,
};
use openssl::x509::{X509Builder, X509Name, X509NameRef, X509};

/// The organisation in every subject.
const ORGANISATION: &str = "stek_share";

/// How far into the past certificates reach, in seconds: servers' clocks differ.
const BACKDATED: i64 = 3600;

/// One day in seconds.
const DAY: i64 = 86_400;

/// The least life of an authority in days.
const AUTHORITY_DAYS: u32 = 3650;

/// A certificate with its key.
pub struct Identity {
    certificate: X509,
    key: PKey<Private>,
}

impl Identity {
    /// The certificate in PEM.
    ///
    /// # Errors
    /// OpenSSL failed.
    pub fn certificate_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        self.certificate.to_pem()
    }

    /// An authority as it was written.
    ///
    /// # Errors
    /// Why these are no certificate and its key.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Identity, String> {
        let certificate = X509::from_pem(certificate)
            .map_err(|_| "the certificate beside it is not in PEM form".to_owned())?;
        // Never asks anybody for a passphrase.
        let key = PKey::private_key_from_pem_callback(key, |_| Ok(0)).map_err(|_| {
            "holds no private key in PEM form, or one that a passphrase protects".to_owned()
        })?;
        match certificate.public_key() {
            Ok(public) if public.public_eq(&key) => Ok(Identity { certificate, key }),
            _ => Err("is not the key of the certificate beside it".to_owned()),
        }
    }

    /// Whether a certificate in PEM was signed with this key.
    pub fn signed(&self, certificate: &[u8]) -> bool {
        X509::from_pem(certificate).is_ok_and(|leaf| leaf.verify(&self.key).unwrap_or(false))
    }

    /// The last moment, in words, if that is sooner than so many days from now.
    pub fn ends_within(&self, days: u32) -> Option<String> {
        let end = self.certificate.not_after();
        let then = Asn1Time::days_from_now(days).ok()?;
        (*end < *then).then(|| end.to_string())
    }

    /// The private key in PEM.
    ///
    /// # Errors
    /// OpenSSL failed.
    pub fn key_pem(&self) -> Result<Vec<u8>, ErrorStack> {
        self.key.private_key_to_pem_pkcs8()
    }
}

/// The subject of the leaf with this common name, as `cert_verify_str` has it.
pub fn subject(name: &str) -> String {
    format!("/O={ORGANISATION}/CN={name}")
}

/// A new authority that outlives leaves of `days`.
///
/// # Errors
/// OpenSSL failed.
pub fn authority(days: u32) -> Result<Identity, ErrorStack> {
    let key = new_key()?;
    let name = named("stek_share authority")?;
    let mut builder = start(&name, &name, &key, days.max(AUTHORITY_DAYS))?;
    builder.append_extension(BasicConstraints::new().critical().ca().pathlen(0).build()?)?;
    builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
    let own = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
    builder.append_extension(own)?;
    builder.sign(&key, MessageDigest::sha256())?;
    Ok(Identity { certificate: builder.build(), key })
}

/// A leaf for the server that is reached at `address`, with the common name `name`.
///
/// # Errors
/// OpenSSL failed.
pub fn leaf(
    authority: &Identity,
    name: &str,
    address: &str,
    days: u32,
) -> Result<Identity, ErrorStack> {
    let key = new_key()?;
    let issuer = &authority.certificate;
    let mut builder = start(&*named(name)?, issuer.subject_name(), &key, days)?;
    builder.append_extension(BasicConstraints::new().critical().build()?)?;
    builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
    builder.append_extension(ExtendedKeyUsage::new().server_auth().client_auth().build()?)?;
    let mut alternative = SubjectAlternativeName::new();
    // A link-local address has a zone, which no certificate can name.
    let bare = address.split('%').next().unwrap_or(address);
    match bare.parse::<IpAddr>() {
        Ok(_) => alternative.ip(bare),
        Err(_) => alternative.dns(bare),
    };
    let context = builder.x509v3_context(Some(issuer), None);
    let extensions = [
        alternative.build(&context)?,
        SubjectKeyIdentifier::new().build(&context)?,
        AuthorityKeyIdentifier::new().keyid(true).build(&context)?,
    ];
    for extension in extensions {
        builder.append_extension(extension)?;
    }
    builder.sign(&authority.key, MessageDigest::sha256())?;
    Ok(Identity { certificate: builder.build(), key })
}

fn new_key() -> Result<PKey<Private>, ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    PKey::from_ec_key(EcKey::generate(&group)?)
}

fn named(name: &str) -> Result<X509Name, ErrorStack> {
    let mut builder = X509Name::builder()?;
    builder.append_entry_by_text("O", ORGANISATION)?;
    builder.append_entry_by_text("CN", name)?;
    Ok(builder.build())
}

/// What all certificates have in common.
fn start(
    subject: &X509NameRef,
    issuer: &X509NameRef,
    key: &PKey<Private>,
    days: u32,
) -> Result<X509Builder, ErrorStack> {
    // A clock before 1970 gives certificates that are not valid yet or any more, which the check
    // that follows tells.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(0);
    let mut serial = BigNum::new()?;
    // 127 bits: unique without a counters, and positive in DER.
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let serial = serial.to_asn1_integer()?;
    let from = Asn1Time::from_unix(now - BACKDATED)?;
    let to = Asn1Time::from_unix(now + i64::from(days) * DAY)?;
    let mut builder = X509::builder()?;
    // Counted from 0: this is X.509 version 3.
    builder.set_version(2)?;
    builder.set_serial_number(&serial)?;
    builder.set_subject_name(subject)?;
    builder.set_issuer_name(issuer)?;
    builder.set_pubkey(key)?;
    builder.set_not_before(&from)?;
    builder.set_not_after(&to)?;
    Ok(builder)
}
