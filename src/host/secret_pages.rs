//! Memory for key bytes: pages of our own that a core dump leaves out (`MADV_DONTDUMP`) and that
//! are never swapped (`mlock`), cut into cells for [`crate::core::stek`].
//!
//! Does not decide what a failure of the kernel to protect a page means: [`protection`] tells, the
//! caller warns once, and keys live on in pages as they are. Invariants: a cell is erased
//! before anyone else can get it; a page with cells is never unmapped; what is taken from the
//! kernel is bounded, and beyond the bound a cell is plain heap memory, erased on drop all the
//! same.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize;

use crate::core::stek::{SecretCell, Stek, STEK_LEN};

/// Bytes of one mapping. Where pages are larger the kernel rounds up.
const PAGE: usize = 4096;

/// Cells in one page: 85, so that a `u128` has a bit for each.
const CELLS: usize = PAGE / STEK_LEN;

const _: () = assert!(CELLS <= u128::BITS as usize);

/// Pages for cells at most: room for 1360 keys, a hundred times what a server holds, in 64 KiB, which
/// is the least that Linux allows a process to lock by default.
const MAX_PAGES: usize = 16;

/// Keys that go to the host in one call at most: the upper end of `ticket_keys`.
pub const MAX_SET: usize = 16;

const _: () = assert!(MAX_SET <= CELLS);

static POOL: Pool = Pool::new();

/// A zeroed cell; fit for [`crate::core::stek::use_cells`].
pub fn cell() -> Box<dyn SecretCell> {
    POOL.cell()
}

/// How well the pages that are in use now are protected.
pub fn protection() -> Protection {
    POOL.protection()
}

/// What the kernel granted to the pages of keys. The numbers are `errno` values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Why a page could not be had at all; its keys are on the heap.
    pub unmapped: Option<i32>,
    /// Why a page may be swapped out.
    pub unlocked: Option<i32>,
    /// Why a page would be part of a core dump.
    pub dumped: Option<i32>,
}

impl Protection {
    /// Whether nothing was refused.
    pub fn is_full(&self) -> bool {
        *self == Protection::default()
    }
}

/// One line for the operator: what is missing, and the remedy.
impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = |errno| io::Error::from_raw_os_error(errno);
        let mut lacks = Vec::new();
        if let Some(errno) = self.unmapped {
            lacks.push(format!("are on the heap, without pages of their own ({})", why(errno)));
        }
        if let Some(errno) = self.unlocked {
            lacks.push(format!("may be written to swap (mlock: {})", why(errno)));
        }
        if let Some(errno) = self.dumped {
            lacks.push(format!("would be part of a core dump (madvise: {})", why(errno)));
        }
        if lacks.is_empty() {
            return f.write_str("ticket keys are locked in memory and left out of core dumps");
        }
        write!(
            f,
            "ticket keys {}; allow the process to lock {} KiB (LimitMEMLOCK, ulimit -l)",
            lacks.join(" and "),
            MAX_PAGES * PAGE / 1024
        )
    }
}

/// Where the bytes of a whole set are put side by side for the host, and erased right after.
pub struct SetBuffer(Place);

enum Place {
    Page(Page),
    Heap(Box<[u8; PAGE]>),
}

/// A buffer in a page of its own, or on the heap if the kernel gives none.
impl Default for SetBuffer {
    fn default() -> SetBuffer {
        SetBuffer(match Page::map() {
            Ok(page) => Place::Page(page),
            Err(_) => Place::Heap(Box::new([0; PAGE])),
        })
    }
}

impl SetBuffer {
    /// Calls `give` with the bytes of `keys`, at most [`MAX_SET`] of them, in their order. They
    /// are erased when it returns or panics.
    pub fn with<R>(&mut self, keys: &[Stek], give: impl FnOnce(&[u8]) -> R) -> R {
        struct Erased<'a>(&'a mut [u8]);

        impl Drop for Erased<'_> {
            fn drop(&mut self) {
                self.0.zeroize();
            }
        }

        let all: &mut [u8] = match &mut self.0 {
            Place::Page(page) => page.bytes_mut(),
            Place::Heap(bytes) => bytes.as_mut_slice(),
        };
        let keys = keys.get(..MAX_SET).unwrap_or(keys);
        // In range: MAX_SET keys fit a page, as asserted above.
        let filled = Erased(&mut all[..keys.len() * STEK_LEN]);
        for (place, key) in filled.0.chunks_exact_mut(STEK_LEN).zip(keys) {
            place.copy_from_slice(key.expose());
        }
        give(filled.0)
    }
}

/// Pages and which of their cells are taken.
struct Pool(Mutex<Pages>);

struct Pages {
    slabs: Vec<Slab>,
    unmapped: Option<i32>,
}

struct Slab {
    page: Page,
    /// One bit for each cell that is taken.
    taken: u128,
}

impl Pool {
    const fn new() -> Pool {
        Pool(Mutex::new(Pages { slabs: Vec::new(), unmapped: None }))
    }

    fn cell(&'static self) -> Box<dyn SecretCell> {
        match self.slot() {
            Some(slot) => Box::new(slot),
            None => Box::new(HeapCell(Box::new([0; STEK_LEN]))),
        }
    }

    /// A free cell, in a new page if need be; `None` if there is none to be had.
    fn slot(&'static self) -> Option<Slot> {
        let mut pages = self.lock();
        if !pages.slabs.iter().any(Slab::has_room) {
            pages.grow();
        }
        let (slab, found) = pages.slabs.iter_mut().enumerate().find(|(_, s)| s.has_room())?;
        let index = found.taken.trailing_ones() as usize;
        found.taken |= 1 << index;
        // SAFETY: `has_room` says that index is below CELLS, so the cell lies inside the page.
        let start = unsafe { found.page.start.add(index * STEK_LEN) };
        Some(Slot { pool: self, slab, index, bytes: start.cast() })
    }

    fn protection(&self) -> Protection {
        let mut pages = self.lock();
        if pages.slabs.is_empty() {
            pages.grow();
        }
        let mut sum = Protection { unmapped: pages.unmapped, ..Protection::default() };
        for slab in &pages.slabs {
            sum.unlocked = sum.unlocked.or(slab.page.unlocked);
            sum.dumped = sum.dumped.or(slab.page.dumped);
        }
        sum
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        // Every change under this lock is one store, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn grow(&mut self) {
        if self.slabs.len() >= MAX_PAGES {
            return;
        }
        match Page::map() {
            Ok(page) => self.slabs.push(Slab { page, taken: 0 }),
            Err(errno) => self.unmapped = Some(errno),
        }
    }
}

impl Slab {
    fn has_room(&self) -> bool {
        (self.taken.trailing_ones() as usize) < CELLS
    }
}

/// One cell of a page.
struct Slot {
    pool: &'static Pool,
    slab: usize,
    index: usize,
    bytes: NonNull<[u8; STEK_LEN]>,
}

// SAFETY: a slot is the only owner of its cell, as a server would be: the pool's bit is set while it
// lives, and the page is never unmapped because the pool is static.
unsafe impl Send for Slot {}
// SAFETY: as above; through `&self` the bytes are only read.
unsafe impl Sync for Slot {}

impl SecretCell for Slot {
    fn bytes(&self) -> &[u8; STEK_LEN] {
        // SAFETY: the cell is mapped, initialised, and ours alone while the slot lives.
        unsafe { self.bytes.as_ref() }
    }

    fn bytes_mut(&mut self) -> &mut [u8; STEK_LEN] {
        // SAFETY: as in `bytes`, and `&mut self` rules out every other reference.
        unsafe { self.bytes.as_mut() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Erased before the bit is cleared: nobody can get a cell that still holds a key.
        self.bytes_mut().zeroize();
        if let Some(slab) = self.pool.lock().slabs.get_mut(self.slab) {
            slab.taken &= !(1 << self.index);
        }
    }
}

/// A cell where no page is to be had.
struct HeapCell(Box<[u8; STEK_LEN]>);

impl SecretCell for HeapCell {
    fn bytes(&self) -> &[u8; STEK_LEN] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8; STEK_LEN] {
        &mut self.0
    }
}

impl Drop for HeapCell {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// One private mapping of [`PAGE`] bytes.
struct Page {
    start: NonNull<u8>,
    unlocked: Option<i32>,
    dumped: Option<i32>,
}

// SAFETY: a mapping belongs to the process, not to a thread, and this is its only owner.
unsafe impl Send for Page {}

impl Page {
    /// Maps a zeroed page and protects it as far as the kernel lets us.
    ///
    /// # Errors
    /// `errno` if there is no page.
    fn map() -> Result<Page, i32> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing
        // that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(errno());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(libc::ENOMEM)?;
        // SAFETY: the range is the mapping just made; neither call changes its contents.
        let dumped = unsafe { libc::madvise(start.as_ptr().cast(), PAGE, libc::MADV_DONTDUMP) };
        let dumped = (dumped != 0).then(errno);
        // SAFETY: as above.
        let unlocked = unsafe { libc::mlock(start.as_ptr().cast(), PAGE) };
        let unlocked = (unlocked != 0).then(errno);
        Ok(Page { start, unlocked, dumped })
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is PAGE bytes, zeroed by the kernel, and `&mut self` is the only
        // way to it for a page that is not part of a pool.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), PAGE) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        // SAFETY: the mapping is ours, nothing refers to it any more, and it is unmapped once.
        // The answer is of no use: the range is right, so this cannot fail.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), PAGE) };
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A pool that no other test takes cells from.
    fn pool() -> &'static Pool {
        // Where a leak checker finds them: they are meant to stay.
        static POOLS: Mutex<Vec<&'static Pool>> = Mutex::new(Vec::new());
        let pool = Box::leak(Box::new(Pool::new()));
        POOLS.lock().unwrap().push(pool);
        pool
    }

    /// The bytes at `start`, after the slot that owned them is gone.
    fn peek(start: *const u8) -> Vec<u8> {
        // SAFETY: a leaked pool never unmaps its pages.
        (0..STEK_LEN).map(|i| unsafe { start.add(i).read_volatile() }).collect()
    }

    /// The flags of the mapping that holds `address`, from smaps.
    fn vm_flags(address: usize) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("Linux has smaps");
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            if let Some((Ok(from), Ok(to))) =
                range.map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16)))
            {
                inside = (from..to).contains(&address);
            } else if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("no mapping holds the address");
    }

    #[test]
    fn a_cell_is_erased_on_drop_and_used_again() {
        let pool = pool();
        let mut first = pool.slot().expect("a page");
        first.bytes_mut().fill(0xa5);
        let start = first.bytes().as_ptr();
        assert_eq!(peek(start), [0xa5; STEK_LEN]);
        drop(first);
        assert_eq!(peek(start), [0; STEK_LEN]);
        let second = pool.slot().expect("the same cell");
        assert_eq!(second.bytes().as_ptr(), start);
        assert_eq!(second.bytes(), &[0; STEK_LEN]);
    }

    #[test]
    fn cells_do_not_overlap() {
        let pool = pool();
        let mut slots: Vec<_> = (0..CELLS + 3).map(|_| pool.slot().expect("a cell")).collect();
        for (i, slot) in slots.iter_mut().enumerate() {
            slot.bytes_mut().fill(i as u8);
        }
        for (i, slot) in slots.iter().enumerate() {
            assert_eq!(slot.bytes(), &[i as u8; STEK_LEN]);
        }
        assert_eq!(pool.lock().slabs.len(), 2);
    }

    #[test]
    fn beyond_the_bound_a_cell_is_on_the_heap() {
        let pool = pool();
        let mut cells: Vec<_> = (0..MAX_PAGES * CELLS).map(|_| pool.cell()).collect();
        assert_eq!(pool.lock().slabs.len(), MAX_PAGES);
        assert!(pool.slot().is_none());
        let mut one_more = pool.cell();
        one_more.bytes_mut().fill(7);
        assert_eq!(one_more.bytes(), &[7; STEK_LEN]);
        cells.pop();
        assert!(pool.slot().is_some());
    }

    #[test]
    fn pages_are_left_out_of_core_dumps_and_locked() {
        let pool = pool();
        let slot = pool.slot().expect("a page");
        let flags = vm_flags(slot.bytes().as_ptr() as usize);
        assert!(flags.iter().any(|f| f == "dd"), "{flags:?}");
        // A sandbox may allow no locking at all; then the answer must say so.
        let locked = flags.iter().any(|f| f == "lo");
        assert_eq!(pool.protection().unlocked.is_none(), locked);
        assert_eq!(pool.protection().dumped, None);
    }

    #[test]
    fn threads_share_a_pool() {
        let pool = pool();
        let threads: Vec<_> = (1..=8_u8)
            .map(|mark| {
                std::thread::spawn(move || {
                    for _ in 0..500 {
                        let mut slot = pool.slot().expect("a cell");
                        assert_eq!(slot.bytes(), &[0; STEK_LEN]);
                        slot.bytes_mut().fill(mark);
                        assert_eq!(slot.bytes(), &[mark; STEK_LEN]);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no thread saw another's bytes");
        }
        assert_eq!(pool.lock().slabs.iter().map(|s| s.taken).max(), Some(0));
    }

    #[test]
    fn a_set_stands_in_order_and_is_erased_after_use() {
        let keys: Vec<_> =
            [1_u8, 2].iter().filter_map(|&b| Stek::copy_from(&[b; STEK_LEN])).collect();
        let mut buffer = SetBuffer::default();
        let start = buffer.with(&keys, |bytes| {
            assert_eq!(bytes.len(), 2 * STEK_LEN);
            assert!(bytes[..STEK_LEN].iter().all(|&b| b == 1));
            assert!(bytes[STEK_LEN..].iter().all(|&b| b == 2));
            bytes.as_ptr()
        });
        assert_eq!(peek(start), [0; STEK_LEN]);
        assert_eq!(peek(start.wrapping_add(STEK_LEN)), [0; STEK_LEN]);
    }

    #[test]
    fn a_set_is_never_longer_than_the_bound() {
        let key = Stek::copy_from(&[9; STEK_LEN]).expect("48 bytes");
        let keys = vec![key; MAX_SET + 4];
        let len = SetBuffer::default().with(&keys, <[u8]>::len);
        assert_eq!(len, MAX_SET * STEK_LEN);
    }

    #[test]
    fn what_the_kernel_refused_is_told_with_a_remedy() {
        let refused = Protection { unlocked: Some(libc::ENOMEM), ..Protection::default() };
        assert!(!refused.is_full());
        let line = refused.to_string();
        assert!(line.contains("swap") && line.contains("ulimit -l"), "{line}");
    }
}
