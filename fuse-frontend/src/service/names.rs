//! Requests about names: find, make, take away, move.

use fs_core::{Attr, RenameFlags};

use super::{Answer, Sender, Service, decode_device, refuse};

impl Service {
    /// LOOKUP. A name that does not exist is an error of its own, so that a door can let the
    /// kernel remember its absence.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Answer<Attr> {
        let node = self.nodes.get(parent)?.dir()?.lookup(name).map_err(refuse)?;
        self.remember(node)
    }

    /// FORGET.
    pub fn forget(&self, node: u64, count: u64) {
        self.nodes.forget(node, count);
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
    ) -> Answer<Attr> {
        let caller = self.owner(sender, umask);
        let (known, rdev) = (self.nodes.get(parent)?, decode_device(rdev));
        let made = known.dir()?.mknod_as(&caller, name, mode as u16, rdev).map_err(refuse)?;
        self.remember(made)
    }

    /// The making half of TMPFILE: a regular file without a name, to be opened and, maybe, linked.
    pub fn tmpfile(&self, sender: Sender, parent: u64, mode: u32, umask: u32) -> Answer<Attr> {
        let (known, caller) = (self.nodes.get(parent)?, self.owner(sender, umask));
        let made = known.dir()?.tmpfile_as(&caller, mode as u16).map_err(refuse)?;
        self.remember(made)
    }

    /// MKDIR.
    pub fn mkdir(&self, sender: Sender, parent: u64, name: &[u8], mode: u32, umask: u32) -> Answer<Attr> {
        let caller = self.owner(sender, umask);
        let known = self.nodes.get(parent)?;
        let made = known.dir()?.create_dir_as(&caller, name, mode as u16).map_err(refuse)?;
        self.remember(made.into())
    }

    /// SYMLINK.
    pub fn symlink(&self, sender: Sender, parent: u64, name: &[u8], target: &[u8]) -> Answer<Attr> {
        let (known, caller) = (self.nodes.get(parent)?, self.owner(sender, 0));
        let made = known.dir()?.symlink_as(&caller, name, target).map_err(refuse)?;
        self.remember(made)
    }

    /// READLINK.
    pub fn readlink(&self, node: u64) -> Answer<Vec<u8>> {
        self.nodes.get(node)?.node().read_link().map_err(refuse)
    }

    /// LINK.
    pub fn link(&self, sender: Sender, node: u64, parent: u64, name: &[u8]) -> Answer<Attr> {
        let (known, parent) = (self.nodes.get(node)?, self.nodes.get(parent)?);
        parent.dir()?.link_as(&self.caller(sender, 0), name, known.node()).map_err(refuse)?;
        self.remember(known.node().clone())
    }

    /// UNLINK.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Answer<()> {
        let removed = self.nodes.get(parent)?.dir()?.unlink(name).map_err(refuse)?;
        self.nodes.unlinked(&removed);
        Ok(())
    }

    /// RMDIR.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Answer<()> {
        let removed = self.nodes.get(parent)?.dir()?.rmdir(name).map_err(refuse)?;
        self.nodes.unlinked(&removed);
        Ok(())
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
        let (source, target) = (self.nodes.get(from.0)?, self.nodes.get(to.0)?);
        let replaced = source.dir()?.rename_as(&caller, from.1, target.dir()?, to.1, flags);
        if let Some(replaced) = replaced.map_err(refuse)? {
            self.nodes.unlinked(&replaced);
        }
        Ok(())
    }
}
