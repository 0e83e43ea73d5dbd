//! Where things lie: pure arithmetic over a superblock's numbers.
//!
//! The volume is cut into groups of `blocks_per_group` blocks from `first_data_block` on; the last may be
//! short. Groups that [`Geometry::has_super`] begin with a copy of the superblock, the descriptor blocks and
//! the blocks reserved for more of them; with `meta_bg` the descriptors of one block's worth of groups stand
//! in that meta group's first, second and last group instead. Bitmaps and tables lie wherever the descriptor
//! says. Numbers come from a checked superblock, so nothing here divides by zero or shifts too far; arguments
//! from the disk are answered with `None` when they are out of range.
//! Source: kernel documentation, ext4 "Layout", "Meta Block Groups", "Flexible Block Groups".

mod plan;
mod used;

use std::ops::Range;

pub use plan::{GroupPlan, PlanError, plan};
pub use used::UsedBlocks;

use crate::bitmap::BitsMut;
use crate::features::{Compat, Incompat, RoCompat};
use crate::group_desc::GroupDesc;
use crate::num::{BlockNo, GroupNo, Ino};
use crate::superblock::SuperBlock;

/// Which groups hold superblock copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backups {
    Everywhere,
    Sparse,
    Named([u32; 2]),
}

/// A volume's dimensions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks of the volume.
    pub blocks_count: u64,
    /// First block of group 0.
    pub first_data_block: u32,
    /// Blocks of a full group.
    pub blocks_per_group: u32,
    /// Bits of a full group's block bitmap.
    pub clusters_per_group: u32,
    /// Blocks of a cluster; 1 without `bigalloc`.
    pub cluster_ratio: u32,
    /// Inodes of every group.
    pub inodes_per_group: u32,
    /// Inodes of the volume.
    pub inodes_count: u32,
    /// Bytes of an inode.
    pub inode_size: usize,
    /// Bytes of a group descriptor.
    pub desc_size: usize,
    /// Number of groups.
    pub group_count: u32,
    /// Blocks that hold one copy of all descriptors.
    pub desc_blocks: u32,
    /// Blocks reserved behind the descriptors for growing.
    pub reserved_gdt_blocks: u32,
    /// Groups of a flexible group; 1 without `flex_bg`.
    pub groups_per_flex: u32,
    /// Descriptor blocks that stand in the old place; all of them without `meta_bg`.
    first_meta_bg: u32,
    backups: Backups,
}

/// Where an inode lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InodeLocation {
    /// Its group.
    pub group: GroupNo,
    /// Its index in the group: its bit in the inode bitmap.
    pub index: u32,
    /// The block of the group's inode table.
    pub table_block: u32,
    /// The byte in that block.
    pub byte: usize,
}

/// What stands at the head of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupHead {
    /// The superblock or its copy. In group 0 of a volume of 1 KiB blocks this is block 1.
    pub superblock: Option<BlockNo>,
    /// Blocks of descriptors, as block numbers.
    pub descriptors: Range<u64>,
    /// Index of the first of them among all descriptor blocks.
    pub first_descriptor_block: u32,
    /// Blocks reserved for more descriptors, as block numbers.
    pub reserved: Range<u64>,
}

impl GroupHead {
    /// Blocks in use at the head of the group.
    #[must_use]
    pub fn len(&self) -> u32 {
        let superblock = u64::from(self.superblock.is_some());
        (superblock
            + (self.descriptors.end - self.descriptors.start)
            + (self.reserved.end - self.reserved.start)) as u32
    }

    /// Whether the group begins with its own data.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Geometry {
    /// The dimensions a superblock gives.
    #[must_use]
    pub fn new(sb: &SuperBlock) -> Geometry {
        let raw = sb.raw();
        let block_size = sb.block_size();
        let blocks = sb.blocks_count().0 - u64::from(raw.first_data_block.get());
        let group_count = blocks.div_ceil(u64::from(sb.blocks_per_group())) as u32;
        let desc_blocks = group_count.div_ceil(block_size / sb.desc_size() as u32);
        let flex = sb.incompat().has(Incompat::FLEX_BG);
        Geometry {
            block_size,
            blocks_count: sb.blocks_count().0,
            first_data_block: raw.first_data_block.get(),
            blocks_per_group: sb.blocks_per_group(),
            clusters_per_group: sb.clusters_per_group(),
            cluster_ratio: sb.blocks_per_group() / sb.clusters_per_group(),
            inodes_per_group: sb.inodes_per_group(),
            inodes_count: sb.inodes_count(),
            inode_size: sb.inode_size(),
            desc_size: sb.desc_size(),
            group_count,
            desc_blocks,
            reserved_gdt_blocks: u32::from(raw.reserved_gdt_blocks.get()),
            groups_per_flex: if flex { 1 << raw.log_groups_per_flex } else { 1 },
            first_meta_bg: if sb.incompat().has(Incompat::META_BG) {
                raw.first_meta_bg.get()
            } else {
                desc_blocks
            },
            backups: if sb.compat().has(Compat::SPARSE_SUPER2) {
                Backups::Named(raw.backup_bgs.map(|group| group.get()))
            } else if sb.ro_compat().has(RoCompat::SPARSE_SUPER) {
                Backups::Sparse
            } else {
                Backups::Everywhere
            },
        }
    }

    /// All groups.
    pub fn groups(&self) -> impl DoubleEndedIterator<Item = GroupNo> + use<> {
        (0..self.group_count).map(GroupNo)
    }

    /// The group a block lies in and its index there; `None` outside the groups.
    #[must_use]
    pub fn locate_block(&self, block: BlockNo) -> Option<(GroupNo, u32)> {
        if block.0 >= self.blocks_count {
            return None;
        }
        let at = block.0.checked_sub(u64::from(self.first_data_block))?;
        let per_group = u64::from(self.blocks_per_group);
        Some((GroupNo((at / per_group) as u32), (at % per_group) as u32))
    }

    /// The group a block lies in; `None` outside the groups.
    #[must_use]
    pub fn group_of_block(&self, block: BlockNo) -> Option<GroupNo> {
        self.locate_block(block).map(|(group, _)| group)
    }

    /// The first block of a group.
    #[must_use]
    pub fn group_first_block(&self, group: GroupNo) -> BlockNo {
        BlockNo(u64::from(self.first_data_block) + u64::from(group.0) * u64::from(self.blocks_per_group))
    }

    /// Blocks in a group: all but the last are full.
    #[must_use]
    pub fn blocks_in_group(&self, group: GroupNo) -> u32 {
        let left = self.blocks_count.saturating_sub(self.group_first_block(group).0);
        left.min(u64::from(self.blocks_per_group)) as u32
    }

    /// Bits of a group's block bitmap that stand for something.
    #[must_use]
    pub fn clusters_in_group(&self, group: GroupNo) -> u32 {
        self.blocks_in_group(group).div_ceil(self.cluster_ratio)
    }

    /// Whether blocks `first .. first + count` lie on the volume, behind the superblock.
    #[must_use]
    pub fn contains_blocks(&self, first: BlockNo, count: u64) -> bool {
        first.0 > u64::from(self.first_data_block)
            && first.0.checked_add(count).is_some_and(|end| end <= self.blocks_count)
    }

    /// Blocks of one group's inode table.
    #[must_use]
    pub fn inode_table_blocks(&self) -> u32 {
        let bytes = u64::from(self.inodes_per_group) * self.inode_size as u64;
        bytes.div_ceil(u64::from(self.block_size)) as u32
    }

    /// Where an inode lies; `None` past the last.
    #[must_use]
    pub fn inode_location(&self, ino: Ino) -> Option<InodeLocation> {
        if ino.get() > self.inodes_count {
            return None;
        }
        let at = ino.get() - 1;
        let index = at % self.inodes_per_group;
        let per_block = self.block_size / self.inode_size as u32;
        Some(InodeLocation {
            group: GroupNo(at / self.inodes_per_group),
            index,
            table_block: index / per_block,
            byte: (index % per_block) as usize * self.inode_size,
        })
    }

    /// The inode at an index of a group; `None` past the last.
    #[must_use]
    pub fn inode_at(&self, group: GroupNo, index: u32) -> Option<Ino> {
        let at = group.0.checked_mul(self.inodes_per_group)?.checked_add(index)?;
        if index >= self.inodes_per_group || at >= self.inodes_count {
            return None;
        }
        Ino::new(at + 1)
    }

    /// Whether a group begins with the superblock or a copy of it.
    #[must_use]
    pub fn has_super(&self, group: GroupNo) -> bool {
        let group = group.0;
        match self.backups {
            _ if group == 0 => true,
            Backups::Everywhere => true,
            Backups::Named(groups) => groups.contains(&group),
            Backups::Sparse => group == 1 || [3, 5, 7].into_iter().any(|root| is_power_of(group, root)),
        }
    }

    /// The groups that hold superblock copies, the first group left out.
    pub fn backup_groups(&self) -> impl Iterator<Item = GroupNo> + '_ {
        self.groups().skip(1).filter(|group| self.has_super(*group))
    }

    /// Descriptors in one block.
    #[must_use]
    pub fn descs_per_block(&self) -> u32 {
        self.block_size / self.desc_size as u32
    }

    /// The block and byte of a group's descriptor, of the copy that is in use.
    #[must_use]
    pub fn descriptor(&self, group: GroupNo) -> (BlockNo, usize) {
        let index = group.0 / self.descs_per_block();
        let byte = (group.0 % self.descs_per_block()) as usize * self.desc_size;
        (self.descriptor_block(index), byte)
    }

    /// Where the `index`th block of descriptors lies, of the copy that is in use.
    #[must_use]
    pub fn descriptor_block(&self, index: u32) -> BlockNo {
        if index < self.first_meta_bg {
            return BlockNo(self.head_block(GroupNo(0)) + 1 + u64::from(index));
        }
        let first = GroupNo(index.saturating_mul(self.descs_per_block()));
        BlockNo(self.group_first_block(first).0 + u64::from(self.has_super(first)))
    }

    /// Where a group's superblock would stand. Clusters of 1 KiB blocks start at block 0, which stays free
    /// for the boot sector: there the first group's superblock is in block 1.
    fn head_block(&self, group: GroupNo) -> u64 {
        let boot = u64::from(group.0 == 0 && self.block_size == 1024);
        self.group_first_block(group).0.max(boot)
    }

    /// What stands at the head of a group.
    #[must_use]
    pub fn head(&self, group: GroupNo) -> GroupHead {
        let first = self.head_block(group);
        let has_super = self.has_super(group);
        let after_super = first + u64::from(has_super);
        let meta_group = group.0 / self.descs_per_block();
        let (count, index, reserved) = if meta_group >= self.first_meta_bg {
            let place = group.0 % self.descs_per_block();
            let here = place == 0 || place == 1 || place == self.descs_per_block() - 1;
            (u32::from(here), meta_group, 0)
        } else if has_super {
            (self.first_meta_bg.min(self.desc_blocks), 0, self.reserved_gdt_blocks)
        } else {
            (0, 0, 0)
        };
        let after_descriptors = after_super + u64::from(count);
        GroupHead {
            superblock: has_super.then_some(BlockNo(first)),
            descriptors: after_super..after_descriptors,
            first_descriptor_block: index,
            reserved: after_descriptors..after_descriptors + u64::from(reserved),
        }
    }

    /// The flexible group a group belongs to.
    #[must_use]
    pub fn flex_group(&self, group: GroupNo) -> u32 {
        group.0 / self.groups_per_flex
    }

    /// Fills the block bitmap that a group flagged `BLOCK_UNINIT` stands for: its head, those of its own
    /// bitmaps and table that lie in it, and the bits past its end.
    pub fn fill_uninit_block_bitmap(&self, group: GroupNo, desc: &GroupDesc, bytes: &mut [u8]) {
        bytes.fill(0);
        let len = bytes.len() as u32 * 8;
        let mut bits = BitsMut::new(bytes, len);
        let mut mark = |first: u64, count: u32| {
            if let Some((at, index)) = self.locate_block(BlockNo(first)).filter(|_| count > 0)
                && at == group
            {
                let end = (index.saturating_add(count)).min(self.blocks_in_group(group));
                bits.fill(index / self.cluster_ratio..end.div_ceil(self.cluster_ratio), true);
            }
        };
        let first = self.group_first_block(group).0;
        mark(first, (self.head(group).reserved.end - first) as u32);
        mark(desc.block_bitmap.0, 1);
        mark(desc.inode_bitmap.0, 1);
        mark(desc.inode_table.0, self.inode_table_blocks());
        bits.fill(self.clusters_in_group(group)..len, true);
    }

    /// Fills the inode bitmap that a group flagged `INODE_UNINIT` stands for: only the bits past the end.
    pub fn fill_uninit_inode_bitmap(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        let len = bytes.len() as u32 * 8;
        BitsMut::new(bytes, len).fill(self.inodes_per_group..len, true);
    }
}

fn is_power_of(n: u32, root: u32) -> bool {
    let mut power = root;
    while power < n {
        match power.checked_mul(root) {
            Some(next) => power = next,
            None => return false,
        }
    }
    power == n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_groups_are_the_powers_of_three_five_and_seven() {
        let sparse: Vec<u32> =
            (2..2500).filter(|n| [3, 5, 7].iter().any(|root| is_power_of(*n, *root))).collect();
        assert_eq!(sparse, [3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343, 625, 729, 2187, 2401]);
        assert!(!is_power_of(u32::MAX, 3));
    }
}
