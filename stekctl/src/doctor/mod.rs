//! `doctor`: finds what keeps sessions from being resumed although the key is shared.
//!
//! A finding is a [`Problem`], one line with file or server, reason and remedy; an error among them
//! means that sessions do not resume. Invariants: a fleet that is well has no finding; what is
//! only worth a note is said by `check`.

mod assess;
pub mod ats;
pub mod machine;
mod resume;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stek_share::client::{ServerStatus, TicketScope};
use stek_share::core::authorities::difference;
use stek_share::core::config::Problem;
use stek_share::core::findings::REPEATED;
use stek_share::core::server_status::MAX_ROOTS;
use stek_share::host::identity::User;
use stek_share::load::Loaded;

use self::resume::{Client, Matrix, Miss, Offer, Version};
use crate::check::told;
use crate::cli::{DoctorArgs, Place};
use crate::exit_code::{Ended, Failure, Outcome};
use crate::fleet::{address, Fleet, Server};
use crate::health::seconds;
use crate::locate;
use crate::output::{print, styled, Field, Table, BAD, GOOD};
use crate::rights;
use crate::status::look;

/// How far a server's clock may be off: less than this hurts nothing, and a fleet with time
/// synchronisation is far below it.
const CLOCK_MARGIN_MS: i64 = 30_000;

/// The same where clients may send early data, of which OpenSSL compares the age.
const EARLY_CLOCK_MARGIN_MS: i64 = 2_000;

/// Looks at everything and prints what it found.
pub fn run(args: &DoctorArgs, place: &Place) -> Ended {
    let config = locate::ats_config(place)?;
    let source = locate::source(place)?;
    let user = config.as_deref().and_then(|dir| rights::server_user(dir, &args.proc));
    let (mut found, loaded) = locate::problems_as(user.as_ref(), &source)?;
    if let Some(denied) = found.iter().find(|problem| locate::is_for_root(problem)) {
        return Err(Failure::new(denied.to_string()));
    }
    // What that user may not read, whoever asks the fleet may.
    let loaded = loaded.or_else(|| user.is_some().then(|| locate::load(&source).ok()).flatten());
    let usual = config.as_deref() == locate::usual().as_deref();
    let host = config.as_deref().map(|dir| ats::Host {
        dir,
        environment: machine::environment(&args.proc, dir, usual),
        scope: loaded.as_ref().map(|loaded| loaded.settings.ticket_scope),
    });
    match &host {
        Some(host) => {
            let conf = PathBuf::from(&source.argument);
            found.extend(ats::in_plugin_config(host.dir, conf.is_file().then_some(&conf)));
        }
        None => found.push(Problem::warning(
            "Traffic Server",
            "its configuration directory is in none of the usual places, so its files were not \
             looked at",
            "give --ats-config DIR",
        )),
    }
    found.extend(machine::findings(&args.proc, config.as_deref(), usual));
    let servers = match (&loaded, args.offline) {
        (Some(loaded), false) => ask(loaded, place.limit(), host.as_ref(), &mut found)?,
        _ => {
            let of_host = host.as_ref().map(|host| host.findings(None)).unwrap_or_default();
            found.extend(ats::problems(&of_host, None));
            Vec::new()
        }
    };
    let tls: Vec<String> = args.tls.iter().map(|given| resume::with_port(given)).collect();
    let matrices = try_tickets(args, &tls, place.limit(), &servers, &mut found)?;
    assess::lifetimes(&matrices, &tls, loaded.as_ref(), &mut found);
    let early = early_data(&matrices, &tls, &mut found);
    clocks(&servers, early, &mut found);
    if args.matrix {
        matrices.iter().try_for_each(|matrix| print(&shown(matrix, &tls)))?;
    }
    found.sort_by_key(|problem| (!problem.is_error(), problem.is_note()));
    found.iter().try_for_each(|problem| print(&told(problem)))?;
    Ok(match found.iter().find(|problem| !problem.is_note()) {
        None => {
            // A script takes silence for well; a person asks what was looked at.
            if io::stdout().is_terminal() {
                let config = config.as_deref();
                print(&looked_at(&source.argument, user.as_ref(), config, args, &servers, &tls))?;
            }
            Outcome::Healthy
        }
        Some(worst) if worst.is_error() => Outcome::Broken,
        Some(_) => Outcome::Degraded,
    })
}

/// What was looked at where nothing was found, and what was not.
fn looked_at(
    conf: &str,
    user: Option<&User>,
    config: Option<&Path>,
    args: &DoctorArgs,
    servers: &[Server],
    tls: &[String],
) -> String {
    let whose = user.map_or(String::new(), |user| format!(", read as user {}", user.name));
    let config = config.map_or(String::new(), |dir| dir.display().to_string());
    let answers = servers.iter().filter(|server| server.status().is_some()).count();
    let said = if args.offline {
        "not asked, by --offline".to_owned()
    } else {
        format!("{answers} of {} answer", servers.len())
    };
    let tried = match tls.len() {
        0 => "not tried; give --tls with the addresses where the servers serve TLS".to_owned(),
        1 => format!("taken and offered at {}, in TLS 1.2 and TLS 1.3", tls.join("")),
        _ => format!("taken and offered among {}, in TLS 1.2 and TLS 1.3", tls.join(", ")),
    };
    format!(
        "{} in\n\
         \x20 configuration          {conf}{whose}, and the files that it names\n\
         \x20 Traffic Server's files {config}\n\
         \x20 this machine           swap, core dumps of Traffic Server\n\
         \x20 the servers            {said}\n\
         \x20 tickets                {tried}\n",
        styled("nothing found", GOOD)
    )
}

/// Asks the fleet, and looks at this server's own files in the light of what it answers.
fn ask(
    loaded: &Loaded,
    limit: Duration,
    host: Option<&ats::Host<'_>>,
    found: &mut Vec<Problem>,
) -> Result<Vec<Server>, Failure> {
    let fleet = Fleet::new(loaded, limit)?;
    let own = loaded.settings.server_id;
    let running: RefCell<Option<ServerStatus>> = RefCell::default();
    let told: BTreeSet<String> = found.iter().map(Problem::to_string).collect();
    let look = look(&fleet, |status| {
        if let Some(host) = host.filter(|_| status.id == own) {
            *running.borrow_mut() = Some(status.clone());
            let in_files = host.findings(Some(status));
            status.host.hints.retain(|hint| !ats::is_found(hint, &in_files));
        }
        if status.id == own {
            drop_told(status, &told);
        }
    });
    if let Some(host) = host {
        let running = running.into_inner();
        found.extend(ats::problems(&host.findings(running.as_ref()), running.as_ref()));
    }
    found.extend(look.reasons.iter().map(|reason| {
        let (what, remedy) = reason.words.split_once("; ").unwrap_or((
            &reason.words,
            "see 'stekctl status' and diags.log of the servers that are named",
        ));
        match reason.outcome {
            Outcome::Broken => Problem::error("fleet", what, remedy),
            _ => Problem::warning("fleet", what, remedy),
        }
    }));
    let answers: Vec<(&Server, &ServerStatus)> =
        look.servers.iter().filter_map(|server| Some((server, server.status()?))).collect();
    roots(&answers, found);
    bundles(&answers, found);
    Ok(look.servers)
}

/// Takes from a status what its server says in words that are told already.
fn drop_told(status: &mut ServerStatus, told: &BTreeSet<String>) {
    let is_told = |line: &String| told.contains(line);
    status.host.warnings.retain(|line| !is_told(line));
    if status.host.certificate_warning.as_ref().is_some_and(is_told) {
        // Far from its end, as far as what is left to say goes.
        status.host.certificate_warning = None;
        status.certificate.expires_s = Some(u64::MAX);
    }
    status.state_faults.retain(|line| !is_told(line));
}

fn named(server: &Server) -> String {
    format!("server {} ({})", server.id(), address(&server.member))
}

/// Whether clients may send early data: by this server's files, or else by the tickets of any place.
fn early_data(matrices: &[Matrix], places: &[String], found: &mut Vec<Problem>) -> bool {
    if ats::is_early(found) {
        return true;
    }
    let is_early = |index: usize| {
        let mut taken = matrices.iter().filter_map(|matrix| matrix.taken.get(index));
        taken.any(|taken| taken.as_ref().is_ok_and(|taken| taken.early))
    };
    let early = places.iter().enumerate().filter(|(index, _)| is_early(*index));
    let early: Vec<&str> = early.map(|(_, name)| name.as_str()).collect();
    if !early.is_empty() {
        let (why, remedy) = REPEATED;
        let reason =
            format!("proxy.config.ssl.server.max_early_data allows early data (0-RTT): {why}");
        found.push(Problem::warning(&early.join(", "), reason, remedy));
    }
    !early.is_empty()
}

/// Clocks that differ from the one in the middle, where that hurts.
fn clocks(servers: &[Server], early: bool, found: &mut Vec<Problem>) {
    let mut offsets: Vec<(i64, &Server)> =
        servers.iter().filter_map(|server| Some((server.clock_offset_ms?, server))).collect();
    offsets.sort_by_key(|(offset, _)| *offset);
    // Of an even number the lower of the two in the middle.
    let Some((middle, _)) = offsets.get(offsets.len().saturating_sub(1) / 2).copied() else {
        return;
    };
    for (offset, server) in offsets {
        let off = offset - middle;
        let hurts = if off.abs() > CLOCK_MARGIN_MS {
            "tickets seem older or newer there than they are, and certificates not valid yet or \
             expired"
        } else if early && off.abs() > EARLY_CLOCK_MARGIN_MS {
            "early data is refused on a server whose clock is more than a second behind that of the \
             server that gave the ticket, or some ten ahead of it"
        } else {
            continue;
        };
        let reason = format!(
            "its clock is {} {} that of the other servers: {hurts}",
            seconds(off.unsigned_abs() / 1000),
            if off > 0 { "ahead of" } else { "behind" },
        );
        let remedy = "synchronise the clocks of all servers, for example with chrony";
        found.push(Problem::warning(&named(server), reason, remedy));
    }
}

/// Servers that trust other roots than the first one does.
fn roots(answers: &[(&Server, &ServerStatus)], found: &mut Vec<Problem>) {
    let Some((first, standard)) = answers.first() else { return };
    for (server, status) in answers {
        if status.certificate.roots_digest != standard.certificate.roots_digest {
            let reason = format!(
                "its root_cert_file holds other certificates than that of {}: {}",
                named(first),
                difference(&status.host.roots, &standard.host.roots).map_or_else(
                    || format!("they differ beyond the first {MAX_ROOTS}"),
                    |words| format!("it {words}")
                )
            );
            let remedy =
                "give all servers the same, unless a change of the root is under way: one \
                          server may refuse another";
            found.push(Problem::warning(&named(server), reason, remedy));
        }
    }
}

/// Servers whose Traffic Server binds sessions to another CA bundle. With `ticket_scope: host` the
/// names of that file's certificates are part of what a session is bound to, even where clients
/// show no certificate.
fn bundles(answers: &[(&Server, &ServerStatus)], found: &mut Vec<Problem>) {
    let binds = |status: &ServerStatus| status.host.ticket_scope == Some(TicketScope::Host);
    let mut hosted = answers.iter().filter(|(_, status)| binds(status));
    let Some((first, standard)) = hosted.next() else { return };
    for (server, status) in hosted {
        let differs = match (&status.host.authorities, &standard.host.authorities) {
            (Some(own), Some(other)) => own.difference(other),
            (Some(own), None) => Some(format!("has {}, and that one none", own.words())),
            (None, Some(other)) => Some(format!("has none, and that one {}", other.words())),
            (None, None) => None,
        };
        if let Some(differs) = differs {
            let reason = format!(
                "proxy.config.ssl.CA.cert.filename names authorities otherwise than on {}, so that \
                 sessions of one do not resume on the other: it {differs}",
                named(first),
            );
            let remedy = "give all servers the same file, or none, or ticket_scope: site";
            found.push(Problem::error(&named(server), reason, remedy));
        }
    }
}

/// Takes and offers tickets at the addresses that were given.
fn try_tickets(
    args: &DoctorArgs,
    tls: &[String],
    limit: Duration,
    servers: &[Server],
    found: &mut Vec<Problem>,
) -> Result<Vec<Matrix>, Failure> {
    if tls.is_empty() {
        return Ok(Vec::new());
    }
    if tls.len() > resume::MAX_ADDRESSES {
        return Err(Failure::new(format!(
            "--tls: {} addresses are more than {}",
            tls.len(),
            resume::MAX_ADDRESSES
        )));
    }
    let find = |name: &String| {
        resume::Place::find(name).map_err(|why| Failure::new(format!("--tls {name}: {why}")))
    };
    let places: Vec<resume::Place> = tls.iter().map(find).collect::<Result<_, _>>()?;
    let pair = args.cert.clone().zip(args.key.clone());
    let identity = pair.map(|(certificate, key)| resume::Identity { certificate, key });
    let client =
        Client::new(args.sni.as_deref(), limit, identity.as_ref()).map_err(Failure::new)?;
    let mut matrices = Vec::new();
    for version in Version::ALL {
        let mut matrix = client.matrix(&places, version);
        // A rotation in the middle of it makes keys differ for a moment.
        if may_be_a_moment(&matrix) {
            matrix = client.matrix(&places, version);
        }
        matrices.push(matrix);
    }
    let group: BTreeSet<String> = servers
        .iter()
        .filter_map(Server::status)
        .flat_map(|status| status.keys.current.iter().chain(&status.keys.previous))
        .map(|key| key.fingerprint.to_string())
        .collect();
    assess::assess(&matrices, &places, &group, found);
    // Who did not answer would only be waited for.
    let answers = |index: usize| {
        let newest = matrices.iter().find(|matrix| matrix.version == Version::Tls13);
        let taken = newest.and_then(|matrix| matrix.taken.get(index));
        !matches!(taken, None | Some(Err(Miss::Version | Miss::NotTls | Miss::Other(_))))
    };
    let answering = places.iter().enumerate().filter(|(index, _)| answers(*index));
    let answering: Vec<resume::Place> = answering.map(|(_, place)| place.clone()).collect();
    assess::suites(&client.suites(&answering), &answering, found);
    Ok(matrices)
}

fn may_be_a_moment(matrix: &Matrix) -> bool {
    let passes = |offer: &Offer| matches!(offer, Offer::Refused | Offer::Failed(Miss::Other(_)));
    matrix.offers.iter().flatten().any(passes)
}

/// The matrix as a table: rows give tickets, columns take them.
fn shown(matrix: &Matrix, places: &[String]) -> String {
    let title = format!("{} ticket of", matrix.version);
    let mut table = Table::new(std::iter::once(&*title).chain(places.iter().map(String::as_str)));
    for ((place, row), taken) in places.iter().zip(&matrix.offers).zip(&matrix.taken) {
        let offers = row.iter().map(|offer| match (offer, taken) {
            (Offer::Resumed, _) => Field::new("resumed").style(GOOD),
            (Offer::Refused, _) => Field::new("refused").style(BAD),
            (Offer::Failed(Miss::Version), _) | (Offer::NoTicket, Err(Miss::Version)) => {
                Field::new("not spoken")
            }
            (Offer::NoTicket, _) => Field::new("no ticket").style(BAD),
            (Offer::Failed(_), _) => Field::new("failed").style(BAD),
        });
        table.push(std::iter::once(Field::new(place)).chain(offers).collect());
    }
    format!("{}\n", table.render())
}
