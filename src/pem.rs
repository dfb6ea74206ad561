//! What a file is that was to hold PEM blocks: which blocks it has, on which lines, which of them
//! nobody reads, and what it is where it is something else.
//!
//! Checks form only; whether a certificate can be used is for [`crate::transport::tls`] to say.
//!
//! Invariants: no word says anything of a block's content, which may be a private key; one pass over
//! the text, so that the time is in proportion to its length.

use openssl::base64::decode_block;
use openssl::pkcs12::Pkcs12;
use openssl::pkcs7::Pkcs7;
use openssl::pkey::PKey;
use openssl::x509::{X509Crl, X509Req, X509};
use zeroize::Zeroizing;

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
            Wanted::Key => matches!(
                label,
                "PRIVATE KEY"
                    | "ENCRYPTED PRIVATE KEY"
                    | "RSA PRIVATE KEY"
                    | "EC PRIVATE KEY"
                    | "DSA PRIVATE KEY"
                    | "ANY PRIVATE KEY"
            ),
        }
    }
}

/// What stands in a file that has nothing of what is wanted, or a broken block; `None` where there
/// is no better word than that.
pub fn misfit(bytes: &[u8], wanted: Wanted) -> Option<Misfit> {
    let broken = |is: String, remedy| Some(Misfit { is: format!(": {is}"), remedy });
    let told = |is: String, remedy| Some(Misfit { is: format!(", but {is}"), remedy });
    // What is left of a file that was being written when the machine lost its power.
    if bytes.iter().all(|byte| matches!(byte, 0 | b' ' | b'\t' | b'\r' | b'\n')) {
        let what = if bytes.contains(&0) { "it holds nothing but zeros" } else { "it is empty" };
        return broken(what.to_owned(), "copy it anew");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return binary(bytes) };
    let blocks = blocks(text);
    if let Some((block, fault)) = blocks.iter().find_map(|block| Some((block, block.fault?))) {
        let remedy = "copy the block anew, each '-----BEGIN' and '-----END' on a line of its own";
        return broken(format!("its block of line {} {fault}", block.line), remedy);
    }
    if let Some(block) = blocks.iter().find(|block| wanted.is_label(block.label)) {
        let line = block.line;
        if let Some((what, _)) = body(text, line).and_then(|bytes| der(&bytes)) {
            let remedy = "give the block the label of what it holds, or have it written anew";
            let other = if what == A_KEY { " of another form" } else { "" };
            let is = format!(
                "its block of line {line} has the label {} and holds {what}{other}",
                block.label
            );
            return broken(is, remedy);
        }
        return broken(
            format!("its block of line {line} is damaged"),
            "copy the block anew, in full",
        );
    }
    if let Some(block) = blocks.first() {
        let label: String = block.label.chars().take(MAX_LABEL).collect();
        return told(
            format!("{}, in line {}", of_label(&label), block.line),
            remedy(&label, wanted),
        );
    }
    plain(text).map_or_else(|| binary(bytes), |(is, remedy)| told(is.to_owned(), remedy))
}

/// What a text without any block is, and what to do about it.
fn plain(text: &str) -> Option<(&'static str, &'static str)> {
    let begin = text.trim_start_matches('\u{feff}').trim_start();
    let begins = |words: &[&str]| words.iter().any(|word| begin.starts_with(word));
    let has = |word: &str| text.contains(word);
    let known = if begins(&["{{", "{%", "<%", "${"]) {
        ("a template that was not filled in", "have what fills it in write the file anew")
    } else if begins(&["{", "["]) {
        ("JSON", "take the PEM text out of it, as 'jq -r' prints it")
    } else if begins(&["<"]) {
        ("HTML or XML, perhaps the page of an error", "fetch the file anew")
    } else if begins(&["ssh-", "ecdsa-sha2-", "PuTTY-User-Key"]) {
        ("an SSH key", "give the file of TLS")
    } else if begins(&["$ANSIBLE_VAULT"]) {
        ("a file that ansible-vault has encrypted", "decrypt it: ansible-vault decrypt")
    } else if begins(&["pkcs11:"]) {
        ("the address of a key in a token", "give a file with the key itself")
    } else if begins(&["LS0tLS1CRUdJTi"]) {
        (
            "PEM text that was put into base64 once more, as in a Kubernetes Secret",
            "decode it: base64 -d",
        )
    } else if has("LS0tLS1CRUdJTi") {
        (
            "YAML with PEM text in base64, as a Kubernetes Secret",
            "take it out: kubectl get secret -o jsonpath, then base64 -d",
        )
    } else if has("BEGIN CERTIFICATE") || has("PRIVATE KEY") {
        (
            "text whose 'BEGIN' line has other characters than five hyphens, as word processors write",
            "copy it anew from where it was made",
        )
    } else if begins(&["MI"]) {
        // How a SEQUENCE of some length looks in base64.
        let bare: Zeroizing<String> = Zeroizing::new(text.split_whitespace().collect());
        let decoded = decode_block(&bare).ok().map(Zeroizing::new);
        match decoded.and_then(|bytes| der(&bytes)) {
            Some(("PKCS#12 (.p12, .pfx)", _)) => (
                "PKCS#12 (.p12, .pfx) in base64",
                "decode it: base64 -d, and take it apart: openssl pkcs12",
            ),
            _ => (
                "base64 without its '-----BEGIN' and '-----END' lines",
                "add both lines, or have it written as PEM",
            ),
        }
    } else {
        return None;
    };
    Some(known)
}

/// What the block that begins in this line holds; `None` if it is no base64.
fn body(text: &str, line: usize) -> Option<Zeroizing<Vec<u8>>> {
    let lines = text.lines().skip(line).take_while(|line| !line.starts_with(END));
    let body: Zeroizing<String> = Zeroizing::new(lines.flat_map(str::split_whitespace).collect());
    decode_block(&body).ok().map(Zeroizing::new)
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
    // OpenSSL skips what editors of Windows put before UTF-8.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
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
                (_, false) if rest.contains("\\n") => Some("has its line breaks written as \\n"),
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
        _ if Wanted::Key.is_label(label) => A_KEY.to_owned(),
        _ if label.ends_with("PRIVATE KEY") => {
            format!("a key of the kind {label}, which OpenSSL does not read by itself")
        }
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
        (other, Wanted::Key) if other.ends_with("PRIVATE KEY") => {
            "give a key that lies in the file itself, '-----BEGIN PRIVATE KEY-----'"
        }
        (_, Wanted::Key) => "give the file with the private key",
        (_, Wanted::Certificates) => "give the file with the certificates",
    }
}

/// What is no text: other forms than PEM, and DER, which has the same forms without text around them.
fn binary(bytes: &[u8]) -> Option<Misfit> {
    let told = |is: &str, remedy| Some(Misfit { is: format!(", but {is}"), remedy });
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => told("text in UTF-16", "save it as UTF-8"),
        [b'P', b'K', 3, 4, ..] => told("a ZIP archive", "unpack it"),
        [0x1f, 0x8b, ..] | [0xfd, b'7', b'z', ..] => told("a compressed file", "unpack it"),
        [0xfe, 0xed, 0xfe, 0xed, ..] | [0xce, 0xce, 0xce, 0xce, ..] => told(
            "a Java keystore",
            "convert it: keytool -importkeystore -deststoretype pkcs12, then openssl pkcs12",
        ),
        _ => match der(bytes)? {
            (pkcs12 @ "PKCS#12 (.p12, .pfx)", remedy) => told(pkcs12, remedy),
            (what, remedy) => told(&format!("{what} in DER form"), remedy),
        },
    }
}

const A_KEY: &str = "a private key";

/// What these bytes are in DER, and how a file of them is brought into the form that is wanted.
fn der(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let mut is_encrypted = false;
    let ask = |_: &mut [u8]| {
        is_encrypted = true;
        Ok(0)
    };
    Some(if X509::from_der(bytes).is_ok() {
        ("a certificate", "convert it: openssl x509 -inform DER -in FILE -out NEWFILE")
    } else if Pkcs12::from_der(bytes).is_ok() {
        ("PKCS#12 (.p12, .pfx)", "take it apart: openssl pkcs12 -nodes -in FILE -out NEWFILE")
    } else if PKey::private_key_from_der(bytes).is_ok() {
        (A_KEY, "convert it: openssl pkey -inform DER -in FILE -out NEWFILE")
    } else if PKey::private_key_from_pkcs8_callback(bytes, ask).is_ok() || is_encrypted {
        (
            "a private key that is protected by a passphrase",
            "convert it: openssl pkcs8 -inform DER -in FILE -out NEWFILE",
        )
    } else if PKey::public_key_from_der(bytes).is_ok() {
        ("a public key", "give the file with the certificate or the private key that it belongs to")
    } else if X509Req::from_der(bytes).is_ok() {
        (
            "a certificate request (CSR)",
            "have an authority issue the certificate from it, and give that",
        )
    } else if X509Crl::from_der(bytes).is_ok() {
        ("a revocation list (CRL)", "give the file with the certificates")
    } else if Pkcs7::from_der(bytes).is_ok() {
        ("PKCS#7", "take them out: openssl pkcs7 -inform DER -print_certs -in FILE -out NEWFILE")
    } else {
        return None;
    })
}
