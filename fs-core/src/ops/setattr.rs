//! Changing attributes.

use std::sync::Arc;

use ext4_format::inode::{FileType, Time, flag};
use jbd2::Handle;

use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::inode::{Core, Inode};
use crate::node::{Node, OpenFile};
use crate::tx;
use crate::types::{Attr, Credentials, SetAttr, SetTime, TimesFrom};
use crate::xattr::Changed;

const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o010;

impl Node {
    /// Changes what `change` names and gives the attributes that hold afterwards. Permission to
    /// do so is the caller's to check; what the inode's own flags forbid is refused here.
    ///
    /// # Errors
    /// `NotPermitted` on an immutable or (for anything but a new time of now) append-only inode,
    /// `FileTooBig`, `NoSpace`, and those of the journal.
    pub fn set_attributes(&self, change: &SetAttr) -> Result<Attr> {
        self.filesystem().set_attributes(self.inode(), change)
    }
}

impl OpenFile {
    /// Sets the size in bytes. What comes into the file reads as zeros.
    ///
    /// # Errors
    /// `BadHandle` when it was not opened for writing, and those of [`Node::set_attributes`].
    pub fn set_len(&self, size: u64) -> Result<()> {
        self.expect_writable()?;
        self.set_attributes(&SetAttr { size: Some(size), ..SetAttr::default() }).map(drop)
    }
}

impl Filesystem {
    fn set_attributes(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result<Attr> {
        self.vol.writable()?;
        {
            let flags = inode.core.read().disk.flags;
            let forbidden =
                flags & flag::IMMUTABLE != 0 || flags & flag::APPEND != 0 && !only_touches(change);
            if forbidden && !matches!(change.times, TimesFrom::Earlier(_)) {
                return Err(Posix::NotPermitted.into());
            }
        }
        if let Some(size) = change.size {
            self.truncate(inode, size)?;
        }
        let _lock = inode.lock.write();
        // The inode's record; an access control list that follows the mode takes its own.
        let mut credits = self.acl_chmod_credits(inode);
        credits.blocks += 1;
        if change.kill_privileges.is_some() {
            let more = self.drop_capabilities_credits(inode);
            credits.blocks += more.blocks;
            credits.revokes += more.revokes;
        }
        let tx = tx::start(&self.vol.journal, credits)?;
        let mut left = Changed::default();
        let done = self.change(&tx, inode, change, &mut left);
        self.finish_change(tx, left, done)
    }

    /// The part of [`Filesystem::set_attributes`] within its handle.
    fn change(
        &self,
        handle: &Handle<'_>,
        inode: &Inode,
        change: &SetAttr,
        left: &mut Changed,
    ) -> Result<Attr> {
        let mut core = inode.core.write();
        let now = self.vol.now();
        self.apply(&mut core, inode.kind, change, now);
        if change.mode.is_some() {
            self.acl_chmod(handle, inode, &mut core, left)?;
        }
        if change.kill_privileges.is_some() {
            self.drop_capabilities(handle, inode, &mut core, left)?;
        }
        self.make_room_for_extra(handle, inode, &mut core)?;
        self.inodes.store(handle, inode, &mut core)?;
        Ok(inode.attr(&core))
    }

    fn apply(&self, core: &mut Core, kind: FileType, change: &SetAttr, now: Time) {
        let disk = &mut core.disk;
        if let Some(mode) = change.mode {
            disk.mode = (disk.mode & FileType::MODE_MASK) | (mode & !FileType::MODE_MASK);
        }
        if let Some(caller) = &change.kill_privileges
            && kind != FileType::Directory
        {
            disk.mode = without_privileges(disk.mode, disk.gid, caller);
        }
        disk.uid = change.uid.unwrap_or(disk.uid);
        disk.gid = change.gid.unwrap_or(disk.gid);
        let at = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => self.vol.storable(time),
        };
        disk.atime = change.atime.map_or(disk.atime, at);
        disk.mtime = change.mtime.map_or(disk.mtime, at);
        disk.ctime = self.vol.storable(change.times.ctime().unwrap_or(now));
        if disk.crtime.is_some() {
            disk.crtime = change.crtime.or(disk.crtime);
        }
        disk.version = disk.version.wrapping_add(1);
    }
}

/// The mode of a file of group `gid` after a change by `caller`. Set-group-id without group
/// execution is a mark, no privilege: members of the group keep it.
pub(super) fn without_privileges(mode: u16, gid: u32, caller: &Credentials) -> u16 {
    let outsider = caller.uid != 0 && !caller.is_in_group(gid);
    let group = if mode & S_IXGRP != 0 || outsider { S_ISGID } else { 0 };
    mode & !(S_ISUID | group)
}

/// What append-only inodes allow: setting both times to now. For a caller who keeps the times itself, now is
/// the time that it gives for the change of the inode.
fn only_touches(change: &SetAttr) -> bool {
    let now = |time: Option<SetTime>| match time {
        Some(SetTime::Now) => true,
        Some(SetTime::At(time)) => change.times.ctime() == Some(time),
        None => false,
    };
    change.mode.is_none()
        && change.uid.is_none()
        && change.gid.is_none()
        && change.size.is_none()
        && now(change.atime)
        && now(change.mtime)
}
