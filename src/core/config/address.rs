//! What may stand as an `address`: IPv4, IPv6, or a host name. Syntax only; nothing is resolved.

use std::net::{IpAddr, Ipv6Addr};

/// The longest host name, in bytes (RFC 1035 section 2.3.4, without the root's length byte).
const MAX_NAME: usize = 253;

/// The longest label of a host name, in bytes (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// Why a text is no address; completes "`text` ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAddress {
    #[error("is empty")]
    Empty,
    #[error("has a port of its own")]
    WithPort,
    #[error("is not an IPv4 address")]
    Ipv4,
    #[error("is not an IPv6 address")]
    Ipv6,
    #[error("is not a host name")]
    Name,
}

/// Checks `text` and brings it to the form that is kept: IPv6 without brackets, IP addresses in
/// their shortest form, host names as written.
pub(super) fn parse(text: &str) -> Result<String, NotAddress> {
    let text = text.trim();
    if text.is_empty() {
        return Err(NotAddress::Empty);
    }
    if let Some(inner) = text.strip_prefix('[') {
        return match inner.split_once(']') {
            Some((inner, "")) => parse_ipv6(inner),
            Some((_, rest)) if rest.starts_with(':') => Err(NotAddress::WithPort),
            _ => Err(NotAddress::Ipv6),
        };
    }
    match text.matches(':').count() {
        0 => parse_name(text),
        1 => Err(NotAddress::WithPort),
        _ => parse_ipv6(text),
    }
}

/// A zone (`%eth0`) is kept as it is: link-local addresses cannot be dialled without one.
fn parse_ipv6(text: &str) -> Result<String, NotAddress> {
    let (digits, zone) = match text.split_once('%') {
        Some((digits, zone)) => (digits, Some(zone)),
        None => (text, None),
    };
    let address: Ipv6Addr = digits.parse().map_err(|_| NotAddress::Ipv6)?;
    match zone {
        None => Ok(address.to_string()),
        Some(zone) if !zone.is_empty() && zone.chars().all(is_zone) => {
            Ok(format!("{address}%{zone}"))
        }
        Some(_) => Err(NotAddress::Ipv6),
    }
}

/// What Linux's interface names are made of in practice.
fn is_zone(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

/// RFC 1123 section 2.1, with underscores, which names inside container networks have. A name
/// whose last label is a number can only be meant as IPv4, also by RFC 1123.
fn parse_name(text: &str) -> Result<String, NotAddress> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit())) {
        return Err(NotAddress::Ipv4);
    }
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= MAX_NAME && name.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err(NotAddress::Name)
    }
}

/// The form in which two addresses that [`parse`] let pass are compared.
pub(super) fn canonical(address: &str) -> String {
    address.strip_suffix('.').unwrap_or(address).to_ascii_lowercase()
}

/// Why nobody can dial an address that [`parse`] let pass, if that is so.
pub(super) fn undialable(address: &str) -> Option<String> {
    // One with a zone is no address for the parser, and is dialled as it stands.
    let ip: IpAddr = address.parse().ok()?;
    Some(format!("{}, so no other server can dial it", no_machine(ip, false)?))
}

/// Why nobody can dial an address, if that is so: what it stands for. One with a zone is on a link.
pub fn no_machine(ip: IpAddr, has_zone: bool) -> Option<&'static str> {
    if ip.to_canonical().is_unspecified() {
        return Some("stands for every address of a machine");
    }
    no_machines(ip).filter(|_| !has_zone || ip.to_canonical().is_multicast())
}

/// Why no server can listen at an address that [`parse`] let pass, if that is so.
pub(super) fn unbindable(address: &str) -> Option<String> {
    let ip: IpAddr = address.parse().ok()?;
    let why = no_machines(ip).filter(|_| !ip.to_canonical().is_unspecified())?;
    Some(format!("{why}, so no server can listen there"))
}

/// What an address stands for, if it is that of no single machine; every address of one is none.
fn no_machines(ip: IpAddr) -> Option<&'static str> {
    let ip = ip.to_canonical();
    if ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        return Some("is the address of a group");
    }
    match ip {
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => {
            Some("is of a range that is no machine's")
        }
        IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80 => {
            Some("is link-local and has no zone, such as %eth0, which tells the link")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_accepted_in_their_kept_form() {
        for (given, kept) in [
            ("127.0.0.1", "127.0.0.1"),
            (" 10.1.2.3 ", "10.1.2.3"),
            ("::1", "::1"),
            ("[2001:db8:0::0:1]", "2001:db8::1"),
            ("fe80::1%eth0.2", "fe80::1%eth0.2"),
            ("localhost", "localhost"),
            ("ats-1.edge.example.com.", "ats-1.edge.example.com."),
            ("ats_1.default.svc", "ats_1.default.svc"),
            ("3com.example", "3com.example"),
        ] {
            assert_eq!(parse(given).as_deref(), Ok(kept), "{given}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_by_its_cause() {
        let long_label = "a".repeat(MAX_LABEL + 1);
        let long_name = ["abcdefg"; 32].join(".") + ".x";
        for (given, cause) in [
            ("", NotAddress::Empty),
            ("  ", NotAddress::Empty),
            ("127.0.0.1:80", NotAddress::WithPort),
            ("[::1]:80", NotAddress::WithPort),
            ("256.0.0.1", NotAddress::Ipv4),
            ("10.0.0", NotAddress::Ipv4),
            ("1", NotAddress::Ipv4),
            ("::g", NotAddress::Ipv6),
            ("[::1", NotAddress::Ipv6),
            ("[::1]x", NotAddress::Ipv6),
            ("fe80::1%", NotAddress::Ipv6),
            ("fe80::1%a/b", NotAddress::Ipv6),
            ("a b", NotAddress::Name),
            ("-a.example", NotAddress::Name),
            ("a-.example", NotAddress::Name),
            ("a..b", NotAddress::Name),
            ("é.example", NotAddress::Name),
            (&long_label, NotAddress::Name),
            (&long_name, NotAddress::Name),
        ] {
            assert_eq!(parse(given), Err(cause), "{given}");
        }
    }

    #[test]
    fn only_addresses_of_one_machine_can_be_dialled() {
        for (bad, why) in [
            ("0.0.0.0", "every address"),
            ("::", "every address"),
            ("::ffff:0.0.0.0", "every address"),
            ("224.0.0.1", "a group"),
            ("ff02::1", "a group"),
            ("::ffff:239.1.2.3", "a group"),
            ("255.255.255.255", "a group"),
            ("0.1.2.3", "no machine's"),
            ("240.0.0.1", "no machine's"),
            ("::ffff:250.0.0.1", "no machine's"),
            ("fe80::1", "has no zone"),
            ("febf:ffff::1", "has no zone"),
        ] {
            assert!(undialable(bad).is_some_and(|reason| reason.contains(why)), "{bad}");
        }
        for good in [
            "127.0.0.1",
            "::1",
            "localhost",
            "10.0.0.255",
            "fe80::1%eth0",
            "fec0::1",
            "fd00::1",
            "169.254.1.1",
            "::ffff:10.0.0.1",
            "239.example",
        ] {
            assert!(undialable(good).is_none(), "{good}");
            assert!(unbindable(good).is_none(), "{good}");
        }
        for (bad, is_bad) in
            [("224.0.0.1", true), ("fe80::1", true), ("0.0.0.0", false), ("::", false)]
        {
            assert_eq!(unbindable(bad).is_some(), is_bad, "{bad}");
        }
    }

    #[test]
    fn one_name_in_two_spellings_is_one_name() {
        assert_eq!(canonical("ATS.Example."), canonical("ats.example"));
    }
}
