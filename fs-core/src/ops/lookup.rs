//! Finding a name.

use std::sync::Arc;

use ext4_format::Ino;
use ext4_format::dirent::MAX_NAME;
use ext4_format::inode::flag;

use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::node::{Dir, Held, Hold, Node};

impl Dir {
    /// The file `name`. The dots are names too.
    ///
    /// # Errors
    /// `NotFound`, `NameTooLong`, and those of a damaged directory.
    pub fn lookup(&self, name: impl AsRef<[u8]>) -> Result<Node> {
        let fs = self.filesystem();
        Ok(fs.find(self.inode(), name.as_ref())?.keep(fs))
    }
}

impl Filesystem {
    /// The root directory.
    ///
    /// # Errors
    /// Those of reading its inode.
    pub fn root(self: &Arc<Self>) -> Result<Dir> {
        self.vol.alive()?;
        self.hold(Ino::ROOT)?.keep(self).into_dir()
    }

    /// The file of an inode number and generation, for whoever keeps those instead of a path (NFS).
    ///
    /// # Errors
    /// `Stale` when there is no such file any more, or the number is the volume's own.
    pub fn node(self: &Arc<Self>, ino: Ino, generation: u32) -> Result<Node> {
        self.vol.alive()?;
        let first = self.vol.sb.lock().first_ino();
        if ino != Ino::ROOT && ino.get() < first {
            return Err(Posix::Stale.into());
        }
        let node = self.hold(ino)?.keep(self);
        let is_value = node.inode().core.read().disk.has(flag::EA_INODE);
        if is_value || node.generation() != generation {
            return Err(Posix::Stale.into());
        }
        Ok(node)
    }

    fn find(&self, parent: &Arc<Inode>, name: &[u8]) -> Result<Hold<'_>> {
        self.vol.alive()?;
        if name.len() > MAX_NAME {
            return Err(Posix::NameTooLong.into());
        }
        let _lock = parent.lock.read();
        let found = self.entries(parent).find(name)?.ok_or(Posix::NotFound)?;
        if found.ino == parent.ino && (name == b"." || name == b"..") {
            return Ok(Held::new(self, self.inodes.hold(parent)));
        }
        self.child(parent, &found)
    }
}
