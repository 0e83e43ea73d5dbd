//! Making a regular file without a name (O_TMPFILE): an orphan from its first moment, so that it
//! goes with its last user or with a crash, unless [`Dir::link`] gives it a name before.

use std::sync::atomic::Ordering;

use ext4_format::inode::FileType;
use jbd2::Credits;

use super::create::{Content, Wanted};
use super::names::DROP_LINK_CREDITS;
use crate::error::Result;
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::node::{Dir, Held, Hold, Node};
use crate::tx;
use crate::types::Credentials;

impl Dir {
    /// Makes a regular file with permissions `mode` that has no name, owned by `caller`; what it inherits it
    /// takes from this directory.
    ///
    /// # Errors
    /// `NotFound` in a directory that was removed, `NoSpace`.
    pub fn tmpfile_as(&self, caller: &Credentials, mode: u16) -> Result<Node> {
        let fs = self.filesystem();
        fs.vol.writable()?;
        let mode = FileType::Regular.mode_bits() | mode & !FileType::MODE_MASK;
        let wanted = Wanted { kind: FileType::Regular, mode, content: Content::Nothing };
        let made = fs.with_retry(|| fs.tmpfile_in(caller, self.inode(), &wanted))?;
        Ok(made.keep(fs))
    }
}

impl Filesystem {
    fn tmpfile_in(&self, caller: &Credentials, parent: &Inode, wanted: &Wanted<'_>) -> Result<Hold<'_>> {
        let _lock = parent.lock.read();
        self.alive(parent)?;
        let inherited = self.inherited(caller, parent, wanted)?;
        let credits = self.child_credits(&inherited, wanted) + DROP_LINK_CREDITS;
        // Declared before the journal handle, so that it is dropped after it.
        let child;
        let tx = tx::start(&self.vol.journal, Credits::blocks(credits))?;
        child = Held::new(self, self.new_child(&tx, caller, parent, wanted, &inherited)?);
        {
            let mut core = child.core.write();
            core.disk.links = 0;
            self.orphans.add(&tx, &child, &mut core)?;
            self.inodes.store(&tx, &child, &mut core)?;
        }
        child.may_get_a_name.store(true, Ordering::Release);
        tx.finish()?;
        Ok(child)
    }
}
