//! Handle A: every block of a write gets its place on the device before the data go there.

use std::ops::Range;
use std::sync::Arc;

use ext4_format::FileBlock;
use jbd2::Credits;
use jbd2::mutants::{Mutant, is};
use smallvec::SmallVec;

use super::{DataPath, Place};
use crate::alloc::{Depth, Reservation};
use crate::error::{Error, Result};
use crate::extent::{self, AllocHow, Mapping};
use crate::inode::{Core, Inode, orphan};
use crate::tx::{self, Tx};

/// Runs that one handle reserves log space for.
const RUNS: u32 = 4;

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

impl Run {
    /// Number of blocks.
    pub fn len(&self) -> u64 {
        self.blocks.end - self.blocks.start
    }
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

    /// Adds the blocks that follow; one run with those before if it goes on on the device too.
    fn push(&mut self, at: u64, len: u64, start: u64, fresh: bool) {
        match self.runs.last_mut() {
            Some(last) if last.start + last.len() == start && last.fresh == fresh => {
                last.blocks.end = at + len;
            }
            _ => self.runs.push(Run { blocks: at..at + len, start, fresh }),
        }
    }
}

/// On whose account blocks are allocated.
pub struct Account<'a> {
    /// How deep into the space it may reach without a promise.
    pub depth: Depth,
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
        let mut retry = self.alloc.retry();
        loop {
            match self.place_missing(inode, &blocks, account, &mut placed) {
                Err(Error::NoSpace) if self.alloc.should_retry(&mut retry)? => {}
                Err(e) => {
                    if placed.extending {
                        inode.io.lock().completed.end_extending();
                    }
                    return Err(e);
                }
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
        let record = 1 + orphan::CREDITS;
        let step = {
            let core = inode.core.read();
            extent::allocate_credits(&core.map, 1).max(extent::split_credits(&core.map))
        };
        let tx = tx::start(&self.vol.journal, Credits::blocks(record + RUNS * step))?;
        let mut core = inode.core.write();
        let outcome = match core.map.has_extents() {
            true => self.place_unwritten(inode, blocks, account, placed, &tx, &mut core, record + step),
            false => self.place_indirect(inode, blocks, account, placed, &tx, &core),
        };
        // Blocks that have a place are written even if the next ones could not be placed.
        let outcome = if placed.runs.is_empty() { outcome } else { Ok(()) };
        if !core.map.has_extents() {
            drop(core);
            if !placed.runs.is_empty() {
                placed.handle = Some(tx);
            }
            return outcome;
        }
        // Stored in any case: a change of the tree that failed may have got as far as its root.
        core.datasync_tid = Some(tx.tid());
        self.inodes.store(&tx, inode, &mut core)?;
        inode.io.lock().times_dirty = false;
        drop(core);
        tx.finish()?;
        outcome
    }

    /// Extents: maps the holes of `blocks` as unwritten, while the handle has `needed` credits.
    #[expect(clippy::too_many_arguments)]
    fn place_unwritten(
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
            if !matches!(place, Place::Data(_)) && tx.left().blocks < needed {
                return Ok(());
            }
            let (start, len) = match place {
                Place::Data(start) => (start, len),
                Place::Unwritten(start) => {
                    extent::split_unwritten(&ctx, tx, &mut core.map, at..at + len)?;
                    (start, len)
                }
                Place::Hole => {
                    let how = AllocHow {
                        unwritten: true,
                        depth: account.depth,
                        reserved: account.promised.as_deref_mut(),
                    };
                    let got = extent::allocate(&ctx, tx, &mut core.map, file_block(at)?, len as u32, how)?;
                    let Mapping::Unwritten(start) = got.mapping else { return Ok(()) };
                    if is(Mutant::WrittenBeforeData) {
                        extent::convert(&ctx, tx, &mut core.map, at..at + u64::from(got.len), true)?;
                    }
                    if at + u64::from(got.len) > end_on_disk && !placed.extending {
                        placed.extending = true;
                        inode.io.lock().completed.begin_extending();
                        // e2fsck 1.47 frees the attribute block of an orphan that it cuts. Such a file is not
                        // recorded: after a crash it keeps blocks behind its end, as fallocate leaves them.
                        if core.disk.file_acl.0 == 0 {
                            self.orphans.add(tx, inode, core)?;
                        }
                    }
                    (start.0, got.len.into())
                }
            };
            placed.push(at, len, start, !matches!(place, Place::Data(_)));
            at += len;
        }
        Ok(())
    }

    /// Indirect blocks: takes blocks for the holes of `blocks`, to be mapped when they hold data.
    fn place_indirect(
        &self,
        inode: &Arc<Inode>,
        blocks: &Range<u64>,
        account: &mut Account<'_>,
        placed: &mut Placed<'_>,
        tx: &Tx<'_>,
        core: &Core,
    ) -> Result<()> {
        let ctx = self.map_ctx(inode);
        let mut at = blocks.start;
        let mut taken = 0;
        while at < blocks.end && taken < RUNS {
            let (start, len, fresh) = match self.find(inode, core, at, blocks.end - at)? {
                (Place::Data(start), len) => (start, len, false),
                (_, len) => {
                    taken += 1;
                    let want = len.min(until_next_pointer_block(at, self.block_size())) as u32;
                    let how = AllocHow {
                        unwritten: false,
                        depth: account.depth,
                        reserved: account.promised.as_deref_mut(),
                    };
                    let run = extent::take(&ctx, tx, &core.map, file_block(at)?, want, how)?;
                    (run.start.0, run.len.into(), true)
                }
            };
            // Not merged: each run is mapped by pointers that stand beside each other.
            placed.runs.push(Run { blocks: at..at + len, start, fresh });
            at += len;
        }
        Ok(())
    }
}

/// Blocks from `at` on whose pointers lie in one pointer block, so that mapping them touches few.
fn until_next_pointer_block(at: u64, block_size: u64) -> u64 {
    const DIRECT: u64 = 12;
    let pointers = block_size / 4;
    if at < DIRECT { DIRECT - at } else { pointers - (at - DIRECT) % pointers }
}

/// `block` as the format counts it.
pub(super) fn file_block(block: u64) -> Result<FileBlock> {
    u32::try_from(block).map(FileBlock).map_err(|_| crate::error::Posix::FileTooBig.into())
}
