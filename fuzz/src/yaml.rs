//! Both YAML files, and the addresses in them.

use std::collections::BTreeSet;

use stek_share::core::config::{
    check_membership, parse_conf, parse_list, Conf, List, Oneself, Paths, Problem, MAX_MEMBERS,
    MAX_PROBLEMS,
};
use stek_share::core::server_id::ServerId;

/// Characters that one line about a file may have; see `core/config/problem.rs`.
pub const MAX_LINE: usize = 2_200;

/// `server_conf.yaml`: what is usable has all that a server needs, within its bounds.
pub fn conf(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (conf, problems) = parse_conf(&text, "server_conf.yaml");
    hold_lines(&problems);
    let Some(conf) = conf else {
        assert!(problems.iter().any(Problem::is_error), "refused without a word");
        return;
    };
    settle(conf, &problems);
}

fn settle(mut conf: Conf, problems: &[Problem]) {
    if conf.is_auto() {
        find_itself(&mut conf);
    }
    let (Some(id), Some(address), Some(port)) = (conf.server_id, conf.address.clone(), conf.port)
    else {
        assert!(problems.iter().any(Problem::is_error), "a missing field is not told");
        return;
    };
    let list = format!("- server_id: {id}\n  address: \"{address}\"\n  port: {port}\n");
    let (list, complaints) = parse_list(&list, "list.yaml");
    let Some(list) = list else { panic!("{address} is good in one file only: {complaints:?}") };
    // An address that nobody can dial is an address all the same; the list, where others read it, tells.
    if list.members.is_empty() {
        assert!(complaints.iter().any(Problem::is_error), "{address} is left out without a word");
        assert!(!list.usable, "a list of nobody");
        return;
    }
    assert_eq!(list.members[0].address, address, "an address has one form");
    assert!(check_membership(&conf, &list).is_none());
    let paths = Paths {
        root_cert_file: "root".into(),
        server_cert_file: "cert".into(),
        server_key_file: "key".into(),
    };
    let wrong = problems.iter().any(Problem::is_error);
    let Some(settings) = conf.settle(list, paths) else {
        assert!(wrong || !complaints.is_empty(), "refused without a word");
        return;
    };
    assert!(!wrong, "taken in spite of an error");
    assert_eq!((settings.server_id, settings.address, settings.port), (id, address, port));
    assert!(settings.port > 0 && (2..=16).contains(&settings.ticket_keys));
    assert!((1..=64).contains(&settings.workers));
    let timers = settings.timers;
    assert!(!timers.heartbeat.is_zero() && timers.heartbeat < timers.election_lower);
    assert!(timers.election_lower <= timers.election_upper);
    assert!(!settings.key_update_interval.is_zero());
    assert!(settings.handover_timeout <= settings.key_update_interval);
    assert!(settings.max_key_age >= settings.key_update_interval);
}

/// What is `auto` is what the list says of the only server that this can be.
fn find_itself(conf: &mut Conf) {
    let id = conf.server_id.unwrap_or(ServerId(7));
    let list = format!("- server_id: {id}\n  address: ats.example\n  port: 8081\n");
    let (list, complaints) = parse_list(&list, "list.yaml");
    let list = list.unwrap_or_else(|| panic!("no list: {complaints:?}"));
    let own = Oneself { has_name: &|_| false, is_at: &|_| true };
    let problem = conf.find_itself(&list, &own);
    assert!(problem.is_none(), "it is there: {problem:?}");
}

/// `server_list_file`: a usable list could be any group's, and its entries are the same when they
/// are read again.
pub fn list(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (list, problems) = parse_list(&text, "server_list.yaml");
    hold_lines(&problems);
    match list {
        Some(list) if list.usable => hold_list(&list),
        _ => assert!(problems.iter().any(Problem::is_error), "refused without a word"),
    }
}

fn hold_list(list: &List) {
    let members = &list.members;
    assert!((1..=MAX_MEMBERS).contains(&members.len()));
    let ids: BTreeSet<_> = members.iter().map(|m| m.id).collect();
    assert_eq!(ids.len(), members.len(), "an id is there twice");
    assert!(members.iter().all(|m| m.port > 0 && m.id.0 <= 2_147_483_647));
    for member in members {
        let text = format!(
            "- server_id: {}\n  address: \"{}\"\n  port: {}\n",
            member.id, member.address, member.port
        );
        let (again, _) = parse_list(&text, "again.yaml");
        let again = again.filter(|list| list.usable).expect("it was good before");
        assert_eq!(again.members[0].address, member.address, "an address has one form");
    }
}

fn hold_lines(problems: &[Problem]) {
    assert!(problems.len() <= MAX_PROBLEMS);
    for problem in problems {
        let line = problem.to_string();
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        assert!(line.chars().count() <= MAX_LINE, "{} characters: {line}", line.chars().count());
    }
}
