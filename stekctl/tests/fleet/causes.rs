//! doctor finds each cause that was planted, says what it is and where, and says nothing else.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;

use testkit::ats::Ats;
use testkit::fleet::{Fleet, Place};
use testkit::host::{self, host, Version, ANY, WITH_KEYS_BY_ADDRESS};
use testkit::pki::{Authority, Files, Identity, Request};
use testkit::run_dir::RunDir;
use testkit::sites::Visit;
use testkit::sys::Signal;
use testkit::tickets::TlsVersion;
use testkit::{ports, Context, Error, Result};

use crate::stage::{
    addresses, has_all, machine, on, plan, rewrite, stekctl, text, turn, wait_healthy, Said,
    PATIENCE,
};

/// Servers of one fleet, each with one fault but the first; the order is that of [`CAUSES`].
struct Cause {
    /// What is planted.
    plant: fn(&Path, &Plant) -> Result<()>,
    /// What each line has to say that doctor prints of this server and the first, in any order.
    lines: &'static [&'static [&'static str]],
    /// Its exit code.
    code: i32,
    /// The hosts for which that holds: from this version on, and before that one.
    hosts: Range<Version>,
}

/// What causes are made of.
pub struct Plant {
    pub site: Files,
    pub other: Files,
    /// Authorities of clients.
    pub bundle: PathBuf,
    /// A client with a certificate of theirs.
    pub client: Files,
    keys: PathBuf,
}

pub fn record(etc: &Path, name: &str, value: &str) -> Result<()> {
    host::set_record(etc, &format!("{name} {value}"))
}

pub fn multicert(etc: &Path, from: &str, to: &str) -> Result<()> {
    host::change_certificates(etc, |old| old.replace(from, to))
}

pub fn speak(etc: &Path, version: &str, value: &str) -> Result<()> {
    record(etc, &format!("proxy.config.ssl.{version}"), value)
}

pub fn demand(etc: &Path, plant: &Plant) -> Result<()> {
    record(etc, "proxy.config.ssl.client.certification_level", "INT 2")?;
    let file = format!("STRING {}", plant.bundle.display());
    record(etc, "proxy.config.ssl.CA.cert.filename", &file)
}

fn only_aes_128(etc: &Path) -> Result<()> {
    let suite = "STRING TLS_AES_128_GCM_SHA256";
    record(etc, "proxy.config.ssl.server.TLSv1_3.cipher_suites", suite)
}

const NO_TICKET_12: &[&str] = &["error: ", "gives out no session ticket in TLS 1.2"];

/// With `ticket_scope: host`.
const CAUSES: &[Cause] = &[
    Cause {
        plant: |etc, _| record(etc, "proxy.config.ssl.server.session_ticket.enable", "INT 0"),
        lines: &[
            &["error: ", "records.config line ", "session_ticket.enable: 0 means", "; set it to 1"],
            NO_TICKET_12,
        ],
        code: 2,
        hosts: ANY,
    },
    Cause {
        plant: |etc, _| record(etc, "proxy.config.ssl.server.session_ticket.number", "INT 0"),
        lines: &[
            &["error: ", "records.config line ", "session_ticket.number: 0 means", "TLS 1.3"],
            &["error: ", "gives out no session ticket in TLS 1.3"],
        ],
        code: 2,
        hosts: ANY,
    },
    Cause {
        plant: |etc, plant| {
            let file = format!("STRING {}", plant.keys.display());
            record(etc, "proxy.config.ssl.server.ticket_key.filename", &file)
        },
        lines: &[&[
            "warning: ",
            "records.config line ",
            "ticket_key.filename: ",
            "take the line out",
        ]],
        code: 1,
        hosts: ANY,
    },
    Cause {
        plant: |etc, _| multicert(etc, "dest_ip=*", "ssl_ticket_enabled=0 dest_ip=*"),
        lines: &[
            &["warning: ", "ssl_multicert.config line 1: ssl_ticket_enabled: 0 means"],
            NO_TICKET_12,
        ],
        code: 2,
        hosts: ANY,
    },
    Cause {
        plant: |etc, plant| {
            let line = format!("ticket_key_name={} dest_ip=*", plant.keys.display());
            multicert(etc, "dest_ip=*", &line)
        },
        lines: &[&["warning: ", "ssl_multicert.config line 1: ticket_key_name: ", "take it out"]],
        code: 1,
        hosts: ANY,
    },
    Cause {
        plant: |etc, _| multicert(etc, "dest_ip=*", "dest_ip=127.0.0.1"),
        lines: &[
            &["warning: ", "ssl_multicert.config line 1: dest_ip: 127.0.0.1 binds"],
            &["error: ", "does not resume", "(TLS 1.2 and TLS 1.3), although both use one key"],
            &["error: ", "does not resume", "(TLS 1.2 and TLS 1.3), although both use one key"],
        ],
        code: 2,
        hosts: ANY.start..WITH_KEYS_BY_ADDRESS,
    },
    Cause {
        plant: |etc, _| multicert(etc, "dest_ip=*", "dest_ip=127.0.0.1"),
        lines: &[
            &["warning: ", "ssl_multicert.config line 1: dest_ip: 127.0.0.1 binds", "its own"],
            &[
                "error: ",
                "does not resume",
                "(TLS 1.2 and TLS 1.3), because the two use different keys",
            ],
            &[
                "error: ",
                "does not resume",
                "(TLS 1.2 and TLS 1.3), because the two use different keys",
            ],
        ],
        code: 2,
        hosts: WITH_KEYS_BY_ADDRESS..ANY.end,
    },
    Cause {
        // The same certificate, under another name.
        plant: |etc, plant| {
            let copy = etc.join("copy.pem");
            fs::copy(&plant.site.certificate, &copy).context(copy.display())?;
            multicert(etc, text(&plant.site.certificate), text(&copy))
        },
        lines: &[
            &["error: ", "although both use one key; give both the same ticket_scope"],
            &["error: ", "although both use one key; give both the same ticket_scope"],
        ],
        code: 2,
        hosts: ANY,
    },
    Cause {
        plant: |etc, plant| {
            multicert(etc, text(&plant.site.certificate), text(&plant.other.certificate))?;
            multicert(etc, text(&plant.site.key), text(&plant.other.key))
        },
        lines: &[
            &["warning: ", "shows another certificate (", "/CN=other", " than ", "/CN=localhost"],
            &["error: ", "although both use one key; give both the same ticket_scope"],
            &["error: ", "although both use one key; give both the same ticket_scope"],
        ],
        code: 2,
        hosts: ANY,
    },
    Cause {
        plant: |etc, plant| {
            let file = format!("STRING {}", plant.bundle.display());
            record(etc, "proxy.config.ssl.CA.cert.filename", &file)
        },
        lines: &[
            &["error: ", "although both use one key; ", "CA.cert.filename"],
            &["error: ", "although both use one key; ", "CA.cert.filename"],
        ],
        code: 2,
        hosts: ANY,
    },
];

/// What keeps sessions from being resumed with `ticket_scope: host` alone, and is nothing to
/// complain of with `site`.
const HARMLESS: &[Cause] = &[
    Cause {
        plant: |etc, _| multicert(etc, "dest_ip=*", "dest_ip=127.0.0.1"),
        lines: &[],
        code: 0,
        hosts: ANY.start..WITH_KEYS_BY_ADDRESS,
    },
    Cause {
        plant: |etc, plant| {
            let copy = etc.join("copy.pem");
            fs::copy(&plant.site.certificate, &copy).context(copy.display())?;
            multicert(etc, text(&plant.site.certificate), text(&copy))
        },
        lines: &[],
        code: 0,
        hosts: ANY,
    },
    Cause {
        plant: |etc, plant| {
            let file = format!("STRING {}", plant.bundle.display());
            record(etc, "proxy.config.ssl.CA.cert.filename", &file)
        },
        lines: &[],
        code: 0,
        hosts: ANY,
    },
];

/// What the tickets themselves tell, whatever they are bound to.
const TOLD_BY_TICKETS: &[Cause] = &[
    Cause {
        plant: |etc, _| speak(etc, "TLSv1_3", "INT 0"),
        lines: &[&["error: ", "does not speak TLS 1.3, unlike ", "proxy.config.ssl.TLSv1_3 "]],
        code: 2,
        hosts: ANY,
    },
    Cause {
        plant: |etc, _| speak(etc, "TLSv1_2", "INT 0"),
        lines: &[&["error: ", "does not speak TLS 1.2, unlike ", "proxy.config.ssl.TLSv1_2"]],
        code: 2,
        hosts: ANY,
    },
    Cause {
        plant: |etc, _| only_aes_128(etc),
        lines: &[&[
            "error: ",
            "uses TLS_AES_128_GCM_SHA256 with a client of TLS 1.3 that wants ",
            " uses TLS_AES_256_GCM_SHA384: suites of different hashes",
            "TLSv1_3.cipher_suites",
        ]],
        code: 2,
        hosts: ANY,
    },
    Cause {
        plant: |etc, _| record(etc, "proxy.config.ssl.server.honor_cipher_order", "INT 0"),
        lines: &[&[
            "error: ",
            "uses TLS_AES_128_GCM_SHA256 with a client of TLS 1.3 that wants TLS_AES_128",
            " uses TLS_AES_256_GCM_SHA384: suites of different hashes",
            "honor_cipher_order",
        ]],
        code: 2,
        hosts: ANY,
    },
    Cause {
        plant: demand,
        lines: &[&[
            "error: ",
            "a client certificate is demanded there, unlike ",
            "certification_level",
            "--cert FILE",
        ]],
        code: 2,
        hosts: ANY,
    },
];

#[test]
fn what_lets_more_through_than_is_meant_is_told() -> Result<()> {
    let opened: &[&str] = &["warning: ", "with ticket_scope: host a session", "ticket_scope: site"];
    let _turn = turn();
    let dir = RunDir::new("ctl-through")?;
    let asking = |etc: &Path, _: &Plant| {
        let sni = "sni:\n- fqdn: closed.test\n  verify_client: STRICT\n";
        fs::write(etc.join("sni.yaml"), sni).context("sni.yaml")
    };
    let (fleet, plant) = planted(&dir, "host", &[asking, asking, demand, demand])?;
    let client = ["--cert", text(&plant.client.certificate), "--key", text(&plant.client.key)];
    let said = doctor(&dir, &fleet, &[0, 1], &[])?;
    assert_says(&said, &[opened], 1)?;
    said.line(&["sni.yaml line 3: closed.test: verify_client: STRICT asks"])?;
    let said = doctor(&dir, &fleet, &[2, 3], &client)?;
    assert_says(&said, &[opened], 1)?;
    said.line(&["records.config line ", "certification_level: 2 asks"])?;
    dir.done()
}

#[test]
fn early_data_is_told_and_the_clocks_that_it_needs() -> Result<()> {
    const REPEATED: &str =
        "allows early data (0-RTT): a copy of a client's first flight is accepted";
    let _turn = turn();
    let dir = RunDir::new("ctl-early")?;
    let place = |wrapper: Vec<String>| Place { address: Ipv4Addr::LOCALHOST.into(), wrapper };
    let places = [place(Vec::new()), place(Vec::new()), place(ahead("+20s")?)];
    let mut fleet = plan(3)?.places(&places).prepare(dir.path())?;
    const RECORD: &str = "proxy.config.ssl.server.max_early_data";
    for ats in &fleet.servers {
        record(&ats.etc(), RECORD, "INT 16384")?;
    }
    fleet.start()?;
    wait_healthy(&fleet.servers[0])?;
    let early: &[&str] = &["warning: ", REPEATED, "Early-Data: 1"];
    let third = format!("server 3 (127.0.0.1:{})", fleet.raft_ports[2]);
    let clock: &[&str] =
        &["warning: ", &third, "its clock is ", " ahead of", "early data is refused"];
    let said = doctor(&dir, &fleet, &[1, 2, 0], &[])?;
    assert_says(&said, &[early, clock], 1)?;
    said.line(&["records.config line ", RECORD, ": 16384 allows"])?;
    // Where this server's own files do not say so, the tickets do.
    record(&fleet.servers[0].etc(), RECORD, "INT 0")?;
    let said = doctor(&dir, &fleet, &[1, 2, 0], &[])?;
    assert_says(&said, &[early, clock], 1)?;
    let addresses = addresses(&fleet);
    said.line(&[&[1, 2, 0].map(|index| addresses[index].as_str()).join(", "), RECORD])?;

    // And so it is: one ticket's early data counts again and again, but where the clock forbids it.
    let visit = |index: usize| Visit::new(fleet.https()[index], TlsVersion::V13, "localhost");
    let ticket = visit(0).go()?.ticket.ok_or_else(|| Error::new("no ticket"))?;
    for (index, taken) in [(0, true), (1, true), (1, true), (2, false)] {
        let visited = visit(index).ticket(&ticket).early().go()?;
        assert!(visited.resumed, "{index}: {visited:?}");
        assert_eq!(visited.early, taken, "{index}: {visited:?}");
    }
    dir.done()
}

#[test]
fn what_tickets_tell_is_called_by_its_name() -> Result<()> {
    found_one_by_one("site", TOLD_BY_TICKETS)
}

#[test]
fn what_traffic_server_is_told_wrongly_is_found_one_by_one() -> Result<()> {
    found_one_by_one("host", CAUSES)
}

#[test]
fn what_does_not_matter_to_sessions_bound_to_their_site_is_no_fault() -> Result<()> {
    found_one_by_one("site", HARMLESS)
}

fn found_one_by_one(scope: &str, causes: &[Cause]) -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-causes")?;
    let version = host()?.version();
    let causes: Vec<&Cause> = causes.iter().filter(|c| c.hosts.contains(&version)).collect();
    let plants: Vec<fn(&Path, &Plant) -> Result<()>> =
        std::iter::once::<fn(&Path, &Plant) -> _>(|_, _| Ok(()))
            .chain(causes.iter().map(|cause| cause.plant))
            .collect();
    let (fleet, _) = planted(&dir, scope, &plants)?;
    for (index, cause) in (1..).zip(causes) {
        let said = doctor(&dir, &fleet, &[0, index], &[])?;
        assert_says(&said, cause.lines, cause.code)?;
    }
    dir.done()
}

/// A running fleet with one server for each plant.
pub fn planted(
    dir: &RunDir,
    scope: &str,
    plants: &[fn(&Path, &Plant) -> Result<()>],
) -> Result<(Fleet, Plant)> {
    let other = Identity::self_signed("/CN=other")?.write(dir.path(), "other")?;
    let authority = Authority::new("/CN=bundle")?;
    let bundle = authority.identity.write(dir.path(), "bundle")?.certificate;
    let client = authority.issue(&Request::new("/CN=client"))?.write(dir.path(), "client")?;
    let keys = dir.join("ticket.keys");
    testkit::pki::write_private(&keys, &(1..=48).collect::<Vec<u8>>())?;
    // So many starting at once on a small machine would call for one election after the other.
    let idle = plan(plants.len())?
        .option("ticket_scope", scope)
        .option("heart_beat_interval", "500")
        .option("election_timeout_lower_bound", "2000")
        .option("election_timeout_upper_bound", "4000");
    let mut fleet = idle.prepare(dir.path())?;
    let pki = dir.join("pki");
    let site = Files { certificate: pki.join("site.pem"), key: pki.join("site.key") };
    let plant = Plant { site, other, bundle, client, keys };
    for (put, ats) in plants.iter().zip(&fleet.servers) {
        put(&ats.etc(), &plant)?;
    }
    fleet.servers.iter_mut().try_for_each(Ats::start)?;
    for ats in &mut fleet.servers {
        ats.wait_diags("(generation ", PATIENCE)?;
        // Not all of them give TLS 1.2 tickets; and the key is there before the port listens.
        ats.wait_first(|address| Ok(TcpStream::connect(address)?))?;
    }
    Ok((fleet, plant))
}

/// Runs doctor on the last of these servers, with the addresses of all of them.
pub fn doctor(dir: &RunDir, fleet: &Fleet, servers: &[usize], more: &[&str]) -> Result<Said> {
    let all: Vec<&Ats> = fleet.servers.iter().collect();
    let proc = machine(dir.path(), &all)?;
    let addresses = addresses(fleet);
    let mut words = vec!["doctor", "--proc", text(&proc), "--sni", "localhost", "--tls"];
    words.extend(servers.iter().map(|index| addresses[*index].as_str()));
    words.extend(more);
    if servers.len() < all.len() {
        words.push("--offline");
    }
    let last = servers.last().map_or(&fleet.servers[0], |index| &fleet.servers[*index]);
    on(last, &words)
}

#[test]
fn what_all_servers_have_in_common_is_no_fault() -> Result<()> {
    /// Pairs of servers that are the same.
    const COMMON: [fn(&Path, &Plant) -> Result<()>; 4] = [
        |etc, _| speak(etc, "TLSv1_2", "INT 0"),
        |etc, _| speak(etc, "TLSv1_3", "INT 0"),
        |etc, _| only_aes_128(etc),
        demand,
    ];
    let _turn = turn();
    let dir = RunDir::new("ctl-common")?;
    let twice: Vec<_> = COMMON.into_iter().flat_map(|plant| [plant, plant]).collect();
    let (fleet, plant) = planted(&dir, "site", &twice)?;
    let client = ["--cert", text(&plant.client.certificate), "--key", text(&plant.client.key)];
    for pair in [[0, 1], [2, 3], [4, 5]] {
        assert_says(&doctor(&dir, &fleet, &pair, &[])?, &[], 0)?;
    }
    assert_says(&doctor(&dir, &fleet, &[6, 7], &client)?, &[], 0)?;
    let said = doctor(&dir, &fleet, &[6, 7], &[&client[..], &["--matrix"]].concat())?;
    assert_eq!(said.out.matches("resumed").count(), 2 * 4, "{said:#?}");
    let demanded =
        ["warning: ", "a client certificate is demanded there", "give --cert FILE --key"];
    assert_says(&doctor(&dir, &fleet, &[6, 7], &[])?, &[&demanded], 1)?;
    // A client that the sites do not know.
    let other = ["--cert", text(&plant.other.certificate), "--key", text(&plant.other.key)];
    let refused: &[&str] = &["warning: ", "refuses the certificate of --cert: ", "lets in"];
    assert_says(&doctor(&dir, &fleet, &[6, 7], &other)?, &[refused, refused], 1)?;
    dir.done()
}

/// What might be taken for a fault, and what might be taken for another one.
#[test]
fn what_only_looks_like_a_fault_is_called_what_it_is() -> Result<()> {
    let asks = |etc: &Path, plant: &Plant| {
        record(etc, "proxy.config.ssl.client.certification_level", "INT 1")?;
        let file = format!("STRING {}", plant.bundle.display());
        record(etc, "proxy.config.ssl.CA.cert.filename", &file)
    };
    let strict = |etc: &Path, plant: &Plant| {
        let sni = "sni:\n- fqdn: localhost\n  verify_client: STRICT\n";
        fs::write(etc.join("sni.yaml"), sni)?;
        let file = format!("STRING {}", plant.bundle.display());
        record(etc, "proxy.config.ssl.CA.cert.filename", &file)
    };
    let one_ticket = |etc: &Path, _: &Plant| {
        record(etc, "proxy.config.ssl.server.session_ticket.number", "INT 1")
    };
    let _turn = turn();
    let dir = RunDir::new("ctl-looks")?;
    let none = |_: &Path, _: &Plant| Ok(());
    let (fleet, plant) = planted(&dir, "site", &[none, one_ticket, asks, asks, strict, strict])?;
    let client = ["--cert", text(&plant.client.certificate), "--key", text(&plant.client.key)];
    // One ticket is as good as two; a certificate that is asked for may be left out.
    for pair in [[0, 1], [2, 3]] {
        assert_says(&doctor(&dir, &fleet, &pair, &[])?, &[], 0)?;
    }
    // Demanded for the name alone that is asked for.
    assert_says(&doctor(&dir, &fleet, &[4, 5], &client)?, &[], 0)?;
    let demanded: &[&str] = &["warning: ", "a client certificate is demanded there"];
    assert_says(&doctor(&dir, &fleet, &[4, 5], &[])?, &[demanded], 1)?;
    // The servers' own port, one where nobody listens, and one where nobody speaks TLS.
    let etc = fleet.servers[0].etc();
    let offline = ["--ats-config", text(&etc), "--timeout", "10", "doctor", "--offline", "--proc"];
    let proc = machine(dir.path(), &[&fleet.servers[0]])?;
    let at = |place: &str| {
        stekctl(&[&offline[..], &[text(&proc), "--sni", "localhost", "--tls", place]].concat())
    };
    let peers = at(&format!("127.0.0.1:{}", fleet.raft_ports[0]))?;
    assert_says(&peers, &[demanded], 1)?;
    let closed = at(&format!("127.0.0.1:{}", ports::take()?))?;
    let unreachable: &[&str] = &["error: ", "cannot be reached: ", "serves TLS there"];
    assert_says(&closed, &[unreachable], 2)?;
    let plain = TcpListener::bind("127.0.0.1:0")?;
    let place = plain.local_addr()?.to_string();
    let answer = thread::spawn(move || {
        for stream in plain.incoming().take(2).flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let no_tls: &[&str] = &["error: ", "speaks no TLS, as a port for plain HTTP does", ":ssl in"];
    assert_says(&at(&place)?, &[no_tls], 2)?;
    answer.join().map_err(|_| Error::new("the plain server panicked"))?;
    dir.done()
}

#[test]
fn tickets_that_end_too_soon_and_outlive_their_keys_are_told() -> Result<()> {
    let short =
        |etc: &Path, _: &Plant| record(etc, "proxy.config.ssl.session_cache.timeout", "INT 2");
    let hasty = |etc: &Path, _: &Plant| {
        rewrite(&etc.join("server_conf.yaml"), |conf| {
            conf.replace("key_update_interval: 3600", "key_update_interval: 600")
        })
    };
    let _turn = turn();
    let dir = RunDir::new("ctl-lifetimes")?;
    let (fleet, _) = planted(&dir, "site", &[|_, _| Ok(()), short, hasty])?;
    let of = |index: usize| fleet.https()[index].to_string();
    let in_file: &[&str] = &["warning: ", "session_cache.timeout: 2 is the time in seconds after"];
    // 11 has no word about how long tickets live.
    if host()?.has_session_ids() {
        let (first, second) = (of(0), of(1));
        let differs: &[&str] = &[
            "warning: ",
            &second,
            "its tickets live for 2 s, and those of ",
            &first,
            "for 2 h: sessions of it end sooner",
        ];
        assert_says(&doctor(&dir, &fleet, &[0, 1], &[])?, &[in_file, differs], 1)?;
        let only: &[&str] = &["warning: ", &second, "tickets live for 2 s only"];
        assert_says(&doctor(&dir, &fleet, &[1], &[])?, &[in_file, only], 1)?;
    }
    let kept: &[&str] = &["note: ", "live for 2 h, but keys decrypt them for 20 min at most"];
    assert_says(&doctor(&dir, &fleet, &[0, 2], &[])?, &[kept], 0)?;
    dir.done()
}

#[test]
fn a_bundle_of_the_same_authorities_is_the_same() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-bundles")?;
    let plain = |etc: &Path, plant: &Plant| {
        let file = format!("STRING {}", plant.bundle.display());
        record(etc, "proxy.config.ssl.CA.cert.filename", &file)
    };
    // Another file, with a remark, a blank line, and one authority twice.
    let adorned = |etc: &Path, plant: &Plant| {
        let (file, one) = (etc.join("bundle.pem"), fs::read_to_string(&plant.bundle)?);
        fs::write(&file, format!("# Whom we trust.\n\n{one}\n{one}"))?;
        let file = format!("STRING {}", file.display());
        record(etc, "proxy.config.ssl.CA.cert.filename", &file)
    };
    let (fleet, _) = planted(&dir, "host", &[plain, adorned])?;
    wait_healthy(&fleet.servers[0])?;
    let said = doctor(&dir, &fleet, &[0, 1], &["--matrix"])?;
    assert_eq!(said.out.matches("resumed").count(), 2 * 4, "{said:#?}");
    assert_says(&doctor(&dir, &fleet, &[0, 1], &[])?, &[], 0)?;
    dir.done()
}

/// Each expectation is met by a line of its own, and no line is left.
pub fn assert_says(said: &Said, expected: &[&[&str]], code: i32) -> Result<()> {
    let mut left = said.lines();
    for parts in expected {
        let found = left.iter().position(|line| has_all(line, parts));
        let found =
            found.ok_or_else(|| Error::new(format!("no line with {parts:?}: {said:#?}")))?;
        let line = left.remove(found);
        assert!(line.contains("; "), "no remedy: {line}");
    }
    assert!(left.is_empty(), "nobody expected {left:#?}");
    assert_eq!(said.code, code, "{said:#?}");
    Ok(())
}

#[test]
fn what_differs_between_servers_is_found_with_their_names() -> Result<()> {
    let _turn = turn();
    let dir = RunDir::new("ctl-differ")?;
    let fleet = three_that_differ(&dir)?;
    let servers: Vec<&Ats> = fleet.servers.iter().collect();
    let proc = machine(dir.path(), &servers)?;
    let ats = &fleet.servers[0];
    let mut last = String::new();
    let look = || {
        let said = on(ats, &["doctor", "--proc", text(&proc)])?;
        // The group may just be finding itself, or one of them be on its way into it.
        let is_one = ["majority", "do not share one cluster"].iter().all(|w| !said.out.contains(w));
        last.clone_from(&said.out);
        Ok(is_one.then_some(said))
    };
    let said = testkit::wait::until(PATIENCE, "a look at the fleet", look);
    let said = said.map_err(|err| Error::new(format!("{err}: {last}")))?;
    let name = |id: usize| format!("server {id} (127.0.0.1:{})", fleet.raft_ports[id - 1]);
    let (second, third) = (name(2), name(3));
    let expected: [&[&str]; 6] = [
        &[
            "warning: fleet: not all servers have the same key_update_interval: ",
            "server 2 has 1800s",
            "servers 1 and 3 have 3600s",
        ],
        &["warning: ", &second, "root_cert_file holds other certificates"],
        &["warning: fleet: server 2: its file's server list is not the agreed one"],
        &["warning: ", &third, "its clock is ", " ahead of", "synchronise"],
        &["error: fleet: server 3: ", "records.config line ", "session_ticket.enable: 0 means"],
        &[
            "error: ",
            &third,
            "CA.cert.filename names authorities otherwise than on server 1 (",
            ": it has /CN=bundle, and that one none",
        ],
    ];
    assert_says(&said, &expected, 2)?;

    // A machine that would write keys to disk.
    fs::write(proc.join("swaps"), "Filename Type\n/dev/sda2 partition 1 0 -2\n")?;
    let said = on(ats, &["doctor", "--offline", "--proc", text(&proc)])?;
    assert_says(&said, &[&["warning: ", "swaps: /dev/sda2 is in use as swap", "swapoff"]], 1)?;
    let said = on(&fleet.servers[1], &["doctor", "--offline", "--proc", "/proc"])?;
    let line = said.line(&["warning: ", "/limits: Max core file size: ", "core_limit to 0"])?;
    assert!(line.contains(&format!("process {}", fleet.servers[1].pid()?)), "{line}");

    // plugin.config is not what it should be.
    let path = ats.etc().join("plugin.config");
    let good = fs::read_to_string(&path)?;
    fs::write(proc.join("swaps"), "")?;
    let look = || on(ats, &["doctor", "--offline", "--proc", text(&proc)]);
    fs::write(&path, format!("{good}{good}"))?;
    assert_says(&look()?, &[&["warning: ", "plugin.config line 2: loads stek_share.so once"]], 1)?;
    fs::write(&path, "xdebug.so\n")?;
    assert_says(&look()?, &[&["error: ", "plugin.config: does not load stek_share.so"]], 2)?;
    let elsewhere = fleet.servers[1].etc().join("server_conf.yaml");
    fs::write(&path, format!("stek_share.so {}\n", elsewhere.display()))?;
    assert_says(&look()?, &[&["warning: ", "plugin.config line 1: ", "another configuration"]], 1)?;
    dir.done()
}

/// The second has other options, another list and one root more, and may dump core; the third has
/// a clock two minutes ahead and another CA bundle, and gives out no tickets.
fn three_that_differ(dir: &RunDir) -> Result<Fleet> {
    let place = |wrapper: Vec<String>| Place { address: Ipv4Addr::LOCALHOST.into(), wrapper };
    let places = [place(Vec::new()), place(Vec::new()), place(ahead("+120s")?)];
    let mut fleet = plan(3)?.option("ticket_scope", "host").places(&places).prepare(dir.path())?;
    record(&fleet.servers[1].etc(), "proxy.config.core_limit", "INT -1")?;
    let third = fleet.servers[2].etc();
    record(&third, "proxy.config.ssl.server.session_ticket.enable", "INT 0")?;
    let bundle = Authority::new("/CN=bundle")?.identity.write(&third, "bundle")?.certificate;
    let file = format!("STRING {}", bundle.display());
    record(&third, "proxy.config.ssl.CA.cert.filename", &file)?;
    fleet.servers.iter_mut().try_for_each(Ats::start)?;
    for ats in &fleet.servers {
        ats.wait_diags("(generation ", PATIENCE)?;
    }
    // A list that was there at the cold start would be the group's.
    let (port, second) = (ports::take()?, &mut fleet.servers[1]);
    second.wait_ready()?;
    second.stop(Signal::Interrupt)?;
    let etc = second.etc();
    let more = Authority::new("/CN=another root")?.identity.write(&etc, "more")?;
    let roots = etc.join("roots.pem");
    let old = fs::read_to_string(dir.join("pki/root.pem"))?;
    fs::write(&roots, old + &fs::read_to_string(more.certificate)?)?;
    rewrite(&etc.join("server_conf.yaml"), |conf| {
        let conf = conf.replace("key_update_interval: 3600", "key_update_interval: 1800");
        let kept = conf.lines().filter(|line| !line.starts_with("root_cert_file"));
        let kept: String = kept.map(|line| format!("{line}\n")).collect();
        format!("{kept}root_cert_file: {}\n", roots.display())
    })?;
    rewrite(&etc.join("server_list.yaml"), |list| {
        format!("{list}- server_id: 4\n  address: 127.0.0.1\n  port: {port}\n")
    })?;
    second.start()?;
    second.wait_ready()?;
    Ok(fleet)
}

/// Words before a command that put its wall clock, and only that, so far ahead.
fn ahead(span: &str) -> Result<Vec<String>> {
    let dirs = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path());
    let library = dirs.map(|dir| dir.join("faketime/libfaketime.so.1")).find(|lib| lib.exists());
    let library = library.ok_or_else(|| Error::new("`make deps` installs Debian's faketime"))?;
    let preload = format!("LD_PRELOAD={}", library.display());
    let words = ["env", &preload, &format!("FAKETIME={span}"), "FAKETIME_DONT_FAKE_MONOTONIC=1"];
    Ok(words.map(str::to_owned).to_vec())
}
