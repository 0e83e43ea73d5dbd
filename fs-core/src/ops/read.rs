//! Reading a file.

use blockdev::BlockDevice;

use crate::data::{DataStats, ReadPlan};
use crate::error::Result;
use crate::fs::Filesystem;
use crate::node::OpenFile;

impl OpenFile {
    /// Where the bytes from `offset` on are, `len` of them at most. While the plan lives, no block of the file
    /// is freed: whoever truncates it waits.
    ///
    /// # Errors
    /// `Corrupt` for a damaged map.
    pub fn read_plan(&self, offset: u64, len: u64) -> Result<ReadPlan<'_>> {
        let (fs, inode) = (self.filesystem(), self.inode());
        fs.vol.alive()?;
        fs.data.touch_read(inode);
        let _shared = inode.lock.read();
        fs.data.plan(inode, offset..offset.saturating_add(len))
    }

    /// Reads into `buf` from byte `offset`; gives the number of bytes, fewer only at the end of
    /// the file. Bytes of `buf` behind that number may have changed.
    ///
    /// # Errors
    /// Those of [`OpenFile::read_plan`] and the device's.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.read_plan(offset, buf.len() as u64)?.execute(self.filesystem().device(), buf)
    }

    /// The same, counted as a direct read ([`DataStats::direct_reads`]).
    ///
    /// # Errors
    /// Those of [`OpenFile::read_at`].
    pub fn read_direct_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let _counted = self.filesystem().data.count_read();
        self.read_at(buf, offset)
    }
}

impl Filesystem {
    /// The device that [`crate::data::Segment::Device`] speaks of.
    #[must_use]
    pub fn device(&self) -> &dyn BlockDevice {
        self.vol.dev.as_ref()
    }

    /// What the data path has done since the mount, and what is under way.
    #[must_use]
    pub fn data_stats(&self) -> DataStats {
        let waiting = self.data.completed.all();
        let stats = self.data.stats(&waiting);
        waiting.into_iter().for_each(|inode| self.done_with(inode));
        stats
    }
}
