//! `reload`: has servers read their files again.
//!
//! Invariants: one server after another, each asked once, since an order without an answer may have been
//! carried out.

use std::time::Duration;

use stek_share::client::reload_limit;
use stek_share::core::config::Member;

use crate::cli::{Place, ReloadArgs};
use crate::exit_code::{Ended, Outcome};
use crate::fleet::{address, Fleet};
use crate::locate;
use crate::output::{print, style_of, styled};

/// This server, or all of the list.
pub fn run(args: &ReloadArgs, place: &Place) -> Ended {
    let loaded = locate::load(&locate::source(place)?)?;
    let fleet = Fleet::new(&loaded, place.limit())?;
    let limit = place.timeout.unwrap_or_else(reload_limit);
    // This one first, whose file the operator has before him: what is wrong with it is wrong once.
    let mut worst = match fleet.ask_own() {
        Ok((member, _)) => ask(&fleet, &member, limit)?,
        Err((member, why)) => tell(&member, Err(why.to_string()))?,
    };
    for member in fleet.others().filter(|_| args.all) {
        worst = worst.max(ask(&fleet, member, limit)?);
    }
    Ok(worst)
}

fn ask(fleet: &Fleet, member: &Member, limit: Duration) -> Ended {
    let asked = fleet.with(|client| async move { client.reload(member, limit).await });
    tell(member, asked.map_err(|why| why.to_string()))
}

fn tell(member: &Member, came: Result<String, String>) -> Ended {
    let (outcome, word, words) = match came {
        Ok(words) => (Outcome::Healthy, "done", words),
        Err(why) => (Outcome::Broken, "failed", why),
    };
    let word = styled(word, style_of(outcome));
    print(&format!("{word}: server {} ({}): {words}\n", member.id, address(member)))?;
    Ok(outcome)
}
