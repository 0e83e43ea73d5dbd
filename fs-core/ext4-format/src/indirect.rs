//! The block map of ext2 and ext3: twelve direct pointers, then one, two and three levels of indirect blocks.
//!
//! A pointer is 32 bits, 0 is a hole. Nothing here does IO: a walk asks its caller for blocks. Indirect
//! blocks have no checksum and no header, so only the range of each pointer can be checked. Source: the
//! kernel's `Documentation/filesystems/ext4/blockmap.rst`.

use std::collections::HashSet;

use crate::corruption::{Corruption, What};
use crate::num::{BlockNo, FileBlock};

/// Pointers to data in the inode.
pub const DIRECT: u32 = 12;

/// The way from the inode to one data block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// Indirect blocks on the way: 0 (direct) to 3.
    pub levels: usize,
    /// Slot of `i_block` first, then the slot in each indirect block; `levels + 1` of them count.
    pub slots: [u32; 4],
}

/// Pointers in one indirect block.
#[must_use]
pub fn per_block(block_size: u32) -> u64 {
    u64::from(block_size / 4)
}

/// File blocks that one slot covers, `levels` indirect blocks above the data.
#[must_use]
pub fn span(block_size: u32, levels: usize) -> u64 {
    per_block(block_size).pow(levels as u32)
}

/// File blocks that the map can hold.
#[must_use]
pub fn capacity(block_size: u32) -> u64 {
    u64::from(DIRECT) + (1..=3).map(|levels| span(block_size, levels)).sum::<u64>()
}

/// The path to `block`, or `None` past the end of what the map can hold.
#[must_use]
pub fn path(block: FileBlock, block_size: u32) -> Option<Path> {
    let mut rest = u64::from(block.0);
    if rest < u64::from(DIRECT) {
        return Some(Path { levels: 0, slots: [block.0, 0, 0, 0] });
    }
    rest -= u64::from(DIRECT);
    for levels in 1..=3 {
        let covered = span(block_size, levels);
        if rest < covered {
            let mut slots = [DIRECT + levels as u32 - 1, 0, 0, 0];
            for (depth, slot) in slots.iter_mut().skip(1).take(levels).enumerate() {
                let unit = span(block_size, levels - 1 - depth);
                *slot = (rest / unit) as u32;
                rest %= unit;
            }
            return Some(Path { levels, slots });
        }
        rest -= covered;
    }
    None
}

/// Pointer `slot` of an indirect block or of `i_block`; `None` for a hole or a slot behind the end.
#[must_use]
pub fn pointer(bytes: &[u8], slot: u32) -> Option<BlockNo> {
    let at = slot as usize * 4;
    let raw = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
    (raw != 0).then_some(BlockNo(u64::from(raw)))
}

/// Writes pointer `slot`; `None` makes a hole. False when the slot lies behind the end or the block number
/// has more than 32 bits, which this map cannot hold.
pub fn set_pointer(bytes: &mut [u8], slot: u32, block: Option<BlockNo>) -> bool {
    let at = slot as usize * 4;
    match (bytes.get_mut(at..at + 4), u32::try_from(block.map_or(0, |block| block.0))) {
        (Some(slot), Ok(raw)) => {
            slot.copy_from_slice(&raw.to_le_bytes());
            true
        }
        _ => false,
    }
}

/// What a walk meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// An indirect block, before what it holds.
    Node {
        /// Where it lies.
        block: BlockNo,
        /// First file block it covers.
        first: u64,
        /// Indirect levels including this one: 1 to 3.
        levels: usize,
    },
    /// A data block.
    Data {
        /// Which block of the file. Above `u32::MAX` the file cannot reach it.
        file_block: u64,
        /// Where it lies.
        block: BlockNo,
    },
}

/// Walks the map in file order; `read` fetches indirect blocks, `visit` sees each step. `volume` holds the
/// blocks that a pointer may name. A sound map names no block twice, so a second visit of an indirect block
/// is damage, and so are more steps than the volume has blocks: what a hostile map costs is bounded by the
/// indirect blocks that really are there, not by the paths that lead to them.
///
/// # Errors
/// A pointer outside the volume, a map that cannot be a tree, or what `read` or `visit` return.
pub fn walk<B, E>(
    i_block: &[u8],
    block_size: u32,
    volume: std::ops::Range<u64>,
    read: &mut impl FnMut(BlockNo) -> Result<B, E>,
    visit: &mut impl FnMut(Step) -> Result<(), E>,
) -> Result<(), E>
where
    B: AsRef<[u8]>,
    E: From<Corruption>,
{
    let budget = volume.end.saturating_sub(volume.start);
    let mut walk = Walk { block_size, volume, budget, nodes: HashSet::new(), read, visit };
    let mut first = 0;
    for slot in 0..DIRECT + 3 {
        let levels = (slot + 1).saturating_sub(DIRECT) as usize;
        if let Some(block) = pointer(i_block, slot) {
            walk.subtree(block, first, levels)?;
        }
        first += span(block_size, levels);
    }
    Ok(())
}

struct Walk<'a, R, V> {
    block_size: u32,
    volume: std::ops::Range<u64>,
    /// Blocks that the map may still name.
    budget: u64,
    /// Indirect blocks seen.
    nodes: HashSet<u64>,
    read: &'a mut R,
    visit: &'a mut V,
}

impl<R, V> Walk<'_, R, V> {
    fn subtree<B, E>(&mut self, block: BlockNo, first: u64, levels: usize) -> Result<(), E>
    where
        B: AsRef<[u8]>,
        E: From<Corruption>,
        R: FnMut(BlockNo) -> Result<B, E>,
        V: FnMut(Step) -> Result<(), E>,
    {
        let bad = |field, found, expected| {
            Corruption::new(What::IndirectBlock, field, found, expected).at_block(block)
        };
        if !self.volume.contains(&block.0) {
            return Err(bad("block pointer", block.0, self.volume.end).into());
        }
        self.budget = self.budget.checked_sub(1).ok_or_else(|| bad("map size", 1, 0))?;
        if levels == 0 {
            return (self.visit)(Step::Data { file_block: first, block });
        }
        if !self.nodes.insert(block.0) {
            return Err(bad("block named twice", block.0, 0).into());
        }
        let bytes = (self.read)(block)?;
        (self.visit)(Step::Node { block, first, levels })?;
        let unit = span(self.block_size, levels - 1);
        for slot in 0..self.block_size / 4 {
            if let Some(child) = pointer(bytes.as_ref(), slot) {
                self.subtree(child, first + u64::from(slot) * unit, levels - 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_turn_at_the_documented_places() {
        let slots = |n| path(FileBlock(n), 1024).map(|p| (p.levels, p.slots));
        assert_eq!(slots(11), Some((0, [11, 0, 0, 0])));
        assert_eq!(slots(12), Some((1, [12, 0, 0, 0])));
        assert_eq!(slots(267), Some((1, [12, 255, 0, 0])));
        assert_eq!(slots(268), Some((2, [13, 0, 0, 0])));
        assert_eq!(slots(65803), Some((2, [13, 255, 255, 0])));
        assert_eq!(slots(65804), Some((3, [14, 0, 0, 0])));
        assert_eq!(slots(capacity(1024) as u32 - 1), Some((3, [14, 255, 255, 255])));
        assert_eq!(slots(capacity(1024) as u32), None);
    }

    proptest! {
        #[test]
        fn a_path_leads_back_to_its_block(n in 0_u32..16_843_020) {
            let path = path(FileBlock(n), 1024).unwrap();
            let mut at = match path.levels {
                0 => u64::from(path.slots[0]),
                levels => 12 + (1..levels).map(|l| span(1024, l)).sum::<u64>(),
            };
            for depth in 1..=path.levels {
                at += u64::from(path.slots[depth]) * span(1024, path.levels - depth);
            }
            prop_assert_eq!(at, u64::from(n));
        }
    }

    #[test]
    fn a_walk_is_bounded_and_ordered() {
        let mut i_block = [0; 60];
        assert!(set_pointer(&mut i_block, 0, Some(BlockNo(100))));
        assert!(set_pointer(&mut i_block, 12, Some(BlockNo(101))));
        let mut indirect = vec![0; 1024];
        assert!(set_pointer(&mut indirect, 3, Some(BlockNo(102))));
        assert!(!set_pointer(&mut indirect, 0, Some(BlockNo(1 << 32))));
        let mut seen = Vec::new();
        walk::<_, Corruption>(&i_block, 1024, 1..1000, &mut |_| Ok(&indirect[..]), &mut |step| {
            seen.push(step);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen[0], Step::Data { file_block: 0, block: BlockNo(100) });
        assert_eq!(seen[1], Step::Node { block: BlockNo(101), first: 12, levels: 1 });
        assert_eq!(seen[2], Step::Data { file_block: 15, block: BlockNo(102) });

        // Three levels whose slots all name one block of the next, and that one data block: 256^3 paths, or
        // as many without any data.
        for data in [8_u32, 0] {
            let shared = |block: BlockNo| match block.0 {
                5 => Ok(6_u32.to_le_bytes().repeat(256)),
                6 => Ok(7_u32.to_le_bytes().repeat(256)),
                _ => Ok(data.to_le_bytes().repeat(256)),
            };
            let mut i_block = [0; 60];
            assert!(set_pointer(&mut i_block, 14, Some(BlockNo(5))));
            let mut steps = 0;
            let end = walk::<_, Corruption>(&i_block, 1024, 1..1000, &mut { shared }, &mut |_| {
                steps += 1;
                Ok(())
            });
            assert_eq!(end.unwrap_err().field, "block named twice");
            assert!(steps <= 3 + 256, "{steps}");
        }
        // Data blocks that are named again and again, by indirect blocks that are not.
        let named_again = |block: BlockNo| match block.0 {
            5 => Ok((100..356_u32).flat_map(u32::to_le_bytes).collect()),
            _ => Ok(7_u32.to_le_bytes().repeat(256)),
        };
        let mut i_block = [0; 60];
        assert!(set_pointer(&mut i_block, 13, Some(BlockNo(5))));
        let mut steps = 0;
        let end = walk::<Vec<u8>, Corruption>(&i_block, 1024, 1..1000, &mut { named_again }, &mut |_| {
            steps += 1;
            Ok(())
        });
        assert_eq!((end.unwrap_err().field, steps), ("map size", 999));
    }
}
