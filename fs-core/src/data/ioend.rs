//! The end of a write: the completed list, and handle B, which makes it true on disk.
//!
//! A range is converted once, by whoever takes the inode's map lock first. The order
//! of events for readers: data on the device, then on the completed list, then converted.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jbd2::Credits;
use smallvec::SmallVec;

use super::place::{Placed, file_block};
use super::DataPath;
use crate::error::Result;
use crate::extent::{self, Mapping};
use crate::inode::{Inode, IoEnd, IoGuard, orphan};
use crate::tx;

/// Files that may wait for conversion before writers have to help.
pub(super) const MAX_QUEUE: usize = 256;

/// Ranges converted in one handle at most.
const BATCH: u32 = 32;

/// Blocks of one range that are converted at once at most.
const MAX_CONVERT: u64 = 32_768;

/// Who converts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// The conversion worker.
    Worker,
    /// Somebody who needs it done now.
    Fsync,
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
        inode.io.last_write.fetch_max(self.durable.wrote(), Ordering::AcqRel);
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
        let bs = self.block_size();
        for blocks in fresh {
            let end = end.min(blocks.end * bs);
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

    /// Ends the handle that mapped indirect blocks: with the data in place the size may move in
    /// the same transaction; without them the blocks are taken out of the map again.
    fn settle_indirect(
        &self,
        inode: &Arc<Inode>,
        placed: Placed<'_>,
        mut tx: tx::Tx<'_>,
        end: u64,
        outcome: Result<()>,
    ) -> Result<()> {
        let mut core = inode.core.write();
        if outcome.is_ok() {
            core.disk.size = core.disk.size.max(end);
        } else {
            for run in placed.runs.iter().filter(|r| r.fresh) {
                let first = file_block(run.blocks.start)?;
                let len = (run.blocks.end - run.blocks.start) as u32;
                extent::remove(&self.map_ctx(inode), &mut tx, &mut core, first, len)?;
            }
        }
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
        let (step, count) = {
            let core = inode.core.read();
            let step = extent::credits_for_convert(&ctx, &core.map);
            (step, inode.io.lock().completed.blocks().pieces().clamp(1, BATCH as usize) as u32)
        };
        let record = 1 + orphan::CREDITS;
        let tx = tx::start(&self.vol.journal, Credits::blocks(record + step * count))?;
        let mut core = inode.core.write();
        while tx.left().blocks >= record + step {
            let Some(range) = inode.io.lock().completed.peek(MAX_CONVERT) else { break };
            let len = (range.end - range.start) as u32;
            extent::convert(&ctx, &tx, &mut core, file_block(range.start)?, len, Mapping::WRITTEN)?;
            inode.io.lock().completed.remove(range);
            match by {
                By::Worker => self.counters.by_worker.add(1),
                By::Fsync => self.counters.by_fsync.add(1),
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
            io.completed.is_empty() && !io.completed.is_extending() && !io.completed.has_overhang()
        };
        if leave && core.disk.links > 0 {
            self.orphans.remove(&tx, inode, &mut core)?;
        }
        core.datasync_tid = Some(tx.tid());
        self.inodes.store(&tx, inode, &mut core)?;
        drop(core);
        tx.finish()
    }

    /// Converts what every file has completed.
    pub fn convert_all(&self, by: By) -> Result<()> {
        let mut outcome = Ok(());
        for inode in self.completed.all() {
            outcome = outcome.and(self.convert(&inode, by));
        }
        outcome
    }

    /// Stores times that are only in memory.
    pub fn store_times(&self, inode: &Arc<Inode>) {
        if !inode.io.lock().times_dirty {
            return;
        }
        let stored = || -> Result<()> {
            let tx = tx::start(&self.vol.journal, Credits::blocks(1))?;
            let mut core = inode.core.write();
            let mut io = inode.io.lock();
            io.times_dirty = false;
            self.unlist_clean(&mut io);
            drop(io);
            self.inodes.store(&tx, inode, &mut core)?;
            drop(core);
            tx.finish()
        };
        if let Err(error) = stored() {
            tracing::warn!(ino = %inode.ino, %error, "times could not be stored");
        }
    }
}
