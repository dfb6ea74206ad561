//! What the field throws at a configuration: certificates that are good one by one and useless
//! together, ends that hide in the chain, files of other forms. Each has one line that fits.

use std::fs;
use std::os::unix::fs::{chown, PermissionsExt};

use openssl::asn1::{Asn1Object, Asn1OctetString};
use openssl::bn::BigNum;
use openssl::ec::{Asn1Flag, EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use openssl::x509::{X509Extension, X509ReqBuilder, X509};
use testkit::pages::is_in_troubleshooting;

use super::{name, time, Identity, Site, DAY, SUBJECT};

/// A certificate to be made.
pub(super) struct Order<'a> {
    subject: &'a str,
    issuer: Option<&'a Identity>,
    key: PKey<Private>,
    digest: MessageDigest,
    valid: (i64, i64),
    extensions: Vec<X509Extension>,
}

impl<'a> Order<'a> {
    pub(super) fn leaf(issuer: &'a Identity) -> Order<'a> {
        let end = BasicConstraints::new().critical().build().unwrap();
        Order::new(SUBJECT, Some(issuer), end)
    }

    pub(super) fn authority(subject: &'a str, issuer: Option<&'a Identity>) -> Order<'a> {
        Order::new(subject, issuer, BasicConstraints::new().critical().ca().build().unwrap())
    }

    pub(super) fn new(
        subject: &'a str,
        issuer: Option<&'a Identity>,
        kind: X509Extension,
    ) -> Order<'a> {
        Order {
            subject,
            issuer,
            key: ec(Nid::X9_62_PRIME256V1),
            digest: MessageDigest::sha256(),
            valid: (-DAY, 365 * DAY),
            extensions: vec![kind],
        }
    }

    pub(super) fn key(mut self, key: PKey<Private>) -> Self {
        self.key = key;
        self
    }

    pub(super) fn digest(mut self, digest: MessageDigest) -> Self {
        self.digest = digest;
        self
    }

    pub(super) fn valid(mut self, from: i64, to: i64) -> Self {
        self.valid = (from, to);
        self
    }

    pub(super) fn with(mut self, extension: X509Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    /// In place of what tells authorities and leaves apart.
    pub(super) fn kind(mut self, extension: X509Extension) -> Self {
        self.extensions[0] = extension;
        self
    }

    pub(super) fn make(self) -> Identity {
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        let mut serial = BigNum::new().unwrap();
        serial.rand(64, openssl::bn::MsbOption::MAYBE_ZERO, false).unwrap();
        builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
        let subject = name(self.subject);
        builder.set_subject_name(&subject).unwrap();
        let issuer = self.issuer.map_or(&*subject, |i| i.certificate.subject_name());
        builder.set_issuer_name(issuer).unwrap();
        builder.set_pubkey(&self.key).unwrap();
        builder.set_not_before(&time(self.valid.0)).unwrap();
        builder.set_not_after(&time(self.valid.1)).unwrap();
        for extension in self.extensions {
            builder.append_extension(extension).unwrap();
        }
        let signer = self.issuer.map_or(&self.key, |issuer| &issuer.key);
        let plain = matches!(signer.id(), openssl::pkey::Id::ED25519 | openssl::pkey::Id::ED448);
        let digest = if plain { MessageDigest::null() } else { self.digest };
        builder.sign(signer, digest).unwrap();
        Identity { certificate: builder.build(), key: self.key }
    }
}

pub(super) fn ec(curve: Nid) -> PKey<Private> {
    let group = EcGroup::from_curve_name(curve).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

pub(super) fn rsa(bits: u32) -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap()
}

/// A key whose curve is spelt out.
pub(super) fn explicit() -> PKey<Private> {
    let mut group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    group.set_asn1_flag(Asn1Flag::EXPLICIT_CURVE);
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

pub(super) fn raw(oid: &str, critical: bool, der: &[u8]) -> X509Extension {
    let contents = Asn1OctetString::new_from_bytes(der).unwrap();
    X509Extension::new_from_der(&Asn1Object::from_str(oid).unwrap(), critical, &contents).unwrap()
}

pub(super) fn usage(word: &str) -> X509Extension {
    ExtendedKeyUsage::new().other(word).build().unwrap()
}

/// Puts these into the site's files: roots, the leaf with its key, what is sent along.
pub(super) fn place(site: &Site, roots: &[&Identity], leaf: &Identity, along: &[&Identity]) {
    let pem = |all: &[&Identity]| -> Vec<u8> {
        all.iter().flat_map(|one| one.certificate_pem()).collect()
    };
    site.write("root.pem", pem(roots));
    site.write_identity(leaf);
    site.write("cert.pem", [leaf.certificate_pem(), pem(along)].concat());
}

/// The one line with which a site is refused.
#[track_caller]
pub(super) fn refusal(site: &Site) -> String {
    let refused = site.load().expect_err("it was to be refused");
    assert_eq!(site.lines(&refused.warnings), [""; 0]);
    let lines = site.lines(&refused.problems);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    explained(&lines[0]);
    lines[0].clone()
}

/// Whoever reads a line finds its cause in the documentation.
#[track_caller]
pub(super) fn explained(line: &str) {
    assert!(is_in_troubleshooting(line), "docs/troubleshooting.md has no row for: {line}");
}

#[track_caller]
pub(super) fn has_all(line: &str, parts: &[&str]) {
    let missing: Vec<_> = parts.iter().filter(|part| !line.contains(**part)).collect();
    assert!(missing.is_empty(), "no {missing:?} in: {line}");
}

#[test]
fn keys_and_signatures_that_lead_to_no_handshake_are_refused_by_their_names() {
    let site = Site::new();
    let root = || &site.root;
    for (curve, called) in [
        (Nid::BRAINPOOL_P256R1, "brainpoolP256r1"),
        (Nid::BRAINPOOL_P384R1, "brainpoolP384r1"),
        (Nid::SECP224R1, "secp224r1"),
        (Nid::SECP256K1, "secp256k1"),
    ] {
        place(&site, &[root()], &Order::leaf(root()).key(ec(curve)).make(), &[]);
        let line = refusal(&site);
        has_all(&line, &["leads to no handshake", SUBJECT, called, "keys of P-256 or RSA 2048"]);
    }
    let weak = Order::leaf(root()).key(rsa(1024)).make();
    place(&site, &[root()], &weak, &[]);
    has_all(&refusal(&site), &[SUBJECT, "key too weak; issue it anew with a key of at least 2048"]);
}

#[test]
fn each_fault_of_a_chain_is_named_with_a_remedy_of_its_own() {
    const MIDDLE: &str = "/CN=middle";
    let site = Site::new();
    let root = Order::authority("/CN=top", None).make();
    let middle = |order: Order<'_>| {
        let middle = order.make();
        let leaf = Order::leaf(&middle).make();
        place(&site, &[&root], &leaf, &[&middle]);
        refusal(&site)
    };
    let of_root = |order: Order<'_>| {
        place(&site, &[&root], &order.make(), &[]);
        refusal(&site)
    };
    let authority = || Order::authority(MIDDLE, Some(&root));
    let leaf = || Order::leaf(&root);

    let line = middle(authority().key(rsa(1024)));
    has_all(&line, &[MIDDLE, "CA certificate key too weak; issue it anew with a key of at least"]);
    let line = middle(authority().digest(MessageDigest::sha1()));
    has_all(
        &line,
        &[MIDDLE, "digest algorithm too weak; issue it anew with a signature by SHA-256"],
    );
    let line = middle(authority().valid(-2 * DAY, -DAY));
    has_all(&line, &[MIDDLE, "certificate has expired, at ", "; renew that one"]);
    let line = middle(authority().valid(DAY, 9 * DAY));
    has_all(&line, &[MIDDLE, "not yet valid; check this machine's clock", "every 30 s"]);
    let line = middle(authority().with(usage("clientAuth")));
    has_all(&line, &[MIDDLE, "purpose; issue it for servers: extendedKeyUsage serverAuth"]);
    let sign_only = KeyUsage::new().critical().digital_signature().build().unwrap();
    has_all(&middle(authority().with(sign_only)), &[MIDDLE, "keyUsage keyCertSign"]);
    let no_authority = BasicConstraints::new().critical().build().unwrap();
    has_all(&middle(authority().kind(no_authority)), &[MIDDLE, "basicConstraints CA:TRUE"]);

    has_all(&of_root(leaf().with(usage("clientAuth"))), &[SUBJECT, "issue it for servers"]);
    has_all(&of_root(leaf().with(usage("codeSigning"))), &[SUBJECT, "issue it for servers"]);
    let no_sign = KeyUsage::new().critical().non_repudiation().build().unwrap();
    has_all(&of_root(leaf().with(no_sign)), &[SUBJECT, "keyUsage digitalSignature"]);
    let odd = raw("1.3.6.1.4.1.99999.1", true, &[5, 0]);
    has_all(&of_root(leaf().with(odd)), &[SUBJECT, "critical extension; it has a critical"]);
    has_all(&of_root(leaf().key(explicit())), &[SUBJECT, "explicit ECC", "named curve"]);

    // The authority above has a word in it.
    let strict = BasicConstraints::new().critical().ca().pathlen(0).build().unwrap();
    let short = Order::authority("/CN=short", None).kind(strict).make();
    let between = Order::authority(MIDDLE, Some(&short)).make();
    place(&site, &[&short], &Order::leaf(&between).make(), &[&between]);
    has_all(&refusal(&site), &["path length constraint exceeded; the authority above", "pathlen"]);
    let permitted = b"\x30\x11\xa0\x0f\x30\x0d\x82\x0bexample.net";
    let narrow =
        Order::authority("/CN=narrow", None).with(raw("2.5.29.30", true, permitted)).make();
    let mut names = SubjectAlternativeName::new();
    let names = names.dns("a.example.org");
    let names = names.build(&X509::builder().unwrap().x509v3_context(None, None)).unwrap();
    place(&site, &[&narrow], &Order::leaf(&narrow).with(names).make(), &[]);
    has_all(&refusal(&site), &["permitted subtree violation; the name constraints", "forbid"]);

    // The missing link alone has the remedy of a missing link.
    let between = Order::authority(MIDDLE, Some(&root)).make();
    place(&site, &[&root], &Order::leaf(&between).make(), &[]);
    has_all(&refusal(&site), &[SUBJECT, "give the root that issued it, and add certificates in"]);
    let duplicate_id = Order::authority("/CN=top", None).make();
    place(&site, &[&duplicate_id, &root], &Order::leaf(&root).make(), &[]);
    if let Err(refused) = site.load() {
        has_all(&site.line(&refused.problems[0]), &["several authorities there have the name"]);
    }
    place(&site, &[&duplicate_id], &Order::leaf(&root).make(), &[]);
    has_all(&refusal(&site), &["signed with another key than that of the authority of this name"]);
}

#[test]
fn more_certificates_than_a_peer_reads_are_refused() {
    let site = Site::new();
    let bundle: Vec<u8> = site.root.certificate_pem().repeat(400);
    let leaf = site.leaf(SUBJECT, -DAY, 365 * DAY);
    site.write_identity(&leaf);
    site.write("cert.pem", [leaf.certificate_pem(), bundle].concat());
    has_all(&refusal(&site), &["excessive message size (", "take out of it all", "100 KiB"]);
}

#[test]
fn good_keys_of_all_kinds_load_without_a_word() {
    let keys = [
        ec(Nid::SECP384R1),
        ec(Nid::SECP521R1),
        rsa(2048),
        PKey::generate_ed25519().unwrap(),
        PKey::generate_ed448().unwrap(),
    ];
    for key in keys {
        let site = Site::new();
        let middle = Order::authority("/CN=middle", Some(&site.root)).key(key.clone()).make();
        let leaf = Order::leaf(&middle).key(key).with(usage("serverAuth")).make();
        place(&site, &[&site.root], &leaf, &[&middle]);
        assert_eq!(site.lines(&site.load().unwrap().warnings), [""; 0], "{:?}", leaf.key.id());
    }
}

#[test]
fn the_first_end_in_the_chain_is_the_one_that_is_told() {
    let site = Site::new();
    let warnings = |root: (i64, i64), middle: (i64, i64), leaf: (i64, i64)| {
        let root = Order::authority("/CN=top", None).valid(root.0, root.1).make();
        let middle = Order::authority("/CN=middle", Some(&root)).valid(middle.0, middle.1).make();
        let leaf = Order::leaf(&middle).valid(leaf.0, leaf.1).make();
        place(&site, &[&root], &leaf, &[&middle]);
        site.lines(&site.load().unwrap().warnings)
    };
    let long = (-DAY, 3650 * DAY);
    let year = (-DAY, 365 * DAY);
    let soon = (-DAY, 2 * DAY + 600);
    let one = |lines: Vec<String>, parts: &[&str]| {
        assert_eq!(lines.len(), 1, "{lines:#?}");
        has_all(&lines[0], parts);
    };
    one(
        warnings(soon, long, year),
        &["on /CN=top, which expires in 2 days, at ", "renew that one"],
    );
    one(warnings(long, soon, year), &["on /CN=middle, which expires in 2 days, at "]);
    one(warnings(long, long, (-300 * DAY, 5 * DAY + 60)), &["certificate that expires in 5 days"]);
    one(warnings((-3630 * DAY, 20 * DAY + 60), long, (-60, DAY)), &["on /CN=top", "20 days"]);
    // Those that live for a day or an hour, fresh and in their last third.
    assert_eq!(warnings(long, long, (-60, DAY - 60)), [""; 0]);
    assert_eq!(warnings(long, (-DAY, 8 * DAY), (-60, 3600)), [""; 0]);
    one(warnings(long, long, (-DAY + 7 * 3600, 7 * 3600 + 60)), &["expires in 7 hours"]);
    one(warnings(long, long, (-3000, 600)), &["expires in 9 minutes"]);
}

#[test]
fn files_of_other_forms_are_called_what_they_are() {
    let site = Site::new();
    let own = site.leaf(SUBJECT, -DAY, 365 * DAY);
    let (cert, key) = (own.certificate_pem(), own.key_pem());
    let mut request = X509ReqBuilder::new().unwrap();
    request.set_pubkey(&own.key).unwrap();
    request.sign(&own.key, MessageDigest::sha256()).unwrap();
    let request = request.build();
    let p12 = Pkcs12::builder().pkey(&own.key).cert(&own.certificate).build2("x").unwrap();
    let text = String::from_utf8(cert.clone()).unwrap();
    let edited = |from: &str, to: &str| text.replacen(from, to, 1).into_bytes();
    let utf16: Vec<u8> =
        [0xff, 0xfe].into_iter().chain(cert.iter().flat_map(|b| [*b, 0])).collect();
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (own.certificate.to_der().unwrap(), "a certificate in DER form; convert it: openssl x509"),
        (p12.to_der().unwrap(), "PKCS#12 (.p12, .pfx); take it apart: openssl pkcs12"),
        (request.to_pem().unwrap(), "a certificate request (CSR), in line 1; have an authority"),
        (request.to_der().unwrap(), "a certificate request (CSR) in DER form"),
        (own.key.private_key_to_pkcs8().unwrap(), "a private key in DER form"),
        (key.clone(), "a private key, in line 1; give the file with the certificates"),
        (own.key.public_key_to_pem().unwrap(), "a public key, in line 1"),
        (edited("CERTIFICATE-----\n", "PKCS7-----\n").to_vec(), "ends with another word"),
        (text.replace("CERTIFICATE", "PKCS7").into_bytes(), "PKCS#7, in line 1; take them out"),
        (text.replace("CERTIFICATE", "TRUSTED CERTIFICATE").into_bytes(), "write it plainly"),
        (
            format!("{{\"certificate\": {text:?}}}").into_bytes(),
            "line 1 has its line breaks written as \\n",
        ),
        (b"{\"ca\": \"none\"}".to_vec(), "JSON; take the PEM text out of it"),
        (openssl::base64::encode_block(&cert).into_bytes(), "a Kubernetes Secret; decode it"),
        (body.into_bytes(), "base64 without its '-----BEGIN'"),
        (utf16, "text in UTF-16; save it as UTF-8"),
        (text.split("-----END").next().unwrap().into(), "line 1 has no '-----END' line: the file"),
        ([cert.trim_ascii_end(), &cert].concat(), "line 1 has the next one's '-----BEGIN' in its"),
        (edited("\n", "\n!"), "line 1 has a line that is no base64"),
        (edited("MII", "AAA"), "line 1 is damaged; copy the block anew"),
    ];
    for (bytes, part) in cases {
        site.write_identity(&own);
        for (file, option) in [("cert.pem", "server_cert_file: "), ("root.pem", "root_cert_file: ")]
        {
            let good = fs::read(site.path(file)).unwrap();
            site.write(file, &bytes);
            let line = refusal(&site);
            has_all(&line, &[option, "holds no certificate in PEM form", part]);
            site.write(file, good);
        }
    }
    for (bytes, part) in [
        (cert, "a certificate, in line 1; give the file with the private key"),
        (own.key.private_key_to_pkcs8().unwrap(), "a private key in DER form; convert it"),
        (p12.to_der().unwrap(), "PKCS#12"),
        (key.get(..60).unwrap().to_vec(), "line 1 has no '-----END' line"),
        (own.key.public_key_to_pem().unwrap(), "a public key, in line 1"),
    ] {
        site.write("key.pem", bytes);
        let line = refusal(&site);
        has_all(&line, &["server_key_file: ", "holds no private key in PEM form", part]);
    }
}

#[test]
fn blocks_that_nobody_reads_are_counted_with_the_line_of_the_first() {
    let site = Site::new();
    let root = String::from_utf8(site.root.certificate_pem()).unwrap();
    let trusted = root.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
    let next = root.lines().count() + 1;
    let told = |text: String| {
        site.write("root.pem", text);
        site.lines(&site.load().unwrap().warnings)
    };
    let [line] = &told(format!("{root}{trusted}{trusted}"))[..] else { panic!() };
    has_all(
        line,
        &["root_cert_file: ", "holds 2 blocks that are not read", &format!("in line {next}:")],
    );
    let [line] = &told(format!("{root}# {root}"))[..] else { panic!() };
    has_all(line, &["1 block that is not read", "begins in the middle of a line"]);
    assert_eq!(told(format!("# the root\n\n{root}\n \n{root}")), [""; 0]);
}

#[test]
fn a_certificate_without_a_subject_is_said_to_have_none() {
    let site = Site::new();
    let nameless = Identity::new("", Some(&site.root), -DAY, 365 * DAY);
    site.write_identity(&nameless);
    has_all(&refusal(&site), &["has no subject, by which servers are told", "cert-manager"]);
    site.edit("server_conf.yaml", "cert_verify_str: /C=US/O=Example/CN=server\n", "");
    let [line] = &site.lines(&site.load().unwrap().warnings)[..] else { panic!() };
    has_all(line, &["server_cert_file: ", "has no subject", "any certificate of root_cert_file"]);
    site.write_identity(&site.leaf("/CN=server ", -DAY, 365 * DAY));
    site.write(
        "server_conf.yaml",
        super::CONF.replace("/C=US/O=Example/CN=server", "'/CN=server '"),
    );
    has_all(&refusal(&site), &["subject, \"/CN=server \", begins or ends with a blank"]);
}

#[test]
fn whole_numbers_are_taken_however_they_are_written_and_a_mark_is_skipped() {
    let load = |from: &str, to: &str| {
        let site = Site::new();
        site.edit("server_conf.yaml", from, to);
        let text = fs::read_to_string(site.path("server_conf.yaml")).unwrap();
        site.write("server_conf.yaml", format!("\u{feff}{text}"));
        let text = fs::read_to_string(site.path("list.yaml")).unwrap();
        site.write("list.yaml", format!("\u{feff}{text}"));
        let loaded = site.load();
        loaded.map_err(|refused| site.lines(&refused.problems).join("\n"))
    };
    for (said, seconds) in [("3600.0", 3600), ("3.6e+06", 3_600_000), ("1e3", 1000), ("15.", 15)] {
        let loaded = load("interval: 15", &format!("interval: {said}")).unwrap();
        assert_eq!(loaded.settings.key_update_interval.as_secs(), seconds, "{said}");
    }
    for said in ["3600.5", ".inf", ".nan", "1e300", "100000000000000000000000000000000000000000001"]
    {
        let line = load("interval: 15", &format!("interval: {said} # here")).unwrap_err();
        has_all(&line, &[&format!("key_update_interval: {said} is not a whole number; give")]);
    }
}

/// As root only, who can give files away; the server of this test is the process itself.
#[test]
fn a_key_of_root_that_the_servers_group_may_read_is_private() {
    let site = Site::new();
    let key = site.path("key.pem");
    let own = fs::metadata("/proc/self").unwrap();
    let group = std::os::unix::fs::MetadataExt::gid(&own);
    if chown(&key, Some(0), Some(group)).is_err() {
        return;
    }
    for (mode, group, good) in [
        (0o640, group, true),
        (0o440, group, true),
        (0o660, group, false),
        (0o644, group, false),
        (0o640, group + 1, false),
        (0o600, group + 1, true),
    ] {
        chown(&key, Some(0), Some(group)).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let warnings = site.load().unwrap().warnings;
        assert_eq!(warnings.is_empty(), good, "{mode:o}: {:?}", site.lines(&warnings));
    }
}

#[test]
fn what_may_pass_by_itself_is_told_from_what_needs_a_hand() {
    type Harm = fn(&Site);
    let cases: [(Harm, bool); 8] = [
        (|s| s.write_identity(&s.leaf(SUBJECT, 60, DAY)), true),
        (|s| s.remove("key.pem"), true),
        (|s| s.remove("list.yaml"), true),
        (|s| s.remove("server_conf.yaml"), true),
        (|s| s.write_identity(&s.leaf(SUBJECT, -DAY, -60)), true),
        (|s| s.write("cert.pem", ""), true),
        (|s| s.edit("list.yaml", "port: 10001", "port: 0"), false),
        (
            |s| {
                s.remove("key.pem");
                s.edit("server_conf.yaml", "port: 10001", "port: 0");
            },
            false,
        ),
    ];
    for (number, (harm, passes)) in cases.into_iter().enumerate() {
        let site = Site::new();
        harm(&site);
        assert_eq!(site.load().unwrap_err().passes(), passes, "case {number}");
    }
    let site = Site::new();
    let middle = Order::authority("/CN=middle", Some(&site.root)).valid(DAY, 9 * DAY).make();
    place(&site, &[&site.root], &Order::leaf(&middle).make(), &[&middle]);
    assert!(site.load().unwrap_err().passes());
}
