//! Where a file's data lie on the device, for those who read past the filesystem (boot loaders, filefrag).

use crate::data::Place;
use crate::error::Result;
use crate::node::Node;

impl Node {
    /// The block of the volume that holds block `at` of the file; `None` where there are no data: in
    /// holes, in preallocated space, behind the end. Delayed data get their place first.
    ///
    /// # Errors
    /// Those of writing the data out; `Invalid` for what is no regular file.
    pub fn bmap(&self, at: u64) -> Result<Option<u64>> {
        let (fs, inode) = (self.filesystem(), self.inode());
        fs.vol.alive()?;
        inode.expect_file()?;
        fs.data.flush(inode, at..at.saturating_add(1))?;
        let _shared = inode.lock.read();
        let core = inode.core.read();
        Ok(match fs.data.find(inode, &core, at, 1)?.0 {
            Place::Data(block) => Some(block),
            Place::Hole | Place::Unwritten(_) => None,
        })
    }

    /// Gives all delayed data of the file their place.
    ///
    /// # Errors
    /// Those of writing the data out.
    pub fn place_data(&self) -> Result<()> {
        let fs = self.filesystem();
        fs.vol.alive()?;
        fs.data.flush(self.inode(), 0..u64::MAX)
    }
}
