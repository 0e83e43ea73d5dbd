//! Giving a range of a file blocks, or taking them away.
//!
//! All of it runs under the exclusive inode lock, with no IO of the file under way and nothing on
//! its completed list. Blocks that are zeroed in part get their zeros through write-behind. Each
//! mode works in steps, one handle each; what a crash interrupts is left half done, as on the
//! kernel's ext4, and true at every point.

use std::ops::Range;
use std::sync::Arc;

use ext4_format::FileBlock;
use ext4_format::inode::flag;
use jbd2::Credits;

use crate::alloc::Depth;
use crate::data::{By, Place, wait_clear};
use crate::error::{Error, Posix, Result};
use crate::extent::{self, AllocHow, Progress};
use crate::fs::Filesystem;
use crate::inode::{Core, Inode};
use crate::node::OpenFile;
use crate::tx::{self, Tx};
use crate::types::Credentials;

/// What to do with a range (`fallocate(2)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FallocateMode {
    /// Give every hole blocks; they read as zeros.
    Allocate {
        /// Do not let the file grow.
        keep_size: bool,
    },
    /// Take the blocks away; the range reads as zeros.
    PunchHole,
    /// Make the range read as zeros and have blocks.
    ZeroRange {
        /// Do not let the file grow.
        keep_size: bool,
    },
    /// Remove the range; what follows moves to the front.
    Collapse,
    /// Insert a hole; what follows moves to the back.
    Insert,
}

impl FallocateMode {
    /// The mode as `fallocate(2)` takes it; `None` for combinations that have no meaning.
    #[must_use]
    pub fn from_bits(bits: i32) -> Option<FallocateMode> {
        use libc as c;
        let keep_size = bits & c::FALLOC_FL_KEEP_SIZE != 0;
        match bits & !c::FALLOC_FL_KEEP_SIZE {
            0 => Some(FallocateMode::Allocate { keep_size }),
            c::FALLOC_FL_PUNCH_HOLE if keep_size => Some(FallocateMode::PunchHole),
            c::FALLOC_FL_ZERO_RANGE => Some(FallocateMode::ZeroRange { keep_size }),
            c::FALLOC_FL_COLLAPSE_RANGE if !keep_size => Some(FallocateMode::Collapse),
            c::FALLOC_FL_INSERT_RANGE if !keep_size => Some(FallocateMode::Insert),
            _ => None,
        }
    }
}

impl OpenFile {
    /// Changes the allocation of the `len` bytes from `offset`.
    ///
    /// # Errors
    /// Those of [`OpenFile::fallocate_as`].
    pub fn fallocate(&self, offset: u64, len: u64, mode: FallocateMode) -> Result<()> {
        self.fallocate_as(&Credentials::root(), offset, len, mode)
    }

    /// The same by somebody else, who takes the file's privileges away ([`crate::Node::kill_privileges`]) and may not
    /// take the blocks that are set aside.
    ///
    /// # Errors
    /// `BadHandle` when it was not opened for writing, `Invalid` for ranges that the mode does not take, `NotSupported` for what indirect maps
    /// cannot do, `FileTooBig`, `NoSpace`, `NotPermitted` by inode flags.
    pub fn fallocate_as(
        &self,
        caller: &Credentials,
        offset: u64,
        len: u64,
        mode: FallocateMode,
    ) -> Result<()> {
        let fs = self.filesystem();
        fs.vol.writable()?;
        self.expect_writable()?;
        let end = offset.checked_add(len).filter(|_| len > 0).ok_or(Posix::Invalid)?;
        fs.may_fallocate(self.inode(), end, mode)?;
        self.kill_privileges_by(caller)?;
        fs.change_allocation(self.inode(), offset, end, mode, fs.depth(caller))
    }
}

impl Filesystem {
    fn change_allocation(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        end: u64,
        mode: FallocateMode,
        depth: Depth,
    ) -> Result<()> {
        // Moved blocks must not have newer data in memory. The kernel keeps writers out meanwhile;
        // another one is met again by the look under the lock.
        loop {
            if matches!(mode, FallocateMode::Collapse | FallocateMode::Insert) {
                self.data.flush(inode, 0..u64::MAX)?;
            }
            let _lock = inode.lock.write();
            wait_clear(inode, &(0..u64::MAX));
            let dirty = !inode.io.lock().behind.is_empty();
            if dirty && matches!(mode, FallocateMode::Collapse | FallocateMode::Insert) {
                continue;
            }
            self.may_fallocate(inode, end, mode)?;
            return match mode {
                FallocateMode::Allocate { keep_size } => {
                    let bs = u64::from(self.vol.block_size());
                    self.data.convert(inode, By::Fsync)?;
                    self.grow_to(inode, end, keep_size)?;
                    self.allocate_range(inode, offset / bs..end.div_ceil(bs), end, keep_size, depth)
                }
                FallocateMode::PunchHole => self.punch(inode, offset, end),
                FallocateMode::ZeroRange { keep_size } => {
                    self.zero_range(inode, offset, end, keep_size, depth)
                }
                FallocateMode::Collapse => self.collapse(inode, offset, end),
                FallocateMode::Insert => self.insert_range(inode, offset, end - offset),
            };
        }
    }

    fn may_fallocate(&self, inode: &Inode, end: u64, mode: FallocateMode) -> Result<()> {
        let core = inode.core.read();
        let appends_only = core.disk.flags & flag::APPEND != 0;
        let harmless = matches!(mode, FallocateMode::Allocate { .. });
        if core.disk.flags & flag::IMMUTABLE != 0 || (appends_only && !harmless) {
            return Err(Posix::NotPermitted.into());
        }
        if !core.map.has_extents() && mode != FallocateMode::PunchHole {
            return Err(Posix::NotSupported.into());
        }
        if end > self.max_size(&core.map) && mode != FallocateMode::PunchHole {
            return Err(Posix::FileTooBig.into());
        }
        Ok(())
    }

    /// One handle's worth of a change: the inode is stored with it.
    fn step<T>(
        &self,
        inode: &Arc<Inode>,
        credits: Credits,
        change: impl FnOnce(&Tx<'_>, &mut Core) -> Result<T>,
    ) -> Result<T> {
        let tx = tx::start(&self.vol.journal, credits)?;
        let mut core = inode.core.write();
        let outcome = change(&tx, &mut core);
        core.datasync_tid = Some(tx.tid());
        self.inodes.store(&tx, inode, &mut core)?;
        drop(core);
        tx.finish()?;
        outcome
    }

    fn touch_now(&self, core: &mut Core) {
        let now = self.vol.now();
        core.disk.mtime = now;
        core.disk.ctime = now;
    }

    /// Prepares a file that is about to end at `end` bytes or later for it.
    fn grow_to(&self, inode: &Arc<Inode>, end: u64, keep_size: bool) -> Result<()> {
        let size = inode.core.read().size;
        if keep_size || end <= size {
            return Ok(());
        }
        self.data.zero_tail(inode, size)
    }

    /// Gives every hole of `blocks` unwritten blocks; the size follows, up to `end` bytes.
    fn allocate_range(
        &self,
        inode: &Arc<Inode>,
        blocks: Range<u64>,
        end: u64,
        keep_size: bool,
        depth: Depth,
    ) -> Result<()> {
        let bs = u64::from(self.vol.block_size());
        let mut at = blocks.start;
        let mut retry = self.alloc.retry();
        while at < blocks.end {
            let credits = 1 + extent::allocate_credits(&inode.core.read().map, 4);
            let per_run = extent::allocate_credits(&inode.core.read().map, 1);
            let outcome = self.step(inode, Credits::blocks(credits), |tx, core| {
                let ctx = self.map_ctx(inode);
                let mut allocated = Ok(());
                while at < blocks.end && tx.left().blocks > per_run {
                    let max = u32::try_from(blocks.end - at).unwrap_or(u32::MAX);
                    let (place, len) = self.data.find(inode, core, at, max.into())?;
                    if place != Place::Hole {
                        at += len;
                        continue;
                    }
                    let how = AllocHow { unwritten: true, depth, reserved: None };
                    match extent::allocate(&ctx, tx, &mut core.map, FileBlock(at as u32), len as u32, how) {
                        Ok(got) => at += u64::from(got.len),
                        Err(error) => {
                            allocated = Err(error);
                            break;
                        }
                    }
                }
                let reached = end.min(at * bs);
                if !keep_size && reached > core.size {
                    core.size = reached;
                    core.disk.size = reached;
                }
                self.touch_now(core);
                allocated
            });
            if matches!(outcome, Err(Error::NoSpace)) {
                // What they free waits for the commit.
                self.wait_for_reclaim();
            }
            match outcome {
                Err(Error::NoSpace) if self.alloc.should_retry(&mut retry)? => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// Zeros the parts of blocks at both ends of a range, and gives the whole blocks between.
    fn zero_edges(&self, inode: &Arc<Inode>, offset: u64, end: u64) -> Result<Range<u64>> {
        let bs = u64::from(self.vol.block_size());
        let (first, last) = (offset.div_ceil(bs), end / bs);
        if first > last {
            self.data.zero_bytes(inode, offset, end)?;
            return Ok(first..first);
        }
        self.data.zero_bytes(inode, offset, first * bs)?;
        self.data.zero_bytes(inode, last * bs, end)?;
        Ok(first..last)
    }

    /// Drops what is in memory of whole blocks that lose their content.
    fn drop_content(&self, inode: &Arc<Inode>, blocks: Range<u64>) -> Result<()> {
        self.data.drop_dirty(inode, blocks.clone());
        self.data.drop_completed(inode, blocks.clone());
        self.data.convert(inode, By::Fsync)?;
        // The size that the dropped data would have brought to the disk comes without them.
        let reached = |core: &Core| core.size.min(blocks.end * u64::from(self.vol.block_size()));
        let core = inode.core.read();
        let behind = core.disk.size < reached(&core);
        drop(core);
        if !behind {
            return Ok(());
        }
        self.step(inode, Credits::blocks(1), |_, core| {
            core.disk.size = core.disk.size.max(reached(core));
            Ok(())
        })
    }

    fn punch(&self, inode: &Arc<Inode>, offset: u64, end: u64) -> Result<()> {
        let bs = u64::from(self.vol.block_size());
        let size = inode.core.read().size;
        if offset >= size {
            return Ok(());
        }
        // A hole that reaches the end takes the whole last block.
        let end = if end >= size { size.next_multiple_of(bs) } else { end };
        let blocks = self.zero_edges(inode, offset, end)?;
        self.drop_content(inode, blocks.clone())?;
        self.step(inode, Credits::blocks(1), |_, core| {
            self.touch_now(core);
            Ok(())
        })?;
        self.data.free_range(inode, blocks)
    }

    fn zero_range(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        end: u64,
        keep_size: bool,
        depth: Depth,
    ) -> Result<()> {
        let bs = u64::from(self.vol.block_size());
        self.grow_to(inode, end, keep_size)?;
        let blocks = self.zero_edges(inode, offset, end)?;
        self.drop_content(inode, blocks.clone())?;
        // Blocks first, so that the lack of them leaves the content as it was.
        self.allocate_range(inode, offset / bs..end.div_ceil(bs), end, keep_size, depth)?;
        let mut at = blocks.start;
        while at < blocks.end {
            let credits = extent::cut_and_convert_credits(&inode.core.read().map);
            at = self.step(inode, credits, |tx, core| {
                self.touch_now(core);
                extent::convert(&self.map_ctx(inode), tx, &mut core.map, at..blocks.end, false)
            })?;
        }
        Ok(())
    }

    /// Checks the range of a collapse or an insert: whole blocks. Gives the size.
    fn whole_blocks(&self, inode: &Inode, offset: u64, len: u64) -> Result<u64> {
        let bs = u64::from(self.vol.block_size());
        if !offset.is_multiple_of(bs) || !len.is_multiple_of(bs) {
            return Err(Posix::Invalid.into());
        }
        Ok(inode.core.read().size)
    }

    fn collapse(&self, inode: &Arc<Inode>, offset: u64, end: u64) -> Result<()> {
        let bs = u64::from(self.vol.block_size());
        let size = self.whole_blocks(inode, offset, end - offset)?;
        if end >= size {
            return Err(Posix::Invalid.into());
        }
        self.data.convert(inode, By::Fsync)?;
        self.data.free_range(inode, offset / bs..end / bs)?;
        let by = i64::try_from((end - offset) / bs).map_err(|_| Posix::FileTooBig)?;
        self.shift(inode, end / bs, -by)?;
        self.step(inode, Credits::blocks(1), |_, core| {
            core.size = size - (end - offset);
            core.disk.size = core.size;
            self.touch_now(core);
            Ok(())
        })?;
        self.settle_shift(inode)
    }

    fn insert_range(&self, inode: &Arc<Inode>, offset: u64, len: u64) -> Result<()> {
        let bs = u64::from(self.vol.block_size());
        let size = self.whole_blocks(inode, offset, len)?;
        if offset >= size {
            return Err(Posix::Invalid.into());
        }
        if size.checked_add(len).is_none_or(|new| new > self.max_size(&inode.core.read().map)) {
            return Err(Posix::FileTooBig.into());
        }
        self.data.convert(inode, By::Fsync)?;
        // The size first: what has moved must not lie beyond the end after a crash.
        self.step(inode, Credits::blocks(1), |_, core| {
            core.size = size + len;
            core.disk.size = core.size;
            self.touch_now(core);
            Ok(())
        })?;
        let by = i64::try_from(len / bs).map_err(|_| Posix::FileTooBig)?;
        self.shift(inode, offset / bs, by)?;
        self.settle_shift(inode)
    }

    /// Commits a shift: a later write goes straight to blocks that the disk, until then, shows at
    /// another place of the file.
    fn settle_shift(&self, inode: &Inode) -> Result<()> {
        let tid = inode.core.read().sync_tid;
        tid.map_or(Ok(()), |tid| Ok(self.vol.journal.commit(tid)?))
    }

    fn shift(&self, inode: &Arc<Inode>, from: u64, by: i64) -> Result<()> {
        let mut cursor = None;
        loop {
            let credits = extent::shift_credits(&inode.core.read().map);
            let progress = self.step(inode, Credits::blocks(credits), |tx, core| {
                extent::shift(&self.map_ctx(inode), tx, &mut core.map, from, by, &mut cursor)
            })?;
            if progress == Progress::Done {
                return Ok(());
            }
        }
    }
}
