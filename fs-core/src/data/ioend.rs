//! The end of a write: the completed list, and handle B, which makes it true on disk.
//!
//! A range is converted once, by whoever takes the inode's map lock first. The order
//! of events for readers: data on the device, then on the completed list, then converted.

use std::ops::Range;
use std::sync::Arc;

use ext4_format::BlockNo;
use jbd2::Credits;
use smallvec::SmallVec;

use super::DataPath;
use super::place::{Placed, file_block};
use crate::alloc::Run;
use crate::error::Result;
use crate::extent::{self, Progress};
use crate::inode::{Inode, IoEnd, IoGuard, orphan};
use crate::tx;

/// Files that may wait for conversion before writers have to help.
const MAX_FILES: usize = 256;

/// Ranges of one file that may.
const MAX_RANGES: usize = 256;

/// Ranges that one handle reserves log space for at most; with space left it takes more.
const BATCH: u32 = 8;

/// Who converts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// The conversion worker.
    Worker,
    /// Somebody who needs it done now: fsync, truncate and their like.
    Fsync,
    /// A writer, because the worker does not keep up.
    Writer,
}

impl DataPath {
    /// The data of `placed` have reached the device, or `outcome` says why not. `end` is the end
    /// of the data in bytes.
    pub(super) fn arrived(
        &self,
        inode: &Arc<Inode>,
        mut placed: Placed<'_>,
        end: u64,
        outcome: Result<()>,
    ) -> Result<()> {
        inode.io.wrote(self.durable.wrote());
        if let Some(tx) = placed.handle.take() {
            return self.settle_indirect(inode, placed, tx, end, outcome);
        }
        let fresh: SmallVec<[Range<u64>; 4]> =
            placed.runs.iter().filter(|run| run.fresh).map(|run| run.blocks.clone()).collect();
        let within = {
            let core = inode.core.read();
            end <= core.disk.size && end <= core.size
        };
        if fresh.is_empty() && (within || outcome.is_err()) {
            return outcome;
        }
        let mut core = inode.core.write();
        let mut io = inode.io.lock();
        if outcome.is_ok() {
            core.size = core.size.max(end);
            self.join(inode, &mut io, &fresh, end);
        }
        if placed.extending {
            io.completed.end_extending();
            if outcome.is_err() {
                io.completed.leave_overhang();
            }
        }
        outcome
    }

    /// Puts written ranges on the completed list and the inode on the worker's.
    pub(super) fn join(&self, inode: &Arc<Inode>, io: &mut IoGuard<'_>, fresh: &[Range<u64>], end: u64) {
        for blocks in fresh {
            self.counters.queued.add(1);
            if io.completed.join(&IoEnd { unwritten: blocks.clone(), end }) {
                self.counters.merged.add(1);
            }
        }
        if fresh.is_empty() {
            io.completed.join(&IoEnd { unwritten: 0..0, end });
        }
        if io.completed_ticket.is_none() {
            io.completed_ticket = Some(self.completed.add(inode, self.clock()));
            self.completed.ring();
        }
    }

    /// Takes the inode off the worker's list if it has nothing to convert.
    pub(super) fn unlist_converted(&self, io: &mut IoGuard<'_>) {
        if io.completed.is_empty()
            && let Some(ticket) = io.completed_ticket.take()
        {
            self.completed.remove(ticket);
        }
    }

    /// Ends the handle that took blocks for an indirect map: with the data in place they are
    /// mapped and the size may move, in the same transaction; without them they are given back.
    fn settle_indirect(
        &self,
        inode: &Arc<Inode>,
        placed: Placed<'_>,
        tx: tx::Tx<'_>,
        end: u64,
        outcome: Result<()>,
    ) -> Result<()> {
        let ctx = self.map_ctx(inode);
        let mut core = inode.core.write();
        let mut outcome = outcome;
        for run in placed.runs.iter().filter(|run| run.fresh) {
            let taken = Run { start: BlockNo(run.start), len: run.len() as u32 };
            if outcome.is_err() {
                self.alloc.free_blocks(&tx, taken.start, taken.len)?;
                continue;
            }
            let inserted = file_block(run.blocks.start)
                .and_then(|at| extent::insert(&ctx, &tx, &mut core.map, at, taken, false));
            outcome = inserted;
        }
        if outcome.is_ok() {
            core.disk.size = core.disk.size.max(end);
        }
        // Even a failed insertion may have made pointer blocks.
        core.datasync_tid = Some(tx.tid());
        self.inodes.store(&tx, inode, &mut core)?;
        drop(core);
        tx.finish()?;
        outcome
    }

    /// Converts all that is on the inode's completed list (handle B, several if need be), moves
    /// the size on disk and leaves the orphan list. The caller holds no handle.
    pub fn convert(&self, inode: &Arc<Inode>, by: By) -> Result<()> {
        loop {
            if inode.io.lock().completed.is_empty() {
                return Ok(());
            }
            self.convert_batch(inode, by)?;
        }
    }

    fn convert_batch(&self, inode: &Arc<Inode>, by: By) -> Result<()> {
        let ctx = self.map_ctx(inode);
        let pieces = (inode.io.lock().completed.blocks().pieces() as u32).clamp(1, BATCH);
        let step = extent::convert_credits(&inode.core.read().map);
        let credits = Credits { blocks: step.blocks * pieces, revokes: step.revokes * pieces };
        let tx = tx::start(&self.vol.journal, credits)?;
        let mut core = inode.core.write();
        loop {
            let Some(range) = inode.io.lock().completed.peek(u64::MAX) else { break };
            let upto = extent::convert(&ctx, &tx, &mut core.map, range.clone(), true)?;
            inode.io.lock().completed.remove(range.start..upto);
            // A commit may come before the next batch, and no written extent lies behind the size then.
            core.disk.size = core.disk.size.max((upto * self.block_size()).min(core.size));
            match by {
                By::Worker => self.counters.by_worker.add(1),
                By::Fsync => self.counters.by_fsync.add(1),
                By::Writer => self.counters.by_writer.add(1),
            }
            if upto < range.end {
                break;
            }
        }
        let leave = {
            let mut io = inode.io.lock();
            if let Some(end) = io.completed.take_size() {
                core.disk.size = core.disk.size.max(end.min(core.size));
            }
            self.unlist_converted(&mut io);
            io.times_dirty = false;
            self.unlist_clean(&mut io);
            io.completed.is_settled()
        };
        if leave && core.disk.links > 0 {
            self.orphans.remove(&tx, inode, &mut core)?;
        }
        core.datasync_tid = Some(tx.tid());
        self.inodes.store(&tx, inode, &mut core)?;
        drop(core);
        tx.finish()
    }

    /// Takes blocks that are about to be freed off the completed list. The caller holds the inode
    /// lock exclusively and has waited for writes under way.
    pub fn drop_completed(&self, inode: &Inode, blocks: Range<u64>) {
        let mut io = inode.io.lock();
        io.completed.remove(blocks);
        self.unlist_converted(&mut io);
    }

    /// Frees the blocks of `range`, in as many handles as it takes. Nothing of them is dirty or
    /// under way.
    pub fn free_range(&self, inode: &Arc<Inode>, range: Range<u64>) -> Result<()> {
        let ctx = self.map_ctx(inode);
        let journaled = !inode.is_file();
        loop {
            let credits = extent::remove_credits(&ctx, &inode.core.read().map, journaled);
            let tx = tx::start(&self.vol.journal, credits)?;
            let mut core = inode.core.write();
            let removed = extent::remove(&ctx, &tx, &mut core.map, range.clone(), journaled);
            core.datasync_tid = Some(tx.tid());
            self.inodes.store(&tx, inode, &mut core)?;
            drop(core);
            tx.finish()?;
            if removed? == Progress::Done {
                return Ok(());
            }
        }
    }

    /// Frees all blocks from `first` on; then `inode` is no orphan any more, unless it has no name.
    pub fn finish_truncation(&self, inode: &Arc<Inode>, first: u64) -> Result<()> {
        self.free_range(inode, first..u64::MAX)?;
        let tx = tx::start(&self.vol.journal, Credits::blocks(1 + orphan::CREDITS))?;
        let mut core = inode.core.write();
        if core.disk.links > 0 {
            self.orphans.remove(&tx, inode, &mut core)?;
        }
        self.inodes.store(&tx, inode, &mut core)?;
        drop(core);
        tx.finish()
    }

    /// Back-pressure: a writer converts its own file's ranges when too much waits for the worker.
    pub(super) fn relieve(&self, inode: &Arc<Inode>) {
        let ranges = inode.io.lock().completed.blocks().pieces();
        if (ranges > MAX_RANGES || self.completed.count() > MAX_FILES)
            && let Err(error) = self.convert(inode, By::Writer)
        {
            // What could not be converted stays on the list, where fsync meets the error again.
            tracing::warn!(ino = %inode.ino, %error, "completed writes could not be converted");
        }
    }
}
