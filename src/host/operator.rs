//! What operators ask of a running box by messages, and what the box does by itself about files
//! that change: it takes over new certificates and warns before the present one expires.
//!
//! Decides nothing about keys: orders go to [`Node`]. What must hold:
//! - One thing at a time: a second message waits for the first, and so does a look at the files,
//!   so that no two hands change settings or certificates at once.
//! - A configuration or certificate that cannot be used changes nothing.
//! - Files are read on threads of their own, never on a worker that the group's timers need.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, Mutex};
use tokio::task::{spawn_blocking, JoinError};
use tokio::time::{sleep_until, Instant};

use crate::core::box_status::{BoxStatus, Role};
use crate::core::config::{Problem, Settings};
use crate::core::health::{complaints, Severity};
use crate::core::rotation::Order;
use crate::fault::{fail_point, kept_alive};
use crate::journal::Log;
use crate::load::{self, Certificates, Dirs, Loaded, Refused, Stamps};
use crate::node::Node;
use crate::transport::tls::Tls;

/// How often the files of the certificates are looked at. Short-lived certificates live for hours.
pub const CERTIFICATE_LOOK: Duration = Duration::from_secs(30);

/// How long changed files have to stay as they are before they are read: whoever writes three
/// files one after another should be done by then.
pub const CERTIFICATE_REST: Duration = Duration::from_secs(1);

/// How often the certificate's remaining life is looked at.
const EXPIRY_LOOK: Duration = Duration::from_secs(3600);

/// How often the same fault of changed certificates is told.
const REMINDER: Duration = Duration::from_secs(600);

/// Messages that may wait; an operator who sends more than these has a script that runs wild.
pub const MESSAGE_QUEUE: usize = 8;

/// One day in seconds.
const DAY: u64 = 86_400;

/// How long before the end of a certificate the operator is warned, once each. The first is also
/// when a load begins to warn.
const WARN_AHEAD: [Duration; 4] =
    [load::EXPIRES_SOON, Duration::from_secs(7 * DAY), Duration::from_secs(DAY), Duration::ZERO];

/// What an operator can ask for: the last word of `traffic_ctl plugin msg stek_share reload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Read all files again and take over what changed.
    Reload,
    /// A new key now.
    Rotate,
    /// A new key now, and no older one.
    Revoke,
    /// Say how things are.
    Status,
}

impl Verb {
    const ALL: [Verb; 4] = [Verb::Reload, Verb::Rotate, Verb::Revoke, Verb::Status];

    /// The word itself.
    pub fn word(self) -> &'static str {
        match self {
            Verb::Reload => "reload",
            Verb::Rotate => "rotate",
            Verb::Revoke => "revoke",
            Verb::Status => "status",
        }
    }

    /// The verb that is exactly these bytes; one NUL may follow, which Traffic Server 9.2 sends
    /// along and 10 does not.
    pub fn parse(bytes: &[u8]) -> Option<Verb> {
        let word = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        Verb::ALL.into_iter().find(|verb| verb.word().as_bytes() == word)
    }
}

/// The line about a message that is none of the verbs: its beginning and its whole length.
pub fn unknown(bytes: &[u8], size: usize) -> String {
    let known: Vec<&str> = Verb::ALL.into_iter().map(Verb::word).collect();
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

/// Where the configuration is.
#[derive(Clone, Debug)]
pub struct Source {
    /// The argument in plugin.config.
    pub argument: String,
    /// Where relative names are looked for.
    pub dirs: Dirs,
}

/// See the module's head.
pub struct Operator {
    node: Arc<Node>,
    log: Log,
    source: Source,
    settings: Arc<Settings>,
    tls: Tls,
    watch: Watch,
    expiry: Expiry,
    /// The fault of changed certificates that was told last, and when.
    told: Option<(String, Instant)>,
}

impl Operator {
    /// For a node that runs with what was `loaded` from `source`, whose warnings were told.
    pub fn new(node: Arc<Node>, log: Log, source: Source, loaded: &Loaded) -> Operator {
        Operator {
            node,
            log,
            source,
            settings: Arc::new(loaded.settings.clone()),
            tls: loaded.tls.clone(),
            watch: Watch::new(loaded.stamps.clone()),
            expiry: Expiry::told(&loaded.tls),
            told: None,
        }
    }

    /// Answers messages and looks at the files, until nobody can send messages any more.
    pub async fn run(self, messages: mpsc::Receiver<Verb>) {
        let log = self.log.clone();
        let both = Arc::new(Mutex::new((self, messages)));
        let begin = || {
            let both = both.clone();
            async move {
                let (operator, messages) = &mut *both.lock().await;
                operator.serve(messages).await;
            }
        };
        kept_alive(&log, "answering operators", begin).await;
    }

    async fn serve(&mut self, messages: &mut mpsc::Receiver<Verb>) {
        let mut next_look = Instant::now() + CERTIFICATE_LOOK;
        let mut next_expiry = Instant::now() + EXPIRY_LOOK;
        loop {
            tokio::select! {
                verb = messages.recv() => match verb {
                    None => return,
                    Some(verb) => self.answer(verb).await,
                },
                () = sleep_until(next_look) => next_look = Instant::now() + self.look().await,
                () = sleep_until(next_expiry) => {
                    next_expiry = Instant::now() + EXPIRY_LOOK;
                    self.look_at_expiry();
                }
            }
        }
    }

    async fn answer(&mut self, verb: Verb) {
        fail_point("operator");
        match verb {
            Verb::Reload => self.reload().await,
            Verb::Rotate => self.order(Order::Rotate, verb).await,
            Verb::Revoke => self.order(Order::Revoke, verb).await,
            Verb::Status => {
                for line in status(&self.node.status()) {
                    self.log.note(line);
                }
            }
        }
    }

    async fn reload(&mut self) {
        let source = self.source.clone();
        let read = move || {
            fail_point("reader");
            load::load(&source.argument, &source.dirs)
        };
        match spawn_blocking(read).await {
            Ok(Ok(loaded)) => self.take_over(loaded).await,
            Ok(Err(refused)) => {
                refused.warnings.iter().for_each(|problem| self.log.warning(problem.to_string()));
                refused.problems.iter().for_each(|problem| self.log.error(problem.to_string()));
                self.log.error(
                    "reload: nothing was changed; correct the above and send the message again",
                );
            }
            Err(why) => self.reader_died(&why),
        }
    }

    async fn take_over(&mut self, loaded: Loaded) {
        let Loaded { settings, tls, stamps, warnings, notes } = loaded;
        warnings.iter().for_each(|problem| self.log.warning(problem.to_string()));
        notes.iter().for_each(|problem| self.log.note(problem.to_string()));
        match self.node.reload(settings.clone(), tls.clone()).await {
            Ok(reloaded) => {
                let mut changes = changes(&self.settings, &settings);
                if let Some(version) = reloaded.list {
                    changes.push(format!("the group's server list, version {version} now"));
                }
                // Read anew in any case; whether one came of it that differs is worth telling.
                if stamps != self.watch.taken {
                    changes.push(format!("the certificate, {}", described(&tls)));
                }
                self.log.note(match changes.is_empty() {
                    true => "reload: all is as it was".to_owned(),
                    false => format!("reload: done; changed: {}", changes.join(", ")),
                });
                for option in at_restart(&self.settings, &settings) {
                    self.log.warning(format!(
                        "reload: {option} has changed, which takes effect when Traffic Server is \
                         restarted"
                    ));
                }
                self.settings = Arc::new(settings);
                self.took(tls, stamps);
            }
            Err(why) => {
                self.log.error(format!("reload: {why}; nothing was changed on this server"))
            }
        }
    }

    /// Has the group make a new key.
    async fn order(&self, order: Order, verb: Verb) {
        let word = verb.word();
        match (self.node.order(order).await, order) {
            (Ok(generation), Order::Rotate) => self.log.note(format!(
                "{word}: generation {generation} is in use; the oldest tickets lost their key \
                 earlier than by schedule, and the next scheduled rotation is a whole \
                 key_update_interval away"
            )),
            (Ok(generation), Order::Revoke) => self.log.note(format!(
                "{word}: generation {generation} is in use and every older key is dropped: no \
                 older ticket resumes any more, each of those clients has one full handshake"
            )),
            (Err(why), _) => self.log.error(format!("{word}: not done: {why}")),
        }
    }

    /// Looks whether the certificates' files changed. Answers with the time until the next look.
    async fn look(&mut self) -> Duration {
        let settings = self.settings.clone();
        match spawn_blocking(move || Stamps::of(&settings)).await {
            Ok(now) => match self.watch.look(now) {
                Look::Same => CERTIFICATE_LOOK,
                Look::Unsettled => CERTIFICATE_REST,
                Look::Changed => {
                    self.take_certificates().await;
                    CERTIFICATE_LOOK
                }
            },
            Err(why) => {
                self.reader_died(&why);
                CERTIFICATE_LOOK
            }
        }
    }

    async fn take_certificates(&mut self) {
        let (settings, file) = (self.settings.clone(), self.source.argument.clone());
        match spawn_blocking(move || load::load_certificates(&settings, &file)).await {
            Ok(Ok(Certificates { tls, stamps, warnings })) => {
                warnings.iter().for_each(|problem| self.log.warning(problem.to_string()));
                self.node.set_certificates(tls.clone());
                self.log.note(format!(
                    "the certificate's files changed; new connections use {}",
                    described(&tls)
                ));
                self.took(tls, stamps);
            }
            Ok(Err(refused)) => self.refuse_certificates(&refused),
            Err(why) => self.reader_died(&why),
        }
    }

    /// Says why changed certificates are not taken; they are read again at each look, since the
    /// fault may lie outside the files, such as in the clock.
    fn refuse_certificates(&mut self, refused: &Refused) {
        let problems: Vec<String> = refused.problems.iter().map(Problem::to_string).collect();
        let words = problems.join("; ");
        match &self.told {
            Some((last, at)) if *last == words && at.elapsed() < REMINDER => {}
            _ => {
                self.log.warning(format!(
                    "the certificate's files changed and cannot be used; the earlier ones stay in \
                     use: {words}"
                ));
                self.told = Some((words, Instant::now()));
            }
        }
    }

    fn took(&mut self, tls: Tls, stamps: Stamps) {
        self.expiry = Expiry::told(&tls);
        self.tls = tls;
        self.watch = Watch::new(stamps);
        self.told = None;
    }

    fn look_at_expiry(&mut self) {
        if !self.tls.expires_in().is_some_and(|left| self.expiry.is_due(left)) {
            return;
        }
        if let Some(problem) = load::expiry(&self.settings, &self.source.argument, &self.tls) {
            self.log.warning(problem.to_string());
        }
    }

    fn reader_died(&self, why: &JoinError) {
        self.log.error(format!("reading the files ended by an internal error: {why}"));
    }
}

fn described(tls: &Tls) -> String {
    format!("{}, valid until {}", tls.subject(), tls.not_after())
}

/// The options that differ, by name.
fn changes(old: &Settings, new: &Settings) -> Vec<String> {
    let options = [
        ("address", old.address != new.address),
        ("port", old.port != new.port),
        ("bind_address", old.bind_address != new.bind_address),
        ("asio_thread_pool_size", old.workers != new.workers),
        ("heart_beat_interval", old.timers.heart_beat != new.timers.heart_beat),
        ("election_timeout_lower_bound", old.timers.election_lower != new.timers.election_lower),
        ("election_timeout_upper_bound", old.timers.election_upper != new.timers.election_upper),
        ("reserved_log_items", old.reserved_log_items != new.reserved_log_items),
        ("snapshot_distance", old.snapshot_distance != new.snapshot_distance),
        ("client_req_timeout", old.request_timeout != new.request_timeout),
        ("key_update_interval", old.key_update_interval != new.key_update_interval),
        ("handover_timeout", old.handover_timeout != new.handover_timeout),
        ("startup_wait", old.startup_wait != new.startup_wait),
        ("ticket_keys", old.ticket_keys != new.ticket_keys),
        ("max_key_age", old.max_key_age != new.max_key_age),
        ("state_dir", old.state_dir != new.state_dir),
        ("root_cert_file", old.root_cert_file != new.root_cert_file),
        ("server_cert_file", old.server_cert_file != new.server_cert_file),
        ("server_key_file", old.server_key_file != new.server_key_file),
        ("cert_verify_str", old.cert_verify_str != new.cert_verify_str),
        ("server_list_file", old.members != new.members),
    ];
    options.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()).collect()
}

/// Those among them that a running box cannot follow: its threads, and the place of what it
/// remembers, are settled at start.
fn at_restart(old: &Settings, new: &Settings) -> Vec<String> {
    const FIXED: [&str; 2] = ["asio_thread_pool_size", "state_dir"];
    let mut changed = changes(old, new);
    changed.retain(|name| FIXED.contains(&name.as_str()));
    changed
}

/// How the box and the group are, in three lines: the group, the key, and what is wrong.
fn status(status: &BoxStatus) -> [String; 3] {
    let (group, list) = (&status.group, &status.list);
    let role = match group.role {
        Role::Asking => "asks around",
        Role::Quarantined => "catches up",
        Role::Follower => "follows",
        Role::Candidate => "stands for election",
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
    [first, key_line(status), verdict(status)]
}

fn key_line(status: &BoxStatus) -> String {
    let keys = &status.keys;
    let Some(current) = keys.current else {
        return "status: the group has no key yet; this server uses its own".to_owned();
    };
    let handover = match keys.staged {
        Some(staged) => format!("handover to generation {} under way", staged.generation),
        None => format!("next rotation in {} s", keys.next_ms / 1000),
    };
    format!(
        "status: current {} (generation {}) is {} s old, {handover}; newest installed generation \
         {}",
        current.fingerprint,
        current.generation,
        keys.age_ms / 1000,
        keys.installed
    )
}

fn verdict(status: &BoxStatus) -> String {
    let complaints = complaints(status);
    let Some(worst) = complaints.first() else { return "status: all is well".to_owned() };
    let word = match worst.severity {
        Severity::Degraded => "not all is well",
        Severity::Broken => "broken",
    };
    let words: Vec<String> = complaints.into_iter().map(|complaint| complaint.words).collect();
    format!("status: {word}: {}", words.join("; "))
}

/// Which warnings about the certificate's end were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expiry {
    /// How many of [`WARN_AHEAD`].
    given: usize,
}

impl Expiry {
    /// For a certificate whose load has warned already, if there was anything to warn of.
    fn told(tls: &Tls) -> Expiry {
        Expiry { given: tls.expires_in().map_or(0, Expiry::passed) }
    }

    fn passed(left: Duration) -> usize {
        WARN_AHEAD.iter().filter(|ahead| left <= **ahead).count()
    }

    /// Whether a warning is due with so much time left; it then counts as given.
    fn is_due(&mut self, left: Duration) -> bool {
        let passed = Expiry::passed(left);
        let due = passed > self.given;
        self.given = self.given.max(passed);
        due
    }
}

/// What a look at the files says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// They are those in use.
    Same,
    /// They changed just now and may go on changing.
    Unsettled,
    /// They changed and stayed so.
    Changed,
}

/// Tells when files changed and rest.
#[derive(Clone, Debug)]
struct Watch {
    /// How the files looked that are in use.
    taken: Stamps,
    /// How they looked last, if that was different.
    seen: Option<Stamps>,
}

impl Watch {
    fn new(taken: Stamps) -> Watch {
        Watch { taken, seen: None }
    }

    /// Looks that are [`CERTIFICATE_REST`] apart at least.
    fn look(&mut self, now: Stamps) -> Look {
        let last = self.seen.take();
        if now == self.taken {
            return Look::Same;
        }
        let rests = last.as_ref() == Some(&now);
        self.seen = Some(now);
        if rests {
            Look::Changed
        } else {
            Look::Unsettled
        }
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used)]
mod tests {
    use super::*;

    use std::fs;
    use std::path::PathBuf;

    #[test]
    fn a_verb_is_exactly_its_word_with_or_without_a_nul() {
        for verb in Verb::ALL {
            let word = verb.word().as_bytes();
            assert_eq!(Verb::parse(word), Some(verb));
            assert_eq!(Verb::parse(&[word, b"\0"].concat()), Some(verb));
            for bytes in
                [&[word, b"\0\0"].concat(), &[word, b"\n"].concat(), &[b" ", word].concat()]
            {
                assert_eq!(Verb::parse(bytes), None, "{bytes:?}");
            }
            assert_eq!(Verb::parse(&word[1..]), None);
            assert_eq!(Verb::parse(&word.to_ascii_uppercase()), None);
        }
        assert_eq!(Verb::parse(b""), None);
        assert_eq!(Verb::parse(b"\0"), None);
        assert_eq!(Verb::parse(&[0xff; 64]), None);
    }

    #[test]
    fn an_unknown_message_is_told_with_the_known_ones() {
        let known = "means nothing here; known are: reload, rotate, revoke, status";
        assert_eq!(unknown(b"relaod\0", 7), format!("the message \"relaod\" {known}"));
        assert_eq!(unknown(b"", 0), format!("an empty message {known}"));
        assert_eq!(unknown(b"xx", 900), format!("a message of 900 bytes, \"xx\"..., {known}"));
    }

    #[test]
    fn a_status_is_three_lines_the_last_of_which_judges() {
        let mut box_ = crate::core::box_status::tests::sample();
        box_.host.hints.clear();
        box_.refused_keys.clear();
        box_.certificate.expires_s = Some(365 * DAY);
        let fingerprint = box_.keys.current.unwrap().fingerprint;
        assert_eq!(
            status(&box_),
            [
                "status: server 3 follows, term 4, leader is server 1; 2 of 2 members heard, \
                 server list version 1 (01234567)"
                    .to_owned(),
                format!(
                    "status: current {fingerprint} (generation 9) is 1 s old, next rotation in \
                     2 s; newest installed generation 9"
                ),
                "status: all is well".to_owned(),
            ]
        );
        box_.group.leader = None;
        box_.certificate.expires_s = Some(3 * DAY);
        let expected = "status: not all is well: it knows no leader at present; its certificate \
                        expires in 3 days; renew it";
        assert_eq!(status(&box_)[2], expected);
        box_.group.role = Role::Asking;
        box_.keys.current = None;
        let [first, second, third] = status(&box_);
        assert!(first.contains("server 3 asks around, term 4, no leader is known"), "{first}");
        assert_eq!(second, "status: the group has no key yet; this server uses its own");
        assert!(third.starts_with("status: broken: it asks around"), "{third}");
    }

    #[test]
    fn each_threshold_of_expiry_is_warned_of_once() {
        let days = |days: u64| Duration::from_secs(days * DAY);
        let mut expiry = Expiry { given: Expiry::passed(days(40)) };
        let due: Vec<u64> = (0..=35).rev().filter(|left| expiry.is_due(days(*left))).collect();
        assert_eq!(due, [30, 7, 1, 0]);
        // A load has warned at 5 days: the next is at 1 day.
        let mut expiry = Expiry { given: Expiry::passed(days(5)) };
        assert!(!expiry.is_due(days(4)));
        assert!(expiry.is_due(days(1)) && !expiry.is_due(days(1)));
    }

    /// A directory that goes away with the test.
    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_are_taken_only_when_they_rest() {
        let name = format!("stek_share-watch-{}", std::process::id());
        let scratch = Scratch(std::env::temp_dir().join(name));
        fs::create_dir_all(&scratch.0).unwrap();
        let path = |name: &str| scratch.0.join(name);
        let write = |name: &str, text: &str| fs::write(path(name), text).unwrap();
        let settings = settings(&scratch.0);
        let now = || Stamps::of(&settings);
        ["root", "chain", "key"].into_iter().for_each(|name| write(name, "old"));
        let mut watch = Watch::new(now());
        assert_eq!(watch.look(now()), Look::Same);
        write("chain", "half");
        assert_eq!(watch.look(now()), Look::Unsettled);
        write("chain", "half and the rest");
        assert_eq!(watch.look(now()), Look::Unsettled);
        assert_eq!(watch.look(now()), Look::Changed);
        // Refused: it is taken at each look until it is used.
        assert_eq!(watch.look(now()), Look::Changed);
        watch = Watch::new(now());
        assert_eq!(watch.look(now()), Look::Same);
        // Another file of the same length and time in its place, as a swapped link gives it.
        write("other", "old");
        let times = fs::metadata(path("key")).unwrap().modified().unwrap();
        fs::File::options().write(true).open(path("other")).unwrap().set_modified(times).unwrap();
        fs::rename(path("other"), path("key")).unwrap();
        assert_eq!((watch.look(now()), watch.look(now())), (Look::Unsettled, Look::Changed));
        watch = Watch::new(now());
        fs::remove_file(path("root")).unwrap();
        assert_eq!((watch.look(now()), watch.look(now())), (Look::Unsettled, Look::Changed));
        write("root", "old");
        assert_eq!(watch.look(now()), Look::Unsettled);
    }

    #[test]
    fn a_reload_names_what_changed_and_what_has_to_wait() {
        let old = settings(&PathBuf::from("/nowhere"));
        assert!(changes(&old, &old).is_empty());
        let new = Settings {
            workers: old.workers + 1,
            key_update_interval: old.key_update_interval * 2,
            members: Vec::new(),
            ..old.clone()
        };
        let names = ["asio_thread_pool_size", "key_update_interval", "server_list_file"];
        assert_eq!(changes(&old, &new), names);
        assert_eq!(at_restart(&old, &new), ["asio_thread_pool_size"]);
    }

    fn settings(dir: &std::path::Path) -> Settings {
        use crate::core::config::{parse_conf, parse_list, Paths};
        let conf = "server_id: 1\naddress: 127.0.0.1\nport: 1\nkey_update_interval: 60\n\
                    server_list_file: l\nroot_cert_file: r\nserver_cert_file: c\n\
                    server_key_file: k\ncert_verify_str: /CN=x\n";
        let list = "- server_id: 1\n  address: 127.0.0.1\n  port: 1\n";
        let (conf, list) =
            (parse_conf(conf, "conf").0.unwrap(), parse_list(list, "list").0.unwrap());
        let paths = Paths {
            root_cert_file: dir.join("root"),
            server_cert_file: dir.join("chain"),
            server_key_file: dir.join("key"),
        };
        conf.settle(list, paths).unwrap()
    }
}
