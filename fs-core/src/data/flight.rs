//! Guards of IO in flight. A write begins with the inode lock held shared and outlives it: the
//! device request runs without any lock, and whoever frees blocks waits for the guard instead.
//! Nothing that a guard's holder does until its end needs the inode lock.

use std::ops::Range;

use crate::inode::{Inode, IoGuard};
use crate::locks::{Held, Rank, hold};

/// A write of some blocks on its way. While it lives no other write of these blocks begins, and
/// neither they nor their map entries are taken away. Rank 40.
pub struct Writing<'a> {
    inode: &'a Inode,
    blocks: Range<u64>,
    ended: bool,
    _held: Held,
}

impl<'a> Writing<'a> {
    /// Begins a write of the blocks that `choose` names, once those that overlap have ended.
    /// `choose` is asked again after every wait; with `None` nothing begins.
    pub fn begin(
        inode: &'a Inode,
        choose: impl Fn(&IoGuard<'_>) -> Option<Range<u64>>,
    ) -> Option<(Writing<'a>, IoGuard<'a>)> {
        let held = hold(Rank::DirectIo, u64::from(inode.ino.get()));
        let mut io = inode.io.lock();
        loop {
            let blocks = choose(&io)?;
            if io.flight.begin_write(blocks.clone()) {
                return Some((Writing { inode, blocks, ended: false, _held: held }, io));
            }
            io.wait();
        }
    }

    /// The blocks being written.
    pub fn blocks(&self) -> Range<u64> {
        self.blocks.clone()
    }

    /// Ends the write in the critical section that publishes its outcome.
    pub fn end(mut self, io: &mut IoGuard<'_>) {
        io.flight.end_write(&self.blocks);
        io.changed();
        self.ended = true;
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let mut io = self.inode.io.lock();
            io.flight.end_write(&self.blocks);
            io.changed();
        }
    }
}

/// A read on its way: no block of the file is freed while it lives.
pub struct Reading<'a> {
    inode: &'a Inode,
}

impl<'a> Reading<'a> {
    /// Begins a read in the critical section that looks at the write-behind.
    pub fn begin(inode: &'a Inode, io: &mut IoGuard<'_>) -> Reading<'a> {
        io.flight.begin_read();
        Reading { inode }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut io = self.inode.io.lock();
        io.flight.end_read();
        io.changed();
    }
}

/// Waits until no read of the file is under way and no write of its `blocks`. The caller holds the
/// inode lock exclusively, so none begins meanwhile.
pub fn wait_clear(inode: &Inode, blocks: &Range<u64>) {
    let _held = hold(Rank::DirectIo, u64::from(inode.ino.get()));
    let mut io = inode.io.lock();
    while !io.flight.is_clear(blocks) {
        io.wait();
    }
}
