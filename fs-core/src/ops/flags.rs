//! The flags of an inode that chattr(1) sets, trimming, and shutting the volume down.

use std::sync::Arc;

use ext4_format::BlockNo;
use ext4_format::inode::{FileType, flag};
use jbd2::Credits;

use crate::alloc::TrimRange;
use crate::data::{By, wait_clear};
use crate::error::{Posix, Result};
use crate::extent;
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::node::Node;
use crate::tx;
use crate::types::Credentials;

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

impl Node {
    /// The inode's flags, those that a user may see.
    ///
    /// # Errors
    /// `ShutDown`.
    pub fn flags(&self) -> Result<u32> {
        self.filesystem().vol.alive()?;
        Ok(self.inode().core.read().disk.flags & flag::USER_VISIBLE)
    }

    /// Sets the inode's flags, those that a user may change. Last comes the map's form: the other flags have
    /// changed when that cannot, as on the kernel's ext4.
    ///
    /// # Errors
    /// `NotPermitted` for a caller who is neither owner nor root, and for one who is not root
    /// when the immutable or the append-only flag would change; `NotSupported` for a flag that
    /// nobody sees, that the file's kind does not have, or that cannot change here. Flags that are
    /// only shown are passed over, so that what was read can be written back.
    pub fn set_flags_as(&self, caller: &Credentials, flags: u32) -> Result<()> {
        let (fs, inode) = (self.filesystem(), self.inode());
        fs.vol.writable()?;
        let lock = inode.lock.write();
        let tx = tx::start(&fs.vol.journal, Credits::blocks(1))?;
        let mut core = inode.core.write();
        let old = core.disk.flags;
        if caller.uid != 0 && caller.uid != core.disk.uid {
            return Err(Posix::NotPermitted.into());
        }
        let wanted = flags & flag::USER_MODIFIABLE;
        let changed = (old ^ wanted) & flag::USER_MODIFIABLE;
        let privileged = flag::IMMUTABLE | flag::APPEND | flag::JOURNAL_DATA;
        if changed & privileged != 0 && caller.uid != 0 {
            return Err(Posix::NotPermitted.into());
        }
        let possible = match inode.kind {
            FileType::Directory => !0,
            FileType::Regular => !(flag::DIRSYNC | flag::TOPDIR | flag::CASEFOLD | flag::PROJINHERIT),
            _ => flag::NODUMP | flag::NOATIME,
        };
        // No data go through the journal, so a file that was marked for it can lose the mark.
        let impossible = changed & (flag::CASEFOLD | (flag::JOURNAL_DATA & wanted));
        if flags & !flag::USER_VISIBLE != 0 || wanted & !possible != 0 || impossible != 0 {
            return Err(Posix::NotSupported.into());
        }
        let settable = flag::USER_MODIFIABLE & !flag::EXTENTS;
        core.disk.flags = (old & !settable) | (wanted & settable);
        core.disk.ctime = fs.vol.now();
        core.disk.version = core.disk.version.wrapping_add(1);
        fs.inodes.store(&tx, inode, &mut core)?;
        drop(core);
        tx.finish()?;
        drop(lock);
        match changed & flag::EXTENTS {
            0 => Ok(()),
            _ if wanted & flag::EXTENTS != 0 => Err(Posix::NotSupported.into()),
            _ => fs.map_by_pointers(inode),
        }
    }

    /// The project that the inode's space is counted for.
    ///
    /// # Errors
    /// `ShutDown`.
    pub fn project(&self) -> Result<u32> {
        self.filesystem().vol.alive()?;
        Ok(self.inode().core.read().disk.project)
    }
}

impl Filesystem {
    /// Turns an extent tree into pointers.
    ///
    /// # Errors
    /// `NotSupported` for all but small files ([`extent::to_pointers`]).
    fn map_by_pointers(&self, inode: &Arc<Inode>) -> Result<()> {
        loop {
            self.data.flush(inode, 0..u64::MAX)?;
            let _lock = inode.lock.write();
            wait_clear(inode, &(0..u64::MAX));
            // Space was promised to dirty data for a tree.
            if !inode.io.lock().behind.is_empty() {
                continue;
            }
            self.data.convert(inode, By::Fsync)?;
            let tx = tx::start(&self.vol.journal, Credits::blocks(1))?;
            let mut core = inode.core.write();
            if core.map.has_extents() {
                core.map = extent::to_pointers(&core.map)?;
                core.disk.flags &= !flag::EXTENTS;
                self.inodes.store(&tx, inode, &mut core)?;
            }
            drop(core);
            return tx.finish();
        }
    }

    /// Discards free runs of at least `least` bytes among the `len` bytes from `start`. Gives the
    /// number of bytes discarded.
    ///
    /// # Errors
    /// `Invalid` for a range of less than a block or behind the end, and for a `least` that no
    /// group can hold.
    pub fn trim(&self, start: u64, len: u64, least: u64) -> Result<u64> {
        self.vol.writable()?;
        let size = u64::from(self.vol.block_size());
        let geo = &self.vol.geo;
        if len < size || start / size >= geo.blocks_count || least / size > geo.blocks_per_group.into() {
            return Err(Posix::Invalid.into());
        }
        self.vol.journal.commit_running()?;
        let least = least.div_ceil(size).min(u32::MAX.into()) as u32;
        let range = TrimRange { start: BlockNo(start / size), len: len / size, least };
        Ok(self.alloc.trim(range)? * size)
    }

    /// Refuses every request from here on, as if the device had been taken away.
    pub fn shut_down(&self, how: Shutdown) -> Result<()> {
        let done = match how {
            Shutdown::Sync => self.sync(),
            Shutdown::FlushLog => Ok(self.vol.journal.commit_running()?),
            Shutdown::Cut => Ok(()),
        };
        self.vol.shut_down();
        self.vol.journal.abort(jbd2::Error::ShutDown);
        done
    }
}
