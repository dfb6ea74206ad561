//! `rotate` and `revoke`: orders to the group, by way of any server.
//!
//! Invariants: one call gives one order to one server, so that it makes at most one key: an
//! order without an answer may have been carried out. A revocation is told of as done with the servers that
//! may not have heard of it.

use std::io::{self, BufRead, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use stek_share::client::{admin_limit, AdminCommand, KeyStatus, Keys};
use stek_share::core::key_ring::Generation;
use stek_share::core::server_id::ServerId;

use crate::absence::{absences, servers_named};
use crate::cli::{Place, RevokeArgs};
use crate::exit_code::{Ended, Failure, Outcome};
use crate::fleet::{address, Fleet, Server};
use crate::locate;
use crate::output::{print, style_of, styled, GOOD};
use crate::outside::shut_out;

/// A new key now.
pub fn rotate(place: &Place) -> Ended {
    give(AdminCommand::Rotate, place)
}

/// A new key now, and no older one.
pub fn revoke(args: &RevokeArgs, place: &Place) -> Ended {
    if !args.yes && !confirmed(QUESTION, OTHERWISE)? {
        return Err(Failure::new("nothing was done"));
    }
    give(AdminCommand::Revoke, place)
}

const QUESTION: &str = "This drops every key that clients' tickets were made with: no older ticket \
                        resumes any more,\nand every client has one full handshake. Type 'yes' to do \
                        it: ";
const OTHERWISE: &str =
    "revoke drops every key that clients' tickets were made with; nobody can be asked \
                         here, so give --yes if it is meant";

/// Asks the person at the terminal; where there is none, that is a failure in the words of `otherwise`.
pub(crate) fn confirmed(question: &str, otherwise: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(otherwise));
    }
    print(question)?;
    // The answer stands on the same line.
    let _ = io::stdout().flush();
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::new(format!("the answer cannot be read: {error}")))?;
    Ok(answer.trim() == "yes")
}

fn give(command: AdminCommand, place: &Place) -> Ended {
    let loaded = locate::load(&locate::source(place)?)?;
    let fleet = Fleet::new(&loaded, place.limit())?;
    let own = loaded.settings.server_id;
    let limit = admin_limit(&loaded.settings).max(place.limit());
    let servers = fleet.ask();
    let mut willing: Vec<&Server> = servers.iter().filter(|server| may_do_it(server)).collect();
    // This server first: the shortest way, and the one that its configuration was made for.
    willing.sort_by_key(|server| server.id() != own);
    let Some(server) = willing.first() else {
        let mut lines: Vec<String> = match shut_out(&servers) {
            Some(words) => vec![words],
            None => apart(&servers).into_iter().chain(absences(&servers)).collect(),
        };
        lines.push("no server of the list can have this done now; nothing was done".to_owned());
        return Err(Failure(lines));
    };
    let member = server.reached();
    match fleet.with(|client| async move { client.admin_command(member, command, limit).await }) {
        Ok(generation) => {
            let (also, keeping) = match command {
                AdminCommand::Rotate => ("", Vec::new()),
                AdminCommand::Revoke => {
                    ("; every older key is dropped", keeping(&fleet, generation))
                }
            };
            let word = styled("done:", GOOD);
            print(&format!("{word} generation {generation} is in use{also}\n"))?;
            let outcome = if keeping.is_empty() { Outcome::Healthy } else { Outcome::Degraded };
            let word = styled("warning:", style_of(outcome));
            keeping.iter().try_for_each(|line| print(&format!("{word} {line}\n")))?;
            Ok(outcome)
        }
        Err(why) => Err(Failure::new(format!("server {} ({}): {why}", member.id, address(member)))),
    }
}

/// How long servers that answer may take to hear that older keys are dropped; they need milliseconds.
const DROP_LIMIT: Duration = Duration::from_secs(5);

/// Between two questions about that.
const PAUSE: Duration = Duration::from_millis(50);

/// The servers that may open older tickets still, once those that answer had time to drop their keys: a line for
/// those that do not answer, and one for those that do.
fn keeping(fleet: &Fleet, generation: Generation) -> Vec<String> {
    let deadline = Instant::now() + DROP_LIMIT;
    loop {
        let servers = fleet.ask();
        let keeps = |server: &&Server| {
            server.status().is_some_and(|status| {
                let Keys { current, previous, .. } = &status.keys;
                let older = |key: &KeyStatus| key.generation < generation;
                current.is_none() || current.iter().chain(previous).any(older)
            })
        };
        let keeping: Vec<ServerId> = servers.iter().filter(keeps).map(Server::id).collect();
        if !keeping.is_empty() && Instant::now() < deadline {
            thread::sleep(PAUSE);
            continue;
        }
        let away = servers.iter().filter(|server| server.answer.is_err());
        let away: Vec<ServerId> = away.map(Server::id).collect();
        let told = |ids: &[ServerId], words: &str| {
            (!ids.is_empty()).then(|| format!("{}: {words}", servers_named(ids)))
        };
        return [
            told(
                &away,
                "no answer; whoever still runs there opens older tickets until it reaches the others: stop \
                 its Traffic Server, or mend the network",
            ),
            told(&keeping, "an answer, and older keys are still there; see its diags.log"),
        ]
        .into_iter()
        .flatten()
        .collect();
    }
}

/// Whether an order can be given to this server: it belongs to a majority.
fn may_do_it(server: &Server) -> bool {
    server.status().is_some_and(|status| status.group.quorum)
}

/// Those that answer and cannot have it done.
fn apart(servers: &[Server]) -> Option<String> {
    let ids: Vec<ServerId> =
        servers.iter().filter_map(Server::status).map(|status| status.id).collect();
    let verb = if ids.len() == 1 { "does" } else { "do" };
    (!ids.is_empty()).then(|| {
        format!(
            "{} {verb} not belong to a majority: more than half of the list has to be up and reachable",
            servers_named(&ids)
        )
    })
}
