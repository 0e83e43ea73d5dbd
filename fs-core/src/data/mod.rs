//! The one path of file data (ARCHITECTURE.md, "How the water flows").
//!
//! A direct write (`write`) and the flush of write-behind (`flush`) take the same steps:
//! 1. begin: a `flight::Writing` guard, taken under the shared inode lock, keeps other writes of
//!    these blocks and everything that frees blocks away; the inode lock is dropped;
//! 2. place (`place`, handle A): holes get unwritten blocks, unwritten extents are split to the
//!    range, an inode that grows by them joins the orphan list;
//! 3. the device write, with no lock and no handle;
//! 4. end (`ioend`): the range joins the completed list, and counts as written to readers;
//! 5. convert (`ioend`, handle B): a worker, or fsync if it comes first, makes the extents
//!    written, moves the size on disk and leaves the orphan list.
//!
//! Overwriting written blocks skips 2 and 5. Files mapped by indirect blocks know no unwritten
//! state: their handle A stays open until the data are on the device, so the mapping cannot
//! commit before them, and readers are served from write-behind until then.

mod budget;
mod durable;
mod flight;
mod flush;
mod ioend;
mod place;
mod read;
mod stats;
mod times;
mod worklist;
mod write;

use std::sync::Arc;

use blockdev::Timestamp;
use ext4_format::Tid;
use jbd2::mutants::{Mutant, is};

use crate::alloc::Allocator;
use crate::error::{Error, Result};
use crate::extent::MapCtx;
use crate::inode::{Inode, IoGuard, Orphans, Table};
use crate::locks::{Rank, RankedMutex};
use crate::volume::Volume;

use budget::Budget;
use durable::Durable;
use stats::{Counters, Entered};
use worklist::WorkList;

pub use flight::wait_clear;
pub use ioend::By;
pub use read::{Place, ReadPlan, Segment};
pub use stats::DataStats;
pub use write::Failed;

/// The data path of a volume.
pub struct DataPath {
    vol: Arc<Volume>,
    alloc: Arc<Allocator>,
    inodes: Arc<Table>,
    orphans: Arc<Orphans>,
    /// Files with dirty data or times that are not stored yet.
    pub(crate) dirty: WorkList,
    /// Files with completed writes to convert.
    pub(crate) completed: WorkList,
    budget: Budget,
    durable: Durable,
    counters: Counters,
    /// The last loss of a file's data that no syncfs has told of.
    pub(crate) lost: RankedMutex<Option<Error>>,
}

impl DataPath {
    /// The data path of a volume that is being mounted.
    #[must_use]
    pub fn new(
        vol: Arc<Volume>,
        alloc: Arc<Allocator>,
        inodes: Arc<Table>,
        orphans: Arc<Orphans>,
    ) -> DataPath {
        DataPath {
            budget: Budget::new(vol.opts.write_behind_bytes),
            vol,
            alloc,
            inodes,
            orphans,
            dirty: WorkList::default(),
            completed: WorkList::default(),
            durable: Durable::default(),
            counters: Counters::default(),
            // Taken while an inode's IO state is held, which is a leaf as well.
            lost: RankedMutex::keyed(Rank::Leaf, 1, None),
        }
    }

    /// What was done so far, and what is under way; `waiting` are the files on the completed list.
    #[must_use]
    pub fn stats(&self, waiting: &[Arc<Inode>]) -> DataStats {
        let ranges = |inode: &Arc<Inode>| inode.io.lock().completed.blocks().pieces() as u64;
        let counted = &self.counters;
        DataStats {
            direct_reads_in_flight: counted.reading.get(),
            direct_writes_in_flight: counted.writing.get(),
            direct_reads: counted.reads.get(),
            direct_writes: counted.writes.get(),
            overwrites: counted.overwrites.get(),
            conversions_queued: counted.queued.get(),
            conversions_merged: counted.merged.get(),
            conversions_by_worker: counted.by_worker.get(),
            conversions_by_fsync: counted.by_fsync.get(),
            conversions_by_writers: counted.by_writer.get(),
            conversions_pending: waiting.iter().map(ranges).sum(),
            files_pending: waiting.len() as u64,
            flushes: counted.flushes.get(),
            behind_bytes: self.budget.held(),
        }
    }

    /// The journal's observer: `tid` has no open handle any more.
    pub fn closing(&self, tid: Tid) {
        self.durable.closing(tid);
    }

    /// The journal's observer: `tid` is durable.
    pub fn committed(&self, tid: Tid) {
        self.durable.committed(tid);
    }

    /// Makes the data writes of `inode` that have returned durable.
    pub fn make_durable(&self, inode: &Inode) -> Result<()> {
        if is(Mutant::FsyncSkipsFlush) {
            return Ok(());
        }
        self.durable.make(inode.io.last_write(|| self.durable.last()), &self.vol.journal)
    }

    /// Makes every data write that has returned durable.
    pub fn make_all_durable(&self) -> Result<()> {
        self.durable.make(self.durable.last(), &self.vol.journal)
    }

    /// Keeps a failure to write data for the fsyncs and the syncfs to come.
    fn failed(&self, io: &mut IoGuard<'_>, error: &Error) {
        *self.lost.lock() = Some(error.echo());
        io.failures.record(error.echo());
    }

    /// Counts a direct read until the guard is dropped.
    pub fn count_read(&self) -> Entered<'_> {
        self.counters.reads.add(1);
        self.counters.reading.enter()
    }

    fn map_ctx<'a>(&'a self, inode: &Inode) -> MapCtx<'a> {
        MapCtx { vol: &self.vol, alloc: &self.alloc, ino: inode.ino, generation: inode.generation }
    }

    fn block_size(&self) -> u64 {
        u64::from(self.vol.block_size())
    }

    fn clock(&self) -> Timestamp {
        self.vol.env.clock.now()
    }
}
