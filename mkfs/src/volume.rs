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
    inode_layout: InodeLayout,
    plans: Vec<GroupPlan>,
    used: UsedBlocks,
    inodes: BTreeMap<u32, Vec<u8>>,
    directories: Vec<Ino>,
    blocks: BTreeMap<u64, Vec<u8>>,
    contents: Contents,
}

/// Inodes that somebody else keeps and writes: those of a tree, with numbers in a row.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// First number.
    pub first: u32,
    /// One past the last.
    pub end: u32,
    /// How many directories each group has among them.
    pub directories: Vec<u32>,
}

impl Contents {
    fn in_range(&self, first: u32, last: u32) -> Range<u32> {
        let range = self.first.max(first)..self.end.min(last + 1);
        if range.start < range.end { range } else { 0..0 }
    }
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
            inode_layout: InodeLayout::new(&superblock),
            plans,
            used,
            inodes: BTreeMap::new(),
            directories: Vec::new(),
            blocks: BTreeMap::new(),
            contents: Contents::default(),
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

    /// All free blocks, in runs.
    pub fn free_runs(&self) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        let mut at = u64::from(self.geometry.first_data_block);
        while let Some(run) = self.used.next_free(at..self.geometry.blocks_count) {
            at = run.end;
            runs.push(run);
        }
        runs
    }

    /// How many blocks are free.
    pub fn free_blocks(&self) -> u64 {
        let all = u64::from(self.geometry.first_data_block)..self.geometry.blocks_count;
        all.end - all.start - self.used.count_in(all)
    }

    /// Leaves inodes to somebody else, who also has taken the blocks `taken`.
    pub fn fill(&mut self, contents: Contents, taken: &[Range<u64>]) {
        self.contents = contents;
        for run in taken {
            self.used.take(run.start, run.end - run.start);
        }
    }

    /// The inodes of [`Volume::fill`] that block `index` of a group's table holds, and where that block lies.
    pub fn contents_in(&self, group: GroupNo, index: u32) -> (u64, Range<u32>) {
        let per_block = self.geometry.block_size / self.geometry.inode_size as u32;
        let first = group.0 * self.geometry.inodes_per_group + index * per_block + 1;
        let table = self.plans[group.0 as usize].inode_table.0;
        (table + u64::from(index), self.contents.in_range(first, first + per_block - 1))
    }

    /// Blocks of a group's inode table up to the last that holds an inode.
    pub fn table_blocks_in_use(&self, group: GroupNo) -> u32 {
        let per_block = self.geometry.block_size / self.geometry.inode_size as u32;
        self.highest(group).div_ceil(per_block)
    }

    /// The record of an inode that the volume keeps itself.
    pub fn record(&self, ino: u32) -> Option<&[u8]> {
        self.inodes.get(&ino).map(Vec::as_slice)
    }

    /// Inodes of a group up to the last that is in use.
    fn highest(&self, group: GroupNo) -> u32 {
        let (first, last) = self.numbers(group);
        let own = self.inodes.range(first..=last).next_back().map_or(0, |(ino, _)| ino - first + 1);
        let contents = self.contents.in_range(first, last);
        own.max(if contents.is_empty() { 0 } else { contents.end - first })
    }

    /// The first and the last inode number of a group.
    fn numbers(&self, group: GroupNo) -> (u32, u32) {
        let first = group.0 * self.geometry.inodes_per_group + 1;
        (first, first + (self.geometry.inodes_per_group - 1))
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
        inode.encode_into(&mut bytes, &self.inode_layout);
        self.csum.set_inode(&mut bytes, ino);
        self.put_record(ino, bytes, inode.is_dir());
    }

    /// Keeps the record of an inode, complete with its check sum.
    pub fn put_record(&mut self, ino: Ino, record: Vec<u8>, is_directory: bool) {
        self.inodes.insert(ino.get(), record);
        if is_directory {
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
        let (first_ino, last_ino) = self.numbers(group);
        let inodes = self.inodes.range(first_ino..=last_ino).count()
            + self.contents.in_range(first_ino, last_ino).len();
        let highest = self.highest(group);
        let mut desc = GroupDesc {
            block_bitmap: plan.block_bitmap,
            inode_bitmap: plan.inode_bitmap,
            inode_table: plan.inode_table,
            free_blocks: self.free_in(group),
            free_inodes: geometry.inodes_per_group - inodes as u32,
            used_dirs: self
                .directories
                .iter()
                .filter(|ino| (first_ino..=last_ino).contains(&ino.get()))
                .count() as u32
                + self.contents.directories.get(group.0 as usize).copied().unwrap_or(0),
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
            let (first, last) = self.numbers(group);
            let contents = self.contents.in_range(first, last);
            if !contents.is_empty() {
                bitmap.fill(contents.start - first..contents.end - first, true);
            }
            bitmap.fill(geometry.inodes_per_group..bits, true);
            bytes
        });
        (blocks, inodes)
    }
}
