//! What a file is that was to hold PEM blocks: which blocks it has, on which lines, which of them
//! nobody reads, and what it is where it is something else.
//!
//! Checks form only; whether a certificate can be used is for [`crate::transport::tls`] to say.
//!
//! Invariants: no word says anything of a block's content, which may be a private key; one pass over
//! the text, so that the time is in proportion to its length.

use openssl::pkcs12::Pkcs12;
use openssl::pkcs7::Pkcs7;
use openssl::pkey::PKey;
use openssl::x509::{X509Req, X509};

/// How a line of PEM begins a block, and how one ends it.
const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// The most characters of a label that a line shows; the longest that OpenSSL knows has 25.
const MAX_LABEL: usize = 40;

/// What a file was to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Blocks with certificates.
    Certificates,
    /// A block with a private key.
    Key,
}

/// Why a file, or a block in it, is not what was wanted. Reason and remedy as in a
/// [`Problem`](crate::core::config::Problem).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Goes behind "FILE holds no certificate in PEM form", with what parts the two.
    pub is: String,
    /// What to do about it.
    pub remedy: &'static str,
}

/// One block.
struct Block<'a> {
    line: usize,
    label: &'a str,
    fault: Option<&'static str>,
}

impl Wanted {
    fn is_label(self, label: &str) -> bool {
        match self {
            // OpenSSL reads no other, not even its own TRUSTED CERTIFICATE.
            Wanted::Certificates => matches!(label, "CERTIFICATE" | "X509 CERTIFICATE"),
            Wanted::Key => label.ends_with("PRIVATE KEY") && label != "OPENSSH PRIVATE KEY",
        }
    }
}

/// What stands in a file that has nothing of what is wanted, or a broken block; `None` where there
/// is no better word than that.
pub fn misfit(bytes: &[u8], wanted: Wanted) -> Option<Misfit> {
    let Ok(text) = std::str::from_utf8(bytes) else { return binary(bytes) };
    let blocks = blocks(text);
    let broken = |is: String, remedy| Some(Misfit { is: format!(": {is}"), remedy });
    let told = |is: String, remedy| Some(Misfit { is: format!(", but {is}"), remedy });
    if let Some((block, fault)) = blocks.iter().find_map(|block| Some((block, block.fault?))) {
        let remedy = "copy the block anew, each '-----BEGIN' and '-----END' on a line of its own";
        return broken(format!("its block of line {} {fault}", block.line), remedy);
    }
    if let Some(block) = blocks.iter().find(|block| wanted.is_label(block.label)) {
        let remedy = "copy the block anew, in full";
        return broken(format!("its block of line {} is damaged", block.line), remedy);
    }
    if let Some(block) = blocks.first() {
        let label: String = block.label.chars().take(MAX_LABEL).collect();
        return told(
            format!("{}, in line {}", of_label(&label), block.line),
            remedy(&label, wanted),
        );
    }
    let begin = text.trim_start_matches('\u{feff}').trim_start();
    match begin {
        _ if begin.starts_with(['{', '[']) => {
            told("JSON".to_owned(), "take the PEM text out of it, as 'jq -r' prints it")
        }
        _ if begin.starts_with("ssh-") || begin.starts_with("ecdsa-sha2-") => {
            told("an SSH key".to_owned(), "give the file of TLS")
        }
        // How a SEQUENCE of some length looks in base64.
        _ if begin.starts_with("MI") => told(
            "base64 without its '-----BEGIN' and '-----END' lines".to_owned(),
            "add both lines, or have it written as PEM",
        ),
        _ if begin.starts_with("LS0tLS1CRUdJTi") => told(
            "PEM text that was put into base64 once more, as in a Kubernetes Secret".to_owned(),
            "decode it: base64 -d",
        ),
        _ => binary(bytes),
    }
}

/// How many blocks of a file with certificates are of a kind that might be meant to count and that
/// OpenSSL passes over, and the first of them: line and kind. Keys and parameters beside a
/// certificate are no accident.
pub fn unread(bytes: &[u8]) -> Option<(usize, usize, String)> {
    let text = String::from_utf8_lossy(bytes);
    let is_odd = |block: &&Block<'_>| {
        let is_beside = block.label.ends_with(" KEY") || block.label.ends_with(" PARAMETERS");
        block.fault == Some(JOINED) || !(Wanted::Certificates.is_label(block.label) || is_beside)
    };
    let blocks = blocks(&text);
    let mut odd = blocks.iter().filter(is_odd);
    let first = odd.next()?;
    let what = match first.fault {
        Some(fault) => format!("a block that {fault}"),
        None => of_label(&first.label.chars().take(MAX_LABEL).collect::<String>()),
    };
    Some((1 + odd.count(), first.line, what))
}

const JOINED: &str = "begins in the middle of a line";

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut found: Vec<Block<'_>> = Vec::new();
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_end();
        if open {
            let last = found.last_mut();
            if let Some(rest) = line.strip_prefix(END) {
                open = false;
                if let Some(block) = last.filter(|b| rest.strip_suffix(DASHES) != Some(b.label)) {
                    block.fault = Some(if rest.contains(BEGIN) {
                        "has the next one's '-----BEGIN' in its last line"
                    } else {
                        "ends with another word than it begins with"
                    });
                }
                continue;
            }
            if line.starts_with(BEGIN) || line.contains(END) {
                if let Some(block) = last {
                    block.fault = Some("has no '-----END' line of its own");
                }
                open = line.starts_with(BEGIN);
            } else {
                // Headers of an old encrypted key have a colon.
                let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/= \t".contains(c);
                let is_body = line.chars().all(is_base64) || line.contains(':');
                if let Some(block) = last.filter(|b| b.fault.is_none() && !is_body) {
                    block.fault = Some("has a line that is no base64");
                }
                continue;
            }
        }
        if let Some((before, label)) = line.split_once(BEGIN) {
            let (label, rest) = label.split_once(DASHES).unwrap_or((label, "-"));
            let fault = match (before.is_empty(), rest.is_empty()) {
                (false, _) => Some(JOINED),
                (true, false) => Some("has more than '-----BEGIN ...-----' in its first line"),
                (true, true) => None,
            };
            found.push(Block { line: number, label, fault });
            open = fault.is_none();
        }
    }
    if let Some(block) = found.last_mut().filter(|block| open && block.fault.is_none()) {
        block.fault = Some("has no '-----END' line: the file is cut short");
    }
    found
}

fn of_label(label: &str) -> String {
    match label {
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => {
            "a certificate request (CSR)".to_owned()
        }
        "PKCS7" | "CMS" => "PKCS#7".to_owned(),
        "X509 CRL" => "a revocation list (CRL)".to_owned(),
        "TRUSTED CERTIFICATE" => "OpenSSL's TRUSTED CERTIFICATE".to_owned(),
        "CERTIFICATE" | "X509 CERTIFICATE" => "a certificate".to_owned(),
        "PUBLIC KEY" | "RSA PUBLIC KEY" => "a public key".to_owned(),
        "OPENSSH PRIVATE KEY" => "a private key in OpenSSH's form".to_owned(),
        _ if label.ends_with("PRIVATE KEY") => "a private key".to_owned(),
        _ => format!("a block of the kind {label}"),
    }
}

fn remedy(label: &str, wanted: Wanted) -> &'static str {
    match (label, wanted) {
        ("CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST", _) => {
            "have an authority issue the certificate from it, and give that"
        }
        ("PKCS7" | "CMS", _) => "take them out: openssl pkcs7 -print_certs -in FILE -out NEWFILE",
        ("TRUSTED CERTIFICATE", _) => "write it plainly: openssl x509 -in FILE -out NEWFILE",
        ("OPENSSH PRIVATE KEY", _) => "convert it: ssh-keygen -p -m PKCS8 -f FILE",
        (_, Wanted::Key) => "give the file with the private key",
        (_, Wanted::Certificates) => "give the file with the certificates",
    }
}

/// DER has the same forms without the text around them.
fn binary(bytes: &[u8]) -> Option<Misfit> {
    let (is, remedy) = match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => ("text in UTF-16", "save it as UTF-8"),
        [b'P', b'K', 3, 4, ..] => ("a ZIP archive", "unpack it"),
        [0x1f, 0x8b, ..] => ("a gzip archive", "unpack it"),
        [0xfe, 0xed, 0xfe, 0xed, ..] => (
            "a Java keystore",
            "convert it: keytool -importkeystore -deststoretype pkcs12, then openssl pkcs12",
        ),
        _ if X509::from_der(bytes).is_ok() => (
            "a certificate in DER form",
            "convert it: openssl x509 -inform DER -in FILE -out NEWFILE",
        ),
        _ if Pkcs12::from_der(bytes).is_ok() => {
            ("PKCS#12 (.p12, .pfx)", "take it apart: openssl pkcs12 -nodes -in FILE -out NEWFILE")
        }
        _ if PKey::private_key_from_der(bytes).is_ok() => (
            "a private key in DER form",
            "convert it: openssl pkey -inform DER -in FILE -out NEWFILE",
        ),
        _ if X509Req::from_der(bytes).is_ok() => (
            "a certificate request (CSR) in DER form",
            "have an authority issue the certificate from it, and give that",
        ),
        _ if Pkcs7::from_der(bytes).is_ok() => (
            "PKCS#7 in DER form",
            "take them out: openssl pkcs7 -inform DER -print_certs -in FILE -out NEWFILE",
        ),
        _ => return None,
    };
    Some(Misfit { is: format!(", but {is}"), remedy })
}
