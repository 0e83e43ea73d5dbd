//! Where a file's data lie on the device, for those who read past the filesystem (boot loaders, filefrag).

use ext4_format::Ino;

use crate::data::Place;
use crate::error::Result;
use crate::fs::Filesystem;

impl Filesystem {
    /// The block of the volume that holds block `at` of the file; `None` where there are no data: in
    /// holes, in preallocated space, behind the end. Delayed data get their place first.
    ///
    /// # Errors
    /// Those of writing the data out; `Invalid` for what is no regular file.
    pub fn bmap(&self, ino: Ino, at: u64) -> Result<Option<u64>> {
        self.vol.alive()?;
        let inode = self.regular(ino)?;
        self.data.flush(&inode, at..at.saturating_add(1))?;
        let _shared = inode.lock.read();
        let core = inode.core.read();
        Ok(match self.data.find(&inode, &core, at, 1)?.0 {
            Place::Data(block) => Some(block),
            Place::Hole | Place::Unwritten(_) => None,
        })
    }

    /// Gives all delayed data of the file their place.
    ///
    /// # Errors
    /// Those of writing the data out.
    pub fn place_data(&self, ino: Ino) -> Result<()> {
        self.vol.alive()?;
        let inode = self.inodes.get(ino)?;
        self.data.flush(&inode, 0..u64::MAX)
    }
}
