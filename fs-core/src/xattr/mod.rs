//! Extended attributes of an inode: in the inode's own record as long as they fit, else in a
//! block, which inodes with equal attributes share, and values too large for either in an inode
//! of their own (feature `ea_inode`).
//!
//! A change reads the attributes concerned, edits the list in memory and writes it back packed.
//! The record is tried first, then the block, then a value inode, as the kernel does; a name is
//! never in two places. Names here are a prefix's index and the rest; what user space calls them
//! is `name`'s business, what access control lists mean is `acl`'s.
//!
//! The caller holds the inode's lock and its [`Core`], and stores the inode after a change.

pub mod acl;
mod block;
pub mod name;
mod share;
mod value;

use ext4_format::features::Incompat;
use ext4_format::xattr::{self as codec, Attribute, Attributes, Home, OwnedValue};
use ext4_format::{Corruption, Ino};
use jbd2::{Credits, Handle};
use smallvec::SmallVec;

use crate::alloc::{ALLOC_CREDITS, Allocator, Depth};
use crate::error::{Error, Result};
use crate::inode::{Core, Inode, Table};
use crate::volume::Volume;

pub use name::Key;
pub use share::XattrCache;

/// The parts of the volume that attributes need.
#[derive(Clone, Copy)]
pub struct Ctx<'a> {
    /// The volume.
    pub vol: &'a Volume,
    /// Where blocks and value inodes come from.
    pub alloc: &'a Allocator,
    /// The inodes.
    pub table: &'a Table,
    /// Blocks and values that may be shared.
    pub cache: &'a XattrCache,
    /// How deep the caller may reach for space.
    pub depth: Depth,
}

/// The attributes of one inode.
#[derive(Clone, Copy)]
pub struct Xattrs<'a> {
    ctx: Ctx<'a>,
    inode: &'a Inode,
}

/// What a change left behind, also one that failed.
#[derive(Debug, Default)]
pub struct Changed {
    /// Whether anything is different now.
    pub changed: bool,
    /// Value inodes that lost their last reference: to be made orphans in the same handle
    /// ([`DROP_CREDITS`] each), when the inode's [`Core`] is free again.
    pub dropped: SmallVec<[Ino; 2]>,
}

/// Blocks that making one dropped value inode an orphan may change, and what counting its
/// reference took.
pub const DROP_CREDITS: u32 = 1 + crate::inode::orphan::CREDITS;

/// Credits for [`Xattrs::set`] of a value of `len` bytes, besides storing the inode: its block
/// shared or freed, a new one, and with `ea_inode` the value's inode, and the old value's.
#[must_use]
pub fn set_credits(vol: &Volume, len: usize) -> Credits {
    let blocks = 1 + 1 + 2 + 1 + ALLOC_CREDITS + 1;
    let values = match uses_value_inodes(vol) {
        true => value::credits(vol, len),
        false => 0,
    };
    Credits { blocks: blocks + values, revokes: 1 }
}

fn uses_value_inodes(vol: &Volume) -> bool {
    vol.sb.lock().incompat().has(Incompat::EA_INODE)
}

impl<'a> Xattrs<'a> {
    /// The attributes of `inode`.
    #[must_use]
    pub fn new(ctx: Ctx<'a>, inode: &'a Inode) -> Xattrs<'a> {
        Xattrs { ctx, inode }
    }

    /// The value of `key`.
    pub fn get(&self, core: &Core, key: Key<'_>) -> Result<Option<Vec<u8>>> {
        let found = self.look_in_record(core, |region| lookup(region, Home::Inode, key))?.flatten();
        let found = match found {
            None => self.look_in_block(core, |block| lookup(block, Home::Block, key))?.flatten(),
            found => found,
        };
        match found {
            None => Ok(None),
            Some(OwnedValue::Bytes(bytes)) => Ok(Some(bytes)),
            Some(OwnedValue::InInode { ino, size, .. }) => self.read_value(ino, size).map(Some),
        }
    }

    /// Calls `give` with every name, in the order of listxattr(2): those in the record, then
    /// those in the block.
    pub fn for_each(&self, core: &Core, mut give: impl FnMut(u8, &[u8])) -> Result<()> {
        let mut walk = |region: &[u8], home| {
            codec::entries(region, home).try_for_each(|entry| {
                let entry = entry?;
                give(entry.index, entry.name);
                Ok(())
            })
        };
        self.look_in_record(core, |region| walk(region, Home::Inode))?;
        self.look_in_block(core, |block| walk(block, Home::Block))?;
        Ok(())
    }

    /// Sets `key` to `value`, or removes it. [`set_credits`].
    ///
    /// # Errors
    /// `NoSpace` when it fits nowhere; the attributes are as before then.
    pub fn set(
        &self,
        handle: &Handle<'_>,
        core: &mut Core,
        key: Key<'_>,
        value: Option<&[u8]>,
        change: &mut Changed,
    ) -> Result<()> {
        let record = self.record_attributes(core)?;
        let block = self.block_attributes(core)?;
        let (in_record, in_block) = (key.of(&record), key.of(&block));
        let old = in_record.as_ref().or(in_block.as_ref());
        match value {
            None if old.is_none() => return Ok(()),
            None if in_record.is_some() => {
                self.write_record(handle, core, &record, &key.without(&record), change)?;
            }
            None => self.write_block(handle, core, &key.without(&block), change)?,
            Some(value) => {
                if matches!(old, Some(OwnedValue::Bytes(bytes)) if bytes == value) {
                    return Ok(());
                }
                self.place_anywhere(handle, core, key, value, (&record, &block), change)?;
            }
        }
        change.changed = true;
        if let Some(OwnedValue::InInode { size, .. }) = old {
            core.map.sectors = core.map.sectors.saturating_sub(self.charge(*size as usize));
        }
        Ok(())
    }

    fn place_anywhere(
        &self,
        handle: &Handle<'_>,
        core: &mut Core,
        key: Key<'_>,
        value: &[u8],
        lists: (&Attributes, &Attributes),
        change: &mut Changed,
    ) -> Result<()> {
        if self.place(handle, core, key, OwnedValue::Bytes(value.to_vec()), lists, change)? {
            return Ok(());
        }
        if value.is_empty() || !uses_value_inodes(self.ctx.vol) {
            return Err(Error::NoSpace);
        }
        let (ino, outside) = self.write_value(handle, core, value)?;
        let placed = self.place(handle, core, key, outside, lists, change);
        // What was placed counts for itself.
        self.unreference(handle, ino, change)?;
        if !placed? {
            return Err(Error::NoSpace);
        }
        core.map.sectors += self.charge(value.len());
        Ok(())
    }

    /// What a value outside adds to the inode's count of sectors, as if the blocks were its own.
    fn charge(&self, len: usize) -> u64 {
        let block = self.ctx.vol.block_size() as usize;
        (len.next_multiple_of(block) / 512) as u64
    }

    /// Gives up everything the attributes hold outside the record, for an inode that is deleted.
    /// [`set_credits`], and [`DROP_CREDITS`] for each value inode that [`Xattrs::holdings`] counts.
    pub fn free(&self, handle: &Handle<'_>, core: &mut Core, change: &mut Changed) -> Result<()> {
        let record = self.record_attributes(core)?;
        self.write_record(handle, core, &record, &Attributes::default(), change)?;
        self.write_block(handle, core, &Attributes::default(), change)
    }

    /// Whether there is anything that [`Xattrs::free`] would give up, and how many value inodes.
    pub fn holdings(&self, core: &Core) -> Result<(bool, u32)> {
        let outside = |list: &Attributes| {
            list.list().iter().filter(|a| matches!(a.value, OwnedValue::InInode { .. })).count() as u32
        };
        let values = outside(&self.record_attributes(core)?) + outside(&self.block_attributes(core)?);
        Ok((values > 0 || core.disk.file_acl.0 != 0, values))
    }

    /// Whether those in the record take more than `room` bytes.
    pub fn exceed(&self, core: &Core, room: usize) -> Result<bool> {
        let list = self.record_attributes(core)?;
        Ok(!list.list().is_empty() && list.size(Home::Inode) > room)
    }

    /// Moves attributes from the record to the block until those left take at most `room` bytes, if that is
    /// possible. [`set_credits`].
    ///
    /// # Errors
    /// `NoSpace` when a block is missing; nothing has changed then.
    pub fn move_out(&self, handle: &Handle<'_>, core: &mut Core, room: usize) -> Result<()> {
        let record = self.record_attributes(core)?;
        let (mut left, mut block) = (record.clone(), self.block_attributes(core)?);
        while !left.list().is_empty() && left.size(Home::Inode) > room {
            let excess = left.size(Home::Inode) - room;
            // The smallest that is enough, else the largest. What lies in an inode of its own stays.
            let movable =
                |a: &&Attribute| matches!(a.value, OwnedValue::Bytes(_)) && a.index != codec::INDEX_SYSTEM;
            let cost = |a: &&Attribute| (a.size() < excess, a.size().abs_diff(excess));
            let Some(picked) = left.list().iter().filter(movable).min_by_key(cost).cloned() else {
                return Ok(());
            };
            left.remove(picked.index, &picked.name);
            block.set(picked.index, &picked.name, picked.value);
        }
        if block.size(Home::Block) > self.ctx.vol.block_size() as usize {
            return Ok(());
        }
        // No value in an inode of its own comes or goes.
        let mut change = Changed::default();
        self.write_block(handle, core, &block, &mut change)?;
        self.write_record(handle, core, &record, &left, &mut change)
    }

    /// Puts the value where it fits: in the record, else in the block, and takes it out of the
    /// other. False when it fits in neither.
    fn place(
        &self,
        handle: &Handle<'_>,
        core: &mut Core,
        key: Key<'_>,
        value: OwnedValue,
        (record, block): (&Attributes, &Attributes),
        change: &mut Changed,
    ) -> Result<bool> {
        let room = core.disk.xattr_range(&self.ctx.vol.inode_layout).map_or(0, |range| range.len());
        let mut with = record.clone();
        with.set(key.index, key.name, value.clone());
        if with.size(Home::Inode) <= room {
            self.write_record(handle, core, record, &with, change)?;
            if key.of(block).is_some() {
                self.write_block(handle, core, &key.without(block), change)?;
            }
            return Ok(true);
        }
        let mut with = block.clone();
        let is_long = matches!(&value, OwnedValue::Bytes(bytes) if !bytes.is_empty());
        with.set(key.index, key.name, value);
        if is_long && uses_value_inodes(self.ctx.vol) && with.values_size() > self.room_for_values() {
            return Ok(false);
        }
        if with.size(Home::Block) > self.ctx.vol.block_size() as usize {
            return Ok(false);
        }
        self.write_block(handle, core, &with, change)?;
        if key.of(record).is_some() {
            self.write_record(handle, core, record, &key.without(record), change)?;
        }
        Ok(true)
    }

    /// Bytes of a block that values may take where they can go into inodes of their own: the rest, an
    /// eighth or 1 KiB, is the entries'.
    fn room_for_values(&self) -> usize {
        let block = self.ctx.vol.block_size() as usize;
        block - (block / 8).min(1024)
    }

    fn record_attributes(&self, core: &Core) -> Result<Attributes> {
        let list = self.look_in_record(core, |region| self.decode(region, Home::Inode))?;
        Ok(list.unwrap_or_default())
    }

    fn block_attributes(&self, core: &Core) -> Result<Attributes> {
        let list = self.look_in_block(core, |block| self.decode(block, Home::Block))?;
        Ok(list.unwrap_or_default())
    }

    fn decode(&self, region: &[u8], home: Home) -> std::result::Result<Attributes, Corruption> {
        Attributes::read(region, home, |ino| self.value_hash(ino))
    }

    fn look_in_record<T>(
        &self,
        core: &Core,
        look: impl FnOnce(&[u8]) -> std::result::Result<T, Corruption>,
    ) -> Result<Option<T>> {
        let Some(range) = core.disk.xattr_range(&self.ctx.vol.inode_layout) else { return Ok(None) };
        let looked = self.ctx.table.with_record(self.inode.ino, |record| {
            record.get(range).filter(|region| codec::in_use(region)).map(look).transpose()
        })?;
        looked.map_err(|c| self.damaged(c))
    }

    /// Counts the references of a place whose attributes were `before` and are `after` now. Those that come
    /// are counted before those that go, so that nothing is dropped which is only handed on.
    fn count_values(
        &self,
        handle: &Handle<'_>,
        before: &Attributes,
        after: &Attributes,
        change: &mut Changed,
    ) -> Result<()> {
        let mut gone: SmallVec<[Ino; 4]> = outside(before.list()).collect();
        for ino in outside(after.list()) {
            match gone.iter().position(|old| *old == ino) {
                Some(at) => drop(gone.swap_remove(at)),
                None => self.reference(handle, ino)?,
            }
        }
        gone.into_iter().try_for_each(|ino| self.unreference(handle, ino, change))
    }

    fn write_record(
        &self,
        handle: &Handle<'_>,
        core: &Core,
        before: &Attributes,
        list: &Attributes,
        change: &mut Changed,
    ) -> Result<()> {
        let Some(range) = core.disk.xattr_range(&self.ctx.vol.inode_layout) else { return Ok(()) };
        let mut fits = false;
        self.ctx.table.edit_record(handle, self.inode.ino, |record| {
            fits = record.get_mut(range).is_some_and(|region| list.write(region, Home::Inode));
        })?;
        debug_assert!(fits, "the size was checked");
        self.count_values(handle, before, list, change)
    }

    fn damaged(&self, c: Corruption) -> Error {
        self.ctx.vol.corrupt(c.in_inode(self.inode.ino))
    }
}

/// The value of `key` in a region; of a value inode only the place.
fn lookup(region: &[u8], home: Home, key: Key<'_>) -> std::result::Result<Option<OwnedValue>, Corruption> {
    let entry = codec::find(region, home, key.index, key.name)?;
    Ok(entry.map(|entry| match entry.value {
        codec::Value::Here(bytes) => OwnedValue::Bytes(bytes.to_vec()),
        codec::Value::InInode { ino, size } => OwnedValue::InInode { ino, size, value_hash: 0 },
    }))
}

/// The inodes that hold values of `list`.
fn outside(list: &[Attribute]) -> impl Iterator<Item = Ino> + '_ {
    list.iter().filter_map(|attribute| match attribute.value {
        OwnedValue::InInode { ino, .. } => Some(ino),
        OwnedValue::Bytes(_) => None,
    })
}
