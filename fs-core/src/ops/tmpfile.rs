//! Making a regular file without a name (O_TMPFILE): an orphan from its first moment, so that it
//! goes with its last user or with a crash, unless [`Filesystem::link`] gives it a name before.

use std::sync::atomic::Ordering;

use ext4_format::Ino;
use ext4_format::inode::FileType;
use jbd2::Credits;

use super::create::{Content, Wanted};
use super::names::DROP_LINK_CREDITS;
use crate::error::Result;
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::tx;
use crate::types::{Caller, Entry};

impl Filesystem {
    /// Makes a regular file with permissions `mode` that has no name; what it inherits it takes
    /// from the directory `parent`. One reference of the kernel comes with the answer.
    ///
    /// # Errors
    /// `NotDirectory`, `NotFound` in a directory that was removed, `NoSpace`.
    pub fn tmpfile(&self, caller: &Caller, parent: Ino, mode: u16) -> Result<Entry> {
        self.vol.writable()?;
        let parent = self.directory(parent)?;
        let mode = FileType::Regular.mode_bits() | mode & !FileType::MODE_MASK;
        let wanted = Wanted { kind: FileType::Regular, mode, content: Content::Nothing };
        self.with_retry(|| self.tmpfile_in(caller, &parent, &wanted))
    }

    fn tmpfile_in(&self, caller: &Caller, parent: &Inode, wanted: &Wanted<'_>) -> Result<Entry> {
        let _lock = parent.lock.read();
        self.alive(parent)?;
        let inherited = self.inherited(caller, parent, wanted)?;
        let credits = self.child_credits(&inherited, wanted) + DROP_LINK_CREDITS;
        let tx = tx::start(&self.vol.journal, Credits::blocks(credits))?;
        let child = self.new_child(&tx, caller, parent, wanted, &inherited)?;
        {
            let mut core = child.core.write();
            core.disk.links = 0;
            self.orphans.add(&tx, &child, &mut core)?;
            self.inodes.store(&tx, &child, &mut core)?;
        }
        child.may_get_a_name.store(true, Ordering::Release);
        let entry = self.entry(&child);
        tx.finish()?;
        Ok(entry)
    }
}
