//! How the two files say who a server is: the names that certificates go by, and the word `auto`.
//!
//! Which server it is then is for [`super::oneself`] to find.

use super::address;
use super::yaml::Node;

/// The options that `auto` may stand for.
const OPTIONS: [&str; 3] = ["server_id", "address", "port"];

/// What is said instead of a value.
pub(super) const AUTO: &str = "auto";

/// A name of a certificate in the form that is kept: a subject, `DNS:name` or `URI:uri`. `None` if it is
/// none of them.
pub(super) fn certificate_name(text: &str) -> Option<String> {
    if let Some(name) = text.strip_prefix("DNS:") {
        let is_name = name.parse::<std::net::IpAddr>().is_err() && !name.contains(':');
        let name = address::parse(name).ok().filter(|_| is_name)?;
        return Some(format!("DNS:{}", address::canonical(&name)));
    }
    if let Some(uri) = text.strip_prefix("URI:") {
        let (scheme, rest) = uri.split_once(':')?;
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let is_uri = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(is_scheme)
            && !rest.is_empty()
            && rest.chars().all(|c| c.is_ascii_graphic());
        return is_uri.then(|| text.to_owned());
    }
    is_one_line(text).then(|| text.to_owned())
}

/// Whether a text begins with a slash, a short name or object identifier, and an equals sign.
/// More cannot be asked: values may hold slashes and equals signs themselves.
fn is_one_line(subject: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    let first = subject.strip_prefix('/').and_then(|s| s.split_once('='));
    first.is_some_and(|(name, _)| !name.is_empty() && name.chars().all(is_name))
}

/// Which options say `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Auto {
    pub(super) id: bool,
    pub(super) address: bool,
    pub(super) port: bool,
}

impl Auto {
    /// Takes the word out of a mapping: in its place stands a value that fits, and counts for nothing.
    pub(super) fn take(pairs: &mut [(Node, Node)]) -> Auto {
        let [id, address, port] = OPTIONS.map(|name| {
            let is_it = |(key, value): &&mut (Node, Node)| {
                matches!((key, value), (Node::Text(key), Node::Text(value))
                    if key == name && value.trim() == AUTO)
            };
            let pair = pairs.iter_mut().find(is_it);
            // The word is a host name too, but no number.
            let is_number = name != "address";
            let found = pair.is_some();
            pair.into_iter().filter(|_| is_number).for_each(|(_, value)| *value = Node::Int(1));
            found
        });
        Auto { id, address, port }
    }

    pub(super) fn any(self) -> bool {
        self.id || self.address || self.port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_certificate_is_a_subject_a_host_name_or_a_uri() {
        for text in ["/CN=x", "DNS:a.example", "URI:spiffe://a/b", "URI:a+b-1.c:d", "URI:S:/"] {
            assert_eq!(certificate_name(text).as_deref(), Some(text));
        }
        for text in [
            "x",
            "DNS:",
            "DNS:10.0.0.1",
            "DNS:::1",
            "DNS:a:1",
            "DNS:a b",
            "URI:spiffe",
            "URI:s:",
            "URI:9s:b",
            "URI:a_b:c",
            "URI::c",
            "URI:s:a b",
        ] {
            assert_eq!(certificate_name(text), None, "{text}");
        }
        assert_eq!(certificate_name("DNS:A.Example.").as_deref(), Some("DNS:a.example"));
    }

    #[test]
    fn each_option_may_be_found_out_alone() {
        let none = Auto::default();
        assert!(!none.any());
        let each = [
            Auto { id: true, ..none },
            Auto { address: true, ..none },
            Auto { port: true, ..none },
        ];
        assert!(each.into_iter().all(Auto::any));
    }
}
