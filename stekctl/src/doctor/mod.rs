//! `doctor`: finds what keeps sessions from being resumed although the key is shared.
//!
//! A finding is a [`Problem`], one line with file or server, reason and remedy; an error among them
//! means that sessions do not resume. Invariants: a fleet that is well has no finding; what is
//! only worth a note is said by `check`.

pub mod ats;
pub mod machine;
mod resume;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use stek_share::client::{Hint, ServerStatus, TicketScope};
use stek_share::core::config::Problem;
use stek_share::load::Loaded;

use self::resume::{Client, Matrix, Miss, Offer, Version};
use crate::check::told;
use crate::cli::{DoctorArgs, Place};
use crate::exit_code::{Ended, Failure, Outcome};
use crate::fleet::{address, Fleet, Server};
use crate::health::seconds;
use crate::locate;
use crate::output::{print, Field, Table, BAD, GOOD};
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
    // What that user may not read, whoever asks the fleet may.
    let loaded = loaded.or_else(|| user.is_some().then(|| locate::load(&source).ok()).flatten());
    match &config {
        Some(dir) => {
            let conf = PathBuf::from(&source.argument);
            let scope = loaded.as_ref().map(|loaded| loaded.settings.ticket_scope);
            found.extend(ats::findings(dir, conf.is_file().then_some(&conf), scope));
        }
        None => found.push(Problem::warning(
            "Traffic Server",
            "its configuration directory is in none of the usual places, so its files were not \
             looked at",
            "give --ats-config DIR",
        )),
    }
    let usual = config.as_deref() == locate::usual().as_deref();
    found.extend(machine::findings(&args.proc, config.as_deref(), usual));
    let servers = match (&loaded, args.offline) {
        (Some(loaded), false) => ask(loaded, place.limit(), config.is_some(), &mut found)?,
        _ => Vec::new(),
    };
    let matrices = try_tickets(args, place.limit(), &servers, &mut found)?;
    let early = early_data(&matrices, &args.tls, &mut found);
    clocks(&servers, early, &mut found);
    if args.matrix {
        matrices.iter().try_for_each(|matrix| print(&shown(matrix, &args.tls)))?;
    }
    found.sort_by_key(|problem| !problem.is_error());
    found.iter().try_for_each(|problem| print(&told(problem)))?;
    Ok(match found.first() {
        None => Outcome::Healthy,
        Some(worst) if worst.is_error() => Outcome::Broken,
        Some(_) => Outcome::Degraded,
    })
}

/// Asks the fleet. `knows_files` says that this server's own files were looked at already.
fn ask(
    loaded: &Loaded,
    limit: Duration,
    knows_files: bool,
    found: &mut Vec<Problem>,
) -> Result<Vec<Server>, Failure> {
    let fleet = Fleet::new(loaded, limit)?;
    let own = loaded.settings.server_id;
    let look = look(&fleet, |status| {
        if status.id == own && knows_files {
            status.host.hints.retain(|hint| !is_in_files(hint));
        }
    });
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
        let (why, remedy) = ats::REPEATED;
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
                "its root_cert_file holds other certificates ({}) than that of {} ({})",
                status.certificate.roots_digest,
                named(first),
                standard.certificate.roots_digest
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
    let words = |digest: &Option<String>| digest.clone().unwrap_or_else(|| "none".to_owned());
    for (server, status) in hosted {
        if status.host.ca_digest != standard.host.ca_digest {
            let reason = format!(
                "proxy.config.ssl.CA.cert.filename names other authorities, or in another order \
                 ({}), than on {} ({}): \
                 sessions of one do not resume on the other",
                words(&status.host.ca_digest),
                named(first),
                words(&standard.host.ca_digest)
            );
            let remedy = "give all servers the same file, or none, or ticket_scope: site";
            found.push(Problem::error(&named(server), reason, remedy));
        }
    }
}

/// Whether [`ats::findings`] sees for itself what this hint says.
fn is_in_files(hint: &Hint) -> bool {
    !matches!(hint, Hint::Unlocked(_) | Hint::Dumped(_) | Hint::Unmapped(_))
}

/// Takes and offers tickets at the addresses that were given.
fn try_tickets(
    args: &DoctorArgs,
    limit: Duration,
    servers: &[Server],
    found: &mut Vec<Problem>,
) -> Result<Vec<Matrix>, Failure> {
    if args.tls.is_empty() {
        return Ok(Vec::new());
    }
    if args.tls.len() > resume::MAX_ADDRESSES {
        return Err(Failure::new(format!(
            "--tls: {} addresses are more than {}",
            args.tls.len(),
            resume::MAX_ADDRESSES
        )));
    }
    let find = |name: &String| {
        resume::Place::find(name).map_err(|why| Failure::new(format!("--tls {name}: {why}")))
    };
    let places: Vec<resume::Place> = args.tls.iter().map(find).collect::<Result<_, _>>()?;
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
    assess(&matrices, &places, &group, found);
    // Who did not answer would only be waited for.
    let answers = |index: usize| {
        let newest = matrices.iter().find(|matrix| matrix.version == Version::Tls13);
        let taken = newest.and_then(|matrix| matrix.taken.get(index));
        !matches!(taken, None | Some(Err(Miss::Version | Miss::Other(_))))
    };
    let answering = places.iter().enumerate().filter(|(index, _)| answers(*index));
    let answering: Vec<resume::Place> = answering.map(|(_, place)| place.clone()).collect();
    suites(&client.suites(&answering), &answering, found);
    Ok(matrices)
}

fn may_be_a_moment(matrix: &Matrix) -> bool {
    let passes = |offer: &Offer| matches!(offer, Offer::Refused | Offer::Failed(Miss::Other(_)));
    matrix.offers.iter().flatten().any(passes)
}

/// What the matrices say. `group` has the fingerprints of the group's keys, if they are known.
fn assess(
    matrices: &[Matrix],
    places: &[resume::Place],
    group: &BTreeSet<String>,
    found: &mut Vec<Problem>,
) {
    // Where tickets are switched off, TLS 1.3 has others, which mean nothing elsewhere: that they
    // are refused there, and all others here, is said with that.
    let mut without = BTreeSet::new();
    for (index, place) in places.iter().enumerate() {
        let mut silent = Vec::new();
        for matrix in matrices {
            match matrix.taken.get(index) {
                Some(Err(Miss::Other(why))) => found.push(Problem::error(
                    &place.name,
                    why.clone(),
                    "see that Traffic Server serves TLS there, and --sni and --timeout",
                )),
                Some(Ok(taken)) if taken.key().is_none() => silent.push(matrix.version),
                _ => {}
            }
        }
        if !silent.is_empty() {
            let reason = format!("gives out no session ticket in {}", versions(&silent));
            let remedy =
                "see proxy.config.ssl.server.session_ticket.enable and .number there, and \
                          ssl_ticket_enabled and ssl_ticket_number in its ssl_multicert.config";
            found.push(Problem::error(&place.name, reason, remedy));
            without.insert(index);
        } else {
            foreign_key(matrices, index, place, group, found);
        }
    }
    spoken(matrices, places, found);
    asked_of_clients(matrices, places, found);
    certificates(matrices, places, found);
    rejected_keys(matrices, places, &without, found);
}

/// The names of the places for which this is so.
fn names(places: &[resume::Place], is_so: impl Fn(usize) -> bool) -> Vec<&str> {
    let all = places.iter().enumerate().filter(|(index, _)| is_so(*index));
    all.map(|(_, place)| place.name.as_str()).collect()
}

/// Versions of TLS that some places speak and others do not. What none speaks is nothing to
/// complain of.
fn spoken(matrices: &[Matrix], places: &[resume::Place], found: &mut Vec<Problem>) {
    let is_off =
        |matrix: &Matrix, index: usize| matches!(matrix.taken.get(index), Some(Err(Miss::Version)));
    for (index, place) in places.iter().enumerate() {
        if matrices.iter().all(|matrix| is_off(matrix, index)) {
            let reason = "speaks neither TLS 1.2 nor TLS 1.3";
            let remedy = "see proxy.config.ssl.TLSv1_2 and proxy.config.ssl.TLSv1_3 there";
            found.push(Problem::error(&place.name, reason, remedy));
            continue;
        }
        for matrix in matrices.iter().filter(|matrix| is_off(matrix, index)) {
            let speak = |index| {
                matches!(
                    matrix.taken.get(index),
                    Some(Ok(_) | Err(Miss::Certificate | Miss::Refused(_)))
                )
            };
            let others = names(places, speak);
            if others.is_empty() {
                continue;
            }
            let version = matrix.version;
            let reason = format!(
                "does not speak {version}, unlike {}: sessions of {version} do not resume on it",
                others.join(", "),
            );
            let record = match version {
                Version::Tls12 => "proxy.config.ssl.TLSv1_2",
                Version::Tls13 => "proxy.config.ssl.TLSv1_3 (from 10 on .TLSv1_3.enabled)",
            };
            let remedy = format!(
                "give all servers the same {record}, and from Traffic Server 10 on the same \
                 proxy.config.ssl.server.version.min and .max"
            );
            found.push(Problem::error(&place.name, reason, remedy));
        }
    }
}

/// Certificates that are demanded of clients, where doctor has none that will do.
fn asked_of_clients(matrices: &[Matrix], places: &[resume::Place], found: &mut Vec<Problem>) {
    let has = |index: usize, is_it: fn(&Result<resume::Taken, Miss>) -> bool| {
        matrices.iter().filter_map(|matrix| matrix.taken.get(index)).any(is_it)
    };
    for (index, place) in places.iter().enumerate() {
        let mut taken = matrices.iter().filter_map(|matrix| matrix.taken.get(index));
        let refused = taken.find_map(|taken| match taken {
            Err(Miss::Refused(words)) => Some(words),
            _ => None,
        });
        if let Some(words) = refused {
            let reason = format!("refuses the certificate of --cert: {words}");
            let remedy = "give --cert and --key of a client that the site lets in";
            found.push(Problem::warning(&place.name, reason, remedy));
        }
    }
    let demands = |index| has(index, |taken| *taken == Err(Miss::Certificate));
    let demanding = names(places, demands);
    if demanding.is_empty() {
        return;
    }
    let open = names(places, |index| !demands(index) && has(index, |taken| taken.is_ok()));
    let who = demanding.join(", ");
    if open.is_empty() {
        let reason = "a client certificate is demanded there, so tickets were not tried";
        let remedy = "give --cert FILE --key FILE of a client that is let in";
        found.push(Problem::warning(&who, reason, remedy));
    } else {
        let reason = format!(
            "a client certificate is demanded there, unlike {}: with ticket_scope: site sessions \
             of one do not resume on the other, with host they may open it to clients that have \
             none",
            open.join(", ")
        );
        let remedy = "give all servers the same proxy.config.ssl.client.certification_level, and \
                      the same verify_client in sni.yaml; to try tickets there give --cert FILE \
                      --key FILE of a client that is let in";
        found.push(Problem::error(&who, reason, remedy));
    }
}

/// Places that agree with the first one on a suite of TLS 1.3 with another hash, for some client.
fn suites(taken: &[Vec<Option<&str>>], places: &[resume::Place], found: &mut Vec<Problem>) {
    let mut speaking =
        taken.iter().zip(places).filter(|(suites, _)| suites.iter().any(Option::is_some));
    let Some((standard, first)) = speaking.next() else { return };
    for (suites, place) in speaking {
        let mut pairs = suites.iter().zip(standard).zip(resume::PREFERENCES);
        let differs = pairs.find_map(|((own, its), wanted)| match (own, its) {
            (Some(own), Some(its)) if !resume::same_hash(own, its) => Some((own, its, wanted)),
            _ => None,
        });
        let Some((own, its, wanted)) = differs else { continue };
        let wanted = wanted.split(':').next().unwrap_or_default();
        let reason = format!(
            "uses {own} with a client of TLS 1.3 that wants {wanted} first, and {} uses {its}: \
             suites of different hashes never resume each other's sessions",
            first.name
        );
        let remedy = "give all servers the same proxy.config.ssl.server.TLSv1_3.cipher_suites, \
                      proxy.config.ssl.server.honor_cipher_order and prioritize_chacha";
        found.push(Problem::error(&place.name, reason, remedy));
    }
}

/// A server whose tickets are not under one of the group's keys.
fn foreign_key(
    matrices: &[Matrix],
    index: usize,
    place: &resume::Place,
    group: &BTreeSet<String>,
    found: &mut Vec<Problem>,
) {
    let taken = matrices.iter().filter_map(|matrix| matrix.taken.get(index)?.as_ref().ok());
    let foreign = taken.filter_map(resume::Taken::key).find(|key| !group.contains(*key));
    if let Some(key) = foreign.filter(|_| !group.is_empty()) {
        let reason = format!("encrypts its tickets with the key {key}, which is not the group's");
        let remedy = "see that its plugin.config loads stek_share.so, that it belongs to this \
                      fleet, and that neither ticket_key.filename nor a line of its \
                      ssl_multicert.config brings a key of its own";
        found.push(Problem::error(&place.name, reason, remedy));
    }
}

/// Servers that show another certificate than the first.
fn certificates(matrices: &[Matrix], places: &[resume::Place], found: &mut Vec<Problem>) {
    let Some(matrix) = matrices.first() else { return };
    let mut shown = matrix.taken.iter().zip(places).filter_map(|(taken, place)| {
        let (digest, subject) = &taken.as_ref().ok()?.certificate;
        Some((digest, subject, place))
    });
    let Some((standard, standard_subject, first)) = shown.next() else { return };
    for (digest, subject, place) in shown {
        if digest != standard {
            let short = |digest: &str| digest.chars().take(8).collect::<String>();
            let reason = format!(
                "shows another certificate ({}, {subject}) than {} ({}, {standard_subject})",
                short(digest),
                first.name,
                short(standard),
            );
            let remedy = "give all servers the same, under the same ssl_cert_name; or name with \
                          --sni a site that all of them serve";
            found.push(Problem::warning(&place.name, reason, remedy));
        }
    }
}

/// Tickets that were not taken although they could be, by the place that did not take them. The
/// places `without` tickets are left out.
fn rejected_keys(
    matrices: &[Matrix],
    places: &[resume::Place],
    without: &BTreeSet<usize>,
    found: &mut Vec<Problem>,
) {
    for (to, place) in places.iter().enumerate().filter(|(to, _)| !without.contains(to)) {
        let mut same_key: Vec<(&str, Version)> = Vec::new();
        let mut other_key: Vec<(&str, Version)> = Vec::new();
        for matrix in matrices {
            let taken = |index: usize| matrix.taken.get(index)?.as_ref().ok();
            let key = |index: usize| taken(index)?.key();
            // What of this is said elsewhere, with its cause.
            let other_hash = |from: usize| match (taken(from), taken(to), matrix.version) {
                (Some(from), Some(to), Version::Tls13) => !resume::same_hash(from.suite, to.suite),
                _ => false,
            };
            for (from, (row, giver)) in matrix.offers.iter().zip(places).enumerate() {
                match row.get(to).filter(|_| !without.contains(&from)) {
                    Some(Offer::Refused) if key(from) == key(to) && other_hash(from) => {}
                    Some(Offer::Refused) if key(from) == key(to) => {
                        same_key.push((&giver.name, matrix.version));
                    }
                    // Nothing was taken there, and why is said elsewhere.
                    Some(Offer::Refused) if taken(to).is_none() => {}
                    Some(Offer::Refused) => other_key.push((&giver.name, matrix.version)),
                    Some(Offer::Failed(Miss::Other(why))) => found.push(Problem::error(
                        &place.name,
                        format!("a ticket of {} was offered and it {why}", giver.name),
                        "see its diags.log, and --timeout",
                    )),
                    _ => {}
                }
            }
        }
        if !same_key.is_empty() {
            let reason = format!(
                "does not resume sessions of {}, although both use one key",
                givers(&same_key)
            );
            let remedy = "give both the same ticket_scope: stekctl status; if that is host, make \
                          ssl_cert_name in the first line of ssl_multicert.config with dest_ip=* \
                          the same on both, to the letter, the file of \
                          proxy.config.ssl.CA.cert.filename too; if it is site, what the site asks \
                          of its clients; and set their clocks";
            found.push(Problem::error(&place.name, reason, remedy));
        }
        if !other_key.is_empty() {
            let reason = format!(
                "does not resume sessions of {}, because the two use different keys",
                givers(&other_key)
            );
            let remedy = "see that both load stek_share.so and belong to one group: stekctl status";
            found.push(Problem::error(&place.name, reason, remedy));
        }
    }
}

/// `a (TLS 1.2 and TLS 1.3), b (TLS 1.3)`
fn givers(refused: &[(&str, Version)]) -> String {
    let mut names: Vec<(&str, Vec<Version>)> = Vec::new();
    for (name, version) in refused {
        match names.iter_mut().find(|(known, _)| known == name) {
            Some((_, seen)) => seen.push(*version),
            None => names.push((name, vec![*version])),
        }
    }
    let words = names.iter().map(|(name, seen)| format!("{name} ({})", versions(seen)));
    words.collect::<Vec<_>>().join(", ")
}

fn versions(versions: &[Version]) -> String {
    versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
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
