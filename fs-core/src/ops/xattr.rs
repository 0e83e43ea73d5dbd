//! Extended attributes and access control lists.

use ext4_format::inode::mode::{S_IRWXUGO, S_ISGID};
use ext4_format::inode::{FileType, flag};
use ext4_format::xattr::MAX_VALUE;
use ext4_format::{Corruption, What};
use jbd2::{Credits, Handle};
use smallvec::SmallVec;

use crate::alloc::Depth;
use crate::error::{Error, Posix, Result};
use crate::fs::Filesystem;
use crate::inode::{Core, Inode};
use crate::node::{Hold, Node};
use crate::tx;
use crate::types::Credentials;
use crate::xattr::acl::{Acl, Inherited};
use crate::xattr::name::{ACL_ACCESS, ACL_DEFAULT, CAPABILITY, visible};
use crate::xattr::{Changed, Ctx, DROP_CREDITS, Key, Xattrs, set_credits};

/// How setting treats a name that exists or does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SetXattr {
    /// Either is fine.
    #[default]
    Any,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
}

impl Node {
    /// The value of the extended attribute `name`. Access control lists come in the form of the
    /// system call.
    ///
    /// # Errors
    /// `NoData`, `NotSupported` for a namespace that ext4 does not have.
    pub fn xattr(&self, name: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let (fs, inode) = (self.filesystem(), self.inode());
        fs.vol.alive()?;
        let key = Key::parse(name.as_ref())?;
        let core = inode.core.read();
        let value = fs.xattrs_of(inode, Depth::Ordinary).get(&core, key)?.ok_or(Posix::NoData)?;
        if key.is_acl() {
            return Ok(fs.stored_acl(inode, &value)?.to_wire());
        }
        Ok(value)
    }

    /// The names of all extended attributes that the caller may see, each followed by a zero.
    ///
    /// # Errors
    /// Those of damaged attributes.
    pub fn list_xattrs_as(&self, caller: &Credentials) -> Result<Vec<u8>> {
        let (fs, inode) = (self.filesystem(), self.inode());
        fs.vol.alive()?;
        let core = inode.core.read();
        let mut list = Vec::new();
        fs.xattrs_of(inode, Depth::Ordinary).for_each(&core, |index, name| {
            if let Some(full) = visible(index, name, caller.uid == 0) {
                list.extend_from_slice(&full);
                list.push(0);
            }
        })?;
        Ok(list)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// Those of [`Node::set_xattr_as`].
    pub fn set_xattr(&self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>, how: SetXattr) -> Result<()> {
        self.set_xattr_as(&Credentials::root(), name, value, how, false)
    }

    /// Sets an extended attribute for `caller`, who may or may not take the blocks that are set aside. An access
    /// list moves the permission bits too, and is not stored where they say all of it; `drop_sgid` then takes
    /// set-group-id away, as a change by somebody outside the file's group must.
    ///
    /// # Errors
    /// `Exists`, `NoData` (by `how`), `NotSupported`, `ArgTooBig`, `NoSpace` when the value does
    /// not fit, `Invalid` for a bad access control list, `Access` for a default list on anything
    /// but a directory, `NotPermitted` on immutable and append-only inodes.
    pub fn set_xattr_as(
        &self,
        caller: &Credentials,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        how: SetXattr,
        drop_sgid: bool,
    ) -> Result<()> {
        let (fs, inode, value) = (self.filesystem(), self.inode(), value.as_ref());
        may_change_xattrs(inode)?;
        let key = Key::parse(name.as_ref())?;
        if value.len() > MAX_VALUE {
            return Err(Posix::ArgTooBig.into());
        }
        if !key.is_acl() {
            return fs.change_xattr(caller, inode, key, Some(value), how, None);
        }
        let acl = Acl::from_wire(value)?;
        let kind = self.kind();
        if kind == FileType::Symlink {
            return Err(Posix::NotSupported.into());
        }
        if key == ACL_DEFAULT {
            if kind != FileType::Directory {
                return if acl.is_some() { Err(Posix::Access.into()) } else { Ok(()) };
            }
            let stored = acl.map(|acl| acl.to_disk());
            return fs.change_xattr(caller, inode, key, stored.as_deref(), SetXattr::Any, None);
        }
        let Some(acl) = acl else {
            return fs.change_xattr(caller, inode, key, None, SetXattr::Any, None);
        };
        let (mode, says_all) = acl.as_mode();
        let stored = (!says_all).then(|| acl.to_disk());
        let take = S_IRWXUGO | if drop_sgid { S_ISGID } else { 0 };
        fs.change_xattr(caller, inode, key, stored.as_deref(), SetXattr::Any, Some((take, mode)))
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// Those of [`Node::remove_xattr_as`].
    pub fn remove_xattr(&self, name: impl AsRef<[u8]>) -> Result<()> {
        self.remove_xattr_as(&Credentials::root(), name)
    }

    /// Removes an extended attribute for `caller`. Removing an access control list that is not there
    /// is no error.
    ///
    /// # Errors
    /// `NoData`, `NotSupported`, `NotPermitted` on immutable and append-only inodes.
    pub fn remove_xattr_as(&self, caller: &Credentials, name: impl AsRef<[u8]>) -> Result<()> {
        let inode = self.inode();
        may_change_xattrs(inode)?;
        let key = Key::parse(name.as_ref())?;
        let how = if key.is_acl() { SetXattr::Any } else { SetXattr::Replace };
        self.filesystem().change_xattr(caller, inode, key, None, how, None)
    }
}

/// Refuses what the inode's flags forbid, whatever the attribute's name.
fn may_change_xattrs(inode: &Inode) -> Result<()> {
    let forbidding = flag::IMMUTABLE | flag::APPEND;
    match inode.core.read().disk.flags & forbidding {
        0 => Ok(()),
        _ => Err(Posix::NotPermitted.into()),
    }
}

impl Filesystem {
    /// Sets or removes an attribute, and the bits of the mode that go with it: those to take off
    /// and those to put on.
    fn change_xattr(
        &self,
        caller: &Credentials,
        inode: &Inode,
        key: Key<'_>,
        value: Option<&[u8]>,
        how: SetXattr,
        mode: Option<(u16, u16)>,
    ) -> Result<()> {
        self.vol.writable()?;
        self.with_retry(|| {
            let _lock = inode.lock.write();
            let xattrs = self.xattrs_of(inode, self.depth(caller));
            {
                let core = inode.core.read();
                if core.disk.flags & (flag::IMMUTABLE | flag::APPEND) != 0 {
                    return Err(Posix::NotPermitted.into());
                }
                match (how, xattrs.get(&core, key)?.is_some()) {
                    (SetXattr::Create, true) => return Err(Posix::Exists.into()),
                    (SetXattr::Replace, false) => return Err(Posix::NoData.into()),
                    _ => {}
                }
            }
            let mut credits = set_credits(&self.vol, value.map_or(0, <[u8]>::len));
            credits.blocks += 1;
            let tx = tx::start(&self.vol.journal, credits)?;
            let mut change = Changed::default();
            let done = {
                let mut core = inode.core.write();
                let set = xattrs.set(&tx, &mut core, key, value, &mut change);
                set.and_then(|()| {
                    if let Some((take, put)) = mode {
                        core.disk.mode = core.disk.mode & !take | put;
                    } else if !change.changed {
                        return Ok(());
                    }
                    self.touch(&tx, inode, &mut core, self.vol.now())
                })
            };
            self.finish_change(tx, change, done)
        })
    }

    /// Ends the handle of an attribute change: value inodes that it dropped become orphans in it
    /// and are deleted behind it, those of a change that was refused, too.
    pub(crate) fn finish_change<T>(&self, tx: tx::Tx<'_>, change: Changed, done: Result<T>) -> Result<T> {
        let mut handles: SmallVec<[Hold<'_>; 2]> = SmallVec::new();
        let mut orphaned = Ok(());
        for ino in change.dropped {
            let made = self.hold(ino).and_then(|value| {
                handles.push(value);
                self.make_orphan(&tx, &handles[handles.len() - 1])
            });
            orphaned = orphaned.and(made);
        }
        let ended = tx.finish();
        // Deletes them: not before the journal handle has ended.
        drop(handles);
        orphaned?;
        done.and_then(|done| ended.map(|()| done))
    }

    fn make_orphan(&self, handle: &Handle<'_>, inode: &Inode) -> Result<()> {
        let mut core = inode.core.write();
        core.disk.links = 0;
        self.orphans.add(handle, inode, &mut core)?;
        self.inodes.store(handle, inode, &mut core)
    }

    /// The default access control list of a directory.
    pub(super) fn default_acl(&self, dir: &Inode) -> Result<Option<Acl>> {
        let core = dir.core.read();
        self.read_acl(dir, &core, ACL_DEFAULT)
    }

    /// Credits for [`Filesystem::inherit_acls`].
    pub(super) fn inherited_credits(&self, inherited: &Inherited) -> u32 {
        let lists = [&inherited.access, &inherited.default].into_iter().flatten();
        lists.map(|acl| set_credits(&self.vol, acl.to_disk().len()).blocks).sum()
    }

    /// Gives a new file the lists that it inherits; it is stored afterwards.
    pub(super) fn inherit_acls(
        &self,
        handle: &Handle<'_>,
        caller: &Credentials,
        child: &Inode,
        inherited: &Inherited,
    ) -> Result<()> {
        if inherited.access.is_none() && inherited.default.is_none() {
            return Ok(());
        }
        let xattrs = self.xattrs_of(child, self.depth(caller));
        let mut core = child.core.write();
        // A new inode has no value that could be dropped.
        let mut change = Changed::default();
        // The first has the first claim to the place in the inode: the default one, as with the kernel.
        for (key, acl) in [(ACL_DEFAULT, &inherited.default), (ACL_ACCESS, &inherited.access)] {
            if let Some(acl) = acl {
                xattrs.set(handle, &mut core, key, Some(&acl.to_disk()), &mut change)?;
            }
        }
        self.inodes.store(handle, child, &mut core)
    }

    /// Credits for [`Filesystem::acl_chmod`], besides storing the inode.
    pub(crate) fn acl_chmod_credits(&self, inode: &Inode) -> Credits {
        let core = inode.core.read();
        match self.read_acl(inode, &core, ACL_ACCESS) {
            Ok(None) => Credits::default(),
            Ok(Some(acl)) => set_credits(&self.vol, acl.to_disk().len()),
            Err(_) => set_credits(&self.vol, 0),
        }
    }

    /// Lets the access control list of `inode` follow its mode, which was just changed.
    pub(crate) fn acl_chmod(
        &self,
        handle: &Handle<'_>,
        inode: &Inode,
        core: &mut Core,
        change: &mut Changed,
    ) -> Result<()> {
        let Some(acl) = self.read_acl(inode, core, ACL_ACCESS)? else { return Ok(()) };
        let stored = acl.with_mode(core.disk.mode).to_disk();
        let xattrs = self.xattrs_of(inode, Depth::Privileged);
        xattrs.set(handle, core, ACL_ACCESS, Some(&stored), change)
    }

    /// Credits for [`Filesystem::drop_capabilities`]: none when there is nothing to drop.
    pub(crate) fn drop_capabilities_credits(&self, inode: &Inode) -> Credits {
        let core = inode.core.read();
        match self.xattrs_of(inode, Depth::Ordinary).get(&core, CAPABILITY) {
            Ok(None) => Credits::default(),
            _ => set_credits(&self.vol, 0),
        }
    }

    /// Takes away file capabilities (`security.capability`), as a write or a change of owner
    /// must. The caller stores the inode.
    pub(crate) fn drop_capabilities(
        &self,
        handle: &Handle<'_>,
        inode: &Inode,
        core: &mut Core,
        change: &mut Changed,
    ) -> Result<()> {
        let xattrs = self.xattrs_of(inode, Depth::Privileged);
        xattrs.set(handle, core, CAPABILITY, None, change)
    }

    /// Gives up the attributes of an inode that is being deleted.
    pub(crate) fn free_xattrs(&self, inode: &Inode) -> Result<()> {
        let xattrs = self.xattrs_of(inode, Depth::Ordinary);
        let (any, values) = xattrs.holdings(&inode.core.read())?;
        if !any {
            return Ok(());
        }
        let mut credits = set_credits(&self.vol, 0);
        credits.blocks += 1 + values * DROP_CREDITS;
        let tx = tx::start(&self.vol.journal, credits)?;
        let mut change = Changed::default();
        let done = {
            let mut core = inode.core.write();
            let freed = xattrs.free(&tx, &mut core, &mut change);
            freed.and_then(|()| self.inodes.store(&tx, inode, &mut core))
        };
        self.finish_change(tx, change, done)
    }

    /// Moves attributes out of the record of an inode that is about to be stored where they keep its extra fields
    /// from growing, as far as there are space and credits for it.
    pub(super) fn make_room_for_extra(
        &self,
        handle: &Handle<'_>,
        inode: &Inode,
        core: &mut Core,
    ) -> Result<()> {
        let (xattrs, room) = (self.xattrs_of(inode, Depth::Ordinary), self.inodes.room_behind_extra());
        if !self.inodes.lacks_extra(core)
            || !xattrs.exceed(core, room)?
            || !handle.extend(set_credits(&self.vol, 0))?
        {
            return Ok(());
        }
        match xattrs.move_out(handle, core, room) {
            Err(Error::NoSpace) => Ok(()),
            moved => moved,
        }
    }

    fn read_acl(&self, inode: &Inode, core: &Core, key: Key<'_>) -> Result<Option<Acl>> {
        match self.xattrs_of(inode, Depth::Ordinary).get(core, key)? {
            Some(value) => self.stored_acl(inode, &value).map(Some),
            None => Ok(None),
        }
    }

    fn stored_acl(&self, inode: &Inode, value: &[u8]) -> Result<Acl> {
        Acl::from_disk(value).ok_or_else(|| {
            let c = Corruption::new(What::Xattr, "access control list", value.len() as u64, 0);
            self.vol.corrupt(c.in_inode(inode.ino))
        })
    }

    fn xattrs_of<'a>(&'a self, inode: &'a Inode, depth: Depth) -> Xattrs<'a> {
        let ctx = Ctx { vol: &self.vol, alloc: &self.alloc, table: &self.inodes, cache: &self.xattrs, depth };
        Xattrs::new(ctx, inode)
    }
}
