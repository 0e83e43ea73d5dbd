//! Finding data and holes.

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
            at += len;
        }
        match whence {
            SeekWhence::Hole => Ok(core.size),
            SeekWhence::Data => Err(Posix::NoDevice.into()),
        }
    }
}
