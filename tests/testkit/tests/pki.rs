//! Certificates are what their requests say, in the eyes of OpenSSL's own verification.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use openssl::pkey::PKey;
use openssl::stack::Stack;
use openssl::x509::store::{X509Store, X509StoreBuilder};
use openssl::x509::verify::X509VerifyParam;
use openssl::x509::{X509PurposeId, X509StoreContext, X509};
use testkit::pki::{Authority, Identity, Purpose, Request};
use testkit::run_dir::RunDir;
use testkit::Result;

const SUBJECT: &str = "/C=US/ST=IL/O=Yahoo/OU=Edge/CN=server-1";

/// Whether `leaf` is good for `purpose` below `root`; else OpenSSL's reason.
fn verify(
    root: &X509,
    leaf: &X509,
    purpose: X509PurposeId,
) -> Result<std::result::Result<(), String>> {
    let mut builder = X509StoreBuilder::new()?;
    builder.add_cert(root.clone())?;
    let mut parameters = X509VerifyParam::new()?;
    parameters.set_purpose(purpose)?;
    builder.set_param(&parameters)?;
    let store: X509Store = builder.build();
    let mut context = X509StoreContext::new()?;
    let good = context.init(&store, leaf, Stack::new()?.as_ref(), |context| {
        Ok(if context.verify_cert()? {
            Ok(())
        } else {
            Err(context.error().error_string().to_owned())
        })
    })?;
    Ok(good)
}

#[test]
fn a_good_certificate_is_good_for_both_sides_below_its_own_root_only() -> Result<()> {
    let (ours, foreign) = (Authority::new("/CN=root")?, Authority::new("/CN=root")?);
    let leaf = ours.issue(&Request::new(SUBJECT))?.certificate;
    for purpose in [X509PurposeId::SSL_CLIENT, X509PurposeId::SSL_SERVER] {
        assert_eq!(verify(&ours.identity.certificate, &leaf, purpose)?, Ok(()));
        assert!(verify(&foreign.identity.certificate, &leaf, purpose)?.is_err());
    }
    let entries: Vec<String> = leaf
        .subject_name()
        .entries()
        .map(|entry| {
            let field = entry.object().nid().short_name()?;
            Ok(format!("/{field}={}", String::from_utf8_lossy(entry.data().as_slice())))
        })
        .collect::<Result<_>>()?;
    assert_eq!(entries.concat(), SUBJECT);
    Ok(())
}

#[test]
fn bad_certificates_are_bad_in_the_way_asked_for() -> Result<()> {
    let authority = Authority::new("/CN=root")?;
    let reason = |request: Request, purpose| {
        let leaf = authority.issue(&request)?.certificate;
        verify(&authority.identity.certificate, &leaf, purpose)
    };
    let (client, server) = (X509PurposeId::SSL_CLIENT, X509PurposeId::SSL_SERVER);
    let new = || Request::new(SUBJECT);
    let unsuitable = Err("unsuitable certificate purpose".to_owned());
    assert_eq!(reason(new().expired(), client)?, Err("certificate has expired".into()));
    assert_eq!(reason(new().not_yet_valid(), client)?, Err("certificate is not yet valid".into()));
    assert_eq!(reason(new().purposes(&[Purpose::Server]), server)?, Ok(()));
    assert_eq!(reason(new().purposes(&[Purpose::Server]), client)?, unsuitable);
    assert_eq!(reason(new().purposes(&[Purpose::CodeSigning]), server)?, unsuitable);
    assert_eq!(reason(new().purposes(&[]), client)?, Ok(()));
    Ok(())
}

#[test]
fn a_self_signed_certificate_is_root_and_leaf_in_one() -> Result<()> {
    let one = Identity::self_signed(SUBJECT)?.certificate;
    assert_eq!(verify(&one, &one, X509PurposeId::SSL_CLIENT)?, Ok(()));
    assert_eq!(verify(&one, &one, X509PurposeId::SSL_SERVER)?, Ok(()));
    Ok(())
}

#[test]
fn files_hold_a_pair_and_the_key_is_private() -> Result<()> {
    let dir = RunDir::new("pki")?;
    let files = Identity::self_signed(SUBJECT)?.write(dir.path(), "one")?;
    let certificate = X509::from_pem(&fs::read(&files.certificate)?)?;
    let key = PKey::private_key_from_pem(&fs::read(&files.key)?)?;
    let public = certificate.public_key()?;
    assert!(public.public_eq(&key));
    assert_eq!(fs::metadata(&files.key)?.permissions().mode() & 0o777, 0o600);
    assert!(Identity::self_signed("CN=no slash").is_err());
    assert!(Identity::self_signed("/CN").is_err());
    dir.done()
}
