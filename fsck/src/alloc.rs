//! Blocks and inodes for repairs, taken from what pass 1 found free.
//!
//! Only the picture of the passes is changed here; pass 5 brings the bitmaps in line.

use ext4_format::extent::{Extent, Index, NodeMut};
use ext4_format::inode::{FULL_EXTRA_ISIZE, FileType, Inode, Time, flag};
use ext4_format::{BlockNo, FileBlock, Ino};

use ext4_format::dirent::{DirBlockMut, DirFormat};
use ext4_format::features::Incompat;

use crate::context::{Context, lock};
use crate::error::{Error, Result};
use crate::map::Use;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};

/// Takes one cluster near `goal`.
pub fn cluster(ctx: &Context, goal: BlockNo) -> Result<BlockNo> {
    let block = ctx.found.blocks.find_free(goal, 1).ok_or(Error::NoSpace)?;
    ctx.found.blocks.claim(block, 1, |_| ());
    Ok(block)
}

/// Takes a free inode.
pub fn inode(ctx: &Context) -> Result<Ino> {
    (ctx.first_ino()..=ctx.geometry.inodes_count)
        .filter_map(Ino::new)
        .find(|ino| ctx.found.inodes.get(*ino) == Use::Free)
        .ok_or(Error::NoSpace)
}

/// A fresh inode of a kind, with nothing mapped.
#[must_use]
pub fn fresh(ctx: &Context, kind: FileType, permissions: u16) -> Inode {
    let mut inode = Inode::decode_damaged(&[], &ctx.layout);
    inode.mode = kind.mode_bits() | permissions;
    let now = Time { sec: i64::from(ctx.options.now()), nsec: 0 };
    (inode.atime, inode.mtime, inode.ctime) = (now, now, now);
    if ctx.layout.inode_size > 128 {
        inode.extra_isize = FULL_EXTRA_ISIZE;
        inode.crtime = Some(now);
    }
    // The feature may have come back in this round.
    if lock(&ctx.next_sb).incompat().has(Incompat::EXTENTS) {
        inode.flags |= flag::EXTENTS;
        let _ = NodeMut::init(&mut inode.block, 0);
    }
    inode
}

/// Maps one more block at the end of what an inode maps, or in a hole.
pub fn map_block(ctx: &Context, ino: Ino, inode: &mut Inode, at: u32, block: BlockNo) -> Result<()> {
    let mut all = pass1::extents_of(ctx, inode);
    let new = Extent { first: FileBlock(at), len: 1, start: block, unwritten: false };
    let place = all.partition_point(|extent| extent.first < new.first);
    all.insert(place, new);
    set_extents(ctx, ino, inode, &all)
}

/// Rebuilds the map of an inode from its extents, which are in file order. New tree blocks are taken where
/// needed; the old ones are given back.
pub fn set_extents(ctx: &Context, ino: Ino, inode: &mut Inode, extents: &[Extent]) -> Result<()> {
    // A cluster may hold data beside the block of a tree: it comes free in the next round.
    if ctx.geometry.cluster_ratio == 1 {
        for block in tree_blocks(ctx, ino)?.into_iter().filter(|block| !ctx.found.multiple.has(*block)) {
            ctx.found.blocks.release(block, 1);
        }
    }
    build(ctx, ino, inode, extents)
}

/// Writes the map of an inode from its extents, in blocks that were free.
fn build(ctx: &Context, ino: Ino, inode: &mut Inode, extents: &[Extent]) -> Result<()> {
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match joined.last_mut() {
            Some(last) if last.joins(extent) => last.len += extent.len,
            _ => joined.push(*extent),
        }
    }
    let trees = if inode.has(flag::EXTENTS) {
        build_extents(ctx, ino, inode, &joined)?
    } else {
        build_map(ctx, inode, &joined)?
    };
    let data: u64 = if ctx.geometry.cluster_ratio == 1 {
        joined.iter().map(|extent| u64::from(extent.len)).sum()
    } else {
        let claims = joined.iter().map(|e| (e.start.0, u64::from(e.len))).collect();
        pass1::Effects { claims, ..Default::default() }.clusters(ctx)
    };
    let attributes = u64::from(inode.file_acl.0 != 0);
    inode.blocks = (data + trees + attributes) * ctx.cluster_sectors();
    Ok(())
}

/// Gives an inode a new extent tree: over what its block map maps, or over extents that were saved from a
/// tree whose blocks are not to be given back.
///
/// # Errors
/// The device's, or [`Error::NoSpace`].
pub fn to_extents(ctx: &Context, ino: Ino, saved: Option<&[Extent]>) -> Result<()> {
    let mut inode = ctx.read_inode(ino)?;
    match saved {
        Some(extents) => build(ctx, ino, &mut inode, extents)?,
        None => {
            let extents = pass1::extents_of(ctx, &inode);
            inode.flags |= flag::EXTENTS;
            set_extents(ctx, ino, &mut inode, &extents)?;
        }
    }
    ctx.write_inode(ino, &inode)
}

/// Builds the trees that pass 1 found to need it.
///
/// # Errors
/// The device's.
pub fn build_trees(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    for (ino, saved) in std::mem::take(&mut *lock(&ctx.found.to_extents)) {
        match to_extents(ctx, ino, saved.as_deref()) {
            Err(Error::NoSpace) => {
                prompter.ask(Problem::of(Code::NoRoom, ino))?;
            }
            other => other?,
        }
    }
    Ok(())
}

/// Blocks of an inode's tree, as far as it can be read.
fn tree_blocks(ctx: &Context, ino: Ino) -> Result<Vec<BlockNo>> {
    let inode = ctx.read_inode(ino)?;
    let mut data: Vec<(u64, u64)> = pass1::extents_of(ctx, &inode)
        .iter()
        .map(|extent| (extent.start.0, extent.start.0 + u64::from(extent.len)))
        .collect();
    data.sort_unstable();
    // Ends that only grow, where extents overlap: the last one that starts at or before a block tells.
    let mut end = 0;
    for range in &mut data {
        end = range.1.max(end);
        range.1 = end;
    }
    let holds = |block: u64| {
        let after = data.partition_point(|range| range.0 <= block);
        after > 0 && block < data[after - 1].1
    };
    let effects = pass1::effects_of(ctx, ino)?;
    let single = effects.claims.iter().filter(|&&(start, len)| len == 1 && !holds(start));
    Ok(single.map(|&(start, _)| BlockNo(start)).collect())
}

/// Levels below the root, and nodes in them, of the smallest tree for so many extents.
#[must_use]
pub fn tree_shape(ctx: &Context, extents: u64) -> (u16, u64) {
    const IN_ROOT: u64 = 4;
    let per_block = (ctx.disk.block_size() / ext4_format::extent::ENTRY_SIZE - 1) as u64;
    let (mut depth, mut nodes, mut level) = (0, 0, extents);
    while level > IN_ROOT {
        level = level.div_ceil(per_block);
        nodes += level;
        depth += 1;
    }
    (depth, nodes)
}

fn build_extents(ctx: &Context, ino: Ino, inode: &mut Inode, extents: &[Extent]) -> Result<u64> {
    let size = ctx.disk.block_size();
    let per_block = size / ext4_format::extent::ENTRY_SIZE - 1;
    let goal = extents.first().map_or(BlockNo(0), |extent| extent.start);
    let mut blocks = 0;
    if extents.len() <= 4 {
        let mut root = NodeMut::init(&mut inode.block, 0);
        for (at, extent) in extents.iter().enumerate() {
            let _ = root.insert(at, *extent);
        }
        return Ok(0);
    }
    let mut level: Vec<Index> = Vec::new();
    let mut depth = 0;
    let mut write = |bytes: &mut Vec<u8>, first: FileBlock| -> Result<Index> {
        let block = cluster(ctx, goal)?;
        ctx.csum.set_extent_block(bytes, ino, inode.generation);
        ctx.disk.write(block, bytes)?;
        blocks += 1;
        Ok(Index { first, child: block })
    };
    for part in extents.chunks(per_block) {
        let mut bytes = vec![0; size];
        let mut node = NodeMut::init(&mut bytes, 0);
        for (at, extent) in part.iter().enumerate() {
            let _ = node.insert(at, *extent);
        }
        level.push(write(&mut bytes, part[0].first)?);
    }
    while level.len() > 4 {
        depth += 1;
        let mut above = Vec::new();
        for part in level.chunks(per_block) {
            let mut bytes = vec![0; size];
            let mut node = NodeMut::init(&mut bytes, depth);
            for (at, index) in part.iter().enumerate() {
                let _ = node.insert(at, *index);
            }
            above.push(write(&mut bytes, part[0].first)?);
        }
        level = above;
    }
    let mut root = NodeMut::init(&mut inode.block, depth + 1);
    for (at, index) in level.iter().enumerate() {
        let _ = root.insert(at, *index);
    }
    Ok(blocks)
}

fn build_map(ctx: &Context, inode: &mut Inode, extents: &[Extent]) -> Result<u64> {
    use ext4_format::indirect::{path, pointer, set_pointer};
    let size = ctx.geometry.block_size;
    inode.block = [0; 60];
    let mut blocks = 0;
    for extent in extents {
        for ahead in 0..extent.len {
            let at = FileBlock(extent.first.0 + ahead);
            let Some(path) = path(at, size) else { continue };
            let target = BlockNo(extent.start.0 + u64::from(ahead));
            if path.levels == 0 {
                set_pointer(&mut inode.block, path.slots[0], Some(target));
                continue;
            }
            let mut node = match pointer(&inode.block, path.slots[0]) {
                Some(node) => node,
                None => {
                    let node = empty_node(ctx, target)?;
                    blocks += 1;
                    set_pointer(&mut inode.block, path.slots[0], Some(node));
                    node
                }
            };
            for (level, slot) in path.slots[1..=path.levels].iter().enumerate() {
                let mut bytes = ctx.disk.read(node)?;
                if level + 1 == path.levels {
                    set_pointer(&mut bytes, *slot, Some(target));
                    ctx.disk.write(node, &bytes)?;
                } else if let Some(next) = pointer(&bytes, *slot) {
                    node = next;
                } else {
                    let next = empty_node(ctx, target)?;
                    blocks += 1;
                    set_pointer(&mut bytes, *slot, Some(next));
                    ctx.disk.write(node, &bytes)?;
                    node = next;
                }
            }
        }
    }
    Ok(blocks)
}

fn empty_node(ctx: &Context, goal: BlockNo) -> Result<BlockNo> {
    let block = cluster(ctx, goal)?;
    ctx.disk.write(block, &vec![0; ctx.disk.block_size()])?;
    Ok(block)
}

/// Gives a directory an empty block `at`, and the size to hold it.
pub fn append_dir_block(ctx: &Context, ino: Ino, at: u32) -> Result<BlockNo> {
    let mut inode = ctx.read_inode(ino)?;
    let goal = pass1::extents_of(ctx, &inode).last().map_or(BlockNo(0), |extent| extent.start);
    let block = cluster(ctx, goal)?;
    let mut bytes = vec![0; ctx.disk.block_size()];
    let format = DirFormat::new(&ctx.sb, inode.flags);
    let _ = DirBlockMut::init(&mut bytes, format);
    ctx.csum.set_dir_block(&mut bytes, ino, inode.generation);
    ctx.disk.write(block, &bytes)?;
    map_block(ctx, ino, &mut inode, at, block)?;
    inode.size = inode.size.max((u64::from(at) + 1) * u64::from(ctx.geometry.block_size));
    ctx.write_inode(ino, &inode)?;
    Ok(block)
}
