//! Giving a file one more name.

use std::sync::atomic::Ordering;

use ext4_format::inode::{MAX_LINKS, flag};
use jbd2::Credits;

use super::names::{GROWTH_REVOKES, check_name};
use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::inode::{Inode, orphan};
use crate::node::{Dir, Node};
use crate::tx;
use crate::types::Credentials;

impl Dir {
    /// Makes `name` one more name of `node`, a file of the same filesystem.
    ///
    /// # Errors
    /// Those of [`Dir::link_as`].
    pub fn link(&self, name: impl AsRef<[u8]>, node: &Node) -> Result<()> {
        self.link_as(&Credentials::root(), name, node)
    }

    /// The same by somebody who may not take the blocks that are set aside.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted` for a directory or when inode flags forbid it, `TooManyLinks`,
    /// `NotFound` for a file that has lost its last name, `CrossDevice`, `NoSpace`.
    pub fn link_as(&self, caller: &Credentials, name: impl AsRef<[u8]>, node: &Node) -> Result<()> {
        let (fs, name) = (self.filesystem(), name.as_ref());
        fs.vol.writable()?;
        check_name(name)?;
        self.same_filesystem(node)?;
        if node.is_dir() {
            return Err(Posix::NotPermitted.into());
        }
        fs.with_retry(|| fs.link_in(caller, node.inode(), self.inode(), name))
    }
}

impl Filesystem {
    fn link_in(&self, caller: &Credentials, inode: &Inode, parent: &Inode, name: &[u8]) -> Result<()> {
        let _lock = parent.lock.write();
        let _inode_lock = inode.lock.write_ordered();
        let dir = self.dir(parent, caller);
        let room = dir.room(name)?;
        self.may_add(parent, inode.kind)?;
        {
            let core = inode.core.read();
            if core.disk.has(flag::IMMUTABLE | flag::APPEND) {
                return Err(Posix::NotPermitted.into());
            }
            if core.disk.links >= MAX_LINKS {
                return Err(Posix::TooManyLinks.into());
            }
            if core.disk.links == 0 && !inode.may_get_a_name.load(Ordering::Acquire) {
                return Err(Posix::NotFound.into());
            }
        }
        // The records of both, and the end of an orphan.
        let blocks = 2 + room.credits() + orphan::CREDITS;
        let tx = tx::start(&self.vol.journal, Credits { blocks, revokes: GROWTH_REVOKES })?;
        let spot = dir.make_room(&tx, room, name)?;
        let now = self.vol.now();
        dir.insert(&tx, &spot, name, inode.ino, inode.kind)?;
        {
            let mut core = inode.core.write();
            // A file that is being extended stays an orphan until that has ended, as any other.
            if core.disk.links == 0 && inode.io.lock().completed.is_settled() {
                self.orphans.remove(&tx, inode, &mut core)?;
            }
            core.disk.links += 1;
            inode.may_get_a_name.store(false, Ordering::Release);
            self.touch(&tx, inode, &mut core, now)?;
        }
        self.entries_changed(&tx, parent, 0, now)?;
        self.finish_names(tx, &[parent])
    }
}
