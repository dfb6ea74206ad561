//! Which library answers when this plugin calls OpenSSL.
//!
//! A Traffic Server that is linked with BoringSSL exports the names that OpenSSL has, and the loader binds the
//! plugin's calls to them; their structures are others, so that certificates seem empty. Invariants: what is not
//! known to be right is not used; nothing is called but what tells the version.

use openssl::version;

/// The first version whose functions the plugin is built for.
const FIRST: i64 = 0x3000_0000;

/// What is to be said if that is no OpenSSL that the plugin can use.
pub fn foreign() -> Option<String> {
    wrong(version::version(), version::number())
}

/// `text` and `number` as the library tells them.
fn wrong(text: &str, number: i64) -> Option<String> {
    let is_openssl = text.starts_with("OpenSSL ") && !text.contains("AWS-LC");
    (!is_openssl || number < FIRST).then(|| {
        format!(
            "the calls of OpenSSL in this plugin go to {} (version number {number:x}), which comes with this \
             Traffic Server, and it is built for OpenSSL 3: no certificate can be read; use a Traffic Server \
             that is built with OpenSSL 3, or this plugin with an OpenSSL of its own (make \
             build-own-openssl), on all servers, as sessions of the one library never resume under the other",
            if text.is_empty() { "another library" } else { text }
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_openssl_of_this_kind_is_used() {
        assert_eq!(foreign(), None);
        for (text, number) in
            [("OpenSSL 3.0.17 1 Jul 2025", 0x3000_0110), ("OpenSSL 4.0.0", 0x4000_0000)]
        {
            assert_eq!(wrong(text, number), None, "{text}");
        }
        for (text, number) in [
            ("BoringSSL", 0x1010_107f),
            ("OpenSSL 1.1.1 (compatible; AWS-LC 1.30.0)", 0x1010_107f),
            ("OpenSSL 1.1.1w  11 Sep 2023", 0x1010_117f),
            ("LibreSSL 4.0.0", 0x2000_0000),
            ("", 0x3000_0000),
        ] {
            let line = wrong(text, number).unwrap_or_default();
            assert!(
                line.contains(text) && line.contains("; use a Traffic Server"),
                "{text}: {line}"
            );
        }
    }
}
