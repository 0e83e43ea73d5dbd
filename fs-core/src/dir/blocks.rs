//! The blocks of a directory: where they lie, what they must look like, and how an edit of one
//! is closed with its checksum.

use ext4_format::dirent::DirFormat;
use ext4_format::htree;
use ext4_format::{BlockNo, Corruption, FileBlock, What, verify};
use jbd2::{Buffer, Handle};

use super::Dir;
use crate::error::{Error, Result};
use crate::extent::{self, MapCtx, Mapping};
use crate::inode::Core;

/// What a block of a directory is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Entries.
    Leaf,
    /// The root or a node of the index.
    Index(htree::Kind),
}

/// Blocks asked from the device at once when a directory is read from end to end.
const READ_AHEAD: u32 = 64;

impl Dir<'_> {
    pub(super) fn block_size(&self) -> usize {
        self.vol.block_size() as usize
    }

    /// Number of blocks.
    pub(super) fn block_count(&self, core: &Core) -> u32 {
        let blocks = (core.size / u64::from(self.vol.block_size())).min(self.vol.geo.blocks_count);
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    pub(super) fn map_ctx(&self) -> MapCtx<'_> {
        MapCtx { vol: self.vol, alloc: self.alloc, ino: self.inode.ino, generation: self.inode.generation }
    }

    /// Damage of this directory, recorded.
    pub(super) fn damaged(&self, what: What, field: &'static str, found: u64, expected: u64) -> Error {
        self.vol.corrupt(Corruption::new(what, field, found, expected).in_inode(self.inode.ino))
    }

    /// Damage that a decoder found in `buffer`, recorded.
    pub(super) fn corrupt(&self, buffer: &Buffer, c: Corruption) -> Error {
        self.vol.corrupt(c.in_inode(self.inode.ino).at_block(buffer.block()))
    }

    /// Reads block `at`, which must be there and look as its role asks.
    pub(super) fn read(&self, core: &Core, at: FileBlock, role: Role) -> Result<Buffer> {
        let block = self.locate(core, at)?;
        self.vol.read_meta(block, |bytes| {
            let (ino, generation) = (self.inode.ino, self.inode.generation);
            let csum = &self.vol.csum;
            match role {
                Role::Leaf => verify::dir_block(bytes, csum, self.settings.format, ino, generation),
                Role::Index(kind) => verify::htree_block(bytes, kind, csum, ino, generation),
            }
        })
    }

    /// Reads block `at` as whatever it looks like, for scans of the whole directory: the blocks
    /// of an index show their dots or nothing. Gives the format its entries are to be read with;
    /// `None` when it has none.
    pub(super) fn read_any(&self, core: &Core, at: FileBlock) -> Result<(Buffer, Option<DirFormat>)> {
        let block = self.locate(core, at)?;
        let format = self.settings.format;
        let indexed = self.is_indexed(core);
        let shape = |bytes: &[u8]| match () {
            () if indexed && at.0 == 0 && hides_root(bytes) => Some(DirFormat { tail: false, ..format }),
            () if hides_node(bytes) => None,
            () => Some(format),
        };
        let buffer = self.vol.read_meta(block, |bytes| {
            if shape(bytes) != Some(format) {
                return Ok(());
            }
            let ino = self.inode.ino;
            verify::dir_block(bytes, &self.vol.csum, format, ino, self.inode.generation)
        })?;
        let format = shape(&buffer.data());
        Ok((buffer, format))
    }

    /// Asks for the blocks from `at` on, as far as they lie together.
    pub(super) fn read_ahead(&self, core: &Core, at: FileBlock) {
        let left = self.block_count(core).saturating_sub(at.0).min(READ_AHEAD);
        if left > 1
            && let Ok(segment) = extent::lookup(&self.map_ctx(), &core.map, at, left)
            && let Mapping::Written(first) = segment.mapping
        {
            self.vol.journal.read_ahead(first, segment.len);
        }
    }

    /// Whether a scan that has come to `at` should ask ahead.
    pub(super) fn read_ahead_due(at: FileBlock) -> bool {
        at.0.is_multiple_of(READ_AHEAD)
    }

    fn locate(&self, core: &Core, at: FileBlock) -> Result<BlockNo> {
        match extent::lookup(&self.map_ctx(), &core.map, at, 1)?.mapping {
            Mapping::Written(block) => Ok(block),
            _ => Err(self.damaged(What::DirBlock, "block without a place", at.0.into(), 0)),
        }
    }

    /// Changes the entries of `buffer` and renews its checksum.
    pub(super) fn edit_leaf<T>(
        &self,
        handle: &Handle<'_>,
        buffer: &Buffer,
        edit: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T> {
        let mut bytes = handle.write(buffer)?;
        let result = edit(&mut bytes);
        self.seal_leaf(&mut bytes);
        Ok(result)
    }

    pub(super) fn seal_leaf(&self, bytes: &mut [u8]) {
        self.vol.csum.set_dir_block(bytes, self.inode.ino, self.inode.generation);
    }

    pub(super) fn seal_index(&self, bytes: &mut [u8], kind: htree::Kind) {
        let at = kind.entries_offset();
        self.vol.csum.set_htree_block(bytes, at, self.inode.ino, self.inode.generation);
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

/// Whether `..` hides the rest of the block, as in the root of an index.
pub(super) fn hides_root(bytes: &[u8]) -> bool {
    let hidden = ext4_format::dirent::decode_rec_len(word(bytes, 16), bytes.len());
    word(bytes, 4) == 12 && hidden + 12 == bytes.len()
}

/// Whether one free record hides the whole block, as in a node of an index.
fn hides_node(bytes: &[u8]) -> bool {
    let hidden = ext4_format::dirent::decode_rec_len(word(bytes, 4), bytes.len());
    bytes.get(..4) == Some(&[0; 4]) && hidden == bytes.len()
}
