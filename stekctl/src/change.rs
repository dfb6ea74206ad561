//! `add`, `remove`, `replace` and `renew`: what a later day makes of the directory that `init` made.
//!
//! Files are written here, and nothing is done to a server: what has to be done there is told, command by
//! command, by [`crate::next_steps`]. Invariants: a change that would leave the group without a majority is refused before anything
//! is written; a number that a server had is given to no other one, since that server's certificate
//! still names it; certificates' keys are always new.

use std::collections::BTreeSet;

use stek_share::core::config::Member;
use stek_share::core::quorum::majority;
use stek_share::core::server_id::ServerId;
use stek_share::core::server_list::voters;

use crate::absence::absences;
use crate::cli::{AddArgs, Changing, Place, RemoveArgs, RenewArgs, ReplaceArgs};
use crate::exit_code::{Ended, Failure, Outcome};
use crate::fleet::{address, Fleet};
use crate::fleet_dir::{agreeable, common_name, folder, list, FleetChange, FleetDir};
use crate::init;
use crate::journal;
use crate::next_steps::{
    agreement, arrivals, count, departures, hand_out, ids, named, names, quoted, taken_over, words,
    wrong_hands, Done, Step,
};
use crate::output::print;
use crate::pki::{self, Identity};

/// New servers.
pub fn add(args: &AddArgs, place: &Place) -> Ended {
    let AddArgs { addresses, non_voter, port, days, .. } = args;
    let command = format!("add {addresses:?} {non_voter} {port} {days}");
    carry_out(&args.changing, &command, |dir| added(args, place, dir))
}

fn added(args: &AddArgs, place: &Place, dir: &FleetDir) -> Result<(FleetChange, Done), Failure> {
    refuse_half_authority(dir)?;
    let mut members = dir.members.clone();
    let mut new = Vec::new();
    for (id, given) in (dir.free_id().0..).zip(&args.addresses) {
        let (member, _) = init::place(ServerId(id), given, args.port)?;
        refuse_taken_place(given, &member, &members)?;
        let member = Member { voter: !args.non_voter, ..member };
        new.push(member.clone());
        members.push(member);
    }
    let list = agreeable(&members)?;
    let mut notes = allowed(dir, list.members(), args.offline, place)?;
    let mut change = FleetChange::default();
    come(dir, &mut change, &new, &members, args.days, &mut notes)?;
    tell_all(dir, &mut change, &members);
    let names: Vec<String> = new.iter().map(named).collect();
    let mut steps = arrivals(dir, &new, false);
    steps.extend(agreement(dir, &dir.members, members.len()));
    Ok((
        change,
        Done {
            command: "add",
            words: format!("{} in the list of now {}", names.join(", "), count(members.len())),
            new: ids(&new),
            removed: Vec::new(),
            renewed: Vec::new(),
            notes,
            steps,
        },
    ))
}

/// Fewer servers.
pub fn remove(args: &RemoveArgs, place: &Place) -> Ended {
    let command = format!("remove {:?}", args.ids);
    carry_out(&args.changing, &command, |dir| removed(args, place, dir))
}

fn removed(
    args: &RemoveArgs,
    place: &Place,
    dir: &FleetDir,
) -> Result<(FleetChange, Done), Failure> {
    refuse_half_authority(dir)?;
    let leaving: BTreeSet<ServerId> = args.ids.iter().copied().map(ServerId).collect();
    let gone = leaving.iter().map(|id| find(dir, *id)).collect::<Result<Vec<Member>, _>>()?;
    let members = without(dir, &leaving);
    if members.is_empty() {
        return Err(Failure::new(format!(
            "{}: no server would be left; uninstall the plugin on each server instead",
            dir.path().display()
        )));
    }
    let list = agreeable(&members)?;
    let notes = allowed(dir, list.members(), args.offline, place)?;
    let mut change = FleetChange { leaving, ..FleetChange::default() };
    tell_all(dir, &mut change, &members);
    let names: Vec<String> = gone.iter().map(named).collect();
    let mut steps = vec![Step::here(
        format!("Take clients off {}: no new key is given there from step 3 on.", names.join(", ")),
        Vec::new(),
    )];
    steps.extend(agreement(dir, &members, members.len()));
    steps.extend(departures(&gone));
    Ok((
        change,
        Done {
            command: "remove",
            words: format!("{} left the list of now {}", names.join(", "), count(members.len())),
            new: Vec::new(),
            removed: ids(&gone),
            renewed: Vec::new(),
            notes,
            steps,
        },
    ))
}

/// One server in place of another.
pub fn replace(args: &ReplaceArgs, place: &Place) -> Ended {
    let ReplaceArgs { id, address, port, days, .. } = args;
    let command = format!("replace {id} {address:?} {port} {days}");
    carry_out(&args.changing, &command, |dir| replaced(args, place, dir))
}

fn replaced(
    args: &ReplaceArgs,
    place: &Place,
    dir: &FleetDir,
) -> Result<(FleetChange, Done), Failure> {
    refuse_half_authority(dir)?;
    let gone = find(dir, ServerId(args.id))?;
    let leaving = BTreeSet::from([gone.id]);
    let mut members = without(dir, &leaving);
    let new = match &args.address {
        Some(given) => {
            let (member, _) = init::place(dir.free_id(), given, args.port)?;
            refuse_taken_place(given, &member, &members)?;
            member
        }
        None => init::place(dir.free_id(), &address(&gone), args.port)?.0,
    };
    let new = Member { voter: gone.voter, ..new };
    let same_place = (&new.address, new.port) == (&gone.address, gone.port);
    members.push(new.clone());
    let list = agreeable(&members)?;
    let mut notes = allowed(dir, list.members(), args.offline, place)?;
    let mut change = FleetChange::default();
    let staying = without(dir, &leaving);
    come(dir, &mut change, std::slice::from_ref(&new), &members, args.days, &mut notes)?;
    change.leaving = leaving;
    tell_all(dir, &mut change, &members);
    let mut steps = arrivals(dir, std::slice::from_ref(&new), same_place);
    steps.extend(agreement(dir, &staying, members.len()));
    if same_place {
        steps.extend(staying.first().map(wrong_hands));
    } else {
        steps.extend(departures(std::slice::from_ref(&gone)));
    }
    Ok((
        change,
        Done {
            command: "replace",
            words: format!("{} takes the place of {}", named(&new), named(&gone)),
            new: vec![new.id],
            removed: vec![gone.id],
            renewed: Vec::new(),
            notes,
            steps,
        },
    ))
}

/// New certificates, or the next step to a new authority.
pub fn renew(args: &RenewArgs) -> Ended {
    let RenewArgs { ids, authority, days, .. } = args;
    let command = format!("renew {ids:?} {authority} {days}");
    carry_out(&args.changing, &command, |dir| renewed(args, dir))
}

fn renewed(args: &RenewArgs, dir: &FleetDir) -> Result<(FleetChange, Done), Failure> {
    if args.authority {
        return renew_authority(dir, args);
    }
    let wanted: BTreeSet<ServerId> = match args.ids.as_slice() {
        [] => dir.members.iter().map(|member| member.id).collect(),
        ids => ids.iter().copied().map(ServerId).collect(),
    };
    let members = wanted.iter().map(|id| find(dir, *id)).collect::<Result<Vec<_>, _>>()?;
    let signer = signer(dir)?;
    let mut change = FleetChange::default();
    renew_leaves(&mut change, &members, &signer, args.days)?;
    Ok((
        change,
        Done {
            command: "renew",
            words: format!("a new certificate and key for {}", names(&members)),
            new: Vec::new(),
            removed: Vec::new(),
            renewed: ids(&members),
            notes: Vec::new(),
            steps: [hand_out(dir, &members, &["server.crt", "server.key"])]
                .into_iter()
                .chain(dir.members.first().map(taken_over))
                .collect(),
        },
    ))
}

/// Goes one step from one authority to the next: both are trusted, then certificates come from the new
/// one, then it alone is trusted.
fn renew_authority(dir: &FleetDir, args: &RenewArgs) -> Result<(FleetChange, Done), Failure> {
    let broken = |error| Failure::new(format!("OpenSSL made no certificate: {error}"));
    let pem = |authority: &Identity| authority.certificate_pem().map_err(broken);
    if !args.ids.is_empty() {
        return Err(Failure::new(
            "--authority is for all servers at once; leave out the server numbers",
        ));
    }
    let mut change = FleetChange::default();
    let members = &dir.members;
    let trust = |change: &mut FleetChange, roots: &[u8]| {
        members.iter().for_each(|member| change.file(member.id, "ca.crt", roots));
    };
    let again = format!("stekctl renew {} --authority", quoted(dir.path()));
    let (words, mut steps, mut renewed) = match &dir.next_authority()? {
        None => {
            let next = pki::authority(args.days).map_err(broken)?;
            change.identity("ca", ["next.crt", "next.key"], &next)?;
            trust(&mut change, &[pem(&dir.authority()?)?, pem(&next)?].concat());
            (
                "step 1 of 3: a new authority, which all trust besides the old one",
                vec![hand_out(dir, members, &["ca.crt"])],
                Vec::new(),
            )
        }
        Some(next) if !signed_by(dir, next)? => {
            renew_leaves(&mut change, members, next, args.days)?;
            let steps = vec![hand_out(dir, members, &["server.crt", "server.key"])];
            ("step 2 of 3: certificates of the new authority", steps, ids(members))
        }
        Some(next) => {
            change.identity("ca", ["ca.crt", "ca.key"], next)?;
            trust(&mut change, &pem(next)?);
            change.dropped = ["next.key", "next.crt"].map(|name| ("ca".to_owned(), name)).to_vec();
            (
                "step 3 of 3: the new authority alone is trusted",
                vec![hand_out(dir, members, &["ca.crt"])],
                Vec::new(),
            )
        }
    };
    let last = !change.dropped.is_empty();
    steps.extend(dir.members.first().map(taken_over));
    if !last {
        steps.push(Step::here("When it says 'done' of every server, the next step:", vec![again]));
    }
    renewed.sort_unstable();
    Ok((
        change,
        Done {
            command: "renew",
            words: words.to_owned(),
            new: Vec::new(),
            removed: Vec::new(),
            renewed,
            notes: Vec::new(),
            steps,
        },
    ))
}

/// Reads the directory, changes it as `make` says, and prints what is to be done next. A command that was
/// killed on the way goes on, and says what it had to say.
fn carry_out(
    changing: &Changing,
    command: &str,
    make: impl FnOnce(&FleetDir) -> Result<(FleetChange, Done), Failure>,
) -> Ended {
    let command = format!("{command} {}", changing.json);
    if let Some(answer) = journal::resume(&changing.dir, &command)? {
        print(&answer)?;
        journal::clear(&changing.dir)?;
        return Ok(Outcome::Healthy);
    }
    let dir = FleetDir::read(&changing.dir)?;
    let (change, done) = make(&dir)?;
    let answer = words(changing, &done);
    dir.change(&change, &command, &answer)?;
    print(&answer)?;
    journal::clear(&changing.dir)?;
    Ok(Outcome::Healthy)
}

/// No change of authority may be under way.
fn refuse_half_authority(dir: &FleetDir) -> Result<(), Failure> {
    if !dir.changes_authority() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{}: a change of the authority is under way (ca/next.crt); finish it first with stekctl renew {} \
         --authority",
        dir.path().display(),
        quoted(dir.path())
    )))
}

fn find(dir: &FleetDir, id: ServerId) -> Result<Member, Failure> {
    dir.members.iter().find(|member| member.id == id).cloned().ok_or_else(|| {
        let known: Vec<String> = dir.members.iter().map(|member| member.id.to_string()).collect();
        Failure::new(format!(
            "{}: has no server {id}; give one of {}",
            dir.path().display(),
            known.join(", ")
        ))
    })
}

fn without(dir: &FleetDir, leaving: &BTreeSet<ServerId>) -> Vec<Member> {
    dir.members.iter().filter(|member| !leaving.contains(&member.id)).cloned().collect()
}

fn refuse_taken_place(given: &str, new: &Member, members: &[Member]) -> Result<(), Failure> {
    let is_there = |member: &&Member| (&member.address, member.port) == (&new.address, new.port);
    match members.iter().find(is_there) {
        None => Ok(()),
        Some(member) => Err(Failure::new(format!(
            "{given:?}: is where server {} is; give another address or port, or use 'stekctl \
             replace DIR {}' for a new server in its place",
            member.id, member.id
        ))),
    }
}

/// Of so many voters one may be away.
const LEAST_TO_SURVIVE: usize = 3;

/// Whether the group can agree on this list now, and lives with it. What is worth knowing, in words.
fn allowed(
    dir: &FleetDir,
    new: &[Member],
    offline: bool,
    place: &Place,
) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    notes.extend(init::loopback(new));
    let voting = voters(new).len();
    if voting < LEAST_TO_SURVIVE {
        notes.push(format!(
            "{} that vote make no new key once one of them is away; three are the least that survive a \
             death",
            count(voting)
        ));
    }
    if offline {
        notes.push(
            "no server was asked whether a majority is left: see 'stekctl status'".to_owned(),
        );
        return Ok(notes);
    }
    let Some(first) = dir.members.first() else { return Ok(notes) };
    let fleet = Fleet::new(&dir.load(first.id)?, place.limit())?.of_other_machines();
    let servers = fleet.ask();
    let silent = "; give --offline to go on without asking";
    let up: BTreeSet<ServerId> =
        servers.iter().filter(|server| server.status().is_some()).map(|s| s.id()).collect();
    if up.is_empty() {
        let lines = absences(&servers).into_iter();
        let last = format!(
            "no server of {} answers here, so nobody can tell whether a majority is left; run this \
             where their ports can be reached{silent}",
            dir.path().display()
        );
        return Err(Failure(lines.chain([last]).collect()));
    }
    let own = agreeable(&dir.members)?.digest().to_string();
    let agreed = servers.iter().filter_map(|server| server.status());
    let agreed = agreed.filter(|status| status.group.quorum);
    match agreed.max_by_key(|status| status.list.version) {
        Some(status) if status.list.digest.as_ref().is_some_and(|digest| *digest != own) => {
            return Err(Failure::new(format!(
                "{}: its server list is not the one that the group has agreed on (version {} there); \
                 first finish the steps of the last change, or put the group's list back{silent}",
                dir.path().display(),
                status.list.version
            )));
        }
        _ => {}
    }
    refusal(&voters(&dir.members), &voters(new), &up)
        .map_or(Ok(()), |why| Err(Failure::new(why)))?;
    let [old, new] = [&dir.members[..], new]
        .map(|members| members.iter().map(|member| member.id).collect::<BTreeSet<ServerId>>());
    let away: Vec<String> =
        old.intersection(&new).filter(|id| !up.contains(id)).map(ToString::to_string).collect();
    if !away.is_empty() {
        notes.push(format!(
            "server {} does not answer now; it needs the new list before it starts again",
            away.join(", ")
        ));
    }
    Ok(notes)
}

/// Why the group cannot go from the voters of one list to those of another while these servers answer: it
/// takes a majority of both, and those that stay must not depend on servers that are only to come.
fn refusal(
    old: &BTreeSet<ServerId>,
    new: &BTreeSet<ServerId>,
    up: &BTreeSet<ServerId>,
) -> Option<String> {
    let voters = old.intersection(up).count();
    if voters < majority(old.len()) {
        return Some(format!(
            "only {voters} of {} voters answer, and no list can be agreed on by fewer than {}; \
             bring servers back first",
            old.len(),
            majority(old.len())
        ));
    }
    let staying = new.intersection(old).filter(|id| up.contains(id)).count();
    let coming = new.difference(old).count();
    let leaves = old.difference(new).next().is_some();
    let counted = if leaves { staying } else { staying + coming };
    if counted < majority(new.len()) {
        let which: Vec<String> =
            new.intersection(old).filter(|id| !up.contains(id)).map(ToString::to_string).collect();
        let remedy = match which.as_slice() {
            [] => "add the new server first, and remove the old one when it has joined".to_owned(),
            which => format!("bring back or remove server {} first", which.join(", ")),
        };
        return Some(format!(
            "of the {} that would vote {staying} of the present voters answer, fewer than \
             the {} that a majority takes, so that no new key could be made; {remedy}",
            count(new.len()),
            majority(new.len())
        ));
    }
    None
}

/// Adds the files of new servers: the configuration is that of a present one.
fn come(
    dir: &FleetDir,
    change: &mut FleetChange,
    new: &[Member],
    members: &[Member],
    days: u32,
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    let authority = dir.authority()?;
    refuse_if_it_outlives(&authority, days)?;
    let Some(model) = dir.members.first() else { return Ok(()) };
    let text = dir.text(model.id, "server_conf.yaml")?;
    if text.lines().any(|line| line.starts_with("bind_address:")) {
        notes.push(format!(
            "bind_address of {} was not taken over: each server has its own",
            folder(model.id)
        ));
    }
    for member in new {
        let conf = conf_for(&text, model, member);
        init::home(change, member, members, &authority, days, &conf)?;
    }
    Ok(())
}

/// A configuration of one server as another one has it.
fn conf_for(text: &str, model: &Member, member: &Member) -> String {
    let own = |line: &str, name: &str, value: String| {
        let given = line.strip_prefix(name)?.strip_prefix(':')?;
        // What each server finds out by itself stays so.
        Some(if given.trim().starts_with("auto") {
            format!("{line}\n")
        } else {
            format!("{name}: {value}\n")
        })
    };
    let [before, now] = [model, member].map(|member| format!("on server {}.", member.id));
    let lines = text.lines().filter(|line| !line.starts_with("bind_address:"));
    let lines = lines.map(|line| {
        own(line, "server_id", member.id.to_string())
            .or_else(|| own(line, "address", format!("\"{}\"", member.address)))
            .or_else(|| own(line, "port", member.port.to_string()))
            .unwrap_or_else(|| {
                let is_comment = line.starts_with('#');
                let line = if is_comment { line.replace(&before, &now) } else { line.to_owned() };
                format!("{line}\n")
            })
    });
    lines.collect()
}

/// Gives the new list to each server that stays.
fn tell_all(dir: &FleetDir, change: &mut FleetChange, members: &[Member]) {
    let text = list(members);
    let present: BTreeSet<ServerId> = dir.members.iter().map(|member| member.id).collect();
    for member in members.iter().filter(|member| present.contains(&member.id)) {
        change.file(member.id, "server_list.yaml", text.as_bytes());
    }
}

fn renew_leaves(
    change: &mut FleetChange,
    members: &[Member],
    signer: &Identity,
    days: u32,
) -> Result<(), Failure> {
    refuse_if_it_outlives(signer, days)?;
    for member in members {
        let name = common_name(member.id);
        let subject = pki::subject(&name);
        if let Some(other) = member.subject.as_deref().filter(|given| *given != subject) {
            return Err(Failure::new(format!(
                "server_list.yaml: server_id {}: cert_verify_str: {other:?} is not what stekctl \
                 issues; renew this certificate where it came from",
                member.id
            )));
        }
        let leaf = pki::leaf(signer, &name, &member.address, days)
            .map_err(|error| Failure::new(format!("OpenSSL made no certificate: {error}")))?;
        change.leaf(member.id, &leaf)?;
    }
    Ok(())
}

fn refuse_if_it_outlives(authority: &Identity, days: u32) -> Result<(), Failure> {
    authority.ends_within(days).map_or(Ok(()), |end| {
        Err(Failure::new(format!(
            "ca/ca.crt: the authority ends at {end}, sooner than certificates of --days {days} \
             would; give fewer days, or make a new authority: stekctl renew DIR --authority"
        )))
    })
}

/// Who signs certificates now: the next authority from its second step on.
fn signer(dir: &FleetDir) -> Result<Identity, Failure> {
    match dir.next_authority()? {
        Some(next) if signed_by(dir, &next)? => Ok(next),
        _ => dir.authority(),
    }
}

fn signed_by(dir: &FleetDir, authority: &Identity) -> Result<bool, Failure> {
    for member in &dir.members {
        if !authority.signed(dir.text(member.id, "server.crt")?.as_bytes()) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u32]) -> BTreeSet<ServerId> {
        ids.iter().copied().map(ServerId).collect()
    }

    #[test]
    fn what_would_leave_no_majority_is_refused() {
        // Old list, new list, who answers, and a part of the refusal.
        type Ids = &'static [u32];
        let cases: [(Ids, Ids, Ids, Option<&str>); 13] = [
            (&[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3], None),
            (&[1, 2, 3], &[1, 2, 3, 4, 5], &[1, 2], None),
            (&[1], &[1, 2, 3], &[1], None),
            (&[1, 2, 3], &[1, 2, 3, 4], &[1], Some("only 1 of 3 voters answer")),
            (&[1, 2, 3], &[1, 2], &[1, 2], None),
            (&[1, 2, 3], &[1, 2], &[1, 3], Some("bring back or remove server 2 first")),
            (&[1, 2, 3, 4, 5], &[1, 2, 3, 4], &[1, 2, 5], Some("remove server 3, 4 first")),
            (&[1, 2, 3, 4, 5], &[1, 2, 3], &[1, 2, 3], None),
            (&[1, 2, 3], &[1, 3, 4], &[1, 3], None),
            (&[1, 2, 3], &[1, 3, 4], &[1, 2], Some("remove server 3 first")),
            (&[1, 2], &[1, 3], &[1, 2], Some("add the new server first")),
            (&[1, 2], &[1, 3], &[1], Some("only 1 of 2 voters answer")),
            (&[1], &[2], &[1], Some("add the new server first")),
        ];
        for (old, new, up, wanted) in cases {
            let found = refusal(&set(old), &set(new), &set(up));
            match wanted {
                None => assert_eq!(found, None, "{old:?} {new:?} {up:?}"),
                Some(part) => assert!(
                    found.as_ref().is_some_and(|why| why.contains(part)),
                    "{old:?} {new:?} {up:?}: {found:?}"
                ),
            }
        }
    }

    #[test]
    fn a_new_servers_configuration_is_that_of_the_others() {
        let at = |id, address: &str, port| Member {
            id: ServerId(id),
            address: address.to_owned(),
            port,
            subject: None,
            voter: true,
        };
        let (model, new) = (at(1, "10.0.0.1", 10001), at(4, "::1", 7));
        let text = "# stek_share on server 1. All\nserver_id: 1\naddress: \"10.0.0.1\"\n\
                    bind_address: 0.0.0.0\nport: 10001\nticket_keys: 3\n";
        let wanted = "# stek_share on server 4. All\nserver_id: 4\naddress: \"::1\"\nport: 7\n\
                      ticket_keys: 3\n";
        assert_eq!(conf_for(text, &model, &new), wanted);
        let auto = "server_id: auto\naddress: auto # here\nport: auto\n";
        assert_eq!(conf_for(auto, &model, &new), auto);
    }
}
