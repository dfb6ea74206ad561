//! Steps on a person's screen: a spinner on a terminal, plain lines anywhere else.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(100);

/// Counts the steps of something that takes a while.
#[derive(Debug)]
pub struct Progress {
    total: usize,
    current: usize,
    terminal: bool,
    started: Instant,
}

/// The spinner of one step; it stops when dropped.
struct Spinner {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins, with `total` steps to come.
    pub fn new(total: usize) -> Self {
        let terminal = io::stdout().is_terminal();
        Self { total, current: 0, terminal, started: Instant::now() }
    }

    /// Does one step. `work` returns what is to be shown of it.
    ///
    /// # Errors
    /// Those of `work`, after the step is shown as failed.
    pub fn step<E>(
        &mut self,
        title: &str,
        work: impl FnOnce() -> Result<String, E>,
    ) -> Result<(), E> {
        self.current += 1;
        let head = format!("[{}/{}] {title}", self.current, self.total);
        let began = Instant::now();
        let outcome = if self.terminal {
            let _spinner = Spinner::start(&head);
            work()
        } else {
            println!("{head} ...");
            work()
        };
        let word = match (&outcome, self.terminal) {
            (Ok(_), true) => "\x1b[32mok\x1b[0m",
            (Err(_), true) => "\x1b[31mFAILED\x1b[0m",
            (Ok(_), false) => "ok",
            (Err(_), false) => "FAILED",
        };
        println!("{head}: {word} ({:.1} s)", began.elapsed().as_secs_f64());
        let shown = outcome?;
        shown.lines().for_each(|line| println!("    {line}"));
        Ok(())
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Spinner {
    fn start(head: &str) -> Self {
        let (over, head) = (Arc::new(AtomicBool::new(false)), head.to_owned());
        let theirs = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let began = Instant::now();
            for face in ["|", "/", "-", "\\"].iter().cycle() {
                if theirs.load(Ordering::Relaxed) {
                    return;
                }
                print!("\r\x1b[2K{face} {head} {} s", began.elapsed().as_secs());
                // A closed terminal must not end the work.
                let _ = io::stdout().flush();
                thread::park_timeout(TURN);
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        print!("\r\x1b[2K");
    }
}
