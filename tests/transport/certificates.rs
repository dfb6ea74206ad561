//! What certificates are loaded, and how their subjects are written.

use super::*;

#[test]
fn each_fault_of_a_certificate_has_its_name() {
    let root = pki::root("root");
    let (leaf, other) = (pki::leaf(&root), pki::leaf(&root));
    let (cert, key) = (leaf.cert_pem(), leaf.key_pem());
    let load = |root: &[u8], chain: &[u8], key: &[u8], subject: &str| {
        Tls::from_pem(root, chain, key, subject).map(|_| ()).unwrap_err()
    };
    let root_pem = root.cert_pem();
    for garbage in [
        &b""[..],
        b"garbage",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        &key,
    ] {
        assert!(matches!(load(garbage, &cert, &key, ""), TlsError::RootGarbage));
        assert!(matches!(load(&root_pem, garbage, &key, ""), TlsError::ChainGarbage));
    }
    for garbage in [&b""[..], b"garbage", &cert] {
        assert!(matches!(load(&root_pem, &cert, garbage, ""), TlsError::KeyGarbage));
    }
    let locked =
        leaf.key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_128_cbc(), b"pw").unwrap();
    assert!(matches!(load(&root_pem, &cert, &locked, ""), TlsError::KeyEncrypted));
    let locked_cert = String::from_utf8(cert.clone()).unwrap().replacen(
        "-----\n",
        "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n",
        1,
    );
    assert!(matches!(load(&root_pem, locked_cert.as_bytes(), &key, ""), TlsError::ChainGarbage));
    let error = load(&root_pem, &cert, &other.key_pem(), "");
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error:?}");
    let error = load(&root_pem, &cert, &key, "/CN=else");
    assert!(matches!(&error, TlsError::SubjectMismatch { found } if found == SUBJECT), "{error:?}");
    let spec = Spec { issuer: Some(&root), ..Spec::default() };
    let with = |spec: Spec<'_>| tls_for(&root, &spec.make(), SUBJECT).map(|_| ()).unwrap_err();
    let error = with(Spec { not_after: -60, ..spec.clone() });
    assert!(matches!(error, TlsError::Expired { .. }), "{error:?}");
    let error = with(Spec { not_before: 3600, ..spec.clone() });
    assert!(matches!(error, TlsError::NotYetValid { .. }), "{error:?}");
    let error = with(Spec { usage: Some("codeSigning"), ..spec });
    assert!(matches!(error, TlsError::ChainUntrusted { .. }), "{error:?}");
    let error = load(&pki::root("root").cert_pem(), &cert, &key, "");
    assert!(matches!(error, TlsError::ChainUntrusted { .. }), "{error:?}");
}

#[test]
fn loaded_certificates_tell_of_themselves() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let tls = tls(&root, &leaf);
    assert_eq!(tls.subject(), SUBJECT);
    assert!(tls.names_match(&SUBJECT.into()) && !tls.names_match(&"/CN=x".into()));
    assert!(!tls.names_match(&"/CN=any".into()));
    let left = tls.expiries()[0].left.as_secs();
    assert!((86_000..=86_400).contains(&left), "{left}");
    assert_eq!(tls.leaf_fingerprint().len(), 64);
    let any = tls_for(&root, &leaf, "").unwrap();
    assert!(any.names_match(&"/CN=x".into()));
}

#[tokio::test]
async fn a_handshake_names_its_fault() {
    let root = pki::root("root");
    let ours = tls(&root, &pki::leaf(&root));
    let else_ = Spec { subject: "/CN=else", issuer: Some(&root), ..Spec::default() }.make();
    let theirs = tls_for(&root, &else_, "").unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    let accept = async { ours.accept(socket.accept().await.unwrap().0).await.map(|_| ()) };
    let connect =
        async { theirs.connect(TcpStream::connect(addr).await.unwrap()).await.map(|_| ()) };
    let (accepted, connected) = tokio::join!(accept, connect);
    assert_eq!(accepted, Err(HandshakeError::WrongSubject("/CN=else".to_owned())));
    assert_eq!(connected, Ok(()), "with TLS 1.3 the dialling side is done before it is checked");
}

/// Our one-line form against that of the `openssl` command, over names with everything odd.
#[test]
fn one_line_is_what_openssl_prints() {
    let key = openssl::rsa::Rsa::generate(2048).unwrap();
    let key: PKey<Private> = PKey::from_rsa(key).unwrap();
    for name in odd_names() {
        let name = X509Name::from_der(&name).unwrap();
        let mut cert = X509::builder().unwrap();
        cert.set_version(2).unwrap();
        cert.set_subject_name(&name).unwrap();
        cert.set_issuer_name(&name).unwrap();
        cert.set_pubkey(&key).unwrap();
        cert.set_not_before(&openssl::asn1::Asn1Time::days_from_now(0).unwrap()).unwrap();
        cert.set_not_after(&openssl::asn1::Asn1Time::days_from_now(1).unwrap()).unwrap();
        cert.sign(&key, openssl::hash::MessageDigest::sha256()).unwrap();
        let mut command = Command::new("openssl")
            .args(["x509", "-noout", "-subject", "-nameopt", "compat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pem = cert.build().to_pem().unwrap();
        command.stdin.take().unwrap().write_all(&pem).unwrap();
        let printed = command.wait_with_output().unwrap().stdout;
        let printed = String::from_utf8(printed).unwrap();
        let printed = printed.strip_prefix("subject=").unwrap().strip_suffix('\n').unwrap();
        let cert = X509::from_pem(&pem).unwrap();
        // Ours tells apart what the command does not: where a backslash stands for itself, and
        // what is no string of bytes.
        let ours = one_line(cert.subject_name());
        let odd = ["\\#03", "\\#1C", "\\#1E", "\\#30"];
        let as_printed =
            odd.iter().fold(ours.replace("\\\\", "\\"), |line, tag| line.replace(tag, ""));
        assert_eq!(as_printed, printed, "{ours}");
    }
}

/// Encoded names: plain, many kinds of strings, odd characters, several attributes in one
/// relative name, an attribute that OpenSSL has no name for, and none at all.
fn odd_names() -> Vec<Vec<u8>> {
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        match content.len() {
            n @ 0..=127 => out.push(n as u8),
            n => out.extend_from_slice(&[0x82, (n >> 8) as u8, n as u8]),
        }
        out.extend_from_slice(content);
        out
    }
    const CN: &[u8] = &[0x55, 4, 3];
    const O: &[u8] = &[0x55, 4, 10];
    const EMAIL: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1];
    const OWN: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xa5, 0x1d, 7];
    let (bits, utf8, sequence) = (3, 12, 0x30);
    let (numeric, printable, t61, ia5, universal, bmp) = (18, 19, 20, 22, 28, 30);
    let entry =
        |oid: &[u8], tag: u8, value: &[u8]| der(0x30, &[der(6, oid), der(tag, value)].concat());
    let set = |entries: &[Vec<u8>]| der(0x31, &entries.concat());
    let name = |sets: &[Vec<u8>]| der(0x30, &sets.concat());
    let one = |oid: &[u8], tag: u8, value: &[u8]| name(&[set(&[entry(oid, tag, value)])]);
    let all_bytes: Vec<u8> = (1..=255).collect();
    vec![
        name(&[]),
        name(&[set(&[entry(O, printable, b"Yahoo")]), set(&[entry(CN, utf8, b"stek-share")])]),
        one(CN, utf8, "Zürich/Ost + West \\ \"quoted\"".as_bytes()),
        one(CN, t61, &all_bytes),
        one(CN, utf8, b"a\0b\nc\x7f"),
        one(CN, utf8, b""),
        one(EMAIL, ia5, b"ops@example.com"),
        one(OWN, utf8, b"an attribute of nobody"),
        one(CN, bmp, b"\0a\0b\x01\x02"),
        one(CN, universal, b"\0\0\0a\0\0\0b"),
        one(CN, numeric, b"0123 4"),
        one(CN, bits, b"\x04a\xf0"),
        one(CN, sequence, &der(utf8, b"inner")),
        name(&[
            set(&[entry(CN, utf8, b"one"), entry(O, utf8, b"two+three")]),
            set(&[entry(CN, utf8, b"four")]),
        ]),
        one(CN, utf8, &[b'x'; 300]),
    ]
}

/// RFC 5869: an old state file is opened by the key that sealed it.
#[test]
fn keys_for_sealing_are_drawn_from_the_private_key_by_hkdf() {
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let tls = tls_for(&root, &leaf, SUBJECT).unwrap();
    let of = |purpose: &[u8]| {
        let mut whole = PkeyCtx::new_id(Id::HKDF).unwrap();
        whole.derive_init().unwrap();
        whole.set_hkdf_md(Md::sha256()).unwrap();
        whole.set_hkdf_key(&leaf.key.private_key_to_der().unwrap()).unwrap();
        whole.add_hkdf_info(purpose).unwrap();
        let mut key = [0; 32];
        whole.derive(Some(&mut key)).unwrap();
        key
    };
    for purpose in [&b"a state file"[..], b"another", b""] {
        assert_eq!(*tls.derive_key(purpose).unwrap(), of(purpose));
    }
    assert_ne!(*tls.derive_key(b"a").unwrap(), *tls.derive_key(b"b").unwrap());
    let other = tls_for(&root, &pki::leaf(&root), SUBJECT).unwrap();
    assert_ne!(*tls.derive_key(b"a").unwrap(), *other.derive_key(b"a").unwrap());
}
