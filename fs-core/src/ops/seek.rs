//! Finding data and holes.

use ext4_format::{Corruption, What};

use crate::data::Place;
use crate::error::{Posix, Result};
use crate::node::OpenFile;

/// What to look for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekWhence {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`: the end of the file counts as one.
    Hole,
}

impl OpenFile {
    /// The first byte at or behind `offset` that is data, or a hole. Allocated blocks without
    /// data are holes.
    ///
    /// # Errors
    /// `NoDevice` (ENXIO) when `offset` is past the end, or no data follow.
    pub fn seek_to(&self, offset: u64, whence: SeekWhence) -> Result<u64> {
        let (fs, inode) = (self.filesystem(), self.inode());
        fs.vol.alive()?;
        let bs = u64::from(fs.vol.block_size());
        let _shared = inode.lock.read();
        let core = inode.core.read();
        if offset >= core.size {
            return Err(Posix::NoDevice.into());
        }
        let end = core.size.div_ceil(bs);
        let mut at = offset / bs;
        // Blocks of data that a sound map can still have: one that names its blocks again and again would be
        // looked through without end.
        let mut left = fs.vol.geo.blocks_count;
        while at < end {
            let dirty = inode.io.lock().behind.status(at, end - at);
            let (is_data, len) = match dirty {
                (true, len) => (true, len),
                (false, len) => {
                    let (place, len) = fs.data.find(inode, &core, at, len)?;
                    (matches!(place, Place::Data(_)), len)
                }
            };
            if is_data == (whence == SeekWhence::Data) {
                return Ok(offset.max(at * bs));
            }
            if is_data {
                left = left.checked_sub(len).ok_or_else(|| {
                    let blocks = fs.vol.geo.blocks_count;
                    let c = Corruption::new(What::ExtentNode, "mapped blocks", at + len, blocks);
                    fs.vol.corrupt(c.in_inode(inode.ino))
                })?;
            }
            at += len;
        }
        match whence {
            SeekWhence::Hole => Ok(core.size),
            SeekWhence::Data => Err(Posix::NoDevice.into()),
        }
    }
}
