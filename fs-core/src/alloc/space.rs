//! How much space there is, and for whom.
//!
//! Two counts, in blocks: `free` is what the bitmaps say (blocks freed by a transaction that has
//! not committed included, as on disk); `unclaimed` is `free` less what is promised to delayed
//! allocation and what operations under way have claimed. Invariant: a block is taken from the
//! bitmaps only under a claim, so `unclaimed` never exceeds what can still be promised.
//!
//! Two parts at the bottom are not for everybody: the blocks reserved for root
//! (`s_r_blocks_count`), and a small pool from which extent-tree blocks of delayed data are taken
//! when nothing else is left; the kernel keeps the same (2 %, at most 4096 clusters, with
//! extents only).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// How deep a claim may reach.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Depth {
    /// Leaves root's blocks and the pool alone.
    Ordinary,
    /// Leaves the pool alone.
    Privileged,
    /// May take the last block: metadata without which data already accepted could not be mapped.
    Pool,
}

/// The counts of a volume.
#[derive(Debug)]
pub struct Space {
    free: AtomicI64,
    unclaimed: AtomicI64,
    promised: AtomicI64,
    for_root: AtomicU64,
    pool: u64,
}

impl Depth {
    /// The depth of a caller who may (`privileged`) or may not use root's blocks.
    #[must_use]
    pub fn of(privileged: bool) -> Depth {
        if privileged { Depth::Privileged } else { Depth::Ordinary }
    }
}

impl Space {
    /// `free` free blocks, of which `for_root` are root's and `pool` for metadata.
    #[must_use]
    pub fn new(free: u64, for_root: u64, pool: u64) -> Arc<Space> {
        let free = i64::try_from(free).unwrap_or(i64::MAX);
        Arc::new(Space {
            free: AtomicI64::new(free),
            unclaimed: AtomicI64::new(free),
            promised: AtomicI64::new(0),
            for_root: AtomicU64::new(for_root),
            pool,
        })
    }

    /// Free blocks as the bitmaps have them.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed).max(0) as u64
    }

    /// Blocks promised to delayed allocation.
    #[must_use]
    pub fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed).max(0) as u64
    }

    /// Blocks that an ordinary caller never gets: root's and the pool.
    #[must_use]
    pub fn withheld(&self) -> u64 {
        self.for_root.load(Ordering::Relaxed) + self.pool
    }

    /// Promises `blocks` to delayed allocation.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the volume cannot keep the promise.
    pub fn reserve(self: &Arc<Self>, blocks: u64, depth: Depth) -> Result<Reservation> {
        if blocks > 0 && self.claim(blocks, blocks, depth) < blocks {
            return Err(Error::NoSpace);
        }
        self.promised.fetch_add(blocks as i64, Ordering::Relaxed);
        Ok(Reservation { space: self.clone(), blocks })
    }

    fn floor(&self, depth: Depth) -> u64 {
        match depth {
            Depth::Ordinary => self.withheld(),
            Depth::Privileged => self.pool,
            Depth::Pool => 0,
        }
    }

    /// Blocks that a claim could get now.
    #[must_use]
    pub fn available(&self, depth: Depth) -> u64 {
        let unclaimed = self.unclaimed.load(Ordering::Acquire);
        u64::try_from(unclaimed).unwrap_or(0).saturating_sub(self.floor(depth))
    }

    /// Claims up to `want` blocks, at least `least`: how many were claimed, or 0.
    pub fn claim(&self, want: u64, least: u64, depth: Depth) -> u64 {
        let floor = self.floor(depth);
        let mut got = 0;
        let taken = self.unclaimed.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |unclaimed| {
            let room = u64::try_from(unclaimed).unwrap_or(0).saturating_sub(floor);
            got = want.min(room);
            (got >= least && got > 0).then(|| unclaimed - got as i64)
        });
        if taken.is_ok() { got } else { 0 }
    }

    /// Gives a claim back that was not used.
    pub fn unclaim(&self, blocks: u64) {
        self.unclaimed.fetch_add(blocks as i64, Ordering::AcqRel);
    }

    /// Claimed blocks were taken from the bitmaps.
    pub fn taken(&self, blocks: u64) {
        self.free.fetch_sub(blocks as i64, Ordering::Relaxed);
    }

    /// Free blocks turned out to be out of reach: their group is damaged.
    pub fn lose(&self, blocks: u64) {
        self.unclaimed.fetch_sub(blocks as i64, Ordering::AcqRel);
    }

    /// Blocks were returned to the bitmaps.
    pub fn returned(&self, blocks: u64) {
        self.free.fetch_add(blocks as i64, Ordering::Relaxed);
        self.unclaim(blocks);
    }
}

/// Space promised to data that is not allocated yet. Dropping it gives back what is left.
#[derive(Debug)]
pub struct Reservation {
    space: Arc<Space>,
    blocks: u64,
}

impl Reservation {
    /// Blocks still promised.
    #[cfg(test)]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Takes over what `other` holds.
    pub fn absorb(&mut self, mut other: Reservation) {
        self.blocks += std::mem::take(&mut other.blocks);
    }

    /// Moves up to `blocks` of the promise into a reservation of its own.
    #[must_use]
    pub fn split(&mut self, blocks: u64) -> Reservation {
        let blocks = blocks.min(self.blocks);
        self.blocks -= blocks;
        Reservation { space: self.space.clone(), blocks }
    }

    /// Turns up to `want` promised blocks into a claim: how many.
    pub(super) fn redeem(&mut self, want: u64) -> u64 {
        let blocks = want.min(self.blocks);
        self.blocks -= blocks;
        self.space.promised.fetch_sub(blocks as i64, Ordering::Relaxed);
        blocks
    }

    /// Takes back a claim that [`Reservation::redeem`] made and nobody used.
    pub(super) fn refund(&mut self, blocks: u64) {
        self.blocks += blocks;
        self.space.promised.fetch_add(blocks as i64, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let left = self.redeem(self.blocks);
        self.space.unclaim(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_depth_has_its_floor() {
        let space = Space::new(100, 30, 10);
        assert_eq!(space.claim(100, 1, Depth::Ordinary), 60);
        assert_eq!(space.claim(1, 1, Depth::Ordinary), 0);
        assert_eq!(space.claim(31, 31, Depth::Privileged), 0);
        assert_eq!(space.claim(31, 1, Depth::Privileged), 30);
        assert_eq!(space.claim(20, 1, Depth::Pool), 10);
        assert_eq!(space.claim(1, 1, Depth::Pool), 0);
        assert_eq!(space.free(), 100);
    }

    #[test]
    fn a_promise_is_kept_or_given_back() {
        let space = Space::new(50, 0, 0);
        let mut held = space.reserve(40, Depth::Ordinary).unwrap();
        assert!(space.reserve(11, Depth::Ordinary).is_err());
        assert_eq!(held.redeem(15), 15);
        space.taken(15);
        assert_eq!((space.free(), space.promised()), (35, 25));
        let part = held.split(20);
        drop(held);
        assert_eq!((space.promised(), part.blocks()), (20, 20));
        assert_eq!(space.claim(50, 1, Depth::Ordinary), 15);
        drop(part);
        assert_eq!((space.promised(), space.claim(50, 1, Depth::Ordinary)), (0, 20));
    }
}
