//! The plugin's metrics in Traffic Server: made once, set when something changed.
//!
//! Which there are and what they mean is for [`crate::metrics`]. Invariants:
//! - Each is made once in the life of the process, however often the plugin is named or reloaded.
//! - Nothing here waits. A value that is as it was costs the host nothing.
//! - A server that idles is looked at every [`LOOK`] and no more often; one where much happens, once
//!   in a [`REST`].

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::OnceCell;
use tokio::time::{sleep_until, Instant};

use super::ats::{self, Stat};
use super::guard::{Guard, Reinstall};
use super::host_environment::{self, EnvironmentWatch, HostEnvironment};
use super::{secret_pages, ticket_scope};
use crate::core::server_status::{Handshakes, Hint, HostStatus, ServerStatus};
use crate::log_sink::Log;
use crate::metrics::{INSTALLS, INSTALL_FAILURES, INSTALL_PENDING, METRICS, UP};
use crate::node::Node;
use crate::supervise::{fail_point, kept_alive};

/// How often ages are brought up to date. Traffic Server itself publishes metrics every 5 s.
pub const LOOK: Duration = Duration::from_secs(5);

/// How long the metrics rest after they were set, so that a flood of changes is no flood of work.
pub const REST: Duration = Duration::from_secs(1);

/// The plugin's numbers in the host's statistics. Cloning makes another handle.
#[derive(Clone, Debug)]
pub struct Stats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// One for each of [`METRICS`], in their order, and what it was set to last.
    stats: Vec<(Stat, AtomicI64)>,
    installs: AtomicU64,
    failures: AtomicU64,
    pending: AtomicBool,
    /// What the host had counted when it was looked at first: in 9.2 it may go on where it ended before
    /// its restart.
    begun: OnceCell<Handshakes>,
}

/// Makes the statistics. For TSPluginInit only.
impl Default for Stats {
    fn default() -> Stats {
        let stats = METRICS.iter().map(|metric| (Stat::new(metric.name), AtomicI64::new(0)));
        Stats(Arc::new(Inner {
            stats: stats.collect(),
            installs: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            pending: AtomicBool::new(false),
            begun: OnceCell::new(),
        }))
    }
}

impl Stats {
    /// Traffic Server took a set.
    pub fn installed(&self) {
        let installs = self.0.installs.fetch_add(1, Ordering::Relaxed) + 1;
        self.set_named(INSTALLS, i64::try_from(installs).unwrap_or(i64::MAX));
    }

    /// A set was refused; the answer is how many so far.
    pub fn failed(&self) -> u64 {
        let failures = self.0.failures.fetch_add(1, Ordering::Relaxed) + 1;
        self.set_named(INSTALL_FAILURES, i64::try_from(failures).unwrap_or(i64::MAX));
        failures
    }

    /// Whether a refused set waits to be tried again.
    pub fn set_pending(&self, pending: bool) {
        self.0.pending.store(pending, Ordering::Relaxed);
        self.set_named(INSTALL_PENDING, pending.into());
    }

    /// Sets that Traffic Server took.
    pub fn installs(&self) -> u64 {
        self.0.installs.load(Ordering::Relaxed)
    }

    /// Sets that were refused.
    pub fn failures(&self) -> u64 {
        self.0.failures.load(Ordering::Relaxed)
    }

    /// The plugin has ended.
    pub fn set_down(&self) {
        self.set_named(UP, 0);
    }

    /// What the host is like now, in these environment.
    pub fn host_status(&self, environment: &HostEnvironment) -> HostStatus {
        let mut hints = [&environment.records[..], &environment.files.hints].concat();
        let protection = secret_pages::protection();
        hints.extend(protection.unmapped.map(Hint::Unmapped));
        hints.extend(protection.unlocked.map(Hint::Unlocked));
        hints.extend(protection.dumped.map(Hint::Dumped));
        HostStatus {
            version: environment.version.clone(),
            installs: self.installs(),
            install_failures: self.failures(),
            install_pending: self.0.pending.load(Ordering::Relaxed),
            hints,
            warnings: environment.warnings.clone(),
            certificate_warning: environment.certificate_warning.clone(),
            roots: environment.roots.clone(),
            authorities: environment.files.authorities.clone(),
            client_policy: environment.files.client_policy.clone(),
            ticket_scope: Some(ticket_scope::in_effect()),
            handshakes: handshakes(ats::metric).map(|now| self.since_the_start(now)),
        }
    }

    fn since_the_start(&self, now: Handshakes) -> Handshakes {
        let begun = self.0.begun.get_or_init(|| now);
        Handshakes {
            done: now.done.saturating_sub(begun.done),
            given: now.given.saturating_sub(begun.given),
            opened: now.opened.saturating_sub(begun.opened),
            opened_by_older: now.opened_by_older.saturating_sub(begun.opened_by_older),
            unknown: now.unknown.saturating_sub(begun.unknown),
            by_id: now.by_id.saturating_sub(begun.by_id),
            any_resumed: now.any_resumed,
        }
    }

    /// Sets all of them to what this server says of itself.
    pub fn update(&self, status: &ServerStatus) {
        for (metric, entry) in METRICS.iter().zip(&self.0.stats).filter(|(m, _)| m.name != UP) {
            set(entry, metric.read(status));
        }
        // Whoever finds this one set finds the others set.
        self.set_named(UP, 1);
    }

    /// Keeps the metrics up to date until the task is aborted, and asks for the keys to be given to
    /// the host again when that is due.
    pub async fn keep(
        self,
        node: Arc<Node>,
        environment: EnvironmentWatch,
        reinstall: Reinstall,
        log: Log,
    ) {
        let all = (self, node, environment, reinstall);
        kept_alive(&log, "keeping the metrics", all, |(stats, node, environment, reinstall)| {
            Box::pin(stats.keep_on(node, environment, reinstall))
        })
        .await;
    }

    async fn keep_on(&self, node: &Node, environment: &EnvironmentWatch, reinstall: &Reinstall) {
        let mut guard = Guard::default();
        let look = || {
            fail_point("metrics");
            environment.look_at_records();
            if guard.is_due(host_environment::ticket_key_file(), Instant::now()) {
                reinstall.ask();
            }
            self.update(&node.status());
        };
        paced(look, || node.moved()).await;
    }

    fn set_named(&self, name: &str, value: i64) {
        let at = METRICS.iter().position(|metric| metric.name == name);
        if let Some(entry) = at.and_then(|at| self.0.stats.get(at)) {
            set(entry, value);
        }
    }
}

/// What the host has counted; `None` where it does not count handshakes.
fn handshakes(metric: impl Fn(&str) -> Option<i64>) -> Option<Handshakes> {
    let count = |name: &str| metric(&format!("proxy.process.ssl.{name}"));
    let or_none = |name: &str| count(name).and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
    count("total_success_handshake_count_in")?;
    Some(Handshakes {
        done: or_none("total_success_handshake_count_in"),
        given: or_none("total_tickets_created"),
        opened: or_none("total_tickets_verified"),
        opened_by_older: or_none("total_tickets_verified_old_key"),
        unknown: or_none("total_tickets_not_found"),
        by_id: or_none("ssl_session_cache_hit"),
        any_resumed: or_none("user_agent_session_hit") > 0,
    })
}

/// The host is only told what is new; a statistic begins with 0 there.
fn set((stat, last): &(Stat, AtomicI64), value: i64) {
    if last.swap(value, Ordering::Relaxed) != value {
        stat.set(value);
    }
}

/// Looks at once, soon after each move, and every now and then; for ever.
async fn paced<M: Future<Output = ()>>(mut look: impl FnMut(), moved: impl Fn() -> M) {
    loop {
        look();
        let now = Instant::now();
        tokio::select! {
            () = moved() => sleep_until(now + REST).await,
            () = sleep_until(now + LOOK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_idle_server_is_looked_at_seldom_and_a_lively_one_not_all_the_time() {
        const HOUR: Duration = Duration::from_secs(3600);
        let looks = AtomicU64::new(0);
        let look = || {
            looks.fetch_add(1, Ordering::Relaxed);
        };
        let looks_of_an_hour = || looks.swap(0, Ordering::Relaxed);
        let _ = timeout(HOUR, paced(look, std::future::pending)).await;
        let idle = looks_of_an_hour();
        assert!((720..=721).contains(&idle), "{idle}");
        let _ = timeout(HOUR, paced(look, || std::future::ready(()))).await;
        let lively = looks_of_an_hour();
        assert!((3600..=3601).contains(&lively), "{lively}");
        // One change after a while of rest is seen at once.
        let quiet = LOOK / 2;
        let _ = timeout(quiet * 3 / 2, paced(look, || tokio::time::sleep(quiet))).await;
        assert_eq!(looks_of_an_hour(), 2);
    }

    #[test]
    fn handshakes_are_those_since_the_start() {
        let counts = |add: i64| {
            move |name: &str| match name.strip_prefix("proxy.process.ssl.")? {
                "total_success_handshake_count_in" => Some(100 + 10 * add),
                "total_tickets_created" => Some(-1),
                "total_tickets_verified" => Some(50 + 3 * add),
                "total_tickets_not_found" => Some(7 * add),
                "user_agent_session_hit" => Some(add),
                _ => None,
            }
        };
        let stats = Stats::default();
        let since = |add| handshakes(counts(add)).map(|now| stats.since_the_start(now));
        assert_eq!(since(0), Some(Handshakes::default()));
        let later = since(2).unwrap_or_default();
        assert_eq!((later.done, later.opened, later.unknown, later.given), (20, 6, 14, 0));
        assert!(later.any_resumed);
        assert_eq!(handshakes(|_| None), None);
    }

    #[test]
    fn counts_of_installs_are_kept_with_and_without_a_host() {
        let stats = Stats::default();
        stats.installed();
        assert_eq!((stats.failed(), stats.failed()), (1, 2));
        stats.set_pending(true);
        let environment =
            HostEnvironment { version: Some("9".to_owned()), ..HostEnvironment::default() };
        let status = stats.clone().host_status(&environment);
        assert_eq!((status.installs, status.install_failures), (1, 2));
        assert!(status.install_pending);
        assert_eq!(status.version.as_deref(), Some("9"));
    }
}
