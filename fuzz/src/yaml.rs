//! Both YAML files, and the addresses in them.

use std::collections::BTreeSet;

use stek_share::core::config::{
    check_membership, parse_conf, parse_list, Conf, List, Paths, Problem, MAX_MEMBERS, MAX_PROBLEMS,
};

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

fn settle(conf: Conf, problems: &[Problem]) {
    let (Some(id), Some(address), Some(port)) = (conf.server_id, conf.address.clone(), conf.port)
    else {
        assert!(problems.iter().any(Problem::is_error), "a missing field is not told");
        return;
    };
    let list = format!("- server_id: {id}\n  address: \"{address}\"\n  port: {port}\n");
    let (list, complaints) = parse_list(&list, "list.yaml");
    let Some(list) = list else { panic!("{address} is good in one file only: {complaints:?}") };
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
    assert!(settings.port > 0 && (2..=16).contains(&settings.ticket_keys));
    assert!((1..=64).contains(&settings.workers));
    let timers = settings.timers;
    assert!(!timers.heartbeat.is_zero() && timers.heartbeat < timers.election_lower);
    assert!(timers.election_lower <= timers.election_upper);
    assert!(!settings.key_update_interval.is_zero());
    assert!(settings.handover_timeout <= settings.key_update_interval);
    assert!(settings.max_key_age >= settings.key_update_interval);
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
