//! The extent tree as a whole: looking things up, making room, taking empty nodes out.

use ext4_format::extent::{Extent, Index, Node, NodeMut};
use ext4_format::{BlockNo, FileBlock};
use jbd2::Handle;

use super::path::{self, Path};
use super::{Goal, MapCtx, MapRoot, Mapping, Segment};
use crate::error::Result;

pub fn lookup(ctx: &MapCtx<'_>, root: &MapRoot, at: FileBlock, max: u32) -> Result<Segment> {
    let path = path::descend(ctx, root, at)?;
    let leaf = path.leaf();
    let bytes = path::bytes(root, leaf);
    let node = Node::parse(&bytes)?;
    let here = u64::from(at.0);
    let behind = leaf.slot.map_or(0, |slot| slot + 1);
    if let Some(found) = leaf.slot.and_then(|slot| node.extent(slot))
        && let Some(start) = found.map(at)
    {
        let mut end = found.end();
        // Neighbours that go on in the same way count as one.
        for next in (behind..node.len()).map_while(|i| node.extent(i)) {
            let goes_on = u64::from(next.first.0) == end
                && next.unwritten == found.unwritten
                && next.start.0 == start.0 + (end - here);
            if !goes_on || end - here >= u64::from(max) {
                break;
            }
            end = next.end();
        }
        let mapping = if found.unwritten { Mapping::Unwritten(start) } else { Mapping::Written(start) };
        return Ok(Segment { mapping, len: (end - here).min(max.into()) as u32 });
    }
    let next = node.first_of(behind).map_or(leaf.end, |first| first.0.into());
    let len = next.saturating_sub(here).clamp(1, max.into()) as u32;
    Ok(Segment { mapping: Mapping::Hole, len })
}

/// Where a block of file data (`data`) or of something else for `at` had best lie.
pub fn goal(ctx: &MapCtx<'_>, root: &MapRoot, at: FileBlock, data: bool) -> Result<Goal> {
    let path = path::descend(ctx, root, at)?;
    let leaf = path.leaf();
    let behind = leaf.slot.map_or(0, |slot| slot + 1);
    let (left, right) =
        path::view(root, leaf, |node| (leaf.slot.and_then(|slot| node.extent(slot)), node.extent(behind)))?;
    let appends = right.is_none() && leaf.end == u64::from(u32::MAX);
    let (block, continues) = match (left, right) {
        (Some(left), _) => {
            let distance = u64::from(at.0) - u64::from(left.first.0);
            (BlockNo(left.start.0.saturating_add(distance)), left.end() == u64::from(at.0))
        }
        (None, Some(right)) => {
            let distance = u64::from(right.first.0) - u64::from(at.0);
            (BlockNo(right.start.0.saturating_sub(distance)), false)
        }
        (None, None) => (ctx.alloc.goal_for(ctx.ino, data), false),
    };
    Ok(Goal { block, continues, appends })
}

pub fn end(ctx: &MapCtx<'_>, root: &MapRoot) -> Result<u64> {
    let path = path::descend(ctx, root, FileBlock(u32::MAX))?;
    let leaf = path.leaf();
    let bytes = path::bytes(root, leaf);
    let node = Node::parse(&bytes)?;
    Ok(leaf.slot.and_then(|slot| node.extent(slot)).map_or(0, |last| last.end()))
}

/// The way to the leaf for `at`, which has room for `more` entries (no more than fit into an
/// empty root): nodes on the way are split, and the tree grows, until it has.
pub fn with_room(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    at: FileBlock,
    more: usize,
) -> Result<Path> {
    loop {
        let path = path::descend(ctx, root, at)?;
        if path.leaf().len + more <= path.leaf().max {
            return Ok(path);
        }
        match (0..path.leaf_at()).rev().find(|i| path.levels[*i].len < path.levels[*i].max) {
            Some(parent) => split(ctx, handle, root, &path, parent)?,
            None => grow(ctx, handle, root)?,
        }
    }
}

/// Moves everything in the root into a new block below it.
fn grow(ctx: &MapCtx<'_>, handle: &Handle<'_>, root: &mut MapRoot) -> Result<()> {
    let block = ctx.new_map_block(handle, root)?;
    let buffer = handle.create(block)?;
    let mut bytes = handle.write(&buffer)?;
    let grown = NodeMut::parse(&mut root.block)?.grow_depth(&mut bytes, block);
    ctx.vol.csum.set_extent_block(&mut bytes, ctx.ino, ctx.generation);
    drop(bytes);
    if grown { Ok(()) } else { Err(ctx.damaged("eh_depth", 6, 5)) }
}

/// Splits the node below `parent`, which has room for one more entry. The last node of its level
/// is split at its end: a file that grows leaves full nodes behind.
fn split(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    path: &Path,
    parent: usize,
) -> Result<()> {
    let child = &path.levels[parent + 1];
    let slot = child.slot.map_or(0, |slot| slot + 1);
    let at = if slot >= child.len { child.len.saturating_sub(1) } else { child.len / 2 };
    let block = ctx.new_map_block(handle, root)?;
    let buffer = handle.create(block)?;
    let first = {
        let mut right = handle.write(&buffer)?;
        let first = path::edit(ctx, handle, root, child, |node| node.split_off(at.max(1), &mut right))?;
        ctx.vol.csum.set_extent_block(&mut right, ctx.ino, ctx.generation);
        first
    };
    let Some(first) = first else { return Err(ctx.damaged("eh_entries", child.len as u64, 2)) };
    let parent = &path.levels[parent];
    let behind = parent.slot.map_or(0, |slot| slot + 1);
    let index = Index { first, child: block };
    if path::edit(ctx, handle, root, parent, |node| node.insert(behind, index))? {
        Ok(())
    } else {
        Err(ctx.damaged("eh_max", parent.len as u64, parent.max as u64))
    }
}

/// Replaces entries `from..to` of the leaf by `new` (for which there is room), and keeps the
/// nodes above true: their keys, and that no node is empty.
pub fn replace(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    path: &Path,
    (from, to): (usize, usize),
    new: &[Extent],
) -> Result<()> {
    let leaf = path.leaf();
    let (fits, first) = path::edit(ctx, handle, root, leaf, |node| {
        let kept = (to - from).min(new.len());
        for (i, extent) in new.iter().take(kept).enumerate() {
            node.set(from + i, *extent);
        }
        let mut fits = true;
        for (i, extent) in new.iter().enumerate().skip(kept) {
            fits &= node.insert(from + i, *extent);
        }
        node.remove(from + kept..to.max(from + kept));
        (fits, node.view().first_of(0))
    })?;
    if !fits {
        return Err(ctx.damaged("eh_max", leaf.len as u64, leaf.max as u64));
    }
    match first {
        None => drop_empty(ctx, handle, root, path),
        Some(first) if from == 0 => set_keys(ctx, handle, root, path, path.leaf_at(), first),
        Some(_) => Ok(()),
    }
}

/// The first file block under level `below` is `first` now: the keys above it say so.
fn set_keys(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    path: &Path,
    below: usize,
    first: FileBlock,
) -> Result<()> {
    for level in path.levels[..below].iter().rev() {
        let slot = level.slot.unwrap_or(0);
        let now = Node::parse(&path::bytes(root, level))?.first_of(slot);
        if now != Some(first) {
            path::edit(ctx, handle, root, level, |node| node.set_first(slot, first))?;
        }
        if slot > 0 {
            break;
        }
    }
    Ok(())
}

/// Frees the leaf, which is empty, and every node above that becomes so.
fn drop_empty(ctx: &MapCtx<'_>, handle: &Handle<'_>, root: &mut MapRoot, path: &Path) -> Result<()> {
    for i in (0..path.levels.len()).rev() {
        let Some(buffer) = &path.levels[i].buffer else {
            // Not even the root holds anything: a leaf again.
            let _ = NodeMut::init(&mut root.block, 0);
            return Ok(());
        };
        ctx.free_map_block(handle, root, buffer.block())?;
        let parent = &path.levels[i - 1];
        let slot = parent.slot.unwrap_or(0);
        let first = path::edit(ctx, handle, root, parent, |node| {
            node.remove(slot..slot + 1);
            node.view().first_of(0)
        })?;
        if let Some(first) = first {
            return match slot {
                0 => set_keys(ctx, handle, root, path, i - 1, first),
                _ => Ok(()),
            };
        }
    }
    Ok(())
}

/// Pulls the only node below the root up into it, as often as it fits.
pub fn shrink(ctx: &MapCtx<'_>, handle: &Handle<'_>, root: &mut MapRoot) -> Result<()> {
    loop {
        let node = Node::parse(&root.block)?;
        let (Some(index), 1) = (node.index(0), node.len()) else { return Ok(()) };
        let (depth, room) = (node.depth(), node.max());
        let buffer = path::read_node(ctx, index.child)?;
        let data = buffer.data();
        let child = Node::parse(&data)?;
        if child.depth() + 1 != depth || child.len() > room {
            return Ok(());
        }
        let mut above = NodeMut::init(&mut root.block, child.depth());
        for i in 0..child.len() {
            let moved = match (child.extent(i), child.index(i)) {
                (Some(extent), _) => above.insert(i, extent),
                (_, Some(index)) => above.insert(i, index),
                _ => false,
            };
            debug_assert!(moved, "the root has room for what it takes");
        }
        ctx.free_map_block(handle, root, index.child)?;
    }
}
