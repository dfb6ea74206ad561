//! Sees to it that the host gives out tickets under our keys, whatever else puts keys there.
//!
//! Traffic Server has no way to say whose ticket keys it holds. It replaces ours where
//! `proxy.config.ssl.server.ticket_key.filename` is set: when that record changes, and when it
//! reloads its configuration; and any other plugin may do so as well. So the keys are given to it
//! again, every now and then, and at each look while that record is set; where they stand there
//! already no handshake notices. Invariants: whatever replaced the keys is undone at the first look
//! after [`REINSTALL_EVERY`], and at the next look while the record is set; there is no timer here: who looks
//! at the metrics, every [`LOOK`](super::stats::LOOK), looks at this as well.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How often the keys are given to the host again.
pub const REINSTALL_EVERY: Duration = Duration::from_secs(30);

/// Has the installer give the latest set to the host again, though it stands there by all that is
/// known. Asking many times before it does so is asking twice at most.
#[derive(Clone, Debug, Default)]
pub struct Reinstall(Arc<Notify>);

impl Reinstall {
    /// Asks for it.
    pub fn ask(&self) {
        self.0.notify_one();
    }

    /// Waits until it is asked for; for the installer.
    pub async fn asked(&self) {
        self.0.notified().await;
    }
}

/// When the keys are due to be given to the host again.
#[derive(Debug)]
pub struct Guard {
    last: Instant,
    /// The host's own file of ticket keys, as of the last look.
    file: Option<String>,
}

/// From now on.
impl Default for Guard {
    fn default() -> Guard {
        Guard { last: Instant::now(), file: None }
    }
}

impl Guard {
    /// Whether they are due, the host's file being `file` now.
    pub fn is_due(&mut self, file: Option<String>, now: Instant) -> bool {
        let changed = file != self.file;
        let due = changed || file.is_some() || now.duration_since(self.last) >= REINSTALL_EVERY;
        self.file = file;
        if due {
            self.last = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keys_are_due_now_and_then_and_soon_where_the_host_has_a_file() {
        let mut guard = Guard::default();
        let begin = Instant::now();
        let mut due = |file: Option<&str>, s: u64| {
            guard.is_due(file.map(str::to_owned), begin + Duration::from_secs(s))
        };
        assert_eq!((0..=60).filter(|s| due(None, *s)).collect::<Vec<_>>(), [30, 60]);
        assert!((61..=75).all(|s| due(Some("f"), s)));
        // The host still has that file's keys.
        assert_eq!((76..=110).filter(|s| due(None, *s)).collect::<Vec<_>>(), [76, 106]);
    }
}
