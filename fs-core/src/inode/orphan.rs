//! Orphans: inodes that recovery must look at, because they have no name any more but are still
//! open, or because a truncate or an extending write of theirs is under way.
//!
//! With the feature `orphan_file` each takes a slot in the orphan file; when that is full, and
//! without the feature, it joins the chain that starts in the superblock (`s_last_orphan`) and
//! runs through `i_dtime`. Both change in the handle of the operation they belong to.
//!
//! Invariant: the chain on disk equals `Table::chain`, newest last. It changes under the
//! `chaining` lock; a record stored meanwhile takes its `i_dtime` from the chain in memory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ext4_format::inode::DTIME_OFFSET;
use ext4_format::orphan as codec;
use ext4_format::{BlockNo, Corruption, FileBlock, Ino, What, verify};
use jbd2::mutants::{Mutant, is};
use jbd2::{Buffer, Handle};

use super::table::Accept;
use super::{Core, Inode, OrphanSlot as Slot, Table};
use crate::alloc::Allocator;
use crate::error::Result;
use crate::extent::{self, MapCtx, Mapping};
use crate::locks::{Rank, RankedMutex};
use crate::volume::Volume;

/// Blocks that [`Orphans::add`] or [`Orphans::remove`] may change besides the inode's own
/// record: a block of the orphan file, or the superblock or the predecessor's record.
pub const CREDITS: u32 = 2;

/// Most blocks of an orphan file that are used; `mke2fs` makes at most 512.
const MAX_FILE_BLOCKS: u32 = 4096;

struct OrphanFile {
    ino: Ino,
    generation: u32,
    blocks: Vec<BlockNo>,
    /// Free entries of each block.
    free: Vec<RankedMutex<Vec<usize>>>,
}

/// The volume's orphans.
pub struct Orphans {
    vol: Arc<Volume>,
    table: Arc<Table>,
    file: Option<OrphanFile>,
    chaining: RankedMutex<()>,
}

impl Orphans {
    /// Reads what the volume has recorded. The second value lists handles of the orphans found, for
    /// [`crate::Filesystem`] to delete or truncate.
    pub fn open(
        vol: Arc<Volume>,
        table: Arc<Table>,
        alloc: &Allocator,
    ) -> Result<(Orphans, Vec<Arc<Inode>>)> {
        let mut found = Vec::new();
        read_chain(&vol, &table, &mut found)?;
        let file_ino = vol.sb.lock().orphan_file();
        let file = match file_ino {
            Some(ino) => Some(OrphanFile::open(&vol, &table, alloc, ino, &mut found)?),
            None => None,
        };
        let chaining = RankedMutex::keyed(Rank::Group, u64::MAX, ());
        Ok((Orphans { vol, table, file, chaining }, found))
    }

    /// Records `inode` as an orphan and stores it, within `handle`: [`CREDITS`] and one more for
    /// the inode. Does nothing when it is recorded already.
    pub fn add(&self, handle: &Handle<'_>, inode: &Inode, core: &mut Core) -> Result<()> {
        if core.orphan.is_some() || is(Mutant::OrphanForgotten) {
            return Ok(());
        }
        if let Some(file) = &self.file
            && let Some((block, entry)) = file.take(inode.ino)
        {
            if let Err(e) = file.write(&self.vol, handle, block, entry, Some(inode.ino)) {
                file.free[block].lock().push(entry);
                return Err(e);
            }
            core.orphan = Some(Slot::File(block, entry));
            return Ok(());
        }
        let _chaining = self.chaining.lock();
        self.vol.edit_super(handle, |sb| sb.set_last_orphan(Some(inode.ino)))?;
        self.table.chain().lock().push(inode.ino);
        core.orphan = Some(Slot::Chain);
        self.table.store(handle, inode, core)
    }

    /// Whether the volume records any orphan.
    #[must_use]
    pub fn any(&self) -> bool {
        let entries = codec::per_block(self.vol.block_size() as usize);
        let in_file = |file: &OrphanFile| file.free.iter().any(|free| free.lock().len() < entries);
        !self.table.chain().lock().is_empty() || self.file.as_ref().is_some_and(in_file)
    }

    /// Takes `inode` off the record within `handle` ([`CREDITS`]). The caller stores the inode.
    pub fn remove(&self, handle: &Handle<'_>, inode: &Inode, core: &mut Core) -> Result<()> {
        match core.orphan {
            None => Ok(()),
            Some(Slot::File(block, entry)) => {
                let Some(file) = &self.file else { return Ok(()) };
                file.write(&self.vol, handle, block, entry, None)?;
                file.free[block].lock().push(entry);
                core.orphan = None;
                Ok(())
            }
            Some(Slot::Chain) => {
                let _chaining = self.chaining.lock();
                let (at, older, newer) = {
                    let chain = self.table.chain().lock();
                    let Some(at) = chain.iter().position(|i| *i == inode.ino) else { return Ok(()) };
                    let older = at.checked_sub(1).and_then(|i| chain.get(i).copied());
                    (at, older, chain.get(at + 1).copied())
                };
                match newer {
                    None => self.vol.edit_super(handle, |sb| sb.set_last_orphan(older))?,
                    Some(newer) => self.table.edit_record(handle, newer, |record| {
                        let next = older.map_or(0, Ino::get).to_le_bytes();
                        record[DTIME_OFFSET..DTIME_OFFSET + 4].copy_from_slice(&next);
                    })?,
                }
                self.table.chain().lock().remove(at);
                core.orphan = None;
                core.disk.dtime = 0;
                Ok(())
            }
        }
    }
}

/// Reads the chain of the superblock into the table's. A chain that leaves the volume or bites
/// its own tail is cut there and recorded as damage.
fn read_chain(vol: &Volume, table: &Table, found: &mut Vec<Arc<Inode>>) -> Result<()> {
    let mut seen = HashSet::new();
    let mut next = vol.sb.lock().last_orphan();
    let mut newest_first = Vec::new();
    while let Some(ino) = next {
        if ino.get() > vol.geo.inodes_count || !seen.insert(ino) {
            let c = Corruption::new(What::Inode, "orphan chain", ino.get().into(), 0);
            vol.corrupt(c.in_inode(ino));
            break;
        }
        let inode = match table.get_any(ino, Accept::Orphaned) {
            Ok(inode) => inode,
            Err(error) => {
                tracing::warn!(%ino, %error, "the orphan chain ends early");
                break;
            }
        };
        {
            let mut core = inode.core.write();
            core.orphan = Some(Slot::Chain);
            next = Ino::new(core.disk.dtime);
        }
        newest_first.push(ino);
        found.push(inode);
    }
    newest_first.reverse();
    *table.chain().lock() = newest_first;
    Ok(())
}

impl OrphanFile {
    fn open(
        vol: &Volume,
        table: &Table,
        alloc: &Allocator,
        ino: Ino,
        found: &mut Vec<Arc<Inode>>,
    ) -> Result<OrphanFile> {
        let inode = table.get_any(ino, Accept::Orphaned)?;
        let map = MapCtx { vol, alloc, ino, generation: inode.generation };
        let read = Self::read_all(vol, table, &map, &inode, found);
        table.unhold(inode);
        read
    }

    fn read_all(
        vol: &Volume,
        table: &Table,
        map: &MapCtx<'_>,
        inode: &Inode,
        found: &mut Vec<Arc<Inode>>,
    ) -> Result<OrphanFile> {
        let ino = inode.ino;
        let core = inode.core.read();
        let count = (core.disk.size / u64::from(vol.block_size())).min(MAX_FILE_BLOCKS.into());
        let mut file = OrphanFile { ino, generation: inode.generation, blocks: vec![], free: vec![] };
        for at in 0..count as u32 {
            let segment = extent::lookup(map, &core.map, FileBlock(at), 1)?;
            let Mapping::Written(block) = segment.mapping else {
                let c = Corruption::new(What::OrphanFile, "hole", at.into(), 0);
                return Err(vol.corrupt(c.in_inode(ino)));
            };
            let buffer = file.read(vol, block)?;
            let mut free = Vec::new();
            let taken: HashMap<usize, Ino> = codec::entries(&buffer.data()).collect();
            for entry in (0..codec::per_block(vol.block_size() as usize)).rev() {
                let Some(orphan) = taken.get(&entry).copied() else {
                    free.push(entry);
                    continue;
                };
                match table.get_any(orphan, Accept::Orphaned) {
                    Ok(inode) => {
                        inode.core.write().orphan = Some(Slot::File(at as usize, entry));
                        found.push(inode);
                    }
                    Err(error) => tracing::warn!(%orphan, %error, "an orphan cannot be read"),
                }
            }
            file.blocks.push(block);
            file.free.push(RankedMutex::new(Rank::Leaf, free));
        }
        Ok(file)
    }

    fn read(&self, vol: &Volume, block: BlockNo) -> Result<Buffer> {
        vol.read_meta(block, |bytes| verify::orphan_block(bytes, &vol.csum, block, self.ino, self.generation))
    }

    /// Takes a free entry, starting at a block that depends on the inode so that threads spread.
    fn take(&self, ino: Ino) -> Option<(usize, usize)> {
        let count = self.blocks.len();
        let start = ino.get() as usize % count.max(1);
        (0..count).map(|i| (start + i) % count).find_map(|b| Some((b, self.free[b].lock().pop()?)))
    }

    fn write(
        &self,
        vol: &Volume,
        handle: &Handle<'_>,
        block: usize,
        entry: usize,
        orphan: Option<Ino>,
    ) -> Result<()> {
        let at = self.blocks[block];
        let buffer = self.read(vol, at)?;
        let mut bytes = handle.write(&buffer)?;
        codec::set(&mut bytes, entry, orphan);
        vol.csum.set_orphan_block(&mut bytes, at, self.ino, self.generation);
        Ok(())
    }
}
