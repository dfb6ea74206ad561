//! Which sockets to listen on.
//!
//! Invariants: a server listens on all interfaces only where the wanted address is none of this
//! machine's, or cannot be looked up; says so; and moves to the address once it is there. Whatever
//! else the system has against a socket, such as a want of descriptors, is tried again.

use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, sleep_until, Instant};

use super::bounds::Bounds;
use super::resolver::{Resolver, Unresolved};
use crate::core::config::Member;
use crate::log_sink::{Level, Log};

/// The system's queue of connections that are not accepted yet.
const BACKLOG: i32 = 256;

/// Pauses between two attempts to bind.
const BIND_RETRY_MIN: Duration = Duration::from_millis(100);
const BIND_RETRY_MAX: Duration = Duration::from_secs(2);

/// How often a server that listens on all interfaces looks whether the wanted address is there; an
/// interface that comes up after the boot is used soon.
const ADDRESS_LOOK: Duration = Duration::from_secs(3);

/// The same for a name, which somebody has to look up.
const NAME_LOOK: Duration = Duration::from_secs(60);

/// Where to listen and how much to bear.
#[derive(Clone, Debug)]
pub struct ListenSettings {
    /// Listen there and nowhere else: an address of this machine or a name for one.
    pub bind_address: Option<String>,
    /// Otherwise listen there if it is this machine's, else on all interfaces until it is.
    pub address: String,
    /// TCP port; 0 lets the system pick one.
    pub port: u16,
    /// The members of the list.
    pub members: Vec<Member>,
    /// The other bounds.
    pub bounds: Bounds,
}

/// The sockets that a server listens on.
pub(super) struct BoundSockets {
    sockets: Vec<TcpListener>,
    /// Whether these are the wanted ones, and not all interfaces for want of them.
    as_wanted: bool,
}

impl BoundSockets {
    /// Listens where it should, however long it takes to get the port.
    pub async fn new(settings: &ListenSettings, log: &Log) -> BoundSockets {
        let mut pause = BIND_RETRY_MIN;
        loop {
            match try_bind(settings, log).await {
                Ok(bound) => {
                    let places: Vec<_> = bound.addresses().iter().map(|a| a.to_string()).collect();
                    log.note(format!("listening for peers on {}", places.join(", ")));
                    return bound;
                }
                Err(words) => {
                    let line =
                        format!("{words}; trying again, no peer reaches this server until then");
                    log.limited(Level::Warning, "bind", line);
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(BIND_RETRY_MAX);
        }
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        for socket in &self.sockets {
            if let Poll::Ready(accepted) = socket.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    }
}

/// Looks now and then whether the address is there that is wanted in place of all interfaces.
pub(super) struct RebindWatch {
    next: Option<Instant>,
    every: Duration,
}

impl RebindWatch {
    /// One that looks only if `bound` is not what was wanted.
    pub fn new(settings: &ListenSettings, bound: &BoundSockets) -> RebindWatch {
        let every = match settings.address.parse::<IpAddr>() {
            Ok(_) => ADDRESS_LOOK,
            Err(_) => NAME_LOOK,
        };
        RebindWatch { next: (!bound.as_wanted).then(|| Instant::now() + every), every }
    }

    /// Waits until it is there. May be dropped and called again at any time.
    pub async fn address_appears(&mut self, settings: &ListenSettings) {
        let Some(next) = &mut self.next else { return pending().await };
        loop {
            sleep_until(*next).await;
            *next = Instant::now() + self.every;
            // The port itself is taken by the sockets for all interfaces.
            if wanted(&settings.address, 0)
                .await
                .is_ok_and(|places| places.into_iter().any(|place| bound_socket(place).is_ok()))
            {
                return;
            }
        }
    }
}

async fn try_bind(settings: &ListenSettings, log: &Log) -> Result<BoundSockets, String> {
    let port = settings.port;
    if let Some(host) = &settings.bind_address {
        let places = resolve(host, port)
            .await
            .map_err(|error| format!("bind_address {host} cannot be resolved: {error}"))?;
        let sockets = places.into_iter().map(bind_one).collect::<Result<_, _>>();
        return Ok(BoundSockets { sockets: sockets.map_err(|e| e.words())?, as_wanted: true });
    }
    let host = &settings.address;
    let reason = match wanted(host, port).await {
        Err(reason) => reason,
        Ok(places) => {
            let mut sockets = Vec::new();
            for place in places {
                match bind_one(place) {
                    Ok(socket) => sockets.push(socket),
                    Err(error) if error.is_elsewhere() => {}
                    Err(error) => return Err(error.words()),
                }
            }
            if !sockets.is_empty() {
                return Ok(BoundSockets { sockets, as_wanted: true });
            }
            "is no address of this machine".to_owned()
        }
    };
    let socket = bind_all_interfaces(port).map_err(|error| error.words())?;
    log.warning(format!(
        "address {host} {reason}: listening on all interfaces until it is one of this machine's; \
         set bind_address to choose one"
    ));
    Ok(BoundSockets { sockets: vec![socket], as_wanted: false })
}

/// The addresses that peers are told of; else why there are none to listen on.
async fn wanted(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match resolve(host, port).await {
        Err(error) => Err(format!("cannot be resolved ({error})")),
        // Many systems map their own name to a loopback address, where no peer could reach it.
        Ok(places) if is_own_name_only(host, &places) => {
            Err("is only known as a loopback".to_owned())
        }
        Ok(places) => Ok(places),
    }
}

fn is_own_name_only(host: &str, places: &[SocketAddr]) -> bool {
    let is_name = host.parse::<IpAddr>().is_err();
    let means_loopback = host == "localhost" || host.ends_with(".localhost");
    is_name && !means_loopback && places.iter().all(|place| place.ip().is_loopback())
}

/// IPv6 and IPv4 by one socket, or IPv4 alone on a machine without IPv6.
fn bind_all_interfaces(port: u16) -> Result<TcpListener, BindError> {
    match bind_one(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Err(error) if error.is_elsewhere() => {
            bind_one(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        other => other,
    }
}

struct BindError(SocketAddr, io::Error);

impl BindError {
    /// Whether the address is not one of this machine's, or of a kind that it does not have. All
    /// other errors say nothing about that.
    fn is_elsewhere(&self) -> bool {
        self.1.kind() == io::ErrorKind::AddrNotAvailable
            || self.1.raw_os_error() == Some(libc::EAFNOSUPPORT)
    }

    fn words(&self) -> String {
        let BindError(addr, error) = self;
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                let (port, ip) = (addr.port(), addr.ip());
                format!(
                    "port {port} on {ip} is in use by another process; end that one, or change \
                     'port' here and in the server list"
                )
            }
            _ => format!("cannot listen on {addr}: {error}"),
        }
    }
}

fn bind_one(addr: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = bound_socket(addr)?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bind().map_err(|error| BindError(addr, error))
}

fn bound_socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// The addresses where this server is to listen.
async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Unresolved> {
    Resolver::system().resolve(host, port).await.map(|found| found.addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_is_not_there_is_elsewhere() {
        let elsewhere = |errno| {
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
            BindError(addr, io::Error::from_raw_os_error(errno)).is_elsewhere()
        };
        for errno in [libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT] {
            assert!(elsewhere(errno), "{errno}");
        }
        for errno in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EINVAL,
            libc::EACCES,
            libc::EPERM,
            libc::EADDRINUSE,
            libc::ENETDOWN,
        ] {
            assert!(!elsewhere(errno), "{errno}");
        }
    }
}
