//! How a new file's blocks are named in its inode: an extent tree of at most one level of leaves, or the
//! block map of ext2. Blocks are taken first fit from a goal; the map's own blocks are taken along the way.

use ext4_format::extent::{self, Extent, Index, NodeMut};
use ext4_format::{BlockNo, FileBlock, Ino, indirect};

use crate::error::{Error, Result};
use crate::volume::Volume;

/// A file's blocks.
pub struct Mapped {
    /// `i_block`.
    pub area: [u8; 60],
    /// Whether it is an extent tree.
    pub extents: bool,
    /// The data blocks in file order, as physical runs.
    pub runs: Vec<std::ops::Range<u64>>,
    /// Data and map blocks together.
    pub blocks: u64,
}

/// Takes `count` blocks from `goal` on for the file `ino`.
pub fn map(volume: &mut Volume, ino: Ino, goal: u64, count: u32, what: &'static str) -> Result<Mapped> {
    if volume.has_extents() {
        by_extents(volume, ino, goal, count, what)
    } else {
        by_pointers(volume, goal, count, what)
    }
}

fn by_extents(volume: &mut Volume, ino: Ino, goal: u64, count: u32, what: &'static str) -> Result<Mapped> {
    let mut area = [0; 60];
    let mut extents: Vec<Extent> = Vec::new();
    let mut runs = Vec::new();
    let mut leaf_block = None;
    let (mut at, mut first) = (goal, 0);
    while first < count {
        let run = volume.free_run(at, u64::from((count - first).min(extent::MAX_LEN)), what)?;
        volume.take(run.start, run.end - run.start);
        let len = (run.end - run.start) as u32;
        let new = Extent { first: FileBlock(first), len, start: BlockNo(run.start), unwritten: false };
        match extents.last_mut() {
            Some(last) if last.joins(&new) => last.len += len,
            _ => extents.push(new),
        }
        if extents.len() == 5 && leaf_block.is_none() {
            // The inode holds four; the leaf they move to lies before the first, where that is free.
            let before = extents[0].start.0 - 1;
            let leaf = volume.free_run(before, 1, what)?.start;
            volume.take(leaf, 1);
            leaf_block = Some(leaf);
        }
        first += len;
        at = run.end;
        runs.push(run);
    }
    let blocks = u64::from(count) + u64::from(leaf_block.is_some());
    let overflow = || Error::NoSpace { what };
    match leaf_block {
        None => {
            let mut root = NodeMut::init(&mut area, 0);
            for (slot, extent) in extents.iter().enumerate() {
                root.insert(slot, *extent).then_some(()).ok_or_else(overflow)?;
            }
        }
        Some(leaf) => {
            let mut bytes = vec![0; volume.block_size()];
            let mut node = NodeMut::init(&mut bytes, 0);
            for (slot, extent) in extents.iter().enumerate() {
                node.insert(slot, *extent).then_some(()).ok_or_else(overflow)?;
            }
            volume.csum().set_extent_block(&mut bytes, ino, 0);
            volume.put_block(leaf, bytes);
            let mut root = NodeMut::init(&mut area, 1);
            let index = Index { first: FileBlock(0), child: BlockNo(leaf) };
            root.insert(0, index).then_some(()).ok_or_else(overflow)?;
        }
    }
    Ok(Mapped { area, extents: true, runs, blocks })
}

fn by_pointers(volume: &mut Volume, goal: u64, count: u32, what: &'static str) -> Result<Mapped> {
    let block_size = volume.block_size();
    let mut area = [0; 60];
    let mut runs: Vec<std::ops::Range<u64>> = Vec::new();
    // The pointer blocks from the inode down to the one being filled: their number and bytes.
    let mut open: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut before: Option<indirect::Path> = None;
    let mut at = goal;
    let mut blocks = 0;
    let mut next = |volume: &mut Volume| -> Result<u64> {
        let block = volume.free_run(at, 1, what)?.start;
        volume.take(block, 1);
        at = block + 1;
        blocks += 1;
        Ok(block)
    };
    for file_block in 0..count {
        let path = indirect::path(FileBlock(file_block), block_size as u32).ok_or(Error::NoSpace { what })?;
        // Pointer blocks the last path shares with this one stay open.
        let shared = before.map_or(0, |last| {
            (0..path.levels.min(last.levels)).take_while(|i| path.slots[*i] == last.slots[*i]).count()
        });
        for (number, bytes) in open.drain(shared..) {
            volume.put_block(number, bytes);
        }
        for level in shared..=path.levels {
            let block = next(volume)?;
            let parent = match open.last_mut() {
                Some((_, bytes)) => bytes.as_mut_slice(),
                None => &mut area,
            };
            indirect::set_pointer(parent, path.slots[level], Some(BlockNo(block)));
            if level < path.levels {
                open.push((block, vec![0; block_size]));
            } else {
                match runs.last_mut() {
                    Some(run) if run.end == block => run.end += 1,
                    _ => runs.push(block..block + 1),
                }
            }
        }
        before = Some(path);
    }
    for (number, bytes) in open {
        volume.put_block(number, bytes);
    }
    Ok(Mapped { area, extents: false, runs, blocks })
}
