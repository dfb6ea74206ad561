//! What this server's `server_list_file` holds now, which need not be what was loaded from it.
//!
//! An operator puts a new list into the files of all servers and has one of them reload; the leader
//! asks the others for what their files hold. Invariants: a slow or hanging file system delays
//! nobody but who asked, and however many ask, the file is read seldom.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{watch, Mutex, Semaphore};
use tokio::time::{sleep_until, timeout, Instant};

use super::environment::ReadList;
use crate::core::config::Member;
use crate::core::server_list::{Digest, ServerList};
use crate::supervise::catch_panic;

/// How long one read may take: a file of at most a few hundred kilobytes, on a busy disk.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(1);

/// Between the beginnings of two reads. An operator who tries again is not kept waiting; a member
/// that asks without end costs ten reads a second.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// See the module's head.
pub(super) struct ListFile {
    read: ReadList,
    /// One read at a time, also where one outlives its limit.
    free: Arc<Semaphore>,
    latest: Mutex<Latest>,
}

/// The latest read.
#[derive(Default)]
struct Latest {
    /// When it began.
    begun: Option<Instant>,
    /// When the one began that gave `found`.
    answered: Option<Instant>,
    found: Option<Vec<Member>>,
}

impl ListFile {
    pub fn new(read: ReadList) -> ListFile {
        ListFile { read, free: Arc::new(Semaphore::new(1)), latest: Mutex::default() }
    }

    /// The list in the file, read after this was called; `None` if it could not be read in time.
    pub async fn read(&self) -> Option<Vec<Member>> {
        let came = Instant::now();
        // Whoever comes during a read waits for the next one, which serves all that wait.
        let mut latest = self.latest.lock().await;
        if latest.answered.is_some_and(|begun| begun > came) {
            return latest.found.clone();
        }
        if let Some(begun) = latest.begun {
            sleep_until(begun + READ_PAUSE).await;
        }
        let begun = Instant::now();
        latest.begun = Some(begun);
        latest.found = self.read_now().await;
        latest.answered = Some(begun);
        latest.found.clone()
    }

    /// Whether the file holds this very list now.
    pub async fn holds(&self, list: Digest) -> bool {
        let members = self.read().await.unwrap_or_default();
        ServerList::new(0, &members).is_ok_and(|file| file.digest() == list)
    }

    async fn read_now(&self) -> Option<Vec<Member>> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        let (tell, mut told) = watch::channel(None);
        let reading = (self.read)();
        tokio::spawn(async move {
            let found = catch_panic(reading).await.ok().flatten();
            tell.send_replace(Some(found));
            drop(permit);
        });
        let read = timeout(READ_LIMIT, told.wait_for(Option::is_some)).await.ok()?.ok()?;
        read.clone().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::core::server_id::ServerId;

    fn list(port: u16) -> Vec<Member> {
        vec![Member { id: ServerId(1), address: "a".to_owned(), port, subject: None, voter: true }]
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_anew_for_each_question_but_seldom() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counter = reads.clone();
        let file = Arc::new(ListFile::new(Arc::new(move || {
            let port = counter.fetch_add(1, Ordering::SeqCst) + 1;
            Box::pin(ready(Some(list(port as u16))))
        })));
        assert_eq!(file.read().await, Some(list(1)));
        let asked = Instant::now();
        assert_eq!(file.read().await, Some(list(2)), "what it held before is not what it holds");
        assert!(asked.elapsed() >= READ_PAUSE);
        // All that ask while a read is due are served by it.
        let many: Vec<_> = (0..50)
            .map(|_| {
                let file = file.clone();
                tokio::spawn(async move { file.read().await })
            })
            .collect();
        for one in many {
            assert!(one.await.unwrap().is_some());
        }
        assert!(reads.load(Ordering::SeqCst) <= 4, "{reads:?}");
        let digest = ServerList::new(7, &list(9)).unwrap().digest();
        assert!(!file.holds(digest).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_system_that_hangs_costs_one_read_and_nobodys_time() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counter = reads.clone();
        let file = ListFile::new(Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Box::pin(pending())
        }));
        for _ in 0..3 {
            let asked = Instant::now();
            assert_eq!(file.read().await, None);
            assert!(asked.elapsed() <= READ_LIMIT + READ_PAUSE);
        }
        assert_eq!(reads.load(Ordering::SeqCst), 1);
    }
}
