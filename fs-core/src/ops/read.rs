//! Reading a file.

use std::sync::Arc;

use blockdev::BlockDevice;
use ext4_format::Ino;

use crate::data::{DataStats, ReadPlan};
use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::inode::Inode;

impl Filesystem {
    /// Where the bytes of `ino` from `offset` on are, `len` of them at most. The plan stays true
    /// while it lives and must not outlive the request.
    ///
    /// # Errors
    /// `IsDirectory`, `Invalid` for what has no content, `Corrupt` for a damaged map.
    pub fn read_plan(&self, ino: Ino, offset: u64, len: u64) -> Result<ReadPlan> {
        self.vol.alive()?;
        let inode = self.regular(ino)?;
        self.data.touch_read(&inode);
        let _shared = inode.lock.read();
        self.data.plan(&inode, offset..offset.saturating_add(len))
    }

    /// Reads into `buf` from byte `offset`; gives the number of bytes, fewer only at the end of
    /// the file. Bytes of `buf` behind that number may have changed.
    ///
    /// # Errors
    /// Those of [`Filesystem::read_plan`] and the device's.
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_plan(ino, offset, buf.len() as u64)?.execute(self.device(), buf)
    }

    /// The same for a reader that has no page cache: counted as a direct read.
    ///
    /// # Errors
    /// Those of [`Filesystem::read`].
    pub fn read_direct(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let _counted = self.data.count_read();
        self.read(ino, offset, buf)
    }

    /// The device that [`crate::data::Segment::Device`] speaks of.
    #[must_use]
    pub fn device(&self) -> &dyn BlockDevice {
        self.vol.dev.as_ref()
    }

    /// What the data path has done since the mount, and what is under way.
    #[must_use]
    pub fn data_stats(&self) -> DataStats {
        self.data.stats()
    }

    /// The inode `ino`, which must be a regular file.
    pub(crate) fn regular(&self, ino: Ino) -> Result<Arc<Inode>> {
        let inode = self.inodes.get(ino)?;
        if inode.is_file() {
            return Ok(inode);
        }
        Err(if inode.is_dir() { Posix::IsDirectory } else { Posix::Invalid }.into())
    }
}
