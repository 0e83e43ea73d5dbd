//! The table of live inodes and their way to and from the inode table on disk.
//!
//! Invariants:
//! 1. At most one [`Inode`] exists for a number. Whoever has work pending for an inode (data in
//!    write-behind, a completion to convert) holds an `Arc` of it, and that keeps it in the table.
//! 2. An inode leaves the table only when nobody but the table holds it and the kernel has
//!    forgotten it. A leaving inode without names is handed to the caller to be deleted; it is no
//!    longer found here while that goes on, and its number is not free until that has ended.
//! 3. Every change of a [`Core`] is stored in the handle that made it, so an inode that leaves
//!    has nothing to write.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ext4_format::inode::{FileType, Inode as DiskInode};
use ext4_format::{BlockNo, Corruption, Ino, What, verify};
use jbd2::Handle;
use jbd2::mutants::{Mutant, is};

use super::{Core, Inode, OrphanSlot};
use crate::alloc::Allocator;
use crate::error::{Error, Posix, Result};
use crate::sync::{Rank, RankedMutex};
use crate::volume::Volume;

const SHARDS: usize = 64;

#[derive(Default)]
struct Shard {
    live: HashMap<Ino, Arc<Inode>>,
    /// Counts departures, so that a load which overlapped one is repeated instead of bringing
    /// back what the departed inode has changed since.
    departures: u64,
}

/// What became of an inode that was asked to leave.
pub enum Departure {
    /// Somebody still uses it.
    Busy,
    /// It left, or was not there.
    Gone,
    /// It left and has no name any more: the caller deletes it.
    Delete(Arc<Inode>),
}

/// Which inodes a caller of [`Table::get_any`] accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accept {
    /// Only such as have a name.
    Named,
    /// Orphans too: recovery, and the volume's own files.
    Orphaned,
}

/// The live inodes of a volume.
pub struct Table {
    vol: Arc<Volume>,
    alloc: Arc<Allocator>,
    shards: Vec<RankedMutex<Shard>>,
    chain: RankedMutex<Vec<Ino>>,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(vol: Arc<Volume>, alloc: Arc<Allocator>) -> Table {
        let shards = (0..SHARDS).map(|_| RankedMutex::new(Rank::Leaf, Shard::default())).collect();
        Table { vol, alloc, shards, chain: RankedMutex::new(Rank::Leaf, Vec::new()) }
    }

    /// The inode `ino`, which has a name.
    ///
    /// # Errors
    /// `Stale` for an inode that is free or has no name, `Corrupt` for one that is damaged.
    pub fn get(&self, ino: Ino) -> Result<Arc<Inode>> {
        self.get_any(ino, Accept::Named)
    }

    /// The inode `ino`, if it is in memory.
    #[must_use]
    pub fn peek(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.shard(ino).lock().live.get(&ino).cloned()
    }

    /// The inode `ino`, from memory or from the disk.
    pub fn get_any(&self, ino: Ino, accept: Accept) -> Result<Arc<Inode>> {
        loop {
            let departures = {
                let shard = self.shard(ino).lock();
                if let Some(inode) = shard.live.get(&ino) {
                    return Ok(inode.clone());
                }
                shard.departures
            };
            let fresh = self.load(ino, accept)?;
            let mut shard = self.shard(ino).lock();
            if let Some(inode) = shard.live.get(&ino) {
                return Ok(inode.clone());
            }
            if shard.departures == departures {
                shard.live.insert(ino, fresh.clone());
                return Ok(fresh);
            }
        }
    }

    /// Makes a new inode of a number that was just allocated, and stores it in `handle` (two
    /// credits at most). What the record held before, attributes included, is wiped.
    pub fn create(&self, handle: &Handle<'_>, ino: Ino, disk: DiskInode) -> Result<Arc<Inode>> {
        let kind = FileType::from_mode(disk.mode).ok_or(Posix::Invalid)?;
        let inode = Arc::new(Inode::new(ino, kind, disk, self.vol.block_size(), None));
        let (block, at) = self.place(ino)?;
        let buffer = self.vol.read_meta(block, |_| Ok(()))?;
        {
            let mut bytes = handle.write(&buffer)?;
            self.record_mut(&mut bytes, ino, at)?.fill(0);
        }
        {
            let mut core = inode.core.write();
            self.store(handle, &inode, &mut core)?;
            core.datasync_tid = core.sync_tid;
        }
        self.shard(ino).lock().live.insert(ino, inode.clone());
        Ok(inode)
    }

    /// Writes `core` to its record in the inode table within `handle` (one credit). Attributes
    /// inside the record are left alone.
    pub fn store(&self, handle: &Handle<'_>, inode: &Inode, core: &mut Core) -> Result<()> {
        let before = (core.disk.blocks, core.disk.block);
        core.disk.block = core.map.block;
        core.disk.blocks = core.map.sectors;
        let map_changed = before != (core.disk.blocks, core.disk.block);
        if map_changed {
            core.datasync_tid = Some(handle.tid());
        }
        core.sync_tid = Some(handle.tid());
        self.edit_record(handle, inode.ino, |bytes| {
            if core.orphan == Some(OrphanSlot::Chain) {
                core.disk.dtime = self.older_orphan(inode.ino);
            }
            core.disk.encode_into(bytes, &self.vol.inode_layout);
        })
    }

    /// The chain of orphans that starts in the superblock, newest last. Only [`super::Orphans`]
    /// changes it.
    pub(super) fn chain(&self) -> &RankedMutex<Vec<Ino>> {
        &self.chain
    }

    fn older_orphan(&self, ino: Ino) -> u32 {
        let chain = self.chain.lock();
        let at = chain.iter().position(|i| *i == ino).unwrap_or(0);
        at.checked_sub(1).and_then(|older| chain.get(older)).map_or(0, |older| older.get())
    }

    /// Edits the raw record of `ino` (`inode_size` bytes) within `handle` (one credit) and
    /// renews its checksum.
    pub fn edit_record(&self, handle: &Handle<'_>, ino: Ino, edit: impl FnOnce(&mut [u8])) -> Result<()> {
        let (block, at) = self.place(ino)?;
        let buffer = self.vol.read_meta(block, |_| Ok(()))?;
        let mut bytes = handle.write(&buffer)?;
        let record = self.record_mut(&mut bytes, ino, at)?;
        edit(record);
        self.vol.csum.set_inode(record, ino);
        Ok(())
    }

    /// Calls `look` with the raw record of `ino` (`inode_size` bytes).
    pub fn with_record<T>(&self, ino: Ino, look: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let (block, at) = self.place(ino)?;
        let buffer = self.vol.read_meta(block, |_| Ok(()))?;
        let data = buffer.data();
        let record = data.get(at..at + usize::from(self.vol.inode_layout.inode_size));
        record.map(look).ok_or_else(|| misplaced(ino).into())
    }

    /// Counts one more reference of the kernel.
    pub fn reference(&self, inode: &Inode) {
        inode.lookups.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes `n` references of the kernel back. Whether the inode may leave is asked separately.
    pub fn forget(&self, ino: Ino, n: u64) {
        if let Some(inode) = self.peek(ino) {
            let take = |had: u64| Some(had.saturating_sub(n));
            let _ = inode.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        }
    }

    /// Lets `ino` leave the table if nobody uses it.
    pub fn depart(&self, ino: Ino) -> Departure {
        let mut shard = self.shard(ino).lock();
        let Some(inode) = shard.live.get(&ino) else { return Departure::Gone };
        let used = inode.lookups.load(Ordering::Acquire) > 0
            || inode.opens.load(Ordering::Acquire) > 0
            || Arc::strong_count(inode) > 1;
        if used {
            return Departure::Busy;
        }
        shard.departures += 1;
        let Some(inode) = shard.live.remove(&ino) else { return Departure::Gone };
        drop(shard);
        let named = inode.core.read().disk.links > 0;
        if named { Departure::Gone } else { Departure::Delete(inode) }
    }

    /// The numbers of all inodes in memory.
    #[must_use]
    pub fn live(&self) -> Vec<Ino> {
        self.shards.iter().flat_map(|s| s.lock().live.keys().copied().collect::<Vec<_>>()).collect()
    }

    /// Drops the kernel's references to every inode: the kernel has gone away.
    pub fn forget_all(&self) {
        for ino in self.live() {
            if let Some(inode) = self.peek(ino) {
                inode.lookups.store(0, Ordering::Release);
                inode.opens.store(0, Ordering::Release);
            }
        }
    }

    fn load(&self, ino: Ino, accept: Accept) -> Result<Arc<Inode>> {
        let layout = &self.vol.inode_layout;
        let disk = self.with_record(ino, |bytes| {
            if bytes.iter().all(|b| *b == 0) {
                return Err(None);
            }
            verify::inode(bytes, &self.vol.csum, layout, ino).map_err(Some)
        })?;
        let disk = disk.map_err(|c| match c {
            Some(c) => self.vol.corrupt(c),
            None => Posix::Stale.into(),
        })?;
        if disk.links == 0 && accept == Accept::Named {
            return Err(Posix::Stale.into());
        }
        let Some(kind) = FileType::from_mode(disk.mode) else {
            // A freed inode keeps its record; its mode may be anything.
            return Err(match disk.links {
                0 => Posix::Stale.into(),
                _ => {
                    let c = Corruption::new(What::Inode, "i_mode", disk.mode.into(), 0);
                    self.vol.corrupt(c.in_inode(ino))
                }
            });
        };
        let earlier = (!is(Mutant::EarlierLifeForgotten)).then(|| self.vol.journal.newest());
        Ok(Arc::new(Inode::new(ino, kind, disk, self.vol.block_size(), earlier)))
    }

    fn place(&self, ino: Ino) -> Result<(BlockNo, usize)> {
        if ino.get() > self.vol.geo.inodes_count {
            return Err(Posix::Stale.into());
        }
        self.alloc.inode_place(ino)
    }

    fn record_mut<'b>(&self, bytes: &'b mut [u8], ino: Ino, at: usize) -> Result<&'b mut [u8]> {
        let size = usize::from(self.vol.inode_layout.inode_size);
        bytes.get_mut(at..at + size).ok_or_else(|| Error::Corrupt(misplaced(ino)))
    }

    fn shard(&self, ino: Ino) -> &RankedMutex<Shard> {
        &self.shards[ino.get() as usize % SHARDS]
    }
}

fn misplaced(ino: Ino) -> Corruption {
    Corruption::new(What::Inode, "record place", 0, 0).in_inode(ino)
}
