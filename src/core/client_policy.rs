//! What Traffic Server asks of its clients: the record for all sites, and what sni.yaml says of single
//! names.
//!
//! Reads of sni.yaml what the host reads about client certificates and no more; whether the rest is
//! right is for the host to say. The status of each server carries it, so that servers can be told
//! from each other: a session is not resumed where another certificate is asked for, and must not be
//! where a certificate is demanded.
//!
//! Invariants: names are compared without case, as they are in a ClientHello; where the entries
//! stand, and all else in the file, makes no difference.

use std::collections::BTreeMap;

use openssl::sha::Sha256;
use serde::{Deserialize, Serialize};

use super::config::yaml::{parse, Node};
use super::text::{readable, short_digest};

/// The most names that a status carries; the digest is over all.
pub const MAX_SITES: usize = 64;

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientPolicy {
    /// `proxy.config.ssl.client.certification_level`: 0 asks for none, 1 for one that may be left
    /// out, 2 demands one.
    pub level: i64,
    /// The names of which sni.yaml says something else, in their order.
    pub sites: Vec<SitePolicy>,
    /// The first 8 hex digits of SHA-256 over all of them.
    pub digest: String,
}

/// What is asked of clients of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SitePolicy {
    /// The name, or a pattern, in lower case.
    pub name: String,
    /// `verify_client` as it stands there, such as STRICT; empty if only authorities are given.
    pub asks: String,
    /// What the authorities of `verify_client_ca_certs` are, by their subjects.
    pub authorities: Option<String>,
}

impl ClientPolicy {
    /// Reads a text of sni.yaml. `authorities` names the certificates in a file. A text that
    /// cannot be read has no entries: the host says what is wrong with it.
    pub fn read(level: i64, text: &str, authorities: impl Fn(&str) -> String) -> ClientPolicy {
        let mut sites: BTreeMap<String, SitePolicy> = BTreeMap::new();
        let document = parse(text).map_or(Node::Null, |(node, _)| node);
        for entry in document.field("sni").map(Node::entries).unwrap_or_default() {
            let Some(name) = entry.field("fqdn").and_then(words) else { continue };
            let asks = entry.field("verify_client").and_then(words).map(|w| w.to_uppercase());
            let given = entry.field("verify_client_ca_certs");
            if asks.is_none() && given.is_none() {
                continue;
            }
            let name = readable(&name.to_lowercase());
            let site = SitePolicy {
                name: name.clone(),
                asks: readable(&asks.unwrap_or_default()),
                authorities: given.map(|node| readable(&named(node, &authorities))),
            };
            // The host goes by the first entry that fits.
            sites.entry(name).or_insert(site);
        }
        let mut hash = Sha256::new();
        for site in sites.values() {
            // No text has a NUL in it, which `readable` replaces.
            let authorities = site.authorities.as_deref().unwrap_or_default();
            for part in [site.name.as_str(), site.asks.as_str(), authorities] {
                hash.update(part.as_bytes());
                hash.update(&[0]);
            }
        }
        let digest = short_digest(&hash.finish());
        let sites = sites.into_values().take(MAX_SITES).collect();
        ClientPolicy { level, sites, digest }
    }

    /// The first name of which the two say something else.
    pub fn differs_in<'a>(&'a self, other: &'a ClientPolicy) -> Option<&'a str> {
        let others = |site: &&SitePolicy| !other.sites.contains(site);
        let ours = |site: &&SitePolicy| !self.sites.contains(site);
        let mut names: Vec<&str> =
            self.sites.iter().filter(others).map(|site| site.name.as_str()).collect();
        names.extend(other.sites.iter().filter(ours).map(|site| site.name.as_str()));
        names.into_iter().min()
    }

    /// What servers with this policy do about the name, as a person would say it of several.
    pub fn of(&self, name: &str) -> String {
        let site = self.sites.iter().find(|site| site.name == name);
        match site {
            None => "say nothing of it".to_owned(),
            Some(SitePolicy { asks, authorities: None, .. }) => format!("have {asks}"),
            Some(SitePolicy { asks, authorities: Some(those), .. }) if asks.is_empty() => {
                format!("have the authorities: {those}")
            }
            Some(SitePolicy { asks, authorities: Some(those), .. }) => {
                format!("have {asks} by the authorities: {those}")
            }
        }
    }

    /// All texts in it.
    pub(super) fn texts(&self) -> impl Iterator<Item = &String> {
        let plain = self.sites.iter().flat_map(|site| [&site.name, &site.asks]);
        let authorities = self.sites.iter().filter_map(|site| site.authorities.as_ref());
        plain.chain(authorities).chain([&self.digest])
    }
}

/// A file, or a file and a directory; what is in the directory is not looked at.
fn named(node: &Node, authorities: &impl Fn(&str) -> String) -> String {
    if let Some(file) = words(node) {
        return authorities(file);
    }
    let file = node.field("file").and_then(words).map(authorities);
    let dir = node.field("dir").and_then(words).map(|_| "those of a directory".to_owned());
    let parts: Vec<String> = file.into_iter().chain(dir).collect();
    parts.join(" and ")
}

fn words(node: &Node) -> Option<&str> {
    match node {
        Node::Text(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ClientPolicy {
        ClientPolicy::read(0, text, |file| format!("<{file}>"))
    }

    #[test]
    fn what_the_host_asks_of_clients_is_read_and_nothing_else() {
        let policy = read(
            "sni:\n\
             - fqdn: b.example\n  verify_client: strict\n  http2: off\n\
             - fqdn: A.example\n  verify_client_ca_certs: ca.pem\n\
             - fqdn: '*.c.example'\n  verify_client: NONE\n  verify_client_ca_certs: {file: x, dir: y}\n\
             - fqdn: d.example\n  ip_allow: 127.0.0.1\n\
             - fqdn: b.example\n  verify_client: NONE\n",
        );
        let names: Vec<_> = policy.sites.iter().map(|site| site.name.as_str()).collect();
        assert_eq!(names, ["*.c.example", "a.example", "b.example"]);
        assert_eq!(policy.of("b.example"), "have STRICT");
        assert_eq!(policy.of("a.example"), "have the authorities: <ca.pem>");
        let both = "have NONE by the authorities: <x> and those of a directory";
        assert_eq!(policy.of("*.c.example"), both);
        assert_eq!(policy.of("d.example"), "say nothing of it");
        let texts: Vec<&str> = policy.texts().map(String::as_str).collect();
        for text in ["b.example", "STRICT", "<ca.pem>", &policy.digest] {
            assert!(texts.contains(&text), "{text}: {texts:?}");
        }
    }

    #[test]
    fn order_and_all_else_make_no_difference_and_what_is_asked_does() {
        let one =
            read("sni:\n- {fqdn: a, verify_client: STRICT}\n- {fqdn: b, verify_client: NONE}\n");
        let same = read(
            "sni:\n- {fqdn: B, verify_client: none, http2: off}\n- {fqdn: c, http2: on}\n\
             - {fqdn: a, verify_client: STRICT}\n",
        );
        assert_eq!((one.differs_in(&same), &one), (None, &same));
        let other =
            read("sni:\n- {fqdn: a, verify_client: MODERATE}\n- {fqdn: b, verify_client: NONE}\n");
        assert_ne!(one.digest, other.digest);
        assert_eq!((one.differs_in(&other), other.differs_in(&one)), (Some("a"), Some("a")));
        let fewer = read("sni:\n- {fqdn: a, verify_client: STRICT}\n");
        assert_eq!(one.differs_in(&fewer), Some("b"));
    }

    #[test]
    fn a_file_that_is_none_has_no_entries_and_many_are_bounded() {
        for text in
            ["", "sni: 3", "- a", "sni:\n- 3\n- {fqdn: [a], verify_client: NONE}", "{", "\t"]
        {
            assert_eq!(read(text), read(""), "{text:?}");
        }
        let many: String = (0..MAX_SITES + 9)
            .map(|at| format!("- {{fqdn: n{at:04}, verify_client: NONE}}\n"))
            .collect();
        let (some, more) = (
            read(&format!("sni:\n{many}")),
            read(&format!("sni:\n{many}- {{fqdn: z, verify_client: NONE}}\n")),
        );
        assert_eq!(some.sites.len(), MAX_SITES);
        assert!(some.differs_in(&more).is_none() && some.digest != more.digest);
    }
}
