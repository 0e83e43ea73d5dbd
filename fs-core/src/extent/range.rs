//! Changing what a range of a file is mapped to. Each function works leaf by leaf and leaves a
//! true tree after every step, so that one that stops for want of credits can go on in another
//! handle.

use ext4_format::FileBlock;
use ext4_format::extent::Extent;
use jbd2::{Credits, Handle};
use smallvec::SmallVec;

use super::path;
use super::tree::{self, replace, shrink, with_room};
use super::{BlockRange, KEEP, MAX_REVOKES, MapCtx, MapRoot, Progress};
use crate::error::{Posix, Result};

type Extents = SmallVec<[Extent; 4]>;

/// Adds `new`, where nothing is mapped. Written extents merge with their neighbours.
pub fn insert(ctx: &MapCtx<'_>, handle: &Handle<'_>, root: &mut MapRoot, new: Extent) -> Result<()> {
    let path = path::descend(ctx, root, new.first)?;
    let leaf = path.leaf();
    let at = leaf.slot.map_or(0, |slot| slot + 1);
    let (left, right) =
        path::view(root, leaf, |node| (leaf.slot.and_then(|slot| node.extent(slot)), node.extent(at)))?;
    let overlap = |e: &Extent| u64::from(e.first.0) < new.end() && e.end() > u64::from(new.first.0);
    if left.iter().chain(&right).any(overlap) || new.end() > leaf.end {
        return Err(ctx.damaged("extent overlap", new.first.0.into(), 0));
    }
    if !new.unwritten {
        let (mut merged, mut from, mut to) = (new, at, at);
        if let Some(joined) = left.and_then(|left| join(&left, &merged)) {
            (merged, from) = (joined, at - 1);
        }
        if let Some(joined) = right.and_then(|right| join(&merged, &right)) {
            (merged, to) = (joined, at + 1);
        }
        if from < to {
            return replace(ctx, handle, root, &path, (from, to), &[merged]);
        }
    }
    let path = match leaf.len < leaf.max {
        true => path,
        false => with_room(ctx, handle, root, new.first, 1)?,
    };
    let at = path.leaf().slot.map_or(0, |slot| slot + 1);
    replace(ctx, handle, root, &path, (at, at), &[new])
}

/// Cuts the extent that `at` lies inside of in two; only unwritten ones if `unwritten_only`.
pub fn cut(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    at: u64,
    unwritten_only: bool,
) -> Result<()> {
    let Ok(block) = u32::try_from(at).map(FileBlock) else { return Ok(()) };
    let inside = |root: &MapRoot, path: &path::Path| -> Result<Option<(usize, Extent)>> {
        let found = last_extent(root, path)?;
        Ok(found
            .filter(|(_, e)| u64::from(e.first.0) < at && at < e.end() && (e.unwritten || !unwritten_only)))
    };
    let path = path::descend(ctx, root, block)?;
    if inside(root, &path)?.is_none() {
        return Ok(());
    }
    let path = with_room(ctx, handle, root, block, 1)?;
    match inside(root, &path)? {
        Some((slot, extent)) => {
            let (left, right) = halves(&extent, at);
            replace(ctx, handle, root, &path, (slot, slot + 1), &[left, right])
        }
        None => Ok(()),
    }
}

/// The extent that the path leads to, and its slot.
fn last_extent(root: &MapRoot, path: &path::Path) -> Result<Option<(usize, Extent)>> {
    let leaf = path.leaf();
    path::view(root, leaf, |node| leaf.slot.and_then(|slot| Some((slot, node.extent(slot)?))))
}

pub fn convert(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    range: BlockRange,
    to_written: bool,
) -> Result<u64> {
    let mut at = range.start;
    while at < range.end {
        let Ok(block) = u32::try_from(at).map(FileBlock) else { break };
        let path = path::descend(ctx, root, block)?;
        let leaf = path.leaf();
        let next_leaf = leaf.end.min(range.end);
        let wrong = |e: &Extent| e.unwritten == to_written && e.end() > at;
        let found = path::view(root, leaf, |node| {
            (leaf.slot.unwrap_or(0)..node.len())
                .map_while(|i| node.extent(i).map(|e| (i, e)))
                .take_while(|(_, e)| u64::from(e.first.0) < range.end)
                .find(|(_, e)| wrong(e))
        })?;
        let Some((from, extent)) = found else {
            at = next_leaf.max(at + 1);
            continue;
        };
        let cuttable = u64::from(extent.first.0) + u64::from(Extent::max_len(!to_written));
        let exact = u64::from(extent.first.0) >= at && extent.end() <= range.end.min(cuttable);
        // The leaf, the keys above it, and a node that becomes superfluous; blocks for cutting
        // only where the range was not cut beforehand.
        let mut need = Credits::blocks(path.levels.len() as u32 + 3 + KEEP);
        need.revokes = path.levels.len() as u32;
        if !exact {
            need.blocks += 3 * super::insert_credits(root);
        }
        let left = handle.left();
        let short = left.blocks < need.blocks || left.revokes < need.revokes;
        if short && !handle.extend(need)? {
            return Ok(at);
        }
        if !exact {
            cut(ctx, handle, root, at, false)?;
            cut(ctx, handle, root, range.end, false)?;
            cut(ctx, handle, root, cuttable, false)?;
            continue;
        }
        // The run of extents to convert, with a neighbour on either side to merge with.
        let low = from.saturating_sub(1);
        let (high, end, merged) = path::view(root, leaf, |node| {
            let fits = |e: &Extent| e.end() <= range.end && e.len <= Extent::max_len(!to_written);
            let (mut high, mut end, mut merged) = (low, extent.end(), Extents::new());
            let mut inside = true;
            while let (true, Some(mut extent)) = (inside, node.extent(high)) {
                inside = high < from || fits(&extent);
                if inside && high >= from {
                    extent.unwritten = !to_written;
                    end = extent.end();
                }
                match merged.last_mut().and_then(|last| Some((join(last, &extent)?, last))) {
                    Some((joined, last)) if !extent.unwritten => *last = joined,
                    _ => merged.push(extent),
                }
                high += 1;
            }
            (high, end, merged)
        })?;
        replace(ctx, handle, root, &path, (low, high), &merged)?;
        at = end.max(at + 1);
    }
    shrink(ctx, handle, root)?;
    Ok(range.end)
}

/// Credits that removing one extent may take: cutting it, its leaf and the keys above, the nodes
/// that become empty, and the groups its blocks lie in.
pub fn remove_step(ctx: &MapCtx<'_>, root: &MapRoot) -> u32 {
    let levels = root.depth() + 1;
    super::insert_credits(root) + levels * 3 + ctx.alloc.free_credits(ext4_format::extent::MAX_LEN)
}

pub fn remove(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    range: BlockRange,
    metadata: bool,
) -> Result<Progress> {
    let mut end = range.end.min(u32::MAX.into());
    while end > range.start {
        let Ok(last) = u32::try_from(end - 1).map(FileBlock) else { break };
        let path = path::descend(ctx, root, last)?;
        let found = last_extent(root, &path)?.filter(|(_, e)| e.end() > range.start);
        let Some((slot, extent)) = found else { break };
        let mut first = range.start.max(extent.first.0.into());
        if metadata {
            // Each block may need a revoke: no more of them at a time than there is room for.
            first = first.max(extent.end().min(end).saturating_sub(MAX_REVOKES.into()));
        }
        let upto = extent.end().min(end);
        let mut need = Credits::blocks(remove_step(ctx, root) + KEEP);
        need.revokes = path.levels.len() as u32 + if metadata { (upto - first) as u32 } else { 0 };
        let left = handle.left();
        let short = left.blocks < need.blocks || left.revokes < need.revokes;
        if short && !handle.extend(need)? {
            return Ok(Progress::Again);
        }
        let (head, _) = halves(&extent, first);
        let (_, tail) = halves(&extent, upto);
        let kept: Extents = [head, tail].into_iter().filter(|e| e.len > 0).collect();
        let (_, freed) = halves(&extent, first);
        let mut freed: Extents = [Extent { len: (upto - first) as u32, ..freed }].into_iter().collect();
        if kept.len() > 1 {
            let path = with_room(ctx, handle, root, extent.first, 1)?;
            let slot = path.leaf().slot.unwrap_or(0);
            replace(ctx, handle, root, &path, (slot, slot + 1), &kept)?;
        } else {
            // What lies before it in this leaf goes along, as far as it costs nothing more: it is
            // wholly in the range, and its blocks lie in the same group.
            let low = match kept.is_empty() && !metadata {
                true => path::view(root, path.leaf(), |node| {
                    let group = ctx.alloc.only_group(extent.start, extent.len);
                    let alike = |e: &Extent| {
                        u64::from(e.first.0) >= range.start
                            && group.is_some()
                            && ctx.alloc.only_group(e.start, e.len) == group
                    };
                    let before = (0..slot).rev().map_while(|i| node.extent(i)).take_while(alike);
                    freed.extend(before);
                    slot + 1 - freed.len()
                })?,
                false => slot,
            };
            replace(ctx, handle, root, &path, (low, slot + 1), &kept)?;
        }
        for extent in freed {
            ctx.free_data(handle, root, extent.start, extent.len, metadata)?;
            end = extent.first.0.into();
        }
    }
    shrink(ctx, handle, root)?;
    Ok(Progress::Done)
}

pub fn shift(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    from: u64,
    by: i64,
    cursor: &mut Option<u64>,
) -> Result<Progress> {
    if cursor.is_none() {
        let end = tree::end(ctx, root)?;
        if by > 0 && end.saturating_add(by.unsigned_abs()) > u32::MAX.into() {
            return Err(Posix::FileTooBig.into());
        }
        cut(ctx, handle, root, from, false)?;
        *cursor = Some(if by > 0 { end } else { from });
    }
    // Towards the front the leaves are done from the first on, towards the back from the last.
    while let Some(at) = *cursor {
        let look = if by > 0 { at.saturating_sub(1) } else { at };
        let Ok(block) = u32::try_from(look).map(FileBlock) else { break };
        let path = path::descend(ctx, root, block)?;
        let step = 2 * path.levels.len() as u32 + KEEP;
        if handle.left().blocks < step && !handle.extend(Credits::blocks(step))? {
            return Ok(Progress::Again);
        }
        let leaf = path.leaf();
        let extents: SmallVec<[Extent; 8]> = path::view(root, leaf, |node| node.extents().collect())?;
        let chosen = |e: &Extent| match by > 0 {
            true => u64::from(e.first.0) >= from && u64::from(e.first.0) < at,
            false => u64::from(e.first.0) >= at,
        };
        let Some(low) = extents.iter().position(chosen) else {
            *cursor = match by > 0 {
                true => None,
                false if leaf.end < u32::MAX.into() => Some(leaf.end),
                false => None,
            };
            continue;
        };
        let high = low + extents[low..].iter().take_while(|e| chosen(e)).count();
        let moved: SmallVec<[Extent; 8]> = extents[low..high]
            .iter()
            .map(|e| Extent { first: FileBlock((i64::from(e.first.0) + by) as u32), ..*e })
            .collect();
        *cursor = match by > 0 {
            true => Some(u64::from(extents[low].first.0)).filter(|first| *first > from),
            false => Some(leaf.end).filter(|end| *end < u32::MAX.into()),
        };
        replace(ctx, handle, root, &path, (low, high), &moved)?;
    }
    Ok(Progress::Done)
}

/// What lies before and from `at` on, one of them possibly empty.
fn halves(extent: &Extent, at: u64) -> (Extent, Extent) {
    let first = u64::from(extent.first.0);
    let split = at.clamp(first, extent.end()) - first;
    let left = Extent { len: split as u32, ..*extent };
    let right = Extent {
        first: FileBlock((first + split) as u32),
        len: extent.len - split as u32,
        start: ext4_format::BlockNo(extent.start.0 + split),
        ..*extent
    };
    (left, right)
}

/// Both as one, if they follow each other and fit.
fn join(left: &Extent, right: &Extent) -> Option<Extent> {
    left.joins(right).then(|| Extent { len: left.len + right.len, ..*left })
}
