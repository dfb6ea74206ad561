//! Programs that others wrote, as people use them, resume as often on three Traffic Servers with
//! the plugin behind one address as on a single server: command line tools, standard libraries,
//! and a browser.
//!
//! What a client says about itself does not count. They all come through a relay that sends each
//! connection to the next server and reads, in what goes by in clear, who offers a ticket and who
//! resumes. In the midst of it one handshake is held back until all servers have changed their key,
//! so that its ticket is one of the previous key.
//!
//! Needs the clients, so that it runs only when asked for: `make prove-clients`. `STEK_SHARE_SO`
//! names the plugin.

mod hello;
mod programs;
mod relay;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use testkit::fleet::{self, Fleet, Plan};
use testkit::origin::Origin;
use testkit::run_dir::RunDir;
use testkit::tickets::TlsVersion;
use testkit::{Context, Error, Result};

use programs::{Client, CLIENTS, CONNECTIONS};
use relay::{Event, Found, Relay, Seen};

const SERVERS: usize = 3;
/// The handshake that is held back, counted from 0. It is the second of a pair, for the client
/// whose every process makes two.
const HELD: usize = 5;
/// `key_update_interval`: nothing changes the key but the test.
const INTERVAL: Duration = Duration::from_secs(3600);
/// Until something has happened that takes two seconds at most on an idle machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// A group for which no client has a key at hand, while all know it.
const RARE_GROUP: &str = "proxy.config.ssl.server.groups_list STRING P-384";
/// What all servers answer, and what has a browser ask again.
const PAGE: &str = include_str!("programs/page.html");

/// What one client did in one version.
struct Row {
    client: &'static Client,
    program: String,
    version: TlsVersion,
    one: Found,
    three: Found,
    /// The same three with the plugin, where they ask for a second ClientHello in TLS 1.3.
    asked_twice: Option<Found>,
    without: Found,
}

#[test]
#[ignore = "needs many clients: make prove-clients"]
fn clients_resume_on_three_servers_as_on_one() -> Result<()> {
    let absent: Vec<String> = CLIENTS
        .iter()
        .filter(|client| !client.is_there())
        .map(|client| format!("{} (Debian's package {})", client.program, client.package))
        .collect();
    assert!(absent.is_empty(), "missing: {}; tools/deps.sh installs them", absent.join(", "));

    let dir = RunDir::new("clients")?;
    let origin = Origin::of_page(PAGE)?;
    let plan = Plan::new(SERVERS, &fleet::built_plugin()?, INTERVAL)
        .origin(origin.address())
        // A connection for each request, for the clients that would keep one.
        .record("proxy.config.http.keep_alive_enabled_in INT 0");
    let plain = plan.clone().plain().start(&dir.join("plain"))?;
    let plan = plan.manager();
    let shared = Arc::new(plan.clone().start(&dir.join("shared"))?);
    let asking = Arc::new(plan.record(RARE_GROUP).start(&dir.join("joining"))?);
    for fleet in [&shared, &asking] {
        fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
    }

    let mut rows = Vec::new();
    for client in &CLIENTS {
        for version in TlsVersion::ALL {
            let visit = |what: &str, servers: &[SocketAddr], event: Option<Event>| {
                let home = dir.join(&format!("{}-{version}-{what}", client.program));
                visit(client, version, servers, event, &home)
            };
            rows.push(Row {
                client,
                program: client.version()?,
                version,
                one: visit("one", &plain.https()[..1], None)?,
                three: visit("three", &shared.https(), Some(rotation(&shared)))?,
                asked_twice: match version {
                    TlsVersion::V13 if client.can_be_asked => {
                        Some(visit("asked-twice", &asking.https(), Some(rotation(&asking)))?)
                    }
                    _ => None,
                },
                without: visit("without", &plain.https(), None)?,
            });
        }
    }
    print(&rows);
    rows.iter().for_each(assess);
    dir.done()
}

/// All connections of a client through a relay of its own.
fn visit(
    client: &Client,
    version: TlsVersion,
    servers: &[SocketAddr],
    event: Option<Event>,
    home: &Path,
) -> Result<Found> {
    fs::create_dir_all(home)?;
    let relay = Relay::start(servers, event.map(|event| (HELD, event)))?;
    let run = client.run(version, &relay, home);
    let mut found = relay.found();
    run.context(format_args!("{found:?}"))?;
    if client.is_browser {
        // Of those that it began before it could have a ticket, only the last counts.
        let first = found.seen.iter().position(Seen::is_offer).unwrap_or(1);
        found.seen.drain(..first.saturating_sub(1));
        found.seen.truncate(CONNECTIONS);
    }
    Ok(found)
}

/// Changes the key of all servers, and returns the one before.
fn rotation(fleet: &Arc<Fleet>) -> Event {
    // A relay's last thread may outlive the test, and must not keep the servers alive.
    let fleet = Arc::downgrade(fleet);
    Box::new(move || {
        let fleet = fleet.upgrade().ok_or_else(|| Error::new("the servers have ended"))?;
        let old = fleet::wait_one_key(&fleet.https(), None, PATIENCE)?;
        fleet.servers[0].ctl(&["plugin", "msg", "stek_share", "rotate"])?;
        fleet::wait_one_key(&fleet.https(), Some(&old), PATIENCE)?;
        Ok(old)
    })
}

/// Handshakes with a ticket, and how many of them resumed.
fn counts(found: &Found) -> (usize, usize) {
    let offers = found.seen.iter().filter(|seen| seen.is_offer());
    (offers.clone().count(), offers.filter(|seen| seen.is_resumed()).count())
}

/// Handshakes that resumed without a ticket, by a session id that one server alone knows.
fn by_id(found: &Found) -> usize {
    found.seen.iter().filter(|seen| seen.is_resumed() && !seen.is_offer()).count()
}

/// Those that were resumed under the key of before the rotation, after it.
fn under_old_key(found: &Found) -> usize {
    let after = found.seen.iter().skip_while(|seen| !seen.held);
    after.filter(|seen| seen.is_resumed() && seen.offered.ticket == found.old_key).count()
}

fn assess(row: &Row) {
    let what = format!("{}, {}", row.client.name, row.version);
    for found in [&row.one, &row.three, &row.without].into_iter().chain(&row.asked_twice) {
        assert!(found.faults.is_empty(), "{what}: {found:?}");
        assert_eq!(found.seen.len(), CONNECTIONS, "{what}: {found:?}");
        let mut outcomes = found.seen.iter().map(|seen| seen.outcome);
        let all = outcomes.all(|outcome| outcome.is_some_and(|v| v.version == row.version));
        assert!(all, "{what}: {found:?}");
    }
    let (offers, resumed) = counts(&row.three);
    if !row.client.tickets.contains(&row.version) {
        // If this ever fails, the document that says so has to change.
        assert_eq!((offers, by_id(&row.three)), (0, 0), "{what}: {:?}", row.three);
        return;
    }
    let least = if row.client.is_browser { row.client.offers / 2 } else { row.client.offers };
    for found in [&row.one, &row.three].into_iter().chain(&row.asked_twice) {
        let (offers, resumed) = counts(found);
        assert!(offers >= least, "{what}: only {offers} tickets offered: {found:?}");
        assert_eq!(resumed, offers, "{what}: {found:?}");
        assert_eq!(by_id(found), 0, "{what}: {found:?}");
        // How many connections a browser begins at the same moment is its own affair.
        assert!(row.client.is_browser || offers == counts(&row.one).0, "{what}: {found:?}");
    }
    for found in [&row.three].into_iter().chain(&row.asked_twice) {
        // The one that was held back came with a ticket of the key before.
        let held = found.seen.iter().find(|seen| seen.held);
        let is_old = |seen: &Seen| seen.is_offer() && seen.offered.ticket == found.old_key;
        assert!(held.is_some_and(is_old), "{what}: {found:?}");
    }
    if let Some(found) = &row.asked_twice {
        assert!(found.seen.iter().any(Seen::is_resumed_at_second), "{what}: {found:?}");
    }
    // And it could have been otherwise.
    assert!(counts(&row.without).1 < resumed, "{what}: without the plugin: {:?}", row.without);
}

fn print(rows: &[Row]) {
    let heads = [
        "client",
        "its version",
        "TLS",
        "one server",
        "three",
        "previous key",
        "three, asked twice",
        "three without",
    ];
    println!("| {} |\n|{}", heads.join(" | "), "---|".repeat(heads.len()));
    for row in rows {
        let of = |found: &Found| match (counts(found), by_id(found)) {
            ((0, _), ids) => format!("no ticket; {ids} by session id"),
            ((offers, resumed), _) => format!("{resumed} of {offers}"),
        };
        let fields = [
            row.client.name.to_owned(),
            row.program.clone(),
            row.version.to_string().replace("TLS ", ""),
            of(&row.one),
            of(&row.three),
            under_old_key(&row.three).to_string(),
            row.asked_twice.as_ref().map_or_else(|| "".into(), of),
            of(&row.without),
        ];
        println!("| {} |", fields.join(" | "));
    }
}
