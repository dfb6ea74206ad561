//! Looks after the files of a running server: takes over new certificates by itself, and all of them
//! when an operator asks for a reload; warns before the certificate in use expires; and looks what
//! the host's own files say.
//!
//! Decides nothing about keys. Invariants:
//! - One thing at a time, so that no two hands change settings or certificates at once.
//! - A configuration or certificate that cannot be used changes nothing.
//! - Files are read by [`Reader`] alone, and a file system that hangs costs an answer in words.
//! - At most one reload waits for the one under way; what more there is would read the same files.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, sleep_until, Instant};

use super::guard::Reinstall;
use super::host_environment::{EnvironmentWatch, HostFiles};
use super::reader::{Begun, Reader, Source, Unread};
use crate::core::config::{changes, Change, Problem, Settings};
use crate::core::expiry::Expiry;
use crate::load::{self, Certificates, Loaded, Refused, Stamps};
use crate::log_sink::{Level, Log};
use crate::node::{Node, ReloadOutcome};
use crate::supervise::{fail_point, kept_alive};
use crate::transport::tls::Tls;

/// How often the files of the certificates are looked at. Short-lived certificates live for hours.
pub const CERTIFICATE_LOOK: Duration = Duration::from_secs(30);

/// How long changed files have to stay as they are before they are read: whoever writes three
/// files one after another should be done by then.
pub const CERTIFICATE_REST: Duration = Duration::from_secs(1);

/// How often the same fault of changed certificates is told.
const REMINDER: Duration = Duration::from_secs(600);

/// After how long a reload that is not done says so.
const SLOW_RELOAD: Duration = Duration::from_secs(3);

/// The options that name files of certificates.
const PEM_OPTIONS: [&str; 3] = ["root_cert_file", "server_cert_file", "server_key_file"];

/// Asks for reloads, and says what becomes of those that come while one is under way.
#[derive(Clone)]
pub struct Reloads {
    log: Log,
    sender: mpsc::Sender<Reload>,
    begun: Begun,
    /// Whether those that ask are answered, and not by the log alone.
    is_answered: bool,
}

/// One that is asked for.
struct Reload {
    /// By whom, in words.
    origin: String,
    /// Where the outcome goes, if anybody waits for it.
    reply: oneshot::Sender<ReloadOutcome>,
}

/// The other end of [`Reloads`].
pub struct Asked {
    receiver: mpsc::Receiver<Reload>,
    begun: Begun,
}

impl Reloads {
    /// Both ends.
    pub fn new(log: Log) -> (Reloads, Asked) {
        let (sender, receiver) = mpsc::channel(1);
        let begun = Begun::default();
        (
            Reloads { log, sender, begun: begun.clone(), is_answered: false },
            Asked { receiver, begun },
        )
    }

    /// The same for tools, which are answered: they may ask as often as they like, and the log says it
    /// once in a while.
    pub fn answered(&self) -> Reloads {
        Reloads { is_answered: true, ..self.clone() }
    }

    fn tell(&self, line: String) {
        if self.is_answered {
            self.log.limited(Level::Note, "reloads by tools", line);
        } else {
            self.log.note(line);
        }
    }

    /// Asks for one on behalf of whoever the words name; the answer comes when it is done, and says so if
    /// it is not done at all.
    pub fn ask(&self, origin: String) -> oneshot::Receiver<ReloadOutcome> {
        let (reply, answer) = oneshot::channel();
        let lasts = self.begun.lasts();
        let since = lasts.unwrap_or_default().as_secs();
        match (self.sender.try_send(Reload { origin, reply }), lasts) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) => self.tell(format!(
                "reload: one is under way since {since} s; this one follows when that is done"
            )),
            (Err(TrySendError::Full(dropped)), _) => {
                let words = format!(
                    "one is under way since {since} s, and another one waits that will find the \
                     files as they are now; this one is dropped"
                );
                self.tell(format!("reload: {words}"));
                let _ = dropped.reply.send(Err(words));
            }
            (Err(TrySendError::Closed(dropped)), _) => {
                let words = "not done: this server is about to end";
                self.log.error(format!("reload: {words}"));
                let _ = dropped.reply.send(Err(words.to_owned()));
            }
        }
        answer
    }
}

/// See the module's head.
pub struct Files {
    node: Arc<Node>,
    log: Log,
    source: Source,
    settings: Arc<Settings>,
    tls: Tls,
    /// See [`Loaded::certificate_place`].
    place: String,
    /// What was warned of when the files in use were read.
    warnings: Vec<Problem>,
    watch: Watch,
    expiry: ExpiryWarnings,
    /// The fault of changed certificates that was told last, and when.
    told: Option<(String, Instant)>,
    /// The faults of a reload that was refused for what may pass, as they were told; it is tried again.
    waiting: Option<Vec<String>>,
    reader: Reader,
    environment: EnvironmentWatch,
    reinstall: Reinstall,
}

impl Files {
    /// For a node that runs with what was `loaded` from `source`, whose warnings were told.
    pub fn new(
        node: Arc<Node>,
        log: Log,
        source: Source,
        loaded: &Loaded,
        environment: EnvironmentWatch,
        reinstall: Reinstall,
    ) -> Files {
        environment.keep_warnings(&loaded.warnings);
        environment.keep_roots(loaded.tls.roots());
        environment.keep_certificate_warning(
            load::expiry(&loaded.certificate_place, &loaded.tls).as_ref(),
        );
        Files {
            node,
            log,
            source,
            settings: Arc::new(loaded.settings.clone()),
            tls: loaded.tls.clone(),
            place: loaded.certificate_place.clone(),
            warnings: loaded.warnings.clone(),
            watch: Watch::new(loaded.stamps.clone()),
            expiry: ExpiryWarnings::told(&loaded.tls.expiries()),
            told: None,
            waiting: None,
            reader: Reader::default(),
            environment,
            reinstall,
        }
    }

    /// Carries out the reloads that are asked for, and looks at the files now and then, until
    /// nobody can ask any more.
    pub async fn run(self, asked: Asked) {
        let log = self.log.clone();
        kept_alive(&log, "looking after the files", (self, asked), |(files, asked)| {
            Box::pin(files.serve(asked))
        })
        .await;
    }

    async fn serve(&mut self, asked: &mut Asked) {
        let mut next_look = Instant::now() + CERTIFICATE_LOOK;
        loop {
            tokio::select! {
                reload = asked.receiver.recv() => match reload {
                    None => return,
                    Some(Reload { origin, reply }) => {
                        let _under_way = asked.begun.begin();
                        self.log.note(format!("reload: ordered by {origin}"));
                        let outcome = self.reload().await;
                        self.node.record_reload(&outcome);
                        // Whoever does not wait any more finds it in the status.
                        let _ = reply.send(outcome);
                    }
                },
                () = sleep_until(next_look) => {
                    // By the wall clock, which goes on while the machine sleeps.
                    self.look_at_expiry();
                    let pause = self.look().await;
                    if self.waiting.is_some() {
                        let _under_way = asked.begun.begin();
                        self.reload_again().await;
                    }
                    next_look = Instant::now() + pause;
                }
            }
        }
    }

    async fn reload(&mut self) -> ReloadOutcome {
        self.waiting = None;
        let read = self.read_all();
        let read = told_if_slow(&self.log, "the files are read", self.reader.read(read)).await;
        self.environment.look_at_records();
        // Whoever reloads may want to mend what the log says; what stands there is no matter.
        self.reinstall.ask();
        match read {
            Ok((loaded, files)) => {
                self.environment.take_files(files);
                match loaded {
                    Ok(loaded) => self.take_over(loaded).await,
                    Err(refused) => Err(self.refuse(&refused)),
                }
            }
            Err(why) => {
                self.log.error(format!("reload: {why}; nothing was changed"));
                Err(why.to_string())
            }
        }
    }

    /// Tries once more what was refused; says nothing as long as nothing is new.
    async fn reload_again(&mut self) {
        // What hangs is told by the look that comes before.
        let Ok((loaded, files)) = self.reader.read(self.read_all()).await else { return };
        match loaded {
            Ok(loaded) => {
                self.waiting = None;
                self.log.note("reload: what was refused can be used now");
                self.environment.take_files(files);
                self.reinstall.ask();
                let outcome = self.take_over(loaded).await;
                self.node.record_reload(&outcome);
            }
            Err(refused) if self.waiting.as_ref() != Some(&refused.lines()) => {
                let outcome = Err(self.refuse(&refused));
                self.node.record_reload(&outcome);
            }
            Err(_) => {}
        }
    }

    fn read_all(&self) -> impl FnOnce() -> (Result<Loaded, Refused>, HostFiles) + Send + 'static {
        let source = self.source.clone();
        move || {
            fail_point("reader");
            (load::load(&source.argument, &source.dirs), HostFiles::look(&source.dirs))
        }
    }

    fn refuse(&mut self, refused: &Refused) -> String {
        refused.tell(&self.log);
        self.waiting = refused.passes().then(|| refused.lines());
        self.log.error(if self.waiting.is_some() {
            "reload: nothing was changed yet; it is tried again by itself every 30 s, and at once by \
             another message"
        } else {
            "reload: nothing was changed; correct the above and send the message again"
        });
        refused.lines().join("; ")
    }

    async fn take_over(&mut self, loaded: Loaded) -> ReloadOutcome {
        let Loaded { settings, tls, stamps, warnings, notes, certificate_place } = loaded;
        load::tell(&self.log, &warnings);
        load::tell(&self.log, &notes);
        let taken = self.node.reload(settings.clone(), tls.clone());
        match told_if_slow(&self.log, "the group is asked about the server list", taken).await {
            Ok(reloaded) => {
                let options = changes(&self.settings, &settings);
                let mut changes: Vec<String> = options.iter().map(|o| o.name.to_owned()).collect();
                if let Some(version) = reloaded.list {
                    changes.push(format!("the group's server list, version {version} now"));
                }
                // Read anew in any case; whether one came of it that differs is worth telling.
                if stamps != self.watch.taken {
                    changes.push(format!("the certificate, {}", described(&tls)));
                }
                let words = if changes.is_empty() {
                    "no changes; the ticket keys are given to Traffic Server again".to_owned()
                } else {
                    format!("changed: {}", changes.join(", "))
                };
                self.log.note(format!("reload: done; {words}"));
                for option in options.iter().filter(|o| o.change == Change::AtRestart) {
                    self.log.warning(format!(
                        "reload: {} has changed, which takes effect when Traffic Server is \
                         restarted",
                        option.name
                    ));
                }
                self.settings = Arc::new(settings);
                self.warnings = warnings;
                self.took(tls, stamps, certificate_place);
                Ok(words)
            }
            Err(why) => {
                self.log.error(format!("reload: {why}; nothing was changed on this server"));
                Err(why.to_string())
            }
        }
    }

    /// Looks whether the certificates' files changed, and at the host's. Answers with the time
    /// until the next look.
    async fn look(&mut self) -> Duration {
        let (settings, dirs) = (self.settings.clone(), self.source.dirs.clone());
        let read = move || (Stamps::of(&settings), HostFiles::look(&dirs));
        match self.reader.read(read).await {
            Ok((now, files)) => {
                self.environment.take_files(files);
                match self.watch.look(now) {
                    Look::Same => CERTIFICATE_LOOK,
                    Look::Unsettled => CERTIFICATE_REST,
                    Look::Changed => {
                        self.take_certificates().await;
                        CERTIFICATE_LOOK
                    }
                }
            }
            Err(why) => {
                self.tell_unread(&why);
                CERTIFICATE_LOOK
            }
        }
    }

    async fn take_certificates(&mut self) {
        let (settings, file) = (self.settings.clone(), self.source.argument.clone());
        let read = move || load::load_certificates(&settings, &file);
        match self.reader.read(read).await {
            Ok(Ok(Certificates { tls, stamps, warnings, certificate_place })) => {
                load::tell(&self.log, &warnings);
                self.node.set_certificates(tls.clone());
                self.log.note(format!(
                    "the certificate's files changed; new connections use {}",
                    described(&tls)
                ));
                // What was said of the earlier ones is over.
                let is_over = |problem: &Problem| {
                    problem.field.as_deref().is_some_and(|field| PEM_OPTIONS.contains(&field))
                };
                self.warnings.retain(|problem| !is_over(problem));
                self.warnings.extend(warnings);
                self.took(tls, stamps, certificate_place);
            }
            Ok(Err(refused)) => self.refuse_certificates(&refused),
            Err(why) => self.tell_unread(&why),
        }
    }

    /// Says why changed certificates are not taken; they are read again at each look, since the
    /// fault may lie outside the files, such as in the clock.
    fn refuse_certificates(&mut self, refused: &Refused) {
        let words = refused.lines().join("; ");
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

    fn took(&mut self, tls: Tls, stamps: Stamps, place: String) {
        self.expiry = ExpiryWarnings::told(&tls.expiries());
        (self.tls, self.place) = (tls, place);
        self.environment.keep_warnings(&self.warnings);
        self.environment.keep_roots(self.tls.roots());
        self.keep_certificate_warning();
        self.watch = Watch::new(stamps);
        self.told = None;
    }

    fn keep_certificate_warning(&self) {
        self.environment.keep_certificate_warning(load::expiry(&self.place, &self.tls).as_ref());
    }

    fn look_at_expiry(&mut self) {
        self.keep_certificate_warning();
        if !self.expiry.is_due(&self.tls.expiries()) {
            return;
        }
        if let Some(problem) = load::expiry(&self.place, &self.tls) {
            self.log.warning(problem.to_string());
        }
    }

    fn tell_unread(&self, why: &Unread) {
        let line = format!("new certificates go unnoticed: {why}");
        self.log.limited(Level::Warning, "files unread", line);
    }
}

/// Awaits `work`, and says so once if that takes long.
async fn told_if_slow<F: Future>(log: &Log, what: &str, work: F) -> F::Output {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = sleep(SLOW_RELOAD) => {}
    }
    log.note(format!("reload: not done after {} s: {what}", SLOW_RELOAD.as_secs()));
    work.await
}

fn described(tls: &Tls) -> String {
    format!("{}, valid until {}", tls.subject(), tls.not_after())
}

/// Which warnings about the ends of the certificates in use were given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ExpiryWarnings {
    /// [`Expiry::stage`] of each, in the chain's order.
    given: Vec<usize>,
}

impl ExpiryWarnings {
    /// For certificates whose load has warned already, if there was anything to warn of.
    fn told(endings: &[Expiry]) -> ExpiryWarnings {
        ExpiryWarnings { given: endings.iter().map(Expiry::stage).collect() }
    }

    /// Whether a warning is due; it then counts as given.
    fn is_due(&mut self, endings: &[Expiry]) -> bool {
        let now = ExpiryWarnings::told(endings);
        let due = now.given.iter().zip(&self.given).any(|(now, given)| now > given);
        self.given = now.given;
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

    use crate::log_sink::LogSink;

    #[derive(Default)]
    struct Lines(std::sync::Mutex<Vec<String>>);

    impl LogSink for Lines {
        fn write(&self, _level: Level, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_reload_waits_at_most_and_each_is_answered() {
        let lines = Arc::new(Lines::default());
        let told = || std::mem::take(&mut *lines.0.lock().unwrap());
        let (reloads, mut asked) = Reloads::new(Log::new(lines.clone()));
        let ask = || reloads.ask("a test".to_owned());
        drop(ask());
        assert!(told().is_empty());
        asked.receiver.recv().await.unwrap();
        let under_way = asked.begun.begin();
        sleep(Duration::from_secs(7)).await;
        let mut answers: Vec<_> = (0..3).map(|_| ask()).collect();
        assert!(answers[0].try_recv().is_err(), "nothing came of it yet");
        let dropped = answers[1].try_recv().unwrap();
        assert!(dropped.is_err_and(|why| why.contains("this one is dropped")));
        let words = told();
        assert!(words[0].contains("under way since 7 s; this one follows"), "{words:?}");
        assert!(words[1].contains("another one waits") && words[2] == words[1], "{words:?}");
        let tools = reloads.answered();
        (0..5).for_each(|_| drop(tools.ask("a tool".to_owned())));
        assert_eq!(told().len(), 1, "whoever is answered does not fill the log");
        drop(under_way);
        asked.receiver.recv().await.unwrap();
        assert!(asked.receiver.try_recv().is_err(), "the third was dropped");
        drop(ask());
        assert!(told().is_empty(), "none is under way");
        drop(asked);
        assert!(ask().await.unwrap().is_err_and(|why| why.contains("about to end")));
        assert_eq!(told(), ["reload: not done: this server is about to end"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_that_takes_long_says_so_once() {
        let lines = Arc::new(Lines::default());
        let log = Log::new(lines.clone());
        assert_eq!(told_if_slow(&log, "a", async { 1 }).await, 1);
        told_if_slow(&log, "b", sleep(SLOW_RELOAD * 5)).await;
        assert_eq!(*lines.0.lock().unwrap(), ["reload: not done after 3 s: b"]);
    }

    #[test]
    fn each_threshold_of_expiry_is_warned_of_once() {
        const DAY: u64 = 86_400;
        let of = |leaf: u64, root: u64| {
            [(leaf, false), (root, true)].map(|(left, is_authority)| Expiry {
                subject: format!("/CN={left}"),
                is_authority,
                left: Duration::from_secs(left * DAY),
                life: Duration::from_secs(365 * DAY),
            })
        };
        let mut expiry = ExpiryWarnings::told(&of(40, 90));
        let due: Vec<u64> = (0..=35).rev().filter(|left| expiry.is_due(&of(*left, 90))).collect();
        assert_eq!(due, [30, 7, 1, 0]);
        // A load has warned at 5 days: the next is at 1 day.
        let mut expiry = ExpiryWarnings::told(&of(5, 90));
        assert!(!expiry.is_due(&of(4, 90)));
        assert!(expiry.is_due(&of(1, 90)) && !expiry.is_due(&of(1, 90)));
        // An authority's end is one of its own.
        assert!(
            expiry.is_due(&of(1, 30)) && !expiry.is_due(&of(1, 29)) && expiry.is_due(&of(1, 7))
        );
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
