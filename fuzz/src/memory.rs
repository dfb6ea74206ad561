//! Counts what an execution allocates, so that a length that is merely claimed is found to cost
//! memory. Only Rust's allocations are seen; OpenSSL has its own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting per thread.
pub struct Counting;

thread_local! {
    /// Bytes that are allocated at present, more or less than at the start of the execution.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The most of them.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has no counters any more, and nothing to be counted either.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is handed on as it came to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        System.alloc(layout)
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        System.alloc_zeroed(layout)
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        System.dealloc(memory, layout);
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        System.realloc(memory, layout, size)
    }
}

/// Runs `work` and panics if it had more than `limit` bytes allocated at once.
pub fn bounded(limit: usize, work: impl FnOnce()) {
    LIVE.set(0);
    PEAK.set(0);
    work();
    let peak = PEAK.get();
    assert!(peak <= limit as isize, "{peak} bytes were allocated at once, more than {limit}");
}
