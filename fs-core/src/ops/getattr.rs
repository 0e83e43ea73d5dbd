//! Attributes of an inode and of the volume.

use ext4_format::dirent::MAX_NAME;
use ext4_format::inode::LINKS_UNCOUNTED;

use crate::error::Result;
use crate::fs::Filesystem;
use crate::inode::{Core, Inode};
use crate::node::Node;
use crate::types::{Attr, Credentials, StatFs};

impl Inode {
    /// The attributes as `core` has them.
    pub(crate) fn attr(&self, core: &Core) -> Attr {
        let disk = &core.disk;
        let uncounted = self.is_dir() && disk.links == LINKS_UNCOUNTED;
        Attr {
            ino: self.ino,
            generation: self.generation,
            size: core.size,
            sectors: core.map.sectors + self.io.reserved_sectors(),
            atime: disk.atime,
            mtime: disk.mtime,
            ctime: disk.ctime,
            crtime: disk.crtime,
            mode: disk.mode,
            links: if uncounted { 1 } else { disk.links.into() },
            uid: disk.uid,
            gid: disk.gid,
            rdev: disk.device(),
            flags: disk.flags,
        }
    }
}

impl Node {
    /// The file's attributes.
    ///
    /// # Errors
    /// `ShutDown`.
    pub fn attributes(&self) -> Result<Attr> {
        self.filesystem().vol.alive()?;
        Ok(self.inode().attr(&self.inode().core.read()))
    }
}

impl Filesystem {
    /// Free blocks that `caller` could get: all of them for those whom the volume sets some aside for.
    #[must_use]
    pub fn available_blocks(&self, caller: &Credentials) -> u64 {
        self.alloc.available(self.may_use_reserve(caller))
    }

    /// Space and inodes of the volume, once the deletions under way have ended
    /// ([`Filesystem::wait_for_reclaim`]).
    ///
    /// # Errors
    /// None at present.
    pub fn statfs(&self) -> Result<StatFs> {
        self.wait_for_reclaim();
        let counts = self.alloc.counts();
        let sb = self.vol.sb.lock();
        let overhead = if self.vol.opts.minix_df { 0 } else { counts.overhead };
        let free = counts.free_blocks.saturating_sub(counts.reserved);
        let uuid = sb.uuid();
        let (high, low) = uuid.split_at(8);
        let half = |bytes: &[u8]| bytes.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
        Ok(StatFs {
            block_size: self.vol.block_size(),
            blocks: self.vol.geo.blocks_count.saturating_sub(overhead),
            blocks_free: free,
            blocks_available: free.saturating_sub(counts.withheld),
            files: self.vol.geo.inodes_count.into(),
            files_free: counts.free_inodes.into(),
            name_max: MAX_NAME as u32,
            id: half(high) ^ half(low),
        })
    }
}
