//! How a file's blocks are named: as extents in a tree of any depth, or as the block map of ext2. The data
//! are placed already; here the blocks of the map itself are counted and filled.

use std::ops::Range;

use ext4_format::csum::Csum;
use ext4_format::extent::{self, Extent, Index, NodeMut};
use ext4_format::{BlockNo, FileBlock, Ino, indirect};

use super::content::Run;
use crate::error::{Error, Result};

/// Extents that `i_block` holds.
const IN_INODE: usize = 4;

/// Pairs the blocks of a file with where they lie.
pub fn extents(runs: impl Iterator<Item = Run>, places: &[Range<u64>]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut places = places.iter().cloned();
    let mut place = 0..0;
    for mut run in runs {
        while run.len > 0 {
            if place.is_empty() {
                let Some(next) = places.next() else { return extents };
                place = next;
            }
            let len = run.len.min(place.end - place.start).min(extent::MAX_LEN.into());
            let new = Extent {
                first: FileBlock(run.first as u32),
                len: len as u32,
                start: BlockNo(place.start),
                unwritten: false,
            };
            match extents.last_mut() {
                Some(last) if last.joins(&new) => last.len += new.len,
                _ => extents.push(new),
            }
            run.first += len;
            run.len -= len;
            place.start += len;
        }
    }
    extents
}

/// Which map a volume's files have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Extents, else the block map.
    pub extents: bool,
    /// Bytes of a block.
    pub block_size: u32,
}

impl Mapping {
    /// File blocks that a file can have.
    pub fn capacity(&self) -> u64 {
        if self.extents {
            u64::from(u32::MAX)
        } else {
            indirect::capacity(self.block_size).min(u32::MAX.into())
        }
    }

    fn per_node(&self) -> usize {
        self.block_size as usize / extent::ENTRY_SIZE - 1
    }

    /// Blocks that the map needs besides the inode.
    pub fn nodes(&self, extents: &[Extent]) -> u64 {
        if !self.extents {
            return self.pointer_blocks(extents);
        }
        let (mut level, mut count) = (extents.len(), 0);
        while level > IN_INODE {
            level = level.div_ceil(self.per_node());
            count += level;
        }
        count as u64
    }

    fn pointer_blocks(&self, extents: &[Extent]) -> u64 {
        let span = indirect::span(self.block_size, 1);
        let mut count = 0;
        let mut before: Option<indirect::Path> = None;
        for extent in extents {
            let mut at = u64::from(extent.first.0);
            while at < extent.end() {
                let Some(path) = indirect::path(FileBlock(at as u32), self.block_size) else { return count };
                let shared = before.map_or(0, |last| shared_levels(&path, &last));
                count += (path.levels - shared) as u64;
                before = Some(path);
                // All blocks below one lowest pointer block have the same path to it.
                let direct = u64::from(indirect::DIRECT);
                at = if at < direct { direct } else { at + span - (at - direct) % span };
            }
        }
        count
    }

    /// Fills `i_block`, and the map's own blocks through `put`, in the order of `nodes`.
    pub fn write(
        &self,
        csum: &Csum,
        ino: Ino,
        extents: &[Extent],
        nodes: &[u64],
        mut put: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<[u8; 60]> {
        let mut area = [0; 60];
        if !self.extents {
            self.write_pointers(&mut area, extents, nodes, put)?;
            return Ok(area);
        }
        let full = || Error::NoSpace { what: "an extent tree" };
        let mut nodes = nodes.iter().copied();
        let mut bytes = vec![0; self.block_size as usize];
        let mut depth = 0;
        if extents.len() <= IN_INODE {
            let mut root = NodeMut::init(&mut area, 0);
            for (slot, extent) in extents.iter().enumerate() {
                root.insert(slot, *extent).then_some(()).ok_or_else(full)?;
            }
            return Ok(area);
        }
        let mut level: Vec<Index> = Vec::new();
        for part in extents.chunks(self.per_node()) {
            let block = nodes.next().ok_or_else(full)?;
            let mut node = NodeMut::init(&mut bytes, 0);
            for (slot, extent) in part.iter().enumerate() {
                node.insert(slot, *extent).then_some(()).ok_or_else(full)?;
            }
            csum.set_extent_block(&mut bytes, ino, 0);
            put(block, &bytes)?;
            level.push(Index { first: part[0].first, child: BlockNo(block) });
        }
        while level.len() > IN_INODE {
            depth += 1;
            let mut above = Vec::new();
            for part in level.chunks(self.per_node()) {
                let block = nodes.next().ok_or_else(full)?;
                let mut node = NodeMut::init(&mut bytes, depth);
                for (slot, index) in part.iter().enumerate() {
                    node.insert(slot, *index).then_some(()).ok_or_else(full)?;
                }
                csum.set_extent_block(&mut bytes, ino, 0);
                put(block, &bytes)?;
                above.push(Index { first: part[0].first, child: BlockNo(block) });
            }
            level = above;
        }
        let mut root = NodeMut::init(&mut area, depth + 1);
        for (slot, index) in level.iter().enumerate() {
            root.insert(slot, *index).then_some(()).ok_or_else(full)?;
        }
        Ok(area)
    }

    fn write_pointers(
        &self,
        area: &mut [u8; 60],
        extents: &[Extent],
        nodes: &[u64],
        mut put: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let full = || Error::NoSpace { what: "a block map" };
        let mut nodes = nodes.iter().copied();
        // The pointer blocks from the inode down to the one being filled.
        let mut open: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut before: Option<indirect::Path> = None;
        let blocks = extents.iter().flat_map(|extent| {
            (0..extent.len).map(move |at| (extent.first.0 + at, extent.start.0 + u64::from(at)))
        });
        for (file_block, block) in blocks {
            let path = indirect::path(FileBlock(file_block), self.block_size).ok_or_else(full)?;
            let shared = before.map_or(0, |last| shared_levels(&path, &last));
            while open.len() > shared {
                if let Some((number, bytes)) = open.pop() {
                    put(number, &bytes)?;
                }
            }
            for level in shared..=path.levels {
                let number = if level < path.levels { nodes.next().ok_or_else(full)? } else { block };
                let parent = match open.last_mut() {
                    Some((_, bytes)) => bytes.as_mut_slice(),
                    None => &mut area[..],
                };
                if !indirect::set_pointer(parent, path.slots[level], Some(BlockNo(number))) {
                    return Err(full());
                }
                if level < path.levels {
                    open.push((number, vec![0; self.block_size as usize]));
                }
            }
            before = Some(path);
        }
        while let Some((number, bytes)) = open.pop() {
            put(number, &bytes)?;
        }
        Ok(())
    }
}

/// Pointer blocks on the way that two paths share.
fn shared_levels(path: &indirect::Path, other: &indirect::Path) -> usize {
    (0..path.levels.min(other.levels)).take_while(|level| path.slots[*level] == other.slots[*level]).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_places_are_cut_at_both() {
        let runs = [Run { first: 0, len: 3 }, Run { first: 10, len: 4 }];
        let found: Vec<(u32, u32, u64)> = extents(runs.into_iter(), &[100..105, 200..202])
            .iter()
            .map(|e| (e.first.0, e.len, e.start.0))
            .collect();
        assert_eq!(found, [(0, 3, 100), (10, 2, 103), (12, 2, 200)]);
    }

    #[test]
    fn as_many_blocks_are_counted_as_are_written() {
        let csum = Csum::new(&ext4_format::superblock::SuperBlock::from_raw(raw()).unwrap());
        for (extents, count) in
            [(true, 5000), (true, 4), (false, 12), (false, 13), (false, 70_000), (false, 300)]
        {
            let mapping = Mapping { extents, block_size: 1024 };
            let runs = (0..count).map(|at| Run { first: at * 2, len: 1 });
            let list = super::extents(runs, std::slice::from_ref(&(1000..1000 + count)));
            let nodes: Vec<u64> = (0..mapping.nodes(&list)).map(|at| 500_000 + at).collect();
            let mut written = 0;
            mapping
                .write(&csum, Ino::ROOT, &list, &nodes, |_, _| {
                    written += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(written, nodes.len(), "{extents} {count}");
        }
    }

    fn raw() -> ext4_format::superblock::RawSuperBlock {
        let options = crate::Options::new(crate::Kind::Ext4, 0);
        *crate::Layout::new(&options, 64 << 20, 512).unwrap().superblock.raw()
    }
}
