//! Where the plugin of this very machine listens.
//!
//! The listed address leads to whichever machine has it, which after a copied image is another one. So
//! this server's own plugin is asked where the plugin itself would listen: see
//! [`stek_share::transport`]. Asks nobody but for the address of a name. Invariants: it never names a
//! place of another machine, but where the configuration's `bind_address` does.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use stek_share::core::config::{Member, Settings};
use stek_share::transport::resolver::look_up;

/// This server's entry in the places in which its own plugin may listen.
#[derive(Clone, Debug)]
pub struct Places {
    /// The likely one.
    pub first: Member,
    /// Where to look if nobody is there.
    pub second: Option<Member>,
}

impl Places {
    /// For this configuration; a name may take `limit` to be looked up.
    pub fn of(settings: &Settings, limit: Duration) -> Places {
        let listed = settings.members.iter().find(|member| member.id == settings.server_id);
        let subject = listed.and_then(|member| member.subject.clone());
        let at = |address: String| Member {
            id: settings.server_id,
            address,
            port: settings.port,
            subject: subject.clone(),
            voter: true,
        };
        let (first, second) = hosts(settings.bind_address.as_deref(), &settings.address, limit);
        Places { first: at(first), second: second.map(at) }
    }
}

fn hosts(bind_address: Option<&str>, address: &str, limit: Duration) -> (String, Option<String>) {
    // IPv4 first, which is there where IPv6 is switched off.
    let loopback = || ("127.0.0.1".to_owned(), Some("::1".to_owned()));
    match bind_address {
        Some(host) => match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => loopback(),
            _ => (host.to_owned(), None),
        },
        None if is_here(address, limit) => (address.to_owned(), None),
        // Then it listens on all interfaces.
        None => loopback(),
    }
}

/// Whether an address, or one of a name, is this machine's.
fn is_here(address: &str, limit: Duration) -> bool {
    let bracketed =
        if address.contains(':') { format!("[{address}]:0") } else { format!("{address}:0") };
    let found = look_up(&bracketed, limit).unwrap_or_default();
    found
        .into_iter()
        .any(|place: SocketAddr| UdpSocket::bind(SocketAddr::new(place.ip(), 0)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_looked_for_where_it_listens() {
        let limit = Duration::from_secs(5);
        let found = |bind: Option<&str>, address: &str| {
            let (first, second) = hosts(bind, address, limit);
            second.map_or_else(|| first.clone(), |second| format!("{first} {second}"))
        };
        assert_eq!(found(None, "127.0.0.1"), "127.0.0.1");
        assert_eq!(found(None, "::1"), "::1");
        // TEST-NET-1 (RFC 5737) is nobody's: the plugin listens on all interfaces.
        assert_eq!(found(None, "192.0.2.1"), "127.0.0.1 ::1");
        assert_eq!(found(Some("0.0.0.0"), "192.0.2.1"), "127.0.0.1 ::1");
        assert_eq!(found(Some("127.0.0.9"), "192.0.2.1"), "127.0.0.9");
    }
}
