//! Writing a file.

use ext4_format::Ino;
use ext4_format::inode::flag;

use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::types::Caller;

/// What kind of write it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteMode {
    /// Answered when the data are in write-behind.
    Buffered,
    /// The same, from the page cache of a kernel that keeps the file's times itself.
    Writeback,
    /// Answered when the data are on the device.
    Direct,
}

impl Filesystem {
    /// Writes `data` at byte `offset`; gives the number of bytes written, fewer only when the
    /// largest file size or the end of the space is in the way. `kill_privileges` takes
    /// set-user-id and set-group-id away.
    ///
    /// # Errors
    /// `FileTooBig`, `NoSpace`, `NotPermitted` on an immutable file, the device's for direct
    /// writes.
    pub fn write(
        &self,
        caller: &Caller,
        ino: Ino,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
        kill_privileges: bool,
    ) -> Result<usize> {
        self.vol.writable()?;
        let inode = self.regular(ino)?;
        if data.is_empty() {
            return Ok(0);
        }
        let (limit, flags) = {
            let core = inode.core.read();
            (self.max_size(&core.map), core.disk.flags)
        };
        if flags & flag::IMMUTABLE != 0 {
            return Err(Posix::NotPermitted.into());
        }
        if offset >= limit {
            return Err(Posix::FileTooBig.into());
        }
        let data = &data[..data.len().min(usize::try_from(limit - offset).unwrap_or(usize::MAX))];
        let privileged = self.may_use_reserve(caller);
        self.data.close_gap(&inode, offset)?;
        self.data.touch(&inode, mode != WriteMode::Writeback, kill_privileges)?;
        if mode == WriteMode::Direct {
            return self.data.write_direct(&inode, offset, data, privileged);
        }
        self.data.throttle(&inode);
        let _shared = inode.lock.read();
        self.data.write_behind(&inode, offset, data, privileged)?;
        Ok(data.len())
    }

    /// Whether `caller` may use the blocks that are set aside.
    pub(crate) fn may_use_reserve(&self, caller: &Caller) -> bool {
        let opts = &self.vol.opts;
        let sb = self.vol.sb.lock();
        let uid = opts.reserved_uid.unwrap_or_else(|| sb.reserved_uid().into());
        let gid = opts.reserved_gid.unwrap_or_else(|| sb.reserved_gid().into());
        caller.uid == 0 || caller.uid == uid || (gid != 0 && caller.gid == gid)
    }
}
