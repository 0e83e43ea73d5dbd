//! Writing a file.

use std::sync::Arc;

use ext4_format::inode::flag;
use ext4_format::inode::mode::{S_ISGID, S_ISUID};
use jbd2::Credits;

use super::setattr::without_privileges;
use crate::data::{Failed, Place, wait_clear};
use crate::error::{Error, Posix, Result};
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::node::{Node, OpenFile};
use crate::tx;
use crate::types::Credentials;
use crate::xattr::Changed;

/// What kind of write it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteKind {
    /// Returns when the data are in write-behind.
    Cached,
    /// The same for data whose writer was answered earlier, by a cache that the caller keeps: inode flags set
    /// since do not apply to them, the file's times are the caller's to set, and a failure is reported by this
    /// call only, not by fsync.
    Delayed,
    /// Returns when the data are on the device.
    Direct,
}

impl OpenFile {
    /// Writes `data` at byte `offset`, to be written out later; gives the number of bytes taken, fewer only
    /// when the largest file size or the end of the space is in the way.
    ///
    /// # Errors
    /// Those of [`OpenFile::write_as`].
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<usize> {
        self.write_as(&Credentials::root(), data, offset, WriteKind::Cached)
    }

    /// Writes `data` at byte `offset` for `caller`, who may or may not take the blocks that are set aside;
    /// gives the number of bytes written, fewer only when the largest file size or the end of the space is in
    /// the way.
    ///
    /// # Errors
    /// `BadHandle` when it was not opened for writing, `FileTooBig`, `NoSpace`, `NotPermitted` on an immutable
    /// file, the device's for direct writes.
    pub fn write_as(&self, caller: &Credentials, data: &[u8], offset: u64, kind: WriteKind) -> Result<usize> {
        self.expect_writable()?;
        self.filesystem().write_file(caller, self.inode(), offset, data, kind)
    }

    pub(super) fn expect_writable(&self) -> Result<()> {
        if self.may_write { Ok(()) } else { Err(Posix::BadHandle.into()) }
    }
}

impl Filesystem {
    fn write_file(
        &self,
        caller: &Credentials,
        inode: &Arc<Inode>,
        offset: u64,
        data: &[u8],
        mode: WriteKind,
    ) -> Result<usize> {
        self.vol.writable()?;
        if data.is_empty() {
            return Ok(0);
        }
        let (limit, flags, has_extents) = {
            let core = inode.core.read();
            (self.max_size(&core.map), core.disk.flags, core.map.has_extents())
        };
        if flags & flag::IMMUTABLE != 0 && mode != WriteKind::Delayed {
            return Err(Posix::NotPermitted.into());
        }
        if offset >= limit {
            return Err(Posix::FileTooBig.into());
        }
        let data = &data[..data.len().min(usize::try_from(limit - offset).unwrap_or(usize::MAX))];
        let privileged = self.may_use_reserve(caller);
        self.data.close_gap(inode, offset)?;
        if mode != WriteKind::Delayed {
            self.data.touch(inode);
        }
        // Indirect maps have no pool that their pointer blocks could come from later, so a full
        // volume must be told now.
        if mode == WriteKind::Direct || !has_extents {
            let place = |at, part: &[u8]| {
                let before = inode.core.read().size;
                let written = self.data.write_direct(inode, at, part, privileged);
                written.map_err(|failed| self.take_back(inode, before, at, failed))?;
                Ok(part.len())
            };
            // An asynchronous direct write may come in parts side by side, and a short count of any of them makes
            // it an EIO.
            let written = match self.after_reclaim(|| place(offset, data)) {
                Err(Error::NoSpace) if mode != WriteKind::Direct => self.write_what_fits(offset, data, place),
                written => written,
            };
            if mode == WriteKind::Delayed && written.is_err() {
                // Reported by this call.
                inode.io.lock().failures.forget_if(|_| true);
            }
            return written;
        }
        self.data.throttle(inode, |other| self.done_with(other));
        let _shared = inode.lock.read();
        let promise = |at, part: &[u8]| {
            self.data.write_behind(inode, at, part, privileged)?;
            Ok(part.len())
        };
        match self.after_reclaim(|| promise(offset, data)) {
            Err(Error::NoSpace) => self.write_what_fits(offset, data, promise),
            written => written,
        }
    }

    /// Takes the growth of a file by a write at `at` that failed back, unless others have moved its end since.
    /// What they have written between the end it had `before` and `at` stays.
    fn take_back(&self, inode: &Arc<Inode>, before: u64, at: u64, failed: Failed) -> Error {
        wait_clear(inode, &(0..u64::MAX));
        let size = inode.core.read().size;
        let keep = if before < at && self.has_data(inode, before, at) { at } else { before };
        if size > keep
            && size == failed.reached
            && let Err(error) = self.truncate(inode, keep)
        {
            tracing::warn!(ino = %inode.ino, %error, "a failed write has left the file longer");
        }
        failed.error
    }

    /// Whether there are data in the blocks between two bytes of a file.
    fn has_data(&self, inode: &Inode, from: u64, to: u64) -> bool {
        let bs = u64::from(self.vol.block_size());
        let (mut at, end) = (from.div_ceil(bs), to.div_ceil(bs));
        let core = inode.core.read();
        while at < end {
            match self.data.find(inode, &core, at, end - at) {
                Ok((Place::Hole | Place::Unwritten(_), len)) => at += len,
                Ok((Place::Data(_), _)) | Err(_) => return true,
            }
        }
        false
    }

    /// Has `write` take as much of `data` as there is space for, to the last block.
    fn write_what_fits(
        &self,
        offset: u64,
        data: &[u8],
        write: impl Fn(u64, &[u8]) -> Result<usize>,
    ) -> Result<usize> {
        let bs = u64::from(self.vol.block_size());
        let (mut done, mut blocks) = (0, data.len() as u64 / bs / 2);
        while done < data.len() {
            // Up to a block's end, so that no block is asked for twice.
            let at = offset + done as u64;
            let end = (at / bs + blocks.max(1)) * bs;
            let upto = data.len().min((end - offset) as usize);
            match write(at, &data[done..upto]) {
                Ok(written) => done += written,
                Err(Error::NoSpace) if blocks > 1 => blocks /= 2,
                Err(Error::NoSpace) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Whether `caller` may use the blocks that are set aside.
    pub(crate) fn may_use_reserve(&self, caller: &Credentials) -> bool {
        let opts = &self.vol.opts;
        let sb = self.vol.sb.lock();
        let uid = opts.reserved_uid.unwrap_or_else(|| sb.reserved_uid());
        let gid = opts.reserved_gid.unwrap_or_else(|| sb.reserved_gid());
        caller.uid == 0 || caller.uid == uid || (gid != 0 && caller.is_in_group(gid))
    }
}

impl Node {
    /// Takes set-user-id, file capabilities and, where it means privilege, set-group-id off a regular file that
    /// somebody without privileges changes.
    ///
    /// # Errors
    /// `NotPermitted` where the mode of an append-only file would have to change; those of the journal.
    pub fn kill_privileges(&self, caller: &Credentials) -> Result<()> {
        let (fs, inode) = (self.filesystem(), self.inode());
        inode.expect_file()?;
        keeps_mode(inode, caller)?;
        let harmless = inode.core.read().disk.mode & (S_ISUID | S_ISGID) == 0;
        if harmless && fs.drop_capabilities_credits(inode) == Credits::default() {
            return Ok(());
        }
        let _lock = inode.lock.write();
        let mut credits = fs.drop_capabilities_credits(inode);
        credits.blocks += 1;
        let tx = tx::start(&fs.vol.journal, credits)?;
        let mut left = Changed::default();
        let done = {
            let mut core = inode.core.write();
            core.disk.mode = without_privileges(core.disk.mode, core.disk.gid, caller);
            core.disk.ctime = fs.vol.now();
            let dropped = fs.drop_capabilities(&tx, inode, &mut core, &mut left);
            dropped.and_then(|()| fs.inodes.store(&tx, inode, &mut core))
        };
        fs.finish_change(tx, left, done)
    }

    /// What every change of a file's content by `caller` does to its privileges.
    pub(super) fn kill_privileges_by(&self, caller: &Credentials) -> Result<()> {
        if caller.uid == 0 { Ok(()) } else { self.kill_privileges(caller) }
    }
}

/// Refuses to take set-id bits off an append-only file, whose mode stays.
fn keeps_mode(inode: &Inode, caller: &Credentials) -> Result<()> {
    let disk = &inode.core.read().disk;
    let changes = without_privileges(disk.mode, disk.gid, caller) != disk.mode;
    if changes && disk.has(flag::APPEND) { Err(Posix::NotPermitted.into()) } else { Ok(()) }
}
