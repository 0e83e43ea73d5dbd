//! The way from a map's root down to one leaf of its extent tree.

use ext4_format::extent::{Bounds, Index, Node, NodeMut};
use ext4_format::{BlockNo, FileBlock, verify};
use jbd2::{BlockData, Buffer, Handle};
use smallvec::SmallVec;

use super::{MapCtx, MapRoot};
use crate::error::{Error, Result};

/// One node on the way down.
pub struct Level {
    /// Its block, or `None` for the root in the inode.
    pub buffer: Option<Buffer>,
    /// The entry taken: in an index node the child, in the leaf the last extent that starts at or
    /// before the block looked for (`None` when all start behind it).
    pub slot: Option<usize>,
    /// Entries of the node.
    pub len: usize,
    /// Entries it has room for.
    pub max: usize,
    /// First file block behind what the node covers.
    pub end: u64,
}

/// Root first, leaf last.
pub struct Path {
    /// The levels; never empty.
    pub levels: SmallVec<[Level; 6]>,
}

impl Path {
    /// The leaf.
    pub fn leaf(&self) -> &Level {
        &self.levels[self.levels.len() - 1]
    }

    /// Index of the leaf among the levels.
    pub fn leaf_at(&self) -> usize {
        self.levels.len() - 1
    }
}

/// A node's bytes as they stand now, still while it is looked at.
pub enum NodeBytes<'r> {
    /// In the inode.
    Root(&'r [u8; 60]),
    /// In a block of its own.
    Block(BlockData),
}

impl std::ops::Deref for NodeBytes<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            NodeBytes::Root(bytes) => bytes.as_slice(),
            NodeBytes::Block(bytes) => bytes,
        }
    }
}

/// The bytes of `level`.
pub fn bytes<'r>(root: &'r MapRoot, level: &Level) -> NodeBytes<'r> {
    match &level.buffer {
        None => NodeBytes::Root(&root.block),
        Some(buffer) => NodeBytes::Block(buffer.data()),
    }
}

/// The way to the leaf that holds `at`, or would.
pub fn descend(ctx: &MapCtx<'_>, root: &MapRoot, at: FileBlock) -> Result<Path> {
    let mut levels = SmallVec::new();
    let mut buffer: Option<Buffer> = None;
    let mut end = u64::from(u32::MAX);
    let mut expected: Option<(u16, FileBlock)> = None;
    loop {
        let data = buffer.as_ref().map(Buffer::data);
        let bytes: &[u8] = data.as_deref().unwrap_or(&root.block);
        let node = Node::parse(bytes).map_err(|c| ctx.vol.corrupt(c.in_inode(ctx.ino)))?;
        if let Some((depth, first)) = expected {
            if node.depth() != depth {
                return Err(ctx.damaged("eh_depth", node.depth().into(), depth.into()));
            }
            // The block may have been verified as somebody else's child.
            let found = node.first_of(0).unwrap_or(first);
            let last = node.extent(node.len().wrapping_sub(1)).map_or(0, |last| last.end());
            if found < first || last > end {
                return Err(ctx.damaged("range of a node", found.0.into(), first.0.into()));
            }
        }
        let found = node.search(at);
        if node.depth() == 0 {
            levels.push(Level { buffer, slot: found, len: node.len(), max: node.max(), end });
            return Ok(Path { levels });
        }
        let slot = found.unwrap_or(0);
        let Some(Index { child, first }) = node.index(slot) else {
            return Err(ctx.damaged("eh_entries", 0, 1));
        };
        let level = Level { buffer: None, slot: Some(slot), len: node.len(), max: node.max(), end };
        if let Some(next) = node.first_of(slot + 1) {
            end = end.min(next.0.into());
        }
        expected = Some((node.depth() - 1, first));
        let next = read_node(ctx, child)?;
        levels.push(Level { buffer: buffer.replace(next), ..level });
    }
}

/// The tree block `block`, verified when it is loaded.
pub fn read_node(ctx: &MapCtx<'_>, block: BlockNo) -> Result<Buffer> {
    if !ctx.alloc.may_hold_data(block, 1) {
        return Err(ctx.damaged("block of the volume itself", block.0, 0));
    }
    let geo = &ctx.vol.geo;
    let bounds = Bounds::of_volume(BlockNo(geo.first_data_block.into()), geo.blocks_count);
    ctx.vol.read_meta(block, |bytes| {
        verify::extent_block(bytes, &ctx.vol.csum, &bounds, ctx.ino, ctx.generation)
    })
}

/// Edits the node of `level` within `handle`; a block of its own gets its checksum renewed.
pub fn edit<T>(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    level: &Level,
    change: impl FnOnce(&mut NodeMut<'_>) -> T,
) -> Result<T> {
    let wrong = |c| Error::Corrupt(c);
    match &level.buffer {
        None => Ok(change(&mut NodeMut::parse(&mut root.block).map_err(wrong)?)),
        Some(buffer) => {
            let mut bytes = handle.write(buffer)?;
            let done = change(&mut NodeMut::parse(&mut bytes).map_err(wrong)?);
            ctx.vol.csum.set_extent_block(&mut bytes, ctx.ino, ctx.generation);
            Ok(done)
        }
    }
}

/// Looks at the node of `level` as it stands now.
pub fn view<T>(root: &MapRoot, level: &Level, look: impl FnOnce(&Node<'_>) -> T) -> Result<T> {
    let bytes = bytes(root, level);
    Ok(look(&Node::parse(&bytes)?))
}
