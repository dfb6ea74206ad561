//! Further members of one kind of faults: files that are something else than they should be, and how numbers
//! and names may be written. Each is called what it is.

use openssl::base64::encode_block;
use openssl::pkcs12::Pkcs12;

use super::field::{explained, has_all, refusal};
use super::*;

/// PKCS#7 with one certificate and no signer, in DER.
fn pkcs7(certificate: &X509) -> Vec<u8> {
    let seq = |tag: u8, parts: &[&[u8]]| {
        let body = parts.concat();
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[tag, 0x82][..], &len, &body].concat()
    };
    let signed_data = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";
    let data = b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
    let der = certificate.to_der().unwrap();
    let inner = seq(0x30, &[b"\x02\x01\x01", b"\x31\x00", data, &seq(0xa0, &[&der]), b"\x31\x00"]);
    seq(0x30, &[signed_data, &seq(0xa0, &[&inner])])
}

fn block(label: &str, der: &[u8]) -> Vec<u8> {
    let body = encode_block(der);
    let lines = body.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    let lines = lines.collect::<Vec<_>>().join("\n");
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n").into_bytes()
}

#[test]
fn forms_of_a_certificate_that_openssl_reads_load_without_a_word() {
    let site = Site::new();
    let own = site.leaf(SUBJECT, -DAY, 365 * DAY);
    let text = String::from_utf8(own.certificate_pem()).unwrap();
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let one_line = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    for (name, good) in [
        ("a mark of byte order", format!("\u{feff}{text}")),
        ("lines of Windows", text.replace('\n', "\r\n")),
        ("blanks at the ends", text.replace('\n', "  \n")),
        ("base64 in one line", one_line),
        ("the older label", text.replace("CERTIFICATE", "X509 CERTIFICATE")),
        ("remarks round it", format!("Certificate:\n    Data:\n{text}\n# end\n")),
    ] {
        site.write_identity(&own);
        site.write("cert.pem", good);
        let loaded = site.load().map_err(|refused| site.lines(&refused.problems));
        assert_eq!(loaded.map(|l| site.lines(&l.warnings)), Ok(vec![]), "{name}");
    }
    let key = String::from_utf8(own.key_pem()).unwrap();
    let sec1 = own.key.ec_key().unwrap().private_key_to_pem().unwrap();
    let parameters =
        b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    for good in [
        format!("\u{feff}{key}").into_bytes(),
        sec1.clone(),
        [&parameters[..], &sec1].concat(),
        format!("{text}{key}").into_bytes(),
        key.replace('\n', "\r\n").into_bytes(),
    ] {
        site.write_identity(&own);
        site.write("key.pem", good);
        assert_eq!(site.load().map(|l| l.warnings.len()).map_err(|_| ()), Ok(0));
    }
}

#[test]
fn what_is_no_certificate_is_called_what_it_is() {
    let site = Site::new();
    let own = site.leaf(SUBJECT, -DAY, 365 * DAY);
    let cert = own.certificate_pem();
    let text = String::from_utf8(cert.clone()).unwrap();
    let der = own.certificate.to_der().unwrap();
    let p12 = Pkcs12::builder().pkey(&own.key).cert(&own.certificate).build2("x").unwrap();
    let p12 = p12.to_der().unwrap();
    let secret = format!("kind: Secret\ndata:\n  tls.crt: {}\n", encode_block(&cert));
    let indented = text.lines().fold(String::new(), |all, line| format!("{all}  {line}\n"));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "it is empty; copy it anew"),
        (vec![0; 1000], "it holds nothing but zeros"),
        (
            b"<!DOCTYPE html>\n<html>404</html>\n".to_vec(),
            "HTML or XML, perhaps the page of an error",
        ),
        (b"{{ certificate }}\n".to_vec(), "a template that was not filled in"),
        (b"$ANSIBLE_VAULT;1.1;AES256\n6233\n".to_vec(), "ansible-vault has encrypted; decrypt it"),
        (b"PuTTY-User-Key-File-3: ssh-ed25519\n".to_vec(), "an SSH key"),
        (secret.into_bytes(), "YAML with PEM text in base64, as a Kubernetes Secret; take it out"),
        (
            format!("tls.crt: |\n{indented}").into_bytes(),
            "its block of line 2 begins in the middle",
        ),
        (text.replace('\n', "\\n").into_bytes(), "line 1 has its line breaks written as \\n"),
        (text.replace('\n', "\r").into_bytes(), "has more than '-----BEGIN ...-----' in its first"),
        (
            text.replace("-----", "\u{2013}\u{2014}\u{2013}").into_bytes(),
            "other characters than five hyphens",
        ),
        (text.replace("-----", "----").into_bytes(), "other characters than five hyphens"),
        (encode_block(&p12).into_bytes(), "PKCS#12 (.p12, .pfx) in base64; decode it"),
        (
            block("CERTIFICATE", &pkcs7(&own.certificate)),
            "line 1 has the label CERTIFICATE and holds PKCS#7",
        ),
        (pkcs7(&own.certificate), "PKCS#7 in DER form; take them out: openssl pkcs7 -inform DER"),
        (block("CERTIFICATE", &p12), "line 1 has the label CERTIFICATE and holds PKCS#12"),
        (block("X509 CRL", &der), "a revocation list (CRL), in line 1"),
        (
            block("PGP PUBLIC KEY BLOCK", &der),
            "a block of the kind PGP PUBLIC KEY BLOCK, in line 1",
        ),
        (own.key.public_key_to_der().unwrap(), "a public key in DER form"),
        (vec![0xce, 0xce, 0xce, 0xce, 0, 0, 0, 2], "a Java keystore; convert it: keytool"),
        (vec![0xfd, b'7', b'z', b'X', b'Z', 0], "a compressed file; unpack it"),
    ];
    for (bytes, part) in cases {
        for (file, option) in [("cert.pem", "server_cert_file: "), ("root.pem", "root_cert_file: ")]
        {
            site.write_identity(&own);
            let good = fs::read(site.path(file)).unwrap();
            site.write(file, &bytes);
            has_all(&refusal(&site), &[option, "holds no certificate in PEM form", part]);
            site.write(file, good);
        }
    }
}

#[test]
fn what_is_no_key_is_called_what_it_is() {
    let site = Site::new();
    let own = site.leaf(SUBJECT, -DAY, 365 * DAY);
    let key = own.key.private_key_to_pkcs8().unwrap();
    let sealed = own.key.private_key_to_pkcs8_passphrase(Cipher::aes_128_cbc(), b"x").unwrap();
    for (bytes, part) in [
        (vec![], "it is empty"),
        (vec![0; 241], "it holds nothing but zeros"),
        (
            block("RSA PRIVATE KEY", &key),
            "has the label RSA PRIVATE KEY and holds a private key of another form",
        ),
        (block("TSS2 PRIVATE KEY", &key), "the kind TSS2 PRIVATE KEY, which OpenSSL does not read"),
        (sealed, "protected by a passphrase in DER form; convert it: openssl pkcs8"),
        (
            block("EC PARAMETERS", b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"),
            "the kind EC PARAMETERS, in line 1",
        ),
        (b"pkcs11:token=x;object=y\n".to_vec(), "the address of a key in a token"),
        (encode_block(&own.key_pem()).into_bytes(), "put into base64 once more"),
        (b"<html>".to_vec(), "HTML or XML"),
    ] {
        site.write("key.pem", bytes);
        let line = refusal(&site);
        has_all(&line, &["server_key_file: ", "holds no private key in PEM form", part]);
        // Whatever a key file has in it, no line shows any of it.
        assert!(!line.contains(&encode_block(&key)[..12]), "{line}");
    }
}

#[test]
fn numbers_and_names_are_taken_or_told_as_they_are_written() {
    let load = |from: &str, to: &str| {
        let site = Site::new();
        site.edit("server_conf.yaml", from, to);
        let loaded = site.load();
        loaded.map(|l| (l.settings.key_update_interval.as_secs(), site.lines(&l.warnings))).map_err(
            |refused| {
                let lines = site.lines(&refused.problems);
                lines.iter().for_each(|line| explained(line));
                lines.join("\n")
            },
        )
    };
    for said in [
        "'15'",
        "0o17",
        "0x0f",
        "+15",
        "0b1111",
        "15.0e0",
        "!!int 15",
        "!!str 15",
        "|\n  15",
        "\"15\\n\"",
    ] {
        assert_eq!(load("interval: 15", &format!("interval: {said}")), Ok((15, vec![])), "{said}");
    }
    for said in
        ["1_500", "3,600", "1h", "15 seconds", "yes", "1:30", "1e400", "\u{ff11}\u{ff15}", "15,"]
    {
        let line = load("interval: 15", &format!("interval: {said}")).unwrap_err();
        has_all(
            &line,
            &[&format!("line 4: key_update_interval: \"{said}\" is not a whole number; give")],
        );
    }
    has_all(
        &load("interval: 15", "interval: 015").unwrap_err(),
        &["015\" begins with 0, which some"],
    );
    has_all(
        &load("interval: 15", "interval: ~").unwrap_err(),
        &["key_update_interval: has no value"],
    );
    has_all(&load("interval: 15", "interval: -15.0").unwrap_err(), &["-15.0 is out of range"]);

    // Characters that nobody sees.
    let line = load("server_id: 1", "server_id:\u{a0}1").unwrap_err();
    has_all(&line, &["is no YAML: ", "; take U+00A0 out of line 1, which looks like a blank"]);
    let line = load("port: 10001", "port: \u{200b}10001").unwrap_err();
    has_all(&line, &["line 3: port: \"\\u{200b}10001\" is not a whole number"]);
    has_all(
        &load("root.pem", "\u{201c}root.pem\u{201d}").unwrap_err(),
        &["\u{201c}root.pem\u{201d}\" is not there"],
    );

    // Whole files in other clothes.
    for (name, other) in [
        ("lines of Windows", CONF.replace('\n', "\r\n")),
        ("two marks of byte order", format!("\u{feff}\u{feff}{CONF}")),
        ("a directive and an end", format!("%YAML 1.1\n---\n{CONF}...\n")),
        ("a remark with an odd blank", format!("# from\u{a0}here\n{CONF}")),
    ] {
        assert_eq!(load(CONF, &other), Ok((15, vec![])), "{name}");
    }
    for wrong in ["port = 10001", "port:10001", "<<<<<<< HEAD\nport: 10001"] {
        has_all(
            &load("port: 10001", wrong).unwrap_err(),
            &["is no YAML: ", "correct it there or just above"],
        );
    }

    // The subject in the clothes in which other tools print it.
    for form in [
        "subject=/C=US/O=Example/CN=server",
        "C = US, O = Example, CN = server",
        "CN=server,O=Example,C=US",
        "\"'/C=US/O=Example/CN=server'\"",
        "server",
    ] {
        let line = load(SUBJECT, form).unwrap_err();
        has_all(
            &line,
            &["line 9: cert_verify_str: ", "is not a subject of the form", "-nameopt compat"],
        );
    }
    for other in [
        "/CN=server/O=Example/C=US",
        "/c=us/o=Example/cn=server",
        "/C=US/O=Example/CN=*",
        "/C=US/O=Example/CN=server/",
    ] {
        let line = load(SUBJECT, other).unwrap_err();
        has_all(&line, &["is not the subject of this server's own certificate, /C=US/O=Example/CN=server; make both"]);
    }
}
