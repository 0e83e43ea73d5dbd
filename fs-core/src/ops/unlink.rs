//! Removing a name of something that is not a directory.

use jbd2::Credits;

use super::names::{DROP_LINK_CREDITS, check_name};
use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::node::{Dir, Hold, Node};
use crate::tx;

impl Dir {
    /// Removes `name` and gives the file that had it. One that has lost its last name lives on, as an orphan, while
    /// there are handles of it.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `NotPermitted` when inode flags forbid it.
    pub fn unlink(&self, name: impl AsRef<[u8]>) -> Result<Node> {
        let (fs, name) = (self.filesystem(), name.as_ref());
        fs.vol.writable()?;
        check_name(name)?;
        Ok(fs.unlink_in(self.inode(), name)?.keep(fs))
    }
}

impl Filesystem {
    fn unlink_in(&self, parent: &Inode, name: &[u8]) -> Result<Hold<'_>> {
        let _lock = parent.lock.write();
        let dir = self.entries(parent);
        let found = dir.find(name)?.ok_or(Posix::NotFound)?;
        let child = self.child(parent, &found)?;
        self.may_remove(parent, &child)?;
        if child.is_dir() {
            return Err(Posix::IsDirectory.into());
        }
        let child_lock = child.lock.write_ordered();
        // The entry's block and the directory's record.
        let tx = tx::start(&self.vol.journal, Credits::blocks(2 + DROP_LINK_CREDITS))?;
        let now = self.vol.now();
        dir.remove(&tx, &found)?;
        self.drop_link(&tx, &child, now)?;
        self.entries_changed(&tx, parent, 0, now)?;
        self.finish_names(tx, &[parent])?;
        drop(child_lock);
        Ok(child)
    }
}
