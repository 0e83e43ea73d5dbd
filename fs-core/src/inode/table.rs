//! The table of live inodes and their way to and from the inode table on disk.
//!
//! Invariants:
//! 1. At most one [`Inode`] exists for a number. A handle of it is an `Arc` that [`Table::get`] or
//!    [`Table::create`] gave and [`Table::release`] takes back; the table counts them. Whoever has work
//!    pending for an inode (data in write-behind, a completion to convert) holds an `Arc` that is not counted.
//! 2. An inode leaves the table only when nobody but the table holds it. A leaving inode without names is
//!    handed to the caller to be deleted; it is no longer found here while that goes on, and its number is
//!    not free until that has ended.
//! 3. Every change of a [`Core`] is stored in the handle that made it, so an inode that leaves
//!    has nothing to write.

use std::collections::HashMap;
use std::sync::Arc;

use ext4_format::expand::expand_extra;
use ext4_format::inode::{BASE_SIZE, FileType, Inode as DiskInode, flag};
use ext4_format::{BlockNo, Corruption, Ino, What, verify};
use jbd2::Handle;
use jbd2::mutants::{Mutant, is};

use super::{Core, Inode, OrphanSlot};
use crate::alloc::Allocator;
use crate::error::{Error, Posix, Result};
use crate::locks::{Rank, RankedMutex};
use crate::volume::Volume;

const SHARDS: usize = 64;

/// An inode in memory and the number of its handles.
struct Live {
    inode: Arc<Inode>,
    handles: u32,
}

impl Live {
    /// One more handle.
    fn hold(&mut self) -> Arc<Inode> {
        self.handles += 1;
        self.inode.clone()
    }
}

#[derive(Default)]
struct Shard {
    live: HashMap<Ino, Live>,
    /// Counts departures, so that a load which overlapped one is repeated instead of bringing
    /// back what the departed inode has changed since.
    departures: u64,
}

/// What became of an inode that was asked to leave.
pub enum Departure {
    /// It has handles.
    Held,
    /// It has no handle, but work pending on it keeps it.
    Busy,
    /// It was not there.
    Gone,
    /// It left. Without a name it is the caller's to delete.
    Left(Arc<Inode>),
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
    /// Bytes of extra fields that an inode that changes shall have, and those it shall have at least.
    extra: [u16; 2],
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(vol: Arc<Volume>, alloc: Arc<Allocator>) -> Table {
        let shards = (0..SHARDS).map(|_| RankedMutex::new(Rank::Leaf, Shard::default())).collect();
        let extra = {
            let sb = vol.sb.lock();
            [sb.want_extra_isize(), sb.min_extra_isize() & !3]
        };
        Table { vol, alloc, shards, chain: RankedMutex::new(Rank::Leaf, Vec::new()), extra }
    }

    /// A handle of the inode `ino`, which has a name or handles already.
    ///
    /// # Errors
    /// `Stale` for an inode that is free or has no name, `Corrupt` for one that is damaged.
    pub fn get(&self, ino: Ino) -> Result<Arc<Inode>> {
        self.get_any(ino, Accept::Named)
    }

    /// A handle of the inode `ino`, if it is in memory.
    #[must_use]
    pub fn peek(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.shard(ino).lock().live.get_mut(&ino).map(Live::hold)
    }

    /// A handle of the inode `ino`, from memory or from the disk.
    pub fn get_any(&self, ino: Ino, accept: Accept) -> Result<Arc<Inode>> {
        loop {
            let departures = {
                let mut shard = self.shard(ino).lock();
                if let Some(live) = shard.live.get_mut(&ino) {
                    return Ok(live.hold());
                }
                shard.departures
            };
            let fresh = self.load(ino, accept)?;
            let mut shard = self.shard(ino).lock();
            if let Some(live) = shard.live.get_mut(&ino) {
                return Ok(live.hold());
            }
            if shard.departures == departures {
                shard.live.insert(ino, Live { inode: fresh.clone(), handles: 1 });
                return Ok(fresh);
            }
        }
    }

    /// One more handle of an inode by one that exists.
    pub fn hold(&self, handle: &Arc<Inode>) -> Arc<Inode> {
        if let Some(live) = self.shard(handle.ino).lock().live.get_mut(&handle.ino) {
            live.handles += 1;
        }
        handle.clone()
    }

    /// Makes a new inode of a number that was just allocated, and stores it in `handle` (two
    /// credits at most); gives a handle of it. What the record held before, attributes included, is wiped.
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
        self.shard(ino).lock().live.insert(ino, Live { inode: inode.clone(), handles: 1 });
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
            let layout = &self.vol.inode_layout;
            if self.lacks_extra(core) {
                let disk = &mut core.disk;
                let _ = self.extra.iter().any(|want| expand_extra(bytes, disk, layout, *want));
            }
            core.disk.encode_into(bytes, layout);
        })
    }

    /// Whether an inode that changes should have more extra fields than it has. [`Table::store`] sees to it where
    /// the attributes in the record leave room.
    #[must_use]
    pub fn lacks_extra(&self, core: &Core) -> bool {
        core.disk.extra_isize < self.extra[0] && core.disk.links > 0 && !core.disk.has(flag::EA_INODE)
    }

    /// Bytes for attributes in a record with as many extra fields as it should have.
    #[must_use]
    pub fn room_behind_extra(&self) -> usize {
        usize::from(self.vol.inode_layout.inode_size) - BASE_SIZE - usize::from(self.extra[0])
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

    /// Takes a handle back. The last one lets the inode leave the table, unless work is pending on it: then
    /// the handle comes back, still counted.
    pub fn release(&self, handle: Arc<Inode>) -> std::result::Result<Departure, Arc<Inode>> {
        let ino = handle.ino;
        let mut shard = self.shard(ino).lock();
        let Some(live) = shard.live.get_mut(&ino) else { return Ok(Departure::Gone) };
        // The table's own and this one.
        if live.handles == 1 && Arc::strong_count(&live.inode) > 2 {
            return Err(handle);
        }
        live.handles -= 1;
        // Under the lock: of two threads that give up the last handles, the second finds that it is alone.
        drop(handle);
        Ok(shard.depart(ino))
    }

    /// Takes a handle back without letting the inode leave, which has to be asked for later
    /// ([`Table::depart`]).
    pub fn unhold(&self, handle: Arc<Inode>) {
        let mut shard = self.shard(handle.ino).lock();
        if let Some(live) = shard.live.get_mut(&handle.ino) {
            live.handles -= 1;
        }
        drop(handle);
    }

    /// Lets `ino` leave the table if nobody holds it.
    pub fn depart(&self, ino: Ino) -> Departure {
        self.shard(ino).lock().depart(ino)
    }

    /// All inodes in memory that have no name and handles all the same, with one more handle each.
    #[must_use]
    pub fn unlinked(&self) -> Vec<Arc<Inode>> {
        let all: Vec<Ino> = self.live();
        let held = all.into_iter().filter_map(|ino| self.peek(ino));
        let (unlinked, named): (Vec<_>, Vec<_>) = held.partition(|inode| inode.core.read().disk.links == 0);
        named.into_iter().for_each(|inode| self.unhold(inode));
        unlinked
    }

    /// The numbers of all inodes in memory.
    #[must_use]
    pub fn live(&self) -> Vec<Ino> {
        self.shards.iter().flat_map(|s| s.lock().live.keys().copied().collect::<Vec<_>>()).collect()
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

impl Shard {
    fn depart(&mut self, ino: Ino) -> Departure {
        let Some(live) = self.live.get(&ino) else { return Departure::Gone };
        if live.handles > 0 {
            return Departure::Held;
        }
        if Arc::strong_count(&live.inode) > 1 {
            return Departure::Busy;
        }
        self.departures += 1;
        self.live.remove(&ino).map_or(Departure::Gone, |live| Departure::Left(live.inode))
    }
}

fn misplaced(ino: Ino) -> Corruption {
    Corruption::new(What::Inode, "record place", 0, 0).in_inode(ino)
}
