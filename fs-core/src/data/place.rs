//! Handle A: every block of a write gets its place on the device before the data go there.

use std::ops::Range;
use std::sync::Arc;

use ext4_format::FileBlock;
use jbd2::Credits;
use smallvec::SmallVec;

use super::{DataPath, Place};
use crate::alloc::Reservation;
use crate::error::{Error, Result};
use crate::extent::{self, AllocHow, MapKind};
use crate::inode::{Core, Inode, orphan};
use crate::tx::{self, Tx};

/// Blocks of a file that lie one after the other on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Blocks of the file.
    pub blocks: Range<u64>,
    /// Block of the volume where the first one lies.
    pub start: u64,
    /// Whether they hold no data on disk until they are converted (extents), or were mapped in
    /// a handle that is still open (indirect blocks).
    pub fresh: bool,
}

/// The places of the first blocks of a write.
pub struct Placed<'a> {
    /// In file order, without gaps. At least one.
    pub runs: SmallVec<[Run; 4]>,
    /// Whether the inode had to join the orphan list for them.
    pub extending: bool,
    /// The open handle of an indirect mapping.
    pub handle: Option<Tx<'a>>,
}

impl Placed<'_> {
    /// The file block up to which places were found.
    pub fn end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.blocks.end)
    }

    fn push(&mut self, at: u64, len: u64, start: u64, fresh: bool) {
        match self.runs.last_mut() {
            Some(last)
                if last.start + (last.blocks.end - last.blocks.start) == start && last.fresh == fresh =>
            {
                last.blocks.end = at + len;
            }
            _ => self.runs.push(Run { blocks: at..at + len, start, fresh }),
        }
    }
}

/// On whose account blocks are allocated.
pub struct Account<'a> {
    /// Whether the caller may use the blocks reserved for root.
    pub privileged: bool,
    /// The promise that write-behind was given.
    pub promised: Option<&'a mut Reservation>,
}

impl DataPath {
    /// Places the blocks of a write that is under way, or as many of the first ones as one
    /// handle can.
    ///
    /// # Errors
    /// `NoSpace` when not even the first block can be placed.
    pub(super) fn place(
        &self,
        inode: &Arc<Inode>,
        blocks: Range<u64>,
        account: &mut Account<'_>,
    ) -> Result<Placed<'_>> {
        let mut placed = Placed { runs: SmallVec::new(), extending: false, handle: None };
        if self.place_written(inode, &inode.core.read(), &blocks, &mut placed)? {
            self.counters.overwrites.add(1);
            return Ok(placed);
        }
        placed.runs.clear();
        let mut tries = 0;
        loop {
            match self.place_missing(inode, &blocks, account, &mut placed) {
                Err(Error::NoSpace) if self.alloc.retry_after_commit(&mut tries)? => {}
                Err(e) => return Err(e),
                Ok(()) => return Ok(placed),
            }
        }
    }

    /// Whether all blocks hold data already: then the write needs no handle.
    fn place_written(
        &self,
        inode: &Inode,
        core: &Core,
        blocks: &Range<u64>,
        placed: &mut Placed<'_>,
    ) -> Result<bool> {
        let mut at = blocks.start;
        while at < blocks.end {
            let (Place::Data(start), len) = self.find(inode, core, at, blocks.end - at)? else {
                return Ok(false);
            };
            placed.push(at, len, start, false);
            at += len;
        }
        Ok(true)
    }

    fn place_missing<'a>(
        &'a self,
        inode: &Arc<Inode>,
        blocks: &Range<u64>,
        account: &mut Account<'_>,
        placed: &mut Placed<'a>,
    ) -> Result<()> {
        let step = {
            let core = inode.core.read();
            extent::credits_for_allocate(&self.map_ctx(inode), &core.map)
        };
        let record = 1 + orphan::CREDITS;
        let tx = tx::start(&self.vol.journal, Credits::blocks(record + 2 * step))?;
        let mut core = inode.core.write();
        let outcome = self.place_with(inode, blocks, account, placed, &tx, &mut core, record + step);
        if placed.runs.is_empty() {
            drop(core);
            tx.finish()?;
            return outcome;
        }
        // Blocks that have a place are written even if the next ones could not be placed.
        core.datasync_tid = Some(tx.tid());
        self.inodes.store(&tx, inode, &mut core)?;
        inode.io.lock().times_dirty = false;
        if core.map.kind() == MapKind::Indirect {
            drop(core);
            placed.handle = Some(tx);
        } else {
            drop(core);
            tx.finish()?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments)]
    fn place_with(
        &self,
        inode: &Arc<Inode>,
        blocks: &Range<u64>,
        account: &mut Account<'_>,
        placed: &mut Placed<'_>,
        tx: &Tx<'_>,
        core: &mut Core,
        needed: u32,
    ) -> Result<()> {
        let ctx = self.map_ctx(inode);
        let end_on_disk = core.disk.size.div_ceil(self.block_size());
        let mut at = blocks.start;
        while at < blocks.end {
            let (place, len) = self.find(inode, core, at, blocks.end - at)?;
            if !matches!(place, Place::Data(_)) && tx.left().blocks < needed && !placed.runs.is_empty() {
                return Ok(());
            }
            let first = file_block(at)?;
            let len = match place {
                Place::Data(start) => {
                    placed.push(at, len, start, false);
                    len
                }
                Place::Unwritten(start) => {
                    extent::split_unwritten(&ctx, tx, core, first, len as u32)?;
                    placed.push(at, len, start, true);
                    len
                }
                Place::Hole => {
                    let how = AllocHow {
                        unwritten: core.map.kind() == MapKind::Extents,
                        privileged: account.privileged,
                        reserved: account.promised.as_deref_mut(),
                    };
                    let run = extent::allocate(&ctx, tx, core, first, len as u32, how)?;
                    if core.map.kind() == MapKind::Extents
                        && at + u64::from(run.len) > end_on_disk
                        && !placed.extending
                    {
                        placed.extending = true;
                        self.orphans.add(tx, inode, core)?;
                        inode.io.lock().completed.begin_extending();
                    }
                    placed.push(at, run.len.into(), run.start.0, true);
                    run.len.into()
                }
            };
            at += len;
        }
        Ok(())
    }
}

/// `block` as the format counts it.
pub(super) fn file_block(block: u64) -> Result<FileBlock> {
    u32::try_from(block).map(FileBlock).map_err(|_| crate::error::Posix::FileTooBig.into())
}
