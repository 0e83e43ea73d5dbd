//! Making a directory larger: appending blocks, splitting a leaf, the index above it, and giving
//! a linear directory its index.
//!
//! Every step first gets all the blocks it will need. From there on only the journal can fail,
//! so a directory is never left half split for want of space.

use ext4_format::dirent::{At, DirBlock, DirBlockMut, Split, split_by_hash};
use ext4_format::htree::{DxEntry, IndexMut, Kind, RootInfo, RootShape, max_levels};
use ext4_format::inode::flag;
use ext4_format::{BlockNo, FileBlock, Ino, What};
use jbd2::{Buffer, Handle};
use smallvec::SmallVec;

use super::Dir;
use super::blocks::Role;
use super::index::{Frame, Path};
use crate::error::{Error, Result};
use crate::extent::{self, AllocHow, Mapping};
use crate::inode::Core;

/// A new block of the directory, zeroed.
type Fresh = (FileBlock, Buffer);
/// As many as one step can need: a leaf, and two nodes or a node and a level.
type FreshBlocks = SmallVec<[Fresh; 4]>;

/// Index entries name blocks with 28 bits.
const MAX_BLOCKS: u64 = 1 << 28;

impl Dir<'_> {
    /// Credits for `count` new blocks: themselves, what maps and allocates them, and the inode.
    pub(super) fn growth_credits(&self, core: &Core, count: u32) -> u32 {
        count + extent::allocate_credits(&core.map, count) + 1
    }

    /// Credits for splitting a leaf under `levels` levels of index.
    pub(super) fn split_credits(&self, core: &Core, levels: usize) -> u32 {
        let levels = levels as u32;
        1 + levels + self.growth_credits(core, 1 + levels)
    }

    /// Appends an empty leaf.
    pub(super) fn append_leaf(&self, handle: &Handle<'_>) -> Result<Buffer> {
        let mut core = self.inode.core.write();
        let mut fresh = self.grow(handle, &mut core, 1)?.into_iter();
        let (_, buffer) = self.take(&mut fresh)?;
        self.edit_leaf(handle, &buffer, |bytes| {
            let _ = DirBlockMut::init(bytes, self.settings.format);
        })?;
        Ok(buffer)
    }

    /// Gives the directory, whose only block is `first`, an index over two leaves.
    pub(super) fn convert(&self, handle: &Handle<'_>, first: &Buffer) -> Result<()> {
        let parent = self.check_dots(first)?;
        let mut core = self.inode.core.write();
        let mut fresh = self.grow(handle, &mut core, 2)?.into_iter();
        let (left_at, left_buffer) = self.take(&mut fresh)?;
        let (right_at, right_buffer) = self.take(&mut fresh)?;
        let mut root = handle.write(first)?;
        let mut left = handle.write(&left_buffer)?;
        left.copy_from_slice(&root);
        let mut names = DirBlockMut::new(&mut left, self.settings.format);
        for offset in [12, 0] {
            names.remove(At { offset, front: 0 }).map_err(|c| self.corrupt(first, c))?;
        }
        let mut right = handle.write(&right_buffer)?;
        let version = self.settings.hash_version();
        let split = self.split_names(&mut left, &mut right, version)?;
        let shape = RootShape {
            itself: self.inode.ino,
            parent,
            filetype: self.settings.format.filetype,
            tail: self.settings.format.tail,
        };
        let info = RootInfo {
            hash_version: self.settings.hash_base.raw(),
            info_length: ext4_format::htree::INFO_LEN,
            indirect_levels: 0,
            unused_flags: 0,
        };
        let mut index = IndexMut::init_root(&mut root, &shape, info, left_at);
        let fits = index.insert(1, DxEntry { hash: split.index_hash(), block: right_at });
        debug_assert!(fits, "a new root has room");
        self.seal_index(&mut root, Kind::Root);
        drop((root, left, right));
        core.disk.flags |= flag::INDEX;
        self.table.store(handle, self.inode, &mut core)
    }

    /// Splits the leaf at the end of `path`, and what must be split above it.
    pub(super) fn split(&self, handle: &Handle<'_>, mut path: Path) -> Result<()> {
        let mut core = self.inode.core.write();
        let depth = path.frames.len();
        let full = path.frames.iter().rev().take_while(|f| f.full).count();
        if full == depth && depth >= usize::from(max_levels(self.settings.large)) {
            tracing::warn!(ino = %self.inode.ino, "the directory's index is full");
            return Err(Error::NoSpace);
        }
        let leaf = self.read(&core, path.leaf, Role::Leaf)?;
        let mut fresh = self.grow(handle, &mut core, 1 + full as u32)?.into_iter();
        self.make_slot(handle, &mut path.frames, depth - 1, &mut fresh)?;
        let (at, buffer) = self.take(&mut fresh)?;
        let split = {
            let mut left = handle.write(&leaf)?;
            let mut right = handle.write(&buffer)?;
            self.split_names(&mut left, &mut right, path.version)?
        };
        match path.frames.last() {
            Some(above) => self.link(handle, above, DxEntry { hash: split.index_hash(), block: at }),
            None => Ok(()),
        }
    }

    /// Makes sure that the frame at `level` has a free slot, splitting it and those above as
    /// needed; `frames` goes on leading to the same leaf.
    fn make_slot(
        &self,
        handle: &Handle<'_>,
        frames: &mut SmallVec<[Frame; 3]>,
        level: usize,
        fresh: &mut impl Iterator<Item = Fresh>,
    ) -> Result<()> {
        if !frames[level].full {
            return Ok(());
        }
        if level == 0 {
            return self.deepen(handle, frames, fresh);
        }
        let depth = frames.len();
        self.make_slot(handle, frames, level - 1, fresh)?;
        let level = level + frames.len() - depth;
        let (at, right_buffer) = self.take(fresh)?;
        let (hash, kept) = {
            let mut left = handle.write(&frames[level].buffer)?;
            let mut right = handle.write(&right_buffer)?;
            let mut node = self.index_mut(&mut left, &frames[level])?;
            let hash = node.split_upper_half(&mut right);
            let kept = node.view().count();
            self.seal_index(&mut left, Kind::Node);
            self.seal_index(&mut right, Kind::Node);
            (hash.ok_or_else(|| self.damaged(What::HtreeBlock, "count", kept as u64, 2))?, kept)
        };
        self.link(handle, &frames[level - 1], DxEntry { hash, block: at })?;
        frames[level].full = false;
        if frames[level].at >= kept {
            frames[level].at -= kept;
            frames[level].buffer = right_buffer;
            frames[level - 1].at += 1;
        }
        Ok(())
    }

    /// Moves the root's entries into a node of their own.
    fn deepen(
        &self,
        handle: &Handle<'_>,
        frames: &mut SmallVec<[Frame; 3]>,
        fresh: &mut impl Iterator<Item = Fresh>,
    ) -> Result<()> {
        let (at, buffer) = self.take(fresh)?;
        {
            let mut root = handle.write(&frames[0].buffer)?;
            let mut node = handle.write(&buffer)?;
            self.index_mut(&mut root, &frames[0])?.grow_depth(&mut node, at);
            self.seal_index(&mut root, Kind::Root);
            self.seal_index(&mut node, Kind::Node);
        }
        // A node has more slots than the root.
        let below = Frame { buffer, kind: Kind::Node, at: frames[0].at, full: false };
        frames[0].at = 0;
        frames[0].full = false;
        frames.insert(1, below);
        Ok(())
    }

    /// Adds `entry` behind the one that `frame` took.
    fn link(&self, handle: &Handle<'_>, frame: &Frame, entry: DxEntry) -> Result<()> {
        let mut bytes = handle.write(&frame.buffer)?;
        let fits = self.index_mut(&mut bytes, frame)?.insert(frame.at + 1, entry);
        self.seal_index(&mut bytes, frame.kind);
        if fits { Ok(()) } else { Err(self.damaged(What::HtreeBlock, "limit", frame.at as u64, 0)) }
    }

    fn index_mut<'b>(&self, bytes: &'b mut [u8], frame: &Frame) -> Result<IndexMut<'b>> {
        let index = IndexMut::parse(bytes, frame.kind, self.settings.format.tail);
        index.map_err(|c| self.corrupt(&frame.buffer, c))
    }

    fn split_names(
        &self,
        left: &mut [u8],
        right: &mut [u8],
        version: ext4_format::hash::HashVersion,
    ) -> Result<Split> {
        self.inode.dir.changed();
        let hash = |name: &[u8]| self.settings.hash(version, name).map(|hash| hash.major);
        let split = split_by_hash(left, right, self.settings.format, hash)
            .map_err(|c| self.vol.corrupt(c.in_inode(self.inode.ino)))?;
        self.seal_leaf(left);
        self.seal_leaf(right);
        split.ok_or_else(|| self.damaged(What::DirBlock, "entries", 1, 2))
    }

    /// The directory that `..` names, if `first` starts with the dots as it must.
    fn check_dots(&self, first: &Buffer) -> Result<Ino> {
        let data = first.data();
        let mut entries = DirBlock::new(&data, self.settings.format).entries();
        let mut dot = |name: &[u8], offset| {
            let entry = entries.next()?.ok()?;
            entry.ino.filter(|_| entry.name == name && entry.at.offset == offset)
        };
        let dots = dot(b".", 0).and_then(|_| dot(b"..", 12));
        dots.ok_or_else(|| self.damaged(What::DirBlock, "dots", 0, 0))
    }

    fn take(&self, fresh: &mut impl Iterator<Item = Fresh>) -> Result<Fresh> {
        fresh.next().ok_or_else(|| self.damaged(What::HtreeBlock, "levels", 0, 0))
    }

    /// Appends `count` zeroed blocks, all or none, and stores the inode.
    fn grow(&self, handle: &Handle<'_>, core: &mut Core, count: u32) -> Result<FreshBlocks> {
        let first = self.block_count(core);
        let blocks = u64::from(first) + u64::from(count);
        let size = blocks * u64::from(self.vol.block_size());
        let limit = match self.vol.opts.max_dir_size {
            Some(limit) => limit,
            None if self.settings.large => u64::MAX,
            None => u32::MAX.into(),
        };
        if size > limit || blocks > MAX_BLOCKS {
            return Err(Error::NoSpace);
        }
        let ctx = self.map_ctx();
        let mut fresh = FreshBlocks::new();
        let mut mapped = 0;
        while mapped < count {
            let at = FileBlock(first + mapped);
            let how = AllocHow { unwritten: false, depth: self.depth, reserved: None };
            let got = extent::allocate(&ctx, handle, &mut core.map, at, count - mapped, how);
            let created = got.and_then(|segment| {
                mapped += segment.len;
                let Mapping::Written(start) = segment.mapping else { return Err(Error::NoSpace) };
                for i in 0..segment.len {
                    let block = BlockNo(start.0 + u64::from(i));
                    fresh.push((FileBlock(at.0 + i), handle.create(block)?));
                }
                Ok(())
            });
            if let Err(error) = created {
                extent::remove_new(&ctx, handle, &mut core.map, FileBlock(first), mapped)?;
                self.table.store(handle, self.inode, core)?;
                return Err(error);
            }
        }
        core.size = size;
        core.disk.size = size;
        self.table.store(handle, self.inode, core)?;
        Ok(fresh)
    }
}
