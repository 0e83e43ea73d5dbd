//! The block map of ext2 and ext3: pointers in the inode and in up to three levels of indirect
//! blocks. No unwritten blocks exist here, so data are on the device before their pointer is set.

#[cfg(any(test, feature = "internals"))]
use std::collections::HashSet;

use ext4_format::indirect::{self as codec, DIRECT};
use ext4_format::{BlockNo, FileBlock};
use jbd2::{Buffer, Credits, Handle};

use super::{BlockRange, Goal, KEEP, MAX_REVOKES, MapCtx, MapRoot, Mapping, Progress, Segment};
use crate::alloc::Run;
use crate::error::{Posix, Result};

pub fn lookup(ctx: &MapCtx<'_>, root: &MapRoot, at: FileBlock, max: u32) -> Result<Segment> {
    let size = ctx.vol.block_size();
    let hole = |len: u64| Ok(Segment { mapping: Mapping::Hole, len: len.clamp(1, max.into()) as u32 });
    let Some(path) = codec::path(at, size) else { return hole(u64::from(u32::MAX)) };
    let mut holder: Option<Buffer> = None;
    for level in 0..=path.levels {
        let data = holder.as_ref().map(Buffer::data);
        let bytes: &[u8] = data.as_deref().unwrap_or(&root.block);
        let slot = path.slots[level];
        let found = codec::pointer(bytes, slot);
        let below = path.levels - level;
        if below > 0 {
            match found {
                Some(block) => holder = Some(read(ctx, block)?),
                None => return hole(codec::span(size, below) - into_subtree(&path, level, size)),
            }
            continue;
        }
        let slots = if level == 0 { DIRECT } else { codec::per_block(size) as u32 };
        let alike = |i: u32| match (found, codec::pointer(bytes, slot + i)) {
            (Some(start), Some(next)) => next.0 == start.0 + u64::from(i),
            (None, None) => true,
            _ => false,
        };
        let len = (1..max.min(slots - slot)).take_while(|i| alike(*i)).count() as u32 + 1;
        return Ok(Segment { mapping: found.map_or(Mapping::Hole, Mapping::Written), len });
    }
    hole(1)
}

/// How far the path's target lies behind the first block of the subtree under `level`.
fn into_subtree(path: &codec::Path, level: usize, size: u32) -> u64 {
    (level + 1..=path.levels).map(|l| u64::from(path.slots[l]) * codec::span(size, path.levels - l)).sum()
}

/// Blocks from `at` to the end of the pointers that stand beside its own.
pub fn room(ctx: &MapCtx<'_>, at: FileBlock) -> u32 {
    let size = ctx.vol.block_size();
    codec::path(at, size).map_or(0, |path| match path.levels {
        0 => DIRECT - path.slots[0],
        levels => codec::per_block(size) as u32 - path.slots[levels],
    })
}

/// Where a block for `at` had best lie.
pub fn goal(ctx: &MapCtx<'_>, root: &MapRoot, at: FileBlock) -> Result<Goal> {
    let before = match at.0.checked_sub(1) {
        Some(before) => lookup(ctx, root, FileBlock(before), 1)?.mapping,
        None => Mapping::Hole,
    };
    Ok(match before {
        Mapping::Written(block) => Goal { block: BlockNo(block.0 + 1), continues: true, appends: true },
        _ => Goal { block: ctx.alloc.goal_for(ctx.ino, true), continues: false, appends: false },
    })
}

/// Sets the pointers of `run`, all or none. Pointer blocks that were made for it stay.
pub fn insert(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    at: FileBlock,
    run: Run,
) -> Result<()> {
    let mut done = 0;
    while done < run.len {
        let here = at.checked_add(done).ok_or(Posix::FileTooBig)?;
        let start = BlockNo(run.start.0 + u64::from(done));
        let len = room(ctx, here).min(run.len - done);
        let inserted = match len {
            0 => Err(Posix::FileTooBig.into()),
            len => insert_beside(ctx, handle, root, here, Run { start, len }),
        };
        if let Err(error) = inserted {
            for i in 0..done {
                let place = holder_of(ctx, root, FileBlock(at.0 + i))?;
                if let Some((holder, slot)) = place {
                    set(handle, root, holder.as_ref(), slot, None)?;
                }
            }
            return Err(error);
        }
        done += len;
    }
    Ok(())
}

/// What holds the pointer of `at`, if it is there, and in which slot.
fn holder_of(ctx: &MapCtx<'_>, root: &MapRoot, at: FileBlock) -> Result<Option<(Option<Buffer>, u32)>> {
    let Some(path) = codec::path(at, ctx.vol.block_size()) else { return Ok(None) };
    let mut holder = None;
    for slot in &path.slots[..path.levels] {
        match with(root, holder.as_ref(), |bytes| codec::pointer(bytes, *slot)) {
            Some(block) => holder = Some(read(ctx, block)?),
            None => return Ok(None),
        }
    }
    Ok(Some((holder, path.slots[path.levels])))
}

/// Sets pointers that stand beside each other ([`room`]).
fn insert_beside(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    at: FileBlock,
    run: Run,
) -> Result<()> {
    let path = codec::path(at, ctx.vol.block_size()).ok_or(Posix::FileTooBig)?;
    let mut holder: Option<Buffer> = None;
    for slot in &path.slots[..path.levels] {
        let found = with(root, holder.as_ref(), |bytes| codec::pointer(bytes, *slot));
        let next = match found {
            Some(block) => read(ctx, block)?,
            None => {
                let block = ctx.new_map_block(handle, root)?;
                let buffer = handle.create(block)?;
                set(handle, root, holder.as_ref(), *slot, Some(block))?;
                buffer
            }
        };
        holder = Some(next);
    }
    let slot = path.slots[path.levels];
    for i in 0..run.len {
        let block = BlockNo(run.start.0 + u64::from(i));
        set(handle, root, holder.as_ref(), slot + i, Some(block))?;
    }
    Ok(())
}

pub fn remove(
    ctx: &MapCtx<'_>,
    handle: &Handle<'_>,
    root: &mut MapRoot,
    range: BlockRange,
    metadata: bool,
) -> Result<Progress> {
    let size = ctx.vol.block_size();
    let removal = Removal { ctx, handle, range, metadata };
    for levels in (1..=3).rev() {
        let slot = DIRECT + levels as u32 - 1;
        let first = u64::from(DIRECT) + (1..levels).map(|l| codec::span(size, l)).sum::<u64>();
        if removal.subtree(root, None, slot, levels, first)? == Progress::Again {
            return Ok(Progress::Again);
        }
    }
    removal.pointers(root, None, 0, DIRECT)
}

#[cfg(any(test, feature = "internals"))]
pub fn end(ctx: &MapCtx<'_>, root: &MapRoot) -> Result<u64> {
    let size = ctx.vol.block_size();
    let mut nodes = HashSet::new();
    for levels in (1..=3).rev() {
        let first = u64::from(DIRECT) + (1..levels).map(|l| codec::span(size, l)).sum::<u64>();
        if let Some(block) = codec::pointer(&root.block, DIRECT + levels as u32 - 1)
            && let Some(last) = last_in(ctx, &mut nodes, block, levels, first)?
        {
            return Ok(last + 1);
        }
    }
    let last = (0..DIRECT).rev().find(|slot| codec::pointer(&root.block, *slot).is_some());
    Ok(last.map_or(0, |slot| u64::from(slot) + 1))
}

#[cfg(any(test, feature = "internals"))]
fn last_in(
    ctx: &MapCtx<'_>,
    nodes: &mut HashSet<BlockNo>,
    block: BlockNo,
    levels: usize,
    first: u64,
) -> Result<Option<u64>> {
    let size = ctx.vol.block_size();
    let data = read_once(ctx, nodes, block)?.data();
    for slot in (0..codec::per_block(size) as u32).rev() {
        let Some(child) = codec::pointer(&data, slot) else { continue };
        let at = first + u64::from(slot) * codec::span(size, levels - 1);
        if levels == 1 {
            return Ok(Some(at));
        }
        if let Some(last) = last_in(ctx, nodes, child, levels - 1, at)? {
            return Ok(Some(last));
        }
    }
    Ok(None)
}

/// A map that leads to a block twice is found out by the second freeing of it.
struct Removal<'a> {
    ctx: &'a MapCtx<'a>,
    handle: &'a Handle<'a>,
    range: BlockRange,
    metadata: bool,
}

impl Removal<'_> {
    /// Clears what the range has of the subtree under `slot` of `holder`, which starts at file
    /// block `first`.
    fn subtree(
        &self,
        root: &mut MapRoot,
        holder: Option<&Buffer>,
        slot: u32,
        levels: usize,
        first: u64,
    ) -> Result<Progress> {
        let size = self.ctx.vol.block_size();
        let outside = first >= self.range.end || first + codec::span(size, levels) <= self.range.start;
        let Some(block) = with(root, holder, |bytes| codec::pointer(bytes, slot)) else {
            return Ok(Progress::Done);
        };
        if outside {
            return Ok(Progress::Done);
        }
        let buffer = read(self.ctx, block)?;
        let slots = codec::per_block(size) as u32;
        if levels == 1 {
            if self.pointers(root, Some(&buffer), first, slots)? == Progress::Again {
                return Ok(Progress::Again);
            }
        } else {
            for i in (0..slots).rev() {
                let at = first + u64::from(i) * codec::span(size, levels - 1);
                if self.subtree(root, Some(&buffer), i, levels - 1, at)? == Progress::Again {
                    return Ok(Progress::Again);
                }
            }
        }
        if buffer.data().iter().all(|byte| *byte == 0) {
            if !self.afford(1, 1)? {
                return Ok(Progress::Again);
            }
            set(self.handle, root, holder, slot, None)?;
            self.ctx.free_map_block(self.handle, root, block)?;
        }
        Ok(Progress::Done)
    }

    /// Frees the data blocks of the range among the `slots` pointers of `holder`, the first of
    /// which is file block `first`; from the last on, in runs.
    fn pointers(
        &self,
        root: &mut MapRoot,
        holder: Option<&Buffer>,
        first: u64,
        slots: u32,
    ) -> Result<Progress> {
        let clip = |at: u64| at.saturating_sub(first).min(slots.into()) as u32;
        let low = clip(self.range.start);
        let mut high = clip(self.range.end);
        while high > low {
            let Some(last) = with(root, holder, |bytes| codec::pointer(bytes, high - 1)) else {
                high -= 1;
                continue;
            };
            let goes_on = |n: u32| {
                let before = with(root, holder, |bytes| codec::pointer(bytes, high - 1 - n));
                before.is_some_and(|b| b.0 + u64::from(n) == last.0)
            };
            // Each block of metadata may need a revoke: no more of them at a time than there is room for.
            let most = if self.metadata { MAX_REVOKES.min(high - low) } else { high - low };
            let len = (1..most).take_while(|n| goes_on(*n)).count() as u32 + 1;
            let revokes = if self.metadata { len } else { 0 };
            if !self.afford(len, revokes)? {
                return Ok(Progress::Again);
            }
            for slot in high - len..high {
                set(self.handle, root, holder, slot, None)?;
            }
            let start = BlockNo(last.0 + 1 - u64::from(len));
            self.ctx.free_data(self.handle, root, start, len, self.metadata)?;
            high -= len;
        }
        Ok(Progress::Done)
    }

    fn afford(&self, len: u32, revokes: u32) -> Result<bool> {
        let need = Credits { blocks: KEEP + 2 + self.ctx.alloc.free_credits(len), revokes };
        let left = self.handle.left();
        let enough = left.blocks >= need.blocks && left.revokes >= need.revokes;
        Ok(enough || self.handle.extend(need)?)
    }
}

fn read(ctx: &MapCtx<'_>, block: BlockNo) -> Result<Buffer> {
    if !ctx.alloc.may_hold_data(block, 1) {
        return Err(ctx.damaged("indirect block", block.0, 0));
    }
    ctx.vol.read_meta(block, |_| Ok(()))
}

/// As [`read`], for walks over a whole map. A tree leads to each of its blocks once; one that does not could
/// be walked for as long as there are paths in it.
#[cfg(any(test, feature = "internals"))]
fn read_once(ctx: &MapCtx<'_>, nodes: &mut HashSet<BlockNo>, block: BlockNo) -> Result<Buffer> {
    if !nodes.insert(block) {
        return Err(ctx.damaged("block named twice", block.0, 0));
    }
    read(ctx, block)
}

/// Looks at the pointers of `holder`, or of the inode.
fn with<T>(root: &MapRoot, holder: Option<&Buffer>, look: impl FnOnce(&[u8]) -> T) -> T {
    match holder {
        None => look(&root.block),
        Some(buffer) => look(&buffer.data()),
    }
}

fn set(
    handle: &Handle<'_>,
    root: &mut MapRoot,
    holder: Option<&Buffer>,
    slot: u32,
    block: Option<BlockNo>,
) -> Result<()> {
    let fits = match holder {
        None => codec::set_pointer(&mut root.block, slot, block),
        Some(buffer) => codec::set_pointer(&mut handle.write(buffer)?, slot, block),
    };
    if fits { Ok(()) } else { Err(Posix::FileTooBig.into()) }
}
