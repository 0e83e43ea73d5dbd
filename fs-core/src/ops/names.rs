//! What the operations on names share: finding the directory and the child, refusing what inode
//! flags forbid, and the bookkeeping of times and link counts.

use std::sync::Arc;

use ext4_format::dirent::MAX_NAME;
use ext4_format::inode::{FileType, LINKS_UNCOUNTED, MAX_LINKS, Time, flag};
use ext4_format::{Corruption, Ino, What};
use jbd2::Handle;

use crate::alloc::Depth;
use crate::dir::{Dir, Found};
use crate::error::{Error, Posix, Result};
use crate::fs::Filesystem;
use crate::inode::{Core, Inode};
use crate::node::{Hold, Node};
use crate::tx::Tx;
use crate::types::Credentials;

/// Refuses what cannot be the name of a new or removed entry.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(Posix::NameTooLong.into());
    }
    if name.is_empty() {
        return Err(Posix::NotFound.into());
    }
    if matches!(name, b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/')) {
        return Err(Posix::Invalid.into());
    }
    Ok(())
}

impl Node {
    /// Refuses what belongs to another filesystem.
    pub(super) fn same_filesystem(&self, other: &Node) -> Result<()> {
        let same = Arc::ptr_eq(self.filesystem(), other.filesystem());
        if same { Ok(()) } else { Err(Posix::CrossDevice.into()) }
    }
}

impl Filesystem {
    /// The directory `ino`.
    pub(super) fn directory(&self, ino: Ino) -> Result<Hold<'_>> {
        let inode = self.hold(ino)?;
        if inode.is_dir() { Ok(inode) } else { Err(Posix::NotDirectory.into()) }
    }

    /// The entries of `inode`, for `caller` to change.
    pub(super) fn dir<'a>(&'a self, inode: &'a Inode, caller: &Credentials) -> Dir<'a> {
        Dir::new(&self.dirs, &self.vol, &self.alloc, &self.inodes, inode, self.depth(caller))
    }

    /// The entries of `inode`, to be looked at and taken out.
    pub(super) fn entries<'a>(&'a self, inode: &'a Inode) -> Dir<'a> {
        Dir::new(&self.dirs, &self.vol, &self.alloc, &self.inodes, inode, Depth::Ordinary)
    }

    /// How deep the caller may reach for space.
    pub(super) fn depth(&self, caller: &Credentials) -> Depth {
        Depth::of(self.may_use_reserve(caller))
    }

    /// Tries again when there was no space: after the deletions under way, and when freed blocks have become
    /// available.
    pub(super) fn with_retry<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let mut retry = self.alloc.retry();
        loop {
            match self.after_reclaim(&mut attempt) {
                Err(Error::NoSpace) if self.alloc.should_retry(&mut retry)? => {}
                other => return other,
            }
        }
    }

    /// The inode that an entry of `parent` names. An entry that names a free inode or the
    /// directory itself is damage.
    pub(super) fn child(&self, parent: &Inode, found: &Found) -> Result<Hold<'_>> {
        let damaged = |field| {
            let c = Corruption::new(What::DirBlock, field, found.ino.get().into(), 0);
            Err(self.vol.corrupt(c.in_inode(parent.ino)))
        };
        if found.ino == parent.ino {
            return damaged("entry names its own directory");
        }
        match self.hold(found.ino) {
            Err(Error::Posix(Posix::Stale)) => damaged("entry names a free inode"),
            other => other,
        }
    }

    /// Stores `dir` after its entries changed at `now`, with `links` subdirectories more.
    pub(super) fn entries_changed(
        &self,
        handle: &Handle<'_>,
        dir: &Inode,
        links: i32,
        now: Time,
    ) -> Result<()> {
        let mut core = dir.core.write();
        core.disk.mtime = now;
        if !self.dirs.indexed {
            // Linear edits outdate an index that the volume no longer has the feature for.
            core.disk.flags &= !flag::INDEX;
        }
        let loosely = self.counts_subdirectories_loosely(&core);
        core.count_subdirectories(links, loosely);
        self.touch(handle, dir, &mut core, now)
    }

    /// Ends an operation on the names of `dirs`: it is durable at once where one of them is marked
    /// synchronous (`chattr +D`, `+S`).
    pub(super) fn finish_names(&self, tx: Tx<'_>, dirs: &[&Inode]) -> Result<()> {
        let tid = tx.tid();
        tx.finish()?;
        let marks = flag::SYNC | flag::DIRSYNC;
        if dirs.iter().any(|dir| dir.core.read().disk.flags & marks != 0) {
            self.vol.journal.commit(tid)?;
        }
        Ok(())
    }

    /// Stores `inode` with a new change time.
    pub(super) fn touch(&self, handle: &Handle<'_>, inode: &Inode, core: &mut Core, now: Time) -> Result<()> {
        core.disk.ctime = now;
        core.disk.version = core.disk.version.wrapping_add(1);
        self.make_room_for_extra(handle, inode, core)?;
        self.inodes.store(handle, inode, core)
    }

    /// Whether the link count of this directory may become "uncounted" instead of too large.
    fn counts_subdirectories_loosely(&self, core: &Core) -> bool {
        self.dirs.links_uncounted && core.disk.has(flag::INDEX)
    }

    /// Refuses names for or from a directory that is going away.
    pub(super) fn alive(&self, dir: &Inode) -> Result<()> {
        if dir.core.read().disk.links == 0 { Err(Posix::NotFound.into()) } else { Ok(()) }
    }

    /// Refuses a new name in `dir`, which must not be case-insensitive; with `kind` a directory it also counts a link.
    pub(super) fn may_add(&self, dir: &Inode, kind: FileType) -> Result<()> {
        self.alive(dir)?;
        let core = dir.core.read();
        if core.disk.has(flag::IMMUTABLE) {
            return Err(Posix::NotPermitted.into());
        }
        if self.entries(dir).folds(&core) {
            return Err(Posix::NotSupported.into());
        }
        let full = core.disk.links >= MAX_LINKS && !self.counts_subdirectories_loosely(&core);
        if kind == FileType::Directory && full {
            return Err(Posix::TooManyLinks.into());
        }
        Ok(())
    }

    /// Refuses to take the name of `child` out of `dir`.
    pub(super) fn may_remove(&self, dir: &Inode, child: &Inode) -> Result<()> {
        let frozen = flag::IMMUTABLE | flag::APPEND;
        for inode in [dir, child] {
            if inode.core.read().disk.flags & frozen != 0 {
                return Err(Posix::NotPermitted.into());
            }
        }
        if self.entries(dir).folds(&dir.core.read()) {
            return Err(Posix::NotSupported.into());
        }
        Ok(())
    }

    /// Takes one name from `child`, whose lock is held; the last one makes it an orphan. Costs
    /// [`DROP_LINK_CREDITS`].
    pub(super) fn drop_link(&self, handle: &Handle<'_>, child: &Inode, now: Time) -> Result<()> {
        let mut core = child.core.write();
        core.disk.links = if child.is_dir() { 0 } else { core.disk.links.saturating_sub(1) };
        if core.disk.links == 0 {
            self.orphans.add(handle, child, &mut core)?;
        }
        self.touch(handle, child, &mut core, now)
    }
}

/// Revoke credits of an operation that may make a directory larger: blocks that it has to give
/// back when the volume is full halfway.
pub(super) const GROWTH_REVOKES: u32 = 8;

/// The inode's record and what making it an orphan takes.
pub(super) const DROP_LINK_CREDITS: u32 = 1 + crate::inode::orphan::CREDITS;

impl Core {
    /// Adds `more` to the link count of a directory. Beyond the format's limit, and for ever
    /// after, an indexed directory has [`LINKS_UNCOUNTED`].
    fn count_subdirectories(&mut self, more: i32, loosely: bool) {
        let links = self.disk.links;
        if more == 0 || links == LINKS_UNCOUNTED {
            return;
        }
        let sum = (i32::from(links) + more).clamp(2, i32::from(u16::MAX)) as u16;
        self.disk.links = if loosely && sum > MAX_LINKS { LINKS_UNCOUNTED } else { sum };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_any_bytes_but_slash_and_nul() {
        assert!(check_name(&[b'n'; 255]).is_ok());
        assert!(check_name(b"\xff\x01...").is_ok());
        for (name, want) in [
            (&[b'n'; 256][..], Posix::NameTooLong),
            (b"", Posix::NotFound),
            (b".", Posix::Invalid),
            (b"..", Posix::Invalid),
            (b"a/b", Posix::Invalid),
            (b"a\0", Posix::Invalid),
        ] {
            assert!(matches!(check_name(name), Err(Error::Posix(p)) if p == want), "{name:?}");
        }
    }
}
