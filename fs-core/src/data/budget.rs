//! How much dirty data there may be. Writers beyond the bound write data out themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::locks::{Condvar, Rank, RankedMutex};

/// The bytes in write-behind, of all files together.
pub struct Budget {
    limit: u64,
    held: AtomicU64,
    lock: RankedMutex<()>,
    shrunk: Condvar,
}

impl Budget {
    /// A bound of `limit` bytes.
    pub fn new(limit: usize) -> Budget {
        Budget {
            limit: limit as u64,
            held: AtomicU64::new(0),
            // Taken while an inode's IO state is held, which is a leaf as well.
            lock: RankedMutex::keyed(Rank::Leaf, 1, ()),
            shrunk: Condvar::default(),
        }
    }

    /// Bytes held.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// A file's share went from `before` to `after`.
    pub fn moved(&self, before: u64, after: u64) {
        if after >= before {
            self.held.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.held.fetch_sub(before - after, Ordering::Relaxed);
            let _lock = self.lock.lock();
            self.shrunk.notify_all();
        }
    }

    /// Whether writers have to help.
    pub fn is_exceeded(&self) -> bool {
        self.held() > self.limit
    }

    /// Whether the background should write out more than what is old.
    pub fn is_half_used(&self) -> bool {
        self.held() > self.limit / 2
    }

    /// Waits until some data has been written out by another thread, for a moment at most.
    pub fn wait(&self) {
        let mut lock = self.lock.lock();
        if self.is_exceeded() {
            self.shrunk.wait_for(&mut lock, Duration::from_millis(20));
        }
    }
}
