//! The volume that comes to be, in memory: blocks taken, inodes, metadata blocks. Nothing is written here.

use std::collections::BTreeMap;
use std::ops::Range;

use ext4_format::csum::Csum;
use ext4_format::features::Incompat;
use ext4_format::geometry::{self, Geometry, GroupPlan, UsedBlocks};
use ext4_format::group_desc::{GroupDesc, GroupFlags};
use ext4_format::inode::{Inode, InodeLayout};
use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, GroupNo, Ino};

use crate::error::{Error, Result};

/// A volume in the making.
pub struct Volume {
    /// Its superblock; free counts are set by [`Volume::groups`].
    pub superblock: SuperBlock,
    /// Blocks whose old bytes must read as zeros.
    pub zeroed: Vec<Range<u64>>,
    geometry: Geometry,
    csum: Csum,
    layout: InodeLayout,
    plans: Vec<GroupPlan>,
    used: UsedBlocks,
    inodes: BTreeMap<u32, Vec<u8>>,
    directories: Vec<Ino>,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Volume {
    /// A volume that holds its groups' metadata and the reserved inodes, and no file yet.
    pub fn new(superblock: SuperBlock) -> Result<Volume> {
        let geometry = Geometry::new(&superblock);
        let (plans, used) = geometry::plan(&geometry, superblock.raid().0)?;
        let mut volume = Volume {
            superblock,
            zeroed: Vec::new(),
            geometry,
            csum: Csum::new(&superblock),
            layout: InodeLayout::new(&superblock),
            plans,
            used,
            inodes: BTreeMap::new(),
            directories: Vec::new(),
            blocks: BTreeMap::new(),
        };
        for ino in (1..superblock.first_ino()).filter_map(Ino::new) {
            let mut bytes = vec![0; geometry.inode_size];
            volume.csum.set_inode(&mut bytes, ino);
            volume.inodes.insert(ino.get(), bytes);
        }
        Ok(volume)
    }

    /// Its dimensions.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Its checksum formulas.
    pub fn csum(&self) -> &Csum {
        &self.csum
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> usize {
        self.geometry.block_size as usize
    }

    /// Whether new files are mapped by extents.
    pub fn has_extents(&self) -> bool {
        self.superblock.incompat().has(Incompat::EXTENTS)
    }

    /// Where an inode's blocks are looked for first: its flexible group.
    pub fn goal_of(&self, ino: Ino) -> u64 {
        let group = (ino.get() - 1) / self.geometry.inodes_per_group;
        let flex = self.geometry.groups_per_flex;
        self.geometry.group_first_block(GroupNo(group / flex * flex)).0
    }

    /// Free blocks of one group as it stands.
    pub fn free_in(&self, group: GroupNo) -> u32 {
        self.geometry.blocks_in_group(group) - self.used.count_in(self.group_blocks(group)) as u32
    }

    fn group_blocks(&self, group: GroupNo) -> Range<u64> {
        let first = self.geometry.group_first_block(group).0;
        first..first + u64::from(self.geometry.blocks_in_group(group))
    }

    /// Free blocks in a row, at most `most`: the first at or after `goal`, else the first of the volume.
    pub fn free_run(&self, goal: u64, most: u64, what: &'static str) -> Result<Range<u64>> {
        let end = self.geometry.blocks_count;
        let first = u64::from(self.geometry.first_data_block);
        let run = self.used.next_free(goal.max(first)..end).or_else(|| self.used.next_free(first..end));
        let run = run.ok_or(Error::NoSpace { what })?;
        Ok(run.start..run.end.min(run.start + most))
    }

    /// Takes free blocks.
    pub fn take(&mut self, first: u64, count: u64) {
        self.used.take(first, count);
    }

    /// Keeps the bytes of a metadata block.
    pub fn put_block(&mut self, block: u64, bytes: Vec<u8>) {
        self.blocks.insert(block, bytes);
    }

    /// Keeps an inode.
    pub fn put_inode(&mut self, ino: Ino, inode: &Inode) {
        let mut bytes = vec![0; self.geometry.inode_size];
        inode.encode_into(&mut bytes, &self.layout);
        self.csum.set_inode(&mut bytes, ino);
        self.inodes.insert(ino.get(), bytes);
        if inode.is_dir() {
            self.directories.push(ino);
        }
    }

    /// The metadata blocks of files, by block number.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.blocks.iter().map(|(number, bytes)| (*number, bytes.as_slice()))
    }

    /// The blocks in use at the heads of groups and by their bitmaps and tables, and nothing else.
    pub fn overhead(&self) -> u64 {
        let per_group = u64::from(self.geometry.inode_table_blocks()) + 2;
        let heads: u64 = self.geometry.groups().map(|group| u64::from(self.geometry.head(group).len())).sum();
        u64::from(self.geometry.first_data_block) + heads + per_group * u64::from(self.geometry.group_count)
    }

    /// The blocks of inode tables that hold inodes, by block number.
    pub fn table_blocks(&self) -> BTreeMap<u64, Vec<u8>> {
        let mut tables = BTreeMap::new();
        for (ino, bytes) in &self.inodes {
            let Some(location) = Ino::new(*ino).and_then(|ino| self.geometry.inode_location(ino)) else {
                continue;
            };
            let table = self.plans[location.group.0 as usize].inode_table.0;
            let block = tables
                .entry(table + u64::from(location.table_block))
                .or_insert_with(|| vec![0; self.geometry.block_size as usize]);
            block[location.byte..location.byte + bytes.len()].copy_from_slice(bytes);
        }
        tables
    }

    /// Finishes the accounting: every group's descriptor, and the superblock's free counts. The bitmaps
    /// follow from the descriptors by [`Volume::bitmaps`].
    pub fn groups(&mut self, itable_zeroed: bool) -> Vec<GroupDesc> {
        let descs: Vec<GroupDesc> =
            self.geometry.groups().map(|group| self.group(group, itable_zeroed)).collect();
        self.superblock.set_free_blocks(descs.iter().map(|desc| u64::from(desc.free_blocks)).sum());
        self.superblock.set_free_inodes(descs.iter().map(|desc| desc.free_inodes).sum());
        descs
    }

    fn group(&self, group: GroupNo, itable_zeroed: bool) -> GroupDesc {
        let geometry = &self.geometry;
        let plan = self.plans[group.0 as usize];
        let first_ino = group.0 * geometry.inodes_per_group + 1;
        let last_ino = first_ino + (geometry.inodes_per_group - 1);
        let inodes = self.inodes.range(first_ino..=last_ino);
        let highest = inodes.clone().next_back().map_or(0, |(ino, _)| ino - first_ino + 1);
        let mut desc = GroupDesc {
            block_bitmap: plan.block_bitmap,
            inode_bitmap: plan.inode_bitmap,
            inode_table: plan.inode_table,
            free_blocks: self.free_in(group),
            free_inodes: geometry.inodes_per_group - inodes.count() as u32,
            used_dirs: self
                .directories
                .iter()
                .filter(|ino| (first_ino..=last_ino).contains(&ino.get()))
                .count() as u32,
            ..GroupDesc::default()
        };
        if self.csum.group_descs() {
            desc.itable_unused = geometry.inodes_per_group - highest;
            let mut flags = GroupFlags::default();
            if highest == 0 {
                flags = flags.with(GroupFlags::INODE_UNINIT);
                // The last group's bitmap is written for the sake of the bits past the volume's end.
                if group.0 + 1 < geometry.group_count && self.holds_only_its_own(group, &desc) {
                    flags = flags.with(GroupFlags::BLOCK_UNINIT);
                }
            }
            if itable_zeroed {
                flags = flags.with(GroupFlags::INODE_ZEROED);
            }
            desc.flags = flags;
            let (blocks, inodes) = self.bitmaps(group, &desc);
            if let Some(bitmap) = blocks {
                self.csum.set_block_bitmap(&bitmap, &mut desc);
            }
            if let Some(bitmap) = inodes {
                self.csum.set_inode_bitmap(&bitmap, &mut desc);
            }
        }
        desc
    }

    /// Whether the group's blocks in use are those that `BLOCK_UNINIT` stands for.
    fn holds_only_its_own(&self, group: GroupNo, desc: &GroupDesc) -> bool {
        let here = |block: BlockNo| self.geometry.group_of_block(block) == Some(group);
        let table = self.geometry.inode_table_blocks();
        let own = self.geometry.head(group).len()
            + u32::from(here(desc.block_bitmap))
            + u32::from(here(desc.inode_bitmap))
            + if here(desc.inode_table) { table } else { 0 };
        self.geometry.blocks_in_group(group) - desc.free_blocks == own
    }

    /// A group's block and inode bitmap; `None` where the descriptor says that it is not initialised.
    pub fn bitmaps(&self, group: GroupNo, desc: &GroupDesc) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        use ext4_format::bitmap::BitsMut;
        let geometry = &self.geometry;
        let bits = geometry.block_size * 8;
        let blocks = (!desc.flags.has(GroupFlags::BLOCK_UNINIT)).then(|| {
            let mut bytes = vec![0; self.block_size()];
            let mut bitmap = BitsMut::new(&mut bytes, bits);
            let base = geometry.group_first_block(group).0;
            for run in self.used.runs_in(self.group_blocks(group)) {
                bitmap.fill((run.start - base) as u32..(run.end - base) as u32, true);
            }
            bitmap.fill(geometry.blocks_in_group(group)..bits, true);
            bytes
        });
        let inodes = (!desc.flags.has(GroupFlags::INODE_UNINIT)).then(|| {
            let mut bytes = vec![0; self.block_size()];
            let mut bitmap = BitsMut::new(&mut bytes, bits);
            let first = group.0 * geometry.inodes_per_group + 1;
            for (ino, _) in self.inodes.range(first..=first + (geometry.inodes_per_group - 1)) {
                bitmap.fill(ino - first..ino - first + 1, true);
            }
            bitmap.fill(geometry.inodes_per_group..bits, true);
            bytes
        });
        (blocks, inodes)
    }
}
