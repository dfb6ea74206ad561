//! Host names to addresses, so that a resolver which hangs stops nothing else.
//!
//! The system's resolver blocks the thread that asks it, for as long as it likes. So each look-up
//! has a thread of its own, which nothing else uses. Invariants:
//! - One look-up per name at a time: whoever asks meanwhile joins it.
//! - At most [`MAX_LOOKUPS`] threads; names beyond that wait their turn, each of them once.
//! - A look-up outlives the patience of who asked for it: its answer is there for the next one.
//! - Whoever asks waits no longer than [`RESOLVE_LIMIT`], and hardly at all where an earlier answer
//!   is remembered.
//! - What was found is remembered until another answer comes, at whatever age: who is at an address
//!   is for mutual TLS to say, so an old one can do no more than not answer.
//! - An address of no machine is not dialled, and how many there were is told.
//! - A literal address never comes here, but for one with a zone.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use once_cell::sync::Lazy;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::core::config::no_machine;
use crate::supervise::lock;

/// Look-ups at a time. A fleet whose first name server is dead, 5 s for each name, has all its
/// names within half a minute with as many as these; more would only be more threads that hang.
pub const MAX_LOOKUPS: usize = 16;

/// How long one who asks waits for a name that was never found so far.
pub const RESOLVE_LIMIT: Duration = Duration::from_secs(3);

/// How long one who asks waits before an earlier answer has to do: a sound resolver is done by then.
pub const FRESH_WAIT: Duration = Duration::from_millis(500);

/// The most addresses of one host name that are tried.
const MAX_ADDRESSES: usize = 8;

/// The most names that are remembered: those of the largest list, and as many of a changed one.
const MAX_NAMES: usize = 2 * crate::core::config::MAX_MEMBERS;

/// Address space for the stack of a look-up; name service modules may want some.
const LOOKUP_STACK: usize = 512 * 1024;

/// Asks for the addresses of a name, and may block. The ports of what it finds mean nothing.
pub type Lookup = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Why there are no addresses.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unresolved {
    /// The resolver says no.
    #[error("{0}")]
    Failed(Arc<str>),
    /// The resolver has not answered yet.
    #[error(
        "the resolver has not answered within {} ms (an answer that comes later is used; see \
         /etc/resolv.conf and its name servers)",
        .0.as_millis()
    )]
    Slow(Duration),
    /// More names than there are members.
    #[error("too many names are looked up already")]
    Busy,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// At least one, each once.
    pub addresses: Vec<SocketAddr>,
    /// Why they are of an earlier look-up, if they are.
    pub stale: Option<Unresolved>,
    /// How many addresses are left out, and why, if any are.
    pub left_out: Option<Arc<str>>,
}

/// Looks names up; see the module's head. Cloning makes another handle.
#[derive(Clone)]
pub struct Resolver {
    inner: Arc<Inner>,
    limit: Duration,
}

struct Inner {
    lookup: Box<Lookup>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    names: BTreeMap<String, Name>,
    /// Names whose turn has not come.
    waiting: VecDeque<String>,
    threads: usize,
}

#[derive(Default)]
struct Name {
    /// The addresses that were found last.
    known: Vec<SocketAddr>,
    /// See [`Found::left_out`].
    left_out: Option<Arc<str>>,
    /// The look-up under way. Tells how it ended, once.
    pending: Option<watch::Sender<Ended>>,
}

/// How a look-up ended; `None` while it is under way.
type Ended = Option<Result<(), Unresolved>>;

impl Resolver {
    /// The one of this process, which asks the system.
    pub fn system() -> Resolver {
        static SYSTEM: Lazy<Resolver> = Lazy::new(|| Resolver::new(ask_the_system));
        SYSTEM.clone()
    }

    /// Asks `lookup`, which may block.
    pub fn new(
        lookup: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static,
    ) -> Resolver {
        let inner = Inner { lookup: Box::new(lookup), table: Mutex::default() };
        Resolver { inner: Arc::new(inner), limit: RESOLVE_LIMIT }
    }

    /// The same for those who wait longer than [`RESOLVE_LIMIT`] for a name that was never found.
    pub fn patient(self, limit: Duration) -> Resolver {
        Resolver { limit, ..self }
    }

    /// The addresses behind an IPv4 or IPv6 literal or a host name, asked for anew each time.
    ///
    /// # Errors
    /// There are none, and there were none before.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Found, Unresolved> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            let addresses = vec![SocketAddr::new(ip, port)];
            return Ok(Found { addresses, stale: None, left_out: None });
        }
        let (mut end, is_known) = self.join(host)?;
        let limit = if is_known { FRESH_WAIT } else { self.limit };
        let fault = match timeout(limit, end.wait_for(Option::is_some)).await {
            Ok(Ok(ended)) => ended.clone().and_then(Result::err),
            // Its thread is gone, or it takes its time.
            Ok(Err(_)) => Some(Unresolved::Failed("the look-up ended by an internal error".into())),
            Err(_) => Some(Unresolved::Slow(limit)),
        };
        let table = lock(&self.inner.table);
        let name = table.names.get(host);
        let mut addresses = name.map(|name| name.known.clone()).unwrap_or_default();
        addresses.iter_mut().for_each(|address| address.set_port(port));
        match fault {
            Some(fault) if addresses.is_empty() => Err(fault),
            stale => {
                let left_out = name.and_then(|name| name.left_out.clone());
                Ok(Found { addresses, stale, left_out })
            }
        }
    }

    /// Forgets all names but these, and those that are being looked up.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        lock(&self.inner.table).names.retain(|name, entry| entry.pending.is_some() || keep(name));
    }

    /// Joins the look-up of this name, which begins now if none is under way; and whether addresses
    /// of it are known.
    fn join(&self, host: &str) -> Result<(watch::Receiver<Ended>, bool), Unresolved> {
        let mut table = lock(&self.inner.table);
        if table.names.len() >= MAX_NAMES && !table.names.contains_key(host) {
            table.names.retain(|_, name| name.pending.is_some());
            if table.names.len() >= MAX_NAMES {
                return Err(Unresolved::Busy);
            }
        }
        let name = table.names.entry(host.to_owned()).or_default();
        let is_known = !name.known.is_empty();
        if let Some(pending) = &name.pending {
            return Ok((pending.subscribe(), is_known));
        }
        let (ended, end) = watch::channel(None);
        name.pending = Some(ended);
        table.waiting.push_back(host.to_owned());
        if table.threads < MAX_LOOKUPS {
            let inner = self.inner.clone();
            let thread = thread::Builder::new().name("stek_lookup".into()).stack_size(LOOKUP_STACK);
            match thread.spawn(move || inner.work()) {
                Ok(_) => table.threads += 1,
                // One that is at work takes it on; without any it is tried again by who asks next.
                Err(error) if table.threads == 0 => {
                    table.waiting.pop_back();
                    table.names.entry(host.to_owned()).or_default().pending = None;
                    return Err(Unresolved::Failed(format!("no thread for it: {error}").into()));
                }
                Err(_) => {}
            }
        }
        Ok((end, is_known))
    }
}

impl Inner {
    /// One thread: looks up what waits, until nothing does.
    fn work(&self) {
        loop {
            let host = {
                let mut table = lock(&self.table);
                let Some(host) = table.waiting.pop_front() else {
                    table.threads -= 1;
                    return;
                };
                host
            };
            let answer = catch_unwind(AssertUnwindSafe(|| (self.lookup)(&host)));
            let found = match answer {
                Ok(Ok(found)) => checked(found),
                Ok(Err(error)) => Err(Unresolved::Failed(error.to_string().into())),
                Err(_) => Err(Unresolved::Failed("the look-up ended by an internal error".into())),
            };
            let mut table = lock(&self.table);
            let name = table.names.entry(host).or_default();
            let ended =
                found.map(|(known, left_out)| (name.known, name.left_out) = (known, left_out));
            if let Some(pending) = name.pending.take() {
                pending.send_replace(Some(ended));
            }
        }
    }
}

/// Each address once, without those of no machine, and not too many; and what is left out, in words.
fn checked(mut found: Vec<SocketAddr>) -> Result<(Vec<SocketAddr>, Option<Arc<str>>), Unresolved> {
    let mut seen = HashSet::new();
    found.retain(|&address| seen.insert(address));
    let all = found.len();
    let mut why = None;
    found.retain(|address| {
        let has_zone = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        let Some(bad) = no_machine(address.ip(), has_zone) else { return true };
        why.get_or_insert_with(|| format!("{} {bad}", address.ip()));
        false
    });
    if found.len() > MAX_ADDRESSES {
        found.truncate(MAX_ADDRESSES);
        why.get_or_insert_with(|| format!("at most {MAX_ADDRESSES} are dialled"));
    }
    let left_out = why.map(|why| {
        format!("{} of the name's {all} addresses are not dialled: {why}", all - found.len())
    });
    match (found.is_empty(), left_out) {
        (false, left_out) => Ok((found, left_out.map(Arc::from))),
        (true, left_out) => {
            let why = left_out.unwrap_or_else(|| "the name has no address".to_owned());
            Err(Unresolved::Failed(why.into()))
        }
    }
}

/// With the zone of each, without which a link-local address cannot be dialled.
fn ask_the_system(host: &str) -> io::Result<Vec<SocketAddr>> {
    Ok((host, 0).to_socket_addrs()?.collect())
}

/// The addresses behind `HOST:PORT`, for a program without a runtime that waits no longer than
/// `limit`.
///
/// # Errors
/// There are none, or none yet.
pub fn look_up(place: &str, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = place.parse() {
        return Ok(vec![address]);
    }
    let (answer, answered) = sync_channel(1);
    let asked = place.to_owned();
    thread::Builder::new().spawn(move || {
        let found = asked.to_socket_addrs().map(|found| found.take(MAX_ADDRESSES).collect());
        let _ = answer.send(found);
    })?;
    answered.recv_timeout(limit).unwrap_or_else(|_| {
        let words = format!("the resolver has not answered within {} ms", limit.as_millis());
        Err(io::Error::new(io::ErrorKind::TimedOut, words))
    })
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{channel, Sender};

    use tokio::time::Instant;

    /// A resolver that answers when it is told to, and counts.
    struct Puppet {
        resolver: Resolver,
        asked: Arc<AtomicUsize>,
        answer: Sender<io::Result<Vec<SocketAddr>>>,
    }

    fn puppet() -> Puppet {
        let asked = Arc::new(AtomicUsize::new(0));
        let (answer, answers) = channel();
        let (answers, count) = (Mutex::new(answers), asked.clone());
        let resolver = Resolver::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let answers = answers.lock().unwrap();
            answers.recv().unwrap_or_else(|_| Err(io::Error::other("the test is over")))
        });
        Puppet { resolver, asked, answer }
    }

    fn ip(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 0))
    }

    fn at(mut address: SocketAddr, port: u16) -> SocketAddr {
        address.set_port(port);
        address
    }

    /// Waits until no look-up of this name is under way.
    async fn rest(resolver: &Resolver, host: &str) {
        let begun = std::time::Instant::now();
        while lock(&resolver.inner.table).names.get(host).is_some_and(|name| name.pending.is_some())
        {
            assert!(begun.elapsed() < Duration::from_secs(30), "the look-up hangs");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_literal_never_bothers_the_resolver() {
        let puppet = puppet();
        for (host, shown) in [("192.0.2.7", "192.0.2.7:5"), ("2001:db8::1", "[2001:db8::1]:5")] {
            let found = puppet.resolver.resolve(host, 5).await.unwrap();
            assert_eq!(found.addresses, [shown.parse().unwrap()]);
        }
        assert_eq!(puppet.asked.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_is_late_is_joined_and_used() {
        let puppet = puppet();
        let begun = Instant::now();
        for _ in 0..3 {
            let slow = Err(Unresolved::Slow(RESOLVE_LIMIT));
            assert_eq!(puppet.resolver.resolve("late", 1).await, slow);
        }
        assert_eq!(begun.elapsed(), RESOLVE_LIMIT * 3);
        puppet.answer.send(Ok(vec![ip(1), ip(1), ip(2)])).unwrap();
        rest(&puppet.resolver, "late").await;
        assert_eq!(puppet.asked.load(Ordering::SeqCst), 1, "joined, not repeated");
        // The next one hangs again: what came late is used, soon.
        let begun = Instant::now();
        let found = puppet.resolver.resolve("late", 9).await.unwrap();
        let expected = [at(ip(1), 9), at(ip(2), 9)];
        assert_eq!(found.addresses, expected);
        assert_eq!(found.stale, Some(Unresolved::Slow(FRESH_WAIT)));
        assert_eq!(begun.elapsed(), FRESH_WAIT);
    }

    #[tokio::test]
    async fn addresses_of_no_machine_are_left_out_and_counted() {
        let puppet = puppet();
        let zoned: SocketAddr = "[fe80::1%7]:0".parse().unwrap();
        let plain = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let all = ["0.0.0.0", "fe80::1", "192.0.2.1", "ff02::1"].map(plain).to_vec();
        puppet.answer.send(Ok([all, vec![zoned]].concat())).unwrap();
        let found = puppet.resolver.resolve("name", 9).await.unwrap();
        assert_eq!(found.addresses, [at(ip(1), 9), at(zoned, 9)], "with its zone");
        let why = "3 of the name's 5 addresses are not dialled: 0.0.0.0 stands for every address";
        assert!(found.left_out.unwrap().starts_with(why));
        puppet.answer.send(Ok(vec![plain("0.0.0.0"), plain("::")])).unwrap();
        let none = puppet.resolver.resolve("other", 9).await.unwrap_err();
        assert!(
            none.to_string().starts_with("2 of the name's 2 addresses are not dialled: "),
            "{none}"
        );
        puppet.answer.send(Ok((1..=12).map(ip).collect())).unwrap();
        let many = puppet.resolver.resolve("many", 9).await.unwrap();
        assert_eq!(many.addresses.len(), MAX_ADDRESSES);
        let why = "4 of the name's 12 addresses are not dialled: at most 8 are dialled";
        assert_eq!(many.left_out.as_deref(), Some(why));
        puppet.answer.send(Ok(vec![ip(1)])).unwrap();
        assert_eq!(puppet.resolver.resolve("many", 9).await.unwrap().left_out, None);
    }

    /// By the loopback interface, which every machine has, and whose number is 1.
    #[tokio::test]
    async fn a_zone_stays_with_its_address() {
        let resolver = Resolver::new(ask_the_system);
        let found = resolver.resolve("fe80::1%lo", 9).await.unwrap();
        assert_eq!(found.addresses, ["[fe80::1%1]:9".parse().unwrap()]);
        let none = resolver.resolve("fe80::1%nowhere", 9).await;
        assert!(matches!(none, Err(Unresolved::Failed(_))), "{none:?}");
    }

    #[tokio::test]
    async fn a_look_up_that_fails_leaves_what_was_known() {
        let puppet = puppet();
        puppet.answer.send(Err(io::Error::other("no such name"))).unwrap();
        let none = Unresolved::Failed("no such name".into());
        assert_eq!(puppet.resolver.resolve("name", 1).await, Err(none.clone()));
        puppet.answer.send(Ok(vec![ip(3)])).unwrap();
        let fresh = puppet.resolver.resolve("name", 1).await.unwrap();
        assert_eq!(fresh.stale, None);
        puppet.answer.send(Err(io::Error::other("no such name"))).unwrap();
        let found = puppet.resolver.resolve("name", 1).await.unwrap();
        assert_eq!((found.addresses, found.stale), (fresh.addresses, Some(none.clone())));
        // Another answer takes its place, and who is no member is forgotten.
        puppet.answer.send(Ok(vec![ip(4)])).unwrap();
        let moved = puppet.resolver.resolve("name", 1).await.unwrap();
        assert_eq!((moved.addresses, moved.stale), (vec![at(ip(4), 1)], None));
        puppet.resolver.retain(|name| name != "name");
        puppet.answer.send(Err(io::Error::other("no such name"))).unwrap();
        assert_eq!(puppet.resolver.resolve("name", 1).await, Err(none));
        // Nothing at all is no answer either.
        puppet.answer.send(Ok(vec![])).unwrap();
        assert!(puppet.resolver.resolve("name", 1).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_so_many_hang_at_a_time_and_the_rest_have_their_turn() {
        let puppet = puppet();
        let names: Vec<String> = (0..MAX_LOOKUPS * 3).map(|i| format!("name{i}")).collect();
        for _ in 0..4 {
            let all = names.iter().map(|name| {
                let (resolver, name) = (puppet.resolver.clone(), name.clone());
                tokio::spawn(async move { resolver.resolve(&name, 1).await })
            });
            for asked in all.collect::<Vec<_>>() {
                assert_eq!(asked.await.unwrap(), Err(Unresolved::Slow(RESOLVE_LIMIT)));
            }
            let table = lock(&puppet.resolver.inner.table);
            assert_eq!(table.threads, MAX_LOOKUPS);
            assert!(table.waiting.len() <= names.len(), "{}", table.waiting.len());
        }
        for _ in &names {
            puppet.answer.send(Ok(vec![ip(1)])).unwrap();
        }
        for name in &names {
            rest(&puppet.resolver, name).await;
        }
        assert_eq!(puppet.asked.load(Ordering::SeqCst), names.len());
    }

    #[tokio::test]
    async fn a_panic_in_a_look_up_is_a_failed_look_up() {
        let resolver = Resolver::new(|_| panic!("planted"));
        for _ in 0..2 {
            assert!(matches!(resolver.resolve("x", 1).await, Err(Unresolved::Failed(_))));
        }
    }
}
