//! The state of a file's data between its writers and the disk: what is dirty, what is in flight,
//! what is on the device but not yet in the map. The flows through it are in `data`.
//!
//! One leaf lock guards all of it; nothing is taken under it, and no IO is done. Who waits for a
//! change (IO in flight, rank 40) waits on its condition variable and may hold the inode lock,
//! since no IO in flight needs that lock to end.

mod behind;
mod completed;
mod failures;
mod flight;
mod ranges;

use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicU64, Ordering};

pub use behind::{Behind, Put, Slice};
pub use completed::{Completed, IoEnd};
pub use failures::{ErrorCursor, Failures};
pub use flight::Flight;
pub use ranges::BlockSet;

use crate::alloc::Reservation;
use crate::locks::{Condvar, LockGuard, Rank, RankedMutex};

/// An earlier life of the inode in memory may have written anything up to now.
const UNKNOWN_WRITE: u64 = u64::MAX;

/// A file's data on the way. See the fields of [`Io`].
pub struct IoState {
    io: RankedMutex<Io>,
    changed: Condvar,
    block_size: u32,
    /// Blocks of `Io::delayed`, readable without the lock.
    reserved: AtomicU64,
    /// Number of the last data write that reached the device, in the volume's count of them, or
    /// [`UNKNOWN_WRITE`].
    last_write: AtomicU64,
}

/// What the lock of an [`IoState`] guards.
pub struct Io {
    /// Requests under way.
    pub flight: Flight,
    /// Dirty bytes.
    pub behind: Behind,
    /// Writes that wait for conversion.
    pub completed: Completed,
    /// Dirty blocks that have no place yet.
    pub delayed: BlockSet,
    /// The space that was promised to them.
    pub promised: Option<Reservation>,
    /// What fsync has to report.
    pub failures: Failures,
    /// Place in the volume's list of dirty files.
    pub dirty_ticket: Option<u64>,
    /// Place in the volume's list of files with completions.
    pub completed_ticket: Option<u64>,
    /// Whether the times in memory are newer than the record on disk.
    pub times_dirty: bool,
    /// Open file descriptions that may write.
    pub writers: u32,
    /// Whether the file was cut to nothing: what is written then is flushed at close.
    pub rewritten: bool,
}

/// The lock of an [`IoState`], held.
pub struct IoGuard<'a> {
    state: &'a IoState,
    io: LockGuard<'a, Io>,
}

impl IoState {
    /// The state of a file without dirty data; `had_a_life` if it may have been in memory before.
    #[must_use]
    pub fn new(block_size: u32, had_a_life: bool) -> IoState {
        IoState {
            io: RankedMutex::new(
                Rank::Leaf,
                Io {
                    flight: Flight::default(),
                    behind: Behind::new(block_size),
                    completed: Completed::default(),
                    delayed: BlockSet::default(),
                    promised: None,
                    failures: Failures::default(),
                    dirty_ticket: None,
                    completed_ticket: None,
                    times_dirty: false,
                    writers: 0,
                    rewritten: false,
                },
            ),
            changed: Condvar::default(),
            block_size,
            reserved: AtomicU64::new(0),
            last_write: AtomicU64::new(if had_a_life { UNKNOWN_WRITE } else { 0 }),
        }
    }

    /// Takes the lock.
    pub fn lock(&self) -> IoGuard<'_> {
        IoGuard { state: self, io: self.io.lock() }
    }

    /// A data write has reached the device and got this number.
    pub fn wrote(&self, number: u64) {
        self.last_write.fetch_max(number, Ordering::AcqRel);
    }

    /// The number that a flush has to cover so that every data write of this file is durable.
    /// `newest` gives the number of the volume's last write.
    pub fn last_write(&self, newest: impl FnOnce() -> u64) -> u64 {
        let unknown = UNKNOWN_WRITE;
        // Zero first: a write that ends meanwhile is either among `newest` or counted here.
        if self.last_write.compare_exchange(unknown, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.wrote(newest());
        }
        self.last_write.load(Ordering::Acquire)
    }

    /// Space reserved for dirty data that has no place yet, in 512-byte units.
    #[must_use]
    pub fn reserved_sectors(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed) * u64::from(self.block_size / 512)
    }
}

impl IoGuard<'_> {
    /// Waits until something has changed.
    pub fn wait(&mut self) {
        self.state.changed.wait(&mut self.io);
    }

    /// Wakes those who wait.
    pub fn changed(&self) {
        self.state.changed.notify_all();
    }
}

impl Io {
    /// Gives the promise of the blocks of `range` back: they got a place, or are dropped.
    pub fn release_promise(&mut self, range: Range<u64>) {
        let blocks = self.delayed.remove(range);
        if let Some(promised) = &mut self.promised {
            drop(promised.split(blocks));
        }
    }

    /// Whether nothing has to be written out.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.behind.is_clean() && !self.times_dirty
    }
}

impl Deref for IoGuard<'_> {
    type Target = Io;
    fn deref(&self) -> &Io {
        &self.io
    }
}

impl DerefMut for IoGuard<'_> {
    fn deref_mut(&mut self) -> &mut Io {
        &mut self.io
    }
}

impl Drop for IoGuard<'_> {
    fn drop(&mut self) {
        self.state.reserved.store(self.io.delayed.len(), Ordering::Relaxed);
    }
}
