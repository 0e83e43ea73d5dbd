//! Changing the size of a file, and freeing what lies beyond.
//!
//! Shrinking frees in as many handles as it takes. The size changes in the first one, and the
//! inode is on the orphan list until the last, so that recovery finishes an interrupted one.

use std::sync::Arc;

use jbd2::Credits;

use crate::data::{By, wait_clear};
use crate::error::{Posix, Result};
use crate::extent::MapRoot;
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::tx;

impl Filesystem {
    /// Sets the size of a file. Bytes that come into the file read as zeros.
    ///
    /// # Errors
    /// `IsDirectory`, `Invalid` for what has no size to set, `FileTooBig`.
    pub(crate) fn truncate(&self, inode: &Arc<Inode>, size: u64) -> Result<()> {
        if !inode.is_file() {
            return Err(if inode.is_dir() { Posix::IsDirectory } else { Posix::Invalid }.into());
        }
        if size > self.max_size(&inode.core.read().map) {
            return Err(Posix::FileTooBig.into());
        }
        let _lock = inode.lock.write();
        // What is under way below the new end too: the orphan list is this call's now.
        wait_clear(inode, &(0..u64::MAX));
        let bs = u64::from(self.vol.block_size());
        let before = inode.core.read().size;
        if size < before {
            inode.io.lock().rewritten |= size == 0;
            self.data.drop_completed(inode, size.div_ceil(bs)..u64::MAX);
            self.data.cut_dirty(inode, size);
        }
        self.data.convert(inode, By::Fsync)?;
        self.data.zero_tail(inode, size.min(before))?;
        if size < before {
            return self.shrink(inode, size);
        }
        let tx = tx::start(&self.vol.journal, Credits::blocks(1))?;
        let mut core = inode.core.write();
        self.set_size(&mut core, size);
        core.datasync_tid = Some(tx.tid());
        self.inodes.store(&tx, inode, &mut core)?;
        drop(core);
        tx.finish()
    }

    fn set_size(&self, core: &mut crate::inode::Core, size: u64) {
        let now = self.vol.now();
        core.size = size;
        core.disk.size = size;
        core.disk.mtime = now;
        core.disk.ctime = now;
    }

    fn shrink(&self, inode: &Arc<Inode>, size: u64) -> Result<()> {
        let first = size.div_ceil(u64::from(self.vol.block_size()));
        let ctx = self.map_ctx(inode);
        let credits = crate::extent::remove_credits(&ctx, &inode.core.read().map, false);
        let tx = tx::start(&self.vol.journal, credits)?;
        let mut core = inode.core.write();
        self.set_size(&mut core, size);
        let removed = crate::extent::remove(&ctx, &tx, &mut core.map, first..u64::MAX, false);
        let whole = matches!(removed, Ok(crate::extent::Progress::Done));
        if !whole {
            self.orphans.add(&tx, inode, &mut core)?;
        }
        core.datasync_tid = Some(tx.tid());
        self.inodes.store(&tx, inode, &mut core)?;
        drop(core);
        tx.finish()?;
        removed?;
        if whole {
            return Ok(());
        }
        self.data.finish_truncation(inode, first)
    }

    /// Frees the blocks of `inode` beyond `size`, in steps. For inodes that nobody else uses: at
    /// their end, and in recovery.
    pub(crate) fn truncate_blocks(&self, inode: &Arc<Inode>, size: u64) -> Result<()> {
        if !inode.core.read().disk.maps_blocks(&self.vol.inode_layout) {
            return Ok(());
        }
        self.data.abandon(inode);
        self.data.free_range(inode, size.div_ceil(u64::from(self.vol.block_size()))..u64::MAX)
    }

    /// Largest size in bytes that a file with this map can have, as the kernel's ext4 limits it.
    pub(crate) fn max_size(&self, map: &MapRoot) -> u64 {
        let bs = u64::from(self.vol.block_size());
        let counts_blocks = self.vol.inode_layout.huge_file;
        if map.has_extents() {
            // Block 2^32 - 1 has no name; without huge_file, i_blocks counts 2^32 - 1 sectors.
            let blocks = u64::from(u32::MAX);
            let countable = if counts_blocks { blocks } else { blocks / (bs / 512) };
            return blocks.min(countable) * bs;
        }
        // Data and map blocks together must fit in i_blocks.
        let per_block = bs / 4;
        let map_blocks = 1 + (1 + per_block) + (1 + per_block + per_block * per_block);
        let countable = if counts_blocks { (1 << 48) - 1 } else { u64::from(u32::MAX) / (bs / 512) };
        let named = ext4_format::indirect::capacity(self.vol.block_size());
        named.min(countable - map_blocks) * bs
    }
}
