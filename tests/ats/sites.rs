//! A session opens the site that it was made with and no other, on every server.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use testkit::fleet::{self, Fleet, Plan};
use testkit::host::{self, host, WITH_KEYS_BY_ADDRESS};
use testkit::pki::{Authority, Identity, Request};
use testkit::run_dir::RunDir;
use testkit::sites::Visit;
use testkit::tickets::{Ticket, TlsVersion};
use testkit::Result;

use crate::stage::{plugin, reserve, PATIENCE};

/// What sni.yaml says on those servers that have one.
const SNI: &str = "\
sni:
- fqdn: open.test
  verify_client: NONE
- fqdn: optional.test
  verify_client: MODERATE
- fqdn: closed.test
  verify_client: STRICT
- fqdn: closed-too.test
  verify_client: STRICT
";

/// What a site asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Nothing,
    Perhaps,
    Certificate,
}

/// One site of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    server: usize,
    name: &'static str,
    asks: Asks,
}

const fn at(server: usize, name: &'static str, asks: Asks) -> Place {
    Place { server, name, asks }
}

/// Two servers that are the same, and one without an sni.yaml that demands certificates of all.
const PLACES: [Place; 13] = [
    at(0, "plain.test", Asks::Nothing),
    at(0, "open.test", Asks::Nothing),
    at(0, "optional.test", Asks::Perhaps),
    at(0, "closed.test", Asks::Certificate),
    at(0, "closed-too.test", Asks::Certificate),
    at(1, "plain.test", Asks::Nothing),
    at(1, "open.test", Asks::Nothing),
    at(1, "optional.test", Asks::Perhaps),
    at(1, "closed.test", Asks::Certificate),
    at(1, "closed-too.test", Asks::Certificate),
    at(2, "plain.test", Asks::Certificate),
    at(2, "open.test", Asks::Certificate),
    at(2, "optional.test", Asks::Certificate),
];

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of server {} ({:?})", self.name, self.server + 1, self.asks)
    }
}

/// Three servers whose clients have to show certificates of one authority, where they have to.
struct Sites {
    fleet: Fleet,
    client: Identity,
}

impl Sites {
    fn start(dir: &Path, scope: &str, size: usize, tune: impl Fn(&Fleet)) -> Result<Sites> {
        let authority = Authority::new("/O=stek_share tests/CN=clients")?;
        authority.identity.write(dir, "clients")?;
        let plan = Plan::new(size, &plugin(), Duration::from_secs(3600))
            .option("ticket_scope", scope)
            .record(&format!("proxy.config.ssl.CA.cert.path STRING {}", dir.display()))
            .record("proxy.config.ssl.CA.cert.filename STRING clients.pem")
            .record("proxy.config.ssl.server.max_early_data INT 16384")
            .manager();
        let mut fleet = plan.prepare(dir)?;
        for ats in &fleet.servers {
            fs::write(ats.etc().join("sni.yaml"), SNI)?;
        }
        tune(&fleet);
        fleet.servers.iter_mut().try_for_each(testkit::ats::Ats::start)?;
        let client = authority.issue(&Request::new("/CN=client"))?;
        let sites = Sites { fleet, client };
        for server in 0..size {
            testkit::wait::until(
                testkit::ats::START_LIMIT,
                "an answer with a certificate",
                || {
                    let visit = Visit::new(sites.address(server), TlsVersion::V13, "plain.test");
                    let visited = visit.identity(&sites.client).go();
                    Ok(visited.is_ok_and(|visited| visited.is_answered()).then_some(()))
                },
            )?;
            sites.fleet.servers[server].wait_diags("(generation 1)", PATIENCE)?;
        }
        Ok(sites)
    }

    fn address(&self, server: usize) -> SocketAddr {
        self.fleet.servers[server].https()
    }

    fn visit<'a>(&self, place: Place, version: TlsVersion) -> Visit<'a> {
        Visit::new(self.address(place.server), version, place.name)
    }

    /// A session of each site, with a certificate where one is demanded.
    fn tickets(&self, version: TlsVersion) -> Result<Vec<(Place, Ticket)>> {
        let take = |place: &Place| {
            let visit = self.visit(*place, version);
            let visit = match place.asks {
                Asks::Certificate => visit.identity(&self.client),
                Asks::Nothing | Asks::Perhaps => visit,
            };
            let visited = visit.go()?;
            assert!(visited.is_answered() && !visited.resumed, "{place}: {visited:?}");
            Ok((*place, visited.ticket.expect("a ticket")))
        };
        PLACES.iter().filter(|place| place.server < self.fleet.servers.len()).map(take).collect()
    }
}

/// The third server demands a certificate of everybody.
fn demand_everywhere(fleet: &Fleet) {
    let etc = fleet.servers[2].etc();
    fs::write(etc.join("sni.yaml"), "sni: []\n").unwrap();
    host::set_record(&etc, "proxy.config.ssl.client.certification_level INT 2").unwrap();
}

/// What came of offering each session everywhere, without a certificate.
#[derive(Debug, Default)]
struct Found {
    offers: usize,
    /// Requests that were answered where a certificate was needed, with a session that had none.
    let_in: Vec<String>,
    /// Sessions that were resumed at another site than the one that they were made with.
    strayed: Vec<String>,
    /// Sessions that were not resumed at their own site, or whose request was not answered.
    lost: Vec<String>,
    /// How many requests came as early data and were taken as such.
    early: usize,
}

impl Found {
    fn look(&mut self, sites: &Sites, tickets: &[(Place, Ticket)], early: bool) -> Result<()> {
        for (issuer, ticket) in tickets {
            for victim in PLACES.iter().filter(|place| place.server < sites.fleet.servers.len()) {
                let visit = sites.visit(*victim, ticket.version).ticket(ticket);
                let visited = if early { visit.early().go()? } else { visit.go()? };
                let what = format!("{}: {issuer} -> {victim}: {visited:?}", ticket.version);
                self.offers += 1;
                self.early += usize::from(visited.early);
                let had_none = issuer.asks != Asks::Certificate;
                if had_none && victim.asks == Asks::Certificate && visited.is_answered() {
                    self.let_in.push(what.clone());
                }
                let own = (issuer.name, issuer.asks) == (victim.name, victim.asks);
                if own && !(visited.resumed && visited.is_answered() && visited.early == early) {
                    self.lost.push(what);
                } else if !own && (visited.resumed || visited.early) {
                    self.strayed.push(what);
                }
            }
        }
        Ok(())
    }
}

/// Everything offered everywhere: both versions, under the current and under the previous key,
/// with and without early data.
fn offer_everything(scope: &str) -> Result<Found> {
    let _reserved = reserve(3);
    let dir = RunDir::new("sites")?;
    let sites = Sites::start(dir.path(), scope, 3, demand_everywhere)?;
    let mut found = Found::default();
    let (first, second) = (sites.tickets(TlsVersion::V12)?, sites.tickets(TlsVersion::V13)?);
    for round in 0..2 {
        found.look(&sites, &first, false)?;
        found.look(&sites, &second, false)?;
        found.look(&sites, &second, true)?;
        if round == 0 {
            // The third server answers nobody without a certificate.
            let open = &sites.fleet.https()[..2];
            let old = fleet::wait_one_key(open, None, PATIENCE)?;
            sites.fleet.servers[0].ctl(&["plugin", "msg", "stek_share", "rotate"])?;
            fleet::wait_one_key(open, Some(&old), PATIENCE)?;
            sites.fleet.servers[2].wait_diags("(generation 2)", PATIENCE)?;
        }
    }
    dir.done()?;
    Ok(found)
}

#[test]
fn a_session_opens_its_own_site_on_every_server_and_no_other() -> Result<()> {
    let found = offer_everything("site")?;
    println!("{} offers, {} taken as early data", found.offers, found.early);
    assert_eq!(found.let_in, [""; 0]);
    assert_eq!(found.strayed, [""; 0]);
    assert_eq!(found.lost, [""; 0]);
    assert!(found.early > 0);
    Ok(())
}

#[test]
fn with_the_hosts_own_scope_a_session_opens_sites_that_want_a_certificate() -> Result<()> {
    let found = offer_everything("host")?;
    println!("{} offers, {} let in without a certificate", found.offers, found.let_in.len());
    // If this ever fails, the host has closed it itself, and documents have to say so.
    assert!(found.let_in.iter().any(|what| what.contains("TLS 1.3")), "{found:?}");
    Ok(())
}

/// One group on the servers, so that a client that sends a key for another is asked again.
fn one_group(fleet: &Fleet) {
    for ats in &fleet.servers {
        let group = "proxy.config.ssl.server.groups_list STRING P-256";
        host::set_record(&ats.etc(), group).unwrap();
    }
}

#[test]
fn a_second_client_hello_with_another_name_opens_nothing() -> Result<()> {
    const AGAIN: &str = "X25519:P-256";
    let _reserved = reserve(2);
    let dir = RunDir::new("second-hello")?;
    let sites = Sites::start(dir.path(), "site", 2, one_group)?;
    let visit = |server: usize, name| {
        Visit::new(sites.address(server), TlsVersion::V13, name).groups(AGAIN)
    };
    let ticket = |visit: Visit| -> Result<Ticket> {
        let visited = visit.go()?;
        assert!(visited.is_answered() && !visited.resumed, "{visited:?}");
        Ok(visited.ticket.expect("a ticket"))
    };
    // Who stays with one name resumes, on either server, whether asked again or not.
    let open = ticket(visit(0, "open.test"))?;
    for server in 0..2 {
        let visited = visit(server, "open.test").ticket(&open).go()?;
        assert!(visited.resumed && visited.is_answered(), "{visited:?}");
        let visited = visit(server, "open.test").groups("P-256").ticket(&open).go()?;
        assert!(visited.resumed && visited.is_answered(), "{visited:?}");
    }
    // Bound to one site, then at another.
    let visited = visit(1, "open.test").then_named("closed.test").ticket(&open).go()?;
    assert!(!visited.resumed && !visited.is_answered(), "{visited:?}");
    // A session made so is of no use to anybody.
    let strayed = ticket(visit(0, "closed.test").then_named("open.test"))?;
    for name in ["closed.test", "open.test"] {
        let visited = visit(0, name).ticket(&strayed).go()?;
        assert!(!visited.resumed, "{name}: {visited:?}");
        assert_eq!(visited.is_answered(), name == "open.test", "{name}: {visited:?}");
        let visited = visit(0, name).then_named("plain.test").ticket(&strayed).go()?;
        assert!(!visited.resumed, "{name}, then plain.test: {visited:?}");
    }
    let visited = visit(0, "closed.test").then_named("open.test").ticket(&strayed).go()?;
    assert!(!visited.resumed, "{visited:?}");
    dir.done()
}

/// Where servers of one group may differ: what they call their certificate, the order of the file
/// of authorities, its blank lines, comments and doubles, and whether a line has a dest_ip.
fn differ(dir: &Path) -> impl Fn(&Fleet) + '_ {
    move |fleet| {
        let authority = |name: &str| {
            let files = Authority::new(name).unwrap().identity.write(dir, "one").unwrap();
            fs::read_to_string(files.certificate).unwrap()
        };
        let clients = fs::read_to_string(dir.join("clients.pem")).unwrap();
        let (one, other) = (authority("/CN=one"), authority("/CN=other"));
        let bundles = [
            format!("{clients}{one}{other}"),
            format!("# others first\n{other}\n\n{one}{clients}{one}"),
        ];
        for (number, bundle) in bundles.iter().enumerate() {
            fs::write(dir.join(format!("bundle-{number}.pem")), bundle).unwrap();
            let line = "proxy.config.ssl.CA.cert.filename STRING bundle";
            let etc = fleet.servers[number].etc();
            host::set_record(&etc, &format!("{line}-{number}.pem")).unwrap();
        }
        let name = dir.join("pki/site.pem");
        let copy = dir.join("called-otherwise.pem");
        fs::copy(&name, &copy).unwrap();
        // With a key of its own nothing could be resumed.
        let shares = host().unwrap().version() < WITH_KEYS_BY_ADDRESS;
        let address = if shares { "dest_ip=127.0.0.1" } else { "dest_ip=*" };
        host::change_certificates(&fleet.servers[1].etc(), |lines| {
            let lines = lines.replace(name.to_str().unwrap(), copy.to_str().unwrap());
            lines.replace("dest_ip=*", address)
        })
        .unwrap();
    }
}

/// How many sessions of two servers that [`differ`] are resumed, with and without a certificate,
/// on the server that did not issue them; of how many.
fn resumed_elsewhere(scope: &str) -> Result<(usize, usize)> {
    let _reserved = reserve(2);
    let dir = RunDir::new("differ")?;
    let sites = Sites::start(dir.path(), scope, 2, differ(dir.path()))?;
    let (mut resumed, mut all) = (0, 0);
    for version in TlsVersion::ALL {
        for (issuer, ticket) in sites.tickets(version)? {
            let place = Place { server: 1 - issuer.server, ..issuer };
            let visited = sites.visit(place, version).ticket(&ticket).go()?;
            resumed += usize::from(visited.resumed && visited.is_answered());
            all += 1;
        }
    }
    dir.done()?;
    Ok((resumed, all))
}

#[test]
fn servers_that_call_their_files_otherwise_resume_each_others_sessions() -> Result<()> {
    let (resumed, all) = resumed_elsewhere("site")?;
    assert_eq!((resumed, all), (20, 20));
    assert_eq!(resumed_elsewhere("host")?, (0, 20));
    Ok(())
}
