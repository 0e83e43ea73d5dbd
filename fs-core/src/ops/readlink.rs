//! Reading symbolic links.

use ext4_format::inode::FileType;
use ext4_format::{Corruption, FileBlock, What};

use crate::error::{Posix, Result};
use crate::extent::{self, Mapping};
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::node::Node;

impl Node {
    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        self.filesystem().link_target(self.inode())
    }
}

impl Filesystem {
    fn link_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        self.vol.alive()?;
        if inode.kind != FileType::Symlink {
            return Err(Posix::Invalid.into());
        }
        let core = inode.core.read();
        if core.disk.is_fast_symlink(&self.vol.inode_layout) {
            return Ok(core.disk.fast_target().to_vec());
        }
        let segment = extent::lookup(&self.map_ctx(inode), &core.map, FileBlock(0), 1)?;
        let damaged = |field| {
            let c = Corruption::new(What::Inode, field, core.size, self.vol.block_size().into());
            Err(self.vol.corrupt(c.in_inode(inode.ino)))
        };
        let Mapping::Written(block) = segment.mapping else { return damaged("target without a block") };
        let data = self.vol.read_meta(block, |_| Ok(()))?.data();
        match usize::try_from(core.size).ok().and_then(|len| data.get(..len)) {
            Some(target) if !target.is_empty() => Ok(target.to_vec()),
            _ => damaged("i_size"),
        }
    }
}
