//! The flags of an inode that chattr(1) sets, trimming, and shutting the volume down.

use ext4_format::inode::flag;
use ext4_format::{BlockNo, Ino};
use jbd2::Credits;

use crate::alloc::TrimRange;
use crate::error::{Posix, Result};
use crate::fs::Filesystem;
use crate::tx;
use crate::types::Caller;

/// What an EXT4_IOC_SHUTDOWN does before it refuses everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// Write everything out, as for unmounting (EXT4_GOING_FLAGS_DEFAULT).
    Sync,
    /// Commit what the journal has (EXT4_GOING_FLAGS_LOGFLUSH).
    FlushLog,
    /// Nothing: like a power cut (EXT4_GOING_FLAGS_NOLOGFLUSH).
    Cut,
}

impl Filesystem {
    /// The inode's flags, those that a user may see.
    pub fn flags(&self, ino: Ino) -> Result<u32> {
        self.vol.alive()?;
        Ok(self.inodes.get(ino)?.core.read().disk.flags & flag::USER_VISIBLE)
    }

    /// Sets the inode's flags, those that a user may change.
    ///
    /// # Errors
    /// `NotPermitted` for a caller who is neither owner nor root, and for one who is not root
    /// when the immutable or the append-only flag would change; `NotSupported` when a flag that
    /// cannot change here would.
    pub fn set_flags(&self, caller: &Caller, ino: Ino, flags: u32) -> Result<()> {
        self.vol.writable()?;
        let inode = self.inodes.get(ino)?;
        let _lock = inode.lock.write();
        let tx = tx::start(&self.vol.journal, Credits::blocks(1))?;
        let mut core = inode.core.write();
        let old = core.disk.flags;
        if caller.uid != 0 && caller.uid != core.disk.uid {
            return Err(Posix::NotPermitted.into());
        }
        let changed = (old ^ flags) & flag::USER_VISIBLE;
        if changed & (flag::IMMUTABLE | flag::APPEND) != 0 && caller.uid != 0 {
            return Err(Posix::NotPermitted.into());
        }
        let fixed = flag::EXTENTS | flag::JOURNAL_DATA | flag::DAX | flag::CASEFOLD | flag::PROJINHERIT;
        if changed & !flag::USER_MODIFIABLE != 0 || changed & fixed != 0 {
            return Err(Posix::NotSupported.into());
        }
        let directories_only = flag::DIRSYNC | flag::TOPDIR;
        if !inode.is_dir() && changed & flags & directories_only != 0 {
            return Err(Posix::Invalid.into());
        }
        core.disk.flags = (old & !flag::USER_MODIFIABLE) | (flags & flag::USER_MODIFIABLE);
        core.disk.ctime = self.vol.now();
        core.disk.version = core.disk.version.wrapping_add(1);
        self.inodes.store(&tx, &inode, &mut core)?;
        drop(core);
        tx.finish()
    }

    /// Discards free runs of at least `least` bytes among the `len` bytes from `start`. Gives the
    /// number of bytes discarded.
    pub fn trim(&self, start: u64, len: u64, least: u64) -> Result<u64> {
        self.vol.writable()?;
        self.vol.journal.commit_running()?;
        let size = u64::from(self.vol.block_size());
        let least = least.div_ceil(size).min(u32::MAX.into()) as u32;
        let range = TrimRange { start: BlockNo(start / size), len: len / size, least };
        Ok(self.alloc.trim(range)? * size)
    }

    /// Refuses every request from here on, as if the device had been taken away.
    pub fn shut_down(&self, how: Shutdown) -> Result<()> {
        let done = match how {
            Shutdown::Sync => self.syncfs(),
            Shutdown::FlushLog => Ok(self.vol.journal.commit_running()?),
            Shutdown::Cut => Ok(()),
        };
        self.vol.shut_down();
        self.vol.journal.abort(jbd2::Error::ShutDown);
        done
    }
}
