//! What the tickets tell that were taken and offered: who gives none, who does not take those of others and
//! why, and what places differ in.
//!
//! Connects to nothing. Invariants: what is so everywhere and hurts nobody is not said; a place is
//! named in each line.

use std::collections::BTreeSet;

use stek_share::core::config::Problem;
use stek_share::core::findings::SHORT_LIFETIME_S;
use stek_share::load::Loaded;

use super::resume::{self, Matrix, Miss, Offer, Version, UNREACHED};
use crate::health::seconds;

/// What to do about a place that gives no TLS.
fn remedy(name: &str) -> &'static str {
    let is_ipv6_without_port = name.starts_with('[') && name.ends_with("]:443");
    if is_ipv6_without_port {
        "see that Traffic Server serves TLS there, and --sni and --timeout; an IPv6 address with a port \
         stands in brackets, as in [2001:db8::1]:443"
    } else {
        "see that Traffic Server serves TLS there, and --sni and --timeout"
    }
}

/// What the matrices say. `group` has the fingerprints of the group's keys, if they are known.
pub fn assess(
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
        let mut reached = true;
        for matrix in matrices {
            match matrix.taken.get(index) {
                // Whom no version reaches has one fault, in whatever words the system tells it.
                Some(Err(Miss::Other(why))) if why.starts_with(UNREACHED) && !reached => {}
                Some(Err(Miss::Other(why))) => {
                    reached = !why.starts_with(UNREACHED);
                    say_once(found, Problem::error(&place.name, why.clone(), remedy(&place.name)));
                }
                Some(Err(Miss::NotTls)) => say_once(
                    found,
                    Problem::error(
                        &place.name,
                        "what answers there speaks no TLS, as a port for plain HTTP does",
                        "give the address and port where Traffic Server serves TLS: it has :ssl in \
                         proxy.config.http.server_ports",
                    ),
                ),
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
    refused_tickets(matrices, places, &without, found);
}

/// Adds a line unless it is there, as where both versions of TLS come to the same.
fn say_once(found: &mut Vec<Problem>, problem: Problem) {
    if !found.contains(&problem) {
        found.push(problem);
    }
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
pub fn suites(taken: &[Vec<Option<&str>>], places: &[resume::Place], found: &mut Vec<Problem>) {
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
fn refused_tickets(
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

/// Tickets that live for less time than others, or than is of use; and tickets that outlive the keys.
pub fn lifetimes(
    matrices: &[Matrix],
    places: &[String],
    loaded: Option<&Loaded>,
    found: &mut Vec<Problem>,
) {
    // The versions of TLS announce the same.
    let lifetime = |index: usize| {
        let taken = matrices.iter().filter_map(|matrix| matrix.taken.get(index)?.as_ref().ok());
        taken.map(|taken| taken.lifetime_s).filter(|lifetime| *lifetime > 0).min()
    };
    let all = places.iter().enumerate();
    let all: Vec<(&String, u64)> =
        all.filter_map(|(index, name)| Some((name, lifetime(index)?))).collect();
    let Some((longest_at, longest)) = all.iter().copied().max_by_key(|(_, lifetime)| *lifetime)
    else {
        return;
    };
    for (name, lifetime) in all.iter().filter(|(_, lifetime)| *lifetime < longest) {
        let reason = format!(
            "its tickets live for {}, and those of {longest_at} for {}: sessions of it end sooner, \
             wherever they would be resumed",
            seconds(*lifetime),
            seconds(longest),
        );
        let remedy = "give all servers the same proxy.config.ssl.session_cache.timeout";
        found.push(Problem::warning(name, reason, remedy));
    }
    if longest < SHORT_LIFETIME_S.unsigned_abs() {
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        let reason = format!("tickets live for {} only", seconds(longest));
        let remedy =
            "take proxy.config.ssl.session_cache.timeout out, which means two hours, or give \
                      some minutes at least";
        found.push(Problem::warning(&names.join(", "), reason, remedy));
    }
    let Some(settings) = loaded.map(|loaded| &loaded.settings) else { return };
    let interval = settings.key_update_interval.as_secs();
    let kept = interval.saturating_mul(settings.ticket_keys as u64);
    if longest > kept {
        let reason = format!(
            "its tickets live for {}, but keys decrypt them for {} at most, which is ticket_keys times \
             key_update_interval: clients that come back later have a full handshake",
            seconds(longest),
            seconds(kept),
        );
        let remedy = "give more ticket_keys, if that time matters; it is no fault";
        found.push(Problem::note(longest_at, reason, remedy));
    }
}
