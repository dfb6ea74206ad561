//! What a command on a fleet's directory did, and what is to be done on the servers next: as text, or as
//! JSON with the same words and commands.
//!
//! Invariants: each command can be given as it stands, by root, in the order in which they stand.

use std::path::Path;

use serde_json::json;
use stek_share::core::config::Member;
use stek_share::core::server_id::ServerId;

use crate::cli::Changing;
use crate::fleet::address;
use crate::fleet_dir::{folder, FleetDir, HOME};
use crate::json::SCHEMA;
use crate::output::{styled, GOOD};

/// Where the files are on a server that Debian's package installed.
const ETC: &str = "/etc/trafficserver";

/// Has a server read its files again, and says what came of it.
const RELOAD: &str = "stekctl reload";

/// The same for each server of the list.
const RELOAD_ALL: &str = "stekctl reload --all";

/// What was done, and what is to be done.
pub struct Done {
    /// Its word.
    pub command: &'static str,
    /// In one line.
    pub words: String,
    /// Servers that are new.
    pub new: Vec<ServerId>,
    /// Servers that left.
    pub removed: Vec<ServerId>,
    /// Servers with a new certificate.
    pub renewed: Vec<ServerId>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// What is to be done.
    pub steps: Vec<Step>,
}

/// One thing that the operator does next.
pub struct Step {
    /// On which machine; here if none.
    pub on: Option<String>,
    /// What, and how it shows that it is done.
    pub words: String,
    /// In this order; none where it is for the operator to say how.
    pub commands: Vec<String>,
}

impl Step {
    /// On the machine with the directory.
    pub fn here(words: impl Into<String>, commands: Vec<String>) -> Step {
        Step { on: None, words: words.into(), commands }
    }

    /// On a server.
    pub fn on(member: &Member, words: impl Into<String>, commands: &[&str]) -> Step {
        let commands = commands.iter().map(ToString::to_string).collect();
        Step { on: Some(member.address.clone()), words: words.into(), commands }
    }
}

/// What servers do with new certificates.
pub fn taken_over(on: &Member) -> Step {
    Step::on(
        on,
        "Have all servers take them over, without a restart. One that this does not reach does so by \
         itself within a minute, or at once by 'traffic_ctl plugin msg stek_share reload' there:",
        &[RELOAD_ALL],
    )
}

/// New servers start first, and wait.
pub fn arrivals(dir: &FleetDir, new: &[Member], same_place: bool) -> Vec<Step> {
    // A copy of the folder itself would land within one that is there from a try before.
    let copies = new.iter().flat_map(|member| {
        let from = quoted(&dir.path().join(folder(member.id)));
        let make = format!("ssh root@{} mkdir -p -m 700 {ETC}/{HOME}", member.address);
        [make, format!("scp -p {from}/* {}", remote(member))]
    });
    let mut steps = Vec::new();
    if same_place {
        let stop = ["systemctl stop trafficserver", "rm -rf /etc/trafficserver/stek_share"];
        steps.extend(
            new.iter().map(|member| {
                Step::on(member, "If the old server still runs there, end it:", &stop)
            }),
        );
    }
    steps.push(Step::here("Copy the files of each new server to it:", copies.collect()));
    steps.extend(new.iter().map(|member| {
        let commands = [
            "chown -R trafficserver: /etc/trafficserver/stek_share",
            "grep -q '^stek_share.so' /etc/trafficserver/plugin.config || cat \
             /etc/trafficserver/stek_share/plugin.config >>/etc/trafficserver/plugin.config",
            "grep -q 'core_limit INT 0' /etc/trafficserver/records.config || echo \
             'CONFIG proxy.config.core_limit INT 0' >>/etc/trafficserver/records.config",
            "stekctl check /etc/trafficserver/stek_share/server_conf.yaml",
            "systemctl restart trafficserver",
        ];
        Step::on(
            member,
            "Start it; until the group has the list it waits on a key of its own:",
            &commands,
        )
    }));
    steps
}

/// The others get the list, and one of them has the group agree on it.
pub fn agreement(dir: &FleetDir, present: &[Member], servers: usize) -> Vec<Step> {
    let mut steps = vec![hand_out(dir, present, &["server_list.yaml"])];
    if let Some(first) = present.first() {
        steps.push(Step::on(
            first,
            "Have the group agree on the new list; once, on one server:",
            &[RELOAD],
        ));
        let words = format!("It is done when this says '{servers} of {servers} servers answer':");
        steps.push(Step::on(first, words, &["stekctl status"]));
    }
    steps
}

/// What becomes of servers that left.
pub fn departures(gone: &[Member]) -> Vec<Step> {
    let commands = [
        "sed -i '/^[^#]*stek_share\\.so/d' /etc/trafficserver/plugin.config",
        "systemctl restart trafficserver",
        "rm -r /etc/trafficserver/stek_share",
    ];
    let words = "If it still runs, take the plugin off it; if it is in the wrong hands, 'stekctl \
                 revoke' on one of the others:";
    gone.iter().map(|member| Step::on(member, words, &commands)).collect()
}

/// What makes the keys useless that a server had which is gone.
pub fn wrong_hands(on: &Member) -> Step {
    Step::on(
        on,
        "If the old server is in the wrong hands, make its keys useless:",
        &["stekctl revoke"],
    )
}

/// Copies of some files for each of these servers.
pub fn hand_out(dir: &FleetDir, members: &[Member], files: &[&str]) -> Step {
    let copies = members.iter().map(|member| {
        let home = dir.path().join(folder(member.id));
        let from: Vec<String> = files.iter().map(|file| quoted(&home.join(file))).collect();
        format!("scp -p {} {}", from.join(" "), remote(member))
    });
    let words = format!("Copy {} to each server, one after another:", files.join(" and "));
    Step::here(words, copies.collect())
}

/// The plugin's directory on a server, as scp writes it.
fn remote(member: &Member) -> String {
    let host = if member.address.contains(':') {
        format!("[{}]", member.address)
    } else {
        member.address.clone()
    };
    format!("root@{host}:{ETC}/{HOME}/")
}

/// A path as a shell takes it for one word. What begins with a hyphen is no option.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let text = if text.starts_with('-') { format!("./{text}") } else { text };
    let is_plain = |c: char| c.is_alphanumeric() || "/-_.+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// A server's number and place.
pub fn named(member: &Member) -> String {
    format!("server {} ({})", member.id, address(member))
}

/// Those of several.
pub fn names(members: &[Member]) -> String {
    members.iter().map(named).collect::<Vec<_>>().join(", ")
}

/// So many servers, in words.
pub fn count(servers: usize) -> String {
    match servers {
        1 => "1 server".to_owned(),
        _ => format!("{servers} servers"),
    }
}

/// Their numbers.
pub fn ids(members: &[Member]) -> Vec<ServerId> {
    members.iter().map(|member| member.id).collect()
}

/// What is printed of it.
pub fn words(changing: &Changing, done: &Done) -> String {
    if changing.json {
        as_json(changing, done)
    } else {
        as_text(done)
    }
}

fn as_json(changing: &Changing, done: &Done) -> String {
    let numbers = |ids: &[ServerId]| ids.iter().map(|id| id.0).collect::<Vec<u32>>();
    let steps: Vec<_> = done
        .steps
        .iter()
        .map(|step| json!({"on": step.on, "words": step.words, "commands": step.commands}))
        .collect();
    let document = json!({
        "schema": SCHEMA,
        "command": done.command,
        "directory": changing.dir.display().to_string(),
        "words": done.words,
        "new": numbers(&done.new),
        "removed": numbers(&done.removed),
        "renewed": numbers(&done.renewed),
        "notes": done.notes,
        "steps": steps,
    });
    format!("{document}\n")
}

fn as_text(done: &Done) -> String {
    let mut text = format!("{} {}\n", styled("done:", GOOD), done.words);
    done.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
    text += "\nNothing has changed on the servers yet. As root:\n";
    for (number, step) in (1..).zip(&done.steps) {
        let on = step.on.as_ref().map_or(String::new(), |host| format!("On {host}. "));
        text += &format!("\n{number}. {on}{}\n", step.words);
        step.commands.iter().for_each(|command| text += &format!("     {command}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        for (path, word) in [
            ("fleet/server-4", "fleet/server-4"),
            ("/srv/my fleet", "'/srv/my fleet'"),
            ("it's", "'it'\\''s'"),
            ("$(reboot)", "'$(reboot)'"),
            ("-rf", "./-rf"),
            ("", "''"),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }
}
