//! Why no authority is found for a certificate of a chain, where OpenSSL says no more than that: by the
//! names of the certificates that are there.
//!
//! What to do about it is for [`crate::load`] to say. Invariants: only names and keys are compared, and
//! nothing here lets a certificate pass.

use openssl::x509::{X509Ref, X509};

/// How the issuer's name of a certificate that does not verify stands to those that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// None of them has it.
    Missing,
    /// Several have it, with different keys.
    Several,
    /// One has it, and OpenSSL does not take it for the issuer.
    Unfit,
    /// The certificate has it itself, and is signed with another key.
    Itself,
    /// The certificate is one of several of its name and key, by different issuers.
    CrossSigned,
}

impl Issuer {
    /// For a certificate among `roots` and those that were sent along.
    pub fn of(certificate: &X509Ref, roots: &[X509], sent: &[X509]) -> Issuer {
        let name = |one: &X509Ref| one.subject_name().to_der().ok();
        let by = certificate.issuer_name().to_der().ok();
        let own = name(certificate);
        if own == by {
            let signed = certificate.public_key().and_then(|key| certificate.verify(&key));
            if !signed.unwrap_or(false) {
                return Issuer::Itself;
            }
        }
        let is_crossed = |one: &&X509| {
            name(one) == own
                && one.issuer_name().to_der().ok() != by
                && key(one) == key(certificate)
        };
        if sent.iter().any(|one| is_crossed(&one)) {
            return Issuer::CrossSigned;
        }
        let issuers = roots.iter().chain(sent).filter(|one| name(one) == by);
        let mut keys: Vec<_> = issuers.map(|one| key(one)).collect();
        keys.sort_unstable();
        keys.dedup();
        match keys.len() {
            0 => Issuer::Missing,
            1 => Issuer::Unfit,
            _ => Issuer::Several,
        }
    }
}

fn key(certificate: &X509Ref) -> Option<Vec<u8>> {
    certificate.public_key().and_then(|key| key.public_key_to_der()).ok()
}
