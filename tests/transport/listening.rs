//! On which addresses a server listens.

use super::*;

#[tokio::test]
async fn a_port_in_use_is_taken_once_it_is_free() {
    let root = pki::root("root");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (_swap, tls) = watch::channel(tls(&root, &pki::leaf(&root)));
    let lines = Arc::new(Lines::default());
    let listener =
        start_listener("127.0.0.1", None, holder.local_addr().unwrap().port(), &tls, &lines);
    until("told", || lines.have(Level::Warning, "is in use by another process")).await;
    assert!(listener.local_addrs().is_empty());
    drop(holder);
    let bound = timeout(PATIENCE, listener.bound()).await.unwrap();
    assert!(lines.have(Level::Note, &format!("listening for peers on {}", bound[0])));
}

#[tokio::test]
async fn it_listens_where_it_should() {
    let root = pki::root("root");
    let (_swap, tls) = watch::channel(tls(&root, &pki::leaf(&root)));
    // 192.0.2.0/24 is for documentation (RFC 5737), so nobody's; .invalid resolves nowhere.
    for (address, bind, expect_all) in [
        ("127.0.0.1", None, false),
        ("localhost", None, false),
        ("192.0.2.1", None, true),
        ("no-such-host.invalid", None, true),
        ("192.0.2.1", Some("127.0.0.1"), false),
    ] {
        let lines = Arc::new(Lines::default());
        let listener = start_listener(address, bind, 0, &tls, &lines);
        let bound = timeout(PATIENCE, listener.bound()).await.expect(address);
        let all = bound.iter().all(|addr| addr.ip().is_unspecified());
        assert_eq!(all, expect_all, "{address}: {bound:?}");
        assert_eq!(lines.have(Level::Warning, "listening on all interfaces"), expect_all);
        let port = bound[0].port();
        if expect_all || bound[0].is_ipv4() {
            TcpStream::connect(("127.0.0.1", port)).await.expect(address);
        }
    }
}

/// A link-local address that names no link is refused by the system, which says nothing of whose
/// it is.
#[tokio::test]
async fn a_socket_that_cannot_be_had_is_not_an_address_of_another_machine() {
    let root = pki::root("root");
    let (_swap, tls) = watch::channel(tls(&root, &pki::leaf(&root)));
    let lines = Arc::new(Lines::default());
    let listener = start_listener("fe80::1", None, 0, &tls, &lines);
    until("told", || lines.have(Level::Warning, "cannot listen on [fe80::1]")).await;
    assert!(listener.local_addrs().is_empty());
    assert!(!lines.have(Level::Warning, "all interfaces"));
}

/// Runs this very test once more, in a network of its own where it may add addresses.
fn in_a_network_of_its_own(test: &str) -> bool {
    if std::env::var_os("STEK_OWN_NETWORK").is_some() {
        return true;
    }
    let mut again = Command::new("unshare");
    again.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
    let ran = again.args(["--exact", test]).env("STEK_OWN_NETWORK", "1").output();
    let ran = ran.expect("unshare runs");
    let words = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&words));
    false
}

/// As at a boot where the plugin is up before the interface is.
#[tokio::test]
async fn an_address_that_appears_later_is_moved_to() {
    if !in_a_network_of_its_own("listening::an_address_that_appears_later_is_moved_to") {
        return;
    }
    let ip = |args: &str| {
        assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success(), "{args}");
    };
    ip("link set lo up");
    let root = pki::root("root");
    let leaf = pki::leaf(&root);
    let (_swap, tls) = watch::channel(tls(&root, &leaf));
    let lines = Arc::new(Lines::default());
    let listener = start_listener("192.0.2.7", None, 24_001, &tls, &lines);
    let bound = timeout(PATIENCE, listener.bound()).await.unwrap();
    assert!(bound[0].ip().is_unspecified());
    assert!(lines.have(Level::Warning, "listening on all interfaces"));
    let context = raw_context(Some(&leaf), None);
    let mut standing = raw_connect(&context, ([127, 0, 0, 1], 24_001).into()).await.unwrap();
    assert_ne!(greet(&mut standing, hello(1)).await.1, 0, "it is told that it is unknown");
    ip("address add 192.0.2.7/32 dev lo");
    let there = "192.0.2.7:24001".parse().unwrap();
    until("it has moved", || listener.local_addrs() == [there]).await;
    assert!(TcpStream::connect(("127.0.0.1", 24_001)).await.is_err(), "it listens there still");
    TcpStream::connect(there).await.unwrap();
}

fn start_listener(
    address: &str,
    bind: Option<&str>,
    port: u16,
    tls: &watch::Receiver<Tls>,
    lines: &Arc<Lines>,
) -> Listener {
    let settings = ListenSettings {
        bind_address: bind.map(str::to_owned),
        address: address.to_owned(),
        port,
        members: Vec::new(),
        bounds: Bounds::default(),
    };
    let deps = ListenDeps {
        log: Log::new(lines.clone()),
        tls: tls.clone(),
        me: LocalIdentity::member(ServerId(2), 1, || CLUSTER_ID),
        heard: LastSeen::new(),
        counters: Counters::new(),
    };
    let service = Echo {
        members: Mutex::default(),
        admitted: AtomicU64::new(0),
        begun: Mutex::default(),
        version: AtomicU8::new(0),
        release: Notify::new(),
    };
    Listener::start(settings, deps, Arc::new(service))
}
