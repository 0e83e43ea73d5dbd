//! Values in inodes of their own (feature `ea_inode`).
//!
//! Such an inode is a regular file without a name, whose content is the value. It is written once
//! and then only counted: its references stand in `i_ctime` (upper half) and `i_version` (lower
//! half), the hash of its value in the seconds of `i_atime`. It is read and counted through its
//! record; it enters the inode table only to be deleted. Attributes with equal values share it.
//! Source: what `e2fsck` and the kernel make of images with `ea_inode`, and `debugfs stat`.

use ext4_format::inode::{FileType, Inode as DiskInode, InodeLayout, Time, flag};
use ext4_format::xattr::{MAX_VALUE, OwnedValue};
use ext4_format::{BlockNo, Corruption, FileBlock, Ino, What};
use jbd2::Handle;

use super::Xattrs;
use super::{Changed, DROP_CREDITS};
use crate::alloc::{ALLOC_INODE_CREDITS, InodeKind};
use crate::error::{Error, Result};
use crate::extent::{self, AllocHow, MapCtx, MapRoot, Mapping};
use crate::inode::Core;
use crate::volume::Volume;

/// Pieces that a value may be scattered over when it is written.
const MAX_RUNS: u32 = 8;
const MODE: u16 = 0o600;

/// Credits for writing a value of `len` bytes and dropping the one that was there.
pub(super) fn credits(vol: &Volume, len: usize) -> u32 {
    let blocks = len.div_ceil(vol.block_size() as usize) as u32;
    let mapping = extent::allocate_credits(&MapRoot::empty_tree(), MAX_RUNS.min(blocks));
    // Its record, and that of a second value, which may be dropped as well.
    ALLOC_INODE_CREDITS + 1 + blocks + mapping + 2 * DROP_CREDITS
}

impl Xattrs<'_> {
    /// The value in inode `ino`.
    pub(super) fn read_value(&self, ino: Ino, size: u32) -> Result<Vec<u8>> {
        let disk = self.value_inode(ino)?;
        let len = size as usize;
        if disk.size != u64::from(size) || len > MAX_VALUE {
            return Err(self.bad_value(ino, "e_value_size", size.into(), disk.size));
        }
        let value = self.content(ino, &disk)?;
        let value = value.ok_or_else(|| self.bad_value(ino, "hole in a value", disk.size, 0))?;
        let hash = self.ctx.vol.csum.ea_inode_value(&value);
        if hash != hash_of(&disk) {
            return Err(self.bad_value(ino, "hash of a value", hash.into(), hash_of(&disk).into()));
        }
        self.ctx.cache.values.insert(hash, ino);
        Ok(value)
    }

    /// What the inode `ino` holds, at most [`MAX_VALUE`] bytes; `None` where it has a hole.
    fn content(&self, ino: Ino, disk: &DiskInode) -> Result<Option<Vec<u8>>> {
        let len = disk.size.min(MAX_VALUE as u64) as usize;
        let map = MapRoot::new(disk.block, disk.has(flag::EXTENTS), disk.blocks);
        let ctx = self.value_ctx(ino, disk.generation);
        let mut value = Vec::with_capacity(len);
        for at in (0..len.div_ceil(self.ctx.vol.block_size() as usize) as u32).map(FileBlock) {
            let Mapping::Written(block) = extent::lookup(&ctx, &map, at, 1)?.mapping else { return Ok(None) };
            value.extend_from_slice(&self.ctx.vol.read_meta(block, |_| Ok(()))?.data());
        }
        value.truncate(len);
        Ok(Some(value))
    }

    /// The hash of the value in inode `ino`; 0 when that cannot be read.
    pub(super) fn value_hash(&self, ino: Ino) -> u32 {
        self.value_inode(ino).map_or(0, |disk| hash_of(&disk))
    }

    /// An inode that holds `value`, with one reference for the caller: one that has it already, or a new one.
    pub(super) fn write_value(
        &self,
        handle: &Handle<'_>,
        owner: &Core,
        value: &[u8],
    ) -> Result<(Ino, OwnedValue)> {
        let size = u32::try_from(value.len()).ok().filter(|_| value.len() <= MAX_VALUE);
        let size = size.ok_or(Error::NoSpace)?;
        let value_hash = self.ctx.vol.csum.ea_inode_value(value);
        if let Some(ino) = self.join_value(handle, value, value_hash)? {
            return Ok((ino, OwnedValue::InInode { ino, size, value_hash }));
        }
        let ino = self.ctx.alloc.alloc_inode(handle, self.inode.ino, InodeKind::Other)?;
        let generation = self.ctx.vol.env.chance.next_u64() as u32;
        let mut map = MapRoot::empty_tree();
        if let Err(error) = self.write_blocks(handle, ino, generation, &mut map, value) {
            self.ctx.alloc.free_inode(handle, ino, false)?;
            return Err(error);
        }
        let now = self.ctx.vol.now();
        let layout = &self.ctx.vol.inode_layout;
        let extra_isize = layout.extra_isize(self.ctx.vol.sb.lock().want_extra_isize());
        let disk = DiskInode {
            mode: FileType::Regular.mode_bits() | MODE,
            uid: owner.disk.uid,
            gid: owner.disk.gid,
            size: size.into(),
            atime: Time { sec: value_hash.into(), nsec: 0 },
            ctime: Time::default(),
            mtime: now,
            crtime: InodeLayout::has_crtime(extra_isize).then_some(now),
            dtime: 0,
            links: 1,
            blocks: map.sectors,
            flags: flag::EA_INODE | flag::EXTENTS,
            version: 1,
            generation,
            file_acl: BlockNo(0),
            project: 0,
            block: map.block,
            extra_isize,
        };
        self.ctx.table.edit_record(handle, ino, |record| {
            record.fill(0);
            disk.encode_into(record, layout);
        })?;
        self.ctx.cache.values.insert(value_hash, ino);
        Ok((ino, OwnedValue::InInode { ino, size, value_hash }))
    }

    /// Counts one more reference to an inode that holds `value` already.
    fn join_value(&self, handle: &Handle<'_>, value: &[u8], hash: u32) -> Result<Option<Ino>> {
        let Some(ino) = self.ctx.cache.values.find(hash) else { return Ok(None) };
        let layout = &self.ctx.vol.inode_layout;
        let holds = |disk: &DiskInode| {
            is_value(disk)
                && hash_of(disk) == hash
                && disk.size == value.len() as u64
                && ino != self.inode.ino
        };
        let Ok(disk) = self.ctx.table.with_record(ino, |record| DiskInode::decode(record, layout))? else {
            return Ok(None);
        };
        if !holds(&disk) || self.content(ino, &disk)?.as_deref() != Some(value) {
            return Ok(None);
        }
        // Meanwhile others may have given it up.
        let counted =
            self.edit_count(handle, ino, |disk, count| (holds(disk) && count > 0).then_some(count + 1));
        Ok(counted?.map(|_| ino))
    }

    /// Counts one more reference.
    pub(super) fn reference(&self, handle: &Handle<'_>, ino: Ino) -> Result<()> {
        self.value_inode(ino)?;
        self.edit_count(handle, ino, |_, count| Some(count.saturating_add(1))).map(drop)
    }

    /// Counts one reference less; the last one hands the inode over to be deleted.
    pub(super) fn unreference(&self, handle: &Handle<'_>, ino: Ino, change: &mut Changed) -> Result<()> {
        let hash = hash_of(&self.value_inode(ino)?);
        if self.edit_count(handle, ino, |_, count| Some(count.saturating_sub(1)))? == Some(0) {
            self.ctx.cache.values.remove(hash, ino);
            change.dropped.push(ino);
        }
        Ok(())
    }

    /// Sets the count of references to what `step` makes of the inode and its count, unless that is `None`.
    fn edit_count(
        &self,
        handle: &Handle<'_>,
        ino: Ino,
        step: impl FnOnce(&DiskInode, u64) -> Option<u64>,
    ) -> Result<Option<u64>> {
        let layout = &self.ctx.vol.inode_layout;
        let mut result = Ok(None);
        self.ctx.table.edit_record(handle, ino, |record| {
            result = DiskInode::decode(record, layout).map(|mut disk| {
                let count = step(&disk, (disk.ctime.sec as u64) << 32 | disk.version & 0xffff_ffff)?;
                disk.ctime.sec = (count >> 32) as i64;
                disk.version = disk.version >> 32 << 32 | count & 0xffff_ffff;
                disk.encode_into(record, layout);
                Some(count)
            });
        })?;
        result.map_err(|c| self.damaged(c))
    }

    fn write_blocks(
        &self,
        handle: &Handle<'_>,
        ino: Ino,
        generation: u32,
        map: &mut MapRoot,
        value: &[u8],
    ) -> Result<()> {
        let ctx = self.value_ctx(ino, generation);
        let mut chunks = value.chunks(self.ctx.vol.block_size() as usize);
        let (mut done, mut runs) = (0, 0);
        while chunks.len() > 0 {
            let how = AllocHow { unwritten: false, depth: self.ctx.depth, reserved: None };
            let want = chunks.len() as u32;
            let got = match runs {
                MAX_RUNS => Err(Error::NoSpace),
                _ => extent::allocate(&ctx, handle, map, FileBlock(done), want, how),
            };
            let written = got.and_then(|segment| {
                let Mapping::Written(start) = segment.mapping else { return Err(Error::NoSpace) };
                for (block, chunk) in (start.0..).zip(chunks.by_ref().take(segment.len as usize)) {
                    let buffer = handle.create(BlockNo(block))?;
                    handle.write(&buffer)?[..chunk.len()].copy_from_slice(chunk);
                }
                Ok(segment.len)
            });
            match written {
                Ok(len) => done += len,
                Err(error) => {
                    extent::remove_new(&ctx, handle, map, FileBlock(0), done)?;
                    return Err(error);
                }
            }
            runs += 1;
        }
        Ok(())
    }

    /// The record of a value inode.
    fn value_inode(&self, ino: Ino) -> Result<DiskInode> {
        let layout = &self.ctx.vol.inode_layout;
        let disk = self.ctx.table.with_record(ino, |record| DiskInode::decode(record, layout))?;
        let disk = disk.map_err(|c| self.damaged(c))?;
        if is_value(&disk) && ino != self.inode.ino {
            return Ok(disk);
        }
        Err(self.bad_value(ino, "i_flags of a value", disk.flags.into(), flag::EA_INODE.into()))
    }

    fn value_ctx(&self, ino: Ino, generation: u32) -> MapCtx<'_> {
        MapCtx { vol: self.ctx.vol, alloc: self.ctx.alloc, ino, generation }
    }

    fn bad_value(&self, ino: Ino, field: &'static str, found: u64, expected: u64) -> Error {
        self.ctx.vol.corrupt(Corruption::new(What::Xattr, field, found, expected).in_inode(ino))
    }
}

fn is_value(disk: &DiskInode) -> bool {
    disk.has(flag::EA_INODE) && disk.links > 0
}

fn hash_of(disk: &DiskInode) -> u32 {
    disk.atime.sec as u32
}
