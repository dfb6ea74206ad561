//! Further members of two kinds of faults, each tried by name: chains that are good one by one and useless
//! together, and ends that hide in a chain. What is good loads without a word; what is not has one line with a
//! remedy that fits.

use std::process::Command;

use openssl::x509::extension::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use openssl::x509::X509Extension;

use super::field::*;
use super::*;

/// Words of the one line; none where all is good.
type Line = &'static [&'static str];

const GOOD: Line = &[];

/// What is tried, all of one kind, and what failed of it.
struct Trial {
    site: Site,
    failed: Vec<String>,
    count: usize,
}

impl Trial {
    fn new() -> Trial {
        Trial { site: Site::new(), failed: Vec::new(), count: 0 }
    }

    /// Loads what was placed.
    fn of(&mut self, name: &str, line: Line) {
        self.count += 1;
        let said = match self.site.load() {
            Ok(loaded) => self.site.lines(&loaded.warnings),
            Err(refused) => self.site.lines(&refused.problems),
        };
        let is_right = match &said[..] {
            [] => line.is_empty(),
            [one] => !line.is_empty() && line.iter().chain([&"; "]).all(|part| one.contains(part)),
            _ => false,
        };
        said.iter().for_each(|line| explained(line));
        if !is_right {
            self.failed.push(format!("{name}: not {line:?} in {said:#?}"));
        }
    }

    /// The same of a leaf with its root, and of what is sent along.
    fn chain(
        &mut self,
        name: &str,
        roots: &[&Identity],
        leaf: &Identity,
        along: &[&Identity],
        line: Line,
    ) {
        place(&self.site, roots, leaf, along);
        self.of(name, line);
    }

    fn end(self, least: usize) {
        assert!(self.count >= least, "only {} were tried", self.count);
        assert!(self.failed.is_empty(), "{}", self.failed.join("\n"));
    }
}

/// A key of a kind that has no maker in the library.
fn key_of(algorithm: &[&str]) -> PKey<Private> {
    let made = Command::new("openssl").arg("genpkey").args(algorithm).output().unwrap();
    PKey::private_key_from_pem(&made.stdout).unwrap()
}

fn key_usage(make: fn(&mut KeyUsage) -> &mut KeyUsage) -> X509Extension {
    make(KeyUsage::new().critical()).build().unwrap()
}

fn dns(name: &str) -> X509Extension {
    let context = X509::builder().unwrap();
    let context = context.x509v3_context(None, None);
    SubjectAlternativeName::new().dns(name).build(&context).unwrap()
}

/// Constraints on the names below, in DER: `tag` says whether those of example.net are permitted or excluded.
fn constraints(tag: u8) -> X509Extension {
    let of = [&[0x30, 0x11, tag, 0x0f, 0x30, 0x0d, 0x82, 0x0b][..], b"example.net"].concat();
    raw("2.5.29.30", true, &of)
}

const PERMITTED: u8 = 0xa0;
const EXCLUDED: u8 = 0xa1;

#[test]
fn keys_signatures_and_purposes_of_a_leaf() {
    let mut trial = Trial::new();
    let root = Order::authority("/CN=top", None).make();
    let leaf = || Order::leaf(&root);
    let weak: Line = &[SUBJECT, "key too weak; issue it anew with a key of at least 2048"];
    let none: Line = &[SUBJECT, "leads to no handshake", "keys of P-256 or RSA 2048"];
    let digest: Line =
        &[SUBJECT, "digest algorithm too weak; issue it anew with a signature by SHA-256"];
    let purpose: Line = &["unsuitable certificate purpose; issue it for servers: extendedKeyUsage"];
    let malformed: Line =
        &["is there, and is not the one", "an extension of one of the two is malformed"];
    let own = BasicConstraints::new().critical().ca().build().unwrap();
    let pss = ["-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"];
    let dsa = openssl::dsa::Dsa::generate(2048).unwrap();
    let members: [(&str, Order<'_>, Line); 27] = [
        ("RSA-PSS", leaf().key(key_of(&pss)), GOOD),
        ("RSA of 3072 bits", leaf().key(rsa(3072)), GOOD),
        ("RSA of 1536 bits", leaf().key(rsa(1536)), weak),
        ("secp160r1", leaf().key(ec(Nid::SECP160R1)), weak),
        ("P-192", leaf().key(ec(Nid::X9_62_PRIME192V1)), weak),
        ("sect283r1", leaf().key(ec(Nid::SECT283R1)), none),
        ("brainpoolP512r1", leaf().key(ec(Nid::BRAINPOOL_P512R1)), none),
        (
            "SM2",
            leaf().key(key_of(&["-algorithm", "SM2"])),
            &[SUBJECT, "a key of 256 bits", "unknown certificate type"],
        ),
        ("DSA", leaf().key(PKey::from_dsa(dsa).unwrap()), &[SUBJECT, "a DSA key of 2048 bits"]),
        ("signed by SHA-1", leaf().digest(MessageDigest::sha1()), digest),
        ("signed by SHA-224", leaf().digest(MessageDigest::sha224()), GOOD),
        ("signed by SHA-512", leaf().digest(MessageDigest::sha512()), GOOD),
        ("any purpose", leaf().with(usage("anyExtendedKeyUsage")), purpose),
        ("for mail", leaf().with(usage("emailProtection")), purpose),
        ("server gated", leaf().with(usage("msSGC")), GOOD),
        (
            "for servers and clients",
            leaf().with(ExtendedKeyUsage::new().server_auth().client_auth().build().unwrap()),
            GOOD,
        ),
        (
            "keyEncipherment alone",
            leaf().key(rsa(2048)).with(key_usage(KeyUsage::key_encipherment)),
            GOOD,
        ),
        ("keyAgreement alone", leaf().with(key_usage(KeyUsage::key_agreement)), GOOD),
        ("keyCertSign alone", leaf().with(key_usage(KeyUsage::key_cert_sign)), purpose),
        ("an authority's as a server's", leaf().kind(own), GOOD),
        (
            "Netscape's client type",
            leaf().with(raw("2.16.840.1.113730.1.1", false, &[3, 2, 7, 0x80])),
            purpose,
        ),
        ("must-staple", leaf().with(raw("1.3.6.1.5.5.7.1.24", false, &[0x30, 3, 2, 1, 5])), GOOD),
        (
            "critical policy constraints",
            leaf().with(raw("2.5.29.36", true, &[0x30, 3, 0x80, 1, 0])),
            GOOD,
        ),
        ("names that are no DER", leaf().with(raw("2.5.29.17", false, &[0x30, 5, 1])), malformed),
        ("a key usage that is none", leaf().with(raw("2.5.29.15", true, &[5, 0])), malformed),
        (
            "60 KB of an extension",
            leaf().with(raw("1.3.6.1.4.1.99999.2", false, &vec![0; 60_000])),
            GOOD,
        ),
        (
            "110 KB of an extension",
            leaf().with(raw("1.3.6.1.4.1.99999.2", false, &vec![0; 110_000])),
            &["excessive message size (110", "100 KiB"],
        ),
    ];
    for (name, order, line) in members {
        trial.chain(name, &[&root], &order.make(), &[], line);
    }
    trial.end(27);
}

#[test]
fn authorities_between_and_above() {
    let mut trial = Trial::new();
    let root = Order::authority("/CN=top", None).make();
    let middle = || Order::authority("/CN=middle", Some(&root));
    let none = || raw("2.5.29.14", false, &[4, 1, 7]);
    let no_authority: Line =
        &["invalid CA certificate; issue the authority's", "basicConstraints CA:TRUE"];
    let purpose: Line =
        &["/CN=middle: unsuitable certificate purpose", "authorities above with serverAuth too"];
    let itself: Line = &["the authority that issued it has the same name: issue one of the two"];
    let between: [(&str, Order<'_>, Line); 12] = [
        ("no basic constraints", middle().kind(none()), no_authority),
        ("for servers", middle().with(usage("serverAuth")), GOOD),
        ("for any purpose", middle().with(usage("anyExtendedKeyUsage")), purpose),
        ("for OCSP", middle().with(usage("OCSPSigning")), purpose),
        ("brainpool above an own key of P-256", middle().key(ec(Nid::BRAINPOOL_P256R1)), GOOD),
        ("Ed25519", middle().key(PKey::generate_ed25519().unwrap()), GOOD),
        ("explicit curve", middle().key(explicit()), &["/CN=middle", "named curve"]),
        (
            "pathlen 0",
            middle().kind(BasicConstraints::new().critical().ca().pathlen(0).build().unwrap()),
            GOOD,
        ),
        ("the leaf's name", Order::authority(SUBJECT, Some(&root)), itself),
        (
            "the root's name",
            Order::authority("/CN=top", Some(&root)),
            &["several authorities there have the name"],
        ),
        ("names permitted", middle().with(constraints(PERMITTED)), GOOD),
        ("names excluded", middle().with(constraints(EXCLUDED)), GOOD),
    ];
    for (name, order, line) in between {
        let middle = order.make();
        trial.chain(name, &[&root], &Order::leaf(&middle).make(), &[&middle], line);
    }
    let top = || Order::authority("/CN=r", None);
    let above: [(&str, Order<'_>, Line); 10] = [
        ("self-signed by SHA-1", top().digest(MessageDigest::sha1()), GOOD),
        ("RSA of 1024 bits", top().key(rsa(1024)), &["/CN=r: CA certificate key too weak"]),
        ("brainpool", top().key(ec(Nid::BRAINPOOL_P384R1)), GOOD),
        (
            "expired",
            top().valid(-9 * DAY, -DAY),
            &["/CN=r: certificate has expired, at ", "; renew that one"],
        ),
        (
            "to come",
            top().valid(DAY, 9 * DAY),
            &["/CN=r: certificate is not yet valid", "every 30 s"],
        ),
        (
            "for clients",
            top().with(usage("clientAuth")),
            &["/CN=r: unsuitable certificate purpose"],
        ),
        ("no basic constraints", top().kind(none()), no_authority),
        ("may not sign", top().with(key_usage(KeyUsage::digital_signature)), no_authority),
        ("names permitted", top().with(constraints(PERMITTED)), GOOD),
        (
            "constraints that are no DER",
            top().with(raw("2.5.29.30", true, &[0x30, 3, 0xa0, 1, 5])),
            &["an extension of one of the two is malformed"],
        ),
    ];
    for (name, order, line) in above {
        let top = order.make();
        trial.chain(name, &[&top], &Order::leaf(&top).make(), &[], line);
    }
    for (tag, name, line) in [
        (PERMITTED, "a.example.net", GOOD),
        (PERMITTED, "example.org", &["permitted subtree violation; the name constraints"][..]),
        (EXCLUDED, "a.example.net", &["excluded subtree violation; the name constraints"]),
        (EXCLUDED, "example.org", GOOD),
    ] {
        let top = top().with(constraints(tag)).make();
        trial.chain(name, &[&top], &Order::leaf(&top).with(dns(name)).make(), &[], line);
    }
    trial.end(26);
}

#[test]
fn several_of_one_name_and_all_orders() {
    let mut trial = Trial::new();
    let root = Order::authority("/CN=top", None).make();
    let new = |name| Order::authority(name, None).make();
    let several: Line = &["several authorities there have the name of its issuer"];
    let (one, other) = (new("/CN=r"), new("/CN=r"));
    let leaf = Order::leaf(&other).make();
    trial.chain("two roots of one name, the right one first", &[&other, &one], &leaf, &[], GOOD);
    trial.chain("the wrong one first", &[&one, &other], &leaf, &[], several);
    // Key identifiers tell them apart.
    let identified = |id: u8| {
        let order = Order::authority("/CN=i", None).with(raw("2.5.29.14", false, &[4, 1, id]));
        order.make()
    };
    let (one, other) = (identified(1), identified(2));
    let names_it = raw("2.5.29.35", false, &[0x30, 3, 0x80, 1, 2]);
    let leaf = Order::leaf(&other).with(names_it).make();
    for roots in [[&one, &other], [&other, &one]] {
        trial.chain("told apart by key identifiers", &roots, &leaf, &[], GOOD);
    }
    trial.chain(
        "only the one of another identifier",
        &[&one],
        &leaf,
        &[],
        &["their key identifiers differ"],
    );
    let again = Order::authority("/CN=i", None).key(other.key.clone()).valid(-9 * DAY, -DAY);
    let again = again.with(raw("2.5.29.14", false, &[4, 1, 2])).make();
    for roots in [[&again, &other], [&other, &again]] {
        trial.chain("one key, an expired and a new certificate", &roots, &leaf, &[], GOOD);
    }

    let foreign = new("/CN=foreign");
    let middle = Order::authority("/CN=middle", Some(&root)).make();
    let crossed = Order::authority("/CN=middle", Some(&foreign)).key(middle.key.clone()).make();
    let leaf = Order::leaf(&middle).make();
    let missing: Line = &["give the root that issued it, and add certificates in between"];
    let crossed_line: Line = &["of the certificates of this name in this file the first counts"];
    trial.chain("cross-signed, the right one first", &[&root], &leaf, &[&middle, &crossed], GOOD);
    trial.chain("the wrong one first", &[&foreign], &leaf, &[&middle, &crossed], crossed_line);
    trial.chain("by another root alone", &[&root], &leaf, &[&crossed], missing);
    trial.chain("the one between as root", &[&middle], &leaf, &[], missing);
    trial.chain("the root along", &[&root], &leaf, &[&middle, &root], GOOD);
    trial.chain("out of order", &[&root], &leaf, &[&root, &middle], GOOD);
    trial.chain("twice", &[&root], &leaf, &[&middle, &middle, &leaf], GOOD);
    trial.chain("the leaf as root", &[&leaf], &leaf, &[], missing);
    place(&trial.site, &[&root], &leaf, &[]);
    let turned = [middle.certificate_pem(), leaf.certificate_pem()].concat();
    trial.site.write("cert.pem", turned);
    trial.of(
        "the authority first",
        &["is not the key of the first certificate", "has to come first there"],
    );

    let end = BasicConstraints::new().critical().build().unwrap();
    let own = Order::new(SUBJECT, None, end).make();
    trial.chain("its own root, which is no authority", &[&own], &own, &[], GOOD);
    let mut bytes = leaf.certificate.to_der().unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 1;
    let changed = Identity { certificate: X509::from_der(&bytes).unwrap(), key: leaf.key.clone() };
    trial.chain(
        "changed by one bit",
        &[&root],
        &changed,
        &[&middle],
        &["signature failure; it was changed"],
    );
    let names: Vec<String> = (0..12).map(|at| format!("/CN=d{at}")).collect();
    let mut deep = vec![new(&names[0])];
    for name in &names[1..] {
        let next = Order::authority(name, deep.last()).make();
        deep.push(next);
    }
    let leaf = Order::leaf(deep.last().unwrap()).make();
    let along: Vec<&Identity> = deep[1..].iter().rev().collect();
    trial.chain("eleven between", &[&deep[0]], &leaf, &along, GOOD);
    trial.end(18);
}

#[test]
fn ends_of_all_lives() {
    let mut trial = Trial::new();
    let long = (-DAY, 3650 * DAY);
    let hour = 3600;
    let authority = |name, issuer, valid: (i64, i64)| {
        Order::authority(name, issuer).valid(valid.0, valid.1).make()
    };
    let root = authority("/CN=top", None, long);
    let members: [(&str, (i64, i64), Line); 12] = [
        ("398 days, half way", (-199 * DAY, 199 * DAY), GOOD),
        ("398 days, 29 to go", (-369 * DAY, 29 * DAY + 60), &["expires in 29 days"]),
        ("90 days, 31 to go", (-59 * DAY, 31 * DAY), GOOD),
        ("90 days, 29 to go", (-61 * DAY, 29 * DAY + 60), &["expires in 29 days"]),
        ("47 days, 16 to go", (-31 * DAY, 16 * DAY), GOOD),
        ("47 days, 15 to go", (-32 * DAY, 15 * DAY + 60), &["expires in 15 days"]),
        ("six days, two to go", (-4 * DAY, 2 * DAY + hour), GOOD),
        ("six days, one to go", (-5 * DAY, DAY + 60), &["expires in 1 day,"]),
        ("an hour, half way", (-hour / 2, hour / 2), GOOD),
        ("five minutes, one to go", (-240, 59), &["expires in 5", "second"]),
        ("since 1950, to 9999", (-2_300_000_000, 250_000_000_000), GOOD),
        ("over before it begins", (DAY, -DAY), &["which expired at ", "; renew it"]),
    ];
    for (name, (from, to), line) in members {
        trial.chain(name, &[&root], &Order::leaf(&root).valid(from, to).make(), &[], line);
    }
    // What is not used has no end that counts.
    let leaf = Order::leaf(&root).make();
    let over = authority("/CN=over", None, (-9 * DAY, -DAY));
    let soon = authority("/CN=soon", Some(&root), (-DAY, DAY));
    trial.chain("an expired root beside the used one", &[&over, &root], &leaf, &[], GOOD);
    trial.chain("one along that is not used", &[&root], &leaf, &[&soon, &over], GOOD);
    let told: Line = &["on /CN=soon, which expires in 23 hours", "renew that one first"];
    trial.chain("the same, used", &[&root], &Order::leaf(&soon).make(), &[&soon], told);
    let ended = authority("/CN=ended", Some(&root), (-9 * DAY, -DAY));
    let expired: Line = &["/CN=ended: certificate has expired, at ", "; renew that one"];
    trial.chain(
        "one between that is over",
        &[&root],
        &Order::leaf(&ended).make(),
        &[&ended],
        expired,
    );
    trial.end(16);
}
