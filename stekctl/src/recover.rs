//! `recover`: after a majority is gone for good, those who are left go on alone.
//!
//! What may be done is the asked server's to say, see [`stek_share::rpc::RecoverRefusal`]. Invariants: one
//! call gives one order to one server, one of the survivors; nothing is ordered without a yes.

use std::collections::BTreeSet;

use stek_share::client::admin_limit;
use stek_share::core::server_id::ServerId;

use crate::admin_command::confirmed;
use crate::cli::{Place, RecoverArgs};
use crate::exit_code::{Ended, Failure, Outcome};
use crate::fleet::{address, Fleet, Server};
use crate::locate;
use crate::output::{print, styled, GOOD};

/// See the module's head.
pub fn run(args: &RecoverArgs, place: &Place) -> Ended {
    let survivors: BTreeSet<ServerId> = args.survivors.iter().copied().map(ServerId).collect();
    let loaded = locate::load(&locate::source(place)?)?;
    let fleet = Fleet::new(&loaded, place.limit())?;
    let (own, limit) = (loaded.settings.server_id, admin_limit(&loaded.settings));
    let ids = |ids: &BTreeSet<ServerId>| {
        ids.iter().map(ServerId::to_string).collect::<Vec<_>>().join(", ")
    };
    let listed: BTreeSet<ServerId> = loaded.settings.members.iter().map(|m| m.id).collect();
    let lost: BTreeSet<ServerId> = listed.difference(&survivors).copied().collect();
    if let Some(unknown) = survivors.difference(&listed).next() {
        return Err(Failure::new(format!(
            "--survivors: the list here has no server {unknown}; give those of {} that are left",
            ids(&listed)
        )));
    }
    let question = format!(
        "Servers {} go on alone. All others, {}, are given up for lost: if they live, they will be a\n\
         group of their own until they meet these. Type 'yes' to do it: ",
        ids(&survivors),
        if lost.is_empty() { "if there are any".to_owned() } else { ids(&lost) }
    );
    let otherwise =
        "recover gives all other servers up for lost; nobody can be asked here, so give \
                     --yes if it is meant";
    if !args.yes && !confirmed(&question, otherwise)? {
        return Err(Failure::new("nothing was done"));
    }
    let servers = fleet.ask();
    let answers = |server: &&Server| survivors.contains(&server.id()) && server.answer.is_ok();
    let mut able: Vec<&Server> = servers.iter().filter(answers).collect();
    able.sort_by_key(|server| server.id() != own);
    let Some(server) = able.first() else {
        return Err(Failure::new(format!(
            "none of the servers {} answers; start them first, nothing was done",
            ids(&survivors)
        )));
    };
    let (member, limit) = (server.reached(), limit.max(place.limit()));
    let named = survivors.clone();
    match fleet.with(|client| async move { client.recover(member, named, limit).await }) {
        Ok(epoch) => {
            let done = styled("done:", GOOD);
            print(&format!(
                "{done} servers {} go on alone, with their keys (epoch {epoch}). A lost server joins \
                 when it comes back; remove\nfrom the list those that never will: 'stekctl remove'.\n",
                ids(&survivors)
            ))?;
            Ok(Outcome::Healthy)
        }
        Err(why) => Err(Failure::new(format!("server {} ({}): {why}", member.id, address(member)))),
    }
}
