//! Requests about names: find, make, take away, move.

use fs_core::{Entry, RenameFlags};

use super::{Answer, Sender, Service, decode_device, inode_of, refuse};

impl Service {
    /// LOOKUP. A name that does not exist is an error of its own, so that a door can let the
    /// kernel remember its absence.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Answer<Entry> {
        self.fs.lookup(inode_of(parent)?, name).map_err(refuse)
    }

    /// FORGET.
    pub fn forget(&self, node: u64, count: u64) {
        if let Ok(ino) = inode_of(node) {
            self.fs.forget(ino, count);
        }
    }

    /// MKNOD, and the making half of CREATE.
    pub fn mknod(
        &self,
        sender: Sender,
        parent: u64,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Answer<Entry> {
        let caller = self.owner(sender, umask);
        self.fs.mknod(&caller, inode_of(parent)?, name, mode as u16, decode_device(rdev)).map_err(refuse)
    }

    /// The making half of TMPFILE: a regular file without a name, to be opened and, maybe, linked.
    pub fn tmpfile(&self, sender: Sender, parent: u64, mode: u32, umask: u32) -> Answer<Entry> {
        self.fs.tmpfile(&self.owner(sender, umask), inode_of(parent)?, mode as u16).map_err(refuse)
    }

    /// MKDIR.
    pub fn mkdir(&self, sender: Sender, parent: u64, name: &[u8], mode: u32, umask: u32) -> Answer<Entry> {
        let caller = self.owner(sender, umask);
        self.fs.mkdir(&caller, inode_of(parent)?, name, mode as u16).map_err(refuse)
    }

    /// SYMLINK.
    pub fn symlink(&self, sender: Sender, parent: u64, name: &[u8], target: &[u8]) -> Answer<Entry> {
        self.fs.symlink(&self.owner(sender, 0), inode_of(parent)?, name, target).map_err(refuse)
    }

    /// READLINK.
    pub fn readlink(&self, node: u64) -> Answer<Vec<u8>> {
        self.fs.readlink(inode_of(node)?).map_err(refuse)
    }

    /// LINK.
    pub fn link(&self, sender: Sender, node: u64, parent: u64, name: &[u8]) -> Answer<Entry> {
        self.fs.link(&self.caller(sender, 0), inode_of(node)?, inode_of(parent)?, name).map_err(refuse)
    }

    /// UNLINK.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Answer<()> {
        self.fs.unlink(inode_of(parent)?, name).map_err(refuse)
    }

    /// RMDIR.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Answer<()> {
        self.fs.rmdir(inode_of(parent)?, name).map_err(refuse)
    }

    /// RENAME2, with the flags of renameat2(2).
    pub fn rename(&self, sender: Sender, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Answer<()> {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0 {
            return Err(libc::EINVAL);
        }
        let flags = RenameFlags {
            no_replace: flags & libc::RENAME_NOREPLACE != 0,
            exchange: flags & libc::RENAME_EXCHANGE != 0,
            whiteout: flags & libc::RENAME_WHITEOUT != 0,
        };
        let caller = self.caller(sender, 0);
        let (from, to) = ((inode_of(from.0)?, from.1), (inode_of(to.0)?, to.1));
        self.fs.rename(&caller, from, to, flags).map_err(refuse)
    }
}
