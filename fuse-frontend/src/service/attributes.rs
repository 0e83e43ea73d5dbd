//! Attributes, extended attributes, and those of the volume.

use fs_core::{Attr, Credentials, SetAttr, SetXattr, StatFs, Time, TimesFrom};

use super::{Answer, Sender, Service, is_immutable, node_of, refuse};

const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;

/// What SETATTR asks for, as the protocol has it.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<fs_core::SetTime>,
    /// Last change of content.
    pub mtime: Option<fs_core::SetTime>,
    /// Last change of the inode.
    pub ctime: Option<Time>,
    /// The request names a handle.
    pub names_handle: bool,
}

impl Service {
    /// GETATTR. The kernel names the handle when it asks on behalf of a write: for a seek or a read beyond
    /// the end it wants the size, which it keeps itself. This is where a write through its page cache can
    /// still be told that the volume is full ([`Service::write`]), or that the file is immutable.
    pub fn getattr(&self, sender: Sender, node: u64, for_write: bool) -> Answer<Attr> {
        let known = self.nodes.get(node)?;
        if for_write {
            let mut pages = known.pages.lock();
            if let Some(too_few) = pages.too_few {
                if self.fs.available_blocks(&self.caller(sender, 0)) <= too_few {
                    return Err(libc::ENOSPC);
                }
                pages.too_few = None;
            }
        }
        let attr = known.node().attributes().map_err(refuse)?;
        if for_write && is_immutable(&attr) { Err(libc::EPERM) } else { Ok(attr) }
    }

    /// SETATTR. With FUSE_HANDLE_KILLPRIV_V2 a change of owner or group takes set-id bits away,
    /// and so does a new size set by anyone but root.
    pub fn setattr(&self, sender: Sender, node: u64, change: &Change) -> Answer<Attr> {
        let owner_changes = change.uid.is_some() || change.gid.is_some();
        let caller = self.caller(sender, 0);
        let kills = change.mode.is_none() && (owner_changes || change.size.is_some() && caller.uid != 0);
        // Times alone, for a handle: a kernel that keeps them hands them in before fsync.
        let settles = change.names_handle
            && change.mode.is_none()
            && !owner_changes
            && change.size.is_none()
            && change.atime.is_none();
        let change = SetAttr {
            mode: change.mode.map(|m| m as u16),
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            atime: change.atime,
            mtime: change.mtime,
            times: match change.ctime {
                None => TimesFrom::Now,
                Some(time) if settles => TimesFrom::Earlier(time),
                Some(time) => TimesFrom::Caller(time),
            },
            kill_privileges: kills.then_some(caller),
            ..SetAttr::default()
        };
        self.nodes.get(node)?.node().set_attributes(&change).map_err(refuse)
    }

    /// STATFS.
    pub fn statfs(&self) -> Answer<StatFs> {
        self.fs.statfs().map_err(refuse)
    }

    /// SETXATTR, with the flags of setxattr(2). `kill_sgid` is what the kernel says about a new
    /// access control list taking set-group-id away, if it says anything (FUSE_SETXATTR_EXT).
    pub fn setxattr(
        &self,
        sender: Sender,
        node: u64,
        name: &[u8],
        value: &[u8],
        flags: i32,
        kill_sgid: Option<bool>,
    ) -> Answer<()> {
        let how = match flags {
            0 => SetXattr::Any,
            XATTR_CREATE => SetXattr::Create,
            XATTR_REPLACE => SetXattr::Replace,
            // It cannot be both; what it is decides which of the two is told.
            3 => {
                self.getxattr(node, name)?;
                SetXattr::Create
            }
            _ => return Err(libc::EINVAL),
        };
        let (known, caller) = (self.nodes.get(node)?, self.caller(sender, 0));
        let kill_sgid = match kill_sgid {
            Some(said) => said,
            // It does from a file of a group that is not the caller's.
            None => {
                caller.uid != 0
                    && name == b"system.posix_acl_access"
                    && known.node().attributes().map_err(refuse)?.gid != caller.gid
            }
        };
        known.node().set_xattr_as(&caller, name, value, how, kill_sgid).map_err(refuse)
    }

    /// Gives a file that was just made a security label, on the kernel's own behalf.
    pub fn label(&self, made: &Attr, name: &[u8], value: &[u8]) -> Answer<()> {
        let known = self.nodes.get(node_of(made.ino))?;
        known.node().set_xattr_as(&Credentials::root(), name, value, SetXattr::Any, false).map_err(refuse)
    }

    /// What a change of extended attributes may change of the attributes that the kernel knows: the space
    /// that the file takes, and the mode, by an access control list.
    pub fn aside_of_xattrs(&self, node: u64) -> Answer<(u64, u16)> {
        self.nodes.get(node)?.node().attributes().map(|attr| (attr.sectors, attr.mode)).map_err(refuse)
    }

    /// GETXATTR.
    pub fn getxattr(&self, node: u64, name: &[u8]) -> Answer<Vec<u8>> {
        if let Some(stats) = self.stats(node, name) {
            return Ok(stats);
        }
        self.nodes.get(node)?.node().xattr(name).map_err(refuse)
    }

    /// LISTXATTR: the names, each ended by a zero.
    pub fn listxattr(&self, sender: Sender, node: u64) -> Answer<Vec<u8>> {
        self.nodes.get(node)?.node().list_xattrs_as(&self.caller(sender, 0)).map_err(refuse)
    }

    /// REMOVEXATTR.
    pub fn removexattr(&self, sender: Sender, node: u64, name: &[u8]) -> Answer<()> {
        self.nodes.get(node)?.node().remove_xattr_as(&self.caller(sender, 0), name).map_err(refuse)
    }
}
