//! What operators ask of a running server by messages.
//!
//! Decides nothing about keys: orders go to [`Node`]; what concerns files goes to
//! [`super::files`]. Invariants:
//! - `status` is answered at once, whatever else is under way or hangs.
//! - Orders are carried out one after another; a reload keeps none of them waiting.
//! - Whatever cannot be done now is refused in words; no queue is without a bound.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::files::{Files, Reloads};
use crate::core::health::{complaints, Severity};
use crate::core::rotation::AdminCommand;
use crate::core::server_status::{Role, ServerStatus, SessionStatus};
use crate::core::text::words;
use crate::log_sink::Log;
use crate::node::Node;
use crate::supervise::{fail_point, kept_alive};

/// Messages that may wait; an operator who sends more than these has a script that runs wild.
pub const MESSAGE_QUEUE: usize = 8;

/// Orders that may wait for the one that is carried out; each takes a handover.
pub const COMMAND_QUEUE: usize = 4;

words! {
    /// What an operator can ask for: the last word of `traffic_ctl plugin msg stek_share reload`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum TrafficCtlCommand {
        /// Read all files again and take over what changed.
        Reload = "reload",
        /// A new key now.
        Rotate = "rotate",
        /// A new key now, and no older one.
        Revoke = "revoke",
        /// Say how things are.
        Status = "status",
    }
}

/// What an operator, or the host on the operator's behalf, sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A word.
    Command(TrafficCtlCommand),
    /// The host has read its own configuration again.
    HostReloaded,
}

impl Message {
    /// How lines about it begin.
    pub fn word(self) -> &'static str {
        match self {
            Message::Command(command) => command.word(),
            Message::HostReloaded => TrafficCtlCommand::Reload.word(),
        }
    }
}

impl TrafficCtlCommand {
    /// The command that is exactly these bytes; one NUL may follow, which Traffic Server 9.2 sends
    /// along and 10 does not.
    pub fn parse(bytes: &[u8]) -> Option<TrafficCtlCommand> {
        let word = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        TrafficCtlCommand::ALL.into_iter().find(|command| command.word().as_bytes() == word)
    }
}

/// The line about a message that is none of the verbs: its beginning and its whole length.
pub fn unknown(bytes: &[u8], size: usize) -> String {
    let known: Vec<&str> =
        TrafficCtlCommand::ALL.into_iter().map(TrafficCtlCommand::word).collect();
    let known = known.join(", ");
    let shown = String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes));
    match (size, size > bytes.len()) {
        (0, _) => format!("an empty message means nothing here; known are: {known}"),
        (_, true) => {
            format!(
                "a message of {size} bytes, {shown:?}..., means nothing here; known are: {known}"
            )
        }
        (_, false) => format!("the message {shown:?} means nothing here; known are: {known}"),
    }
}

/// Answers messages to a node and has `files` look after its files, until nobody can send messages any more.
pub async fn run(node: Arc<Node>, log: Log, files: Files, messages: mpsc::Receiver<Message>) {
    let (reloads, asked) = Reloads::new(log.clone());
    let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
    let remote = reloads.answered();
    node.set_reloader(move |origin| remote.ask(origin));
    let desk = Desk { node: node.clone(), log: log.clone(), reloads, commands };
    tokio::join!(answer(desk, messages), carry_out(node, log, queue), files.run(asked));
}

/// Where messages come in and are answered or passed on.
struct Desk {
    node: Arc<Node>,
    log: Log,
    reloads: Reloads,
    commands: mpsc::Sender<AdminCommand>,
}

async fn answer(desk: Desk, messages: mpsc::Receiver<Message>) {
    let log = desk.log.clone();
    kept_alive(&log, "answering operators", (desk, messages), |(desk, messages)| {
        Box::pin(async move {
            while let Some(command) = messages.recv().await {
                desk.answer(command);
            }
        })
    })
    .await;
}

impl Desk {
    fn answer(&self, message: Message) {
        fail_point("operator");
        let command = match message {
            Message::Command(command) => command,
            Message::HostReloaded => {
                drop(self.reloads.ask("traffic_ctl config reload on this server".to_owned()));
                return;
            }
        };
        match command {
            TrafficCtlCommand::Reload => {
                // Its lines say what came of it.
                drop(self.reloads.ask("traffic_ctl on this server".to_owned()));
            }
            TrafficCtlCommand::Rotate => self.pass_on(AdminCommand::Rotate),
            TrafficCtlCommand::Revoke => self.pass_on(AdminCommand::Revoke),
            TrafficCtlCommand::Status => {
                for line in status(&self.node.status()) {
                    self.log.note(line);
                }
            }
        }
    }

    fn pass_on(&self, command: AdminCommand) {
        let word = command.word();
        match self.commands.try_send(command) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.log.warning(format!(
                "{word}: {COMMAND_QUEUE} orders wait to be carried out already; this one is \
                 dropped, send it again later"
            )),
            Err(TrySendError::Closed(_)) => {
                self.log.error(format!("{word}: not done: this server is about to end"));
            }
        }
    }
}

async fn carry_out(node: Arc<Node>, log: Log, queue: mpsc::Receiver<AdminCommand>) {
    let all = (node, log.clone(), queue);
    kept_alive(&log, "carrying out orders", all, |(node, log, queue)| {
        Box::pin(async move {
            while let Some(command) = queue.recv().await {
                give(node, log, command).await;
            }
        })
    })
    .await;
}

/// Has the group make a new key.
async fn give(node: &Node, log: &Log, command: AdminCommand) {
    let word = command.word();
    match (node.admin_command(command).await, command) {
        (Ok(generation), AdminCommand::Rotate) => log.note(format!(
            "{word}: generation {generation} is in use; the oldest tickets lost their key earlier \
             than by schedule, and the next scheduled rotation is a whole key_update_interval away"
        )),
        (Ok(generation), AdminCommand::Revoke) => log.note(format!(
            "{word}: generation {generation} is in use and every older key is dropped: no older \
             ticket resumes any more, each of those clients has one full handshake"
        )),
        (Err(why), _) => log.error(format!("{word}: not done: {why}")),
    }
}

/// How the server and the group are, in three lines: the group, the key, and what is wrong.
fn status(status: &ServerStatus) -> [String; 3] {
    let (group, list) = (&status.group, &status.list);
    let role = match group.role {
        Role::Joining => "is joining",
        Role::Recovering => "is recovering",
        Role::Follower => "follows",
        Role::Candidate => "campaigns",
        Role::Leader => "leads",
    };
    let leader = match group.leader {
        Some(id) => format!("leader is server {id}"),
        None => "no leader is known".to_owned(),
    };
    let heard = 1 + list.others.iter().filter(|other| other.reachable).count();
    let digest = list.digest.as_deref().unwrap_or("none");
    let first = format!(
        "status: server {} {role}, term {}, {leader}; {heard} of {} members heard, server list \
         version {} ({digest})",
        status.id,
        group.term,
        list.others.len() + 1,
        list.version
    );
    [first, key_line(status), outcome(status)]
}

fn key_line(status: &ServerStatus) -> String {
    let keys = &status.keys;
    let Some(current) = keys.current else {
        return "status: the group has no key yet; this server uses its own".to_owned();
    };
    let handover = match keys.staged {
        Some(staged) => format!("handover to generation {} under way", staged.generation),
        None => format!("next rotation in {} s", keys.next_ms / 1000),
    };
    let scope = status.host.ticket_scope;
    let scope = scope.map_or_else(String::new, |scope| format!("; ticket_scope {}", scope.word()));
    let sessions = status.sessions.map_or_else(String::new, sessions);
    format!(
        "status: current {} (generation {}) is {} s old, {handover}; newest installed generation \
         {}{scope}{sessions}",
        current.fingerprint,
        current.generation,
        keys.age_ms / 1000,
        keys.installed
    )
}

fn sessions(counts: SessionStatus) -> String {
    let SessionStatus { sent, received, dropped, inserted, refused } = counts;
    format!(
        "; sessions: {sent} sent, {received} received, {dropped} dropped, {inserted} inserted, \
         {refused} refused"
    )
}

fn outcome(status: &ServerStatus) -> String {
    let complaints = complaints(status);
    let Some(worst) = complaints.first() else { return "status: all is well".to_owned() };
    let word = match worst.severity {
        Severity::Degraded => "not all is well",
        Severity::Broken => "broken",
    };
    let words: Vec<String> = complaints.into_iter().map(|complaint| complaint.words).collect();
    format!("status: {word}: {}", words.join("; "))
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_is_exactly_its_word_with_or_without_a_nul() {
        for command in TrafficCtlCommand::ALL {
            let word = command.word().as_bytes();
            assert_eq!(TrafficCtlCommand::parse(word), Some(command));
            assert_eq!(TrafficCtlCommand::parse(&[word, b"\0"].concat()), Some(command));
            for bytes in
                [&[word, b"\0\0"].concat(), &[word, b"\n"].concat(), &[b" ", word].concat()]
            {
                assert_eq!(TrafficCtlCommand::parse(bytes), None, "{bytes:?}");
            }
            assert_eq!(TrafficCtlCommand::parse(&word[1..]), None);
            assert_eq!(TrafficCtlCommand::parse(&word.to_ascii_uppercase()), None);
        }
        assert_eq!(TrafficCtlCommand::parse(b""), None);
        assert_eq!(TrafficCtlCommand::parse(b"\0"), None);
        assert_eq!(TrafficCtlCommand::parse(&[0xff; 64]), None);
    }

    #[test]
    fn an_unknown_message_is_told_with_the_known_ones() {
        let known = "means nothing here; known are: reload, rotate, revoke, status";
        assert_eq!(unknown(b"relaod\0", 7), format!("the message \"relaod\" {known}"));
        assert_eq!(unknown(b"", 0), format!("an empty message {known}"));
        assert_eq!(unknown(b"xx", 900), format!("a message of 900 bytes, \"xx\"..., {known}"));
    }

    #[test]
    fn a_status_is_three_lines_the_last_of_which_checkers() {
        let mut server_ = crate::core::server_status::tests::sample();
        server_.host.hints.clear();
        server_.host.ticket_scope = Some(crate::core::ticket_scope::TicketScope::Site);
        server_.refused_keys.clear();
        server_.certificate.expires_s = Some(365 * 86_400);
        let fingerprint = server_.keys.current.unwrap().fingerprint;
        assert_eq!(
            status(&server_),
            [
                "status: server 3 follows, term 4, leader is server 1; 2 of 2 members heard, \
                 server list version 1 (01234567)"
                    .to_owned(),
                format!(
                    "status: current {fingerprint} (generation 9) is 1 s old, next rotation in \
                     2 s; newest installed generation 9; ticket_scope site; sessions: 5 sent, 6 \
                     received, 7 dropped, 8 inserted, 9 refused"
                ),
                "status: all is well".to_owned(),
            ]
        );
        server_.group.leader = None;
        server_.certificate.expires_s = Some(3 * 86_400);
        let expected = "status: not all is well: it knows no leader at present; its certificate \
                        expires in 3 days; renew it";
        assert_eq!(status(&server_)[2], expected);
        server_.group.role = Role::Joining;
        server_.keys.current = None;
        let [first, second, third] = status(&server_);
        assert!(first.contains("server 3 is joining, term 4, no leader is known"), "{first}");
        assert_eq!(second, "status: the group has no key yet; this server uses its own");
        assert!(third.starts_with("status: broken: it is joining"), "{third}");
    }
}
